//! A node of these tests. It is a separate process, this test binary run again, because ractor
//! keeps its actors in statics.
//!
//! Every node builds the same log and store from the same numbers, flushes the first half of every
//! shard's records, and keeps the rest of its own shards in memory. Hence the answer of several
//! nodes can be compared with that of one node that owns everything.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ractor::Actor;
use rollmill::actors::live::LiveReader;
use rollmill::actors::record_builder::records_of;
use rollmill::actors::shard_table::ShardTable;
use rollmill::clock::{Clock, SystemClock};
use rollmill::cluster::directory::PeerDirectory;
use rollmill::cluster::membership::{ClusterCookie, MeshActor, MeshOptions};
use rollmill::cluster::reader::MeshReader;
use rollmill::cluster::server::MeshServer;
use rollmill::cluster::tls::MeshTls;
use rollmill::gateway::read_routes;
use rollmill::model::batch::{RoutedSeries, ValidBatch, ValidEvent};
use rollmill::model::budget::QueryBudget;
use rollmill::model::decimal::Decimal;
use rollmill::model::offset::{LogId, ShardId};
use rollmill::model::series::Series;
use rollmill::persistence::log::memory::MemoryLog;
use rollmill::persistence::log::{LogAppender, LogIdentity, LogReader, ShardAssignment};
use rollmill::persistence::store::ShardStore;
use rollmill::persistence::store::memory::MemoryStore;
use rollmill::query::engine::{QueryEngine, QueryLimits};
use rollmill::shards::series::SeriesAdmission;
use rollmill::shards::state::{ShardEffect, ShardInput, ShardLimits, ShardState};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub const SHARDS: u32 = 8;
const HOUR: i64 = 3_600_000;
/// 2026-01-01T00:00:00Z.
pub const START: i64 = 1_767_225_600_000;
const ROLE: &str = "ROLLMILL_TEST_MESH";
pub const COOKIE: &str = "0123456789abcdef0123456789abcdef";

/// The settings of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    pub name: String,
    pub port: u16,
    pub peers: Vec<String>,
    pub owned: BTreeSet<u32>,
    /// How often every shard has been claimed, as far as this node knows.
    pub lives: u64,
    pub cookie: String,
    /// Directory with `cert.pem`, `key.pem` and `ca.pem`.
    pub tls: Option<PathBuf>,
    pub max_answer: usize,
    pub call_timeout: Duration,
    pub dead_after: Duration,
}

impl Spec {
    pub fn new(name: &str, port: u16, peers: &[u16], owned: impl IntoIterator<Item = u32>) -> Self {
        let peers = peers.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let owned = owned.into_iter().collect();
        let (name, cookie) = (name.to_owned(), COOKIE.to_owned());
        Self {
            name,
            port,
            peers,
            owned,
            lives: 1,
            cookie,
            tls: None,
            max_answer: 1 << 20,
            call_timeout: CALL_TIMEOUT,
            dead_after: DEAD_AFTER,
        }
    }
}

/// Deadline of a call between nodes: long enough that correct ones do not fail on a busy machine.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// When a silent node counts as dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(6);
/// When something that takes a moment on an idle machine counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A running node process.
pub struct Node {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    name: String,
    pub log: PathBuf,
}

impl Node {
    /// Starts a node and waits until it listens.
    pub fn start(dir: &std::path::Path, spec: &Spec) -> Self {
        let log = dir.join(format!("{}.log", spec.name));
        let stderr =
            std::fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "node::a_node", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ROLE, serde_json::to_string(spec).expect("JSON"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the node starts");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut node = Self { child, stdin, stdout, name: spec.name.clone(), log };
        assert_eq!(node.answer()["ready"], true);
        node
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stdout.read_line(&mut line).expect("a line");
            assert!(
                read > 0,
                "the node ended: {}",
                std::fs::read_to_string(&self.log).unwrap_or_default()
            );
            // The test harness of the child prints other lines too.
            if let Some(answer) = line.strip_prefix("ANSWER ") {
                return serde_json::from_str(answer).expect("JSON");
            }
        }
    }

    pub fn ask(&mut self, question: &str) -> Value {
        writeln!(self.stdin, "{question}").expect("the node listens");
        self.answer()
    }

    /// Runs a query; returns the answer and how long it took inside the node.
    pub fn query(&mut self, params: &str) -> (Value, Duration) {
        let answer = self.ask(&format!("query {params}"));
        (answer["answer"].clone(), Duration::from_millis(answer["ms"].as_u64().expect("a number")))
    }

