//! A node: the real shard table, archiver and shard drivers. The commands of the drivers are
//! performed in an order drawn from the seed, so that a crash, a pause or another owner can come
//! between any two steps. No decisions are made here.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rollmill::actors::archiver::Archiver;
use rollmill::actors::gap_reader::GapReader;
use rollmill::actors::settled_documents::PutSettlements;
use rollmill::actors::shard_ports::ShardPorts;
use rollmill::actors::shard_table::ShardTable;
use rollmill::model::flush::{FlushBatch, FlushGuard};
use rollmill::model::generation_keeping::GenerationKeeping;
use rollmill::model::offset::{Checkpoint, Offset, OffsetRange, ShardId};
use rollmill::model::window::Millis;
use rollmill::persistence::log::{LogIdentity, LogReader, LogRetention};
use rollmill::persistence::store::{ShardStore, StoreError};
use rollmill::shards::driver::startup::{
    RunningShard, ShardConfig, ShardStartup, StartupCommand, StartupProgress,
};
use rollmill::shards::driver::{
    CallError, EndReason, FailureKind, ShardCommand, ShardEvent, ShardNotice,
};
use rollmill::shards::state::ShardState;

use crate::doubles::{checkpoint, with_dice};
use crate::fold::{EventPosition, POISON};
use crate::plants::Plant;
use crate::report::{Fault, Violation, ensure};
use crate::world::SimWorld;
use rollmill::invariants::Invariant;

/// State of an owner between its steps, and what the oracle knows about it.
#[derive(Debug, Default)]
pub struct SimShard {
    pub alive: bool,
    /// Claimed but not loaded yet.
    pub starting: Option<(Box<ShardStartup>, StartupCommand)>,
    /// Number of the life; the outcome of a commit is only for the life that sent it.
    pub life: u64,
    /// Outcome of the commit, not handled yet.
    pub inbox: Option<(Offset, Result<(), CallError>)>,
    /// A command that waits for another shard's isolation or for the next turn.
    pub pending_command: Option<ShardCommand>,
    /// Offset of a record that is applied event by event, and the number of events applied.
    /// Outlives the owner, as the entry in the shard table does.
    pub isolated: Option<(Offset, u32)>,
    /// Events that this owner quarantines. Outlives the owner, as the entry in
    /// the shard table does.
    pub quarantined: BTreeSet<EventPosition>,
    /// Present while records that the log lost are read from the archive.
    pub gap_reader: Option<GapReader>,
    /// When the previous owner had caught up with the log.
    pub inherited: Option<Millis>,
    /// Whether the node has just resumed after a pause.
    pub woke: bool,
}

pub struct SimNode {
    pub table: Arc<ShardTable>,
    pub archiver: Archiver,
    pub paused: bool,
    pub shards: Vec<SimShard>,
    /// The shard that may isolate events.
    pub isolating: Option<usize>,
    /// What the keeper of replays remembers.
    pub keeping: GenerationKeeping,
    /// What it knows to be in the archive of what people have settled.
    pub settled: PutSettlements,
}

/// A commit on its way to the store. It arrives even if its owner has died.
pub struct PendingCommit {
    pub node: usize,
    pub shard: usize,
    pub life: u64,
    pub guard: FlushGuard,
    pub batch: Arc<FlushBatch>,
    pub forget_ids_before: Millis,
    pub blind: bool,
}

