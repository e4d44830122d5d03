//! The real binary on PostgreSQL: killed, restarted, verified.

use std::process::Command;

use crate::postgres;
use crate::support::{Server, agent, wait_until};

#[test]
fn a_node_on_postgres_counts_once_over_a_kill_and_verifies() {
    let server = postgres::shared();
    let database = server.database();
    let url = server.url(&database);
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let settings = [
        ("store.url", &*url),
        ("shards.count", "4"),
        ("flush.interval", "200ms"),
        ("archive.max_delay", "200ms"),
        ("rollups.keep", "20000d"),
    ];
    let send = |node: &Server, from: u32| {
        let events: Vec<String> = (from..from + 200)
            .map(|n| {
                let head = r#""metric":"sales","timestamp":"2026-01-01T10:00:00Z","value":"0.1""#;
                format!(r#"{{{head},"id":"{n}","labels":{{"page":"{}"}}}}"#, n % 20)
            })
            .collect();
        assert_eq!(node.post(&format!("[{}]", events.join(","))).0, 202);
    };
    let node = Server::start(&data, &settings);
    send(&node, 0);
    let query = "/v1/query?metric=sales&from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z&step=1d&\
                 agg=count,sum";
    node.await_query(query, |answer| answer["series"][0]["points"][0]["count"] == 200);
    let archived = || {
        server.psql(&database, "SELECT count(*) > 0 FROM rollmill.manifest").expect("an answer")
            == "t"
    };
    wait_until("something is archived", archived);
    node.kill();
    let node = Server::start(&data, &settings);
    let size = |name: &str| {
        let metrics = node.get("/metrics").1.as_str().unwrap_or_default().to_owned();
        metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
    };
    wait_until("the sizes are told", || {
        ["rollmill_store_size_bytes ", "rollmill_archive_size_bytes "]
            .iter()
            .all(|name| size(name).is_some_and(|n| n > 0.0))
    });
    send(&node, 100);
    let answer = node.await_query(query, |answer| answer["series"][0]["points"][0]["count"] == 300);
    assert_eq!(answer["series"][0]["points"][0]["sum"].to_string(), "30");
    // On a busy machine, a stop may leave unflushed records to the log.
    wait_until("everything is in the store", || node.accounted()[0] == 300);
    assert_eq!(node.stop(), Some(0));
    assert!(!data.join("store.sqlite").exists());
    assert_eq!(
        server.psql(&database, "SELECT sum(count), sum(sum) FROM rollmill.rollups"),
        Ok("300|30.0".into())
    );

    let verify = Command::new(env!("CARGO_BIN_EXE_rollmill"))
        .args(["verify", "--json", "--data"])
        .arg(&data)
        .env("ROLLMILL_STORE_URL", &url)
        .env("ROLLMILL_SHARDS_COUNT", "4")
        .output()
        .expect("it runs");
    let report: serde_json::Value = serde_json::from_slice(&verify.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&verify.stderr)));
    assert_eq!((&report["equal"], &report["rows"]), (&true.into(), &20.into()), "{report}");
}

#[test]
fn roles_and_tables_by_command() {
    let server = postgres::shared();
    let database = server.database();
    let roles = Server::cli(&["store", "roles"]);
    server.make_roles(&database, &String::from_utf8_lossy(&roles.stdout));
    let migrate =
        |role: &str| Server::cli(&["store", "migrate", "--url", &server.url_as(role, &database)]);
    let refused = migrate("rollmill_writer");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("rollmill_owner"));
    assert!(migrate("rollmill_owner").status.success());
    assert!(migrate("rollmill_writer").status.success(), "nothing is left to do");
    let nobody = Server::cli(&["store", "migrate"]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("store.url"));
}

