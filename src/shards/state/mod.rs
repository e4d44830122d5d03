//! The shard state machine: inputs in, effects out. It holds the shard's memory; the driver around
//! it handles startup, gap recovery, isolation permits and failures.

mod abandon;
#[cfg(test)]
mod abandon_tests;
mod apply;
mod checks;
mod effects;
mod frozen;
#[cfg(test)]
mod generation_tests;
mod live;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use effects::{ShardEffect, ShardInput};
pub use live::{CatalogueEntry, LiveBatches, LiveProgress, StaleCheckpoint};

pub use super::live_query::{AccountingQuery, LiveQuery};

use self::checks::check_counts;
use self::frozen::{FrozenBatch, FrozenBatches};
use super::batch::OpenBatch;
use super::dedup::{DedupIndex, MAX_IDS};
use super::generations::{ActiveSet, AdoptedGenerations};
use super::poison::{ApplyMode, mode_for};
use super::series::SeriesAdmission;
use crate::model::flush::{
    Abandonment, Claim, DedupRule, FlushGuard, LogRecord, RecentIds, SetAdoption, SuspectEvent,
};
use crate::model::generation::GenerationId;
use crate::model::manifest::RangeDecisions;
use crate::model::offset::{Epoch, LogDivergence, LogId, Offset, OffsetRange, ShardId};
use crate::model::series::{AdmittedSeries, SeriesId};
use crate::model::window::{Hour, Millis};

/// Back-off after the second failed flush in a row; it doubles with each further one. A store that
/// fails for a reason should not be kept busy with retries.
const RETRY_MS: i64 = 500;
/// Longest back-off: how much later than the store a shard may be back.
const RETRY_MAX_MS: i64 = 8_000;

/// Limits of one shard.
#[derive(Debug, Clone)]
pub struct ShardLimits {
    /// Configured by `dedup.horizon`, in append time.
    pub dedup_horizon_ms: i64,
    /// Configured by `dedup.max_ids`, per shard.
    pub dedup_max_ids: usize,
    /// Longest time between two flushes: `flush.interval`.
    pub flush_interval_ms: i64,
    /// Bytes of open deltas that trigger a flush before its interval. At twice this figure
    /// the shard stops reading.
    pub max_delta_bytes: usize,
    /// How long a committed batch is kept for queries that hold an older snapshot: the longest time
    /// that a query may take.
    pub keep_flushed_ms: i64,
    /// Number of shards, which decides where a series belongs.
    pub shard_count: u32,
    /// Fault injection for tests of the quarantine: applying an event of the user
    /// with this hash panics.
    pub panic_on_user: Option<u64>,
}

impl ShardLimits {
    /// The configured de-duplication rule, with `max_ids` limited to what the index can hold.
    pub fn dedup_rule(&self) -> DedupRule {
        DedupRule {
            horizon_ms: self.dedup_horizon_ms,
            max_ids: self.dedup_max_ids.clamp(1, MAX_IDS),
        }
    }
}

/// Switches to the rule in force at `offset`.
fn apply_due_rules(
    dedup: &mut DedupIndex,
    ahead: &mut VecDeque<(Offset, DedupRule)>,
    offset: Offset,
) {
    while let Some((_, rule)) = ahead.pop_front_if(|(from, _)| *from <= offset) {
        dedup.set_rule(rule);
    }
}

/// A record that is applied event by event, because applying whole records crashed the shard.
#[derive(Debug)]
struct IsolatedRecord {
    record: LogRecord,
    index: u32,
}

