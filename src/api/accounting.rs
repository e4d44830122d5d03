//! `GET /v1/accounting`.

use serde::{Deserialize, Serialize};

use super::completeness::Completeness;

/// How many of a tenant's events ended in which outcome, per hour of receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AccountingAnswer {
    /// The hours, ascending by time of receipt.
    pub hours: Vec<AccountingHour>,
    /// Whole records that were quarantined because they cannot be read, so their tenant is unknown.
    #[serde(default)]
    pub nobodys_records_set_aside: u64,
    /// Which shards the counts cover, and how fresh they are.
    pub completeness: Completeness,
}

/// The counts of one hour: accepted = aggregated + deduplicated + quarantined + pending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AccountingHour {
    /// Start of the hour in which the events were received, UTC.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub hour: Option<jiff::Timestamp>,
    /// All events that were acknowledged in this hour.
    pub accepted: u64,
    /// Events that the rollups count.
    pub aggregated: u64,
    /// Events that were dropped because their id had been counted before.
    pub deduplicated: u64,
    /// Events in the quarantine, or discarded from it.
    pub quarantined: u64,
    /// Events that are applied in memory but not committed to the store yet.
    pub pending: u64,
}