/// A flush that fails permanently is reported by the status and a metric. Queries keep answering as
/// before.
#[test]
fn flushes_that_fail_for_ever_are_told() {
    let server = postgres::shared();
    let database = server.database();
    let url = server.url(&database);
    let dir = tempfile::tempdir().expect("a directory");
    let node = Server::start(
        &dir.path().join("data"),
        &[("store.url", &url), ("shards.count", "1"), ("flush.interval", "100ms")],
    );
    let send = |id: u32| assert_eq!(node.post(&format!(r#"{{"metric":"m","id":"{id}"}}"#)).0, 202);
    send(1);
    wait_until("the first event is in the store", || node.accounted()[0] == 1);
    server
        .psql(
            &database,
            "ALTER TABLE rollmill.accounting ADD CONSTRAINT never CHECK (false) NOT VALID",
        )
        .expect("a limit");
    send(2);
    let shard = || node.get("/v1/status").1["shards"][0].clone();
    wait_until("the status tells", || shard()["problem"] == "flush_failing");
    assert!(
        shard()["flush_failure"].as_str().is_some_and(|why| why.contains("23514")),
        "{}",
        shard()
    );
    let metrics = || node.get("/metrics").1.as_str().unwrap_or_default().to_owned();
    let failing = |n: &str| metrics().contains(&format!("rollmill_flushes_failing {n}\n"));
    wait_until("the metric tells", || failing("1"));
    server
        .psql(&database, "ALTER TABLE rollmill.accounting DROP CONSTRAINT never")
        .expect("no limit");
    wait_until("it goes on by itself", || node.accounted()[0] == 2);
    wait_until("nothing is told any more", || shard()["problem"].is_null() && failing("0"));
    assert_eq!(node.stop(), Some(0));
}

/// A node on a PostgreSQL of its own that ends queries after half a second, and runs `at_once`.
fn impatient_node(name: &str, at_once: &str) -> (postgres::Postgres, tempfile::TempDir, Server) {
    let server = postgres::Postgres::start(name);
    let url = server.url(&server.database());
    let dir = tempfile::tempdir().expect("a directory");
    let settings = [
        ("store.url", &*url),
        ("shards.count", "1"),
        ("query.timeout", "500ms"),
        ("query.max_concurrent", at_once),
    ];
    let node = Server::start(&dir.path().join("data"), &settings);
    (server, dir, node)
}

/// A frozen server exhausts neither the query threads nor a tenant's share of them.
#[test]
fn queries_end_in_time_while_postgres_is_frozen_and_leave_room_for_the_next() {
    let (server, _dir, node) = impatient_node("frozen", "2");
    let ask = || node.get("/v1/query?metric=m&step=all");
    wait_until("it answers", || ask().0 == 200);
    server.freeze();
    // Two queries may run at a time: if the timed-out ones did not end, the third would be refused.
    for n in 0..5 {
        let asked = std::time::Instant::now();
        let (status, answer) = ask();
        assert_eq!(
            (status, answer["error"]["code"].as_str()),
            (503, Some("query_timeout")),
            "{n}: {answer}"
        );
        assert!(asked.elapsed() < std::time::Duration::from_secs(10), "{:?}", asked.elapsed());
    }
    server.thaw();
    wait_until("it answers again", || ask().0 == 200);
    assert_eq!(node.stop(), Some(0));
}

/// Does something that must not wait for the store, which gives up by itself after 30 s.
fn in_time<T>(act: impl FnOnce() -> T) -> T {
    let watch = std::time::Instant::now();
    let done = act();
    assert!(watch.elapsed() < std::time::Duration::from_secs(20), "{:?}", watch.elapsed());
    done
}

/// Operators look and act when something hangs: the status comes without the store, and everything
/// else says in time that the store is the one that does not answer.
#[test]
fn operators_are_answered_in_time_while_postgres_is_frozen() {
    let (server, _dir, node) = impatient_node("frozen-operators", "1");
    let place = r#"{"shard":0,"offset":7,"index":0}"#;
    let calls = [
        ("/v1/quarantine", None),
        ("/v1/quarantine/release", Some(place)),
        ("/v1/quarantine/discard", Some(place)),
        ("/v1/archive/expiry", None),
        ("/v1/archive/expiry", Some(r#"{"yes":true}"#)),
    ];
    wait_until("the shard is owned", || node.get("/v1/status").1["shards"][0]["owner"] == "here");
    for (path, body) in calls {
        let expected = if body == Some(place) { 404 } else { 200 };
        // A busy machine may take longer than half a second for the first one.
        wait_until(path, || call(&node, path, body).0 == expected);
    }
    server.freeze();
    // One at a time may run: a call that did not end would refuse the next one.
    for (path, body) in calls {
        let (status, retry_after, answer) = in_time(|| call(&node, path, body));
        assert_eq!(
            (status, answer["error"]["code"].as_str()),
            (503, Some("store_unavailable")),
            "{path}: {answer}"
        );
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(retry_after && message.contains("the store did not answer"), "{path}: {message}");
    }
    let (status, answer) = in_time(|| node.get("/v1/status"));
    assert_eq!((status, &answer["shards"][0]["owner"]), (200, &"here".into()), "{answer}");
    let store = answer["store"].as_str().unwrap_or_default();
    assert!(store.contains("no answer in time"), "{answer}");
    for (args, words) in [
        (&["quarantine", "list"][..], "the store did not answer"),
        (&["quarantine", "release", "0/7/0", "0/7/1", "0/7/2"], "the store did not answer"),
        (&["status"], "does not answer"),
    ] {
        let output = in_time(|| Server::cli(&[args, &["--url", &node.url]].concat()));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(words), "{args:?}: {said}");
        assert!(!said.contains("0/7/1:"), "the next one would wait as long: {said}");
    }
    server.thaw();
    for (path, body) in calls {
        wait_until("it answers again", || call(&node, path, body).0 != 503);
    }
    assert_eq!(node.stop(), Some(0));
}

/// Status, whether there is `Retry-After`, and the answer.
fn call(node: &Server, path: &str, body: Option<&str>) -> (u16, bool, serde_json::Value) {
    let url = format!("{}{path}", node.url);
    let answer = match body {
        None => agent().get(url).call(),
        Some(body) => agent().post(url).header("content-type", "application/json").send(body),
    };
    let mut answer = answer.expect("an answer");
    let text = answer.body_mut().read_to_string().expect("a body");
    let json = serde_json::from_str(&text).expect("JSON");
    (answer.status().as_u16(), answer.headers().contains_key("retry-after"), json)
}
