//! What every archive must do. The double and the real one pass the same suite.

use std::sync::Arc;
use std::time::Duration;

use super::location::{TierLocation, open_directory};
use super::memory::{ArchiveFault, MemoryArchive};
use super::objects::{ObjectArchive, TierStore};
use super::row::tests::sample;
use super::server::{self, ConditionalPuts, S3Server};
use super::*;
use crate::model::generation::GenerationId;
use crate::model::outcome::{Outcome, OutcomeNote, UncountedEvent, Verdict};

const LOG: LogId = LogId([9; 16]);
const SHARD: ShardId = ShardId(3);
const EPOCH: Epoch = Epoch { counter: 2, nonce: 77 };

fn records(range: std::ops::Range<u64>) -> Vec<LogRecord> {
    range.map(|offset| sample(offset, 4)).collect()
}

fn keeps_documents(archive: &dyn Archive) {
    let documents = archive.documents();
    let (at, text) = ("replays/log=1/a.json", Bytes::from_static(b"{}"));
    assert_eq!(documents.list_documents("replays/log=1/"), Ok(vec![]));
    assert_eq!(documents.read_document(at), Err(ArchiveError::Missing(at.to_owned())));
    for _ in 0..2 {
        documents.put_document(at, &text).expect("put, and once more");
    }
    documents.put_document("replays/log=1/b.json", &Bytes::from_static(b"[]")).expect("put");
    documents.put_document("replays/log=11/a.json", &text).expect("of another log");
    assert_eq!(documents.read_document(at), Ok(text));
    let listed = documents.list_documents("replays/log=1/").expect("listed").into_iter();
    let listed: Vec<_> = listed.map(|found| (found.path, found.bytes)).collect();
    assert_eq!(listed, [(at.to_owned(), 2), ("replays/log=1/b.json".to_owned(), 2)]);
    assert_eq!(archive.list(LOG, SHARD), Ok(vec![]), "no object of a shard");
}

