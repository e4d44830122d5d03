//! The query engine: one store snapshot, then exactly the live deltas above its checkpoints.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::accounting::{AccountingLedger, AccountingOutput};
use super::answer::{LabelValuesPage, MetricsPage, PageRequest, QueryOutput};
use super::cache::DayCache;
use super::catalogue::MetricCatalogue;
use super::completeness::QueryCompleteness;
use super::days::{self, first_hour};
use super::error::QueryError;
use super::groups::{GroupSet, MergeLimits};
use super::request::QueryRequest;
use super::service::QueryService;
use super::steps::TimeStep;
use crate::actors::catalogue::{CatalogueGrowth, CatalogueNames, CatalogueQuery};
use crate::actors::live::{LiveReader, ShardRead};
use crate::clock::{Clock, Stopwatch};
use crate::model::budget::{AbortReason, QueryBudget};
use crate::model::flush::SeriesInfo;
use crate::model::offset::ShardId;
use crate::model::rollup::Rollup;
use crate::model::window::Hour;
use crate::persistence::cache::SharedCache;
use crate::persistence::store::{
    CheckpointSnapshot, MetricInfo, QuerySnapshot, QuerySource, RollupQuery, StoreError,
};
use crate::shards::state::{AccountingQuery, LiveQuery};
use crate::telemetry;

/// The configured limits of queries.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy)]
pub struct QueryLimits {
    pub max_points: usize,
    pub max_series: usize,
    /// `query.stale_after` in milliseconds: a shard extra behind makes an answer `partial`.
    pub stale_after_ms: i64,
    /// `query.cache` in bytes; 0 turns the cache off.
    pub cache_bytes: u64,
}

/// Target number of points in the days that are read together and merged afterwards. Large enough
/// that a long range with few groups is one read; small enough that days with many groups are not
/// in memory at the same time.
const PART_POINTS: usize = 50_000;
/// By which factor the number of days per read may grow from one read to the next: the first days
/// may be sparser than the rest.
const MORE_DAYS: usize = 8;

/// Longer ranges are read without the day cache: no store holds that many days, and every day
/// costs a revision look-up.
const MAX_DAYS: i64 = 4_000;

/// Answers queries from the store and the shards' live deltas.
pub struct QueryEngine {
    store: Arc<dyn QuerySource>,
    live: Arc<dyn LiveReader>,
    clock: Arc<dyn Clock>,
    limits: QueryLimits,
    cache: DayCache,
}

/// The UTC days that lie entirely within the hours and before `today`; empty if there are more than
/// [`MAX_DAYS`].
fn whole_days(first: Hour, end: Hour, today: i32) -> std::ops::Range<i32> {
    let from = first.0.div_euclid(24) + i32::from(first.0.rem_euclid(24) != 0);
    let to = end.0.div_euclid(24).min(today);
    if to <= from || i64::from(to) - i64::from(from) > MAX_DAYS { 0..0 } else { from..to }
}

impl QueryEngine {
    /// An engine without a shared cache.
    pub fn new(
        store: Arc<dyn QuerySource>,
        live: Arc<dyn LiveReader>,
        clock: Arc<dyn Clock>,
        limits: QueryLimits,
    ) -> Arc<Self> {
        Self::with_shared_cache(store, live, clock, limits, None)
    }

    /// An engine with a cache that nodes share behind its own.
    pub fn with_shared_cache(
        store: Arc<dyn QuerySource>,
        live: Arc<dyn LiveReader>,
        clock: Arc<dyn Clock>,
        limits: QueryLimits,
        second: Option<Arc<dyn SharedCache>>,
    ) -> Arc<Self> {
        let cache = DayCache::new(limits.cache_bytes, second);
        Arc::new(Self { store, live, clock, limits, cache })
    }

