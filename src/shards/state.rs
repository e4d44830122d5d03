//! The shard state machine: inputs in, effects out.

use std::sync::Arc;

use crate::model::flush::{Claim, DedupBlock, FlushBatch, FlushGuard, LogRecord, SeriesInfo};
use crate::model::offset::{Checkpoint, Diverged, Epoch, Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::{Hour, Millis};

/// The limits of one shard.
#[derive(Debug, Clone)]
pub struct ShardLimits {
    /// `dedup.horizon` in milliseconds.
    pub dedup_horizon_ms: i64,
    /// `dedup.max_ids`, per shard.
    pub dedup_max_ids: usize,
    /// Series of one tenant that this shard admits: the tenant's limit divided over the shards.
    pub max_series_per_tenant: u64,
    /// `flush.interval` in milliseconds.
    pub flush_interval_ms: i64,
    /// Bytes of open deltas at which a flush is due before its time.
    pub max_delta_bytes: usize,
    /// How long a committed batch is kept for queries that hold an older snapshot: the longest time a query may take.
    pub keep_flushed_ms: i64,
}

/// What happens to a shard.
#[derive(Debug)]
pub enum Input<'a> {
    /// Records read from the log, in order.
    Records(&'a [LogRecord]),
    /// Time passes; `drain` asks for a flush of whatever is open.
    Tick {
        /// Wall time, for cadence only: it never touches a rollup.
        now: Millis,
        /// Flush now.
        drain: bool,
    },
    /// The commit in flight ended.
    Committed {
        /// Wall time.
        now: Millis,
    },
    /// The commit in flight was certainly not applied and may be tried again.
    CommitFailed,
}

/// What a shard asks for. Effects are carried out in order.
#[derive(Debug)]
pub enum Effect {
    /// Commit this batch in one store transaction, then answer `Committed` or `CommitFailed`; on an unknown outcome drop the state.
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
    /// Stop loudly: the log does not continue where the store stands.
    Stop(Diverged),
}

/// What a query asks of the live deltas.
#[derive(Debug)]
pub struct LiveQuestion<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// Which metric.
    pub metric: &'a str,
    /// First hour.
    pub from: Hour,
    /// First hour behind.
    pub to: Hour,
}

/// How far a live answer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveMark {
    /// Everything below is in store ⊕ answer.
    pub applied: Offset,
    /// Append time of the last record applied; 0 if none was.
    pub appended: Millis,
}

/// The shard cannot answer above that checkpoint: other epoch, or the batches are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved;

/// The state of one owned shard.
#[derive(Debug)]
pub struct ShardState {
    _limits: ShardLimits,
    _shard: ShardId,
    next: Offset,
    epoch: Epoch,
}

impl ShardState {
    /// An owner that has just claimed the shard: empty aggregates at the checkpoint, and the recent ids.
    pub fn new(
        limits: ShardLimits,
        shard: ShardId,
        claim: &Claim,
        _recent: Vec<DedupBlock>,
        _admitted: Vec<(String, Vec<SeriesId>)>,
        _log_end: Offset,
    ) -> Self {
        Self { _limits: limits, _shard: shard, next: claim.checkpoint.next, epoch: claim.checkpoint.epoch }
    }
    /// Next offset to read.
    pub fn next(&self) -> Offset {
        self.next
    }
    /// The owner's epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
    /// How many records it takes now: 0 while its memory bound is reached or, after crashes, until the commit in flight ends.
    pub fn credit(&self) -> usize {
        usize::MAX
    }
    /// One step.
    pub fn step(&mut self, _input: Input<'_>, _effects: &mut Vec<Effect>) {}
    /// Visits the deltas at or above the checkpoint, which must be this owner's: by epoch and as a boundary between batches.
    ///
    /// # Errors
    /// [`Moved`].
    pub fn live(
        &self,
        _checkpoint: &Checkpoint,
        _question: &LiveQuestion<'_>,
        _matches: &mut dyn FnMut(&Series) -> bool,
        _visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) -> Result<LiveMark, Moved> {
        Err(Moved)
    }
}
