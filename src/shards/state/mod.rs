//! The shard state machine: inputs in, effects out.

mod apply;
mod effects;
mod frozen;
mod live;
mod question;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

pub use effects::{Effect, Input};
pub use live::{LiveBatches, LiveMark, NewEntry, StaleCheckpoint};
pub use question::{AccountingQuestion, LiveQuestion};

use self::frozen::{FrozenBatch, FrozenBatches};
use super::batch::OpenBatch;
use super::dedup::{Dedup, MAX_IDS};
use super::poison::{Mode, mode};
use super::series::Admission;
use crate::invariants::{Invariant, check};
use crate::model::flush::{Claim, DedupRule, FlushGuard, LogRecord, RecentIds, Suspect};
use crate::model::manifest::Decisions;
use crate::model::offset::{Diverged, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::window::{Hour, Millis};

/// A flush that failed twice waits so long, then twice as long each time: a store that fails for a
/// reason is not to be kept busy with it.
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
    /// How long a committed batch is kept for queries that hold an older snapshot: the longest
    /// time a query may take.
    pub keep_flushed_ms: i64,
    /// Number of shards, which says where a series belongs.
    pub shard_count: u32,
    /// Fault injection for tests of the quarantine: applying an event of the user with this hash
    /// panics.
    pub panic_on_user: Option<u64>,
}

impl ShardLimits {
    /// The configured rule of de-duplication.
    pub fn dedup_rule(&self) -> DedupRule {
        DedupRule {
            horizon_ms: self.dedup_horizon_ms,
            max_ids: self.dedup_max_ids.clamp(1, MAX_IDS),
        }
    }
}

/// The rule that decides the record at `offset`.
fn change_to(dedup: &mut Dedup, ahead: &mut VecDeque<(Offset, DedupRule)>, offset: Offset) {
    while let Some((_, rule)) = ahead.pop_front_if(|(from, _)| *from <= offset) {
        dedup.change(rule);
    }
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
    frozen: FrozenBatches,
    in_flight: bool,
    retry: bool,
    /// Flushes that failed since the last that did not, and since when the next one waits.
    failures: u32,
    waits_since: Option<Millis>,
    /// Events applied since the last flush began.
    events: u64,
    mode: Mode,
    /// End of the log, read after the shard was claimed. Until it is reached careful modes last,
    /// and an owner before may have shown more.
    log_end: Offset,
    applied_since_flush: usize,
    suspects: Vec<Suspect>,
    alone: Option<Alone>,
    /// What comes next cannot be read by this build.
    stands_still: Option<Diverged>,
}

impl ShardState {
    /// An owner that has just claimed the shard: empty aggregates at the checkpoint, and the recent
    /// ids.
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
            frozen: FrozenBatches::default(),
            in_flight: false,
            retry: false,
            failures: 0,
            waits_since: None,
            events: 0,
            // Where nothing waits, nothing can have killed the starts before: they were moves from
            // node to node.
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
        self.suspects.extend(
            decisions.set_aside.iter().map(|(offset, index, _)| Suspect::certain(*offset, *index)),
        );
    }

    /// Next offset to read.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Its shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Where the open batch begins: everything below is in the store, or on its way there.
    pub fn flushed_to(&self) -> Offset {
        self.open.from()
    }

    /// Whether it is in the middle of a record that is applied event by event.
    pub fn is_isolating(&self) -> bool {
        self.alone.is_some()
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

    /// How many records it takes now: 0 while its memory bound is reached, before a record that it
    /// cannot read or, after crashes, until the commit in flight ends.
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

    /// One step. After a [`Effect::MarkSuspect`] has been carried out, the shell steps with no
    /// records, and the event is applied.
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

    /// Whether a flush that failed is to wait still. The first is tried again at once; a clock that
    /// went back ends the wait.
    fn waits(&mut self, now: Millis) -> bool {
        let pause = match self.failures {
            0 | 1 => 0,
            more => (RETRY_MS << (more - 2).min(8)).min(RETRY_MAX_MS),
        };
        let since = *self.waits_since.get_or_insert(now);
        (0..pause).contains(&now.saturating_sub(since))
    }

    fn on_tick(&mut self, now: Millis, drain: bool, effects: &mut Vec<Effect>) {
        self.frozen.forget(now, self.limits.keep_flushed_ms);
        if self.in_flight {
            return;
        }
        if self.retry {
            if !drain && self.waits(now) {
                return;
            }
            self.retry = false;
            self.offer(effects);
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
                // Nothing is open. What it knows of the batch before was for series that come again
                // at once; an idle shard keeps no memory.
                self.open = OpenBatch::new(self.next);
            }
            effects.push(Effect::Confirm { next: self.open.from() });
        }
    }

    fn begin_flush(&mut self, effects: &mut Vec<Effect>) {
        let mut open = std::mem::replace(&mut self.open, OpenBatch::new(self.next));
        let windows = open.take_windows();
        let range = OffsetRange { from: open.from(), to: self.next };
        let forget_ids_before =
            self.appended.map_or(Millis::MIN, |at| at.saturating_sub(self.dedup.rule().horizon_ms));
        let (batch, behind) = open.freeze(range, self.appended);
        let applied = std::mem::take(&mut self.events);
        let counted = batch
            .accounting
            .iter()
            .map(|row| row.aggregated + row.deduplicated + row.quarantined)
            .sum::<u64>();
        check(Invariant::Accounting, counted == applied, || {
            format!(
                "shard {} counts {counted} of the {applied} events in [{}, {})",
                self.shard, range.from, range.to
            )
        });
        self.open = behind;
        let batch = Arc::new(batch);
        self.frozen.freeze(Arc::new(FrozenBatch { range, batch, windows, forget_ids_before }));
        self.open_since = None;
        self.open_hour = None;
        self.applied_since_flush = 0;
        self.offer(effects);
    }

    /// Hands the batch that is not in the store to it, for the first time or again.
    fn offer(&mut self, effects: &mut Vec<Effect>) {
        if let Some(frozen) = self.frozen.uncommitted() {
            let (guard, batch) = (self.guard(frozen.range), frozen.batch.clone());
            effects.push(Effect::Commit {
                guard,
                batch,
                forget_ids_before: frozen.forget_ids_before,
            });
            self.in_flight = true;
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
        self.frozen.commit(now);
    }
}
