//! The edge: bodies, validation, authentication, admission, HTTP and WebSocket.
//!
//! What always holds: nothing is answered with success before the log says that it is durable; the tenant comes from the API key
//! alone; every body, queue and connection is bounded; overload is 429 or 503 with `Retry-After`, never another 4xx. When the log or the
//! store fails, the answer says so in the error shape `{"error": {"code", "message", "details"}}`.

mod admin;
pub mod admission;
pub mod auth;
mod connections;
pub mod decode;
pub mod error;
mod frames;
pub mod ingest;
pub mod interner;
pub mod keys_file;
mod lanes;
pub mod msgpack;
mod pack;
pub mod parse;
mod patient;
pub mod rest_proxy;
pub mod routes;
mod scan;
pub mod server;
pub mod shares;
pub mod sites;
mod socket;
pub mod starting;
pub mod ws;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::actors::gateway::Submit;
use crate::clock::Clock;
use crate::model::event::EventLimits;
use crate::query::service::{ExpiryService, QuarantineService, QueryService, StatusService};

/// The limits of the edge.
#[derive(Debug, Clone)]
pub struct GatewayLimits {
    /// Limits of one event: `accept.*`.
    pub event: EventLimits,
    /// `accept.max_events`: events of one request.
    pub max_events: usize,
    /// `accept.max_body`: a body, decompressed.
    pub max_body_bytes: usize,
    /// `accept.max_inflight`: memory of requests being read or awaiting the log; beyond it 503.
    pub max_inflight_bytes: usize,
    /// `server.max_connections`: open connections; further ones wait in the backlog.
    pub max_connections: usize,
    /// `server.max_connections_per_address`: of them from one address; 0 is no limit of its own.
    pub max_connections_per_address: usize,
    /// `server.write_timeout`: time in which a little of an answer must be taken.
    pub write_timeout: Duration,
    /// `server.max_answers`: bytes of answers that are not taken yet.
    pub max_answer_bytes: usize,
    /// `server.header_timeout`: time to send the request head.
    pub header_timeout: Duration,
    /// `server.body_timeout`: time to send the body.
    pub body_timeout: Duration,
    /// `gateway.append_timeout`: time to wait for durability before the outcome is called unknown.
    pub append_timeout: Duration,
    /// `tenants.max_events_per_second`: per tenant; 0 = unlimited.
    pub events_per_second: u64,
    /// `tenants.burst`: events a tenant may send at once.
    pub burst: u64,
    /// `gateway.max_interned`: series whose labels are remembered.
    pub max_interned: usize,
    /// `gateway.max_interned_bytes`: their memory.
    pub max_interned_bytes: usize,
    /// `query.max_concurrent`: queries that run or wait for their turn.
    pub max_queries: usize,
    /// `query.threads`: threads that run them.
    pub query_threads: usize,
    /// Threads that unpack and read large bodies.
    pub reader_threads: usize,
    /// `query.timeout`: time of one query, waiting for its turn included.
    pub query_timeout: Duration,
    /// `query.max_memory`: memory of all queries while they run.
    pub max_query_bytes: usize,
    /// `ws.window`: unacknowledged messages of one connection.
    pub ws_window: usize,
    /// `ws.max_message`.
    pub ws_max_message_bytes: usize,
    /// `ws.max_all_subscriptions`: of all connections.
    pub ws_max_all_subscriptions: usize,
    /// `ws.max_subscriptions`: of one connection.
    pub ws_max_subscriptions: usize,
    /// `ws.idle_timeout`: silence, pings unanswered, after which a connection is closed; also the time a reader may block a write.
    pub ws_idle_timeout: Duration,
    /// `ws.update_interval`: how often subscriptions are run again.
    pub ws_update_interval: Duration,
    /// `dedup.horizon` as stated by `/v1/limits`, in milliseconds.
    pub dedup_horizon_ms: i64,
    /// `dedup.max_ids` as stated by `/v1/limits`, per shard.
    pub dedup_max_ids: u64,
    /// Every number of the configuration, as stated by `/v1/limits`; durations in milliseconds.
    pub config: Vec<(&'static str, u64)>,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            event: EventLimits::default(),
            max_events: 10_000,
            max_body_bytes: 20 << 20,
            max_inflight_bytes: 256 << 20,
            max_connections: 10_000,
            max_connections_per_address: 0,
            write_timeout: Duration::from_secs(30),
            max_answer_bytes: 256 << 20,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            append_timeout: Duration::from_secs(30),
            events_per_second: 0,
            burst: 100_000,
            max_interned: 2_000_000,
            max_interned_bytes: 512 << 20,
            max_queries: 8,
            query_threads: 4,
            reader_threads: 2,
            query_timeout: Duration::from_secs(30),
            max_query_bytes: 1 << 30,
            ws_window: 64,
            ws_max_message_bytes: 1 << 20,
            ws_max_all_subscriptions: 4_096,
            ws_max_subscriptions: 16,
            ws_idle_timeout: Duration::from_secs(30),
            ws_update_interval: Duration::from_secs(1),
            dedup_horizon_ms: 3_600_000,
            dedup_max_ids: 1_000_000,
            config: Vec::new(),
        }
    }
}

