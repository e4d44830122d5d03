//! Live reads: what queries can ask of the shards, wherever these run.

use std::sync::Arc;

use super::catalogue::{CatalogueGrowth, CatalogueQuery};
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, ShardId};
use crate::model::rollup::Rollup;
use crate::model::window::{Hour, Millis};
use crate::shards::state::{AccountingQuery, LiveQuery, StaleCheckpoint};

/// How fresh the answer of one shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardFreshness {
    /// Everything received before this time is in store ⊕ answer. An idle shard that has applied
    /// the whole log reports the current time.
    pub as_of: Millis,
    /// How long ago the shard had applied everything appended until then, in milliseconds. This is
    /// elapsed time, which no leap of a wall clock changes.
    pub age_ms: i64,
    /// Records of the log that are not applied yet.
    pub behind: u64,
    /// Whether the owner is still catching up with the log as it was when the shard was claimed. A
    /// previous owner may have answered with more.
    pub recovering: bool,
    /// Whether the shard has stopped until somebody repairs something.
    pub stopped: bool,
}

/// Why one shard did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveError {
    /// Owner or batches have changed since the snapshot: take a new snapshot and ask once more.
    StaleCheckpoint,
    /// This node knows no live owner.
    Unavailable,
    /// The owner is known but did not answer in time.
    Unreachable,
    /// The owner already serves as many requests of other nodes as it may.
    Overloaded,
    /// The answer exceeds what nodes send to each other.
    TooLarge,
    /// The shard cannot start until somebody repairs something.
    Stopped,
}

impl LiveError {
    /// Name of the error in answers to clients.
    pub fn reason(self) -> &'static str {
        match self {
            LiveError::StaleCheckpoint => "moved",
            LiveError::Unavailable => "unavailable",
            LiveError::Unreachable => "unreachable",
            LiveError::Overloaded => "overloaded",
            LiveError::TooLarge => "too_large",
            LiveError::Stopped => "stopped",
        }
    }
}

impl From<StaleCheckpoint> for LiveError {
    fn from(_: StaleCheckpoint) -> Self {
        LiveError::StaleCheckpoint
    }
}

/// A shard, and the checkpoint of the store snapshot: the deltas at or above it are read. A shard
/// that was never claimed has no checkpoint.
pub type ShardRead = (ShardId, Option<Checkpoint>);

/// Result of each shard that was asked, in any order.
pub type ShardResults = Vec<(ShardId, Result<ShardFreshness, LiveError>)>;

/// Called with each delta of a shard.
pub type DeltaVisitor<'v> = &'v mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup);

/// Reads the live deltas of all shards, wherever they run. Blocks, but no longer than a shard takes
/// to apply one batch or than a call to another node may take.
///
/// For a shard whose result is an error, nothing has been visited.
pub trait LiveReader: Send + Sync + 'static {
    /// Number of shards of the log.
    fn shard_count(&self) -> u32;
    /// Visits the deltas of each shard at or above its checkpoint.
    fn read(
        &self,
        asked: &[ShardRead],
        query: &LiveQuery<'_>,
        matchers: &[Matcher],
        visit: DeltaVisitor<'_>,
    ) -> ShardResults;
    /// Visits what each shard has at or above its checkpoint that the catalogue lacks.
    fn catalogue(
        &self,
        asked: &[ShardRead],
        query: &CatalogueQuery<'_>,
        visit: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults;
    /// Visits what each shard has counted at or above its checkpoint.
    fn accounting(
        &self,
        asked: &[ShardRead],
        query: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults;
}
