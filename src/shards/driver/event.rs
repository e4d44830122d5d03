//! Events that the driver of a running shard handles.

use std::borrow::Cow;
use std::sync::Arc;

use super::failure::CallError;
use crate::model::flush::LogRecord;
use crate::model::manifest::RangeDecisions;
use crate::model::offset::{Checkpoint, Offset};
use crate::model::window::Millis;
use crate::shards::generations::ActiveSet;

/// Time and log end at the time of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepContext {
    /// Boot clock. Used for cadence only; it never affects a rollup.
    pub now: Millis,
    /// Exclusive end of the log.
    pub log_end: Offset,
}

/// What happened. Events that carry a result answer the command of the same purpose.
#[derive(Debug)]
pub enum ShardEvent<'a> {
    /// There may be something to read or to flush.
    Wakeup,
    /// The newest set of generations, which may be newer than the one that the shard has adopted.
    NewestSet(Arc<ActiveSet>),
    /// Flush whatever is open; answered by the command `Drained`.
    Drain,
    /// Records read from the log, in offset order.
    LogRead(Result<Cow<'a, [LogRecord]>, CallError>),
    /// Records read from the archive in place of those that the log lost, in offset order.
    ArchiveRead(Result<ArchivedRecords, CallError>),
    /// No other shard of the node isolates events.
    IsolationAcquired,
    /// Whether the store has recorded the event that is about to be applied in isolation.
    SuspectMarked(Result<(), CallError>),
    /// How the commit in flight ended.
    CommitEnded(Result<(), CallError>),
    /// Whether the claim that failed at the start has succeeded now.
    Reclaimed(Result<(), CallError>),
    /// What the store has, to be compared with what this owner has committed.
    #[allow(missing_docs, reason = "the name says it")]
    Confirmed {
        /// As in the command.
        next: Offset,
        /// As in the command.
        set: u64,
        /// Archived offset known on this node before the checkpoint was read. The order matters:
        /// read afterwards, it could be ahead of the checkpoint without any rollback.
        archived: Offset,
        /// The stored checkpoint, and the version of the set that the shard writes under.
        stored: Result<Option<(Checkpoint, u64)>, CallError>,
    },
}

/// Records that the log lost, read from the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchivedRecords {
    /// The records, in offset order.
    pub records: Vec<LogRecord>,
    /// Recorded decisions for the records below the given offset, if they were not sent before.
    pub decisions: Option<(RangeDecisions, Offset)>,
    /// Exclusive end of the last object to be read. The log may still have the last records of that
    /// object, but only the object has the decisions made about them. The value changes when a
    /// damaged object is replaced.
    pub to: Offset,
}
