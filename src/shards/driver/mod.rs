//! The shard driver makes every decision about a shard. Events in, commands out; the code that
//! performs the commands decides nothing.
//!
//! [`startup::ShardStartup`] claims and loads; [`ShardDriver`] reads, applies, commits, confirms,
//! drains, isolates suspects and recovers what the log lost. The shard actor performs the commands
//! on threads, the simulation in an order drawn from a seed.
//!
//! A commit of unknown outcome, a refusal or a diverged log ends the shard: its memory is dropped,
//! and the next start reads the checkpoint. Nothing of unknown outcome is ever retried, except a
//! claim: it writes no data, and the next one mints a new epoch.

mod command;
mod event;
mod failure;
mod gap_recovery;
pub mod startup;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use command::{AppliedRecords, ShardCommand, ShardNotice};
pub use event::{ArchivedRecords, ShardEvent, StepContext};
pub use failure::{CallError, EndReason, FailureKind};
pub use gap_recovery::{GapRecovery, lost_range};

use super::state::{ShardEffect, ShardInput, ShardState};
use crate::invariants::{Invariant, check};
use crate::model::flush::LogRecord;
use crate::model::manifest::RangeDecisions;
use crate::model::offset::{Checkpoint, LogDivergence, Offset, OffsetRange, ShardId};
use crate::model::window::Millis;

/// How long a shard waits before it reads again from a log that is damaged at its position, in case
/// somebody has repaired it.
const DAMAGED_RETRY_MS: i64 = 5_000;

/// Whether the shard holds the node's isolation permit, which lets it apply events one by one. Only
/// one shard of a node holds it at a time, so that a crash of the process incriminates one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isolation {
    Released,
    /// Waiting for the permit to mark this event.
    Waiting {
        offset: Offset,
        index: u32,
    },
    /// Held from the first mark of a record until the flush of that record has cleared the mark.
    Held,
}

/// Runs an owned shard.
#[derive(Debug)]
pub struct ShardDriver {
    state: ShardState,
    pull_bytes: usize,
    recovery: Option<GapRecovery>,
    /// The store took no claim at the start; the shard tries to claim where it would flush.
    unclaimed: bool,
    isolation: Isolation,
    /// When the log was found to be damaged at the next record. Reading pauses for a while.
    damaged_since: Option<Millis>,
    committing_range: Option<OffsetRange>,
    /// Exclusive end of what is in the store.
    committed: Offset,
    /// Starts at this checkpoint without progress; 0 once this owner has committed.
    attempts: u32,
    /// `Drained` is due as soon as the commit in flight has ended.
    draining: bool,
    /// Empty between events; kept to reuse its allocation.
    effects: Vec<ShardEffect>,
}

/// For a shard that was not claimed: recomputation and tests.
impl From<ShardState> for ShardDriver {
    fn from(state: ShardState) -> Self {
        Self::new(state, 1, usize::MAX, None, false)
    }
}

impl ShardDriver {
    /// Creates the driver of a claimed shard. `attempts` counts the starts at this checkpoint, this
    /// one included; `unclaimed` says that the claim is still owed.
    pub fn new(
        state: ShardState,
        attempts: u32,
        pull_bytes: usize,
        recovery: Option<GapRecovery>,
        unclaimed: bool,
    ) -> Self {
        Self {
            committed: state.flushed_to(),
            state,
            pull_bytes,
            recovery,
            unclaimed,
            isolation: Isolation::Released,
            damaged_since: None,
            committing_range: None,
            attempts,
            draining: false,
            effects: Vec::new(),
        }
    }

    /// The shard's memory, for readers.
    pub fn state(&self) -> &ShardState {
        &self.state
    }

    /// Sets the recorded decisions (admissions and quarantine) for the records below `to`, which
    /// are about to be applied a second time, to generations as well as to generation 0.
    pub fn apply_decisions(&mut self, decisions: &RangeDecisions, to: Offset) {
        self.state.apply_decisions(decisions, to);
        self.state.apply_generation_admissions(decisions, to);
    }

    /// Exclusive end of what is in the store.
    pub fn committed(&self) -> Offset {
        self.committed
    }

