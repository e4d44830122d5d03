//! The port `Archive`: raw events as Parquet objects, put create-only. The manifest in the store says which objects count.
//!
//! The implementation on object storage comes with the archive issue; the archiver actor is written against this port.

use crate::model::CodecError;
use crate::model::flush::LogRecord;
use crate::model::manifest::ManifestRow;
use crate::model::offset::{Epoch, LogId, ShardId};

/// Why the archive failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// May work later.
    #[error("the archive cannot be reached: {0}")]
    Unavailable(String),
    /// An object is damaged or is not what the manifest says.
    #[error("archive object {path} is corrupt: {why}")]
    Corrupt {
        /// Its path.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// An object that the manifest lists is gone.
    #[error("archive object {0} is missing")]
    Missing(String),
    /// Records that do not decode cannot be archived by column.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Raw events in object storage. All methods block.
pub trait Archive: Send + Sync + 'static {
    /// Writes the records as one object, create-only, verifies its size and checksum and returns its manifest row. An object of the
    /// same name with the same bytes counts as written.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn write(&self, log: LogId, shard: ShardId, epoch: Epoch, records: &[LogRecord]) -> Result<ManifestRow, ArchiveError>;
    /// Reads an object back, records as they were in the log.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn read(&self, row: &ManifestRow) -> Result<Vec<LogRecord>, ArchiveError>;
    /// Paths of all objects of a log, for the search for orphans.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn list(&self, log: LogId) -> Result<Vec<String>, ArchiveError>;
    /// Removes an object.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn remove(&self, path: &str) -> Result<(), ArchiveError>;
}
