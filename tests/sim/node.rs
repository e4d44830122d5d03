//! A node: the real slots and the real archiver, and a synchronous mirror of the shard actor's shell (`src/actors/shard.rs`).
//!
//! Every effect of the state machine is a step of its own, so that a crash, a pause or another owner can come between any two.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rollmill::actors::archiver::Archiver;
use rollmill::actors::heal::{Archived, Healing, resume};
use rollmill::actors::slots::Slots;
use rollmill::clock::Clock;
use rollmill::model::flush::{Claim, FlushBatch, FlushGuard, LogRecord, RecentIds};
use rollmill::model::offset::{Checkpoint, Offset, OffsetRange, ShardId};
use rollmill::model::window::{Hour, Millis};
use rollmill::persistence::archive::ArchiveError;
use rollmill::persistence::log::EventLog;
use rollmill::persistence::store::{RollupStore, StoreError};
use rollmill::shards::series::Admission;
use rollmill::shards::state::{Effect, Input, ShardState};

use crate::doubles::{checkpoint, roll};
use crate::fold::{POISON, Place};
use crate::plants::Plant;
use crate::report::{Fault, Violation, ensure};
use crate::world::World;
use rollmill::invariants::Invariant;

/// What the mirror of a shard's shell keeps.
#[derive(Debug, Default)]
pub struct Shell {
    pub alive: bool,
    /// Claimed, not loaded yet.
    pub loading: Option<Claim>,
    /// Counts the lives: the outcome of a commit is for the life that began it.
    pub life: u64,
    /// The outcome of the commit, not handled yet.
    pub inbox: Option<(Offset, Result<(), StoreError>)>,
    /// An effect not carried out yet: note this event in the store, then go on.
    pub mark: Option<(Offset, u32)>,
    /// Events of the record at this offset that are applied, one by one. Outlives the life, as the slot does.
    pub alone: Option<(Offset, u32)>,
    /// Events that this owner sets aside. Outlives the life, as the slot does.
    pub set_aside: BTreeSet<Place>,
    /// While the log lacks what comes next.
    pub healing: Option<Healing>,
    /// Its node goes on after a pause.
    pub woke: bool,
}

pub struct Node {
    pub slots: Arc<Slots>,
    pub archiver: Archiver,
    pub paused: bool,
    pub shells: Vec<Shell>,
}

/// A commit on its way to the store. It needs no living owner to get there.
pub struct Pending {
    pub node: usize,
    pub shard: usize,
    pub life: u64,
    pub guard: FlushGuard,
    pub batch: Arc<FlushBatch>,
    pub forget_ids_before: Millis,
    pub blind: bool,
}

