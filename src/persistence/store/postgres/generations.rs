//! Generations besides generation 0: changes of the book, filling, and what a flush adds.
//!
//! A generation's metrics, series and rows are of the tables of generation 0, under metric numbers
//! of their own ([`SeriesScope`]), and are merged as those are. A fill is guarded
//! by its cursor as a flush is by its checkpoint: the compare-and-set comes first, and locks the row
//! until the end.

mod book;
mod leaving;

use std::borrow::Cow;
use std::collections::BTreeMap;

use tokio_postgres::Row;

pub(super) use self::book::{BookCache, book_version};
use super::catalogue::{self, ScopedNumbers, SeriesGrowth};
use super::codec::{UuidBytes, get};
use super::merge::{self, merge};
use super::schema::WEEK;
use super::session::{Param, PostgresSession, params};
use super::{PostgresStore, StoreError, released};
use crate::model::flush::{
    Abandonment, Delta, DroppedEvents, FillGuard, FillProgress, FlushGuard, GenerationDeltas,
    RuleEvents,
};
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::generation_book::{GenerationBook, LeavingRange};
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::series::SeriesId;
use crate::persistence::store::abandon::without_abandoned;
use crate::persistence::store::{AuditEntry, GenerationStore, SeriesScope, begun_twice};

/// The statements that count what the rules of a generation did; none if that is nothing.
pub(super) fn count_upserts(
    writer: Writer,
    batch: &GenerationDeltas,
) -> impl Iterator<Item = (&'static str, Vec<Param>)> {
    let dropped = dropped_upsert(batch.generation, writer, &batch.dropped);
    dropped.into_iter().chain(rules_upsert(batch.generation, writer, &batch.rules))
}

pub(super) fn rules_upsert(
    generation: GenerationId,
    writer: Writer,
    rules: &[RuleEvents],
) -> Option<(&'static str, Vec<Param>)> {
    // Summed first: one statement must not touch a row twice.
    let mut rows: BTreeMap<(i32, &str), i64> = BTreeMap::new();
    for row in rules {
        *rows.entry((row.rule.cast_signed(), &row.outcome)).or_default() += row.events as i64;
    }
    if rows.is_empty() {
        return None;
    }
    let numbers: Vec<i32> = rows.keys().map(|row| row.0).collect();
    let outcomes: Vec<String> = rows.keys().map(|row| row.1.to_owned()).collect();
    let events: Vec<i64> = rows.into_values().collect();
    let sql = "INSERT INTO generation_rules AS r (generation, shard, part, rule, outcome, events)
        SELECT $1, $2, $3, w.* FROM unnest($4::integer[], $5::text[], $6::bigint[]) AS w (rule, \
               outcome, events)
        ON CONFLICT (generation, shard, part, rule, outcome) DO UPDATE SET events = r.events + \
               excluded.events";
    let by = (generation.0 as i64, writer.shard.0.cast_signed(), catalogue::part_code(writer.part));
    Some((sql, params![by.0, by.1, by.2, numbers, outcomes, events]))
}

pub(super) fn dropped_upsert(
    generation: GenerationId,
    writer: Writer,
    dropped: &[DroppedEvents],
) -> Option<(&'static str, Vec<Param>)> {
    // Summed first: one statement must not touch a row twice.
    let mut rows: BTreeMap<(&str, &str, i32), i64> = BTreeMap::new();
    for row in dropped {
        *rows.entry((&row.tenant, &row.metric, row.day)).or_default() += row.events as i64;
    }
    if rows.is_empty() {
        return None;
    }
    let tenants: Vec<String> = rows.keys().map(|row| row.0.to_owned()).collect();
    let metrics: Vec<String> = rows.keys().map(|row| row.1.to_owned()).collect();
    let days: Vec<i32> = rows.keys().map(|row| row.2).collect();
    let events: Vec<i64> = rows.into_values().collect();
    let sql = "INSERT INTO generation_dropped AS d (generation, shard, part, tenant, metric, day, \
               events)
        SELECT $1, $2, $3, w.* FROM unnest($4::text[], $5::text[], $6::integer[], $7::bigint[]) AS \
               w (tenant, metric, day, events)
        ON CONFLICT (generation, tenant, metric, day, shard, part) DO UPDATE SET events = d.events \
               + excluded.events";
    let by = (generation.0 as i64, writer.shard.0.cast_signed(), catalogue::part_code(writer.part));
    Some((sql, params![by.0, by.1, by.2, tenants, metrics, days, events]))
}

