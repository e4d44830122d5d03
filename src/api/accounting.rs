//! `GET /v1/accounting`.

use serde::{Deserialize, Serialize};

use super::completeness::Completeness;

/// What became of a tenant's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AccountingAnswer {
    /// By hour of receipt, ascending.
    pub hours: Vec<AccountingHour>,
    /// Whole records that were set aside: whose they are, nobody can tell.
    #[serde(default)]
    pub nobodys_records_set_aside: u64,
    /// How much of the truth it is.
    pub completeness: Completeness,
}

/// One hour: accepted = aggregated + deduplicated + quarantined + pending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AccountingHour {
    /// Its beginning.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub hour: Option<jiff::Timestamp>,
    /// All events.
    pub accepted: u64,
    /// Events in the rollups.
    pub aggregated: u64,
    /// Events that were there before.
    pub deduplicated: u64,
    /// Events that were set aside.
    pub quarantined: u64,
    /// Events that are applied and not in the store yet.
    pub pending: u64,
}
