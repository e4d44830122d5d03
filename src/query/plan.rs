//! From parameters to a checked plan. Pure.

use jiff::tz::TimeZone;

use super::matchers;
use super::service::{QueryError, QueryErrorKind};
use super::steps::Step;
use crate::model::window::{HOUR_MS, Hour, Millis};
use crate::persistence::store::Matcher;

/// One requested aggregate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Agg {
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

const AGGS: &[(&str, Agg)] = &[
    ("count", Agg::Count),
    ("sum", Agg::Sum),
    ("avg", Agg::Avg),
    ("min", Agg::Min),
    ("max", Agg::Max),
    ("distinct", Agg::Distinct),
    ("rate", Agg::Rate),
    ("p50", Agg::Quantile(0.5, "p50")),
    ("p90", Agg::Quantile(0.9, "p90")),
    ("p95", Agg::Quantile(0.95, "p95")),
    ("p99", Agg::Quantile(0.99, "p99")),
    ("p99.9", Agg::Quantile(0.999, "p99.9")),
];

impl Agg {
    /// Its key in answers.
    pub fn name(self) -> &'static str {
        AGGS.iter().find(|(_, agg)| *agg == self).map_or("", |(name, _)| name)
    }
}

const PARAMETERS: &[&str] = &["metric", "from", "to", "step", "tz", "agg", "by", "where", "limit", "order"];

/// How the series of an answer are ordered and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By labels.
    Labels,
    /// By the first aggregate over the whole range, largest first.
    Descending,
    /// The same, smallest first.
    Ascending,
}

/// A checked query.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which metric.
    pub metric: String,
    /// First millisecond, snapped outward to the step.
    pub from: Millis,
    /// First millisecond behind, snapped outward to the step.
    pub to: Millis,
    /// The step.
    pub step: Step,
    /// The time zone of the steps.
    pub tz: TimeZone,
    /// The aggregates, in the order asked for.
    pub aggs: Vec<Agg>,
    /// The labels to group by.
    pub by: Vec<String>,
    /// The matchers.
    pub matchers: Vec<Matcher>,
    /// At most this many series.
    pub limit: Option<usize>,
    /// Order of the series.
    pub order: Order,
    /// What identifies the query in the cache, range left out.
    pub key: String,
}

/// A refusal of the parameters.
pub fn bad(code: &'static str, message: impl Into<String>) -> QueryError {
    QueryError { code, message: message.into(), kind: QueryErrorKind::Bad }
}

/// Checks the parameters.
///
/// # Errors
/// Names the parameter and what it takes.
pub fn plan(params: &[(String, String)], now: Millis) -> Result<Plan, QueryError> {
    if let Some((unknown, _)) = params.iter().find(|(name, _)| !PARAMETERS.contains(&name.as_str())) {
        let nearest = PARAMETERS
            .iter()
            .max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)))
            .unwrap_or(&"");
        return Err(bad("parameter_unknown", format!("there is no parameter {unknown:?}; did you mean {nearest:?}?")));
    }
    let get = |name: &str| params.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty());
    let metric = get("metric").ok_or_else(|| bad("metric_missing", "the parameter metric is required"))?.to_owned();
    let step =
        Step::parse(get("step").unwrap_or("1h")).ok_or_else(|| bad("step_invalid", "step is one of 1h, 6h, 1d, 1w, 1mo, all"))?;
    let tz_name = get("tz").unwrap_or("UTC");
    let tz = TimeZone::get(tz_name).map_err(|_| bad("tz_invalid", format!("there is no time zone {tz_name:?}")))?;
    let to = get("to").map_or(Ok(now), |t| time("to", t))?;
    let from = get("from").map_or(Ok(to - 24 * HOUR_MS), |t| time("from", t))?;
    if from >= to {
        return Err(bad("range_empty", "from must be before to"));
    }
    let (from, to) = step.snap(&tz, from, to).map_err(|why| bad("tz_not_hour_aligned", why))?;
    let aggs = list(get("agg").unwrap_or("count")).map(agg).collect::<Result<Vec<_>, _>>()?;
    let by: Vec<String> = get("by").map(|by| list(by).map(str::to_owned).collect()).unwrap_or_default();
    let where_text = get("where").unwrap_or("");
    let matchers = matchers::parse(where_text).map_err(|why| bad("where_invalid", format!("where: {why}")))?;
    let limit = get("limit").map(|l| l.parse().map_err(|_| bad("limit_invalid", "limit is a whole number"))).transpose()?;
    let order = match get("order") {
        None | Some("labels") => Order::Labels,
        Some("desc") => Order::Descending,
        Some("asc") => Order::Ascending,
        Some(_) => return Err(bad("order_invalid", "order is one of labels, desc, asc")),
    };
    let sketches = (aggs.contains(&Agg::Distinct), aggs.iter().any(|a| matches!(a, Agg::Quantile(..))));
    let key = format!("{:?}", (&metric, where_text, &by, step, tz_name, sketches, (step == Step::All).then_some(from)));
    Ok(Plan { metric, from, to, step, tz, aggs, by, matchers, limit, order, key })
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn agg(name: &str) -> Result<Agg, QueryError> {
    AGGS.iter().find(|(known, _)| *known == name).map(|(_, agg)| *agg).ok_or_else(|| {
        let all: Vec<_> = AGGS.iter().map(|(name, _)| *name).collect();
        bad("agg_invalid", format!("there is no aggregate {name:?}; there are {}", all.join(", ")))
    })
}

/// RFC 3339 or milliseconds since the epoch.
fn time(name: &str, text: &str) -> Result<Millis, QueryError> {
    let parsed = text.parse::<i64>().ok().or_else(|| text.parse::<jiff::Timestamp>().ok().map(|t| t.as_millisecond()));
    let limit = 253_402_300_799_000;
    parsed.filter(|t| (-limit..=limit).contains(t)).ok_or_else(|| {
        bad("time_invalid", format!("{name} is a time such as 2026-01-01T10:00:00Z, or milliseconds since 1970; not {text:?}"))
    })
}

impl Plan {
    /// First hour.
    pub fn first_hour(&self) -> Hour {
        Hour::of(self.from)
    }
    /// First hour behind.
    pub fn end_hour(&self) -> Hour {
        Hour::of(self.to + HOUR_MS - 1)
    }
    /// Whether a quantile is asked for.
    pub fn wants_quantiles(&self) -> bool {
        self.aggs.iter().any(|agg| matches!(agg, Agg::Quantile(..)))
    }
    /// Whether distinct users are asked for.
    pub fn wants_distinct(&self) -> bool {
        self.aggs.contains(&Agg::Distinct)
    }
}
