//! Claims, blocks of ids, the archive's progress, and what a starting shard reads.

use rusqlite::{Connection, params};

use super::{StoreError, codec, one};
use crate::model::flush::{Claim, DedupBlock, Suspect};
use crate::model::manifest::{ArchiveFloor, ManifestRow, Restored, Tier};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};

pub(super) fn claim(tx: &Connection, shard: ShardId, log: LogId, nonce: u64) -> Result<Claim, StoreError> {
    let found = one(tx, "SELECT log FROM shards WHERE shard = ?", [shard.0], |r| r.get::<_, [u8; 16]>(0))?;
    if let Some(found) = found.map(LogId)
        && found != log
    {
        return Err(super::super::other_log(shard, found, log));
    }
    tx.execute(
        "INSERT INTO suspects SELECT shard, marked_offset, marked_index, 1 FROM shards WHERE shard = ? AND marked_offset NOT NULL
         ON CONFLICT DO UPDATE SET deaths = deaths + 1",
        [shard.0],
    )?;
    let suspects = suspects(tx, shard)?;
    let sql = "INSERT INTO shards (shard, log, next, archived, epoch, nonce, attempts) VALUES (?1, ?2, 0, 0, 1, ?3, 1)
        ON CONFLICT DO UPDATE SET epoch = epoch + 1, nonce = ?3, attempts = attempts + 1, marked_offset = NULL
        RETURNING next, archived, epoch, attempts";
    let claim = one(tx, sql, params![shard.0, &log.0[..], nonce as i64], |r| {
        let checkpoint = Checkpoint {
            log,
            next: r.get::<_, i64>(0)? as Offset,
            archived: r.get::<_, i64>(1)? as Offset,
            epoch: Epoch { counter: r.get::<_, i64>(2)? as u64, nonce },
        };
        Ok((checkpoint, r.get(3)?))
    })?;
    let claim = claim.map(|(checkpoint, attempts)| Claim { checkpoint, attempts, suspects });
    claim.ok_or_else(|| StoreError::Failed(format!("the claim of shard {shard} returned no row")))
}

pub(super) fn suspects(tx: &Connection, shard: ShardId) -> Result<Vec<Suspect>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT offset, idx, deaths FROM suspects WHERE shard = ? ORDER BY offset, idx")?;
    let rows = statement
        .query_map([shard.0], |r| Ok(Suspect { offset: r.get::<_, i64>(0)? as Offset, index: r.get(1)?, deaths: r.get(2)? }))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn recent_ids(connection: &Connection, shard: ShardId, since: Millis) -> Result<Vec<DedupBlock>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT from_offset, to_offset, first_appended, last_appended, block FROM dedup
         WHERE shard = ? AND last_appended >= ? ORDER BY from_offset",
    )?;
    let mut rows = statement.query(params![shard.0, since])?;
    let mut blocks = Vec::new();
    while let Some(row) = rows.next()? {
        blocks.push(DedupBlock {
            range: OffsetRange { from: row.get::<_, i64>(0)? as Offset, to: row.get::<_, i64>(1)? as Offset },
            appended: (row.get(2)?, row.get(3)?),
            runs: codec::decode_runs(&row.get::<_, Vec<u8>>(4)?)?,
        });
    }
    Ok(blocks)
}

pub(super) fn archived(tx: &Connection, owner: Epoch, row: &ManifestRow) -> Result<(), StoreError> {
    let moved = tx
        .prepare_cached(
            "UPDATE shards SET archived = ? WHERE shard = ? AND log = ? AND archived = ? AND epoch = ? AND nonce = ?",
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
    note(tx, row)
}

fn note(tx: &Connection, row: &ManifestRow) -> Result<(), StoreError> {
    let sql = "INSERT INTO manifest VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
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
        codec::tier_number(row.tier)
    ])?;
    Ok(())
}

/// Bytes of all objects that the manifest lists.
pub(super) fn archived_bytes(connection: &Connection) -> Result<u64, StoreError> {
    let sum = one(connection, "SELECT coalesce(sum(bytes), 0) FROM manifest", [], |r| r.get::<_, i64>(0))?;
    Ok(sum.unwrap_or(0).unsigned_abs())
}