/// State of an owned shard.
#[derive(Debug)]
pub struct ShardState {
    limits: ShardLimits,
    shard: ShardId,
    log: LogId,
    epoch: Epoch,
    next: Offset,
    /// Append time of the record before `next`, if known.
    appended: Option<Millis>,
    /// Receive time of the last record applied in this life.
    received: Option<Millis>,
    dedup: DedupIndex,
    /// Rules of later records, in offset order. Only recomputation has any.
    rules_ahead: VecDeque<(Offset, DedupRule)>,
    admission: SeriesAdmission,
    /// The generations that the open batch writes besides generation 0.
    set: Arc<ActiveSet>,
    /// The newest set, if it is another one: adopted by the next flush.
    newest: Option<Arc<ActiveSet>>,
    /// What each generation of the set has admitted.
    writers: BTreeMap<GenerationId, SeriesAdmission>,
    open: OpenBatch,
    open_since: Option<Millis>,
    /// Hour of receipt of the first record in the open batch.
    open_hour: Option<Hour>,
    /// Since when there has been nothing to flush, or when that was last confirmed with the store.
    idle_since: Option<Millis>,
    frozen: FrozenBatches,
    in_flight: bool,
    retry: bool,
    /// Failed flushes in a row, and since when the next attempt has been backing off.
    failures: u32,
    waiting_since: Option<Millis>,
    /// Events applied since the last flush began; checked against the accounting of the batch.
    events: u64,
    mode: ApplyMode,
    /// End of the log, read after the claim. Until the shard reaches it, careful modes last, and a
    /// previous owner may have answered with more than this one has applied.
    log_end: Offset,
    applied_since_flush: usize,
    suspects: Vec<SuspectEvent>,
    isolated: Option<IsolatedRecord>,
    /// Generations of the set that nobody reads, of all tenants.
    unserved: Vec<GenerationId>,
    /// What the next flush gives up, and what was given up in this life.
    abandons: Vec<Abandonment>,
    abandoned: Vec<GenerationId>,
    /// Why the next record cannot be applied: this build does not know its version.
    divergence: Option<LogDivergence>,
    /// Most series that a generation admits for one tenant.
    max_generation_series: u64,
    /// Recorded admissions of generations in records that are applied again; their writers may
    /// begin within these records.
    recorded: RecordedGenerations,
}

/// Recorded admissions of live writers, below an offset.
#[derive(Debug, Default)]
struct RecordedGenerations {
    below: Offset,
    admitted: Vec<(GenerationId, SeriesId, Offset)>,
}

impl RecordedGenerations {
    fn of(&self, generation: GenerationId) -> Vec<(SeriesId, Offset)> {
        let mine = self.admitted.iter().filter(|(of, ..)| *of == generation);
        mine.map(|(_, id, offset)| (*id, *offset)).collect()
    }
}

impl ShardState {
    /// State of an owner that has just claimed the shard: no deltas, at the checkpoint,
    /// with the recent ids.
    pub fn new(
        limits: ShardLimits,
        shard: ShardId,
        claim: &Claim,
        recent: impl Into<RecentIds>,
        admission: SeriesAdmission,
        log_end: Offset,
    ) -> Self {
        let checkpoint = claim.checkpoint;
        let RecentIds { rules, blocks } = recent.into();
        // Clients choose ids but cannot know the nonce, so they cannot make ids
        // collide in the table.
        let mut dedup = DedupIndex::new(limits.dedup_rule(), checkpoint.epoch.nonce);
        // Each block is loaded under the rule that was in force when its records were applied.
        let mut rules_ahead = rules.0.into();
        for block in &blocks {
            apply_due_rules(&mut dedup, &mut rules_ahead, block.range.from);
            dedup.load(std::slice::from_ref(block));
        }
        apply_due_rules(&mut dedup, &mut rules_ahead, checkpoint.next);
        Self {
            admission,
            set: Arc::default(),
            newest: None,
            writers: BTreeMap::new(),
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
            waiting_since: None,
            events: 0,
            // A shard with no backlog cannot have been killed by an event. The earlier starts were
            // moves from node to node.
            mode: if checkpoint.next >= log_end {
                ApplyMode::Normal
            } else {
                mode_for(claim.attempts)
            },
            log_end,
            applied_since_flush: 0,
            suspects: claim.suspects.clone(),
            isolated: None,
            unserved: Vec::new(),
            abandons: Vec::new(),
            abandoned: Vec::new(),
            divergence: None,
            max_generation_series: u64::MAX,
            recorded: RecordedGenerations::default(),
        }
    }

    /// Adds the set that the shard writes under, with the series that its generations have admitted.
    /// `max_series` limits each generation like generation 0.
    #[must_use]
    pub fn with_generations(mut self, adopted: AdoptedGenerations, max_series: u64) -> Self {
        let AdoptedGenerations { set, admitted } = adopted;
        let writer = |(generation, ids)| {
            let tenant = set.tenant(generation)?.to_owned();
            let of = (tenant.as_str(), set.metrics(generation));
            let admitted = AdmittedSeries::of_metrics(ids, of, self.shard);
            let admission = SeriesAdmission::limited(max_series, vec![(tenant, admitted)]);
            Some((generation, admission.for_shard(self.shard)))
        };
        self.writers = admitted.into_iter().filter_map(writer).collect();
        (self.set, self.max_generation_series) = (set, max_series);
        self
    }

