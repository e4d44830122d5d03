//! A real server process for tests, and a small client.
#![allow(dead_code)] // each test binary uses a part of this file

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[allow(clippy::duplicate_mod)] // each copy hands out ports of its own range
#[path = "ports.rs"]
mod ports;

/// Timeout for steps that are immediate on an idle machine; a busy one may stall for long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running `rollmill serve` on its own port.
pub struct Server {
    child: Child,
    pub url: String,
    pub data: PathBuf,
}

pub fn free_port() -> u16 {
    ports::free(ports::NODES)
}

impl Server {
    /// Starts a server and waits until it accepts writes. `env` sets configuration keys.
    pub fn start(data: &Path, env: &[(&str, &str)]) -> Self {
        Self::start_on(data, free_port(), env)
    }

    pub fn start_on(data: &Path, port: u16, env: &[(&str, &str)]) -> Self {
        let mut server = Self::spawn(data, port, env);
        server.wait_ready("gateway");
        server
    }

    /// Starts a server without waiting for it.
    pub fn spawn(data: &Path, port: u16, env: &[(&str, &str)]) -> Self {
        Self::spawn_with(Command::new(env!("CARGO_BIN_EXE_rollmill")), data, port, env)
    }

    /// Like [`Self::spawn`], inside a network namespace.
    pub fn spawn_in(namespace: &str, data: &Path, port: u16, env: &[(&str, &str)]) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_rollmill")]);
        Self::spawn_with(command, data, port, env)
    }

    fn spawn_with(mut command: Command, data: &Path, port: u16, env: &[(&str, &str)]) -> Self {
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(data);
        // Variables that control the tests must not reach the server as configuration.
        std::env::vars().filter(|(name, _)| name.starts_with("ROLLMILL_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.env("ROLLMILL_ACCEPT_MAX_AGE", "20000d").env("ROLLMILL_ARCHIVE_KEEP", "0");
        command.envs(
            env.iter()
                .map(|(k, v)| (format!("ROLLMILL_{}", k.replace('.', "_").to_uppercase()), v)),
        );
        Self::run(command, data, port)
    }

    /// Starts any command that serves from `data` on `port`.
    pub fn run(mut command: Command, data: &Path, port: u16) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(data.with_extension("server.log"))
            .expect("log file");
        command.stderr(log);
        Self::run_logged_elsewhere(command, data, port)
    }

    /// Like [`Self::run`], with the standard error that the command already has.
    pub fn run_logged_elsewhere(mut command: Command, data: &Path, port: u16) -> Self {
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the server starts");
        Self { child, url: format!("http://127.0.0.1:{port}"), data: data.to_owned() }
    }

    pub fn wait_alive(&mut self) {
        self.wait_for("/healthz");
    }

    /// Waits until the node is ready for this role. A node waiting for its dependencies is alive
    /// but accepts nothing.
    pub fn wait_ready(&mut self, role: &str) {
        self.wait_for(&format!("/readyz?role={role}"));
    }

    fn wait_for(&mut self, path: &str) {
        let deadline = Instant::now() + PATIENCE;
        while agent().get(format!("{}{path}", self.url)).call().map_or(true, |r| r.status() != 200)
        {
            if let Some(status) = self.child.try_wait().expect("wait") {
                let log = std::fs::read_to_string(self.data.with_extension("server.log"))
                    .unwrap_or_default();
                panic!("the server ended with {status}:\n{log}");
            }
            assert!(Instant::now() < deadline, "the server did not come up: {path}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }

    /// The exit code, once the process has ended by itself.
    pub fn exit_code(&mut self) -> Option<Option<i32>> {
        self.child.try_wait().expect("wait").map(|status| status.code())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL: for the process, the same as a power cut.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix_pid(self.child.id()), signal).expect("signal");
    }

    /// Sends SIGTERM and returns the exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.child.wait().expect("wait").code()
    }

    pub fn get(&self, path: &str) -> (u16, serde_json::Value) {
        let mut response = agent().get(format!("{}{path}", self.url)).call().expect("an answer");
        let text =
            response.body_mut().with_config().limit(256 << 20).read_to_string().expect("a body");
        (
            response.status().as_u16(),
            serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)),
        )
    }

    pub fn post(&self, body: &str) -> (u16, serde_json::Value) {
        self.post_as(body.as_bytes(), "application/json", &[])
    }

    pub fn post_as(
        &self,
        body: &[u8],
        content_type: &str,
        headers: &[(&str, &str)],
    ) -> (u16, serde_json::Value) {
        let mut request =
            agent().post(format!("{}/v1/events", self.url)).header("content-type", content_type);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body).expect("an answer");
        let text = response.body_mut().read_to_string().expect("a body");
        (
            response.status().as_u16(),
            serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)),
        )
    }

    /// Like [`Self::await_query`], with everything acknowledged so far included: an acknowledged
    /// event is not necessarily applied yet.
    pub fn await_everything(&self, path: &str) -> serde_json::Value {
        let now = jiff::Timestamp::now();
        let as_of = |answer: &serde_json::Value| {
            answer["completeness"]["as_of"].as_str().and_then(|at| at.parse().ok())
        };
        self.await_query(path, |answer| as_of(answer).is_some_and(|at: jiff::Timestamp| at >= now))
    }

    /// Aggregated, de-duplicated and quarantined events of all hours, as stored.
    pub fn accounted(&self) -> [u64; 3] {
        let (_, answer) = self.get("/v1/accounting");
        let hours = answer["hours"].as_array().cloned().unwrap_or_default();
        ["aggregated", "deduplicated", "quarantined"]
            .map(|name| hours.iter().filter_map(|hour| hour[name].as_u64()).sum())
    }

    /// Runs another command of the binary.
    pub fn cli(args: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
        std::env::vars().filter(|(name, _)| name.starts_with("ROLLMILL_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.args(args).output().expect("the command runs")
    }

    /// Waits until a query is complete and its answer passes. Panics after [`PATIENCE`] with the
    /// last answer.
    pub fn await_query(
        &self,
        path: &str,
        pass: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, answer) = self.get(path);
            if status == 200 && answer["completeness"]["partial"] == false && pass(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path} still answers {status} {answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Waits until `is_so` returns true. Panics after [`PATIENCE`].
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may already have ended: tests stop servers themselves.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process handles this signal itself. Until it has installed its handler, the signal
/// just ends it.
pub fn handles(pid: u32, signal: rustix::process::Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}

fn rustix_pid(pid: u32) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid")
}

/// A client that returns every status as an answer, not as an error.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .into()
}
