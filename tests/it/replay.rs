//! Replays of a running server, as people use them: the flights of 2013 are counted again under
//! rules while events keep coming, compared, applied, and undone.

mod answers;
mod commands;
mod corrections;
mod rule_files;
mod unchanged;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rollmill::model::generation::GenerationId;
use rollmill::model::rollup::Rollup;
use rollmill::model::window::Hour;
use rollmill::persistence::store::SnapshotSource;
use rollmill::persistence::store::sqlite::SqliteStore;

use crate::support::{PATIENCE, Server, wait_until};

/// Tenant of a server without keys.
const TENANT: &str = "default";

/// The range of all flights, as parameters of a query.
const ALL_FLIGHTS: &str = "from=2013-01-01T00:00:00Z&to=2014-01-02T00:00:00Z";

/// How many flights a test takes: `ROLLMILL_REPLAY_FLIGHTS`, a number or `all`.
fn flight_count(default: usize) -> usize {
    match std::env::var("ROLLMILL_REPLAY_FLIGHTS").as_deref() {
        Err(_) => default,
        Ok("all") => usize::MAX,
        Ok(count) => count.parse().expect("ROLLMILL_REPLAY_FLIGHTS: a number, or `all`"),
    }
}

/// The first flights of the file, and its header.
fn flights(count: usize) -> (csv::StringRecord, Vec<csv::StringRecord>) {
    let mut text = String::new();
    let file = std::fs::File::open(crate::flights::flights())
        .expect("the flights are there: run the tests through `make test`");
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().expect("a header").clone();
    (header, reader.records().take(count).map(|row| row.expect("a row")).collect())
}

/// A flight as an event, with everything that is no label as a property.
fn event(metric: &str, n: usize, row: &csv::StringRecord) -> String {
    let number = |at: usize| row[at].parse::<i64>().ok();
    let text = |at: usize| Some(&row[at]).filter(|text| !text.is_empty());
    let mut event = serde_json::json!({
        "metric": metric,
        "timestamp": &row[0],
        "value": number(7),
        "id": format!("{metric}-{n}"),
        "labels": {"origin": &row[2], "carrier": &row[3]},
        "properties": {
            "dest": &row[4],
            "flight": number(5),
            "tail": text(6),
            "distance": number(8),
            "air_time": number(9),
        },
    });
    if let Some(tail) = text(6) {
        event["user"] = tail.into();
    }
    event.to_string()
}

/// Sends events in requests of at most 500.
fn send(server: &Server, events: &[String]) {
    for part in events.chunks(500) {
        let (status, answer) = server.post(&format!("[{}]", part.join(",")));
        assert_eq!((status, &answer["rejected"]), (202, &0.into()), "{answer}");
    }
}

/// Runs `rollmill replay` against the server.
fn replay(server: &Server, args: &[&str]) -> Output {
    Server::cli(&[&["replay"], args, &["--url", &server.url]].concat())
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// The same, which must succeed; what it prints.
fn replay_ok(server: &Server, args: &[&str]) -> String {
    let output = replay(server, args);
    assert!(output.status.success(), "{args:?}: {} {}", output.status, said(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Starts a replay; its number.
fn start(server: &Server, args: &[&str]) -> u64 {
    let answer = replay_ok(server, &[&["start", "--json"], args].concat());
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    answer["id"].as_u64().expect("a number")
}

fn show(server: &Server, id: u64) -> serde_json::Value {
    let (status, answer) = server.get(&format!("/v1/replays/{id}"));
    assert_eq!(status, 200, "{answer}");
    answer
}

fn wait_ready(server: &Server, id: u64) {
    wait_until("the replay is ready", || show(server, id)["state"] == "ready");
}

/// Rows of a metric as they are stored in a generation, by series and hour: the bytes of all
/// writers together.
type StoredRows = BTreeMap<(String, i32), Vec<u8>>;

fn stored_rows(data: &Path, metric: &str, generation: u64) -> StoredRows {
    let store = SqliteStore::open_read_only(data.join("store.sqlite")).expect("the store");
    let mut rows: BTreeMap<(String, i32), Rollup> = BTreeMap::new();
    let mut snapshot = store.snapshot().expect("a snapshot");
    let (id, all) = (GenerationId(generation), (Hour(i32::MIN / 2), Hour(i32::MAX / 2)));
    snapshot
        .generation_rows(id, (TENANT, metric), all, &mut |_, info, hour, rollup, _| {
            rows.entry((format!("{:?}", info.series), hour.0)).or_default().merge(&rollup);
            Ok(())
        })
        .expect("rows");
    let bytes = |rollup: Rollup| {
        let mut bytes = Vec::new();
        rollup.encode(&mut bytes);
        bytes
    };
    rows.into_iter().map(|(key, rollup)| (key, bytes(rollup))).collect()
}

/// Stops the server, and checks every row of its store against the records.
fn stop_and_verify(server: Server) {
    stop_and_verify_with(server, &[]);
}

fn stop_and_verify_with(server: Server, more: &[&str]) {
    let data = server.data.display().to_string();
    assert_eq!(server.stop(), Some(0));
    let verified = Server::cli(&[&["verify", "--data", &data], more].concat());
    assert!(verified.status.success(), "{}", said(&verified));
}

/// A deadline that begins anew whenever something moves: all flights take a while.
struct MovingDeadline {
    seen: u64,
    since: Instant,
}

impl MovingDeadline {
    fn start() -> Self {
        Self { seen: u64::MAX, since: Instant::now() }
    }

    /// Panics if `seen` has been the same for [`PATIENCE`].
    fn check(&mut self, seen: u64, what: &dyn std::fmt::Display) {
        if self.seen != seen {
            *self = Self { seen, since: Instant::now() };
        }
        assert!(self.since.elapsed() < PATIENCE, "it stands still: {what}");
    }
}

/// Waits until everything that was acknowledged is in the store.
fn wait_flushed(server: &Server, events: u64) {
    let mut deadline = MovingDeadline::start();
    loop {
        let stored = server.accounted().iter().sum::<u64>();
        if stored >= events {
            return;
        }
        deadline.check(stored, &format!("{stored} of {events} events are in the store"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the store has everything that the shards have applied.
fn wait_nothing_pending(server: &Server) {
    wait_until("nothing is pending", || {
        let (_, answer) = server.get("/v1/accounting");
        let hours = answer["hours"].as_array().cloned().unwrap_or_default();
        answer["completeness"]["partial"] == false && hours.iter().all(|hour| hour["pending"] == 0)
    });
}

/// Tells readers and writers to end when it is dropped, so that a test that fails does not wait for
/// them for ever.
struct EndReaders<'a>(&'a AtomicBool);

impl Drop for EndReaders<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A file in a directory that lives as long as the test.
fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}
