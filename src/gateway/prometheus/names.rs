//! Names: of labels, of their values, of series and of metrics.

use std::collections::BTreeSet;

use super::answer::{PromAnswer, ResultData};
use super::error::PromError;
use super::params::PromParams;
use super::read::Reader;
use crate::actors::catalogue;
use crate::gateway::params::LAST;
use crate::model::event::{check_label_name, check_metric};
use crate::model::window::{HOUR_MS, Millis};
use crate::persistence::store::MetricInfo;
use crate::promql::{Fetch, Grouping, Labels, METRIC_NAME, SeriesSelector};
use crate::query::answer::PageRequest;

/// Most names of one answer; more are cut off with a warning, as Prometheus does at its limit.
const MAX_NAMES: usize = catalogue::MAX_NAMES - 1;

/// Most metrics whose series are looked at for one selector. Each is a query of its own.
const MAX_METRICS: usize = 32;

/// The hours from the parameters `start` and `end`, which are milliseconds.
struct AskedRange {
    start: Option<Millis>,
    end: Option<Millis>,
}

impl AskedRange {
    fn of(params: &PromParams) -> Result<Self, PromError> {
        Ok(Self { start: params.time("start")?, end: params.time("end")? })
    }

    /// Whole hours, outward; those of the metric where nothing is asked for.
    fn hours(&self, info: &MetricInfo) -> std::ops::Range<i64> {
        let first = info.first.map_or(0, |hour| i64::from(hour.0));
        let last = info.last.map_or(0, |hour| i64::from(hour.0) + 1);
        let start = self.start.map_or(first, |start| start.div_euclid(HOUR_MS));
        let end = self
            .end
            .map_or(last, |end| end.min(LAST).saturating_add(HOUR_MS - 1).div_euclid(HOUR_MS));
        start..end.max(start)
    }
}

fn limit_of(params: &PromParams) -> Result<usize, PromError> {
    Ok(params.limit()?.unwrap_or(MAX_NAMES).min(MAX_NAMES))
}

fn page(prefix: &str, limit: usize) -> PageRequest {
    PageRequest { prefix: prefix.to_owned(), after: String::new(), limit }
}

/// The metrics of a selector: the one that it names, or all that pass its conditions on the name.
fn metrics(
    reader: &mut Reader<'_>,
    selector: &SeriesSelector,
) -> Result<Vec<MetricInfo>, PromError> {
    let metric = selector.metric.as_deref();
    // No event has such a metric, and a store may not even be able to look for it.
    if metric.is_some_and(|metric| check_metric(metric).is_err()) {
        return Ok(Vec::new());
    }
    // The name itself is the first of all names that begin with it.
    let page = page(metric.unwrap_or(""), metric.map_or(MAX_NAMES, |_| 1));
    let found = reader.queries.metrics(reader.tenant, &page, reader.budget)?;
    reader.note_completeness(metric, &found.completeness);
    if metric.is_none() && found.next.is_some() {
        reader.warn(format!("only the first {MAX_NAMES} metrics are looked at"));
    }
    Ok(found.items.into_iter().filter(|info| selector.is_of(&info.metric)).collect())
}

/// The labels of the series that a selector matches.
fn series_of(
    reader: &mut Reader<'_>,
    selector: &SeriesSelector,
    range: &AskedRange,
    grouping: &Grouping,
) -> Result<Vec<Labels>, PromError> {
    if selector.metric.is_none() && selector.names.is_empty() {
        return Err(PromError::bad(
            "a selector with other matchers names a metric here, as page_view{country=\"DE\"}",
        ));
    }
    let metrics = metrics(reader, selector)?;
    if metrics.len() > MAX_METRICS {
        return Err(PromError::bad(format!(
            "the selector matches {} metrics, and series of at most {MAX_METRICS} are looked at \
             together: name one, as page_view{{country=\"DE\"}}",
            metrics.len()
        )));
    }
    let mut found = Vec::new();
    for info in metrics {
        let fetch = Fetch {
            matchers: selector.matchers.clone(),
            grouping: grouping.clone(),
            hours: range.hours(&info),
            metric: info.metric,
            unit: None,
            quantiles: false,
            distinct: false,
        };
        found.extend(reader.fetch(&fetch)?.into_iter().map(|series| {
            let mut labels = series.labels;
            labels.set(METRIC_NAME, &fetch.metric);
            labels
        }));
    }
    Ok(found)
}

/// The selector of every series.
fn everything() -> SeriesSelector {
    SeriesSelector { metric: None, names: Vec::new(), matchers: Vec::new() }
}