    /// Starts at this checkpoint without progress; 0 once this owner has committed.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Handles one event and appends the resulting commands to `out`.
    pub fn handle(
        &mut self,
        at: StepContext,
        event: ShardEvent<'_>,
        out: &mut VecDeque<ShardCommand>,
    ) {
        let before = self.state.next();
        match event {
            ShardEvent::Wakeup => self.on_wakeup(at, out),
            ShardEvent::Drain => self.on_drain(at, out),
            ShardEvent::NewestSet(set) => self.step(ShardInput::NewestSet(set), out),
            ShardEvent::LogRead(Ok(records)) => self.on_records(at, &records, false, out),
            ShardEvent::LogRead(Err(error)) => self.on_log_failed(at, error, out),
            ShardEvent::ArchiveRead(read) => self.on_archive_read(at, read, out),
            ShardEvent::IsolationAcquired => self.on_isolation_acquired(out),
            ShardEvent::SuspectMarked(Ok(())) => {
                self.step(ShardInput::Records(&[]), out);
                self.after_records(at, true, out);
            }
            ShardEvent::SuspectMarked(Err(error)) => self.end(error.into(), out),
            ShardEvent::CommitEnded(outcome) => self.on_commit_ended(at, outcome, out),
            ShardEvent::Reclaimed(outcome) => self.on_reclaimed(at, outcome, out),
            ShardEvent::Confirmed { next, set, archived, stored } => {
                self.on_confirmed((next, set, archived), stored, out)
            }
        }
        check_progress(self.state.shard(), before, self.state.next());
    }

    /// Asks for records. A flush that is due follows once they are applied, or at once if nothing
    /// is to be read.
    fn on_wakeup(&mut self, at: StepContext, out: &mut VecDeque<ShardCommand>) {
        let next = self.state.next();
        if let Some(over) = self.recovery.take_if(|recovery| recovery.is_over(next)) {
            out.push_back(ShardCommand::Notify(ShardNotice::RecoveryEnded(over.lost())));
        }
        if next > at.log_end {
            let short = LogDivergence::ShortLog { end: at.log_end, checkpoint: next };
            self.end(short.into(), out);
            return;
        }
        match self.read_from(at) {
            Some(read) => out.push_back(read),
            None => self.tick(at.now, false, out),
        }
    }

    /// Chooses where the next records are read from; `None` if none are wanted now.
    fn read_from(&self, at: StepContext) -> Option<ShardCommand> {
        let (from, max_bytes) = (self.state.next(), self.pull_bytes);
        if self.state.credit() == 0 || from == at.log_end {
            return None;
        }
        // The log has a gap here, so nothing is read from it until the recovery is over.
        if let Some(recovery) = &self.recovery {
            return (!recovery.is_waiting(at.now))
                .then_some(ShardCommand::ReadArchive { from, max_bytes });
        }
        let waits = |since: Millis| (0..DAMAGED_RETRY_MS).contains(&at.now.saturating_sub(since));
        (!self.damaged_since.is_some_and(waits))
            .then_some(ShardCommand::ReadLog { from, max_bytes })
    }

    fn on_records(
        &mut self,
        at: StepContext,
        records: &[LogRecord],
        from_archive: bool,
        out: &mut VecDeque<ShardCommand>,
    ) {
        self.damaged_since = None;
        // The read was sized in bytes. In careful mode the credit is smaller than that, and the
        // rest is read again after the flush.
        let credit = self.state.credit();
        let records = &records[..records.len().min(credit)];
        self.step(ShardInput::Records(records), out);
        out.push_back(ShardCommand::Notify(ShardNotice::Applied(AppliedRecords {
            records: records.len(),
            bytes: records.iter().map(|record| record.payload.len()).sum(),
            oldest: records.first().map(|record| record.appended),
            from_archive,
        })));
        self.after_records(at, true, out);
    }

