//! Every schedule of a small world: two owners of one shard, four records of which one is a
//! duplicate, and a few claims, crashes and failing commits. In every state the store is checked,
//! and every living owner is asked with every snapshot taken so far.
//!
//! A state is identified by the part of its history that matters: the checkpoint, the commits on
//! their way, each owner's history, and the snapshots. It is rebuilt by repeating its choices,
//! because the real state machine cannot be copied.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use rollmill::clock::Stopwatch;
use rollmill::model::offset::ShardId;
use rollmill::persistence::store::memory::StoreFault;

use crate::doubles::{checkpoint, with_dice};
use crate::fold::SimEvent;
use crate::plants::Plant;
use crate::query::SimQuery;
use crate::report::Violation;
use crate::rng::Rng;
use crate::setup::SimSetup;
use crate::world::SimWorld;

const OWNERS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WalkChoice {
    Claim(usize),
    /// One step of a living owner: it loads, handles the outcome of its commit,
    /// or applies one record.
    Step(usize),
    /// The owner starts a flush.
    Flush(usize),
    Crash(usize),
    /// A commit reaches the store.
    Deliver(usize, Option<StoreFault>),
}

/// What may still happen.
#[derive(Debug, Clone, Copy, Hash)]
struct WalkBudget {
    claims: usize,
    crashes: usize,
    faults: usize,
}

/// What determines an owner's state: where it was claimed, what the store held when it loaded, the
/// batches it has started, and how they ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct OwnerHistory {
    claimed: Option<(u64, u64)>,
    loaded: Option<(u64, u64)>,
    next: u64,
    begun: Vec<u64>,
    ended: Vec<(u64, bool)>,
}

struct ScheduleWalk {
    world: SimWorld,
    budget: WalkBudget,
    past: [OwnerHistory; OWNERS],
    /// End of the last flush started; a failed commit takes it back.
    flushed: [u64; OWNERS],
    snapshots: Vec<SimQuery>,
    seen: HashSet<(u64, u64)>,
}

fn event(id: u32, page: usize) -> SimEvent {
    SimEvent {
        series: page,
        timestamp: 0,
        value: Some(i64::from(id)),
        user: Some(id as u8),
        id: Some(id),
        poison: false,
    }
}

impl ScheduleWalk {
    fn new(plant: Option<Plant>, budget: WalkBudget) -> Result<Self, Violation> {
        let mut rng = Rng::new(7);
        let mut setup = SimSetup::calm(&mut rng);
        setup.pull_bytes = 1;
        let mut world = SimWorld::with(setup, rng, plant, false);
        for events in [
            vec![event(1, 0), event(2, 1)],
            vec![event(3, 0)],
            vec![event(1, 0)],
            vec![event(4, 1)],
        ] {
            let request = world.request(events);
            world.requests.push(request);
            world.send(world.requests.len() - 1, false)?;
        }
        Ok(Self {
            world,
            budget,
            past: Default::default(),
            flushed: [0; OWNERS],
            snapshots: Vec::new(),
            seen: HashSet::new(),
        })
    }

    fn choices(&self) -> Vec<WalkChoice> {
        let mut choices = Vec::new();
        for n in 0..OWNERS {
            let shell = &self.world.nodes[n].shards[0];
            if shell.alive {
                let busy = shell.starting.is_some() || shell.inbox.is_some();
                let more = || self.world.next_of(n, 0) < self.world.history[0].len() as u64;
                if busy || more() {
                    choices.push(WalkChoice::Step(n));
                }
                let waits = self.world.pending.iter().any(|p| p.node == n && p.life == shell.life);
                if !busy && !waits && self.world.next_of(n, 0) > self.flushed[n] {
                    choices.push(WalkChoice::Flush(n));
                }
                if self.budget.crashes > 0 {
                    choices.push(WalkChoice::Crash(n));
                }
            } else if self.budget.claims > 0 {
                choices.push(WalkChoice::Claim(n));
            }
        }
        for at in 0..self.world.pending.len() {
            choices.push(WalkChoice::Deliver(at, None));
            if self.budget.faults > 0 {
                let faults = [
                    StoreFault::Before,
                    StoreFault::AppliedReplyLost,
                    StoreFault::NotAppliedReplyLost,
                ];
                choices.extend(faults.map(|fault| WalkChoice::Deliver(at, Some(fault))));
            }
        }
        choices
    }

    /// Takes a choice. `look` asks for the checks, which a repetition does not need.
    fn take(&mut self, choice: WalkChoice, look: bool) -> Result<(), Violation> {
        match choice {
            WalkChoice::Claim(n) => {
                self.budget.claims -= 1;
                self.world.claim(n, 0)?;
                self.past[n] = OwnerHistory { claimed: self.stored(), ..OwnerHistory::default() };
            }
            WalkChoice::Step(n) => {
                let shell = &self.world.nodes[n].shards[0];
                if let Some((startup, _)) = &shell.starting {
                    let next = startup.claim().map_or(0, |claim| claim.checkpoint.next);
                    (self.flushed[n], self.past[n].loaded) = (next, self.stored());
                } else if let Some((to, outcome)) = &shell.inbox {
                    self.past[n].ended.push((*to, outcome.is_ok()));
                    self.flushed[n] = if outcome.is_ok() { self.flushed[n] } else { 0 };
                }
                self.world.step_once(n)?;
                self.past[n].next = self.applied(n);
            }
            WalkChoice::Flush(n) => {
                self.flushed[n] = self.applied(n);
                self.past[n].begun.push(self.flushed[n]);
                self.world.drain(n, 0)?;
            }
            WalkChoice::Crash(n) => {
                self.budget.crashes -= 1;
                self.world.die(n, 0, "crash");
            }
            WalkChoice::Deliver(at, fault) => {
                self.budget.faults -= usize::from(fault.is_some());
                with_dice(&self.world.dice, |dice| dice.next_flush = fault);
                self.world.deliver(at)?;
                with_dice(&self.world.dice, |dice| dice.next_flush = None);
            }
        }
        self.take_snapshot();
        if look { self.check_snapshots() } else { Ok(()) }
    }

