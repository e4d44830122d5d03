//! Crashes, damage, retention.

use std::path::Path;

use super::*;
use crate::clock::ManualClock;

fn options(dir: &Path) -> LogOptions {
    LogOptions {
        dir: dir.to_owned(),
        shard_count: 4,
        segment_bytes: 4096,
        max_waiting_bytes: 1 << 20,
        max_commit_bytes: 1 << 16,
        tail_cache_bytes: 256,
        log_id_if_new: [7; 16],
        clock: ManualClock::at(1_000),
    }
}

fn open(dir: &Path) -> Arc<EmbeddedLog> {
    EmbeddedLog::open(options(dir)).expect("opens").0
}

fn append(log: &EmbeddedLog, records: &[(u32, &str)]) {
    let records = records.iter().map(|(shard, text)| (ShardId(*shard), bytes::Bytes::copy_from_slice(text.as_bytes()))).collect();
    log.append(AppendRequest { records }).expect("taken").blocking_recv().expect("answered").expect("durable");
}

fn texts(log: &EmbeddedLog, shard: u32, from: Offset) -> Vec<String> {
    let mut texts = Vec::new();
    let mut next = from;
    while next < log.end(ShardId(shard)) {
        for record in log.read(ShardId(shard), next, 64).expect("reads") {
            assert_eq!(record.offset, next);
            texts.push(String::from_utf8(record.payload.to_vec()).expect("text"));
            next += 1;
        }
    }
    texts
}

fn only_segment(dir: &Path) -> std::path::PathBuf {
    Segment::path(dir, 0)
}

#[test]
fn records_survive_reopening_over_many_segments() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    let expected: Vec<String> = (0..200).map(|i| format!("record {i} {}", "x".repeat(50))).collect();
    for text in &expected {
        append(&log, &[(1, text), (3, "other")]);
    }
    assert_eq!(texts(&log, 1, 0), expected);
    drop(log);
    let log = open(dir.path());
    assert!(log.shared.segments().len() > 5);
    assert_eq!((texts(&log, 1, 0), log.end(ShardId(3)), log.id()), (expected.clone(), 200, LogId([7; 16])));
    append(&log, &[(1, "last")]);
    assert_eq!(texts(&log, 1, 199), [expected[199].clone(), "last".to_owned()]);
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    append(&log, &[(0, "first")]);
    let good = log.shared.segments()[0].runs_from(ShardId(0), 0, 1)[0];
    append(&log, &[(0, "second"), (2, "third")]);
    drop(log);
    let path = only_segment(dir.path());
    let whole = std::fs::read(&path).expect("read");
    let start = (good.at as usize + good.len as usize).next_multiple_of(8);
    let end = whole.iter().rposition(|&b| b != 0).expect("data") + 1;
    for cut in start..end {
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        std::fs::write(&path, &torn).expect("write");
        let (log, recovery) = EmbeddedLog::open(options(dir.path())).expect("opens");
        assert_eq!((texts(&log, 0, 0), log.end(ShardId(2))), (vec!["first".to_owned()], 0), "cut at {cut}");
        assert_eq!(recovery.torn_bytes > 0, cut > start);
        append(&log, &[(0, "again")]);
        drop(log);
        assert_eq!(texts(&open(dir.path()), 0, 1), ["again"]);
    }
}

#[test]
fn every_flipped_byte_is_refused_or_cut_and_never_read() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    for text in ["one", "two", "three"] {
        append(&log, &[(0, text)]);
    }
    drop(log);
    let path = only_segment(dir.path());
    let whole = std::fs::read(&path).expect("read");
    let end = whole.iter().rposition(|&b| b != 0).expect("data") + 1;
    let (mut refused, mut cut) = (0, 0);
    for at in 0..end {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).expect("write");
        match EmbeddedLog::open(options(dir.path())) {
            Err(why) => {
                assert!(why.contains("000000000000.seg"), "{why}");
                refused += 1;
            }
            Ok((log, _)) => {
                let read = texts(&log, 0, 0);
                assert!(
                    ["one", "two", "three"].starts_with(&read.iter().map(String::as_str).collect::<Vec<_>>()),
                    "{at}: {read:?}"
                );
                cut += usize::from(read.len() == 2);
            }
        }
    }
    assert!(refused > 100 && cut > 50, "refused {refused}, cut {cut}");
}

