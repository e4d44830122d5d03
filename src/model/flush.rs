//! The nouns of the flush transaction: what a shard hands to the store, and what the store hands to
//! a starting shard.

use std::sync::Arc;

use super::generation::{GenerationId, MaintainedSet};
use super::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use super::outcome::OutcomeNote;
use super::rollup::Rollup;
use super::series::{Series, SeriesId};
use super::window::{Hour, Millis};

/// A series and its id.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesInfo {
    pub id: SeriesId,
    pub series: Series,
}

/// The de-duplication rules of a shard, each with the offset of the first record that it decides,
/// ascending. Recorded in the store, so that records that are folded again are decided by the rule
/// of that time, whatever the configuration says by then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DedupRules(pub Vec<(Offset, DedupRule)>);

/// The default of `dedup.max_ids` before stores recorded the rules.
const MAX_IDS_BEFORE_RULES: usize = 262_144;
/// The default of `dedup.max_ids`.
pub const DEFAULT_MAX_IDS: usize = 1_000_000;

impl DedupRules {
    /// The rules to record so that the configured one holds from `next` on. A shard from
    /// before rules were recorded is assumed to have always had the same configuration, or the
    /// default of that time.
    pub fn pending_changes(&self, next: Offset, configured: DedupRule) -> Vec<(Offset, DedupRule)> {
        let before = match self.0.last() {
            Some((_, last)) => Some(*last),
            None if next > 0 && configured.max_ids == DEFAULT_MAX_IDS => {
                Some(DedupRule { max_ids: MAX_IDS_BEFORE_RULES, ..configured })
            }
            None if next > 0 => Some(configured),
            None => None,
        };
        // The assumed earlier rule is recorded too, from offset 0: nothing has to be assumed again.
        let first = before.filter(|_| self.0.is_empty()).map(|rule| (0, rule));
        let change = (before != Some(configured)).then_some((next, configured));
        first.into_iter().chain(change).collect()
    }

    /// Sets the rule from an offset on, replacing all rules from there on.
    pub fn record(&mut self, from: Offset, rule: DedupRule) {
        self.0.retain(|(noted, _)| *noted < from);
        self.0.push((from, rule));
    }

    /// The longest horizon of any recorded rule; `None` without rules.
    pub fn longest_horizon_ms(&self) -> Option<i64> {
        self.0.iter().map(|(_, rule)| rule.horizon_ms).max()
    }
}

/// The de-duplication state that a new owner starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecentIds {
    /// The recorded rules. Empty means that the owner's configured rule has always held.
    pub rules: DedupRules,
    /// The blocks of earlier flushes within the horizon, in log order.
    pub blocks: Vec<DedupBlock>,
}

impl From<Vec<DedupBlock>> for RecentIds {
    fn from(blocks: Vec<DedupBlock>) -> Self {
        Self { rules: DedupRules::default(), blocks }
    }
}

/// Equal ids count once if their append times are at most `horizon_ms` apart and both are among the
/// last `max_ids` ids of the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupRule {
    /// `dedup.horizon`, in milliseconds of append time.
    pub horizon_ms: i64,
    /// `dedup.max_ids`, which holds per shard.
    pub max_ids: usize,
}

/// One flush: everything that one store transaction writes. Guarded by a compare-and-set on (log,
/// `range.from`, epoch), see [`FlushGuard`].
#[derive(Debug, Clone, Default)]
pub struct FlushBatch {
    /// Deltas, ordered by tenant, metric, hour and series id.
    pub deltas: Vec<Delta>,
    /// Series that this owner sees for the first time, each with the offset at which it was
    /// admitted. Those already in the catalogue are skipped.
    pub admitted: Vec<(Arc<SeriesInfo>, Offset)>,
    /// The ids applied, for the next owner; `None` if there were none.
    pub dedup: Option<DedupBlock>,
    /// Accounting by tenant and hour of receipt.
    pub accounting: Vec<AccountingDelta>,
    /// Events of this range that were quarantined.
    pub quarantined: Vec<QuarantineRow>,
    /// The events of this range that were not counted, for the archive. Its size counts towards the
    /// memory at which a batch is flushed, which bounds it.
    pub outcomes: OutcomeNote,
    /// Append time of the last record; `None` if the range is empty.
    pub appended: Option<Millis>,
    /// Version of the [`MaintainedSet`] that the range was folded under. Part of the
    /// compare-and-set, with [`FlushGuard`].
    pub set: u64,
    /// The set that the records behind the range are folded under, if it is another one.
    pub adopts: Option<SetAdoption>,
    /// What the range was folded without, because the shard dies of it: one for each event that it
    /// died of.
    pub abandons: Vec<Abandonment>,
    /// What the range adds to the generations of its set besides generation 0: those that it
    /// touched, by number.
    pub generations: Vec<GenerationDeltas>,
}

