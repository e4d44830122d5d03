//! One node, killed repeatedly. `ROLLMILL_CHAOS_KILLS` sets how often (default 300).
//!
//! SIGKILL keeps the page cache, so a build without any fsync would pass here. The log's own tests
//! cover torn and unsynced writes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rollmill::model::outcome::Outcome;
use rollmill::node::DataDir;
use rollmill::persistence::archive::Archive;
use rollmill::persistence::archive::objects::ObjectArchive;
use rollmill::persistence::store::SnapshotSource;
use rollmill::persistence::store::sqlite::SqliteStore;

use crate::ledger::Ledger;
use crate::load::{ReadStats, StopOnDrop, accounting, await_answer_for, check, client, reader};
use crate::rng::Rng;
use crate::support::{Server, agent, free_port, wait_until};
use crate::{alone, now, number};

const CLIENTS: u64 = 4;
/// Small enough that flushes, archive objects, segment sealing and segment release all happen
/// between kills.
const SETTINGS: [(&str, &str); 5] = [
    ("flush.interval", "200ms"),
    ("archive.max_delay", "100ms"),
    ("log.segment_bytes", "1MiB"),
    ("shards.count", "16"),
    ("query.stale_after", "10s"),
];

/// When the next kill happens.
enum KillTime {
    /// This long after the process starts, ready or not.
    DuringStart(Duration),
    /// This long after the first accepted write.
    AfterReady(Duration),
}

fn plan(seed: u64, kills: u64) -> Vec<KillTime> {
    let mut rng = Rng(seed);
    let millis = |rng: &mut Rng, n| Duration::from_millis(rng.below(n));
    let one = |_| match rng.below(10) {
        0 => KillTime::DuringStart(millis(&mut rng, 60)),
        1..=6 => KillTime::AfterReady(millis(&mut rng, 60)),
        _ => KillTime::AfterReady(millis(&mut rng, 500)),
    };
    (0..kills).map(one).collect()
}

fn files(dir: &std::path::Path, extension: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let paths = entries.map(|entry| entry.expect("entry").path());
    paths
        .map(|path| {
            if path.is_dir() {
                files(&path, extension)
            } else {
                usize::from(path.extension().is_some_and(|e| e == extension))
            }
        })
        .sum()
}

