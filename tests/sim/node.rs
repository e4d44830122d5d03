//! A node: the real slots, the real archiver, and the real driver of each shard. What the driver
//! asks for is performed in the order of the seed: a crash, a pause or another owner can come
//! between any two steps. Nothing is decided here.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rollmill::actors::archiver::Archiver;
use rollmill::actors::heal::Healing;
use rollmill::actors::shard_ports::ShardPorts;
use rollmill::actors::slots::Slots;
use rollmill::model::flush::{FlushBatch, FlushGuard};
use rollmill::model::offset::{Checkpoint, Offset, OffsetRange, ShardId};
use rollmill::model::window::Millis;
use rollmill::persistence::log::EventLog;
use rollmill::persistence::store::{RollupStore, StoreError};
use rollmill::shards::driver::startup::{
    ShardConfig, Started, Startup, StartupCommand, StartupStep,
};
use rollmill::shards::driver::{CallError, Command, EndReason, Event, FailureKind, Report};
use rollmill::shards::state::ShardState;

use crate::doubles::{checkpoint, roll};
use crate::fold::{POISON, Place};
use crate::plants::Plant;
use crate::report::{Fault, Violation, ensure};
use crate::world::World;
use rollmill::invariants::Invariant;

/// What an owner is in the middle of, and what the oracle knows of it.
#[derive(Debug, Default)]
pub struct Shell {
    pub alive: bool,
    /// Claimed, not loaded yet.
    pub starting: Option<(Box<Startup>, StartupCommand)>,
    /// Counts the lives: the outcome of a commit is for the life that began it.
    pub life: u64,
    /// The outcome of the commit, not handled yet.
    pub inbox: Option<(Offset, Result<(), CallError>)>,
    /// Not performed yet: it waits for another shard, or for its turn.
    pub asked: Option<Command>,
    /// Events of the record at this offset that are applied, one by one. Outlives the life, as the
    /// slot does.
    pub alone: Option<(Offset, u32)>,
    /// Events that this owner sets aside. Outlives the life, as the slot does.
    pub set_aside: BTreeSet<Place>,
    /// While the log lacks what comes next.
    pub archived: Option<Healing>,
    /// When the owner before it had applied everything.
    pub inherited: Option<Millis>,
    /// Its node goes on after a pause.
    pub woke: bool,
}

pub struct Node {
    pub slots: Arc<Slots>,
    pub archiver: Archiver,
    pub paused: bool,
    pub shells: Vec<Shell>,
    /// The shard that may isolate events.
    pub isolating: Option<usize>,
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

    fn ports(&self, n: usize, s: usize) -> ShardPorts {
        let (log, store, archive) = (self.log.clone(), self.store.clone(), self.archive.clone());
        ShardPorts {
            shard: ShardId(s as u32),
            log,
            store,
            archive,
            names: None,
            slots: self.nodes[n].slots.clone(),
        }
    }

    /// Starts a shard, as far as the store has to be read.
    pub fn claim(&mut self, n: usize, s: usize) -> Result<(), Violation> {
        let config = ShardConfig {
            shard: ShardId(s as u32),
            log: self.log.id(),
            exclusive: false,
            limits: self.setup.limits.clone(),
            max_series: self.setup.rules.max_series as u64,
            census: None,
            pull_bytes: self.setup.pull_bytes,
        };
        self.forget(n, s);
        let shell = &mut self.nodes[n].shells[s];
        (shell.alive, shell.starting) = (true, Some(Startup::begin(config, false)));
        self.start(n, s, |command| *command != StartupCommand::Load)?;
        let claimed = self.nodes[n].shells[s]
            .starting
            .as_ref()
            .and_then(|(startup, _)| startup.claim().cloned());
        self.note(|| format!("node {n} claims shard {s}: {claimed:?}"));
        if let Some(claim) = claimed {
            self.held_at_claim.insert(claim.checkpoint.epoch, self.log.end(ShardId(s as u32)));
        }
        Ok(())
    }

