//! How a shard gets its owner: probe, claim, load. One question at a time, so that a crash, a pause
//! or another owner can come between any two.
//!
//! If no other process can own the shard, it can answer queries without a store that takes writes:
//! it reads on unclaimed from the stored checkpoint, under its last owner's epoch, and tries to
//! claim where it would flush. A claim that succeeds ends it, and it starts again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ShardDriver;
use super::command::ShardNotice;
use super::failure::{CallError, EndReason, FailureKind};
use super::gap_recovery::{GapRecovery, lost_range};
use crate::model::flush::{Claim, DedupBlock, DedupRule, DedupRules, RecentIds};
use crate::model::generation::{GenerationId, MaintainedSet};
use crate::model::offset::{Checkpoint, Epoch, LogDivergence, LogId, Offset, OffsetRange, ShardId};
use crate::model::series::{AdmittedSeries, SeriesId};
use crate::model::window::Millis;
use crate::shards::generations::{ActiveSet, AdoptedGenerations};
use crate::shards::series::{MetricNameRegistry, SeriesAdmission};
use crate::shards::state::{ShardLimits, ShardState};

/// What is fixed for a shard on a node.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ShardConfig {
    pub shard: ShardId,
    pub log: LogId,
    /// Whether only this process has access to the log, so that no other process can own the shard.
    pub exclusive: bool,
    pub limits: ShardLimits,
    /// Most series that the shard admits for one tenant: the tenant's limit divided by
    /// the number of shards.
    pub max_series: u64,
    /// Metric names of each tenant, shared by the shards of a node. `None` means no limit of names.
    pub metric_names: Option<Arc<MetricNameRegistry>>,
    /// Payload bytes read in one step. It bounds how long readers wait for the lock
    /// on the open batch.
    pub pull_bytes: usize,
}

/// What a starting shard asks for. The answer to each is the event of the same name.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartupCommand {
    /// Read the stored checkpoint.
    FindCheckpoint,
    /// Claim the shard: mint an epoch and count the attempt.
    Claim,
    /// Find the greatest append time of a record below `next` in the log, because the checkpoint
    /// does not have it.
    FindAppended { next: Offset },
    /// Read the current start and end of the log, bypassing any cached values.
    ReadBounds,
    /// Find archive objects that hold the records which the log lost.
    PlanRecovery {
        /// Archived offset of the checkpoint. The plan follows the chain of objects that continues
        /// there, because the archiver inserts the manifest rows of that chain.
        archived: Offset,
        lost: OffsetRange,
    },
    /// Read the recent ids and the admitted series, those of the generations that the shard writes
    /// too, and after all that the stored checkpoint and the de-duplication rules.
    Load { generations: Vec<GenerationId> },
    /// Store a de-duplication rule.
    RecordRule {
        epoch: Epoch,
        /// First record to which the rule applies.
        from: Offset,
        rule: DedupRule,
    },
}

/// Answers to the commands of a starting shard.
#[derive(Debug)]
#[allow(missing_docs, reason = "each answers the command of the same name")]
pub enum StartupEvent {
    /// The stored checkpoint; `None` if the shard was never claimed.
    FindCheckpoint(Result<Option<Checkpoint>, CallError>),
    Claim(Result<Claim, CallError>),
    /// The append time; `None` if the log cannot tell.
    FindAppended(Result<Option<Millis>, CallError>),
    /// Start (inclusive) and end (exclusive) of the log.
    ReadBounds(Result<(Offset, Offset), CallError>),
    /// Exclusive end of the last object, or the first part of the lost range that no object holds.
    PlanRecovery(Result<Result<Offset, OffsetRange>, CallError>),
    Load(Result<LoadedShard, CallError>),
    RecordRule(Result<(), CallError>),
}

/// What the store has of a shard.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct LoadedShard {
    /// Blocks of recent ids. Blocks beyond the horizon were deleted by the flush that
    /// knew the append times.
    pub blocks: Vec<DedupBlock>,
    /// Admitted series, by tenant.
    pub admitted: Vec<(String, AdmittedSeries)>,
    /// Series that the shard's live writer of each generation has admitted.
    pub generations: Vec<(GenerationId, Vec<SeriesId>)>,
    /// Those of the generations that nobody reads.
    pub unserved: Vec<GenerationId>,
    /// Read after the blocks and the series, so that a change of owner in between shows.
    pub checkpoint: Option<Checkpoint>,
    /// Stored de-duplication rules, read together with the checkpoint.
    pub rules: DedupRules,
}

/// A claim whose shard is still being loaded.
#[derive(Debug)]
struct PendingOwner {
    claim: Claim,
    /// The set of the claim, compiled.
    set: Arc<ActiveSet>,
    unclaimed: Option<CallError>,
    /// Exclusive end of the log, read after the claim.
    end: Offset,
    recovery: Option<GapRecovery>,
}

/// The question that is open. The first three come before a claim, to learn whether a shard that
/// stopped before can start now.
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

/// A shard that is starting.
#[derive(Debug)]
pub struct ShardStartup {
    config: ShardConfig,
    phase: ShardPhase,
}

#[allow(missing_docs, reason = "the names say it")]
/// What follows from an answer.
#[derive(Debug)]
pub enum StartupProgress {
    /// The question to ask next.
    Next(Box<ShardStartup>, StartupCommand),
    Started(Box<RunningShard>),
}

/// A shard that has loaded and can run.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug)]
pub struct RunningShard {
    pub claim: Claim,
    pub driver: ShardDriver,
    /// What to report to operators about the start.
    pub notices: Vec<ShardNotice>,
}

