//! Events of an archive object by column, for whoever folds many of them: replay.
//!
//! Series, users and values are coded: each different one stands once in a table, so that it is
//! parsed, checked and hashed once, however many events have it. The raw events are read only if
//! somebody asks for them, and then in small batches. Pure.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::ArchivedRecords;
use crate::model::decimal::Decimal;
use crate::model::flush::{LogRecord, SeriesInfo};
use crate::model::offset::{Offset, OffsetRange};
use crate::model::outcome::{Outcome, OutcomeNote, OutcomeReader};
use crate::model::record::{self, Record};
use crate::model::series::{Series, SeriesId};
use crate::model::window::Millis;

/// Records per batch where an archive keeps whole records.
const BATCH_RECORDS: usize = 1_024;

/// Whether the events as clients sent them are read. They are most of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawEvents {
    /// They are read.
    Read,
    /// Their column is not touched.
    Skip,
}

/// A column whose cells are numbers of entries in a table.
#[derive(Debug, Clone)]
pub struct Coded<T> {
    codes: Vec<u32>,
    table: Arc<[T]>,
}

impl<T> Coded<T> {
    /// The code of an empty cell.
    pub const EMPTY: u32 = u32::MAX;

    /// A column of these codes, each [`Coded::EMPTY`] or an index of the table.
    pub fn new(codes: Vec<u32>, table: Vec<T>) -> Self {
        Self { codes, table: table.into() }
    }

    /// The same cells of some events.
    fn part(&self, events: Range<usize>) -> Self {
        Self { codes: self.codes[events].to_vec(), table: self.table.clone() }
    }

    /// The cell of an event.
    pub fn get(&self, at: usize) -> Option<&T> {
        self.table.get(*self.codes.get(at)? as usize)
    }

    /// The codes, one for each event.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// What codes stand for.
    pub fn table(&self) -> &[T] {
        &self.table
    }

    /// Keeps the cells of these rows, ascending.
    pub(super) fn keep(&mut self, rows: &[u32]) {
        keep(&mut self.codes, rows);
    }
}

/// Keeps the cells of these rows, ascending.
pub(super) fn keep<T: Copy>(cells: &mut Vec<T>, rows: &[u32]) {
    rows.iter().enumerate().for_each(|(to, from)| cells[to] = cells[*from as usize]);
    cells.truncate(rows.len());
}

/// Texts in the pages that hold them: the events as clients sent them, or a dictionary. A cell is
/// not a [`Bytes`] of its own, which would be counted twice when it is made and dropped.
#[derive(Debug, Clone, Default)]
pub struct RawColumn {
    pages: Vec<Bytes>,
    cells: Vec<(u32, u32, u32)>,
}

impl RawColumn {
    /// The bytes of an event; none if they were not stored.
    pub fn get(&self, at: usize) -> &[u8] {
        let cell = self.cells.get(at);
        let bytes = cell.and_then(|&(page, from, to)| {
            self.pages.get(page as usize)?.get(from as usize..to as usize)
        });
        bytes.unwrap_or_default()
    }

    /// The number of cells.
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// The bytes of all cells.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|at| self.get(at))
    }

    /// Makes room for more cells.
    pub(super) fn reserve(&mut self, more: usize) {
        self.cells.reserve(more);
    }

    /// Adds a page; cells refer to it until the next one is added.
    pub(super) fn push_page(&mut self, page: Bytes) {
        self.pages.push(page);
    }

    /// Adds the next event, of these bytes of the last page.
    pub(super) fn push(&mut self, bytes: Range<usize>) {
        let page = self.pages.len().saturating_sub(1) as u32;
        // A page is far smaller than 4 GiB: its length is an `i32` in the file.
        self.cells.push((page, bytes.start as u32, bytes.end as u32));
    }

    pub(super) fn keep(&mut self, rows: &[u32]) {
        keep(&mut self.cells, rows);
    }

    /// Takes out the first cells, with the pages that only they are in.
    pub(super) fn take(&mut self, cells: usize) -> Self {
        let left = self.cells.split_off(cells.min(self.cells.len()));
        let taken =
            Self { pages: self.pages.clone(), cells: std::mem::replace(&mut self.cells, left) };
        let first = self.cells.first().map_or(self.pages.len(), |(page, ..)| *page as usize);
        self.pages.drain(..first);
        self.cells.iter_mut().for_each(|(page, ..)| *page -= first as u32);
        taken
    }
}

/// Consecutive records of an object, by column. Vectors have one entry for each event, in log
/// order.
#[derive(Debug, Clone)]
pub struct EventColumns {
    /// The records, those without events included.
    pub range: OffsetRange,
    /// Offsets of the events' records.
    pub offsets: Vec<Offset>,
    /// Indices of the events in their records.
    pub indices: Vec<u32>,
    /// Event times.
    pub times: Vec<Millis>,
    /// The series that the client sent the event to. Empty if its id is not the hash of its key:
    /// such an event was never counted.
    pub series: Coded<Arc<SeriesInfo>>,
    /// Hashes of the users.
    pub users: Coded<u64>,
    /// Values.
    pub values: Coded<Decimal>,
    /// What became of the events; `None` in objects that do not say it.
    pub outcomes: Option<Vec<Outcome>>,
    /// The raw events; `None` if they were skipped.
    pub raw: Option<RawColumn>,
}

