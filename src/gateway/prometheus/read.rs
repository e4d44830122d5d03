//! Reads what a plan needs from the query engine, and collects what the answers lack.

use super::error::PromError;
use crate::gateway::params::LAST;
use crate::model::budget::QueryBudget;
use crate::model::event::check_metric;
use crate::model::query_charge::QueryCharge;
use crate::model::rollup::Rollup;
use crate::model::window::{HOUR_MS, Millis};
use crate::promql::{Fetch, FetchedSeries, Grouping};
use crate::query::completeness::QueryCompleteness;
use crate::query::error::QueryError;
use crate::query::request::{Aggregate, QuerySpec, SeriesOrder};
use crate::query::service::QueryService;
use crate::query::steps::TimeStep;

/// Reads for one request, and collects what its answers lack.
pub(super) struct Reader<'a> {
    pub(super) queries: &'a dyn QueryService,
    pub(super) tenant: &'a str,
    pub(super) budget: &'a QueryBudget,
    pub(super) max_points: usize,
    charge: QueryCharge<'a>,
    warnings: Vec<String>,
    pub(super) infos: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        queries: &'a dyn QueryService,
        tenant: &'a str,
        budget: &'a QueryBudget,
        max_points: usize,
    ) -> Self {
        let (charge, warnings, infos) = (QueryCharge::new(budget), Vec::new(), Vec::new());
        Self { queries, tenant, budget, max_points, charge, warnings, infos }
    }

    /// Charges memory that the answer needs.
    ///
    /// # Errors
    /// If the query has been ended.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), PromError> {
        self.charge.add_bytes(bytes);
        match self.budget.abort_reason() {
            Some(why) => Err(QueryError::ended(why, self.max_points).into()),
            None => Ok(()),
        }
    }

    /// What the answer lacks, and what its reader should know.
    pub(super) fn take_notes(&mut self) -> (Vec<String>, Vec<String>) {
        (std::mem::take(&mut self.warnings), std::mem::take(&mut self.infos))
    }

    /// Adds a warning, once.
    pub(super) fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Notes what an answer of the query engine lacks.
    pub(super) fn note_completeness(&mut self, metric: Option<&str>, found: &QueryCompleteness) {
        if found.is_partial() {
            self.warn(partial(found));
        }
        if let (Some(events @ 1..), Some(metric)) = (found.overflow, metric) {
            self.warn(format!(
                "{events} events of {metric} came above the limit of series and have lost their \
                 labels: they are in the series with __overflow__=\"true\""
            ));
        }
    }

    /// Reads what a plan needs of one metric.
    pub(super) fn fetch(&mut self, fetch: &Fetch) -> Result<Vec<FetchedSeries>, PromError> {
        let hours = bound(fetch.hours.start)..bound(fetch.hours.end);
        // No event has such a metric.
        if check_metric(&fetch.metric).is_err() || hours.is_empty() {
            return Ok(Vec::new());
        }
        let mut aggregates = vec![Aggregate::Count];
        aggregates.extend(fetch.distinct.then_some(Aggregate::Distinct));
        aggregates.extend(fetch.quantiles.then_some(Aggregate::Quantile(0.5, "p50")));
        let (group_by, per_series) = match &fetch.grouping {
            Grouping::Series => (Vec::new(), true),
            Grouping::Labels(names) => (names.clone(), false),
        };
        let spec = QuerySpec {
            metric: fetch.metric.clone(),
            from: hours.start * HOUR_MS,
            to: hours.end * HOUR_MS,
            step: match fetch.unit {
                None => TimeStep::All,
                Some(24) => TimeStep::Day,
                Some(6) => TimeStep::Hours(6),
                Some(_) => TimeStep::Hours(1),
            },
            tz: jiff::tz::TimeZone::UTC,
            aggregates,
            group_by,
            per_series,
            matchers: fetch.matchers.clone(),
            limit: None,
            order: SeriesOrder::Labels,
        };
        let request = spec.check()?;
        let mut answer = self.queries.query(self.tenant, &request, self.budget)?;
        let groups = std::mem::take(&mut answer.series);
        self.note_completeness(Some(&fetch.metric), &answer.completeness);
        // What the answer held is charged again here before it is given back there.
        self.charge(groups.iter().map(|group| bytes_of(&group.key, &group.points)).sum())?;
        drop(answer);
        let series = groups.into_iter().map(|group| FetchedSeries {
            labels: fetch.grouping.labels(group.key),
            points: group.points,
        });
        Ok(series.collect())
    }
}

/// An hour within the calendar's range; no event is beyond.
fn bound(hour: i64) -> i64 {
    hour.clamp(-LAST / HOUR_MS, LAST / HOUR_MS)
}

fn bytes_of(key: &[String], points: &[(Millis, Rollup)]) -> usize {
    let sketches = points
        .iter()
        .map(|(_, rollup)| rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes());
    key.iter().map(|text| 64 + text.len()).sum::<usize>()
        + size_of_val(points)
        + sketches.sum::<usize>()
}

fn partial(found: &QueryCompleteness) -> String {
    const NAMED: usize = 8;
    let named: Vec<String> = found
        .missing
        .iter()
        .take(NAMED)
        .map(|missing| match missing.behind_ms {
            Some(behind) => {
                format!("{} ({}, {} s behind)", missing.shard.0, missing.reason, behind / 1_000)
            }
            None => format!("{} ({})", missing.shard.0, missing.reason),
        })
        .collect();
    let more = found.missing.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!(
        "partial: the answer may lack events of {} of {} shards: {}{more}",
        found.missing.len(),
        found.shards,
        named.join(", ")
    )
}