/// Notes the cuts of generations that begin at an offset of a shard.
pub(super) fn note_cuts(
    session: &mut PostgresSession,
    begun: &[GenerationId],
    shard: ShardId,
    (log, cut): (LogId, Offset),
) -> Result<(), StoreError> {
    if begun.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO generation_fills (generation, shard, log, cut, cursor)
        SELECT w.generation, $2, $3, $4, 0
        FROM unnest($1::bigint[]) AS w (generation) ON CONFLICT DO NOTHING RETURNING generation";
    let numbers: Vec<i64> = begun.iter().map(|generation| generation.0 as i64).collect();
    let cuts = params![numbers, shard.0.cast_signed(), UuidBytes(log.0), cut as i64];
    let noted = session.query(sql, cuts)?;
    let noted = noted.iter().map(|row| Ok(GenerationId(get::<i64>(row, 0)? as u64)));
    let noted = noted.collect::<Result<Vec<_>, StoreError>>()?;
    match begun.iter().find(|generation| !noted.contains(generation)) {
        Some(generation) => Err(begun_twice(shard, *generation)),
        None => Ok(()),
    }
}

/// The series that a writer of a generation admitted, each with the offset of its first event.
pub(super) fn admissions(
    session: &mut PostgresSession,
    generation: GenerationId,
    writer: Writer,
) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
    let sql = "SELECT s.id, s.admitted_offset FROM metrics m JOIN series s ON s.metric_no = m.no
        WHERE m.generation = $1 AND s.shard = $2 AND s.part = $3";
    let (shard, part) = (writer.shard.0.cast_signed(), catalogue::part_code(writer.part));
    let mut admissions = Vec::new();
    session.for_each_row(sql, params![generation.0 as i64, shard, part], |row| {
        let id = SeriesId(get::<UuidBytes>(row, 0)?.0);
        admissions.push((id, get::<i64>(row, 1)? as Offset));
        Ok(())
    })?;
    Ok(admissions)
}

/// Reads a cut and its cursor from the first three columns.
pub(super) fn progress(row: &Row) -> Result<FillProgress, StoreError> {
    let (cut, cursor) = (get::<i64>(row, 1)? as Offset, get::<i64>(row, 2)? as Offset);
    Ok(FillProgress { log: LogId(get::<UuidBytes>(row, 0)?.0), cut, cursor })
}

const SHARD_FILLS: &str = "SELECT log, cut, cursor, generation FROM generation_fills WHERE shard = $1 ORDER BY generation";

/// The cuts of a shard, by generation.
pub(super) fn shard_fills(
    session: &mut PostgresSession,
    shard: ShardId,
) -> Result<Vec<(GenerationId, FillProgress)>, StoreError> {
    read_shard_fills(session, shard, SHARD_FILLS)
}

/// The cuts of a shard, none of whose cursors moves before the transaction ends.
pub(super) fn lock_shard_fills(
    session: &mut PostgresSession,
    shard: ShardId,
) -> Result<Vec<(GenerationId, FillProgress)>, StoreError> {
    read_shard_fills(session, shard, &format!("{SHARD_FILLS} FOR UPDATE"))
}

fn read_shard_fills(
    session: &mut PostgresSession,
    shard: ShardId,
    sql: &str,
) -> Result<Vec<(GenerationId, FillProgress)>, StoreError> {
    let fill = |row: &Row| Ok((GenerationId(get::<i64>(row, 3)? as u64), progress(row)?));
    session.query(sql, params![shard.0.cast_signed()])?.iter().map(fill).collect()
}

/// The hour below which rollups are dropped by age; the least there is if none ever were.
pub(super) fn retention_floor(session: &mut PostgresSession) -> Result<i32, StoreError> {
    let rows = session.query("SELECT hour FROM retention_floor", params![])?;
    rows.first().map_or(Ok(i32::MIN), |row| get(row, 0))
}

pub(super) fn audit_insert(entry: &AuditEntry) -> (&'static str, Vec<Param>) {
    let sql = "INSERT INTO generation_audit (generation, tenant, action, at, by, note) VALUES ($1, \
               $2, $3, $4, $5, $6)";
    // The note may quote a panic, but PostgreSQL's text cannot hold NUL.
    let note = entry.note.replace('\0', "\u{fffd}");
    let AuditEntry { generation, tenant, action, at, by, .. } = entry;
    let of = (generation.0 as i64, tenant.clone(), action.clone());
    (sql, params![of.0, of.1, of.2, *at, by.clone(), note])
}

/// Replaces the book of version `before`, and adds to the audit list. `false` if it is of another
/// version.
pub(super) fn swap(
    session: &mut PostgresSession,
    before: u64,
    book: &GenerationBook,
    entries: &[AuditEntry],
) -> Result<bool, StoreError> {
    let document = serde_json::to_string(book)
        .map_err(|e| StoreError::Failed(format!("the book of generations: {e}")))?;
    let sql = "UPDATE generation_book SET version = $1, document = $2 WHERE version = $3";
    let swap = params![book.version() as i64, document, before as i64];
    if session.execute(sql, swap)? != 1 {
        return Ok(false);
    }
    session.execute_all(entries.iter().map(audit_insert).collect())?;
    Ok(true)
}

