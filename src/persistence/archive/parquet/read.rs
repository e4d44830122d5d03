//! Decodes an object into its records, with its manifest row or without.

use bytes::Bytes;
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, FixedLenByteArrayType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use super::super::footer::{self, ObjectFooter, ObjectTimes};
use super::super::row::{self, EventRow};
use super::{RowSummary, bad, range_of};
use crate::model::CodecError;
use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, ObjectName, RangeDecisions, Tier};

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
