//! Shards that move between nodes while events arrive, deltas are flushed and queries run.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::actors::live::{LiveError, LiveReader, ShardFreshness};
use crate::actors::shard_table::ShardTable;
use crate::model::generation::GenerationId;
use crate::model::offset::Checkpoint;
use crate::model::rollup::Rollup;
use crate::model::served::ServedHours;
use crate::model::window::Hour;
use crate::persistence::store::memory::{StoreFault, StoreWrite};
use crate::persistence::store::{QuerySnapshot, RollupQuery};
use crate::shards::state::LiveQuery;

/// Number of moves in a run; `ROLLMILL_TEST_MOVES` overrides it.
const MOVES: u64 = 2_000;
const MOVERS: u32 = 4;
/// After so many moves a mover waits for a complete answer. Without that, a busy machine has some
/// shard on its way nearly all the time, and gives hardly any.
const MOVES_PER_ANSWER: u64 = 8;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Counts the live events of one shard.
fn live_count(
    slots: &ShardTable,
    shard: ShardId,
    checkpoint: &Checkpoint,
) -> Result<(ShardFreshness, u64), LiveError> {
    let (from, to) = (Hour(i32::MIN), Hour(i32::MAX));
    let question = LiveQuery {
        tenant: "t",
        metric: "m",
        from,
        to,
        served: &[ServedHours::ingest(from, to)],
        distinct: false,
        quantiles: false,
        overflow: false,
    };
    let mut count = 0;
    let asked = [(shard, Some(*checkpoint))];
    let mut reports =
        slots.read(&asked, &question, &[], &mut |_, _, _, rollup| count += rollup.figures.count);
    let (_, report) = reports.remove(0);
    Ok((report?, count))
}

/// The number of events in store and live deltas with its `as_of`; None if a shard did not answer.
fn count(store: &MemoryStore, nodes: &[Arc<ShardTable>]) -> Option<(Millis, u64)> {
    let mut snapshot = store.snapshot().expect("a snapshot");
    let checkpoints: BTreeMap<_, _> =
        snapshot.checkpoints().expect("checkpoints").into_iter().collect();
    let mut total = stored(&mut *snapshot).values().map(|rollup| rollup.figures.count).sum();
    drop(snapshot);
    let mut as_of = Millis::MAX;
    for shard in all() {
        let checkpoint = checkpoints.get(&shard)?;
        let (report, live) =
            nodes.iter().find_map(|slots| live_count(slots, shard, checkpoint).ok())?;
        as_of = as_of.min(report.as_of);
        total += live;
    }
    Some((as_of, total))
}

fn stored(snapshot: &mut dyn QuerySnapshot) -> BTreeMap<(Series, Hour), Rollup> {
    let mut rollups = BTreeMap::new();
    let query = RollupQuery {
        tenant: "t",
        metric: "m",
        matchers: &[],
        from: Hour(i32::MIN),
        to: Hour(i32::MAX),
        distinct: true,
        quantiles: true,
        max_series: 1_000,
        budget: None,
        generation: GenerationId::INGEST,
    };
    let mut visit = |info: &Arc<crate::model::flush::SeriesInfo>, hour, rollup| {
        assert!(
            rollups.insert((info.series.clone(), hour), rollup).is_none(),
            "one row of a series and hour"
        );
    };
    snapshot.rollups(&query, &mut visit).expect("rollups");
    rollups
}

/// The events of the run, with the times at which they were acknowledged.
#[derive(Default)]
struct Ledger {
    events: Mutex<Vec<Event>>,
    acked: Mutex<Vec<Millis>>,
    sent: AtomicU64,
    /// The number of complete answers.
    answered: AtomicU64,
    done: AtomicBool,
}

/// Ends the run even if the test panics: the runtime waits for the reader's thread.
struct EndsTheRun(Arc<Ledger>);

impl Drop for EndsTheRun {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
    }
}

impl Ledger {
    fn acked_before(&self, at: Millis) -> u64 {
        self.acked.lock().expect("whole").iter().filter(|acked| **acked < at).count() as u64
    }

    /// Sends events until the run ends, some of them twice.
    async fn write(&self, log: &MemoryLog, seed: u64) {
        let mut rng = Rng(seed);
        while !self.done.load(Ordering::Acquire) {
            let id = self.sent.fetch_add(1, Ordering::AcqRel);
            let late = rng.below(5) as i64 * 3_600_000;
            let event = Event {
                series: rng.below(SERIES),
                id,
                at: SystemClock.now() - late,
                value: rng.below(1_000) as i64 - 500,
            };
            append(log, &event).await;
            // The wall clock, as for `as_of`: append times come from a clock that may be a
            // millisecond behind it.
            self.acked.lock().expect("whole").push(SystemClock.now());
            if rng.below(4) == 0 {
                append(log, &event).await;
            }
            self.events.lock().expect("whole").push(event);
            tokio::time::sleep(Duration::from_millis(rng.below(3))).await;
        }
    }

