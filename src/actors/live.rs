//! Live reads: what queries may ask of the shards, wherever they are.

use std::sync::Arc;

use super::catalogue::{CatalogueGrowth, CatalogueQuery};
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, ShardId};
use crate::model::rollup::Rollup;
use crate::model::window::{Hour, Millis};
use crate::shards::state::{AccountingQuery, LiveQuery, StaleCheckpoint};

/// What one shard answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardFreshness {
    /// Everything received before this is in store ⊕ answer. An idle shard that has applied the
    /// whole log reports now.
    pub as_of: Millis,
    /// How long ago everything that was appended then was applied. Elapsed time: no leap of a wall
    /// clock changes it.
    pub age_ms: i64,
    /// Records of the log not applied yet.
    pub behind: u64,
    /// Whether the owner has not reached yet what the log held when it claimed the shard: an owner
    /// before it may have shown more.
    pub recovering: bool,
    /// Whether it stands still until somebody mends what stopped it.
    pub stopped: bool,
}

/// Why one shard did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveError {
    /// Its owner or its batches moved since the snapshot: take a new snapshot once.
    StaleCheckpoint,
    /// No live owner is known here.
    Unavailable,
    /// Its owner is known, but did not answer in time.
    Unreachable,
    /// Its owner answers as many questions of other nodes as it may.
    Overloaded,
    /// Its answer is larger than nodes send to each other.
    TooLarge,
    /// It cannot begin until somebody mends what stops it.
    Stopped,
}

impl LiveError {
    /// The word for it in answers.
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

/// A shard, and where the snapshot of the store stands: its deltas at or above that are asked for.
/// A shard that was never claimed has no checkpoint.
pub type ShardRead = (ShardId, Option<Checkpoint>);

/// What each of the shards asked has answered, in any order.
pub type ShardResults = Vec<(ShardId, Result<ShardFreshness, LiveError>)>;

/// Is shown each delta of a shard.
pub type DeltaVisitor<'v> = &'v mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup);

/// The live deltas of all shards, wherever they are. Blocks, but no longer than a shard takes to
/// apply one batch, or a call to another node may take.
///
/// A shard that answers with an error has visited nothing.
pub trait LiveReader: Send + Sync + 'static {
    /// Number of shards.
    fn shard_count(&self) -> u32;
    /// Visits the deltas of each shard at or above its checkpoint.
    fn read(
        &self,
        asked: &[ShardRead],
        question: &LiveQuery<'_>,
        matchers: &[Matcher],
        visit: DeltaVisitor<'_>,
    ) -> ShardResults;
    /// Visits what each shard holds at or above its checkpoint and the catalogue lacks.
    fn catalogue(
        &self,
        asked: &[ShardRead],
        question: &CatalogueQuery<'_>,
        visit: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults;
    /// Visits what each shard has counted at or above its checkpoint.
    fn accounting(
        &self,
        asked: &[ShardRead],
        question: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults;
}