    /// The set that the open batch is folded under.
    pub fn set(&self) -> &Arc<ActiveSet> {
        &self.set
    }

    /// Sets the recorded decisions for the records below `to`, which are about to be applied again.
    pub fn apply_decisions(&mut self, decisions: &RangeDecisions, to: Offset) {
        self.admission.apply_recorded(&decisions.admitted, to);
        self.suspects.retain(|suspect| suspect.offset >= self.next);
        self.suspects.extend(
            decisions
                .quarantined
                .iter()
                .map(|(offset, index, _)| SuspectEvent::quarantined(*offset, *index)),
        );
    }

    /// Sets what the live writers of generations admitted in these records, for a store that is
    /// made anew with the cuts that they had.
    pub fn apply_generation_admissions(&mut self, decisions: &RangeDecisions, to: Offset) {
        let next = self.next;
        self.recorded.below = self.recorded.below.max(to);
        self.recorded.admitted.retain(|(.., offset)| *offset >= next);
        self.recorded.admitted.extend(&decisions.generations);
        for (generation, admission) in &mut self.writers {
            admission.apply_recorded(&self.recorded.of(*generation), to);
        }
    }

    /// Next offset to apply.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// The shard that this state belongs to.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// First offset of the open batch: everything below is in the store or in flight to it.
    pub fn flushed_to(&self) -> Offset {
        self.open.from()
    }

    /// Whether the shard is in the middle of a record that is applied event by event.
    pub fn is_isolating(&self) -> bool {
        self.isolated.is_some()
    }

    /// Epoch of this owner.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Bytes of open deltas.
    pub fn open_bytes(&self) -> usize {
        self.open.bytes()
    }

    /// Append time of the last record applied, if known.
    pub fn appended(&self) -> Option<Millis> {
        self.appended
    }

    /// De-duplication index of the shard.
    pub fn dedup(&self) -> &DedupIndex {
        &self.dedup
    }

    /// How many records the shard takes now. It is 0 at twice `max_delta_bytes`, before a record
    /// that this build cannot read, in the middle of an isolated record and, in careful modes,
    /// until the commit in flight has ended.
    pub fn credit(&self) -> usize {
        if self.divergence.is_some()
            || self.open.bytes() >= self.limits.max_delta_bytes.saturating_mul(2)
            || self.isolated.is_some()
        {
            return 0;
        }
        match self.mode.max_records() {
            None => usize::MAX,
            Some(_) if self.in_flight || self.retry => 0,
            Some(step) => step.saturating_sub(self.applied_since_flush),
        }
    }

    /// Handles one input. After a [`ShardEffect::MarkSuspect`] has been performed, the driver steps
    /// with no records, and the marked event is applied.
    pub fn step(&mut self, input: ShardInput<'_>, effects: &mut Vec<ShardEffect>) {
        match input {
            ShardInput::Records(records) => self.on_records(records, effects),
            ShardInput::Tick { now, drain } => self.on_tick(now, drain, effects),
            ShardInput::NewestSet(set) => {
                // One of before this shard gave something up is followed by another.
                let is_newer = set.version() > self.set.version();
                self.newest = (is_newer && set.is_without(&self.abandoned)).then_some(set);
            }
            ShardInput::Committed { now } => self.on_committed(now),
            ShardInput::CommitFailed => {
                self.in_flight = false;
                self.retry = true;
                self.failures = self.failures.saturating_add(1);
                self.waiting_since = None;
            }
        }
    }

    /// Whether the retry of a failed flush has to wait. The first retry is immediate. A clock that
    /// goes back ends the wait.
    fn must_wait(&mut self, now: Millis) -> bool {
        let pause = match self.failures {
            0 | 1 => 0,
            more => (RETRY_MS << (more - 2).min(8)).min(RETRY_MAX_MS),
        };
        let since = *self.waiting_since.get_or_insert(now);
        (0..pause).contains(&now.saturating_sub(since))
    }

    fn on_tick(&mut self, now: Millis, drain: bool, effects: &mut Vec<ShardEffect>) {
        self.frozen.forget(now, self.limits.keep_flushed_ms);
        if self.in_flight {
            return;
        }
        if self.retry {
            // A drain skips the back-off: the shard will not be here for another attempt.
            if !drain && self.must_wait(now) {
                return;
            }
            self.retry = false;
            self.send_commit(effects);
            return;
        }
        if self.next == self.open.from() || self.isolated.is_some() {
            // A new set waits for no event: the flush of nothing makes the cut.
            match self.newest.is_some() && self.isolated.is_none() {
                true => self.begin_flush(effects),
                false => self.on_idle(now, effects),
            }
            return;
        }
        self.idle_since = None;
        let since = *self.open_since.get_or_insert(now);
        let due = drain
            // Somebody waits for the cut.
            || self.newest.is_some()
            || self.mode.max_records().is_some()
            || now.saturating_sub(since) >= self.limits.flush_interval_ms
            || self.open.bytes() >= self.limits.max_delta_bytes
            || self.hour_has_ended();
        if due {
            self.begin_flush(effects);
        }
    }