fn passes_all(archive: &dyn Archive) {
    keeps_documents(archive);
    let first = archive
        .write(LOG, SHARD, EPOCH, &records(0..5), &RangeDecisions::default())
        .expect("write");
    assert_eq!(
        first,
        archive
            .write(LOG, SHARD, EPOCH, &records(0..5), &RangeDecisions::default())
            .expect("the same again")
    );
    let second = archive
        .write(LOG, SHARD, EPOCH, &records(5..6), &RangeDecisions::default())
        .expect("write");
    let newer = archive
        .write(
            LOG,
            SHARD,
            Epoch { counter: 3, ..EPOCH },
            &records(5..6),
            &RangeDecisions::default(),
        )
        .expect("another owner");
    assert_ne!(second.path, newer.path, "owners never share a name");
    archive
        .write(LogId([8; 16]), SHARD, EPOCH, &records(0..1), &RangeDecisions::default())
        .expect("another log");

    assert_eq!(archive.read(&first), Ok(records(0..5)));
    assert_eq!(archive.read(&second), Ok(records(5..6)));
    archive
        .write(LOG, ShardId(33), EPOCH, &records(0..1), &RangeDecisions::default())
        .expect("another shard, whose number begins alike");
    let listed = archive.list(LOG, SHARD).expect("list");
    let mut paths = [&first, &second, &newer].map(|row| row.path.clone());
    paths.sort();
    assert_eq!(listed.iter().map(|o| o.path.clone()).collect::<Vec<_>>(), paths);
    assert_eq!(listed.iter().find(|o| o.path == first.path).map(|o| o.bytes), Some(first.bytes));

    let mut outcomes = OutcomeNote::default();
    for (index, verdict) in [(1, Verdict::Quarantined), (3, Verdict::Duplicate)] {
        outcomes.push(UncountedEvent { offset: 6, index, verdict });
    }
    // Without its manifest row, the object itself says the same.
    let decisions = RangeDecisions {
        admitted: vec![(crate::model::series::SeriesId([5; 16]), 7)],
        generations: vec![(GenerationId(2), crate::model::series::SeriesId([6; 16]), 6)],
        quarantined: vec![(6, 1, true)],
        outcomes: Some(outcomes.clone()),
    };
    let decided = archive.write(LOG, ShardId(4), EPOCH, &records(6..8), &decisions).expect("write");
    let found = archive.examine(&archive.list(LOG, ShardId(4)).expect("list")[0]);
    assert_eq!(
        found,
        Ok(RecoveredObject {
            row: decided.clone(),
            records: records(6..8),
            decisions: Some(decisions),
            has_checksum: true
        })
    );
    let read = archive.read_all(&decided);
    assert_eq!(read, Ok(ArchivedRecords { records: records(6..8), outcomes: Some(outcomes) }));
    let mut events = 0;
    for batch in archive.read_columns(&decided, RawEvents::Skip).expect("opens") {
        let batch = batch.expect("a batch");
        let uncounted = batch.outcomes.expect("outcomes");
        let counted = uncounted.iter().filter(|outcome| **outcome == Outcome::Counted).count();
        events += counted + usize::from(batch.raw.is_some());
    }
    assert_eq!(events, 6, "of eight, and no raw event");
    for object in &listed {
        let row = archive.examine(object).expect("examined").row;
        assert!([&first, &second, &newer].contains(&&row), "{row:?}");
    }
    let elsewhere = ObjectInfo { path: first.path.replace("raw/", "other/"), ..listed[0].clone() };
    assert_eq!(archive.examine(&elsewhere), Err(ArchiveError::Missing(elsewhere.path.clone())));

    let other_size = ManifestRow { bytes: first.bytes + 1, ..first.clone() };
    let other_sum = ManifestRow { crc32c: !first.crc32c, ..first.clone() };
    for wrong in [other_size, other_sum] {
        let read = archive.read(&wrong);
        assert!(matches!(read, Err(ArchiveError::Corrupt { path, .. }) if path == first.path));
    }
    archive.remove(&second.path, Tier::Hot).expect("remove");
    archive.remove(&second.path, Tier::Hot).expect("gone already");
    assert_eq!(archive.read(&second), Err(ArchiveError::Missing(second.path.clone())));
    assert_eq!(archive.list(LOG, SHARD).expect("list").len(), 2);
    assert!(matches!(
        archive.write(LOG, SHARD, EPOCH, &[], &RangeDecisions::default()),
        Err(ArchiveError::Codec(_))
    ));
}

/// The suite for an archive without a cold store.
fn needs_a_cold_store(archive: &dyn Archive) {
    let row = archive
        .write(LOG, SHARD, EPOCH, &records(20..22), &RangeDecisions::default())
        .expect("write");
    let no_cold_store = Err(ArchiveError::NoColdStore(row.path.clone()));
    assert!(!archive.has_cold());
    assert_eq!(archive.copy_to_cold(&row), no_cold_store);
    let cold = ManifestRow { tier: Tier::Cold, ..row.clone() };
    assert_eq!(archive.read(&cold), Ok(records(20..22)), "a wrong hint is only a hint");
    archive.remove(&row.path, Tier::Hot).expect("remove");
    assert_eq!(archive.read(&row), Err(ArchiveError::Missing(row.path.clone())));
    assert_eq!(archive.read(&cold).map(|_| ()), no_cold_store);
}