#[test]
fn kill_nine_loses_nothing_and_doubles_nothing() {
    let (seed, kills) =
        (number("ROLLMILL_CHAOS_SEED", now() as u64), number("ROLLMILL_CHAOS_KILLS", 300));
    println!("ROLLMILL_CHAOS_SEED={seed} ROLLMILL_CHAOS_KILLS={kills}");
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let (data, port) = (dir.path().join("data"), free_port());
    let urls = [format!("http://127.0.0.1:{port}")];
    let (ledger, stats, stop) = (Ledger::default(), ReadStats::default(), AtomicBool::new(false));
    let mut restarts: Vec<Duration> = Vec::new();
    let mut killed_while_starting = 0;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let (ledger, stats, stop, urls) = (&ledger, &stats, &stop, &urls);
        let _stops = StopOnDrop(stop);
        let mut threads: Vec<_> = (0..CLIENTS)
            .map(|n| scope.spawn(move || client(n, seed, urls, ledger, stop)))
            .collect();
        threads.push(scope.spawn(move || reader(urls, ledger, stop, stats)));
        for kill in plan(seed, kills) {
            let begun = Instant::now();
            let mut server = Server::spawn(&data, port, &SETTINGS);
            match kill {
                KillTime::DuringStart(wait) => {
                    std::thread::sleep(wait);
                    killed_while_starting += 1;
                }
                KillTime::AfterReady(wait) => {
                    server.wait_alive();
                    restarts.push(begun.elapsed());
                    std::thread::sleep(wait);
                }
            }
            server.kill();
            if threads.iter().any(|thread| thread.is_finished()) {
                break;
            }
        }
        let server = Server::start_on(&data, port, &SETTINGS);
        // On a slow machine, no run may have lasted long enough for a complete answer.
        wait_until("a query is complete", || {
            stats.complete.load(Ordering::SeqCst) > 0 || threads.iter().any(|t| t.is_finished())
        });
        stop.store(true, Ordering::SeqCst);
        let failed = threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count();
        assert_eq!(failed, 0, "a client or the reader failed, see above");
        drop(server);
    });
    let server = Server::start_on(&data, port, &SETTINGS);
    check(&urls, &ledger);
    assert_eq!(server.stop(), Some(0));
    let _server = Server::start_on(&data, port, &SETTINGS);
    check(&urls, &ledger);
    wait_until("something is archived", || files(&data.join("archive"), "parquet") > 0);
    let accounted = accounting(&urls);
    assert_eq!(accounted[0], ledger.acked_total(), "aggregated");
    assert_eq!(accounted[2], 0, "quarantined");
    let path = data.display().to_string();
    let flushed = Server::cli(&["archive", "flush", "--url", &urls[0]]);
    assert!(flushed.status.success(), "{}", String::from_utf8_lossy(&flushed.stderr));
    assert_eq!(archived_outcomes(&data), accounted, "the outcomes in the archive");
    let verified = Server::cli(&["verify", "--data", &path]);
    let verdict = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success(), "{verdict} {}", String::from_utf8_lossy(&verified.stderr));

    let log = std::fs::read_to_string(data.with_extension("server.log")).expect("the server's log");
    let torn = log.matches("cut a torn commit").count();
    let violations = log.matches("invariant violated").count();
    let objects = files(&data.join("archive"), "parquet");
    restarts.sort();
    let at = |share: f64| restarts[((restarts.len() - 1) as f64 * share) as usize];
    println!(
        "{kills} kills ({killed_while_starting} while starting) in {:.0?}: {} events \
         acknowledged, 0 lost, 0 double; {} unknown requests repeated, {} batches sent twice, {} \
         duplicates dropped; {torn} torn tails cut; {objects} archive objects tile the log; \
         restart to ready p50 {:?} max {:?}; queries {} complete, {} partial, 0 wrong\n{verdict}",
        started.elapsed(),
        ledger.acked_total(),
        ledger.retries.load(Ordering::SeqCst),
        ledger.resent.load(Ordering::SeqCst),
        accounted[1],
        at(0.5),
        at(1.0),
        stats.complete.load(Ordering::SeqCst),
        stats.partial.load(Ordering::SeqCst),
    );
    assert_eq!(violations, 0, "the server itself saw an invariant violated");
    assert!(!log.contains("panicked"), "something panicked in the server");
    assert!(objects > 0, "no archive object was written, so nothing was shown about the archive");
    assert!(
        accounted[1] > 0,
        "no duplicate was dropped, so nothing was shown about de-duplication"
    );
    assert!(
        stats.complete.load(Ordering::SeqCst) > 0,
        "no query was complete, so nothing was shown about honesty"
    );
    assert!(kills < 1_000 || torn > 0, "no commit was torn in {kills} kills");
}

/// What the objects of the manifest say: counted, duplicate and quarantined events.
fn archived_outcomes(data: &Path) -> [u64; 3] {
    let data = DataDir::new(data);
    let store = SqliteStore::open_read_only(data.store()).expect("the store");
    let archive = ObjectArchive::open_directory(&data.archive()).expect("the archive");
    let mut outcomes = [0; 3];
    for row in store.snapshot().expect("a snapshot").manifest(None).expect("the manifest") {
        let noted = archive.read_all(&row).expect("the object").outcomes.expect("it says it");
        let of = |wanted: Outcome| {
            noted.iter().filter(|event| event.verdict.outcome() == wanted).count() as u64
        };
        outcomes[0] += row.rows - noted.len();
        outcomes[1] += of(Outcome::Duplicate);
        outcomes[2] += of(Outcome::Quarantined);
    }
    outcomes
}

