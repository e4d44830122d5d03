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
use crate::model::outcome::{Outcome, OutcomeNote, UncountedEvent, Verdict};

/// The records of an object, and what became of their events.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ArchivedRecords {
    pub records: Vec<LogRecord>,
    /// The events that ingest did not count; `None` in objects that do not say it.
    pub outcomes: Option<OutcomeNote>,
}

/// Reads all records of an object and checks that it is the one that `row` describes. Verify the
/// checksum first: the Parquet library may panic on damaged bytes.
///
/// # Errors
/// If the bytes are not that object, or cannot be decoded.
pub fn decode(bytes: Bytes, row: &ManifestRow) -> Result<ArchivedRecords, CodecError> {
    let reader = SerializedFileReader::new(bytes).map_err(bad)?;
    let footer = footer_of(&reader);
    footer.check(row.log, row.shard, ObjectName { range: row.range, epoch: row.epoch })?;
    let (records, _, noted) = read_all(&reader)?;
    if range_of(&records)? != row.range {
        return Err(CodecError::new("archive object", "the records are not those of the manifest"));
    }
    Ok(ArchivedRecords { records, outcomes: footer.has_outcomes().then_some(noted) })
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
        let (records, summary, noted) = read_all(&reader)?;
        if range_of(&records)? != identity.2.range {
            return Err(CodecError::new(
                "archive object",
                "the records are not those of the footer",
            ));
        }
        let row = summary.manifest_row(identity, &bytes, ObjectTimes::of(&records)?, tier);
        let outcomes = footer.has_outcomes().then_some(noted);
        let decisions = footer.decisions()?.map(|found| RangeDecisions { outcomes, ..found });
        Ok(RecoveredObject { row, records, decisions, has_checksum: sealed })
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
) -> Result<(Vec<LogRecord>, RowSummary, OutcomeNote), CodecError> {
    let (mut records, mut summary) = (Vec::new(), RowSummary::default());
    let mut noted = OutcomeNote::default();
    for group in 0..reader.num_row_groups() {
        let rows = read_group(reader.get_row_group(group).map_err(bad)?.as_ref()).map_err(bad)?;
        summary.add(&rows);
        rows.iter().filter_map(uncounted).for_each(|event| noted.push(event));
        for of_record in rows.chunk_by(|a, b| a.offset == b.offset) {
            records.push(row::decode_record(of_record)?);
        }
    }
    Ok((records, summary, noted))
}

/// The row's event, if it was not counted.
fn uncounted(row: &EventRow) -> Option<UncountedEvent> {
    let verdict = match row.outcome? {
        Outcome::Counted => return None,
        Outcome::Duplicate => Verdict::Duplicate,
        Outcome::Quarantined => Verdict::Quarantined,
    };
    Some(UncountedEvent { offset: row.offset, index: row.index, verdict })
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
    // Version 2 ends here.
    let outcomes = match columns.next < group.num_columns() {
        true => columns.optional::<ByteArrayType>()?,
        false => vec![None; rows],
    };
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
            outcome: outcomes[at].as_ref().map(outcome).transpose()?,
        })
    };
    (0..rows).map(row).collect()
}

fn outcome(name: &ByteArray) -> Result<Outcome, ParquetError> {
    Outcome::from_name(name.data())
        .ok_or_else(|| ParquetError::General("column outcome has an unknown name".to_owned()))
}
