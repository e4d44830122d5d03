//! An archive object: a Parquet file with one row per event, in log order, compressed with zstd.
//!
//! The columns are for people and tools; DuckDB reads them directly. [`super::row`] turns rows back
//! into records, byte for byte. The footer ([`super::footer`]) names log, shard, range and epoch
//! and holds the decisions, so that a store can be rebuilt from a listing. The bytes are a function
//! of these inputs and the records: neither a timestamp nor the library's version goes in.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int32Type,
    Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::footer::{self, ObjectFooter, ObjectTimes};
use super::row::{self, EventRow, RowEncoder};
use crate::model::CodecError;
use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, ObjectName, RangeDecisions, Tier};
use crate::model::offset::{Epoch, LogId, OffsetRange, ShardId};
use crate::model::window::Hour;

/// The columns of version 2. New columns are appended; a change of meaning needs a new version.
/// Version 1 ends with `payload` and had one time, `received`, which was the append time.
///
/// Objects of older releases begin with a column `shard`, which is also the folder's name: pyarrow,
/// and pandas with it, reject a column that occurs in both with different types. Their `labels`
/// have the logical type JSON, which some readers take for bytes.
pub const SCHEMA: &str = "message rollmill_event {
  required int64 offset;
  required int32 index;
  required int64 received (TIMESTAMP(MILLIS,true));
  optional int64 event_time (TIMESTAMP(MILLIS,true));
  optional binary tenant (STRING);
  optional binary metric (STRING);
  optional binary labels (STRING);
  optional binary series_id (STRING);
  optional binary id (STRING);
  optional binary user (STRING);
  optional fixed_len_byte_array(16) value (DECIMAL(38,9));
  optional binary raw;
  optional int64 gateway;
  optional int32 series_index;
  optional binary payload;
  required int64 appended (TIMESTAMP(MILLIS,true));
  optional int64 stamp (TIMESTAMP(MILLIS,true));
}";

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

/// What a manifest row says about the rows of its object.
#[derive(Debug, Default)]
struct RowSummary {
    windows: BTreeMap<Hour, u64>,
    events: u64,
    raw_bytes: u64,
}

impl RowSummary {
    fn add(&mut self, rows: &[EventRow]) {
        for row in rows {
            if let Some(time) = row.event_time {
                *self.windows.entry(Hour::of(time)).or_default() += 1;
                self.events += 1;
            }
            self.raw_bytes +=
                row.raw.as_ref().or(row.payload.as_ref()).map_or(0, |bytes| bytes.len() as u64);
        }
    }

    /// Builds the manifest row of an object with these bytes and times.
    fn manifest_row(
        self,
        identity: (LogId, ShardId, ObjectName),
        bytes: &[u8],
        times: ObjectTimes,
        tier: Tier,
    ) -> ManifestRow {
        let (log, shard, ObjectName { range, epoch }) = identity;
        ManifestRow {
            log,
            shard,
            range,
            epoch,
            path: ManifestRow::object_path(log, shard, range, epoch),
            appended: times.appended,
            received: times.received,
            windows: self.windows.into_iter().collect(),
            rows: self.events,
            raw_bytes: self.raw_bytes,
            bytes: bytes.len() as u64,
            crc32c: crc32c::crc32c(bytes),
            tier,
        }
    }
}

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
    let mut summary = RowSummary::default();
    let (mut encoder, mut rows) = (RowEncoder::default(), Vec::new());
    let mut pending = 0;
    for (at, record) in records.iter().enumerate() {
        let start = rows.len();
        encoder.push_rows(record, &mut rows);
        summary.add(&rows[start..]);
        pending += record.payload.len();
        // Only between records: `read_all` decodes the records of each row group by itself.
        if rows.len() >= GROUP_ROWS || pending >= GROUP_BYTES || at + 1 == records.len() {
            write_group(writer.next_row_group().map_err(bad)?, &mut rows).map_err(bad)?;
            rows.clear();
            pending = 0;
        }
    }
    let mut bytes = writer.into_inner().map_err(bad)?;
    footer::write_checksum(&mut bytes)?;
    let row = summary.manifest_row((log, shard, name), &bytes, times, Tier::Hot);
    Ok((bytes, row))
}

