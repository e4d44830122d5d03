//! A small cluster of two shards whose store is lost and rebuilt. Crashes, leftovers and poison are
//! covered by the simulation (`tests/sim/checks.rs`).

use std::sync::Arc;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::model::manifest::{ManifestRow, Tier};
use crate::model::offset::OffsetRange;
use crate::model::outcome::{OutcomeNote, UncountedEvent, Verdict};
use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
use crate::model::series::{Series, SeriesId};
use crate::model::settled_document::{SettledDocument, SettledEvent, Settlement};
use crate::persistence::archive::ObjectInfo;
use crate::persistence::archive::memory::MemoryArchive;
use crate::persistence::archive::parquet;
use crate::persistence::log::memory::MemoryLog;
use crate::persistence::log::{AppendRequest, LogAppender, LogRetention};
use crate::persistence::store::memory::{MemoryStore, StoreFault, StoreWrite};
use crate::persistence::store::{ManifestStore, NameRange, ShardStore, SnapshotSource};
use crate::recompute::verify::{self, VerifySources};

const LOG: LogId = LogId([4; 16]);
const SHARDS: u32 = 2;
const RULES: FoldRules = FoldRules {
    dedup_horizon_ms: 50_000,
    dedup_max_ids: 100,
    max_delta_bytes: 1,
    shard_count: SHARDS,
};
/// How many series of a tenant a shard admits.
const MAX_SERIES: u64 = 3;
const RECORDS: u64 = 24;

/// A record of two events; series and ids repeat.
fn payload(shard: u32, n: u64) -> bytes::Bytes {
    let here = |page: u64| {
        let mut all = (0..).map(|turn| {
            Series::new("t", "m", [("page".to_owned(), format!("{shard}/{page}/{turn}"))])
        });
        all.find(|series| SeriesId::of_key(&series.key()).shard(SHARDS) == ShardId(shard))
            .expect("one")
    };
    let series: Vec<Series> = [(n / 2) % 7, (n / 3) % 5].map(here).into();
    let keys: Vec<(Vec<u8>, SeriesId)> =
        series.iter().map(|s| (s.key(), SeriesId::of_key(&s.key()))).collect();
    let ids = [format!("a{}", n / 2), format!("b{n}")];
    let event = |at: usize| RecordEvent {
        series: at as u32,
        timestamp: 3_600_000 * (n % 4) as i64,
        value: None,
        user: Some(&ids[1 - at]),
        id: Some(&ids[at]),
        raw: b"{}",
    };
    let series = keys.iter().map(|(key, id)| SeriesEntry { id: &id.0, key }).collect();
    let mut bytes = Vec::new();
    let events = vec![event(0), event(1)];
    record::encode(
        &Record {
            version: record::VERSION,
            tenant: "t",
            gateway: 0,
            series,
            events,
            stamp: Some(1),
        },
        &mut bytes,
    );
    bytes.into()
}

struct World {
    log: Arc<MemoryLog>,
    store: Arc<MemoryStore>,
    archive: MemoryArchive,
}

impl World {
    /// Runs both shards in turns, so that they share the overflow series. Records below `archived`
    /// are archived, five per object.
    fn new(archived: u64) -> Self {
        Self::at_work(archived, [0, 1])
    }

    /// Runs the shards in this order: the first one admits the series that they share.
    fn at_work(archived: u64, order: [u32; SHARDS as usize]) -> Self {
        let clock = ManualClock::at(0);
        let log = MemoryLog::new(LOG, SHARDS, clock.clone());
        for n in 0..RECORDS {
            clock.set(10_000 * n as i64);
            assert_eq!(clock.now(), 10_000 * n as i64);
            let records = (0..SHARDS).map(|shard| (ShardId(shard), payload(shard, n))).collect();
            log.append(AppendRequest { records }).expect("appended");
        }
        let world = Self { log, store: MemoryStore::new(), archive: MemoryArchive::new() };
        for (from, to) in [(0, 13), (13, RECORDS)] {
            order.map(ShardId).iter().for_each(|shard| world.work(*shard, from, to));
        }
        for from in (0..archived).step_by(5) {
            (0..SHARDS)
                .map(ShardId)
                .for_each(|shard| world.put(shard, from, archived.min(from + 5)));
        }
        world
    }

