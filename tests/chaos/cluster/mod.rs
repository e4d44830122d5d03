//! A whole cluster of real processes on loopback: Kafka, PostgreSQL with a standby, an S3 server,
//! Redis, three nodes and a gateway.

mod balancer;
mod brokers;
mod faults;
mod partition;
mod replays;
mod rolling;
mod truth;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use rollmill::persistence::store::postgres::{PostgresOptions, PostgresStore};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::kafka::Kafka;
use crate::load::{as_of_ms, get, range};
use crate::postgres::Postgres;
use crate::proxy::Proxy;
use crate::redis_server::Redis;
use crate::s3::{ACCESS_KEY, SECRET_KEY};
use crate::s3_process::S3Process;
use crate::support::{Server, free_port};
use crate::{alone, now};

/// Number of nodes with every role; one additional node is a gateway only.
pub const FULL: usize = 3;
const SHARDS: usize = 16;

/// Longer than any step takes on a slow machine. The actual durations are printed.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// An agent that abandons a slow node early; callers ask again.
fn asker() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(15)))
        .build()
        .into()
}

/// One Rollmill process, running or not.
pub struct NodeProcess {
    pub name: String,
    roles: &'static str,
    port: u16,
    mesh: u16,
    /// The network namespace it runs in, if any.
    pub namespace: Option<String>,
    pub server: Option<Server>,
}

pub struct Cluster {
    pub kafka: Kafka,
    pub postgres: Postgres,
    /// Between the nodes and the initial primary.
    pub store_proxy: Proxy,
    /// The standby, once one has been added.
    pub standby: Option<Postgres>,
    standby_port: u16,
    pub s3: S3Process,
    pub redis: Redis,
    pub nodes: Vec<NodeProcess>,
    pub database: String,
    dir: tempfile::TempDir,
    more: Vec<(&'static str, String)>,
    _alone: MutexGuard<'static, ()>,
}

pub struct ClusterCli(Vec<(String, String)>);

impl ClusterCli {
    pub fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
        std::env::vars()
            .filter(|(name, _)| name.starts_with("ROLLMILL_"))
            .for_each(|(name, _)| _ = command.env_remove(name));
        command
            .envs(self.0.iter().map(|(name, value)| (name, value)))
            .args(args)
            .output()
            .expect("the command runs")
    }

    /// The JSON output of a command; `None` if one of its dependencies was unavailable.
    pub fn json(&self, args: &[&str]) -> Option<Value> {
        serde_json::from_slice(&self.run(&[args, &["--json"]].concat()).stdout).ok()
    }

    /// Audits once that the store matches its records. Returns false if Kafka, the store or the
    /// archive was unavailable, so the attempt proves nothing.
    pub fn audit(&self) -> bool {
        let Some(report) = self.json(&["verify"]) else { return false };
        if report["unverified"].as_array().is_some_and(|shards| !shards.is_empty()) {
            return false;
        }
        assert_eq!(report["equal"], true, "the store is no fold of its prefix: {report}");
        true
    }

    /// Audits until an attempt succeeds, once every dependency is available again.
    pub fn audit_at_last(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.audit() {
            assert!(Instant::now() < deadline, "nothing stands in the way of the audit");
        }
    }
}

