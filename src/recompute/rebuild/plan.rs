//! Plans which objects of a listing and which records of the log make up the history of a shard,
//! from the listing and the bounds alone.

use super::RebuildError;
use crate::model::offset::{LogId, Offset, OffsetRange, ShardId};
use crate::persistence::archive::ObjectInfo;
use crate::persistence::archive::chain::{ArchiveObject, ObjectChains};

/// Where the records of one shard come from.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPlan {
    pub shard: ShardId,
    /// The first record that still exists.
    pub start: Offset,
    /// Objects that hold `[start, archived)` without gap or overlap.
    pub chain: Vec<ArchiveObject>,
    /// Exclusive end of the chain.
    pub archived: Offset,
    /// Exclusive end of the log.
    pub end: Offset,
    /// Number of listed objects that are not in the chain.
    pub unused: u64,
    /// Kept so that the plan can be repeated without a damaged object.
    from: PlanInput,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PlanInput {
    all: ObjectChains,
    bounds: (Offset, Offset),
}

impl ShardPlan {
    /// Number of records to fold.
    pub fn records(&self) -> u64 {
        self.end - self.start
    }

    /// The plan without an object that turned out to be damaged.
    ///
    /// # Errors
    /// If no other object, nor the log, has its records.
    pub(super) fn without(&self, path: &str) -> Result<Self, RebuildError> {
        let PlanInput { all, bounds } = &self.from;
        let plan = plan_chains(self.shard, all.without(path), *bounds)?;
        if plan.start > self.start {
            return Err(RebuildError::StartsLate { shard: self.shard, start: plan.start });
        }
        Ok(plan)
    }

    /// The highest epoch counter in the chain; a rebuild must claim above it.
    pub fn epoch(&self) -> u64 {
        self.chain.iter().map(|link| link.name.epoch.counter).max().unwrap_or(0)
    }
}

/// Plans a shard whose log holds the offsets `bounds`. `logs` are the ids under which its objects
/// may be archived: its own, and those of earlier logs whose offsets it continues.
///
/// # Errors
/// If records are missing between the first one that exists and the end of the log.
pub(super) fn plan(
    logs: &[LogId],
    shard: ShardId,
    listed: Vec<ObjectInfo>,
    bounds: (Offset, Offset),
) -> Result<ShardPlan, RebuildError> {
    plan_chains(shard, ObjectChains::of(logs, shard, listed), bounds)
}