#[test]
fn damage_in_a_sealed_segment_is_noticed() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    let text = "y".repeat(500);
    for _ in 0..20 {
        append(&log, &[(0, &text)]);
    }
    drop(log);
    let path = only_segment(dir.path());
    let mut bytes = std::fs::read(&path).expect("read");
    let at = bytes.windows(8).position(|w| w == b"yyyyyyyy").expect("a payload");
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).expect("write");
    let log = open(dir.path());
    assert!(matches!(log.read(ShardId(0), 0, 10), Err(LogError::Corrupt(why)) if why.contains(".seg")));
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    drop(log);
    std::fs::write(&path, &bytes).expect("write");
    assert!(EmbeddedLog::open(options(dir.path())).is_err());
}

#[test]
fn retention_unlinks_only_what_every_shard_is_done_with() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    let text = "z".repeat(900);
    for _ in 0..30 {
        append(&log, &[(0, &text), (1, "k")]);
    }
    assert_eq!(log.release(&[30, 0, 0, 0]).expect("ok"), 0);
    assert!(log.release(&[30, 30, 0, 0]).expect("ok") > 0);
    let start = log.start(ShardId(0));
    assert!(start > 0 && matches!(log.read(ShardId(0), 0, 1), Err(LogError::Released { .. })));
    drop(log);
    let log = open(dir.path());
    assert_eq!((log.start(ShardId(0)), log.end(ShardId(0))), (start, 30));
    assert_eq!(texts(&log, 0, start).len() as u64, 30 - start);
}

#[test]
fn another_shard_count_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().expect("dir");
    drop(open(dir.path()));
    let other = LogOptions { shard_count: 8, ..options(dir.path()) };
    let why = EmbeddedLog::open(other).err().expect("refused");
    assert!(why.contains("set it back to 4"), "{why}");
}

#[test]
fn readers_of_another_process_see_a_prefix_and_cannot_append() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    append(&log, &[(2, "seen")]);
    let reader = EmbeddedLog::open_read_only(dir.path(), ManualClock::at(0)).expect("opens");
    assert_eq!(texts(&reader, 2, 0), ["seen"]);
    assert!(matches!(reader.append(AppendRequest::default()), Err(AppendError::Closed(_))));
}

#[test]
fn long_runs_are_compressed_and_come_back_from_memory_disk_and_after_reopening() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    let expected: Vec<String> =
        (0..20).map(|i| format!("{{\"record\": {i}, \"page\": \"{}\"}}", "/home".repeat(2_000))).collect();
    for text in &expected {
        append(&log, &[(1, text), (2, "short")]);
    }
    assert_eq!(texts(&log, 1, 0), expected);
    let used: u64 =
        log.shared.segments().iter().flat_map(|s| s.runs_from(ShardId(1), 0, usize::MAX)).map(|r| u64::from(r.len)).sum();
    assert!(used < 20 * 1_000, "{used} bytes for 20 records of 10 KB");
    drop(log);
    let log = open(dir.path());
    assert_eq!(texts(&log, 1, 0), expected);
    assert_eq!(texts(&log, 2, 0), vec!["short"; 20]);
}

#[test]
fn a_segment_of_version_1_is_read() {
    let header = segment::Header { log: LogId([7; 16]), number: 0, first_sequence: 0, firsts: vec![0; 4] };
    let mut bytes = header.encode();
    bytes[8] = 1;
    bytes[48..52].fill(0);
    let crc = crc32c::crc32c(&bytes);
    bytes[48..52].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(segment::Header::decode(&bytes), Ok(header));
    bytes[8] = 3;
    assert!(
        segment::Header::decode(&bytes)
            .is_err_and(|why| why.contains("version 3 is unknown") && why.contains("start the version"))
    );
}
