//! Exports what belongs to generations besides generation 0, and what is decided about them.

use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use super::super::generations::{audit_entry, progress};
use super::super::{StoreError, catalogue};
use super::{admitted_series, in_batches, scope, stream_rows};
use crate::model::flush::{DroppedEvents, RuleEvents};
use crate::model::generation::GenerationId;
use crate::model::generation_book::GenerationBook;
use crate::model::offset::ShardId;
use crate::persistence::store::SeriesScope;
use crate::persistence::store::transfer::{FillRow, TransferBatch, TransferSink};

/// The series that each writer has admitted.
pub(super) fn series(connection: &Connection, sink: TransferSink<'_>) -> Result<(), StoreError> {
    let sql = "SELECT s.id, s.key, s.admitted_offset FROM metrics m CROSS JOIN series s ON \
               s.metric_no = m.no WHERE m.generation = ? AND m.generation > 0 AND s.shard = ? AND \
               s.part = ? AND s.part > 0";
    for scope in writers(connection)? {
        let SeriesScope::Writer(generation, writer) = scope else { continue };
        let part = catalogue::part_number(writer.part);
        let by = params![generation.0 as i64, writer.shard.0, part];
        stream_rows(connection, sql, by, admitted_series, &mut |batch| {
            sink(TransferBatch::Series(writer.shard, scope, batch))
        })?;
    }
    Ok(())
}

/// The writers that have series.
fn writers(connection: &Connection) -> Result<Vec<SeriesScope>, StoreError> {
    let sql = "SELECT DISTINCT m.generation, s.shard, s.part FROM metrics m CROSS JOIN series s ON \
               s.metric_no = m.no WHERE m.generation > 0 AND s.part > 0 ORDER BY m.generation, \
               s.shard, s.part";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut writers = Vec::new();
    while let Some(row) = rows.next()? {
        writers.push(scope(row, 0)?);
    }
    Ok(writers)
}

/// The book, and everything that is counted and noted beside it.
pub(super) fn decided(
    connection: &Connection,
    book: Arc<GenerationBook>,
    sink: TransferSink<'_>,
) -> Result<(), StoreError> {
    if book.version() > 0 {
        sink(TransferBatch::Book(book))?;
    }
    in_batches(fills(connection)?, &mut |batch| sink(TransferBatch::Fills(batch)))?;
    let sql = "SELECT generation, shard, part, tenant, metric, day, events FROM generation_dropped";
    let dropped = |row: &Row<'_>| {
        let writer = catalogue::writer(row.get(1)?, row.get(2)?)?;
        let (tenant, metric, day) = (row.get(3)?, row.get(4)?, row.get(5)?);
        let events = row.get::<_, i64>(6)? as u64;
        let dropped = DroppedEvents { tenant, metric, day, events };
        Ok((GenerationId(row.get::<_, i64>(0)? as u64), writer, dropped))
    };
    stream_rows(connection, sql, [], dropped, &mut |batch| sink(TransferBatch::Dropped(batch)))?;
    let sql = "SELECT generation, shard, part, rule, outcome, events FROM generation_rules";
    let rules = |row: &Row<'_>| {
        let writer = catalogue::writer(row.get(1)?, row.get(2)?)?;
        let events = row.get::<_, i64>(5)? as u64;
        let counted = RuleEvents { rule: row.get(3)?, outcome: row.get(4)?, events };
        Ok((GenerationId(row.get::<_, i64>(0)? as u64), writer, counted))
    };
    stream_rows(connection, sql, [], rules, &mut |batch| sink(TransferBatch::RuleEvents(batch)))?;
    let sql = "SELECT generation, tenant, action, at, by, note FROM generation_audit ORDER BY no";
    let entry = |row: &Row<'_>| Ok(audit_entry(row)?);
    stream_rows(connection, sql, [], entry, &mut |batch| sink(TransferBatch::Audit(batch)))
}

fn fills(connection: &Connection) -> Result<Vec<FillRow>, StoreError> {
    let sql = "SELECT log, cut, cursor, generation, shard FROM generation_fills ORDER BY \
               generation, shard";
    let mut statement = connection.prepare(sql)?;
    let fill = |row: &Row<'_>| {
        let generation = GenerationId(row.get::<_, i64>(3)? as u64);
        Ok(FillRow { generation, shard: ShardId(row.get(4)?), progress: progress(row)? })
    };
    Ok(statement.query_map([], fill)?.collect::<Result<_, _>>()?)
}
