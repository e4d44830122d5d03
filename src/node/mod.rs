//! The composition root: what a node is made of, and how it starts and stops.

pub mod backends;
pub mod keys;
pub mod lock;
pub mod offline;
pub mod tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ractor::ActorRef;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::actors::archiver::{ArchiveLimits, Archiver};
use crate::actors::gateway_pool::{GatewayActor, GatewayPool};
use crate::actors::pulse::{self, ShardRefs};
use crate::actors::shard::{ShardActor, ShardMessage};
use crate::actors::slots::Slots;
use crate::actors::upkeep::{Upkeep, UpkeepLimits};
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::config::Config;
use crate::gateway::{Gateway, GatewayDeps, GatewayLimits, server};
use crate::model::event::EventLimits;
use crate::model::offset::{Diverged, continues};
use crate::persistence::log::EventLog;
use crate::persistence::store::RollupStore;
use crate::query::engine::{QueryEngine, QueryLimits};
use crate::query::quarantine::Quarantine;
use crate::shards::state::ShardLimits;
use crate::supervision::policy::RestartPolicy;

/// Everything that is still open after this at a stop waits in the log for the next start.
const DRAIN: Duration = Duration::from_millis(500);

/// Where the parts of an embedded node are kept.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Below this directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }
    /// The root.
    pub fn root(&self) -> &Path {
        &self.0
    }
    /// The log.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    /// The store.
    pub fn store(&self) -> PathBuf {
        self.0.join("store.sqlite")
    }
    /// The archive.
    pub fn archive(&self) -> PathBuf {
        self.0.join("archive")
    }
}

/// Faults for tests of a whole node; a node of the command line has none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Folding an event of the user with this hash panics.
    pub panic_on_user: Option<u64>,
}

/// Runs a node until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start: names the thing and the way out.
pub fn serve(config: &Config) -> anyhow::Result<()> {
    serve_with(config, Faults::default())
}

/// As [`serve`], with faults.
///
/// # Errors
/// As [`serve`].
pub fn serve_with(config: &Config, faults: Faults) -> anyhow::Result<()> {
    let data = DataDir::new(config.text("data.dir"));
    let _lock = lock::lock(data.root())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(run(config, &data, faults))
}

