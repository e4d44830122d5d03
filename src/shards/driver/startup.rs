//! How a shard gets its owner: probe, claim, load, confirm. One question at a time, so that a
//! crash, a pause or another owner can come between any two.
//!
//! Where no other process can own the shard, it does not need a store that takes writes to answer
//! queries: unclaimed, it reads on from the stored checkpoint under its last owner's epoch, and
//! where it would flush it tries to claim. Once that works, it starts anew.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ShardDriver;
use super::command::ShardNotice;
use super::failure::{CallError, EndReason};
use super::gap_recovery::{GapRecovery, lost_range};
use crate::model::flush::{Claim, DedupBlock, DedupRule, DedupRules, RecentIds};
use crate::model::offset::{Checkpoint, Epoch, LogDivergence, LogId, Offset, OffsetRange, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::Millis;
use crate::shards::series::{MetricNameRegistry, SeriesAdmission};
use crate::shards::state::{ShardLimits, ShardState};

/// What is fixed for a shard on a node.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// The shard.
    pub shard: ShardId,
    /// The log of its records.
    pub log: LogId,
    /// Whether this process alone has the log, so that no other can own the shard.
    pub exclusive: bool,
    /// Its limits.
    pub limits: ShardLimits,
    /// Series of one tenant that it admits: the tenant's limit divided over the shards.
    pub max_series: u64,
    /// The metric names of each tenant, shared by the shards of a node.
    pub metric_names: Option<Arc<MetricNameRegistry>>,
    /// Payload bytes read in one step: bounds how long readers wait for the open batch.
    pub pull_bytes: usize,
}

/// What a starting shard asks for. Each question has one answer, the event of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupCommand {
    /// Read the stored checkpoint.
    FindCheckpoint,
    /// Claim the shard: mint an epoch, count the attempt.
    Claim,
    /// Learn the greatest append time of a record below `next` from the log, because the checkpoint
    /// does not say it.
    FindAppended {
        /// The checkpoint.
        next: Offset,
    },
    /// Learn where the log starts and ends as of now, whatever was known before.
    ReadBounds,
    /// Find objects of the archive that hold the records which the log lost.
    PlanRecovery {
        /// The archived offset of the checkpoint: the archiver notes the objects of the chain from
        /// there.
        archived: Offset,
        /// What the log lost.
        lost: OffsetRange,
    },
    /// Read the recent ids and the admitted series, and after these the stored checkpoint and the
    /// rules of de-duplication.
    Load,
    /// Note a rule of de-duplication.
    RecordRule {
        /// The owner.
        epoch: Epoch,
        /// The first record that it decides.
        from: Offset,
        /// The rule.
        rule: DedupRule,
    },
}

/// What a starting shard is told.
#[derive(Debug)]
pub enum StartupEvent {
    /// The stored checkpoint; none of a shard that was never claimed.
    FindCheckpoint(Result<Option<Checkpoint>, CallError>),
    /// The claim.
    Claim(Result<Claim, CallError>),
    /// The append time; none if the log cannot tell.
    FindAppended(Result<Option<Millis>, CallError>),
    /// Start and end of the log.
    ReadBounds(Result<(Offset, Offset), CallError>),
    /// Where the last of the objects ends, or the first part of what was lost that is in none.
    PlanRecovery(Result<Result<Offset, OffsetRange>, CallError>),
    /// What the store has of the shard.
    Load(Result<LoadedShard, CallError>),
    /// The rule is noted.
    RecordRule(Result<(), CallError>),
}

/// What the store has of a shard.
#[derive(Debug)]
pub struct LoadedShard {
    /// The blocks of ids. Those beyond the horizon were deleted by the flush that knew the append
    /// times.
    pub blocks: Vec<DedupBlock>,
    /// The admitted series, by tenant.
    pub admitted: Vec<(String, Vec<SeriesId>)>,
    /// The checkpoint, read after both.
    pub checkpoint: Option<Checkpoint>,
    /// The rules of de-duplication that are noted, read with the checkpoint.
    pub rules: DedupRules,
}

