//! Real Kafka brokers for tests, started by `scripts/kafka` on loopback. They end with the process
//! that started them.
// Each test binary uses a part of this file. Waiting for servers takes real time.
#![allow(dead_code, clippy::disallowed_methods)]

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

#[allow(clippy::duplicate_mod)] // each copy hands out ports of its own range
#[path = "ports.rs"]
mod ports;

struct Node {
    port: u16,
    /// The script and its standard input; the broker ends when that is closed.
    running: Option<(Child, ChildStdin)>,
}

/// The brokers of one cluster, all of them controllers too: the cluster is available while more
/// than half of them run.
pub struct Kafka {
    dir: PathBuf,
    /// The controllers' ports.
    controllers: Vec<u16>,
    nodes: Vec<Node>,
    ephemeral: bool,
    /// The key and certificate file for TLS; see scripts/kafka.
    tls: Option<PathBuf>,
}

fn script() -> Command {
    let mut command = Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka"));
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command
}

/// Whether the broker answers and the cluster has registered it. It listens before that, but no
/// topic can be created on it.
fn is_known(id: usize, port: u16, tls: Option<&Path>) -> bool {
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", format!("127.0.0.1:{port}"));
    if let Some(file) = tls {
        let beside = |extension: &str| file.with_extension(format!("pem.{extension}"));
        config
            .set("security.protocol", "SASL_SSL")
            .set("ssl.ca.location", beside("ca").display().to_string());
        config.set("sasl.mechanism", "SCRAM-SHA-512").set("sasl.username", "rollmill");
        config
            .set("sasl.password", std::fs::read_to_string(beside("password")).expect("a password"));
    }
    let client: rdkafka::consumer::BaseConsumer = config.create().expect("a client");
    let metadata = client.fetch_metadata(None, Duration::from_secs(5));
    metadata.is_ok_and(|metadata| metadata.brokers().iter().any(|broker| broker.id() == id as i32))
}

impl Kafka {
    /// One broker shared by all tests of this process; each test creates its own topics.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| Self::start_as(1, true, None))
    }

    /// Starts this many brokers and waits until they answer.
    pub fn start(brokers: usize) -> Self {
        Self::start_as(brokers, false, None)
    }

    /// Starts one broker that speaks TLS and SCRAM, with the key and certificate in this file.
    pub fn start_tls(file: &Path) -> Self {
        Self::start_as(1, false, Some(file.to_owned()))
    }

    fn start_as(brokers: usize, ephemeral: bool, tls: Option<PathBuf>) -> Self {
        let mut ports: Vec<u16> = (0..2 * brokers).map(|_| ports::free(ports::KAFKA)).collect();
        let controllers = ports.split_off(brokers);
        let dir = std::env::temp_dir().join(format!(
            "rollmill-kafka-{}-{}",
            std::process::id(),
            ports[0]
        ));
        let nodes = ports.iter().map(|&port| Node { port, running: None }).collect();
        let mut kafka = Self { dir, controllers, nodes, ephemeral, tls };
        (1..=brokers).for_each(|id| kafka.spawn(id));
        (1..=brokers).for_each(|id| kafka.wait(id));
        kafka
    }

    fn spawn(&mut self, id: usize) {
        let (count, port) = (self.nodes.len(), self.nodes[id - 1].port);
        let controllers = self.controllers.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let mut command = script();
        command.arg("node").arg(self.dir.join(id.to_string()));
        command.args([id.to_string(), port.to_string(), controllers, count.to_string()]);
        if self.ephemeral {
            command.env("ROLLMILL_TEST_KAFKA_EPHEMERAL", "1");
        }
        command.envs(self.tls.iter().map(|file| ("ROLLMILL_TEST_KAFKA_TLS", file)));
        let mut child = command.spawn().expect("scripts/kafka runs; `make tools` gets Kafka");
        let stdin = child.stdin.take().expect("piped");
        self.nodes[id - 1].running = Some((child, stdin));
    }

    fn wait(&mut self, id: usize) {
        let node = &mut self.nodes[id - 1];
        let deadline = Instant::now() + Duration::from_secs(240);
        while TcpStream::connect(("127.0.0.1", node.port)).is_err()
            || !is_known(id, node.port, self.tls.as_deref())
        {
            let ended = node
                .running
                .as_mut()
                .is_none_or(|(child, _)| child.try_wait().expect("wait").is_some());
            let log = || {
                std::fs::read_to_string(self.dir.join(id.to_string()).join("log"))
                    .unwrap_or_default()
            };
            assert!(
                !ended && Instant::now() < deadline,
                "broker {id} did not come up (`make tools` gets Kafka):\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `host:port` of every broker.
    pub fn brokers(&self) -> String {
        self.nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.port))
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Kills a broker with SIGKILL.
    pub fn kill(&mut self, id: usize) {
        let pid = rustix::process::Pid::from_raw(self.pid(id)).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
        self.end(id);
    }

    /// Sends a signal to a broker: SIGSTOP or SIGCONT.
    pub fn signal(&self, id: usize, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid(id)).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("signal");
    }

    fn pid(&self, id: usize) -> i32 {
        let pid =
            std::fs::read_to_string(self.dir.join(id.to_string()).join("pid")).expect("a pid");
        pid.trim().parse().expect("a number")
    }

    /// Peak memory of a running broker, in MiB.
    pub fn memory(&self, id: usize) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid(id))).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
        peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
    }

    /// Restarts a broker on its existing data.
    pub fn restart(&mut self, id: usize) {
        self.spawn(id);
        self.wait(id);
    }

    fn end(&mut self, id: usize) {
        if let Some((mut child, stdin)) = self.nodes[id - 1].running.take() {
            drop(stdin);
            child.wait().expect("wait");
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        (1..=self.nodes.len()).for_each(|id| self.end(id));
        // A directory left behind in the temporary directory does no harm.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
