//! Reads an object by column: a row group at a time, or one page of raw events.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, FileReader, RowGroupReader, SerializedFileReader};

use super::super::columns::{Coded, EventColumns, RawColumn, RawEvents, keep, series_of};
use super::super::footer::ObjectFooter;
use super::bad;
use super::pages::raw::RawPages;
use super::pages::{Chunk, CodedCells, EMPTY, NumberCells};
use crate::model::CodecError;
use crate::model::decimal::Decimal;
use crate::model::flush::SeriesInfo;
use crate::model::manifest::{ManifestRow, ObjectName};
use crate::model::offset::{Offset, OffsetRange};
use crate::model::outcome::Outcome;
use crate::model::record;
use crate::model::series::{Series, SeriesId};

/// The row groups of an object, by column.
pub struct ObjectColumns<R: ChunkReader> {
    reader: SerializedFileReader<R>,
    raw: RawEvents,
    keys: KeyColumns,
    next_group: usize,
    /// The row group that is read, if its raw events are read too.
    open: Option<OpenGroup>,
}

impl<R: ChunkReader + 'static> ObjectColumns<R> {
    /// Opens an object and checks that it is the one that `row` describes. Verify the checksum
    /// first: the Parquet library may panic on damaged bytes.
    ///
    /// # Errors
    /// If the bytes are not that object.
    pub fn open(
        bytes: R,
        row: &ManifestRow,
        raw: RawEvents,
    ) -> std::result::Result<Self, CodecError> {
        let reader = SerializedFileReader::new(bytes).map_err(bad)?;
        let footer = ObjectFooter(reader.metadata().file_metadata().key_value_metadata());
        footer.check(row.log, row.shard, ObjectName { range: row.range, epoch: row.epoch })?;
        let has_outcomes = footer.has_outcomes();
        let keys = KeyColumns { has_outcomes, left: row.range, series: HashMap::new() };
        Ok(Self { reader, raw, keys, next_group: 0, open: None })
    }

    fn next_batch(&mut self) -> Result<Option<EventColumns>> {
        if self.open.is_none() {
            if self.next_group == self.reader.num_row_groups() {
                return self.keys.finish().map(|()| None);
            }
            let group = self.reader.get_row_group(self.next_group)?;
            self.next_group += 1;
            let (columns, events) = self.keys.read(group.as_ref())?;
            if self.raw == RawEvents::Skip {
                return Ok(Some(keep_events(columns, events.as_deref())));
            }
            let raw = RawPages::open(group.as_ref(), "raw")?;
            self.open = Some(OpenGroup::new(columns, events, raw));
        }
        let Some(mut group) = self.open.take() else { return Ok(None) };
        let batch = group.next_batch()?;
        self.open = (!group.is_read()).then_some(group);
        Ok(Some(batch))
    }
}

impl<R: ChunkReader + 'static> Iterator for ObjectColumns<R> {
    type Item = std::result::Result<EventColumns, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().map_err(bad).transpose()
    }
}

/// Reads all columns of row groups but the raw events.
struct KeyColumns {
    has_outcomes: bool,
    /// Start of the next row group, and end of the last.
    left: OffsetRange,
    /// Series that occurred: those of a shard repeat in all row groups.
    series: HashMap<SeriesId, Arc<SeriesInfo>>,
}

impl KeyColumns {
    /// All rows of a group, and those that are events; `None` if all are.
    fn read(&mut self, group: &dyn RowGroupReader) -> Result<(EventColumns, Option<Vec<u32>>)> {
        let (offsets, range) = offsets(group, &mut self.left)?;
        let NumberCells { numbers: times, present } =
            Chunk::required(group, "event_time")?.numbers()?;
        let indices = Chunk::required(group, "index")?.numbers()?.numbers;
        let outcomes = match self.has_outcomes {
            true => Some(outcomes(Chunk::required(group, "outcome")?.coded()?)?),
            false => None,
        };
        let columns = EventColumns {
            range,
            series: series(group, &mut self.series)?,
            offsets,
            indices: indices.into_iter().map(|index| index as u32).collect(),
            times,
            users: users(Chunk::required(group, "user")?.coded()?)?,
            values: values(Chunk::required(group, "value")?.coded()?)?,
            outcomes,
            raw: None,
        };
        Ok((columns, present))
    }

