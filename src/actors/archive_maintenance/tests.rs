//! Moving, expiry and orphans, with a crash at every step.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::clock::ManualClock;
use crate::model::flush::LogRecord;
use crate::model::manifest::{ArchiveFloor, RangeDecisions};
use crate::model::offset::{Epoch, Offset};
use crate::model::window::{HOUR_MS, Hour};
use crate::persistence::archive::memory::{ArchiveFault, MemoryArchive};
use crate::persistence::archive::{ArchiveError, ArchivedRecords, RecoveredObject};
use crate::persistence::log::ShardAssignment;
use crate::persistence::log::memory::MemoryLog;
use crate::persistence::store::memory::{MemoryStore, StoreFault, StoreWrite};
use crate::persistence::store::{ExpiryTarget, ShardStore, SnapshotSource, StoreError};

const LOG: LogId = LogId([5; 16]);
const DAY_MS: i64 = 24 * HOUR_MS;
const NOW: Millis = 1_000 * DAY_MS;
const EXPIRY: ExpiryRules = ExpiryRules { grace_ms: DAY_MS, max_at_once: 1_000 };
const LIMITS: MaintenanceLimits = MaintenanceLimits {
    cold_after_ms: 30 * DAY_MS,
    keep_ms: 365 * DAY_MS,
    expiry: EXPIRY,
    replay_hold_ms: 7 * DAY_MS,
};
const SHARDS: [ShardId; 2] = [ShardId(0), ShardId(1)];
/// Age in days of each shard's objects: two expire, two move, two stay.
const AGES: [i64; 6] = [500, 367, 364, 31, 29, 0];

/// A crash at a step, before or after its effect. Nothing takes effect afterwards.
#[derive(Default)]
struct Death {
    step: AtomicUsize,
    at: usize,
    done: bool,
}

impl Death {
    /// `None`: continue. `Some(done)`: the process is dead.
    fn step(&self) -> Option<bool> {
        let step = self.step.fetch_add(1, Ordering::SeqCst);
        (step >= self.at).then_some(step == self.at && self.done)
    }
}

/// The archive of a process that dies.
struct Mortal {
    inner: Arc<MemoryArchive>,
    death: Arc<Death>,
}

impl Mortal {
    fn step(&self, act: impl FnOnce() -> Result<(), ArchiveError>) -> Result<(), ArchiveError> {
        match self.death.step() {
            None => return act(),
            Some(true) => act()?,
            Some(false) => {}
        }
        Err(ArchiveError::Unavailable("dead".to_owned()))
    }
}

impl Archive for Mortal {
    fn write(
        &self,
        log: LogId,
        shard: ShardId,
        epoch: Epoch,
        records: &[LogRecord],
        decisions: &RangeDecisions,
    ) -> Result<ManifestRow, ArchiveError> {
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
        self.step(|| self.inner.remove(path, tier))
    }
    fn documents(&self) -> &dyn crate::persistence::archive::ArchiveDocuments {
        self.inner.documents()
    }
    fn has_cold(&self) -> bool {
        self.inner.has_cold()
    }
    fn copy_to_cold(&self, row: &ManifestRow) -> Result<(), ArchiveError> {
        self.step(|| self.inner.copy_to_cold(row))
    }
}

struct World {
    store: Arc<MemoryStore>,
    archive: Arc<MemoryArchive>,
    clock: Arc<ManualClock>,
}

fn record(offset: Offset, appended: Millis) -> LogRecord {
    LogRecord {
        offset,
        appended,
        received: appended,
        payload: bytes::Bytes::from(format!("record {offset}")),
    }
}

impl World {
    /// The present; what is due was recorded more than a day ago.
    fn new() -> Self {
        let world = Self::before_it_is_noted();
        for shard in SHARDS {
            assert_eq!(world.upkeep(&immortal()).check_expiry(shard).expect("noted"), None);
        }
        world.clock.set(NOW);
        world
    }

    /// A little more than a day earlier.
    fn before_it_is_noted() -> Self {
        let clock = ManualClock::at(NOW - DAY_MS - 2 * HOUR_MS);
        let world = Self {
            store: MemoryStore::new(),
            archive: Arc::new(MemoryArchive::with_cold()),
            clock,
        };
        for shard in SHARDS {
            let epoch = world.store.claim(shard, LOG, 7).expect("claim").checkpoint.epoch;
            for (at, age) in AGES.into_iter().enumerate() {
                let appended = NOW - age * DAY_MS;
                world.archive.set_now(appended);
                let records =
                    [record(2 * at as u64, appended - 5), record(2 * at as u64 + 1, appended)];
                let row = world
                    .archive
                    .write(LOG, shard, epoch, &records, &RangeDecisions::default())
                    .expect("write");
                world.store.insert_manifest_row(row.epoch, &row).expect("archived");
            }
        }
        world.archive.set_now(NOW);
        world
    }

