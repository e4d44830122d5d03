//! Exports the whole store in batches from one read transaction. See [`super::super::transfer`].

use std::sync::Arc;

use rusqlite::{Connection, Row};

use super::{SqliteStore, StoreError, admin, codec, rows, snapshot};
use crate::model::flush::{DedupBlock, SeriesInfo, SuspectEvent};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::outcome::OutcomeNote;
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;
use crate::persistence::store::transfer::{
    BATCH_ROWS, FiguresRow, RevisionRow, ShardRow, SketchesRow, StoreCounts, TransferBatch,
    TransferSink,
};
use crate::persistence::store::{ArchiveSnapshot, AuditSnapshot};

/// The tables that are exported.
const TABLES: [&str; 13] = [
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
    "shards",
];

impl SqliteStore {
    /// How much there is to export.
    pub fn counts(&self) -> Result<StoreCounts, StoreError> {
        let reader = self.readers.take()?;
        let count = |table: &str| -> Result<u64, StoreError> {
            let sql = format!("SELECT count(*) FROM {table}");
            Ok(reader.connection()?.query_row(&sql, [], |r| r.get::<_, i64>(0))?.unsigned_abs())
        };
        let rows = TABLES.iter().try_fold(0, |sum, table| count(table).map(|n| sum + n))?;
        Ok(StoreCounts { series: count("series")?, rollups: count("rollups")?, rows })
    }

    /// The UTC days that have rollups: every flush updates the revisions of the days that it
    /// writes.
    pub fn rollup_days(&self) -> Result<Vec<i32>, StoreError> {
        let reader = self.readers.take()?;
        let mut statement =
            reader.connection()?.prepare("SELECT DISTINCT day FROM revisions ORDER BY day")?;
        let days = statement.query_map([], |r| r.get(0))?.collect::<Result<_, _>>()?;
        Ok(days)
    }

    /// Passes the whole store to `sink`, as of one moment. An error of `sink` ends the export.
    pub fn export(&self, sink: TransferSink<'_>) -> Result<(), StoreError> {
        let mut snapshot =
            snapshot::SqliteSnapshot::begin(self.readers.take()?, &self.match_cache)?;
        // Series first: an importer resolves the series ids of all later rows.
        let shards = shards(snapshot.connection()?)?;
        for row in &shards {
            series(snapshot.connection()?, row.shard, sink)?;
        }
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
        in_batches(snapshot.quarantine()?, &mut |batch| sink(TransferBatch::Quarantine(batch)))?;
        in_batches(snapshot.manifest(None)?, &mut |batch| sink(TransferBatch::Manifest(batch)))?;
        in_batches(snapshot.archive_floors()?, &mut |batch| {
            sink(TransferBatch::ArchiveFloors(batch))
        })?;
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
               noted_from, noted_to FROM shards s ORDER BY shard";
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
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
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
    let sql = "SELECT id, key, admitted_offset FROM series WHERE shard = ? ORDER BY no";
    let read = |row: &Row<'_>| {
        let info = SeriesInfo {
            id: SeriesId(row.get(0)?),
            series: Series::from_key(&row.get::<_, Vec<u8>>(1)?)?,
        };
        Ok((Arc::new(info), row.get::<_, i64>(2)? as Offset))
    };
    stream_rows(connection, sql, [shard.0], read, &mut |batch| {
        sink(TransferBatch::Series(shard, batch))
    })
}

// CROSS JOIN fixes the order of the tables: rollups are read in storage order, and each one's
// series is looked up by number.
fn figures(connection: &Connection, sink: TransferSink<'_>) -> Result<(), StoreError> {
    let sql = "SELECT s.id, r.hour, r.count, r.value_count, r.sum, r.min, r.max FROM rollups r \
               CROSS JOIN series s ON s.no = r.series_no";
    let read = |row: &Row<'_>| {
        Ok(FiguresRow {
            series: SeriesId(row.get(0)?),
            hour: Hour(row.get(1)?),
            figures: codec::figures(row, 2)?,
        })
    };
    stream_rows(connection, sql, [], read, &mut |batch| sink(TransferBatch::Figures(batch)))
}

fn sketches(connection: &Connection, sink: TransferSink<'_>) -> Result<(), StoreError> {
    let sql = "SELECT s.id, k.hour, k.distinct_users, k.quantiles FROM sketches k CROSS JOIN \
               series s ON s.no = k.series_no";
    let read = |row: &Row<'_>| {
        let (series, hour) = (SeriesId(row.get(0)?), Hour(row.get(1)?));
        Ok(SketchesRow { series, hour, distinct_users: row.get(2)?, quantiles: row.get(3)? })
    };
    stream_rows(connection, sql, [], read, &mut |batch| sink(TransferBatch::Sketches(batch)))
}

fn revisions(connection: &Connection, sink: TransferSink<'_>) -> Result<(), StoreError> {
    let sql = "SELECT t.name, m.name, r.day, r.revision FROM revisions r JOIN metrics m ON m.no = \
               r.metric_no
        JOIN tenants t ON t.no = m.tenant_no";
    let read = |row: &Row<'_>| {
        let revision = row.get::<_, i64>(3)? as u64;
        Ok(RevisionRow { tenant: row.get(0)?, metric: row.get(1)?, day: row.get(2)?, revision })
    };
    stream_rows(connection, sql, [], read, &mut |batch| sink(TransferBatch::Revisions(batch)))
}
