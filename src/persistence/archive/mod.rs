//! The port `Archive`: raw events as immutable Parquet objects. The manifest in the store says
//! which objects count.
//!
//! Implementations: [`objects`] (S3 or a local directory) and [`memory`] (the test double). Both
//! write the same [`parquet`] objects. An object without a manifest row is an orphan of a crash or
//! of a former owner, and is ignored.
//!
//! There may be two tiers, hot and cold. Objects are written to the hot store and move to the cold
//! one with age: copy, verify, update the manifest row, and only then delete the hot copy. The tier
//! in the row is where a reader looks first; if the object is not there, it tries the other store.
//! So an object is found at any moment, even through a manifest row that was read earlier.

pub mod chain;
pub mod columns;
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

use self::columns::{ColumnBatches, RawEvents};

use crate::model::CodecError;
use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, RangeDecisions, Tier};
use crate::model::offset::{Epoch, LogId, ShardId};
use crate::model::window::Millis;
pub use parquet::{ArchivedRecords, RecoveredObject};

/// Why an archive operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// The storage is unreachable or failed. A retry may succeed.
    #[error("the archive cannot be reached: {0}")]
    Unavailable(String),
    /// The storage acknowledged an object but does not return it as written. A
    /// retry writes it again.
    #[error(
        "archive object {0} was acknowledged by the storage, which does not have it as it was \
         written: the next attempt writes it again"
    )]
    NotKept(String),
    /// An object is damaged, or is not the one that the manifest row describes.
    #[error("archive object {path} is corrupt: {why}")]
    #[allow(missing_docs, reason = "the names say it")]
    Corrupt { path: String, why: String },
    /// An object that the manifest lists is gone.
    #[error("archive object {0} is missing")]
    Missing(String),
    /// An object is or belongs in the cold store, and none is configured.
    #[error(
        "archive object {0} needs the cold store, but archive.cold_url is empty: set it to where \
         the objects were moved"
    )]
    NoColdStore(String),
    /// The archive cannot be opened as configured.
    #[error("the archive cannot be opened: {0}")]
    Config(String),
    /// The records or their decisions cannot be encoded as columns.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// An object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ObjectInfo {
    pub path: String,
    /// Size of the object in bytes.
    pub bytes: u64,
    /// When the storage last wrote it, by the storage's clock.
    pub written: Millis,
    pub tier: Tier,
}

/// Small documents beside the objects: what is decided about replays. They are in the hot store, and
/// never expire. All methods block the calling thread.
pub trait ArchiveDocuments: Send + Sync {
    /// Puts a document, and reads it back. One that is there with the same bytes counts as put; the
    /// name is made from the bytes, so other ones are what a failed attempt left, and are replaced.
    ///
    /// # Errors
    /// If the storage fails, or does not keep it.
    fn put_document(&self, path: &str, bytes: &Bytes) -> Result<(), ArchiveError>;
    /// The documents under a folder, whose name ends with a slash, by path.
    ///
    /// # Errors
    /// If the storage fails.
    fn list_documents(&self, folder: &str) -> Result<Vec<ObjectInfo>, ArchiveError>;
    /// Reads a document.
    ///
    /// # Errors
    /// [`ArchiveError::Missing`] if it is not there, or if the storage fails.
    fn read_document(&self, path: &str) -> Result<Bytes, ArchiveError>;
}

