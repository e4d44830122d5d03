//! Three brokers, each killed under load. Two brokers accept every write; a single one refuses
//! writes and says so.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Cluster, SHARDS};
use crate::ledger::{Event, Ledger};
use crate::load::{IMPATIENCE, PATIENCE, ReadStats, StopOnDrop, accounting, check, client, reader};
use crate::now;
use crate::rng::Rng;
use crate::support::{Server, agent};

/// Few, because they share the processors with three starting brokers.
const CLIENTS: u64 = 2;
const SETTINGS: [(&str, &str); 4] = [
    ("kafka.replication", "3"),
    ("kafka.min_isr", "2"),
    // Longer than Kafka takes to detect a dead broker, even on a slow machine: the test waits for
    // the final outcome of a write.
    ("kafka.delivery_timeout", "60s"),
    ("gateway.append_timeout", "90s"),
];

/// What the clients saw during one phase.
struct ClientStats {
    refused: u64,
    repeated: u64,
    /// Latency of the slowest batch, from its first attempt to its acknowledgement.
    slowest: Duration,
}

impl std::fmt::Display for ClientStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { refused, repeated, slowest } = self;
        write!(f, "{refused} refused, {repeated} repeated, slowest {slowest:.1?}")
    }
}

/// Returns the statistics since the previous call and resets them.
fn take_stats(ledger: &Ledger) -> ClientStats {
    let take = |counter: &AtomicU64| counter.swap(0, Ordering::SeqCst);
    ClientStats {
        refused: take(&ledger.refused),
        repeated: take(&ledger.retries),
        slowest: Duration::from_millis(take(&ledger.slowest)),
    }
}

/// Waits until Kafka reports this many shards as under-replicated.
fn await_lacking(cluster: &Cluster, shards: usize) {
    let (cli, deadline) = (cluster.cli(), Instant::now() + super::PATIENCE);
    loop {
        let topic = cli.json(&["topic", "describe"]).unwrap_or_default();
        if topic["under_replicated"].as_array().is_some_and(|lacking| lacking.len() == shards) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{shards} shards do not come to lack a replica: {topic}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Waits until no client has had to retry for a while.
fn await_steady(ledger: &Ledger) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = (ledger.retries.load(Ordering::SeqCst), ledger.acked_total());
        std::thread::sleep(Duration::from_secs(2));
        let after = (ledger.retries.load(Ordering::SeqCst), ledger.acked_total());
        if before.0 == after.0 && before.1 < after.1 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "writes do not go on: {before:?} repetitions and events, then {after:?}"
        );
    }
}

/// A batch whose client waits for the answer, whatever it is.
struct PatientBatch {
    events: Vec<Event>,
}

impl PatientBatch {
    /// Enough events that every shard receives some.
    fn new(ledger: &Ledger) -> Self {
        let mut rng = Rng(3);
        let events: Vec<Event> =
            (0..400).map(|n| Event::draw(&mut rng, format!("patient-{n}"))).collect();
        ledger.record_sent(&events);
        Self { events }
    }

    /// Sends the batch. Returns the status, and whether the answer has a `Retry-After`.
    fn send(&self, url: &str) -> (u16, bool) {
        let lines: Vec<String> = self.events.iter().map(Event::json).collect();
        let request =
            agent().post(format!("{url}/v1/events")).header("content-type", "application/x-ndjson");
        let answer = request.send(lines.join("\n")).expect("an answer");
        (answer.status().as_u16(), answer.headers().contains_key("retry-after"))
    }
}

/// With one broker dead: what the clients saw until writes succeeded without retries.
fn one_dead(cluster: &Cluster, ledger: &Ledger) -> ClientStats {
    await_lacking(cluster, SHARDS);
    await_steady(ledger);
    take_stats(ledger)
}

