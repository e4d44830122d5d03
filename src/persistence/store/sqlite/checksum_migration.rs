//! Gives every row its checksum when a file of an older version is migrated.

use rusqlite::{Connection, Row, params};

use super::catalogue::admission_checksum;
use super::checksums::{
    all_dedup_rules, all_suspects, block_checksum, block_locations, manifest_checksum,
    quarantine_checksum, rule_checksum, update_checksum, update_expiry_checksum,
    update_suspect_checksum,
};
use super::manifest::{floor, set_floor};
use super::{StoreError, rows};
use crate::model::manifest::ArchiveFloor;
use crate::model::offset::{Offset, ShardId};
use crate::model::series::SeriesId;

fn update_admission_checksums(tx: &Connection) -> Result<(), StoreError> {
    let sql = "SELECT s.no, s.id, s.admitted_offset, m.generation, s.shard, s.part FROM series s \
               JOIN metrics m ON m.no = s.metric_no";
    let admission = |r: &Row<'_>| {
        let by = (r.get(3)?, ShardId(r.get(4)?), r.get(5)?);
        let sum = admission_checksum(SeriesId(r.get(1)?), by, r.get::<_, i64>(2)? as Offset);
        Ok([sum, r.get(0)?])
    };
    let sums: Vec<[i64; 2]> =
        tx.prepare(sql)?.query_map([], admission)?.collect::<Result<_, _>>()?;
    for sum in sums {
        tx.prepare_cached("UPDATE series SET sum = ? WHERE no = ?")?.execute(sum)?;
    }
    Ok(())
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
    update_admission_checksums(tx)?;
    for (block, range, appended, _) in block_locations(tx)? {
        let key = params![block_checksum(block, range, appended), block.0, range.from as i64];
        tx.prepare_cached("UPDATE dedup SET sum = ? WHERE shard = ? AND from_offset = ?")?
            .execute(key)?;
    }
    for rows::KeptQuarantineRow { row, .. } in rows::quarantine_rows(tx)? {
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