    fn stored(&self) -> Option<(u64, u64)> {
        checkpoint(&*self.world.store, ShardId(0)).map(|c| (c.next, c.epoch.counter))
    }

    fn applied(&self, n: usize) -> u64 {
        if self.world.nodes[n].shards[0].alive { self.world.next_of(n, 0) } else { 0 }
    }

    fn take_snapshot(&mut self) {
        if let Some((next, counter)) = self.stored()
            && self.seen.insert((counter, next))
        {
            let snapshot = self.world.snapshot_of(0, i32::MIN, i32::MAX);
            self.snapshots.push(snapshot);
        }
    }

    /// Asks every owner with every snapshot that names it.
    fn check_snapshots(&mut self) -> Result<(), Violation> {
        for n in 0..OWNERS {
            let epoch = self.world.nodes[n].table.entry(ShardId(0)).epoch();
            for snapshot in &self.snapshots {
                if epoch.is_some() && snapshot.checkpoints[0].map(|c| c.epoch) == epoch {
                    let mut query = snapshot.clone();
                    self.world.ask_node(&mut query, n);
                    self.world.judge(query)?;
                }
            }
        }
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.stored().hash(&mut hasher);
        for n in 0..OWNERS {
            let shell = &self.world.nodes[n].shards[0];
            let slot = self.world.nodes[n].table.entry(ShardId(0)).epoch().map(|e| e.counter);
            (shell.alive, shell.starting.is_some(), slot, &self.past[n]).hash(&mut hasher);
            shell
                .inbox
                .as_ref()
                .map(|(to, outcome)| (to, format!("{outcome:?}")))
                .hash(&mut hasher);
            let mine = |p: &&crate::node::PendingCommit| p.node == n;
            let sent = self.world.pending.iter().filter(mine);
            let sent = sent.map(|p| {
                (p.guard.range, p.guard.epoch.counter, p.life == shell.life && shell.alive)
            });
            sent.collect::<Vec<_>>().hash(&mut hasher);
        }
        let mut seen: Vec<_> = self.seen.iter().collect();
        seen.sort_unstable();
        (self.budget, seen).hash(&mut hasher);
        hasher.finish()
    }
}

/// Result of a walk; a violation comes with the choices that lead to it.
struct WalkResult {
    states: usize,
    transitions: u64,
    violation: Option<(Vec<WalkChoice>, Violation)>,
}

fn walk(plant: Option<Plant>, budget: WalkBudget) -> WalkResult {
    crate::quiet();
    let mut found = WalkResult { states: 1, transitions: 0, violation: None };
    let mut known = HashSet::new();
    // Breadth first, so that the first violation has one of the shortest schedules.
    let mut open: VecDeque<Vec<WalkChoice>> = [vec![]].into();
    while let Some(path) = open.pop_front() {
        let rebuilt = || -> Result<ScheduleWalk, Violation> {
            let mut walk = ScheduleWalk::new(plant, budget)?;
            path.iter().try_for_each(|choice| walk.take(*choice, false))?;
            Ok(walk)
        };
        let mut here = Some(rebuilt().expect("it was reached before"));
        let choices = here.as_ref().map(ScheduleWalk::choices).unwrap_or_default();
        for choice in choices {
            let mut next = here.take().unwrap_or_else(|| rebuilt().expect("it was reached before"));
            let mut longer = path.clone();
            longer.push(choice);
            found.transitions += 1;
            if let Err(violation) = next.take(choice, true) {
                found.violation = Some((longer, violation));
                return found;
            }
            if known.insert(next.fingerprint()) {
                found.states += 1;
                open.push_back(longer);
            }
        }
    }
    found
}

/// `ROLLMILL_SIM_WALK=3,1,1` walks further: claims, crashes, failing commits.
fn budgets() -> Vec<WalkBudget> {
    let asked = std::env::var("ROLLMILL_SIM_WALK").unwrap_or_else(|_| "2,0,1 2,1,0".to_owned());
    let parse = |text: &str| {
        let numbers: Vec<usize> =
            text.split(',').map(|n| n.parse().expect("three numbers")).collect();
        WalkBudget { claims: numbers[0], crashes: numbers[1], faults: numbers[2] }
    };
    asked.split(' ').map(parse).collect()
}

#[test]
fn every_schedule_of_two_owners_and_four_records_is_exact() {
    for budget in budgets() {
        let started = Stopwatch::start();
        let found = walk(None, budget);
        println!(
            "walk of {budget:?}: {} states, {} transitions, {:.1?}",
            found.states,
            found.transitions,
            started.elapsed()
        );
        assert!(found.violation.is_none(), "{:?}", found.violation);
        assert!(found.states > 10_000, "only {} states", found.states);
    }
}

#[test]
fn the_walk_finds_what_is_planted() {
    for plant in [
        Plant::NoFence,
        Plant::NoEpochFence,
        Plant::LoadNotChecked,
        Plant::RecentIdsNotLoaded,
        Plant::BlindRetry,
    ] {
        let found = walk(Some(plant), WalkBudget { claims: 2, crashes: 1, faults: 1 });
        let (path, violation) = found
            .violation
            .unwrap_or_else(|| panic!("{plant:?} is not found in {} states", found.states));
        println!(
            "walk, {}: {} after {} transitions: {path:?}",
            plant.text(),
            violation.invariant.id(),
            found.transitions
        );
    }
}