fn plan_chains(
    shard: ShardId,
    all: ObjectChains,
    bounds: (Offset, Offset),
) -> Result<ShardPlan, RebuildError> {
    let (log_start, log_end) = bounds;
    let links = all.objects();
    // The archive is preferred where both have a record: it reaches further back, and it has the
    // recorded decisions.
    let first = links.first().map(|link| link.name.range.from).filter(|from| *from <= log_start);
    let start = first.unwrap_or(log_start);
    let chain = if first.is_some() { all.chain_from(start) } else { Vec::new() };
    let archived = chain.last().map_or(start, |link| link.name.range.to);
    if archived < log_start {
        let next = links.iter().map(|link| link.name.range.from).find(|from| *from > archived);
        let missing = OffsetRange { from: archived, to: next.unwrap_or(log_start).min(log_start) };
        return Err(RebuildError::Gap { shard, missing });
    }
    if archived > log_end {
        // A server on this log would assign offsets that are already in the archive.
        return Err(RebuildError::LogShort { shard, archived, end: log_end });
    }
    let unused = (links.len() - chain.len()) as u64;
    Ok(ShardPlan {
        shard,
        start,
        chain,
        archived,
        end: log_end,
        unused,
        from: PlanInput { all, bounds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::{ManifestRow, Tier};
    use crate::model::offset::Epoch;

    const LOG: LogId = LogId([3; 16]);
    const SHARD: ShardId = ShardId(2);

    fn object(from: Offset, to: Offset, counter: u64) -> ObjectInfo {
        let epoch = Epoch { counter, nonce: 9 };
        let path = ManifestRow::object_path(LOG, SHARD, OffsetRange { from, to }, epoch);
        ObjectInfo { path, bytes: 1, written: 0, tier: Tier::Hot }
    }

    fn planned(
        objects: &[(Offset, Offset, u64)],
        bounds: (Offset, Offset),
    ) -> Result<ShardPlan, RebuildError> {
        let listed = objects.iter().map(|&(from, to, counter)| object(from, to, counter)).collect();
        plan(&[LOG], SHARD, listed, bounds)
    }

    fn ranges(plan: &ShardPlan) -> Vec<(Offset, Offset, u64)> {
        plan.chain
            .iter()
            .map(|link| (link.name.range.from, link.name.range.to, link.name.epoch.counter))
            .collect()
    }

    #[test]
    fn the_archive_is_read_as_far_as_it_reaches_and_then_the_log() {
        let objects = [(0, 10, 1), (10, 14, 1), (10, 20, 2), (10, 20, 3), (20, 25, 3), (14, 16, 1)];
        let plan = planned(&objects, (0, 40)).expect("a plan");
        assert_eq!(ranges(&plan), [(0, 10, 1), (10, 20, 3), (20, 25, 3)]);
        assert_eq!(
            (plan.start, plan.archived, plan.end, plan.unused, plan.records(), plan.epoch()),
            (0, 25, 40, 3, 40, 3)
        );
    }

    #[test]
    fn a_gap_of_objects_is_filled_from_the_log_if_it_reaches_back() {
        let objects = [(0, 10, 1), (20, 30, 1)];
        let plan = planned(&objects, (5, 40)).expect("a plan");
        assert_eq!((ranges(&plan), plan.archived, plan.unused), (vec![(0, 10, 1)], 10, 1));
        let gap = |from, to| RebuildError::Gap { shard: SHARD, missing: OffsetRange { from, to } };
        assert_eq!(planned(&objects, (11, 40)), Err(gap(10, 11)), "the log has the rest");
        assert_eq!(planned(&objects, (30, 40)), Err(gap(10, 20)));
        assert_eq!(planned(&[(0, 10, 1)], (12, 40)), Err(gap(10, 12)));
    }

    #[test]
    fn a_shard_begins_with_the_first_record_that_is_left() {
        let starts = |objects: &[(Offset, Offset, u64)], bounds| {
            let plan = planned(objects, bounds).expect("a plan");
            (plan.start, plan.archived, plan.records())
        };
        assert_eq!(starts(&[], (0, 7)), (0, 0, 7));
        assert_eq!(starts(&[], (3, 7)), (3, 3, 4));
        assert_eq!(starts(&[(5, 6, 1)], (6, 7)), (5, 6, 2), "what was below has expired");
        assert_eq!(starts(&[(5, 6, 1)], (4, 7)), (4, 4, 3), "the log reaches back further");
    }

    #[test]
    fn a_damaged_object_is_left_out_if_others_have_its_records() {
        let plan = planned(&[(0, 10, 1), (10, 20, 1), (10, 20, 2), (20, 30, 2)], (25, 40))
            .expect("a plan");
        let path = |plan: &ShardPlan, at: usize| plan.chain[at].object.path.clone();
        let other = plan.without(&path(&plan, 1)).expect("the older owner's is there");
        assert_eq!(ranges(&other), [(0, 10, 1), (10, 20, 1), (20, 30, 2)]);
        let missing = OffsetRange { from: 10, to: 20 };
        assert_eq!(
            other.without(&path(&other, 1)),
            Err(RebuildError::Gap { shard: SHARD, missing })
        );
        let begins = Err(RebuildError::StartsLate { shard: SHARD, start: 10 });
        assert_eq!(plan.without(&path(&plan, 0)), begins);
    }

    #[test]
    fn a_log_that_ends_below_its_archive_is_refused() {
        let refused = planned(&[(0, 10, 1)], (0, 9));
        assert_eq!(refused, Err(RebuildError::LogShort { shard: SHARD, archived: 10, end: 9 }));
    }
}
