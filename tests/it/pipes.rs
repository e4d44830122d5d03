//! Output that nobody reads any more ends a command quietly, as SIGPIPE would.

use std::process::{Command, Stdio};

use crate::support::{Server, until};

/// The exit code of a command whose reader is gone before it prints, and what it said.
fn unread(args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
    std::env::vars().filter(|(name, _)| name.starts_with("ROLLMILL_")).for_each(|(name, _)| _ = command.env_remove(name));
    let done = command.args(args).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output().expect("it runs");
    (done.status.code(), String::from_utf8(done.stderr).expect("text"))
}

#[test]
fn a_reader_that_is_gone_ends_a_command_quietly() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data, &[("shards.count", "2")]);
    assert_eq!(server.post(r#"{"metric":"m"}"#).0, 202);
    until("ready", || server.get("/readyz").0 == 200);
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