/// Writes events of 8 KiB until the log holds this many bytes; nothing is flushed or archived
/// meanwhile.
fn fill(server: &Server, bytes: u64) -> u64 {
    let filling = "x".repeat(7_900);
    let agent = agent();
    let (mut sent, mut batch) = (0, 0);
    while sent < bytes {
        let event = |n| {
            let (labels, id) = (format!(r#"{{"n":"{}"}}"#, n % 50), format!("{batch}-{n}"));
            format!(r#"{{"metric":"m","labels":{labels},"id":"{id}","properties":"{filling}"}}"#)
        };
        let body: Vec<String> = (0..500).map(event).collect();
        let body = body.join("\n");
        let answer = agent
            .post(format!("{}/v1/events", server.url))
            .header("content-type", "application/x-ndjson")
            .send(&body);
        assert_eq!(answer.expect("an answer").status(), 202);
        sent += body.len() as u64;
        batch += 1;
    }
    batch * 500
}

const QUICK: Duration = Duration::from_secs(2);

/// Longer than a slow machine takes to read the whole log.
const CAUGHT_UP: Duration = Duration::from_secs(600);

/// How long starts took until the first accepted write: with the large log, and, right before, with
/// hardly any.
#[derive(Debug, Clone, Copy)]
struct StartTimes {
    large: Duration,
    empty: Duration,
}

impl StartTimes {
    /// The machine is shared, so the bound is generous: it catches a start that reads the whole
    /// log. On a machine so slow that any start takes long, it grows with what an empty log takes.
    fn is_quick(self) -> bool {
        self.large < QUICK.max(self.empty * 4)
    }
}

/// Starts a server and repeats a write until it is accepted.
fn start_and_write(
    data: &Path,
    port: u16,
    settings: &[(&str, &str)],
    event: &str,
) -> (Server, Duration) {
    let begun = Instant::now();
    let server = Server::spawn(data, port, settings);
    while agent()
        .post(format!("{}/v1/events", server.url))
        .send(event)
        .map_or(true, |a| a.status() != 202)
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    (server, begun.elapsed())
}

#[test]
fn a_large_log_does_not_delay_the_start() {
    let megabytes = number("ROLLMILL_CHAOS_RESTART_MB", 256);
    let _alone = alone();
    let settings =
        [("flush.interval", "1h"), ("archive.max_delay", "1h"), ("flush.max_delta_bytes", "4GiB")];
    let dir = tempfile::tempdir().expect("a directory");
    let (data, port) = (dir.path().join("data"), free_port());
    let (empty, empty_port) = (dir.path().join("empty"), free_port());
    let server = Server::start_on(&data, port, &settings);
    let events = fill(&server, megabytes << 20);
    server.kill();
    let mut starts: Vec<StartTimes> = Vec::new();
    // One fast start is enough, because the other attempts may have met a busy machine.
    for attempt in 0..6 {
        let event = format!(r#"{{"metric":"m","id":"last-{attempt}"}}"#);
        let (other, without) = start_and_write(&empty, empty_port, &settings, &event);
        other.kill();
        let (mut server, took) = start_and_write(&data, port, &settings, &event);
        starts.push(StartTimes { large: took, empty: without });
        let partial =
            server.get("/v1/query?metric=m&step=all").1["completeness"]["partial"] == true;
        println!(
            "{megabytes} MB of log: first write accepted after {took:?}, without it after \
             {without:?}, reads flagged partial until caught up: {partial}"
        );
        server.wait_alive();
        if attempt < 2 || (attempt < 5 && !starts.iter().any(|start| start.is_quick())) {
            server.kill();
            continue;
        }
        let total = events + attempt + 1;
        let url = std::slice::from_ref(&server.url);
        await_answer_for(CAUGHT_UP, url, "/v1/query?metric=m&step=all", |a| {
            a["series"][0]["points"][0]["count"] == total
        });
        break;
    }
    // The printed figures are the actual measurement.
    assert!(starts.iter().any(|start| start.is_quick()), "starting took {starts:?}");
}
