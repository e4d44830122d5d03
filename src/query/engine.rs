//! The engine: one snapshot, then the live deltas above exactly its checkpoints.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use super::accounting::Books;
use super::cache::Cache;
use super::catalogue::Catalogue;
use super::completeness::Completeness;
use super::csv;
use super::days::{self, start};
use super::groups::{Cost, Group, Groups};
use super::json;
use super::listing::Listing;
use super::matchers::check_label_name;
use super::params::{Params, bad};
use super::plan::{Plan, check_metric, plan};
use super::service::{QueryError, QueryErrorKind, QueryService, Table};
use super::steps::Step;
use crate::actors::catalogue::{CatalogueQuestion, Growth, Names};
use crate::actors::live::{Asked, LiveReader};
use crate::clock::{Clock, Stopwatch};
use crate::model::budget::{Budget, Ended};
use crate::model::flush::SeriesInfo;
use crate::model::offset::ShardId;
use crate::model::rollup::Rollup;
use crate::model::window::{HOUR_MS, Hour};
use crate::persistence::cache::PartCache;
use crate::persistence::store::{MetricInfo, RollupQuery, RollupStore, StoreError, StoreSnapshot};
use crate::shards::state::{AccountingQuestion, LiveQuestion};
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

/// Points of days that are read at once and merged afterwards: so many that a long range of few groups is one piece, so few that days of
/// many groups do not lie in memory beside each other.
const PART_POINTS: usize = 50_000;
/// How many times more days are read at once than before.
const MORE_DAYS: usize = 8;

/// Ranges of more days than this are read without looking up days: nobody has so much data in one place.
const MAX_DAYS: i64 = 4_000;

/// Answers queries.
pub struct QueryEngine {
    store: Arc<dyn RollupStore>,
    live: Arc<dyn LiveReader>,
    clock: Arc<dyn Clock>,
    limits: QueryLimits,
    cache: Cache,
}

/// The UTC days that lie whole within the hours and before `today`; none if there are too many to look up one by one.
fn whole_days(first: Hour, end: Hour, today: i32) -> std::ops::Range<i32> {
    let from = first.0.div_euclid(24) + i32::from(first.0.rem_euclid(24) != 0);
    let to = end.0.div_euclid(24).min(today);
    if to <= from || i64::from(to) - i64::from(from) > MAX_DAYS { 0..0 } else { from..to }
}

impl QueryEngine {
    /// An engine over a store and the live deltas.
    pub fn new(store: Arc<dyn RollupStore>, live: Arc<dyn LiveReader>, clock: Arc<dyn Clock>, limits: QueryLimits) -> Arc<Self> {
        Self::with_second_cache(store, live, clock, limits, None)
    }

    /// An engine with a second cache behind that of the process.
    pub fn with_second_cache(
        store: Arc<dyn RollupStore>,
        live: Arc<dyn LiveReader>,
        clock: Arc<dyn Clock>,
        limits: QueryLimits,
        second: Option<Arc<dyn PartCache>>,
    ) -> Arc<Self> {
        let cache = Cache::new(limits.cache_bytes, second);
        Arc::new(Self { store, live, clock, limits, cache })
    }

    fn answer<T>(&self, tenant: &str, plan: &Plan, budget: &Budget, render: Render<T>) -> Result<T, QueryError> {
        let watch = Stopwatch::start();
        let answer = self.answered(tenant, plan, budget, render);
        metrics::histogram!(telemetry::QUERY_SECONDS).record(watch.elapsed().as_secs_f64());
        answer
    }

    fn answered<T>(&self, tenant: &str, plan: &Plan, budget: &Budget, render: Render<T>) -> Result<T, QueryError> {
        let (mut groups, mut completeness) = self.collect(tenant, plan, budget)?;
        if completeness.moved() {
            // Before the next ones are counted.
            drop(groups);
            // A shard started again between the snapshot and its answer: a new snapshot knows its new epoch.
            (groups, completeness) = self.collect(tenant, plan, budget)?;
        }
        if let Some(why) = groups.failed.take() {
            return Err(QueryError::new(QueryErrorKind::TooLarge, "answer_too_large", why));
        }
        let ordered = groups.ordered();
        self.points(&ordered)?;
        let completeness = completeness.with_overflow(plan.overflow.is_some().then_some(groups.overflow));
        let body = render(plan, &ordered, &completeness, budget)?;
        if let Some(why) = budget.ended() {
            return Err(self.ended(why));
        }
        let outcome = if completeness.partial() { "partial" } else { "complete" };
        metrics::counter!(telemetry::QUERIES, "outcome" => outcome).increment(1);
        Ok(body)
    }