impl SimWorld {
    pub fn has_plant(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    fn ports(&self, n: usize, s: usize) -> ShardPorts {
        let (log, store, archive) = (self.log.clone(), self.store.clone(), self.archive.clone());
        ShardPorts {
            shard: ShardId(s as u32),
            log,
            store,
            archive,
            metric_names: None,
            table: self.nodes[n].table.clone(),
        }
    }

    /// Starts a shard, up to the point at which it would load.
    pub fn claim(&mut self, n: usize, s: usize) -> Result<(), Violation> {
        let config = ShardConfig {
            shard: ShardId(s as u32),
            log: self.log.id(),
            exclusive: false,
            limits: self.setup.limits.clone(),
            max_series: self.setup.rules.max_series as u64,
            metric_names: None,
            pull_bytes: self.setup.pull_bytes,
        };
        self.forget(n, s);
        let shell = &mut self.nodes[n].shards[s];
        (shell.alive, shell.starting) = (true, Some(ShardStartup::begin(config, false)));
        self.start(n, s, |command| !matches!(command, StartupCommand::Load { .. }))?;
        let claimed = self.nodes[n].shards[s]
            .starting
            .as_ref()
            .and_then(|(startup, _)| startup.claim().cloned());
        self.add_trace(|| format!("node {n} claims shard {s}: {claimed:?}"));
        if let Some(claim) = claimed {
            self.held_at_claim.insert(claim.checkpoint.epoch, self.log.end(ShardId(s as u32)));
        }
        Ok(())
    }

    /// Answers the questions of a starting shard as long as `answered` accepts them.
    fn start(
        &mut self,
        n: usize,
        s: usize,
        answered: fn(&StartupCommand) -> bool,
    ) -> Result<(), Violation> {
        let nonce = self.rng.next();
        while let Some((startup, command)) =
            self.nodes[n].shards[s].starting.take_if(|(_, command)| answered(command))
        {
            let event =
                self.ports(n, s).answer(command, nonce, &mut self.nodes[n].shards[s].gap_reader);
            let event = self.plant_in_answer(s, startup.claim(), event);
            match startup.handle(event) {
                Ok(StartupProgress::Next(startup, command)) => {
                    self.nodes[n].shards[s].starting = Some((startup, command))
                }
                Ok(StartupProgress::Started(started)) => self.install_owner(n, s, *started),
                Err(reason) => self.check_end(n, s, &reason, true)?,
            }
        }
        Ok(())
    }

    fn install_owner(&mut self, n: usize, s: usize, started: RunningShard) {
        let slots = self.nodes[n].table.clone();
        let slot = slots.entry(ShardId(s as u32));
        let before = slot.caught_up().as_of();
        slots.install_owner(shard_id(s), &started.claim, started.driver);
        let shell = &mut self.nodes[n].shards[s];
        (shell.isolated, shell.inherited) = (None, before);
        shell.quarantined = started
            .claim
            .suspects
            .iter()
            .filter(|x| x.deaths >= 8)
            .map(|x| (x.offset, x.index))
            .collect();
        self.convictable[s].extend(shell.quarantined.iter().copied());
    }

    /// Drops what an owner was in the middle of.
    fn forget(&mut self, n: usize, s: usize) {
        let node = &mut self.nodes[n];
        node.isolating.take_if(|isolating| *isolating == s);
        let shell = &mut node.shards[s];
        (shell.alive, shell.inbox, shell.pending_command, shell.starting, shell.gap_reader) =
            (false, None, None, None, None);
        shell.life += 1;
    }

    /// Kills the owner. The entry may keep its memory until the next life, as after an error, or
    /// lose it, as after a stop.
    pub fn die(&mut self, n: usize, s: usize, why: &str) {
        self.add_trace(|| format!("node {n} shard {s} dies: {why}"));
        self.forget(n, s);
        if self.rng.chance(500) && self.nodes[n].table.entry(shard_id(s)).epoch().is_some() {
            self.nodes[n].table.entry(shard_id(s)).drop_memory();
        }
    }

    /// Wakes a living owner and runs it until something has to wait.
    pub fn wake_shard(&mut self, n: usize, s: usize, drain: bool) -> Result<(), Violation> {
        if self.resume(n, s)? {
            return Ok(());
        }
        self.drive(n, s, ShardEvent::Wakeup)?;
        let shell = &self.nodes[n].shards[s];
        if drain && shell.alive && shell.pending_command.is_none() {
            self.drain(n, s)?;
        }
        self.update_progress(n, s);
        Ok(())
    }

    /// One step of the exhaustive walk.
    pub fn step_once(&mut self, n: usize) -> Result<(), Violation> {
        if self.resume(n, 0)? { Ok(()) } else { self.drive(n, 0, ShardEvent::Wakeup) }
    }

    pub fn drain(&mut self, n: usize, s: usize) -> Result<(), Violation> {
        self.drive(n, s, ShardEvent::Drain)
    }

    /// Continues what an owner is in the middle of. Returns false if there is nothing.
    fn resume(&mut self, n: usize, s: usize) -> Result<bool, Violation> {
        if self.nodes[n].shards[s].starting.is_some() {
            return self.start(n, s, |_| true).map(|()| true);
        }
        self.count_zombie(n, s);
        if let Some((_, outcome)) = self.nodes[n].shards[s].inbox.take() {
            return self.drive(n, s, ShardEvent::CommitEnded(outcome)).map(|()| true);
        }
        match self.nodes[n].shards[s].pending_command.take() {
            Some(ShardCommand::MarkSuspect { epoch, offset, index }) => {
                let marked = self.ports(n, s).mark_suspect(epoch, offset, index);
                self.drive(n, s, marked).map(|()| true)
            }
            Some(asked) if self.nodes[n].isolating.is_some_and(|other| other != s) => {
                self.nodes[n].shards[s].pending_command = Some(asked);
                self.hit(Fault::IsolationAwaited);
                Ok(false)
            }
            Some(_) => {
                self.nodes[n].isolating = Some(s);
                self.drive(n, s, ShardEvent::IsolationAcquired).map(|()| true)
            }
            None => Ok(false),
        }
    }

    /// Passes an event to the driver and performs its commands.
    pub fn drive(
        &mut self,
        n: usize,
        s: usize,
        event: ShardEvent<'static>,
    ) -> Result<(), Violation> {
        let mut commands = VecDeque::new();
        self.step_driver(n, s, event, &mut commands)?;
        while let Some(command) = commands.pop_front().filter(|_| self.nodes[n].shards[s].alive) {
            if let Some(answer) = self.perform(n, s, command)? {
                self.step_driver(n, s, answer, &mut commands)?;
            }
        }
        Ok(())
    }

    /// One step of the driver, which may die of a poison event.
    fn step_driver(
        &mut self,
        n: usize,
        s: usize,
        event: ShardEvent<'_>,
        commands: &mut VecDeque<ShardCommand>,
    ) -> Result<(), Violation> {
        let Some(event) = self.plant_in_event(event) else { return Ok(()) };
        let slots = self.nodes[n].table.clone();
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
        self.nodes[n].shards[s].isolated = None;
        Ok(())
    }

    /// Performs a command, or keeps it for a later step. Returns the event that answers it, if it
    /// is available at once.
    fn perform(
        &mut self,
        n: usize,
        s: usize,
        command: ShardCommand,
    ) -> Result<Option<ShardEvent<'static>>, Violation> {
        let Some(command) = self.plant_in_command(command) else { return Ok(None) };
        match command {
            ShardCommand::ReadLog { from, max_bytes } => {
                return Ok(Some(self.ports(n, s).read_log(from, max_bytes)));
            }
            ShardCommand::ReadArchive { from, max_bytes } => {
                let read = self.ports(n, s).read_archive(
                    &mut self.nodes[n].shards[s].gap_reader,
                    from,
                    max_bytes,
                );
                if let ShardEvent::ArchiveRead(Ok(read)) = &read {
                    let decided =
                        read.decisions.iter().flat_map(|(decisions, _)| &decisions.quarantined);
                    self.nodes[n].shards[s]
                        .quarantined
                        .extend(decided.map(|(offset, index, _)| (*offset, *index)));
                }
                return Ok(Some(read));
            }
            ShardCommand::Confirm { next, set } => {
                return Ok(Some(self.ports(n, s).confirm(next, set)));
            }
            // The mark is a step of its own: a crash can come before it.
            ShardCommand::MarkSuspect { offset, index, .. } => {
                self.nodes[n].shards[s].isolated = Some((offset, index));
                self.nodes[n].shards[s].pending_command = Some(command);
            }
            ShardCommand::AcquireIsolation => {
                self.nodes[n].shards[s].pending_command = Some(command)
            }
            ShardCommand::ReleaseIsolation => self.nodes[n].isolating = None,
            // Only sent: `deliver` lets it arrive in a later step, whoever owns the shard by then.
            ShardCommand::Commit { guard, batch, forget_ids_before } => {
                let life = self.nodes[n].shards[s].life;
                self.add_trace(|| {
                    format!(
                        "node {n} shard {s} sends commit {:?} of epoch {}",
                        guard.range, guard.epoch.counter
                    )
                });
                self.pending.push(PendingCommit {
                    node: n,
                    shard: s,
                    life,
                    guard,
                    batch,
                    forget_ids_before,
                    blind: false,
                });
            }
            ShardCommand::Notify(ShardNotice::Applied(applied)) => {
                self.nodes[n].table.record_applied(shard_id(s), &applied);
                (0..applied.records)
                    .filter(|_| applied.from_archive)
                    .for_each(|_| self.hit(Fault::Healed));
            }
            ShardCommand::Reclaim
            | ShardCommand::Drained
            | ShardCommand::WakeAgain
            | ShardCommand::Notify(_) => {}
            ShardCommand::End(reason) => self.check_end(n, s, &reason, false)?,
        }
        Ok(None)
    }

