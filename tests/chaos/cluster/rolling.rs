//! Rolling restarts that no client notices: nodes stop gracefully behind a load balancer, under
//! load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::balancer::Balancer;
use super::{Cluster, FULL, PATIENCE};
use crate::ledger::Ledger;
use crate::load::{ReadStats, StopOnDrop, check, get, patient_client, patient_reader};
use crate::support::agent;

/// Waits until every node owns shards and all are served. A node is ready before the group assigns
/// it any shard: stopping it then would prove nothing, and a stop during a rebalance would measure
/// two moves.
fn balanced(cluster: &Cluster, observer: usize) {
    let deadline = Instant::now() + PATIENCE;
    while !(0..FULL).all(|at| cluster.owns(observer, at)) {
        assert!(Instant::now() < deadline, "a node is given nothing");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.await_served(observer);
}

#[test]
fn a_rolling_restart_behind_a_load_balancer_refuses_no_write() {
    let mut cluster = Cluster::start(&[("server.drain_delay", "500ms")]);
    let balancer = Balancer::start_patient(&cluster, &cluster.dir().join("nginx"));
    let front = [balancer.url.clone()];
    let (ledger, stats, stop) = (Ledger::default(), ReadStats::default(), AtomicBool::new(false));
    let mut handovers = Vec::new();
    std::thread::scope(|scope| {
        let (ledger, stats, stop, front) = (&ledger, &stats, &stop, &front);
        let stops = StopOnDrop(stop);
        let mut threads: Vec<_> = (0..4)
            .map(|n| scope.spawn(move || patient_client(n, 7, front, ledger, stop)))
            .collect();
        threads.push(scope.spawn(move || patient_reader(front, ledger, stop, stats)));
        std::thread::sleep(Duration::from_secs(2));
        for at in 0..FULL {
            let observer = (at + 1) % FULL;
            balanced(&cluster, observer);
            let node = cluster.nodes[at].server.take().expect("it runs");
            let stopping = std::thread::spawn(move || node.stop());
            // Measures from the moment at which the shards begin to move.
            std::thread::sleep(Duration::from_millis(500));
            handovers.push(cluster.await_served(observer));
            assert_eq!(stopping.join().expect("no panic"), Some(0));
            cluster.spawn(at);
            cluster.await_ready(at);
        }
        drop(stops);
        let failed = threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count();
        assert_eq!(failed, 0, "a client or the reader failed, see above");
    });
    check(&cluster.urls(), &ledger);
    let (retries, refused) =
        (ledger.retries.load(Ordering::SeqCst), ledger.refused.load(Ordering::SeqCst));
    println!(
        "{FULL} nodes restarted in turn: {} events acknowledged, 0 lost, 0 double, {retries} \
         requests repeated, {refused} refused; queries {} complete, {} partial {:?}, {} \
         unanswered; shards served elsewhere after {handovers:.1?}",
        ledger.acked_total(),
        stats.complete.load(Ordering::SeqCst),
        stats.partial.load(Ordering::SeqCst),
        stats.reasons.lock().expect("no panic"),
        stats.unanswered.load(Ordering::SeqCst),
    );
    assert_eq!((retries, refused), (0, 0), "a client noticed");
    assert_eq!(stats.unanswered.load(Ordering::SeqCst), 0, "a reader noticed");
    let (status, answer) = get(&agent(), &format!("{}/v1/status", front[0])).expect("a status");
    assert_eq!(status, 200, "{answer}");
}
