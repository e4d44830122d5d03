//! The flush transaction.
//!
//! The compare-and-set comes first: a flush that does not own its range writes nothing at all. From
//! then on the shard's row is locked, which protects all rollups of the shard, so their sketches
//! can be read, merged here and written back. Rows that shards share (accounting, revisions,
//! metrics) come last and in key order, so that they are locked only briefly and no two flushes
//! deadlock.

use std::collections::BTreeMap;

use super::StoreError;
use super::catalogue::{self, PostgresSeriesCache, ScopedNumbers, SeriesGrowth};
use super::codec::UuidBytes;
use super::compressed_weeks::CompressedWeeks;
use super::generations;
use super::merge::merge;
use super::session::{Param, PostgresSession, params};
use crate::model::flush::{AccountingDelta, FlushBatch, FlushGuard, QuarantineRow};
use crate::model::generation::{Writer, WriterPart};
use crate::model::offset::{OffsetRange, ShardId};
use crate::model::outcome::OutcomeNote;
use crate::model::window::Millis;
use crate::persistence::store::{SeriesScope, byte_columns};

/// Writes one flush. Returns the numbers to cache after the commit.
pub(super) fn flush(
    session: &mut PostgresSession,
    (known, compressed): (&PostgresSeriesCache, &CompressedWeeks),
    guard: FlushGuard,
    batch: &FlushBatch,
    forget_ids_before: Millis,
) -> Result<ScopedNumbers, StoreError> {
    advance(session, guard, batch)?;
    // Sketches cannot be merged in SQL, so the rows below are merged here, under the shard's lock.
    let mut growth = SeriesGrowth::new();
    let numbered = number_series(session, known, guard, batch, &mut growth)?;
    let deltas =
        std::iter::once(&*batch.deltas).chain(batch.generations.iter().map(|g| &*g.deltas));
    let lists: Vec<_> = deltas.zip(numbered.iter().map(|(_, numbers)| numbers)).collect();
    let touched = merge(session, compressed, &lists)?;
    let shard = guard.shard.0.cast_signed();
    let mut writes: Vec<(&str, Vec<Param>)> =
        vec![("DELETE FROM suspects WHERE shard = $1", params![shard])];
    if let Some(block) = &batch.dedup {
        writes.push((
            "INSERT INTO dedup VALUES ($1, $2, $3, $4, $5, $6)",
            params![
                shard,
                block.range.from as i64,
                block.range.to as i64,
                block.appended.0,
                block.appended.1,
                byte_columns::encode_runs(&block.runs)
            ],
        ));
    }
    if !batch.outcomes.is_empty() {
        writes.push(note_insert(guard.shard, guard.range, &batch.outcomes));
    }
    writes.push((
        "DELETE FROM dedup WHERE shard = $1 AND last_appended < $2",
        params![shard, forget_ids_before],
    ));
    writes.extend(batch.quarantined.iter().map(quarantine_upsert));
    writes.extend(accounting_upsert(&batch.accounting));
    for of in &batch.generations {
        writes.extend(generations::count_upserts(live(guard), of));
    }
    writes.extend(touched.writes(&growth, |_| guard.revision()));
    session.execute_all(writes)?;
    if let Some(adopted) = &batch.adopts {
        generations::note_cuts(session, &adopted.begun, guard.shard, (guard.log, guard.range.to))?;
    }
    Ok(numbered)
}

/// The compare-and-set: moves the checkpoint, and the set if the flush adopts one.
fn advance(
    session: &mut PostgresSession,
    guard: FlushGuard,
    batch: &FlushBatch,
) -> Result<(), StoreError> {
    let shard = guard.shard.0.cast_signed();
    let moved = session.execute(
        "UPDATE shards SET next = $1, appended = coalesce($9, appended), attempts = 0, \
         marked_offset = NULL, owner = current_setting('application_name'), owner_pid = $2,
         owner_started = $3, noted_from = CASE WHEN noted_to = next THEN noted_from ELSE next END, \
         noted_to = $1, set_next = $1, set_version = $11 WHERE shard = $4 AND log = $5 AND next = \
         $6 AND epoch = $7 AND nonce = $8 AND set_version = $10",
        params![
            guard.range.to as i64,
            session.backend.pid,
            session.backend.started,
            shard,
            UuidBytes(guard.log.0),
            guard.range.from as i64,
            guard.epoch.counter as i64,
            guard.epoch.nonce as i64,
            batch.appended,
            batch.set as i64,
            batch.adopts.as_ref().map_or(batch.set, |adopted| adopted.version) as i64
        ],
    )?;
    if moved != 1 {
        return Err(StoreError::Refused { shard: guard.shard });
    }
    Ok(())
}

