//! Objects tile the log, are cut in time, and are recorded by an owner that may
//! leave at any moment.

use bytes::Bytes;

use super::*;
use crate::clock::ManualClock;
use crate::invariants::tests::violations;
use crate::model::flush::{FlushBatch, FlushGuard};
use crate::model::manifest::Tier;
use crate::model::offset::LogId;
use crate::persistence::archive::memory::MemoryArchive;
use crate::persistence::archive::{ArchivedRecords, ObjectInfo, RecoveredObject};
use crate::persistence::log::memory::MemoryLog;
use crate::persistence::log::{AppendRequest, LogAppender, ShardAssignment};
use crate::persistence::store::memory::MemoryStore;
use crate::persistence::store::{ShardStore, SnapshotSource};
use crate::shards::series::SeriesAdmission;
use crate::shards::state::{ShardLimits, ShardState};

const LOG: LogId = LogId([1; 16]);
const SHARD: ShardId = ShardId(0);

/// An archive during whose writes the owner leaves.
struct Leaving {
    inner: MemoryArchive,
    slots: Arc<ShardTable>,
}

impl Archive for Leaving {
    fn write(
        &self,
        log: LogId,
        shard: ShardId,
        epoch: Epoch,
        records: &[LogRecord],
        decisions: &RangeDecisions,
    ) -> Result<ManifestRow, ArchiveError> {
        self.slots.entry(shard).for_supervisor().vacate();
        self.inner.write(log, shard, epoch, records, decisions)
    }
    fn examine(&self, object: &ObjectInfo) -> Result<RecoveredObject, ArchiveError> {
        self.inner.examine(object)
    }
    fn read_all(&self, row: &ManifestRow) -> Result<ArchivedRecords, ArchiveError> {
        self.inner.read_all(row)
    }
    fn list(&self, log: LogId, shard: ShardId) -> Result<Vec<ObjectInfo>, ArchiveError> {
        self.inner.list(log, shard)
    }
    fn remove(&self, path: &str, tier: Tier) -> Result<(), ArchiveError> {
        self.inner.remove(path, tier)
    }
    fn documents(&self) -> &dyn crate::persistence::archive::ArchiveDocuments {
        self.inner.documents()
    }
    fn has_cold(&self) -> bool {
        self.inner.has_cold()
    }
    fn copy_to_cold(&self, row: &ManifestRow) -> Result<(), ArchiveError> {
        self.inner.copy_to_cold(row)
    }
}

/// The store still has the owner's epoch and takes the row. The shard's entry, which is empty by
/// then, is not updated.
#[test]
fn an_owner_that_leaves_while_its_object_is_written_violates_nothing() {
    let clock = ManualClock::at(1_000_000);
    let (log, store) = (MemoryLog::new(LOG, 1, clock.clone()), MemoryStore::new());
    let slots = ShardTable::new(log.clone(), log.assignment(), clock.clone());
    let append = |n: u8| {
        drop(
            log.append(AppendRequest { records: vec![(SHARD, Bytes::from(vec![n]))] })
                .expect("taken"),
        )
    };
    let claim_and_flush = |from: Offset, to: Offset| {
        let epoch = store.claim(SHARD, LOG, to).expect("a claim").checkpoint.epoch;
        let guard = FlushGuard { shard: SHARD, log: LOG, range: OffsetRange { from, to }, epoch };
        store.flush(guard, &FlushBatch::default(), 0).expect("a flush");
        let claim = store.claim(SHARD, LOG, to + 1).expect("a claim");
        let limits = ShardLimits {
            dedup_horizon_ms: 1,
            dedup_max_ids: 1,
            flush_interval_ms: 1 << 40,
            max_delta_bytes: 1 << 30,
            keep_flushed_ms: 1,
            shard_count: 1,
            panic_on_user: None,
        };
        slots.entry(SHARD).install_owner(
            &claim,
            ShardState::new(limits, SHARD, &claim, vec![], SeriesAdmission::limited(9, vec![]), to),
        );
    };
    let archive = Arc::new(Leaving { inner: MemoryArchive::new(), slots: slots.clone() });
    let limits = ArchiveLimits { max_bytes: 1, max_delay_ms: 0 };
    let (waiting, slots) = (ArchiveDelays::default(), slots.clone());
    let archiver = Archiver {
        log: log.clone(),
        retention: log.clone(),
        store: store.clone(),
        archive,
        clock,
        limits,
        table: slots,
        delays: waiting,
    };
    for n in 0..6u8 {
        append(n);
        claim_and_flush(n.into(), Offset::from(n) + 1);
        assert_eq!(
            violations(Invariant::ArchiveTiles, || archiver.archive_due_shards()),
            0,
            "object {n}"
        );
    }
    let rows = store.snapshot().expect("a snapshot").manifest(Some(SHARD)).expect("rows");
    assert_eq!(rows.iter().map(|row| row.range.to).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn an_object_that_leaves_a_gap_is_a_violation() {
    let range = OffsetRange { from: 5, to: 9 };
    let row = ManifestRow {
        log: LogId([1; 16]),
        shard: ShardId(0),
        range,
        epoch: Epoch { counter: 1, nonce: 1 },
        path: String::new(),
        appended: (0, 0),
        received: (0, 0),
        windows: Vec::new(),
        rows: 4,
        raw_bytes: 4,
        bytes: 1,
        crc32c: 0,
        tier: Tier::Hot,
    };
    let found =
        |due: OffsetRange| violations(Invariant::ArchiveTiles, || _ = is_contiguous(&row, due));
    assert_eq!(found(range), 0);
    assert_eq!(found(OffsetRange { from: 4, to: 9 }), 1);
    assert_eq!(found(OffsetRange { from: 5, to: 8 }), 1);
}

#[test]
fn an_object_is_cut_by_size_or_age() {
    let limits = ArchiveLimits { max_bytes: 100, max_delay_ms: 1_000 };
    assert!(!limits.is_due(99, 999));
    assert!(limits.is_due(100, 0));
    assert!(limits.is_due(1, 1_000));
}

#[test]
fn records_wait_from_when_they_are_first_seen() {
    let (waiting, shard) = (ArchiveDelays::default(), ShardId(3));
    assert_eq!([5, 5, 9].map(|now| waiting.waited_ms(shard, 10, now)), [0, 0, 4]);
    assert_eq!(
        [10, 12].map(|now| waiting.waited_ms(shard, 20, now)),
        [0, 2],
        "others wait since then"
    );
    waiting.clear(shard);
    assert_eq!(waiting.waited_ms(shard, 20, 30), 0);
}
