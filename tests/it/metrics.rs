//! `/metrics` after traffic of every kind, as Prometheus reads it; the alerts, each of which fires,
//! and the queries of the operators' dashboard.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use yaml_rust2::{Yaml, YamlLoader};

use crate::prometheus::foreign::run_prometheus;
use crate::prometheus::{ask, program};
use crate::support::{Server, agent, wait_until};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn yaml(path: &str) -> Yaml {
    let mut documents = YamlLoader::load_from_str(&read(path)).expect("YAML");
    documents.remove(0)
}

fn succeeds(output: &Output) {
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// The names of all alerts.
fn alerts() -> BTreeSet<String> {
    let rules = yaml("config/prometheus/alerts.yml");
    let groups = rules["groups"].as_vec().expect("groups").iter();
    let alerts = groups.flat_map(|group| group["rules"].as_vec().expect("rules"));
    alerts.map(|alert| alert["alert"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn every_alert_fires_with_its_text_and_none_where_all_is_well() {
    let tests = yaml("tests/it/alerts.test.yml");
    let (mut fired, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for case in tests["tests"].as_vec().expect("tests") {
        for expected in case["alert_rule_test"].as_vec().expect("alerts") {
            let name = expected["alertname"].as_str().expect("a name").to_owned();
            let is_quiet = expected["exp_alerts"].as_vec().is_none_or(Vec::is_empty);
            if is_quiet {
                quiet.insert(name)
            } else {
                fired.insert(name)
            };
        }
    }
    assert_eq!(fired, alerts(), "tests/it/alerts.test.yml shows each alert when it fires");
    assert_eq!(quiet, alerts(), "and when it does not");
    let Some(promtool) = program("promtool") else { return };
    let file = root().join("tests/it/alerts.test.yml");
    succeeds(&Command::new(promtool).args(["test", "rules"]).arg(file).output().expect("it runs"));
}

/// The panels of the operators' dashboard, each with its queries, as Grafana fills them in.
fn panels() -> Vec<(String, Vec<String>)> {
    let board: Value = serde_json::from_str(&read("config/grafana/rollmill.json")).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    let places: BTreeSet<_> = panels.iter().map(|panel| panel["gridPos"].to_string()).collect();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].to_string()).collect();
    assert_eq!((places.len(), ids.len()), (panels.len(), panels.len()), "two in one place");
    let filled = |target: &Value| {
        let query = target["expr"].as_str().expect("a query");
        let query = query.replace("$__rate_interval", "5m").replace("$instance", ".*");
        assert!(!query.contains('$'), "{query}");
        query
    };
    let shown = panels.iter().filter_map(|panel| {
        let targets = panel["targets"].as_array()?;
        Some((panel["title"].as_str()?.to_owned(), targets.iter().map(filled).collect()))
    });
    shown.collect()
}

/// A node with a key of all scopes.
struct Node {
    server: Server,
    bearer: String,
    data: PathBuf,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (data, keys) = (dir.path().join("data"), dir.path().join("keys.toml"));
        let keys = keys.display().to_string();
        let scopes = "write,read,admin,operator";
        let made = ["keys", "add", "--tenant", "shop", "--scopes", scopes, "--file", &keys];
        let key = String::from_utf8(Server::cli(&made).stdout).expect("text").trim().to_owned();
        let origins = "https://shop.example";
        let server = Server::start(
            &data,
            &[("auth.keys_file", &keys), ("server.cors_origins", origins), ("boards.max", "1")],
        );
        Self { server, bearer: format!("Bearer {key}"), data, _dir: dir }
    }

    /// Sends a request with the key and these headers; the status of the answer.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        let url = format!("{}{path}", self.server.url);
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        let usual = [("content-type", "application/json"), ("authorization", &*self.bearer)];
        let usual = usual.iter().filter(|(name, _)| headers.iter().all(|(own, _)| own != name));
        for (name, value) in usual.chain(headers) {
            request = request.header(*name, *value);
        }
        let request = request.body(body.to_owned()).expect("a request");
        agent().run(request).expect("an answer").status().as_u16()
    }

    fn metrics(&self) -> String {
        let request = agent().get(format!("{}/metrics", self.server.url));
        let mut answer = request.header("authorization", &self.bearer).call().expect("an answer");
        answer.body_mut().read_to_string().expect("text")
    }

    /// Subscribes to a query, and waits for its first update.
    fn subscribe(&self) {
        let url = format!("{}/v1/ws", self.server.url.replace("http", "ws"));
        let mut request = url.into_client_request().expect("a request");
        request.headers_mut().insert("authorization", self.bearer.parse().expect("a header"));
        let (mut socket, _) = tungstenite::connect(request).expect("connected");
        let query = json!({"subscribe": "q", "query": {"metric": "bought", "step": "all"}});
        socket.send(Message::text(query.to_string())).expect("sent");
        let update = socket.read().expect("an update").into_text().expect("text");
        assert!(update.contains("\"update\":\"q\""), "{update}");
    }
}

/// The value of one series.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

fn send_from_sdks(node: &Node) {
    let batch = json!({"batch": [
        {"type": "track", "event": "bought", "userId": "u", "messageId": "1"},
        {"type": "track", "event": "bought", "userId": "u", "messageId": "2"},
        "no event",
    ]});
    assert_eq!(node.send("POST", "/v1/batch", &[], &batch.to_string()), 200);
    let event = json!({"event": "seen", "distinct_id": "u", "uuid": "4"}).to_string();
    assert_eq!(node.send("POST", "/i/v0/e/", &[], &event), 200);
    assert_eq!(node.send("POST", "/mp/collect", &[], "no JSON"), 204);
    let event = json!({"specversion": "1.0", "id": "5", "source": "/s", "type": "done"});
    let headers = [("content-type", "application/cloudevents+json")];
    assert_eq!(node.send("POST", "/v1/cloudevents", &headers, &event.to_string()), 202);
}

fn ask_as_prometheus(node: &Node) {
    for (query, status) in [("1%2B1", 200), ("increase(bought[5m])", 422), ("sum(", 400)] {
        assert_eq!(node.send("GET", &format!("/api/v1/query?query={query}"), &[], ""), status);
    }
}

fn come_from_other_origins(node: &Node) {
    let asked = [
        ("origin", "https://evil.example"),
        ("access-control-request-method", "POST"),
        ("authorization", ""),
    ];
    assert!(node.send("OPTIONS", "/v1/events", &asked, "") >= 400);
    let listed = [("origin", "https://shop.example"), asked[1], asked[2]];
    assert_eq!(node.send("OPTIONS", "/v1/events", &listed, ""), 204);
    let password = [("origin", "https://evil.example"), ("authorization", "Basic OmtleQ==")];
    assert_eq!(node.send("GET", "/api/v1/query?query=1", &password, ""), 403);
}

fn make_boards(node: &Node) {
    let board = json!({"name": "b", "panels": []}).to_string();
    for (id, status) in [("a", 201), ("b", 422)] {
        let path = format!("/v1/boards/{id}");
        assert_eq!(node.send("PUT", &path, &[("if-none-match", "*")], &board), status, "{id}");
    }
}

/// Starts a replay of events whose archive object is gone.
fn start_a_replay_that_waits(node: &Node) {
    wait_until("all events are archived", || {
        assert_eq!(node.send("POST", "/v1/archive/flush", &[], ""), 200);
        let text = node.metrics();
        let unarchived = text.lines().filter(|line| line.starts_with("rollmill_shard_unarchived"));
        value(&text, "rollmill_events_aggregated_total") == Some(4.0)
            && unarchived
                .filter_map(|line| line.rsplit_once(' '))
                .all(|(_, records)| records == "0")
    });
    let objects = objects(&node.data.join("archive"));
    assert!(!objects.is_empty());
    for object in objects {
        std::fs::remove_file(object).expect("removed");
    }
    let asked = json!({"metrics": ["bought"], "from": "2020-01-01"}).to_string();
    let status = node.send("POST", "/v1/replays", &[], &asked);
    assert!(status < 300, "{status}");
}

fn objects(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(objects(&path));
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            found.push(path);
        }
    }
    found
}

