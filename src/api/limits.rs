//! `GET /v1/limits`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Every limit that a client can meet, and how much of it is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LimitsAnswer {
    /// Which events are accepted.
    pub accept: AcceptLimits,
    /// Sizes within one event.
    pub event: EventLimits,
    /// Sizes of one request.
    pub request: RequestLimits,
    /// Event rate of the tenant.
    pub tenant: TenantRate,
    /// Limits of queries.
    pub query: QueryLimits,
    /// Every key of the configuration that is a number, with its value on this node; durations are
    /// in milliseconds.
    pub config: BTreeMap<String, u64>,
    /// What tenants share, by the name of the limit, as `rollmill_share_used` has it.
    pub shares: BTreeMap<String, ShareLimit>,
    /// Metric names of the tenant on this node; null on a node without shards.
    pub metrics: Option<MetricNameLimit>,
    /// Limits of one WebSocket.
    pub ws: WebSocketLimits,
    /// De-duplication, as configured and as it is.
    pub dedup: DedupLimits,
}

/// Which events are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AcceptLimits {
    /// An older event is refused.
    pub max_age_ms: i64,
    /// An event further in the future is refused.
    pub max_ahead_ms: i64,
    /// Bytes of one event.
    pub max_event_bytes: u64,
}

/// Sizes within one event, in bytes unless the name says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "the names say it")]
pub struct EventLimits {
    pub metric_bytes: usize,
    /// Number of labels.
    pub labels: usize,
    pub label_name_bytes: usize,
    pub label_value_bytes: usize,
    pub user_bytes: usize,
    pub id_bytes: usize,
    /// Levels of nesting.
    pub properties_depth: usize,
}

/// Sizes of one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "the names say it")]
pub struct RequestLimits {
    pub max_events: usize,
    /// After decompression.
    pub max_body_bytes: u64,
    /// Time that a client may take to send the body.
    pub body_timeout_ms: i64,
    /// Members of one gzip body.
    pub compressed_members: usize,
}

/// Event rate of the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TenantRate {
    /// 0: no limit.
    pub events_per_second: u64,
    /// Events that may come at once after a pause.
    pub burst: u64,
}

/// Limits of queries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QueryLimits {
    /// Queries that run or are queued.
    pub max_concurrent: usize,
    /// A query that takes longer is aborted.
    pub timeout_ms: i64,
}

/// How much of something there is, and who holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ShareLimit {
    /// For all tenants together.
    pub total: u64,
    /// For each tenant.
    pub tenant: u64,
    /// Held by all tenants.
    pub used: u64,
    /// Held by this tenant.
    pub used_by_tenant: u64,
}

/// Metric names of a tenant on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "the names say it")]
pub struct MetricNameLimit {
    pub max: usize,
    pub used: usize,
}

/// Limits of one WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WebSocketLimits {
    /// Unacknowledged messages.
    pub window: usize,
    /// Bytes of one message.
    pub max_message_bytes: u64,
    /// Subscriptions.
    pub max_subscriptions: usize,
}

/// De-duplication, as configured and as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DedupLimits {
    /// `dedup.horizon`.
    pub horizon_ms: i64,
    /// Ids that each shard remembers.
    pub max_ids_per_shard: usize,
    /// The shortest horizon of any node; null if none is known.
    pub effective_horizon_ms: Option<i64>,
    /// The shortest horizon of the shards of each node.
    pub nodes: Vec<NodeHorizon>,
}

/// The effective horizon of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeHorizon {
    /// Its name.
    pub node: String,
    /// For its shards, the shortest.
    pub effective_horizon_ms: i64,
}