impl Cluster {
    /// Starts everything and waits until every node is ready. `more` sets configuration keys of all
    /// nodes.
    pub fn start(more: &[(&'static str, &str)]) -> Self {
        Self::start_on(1, more)
    }

    /// Like [`Self::start`], with this many brokers.
    pub fn start_on(brokers: usize, more: &[(&'static str, &str)]) -> Self {
        let alone = alone();
        let dir = tempfile::tempdir().expect("a directory");
        let postgres = Postgres::start("chaos");
        let database = postgres.database();
        let node = |name: &str, roles| NodeProcess {
            name: name.to_owned(),
            roles,
            port: free_port(),
            mesh: free_port(),
            namespace: None,
            server: None,
        };
        let mut nodes: Vec<NodeProcess> =
            (1..=FULL).map(|n| node(&format!("full-{n}"), "gateway,shards,query,replay")).collect();
        nodes.push(node("gate", "gateway,query"));
        let (cookie, keys) = (dir.path().join("cookie"), dir.path().join("s3.keys"));
        std::fs::write(&cookie, "a cookie for tests, of more than 32 bytes").expect("written");
        let credentials =
            format!("aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
        std::fs::write(&keys, credentials).expect("written");
        for file in [cookie, keys] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("set");
        }
        let mut cluster = Self {
            kafka: Kafka::start(brokers),
            store_proxy: Proxy::start(postgres.port, 1),
            standby: None,
            standby_port: free_port(),
            s3: S3Process::start(&dir.path().join("s3")),
            redis: Redis::start(),
            postgres,
            nodes,
            database,
            more: more.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
            dir,
            _alone: alone,
        };
        cluster.create_topic();
        (0..cluster.nodes.len()).for_each(|node| cluster.spawn(node));
        (0..cluster.nodes.len()).for_each(|node| cluster.await_ready(node));
        cluster
    }

    /// Retries, because brokers listen before they know each other: a first attempt may find too
    /// few of them for the replicas.
    fn create_topic(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let made = self.cli().run(&["topic", "create", "--if-missing"]);
            if made.status.success() {
                return;
            }
            assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&made.stderr));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The configuration shared by all nodes.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let peers: Vec<String> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.mesh)).collect();
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let (primary, standby) = (self.store_proxy.port, self.standby_port);
        let mut settings = vec![
            ("kafka.brokers", self.kafka.brokers()),
            (
                "store.url",
                format!(
                    "postgres://postgres@127.0.0.1:{primary},127.0.0.1:{standby}/{}",
                    self.database
                ),
            ),
            ("archive.url", "s3://events/raw".to_owned()),
            ("archive.endpoint", self.s3.endpoint.clone()),
            ("archive.credentials_file", file("s3.keys")),
            ("query.redis", self.redis.url()),
            ("cluster.cookie_file", file("cookie")),
            ("cluster.peers", peers.join(",")),
            ("shards.count", SHARDS.to_string()),
            ("rollups.keep", "20000d".to_owned()),
            ("archive.keep", "0".to_owned()),
            ("accept.max_age", "20000d".to_owned()),
            // Small enough that flushes and archive objects happen between faults.
            ("flush.interval", "300ms".to_owned()),
            ("archive.max_delay", "4s".to_owned()),
            ("log.safety", "60s".to_owned()),
        ];
        settings.extend(self.more.iter().cloned());
        settings
    }

    /// Runs other commands of the binary with the nodes' configuration.
    pub fn cli(&self) -> ClusterCli {
        let variable = |key: &str| format!("ROLLMILL_{}", key.replace('.', "_").to_uppercase());
        ClusterCli(self.settings().into_iter().map(|(key, value)| (variable(key), value)).collect())
    }

    pub fn spawn(&mut self, at: usize) {
        let settings = self.settings();
        let node = &mut self.nodes[at];
        let own = [
            ("node.name", node.name.clone()),
            ("node.roles", node.roles.to_owned()),
            ("cluster.listen", format!("127.0.0.1:{}", node.mesh)),
        ];
        let all: Vec<(&str, &str)> =
            settings.iter().chain(&own).map(|(key, value)| (*key, value.as_str())).collect();
        let data = self.dir.path().join(&node.name);
        node.server = Some(match &node.namespace {
            None => Server::spawn(&data, node.port, &all),
            Some(namespace) => Server::spawn_in(namespace, &data, node.port, &all),
        });
    }