    /// The points of an answer, of which there may not be more than the limit.
    fn points(&self, ordered: &[&Group]) -> Result<(), QueryError> {
        let points: usize = ordered.iter().map(|group| group.points.len()).sum();
        if points <= self.limits.max_points {
            return Ok(());
        }
        Err(self.ended(Ended::Points))
    }

    /// What an ended query is answered with.
    fn ended(&self, why: Ended) -> QueryError {
        let limits = &self.limits;
        let (kind, code, message) = match why {
            Ended::Points => {
                let max = limits.max_points;
                let way_out = "ask for a shorter range, a longer step, fewer groups, or set limit";
                let message = format!("the answer has more than {max} points (query.max_points): {way_out}");
                (QueryErrorKind::TooLarge, "too_many_points", message)
            }
            Ended::Memory => {
                let message = "the query needs more memory than one tenant may use for queries (a part of query.max_memory): ask for \
                    a shorter range, fewer groups, or without distinct and quantiles";
                (QueryErrorKind::TooLarge, "query_too_large", message.to_owned())
            }
            Ended::TenantBusy => {
                let message = "the tenant's other queries use its part of query.max_memory: retry";
                (QueryErrorKind::Busy, "tenant_overloaded", message.to_owned())
            }
            Ended::Busy => {
                (QueryErrorKind::Unavailable, "overloaded", "other queries use all of query.max_memory: retry".to_owned())
            }
            Ended::Late => {
                let message = "the query took longer than query.timeout: ask for a shorter range or fewer series, or retry";
                (QueryErrorKind::Unavailable, "query_timeout", message.to_owned())
            }
            Ended::Abandoned => (QueryErrorKind::Unavailable, "query_abandoned", "nobody waits for the answer".to_owned()),
        };
        QueryError::new(kind, code, message)
    }

    fn failed(&self, error: StoreError, budget: &Budget) -> QueryError {
        match (error, budget.ended()) {
            (StoreError::Ended, Some(why)) => self.ended(why),
            (error, _) => store_error(error),
        }
    }