/// A shard adopts a set of generations: behind the flush, records are folded under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAdoption {
    /// The version that the shard writes under from then on.
    pub version: u64,
    /// Generations that are new to the shard. The end of the flush is their cut: records below it
    /// are filled in from the archive.
    pub begun: Vec<GenerationId>,
}

/// A shard gives up generations that are not served and take in an event: it dies of the event with
/// them, and has not without them. Their rows lack the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abandonment {
    /// The generations, at least one.
    pub generations: Vec<GenerationId>,
    /// The metric of the event; its tenant is that of the generations.
    pub metric: String,
    /// Offset of the record with the event.
    pub offset: Offset,
    /// Index of the event in the record.
    pub index: u32,
    /// When the record was received.
    pub at: Millis,
}

impl Abandonment {
    /// Why they are given up, for people.
    pub fn reason(&self, shard: ShardId) -> String {
        let Self { metric, offset, index, .. } = self;
        format!(
            "shard {shard} died each time it applied an event of {metric} (event {index} of the \
             record at offset {offset}) with this replay, and did not die without it: the rules of \
             the replay fail on this event"
        )
    }
}

/// What one transaction adds to the rows of one writer of a generation.
#[derive(Debug, Clone, Default)]
pub struct GenerationDeltas {
    /// The generation, never 0.
    pub generation: GenerationId,
    /// Deltas in the order of [`FlushBatch::deltas`].
    pub deltas: Vec<Delta>,
    /// Series that this writer sees for the first time, each with the offset of its admission.
    pub admitted: Vec<(Arc<SeriesInfo>, Offset)>,
    /// Events that the rules dropped, by metric and day.
    pub dropped: Vec<DroppedEvents>,
    /// What each rule did and could not do, ascending by rule. Empty without rules.
    pub rules: Vec<RuleEvents>,
    /// Of a fill: the events of its range that were set aside and released before, ascending. They
    /// are counted, and part of its compare-and-set. A flush has none.
    pub released: Vec<(Offset, u32)>,
}

impl GenerationDeltas {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.deltas.is_empty()
            && self.admitted.is_empty()
            && self.dropped.is_empty()
            && self.rules.is_empty()
    }
}

/// Events of a metric that the rules of a generation dropped, on one UTC day of event time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct DroppedEvents {
    pub tenant: String,
    pub metric: String,
    pub day: i32,
    pub events: u64,
}

/// Events to which a rule of a generation did one thing, or which it left as they were for one
/// reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleEvents {
    /// Number of the rule in its set, from 0.
    pub rule: u32,
    /// [`RuleEvents::DROPPED`], [`RuleEvents::CHANGED`], or the name of the reason. A text, because
    /// a store may hold reasons of a newer release.
    pub outcome: String,
    /// How many.
    pub events: u64,
}

impl RuleEvents {
    /// The rule dropped them.
    pub const DROPPED: &str = "dropped";
    /// The rule changed them.
    pub const CHANGED: &str = "changed";
}

/// Which archived records a fill covers. Guarded by a compare-and-set on the cursor of
/// (generation, shard), which must be at `range.from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct FillGuard {
    pub generation: GenerationId,
    pub shard: ShardId,
    pub log: LogId,
    /// The records folded into the batch; never beyond the cut.
    pub range: OffsetRange,
    /// Drawn by the filler when it starts, so that no two transactions have one revision.
    pub nonce: u64,
}

