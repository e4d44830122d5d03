//! What a verification found.

use std::sync::Arc;

use crate::model::flush::SeriesInfo;
use crate::model::offset::ShardId;
use crate::model::rollup::RollupFigures;
use crate::model::window::Hour;
use crate::persistence::store::StoreDamage;

/// A row whose stored rollup is not the fold of its records.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RowDifference {
    pub series: Arc<SeriesInfo>,
    pub hour: Hour,
    /// None if the store lacks the row.
    pub stored: Option<RollupFigures>,
    /// None if no record belongs to the row. Equal to `stored` if only the sketches differ.
    pub recomputed: Option<RollupFigures>,
}

/// The outcome of a verification.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// Stored rows in the range.
    pub rows: u64,
    /// Number of records folded, duplicates included.
    pub records: u64,
    /// Selected shards that have a checkpoint.
    pub shards: u64,
    /// Rows that differ, by series and window.
    pub differences: Vec<RowDifference>,
    /// The windows of the range below the archive floor; None if there are none.
    pub unverifiable: Option<UnverifiableWindows>,
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
        self.rows == 0 && self.unverifiable.is_some_and(|not| not.rows > 0)
    }
}

/// Windows whose records have expired, in whole or in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnverifiableWindows {
    /// The first window that was verified.
    pub before: Hour,
    /// Stored rows in the windows before that.
    pub rows: u64,
}
