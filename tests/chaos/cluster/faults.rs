//! Every component of a cluster is killed, frozen or cut off under load, and no event is lost or
//! counted twice, and no answer is wrongly complete.
//!
//! `ROLLMILL_CHAOS_ROUNDS` sets how often an owner is frozen and three nodes are killed (default
//! 10: at least 30 kills). A planned fault without effect fails the run.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Cluster, ClusterCli, FULL, PATIENCE};
use crate::ledger::Ledger;
use crate::load::{ReadStats, StopOnDrop, accounting, check, client, reader};
use crate::proxy::ProxyPlan;
use crate::rng::Rng;
use crate::{now, number};

const CLIENTS: u64 = 4;
const GATE: usize = FULL;
/// Longer than Kafka's session timeout plus the handover, even on a slow machine.
const BACK_WITHIN: Duration = PATIENCE;
const ARCHIVING_FAILED: &str = "archiving failed";

/// The faults injected, and how long it took until the shards were served again.
#[derive(Default)]
struct FaultCounts {
    kills: u64,
    frozen: u64,
    frozen_in_flush: u64,
    others: BTreeMap<&'static str, u64>,
    failovers: Vec<Duration>,
}

/// Recomputes the rollups of the running cluster in a loop: at every moment, the store must equal
/// the fold of a prefix of the log.
fn auditor(cli: &ClusterCli, stop: &AtomicBool, audits: &AtomicU64) {
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_secs(2));
        audits.fetch_add(u64::from(cli.audit()), Ordering::SeqCst);
    }
}

struct Run<'a> {
    cluster: &'a Mutex<Cluster>,
    rng: Rng,
    effects: FaultCounts,
    /// Archiving failures logged before the S3 server was killed.
    failed_before: usize,
}

