//! A cache of which series match a query: LRU, bounded in bytes.
//!
//! Three things always hold: a refused query leaves nothing in the cache; a series in several lists
//! is one object in memory; a list is weighed as if it shared nothing, so that the bound holds
//! whichever lists are evicted.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::{RollupQuery, StoreError, too_many_series};
use crate::invariants::{Invariant, check};
use crate::model::flush::SeriesInfo;
use crate::model::series::{Series, SeriesId};

/// Matching series with their numbers, ascending by number.
pub(super) type MatchedSeries = Arc<Vec<(i64, Arc<SeriesInfo>)>>;

/// Bytes of a series in a list, without its strings: its entry, reference counts, id, and the
/// headers of its strings and labels.
const SERIES_BYTES: usize = 176;
/// Bytes of a label, without its text.
const LABEL_BYTES: usize = 64;
/// Bytes of a list, without its series.
const LIST_BYTES: usize = 256;
/// Dropped series are swept once this many are known, and then whenever twice as many are known as
/// were left by the last sweep: the cost per series stays constant.
const EVICT_FROM: usize = 4_096;

/// Lists of matching series by query, each with the metric's number of series at that time. Series
/// are only ever added to a metric, so an equal number means an equal list.
pub(super) struct MatchCache<K> {
    lists: moka::sync::Cache<K, (i64, MatchedSeries)>,
    /// The series of all lists, to share them between lists; also some that were dropped meanwhile.
    known: DashMap<SeriesId, Weak<SeriesInfo>, RandomState>,
    evict_at: AtomicUsize,
}

impl<K> std::fmt::Debug for MatchCache<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MatchCache").finish_non_exhaustive()
    }
}

fn weight(list: &[(i64, Arc<SeriesInfo>)]) -> usize {
    LIST_BYTES + list.iter().map(|(_, info)| series_bytes(&info.series)).sum::<usize>()
}

/// Approximate memory of a series.
fn series_bytes(series: &Series) -> usize {
    let labels: usize =
        series.labels.iter().map(|(name, value)| LABEL_BYTES + name.len() + value.len()).sum();
    SERIES_BYTES + series.tenant.len() + series.metric.len() + labels
}

impl<K: Hash + Eq + Send + Sync + 'static> MatchCache<K> {
    /// A cache of at most `bytes`; with 0 it keeps nothing.
    pub(super) fn new(bytes: u64) -> Self {
        let weigher = |_: &K, (_, list): &(i64, MatchedSeries)| {
            u32::try_from(weight(list)).unwrap_or(u32::MAX)
        };
        Self {
            lists: moka::sync::Cache::builder().max_capacity(bytes).weigher(weigher).build(),
            known: DashMap::default(),
            evict_at: AtomicUsize::new(EVICT_FROM),
        }
    }

    /// The cached list, if the metric had `count` series when it was collected; otherwise the list
    /// that `find` collects, which is then cached. Failures of `find` are returned, not cached.
    pub(super) fn get(
        &self,
        key: K,
        count: i64,
        find: impl FnOnce() -> Result<Vec<(i64, Arc<SeriesInfo>)>, StoreError>,
    ) -> Result<MatchedSeries, StoreError> {
        if let Some((_, matched)) = self.lists.get(&key).filter(|(then, _)| *then == count) {
            // Sorted, because the stores look series up by binary search.
            return Ok(matched);
        }
        let mut found = find()?;
        found.sort_unstable_by_key(|(no, _)| *no);
        found.shrink_to_fit();
        let matched = Arc::new(found);
        // A list that exceeds the cache alone is not inserted: the cache would only evict it again.
        if weight(&matched) as u64 <= self.lists.policy().max_capacity().unwrap_or(0) {
            for (_, info) in matched.iter() {
                self.known.entry(info.id).or_insert_with(|| Arc::downgrade(info));
            }
            self.lists.insert(key, (count, matched.clone()));
            self.evict_dropped();
        }
        Ok(matched)
    }

    /// The series with an id and a key. The key is parsed only if no list has the series. Fails if
    /// it does not decode.
    pub(super) fn series(&self, id: SeriesId, key: &[u8]) -> Result<Arc<SeriesInfo>, StoreError> {
        if let Some(info) = self.known.get(&id).and_then(|known| known.upgrade()) {
            return Ok(info);
        }
        Ok(Arc::new(SeriesInfo { id, series: Series::from_key(key)? }))
    }

    fn evict_dropped(&self) {
        if self.known.len() < self.evict_at.load(Ordering::Relaxed) {
            return;
        }
        // Evicted lists hold their series until the cache has done its pending work.
        self.lists.run_pending_tasks();
        self.known.retain(|_, info| info.strong_count() > 0);
        self.evict_at.store((2 * self.known.len()).max(EVICT_FROM), Ordering::Relaxed);
    }

    /// Bytes of the cached lists.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.lists.run_pending_tasks();
        self.lists.weighted_size()
    }
}

