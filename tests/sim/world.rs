//! One schedule: a world drawn from a seed, a scheduler that picks the next step, a phase without
//! faults, and the final checks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use rollmill::actors::archiver::{ArchiveDelays, ArchiveLimits, Archiver};
use rollmill::actors::settled_documents::PutSettlements;
use rollmill::actors::shard_table::ShardTable;
use rollmill::clock::ManualClock;
use rollmill::invariants::Invariant;
use rollmill::model::generation_keeping::GenerationKeeping;
use rollmill::model::offset::{Epoch, LogId, ShardId};
use rollmill::persistence::archive::Archive;
use rollmill::persistence::archive::memory::MemoryArchive;
use rollmill::persistence::log::memory::{self, MemoryLog};
use rollmill::persistence::log::{LogReader, ShardAssignment};
use rollmill::persistence::store::memory::StoreBackup;

use crate::client::SimRequest;
use crate::doubles::{
    FaultDice, FaultRates, SharedDice, SimArchive, SimStore, checkpoint, with_dice,
};
use crate::engine::SimEngine;
use crate::fold::{EventPosition, LoggedRecord, OracleFold};
use crate::node::{PendingCommit, SimNode, SimShard};
use crate::plants::Plant;
use crate::query::SimQuery;
use crate::releases::{OpenSettlement, SimSettlements};
use crate::replay::SimFiller;
use crate::report::{Fault, RunStats, Violation, ensure};
use crate::rng::Rng;
use crate::setup::SimSetup;

pub const LOG: LogId = LogId([9; 16]);
/// Some day at ten minutes to the hour.
const T0: i64 = 500_000 * 3_600_000 - 600_000;
/// Rounds within which everything must be applied, flushed and archived once faults have stopped. A
/// poison event costs about 15 lives.
const SETTLE_ROUNDS: usize = 6_000;

pub struct SimWorld {
    pub setup: SimSetup,
    pub rng: Rng,
    pub plant: Option<Plant>,
    pub clock: Arc<ManualClock>,
    /// How far the wall clock is off, in milliseconds.
    pub leapt: i64,
    pub now: i64,
    pub log: Arc<MemoryLog>,
    pub store: Arc<SimStore>,
    pub archive: Arc<SimArchive>,
    pub dice: SharedDice,
    pub nodes: Vec<SimNode>,
    pub pending: Vec<PendingCommit>,
    pub requests: Vec<SimRequest>,
    pub next_id: u32,
    /// Every record that the log has ever kept, by shard.
    pub history: Vec<Vec<LoggedRecord>>,
    /// The fold up to the checkpoint, by shard.
    pub oracle: Vec<OracleFold>,
    /// End of the log when a shard was claimed, by the epoch of the claim.
    pub held_at_claim: BTreeMap<Epoch, u64>,
    /// Highest epoch counter seen, by shard.
    pub epochs: Vec<u64>,
    /// Events that may be in quarantine, because a claim has reported eight deaths for them.
    pub convictable: Vec<BTreeSet<EventPosition>>,
    /// A state to which the store may be rolled back.
    pub backup: Option<(StoreBackup, Vec<SimSettlements>)>,
    /// What people have decided about events that were set aside, by shard.
    pub settlements: Vec<SimSettlements>,
    pub settling: Option<OpenSettlement>,
    pub rolled_back: bool,
    /// Manifest rows whose objects have been compared, by shard.
    pub verified: Vec<usize>,
    /// Archived offset and start of the log at the last check, by shard.
    pub archived: Vec<(u64, u64)>,
    pub query: Option<SimQuery>,
    pub fillers: Vec<SimFiller>,
    /// The highest number that a generation ever had.
    pub last_generation: u64,
    /// Whether an object of the archive has expired.
    pub expired: bool,
    pub engine: Option<SimEngine>,
    trace: Option<Vec<String>>,
}

/// Result of a schedule.
pub struct RunOutcome {
    pub stats: RunStats,
    pub violation: Option<Violation>,
    pub trace: Vec<String>,
}

/// Runs the schedule of a seed.
pub fn run(seed: u64, plant: Option<Plant>, traced: bool) -> RunOutcome {
    let mut world = SimWorld::new(seed, plant, traced);
    let violation = world
        .begin()
        .and_then(|()| world.run_steps())
        .and_then(|()| world.settle())
        .and_then(|()| world.check_everything())
        .err();
    let mut stats = with_dice(&world.dice, |dice| std::mem::take(&mut dice.stats));
    stats.schedules = 1;
    for fold in &world.oracle {
        stats.events += fold.events;
        for (fault, hits) in [
            (Fault::Deduplicated, fold.accounting.values().map(|a| a[1]).sum()),
            (Fault::Convicted, fold.quarantined.len() as u64 - fold.undecodable),
            (Fault::Undecodable, fold.undecodable),
            (Fault::Overflow, fold.overflowed),
            (Fault::HorizonExpired, fold.counted_again),
        ] {
            (0..hits).for_each(|_| stats.hit(fault));
        }
    }
    RunOutcome { stats, violation, trace: world.trace.unwrap_or_default() }
}

