//! Claims, blocks of ids, de-duplication rules, restoring a shard, and what a starting shard reads.

use rusqlite::{Connection, params};

use super::checksums::{rule_checksum, update_checksum, update_suspect_checksum};
use super::generations::note_cuts;
use super::manifest::{set_floor, write_manifest_row};
use super::{StoreError, codec, query_optional};
use crate::model::flush::{Claim, DedupBlock, DedupRule, DedupRules, SuspectEvent};
use crate::model::generation_book::GenerationBook;
use crate::model::manifest::ShardRestore;
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::series::{AdmittedSeries, OVERFLOW_IN_KEY, SeriesId};
use crate::model::window::Millis;

pub(super) fn claim(
    tx: &Connection,
    book: &GenerationBook,
    (shard, log): (ShardId, LogId),
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
    let sql =
        "INSERT INTO shards (shard, log, next, archived, epoch, nonce, attempts, set_version) \
               VALUES (?1, ?2, 0, 0, 1, ?3, 1, ?4)
        ON CONFLICT DO UPDATE SET epoch = epoch + 1, nonce = ?3, attempts = attempts + 1, \
               marked_offset = NULL
        RETURNING next, archived, epoch, attempts, appended, set_version";
    let newest = book.newest_set();
    if found.is_none() {
        // All of its records are still to come, so there is nothing to be filled in.
        note_cuts(tx, &newest.generations(), shard, (log, 0))?;
    }
    let new = params![shard.0, &log.0[..], nonce as i64, newest.version as i64];
    let claim = query_optional(tx, sql, new, |r| {
        let checkpoint = Checkpoint {
            log,
            next: r.get::<_, i64>(0)? as Offset,
            archived: r.get::<_, i64>(1)? as Offset,
            epoch: Epoch { counter: r.get::<_, i64>(2)? as u64, nonce },
            appended: r.get(4)?,
        };
        Ok((checkpoint, r.get(3)?, r.get::<_, i64>(5)? as u64))
    })?;
    update_checksum(tx, shard)?;
    let (checkpoint, attempts, version) = claim
        .ok_or_else(|| StoreError::Failed(format!("the claim of shard {shard} returned no row")))?;
    let set = book.adopted_set(version).ok_or_else(|| super::super::unknown_set(shard, version))?;
    Ok(Claim { checkpoint, attempts, suspects, set })
}

pub(super) fn mark_suspect(
    tx: &Connection,
    (shard, epoch): (ShardId, Epoch),
    offset: Offset,
    index: u32,
) -> Result<(), StoreError> {
    let sql = "UPDATE shards SET marked_offset = ?, marked_index = ? WHERE shard = ? AND epoch = ? \
               AND nonce = ?";
    let mark = params![offset as i64, index, shard.0, epoch.counter as i64, epoch.nonce as i64];
    match tx.prepare_cached(sql)?.execute(mark)? {
        1 => update_checksum(tx, shard),
        _ => Err(StoreError::Refused { shard }),
    }
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

pub(super) fn restore(tx: &Connection, of: &ShardRestore) -> Result<(), StoreError> {
    let Checkpoint { log, next, archived, epoch, .. } = of.checkpoint;
    // On conflict `next` stays where the flushes of the rebuild have moved it. Should the archived
    // offset go back, the notes below its former place are gone.
    tx.prepare_cached(
        "INSERT INTO shards (shard, log, next, archived, epoch, nonce, attempts) VALUES (?, ?, ?, \
         ?, ?, ?, 0)
         ON CONFLICT DO UPDATE SET archived = excluded.archived, epoch = excluded.epoch, nonce = \
         excluded.nonce,
         noted_from = CASE WHEN excluded.archived < archived THEN max(noted_from, archived) ELSE \
         noted_from END",
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
        let sql = "UPDATE series SET shard = ?, admitted_offset = ?, sum = ? WHERE id = ? AND part \
                   = 0";
        let sum = super::catalogue::admission_checksum(*id, (0, of.shard, 0), *offset);
        tx.prepare_cached(sql)?.execute(params![of.shard.0, *offset as i64, sum, &id.0[..]])?;
    }
    Ok(())
}

pub(super) fn admitted_series(
    connection: &Connection,
    shard: ShardId,
) -> Result<Vec<(String, AdmittedSeries)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT t.name, s.id, iif(instr(s.key, ?2), s.key, NULL) FROM series s JOIN metrics m ON \
         m.no = s.metric_no JOIN tenants t ON t.no = m.tenant_no
         WHERE s.shard = ?1 AND s.part = 0 ORDER BY t.name, s.id",
    )?;
    let mut rows = statement.query(params![shard.0, OVERFLOW_IN_KEY.as_bytes()])?;
    let mut tenants: Vec<(String, AdmittedSeries)> = Vec::new();
    while let Some(row) = rows.next()? {
        let tenant: String = row.get(0)?;
        if tenants.last().is_none_or(|(last, _)| *last != tenant) {
            tenants.push((tenant, AdmittedSeries::default()));
        }
        if let Some((_, admitted)) = tenants.last_mut() {
            let key: Option<Vec<u8>> = row.get(2)?;
            admitted.add(SeriesId(row.get(1)?), key.as_deref())?;
        }
    }
    Ok(tenants)
}

pub(super) fn metric_names(connection: &Connection) -> Result<Vec<(String, String)>, StoreError> {
    let sql = "SELECT t.name, m.name FROM metrics m JOIN tenants t ON t.no = m.tenant_no WHERE \
               m.generation = 0";
    let mut statement = connection.prepare_cached(sql)?;
    let names = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(names.collect::<Result<_, _>>()?)
}
