//! The protocols of the servers: Rollmill, and the peer it is compared with.

use super::shape::EventShape;

/// A protocol to send events and to query how many have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireProtocol {
    /// Rollmill's `POST /v1/events`.
    Rollmill,
    /// JSON lines to VictoriaMetrics' `/api/v1/import`.
    JsonImport,
    /// The Influx line protocol to VictoriaMetrics' `/write`.
    InfluxLine,
}

/// Byte offsets of the changing fields in an event; `None` if a protocol has no such field.
#[derive(Debug, Clone, Copy)]
pub(super) struct FieldOffsets {
    pub(super) time: usize,
    pub(super) value: usize,
    pub(super) series: usize,
    pub(super) user: Option<usize>,
    pub(super) id: Option<usize>,
}

impl WireProtocol {
    /// Path and content type of an ingest request.
    pub(super) fn route(self) -> (&'static str, &'static str) {
        match self {
            Self::Rollmill => ("/v1/events", "application/json"),
            Self::JsonImport => ("/api/v1/import", "application/json"),
            Self::InfluxLine => ("/write?precision=ms", "text/plain"),
        }
    }

    /// Text before, between and after the events of a body.
    pub(super) fn punctuation(self) -> [&'static str; 3] {
        match self {
            Self::Rollmill => ["[", ",", "]"],
            Self::JsonImport | Self::InfluxLine => ["", "\n", "\n"],
        }
    }

    /// One event of this shape, with zeros as its changing digits. Rollmill's lacks the closing
    /// brace, so that a payload can follow.
    pub(super) fn event(self, shape: &EventShape) -> (String, FieldOffsets) {
        let (metric, run) = (shape.metric(), shape.run);
        let time = "0000000000000";
        let labels = r#""series":"s00000000","host":"web-1""#;
        let text = match self {
            Self::Rollmill => {
                let ids = format!(r#""user":"u00000000","id":"{run:08x}-000000000000""#);
                let event = format!(r#""timestamp":{time},"value":100.00,"labels":{{{labels}}}"#);
                format!(r#"{{"metric":"{metric}",{event},{ids}"#)
            }
            Self::JsonImport => {
                let labels = format!(r#""__name__":"{metric}",{labels}"#);
                format!(r#"{{"metric":{{{labels}}},"values":[100.00],"timestamps":[{time}]}}"#)
            }
            Self::InfluxLine => {
                format!("{metric},series=s00000000,host=web-1 value=100.00 {time}")
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

    /// A body with one event of the freshness probe: the `number`th of its series, at `now`.
    pub(super) fn probe(self, metric: &str, number: u64, now: i64) -> String {
        match self {
            Self::Rollmill => format!(r#"{{"metric":"{metric}","id":"{number}"}}"#),
            Self::JsonImport => format!(
                r#"{{"metric":{{"__name__":"{metric}"}},"values":[1],"timestamps":[{now}]}}"#
            ),
            Self::InfluxLine => format!("{metric} value=1 {now}"),
        }
    }

    /// Whether a status means that the events were accepted.
    pub(super) fn takes(self, status: u16) -> bool {
        match self {
            Self::Rollmill => status == 202,
            Self::JsonImport | Self::InfluxLine => status == 204,
        }
    }

    /// Path of a query for the number of a metric's events between two times.
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

    /// The number in the answer of that query; 0 if it has no series. Fails if the answer is not
    /// JSON, or the number cannot be parsed.
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

    /// Path of a query for the 24 hourly sums of series `n`, on the day that ends at `to`.
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
                // A point of the peer covers the hour before its time, one of Rollmill the hour
                // after.
                let (first, last) = (from / 1_000 + 3_600, to / 1_000);
                let query = format!("sum_over_time({metric}%7Bseries=%22s{n:08}%22%7D[1h])");
                format!("/api/v1/query_range?query={query}&start={first}&end={last}&step=3600")
            }
        }
    }

    /// The sums in the answer of that query, in order of time. Fails if the answer is not JSON, or
    /// a sum is no number.
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
        let ours = serde_json::json!({"series": [{"labels": {}, "points": [
            {"t": "x", "count": 2, "sum": 300.5},
            {"t": "y", "count": 3, "sum": 100},
        ]}]});
        let ours = ours.to_string();
        let ours = ours.as_bytes();
        let theirs = br#"{"data":{"result":[{"values":[[1,"300.5"],[3601,"100"]]}]}}"#;
        assert_eq!(WireProtocol::Rollmill.day_sums(ours).unwrap(), [300.5, 100.0]);
        assert_eq!(WireProtocol::JsonImport.day_sums(theirs).unwrap(), [300.5, 100.0]);
        assert_eq!(WireProtocol::Rollmill.count(ours).unwrap(), 5);
        let theirs = br#"{"data":{"resultType":"vector","result":[{"value":[9,"5"]}]}}"#;
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