async fn run(config: &Config, data: &DataDir, faults: Faults) -> anyhow::Result<()> {
    let started = Stopwatch::start();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let prometheus = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().context("cannot record metrics")?;
    let keys = keys::load(config)?;
    let listener = listen(config, keys.is_open()).await?;
    let log = backends::log(config, data, &clock)?;
    let store = backends::store(data)?;
    check_log(data, log.as_ref(), store.as_ref())?;
    let slots = Slots::new(log.clone(), clock.clone());
    let gateways = tree::places(config.number("gateway.actors") as usize);
    let shard_refs: ShardRefs = tree::places(slots.iter().count());
    let limits = shard_limits(config, faults);

    let archive = backends::archive(config, data)?;
    let gateway_id = getrandom::u32().map_err(|e| anyhow::anyhow!("no randomness for the gateway's id: {e}"))?;
    let parts = tree::TreeParts {
        gateway: GatewayActor { log: log.clone(), gateway: gateway_id },
        gateways: gateways.clone(),
        shards: shards(config, &limits, &log, &store, &slots, &clock),
        shard_refs: shard_refs.clone(),
        archiver: Archiver {
            log: log.clone(),
            store: store.clone(),
            archive: archive.clone(),
            clock: clock.clone(),
            limits: ArchiveLimits {
                max_bytes: config.number("archive.max_bytes"),
                max_delay_ms: config.millis("archive.max_delay"),
            },
            slots: slots.clone(),
        },
        upkeep: Upkeep {
            log: log.id(),
            store: store.clone(),
            archive,
            clock: clock.clone(),
            limits: UpkeepLimits { cold_after_ms: config.millis("archive.cold_after"), keep_ms: config.millis("archive.keep") },
            slots: slots.clone(),
        },
        policy: restart_policy(config),
        clock: clock.clone(),
    };
    let (root, mut tree_ended) = tree::start(parts).await?;
    let interval = config.duration("shards.pull_interval");
    let pulse = tokio::spawn(pulse::run(shard_refs.clone(), slots.clone(), log.clone(), clock.clone(), interval));

    let second = backends::second_cache(config)?;
    let queries = QueryEngine::with_second_cache(store.clone(), slots.clone(), clock.clone(), query_limits(config), second);
    let stale_after = config.millis("query.stale_after");
    let ready_slots = slots.clone();
    let gateway = Gateway::new(GatewayDeps {
        submit: GatewayPool::new(gateways),
        queries,
        quarantine: Quarantine::new(store.clone(), limits),
        keys: keys.table.clone(),
        limits: gateway_limits(config),
        clock: clock.clone(),
        shard_count: log.shard_count(),
        render_metrics: Arc::new(move || prometheus.render()),
        ready: Arc::new(move || ready_slots.all_fresh(stale_after)),
    });
    let watching = tokio::spawn(keys.watch());
    let (stop, stopping) = watch::channel(false);
    let address = listener.local_addr().context("cannot read the listening address")?;
    let serving = tokio::spawn(server::serve(gateway, listener, stopping));
    tracing::info!(%address, data = %data.root().display(), startup_ms = started.elapsed().as_millis() as u64, "serving");

    let outcome = tokio::select! {
        signal = stop_signal() => signal,
        _ = &mut tree_ended => Err(anyhow::anyhow!("the supervision tree gave up: see the log for what failed too often")),
    };
    tracing::info!("stopping");
    stop.send_replace(true);
    if tokio::time::timeout(Duration::from_secs(10), serving).await.is_err() {
        tracing::warn!("some connections did not end within 10 s and are cut");
    }
    pulse.abort();
    watching.abort();
    drain(&shard_refs).await;
    root.stop(None);
    tokio::task::spawn_blocking(move || log.close()).await.context("closing the log")?;
    outcome
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupt = tokio::signal::ctrl_c() => interrupt.context("cannot listen for Ctrl-C"),
    }
}

/// Asks every shard for a last flush; what does not end in time is still in the log.
async fn drain(refs: &ShardRefs) {
    let all = refs.iter().filter_map(|place| place.load_full()).map(|actor: Arc<ActorRef<ShardMessage>>| async move {
        actor.call(ShardMessage::Drain, Some(DRAIN)).await.is_ok_and(|reply| reply.is_success())
    });
    let drained = futures::future::join_all(all).await;
    let late = drained.iter().filter(|done| !**done).count();
    if late > 0 {
        tracing::info!(shards = late, "shards did not flush in time; the log holds the rest");
    }
}

/// Binds; without API keys to loopback only.
async fn listen(config: &Config, open: bool) -> anyhow::Result<TcpListener> {
    let address = config.text("server.listen");
    let resolved: Vec<_> = tokio::net::lookup_host(address)
        .await
        .with_context(|| format!("cannot resolve {address}: --listen takes HOST:PORT"))?
        .collect();
    if open && resolved.iter().any(|a| !a.ip().is_loopback()) {
        bail!(
            "{address} can be reached from other machines, but there are no API keys: make some with `rollmill keys add` and set \
             auth.keys_file, or listen on 127.0.0.1"
        );
    }
    TcpListener::bind(&resolved[..]).await.with_context(|| {
        format!("cannot listen on {address}: is another process there? stop it, or choose another address with --listen")
    })
}

