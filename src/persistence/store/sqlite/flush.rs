//! The flush transaction.
//!
//! The compare-and-set comes first: a flush that does not own its range writes nothing at all.

use rusqlite::{Connection, params};

use super::catalogue::SeriesCatalogue;
use super::merge::merge;
use super::{StoreError, checksums, codec, generations};
use crate::model::flush::{FlushBatch, FlushGuard};
use crate::model::generation::{Writer, WriterPart};
use crate::model::window::{Hour, Millis};
use crate::persistence::store::SeriesScope;

pub(super) fn flush(
    tx: &Connection,
    catalogue: &mut SeriesCatalogue<'_>,
    guard: FlushGuard,
    batch: &FlushBatch,
    forget_ids_before: Millis,
) -> Result<(), StoreError> {
    let shard = guard.shard;
    let moved = tx
        .prepare_cached(
            "UPDATE shards SET next = ?1, appended = coalesce(?2, appended), attempts = 0, \
             marked_offset = NULL, set_version = ?3,
             noted_from = CASE WHEN noted_to = next THEN noted_from ELSE next END, noted_to = ?1
             WHERE shard = ?4 AND log = ?5 AND next = ?6 AND epoch = ?7 AND nonce = ?8 AND \
             set_version = ?9",
        )?
        .execute(params![
            guard.range.to as i64,
            batch.appended,
            batch.adopts.as_ref().map_or(batch.set, |adopted| adopted.version) as i64,
            shard.0,
            &guard.log.0[..],
            guard.range.from as i64,
            guard.epoch.counter as i64,
            guard.epoch.nonce as i64,
            batch.set as i64
        ])?;
    if moved != 1 {
        return Err(StoreError::Refused { shard });
    }
    // The row above changed, so its checksum is stale within this transaction.
    checksums::update_checksum(tx, shard)?;
    tx.prepare_cached("DELETE FROM suspects WHERE shard = ?")?.execute([shard.0])?;
    merge_all(tx, catalogue, guard, batch)?;
    write_ids_and_note(tx, guard, batch, forget_ids_before)?;
    for row in &batch.accounting {
        account(
            tx,
            &row.tenant,
            row.hour,
            [row.aggregated as i64, row.deduplicated as i64, row.quarantined as i64],
        )?;
    }
    for row in &batch.quarantined {
        tx.prepare_cached(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
        )?
        .execute(params![
            row.shard.0,
            row.offset as i64,
            row.index,
            row.tenant,
            row.received,
            row.reason,
            row.discarded,
            row.record,
            checksums::quarantine_checksum(row)
        ])?;
    }
    Ok(())
}

/// Merges what the flush adds to generation 0 and to the generations of its set.
fn merge_all(
    tx: &Connection,
    catalogue: &mut SeriesCatalogue<'_>,
    guard: FlushGuard,
    batch: &FlushBatch,
) -> Result<(), StoreError> {
    let shard = guard.shard;
    let writer = Writer { shard, part: WriterPart::Live };
    let mut lists = vec![(SeriesScope::Ingest, &*batch.deltas)];
    for (info, offset) in &batch.admitted {
        catalogue.number_series(SeriesScope::Ingest, info, (shard, *offset))?;
    }
    for of in &batch.generations {
        let scope = SeriesScope::Writer(of.generation, writer);
        for (info, offset) in &of.admitted {
            catalogue.number_series(scope, info, (shard, *offset))?;
        }
        lists.push((scope, &*of.deltas));
        generations::add_counts(tx, writer, of)?;
    }
    merge(tx, catalogue, &lists, (shard, guard.range.from), &|_| guard.revision())?;
    match &batch.adopts {
        Some(adopted) => {
            generations::note_cuts(tx, &adopted.begun, guard.shard, (guard.log, guard.range.to))
        }
        None => Ok(()),
    }
}

/// The block of ids, and the note of what is not counted.
fn write_ids_and_note(
    tx: &Connection,
    guard: FlushGuard,
    batch: &FlushBatch,
    forget_ids_before: Millis,
) -> Result<(), StoreError> {
    let shard = guard.shard;
    if let Some(block) = &batch.dedup {
        tx.prepare_cached("INSERT INTO dedup VALUES (?, ?, ?, ?, ?, ?, ?)")?.execute(params![
            shard.0,
            block.range.from as i64,
            block.range.to as i64,
            block.appended.0,
            block.appended.1,
            codec::encode_runs(&block.runs),
            checksums::block_checksum(shard, block.range, block.appended)
        ])?;
    }
    if !batch.outcomes.is_empty() {
        tx.prepare_cached("INSERT INTO outcome_notes VALUES (?, ?, ?, ?, ?)")?.execute(params![
            shard.0,
            guard.range.from as i64,
            guard.range.to as i64,
            codec::encode_note(&batch.outcomes),
            checksums::note_checksum(shard, guard.range)
        ])?;
    }
    tx.prepare_cached("DELETE FROM dedup WHERE shard = ? AND last_appended < ?")?
        .execute(params![shard.0, forget_ids_before])?;
    Ok(())
}

pub(super) fn account(
    tx: &Connection,
    tenant: &str,
    hour: Hour,
    growth: [i64; 3],
) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO accounting VALUES (?1, ?2, max(?3, 0), max(?4, 0), max(?5, 0)) ON CONFLICT \
         DO UPDATE SET
         aggregated = aggregated + ?3, deduplicated = deduplicated + ?4, quarantined = \
         max(quarantined + ?5, 0)",
    )?
    .execute(params![tenant, hour.0, growth[0], growth[1], growth[2]])?;
    Ok(())
}
