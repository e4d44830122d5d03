//! `GET /v1/metrics` and `GET /v1/labels/{name}/values`.

use serde::{Deserialize, Serialize};

use super::completeness::Completeness;

/// A page of the metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MetricsAnswer {
    /// The metrics, ascending by name.
    pub metrics: Vec<Metric>,
    /// If there are more: what `after` takes to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How much of the truth it is.
    pub completeness: Completeness,
}

/// One metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metric {
    /// Its name.
    pub metric: String,
    /// Names of its labels, ascending.
    pub labels: Vec<String>,
    /// Series.
    pub series: u64,
    /// Its first hour with events.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub first: Option<jiff::Timestamp>,
    /// Its last hour with events.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub last: Option<jiff::Timestamp>,
}

/// A page of the values of a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LabelValuesAnswer {
    /// The label.
    pub label: String,
    /// Its values, ascending.
    pub values: Vec<String>,
    /// If there are more: what `after` takes to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How much of the truth it is.
    pub completeness: Completeness,
}