    fn work(&self, shard: ShardId, from: Offset, to: Offset) {
        let claim = self.store.claim(shard, LOG, from).expect("claim");
        assert_eq!(claim.checkpoint.next, from);
        let recent = self.store.recent_ids(shard, i64::MIN).expect("ids");
        let admission = SeriesAdmission::limited(
            MAX_SERIES,
            self.store.admitted_series(shard).expect("series"),
        );
        let state = ShardState::new(RULES.limits(), shard, &claim, recent, admission, from);
        let mut driver = ShardDriver::from(state);
        let records = self.log.read(shard, from, usize::MAX).expect("records");
        let flushed = fold::apply(
            &mut driver,
            &records[..(to - from) as usize],
            true,
            &mut |guard, batch, forget| self.store.flush(guard, batch, forget),
        );
        flushed.expect("flushed");
    }

    fn records(&self, shard: ShardId, from: Offset, to: Offset) -> Vec<LogRecord> {
        let mut records = self.log.read(shard, from, usize::MAX).expect("records");
        records.truncate((to - from) as usize);
        records
    }

    fn put(&self, shard: ShardId, from: Offset, to: Offset) {
        self.put_with(shard, from, to, |decisions| decisions);
    }

    /// Archives a range with the decisions that `change` makes of the true ones.
    fn put_with(
        &self,
        shard: ShardId,
        from: Offset,
        to: Offset,
        change: impl FnOnce(RangeDecisions) -> RangeDecisions,
    ) {
        let mut snapshot = self.store.snapshot().expect("snapshot");
        let checkpoints = snapshot.checkpoints().expect("checkpoints");
        let epoch = checkpoints.iter().find(|(id, _)| *id == shard).expect("a checkpoint").1.epoch;
        let decisions = snapshot.decisions(shard, OffsetRange { from, to }).expect("decisions");
        let decisions = change(decisions);
        let row = self
            .archive
            .write(LOG, shard, epoch, &self.records(shard, from, to), &decisions)
            .expect("written");
        self.store.insert_manifest_row(row.epoch, &row).expect("archived");
    }

    fn rebuild(
        &self,
        store: &MemoryStore,
        allow_expired: bool,
    ) -> Result<RebuildReport, RebuildError> {
        let plans = plan(&self.archive, &*self.log, &[], allow_expired)?;
        let (archive, log) = (&self.archive, &*self.log);
        let rebuild = StoreRebuild {
            store,
            archive,
            log,
            rules: RULES,
            max_series: MAX_SERIES,
            metric_names: MetricNameRegistry::new(100),
            max_ahead_ms: 3_600_000,
            nonce: 99,
            replays: &ServedReplays::default(),
        };
        let mut last = 0;
        let settled = settled::read(&self.archive, &[LOG])?.settled;
        let report = rebuild.run_with(&settled, &plans, false, &mut |done| last = done)?;
        assert_eq!(last, plans.iter().map(ShardPlan::records).sum::<u64>(), "the bar ends full");
        Ok(report)
    }

    fn objects(&self) -> Vec<ObjectInfo> {
        (0..SHARDS)
            .flat_map(|shard| self.archive.list(LOG, ShardId(shard)).expect("list"))
            .collect()
    }
}

