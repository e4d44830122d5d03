//! The Prometheus HTTP API of a running server: the answers of a real Prometheus over the same
//! events, and the published clients.

mod clients;
mod dashboard;
pub mod foreign;
mod oracle;
mod queries;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::rng::Rng;
use crate::support::{Server, agent};

/// 2026-01-01T00:00:00Z, in milliseconds.
const START: i64 = 1_767_225_600_000;
const HOUR: i64 = 3_600_000;
/// How many hours have events.
const HOURS: i64 = 50;

/// Labels of a series, and its events: time in milliseconds, value in quarters.
struct TestSeries {
    metric: &'static str,
    labels: Vec<(&'static str, String)>,
    events: Vec<(i64, i64)>,
}

/// Series with gaps, of which some lack a label. Times differ within a series and none is at a full
/// hour, where Prometheus counts a sample to the range that ends. Values are quarters: sums of them
/// are exact in doubles, in any order.
fn test_series() -> Vec<TestSeries> {
    let mut rng = Rng(13);
    let mut found = Vec::new();
    for (metric, most) in [("page_view", 6), ("load_time", 40)] {
        for country in ["DE", "FR", "AT", ""] {
            for page in ["a", "b", "c"] {
                let labels = [("country", country), ("page", page)];
                let labels = labels.iter().filter(|(_, value)| !value.is_empty());
                let labels = labels.map(|(name, value)| (*name, (*value).to_owned())).collect();
                let mut events = Vec::new();
                for hour in 0..HOURS {
                    if rng.chance(25) {
                        continue;
                    }
                    let mut time = START + hour * HOUR;
                    for _ in 0..1 + rng.below(most) {
                        time += 1 + rng.below(60_000) as i64;
                        events.push((time, 1 + rng.below(4_000) as i64));
                    }
                }
                found.push(TestSeries { metric, labels, events });
            }
        }
    }
    found
}

fn decimal(quarters: i64) -> String {
    format!("{}.{:02}", quarters / 4, quarters % 4 * 25)
}

/// Sends the series, and waits until they are all answered.
fn send(server: &Server, series: &[TestSeries], headers: &[(&str, &str)]) {
    let events: Vec<Value> = series
        .iter()
        .flat_map(|series| {
            let labels: serde_json::Map<String, Value> =
                series.labels.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
            series.events.iter().map(move |(time, quarters)| {
                json!({
                    "metric": series.metric,
                    "timestamp": time,
                    "value": decimal(*quarters),
                    "labels": labels,
                    "user": format!("u{}", quarters % 50),
                })
            })
        })
        .collect();
    for batch in events.chunks(5_000) {
        let body = Value::from(batch).to_string();
        let (status, answer) = server.post_as(body.as_bytes(), "application/json", headers);
        assert_eq!((status, &answer["rejected"]), (202, &json!(0)), "{answer}");
    }
}

/// An answer of the API.
pub fn ask(url: &str, path: &str, params: &[(&str, &str)]) -> Value {
    let mut request = agent().get(format!("{url}{path}"));
    for (name, value) in params {
        request = request.query(name, value);
    }
    let mut response = request.call().expect("an answer");
    let text = response.body_mut().with_config().limit(64 << 20).read_to_string().expect("text");
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{path} {params:?}: {why}: {text}"))
}

/// Waits until the events of all metrics are answered.
fn await_all(url: &str, series: &[TestSeries], ask_as: impl Fn(&str, &[(&str, &str)]) -> Value) {
    let end = ((START + HOURS * HOUR) / 1_000).to_string();
    for metric in ["page_view", "load_time"] {
        let of_metric = series.iter().filter(|series| series.metric == metric);
        let expected: usize = of_metric.map(|series| series.events.len()).sum();
        let query = format!("sum(count_over_time({metric}[{HOURS}h]))");
        crate::support::wait_until(&format!("{url} has all of {metric}"), || {
            let answer = ask_as("/api/v1/query", &[("query", &query), ("time", &end)]);
            answer["data"]["result"][0]["value"][1] == json!(expected.to_string())
        });
    }
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data-sets/tools")
}

/// A program that scripts/install-test-tools unpacks, or that is installed.
pub fn program(name: &str) -> Option<String> {
    let ours = tools().join("bin").join(name).display().to_string();
    let found = [ours, name.to_owned()]
        .into_iter()
        .find(|program| Command::new(program).arg("--version").output().is_ok());
    if found.is_none() {
        eprintln!("skipped: {name} is missing, scripts/install-test-tools unpacks it");
    }
    found
}