    fn collect<'p>(&self, tenant: &str, plan: &'p Plan, budget: &'p Budget) -> Result<(Groups<'p>, Completeness), QueryError> {
        // With `limit` only the end tells which groups are left.
        let max_points = plan.limit.is_none().then_some(self.limits.max_points);
        let mut groups = Groups::new(plan, Cost { budget, max_points });
        let failed = |error| self.failed(error, budget);
        let mut snapshot = self.store.snapshot_for(budget).map_err(failed)?;
        let asked = self.asked(&mut *snapshot).map_err(failed)?;
        self.stored(tenant, plan, &mut *snapshot, &mut groups).map_err(failed)?;
        drop(snapshot);
        let completeness = self.live(tenant, plan, &asked, &mut groups);
        match budget.ended() {
            Some(why) => Err(self.ended(why)),
            None => Ok((groups, completeness)),
        }
    }

    /// Every shard, with its checkpoint in the snapshot.
    fn asked(&self, snapshot: &mut dyn StoreSnapshot) -> Result<Vec<Asked>, StoreError> {
        let mut asked: Vec<Asked> = (0..self.live.shard_count()).map(|shard| (ShardId(shard), None)).collect();
        for (shard, checkpoint) in snapshot.checkpoints()? {
            if let Some(asked) = asked.get_mut(shard.0 as usize) {
                asked.1 = Some(checkpoint);
            }
        }
        Ok(asked)
    }

    /// The part of the answer that lies in the store: whole days that are over from the cache, the rest from the rows.
    fn stored(
        &self,
        tenant: &str,
        plan: &Plan,
        snapshot: &mut dyn StoreSnapshot,
        groups: &mut Groups<'_>,
    ) -> Result<(), StoreError> {
        let (first, end) = (plan.first_hour(), plan.end_hour());
        let days = whole_days(first, end, Hour::of(self.clock.now()).day());
        if days.is_empty() {
            return days::fold(snapshot, &self.question(tenant, plan, groups.cost().budget, first, end), plan, groups);
        }
        let revisions = snapshot.revisions(tenant, &plan.metric, days.clone())?;
        let cost = groups.cost();
        let query = |from: Hour, to: Hour| self.question(tenant, plan, cost.budget, from, to);
        // Days share the buckets of a longer step: their points are not those of the answer.
        let of_days = Cost { max_points: cost.max_points.filter(|_| plan.step == Step::Hours(1)), ..cost };
        days::fold(snapshot, &query(first, start(days.start)), plan, groups)?;
        // Neighbouring days that are not kept are read at once, as many as do not hold too many groups.
        let mut unknown: Vec<(i32, u64)> = Vec::new();
        let mut at_once = if plan.by.is_empty() { usize::MAX } else { 1 };
        let wanted: Vec<(i32, u64)> = days.clone().zip(revisions).collect();
        let mut parts = self.cache.look_up(tenant, plan, &wanted);
        let further = || self.store.snapshot_at_once(cost.budget);
        for (day, revision) in wanted.iter().copied().chain([(days.end, 0)]) {
            let kept = parts.next_part();
            if revision > 0 && kept.is_none() {
                unknown.push((day, revision));
                if unknown.len() < at_once {
                    continue;
                }
            }
            let read = days::read(snapshot, &further, &query(first, end), (plan, of_days), &unknown)?;
            if !read.is_empty() {
                let points = read.iter().map(Groups::points).sum::<usize>().div_ceil(read.len());
                at_once = (PART_POINTS / points.max(1)).clamp(1, at_once.saturating_mul(MORE_DAYS));
            }
            for ((day, revision), mut part) in unknown.drain(..).zip(read) {
                if part.failed.is_some() {
                    groups.failed = part.failed.take();
                    return Ok(());
                }
                let part = Arc::new(part.into_part());
                groups.absorb(&part);
                self.cache.put(tenant, plan, day, revision, part);
            }
            if let Some(part) = kept {
                groups.absorb(&part);
            }
        }
        days::fold(snapshot, &query(start(days.end), end), plan, groups)
    }

    fn question<'q>(&self, tenant: &'q str, plan: &'q Plan, budget: &'q Budget, from: Hour, to: Hour) -> RollupQuery<'q> {
        RollupQuery {
            tenant,
            metric: &plan.metric,
            matchers: &plan.matchers,
            from,
            to,
            distinct: plan.wants_distinct(),
            quantiles: plan.wants_quantiles(),
            max_series: self.limits.max_series,
            budget: Some(budget),
        }
    }

    fn live(&self, tenant: &str, plan: &Plan, asked: &[Asked], groups: &mut Groups<'_>) -> Completeness {
        let now = self.clock.now();
        let question = LiveQuestion {
            tenant,
            metric: &plan.metric,
            from: plan.first_hour(),
            to: plan.end_hour(),
            distinct: plan.wants_distinct(),
            quantiles: plan.wants_quantiles(),
            overflow: plan.overflow.is_some(),
        };
        let mut visit = |_: ShardId, series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| groups.add_live(series, hour, rollup);
        let reports = self.live.read(asked, &question, &plan.matchers, &mut visit);
        Completeness::of(asked, &reports, now, self.limits.stale_after_ms)
    }

    /// The names of a page: what the store has is read by `stored`, what shards hold beside that is shown to `add`.
    fn names<T>(
        &self,
        question: &CatalogueQuestion<'_>,
        stored: impl Fn(&mut dyn StoreSnapshot) -> Result<T, StoreError>,
        add: impl Fn(&mut T, &Growth),
        budget: &Budget,
    ) -> Result<(T, Completeness), StoreError> {
        let read = || {
            let mut snapshot = self.store.snapshot_for(budget)?;
            let asked = self.asked(&mut *snapshot)?;
            let mut names = stored(&mut *snapshot)?;
            drop(snapshot);
            let now = self.clock.now();
            let reports = self.live.catalogue(&asked, question, &mut |growth| add(&mut names, growth));
            Ok((names, Completeness::of(&asked, &reports, now, self.limits.stale_after_ms)))
        };
        let (names, completeness) = read()?;
        if completeness.moved() { read() } else { Ok((names, completeness)) }
    }

    /// The books of the hours of append, and how complete they are.
    fn books(&self, tenant: &str, from: Hour, to: Hour, budget: &Budget) -> Result<(Books, Completeness), StoreError> {
        let mut snapshot = self.store.snapshot_for(budget)?;
        let asked = self.asked(&mut *snapshot)?;
        let mut books = Books::stored(&snapshot.accounting(tenant, from, to)?, &snapshot.accounting("", from, to)?);
        drop(snapshot);
        let now = self.clock.now();
        let reports = self.live.accounting(&asked, &AccountingQuestion { tenant, from, to }, &mut |_, row| books.pending(row));
        Ok((books, Completeness::of(&asked, &reports, now, self.limits.stale_after_ms)))
    }
}