impl ShardStartup {
    /// Begins a start. A shard that could not be served before is probed before it is claimed,
    /// because each claim mints an epoch and counts as an attempt.
    pub fn begin(config: ShardConfig, stood_still: bool) -> (Box<Self>, StartupCommand) {
        let (phase, ask) = match stood_still {
            true => (ShardPhase::Probe, StartupCommand::FindCheckpoint),
            false => (ShardPhase::Claim, StartupCommand::Claim),
        };
        (Box::new(Self { config, phase }), ask)
    }

    /// The claim, once the shard has one.
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

    /// Takes the answer to the open question and returns the next question or the running shard.
    ///
    /// # Errors
    /// Fails if the shard cannot start, or if `event` does not answer the open question.
    pub fn handle(self: Box<Self>, event: StartupEvent) -> Result<StartupProgress, EndReason> {
        let Self { config, phase } = *self;
        match (phase, event) {
            (ShardPhase::Probe, StartupEvent::FindCheckpoint(found)) => Ok(config.probe(found?)),
            (ShardPhase::ProbeBounds(at), StartupEvent::ReadBounds(bounds)) => {
                config.probe_bounds(&at, bounds?)
            }
            (ShardPhase::ProbeArchive(lost, end), StartupEvent::PlanRecovery(planned)) => {
                // Only the verdict counts. The owner plans again after its claim, from the bounds
                // at that time.
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
                Ok(config.load(owner))
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

/// Turns a plan into the recovery of the lost range.
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
            Ok(claim) => self.owned(claim, None),
            // Only with exclusive access to the log: otherwise another process may have claimed the
            // shard, and answers under the old epoch would lag behind its commits.
            Err(why) if self.exclusive && why.is_store_unavailable() => {
                Ok(self.ask(ShardPhase::FindUnclaimed(why), StartupCommand::FindCheckpoint))
            }
            Err(why) => Err(why.into()),
        }
    }

    /// Continues unclaimed from the stored checkpoint while the store takes no writes. This start
    /// is not counted, so an event that crashes the process does so again and again until the store
    /// takes writes. A shard that never had an owner has no checkpoint to continue from.
    fn on_unclaimed(
        self,
        why: CallError,
        found: Option<Checkpoint>,
    ) -> Result<StartupProgress, EndReason> {
        let Some(checkpoint) = found.filter(|at| at.log == self.log) else {
            return Err(why.into());
        };
        self.owned(
            Claim { checkpoint, attempts: 0, suspects: Vec::new(), set: MaintainedSet::default() },
            Some(why),
        )
    }

    /// Fails if a newer build wrote the rules of a generation that the shard writes.
    fn owned(
        self,
        claim: Claim,
        unclaimed: Option<CallError>,
    ) -> Result<StartupProgress, EndReason> {
        let Checkpoint { next, appended, .. } = claim.checkpoint;
        let set = ActiveSet::compile(&claim.set).map_err(|unknown| CallError {
            kind: FailureKind::Unusable,
            message: format!("{unknown}: run the build that started this replay, or a newer one"),
        })?;
        let owner = PendingOwner { claim, set: Arc::new(set), unclaimed, end: 0, recovery: None };
        // Append times are a running maximum, which has to continue across owners.
        Ok(match appended {
            Some(_) => self.ask(ShardPhase::ReadBounds(owner), StartupCommand::ReadBounds),
            None => {
                self.ask(ShardPhase::FindAppended(owner), StartupCommand::FindAppended { next })
            }
        })
    }

    fn load(self, owner: PendingOwner) -> StartupProgress {
        let generations = owner.set.generations();
        self.ask(ShardPhase::Load(owner), StartupCommand::Load { generations })
    }

    /// The bounds are read after the claim: the previous owner may have flushed records that lie
    /// above the log end known to this node.
    fn on_bounds(
        self,
        mut owner: PendingOwner,
        bounds: (Offset, Offset),
    ) -> Result<StartupProgress, EndReason> {
        owner.end = bounds.1;
        Ok(match lost_range(&owner.claim.checkpoint, bounds)? {
            None => self.load(owner),
            Some(lost) => {
                let plan = StartupCommand::PlanRecovery {
                    archived: owner.claim.checkpoint.archived,
                    lost,
                };
                self.ask(ShardPhase::PlanRecovery(owner, lost), plan)
            }
        })
    }

    /// Fences a claim that was overtaken while loading: another owner may have claimed and flushed
    /// in between. The loaded ids would then belong to a later checkpoint, and this owner would
    /// answer queries with them until its first flush is refused.
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

    /// Stores the configured rule if it differs from the last one. It applies from the checkpoint
    /// on, for everyone who folds these records.
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
        let PendingOwner { claim, set, unclaimed, end, recovery } = owner;
        let mut admission =
            SeriesAdmission::limited(self.max_series, loaded.admitted).for_shard(self.shard);
        if let Some(names) = self.metric_names {
            admission = admission.with_metric_names(names);
        }
        let recent = RecentIds { rules: loaded.rules, blocks: loaded.blocks };
        let adopted = AdoptedGenerations { set, admitted: loaded.generations };
        let state = ShardState::new(self.limits, self.shard, &claim, recent, admission, end)
            .with_generations(adopted, self.max_series)
            .with_unserved(loaded.unserved);
        let notices = unclaimed.iter().cloned().map(ShardNotice::Unclaimed);
        let notices = notices
            .chain(recovery.map(|recovery| ShardNotice::RecoveryStarted(recovery.lost())))
            .collect();
        let driver =
            ShardDriver::new(state, claim.attempts, self.pull_bytes, recovery, unclaimed.is_some());
        RunningShard { claim, driver, notices }
    }
}