fn everything(store: &dyn ShardStore) -> Vec<String> {
    let mut snapshot = store.snapshot().expect("snapshot");
    let mut all = Vec::new();
    let mut visit = |info: &Arc<crate::model::flush::SeriesInfo>, hour: Hour, _, bytes: &[u8]| {
        all.push(format!("{:?} {hour:?} {bytes:02x?}", info.series));
    };
    snapshot.rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut visit).expect("rows");
    for (shard, at) in snapshot.checkpoints().expect("checkpoints") {
        all.push(format!(
            "{shard} {} {} {:?}",
            at.next,
            at.archived,
            snapshot.manifest(Some(shard)).expect("rows")
        ));
        let mut admissions = snapshot.admissions(shard).expect("admissions");
        admissions.sort_unstable();
        all.push(format!("{admissions:?}"));
        let above = OffsetRange { from: at.archived, to: at.next };
        let decisions = snapshot.decisions(shard, above).expect("decisions");
        let outcomes = decisions.outcomes.expect("they are noted");
        all.push(format!("{:?}", outcomes.iter().collect::<Vec<_>>()));
        let recent =
            store.recent_ids(shard, 10_000 * RECORDS as i64 - RULES.dedup_horizon_ms).expect("ids");
        let ids = recent
            .into_iter()
            .flat_map(|block| block.runs)
            .filter(|(at, _)| *at >= 10_000 * (RECORDS as i64 - 5));
        all.push(format!("{:?}", ids.flat_map(|(_, ids)| ids).collect::<Vec<_>>()));
    }
    all.push(format!(
        "{:?} {:?}",
        snapshot.accounting("t", Hour(0), Hour(99)),
        snapshot.metrics("t", &NameRange::ALL)
    ));
    all
}

#[test]
fn a_rebuilt_store_is_the_one_that_was_lost() {
    for archived in [0, 1, 13, 20, RECORDS] {
        let world = World::new(archived);
        let store = MemoryStore::rebuilding();
        let report = world.rebuild(&store, false).expect("rebuilt");
        assert_eq!(everything(&*store), everything(&*world.store), "{archived} archived");
        let (objects, records) =
            (u64::from(SHARDS) * archived.div_ceil(5), u64::from(SHARDS) * archived);
        assert_eq!(
            (report.objects, report.records.0, report.records.0 + report.records.1),
            (objects, records, 2 * RECORDS)
        );
        let [aggregated, deduplicated, _] = report.events;
        assert!(deduplicated > 0 && aggregated + deduplicated == 4 * RECORDS, "{report:?}");
        let metrics =
            store.snapshot().expect("snapshot").metrics("t", &NameRange::ALL).expect("metrics");
        assert_eq!(
            metrics[0].series,
            2 * MAX_SERIES + 1,
            "limits were reached, and the overflow series is shared"
        );
        let old = world.store.snapshot().expect("snapshot").checkpoints().expect("checkpoints");
        let new = store.claim(ShardId(0), LOG, 5).expect("goes on").checkpoint;
        assert_eq!(new.next, old[0].1.next);
        assert!(archived == 0 || new.epoch.counter > old[0].1.epoch.counter, "epochs go on, too");
    }
}

#[test]
fn a_rebuild_that_is_ended_anywhere_goes_on() {
    // The shard that is rebuilt last had admitted the series that the first one writes to as well.
    let world = World::at_work(20, [1, 0]);
    let expected = everything(&*world.store);
    let mut ends = 0;
    for fault in [StoreFault::Before, StoreFault::AppliedReplyLost] {
        for at in 0.. {
            let store = MemoryStore::rebuilding();
            let mut left = at;
            store.set_faults(move |write| {
                let hit = matches!(write, StoreWrite::Flush | StoreWrite::Restore) && left == 0;
                left = if matches!(write, StoreWrite::Flush | StoreWrite::Restore) {
                    left - 1
                } else {
                    left
                };
                hit.then_some(fault)
            });
            match world.rebuild(&store, false) {
                Ok(_) => break,
                Err(error) => assert!(matches!(error, RebuildError::Store(_)), "{error}"),
            }
            ends += 1;
            store.clear_faults();
            world.rebuild(&store, false).expect("goes on");
            assert_eq!(everything(&*store), expected, "ended at write {at}, {fault:?}");
        }
    }
    assert!(ends > 20, "{ends}");
}

#[test]
fn objects_of_an_older_release_are_decided_again_by_the_limit() {
    let world = World::new(20);
    let expected = everything(&*world.store);
    // The first objects were written before decisions were recorded.
    for object in
        world.objects().iter().filter(|object| object.path.contains("/00000000000000000000-"))
    {
        let found = world.archive.examine(object).expect("an object");
        let bytes = parquet::tests::older(LOG, found.row.shard, found.row.epoch, &found.records);
        world.archive.put(&object.path, Tier::Hot, bytes);
    }
    let store = MemoryStore::rebuilding();
    let report = world.rebuild(&store, false).expect("rebuilt");
    assert_eq!((report.undecided, report.unsealed), (2, 2));
    let but_sizes = |all: Vec<String>| {
        all.into_iter().filter(|line| !line.contains("crc32c")).collect::<Vec<_>>()
    };
    assert_eq!(but_sizes(everything(&*store)), but_sizes(expected));
}

