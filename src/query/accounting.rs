//! A tenant's accounting: accepted = aggregated + de-duplicated + quarantined + pending, by hour of
//! append.
//!
//! The first three are counted in the flush transaction and read from the store. Everything above
//! the checkpoints of the same snapshot is pending, whatever its shard has decided about it. A
//! record that no shard has applied yet is in no hour: `as_of` says up to when the counts are
//! final.

use std::collections::BTreeMap;

use super::completeness::QueryCompleteness;
use crate::model::flush::AccountingDelta;
use crate::model::window::Hour;

/// What became of the events of one hour of append.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HourlyCounts {
    /// In the stored rollups.
    pub aggregated: u64,
    /// Dropped as duplicates of events that were counted before.
    pub deduplicated: u64,
    /// Isolated as poison; kept and releasable.
    pub quarantined: u64,
    /// Applied by their shard but not flushed yet.
    pub pending: u64,
}

impl HourlyCounts {
    /// The sum of all outcomes.
    pub fn accepted(&self) -> u64 {
        self.aggregated + self.deduplicated + self.quarantined + self.pending
    }
}

/// A tenant's accounting for a range of hours.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountingOutput {
    /// Ascending; hours without events are absent.
    pub hours: Vec<(Hour, HourlyCounts)>,
    /// Quarantined records that could not be parsed, so that their tenant is
    /// unknown. Of all tenants.
    pub unowned: u64,
    pub completeness: QueryCompleteness,
}

/// Accumulates the counts of a tenant.
#[derive(Debug, Default)]
pub struct AccountingLedger {
    hours: BTreeMap<Hour, HourlyCounts>,
    unowned: u64,
}

impl AccountingLedger {
    /// Starts from the stored rows: the tenant's own, and those without a tenant.
    pub fn from_stored(rows: &[AccountingDelta], unowned: &[AccountingDelta]) -> Self {
        let mut ledger =
            Self { unowned: unowned.iter().map(|row| row.quarantined).sum(), ..Self::default() };
        for row in rows {
            let hour = ledger.hours.entry(row.hour).or_default();
            hour.aggregated += row.aggregated;
            hour.deduplicated += row.deduplicated;
            hour.quarantined += row.quarantined;
        }
        ledger
    }

    /// Adds a live row from above the checkpoints.
    pub fn add_pending(&mut self, row: &AccountingDelta) {
        self.hours.entry(row.hour).or_default().pending +=
            row.aggregated + row.deduplicated + row.quarantined;
    }

    /// Ends the ledger as an answer of this completeness.
    pub fn into_output(self, completeness: QueryCompleteness) -> AccountingOutput {
        AccountingOutput {
            hours: self.hours.into_iter().collect(),
            unowned: self.unowned,
            completeness,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_nobody_is_in_no_tenants_hours_and_is_shown_all_the_same() {
        let row = |tenant: &str, quarantined| AccountingDelta {
            tenant: tenant.to_owned(),
            hour: Hour(5),
            aggregated: 7,
            deduplicated: 0,
            quarantined,
        };
        let whole = AccountingLedger::from_stored(&[row("t", 1)], &[row("", 2), row("", 1)]);
        let answer = whole.into_output(QueryCompleteness::of(&[], &Vec::new(), 0, 1));
        assert_eq!((answer.hours[0].1.accepted(), answer.unowned), (8, 3), "{answer:?}");
    }
}
