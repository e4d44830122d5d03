//! The shard state machine: inputs in, effects out.

use std::sync::Arc;

use super::batch::{OpenBatch, Windows};
use super::dedup::Dedup;
use super::immutable_queue::ImmutableQueue;
use super::poison::{Mode, convicted, mode};
use super::series::Admission;
use crate::model::flush::{
    AccountingDelta, Claim, DedupBlock, FlushBatch, FlushGuard, LogRecord, QuarantineRow, SeriesInfo, Suspect,
};
use crate::model::manifest::Decisions;
use crate::model::offset::{Checkpoint, Diverged, Due, Epoch, LogId, Offset, OffsetRange, ShardId, due};
use crate::model::record::{self, Record};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};

/// The limits of one shard.
#[derive(Debug, Clone)]
pub struct ShardLimits {
    /// `dedup.horizon` in milliseconds.
    pub dedup_horizon_ms: i64,
    /// `dedup.max_ids`, per shard.
    pub dedup_max_ids: usize,
    /// `flush.interval` in milliseconds.
    pub flush_interval_ms: i64,
    /// Bytes of open deltas at which a flush is due before its time.
    pub max_delta_bytes: usize,
    /// How long a committed batch is kept for queries that hold an older snapshot: the longest time a query may take.
    pub keep_flushed_ms: i64,
    /// Fault injection for tests of the quarantine: applying an event of the user with this hash panics.
    pub panic_on_user: Option<u64>,
}

/// What happens to a shard.
#[derive(Debug)]
pub enum Input<'a> {
    /// Records read from the log, in order.
    Records(&'a [LogRecord]),
    /// Time passes; `drain` asks for a flush of whatever is open.
    Tick {
        /// Wall time, for cadence only: it never touches a rollup.
        now: Millis,
        /// Flush now.
        drain: bool,
    },
    /// The commit in flight ended.
    Committed {
        /// Wall time.
        now: Millis,
    },
    /// The commit in flight was certainly not applied and may be tried again.
    CommitFailed,
}

/// What a shard asks for. Effects are carried out in order.
#[derive(Debug)]
pub enum Effect {
    /// Commit this batch in one store transaction, then answer `Committed` or `CommitFailed`; on an unknown outcome drop the state.
    Commit {
        /// The guard.
        guard: FlushGuard,
        /// The batch.
        batch: Arc<FlushBatch>,
        /// Ids appended before this are out of every horizon.
        forget_ids_before: Millis,
    },
    /// Note the event in the store before going on: the shard applies it alone.
    MarkSuspect {
        /// Its record.
        offset: Offset,
        /// Its index.
        index: u32,
    },
    /// Look whether the store still stands where this owner and its archiver left it, or further; if not, drop the state. A flush would
    /// find out, but there is nothing to flush: a store that failed over and lost commits would stay behind for as long as no event comes.
    Confirm {
        /// Up to here this owner has committed.
        next: Offset,
    },
    /// Stop loudly: the log does not continue where the store stands.
    Stop(Diverged),
}

/// What a query asks of the live deltas.
#[derive(Debug, Clone, Copy)]
pub struct LiveQuestion<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// Which metric.
    pub metric: &'a str,
    /// First hour.
    pub from: Hour,
    /// First hour behind.
    pub to: Hour,
    /// Whether distinct users are wanted; otherwise the sketch may be left empty.
    pub distinct: bool,
    /// Whether quantiles are wanted; otherwise the sketch may be left empty.
    pub quantiles: bool,
}

/// What is asked of the accounting above the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct AccountingQuestion<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// First hour of append.
    pub from: Hour,
    /// First hour behind.
    pub to: Hour,
}

/// How far a live answer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveMark {
    /// Everything below is in store ⊕ answer.
    pub applied: Offset,
    /// Append time of the last record applied; 0 if none was.
    pub appended: Millis,
}

/// The shard cannot answer above that checkpoint: other epoch, or the batches are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved;

/// A batch that was handed to the store.
#[derive(Debug)]
struct Flushed {
    range: OffsetRange,
    batch: Arc<FlushBatch>,
    windows: Arc<Windows>,
    forget_ids_before: Millis,
    /// When it was committed; none while it is not.
    committed_at: Option<Millis>,
}

/// A record that is applied event by event, because whole records crashed the shard.
#[derive(Debug)]
struct Alone {
    record: LogRecord,
    index: u32,
}

