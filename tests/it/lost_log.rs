//! A log that lost its beginning, including records above the checkpoint: the shard reads them from
//! the archive, or stops and names them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rollmill::model::offset::ShardId;
use rollmill::persistence::log::kafka::topic::{TopicAdmin, TopicSpec};
use rollmill::persistence::log::kafka::{KafkaConnection, KafkaProperties};
use serde_json::Value;

use crate::support::{PATIENCE, Server, free_port};

const ALL: &str = "/v1/query?metric=m&step=all&agg=count,distinct";

/// Flushes and archives at once, or never.
fn settings(at_once: bool) -> Vec<(&'static str, String)> {
    let often = if at_once { "100ms" } else { "1h" };
    let bytes = if at_once { "32KiB" } else { "128MiB" };
    let keys = [
        "shards.count",
        "log.segment_bytes",
        "flush.interval",
        "archive.max_delay",
        "archive.max_bytes",
    ];
    keys.into_iter().zip(["1", "64KiB", often, often, bytes].map(str::to_owned)).collect()
}

fn start(data: &Path, settings: &[(&str, String)]) -> Server {
    let settings: Vec<(&str, &str)> =
        settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Server::start(data, &settings)
}

/// Sends events of about 3 KiB, one per request.
fn send(server: &Server, ids: std::ops::Range<u32>) {
    let filling = "x".repeat(3_000);
    for id in ids {
        let event = format!(
            r#"{{"metric":"m","id":"{id}","user":"u{id}","properties":{{"filling":"{filling}"}}}}"#
        );
        let deadline = Instant::now() + PATIENCE;
        while server.post(&event).0 != 202 {
            assert!(Instant::now() < deadline, "event {id} is not taken");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn point(answer: &Value) -> &Value {
    &answer["series"][0]["points"][0]
}

fn await_count(server: &Server, count: u32) -> Value {
    server.await_query(ALL, |answer| point(answer)["count"] == count)
}

/// Waits until the store and the archive hold everything.
fn at_rest(server: &Server, records: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shard = server.get("/v1/status").1["shards"][0].clone();
        if shard["committed"] == records && shard["archived"] == records {
            return;
        }
        assert!(Instant::now() < deadline, "not at rest: {shard}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn metric(server: &Server, name: &str) -> u64 {
    let text =
        crate::support::agent().get(format!("{}/metrics", server.url)).call().expect("metrics");
    let text = text.into_body().read_to_string().expect("text");
    text.lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn said(data: &Path) -> String {
    std::fs::read_to_string(data.with_extension("server.log")).expect("the log of the process")
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data.join("log"))
        .expect("a log")
        .map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    paths.sort();
    paths
}

#[test]
fn what_neither_log_nor_archive_has_is_refused_and_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = start(&data, &settings(false));
    send(&server, 0..80);
    await_count(&server, 80);
    server.kill();
    std::fs::remove_file(&segments(&data)[0]).expect("removed");
    let mut server = Server::spawn(&data, free_port(), &[("shards.count", "1")]);
    let deadline = Instant::now() + PATIENCE;
    while !server.has_ended() {
        assert!(Instant::now() < deadline, "it takes writes");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = said(&data);
    assert!(
        said.contains("shard 0 cannot go on") && said.contains("the log lost the records [0, "),
        "{said}"
    );
    assert!(said.contains("are not in the archive either"), "{said}");
}

#[test]
fn what_kafka_lost_comes_from_the_archive_or_stops_the_shard() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let brokers = crate::kafka::broker::Kafka::shared().brokers();
    let postgres = crate::postgres::shared();
    let connection = KafkaConnection {
        brokers: brokers.clone(),
        topic: "lost".to_owned(),
        properties: KafkaProperties::parse("").expect("none"),
        timeout: Duration::from_secs(60),
    };
    let admin = TopicAdmin::new(&connection).expect("settings");
    admin.create(&TopicSpec { partitions: 1, replication: 1, min_isr: 1 }, 77).expect("a topic");
    let shared = [
        ("kafka.brokers", brokers),
        ("kafka.topic", "lost".to_owned()),
        ("kafka.group", "lost".to_owned()),
        ("kafka.timeout", "1m".to_owned()),
        ("archive.url", format!("file://{}", dir.path().join("archive").display())),
    ];
    let with = |at_once: bool, database: &str| {
        let store = ("store.url", postgres.url(database));
        settings(at_once).into_iter().chain(shared.clone()).chain([store]).collect::<Vec<_>>()
    };
    let (before, after) = (postgres.database(), postgres.database());
    // Restores a backup of the store with 20 events, after the topic has lost the next 10.
    let server = start(&data, &with(true, &before));
    send(&server, 0..20);
    at_rest(&server, 20);
    assert_eq!(server.stop(), Some(0));
    postgres.copy(&before, &after);
    let server = start(&data, &with(true, &before));
    send(&server, 20..40);
    at_rest(&server, 40);
    let expected = point(&await_count(&server, 40)).clone();
    server.kill();
    admin.delete_records_below(&[(ShardId(0), 30)]).expect("deleted");
    let server = start(&data, &with(true, &after));
    assert_eq!(*point(&await_count(&server, 40)), expected);
    let healed = metric(&server, "rollmill_log_healed_records_total");
    assert!(
        (10..=20).contains(&healed),
        "{healed}: from 20 to the end of the object that reaches 30"
    );
    // Archiving resumes too, with the remaining records.
    at_rest(&server, 40);
    let lost =
        "the log lost records of this shard: they are read from the archive shard=0 from=20 to=30";
    assert!(said(&data).contains(lost), "{}", said(&data));
    assert!(said(&data).contains("were in the archive already"), "{}", said(&data));
    let end = 40;
    assert_eq!(server.stop(), Some(0));

    // From here on, nothing is flushed or archived.
    let server = start(&data, &with(false, &after));
    await_count(&server, 40);
    send(&server, 40..50);
    await_count(&server, 50);
    server.kill();
    admin.delete_records_below(&[(ShardId(0), end + 3)]).expect("deleted");
    let server = start(&data, &with(true, &after));
    let deadline = Instant::now() + PATIENCE;
    let named =
        format!("the log lost the records [{end}, {}), and [{end}, {}) of them", end + 3, end + 3);
    while !said(&data).contains(&format!("the shard stops: {named}")) {
        assert!(Instant::now() < deadline, "not loud: {}", said(&data));
        std::thread::sleep(Duration::from_millis(100));
    }
    let (status, answer) = server.get(ALL);
    assert_eq!((status, &answer["completeness"]["partial"]), (200, &true.into()), "{answer}");
    assert_eq!(server.get("/readyz?role=shards").0, 503);
    assert_eq!(server.get("/readyz?role=gateway").0, 200, "writes are not concerned");
}