#[test]
fn a_damaged_object_is_said_or_gone_around() {
    let world = World::new(20);
    let object = world.objects()[1].clone();
    let mut bytes = world.archive.bytes(&object.path, Tier::Hot).expect("there").to_vec();
    bytes[100] ^= 1;
    world.archive.put(&object.path, Tier::Hot, bytes.into());
    let store = MemoryStore::rebuilding();
    let report = world.rebuild(&store, false).expect("the log still has its records");
    assert_eq!(report.damaged, std::slice::from_ref(&object.path));
    let rows = |store: &MemoryStore| {
        let mut found = Vec::new();
        let mut snapshot = store.snapshot().expect("snapshot");
        let mut visit = |info: &Arc<crate::model::flush::SeriesInfo>, hour, _, bytes: &[u8]| {
            found.push((info.id, hour, bytes.to_vec()))
        };
        snapshot.rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut visit).expect("rows");
        found
    };
    assert_eq!(rows(&store), rows(&world.store));

    world.log.release(&[20, 20]).expect("released");
    let error =
        world.rebuild(&MemoryStore::rebuilding(), false).expect_err("nothing has its records");
    assert!(
        error.to_string().contains(&object.path)
            && error.to_string().contains("bring the object back"),
        "{error}"
    );
    world.archive.remove(&object.path, Tier::Hot).expect("removed");
    let error = world.rebuild(&MemoryStore::rebuilding(), false).expect_err("a gap");
    assert!(error.to_string().contains("records 5 to 10 are neither"), "{error}");
}

#[test]
fn what_expired_is_left_out_only_when_that_is_allowed() {
    let world = World::new(20);
    world.log.release(&[20, 20]).expect("released");
    let first: ManifestRow = world
        .store
        .snapshot()
        .expect("snapshot")
        .manifest(Some(ShardId(0)))
        .expect("rows")
        .remove(0);
    assert!(world.store.expire_object(&first).expect("expired"));
    world.archive.remove(&first.path, Tier::Hot).expect("removed");
    let refused = world.rebuild(&MemoryStore::rebuilding(), false).expect_err("refused");
    assert_eq!(refused, RebuildError::StartsLate { shard: ShardId(0), start: 5 });
    assert!(refused.to_string().contains("--allow-expired"), "{refused}");

    let store = MemoryStore::rebuilding();
    let report = world.rebuild(&store, true).expect("rebuilt");
    assert_eq!(
        report.incomplete_before,
        Some(Hour(2)),
        "appended in hour 0, at most an hour ahead"
    );
    let mut snapshot = store.snapshot().expect("snapshot");
    let floor = ArchiveFloor { offset: 5, appended: 50_000, hour: Hour(2) };
    assert_eq!(snapshot.archive_floors(), Ok(vec![(ShardId(0), floor)]));
    let rows = snapshot.manifest(Some(ShardId(0))).expect("rows");
    assert_eq!(crate::model::manifest::check_tiling(&rows, 5, 20), Ok(()));
    assert_eq!(snapshot.checkpoints().expect("checkpoints")[0].1.next, RECORDS);
}

#[test]
fn a_store_that_may_be_in_use_is_never_written_over() {
    let world = World::new(20);
    let error = world.rebuild(&world.store, false).expect_err("refused");
    assert!(matches!(error, RebuildError::Store(StoreError::Invalid(_))), "{error}");
}

