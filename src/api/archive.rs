//! `POST /v1/archive/flush`, `GET /v1/archive/expiry` and `POST /v1/archive/expiry`.

use serde::{Deserialize, Serialize};

/// What an archive flush will write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ArchiveFlushAnswer {
    /// Shards with applied records that are not archived yet.
    pub shards: Vec<ArchiveFlush>,
}

/// The archive flush of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ArchiveFlush {
    /// Number of the shard.
    pub shard: u32,
    /// Records below this offset will be archived.
    pub below: u64,
}

/// Archives and rollups that are due to expire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExpiryAnswer {
    /// How many of them were stopped and wait for an operator's approval.
    pub stopped: u64,
    /// Everything that is due, stopped or not.
    pub due: Vec<DueExpiry>,
}

/// What expires: the archive of one shard, or weeks of rollups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Expiring {
    /// `archive` or `weeks`.
    pub of: String,
    /// The shard whose archive expires; null for `weeks`.
    pub shard: Option<u32>,
}

/// One archive or range of weeks that is due to expire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DueExpiry {
    /// The archive or weeks concerned.
    #[serde(flatten)]
    pub expiring: Expiring,
    /// Exclusive end of what is removed: an offset, or a week number for `weeks`.
    pub below: Option<i64>,
    /// Milliseconds until its first part is removed.
    pub left_ms: Option<i64>,
    /// Why it waits for an operator's approval; null if it does not.
    pub stopped: Option<String>,
}

/// An operator's approval of expiries that were stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExpiryRequest {
    /// Must be `true`: approves every expiry that was stopped.
    pub yes: bool,
}

/// The expiries that were approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExpiryGoesOnAnswer {
    /// How many expiries were approved.
    pub going_on: u64,
    /// The archives and weeks that will now expire.
    pub of: Vec<Expiring>,
}
