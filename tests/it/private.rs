//! Files of a node are private to its user; a damaged tail of the log is not discarded; an
//! operation that needs a name is refused without one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::{Server, wait_until};

const SETTINGS: &[(&str, &str)] =
    &[("shards.count", "2"), ("flush.interval", "100ms"), ("archive.max_delay", "1s")];

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}

fn everything_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(everything_below(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn nobody_else_reads_what_a_node_keeps() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    // As older versions created it.
    std::fs::create_dir(&data).expect("made");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o755)).expect("set");
    let server = Server::start(&data, SETTINGS);
    assert_eq!(server.post(r#"{"metric":"m"}"#).0, 202);
    wait_until("it is archived", || {
        everything_below(&data).iter().any(|path| path.extension().is_some_and(|e| e == "parquet"))
    });
    let backup = dir.path().join("copy.sqlite");
    let data_text = data.display().to_string();
    let done =
        Server::cli(&["store", "backup", &backup.display().to_string(), "--data", &data_text]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for path in everything_below(&data).into_iter().chain([backup]) {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    assert_eq!(server.stop(), Some(0));

    let keys = dir.path().join("keys.toml");
    let keys_text = keys.display().to_string();
    let made =
        Server::cli(&["keys", "add", "--tenant", "a", "--scopes", "read", "--file", &keys_text]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::set_permissions(&keys, PermissionsExt::from_mode(0o666)).expect("set");
    let config = dir.path().join("c.toml");
    std::fs::write(&config, format!("auth.keys_file = \"{keys_text}\"\n")).expect("written");
    let config = config.display().to_string();
    let refused = Server::cli(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data",
        &data_text,
        "--config",
        &config,
    ]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("chmod go-w"), "{said}");
}

#[test]
fn an_empty_name_is_refused() {
    for args in [
        &["serve", "--data", ""][..],
        &["verify", "--data", ""],
        &["rebuild", "--data", ""],
        &["archive", "ls", "--data", ""],
    ] {
        let refused = Server::cli(args);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            refused.status.code() == Some(2)
                && said.contains("data.dir")
                && said.contains("must not be empty"),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn a_damaged_last_commit_is_refused_until_a_person_gives_it_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let settings = &[SETTINGS[0], ("flush.interval", "1h")];
    let server = Server::start(&data, settings);
    for value in ["first", "second"] {
        assert_eq!(server.post(&format!(r#"{{"metric":"m","properties":"{value}"}}"#)).0, 202);
    }
    server.kill();
    let segment = data.join("log/000000000000.seg");
    let mut bytes = std::fs::read(&segment).expect("read");
    let at = bytes.windows(6).position(|bytes| bytes == b"second").expect("the last commit");
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).expect("written");

    let text = data.display().to_string();
    let config = dir.path().join("c.toml");
    std::fs::write(&config, "shards.count = 2\n").expect("written");
    let refused = Server::cli(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data",
        &text,
        "--config",
        &config.display().to_string(),
    ]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for part in ["000000000000.seg", "no torn write", "rollmill log cut"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    let cut = Server::cli(&["log", "cut", "--data", &text]);
    let said =
        String::from_utf8_lossy(&cut.stdout).into_owned() + &String::from_utf8_lossy(&cut.stderr);
    assert!(cut.status.success() && said.contains(".damaged"), "{said}");
    let server = Server::start(&data, settings);
    let count = |answer: &serde_json::Value| answer["series"][0]["points"][0]["count"].as_u64();
    assert_eq!(count(&server.await_everything("/v1/query?metric=m&step=all")), Some(1));
    assert_eq!(server.stop(), Some(0));

    // A commit that only partly reached the disk is cut off automatically, kept in a file, and
    // reported.
    let mut bytes = std::fs::read(&segment).expect("read");
    let end = (bytes.iter().rposition(|&byte| byte != 0).expect("data") + 1).next_multiple_of(8);
    bytes[end..end + 300].copy_from_slice(&[7; 300]);
    std::fs::write(&segment, bytes).expect("written");
    let server = Server::start(&data, settings);
    assert_eq!(count(&server.await_everything("/v1/query?metric=m&step=all")), Some(1));
    assert_eq!(server.stop(), Some(0));
    let log = std::fs::read_to_string(data.with_extension("server.log")).expect("a log");
    assert!(log.contains("WARN") && log.contains("a damaged or torn commit"), "{log}");
    let kept = everything_below(&data.join("log"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "damaged"))
        .count();
    assert_eq!(kept, 2);
}