pub(super) fn moved(tx: &Connection, row: &ManifestRow, tier: Tier) -> Result<bool, StoreError> {
    let sql = "UPDATE manifest SET tier = ? WHERE shard = ? AND from_offset = ? AND path = ?";
    let place = params![codec::tier_number(tier), row.shard.0, row.range.from as i64, row.path];
    Ok(tx.prepare_cached(sql)?.execute(place)? == 1)
}

pub(super) fn expired(tx: &Connection, row: &ManifestRow) -> Result<bool, StoreError> {
    let sql = "DELETE FROM manifest WHERE shard = ?1 AND from_offset = ?2 AND path = ?3
        AND from_offset = (SELECT min(from_offset) FROM manifest WHERE shard = ?1)";
    if tx.prepare_cached(sql)?.execute(params![row.shard.0, row.range.from as i64, row.path])? != 1 {
        return Ok(false);
    }
    let sql = "SELECT offset, appended, hour FROM archive_floors WHERE shard = ?";
    let before = one(tx, sql, [row.shard.0], |r| floor(r, 0))?;
    set_floor(tx, row.shard, ArchiveFloor::raised(before, row))?;
    Ok(true)
}

fn set_floor(tx: &Connection, shard: ShardId, floor: ArchiveFloor) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT OR REPLACE INTO archive_floors VALUES (?, ?, ?, ?)")?.execute(params![
        shard.0,
        floor.offset as i64,
        floor.appended,
        floor.hour.0
    ])?;
    Ok(())
}

pub(super) fn restore(tx: &Connection, of: &Restored) -> Result<(), StoreError> {
    let Checkpoint { log, next, archived, epoch } = of.checkpoint;
    tx.prepare_cached(
        "INSERT INTO shards (shard, log, next, archived, epoch, nonce, attempts) VALUES (?, ?, ?, ?, ?, ?, 0)
         ON CONFLICT DO UPDATE SET archived = excluded.archived, epoch = excluded.epoch, nonce = excluded.nonce",
    )?
    .execute(params![of.shard.0, &log.0[..], next as i64, archived as i64, epoch.counter as i64, epoch.nonce as i64])?;
    if let Some(floor) = of.floor {
        set_floor(tx, of.shard, floor)?;
    }
    for row in &of.manifest {
        let place = params![of.shard.0, row.range.from as i64];
        tx.prepare_cached("DELETE FROM manifest WHERE shard = ? AND from_offset >= ?")?.execute(place)?;
        note(tx, row)?;
    }
    for (id, offset) in &of.admitted {
        let sql = "UPDATE series SET shard = ?, admitted_offset = ? WHERE id = ?";
        tx.prepare_cached(sql)?.execute(params![of.shard.0, *offset as i64, &id.0[..]])?;
    }
    Ok(())
}

/// The columns of a floor, from the given one on.
pub(super) fn floor(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<ArchiveFloor> {
    Ok(ArchiveFloor { offset: row.get::<_, i64>(at)? as Offset, appended: row.get(at + 1)?, hour: Hour(row.get(at + 2)?) })
}

pub(super) fn admitted_series(connection: &Connection, shard: ShardId) -> Result<Vec<(String, Vec<SeriesId>)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT t.name, s.id FROM series s JOIN metrics m ON m.no = s.metric_no JOIN tenants t ON t.no = m.tenant_no
         WHERE s.shard = ? ORDER BY t.name, s.id",
    )?;
    let mut rows = statement.query([shard.0])?;
    let mut tenants: Vec<(String, Vec<SeriesId>)> = Vec::new();
    while let Some(row) = rows.next()? {
        let tenant: String = row.get(0)?;
        let id = SeriesId(row.get(1)?);
        match tenants.last_mut() {
            Some((last, ids)) if *last == tenant => ids.push(id),
            _ => tenants.push((tenant, vec![id])),
        }
    }
    Ok(tenants)
}