/// Whether the node is ready for a role, or for all of its own; if it is not, why.
pub type ReadyFor = Arc<dyn Fn(Option<&str>) -> Result<(), String> + Send + Sync>;

/// How many metric names a tenant may use, and how many it does.
pub type MetricNames = Arc<dyn Fn(&str) -> Option<(usize, usize)> + Send + Sync>;

/// What the edge stands on.
pub struct GatewayDeps {
    /// Takes validated requests; none on a node without the gateway role.
    pub submit: Option<Arc<dyn Submit>>,
    /// Answers queries.
    pub queries: Arc<dyn QueryService>,
    /// What was set aside.
    pub quarantine: Arc<dyn QuarantineService>,
    /// Under which names it answers, and which pages may use it.
    pub sites: sites::Sites,
    /// What is noted before anything expires.
    pub expiry: Arc<dyn ExpiryService>,
    /// The API keys; the node stores a new table when the file changes.
    pub keys: Arc<ArcSwap<auth::KeyTable>>,
    /// The limits.
    pub limits: GatewayLimits,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Shards of the cluster.
    pub shard_count: u32,
    /// Renders `/metrics`.
    pub render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Where nodes and shards stand.
    pub status: Arc<dyn StatusService>,
    /// Whether the node does what its roles ask of it.
    pub ready: ReadyFor,
    /// How many metric names a tenant may use, and how many it does; none on a node without shards.
    pub metric_names: MetricNames,
}

/// The edge, shared by all connections.
pub struct Gateway {
    /// What it stands on.
    pub deps: GatewayDeps,
    interner: interner::Interner,
    admission: admission::Admission,
    /// What tenants share.
    pub shares: shares::TenantShares,
    connections: Arc<connections::Connections>,
    queries: lanes::Lanes,
    /// Unpack and read large bodies.
    readers: lanes::Lanes,
    /// Places for answers that are being packed.
    packing: Arc<tokio::sync::Semaphore>,
    /// One status at a time, beside the queries: it must answer while they are too many.
    status: tokio::sync::Mutex<()>,
    stopping: tokio::sync::watch::Sender<bool>,
}

impl Gateway {
    /// The edge over these.
    pub fn new(deps: GatewayDeps) -> Arc<Self> {
        let limits = &deps.limits;
        let shares = shares::TenantShares::new(limits, &deps.keys.load());
        let (max, per_address) = (limits.max_connections, limits.max_connections_per_address);
        let connections = connections::Connections::new(max, per_address, shares.connections.clone());
        Arc::new(Self {
            connections,
            interner: interner::Interner::new(deps.shard_count, limits.max_interned, limits.max_interned_bytes),
            admission: admission::Admission::new(limits),
            queries: lanes::Lanes::new("query", 10, limits.query_threads, shares.one_tenant().clone()),
            readers: lanes::Lanes::new("reader", 5, limits.reader_threads, shares.one_tenant().clone()),
            shares,
            packing: Arc::new(tokio::sync::Semaphore::new(pack::places())),
            status: tokio::sync::Mutex::new(()),
            stopping: tokio::sync::watch::channel(false).0,
            deps,
        })
    }
}
