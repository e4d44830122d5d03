//! A wrong wall clock: ahead, behind, and leaping under load. The binary runs under a preloaded
//! library that shifts CLOCK_REALTIME, and no other clock, by the number of seconds in a file.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Server, free_port, wait_until};

/// Reads the file at each call, so the clock leaps as soon as the file is written.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *shown) {
  long outcome = syscall(SYS_clock_gettime, id, shown);
  const char *path = id == CLOCK_REALTIME && outcome == 0 ? getenv("TEST_CLOCK_LEAP") : 0;
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file >= 0) {
    char text[32] = {0};
    if (read(file, text, sizeof text - 1) > 0)
      shown->tv_sec += atoll(text);
    close(file);
  }
  return (int)outcome;
}
"#;

const DAY: i64 = 86_400;
const YEAR: i64 = 365 * DAY;
/// A range that covers every time of receipt in these tests.
const EVER: &str = "from=1970-01-02T00:00:00Z&to=2099-01-01T00:00:00Z";

/// A data directory whose servers have their own clock.
struct ClockFixture {
    dir: tempfile::TempDir,
    library: PathBuf,
}

impl ClockFixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (source, library) = (dir.path().join("leap.c"), dir.path().join("leap.so"));
        std::fs::write(&source, LIBRARY).expect("written");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(&source)
            .output();
        let built = built.expect("a C compiler, as the build needs one");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let fixture = Self { dir, library };
        fixture.leap(0);
        fixture
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Shifts the wall clock by this many seconds from now on. The rename is atomic: a reader sees
    /// the old number or the new one.
    fn leap(&self, seconds: i64) {
        let (part, file) = (self.dir.path().join("leap.part"), self.dir.path().join("leap"));
        std::fs::write(&part, seconds.to_string()).expect("written");
        std::fs::rename(&part, &file).expect("renamed");
    }

    fn start(&self, more: &[(&str, &str)]) -> Server {
        let (data, port) = (self.data(), free_port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(&data);
        std::env::vars().filter(|(name, _)| name.starts_with("ROLLMILL_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command
            .env("LD_PRELOAD", &self.library)
            .env("TEST_CLOCK_LEAP", self.dir.path().join("leap"));
        // Archive maintenance checks ten times a second what is due.
        let keys = [
            ("SHARDS_COUNT", "2"),
            ("FLUSH_INTERVAL", "100ms"),
            ("ARCHIVE_MAX_DELAY", "200ms"),
            ("ARCHIVE_COLD_AFTER", "400ms"),
            ("ARCHIVE_KEEP", "365d"),
            ("ACCEPT_MAX_AGE", "300d"),
        ];
        for (key, value) in keys.iter().chain(more) {
            command.env(format!("ROLLMILL_{key}"), value);
        }
        let mut server = Server::run(command, &data, port);
        server.wait_ready("gateway");
        server
    }

    fn objects(&self) -> Vec<Value> {
        let output =
            Server::cli(&["archive", "ls", "--json", "--data", &self.data().display().to_string()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Waits until this many events are archived and each object is in the right place.
    fn await_archived(&self, events: u64) -> Vec<Value> {
        let archived = |objects: &[Value]| {
            objects.iter().filter_map(|object| object["events"].as_u64()).sum::<u64>()
        };
        wait_until("everything is archived", || archived(&self.objects()) >= events);
        let objects = self.objects();
        assert_eq!(archived(&objects), events);
        for object in &objects {
            let path = self.data().join("archive").join(object["path"].as_str().expect("a path"));
            assert!(path.exists(), "{} is gone", path.display());
        }
        objects
    }

    fn verify(&self) {
        let verified = Server::cli(&["verify", "--data", &self.data().display().to_string()]);
        let said = String::from_utf8_lossy(&verified.stdout);
        assert!(verified.status.success() && !said.contains("not verifiable: 1"), "{said}");
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.data().with_extension("server.log"))
            .expect("the log of the process")
    }
}

fn events(ids: std::ops::Range<u64>) -> String {
    let all: Vec<String> = ids
        .map(|id| {
            format!(r#"{{"metric":"m","id":"{id}","value":1,"labels":{{"n":"{}"}}}}"#, id % 5)
        })
        .collect();
    format!("[{}]", all.join(","))
}

fn send(server: &Server, ids: std::ops::Range<u64>) {
    let (status, answer) = server.post(&events(ids));
    assert_eq!(status, 202, "{answer}");
}

fn await_count(server: &Server, count: u64) {
    let path = format!("/v1/query?metric=m&step=all&agg=count&{EVER}");
    server.await_query(&path, |answer| {
        let found = answer["series"][0]["points"][0]["count"].as_u64().unwrap_or(0);
        assert!(found <= count, "{found} are counted, {count} were sent: once means once");
        found == count
    });
}

/// Aggregated and de-duplicated events of all hours.
fn booked(server: &Server) -> [u64; 2] {
    let (status, answer) = server.get(&format!("/v1/accounting?{EVER}"));
    assert_eq!(status, 200, "{answer}");
    let hours = answer["hours"].as_array().cloned().unwrap_or_default();
    ["aggregated", "deduplicated"]
        .map(|name| hours.iter().filter_map(|hour| hour[name].as_u64()).sum())
}

fn metric(server: &Server, name: &str) -> u64 {
    let text =
        crate::support::agent().get(format!("{}/metrics", server.url)).call().expect("metrics");
    let text = text.into_body().read_to_string().expect("text");
    text.lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn whatever_the_clock_says_nothing_is_lost_removed_or_counted_twice() {
    let fixture = ClockFixture::new();
    let mut server = fixture.start(&[]);
    let (mut sent, mut again) = (0, 0);
    // The clock's error in seconds, and whether the node is restarted with it.
    let steps = [
        (0, false),
        (400 * DAY, false),
        (0, true),
        (400 * DAY, true),
        (0, true),
        (50 * YEAR, false),
        (-7_200, false),
        (50 * YEAR, true),
        (-3 * DAY, true),
        (0, false),
    ];
    for (wrong, restart) in steps {
        if restart {
            // Half of the stops are kills.
            if again % 40 == 0 {
                server.kill()
            } else {
                assert_eq!(server.stop(), Some(0))
            }
            fixture.leap(wrong);
            server = fixture.start(&[]);
        } else {
            fixture.leap(wrong);
        }
        // Earlier events are sent again, as by a client that saw no answer.
        let before = sent;
        send(&server, sent..sent + 50);
        sent += 50;
        send(&server, before.saturating_sub(20)..before);
        again += before.min(20);
        await_count(&server, sent);
        fixture.await_archived(sent + again);
        // Long enough for several maintenance passes.
        std::thread::sleep(Duration::from_millis(300));
        fixture.await_archived(sent + again);
    }
    wait_until("the books are complete", || booked(&server) == [sent, again]);
    wait_until("the leaps were noticed", || metric(&server, "rollmill_clock_leaps_total") > 0);
    wait_until("and said", || fixture.said().contains("the wall clock leapt"));
    assert_eq!(metric(&server, "rollmill_invariant_violations_total"), 0);
    assert_eq!(server.stop(), Some(0));
    fixture.verify();
}

#[test]
fn a_clock_that_leaps_under_load_loses_nothing_and_counts_nothing_twice() {
    let fixture = ClockFixture::new();
    let server = fixture.start(&[]);
    let (acknowledged, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let from = acknowledged.load(Ordering::Acquire);
                send(&server, from..from + 20);
                acknowledged.store(from + 20, Ordering::Release);
            }
        });
        for wrong in [3_600, -3_600, 400 * DAY, 0, -DAY, 50 * YEAR, 61, 0, 10 * DAY, 0] {
            fixture.leap(wrong);
            std::thread::sleep(Duration::from_millis(300));
            let (status, _) = server.get(&format!("/v1/query?metric=m&step=all&agg=count&{EVER}"));
            assert_eq!(status, 200, "queries are answered throughout");
        }
        done.store(true, Ordering::Release);
        load.join().expect("the load ends well");
    });
    let sent = acknowledged.load(Ordering::Acquire);
    await_count(&server, sent);
    for from in (0..sent).step_by(1_000) {
        send(&server, from..sent.min(from + 1_000));
    }
    wait_until("the books are complete", || booked(&server) == [sent, sent]);
    await_count(&server, sent);
    fixture.await_archived(2 * sent);
    assert_eq!(server.stop(), Some(0));
    fixture.verify();
}

#[test]
fn a_clock_that_was_ahead_at_the_start_holds_up_neither_archive_nor_expiry() {
    let fixture = ClockFixture::new();
    fixture.leap(30 * DAY);
    let server = fixture.start(&[]);
    send(&server, 0..1);
    fixture.leap(0);
    send(&server, 1..6);
    let objects = fixture.await_archived(6);
    assert!(objects.iter().all(|object| object["received"].is_array()), "{objects:?}");
    assert_eq!(server.stop(), Some(0));
    let server = fixture.start(&[]);
    send(&server, 6..11);
    fixture.await_archived(11);
    let (status, due) = server.get("/v1/archive/expiry");
    assert_eq!((status, due["stopped"].as_u64()), (200, Some(0)), "{due}");
    // 400 days ahead, everything is due, but nobody has approved the expiry.
    fixture.leap(400 * DAY);
    wait_until("what is due has stopped", || {
        server.get("/v1/archive/expiry").1["stopped"].as_u64() > Some(0)
    });
    let output = Server::cli(&["archive", "expire", "--url", &server.url]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("the wall clock leapt") && said.contains("--yes"),
        "{said}"
    );
    let output = Server::cli(&["archive", "expire", "--yes", "--url", &server.url]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("go on"), "{said}");
    std::thread::sleep(Duration::from_millis(500));
    fixture.await_archived(11);
    fixture.leap(0);
    assert_eq!(server.stop(), Some(0));
    fixture.verify();
}
