//! `GET /v1/metrics` and `GET /v1/labels/{name}/values`.

use serde::{Deserialize, Serialize};

use super::completeness::Completeness;

/// One page of a tenant's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MetricsAnswer {
    /// The metrics, ascending by name.
    pub metrics: Vec<Metric>,
    /// The value of `after` for the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Which shards the page covers, and how fresh they are.
    pub completeness: Completeness,
}

/// One metric and the range of hours in which it has events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metric {
    /// Name of the metric.
    pub metric: String,
    /// Label names, ascending.
    pub labels: Vec<String>,
    /// Number of distinct series. If a replay is served on some days, the number as ingested or the
    /// number in the replay, whichever is larger.
    pub series: u64,
    /// Start of the first hour with events.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub first: Option<jiff::Timestamp>,
    /// Start of the last hour with events.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub last: Option<jiff::Timestamp>,
}

/// One page of the values of a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LabelValuesAnswer {
    /// Name of the label.
    pub label: String,
    /// Distinct values, ascending.
    pub values: Vec<String>,
    /// The value of `after` for the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Which shards the page covers, and how fresh they are.
    pub completeness: Completeness,
}
