//! Encodes records as an object: columns, row groups and footer.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int32Type,
    Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::super::footer::{self, ObjectTimes};
use super::super::row::{EventRow, RowEncoder};
use super::{RowSummary, SCHEMA, bad, range_of};
use crate::invariants::{Invariant, check};
use crate::model::CodecError;
use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, ObjectName, RangeDecisions, Tier};
use crate::model::offset::{Epoch, LogId, OffsetRange, ShardId};
use crate::model::outcome::{Outcome, OutcomeNote, OutcomeReader};

/// Favours speed: level 3 took twice the time to save a tenth of the bytes.
const ZSTD_LEVEL: i32 = 1;
/// A row group ends at this many rows or raw bytes, which bounds the memory of a
/// reader of all columns.
const GROUP_ROWS: usize = 16_384;
const GROUP_BYTES: usize = 16 << 20;
/// Raw bytes per byte of the object, a low estimate: sizes the output buffer.
const EXPECTED_RATIO: usize = 4;
/// Columns whose values are nearly all distinct, so that a dictionary would not pay.
const NO_DICTIONARY: [&str; 4] = ["offset", "id", "raw", "payload"];
/// Columns of hashes or long texts, whose minimum and maximum let no reader skip a row group.
const NO_STATISTICS: [&str; 6] = ["labels", "series_id", "id", "user", "raw", "payload"];

/// Encodes consecutive records as one object, and returns its bytes and manifest row.
///
/// # Errors
/// If there are no records or they are not consecutive.
pub fn encode(
    log: LogId,
    shard: ShardId,
    epoch: Epoch,
    records: &[LogRecord],
    decisions: &RangeDecisions,
) -> Result<(Vec<u8>, ManifestRow), CodecError> {
    let name = ObjectName { range: range_of(records)?, epoch };
    let schema = Arc::new(parse_message_type(SCHEMA).map_err(bad)?);
    let reserve = records.iter().map(|record| record.payload.len()).sum::<usize>() / EXPECTED_RATIO;
    let times = ObjectTimes::of(records)?;
    let properties =
        Arc::new(properties(footer::footer_pairs(log, shard, name, times, decisions)?)?);
    let mut writer =
        SerializedFileWriter::new(Vec::with_capacity(reserve), schema, properties).map_err(bad)?;
    let mut outcomes = decisions.outcomes.as_ref().map(OutcomeNote::reader);
    let mut summary = RowSummary::default();
    let (mut encoder, mut rows) = (RowEncoder::default(), Vec::new());
    let mut pending = 0;
    for (at, record) in records.iter().enumerate() {
        let start = rows.len();
        encoder.push_rows(record, &mut rows);
        summary.add(&rows[start..]);
        if let Some(outcomes) = &mut outcomes {
            set_outcomes(&mut rows[start..], outcomes);
        }
        pending += record.payload.len();
        // Only between records: `read_all` decodes the records of each row group by itself.
        if rows.len() >= GROUP_ROWS || pending >= GROUP_BYTES || at + 1 == records.len() {
            write_group(writer.next_row_group().map_err(bad)?, &mut rows).map_err(bad)?;
            rows.clear();
            pending = 0;
        }
    }
    check_all_placed(&name, outcomes.map_or(0, OutcomeReader::finish));
    let mut bytes = writer.into_inner().map_err(bad)?;
    footer::write_checksum(&mut bytes)?;
    let row = summary.manifest_row((log, shard, name), &bytes, times, Tier::Hot);
    Ok((bytes, row))
}

/// Sets the outcomes of a record's rows. A row that is no event has none.
fn set_outcomes(rows: &mut [EventRow], outcomes: &mut OutcomeReader<'_>) {
    for row in rows {
        match row.event_time {
            Some(_) => row.outcome = Some(outcomes.outcome(row.offset, row.index)),
            None => outcomes.skip_record(row.offset),
        }
    }
}

/// I7: every event that a flush has noted as not counted is in the object that holds its record.
fn check_all_placed(name: &ObjectName, left: u64) {
    check(Invariant::Accounting, left == 0, || {
        let OffsetRange { from, to } = name.range;
        format!(
            "{left} events that were noted as not counted are not in the records [{from}, {to})"
        )
    });
}