    /// Fails if records are missing behind the last group. Says so once.
    fn finish(&mut self) -> Result<()> {
        let is_short = self.left.from < self.left.to;
        self.left.from = self.left.to;
        match is_short {
            true => Err(general("the records are not those of the manifest")),
            false => Ok(()),
        }
    }
}

/// A row group whose raw events are read page by page.
struct OpenGroup {
    /// The events of the group, without their raw bytes.
    columns: EventColumns,
    /// The offset of each row, whether it is an event or not.
    rows: Vec<Offset>,
    /// The rows that are events; `None` if all are.
    events: Option<Vec<u32>>,
    raw: RawPages,
    /// How many rows are in batches.
    taken: usize,
}

impl OpenGroup {
    fn new(columns: EventColumns, events: Option<Vec<u32>>, raw: RawPages) -> Self {
        let rows = columns.offsets.clone();
        Self { columns: keep_events(columns, events.as_deref()), rows, events, raw, taken: 0 }
    }

    fn is_read(&self) -> bool {
        self.taken == self.rows.len()
    }

    /// The records that are whole with the next page, and with more pages if none is.
    fn next_batch(&mut self) -> Result<EventColumns> {
        let rows = self.taken..self.read_records()?;
        let range = OffsetRange {
            from: if rows.start == 0 { self.columns.range.from } else { self.rows[rows.start] },
            to: self.rows.get(rows.end).copied().unwrap_or(self.columns.range.to),
        };
        let mut raw = self.raw.take(rows.len());
        let events = match &self.events {
            None => rows.clone(),
            Some(events) => {
                let below = |row| events.partition_point(|event| (*event as usize) < row);
                let part = below(rows.start)..below(rows.end);
                let cells = events[part.clone()].iter().map(|row| row - rows.start as u32);
                raw.keep(&cells.collect::<Vec<_>>());
                part
            }
        };
        self.taken = rows.end;
        Ok(EventColumns { raw: Some(raw), ..self.columns.part(range, events) })
    }

    /// Reads pages up to the end of a record that no batch holds. Answers the row behind it.
    fn read_records(&mut self) -> Result<usize> {
        let all = self.rows.len();
        loop {
            let has_page = self.raw.read_page()?;
            let read = self.raw.rows();
            if read > all || (!has_page && read < all) {
                return Err(general("a column has too few or too many rows"));
            }
            let behind = match self.rows.get(read) {
                // The record of the next row may have begun in this page.
                Some(next) => self.rows.partition_point(|offset| offset < next),
                None => all,
            };
            if behind > self.taken {
                return Ok(behind);
            }
        }
    }
}

/// The offsets of the rows, and the records of the group.
fn offsets(
    group: &dyn RowGroupReader,
    left: &mut OffsetRange,
) -> Result<(Vec<Offset>, OffsetRange)> {
    let numbers = Chunk::required(group, "offset")?.numbers()?.numbers;
    let offsets: Vec<Offset> = numbers.into_iter().map(|number| number as u64).collect();
    let consecutive = offsets.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) <= 1);
    let range = match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) if consecutive => {
            OffsetRange { from: *first, to: last.saturating_add(1) }
        }
        _ => return Err(general("a row group has no rows, or they are not consecutive")),
    };
    if range.from != left.from || range.to > left.to {
        return Err(general("the records are not those of the manifest"));
    }
    left.from = range.to;
    Ok((offsets, range))
}

/// The series of the rows; `known` are those that occurred before.
fn series(
    group: &dyn RowGroupReader,
    known: &mut HashMap<SeriesId, Arc<SeriesInfo>>,
) -> Result<Coded<Arc<SeriesInfo>>> {
    let ids = Chunk::required(group, "series_id")?.coded()?;
    let mut numbers = vec![EMPTY; ids.values.len()];
    let mut table = Vec::with_capacity(ids.values.len());
    // The columns that say what a series is are not touched while all of them are known.
    let mut keys: Option<SeriesKeys> = None;
    for (row, &code) in ids.codes.iter().enumerate() {
        if code == EMPTY || numbers[code as usize] != EMPTY {
            continue;
        }
        let id = hex_id(ids.values.get(code as usize))?;
        let found = match known.get(&id) {
            Some(info) => Some(info.clone()),
            None => {
                let read = match keys.take() {
                    Some(read) => read,
                    None => SeriesKeys::read(group)?,
                };
                keys.insert(read).series(row, id)
            }
        };
        if let Some(info) = found {
            known.insert(id, info.clone());
            numbers[code as usize] = table.len() as u32;
            table.push(info);
        }
    }
    let number = |code: u32| numbers.get(code as usize).copied().unwrap_or(EMPTY);
    Ok(Coded::new(ids.codes.into_iter().map(number).collect(), table))
}