/// A log that does not continue where the store stands must not take a single write: it would grow over what it lost, and its shards
/// would take the new records for those that are already in the store.
fn check_log(data: &DataDir, log: &dyn EventLog, store: &dyn RollupStore) -> anyhow::Result<()> {
    for (shard, checkpoint) in store.snapshot()?.checkpoints()? {
        let (expected, found) = (checkpoint.log, log.id());
        let continued = match expected == found {
            true => continues(checkpoint.next, log.start(shard), log.end(shard)),
            false => Err(Diverged::OtherLog { expected, found }),
        };
        continued.with_context(|| {
            format!(
                "shard {shard} cannot go on: {} and {} are not of the same moment; put back the log that belongs to the store, or \
                 the store that belongs to the log, or start with an empty data directory",
                data.log().display(),
                data.store().display()
            )
        })?;
    }
    Ok(())
}

fn shard_limits(config: &Config, faults: Faults) -> ShardLimits {
    ShardLimits {
        dedup_horizon_ms: config.millis("dedup.horizon"),
        dedup_max_ids: config.number("dedup.max_ids") as usize,
        flush_interval_ms: config.millis("flush.interval"),
        max_delta_bytes: (config.number("flush.max_delta_bytes") / config.number("shards.count")) as usize,
        keep_flushed_ms: config.millis("query.deadline"),
        panic_on_user: faults.panic_on_user,
    }
}

fn shards(
    config: &Config,
    limits: &ShardLimits,
    log: &Arc<dyn EventLog>,
    store: &Arc<dyn RollupStore>,
    slots: &Arc<Slots>,
    clock: &Arc<dyn Clock>,
) -> Vec<ShardActor> {
    let count = u64::from(log.shard_count());
    let alone = Arc::new(tokio::sync::Semaphore::new(1));
    let shard = |(shard, _)| ShardActor {
        shard,
        log: log.clone(),
        store: store.clone(),
        clock: clock.clone(),
        limits: limits.clone(),
        max_series: config.number("tenants.max_series").div_ceil(count),
        alone: alone.clone(),
        slots: slots.clone(),
    };
    slots.iter().map(shard).collect()
}

fn restart_policy(config: &Config) -> RestartPolicy {
    RestartPolicy {
        max_restarts: config.number("supervision.max_restarts") as u32,
        window_ms: config.millis("supervision.restart_window"),
        backoff_min_ms: config.millis("supervision.backoff_min"),
        backoff_max_ms: config.millis("supervision.backoff_max"),
        escalates: true,
    }
}

fn query_limits(config: &Config) -> QueryLimits {
    QueryLimits {
        max_points: config.number("query.max_points") as usize,
        max_series: config.number("query.max_series") as usize,
        stale_after_ms: config.millis("query.stale_after"),
        cache_bytes: config.number("query.cache"),
    }
}

fn gateway_limits(config: &Config) -> GatewayLimits {
    GatewayLimits {
        event: EventLimits {
            max_age_ms: config.millis("accept.max_age"),
            max_ahead_ms: config.millis("accept.max_ahead"),
            max_event_bytes: config.number("accept.max_event_bytes") as usize,
        },
        max_events: config.number("accept.max_events") as usize,
        max_body_bytes: config.number("accept.max_body") as usize,
        max_inflight_bytes: config.number("accept.max_inflight") as usize,
        max_connections: config.number("server.max_connections") as usize,
        header_timeout: config.duration("server.header_timeout"),
        body_timeout: config.duration("server.body_timeout"),
        append_timeout: config.duration("gateway.append_timeout"),
        events_per_second: config.number("tenants.max_events_per_second"),
        burst: config.number("tenants.burst"),
        max_interned: config.number("gateway.max_interned") as usize,
        max_interned_bytes: config.number("gateway.max_interned_bytes") as usize,
        max_queries: config.number("query.max_concurrent") as usize,
        ws_window: config.number("ws.window") as usize,
        ws_max_message_bytes: config.number("ws.max_message") as usize,
        ws_max_subscriptions: config.number("ws.max_subscriptions") as usize,
        ws_update_interval: config.duration("ws.update_interval"),
        ws_idle_timeout: config.duration("ws.idle_timeout"),
        dedup_horizon_ms: config.millis("dedup.horizon"),
        dedup_max_ids: config.number("dedup.max_ids"),
    }
}
