//! The shared cache: used by several engines and stores, losing entries, returning garbage. No
//! answer ever changes.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::persistence::cache::{PartKey, SharedCache};

/// How the shelf misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Faithful,
    Forgetful,
    /// One byte is flipped.
    Damaged,
    /// Returns an entry stored under another name.
    Confused,
    /// Returns fewer answers than names.
    Short,
}

pub(super) struct Shelf {
    kept: Mutex<HashMap<PartKey, Vec<u8>>>,
    mood: Mutex<Mood>,
    given: AtomicU64,
    largest_question: AtomicU64,
}

impl Shelf {
    pub(super) fn new() -> Arc<Self> {
        let (kept, mood) = (Mutex::default(), Mutex::new(Mood::Faithful));
        Arc::new(Self { kept, mood, given: AtomicU64::new(0), largest_question: AtomicU64::new(0) })
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().expect("no panic") = mood;
    }

    pub(super) fn given(&self) -> u64 {
        self.given.load(Ordering::SeqCst)
    }
}

impl SharedCache for Shelf {
    fn get(&self, names: &[PartKey]) -> Vec<Option<Vec<u8>>> {
        self.largest_question.fetch_max(names.len() as u64, Ordering::SeqCst);
        let (kept, mood) =
            (self.kept.lock().expect("no panic"), *self.mood.lock().expect("no panic"));
        let give = |(at, name): (usize, &PartKey)| {
            let mut bytes = kept.get(name).cloned()?;
            match mood {
                Mood::Forgetful => return None,
                Mood::Damaged => {
                    let place = (at * 7 + 20) % bytes.len();
                    bytes[place] ^= 0x40;
                }
                Mood::Confused => bytes = kept.values().find(|other| **other != bytes).cloned()?,
                Mood::Faithful | Mood::Short => {}
            }
            self.given.fetch_add(1, Ordering::SeqCst);
            Some(bytes)
        };
        let mut answers: Vec<_> = names.iter().enumerate().map(give).collect();
        if mood == Mood::Short {
            answers.pop();
        }
        answers
    }

    fn put(&self, name: PartKey, bytes: Vec<u8>) {
        self.kept.lock().expect("no panic").insert(name, bytes);
    }
}

/// A new process on the world's store, with an empty cache of its own.
fn engine(world: &World, cache_bytes: u64, shelf: Option<&Arc<Shelf>>) -> Arc<QueryEngine> {
    let limits = QueryLimits {
        max_points: 1_000_000,
        max_series: 1_000,
        stale_after_ms: 10_000,
        cache_bytes,
    };
    let clock = ManualClock::at(i64::from(START + HOURS - 240) * HOUR_MS);
    let shelf = shelf.map(|shelf| shelf.clone() as Arc<dyn SharedCache>);
    QueryEngine::with_shared_cache(world.store.clone(), Arc::new(Idle), clock, limits, shelf)
}

const QUESTIONS: [(&str, &str, &str); 4] = [
    ("1d", "", "count,sum,distinct"),
    ("1h", "page", "avg,p95"),
    ("all", "country", "min,max"),
    ("1w", "page,country", "p50,distinct"),
];

fn answers(engine: &QueryEngine) -> Vec<String> {
    let ask = |tenant: &str, (step, by, agg): (&str, &str, &str)| {
        let (from, to) = (i64::from(START) * HOUR_MS, i64::from(START + HOURS) * HOUR_MS);
        let params =
            [("metric", "m".to_owned()), ("from", from.to_string()), ("to", to.to_string())];
        let more = [("step", step), ("by", by), ("agg", agg)]
            .map(|(name, value)| (name, value.to_owned()));
        let params = params.into_iter().chain(more).filter(|(_, value)| !value.is_empty());
        let params: Vec<_> = params.map(|(name, value)| (name.to_owned(), value)).collect();
        read_routes::query(engine, tenant, &params, 0, &QueryBudget::default())
            .unwrap_or_else(|why| panic!("{params:?}: {why}"))
    };
    ["t0", "t1"]
        .into_iter()
        .flat_map(|tenant| QUESTIONS.map(|question| ask(tenant, question)))
        .collect()
}

#[test]
fn another_process_finds_the_parts_and_late_events_make_them_unreachable() {
    let (mut world, shelf) = (World::new(7), Shelf::new());
    world.flush(4_000);
    let truth = answers(&engine(&world, 0, None));
    assert_eq!(answers(&engine(&world, 1 << 20, Some(&shelf))), truth);
    assert_eq!(shelf.given(), 0);
    let other = engine(&world, 64 << 20, Some(&shelf));
    assert_eq!(answers(&other), truth);
    let given = shelf.given();
    assert!(given > 200, "{given} parts of the 35 days that are over");
    assert!(shelf.largest_question.load(Ordering::SeqCst) <= 16);
    assert_eq!(answers(&other), truth);
    assert_eq!(shelf.given(), given, "what was found is kept in the process");
    world.flush(3);
    let changed = answers(&engine(&world, 0, None));
    assert_ne!(changed, truth);
    assert_eq!(answers(&engine(&world, 1 << 20, Some(&shelf))), changed);
    assert_eq!(answers(&other), changed);
    assert_eq!(
        answers(&engine(&world, 0, Some(&shelf))),
        changed,
        "without the first there is no second"
    );
}

#[test]
fn what_it_loses_and_the_rubbish_it_gives_changes_no_answer() {
    let (mut world, shelf) = (World::new(8), Shelf::new());
    world.flush(3_000);
    let truth = answers(&engine(&world, 1 << 20, Some(&shelf)));
    for mood in [Mood::Forgetful, Mood::Damaged, Mood::Confused, Mood::Short, Mood::Faithful] {
        shelf.set(mood);
        let before = shelf.given();
        assert_eq!(answers(&engine(&world, 1 << 20, Some(&shelf))), truth, "{mood:?}");
        assert_eq!(shelf.given() > before, mood != Mood::Forgetful, "{mood:?}");
        // The engine has overwritten the damaged entries.
        shelf.set(Mood::Faithful);
        assert_eq!(answers(&engine(&world, 1 << 20, Some(&shelf))), truth, "after {mood:?}");
    }
}

/// Another store of the same log, rebuilt or restored from a backup, so that its epochs start over.
#[test]
fn stores_that_share_it_never_get_each_others_parts() {
    let shelf = Shelf::new();
    let (mut one, mut other) = (World::new(1), World::new(2));
    one.flush(2_000);
    // The nonce of an epoch is random; the test sets it.
    other.nonces = 1 << 32;
    other.flush(2_000);
    for world in [&one, &other, &one, &other] {
        let truth = answers(&engine(world, 0, None));
        assert_eq!(answers(&engine(world, 1 << 20, Some(&shelf))), truth);
    }
}
