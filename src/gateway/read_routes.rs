//! The read routes: parameters to a question, and an answer to JSON.

use crate::actors::catalogue;
use crate::api::{self, timestamp};
use crate::model::budget::QueryBudget;
use crate::model::event::{self, EventError};
use crate::model::window::{HOUR_MS, Hour, Millis};
use crate::persistence::store::MetricInfo;
use crate::query::accounting::{AccountingOutput, HourlyCounts};
use crate::query::answer::{NamePage, PageRequest};
use crate::query::error::QueryError;
use crate::query::matchers;
use crate::query::request::{
    AGGREGATES, Aggregate, InvalidRequest, QueryRequest, QuerySpec, SeriesOrder, check_label_name,
    excerpt,
};
use crate::query::service::QueryService;
use crate::query::steps::{STEPS, TimeStep};

use super::csv::{self, CsvAnswer};
use super::error::ApiError;
use super::params::QueryParams;
use super::render::{self, DecimalFormat};

/// Parameters as they came.
pub type RawParams = [(String, String)];

const QUERY_PARAMETERS: &[&str] = &[
    "metric", "from", "to", "step", "tz", "agg", "by", "where", "limit", "order", "numbers",
    "format",
];
const ORDERS: &[(&str, SeriesOrder)] = &[
    ("labels", SeriesOrder::Labels),
    ("desc", SeriesOrder::Descending),
    ("asc", SeriesOrder::Ascending),
];
const DECIMALS: &[(&str, DecimalFormat)] =
    &[("json", DecimalFormat::Numbers), ("string", DecimalFormat::Strings)];
/// Names of one answer, unless it is asked for fewer; and at most.
const MAX_NAMES: usize = catalogue::MAX_NAMES - 1;

/// `GET /v1/query`
///
/// # Errors
/// 400 names the parameter and what it takes; otherwise what the engine says.
pub fn query(
    queries: &dyn QueryService,
    tenant: &str,
    given: &RawParams,
    now: Millis,
    budget: &QueryBudget,
) -> Result<String, ApiError> {
    let (request, decimals) = json_request(given, now)?;
    let mut answer = queries.query(tenant, &request, budget)?;
    render::query_answer(&mut answer, decimals).map_err(|why| QueryError::ended(why, 0).into())
}

/// The same as a table.
///
/// # Errors
/// As [`query`].
pub fn table(
    queries: &dyn QueryService,
    tenant: &str,
    given: &RawParams,
    now: Millis,
    budget: &QueryBudget,
) -> Result<CsvAnswer, ApiError> {
    let (request, AnswerFormat { decimals, .. }) = query_request(given, now)?;
    csv::table(&mut queries.query(tenant, &request, budget)?, decimals)
}

/// The same for a subscription: the update, and a hash of what is worth one.
///
/// # Errors
/// As [`query`].
pub fn update(
    queries: &dyn QueryService,
    tenant: &str,
    (name, given): (&str, &RawParams),
    now: Millis,
    budget: &QueryBudget,
) -> Result<(String, u128), ApiError> {
    let (request, decimals) = json_request(given, now)?;
    let mut answer = queries.query(tenant, &request, budget)?;
    render::update(name, &mut answer, decimals).map_err(|why| QueryError::ended(why, 0).into())
}

/// `GET /v1/metrics`
///
/// # Errors
/// As [`query`].
pub fn metrics(
    queries: &dyn QueryService,
    tenant: &str,
    given: &RawParams,
    budget: &QueryBudget,
) -> Result<String, ApiError> {
    let (_, page) = page_request(given, &[])?;
    let NamePage { items, next, completeness } = queries.metrics(tenant, &page, budget)?;
    let hour = |hour: Option<Hour>| hour.and_then(|hour| timestamp(hour.start()));
    let metric = |info: MetricInfo| api::catalogue::Metric {
        metric: info.metric,
        labels: info.labels,
        series: info.series,
        first: hour(info.first),
        last: hour(info.last),
    };
    json(&api::catalogue::MetricsAnswer {
        metrics: items.into_iter().map(metric).collect(),
        next,
        completeness: render::completeness(&completeness),
    })
}

/// `GET /v1/labels/{name}/values`
///
/// # Errors
/// As [`query`].
pub fn label_values(
    queries: &dyn QueryService,
    tenant: &str,
    label: &str,
    given: &RawParams,
    budget: &QueryBudget,
) -> Result<String, ApiError> {
    let (params, page) = page_request(given, &["metric"])?;
    check_label_name(label).map_err(|why| ApiError::bad("label_invalid", why))?;
    params.get("metric").map_or(Ok(()), check_metric)?;
    let NamePage { items: values, next, completeness } =
        queries.label_values(tenant, label, params.get("metric"), &page, budget)?;
    json(&api::catalogue::LabelValuesAnswer {
        label: label.to_owned(),
        values,
        next,
        completeness: render::completeness(&completeness),
    })
}

