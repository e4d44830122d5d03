//! What is read by column is what the records say, and nothing else is read.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use parquet::file::reader::{ChunkReader, Length};

use super::super::columns::{ColumnBatches, EventColumns, RawEvents, of_records};
use super::super::row::tests::sample;
use super::tests::older;
use super::*;
use crate::model::decimal::Decimal;
use crate::model::manifest::RangeDecisions;
use crate::model::offset::{Epoch, Offset, OffsetRange};
use crate::model::outcome::{Outcome, OutcomeNote, UncountedEvent, Verdict};
use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
use crate::model::series::{Series, SeriesId};

const LOG: LogId = LogId([7; 16]);
const EPOCH: Epoch = Epoch { counter: 3, nonce: 0xabc };

type Row =
    (Offset, u32, i64, Option<Series>, Option<u64>, Option<Decimal>, Option<Outcome>, Vec<u8>);

fn rows(batches: impl Iterator<Item = EventColumns>) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in batches {
        for at in 0..batch.len() {
            rows.push((
                batch.offsets[at],
                batch.indices[at],
                batch.times[at],
                batch.series.get(at).map(|info| info.series.clone()),
                batch.users.get(at).copied(),
                batch.values.get(at).copied(),
                batch.outcomes.as_ref().map(|outcomes| outcomes[at]),
                batch.raw.as_ref().map(|raw| raw.get(at).to_vec()).unwrap_or_default(),
            ));
        }
    }
    rows
}

fn by_column(bytes: Bytes, row: &ManifestRow, raw: RawEvents) -> Vec<Row> {
    let batches = ObjectColumns::open(bytes, row, raw).expect("opens");
    let batches: Vec<_> = batches.map(|batch| batch.expect("a batch")).collect();
    assert_eq!(batches.first().map(|batch| batch.range.from), Some(row.range.from));
    assert_eq!(batches.last().map(|batch| batch.range.to), Some(row.range.to));
    assert!(batches.windows(2).all(|pair| pair[0].range.to == pair[1].range.from));
    for batch in &batches {
        let OffsetRange { from, to } = batch.range;
        assert!(batch.offsets.iter().all(|offset| (from..to).contains(offset)), "{from} to {to}");
    }
    rows(batches.into_iter())
}

fn by_record(read: ArchivedRecords, raw: RawEvents) -> Vec<Row> {
    let batches: ColumnBatches = of_records(read, raw);
    rows(batches.map(|batch| batch.expect("a batch")))
}

fn both_agree(records: &[LogRecord], outcomes: Option<OutcomeNote>) {
    let decisions = RangeDecisions { outcomes, ..RangeDecisions::default() };
    let (bytes, row) = encode(LOG, ShardId(5), EPOCH, records, &decisions).expect("encodes");
    let bytes = Bytes::from(bytes);
    let read = decode(bytes.clone(), &row).expect("decodes");
    for raw in [RawEvents::Read, RawEvents::Skip] {
        assert_eq!(by_column(bytes.clone(), &row, raw), by_record(read.clone(), raw));
    }
}

fn note(events: &[(u64, u32, Verdict)]) -> OutcomeNote {
    let mut note = OutcomeNote::default();
    for &(offset, index, verdict) in events {
        note.push(UncountedEvent { offset, index, verdict });
    }
    note
}

/// A record of events of one series, each with a user of this length.
fn users(offset: Offset, events: usize, length: usize) -> LogRecord {
    let series = Series::new("t", "m", [("page".to_owned(), format!("{}", offset % 3))]);
    let (key, id) = (series.key(), SeriesId::of_key(&series.key()));
    let texts: Vec<String> =
        (0..events).map(|n| format!("{:0length$}", offset as usize * events + n)).collect();
    let event = |n: usize| RecordEvent {
        series: 0,
        timestamp: n as i64,
        value: Some(Decimal::from_units((offset * 1_000_003 + n as u64).into())),
        user: Some(&texts[n]),
        id: None,
        raw: texts[n].as_bytes(),
    };
    let record = Record {
        version: record::VERSION,
        tenant: "t",
        gateway: 1,
        series: vec![SeriesEntry { id: &id.0, key: &key }],
        events: (0..events).map(event).collect(),
        stamp: Some(1),
    };
    let mut payload = Vec::new();
    record::encode(&record, &mut payload);
    LogRecord { offset, appended: 0, received: 0, payload: payload.into() }
}

#[test]
fn columns_say_what_the_records_say() {
    let mut records: Vec<LogRecord> =
        (10..200).map(|offset| sample(offset, (offset % 7 + 1) as usize)).collect();
    records[3].payload = Bytes::from_static(b"garbage");
    let outcomes = note(&[
        (12, 1, Verdict::Duplicate),
        (13, 0, Verdict::RecordQuarantined),
        (20, 6, Verdict::Quarantined),
    ]);
    both_agree(&records, None);
    both_agree(&records, Some(outcomes));
}

#[test]
fn columns_of_many_row_groups_and_of_full_dictionaries_do_too() {
    let records: Vec<LogRecord> = (0..900).map(|offset| users(offset, 50, 20)).collect();
    both_agree(&records, Some(OutcomeNote::default()));
    let long: Vec<LogRecord> = (0..300).map(|offset| users(offset, 50, 200)).collect();
    both_agree(&long, Some(note(&[(7, 3, Verdict::Duplicate)])));
}

