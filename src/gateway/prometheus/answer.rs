//! Answers in the form of Prometheus: `{"status": "success", "data", "warnings", "infos"}`.

use super::error::PromError;
use super::read::Reader;
use crate::model::window::{HOUR_MS, Millis};
use crate::promql::{Grid, Labels, Value, format_number};

/// The version of Prometheus whose reading of ranges this is: open at their start.
const PROMETHEUS_VERSION: &str = "3.0.0";

/// What an answer holds.
pub(super) enum ResultData {
    /// A vector or a number at one time, in milliseconds.
    Instant { value: Value, time: Millis },
    /// Series of points.
    Range { value: Value, grid: Grid },
    /// Names of labels or their values.
    Names(Vec<String>),
    /// The labels of series.
    Series(Vec<Labels>),
    /// JSON that is finished.
    Json(serde_json::Value),
}

/// An answer that is not written yet.
pub(super) struct PromAnswer {
    data: ResultData,
    limit: Option<usize>,
}

impl PromAnswer {
    /// Returns `Result` for the convenience of handlers.
    pub(super) fn new(data: ResultData, limit: Option<usize>) -> Result<Self, PromError> {
        Ok(Self { data, limit })
    }

    /// Cuts the answer at its limit, and writes it with what it lacks.
    ///
    /// # Errors
    /// If the query's memory is used up.
    pub(super) fn render(mut self, reader: &mut Reader<'_>) -> Result<String, PromError> {
        if let ResultData::Range { value: Value::Vector(series), .. } = &mut self.data {
            series.sort_by(|a, b| a.labels.cmp(&b.labels));
        }
        if self.truncate() {
            reader.warn("results truncated due to limit".to_owned());
        }
        let mut out = String::from("{\"status\":\"success\",\"data\":");
        match self.data {
            ResultData::Instant { value, time } => instant(reader, &mut out, value, time)?,
            ResultData::Range { value, grid } => range(reader, &mut out, value, grid)?,
            ResultData::Names(names) => list(reader, &mut out, &names, |out, name| {
                text(out, name);
            })?,
            ResultData::Series(series) => list(reader, &mut out, &series, labels)?,
            ResultData::Json(value) => out.push_str(&value.to_string()),
        }
        let (warnings, infos) = reader.take_notes();
        for (name, notes) in [("warnings", warnings), ("infos", infos)] {
            if !notes.is_empty() {
                out.push(',');
                text(&mut out, name);
                out.push(':');
                list(reader, &mut out, &notes, |out, note| text(out, note))?;
            }
        }
        out.push('}');
        Ok(out)
    }

    fn truncate(&mut self) -> bool {
        let limit = self.limit.unwrap_or(usize::MAX);
        let length = match &mut self.data {
            ResultData::Instant { value: Value::Vector(series), .. }
            | ResultData::Range { value: Value::Vector(series), .. } => {
                let length = series.len();
                series.truncate(limit);
                length
            }
            ResultData::Names(names) => {
                let length = names.len();
                names.truncate(limit);
                length
            }
            ResultData::Series(series) => {
                let length = series.len();
                series.truncate(limit);
                length
            }
            _ => 0,
        };
        length > limit
    }
}

fn text(out: &mut String, text: &str) {
    // Writing JSON of a text cannot fail.
    out.push_str(&serde_json::Value::from(text).to_string());
}

fn labels(out: &mut String, labels: &Labels) {
    out.push('{');
    for (at, (name, value)) in labels.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        text(out, name);
        out.push(':');
        text(out, value);
    }
    out.push('}');
}

fn list<T>(
    reader: &mut Reader<'_>,
    out: &mut String,
    items: &[T],
    write: impl Fn(&mut String, &T),
) -> Result<(), PromError> {
    out.push('[');
    for (at, item) in items.iter().enumerate() {
        let before = out.len();
        if at > 0 {
            out.push(',');
        }
        write(out, item);
        reader.charge(out.len() - before)?;
    }
    out.push(']');
    Ok(())
}

/// Seconds as a JSON number.
fn seconds(out: &mut String, time: Millis) {
    out.push_str(&(time as f64 / 1e3).to_string());
}

fn point(out: &mut String, time: Millis, number: f64) {
    out.push('[');
    seconds(out, time);
    out.push_str(",\"");
    out.push_str(&format_number(number));
    out.push_str("\"]");
}

fn instant(
    reader: &mut Reader<'_>,
    out: &mut String,
    value: Value,
    time: Millis,
) -> Result<(), PromError> {
    match value {
        Value::Scalar(numbers) => {
            out.push_str("{\"resultType\":\"scalar\",\"result\":");
            point(out, time, numbers.first().copied().unwrap_or(f64::NAN));
        }
        Value::Vector(series) => {
            out.push_str("{\"resultType\":\"vector\",\"result\":");
            let points: Vec<_> = series
                .iter()
                .filter_map(|series| {
                    let number = series.numbers().first().copied().flatten()?;
                    Some((&series.labels, number))
                })
                .collect();
            list(reader, out, &points, |out, (names, number)| {
                out.push_str("{\"metric\":");
                labels(out, names);
                out.push_str(",\"value\":");
                point(out, time, *number);
                out.push('}');
            })?;
        }
    }
    out.push('}');
    Ok(())
}

fn range(
    reader: &mut Reader<'_>,
    out: &mut String,
    value: Value,
    grid: Grid,
) -> Result<(), PromError> {
    let series = match value {
        Value::Scalar(numbers) => {
            vec![(Labels::default(), numbers.into_iter().map(Some).collect::<Vec<_>>())]
        }
        Value::Vector(series) => series
            .into_iter()
            .map(|series| {
                let numbers = series.numbers();
                (series.labels, numbers)
            })
            .collect(),
    };
    out.push_str("{\"resultType\":\"matrix\",\"result\":");
    list(reader, out, &series, |out, (names, numbers)| {
        out.push_str("{\"metric\":");
        labels(out, names);
        out.push_str(",\"values\":[");
        let present = grid.times().zip(numbers).filter_map(|(hour, n)| n.map(|n| (hour, n)));
        for (at, (hour, number)) in present.enumerate() {
            if at > 0 {
                out.push(',');
            }
            point(out, hour * HOUR_MS, number);
        }
        out.push_str("]}");
    })?;
    out.push('}');
    Ok(())
}

/// The answer of `/api/v1/status/buildinfo`. No features: Grafana takes it for Prometheus then.
pub(super) fn build_info() -> String {
    serde_json::json!({
        "status": "success",
        "data": {
            "version": PROMETHEUS_VERSION,
            "revision": concat!("rollmill ", env!("CARGO_PKG_VERSION")),
            "branch": "",
            "buildUser": "",
            "buildDate": "",
            "goVersion": "",
            "features": {},
        },
    })
    .to_string()
}
