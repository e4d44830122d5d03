//! What a shard hands to the store, and what the store hands to a starting shard: the nouns of the
//! flush transaction.

use std::sync::Arc;

use super::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use super::rollup::Rollup;
use super::series::{Series, SeriesId};
use super::window::{Hour, Millis};

/// A series and its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesInfo {
    /// BLAKE3 of the key.
    pub id: SeriesId,
    /// The parsed key.
    pub series: Series,
}

/// The rules of a shard, each with the offset of the first record that it decides, ascending. What
/// a store has noted of them decides again whenever its records are folded once more, whatever the
/// configuration says by then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DedupRules(pub Vec<(Offset, DedupRule)>);

/// `dedup.max_ids` by default before stores noted the rules.
const MAX_IDS_BEFORE_RULES: usize = 262_144;
/// `dedup.max_ids` by default.
pub const DEFAULT_MAX_IDS: usize = 1_000_000;

impl DedupRules {
    /// What has to be noted so that the configured rule holds from `next` on. Of a shard from
    /// before rules were noted it is assumed that it had the same configuration all the time,
    /// or the default.
    pub fn pending_changes(&self, next: Offset, configured: DedupRule) -> Vec<(Offset, DedupRule)> {
        let before = match self.0.last() {
            Some((_, last)) => Some(*last),
            None if next > 0 && configured.max_ids == DEFAULT_MAX_IDS => {
                Some(DedupRule { max_ids: MAX_IDS_BEFORE_RULES, ..configured })
            }
            None if next > 0 => Some(configured),
            None => None,
        };
        let first = before.filter(|_| self.0.is_empty()).map(|rule| (0, rule));
        let change = (before != Some(configured)).then_some((next, configured));
        first.into_iter().chain(change).collect()
    }

    /// With a rule from an offset on, instead of those from there on.
    pub fn record(&mut self, from: Offset, rule: DedupRule) {
        self.0.retain(|(noted, _)| *noted < from);
        self.0.push((from, rule));
    }

    /// The longest horizon, if any rule is noted.
    pub fn longest_horizon_ms(&self) -> Option<i64> {
        self.0.iter().map(|(_, rule)| rule.horizon_ms).max()
    }
}

/// What an owner knows of ids when it begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecentIds {
    /// The rules; none noted: the limits' own, all the time.
    pub rules: DedupRules,
    /// The blocks of earlier flushes within the horizon, in log order.
    pub blocks: Vec<DedupBlock>,
}

impl From<Vec<DedupBlock>> for RecentIds {
    fn from(blocks: Vec<DedupBlock>) -> Self {
        Self { rules: DedupRules::default(), blocks }
    }
}

/// When equal ids count once: at append times at most `horizon_ms` apart, and among the last
/// `max_ids` ids of the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupRule {
    /// `dedup.horizon` in milliseconds.
    pub horizon_ms: i64,
    /// `dedup.max_ids`, per shard.
    pub max_ids: usize,
}

/// One flush: everything that one store transaction writes, guarded by a compare-and-set on (log,
/// `range.from`, epoch).
#[derive(Debug, Clone, Default)]
pub struct FlushBatch {
    /// Growth of rollups, in key order: tenant, metric, hour, series id.
    pub deltas: Vec<Delta>,
    /// Series seen for the first time by this owner, with the offset at which each was admitted.
    /// Those already in the catalogue are skipped.
    pub admitted: Vec<(Arc<SeriesInfo>, Offset)>,
    /// The ids applied, for the next owner; `None` if there were none.
    pub dedup: Option<DedupBlock>,
    /// Accounting by tenant and hour of receipt.
    pub accounting: Vec<AccountingDelta>,
    /// Events set aside in this range.
    pub quarantined: Vec<QuarantineRow>,
    /// Append time of the last record; none if there was none.
    pub appended: Option<Millis>,
}

/// Growth of one rollup.
#[derive(Debug, Clone)]
pub struct Delta {
    /// The series.
    pub series: Arc<SeriesInfo>,
    /// The window.
    pub hour: Hour,
    /// The growth.
    pub rollup: Rollup,
}

/// Where and by whom a flush may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushGuard {
    /// The shard.
    pub shard: ShardId,
    /// The log of the offsets.
    pub log: LogId,
    /// The records folded into the batch.
    pub range: OffsetRange,
    /// The owner.
    pub epoch: Epoch,
}

impl FlushGuard {
    /// The revision of every (tenant, metric, day) that this flush writes. A flush of this guard
    /// commits at most once, whatever is restored or fails over, because a new owner has a new
    /// nonce: equal revisions mean equal rows, in another store too. A transaction that leaves
    /// the checkpoint where it is must not use it twice.
    pub fn revision(&self) -> u64 {
        let FlushGuard { shard, log, range, epoch } = self;
        digest(&[
            b"flush",
            &log.0,
            &shard.0.to_be_bytes(),
            &numbers([range.from, range.to, epoch.counter, epoch.nonce]),
        ])
    }
}

/// The revision of a day after a quarantined event was merged into it. It has no epoch, so it goes
/// on from the revision before.
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

/// 64 bits of the hash; 0 is kept for days that were never written.
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
    /// The records that carried them.
    pub range: OffsetRange,
    /// Append time of the first and of the last id.
    pub appended: (Millis, Millis),
    /// `(append time, ids)` in log order: ids appended at the same time stand together.
    pub runs: Vec<(Millis, Vec<u128>)>,
}

/// Growth of one accounting row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountingDelta {
    /// Whose events.
    pub tenant: String,
    /// Hour of receipt.
    pub hour: Hour,
    /// Events folded into rollups.
    pub aggregated: u64,
    /// Events dropped as duplicates.
    pub deduplicated: u64,
    /// Events set aside.
    pub quarantined: u64,
}

/// One event set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineRow {
    /// Its shard.
    pub shard: ShardId,
    /// Offset of its record.
    pub offset: Offset,
    /// Index in its record.
    pub index: u32,
    /// Whose it is.
    pub tenant: String,
    /// When its record was received.
    pub received: Millis,
    /// Why it was set aside.
    pub reason: String,
    /// Given up by a person: kept, because recomputing must leave the event out, but not offered
    /// for release any more.
    pub discarded: bool,
    /// The event: a record of one event, in the record format, so that release can fold it.
    pub record: Vec<u8>,
}

/// What a starting shard learns from the store. Starting counts an attempt at the checkpoint; a
/// flush clears it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The checkpoint, with the epoch just minted.
    pub checkpoint: Checkpoint,
    /// Starts at this checkpoint without a flush since, this one included: 1 on a clean start.
    pub attempts: u32,
    /// The events above the checkpoint that were being applied alone when the shard died.
    pub suspects: Vec<SuspectEvent>,
}

/// An event that was being applied alone when its shard died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuspectEvent {
    /// Offset of its record.
    pub offset: Offset,
    /// Index in its record.
    pub index: u32,
    /// How often.
    pub deaths: u32,
}

impl SuspectEvent {
    /// An event that is known to be set aside.
    pub fn quarantined(offset: Offset, index: u32) -> Self {
        Self { offset, index, deaths: u32::MAX }
    }
}

/// A record as read from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Its offset.
    pub offset: Offset,
    /// When the log took it, for the machine. The append time of a record is the running maximum
    /// over its shard: a log may show less for a record whose clock was behind, never more.
    pub appended: Millis,
    /// When the log took it, for people: what the wall clock showed. It may go back.
    pub received: Millis,
    /// The record, encoded (`model::record`).
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
