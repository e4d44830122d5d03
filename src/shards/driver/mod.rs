//! The shard driver: everything that decides about a shard. Events in, commands out; whoever
//! performs the commands decides nothing.
//!
//! [`startup::Startup`] claims and loads; [`ShardDriver`] reads, applies, commits, confirms,
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

pub use command::{Applied, Command, Report};
pub use event::{ArchivedRecords, Event, Moment};
pub use failure::{CallError, EndReason, FailureKind};
pub use gap_recovery::{GapRecovery, lost};

use super::state::{Effect, Input, ShardState};
use crate::invariants::{Invariant, check};
use crate::model::flush::LogRecord;
use crate::model::manifest::Decisions;
use crate::model::offset::{Checkpoint, Diverged, Offset, OffsetRange};
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
    committing: Option<OffsetRange>,
    /// Everything below is in the store.
    committed: Offset,
    /// Starts at this checkpoint without progress; 0 once it has committed.
    attempts: u32,
    /// Somebody waits until nothing is in flight.
    draining: bool,
    /// Empty between two events; kept for its memory.
    effects: Vec<Effect>,
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
            committing: None,
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
    pub fn learn(&mut self, decisions: &Decisions, to: Offset) {
        self.state.learn(decisions, to);
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
    pub fn on(&mut self, at: Moment, event: Event<'_>, out: &mut VecDeque<Command>) {
        let before = self.state.next();
        match event {
            Event::Pulse => self.on_pulse(at, out),
            Event::Drain => self.on_drain(at, out),
            Event::LogRead(Ok(records)) => self.on_records(at, &records, false, out),
            Event::LogRead(Err(error)) => self.on_log_failed(at, error, out),
            Event::ArchiveRead(read) => self.on_archive_read(at, read, out),
            Event::IsolationAcquired => self.on_isolation_acquired(out),
            Event::SuspectMarked(Ok(())) => {
                self.step(Input::Records(&[]), out);
                self.after_records(at, true, out);
            }
            Event::SuspectMarked(Err(error)) => self.end(error.into(), out),
            Event::CommitEnded(outcome) => self.on_commit_ended(at, outcome, out),
            Event::Reclaimed(outcome) => self.on_reclaimed(at, outcome, out),
            Event::Confirmed { next, archived, stored } => {
                self.on_confirmed(next, archived, stored, out)
            }
        }
        check(Invariant::FailLoud, self.state.next() >= before, || {
            format!("shard {} went back from {before} to {}", self.state.shard(), self.state.next())
        });
    }

    /// Asks for records; what is due follows when they are applied, or at once if none are asked
    /// for.
    fn on_pulse(&mut self, at: Moment, out: &mut VecDeque<Command>) {
        let next = self.state.next();
        if let Some(over) = self.recovery.take_if(|recovery| recovery.is_over(next)) {
            out.push_back(Command::Report(Report::RecoveryEnded(over.lost())));
        }
        if next > at.log_end {
            let short = Diverged::Short { end: at.log_end, checkpoint: next };
            self.end(short.into(), out);
            return;
        }
        match self.read_from(at) {
            Some(read) => out.push_back(read),
            None => self.tick(at.now, false, out),
        }
    }

    /// Where the next records come from, if any are wanted now.
    fn read_from(&self, at: Moment) -> Option<Command> {
        let (from, max_bytes) = (self.state.next(), self.pull_bytes);
        if self.state.credit() == 0 || from == at.log_end {
            return None;
        }
        if let Some(recovery) = &self.recovery {
            return (!recovery.waits(at.now)).then_some(Command::ReadArchive { from, max_bytes });
        }
        let waits = |since: Millis| (0..DAMAGED_RETRY_MS).contains(&at.now.saturating_sub(since));
        (!self.damaged_since.is_some_and(waits)).then_some(Command::ReadLog { from, max_bytes })
    }

    fn on_records(
        &mut self,
        at: Moment,
        records: &[LogRecord],
        from_archive: bool,
        out: &mut VecDeque<Command>,
    ) {
        self.damaged_since = None;
        let credit = self.state.credit();
        let records = &records[..records.len().min(credit)];
        self.step(Input::Records(records), out);
        out.push_back(Command::Report(Report::Applied(Applied {
            records: records.len(),
            bytes: records.iter().map(|record| record.payload.len()).sum(),
            oldest: records.first().map(|record| record.appended),
            from_archive,
        })));
        self.after_records(at, true, out);
    }

    /// A damaged log ends nothing: the shard stands still there and lives. What lies below is
    /// flushed and answered, and a start would find the same damage.
    fn on_log_failed(&mut self, at: Moment, error: CallError, out: &mut VecDeque<Command>) {
        if error.kind != FailureKind::Damaged {
            self.end(error.into(), out);
            return;
        }
        self.damaged_since = Some(at.now);
        let before = Some(self.state.next());
        out.push_back(Command::Report(Report::StandsStill { before, why: error.message }));
        self.after_records(at, false, out);
    }

    /// An archive that is away ends nothing either.
    fn on_archive_read(
        &mut self,
        at: Moment,
        read: Result<ArchivedRecords, CallError>,
        out: &mut VecDeque<Command>,
    ) {
        match read {
            Ok(ArchivedRecords { records, decided, to }) => {
                if let Some(recovery) = &mut self.recovery {
                    recovery.reads_to(to);
                }
                if let Some((decisions, to)) = decided {
                    self.learn(&decisions, to);
                }
                self.on_records(at, &records, true, out);
            }
            Err(error) if error.kind == FailureKind::Unavailable => {
                if let Some(recovery) = &mut self.recovery {
                    recovery.failed(at.now);
                }
                out.push_back(Command::Report(Report::RecoveryWaits(error)));
                self.after_records(at, false, out);
            }
            Err(error) => self.end(error.into(), out),
        }
    }

    /// What is due after records were applied, or could not be had. In the middle of a record that
    /// is applied event by event, nothing is.
    fn after_records(&mut self, at: Moment, more: bool, out: &mut VecDeque<Command>) {
        if self.state.is_isolating() {
            return;
        }
        self.tick(at.now, false, out);
        if more && self.state.next() < at.log_end {
            out.push_back(Command::PulseAgain);
        }
    }

    fn on_isolation_acquired(&mut self, out: &mut VecDeque<Command>) {
        if let Isolation::Waiting { offset, index } = self.isolation {
            self.isolation = Isolation::Held;
            out.push_back(Command::MarkSuspect { epoch: self.state.epoch(), offset, index });
        }
    }

    fn on_drain(&mut self, at: Moment, out: &mut VecDeque<Command>) {
        self.tick(at.now, true, out);
        self.draining = self.committing.is_some();
        if !self.draining {
            out.push_back(Command::Drained);
        }
    }

    fn on_commit_ended(
        &mut self,
        at: Moment,
        outcome: Result<(), CallError>,
        out: &mut VecDeque<Command>,
    ) {
        let Some(range) = self.committing.take() else {
            let unasked =
                EndReason::Unasked { shard: self.state.shard(), event: "the end of a commit" };
            self.end(unasked, out);
            return;
        };
        out.push_back(Command::Report(Report::FlushEnded(outcome.clone())));
        match outcome {
            Ok(()) => {
                (self.committed, self.attempts) = (range.to, 0);
                if self.isolation == Isolation::Held {
                    self.isolation = Isolation::Released;
                    out.push_back(Command::ReleaseIsolation);
                }
                self.step(Input::Committed { now: at.now }, out);
            }
            Err(error) if error.may_be_repeated() => self.step(Input::CommitFailed, out),
            Err(error) => {
                self.end(error.into(), out);
                return;
            }
        }
        if std::mem::take(&mut self.draining) {
            out.push_back(Command::Drained);
        }
    }

    /// A claim whose outcome is not known changes nothing: nothing was written under it, and the
    /// next one is a new epoch.
    fn on_reclaimed(
        &mut self,
        at: Moment,
        outcome: Result<(), CallError>,
        out: &mut VecDeque<Command>,
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
        out: &mut VecDeque<Command>,
    ) {
        let epoch = self.state.epoch();
        let stands =
            |at: Checkpoint| at.epoch == epoch && at.next >= next && at.archived >= archived;
        match stored {
            Ok(stored) if stored.is_some_and(stands) => {}
            Ok(_) => self.end(EndReason::RolledBack { shard: self.state.shard(), next }, out),
            Err(error) if error.kind == FailureKind::Refused => self.end(error.into(), out),
            Err(error) => out.push_back(Command::Report(Report::Unconfirmed(error))),
        }
    }

    fn end(&self, reason: EndReason, out: &mut VecDeque<Command>) {
        out.extend(Report::of_end(&reason, Some(self.state.next())).map(Command::Report));
        out.push_back(Command::End(reason));
    }

    fn tick(&mut self, now: Millis, drain: bool, out: &mut VecDeque<Command>) {
        self.step(Input::Tick { now, drain }, out);
    }

    /// Steps the state machine, and asks for what it asks for.
    fn step(&mut self, input: Input<'_>, out: &mut VecDeque<Command>) {
        let mut effects = std::mem::take(&mut self.effects);
        self.state.step(input, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Confirm { next } => out.push_back(Command::Confirm { next }),
                Effect::Stop(unread @ Diverged::Unread { offset, .. }) => {
                    let why = unread.to_string();
                    out.push_back(Command::Report(Report::StandsStill {
                        before: Some(offset),
                        why,
                    }));
                }
                Effect::Stop(diverged) => self.end(diverged.into(), out),
                Effect::MarkSuspect { offset, index } => self.isolate(offset, index, out),
                Effect::Commit { guard, batch, forget_ids_before } => {
                    check(Invariant::SingleWriter, guard.range.from == self.committed, || {
                        format!(
                            "{guard:?} does not follow the flush that ended at {}",
                            self.committed
                        )
                    });
                    self.committing = Some(guard.range);
                    out.push_back(match self.unclaimed {
                        true => Command::Reclaim,
                        false => Command::Commit { guard, batch, forget_ids_before },
                    });
                }
            }
        }
        self.effects = effects;
    }

    fn isolate(&mut self, offset: Offset, index: u32, out: &mut VecDeque<Command>) {
        match self.isolation {
            Isolation::Held => {
                out.push_back(Command::MarkSuspect { epoch: self.state.epoch(), offset, index })
            }
            Isolation::Waiting { .. } | Isolation::Released => {
                self.isolation = Isolation::Waiting { offset, index };
                out.push_back(Command::AcquireIsolation);
            }
        }
    }
}
