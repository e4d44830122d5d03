//! Objects come back as they were written, older ones too, and damage is found.

use std::sync::Arc;

use bytes::Bytes;
use parquet::data_type::Int32Type;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::super::footer;
use super::super::row::tests::sample;
use super::super::row::{EventRow, RowEncoder};
use super::write::{GroupWriter, properties, put, write_columns_1, write_columns_2};
use super::*;
use crate::invariants::Invariant;
use crate::invariants::tests::violations;
use crate::model::manifest::RangeDecisions;
use crate::model::offset::Epoch;
use crate::model::outcome::{OutcomeNote, UncountedEvent, Verdict};
use crate::model::series::SeriesId;

const LOG: LogId = LogId([7; 16]);
const EPOCH: Epoch = Epoch { counter: 3, nonce: 0xabc };

fn object(records: &[LogRecord]) -> (Vec<u8>, ManifestRow) {
    encode(LOG, ShardId(5), EPOCH, records, &RangeDecisions::default()).expect("encodes")
}

fn records_of(bytes: Bytes, row: &ManifestRow) -> Result<Vec<LogRecord>, CodecError> {
    decode(bytes, row).map(|read| read.records)
}

fn decisions() -> RangeDecisions {
    let admitted = vec![(SeriesId([0xab; 16]), 0), (SeriesId([0; 16]), 1)];
    RangeDecisions {
        admitted,
        generations: Vec::new(),
        quarantined: vec![(0, 3, false), (1, 0, true)],
        outcomes: Some(note(&[(0, 0, Verdict::Duplicate), (1, 0, Verdict::Quarantined)])),
    }
}

fn note(events: &[(u64, u32, Verdict)]) -> OutcomeNote {
    let mut note = OutcomeNote::default();
    for &(offset, index, verdict) in events {
        note.push(UncountedEvent { offset, index, verdict });
    }
    note
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
    let all = ArchivedRecords { records, outcomes: decisions().outcomes };
    assert_eq!(decode(bytes.into(), &row), Ok(all), "nothing changes for who knows the row");
}