impl PostgresStore {
    /// Gives up what a flush was folded without, in its transaction.
    pub(super) fn abandon(
        &self,
        session: &mut PostgresSession,
        guard: &FlushGuard,
        abandons: &[Abandonment],
    ) -> Result<(), StoreError> {
        let before = self.books.lock_to_change(session)?;
        let Some((next, entries)) = without_abandoned(&before, guard, abandons)? else {
            return Ok(());
        };
        match swap(session, before.version(), &next, &entries)? {
            true => Ok(()),
            false => Err(StoreError::Refused { shard: guard.shard }),
        }
    }

    /// Creates the weeks that a fill writes to, but none that retention has dropped.
    fn ensure_filled_weeks(&self, deltas: &[Delta]) -> Result<(), StoreError> {
        let mut weeks = merge::touched_weeks(deltas);
        if !self.has_weeks(&weeks) {
            let floor = retention_floor(self.writers.take()?.session()?)?;
            weeks = weeks.split_off(&floor.div_euclid(WEEK));
        }
        self.ensure_weeks(&weeks, None)
    }

    fn fill_in(
        &self,
        session: &mut PostgresSession,
        guard: &FillGuard,
        batch: &GenerationDeltas,
    ) -> Result<ScopedNumbers, StoreError> {
        let refused = StoreError::Refused { shard: guard.shard };
        let (shard, generation) = (guard.shard.0.cast_signed(), guard.generation.0 as i64);
        let sql = "UPDATE generation_fills SET cursor = $1 WHERE generation = $2 AND shard = $3 \
                   AND log = $4 AND cursor = $5 AND cut >= $1";
        let (from, to) = (guard.range.from as i64, guard.range.to as i64);
        let moved =
            session.execute(sql, params![to, generation, shard, UuidBytes(guard.log.0), from])?;
        // Read after the row is locked: who deletes the generation's rows changes the book first,
        // and then waits for this lock.
        if moved != 1 || !self.books.current(session)?.newest_set().has(guard.generation) {
            return Err(refused);
        }
        // A release that was faster has left the event to this fill, which may not know. One that
        // comes later waits for the lock of the cursor.
        if released::released_events(session, guard.shard, guard.range)? != batch.released {
            return Err(refused);
        }
        let floor = retention_floor(session)?;
        let is_kept = |delta: &&Delta| delta.hour.0 >= floor;
        let kept: Cow<'_, [Delta]> = match batch.deltas.iter().all(|delta| is_kept(&delta)) {
            true => Cow::Borrowed(&batch.deltas),
            false => Cow::Owned(batch.deltas.iter().filter(is_kept).cloned().collect()),
        };
        let writer = Writer { shard: guard.shard, part: WriterPart::Fill };
        let scope = SeriesScope::Writer(guard.generation, writer);
        let mut growth = SeriesGrowth::new();
        let (written, at) = ((&*batch.admitted, &*kept), (guard.shard, guard.range.from));
        let known = &self.series_cache;
        let numbers = catalogue::number_series(session, known, scope, written, at, &mut growth)?;
        let touched = merge(session, &self.compressed_weeks, &[(&kept, &numbers)])?;
        let mut writes = touched.writes(&growth, |_| guard.revision());
        writes.extend(count_upserts(writer, batch));
        session.execute_all(writes)?;
        Ok(vec![(scope, numbers)])
    }
}

impl GenerationStore for PostgresStore {
    fn swap_generations(
        &self,
        before: u64,
        book: &GenerationBook,
        entry: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        let mut lease = self.writers.begin("BEGIN")?;
        let session = lease.session()?;
        let entries = entry.map(std::slice::from_ref).unwrap_or_default();
        if !swap(session, before, book, entries)? {
            return Ok(false);
        }
        session.commit()?;
        Ok(true)
    }

    fn fill(&self, guard: &FillGuard, batch: &GenerationDeltas) -> Result<(), StoreError> {
        self.ensure_filled_weeks(&batch.deltas)?;
        // Not under the shard's name: whoever claims the shard would end it.
        let mut lease = self.writers.begin("BEGIN")?;
        let session = lease.session()?;
        let filled = self.fill_in(session, guard, batch).and_then(|numbered| {
            session.commit()?;
            self.series_cache.remember(session.backend.server_started, numbered);
            Ok(())
        });
        self.forget_weeks(filled)
    }

    fn delete_generation_rows(&self, of: &LeavingRange, max: usize) -> Result<u64, StoreError> {
        self.delete_leaving(of, max)
    }
}
