//! How each server is spoken to: ours, and the one it is compared with.

use super::shape::EventShape;

/// A way to send events and to ask how many have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireProtocol {
    /// `POST /v1/events`.
    Rollmill,
    /// JSON lines to VictoriaMetrics' `/api/v1/import`.
    JsonImport,
    /// The Influx line protocol to VictoriaMetrics' `/write`.
    InfluxLine,
}

/// Where the fields of an event begin that change from event to event; a wire without users or ids
/// has none.
#[derive(Debug, Clone, Copy)]
pub(super) struct FieldOffsets {
    pub(super) time: usize,
    pub(super) value: usize,
    pub(super) series: usize,
    pub(super) user: Option<usize>,
    pub(super) id: Option<usize>,
}

impl WireProtocol {
    /// Path and content type of a request with events.
    pub(super) fn route(self) -> (&'static str, &'static str) {
        match self {
            Self::Rollmill => ("/v1/events", "application/json"),
            Self::JsonImport => ("/api/v1/import", "application/json"),
            Self::InfluxLine => ("/write?precision=ms", "text/plain"),
        }
    }

    /// What stands before, between and after the events of a body.
    pub(super) fn punctuation(self) -> [&'static str; 3] {
        match self {
            Self::Rollmill => ["[", ",", "]"],
            Self::JsonImport | Self::InfluxLine => ["", "\n", "\n"],
        }
    }

    /// One event of this shape, its changing digits zero. Ours ends before its closing brace, so
    /// that a payload can follow.
    pub(super) fn event(self, shape: &EventShape) -> (String, FieldOffsets) {
        let (metric, run) = (shape.metric(), shape.run);
        let text = match self {
            Self::Rollmill => format!(
                r#"{{"metric":"{metric}","timestamp":0000000000000,"value":100.00,"labels":{{"series":"s00000000","host":"web-1"}},"user":"u00000000","id":"{run:08x}-000000000000""#
            ),
            Self::JsonImport => format!(
                r#"{{"metric":{{"__name__":"{metric}","series":"s00000000","host":"web-1"}},"values":[100.00],"timestamps":[0000000000000]}}"#
            ),
            Self::InfluxLine => {
                format!("{metric},series=s00000000,host=web-1 value=100.00 0000000000000")
            }
        };
        let after = |needle: &str| text.find(needle).map(|found| found + needle.len());
        let [time, value, series] = match self {
            Self::Rollmill => ["\"timestamp\":", "\"value\":", "\"series\":\"s"],
            Self::JsonImport => ["\"timestamps\":[", "\"values\":[", "\"series\":\"s"],
            Self::InfluxLine => ["value=100.00 ", "value=", "series=s"],
        }
        .map(|needle| after(needle).unwrap_or_default());
        let places = FieldOffsets {
            time,
            value,
            series,
            user: after("\"user\":\"u"),
            id: after(&format!("{run:08x}-")),
        };
        (text, places)
    }

