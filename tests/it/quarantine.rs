//! Poison: an event that crashes its shard, or the whole process, whenever it is folded, is
//! quarantined. Its neighbours count, other shards continue, and operators release or discard it.
//!
//! The faulty node is this test binary, started again as a separate process: a whole node, with a
//! fold that panics on one user.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rollmill::config::Config;
use rollmill::node::{self, TestFaults};
use serde_json::Value;

use crate::support::{PATIENCE, Server, agent, free_port};

pub(crate) const POISON: &str = "poison";

/// Whether a panic ends the shard's actor or the process.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum CrashScope {
    Actor,
    Process,
}

/// Not a test itself: the entry point of the faulty node.
#[test]
#[ignore = "started by the other tests"]
fn faulty_node() {
    let var = |name| std::env::var(name).ok();
    let (Some(data), Some(listen)) = (var("FAULTY_DATA"), var("FAULTY_LISTEN")) else { return };
    if var("FAULTY_ABORTS").is_some() {
        std::panic::set_hook(Box::new(|_| std::process::abort()));
    }
    let flags: Vec<(&str, String)> = vec![("data.dir", data), ("server.listen", listen)];
    let config = Config::load(None, settings().into_iter(), &flags).expect("a configuration");
    let panic_on_user = Some(xxhash_rust::xxh3::xxh3_64(POISON.as_bytes()));
    node::serve_with(&config, TestFaults { panic_on_user }).expect("served");
}

const SETTINGS: [(&str, &str); 4] = [
    ("shards.count", "4"),
    ("flush.interval", "100ms"),
    ("supervision.backoff_min", "5ms"),
    ("supervision.backoff_max", "20ms"),
];

fn settings() -> Vec<(String, String)> {
    let name = |key: &str| format!("ROLLMILL_{}", key.replace('.', "_").to_uppercase());
    SETTINGS.iter().map(|(key, value)| (name(key), (*value).to_owned())).collect()
}

pub(crate) fn faulty(data: &Path, death: CrashScope) -> Server {
    let port = free_port();
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", "quarantine::faulty_node", "--ignored", "--nocapture"]);
    command.env("FAULTY_DATA", data).env("FAULTY_LISTEN", format!("127.0.0.1:{port}"));
    if death == CrashScope::Process {
        command.env("FAULTY_ABORTS", "1");
    }
    Server::run(command, data, port)
}