/// The state of one owned shard.
#[derive(Debug)]
pub struct ShardState {
    limits: ShardLimits,
    shard: ShardId,
    log: LogId,
    epoch: Epoch,
    next: Offset,
    last_appended: Millis,
    dedup: Dedup,
    admission: Admission,
    open: OpenBatch,
    open_since: Option<Millis>,
    /// Since when there has been nothing to flush, or when that was confirmed last.
    idle_since: Option<Millis>,
    flushed: ImmutableQueue<Flushed>,
    in_flight: bool,
    retry: bool,
    mode: Mode,
    /// Careful modes end when everything that was in the log at the start has been passed.
    careful_until: Offset,
    applied_since_flush: usize,
    suspects: Vec<Suspect>,
    alone: Option<Alone>,
}

impl ShardState {
    /// An owner that has just claimed the shard: empty aggregates at the checkpoint, and the recent ids.
    pub fn new(
        limits: ShardLimits,
        shard: ShardId,
        claim: &Claim,
        recent: Vec<DedupBlock>,
        admission: Admission,
        log_end: Offset,
    ) -> Self {
        let checkpoint = claim.checkpoint;
        let mut dedup = Dedup::new(limits.dedup_horizon_ms, limits.dedup_max_ids);
        dedup.load(&recent);
        Self {
            admission,
            limits,
            shard,
            log: checkpoint.log,
            epoch: checkpoint.epoch,
            next: checkpoint.next,
            last_appended: 0,
            dedup,
            open: OpenBatch::new(checkpoint.next),
            open_since: None,
            idle_since: None,
            flushed: ImmutableQueue::new(),
            in_flight: false,
            retry: false,
            // Where nothing waits, nothing can have killed the starts before: they were moves from node to node.
            mode: if checkpoint.next >= log_end { Mode::Normal } else { mode(claim.attempts) },
            careful_until: log_end,
            applied_since_flush: 0,
            suspects: claim.suspects.clone(),
            alone: None,
        }
    }

    /// Learns what was decided about the records below `to`, which are folded once more.
    pub fn learn(&mut self, decisions: &Decisions, to: Offset) {
        self.admission.learn(&decisions.admitted, to);
        self.suspects.retain(|suspect| suspect.offset >= self.next);
        self.suspects.extend(decisions.set_aside.iter().map(|(offset, index, _)| Suspect::certain(*offset, *index)));
    }

    /// Next offset to read.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// The owner's epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many records it takes now: 0 while its memory bound is reached or, after crashes, until the commit in flight ends.
    pub fn credit(&self) -> usize {
        if self.open.bytes() >= self.limits.max_delta_bytes.saturating_mul(2) || self.alone.is_some() {
            return 0;
        }
        match self.mode.step() {
            None => usize::MAX,
            Some(_) if self.in_flight || self.retry => 0,
            Some(step) => step.saturating_sub(self.applied_since_flush),
        }
    }

    /// One step. After a [`Effect::MarkSuspect`] has been carried out, the shell steps with no records, and the event is applied.
    pub fn step(&mut self, input: Input<'_>, effects: &mut Vec<Effect>) {
        match input {
            Input::Records(records) => self.on_records(records, effects),
            Input::Tick { now, drain } => self.on_tick(now, drain, effects),
            Input::Committed { now } => self.on_committed(now),
            Input::CommitFailed => {
                self.in_flight = false;
                self.retry = true;
            }
        }
    }

    fn on_records(&mut self, records: &[LogRecord], effects: &mut Vec<Effect>) {
        if self.alone.is_some() {
            self.apply_marked(effects);
        }
        for record in records {
            match due(self.next, record.offset) {
                Ok(Due::Skip) => {}
                Ok(Due::Apply) if self.mode == Mode::Alone => {
                    self.alone = Some(Alone { record: record.clone(), index: 0 });
                    self.mark(effects);
                    return;
                }
                Ok(Due::Apply) => {
                    self.apply_record(record);
                    self.passed(record);
                }
                Err(diverged) => {
                    effects.push(Effect::Stop(diverged));
                    return;
                }
            }
        }
    }

    fn passed(&mut self, record: &LogRecord) {
        self.next = record.offset + 1;
        self.last_appended = record.appended;
        self.applied_since_flush += 1;
    }

    fn apply_record(&mut self, log_record: &LogRecord) {
        self.dedup.advance(log_record.appended);
        match record::decode(&log_record.payload) {
            Ok(record) => {
                let mut local = vec![None; record.series.len()];
                for index in 0..record.events.len() {
                    self.apply_event(log_record, &record, index, &mut local);
                }
            }
            Err(error) => self.quarantine(log_record, 0, "", &error.to_string(), log_record.payload.to_vec()),
        }
    }

