//! Chaos on the real binary: SIGKILL at random moments under retrying clients, and the ledger that nothing may contradict.
//!
//! One seed makes the plan (`ROLLMILL_CHAOS_SEED`, printed); `ROLLMILL_CHAOS_KILLS` says how many kills (300). Threads and disks are
//! not deterministic, so a plan gives the same pressure, not the same run. SIGKILL keeps the page cache: a build without any fsync
//! would pass here. Torn and unsynced writes are the business of the log's own tests.

mod ledger;
#[path = "../support/rng.rs"]
mod rng;
#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ledger::{Event, Expected, FIRST_HOUR, HOURS, Ledger, METRICS};
use rng::Rng;
use support::{Server, agent, free_port};

const CLIENTS: u64 = 4;
/// Small enough that flushes, archive objects, sealing and releasing all happen between kills.
const SETTINGS: [(&str, &str); 5] = [
    ("flush.interval", "200ms"),
    ("archive.max_delay", "100ms"),
    ("log.segment_bytes", "1MiB"),
    ("shards.count", "16"),
    ("query.stale_after", "10s"),
];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis() as i64
}

/// When the next kill falls, from the start of the process.
enum Kill {
    /// While it starts, ready or not.
    DuringStart(Duration),
    /// So long after it took its first write.
    AfterReady(Duration),
}

fn plan(seed: u64, kills: u64) -> Vec<Kill> {
    let mut rng = Rng(seed);
    let millis = |rng: &mut Rng, n| Duration::from_millis(rng.below(n));
    let one = |_| match rng.below(10) {
        0 => Kill::DuringStart(millis(&mut rng, 60)),
        1..=6 => Kill::AfterReady(millis(&mut rng, 60)),
        _ => Kill::AfterReady(millis(&mut rng, 500)),
    };
    (0..kills).map(one).collect()
}

/// Sends until told to stop; every batch until it is acknowledged, with the same ids, and some of them again.
fn client(number: u64, seed: u64, url: &str, ledger: &Ledger, stop: &AtomicBool) {
    let mut rng = Rng(seed ^ (number + 1).wrapping_mul(0xabcd_ef01));
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(5))).build().into();
    let mut serial = 0;
    let mut earlier: Vec<String> = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let events: Vec<Event> = (0..=rng.below(40))
            .map(|_| {
                serial += 1;
                Event::draw(&mut rng, format!("{number}-{serial}"))
            })
            .collect();
        let lines: Vec<String> = events.iter().map(Event::json).collect();
        let (body, kind) = match rng.below(2) {
            0 => (format!("[{}]", lines.join(",")), "application/json"),
            _ => (lines.join("\n"), "application/x-ndjson"),
        };
        ledger.sending(&events);
        until_acked(&agent, url, &body, kind, ledger);
        ledger.acked(&events, now);
        if kind == "application/json" && rng.chance(30) {
            earlier.push(body);
            let again = earlier.swap_remove(rng.below(earlier.len() as u64) as usize);
            until_acked(&agent, url, &again, "application/json", ledger);
            ledger.resent.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn until_acked(agent: &ureq::Agent, url: &str, body: &str, kind: &str, ledger: &Ledger) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match agent.post(format!("{url}/v1/events")).header("content-type", kind).send(body) {
            Ok(answer) if answer.status() == 202 => return,
            Ok(answer) if answer.status() == 503 || answer.status() == 429 => {
                assert!(answer.headers().contains_key("retry-after"), "an overload without Retry-After");
            }
            Ok(mut answer) => {
                panic!("{} {}", answer.status(), answer.body_mut().read_to_string().unwrap_or_default())
            }
            // The server is dead or died: unknown, so the same is sent again.
            Err(_) => {}
        }
        ledger.retries.fetch_add(1, Ordering::SeqCst);
        assert!(Instant::now() < deadline, "no acknowledgement for a minute");
        std::thread::sleep(Duration::from_millis(3));
    }
}

#[derive(Default)]
struct Asked {
    complete: AtomicU64,
    partial: AtomicU64,
}

/// Asks all the time; an answer that calls itself complete must lie between what was acknowledged and what was sent.
fn reader(url: &str, ledger: &Ledger, stop: &AtomicBool, asked: &Asked) {
    let agent = agent();
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(20));
        let mut counted = Some(0);
        let mut as_of = i64::MAX;
        for metric in 0..METRICS {
            let path = format!("{url}/v1/query?metric=m{metric}&{}&step=all", range());
            let answer = agent.get(path).call().ok().and_then(|mut r| r.body_mut().read_to_string().ok());
            let answer: serde_json::Value = answer.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            if answer["completeness"]["partial"] != false {
                counted = None;
                break;
            }
            as_of = as_of.min(as_of_ms(&answer));
            let count = answer["series"][0]["points"][0]["count"].as_u64().unwrap_or(0);
            counted = counted.map(|sum| sum + count);
        }
        let Some(counted) = counted else {
            asked.partial.fetch_add(1, Ordering::SeqCst);
            continue;
        };
        asked.complete.fetch_add(1, Ordering::SeqCst);
        let (least, most) = (ledger.acked_before(as_of), ledger.sent());
        assert!(least <= counted, "a complete answer has {counted} events, {least} were acknowledged before its as_of");
        assert!(counted <= most, "a complete answer has {counted} events, only {most} were ever sent");
    }
}

