//! Generations besides generation 0: changes of the book, filling, and what a flush adds.
//!
//! A generation's metrics, series and rows are of the tables of generation 0, under metric numbers
//! of their own ([`SeriesScope`]), and are merged as those are. A fill is guarded by its cursor as
//! a flush is by its checkpoint.

mod book;
mod leaving;

use rusqlite::{Connection, Row, params};

pub(super) use self::book::{BookCache, audit_entry};
use super::catalogue::{SeriesCatalogue, part_number};
use super::checksums::{dropped_checksum, fill_checksum, rule_events_checksum};
use super::merge::merge;
use super::{SqliteStore, StoreError, query_optional, released};
use crate::model::flush::{
    Abandonment, DroppedEvents, FillGuard, FillProgress, FlushGuard, GenerationDeltas, RuleEvents,
};
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::generation_book::{GenerationBook, LeavingRange};
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::series::SeriesId;
use crate::persistence::store::abandon::without_abandoned;
use crate::persistence::store::{AuditEntry, GenerationStore, SeriesScope, begun_twice};

/// Adds to the counts of what the rules of a generation did.
pub(super) fn add_counts(
    tx: &Connection,
    writer: Writer,
    batch: &GenerationDeltas,
) -> Result<(), StoreError> {
    count_dropped(tx, batch.generation, writer, &batch.dropped)?;
    count_rules(tx, batch.generation, writer, &batch.rules)
}

fn count_rules(
    tx: &Connection,
    generation: GenerationId,
    writer: Writer,
    rules: &[RuleEvents],
) -> Result<(), StoreError> {
    for growth in rules {
        let (of, shard, part) = (generation.0 as i64, writer.shard.0, part_number(writer.part));
        let RuleEvents { rule, outcome, .. } = growth;
        let sql = "SELECT events FROM generation_rules WHERE generation = ? AND shard = ? AND part \
                   = ? AND rule = ? AND outcome = ?";
        let row = params![of, shard, part, rule, outcome];
        let before = query_optional(tx, sql, row, |r| r.get::<_, i64>(0))?.unwrap_or(0) as u64;
        let counted = RuleEvents { events: before + growth.events, ..growth.clone() };
        let sum = rule_events_checksum(generation, writer, &counted);
        let events = counted.events as i64;
        tx.prepare_cached("INSERT OR REPLACE INTO generation_rules VALUES (?, ?, ?, ?, ?, ?, ?)")?
            .execute(params![of, shard, part, rule, outcome, events, sum])?;
    }
    Ok(())
}

