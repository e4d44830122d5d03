//! Chaos on the real binary: processes killed, frozen and cut off under retrying clients, and the
//! ledger that nothing may contradict.
//!
//! One seed makes the plan (`ROLLMILL_CHAOS_SEED`, printed). Threads, disks and networks are not
//! deterministic, so a plan gives the same pressure, not the same run. `embedded` kills one node,
//! `cluster` everything that a cluster is made of.

#![allow(clippy::disallowed_methods, clippy::print_stdout)] // real processes take real time, and a run says what it did
#![allow(unreachable_pub, clippy::let_underscore_must_use)] // a test has no outside, and tidies up without asking

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

/// One test at a time: two would share two processors with each other's faults.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed has nothing to say about the next one.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