    /// A body of one event whose freshness is measured: the `number`th of its series, at `now`.
    pub(super) fn probe(self, metric: &str, number: u64, now: i64) -> String {
        match self {
            Self::Rollmill => format!(r#"{{"metric":"{metric}","id":"{number}"}}"#),
            Self::JsonImport => format!(
                r#"{{"metric":{{"__name__":"{metric}"}},"values":[1],"timestamps":[{now}]}}"#
            ),
            Self::InfluxLine => format!("{metric} value=1 {now}"),
        }
    }

    /// Whether the events of a request were taken.
    pub(super) fn takes(self, status: u16) -> bool {
        match self {
            Self::Rollmill => status == 202,
            Self::JsonImport | Self::InfluxLine => status == 204,
        }
    }

    /// A question for the number of a metric's events between two times.
    pub(super) fn count_path(self, metric: &str, from: i64, to: i64) -> String {
        match self {
            Self::Rollmill => format!("/v1/query?metric={metric}&from={from}&to={to}&step=all"),
            Self::JsonImport | Self::InfluxLine => {
                let (seconds, to) = ((to - from) / 1_000, to / 1_000);
                format!(
                    "/api/v1/query?query=sum(count_over_time({metric}[{seconds}s]))&time={to}&\
                     nocache=1"
                )
            }
        }
    }

    /// The number in its answer; no series is none.
    ///
    /// # Errors
    /// If it is not JSON.
    pub(super) fn count(self, answer: &[u8]) -> anyhow::Result<u64> {
        let answer: serde_json::Value = serde_json::from_slice(answer)?;
        if self != Self::Rollmill {
            let counted = answer["data"]["result"][0]["value"][1].as_str();
            return Ok(counted.map_or(Ok(0), str::parse)?);
        }
        let points = answer["series"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|series| series["points"].as_array())
            .flatten();
        Ok(points.filter_map(|point| point["count"].as_u64()).sum())
    }

    /// A question for the 24 hourly sums of series `n` on the day that ends at `to`.
    pub(super) fn day_path(self, metric: &str, n: u64, to: i64) -> String {
        let from = to - DAY_MS;
        match self {
            Self::Rollmill => {
                format!(
                    "/v1/query?metric={metric}&from={from}&to={to}&step=1h&agg=sum&where=%\
                     7Bseries=%22s{n:08}%22%7D"
                )
            }
            Self::JsonImport | Self::InfluxLine => {
                // A point of theirs looks back over the hour that ends there.
                let (first, last) = (from / 1_000 + 3_600, to / 1_000);
                let query = format!("sum_over_time({metric}%7Bseries=%22s{n:08}%22%7D[1h])");
                format!("/api/v1/query_range?query={query}&start={first}&end={last}&step=3600")
            }
        }
    }

    /// The sums in its answer, in order.
    ///
    /// # Errors
    /// If it is not JSON or a sum is no number.
    pub(super) fn day_sums(self, answer: &[u8]) -> anyhow::Result<Vec<f64>> {
        let answer: serde_json::Value = serde_json::from_slice(answer)?;
        let (points, field) = match self {
            Self::Rollmill => (&answer["series"][0]["points"], serde_json::Value::from("sum")),
            Self::JsonImport | Self::InfluxLine => {
                (&answer["data"]["result"][0]["values"], serde_json::Value::from(1))
            }
        };
        let number = |point: &serde_json::Value| {
            let sum = field.as_str().map_or(&point[1], |name| &point[name]);
            sum.as_f64()
                .or_else(|| sum.as_str()?.parse().ok())
                .ok_or_else(|| anyhow::anyhow!("{sum} is no sum"))
        };
        points.as_array().into_iter().flatten().map(number).collect()
    }
}

const DAY_MS: i64 = 24 * crate::model::window::HOUR_MS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_answers_are_read_as_the_same_numbers() {
        let ours = br#"{"series":[{"labels":{},"points":[{"t":"x","count":2,"sum":300.5},{"t":"y","count":3,"sum":100}]}]}"#;
        let theirs = br#"{"status":"success","data":{"result":[{"metric":{},"values":[[1,"300.5"],[3601,"100"]]}]}}"#;
        assert_eq!(WireProtocol::Rollmill.day_sums(ours).unwrap(), [300.5, 100.0]);
        assert_eq!(WireProtocol::JsonImport.day_sums(theirs).unwrap(), [300.5, 100.0]);
        assert_eq!(WireProtocol::Rollmill.count(ours).unwrap(), 5);
        let theirs = br#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[9,"5"]}]}}"#;
        assert_eq!(WireProtocol::InfluxLine.count(theirs).unwrap(), 5);
        let none = br#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
        assert_eq!(WireProtocol::JsonImport.count(none).unwrap(), 0);
        assert!(
            WireProtocol::JsonImport
                .day_sums(br#"{"data":{"result":[{"values":[[1,"no"]]}]}}"#)
                .is_err()
        );
        assert!(WireProtocol::JsonImport.count(b"no").is_err());
    }
}
