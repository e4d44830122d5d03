//! The checksums of rows, and the rows that are read together with theirs.

use rusqlite::{Connection, params};

use super::catalogue::part_number;
use super::{StoreError, codec, query_optional};
use crate::model::flush::{
    DedupRule, DroppedEvents, FillProgress, QuarantineRow, RuleEvents, SuspectEvent,
};
use crate::model::generation::{GenerationId, Writer};
use crate::model::manifest::{ArchiveFloor, ManifestRow};
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::model::window::Millis;
use crate::persistence::store::AuditEntry;

/// The checksum of a shard's row as stored at the moment.
pub(super) fn shard_checksum(sql: &Connection, shard: ShardId) -> Result<i64, StoreError> {
    let columns = "SELECT log, next, archived, epoch, nonce, attempts, marked_offset, \
                   marked_index, appended, noted_from, noted_to, set_version FROM shards WHERE \
                   shard = ?";
    let sum = query_optional(sql, columns, [shard.0], |r| {
        let mut bytes: Vec<u8> = r.get(0)?;
        for column in 1..12 {
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

/// The checksum of an outcome note's range; its events have their own.
pub(super) fn note_checksum(shard: ShardId, range: OffsetRange) -> i64 {
    let numbers = [range.from, range.to].map(u64::to_be_bytes).concat();
    codec::row_checksum(&[&shard.0.to_be_bytes(), &numbers])
}

/// The checksum of a quarantined event, without what people decided, which may change.
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

pub(super) fn update_suspect_checksum(
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
pub(super) fn update_expiry_checksum(tx: &Connection, of: i32) -> Result<(), StoreError> {
    let sum = query_optional(tx, "SELECT note, said FROM expiry WHERE shard = ?", [of], |r| {
        Ok(expiry_checksum(of, &r.get::<_, String>(0)?, r.get(1)?))
    })?;
    tx.prepare_cached("UPDATE expiry SET sum = ? WHERE shard = ?")?.execute(params![sum, of])?;
    Ok(())
}

/// The checksum of a book of generations.
pub(super) fn book_checksum(version: u64, document: &str) -> i64 {
    codec::row_checksum(&[&version.to_be_bytes(), document.as_bytes()])
}

/// The checksum of a cut and its cursor.
pub(super) fn fill_checksum(generation: GenerationId, shard: ShardId, at: &FillProgress) -> i64 {
    let numbers = [generation.0, at.cut, at.cursor].map(u64::to_be_bytes).concat();
    codec::row_checksum(&[&shard.0.to_be_bytes(), &at.log.0, &numbers])
}

/// The checksum of a count of dropped events.
pub(super) fn dropped_checksum(
    generation: GenerationId,
    writer: Writer,
    dropped: &DroppedEvents,
) -> i64 {
    let DroppedEvents { tenant, metric, day, events } = dropped;
    let part = part_number(writer.part);
    codec::row_checksum(&[
        &[generation.0, *events].map(u64::to_be_bytes).concat(),
        &writer.shard.0.to_be_bytes(),
        &part.to_be_bytes(),
        &day.to_be_bytes(),
        tenant.as_bytes(),
        metric.as_bytes(),
    ])
}

/// The checksum of a count of what a rule did.
pub(super) fn rule_events_checksum(
    generation: GenerationId,
    writer: Writer,
    counted: &RuleEvents,
) -> i64 {
    let RuleEvents { rule, outcome, events } = counted;
    codec::row_checksum(&[
        &[generation.0, *events].map(u64::to_be_bytes).concat(),
        &[writer.shard.0, *rule].map(u32::to_be_bytes).concat(),
        &part_number(writer.part).to_be_bytes(),
        outcome.as_bytes(),
    ])
}

/// The checksum of an entry of the audit list.
pub(super) fn audit_checksum(entry: &AuditEntry) -> i64 {
    let AuditEntry { generation, tenant, action, at, by, note } = entry;
    codec::row_checksum(&[
        &generation.0.to_be_bytes(),
        &at.to_be_bytes(),
        tenant.as_bytes(),
        action.as_bytes(),
        by.as_bytes(),
        note.as_bytes(),
    ])
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