/// One request: neighbours of the poison in its own record and series, and events of other shards.
fn events(poison_id: &str) -> String {
    let event = |metric: &str, user: &str, id: &str| {
        format!(r#"{{"metric":"{metric}","value":2,"user":"{user}","id":"{id}"}}"#)
    };
    let mut events = vec![
        event("m", "a", "1"),
        event("m", POISON, poison_id),
        event("m", "b", "2"),
        event("m", "c", "3"),
    ];
    events.extend((0..20).map(|n| event(&format!("other_{n}"), "a", "1")));
    format!("[{}]", events.join(","))
}

fn count(answer: &Value) -> u64 {
    let points = answer["series"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|s| s["points"].as_array().into_iter().flatten());
    points.filter_map(|p| p["count"].as_u64()).sum()
}

fn await_accounted(server: &Server, expected: [u64; 3]) {
    let deadline = Instant::now() + PATIENCE;
    while server.accounted() != expected {
        assert!(
            Instant::now() < deadline,
            "expected {expected:?}, accounted {:?}",
            server.accounted()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn quarantined(server: &Server, all: bool) -> Vec<Value> {
    let (status, answer) =
        server.get(if all { "/v1/quarantine?all=true" } else { "/v1/quarantine" });
    assert_eq!(status, 200, "{answer}");
    answer["events"].as_array().cloned().expect("events")
}

fn place(event: &Value) -> String {
    format!("{}/{}/{}", event["shard"], event["offset"], event["index"])
}

/// Runs `rollmill quarantine …` against the server. Returns the exit code and the output.
fn quarantine(server: &Server, args: &[&str]) -> (Option<i32>, String) {
    let output = Server::cli(&[&["quarantine"], args, &["--url", &server.url]].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).expect("text"))
}

fn verify(data: &Path) {
    let output = Server::cli(&["verify", "--data", &data.display().to_string()]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
}

#[test]
fn an_event_that_kills_its_shard_is_set_aside_and_released_when_the_fault_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let mut server = faulty(&data, CrashScope::Actor);
    server.wait_ready("gateway");
    assert_eq!(server.post(&events("bad")).0, 202);
    // Other shards answer while the poisoned one keeps crashing.
    server.await_query("/v1/query?metric=m&agg=count", |a| count(a) == 3);
    for n in 0..20 {
        server.await_query(&format!("/v1/query?metric=other_{n}"), |a| count(a) == 1);
    }
    await_accounted(&server, [23, 0, 1]);
    let waiting = quarantined(&server, false);
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    let event = &waiting[0];
    assert_eq!((&event["event"]["id"], &event["event"]["user"]), (&"bad".into(), &POISON.into()));
    assert_eq!(event["event"]["series"]["metric"], "m");
    assert!(event["event"]["raw"].as_str().is_some_and(|raw| raw.contains("\"bad\"")), "{event}");

    let (code, said) = quarantine(&server, &["list"]);
    assert!(code == Some(0) && said.contains(&place(event)) && said.contains("bad"), "{said}");
    let (code, said) = quarantine(&server, &["release", &place(event)]);
    assert_eq!(
        (code, said.contains("crashed")),
        (Some(1), true),
        "the fault is still there: {said}"
    );
    assert_eq!(server.post(&events("bad")).0, 202);
    await_accounted(&server, [23, 24, 1]);
    assert_eq!(quarantined(&server, false).len(), 1, "its retry is a duplicate");
    verify(&data);
    assert_eq!(server.post(&events("worse")).0, 202);
    await_accounted(&server, [23, 47, 2]);
    assert_eq!(server.stop(), Some(0));

    let server = Server::start(&data, &SETTINGS);
    let worse = quarantined(&server, false)
        .into_iter()
        .find(|e| e["event"]["id"] == "worse")
        .expect("kept over the restart");
    let (code, said) = quarantine(&server, &["release", &place(event)]);
    assert!(code == Some(0) && said.contains("released"), "{said}");
    server.await_query("/v1/query?metric=m&agg=count,sum", |a| count(a) == 4);
    assert_eq!(server.accounted(), [24, 47, 1]);
    let (code, said) = quarantine(&server, &["release", &place(event)]);
    assert_eq!((code, said.contains("not in the quarantine")), (Some(1), true), "twice: {said}");
    verify(&data);

    assert_eq!(quarantine(&server, &["discard", &place(&worse)]).0, Some(0));
    assert_eq!((quarantined(&server, false).len(), quarantined(&server, true).len()), (0, 1));
    let (code, said) = quarantine(&server, &["release", &place(&worse)]);
    assert_eq!((code, said.contains("discarded")), (Some(1), true), "{said}");
    assert_eq!(server.post(&events("bad")).0, 202);
    await_accounted(&server, [24, 71, 1]);
    server.await_query("/v1/query?metric=m&agg=count", |a| count(a) == 4);
    verify(&data);
    assert_eq!(quarantine(&server, &["release", "--all"]).0, Some(0), "nothing waits");
}

/// Whether the process lives long enough to give a complete answer.
fn survives(server: &mut Server) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !server.has_ended() {
        assert!(Instant::now() < deadline, "neither dead nor through");
        let answer = agent().get(format!("{}/v1/query?metric=m", server.url)).call().ok();
        let answer = answer.and_then(|mut answer| answer.body_mut().read_to_string().ok());
        let answer: Value =
            answer.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        if answer["completeness"]["partial"] == false && count(&answer) == 3 {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn an_event_that_kills_the_process_is_set_aside_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    // A healthy node accepts the events and is killed before it has folded them all.
    let server = Server::start(&data, &[("shards.count", "4"), ("flush.interval", "1h")]);
    assert_eq!(server.post(&events("bad")).0, 202);
    server.kill();
    let mut deaths = 0;
    let server = loop {
        let mut server = faulty(&data, CrashScope::Process);
        if survives(&mut server) {
            break server;
        }
        deaths += 1;
        assert!(deaths < 20, "it dies for ever");
    };
    assert!(deaths >= 5, "it died {deaths} times only");
    await_accounted(&server, [23, 0, 1]);
    assert_eq!(quarantined(&server, false).len(), 1);
    verify(&data);
    drop(server);

    let server = Server::start(&data, &SETTINGS);
    assert_eq!(quarantine(&server, &["release", "--all"]).0, Some(0));
    server.await_query("/v1/query?metric=m", |a| count(a) == 4);
    assert_eq!(server.accounted(), [24, 0, 0]);
    verify(&data);
}