impl FillGuard {
    /// The revision of every day that this transaction writes; see [`FlushGuard::revision`].
    pub fn revision(&self) -> u64 {
        let FillGuard { generation, shard, log, range, nonce } = self;
        digest(&[
            b"fill",
            &log.0,
            &shard.0.to_be_bytes(),
            &numbers([range.from, range.to, generation.0, *nonce]),
        ])
    }
}

/// How far a shard's archived records are folded into a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillProgress {
    /// The log that the offsets belong to.
    pub log: LogId,
    /// Exclusive end of what is filled in; what lies behind is the live writer's.
    pub cut: Offset,
    /// Next record to fold, at most `cut`.
    pub cursor: Offset,
}

impl FillProgress {
    /// Whether nothing is left to fold.
    pub fn is_complete(&self) -> bool {
        self.cursor >= self.cut
    }
}

/// The growth of one rollup since the last flush.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct Delta {
    pub series: Arc<SeriesInfo>,
    pub hour: Hour,
    pub rollup: Rollup,
}

/// Which records a flush covers, and which owner may write it.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushGuard {
    pub shard: ShardId,
    pub log: LogId,
    /// The records folded into the batch. `from` must equal the checkpoint.
    pub range: OffsetRange,
    pub epoch: Epoch,
}

impl FlushGuard {
    /// The revision of every (tenant, metric, day) that this flush writes. A flush with this guard
    /// commits at most once, even after a restore or a failover, because every owner draws a new
    /// nonce: equal revisions mean equal rows, in another store too. A transaction that leaves the
    /// checkpoint unchanged must not use the same revision twice.
    pub fn revision(&self) -> u64 {
        let FlushGuard { shard, log, range, epoch } = self;
        digest(&[
            // Keeps revisions of flushes apart from those of releases.
            b"flush",
            &log.0,
            &shard.0.to_be_bytes(),
            &numbers([range.from, range.to, epoch.counter, epoch.nonce]),
        ])
    }
}

/// The revision of a day after a quarantined event was merged into it. A release has no epoch, so
/// the revision is derived from the one before.
pub fn revision_after_release(
    before: u64,
    log: LogId,
    shard: ShardId,
    offset: Offset,
    index: u32,
) -> u64 {
    digest(&[
        b"settle",
        &log.0,
        &shard.0.to_be_bytes(),
        &numbers([before, offset, u64::from(index), 0]),
    ])
}

fn numbers(of: [u64; 4]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes
        .chunks_exact_mut(8)
        .zip(of)
        .for_each(|(place, number)| place.copy_from_slice(&number.to_be_bytes()));
    bytes
}

/// The first 64 bits of the hash. 0 is reserved for days that were never written.
fn digest(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_be_bytes(first).max(1)
}

/// The ids of one flush, in log order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupBlock {
    /// The records that carried the ids.
    pub range: OffsetRange,
    /// Append times of the first and of the last id.
    pub appended: (Millis, Millis),
    /// `(append time, ids)` in log order: ids with the same append time share a run.
    pub runs: Vec<(Millis, Vec<u128>)>,
}

/// The growth of one accounting row: a tenant in an hour of receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountingDelta {
    /// The tenant that sent the events.
    pub tenant: String,
    /// Hour in which the events were received.
    pub hour: Hour,
    /// Events folded into rollups.
    pub aggregated: u64,
    /// Events dropped as duplicates.
    pub deduplicated: u64,
    /// Events that were quarantined.
    pub quarantined: u64,
}

/// A quarantined event, as the store keeps it.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineRow {
    pub shard: ShardId,
    /// Offset of the event's record.
    pub offset: Offset,
    /// Index of the event in its record.
    pub index: u32,
    pub tenant: String,
    /// When its record was received.
    pub received: Millis,
    pub reason: String,
    /// An operator gave the event up. The row stays until its record expires, because recomputing
    /// must leave the event out, but it can no longer be released.
    pub discarded: bool,
    /// The event as a record of one event, in the record format, so that a release can fold it.
    pub record: Vec<u8>,
}

