//! `GET /v1/status`.

use serde::{Deserialize, Serialize};

/// Nodes and shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StatusAnswer {
    /// When.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub at: Option<jiff::Timestamp>,
    /// Whether every shard has an owner that keeps up.
    pub healthy: bool,
    /// `reachable`, or why not; null on a node without one.
    pub store: Option<String>,
    /// The nodes that are known, the one that answers first.
    pub nodes: Vec<NodeSummary>,
    /// The shards, ascending.
    pub shards: Vec<ShardStatus>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeSummary {
    /// `node.name`, or the machine's.
    pub name: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its version.
    pub version: String,
    /// Since its start.
    pub uptime_ms: u64,
    /// Whether `/readyz` says so.
    #[serde(default)]
    pub ready: bool,
    /// Why not.
    pub not_ready: Option<String>,
    /// Shards that it owns.
    pub shards: u64,
}

/// A shard. What nobody can tell is null.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ShardStatus {
    /// The shard.
    pub shard: u32,
    /// `here`, `elsewhere` or `none`.
    pub owner: String,
    /// The node that owns it.
    pub node: Option<String>,
    /// Counter of the owner's epoch.
    pub epoch: Option<u64>,
    /// Next offset to apply.
    pub next: Option<u64>,
    /// The log's end.
    pub end: Option<u64>,
    /// Records that are not applied yet.
    pub lag: Option<u64>,
    /// Everything that was appended before this is applied.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub as_of: Option<jiff::Timestamp>,
    /// How long ago everything that was appended then was applied.
    pub age_ms: Option<i64>,
    /// Next offset to commit.
    pub committed: Option<u64>,
    /// Everything below is archived.
    pub archived: Option<u64>,
    /// Records that are applied and not archived yet.
    pub archive_lag: Option<u64>,
    /// Starts without progress.
    pub attempts: Option<u32>,
    /// Flushes that failed since the last that did not.
    pub flush_failures: Option<u32>,
    /// Why the newest failed.
    pub flush_failure: Option<String>,
    /// `no_owner`, `stale`, `flush_failing` or `stopped`; null if all is well.
    pub problem: Option<String>,
    /// Why it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