    /// Whether the last record was received in another hour than the first one of the open batch: a
    /// flush is due at the end of an hour. Without a flush interval there is no such cadence.
    fn hour_has_ended(&self) -> bool {
        self.limits.flush_interval_ms < i64::MAX && self.open_hour != self.received.map(Hour::of)
    }

    fn on_idle(&mut self, now: Millis, effects: &mut Vec<ShardEffect>) {
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.limits.flush_interval_ms {
            self.idle_since = Some(now);
            if self.next == self.open.from() && self.isolated.is_none() {
                // Nothing is open. The previous batch is only kept for series that occur again
                // soon, and an idle shard should not hold memory.
                self.open = OpenBatch::new(self.next);
            }
            let (next, set) = (self.open.from(), self.set.version());
            effects.push(ShardEffect::Confirm { next, set });
        }
    }

    fn begin_flush(&mut self, effects: &mut Vec<ShardEffect>) {
        let mut open = std::mem::replace(&mut self.open, OpenBatch::new(self.next));
        let windows = open.take_windows();
        let range = OffsetRange { from: open.from(), to: self.next };
        let forget_ids_before =
            self.appended.map_or(Millis::MIN, |at| at.saturating_sub(self.dedup.rule().horizon_ms));
        let (mut batch, behind) = open.freeze(range, self.appended, self.set.version());
        let applied = std::mem::take(&mut self.events);
        check_counts(self.shard, range, &batch, applied);
        self.open = behind;
        let set = self.set.clone();
        batch.abandons = std::mem::take(&mut self.abandons);
        batch.adopts = self.adopt_newest();
        let batch = Arc::new(batch);
        let frozen = FrozenBatch { range, batch, windows, forget_ids_before, set };
        self.frozen.freeze(Arc::new(frozen));
        self.open_since = None;
        self.open_hour = None;
        self.applied_since_flush = 0;
        self.send_commit(effects);
    }

    /// Sends the uncommitted batch to the store, for the first time or as a retry. A retry repeats
    /// the same bytes under the same guard.
    fn send_commit(&mut self, effects: &mut Vec<ShardEffect>) {
        if let Some(frozen) = self.frozen.uncommitted() {
            let (guard, batch) = (self.guard(frozen.range), frozen.batch.clone());
            effects.push(ShardEffect::Commit {
                guard,
                batch,
                forget_ids_before: frozen.forget_ids_before,
            });
            self.in_flight = true;
        }
    }

    /// Opens the next batch under the newest set, if there is one. The flush that was just frozen
    /// says so in the store; if that fails for good, both are dropped.
    fn adopt_newest(&mut self) -> Option<SetAdoption> {
        let newest = self.newest.take()?;
        let written = newest.generations();
        let begun: Vec<_> =
            written.iter().filter(|id| !self.writers.contains_key(id)).copied().collect();
        self.writers.retain(|id, _| written.contains(id));
        for generation in &begun {
            let mut admission = SeriesAdmission::limited(self.max_generation_series, Vec::new());
            admission.apply_recorded(&self.recorded.of(*generation), self.recorded.below);
            self.writers.insert(*generation, admission.for_shard(self.shard));
        }
        self.open.retain_generations(|id| written.contains(&id));
        let version = newest.version();
        self.set = newest;
        Some(SetAdoption { version, begun })
    }

    fn guard(&self, range: OffsetRange) -> FlushGuard {
        FlushGuard { shard: self.shard, log: self.log, range, epoch: self.epoch }
    }

    fn on_committed(&mut self, now: Millis) {
        self.in_flight = false;
        self.failures = 0;
        if self.next >= self.log_end {
            self.mode = ApplyMode::Normal;
        // The suspect record is behind the checkpoint; its neighbours go one by one,
        // but as whole records.
        } else if self.mode == ApplyMode::Isolating {
            self.mode = ApplyMode::Careful { step: 1 };
        }
        self.frozen.commit(now);
    }
}