    fn upkeep(&self, death: &Arc<Death>) -> ArchiveMaintenance {
        let log = MemoryLog::new(LOG, 2, self.clock.clone());
        let archive = Arc::new(Mortal { inner: self.archive.clone(), death: death.clone() });
        let slots = ShardTable::new(log.clone(), log.assignment(), self.clock.clone());
        ArchiveMaintenance {
            log: LOG,
            store: self.store.clone(),
            archive,
            clock: self.clock.clone(),
            limits: LIMITS,
            table: slots,
            damaged: DamagedObjects::default(),
            run_id: 1,
            expiry_checks: ExpiryChecks::default(),
        }
    }

    fn manifest(&self) -> Vec<ManifestRow> {
        self.store.snapshot().expect("snapshot").manifest(None).expect("rows")
    }

    fn listed(&self) -> Vec<(String, Tier)> {
        let listed = SHARDS.iter().flat_map(|shard| self.archive.list(LOG, *shard).expect("list"));
        listed.map(|object| (object.path, object.tier)).collect()
    }

    /// Every object in the manifest can be read in full, with the current row and
    /// with one read before.
    fn all_readable(&self, before: &[ManifestRow]) {
        let manifest = self.manifest();
        for row in before
            .iter()
            .filter(|row| manifest.iter().any(|now| now.path == row.path))
            .chain(&manifest)
        {
            let records =
                self.archive.read(row).unwrap_or_else(|why| panic!("{:?}: {why}", row.range));
            assert_eq!(records.len(), 2);
        }
        for shard in SHARDS {
            let mut snapshot = self.store.snapshot().expect("snapshot");
            let floor = snapshot
                .archive_floors()
                .expect("floors")
                .iter()
                .find(|(id, _)| *id == shard)
                .map_or(0, |f| f.1.offset);
            let rows = snapshot.manifest(Some(shard)).expect("rows");
            assert_eq!(crate::model::manifest::check_tiling(&rows, floor, 12), Ok(()));
        }
    }

    fn finished(&self) {
        let expected: Vec<(String, Tier)> = self
            .manifest()
            .iter()
            .map(|row| {
                (
                    row.path.clone(),
                    if row.appended.1 < NOW - 30 * DAY_MS { Tier::Cold } else { Tier::Hot },
                )
            })
            .collect();
        assert_eq!(expected.len(), 8, "two of six expired, in both shards");
        assert_eq!(self.listed(), expected, "and nothing else is there");
        assert_eq!(
            self.manifest().iter().map(|row| (row.path.clone(), row.tier)).collect::<Vec<_>>(),
            expected
        );
        let floors = self.store.snapshot().expect("snapshot").archive_floors().expect("floors");
        let floor = ArchiveFloor { offset: 4, appended: NOW - 367 * DAY_MS, hour: Hour(i32::MIN) };
        assert_eq!(floors, SHARDS.map(|shard| (shard, floor)));
    }
}

fn immortal() -> Arc<Death> {
    Arc::new(Death { at: usize::MAX, ..Death::default() })
}

#[test]
fn old_objects_move_and_older_ones_expire() {
    let world = World::new();
    let upkeep = world.upkeep(&immortal());
    assert!(upkeep.turn(&SHARDS));
    world.finished();
    let before = world.listed();
    assert!(upkeep.turn(&SHARDS), "nothing is left to do");
    upkeep.sweep(&SHARDS);
    assert_eq!(world.listed(), before);
    world.clock.set(NOW + DAY_MS);
    assert!(upkeep.turn(&SHARDS[..1]));
    assert_eq!(world.manifest()[0].range.from, 4, "364 days and one are not older than 365");
    world.clock.set(NOW + 2 * DAY_MS);
    assert!(upkeep.turn(&SHARDS[..1]));
    assert_eq!(world.manifest()[0].range.from, 4, "it is noted");
    world.clock.set(NOW + 3 * DAY_MS);
    assert!(upkeep.turn(&SHARDS[..1]));
    world.clock.set(NOW + 3 * DAY_MS + 2 * HOUR_MS);
    assert!(upkeep.turn(&SHARDS[..1]));
    assert_eq!(world.manifest()[0].range.from, 6);
}

