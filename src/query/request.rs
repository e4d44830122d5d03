//! A query: metric, range, step, aggregates, groups and matchers, validated against each other.
//! Pure.

use jiff::tz::TimeZone;

use super::steps::TimeStep;
use crate::model::event::{MAX_LABELS, check_label_name};
use crate::model::matcher::Matcher;
use crate::model::series::OVERFLOW_LABEL;
use crate::model::window::{HOUR_MS, Hour, Millis};

/// What to compute for each point of an answer.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aggregate {
    /// The number of events.
    Count,
    /// The sum of the values; events without a value are not in it.
    Sum,
    /// The sum divided by the number of events that have a value.
    Avg,
    Min,
    Max,
    /// An estimate of the number of distinct users.
    Distinct,
    /// Events per second of the bucket.
    Rate,
    /// A quantile between 0 and 1, and its key in answers.
    Quantile(f64, &'static str),
}

/// The aggregates with their names in requests and answers.
pub const AGGREGATES: &[(&str, Aggregate)] = &[
    ("count", Aggregate::Count),
    ("sum", Aggregate::Sum),
    ("avg", Aggregate::Avg),
    ("min", Aggregate::Min),
    ("max", Aggregate::Max),
    ("distinct", Aggregate::Distinct),
    ("rate", Aggregate::Rate),
    ("p50", Aggregate::Quantile(0.5, "p50")),
    ("p90", Aggregate::Quantile(0.9, "p90")),
    ("p95", Aggregate::Quantile(0.95, "p95")),
    ("p99", Aggregate::Quantile(0.99, "p99")),
    ("p99.9", Aggregate::Quantile(0.999, "p99.9")),
];

impl Aggregate {
    /// The key of this aggregate in answers.
    pub fn name(self) -> &'static str {
        AGGREGATES.iter().find(|(_, aggregate)| *aggregate == self).map_or("", |(name, _)| name)
    }
}

/// How the series of an answer are sorted before `limit` truncates them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesOrder {
    /// By their `by` labels, ascending.
    Labels,
    /// By the first aggregate over the whole range, largest first.
    Descending,
    /// By the first aggregate over the whole range, smallest first.
    Ascending,
}

/// A query as parsed from a request, not validated yet.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct QuerySpec {
    pub metric: String,
    /// Inclusive start of the range.
    pub from: Millis,
    /// Exclusive end of the range.
    pub to: Millis,
    pub step: TimeStep,
    /// Time zone in which steps longer than an hour are cut.
    pub tz: TimeZone,
    /// In the order requested, which is the order of the answer.
    pub aggregates: Vec<Aggregate>,
    /// Names of the labels to group by.
    pub group_by: Vec<String>,
    /// Whether every series is a group of its own, whose key is its labels: name, value, name,
    /// value and so on. `group_by` is empty then.
    pub per_series: bool,
    /// Filters on labels; a series must pass all of them.
    pub matchers: Vec<Matcher>,
    /// Maximum number of series in the answer; all if None.
    pub limit: Option<usize>,
    pub order: SeriesOrder,
}

/// A validated query. Fields without a comment are those of [`QuerySpec`].
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct QueryRequest {
    pub metric: String,
    /// Inclusive start, snapped outward to the step.
    pub from: Millis,
    /// Exclusive end, snapped outward to the step.
    pub to: Millis,
    pub step: TimeStep,
    pub tz: TimeZone,
    pub aggregates: Vec<Aggregate>,
    pub group_by: Vec<String>,
    pub per_series: bool,
    pub matchers: Vec<Matcher>,
    pub limit: Option<usize>,
    pub order: SeriesOrder,
    /// Finds the overflow series. Set if the query groups or filters by labels, because the
    /// overflow series may then hold events that belong in the answer.
    pub overflow: Option<[Matcher; 1]>,
    /// Identifies the query in the cache. Excludes the range, unless the step is `all`.
    pub cache_key: String,
}

/// Why a query was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// `from` is not before `to`.
    #[error("from must be before to")]
    EmptyRange,
    /// Steps in this zone do not fall on whole UTC hours, or are not contiguous.
    #[error("{0}")]
    TimeZone(String),
    /// The same aggregate is requested twice.
    #[error("the aggregate {0} is asked for twice")]
    RepeatedAggregate(&'static str),
    /// More labels than a series can have, an invalid label name, or a duplicate.
    #[error("by: {0}")]
    GroupBy(String),
}

