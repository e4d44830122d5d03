//! Applies records: whole, or event by event after crashes. What cannot be applied is quarantined.

use std::sync::Arc;

use super::checks::check_writer;
use super::{IsolatedRecord, ShardEffect, ShardState};
use crate::model::CodecError;
use crate::model::flush::{LogRecord, QuarantineRow, SeriesInfo};
use crate::model::offset::{LogDivergence, Offset, RecordAction, check_offset};
use crate::model::outcome::{UncountedEvent, Verdict};
use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
use crate::model::series::{Series, metric_hash};
use crate::model::window::Hour;
use crate::shards::delta_table::SeriesLookup;
use crate::shards::generations::SourceEvent;
use crate::shards::poison::{ApplyMode, PoisonStep, is_poison, poison_step};

impl ShardState {
    pub(super) fn on_records(&mut self, records: &[LogRecord], effects: &mut Vec<ShardEffect>) {
        // The step after a mark: the marked event comes first, and may mark the next one.
        if self.isolated.is_some() {
            self.apply_marked(effects);
        }
        for record in records {
            // A record above `next` is a gap and stops the shard, so its rules must not take
            // effect.
            super::apply_due_rules(
                &mut self.dedup,
                &mut self.rules_ahead,
                record.offset.min(self.next),
            );
            match check_offset(self.next, record.offset) {
                Ok(RecordAction::Skip) => {}
                Ok(RecordAction::Apply) if self.stop_if_unsupported(record, effects) => return,
                Ok(RecordAction::Apply) if self.mode == ApplyMode::Isolating => {
                    self.isolated =
                        Some(IsolatedRecord { record: self.with_append_time(record), index: 0 });
                    self.mark_suspect(effects);
                    return;
                }
                Ok(RecordAction::Apply) => {
                    let record = self.with_append_time(record);
                    self.apply_record(&record);
                    self.advance_past(&record);
                }
                Err(diverged) => {
                    effects.push(ShardEffect::Stop(diverged));
                    return;
                }
            }
        }
    }

    /// Stops before a record whose version this build does not know. A record that an older build
    /// has quarantined stays quarantined.
    fn stop_if_unsupported(&mut self, record: &LogRecord, effects: &mut Vec<ShardEffect>) -> bool {
        let Some(version) = record::unknown_version(&record.payload) else { return false };
        if is_poison(&self.suspects, record.offset, 0) {
            return false;
        }
        // The effect is pushed once, but the stop holds: `credit` is 0 from now on.
        if self.divergence.is_none() {
            let unread = LogDivergence::UnsupportedVersion { offset: record.offset, version };
            self.divergence = Some(unread);
            effects.push(ShardEffect::Stop(unread));
        }
        true
    }

    /// The record with its append time raised to the running maximum of the shard.
    fn with_append_time(&self, record: &LogRecord) -> LogRecord {
        LogRecord {
            appended: self.appended.map_or(record.appended, |before| before.max(record.appended)),
            ..record.clone()
        }
    }

    fn advance_past(&mut self, record: &LogRecord) {
        self.next = record.offset + 1;
        self.appended = Some(record.appended);
        self.received = Some(record.received);
        self.open_hour.get_or_insert(Hour::of(record.received));
        self.applied_since_flush += 1;
    }

    fn apply_record(&mut self, log_record: &LogRecord) {
        self.dedup.advance(log_record.appended);
        match self.read(&log_record.payload) {
            Ok((record, mut local)) => {
                self.events += record.events.len() as u64;
                for index in 0..record.events.len() {
                    self.apply_event(log_record, &record, index, &mut local);
                }
            }
            Err(error) => {
                self.events += 1;
                self.quarantine_record(log_record, &error);
            }
        }
    }

