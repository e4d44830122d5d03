//! A node that starts while Kafka or PostgreSQL is unreachable: it retries and names the
//! dependency, and aborts at once on errors that retrying cannot fix.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rollmill::persistence::log::kafka::topic::{TopicAdmin, TopicSpec};
use rollmill::persistence::log::kafka::{KafkaConnection, KafkaProperties};

use crate::kafka::broker::Kafka;
use crate::postgres::{self, Postgres};
use crate::support::{PATIENCE, Server, agent, free_port, wait_until};

fn create_topic(brokers: &str, topic: &str) {
    let (properties, timeout) = (KafkaProperties::default(), Duration::from_secs(60));
    let connection = KafkaConnection {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        properties,
        timeout,
    };
    let admin = TopicAdmin::new(&connection).expect("settings");
    admin.create(&TopicSpec { partitions: 4, replication: 1, min_isr: 1 }, 5).expect("a topic");
}

fn spawn(data: &Path, settings: &[(&str, &str)]) -> Server {
    let quick = [("shards.count", "4"), ("kafka.timeout", "1s"), ("flush.interval", "200ms")];
    Server::spawn(data, free_port(), &[&quick, settings].concat())
}

fn said(data: &Path) -> String {
    std::fs::read_to_string(data.with_extension("server.log")).unwrap_or_default()
}

/// Waits until the node answers, and checks that it names this dependency.
fn await_waiting(node: &mut Server, what: &str) {
    node.wait_alive();
    let (status, answer) = node.get("/readyz");
    assert_eq!((status, &answer["error"]["code"]), (503, &"not_ready".into()), "{answer}");
    assert!(answer["error"]["message"].as_str().is_some_and(|why| why.contains(what)), "{answer}");
}

