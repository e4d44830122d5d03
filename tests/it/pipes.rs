//! A closed reader ends a command quietly, as SIGPIPE would; output that cannot be written ends it
//! with an error message. A node survives any failure of its log output.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Server, free_port, wait_until};

/// The exit code and standard error of a command whose reader is closed before it prints.
fn unread(args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
    std::env::vars()
        .filter(|(name, _)| name.starts_with("ROLLMILL_"))
        .for_each(|(name, _)| _ = command.env_remove(name));
    let done = command
        .args(args)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("it runs");
    (done.status.code(), String::from_utf8(done.stderr).expect("text"))
}

#[test]
fn a_reader_that_is_gone_ends_a_command_quietly() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data, &[("shards.count", "2")]);
    assert_eq!(server.post(r#"{"metric":"m"}"#).0, 202);
    wait_until("ready", || server.get("/readyz").0 == 200);
    let (data, url) = (data.display().to_string(), server.url.as_str());
    for args in [
        &["version"][..],
        &["check-config"],
        &["store", "roles"],
        &["health", "--url", url],
        &["status", "--url", url],
        &["status", "--json", "--url", url],
        &["query", "m", "--url", url],
        &["quarantine", "list", "--url", url],
        &["archive", "ls", "--data", &data],
        &["verify", "--data", &data],
    ] {
        assert_eq!(unread(args), (Some(141), String::new()), "{args:?}");
    }
    let (code, said) = unread(&["--help"]);
    assert!(code == Some(0) && said.is_empty(), "{code:?} {said}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure_and_no_panic() {
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    for args in [&["version"][..], &["check-config"], &["store", "roles"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
        let done = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(full())
            .stderr(Stdio::piped())
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{args:?}: {said}");
        assert!(
            said.starts_with("rollmill: cannot write the output: No space left")
                && said.lines().count() == 1,
            "{said}"
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
        let done = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(full())
            .stderr(full())
            .status()
            .expect("it runs");
        assert_eq!(done.code(), Some(1), "{args:?}");
    }
}

const LOST: &str = "rollmill_log_records_lost_total ";

/// A node with the given standard error.
fn logging_to(log: impl Into<Stdio>, data: &Path, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
    std::env::vars()
        .filter(|(name, _)| name.starts_with("ROLLMILL_"))
        .for_each(|(name, _)| _ = command.env_remove(name));
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(data);
    command.env("ROLLMILL_SHARDS_COUNT", "2").env("ROLLMILL_LOG", "debug");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

#[test]
fn a_node_outlives_whatever_becomes_of_its_log() {
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let (reader, gone) = std::io::pipe().expect("a pipe");
    drop(reader);
    // Held but never read, like a stalled collector, or a terminal after Ctrl-S.
    let (_stands_still, slow) = std::io::pipe().expect("a pipe");
    for (what, log) in [
        ("a full disk", Stdio::from(full())),
        ("a closed pipe", gone.into()),
        ("a frozen reader", slow.into()),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let data = dir.path().join("data");
        let mut server = Server::run_logged_elsewhere(logging_to(log, &data, port), &data, port);
        server.wait_ready("gateway");
        // Each refusal is one log line at this level; together they exceed the capacity of a pipe.
        let bad = "no event\n".repeat(5_000);
        assert_eq!(server.post_as(bad.as_bytes(), "application/x-ndjson", &[]).0, 422, "{what}");
        assert_eq!(server.post(r#"{"metric":"m"}"#).0, 202, "{what}");
        server.await_query("/v1/query?metric=m&step=all", |answer| {
            answer["series"][0]["points"][0]["count"] == 1
        });
        let lost =
            |text: &str| text.lines().any(|line| line.starts_with(LOST) && !line.ends_with(" 0"));
        wait_until(what, || server.get("/metrics").1.as_str().is_some_and(lost));
        assert_eq!(server.stop(), Some(0), "{what}");
    }
}
