//! An answer is of one generation on each day, however often that is switched meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use super::*;

/// Each event is 1 as it was ingested, and 3 under these rules.
const TRIPLED: &str = "[[rule]]\nname = \"tripled\"\nscale_value = { multiply = 3 }\n";

fn price(n: u64) -> String {
    let day = n % 4 + 1;
    let time = format!("2026-01-0{day}T{:02}:30:00Z", n % 24);
    let labels = format!(r#"{{"shop":"s{}"}}"#, n % 7);
    format!(r#"{{"metric":"price","id":"{n}","value":1,"timestamp":"{time}","labels":{labels}}}"#)
}

/// Looks at the days until it is told to stop, and notes the newest factor of the second day.
/// Returns all that it has seen.
fn watch(
    server: &Server,
    sent: &AtomicU64,
    done: &AtomicBool,
    newest: &AtomicU64,
) -> BTreeSet<u64> {
    let path = "/v1/query?metric=price&step=1d&agg=count,sum&from=2026-01-01T00:00:00Z&\
                to=2026-01-05T00:00:00Z";
    let mut seen = BTreeSet::new();
    while !done.load(Ordering::SeqCst) {
        let (status, answer) = server.get(path);
        assert_eq!(status, 200, "{answer}");
        let parts = answer["completeness"]["generations"].as_array().cloned().unwrap_or_default();
        let factor = |day: &str| {
            let is_in = |part: &serde_json::Value| {
                let text = |name: &str| part[name].as_str().expect("a time").to_owned();
                (text("from")..text("to")).contains(&day.to_owned())
            };
            if parts.iter().any(is_in) { 3 } else { 1 }
        };
        let points = answer["series"][0]["points"].as_array().cloned().unwrap_or_default();
        let mut all = 0;
        for point in points {
            let day = point["t"].as_str().expect("a time");
            let count = point["count"].as_u64().expect("a count");
            let sum = point["sum"].as_u64().expect("a sum");
            assert_eq!(sum, factor(day) * count, "{day} mixes generations: {answer}");
            all += count;
        }
        assert!(all <= sent.load(Ordering::SeqCst), "doubled: {answer}");
        if answer["completeness"]["partial"] == false {
            let factor = factor("2026-01-02T00:00:00Z");
            newest.store(factor, Ordering::SeqCst);
            seen.insert(factor);
        }
    }
    seen
}

#[test]
fn no_answer_mixes_generations_while_they_are_switched() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(
        &dir.path().join("data"),
        &[("shards.count", "4"), ("flush.interval", "200ms")],
    );
    let rules = file(dir.path(), "tripled.toml", TRIPLED);
    let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let newest = AtomicU64::new(0);
    let sees = |factor: u64| {
        wait_until("the reader sees the switch", || newest.load(Ordering::SeqCst) == factor);
    };
    let send_more = |from: u64| {
        sent.fetch_add(100, Ordering::SeqCst);
        send(&server, &(from..from + 100).map(price).collect::<Vec<_>>());
    };
    send_more(0);
    wait_flushed(&server, 100);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&server, &sent, &done, &newest));
        let writing = scope.spawn(|| {
            let mut from = 100;
            while !done.load(Ordering::SeqCst) {
                send_more(from);
                from += 100;
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        let _ended = EndReaders(&done);
        let days = ["--metric", "price", "--from", "2026-01-02", "--to", "2026-01-04"];
        let id = start(&server, &[&days[..], &["--rules", &rules]].concat());
        wait_ready(&server, id);
        let id = id.to_string();
        for _ in 0..4 {
            replay_ok(&server, &["apply", &id]);
            sees(3);
            replay_ok(&server, &["undo", &id]);
            sees(1);
        }
        done.store(true, Ordering::SeqCst);
        writing.join().expect("writers");
        assert_eq!(watching.join().expect("readers"), BTreeSet::from([1, 3]));
    });
    stop_and_verify(server);
}
