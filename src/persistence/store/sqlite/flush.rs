//! The flush transaction, and the release of a quarantined event, which merges in the same way.
//!
//! The compare-and-set comes first: a flush that does not own its range writes nothing at all.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use super::catalogue::SeriesCatalogue;
use super::codec::{self, SqliteUnits};
use super::{StoreError, checksums, query_optional, rows};
use crate::model::decimal::Decimal;
use crate::model::distinct::DistinctSketch;
use crate::model::flush::{Delta, FlushBatch, FlushGuard, revision_after_release};
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::quantiles::QuantileSketch;
use crate::model::rollup::RollupFigures;
use crate::model::window::{Hour, Millis};

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
             marked_offset = NULL,
             noted_from = CASE WHEN noted_to = next THEN noted_from ELSE next END, noted_to = ?1
             WHERE shard = ?3 AND log = ?4 AND next = ?5 AND epoch = ?6 AND nonce = ?7",
        )?
        .execute(params![
            guard.range.to as i64,
            batch.appended,
            shard.0,
            &guard.log.0[..],
            guard.range.from as i64,
            guard.epoch.counter as i64,
            guard.epoch.nonce as i64
        ])?;
    if moved != 1 {
        return Err(StoreError::Refused { shard });
    }
    // The row above changed, so its checksum is stale within this transaction.
    checksums::update_checksum(tx, shard)?;
    tx.prepare_cached("DELETE FROM suspects WHERE shard = ?")?.execute([shard.0])?;
    for (info, offset) in &batch.admitted {
        catalogue.number_series(info, shard, *offset)?;
    }
    merge(tx, catalogue, &batch.deltas, (shard, guard.range.from), &|_| guard.revision())?;
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
        tx.prepare_cached("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")?
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

/// Releases (`Some`) or discards (`None`) a quarantined event. The store adjusts the accounting
/// itself; that of the batch is not used.
pub(super) fn settle(
    tx: &Connection,
    catalogue: &mut SeriesCatalogue<'_>,
    (shard, offset, index): (ShardId, Offset, u32),
    delta: Option<&FlushBatch>,
) -> Result<bool, StoreError> {
    let key = params![shard.0, offset as i64, index];
    let sql = if delta.is_some() {
        "DELETE FROM quarantine WHERE shard = ? AND offset = ? AND idx = ? AND NOT discarded \
         RETURNING tenant, appended"
    } else {
        "UPDATE quarantine SET discarded = 1 WHERE shard = ? AND offset = ? AND idx = ? AND NOT \
         discarded RETURNING tenant, appended"
    };
    let Some((tenant, received)) =
        query_optional(tx, sql, key, |r| Ok((r.get::<_, String>(0)?, r.get::<_, Millis>(1)?)))?
    else {
        return Ok(false);
    };
    if let Some(batch) = delta {
        let log = query_optional(tx, "SELECT log FROM shards WHERE shard = ?", [shard.0], |r| {
            r.get::<_, [u8; 16]>(0)
        })?;
        let log = LogId(log.unwrap_or_default());
        let revise = |before| revision_after_release(before, log, shard, offset, index);
        merge(tx, catalogue, &batch.deltas, (shard, offset), &revise)?;
        account(tx, &tenant, Hour::of(received), [1, 0, -1])?;
    }
    Ok(true)
}

fn account(tx: &Connection, tenant: &str, hour: Hour, growth: [i64; 3]) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO accounting VALUES (?1, ?2, max(?3, 0), max(?4, 0), max(?5, 0)) ON CONFLICT \
         DO UPDATE SET
         aggregated = aggregated + ?3, deduplicated = deduplicated + ?4, quarantined = \
         max(quarantined + ?5, 0)",
    )?
    .execute(params![tenant, hour.0, growth[0], growth[1], growth[2]])?;
    Ok(())
}

