//! Generations are recomputed under their rules, and whatever differs is found.

use std::sync::Arc;

use crate::model::flush::{
    Delta, DroppedEvents, FillGuard, FlushBatch, GenerationDeltas, SeriesInfo,
};
use crate::model::generation::{DayRange, GenerationId, WriterPart};
use crate::model::offset::{OffsetRange, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;
use crate::persistence::store::{GenerationStore, ManifestStore, SnapshotSource};
use crate::recompute::generation_world::{LOG, NONE, PLAN, SHARDS, World, days};
use crate::recompute::replay::shard_replay::ReplayStep;

fn deltas(generation: GenerationId) -> GenerationDeltas {
    GenerationDeltas { generation, ..GenerationDeltas::default() }
}

#[test]
fn what_was_filled_and_written_since_equals_its_records() {
    for rules in [NONE, PLAN] {
        for days in [DayRange::ALWAYS, days(1, 3)] {
            let (world, id) = World::served(rules, days);
            let report = world.verify();
            assert!(report.is_equal(), "{report:?}");
            let written = World::written(&world.store, id, DayRange::ALWAYS);
            assert_eq!(report.generations.len(), 1);
            let check = &report.generations[0];
            assert_eq!((check.generation, check.rows), (id, written.rows.len() as u64));
            assert!(check.unfilled.is_empty());
            let parts = |part| written.rows.keys().filter(|key| key.2.part == part).count();
            assert!(parts(WriterPart::Live) > 2 && parts(WriterPart::Fill) > 2, "{written:?}");
            assert_eq!(written.dropped.is_empty(), rules == NONE);
            let overflow = written.rows.keys().any(|(_, series, _)| series.is_overflow());
            assert!(overflow, "limits were reached");
        }
    }
}

#[test]
fn one_that_is_being_filled_is_compared_as_far_as_it_is() {
    let world = World::new();
    (0..SHARDS).for_each(|shard| world.work(shard, 20));
    (0..SHARDS).for_each(|shard| world.archive(shard));
    let id = world.start(PLAN, DayRange::ALWAYS);
    let unfilled = |world: &World| {
        let report = world.verify();
        assert!(report.is_equal(), "{report:?}");
        let unfilled = report.generations[0].unfilled.iter();
        unfilled.map(|of| (of.shard.0, of.progress.map(|at| (at.cursor, at.cut)))).collect()
    };
    let found: Vec<_> = unfilled(&world);
    assert_eq!(found, [(0, None), (1, None)]);
    world.work(0, 30);
    assert!(matches!(world.fill(id, 0, 2), ReplayStep::Read(_)));
    let found: Vec<_> = unfilled(&world);
    assert_eq!(found, [(0, Some((20, 30))), (1, None)]);
    world.work(1, 31);
    world.work(1, 40);
    world.archive(0);
    world.archive(1);
    assert_eq!(world.fill(id, 0, 100), ReplayStep::Complete);
    let found: Vec<_> = unfilled(&world);
    assert_eq!(found, [(1, Some((0, 31)))]);
}

#[test]
fn a_planted_difference_is_named_with_its_writer() {
    let (world, id) = World::served(PLAN, DayRange::ALWAYS);
    let series = Series::new("t", "m", [("page".to_owned(), "nowhere".to_owned())]);
    let info = Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
    let mut rollup = Rollup::default();
    rollup.add(None, None);
    let wrong = GenerationDeltas {
        deltas: vec![Delta { series: info.clone(), hour: Hour(25), rollup }],
        dropped: vec![DroppedEvents {
            tenant: "t".to_owned(),
            metric: "m".to_owned(),
            day: 1,
            events: 1,
        }],
        ..deltas(id)
    };
    world.plant(1, &FlushBatch { generations: vec![wrong], ..FlushBatch::default() });
    let report = world.verify();
    assert!(!report.is_equal());
    assert_eq!(report.differences.len(), 1, "{:?}", report.differences);
    let found = &report.differences[0];
    let (generation, writer) = found.written_by.expect("of a generation");
    assert_eq!((generation, writer.to_string()), (id, "shard 1, live".to_owned()));
    assert_eq!((&found.series.series, found.hour), (&info.series, Hour(25)));
    assert!(found.stored.is_some() && found.recomputed.is_none());
    assert_eq!(report.damages.len(), 1, "{:?}", report.damages);
    let why = &report.damages[0].reason;
    assert!(why.contains("replay 1") && why.contains("shard 1, live"), "{why}");
}

#[test]
fn a_cursor_that_moved_before_its_rows_is_found() {
    let world = World::new();
    (0..SHARDS).for_each(|shard| world.work(shard, 20));
    let id = world.start(NONE, DayRange::ALWAYS);
    (0..SHARDS).for_each(|shard| world.work(shard, 20));
    (0..SHARDS).for_each(|shard| world.archive(shard));
    let range = OffsetRange { from: 0, to: 4 };
    let guard = FillGuard { generation: id, shard: ShardId(0), log: LOG, range, nonce: 1 };
    world.store.fill(&guard, &deltas(id)).expect("filled with nothing");
    let report = world.verify();
    assert!(!report.differences.is_empty());
    for found in &report.differences {
        let (_, writer) = found.written_by.expect("of a generation");
        assert_eq!(writer.to_string(), "shard 0, fill");
        assert!(found.stored.is_none() && found.recomputed.is_some());
    }
}

#[test]
fn rows_whose_records_have_expired_are_not_compared() {
    let (world, id) = World::served(PLAN, DayRange::ALWAYS);
    let first = world.store.snapshot().expect("a snapshot").manifest(Some(ShardId(0)));
    let first = first.expect("rows").remove(0);
    assert_eq!(world.store.expire_object(&first), Ok(true));
    let report = world.verify();
    assert!(report.is_equal(), "{report:?}");
    let without = report.unverifiable.expect("some windows");
    let all = World::written(&world.store, id, DayRange::ALWAYS).rows.len() as u64;
    assert!(report.generations[0].rows < all && without.rows > 0);
}

#[test]
fn rows_that_age_has_dropped_are_counted_and_not_compared() {
    let (world, id) = World::served(PLAN, DayRange::ALWAYS);
    let whole = world.verify();
    assert!(whole.is_equal() && whole.dropped.is_none(), "{whole:?}");
    let floor = Hour(48);
    let below = |world: &World| {
        let (mut rows, mut snapshot) = (0, world.store.snapshot().expect("a snapshot"));
        let mut count = |_: &Arc<SeriesInfo>, _: Hour, _: Rollup, _: &[u8]| rows += 1;
        snapshot.rollup_bytes(Hour(i32::MIN), floor, &mut count).expect("rows");
        drop(snapshot);
        rows + World::written(&world.store, id, days(-9, 2)).rows.len() as u64
    };
    let gone = below(&world);
    world.store.drop_before(floor);
    let report = world.verify();
    assert!(report.is_equal() && !report.compared_nothing(), "{report:?}");
    let dropped = report.dropped.expect("some windows");
    assert_eq!((dropped.before, dropped.rows, below(&world)), (floor, gone, 0));
    assert_eq!(report.accounting_compared, whole.accounting_compared);
    let rows = |report: &super::VerifyReport| report.rows + report.generations[0].rows;
    assert_eq!(rows(&report) + gone, rows(&whole));

    // An event that came later, of a series that no record names, and one above the floor.
    let series = Series::new("t", "m", [("page".to_owned(), "nowhere".to_owned())]);
    let info = Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
    let planted = |hour: i32| {
        let mut rollup = Rollup::default();
        rollup.add(None, None);
        let all = vec![Delta { series: info.clone(), hour: Hour(hour), rollup }];
        let generations = vec![GenerationDeltas { deltas: all.clone(), ..deltas(id) }];
        let shard = info.id.shard(SHARDS).0;
        let admitted = vec![(info.clone(), 0)];
        let batch = FlushBatch { deltas: all, admitted, generations, ..FlushBatch::default() };
        world.plant(shard, &batch);
        world.verify()
    };
    let late = planted(1);
    assert!(late.differences.is_empty(), "{late:?}");
    assert_eq!(late.dropped.expect("some windows").rows, gone + 2);
    assert_eq!(planted(49).differences.len(), 2, "of generation 0 and the other");
    world.store.drop_before(Hour(1_000));
    assert!(world.verify().compared_nothing());
}

#[test]
fn what_leaves_is_not_compared() {
    let world = World::new();
    (0..SHARDS).for_each(|shard| world.work(shard, 20));
    let id = world.start(PLAN, DayRange::ALWAYS);
    (0..SHARDS).for_each(|shard| world.work(shard, 25));
    world.change(|book| book.cancel(id, None, 3)).expect("cancelled");
    world.work(0, 30);
    let report = world.verify();
    assert!(report.is_equal() && report.generations.is_empty(), "{report:?}");
    assert_eq!(report.leaving, 1);
}
