//! How records are applied: whole, or after crashes event by event; what cannot be applied is set
//! aside.

use super::{Alone, Effect, ShardState};
use crate::model::CodecError;
use crate::model::flush::{LogRecord, QuarantineRow};
use crate::model::offset::{Diverged, Due, due};
use crate::model::record::{self, Record};
use crate::model::series::Series;
use crate::model::window::Hour;
use crate::shards::batch::Known;
use crate::shards::poison::{Mode, convicted};

impl ShardState {
    pub(super) fn on_records(&mut self, records: &[LogRecord], effects: &mut Vec<Effect>) {
        if self.alone.is_some() {
            self.apply_marked(effects);
        }
        for record in records {
            super::change_to(&mut self.dedup, &mut self.rules_ahead, record.offset.min(self.next));
            match due(self.next, record.offset) {
                Ok(Due::Skip) => {}
                Ok(Due::Apply) if self.cannot_be_read(record, effects) => return,
                Ok(Due::Apply) if self.mode == Mode::Alone => {
                    self.alone = Some(Alone { record: self.timed(record), index: 0 });
                    self.mark(effects);
                    return;
                }
                Ok(Due::Apply) => {
                    let record = self.timed(record);
                    self.apply_record(&record);
                    self.passed(&record);
                }
                Err(diverged) => {
                    effects.push(Effect::Stop(diverged));
                    return;
                }
            }
        }
    }

    /// Whether the record is of a version that this build does not read. One that an older build
    /// has set aside stays so.
    fn cannot_be_read(&mut self, record: &LogRecord, effects: &mut Vec<Effect>) -> bool {
        let Some(version) = record::unknown_version(&record.payload) else { return false };
        if convicted(&self.suspects, record.offset, 0) {
            return false;
        }
        if self.stands_still.is_none() {
            let unread = Diverged::Unread { offset: record.offset, version };
            self.stands_still = Some(unread);
            effects.push(Effect::Stop(unread));
        }
        true
    }

    /// The record with its append time, which is the running maximum over the shard.
    fn timed(&self, record: &LogRecord) -> LogRecord {
        LogRecord {
            appended: self.appended.map_or(record.appended, |before| before.max(record.appended)),
            ..record.clone()
        }
    }

    fn passed(&mut self, record: &LogRecord) {
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
                self.quarantine(log_record, 0, "", &error.to_string(), log_record.payload.to_vec());
            }
        }
    }

    /// The record, if it can be one that a gateway has written, and what is known of its series.
    /// Events of others would count for another tenant, or twice.
    fn read<'r>(&self, payload: &'r [u8]) -> Result<(Record<'r>, Vec<Known>), CodecError> {
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
            local.push(self.open.known(id, entry.key)?);
        }
        Ok((record, local))
    }

    /// The next event of a record applied alone: notes it in the store first, or passes over what
    /// is no event of it.
    fn mark(&mut self, effects: &mut Vec<Effect>) {
        if let Some(alone) = &self.alone {
            effects.push(Effect::MarkSuspect { offset: alone.record.offset, index: alone.index });
        }
    }

    fn apply_marked(&mut self, effects: &mut Vec<Effect>) {
        let Some(mut alone) = self.alone.take() else { return };
        let payload = alone.record.payload.clone();
        let events = match self.read(&payload) {
            Ok((record, mut local)) => {
                self.dedup.advance(alone.record.appended);
                let index = alone.index as usize;
                if index < record.events.len() {
                    self.events += 1;
                    self.apply_event(&alone.record, &record, index, &mut local);
                }
                record.events.len()
            }
            Err(error) => {
                self.events += 1;
                self.quarantine(&alone.record, 0, "", &error.to_string(), payload.to_vec());
                0
            }
        };
        alone.index += 1;
        if (alone.index as usize) < events {
            self.alone = Some(alone);
            self.mark(effects);
        } else {
            self.passed(&alone.record);
        }
    }

    fn apply_event(
        &mut self,
        log_record: &LogRecord,
        record: &Record<'_>,
        index: usize,
        local: &mut [Known],
    ) {
        let event = &record.events[index];
        let entry = &record.series[event.series as usize];
        let original = entry.series_id();
        let hour = Hour::of(log_record.received);
        if let Some(id) = event.id_hash(original) {
            if !self.dedup.is_new(id, log_record.appended) {
                self.open.account(record.tenant, hour, |row| row.deduplicated += 1);
                return;
            }
            self.open.remember_id(id, log_record.appended);
        }
        if convicted(&self.suspects, log_record.offset, index as u32) {
            let reason = "the shard died each time it applied this event";
            self.quarantine(log_record, index as u32, record.tenant, reason, single(record, index));
            return;
        }
        let known = &mut local[event.series as usize];
        let slot = match self.open.series_slot(
            (original, entry.key),
            known,
            &mut self.admission,
            log_record.offset,
        ) {
            Ok(slot) => slot,
            Err(error) => {
                self.quarantine(
                    log_record,
                    index as u32,
                    record.tenant,
                    &error.to_string(),
                    single(record, index),
                );
                return;
            }
        };
        *known = Known::Slot(slot);
        let user = event.user_hash();
        assert!(
            user.is_none() || user != self.limits.panic_on_user,
            "fault injection: panic_on_user"
        );
        self.open.add(slot, Hour::of(event.timestamp), event.value, user);
        self.open.account(record.tenant, hour, |row| row.aggregated += 1);
    }

    fn quarantine(
        &mut self,
        record: &LogRecord,
        index: u32,
        tenant: &str,
        reason: &str,
        bytes: Vec<u8>,
    ) {
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
        self.open.account(tenant, Hour::of(record.received), |row| row.quarantined += 1);
    }
}

/// One event of a record as a record of its own, so that its release can fold it.
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