/// What the store returns to a starting shard. Claiming counts an attempt at the checkpoint; a
/// flush resets the count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The checkpoint, with the epoch just minted.
    pub checkpoint: Checkpoint,
    /// Starts at this checkpoint without a flush since, this one included: 1 on a clean start.
    pub attempts: u32,
    /// Events above the checkpoint that were being applied alone when the shard crashed.
    pub suspects: Vec<SuspectEvent>,
    /// The set that the shard writes under, adopted in an earlier flush; a shard without a
    /// checkpoint begins with the newest.
    pub set: MaintainedSet,
}

/// An event that was being applied alone when its shard crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuspectEvent {
    /// Offset of the event's record.
    pub offset: Offset,
    /// Index of the event in its record.
    pub index: u32,
    /// Crashes counted against this event; `u32::MAX` if it is quarantined already.
    pub deaths: u32,
}

impl SuspectEvent {
    /// A suspect that is already known to be poison.
    pub fn quarantined(offset: Offset, index: u32) -> Self {
        Self { offset, index, deaths: u32::MAX }
    }
}

/// A record as read from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// The record's offset in its shard.
    pub offset: Offset,
    /// Append time, for the machine. A record's effective append time is the running maximum over
    /// its shard: where a clock was behind, a log may report less for a record, never more.
    pub appended: Millis,
    /// Received time, for people: the wall clock at the append. It may go backwards.
    pub received: Millis,
    /// The encoded record, see [`super::record`].
    pub payload: bytes::Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_noted_where_it_begins_to_hold_and_no_other_time() {
        let rule = |horizon_ms, max_ids| DedupRule { horizon_ms, max_ids };
        let (old, new, other) =
            (rule(9, MAX_IDS_BEFORE_RULES), rule(9, DEFAULT_MAX_IDS), rule(9, 77));
        let mut rules = DedupRules::default();
        assert_eq!(rules.pending_changes(0, new), [(0, new)], "a new shard");
        assert_eq!(
            rules.pending_changes(5, new),
            [(0, old), (5, new)],
            "one from before, by default"
        );
        assert_eq!(
            rules.pending_changes(5, other),
            [(0, other)],
            "one from before whose limit was configured"
        );
        rules.record(0, new);
        assert_eq!(rules.pending_changes(5, new), []);
        assert_eq!(rules.pending_changes(5, other), [(5, other)]);
        rules.record(5, other);
        rules.record(5, rule(11, 77));
        assert_eq!(
            (rules.0.len(), rules.0[1], rules.longest_horizon_ms()),
            (2, (5, rule(11, 77)), Some(11)),
            "nothing lies between"
        );
    }

    #[test]
    fn revisions_differ_by_everything_that_tells_two_writes_apart() {
        let guard = FlushGuard {
            shard: ShardId(1),
            log: LogId([2; 16]),
            range: OffsetRange { from: 3, to: 4 },
            epoch: Epoch { counter: 5, nonce: 6 },
        };
        let flushes = [
            guard,
            FlushGuard { shard: ShardId(2), ..guard },
            FlushGuard { log: LogId([3; 16]), ..guard },
            FlushGuard { range: OffsetRange { from: 3, to: 5 }, ..guard },
            FlushGuard { epoch: Epoch { counter: 5, nonce: 7 }, ..guard },
            FlushGuard { epoch: Epoch { counter: 6, nonce: 6 }, ..guard },
        ];
        let settled = |before, offset, index| {
            revision_after_release(before, guard.log, guard.shard, offset, index)
        };
        let mut all: Vec<u64> = flushes.iter().map(FlushGuard::revision).collect();
        all.extend([settled(0, 1, 1), settled(1, 1, 1), settled(0, 2, 1), settled(0, 1, 2)]);
        assert_eq!(all[0], guard.revision(), "a function of the guard");
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(!all.contains(&0));
    }
}
