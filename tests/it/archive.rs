//! The archive of a running server: DuckDB reads it and computes what the query API answers, and
//! the manifest tiles the log across kills.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Server};

/// Python with DuckDB, as installed by `make tools`.
pub fn python() -> PathBuf {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data-sets/tools/bin/python");
    let python = std::env::var_os("ROLLMILL_TEST_PYTHON").map_or(default, PathBuf::from);
    assert!(
        python.exists(),
        "{} is missing: `make tools` installs Python with DuckDB",
        python.display()
    );
    python
}

fn manifest(data: &Path) -> Vec<serde_json::Value> {
    let output = Server::cli(&["archive", "ls", "--json", "--data", &data.display().to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn archived(data: &Path) -> u64 {
    manifest(data).iter().map(|object| object["events"].as_u64().expect("events")).sum()
}

fn wait_archived(data: &Path, events: u64) {
    let deadline = Instant::now() + PATIENCE;
    while archived(data) < events {
        assert!(Instant::now() < deadline, "{} of {events} events are archived", archived(data));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn send(server: &Server, from: u64, to: u64) {
    let event = |n: u64| {
        let value = if n.is_multiple_of(7) {
            "null".to_owned()
        } else {
            format!("\"{}.25\"", n as i64 - 300)
        };
        let label = ["DE", "FR", "\\\"quoted\\\""][n as usize % 3];
        let (labels, user) = (format!(r#"{{"country":"{label}"}}"#), n % 50);
        format!(
            r#"{{"metric":"sales","value":{value},"labels":{labels},"user":"u{user}","id":"{n}"}}"#
        )
    };
    let body: Vec<String> = (from..to).map(event).collect();
    assert_eq!(server.post(&format!("[{}]", body.join(","))).0, 202);
}

#[test]
fn duckdb_reads_the_archive_and_agrees_with_the_query_api() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server =
        Server::start(&data, &[("archive.max_delay", "200ms"), ("flush.interval", "200ms")]);
    send(&server, 0, 1_000);
    wait_archived(&data, 1_000);
    let script = "import duckdb, json, sys\nrows = duckdb.sql(f\"SELECT labels->>'country', \
                  count(*), sum(value), min(value), count(DISTINCT user) FROM \
                  read_parquet('{sys.argv[1]}/archive/raw/**/*.parquet') WHERE metric = 'sales' \
                  GROUP BY 1 ORDER BY 1\").fetchall()\nprint(json.dumps([[r[0], r[1], \
                  float(r[2]), float(r[3]), r[4]] for r in rows]))";
    let output =
        Command::new(python()).args(["-c", script]).arg(&data).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let duck: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let answer = server.await_query(
        "/v1/query?metric=sales&step=all&by=country&agg=count,sum,min,distinct",
        |_| true,
    );
    let series = answer["series"].as_array().expect("series");
    assert_eq!(series.len(), 3);
    let mut ours: Vec<serde_json::Value> = series
        .iter()
        .map(|s| {
            let point = &s["points"][0];
            serde_json::json!([
                s["labels"]["country"],
                point["count"],
                point["sum"].as_f64(),
                point["min"].as_f64(),
                point["distinct"]
            ])
        })
        .collect();
    ours.sort_by_key(|row| row[0].as_str().expect("a country").to_owned());
    assert_eq!(duck, serde_json::Value::from(ours));
}

/// The documented block of SQL, word by word.
fn documented_query() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/how-to/query-the-archive.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let block = page.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("a block of SQL").to_owned()
}

/// Runs a query in this directory; its rows as JSON, numbers as numbers and times as texts.
fn duckdb(query: &str, directory: &Path) -> Vec<serde_json::Value> {
    let script = "import duckdb, decimal, json, sys\nshow = lambda cell: float(cell) if \
                  isinstance(cell, decimal.Decimal) else cell.isoformat() if hasattr(cell, \
                  'isoformat') else cell\nprint(json.dumps([[show(cell) for cell in row] for row \
                  in duckdb.sql(sys.argv[1]).fetchall()]))";
    let mut python = Command::new(python());
    let output = python.args(["-c", script, query]).current_dir(directory).output();
    let output = output.expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The hourly rollup as `/v1/query` answers it, in the form of [`duckdb`].
fn queried(server: &Server, from: &str, to: &str) -> Vec<serde_json::Value> {
    let answer = server.await_query(
        &format!(
            "/v1/query?metric=departure_delay&step=1h&by=origin&agg=count,sum,min,max&from={from}&to={to}"
        ),
        |answer| answer["completeness"]["partial"] == false,
    );
    let mut rows = Vec::new();
    for series in answer["series"].as_array().expect("series") {
        let points = series["points"].as_array().expect("points");
        for point in points.iter().filter(|point| point["count"] != 0) {
            let hour = point["t"].as_str().expect("a time").trim_end_matches('Z');
            let [sum, min, max] = ["sum", "min", "max"].map(|name| point[name].as_f64());
            rows.push(serde_json::json!([
                hour,
                series["labels"]["origin"],
                point["count"],
                sum,
                min,
                max
            ]));
        }
    }
    rows.sort_by_key(|row| (row[0].to_string(), row[1].to_string()));
    rows
}

/// Late events, batches sent again, in one flush and in later ones, and a quarantined event.
#[test]
fn the_documented_query_gives_the_rollups_of_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let mut server = crate::quarantine::faulty(&data, crate::quarantine::CrashScope::Actor);
    server.wait_alive();
    let start = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(80);
    let batch = |first: i64| {
        let event = |n: i64| {
            // Three days back and forth: every batch is late for windows of the one before.
            let time = start + jiff::SignedDuration::from_mins(n * 97 % (72 * 60));
            let value = if n % 7 == 0 { "null".to_owned() } else { format!("\"{}.125\"", n - 150) };
            let origin = ["EWR", "JFK", "LGA"][n as usize % 3];
            let user = if n == 133 { crate::quarantine::POISON } else { "somebody" };
            format!(
                r#"{{"metric":"departure_delay","timestamp":"{time}","value":{value},"labels":{{"origin":"{origin}"}},"user":"{user}","id":"{n}"}}"#
            )
        };
        format!("[{}]", (first..first + 100).map(event).collect::<Vec<_>>().join(","))
    };
    for first in [0, 100, 50, 0, 200, 250, 200] {
        assert_eq!(server.post(&batch(first)).0, 202);
        server.await_everything("/v1/query?metric=departure_delay&step=all");
    }
    crate::support::wait_until("all is decided", || server.accounted().iter().sum::<u64>() == 700);
    assert_eq!(server.accounted(), [349, 350, 1]);
    let flushed = Server::cli(&["archive", "flush", "--url", &server.url]);
    assert_eq!(flushed.status.code(), Some(0), "{}", String::from_utf8_lossy(&flushed.stderr));

    let outcomes = "SELECT outcome, count(*) FROM read_parquet('data/archive/raw/**/*.parquet') \
                    GROUP BY 1 ORDER BY 1";
    let [counted, duplicates, set_aside] = server.accounted();
    assert_eq!(
        duckdb(outcomes, dir.path()),
        [
            serde_json::json!(["counted", counted]),
            serde_json::json!(["duplicate", duplicates]),
            serde_json::json!(["quarantined", set_aside]),
        ]
    );
    let (from, to) = (start - jiff::SignedDuration::from_hours(1), jiff::Timestamp::now());
    let rows = queried(&server, &from.to_string(), &to.to_string());
    assert!(rows.len() > 100, "{rows:?}");
    assert_eq!(duckdb(&documented_query(), dir.path()), rows);
    assert_eq!(server.stop(), Some(0));
    let verified = Server::cli(&["verify", "--data", &data.display().to_string()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[test]
fn what_was_accepted_is_in_the_archive_after_a_flush_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    // With this delay, nothing is archived for an hour.
    let server = Server::start(&data, &[("archive.max_delay", "1h"), ("flush.interval", "500ms")]);
    send(&server, 0, 1_000);
    server.await_everything("/v1/query?metric=sales&step=all");
    let listed = || {
        let output = Server::cli(&["archive", "ls", "--data", &data.display().to_string()]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    crate::support::wait_until("the store has it", || {
        listed().contains("not complete from the beginning on")
    });
    assert_eq!(archived(&data), 0);
    for _ in 0..2 {
        let flushed = Server::cli(&["archive", "flush", "--url", &server.url]);
        assert_eq!(flushed.status.code(), Some(0), "{}", String::from_utf8_lossy(&flushed.stderr));
        assert_eq!(archived(&data), 1_000);
        assert!(listed().contains("complete: everything that the store has"), "{}", listed());
    }
}

/// Analysts' tools with their defaults: they get a directory and no options.
#[test]
fn pyarrow_pandas_and_polars_read_the_archive_as_it_lies() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server =
        Server::start(&data, &[("archive.max_delay", "200ms"), ("flush.interval", "200ms")]);
    send(&server, 0, 1_000);
    wait_archived(&data, 1_000);
    let script = "import sys, json, pandas, polars, pyarrow.parquet\nroot = sys.argv[1] + \
         '/archive/raw'\narrow = pyarrow.parquet.read_table(root)\nframe = \
         pandas.read_parquet(root)\nlazy = polars.read_parquet(root + '/**/*.parquet')\ncountry = \
         lambda labels: json.loads(labels)['country']\ncounted = lambda labels: \
         sorted(sum(country(l) == c for l in labels) for c in ('DE', \
         'FR'))\nprint(json.dumps([[arrow.num_rows, len(frame), \
         lazy.height],\n[counted(arrow['labels'].to_pylist()), counted(frame['labels']), \
         counted(lazy['labels'].to_list())],\n[str(sum(v for v in arrow['value'].to_pylist() if v \
         is not None)), str(frame['value'].dropna().sum())]]))";
    let output =
        Command::new(python()).args(["-c", script]).arg(&data).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let answer = server.await_query("/v1/query?metric=sales&step=all&agg=count,sum", |_| true);
    let sum = format!("{:.9}", answer["series"][0]["points"][0]["sum"].as_f64().expect("a sum"));
    assert_eq!(
        read,
        serde_json::json!([[1000, 1000, 1000], [[333, 334], [333, 334], [333, 334]], [sum, sum]])
    );
}

#[test]
fn the_manifest_tiles_the_log_over_kills() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let settings =
        [("archive.max_delay", "100ms"), ("flush.interval", "100ms"), ("shards.count", "4")];
    for round in 0..4u64 {
        let server = Server::start(&data, &settings);
        send(&server, round * 500, (round + 1) * 500);
        std::thread::sleep(Duration::from_millis(60 * round));
        server.kill();
    }
    let server = Server::start(&data, &settings);
    wait_archived(&data, 2_000);
    assert_eq!(server.stop(), Some(0));
    let objects = manifest(&data);
    assert_eq!(archived(&data), 2_000);
    for shard in 0..4 {
        let mut next = 0;
        for object in objects.iter().filter(|object| object["shard"] == shard) {
            assert_eq!(object["from"], next, "shard {shard} has a gap or an overlap");
            next = object["to"].as_u64().expect("to");
            let path = data.join("archive").join(object["path"].as_str().expect("path"));
            assert_eq!(
                std::fs::metadata(&path).expect("the object").len(),
                object["bytes"].as_u64().expect("bytes")
            );
        }
    }
    let verified = Server::cli(&["verify", "--data", &data.display().to_string()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
