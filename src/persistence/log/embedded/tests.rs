//! Crashes, damage, retention, and disks that refuse writes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::clock::ManualClock;

fn options(dir: &Path) -> EmbeddedLogOptions {
    EmbeddedLogOptions {
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
    let records = records
        .iter()
        .map(|(shard, text)| (ShardId(*shard), bytes::Bytes::copy_from_slice(text.as_bytes())))
        .collect();
    log.append(AppendRequest { records })
        .expect("taken")
        .blocking_recv()
        .expect("answered")
        .expect("durable");
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
    let expected: Vec<String> =
        (0..200).map(|i| format!("record {i} {}", "x".repeat(50))).collect();
    for text in &expected {
        append(&log, &[(1, text), (3, "other")]);
    }
    assert_eq!(texts(&log, 1, 0), expected);
    drop(log);
    let log = open(dir.path());
    assert!(log.shared.segments().len() > 5);
    assert_eq!(
        (texts(&log, 1, 0), log.end(ShardId(3)), log.id()),
        (expected.clone(), 200, LogId([7; 16]))
    );
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
        assert_eq!(
            (texts(&log, 0, 0), log.end(ShardId(2))),
            (vec!["first".to_owned()], 0),
            "cut at {cut}"
        );
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
    let third =
        whole[..end].windows(4).rposition(|bytes| bytes == frame::MAGIC).expect("the last frame");
    for at in 0..end {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).expect("write");
        // Damage to the length of the last frame cannot be told from a torn write.
        let may_be_torn = (third + 4..third + 8).contains(&at);
        match EmbeddedLog::open(options(dir.path())) {
            Err(why) => assert!(why.contains("000000000000.seg") && !may_be_torn, "{at}: {why}"),
            Ok((log, recovery)) => {
                // Nothing reads the padding between two frames.
                let padding = recovery.torn_bytes == 0 && at % 8 == 7 && whole[at] == 0;
                assert!(may_be_torn || padding, "byte {at} is taken for a good one");
                assert_eq!(
                    texts(&log, 0, 0),
                    if padding { vec!["one", "two", "three"] } else { vec!["one", "two"] }
                );
            }
        }
    }
}

/// Flips a bit of the last payload in a log of two commits. Returns the file and the position
/// of the last frame.
fn with_a_damaged_last_commit(dir: &Path) -> (std::path::PathBuf, usize) {
    let log = open(dir);
    append(&log, &[(0, "first")]);
    append(&log, &[(0, "second"), (2, "third")]);
    drop(log);
    let path = only_segment(dir);
    let mut bytes = std::fs::read(&path).expect("read");
    let last = bytes.windows(4).rposition(|bytes| bytes == frame::MAGIC).expect("a frame");
    let at = bytes.windows(6).position(|bytes| bytes == b"second").expect("a payload");
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    (path, last)
}

fn kept(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries =
        std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let mut kept: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "damaged")).collect();
    kept.sort();
    kept
}

#[test]
fn a_whole_commit_that_is_wrong_inside_is_refused_until_a_person_gives_it_up() {
    let dir = tempfile::tempdir().expect("dir");
    let (path, last) = with_a_damaged_last_commit(dir.path());
    let before = std::fs::read(&path).expect("read");
    let why = EmbeddedLog::open(options(dir.path())).err().expect("refused");
    for part in ["000000000000.seg", &format!("byte {last}"), "no torn write", "rollmill log cut"] {
        assert!(why.contains(part), "{part:?} is not in: {why}");
    }
    assert_eq!(std::fs::read(&path).expect("read"), before, "a refusal changes nothing");
    let reader = EmbeddedLog::open_read_only(dir.path(), ManualClock::at(0)).expect("opens");
    assert_eq!(texts(&reader, 0, 0), ["first"]);

    let (file, bytes) =
        EmbeddedLog::truncate_damaged_tail(dir.path()).expect("cut").expect("there is one");
    assert_eq!(std::fs::read(&file).expect("kept"), before[last..last + bytes as usize]);
    assert_eq!(EmbeddedLog::truncate_damaged_tail(dir.path()).expect("nothing to do"), None);
    let log = open(dir.path());
    append(&log, &[(0, "again")]);
    drop(log);
    assert_eq!(texts(&open(dir.path()), 0, 0), ["first", "again"]);
}

