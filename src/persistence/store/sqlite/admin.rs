//! Claims, blocks of ids, progress of the archive, checksums of rows, and what a starting shard
//! reads.

use rusqlite::{Connection, params};

use super::{ExpiryTarget, StoreError, codec, query_optional, rows};
use crate::model::flush::{Claim, DedupBlock, DedupRule, DedupRules, QuarantineRow, SuspectEvent};
use crate::model::manifest::{ArchiveFloor, ManifestRow, ShardRestore, Tier};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};

pub(super) fn claim(
    tx: &Connection,
    shard: ShardId,
    log: LogId,
    nonce: u64,
) -> Result<Claim, StoreError> {
    let found = query_optional(tx, "SELECT log FROM shards WHERE shard = ?", [shard.0], |r| {
        r.get::<_, [u8; 16]>(0)
    })?;
    if let Some(found) = found.map(LogId)
        && found != log
    {
        return Err(super::super::other_log(shard, found, log));
    }
    // A mark that is still set means that the last owner crashed while applying that event.
    tx.execute(
        "INSERT INTO suspects (shard, offset, idx, deaths) SELECT shard, marked_offset, \
         marked_index, 1 FROM shards
         WHERE shard = ? AND marked_offset NOT NULL ON CONFLICT DO UPDATE SET deaths = deaths + 1",
        [shard.0],
    )?;
    let suspects = suspects(tx, shard)?;
    suspects.iter().try_for_each(|suspect| update_suspect_checksum(tx, shard, *suspect))?;
    let sql = "INSERT INTO shards (shard, log, next, archived, epoch, nonce, attempts) VALUES \
               (?1, ?2, 0, 0, 1, ?3, 1)
        ON CONFLICT DO UPDATE SET epoch = epoch + 1, nonce = ?3, attempts = attempts + 1, \
               marked_offset = NULL
        RETURNING next, archived, epoch, attempts, appended";
    let claim = query_optional(tx, sql, params![shard.0, &log.0[..], nonce as i64], |r| {
        let checkpoint = Checkpoint {
            log,
            next: r.get::<_, i64>(0)? as Offset,
            archived: r.get::<_, i64>(1)? as Offset,
            epoch: Epoch { counter: r.get::<_, i64>(2)? as u64, nonce },
            appended: r.get(4)?,
        };
        Ok((checkpoint, r.get(3)?))
    })?;
    update_checksum(tx, shard)?;
    let claim = claim.map(|(checkpoint, attempts)| Claim { checkpoint, attempts, suspects });
    claim.ok_or_else(|| StoreError::Failed(format!("the claim of shard {shard} returned no row")))
}

