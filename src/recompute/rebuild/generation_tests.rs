//! Replays that were served are rebuilt to the byte.

use std::sync::Arc;

use super::replays::{self, ServedReplays};
use super::*;
use crate::actors::generation_documents::{GenerationDocuments, PutDocuments};
use crate::model::generation::{DayRange, GenerationId};
use crate::model::manifest::Tier;
use crate::model::replay_document;
use crate::persistence::log::LogRetention;
use crate::persistence::store::SnapshotSource;
use crate::persistence::store::memory::{MemoryStore, StoreFault, StoreWrite};
use crate::recompute::generation_world::{
    LOG, MAX_SERIES, NONE, PLAN, RECORDS, RULES, SHARDS, World, days,
};
use crate::recompute::replay::shard_replay::{ReplaySources, ReplayStep};

impl World {
    /// Puts the documents, as the keeper does.
    fn keep(&self) {
        let documents = GenerationDocuments {
            store: self.store.clone(),
            archive: self.archive.clone(),
            log: LOG,
        };
        documents.put(&mut PutDocuments::default()).expect("put");
    }

    fn served_replays(&self) -> Result<ServedReplays, RebuildError> {
        ServedReplays::read(&*self.archive, &[LOG], SHARDS, 77)
    }

    fn rebuild(&self, store: &Arc<MemoryStore>) -> Result<ServedReplays, RebuildError> {
        let served = self.served_replays()?;
        let plans = plan(&*self.archive, &*self.log, &[], true)?;
        let rebuild = StoreRebuild {
            store: &**store,
            archive: &*self.archive,
            log: &*self.log,
            rules: FoldRules { max_delta_bytes: 1, ..RULES },
            // What was recorded decides, where something was.
            max_series: MAX_SERIES,
            metric_names: MetricNameRegistry::new(100),
            max_ahead_ms: 0,
            nonce: 99,
            replays: &served,
        };
        rebuild.run(&plans, false, &mut |_| ())?;
        let sources = ReplaySources { store: store.clone(), ..self.sources() };
        let mut last = 0;
        replays::fill(&served, &sources, 5, &mut |done| last = done)?;
        assert_eq!(last, served.records(), "the bar ends full");
        Ok(served)
    }
}

/// What queries of replays see: the pointer, and the rows on the days that it names.
fn served(store: &MemoryStore, id: GenerationId, on: DayRange) -> String {
    let book = store.snapshot().expect("snapshot").generation_book().expect("a book");
    let written = World::written(store, id, on);
    format!("{:?} {written:?}", book.pointer("t", "m"))
}

#[test]
fn what_was_served_is_rebuilt_to_the_byte() {
    for rules in [NONE, PLAN] {
        for on in [DayRange::ALWAYS, days(1, 3)] {
            let (world, id) = World::served(rules, on);
            world.keep();
            let store = MemoryStore::rebuilding();
            let replays = world.rebuild(&store).expect("rebuilt");
            assert_eq!(replays.generations().collect::<Vec<_>>(), [id]);
            assert_eq!(served(&store, id, on), served(&world.store, id, on));
            let again = World { store, log: world.log, archive: world.archive };
            let report = again.verify();
            assert!(report.is_equal() && report.generations[0].rows > 4, "{report:?}");
        }
    }
}

#[test]
fn what_was_built_or_replaced_is_lost_and_what_is_served_of_it_is_not() {
    let (world, first) = World::served(PLAN, days(0, 4));
    // A second one replaces a part of the first, a third is being built.
    let second = world.start(NONE, days(2, 3));
    (0..SHARDS).for_each(|shard| world.work(shard, RECORDS));
    (0..SHARDS).for_each(|shard| world.archive(shard));
    for shard in 0..SHARDS {
        assert_eq!(world.fill(second, shard, 1_000), ReplayStep::Complete);
    }
    world.change(|book| book.apply(second, 6).map(|_| ())).expect("applied");
    let third = world.start(NONE, days(0, 9));
    (0..SHARDS).for_each(|shard| world.work(shard, RECORDS));
    world.keep();
    let store = MemoryStore::rebuilding();
    let replays = world.rebuild(&store).expect("rebuilt");
    assert_eq!(
        (replays.generations().collect::<Vec<_>>(), &*replays.lost),
        (vec![first, second], &[third][..])
    );
    for (id, on) in [(first, days(0, 2)), (first, days(3, 4)), (second, days(2, 3))] {
        assert_eq!(served(&store, id, on), served(&world.store, id, on));
    }
    let book = store.snapshot().expect("snapshot").generation_book().expect("a book");
    assert!(book.applies().is_empty() && !book.generations().contains_key(&third));
    assert_eq!(book.leaving().len(), 1, "days of the first that are not served");
    assert_eq!(book.leaving()[0].days, days(2, 3));
    let mut next = book.as_ref().clone();
    let again = World { store, log: world.log, archive: world.archive };
    assert!(again.verify().is_equal());
    let new = next.undo(second).expect_err("the way back is lost");
    assert!(new.to_string().contains("cannot be undone"), "{new}");
    assert_eq!(again.start(NONE, days(0, 9)), GenerationId(third.0 + 1), "numbers go on");
}

