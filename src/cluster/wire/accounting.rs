//! The request and the answer for the counts that shards have not flushed yet. Pure.

use serde::{Deserialize, Serialize};

use super::{ShardCheckpoint, WireFreshness};
use crate::model::flush::AccountingDelta;
use crate::model::window::Hour;

/// Asks for the unflushed event counts of some shards.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountingRequest {
    pub tenant: String,
    /// Hour of append, inclusive.
    pub from: i32,
    /// Hour of append, exclusive.
    pub to: i32,
    /// The shards, each with the position to answer from.
    pub places: Vec<ShardCheckpoint>,
}

/// The unflushed event counts of one shard.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountingBody {
    /// How fresh the answer is.
    pub reach: WireFreshness,
    /// Hour of append with the counts of aggregated, de-duplicated and quarantined events.
    pub hours: Vec<(i32, [u64; 3])>,
}

impl AccountingBody {
    /// The rows of the tenant that was asked for.
    pub fn rows(&self, tenant: &str) -> impl Iterator<Item = AccountingDelta> {
        self.hours.iter().map(|(hour, [aggregated, deduplicated, quarantined])| AccountingDelta {
            tenant: tenant.to_owned(),
            hour: Hour(*hour),
            aggregated: *aggregated,
            deduplicated: *deduplicated,
            quarantined: *quarantined,
        })
    }
}
