//! Clients that retry until acknowledged, readers that verify every answer, and the final check.
//!
//! All take the URLs of every node they may use, and switch to the next one after a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ledger::{Event, Expected, FIRST_HOUR, HOURS, Ledger, METRICS};
use crate::now;
use crate::rng::Rng;

/// A batch not acknowledged by then never will be. Restarting two brokers on a slow machine takes
/// much of this time.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How long an impatient client waits for an answer.
pub const IMPATIENCE: Duration = Duration::from_secs(5);

/// How long a patient one does: longer than a slow machine takes.
const PATIENT: Duration = Duration::from_secs(50);

/// Pause of a slow client.
const SLOW: Duration = Duration::from_millis(20);

/// An agent with this request timeout.
pub fn within(time: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(time))
        .build()
        .into()
}

pub fn impatient() -> ureq::Agent {
    within(IMPATIENCE)
}

/// Sends until stopped. Every batch is retried with the same ids until it is acknowledged, and some
/// are sent again afterwards.
pub fn client(number: u64, seed: u64, urls: &[String], ledger: &Ledger, stop: &AtomicBool) {
    send_until(
        number,
        seed,
        Sender { agent: impatient(), urls, at: number as usize, pause: Duration::ZERO },
        ledger,
        stop,
    );
}

/// Like [`client`], for tests that freeze or cut off nothing: a long wait is then due to a slow
/// machine and no reason to retry.
pub fn patient_client(number: u64, seed: u64, urls: &[String], ledger: &Ledger, stop: &AtomicBool) {
    send_until(
        number,
        seed,
        Sender { agent: within(PATIENT), urls, at: number as usize, pause: Duration::ZERO },
        ledger,
        stop,
    );
}

/// Like [`client`], with pauses that leave the processors to something else.
pub fn slow_client(number: u64, seed: u64, urls: &[String], ledger: &Ledger, stop: &AtomicBool) {
    let sender = Sender { agent: impatient(), urls, at: number as usize, pause: SLOW };
    send_until(number, seed, sender, ledger, stop);
}

fn send_until(number: u64, seed: u64, mut sender: Sender<'_>, ledger: &Ledger, stop: &AtomicBool) {
    let mut rng = Rng(seed ^ (number + 1).wrapping_mul(0xabcd_ef01));
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
        std::thread::sleep(sender.pause);
        ledger.record_sent(&events);
        sender.until_acked(&body, kind, ledger);
        ledger.record_acked(&events, now);
        if kind == "application/json" && rng.chance(30) {
            earlier.push(body);
            let again = earlier.swap_remove(rng.below(earlier.len() as u64) as usize);
            sender.until_acked(&again, "application/json", ledger);
            ledger.resent.fetch_add(1, Ordering::SeqCst);
        }
    }
}

struct Sender<'a> {
    agent: ureq::Agent,
    urls: &'a [String],
    at: usize,
    /// Between two batches.
    pause: Duration,
}