impl SimWorld {
    pub fn new(seed: u64, plant: Option<Plant>, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let setup = SimSetup::draw(&mut rng);
        Self::with(setup, rng, plant, traced)
    }

    pub fn with(setup: SimSetup, mut rng: Rng, plant: Option<Plant>, traced: bool) -> Self {
        let clock = ManualClock::at(T0);
        let log = MemoryLog::new(LOG, setup.shards, clock.clone());
        let dice = FaultDice {
            rng: Rng::new(rng.next()),
            rates: setup.rates,
            stats: RunStats::default(),
            next_flush: None,
            filling: false,
        };
        let dice: SharedDice = Arc::new(Mutex::new(dice));
        let drawing = dice.clone();
        log.set_faults(move || {
            with_dice(&drawing, |dice| {
                let kinds = [
                    (memory::LogFault::Refused, Fault::AppendRefused),
                    (memory::LogFault::Lost, Fault::AppendLost),
                    (memory::LogFault::ReplyLost, Fault::AppendReplyLost),
                ];
                let (fault, counted) =
                    dice.rng.chance(dice.rates.append).then(|| dice.rng.pick(&kinds))?;
                dice.stats.hit(counted);
                Some(fault)
            })
        });
        let store = SimStore::new(&dice, plant);
        let parquet = setup.parquet.then(|| Arc::new(MemoryArchive::new()) as Arc<dyn Archive>);
        let archive = SimArchive::new(parquet, &store, &dice, plant);
        let limits =
            ArchiveLimits { max_bytes: setup.object_bytes, max_delay_ms: setup.object_delay_ms };
        let node = |_| {
            let slots = ShardTable::new(log.clone(), log.assignment(), clock.clone());
            let archiver = Archiver {
                log: log.clone(),
                retention: log.clone(),
                store: store.clone(),
                archive: archive.clone(),
                clock: clock.clone(),
                limits,
                table: slots.clone(),
                delays: ArchiveDelays::default(),
            };
            let shells = (0..setup.shards).map(|_| SimShard::default()).collect();
            let keeping = GenerationKeeping::default();
            SimNode {
                table: slots,
                archiver,
                paused: false,
                shards: shells,
                isolating: None,
                keeping,
                settled: PutSettlements::default(),
            }
        };
        let shards = setup.shards as usize;
        let nodes: Vec<SimNode> = (0..setup.nodes).map(node).collect();
        let all_slots = || nodes.iter().map(|node| node.table.clone()).collect();
        let engine =
            setup.engine.then(|| SimEngine::new(store.clone(), all_slots(), clock.clone(), plant));
        Self {
            nodes,
            engine,
            rng,
            plant,
            now: T0,
            clock,
            leapt: 0,
            log,
            store,
            archive,
            dice,
            pending: Vec::new(),
            requests: Vec::new(),
            next_id: 0,
            history: vec![Vec::new(); shards],
            oracle: vec![OracleFold::default(); shards],
            held_at_claim: BTreeMap::new(),
            epochs: vec![0; shards],
            convictable: vec![BTreeSet::new(); shards],
            backup: None,
            settlements: vec![SimSettlements::default(); shards],
            settling: None,
            rolled_back: false,
            verified: vec![0; shards],
            archived: vec![(0, 0); shards],
            query: None,
            fillers: Vec::new(),
            last_generation: 0,
            expired: false,
            trace: traced.then(Vec::new),
            setup,
        }
    }

