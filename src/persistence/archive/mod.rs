//! The port `Archive`: raw events as Parquet objects, put create-only. The manifest in the store
//! says which objects count.
//!
//! Implementations: [`objects`] (S3 or a local directory) and [`memory`] (the double). Both write
//! the same [`parquet`] objects. An object that no manifest row names is an orphan of a crash or of
//! an old owner, and means nothing.
//!
//! There may be two stores, hot and cold. Objects are written to the hot one and moved when they
//! are old: copied, verified, noted in the manifest, and only then removed from the hot one. The
//! tier in the row says where to look first; a reader that does not find the object there looks in
//! the other store, so that it is found at every moment, with a row that was read at any earlier
//! moment.

pub mod chain;
#[cfg(test)]
mod conformance;
mod footer;
pub mod location;
pub mod memory;
pub mod objects;
pub mod parquet;
mod row;
#[cfg(test)]
#[path = "../../../tests/support/s3.rs"]
mod server;

use bytes::Bytes;

use crate::model::CodecError;
use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, RangeDecisions, Tier};
use crate::model::offset::{Epoch, LogId, ShardId};
use crate::model::window::Millis;
pub use parquet::RecoveredObject;

/// Why the archive failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// May work later.
    #[error("the archive cannot be reached: {0}")]
    Unavailable(String),
    /// The storage acknowledged an object and does not have it as it was written. It may keep the
    /// next attempt.
    #[error(
        "archive object {0} was acknowledged by the storage, which does not have it as it was \
         written: the next attempt writes it again"
    )]
    NotKept(String),
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
    /// An object is, or should be, in the cold store, and there is none.
    #[error(
        "archive object {0} needs the cold store, but archive.cold_url is empty: set it to where \
         the objects were moved"
    )]
    NoColdStore(String),
    /// The archive cannot be opened as it is configured.
    #[error("the archive cannot be opened: {0}")]
    Config(String),
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
    /// Where it is.
    pub tier: Tier,
}

/// Raw events in object storage. All methods block.
pub trait Archive: Send + Sync + 'static {
    /// Writes the records as one object, with what was decided about them, create-only, verifies
    /// its size and checksum and returns its manifest row. An object of the same name with the
    /// same bytes counts as written; other bytes are what is left of a failed attempt of this very
    /// owner, because the name carries the epoch: they are replaced.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn write(
        &self,
        log: LogId,
        shard: ShardId,
        epoch: Epoch,
        records: &[LogRecord],
        decisions: &RangeDecisions,
    ) -> Result<ManifestRow, ArchiveError>;
    /// Reads an object back, records as they were in the log: from the tier of the row, or else
    /// from the other one.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn read(&self, row: &ManifestRow) -> Result<Vec<LogRecord>, ArchiveError>;
    /// Reads an object that was listed and makes its manifest row from it: the manifest is lost.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn examine(&self, object: &ObjectInfo) -> Result<RecoveredObject, ArchiveError>;
    /// All objects of a shard in both tiers, by path and tier, for the search for orphans.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn list(&self, log: LogId, shard: ShardId) -> Result<Vec<ObjectInfo>, ArchiveError>;
    /// Removes an object from a tier; one that is not there counts as removed.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    fn remove(&self, path: &str, tier: Tier) -> Result<(), ArchiveError>;
    /// Whether there is a cold store.
    fn has_cold(&self) -> bool;
    /// Copies an object to the cold store and verifies the copy against the manifest row. The hot
    /// one stays where it is.
    ///
    /// # Errors
    /// See [`ArchiveError`]; nothing but a leftover of the attempt may be in the cold store then,
    /// which the next attempt replaces.
    fn copy_to_cold(&self, row: &ManifestRow) -> Result<(), ArchiveError>;
}

/// The records in the bytes that were found under the row's path.
fn decode_verified(bytes: Bytes, row: &ManifestRow) -> Result<Vec<LogRecord>, ArchiveError> {
    verify_bytes(&bytes, row)?;
    parquet::decode(bytes, row)
        .map_err(|error| ArchiveError::Corrupt { path: row.path.clone(), why: error.to_string() })
}

/// That the bytes are those of the manifest row.
fn verify_bytes(bytes: &Bytes, row: &ManifestRow) -> Result<(), ArchiveError> {
    let corrupt = |why: String| ArchiveError::Corrupt { path: row.path.clone(), why };
    if bytes.len() as u64 != row.bytes {
        return Err(corrupt(format!(
            "it has {} bytes, the manifest says {}",
            bytes.len(),
            row.bytes
        )));
    }
    let crc = crc32c::crc32c(bytes);
    if crc != row.crc32c {
        return Err(corrupt(format!(
            "its CRC32C is {crc:08x}, the manifest says {:08x}",
            row.crc32c
        )));
    }
    Ok(())
}

/// The object in the bytes that were found under a listed path.
fn recover_object(bytes: Bytes, object: &ObjectInfo) -> Result<RecoveredObject, ArchiveError> {
    let corrupt = |why: String| ArchiveError::Corrupt { path: object.path.clone(), why };
    let found = parquet::examine(bytes, object.tier).map_err(|error| corrupt(error.to_string()))?;
    if found.row.path != object.path {
        return Err(corrupt(format!("its footer is that of {}", found.row.path)));
    }
    Ok(found)
}

/// What to say when neither tier gave the object: what is worth another attempt before what is not.
fn more_retryable(a: ArchiveError, b: ArchiveError) -> ArchiveError {
    let rank = |error: &ArchiveError| match error {
        ArchiveError::Unavailable(_) | ArchiveError::NotKept(_) => 0,
        ArchiveError::Corrupt { .. } => 1,
        ArchiveError::NoColdStore(_) | ArchiveError::Config(_) | ArchiveError::Codec(_) => 2,
        ArchiveError::Missing(_) => 3,
    };
    if rank(&b) < rank(&a) { b } else { a }
}
