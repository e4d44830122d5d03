//! Objects come back as they were written, older ones too, and damage is found.

use std::sync::Arc;

use bytes::Bytes;
use parquet::data_type::Int32Type;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::super::footer;
use super::super::row::RowEncoder;
use super::super::row::tests::sample;
use super::write::{properties, put, write_columns_1};
use super::*;
use crate::model::manifest::RangeDecisions;
use crate::model::offset::Epoch;
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
    assert_eq!(decode(bytes.into(), &row), Ok(records), "nothing changes for who knows the row");
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
    let older = columns
        .replace("{\n", "{\n  required int32 shard;\n")
        .replace("labels (STRING)", "labels (JSON)");
    let schema = Arc::new(parse_message_type(&older).expect("a schema"));
    let properties = Arc::new(properties(pairs).expect("properties"));
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).expect("a writer");
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
    assert_eq!((&old.records[..], old.decisions, old.has_checksum), (&one_time[..], None, false));
    assert_eq!(decode(bytes, &old.row), Ok(one_time.to_vec()));
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
    let mut pairs = vec![("rollmill.version", "3".to_owned())];
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
