//! What a shard does with an event that it dies of while it writes generations.

use super::generation_tests::{Run, canonical, counts, record, set};
use super::*;
use crate::model::flush::{Abandonment, FlushBatch};

const ALL: &str = r#"{"rule": []}"#;
const READ: u64 = 1;
const BUILT: u64 = 2;

fn generations() -> Arc<ActiveSet> {
    set(4, &[(READ, &canonical(ALL), (0, 9)), (BUILT, &canonical(ALL), (0, 9))])
}

/// A shard that has died `deaths` times of the record at offset 1, and whose log goes on behind it.
fn dying(deaths: u32, unserved: &[u64]) -> Run {
    let mut run = Run::at_attempt(7, 9);
    run.0.suspects = vec![SuspectEvent { offset: 1, index: 0, deaths }];
    let admitted = [READ, BUILT].map(|id| (GenerationId(id), Vec::new())).to_vec();
    let adopted = AdoptedGenerations { set: generations(), admitted };
    let unserved = unserved.iter().copied().map(GenerationId).collect();
    run.0 = run.0.with_generations(adopted, 9).with_unserved(unserved);
    run
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
    assert_eq!((counts(&batch), &batch.abandons), (vec![(READ, 1, 0), (BUILT, 1, 0)], &None));
    run.0.mode = ApplyMode::Isolating;
    let batch = isolated(&mut run, 1);
    let generations = vec![GenerationId(BUILT)];
    let abandons = Abandonment { generations, offset: 1, index: 0, at: 5 };
    assert_eq!((counts(&batch), &batch.abandons), (vec![(READ, 1, 0)], &Some(abandons)));
    assert_eq!((batch.quarantined.len(), batch.deltas.len()), (0, 1));
    assert_eq!((batch.set, &batch.adopts), (4, &None));
    assert_eq!(run.0.set().generations(), [GenerationId(READ)], "as readers see it");

    // The set of before the flush is adopted no more, and the one without it begins nothing.
    run.step(ShardInput::NewestSet(set(5, &[(BUILT, ALL, (0, 9)), (3, ALL, (0, 9))])));
    assert!(run.tick(true).is_none());
    let (_, batch) = run.adopt(set(6, &[(READ, ALL, (0, 9))]));
    assert_eq!(batch.adopts, Some(SetAdoption { version: 6, begun: vec![] }));
    assert_eq!(batch.abandons, None, "given up once");
}

#[test]
fn an_event_that_kills_what_is_read_is_set_aside_as_ever() {
    // Either nothing is unserved, or the start without it has died, too.
    for (deaths, unserved) in [(8, &[][..]), (9, &[BUILT])] {
        let mut run = dying(deaths, unserved);
        isolated(&mut run, 0);
        run.0.mode = ApplyMode::Isolating;
        let batch = isolated(&mut run, 1);
        assert_eq!((batch.quarantined.len(), &batch.abandons), (1, &None));
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
    assert!(batch.abandons.is_some() && batch.adopts.is_none());
}