#[test]
fn raw_events_come_by_page_and_records_whole() {
    let garbage = |offset| LogRecord { payload: Bytes::from_static(b"?"), ..sample(offset, 1) };
    let mut records: Vec<LogRecord> = (0..130)
        .map(|offset| match offset {
            // One that fills several pages, those that end anywhere in one, and one between them.
            40 => users(offset, 1_200, 3_000),
            20 | 75..80 | 129 => garbage(offset),
            _ => users(offset, 37, 4_000),
        })
        .collect();
    both_agree(&records, Some(note(&[(7, 3, Verdict::Duplicate)])));
    let (bytes, row) =
        encode(LOG, ShardId(5), EPOCH, &records, &RangeDecisions::default()).expect("encodes");
    let batches = ObjectColumns::open(Bytes::from(bytes), &row, RawEvents::Read).expect("opens");
    let batches: Vec<_> = batches.map(|batch| batch.expect("a batch")).collect();
    assert!(batches.len() > 10, "{} batches", batches.len());
    let bytes = |batch: &EventColumns| {
        let raw = batch.raw.as_ref().expect("raw events");
        (0..batch.len()).map(|at| raw.get(at).len()).sum::<usize>()
    };
    let most = batches.iter().map(bytes).max().expect("batches");
    assert!(most < 6 << 20, "the longest record and what a page has beside it: {most} bytes");
    records.truncate(1);
    both_agree(&records, None);
}

#[test]
fn records_that_no_gateway_writes_have_the_series_of_their_keys() {
    let change = |original: LogRecord, change: &dyn Fn(&mut Record<'_>)| {
        let mut record = record::decode(&original.payload).expect("decodes");
        change(&mut record);
        let mut payload = Vec::new();
        record::encode(&record, &mut payload);
        LogRecord { payload: payload.into(), ..original }
    };
    let records = [
        change(sample(0, 3), &|record| record.tenant = "u"),
        change(sample(1, 3), &|record| record.series[1].id = &[9; 16]),
        change(sample(2, 3), &|record| record.events.truncate(1)),
        sample(3, 3),
    ];
    both_agree(&records, None);
}

#[test]
fn older_objects_are_read_by_column() {
    let records = [sample(0, 2), sample(1, 1), sample(2, 5)];
    let bytes = older(LOG, ShardId(5), EPOCH, &records);
    let row = examine(bytes.clone(), Tier::Hot).expect("read").row;
    let read = decode(bytes.clone(), &row).expect("decodes");
    assert_eq!(by_column(bytes, &row, RawEvents::Read), by_record(read, RawEvents::Read));
}

#[test]
fn an_object_with_other_records_than_its_row_says_is_refused() {
    let records = [sample(0, 2), sample(1, 1)];
    let (bytes, row) =
        encode(LOG, ShardId(5), EPOCH, &records, &RangeDecisions::default()).expect("encodes");
    let other = ManifestRow { shard: ShardId(6), ..row };
    assert!(ObjectColumns::open(Bytes::from(bytes), &other, RawEvents::Skip).is_err());
}

/// Notes which bytes of the file are read.
#[derive(Clone)]
struct CountingFile {
    bytes: Bytes,
    read: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl CountingFile {
    fn note(&self, from: u64, length: u64) {
        self.read.lock().expect("a lock").push((from, from + length));
    }
}

impl Length for CountingFile {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl ChunkReader for CountingFile {
    type T = <Bytes as ChunkReader>::T;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        // Headers of pages are read from here: as far as the longest of ours.
        self.note(start, 64);
        self.bytes.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.note(start, length as u64);
        self.bytes.get_bytes(start, length)
    }
}

#[test]
fn the_raw_column_is_not_touched_unless_it_is_wanted() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let records: Vec<LogRecord> = (0..600).map(|offset| users(offset, 50, 60)).collect();
    let (bytes, row) =
        encode(LOG, ShardId(5), EPOCH, &records, &RangeDecisions::default()).expect("encodes");
    let bytes = Bytes::from(bytes);
    let metadata = SerializedFileReader::new(bytes.clone()).expect("a file");
    let raw: Vec<(u64, u64)> = metadata
        .metadata()
        .row_groups()
        .iter()
        .flat_map(|group| group.columns())
        .filter(|column| column.column_descr().name() == "raw")
        .map(|column| column.byte_range())
        .map(|(from, length)| (from, from + length))
        .collect();
    assert!(raw.len() >= 2);
    let touched = |wanted: RawEvents| {
        let file = CountingFile { bytes: bytes.clone(), read: Arc::default() };
        let batches = ObjectColumns::open(file.clone(), &row, wanted).expect("opens");
        assert_eq!(batches.map(|batch| batch.expect("a batch").len()).sum::<usize>(), 30_000);
        let read = file.read.lock().expect("a lock");
        raw.iter().filter(|raw| read.iter().any(|r| r.0 < raw.1 && raw.0 < r.1)).count()
    };
    // A header before the column may be read some bytes too far, and no page of it.
    assert_eq!((touched(RawEvents::Skip), touched(RawEvents::Read)), (0, raw.len()));
}
