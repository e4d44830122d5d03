//! Chaos on the real binary: processes are killed, frozen and cut off under retrying clients, and
//! every result must agree with the ledger.
//!
//! One seed makes the plan (`ROLLMILL_CHAOS_SEED`, printed). Threads, disks and networks are not
//! deterministic, so a plan gives the same pressure, not the same run. `embedded` kills one node,
//! `cluster` every component of a cluster.

// Real processes take real time, and a run prints what it did.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]
// A test has no external callers, and its clean-up is best effort.
#![allow(unreachable_pub, clippy::let_underscore_must_use)]

mod cluster;
mod embedded;
#[path = "../support/kafka.rs"]
mod kafka;
mod ledger;
mod load;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/redis.rs"]
mod redis_server;
mod replays;
#[path = "../support/rng.rs"]
mod rng;
#[path = "../support/s3.rs"]
mod s3;
#[path = "../support/s3_process.rs"]
mod s3_process;
#[path = "../support/mod.rs"]
mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis() as i64
}

/// Runs one test at a time: two would share two processors and disturb each other's timing.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A failed test poisons the mutex, which says nothing about the next test.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