    /// Waits until exactly these peers answer.
    pub fn await_peers(&mut self, names: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.ask("peers");
            if found == json!(names) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "expected {names:?}, found {found}:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the final session with each of these peers is established. If a peer and this
    /// node dial each other, the session of the one whose name sorts last replaces the other, which
    /// may have been answering already.
    pub fn await_elected(&mut self, names: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.said();
            let is_elected = |peer: &&str| {
                let joined = format!("another node has joined peer={peer} ");
                let last = said.lines().rfind(|line| line.contains(&joined));
                last.is_some_and(|line| {
                    line.ends_with(&format!("incoming={}", **peer > *self.name))
                })
            };
            if names.iter().all(is_elected) {
                return self.await_peers(names);
            }
            assert!(
                Instant::now() < deadline,
                "not all sessions with {names:?} are the ones that stay:\n{said}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the node has logged this.
    pub fn await_said(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.said().contains(words) {
            assert!(Instant::now() < deadline, "{words:?} is not in:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Stops the process (SIGSTOP) and waits until all its threads have stopped.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        let state = || {
            std::fs::read_to_string(&stat)
                .expect("it is there")
                .rsplit_once(") ")
                .map(|(_, rest)| rest.as_bytes()[0])
        };
        while state() != Some(b'T') {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signalled");
    }

    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn routed(page: usize) -> Arc<RoutedSeries> {
    let series = Series::new("acme", "views", [("page".to_owned(), format!("/{page}"))]);
    Arc::new(RoutedSeries::new(&series, SHARDS))
}

/// Number of events in the log.
const EVENTS: usize = 1_200;
/// Pages at the end of the log with one event each, which no flush has seen.
const NEW_PAGES: usize = 16;

/// The log that all nodes share: 1,200 events of 40 pages and of the new ones, over 6 hours.
fn log() -> Arc<MemoryLog> {
    let log = MemoryLog::new(LogId([7; 16]), SHARDS, Arc::new(SystemClock));
    let series: Vec<_> = (0..40 + NEW_PAGES).map(routed).collect();
    for at in 0..EVENTS {
        let event = ValidEvent {
            series: series
                [if at < EVENTS - NEW_PAGES { at % 40 } else { 40 + NEW_PAGES + at - EVENTS }]
            .clone(),
            timestamp: START + (at % 6) as i64 * HOUR,
            value: Some(Decimal::from_units(at as i128 * 100_000_000)),
            user: Some(format!("u{}", at % 90)),
            id: None,
            raw: 0..2,
        };
        let batch = ValidBatch {
            tenant: "acme".into(),
            body: Bytes::from_static(b"{}"),
            events: vec![event],
        };
        drop(log.append(records_of(&batch, 1, 1)).expect("appended"));
    }
    log
}

fn limits() -> ShardLimits {
    ShardLimits {
        dedup_horizon_ms: HOUR,
        dedup_max_ids: 1_000,
        flush_interval_ms: HOUR,
        max_delta_bytes: 1 << 30,
        keep_flushed_ms: HOUR,
        shard_count: SHARDS,
        panic_on_user: None,
    }
}

/// Claims a shard `lives` times, flushes the first half of its records, and keeps the rest in
/// memory if it is owned.
fn own(spec: &Spec, shard: ShardId, log: &MemoryLog, store: &MemoryStore, slots: &ShardTable) {
    let claims = (1..=spec.lives).map(|life| {
        store.claim(shard, log.id(), life * 100 + u64::from(shard.0)).expect("claimed")
    });
    let claim = claims.last().expect("a life");
    let mut state = ShardState::new(
        limits(),
        shard,
        &claim,
        vec![],
        SeriesAdmission::limited(1_000, vec![]),
        log.end(shard),
    );
    let records = log.read(shard, 0, usize::MAX).expect("reads");
    let (stored, live) = records.split_at(records.len() / 2);
    let mut effects = Vec::new();
    state.step(ShardInput::Records(stored), &mut effects);
    state.step(ShardInput::Tick { now: 0, drain: true }, &mut effects);
    for effect in effects {
        let ShardEffect::Commit { guard, batch, forget_ids_before } = effect else {
            panic!("{effect:?}")
        };
        store.flush(guard, &batch, forget_ids_before).expect("flushed");
    }
    state.step(ShardInput::Committed { now: 0 }, &mut Vec::new());
    state.step(ShardInput::Records(live), &mut Vec::new());
    if spec.owned.contains(&shard.0) {
        slots.entry(shard).install_owner(&claim, state);
    }
}

struct Parts {
    engine: Arc<QueryEngine>,
    directory: Arc<PeerDirectory>,
    prometheus: metrics_exporter_prometheus::PrometheusHandle,
}

async fn build(spec: &Spec) -> Parts {
    let prometheus =
        metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().expect("metrics");
    let (log, store, clock) = (log(), MemoryStore::new(), Arc::new(SystemClock));
    let slots = ShardTable::new(log.clone(), log.assignment(), clock.clone());
    (0..SHARDS).for_each(|shard| own(spec, ShardId(shard), &log, &store, &slots));
    let tls = spec.tls.as_ref().map(|dir| {
        MeshTls::load(&dir.join("cert.pem"), &dir.join("key.pem"), &dir.join("ca.pem"))
            .expect("certificates")
    });
    let options = MeshOptions {
        log: LogId([7; 16]),
        name: spec.name.clone(),
        peers: spec.peers.clone(),
        cookie: ClusterCookie::new(&spec.cookie).expect("long enough"),
        tls,
        heartbeat: Duration::from_millis(100),
        dead_after: spec.dead_after,
        max_calls: 16,
        max_reads: 64,
    };
    let listener =
        tokio::net::TcpListener::bind(("127.0.0.1", spec.port)).await.expect("the port is free");
    let directory = Arc::new(PeerDirectory::default());
    let server = MeshServer {
        table: slots.clone(),
        clock: clock.clone(),
        max_answer: spec.max_answer,
        node_status: Arc::new(Vec::new),
    };
    let (options, listener, clock): (_, _, Arc<dyn Clock>) =
        (Arc::new(options), Arc::new(listener), clock);
    let mesh =
        MeshActor { options, listener, directory: directory.clone(), server, clock: clock.clone() };
    Actor::spawn(None, mesh, ()).await.expect("the mesh starts");
    let call_timeout = spec.call_timeout;
    let reader: Arc<dyn LiveReader> = Arc::new(MeshReader {
        table: slots,
        directory: directory.clone(),
        clock: clock.clone(),
        call_timeout,
    });
    let limits = QueryLimits {
        max_points: 100_000,
        max_series: 1_000,
        stale_after_ms: 10_000,
        cache_bytes: 1 << 20,
    };
    Parts { engine: QueryEngine::new(store, reader, clock, limits), directory, prometheus }
}

fn params(text: &str) -> Vec<(String, String)> {
    let pair =
        |pair: &str| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).expect("k=v");
    text.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

fn answered(engine: &QueryEngine, text: &str) -> Value {
    let began = Instant::now();
    let answer = read_routes::query(
        engine,
        "acme",
        &params(text),
        SystemClock.now(),
        &QueryBudget::default(),
    )
    .unwrap_or_else(|e| panic!("{text}: {e}"));
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    json!({"ms": began.elapsed().as_millis() as u64, "answer": answer})
}

fn respond(parts: &Parts, line: &str) -> Value {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "query" => answered(&parts.engine, rest),
        "crowd" => {
            let asking: Vec<_> = (0..100)
                .map(|_| {
                    let (engine, rest) = (parts.engine.clone(), rest.to_owned());
                    std::thread::spawn(move || answered(&engine, &rest)["answer"].clone())
                })
                .collect();
            Value::from_iter(asking.into_iter().map(|asked| asked.join().expect("no panic")))
        }
        "books" => serde_json::from_str(
            &read_routes::accounting(
                &*parts.engine,
                "acme",
                &[],
                SystemClock.now(),
                &QueryBudget::default(),
            )
            .expect("an answer"),
        )
        .expect("JSON"),
        "names" => {
            let names = |answer: Result<String, _>| {
                serde_json::from_str::<Value>(&answer.expect("an answer")).expect("JSON")
            };
            let budget = QueryBudget::default();
            let metrics = names(read_routes::metrics(&*parts.engine, "acme", &[], &budget));
            let (engine, params) = (&*parts.engine, params(rest));
            let values = read_routes::label_values(engine, "acme", "page", &params, &budget);
            json!({"metrics": metrics, "values": names(values)})
        }
        "peers" => {
            let peers = parts.directory.peers();
            let mut names: Vec<_> =
                peers.iter().filter(|p| p.is_available()).map(|p| p.name.clone()).collect();
            names.sort();
            json!(names)
        }
        "metrics" => {
            let text = parts.prometheus.render();
            let samples = text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.rsplit_once(' '));
            Value::from_iter(
                samples.map(|(name, value)| {
                    (name.to_owned(), json!(value.parse::<f64>().unwrap_or(0.0)))
                }),
            )
        }
        _ => panic!("{line}"),
    }
}

#[test]
#[ignore = "a node of the tests beside it, which start it as a process of its own"]
fn a_node() {
    let Ok(spec) = std::env::var(ROLE) else { return };
    let spec: Spec = serde_json::from_str(&spec).expect("JSON");
    let filter = tracing_subscriber::EnvFilter::new("warn,rollmill=info,ractor_cluster=error");
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let parts = runtime.block_on(build(&spec));
    println!("\nANSWER {}", json!({"ready": true}));
    // Ends with its parent, whose end closes stdin.
    for line in std::io::stdin().lines() {
        let answer = respond(&parts, &line.expect("a line"));
        println!("\nANSWER {answer}");
    }
}