impl QuerySpec {
    /// Validates the query and snaps its range outward to the step.
    ///
    /// # Errors
    /// If the range is empty, the steps do not fit the zone, or aggregates or labels are invalid.
    pub fn check(self) -> Result<QueryRequest, InvalidRequest> {
        let Self { metric, from, to, step, tz, aggregates, group_by, .. } = self;
        let Self { per_series, matchers, limit, order, .. } = self;
        if from >= to {
            return Err(InvalidRequest::EmptyRange);
        }
        let (from, to) = step.snap(&tz, from, to).map_err(InvalidRequest::TimeZone)?;
        check_aggregates(&aggregates)?;
        check_group_by(&group_by)?;
        let sketches = (
            aggregates.contains(&Aggregate::Distinct),
            aggregates.iter().any(|a| matches!(a, Aggregate::Quantile(..))),
        );
        // With one point for the whole range, the start of the range is the key of each cached
        // point, so two ranges must not share an entry.
        let whole_range = (step == TimeStep::All).then_some(from);
        let cache_key = format!(
            "{:?}",
            (
                &metric,
                &matchers,
                &group_by,
                per_series,
                step,
                tz.iana_name(),
                sketches,
                whole_range
            )
        );
        // Events above the series limit lose their labels. A query that depends on labels also
        // reports how many events that concerns.
        let mut names =
            group_by.iter().map(String::as_str).chain(matchers.iter().map(Matcher::label));
        let labelled = per_series || names.any(|name| name != OVERFLOW_LABEL.0);
        let overflow = labelled
            .then(|| [Matcher::Equal(OVERFLOW_LABEL.0.to_owned(), OVERFLOW_LABEL.1.to_owned())]);
        Ok(QueryRequest {
            metric,
            from,
            to,
            step,
            tz,
            aggregates,
            group_by,
            per_series,
            matchers,
            limit,
            order,
            overflow,
            cache_key,
        })
    }
}

/// Rejects duplicates, which also limits the list to the number of aggregates that exist.
fn check_aggregates(aggregates: &[Aggregate]) -> Result<(), InvalidRequest> {
    let twice =
        aggregates.iter().enumerate().find(|(at, aggregate)| aggregates[..*at].contains(aggregate));
    twice.map_or(Ok(()), |(_, aggregate)| Err(InvalidRequest::RepeatedAggregate(aggregate.name())))
}

/// Accepts at most as many labels as a series can have, with valid names and without duplicates.
/// Every group stores a value per label, so this bounds the memory of a group.
fn check_group_by(labels: &[String]) -> Result<(), InvalidRequest> {
    let refused = |why: String| Err(InvalidRequest::GroupBy(why));
    for (at, name) in labels.iter().enumerate() {
        check_label_name(name).map_err(InvalidRequest::GroupBy)?;
        if labels[..at].contains(name) {
            return refused(format!("the label {name} is named twice"));
        }
        if at == MAX_LABELS {
            return refused(format!("more than {MAX_LABELS} labels, which no series has"));
        }
    }
    Ok(())
}

impl QueryRequest {
    /// The hour that holds the start of the range.
    pub fn first_hour(&self) -> Hour {
        Hour::of(self.from)
    }
    /// Exclusive end of the range, rounded up to a whole hour.
    pub fn end_hour(&self) -> Hour {
        Hour::of(self.to + HOUR_MS - 1)
    }
    /// Whether any aggregate is a quantile.
    pub fn wants_quantiles(&self) -> bool {
        self.aggregates.iter().any(|aggregate| matches!(aggregate, Aggregate::Quantile(..)))
    }
    /// Whether any aggregate counts distinct users.
    pub fn wants_distinct(&self) -> bool {
        self.aggregates.contains(&Aggregate::Distinct)
    }

    /// The bucket that starts at `start`.
    ///
    /// # Errors
    /// If the end of the bucket is beyond the calendar's range.
    pub fn bucket(&self, start: Millis) -> Result<std::ops::Range<Millis>, String> {
        if self.step == TimeStep::All {
            Ok(self.from..self.to)
        } else {
            self.step.bucket(&self.tz, start)
        }
    }
}
