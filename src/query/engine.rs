//! The engine: one snapshot, then the live deltas above exactly its checkpoints.

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
use crate::persistence::store::{MetricInfo, RollupQuery, RollupStore, StoreError, StoreSnapshot};
use crate::shards::state::{AccountingQuery, LiveQuery};
use crate::telemetry;

/// Limits of queries.
#[derive(Debug, Clone, Copy)]
pub struct QueryLimits {
    /// `query.max_points`.
    pub max_points: usize,
    /// `query.max_series`.
    pub max_series: usize,
    /// `query.stale_after` in milliseconds.
    pub stale_after_ms: i64,
    /// `query.cache` in bytes.
    pub cache_bytes: u64,
}

/// Points of days that are read at once and merged afterwards: so many that a long range of few
/// groups is one piece, so few that days of many groups do not lie in memory beside each other.
const PART_POINTS: usize = 50_000;
/// How many times more days are read at once than before.
const MORE_DAYS: usize = 8;

/// Ranges of more days than this are read without looking up days: nobody has so much data in one
/// place.
const MAX_DAYS: i64 = 4_000;

/// Answers queries.
pub struct QueryEngine {
    store: Arc<dyn RollupStore>,
    live: Arc<dyn LiveReader>,
    clock: Arc<dyn Clock>,
    limits: QueryLimits,
    cache: DayCache,
}

/// The UTC days that lie whole within the hours and before `today`; none if there are too many to
/// look up one by one.
fn whole_days(first: Hour, end: Hour, today: i32) -> std::ops::Range<i32> {
    let from = first.0.div_euclid(24) + i32::from(first.0.rem_euclid(24) != 0);
    let to = end.0.div_euclid(24).min(today);
    if to <= from || i64::from(to) - i64::from(from) > MAX_DAYS { 0..0 } else { from..to }
}

impl QueryEngine {
    /// An engine over a store and the live deltas.
    pub fn new(
        store: Arc<dyn RollupStore>,
        live: Arc<dyn LiveReader>,
        clock: Arc<dyn Clock>,
        limits: QueryLimits,
    ) -> Arc<Self> {
        Self::with_shared_cache(store, live, clock, limits, None)
    }

    /// An engine with a second cache behind that of the process.
    pub fn with_shared_cache(
        store: Arc<dyn RollupStore>,
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
            // Before the next ones are counted.
            drop(groups);
            // A shard started again between the snapshot and its answer: a new snapshot knows its
            // new epoch.
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
        // With `limit` only the end tells which groups are left.
        let max_points = request.limit.is_none().then_some(self.limits.max_points);
        let mut groups = GroupSet::new(request, MergeLimits { budget, max_points });
        let failed = |error| self.failed(error, budget);
        let mut snapshot = self.store.snapshot_for(budget).map_err(failed)?;
        let asked = self.shard_reads(&mut *snapshot).map_err(failed)?;
        self.add_stored(tenant, request, &mut *snapshot, &mut groups).map_err(failed)?;
        drop(snapshot);
        let completeness = self.add_live(tenant, request, &asked, &mut groups);
        match budget.abort_reason() {
            Some(why) => Err(self.ended(why)),
            None => Ok((groups, completeness)),
        }
    }

    /// Every shard, with its checkpoint in the snapshot.
    fn shard_reads(&self, snapshot: &mut dyn StoreSnapshot) -> Result<Vec<ShardRead>, StoreError> {
        let mut asked: Vec<ShardRead> =
            (0..self.live.shard_count()).map(|shard| (ShardId(shard), None)).collect();
        for (shard, checkpoint) in snapshot.checkpoints()? {
            if let Some(asked) = asked.get_mut(shard.0 as usize) {
                asked.1 = Some(checkpoint);
            }
        }
        Ok(asked)
    }

