//! Queries to a shard's memory.

use std::collections::BTreeSet;

use crate::model::flush::AccountingDelta;
use crate::model::generation::GenerationId;
use crate::model::served::{ServedHours, generation_at};
use crate::model::window::Hour;

/// A query for live deltas. Hours are `[from, to)`.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy)]
pub struct LiveQuery<'a> {
    pub tenant: &'a str,
    pub metric: &'a str,
    pub from: Hour,
    pub to: Hour,
    /// Covers `[from, to)`: whose deltas are wanted in which hours. Only these may be visited.
    pub served: &'a [ServedHours],
    /// Whether distinct users are wanted; if not, their sketch may be left empty.
    pub distinct: bool,
    /// Whether quantiles are wanted; if not, their sketch may be left empty.
    pub quantiles: bool,
    /// Whether the metric's overflow series is wanted, regardless of the matchers.
    pub overflow: bool,
}

impl LiveQuery<'_> {
    /// Whether deltas of a generation are wanted in an hour.
    pub fn wants(&self, generation: GenerationId, hour: Hour) -> bool {
        generation_at(self.served, hour) == Some(generation)
    }

    /// The generations besides generation 0 whose deltas are wanted.
    pub(super) fn others(&self) -> BTreeSet<GenerationId> {
        let served = self.served.iter().map(|piece| piece.generation);
        served.filter(|generation| !generation.is_ingest()).collect()
    }
}

/// A query for the accounting above the checkpoint. `[from, to)` are hours of receipt.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy)]
pub struct AccountingQuery<'a> {
    pub tenant: &'a str,
    pub from: Hour,
    pub to: Hour,
}

impl AccountingQuery<'_> {
    pub(super) fn matches(&self, row: &AccountingDelta) -> bool {
        row.tenant == self.tenant && self.from <= row.hour && row.hour < self.to
    }
}