/// The suite for an archive with a cold store.
fn moves_objects(archive: &dyn Archive) {
    assert!(archive.has_cold());
    let rows = [(30..33), (33..34)].map(|range| {
        archive
            .write(LOG, SHARD, EPOCH, &records(range), &RangeDecisions::default())
            .expect("write")
    });
    let tiers = |path: &str| {
        let listed = archive.list(LOG, SHARD).expect("list");
        listed.iter().filter(|o| o.path == path).map(|o| (o.tier, o.bytes)).collect::<Vec<_>>()
    };
    let row = &rows[0];
    let wrong = ManifestRow { crc32c: !row.crc32c, ..row.clone() };
    assert!(
        matches!(archive.copy_to_cold(&wrong), Err(ArchiveError::Corrupt { .. })),
        "what is damaged is not moved"
    );
    assert_eq!(tiers(&row.path), [(Tier::Hot, row.bytes)]);
    for _ in 0..2 {
        archive.copy_to_cold(row).expect("copied, also when it is there");
        assert_eq!(tiers(&row.path), [(Tier::Hot, row.bytes), (Tier::Cold, row.bytes)]);
    }
    let cold = ManifestRow { tier: Tier::Cold, ..row.clone() };
    let found = |row: &ManifestRow| archive.read(row) == Ok(records(30..33));
    assert!(found(row) && found(&cold), "both are there");
    archive.remove(&row.path, Tier::Hot).expect("remove");
    assert!(found(row) && found(&cold), "a row that was read before the move finds it too");
    archive.copy_to_cold(row).expect("it is there already");
    archive.remove(&row.path, Tier::Cold).expect("remove");
    assert_eq!(archive.read(&cold), Err(ArchiveError::Missing(row.path.clone())));
    assert_eq!(archive.copy_to_cold(row), Err(ArchiveError::Missing(row.path.clone())));
    assert_eq!(archive.read(&rows[1]), Ok(records(33..34)), "the other one is where it was");
}

fn bucket(server: &S3Server, prefix: &str, timeout_ms: u64) -> TierStore {
    let directory = tempfile::tempdir().expect("dir");
    let credentials = directory.path().join("credentials");
    let text = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        server::ACCESS_KEY,
        server::SECRET_KEY
    );
    std::fs::write(&credentials, text).expect("credentials");
    let location = TierLocation {
        url: format!("s3://{}/{prefix}", server::BUCKET),
        endpoint: server.endpoint.clone(),
        region: "eu-central-1".to_owned(),
        credentials: Some(credentials),
        timeout: Duration::from_millis(timeout_ms),
    };
    TierStore::new(location.open().expect("opens"))
}

fn on_s3(server: &S3Server) -> ObjectArchive {
    ObjectArchive::new(bucket(server, "hot", 30_000), Some(bucket(server, "cold", 30_000)))
        .expect("opens")
}

#[test]
fn the_double_conforms() {
    passes_all(&MemoryArchive::new());
    needs_a_cold_store(&MemoryArchive::new());
    passes_all(&MemoryArchive::with_cold());
    moves_objects(&MemoryArchive::with_cold());
}

#[test]
fn a_directory_conforms() {
    let dir = tempfile::tempdir().expect("dir");
    let archive = ObjectArchive::open_directory(&dir.path().join("archive")).expect("open");
    passes_all(&archive);
    needs_a_cold_store(&archive);
    let place =
        |name: &str| TierStore::new(open_directory(&dir.path().join(name)).expect("a directory"));
    let archive = ObjectArchive::new(place("hot"), Some(place("cold"))).expect("opens");
    passes_all(&archive);
    moves_objects(&archive);
}

#[test]
fn s3_conforms() {
    let dir = tempfile::tempdir().expect("dir");
    let server = S3Server::start(dir.path());
    let archive = ObjectArchive::new(bucket(&server, "", 30_000), None).expect("opens");
    passes_all(&archive);
    needs_a_cold_store(&archive);
    passes_all(&on_s3(&server));
    moves_objects(&on_s3(&server));
    assert!(!format!("{archive:?}").contains(server::SECRET_KEY));
}

#[test]
fn s3_without_conditional_puts_conforms() {
    for conditional in [ConditionalPuts::Refused, ConditionalPuts::Ignored] {
        let dir = tempfile::tempdir().expect("dir");
        let server = S3Server::start(dir.path());
        server.set_conditional(conditional);
        let archive = on_s3(&server);
        passes_all(&archive);
        moves_objects(&archive);
        // A leftover of a failed attempt is replaced here too.
        let row = archive
            .write(LOG, SHARD, EPOCH, &records(40..42), &RangeDecisions::default())
            .expect("write");
        std::fs::write(server.file(&format!("hot/{}", row.path)), b"half").expect("damage");
        assert_eq!(
            archive.write(LOG, SHARD, EPOCH, &records(40..42), &RangeDecisions::default()),
            Ok(row.clone())
        );
        assert_eq!(archive.read(&row), Ok(records(40..42)));
    }
}

