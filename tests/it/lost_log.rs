//! A log that lost its beginning above the checkpoint: the shard takes the records from the archive, or stops and names them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollmill::clock::{Clock, SystemClock};
use rollmill::config::Config;
use rollmill::model::manifest::Decisions;
use rollmill::model::offset::ShardId;
use rollmill::node::{DataDir, backends, offline};
use rollmill::persistence::log::kafka::topic::{Admin, Wish};
use rollmill::persistence::log::kafka::{Connection, Properties};
use serde_json::Value;

use crate::support::{Server, free_port};

const ALL: &str = "/v1/query?metric=m&step=all&agg=count,distinct";

/// Nothing is flushed before the end; what is applied is archived at once, or never.
fn settings(archive_delay: &str) -> Vec<(&'static str, String)> {
    let fixed = [("shards.count", "1"), ("log.segment_bytes", "64KiB"), ("flush.interval", "1h"), ("archive.max_bytes", "32KiB")];
    let fixed = fixed.into_iter().map(|(key, value)| (key, value.to_owned()));
    fixed.chain([("archive.max_delay", archive_delay.to_owned())]).collect()
}

fn start(data: &Path, settings: &[(&str, String)]) -> Server {
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Server::start(data, &settings)
}

/// Sends events of about 3 KiB, one a request.
fn send(server: &Server, ids: std::ops::Range<u32>) {
    let filling = "x".repeat(3_000);
    for id in ids {
        let event = format!(r#"{{"metric":"m","id":"{id}","user":"u{id}","properties":{{"filling":"{filling}"}}}}"#);
        let deadline = Instant::now() + Duration::from_secs(30);
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

/// Archives all that the log has, ahead of the checkpoint, as releases did whose objects carried no decisions; the log's end. Nobody serves.
fn archive_ahead(data: &Path, settings: &[(&'static str, String)]) -> u64 {
    let flags: Vec<(&str, String)> = settings.iter().cloned().chain([("data.dir", data.display().to_string())]).collect();
    let config = Config::load(None, std::iter::empty(), &flags).expect("a configuration");
    let (dir, clock): (_, Arc<dyn Clock>) = (DataDir::new(data), Arc::new(SystemClock));
    let store = backends::store(&config, &dir, &clock).expect("the store");
    let archive = backends::archive(&config, &dir).expect("the archive");
    let log = offline::log(&config, &dir).expect("the log");
    let shard = ShardId(0);
    let mut next = 0;
    while next < log.bounds(shard).expect("bounds").1 {
        let epoch = store.snapshot().and_then(|mut s| s.checkpoints()).expect("a checkpoint")[0].1.epoch;
        let records = log.read(shard, next, 32 << 10).expect("records");
        next = records.last().expect("a record").offset + 1;
        let row = archive.write(log.id(), shard, epoch, &records, &Decisions::default()).expect("written");
        store.archived(&row).expect("noted");
    }
    next
}

fn metric(server: &Server, name: &str) -> u64 {
    let text = crate::support::agent().get(format!("{}/metrics", server.url)).call().expect("metrics");
    let text = text.into_body().read_to_string().expect("text");
    text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn said(data: &Path) -> String {
    std::fs::read_to_string(data.with_extension("server.log")).expect("the log of the process")
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data.join("log")).expect("a log").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    paths.sort();
    paths
}

#[test]
fn what_the_embedded_log_lost_comes_from_the_archive() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = start(&data, &settings("100ms"));
    send(&server, 0..80);
    let expected = point(&await_count(&server, 80)).clone();
    let (_, status) = server.get("/v1/status");
    assert_eq!(status["shards"][0]["committed"], 0, "nothing is in the store yet");
    server.kill();
    let end = archive_ahead(&data, &settings("100ms"));

    let paths = segments(&data);
    assert!(paths.len() >= 3, "{paths:?}");
    paths[..paths.len() - 1].iter().for_each(|path| std::fs::remove_file(path).expect("removed"));
    let server = start(&data, &settings("100ms"));
    assert_eq!(*point(&await_count(&server, 80)), expected);
    let healed = metric(&server, "rollmill_log_healed_records_total");
    assert!((1..=end).contains(&healed), "{healed} of {end}");
    assert_eq!(metric(&server, "rollmill_log_healings_total{outcome=\"done\"}"), 1);
    // The same ids once more, and new ones.
    send(&server, 70..90);
    await_count(&server, 90);
    assert_eq!(server.stop(), Some(0));
    assert!(said(&data).contains("the log lost the records [0, "), "{}", said(&data));
    let verified = Server::cli(&["verify", "--data", &data.display().to_string()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    let server = start(&data, &settings("100ms"));
    await_count(&server, 90);
    assert_eq!(metric(&server, "rollmill_log_healings_total"), 0, "once is enough");
}

#[test]
fn what_neither_log_nor_archive_has_is_refused_and_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = start(&data, &settings("1d").into_iter().filter(|(key, _)| *key != "archive.max_bytes").collect::<Vec<_>>());
    send(&server, 0..80);
    await_count(&server, 80);
    server.kill();
    std::fs::remove_file(&segments(&data)[0]).expect("removed");
    let mut server = Server::spawn(&data, free_port(), &[("shards.count", "1")]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.has_ended() {
        assert!(Instant::now() < deadline, "it takes writes");
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = said(&data);
    assert!(said.contains("shard 0 cannot go on") && said.contains("the log lost the records [0, "), "{said}");
    assert!(said.contains("are not in the archive either"), "{said}");
}

#[test]
fn what_kafka_lost_comes_from_the_archive_or_stops_the_shard() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let brokers = crate::kafka::broker::Kafka::shared().brokers();
    let postgres = crate::postgres::shared();
    let connection = Connection {
        brokers: brokers.clone(),
        topic: "lost".to_owned(),
        properties: Properties::parse("").expect("none"),
        timeout: Duration::from_secs(10),
    };
    let admin = Admin::new(&connection).expect("settings");
    admin.create(&Wish { partitions: 1, replication: 1, min_isr: 1 }, 77).expect("a topic");
    let shared = [
        ("kafka.brokers", brokers),
        ("kafka.topic", "lost".to_owned()),
        ("kafka.group", "lost".to_owned()),
        ("store.url", postgres.url(&postgres.database())),
        ("archive.url", format!("file://{}", dir.path().join("archive").display())),
    ];
    let with = |delay: &str| settings(delay).into_iter().chain(shared.clone()).collect::<Vec<_>>();
    let server = start(&data, &with("100ms"));
    send(&server, 0..40);
    let expected = point(&await_count(&server, 40)).clone();
    server.kill();
    let end = archive_ahead(&data, &with("100ms"));
    admin.delete_below(&[(ShardId(0), end / 2)]).expect("deleted");
    let server = start(&data, &with("100ms"));
    assert_eq!(*point(&await_count(&server, 40)), expected);
    assert_eq!(metric(&server, "rollmill_log_healed_records_total"), end / 2);
    assert_eq!(server.stop(), Some(0));

    // From here on nothing is archived any more.
    let server = start(&data, &with("1d").into_iter().filter(|(key, _)| *key != "archive.max_bytes").collect::<Vec<_>>());
    await_count(&server, 40);
    send(&server, 40..50);
    await_count(&server, 50);
    server.kill();
    admin.delete_below(&[(ShardId(0), end + 3)]).expect("deleted");
    let server = start(&data, &with("100ms"));
    let deadline = Instant::now() + Duration::from_secs(60);
    let named = format!("the log lost the records [{end}, {}), and [{end}, {}) of them", end + 3, end + 3);
    while !said(&data).contains(&format!("the shard stops: {named}")) {
        assert!(Instant::now() < deadline, "not loud: {}", said(&data));
        std::thread::sleep(Duration::from_millis(100));
    }
    let (status, answer) = server.get(ALL);
    assert_eq!((status, &answer["completeness"]["partial"]), (200, &true.into()), "{answer}");
    assert_eq!(server.get("/readyz?role=shards").0, 503);
    assert_eq!(server.get("/readyz?role=gateway").0, 200, "writes are not concerned");
}