pub(super) fn suspects(tx: &Connection, shard: ShardId) -> Result<Vec<SuspectEvent>, StoreError> {
    let mut statement = tx.prepare_cached(
        "SELECT offset, idx, deaths FROM suspects WHERE shard = ? ORDER BY offset, idx",
    )?;
    let rows = statement.query_map([shard.0], |r| {
        Ok(SuspectEvent {
            offset: r.get::<_, i64>(0)? as Offset,
            index: r.get(1)?,
            deaths: r.get(2)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn recent_ids(
    connection: &Connection,
    shard: ShardId,
    since: Millis,
) -> Result<Vec<DedupBlock>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT from_offset, to_offset, first_appended, last_appended, block FROM dedup
         WHERE shard = ? AND last_appended >= ? ORDER BY from_offset",
    )?;
    let mut rows = statement.query(params![shard.0, since])?;
    let mut blocks = Vec::new();
    while let Some(row) = rows.next()? {
        blocks.push(DedupBlock {
            range: OffsetRange {
                from: row.get::<_, i64>(0)? as Offset,
                to: row.get::<_, i64>(1)? as Offset,
            },
            appended: (row.get(2)?, row.get(3)?),
            runs: codec::decode_runs(&row.get::<_, Vec<u8>>(4)?)?,
        });
    }
    Ok(blocks)
}

pub(super) fn set_dedup_rule(
    tx: &Connection,
    shard: ShardId,
    epoch: Epoch,
    from: Offset,
    rule: DedupRule,
) -> Result<(), StoreError> {
    let sql = "SELECT next <= ?4 OR NOT EXISTS (SELECT 1 FROM dedup_rules WHERE shard = ?1) FROM \
               shards
        WHERE shard = ?1 AND epoch = ?2 AND nonce = ?3";
    let place = params![shard.0, epoch.counter as i64, epoch.nonce as i64, from as i64];
    if query_optional(tx, sql, place, |r| r.get::<_, bool>(0))? != Some(true) {
        return Err(StoreError::Refused { shard });
    }
    // Rules from here on have decided nothing yet: no record above `from` is committed.
    tx.execute(
        "DELETE FROM dedup_rules WHERE shard = ? AND from_offset >= ?",
        params![shard.0, from as i64],
    )?;
    let row = params![
        shard.0,
        from as i64,
        rule.horizon_ms,
        rule.max_ids as i64,
        rule_checksum(shard, from, rule)
    ];
    tx.execute("INSERT INTO dedup_rules VALUES (?, ?, ?, ?, ?)", row)?;
    Ok(())
}

pub(super) fn dedup_rules(
    connection: &Connection,
    shard: ShardId,
) -> Result<DedupRules, StoreError> {
    let sql = "SELECT from_offset, horizon_ms, max_ids FROM dedup_rules WHERE shard = ? ORDER BY \
               from_offset";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([shard.0], |r| {
        let rule = DedupRule { horizon_ms: r.get(1)?, max_ids: r.get::<_, i64>(2)? as usize };
        Ok((r.get::<_, i64>(0)? as Offset, rule))
    })?;
    Ok(DedupRules(rows.collect::<Result<_, _>>()?))
}

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

/// The checksum of a shard's row as stored at the moment.
pub(super) fn shard_checksum(sql: &Connection, shard: ShardId) -> Result<i64, StoreError> {
    let columns = "SELECT log, next, archived, epoch, nonce, attempts, marked_offset, \
                   marked_index, appended FROM shards WHERE shard = ?";
    let sum = query_optional(sql, columns, [shard.0], |r| {
        let mut bytes: Vec<u8> = r.get(0)?;
        for column in 1..9 {
            // NULL is distinguished from every number.
            let number: Option<i64> = r.get(column)?;
            bytes.push(u8::from(number.is_some()));
            bytes.extend(number.unwrap_or(0).to_be_bytes());
        }
        Ok(codec::row_checksum(&[&shard.0.to_be_bytes(), &bytes]))
    })?;
    Ok(sum.unwrap_or(0))
}

/// Updates the checksum of a shard's row. Every change of the row must call it.
pub(super) fn update_checksum(tx: &Connection, shard: ShardId) -> Result<(), StoreError> {
    let sum = shard_checksum(tx, shard)?;
    tx.prepare_cached("UPDATE shards SET sum = ? WHERE shard = ?")?
        .execute(params![sum, shard.0])?;
    Ok(())
}

/// The checksum of a block's metadata; the block itself has its own.
pub(super) fn block_checksum(
    shard: ShardId,
    range: OffsetRange,
    appended: (Millis, Millis),
) -> i64 {
    let numbers = [range.from, range.to].map(u64::to_be_bytes).concat();
    codec::row_checksum(&[
        &shard.0.to_be_bytes(),
        &numbers,
        &appended.0.to_be_bytes(),
        &appended.1.to_be_bytes(),
    ])
}

/// The checksum of a quarantined event, without `discarded`, which may change.
pub(super) fn quarantine_checksum(row: &QuarantineRow) -> i64 {
    let of = [
        &row.shard.0.to_be_bytes()[..],
        &row.offset.to_be_bytes(),
        &row.index.to_be_bytes(),
        &row.received.to_be_bytes(),
    ]
    .concat();
    codec::row_checksum(&[&of, row.tenant.as_bytes(), row.reason.as_bytes(), &row.record])
}

/// The checksum of a row of the manifest.
pub(super) fn manifest_checksum(row: &ManifestRow) -> i64 {
    let numbers = [
        row.range.from,
        row.range.to,
        row.epoch.counter,
        row.epoch.nonce,
        row.rows,
        row.raw_bytes,
        row.bytes,
    ]
    .map(u64::to_be_bytes)
    .concat();
    let times = [row.appended.0, row.appended.1, row.received.0, row.received.1]
        .map(i64::to_be_bytes)
        .concat();
    let windows = codec::encode_windows(&row.windows);
    codec::row_checksum(&[
        &row.shard.0.to_be_bytes(),
        &row.log.0,
        &numbers,
        &times,
        row.path.as_bytes(),
        &windows,
        &row.crc32c.to_be_bytes(),
        &codec::tier_number(row.tier).to_be_bytes(),
    ])
}

/// The checksum of an archive floor.
pub(super) fn floor_checksum(shard: ShardId, floor: ArchiveFloor) -> i64 {
    let ArchiveFloor { offset, appended, hour } = floor;
    codec::row_checksum(&[
        &shard.0.to_be_bytes(),
        &offset.to_be_bytes(),
        &appended.to_be_bytes(),
        &hour.0.to_be_bytes(),
    ])
}

/// The checksum of a de-duplication rule.
pub(super) fn rule_checksum(shard: ShardId, from: Offset, rule: DedupRule) -> i64 {
    let numbers =
        [from, rule.horizon_ms as u64, rule.max_ids as u64].map(u64::to_be_bytes).concat();
    codec::row_checksum(&[&shard.0.to_be_bytes(), &numbers])
}

/// All de-duplication rules, each with its row's checksum.
#[allow(clippy::type_complexity)] // One row of the table.
pub(super) fn all_dedup_rules(
    sql: &Connection,
) -> Result<Vec<(ShardId, Offset, DedupRule, Option<i64>)>, StoreError> {
    let mut statement =
        sql.prepare("SELECT shard, from_offset, horizon_ms, max_ids, sum FROM dedup_rules")?;
    let rows = statement.query_map([], |r| {
        let rule = DedupRule { horizon_ms: r.get(2)?, max_ids: r.get::<_, i64>(3)? as usize };
        Ok((ShardId(r.get(0)?), r.get::<_, i64>(1)? as Offset, rule, r.get(4)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The checksum of a suspect.
pub(super) fn suspect_checksum(shard: ShardId, suspect: SuspectEvent) -> i64 {
    let SuspectEvent { offset, index, deaths } = suspect;
    codec::row_checksum(&[
        &shard.0.to_be_bytes(),
        &offset.to_be_bytes(),
        &index.to_be_bytes(),
        &deaths.to_be_bytes(),
    ])
}

fn update_suspect_checksum(
    tx: &Connection,
    shard: ShardId,
    suspect: SuspectEvent,
) -> Result<(), StoreError> {
    let key =
        params![suspect_checksum(shard, suspect), shard.0, suspect.offset as i64, suspect.index];
    tx.prepare_cached("UPDATE suspects SET sum = ? WHERE shard = ? AND offset = ? AND idx = ?")?
        .execute(key)?;
    Ok(())
}

/// All suspects, each with its row's checksum.
pub(super) fn all_suspects(
    sql: &Connection,
) -> Result<Vec<(ShardId, SuspectEvent, Option<i64>)>, StoreError> {
    let mut statement = sql.prepare("SELECT shard, offset, idx, deaths, sum FROM suspects")?;
    let rows = statement.query_map([], |r| {
        let suspect = SuspectEvent {
            offset: r.get::<_, i64>(1)? as Offset,
            index: r.get(2)?,
            deaths: r.get(3)?,
        };
        Ok((ShardId(r.get(0)?), suspect, r.get(4)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The checksum of an expiry state.
pub(super) fn expiry_checksum(of: i32, note: &str, said: i64) -> i64 {
    codec::row_checksum(&[&of.to_be_bytes(), note.as_bytes(), &said.to_be_bytes()])
}

/// Updates the checksum of an expiry state. Every change of the row must call it.
fn update_expiry_checksum(tx: &Connection, of: i32) -> Result<(), StoreError> {
    let sum = query_optional(tx, "SELECT note, said FROM expiry WHERE shard = ?", [of], |r| {
        Ok(expiry_checksum(of, &r.get::<_, String>(0)?, r.get(1)?))
    })?;
    tx.prepare_cached("UPDATE expiry SET sum = ? WHERE shard = ?")?.execute(params![sum, of])?;
    Ok(())
}

/// The key of a block of ids, its append times, and the checksum of its metadata.
type BlockLocation = (ShardId, OffsetRange, (Millis, Millis), Option<i64>);

/// The metadata of all blocks of ids.
pub(super) fn block_locations(sql: &Connection) -> Result<Vec<BlockLocation>, StoreError> {
    let mut statement = sql.prepare(
        "SELECT shard, from_offset, to_offset, first_appended, last_appended, sum FROM dedup",
    )?;
    let rows = statement.query_map([], |r| {
        let range =
            OffsetRange { from: r.get::<_, i64>(1)? as Offset, to: r.get::<_, i64>(2)? as Offset };
        Ok((ShardId(r.get(0)?), range, (r.get(3)?, r.get(4)?), r.get(5)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Writes the checksums of all rows, after a migration from a version without them.
pub(super) fn update_all_checksums(tx: &Connection) -> Result<(), StoreError> {
    // Rows are taken as they are: only damage after the migration can be found (ADR 31).
    let revisions: Vec<(i64, i32, i64)> = tx
        .prepare("SELECT metric_no, day, revision FROM revisions")?
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<Result<_, _>>()?;
    for (metric, day, revision) in revisions {
        let sum = rows::revision_checksum(metric, day, revision);
        tx.prepare_cached("UPDATE revisions SET sum = ? WHERE metric_no = ? AND day = ?")?
            .execute(params![sum, metric, day])?;
    }
    let shards: Vec<u32> = tx
        .prepare("SELECT shard FROM shards")?
        .query_map([], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    shards.into_iter().try_for_each(|shard| update_checksum(tx, ShardId(shard)))?;
    let floors: Vec<(u32, ArchiveFloor)> = tx
        .prepare("SELECT shard, offset, appended, hour FROM archive_floors")?
        .query_map([], |r| Ok((r.get(0)?, floor(r, 1)?)))?
        .collect::<Result<_, _>>()?;
    floors.into_iter().try_for_each(|(shard, floor)| set_floor(tx, ShardId(shard), floor))?;
    let series: Vec<(i64, [u8; 16], u32, i64)> = tx
        .prepare("SELECT no, id, shard, admitted_offset FROM series")?
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?
        .collect::<Result<_, _>>()?;
    for (no, id, shard, at) in series {
        let sum = super::catalogue::admission_checksum(SeriesId(id), ShardId(shard), at as Offset);
        tx.prepare_cached("UPDATE series SET sum = ? WHERE no = ?")?.execute([sum, no])?;
    }
    for (block, range, appended, _) in block_locations(tx)? {
        let key = params![block_checksum(block, range, appended), block.0, range.from as i64];
        tx.prepare_cached("UPDATE dedup SET sum = ? WHERE shard = ? AND from_offset = ?")?
            .execute(key)?;
    }
    for (row, _) in rows::quarantine_rows(tx)? {
        let key = params![quarantine_checksum(&row), row.shard.0, row.offset as i64, row.index];
        tx.prepare_cached(
            "UPDATE quarantine SET sum = ? WHERE shard = ? AND offset = ? AND idx = ?",
        )?
        .execute(key)?;
    }
    for (shard, from, rule, _) in all_dedup_rules(tx)? {
        let key = params![rule_checksum(shard, from, rule), shard.0, from as i64];
        tx.prepare_cached("UPDATE dedup_rules SET sum = ? WHERE shard = ? AND from_offset = ?")?
            .execute(key)?;
    }
    all_suspects(tx)?
        .into_iter()
        .try_for_each(|(shard, suspect, _)| update_suspect_checksum(tx, shard, suspect))?;
    let notes: Vec<i32> = tx
        .prepare("SELECT shard FROM expiry")?
        .query_map([], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    notes.into_iter().try_for_each(|of| update_expiry_checksum(tx, of))?;
    for (row, _) in rows::manifest_checksums(tx)? {
        let row = row?;
        let key = params![manifest_checksum(&row), row.shard.0, row.range.from as i64];
        tx.prepare_cached("UPDATE manifest SET sum = ? WHERE shard = ? AND from_offset = ?")?
            .execute(key)?;
    }
    Ok(())
}

fn write_manifest_row(tx: &Connection, row: &ManifestRow) -> Result<(), StoreError> {
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
    set_floor(tx, row.shard, ArchiveFloor::after_expiry(before, row))?;
    Ok(true)
}

fn set_floor(tx: &Connection, shard: ShardId, floor: ArchiveFloor) -> Result<(), StoreError> {
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

pub(super) fn restore(tx: &Connection, of: &ShardRestore) -> Result<(), StoreError> {
    let Checkpoint { log, next, archived, epoch, .. } = of.checkpoint;
    // On conflict `next` stays where the flushes of the rebuild have moved it.
    tx.prepare_cached(
        "INSERT INTO shards (shard, log, next, archived, epoch, nonce, attempts) VALUES (?, ?, ?, \
         ?, ?, ?, 0)
         ON CONFLICT DO UPDATE SET archived = excluded.archived, epoch = excluded.epoch, nonce = \
         excluded.nonce",
    )?
    .execute(params![
        of.shard.0,
        &log.0[..],
        next as i64,
        archived as i64,
        epoch.counter as i64,
        epoch.nonce as i64
    ])?;
    update_checksum(tx, of.shard)?;
    if let Some(floor) = of.floor {
        set_floor(tx, of.shard, floor)?;
    }
    for row in &of.manifest {
        let place = params![of.shard.0, row.range.from as i64];
        tx.prepare_cached("DELETE FROM manifest WHERE shard = ? AND from_offset >= ?")?
            .execute(place)?;
        write_manifest_row(tx, row)?;
    }
    for (id, offset) in &of.admitted {
        let sql = "UPDATE series SET shard = ?, admitted_offset = ?, sum = ? WHERE id = ?";
        let sum = super::catalogue::admission_checksum(*id, of.shard, *offset);
        tx.prepare_cached(sql)?.execute(params![of.shard.0, *offset as i64, sum, &id.0[..]])?;
    }
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

pub(super) fn admitted_series(
    connection: &Connection,
    shard: ShardId,
) -> Result<Vec<(String, Vec<SeriesId>)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT t.name, s.id FROM series s JOIN metrics m ON m.no = s.metric_no JOIN tenants t ON \
         t.no = m.tenant_no
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

pub(super) fn metric_names(connection: &Connection) -> Result<Vec<(String, String)>, StoreError> {
    let sql = "SELECT t.name, m.name FROM metrics m JOIN tenants t ON t.no = m.tenant_no";
    let mut statement = connection.prepare_cached(sql)?;
    let names = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(names.collect::<Result<_, _>>()?)
}