#[test]
fn what_is_cut_is_kept_in_a_bounded_number_of_files() {
    let dir = tempfile::tempdir().expect("dir");
    drop(open(dir.path()));
    let path = only_segment(dir.path());
    for n in 0..12u8 {
        append(&open(dir.path()), &[(0, "good")]);
        let mut bytes = std::fs::read(&path).expect("read");
        let end = bytes.iter().rposition(|&b| b != 0).expect("data") + 1;
        let end = end.next_multiple_of(8);
        bytes[end..end + 5].copy_from_slice(&[n + 1; 5]);
        std::fs::write(&path, &bytes).expect("written");
        let (log, recovery) = EmbeddedLog::open(options(dir.path())).expect("opens");
        assert_eq!((recovery.torn_bytes, log.end(ShardId(0))), (5, u64::from(n) + 1));
    }
    let kept = kept(dir.path());
    assert_eq!(kept.len(), 8);
    assert_eq!(std::fs::read(kept.last().expect("the newest")).expect("read"), [12; 5]);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&kept[0]).expect("there"));
    assert_eq!(mode & 0o777, 0o600);
}

/// Appends until the log refuses. Returns the texts that it accepted and the refusal.
fn fill(log: &EmbeddedLog, name: &str) -> (Vec<String>, AppendError) {
    let mut taken = Vec::new();
    loop {
        let text = format!("{name} {} {}", taken.len(), "x".repeat(665));
        let records = vec![(ShardId(0), bytes::Bytes::copy_from_slice(text.as_bytes()))];
        match log
            .append(AppendRequest { records })
            .expect("taken")
            .blocking_recv()
            .expect("answered")
        {
            Ok(_) => taken.push(text),
            Err(error) => return (taken, error),
        }
        assert!(taken.len() < 1_000, "nothing refuses");
    }
}

/// A step of starting the next segment fails, then a small frame is written, then the process ends.
/// Memory must know what is on disk in every case.
#[test]
fn a_step_that_fails_between_two_segments_costs_nothing_acknowledged() {
    for step in ["seg-new", "seg"] {
        for small in [false, true] {
            let dir = tempfile::tempdir().expect("dir");
            let (log, in_the_way) =
                (open(dir.path()), dir.path().join(format!("000000000001.{step}")));
            std::fs::create_dir_all(in_the_way.join("not empty")).expect("a directory");
            let (mut expected, error) = fill(&log, "first");
            assert!(matches!(error, AppendError::DiskFailed(_)), "{error}");
            if small {
                let records = vec![(ShardId(0), bytes::Bytes::from_static(b"small"))];
                let answer = log
                    .append(AppendRequest { records })
                    .expect("taken")
                    .blocking_recv()
                    .expect("answered");
                expected.extend(answer.is_ok().then(|| "small".to_owned()));
                assert_eq!(
                    answer.is_ok(),
                    step == "seg-new",
                    "an open segment takes what fits, a sealed one nothing"
                );
            }
            assert_eq!(texts(&log, 0, 0), expected);
            drop(log);
            std::fs::remove_dir_all(&in_the_way).expect("removed");
            let log = open(dir.path());
            assert_eq!(texts(&log, 0, 0), expected, "{step}, small {small}");
            append(&log, &[(0, &"y".repeat(3_000))]);
            append(&log, &[(0, "last")]);
            drop(log);
            assert_eq!(texts(&open(dir.path()), 0, expected.len() as u64 + 1), ["last"]);
        }
    }
}