/// `GET /v1/accounting`
///
/// # Errors
/// As [`query`].
pub fn accounting(
    queries: &dyn QueryService,
    tenant: &str,
    given: &RawParams,
    now: Millis,
    budget: &QueryBudget,
) -> Result<String, ApiError> {
    let params = QueryParams::read(given, &["from", "to"])?;
    let from = params.time("from")?.unwrap_or(now - 24 * HOUR_MS);
    let to = params.time("to")?.unwrap_or(now + HOUR_MS);
    if from >= to {
        return Err(InvalidRequest::EmptyRange.into());
    }
    // Outward to whole hours, as in queries.
    let hours = Hour::of(from)..Hour::of(to + HOUR_MS - 1);
    let AccountingOutput { hours, unowned, completeness } =
        queries.accounting(tenant, hours, budget)?;
    let hour = |(hour, row): (Hour, HourlyCounts)| api::accounting::AccountingHour {
        hour: timestamp(hour.start()),
        accepted: row.accepted(),
        aggregated: row.aggregated,
        deduplicated: row.deduplicated,
        quarantined: row.quarantined,
        pending: row.pending,
    };
    json(&api::accounting::AccountingAnswer {
        hours: hours.into_iter().map(hour).collect(),
        nobodys_records_set_aside: unowned,
        completeness: render::completeness(&completeness),
    })
}

/// A request that takes no other form than JSON.
fn json_request(given: &RawParams, now: Millis) -> Result<(QueryRequest, DecimalFormat), ApiError> {
    match query_request(given, now)? {
        (_, AnswerFormat { table: true, .. }) => Err(ApiError::bad(
            "format_invalid",
            "this answer is JSON: format=csv is for GET /v1/query",
        )),
        (request, form) => Ok((request, form.decimals)),
    }
}

/// How an answer is to be written.
#[derive(Debug, Clone, Copy)]
pub struct AnswerFormat {
    /// How decimals are written.
    pub decimals: DecimalFormat,
    /// As CSV.
    pub table: bool,
}

/// What the parameters ask, and in which form.
///
/// # Errors
/// 400 names the parameter and what it takes.
pub fn query_request(
    given: &RawParams,
    now: Millis,
) -> Result<(QueryRequest, AnswerFormat), ApiError> {
    let params = QueryParams::read(given, QUERY_PARAMETERS)?;
    let metric = params
        .get("metric")
        .ok_or_else(|| ApiError::bad("metric_missing", "the parameter metric is required"))?;
    check_metric(metric)?;
    let tz_name = params.get("tz").unwrap_or("UTC");
    let tz = jiff::tz::TimeZone::get(tz_name).map_err(|_| {
        ApiError::bad("tz_invalid", format!("there is no time zone {:?}", excerpt(tz_name)))
    })?;
    let to = params.time("to")?.unwrap_or(now);
    let matchers = params.get("where").unwrap_or("");
    let spec = QuerySpec {
        metric: metric.to_owned(),
        from: params.time("from")?.unwrap_or(to - 24 * HOUR_MS),
        to,
        step: params.word("step", "step_invalid", STEPS)?.unwrap_or(TimeStep::Hours(1)),
        tz,
        aggregates: aggregates(params.get("agg").unwrap_or("count"))?,
        group_by: params
            .get("by")
            .map(|by| list(by).map(str::to_owned).collect())
            .unwrap_or_default(),
        matchers: matchers::parse(matchers)
            .map_err(|why| ApiError::bad("where_invalid", format!("where: {why}")))?,
        limit: params.get("limit").map(limit).transpose()?,
        order: params.word("order", "order_invalid", ORDERS)?.unwrap_or(SeriesOrder::Labels),
    };
    let decimals = params.word("numbers", "numbers_invalid", DECIMALS)?.unwrap_or_default();
    let table = params
        .word("format", "format_invalid", &[("json", false), ("csv", true)])?
        .unwrap_or(false);
    Ok((spec.check()?, AnswerFormat { decimals, table }))
}

/// Whether there can be a metric of this name: to ask for another one is a mistake, and "no data"
/// would hide it.
fn check_metric(metric: &str) -> Result<(), ApiError> {
    let refused = |why: EventError| {
        ApiError::bad(
            "metric_invalid",
            format!("{:?} is no metric: {}", excerpt(metric), why.message),
        )
    };
    event::check_metric(metric).map_err(refused)
}

