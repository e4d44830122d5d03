//! Nothing changes when nothing changed: a replay without rules gives the rows that there are, and
//! whoever queries meanwhile does not notice.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::*;

/// What writers have sent and what of it is acknowledged.
#[derive(Default)]
struct Ledger {
    sent: AtomicU64,
    /// How many were acknowledged, and when, ascending in both.
    acked: Mutex<Vec<(jiff::Timestamp, u64)>>,
}

impl Ledger {
    /// Sends new events once, or twice.
    fn send(&self, server: &Server, events: &[String], times: usize) {
        self.sent.fetch_add(events.len() as u64, Ordering::SeqCst);
        for _ in 0..times {
            send(server, events);
        }
        let mut acked = self.acked.lock().expect("a lock");
        let before = acked.last().map_or(0, |(_, count)| *count);
        acked.push((jiff::Timestamp::now(), before + events.len() as u64));
    }

    /// How many events had been acknowledged at a time.
    fn acked_at(&self, at: jiff::Timestamp) -> u64 {
        let acked = self.acked.lock().expect("a lock");
        acked.iter().rev().find(|(acked, _)| *acked <= at).map_or(0, |(_, count)| *count)
    }
}

/// Looks at the total until it is told to stop: never less than what was acknowledged before the
/// answer's time, never more than what was sent. Returns how many answers it saw, and counts those
/// of them that came from a replay.
fn watch(server: &Server, ledger: &Ledger, done: &AtomicBool, replayed: &AtomicU64) -> u64 {
    let path = format!("/v1/query?metric=departure_delay&step=all&{ALL_FLIGHTS}");
    let mut answers = 0;
    while !done.load(Ordering::SeqCst) {
        let (status, answer) = server.get(&path);
        assert_eq!(status, 200, "{answer}");
        let sent = ledger.sent.load(Ordering::SeqCst);
        let count = answer["series"][0]["points"][0]["count"].as_u64().unwrap_or(0);
        assert!(count <= sent, "{count} of {sent}: {answer}");
        if answer["completeness"]["partial"] == true {
            continue;
        }
        let as_of = answer["completeness"]["as_of"].as_str().expect("a time");
        let acked = ledger.acked_at(as_of.parse().expect("a time"));
        assert!(count >= acked, "{count} of {acked}: {answer}");
        answers += 1;
        let is_replayed = answer["completeness"]["generations"].is_array();
        replayed.fetch_add(u64::from(is_replayed), Ordering::SeqCst);
    }
    answers
}

#[test]
fn a_replay_without_rules_changes_no_byte_and_nobody_notices() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[("shards.count", "4")]);
    let (_, rows) = flights(flight_count(8_000));
    let name = "departure_delay";
    let events: Vec<String> = rows.iter().enumerate().map(|(n, row)| event(name, n, row)).collect();
    let (first, later) = events.split_at(events.len() / 2);
    let (ledger, done, written) =
        (Ledger::default(), AtomicBool::new(false), AtomicBool::new(false));
    let replayed = AtomicU64::new(0);
    ledger.send(&server, first, 1);
    wait_flushed(&server, first.len() as u64);
    let mut id = String::new();
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&server, &ledger, &done, &replayed));
        let writing = scope.spawn(|| {
            // Late, because their days are being replayed, and each batch twice.
            for batch in later.chunks(50.max(later.len() / 100)) {
                ledger.send(&server, batch, 2);
                written.store(true, Ordering::SeqCst);
                if !done.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        });
        let _ended = EndReaders(&done);
        wait_until("writers write", || written.load(Ordering::SeqCst));
        let args = ["--metric", name, "--from", "2013-01-01"];
        let started = Instant::now();
        let tried = replay(&server, &[&args[..], &["--dry-run"]].concat());
        assert!(tried.status.success(), "nothing differs: {}", said(&tried));
        assert!(said(&tried).contains("rows: 0 added, 0 removed, 0 changed"), "{}", said(&tried));
        println!("{:?} until the comparison\n{}", started.elapsed(), said(&tried));
        let applied = replay(&server, &[&args[..], &["--apply"]].concat());
        assert!(applied.status.success(), "{}", said(&applied));
        assert!(said(&applied).contains("rows: 0 added, 0 removed, 0 changed"));
        let (_, all) = server.get("/v1/replays");
        let served = all["replays"].as_array().expect("replays").iter();
        let served = served.filter(|one| one["state"] == "applied");
        id = served.map(|one| one["id"].to_string()).next().expect("one is applied");
        writing.join().expect("writers");
        wait_until("a reader is answered by the replay", || replayed.load(Ordering::SeqCst) > 0);
        done.store(true, Ordering::SeqCst);
        let (answers, replayed) =
            (watching.join().expect("readers"), replayed.load(Ordering::SeqCst));
        println!("{answers} answers, {replayed} of them of the replay");
        assert!(answers > replayed);
    });
    let all = (first.len() + 2 * later.len()) as u64;
    wait_flushed(&server, all);
    let equal = replay_ok(&server, &["diff", &id]);
    assert!(equal.contains("rows: 0 added, 0 removed, 0 changed"), "{equal}");
    let accounted = server.accounted();
    assert_eq!(accounted, [events.len() as u64, later.len() as u64, 0]);
    let data = server.data.clone();
    stop_and_verify(server);
    let id = id.parse().expect("a number");
    let (ingested, replayed) = (stored_rows(&data, name, 0), stored_rows(&data, name, id));
    assert!(ingested.len() > 100);
    assert_eq!(ingested, replayed);
    println!("{} rows are byte-equal", ingested.len());
}
