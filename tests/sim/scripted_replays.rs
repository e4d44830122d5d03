//! Written schedules of replays, because random ones hit them too rarely.

use rollmill::model::generation::{DayRange, GenerationId};
use rollmill::model::generation_book::NewGeneration;

use crate::fold::{METRIC, TENANTS};
use crate::plants::Plant;
use crate::replay::SimRules;
use crate::report::Violation;
use crate::rng::Rng;
use crate::setup::SimSetup;
use crate::world::SimWorld;

const ONE: GenerationId = GenerationId(1);

/// One owner has applied events of both tenants, of today and of the days before.
fn settled(plant: Option<Plant>, engine: bool) -> Result<SimWorld, Violation> {
    let mut rng = Rng::new(1);
    let setup = SimSetup { late: 500, engine, ..SimSetup::calm(&mut rng) };
    let mut world = SimWorld::with(setup, rng, plant, false);
    (0..30).try_for_each(|_| world.run_client())?;
    world.claim(0, 0)?;
    advance(&mut world)?;
    Ok(world)
}

/// Lets everything that is under way arrive.
fn advance(world: &mut SimWorld) -> Result<(), Violation> {
    for _ in 0..4 {
        world.set_time(world.now + 10);
        world.wake_shard(0, 0, true)?;
        while !world.pending.is_empty() {
            world.deliver(0)?;
        }
        world.run_archiver(0)?;
    }
    Ok(())
}

fn replay_of_all(world: &SimWorld, rules: SimRules) -> NewGeneration {
    NewGeneration {
        tenant: TENANTS[0].to_owned(),
        metrics: vec![METRIC.to_owned()],
        days: DayRange::ALWAYS,
        rules: rules.text(),
        started: (world.now, "sim".to_owned()),
    }
}

/// A replay of the first tenant that is applied.
fn applied(world: &mut SimWorld, rules: SimRules) -> Result<(), Violation> {
    world.start_generation(replay_of_all(world, rules));
    while !world.replays_settled() {
        world.settle_replays(0)?;
        advance(world)?;
    }
    world.apply_replay();
    assert!(world.serves_generation(0), "it is ready");
    world.check_replays()
}

/// A query takes its snapshot while a replay is served. Then that is undone and cancelled, the
/// shard adopts the set without it, and applies events before the query asks it.
fn left_while_a_query_reads(plant: Option<Plant>) -> Result<(), Violation> {
    let mut world = settled(plant, false)?;
    applied(&mut world, SimRules::WithoutA)?;
    let mut query = world.snapshot_of(0, i32::MIN, i32::MAX);
    assert!(world.undo_replay(ONE));
    world.cancel_replay(ONE);
    world.settle_replays(0)?;
    advance(&mut world)?;
    (0..20).try_for_each(|_| world.run_client())?;
    world.wake_shard(0, 0, false)?;
    world.ask_node(&mut query, 0);
    world.judge(query)
}

#[test]
fn a_shard_that_left_what_a_query_reads_says_that_it_has_moved() {
    left_while_a_query_reads(None).unwrap_or_else(|why| panic!("{why}"));
    let found = left_while_a_query_reads(Some(Plant::MovedNotSaid)).expect_err("it is found");
    assert_eq!(found.invariant.id(), "I14", "{found}");
}

/// The set of a replay is adopted by an owner that has nothing else to flush. Then the store fails
/// over to a standby that lacks this commit.
fn adopted_in_vain() -> Result<SimWorld, Violation> {
    let mut world = settled(None, false)?;
    world.start_generation(replay_of_all(&world, SimRules::WithoutA));
    let standby = (world.store.backup(), world.settlements.clone());
    world.settle_replays(0)?;
    advance(&mut world)?;
    assert!(world.has_adopted(0), "the set is adopted");
    world.roll_back(standby)?;
    assert!(!world.has_adopted(0), "the adoption is lost");
    Ok(world)
}

#[test]
fn a_shard_whose_adoption_was_lost_adopts_again() {
    let settles = || -> Result<bool, Violation> {
        let mut world = adopted_in_vain()?;
        for _ in 0..20 {
            world.set_time(world.now + world.setup.limits.flush_interval_ms);
            while !world.pending.is_empty() {
                world.deliver(0)?;
            }
            match world.owns(0, 0) {
                true => world.wake_shard(0, 0, false)?,
                false => world.claim(0, 0)?,
            }
            world.run_archiver(0)?;
            world.settle_replays(0)?;
        }
        Ok(world.replays_settled())
    };
    let settled = settles().unwrap_or_else(|why| panic!("{why}"));
    assert!(settled, "the shard still writes under the set before");
}

/// The engine has answered, and kept closed parts, before and after an apply.
fn applied_between_answers(plant: Option<Plant>) -> Result<(), Violation> {
    let mut world = settled(plant, true)?;
    (0..20).try_for_each(|_| world.ask_engine())?;
    applied(&mut world, SimRules::WithoutA)?;
    (0..20).try_for_each(|_| world.ask_engine())
}

#[test]
fn what_was_kept_before_an_apply_is_not_the_answer_after_it() {
    applied_between_answers(None).unwrap_or_else(|why| panic!("{why}"));
    let found = applied_between_answers(Some(Plant::PointerWithoutRevision));
    let found = found.expect_err("it is found");
    assert_eq!(found.invariant.id(), "I6", "{found}");
}
