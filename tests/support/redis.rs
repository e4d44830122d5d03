//! A Redis server for one test, from the system's `redis-server`.
// Each test binary uses a part of this file. Waiting for servers takes real time.
#![allow(dead_code, clippy::disallowed_methods)]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[allow(clippy::duplicate_mod)] // each copy hands out ports of its own range
#[path = "ports.rs"]
mod ports;

pub const PASSWORD: &str = "never-logged-secret";

pub struct Redis {
    child: Option<Child>,
    port: u16,
    dir: tempfile::TempDir,
}

impl Redis {
    /// Starts a server on its own port.
    pub fn start() -> Self {
        let port = ports::free(ports::REDIS);
        let mut redis = Self { child: None, port, dir: tempfile::tempdir().expect("a directory") };
        redis.restart();
        redis
    }

    /// Starts an empty server on the same port.
    pub fn restart(&mut self) {
        let port = self.port.to_string();
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--requirepass",
            PASSWORD,
        ]);
        command
            .arg("--dir")
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child =
            Some(command.spawn().expect("redis-server is there: `make tools` installs it"));
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.client().get_connection_with_timeout(Duration::from_millis(500)).is_err() {
            assert!(Instant::now() < deadline, "redis-server did not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn url(&self) -> String {
        format!("redis://:{PASSWORD}@127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> redis::Client {
        redis::Client::open(self.url()).expect("an address")
    }

    pub fn connection(&self) -> redis::Connection {
        self.client().get_connection().expect("a connection")
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    /// Stops the server with SIGSTOP: it still accepts connections, but answers nothing.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.as_ref().expect("it runs").id();
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("signal");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
