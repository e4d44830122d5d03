//! A whole store in batches, to be copied from one implementation into an empty one: all rows
//! unchanged, except the numbers of series, which each store assigns itself.
//!
//! Not part of the port: no server uses it. [`super::sqlite`] exports, [`super::postgres`] imports,
//! and `rollmill migrate` connects the two.

use std::sync::Arc;

use super::{AuditEntry, SeriesScope, StoreError};
use crate::model::board::StoredBoard;
use crate::model::flush::{
    AccountingDelta, DedupBlock, DedupRule, DroppedEvents, FillProgress, QuarantineRow, RuleEvents,
    SeriesInfo, SuspectEvent,
};
use crate::model::generation::{GenerationId, Writer};
use crate::model::generation_book::GenerationBook;
use crate::model::manifest::{ArchiveFloor, ManifestRow};
use crate::model::offset::{Checkpoint, Offset, OffsetRange, ShardId};
use crate::model::outcome::OutcomeNote;
use crate::model::rollup::RollupFigures;
use crate::model::series::SeriesId;
use crate::model::window::Hour;

/// Most rows of a batch: bounds the memory of a transfer.
pub const BATCH_ROWS: usize = 8_192;

/// Receives the batches one after the other; an error ends the export.
pub type TransferSink<'a> = &'a mut dyn FnMut(TransferBatch) -> Result<(), StoreError>;

/// A shard's checkpoint, and how often it was started there.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardRow {
    pub shard: ShardId,
    pub checkpoint: Checkpoint,
    /// Starts at this checkpoint without a flush since.
    pub attempts: u32,
    /// The records whose outcomes the flushes have noted; `None` if an older release wrote all.
    pub noted: Option<OffsetRange>,
    /// Version of the set of generations that it writes.
    pub set_version: u64,
}

/// A row of the quarantine.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineEntry {
    pub row: QuarantineRow,
    /// It was released. The row waits for its record to expire, because a fill that comes to the
    /// record counts the event.
    pub released: bool,
}

/// How far the fill of a generation is in a shard.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillRow {
    pub generation: GenerationId,
    pub shard: ShardId,
    pub progress: FillProgress,
}

/// The figures of a rollup, as stored.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FiguresRow {
    pub scope: SeriesScope,
    pub series: SeriesId,
    pub hour: Hour,
    pub figures: RollupFigures,
}

/// The sketches of a rollup, byte for byte as stored.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SketchesRow {
    pub scope: SeriesScope,
    pub series: SeriesId,
    pub hour: Hour,
    pub distinct_users: Vec<u8>,
    pub quantiles: Vec<u8>,
}

/// The revision of a tenant's metric on one day.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionRow {
    pub generation: GenerationId,
    pub tenant: String,
    pub metric: String,
    /// UTC day, in days since the Unix epoch.
    pub day: i32,
    /// Unchanged, so that caches that were filled before stay correct.
    pub revision: u64,
}

/// Rows of one kind. All series come before the rows that refer to them.
#[derive(Debug, Clone)]
pub enum TransferBatch {
    /// Series that the shard admitted in a scope, each with the offset of its admission.
    Series(ShardId, SeriesScope, Vec<(Arc<SeriesInfo>, Offset)>),
    /// Figures of rollups, all shards and generations together.
    Figures(Vec<FiguresRow>),
    /// Sketches of rollups, all shards and generations together.
    Sketches(Vec<SketchesRow>),
    /// Revisions of all tenants and generations.
    Revisions(Vec<RevisionRow>),
    /// Blocks of ids of a shard, in log order.
    DedupBlocks(ShardId, Vec<DedupBlock>),
    /// What the flushes of a shard have not counted, by the records of the flush.
    OutcomeNotes(ShardId, Vec<(OffsetRange, OutcomeNote)>),
    /// De-duplication rules of a shard.
    DedupRules(ShardId, Vec<(Offset, DedupRule)>),
    /// Accounting as whole rows, not as growth.
    Accounting(Vec<AccountingDelta>),
    /// Quarantined events, also those that people have discarded or released.
    Quarantine(Vec<QuarantineEntry>),
    /// The suspects of a shard, see [`SuspectEvent`].
    Suspects(ShardId, Vec<SuspectEvent>),
    /// Rows of the manifest, of all shards.
    Manifest(Vec<ManifestRow>),
    /// Archive floors of the shards that have one.
    ArchiveFloors(Vec<(ShardId, ArchiveFloor)>),
    /// Boards, each with its tenant.
    Boards(Vec<(String, StoredBoard)>),
    /// The book of generations, if there ever was one.
    Book(Arc<GenerationBook>),
    /// How far the fills are, of all generations and shards.
    Fills(Vec<FillRow>),
    /// What the rules of generations have dropped, by writer.
    Dropped(Vec<(GenerationId, Writer, DroppedEvents)>),
    /// What each rule of generations has done, by writer.
    RuleEvents(Vec<(GenerationId, Writer, RuleEvents)>),
    /// The audit list of all tenants, the oldest entry first.
    Audit(Vec<AuditEntry>),
    /// The checkpoints of all shards.
    Shards(Vec<ShardRow>),
}

impl TransferBatch {
    /// The number of rows.
    pub fn len(&self) -> usize {
        match self {
            TransferBatch::Series(_, _, rows) => rows.len(),
            TransferBatch::Figures(rows) => rows.len(),
            TransferBatch::Sketches(rows) => rows.len(),
            TransferBatch::Revisions(rows) => rows.len(),
            TransferBatch::DedupBlocks(_, rows) => rows.len(),
            TransferBatch::OutcomeNotes(_, rows) => rows.len(),
            TransferBatch::DedupRules(_, rows) => rows.len(),
            TransferBatch::Accounting(rows) => rows.len(),
            TransferBatch::Quarantine(rows) => rows.len(),
            TransferBatch::Suspects(_, rows) => rows.len(),
            TransferBatch::Manifest(rows) => rows.len(),
            TransferBatch::ArchiveFloors(rows) => rows.len(),
            TransferBatch::Boards(rows) => rows.len(),
            TransferBatch::Book(_) => 1,
            TransferBatch::Fills(rows) => rows.len(),
            TransferBatch::Dropped(rows) => rows.len(),
            TransferBatch::RuleEvents(rows) => rows.len(),
            TransferBatch::Audit(rows) => rows.len(),
            TransferBatch::Shards(rows) => rows.len(),
        }
    }

    /// Whether the batch has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How much a store holds.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Series of generation 0.
    pub series: u64,
    /// Rollups of generation 0.
    pub rollups: u64,
    /// Rollups of other generations.
    pub replayed: u64,
    /// All rows of all batches.
    pub rows: u64,
}
