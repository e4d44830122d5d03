//! Whatever differs between two stores is found, and named.

use std::sync::Arc;

use super::*;
use crate::model::flush::{
    Delta, DroppedEvents, FlushBatch, FlushGuard, GenerationDeltas, QuarantineRow, RuleEvents,
    SetAdoption,
};
use crate::model::generation::{DayRange, GenerationId};
use crate::model::generation_book::NewGeneration;
use crate::model::offset::{Epoch, OffsetRange};
use crate::model::release::{ReleaseBasis, ReleasedEvent};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::persistence::store::memory::MemoryStore;
use crate::persistence::store::{GenerationStore, QuarantineStore, ShardStore};

const LOG: LogId = LogId([3; 16]);
const SHARD: ShardId = ShardId(0);
const ONE: GenerationId = GenerationId(1);

fn series() -> Arc<SeriesInfo> {
    let series = Series::new("t", "m", [("page".to_owned(), "a".to_owned())]);
    Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series })
}

fn delta(hour: i32) -> Delta {
    let mut rollup = Rollup::default();
    rollup.add(None, None);
    Delta { series: series(), hour: Hour(hour), rollup }
}

/// What a shard flushes behind its cut: an event in each generation, and one that is set aside.
fn flushed() -> FlushBatch {
    let of_one = GenerationDeltas {
        generation: ONE,
        deltas: vec![delta(1)],
        admitted: vec![(series(), 4)],
        dropped: vec![DroppedEvents { tenant: "t".into(), metric: "m".into(), day: 0, events: 2 }],
        rules: vec![RuleEvents { rule: 0, outcome: RuleEvents::DROPPED.to_owned(), events: 2 }],
        ..GenerationDeltas::default()
    };
    let set_aside = QuarantineRow {
        shard: SHARD,
        offset: 5,
        index: 0,
        tenant: "t".to_owned(),
        received: 1,
        reason: "panic".to_owned(),
        discarded: false,
        record: vec![1],
    };
    FlushBatch {
        deltas: vec![delta(1)],
        admitted: vec![(series(), 4)],
        quarantined: vec![set_aside],
        generations: vec![of_one],
        ..FlushBatch::default()
    }
}

fn flush(store: &MemoryStore, range: OffsetRange, epoch: Epoch, batch: &FlushBatch) {
    let guard = FlushGuard { shard: SHARD, log: LOG, range, epoch };
    store.flush(guard, batch, 0).expect("flushed");
}

/// A store in which one replay is written, with this flush.
fn store(batch: FlushBatch) -> Arc<MemoryStore> {
    let store = MemoryStore::new();
    let epoch = store.claim(SHARD, LOG, 1).expect("claimed").checkpoint.epoch;
    let mut book = GenerationBook::default();
    let new = NewGeneration {
        tenant: "t".to_owned(),
        metrics: vec!["m".to_owned()],
        days: DayRange::ALWAYS,
        rules: "{}".into(),
        started: (1, "k".to_owned()),
    };
    assert_eq!(book.start(new, 3, 1), Ok(ONE));
    assert_eq!(store.swap_generations(0, &book, None), Ok(true));
    let set = book.newest_set().version;
    let adopts = Some(SetAdoption { version: set, begun: vec![ONE] });
    let adopting = FlushBatch { adopts, ..FlushBatch::default() };
    flush(&store, OffsetRange { from: 0, to: 4 }, epoch, &adopting);
    flush(&store, OffsetRange { from: 4, to: 6 }, epoch, &FlushBatch { set, ..batch });
    store
}

fn digest(store: &MemoryStore) -> StoreDigest {
    StoreDigest::read(store, &mut |_| ()).expect("read")
}

#[test]
fn stores_of_the_same_rows_differ_in_what_fills_and_releases_decide_by() {
    let here = digest(&store(flushed()));
    assert_eq!(here.rollups, 2);
    assert_eq!(here, digest(&store(flushed())));
    let differing = |change: &dyn Fn(&mut FlushBatch)| {
        let mut batch = flushed();
        change(&mut batch);
        here.differing(&digest(&store(batch)))
    };
    assert_eq!(differing(&|_| ()), [] as [&str; 0]);
    assert_eq!(differing(&|batch| batch.deltas.push(delta(2))), ["rollups"]);
    let of_replay = |batch: &mut FlushBatch| batch.generations[0].deltas.push(delta(2));
    assert_eq!(differing(&of_replay), ["rollups of replays"]);
    assert_eq!(differing(&|batch| batch.admitted[0].1 = 5), ["admitted series"]);
    let of_writer = |batch: &mut FlushBatch| batch.generations[0].admitted[0].1 = 5;
    assert_eq!(differing(&of_writer), ["admitted series"]);
    let rules = ["what rules have dropped and changed"];
    assert_eq!(differing(&|batch| batch.generations[0].dropped[0].events = 3), rules);
    assert_eq!(differing(&|batch| batch.generations[0].rules[0].events = 3), rules);
    assert_eq!(differing(&|batch| batch.quarantined.clear()), ["quarantined events"]);
}

#[test]
fn an_event_that_was_released_or_discarded_in_one_store_alone_is_found() {
    let here = digest(&store(flushed()));
    let nothing = |store: &MemoryStore| {
        let mut snapshot = store.snapshot().expect("a snapshot");
        let set = snapshot.set_versions().expect("versions")[0].1;
        let basis = ReleaseBasis::new(set, &snapshot.shard_fills(SHARD).expect("fills"), 5);
        ReleasedEvent { basis, ..ReleasedEvent::default() }
    };
    for is_released in [true, false] {
        let there = store(flushed());
        let release = is_released.then(|| nothing(&there));
        assert_eq!(there.settle_quarantine(SHARD, 5, 0, release.as_ref(), None), Ok(true));
        assert_eq!(here.differing(&digest(&there)), ["quarantined events"]);
    }
}