impl Sender<'_> {
    fn until_acked(&mut self, body: &str, kind: &str, ledger: &Ledger) {
        let begun = Instant::now();
        loop {
            let url = &self.urls[self.at % self.urls.len()];
            match self
                .agent
                .post(format!("{url}/v1/events"))
                .header("content-type", kind)
                .send(body)
            {
                Ok(answer) if answer.status() == 202 => {
                    ledger.slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
                    return;
                }
                Ok(answer) if answer.status() == 503 || answer.status() == 429 => {
                    assert!(
                        answer.headers().contains_key("retry-after"),
                        "an overload without Retry-After"
                    );
                    ledger.refused.fetch_add(1, Ordering::SeqCst);
                }
                Ok(mut answer) => {
                    panic!(
                        "{url}: {} {}",
                        answer.status(),
                        answer.body_mut().read_to_string().unwrap_or_default()
                    )
                }
                // The server was dead or died: the outcome is unknown, so the batch is sent again.
                Err(_) => {}
            }
            ledger.retries.fetch_add(1, Ordering::SeqCst);
            assert!(begun.elapsed() < PATIENCE, "no acknowledgement for {PATIENCE:?}");
            self.at += 1;
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

#[derive(Default)]
pub struct ReadStats {
    pub complete: AtomicU64,
    pub partial: AtomicU64,
    /// The node was dead or frozen, or could not answer.
    pub unanswered: AtomicU64,
    /// Reasons for missing shards, and how often each was reported.
    pub reasons: Mutex<BTreeMap<String, u64>>,
    /// Latency of the slowest answer, in milliseconds.
    pub slowest: AtomicU64,
}

/// Queries one node after another in a loop. A complete answer must lie between the events
/// acknowledged before and those sent by then.
pub fn reader(urls: &[String], ledger: &Ledger, stop: &AtomicBool, stats: &ReadStats) {
    read_until(&impatient(), urls, ledger, stop, stats);
}

/// Like [`reader`], for tests that freeze or cut off nothing: a long wait is then due to a slow
/// machine, and an answer comes.
pub fn patient_reader(urls: &[String], ledger: &Ledger, stop: &AtomicBool, stats: &ReadStats) {
    read_until(&within(PATIENT), urls, ledger, stop, stats);
}

fn read_until(
    agent: &ureq::Agent,
    urls: &[String],
    ledger: &Ledger,
    stop: &AtomicBool,
    stats: &ReadStats,
) {
    for url in urls.iter().cycle().take_while(|_| !stop.load(Ordering::SeqCst)) {
        std::thread::sleep(Duration::from_millis(20));
        match ask_all(agent, url, stats) {
            ReadResult::None => stats.unanswered.fetch_add(1, Ordering::SeqCst),
            ReadResult::Partial => stats.partial.fetch_add(1, Ordering::SeqCst),
            ReadResult::Complete { counted, as_of } => {
                let (least, most) = (ledger.acked_before(as_of).total(), ledger.sent().total());
                assert!(
                    least <= counted,
                    "a complete answer has {counted} events, {least} were acknowledged before its \
                     as_of"
                );
                assert!(
                    counted <= most,
                    "a complete answer has {counted} events, only {most} were ever sent"
                );
                stats.complete.fetch_add(1, Ordering::SeqCst)
            }
        };
    }
}

enum ReadResult {
    None,
    Partial,
    Complete { counted: u64, as_of: i64 },
}

/// Counts the events of all metrics at one node.
fn ask_all(agent: &ureq::Agent, url: &str, stats: &ReadStats) -> ReadResult {
    let (mut counted, mut as_of) = (0, i64::MAX);
    for metric in 0..METRICS {
        let begun = Instant::now();
        let answer = get(agent, &format!("{url}/v1/query?metric=m{metric}&{}&step=all", range()));
        let Some((200, answer)) = answer else { return ReadResult::None };
        stats.slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
        if answer["completeness"]["partial"] != false {
            let mut reasons = stats.reasons.lock().expect("no panic");
            for missing in answer["completeness"]["missing"].as_array().expect("what is missing") {
                *reasons
                    .entry(missing["reason"].as_str().expect("a reason").to_owned())
                    .or_default() += 1;
            }
            return ReadResult::Partial;
        }
        as_of = as_of.min(as_of_ms(&answer));
        counted += answer["series"][0]["points"][0]["count"].as_u64().unwrap_or(0);
    }
    ReadResult::Complete { counted, as_of }
}

/// Status and JSON body; `None` if no whole answer arrived.
pub fn get(agent: &ureq::Agent, url: &str) -> Option<(u16, Value)> {
    let mut answer = agent.get(url).call().ok()?;
    let text = answer.body_mut().with_config().limit(256 << 20).read_to_string().ok()?;
    Some((answer.status().as_u16(), serde_json::from_str(&text).ok()?))
}

pub fn as_of_ms(answer: &Value) -> i64 {
    let time: jiff::Timestamp =
        answer["completeness"]["as_of"].as_str().expect("as_of").parse().expect("a time");
    time.as_millisecond()
}

pub fn range() -> String {
    let hour = 3_600_000;
    format!("from={}&to={}", FIRST_HOUR * hour, (FIRST_HOUR + HOURS) * hour)
}

/// The first complete answer of any node that passes. Panics after three minutes with the last
/// answer.
pub fn await_answer(urls: &[String], path: &str, pass: impl Fn(&Value) -> bool) -> Value {
    await_answer_for(Duration::from_secs(180), urls, path, pass)
}

/// Like [`await_answer`], for as long as this.
pub fn await_answer_for(
    patience: Duration,
    urls: &[String],
    path: &str,
    pass: impl Fn(&Value) -> bool,
) -> Value {
    let (agent, deadline) = (within(Duration::from_secs(30)), Instant::now() + patience);
    for url in urls.iter().cycle() {
        let answer = get(&agent, &format!("{url}{path}"));
        match answer {
            Some((200, answer)) if answer["completeness"]["partial"] == false && pass(&answer) => {
                return answer;
            }
            _ => assert!(Instant::now() < deadline, "{url}{path} still answers {answer:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    unreachable!("there is no URL to ask")
}

/// Every rollup that the servers have, through the query API.
fn rollups(urls: &[String], total: u64) -> BTreeMap<(u64, u64, u64), (Expected, u64)> {
    let mut found = BTreeMap::new();
    let mut sum = 0;
    // A complete answer only has to be fresh enough; this check needs everything acknowledged so
    // far.
    let everything = now();
    for metric in 0..METRICS {
        let path = format!(
            "/v1/query?metric=m{metric}&{}&by=page&agg=count,sum,min,max,distinct",
            range()
        );
        let answer = await_answer(urls, &path, |answer| as_of_ms(answer) >= everything);
        for series in answer["series"].as_array().expect("series") {
            let page =
                series["labels"]["page"].as_str().expect("page")[1..].parse().expect("a number");
            for point in series["points"].as_array().expect("points") {
                let time: jiff::Timestamp =
                    point["t"].as_str().expect("t").parse().expect("a time");
                let hour = (time.as_millisecond() / 3_600_000) as u64;
                let count = point["count"].as_u64().expect("count");
                let figure = |name: &str| point[name].as_i64();
                let row = Expected {
                    count,
                    sum: figure("sum").unwrap_or(0),
                    min: figure("min"),
                    max: figure("max"),
                    users: BTreeSet::new(),
                };
                sum += count;
                found.insert(
                    (metric, page, hour),
                    (row, point["distinct"].as_u64().expect("distinct")),
                );
            }
        }
    }
    assert_eq!(
        sum,
        total,
        "lost {} double {}",
        total.saturating_sub(sum),
        sum.saturating_sub(total)
    );
    found
}

/// Checks that the rollups are exactly those of the ledger.
pub fn check(urls: &[String], ledger: &Ledger) {
    let mut expected = ledger.rows();
    for (key, (row, distinct)) in rollups(urls, ledger.acked_total()) {
        let want = expected.remove(&key).unwrap_or_else(|| panic!("row {key:?} was never sent"));
        assert_eq!(distinct, want.users.len() as u64, "distinct of {key:?}");
        assert_eq!(row, Expected { users: Default::default(), ..want }, "{key:?}");
    }
    assert!(expected.is_empty(), "{} rows are lost", expected.len());
}

/// Aggregated, de-duplicated and quarantined events of all hours, once everything acknowledged so
/// far is applied and nothing is pending. A record that no shard has applied is in no hour, not
/// even as pending, and an answer that is some seconds behind is complete all the same.
pub fn accounting(urls: &[String]) -> [u64; 3] {
    let sum = |answer: &Value, name: &str| -> u64 {
        answer["hours"]
            .as_array()
            .expect("hours")
            .iter()
            .map(|hour| hour[name].as_u64().expect("a number"))
            .sum()
    };
    let everything = now();
    let answer = await_answer(urls, "/v1/accounting", |answer| {
        as_of_ms(answer) >= everything && sum(answer, "pending") == 0
    });
    ["aggregated", "deduplicated", "quarantined"].map(|name| sum(&answer, name))
}

/// Stops the clients even when the test panics: a thread scope waits for its threads.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
