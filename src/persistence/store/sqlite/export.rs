//! Exports the whole store in batches from one read transaction. See [`super::super::transfer`].

mod generations;

use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::{SqliteStore, StoreError, admin, boards, catalogue, codec, rows, snapshot};
use crate::model::flush::{DedupBlock, SeriesInfo, SuspectEvent};
use crate::model::generation::GenerationId;
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::outcome::OutcomeNote;
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;
use crate::persistence::store::transfer::{
    BATCH_ROWS, FiguresRow, QuarantineEntry, RevisionRow, ShardRow, SketchesRow, StoreCounts,
    TransferBatch, TransferSink,
};
use crate::persistence::store::{ArchiveSnapshot, CheckpointSnapshot, SeriesScope};

/// The tables that are exported.
const TABLES: [&str; 19] = [
    "series",
    "rollups",
    "sketches",
    "revisions",
    "dedup",
    "dedup_rules",
    "outcome_notes",
    "accounting",
    "quarantine",
    "suspects",
    "manifest",
    "archive_floors",
    "boards",
    "generation_book",
    "generation_fills",
    "generation_dropped",
    "generation_rules",
    "generation_audit",
    "shards",
];
/// Rows of generation 0 in a table that other generations share.
const OF_INGEST: &str = "WHERE metric_no IN (SELECT no FROM metrics WHERE generation = 0)";

impl SqliteStore {
    /// How much there is to export.
    pub fn counts(&self) -> Result<StoreCounts, StoreError> {
        let reader = self.readers.take()?;
        let count = |table: &str, which: &str| -> Result<u64, StoreError> {
            let sql = format!("SELECT count(*) FROM {table} {which}");
            Ok(reader.connection()?.query_row(&sql, [], |r| r.get::<_, i64>(0))?.unsigned_abs())
        };
        let rows = TABLES.iter().try_fold(0, |sum, table| count(table, "").map(|n| sum + n))?;
        let (all, rollups) = (count("rollups", "")?, count("rollups", OF_INGEST)?);
        let series = count("series", "WHERE part = 0")?;
        Ok(StoreCounts { series, rollups, replayed: all.saturating_sub(rollups), rows })
    }

    /// The UTC days that have rollups: every flush updates the revisions of the days that it
    /// writes.
    pub fn rollup_days(&self) -> Result<Vec<i32>, StoreError> {
        let reader = self.readers.take()?;
        let sql = "SELECT DISTINCT day FROM revisions ORDER BY day";
        let mut statement = reader.connection()?.prepare(sql)?;
        let days = statement.query_map([], |r| r.get(0))?.collect::<Result<_, _>>()?;
        Ok(days)
    }

    /// Passes the whole store to `sink`, as of one moment. An error of `sink` ends the export.
    pub fn export(&self, sink: TransferSink<'_>) -> Result<(), StoreError> {
        let mut snapshot = snapshot::SqliteSnapshot::begin(self.readers.take()?, self)?;
        // Series first: an importer resolves the series ids of all later rows.
        let shards = shards(snapshot.connection()?)?;
        for row in &shards {
            series(snapshot.connection()?, row.shard, sink)?;
        }
        generations::series(snapshot.connection()?, sink)?;
        figures(snapshot.connection()?, sink)?;
        sketches(snapshot.connection()?, sink)?;
        revisions(snapshot.connection()?, sink)?;
        for row in &shards {
            let blocks = admin::recent_ids(snapshot.connection()?, row.shard, i64::MIN)?;
            in_batches(blocks, &mut |batch: Vec<DedupBlock>| {
                sink(TransferBatch::DedupBlocks(row.shard, batch))
            })?;
            let rules = admin::dedup_rules(snapshot.connection()?, row.shard)?;
            in_batches(rules.0, &mut |batch| sink(TransferBatch::DedupRules(row.shard, batch)))?;
            let notes = outcome_notes(snapshot.connection()?, row.shard)?;
            in_batches(notes, &mut |batch| sink(TransferBatch::OutcomeNotes(row.shard, batch)))?;
            let suspects: Vec<SuspectEvent> = admin::suspects(snapshot.connection()?, row.shard)?;
            in_batches(suspects, &mut |batch| sink(TransferBatch::Suspects(row.shard, batch)))?;
        }
        in_batches(rows::accounting(snapshot.connection()?)?, &mut |batch| {
            sink(TransferBatch::Accounting(batch))
        })?;
        in_batches(quarantine(snapshot.connection()?)?, &mut |batch| {
            sink(TransferBatch::Quarantine(batch))
        })?;
        in_batches(snapshot.manifest(None)?, &mut |batch| sink(TransferBatch::Manifest(batch)))?;
        in_batches(snapshot.archive_floors()?, &mut |batch| {
            sink(TransferBatch::ArchiveFloors(batch))
        })?;
        let boards = boards::all(snapshot.connection()?)?.into_iter();
        let boards = boards.map(|(tenant, board, _)| (tenant, board)).collect();
        in_batches(boards, &mut |batch| sink(TransferBatch::Boards(batch)))?;
        let book = snapshot.generation_book()?;
        generations::decided(snapshot.connection()?, book, sink)?;
        in_batches(shards, &mut |batch| sink(TransferBatch::Shards(batch)))
    }
}