#[test]
fn a_clock_that_is_ahead_removes_nothing_and_stops_nothing_for_long() {
    for days in [400, 50 * 365] {
        let world = World::before_it_is_noted();
        let before = (world.manifest(), world.listed());
        let upkeep = world.upkeep(&immortal());
        upkeep.turn(&SHARDS);
        world.clock.jump(days * DAY_MS);
        for _ in 0..60 {
            world.clock.advance(HOUR_MS);
            upkeep.sweep(&SHARDS);
            upkeep.turn(&SHARDS);
        }
        let there = || {
            (
                world.manifest().iter().map(|row| row.path.clone()).collect::<Vec<_>>(),
                world.listed().len(),
            )
        };
        assert_eq!(
            there().0,
            before.0.iter().map(|row| row.path.clone()).collect::<Vec<_>>(),
            "{days} days ahead"
        );
        assert_eq!(there().1, before.1.len(), "each in one place");
        world.clock.jump(-days * DAY_MS);
        upkeep.turn(&SHARDS);
        assert_eq!(there().0.len(), before.0.len());
        let of = SHARDS.map(ExpiryTarget::Archive);
        assert_eq!(
            world.store.approve_expiry(&of, None),
            Ok(2),
            "a person says that the clock is right now"
        );
        world.clock.advance(HOUR_MS);
        upkeep.turn(&SHARDS);
        assert_eq!(
            there().0.len(),
            before.0.len() - 6,
            "what is older than a year by now goes: it has been noted for long"
        );
    }
}

#[test]
fn a_start_with_a_clock_ahead_removes_nothing_within_a_day() {
    let world = World::before_it_is_noted();
    let (manifest, listed) = (world.manifest(), world.listed());
    // There was no earlier check, so no leap is noticed.
    world.clock.jump(400 * DAY_MS);
    for run in 0..5 {
        let upkeep = ArchiveMaintenance { run_id: run, ..world.upkeep(&immortal()) };
        for _ in 0..5 {
            upkeep.turn(&SHARDS);
            upkeep.sweep(&SHARDS);
            world.clock.advance(HOUR_MS);
        }
    }
    let paths = |rows: &[ManifestRow]| rows.iter().map(|row| row.path.clone()).collect::<Vec<_>>();
    assert_eq!(
        (paths(&world.manifest()), world.listed().len()),
        (paths(&manifest), listed.len()),
        "20 hours were seen to pass"
    );
}

#[test]
fn orphans_go_when_a_day_has_passed_whatever_the_clock_says() {
    let world = World::new();
    let upkeep = world.upkeep(&immortal());
    upkeep.turn(&SHARDS);
    let listed = world.listed();
    let row = world.archive.write(
        LOG,
        SHARDS[0],
        Epoch { counter: 1, nonce: 99 },
        &[record(0, NOW)],
        &RangeDecisions::default(),
    );
    let path = row.expect("written").path;
    upkeep.sweep(&SHARDS);
    world.clock.jump(4_000 * DAY_MS);
    upkeep.sweep(&SHARDS);
    assert!(world.listed().iter().any(|(listed, _)| *listed == path));
    world.clock.jump(-4_000 * DAY_MS);
    world.clock.advance(DAY_MS + 2 * HOUR_MS);
    upkeep.sweep(&SHARDS);
    assert_eq!(world.listed(), listed);
}

#[test]
fn a_death_between_any_two_steps_loses_nothing() {
    let mut deaths = 0;
    'steps: for at in 0.. {
        for done in [false, true] {
            let world = World::new();
            let death = Arc::new(Death { at, done, ..Death::default() });
            let dying = death.clone();
            world.store.set_faults(move |write| {
                let ours = matches!(write, StoreWrite::SetTier | StoreWrite::ExpireObject);
                let gone = if ours { dying.step() } else { None };
                gone.map(
                    |done| if done { StoreFault::AppliedReplyLost } else { StoreFault::Before },
                )
            });
            let before = world.manifest();
            world.upkeep(&death).turn(&SHARDS);
            world.all_readable(&before);
            if death.step.load(Ordering::SeqCst) <= at {
                world.finished();
                break 'steps;
            }
            deaths += 1;
            world.store.clear_faults();
            let upkeep = world.upkeep(&immortal());
            upkeep.sweep(&SHARDS);
            world.all_readable(&before);
            assert!(upkeep.turn(&SHARDS));
            world.all_readable(&before);
            // Copies made on the same day are not orphans yet.
            world.clock.set(NOW + DAY_MS + 2 * HOUR_MS);
            upkeep.sweep(&SHARDS);
            world.all_readable(&before);
            world.finished();
        }
    }
    // Three steps for each of 4 expiries (row, hot, cold) and 4 moves (copy, tier, hot), with two
    // kinds of death each.
    assert_eq!(deaths, 2 * 3 * 8);
}