/// Sends one event until it is accepted.
fn await_taken(node: &mut Server, data: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while node.post(r#"{"metric":"m","id":"1"}"#).0 != 202 {
        assert!(
            !node.has_ended() && Instant::now() < deadline,
            "it takes nothing:\n{}",
            said(data)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Stops nodes that are still waiting for a dependency. One fast stop is enough, because the other
/// attempts may have met a busy machine.
fn stops_at_once(dir: &Path, settings: &[(&str, &str)], what: &str) {
    let mut took = Vec::new();
    while took.len() < 4 && took.iter().all(|took| *took >= Duration::from_secs(1)) {
        let data = dir.join(format!("stopped-{}", took.len()));
        let mut node = spawn(&data, settings);
        await_waiting(&mut node, what);
        let began = Instant::now();
        assert_eq!(node.stop(), Some(0), "{}", said(&data));
        took.push(began.elapsed());
    }
    assert!(took.last() < Some(&Duration::from_secs(1)), "the stop took {took:?}");
}

/// The exit code and log of a node that must end by itself.
fn ends(mut node: Server, data: &Path) -> (Option<i32>, String) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(code) = node.exit_code() {
            return (code, said(data));
        }
        assert!(Instant::now() < deadline, "it does not end:\n{}", said(data));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_waits_for_kafka_and_serves_when_it_comes() {
    let mut kafka = Kafka::start(1);
    let brokers = kafka.brokers();
    create_topic(&brokers, "rollmill");
    let server = postgres::shared();
    let (dir, url) = (tempfile::tempdir().expect("a directory"), server.url(&server.database()));
    let archive = format!("file://{}", dir.path().join("archive").display());
    let settings =
        [("kafka.brokers", brokers.as_str()), ("store.url", &url), ("archive.url", &archive)];
    kafka.kill(1);

    let data = dir.path().join("node");
    let mut node = spawn(&data, &settings);
    await_waiting(&mut node, "Kafka (kafka.brokers)");
    let (status, answer) = node.post(r#"{"metric":"m","id":"0"}"#);
    assert_eq!((status, &answer["error"]["code"]), (503, &"starting".into()), "{answer}");
    // A client that keeps its connection reaches the running node, not the waiting one.
    let patient = agent();
    let url = node.url.clone();
    let status = |path: &str| {
        patient.get(format!("{url}{path}")).call().expect("an answer").status().as_u16()
    };
    assert_eq!(status("/readyz"), 503);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(status("/healthz"), 200);

    stops_at_once(dir.path(), &settings, "Kafka");

    kafka.restart(1);
    await_taken(&mut node, &data);
    node.await_query("/v1/query?metric=m&step=all", |answer| {
        answer["series"][0]["points"][0]["count"] == 1
    });
    wait_until("ready", || status("/readyz") == 200);
    let text = said(&data);
    let reasons = text
        .lines()
        .filter_map(|line| line.split_once("the node waits for Kafka"))
        .map(|(_, reason)| reason);
    let reasons: Vec<String> =
        reasons.map(|reason| reason.replace(|c: char| c.is_ascii_digit(), "")).collect();
    assert!(!reasons.is_empty() && text.contains("what the node waited for is there"), "{text}");
    assert_eq!(
        reasons.iter().collect::<BTreeSet<_>>().len(),
        reasons.len(),
        "each reason is told once: {text}"
    );

    // A gateway's writes need no store.
    let gate = dir.path().join("gate");
    let away = format!("postgres://rollmill@127.0.0.1:{}/none", free_port());
    // Kafka is reachable: a busy broker gets the time it takes.
    let gateway = [
        ("node.roles", "gateway"),
        ("kafka.brokers", &brokers),
        ("kafka.timeout", "1m"),
        ("store.url", &away),
        ("archive.url", &archive),
    ];
    let mut gateway = spawn(&gate, &gateway);
    gateway.wait_alive();
    await_taken(&mut gateway, &gate);
    assert!(!said(&gate).contains("waits"), "{}", said(&gate));
    assert_eq!((gateway.stop(), node.stop()), (Some(0), Some(0)));
}

/// Has the server read its files again. It does so some time after the request, and shows the new
/// time in every session that begins under the new rules.
fn reload(server: &Postgres) {
    let read_at = || server.psql("postgres", "SELECT pg_conf_load_time()").expect("a time");
    let before = read_at();
    server.psql("postgres", "SELECT pg_reload_conf()").expect("reloaded");
    wait_until("the files are read again", || read_at() != before);
}

#[test]
fn a_node_waits_for_postgres_and_not_for_a_wrong_password() {
    let mut server = Postgres::start("waiting");
    let database = server.database();
    server.psql("postgres", "CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'right'").expect("a role");
    let url = server.url(&database);
    let dir = tempfile::tempdir().expect("a directory");
    server.kill();

    let data = dir.path().join("node");
    let mut node = spawn(&data, &[("store.url", &url)]);
    await_waiting(&mut node, "PostgreSQL (store.url)");
    assert_eq!(node.get("/v1/query?metric=m").1["error"]["code"], "starting");
    stops_at_once(dir.path(), &[("store.url", &url)], "PostgreSQL");
    server.run();
    await_taken(&mut node, &data);
    node.await_query("/v1/query?metric=m&step=all", |answer| {
        answer["series"][0]["points"][0]["count"] == 1
    });
    assert_eq!(node.stop(), Some(0));

    let rules = "host all locked 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust";
    let file = server.psql("postgres", "SHOW hba_file").expect("a file");
    server
        .psql(
            "postgres",
            &format!("COPY (SELECT unnest(string_to_array('{rules}', E'\\n'))) TO '{file}'"),
        )
        .expect("written");
    reload(&server);
    let elsewhere = |user: &str, database: &str| {
        format!("postgres://{user}@127.0.0.1:{}/{database}", server.port)
    };
    for (name, url, says) in [
        ("password", elsewhere("locked:wrong", &database), "[28P01]"),
        ("nothing", elsewhere("locked", &database), "password missing"),
        ("database", elsewhere("postgres", "nowhere"), "[3D000]"),
    ] {
        let data = dir.path().join(name);
        let (code, text) =
            ends(spawn(&data, &[("store.url", &url), ("store.connect_timeout", "1m")]), &data);
        assert!(
            code == Some(1) && text.contains(says) && !text.contains("waits"),
            "{name}: {code:?} {text}"
        );
    }
}

#[test]
fn how_long_a_node_waits_is_configured_and_what_is_wrong_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = postgres::shared();
    let (url, away) = (server.url(&server.database()), format!("127.0.0.1:{}", free_port()));
    let archive = format!("file://{}", dir.path().join("archive").display());
    let there = Kafka::shared().brokers();
    let none = ("archive.cold_url", "");
    for (name, brokers, wait, more, says, waits) in [
        ("none", &away, "0", none, "cannot be reached", false),
        (
            "short",
            &away,
            "1s",
            none,
            "waited 1s (server.start_wait) for Kafka (kafka.brokers)",
            true,
        ),
        // Kafka is reachable: a busy broker gets the time it takes.
        ("topic", &there, "5m", ("kafka.timeout", "1m"), "rollmill topic create", false),
        ("archive", &away, "5m", ("archive.cold_url", "ftp://cold"), "archive.cold_url", false),
        ("mesh", &away, "5m", ("cluster.listen", "127.0.0.1:0"), "cluster.cookie_file", false),
    ] {
        let data = dir.path().join(name);
        let settings = [
            ("kafka.brokers", brokers.as_str()),
            ("kafka.topic", "never-made"),
            ("store.url", &url),
            ("archive.url", &archive),
            ("server.start_wait", wait),
            more,
        ];
        let (code, text) = ends(spawn(&data, &settings), &data);
        assert!(code == Some(1) && text.contains(says), "{name}: {code:?} {text}");
        assert_eq!(text.contains("the node waits"), waits, "{name}: {text}");
    }
}