/// An owner that is not complete yet.
#[derive(Debug)]
struct PendingOwner {
    claim: Claim,
    unclaimed: Option<CallError>,
    end: Offset,
    recovery: Option<GapRecovery>,
}

/// Which question is open.
#[derive(Debug)]
enum ShardPhase {
    Probe,
    ProbeBounds(Checkpoint),
    ProbeArchive(OffsetRange, Offset),
    Claim,
    FindUnclaimed(CallError),
    FindAppended(PendingOwner),
    ReadBounds(PendingOwner),
    PlanRecovery(PendingOwner, OffsetRange),
    Load(PendingOwner),
    RecordRules(PendingOwner, LoadedShard, VecDeque<(Offset, DedupRule)>),
}

/// A shard that is being started.
#[derive(Debug)]
pub struct ShardStartup {
    config: ShardConfig,
    phase: ShardPhase,
}

/// What follows from an answer.
#[derive(Debug)]
pub enum StartupProgress {
    /// The next question.
    Next(Box<ShardStartup>, StartupCommand),
    /// The shard has its owner.
    Started(Box<RunningShard>),
}

/// A shard that has its owner.
#[derive(Debug)]
pub struct RunningShard {
    /// The claim.
    pub claim: Claim,
    /// What runs it.
    pub driver: ShardDriver,
    /// What people should know.
    pub notices: Vec<ShardNotice>,
}

impl ShardStartup {
    /// A shard that could not be served before is probed before it is claimed: each claim is a new
    /// epoch, and counts as an attempt.
    pub fn begin(config: ShardConfig, stood_still: bool) -> (Box<Self>, StartupCommand) {
        let (phase, ask) = match stood_still {
            true => (ShardPhase::Probe, StartupCommand::FindCheckpoint),
            false => (ShardPhase::Claim, StartupCommand::Claim),
        };
        (Box::new(Self { config, phase }), ask)
    }

    /// The claim, once there is one.
    pub fn claim(&self) -> Option<&Claim> {
        match &self.phase {
            ShardPhase::FindAppended(owner)
            | ShardPhase::ReadBounds(owner)
            | ShardPhase::PlanRecovery(owner, _)
            | ShardPhase::Load(owner)
            | ShardPhase::RecordRules(owner, ..) => Some(&owner.claim),
            _ => None,
        }
    }

    /// The next question, or the owner.
    ///
    /// # Errors
    /// If the shard cannot start.
    pub fn handle(self: Box<Self>, event: StartupEvent) -> Result<StartupProgress, EndReason> {
        let Self { config, phase } = *self;
        match (phase, event) {
            (ShardPhase::Probe, StartupEvent::FindCheckpoint(found)) => Ok(config.probe(found?)),
            (ShardPhase::ProbeBounds(at), StartupEvent::ReadBounds(bounds)) => {
                config.probe_bounds(&at, bounds?)
            }
            (ShardPhase::ProbeArchive(lost, end), StartupEvent::PlanRecovery(planned)) => {
                recovery(lost, end, planned?)?;
                Ok(config.ask(ShardPhase::Claim, StartupCommand::Claim))
            }
            (ShardPhase::Claim, StartupEvent::Claim(claimed)) => config.on_claimed(claimed),
            (ShardPhase::FindUnclaimed(why), StartupEvent::FindCheckpoint(found)) => {
                config.on_unclaimed(why, found?)
            }
            (ShardPhase::FindAppended(mut owner), StartupEvent::FindAppended(appended)) => {
                owner.claim.checkpoint.appended = appended?;
                Ok(config.ask(ShardPhase::ReadBounds(owner), StartupCommand::ReadBounds))
            }
            (ShardPhase::ReadBounds(owner), StartupEvent::ReadBounds(bounds)) => {
                config.on_bounds(owner, bounds?)
            }
            (ShardPhase::PlanRecovery(mut owner, lost), StartupEvent::PlanRecovery(planned)) => {
                owner.recovery = Some(recovery(lost, owner.end, planned?)?);
                Ok(config.ask(ShardPhase::Load(owner), StartupCommand::Load))
            }
            (ShardPhase::Load(owner), StartupEvent::Load(loaded)) => {
                config.on_loaded(owner, loaded?)
            }
            (ShardPhase::RecordRules(owner, loaded, due), StartupEvent::RecordRule(noted)) => {
                noted?;
                config.on_recorded(owner, loaded, due)
            }
            (_, event) => {
                Err(EndReason::UnexpectedEvent { shard: config.shard, event: event.name() })
            }
        }
    }
}

