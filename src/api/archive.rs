//! `POST /v1/archive/flush`, `GET /v1/archive/expiry` and `POST /v1/archive/expiry`.

use serde::{Deserialize, Serialize};

/// What was asked of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ArchiveFlushAnswer {
    /// The shards that have something to archive.
    pub shards: Vec<ArchiveFlush>,
}

/// What was asked of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ArchiveFlush {
    /// The shard.
    pub shard: u32,
    /// Everything below this offset is to be archived.
    pub below: u64,
}

/// What is due to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExpiryAnswer {
    /// How many wait for a person.
    pub stopped: u64,
    /// What is due.
    pub due: Vec<DueExpiry>,
}

/// What expires: the archive of a shard, or weeks of rollups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Expiring {
    /// `archive` or `weeks`.
    pub of: String,
    /// The shard, of an archive.
    pub shard: Option<u32>,
}

/// One thing that is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DueExpiry {
    /// What it is.
    #[serde(flatten)]
    pub expiring: Expiring,
    /// Everything below this goes.
    pub below: Option<i64>,
    /// How long it still waits.
    pub left_ms: Option<i64>,
    /// Why it waits for a person, if it does.
    pub stopped: Option<String>,
}

/// What a person has said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExpiryRequest {
    /// `true`: what has stopped goes on.
    pub yes: bool,
}

/// What goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExpiryGoesOnAnswer {
    /// How many.
    pub going_on: u64,
    /// Which.
    pub of: Vec<Expiring>,
}