    /// The oracle judges why an owner ends. A log that does not continue is explained in two cases.
    /// A fenced owner may lack what its successors have released. On a store that was rolled back,
    /// a node that has not noticed yet still releases by the earlier checkpoint. Nothing else
    /// explains it, and nothing at all does while the owner starts or reads from the archive.
    fn check_end(
        &mut self,
        n: usize,
        s: usize,
        reason: &EndReason,
        starting: bool,
    ) -> Result<(), Violation> {
        match reason {
            EndReason::Fenced { .. } => self.hit(Fault::FencedWhileLoading),
            EndReason::RolledBack { .. } => self.hit(Fault::NotConfirmed),
            _ => {}
        }
        let mine = self.nodes[n].table.entry(shard_id(s)).epoch();
        let fenced = checkpoint(&*self.store, shard_id(s)).map(|c| c.epoch) != mine;
        let explained = (fenced || self.rolled_back)
            && !starting
            && self.nodes[n].shards[s].gap_reader.is_none();
        self.die(n, s, &reason.to_string());
        let of_the_log = match reason {
            EndReason::Diverged(_) | EndReason::UnexpectedEvent { .. } => true,
            EndReason::Failed(error) => {
                matches!(
                    error.kind,
                    FailureKind::Damaged | FailureKind::Unusable | FailureKind::Other
                )
            }
            EndReason::Fenced { .. } | EndReason::RolledBack { .. } | EndReason::Reclaimed => false,
        };
        ensure(Invariant::FailLoud, !of_the_log || explained, || {
            format!("the shard stops: {reason}")
        })
    }

