//! What is asked: a metric, a range, steps, aggregates, groups and matchers, checked against each
//! other. Pure.

use jiff::tz::TimeZone;

use super::steps::TimeStep;
use crate::model::event::{self, MAX_LABELS};
use crate::model::matcher::Matcher;
use crate::model::series::OVERFLOW_LABEL;
use crate::model::window::{HOUR_MS, Hour, Millis};

/// Characters of a name that a refusal repeats.
const MAX_EXCERPT: usize = 64;

/// One figure of each point of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aggregate {
    /// Events.
    Count,
    /// Sum of the values.
    Sum,
    /// Sum by values.
    Avg,
    /// Smallest value.
    Min,
    /// Largest value.
    Max,
    /// Distinct users.
    Distinct,
    /// Events a second.
    Rate,
    /// A quantile, and its key in answers.
    Quantile(f64, &'static str),
}

/// The aggregates by their names.
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
    /// Its key in answers.
    pub fn name(self) -> &'static str {
        AGGREGATES.iter().find(|(_, aggregate)| *aggregate == self).map_or("", |(name, _)| name)
    }
}

/// How the series of an answer are ordered and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesOrder {
    /// By labels.
    Labels,
    /// By the first aggregate over the whole range, largest first.
    Descending,
    /// The same, smallest first.
    Ascending,
}

/// A query before it is checked.
#[derive(Debug, Clone)]
pub struct QuerySpec {
    /// Which metric.
    pub metric: String,
    /// First millisecond.
    pub from: Millis,
    /// Exclusive end.
    pub to: Millis,
    /// The step.
    pub step: TimeStep,
    /// The time zone of the steps.
    pub tz: TimeZone,
    /// The aggregates, in the order asked for.
    pub aggregates: Vec<Aggregate>,
    /// The labels to group by.
    pub group_by: Vec<String>,
    /// All must match.
    pub matchers: Vec<Matcher>,
    /// At most this many series.
    pub limit: Option<usize>,
    /// Order of the series.
    pub order: SeriesOrder,
}

/// A checked query.
#[derive(Debug, Clone)]
pub struct QueryRequest {
    /// Which metric.
    pub metric: String,
    /// First millisecond, snapped outward to the step.
    pub from: Millis,
    /// Exclusive end, snapped outward to the step.
    pub to: Millis,
    /// The step.
    pub step: TimeStep,
    /// The time zone of the steps.
    pub tz: TimeZone,
    /// The aggregates, in the order asked for.
    pub aggregates: Vec<Aggregate>,
    /// The labels to group by.
    pub group_by: Vec<String>,
    /// All must match.
    pub matchers: Vec<Matcher>,
    /// At most this many series.
    pub limit: Option<usize>,
    /// Order of the series.
    pub order: SeriesOrder,
    /// What finds the overflow series, if it may hold events that the answer would tell apart.
    pub overflow: Option<[Matcher; 1]>,
    /// What identifies the query in the cache, range left out.
    pub cache_key: String,
}

/// What a query breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The range holds nothing.
    #[error("from must be before to")]
    EmptyRange,
    /// The steps cannot be cut in this zone.
    #[error("{0}")]
    TimeZone(String),
    /// An aggregate is there twice.
    #[error("the aggregate {0} is asked for twice")]
    RepeatedAggregate(&'static str),
    /// The labels to group by are too many, not labels, or there twice.
    #[error("by: {0}")]
    GroupBy(String),
}

impl QuerySpec {
    /// Checks it, and snaps the range outward to the step.
    ///
    /// # Errors
    /// What it breaks.
    pub fn check(self) -> Result<QueryRequest, InvalidRequest> {
        let Self { metric, from, to, step, tz, aggregates, group_by, matchers, limit, order } =
            self;
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
        let whole_range = (step == TimeStep::All).then_some(from);
        let cache_key = format!(
            "{:?}",
            (&metric, &matchers, &group_by, step, tz.iana_name(), sketches, whole_range)
        );
        // Labels of what is beyond the limit of series are not kept, so who asks for labels is told
        // how much that is.
        let mut names =
            group_by.iter().map(String::as_str).chain(matchers.iter().map(Matcher::label));
        let labelled = names.any(|name| name != OVERFLOW_LABEL.0);
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
            matchers,
            limit,
            order,
            overflow,
            cache_key,
        })
    }
}

/// None twice, so there are at most as many as there are.
fn check_aggregates(aggregates: &[Aggregate]) -> Result<(), InvalidRequest> {
    let twice =
        aggregates.iter().enumerate().find(|(at, aggregate)| aggregates[..*at].contains(aggregate));
    twice.map_or(Ok(()), |(_, aggregate)| Err(InvalidRequest::RepeatedAggregate(aggregate.name())))
}

/// No more labels than a series can have, each a name that a label can have, none twice: a group
/// holds a value for each.
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

/// Whether a series can have a label of this name: one that events may carry, or that of the
/// overflow series.
pub(crate) fn check_label_name(name: &str) -> Result<(), String> {
    if name == OVERFLOW_LABEL.0 {
        return Ok(());
    }
    event::check_label(name, "")
        .map_err(|why| format!("{:?} is no label: {}", excerpt(name), why.message))
}

/// What an answer repeats of a text that may be a whole request long.
pub fn excerpt(text: &str) -> String {
    text.chars().take(MAX_EXCERPT).collect()
}

impl QueryRequest {
    /// First hour.
    pub fn first_hour(&self) -> Hour {
        Hour::of(self.from)
    }
    /// Exclusive end.
    pub fn end_hour(&self) -> Hour {
        Hour::of(self.to + HOUR_MS - 1)
    }
    /// Whether a quantile is asked for.
    pub fn wants_quantiles(&self) -> bool {
        self.aggregates.iter().any(|aggregate| matches!(aggregate, Aggregate::Quantile(..)))
    }
    /// Whether distinct users are asked for.
    pub fn wants_distinct(&self) -> bool {
        self.aggregates.contains(&Aggregate::Distinct)
    }

    /// The bucket that begins at `start`.
    ///
    /// # Errors
    /// If the calendar ends before.
    pub fn bucket(&self, start: Millis) -> Result<std::ops::Range<Millis>, String> {
        if self.step == TimeStep::All {
            Ok(self.from..self.to)
        } else {
            self.step.bucket(&self.tz, start)
        }
    }
}