    /// A damaged log does not end the shard: it stops at the damage and stays up. Everything below
    /// is flushed and served, and a restart would only find the same damage.
    fn on_log_failed(
        &mut self,
        at: StepContext,
        error: CallError,
        out: &mut VecDeque<ShardCommand>,
    ) {
        if error.kind != FailureKind::Damaged {
            self.end(error.into(), out);
            return;
        }
        self.damaged_since = Some(at.now);
        let before = Some(self.state.next());
        out.push_back(ShardCommand::Notify(ShardNotice::Stopped { before, why: error.message }));
        self.after_records(at, false, out);
    }

    /// An unreachable archive does not end the shard; it is retried after a back-off.
    fn on_archive_read(
        &mut self,
        at: StepContext,
        read: Result<ArchivedRecords, CallError>,
        out: &mut VecDeque<ShardCommand>,
    ) {
        match read {
            Ok(ArchivedRecords { records, decisions: decided, to }) => {
                if let Some(recovery) = &mut self.recovery {
                    recovery.set_end(to);
                }
                if let Some((decisions, to)) = decided {
                    // A store that was put back may count from another cut, or have given the
                    // number of a lost generation to another one: generations admit anew.
                    self.state.apply_decisions(&decisions, to);
                }
                self.on_records(at, &records, true, out);
            }
            Err(error) if error.kind == FailureKind::Unavailable => {
                if let Some(recovery) = &mut self.recovery {
                    recovery.record_failure(at.now);
                }
                out.push_back(ShardCommand::Notify(ShardNotice::RecoveryDelayed(error)));
                self.after_records(at, false, out);
            }
            Err(error) => self.end(error.into(), out),
        }
    }

    /// Runs what is due after records were applied or could not be read. In the middle of a record
    /// that is applied event by event nothing is due, because a checkpoint cannot
    /// lie inside a record.
    fn after_records(&mut self, at: StepContext, more: bool, out: &mut VecDeque<ShardCommand>) {
        if self.state.is_isolating() {
            return;
        }
        self.tick(at.now, false, out);
        if more && self.state.next() < at.log_end {
            out.push_back(ShardCommand::WakeAgain);
        }
    }

    fn on_isolation_acquired(&mut self, out: &mut VecDeque<ShardCommand>) {
        if let Isolation::Waiting { offset, index } = self.isolation {
            self.isolation = Isolation::Held;
            out.push_back(ShardCommand::MarkSuspect { epoch: self.state.epoch(), offset, index });
        }
    }

    fn on_drain(&mut self, at: StepContext, out: &mut VecDeque<ShardCommand>) {
        self.tick(at.now, true, out);
        // A commit that was in flight already is waited for as well. What is open above it is not
        // flushed any more: the next owner reads it from the log.
        self.draining = self.committing_range.is_some();
        if !self.draining {
            out.push_back(ShardCommand::Drained);
        }
    }

    fn on_commit_ended(
        &mut self,
        at: StepContext,
        outcome: Result<(), CallError>,
        out: &mut VecDeque<ShardCommand>,
    ) {
        let Some(range) = self.committing_range.take() else {
            let unasked = EndReason::UnexpectedEvent {
                shard: self.state.shard(),
                event: "the end of a commit",
            };
            self.end(unasked, out);
            return;
        };
        out.push_back(ShardCommand::Notify(ShardNotice::FlushEnded(outcome.clone())));
        match outcome {
            Ok(()) => {
                (self.committed, self.attempts) = (range.to, 0);
                // The flush has passed the marked record, which clears the mark in the store; only
                // now may another shard isolate.
                if self.isolation == Isolation::Held {
                    self.isolation = Isolation::Released;
                    out.push_back(ShardCommand::ReleaseIsolation);
                }
                self.step(ShardInput::Committed { now: at.now }, out);
            }
            Err(error) if error.is_retryable() => self.step(ShardInput::CommitFailed, out),
            Err(error) => {
                self.end(error.into(), out);
                return;
            }
        }
        if std::mem::take(&mut self.draining) {
            out.push_back(ShardCommand::Drained);
        }
    }

