//! The mesh of the real binary: when it refuses to start, and what a node shows of another.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Server, free_port};

const COOKIE: &str = "0123456789abcdef0123456789abcdef";

/// Starts a node with a configuration that it must refuse. Returns its exit code and output.
fn refused(dir: &Path, config: &str) -> (Option<i32>, String) {
    let (file, data) = (dir.join("c.toml"), dir.join("data").display().to_string());
    std::fs::write(&file, config).expect("written");
    let output = Server::cli(&[
        "serve",
        "--data",
        &data,
        "--listen",
        "127.0.0.1:0",
        "--config",
        &file.display().to_string(),
    ]);
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn a_mesh_that_would_not_be_safe_does_not_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let cookie = dir.path().join("cookie");
    std::fs::write(&cookie, format!("{COOKIE}\n")).expect("written");
    let (short, cookie) = (dir.path().join("short"), cookie.display());
    std::fs::write(&short, "secret").expect("written");
    let short = short.display();
    let near = "cluster.listen = \"127.0.0.1:0\"\n";
    for (config, code, says) in [
        (near.to_owned(), 1, vec!["cluster.cookie_file", "openssl rand"]),
        (format!("{near}cluster.cookie_file = \"{short}\"\n"), 1, vec!["6 bytes", "at least 32"]),
        (
            format!("cluster.listen = \"0.0.0.0:0\"\ncluster.cookie_file = \"{cookie}\"\n"),
            1,
            vec!["0.0.0.0:0 is beyond loopback", "cluster.cert", "cluster.insecure = true"],
        ),
        (
            format!(
                "{near}cluster.cookie_file = \"{cookie}\"\ncluster.peers = \"192.0.2.7:7946\"\n"
            ),
            1,
            vec!["192.0.2.7:7946 is beyond loopback"],
        ),
        (
            format!("{near}cluster.cookie_file = \"{cookie}\"\ncluster.peers = \"nonsense\"\n"),
            1,
            vec!["host:port"],
        ),
        (
            format!("{near}cluster.cert = \"{cookie}\"\n"),
            2,
            vec!["cluster.cert, cluster.key and cluster.ca"],
        ),
        (
            format!(
                "{near}cluster.cookie_file = \"{cookie}\"\ncluster.cert = \
                 \"{cookie}\"\ncluster.key = \"{cookie}\"\ncluster.ca = \"{cookie}\"\n"
            ),
            1,
            vec!["cluster.cert", "PEM"],
        ),
        (
            "query.redis = \"rediss://127.0.0.1:6379\"\n".to_owned(),
            1,
            vec!["query.redis", "redis://"],
        ),
        (format!("{near}cluster.insecure = \"perhaps\"\n"), 2, vec!["neither true nor false"]),
        (
            format!("{near}query.deadline = \"1s\"\n"),
            2,
            vec!["cluster.call_timeout", "query.deadline"],
        ),
    ] {
        let (found, said) = refused(dir.path(), &config);
        assert_eq!(found, Some(code), "{config}{said}");
        assert!(says.iter().all(|part| said.contains(part)), "{config}{said}");
        assert!(!said.contains(COOKIE) && !said.contains("panicked"), "{said}");
        // `check-config` reports it too, before any node is started.
        let checked =
            Server::cli(&["check-config", &dir.path().join("c.toml").display().to_string()]);
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.code(), Some(code), "{config}{said}");
        assert!(
            says.iter().all(|part| said.contains(part)) && !said.contains(COOKIE),
            "{config}{said}"
        );
    }
}

#[test]
fn nodes_show_each_other_in_their_status() {
    let dir = tempfile::tempdir().expect("a directory");
    let cookie = dir.path().join("cookie");
    std::fs::write(&cookie, COOKIE).expect("written");
    std::fs::set_permissions(&cookie, PermissionsExt::from_mode(0o644)).expect("set");
    let (cookie, ports) = (cookie.display().to_string(), [free_port(), free_port()]);
    let peers = ports.map(|port| format!("127.0.0.1:{port}"));
    let all = peers.join(",");
    let start = |at: usize, name: &str| {
        let settings = [
            ("node.name", name),
            ("shards.count", "4"),
            ("cluster.listen", &peers[at]),
            ("cluster.peers", &all),
            ("cluster.cookie_file", &cookie),
        ];
        Server::start(&dir.path().join(name), &settings)
    };
    let (first, second) = (start(0, "mill-1"), start(1, "mill-2"));
    let deadline = Instant::now() + PATIENCE;
    for server in [&first, &second] {
        loop {
            let output = Server::cli(&["status", "--json", "--url", &server.url]);
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let names = status["nodes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|node| node["name"].as_str());
            let mut names: Vec<_> = names.collect();
            names.sort_unstable();
            // Each node has its own embedded log, which is a mistake that an operator must see.
            let nodes = status["nodes"].to_string();
            if names == ["mill-1", "mill-2"]
                && nodes.matches("it belongs to another cluster").count() == 1
            {
                break;
            }
            assert!(Instant::now() < deadline, "{status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    assert_eq!((first.stop(), second.stop()), (Some(0), Some(0)));
    let log = std::fs::read_to_string(dir.path().join("mill-1.server.log")).expect("a log");
    assert!(log.contains("everybody on this machine can read cluster.cookie_file"), "{log}");
}