fn range_of(records: &[LogRecord]) -> Result<OffsetRange, CodecError> {
    let (Some(first), Some(last)) = (records.first(), records.last()) else {
        return Err(CodecError::new("archive object", "an object needs at least one record"));
    };
    if records.windows(2).any(|pair| pair[0].offset + 1 != pair[1].offset) {
        return Err(CodecError::new("archive object", "the records are not consecutive"));
    }
    Ok(OffsetRange { from: first.offset, to: last.offset + 1 })
}

fn properties(pairs: Vec<(&'static str, String)>) -> Result<WriterProperties, CodecError> {
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

type GroupWriter<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

/// Writes the rows as one row group. Moves their texts out of them.
fn write_group(mut group: GroupWriter<'_>, rows: &mut [EventRow]) -> Result<(), ParquetError> {
    write_columns_1(&mut group, rows)?;
    put::<Int64Type>(&mut group, &rows.iter().map(|r| r.appended).collect::<Vec<_>>(), None)?;
    put_optional::<Int64Type>(&mut group, rows.iter().map(|r| r.stamp))?;
    group.close()?;
    Ok(())
}

/// Writes the columns of version 1, which version 2 begins with.
fn write_columns_1(group: &mut GroupWriter<'_>, rows: &mut [EventRow]) -> Result<(), ParquetError> {
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

fn put<T: DataType>(
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

/// Reads all records of an object and checks that it is the one that `row` describes. Verify the
/// checksum first: the Parquet library may panic on damaged bytes.
///
/// # Errors
/// If the bytes are not that object, or cannot be decoded.
pub fn decode(bytes: Bytes, row: &ManifestRow) -> Result<Vec<LogRecord>, CodecError> {
    let reader = SerializedFileReader::new(bytes).map_err(bad)?;
    footer_of(&reader).check(
        row.log,
        row.shard,
        ObjectName { range: row.range, epoch: row.epoch },
    )?;
    let (records, _) = read_all(&reader)?;
    if range_of(&records)? != row.range {
        return Err(CodecError::new("archive object", "the records are not those of the manifest"));
    }
    Ok(records)
}

/// An object that was read without its manifest row, to rebuild a lost store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RecoveredObject {
    pub row: ManifestRow,
    pub records: Vec<LogRecord>,
    /// `None` in objects written before decisions were recorded.
    pub decisions: Option<RangeDecisions>,
    /// Whether the footer has a checksum. Older objects have none, so damage may go unnoticed.
    pub has_checksum: bool,
}

/// Reads an object without a manifest row and checks everything that the object itself allows.
///
/// # Errors
/// If the bytes are not an archive object, or are a damaged one.
pub fn examine(bytes: Bytes, tier: Tier) -> Result<RecoveredObject, CodecError> {
    let sealed = footer::verify_checksum(&bytes)?;
    // Older objects have no checksum, and the Parquet library may panic on damaged bytes.
    let read = std::panic::catch_unwind(|| -> Result<RecoveredObject, CodecError> {
        let reader = SerializedFileReader::new(bytes.clone()).map_err(bad)?;
        let footer = footer_of(&reader);
        let identity = footer.object()?;
        let (records, summary) = read_all(&reader)?;
        if range_of(&records)? != identity.2.range {
            return Err(CodecError::new(
                "archive object",
                "the records are not those of the footer",
            ));
        }
        let row = summary.manifest_row(identity, &bytes, ObjectTimes::of(&records)?, tier);
        Ok(RecoveredObject { row, records, decisions: footer.decisions()?, has_checksum: sealed })
    });
    read.unwrap_or_else(|_| {
        Err(CodecError::new("archive object", "reading it panicked: its bytes are damaged"))
    })
}

fn footer_of(reader: &SerializedFileReader<Bytes>) -> ObjectFooter<'_> {
    ObjectFooter(reader.metadata().file_metadata().key_value_metadata())
}

fn read_all(
    reader: &SerializedFileReader<Bytes>,
) -> Result<(Vec<LogRecord>, RowSummary), CodecError> {
    let (mut records, mut summary) = (Vec::new(), RowSummary::default());
    for group in 0..reader.num_row_groups() {
        let rows = read_group(reader.get_row_group(group).map_err(bad)?.as_ref()).map_err(bad)?;
        summary.add(&rows);
        for of_record in rows.chunk_by(|a, b| a.offset == b.offset) {
            records.push(row::decode_record(of_record)?);
        }
    }
    Ok((records, summary))
}

/// Reads the columns of a row group in the order of the schema.
struct GroupColumns<'a> {
    group: &'a dyn RowGroupReader,
    rows: usize,
    next: usize,
}

impl GroupColumns<'_> {
    fn required<T: DataType>(&mut self) -> Result<Vec<T::T>, ParquetError> {
        let mut reader = get_typed_column_reader::<T>(self.group.get_column_reader(self.next)?);
        self.next += 1;
        let mut values = Vec::with_capacity(self.rows);
        reader.read_records(self.rows, None, None, &mut values)?;
        if values.len() == self.rows {
            Ok(values)
        } else {
            Err(ParquetError::EOF("a column ends early".to_owned()))
        }
    }

    fn optional<T: DataType>(&mut self) -> Result<Vec<Option<T::T>>, ParquetError> {
        let mut reader = get_typed_column_reader::<T>(self.group.get_column_reader(self.next)?);
        self.next += 1;
        let (mut values, mut levels) = (Vec::new(), Vec::with_capacity(self.rows));
        reader.read_records(self.rows, Some(&mut levels), None, &mut values)?;
        let mut values = values.into_iter();
        let cells: Vec<_> =
            levels.iter().map(|&level| if level == 0 { None } else { values.next() }).collect();
        if cells.len() == self.rows {
            Ok(cells)
        } else {
            Err(ParquetError::EOF("a column ends early".to_owned()))
        }
    }

    fn binary(&mut self) -> Result<std::vec::IntoIter<Option<Bytes>>, ParquetError> {
        let cells = self.optional::<ByteArrayType>()?;
        let bytes =
            |cell: Option<ByteArray>| cell.map(|array| Bytes::copy_from_slice(array.data()));
        Ok(cells.into_iter().map(bytes).collect::<Vec<_>>().into_iter())
    }
}

