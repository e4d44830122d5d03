//! `GET /v1/query`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::completeness::Completeness;

/// Figures of one metric.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QueryAnswer {
    /// The metric.
    #[serde(default)]
    pub metric: String,
    /// The step.
    pub step: String,
    /// First time, snapped to the step.
    pub from: String,
    /// Exclusive end, snapped to the step.
    pub to: String,
    /// The series, in the order asked for.
    pub series: Vec<SeriesPoints>,
    /// How much of the truth it is.
    pub completeness: Completeness,
}

/// One series.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SeriesPoints {
    /// Its labels, those asked for with `by`; empty ones are left out.
    pub labels: BTreeMap<String, String>,
    /// Its points, ascending. Buckets without events are left out.
    pub points: Vec<Point>,
}

/// One point: its time `t`, and a figure for each aggregate. Figures stay text, so that sums keep
/// all their digits.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Point(pub BTreeMap<String, Box<RawValue>>);

impl Point {
    /// A value as it came, without the quotes of a string; empty if it is not there.
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", |value| value.get().trim_matches('"'))
    }

    /// A figure; none if no event has a value.
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
            "description": "Its time `t`, and a figure for each aggregate; null if no event has a value.",
            "type": "object",
            "required": ["t"],
            "properties": {"t": {"type": "string", "format": "date-time"}},
            "additionalProperties": figure,
        })
    }
}