#[test]
fn a_turn_is_bounded_and_ends_early_when_storage_is_down() {
    let world = World::new();
    world.archive.set_down(true);
    let before = world.manifest();
    world.upkeep(&immortal()).turn(&SHARDS);
    let expired = before.len() - world.manifest().len();
    assert!(expired <= TURN_FAILURES, "{expired} rows went before the turn ended");
    world.archive.set_down(false);
    world.all_readable(&before);

    let store = MemoryStore::new();
    let epoch = store.claim(SHARDS[0], LOG, 7).expect("claim").checkpoint.epoch;
    for at in 0..2 * TURN_OBJECTS as u64 + 1 {
        let row = world
            .archive
            .write(LOG, SHARDS[0], epoch, &[record(at, 0)], &RangeDecisions::default())
            .expect("write");
        store.insert_manifest_row(row.epoch, &row).expect("archived");
    }
    let upkeep = ArchiveMaintenance { store: store.clone(), ..world.upkeep(&immortal()) };
    upkeep.turn(&SHARDS);
    world.clock.advance(DAY_MS + 2 * HOUR_MS);
    let left = || store.snapshot().expect("snapshot").manifest(None).expect("rows").len();
    assert!(!upkeep.turn(&SHARDS), "more is due");
    assert_eq!(left(), TURN_OBJECTS + 1);
    assert!(!upkeep.turn(&SHARDS));
    assert!(upkeep.turn(&SHARDS));
    assert_eq!(left(), 0);
}

#[test]
fn damaged_objects_do_not_hold_up_what_is_behind_them() {
    const DAMAGED: u64 = TURN_OBJECTS as u64 + 5;
    let world = World { store: MemoryStore::new(), ..World::new() };
    let epoch = world.store.claim(SHARDS[0], LOG, 8).expect("claim").checkpoint.epoch;
    let appended = NOW - 31 * DAY_MS;
    for at in 0..DAMAGED + 3 {
        let row = world
            .archive
            .write(LOG, SHARDS[0], epoch, &[record(at, appended)], &RangeDecisions::default())
            .expect("write");
        world.store.insert_manifest_row(row.epoch, &row).expect("archived");
    }
    let bad: Vec<ManifestRow> = world.manifest().into_iter().take(DAMAGED as usize).collect();
    let kept: Vec<_> =
        bad.iter().map(|row| world.archive.bytes(&row.path, Tier::Hot).expect("there")).collect();
    bad.iter().for_each(|row| world.archive.remove(&row.path, Tier::Hot).expect("removed"));
    let moved = || {
        world
            .manifest()
            .iter()
            .filter(|row| row.tier == Tier::Cold)
            .map(|row| row.range.from)
            .collect::<Vec<_>>()
    };
    let upkeep = world.upkeep(&immortal());
    assert!(!upkeep.turn(&SHARDS[..1]), "the turn is spent on what is damaged");
    assert!(upkeep.turn(&SHARDS[..1]), "then it comes to the end");
    assert_eq!(moved(), [DAMAGED, DAMAGED + 1, DAMAGED + 2], "what is behind them has moved");
    // Somebody repairs one: the next search for orphans forgets that it was damaged.
    world.archive.put(&bad[2].path, Tier::Hot, kept[2].clone());
    assert!(upkeep.turn(&SHARDS[..1]));
    assert_eq!(moved().len(), 3);
    upkeep.sweep(&SHARDS[..1]);
    upkeep.turn(&SHARDS[..1]);
    assert_eq!(moved(), [2, DAMAGED, DAMAGED + 1, DAMAGED + 2]);
}

#[test]
fn a_copy_that_the_cold_store_did_not_keep_is_made_again() {
    let world = World::new();
    let upkeep = world.upkeep(&immortal());
    for fault in
        [ArchiveFault::NotKept, ArchiveFault::Torn, ArchiveFault::ReplyLost, ArchiveFault::Before]
    {
        world.archive.fail_next(fault);
        let before = world.manifest();
        upkeep.turn(&SHARDS);
        world.all_readable(&before);
    }
    assert!(upkeep.turn(&SHARDS));
    world.finished();
}

#[test]
fn without_a_cold_store_nothing_moves_and_with_keep_0_nothing_expires() {
    let world = World { archive: Arc::new(MemoryArchive::new()), ..World::new() };
    let upkeep = ArchiveMaintenance { archive: world.archive.clone(), ..world.upkeep(&immortal()) };
    let upkeep =
        ArchiveMaintenance { limits: MaintenanceLimits { keep_ms: 0, ..LIMITS }, ..upkeep };
    let before = world.manifest();
    assert!(upkeep.turn(&SHARDS));
    assert_eq!(world.manifest(), before);
}