/// What series keys are made of, by row, and the records that stand whole beside their columns.
struct SeriesKeys {
    tenants: CodedCells,
    metrics: CodedCells,
    labels: CodedCells,
    records: RawColumn,
}

impl SeriesKeys {
    fn read(group: &dyn RowGroupReader) -> Result<Self> {
        let [tenants, metrics, labels] = ["tenant", "metric", "labels"]
            .map(|name| Chunk::required(group, name).and_then(Chunk::coded));
        let records = Chunk::required(group, "payload")?.coded()?.values;
        Ok(Self { tenants: tenants?, metrics: metrics?, labels: labels?, records })
    }

    /// The series of this id, as the columns of a row have it. Those of a record that no gateway
    /// has written may not say its key; then the record itself does.
    fn series(&self, row: usize, id: SeriesId) -> Option<Arc<SeriesInfo>> {
        let of_columns = self.key(row).and_then(|key| series_of(id, &key));
        of_columns.or_else(|| {
            self.records.iter().find_map(|bytes| {
                let record = record::decode(bytes).ok()?;
                let mut entries = record.series.iter().filter(|entry| entry.series_id() == id);
                entries.find_map(|entry| series_of(id, entry.key))
            })
        })
    }

    fn key(&self, row: usize) -> Option<Vec<u8>> {
        let labels = serde_json::from_slice(cell(&self.labels, row)?);
        let labels: BTreeMap<String, String> = labels.ok()?;
        let text = |column| std::str::from_utf8(cell(column, row)?).ok();
        Some(Series::new(text(&self.tenants)?, text(&self.metrics)?, labels).key())
    }
}

/// The text of a row; `None` if it is empty.
fn cell(column: &CodedCells, row: usize) -> Option<&[u8]> {
    let code = *column.codes.get(row)?;
    (code != EMPTY).then(|| column.values.get(code as usize))
}

/// Leaves out the rows that are no events.
fn keep_events(mut columns: EventColumns, events: Option<&[u32]>) -> EventColumns {
    let Some(events) = events else { return columns };
    keep(&mut columns.offsets, events);
    keep(&mut columns.indices, events);
    keep(&mut columns.times, events);
    columns.series.keep(events);
    columns.users.keep(events);
    columns.values.keep(events);
    if let Some(outcomes) = &mut columns.outcomes {
        keep(outcomes, events);
    }
    columns
}

fn users(cells: CodedCells) -> Result<Coded<u64>> {
    let hash = |bytes: &[u8]| {
        let user = std::str::from_utf8(bytes).map_err(|e| general(&e.to_string()))?;
        Ok(record::user_hash(user))
    };
    let table = cells.values.iter().map(hash).collect::<Result<_>>()?;
    Ok(Coded::new(cells.codes, table))
}

fn values(cells: CodedCells) -> Result<Coded<Decimal>> {
    let number = |bytes: &[u8]| {
        let units = bytes.first_chunk::<16>().ok_or_else(|| general("a value is too short"))?;
        Ok(Decimal::from_units(i128::from_be_bytes(*units)))
    };
    let table = cells.values.iter().map(number).collect::<Result<_>>()?;
    Ok(Coded::new(cells.codes, table))
}

/// Rows that are no events have no outcome; nobody looks at theirs.
fn outcomes(cells: CodedCells) -> Result<Vec<Outcome>> {
    let named = |bytes: &[u8]| {
        Outcome::from_name(bytes).ok_or_else(|| general("column outcome has an unknown name"))
    };
    let table = cells.values.iter().map(named).collect::<Result<Vec<_>>>()?;
    let outcome = |code: u32| table.get(code as usize).copied().unwrap_or(Outcome::Quarantined);
    Ok(cells.codes.into_iter().map(outcome).collect())
}

fn hex_id(digits: &[u8]) -> Result<SeriesId> {
    let text = std::str::from_utf8(digits).map_err(|e| general(&e.to_string()))?;
    let id = u128::from_str_radix(text, 16).map_err(|e| general(&e.to_string()))?;
    Ok(SeriesId(id.to_be_bytes()))
}

fn general(why: &str) -> ParquetError {
    ParquetError::General(why.to_owned())
}
