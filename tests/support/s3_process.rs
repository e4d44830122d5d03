//! The S3 server as a separate process, this test binary run again, so that it can be killed like
//! any other.
//!
//! It reads one command per line from standard input, answers each with a line, and ends when
//! standard input is closed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::s3::S3Server;

#[allow(clippy::duplicate_mod)] // each copy hands out ports of its own range
#[path = "ports.rs"]
mod ports;

/// Environment variables with the child's address and directory.
const ROLE: [&str; 2] = ["S3_ADDRESS", "S3_ROOT"];
/// Marks answers, because the child's test harness prints too, even on the same line.
const ANSWER: &str = "ANSWER ";

/// A server over a directory, running or not.
pub struct S3Process {
    pub endpoint: String,
    root: PathBuf,
    running: Option<S3Child>,
}

struct S3Child {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl S3Process {
    pub fn start(root: &Path) -> Self {
        let (running, endpoint) =
            S3Child::start(&format!("127.0.0.1:{}", ports::free(ports::S3)), root);
        Self { endpoint, root: root.to_owned(), running: Some(running) }
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        let mut running = self.running.take().expect("it runs");
        running.child.kill().expect("kill");
        let status = running.child.wait().expect("wait");
        assert_eq!(status.code(), None, "it had ended by itself");
        assert!(
            TcpStream::connect(self.address()).is_err(),
            "something still listens for the S3 server"
        );
    }

    /// Restarts a killed server on the same port, with its data and without faults. A running
    /// server is left alone.
    pub fn restart(&mut self) {
        if self.running.is_none() {
            self.running = Some(S3Child::start(self.address(), &self.root).0);
        }
    }

    pub fn is_away(&self) -> bool {
        self.running.is_none()
    }

    /// Makes this many of a thousand requests fail; the seed decides which.
    pub fn set_faults(&mut self, seed: u64, per_mille: u64) {
        assert_eq!(self.ask(&format!("faults {seed} {per_mille}")), "set");
    }

    /// Number of failed requests since the server started.
    pub fn hits(&mut self) -> u64 {
        self.ask("hits").parse().expect("a number")
    }

    fn ask(&mut self, command: &str) -> String {
        self.running.as_mut().expect("it runs").ask(command)
    }

    fn address(&self) -> &str {
        self.endpoint.trim_start_matches("http://")
    }
}

impl S3Child {
    /// Starts the server process and returns it with its endpoint.
    fn start(address: &str, root: &Path) -> (Self, String) {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args([
                "--exact",
                "s3_process::an_s3_server",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE[0], address)
            .env(ROLE[1], root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the S3 server starts");
        let commands = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut running = Self { child, commands, answers };
        let endpoint = running.answer();
        (running, endpoint)
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("the S3 server listens");
        self.answer()
    }

    fn answer(&mut self) -> String {
        let lines = self.answers.by_ref().lines().map(|line| line.expect("text"));
        let mut answers =
            lines.filter_map(|line| line.split_once(ANSWER).map(|(_, answer)| answer.to_owned()));
        answers.next().expect("the S3 server has ended, see above")
    }
}

impl Drop for S3Child {
    fn drop(&mut self) {
        // The process may already have been killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's entry point; it does nothing in an ordinary test run.
#[test]
#[ignore = "the S3 server of the others, not a test"]
fn an_s3_server() {
    let [Some(address), Some(root)] = ROLE.map(std::env::var_os) else { return };
    let server = S3Server::start_on(address.to_str().expect("an address"), Path::new(&root));
    println!("{ANSWER}{}", server.endpoint);
    for line in std::io::stdin().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse().expect("a number");
        match words[0] {
            "faults" => {
                server.set_faults(number(1), number(2));
                println!("{ANSWER}set");
            }
            "hits" => println!("{ANSWER}{}", server.injected_faults().len()),
            other => panic!("what is {other}?"),
        }
    }
}