impl EventColumns {
    /// The number of events.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Some of the events, which are all of these records, without their raw bytes.
    pub(super) fn part(&self, range: OffsetRange, events: Range<usize>) -> Self {
        Self {
            range,
            offsets: self.offsets[events.clone()].to_vec(),
            indices: self.indices[events.clone()].to_vec(),
            times: self.times[events.clone()].to_vec(),
            series: self.series.part(events.clone()),
            users: self.users.part(events.clone()),
            values: self.values.part(events.clone()),
            outcomes: self.outcomes.as_ref().map(|all| all[events].to_vec()),
            raw: None,
        }
    }

    /// Whether no record has an event.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }
}

/// The batches of an object, in log order.
pub type ColumnBatches = Box<dyn Iterator<Item = Result<EventColumns, super::ArchiveError>> + Send>;

/// The columns of an object that was read as records.
pub(super) fn of_records(read: ArchivedRecords, raw: RawEvents) -> ColumnBatches {
    let ArchivedRecords { records, outcomes } = read;
    let mut next = 0;
    Box::new(std::iter::from_fn(move || {
        let batch = &records[next.min(records.len())..];
        let batch = &batch[..batch.len().min(BATCH_RECORDS)];
        next += batch.len();
        (!batch.is_empty()).then(|| Ok(ColumnBuilder::build(batch, outcomes.as_ref(), raw)))
    }))
}

/// Numbers what occurs, by a key.
struct Numbering<K, T> {
    numbers: HashMap<K, u32>,
    codes: Vec<u32>,
    table: Vec<T>,
}

impl<K: std::hash::Hash + Eq, T> Numbering<K, T> {
    fn new() -> Self {
        Self { numbers: HashMap::new(), codes: Vec::new(), table: Vec::new() }
    }

    fn push(&mut self, cell: Option<(K, T)>) {
        let code = cell.map_or(Coded::<T>::EMPTY, |(key, value)| {
            let next = self.table.len() as u32;
            let code = *self.numbers.entry(key).or_insert(next);
            if code == next {
                self.table.push(value);
            }
            code
        });
        self.codes.push(code);
    }

    fn column(self) -> Coded<T> {
        Coded::new(self.codes, self.table)
    }
}

struct ColumnBuilder<'a> {
    columns: EventColumns,
    series: Numbering<SeriesId, Arc<SeriesInfo>>,
    users: Numbering<u64, u64>,
    values: Numbering<Decimal, Decimal>,
    outcomes: Option<OutcomeReader<'a>>,
}

impl<'a> ColumnBuilder<'a> {
    fn build(
        records: &[LogRecord],
        noted: Option<&'a OutcomeNote>,
        raw: RawEvents,
    ) -> EventColumns {
        let range = OffsetRange {
            from: records.first().map_or(0, |record| record.offset),
            to: records.last().map_or(0, |record| record.offset + 1),
        };
        let mut builder = Self {
            columns: EventColumns {
                range,
                offsets: Vec::new(),
                indices: Vec::new(),
                times: Vec::new(),
                series: Coded::new(Vec::new(), Vec::new()),
                users: Coded::new(Vec::new(), Vec::new()),
                values: Coded::new(Vec::new(), Vec::new()),
                outcomes: noted.map(|_| Vec::new()),
                raw: (raw == RawEvents::Read).then(RawColumn::default),
            },
            series: Numbering::new(),
            users: Numbering::new(),
            values: Numbering::new(),
            outcomes: noted.map(OutcomeNote::reader),
        };
        for log_record in records {
            match record::decode(&log_record.payload) {
                Ok(record) => builder.push_record(log_record, &record),
                Err(_) => {
                    if let Some(outcomes) = &mut builder.outcomes {
                        outcomes.skip_record(log_record.offset);
                    }
                }
            }
        }
        EventColumns {
            series: builder.series.column(),
            users: builder.users.column(),
            values: builder.values.column(),
            ..builder.columns
        }
    }

    fn push_record(&mut self, log_record: &LogRecord, record: &Record<'_>) {
        let resolved: Vec<_> =
            record.series.iter().map(|entry| series_of(entry.series_id(), entry.key)).collect();
        if let Some(raw) = &mut self.columns.raw {
            raw.push_page(log_record.payload.clone());
        }
        for (index, event) in (0..).zip(&record.events) {
            let columns = &mut self.columns;
            columns.offsets.push(log_record.offset);
            columns.indices.push(index);
            columns.times.push(event.timestamp);
            let series = resolved.get(event.series as usize).cloned().flatten();
            self.series.push(series.map(|info| (info.id, info)));
            self.users.push(event.user_hash().map(|user| (user, user)));
            self.values.push(event.value.map(|value| (value, value)));
            if let (Some(outcomes), Some(noted)) = (&mut columns.outcomes, &mut self.outcomes) {
                outcomes.push(noted.outcome(log_record.offset, index));
            }
            if let Some(raw) = &mut columns.raw {
                let from = event.raw.as_ptr() as usize - log_record.payload.as_ptr() as usize;
                raw.push(from..from + event.raw.len());
            }
        }
    }
}

/// The series of a key; `None` if the id is not the hash of the key, or the key does not decode.
pub(super) fn series_of(id: SeriesId, key: &[u8]) -> Option<Arc<SeriesInfo>> {
    if SeriesId::of_key(key) != id {
        return None;
    }
    let series = Series::from_key(key).ok()?;
    Some(Arc::new(SeriesInfo { id, series }))
}
