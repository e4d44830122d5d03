//! An archive object: a Parquet file with one row per event, in log order, compressed with zstd.
//!
//! The columns are for people and tools; DuckDB reads them directly. [`super::row`] turns rows back
//! into records, byte for byte. The footer ([`super::footer`]) names log, shard, range and epoch
//! and holds the decisions, so that a store can be rebuilt from a listing. The bytes are a function
//! of these inputs and the records: neither a timestamp nor the library's version goes in.

#[cfg(test)]
mod column_tests;
mod columns;
mod pages;
mod read;
#[cfg(test)]
pub(crate) mod tests;
mod write;

use std::collections::BTreeMap;

use parquet::errors::ParquetError;

pub use self::columns::ObjectColumns;
pub use self::read::{ArchivedRecords, RecoveredObject, decode, examine};
pub use self::write::encode;
use super::footer::ObjectTimes;
use super::row::EventRow;
use crate::model::CodecError;
use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, ObjectName, Tier};
use crate::model::offset::{LogId, OffsetRange, ShardId};
use crate::model::window::Hour;

/// The columns of version 3. New columns are appended; a change of meaning needs a new version.
/// Version 2 ends with `stamp`. Version 1 ends with `payload` and had one time, `received`, which
/// was the append time.
///
/// Objects of older releases begin with a column `shard`, which is also the folder's name: pyarrow,
/// and pandas with it, reject a column that occurs in both with different types. Their `labels`
/// have the logical type JSON, which some readers take for bytes.
pub const SCHEMA: &str = "message rollmill_event {
  required int64 offset;
  required int32 index;
  required int64 received (TIMESTAMP(MILLIS,true));
  optional int64 event_time (TIMESTAMP(MILLIS,true));
  optional binary tenant (STRING);
  optional binary metric (STRING);
  optional binary labels (STRING);
  optional binary series_id (STRING);
  optional binary id (STRING);
  optional binary user (STRING);
  optional fixed_len_byte_array(16) value (DECIMAL(38,9));
  optional binary raw;
  optional int64 gateway;
  optional int32 series_index;
  optional binary payload;
  required int64 appended (TIMESTAMP(MILLIS,true));
  optional int64 stamp (TIMESTAMP(MILLIS,true));
  optional binary outcome (STRING);
}";

/// What a manifest row says about the rows of its object.
#[derive(Debug, Default)]
struct RowSummary {
    windows: BTreeMap<Hour, u64>,
    events: u64,
    raw_bytes: u64,
}

impl RowSummary {
    fn add(&mut self, rows: &[EventRow]) {
        for row in rows {
            if let Some(time) = row.event_time {
                *self.windows.entry(Hour::of(time)).or_default() += 1;
                self.events += 1;
            }
            self.raw_bytes +=
                row.raw.as_ref().or(row.payload.as_ref()).map_or(0, |bytes| bytes.len() as u64);
        }
    }

    /// Builds the manifest row of an object with these bytes and times.
    fn manifest_row(
        self,
        identity: (LogId, ShardId, ObjectName),
        bytes: &[u8],
        times: ObjectTimes,
        tier: Tier,
    ) -> ManifestRow {
        let (log, shard, ObjectName { range, epoch }) = identity;
        ManifestRow {
            log,
            shard,
            range,
            epoch,
            path: ManifestRow::object_path(log, shard, range, epoch),
            appended: times.appended,
            received: times.received,
            windows: self.windows.into_iter().collect(),
            rows: self.events,
            raw_bytes: self.raw_bytes,
            bytes: bytes.len() as u64,
            crc32c: crc32c::crc32c(bytes),
            tier,
        }
    }
}

fn range_of(records: &[LogRecord]) -> Result<OffsetRange, CodecError> {
    let (Some(first), Some(last)) = (records.first(), records.last()) else {
        return Err(CodecError::new("archive object", "an object needs at least one record"));
    };
    if records.windows(2).any(|pair| pair[0].offset + 1 != pair[1].offset) {
        return Err(CodecError::new("archive object", "the records are not consecutive"));
    }
    Ok(OffsetRange { from: first.offset, to: last.offset + 1 })
}

fn bad(error: ParquetError) -> CodecError {
    CodecError::new("archive object", error.to_string())
}