#[test]
fn a_store_that_refuses_keeps_the_hot_object() {
    let world = World::new();
    world.store.set_faults(|write| {
        (write == StoreWrite::SetTier).then_some(StoreFault::NotAppliedReplyLost)
    });
    let row = world
        .manifest()
        .into_iter()
        .find(|row| row.appended.1 == NOW - 31 * DAY_MS)
        .expect("a row");
    let outcome = world.upkeep(&immortal()).move_to_cold(&row).expect_err("unknown");
    assert!(matches!(outcome.downcast_ref::<StoreError>(), Some(StoreError::Unknown(_))));
    assert!(world.archive.bytes(&row.path, Tier::Hot).is_some());
}

#[test]
fn objects_without_a_row_are_orphans_and_hot_ones_that_moved_are_leftovers() {
    let object =
        |path: &str, tier, written| ObjectInfo { path: path.to_owned(), bytes: 1, written, tier };
    let now = NOW;
    let row = |path: &str, tier| ManifestRow {
        path: path.to_owned(),
        tier,
        bytes: 1,
        ..World::new().manifest().into_iter().next().expect("a row")
    };
    let manifest = [
        row("hot", Tier::Hot),
        row("moved", Tier::Cold),
        row("unsure", Tier::Cold),
        row("torn", Tier::Cold),
    ];
    let torn = ObjectInfo { bytes: 7, ..object("torn", Tier::Cold, 0) };
    let listed = [
        object("hot", Tier::Hot, 0),
        object("hot", Tier::Cold, 0),
        object("moved", Tier::Hot, now),
        object("moved", Tier::Cold, now),
        object("unsure", Tier::Hot, 0),
        object("torn", Tier::Hot, 0),
        torn,
        object("young", Tier::Hot, now),
        object("old", Tier::Hot, 0),
        object("old", Tier::Cold, 0),
    ];
    let (orphans, leftovers) = unneeded_objects(&listed, &manifest);
    let shown =
        |found: &[&ObjectInfo]| found.iter().map(|o| (o.path.clone(), o.tier)).collect::<Vec<_>>();
    let named = |of: &[(&str, Tier)]| {
        of.iter().map(|(path, tier)| ((*path).to_owned(), *tier)).collect::<Vec<_>>()
    };
    assert_eq!(
        shown(&orphans),
        named(&[("young", Tier::Hot), ("old", Tier::Hot), ("old", Tier::Cold)])
    );
    assert_eq!(shown(&leftovers), named(&[("moved", Tier::Hot)]));
}

#[test]
fn objects_newer_than_a_restored_manifest_are_no_orphans() {
    let world = World::new();
    let rows = world.manifest();
    // The store as of the first object of each shard.
    let restored = MemoryStore::new();
    for row in rows.iter().filter(|row| row.range.from == 0) {
        let epoch = restored.claim(row.shard, LOG, 7).expect("claim").checkpoint.epoch;
        assert_eq!(epoch, row.epoch);
        restored.insert_manifest_row(row.epoch, row).expect("archived");
    }
    world.clock.set(NOW + 2 * DAY_MS);
    let listed = world.listed();
    let upkeep = ArchiveMaintenance { store: restored.clone(), ..world.upkeep(&immortal()) };
    upkeep.sweep(&SHARDS);
    assert_eq!(world.listed(), listed, "the log may not have their records any more");

    // They are orphans once the archive has continued without them.
    let shard = SHARDS[0];
    let epoch = restored.claim(shard, LOG, 8).expect("claim").checkpoint.epoch;
    let records: Vec<LogRecord> = (2..4).map(|offset| record(offset, NOW)).collect();
    let again = world
        .archive
        .write(LOG, shard, epoch, &records, &RangeDecisions::default())
        .expect("write");
    restored.insert_manifest_row(again.epoch, &again).expect("archived");
    upkeep.sweep(&SHARDS);
    assert_eq!(world.listed().len(), listed.len() + 1, "it is noted");
    world.clock.advance(DAY_MS + 2 * HOUR_MS);
    upkeep.sweep(&SHARDS);
    let left: Vec<String> = world.listed().into_iter().map(|(path, _)| path).collect();
    let old = rows.iter().find(|row| row.shard == shard && row.range.from == 2).expect("a row");
    assert!(!left.contains(&old.path) && left.contains(&again.path));
    assert_eq!(left.len(), listed.len(), "one came, one went");
}