/// With two of three brokers dead, nothing is acknowledged, and a waiting client is told so.
fn two_dead(cluster: &Cluster, ledger: &Ledger, patient: &PatientBatch) {
    // Waits until the ledger has recorded everything acknowledged before the kill: for longer than
    // a client waits for an answer, because one that was under way may come as late as that.
    let mut before = 0;
    while before != ledger.acked_total() {
        before = ledger.acked_total();
        std::thread::sleep(IMPATIENCE + Duration::from_secs(3));
    }
    assert_eq!(
        patient.send(&cluster.url(0)),
        (503, true),
        "an answer below min ISR, and its Retry-After"
    );
    assert_eq!(ledger.acked_total(), before, "something was acknowledged by one broker");
}

#[test]
fn two_of_three_brokers_take_every_write_and_one_alone_none() {
    let mut cluster = Cluster::start_on(3, &SETTINGS);
    let (urls, started) = (cluster.urls(), Instant::now());
    let (ledger, stats, stop) = (Ledger::default(), ReadStats::default(), AtomicBool::new(false));
    let mut dead = Vec::new();
    std::thread::scope(|scope| {
        let (ledger, stats, stop, urls) = (&ledger, &stats, &stop, &urls);
        let stops = StopOnDrop(stop);
        let mut threads: Vec<_> =
            (0..CLIENTS).map(|n| scope.spawn(move || client(n, 5, urls, ledger, stop))).collect();
        threads.push(scope.spawn(move || reader(urls, ledger, stop, stats)));
        cluster.await_served(0);
        take_stats(ledger);
        cluster.kafka.kill(1);
        dead.push(("1", one_dead(&cluster, ledger)));
        cluster.kafka.restart(1);
        await_lacking(&cluster, 0);
        await_steady(ledger);
        take_stats(ledger);
        cluster.kafka.kill(2);
        dead.push(("2", one_dead(&cluster, ledger)));

        let patient = PatientBatch::new(ledger);
        cluster.kafka.kill(3);
        two_dead(&cluster, ledger, &patient);
        cluster.kafka.restart(2);
        await_steady(ledger);
        assert_eq!(patient.send(&cluster.url(1)).0, 202);
        ledger.record_acked(&patient.events, now);
        dead.push(("2 and 3, then 3", take_stats(ledger)));
        cluster.kafka.restart(3);
        await_lacking(&cluster, 0);
        await_steady(ledger);
        drop(stops);
        let failed = threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count();
        assert_eq!(failed, 0, "a client or the reader failed, see above");
    });
    println!("all threads ended after {:.0?}", started.elapsed());
    check(&urls, &ledger);
    let accounted = accounting(&urls);
    assert_eq!((accounted[0], accounted[2]), (ledger.acked_total(), 0), "aggregated, quarantined");
    cluster.cli().audit_at_last();
    let met: String = dead.iter().map(|(which, met)| format!("{which} dead: {met}; ")).collect();
    let memory: Vec<u64> = (1..=3).map(|broker| cluster.kafka.memory(broker)).collect();
    println!(
        "three brokers, each killed, in {:.0?}: {met}{} events acknowledged, 0 lost, 0 double, {} \
         duplicates dropped; queries {} complete, {} partial {:?}, {} unanswered; brokers of \
         {memory:?} MiB",
        started.elapsed(),
        ledger.acked_total(),
        accounted[1],
        stats.complete.load(Ordering::SeqCst),
        stats.partial.load(Ordering::SeqCst),
        stats.reasons.lock().expect("no panic"),
        stats.unanswered.load(Ordering::SeqCst),
    );
    assert!(
        dead[..2].iter().all(|(_, met)| met.refused == 0),
        "a write was refused while two brokers were there"
    );
    assert!(
        dead.iter().all(|(_, met)| met.slowest > Duration::from_secs(1)),
        "brokers died and no client noticed"
    );
    for words in ["invariant violated", "panicked"] {
        assert_eq!(
            cluster.log_lines(words),
            Vec::<String>::new(),
            "a node saw something that must not be"
        );
    }
    for node in &mut cluster.nodes {
        assert!(
            !node.server.as_mut().is_some_and(Server::has_ended),
            "{} ended over the death of brokers",
            node.name
        );
    }
}
