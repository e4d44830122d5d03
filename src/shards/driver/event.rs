//! What the driver of a running shard is told.

use std::borrow::Cow;

use super::failure::CallError;
use crate::model::flush::LogRecord;
use crate::model::manifest::RangeDecisions;
use crate::model::offset::{Checkpoint, Offset};
use crate::model::window::Millis;

/// When an event happens, and how far the log is then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepContext {
    /// The boot clock, for cadence only: it never touches a rollup.
    pub now: Millis,
    /// The log's end.
    pub log_end: Offset,
}

/// What happens to a shard.
#[derive(Debug)]
pub enum ShardEvent<'a> {
    /// There may be something to read or to flush.
    Wakeup,
    /// Flush what is open.
    Drain,
    /// Records of the log, in order: what was asked for.
    LogRead(Result<Cow<'a, [LogRecord]>, CallError>),
    /// Records that the log lost, in order: what was asked for.
    ArchiveRead(Result<ArchivedRecords, CallError>),
    /// No other shard of the node isolates events now.
    IsolationAcquired,
    /// Whether the store has noted the event that is to be applied alone.
    SuspectMarked(Result<(), CallError>),
    /// How the commit in flight ended.
    CommitEnded(Result<(), CallError>),
    /// Whether the store gave the claim that it could not give before.
    Reclaimed(Result<(), CallError>),
    /// Where the store stands.
    Confirmed {
        /// As the command said.
        next: Offset,
        /// The archived offset that was known here before the checkpoint was read.
        archived: Offset,
        /// The stored checkpoint.
        stored: Result<Option<Checkpoint>, CallError>,
    },
}

/// Records that the log lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchivedRecords {
    /// In the order of the log.
    pub records: Vec<LogRecord>,
    /// What was decided about the records below an offset, if that is news.
    pub decisions: Option<(RangeDecisions, Offset)>,
    /// Where the last object ends that is to be read. The log may have its last records, but only
    /// the object has what was decided about them. It changes when a damaged object is
    /// replaced by another.
    pub to: Offset,
}
