//! The read routes: from query parameters to a request, and from an answer to JSON or CSV.

use crate::actors::catalogue;
use crate::api::{self, timestamp};
use crate::model::budget::QueryBudget;
use crate::model::event::{self, EventError, check_label_name};
use crate::model::matcher_syntax;
use crate::model::suggest::excerpt;
use crate::model::window::{HOUR_MS, Hour, Millis};
use crate::persistence::store::MetricInfo;
use crate::query::accounting::{AccountingOutput, HourlyCounts};
use crate::query::answer::{NamePage, PageRequest};
use crate::query::error::QueryError;
use crate::query::request::{
    AGGREGATES, Aggregate, InvalidRequest, QueryRequest, QuerySpec, SeriesOrder,
};
use crate::query::service::QueryService;
use crate::query::steps::{STEPS, TimeStep};

use super::csv::{self, CsvAnswer};
use super::error::ApiError;
use super::params::QueryParams;
use super::render::{self, DecimalFormat};

/// Decoded query parameters, in the order in which they were sent.
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
/// Default and maximum number of names in one answer.
const MAX_NAMES: usize = catalogue::MAX_NAMES - 1;

/// Answers `GET /v1/query` as JSON.
///
/// # Errors
/// 400 names the parameter and its valid values; otherwise the errors of the query engine.
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

/// Answers `GET /v1/query` as CSV. Fails as [`query`] does.
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

/// The update of a subscription, and a hash of the part whose change makes it worth sending.
/// Fails as [`query`] does.
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

/// Answers `GET /v1/metrics`, one page. Fails as [`query`] does.
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

/// Answers `GET /v1/labels/{name}/values`, one page. Fails as [`query`] does.
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

/// Answers `GET /v1/accounting`, by default for the last 24 hours. Fails as [`query`] does.
pub fn accounting(
    queries: &dyn QueryService,
    tenant: &str,
    given: &RawParams,
    now: Millis,
    budget: &QueryBudget,
) -> Result<String, ApiError> {
    let params = QueryParams::read(given, &["from", "to"])?;
    let from = params.time("from")?.unwrap_or(now - 24 * HOUR_MS);
    // Past the current hour, whose events would be left out otherwise.
    let to = params.time("to")?.unwrap_or(now + HOUR_MS);
    if from >= to {
        return Err(InvalidRequest::EmptyRange.into());
    }
    // Rounds outward to whole hours, as queries do.
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

/// A query request for an answer that exists as JSON only.
fn json_request(given: &RawParams, now: Millis) -> Result<(QueryRequest, DecimalFormat), ApiError> {
    match query_request(given, now)? {
        (_, AnswerFormat { table: true, .. }) => Err(ApiError::bad(
            "format_invalid",
            "this answer is JSON: format=csv is for GET /v1/query",
        )),
        (request, form) => Ok((request, form.decimals)),
    }
}

/// The requested format of an answer.
#[derive(Debug, Clone, Copy)]
pub struct AnswerFormat {
    /// Decimals as JSON numbers or as strings.
    pub decimals: DecimalFormat,
    /// Whether the answer is CSV instead of JSON.
    pub table: bool,
}

/// Parses the parameters of a query, and the format of its answer.
///
/// # Errors
/// 400 names the parameter and its valid values.
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
        per_series: false,
        matchers: matcher_syntax::parse(matchers)
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

/// Checks the name of a metric. An impossible name is an error, because "no data"
/// would hide the mistake.
fn check_metric(metric: &str) -> Result<(), ApiError> {
    let refused = |why: EventError| {
        ApiError::bad(
            "metric_invalid",
            format!("{:?} is no metric: {}", excerpt(metric), why.message),
        )
    };
    event::check_metric(metric).map_err(refused)
}

/// The items of a comma-separated list. Empty items are kept; every list refuses them.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

/// Parses the parameter `agg`.
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
    // One more than exist is enough to detect a duplicate; a longer list need not be parsed.
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

/// Parses the parameters of a page: `prefix`, `after`, `limit`, and those in `more`.
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

/// Serialises an answer. A failure (500) is a bug: the types of the API always serialise.
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