#[test]
fn a_log_that_refuses_says_so_and_takes_writes_again_by_itself() {
    let dir = tempfile::tempdir().expect("dir");
    let in_the_way = dir.path().join("000000000001.seg-new");
    std::fs::create_dir_all(in_the_way.join("not empty")).expect("a directory");
    let log = open(dir.path());
    assert_eq!(log.refuses(), None);
    let (expected, error) = fill(&log, "first");
    assert_eq!(log.refuses(), Some(error));
    drop(log);
    // A start needs no new segment to read the existing ones.
    let log = open(dir.path());
    assert!(log.refuses().is_some());
    assert_eq!(texts(&log, 0, 0), expected);
    std::fs::remove_dir_all(&in_the_way).expect("removed");
    let mut patience = 1_000;
    while log.refuses().is_some() && patience > 0 {
        patience -= 1;
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    assert_eq!(log.refuses(), None, "it looks again without being asked to append");
    append(&log, &[(0, &"y".repeat(700))]);
}

/// Creates a log of a single, sealed segment, as a crash between two steps leaves it. Returns
/// the texts in it.
fn sealed(dir: &Path) -> Vec<String> {
    let (log, in_the_way) = (open(dir), dir.join("000000000001.seg"));
    std::fs::create_dir_all(in_the_way.join("not empty")).expect("a directory");
    let (texts, _) = fill(&log, "sealed");
    drop(log);
    std::fs::remove_dir_all(&in_the_way).expect("removed");
    texts
}

#[test]
fn an_index_that_a_crash_left_in_parts_is_made_again() {
    let dir = tempfile::tempdir().expect("dir");
    let expected = sealed(dir.path());
    let path = only_segment(dir.path());
    let whole = std::fs::read(&path).expect("read");
    let position =
        u64::from_le_bytes(whole[whole.len() - 24..][..8].try_into().expect("eight bytes"))
            as usize;
    let first = position / 512;
    let sectors = (whole.len() - 1) / 512 - first + 1;
    assert!(sectors >= 1);
    for present in 0..(1u32 << sectors) - 1 {
        let mut torn = whole.clone();
        for sector in (0..sectors).filter(|sector| present & (1 << sector) == 0) {
            let from = ((first + sector) * 512).max(position);
            let to = ((first + sector + 1) * 512).min(torn.len());
            torn[from..to].fill(0);
        }
        for longer in [0, 512] {
            torn.resize(whole.len() + longer, 0);
            std::fs::write(&path, &torn).expect("written");
            let log = open(dir.path());
            assert_eq!(texts(&log, 0, 0), expected, "sectors {present:b}");
            assert_eq!(kept(dir.path()), Vec::<std::path::PathBuf>::new(), "an index is no commit");
            drop(log);
            // The start may have created the next segment.
            let _ = std::fs::remove_file(Segment::path(dir.path(), 1));
        }
    }
    let mut damaged = whole.clone();
    damaged[position + 9] ^= 1;
    std::fs::write(&path, &damaged).expect("written");
    assert!(
        EmbeddedLog::open(options(dir.path()))
            .is_err_and(|why| why.contains("the index is damaged"))
    );
}

/// What earlier versions left of a full disk: a sealed segment with a small frame over its index.
#[test]
fn a_frame_that_was_written_over_an_index_is_read() {
    let dir = tempfile::tempdir().expect("dir");
    let mut expected = sealed(dir.path());
    let path = only_segment(dir.path());
    let mut bytes = std::fs::read(&path).expect("read");
    let position =
        u64::from_le_bytes(bytes[bytes.len() - 24..][..8].try_into().expect("eight bytes"))
            as usize;
    let mut encoder = frame::FrameEncoder::new(frame::salt(LogId([7; 16]))).expect("memory");
    let records = [(ShardId(0), bytes::Bytes::from_static(b"small"))];
    encoder.encode(
        expected.len() as u64,
        AppendStamp::from_single_time(1_000),
        &records,
        &[expected.len() as u64, 0, 0, 0],
    );
    let to = position + encoder.bytes.len();
    assert!(to + 32 < bytes.len(), "the footer stays");
    bytes[position..to].copy_from_slice(&encoder.bytes);
    std::fs::write(&path, &bytes).expect("written");
    expected.push("small".to_owned());
    let log = open(dir.path());
    assert_eq!(texts(&log, 0, 0), expected);
    append(&log, &[(0, "more")]);
    expected.push("more".to_owned());
    drop(log);
    assert_eq!(texts(&open(dir.path()), 0, 0), expected);
}

#[test]
fn a_long_log_does_not_use_up_descriptors() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    let text = "z".repeat(2_500);
    for _ in 0..40 {
        append(&log, &[(0, &text)]);
    }
    let open_files = || {
        let links = std::fs::read_dir("/proc/self/fd")
            .expect("proc")
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links.filter(|to| to.starts_with(dir.path())).count()
    };
    assert!(log.shared.segments().len() > 20 && open_files() <= 2, "{}", open_files());
    assert_eq!(texts(&log, 0, 0).len(), 40);
    drop(log);
    let log = open(dir.path());
    assert_eq!(texts(&log, 0, 0).len(), 40);
    assert!(open_files() <= 2, "{}", open_files());
}