#[test]
fn a_log_that_continues_another_has_the_history_of_both() {
    let world = World::new(20);
    // As after a migration: the same offsets under another log id, starting where the first log
    // ended. Its objects keep their names.
    let log = MemoryLog::new(LogId([5; 16]), SHARDS, ManualClock::at(1_000_000));
    for n in 0..20 {
        let records = (0..SHARDS).map(|shard| (ShardId(shard), payload(shard, n))).collect();
        log.append(AppendRequest { records }).expect("appended");
    }
    log.release(&[20, 20]).expect("released");
    let refused = plan(&world.archive, &*log, &[], false).expect_err("nothing of its own");
    assert_eq!(refused, RebuildError::StartsLate { shard: ShardId(0), start: 20 });
    assert!(refused.to_string().contains("--former-log"), "{refused}");
    let plans = plan(&world.archive, &*log, &[LOG], false).expect("a plan");
    let store = MemoryStore::rebuilding();
    let (archive, rules) = (&world.archive, RULES);
    let rebuild = StoreRebuild {
        store: &*store,
        archive,
        log: &*log,
        rules,
        max_series: MAX_SERIES,
        metric_names: MetricNameRegistry::new(100),
        max_ahead_ms: 0,
        nonce: 1,
        replays: &ServedReplays::default(),
    };
    rebuild.run(&plans, false, &mut |_| ()).expect("rebuilt");
    let mut snapshot = store.snapshot().expect("snapshot");
    let at = snapshot.checkpoints().expect("checkpoints")[1].1;
    assert_eq!((at.log, at.next, at.archived), (LogId([5; 16]), 20, 20));
    assert!(snapshot.manifest(None).expect("rows").iter().all(|row| row.log == LOG));
}

/// Here, because this world has an archive that can be written with other decisions.
#[test]
fn an_outcome_in_the_archive_that_the_records_do_not_give_is_named() {
    let found = |change: &dyn Fn(RangeDecisions) -> RangeDecisions| {
        let world = World::new(0);
        world.put_with(ShardId(0), 0, 5, change);
        world.put(ShardId(1), 0, RECORDS);
        let sources = VerifySources {
            store: &*world.store,
            archive: &world.archive,
            open_log: &|| Ok(world.log.clone()),
            dedup_horizon_ms: RULES.dedup_horizon_ms,
            dedup_max_ids: RULES.dedup_max_ids,
            only: None,
        };
        let all = Hour(i32::MIN)..Hour(i32::MAX);
        let report = verify::verify(&sources, all, &mut |_, _| ()).expect("verified");
        assert_eq!((report.differences.len(), report.unverified.len()), (0, 0));
        let path = &world.objects()[0].path;
        let told = report.damages.into_iter().map(|damage| damage.reason);
        told.map(|why| why.replace(path, "object")).collect::<Vec<_>>()
    };
    let event = |offset, index| UncountedEvent { offset, index, verdict: Verdict::Duplicate };
    assert!(found(&|decisions| decisions).is_empty());
    let none = RangeDecisions { outcomes: None, ..RangeDecisions::default() };
    assert!(found(&|_| none.clone()).is_empty(), "an object that says nothing");
    // Every odd record repeats the first id of the one before it.
    let wrong = found(&|decisions| {
        let truly: Vec<_> = decisions.outcomes.iter().flat_map(OutcomeNote::iter).collect();
        assert_eq!(truly, [event(1, 0), event(3, 0)]);
        let mut note = OutcomeNote::default();
        [event(2, 1), event(3, 0)].into_iter().for_each(|event| note.push(event));
        RangeDecisions { outcomes: Some(note), ..decisions }
    });
    assert_eq!(
        wrong,
        [
            "object, offset 1, event 0: it says counted, the records give duplicate",
            "object, offset 2, event 1: it says duplicate, the records give counted",
        ]
    );
}

/// An archive whose objects say that an event was set aside, and whether it was discarded. The store
/// has counted it.
fn world_without(place: (Offset, u32), discarded: bool) -> World {
    let world = World::new(0);
    for from in (0..RECORDS).step_by(5) {
        let to = RECORDS.min(from + 5);
        world.put(ShardId(1), from, to);
        world.put_with(ShardId(0), from, to, |mut decisions| {
            if (from..to).contains(&place.0) {
                decisions.quarantined.push((place.0, place.1, discarded));
            }
            decisions
        });
    }
    world
}

/// A store that is rebuilt from it: the event waits.
fn rebuilt_without(place: (Offset, u32)) -> (World, Arc<MemoryStore>) {
    let world = world_without(place, false);
    let store = MemoryStore::rebuilding();
    world.rebuild(&store, false).expect("rebuilt");
    (world, store)
}