#[test]
fn every_damaged_byte_is_found_without_a_manifest() {
    let (bytes, _) = encode(LOG, ShardId(5), EPOCH, &[sample(0, 2), sample(1, 1)], &decisions())
        .expect("encodes");
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = |at: usize| {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        examine(damaged.into(), Tier::Hot)
    };
    // Damage to the checksum's own key yields an object that says it has no checksum.
    let passed: Vec<usize> =
        (0..bytes.len()).filter(|at| found(*at).is_ok_and(|object| object.has_checksum)).collect();
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

fn with_footer(pairs: Vec<(&'static str, String)>, shard: ShardId, records: &[LogRecord]) -> Bytes {
    let columns =
        SCHEMA.split("  required int64 appended").next().expect("columns").to_owned() + "}";
    let schema = columns
        .replace("{\n", "{\n  required int32 shard;\n")
        .replace("labels (STRING)", "labels (JSON)");
    let mut rows = rows_of(records);
    for at in 0..rows.len() {
        rows[at].received = rows[at].appended;
        if (at == 0 || rows[at - 1].offset != rows[at].offset) && rows[at].stamp.is_some() {
            let of_record = records.iter().find(|record| record.offset == rows[at].offset);
            rows[at].payload = of_record.map(|record| record.payload.clone());
        }
    }
    written(&schema, pairs, |group| {
        put::<Int32Type>(group, &vec![shard.0 as i32; rows.len()], None)?;
        write_columns_1(group, &mut rows)
    })
}

fn rows_of(records: &[LogRecord]) -> Vec<EventRow> {
    let (mut maker, mut rows) = (RowEncoder::default(), Vec::new());
    records.iter().for_each(|record| maker.push_rows(record, &mut rows));
    rows
}

/// A file of one row group.
fn written(
    schema: &str,
    pairs: Vec<(&'static str, String)>,
    write: impl FnOnce(&mut GroupWriter<'_>) -> Result<(), ParquetError>,
) -> Bytes {
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let properties = Arc::new(properties(pairs).expect("properties"));
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    write(&mut group).expect("written");
    group.close().expect("closed");
    writer.into_inner().expect("bytes").into()
}

/// An object of version 2 is a function of its records, as that release wrote it.
#[test]
fn an_object_without_outcomes_is_read_and_says_nothing_of_them() {
    let records = [sample(0, 2), sample(1, 1)];
    let expected = object(&records).1;
    let name = ObjectName { range: expected.range, epoch: EPOCH };
    let times = ObjectTimes::of(&records).expect("times");
    let undecided = RangeDecisions { outcomes: None, ..decisions() };
    let mut pairs =
        footer::footer_pairs(LOG, ShardId(5), name, times, &undecided).expect("a footer");
    assert_eq!(pairs[0], ("rollmill.version", "3".to_owned()));
    pairs[0].1 = "2".to_owned();
    let schema = SCHEMA.replace("  optional binary outcome (STRING);\n", "");
    let mut rows = rows_of(&records);
    let bytes = written(&schema, pairs, |group| write_columns_2(group, &mut rows));
    let mut bytes = bytes.to_vec();
    footer::write_checksum(&mut bytes).expect("a checksum");
    assert_eq!(crc32c::crc32c(&bytes), CRC_OF_VERSION_2, "the bytes of the release before");
    let found = examine(bytes.clone().into(), Tier::Hot).expect("read");
    assert_eq!((&found.records[..], found.decisions), (&records[..], Some(undecided.clone())));
    let read = decode(bytes.into(), &found.row);
    assert_eq!(read, Ok(ArchivedRecords { records: records.to_vec(), outcomes: None }));

    // A shard from before outcomes were noted writes the column, and nothing in it.
    let (bytes, row) = encode(LOG, ShardId(5), EPOCH, &records, &undecided).expect("encodes");
    let read = decode(bytes.clone().into(), &row);
    assert_eq!(read, Ok(ArchivedRecords { records: records.to_vec(), outcomes: None }));
    assert_eq!(examine(bytes.into(), Tier::Hot).expect("read").decisions, Some(undecided));
}

const CRC_OF_VERSION_2: u32 = 4_078_695_509;
const CRC_OF_VERSION_3: u32 = 1_234_357_557;

#[test]
fn the_bytes_of_an_object_are_pinned() {
    let (bytes, row) = encode(LOG, ShardId(5), EPOCH, &[sample(0, 2), sample(1, 2)], &decisions())
        .expect("encodes");
    assert_eq!((crc32c::crc32c(&bytes), row.crc32c), (CRC_OF_VERSION_3, CRC_OF_VERSION_3));
}

#[test]
fn a_row_that_is_no_event_has_no_outcome() {
    let mut records = [sample(0, 2), sample(1, 3), sample(2, 1)];
    records[0].payload = Bytes::from_static(b"garbage");
    let of = |events: &[(u64, u32, Verdict)]| {
        let decided = RangeDecisions { outcomes: Some(note(events)), ..RangeDecisions::default() };
        let (bytes, row) = encode(LOG, ShardId(5), EPOCH, &records, &decided).expect("encodes");
        let read = decode(bytes.into(), &row).expect("decodes").outcomes.expect("there are some");
        read.iter().map(|event| (event.offset, event.index, event.verdict)).collect::<Vec<_>>()
    };
    let (set_aside, record) = (Verdict::Quarantined, Verdict::RecordQuarantined);
    assert_eq!(of(&[(0, 0, record), (2, 0, set_aside)]), [(2, 0, set_aside)]);
    let whole = [(1, 0, set_aside), (1, 1, set_aside), (1, 2, set_aside)];
    assert_eq!(of(&[(1, 0, record)]), whole, "each event of a record that was set aside");
    let left =
        |events: &[(u64, u32, Verdict)]| violations(Invariant::Accounting, || drop(of(events)));
    assert_eq!(left(&[(0, 0, record), (1, 2, Verdict::Duplicate)]), 0);
    assert_eq!(left(&[(1, 3, Verdict::Duplicate)]), 1, "an event that the record does not have");
}

#[test]
fn an_older_object_is_read_and_says_that_it_is_old() {
    let records = [sample(0, 2), sample(1, 1)];
    let bytes = older(LOG, ShardId(5), EPOCH, &records);
    let old = examine(bytes.clone(), Tier::Hot).expect("read");
    let one_time = records.map(|record| LogRecord { received: record.appended, ..record });
    assert_eq!((&old.records[..], old.decisions, old.has_checksum), (&one_time[..], None, false));
    assert_eq!(records_of(bytes, &old.row), Ok(one_time.to_vec()));
    assert_eq!(
        old.row,
        ManifestRow { bytes: old.row.bytes, crc32c: old.row.crc32c, ..object(&one_time).1 }
    );
}

#[test]
fn no_column_has_the_name_of_a_folder() {
    let path = ManifestRow::object_path(LOG, ShardId(5), OffsetRange { from: 0, to: 1 }, EPOCH);
    for folder in path.split('/').filter_map(|part| part.split_once('=')).map(|(name, _)| name) {
        assert!(!SCHEMA.contains(&format!(" {folder}")), "{folder} is a column and a folder");
    }
}

#[test]
fn another_version_is_refused_with_the_way_out() {
    let (_, row) = object(&[sample(0, 1)]);
    let mut pairs = vec![("rollmill.version", "4".to_owned())];
    pairs.append(&mut footer::location_pairs(
        LOG,
        ShardId(5),
        ObjectName { range: row.range, epoch: EPOCH },
    ));
    let bytes = with_footer(pairs, ShardId(5), &[sample(0, 1)]);
    for refused in [decode(bytes.clone(), &row).map(|_| ()), examine(bytes, Tier::Hot).map(|_| ())]
    {
        let why = refused.expect_err("refused").to_string();
        assert!(
            why.contains("format version 4 is unknown")
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
    assert_eq!(records_of(bytes.into(), &row), Ok(records.clone()));
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
    assert_eq!(records_of(bytes.into(), &row), Ok(records));
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
