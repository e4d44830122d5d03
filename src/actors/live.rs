//! Live reads: what queries may ask of the shards of this node.

use std::sync::Arc;

use crate::model::flush::SeriesInfo;
use crate::model::offset::{Checkpoint, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};
use crate::shards::state::{LiveQuestion, Moved};

/// What one shard answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardReport {
    /// Everything appended before this is in store ⊕ answer. An idle shard that has applied the whole log reports now.
    pub as_of: Millis,
    /// Records of the log not applied yet.
    pub behind: u64,
}

/// Why one shard did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveError {
    /// Its owner or its batches moved since the snapshot: take a new snapshot once.
    Moved,
    /// No live owner is known here.
    Unavailable,
}

impl From<Moved> for LiveError {
    fn from(_: Moved) -> Self {
        LiveError::Moved
    }
}

/// The live deltas of all shards, wherever they are. Never waits longer than a shard takes to apply one batch.
pub trait LiveReader: Send + Sync + 'static {
    /// Number of shards.
    fn shard_count(&self) -> u32;
    /// Visits one shard's deltas at or above `checkpoint`. A shard that was never claimed has no checkpoint: pass `None`.
    ///
    /// # Errors
    /// See [`LiveError`].
    fn read(
        &self,
        shard: ShardId,
        checkpoint: Option<&Checkpoint>,
        question: &LiveQuestion<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) -> Result<ShardReport, LiveError>;
}
