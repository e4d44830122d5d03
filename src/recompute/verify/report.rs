//! What a verification found.

use std::sync::Arc;

use crate::model::flush::{FillProgress, SeriesInfo};
use crate::model::generation::{GenerationId, Writer};
use crate::model::offset::ShardId;
use crate::model::rollup::RollupFigures;
use crate::model::window::Hour;
use crate::persistence::store::StoreDamage;

/// A row whose stored rollup is not the fold of its records.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RowDifference {
    /// The generation and who writes the row there; `None` for generation 0.
    pub written_by: Option<(GenerationId, Writer)>,
    pub series: Arc<SeriesInfo>,
    pub hour: Hour,
    /// None if the store lacks the row.
    pub stored: Option<RollupFigures>,
    /// None if no record belongs to the row. Equal to `stored` if only the sketches differ.
    pub recomputed: Option<RollupFigures>,
}

/// A generation besides generation 0 that was verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenerationCheck {
    /// The generation.
    pub generation: GenerationId,
    /// Stored rows that were compared, of both writers of each shard.
    pub rows: u64,
    /// Shards of which not everything is in it yet. What is there was compared.
    pub unfilled: Vec<UnfilledShard>,
}

/// A shard whose records are not all in a generation yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnfilledShard {
    /// The shard.
    pub shard: ShardId,
    /// How far it is filled; `None` if it has not begun.
    pub progress: Option<FillProgress>,
}

/// The outcome of a verification.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// Stored rows of generation 0 in the range.
    pub rows: u64,
    /// The other generations that are maintained.
    pub generations: Vec<GenerationCheck>,
    /// Days of generations that are being deleted. Their rows were not compared.
    pub leaving: u64,
    /// Number of records folded, duplicates included.
    pub records: u64,
    /// Selected shards that have a checkpoint.
    pub shards: u64,
    /// Rows that differ, by generation, series and window.
    pub differences: Vec<RowDifference>,
    /// The windows of the range below the archive floor; None if there are none.
    pub unverifiable: Option<UnverifiableWindows>,
    /// The windows of the range that the store has dropped by age; None if the records and the
    /// store have no row there.
    pub dropped: Option<DroppedWindows>,
    /// Shards whose records could not all be read, with the reason. Their rows were not compared,
    /// nor were those of overflow series, which shards share.
    pub unverified: Vec<(ShardId, String)>,
    /// Quarantined events and whole records. They are in no row, and the fold leaves them out too.
    pub quarantined: u64,
    /// Contradictions inside the store, and differences from the records outside of rollups.
    pub damages: Vec<StoreDamage>,
    /// Whether the accounting could be compared, which takes a fold of all records of all shards.
    pub accounting_compared: bool,
}

impl VerifyReport {
    /// Whether every selected row equals the fold of its records, and the rest of
    /// the store is consistent.
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty() && self.damages.is_empty() && self.unverified.is_empty()
    }

    /// Whether the range has rows, but none of them could be compared.
    pub fn compared_nothing(&self) -> bool {
        let others: u64 = self.generations.iter().map(|of| of.rows).sum();
        let expired = self.unverifiable.map_or(0, |not| not.rows);
        let dropped = self.dropped.map_or(0, |not| not.rows);
        self.rows + others == 0 && expired + dropped > 0
    }
}

/// Windows whose records have expired, in whole or in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnverifiableWindows {
    /// The first window that was verified.
    pub before: Hour,
    /// Stored rows in the windows before that, of all generations.
    pub rows: u64,
}

/// Windows whose rollups the store has dropped by age. What is stored there came later, and is not
/// all that the records give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DroppedWindows {
    /// The first window that is kept.
    pub before: Hour,
    /// Rows of the windows before that which the records give or which are stored, of all
    /// generations.
    pub rows: u64,
}
