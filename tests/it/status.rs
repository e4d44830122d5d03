//! `rollmill status`, roles on the command line, and a stop that load balancers notice first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{Server, agent, wait_until};

fn status(server: &Server, more: &[&str]) -> (Option<i32>, String) {
    let output = Server::cli(&[&["status", "--url", &server.url], more].concat());
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn the_status_is_a_table_for_people_and_json_for_programs() {
    let dir = tempfile::tempdir().expect("a directory");
    let server =
        Server::start(&dir.path().join("data"), &[("shards.count", "4"), ("node.name", "mill-1")]);
    for id in 0..40 {
        assert_eq!(server.post(&format!(r#"{{"metric":"m{id}"}}"#)).0, 202);
    }
    server.await_query("/v1/query?metric=m1&step=all", |answer| answer["series"][0].is_object());
    wait_until("ready and healthy", || {
        server.get("/readyz").0 == 200 && server.get("/v1/status").1["healthy"] == true
    });
    let (code, table) = status(&server, &[]);
    assert_eq!(code, Some(0), "{table}");
    assert!(table.contains("gateway,shards,query"), "{table}");
    let owned =
        table.lines().filter(|line| line.split_whitespace().nth(1) == Some("mill-1")).count();
    assert_eq!(owned, 4, "{table}");

    let (code, text) = status(&server, &["--json"]);
    let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (code, answer["healthy"].as_bool(), answer["shards"].as_array().map(Vec::len)),
        (Some(0), Some(true), Some(4))
    );
    let total: u64 =
        answer["shards"].as_array().expect("shards").iter().filter_map(|s| s["end"].as_u64()).sum();
    assert_eq!(total, 40, "{answer}");
}

#[test]
fn roles_that_the_backends_cannot_split_are_a_mistake_of_the_configuration() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data").display().to_string();
    for (roles, says) in [
        ("gateway", "every role"),
        ("gateway,shard", "did you mean shards?"),
        (",", "needs a role"),
    ] {
        let output =
            Server::cli(&["serve", "--listen", "127.0.0.1:0", "--data", &data, "--roles", roles]);
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("node.roles") && said.contains(says), "{said}");
    }
}

#[test]
fn a_load_balancer_sees_the_stop_before_a_client_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data, &[("shards.count", "4"), ("server.drain_delay", "5s")]);
    server.await_query("/v1/query?metric=m", |_| true);
    wait_until("ready", || server.get("/readyz").0 == 200);
    let (url, taken) = (server.url.clone(), Arc::new(AtomicU32::new(0)));
    let counted = taken.clone();
    let client = std::thread::spawn(move || {
        let agent = agent();
        let post = || {
            let request =
                agent.post(format!("{url}/v1/events")).header("content-type", "application/json");
            request.send(r#"{"metric":"m"}"#).map(|answer| answer.status().as_u16())
        };
        // Behaves like a load balancer: it sends as long as its last probe of /readyz succeeded,
        // and once more.
        loop {
            let ready =
                agent.get(format!("{url}/readyz")).call().map(|answer| answer.status().as_u16());
            let before = counted.load(Ordering::SeqCst);
            assert_eq!(
                post().expect("connections are taken"),
                202,
                "a write was refused after {before}"
            );
            counted.fetch_add(1, Ordering::SeqCst);
            if ready.expect("the port is open") == 503 {
                return;
            }
        }
    });
    wait_until("it sends", || taken.load(Ordering::SeqCst) > 20 || client.is_finished());
    assert_eq!(server.stop(), Some(0));
    client.join().expect("no write was refused");
    let taken = taken.load(Ordering::SeqCst);

    let server = Server::start(&data, &[("shards.count", "4")]);
    let count = |answer: &serde_json::Value| answer["series"][0]["points"][0]["count"].as_u64();
    server.await_query("/v1/query?metric=m&step=all", |answer| {
        count(answer) == Some(u64::from(taken))
    });
}