fn read_group(group: &dyn RowGroupReader) -> Result<Vec<EventRow>, ParquetError> {
    let rows = usize::try_from(group.metadata().num_rows())
        .map_err(|e| ParquetError::General(e.to_string()))?;
    // Objects of older releases have a column `shard` in front: skip it.
    let older = group.metadata().column(0).column_descr().name() == "shard";
    let mut columns = GroupColumns { group, rows, next: usize::from(older) };
    let offset = columns.required::<Int64Type>()?;
    let index = columns.required::<Int32Type>()?;
    let received = columns.required::<Int64Type>()?;
    let event_time = columns.optional::<Int64Type>()?;
    let mut tenant = columns.binary()?;
    let mut metric = columns.binary()?;
    let mut labels = columns.binary()?;
    let mut series_id = columns.binary()?;
    let mut id = columns.binary()?;
    let mut user = columns.binary()?;
    let value = columns.optional::<FixedLenByteArrayType>()?;
    let mut raw = columns.binary()?;
    let gateway = columns.optional::<Int64Type>()?;
    let series_index = columns.optional::<Int32Type>()?;
    let mut payload = columns.binary()?;
    // Version 1 ends here. Its one time per record is both append and received time.
    let two_times = columns.next < group.num_columns();
    let appended = if two_times { columns.required::<Int64Type>()? } else { received.clone() };
    let stamp = if two_times { columns.optional::<Int64Type>()? } else { vec![None; rows] };
    let row = |at: usize| {
        let value = match &value[at] {
            None => None,
            Some(bytes) => {
                let bytes = bytes
                    .data()
                    .try_into()
                    .map_err(|_| ParquetError::General("a value is not 16 bytes".to_owned()))?;
                Some(i128::from_be_bytes(bytes))
            }
        };
        Ok(EventRow {
            offset: offset[at] as u64,
            index: index[at] as u32,
            received: received[at],
            appended: appended[at],
            stamp: stamp[at],
            event_time: event_time[at],
            tenant: tenant.next().flatten(),
            metric: metric.next().flatten(),
            labels: labels.next().flatten(),
            series_id: series_id.next().flatten(),
            id: id.next().flatten(),
            user: user.next().flatten(),
            value,
            raw: raw.next().flatten(),
            gateway: gateway[at].map(|g| g as u32),
            series_index: series_index[at].map(|s| s as u32),
            payload: payload.next().flatten(),
        })
    };
    (0..rows).map(row).collect()
}