/// The configuration of Prometheus in docs/how-to/alert-with-prometheus.md, for this node.
fn documented_configuration(node: &Node, key: &Path) -> String {
    let page = read("docs/how-to/alert-with-prometheus.md");
    let block = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    let address = node.server.url.trim_start_matches("http://");
    let rules = root().join("config/prometheus/alerts.yml").display().to_string();
    let config = block
        .expect("a configuration")
        .replace("\"node-1:8080\", \"node-2:8080\", \"node-3:8080\"", &format!("\"{address}\""))
        .replace("/etc/prometheus/rollmill.key", &key.display().to_string())
        .replace("alerts.yml", &rules);
    // A busy machine takes a second or two for /metrics.
    let often = "global: {scrape_interval: 4s, scrape_timeout: 4s, evaluation_interval: 1s}";
    format!("{often}\n{config}")
}

/// Lets a Prometheus read the node as the page says: every alert is evaluated, the right one is on
/// its way, and no panel of the dashboard is empty that has something to show.
fn prometheus_reads(node: &Node) {
    let Some(program) = program("prometheus") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("rollmill.key");
    std::fs::write(&key, node.bearer.trim_start_matches("Bearer ")).expect("written");
    let prometheus = run_prometheus(&program, dir.path(), &documented_configuration(node, &key));
    let query = |query: &str| {
        let answer = ask(&prometheus.url, "/api/v1/query", &[("query", query)]);
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().expect("series").clone()
    };
    wait_until("Prometheus has read the node three times", || {
        !query("sum_over_time(up{job=\"rollmill\"}[5m]) >= 3").is_empty()
    });
    let states = || {
        let answer = ask(&prometheus.url, "/api/v1/rules", &[]);
        let groups = answer["data"]["groups"].as_array().expect("groups").clone();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules"));
        rules.cloned().collect::<Vec<Value>>()
    };
    let is = |state: &Value, of: &str| state[of].as_str().unwrap_or_default().to_owned();
    wait_until("every alert is evaluated, and the replay that waits is noticed", || {
        let found = states();
        found.len() == alerts().len()
            && found.iter().all(|rule| is(rule, "health") == "ok")
            && found.iter().any(|rule| {
                (is(rule, "name"), is(rule, "state"))
                    == ("RollmillReplayWaits".to_owned(), "pending".to_owned())
            })
    });
    let firing: Vec<_> = states()
        .into_iter()
        .filter(|rule| is(rule, "state") == "firing")
        .map(|rule| is(&rule, "name"))
        // A machine so busy that no answer came in time for a minute.
        .filter(|name| name != "RollmillDown")
        .collect();
    assert!(firing.is_empty(), "{firing:?}");
    let panels = panels();
    assert_eq!(panels.len(), 40);
    // Some gauges are set by watches that look every few seconds, and appear in a later scrape.
    for (title, queries) in &panels {
        for asked in queries {
            wait_until(&format!("{title} shows something"), || !query(asked).is_empty());
        }
    }
}