#[test]
fn a_rebuild_of_replays_that_is_ended_anywhere_goes_on() {
    let (world, id) = World::served(PLAN, DayRange::ALWAYS);
    world.keep();
    let expected = served(&world.store, id, DayRange::ALWAYS);
    let mut ends = 0;
    for fault in [StoreFault::Before, StoreFault::AppliedReplyLost] {
        // Every third write: each attempt folds everything.
        for at in (0..).step_by(3) {
            let store = MemoryStore::rebuilding();
            let mut left = at;
            store.set_faults(move |write| {
                let counts = matches!(
                    write,
                    StoreWrite::Flush
                        | StoreWrite::Restore
                        | StoreWrite::Generations
                        | StoreWrite::Fill
                );
                left -= i32::from(counts);
                (counts && left == -1).then_some(fault)
            });
            match world.rebuild(&store) {
                Ok(_) => break,
                Err(RebuildError::Store(_)) => ends += 1,
                Err(other) => panic!("{other}"),
            }
            store.clear_faults();
            world.rebuild(&store).expect("goes on");
            assert_eq!(served(&store, id, DayRange::ALWAYS), expected, "ended at write {at}");
        }
    }
    assert!(ends > 10, "{ends}");
}

#[test]
fn without_what_it_needs_it_names_it() {
    let (world, _) = World::served(PLAN, DayRange::ALWAYS);
    assert_eq!(world.served_replays(), Ok(ServedReplays::default()), "no book was put");
    world.keep();
    let documents = world.archive.documents();
    let listed = documents.list_documents(&replay_document::prefix(LOG)).expect("listed");
    assert_eq!(listed.len(), 1 + SHARDS as usize);
    for found in listed {
        let kept = documents.read_document(&found.path).expect("there");
        let mut damaged = kept.to_vec();
        damaged[60] ^= 1;
        world.archive.put(&found.path, Tier::Hot, damaged.into());
        let why = world.served_replays().expect_err("damaged").to_string();
        assert!(why.contains(&found.path) && why.contains("--without-replays"), "{why}");
        world.archive.put(&found.path, Tier::Hot, kept);
    }
    let object = world.archive.list(LOG, ShardId(0)).expect("listed")[0].clone();
    let mut damaged = world.archive.bytes(&object.path, Tier::Hot).expect("there").to_vec();
    damaged[100] ^= 1;
    world.archive.put(&object.path, Tier::Hot, damaged.into());
    // The log has the records, but a fill reads the archive alone.
    let why = world.rebuild(&MemoryStore::rebuilding()).expect_err("not filled").to_string();
    assert!(why.contains("replay 1, shard 0") && why.contains("--without-replays"), "{why}");
}

#[test]
fn a_start_puts_nothing_that_is_listed() {
    let (world, _) = World::served(PLAN, DayRange::ALWAYS);
    world.keep();
    let documents = world.archive.documents();
    let listed = || documents.list_documents(&replay_document::prefix(LOG)).expect("listed");
    let before = listed();
    world.archive.set_now(9);
    world.keep();
    assert_eq!(listed(), before);
    let book = before.iter().find(|found| found.path.contains("/book-")).expect("a book");
    world.archive.remove(&book.path, Tier::Hot).expect("removed");
    world.keep();
    let written: Vec<_> = listed().into_iter().filter(|found| found.written == 9).collect();
    assert_eq!(written.iter().map(|found| &found.path).collect::<Vec<_>>(), [&book.path]);
}

#[test]
fn what_has_expired_is_left_out_of_replays_too() {
    let (world, id) = World::served(NONE, DayRange::ALWAYS);
    world.keep();
    world.log.release(&[36, 36]).expect("released");
    let object = world.archive.list(LOG, ShardId(0)).expect("listed")[0].clone();
    world.archive.remove(&object.path, Tier::Hot).expect("removed");
    let store = MemoryStore::rebuilding();
    world.rebuild(&store).expect("rebuilt");
    let rows = World::written(&store, id, DayRange::ALWAYS).rows.len();
    assert!(rows > 0 && rows <= World::written(&world.store, id, DayRange::ALWAYS).rows.len());
}