#[test]
fn what_is_released_while_it_is_read_is_released_and_not_damaged() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    let text = "z".repeat(2_500);
    for _ in 0..10 {
        append(&log, &[(0, &text)]);
    }
    let reader = EmbeddedLog::open_read_only(dir.path(), ManualClock::at(0)).expect("opens");
    assert!(log.release(&[8, 0, 0, 0]).expect("ok") > 0);
    assert!(matches!(reader.read(ShardId(0), 0, 1), Err(LogError::Released { .. })));
    assert_eq!(reader.read(ShardId(0), 9, 1).expect("reads").len(), 1);
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
    assert!(
        matches!(log.read(ShardId(0), 0, 10), Err(LogError::Corrupt(why)) if why.contains(".seg"))
    );
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
    let other = EmbeddedLogOptions { shard_count: 8, ..options(dir.path()) };
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
    let expected: Vec<String> = (0..20)
        .map(|i| format!("{{\"record\": {i}, \"page\": \"{}\"}}", "/home".repeat(2_000)))
        .collect();
    for text in &expected {
        append(&log, &[(1, text), (2, "short")]);
    }
    assert_eq!(texts(&log, 1, 0), expected);
    let used: u64 = log
        .shared
        .segments()
        .iter()
        .flat_map(|s| s.runs_from(ShardId(1), 0, usize::MAX))
        .map(|r| u64::from(r.len))
        .sum();
    assert!(used < 20 * 1_000, "{used} bytes for 20 records of 10 KB");
    drop(log);
    let log = open(dir.path());
    assert_eq!(texts(&log, 1, 0), expected);
    assert_eq!(texts(&log, 2, 0), vec!["short"; 20]);
}

#[test]
fn a_segment_of_version_1_is_read() {
    let header = segment::SegmentHeader {
        version: 1,
        log: LogId([7; 16]),
        number: 0,
        first_sequence: 0,
        appended: 0,
        first_offsets: vec![0; 4],
    };
    let mut bytes = header.encode();
    assert_eq!(segment::SegmentHeader::decode(&bytes), Ok(header));
    bytes[8] = 4;
    assert!(segment::SegmentHeader::decode(&bytes).is_err_and(|why| {
        why.contains("version 4 is unknown") && why.contains("start the version")
    }));
}

/// Turns a log of one unsealed segment into what the previous release would have written.
fn as_version_2(dir: &Path) {
    let path = only_segment(dir);
    let bytes = std::fs::read(&path).expect("read");
    let mut header = segment::SegmentHeader::decode(&bytes).expect("a header");
    let salt = frame::salt(header.log);
    (header.version, header.appended) = (2, 0);
    let mut old = header.encode();
    let mut at = old.len();
    while let Some(found) = bytes.get(at..).and_then(|rest| frame::decode(salt, rest)) {
        let whole = &bytes[at..at + frame::aligned(found.len)];
        old.extend(frame::tests::older(salt, whole));
        at += whole.len();
    }
    old.resize(bytes.len(), 0);
    std::fs::write(&path, old).expect("write");
}

