//! `GET /v1/status`.

use serde::{Deserialize, Serialize};

/// The nodes that are known, and the state of every shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StatusAnswer {
    /// When the status was taken.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub at: Option<jiff::Timestamp>,
    /// Whether every shard has an owner that keeps up.
    pub healthy: bool,
    /// `reachable`, or why it is not; null on a node that uses no store.
    pub store: Option<String>,
    /// The nodes; the answering one comes first.
    pub nodes: Vec<NodeSummary>,
    /// The shards, ascending by number.
    pub shards: Vec<ShardStatus>,
}

/// One node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeSummary {
    /// `node.name`, or the host name.
    pub name: String,
    /// Roles that the node runs.
    pub roles: Vec<String>,
    /// Version of its binary.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// What `/readyz` answers.
    #[serde(default)]
    pub ready: bool,
    /// Why it is not ready; null if it is.
    pub not_ready: Option<String>,
    /// Number of shards that it owns.
    pub shards: u64,
}

/// State of one shard. A value that no reachable node knows is null.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ShardStatus {
    /// Number of the shard.
    pub shard: u32,
    /// `here`, `elsewhere` or `none`, seen from the answering node.
    pub owner: String,
    /// Name of the owning node.
    pub node: Option<String>,
    /// Fencing epoch of the owner, as its counter.
    pub epoch: Option<u64>,
    /// Next offset to apply.
    pub next: Option<u64>,
    /// End of the shard's log, exclusive.
    pub end: Option<u64>,
    /// Records that are not applied yet.
    pub lag: Option<u64>,
    /// Everything appended before this time is applied.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub as_of: Option<jiff::Timestamp>,
    /// Milliseconds since `as_of`.
    pub age_ms: Option<i64>,
    /// Next offset to commit: the checkpoint in the store.
    pub committed: Option<u64>,
    /// Everything below this offset is archived.
    pub archived: Option<u64>,
    /// Records that are applied but not archived yet.
    pub archive_lag: Option<u64>,
    /// Starts of the shard without progress since.
    pub attempts: Option<u32>,
    /// Number of consecutive failed flushes.
    pub flush_failures: Option<u32>,
    /// Error of the last failed flush.
    pub flush_failure: Option<String>,
    /// `no_owner`, `stale`, `flush_failing` or `stopped`; null if all is well.
    pub problem: Option<String>,
    /// Why the shard is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