impl StartupEvent {
    fn name(&self) -> &'static str {
        match self {
            StartupEvent::FindCheckpoint(_) => "a checkpoint",
            StartupEvent::Claim(_) => "a claim",
            StartupEvent::FindAppended(_) => "an append time",
            StartupEvent::ReadBounds(_) => "the log's bounds",
            StartupEvent::PlanRecovery(_) => "a plan of recovery",
            StartupEvent::Load(_) => "what the store has",
            StartupEvent::RecordRule(_) => "a rule noted",
        }
    }
}

/// The recovery of what the log lost, as it was planned.
fn recovery(
    lost: OffsetRange,
    end: Offset,
    planned: Result<Offset, OffsetRange>,
) -> Result<GapRecovery, LogDivergence> {
    GapRecovery::new(
        lost,
        planned.map_err(|missing| LogDivergence::LostRecords { lost, missing })?,
        end,
    )
}

impl ShardConfig {
    fn ask(self, phase: ShardPhase, command: StartupCommand) -> StartupProgress {
        StartupProgress::Next(Box::new(ShardStartup { config: self, phase }), command)
    }

    /// A checkpoint of another log is left to the claim, which refuses it.
    fn probe(self, found: Option<Checkpoint>) -> StartupProgress {
        match found.filter(|at| at.log == self.log) {
            Some(at) => self.ask(ShardPhase::ProbeBounds(at), StartupCommand::ReadBounds),
            None => self.ask(ShardPhase::Claim, StartupCommand::Claim),
        }
    }

    fn probe_bounds(
        self,
        at: &Checkpoint,
        bounds: (Offset, Offset),
    ) -> Result<StartupProgress, EndReason> {
        Ok(match lost_range(at, bounds)? {
            None => self.ask(ShardPhase::Claim, StartupCommand::Claim),
            Some(lost) => {
                let plan = StartupCommand::PlanRecovery { archived: at.archived, lost };
                self.ask(ShardPhase::ProbeArchive(lost, bounds.1), plan)
            }
        })
    }

    fn on_claimed(self, claimed: Result<Claim, CallError>) -> Result<StartupProgress, EndReason> {
        match claimed {
            Ok(claim) => Ok(self.owned(claim, None)),
            Err(why) if self.exclusive && why.is_store_unavailable() => {
                Ok(self.ask(ShardPhase::FindUnclaimed(why), StartupCommand::FindCheckpoint))
            }
            Err(why) => Err(why.into()),
        }
    }

    /// Goes on from the checkpoint as it stands, of a store that takes no writes. Nobody counts
    /// this start: an event that crashes the process does so again until the store can be
    /// written. A shard that never had an owner has nothing to go on from.
    fn on_unclaimed(
        self,
        why: CallError,
        found: Option<Checkpoint>,
    ) -> Result<StartupProgress, EndReason> {
        let Some(checkpoint) = found.filter(|at| at.log == self.log) else {
            return Err(why.into());
        };
        Ok(self.owned(Claim { checkpoint, attempts: 0, suspects: Vec::new() }, Some(why)))
    }

