//! Expiry of weeks on a server, with clocks that the test moves: weeks are dropped a day of
//! observed time after they are due, and no others.

use std::collections::BTreeMap;

use super::timescale::{TestDatabase, run};
use super::*;
use crate::clock::{Clock, SystemClock};
use crate::model::clock::ClockReading;
use crate::model::expiry::ExpiryRules;
use crate::persistence::store::postgres::week_expiry::WeekExpiry;
use crate::persistence::store::{ExpiryTarget, NameRange, StoreDamage};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const KEEP: Duration = Duration::from_secs(60 * 86_400);
const RULES: ExpiryRules =
    ExpiryRules { grace_ms: ExpiryRules::DEFAULT_GRACE_MS, max_at_once: 100 };

/// A node that observes once an hour.
struct Node {
    weeks: WeekExpiry,
    now: ClockReading,
}

impl Node {
    fn new(run: u64, now: ClockReading) -> Self {
        Self { weeks: WeekExpiry::new(run, RULES), now }
    }

    /// Observes as a round of the maintenance does. Returns the number of partitions or chunks
    /// dropped.
    fn look(&mut self, store: &PostgresStore) -> u32 {
        let droppable = store.droppable(&mut self.weeks, self.now, KEEP).expect("a look");
        droppable.map_or(0, |hour| store.drop_before(hour).expect("dropped"))
    }

    /// Lets hours pass. Returns the number of partitions or chunks dropped.
    fn pass(&mut self, store: &PostgresStore, hours: i64) -> u32 {
        let mut dropped = 0;
        for _ in 0..hours {
            self.now = ClockReading {
                wall: self.now.wall + HOUR_MS,
                uptime: self.now.uptime + HOUR_MS,
                ..self.now
            };
            dropped += self.look(store);
        }
        dropped
    }
}

fn rows(store: &PostgresStore) -> BTreeMap<(i32, String), Vec<u8>> {
    let mut rows = BTreeMap::new();
    let mut snapshot = store.snapshot().expect("a snapshot");
    let mut visit = |info: &Arc<SeriesInfo>, hour: Hour, _: Rollup, bytes: &[u8]| {
        rows.insert((hour.0, info.series.label("page").to_owned()), bytes.to_vec());
    };
    snapshot.rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut visit).expect("bytes");
    rows
}

/// A store with two weeks that are due, one that is not due for some days, and the current one.
/// Returns the start of the third week and the time.
fn filled(own: &TestDatabase) -> (Arc<PostgresStore>, i32, ClockReading) {
    let store = PostgresStore::open(&options(&own.url)).expect("a store");
    let wall = SystemClock.now();
    let this_week = Hour::of(wall).0.div_euclid(168) * 168;
    let hours = [this_week - 11 * 168, this_week - 10 * 168 + 167, this_week - 8 * 168, this_week];
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let deltas =
        hours.iter().flat_map(|hour| ["a", "b"].map(|page| delta(page, *hour, 7))).collect();
    store.flush(guard(0, 0, epoch), &batch(deltas), 0).expect("a flush");
    assert_eq!(rows(&store).len(), 8);
    (store, hours[2], ClockReading { wall, uptime: DAY_MS, boot: 7 })
}

/// Asserts that the first two weeks are gone with their sketches, and the others untouched.
fn only_the_due_are_gone(
    own: &TestDatabase,
    store: &PostgresStore,
    before: &BTreeMap<(i32, String), Vec<u8>>,
    third: i32,
) {
    let expected: BTreeMap<_, _> = before
        .iter()
        .filter(|(key, _)| key.0 >= third)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    assert_eq!(rows(store), expected);
    assert_eq!(run(&own.url, "SELECT count(*) FROM rollmill.sketches"), ["4"]);
    let metrics =
        store.snapshot().expect("a snapshot").metrics("acme", &NameRange::ALL).expect("metrics");
    assert_eq!((metrics[0].first, metrics[0].series), (Some(Hour(third)), 2));
    let mut damages: Vec<StoreDamage> = Vec::new();
    store.check(&mut |damage| damages.push(damage)).expect("looks");
    assert_eq!(damages, []);
}

#[test]
fn weeks_go_a_day_of_gathered_time_after_they_are_due_and_nothing_else_goes() {
    for own in TestDatabase::on_each() {
        let (store, third, now) = filled(&own);
        let before = rows(&store);
        let mut node = Node::new(1, now);
        assert_eq!((node.look(&store), node.pass(&store, 20)), (0, 0));
        // Time without an observer does not count, and another node continues from what has
        // accumulated.
        let away = ClockReading {
            wall: node.now.wall + 9 * HOUR_MS,
            uptime: node.now.uptime + 9 * HOUR_MS,
            ..node.now
        };
        let mut second = Node::new(2, away);
        assert_eq!((second.look(&store), second.look(&store), second.pass(&store, 3)), (0, 0, 0));
        assert_eq!(rows(&store), before, "23 hours were seen to pass, 32 have");
        // The first node is back, finds that the other one observes, leaves it to that one, and
        // loses nothing.
        node.now = second.now;
        assert_eq!(node.look(&store), 0);
        assert_eq!(second.pass(&store, 3), 4, "two weeks of two tables");
        only_the_due_are_gone(&own, &store, &before, third);
        assert_eq!(second.pass(&store, 12), 0, "what is not due stays");
        only_the_due_are_gone(&own, &store, &before, third);
    }
}

#[test]
fn a_clock_that_leaps_drops_no_week_until_a_person_says_yes() {
    for own in TestDatabase::on_each() {
        let (store, third, now) = filled(&own);
        let before = rows(&store);
        let mut node = Node::new(1, now);
        assert_eq!(node.look(&store), 0);
        let leap = |node: &mut Node, by: i64| node.now.wall += by;
        leap(&mut node, 400 * DAY_MS);
        assert_eq!((node.pass(&store, 50), rows(&store) == before), (0, true), "ahead");
        leap(&mut node, -430 * DAY_MS);
        assert_eq!((node.pass(&store, 50), rows(&store) == before), (0, true), "and behind");
        // A leap of the clock to a time at which something is due stops the deletion, although this
        // clock is right: only in this test have the hours until here passed.
        leap(&mut node, 30 * DAY_MS - 100 * HOUR_MS);
        assert_eq!((node.pass(&store, 50), rows(&store) == before), (0, true), "and back");
        assert_eq!(store.approve_expiry(&[ExpiryTarget::Weeks], None), Ok(1));
        let dropped = node.pass(&store, 26);
        assert_eq!(dropped, 4, "two weeks of two tables");
        only_the_due_are_gone(&own, &store, &before, third);
    }
}
