//! The port `Archive`: raw events as Parquet objects, put create-only. The manifest in the store says which objects count.
//!
//! Implementations: [`objects`] (any object storage, a local directory so far) and [`memory`] (the double). Both write the same
//! [`parquet`] objects. An object that no manifest row names is an orphan of a crash or of an old owner, and means nothing.

#[cfg(test)]
mod conformance;
pub mod memory;
pub mod objects;
pub mod parquet;
mod row;

use bytes::Bytes;

use crate::model::CodecError;
use crate::model::flush::LogRecord;
use crate::model::manifest::ManifestRow;
use crate::model::offset::{Epoch, LogId, ShardId};
use crate::model::window::Millis;

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

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written.
    pub written: Millis,
}

/// Raw events in object storage. All methods block.
pub trait Archive: Send + Sync + 'static {
    /// Writes the records as one object, create-only, verifies its size and checksum and returns its manifest row. An object of the
    /// same name with the same bytes counts as written; other bytes are what is left of a failed attempt of this very owner, because the
    /// name carries the epoch: they are replaced.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn write(&self, log: LogId, shard: ShardId, epoch: Epoch, records: &[LogRecord]) -> Result<ManifestRow, ArchiveError>;
    /// Reads an object back, records as they were in the log.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn read(&self, row: &ManifestRow) -> Result<Vec<LogRecord>, ArchiveError>;
    /// All objects of a log by path, for the search for orphans.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn list(&self, log: LogId) -> Result<Vec<ObjectInfo>, ArchiveError>;
    /// Removes an object; one that is not there counts as removed.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn remove(&self, path: &str) -> Result<(), ArchiveError>;
}

/// The records in the bytes that were found under the row's path.
fn checked(bytes: Bytes, row: &ManifestRow) -> Result<Vec<LogRecord>, ArchiveError> {
    let corrupt = |why: String| ArchiveError::Corrupt { path: row.path.clone(), why };
    if bytes.len() as u64 != row.bytes {
        return Err(corrupt(format!("it has {} bytes, the manifest says {}", bytes.len(), row.bytes)));
    }
    let crc = crc32c::crc32c(&bytes);
    if crc != row.crc32c {
        return Err(corrupt(format!("its CRC32C is {crc:08x}, the manifest says {:08x}", row.crc32c)));
    }
    parquet::decode(bytes, row).map_err(|error| corrupt(error.to_string()))
}
