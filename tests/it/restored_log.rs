//! A server must not accept a single write on a log that does not continue at the store's
//! checkpoint.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{PATIENCE, Server, wait_until};

const ONE_SHARD: &[(&str, &str)] = &[("shards.count", "1"), ("flush.interval", "100ms")];

fn write(data: &Path, ids: &[&str], total: u64) {
    let server = Server::start(data, ONE_SHARD);
    for id in ids {
        assert_eq!(server.post(&format!(r#"{{"metric":"m","id":"{id}"}}"#)).0, 202);
    }
    // On a busy machine, a stop may leave unflushed records to the log.
    wait_until("everything is in the store", || server.accounted()[0] == total);
    assert_eq!(server.stop(), Some(0));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

/// Starts a server that is expected to end by itself. Returns its exit code and output.
fn refused(data: &Path) -> (Option<i32>, String) {
    let mut server = Command::new(env!("CARGO_BIN_EXE_rollmill"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(data)
        .env("ROLLMILL_SHARDS_COUNT", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut status = None;
    while status.is_none() && std::time::Instant::now() < deadline {
        status = server.try_wait().expect("waits");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // A server that keeps running is the failure: it accepts writes that its shard would skip.
    let _ = server.kill();
    let output = server.wait_with_output().expect("ends");
    (status.and_then(|s| s.code()), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_older_copy_of_the_log_is_refused_before_it_takes_writes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, old) = (dir.path().join("data"), dir.path().join("old"));
    write(&data, &["a", "b", "c"], 3);
    copy(&data.join("log"), &old);
    write(&data, &["d", "e", "f"], 6);
    std::fs::remove_dir_all(data.join("log")).expect("removed");
    copy(&old, &data.join("log"));

    let (code, message) = refused(&data);
    assert!(code.is_some_and(|code| code != 0), "it went on: {message}");
    assert!(
        message.contains("the log ends at offset 3, below 6, up to where the store or the archive"),
        "{message}"
    );
    assert!(
        message.contains("shard 0") && message.contains(&data.display().to_string()),
        "{message}"
    );

    // A deleted log is replaced by a new one, with a different log id.
    std::fs::remove_dir_all(data.join("log")).expect("removed");
    let (code, message) = refused(&data);
    assert!(
        code.is_some_and(|code| code != 0) && message.contains("the store belongs to log"),
        "{message}"
    );
}
