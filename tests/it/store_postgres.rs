//! The real binary on PostgreSQL: killed, restarted, verified.

use std::process::Command;

use crate::postgres;
use crate::support::{Server, wait_until};

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

/// A frozen server exhausts neither the query threads nor a tenant's share of them.
#[test]
fn queries_end_in_time_while_postgres_is_frozen_and_leave_room_for_the_next() {
    let server = postgres::Postgres::start("frozen");
    let url = server.url(&server.database());
    let dir = tempfile::tempdir().expect("a directory");
    let settings = [
        ("store.url", &*url),
        ("shards.count", "1"),
        ("query.timeout", "500ms"),
        ("query.max_concurrent", "2"),
    ];
    let node = Server::start(&dir.path().join("data"), &settings);
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
