//! Which shards an answer covers, and how fresh it is.

use serde::{Deserialize, Serialize};

/// Which shards an answer covers, and how fresh it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Completeness {
    /// Whether any shard is missing or behind.
    pub partial: bool,
    /// Number of shards that were queried.
    pub shards: u32,
    /// The shards that are missing or behind.
    pub missing: Vec<MissingShard>,
    /// How many shards `missing` leaves out. Set in the CSV header only, which has no room for all.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more: u64,
    /// Events of the metric that lost their labels to `tenants.max_series`. Present only if the
    /// query filters or groups by labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflow: Option<u64>,
    /// The parts of the range whose figures are those of a replay, ascending. What is left out is as
    /// it was ingested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generations: Vec<ServedGeneration>,
    /// How many parts `generations` leaves out. Set in the CSV header only, like `more`.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more_generations: u64,
    /// Every event received before this time is counted, except those of `missing` shards.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub as_of: Option<jiff::Timestamp>,
}

/// A part of the range whose figures are those of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServedGeneration {
    /// Number of the replay.
    pub generation: u64,
    /// Start of the part, inclusive.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub from: Option<jiff::Timestamp>,
    /// End of the part, exclusive.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub to: Option<jiff::Timestamp>,
}

/// A shard that the answer does not cover, or covers only in part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MissingShard {
    /// Number of the shard.
    pub shard: u32,
    /// The cause, as one fixed word.
    #[cfg_attr(test, schemars(extend("enum" = [
    "behind", "stopped", "recovering", "moved",
    "unavailable", "unreachable", "overloaded", "too_large"
    ])))]
    pub reason: String,
    /// How far the shard is behind, in milliseconds; absent if it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_ms: Option<i64>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for it
fn is_none(number: &u64) -> bool {
    *number == 0
}

/// Why a shard is missing from an answer: [`MissingShard::reason`], and what it means.
pub const MISSING_REASONS: &[(&str, &str)] = &[
    ("behind", "It is further behind than `query.stale_after`; `behind_ms` says how far."),
    (
        "stopped",
        "It stands still until somebody mends what `GET /v1/status` names. What lies below is in \
            the answer.",
    ),
    (
        "recovering",
        "Its new owner has not reached yet what the log held when it claimed the shard; with \
            `behind_ms`.",
    ),
    (
        "moved",
        "Its owner changed twice while the query ran, or it does not write yet what is served.",
    ),
    ("unavailable", "No owner is known."),
    ("unreachable", "Its owner did not answer in time."),
    ("overloaded", "Its owner answers as many other nodes as it may."),
    ("too_large", "It has more in memory than nodes send to each other."),
];