fn count_dropped(
    tx: &Connection,
    generation: GenerationId,
    writer: Writer,
    dropped: &[DroppedEvents],
) -> Result<(), StoreError> {
    for growth in dropped {
        let (of, part) = (generation.0 as i64, part_number(writer.part));
        let DroppedEvents { tenant, metric, day, .. } = growth;
        let sql = "SELECT events FROM generation_dropped WHERE generation = ? AND tenant = ? AND \
                   metric = ? AND day = ? AND shard = ? AND part = ?";
        let row = params![of, tenant, metric, day, writer.shard.0, part];
        let before = query_optional(tx, sql, row, |r| r.get::<_, i64>(0))?.unwrap_or(0) as u64;
        let counted = DroppedEvents { events: before + growth.events, ..growth.clone() };
        let sum = dropped_checksum(generation, writer, &counted);
        let events = counted.events as i64;
        tx.prepare_cached(
            "INSERT OR REPLACE INTO generation_dropped VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![of, tenant, metric, day, writer.shard.0, part, events, sum])?;
    }
    Ok(())
}

/// Notes the cuts of generations that begin at an offset of a shard.
pub(super) fn note_cuts(
    tx: &Connection,
    begun: &[GenerationId],
    shard: ShardId,
    (log, cut): (LogId, Offset),
) -> Result<(), StoreError> {
    let progress = FillProgress { log, cut, cursor: 0 };
    let begins = |generation: &GenerationId| {
        let sql = "SELECT 1 FROM generation_fills WHERE generation = ? AND shard = ?";
        let of = params![generation.0 as i64, shard.0];
        match query_optional(tx, sql, of, |r| r.get::<_, i64>(0))? {
            Some(_) => Err(begun_twice(shard, *generation)),
            None => write_progress(tx, *generation, shard, &progress),
        }
    };
    begun.iter().try_for_each(begins)
}

fn write_progress(
    tx: &Connection,
    generation: GenerationId,
    shard: ShardId,
    at: &FillProgress,
) -> Result<(), StoreError> {
    let sum = fill_checksum(generation, shard, at);
    tx.prepare_cached("INSERT OR REPLACE INTO generation_fills VALUES (?, ?, ?, ?, ?, ?)")?
        .execute(params![
            generation.0 as i64,
            shard.0,
            &at.log.0[..],
            at.cut as i64,
            at.cursor as i64,
            sum
        ])?;
    Ok(())
}

/// Reads a cut and its cursor from the first three columns.
pub(super) fn progress(row: &Row<'_>) -> rusqlite::Result<FillProgress> {
    Ok(FillProgress {
        log: LogId(row.get(0)?),
        cut: row.get::<_, i64>(1)? as Offset,
        cursor: row.get::<_, i64>(2)? as Offset,
    })
}

/// The cuts of a shard, by generation.
pub(super) fn shard_fills(
    connection: &Connection,
    shard: ShardId,
) -> Result<Vec<(GenerationId, FillProgress)>, StoreError> {
    let sql = "SELECT log, cut, cursor, generation FROM generation_fills WHERE shard = ? ORDER BY \
               generation";
    let mut statement = connection.prepare_cached(sql)?;
    let fill = |r: &Row<'_>| Ok((GenerationId(r.get::<_, i64>(3)? as u64), progress(r)?));
    Ok(statement.query_map([shard.0], fill)?.collect::<Result<_, _>>()?)
}

fn fill(
    tx: &Connection,
    catalogue: &mut SeriesCatalogue<'_>,
    book: &GenerationBook,
    (guard, batch): (&FillGuard, &GenerationDeltas),
) -> Result<(), StoreError> {
    let FillGuard { generation, shard, log, range, .. } = *guard;
    let sql = "SELECT log, cut, cursor FROM generation_fills WHERE generation = ? AND shard = ?";
    let at = query_optional(tx, sql, params![generation.0 as i64, shard.0], progress)?;
    let at = at.filter(|at| (at.log, at.cursor) == (log, range.from) && range.to <= at.cut);
    // Who deletes the generation's rows has changed the book before.
    let Some(at) = at.filter(|_| book.newest_set().has(generation)) else {
        return Err(StoreError::Refused { shard });
    };
    // A release that was faster has left the event to this fill, which may not know.
    if released::released_events(tx, shard, range)? != batch.released {
        return Err(StoreError::Refused { shard });
    }
    write_progress(tx, generation, shard, &FillProgress { cursor: range.to, ..at })?;
    let writer = Writer { shard, part: WriterPart::Fill };
    let scope = SeriesScope::Writer(generation, writer);
    for (info, offset) in &batch.admitted {
        catalogue.number_series(scope, info, (shard, *offset))?;
    }
    let lists = [(scope, &*batch.deltas)];
    merge(tx, catalogue, &lists, (shard, range.from), &|_| guard.revision())?;
    add_counts(tx, writer, batch)
}

/// The series that a writer of a generation admitted, each with the offset of its first event.
pub(super) fn admissions(
    connection: &Connection,
    generation: GenerationId,
    writer: Writer,
) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
    let sql = "SELECT s.id, s.admitted_offset FROM metrics m CROSS JOIN series s ON s.metric_no = \
               m.no
        WHERE m.generation = ? AND m.generation > 0 AND s.shard = ? AND s.part = ? AND s.part > 0";
    let mut statement = connection.prepare_cached(sql)?;
    let by = params![generation.0 as i64, writer.shard.0, part_number(writer.part)];
    let rows =
        statement.query_map(by, |r| Ok((SeriesId(r.get(0)?), r.get::<_, i64>(1)? as Offset)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl SqliteStore {
    /// Gives up what a flush was folded without, in its transaction.
    pub(super) fn abandon(
        &self,
        tx: &Connection,
        guard: &FlushGuard,
        abandons: &[Abandonment],
    ) -> Result<(), StoreError> {
        let before = self.books.read(tx)?;
        let Some((next, entries)) = without_abandoned(&before, guard, abandons)? else {
            return Ok(());
        };
        match book::swap(tx, before.version(), &next, &entries)? {
            true => Ok(()),
            false => Err(StoreError::Refused { shard: guard.shard }),
        }
    }

    pub(super) fn writer_series(
        &self,
        generation: GenerationId,
        writer: Writer,
    ) -> Result<Vec<SeriesId>, StoreError> {
        let reader = self.readers.take()?;
        let admissions = admissions(reader.connection()?, generation, writer)?;
        Ok(admissions.into_iter().map(|(id, _)| id).collect())
    }
}

impl GenerationStore for SqliteStore {
    fn swap_generations(
        &self,
        before: u64,
        book: &GenerationBook,
        entry: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        let entries = entry.map(std::slice::from_ref).unwrap_or_default();
        self.writer()?.transaction(|tx, _| book::swap(tx, before, book, entries))
    }

    fn fill(&self, guard: &FillGuard, batch: &GenerationDeltas) -> Result<(), StoreError> {
        self.writer()?.transaction(|tx, catalogue| {
            fill(tx, catalogue, &*self.books.read(tx)?, (guard, batch))
        })
    }

    fn delete_generation_rows(&self, of: &LeavingRange, max: usize) -> Result<u64, StoreError> {
        let mut writer = self.writer()?;
        let inner = writer.get()?;
        // The book stays as it is while the writer is held.
        let book = self.books.read(&inner.connection)?;
        let leaving = leaving::Leaving::new(of, &book.newest_set());
        // Before the transaction, whose outcome may be unknown.
        leaving.forget_numbers(&mut inner.series_cache);
        writer.transaction(|tx, _| leaving.delete(tx, max))
    }
}