/// Whether seeks for `matched` of the metric's `count` series cost less than a scan. A seek costs
/// about as much as eight rows of a scan; for a range much longer than any data, seeks for every
/// hour would cost more.
pub(super) fn prefers_seeks(matched: usize, count: i64, query: &RollupQuery<'_>) -> bool {
    const MAX_HOURS: i64 = 24 * 366;
    let matched = matched as i64;
    let hours = (i64::from(query.to.0) - i64::from(query.from.0)).max(1);
    (matched < count / 8 || matched.saturating_mul(hours) <= 32) && hours <= MAX_HOURS
}

/// Collects matching series, up to the limit of the query.
pub(super) struct SeriesCollector<'q> {
    query: &'q RollupQuery<'q>,
    found: Vec<(i64, Arc<SeriesInfo>)>,
    /// The collected ids; empty for generation 0, where no two series share one.
    ids: HashSet<SeriesId>,
}

impl<'q> SeriesCollector<'q> {
    /// A collector for one query.
    pub(super) fn new(query: &'q RollupQuery<'q>) -> Self {
        Self { query, found: Vec::new(), ids: HashSet::new() }
    }

    /// Adds a series if it matches. In a generation besides generation 0, the numbers that several
    /// writers gave to a series count as one. Fails with [`StoreError::TooManySeries`] at the first series
    /// beyond the limit, and with [`StoreError::QueryEnded`] if the query was aborted.
    pub(super) fn offer(&mut self, no: i64, info: Arc<SeriesInfo>) -> Result<(), StoreError> {
        self.query.check_budget()?;
        let tenant = &info.series.tenant;
        check(Invariant::Isolation, tenant == self.query.tenant, || {
            format!("a series of tenant {tenant} was read for tenant {}", self.query.tenant)
        });
        if !self.query.matchers.iter().all(|matcher| matcher.matches(&info.series)) {
            return Ok(());
        }
        let is_ingest = self.query.generation.is_ingest();
        if !is_ingest && self.ids.contains(&info.id) {
            self.found.push((no, info));
            return Ok(());
        }
        let collected = if is_ingest { self.found.len() } else { self.ids.len() };
        if collected >= self.query.max_series {
            return Err(too_many_series(self.query));
        }
        if !is_ingest {
            self.ids.insert(info.id);
        }
        // Series that a cached list holds are charged too: the cache may evict it while the query
        // runs.
        self.query.charge(series_bytes(&info.series));
        self.found.push((no, info));
        Ok(())
    }

    /// The collected series, in the order in which they were offered.
    pub(super) fn finish(self) -> Vec<(i64, Arc<SeriesInfo>)> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::tests::violations;
    use crate::model::budget::{AbortReason, QueryBudget};
    use crate::model::generation::GenerationId;
    use crate::model::matcher::Matcher;

