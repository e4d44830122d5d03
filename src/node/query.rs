//! The query role: the engine over store and live deltas, quarantine, expiry, replays, and a
//! periodic probe of the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures::future::BoxFuture;

use super::{NodePorts, backends, limits};
use crate::actors::live::LiveReader;
use crate::config::Config;
use crate::operate::boards::StoreBoards;
use crate::operate::expiry::StoreExpiry;
use crate::operate::quarantine::StoreQuarantine;
use crate::operate::replays::{StoreReplays, UndecidableDays};
use crate::operate::service::{
    BoardService, ExpiryService, FillWaits, OperateError, QuarantineService, ReplayService,
};
use crate::operate::without_store::NoStore;
use crate::persistence::archive::Archive;
use crate::persistence::store::{RollupStore, SnapshotSource};
use crate::query::engine::QueryEngine;
use crate::query::service::QueryService;
use crate::query::without_role::NoQueries;
use crate::recompute::replay::undecided::{hidden_objects, undecidable_days};
use crate::shards::state::ShardLimits;

/// Interval between probes of the store.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// A store that takes longer than this counts as down.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node answers queries with, with or without the query role.
#[allow(missing_docs, reason = "the names say it")]
pub(super) struct QueryRole {
    pub service: Arc<dyn QueryService>,
    pub quarantine: Arc<dyn QuarantineService>,
    pub expiry: Arc<dyn ExpiryService>,
    pub replays: Arc<dyn ReplayService>,
    pub boards: Arc<dyn BoardService>,
    /// Whether the store answered the last probe.
    pub store: Arc<AtomicBool>,
    /// Keeps `store` up to date; None without the role.
    pub probe: Option<BoxFuture<'static, ()>>,
}
pub(super) fn role(
    config: &Config,
    ports: &NodePorts,
    live: Arc<dyn LiveReader>,
    shard_limits: ShardLimits,
    waits: Arc<dyn FillWaits>,
) -> anyhow::Result<QueryRole> {
    let store = ports.store.clone().context("the role query needs a store")?;
    let reachable = Arc::new(AtomicBool::new(true));
    let second = backends::shared_cache(config)?;
    let horizon_ms = shard_limits.dedup_horizon_ms;
    let archive = ports.archive.clone();
    let find_undecidable = archive.map(|archive| undecidable(store.clone(), archive, horizon_ms));
    Ok(QueryRole {
        service: QueryEngine::with_shared_cache(
            store.clone(),
            live,
            ports.clock.clone(),
            limits::query(config),
            second,
        ),
        quarantine: StoreQuarantine::new(store.clone(), shard_limits),
        expiry: StoreExpiry::new(store.clone()),
        replays: StoreReplays::new(
            store.clone(),
            find_undecidable,
            ports.clock.clone(),
            limits::replays(config, ports.log.shard_count()),
            waits,
        ),
        boards: StoreBoards::new(store.clone(), ports.clock.clone(), limits::boards(config)),
        probe: Some(Box::pin(probe(store, reachable.clone()))),
        store: reachable,
    })
}

/// Days of whose events store and archive cannot say what became of them. `horizon_ms` is the
/// configured `dedup.horizon`.
fn undecidable(
    store: Arc<dyn RollupStore>,
    archive: Arc<dyn Archive>,
    horizon_ms: i64,
) -> UndecidableDays {
    Arc::new(move |days, budget| {
        let mut snapshot = store.snapshot_for(budget)?;
        let hidden = hidden_objects(&mut *snapshot, days, horizon_ms)?;
        // Objects are read without it.
        drop(snapshot);
        undecidable_days(&*archive, &hidden).map_err(|why| {
            OperateError::ReplayRefused(format!(
                "an object of these days cannot be read, so it is not known whether they can be \
                 replayed: {why}"
            ))
        })
    })
}

/// Stands in for the role on nodes that do not have it: every request is refused.
pub(super) fn absent() -> QueryRole {
    let store = Arc::new(AtomicBool::new(false));
    QueryRole {
        service: Arc::new(NoQueries),
        quarantine: Arc::new(NoStore),
        expiry: Arc::new(NoStore),
        replays: Arc::new(NoStore),
        boards: Arc::new(NoStore),
        store,
        probe: None,
    }
}

async fn probe(store: Arc<dyn SnapshotSource>, reachable: Arc<AtomicBool>) {
    loop {
        let asked = store.clone();
        let mut asking = tokio::task::spawn_blocking(move || {
            asked.snapshot().and_then(|mut s| s.checkpoints()).map(|all| all.len())
        });
        let in_time = tokio::time::timeout(PROBE_TIMEOUT, &mut asking).await;
        let answered = matches!(in_time, Ok(Ok(Ok(_))));
        // Logged at the transition only, not at every failing probe.
        if reachable.swap(answered, Ordering::AcqRel) && !answered {
            let answer = &in_time;
            tracing::warn!(?answer, "the store does not answer: queries fail until it does");
        }
        if in_time.is_err() {
            // Wait for this probe: a hanging store would otherwise collect one blocked thread per
            // probe.
            reachable.store(matches!(asking.await, Ok(Ok(_))), Ordering::Release);
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}
