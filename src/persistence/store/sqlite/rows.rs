//! Rows that several parts read: the manifest, the quarantine and the accounting; and the checksum
//! of a revision.

use rusqlite::{Connection, Row};

use super::{StoreError, codec};
use crate::model::flush::{AccountingDelta, QuarantineRow};
use crate::model::manifest::ManifestRow;
use crate::model::offset::{Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::window::Hour;

/// Selects the columns of a manifest row, in the order in which [`manifest_rows`] reads them.
macro_rules! manifest_columns {
    () => {
        "SELECT shard, from_offset, to_offset, log, epoch, nonce, path, first_appended, \
         last_appended, windows, rows, raw_bytes, bytes, crc32c, tier, first_received, \
         last_received FROM manifest"
    };
}
pub(super) use manifest_columns;

/// A row of the quarantine, as it is kept.
pub(super) struct KeptQuarantineRow {
    pub row: QuarantineRow,
    /// It was released, and the row waits for its record to expire.
    pub released: bool,
    pub sum: Option<i64>,
}

/// All rows of the quarantine.
pub(super) fn quarantine_rows(
    connection: &Connection,
) -> Result<Vec<KeptQuarantineRow>, StoreError> {
    let sql = "SELECT shard, offset, idx, tenant, appended, reason, discarded, record, released, \
               sum FROM quarantine ORDER BY shard, offset, idx";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |r| {
        let row = QuarantineRow {
            shard: ShardId(r.get(0)?),
            offset: r.get::<_, i64>(1)? as Offset,
            index: r.get(2)?,
            tenant: r.get(3)?,
            received: r.get(4)?,
            reason: r.get(5)?,
            discarded: r.get(6)?,
            record: r.get(7)?,
        };
        Ok(KeptQuarantineRow { row, released: r.get(8)?, sum: r.get(9)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// All rows of the manifest, or why they do not decode, each with its checksum.
#[allow(clippy::type_complexity)] // A pair that is taken apart at once.
pub(super) fn manifest_checksums(
    connection: &Connection,
) -> Result<Vec<(Result<ManifestRow, StoreError>, Option<i64>)>, StoreError> {
    let mut statement =
        connection.prepare(concat!(manifest_columns!(), " ORDER BY shard, from_offset"))?;
    let mut rows = statement.query([])?;
    // A second statement in the same order, because the shared list of columns has no checksum.
    let mut sums = connection.prepare("SELECT sum FROM manifest ORDER BY shard, from_offset")?;
    let mut sums = sums.query([])?;
    let mut all = Vec::new();
    while let (Some(row), Some(sum)) = (rows.next()?, sums.next()?) {
        all.push((manifest_row(row), sum.get(0)?));
    }
    Ok(all)
}

/// Reads rows that were selected with [`manifest_columns`].
pub(super) fn manifest_rows(mut rows: rusqlite::Rows<'_>) -> Result<Vec<ManifestRow>, StoreError> {
    let mut manifest = Vec::new();
    while let Some(row) = rows.next()? {
        manifest.push(manifest_row(row)?);
    }
    Ok(manifest)
}

fn manifest_row(r: &Row<'_>) -> Result<ManifestRow, StoreError> {
    Ok(ManifestRow {
        log: LogId(r.get(3)?),
        shard: ShardId(r.get(0)?),
        range: OffsetRange {
            from: r.get::<_, i64>(1)? as Offset,
            to: r.get::<_, i64>(2)? as Offset,
        },
        epoch: Epoch { counter: r.get::<_, i64>(4)? as u64, nonce: r.get::<_, i64>(5)? as u64 },
        path: r.get(6)?,
        appended: (r.get(7)?, r.get(8)?),
        windows: codec::decode_windows(&r.get::<_, Vec<u8>>(9)?)?,
        rows: r.get::<_, i64>(10)? as u64,
        raw_bytes: r.get::<_, i64>(11)? as u64,
        bytes: r.get::<_, i64>(12)? as u64,
        crc32c: r.get(13)?,
        tier: codec::tier(r.get(14)?)?,
        received: (r.get(15)?, r.get(16)?),
    })
}

/// The accounting of all tenants, by tenant and hour.
pub(super) fn accounting(connection: &Connection) -> Result<Vec<AccountingDelta>, StoreError> {
    let sql = "SELECT tenant, hour, aggregated, deduplicated, quarantined FROM accounting ORDER \
               BY tenant, hour";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |r| {
        Ok(AccountingDelta {
            tenant: r.get(0)?,
            hour: Hour(r.get(1)?),
            aggregated: r.get::<_, i64>(2)? as u64,
            deduplicated: r.get::<_, i64>(3)? as u64,
            quarantined: r.get::<_, i64>(4)? as u64,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The checksum of a revision, which no other data could restore.
pub(super) fn revision_checksum(metric_no: i64, day: i32, revision: i64) -> i64 {
    codec::row_checksum(&[&metric_no.to_be_bytes(), &day.to_be_bytes(), &revision.to_be_bytes()])
}