    /// The part of the answer that lies in the store: whole days that are over from the cache, the
    /// rest from the rows.
    fn add_stored(
        &self,
        tenant: &str,
        request: &QueryRequest,
        snapshot: &mut dyn StoreSnapshot,
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
        // Days share the buckets of a longer step: their points are not those of the answer.
        let of_days = MergeLimits {
            max_points: cost.max_points.filter(|_| request.step == TimeStep::Hours(1)),
            ..cost
        };
        days::fold(snapshot, &query(first, first_hour(days.start)), request, groups)?;
        // Neighbouring days that are not kept are read at once, as many as do not hold too many
        // groups.
        let mut unknown: Vec<(i32, u64)> = Vec::new();
        let mut at_once = if request.group_by.is_empty() { usize::MAX } else { 1 };
        let wanted: Vec<(i32, u64)> = days.clone().zip(revisions).collect();
        let mut parts = self.cache.look_up(tenant, request, &wanted);
        for (day, revision) in wanted.iter().copied().chain([(days.end, 0)]) {
            let kept = parts.next_part();
            if revision > 0 && kept.is_none() {
                unknown.push((day, revision));
                if unknown.len() < at_once {
                    continue;
                }
            }
            let further = || self.store.snapshot_at_once(cost.budget);
            let read =
                days::read(snapshot, &further, &query(first, end), (request, of_days), &unknown)?;
            if !read.is_empty() {
                let points = read.iter().map(GroupSet::points).sum::<usize>().div_ceil(read.len());
                at_once = (PART_POINTS / points.max(1)).clamp(1, at_once.saturating_mul(MORE_DAYS));
            }
            for ((day, revision), mut part) in unknown.drain(..).zip(read) {
                if part.failed.is_some() {
                    groups.failed = part.failed.take();
                    return Ok(());
                }
                let part = Arc::new(part.into_part());
                groups.merge_part(&part);
                self.cache.put(tenant, request, day, revision, part);
            }
            if let Some(part) = kept {
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
        asked: &[ShardRead],
        groups: &mut GroupSet<'_>,
    ) -> QueryCompleteness {
        let now = self.clock.now();
        let question = LiveQuery {
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
        let reports = self.live.read(asked, &question, &request.matchers, &mut visit);
        QueryCompleteness::of(asked, &reports, now, self.limits.stale_after_ms)
    }

    /// The names of a page: what the store has is read by `stored`, what shards hold beside that is
    /// shown to `add`.
    fn names<T>(
        &self,
        question: &CatalogueQuery<'_>,
        stored: impl Fn(&mut dyn StoreSnapshot) -> Result<T, StoreError>,
        add: impl Fn(&mut T, &CatalogueGrowth),
        budget: &QueryBudget,
    ) -> Result<(T, QueryCompleteness), StoreError> {
        let read = || {
            let mut snapshot = self.store.snapshot_for(budget)?;
            let asked = self.shard_reads(&mut *snapshot)?;
            let mut names = stored(&mut *snapshot)?;
            drop(snapshot);
            let now = self.clock.now();
            let reports =
                self.live.catalogue(&asked, question, &mut |growth| add(&mut names, growth));
            Ok((names, QueryCompleteness::of(&asked, &reports, now, self.limits.stale_after_ms)))
        };
        let (names, completeness) = read()?;
        if completeness.has_stale_checkpoint() { read() } else { Ok((names, completeness)) }
    }

    /// The books of the hours of append, and how complete they are.
    fn ledger(
        &self,
        tenant: &str,
        from: Hour,
        to: Hour,
        budget: &QueryBudget,
    ) -> Result<AccountingOutput, StoreError> {
        let mut snapshot = self.store.snapshot_for(budget)?;
        let asked = self.shard_reads(&mut *snapshot)?;
        let mut books = AccountingLedger::from_stored(
            &snapshot.accounting(tenant, from, to)?,
            &snapshot.accounting("", from, to)?,
        );
        drop(snapshot);
        let now = self.clock.now();
        let reports =
            self.live.accounting(&asked, &AccountingQuery { tenant, from, to }, &mut |_, row| {
                books.add_pending(row)
            });
        Ok(books.into_output(QueryCompleteness::of(
            &asked,
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
        let question = request.catalogue_query(tenant, CatalogueNames::Metrics);
        let stored = |snapshot: &mut dyn StoreSnapshot| {
            Ok(MetricCatalogue::stored(snapshot.metrics(tenant, &page)?))
        };
        let found = self.names(&question, stored, MetricCatalogue::add, budget);
        let (catalogue, completeness) = found.map_err(|error| self.failed(error, budget))?;
        let metrics = catalogue.metrics().filter(|info| page.contains(&info.metric)).collect();
        Ok(request.into_page(metrics, completeness, |info: &MetricInfo| &info.metric))
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
        let question = request.catalogue_query(tenant, CatalogueNames::Values(name, metric));
        let stored = |snapshot: &mut dyn StoreSnapshot| {
            let values: BTreeSet<String> =
                snapshot.label_values(tenant, name, metric, &page)?.into_iter().collect();
            Ok(values)
        };
        let add = |values: &mut BTreeSet<String>, growth: &CatalogueGrowth| {
            values.extend(growth.values.iter().cloned())
        };
        let (values, completeness) = self
            .names(&question, stored, add, budget)
            .map_err(|error| self.failed(error, budget))?;
        Ok(request.into_page(values.into_iter().collect(), completeness, String::as_str))
    }

    fn accounting(
        &self,
        tenant: &str,
        hours: Range<Hour>,
        budget: &QueryBudget,
    ) -> Result<AccountingOutput, QueryError> {
        let books = || {
            self.ledger(tenant, hours.start, hours.end, budget)
                .map_err(|error| self.failed(error, budget))
        };
        let answer = books()?;
        // A new snapshot knows where a shard went to.
        if answer.completeness.has_stale_checkpoint() { books() } else { Ok(answer) }
    }
}