/// The writer of a flush in generations besides generation 0.
fn live(guard: FlushGuard) -> Writer {
    Writer { shard: guard.shard, part: WriterPart::Live }
}

/// Numbers the series of a flush: of generation 0, then of the others in the order of the batch.
fn number_series(
    session: &mut PostgresSession,
    known: &PostgresSeriesCache,
    guard: FlushGuard,
    batch: &FlushBatch,
    growth: &mut SeriesGrowth,
) -> Result<ScopedNumbers, StoreError> {
    let at = (guard.shard, guard.range.from);
    let ingest = (SeriesScope::Ingest, (&*batch.admitted, &*batch.deltas));
    let others = batch.generations.iter().map(|of| {
        let scope = SeriesScope::Writer(of.generation, live(guard));
        (scope, (&*of.admitted, &*of.deltas))
    });
    let mut numbered = ScopedNumbers::new();
    for (scope, written) in std::iter::once(ingest).chain(others) {
        let numbers = catalogue::number_series(session, known, scope, written, at, growth)?;
        numbered.push((scope, numbers));
    }
    Ok(numbered)
}

pub(super) fn note_insert(
    shard: ShardId,
    range: OffsetRange,
    note: &OutcomeNote,
) -> (&'static str, Vec<Param>) {
    let (shard, from, to) = (shard.0.cast_signed(), range.from as i64, range.to as i64);
    (
        "INSERT INTO outcome_notes (shard, from_offset, to_offset, events) VALUES ($1, $2, $3, $4)",
        params![shard, from, to, byte_columns::encode_note(note)],
    )
}

pub(super) fn quarantine_upsert(row: &QuarantineRow) -> (&'static str, Vec<Param>) {
    let sql = "INSERT INTO quarantine VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (shard, \
               \"offset\", idx) DO UPDATE SET
        tenant = excluded.tenant, appended = excluded.appended, reason = excluded.reason, \
               discarded = excluded.discarded,
        record = excluded.record, released = false";
    // The message of a panic may contain anything, but PostgreSQL's text cannot hold NUL.
    let reason = row.reason.replace('\0', "\u{fffd}");
    let (shard, offset, index) =
        (row.shard.0.cast_signed(), row.offset as i64, i64::from(row.index));
    (
        sql,
        params![
            shard,
            offset,
            index,
            row.tenant.clone(),
            row.received,
            reason,
            row.discarded,
            row.record.clone()
        ],
    )
}

pub(super) fn accounting_upsert(growth: &[AccountingDelta]) -> Option<(&'static str, Vec<Param>)> {
    // Summed first: one statement must not touch a row twice, and the map is in key order.
    let mut rows: BTreeMap<(&str, i32), [i64; 3]> = BTreeMap::new();
    for delta in growth {
        let row = rows.entry((&delta.tenant, delta.hour.0)).or_default();
        row[0] += delta.aggregated as i64;
        row[1] += delta.deduplicated as i64;
        row[2] += delta.quarantined as i64;
    }
    if rows.is_empty() {
        return None;
    }
    let (tenants, hours): (Vec<String>, Vec<i32>) =
        rows.keys().map(|(tenant, hour)| ((*tenant).to_owned(), *hour)).unzip();
    let column = |at: usize| rows.values().map(|row| row[at]).collect::<Vec<i64>>();
    let sql = "INSERT INTO accounting AS a SELECT * FROM
        unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[]) AS w (tenant, \
               hour, aggregated, deduplicated, quarantined)
        ORDER BY w.tenant COLLATE \"C\", w.hour ON CONFLICT (tenant, hour) DO UPDATE SET \
               aggregated = a.aggregated + excluded.aggregated,
        deduplicated = a.deduplicated + excluded.deduplicated, quarantined = a.quarantined + \
               excluded.quarantined";
    Some((sql, params![tenants, hours, column(0), column(1), column(2)]))
}