pub(super) fn properties(
    pairs: Vec<(&'static str, String)>,
) -> Result<WriterProperties, CodecError> {
    let metadata =
        pairs.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect();
    // The creator would name the library's version, and `encode` ends the row groups itself.
    let mut builder = WriterProperties::builder()
        .set_created_by("rollmill".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL).map_err(bad)?))
        .set_max_row_group_row_count(None)
        .set_key_value_metadata(Some(metadata));
    for column in NO_DICTIONARY {
        builder = builder.set_column_dictionary_enabled(ColumnPath::from(column), false);
    }
    for column in NO_STATISTICS {
        builder = builder
            .set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::None);
    }
    Ok(builder.build())
}

pub(super) type GroupWriter<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

/// Writes the rows as one row group. Moves their texts out of them.
fn write_group(mut group: GroupWriter<'_>, rows: &mut [EventRow]) -> Result<(), ParquetError> {
    write_columns_2(&mut group, rows)?;
    let name = |outcome: Outcome| ByteArray::from(Bytes::from_static(outcome.name().as_bytes()));
    put_optional::<ByteArrayType>(&mut group, rows.iter().map(|r| r.outcome.map(name)))?;
    group.close()?;
    Ok(())
}

/// Writes the columns of version 2, which version 3 begins with.
pub(super) fn write_columns_2(
    group: &mut GroupWriter<'_>,
    rows: &mut [EventRow],
) -> Result<(), ParquetError> {
    write_columns_1(group, rows)?;
    put::<Int64Type>(group, &rows.iter().map(|r| r.appended).collect::<Vec<_>>(), None)?;
    put_optional::<Int64Type>(group, rows.iter().map(|r| r.stamp))
}

/// Writes the columns of version 1, which version 2 begins with.
pub(super) fn write_columns_1(
    group: &mut GroupWriter<'_>,
    rows: &mut [EventRow],
) -> Result<(), ParquetError> {
    // In the order of the schema: the writer takes columns by position, not by name.
    let binary = |cell: &mut Option<Bytes>| cell.take().map(ByteArray::from);
    put::<Int64Type>(group, &rows.iter().map(|r| r.offset as i64).collect::<Vec<_>>(), None)?;
    put::<Int32Type>(group, &rows.iter().map(|r| r.index as i32).collect::<Vec<_>>(), None)?;
    put::<Int64Type>(group, &rows.iter().map(|r| r.received).collect::<Vec<_>>(), None)?;
    put_optional::<Int64Type>(group, rows.iter().map(|r| r.event_time))?;
    put_optional::<ByteArrayType>(group, rows.iter_mut().map(|r| binary(&mut r.tenant)))?;
    put_optional::<ByteArrayType>(group, rows.iter_mut().map(|r| binary(&mut r.metric)))?;
    put_optional::<ByteArrayType>(group, rows.iter_mut().map(|r| binary(&mut r.labels)))?;
    put_optional::<ByteArrayType>(group, rows.iter_mut().map(|r| binary(&mut r.series_id)))?;
    put_optional::<ByteArrayType>(group, rows.iter_mut().map(|r| binary(&mut r.id)))?;
    put_optional::<ByteArrayType>(group, rows.iter_mut().map(|r| binary(&mut r.user)))?;
    let decimal = |units: i128| FixedLenByteArray::from(units.to_be_bytes().to_vec());
    put_optional::<FixedLenByteArrayType>(group, rows.iter().map(|r| r.value.map(decimal)))?;
    put_optional::<ByteArrayType>(group, rows.iter_mut().map(|r| binary(&mut r.raw)))?;
    put_optional::<Int64Type>(group, rows.iter().map(|r| r.gateway.map(i64::from)))?;
    put_optional::<Int32Type>(group, rows.iter().map(|r| r.series_index.map(|at| at as i32)))?;
    put_optional::<ByteArrayType>(group, rows.iter_mut().map(|r| binary(&mut r.payload)))
}

fn put_optional<T: DataType>(
    group: &mut GroupWriter<'_>,
    cells: impl Iterator<Item = Option<T::T>>,
) -> Result<(), ParquetError> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    for cell in cells {
        levels.push(i16::from(cell.is_some()));
        values.extend(cell);
    }
    put::<T>(group, &values, Some(&levels))
}

pub(super) fn put<T: DataType>(
    group: &mut GroupWriter<'_>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let mut column = group
        .next_column()?
        .ok_or_else(|| ParquetError::General("the schema has fewer columns".to_owned()))?;
    column.typed::<T>().write_batch(values, levels, None)?;
    column.close()
}
