//! What is asked of a shard's memory.

use crate::model::flush::AccountingDelta;
use crate::model::window::Hour;

/// What a query asks of the live deltas.
#[derive(Debug, Clone, Copy)]
pub struct LiveQuery<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// Which metric.
    pub metric: &'a str,
    /// First hour.
    pub from: Hour,
    /// First hour behind.
    pub to: Hour,
    /// Whether distinct users are wanted; otherwise the sketch may be left empty.
    pub distinct: bool,
    /// Whether quantiles are wanted; otherwise the sketch may be left empty.
    pub quantiles: bool,
    /// Whether the metric's overflow series is wanted, whatever the matchers say.
    pub overflow: bool,
}

/// What is asked of the accounting above the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct AccountingQuery<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// First hour of receipt.
    pub from: Hour,
    /// First hour behind.
    pub to: Hour,
}

impl AccountingQuery<'_> {
    pub(super) fn matches(&self, row: &AccountingDelta) -> bool {
        row.tenant == self.tenant && self.from <= row.hour && row.hour < self.to
    }
}
