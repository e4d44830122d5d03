//! The published clients, unchanged, with a key: `promtool`, `prometheus-api-client` of Python and
//! `prometheus-query` of JavaScript.

use std::process::Command;

use serde_json::{Value, json};

use super::{HOUR, HOURS, START, TestSeries, await_all, program, send, test_series, tools};
use crate::support::{Server, agent};

struct Node {
    server: Server,
    key: String,
    series: Vec<TestSeries>,
    _dir: tempfile::TempDir,
}

fn node() -> Node {
    let dir = tempfile::tempdir().expect("a directory");
    let keys = dir.path().join("keys.toml").display().to_string();
    let made = Server::cli(&[
        "keys",
        "add",
        "--tenant",
        "shop",
        "--scopes",
        "write,read",
        "--file",
        &keys,
    ]);
    let key = String::from_utf8(made.stdout).expect("text").trim().to_owned();
    let server = Server::start(&dir.path().join("data"), &[("auth.keys_file", &keys)]);
    let series = test_series();
    let bearer = format!("Bearer {key}");
    send(&server, &series, &[("authorization", &bearer)]);
    await_all(&server.url, &series, |path, params| {
        let mut request = agent().get(format!("{}{path}", server.url));
        request = request.header("authorization", &bearer);
        for (name, value) in params {
            request = request.query(name, value);
        }
        let text = request.call().expect("an answer").body_mut().read_to_string().expect("text");
        serde_json::from_str(&text).expect("JSON")
    });
    Node { server, key, series, _dir: dir }
}

fn end() -> i64 {
    START + (HOURS - 2) * HOUR
}

impl Node {
    /// The number of events in the hours before the end, of series that pass.
    fn count(&self, hours: i64, end: i64, pass: impl Fn(&TestSeries) -> bool) -> usize {
        let range = end - hours * HOUR..end;
        let series = self.series.iter().filter(|s| s.metric == "page_view" && pass(s));
        let events = series.flat_map(|series| &series.events);
        events.filter(|(time, _)| range.contains(time)).count()
    }

    /// Events of each page in the day before the end.
    fn by_page(&self) -> Vec<(String, usize)> {
        let page = |s: &TestSeries, page: &str| s.labels.iter().any(|label| label.1 == page);
        ["a", "b", "c"].map(|p| (p.to_owned(), self.count(24, end(), |s| page(s, p)))).to_vec()
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the client runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).expect("text")
}

/// Where scripts/install-test-tools puts the clients.
fn installed(file: &str) -> Option<String> {
    let path = tools().join("prometheus-clients").join(file);
    if !path.exists() {
        eprintln!("skipped: {} is missing, scripts/install-test-tools makes it", path.display());
        return None;
    }
    Some(path.display().to_string())
}

fn script(file: &str) -> String {
    format!("{}/tests/it/prometheus/{file}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn promtool_asks_and_understands() {
    let Some(promtool) = program("promtool") else { return };
    let node = node();
    let url = node.server.url.replace("http://", &format!("http://any:{}@", node.key));
    let (first, last) = ((START / 1_000).to_string(), (end() / 1_000).to_string());
    let ask = |args: &[&str]| run(Command::new(&promtool).arg("query").args(args));
    let total = node.count(24, end(), |_| true);
    let instant = ask(&["instant", "--time", &last, &url, "sum(count_over_time(page_view[24h]))"]);
    assert_eq!(instant.trim(), format!("{{}} => {total} @[{last}]"));
    let range = ["range", "--start", &first, "--end", &last, "--step", "24h"];
    let range = ask(&[&range[..], &[&url, "sum(count_over_time(page_view[24h]))"]].concat());
    let expected =
        format!("{} @[{}]", node.count(24, START + 24 * HOUR, |_| true), START / 1_000 + 86_400);
    assert!(range.contains(&expected), "{expected} in {range}");
    let series = ask(&[
        "series",
        "--start",
        &first,
        "--end",
        &last,
        "--match",
        "page_view{country=\"DE\"}",
        &url,
    ]);
    assert_eq!(series.lines().count(), 3, "{series}");
    assert_eq!(
        ask(&["labels", "--start", &first, "--end", &last, &url, "country"])
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["AT", "DE", "FR"]
    );
    let refused = Command::new(&promtool)
        .args(["query", "instant", &url, "increase(page_view[5m])"])
        .output()
        .expect("promtool runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("not a whole number of hours"), "{said}");
}

#[test]
fn clients_of_python_and_javascript_ask_and_understand() {
    let (python, package) =
        (installed("python/bin/python"), installed("node_modules/prometheus-query"));
    let (Some(python), Some(package)) = (python, package) else { return };
    let node = node();
    let (start, last) = ((START / 1_000).to_string(), (end() / 1_000).to_string());
    let args = [&node.server.url, &node.key, &start, &last];
    let found = run(Command::new(python).arg(script("client.py")).args(args));
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found["connected"], true);
    for way in ["bearer", "password"] {
        check_python(&node, &found[way]);
    }
    let refused = found["refused"].as_str().expect("a text");
    assert!(refused.contains("not a whole number of hours"), "{refused}");

    let found = run(Command::new("node").arg(script("client.cjs")).arg(package).args(args));
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found["instant"], json!(node.by_page()), "{found}");
    let points = found["range"].as_array().expect("points");
    let last = (end(), node.count(1, end(), |_| true));
    assert_eq!(points.last(), Some(&json!(last)), "{found}");
    assert_eq!(found["labels"], json!(["__name__", "country", "page"]));
    assert_eq!(found["values"], json!(["AT", "DE", "FR"]));
    assert_eq!(found["series"].as_array().map(Vec::len), Some(3), "{found}");
    assert_eq!(found["build"], "3.0.0");
    assert!(found["refused"].as_str().expect("a text").contains("whole number"), "{found}");
}

fn check_python(node: &Node, found: &Value) {
    assert_eq!(found["metrics"], json!(["load_time", "page_view"]));
    assert_eq!(found["labels"], json!(["__name__", "country", "page"]));
    assert_eq!(found["values"], json!(["AT", "DE", "FR"]));
    let instant: Vec<(String, String)> = found["instant"]
        .as_array()
        .expect("series")
        .iter()
        .map(|series| {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            (text(&series["metric"]["page"]), text(&series["value"][1]))
        })
        .collect();
    let expected: Vec<_> =
        node.by_page().into_iter().map(|(page, count)| (page, count.to_string())).collect();
    assert_eq!(instant, expected);
    let is_german = |s: &TestSeries| s.labels.iter().any(|label| label.1 == "DE");
    let current = found["current"].as_array().expect("series");
    let sum: usize = current
        .iter()
        .map(|s| s["value"][1].as_str().expect("a text").parse::<usize>().expect("a number"))
        .sum();
    assert_eq!(sum, node.count(1, end(), is_german));
    // The start is within an hour: the first point has the time of the hour before.
    let values = found["range"][0]["values"].as_array().expect("points");
    assert_eq!(values[0][0].as_i64().map(|time| time % 3_600), Some(0), "{values:?}");
    assert_eq!(values.last().map(|point| &point[0]), Some(&json!(end() / 1_000 - 3_600)));
    assert_eq!(found["series"].as_array().map(Vec::len), Some(3), "{found}");
}
