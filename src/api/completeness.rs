//! How much of the truth an answer is.

use serde::{Deserialize, Serialize};

/// How much of the truth an answer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Completeness {
    /// Whether a shard is missing or behind.
    pub partial: bool,
    /// Shards that were asked.
    pub shards: u32,
    /// Those that are missing or behind.
    pub missing: Vec<MissingShard>,
    /// How many more of them there are; beside a table only, whose header has no room for all.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more: u64,
    /// Events of the metric whose labels were given up (`tenants.max_series`); there if the
    /// question tells labels apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflow: Option<u64>,
    /// Everything that was received before this is in the answer, but for what is missing.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub as_of: Option<jiff::Timestamp>,
}

/// A shard that the answer lacks, or that is behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MissingShard {
    /// Which one.
    pub shard: u32,
    /// Why, in a word.
    #[cfg_attr(test, schemars(extend("enum" = [
        "behind", "stopped", "recovering", "moved", "unavailable", "unreachable", "overloaded", "too_large"
    ])))]
    pub reason: String,
    /// How far behind it is, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_ms: Option<i64>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for it
fn is_none(number: &u64) -> bool {
    *number == 0
}
