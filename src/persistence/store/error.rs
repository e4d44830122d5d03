//! Why a call to the store failed.

use crate::model::offset::ShardId;

/// Why a call to the store failed. Callers first ask [`StoreError::outcome_unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The compare-and-set matched no row: another owner has the shard. Nothing was written.
    #[error("refused: shard {shard} is not at the expected checkpoint and epoch any more")]
    Refused {
        /// The shard that the caller no longer owns.
        shard: ShardId,
    },
    /// Certainly not applied. A retry may succeed.
    #[error("the store failed, nothing was written: {0}")]
    Failed(String),
    /// Certainly not applied: the server is unreachable, or reports that it cannot serve
    /// now. Recovers without intervention.
    #[error("the store is away, nothing was written: {0}")]
    Unavailable(String),
    /// Certainly not applied: the statement exceeded its time limit. The server is up, and the same
    /// statement would exceed it again.
    #[error("it takes longer than it may, nothing was written: {0}")]
    TooLong(String),
    /// The transaction may or may not have been applied.
    #[error("the outcome of the transaction is unknown: {0}")]
    Unknown(String),
    /// What is stored contradicts itself or this build. The message names it and says what to do.
    #[error("the store is unusable: {0}")]
    Invalid(String),
    /// More series match than one query may read.
    #[error(
        "more than {max} series of metric {metric} match, the limit query.max_series: add label \
         matchers or raise the limit"
    )]
    TooManySeries {
        /// The metric of the query.
        metric: String,
        /// The limit that applies, `query.max_series`.
        max: usize,
    },
    /// The query was aborted while it was being read; its
    /// [`QueryBudget`](crate::model::budget::QueryBudget) says why.
    #[error("the query has ended")]
    QueryEnded,
}

impl StoreError {
    /// Whether the transaction may have been applied. The shard then discards its state in memory
    /// and reloads from the checkpoint.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, StoreError::Unknown(_))
    }
}

/// A number that no other transition, life or owner has, for what the store must tell apart.
///
/// # Errors
/// [`StoreError::Failed`] without a source of randomness.
pub fn random_nonce() -> Result<u64, StoreError> {
    getrandom::u64().map_err(|e| StoreError::Failed(format!("no randomness: {e}")))
}