/// Writes an answer down, until the budget has ended.
type Render<T> = fn(&Plan, &[&Group], &Completeness, &Budget) -> Result<T, QueryError>;

fn render(plan: &Plan, groups: &[&Group], completeness: &Completeness, budget: &Budget) -> Result<String, QueryError> {
    let points: usize = groups.iter().map(|group| group.points.len()).sum();
    let room = 256 + points * 64;
    budget.charge(room);
    let (mut out, mut charged) = (String::with_capacity(room), room);
    out.push_str("{\"metric\":");
    json::string(&mut out, &plan.metric);
    out.push_str(",\"step\":");
    json::string(&mut out, plan.step.name());
    out.push_str(",\"from\":");
    json::time(&mut out, plan.from);
    out.push_str(",\"to\":");
    json::time(&mut out, plan.to);
    out.push_str(",\"series\":[");
    for (at, Group { key, points }) in groups.iter().enumerate() {
        budget.charge(out.len().saturating_sub(charged));
        charged = charged.max(out.len());
        if budget.ended().is_some() {
            break;
        }
        out.push_str(if at > 0 { ",{\"labels\":{" } else { "{\"labels\":{" });
        for (at, (name, value)) in plan.by.iter().zip(key).filter(|(_, value)| !value.is_empty()).enumerate() {
            if at > 0 {
                out.push(',');
            }
            json::string(&mut out, name);
            out.push(':');
            json::string(&mut out, value);
        }
        out.push_str("},\"points\":[");
        for (at, &(start, ref rollup)) in points.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            let bucket = if plan.step == Step::All { Ok(plan.from..plan.to) } else { plan.step.bucket(&plan.tz, start) };
            let end = bucket.map_err(|why| bad("tz_not_hour_aligned", why))?.end;
            json::point(&mut out, plan, start, end, rollup);
        }
        out.push_str("]}");
    }
    out.push_str("],\"completeness\":");
    completeness.render(&mut out, usize::MAX);
    out.push('}');
    Ok(out)
}

fn hour(out: &mut String, hour: Option<Hour>) {
    match hour {
        Some(hour) => json::time(out, hour.start()),
        None => out.push_str("null"),
    }
}

/// Ends a list of names with what it lacks.
fn finish(mut out: String, completeness: &Completeness) -> Result<String, QueryError> {
    out.push_str(",\"completeness\":");
    completeness.render(&mut out, usize::MAX);
    out.push('}');
    Ok(out)
}

fn store_error(error: StoreError) -> QueryError {
    match error {
        error @ StoreError::TooManySeries { .. } => {
            QueryError::new(QueryErrorKind::TooLarge, "too_many_series", error.to_string())
        }
        StoreError::Invalid(why) => QueryError::new(QueryErrorKind::Internal, "store_invalid", why),
        StoreError::TooLong(why) => {
            let why = format!("the store did not finish this question within store.timeout: ask for less at once ({why})");
            QueryError::new(QueryErrorKind::Unavailable, "query_too_slow", why)
        }
        other => QueryError::new(QueryErrorKind::Unavailable, "store_unavailable", other.to_string()),
    }
}

