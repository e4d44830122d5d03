//! Reads whole days of rollups; a long list of days is read as two halves in parallel.
//!
//! The later half is read in an extra snapshot, which may be newer than the query's own. It is used
//! only if its days have the same revisions as in the query's snapshot: days of equal revision have
//! equal rows ([`super::cache`]).

use std::ops::Range;

use super::groups::{GroupSet, MergeLimits};
use super::request::QueryRequest;
use crate::model::window::Hour;
use crate::persistence::store::{QuerySnapshot, RollupQuery, StoreError};

/// Fewer days are not worth a thread, which costs about 50 µs: a day of one series is 24
/// seeks of 1 µs.
const MIN_SPLIT_DAYS: usize = 8;

/// Opens an extra snapshot of the store; None if none is free at once.
pub(super) type ExtraSnapshot<'s> =
    dyn Fn() -> Result<Option<Box<dyn QuerySnapshot + 's>>, StoreError> + Sync + 's;

pub(super) fn first_hour(day: i32) -> Hour {
    Hour(day.saturating_mul(24))
}

/// Merges every rollup that the query matches, plus the count of the overflow series.
pub(super) fn fold(
    snapshot: &mut dyn QuerySnapshot,
    query: &RollupQuery<'_>,
    request: &QueryRequest,
    groups: &mut GroupSet<'_>,
) -> Result<(), StoreError> {
    if query.from >= query.to {
        return Ok(());
    }
    snapshot.rollups(query, &mut |series, hour, rollup| groups.add(series, hour, &rollup))?;
    overflow(snapshot, query, request, &mut |_, count| groups.overflow += count)
}

/// Visits the hourly event counts of the metric's overflow series, if the request wants them. It is
/// a single series, found by its own label and not by the query's matchers.
fn overflow(
    snapshot: &mut dyn QuerySnapshot,
    query: &RollupQuery<'_>,
    request: &QueryRequest,
    visit: &mut dyn FnMut(Hour, u64),
) -> Result<(), StoreError> {
    let Some(matchers) = &request.overflow else { return Ok(()) };
    let query = RollupQuery {
        matchers,
        distinct: false,
        quantiles: false,
        max_series: usize::MAX,
        ..query.clone()
    };
    snapshot.rollups(&query, &mut |_, hour, rollup| visit(hour, rollup.figures.count))
}

/// Reads the groups of each of the `days`, given as (day, revision). The days must be consecutive.
pub(super) fn read<'p>(
    snapshot: &mut dyn QuerySnapshot,
    extra: &ExtraSnapshot<'_>,
    query: &RollupQuery<'_>,
    (request, cost): (&'p QueryRequest, MergeLimits<'p>),
    days: &[(i32, u64)],
) -> Result<Vec<GroupSet<'p>>, StoreError> {
    if days.is_empty() {
        return Ok(Vec::new());
    }
    if days.len() < MIN_SPLIT_DAYS {
        return groups(snapshot, query, (request, cost), days);
    }
    let (near, far) = days.split_at(days.len() / 2);
    std::thread::scope(|scope| {
        let run = || read_concurrently(extra, query, (request, cost), far);
        let thread = std::thread::Builder::new().name("query".to_owned()).spawn_scoped(scope, run);
        let mut parts = groups(snapshot, query, (request, cost), near)?;
        // Joined only after this thread's half is done. If no thread or no usable snapshot was
        // available, this thread reads the second half too.
        let read = thread.ok().and_then(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        parts.append(&mut read.map_or_else(|| groups(snapshot, query, (request, cost), far), Ok)?);
        Ok(parts)
    })
}

/// Reads days in an extra snapshot. Returns None if its revisions differ or anything fails: the
/// caller then reads these days in the query's own snapshot, and reports the error if it persists.
fn read_concurrently<'p>(
    extra: &ExtraSnapshot<'_>,
    query: &RollupQuery<'_>,
    request_and_limits: (&'p QueryRequest, MergeLimits<'p>),
    days: &[(i32, u64)],
) -> Option<Vec<GroupSet<'p>>> {
    let mut snapshot = extra().ok()??;
    let revisions =
        snapshot.revisions(query.tenant, query.metric, query.generation, range(days)).ok()?;
    if !days.iter().map(|(_, revision)| *revision).eq(revisions) {
        return None;
    }
    groups(&mut *snapshot, query, request_and_limits, days).ok()
}

fn groups<'p>(
    snapshot: &mut dyn QuerySnapshot,
    query: &RollupQuery<'_>,
    (request, cost): (&'p QueryRequest, MergeLimits<'p>),
    days: &[(i32, u64)],
) -> Result<Vec<GroupSet<'p>>, StoreError> {
    let mut parts: Vec<GroupSet<'p>> = days.iter().map(|_| GroupSet::new(request, cost)).collect();
    let days = range(days);
    let query =
        RollupQuery { from: first_hour(days.start), to: first_hour(days.end), ..query.clone() };
    snapshot.rollups(&query, &mut |series, hour, rollup| {
        parts[(hour.day() - days.start) as usize].add(series, hour, &rollup);
    })?;
    overflow(snapshot, &query, request, &mut |hour, count| {
        parts[(hour.day() - days.start) as usize].overflow += count
    })?;
    Ok(parts)
}