    /// Waits for one more complete answer.
    async fn answer(&self) {
        let before = self.answered.load(Ordering::Acquire);
        until("a complete answer", || self.answered.load(Ordering::Acquire) > before).await;
    }

    /// Queries until the run ends; returns the numbers of complete and of partial answers.
    fn read(&self, store: &MemoryStore, nodes: &[Arc<ShardTable>]) -> (u64, u64) {
        let mut partial = 0;
        while !self.done.load(Ordering::Acquire) {
            let Some((as_of, counted)) = count(store, nodes) else {
                partial += 1;
                continue;
            };
            self.answered.fetch_add(1, Ordering::AcqRel);
            let (least, most) = (self.acked_before(as_of), self.sent.load(Ordering::Acquire));
            assert!(
                counted >= least,
                "{counted} are counted, but {least} were acknowledged before {as_of}"
            );
            assert!(counted <= most, "{counted} are counted, but only {most} were sent");
        }
        (self.answered.load(Ordering::Acquire), partial)
    }

    fn fold(&self) -> BTreeMap<(Series, Hour), Rollup> {
        let mut fold: BTreeMap<(Series, Hour), Rollup> = BTreeMap::new();
        for event in self.events.lock().expect("whole").iter() {
            fold.entry((event.series(), Hour::of(event.at)))
                .or_default()
                .add(Some(event.value()), event.user_hash());
        }
        fold
    }
}

/// A group coordinator: all assignments change under one lock.
struct Group {
    logs: [Arc<MemoryLog>; 2],
    assigned: Mutex<[BTreeSet<ShardId>; 2]>,
}

impl Group {
    fn set(&self, node: usize, shard: ShardId, owns: bool) {
        let mut assigned = self.assigned.lock().expect("whole");
        let changed =
            if owns { assigned[node].insert(shard) } else { assigned[node].remove(&shard) };
        if changed {
            self.logs[node].assign(assigned[node].clone());
        }
    }