    /// Answers a starting shard for as long as these are its questions.
    fn start(
        &mut self,
        n: usize,
        s: usize,
        answered: fn(&StartupCommand) -> bool,
    ) -> Result<(), Violation> {
        let nonce = self.rng.next();
        while let Some((startup, command)) =
            self.nodes[n].shells[s].starting.take_if(|(_, command)| answered(command))
        {
            let event =
                self.ports(n, s).answer(command, nonce, &mut self.nodes[n].shells[s].archived);
            let event = self.plant_in_answer(s, startup.claim(), event);
            match startup.on(event) {
                Ok(StartupStep::Ask(startup, command)) => {
                    self.nodes[n].shells[s].starting = Some((startup, command))
                }
                Ok(StartupStep::Started(started)) => self.begin(n, s, *started),
                Err(reason) => self.ended(n, s, &reason, true)?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, n: usize, s: usize, started: Started) {
        let slots = self.nodes[n].slots.clone();
        let slot = slots.slot(ShardId(s as u32));
        let before = slot.caught_up().as_of();
        slots.begin(shard_id(s), &started.claim, started.driver);
        let shell = &mut self.nodes[n].shells[s];
        (shell.alone, shell.inherited) = (None, before);
        shell.set_aside = started
            .claim
            .suspects
            .iter()
            .filter(|x| x.deaths >= 8)
            .map(|x| (x.offset, x.index))
            .collect();
        self.convictable[s].extend(shell.set_aside.iter().copied());
    }

    /// What an owner was in the middle of is gone.
    fn forget(&mut self, n: usize, s: usize) {
        let node = &mut self.nodes[n];
        node.isolating.take_if(|isolating| *isolating == s);
        let shell = &mut node.shells[s];
        (shell.alive, shell.inbox, shell.asked, shell.starting, shell.archived) =
            (false, None, None, None, None);
        shell.life += 1;
    }

    /// The owner dies. Its slot may keep the memory until the next life, as after an error, or lose
    /// it, as after a stop.
    pub fn die(&mut self, n: usize, s: usize, why: &str) {
        self.note(|| format!("node {n} shard {s} dies: {why}"));
        self.forget(n, s);
        if self.rng.chance(500) && self.nodes[n].slots.slot(shard_id(s)).epoch().is_some() {
            self.nodes[n].slots.slot(shard_id(s)).drop_memory();
        }
    }

    /// One pulse of a living owner: as far as something has to wait.
    pub fn pulse(&mut self, n: usize, s: usize, drain: bool) -> Result<(), Violation> {
        if self.go_on(n, s)? {
            return Ok(());
        }
        self.drive(n, s, Event::Pulse)?;
        let shell = &self.nodes[n].shells[s];
        if drain && shell.alive && shell.asked.is_none() {
            self.drain(n, s)?;
        }
        self.note_progress(n, s);
        Ok(())
    }

    /// One step of the walk.
    pub fn step_once(&mut self, n: usize) -> Result<(), Violation> {
        if self.go_on(n, 0)? { Ok(()) } else { self.drive(n, 0, Event::Pulse) }
    }

    pub fn drain(&mut self, n: usize, s: usize) -> Result<(), Violation> {
        self.drive(n, s, Event::Drain)
    }

    /// Goes on with what an owner is in the middle of, if it is.
    fn go_on(&mut self, n: usize, s: usize) -> Result<bool, Violation> {
        if self.nodes[n].shells[s].starting.is_some() {
            return self.start(n, s, |_| true).map(|()| true);
        }
        self.count_zombie(n, s);
        if let Some((_, outcome)) = self.nodes[n].shells[s].inbox.take() {
            return self.drive(n, s, Event::CommitEnded(outcome)).map(|()| true);
        }
        match self.nodes[n].shells[s].asked.take() {
            Some(Command::MarkSuspect { epoch, offset, index }) => {
                let marked = self.ports(n, s).mark_suspect(epoch, offset, index);
                self.drive(n, s, marked).map(|()| true)
            }
            Some(asked) if self.nodes[n].isolating.is_some_and(|other| other != s) => {
                self.nodes[n].shells[s].asked = Some(asked);
                self.hit(Fault::IsolationAwaited);
                Ok(false)
            }
            Some(_) => {
                self.nodes[n].isolating = Some(s);
                self.drive(n, s, Event::IsolationAcquired).map(|()| true)
            }
            None => Ok(false),
        }
    }

    /// Tells the driver, and performs what it asks for.
    fn drive(&mut self, n: usize, s: usize, event: Event<'static>) -> Result<(), Violation> {
        let mut commands = VecDeque::new();
        self.tell(n, s, event, &mut commands)?;
        while let Some(command) = commands.pop_front().filter(|_| self.nodes[n].shells[s].alive) {
            if let Some(answer) = self.perform(n, s, command)? {
                self.tell(n, s, answer, &mut commands)?;
            }
        }
        Ok(())
    }

    /// One step of the driver, which may die of poison.
    fn tell(
        &mut self,
        n: usize,
        s: usize,
        event: Event<'_>,
        commands: &mut VecDeque<Command>,
    ) -> Result<(), Violation> {
        let Some(event) = self.plant_in_event(event) else { return Ok(()) };
        let slots = self.nodes[n].slots.clone();
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            slots.drive(shard_id(s), event, commands).expect("a living owner")
        }));
        if let Err(panic) = stepped {
            let why = panic
                .downcast_ref::<String>()
                .cloned()
                .or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let why = why.unwrap_or_default();
            if !why.contains("panic_on_user") {
                return Err(Violation {
                    invariant: Invariant::ExactEffect,
                    what: format!("the shard panicked: {why}"),
                });
            }
            self.hit(Fault::PoisonDeath);
            self.die(n, s, POISON);
            return Ok(());
        }
        self.nodes[n].shells[s].alone = None;
        Ok(())
    }

    /// Performs a command, or keeps it for a later step; its answer, if there is one at once.
    fn perform(
        &mut self,
        n: usize,
        s: usize,
        command: Command,
    ) -> Result<Option<Event<'static>>, Violation> {
        let Some(command) = self.plant_in_command(command) else { return Ok(None) };
        match command {
            Command::ReadLog { from, max_bytes } => {
                return Ok(Some(self.ports(n, s).read_log(from, max_bytes)));
            }
            Command::ReadArchive { from, max_bytes } => {
                let read = self.ports(n, s).read_archive(
                    &mut self.nodes[n].shells[s].archived,
                    from,
                    max_bytes,
                );
                if let Event::ArchiveRead(Ok(read)) = &read {
                    let decided =
                        read.decided.iter().flat_map(|(decisions, _)| &decisions.set_aside);
                    self.nodes[n].shells[s]
                        .set_aside
                        .extend(decided.map(|(offset, index, _)| (*offset, *index)));
                }
                return Ok(Some(read));
            }
            Command::Confirm { next } => return Ok(Some(self.ports(n, s).confirm(next))),
            Command::MarkSuspect { offset, index, .. } => {
                self.nodes[n].shells[s].alone = Some((offset, index));
                self.nodes[n].shells[s].asked = Some(command);
            }
            Command::AcquireIsolation => self.nodes[n].shells[s].asked = Some(command),
            Command::ReleaseIsolation => self.nodes[n].isolating = None,
            Command::Commit { guard, batch, forget_ids_before } => {
                let life = self.nodes[n].shells[s].life;
                self.note(|| {
                    format!(
                        "node {n} shard {s} sends commit {:?} of epoch {}",
                        guard.range, guard.epoch.counter
                    )
                });
                self.pending.push(Pending {
                    node: n,
                    shard: s,
                    life,
                    guard,
                    batch,
                    forget_ids_before,
                    blind: false,
                });
            }
            Command::Report(Report::Applied(applied)) => {
                self.nodes[n].slots.note_applied(shard_id(s), &applied);
                (0..applied.records)
                    .filter(|_| applied.from_archive)
                    .for_each(|_| self.hit(Fault::Healed));
            }
            Command::Reclaim | Command::Drained | Command::PulseAgain | Command::Report(_) => {}
            Command::End(reason) => self.ended(n, s, &reason, false)?,
        }
        Ok(None)
    }

    /// The oracle judges why an owner ends. A log that does not continue may end one that was
    /// fenced off, because its successors released what it lacks, and one on a store that was
    /// put back, because a node that does not know yet still releases by what the store said
    /// before. Nothing else explains it, and nothing at all explains it while the owner starts or
    /// reads from the archive.
    fn ended(
        &mut self,
        n: usize,
        s: usize,
        reason: &EndReason,
        starting: bool,
    ) -> Result<(), Violation> {
        match reason {
            EndReason::Overtaken { .. } => self.hit(Fault::FencedWhileLoading),
            EndReason::RolledBack { .. } => self.hit(Fault::NotConfirmed),
            _ => {}
        }
        let mine = self.nodes[n].slots.slot(shard_id(s)).epoch();
        let fenced = checkpoint(&*self.store, shard_id(s)).map(|c| c.epoch) != mine;
        let explained =
            (fenced || self.rolled_back) && !starting && self.nodes[n].shells[s].archived.is_none();
        self.die(n, s, &reason.to_string());
        let of_the_log = match reason {
            EndReason::Diverged(_) | EndReason::Unasked { .. } => true,
            EndReason::Failed(error) => {
                matches!(
                    error.kind,
                    FailureKind::Damaged | FailureKind::Unusable | FailureKind::Other
                )
            }
            EndReason::Overtaken { .. } | EndReason::RolledBack { .. } | EndReason::Reclaimed => {
                false
            }
        };
        ensure(Invariant::FailLoud, !of_the_log || explained, || {
            format!("the shard stops: {reason}")
        })
    }

    /// What the pulse does for a node's shards.
    pub fn note_progress(&mut self, n: usize, s: usize) {
        let slots = &self.nodes[n].slots;
        slots.look(shard_id(s), slots.slot(shard_id(s)));
    }

    fn count_zombie(&mut self, n: usize, s: usize) {
        let shell = &mut self.nodes[n].shells[s];
        if std::mem::take(&mut shell.woke) {
            let mine = self.nodes[n].slots.slot(shard_id(s)).epoch();
            if checkpoint(&*self.store, shard_id(s)).map(|c| c.epoch) != mine {
                self.hit(Fault::ZombieWoke);
            }
        }
    }

    /// Next offset that a living owner applies.
    pub fn next_of(&self, n: usize, s: usize) -> Offset {
        self.nodes[n].slots.slot(shard_id(s)).read(ShardState::next).expect("a living owner")
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
            let outcome = outcome.map_err(CallError::from);
            self.nodes[pending.node].shells[pending.shard].inbox =
                Some((pending.guard.range.to, outcome));
        }
        Ok(())
    }

    /// The real archiver, and the bugs of its release.
    pub fn look(&mut self, n: usize) -> Result<(), Violation> {
        let released: u64 = (0..self.setup.shards).map(|s| self.log.start(ShardId(s))).sum();
        self.nodes[n].archiver.look();
        let slots = self.nodes[n].slots.clone();
        let floors = |of: fn(&rollmill::actors::slots::Slot) -> u64| {
            slots.iter().map(|(_, slot)| of(slot)).collect::<Vec<_>>()
        };
        let floors = match self.plant {
            Some(Plant::ReleasePastArchive) => Some(floors(|slot| slot.committed())),
            Some(Plant::ReleasePastCheckpoint) => Some(floors(|slot| slot.applied())),
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

fn shard_id(s: usize) -> ShardId {
    ShardId(s as u32)
}