impl World {
    pub fn plants(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    /// The first half of `ShardActor::load`.
    pub fn claim(&mut self, n: usize, s: usize) -> Result<(), Violation> {
        let shard = ShardId(s as u32);
        let nonce = self.rng.next();
        let shell = &mut self.nodes[n].shells[s];
        (shell.alive, shell.inbox, shell.mark, shell.loading) = (false, None, None, None);
        shell.life += 1;
        let claimed = self.store.claim(shard, self.log.id(), nonce);
        self.note(|| format!("node {n} claims shard {s}: {claimed:?}"));
        let Ok(mut claim) = claimed else { return Ok(()) };
        let bounds = (self.log.start(shard), self.log.end(shard));
        self.held_at_claim.insert(claim.checkpoint.epoch, bounds.1);
        let healing = resume(&*self.archive, shard, &claim.checkpoint, bounds)
            .map_err(|why| Violation { invariant: Invariant::FailLoud, what: format!("the shard stops: {why}") })?;
        match self.plant {
            Some(Plant::AttemptsForgotten) => claim.attempts = 1,
            Some(Plant::OneRecordEarly) => claim.checkpoint.next = claim.checkpoint.next.saturating_sub(1),
            Some(Plant::OneRecordLate) if claim.checkpoint.next < self.log.end(shard) => claim.checkpoint.next += 1,
            _ => {}
        }
        let shell = &mut self.nodes[n].shells[s];
        (shell.loading, shell.healing) = (Some(claim), healing.filter(|_| self.plant != Some(Plant::LossNotHealed)));
        shell.alive = true;
        Ok(())
    }

    /// The second half.
    fn load(&mut self, n: usize, s: usize, claim: Claim) {
        let shard = ShardId(s as u32);
        let recent = self.store.recent_ids(shard, i64::MIN).expect("the double answers");
        let admitted = self.store.admitted_series(shard).expect("the double answers");
        let stored = checkpoint(&*self.store, shard).map(|c| c.epoch);
        if stored != Some(claim.checkpoint.epoch) && !self.plants(Plant::LoadNotChecked) {
            self.hit(Fault::FencedWhileLoading);
            self.die(n, s, "another owner claimed while it loaded");
            return;
        }
        let mut rules = self.store.snapshot().and_then(|mut s| s.dedup_rules(shard)).expect("the double answers");
        for (from, rule) in rules.due(claim.checkpoint.next, self.setup.limits.dedup_rule()) {
            if let Err(error) = self.store.note_dedup_rule(shard, claim.checkpoint.epoch, from, rule) {
                self.die(n, s, &error.to_string());
                return;
            }
            rules.note(from, rule);
        }
        let blocks = if self.plants(Plant::RecentIdsNotLoaded) { vec![] } else { recent };
        let recent = RecentIds { rules, blocks };
        let admitted = if self.plants(Plant::AdmissionsNotLoaded) { vec![] } else { admitted };
        let admission = Admission::limited(self.setup.rules.max_series as u64, admitted);
        let state = ShardState::new(self.setup.limits.clone(), shard, &claim, recent, admission, self.log.end(shard));
        let slot = self.nodes[n].slots.slot(shard);
        let caught_up = *slot.caught_up.lock().expect("whole");
        slot.begin(&claim, state);
        if self.plants(Plant::CaughtUpRemembered) {
            *slot.caught_up.lock().expect("whole") = caught_up;
        }
        let shell = &mut self.nodes[n].shells[s];
        shell.alone = None;
        shell.set_aside = claim.suspects.iter().filter(|x| x.deaths >= 8).map(|x| (x.offset, x.index)).collect();
        self.convictable[s].extend(shell.set_aside.iter().copied());
    }

    /// The owner dies. Its slot may keep the state until the next life, as after an error, or lose it, as after a stop.
    pub fn die(&mut self, n: usize, s: usize, why: &str) {
        self.note(|| format!("node {n} shard {s} dies: {why}"));
        let shell = &mut self.nodes[n].shells[s];
        (shell.alive, shell.inbox, shell.mark, shell.loading) = (false, None, None, None);
        shell.life += 1;
        if self.rng.chance(500)
            && let Ok(mut state) = self.nodes[n].slots.slot(ShardId(s as u32)).state.write()
        {
            *state = None;
        }
    }

    /// One pulse of a living owner: as far as the next effect.
    pub fn pulse(&mut self, n: usize, s: usize, drain: bool) -> Result<(), Violation> {
        if self.go_on(n, s)? {
            return Ok(());
        }
        self.pull(n, s)?;
        if self.nodes[n].shells[s].alive && self.nodes[n].shells[s].mark.is_none() {
            self.tick(n, s, drain)?;
        }
        self.note_progress(n, s);
        Ok(())
    }

    /// One step of the walk: a pulse without its tick.
    pub fn step_once(&mut self, n: usize) -> Result<(), Violation> {
        if self.go_on(n, 0)? { Ok(()) } else { self.pull(n, 0) }
    }

    pub fn tick(&mut self, n: usize, s: usize, drain: bool) -> Result<(), Violation> {
        self.step(n, s, Input::Tick { now: self.clock.uptime(), drain })
    }

    /// Goes on with what an owner is in the middle of, if it is.
    fn go_on(&mut self, n: usize, s: usize) -> Result<bool, Violation> {
        if let Some(claim) = self.nodes[n].shells[s].loading.take() {
            self.load(n, s, claim);
            return Ok(true);
        }
        self.count_zombie(n, s);
        if let Some((to, outcome)) = self.nodes[n].shells[s].inbox.take() {
            return self.commit_ended(n, s, to, outcome).map(|()| true);
        }
        if let Some((offset, index)) = self.nodes[n].shells[s].mark.take() {
            let shard = ShardId(s as u32);
            let epoch = self.nodes[n].slots.slot(shard).epoch().expect("it is alive");
            match self.store.mark_suspect(shard, epoch, offset, index) {
                Ok(()) => self.step(n, s, Input::Records(&[]))?,
                Err(error) => self.die(n, s, &error.to_string()),
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// `ShardActor::pull`.
    fn pull(&mut self, n: usize, s: usize) -> Result<(), Violation> {
        let shard = ShardId(s as u32);
        let (next, credit) = self.with_state(n, s, |state| (state.next(), state.credit()));
        self.nodes[n].shells[s].healing.take_if(|healing| healing.is_over(next));
        if credit == 0 || next >= self.log.end(shard) {
            return Ok(());
        }
        let healing = self.nodes[n].shells[s].healing.take();
        let read = match healing {
            Some(healing) => Ok(self.read_archived(n, s, healing, next)?),
            None => self.log.read(shard, next, self.setup.pull_bytes),
        };
        let mut records = match read {
            Ok(records) => records,
            Err(why) => return self.stop(n, s, &why.to_string()),
        };
        records.truncate(credit);
        if self.plants(Plant::DedupByWallClock) {
            records.iter_mut().for_each(|record| record.appended = self.now.max(record.appended));
        }
        self.step(n, s, Input::Records(&records))?;
        if self.nodes[n].shells[s].healing.is_some() {
            return Ok(());
        }
        let bytes: usize = records.iter().map(|r: &LogRecord| r.payload.len()).sum();
        self.nodes[n].slots.slot(shard).unarchived_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(())
    }

    /// `ShardActor::read_archived`.
    fn read_archived(&mut self, n: usize, s: usize, mut healing: Healing, next: Offset) -> Result<Vec<LogRecord>, Violation> {
        let read = healing.read(&*self.archive, next, self.setup.pull_bytes);
        let Archived { records, decided } = match read {
            Err(ArchiveError::Unavailable(_)) => Archived::default(),
            read => read.map_err(|why| Violation { invariant: Invariant::FailLoud, what: format!("the shard stops: {why}") })?,
        };
        if let Some((decisions, to)) = decided {
            let places = decisions.set_aside.iter().map(|(offset, index, _)| (*offset, *index));
            self.nodes[n].shells[s].set_aside.extend(places);
            self.with_state(n, s, |state| state.learn(&decisions, to));
        }
        (0..records.len()).for_each(|_| self.hit(Fault::Healed));
        self.nodes[n].shells[s].healing = Some(healing);
        Ok(records)
    }

    /// The log does not continue: that may happen to an owner that was fenced off, because its successors released what it lacks, and to one
    /// on a store that was put back, because a node that does not know yet still releases by what the store said before.
    fn stop(&mut self, n: usize, s: usize, why: &str) -> Result<(), Violation> {
        let mine = self.nodes[n].slots.slot(ShardId(s as u32)).epoch();
        let fenced = checkpoint(&*self.store, ShardId(s as u32)).map(|c| c.epoch) != mine;
        self.die(n, s, why);
        ensure(Invariant::FailLoud, fenced || self.rolled_back, || format!("the shard stops: {why}"))
    }

    /// What the pulse does for a node's shards.
    pub fn note_progress(&mut self, n: usize, s: usize) {
        let shard = ShardId(s as u32);
        let slots = &self.nodes[n].slots;
        slots.look(shard, slots.slot(shard));
    }

    fn count_zombie(&mut self, n: usize, s: usize) {
        let shell = &mut self.nodes[n].shells[s];
        if std::mem::take(&mut shell.woke) {
            let mine = self.nodes[n].slots.slot(ShardId(s as u32)).epoch();
            if checkpoint(&*self.store, ShardId(s as u32)).map(|c| c.epoch) != mine {
                self.hit(Fault::ZombieWoke);
            }
        }
    }

    pub fn with_state<T>(&self, n: usize, s: usize, f: impl FnOnce(&mut ShardState) -> T) -> T {
        let slot = self.nodes[n].slots.slot(ShardId(s as u32));
        let mut guard = slot.state.write().expect("a living owner's state is whole");
        f(guard.as_mut().expect("a living owner has a state"))
    }

    /// One step of the state machine, which may die of poison, and its effects.
    fn step(&mut self, n: usize, s: usize, input: Input<'_>) -> Result<(), Violation> {
        let mut effects = Vec::new();
        let stepped = catch_unwind(AssertUnwindSafe(|| self.with_state(n, s, |state| state.step(input, &mut effects))));
        if let Err(panic) = stepped {
            let why = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let why = why.unwrap_or_default();
            if !why.contains("panic_on_user") {
                return Err(Violation { invariant: Invariant::ExactEffect, what: format!("the shard panicked: {why}") });
            }
            self.hit(Fault::PoisonDeath);
            self.die(n, s, POISON);
            return Ok(());
        }
        self.nodes[n].shells[s].alone = None;
        for effect in effects {
            match effect {
                Effect::Stop(diverged) => return self.stop(n, s, &diverged.to_string()),
                Effect::Confirm { .. } if self.plants(Plant::IdleNotConfirmed) => {}
                Effect::Confirm { next } => {
                    let epoch = self.with_state(n, s, |state| state.epoch());
                    let at = checkpoint(&*self.store, ShardId(s as u32));
                    let archived = self.nodes[n].slots.slot(ShardId(s as u32)).archived.load(Ordering::Acquire);
                    if !at.is_some_and(|at| at.epoch == epoch && at.next >= next && at.archived >= archived) {
                        self.hit(Fault::NotConfirmed);
                        self.die(n, s, "the store does not stand where it was left");
                        return Ok(());
                    }
                }
                Effect::MarkSuspect { offset, index } => {
                    self.nodes[n].shells[s].mark = Some((offset, index));
                    self.nodes[n].shells[s].alone = Some((offset, index));
                }
                Effect::Commit { guard, batch, forget_ids_before } => {
                    let (guard, batch) = self.alter(guard, batch);
                    let life = self.nodes[n].shells[s].life;
                    self.note(|| format!("node {n} shard {s} sends commit {:?} of epoch {}", guard.range, guard.epoch.counter));
                    self.pending.push(Pending { node: n, shard: s, life, guard, batch, forget_ids_before, blind: false });
                }
            }
        }
        let next = self.with_state(n, s, |state| state.next());
        self.nodes[n].slots.slot(ShardId(s as u32)).applied.store(next, Ordering::Release);
        Ok(())
    }

    /// Bugs at the edge of the pure code.
    fn alter(&self, mut guard: FlushGuard, batch: Arc<FlushBatch>) -> (FlushGuard, Arc<FlushBatch>) {
        match self.plant {
            Some(Plant::OneRecordEarly | Plant::OneRecordLate) => {
                let now = checkpoint(&*self.store, guard.shard).map_or(0, |c| c.next);
                if now.abs_diff(guard.range.from) == 1 {
                    guard.range = OffsetRange { from: now, to: guard.range.to.max(now) };
                }
                (guard, batch)
            }
            Some(Plant::LateEventsDropped) => {
                let mut dropped = (*batch).clone();
                let today = Hour::of(self.now).day();
                dropped.deltas.retain(|delta| delta.hour.day() >= today);
                (guard, Arc::new(dropped))
            }
            _ => (guard, batch),
        }
    }

    /// A commit reaches the store; its owner learns of it later, if it lives.
    pub fn deliver(&mut self, at: usize) -> Result<(), Violation> {
        let mut pending = self.pending.remove(at);
        let shard = pending.guard.shard;
        let before = checkpoint(&*self.store, shard);
        if pending.blind
            && let Some(now) = before
        {
            let moved = OffsetRange { from: now.next, to: now.next.max(pending.guard.range.to) };
            pending.guard = FlushGuard { range: moved, epoch: now.epoch, ..pending.guard };
        }
        let outcome = self.store.flush(pending.guard, &pending.batch, pending.forget_ids_before);
        self.delivered(pending, before, outcome)
    }

    /// What follows from a commit that reached the store.
    pub fn delivered(
        &mut self,
        pending: Pending,
        before: Option<Checkpoint>,
        outcome: Result<(), StoreError>,
    ) -> Result<(), Violation> {
        let shard = pending.guard.shard;
        self.note(|| format!("commit {:?} of shard {shard}: {outcome:?}", pending.guard.range));
        let shell = &self.nodes[pending.node].shells[pending.shard];
        let expected = shell.alive && shell.life == pending.life;
        if !expected {
            self.hit(Fault::CommitOutlivedOwner);
        }
        if self.query.is_some() && outcome.is_ok() {
            self.hit(Fault::CommitDuringQuery);
        }
        self.after_commit(shard, before, &pending.guard, outcome.is_ok())?;
        if expected {
            let unknown = outcome.as_ref().err().is_some_and(StoreError::outcome_unknown);
            if unknown && self.plants(Plant::BlindRetry) {
                self.pending.push(Pending { blind: true, ..pending });
                return Ok(());
            }
            self.nodes[pending.node].shells[pending.shard].inbox = Some((pending.guard.range.to, outcome));
        }
        Ok(())
    }

    /// `ShardActor::on_commit_ended`.
    fn commit_ended(&mut self, n: usize, s: usize, to: Offset, outcome: Result<(), StoreError>) -> Result<(), Violation> {
        match outcome {
            Ok(()) => {
                self.nodes[n].slots.slot(ShardId(s as u32)).committed.store(to, Ordering::Release);
                self.step(n, s, Input::Committed { now: self.clock.uptime() })
            }
            Err(StoreError::Failed(_) | StoreError::Unavailable(_) | StoreError::TooLong(_)) => {
                self.step(n, s, Input::CommitFailed)
            }
            Err(error) => {
                self.die(n, s, &error.to_string());
                Ok(())
            }
        }
    }

    /// The real archiver, and the bugs of its release.
    pub fn look(&mut self, n: usize) -> Result<(), Violation> {
        let released: u64 = (0..self.setup.shards).map(|s| self.log.start(ShardId(s))).sum();
        self.nodes[n].archiver.look();
        let slots = self.nodes[n].slots.clone();
        let floors = |of: fn(&rollmill::actors::slots::Slot) -> u64| slots.iter().map(|(_, slot)| of(slot)).collect::<Vec<_>>();
        let floors = match self.plant {
            Some(Plant::ReleasePastArchive) => Some(floors(|slot| slot.committed.load(Ordering::Acquire))),
            Some(Plant::ReleasePastCheckpoint) => Some(floors(|slot| slot.applied.load(Ordering::Acquire))),
            _ => None,
        };
        if let Some(floors) = floors {
            self.log.release(&floors).expect("the double releases");
        }
        if (0..self.setup.shards).map(|s| self.log.start(ShardId(s))).sum::<u64>() > released {
            self.hit(Fault::Released);
        }
        self.note(|| format!("node {n} archives"));
        self.check_archive(false)
    }

    pub fn hit(&mut self, fault: Fault) {
        roll(&self.dice, |dice| dice.stats.hit(fault));
    }
}