    fn answer<'a>(
        &self,
        tenant: &str,
        request: &'a QueryRequest,
        budget: &'a QueryBudget,
    ) -> Result<QueryOutput<'a>, QueryError> {
        let (mut groups, mut completeness) = self.collect(tenant, request, budget)?;
        if completeness.has_stale_checkpoint() {
            // Releases its charge first: the budget must not be charged for both results at once.
            drop(groups);
            // A shard changed owners after the snapshot, or no longer keeps the batches above it.
            // A new snapshot has its new epoch and checkpoint.
            (groups, completeness) = self.collect(tenant, request, budget)?;
        }
        if let Some(why) = groups.failed.take() {
            return Err(QueryError::FigureTooLarge(why));
        }
        let completeness =
            completeness.with_overflow(request.overflow.is_some().then_some(groups.overflow));
        let (series, charge) = groups.into_ordered();
        let answer = QueryOutput::new(request, series, completeness, charge)
            .map_err(QueryError::FigureTooLarge)?;
        // With `limit`, points were not counted while merging.
        let max = self.limits.max_points;
        if answer.points() > max {
            return Err(QueryError::TooManyPoints { max });
        }
        let outcome = if answer.completeness.is_partial() { "partial" } else { "complete" };
        metrics::counter!(telemetry::QUERIES, "outcome" => outcome).increment(1);
        Ok(answer)
    }

    fn ended(&self, why: AbortReason) -> QueryError {
        QueryError::ended(why, self.limits.max_points)
    }

    fn failed(&self, error: StoreError, budget: &QueryBudget) -> QueryError {
        match (error, budget.abort_reason()) {
            (StoreError::QueryEnded, Some(why)) => self.ended(why),
            (error, _) => error.into(),
        }
    }

    fn collect<'a>(
        &self,
        tenant: &str,
        request: &'a QueryRequest,
        budget: &'a QueryBudget,
    ) -> Result<(GroupSet<'a>, QueryCompleteness), QueryError> {
        // With `limit`, the number of points is known only after the groups are sorted and
        // truncated.
        let max_points = request.limit.is_none().then_some(self.limits.max_points);
        let mut groups = GroupSet::new(request, MergeLimits { budget, max_points });
        let failed = |error| self.failed(error, budget);
        let mut snapshot = self.store.query_snapshot(budget).map_err(failed)?;
        // Checkpoints and rollups come from the same snapshot: this is what makes the sum exact.
        let reads = self.shard_reads(&mut *snapshot).map_err(failed)?;
        self.add_stored(tenant, request, &mut *snapshot, &mut groups).map_err(failed)?;
        // Released before shards are reads: a slow shard must not hold a connection of the store.
        drop(snapshot);
        let completeness = self.add_live(tenant, request, &reads, &mut groups);
        match budget.abort_reason() {
            Some(why) => Err(self.ended(why)),
            None => Ok((groups, completeness)),
        }
    }

    /// All shards, each with its checkpoint in the snapshot; None if it has none yet.
    fn shard_reads(
        &self,
        snapshot: &mut dyn CheckpointSnapshot,
    ) -> Result<Vec<ShardRead>, StoreError> {
        let mut reads: Vec<ShardRead> =
            (0..self.live.shard_count()).map(|shard| (ShardId(shard), None)).collect();
        for (shard, checkpoint) in snapshot.checkpoints()? {
            if let Some(reads) = reads.get_mut(shard.0 as usize) {
                reads.1 = Some(checkpoint);
            }
        }
        Ok(reads)
    }

    /// Adds the stored part of the answer: complete days from the cache or the store, the hours
    /// before and after them from the store.
    fn add_stored(
        &self,
        tenant: &str,
        request: &QueryRequest,
        snapshot: &mut dyn QuerySnapshot,
        groups: &mut GroupSet<'_>,
    ) -> Result<(), StoreError> {
        let (first, end) = (request.first_hour(), request.end_hour());
        let days = whole_days(first, end, Hour::of(self.clock.now()).day());
        if days.is_empty() {
            return days::fold(
                snapshot,
                &self.rollup_query(tenant, request, groups.limits().budget, first, end),
                request,
                groups,
            );
        }
        let revisions = snapshot.revisions(tenant, &request.metric, days.clone())?;
        let cost = groups.limits();
        let query =
            |from: Hour, to: Hour| self.rollup_query(tenant, request, cost.budget, from, to);
        // Days of a longer step share buckets, so their points do not add up to those of the
        // answer.
        let of_days = MergeLimits {
            max_points: cost.max_points.filter(|_| request.step == TimeStep::Hours(1)),
            ..cost
        };
        days::fold(snapshot, &query(first, first_hour(days.start)), request, groups)?;
        // Consecutive uncached days are read together, as many as keep the points of one read near
        // PART_POINTS. Ungrouped queries have one group, so their days need no probing.
        let mut uncached: Vec<(i32, u64)> = Vec::new();
        let mut at_once = if request.group_by.is_empty() { usize::MAX } else { 1 };
        let wanted: Vec<(i32, u64)> = days.clone().zip(revisions).collect();
        let mut parts = self.cache.look_up(tenant, request, &wanted);
        // The extra element at the end flushes what is still in `uncached`; its revision 0 matches
        // no day.
        for (day, revision) in wanted.iter().copied().chain([(days.end, 0)]) {
            let cached = parts.next_part();
            if revision > 0 && cached.is_none() {
                uncached.push((day, revision));
                if uncached.len() < at_once {
                    continue;
                }
            }
            let extra = || self.store.query_snapshot_at_once(cost.budget);
            let read =
                days::read(snapshot, &extra, &query(first, end), (request, of_days), &uncached)?;
            if !read.is_empty() {
                let points = read.iter().map(GroupSet::points).sum::<usize>().div_ceil(read.len());
                at_once = (PART_POINTS / points.max(1)).clamp(1, at_once.saturating_mul(MORE_DAYS));
            }
            for ((day, revision), mut part) in uncached.drain(..).zip(read) {
                if part.failed.is_some() {
                    groups.failed = part.failed.take();
                    return Ok(());
                }
                let part = Arc::new(part.into_part());
                groups.merge_part(&part);
                self.cache.put(tenant, request, day, revision, part);
            }
            if let Some(part) = cached {
                groups.merge_part(&part);
            }
        }
        days::fold(snapshot, &query(first_hour(days.end), end), request, groups)
    }

    fn rollup_query<'q>(
        &self,
        tenant: &'q str,
        request: &'q QueryRequest,
        budget: &'q QueryBudget,
        from: Hour,
        to: Hour,
    ) -> RollupQuery<'q> {
        RollupQuery {
            tenant,
            metric: &request.metric,
            matchers: &request.matchers,
            from,
            to,
            distinct: request.wants_distinct(),
            quantiles: request.wants_quantiles(),
            max_series: self.limits.max_series,
            budget: Some(budget),
        }
    }

    fn add_live(
        &self,
        tenant: &str,
        request: &QueryRequest,
        reads: &[ShardRead],
        groups: &mut GroupSet<'_>,
    ) -> QueryCompleteness {
        let now = self.clock.now();
        let query = LiveQuery {
            tenant,
            metric: &request.metric,
            from: request.first_hour(),
            to: request.end_hour(),
            distinct: request.wants_distinct(),
            quantiles: request.wants_quantiles(),
            overflow: request.overflow.is_some(),
        };
        let mut visit = |_: ShardId, series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| {
            groups.add_live(series, hour, rollup)
        };
        let reports = self.live.read(reads, &query, &request.matchers, &mut visit);
        QueryCompleteness::of(reads, &reports, now, self.limits.stale_after_ms)
    }

    /// The names of a page: `stored` reads them from the snapshot, `add` merges those that shards
    /// hold and have not flushed yet. Retries once if a checkpoint turned stale in between.
    fn names<T>(
        &self,
        query: &CatalogueQuery<'_>,
        stored: impl Fn(&mut dyn QuerySnapshot) -> Result<T, StoreError>,
        add: impl Fn(&mut T, &CatalogueGrowth),
        budget: &QueryBudget,
    ) -> Result<(T, QueryCompleteness), StoreError> {
        let read = || {
            let mut snapshot = self.store.query_snapshot(budget)?;
            let reads = self.shard_reads(&mut *snapshot)?;
            let mut names = stored(&mut *snapshot)?;
            drop(snapshot);
            let now = self.clock.now();
            let reports = self.live.catalogue(&reads, query, &mut |growth| add(&mut names, growth));
            Ok((names, QueryCompleteness::of(&reads, &reports, now, self.limits.stale_after_ms)))
        };
        let (names, completeness) = read()?;
        if completeness.has_stale_checkpoint() { read() } else { Ok((names, completeness)) }
    }

    /// Event counts by hour of append, with how complete they are.
    fn ledger(
        &self,
        tenant: &str,
        from: Hour,
        to: Hour,
        budget: &QueryBudget,
    ) -> Result<AccountingOutput, StoreError> {
        let mut snapshot = self.store.query_snapshot(budget)?;
        let reads = self.shard_reads(&mut *snapshot)?;
        let mut ledger = AccountingLedger::from_stored(
            &snapshot.accounting(tenant, from, to)?,
            &snapshot.accounting("", from, to)?,
        );
        drop(snapshot);
        let now = self.clock.now();
        let reports =
            self.live.accounting(&reads, &AccountingQuery { tenant, from, to }, &mut |_, row| {
                ledger.add_pending(row)
            });
        Ok(ledger.into_output(QueryCompleteness::of(
            &reads,
            &reports,
            now,
            self.limits.stale_after_ms,
        )))
    }
}

