//! The shard state machine: inputs in, effects out.

mod apply;
mod effects;
mod live;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

pub use effects::{Effect, Input};
pub use live::{AccountingQuestion, LiveMark, LiveQuestion, Moved, NewEntry};

use super::batch::{OpenBatch, Windows};
use super::dedup::{Dedup, MAX_IDS};
use super::immutable_queue::ImmutableQueue;
use super::poison::{Mode, mode};
use super::series::Admission;
use crate::model::flush::{Claim, DedupRule, FlushBatch, FlushGuard, LogRecord, RecentIds, Suspect};
use crate::model::manifest::Decisions;
use crate::model::offset::{Diverged, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::window::{Hour, Millis};

/// A flush that failed twice waits so long, then twice as long each time: a store that fails for a reason is not to be kept busy with it.
const RETRY_MS: i64 = 500;
/// The longest wait: how much later than the store a shard may be there.
const RETRY_MAX_MS: i64 = 8_000;

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
    /// Number of shards, which says where a series belongs.
    pub shard_count: u32,
    /// Fault injection for tests of the quarantine: applying an event of the user with this hash panics.
    pub panic_on_user: Option<u64>,
}

impl ShardLimits {
    /// The configured rule of de-duplication.
    pub fn dedup_rule(&self) -> DedupRule {
        DedupRule { horizon_ms: self.dedup_horizon_ms, max_ids: self.dedup_max_ids.clamp(1, MAX_IDS) }
    }
}

/// The rule that decides the record at `offset`.
fn change_to(dedup: &mut Dedup, ahead: &mut VecDeque<(Offset, DedupRule)>, offset: Offset) {
    while let Some((_, rule)) = ahead.pop_front_if(|(from, _)| *from <= offset) {
        dedup.change(rule);
    }
}

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
    /// Append time of the record before `next`, if that is known.
    appended: Option<Millis>,
    /// When the last record applied in this life was received.
    received: Option<Millis>,
    dedup: Dedup,
    /// Rules of later records: only who folds records once more has any.
    rules_ahead: VecDeque<(Offset, DedupRule)>,
    admission: Admission,
    open: OpenBatch,
    open_since: Option<Millis>,
    /// In which hour the first record of the open batch was received.
    open_hour: Option<Hour>,
    /// Since when there has been nothing to flush, or when that was confirmed last.
    idle_since: Option<Millis>,
    flushed: ImmutableQueue<Flushed>,
    in_flight: bool,
    retry: bool,
    /// Flushes that failed since the last that did not, and since when the next one waits.
    failures: u32,
    waits_since: Option<Millis>,
    mode: Mode,
    /// End of the log, read after the shard was claimed. Until it is reached careful modes last, and an owner before may have shown more.
    log_end: Offset,
    applied_since_flush: usize,
    suspects: Vec<Suspect>,
    alone: Option<Alone>,
    /// What comes next cannot be read by this build.
    stands_still: Option<Diverged>,
}

impl ShardState {
    /// An owner that has just claimed the shard: empty aggregates at the checkpoint, and the recent ids.
    pub fn new(
        limits: ShardLimits,
        shard: ShardId,
        claim: &Claim,
        recent: impl Into<RecentIds>,
        admission: Admission,
        log_end: Offset,
    ) -> Self {
        let checkpoint = claim.checkpoint;
        let RecentIds { rules, blocks } = recent.into();
        // Nobody who makes up ids knows the nonce.
        let mut dedup = Dedup::new(limits.dedup_rule(), checkpoint.epoch.nonce);
        let mut rules_ahead = rules.0.into();
        for block in &blocks {
            change_to(&mut dedup, &mut rules_ahead, block.range.from);
            dedup.load(std::slice::from_ref(block));
        }
        change_to(&mut dedup, &mut rules_ahead, checkpoint.next);
        Self {
            admission,
            limits,
            shard,
            log: checkpoint.log,
            epoch: checkpoint.epoch,
            next: checkpoint.next,
            appended: checkpoint.appended,
            received: None,
            dedup,
            rules_ahead,
            open: OpenBatch::new(checkpoint.next),
            open_since: None,
            open_hour: None,
            idle_since: None,
            flushed: ImmutableQueue::new(),
            in_flight: false,
            retry: false,
            failures: 0,
            waits_since: None,
            // Where nothing waits, nothing can have killed the starts before: they were moves from node to node.
            mode: if checkpoint.next >= log_end { Mode::Normal } else { mode(claim.attempts) },
            log_end,
            applied_since_flush: 0,
            suspects: claim.suspects.clone(),
            alone: None,
            stands_still: None,
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

    /// Bytes of deltas that wait for their flush.
    pub fn open_bytes(&self) -> usize {
        self.open.bytes()
    }

    /// Append time of the last record applied, if it is known.
    pub fn appended(&self) -> Option<Millis> {
        self.appended
    }

    /// The ids that it knows.
    pub fn dedup(&self) -> &Dedup {
        &self.dedup
    }

    /// How many records it takes now: 0 while its memory bound is reached, before a record that it cannot read or, after crashes, until
    /// the commit in flight ends.
    pub fn credit(&self) -> usize {
        if self.stands_still.is_some()
            || self.open.bytes() >= self.limits.max_delta_bytes.saturating_mul(2)
            || self.alone.is_some()
        {
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
                self.failures = self.failures.saturating_add(1);
                self.waits_since = None;
            }
        }
    }

    /// Whether a flush that failed is to wait still. The first is tried again at once; a clock that went back ends the wait.
    fn waits(&mut self, now: Millis) -> bool {
        let pause = match self.failures {
            0 | 1 => 0,
            more => (RETRY_MS << (more - 2).min(8)).min(RETRY_MAX_MS),
        };
        let since = *self.waits_since.get_or_insert(now);
        (0..pause).contains(&now.saturating_sub(since))
    }

    fn on_tick(&mut self, now: Millis, drain: bool, effects: &mut Vec<Effect>) {
        self.forget_committed(now);
        if self.in_flight {
            return;
        }
        if self.retry {
            if !drain && self.waits(now) {
                return;
            }
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
            || self.hour_has_ended();
        if due {
            self.begin_flush(effects);
        }
    }

    /// Whether a record of another hour has come, as far as there is a cadence at all.
    fn hour_has_ended(&self) -> bool {
        self.limits.flush_interval_ms < i64::MAX && self.open_hour != self.received.map(Hour::of)
    }

    fn on_idle(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.limits.flush_interval_ms {
            self.idle_since = Some(now);
            if self.next == self.open.from() && self.alone.is_none() {
                // Nothing is open. What it knows of the batch before was for series that come again at once; an idle shard keeps no memory.
                self.open = OpenBatch::new(self.next);
            }
            effects.push(Effect::Confirm { next: self.open.from() });
        }
    }

    fn begin_flush(&mut self, effects: &mut Vec<Effect>) {
        let mut open = std::mem::replace(&mut self.open, OpenBatch::new(self.next));
        let windows = Arc::new(open.take_windows());
        let range = OffsetRange { from: open.from(), to: self.next };
        let forget_ids_before = self.appended.map_or(Millis::MIN, |at| at.saturating_sub(self.dedup.rule().horizon_ms));
        let (batch, behind) = open.freeze(range, self.appended);
        self.open = behind;
        let batch = Arc::new(batch);
        self.flushed =
            self.flushed.enqueue(Flushed { range, batch: batch.clone(), windows, forget_ids_before, committed_at: None });
        self.open_since = None;
        self.open_hour = None;
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
        self.failures = 0;
        if self.next >= self.log_end {
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
}