fn in_batches<T>(
    rows: Vec<T>,
    sink: &mut dyn FnMut(Vec<T>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut rows = rows.into_iter();
    loop {
        let batch: Vec<T> = rows.by_ref().take(BATCH_ROWS).collect();
        if batch.is_empty() {
            return Ok(());
        }
        sink(batch)?;
    }
}

/// Streams the rows of a statement in batches, so that only one batch is in memory.
fn stream_rows<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    sink: &mut dyn FnMut(Vec<T>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(params)?;
    let mut batch = Vec::new();
    while let Some(row) = rows.next()? {
        batch.push(read(row)?);
        if batch.len() == BATCH_ROWS {
            sink(std::mem::take(&mut batch))?;
        }
    }
    if batch.is_empty() { Ok(()) } else { sink(batch) }
}

fn shards(connection: &Connection) -> Result<Vec<ShardRow>, StoreError> {
    let sql = "SELECT shard, log, next, archived, epoch, nonce, attempts,
        coalesce(appended, (SELECT max(last_appended) FROM manifest m WHERE m.shard = s.shard)), \
               noted_from, noted_to, set_version FROM shards s ORDER BY shard";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |r| {
        let checkpoint = Checkpoint {
            log: LogId(r.get(1)?),
            next: r.get::<_, i64>(2)? as Offset,
            archived: r.get::<_, i64>(3)? as Offset,
            epoch: Epoch { counter: r.get::<_, i64>(4)? as u64, nonce: r.get::<_, i64>(5)? as u64 },
            appended: r.get(7)?,
        };
        let noted = r.get::<_, Option<i64>>(8)?.zip(r.get::<_, Option<i64>>(9)?);
        Ok(ShardRow {
            shard: ShardId(r.get(0)?),
            checkpoint,
            attempts: r.get(6)?,
            noted: noted.map(|(from, to)| OffsetRange { from: from as Offset, to: to as Offset }),
            set_version: r.get::<_, i64>(10)? as u64,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn quarantine(connection: &Connection) -> Result<Vec<QuarantineEntry>, StoreError> {
    let kept = rows::quarantine_rows(connection)?.into_iter();
    Ok(kept.map(|kept| QuarantineEntry { row: kept.row, released: kept.released }).collect())
}

fn outcome_notes(
    connection: &Connection,
    shard: ShardId,
) -> Result<Vec<(OffsetRange, OutcomeNote)>, StoreError> {
    let sql = "SELECT from_offset, to_offset, events FROM outcome_notes WHERE shard = ? ORDER BY \
               from_offset";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([shard.0])?;
    let mut notes = Vec::new();
    while let Some(row) = rows.next()? {
        let (from, to) = (row.get::<_, i64>(0)? as Offset, row.get::<_, i64>(1)? as Offset);
        let note = codec::decode_note(&row.get::<_, Vec<u8>>(2)?)?;
        notes.push((OffsetRange { from, to }, note));
    }
    Ok(notes)
}

fn series(
    connection: &Connection,
    shard: ShardId,
    sink: TransferSink<'_>,
) -> Result<(), StoreError> {
    let sql = "SELECT id, key, admitted_offset FROM series WHERE shard = ? AND part = 0 \
               ORDER BY no";
    stream_rows(connection, sql, [shard.0], admitted_series, &mut |batch| {
        sink(TransferBatch::Series(shard, SeriesScope::Ingest, batch))
    })
}

/// Reads id, key and offset of a series from the first three columns.
fn admitted_series(row: &Row<'_>) -> Result<(Arc<SeriesInfo>, Offset), StoreError> {
    let info = SeriesInfo {
        id: SeriesId(row.get(0)?),
        series: Series::from_key(&row.get::<_, Vec<u8>>(1)?)?,
    };
    Ok((Arc::new(info), row.get::<_, i64>(2)? as Offset))
}

/// Reads generation, shard and part of a series' scope from three columns.
fn scope(row: &Row<'_>, first: usize) -> Result<SeriesScope, StoreError> {
    let generation = GenerationId(row.get::<_, i64>(first)? as u64);
    if generation.is_ingest() {
        return Ok(SeriesScope::Ingest);
    }
    let writer = catalogue::writer(row.get(first + 1)?, row.get(first + 2)?)?;
    Ok(SeriesScope::Writer(generation, writer))
}

// CROSS JOIN fixes the order of the tables: rollups are read in storage order, and each one's
// series and metric are looked up by number.
fn figures(connection: &Connection, sink: TransferSink<'_>) -> Result<(), StoreError> {
    let sql = "SELECT s.id, r.hour, m.generation, s.shard, s.part, r.count, r.value_count, r.sum, \
               r.min, r.max FROM rollups r CROSS JOIN series s ON s.no = r.series_no CROSS JOIN \
               metrics m ON m.no = r.metric_no";
    let read = |row: &Row<'_>| {
        Ok(FiguresRow {
            scope: scope(row, 2)?,
            series: SeriesId(row.get(0)?),
            hour: Hour(row.get(1)?),
            figures: codec::figures(row, 5)?,
        })
    };
    stream_rows(connection, sql, [], read, &mut |batch| sink(TransferBatch::Figures(batch)))
}

fn sketches(connection: &Connection, sink: TransferSink<'_>) -> Result<(), StoreError> {
    let sql = "SELECT s.id, k.hour, m.generation, s.shard, s.part, k.distinct_users, k.quantiles \
               FROM sketches k CROSS JOIN series s ON s.no = k.series_no CROSS JOIN metrics m ON \
               m.no = k.metric_no";
    let read = |row: &Row<'_>| {
        Ok(SketchesRow {
            scope: scope(row, 2)?,
            series: SeriesId(row.get(0)?),
            hour: Hour(row.get(1)?),
            distinct_users: row.get(5)?,
            quantiles: row.get(6)?,
        })
    };
    stream_rows(connection, sql, [], read, &mut |batch| sink(TransferBatch::Sketches(batch)))
}

fn revisions(connection: &Connection, sink: TransferSink<'_>) -> Result<(), StoreError> {
    let sql = "SELECT t.name, m.name, r.day, r.revision, m.generation FROM revisions r JOIN \
               metrics m ON m.no = r.metric_no JOIN tenants t ON t.no = m.tenant_no";
    let read = |row: &Row<'_>| {
        Ok(RevisionRow {
            generation: GenerationId(row.get::<_, i64>(4)? as u64),
            tenant: row.get(0)?,
            metric: row.get(1)?,
            day: row.get(2)?,
            revision: row.get::<_, i64>(3)? as u64,
        })
    };
    stream_rows(connection, sql, [], read, &mut |batch| sink(TransferBatch::Revisions(batch)))
}