fn as_of_ms(answer: &serde_json::Value) -> i64 {
    let time: jiff::Timestamp = answer["completeness"]["as_of"].as_str().expect("as_of").parse().expect("a time");
    time.as_millisecond()
}

fn range() -> String {
    let hour = 3_600_000;
    format!("from={}&to={}", FIRST_HOUR * hour, (FIRST_HOUR + HOURS) * hour)
}

/// Every rollup that the server has, through its query API.
fn rollups(server: &Server, total: u64) -> std::collections::BTreeMap<(u64, u64, u64), (Expected, u64)> {
    let mut found = std::collections::BTreeMap::new();
    let mut sum = 0;
    // Complete means fresh enough; this wants everything that was acknowledged until now.
    let everything = now();
    for metric in 0..METRICS {
        let path = format!("/v1/query?metric=m{metric}&{}&by=page&agg=count,sum,min,max,distinct", range());
        let answer = server.await_query(&path, |answer| as_of_ms(answer) >= everything);
        for series in answer["series"].as_array().expect("series") {
            let page = series["labels"]["page"].as_str().expect("page")[1..].parse().expect("a number");
            for point in series["points"].as_array().expect("points") {
                let time: jiff::Timestamp = point["t"].as_str().expect("t").parse().expect("a time");
                let hour = (time.as_millisecond() / 3_600_000) as u64;
                let count = point["count"].as_u64().expect("count");
                let figure = |name: &str| point[name].as_i64();
                let row = Expected {
                    count,
                    sum: figure("sum").unwrap_or(0),
                    min: figure("min"),
                    max: figure("max"),
                    users: std::collections::BTreeSet::new(),
                };
                sum += count;
                found.insert((metric, page, hour), (row, point["distinct"].as_u64().expect("distinct")));
            }
        }
    }
    assert_eq!(sum, total, "lost {} double {}", total.saturating_sub(sum), sum.saturating_sub(total));
    found
}

fn check(server: &Server, ledger: &Ledger) {
    let mut expected = ledger.rows();
    for (key, (row, distinct)) in rollups(server, ledger.acked_total()) {
        let want = expected.remove(&key).unwrap_or_else(|| panic!("row {key:?} was never sent"));
        assert_eq!(distinct, want.users.len() as u64, "distinct of {key:?}");
        assert_eq!(row, Expected { users: Default::default(), ..want }, "{key:?}");
    }
    assert!(expected.is_empty(), "{} rows are lost", expected.len());
}

fn files(dir: &std::path::Path, extension: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let paths = entries.map(|entry| entry.expect("entry").path());
    paths
        .map(
            |path| {
                if path.is_dir() {
                    files(&path, extension)
                } else {
                    usize::from(path.extension().is_some_and(|e| e == extension))
                }
            },
        )
        .sum()
}

