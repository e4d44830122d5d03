//! The shard driver: everything that decides about a shard. Events in, commands out; whoever
//! performs the commands decides nothing.
//!
//! [`startup::ShardStartup`] claims and loads; [`ShardDriver`] reads, applies, commits, confirms,
//! drains, isolates suspects and recovers what the log lost. The shard actor performs the commands
//! on threads, the simulation in the order of a seed.
//!
//! A commit of unknown outcome, a refusal or a diverged log ends the shard: its memory is dropped,
//! and the next start reads the checkpoint. Nothing is ever repeated whose outcome is not known.

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

/// A log that is damaged where the shard stands is read again after this time: somebody may have
/// repaired it.
const DAMAGED_RETRY_MS: i64 = 5_000;

/// Whether the shard may apply events alone. One shard of a node at a time does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isolation {
    /// It does not.
    Released,
    /// It waits to mark this event.
    Waiting { offset: Offset, index: u32 },
    /// From the first mark of a record until the flush that passes it has cleared the mark.
    Held,
}

/// Runs an owned shard.
#[derive(Debug)]
pub struct ShardDriver {
    state: ShardState,
    pull_bytes: usize,
    recovery: Option<GapRecovery>,
    /// The store took no claim: where the shard would flush, it tries to claim.
    unclaimed: bool,
    isolation: Isolation,
    /// Since when the log is left alone, because it is damaged at the next record.
    damaged_since: Option<Millis>,
    committing_range: Option<OffsetRange>,
    /// Everything below is in the store.
    committed: Offset,
    /// Starts at this checkpoint without progress; 0 once it has committed.
    attempts: u32,
    /// Somebody waits until nothing is in flight.
    draining: bool,
    /// Empty between two events; kept for its memory.
    effects: Vec<ShardEffect>,
}

/// Runs a shard that nobody claimed: what recomputes records, and tests.
impl From<ShardState> for ShardDriver {
    fn from(state: ShardState) -> Self {
        Self::new(state, 1, usize::MAX, None, false)
    }
}

impl ShardDriver {
    /// Runs a shard that was claimed, in its `attempts`-th start at one checkpoint.
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

    /// Its memory, for readers.
    pub fn state(&self) -> &ShardState {
        &self.state
    }

    /// Learns what was decided about the records below `to`, which are folded once more.
    pub fn apply_decisions(&mut self, decisions: &RangeDecisions, to: Offset) {
        self.state.apply_decisions(decisions, to);
    }

    /// Everything below is in the store.
    pub fn committed(&self) -> Offset {
        self.committed
    }

    /// Starts at this checkpoint without progress; 0 once it has committed.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// One step.
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
            ShardEvent::Confirmed { next, archived, stored } => {
                self.on_confirmed(next, archived, stored, out)
            }
        }
        check_progress(self.state.shard(), before, self.state.next());
    }

    /// Asks for records; what is due follows when they are applied, or at once if none are asked
    /// for.
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

    /// Where the next records come from, if any are wanted now.
    fn read_from(&self, at: StepContext) -> Option<ShardCommand> {
        let (from, max_bytes) = (self.state.next(), self.pull_bytes);
        if self.state.credit() == 0 || from == at.log_end {
            return None;
        }
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

    /// A damaged log ends nothing: the shard stands still there and lives. What lies below is
    /// flushed and answered, and a start would find the same damage.
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

    /// An archive that is away ends nothing either.
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
                    self.apply_decisions(&decisions, to);
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

    /// What is due after records were applied, or could not be had. In the middle of a record that
    /// is applied event by event, nothing is.
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

    /// A claim whose outcome is not known changes nothing: nothing was written under it, and the
    /// next one is a new epoch.
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

    /// Whether the store stands where this owner and its archiver left it, or further.
    fn on_confirmed(
        &mut self,
        next: Offset,
        archived: Offset,
        stored: Result<Option<Checkpoint>, CallError>,
        out: &mut VecDeque<ShardCommand>,
    ) {
        let epoch = self.state.epoch();
        let stands =
            |at: Checkpoint| at.epoch == epoch && at.next >= next && at.archived >= archived;
        match stored {
            Ok(stored) if stored.is_some_and(stands) => {}
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

    /// Steps the state machine, and asks for what it asks for.
    fn step(&mut self, input: ShardInput<'_>, out: &mut VecDeque<ShardCommand>) {
        let mut effects = std::mem::take(&mut self.effects);
        self.state.step(input, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                ShardEffect::Confirm { next } => out.push_back(ShardCommand::Confirm { next }),
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

/// I12, after every step: the position never goes back. A log that lost or reordered data stops the
/// shard.
fn check_progress(shard: ShardId, before: Offset, after: Offset) {
    check(Invariant::FailLoud, after >= before, || {
        format!("shard {shard} went back from {before} to {after}")
    });
}
