//! The manifest of the archive, its floors, and the states by which its objects expire.

use rusqlite::{Connection, params};

use super::checksums::{
    floor_checksum, manifest_checksum, update_checksum, update_expiry_checksum,
};
use super::{ExpiryTarget, StoreError, codec, quarantine, query_optional};
use crate::model::manifest::{ArchiveFloor, ManifestRow, Tier};
use crate::model::offset::{Epoch, Offset, ShardId};
use crate::model::window::Hour;

pub(super) fn insert_manifest_row(
    tx: &Connection,
    owner: Epoch,
    row: &ManifestRow,
) -> Result<(), StoreError> {
    // The compare-and-set comes first: a stale owner inserts nothing.
    let moved = tx
        .prepare_cached(
            "UPDATE shards SET archived = ? WHERE shard = ? AND log = ? AND archived = ? AND \
             epoch = ? AND nonce = ?",
        )?
        .execute(params![
            row.range.to as i64,
            row.shard.0,
            &row.log.0[..],
            row.range.from as i64,
            owner.counter as i64,
            owner.nonce as i64
        ])?;
    if moved != 1 {
        return Err(StoreError::Refused { shard: row.shard });
    }
    update_checksum(tx, row.shard)?;
    write_manifest_row(tx, row)
}

/// Writes the row, and deletes the outcome notes that its object has made superfluous.
pub(super) fn write_manifest_row(tx: &Connection, row: &ManifestRow) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM outcome_notes WHERE shard = ? AND to_offset <= ?")?
        .execute(params![row.shard.0, row.range.to as i64])?;
    let sql = "INSERT INTO manifest VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    tx.prepare_cached(sql)?.execute(params![
        row.shard.0,
        row.range.from as i64,
        row.range.to as i64,
        &row.log.0[..],
        row.epoch.counter as i64,
        row.epoch.nonce as i64,
        row.path,
        row.appended.0,
        row.appended.1,
        codec::encode_windows(&row.windows),
        row.rows as i64,
        row.raw_bytes as i64,
        row.bytes as i64,
        row.crc32c,
        codec::tier_number(row.tier),
        manifest_checksum(row),
        row.received.0,
        row.received.1
    ])?;
    Ok(())
}

/// Total size of the objects in the manifest.
pub(super) fn archived_bytes(connection: &Connection) -> Result<u64, StoreError> {
    let sum =
        query_optional(connection, "SELECT coalesce(sum(bytes), 0) FROM manifest", [], |r| {
            r.get::<_, i64>(0)
        })?;
    Ok(sum.unwrap_or(0).unsigned_abs())
}

pub(super) fn set_tier(tx: &Connection, row: &ManifestRow, tier: Tier) -> Result<bool, StoreError> {
    let sql =
        "UPDATE manifest SET tier = ?, sum = ? WHERE shard = ? AND from_offset = ? AND path = ?";
    let sum = manifest_checksum(&ManifestRow { tier, ..row.clone() });
    let place =
        params![codec::tier_number(tier), sum, row.shard.0, row.range.from as i64, row.path];
    Ok(tx.prepare_cached(sql)?.execute(place)? == 1)
}

pub(super) fn swap_expiry(
    tx: &Connection,
    of: ExpiryTarget,
    before: Option<&str>,
    after: &str,
) -> Result<bool, StoreError> {
    let changed = match before {
        None => tx
            .prepare_cached(
                "INSERT INTO expiry (shard, note) VALUES (?, ?) ON CONFLICT DO NOTHING",
            )?
            .execute(params![of.code(), after])?,
        Some(before) => tx
            .prepare_cached("UPDATE expiry SET note = ? WHERE shard = ? AND note = ?")?
            .execute(params![after, of.code(), before])?,
    };
    update_expiry_checksum(tx, of.code())?;
    Ok(changed == 1)
}

pub(super) fn approve_expiry(tx: &Connection, of: &[ExpiryTarget]) -> Result<u64, StoreError> {
    let mut statement = tx.prepare_cached("UPDATE expiry SET said = said + 1 WHERE shard = ?")?;
    let mut said = 0;
    for one in of {
        said += statement.execute([one.code()])? as u64;
        update_expiry_checksum(tx, one.code())?;
    }
    Ok(said)
}

pub(super) fn expire_object(tx: &Connection, row: &ManifestRow) -> Result<bool, StoreError> {
    let sql = "DELETE FROM manifest WHERE shard = ?1 AND from_offset = ?2 AND path = ?3
        AND from_offset = (SELECT min(from_offset) FROM manifest WHERE shard = ?1)";
    if tx.prepare_cached(sql)?.execute(params![row.shard.0, row.range.from as i64, row.path])? != 1
    {
        return Ok(false);
    }
    let sql = "SELECT offset, appended, hour FROM archive_floors WHERE shard = ?";
    let before = query_optional(tx, sql, [row.shard.0], |r| floor(r, 0))?;
    let floor = ArchiveFloor::after_expiry(before, row);
    set_floor(tx, row.shard, floor)?;
    quarantine::forget_settled(tx, row.shard, floor.offset)?;
    Ok(true)
}

pub(super) fn set_floor(
    tx: &Connection,
    shard: ShardId,
    floor: ArchiveFloor,
) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT OR REPLACE INTO archive_floors VALUES (?, ?, ?, ?, ?)")?.execute(
        params![
            shard.0,
            floor.offset as i64,
            floor.appended,
            floor.hour.0,
            floor_checksum(shard, floor)
        ],
    )?;
    Ok(())
}

/// Reads an archive floor from the columns that begin at `at`.
pub(super) fn floor(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<ArchiveFloor> {
    Ok(ArchiveFloor {
        offset: row.get::<_, i64>(at)? as Offset,
        appended: row.get(at + 1)?,
        hour: Hour(row.get(at + 2)?),
    })
}
