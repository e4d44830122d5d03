//! The query engine: one store snapshot, then exactly the live deltas above its checkpoints.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::accounting::{AccountingLedger, AccountingOutput};
use super::answer::{LabelValuesPage, MetricsPage, PageRequest, QueryOutput};
use super::cache::DayCache;
use super::catalogue::{MetricCatalogue, other_generations};
use super::completeness::QueryCompleteness;
use super::error::QueryError;
use super::groups::{GroupSet, MergeLimits};
use super::request::QueryRequest;
use super::service::QueryService;
use super::stored::StoredReader;
use crate::actors::catalogue::{CatalogueGrowth, CatalogueNames, CatalogueQuery};
use crate::actors::live::{LiveReader, ShardRead};
use crate::clock::{Clock, Stopwatch};
use crate::model::budget::{AbortReason, QueryBudget};
use crate::model::flush::SeriesInfo;
use crate::model::generation::GenerationId;
use crate::model::offset::ShardId;
use crate::model::rollup::Rollup;
use crate::model::served::{ServedHours, check_pieces, served_hours};
use crate::model::window::Hour;
use crate::persistence::cache::SharedCache;
use crate::persistence::store::{
    CheckpointSnapshot, MetricInfo, QuerySnapshot, QuerySource, StoreError,
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

/// Answers queries from the store and the shards' live deltas.
pub struct QueryEngine {
    store: Arc<dyn QuerySource>,
    live: Arc<dyn LiveReader>,
    clock: Arc<dyn Clock>,
    limits: QueryLimits,
    cache: DayCache,
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
        // The pointer too: whatever is applied meanwhile, the answer is of this one alone.
        let book = snapshot.generation_book().map_err(failed)?;
        let pointer = book.pointer(tenant, &request.metric);
        let served = served_hours(pointer, request.first_hour(), request.end_hour());
        check_pieces(&served, request.first_hour(), request.end_hour());
        let stored = StoredReader {
            store: &*self.store,
            cache: &self.cache,
            tenant,
            request,
            max_series: self.limits.max_series,
            today: Hour::of(self.clock.now()).day(),
        };
        stored.add(&served, &mut *snapshot, &mut groups).map_err(failed)?;
        // Released before shards are read: a slow shard must not hold a connection of the store.
        drop(snapshot);
        let completeness = self.add_live(tenant, request, (&reads, &served), &mut groups);
        let completeness = completeness.with_generations(served);
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

    fn add_live(
        &self,
        tenant: &str,
        request: &QueryRequest,
        (reads, served): (&[ShardRead], &[ServedHours]),
        groups: &mut GroupSet<'_>,
    ) -> QueryCompleteness {
        let now = self.clock.now();
        let query = LiveQuery {
            tenant,
            metric: &request.metric,
            from: request.first_hour(),
            to: request.end_hour(),
            served,
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
    /// hold and have not flushed yet. Both are told which generations besides generation 0 the
    /// tenant's pointers name. Retries once if a checkpoint turned stale in between.
    fn names<T>(
        &self,
        query: &CatalogueQuery<'_>,
        stored: impl Fn(&mut dyn QuerySnapshot, &[(&str, GenerationId)]) -> Result<T, StoreError>,
        add: impl Fn(&mut T, &CatalogueGrowth),
        budget: &QueryBudget,
    ) -> Result<(T, QueryCompleteness), StoreError> {
        let read = || {
            let mut snapshot = self.store.query_snapshot(budget)?;
            let reads = self.shard_reads(&mut *snapshot)?;
            let book = snapshot.generation_book()?;
            let others = other_generations(&book, query);
            let mut names = stored(&mut *snapshot, &others)?;
            drop(snapshot);
            let (now, query) = (self.clock.now(), CatalogueQuery { others: &others, ..*query });
            let reports =
                self.live.catalogue(&reads, &query, &mut |growth| add(&mut names, growth));
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
        let outcome = match &answer {
            Ok(answer) if answer.completeness.is_partial() => "partial",
            Ok(_) => "complete",
            Err(_) => "refused",
        };
        metrics::counter!(telemetry::QUERIES, "outcome" => outcome).increment(1);
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
        let stored = |snapshot: &mut dyn QuerySnapshot, others: &[(&str, GenerationId)]| {
            let mut catalogue = MetricCatalogue::stored(snapshot.metrics(tenant, &page)?);
            for (metric, generation) in others {
                if budget.abort_reason().is_some() {
                    return Err(StoreError::QueryEnded);
                }
                if catalogue.reaches(metric, page.limit)
                    && let Some(info) = snapshot.generation_metric(tenant, metric, *generation)?
                {
                    catalogue.unite(info);
                }
            }
            Ok(catalogue)
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
        let stored = |snapshot: &mut dyn QuerySnapshot, others: &[(&str, GenerationId)]| {
            let values = snapshot.label_values(tenant, name, metric, others, &page)?;
            Ok(values.into_iter().collect::<BTreeSet<String>>())
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
