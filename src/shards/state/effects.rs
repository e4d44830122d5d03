//! Inputs and effects of the shard state machine.

use std::sync::Arc;

use crate::model::flush::{FlushBatch, FlushGuard, LogRecord};
use crate::model::offset::{LogDivergence, Offset};
use crate::model::window::Millis;
use crate::shards::generations::ActiveSet;

/// What happens to a shard.
#[derive(Debug)]
pub enum ShardInput<'a> {
    /// Records read from the log or the archive, in offset order.
    Records(&'a [LogRecord]),
    /// Time has passed, so something may be due.
    Tick {
        /// Boot clock. Used for cadence only; it never affects a rollup.
        now: Millis,
        /// Whether to flush whatever is open.
        drain: bool,
    },
    /// The newest set of generations, which the next flush adopts.
    NewestSet(Arc<ActiveSet>),
    /// The commit in flight has succeeded.
    Committed {
        /// Boot clock, for cadence only.
        now: Millis,
    },
    /// The commit in flight was certainly not applied and may be retried.
    CommitFailed,
}

/// What a shard asks for. Effects are performed in order.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug)]
pub enum ShardEffect {
    /// Commit this batch in one store transaction and step with `Committed` or `CommitFailed`. If
    /// the outcome is unknown, drop the state.
    Commit {
        guard: FlushGuard,
        batch: Arc<FlushBatch>,
        /// Ids appended before this time are outside every horizon.
        forget_ids_before: Millis,
    },
    /// Record the event in the store before it is applied in isolation, then step again.
    MarkSuspect { offset: Offset, index: u32 },
    /// Check that the store is still at or above what this owner and its archiver have committed;
    /// if not, drop the state. A flush would notice, but there is nothing to flush: without this
    /// check, a store that failed over and lost commits would stay behind until
    /// the next event arrives.
    Confirm {
        /// Exclusive end of what this owner has committed.
        next: Offset,
        /// Version of the set of generations that it has committed.
        set: u64,
    },
    /// Stop: the log does not continue at the store's checkpoint. For
    /// [`LogDivergence::UnsupportedVersion`] the state stays valid: it takes no more records, but
    /// what it has is flushed and served.
    Stop(LogDivergence),
}
