//! What a shard does with an event that it dies of while it writes generations.

use super::generation_tests::{Run, canonical, counts, record, record_of, set};
use super::*;
use crate::model::flush::{Abandonment, FlushBatch};
use crate::model::generation::{DayRange, MaintainedRange, MaintainedSet};

const ALL: &str = r#"{"rule": []}"#;
const READ: u64 = 1;
const BUILT: u64 = 2;

fn generations() -> Arc<ActiveSet> {
    set(4, &[(READ, &canonical(ALL), (0, 9)), (BUILT, &canonical(ALL), (0, 9))])
}

/// A shard that has died `deaths` times of the record at offset 1, and whose log goes on behind it.
fn dying(deaths: u32, unserved: &[u64]) -> Run {
    dying_under(generations(), &[deaths], unserved)
}

/// The same under another set, with the deaths of each event of the record.
fn dying_under(set: Arc<ActiveSet>, deaths: &[u32], unserved: &[u64]) -> Run {
    let mut run = Run::at_attempt(7, 9);
    let suspect = |(index, deaths): (usize, &u32)| SuspectEvent {
        offset: 1,
        index: index as u32,
        deaths: *deaths,
    };
    run.0.suspects = deaths.iter().enumerate().map(suspect).collect();
    let admitted = set.generations().into_iter().map(|id| (id, Vec::new())).collect();
    let unserved = unserved.iter().copied().map(GenerationId).collect();
    run.0 = run.0.with_generations(AdoptedGenerations { set, admitted }, 9).with_unserved(unserved);
    run
}

/// A set of generations: tenant, metric and days of each.
fn set_of(ranges: &[(u64, &str, &str, (i32, i32))]) -> Arc<ActiveSet> {
    let range = |&(generation, tenant, metric, (from, to)): &(u64, &str, &str, _)| {
        let (tenant, metric) = (tenant.to_owned(), metric.to_owned());
        let days = DayRange::new(from, Some(to)).expect("days");
        let (generation, rules) = (GenerationId(generation), canonical(ALL));
        MaintainedRange { tenant, metric, days, generation, rules }
    };
    let ranges = ranges.iter().map(range).collect();
    Arc::new(ActiveSet::compile(&MaintainedSet { version: 4, ranges }).expect("compiles"))
}

fn abandonment(generation: u64, metric: &str, index: u32) -> Abandonment {
    let (generations, metric) = (vec![GenerationId(generation)], metric.to_owned());
    Abandonment { generations, metric, offset: 1, index, at: 5 }
}

/// Applies a record of several events, one by one.
fn isolated_events(run: &mut Run, record: LogRecord, events: usize) -> Arc<FlushBatch> {
    run.0.mode = ApplyMode::Isolating;
    run.feed(&[record]);
    (0..events).for_each(|_| run.feed(&[]));
    run.flush().1
}

/// Applies a record alone, and returns the flush of it.
fn isolated(run: &mut Run, offset: Offset) -> Arc<FlushBatch> {
    run.feed(&[record(offset, "m", "a", 1)]);
    run.feed(&[]);
    run.flush().1
}

#[test]
fn an_event_costs_a_replay_that_nobody_reads_and_is_counted() {
    let mut run = dying(8, &[BUILT]);
    let batch = isolated(&mut run, 0);
    assert_eq!((counts(&batch), &batch.abandons), (vec![(READ, 1, 0), (BUILT, 1, 0)], &vec![]));
    run.0.mode = ApplyMode::Isolating;
    let batch = isolated(&mut run, 1);
    let abandons = vec![abandonment(BUILT, "m", 0)];
    assert_eq!((counts(&batch), &batch.abandons), (vec![(READ, 1, 0)], &abandons));
    assert_eq!((batch.quarantined.len(), batch.deltas.len()), (0, 1));
    assert_eq!((batch.set, &batch.adopts), (4, &None));
    assert_eq!(run.0.set().generations(), [GenerationId(READ)], "as readers see it");

    // The set of before the flush is adopted no more, and the one without it begins nothing.
    run.step(ShardInput::NewestSet(set(5, &[(BUILT, ALL, (0, 9)), (3, ALL, (0, 9))])));
    assert!(run.tick(true).is_none());
    let (_, batch) = run.adopt(set(6, &[(READ, ALL, (0, 9))]));
    assert_eq!(batch.adopts, Some(SetAdoption { version: 6, begun: vec![] }));
    assert_eq!(batch.abandons, [], "given up once");
}