    /// What the ticker does for a shard of the node.
    pub fn update_progress(&mut self, n: usize, s: usize) {
        let slots = &self.nodes[n].table;
        slots.update_progress(shard_id(s), slots.entry(shard_id(s)));
    }

    fn count_zombie(&mut self, n: usize, s: usize) {
        let shell = &mut self.nodes[n].shards[s];
        if std::mem::take(&mut shell.woke) {
            let mine = self.nodes[n].table.entry(shard_id(s)).epoch();
            if checkpoint(&*self.store, shard_id(s)).map(|c| c.epoch) != mine {
                self.hit(Fault::ZombieWoke);
            }
        }
    }

    /// Next offset that a living owner applies.
    pub fn next_of(&self, n: usize, s: usize) -> Offset {
        self.nodes[n].table.entry(shard_id(s)).read_state(ShardState::next).expect("a living owner")
    }

    /// A commit reaches the store. Its owner, if it lives, learns the outcome in a later step.
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
        self.on_delivered(pending, before, outcome)
    }

    /// Checks and consequences of a commit that has reached the store.
    pub fn on_delivered(
        &mut self,
        pending: PendingCommit,
        before: Option<Checkpoint>,
        outcome: Result<(), StoreError>,
    ) -> Result<(), Violation> {
        let shard = pending.guard.shard;
        self.add_trace(|| {
            format!("commit {:?} of shard {shard}: {outcome:?}", pending.guard.range)
        });
        let shell = &self.nodes[pending.node].shards[pending.shard];
        let expected = shell.alive && shell.life == pending.life;
        if pending.batch.adopts.is_some() {
            match &outcome {
                Ok(()) => self.hit(Fault::SetAdopted),
                Err(error) if error.outcome_unknown() => self.hit(Fault::AdoptionUnknown),
                Err(_) => {}
            }
        }
        if !expected {
            self.hit(Fault::CommitOutlivedOwner);
        }
        if self.query.is_some() && outcome.is_ok() {
            self.hit(Fault::CommitDuringQuery);
        }
        self.after_commit(shard, before, &pending.guard, outcome.is_ok())?;
        if expected {
            let unknown = outcome.as_ref().err().is_some_and(StoreError::outcome_unknown);
            if unknown && self.has_plant(Plant::BlindRetry) {
                self.pending.push(PendingCommit { blind: true, ..pending });
                return Ok(());
            }
            let outcome = outcome.map_err(CallError::from);
            self.nodes[pending.node].shards[pending.shard].inbox =
                Some((pending.guard.range.to, outcome));
        }
        Ok(())
    }

    /// Runs the real archiver, and the planted bugs of its release.
    pub fn run_archiver(&mut self, n: usize) -> Result<(), Violation> {
        let released: u64 = (0..self.setup.shards).map(|s| self.log.start(ShardId(s))).sum();
        self.nodes[n].archiver.archive_due_shards();
        let slots = self.nodes[n].table.clone();
        let floors = |of: fn(&rollmill::actors::shard_table::ShardEntry) -> u64| {
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
        self.add_trace(|| format!("node {n} archives"));
        self.check_archive(false)
    }

    pub fn hit(&mut self, fault: Fault) {
        with_dice(&self.dice, |dice| dice.stats.hit(fault));
    }
}

fn shard_id(s: usize) -> ShardId {
    ShardId(s as u32)
}
