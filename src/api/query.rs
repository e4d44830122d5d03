//! `GET /v1/query`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::completeness::Completeness;

/// Aggregates of one metric over time.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QueryAnswer {
    /// Name of the metric.
    #[serde(default)]
    pub metric: String,
    /// Length of a bucket, such as `1h`.
    pub step: String,
    /// Start of the range, inclusive, snapped to the step.
    pub from: String,
    /// End of the range, exclusive, snapped to the step.
    pub to: String,
    /// The series, in the requested order.
    pub series: Vec<SeriesPoints>,
    /// Which shards the answer covers, and how fresh it is.
    pub completeness: Completeness,
}

/// One series, grouped by the requested labels.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SeriesPoints {
    /// Values of the labels in `by`; empty ones are left out.
    pub labels: BTreeMap<String, String>,
    /// The points, ascending by time. Buckets without events are left out.
    pub points: Vec<Point>,
}

/// One bucket: its start `t`, and a value for each aggregate. Values stay JSON text, so that sums
/// keep all their digits.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Point(pub BTreeMap<String, Box<RawValue>>);

impl Point {
    /// A member as JSON text, without the quotes of a string; empty if it is missing.
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", |value| value.get().trim_matches('"'))
    }

    /// The value of an aggregate; `None` if no event of the bucket has a value.
    pub fn figure(&self, aggregate: &str) -> Option<&str> {
        Some(self.text(aggregate)).filter(|text| !text.is_empty() && *text != "null")
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Point {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Point".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let figure = serde_json::json!({"type": ["number", "string", "null"]});
        schemars::json_schema!({
        "description": "One bucket: its start `t`, and a value for each aggregate; null if no \
                        event of the bucket has a value.",
                "type": "object",
                "required": ["t"],
                "properties": {"t": {"type": "string", "format": "date-time"}},
                "additionalProperties": figure,
            })
    }
}