impl QueryService for QueryEngine {
    fn query<'a>(
        &self,
        tenant: &str,
        request: &'a QueryRequest,
        budget: &'a QueryBudget,
    ) -> Result<QueryOutput<'a>, QueryError> {
        let watch = Stopwatch::start();
        let answer = self.answer(tenant, request, budget);
        metrics::histogram!(telemetry::QUERY_SECONDS).record(watch.elapsed().as_secs_f64());
        answer
    }

    fn metrics(
        &self,
        tenant: &str,
        request: &PageRequest,
        budget: &QueryBudget,
    ) -> Result<MetricsPage, QueryError> {
        let page = request.store_page(budget);
        let query = request.catalogue_query(tenant, CatalogueNames::Metrics);
        let stored = |snapshot: &mut dyn QuerySnapshot| {
            Ok(MetricCatalogue::stored(snapshot.metrics(tenant, &page)?))
        };
        let found = self.names(&query, stored, MetricCatalogue::add, budget);
        let (catalogue, completeness) = found.map_err(|error| self.failed(error, budget))?;
        let metrics = catalogue.metrics().filter(|info| page.contains(&info.metric)).collect();
        Ok(request.paginate(metrics, completeness, |info: &MetricInfo| &info.metric))
    }

    fn label_values(
        &self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        request: &PageRequest,
        budget: &QueryBudget,
    ) -> Result<LabelValuesPage, QueryError> {
        let page = request.store_page(budget);
        let query = request.catalogue_query(tenant, CatalogueNames::Values(name, metric));
        let stored = |snapshot: &mut dyn QuerySnapshot| {
            let values: BTreeSet<String> =
                snapshot.label_values(tenant, name, metric, &page)?.into_iter().collect();
            Ok(values)
        };
        let add = |values: &mut BTreeSet<String>, growth: &CatalogueGrowth| {
            values.extend(growth.values.iter().cloned())
        };
        let (values, completeness) =
            self.names(&query, stored, add, budget).map_err(|error| self.failed(error, budget))?;
        Ok(request.paginate(values.into_iter().collect(), completeness, String::as_str))
    }

    fn accounting(
        &self,
        tenant: &str,
        hours: Range<Hour>,
        budget: &QueryBudget,
    ) -> Result<AccountingOutput, QueryError> {
        let ledger = || {
            self.ledger(tenant, hours.start, hours.end, budget)
                .map_err(|error| self.failed(error, budget))
        };
        let answer = ledger()?;
        // A new snapshot has the new epoch or checkpoint of the shard.
        if answer.completeness.has_stale_checkpoint() { ledger() } else { Ok(answer) }
    }
}
