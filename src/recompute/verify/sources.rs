//! What a verification reads, and why it fails.

use std::sync::Arc;

use crate::model::manifest::ManifestRow;
use crate::model::offset::ShardId;
use crate::persistence::archive::{Archive, ArchiveError, ArchivedRecords};
use crate::persistence::log::{LogError, LogReader};
use crate::persistence::store::{StoreError, StoreInspection};

/// Why nothing, or one shard, could be verified.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum VerifyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An archive object is missing, damaged or unreachable.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The log was truncated or an object expired during the read. A retry finds the records in the
    /// archive, or a higher archive floor.
    #[error("the log was released, or archive objects expired, while they were being read")]
    Released,
    /// The log cannot be opened or read.
    #[error("{0}")]
    Log(String),
    /// Archive and log do not hold every record below the checkpoint.
    #[error("shard {shard} cannot be verified: {why}")]
    Incomplete { shard: ShardId, why: String },
}

impl VerifyError {
    /// Whether the error concerns one shard only, so that the others can still be verified.
    pub(super) fn is_shard_error(&self) -> bool {
        match self {
            VerifyError::Incomplete { .. } => true,
            VerifyError::Archive(error) => {
                matches!(error, ArchiveError::Corrupt { .. } | ArchiveError::Missing(_))
            }
            VerifyError::Store(_) | VerifyError::Released | VerifyError::Log(_) => false,
        }
    }

    /// Classifies a failed read of the log: damage and loss concern the shard, an
    /// unreachable log concerns all.
    pub(super) fn of_log(shard: ShardId, error: LogError) -> Self {
        match error {
            LogError::Released { .. } => VerifyError::Released,
            LogError::Io(why) => VerifyError::Log(why),
            LogError::Corrupt(_) | LogError::Replaced(_) | LogError::BeyondEnd { .. } => {
                VerifyError::Incomplete { shard, why: error.to_string() }
            }
        }
    }
}

/// The store to verify, and where its records come from.
pub struct VerifySources<'a> {
    /// Holds the rollups to verify.
    pub store: &'a dyn StoreInspection,
    /// Holds the records below the archived offsets.
    pub archive: &'a dyn Archive,
    /// Opens the log in its current state. Called after the snapshot of the store is taken, so that
    /// the log holds everything below the checkpoints.
    pub open_log: &'a dyn Fn() -> Result<Arc<dyn LogReader>, String>,
    /// `dedup.horizon` of the server in milliseconds. Applies to shards whose store has
    /// recorded no rule yet.
    pub dedup_horizon_ms: i64,
    /// `dedup.max_ids` of the server; applies like the horizon.
    pub dedup_max_ids: usize,
    /// Verify this shard only; all if None.
    pub only: Option<ShardId>,
}

impl VerifySources<'_> {
    /// Reads an archive object. A missing one may have expired since the snapshot.
    pub(super) fn read_object(&self, row: &ManifestRow) -> Result<ArchivedRecords, VerifyError> {
        match self.archive.read_all(row) {
            Err(ArchiveError::Missing(path)) => {
                // A new snapshot shows a floor that was raised in the meantime.
                let floors = self.store.snapshot()?.archive_floors()?;
                let expired =
                    floors.iter().any(|(id, f)| *id == row.shard && f.offset > row.range.from);
                let missing = || ArchiveError::Missing(path).into();
                Err(if expired { VerifyError::Released } else { missing() })
            }
            read => Ok(read?),
        }
    }
}