/// The selectors, or one of everything if there is none.
fn selectors(params: &PromParams) -> Result<Vec<SeriesSelector>, PromError> {
    let mut selectors = params.selectors()?;
    if selectors.is_empty() {
        selectors.push(everything());
    }
    Ok(selectors)
}

/// Answers `/api/v1/labels`.
pub(super) fn labels(
    reader: &mut Reader<'_>,
    params: &PromParams,
) -> Result<PromAnswer, PromError> {
    let range = AskedRange::of(params)?;
    let mut names: BTreeSet<String> = BTreeSet::new();
    for selector in selectors(params)? {
        if selector.matchers.is_empty() {
            let metrics = metrics(reader, &selector)?;
            names.extend(metrics.iter().map(|_| METRIC_NAME.to_owned()).take(1));
            names.extend(metrics.into_iter().flat_map(|info| info.labels));
            continue;
        }
        for labels in series_of(reader, &selector, &range, &Grouping::Series)? {
            names.extend(labels.iter().map(|(name, _)| name.to_owned()));
        }
    }
    cut(reader, names, limit_of(params)?)
}

/// Answers `/api/v1/label/{name}/values`.
pub(super) fn label_values(
    reader: &mut Reader<'_>,
    params: &PromParams,
    label: &str,
) -> Result<PromAnswer, PromError> {
    let (range, limit) = (AskedRange::of(params)?, limit_of(params)?);
    let mut values: BTreeSet<String> = BTreeSet::new();
    for selector in selectors(params)? {
        let metric = selector.metric.as_deref();
        if selector.matchers.is_empty() && label == METRIC_NAME {
            values.extend(metrics(reader, &selector)?.into_iter().map(|info| info.metric));
        } else if selector.matchers.is_empty()
            && selector.names.is_empty()
            && check_label_name(label).is_ok()
        {
            let page = page("", limit);
            let found =
                reader.queries.label_values(reader.tenant, label, metric, &page, reader.budget)?;
            reader.note_completeness(metric, &found.completeness);
            values.extend(found.items);
            if found.next.is_some() {
                reader.warn(truncated(limit));
            }
        } else if label == METRIC_NAME || check_label_name(label).is_ok() {
            let by = if label == METRIC_NAME { Vec::new() } else { vec![label.to_owned()] };
            let found = series_of(reader, &selector, &range, &Grouping::Labels(by))?;
            let found = found.iter().map(|labels| labels.get(label).to_owned());
            values.extend(found.filter(|value| !value.is_empty()));
        }
    }
    cut(reader, values, limit)
}

fn truncated(limit: usize) -> String {
    format!("results truncated due to limit: the first {limit} are shown")
}

fn cut(
    reader: &mut Reader<'_>,
    names: BTreeSet<String>,
    limit: usize,
) -> Result<PromAnswer, PromError> {
    if names.len() > limit {
        reader.warn(truncated(limit));
    }
    PromAnswer::new(ResultData::Names(names.into_iter().take(limit).collect()), None)
}

/// Answers `/api/v1/series`.
pub(super) fn series(
    reader: &mut Reader<'_>,
    params: &PromParams,
) -> Result<PromAnswer, PromError> {
    let (range, selectors) = (AskedRange::of(params)?, params.selectors()?);
    if selectors.is_empty() {
        return Err(PromError::bad("no match[] parameter provided"));
    }
    let mut found: BTreeSet<Labels> = BTreeSet::new();
    for selector in selectors {
        found.extend(series_of(reader, &selector, &range, &Grouping::Series)?);
    }
    PromAnswer::new(ResultData::Series(found.into_iter().collect()), params.limit()?)
}

/// Answers `/api/v1/metadata`. A selector alone is the number of events of the hour before, so a
/// metric is a gauge.
pub(super) fn metadata(
    reader: &mut Reader<'_>,
    params: &PromParams,
) -> Result<PromAnswer, PromError> {
    let limit = limit_of(params)?;
    let metric = params.get("metric").map(str::to_owned);
    let found =
        metrics(reader, &SeriesSelector { metric, ..everything() })?.into_iter().take(limit);
    let described = found.map(|info| {
        let help = format!(
            "Events: the selector alone is those of the hour before, as a number or a native \
             histogram. {} series, labels {}",
            info.series,
            info.labels.join(", ")
        );
        let entry = serde_json::json!([{ "type": "gauge", "help": help, "unit": "" }]);
        (info.metric, entry)
    });
    let described: serde_json::Map<String, serde_json::Value> = described.collect();
    PromAnswer::new(ResultData::Json(described.into()), None)
}