#[test]
fn an_event_that_kills_what_is_read_is_set_aside_as_ever() {
    // Either nothing is unserved, or the start without it has died, too.
    for (deaths, unserved) in [(8, &[][..]), (9, &[BUILT])] {
        let mut run = dying(deaths, unserved);
        isolated(&mut run, 0);
        run.0.mode = ApplyMode::Isolating;
        let batch = isolated(&mut run, 1);
        assert_eq!((batch.quarantined.len(), &batch.abandons), (1, &vec![]));
        assert_eq!(counts(&batch), []);
        assert_eq!(counts(&isolated(&mut run, 2)), [(READ, 1, 0), (BUILT, 1, 0)]);
    }
}

#[test]
fn a_set_of_before_waits_for_no_flush_either() {
    let mut run = dying(8, &[BUILT]);
    isolated(&mut run, 0);
    run.0.mode = ApplyMode::Isolating;
    run.feed(&[record(1, "m", "a", 1)]);
    run.step(ShardInput::NewestSet(set(5, &[(BUILT, ALL, (0, 9))])));
    run.feed(&[]);
    let (_, batch) = run.flush();
    assert!(batch.abandons.len() == 1 && batch.adopts.is_none());
}

#[test]
fn an_event_costs_no_replay_that_it_is_not_folded_into() {
    const OTHER_DAYS: u64 = 3;
    const OTHER_METRIC: u64 = 4;
    const OTHER_TENANT: u64 = 5;
    let set = set_of(&[
        (READ, "t", "m", (0, 9)),
        (BUILT, "t", "m", (0, 9)),
        (OTHER_DAYS, "t", "m", (9, 20)),
        (OTHER_METRIC, "t", "n", (0, 9)),
        (OTHER_TENANT, "u", "m", (0, 9)),
    ]);
    let others = [OTHER_DAYS, OTHER_METRIC, OTHER_TENANT];
    let mut run = dying_under(set.clone(), &[8], &[BUILT, OTHER_DAYS, OTHER_METRIC, OTHER_TENANT]);
    isolated(&mut run, 0);
    let batch = isolated_events(&mut run, record(1, "m", "a", 1), 1);
    assert_eq!(batch.abandons, [abandonment(BUILT, "m", 0)]);
    let why = batch.abandons[0].reason(ShardId(3));
    assert!(
        why.starts_with("shard 3 died each time it applied an event of m (event 0 of"),
        "{why}"
    );
    let left = [READ].into_iter().chain(others).map(GenerationId);
    assert_eq!(run.0.set().generations(), left.collect::<Vec<_>>());
    // Another tenant's is written as before, and so are the other days and metrics.
    run.feed(&[record_of(2, "u", &[("m", "a", 1)])]);
    assert_eq!(counts(&run.flush().1), [(OTHER_TENANT, 1, 0)]);
    run.feed(&[record_of(3, "t", &[("m", "a", 9 * 24), ("n", "a", 1), ("m", "a", 1)])]);
    let batch = run.flush().1;
    assert_eq!(counts(&batch), [(READ, 1, 0), (OTHER_DAYS, 1, 0), (OTHER_METRIC, 1, 0)]);
    assert_eq!(batch.abandons, []);

    // Where others alone are unserved, the event is set aside as if there were none.
    let mut run = dying_under(set, &[8], &others);
    isolated(&mut run, 0);
    let batch = isolated_events(&mut run, record(1, "m", "a", 1), 1);
    assert_eq!((batch.quarantined.len(), &batch.abandons), (1, &vec![]));
}

#[test]
fn each_event_of_a_record_costs_its_own_replay() {
    const BUILT_TOO: u64 = 3;
    let set = set_of(&[(BUILT, "t", "m", (0, 9)), (BUILT_TOO, "t", "n", (0, 9))]);
    let events = [("m", "a", 1), ("n", "a", 1), ("m", "b", 1)];
    // The third died eight times, too, before the first had: it is not sure to die without the
    // generation that the first gives up.
    let mut run = dying_under(set.clone(), &[8, 8, 8], &[BUILT, BUILT_TOO]);
    isolated(&mut run, 0);
    let batch = isolated_events(&mut run, record_of(1, "t", &events), 3);
    assert_eq!(batch.abandons, [abandonment(BUILT, "m", 0), abandonment(BUILT_TOO, "n", 1)]);
    assert_eq!((batch.quarantined.len(), batch.deltas.len(), counts(&batch)), (0, 3, vec![]));
    assert!(run.0.set().is_empty());

    // It has one such start, like any other event.
    let mut run = dying_under(set, &[8, 0, 9], &[BUILT, BUILT_TOO]);
    isolated(&mut run, 0);
    let batch = isolated_events(&mut run, record_of(1, "t", &events), 3);
    assert_eq!((batch.quarantined.len(), &batch.abandons), (1, &vec![abandonment(BUILT, "m", 0)]));
    assert_eq!(counts(&batch), [(BUILT_TOO, 1, 0)]);
}
