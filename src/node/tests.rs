//! Whole nodes on in-memory doubles of log, store and archive: roles, and shards that move between
//! nodes.

mod moves;
mod replays;
mod roles;
mod stopped;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::files::NodeFiles;
use super::{Node, NodePorts, TestFaults};
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::config::Config;
use crate::model::decimal::Decimal;
use crate::model::offset::{LogId, ShardId};
use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
use crate::model::series::{Series, SeriesId};
use crate::model::window::Millis;
use crate::persistence::archive::memory::MemoryArchive;
use crate::persistence::log::memory::MemoryLog;
use crate::persistence::log::{AppendRequest, EventLog, LogAppender, LogReader, ShardAssignment};
use crate::persistence::store::memory::MemoryStore;
use crate::persistence::store::{RollupStore, SnapshotSource};

const LOG: LogId = LogId([5; 16]);
const SHARDS: u32 = 16;

/// The backends that all nodes share.
struct Cluster {
    log: Arc<MemoryLog>,
    store: Arc<MemoryStore>,
    archive: Arc<MemoryArchive>,
}

impl Cluster {
    fn new() -> Self {
        let log = MemoryLog::new(LOG, SHARDS, Arc::new(SystemClock));
        log.assign(BTreeSet::new());
        log.relinquish(&all());
        Self { log, store: MemoryStore::new(), archive: Arc::new(MemoryArchive::new()) }
    }

    /// Starts a node on this log, with ports only for its roles.
    async fn node(&self, log: &Arc<MemoryLog>, config: &Config) -> Node {
        let roles = config.node.roles;
        let store = self.store.clone() as Arc<dyn RollupStore>;
        let ports = NodePorts {
            log: log.clone(),
            store: roles.needs_store().then_some(store),
            archive: roles.needs_archive().then(|| self.archive.clone() as _),
            clock: Arc::new(SystemClock),
            render_metrics: Arc::new(String::new),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Node::start(
            config,
            ports,
            NodeFiles::load(config).expect("no files"),
            listener,
            TestFaults::default(),
        )
        .await
        .expect("it starts")
    }
}

fn all() -> BTreeSet<ShardId> {
    (0..SHARDS).map(ShardId).collect()
}

/// A configuration with short intervals, so that much happens in a test.
fn quick() -> Config {
    let ms = Duration::from_millis;
    Config::defaults().with(|c| {
        c.shards.pull_interval = ms(1);
        c.shards.refused_delay = ms(10);
        c.flush.interval = ms(100);
        c.archive.max_delay = ms(200);
        c.supervision.backoff_min = ms(1);
        c.supervision.backoff_max = ms(20);
        c.supervision.max_restarts = 10_000;
        c.query.deadline = ms(20_000);
    })
}

/// One event of one of `SERIES` series.
#[derive(Debug, Clone)]
struct Event {
    series: u64,
    id: u64,
    at: Millis,
    value: i64,
}

const SERIES: u64 = 64;

impl Event {
    fn series(&self) -> Series {
        Series::new("t", "m", [("s".to_owned(), (self.series % SERIES).to_string())])
    }
    fn value(&self) -> Decimal {
        Decimal::from_units(i128::from(self.value) * 1_000_000_000)
    }
    fn user(&self) -> String {
        (self.id % 100).to_string()
    }
    fn recorded<'a>(&self, user: &'a str, id: &'a str) -> RecordEvent<'a> {
        RecordEvent {
            series: 0,
            timestamp: self.at,
            value: Some(self.value()),
            user: Some(user),
            id: Some(id),
            raw: b"{}",
        }
    }
    fn user_hash(&self) -> Option<u64> {
        self.recorded(&self.user(), "").user_hash()
    }
    fn request(&self) -> AppendRequest {
        let key = self.series().key();
        let id = SeriesId::of_key(&key);
        let (event_id, user) = (self.id.to_string(), self.user());
        let event = self.recorded(&user, &event_id);
        let series = vec![SeriesEntry { id: &id.0, key: &key }];
        let record = Record {
            version: record::VERSION,
            tenant: "t",
            gateway: 1,
            series,
            events: vec![event],
            stamp: Some(1),
        };
        let mut payload = Vec::new();
        record::encode(&record, &mut payload);
        AppendRequest { records: vec![(id.shard(SHARDS), payload.into())] }
    }
}

/// Appends an event and returns its append time.
async fn append(log: &MemoryLog, event: &Event) -> Millis {
    log.append(event.request()).expect("taken").await.expect("answered").expect("durable")
}

fn some_event(id: u64) -> Event {
    Event { series: id, id, at: SystemClock.now(), value: 1 }
}

/// Waits until the condition holds, at most two minutes.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Stopwatch::start();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(120), "{what} does not become true");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sends a `GET`; returns status and body.
async fn get(node: &Node, path: &str) -> (u16, serde_json::Value) {
    ask(node, move |agent, url| agent.get(url).call(), path).await
}

/// Sends one event with this id.
async fn post(node: &Node, id: u64) -> (u16, serde_json::Value) {
    let body = format!(r#"{{"metric":"m","id":"{id}"}}"#);
    ask(
        node,
        move |agent, url| agent.post(url).header("content-type", "application/json").send(body),
        "/v1/events",
    )
    .await
}

type Answer = Result<ureq::http::Response<ureq::Body>, ureq::Error>;

async fn ask(
    node: &Node,
    how: impl FnOnce(ureq::Agent, &str) -> Answer + Send + 'static,
    path: &str,
) -> (u16, serde_json::Value) {
    let url = format!("http://{}{path}", node.address);
    let asked = tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(120)));
        let mut answer = how(agent.build().into(), &url).expect("an answer");
        let text = answer.body_mut().read_to_string().expect("a body");
        (
            answer.status().as_u16(),
            serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)),
        )
    });
    asked.await.expect("no panic")
}
