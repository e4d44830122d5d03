//! Rows of the archive manifest.

use super::offset::{Epoch, LogId, Offset, OffsetRange, ShardId};
use super::window::{Hour, Millis};

/// One archive object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRow {
    /// The log of the offsets.
    pub log: LogId,
    /// The shard.
    pub shard: ShardId,
    /// The records inside.
    pub range: OffsetRange,
    /// Epoch of the owner that wrote it.
    pub epoch: Epoch,
    /// Path below the archive's root.
    pub path: String,
    /// Append time of the first and last record.
    pub appended: (Millis, Millis),
    /// The windows touched, ascending, with the number of events each.
    pub windows: Vec<(Hour, u64)>,
    /// Events.
    pub rows: u64,
    /// Raw bytes of the events.
    pub raw_bytes: u64,
    /// Size of the object.
    pub bytes: u64,
    /// CRC32C of the object.
    pub crc32c: u32,
}

impl ManifestRow {
    /// What the names of all objects of a log begin with.
    pub fn log_prefix(log: LogId) -> String {
        format!("raw/log={log}/")
    }

    /// The object's name: log, shard, range and epoch, so that two owners can never overwrite each other.
    pub fn object_path(log: LogId, shard: ShardId, range: OffsetRange, epoch: Epoch) -> String {
        format!(
            "{}shard={:04}/{:020}-{:020}-{:010}-{:016x}.parquet",
            Self::log_prefix(log),
            shard.0,
            range.from,
            range.to,
            epoch.counter,
            epoch.nonce
        )
    }
}

/// Whether the ranges tile `[0, archived)` without gap or overlap.
///
/// # Errors
/// Names the first place where they do not.
pub fn tiles<'a>(rows: impl IntoIterator<Item = &'a ManifestRow>, archived: Offset) -> Result<(), String> {
    let mut next = 0;
    for row in rows {
        if row.range.from != next {
            return Err(format!("the archive continues at offset {} where {next} was expected", row.range.from));
        }
        next = row.range.to;
    }
    if next == archived { Ok(()) } else { Err(format!("the archive ends at offset {next}, the checkpoint says {archived}")) }
}