/// Merges deltas into their rows, in the order of the primary key, so that pages are visited once.
fn merge(
    tx: &Connection,
    catalogue: &mut SeriesCatalogue<'_>,
    deltas: &[Delta],
    (shard, at): (ShardId, Offset),
    revise: &dyn Fn(u64) -> u64,
) -> Result<(), StoreError> {
    let mut rows = Vec::with_capacity(deltas.len());
    for delta in deltas {
        let (metric_no, series_no) = catalogue.number_series(&delta.series, shard, at)?;
        rows.push(((metric_no, delta.hour.0, series_no), delta));
    }
    rows.sort_by_key(|(key, _)| *key);
    let mut days = BTreeSet::new();
    let mut hours: BTreeMap<i64, (i32, i32)> = BTreeMap::new();
    // Prepared once: a flush merges thousands of rows with the same five statements.
    let mut statements = Statements::prepare(tx)?;
    for (key, delta) in &rows {
        statements.merge_figures(*key, &delta.rollup.figures)?;
        if !delta.rollup.distinct.is_empty() || !delta.rollup.quantiles.is_empty() {
            statements.merge_sketches(*key, delta)?;
        }
        days.insert((key.0, delta.hour.day()));
        let span = hours.entry(key.0).or_insert((key.1, key.1));
        *span = (span.0.min(key.1), span.1.max(key.1));
    }
    for (metric_no, day) in days {
        let sql = "SELECT revision FROM revisions WHERE metric_no = ? AND day = ?";
        let before =
            query_optional(tx, sql, params![metric_no, day], |r| r.get::<_, i64>(0))?.unwrap_or(0);
        let revision = revise(before as u64) as i64;
        tx.prepare_cached("INSERT OR REPLACE INTO revisions VALUES (?, ?, ?, ?)")?.execute(
            params![metric_no, day, revision, rows::revision_checksum(metric_no, day, revision)],
        )?;
    }
    for (metric_no, (first, last)) in hours {
        tx.prepare_cached(
            "UPDATE metrics SET first_hour = min(coalesce(first_hour, ?2), ?2), last_hour = \
             max(coalesce(last_hour, ?3), ?3)
             WHERE no = ?1",
        )?
        .execute(params![metric_no, first, last])?;
    }
    Ok(())
}

type RowKey = (i64, i32, i64);

/// The statements that run for every row of a flush.
struct Statements<'a> {
    figures: CachedStatement<'a>,
    put_figures: CachedStatement<'a>,
    sketches: CachedStatement<'a>,
    update_sketches: CachedStatement<'a>,
    insert_sketches: CachedStatement<'a>,
}

impl<'a> Statements<'a> {
    fn prepare(tx: &'a Connection) -> Result<Self, StoreError> {
        Ok(Self {
            figures: tx.prepare_cached(
                "SELECT count, value_count, sum, min, max FROM rollups WHERE metric_no = ? AND \
                 hour = ? AND series_no = ?",
            )?,
            put_figures: tx
                .prepare_cached("INSERT OR REPLACE INTO rollups VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?,
            sketches: tx.prepare_cached(
                "SELECT rowid, distinct_users, quantiles FROM sketches WHERE metric_no = ? AND \
                 hour = ? AND series_no = ?",
            )?,
            update_sketches: tx.prepare_cached(
                "UPDATE sketches SET distinct_users = ?, quantiles = ? WHERE rowid = ?",
            )?,
            insert_sketches: tx.prepare_cached("INSERT INTO sketches VALUES (?, ?, ?, ?, ?)")?,
        })
    }

    fn merge_figures(&mut self, key: RowKey, growth: &RollupFigures) -> Result<(), StoreError> {
        // Added here and not in SQL: a sum may exceed 64 bits.
        let mut figures =
            self.figures.query_row(key, |r| codec::figures(r, 0)).optional()?.unwrap_or_default();
        figures.merge(growth);
        self.put_figures.execute(params![
            key.0,
            key.1,
            key.2,
            figures.count as i64,
            figures.value_count as i64,
            SqliteUnits(figures.sum),
            figures.min.map(Decimal::units).map(SqliteUnits),
            figures.max.map(Decimal::units).map(SqliteUnits)
        ])?;
        Ok(())
    }

    fn merge_sketches(&mut self, key: RowKey, delta: &Delta) -> Result<(), StoreError> {
        let stored = |r: &Row<'_>| {
            let (users, values) = (r.get_ref(1)?.as_blob()?, r.get_ref(2)?.as_blob()?);
            Ok((r.get::<_, i64>(0)?, DistinctSketch::decode(users), QuantileSketch::decode(values)))
        };
        match self.sketches.query_row(key, stored).optional()? {
            Some((rowid, distinct, quantiles)) => {
                let (mut distinct, mut quantiles) = (distinct?, quantiles?);
                distinct.merge(&delta.rollup.distinct);
                quantiles.merge(&delta.rollup.quantiles);
                self.update_sketches.execute(params![
                    encoded(|out| distinct.encode(out)),
                    encoded(|out| quantiles.encode(out)),
                    rowid
                ])?;
            }
            None => {
                let (distinct, quantiles) = (&delta.rollup.distinct, &delta.rollup.quantiles);
                self.insert_sketches.execute(params![
                    key.0,
                    key.1,
                    key.2,
                    encoded(|out| distinct.encode(out)),
                    encoded(|out| quantiles.encode(out))
                ])?;
            }
        }
        Ok(())
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}
