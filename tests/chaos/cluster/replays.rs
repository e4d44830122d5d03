//! Replays of a cluster whose nodes, store and object storage are killed.
//! `ROLLMILL_CHAOS_CLUSTER_REPLAY_KILLS` sets how often (default 20).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Cluster, FULL};
use crate::ledger::{Ledger, METRICS};
use crate::load::{ReadStats, StopOnDrop, accounting, slow_client};
use crate::replays::{Drill, Faults, World, reader, rows, rows_of};
use crate::rng::Rng;
use crate::support::{Server, wait_until};
use crate::{now, number};

const CLIENTS: u64 = 2;
/// Rows that leave stay for so long.
const SETTINGS: [(&str, &str); 2] = [("query.timeout", "6s"), ("query.deadline", "6s")];

struct WholeCluster {
    cluster: Cluster,
    killed: BTreeMap<&'static str, u64>,
}

impl WholeCluster {
    fn kill_node(&mut self, at: usize) {
        self.cluster.kill(at);
        self.cluster.spawn(at);
        // What a service manager does: a node may have given up waiting for the store.
        for at in 0..self.cluster.nodes.len() {
            if self.cluster.nodes[at].server.as_mut().is_none_or(Server::has_ended) {
                self.cluster.spawn(at);
            }
        }
    }
}

impl Faults for WholeCluster {
    fn strike(&mut self, rng: &mut Rng) {
        let what = match rng.below(10) {
            0..=1 => {
                self.cluster.postgres.kill_and_restart(Duration::from_millis(rng.below(1_000)));
                "PostgreSQL"
            }
            2 if !self.cluster.s3.is_away() => {
                self.cluster.s3.kill();
                std::thread::sleep(Duration::from_millis(rng.below(1_000)));
                self.cluster.s3.restart();
                "S3 server"
            }
            3 => {
                self.kill_node(FULL);
                "gateway"
            }
            _ => {
                self.kill_node(rng.below(FULL as u64) as usize);
                "node"
            }
        };
        *self.killed.entry(what).or_default() += 1;
    }

    fn storage_away(&mut self, _: &mut Rng) -> bool {
        self.cluster.s3.kill();
        *self.killed.entry("S3 server, for a while").or_default() += 1;
        true
    }

    fn storage_back(&mut self) {
        self.cluster.s3.restart();
    }

    fn is_deleting(&self) -> Option<bool> {
        None
    }

    fn log_lines(&self, words: &str) -> Vec<String> {
        self.cluster.log_lines(words)
    }
}

#[test]
fn replays_of_a_cluster_are_whole_or_not_there_whatever_dies() {
    let (seed, kills) = (
        number("ROLLMILL_CHAOS_SEED", now() as u64),
        number("ROLLMILL_CHAOS_CLUSTER_REPLAY_KILLS", 20),
    );
    println!("ROLLMILL_CHAOS_SEED={seed} ROLLMILL_CHAOS_CLUSTER_REPLAY_KILLS={kills}");
    let cluster = Cluster::start(&SETTINGS);
    let (urls, cli) = (cluster.urls(), cluster.cli());
    let (ledger, stats, stop) = (Ledger::default(), ReadStats::default(), AtomicBool::new(false));
    let (world, begun) = (World::new(&urls, &ledger), Instant::now());
    let faults = WholeCluster { cluster, killed: BTreeMap::new() };
    let mut drill = Drill::new(&world, faults, seed);
    let mut last = 0;
    std::thread::scope(|scope| {
        let (ledger, stats, stop, urls, world) = (&ledger, &stats, &stop, &urls, &world);
        let stops = StopOnDrop(stop);
        let mut threads: Vec<_> = (0..CLIENTS)
            .map(|n| scope.spawn(move || slow_client(n, seed, urls, ledger, stop)))
            .collect();
        threads.push(scope.spawn(move || reader(world, seed, stop, stats)));
        let store = drill.faults.cluster.store();
        wait_until("all metrics are stored", || {
            (0..METRICS).all(|metric| rows_of(&*store, 0, metric) > 0)
        });
        let check = |drill: &Drill<'_, WholeCluster>| {
            println!("after {:.0?}: kills {:?}", begun.elapsed(), drill.kills);
            let failed = threads.iter().any(|thread| thread.is_finished());
            assert!(!failed, "a client or the reader failed, see above");
        };
        drill.every_phase();
        check(&drill);
        while drill.killed() < kills {
            drill.cancelled_early();
            check(&drill);
        }
        last = drill.leave_applied();
        drop(stops);
        let failed = threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count();
        assert_eq!(failed, 0, "a client or the reader failed, see above");
    });
    (0..urls.len()).for_each(|at| drill.faults.cluster.await_ready(at));
    world.check();
    let accounted = accounting(&urls);
    assert_eq!((accounted[0], accounted[2]), (ledger.acked_total(), 0), "aggregated, quarantined");
    let store = drill.faults.cluster.store();
    assert!(rows(&*store, last..=last) > 0, "the last one has rows");
    assert_eq!(rows(&*store, 1..last), 0, "rows of what was cancelled");
    cli.audit_at_last();
    drill.take_back(last);
    world.check();
    assert_eq!(rows(&*store, 1..=last), 0, "rows of what was cancelled");
    cli.audit_at_last();
    let WholeCluster { cluster, killed } = &drill.faults;
    println!(
        "{} kills {:?} {killed:?} in {:.0?}: {} replays started, {} applies; {} events \
         acknowledged, 0 lost, 0 double, {} duplicates dropped; queries {} complete, {} partial, {} \
         unanswered, 0 mixed",
        drill.killed(),
        drill.kills,
        begun.elapsed(),
        drill.started,
        drill.applied,
        ledger.acked_total(),
        accounted[1],
        stats.complete.load(Ordering::SeqCst),
        stats.partial.load(Ordering::SeqCst),
        stats.unanswered.load(Ordering::SeqCst),
    );
    assert_eq!(cluster.log_lines("invariant violated"), Vec::<String>::new());
    assert_eq!(cluster.log_lines("panicked"), Vec::<String>::new(), "something panicked in a node");
    assert!(stats.complete.load(Ordering::SeqCst) > 0, "no query was complete");
}