    /// A claim of unknown outcome may be retried: nothing has been written under it, and the next
    /// claim mints a new epoch.
    fn on_reclaimed(
        &mut self,
        at: StepContext,
        outcome: Result<(), CallError>,
        out: &mut VecDeque<ShardCommand>,
    ) {
        match outcome {
            Ok(()) => self.end(EndReason::Reclaimed, out),
            Err(error) if error.kind == FailureKind::OutcomeUnknown => {
                let kind = FailureKind::NotApplied;
                self.on_commit_ended(at, Err(CallError { kind, ..error }), out);
            }
            Err(error) => self.on_commit_ended(at, Err(error), out),
        }
    }

    /// Ends the shard unless the store is at or above what this owner and its archiver have
    /// committed. The adoption of a set moves no offset, so its version is compared as well.
    fn on_confirmed(
        &mut self,
        (next, set, archived): (Offset, u64, Offset),
        stored: Result<Option<(Checkpoint, u64)>, CallError>,
        out: &mut VecDeque<ShardCommand>,
    ) {
        let epoch = self.state.epoch();
        let is_current = |(at, stored_set): (Checkpoint, u64)| {
            at.epoch == epoch && at.next >= next && at.archived >= archived && stored_set >= set
        };
        match stored {
            Ok(stored) if stored.is_some_and(is_current) => {}
            Ok(_) => self.end(EndReason::RolledBack { shard: self.state.shard(), next }, out),
            Err(error) if error.kind == FailureKind::Refused => self.end(error.into(), out),
            Err(error) => out.push_back(ShardCommand::Notify(ShardNotice::Unconfirmed(error))),
        }
    }

    fn end(&self, reason: EndReason, out: &mut VecDeque<ShardCommand>) {
        out.extend(
            ShardNotice::from_end(&reason, Some(self.state.next())).map(ShardCommand::Notify),
        );
        out.push_back(ShardCommand::End(reason));
    }

    fn tick(&mut self, now: Millis, drain: bool, out: &mut VecDeque<ShardCommand>) {
        self.step(ShardInput::Tick { now, drain }, out);
    }

    /// Steps the state machine and translates its effects into commands.
    fn step(&mut self, input: ShardInput<'_>, out: &mut VecDeque<ShardCommand>) {
        // Taken out while `self` is needed to translate them, and put back for its allocation.
        let mut effects = std::mem::take(&mut self.effects);
        self.state.step(input, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                ShardEffect::Confirm { next, set } => {
                    out.push_back(ShardCommand::Confirm { next, set })
                }
                ShardEffect::Stop(unread @ LogDivergence::UnsupportedVersion { offset, .. }) => {
                    let why = unread.to_string();
                    out.push_back(ShardCommand::Notify(ShardNotice::Stopped {
                        before: Some(offset),
                        why,
                    }));
                }
                ShardEffect::Stop(diverged) => self.end(diverged.into(), out),
                ShardEffect::MarkSuspect { offset, index } => self.isolate(offset, index, out),
                ShardEffect::Commit { guard, batch, forget_ids_before } => {
                    check(Invariant::SingleWriter, guard.range.from == self.committed, || {
                        format!(
                            "{guard:?} does not follow the flush that ended at {}",
                            self.committed
                        )
                    });
                    self.committing_range = Some(guard.range);
                    // An unclaimed owner has no epoch of its own to commit under. A successful
                    // claim ends the shard, and its next start reads this batch from the log again.
                    out.push_back(match self.unclaimed {
                        true => ShardCommand::Reclaim,
                        false => ShardCommand::Commit { guard, batch, forget_ids_before },
                    });
                }
            }
        }
        self.effects = effects;
    }

    fn isolate(&mut self, offset: Offset, index: u32, out: &mut VecDeque<ShardCommand>) {
        match self.isolation {
            Isolation::Held => out.push_back(ShardCommand::MarkSuspect {
                epoch: self.state.epoch(),
                offset,
                index,
            }),
            Isolation::Waiting { .. } | Isolation::Released => {
                self.isolation = Isolation::Waiting { offset, index };
                out.push_back(ShardCommand::AcquireIsolation);
            }
        }
    }
}

/// I12, after every step: the position never goes back. A log that lost or reordered
/// data stops the shard.
fn check_progress(shard: ShardId, before: Offset, after: Offset) {
    check(Invariant::FailLoud, after >= before, || {
        format!("shard {shard} went back from {before} to {after}")
    });
}
