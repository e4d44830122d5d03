//! What any archive must do. The double and the real one pass the same suite.

use std::sync::Arc;

use super::memory::{Fault, MemoryArchive};
use super::objects::ObjectArchive;
use super::row::tests::sample;
use super::*;

const LOG: LogId = LogId([9; 16]);
const SHARD: ShardId = ShardId(3);
const EPOCH: Epoch = Epoch { counter: 2, nonce: 77 };

fn records(range: std::ops::Range<u64>) -> Vec<LogRecord> {
    range.map(|offset| sample(offset, 4)).collect()
}

fn passes_all(archive: &dyn Archive) {
    let first = archive.write(LOG, SHARD, EPOCH, &records(0..5)).expect("write");
    assert_eq!(first, archive.write(LOG, SHARD, EPOCH, &records(0..5)).expect("the same again"));
    let second = archive.write(LOG, SHARD, EPOCH, &records(5..6)).expect("write");
    let newer = archive.write(LOG, SHARD, Epoch { counter: 3, ..EPOCH }, &records(5..6)).expect("another owner");
    assert_ne!(second.path, newer.path, "owners never share a name");
    archive.write(LogId([8; 16]), SHARD, EPOCH, &records(0..1)).expect("another log");

    assert_eq!(archive.read(&first), Ok(records(0..5)));
    assert_eq!(archive.read(&second), Ok(records(5..6)));
    let listed = archive.list(LOG).expect("list");
    let mut paths = [&first, &second, &newer].map(|row| row.path.clone());
    paths.sort();
    assert_eq!(listed.iter().map(|o| o.path.clone()).collect::<Vec<_>>(), paths);
    assert_eq!(listed.iter().find(|o| o.path == first.path).map(|o| o.bytes), Some(first.bytes));

    let other_size = ManifestRow { bytes: first.bytes + 1, ..first.clone() };
    let other_sum = ManifestRow { crc32c: !first.crc32c, ..first.clone() };
    for wrong in [other_size, other_sum] {
        assert!(matches!(archive.read(&wrong), Err(ArchiveError::Corrupt { path, .. }) if path == first.path));
    }
    archive.remove(&second.path).expect("remove");
    archive.remove(&second.path).expect("gone already");
    assert_eq!(archive.read(&second), Err(ArchiveError::Missing(second.path.clone())));
    assert_eq!(archive.list(LOG).expect("list").len(), 2);
    assert!(matches!(archive.write(LOG, SHARD, EPOCH, &[]), Err(ArchiveError::Codec(_))));
}

#[test]
fn the_double_conforms() {
    passes_all(&MemoryArchive::new());
}

#[test]
fn a_directory_conforms() {
    let dir = tempfile::tempdir().expect("dir");
    passes_all(&ObjectArchive::open_directory(&dir.path().join("archive")).expect("open"));
}

#[test]
fn what_a_failed_attempt_left_is_replaced() {
    let dir = tempfile::tempdir().expect("dir");
    let archive = ObjectArchive::open_directory(dir.path()).expect("open");
    let row = archive.write(LOG, SHARD, EPOCH, &records(0..2)).expect("write");
    std::fs::write(dir.path().join(&row.path), b"half").expect("damage");
    assert!(matches!(archive.read(&row), Err(ArchiveError::Corrupt { .. })));
    assert_eq!(archive.write(LOG, SHARD, EPOCH, &records(0..2)), Ok(row.clone()));
    assert_eq!(archive.read(&row), Ok(records(0..2)));
}

#[test]
fn every_damaged_byte_is_found() {
    let archive = MemoryArchive::new();
    let row = archive.write(LOG, SHARD, EPOCH, &records(0..2)).expect("write");
    let bytes = archive.bytes(&row.path).expect("there");
    for at in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 1;
        archive.put(&row.path, damaged.into());
        assert!(matches!(archive.read(&row), Err(ArchiveError::Corrupt { .. })), "byte {at}");
    }
}

#[test]
fn faults_of_the_double_do_what_they_say() {
    let archive = MemoryArchive::new();
    for (fault, left) in [(Fault::Before, 0), (Fault::LostReply, 1), (Fault::Torn, 1)] {
        archive.fail_next(fault);
        assert!(matches!(archive.write(LOG, SHARD, EPOCH, &records(0..2)), Err(ArchiveError::Unavailable(_))));
        assert_eq!(archive.list(LOG).expect("list").len(), left);
    }
    let row = archive.write(LOG, SHARD, EPOCH, &records(0..2)).expect("a retry heals");
    assert_eq!(archive.read(&row), Ok(records(0..2)));
    archive.set_down(true);
    assert!(archive.list(LOG).is_err());
}

#[test]
fn it_may_be_dropped_and_used_inside_of_a_runtime() {
    let dir = tempfile::tempdir().expect("dir");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("runtime");
    runtime.block_on(async {
        let archive = Arc::new(ObjectArchive::open_directory(dir.path()).expect("open"));
        let worker = archive.clone();
        let written = tokio::task::spawn_blocking(move || worker.write(LOG, SHARD, EPOCH, &records(0..2))).await.expect("joins");
        assert!(written.is_ok());
        drop(archive);
    });
}