/// Ends the clients also when the test fails: a scope waits for its threads.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn kill_nine_loses_nothing_and_doubles_nothing() {
    let (seed, kills) = (number("ROLLMILL_CHAOS_SEED", now() as u64), number("ROLLMILL_CHAOS_KILLS", 300));
    println!("ROLLMILL_CHAOS_SEED={seed} ROLLMILL_CHAOS_KILLS={kills}");
    let dir = tempfile::tempdir().expect("a directory");
    let (data, port) = (dir.path().join("data"), free_port());
    let url = format!("http://127.0.0.1:{port}");
    let (ledger, asked, stop) = (Ledger::default(), Asked::default(), AtomicBool::new(false));
    let mut restarts: Vec<Duration> = Vec::new();
    let mut killed_while_starting = 0;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let (ledger, asked, stop, url) = (&ledger, &asked, &stop, url.as_str());
        let _stops = StopOnDrop(stop);
        let mut threads: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || client(n, seed, url, ledger, stop))).collect();
        threads.push(scope.spawn(move || reader(url, ledger, stop, asked)));
        for kill in plan(seed, kills) {
            let begun = Instant::now();
            let mut server = Server::spawn(&data, port, &SETTINGS);
            match kill {
                Kill::DuringStart(wait) => {
                    std::thread::sleep(wait);
                    killed_while_starting += 1;
                }
                Kill::AfterReady(wait) => {
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
        stop.store(true, Ordering::SeqCst);
        let failed = threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count();
        assert_eq!(failed, 0, "a client or the reader failed, see above");
        drop(server);
    });
    let server = Server::start_on(&data, port, &SETTINGS);
    check(&server, &ledger);
    assert_eq!(server.stop(), Some(0));
    let server = Server::start_on(&data, port, &SETTINGS);
    check(&server, &ledger);
    let accounted = accounting(&server);
    assert_eq!(accounted[0], ledger.acked_total(), "aggregated");
    assert_eq!(accounted[2], 0, "quarantined");
    let path = data.display().to_string();
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
        "{kills} kills ({killed_while_starting} while starting) in {:.0?}: {} events acknowledged, 0 lost, 0 double; {} unknown requests repeated, {} batches \
         sent twice, {} duplicates dropped; {torn} torn tails cut; {objects} archive objects tile the log; restart to ready p50 {:?} max {:?}; \
         queries {} complete, {} partial, 0 wrong\n{verdict}",
        started.elapsed(),
        ledger.acked_total(),
        ledger.retries.load(Ordering::SeqCst),
        ledger.resent.load(Ordering::SeqCst),
        accounted[1],
        at(0.5),
        at(1.0),
        asked.complete.load(Ordering::SeqCst),
        asked.partial.load(Ordering::SeqCst),
    );
    assert_eq!(violations, 0, "the server itself saw an invariant violated");
    assert!(!log.contains("panicked"), "something panicked in the server");
    assert!(objects > 0, "no archive object was written, so nothing was shown about the archive");
    assert!(accounted[1] > 0, "no duplicate was dropped, so nothing was shown about de-duplication");
    assert!(asked.complete.load(Ordering::SeqCst) > 0, "no query was complete, so nothing was shown about honesty");
    assert!(kills < 1_000 || torn > 0, "no commit was torn in {kills} kills");
}

fn accounting(server: &Server) -> [u64; 3] {
    let (status, answer) = server.get("/v1/accounting");
    assert_eq!(status, 200);
    ["aggregated", "deduplicated", "quarantined"].map(|name| {
        let hours = answer["hours"].as_array().expect("hours").iter();
        hours.map(|hour| hour[name].as_u64().expect("a number")).sum()
    })
}

/// Events of 8 KiB until the log holds so many bytes; nothing is flushed or archived meanwhile.
fn fill(server: &Server, bytes: u64) -> u64 {
    let filling = "x".repeat(7_900);
    let agent = agent();
    let (mut sent, mut batch) = (0, 0);
    while sent < bytes {
        let event = |n| format!(r#"{{"metric":"m","labels":{{"n":"{}"}},"id":"{batch}-{n}","properties":"{filling}"}}"#, n % 50);
        let body: Vec<String> = (0..500).map(event).collect();
        let body = body.join("\n");
        let answer = agent.post(format!("{}/v1/events", server.url)).header("content-type", "application/x-ndjson").send(&body);
        assert_eq!(answer.expect("an answer").status(), 202);
        sent += body.len() as u64;
        batch += 1;
    }
    batch * 500
}

#[test]
fn a_large_log_does_not_delay_the_start() {
    let megabytes = number("ROLLMILL_CHAOS_RESTART_MB", 256);
    let settings = [("flush.interval", "1h"), ("archive.max_delay", "1h"), ("flush.max_delta_bytes", "4GiB")];
    let dir = tempfile::tempdir().expect("a directory");
    let (data, port) = (dir.path().join("data"), free_port());
    let server = Server::start_on(&data, port, &settings);
    let events = fill(&server, megabytes << 20);
    server.kill();
    let mut times = Vec::new();
    for attempt in 0..3 {
        let begun = Instant::now();
        let mut server = Server::spawn(&data, port, &settings);
        let event = format!(r#"{{"metric":"m","id":"last-{attempt}"}}"#);
        while agent().post(format!("{}/v1/events", server.url)).send(&event).map_or(true, |a| a.status() != 202) {
            std::thread::sleep(Duration::from_millis(1));
        }
        times.push(begun.elapsed());
        let partial = server.get("/v1/query?metric=m&step=all").1["completeness"]["partial"] == true;
        println!(
            "{megabytes} MB of log: first write accepted after {:?}, reads flagged partial until caught up: {partial}",
            times[attempt]
        );
        server.wait_alive();
        if attempt < 2 {
            server.kill();
            continue;
        }
        let total = events + 3;
        server.await_query("/v1/query?metric=m&step=all", |a| a["series"][0]["points"][0]["count"] == total);
    }
    let best = times.iter().min().expect("three");
    // The machine is shared: a generous bound finds a start that reads the whole log, the printed figure is the measurement.
    assert!(*best < Duration::from_secs(2), "starting took {times:?}");
}
