//! The store on a real PostgreSQL that belongs to the tests, and on a TimescaleDB if
//! `ROLLMILL_TEST_TIMESCALE_URL` names one.
#![allow(clippy::disallowed_methods)] // real servers are waited for in real time

mod backup;
mod expiry;
mod faults;
mod generations;
mod long;
mod outcomes;
mod parity;
mod partitions;
mod roles;
mod sizes;
mod takeover;
pub(in crate::persistence::store) mod timescale;
mod tls;
mod views;

#[path = "../../../../../tests/support/postgres.rs"]
pub(in crate::persistence::store) mod server;

#[path = "../../../../../tests/support/proxy.rs"]
mod proxy;
#[path = "../../../../../tests/support/rng.rs"]
mod rng;

use std::sync::Arc;
use std::time::Duration;

use super::{PostgresOptions, PostgresStore};
use crate::model::decimal::Decimal;
use crate::model::flush::{AccountingDelta, Delta, FlushBatch, FlushGuard, SeriesInfo};
use crate::model::offset::{Epoch, LogId, OffsetRange, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;
use crate::persistence::store::{
    ManifestStore, QuerySource, RollupStore, ShardStore, SnapshotSource, StoreInspection,
};

const LOG: LogId = LogId([7; 16]);

/// Time limits short enough for tests, and long enough for a machine under load.
pub(in crate::persistence::store) fn options(url: &str) -> PostgresOptions {
    PostgresOptions {
        url: url.to_owned(),
        read_url: None,
        node: "test".to_owned(),
        flush_connections: 4,
        read_connections: 4,
        connect_timeout: Duration::from_secs(10),
        timeout: Duration::from_secs(30),
        compress_timeout: Duration::from_secs(120),
        lock_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(20),
        tls_ca: None,
        match_cache: crate::persistence::store::DEFAULT_MATCH_CACHE,
    }
}

/// A store on an empty database of the shared server.
pub(in crate::persistence::store) fn store() -> (Arc<PostgresStore>, String) {
    let server = server::shared();
    let url = server.url(&server.database());
    (PostgresStore::open(&options(&url)).expect("a store"), url)
}

fn info(page: &str) -> Arc<SeriesInfo> {
    let series = Series::new("acme", "views", [("page".to_owned(), page.to_owned())]);
    Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series })
}

fn delta(page: &str, hour: i32, units: i128) -> Delta {
    let mut rollup = Rollup::default();
    rollup.add(Some(Decimal::from_units(units)), Some(units as u64));
    Delta { series: info(page), hour: Hour(hour), rollup }
}

fn batch(deltas: Vec<Delta>) -> FlushBatch {
    let accounting = AccountingDelta {
        tenant: "acme".into(),
        hour: Hour(5),
        aggregated: 1,
        deduplicated: 0,
        quarantined: 0,
    };
    FlushBatch { deltas, accounting: vec![accounting], ..FlushBatch::default() }
}

fn guard(shard: u32, from: u64, epoch: Epoch) -> FlushGuard {
    FlushGuard { shard: ShardId(shard), log: LOG, range: OffsetRange { from, to: from + 1 }, epoch }
}

/// The next offset of a shard, and the number of events in all rollups.
fn state(store: &dyn RollupStore, shard: u32) -> (u64, u64) {
    let mut snapshot = store.snapshot().expect("a snapshot");
    let checkpoints = snapshot.checkpoints().expect("checkpoints");
    let next = checkpoints.iter().find(|(no, _)| no.0 == shard).map_or(0, |(_, at)| at.next);
    let mut count = 0;
    snapshot
        .rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut |_, _, rollup, _| {
            count += rollup.figures.count
        })
        .expect("rollups");
    (next, count)
}