fn put_settled(archive: &MemoryArchive, number: u64, place: (Offset, u32), settlement: Settlement) {
    let events = vec![SettledEvent { offset: place.0, index: place.1, settlement }];
    let document = SettledDocument { shard: 0, events };
    let bytes = document.encode().expect("encoded");
    let path = document.name(number, &bytes).path(LOG);
    archive.documents().put_document(&path, &bytes.into()).expect("put");
}

#[test]
fn what_people_settled_is_settled_again() {
    let place = (7, 1);
    for last in [Settlement::Released, Settlement::Discarded, Settlement::Waiting] {
        let (world, store) = rebuilt_without(place);
        let lost = everything(&*world.store);
        let waits = everything(&*store);
        assert_ne!(waits, lost, "it waits");
        // Of two decisions, as after a rollback of the store, the later one counts.
        let first = match last {
            Settlement::Released => Settlement::Discarded,
            Settlement::Discarded | Settlement::Waiting => Settlement::Released,
        };
        put_settled(&world.archive, 9, place, first);
        put_settled(&world.archive, 10, place, last);
        put_settled(&world.archive, 11, (8, 0), Settlement::Released);
        let found = settled::read(&world.archive, &[LOG]).expect("read");
        let settle = || settled::settle(&*store, &found.settled, &RULES.limits()).expect("settled");
        let done = settle();
        let after = everything(&*store);
        match last {
            Settlement::Released => {
                assert_eq!((done.released, done.discarded), (1, 0));
                assert_eq!(after, lost, "to the byte");
            }
            Settlement::Discarded => {
                assert_eq!((done.released, done.discarded), (0, 1));
                let rows = store.snapshot().expect("snapshot").quarantine().expect("quarantine");
                assert!(rows.len() == 1 && rows[0].discarded, "{rows:?}");
            }
            Settlement::Waiting => {
                assert_eq!((done.released, done.discarded), (0, 0));
                assert_eq!(after, waits);
            }
        }
        // A rebuild that goes on does nothing again, and reports what an earlier attempt has done.
        assert_eq!(settle(), done);
        assert_eq!(everything(&*store), after, "once");
    }
}

#[test]
fn what_waits_again_under_this_log_was_settled_under_a_former_one() {
    let (world, store) = rebuilt_without((7, 1));
    let (waits, former) = (everything(&*store), LogId([8; 16]));
    put_settled(&world.archive, 1, (7, 1), Settlement::Waiting);
    let events = vec![SettledEvent { offset: 7, index: 1, settlement: Settlement::Released }];
    let document = SettledDocument { shard: 0, events };
    let bytes = document.encode().expect("encoded");
    let path = document.name(5, &bytes).path(former);
    world.archive.documents().put_document(&path, &bytes.into()).expect("put");
    let found = settled::read(&world.archive, &[LOG, former]).expect("read");
    settled::settle(&*store, &found.settled, &RULES.limits()).expect("settled");
    assert_eq!(everything(&*store), waits);
}

#[test]
fn what_people_decided_after_a_rollback_outdoes_what_an_object_says() {
    let place = (7, 1);
    for last in [Settlement::Released, Settlement::Discarded, Settlement::Waiting] {
        let world = world_without(place, true);
        put_settled(&world.archive, 3, place, Settlement::Discarded);
        put_settled(&world.archive, 4, place, last);
        let store = MemoryStore::rebuilding();
        world.rebuild(&store, false).expect("rebuilt");
        let found = settled::read(&world.archive, &[LOG]).expect("read");
        settled::settle(&*store, &found.settled, &RULES.limits()).expect("settled");
        let rows = store.snapshot().expect("snapshot").quarantine().expect("quarantine");
        let discarded: Vec<bool> = rows.iter().map(|row| row.discarded).collect();
        match last {
            Settlement::Released => assert_eq!(everything(&*store), everything(&*world.store)),
            Settlement::Discarded => assert_eq!(discarded, [true]),
            Settlement::Waiting => assert_eq!(discarded, [false]),
        }
    }
}