    pub fn add_trace(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>8} {}", self.now - T0, what()));
        }
    }

    pub fn shards(&self) -> usize {
        self.setup.shards as usize
    }

    /// Before anything else fails, some events kill their shard and are set aside: people are to
    /// settle them while everything goes on, and in the course of a schedule this comes late.
    fn begin(&mut self) -> Result<(), Violation> {
        if !self.setup.set_aside {
            return Ok(());
        }
        let rates = with_dice(&self.dice, |dice| std::mem::take(&mut dice.rates));
        let poison = std::mem::replace(&mut self.setup.poison, 300);
        (0..6).try_for_each(|_| self.run_client())?;
        self.settle_on(0)?;
        self.setup.poison = poison;
        with_dice(&self.dice, |dice| dice.rates = rates);
        Ok(())
    }

    fn run_steps(&mut self) -> Result<(), Violation> {
        for _ in 0..self.setup.steps {
            self.count_step();
            self.pass_time();
            self.inject_trouble()?;
            if self.rng.chance(self.setup.replay) {
                self.step_replay()?;
            }
            if self.rng.chance(self.setup.settle) {
                self.step_settlement()?;
            }
            let (n, s) = (self.rng.below(self.setup.nodes), self.rng.below(self.shards()));
            match self.rng.below(100) {
                0..20 => self.run_client()?,
                20..60 => self.run_shard(n, s)?,
                60..80 if !self.pending.is_empty() => {
                    let at = self.rng.below(self.pending.len());
                    self.deliver(at)?;
                }
                80..88 if !self.nodes[n].paused => self.run_archiver(n)?,
                88.. => self.step_query()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn count_step(&mut self) {
        with_dice(&self.dice, |dice| dice.stats.steps += 1);
    }

    pub fn set_time(&mut self, now: i64) {
        self.now = now;
        self.clock.set(now);
        // The ticker of a running node sees the new time before anything else happens.
        for n in 0..self.setup.nodes {
            if !self.nodes[n].paused {
                (0..self.shards()).for_each(|s| self.update_progress(n, s));
            }
        }
    }

    fn pass_time(&mut self) {
        let step = self.rng.below(15) as i64;
        self.set_time(self.now + step);
        if self.rng.chance(self.setup.jumps) {
            let forward = self.rng.pick(&[
                self.setup.rules.horizon_ms,
                self.setup.rules.horizon_ms + 1,
                3_600_000,
                90_000_000,
            ]);
            match self.rng.below(4) {
                // A process that is suspended while the clock goes back and forth cannot notice it,
                // so this case is left out.
                0 if self.nodes.iter().all(|node| !node.paused) => self.leap(-5_000),
                1 if self.leapt > 0 && self.nodes.iter().all(|node| !node.paused) => {
                    self.leap(-self.leapt)
                }
                2 if self.leapt <= 0 => {
                    let ahead = self.rng.pick(&[5_000, forward, 400 * 86_400_000]);
                    self.leap(ahead);
                }
                _ => {
                    self.hit(Fault::LongPause);
                    self.add_trace(|| format!("{forward} ms pass"));
                    self.set_time(self.now + forward);
                }
            }
        }
    }

    /// The wall clock leaps without time passing.
    fn leap(&mut self, by: i64) {
        self.hit(if by < 0 { Fault::ClockBack } else { Fault::ClockForward });
        self.add_trace(|| format!("the clock leaps by {by}"));
        self.leapt += by;
        self.clock.jump(by);
        self.set_time(self.now + by);
    }

    /// Injects what may go wrong at any moment.
    fn inject_trouble(&mut self) -> Result<(), Violation> {
        let (n, s) = (self.rng.below(self.setup.nodes), self.rng.below(self.shards()));
        if self.rng.chance(self.setup.pause) {
            self.add_trace(|| format!("node {n} pauses or goes on"));
            self.nodes[n].paused = !self.nodes[n].paused;
            if self.nodes[n].paused {
                self.hit(Fault::Pause);
            } else {
                self.nodes[n].shards.iter_mut().for_each(|shell| shell.woke = true);
                (0..self.shards()).for_each(|s| self.update_progress(n, s));
            }
        }
        if self.rng.chance(self.setup.rollback) {
            match self.backup.take() {
                Some(backup) if self.rng.chance(500) => self.roll_back(backup)?,
                _ => self.backup = Some((self.store.backup(), self.settlements.clone())),
            }
        }
        if self.rng.chance(self.setup.crash) {
            if self.rng.chance(600) {
                if self.nodes[n].shards[s].alive && !self.nodes[n].paused {
                    self.hit(Fault::ActorCrash);
                    self.die(n, s, "crash");
                }
            } else {
                self.crash_node(n);
            }
        }
        Ok(())
    }

    /// The store fails over to a standby that lacks commits, or is restored from a backup. The
    /// owners of shards do not notice.
    pub fn roll_back(
        &mut self,
        (backup, settlements): (StoreBackup, Vec<SimSettlements>),
    ) -> Result<(), Violation> {
        self.hit(Fault::StoreRolledBack);
        self.add_trace(|| "the store is as it was before".to_owned());
        self.store.put_back(&backup);
        self.settlements = settlements;
        self.settling = None;
        self.query = None;
        self.fillers.clear();
        self.rolled_back = true;
        // The oracle starts over: what it has folded is not in the store any more.
        self.oracle.iter_mut().for_each(|fold| *fold = OracleFold::default());
        self.epochs.iter_mut().for_each(|counter| *counter = 0);
        self.verified.iter_mut().for_each(|rows| *rows = 0);
        self.archived.iter_mut().for_each(|at| *at = (0, 0));
        self.check_store(false)
    }

    fn crash_node(&mut self, n: usize) {
        self.hit(Fault::NodeCrash);
        self.nodes[n].paused = false;
        self.nodes[n].keeping = GenerationKeeping::default();
        self.nodes[n].settled = PutSettlements::default();
        for s in 0..self.shards() {
            self.die(n, s, "its node crashed");
            self.nodes[n].table.entry(ShardId(s as u32)).drop_memory();
        }
        // Commits that were sent may still arrive, or may have died with the process.
        for at in (0..self.pending.len()).rev() {
            if self.pending[at].node == n && self.rng.chance(500) {
                self.pending.remove(at);
                self.hit(Fault::CommitDiedWithNode);
            }
        }
    }

    /// Gives a shard of a node its turn: a living owner continues, a dead one restarts, and
    /// sometimes another node takes over.
    fn run_shard(&mut self, n: usize, s: usize) -> Result<(), Violation> {
        if self.nodes[n].paused {
            return Ok(());
        }
        if self.nodes[n].shards[s].alive {
            let waits =
                self.nodes[n].shards[s].starting.is_some() && self.rng.chance(self.setup.slow_load);
            return if waits { Ok(()) } else { self.wake_shard(n, s, false) };
        }
        let elsewhere =
            (0..self.setup.nodes).any(|other| other != n && self.nodes[other].shards[s].alive);
        if elsewhere && !self.rng.chance(self.setup.takeover * 5) {
            return Ok(());
        }
        if elsewhere {
            self.hit(Fault::Takeover);
        }
        self.claim(n, s)?;
        if self.query.is_none() && self.rng.chance(300) {
            // Right after a claim an answer is most easily wrong.
            self.query = Some(self.snapshot());
        }
        Ok(())
    }

    /// Faults have stopped: everything sent has to be acknowledged, applied, flushed, archived and
    /// released in bounded time.
    fn settle(&mut self) -> Result<(), Violation> {
        self.add_trace(|| "healing".to_owned());
        with_dice(&self.dice, |dice| dice.rates = FaultRates::default());
        self.log.clear_faults();
        self.nodes.iter_mut().for_each(|node| node.paused = false);
        let survivor = self.rng.below(self.setup.nodes);
        for n in (0..self.setup.nodes).filter(|n| *n != survivor) {
            // The other owners die here; commits that they have sent are refused.
            (0..self.shards()).for_each(|s| self.die(n, s, "healing"));
        }
        self.resend_unacknowledged()?;
        self.settle_on(survivor)
    }

    /// One node does everything that there is to do.
    fn settle_on(&mut self, survivor: usize) -> Result<(), Violation> {
        for _ in 0..SETTLE_ROUNDS {
            self.set_time(self.now + 100);
            // Delivered first, so that an owner that waits for its commit handles the
            // outcome in this round.
            while !self.pending.is_empty() {
                self.deliver(0)?;
            }
            for s in 0..self.shards() {
                match self.owns(survivor, s) {
                    true => self.wake_shard(survivor, s, true)?,
                    false => self.claim(survivor, s)?,
                }
            }
            self.run_archiver(survivor)?;
            self.settle_replays(survivor)?;
            if self.settled(survivor) && self.replays_settled() {
                self.check_replays()?;
                return Ok(());
            }
        }
        let stand: Vec<_> = (0..self.setup.shards)
            .map(|s| (checkpoint(&*self.store, ShardId(s)), self.log.end(ShardId(s))))
            .collect();
        ensure(Invariant::Liveness, false, || {
            format!("not settled after {SETTLE_ROUNDS} rounds without faults: {stand:?}")
        })
    }

    /// Whether the shard's owner is on the node. A fenced owner is restarted by whoever
    /// assigns shards to nodes.
    pub fn owns(&self, n: usize, s: usize) -> bool {
        let shell = &self.nodes[n].shards[s];
        let stored = checkpoint(&*self.store, ShardId(s as u32)).map(|c| c.epoch);
        shell.alive
            && (shell.starting.is_some()
                || self.nodes[n].table.entry(ShardId(s as u32)).epoch() == stored)
    }

    fn settled(&self, n: usize) -> bool {
        self.pending.is_empty()
            && (0..self.setup.shards).all(|s| {
                let end = self.log.end(ShardId(s));
                let at = checkpoint(&*self.store, ShardId(s));
                let shell = &self.nodes[n].shards[s as usize];
                let idle = shell.alive && shell.starting.is_none() && shell.inbox.is_none();
                idle && at.is_some_and(|c| c.next == end && c.archived == end)
            })
    }
}
