//! From parameters to a checked plan. Pure.

use jiff::tz::TimeZone;

use super::matchers::{self, check_label_name};
use super::params::{Params, bad, shown};
use super::service::QueryError;
use super::steps::{STEPS, Step};
use crate::model::event::{self, MAX_LABELS};
use crate::model::series::OVERFLOW_LABEL;
use crate::model::window::{HOUR_MS, Hour, Millis};
use crate::persistence::store::Matcher;

/// One requested aggregate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Agg {
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
    pub(super) fn name(self) -> &'static str {
        AGGS.iter().find(|(_, agg)| *agg == self).map_or("", |(name, _)| name)
    }
}

const PARAMETERS: &[&str] = &["metric", "from", "to", "step", "tz", "agg", "by", "where", "limit", "order", "numbers", "format"];

/// How the series of an answer are ordered and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// By labels.
    Labels,
    /// By the first aggregate over the whole range, largest first.
    Descending,
    /// The same, smallest first.
    Ascending,
}

const ORDERS: &[(&str, Order)] = &[("labels", Order::Labels), ("desc", Order::Descending), ("asc", Order::Ascending)];

/// A checked query.
#[derive(Debug, Clone)]
pub(super) struct Plan {
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
    /// Whether decimals are written as strings, for readers whose numbers are doubles.
    pub strings: bool,
    /// Whether a table of CSV is wanted.
    pub table: bool,
    /// What finds the overflow series, if it may hold events that the answer would tell apart.
    pub overflow: Option<[Matcher; 1]>,
    /// What identifies the query in the cache, range left out.
    pub key: String,
}

/// Checks the parameters.
///
/// # Errors
/// Names the parameter and what it takes.
pub(super) fn plan(params: &[(String, String)], now: Millis) -> Result<Plan, QueryError> {
    let params = Params::read(params, PARAMETERS)?;
    let metric = params.get("metric").ok_or_else(|| bad("metric_missing", "the parameter metric is required"))?.to_owned();
    check_metric(&metric)?;
    let step = params.word("step", "step_invalid", STEPS)?.unwrap_or(Step::Hours(1));
    let tz_name = params.get("tz").unwrap_or("UTC");
    let tz = TimeZone::get(tz_name).map_err(|_| bad("tz_invalid", format!("there is no time zone {:?}", shown(tz_name))))?;
    let to = params.time("to")?.unwrap_or(now);
    let from = params.time("from")?.unwrap_or(to - 24 * HOUR_MS);
    if from >= to {
        return Err(bad("range_empty", "from must be before to"));
    }
    let (from, to) = step.snap(&tz, from, to).map_err(|why| bad("tz_not_hour_aligned", why))?;
    let aggs = aggs(params.get("agg").unwrap_or("count"))?;
    let by = params.get("by").map(labels).transpose()?.unwrap_or_default();
    let where_text = params.get("where").unwrap_or("");
    let matchers = matchers::parse(where_text).map_err(|why| bad("where_invalid", format!("where: {why}")))?;
    let limit = params.get("limit").map(limit).transpose()?;
    let order = params.word("order", "order_invalid", ORDERS)?.unwrap_or(Order::Labels);
    let strings = params.word("numbers", "numbers_invalid", &[("json", false), ("string", true)])?.unwrap_or(false);
    let table = params.word("format", "format_invalid", &[("json", false), ("csv", true)])?.unwrap_or(false);
    let sketches = (aggs.contains(&Agg::Distinct), aggs.iter().any(|a| matches!(a, Agg::Quantile(..))));
    let key = format!("{:?}", (&metric, where_text, &by, step, tz_name, sketches, (step == Step::All).then_some(from)));
    // Labels of what is beyond the limit of series are not kept, so who asks for labels is told how much that is.
    let labelled = by.iter().map(String::as_str).chain(matchers.iter().map(Matcher::label)).any(|name| name != OVERFLOW_LABEL.0);
    let overflow = labelled.then(|| [Matcher::Equal(OVERFLOW_LABEL.0.to_owned(), OVERFLOW_LABEL.1.to_owned())]);
    Ok(Plan { metric, from, to, step, tz, aggs, by, matchers, limit, order, strings, table, overflow, key })
}

/// The items of a list; one that is empty is an item too, which no list takes.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