#[test]
fn metrics_tell_of_sdks_promql_subscriptions_pages_boards_and_replays() {
    let node = Node::start();
    send_from_sdks(&node);
    ask_as_prometheus(&node);
    come_from_other_origins(&node);
    make_boards(&node);
    node.subscribe();
    start_a_replay_that_waits(&node);
    let waiting = "rollmill_replays_waiting{reason=\"object\"}";
    wait_until("the replay waits for the object", || {
        value(&node.metrics(), waiting).is_some_and(|replays| replays >= 1.0)
    });
    let building = "rollmill_generations{state=\"building\"}";
    wait_until("the keeper has seen the replay", || value(&node.metrics(), building) == Some(1.0));
    let text = node.metrics();
    for (series, expected) in [
        ("collect_events_total{protocol=\"segment\",outcome=\"accepted\"}", 2.0),
        ("collect_events_total{protocol=\"segment\",outcome=\"event_unreadable\"}", 1.0),
        ("collect_events_total{protocol=\"posthog\",outcome=\"accepted\"}", 1.0),
        ("collect_events_total{protocol=\"posthog\",outcome=\"event_unreadable\"}", 0.0),
        ("collect_events_total{protocol=\"ga4\",outcome=\"event_unreadable\"}", 1.0),
        ("collect_events_total{protocol=\"cloudevents\",outcome=\"accepted\"}", 1.0),
        ("prometheus_requests_total{outcome=\"success\"}", 1.0),
        ("prometheus_requests_total{outcome=\"execution\"}", 1.0),
        ("prometheus_requests_total{outcome=\"bad_data\"}", 1.0),
        ("prometheus_requests_total{outcome=\"forbidden\"}", 1.0),
        ("cors_refused_total{kind=\"preflight\"}", 1.0),
        ("cors_refused_total{kind=\"request\"}", 1.0),
        ("request_errors_total{code=\"too_many_boards\"}", 1.0),
        ("request_errors_total{code=\"origin_forbidden\"}", 1.0),
        ("request_errors_total{code=\"method_not_allowed\"}", 1.0),
        ("request_errors_total{code=\"query_timeout\"}", 0.0),
        ("generations{state=\"served\"}", 0.0),
        ("replays_waiting{reason=\"expired\"}", 0.0),
        ("replays_given_up_total", 0.0),
    ] {
        assert_eq!(value(&text, &format!("rollmill_{series}")), Some(expected), "{series}: {text}");
    }
    let sent = value(&text, "rollmill_ws_updates_total{outcome=\"sent\"}");
    assert!(sent.is_some_and(|updates| updates >= 1.0), "{sent:?}");
    prometheus_reads(&node);
    let Some(promtool) = program("promtool") else { return };
    let file = node.data.with_extension("metrics");
    std::fs::write(&file, &text).expect("written");
    let input = std::fs::File::open(&file).expect("opened");
    let mut check = Command::new(promtool);
    let checked = check.args(["check", "metrics"]).stdin(input).output().expect("it runs");
    succeeds(&checked);
    assert!(checked.stderr.is_empty(), "{}", String::from_utf8_lossy(&checked.stderr));
}