/// The items of a list; one that is empty is an item too, which no list takes.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

/// The aggregates of `agg`.
fn aggregates(text: &str) -> Result<Vec<Aggregate>, ApiError> {
    let aggregate = |name: &str| match AGGREGATES.iter().find(|(known, _)| *known == name) {
        Some((_, aggregate)) => Ok(*aggregate),
        None => {
            let all: Vec<_> = AGGREGATES.iter().map(|(name, _)| *name).collect();
            let message =
                format!("there is no aggregate {:?}; there are {}", excerpt(name), all.join(", "));
            Err(ApiError::bad("agg_invalid", message))
        }
    };
    // One more than there are is enough to see that one is there twice.
    list(text).take(AGGREGATES.len() + 1).map(aggregate).collect()
}

fn limit(text: &str) -> Result<usize, ApiError> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| {
        ApiError::bad(
            "limit_invalid",
            format!("limit is a whole number from 1 on, not {:?}", excerpt(text)),
        )
    })
}

/// The parameters of a list: `prefix`, `after`, `limit`, and those of `more`.
fn page_request<'g>(
    given: &'g RawParams,
    more: &[&str],
) -> Result<(QueryParams<'g>, PageRequest), ApiError> {
    let known: Vec<&str> = ["prefix", "after", "limit"].iter().chain(more).copied().collect();
    let params = QueryParams::read(given, &known)?;
    let text = |name| params.get(name).unwrap_or("").to_owned();
    match params.get("limit").map_or(Ok(MAX_NAMES), str::parse) {
        Ok(limit @ 1..=MAX_NAMES) => {
            Ok((params, PageRequest { prefix: text("prefix"), after: text("after"), limit }))
        }
        _ => {
            let message = format!(
                "limit is a whole number from 1 to {MAX_NAMES}; the answer's `next` goes on as \
                 `after`"
            );
            Err(ApiError::bad("limit_invalid", message))
        }
    }
}

/// An answer of the wire as text.
///
/// # Errors
/// 500: never, since the types of the wire always serialise.
pub(super) fn json(answer: &impl serde::Serialize) -> Result<String, ApiError> {
    serde_json::to_string(answer).map_err(|error| {
        tracing::error!(%error, "an answer cannot be written");
        ApiError::internal()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(params: &[(&str, &str)]) -> Result<QueryRequest, ApiError> {
        let params: Vec<(String, String)> =
            params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        query_request(&params, 1_767_225_600_000).map(|(request, _)| request)
    }

    fn refusal(params: &[(&str, &str)]) -> &'static str {
        asked(params).map(|request| request.cache_key).expect_err("refused").code
    }

    #[test]
    fn groups_are_by_at_most_sixteen_different_labels() {
        let names = |n: usize| (0..n).map(|i| format!("l{i}")).collect::<Vec<_>>().join(",");
        assert_eq!(
            asked(&[("metric", "m"), ("by", &names(16))])
                .expect("as many as a series has")
                .group_by
                .len(),
            16
        );
        let spaces =
            asked(&[("metric", "m"), ("by", " a , __overflow__")]).expect("spaces do not count");
        assert_eq!(spaces.group_by, ["a", "__overflow__"]);
        let long = "a".repeat(65);
        for by in [
            names(17).as_str(),
            "a,a",
            "a,b,a",
            "a,,b",
            ",",
            "a,",
            "1a",
            "a b",
            "ä",
            "__name__",
            &long,
            &"a,".repeat(2_000),
        ] {
            assert_eq!(refusal(&[("metric", "m"), ("by", by)]), "by_invalid", "{by:.40}");
        }
        let whole = asked(&[("metric", "m"), ("by", &"x".repeat(60_000))])
            .map(|r| r.cache_key)
            .expect_err("refused");
        assert!(
            whole.message.len() < 400,
            "an answer does not repeat a whole request: {}",
            whole.message.len()
        );
    }

    #[test]
    fn an_aggregate_is_asked_for_once() {
        let all: Vec<&str> = AGGREGATES.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            asked(&[("metric", "m"), ("agg", &all.join(","))])
                .expect("all of them")
                .aggregates
                .len(),
            12
        );
        for agg in ["count,count", "sum,avg,sum", "count,", "", "mean", "p95,p95"] {
            let code = if agg.is_empty() { "parameter_empty" } else { "agg_invalid" };
            assert_eq!(refusal(&[("metric", "m"), ("agg", agg)]), code, "{agg}");
        }
    }
}