    /// Decodes a record and looks up its series. A record that no gateway can have written is
    /// refused, because its events would count for another tenant, or twice.
    fn read<'r>(&self, payload: &'r [u8]) -> Result<(Record<'r>, Vec<SeriesLookup>), CodecError> {
        let record = record::decode(payload)?;
        let foreign =
            |why: String| Err(CodecError::new("record", format!("no gateway wrote it: {why}")));
        let mut local = Vec::with_capacity(record.series.len());
        for entry in &record.series {
            let id = entry.series_id();
            if !Series::key_is_of_tenant(entry.key, record.tenant) {
                return foreign(format!("series {id} is not of its tenant {:?}", record.tenant));
            }
            let shard = id.shard(self.limits.shard_count);
            if shard != self.shard {
                return foreign(format!(
                    "series {id} belongs to shard {shard}, not to {}",
                    self.shard
                ));
            }
            local.push(self.open.deltas().look_up(id, entry.key)?);
        }
        Ok((record, local))
    }

    /// Asks to mark the next event of the isolated record in the store before it is applied.
    fn mark_suspect(&mut self, effects: &mut Vec<ShardEffect>) {
        if let Some(isolated) = &self.isolated {
            effects.push(ShardEffect::MarkSuspect {
                offset: isolated.record.offset,
                index: isolated.index,
            });
        }
    }

    fn apply_marked(&mut self, effects: &mut Vec<ShardEffect>) {
        let Some(mut isolated) = self.isolated.take() else { return };
        let payload = isolated.record.payload.clone();
        let events = match self.read(&payload) {
            Ok((record, mut local)) => {
                self.dedup.advance(isolated.record.appended);
                let index = isolated.index as usize;
                if index < record.events.len() {
                    self.events += 1;
                    // Applied in full after its mark is stored: if this crashes the process, the
                    // next claim finds the mark.
                    self.apply_event(&isolated.record, &record, index, &mut local);
                }
                record.events.len()
            }
            Err(error) => {
                self.events += 1;
                self.quarantine_record(&isolated.record, &error);
                0
            }
        };
        isolated.index += 1;
        if (isolated.index as usize) < events {
            self.isolated = Some(isolated);
            self.mark_suspect(effects);
        } else {
            self.advance_past(&isolated.record);
        }
    }

    fn apply_event(
        &mut self,
        log_record: &LogRecord,
        record: &Record<'_>,
        index: usize,
        local: &mut [SeriesLookup],
    ) {
        let event = &record.events[index];
        let entry = &record.series[event.series as usize];
        let original = entry.series_id();
        let hour = Hour::of(log_record.received);
        // The id is remembered before the event is counted or quarantined: a retry by the client
        // must be a duplicate in both cases.
        if let Some(id) = event.id_hash(original) {
            if !self.dedup.insert(id, log_record.appended) {
                self.open.update_accounting(record.tenant, hour, |row| row.deduplicated += 1);
                self.open.note_uncounted(UncountedEvent {
                    offset: log_record.offset,
                    index: index as u32,
                    verdict: Verdict::Duplicate,
                });
                return;
            }
            self.open.remember_id(id, log_record.appended);
        }
        let place = (log_record.offset, index as u32);
        let can_lighten = || self.can_lighten(entry.key, event.timestamp);
        match poison_step(&self.suspects, place.0, place.1, can_lighten) {
            PoisonStep::Apply => {}
            PoisonStep::ApplyToServed => {
                self.abandon_unserved((log_record, place.1), entry.key, event.timestamp);
            }
            PoisonStep::SetAside => {
                let reason = "the shard died each time it applied this event";
                self.quarantine_event(log_record, record, index, reason);
                return;
            }
        }
        let known = &mut local[event.series as usize];
        let placed = self.open.deltas_mut().series_slot(
            (original, entry.key),
            known,
            &mut self.admission,
            log_record.offset,
        );
        let placed = placed.and_then(|slot| Ok((slot, self.original_series(entry, slot)?)));
        let (slot, source) = match placed {
            Ok(placed) => placed,
            Err(error) => {
                self.quarantine_event(log_record, record, index, &error.to_string());
                return;
            }
        };
        *known = SeriesLookup::InBatch(slot);
        let user = event.user_hash();
        assert!(
            user.is_none() || user != self.limits.panic_on_user,
            "fault injection: panic_on_user"
        );
        self.open.deltas_mut().add(slot, Hour::of(event.timestamp), event.value, user);
        if let Some(series) = source {
            self.add_to_generations(log_record.offset, &series, event);
        }
        self.open.update_accounting(record.tenant, hour, |row| row.aggregated += 1);
    }

    /// The series that the client sent the event to; `slot` is it, or the overflow series that
    /// stands in for it. Needed for generations only: their rules see the client's labels.
    fn original_series(
        &self,
        entry: &SeriesEntry<'_>,
        slot: u32,
    ) -> Result<Option<Arc<SeriesInfo>>, CodecError> {
        if self.set.is_empty() {
            return Ok(None);
        }
        let (counted, id) = (self.open.deltas().series(slot), entry.series_id());
        if counted.id == id {
            return Ok(Some(counted.clone()));
        }
        Ok(Some(Arc::new(SeriesInfo { id, series: Series::from_key(entry.key)? })))
    }

    /// Folds an event into the other generations of its metric and day.
    fn add_to_generations(
        &mut self,
        offset: Offset,
        series: &Arc<SeriesInfo>,
        event: &RecordEvent<'_>,
    ) {
        let hour = Hour::of(event.timestamp);
        let (set, Series { tenant, metric, .. }) = (self.set.clone(), &series.series);
        for range in set.on(tenant, metric, hour.day()) {
            let source = SourceEvent {
                series,
                value: event.value,
                user: event.user_hash(),
                time: event.timestamp,
                raw: event.raw,
                offset,
            };
            let admission = self.writers.get_mut(&range.generation);
            check_writer(self.shard, range.generation, offset, admission.is_some());
            let Some(admission) = admission else { continue };
            let open = self.open.generation_mut(range.generation);
            open.fold(&source, &range.rules, admission);
            // In generation 0 the event may have gone to an overflow series of another metric.
            self.open.deltas_mut().note_window(metric_hash(tenant, metric), hour);
        }
    }

    /// Sets a whole record aside, which no gateway can have written.
    fn quarantine_record(&mut self, record: &LogRecord, why: &CodecError) {
        let (place, verdict) = ((record, 0), Verdict::RecordQuarantined);
        self.quarantine(place, verdict, "", &why.to_string(), record.payload.to_vec());
    }

    fn quarantine_event(
        &mut self,
        log_record: &LogRecord,
        record: &Record<'_>,
        index: usize,
        reason: &str,
    ) {
        let (place, verdict) = ((log_record, index as u32), Verdict::Quarantined);
        self.quarantine(place, verdict, record.tenant, reason, single(record, index));
    }

    fn quarantine(
        &mut self,
        (record, index): (&LogRecord, u32),
        verdict: Verdict,
        tenant: &str,
        reason: &str,
        bytes: Vec<u8>,
    ) {
        self.open.note_uncounted(UncountedEvent { offset: record.offset, index, verdict });
        self.open.quarantine(QuarantineRow {
            shard: self.shard,
            offset: record.offset,
            index,
            tenant: tenant.to_owned(),
            received: record.received,
            reason: reason.to_owned(),
            discarded: false,
            record: bytes,
        });
        self.open.update_accounting(tenant, Hour::of(record.received), |row| row.quarantined += 1);
    }
}

/// One event as a record of its own, so that a release can fold it alone.
fn single(record: &Record<'_>, index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(event) = record.events.get(index) {
        let series = vec![record.series[event.series as usize].clone()];
        let event = record::RecordEvent { series: 0, ..event.clone() };
        let one = Record { series, events: vec![event], ..record.clone() };
        record::encode(&one, &mut bytes);
    }
    bytes
}