#[test]
fn an_upload_that_was_acknowledged_but_is_not_whole_is_no_object() {
    let dir = tempfile::tempdir().expect("dir");
    let server = S3Server::start(dir.path());
    let archive = on_s3(&server);
    server.fail_next(&[server::S3Fault::Truncated]);
    let written = archive.write(LOG, SHARD, EPOCH, &records(0..2), &RangeDecisions::default());
    assert!(matches!(written, Err(ArchiveError::NotKept(_))), "{written:?}");
    let row = archive
        .write(LOG, SHARD, EPOCH, &records(0..2), &RangeDecisions::default())
        .expect("the next attempt replaces it");
    assert_eq!(archive.read(&row), Ok(records(0..2)));
    // A damaged copy in the cold store is not damage to the object, which is intact in the hot
    // store.
    let size =
        || std::fs::metadata(server.file(&format!("cold/{}", row.path))).expect("a copy").len();
    server.fail_next(&[server::S3Fault::Truncated]);
    assert_eq!(archive.copy_to_cold(&row), Err(ArchiveError::NotKept(row.path.clone())));
    assert_eq!(size(), row.bytes / 2);
    archive.copy_to_cold(&row).expect("replaced");
    assert_eq!(size(), row.bytes);
}

#[test]
fn one_lost_or_late_answer_is_survived_by_a_retry() {
    let dir = tempfile::tempdir().expect("dir");
    let server = S3Server::start(dir.path());
    let archive = on_s3(&server);
    use server::S3Fault::{Internal, LostReply, SlowDown};
    for (at, fault) in [Internal, LostReply, SlowDown].into_iter().enumerate() {
        server.fail_next(&[fault]);
        let range = 10 * at as u64..10 * at as u64 + 2;
        let row = archive
            .write(LOG, SHARD, EPOCH, &records(range.clone()), &RangeDecisions::default())
            .expect("the client tries again");
        assert_eq!(archive.read(&row), Ok(records(range)));
    }
    assert_eq!(server.injected_faults(), [Internal, LostReply, SlowDown]);
    let archive = ObjectArchive::new(bucket(&server, "hot", 300), None).expect("opens");
    let mut took = Vec::new();
    while took.len() < 4 && took.iter().all(|took| *took >= Duration::from_secs(3)) {
        server.fail_next(&[server::S3Fault::Hang]);
        let watch = crate::clock::Stopwatch::start();
        let range = 90 + 2 * took.len() as u64..92 + 2 * took.len() as u64;
        let outcome = archive.write(LOG, SHARD, EPOCH, &records(range), &RangeDecisions::default());
        assert!(matches!(outcome, Ok(_) | Err(ArchiveError::Unavailable(_))), "{outcome:?}");
        took.push(watch.elapsed());
    }
    // The server would let each request hang for 5 s.
    assert!(took.last() < Some(&Duration::from_secs(3)), "bounded by the timeout: {took:?}");
}