/// Raw events in object storage. All methods block the calling thread.
pub trait Archive: Send + Sync + 'static {
    /// Writes consecutive records and the decisions about them as one object in the hot store,
    /// reads it back, and returns its manifest row.
    ///
    /// Puts are create-only. An existing object with the same bytes counts as written. One with
    /// other bytes is a leftover of this owner's failed attempt, because the name carries the
    /// epoch, and is replaced.
    ///
    /// # Errors
    /// If the records are not consecutive or cannot be encoded, or the storage fails or does
    /// not keep the object.
    fn write(
        &self,
        log: LogId,
        shard: ShardId,
        epoch: Epoch,
        records: &[LogRecord],
        decisions: &RangeDecisions,
    ) -> Result<ManifestRow, ArchiveError>;
    /// Reads an object back and returns its records as they were in the log, with what became of
    /// their events. Tries the tier of the row first, then the other one.
    ///
    /// # Errors
    /// If neither tier has the object intact, or the storage fails.
    fn read_all(&self, row: &ManifestRow) -> Result<ArchivedRecords, ArchiveError>;
    /// Reads the records of an object back.
    ///
    /// # Errors
    /// As for [`Archive::read_all`].
    fn read(&self, row: &ManifestRow) -> Result<Vec<LogRecord>, ArchiveError> {
        Ok(self.read_all(row)?.records)
    }
    /// Reads an object by column, in batches of consecutive records. Tries the tier of the row
    /// first, then the other one. Once it is open, all of it is at hand.
    ///
    /// # Errors
    /// If neither tier has the object intact, or the storage fails.
    fn read_columns(
        &self,
        row: &ManifestRow,
        raw: RawEvents,
    ) -> Result<ColumnBatches, ArchiveError> {
        self.read_all(row).map(|read| columns::of_records(read, raw))
    }
    /// Reads a listed object and derives its manifest row from it. For rebuilding a lost store.
    ///
    /// # Errors
    /// If the object is gone, damaged or has the footer of another one, or the storage fails.
    fn examine(&self, object: &ObjectInfo) -> Result<RecoveredObject, ArchiveError>;
    /// Lists all objects of a shard in both tiers, orphans included, sorted by path and tier.
    ///
    /// # Errors
    /// If the storage fails.
    fn list(&self, log: LogId, shard: ShardId) -> Result<Vec<ObjectInfo>, ArchiveError>;
    /// Deletes an object from a tier. Succeeds if it is not there.
    ///
    /// # Errors
    /// If the storage fails, or the tier is cold and no cold store is configured.
    fn remove(&self, path: &str, tier: Tier) -> Result<(), ArchiveError>;
    /// The documents beside the objects.
    fn documents(&self) -> &dyn ArchiveDocuments;
    /// Whether a cold store is configured.
    fn has_cold(&self) -> bool;
    /// Copies an object to the cold store and verifies the copy against the manifest row. Leaves
    /// the hot copy in place.
    ///
    /// # Errors
    /// If no cold store is configured, the object is missing or damaged, or the storage fails. A
    /// partial copy may remain in the cold store; the next attempt replaces it.
    fn copy_to_cold(&self, row: &ManifestRow) -> Result<(), ArchiveError>;
}

/// Decodes the bytes that were read under the row's path.
fn decode_verified(bytes: Bytes, row: &ManifestRow) -> Result<ArchivedRecords, ArchiveError> {
    // Checksum first: the Parquet library may panic on damaged bytes.
    verify_bytes(&bytes, row)?;
    parquet::decode(bytes, row)
        .map_err(|error| ArchiveError::Corrupt { path: row.path.clone(), why: error.to_string() })
}

/// Opens the verified bytes of an object by column.
fn open_columns(
    bytes: Bytes,
    row: &ManifestRow,
    raw: RawEvents,
) -> Result<ColumnBatches, ArchiveError> {
    let path = row.path.clone();
    let corrupt = move |error: CodecError| ArchiveError::Corrupt {
        path: path.clone(),
        why: error.to_string(),
    };
    let batches = parquet::ObjectColumns::open(bytes, row, raw).map_err(corrupt.clone())?;
    Ok(Box::new(batches.map(move |batch| batch.map_err(corrupt.clone()))))
}

/// Checks size and CRC32C against the manifest row.
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

/// Decodes the bytes that were read under a listed path.
fn recover_object(bytes: Bytes, object: &ObjectInfo) -> Result<RecoveredObject, ArchiveError> {
    let corrupt = |why: String| ArchiveError::Corrupt { path: object.path.clone(), why };
    let found = parquet::examine(bytes, object.tier).map_err(|error| corrupt(error.to_string()))?;
    // An object that somebody copied to another name is intact, but would tile the wrong range.
    if found.row.path != object.path {
        return Err(corrupt(format!("its footer is that of {}", found.row.path)));
    }
    Ok(found)
}

/// Which error to report when neither tier returned the object: one that a retry may fix comes
/// before one that it cannot.
fn more_retryable(a: ArchiveError, b: ArchiveError) -> ArchiveError {
    let rank = |error: &ArchiveError| match error {
        ArchiveError::Unavailable(_) | ArchiveError::NotKept(_) => 0,
        ArchiveError::Corrupt { .. } => 1,
        ArchiveError::NoColdStore(_) | ArchiveError::Config(_) | ArchiveError::Codec(_) => 2,
        ArchiveError::Missing(_) => 3,
    };
    if rank(&b) < rank(&a) { b } else { a }
}