    /// Waits until a node is ready.
    pub fn await_ready(&mut self, at: usize) {
        let (deadline, agent) = (Instant::now() + PATIENCE, asker());
        while agent
            .get(format!("{}/readyz", self.url(at)))
            .call()
            .map_or(true, |answer| answer.status() != 200)
        {
            assert!(
                Instant::now() < deadline,
                "{} is not ready:\n{}",
                self.nodes[at].name,
                self.node_log(at)
            );
            // Does what a service manager does: restarts a node that was killed, or that gave up
            // waiting for log and store.
            if self.nodes[at].server.as_mut().is_none_or(Server::has_ended) {
                self.spawn(at);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The node's log over all its runs.
    pub fn node_log(&self, at: usize) -> String {
        std::fs::read_to_string(
            self.dir.path().join(&self.nodes[at].name).with_extension("server.log"),
        )
        .unwrap_or_default()
    }

    /// Lines of all node logs that contain these words.
    pub fn log_lines(&self, words: &str) -> Vec<String> {
        (0..self.nodes.len())
            .flat_map(|at| {
                self.node_log(at)
                    .lines()
                    .filter(|line| line.contains(words))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// How often these words occur in all node logs.
    pub fn log_count(&self, words: &str) -> usize {
        (0..self.nodes.len()).map(|at| self.node_log(at).matches(words).count()).sum()
    }

    pub fn url(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[at].port)
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|at| self.url(at)).collect()
    }

    pub fn port(&self, at: usize) -> u16 {
        self.nodes[at].port
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn signal(&self, at: usize, signal: Signal) {
        let pid = self.nodes[at].server.as_ref().expect("it runs").pid();
        kill_process(Pid::from_raw(pid.cast_signed()).expect("a pid"), signal).expect("signal");
    }

    pub fn kill(&mut self, at: usize) {
        self.nodes[at].server.take().expect("it runs").kill();
    }

    /// The owner of each shard, by name, as the node `observer` sees it.
    pub fn owners(&self, observer: usize) -> Option<Vec<String>> {
        let (_, status) = get(&asker(), &format!("{}/v1/status", self.url(observer)))?;
        let owner = |shard: &Value| shard["node"].as_str().map(str::to_owned);
        status["shards"].as_array()?.iter().map(owner).collect()
    }

    /// Waits until the node `observer` reports every shard as owned by a node other than `gone`.
    pub fn await_moved(&self, observer: usize, gone: usize) {
        let deadline = Instant::now() + PATIENCE;
        let gone = &self.nodes[gone].name;
        loop {
            let owners = self.owners(observer);
            if owners.as_ref().is_some_and(|owners| {
                owners.len() == SHARDS && owners.iter().all(|name| name != gone)
            }) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the shards of {gone} did not move: {owners:?}\n{}",
                self.node_log(observer)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether `node` owns any shard, as `observer` sees it.
    pub fn owns(&self, observer: usize, node: usize) -> bool {
        self.owners(observer).is_some_and(|owners| owners.contains(&self.nodes[node].name))
    }

    /// Time until a node answers completely with everything acknowledged before the call.
    pub fn await_served(&self, observer: usize) -> Duration {
        let (begun, since) = (Instant::now(), now());
        let url = format!("{}/v1/query?metric=m0&{}&step=all", self.url(observer), range());
        let agent = asker();
        loop {
            let answer = get(&agent, &url)
                .filter(|(status, _)| *status == 200)
                .map(|(_, answer)| answer)
                .unwrap_or_default();
            if answer["completeness"]["partial"] == false && as_of_ms(&answer) >= since {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < PATIENCE, "not served: {}", answer["completeness"]);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether a freshly frozen node holds open a transaction that has written. After the sleep
    /// below, any transaction of a running node has ended.
    pub fn frozen_in_flush(&self, at: usize) -> bool {
        std::thread::sleep(Duration::from_millis(300));
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%:{}' AND \
             backend_xid IS NOT NULL AND xact_start < clock_timestamp() - interval '250 ms'",
            self.nodes[at].name
        );
        self.postgres.psql(&self.database, &sql).is_ok_and(|count| count != "0")
    }

    /// The store, for reading only.
    pub fn store(&self) -> Arc<PostgresStore> {
        let options = PostgresOptions {
            url: self.postgres.url(&self.database),
            read_url: None,
            node: "test".to_owned(),
            flush_connections: 1,
            read_connections: 1,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(60),
            compress_timeout: Duration::from_secs(60),
            lock_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            tls_ca: None,
            match_cache: 1 << 20,
        };
        PostgresStore::open_read_only(&options).expect("the store")
    }

    /// Adds the standby that takes over when the primary is lost for good.
    pub fn add_standby(&mut self) {
        self.standby = Some(self.postgres.standby(self.standby_port));
    }
}