fn bad(error: ParquetError) -> CodecError {
    CodecError::new("archive object", error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::row::tests::sample;
    use super::*;
    use crate::model::series::SeriesId;

    const LOG: LogId = LogId([7; 16]);
    const EPOCH: Epoch = Epoch { counter: 3, nonce: 0xabc };

    fn object(records: &[LogRecord]) -> (Vec<u8>, ManifestRow) {
        encode(LOG, ShardId(5), EPOCH, records, &RangeDecisions::default()).expect("encodes")
    }

    fn decisions() -> RangeDecisions {
        let admitted = vec![(SeriesId([0xab; 16]), 0), (SeriesId([0; 16]), 1)];
        RangeDecisions { admitted, quarantined: vec![(0, 3, false), (1, 0, true)] }
    }

    #[test]
    fn an_object_says_by_itself_what_it_is() {
        let mut records: Vec<LogRecord> =
            (0..40).map(|offset| sample(offset, (offset % 5 + 1) as usize)).collect();
        records[7].payload = Bytes::from_static(b"garbage");
        let (bytes, row) = encode(LOG, ShardId(5), EPOCH, &records, &decisions()).expect("encodes");
        let row = ManifestRow { tier: Tier::Cold, ..row };
        let expected = RecoveredObject {
            row: row.clone(),
            records: records.clone(),
            decisions: Some(decisions()),
            has_checksum: true,
        };
        assert_eq!(examine(bytes.clone().into(), Tier::Cold), Ok(expected));
        assert_eq!(
            decode(bytes.into(), &row),
            Ok(records),
            "nothing changes for who knows the row"
        );
    }

    #[test]
    fn every_damaged_byte_is_found_without_a_manifest() {
        let (bytes, _) =
            encode(LOG, ShardId(5), EPOCH, &[sample(0, 2), sample(1, 1)], &decisions())
                .expect("encodes");
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let found = |at: usize| {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            examine(damaged.into(), Tier::Hot)
        };
        // Damage to the checksum's own key yields an object that says it has no checksum.
        let passed: Vec<usize> = (0..bytes.len())
            .filter(|at| found(*at).is_ok_and(|object| object.has_checksum))
            .collect();
        std::panic::set_hook(quiet);
        assert_eq!(passed, Vec::<usize>::new());
    }

    /// An object as the previous release wrote it: one time, no decisions, no checksum.
    pub(crate) fn older(log: LogId, shard: ShardId, epoch: Epoch, records: &[LogRecord]) -> Bytes {
        let name = ObjectName { range: range_of(records).expect("a range"), epoch };
        let mut pairs = vec![("rollmill.version", "1".to_owned())];
        pairs.append(&mut footer::location_pairs(log, shard, name));
        with_footer(pairs, shard, records)
    }

    fn with_footer(
        pairs: Vec<(&'static str, String)>,
        shard: ShardId,
        records: &[LogRecord],
    ) -> Bytes {
        let columns =
            SCHEMA.split("  required int64 appended").next().expect("columns").to_owned() + "}";
        let older = columns
            .replace("{\n", "{\n  required int32 shard;\n")
            .replace("labels (STRING)", "labels (JSON)");
        let schema = Arc::new(parse_message_type(&older).expect("a schema"));
        let properties = Arc::new(properties(pairs).expect("properties"));
        let mut writer =
            SerializedFileWriter::new(Vec::new(), schema, properties).expect("a writer");
        let (mut maker, mut rows) = (RowEncoder::default(), Vec::new());
        for record in records {
            let start = rows.len();
            maker.push_rows(record, &mut rows);
            rows[start..].iter_mut().for_each(|row| row.received = row.appended);
            if rows[start].stamp.is_some() {
                rows[start].payload = Some(record.payload.clone());
            }
        }
        let mut group = writer.next_row_group().expect("a group");
        put::<Int32Type>(&mut group, &vec![shard.0 as i32; rows.len()], None).expect("written");
        write_columns_1(&mut group, &mut rows).expect("written");
        group.close().expect("closed");
        writer.into_inner().expect("bytes").into()
    }

    #[test]
    fn an_older_object_is_read_and_says_that_it_is_old() {
        let records = [sample(0, 2), sample(1, 1)];
        let bytes = older(LOG, ShardId(5), EPOCH, &records);
        let old = examine(bytes.clone(), Tier::Hot).expect("read");
        let one_time = records.map(|record| LogRecord { received: record.appended, ..record });
        assert_eq!(
            (&old.records[..], old.decisions, old.has_checksum),
            (&one_time[..], None, false)
        );
        assert_eq!(decode(bytes, &old.row), Ok(one_time.to_vec()));
        assert_eq!(
            old.row,
            ManifestRow { bytes: old.row.bytes, crc32c: old.row.crc32c, ..object(&one_time).1 }
        );
    }

    #[test]
    fn no_column_has_the_name_of_a_folder() {
        let path = ManifestRow::object_path(LOG, ShardId(5), OffsetRange { from: 0, to: 1 }, EPOCH);
        for folder in path.split('/').filter_map(|part| part.split_once('=')).map(|(name, _)| name)
        {
            assert!(!SCHEMA.contains(&format!(" {folder}")), "{folder} is a column and a folder");
        }
    }

    #[test]
    fn another_version_is_refused_with_the_way_out() {
        let (_, row) = object(&[sample(0, 1)]);
        let mut pairs = vec![("rollmill.version", "3".to_owned())];
        pairs.append(&mut footer::location_pairs(
            LOG,
            ShardId(5),
            ObjectName { range: row.range, epoch: EPOCH },
        ));
        let bytes = with_footer(pairs, ShardId(5), &[sample(0, 1)]);
        for refused in
            [decode(bytes.clone(), &row).map(|_| ()), examine(bytes, Tier::Hot).map(|_| ())]
        {
            let why = refused.expect_err("refused").to_string();
            assert!(
                why.contains("format version 3 is unknown")
                    && why.contains("use the version of Rollmill"),
                "{why}"
            );
        }
    }

    #[test]
    fn records_come_back_and_bytes_are_a_function_of_them() {
        let mut records: Vec<LogRecord> =
            (10..200).map(|offset| sample(offset, (offset % 7 + 1) as usize)).collect();
        records[3].payload = Bytes::from_static(b"garbage");
        let (bytes, row) = object(&records);
        assert_eq!(object(&records).0, bytes);
        assert_eq!(decode(bytes.into(), &row), Ok(records.clone()));
        assert_eq!(
            (row.range, row.appended, row.received),
            (OffsetRange { from: 10, to: 200 }, (100, 1990), (100, 1978))
        );
        let decodable = records.iter().filter(|r| &r.payload[..] != b"garbage");
        assert_eq!(row.rows, decodable.map(|r| r.offset % 7 + 1).sum::<u64>());
        assert_eq!(row.windows.iter().map(|w| w.1).sum::<u64>(), row.rows);
        assert_eq!(row.windows[0].0, Hour(-1));
    }

    #[test]
    fn large_objects_have_several_groups() {
        let records: Vec<LogRecord> = (0..3_000).map(|offset| sample(offset, 50)).collect();
        let (bytes, row) = object(&records);
        let reader = SerializedFileReader::new(Bytes::from(bytes.clone())).expect("a file");
        assert!(reader.num_row_groups() >= 2);
        assert_eq!(decode(bytes.into(), &row), Ok(records));
    }

    #[test]
    fn another_object_is_refused_by_its_footer() {
        let (bytes, row) = object(&[sample(0, 1)]);
        let other = ManifestRow { shard: ShardId(6), ..row };
        let error = decode(bytes.into(), &other).expect_err("refused");
        assert!(error.to_string().contains("rollmill.shard"), "{error}");
    }

    #[test]
    fn no_records_and_gaps_are_refused() {
        let refused = |records: &[LogRecord]| {
            encode(LOG, ShardId(0), EPOCH, records, &RangeDecisions::default()).is_err()
        };
        assert!(refused(&[]) && refused(&[sample(0, 1), sample(2, 1)]));
    }
}
