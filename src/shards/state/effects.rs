//! What happens to a shard, and what it asks for.

use std::sync::Arc;

use crate::model::flush::{FlushBatch, FlushGuard, LogRecord};
use crate::model::offset::{LogDivergence, Offset};
use crate::model::window::Millis;

/// What happens to a shard.
#[derive(Debug)]
pub enum ShardInput<'a> {
    /// Records read from the log, in order.
    Records(&'a [LogRecord]),
    /// Time passes; `drain` asks for a flush of whatever is open.
    Tick {
        /// The boot clock, for cadence only: it never touches a rollup.
        now: Millis,
        /// Flush now.
        drain: bool,
    },
    /// The commit in flight ended.
    Committed {
        /// The boot clock.
        now: Millis,
    },
    /// The commit in flight was certainly not applied and may be tried again.
    CommitFailed,
}

/// What a shard asks for. Effects are carried out in order.
#[derive(Debug)]
pub enum ShardEffect {
    /// Commit this batch in one store transaction, then answer `Committed` or `CommitFailed`; on an
    /// unknown outcome drop the state.
    Commit {
        /// The guard.
        guard: FlushGuard,
        /// The batch.
        batch: Arc<FlushBatch>,
        /// Ids appended before this are out of every horizon.
        forget_ids_before: Millis,
    },
    /// Note the event in the store before going on: the shard applies it alone.
    MarkSuspect {
        /// Its record.
        offset: Offset,
        /// Its index.
        index: u32,
    },
    /// Look whether the store still stands where this owner and its archiver left it, or further;
    /// if not, drop the state. A flush would find out, but there is nothing to flush: a store
    /// that failed over and lost commits would stay behind for as long as no event comes.
    Confirm {
        /// Up to here this owner has committed.
        next: Offset,
    },
    /// Stop loudly: the log does not continue where the store stands. Before a record that this
    /// build does not read ([`LogDivergence::UnsupportedVersion`]) the state stands still of itself, and lives:
    /// what lies below is flushed and answered.
    Stop(LogDivergence),
}