impl QueryService for QueryEngine {
    fn query(&self, tenant: &str, params: &[(String, String)], budget: &Budget) -> Result<String, QueryError> {
        let plan = plan(params, self.clock.now())?;
        if plan.table {
            return Err(bad("format_invalid", "this answer is JSON: format=csv is for GET /v1/query"));
        }
        self.answer(tenant, &plan, budget, render)
    }

    fn table(&self, tenant: &str, params: &[(String, String)], budget: &Budget) -> Result<Table, QueryError> {
        self.answer(tenant, &plan(params, self.clock.now())?, budget, csv::table)
    }

    fn metrics(&self, tenant: &str, params: &[(String, String)], budget: &Budget) -> Result<String, QueryError> {
        let asked = Listing::of(params, &[])?;
        let page = asked.page(budget);
        let question = asked.question(tenant, Names::Metrics);
        let stored = |snapshot: &mut dyn StoreSnapshot| Ok(Catalogue::stored(snapshot.metrics(tenant, &page)?));
        let found = self.names(&question, stored, Catalogue::add, budget);
        let (catalogue, completeness) = found.map_err(|error| self.failed(error, budget))?;
        let mut metrics: Vec<MetricInfo> = catalogue.metrics().filter(|info| page.holds(&info.metric)).collect();
        let next = asked.cut(&mut metrics).map(|last| last.metric.clone());
        let mut out = "{\"metrics\":[".to_owned();
        for (at, info) in metrics.iter().enumerate() {
            out.push_str(if at > 0 { ",{\"metric\":" } else { "{\"metric\":" });
            json::string(&mut out, &info.metric);
            _ = write!(out, ",\"labels\":{}", serde_json::Value::from(info.labels.clone()));
            _ = write!(out, ",\"series\":{},\"first\":", info.series);
            hour(&mut out, info.first);
            out.push_str(",\"last\":");
            hour(&mut out, info.last);
            out.push('}');
        }
        out.push(']');
        if let Some(next) = next {
            out.push_str(",\"next\":");
            json::string(&mut out, &next);
        }
        finish(out, &completeness)
    }

    fn label_values(&self, tenant: &str, name: &str, params: &[(String, String)], budget: &Budget) -> Result<String, QueryError> {
        let asked = Listing::of(params, &["metric"])?;
        check_label_name(name).map_err(|why| bad("label_invalid", why))?;
        asked.get("metric").map_or(Ok(()), check_metric)?;
        let page = asked.page(budget);
        let metric = asked.get("metric");
        let question = asked.question(tenant, Names::Values(name, metric));
        let stored = |snapshot: &mut dyn StoreSnapshot| {
            let values: BTreeSet<String> = snapshot.label_values(tenant, name, metric, &page)?.into_iter().collect();
            Ok(values)
        };
        let add = |values: &mut BTreeSet<String>, growth: &Growth| values.extend(growth.values.iter().cloned());
        let (values, completeness) = self.names(&question, stored, add, budget).map_err(|error| self.failed(error, budget))?;
        let mut values: Vec<String> = values.into_iter().collect();
        let next = asked.cut(&mut values).cloned();
        let mut out = "{\"label\":".to_owned();
        json::string(&mut out, name);
        _ = write!(out, ",\"values\":{}", serde_json::Value::from(values));
        if let Some(next) = next {
            out.push_str(",\"next\":");
            json::string(&mut out, &next);
        }
        finish(out, &completeness)
    }

    fn accounting(&self, tenant: &str, params: &[(String, String)], budget: &Budget) -> Result<String, QueryError> {
        let params = Params::read(params, &["from", "to"])?;
        let now = self.clock.now();
        let from = params.time("from")?.unwrap_or(now - 24 * HOUR_MS);
        let to = params.time("to")?.unwrap_or(now + HOUR_MS);
        if from >= to {
            return Err(bad("range_empty", "from must be before to"));
        }
        // Outward to whole hours, as in queries.
        let (from, to) = (Hour::of(from), Hour::of(to + HOUR_MS - 1));
        let failed = |error| self.failed(error, budget);
        let (mut books, mut completeness) = self.books(tenant, from, to, budget).map_err(failed)?;
        if completeness.moved() {
            (books, completeness) = self.books(tenant, from, to, budget).map_err(failed)?;
        }
        Ok(books.render(&completeness))
    }
}