/// Seeded faults in every request: a success is always correct, and everything completes
/// once the faults stop.
#[test]
fn storage_that_fails_all_the_time_loses_nothing_that_was_acknowledged() {
    let seed = std::env::var("ROLLMILL_TEST_S3_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20_260_101_u64);
    let dir = tempfile::tempdir().expect("dir");
    let server = S3Server::start(dir.path());
    let archive =
        ObjectArchive::new(bucket(&server, "hot", 150), Some(bucket(&server, "cold", 150)))
            .expect("opens");
    server.set_faults(seed, 250);
    let (mut acknowledged, mut failures) = (Vec::new(), 0);
    // On a machine so busy that the server itself is late for most requests, it takes more of them.
    for at in 0..400_u64 {
        if at >= 40 && acknowledged.len() > 10 {
            break;
        }
        let range = 5 * at..5 * at + 3;
        match archive.write(LOG, SHARD, EPOCH, &records(range.clone()), &RangeDecisions::default())
        {
            Ok(row) => acknowledged.push((row, range)),
            Err(_) => failures += 1,
        }
    }
    for (row, range) in &mut acknowledged {
        match archive.copy_to_cold(row) {
            Ok(()) => {
                row.tier = Tier::Cold;
                failures += usize::from(archive.remove(&row.path, Tier::Hot).is_err());
            }
            Err(_) => failures += 1,
        }
        match archive.read(row) {
            Ok(found) => assert_eq!(found, records(range.clone()), "seed {seed}"),
            Err(ArchiveError::Unavailable(_)) => failures += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    server.set_faults(seed, 0);
    let archive = on_s3(&server);
    for (row, range) in &acknowledged {
        assert_eq!(archive.read(row), Ok(records(range.clone())), "seed {seed}");
    }
    let kinds: std::collections::HashSet<_> = server.injected_faults().into_iter().collect();
    assert!(
        failures > 0 && acknowledged.len() > 10 && kinds.len() == server::FAULTS.len(),
        "seed {seed}: {failures} {kinds:?}"
    );
}

#[test]
fn what_a_failed_attempt_left_is_replaced() {
    let dir = tempfile::tempdir().expect("dir");
    let archive = ObjectArchive::open_directory(dir.path()).expect("open");
    let row = archive
        .write(LOG, SHARD, EPOCH, &records(0..2), &RangeDecisions::default())
        .expect("write");
    std::fs::write(dir.path().join(&row.path), b"half").expect("damage");
    assert!(matches!(archive.read(&row), Err(ArchiveError::Corrupt { .. })));
    assert_eq!(
        archive.write(LOG, SHARD, EPOCH, &records(0..2), &RangeDecisions::default()),
        Ok(row.clone())
    );
    assert_eq!(archive.read(&row), Ok(records(0..2)));
}

#[test]
fn every_damaged_byte_is_found() {
    let archive = MemoryArchive::new();
    let row = archive
        .write(LOG, SHARD, EPOCH, &records(0..2), &RangeDecisions::default())
        .expect("write");
    let bytes = archive.bytes(&row.path, Tier::Hot).expect("there");
    for at in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 1;
        archive.put(&row.path, Tier::Hot, damaged.into());
        assert!(matches!(archive.read(&row), Err(ArchiveError::Corrupt { .. })), "byte {at}");
    }
}

#[test]
fn faults_of_the_double_do_what_they_say() {
    let archive = MemoryArchive::new();
    for (fault, left) in
        [(ArchiveFault::Before, 0), (ArchiveFault::ReplyLost, 1), (ArchiveFault::Torn, 1)]
    {
        archive.fail_next(fault);
        assert!(matches!(
            archive.write(LOG, SHARD, EPOCH, &records(0..2), &RangeDecisions::default()),
            Err(ArchiveError::Unavailable(_))
        ));
        assert_eq!(archive.list(LOG, SHARD).expect("list").len(), left);
    }
    let row = archive
        .write(LOG, SHARD, EPOCH, &records(0..2), &RangeDecisions::default())
        .expect("a retry heals");
    assert_eq!(archive.read(&row), Ok(records(0..2)));
    archive.set_down(true);
    assert!(archive.list(LOG, SHARD).is_err());
}

#[test]
fn it_may_be_dropped_and_used_inside_of_a_runtime() {
    let dir = tempfile::tempdir().expect("dir");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("runtime");
    runtime.block_on(async {
        let archive = Arc::new(ObjectArchive::open_directory(dir.path()).expect("open"));
        let worker = archive.clone();
        let written = tokio::task::spawn_blocking(move || {
            worker.write(LOG, SHARD, EPOCH, &records(0..2), &RangeDecisions::default())
        })
        .await
        .expect("joins");
        assert_eq!(
            archive.read(&written.expect("written")),
            Ok(records(0..2)),
            "a worker thread may wait too"
        );
        drop(archive);
    });
}
