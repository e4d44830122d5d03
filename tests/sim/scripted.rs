//! Schedules that are written down, because random ones hit them too rarely.

use rollmill::model::offset::{LogId, ShardId};
use rollmill::persistence::log::{LogReader, LogRetention};
use rollmill::persistence::store::{ShardStore, StoreError};

use crate::doubles::checkpoint;
use crate::plants::Plant;
use crate::report::Violation;
use crate::rng::Rng;
use crate::setup::SimSetup;
use crate::world::SimWorld;

const SHARD: ShardId = ShardId(0);

fn world(plant: Option<Plant>) -> SimWorld {
    let mut rng = Rng::new(1);
    let setup = SimSetup::calm(&mut rng);
    SimWorld::with(setup, rng, plant, false)
}

/// Node 0 claims and waits for the store. Node 1 claims, applies and flushes. Then node 0 reads the
/// recent ids, which include those of records that it will read from the log, and answers a query
/// whose snapshot still names it as the owner.
fn overtaken_while_loading() -> Result<(), Violation> {
    let mut world = world(None);
    (0..5).try_for_each(|_| world.run_client())?;
    world.claim(0, 0)?;
    let query = world.snapshot();
    world.claim(1, 0)?;
    (0..2).try_for_each(|_| world.wake_shard(1, 0, true))?;
    world.deliver(0)?;
    (0..2).try_for_each(|_| {
        if world.nodes[0].shards[0].alive { world.wake_shard(0, 0, false) } else { Ok(()) }
    })?;
    world.query = Some(query);
    (0..2).try_for_each(|_| world.step_query())
}

#[test]
fn an_owner_overtaken_while_it_loads_gives_up() {
    // That a build without the check is found is shown by the walk
    // (`the_walk_finds_what_is_planted`): random schedules are too unlikely to hit this one.
    assert!(overtaken_while_loading().is_ok());
}

/// A world in which one owner has applied, flushed and archived five requests.
fn settled(plant: Option<Plant>) -> Result<SimWorld, Violation> {
    let mut world = world(plant);
    (0..5).try_for_each(|_| world.run_client())?;
    world.claim(0, 0)?;
    (0..2).try_for_each(|_| world.wake_shard(0, 0, true))?;
    world.deliver(0)?;
    world.wake_shard(0, 0, false)?;
    Ok(world)
}

#[test]
fn a_log_that_lost_its_tail_stops_every_new_owner() {
    let mut world = settled(None).expect("nothing fails");
    let end = world.log.end(SHARD);
    world.log.lose_tail(SHARD, end - 1);
    for n in 0..2 {
        let stopped = world.claim(n, 0).expect_err("the log ends below the checkpoint");
        assert!(
            stopped.invariant.id() == "I12" && stopped.what.contains("the log ends at"),
            "{stopped}"
        );
    }
}

#[test]
fn a_log_that_loses_its_tail_stops_its_owner() {
    let mut world = settled(None).expect("nothing fails");
    world.log.lose_tail(SHARD, world.log.end(SHARD) - 1);
    let stopped = world.wake_shard(0, 0, false).expect_err("the log ends below what was applied");
    assert!(
        stopped.invariant.id() == "I12" && stopped.what.contains("the log ends at"),
        "{stopped}"
    );
}

#[test]
fn a_build_that_accepts_a_short_log_is_found() {
    let mut world = settled(Some(Plant::ShortLogAccepted)).expect("nothing fails");
    world.log.lose_tail(SHARD, world.log.end(SHARD) - 1);
    assert!(world.claim(1, 0).is_ok(), "the bug is planted where the shard starts");
    let found =
        (0..2).find_map(|_| world.wake_shard(1, 0, false).err()).expect("it runs into the end");
    assert_eq!(found.invariant.id(), "I12", "{found}");
}

#[test]
fn a_log_released_above_the_checkpoint_stops_every_new_owner() {
    let mut world = settled(None).expect("nothing fails");
    (0..3).try_for_each(|_| world.run_client()).expect("nothing fails");
    let end = world.log.end(SHARD);
    world.log.release(&[end - 1]).expect("the double releases");
    let stopped = world.claim(1, 0).expect_err("records between checkpoint and log are missing");
    assert!(
        stopped.invariant.id() == "I12" && stopped.what.contains("the log lost the records"),
        "{stopped}"
    );
}

#[test]
fn another_log_is_refused_and_the_owner_keeps_its_shard() {
    let world = settled(None).expect("nothing fails");
    let before = checkpoint(&*world.store, SHARD);
    let refused = world.store.claim(SHARD, LogId([1; 16]), 1).expect_err("another log");
    assert!(
        matches!(&refused, StoreError::Invalid(why) if why.contains("belongs to log")),
        "{refused}"
    );
    assert_eq!(checkpoint(&*world.store, SHARD), before);
}
