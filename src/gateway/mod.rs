//! The gateway: bodies, validation, authentication, admission, HTTP and WebSocket.
//!
//! Invariants: no request is answered with success before the log reports it durable; the tenant
//! comes from the API key alone; every body, queue and connection is bounded; overload is 429 or
//! 503 with `Retry-After`, never another 4xx. If the log or the store fails, the answer says so in
//! the error shape `{"error": {"code", "message", "details"}}`.

mod admin;
pub mod admission;
pub mod auth;
mod beacon;
mod blocking;
mod boards;
mod client_end;
pub mod codes;
mod collect;
mod compression;
mod connections;
mod csv;
mod dashboard;
pub mod decode;
pub mod diff_csv;
pub mod error;
mod extract;
mod fair_pool;
mod frame_tracker;
pub mod ingest;
pub mod interner;
pub mod keys_file;
mod limits;
pub mod msgpack;
pub mod origin_policy;
mod pages;
pub mod params;
pub mod parse;
mod prometheus;
pub mod read_routes;
pub mod render;
mod replays;
pub mod rest_proxy;
mod route_metrics;
pub mod routes;
pub mod server;
pub mod shares;
mod socket;
pub mod starting;
mod write_timeout;
pub mod ws;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::actors::gateway::BatchSink;
use crate::clock::Clock;
use crate::collect::Mapping;
use crate::config::{Config, millis};
use crate::model::event::EventLimits;
use crate::operate::service::{
    BoardService, ExpiryService, QuarantineService, ReplayService, StatusService,
};
use crate::query::service::QueryService;
use crate::telemetry;

/// Whether the node is ready for a role, or for all of its own if `None`; the error says why not.
pub type ReadyCheck = Arc<dyn Fn(Option<&str>) -> Result<(), String> + Send + Sync>;

/// Metric names of a tenant: how many it may use, and how many it uses. `None` on
/// a node without shards.
pub type MetricNameUsage = Arc<dyn Fn(&str) -> Option<(usize, usize)> + Send + Sync>;

/// What the gateway depends on.
pub struct GatewayDeps {
    /// Takes validated batches; `None` on a node without the gateway role.
    pub submit: Option<Arc<dyn BatchSink>>,
    /// Answers queries; calls block the thread.
    pub queries: Arc<dyn QueryService>,
    /// Lists, releases and discards quarantined events.
    pub quarantine: Arc<dyn QuarantineService>,
    /// Which host names the node answers to, and which origins may use it from a browser.
    pub origin_policy: origin_policy::OriginPolicy,
    /// Lists and approves expiries.
    pub expiry: Arc<dyn ExpiryService>,
    /// Starts, compares, applies, undoes and cancels replays.
    pub replays: Arc<dyn ReplayService>,
    /// Lists, shows, makes, changes and deletes boards.
    pub boards: Arc<dyn BoardService>,
    /// API keys; the node swaps the table when the keys file changes.
    pub keys: Arc<ArcSwap<auth::KeyTable>>,
    /// What becomes of the events of SDKs; the node swaps it when its file changes.
    pub mapping: Arc<ArcSwap<Mapping>>,
    /// Source of every limit.
    pub config: Arc<Config>,
    /// Wall time, for timestamps and key expiry; boot time, for the rates of tenants.
    pub clock: Arc<dyn Clock>,
    /// Number of shards in the cluster.
    pub shard_count: u32,
    /// Renders the body of `/metrics`.
    pub render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Answers the status of nodes and shards.
    pub status: Arc<dyn StatusService>,
    /// Decides the answer of `/readyz`.
    pub ready: ReadyCheck,
    /// Serves the usage of metric names to `/v1/limits`.
    pub metric_names: MetricNameUsage,
}

/// The gateway's state, shared by all connections.
pub struct Gateway {
    /// Services and configuration that it was built from.
    pub deps: GatewayDeps,
    event_limits: EventLimits,
    interner: interner::Interner,
    admission: admission::AdmissionControl,
    /// Limits that tenants share.
    pub shares: shares::TenantShares,
    connections: Arc<connections::ConnectionTable>,
    route_metrics: route_metrics::RouteMetrics,
    /// A kept handle: every write increments it.
    events_accepted: metrics::Counter,
    queries: fair_pool::FairPool,
    /// Decompress and parse large bodies.
    readers: fair_pool::FairPool,
    /// Permits for answers that are being compressed.
    compression_permits: Arc<tokio::sync::Semaphore>,
    /// One status at a time, outside of the query pool: it must answer while queries are
    /// overloaded.
    status: tokio::sync::Mutex<()>,
    stopping: tokio::sync::watch::Sender<bool>,
}

/// Bodies from this size on are parsed off the event loop: on it they would delay
/// every other connection's answers.
const LARGE: usize = 1 << 20;
/// The same threshold while several tenants share the node. A body of this size may hold thousands
/// of events, and a tenant must not wait for another's.
const LARGE_AMONG_SEVERAL: usize = 64 << 10;

impl Gateway {
    /// Parses a body. A large one goes to the reader pool, where tenants take turns and threads run
    /// below the priority of the event loop. Fails as `work` does, with 500 if it panics.
    async fn read_in_turn<T: Send + 'static>(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        bytes: usize,
        work: impl FnOnce(&Arc<Self>) -> Result<T, error::ApiError> + Send + 'static,
    ) -> Result<T, error::ApiError> {
        let alone = self.shares.single_tenant().load(std::sync::atomic::Ordering::Relaxed);
        if bytes < if alone { LARGE } else { LARGE_AMONG_SEVERAL } {
            return work(self);
        }
        let gateway = self.clone();
        self.readers.run(tenant, move || work(&gateway)).await.map_err(|_| {
            let message = "reading the body crashed, nothing was kept";
            error::ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
        })?
    }

    /// Builds the gateway from its services.
    pub fn new(deps: GatewayDeps) -> Arc<Self> {
        error::start_counters();
        collect::start_counters();
        let config = &deps.config;
        let shares = shares::TenantShares::new(config, &deps.keys.load());
        shares.start_counters();
        let (max, per_address) =
            (config.server.max_connections, config.server.max_connections_per_address);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (interned, interned_bytes) =
            (config.gateway.max_interned, config.gateway.max_interned_bytes.in_memory());
        let connections =
            connections::ConnectionTable::new(max, per_address, shares.connections.clone());
        Arc::new(Self {
            connections,
            route_metrics: route_metrics::RouteMetrics::default(),
            events_accepted: metrics::counter!(telemetry::EVENTS_ACCEPTED),
            event_limits: EventLimits {
                max_age_ms: millis(config.accept.max_age),
                max_ahead_ms: millis(config.accept.max_ahead),
            },
            interner: interner::Interner::new(deps.shard_count, interned, interned_bytes),
            admission: admission::AdmissionControl::new(&config.tenants, deps.clock.clone()),
            queries: fair_pool::FairPool::new(
                "query",
                10,
                fair_pool::query_threads(config, cores),
                shares.single_tenant().clone(),
            ),
            readers: fair_pool::FairPool::new(
                "reader",
                5,
                cores.max(2),
                shares.single_tenant().clone(),
            ),
            shares,
            compression_permits: Arc::new(tokio::sync::Semaphore::new(
                compression::max_concurrent(),
            )),
            status: tokio::sync::Mutex::new(()),
            stopping: tokio::sync::watch::channel(false).0,
            deps,
        })
    }
}
