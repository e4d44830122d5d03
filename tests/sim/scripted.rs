//! Schedules written down: what chance finds too rarely.

use crate::plants::Plant;
use crate::report::Violation;
use crate::rng::Rng;
use crate::setup::Setup;
use crate::world::World;

fn world(plant: Option<Plant>) -> World {
    let mut rng = Rng::new(1);
    let setup = Setup::calm(&mut rng);
    World::with(setup, rng, plant, false)
}

/// Node 0 claims and waits for the store; node 1 claims, applies and flushes; then node 0 reads the recent ids, among them those of
/// records that it will read from the log, and answers a query whose snapshot still names it as the owner.
fn overtaken_while_loading(plant: Option<Plant>) -> Result<(), Violation> {
    let mut world = world(plant);
    (0..5).try_for_each(|_| world.client())?;
    world.claim(0, 0)?;
    let query = world.snapshot();
    world.claim(1, 0)?;
    (0..2).try_for_each(|_| world.pulse(1, 0, true))?;
    world.deliver(0)?;
    (0..2).try_for_each(|_| if world.nodes[0].shells[0].alive { world.pulse(0, 0, false) } else { Ok(()) })?;
    world.query = Some(query);
    (0..2).try_for_each(|_| world.query())
}

#[test]
fn an_owner_overtaken_while_it_loads_gives_up() {
    assert!(overtaken_while_loading(None).is_ok());
    let found = overtaken_while_loading(Some(Plant::LoadNotChecked)).expect_err("its answer lacks what its successor flushed");
    assert_eq!(found.invariant.id(), "I6", "{found}");
}
