//! A whole store in pieces, to be carried from one implementation into an empty one: every row as
//! it is, numbers of series apart, which each store gives by itself.
//!
//! It is no part of the port: nothing that serves uses it. [`super::sqlite`] exports,
//! [`super::postgres`] imports, `rollmill migrate` stands between them.

use std::sync::Arc;

use super::StoreError;
use crate::model::flush::{
    AccountingDelta, DedupBlock, DedupRule, QuarantineRow, SeriesInfo, SuspectEvent,
};
use crate::model::manifest::{ArchiveFloor, ManifestRow};
use crate::model::offset::{Checkpoint, Offset, ShardId};
use crate::model::rollup::RollupFigures;
use crate::model::series::SeriesId;
use crate::model::window::Hour;

/// Rows of a piece, at most: bounds what is in memory at once.
pub const BATCH_ROWS: usize = 8_192;

/// What takes the pieces, one after the other.
pub type TransferSink<'a> = &'a mut dyn FnMut(TransferBatch) -> Result<(), StoreError>;

/// Where a shard stands, and how often it was started there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardRow {
    /// The shard.
    pub shard: ShardId,
    /// Its checkpoint.
    pub checkpoint: Checkpoint,
    /// Starts without progress.
    pub attempts: u32,
}

/// The figures of a rollup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FiguresRow {
    /// Its series.
    pub series: SeriesId,
    /// Its window.
    pub hour: Hour,
    /// As stored.
    pub figures: RollupFigures,
}

/// The sketches of a rollup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SketchesRow {
    /// Its series.
    pub series: SeriesId,
    /// Its window.
    pub hour: Hour,
    /// As stored, byte for byte.
    pub distinct_users: Vec<u8>,
    /// As stored, byte for byte.
    pub quantiles: Vec<u8>,
}

/// The revision of a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionRow {
    /// Whose.
    pub tenant: String,
    /// Which metric.
    pub metric: String,
    /// Which UTC day.
    pub day: i32,
    /// As stored: a cache filled before stays right.
    pub revision: u64,
}

/// Some rows of a store. All series come before what names them.
#[derive(Debug, Clone)]
pub enum TransferBatch {
    /// Series of a shard, each with the offset at which it was admitted.
    Series(ShardId, Vec<(Arc<SeriesInfo>, Offset)>),
    /// Figures of rollups.
    Figures(Vec<FiguresRow>),
    /// Sketches of rollups.
    Sketches(Vec<SketchesRow>),
    /// Revisions.
    Revisions(Vec<RevisionRow>),
    /// Blocks of ids of a shard, in log order.
    DedupBlocks(ShardId, Vec<DedupBlock>),
    /// Rules of de-duplication of a shard.
    DedupRules(ShardId, Vec<(Offset, DedupRule)>),
    /// Accounting: whole rows, not growth.
    Accounting(Vec<AccountingDelta>),
    /// Events set aside, discarded ones too.
    Quarantine(Vec<QuarantineRow>),
    /// Events under suspicion of a shard.
    Suspects(ShardId, Vec<SuspectEvent>),
    /// The manifest.
    Manifest(Vec<ManifestRow>),
    /// Archive floors.
    ArchiveFloors(Vec<(ShardId, ArchiveFloor)>),
    /// Checkpoints.
    Shards(Vec<ShardRow>),
}

impl TransferBatch {
    /// Number of its rows.
    pub fn len(&self) -> usize {
        match self {
            TransferBatch::Series(_, rows) => rows.len(),
            TransferBatch::Figures(rows) => rows.len(),
            TransferBatch::Sketches(rows) => rows.len(),
            TransferBatch::Revisions(rows) => rows.len(),
            TransferBatch::DedupBlocks(_, rows) => rows.len(),
            TransferBatch::DedupRules(_, rows) => rows.len(),
            TransferBatch::Accounting(rows) => rows.len(),
            TransferBatch::Quarantine(rows) => rows.len(),
            TransferBatch::Suspects(_, rows) => rows.len(),
            TransferBatch::Manifest(rows) => rows.len(),
            TransferBatch::ArchiveFloors(rows) => rows.len(),
            TransferBatch::Shards(rows) => rows.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Series.
    pub series: u64,
    /// Rollups.
    pub rollups: u64,
    /// Rows of all pieces.
    pub rows: u64,
}