/// The aggregates of `agg`: at most those that there are, because none may be asked for twice.
fn aggs(text: &str) -> Result<Vec<Agg>, QueryError> {
    let mut aggs = Vec::new();
    for name in list(text) {
        let Some((_, agg)) = AGGS.iter().find(|(known, _)| *known == name) else {
            let all: Vec<_> = AGGS.iter().map(|(name, _)| *name).collect();
            return Err(bad("agg_invalid", format!("there is no aggregate {:?}; there are {}", shown(name), all.join(", "))));
        };
        if aggs.contains(agg) {
            return Err(bad("agg_invalid", format!("the aggregate {name} is asked for twice")));
        }
        aggs.push(*agg);
    }
    Ok(aggs)
}

/// The labels of `by`: no more than a series can have, each a name that a label can have, none twice. A group holds a value for each.
fn labels(text: &str) -> Result<Vec<String>, QueryError> {
    let mut labels: Vec<String> = Vec::new();
    for name in list(text) {
        check_label_name(name).map_err(|why| bad("by_invalid", format!("by: {why}")))?;
        if labels.iter().any(|known| known == name) {
            return Err(bad("by_invalid", format!("by: the label {name} is named twice")));
        }
        if labels.len() == MAX_LABELS {
            return Err(bad("by_invalid", format!("by: more than {MAX_LABELS} labels, which no series has")));
        }
        labels.push(name.to_owned());
    }
    Ok(labels)
}

/// Whether there can be a metric of this name: to ask for another one is a mistake, and "no data" would hide it.
pub(super) fn check_metric(metric: &str) -> Result<(), QueryError> {
    event::check_metric(metric).map_err(|why| bad("metric_invalid", format!("{:?} is no metric: {}", shown(metric), why.message)))
}

fn limit(text: &str) -> Result<usize, QueryError> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| bad("limit_invalid", format!("limit is a whole number from 1 on, not {:?}", shown(text))))
}

impl Plan {
    /// First hour.
    pub(super) fn first_hour(&self) -> Hour {
        Hour::of(self.from)
    }
    /// First hour behind.
    pub(super) fn end_hour(&self) -> Hour {
        Hour::of(self.to + HOUR_MS - 1)
    }
    /// Whether a quantile is asked for.
    pub(super) fn wants_quantiles(&self) -> bool {
        self.aggs.iter().any(|agg| matches!(agg, Agg::Quantile(..)))
    }
    /// Whether distinct users are asked for.
    pub(super) fn wants_distinct(&self) -> bool {
        self.aggs.contains(&Agg::Distinct)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(params: &[(&str, &str)]) -> Result<Plan, QueryError> {
        let params: Vec<(String, String)> = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        plan(&params, 1_767_225_600_000)
    }

    fn refusal(params: &[(&str, &str)]) -> &'static str {
        planned(params).map(|plan| plan.key).expect_err("refused").code
    }

    #[test]
    fn groups_are_by_at_most_sixteen_different_labels() {
        let names = |n: usize| (0..n).map(|i| format!("l{i}")).collect::<Vec<_>>().join(",");
        assert_eq!(planned(&[("metric", "m"), ("by", &names(16))]).expect("as many as a series has").by.len(), 16);
        assert_eq!(
            planned(&[("metric", "m"), ("by", " a , __overflow__")]).expect("spaces do not count").by,
            ["a", "__overflow__"]
        );
        let long = "a".repeat(65);
        for by in
            [names(17).as_str(), "a,a", "a,b,a", "a,,b", ",", "a,", "1a", "a b", "ä", "__name__", &long, &"a,".repeat(2_000)]
        {
            assert_eq!(refusal(&[("metric", "m"), ("by", by)]), "by_invalid", "{by:.40}");
        }
        let whole = planned(&[("metric", "m"), ("by", &"x".repeat(60_000))]).map(|plan| plan.key).expect_err("refused");
        assert!(whole.message.len() < 400, "an answer does not repeat a whole request: {}", whole.message.len());
    }

    #[test]
    fn an_aggregate_is_asked_for_once() {
        let all: Vec<&str> = AGGS.iter().map(|(name, _)| *name).collect();
        assert_eq!(planned(&[("metric", "m"), ("agg", &all.join(","))]).expect("all of them").aggs.len(), 12);
        for agg in ["count,count", "sum,avg,sum", "count,", "", "mean", "p95,p95"] {
            let code = if agg.is_empty() { "parameter_empty" } else { "agg_invalid" };
            assert_eq!(refusal(&[("metric", "m"), ("agg", agg)]), code, "{agg}");
        }
    }
}
