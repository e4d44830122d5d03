//! Deterministic simulation of the embedded core: the real shard driver, shard table, archiver and
//! record encoding, on doubles of log, store and archive that fail as badly as their ports allow.
//! One seed is one schedule; the same seed always gives the same schedule.
//!
//! `ROLLMILL_SIM_SEEDS=1000000 cargo test --test sim` runs more seeds, `ROLLMILL_SIM_SEED=7` runs
//! one seed and prints its trace.
// A test crate exports nothing, and its clean-up may ignore results.
#![allow(unreachable_pub, clippy::let_underscore_must_use)]

mod checks;
mod client;
mod doubles;
mod engine;
mod fold;
mod node;
mod plants;
mod query;
mod releases;
mod replay;
mod replay_checks;
mod report;
mod rng;
mod scripted;
mod scripted_replays;
mod setup;
mod walk;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};

use plants::Plant;
use report::{RunStats, Violation};
use rollmill::clock::Stopwatch;

/// Schedules consist of small maps, so half of their time is allocation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Schedules per run, unless `ROLLMILL_SIM_SEEDS` says otherwise.
const SEEDS: u64 = 200_000;
/// Seeds within which a planted bug has to be found.
const BOUND: u64 = 20_000;
/// Findings after which no more seeds are tried for a planted bug.
const ENOUGH: usize = 50;

/// Violations that are listed beside the first one.
const SHOWN: usize = 40;

/// Silences the panics of poison events, which would drown all other output.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload_as_str().is_some_and(|why| why.contains("panic_on_user")) {
                loud(info);
            }
        }));
    });
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Runs the seeds on all cores. Returns the sum of the statistics and the violations by seed.
fn run_all(seeds: std::ops::Range<u64>, plant: Option<Plant>) -> (RunStats, Vec<(u64, Violation)>) {
    quiet();
    let (next, sums) = (AtomicU64::new(seeds.start), Mutex::new((RunStats::default(), Vec::new())));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let (mut stats, mut found) = (RunStats::default(), Vec::new());
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let outcome = world::run(seed, plant, false);
                    stats.add(&outcome.stats);
                    found.extend(outcome.violation.map(|violation| (seed, violation)));
                }
                let mut sums = sums.lock().expect("whole");
                sums.0.add(&stats);
                sums.1.append(&mut found);
            });
        }
    });
    let (stats, mut found) = sums.into_inner().expect("whole");
    found.sort_by_key(|(seed, _)| *seed);
    (stats, found)
}

/// What happens under a seed, one line per step.
fn trace(seed: u64, plant: Option<Plant>) -> String {
    quiet();
    let outcome = world::run(seed, plant, true);
    let end = outcome.violation.map_or("no violation".to_owned(), |v| v.to_string());
    format!("{}\nseed {seed}: {end}", outcome.trace.join("\n"))
}

#[test]
fn no_schedule_violates_an_invariant() {
    if let Some(seed) = number("ROLLMILL_SIM_SEED") {
        let outcome = world::run(seed, None, false);
        println!("{}", trace(seed, None));
        assert!(outcome.violation.is_none());
        return;
    }
    let started = Stopwatch::start();
    let seeds = number("ROLLMILL_SIM_SEEDS").unwrap_or(SEEDS);
    let (stats, found) = run_all(0..seeds, None);
    println!("simulation: {stats}  {} violations, {:.1?}", found.len(), started.elapsed());
    for (seed, violation) in found.iter().take(SHOWN) {
        println!("seed {seed}: {}", violation.to_string().lines().next().unwrap_or_default());
    }
    if let Some((seed, violation)) = found.first() {
        println!("{}", trace(*seed, None));
        panic!(
            "{} of {seeds} schedules violate an invariant; ROLLMILL_SIM_SEED={seed} shows \
             {violation}",
            found.len()
        );
    }
    if seeds >= 10_000 {
        assert!(stats.vacuous().is_empty(), "never had an effect: {:?}", stats.vacuous());
    }
}

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for plant in Plant::ALL.iter().filter(|plant| !plant.is_rare()) {
        let (mut seeds, mut found) = (0, Vec::new());
        while seeds < BOUND && found.len() < ENOUGH {
            found.append(&mut run_all(seeds..seeds + 500, Some(*plant)).1);
            seeds += 500;
        }
        let mut by: Vec<&str> = found.iter().map(|(_, v)| v.invariant.id()).collect();
        by.sort_unstable();
        by.dedup();
        let share = found.len() as f64 * 100.0 / seeds as f64;
        let first =
            found.first().map_or("never".to_owned(), |(seed, _)| format!("first by seed {seed}"));
        println!(
            "{share:>6.2} % of {seeds:>5} {first:<20} {:<12} {:?}: {}",
            by.join(" "),
            plant.place(),
            plant.text()
        );
        if found.is_empty() {
            missed.push(plant.text());
        }
    }
    assert!(missed.is_empty(), "not found within {BOUND} seeds: {missed:?}");
}

#[test]
fn a_seed_is_a_schedule() {
    quiet();
    for seed in 0..50 {
        assert_eq!(world::run(seed, None, true).trace, world::run(seed, None, true).trace);
    }
}