#[test]
fn a_log_of_the_release_before_is_read_and_its_last_segment_takes_no_new_frames() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    append(&log, &[(0, "first"), (2, "beside")]);
    append(&log, &[(0, "second")]);
    drop(log);
    as_version_2(dir.path());
    let times = |log: &EmbeddedLog| {
        let records = log.read(ShardId(0), 0, 1 << 20).expect("reads");
        records.iter().map(|record| (record.appended, record.received)).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        let clock = ManualClock::at(500);
        let (log, recovery) =
            EmbeddedLog::open(EmbeddedLogOptions { clock: clock.clone(), ..options(dir.path()) })
                .expect("opens");
        assert_eq!(recovery.torn_bytes, 0);
        assert_eq!(texts(&log, 0, 0), ["first", "second"]);
        assert_eq!(times(&log), [(1_000, 1_000); 2], "one time, which is both");
    }
    let log = open(dir.path());
    append(&log, &[(0, "third")]);
    assert_eq!(log.shared.segments().len(), 2, "the old one is sealed, a new one takes what comes");
    drop(log);
    let log = open(dir.path());
    assert_eq!(
        (texts(&log, 0, 0), texts(&log, 2, 0)),
        (vec!["first".to_owned(), "second".into(), "third".into()], vec!["beside".into()])
    );
}

#[test]
fn append_times_go_on_behind_an_empty_segment_though_the_clock_went_back() {
    let dir = tempfile::tempdir().expect("dir");
    let at = |now| {
        let clock = ManualClock::at(now);
        (
            EmbeddedLog::open(EmbeddedLogOptions { clock: clock.clone(), ..options(dir.path()) })
                .expect("opens")
                .0,
            clock,
        )
    };
    let (log, _) = at(9_000);
    // The first segment fills up, the next one starts, and the first is released.
    let text = "z".repeat(900);
    (0..6).for_each(|_| append(&log, &[(0, &text)]));
    assert!(log.release(&[6; 4]).expect("released") > 0 && log.shared.segments().len() == 1);
    drop(log);
    let path = Segment::path(dir.path(), 1);
    let header =
        segment::SegmentHeader::decode(&std::fs::read(&path).expect("read")).expect("a header");
    let mut empty = header.encode();
    empty.resize(4_096, 0);
    std::fs::write(&path, empty).expect("its frame is torn off");
    let (log, clock) = at(1_000);
    assert!(header.appended >= 9_000);
    clock.advance(10);
    append(&log, &[(0, "later")]);
    let last = log.read(ShardId(0), log.end(ShardId(0)) - 1, 1).expect("reads")[0].clone();
    assert!(last.appended >= 9_000 && last.received == 1_010, "{last:?}");
}

#[test]
fn a_start_beside_a_clock_that_leapt_goes_on_as_if_the_log_had_run() {
    let dir = tempfile::tempdir().expect("dir");
    let clock = ManualClock::at(1_000_000);
    let reopened = || {
        EmbeddedLog::open(EmbeddedLogOptions { clock: clock.clone(), ..options(dir.path()) })
            .expect("opens")
            .0
    };
    append(&reopened(), &[(0, "before")]);
    let year = 365 * 86_400_000;
    for leap in [year, -2 * year, 50 * year] {
        clock.advance(1_000);
        clock.jump(leap);
        append(&reopened(), &[(0, "behind")]);
    }
    let log = reopened();
    let records = log.read(ShardId(0), 0, 1 << 20).expect("reads");
    let appended: Vec<Millis> = records.iter().map(|record| record.appended - 1_000_000).collect();
    assert_eq!(
        appended,
        [0, 2_000, 2_500, 4_500],
        "twice as fast while the wall clock is ahead, half while it is behind"
    );
    assert_eq!(records[1].received, 1_001_000 + year);
}

#[test]
fn a_log_is_read_while_its_process_seals_and_releases_segments() {
    let dir = tempfile::tempdir().expect("dir");
    let log = open(dir.path());
    append(&log, &[(0, "first")]);
    let written = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each record fills a segment, and the one before is released.
            for n in 1..400 {
                append(&log, &[(0, &"z".repeat(3_000))]);
                log.release(&[n; 4]).expect("released");
            }
            written.store(true, Ordering::SeqCst);
        });
        while !written.load(Ordering::SeqCst) {
            let reader = EmbeddedLog::open_read_only(dir.path(), ManualClock::at(0));
            assert!(reader.is_ok(), "{:?}", reader.err());
        }
    });
}