fn range(days: &[(i32, u64)]) -> Range<i32> {
    days.first().map_or(0..0, |(first, _)| *first..*first + days.len() as i32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::model::budget::QueryBudget;
    use crate::model::flush::{Delta, FlushBatch, FlushGuard, SeriesInfo};
    use crate::model::generation::GenerationId;
    use crate::model::offset::{LogId, OffsetRange, ShardId};
    use crate::model::rollup::Rollup;
    use crate::model::series::{Series, SeriesId};
    use crate::persistence::store::memory::MemoryStore;
    use crate::persistence::store::{QuerySource, ShardStore};

    const LOG: LogId = LogId([3; 16]);

    /// Counts one event in one hour of each of these days.
    fn write(store: &MemoryStore, days: Range<i32>, nonce: u64) {
        let claim = store.claim(ShardId(0), LOG, nonce).expect("a claim").checkpoint;
        let series = Series::new("t", "m", []);
        let info = Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
        let mut rollup = Rollup::default();
        rollup.add(None, None);
        let deltas = days
            .map(|day| Delta {
                series: info.clone(),
                hour: Hour(day * 24 + 5),
                rollup: rollup.clone(),
            })
            .collect();
        let range = OffsetRange { from: claim.next, to: claim.next + 1 };
        let guard = FlushGuard { shard: ShardId(0), log: LOG, range, epoch: claim.epoch };
        store.flush(guard, &FlushBatch { deltas, ..FlushBatch::default() }, 0).expect("a flush");
    }

    /// The counts of the days `0..of` in a snapshot of `first`; extra snapshots come from `extra`.
    fn counts(first: &MemoryStore, further: &ExtraSnapshot<'_>, of: i32) -> Vec<u64> {
        let params = [("metric", "m"), ("from", "0"), ("to", "8640000000"), ("step", "1d")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
        let (request, _) = crate::gateway::read_routes::query_request(&params, 8_640_000_000)
            .unwrap_or_else(|e| panic!("{e}"));
        let mut snapshot = first.query_snapshot(&QueryBudget::default()).expect("a view");
        let revisions =
            snapshot.revisions("t", "m", GenerationId::INGEST, 0..of).expect("revisions");
        let days: Vec<(i32, u64)> = (0..of).zip(revisions).collect();
        let (from, to, matchers) = (Hour(0), Hour(0), &[][..]);
        let (tenant, metric, distinct, quantiles, max_series) = ("t", "m", false, false, 10);
        let query = RollupQuery {
            tenant,
            metric,
            matchers,
            from,
            to,
            distinct,
            quantiles,
            max_series,
            budget: None,
            generation: GenerationId::INGEST,
        };
        let (budget, max_points) = (QueryBudget::default(), None);
        let cost = MergeLimits { budget: &budget, max_points };
        let read = read(&mut *snapshot, further, &query, (&request, cost), &days).expect("read");
        assert_eq!(read.len(), of as usize);
        read.into_iter()
            .map(|groups| {
                groups
                    .into_part()
                    .groups
                    .iter()
                    .flat_map(|g| &g.points)
                    .map(|(_, r)| r.figures.count)
                    .sum()
            })
            .collect()
    }

    #[test]
    fn halves_are_the_whole_whatever_the_other_view_shows() {
        let store = MemoryStore::new();
        write(&store, 0..20, 1);
        write(&store, 15..17, 2);
        let expected: Vec<u64> =
            (0..20).map(|day| if (15..17).contains(&day) { 2 } else { 1 }).collect();
        let later = MemoryStore::new();
        later.restore_backup(&store.backup());
        write(&later, 18..19, 3);
        let elsewhere = MemoryStore::new();
        elsewhere.restore_backup(&store.backup());
        write(&elsewhere, 2..3, 3);
        let broken = || Err(StoreError::Unavailable("gone".to_owned()));
        let others: [&ExtraSnapshot<'_>; 5] = [
            &|| store.query_snapshot(&QueryBudget::default()).map(Some),
            &|| later.query_snapshot(&QueryBudget::default()).map(Some),
            &|| elsewhere.query_snapshot(&QueryBudget::default()).map(Some),
            &|| Ok(None),
            &broken,
        ];
        for further in others {
            assert_eq!(counts(&store, further, 20), expected);
        }
        assert_eq!(
            counts(&later, others[0], 20).iter().sum::<u64>(),
            23,
            "an older view is no other"
        );
    }

    #[test]
    fn only_many_days_are_halved() {
        let store = MemoryStore::new();
        write(&store, 0..20, 1);
        for of in [0, 1, 7, 8, 9, 20] {
            let asked = AtomicBool::new(false);
            let further = || {
                asked.store(true, Ordering::Relaxed);
                store.query_snapshot(&QueryBudget::default()).map(Some)
            };
            let counted: BTreeSet<u64> = counts(&store, &further, of).into_iter().collect();
            assert!(counted.iter().all(|count| *count == 1), "{of} days: {counted:?}");
            assert_eq!(asked.load(Ordering::Relaxed), of >= 8, "{of} days");
        }
    }
}