    /// The next event of a record applied alone: notes it in the store first, or passes over what is no event of it.
    fn mark(&mut self, effects: &mut Vec<Effect>) {
        if let Some(alone) = &self.alone {
            effects.push(Effect::MarkSuspect { offset: alone.record.offset, index: alone.index });
        }
    }

    fn apply_marked(&mut self, effects: &mut Vec<Effect>) {
        let Some(mut alone) = self.alone.take() else { return };
        let payload = alone.record.payload.clone();
        let events = match record::decode(&payload) {
            Ok(record) => {
                self.dedup.advance(alone.record.appended);
                let mut local = vec![None; record.series.len()];
                let index = alone.index as usize;
                if index < record.events.len() {
                    self.apply_event(&alone.record, &record, index, &mut local);
                }
                record.events.len()
            }
            Err(error) => {
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

    fn apply_event(&mut self, log_record: &LogRecord, record: &Record<'_>, index: usize, local: &mut [Option<u32>]) {
        let event = &record.events[index];
        let entry = &record.series[event.series as usize];
        let original = entry.series_id();
        let hour = Hour::of(log_record.appended);
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
        let slot = match local[event.series as usize] {
            Some(slot) => slot,
            None => match self.open.series_slot(original, entry.key, &mut self.admission, log_record.offset) {
                Ok(slot) => slot,
                Err(error) => {
                    self.quarantine(log_record, index as u32, record.tenant, &error.to_string(), single(record, index));
                    return;
                }
            },
        };
        local[event.series as usize] = Some(slot);
        let user = event.user_hash();
        assert!(user.is_none() || user != self.limits.panic_on_user, "fault injection: panic_on_user");
        self.open.add(slot, Hour::of(event.timestamp), event.value, user);
        self.open.account(record.tenant, hour, |row| row.aggregated += 1);
    }

    fn quarantine(&mut self, record: &LogRecord, index: u32, tenant: &str, reason: &str, bytes: Vec<u8>) {
        self.open.quarantine(QuarantineRow {
            shard: self.shard,
            offset: record.offset,
            index,
            tenant: tenant.to_owned(),
            appended: record.appended,
            reason: reason.to_owned(),
            discarded: false,
            record: bytes,
        });
        self.open.account(tenant, Hour::of(record.appended), |row| row.quarantined += 1);
    }

    fn on_tick(&mut self, now: Millis, drain: bool, effects: &mut Vec<Effect>) {
        self.forget_committed(now);
        if self.in_flight {
            return;
        }
        if self.retry {
            self.retry = false;
            self.offer_again(effects);
            return;
        }
        if self.next == self.open.from() || self.alone.is_some() {
            self.on_idle(now, effects);
            return;
        }
        self.idle_since = None;
        let since = *self.open_since.get_or_insert(now);
        let due = drain
            || self.mode.step().is_some()
            || now.saturating_sub(since) >= self.limits.flush_interval_ms
            || self.open.bytes() >= self.limits.max_delta_bytes
            || Hour::of(now) != Hour::of(since);
        if due {
            self.begin_flush(effects);
        }
    }

    fn on_idle(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.limits.flush_interval_ms {
            self.idle_since = Some(now);
            effects.push(Effect::Confirm { next: self.open.from() });
        }
    }

    fn begin_flush(&mut self, effects: &mut Vec<Effect>) {
        let mut open = std::mem::replace(&mut self.open, OpenBatch::new(self.next));
        let windows = Arc::new(open.take_windows());
        let range = OffsetRange { from: open.from(), to: self.next };
        let forget_ids_before = self.last_appended.saturating_sub(self.limits.dedup_horizon_ms);
        let batch = Arc::new(open.freeze(range));
        self.flushed =
            self.flushed.enqueue(Flushed { range, batch: batch.clone(), windows, forget_ids_before, committed_at: None });
        self.open_since = None;
        self.applied_since_flush = 0;
        self.in_flight = true;
        effects.push(Effect::Commit { guard: self.guard(range), batch, forget_ids_before });
    }

    fn offer_again(&mut self, effects: &mut Vec<Effect>) {
        let waiting = self.flushed.iter().find(|f| f.committed_at.is_none());
        if let Some(f) = waiting {
            let (range, batch, forget_ids_before) = (f.range, f.batch.clone(), f.forget_ids_before);
            self.in_flight = true;
            effects.push(Effect::Commit { guard: self.guard(range), batch, forget_ids_before });
        }
    }

    fn guard(&self, range: OffsetRange) -> FlushGuard {
        FlushGuard { shard: self.shard, log: self.log, range, epoch: self.epoch }
    }

    fn on_committed(&mut self, now: Millis) {
        self.in_flight = false;
        if self.next >= self.careful_until {
            self.mode = Mode::Normal;
        } else if self.mode == Mode::Alone {
            self.mode = Mode::Careful { step: 1 };
        }
        let stamped = self.flushed.iter().map(|f| {
            Arc::new(Flushed {
                range: f.range,
                batch: f.batch.clone(),
                windows: f.windows.clone(),
                forget_ids_before: f.forget_ids_before,
                committed_at: f.committed_at.or(Some(now)),
            })
        });
        self.flushed = stamped.fold(ImmutableQueue::new(), |queue, f| queue.enqueue(f));
    }

    /// Committed batches are kept for as long as a query may hold an older snapshot.
    fn forget_committed(&mut self, now: Millis) {
        while let Some((first, rest)) = self.flushed.dequeue() {
            match first.committed_at {
                Some(at) if now.saturating_sub(at) > self.limits.keep_flushed_ms => self.flushed = rest,
                _ => return,
            }
        }
    }

    /// Visits the deltas at or above the checkpoint, which must be this owner's: by epoch and as a boundary between batches.
    ///
    /// # Errors
    /// [`Moved`].
    pub fn live(
        &self,
        checkpoint: &Checkpoint,
        question: &LiveQuestion<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) -> Result<LiveMark, Moved> {
        self.holds(checkpoint)?;
        for flushed in self.flushed.iter().filter(|f| f.range.from >= checkpoint.next) {
            super::batch::visit_frozen(&flushed.batch, question, matches, visit);
        }
        self.open.visit(question, matches, visit);
        Ok(self.mark_live())
    }

    /// Visits what was counted at or above the checkpoint, which must be this owner's as for [`ShardState::live`].
    ///
    /// # Errors
    /// [`Moved`].
    pub fn live_accounting(
        &self,
        checkpoint: &Checkpoint,
        question: &AccountingQuestion<'_>,
        visit: &mut dyn FnMut(&AccountingDelta),
    ) -> Result<LiveMark, Moved> {
        self.holds(checkpoint)?;
        let frozen = self.flushed.iter().filter(|f| f.range.from >= checkpoint.next).flat_map(|f| &f.batch.accounting);
        let rows = frozen.chain(self.open.accounting());
        let asked = rows.filter(|r| r.tenant == question.tenant && question.from <= r.hour && r.hour < question.to);
        asked.for_each(visit);
        Ok(self.mark_live())
    }

    /// Where this owner's memory begins, how far it has applied, and which windows of which metrics ([`super::batch::metric_hash`]) lie between.
    pub fn stand(&self, visit: &mut dyn FnMut(u64, Hour)) -> (Checkpoint, LiveMark) {
        let frozen = self.flushed.iter().flat_map(|f| f.windows.iter());
        frozen.chain(self.open.windows()).for_each(|(metric, hour)| visit(*metric, *hour));
        let next = self.flushed.iter().next().map_or(self.open.from(), |f| f.range.from);
        (Checkpoint { log: self.log, next, archived: 0, epoch: self.epoch }, self.mark_live())
    }

    /// Whether the checkpoint is this owner's: by epoch and as a boundary between batches that are still here. Between two events of a
    /// record that is applied alone there is nothing to answer with: a part of a record is no prefix of the log.
    fn holds(&self, checkpoint: &Checkpoint) -> Result<(), Moved> {
        let held = checkpoint.next == self.open.from() || self.flushed.iter().any(|f| f.range.from == checkpoint.next);
        let mine = checkpoint.epoch == self.epoch && checkpoint.log == self.log;
        let whole = self.alone.as_ref().is_none_or(|alone| alone.index == 0);
        if held && mine && whole { Ok(()) } else { Err(Moved) }
    }

    /// How far a live answer reaches.
    pub fn mark_live(&self) -> LiveMark {
        LiveMark { applied: self.next, appended: self.last_appended }
    }
}

/// One event of a record as a record of its own, so that its release can fold it.
fn single(record: &Record<'_>, index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(event) = record.events.get(index) {
        let series = vec![record.series[event.series as usize].clone()];
        let event = record::RecordEvent { series: 0, ..event.clone() };
        let one = Record { version: record.version, tenant: record.tenant, gateway: record.gateway, series, events: vec![event] };
        record::encode(&one, &mut bytes);
    }
    bytes
}