impl Run<'_> {
    fn with<T>(&self, act: impl FnOnce(&mut Cluster) -> T) -> T {
        act(&mut self.cluster.lock().expect("no panic"))
    }

    fn pause(&mut self, millis: u64) {
        let wait = self.rng.below(millis);
        std::thread::sleep(Duration::from_millis(wait));
    }

    fn count(&mut self, what: &'static str) {
        *self.effects.others.entry(what).or_default() += 1;
    }

    /// Sends SIGKILL and restarts the node, at once or after a delay.
    fn kill(&mut self, at: usize, down: u64) {
        self.with(|cluster| cluster.kill(at));
        self.effects.kills += 1;
        self.pause(down);
        self.with(|cluster| cluster.spawn(at));
    }

    /// Kills an owner with SIGKILL and keeps it down until another node answers completely.
    fn kill_and_measure(&mut self, at: usize, observer: usize) {
        self.with(|cluster| cluster.await_ready(observer));
        let took = self.with(|cluster| {
            let owned = cluster.owns(observer, at);
            cluster.kill(at);
            let took = cluster.await_served(observer);
            cluster.spawn(at);
            owned.then_some(took)
        });
        self.effects.kills += 1;
        self.effects.failovers.extend(took);
    }

    /// Freezes an owner with SIGSTOP, during a flush if possible, until its shards have moved, then
    /// resumes it.
    fn freeze(&mut self, at: usize, observer: usize, meanwhile: impl FnOnce(&mut Self)) {
        self.with(|cluster| cluster.await_ready(at));
        self.with(|cluster| cluster.await_ready(observer));
        let deadline = Instant::now() + BACK_WITHIN;
        while !self.with(|cluster| cluster.owns(observer, at)) {
            assert!(Instant::now() < deadline, "node {at} gets no shard");
            std::thread::sleep(Duration::from_millis(100));
        }
        // Slows the store down, so that a flush takes long enough to be hit on any machine.
        self.with(|cluster| {
            cluster
                .store_proxy
                .set(ProxyPlan { delay: Duration::from_millis(20), ..ProxyPlan::default() })
        });
        let in_flush = (0..10).any(|_| {
            self.pause(200);
            self.with(|cluster| cluster.signal(at, Signal::STOP));
            let caught = self.with(|cluster| cluster.frozen_in_flush(at));
            if !caught {
                self.with(|cluster| cluster.signal(at, Signal::CONT));
            }
            caught
        });
        self.with(|cluster| cluster.signal(at, Signal::STOP));
        self.with(|cluster| cluster.store_proxy.set(ProxyPlan::default()));
        meanwhile(self);
        self.with(|cluster| cluster.await_moved(observer, at));
        self.with(|cluster| cluster.signal(at, Signal::CONT));
        self.effects.frozen += 1;
        self.effects.frozen_in_flush += u64::from(in_flush);
    }

    /// Freezes one owner, kills three nodes and injects one more fault.
    fn round(&mut self, round: u64) {
        let frozen = self.rng.below(FULL as u64) as usize;
        let (killed, observer) = ((frozen + 1) % FULL, (frozen + 2) % FULL);
        self.inject_other_fault(round);
        self.freeze(frozen, observer, |run| run.kill(killed, 1_000));
        // `killed` answers the queries, because `observer`, which held every shard, is the next to
        // die.
        self.with(|cluster| cluster.await_ready(killed));
        self.kill_and_measure(observer, killed);
        self.kill(frozen, 300);
        self.settle();
    }

    /// Waits until every node is ready and every shard answers completely.
    fn settle(&mut self) {
        (0..=GATE).for_each(|at| self.with(|cluster| cluster.await_ready(at)));
        self.with(|cluster| cluster.await_served(GATE));
        std::thread::sleep(Duration::from_secs(1));
    }

    /// Injects a fault into the components other than nodes, one kind after another.
    fn inject_other_fault(&mut self, round: u64) {
        match round % 7 {
            0 => {
                self.with(|cluster| {
                    cluster.redis.kill();
                    cluster.kill(GATE);
                    cluster.redis.restart();
                    cluster.spawn(GATE);
                });
                self.count("Redis killed");
                self.count("gateway killed");
            }
            1 => {
                self.with(|cluster| cluster.kafka.kill(1));
                self.pause(2_000);
                self.with(|cluster| cluster.kafka.restart(1));
                self.count("broker killed");
            }
            2 => {
                self.with(|cluster| cluster.postgres.kill_and_restart(Duration::from_secs(1)));
                self.count("PostgreSQL killed");
            }
            3 => self.kill_the_storage(),
            4 => {
                self.bring_back_the_storage();
                self.cut_the_store();
            }
            5 => self.restart_storm(),
            _ => {
                self.with(|cluster| cluster.redis.pause());
                self.spoil_the_storage(round + 1);
                self.with(|cluster| cluster.redis.resume());
            }
        }
    }

    /// Kills the S3 server with SIGKILL at arbitrary moments and leaves it down.
    fn kill_the_storage(&mut self) {
        for _ in 0..3 {
            self.with(|cluster| cluster.s3.kill());
            self.pause(500);
            self.with(|cluster| cluster.s3.restart());
            self.count("S3 server killed");
            self.pause(2_000);
        }
        self.failed_before = self.with(|cluster| cluster.log_count(ARCHIVING_FAILED));
        self.with(|cluster| cluster.s3.kill());
        self.count("S3 server killed, away for a round");
    }

    /// Restarts the S3 server if it is down, once its failure has been noticed.
    fn bring_back_the_storage(&mut self) {
        let deadline = Instant::now() + BACK_WITHIN;
        while self.with(|cluster| {
            cluster.s3.is_away() && cluster.log_count(ARCHIVING_FAILED) == self.failed_before
        }) {
            assert!(Instant::now() < deadline, "no node misses the S3 server");
            std::thread::sleep(Duration::from_millis(100));
        }
        self.with(|cluster| cluster.s3.restart());
    }

    /// Makes a fifth of the requests to the S3 server fail, until some have.
    fn spoil_the_storage(&mut self, seed: u64) {
        self.with(|cluster| cluster.s3.set_faults(seed, 200));
        self.pause(3_000);
        let deadline = Instant::now() + BACK_WITHIN;
        while self.with(|cluster| cluster.s3.hits()) == 0 {
            assert!(Instant::now() < deadline, "no request met a fault of the S3 server");
            std::thread::sleep(Duration::from_millis(100));
        }
        let hits = self.with(|cluster| {
            cluster.s3.set_faults(seed, 0);
            cluster.s3.hits()
        });
        self.effects.others.insert("faults of the S3 server", hits);
    }

    /// Drops the answers to commits, and cuts connections to the store at arbitrary points.
    fn cut_the_store(&mut self) {
        let set = |run: &Self, plan| run.with(|cluster| cluster.store_proxy.set(plan));
        let cuts = |run: &Self| run.with(|cluster| cluster.store_proxy.cuts());
        let (mut tries, deadline) = (0, Instant::now() + BACK_WITHIN);
        while tries < 10 || cuts(self).1 == 0 {
            assert!(Instant::now() < deadline, "no commit was cut");
            set(self, ProxyPlan { cut_after: Some(b"COMMIT"), ..ProxyPlan::default() });
            self.pause(600);
            tries += 1;
        }
        // Resets the plan, so that no pending lost-commit fault hits the connections cut below.
        set(self, ProxyPlan::default());
        let (_, commits) = cuts(self);
        set(self, ProxyPlan { cut_request: 1, cut_reply: 1, ..ProxyPlan::default() });
        std::thread::sleep(Duration::from_secs(2));
        while cuts(self).0 == 0 || cuts(self).1 == commits {
            assert!(
                Instant::now() < deadline,
                "no connection to the store was cut: {:?}",
                cuts(self)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        set(self, ProxyPlan::default());
        let (requests, replies) = cuts(self);
        let cut = [
            ("answers to commits lost", commits),
            ("requests to the store cut", requests),
            ("replies of the store cut", replies - commits),
        ];
        cut.into_iter()
            .for_each(|(what, times)| *self.effects.others.entry(what).or_default() += times);
    }

    /// Nodes join and leave faster than the consumer group settles.
    fn restart_storm(&mut self) {
        for _ in 0..6 {
            let at = self.rng.below(FULL as u64) as usize;
            if self.rng.chance(50) {
                let mut node =
                    self.with(|cluster| cluster.nodes[at].server.take().expect("it runs"));
                if node.has_ended() {
                    // The node gave up waiting for an unreachable dependency. Panics are checked
                    // for at the end of the run.
                    self.with(|cluster| cluster.spawn(at));
                    continue;
                }
                // `None`: the node was still starting, and the signal itself ended it.
                let ended = node.stop();
                assert!(matches!(ended, Some(0) | None), "a stop in the storm: {ended:?}");
                self.with(|cluster| cluster.spawn(at));
                self.count("stopped in a storm");
            } else {
                self.kill(at, 100);
            }
            self.pause(700);
        }
    }

    /// The primary is lost for good, and its standby takes over.
    fn fail_over_the_store(&mut self) {
        self.with(Cluster::add_standby);
        std::thread::sleep(Duration::from_secs(2));
        self.with(|cluster| {
            cluster.postgres.kill();
            assert!(cluster.standby.as_ref().expect("a standby").promote(), "the standby was none");
        });
        self.count("PostgreSQL failed over");
        let took = self.with(|cluster| cluster.await_served(0));
        println!("the store failed over, served again after {took:.1?}");
    }
}

#[test]
fn nothing_is_lost_doubled_or_falsely_complete_whatever_dies() {
    let (seed, rounds) =
        (number("ROLLMILL_CHAOS_SEED", now() as u64), number("ROLLMILL_CHAOS_ROUNDS", 10));
    println!("ROLLMILL_CHAOS_SEED={seed} ROLLMILL_CHAOS_ROUNDS={rounds}");
    let cluster = Cluster::start(&[]);
    let (urls, cli) = (cluster.urls(), cluster.cli());
    let cluster = Mutex::new(cluster);
    let (ledger, stats, stop, audits) =
        (Ledger::default(), ReadStats::default(), AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    let mut run = Run {
        cluster: &cluster,
        rng: Rng(seed),
        effects: FaultCounts::default(),
        failed_before: 0,
    };
    std::thread::scope(|scope| {
        let (ledger, stats, stop, urls, audits, cli) =
            (&ledger, &stats, &stop, &urls, &audits, &cli);
        let stops = StopOnDrop(stop);
        let mut threads: Vec<_> = (0..CLIENTS)
            .map(|n| scope.spawn(move || client(n, seed, urls, ledger, stop)))
            .collect();
        threads.push(scope.spawn(move || reader(urls, ledger, stop, stats)));
        threads.push(scope.spawn(move || auditor(cli, stop, audits)));
        for round in 0..rounds {
            run.round(round);
            println!(
                "round {round} after {:.0?}: {} acknowledged, {} audits",
                started.elapsed(),
                ledger.acked_total(),
                audits.load(Ordering::SeqCst)
            );
            assert!(
                !threads.iter().any(|thread| thread.is_finished()),
                "a client, the reader or the auditor failed, see above"
            );
        }
        // The round that restarts the S3 server may not have been reached.
        run.bring_back_the_storage();
        run.fail_over_the_store();
        let deadline = Instant::now() + PATIENCE;
        while audits.load(Ordering::SeqCst) <= 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
        }
        drop(stops);
        let failed = threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count();
        assert_eq!(failed, 0, "a client, the reader or the auditor failed, see above");
    });
    let FaultCounts { kills, frozen, frozen_in_flush, others, mut failovers } = run.effects;
    let mut cluster = cluster.into_inner().expect("no panic");
    println!("all threads ended after {:.0?}", started.elapsed());
    (0..cluster.nodes.len()).for_each(|at| cluster.await_ready(at));
    println!("all nodes ready after {:.0?}", started.elapsed());
    let healed = cluster.await_served(GATE);
    check(&urls, &ledger);
    let accounted = accounting(&urls);
    assert_eq!((accounted[0], accounted[2]), (ledger.acked_total(), 0), "aggregated, quarantined");
    cli.audit_at_last();
    failovers.sort();
    println!(
        "{kills} nodes killed, {frozen} owners frozen ({frozen_in_flush} in a flush), {others:?} \
         in {:.0?}: {} events acknowledged, 0 lost, 0 double; {} requests repeated, {} answered \
         503; {} batches sent twice, {} duplicates dropped; queries {} complete, {} partial {:?}, \
         {} unanswered, 0 wrong, the slowest {} ms; {} audits equal; failover {failovers:.1?}; \
         all served {healed:.1?} after the end",
        started.elapsed(),
        ledger.acked_total(),
        ledger.retries.load(Ordering::SeqCst),
        ledger.refused.load(Ordering::SeqCst),
        ledger.resent.load(Ordering::SeqCst),
        accounted[1],
        stats.complete.load(Ordering::SeqCst),
        stats.partial.load(Ordering::SeqCst),
        stats.reasons.lock().expect("no panic"),
        stats.unanswered.load(Ordering::SeqCst),
        stats.slowest.load(Ordering::SeqCst),
        audits.load(Ordering::SeqCst),
    );
    assert_eq!(
        cluster.log_lines("invariant violated"),
        Vec::<String>::new(),
        "a node itself saw an invariant violated"
    );
    assert_eq!(cluster.log_lines("panicked"), Vec::<String>::new(), "something panicked in a node");
    assert!(
        kills >= 3 * rounds && frozen == rounds && frozen_in_flush > 0 && !failovers.is_empty(),
        "a planned fault had no effect"
    );
    assert!(audits.load(Ordering::SeqCst) > 3, "hardly anything was audited");
    assert!(
        accounted[1] > 0
            && stats.complete.load(Ordering::SeqCst) > 0
            && stats.partial.load(Ordering::SeqCst) > 0
    );
}