    fn info(n: i64) -> Arc<SeriesInfo> {
        let series = Series::new("t", "m", [("n".to_owned(), n.to_string())]);
        Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series })
    }

    fn asked(matchers: &[Matcher], max_series: usize) -> RollupQuery<'_> {
        let (from, to) = (crate::model::window::Hour(0), crate::model::window::Hour(1));
        RollupQuery {
            tenant: "t",
            metric: "m",
            matchers,
            from,
            to,
            distinct: false,
            quantiles: false,
            max_series,
            budget: None,
            generation: GenerationId::INGEST,
        }
    }

    fn list(cache: &MatchCache<u32>, key: u32, numbers: std::ops::Range<i64>) -> MatchedSeries {
        let series = |n: i64| (n, cache.series(info(n).id, &info(n).series.key()).expect("a key"));
        cache.get(key, 1, || Ok(numbers.rev().map(series).collect())).expect("a list")
    }

    #[test]
    fn few_series_or_few_rows_are_sought_and_all_others_scanned() {
        let over = |hours, matched, count| {
            let to = crate::model::window::Hour(hours);
            prefers_seeks(matched, count, &RollupQuery { to, ..asked(&[], 9) })
        };
        assert!(over(24, 12, 104) && !over(24, 13, 104), "fewer than an eighth");
        assert!(over(4, 8, 9) && !over(4, 9, 9), "at most 32 rows");
        assert!(over(24 * 366, 1, 100) && !over(24 * 366 + 1, 1, 100), "a year at most");
    }

    #[test]
    fn a_series_of_another_tenant_is_a_violation() {
        let query = asked(&[], 9);
        let series = Series::new("other", "m", []);
        let other = Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
        let found = |info: &Arc<SeriesInfo>| {
            violations(Invariant::Isolation, || {
                _ = SeriesCollector::new(&query).offer(1, info.clone());
            })
        };
        assert_eq!((found(&info(1)), found(&other)), (0, 1));
    }

    #[test]
    fn the_cache_is_bounded_in_bytes_and_forgets_the_least_recently_used() {
        let one = weight(&[(0, info(10))]) - LIST_BYTES;
        let cache = MatchCache::new((10 * (100 * one + LIST_BYTES)) as u64);
        for key in 0..200_u32 {
            let from = i64::from(key) * 100 + 1_000;
            list(&cache, key, from..from + 100);
            list(&cache, 0, 1_000..1_100);
        }
        assert!(
            cache.bytes() <= cache.lists.policy().max_capacity().expect("a bound"),
            "{}",
            cache.bytes()
        );
        assert!(cache.bytes() > 0);
        assert!(cache.lists.contains_key(&0), "what is asked for all the time stays");
        cache.evict_dropped();
        assert!(
            cache.known.len() <= 2 * EVICT_FROM,
            "series that are gone are forgotten: {}",
            cache.known.len()
        );
        list(&cache, 1_000, 0..5_000);
        assert!(!cache.lists.contains_key(&1_000), "what is larger than all of it is not kept");
    }

    #[test]
    fn lists_share_their_series_and_are_in_order() {
        let cache = MatchCache::new(1 << 20);
        let (first, second) = (list(&cache, 1, 0..10), list(&cache, 2, 5..15));
        assert!(first.iter().map(|(no, _)| *no).eq(0..10));
        assert!(first[5..].iter().zip(&second[..5]).all(|((_, a), (_, b))| Arc::ptr_eq(a, b)));
        assert!(Arc::ptr_eq(&first, &list(&cache, 1, 0..1)), "kept");
        let grown = cache.get(1, 2, || Ok(vec![(3, info(3))])).expect("a list");
        assert_eq!(grown.len(), 1, "another number of series is another list");
    }

    #[test]
    fn what_is_refused_is_not_kept_and_ends_at_the_first_one_too_many() {
        let cache: MatchCache<u32> = MatchCache::new(1 << 20);
        let query = asked(&[], 3);
        let mut looked_at = 0;
        let refused = cache.get(1, 1, || {
            let mut collector = SeriesCollector::new(&query);
            for n in 0..100 {
                looked_at += 1;
                collector.offer(n, info(n))?;
            }
            Ok(collector.finish())
        });
        assert!(matches!(refused, Err(StoreError::TooManySeries { max: 3, .. })), "{refused:?}");
        assert_eq!((looked_at, cache.bytes(), cache.known.len()), (4, 0, 0));
    }

    #[test]
    fn matching_ends_with_its_query() {
        let budget = QueryBudget::default();
        let none = [Matcher::Equal("n".to_owned(), "none".to_owned())];
        let query = RollupQuery { budget: Some(&budget), ..asked(&none, 3) };
        let mut collector = SeriesCollector::new(&query);
        assert_eq!(collector.offer(1, info(1)), Ok(()));
        budget.abort(AbortReason::Abandoned);
        assert_eq!(collector.offer(2, info(2)), Err(StoreError::QueryEnded));
    }
}
