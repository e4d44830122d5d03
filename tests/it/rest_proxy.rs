//! The Kafka REST Proxy API of a running server: the same results as over HTTP and WebSocket, and
//! the published clients.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::support::{PATIENCE, Server, agent};

const EVENTS: usize = 600;

fn events() -> Vec<Value> {
    let event = |n: usize| {
        let (minute, country) = (1_767_225_600_000 + n as i64 * 60_000, ["DE", "FR", "AT"][n % 3]);
        json!({
            "metric": "sales",
            "timestamp": minute,
            "value": format!("{}.07", n % 97),
            "id": format!("e{n}"),
            "labels": {"country": country},
            "user": format!("u{}", n % 41),
        })
    };
    (0..EVENTS).map(event).collect()
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn produce(server: &Server, kind: &str, records: &[Value]) -> Value {
    let request = agent().post(format!("{}/topics/any", server.url)).header("content-type", kind);
    let mut answer = request.send(json!({"records": records}).to_string()).expect("an answer");
    let text = answer.body_mut().read_to_string().expect("a body");
    assert_eq!(answer.status(), 200, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

fn send_http(server: &Server, batch: &[Value]) {
    assert_eq!(server.post(&Value::from(batch).to_string()).0, 202);
}

fn send_ws(server: &Server, batch: &[Value]) {
    let (mut socket, _) =
        tungstenite::connect(format!("{}/v1/ws", server.url.replace("http", "ws")))
            .expect("connected");
    socket.send(Message::text(json!({"seq": 1, "events": batch}).to_string())).expect("sent");
    let answer = socket.read().expect("an answer").into_text().expect("text");
    assert!(answer.contains("\"ack\":1") && answer.contains("\"rejected\":0"), "{answer}");
}

/// Sends half of a batch as JSON and half as base64, every second record with a key.
fn send_rest(server: &Server, batch: &[Value]) {
    let (left, right) = batch.split_at(batch.len() / 2);
    let key = |n: usize| if n.is_multiple_of(2) { json!("k") } else { Value::Null };
    let left: Vec<_> =
        left.iter().enumerate().map(|(n, event)| json!({"key": key(n), "value": event})).collect();
    let right: Vec<_> = right
        .iter()
        .enumerate()
        .map(|(n, event)| json!({"key": key(n), "value": base64(&event.to_string())}))
        .collect();
    for (kind, records) in [("json", left), ("binary", right)] {
        let answer = produce(server, &format!("application/vnd.kafka.{kind}.v2+json"), &records);
        let entries = answer["offsets"].as_array().expect("entries");
        assert_eq!(entries.len(), records.len());
        assert!(
            entries.iter().all(|entry| entry["error_code"].is_null() && entry["offset"] == -1),
            "{answer}"
        );
    }
}

fn rollups(server: &Server) -> Value {
    let range = "from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z";
    let query =
        format!("/v1/query?metric=sales&{range}&by=country&agg=count,sum,min,max,distinct,p50,p99");
    let counted = |answer: &Value| {
        let points = answer["series"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|s| s["points"].as_array().into_iter().flatten());
        points.filter_map(|point| point["count"].as_u64()).sum::<u64>() == EVENTS as u64
    };
    server.await_query(&query, counted)["series"].clone()
}

/// Waits until this many events were recognised as duplicates.
fn await_deduplicated(server: &Server, events: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, answer) = server.get("/v1/accounting");
        let hours = answer["hours"].as_array().into_iter().flatten();
        if status == 200
            && hours.filter_map(|hour| hour["deduplicated"].as_u64()).sum::<u64>() == events
        {
            return;
        }
        assert!(Instant::now() < deadline, "{events} copies were sent: {status} {answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

type Send = fn(&Server, &[Value]);

#[test]
fn every_way_in_gives_the_same_rollups_and_counts_an_id_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let ways: [(&str, Send); 3] = [("http", send_http), ("ws", send_ws), ("rest", send_rest)];
    let mut answers = Vec::new();
    for (first, (name, send)) in ways.iter().enumerate() {
        let server = Server::start(&dir.path().join(name), &[("flush.interval", "200ms")]);
        for batch in events().chunks(100) {
            send(&server, batch);
        }
        answers.push(rollups(&server));
        // The same ids over every other protocol: nothing is counted again.
        for (at, (_, again)) in ways.iter().enumerate().filter(|(at, _)| *at != first) {
            events().chunks(100 + at).for_each(|batch| again(&server, batch));
        }
        await_deduplicated(&server, 2 * EVENTS as u64);
        assert_eq!(rollups(&server), answers[first], "{name}: an id was counted again");
    }
    assert!(
        answers[0].as_array().expect("series").len() == 3 && answers[0].to_string().contains("p99"),
        "{}",
        answers[0]
    );
    assert_eq!(answers[1], answers[0], "WebSocket");
    assert_eq!(answers[2], answers[0], "REST Proxy");
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the client runs");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

#[test]
fn curl_sends_as_the_quickstart_does_with_a_password() {
    let dir = tempfile::tempdir().expect("a directory");
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("skipped: curl is missing, scripts/install-test-tools installs it");
        return;
    }
    let keys = dir.path().join("keys.toml");
    let made = Server::cli(&[
        "keys",
        "add",
        "--tenant",
        "shop",
        "--scopes",
        "write,read",
        "--file",
        &keys.display().to_string(),
    ]);
    let key = String::from_utf8(made.stdout).expect("text").trim().to_owned();
    let server =
        Server::start(&dir.path().join("data"), &[("auth.keys_file", &keys.display().to_string())]);
    let curl = |user: &str| {
        let mut command = Command::new("curl");
        command.args([
            "-sS",
            "-u",
            user,
            "-X",
            "POST",
            "-H",
            "Content-Type: application/vnd.kafka.json.v2+json",
        ]);
        command.args([
            "-H",
            "Accept: application/vnd.kafka.v2+json",
            "--data",
            r#"{"records":[{"value":{"value":3}}]}"#,
        ]);
        let answer = run(command.arg(format!("{}/topics/jsontest", server.url))).stdout;
        serde_json::from_slice::<Value>(&answer).expect("JSON")
    };
    let answer = curl(&format!("any:{key}"));
    assert_eq!(
        (&answer["offsets"][0]["error"], &answer["key_schema_id"]),
        (&Value::Null, &Value::Null),
        "{answer}"
    );
    assert!(answer["offsets"][0]["partition"].is_u64(), "{answer}");
    assert_eq!(curl("any:wrong")["error_code"], 40_101);
    let url = format!("{}/v1/query?metric=jsontest&step=all&agg=sum", server.url);
    let counted = || {
        let request = agent().get(&url).header("authorization", format!("Bearer {key}"));
        let text = request.call().expect("an answer").body_mut().read_to_string().expect("text");
        serde_json::from_str::<Value>(&text).expect("JSON")["series"][0]["points"][0]["sum"].clone()
    };
    // An acknowledged event is durable, and counted soon after.
    let deadline = Instant::now() + PATIENCE;
    while counted() != 3 {
        assert!(Instant::now() < deadline, "{}", counted());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// npm's `kafka-rest`, as installed by `make tools`.
fn kafka_rest() -> Option<PathBuf> {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("data-sets/tools/node_modules");
    let there = modules.join("kafka-rest").is_dir()
        && Command::new("node").arg("--version").output().is_ok();
    there.then_some(modules)
}

#[test]
fn the_published_client_produces() {
    let Some(modules) = kafka_rest() else {
        eprintln!(
            "skipped: node or its package kafka-rest is missing, scripts/install-test-tools \
             installs the package where node is"
        );
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    let script = "const Client = require('kafka-rest');\nconst topic = new Client({url: \
                  process.argv[1]}).topic('clicks');\nconst records = [{key: 'k', value: \
                  JSON.stringify({value: 2, id: 'a'})}, {value: JSON.stringify({metric: 'own'})}, \
                  {value: 'no event'}];\ntopic.produce(records, (error, answer) => { if (error) { \
                  throw error; } console.log(JSON.stringify(answer)); });";
    for _ in 0..2 {
        let output =
            run(Command::new("node").args(["-e", script, &server.url]).env("NODE_PATH", &modules));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let codes: Vec<_> = answer["offsets"]
            .as_array()
            .expect("entries")
            .iter()
            .map(|entry| &entry["error_code"])
            .collect();
        assert_eq!(codes, [&Value::Null, &Value::Null, &json!(50_002)], "{answer}");
    }
    server.await_query("/v1/query?metric=own&step=all", |a| {
        a["series"][0]["points"][0]["count"] == 2
    });
    let answer = server.await_query("/v1/query?metric=clicks&step=all&agg=count,sum", |a| {
        a["series"][0].is_object()
    });
    assert_eq!(
        answer["series"][0]["points"][0]["count"], 1,
        "the second one has the same id: {answer}"
    );
    assert_eq!(answer["series"][0]["points"][0]["sum"], 2, "{answer}");
}