    fn owned(self, claim: Claim, unclaimed: Option<CallError>) -> StartupProgress {
        let Checkpoint { next, appended, .. } = claim.checkpoint;
        let owner = PendingOwner { claim, unclaimed, end: 0, recovery: None };
        match appended {
            Some(_) => self.ask(ShardPhase::ReadBounds(owner), StartupCommand::ReadBounds),
            None => {
                self.ask(ShardPhase::FindAppended(owner), StartupCommand::FindAppended { next })
            }
        }
    }

    /// The bounds are read after the claim: the owner before may have flushed what this node has
    /// not heard of yet.
    fn on_bounds(
        self,
        mut owner: PendingOwner,
        bounds: (Offset, Offset),
    ) -> Result<StartupProgress, EndReason> {
        owner.end = bounds.1;
        Ok(match lost_range(&owner.claim.checkpoint, bounds)? {
            None => self.ask(ShardPhase::Load(owner), StartupCommand::Load),
            Some(lost) => {
                let plan = StartupCommand::PlanRecovery {
                    archived: owner.claim.checkpoint.archived,
                    lost,
                };
                self.ask(ShardPhase::PlanRecovery(owner, lost), plan)
            }
        })
    }

    /// Another owner may have claimed and flushed between the claim and what was loaded. That would
    /// be of a later checkpoint, and this owner would answer queries with it until its first
    /// flush is refused.
    fn on_loaded(
        self,
        owner: PendingOwner,
        loaded: LoadedShard,
    ) -> Result<StartupProgress, EndReason> {
        if loaded.checkpoint.is_none_or(|at| at.epoch != owner.claim.checkpoint.epoch) {
            return Err(EndReason::Fenced { shard: self.shard });
        }
        let due =
            loaded.rules.pending_changes(owner.claim.checkpoint.next, self.limits.dedup_rule());
        Ok(self.next_rule(owner, loaded, due.into()))
    }

    fn on_recorded(
        self,
        owner: PendingOwner,
        mut loaded: LoadedShard,
        mut due: VecDeque<(Offset, DedupRule)>,
    ) -> Result<StartupProgress, EndReason> {
        if let Some((from, rule)) = due.pop_front() {
            loaded.rules.record(from, rule);
        }
        Ok(self.next_rule(owner, loaded, due))
    }

    /// Notes the configured rule, if it is another one than before: it decides from the checkpoint
    /// on, for whoever folds the records.
    fn next_rule(
        self,
        owner: PendingOwner,
        loaded: LoadedShard,
        due: VecDeque<(Offset, DedupRule)>,
    ) -> StartupProgress {
        let epoch = owner.claim.checkpoint.epoch;
        match due.front().copied() {
            Some((from, rule)) => self.ask(
                ShardPhase::RecordRules(owner, loaded, due),
                StartupCommand::RecordRule { epoch, from, rule },
            ),
            None => StartupProgress::Started(Box::new(self.started(owner, loaded))),
        }
    }

    fn started(self, owner: PendingOwner, loaded: LoadedShard) -> RunningShard {
        let PendingOwner { claim, unclaimed, end, recovery } = owner;
        let mut admission =
            SeriesAdmission::limited(self.max_series, loaded.admitted).for_shard(self.shard);
        if let Some(census) = self.metric_names {
            admission = admission.with_metric_names(census);
        }
        let recent = RecentIds { rules: loaded.rules, blocks: loaded.blocks };
        let state = ShardState::new(self.limits, self.shard, &claim, recent, admission, end);
        let reports = unclaimed.iter().cloned().map(ShardNotice::Unclaimed);
        let reports = reports
            .chain(recovery.map(|recovery| ShardNotice::RecoveryStarted(recovery.lost())))
            .collect();
        let driver =
            ShardDriver::new(state, claim.attempts, self.pull_bytes, recovery, unclaimed.is_some());
        RunningShard { claim, driver, notices: reports }
    }
}