    /// Moves a subset of the shards between the nodes, mostly like a healthy group, sometimes like
    /// one that has lost track of a node.
    async fn move_shards(&self, ledger: &Ledger, mover: u32, moves: u64) {
        let mut rng = Rng(u64::from(mover) + 77);
        let mut owner: BTreeMap<ShardId, usize> =
            all().into_iter().filter(|s| s.0 % MOVERS == mover).map(|s| (s, 0)).collect();
        for made in 0..moves {
            if made % MOVES_PER_ANSWER == 0 {
                ledger.answer().await;
            }
            let shard = *owner.keys().nth(rng.below(owner.len() as u64) as usize).expect("a shard");
            let (from, to) = (owner[&shard], 1 - owner[&shard]);
            if rng.below(5) == 0 {
                // The former owner learns late that it has lost the shard.
                self.set(to, shard, true);
                tokio::time::sleep(Duration::from_millis(rng.below(30))).await;
                self.set(from, shard, false);
            } else {
                self.set(from, shard, false);
                let mut held = self.logs[from].held();
                let gone = tokio::time::timeout(
                    Duration::from_secs(120),
                    held.wait_for(|held| !held.contains(&shard)),
                );
                gone.await.expect("it is let go in time").expect("the log lives");
                self.set(to, shard, true);
            }
            owner.insert(shard, to);
            tokio::time::sleep(Duration::from_millis(rng.below(8))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thousands_of_moves_lose_nothing_and_double_nothing() {
    let moves =
        std::env::var("ROLLMILL_TEST_MOVES").map_or(MOVES, |n| n.parse().expect("a number"));
    let cluster = Cluster::new();
    let logs = [cluster.log.join(), cluster.log.join()];
    let group =
        Arc::new(Group { logs: logs.clone(), assigned: Mutex::new([all(), BTreeSet::new()]) });
    logs[0].assign(all());
    let mut dice = Rng(5);
    cluster.store.set_faults(move |write| match (write, dice.below(200)) {
        (StoreWrite::Flush | StoreWrite::InsertManifestRow, 0) => {
            Some(StoreFault::AppliedReplyLost)
        }
        (StoreWrite::Flush | StoreWrite::InsertManifestRow, 1) => {
            Some(StoreFault::NotAppliedReplyLost)
        }
        (StoreWrite::Claim | StoreWrite::Flush, 2) => Some(StoreFault::Before),
        _ => None,
    });
    let nodes = [cluster.node(&logs[0], &quick()).await, cluster.node(&logs[1], &quick()).await];
    let slots: Vec<Arc<ShardTable>> = nodes.iter().map(|node| node.slots.clone()).collect();
    let ledger = Arc::new(Ledger::default());
    let _ends = EndsTheRun(ledger.clone());
    let writers: Vec<_> = (0..3)
        .map(|seed| {
            let (ledger, log) = (ledger.clone(), cluster.log.clone());
            tokio::spawn(async move { ledger.write(&log, seed).await })
        })
        .collect();
    let reader = {
        let (ledger, store, slots) = (ledger.clone(), cluster.store.clone(), slots.clone());
        tokio::task::spawn_blocking(move || ledger.read(&store, &slots))
    };
    let movers = (0..MOVERS).map(|mover| {
        let (group, ledger) = (group.clone(), ledger.clone());
        let moves = moves / u64::from(MOVERS);
        tokio::spawn(async move { group.move_shards(&ledger, mover, moves).await })
    });
    for mover in futures::future::join_all(movers).await {
        mover.expect("the mover gets through");
    }
    ledger.done.store(true, Ordering::Release);
    for writer in writers {
        writer.await.expect("the writer gets through");
    }
    let (complete, partial) = reader.await.expect("the reader gets through");
    assert!(
        complete > 50 && partial > 0,
        "{complete} complete, {partial} partial answers: nothing was shown"
    );

    let total = ledger.sent.load(Ordering::Acquire);
    until("every event is counted", || {
        count(&cluster.store, &slots).is_some_and(|(_, counted)| counted == total)
    })
    .await;
    cluster.store.clear_faults();
    // After a stop, a busy machine may have unflushed records left in the log.
    until("everything is flushed", || is_flushed(&cluster)).await;
    for node in nodes {
        node.stop().await.expect("stops");
    }
    check(&cluster, &ledger, &logs);
}

fn is_flushed(cluster: &Cluster) -> bool {
    let checkpoints =
        cluster.store.snapshot().expect("a snapshot").checkpoints().expect("checkpoints");
    checkpoints.iter().all(|(shard, checkpoint)| checkpoint.next == cluster.log.end(*shard))
}

/// The store is the fold of the log, archived objects tile the offsets, and no node holds a shard.
fn check(cluster: &Cluster, ledger: &Ledger, logs: &[Arc<MemoryLog>]) {
    assert!(logs.iter().all(|log| log.held().borrow().is_empty()));
    let mut snapshot = cluster.store.snapshot().expect("a snapshot");
    let (stored, fold) = (stored(&mut *snapshot), ledger.fold());
    assert_eq!(stored.len(), fold.len());
    for (key, rollup) in &fold {
        assert_eq!(stored.get(key), Some(rollup), "{key:?}");
    }
    let mut archived = 0;
    for (shard, checkpoint) in snapshot.checkpoints().expect("checkpoints") {
        assert_eq!(checkpoint.next, cluster.log.end(shard), "shard {shard} is flushed to its end");
        let rows = snapshot.manifest(Some(shard)).expect("the manifest");
        let tiled =
            rows.iter().try_fold(0, |at, row| (row.range.from == at).then_some(row.range.to));
        assert_eq!(tiled, Some(checkpoint.archived), "the manifest tiles shard {shard}");
        assert!(
            cluster.log.start(shard) <= checkpoint.archived.min(checkpoint.next),
            "shard {shard} was released too far"
        );
        archived += checkpoint.archived;
    }
    assert!(archived > 0, "nothing was archived");
}

const QUICK: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_hands_over_within_two_seconds() {
    // The best of a few: on a busy machine a single one may be slow.
    let mut took = vec![hand_over().await];
    while took.len() < 4 && took.last() >= Some(&QUICK) {
        took.push(hand_over().await);
    }
    assert!(took.last() < Some(&QUICK), "it took {took:?}");
}

async fn hand_over() -> Duration {
    let cluster = Cluster::new();
    let logs = [cluster.log.join(), cluster.log.join()];
    logs[0].assign(all());
    let config = quick().with(|c| {
        (c.flush.interval, c.shards.handover) = (Duration::from_secs(3_600), Duration::from_secs(1))
    });
    let (first, second) =
        (cluster.node(&logs[0], &config).await, cluster.node(&logs[1], &config).await);
    for id in 0..500 {
        append(&cluster.log, &some_event(id)).await;
    }
    until_applied(&cluster, &first, 500).await;
    let began = Stopwatch::start();
    let stopping = tokio::spawn(first.stop());
    for shard in all() {
        logs[0].assign(BTreeSet::new());
        let mut held = logs[0].held();
        held.wait_for(|held| !held.contains(&shard)).await.expect("the log lives");
    }
    logs[1].assign(all());
    let slots = [second.slots.clone()];
    until("served elsewhere", || {
        count(&cluster.store, &slots).is_some_and(|(_, counted)| counted == 500)
    })
    .await;
    let took = began.elapsed();
    stopping.await.expect("no panic").expect("stops");
    second.stop().await.expect("stops");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_and_went_before_anybody_looked_is_let_go_too() {
    let cluster = Cluster::new();
    let log = cluster.log.join();
    let node = cluster.node(&log, &quick()).await;
    for _ in 0..200 {
        log.assign(all());
        log.assign(BTreeSet::new());
        let mut held = log.held();
        let gone =
            tokio::time::timeout(Duration::from_secs(120), held.wait_for(|held| held.is_empty()));
        gone.await.expect("let go in time").expect("the log lives");
    }
    node.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_does_not_hold_shards_back() {
    let mut took = vec![let_go_beside_a_store_that_hangs().await];
    while took.len() < 4 && took.last() >= Some(&QUICK) {
        took.push(let_go_beside_a_store_that_hangs().await);
    }
    assert!(took.last() < Some(&QUICK), "let go after {took:?}");
}

/// Waits until a node has applied this many events. Freshness alone may be that of a moment ago.
async fn until_applied(cluster: &Cluster, node: &Node, events: u64) {
    let slots = [node.slots.clone()];
    until("applied", || {
        count(&cluster.store, &slots).is_some_and(|(_, counted)| counted == events)
    })
    .await;
}

async fn let_go_beside_a_store_that_hangs() -> Duration {
    let cluster = Cluster::new();
    let log = cluster.log.join();
    log.assign(all());
    let config = quick().with(|c| {
        (c.flush.interval, c.shards.handover) =
            (Duration::from_secs(3_600), Duration::from_millis(100))
    });
    let node = cluster.node(&log, &config).await;
    for id in 0..100 {
        append(&cluster.log, &some_event(id)).await;
    }
    until_applied(&cluster, &node, 100).await;
    let (go_on, wait) = std::sync::mpsc::sync_channel::<()>(0);
    // Dropping the sender releases all blocked calls.
    cluster.store.set_faults(move |_| {
        let _released = wait.recv();
        None
    });
    let began = Stopwatch::start();
    log.assign(BTreeSet::new());
    log.held().wait_for(|held| held.is_empty()).await.expect("the log lives");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(100), "let go after {took:?}");
    assert!(
        all().into_iter().all(|shard| node.slots.entry(shard).epoch().is_none()),
        "the slots are empty"
    );
    drop(go_on);
    log.assign(all());
    let slots = [node.slots.clone()];
    until("served again", || {
        count(&cluster.store, &slots).is_some_and(|(_, counted)| counted == 100)
    })
    .await;
    node.stop().await.expect("stops");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_both_believe_to_own_a_shard_do_not_fight_over_it() {
    let cluster = Cluster::new();
    let (log, other) = (cluster.log.join(), cluster.log.join());
    let config = quick().with(|c| c.shards.refused_delay = Duration::from_secs(300));
    log.assign(all());
    let (stale, owner) = (cluster.node(&log, &config).await, cluster.node(&other, &config).await);
    let owns_all =
        |node: &Node| all().into_iter().all(|shard| node.slots.entry(shard).epoch().is_some());
    // A node is there before it has claimed anything: who claims last has the shard.
    until("claimed", || owns_all(&stale)).await;
    other.assign(all());
    until("taken over", || owns_all(&owner)).await;
    for id in 0..200 {
        append(&cluster.log, &some_event(id)).await;
    }
    until("the stale owner is refused", || {
        all().into_iter().all(|shard| stale.slots.entry(shard).epoch().is_none())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let epochs = |cluster: &Cluster| -> Vec<u64> {
        let checkpoints =
            cluster.store.snapshot().expect("a snapshot").checkpoints().expect("checkpoints");
        checkpoints.into_iter().map(|(_, checkpoint)| checkpoint.epoch.counter).collect()
    };
    assert_eq!(epochs(&cluster), vec![2; SHARDS as usize], "each was claimed once by each");
    let slots = [owner.slots.clone()];
    until("the owner counts", || {
        count(&cluster.store, &slots).is_some_and(|(_, counted)| counted == 200)
    })
    .await;
    // The group has the last word: the stale owner gives the shard up and claims nothing.
    log.assign(BTreeSet::new());
    log.held().wait_for(|held| held.is_empty()).await.expect("the log lives");
    assert_eq!(epochs(&cluster), vec![2; SHARDS as usize]);
    // The reverse: an owner in back-off after a refused claim starts at once when the assignment
    // changes.
    log.assign([ShardId(0)].into());
    until("taken back", || stale.slots.entry(ShardId(0)).epoch().is_some()).await;
    for node in [stale, owner] {
        node.stop().await.expect("stops");
    }
}
