//! The books of a tenant: accepted = aggregated + de-duplicated + quarantined + pending, by hour of
//! append.
//!
//! The three are counted in the flush transaction and read from the store; what lies above the
//! checkpoints of the same snapshot is pending, however its shard has decided on it. A record that
//! no shard has applied yet is in no hour: `as_of` says up to when the books are closed.

use std::collections::BTreeMap;

use super::completeness::QueryCompleteness;
use crate::model::flush::AccountingDelta;
use crate::model::window::Hour;

/// One hour of append.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HourlyCounts {
    /// Events in the rollups.
    pub aggregated: u64,
    /// Events that were there before.
    pub deduplicated: u64,
    /// Events that were set aside.
    pub quarantined: u64,
    /// Events that are applied and not in the store yet.
    pub pending: u64,
}

impl HourlyCounts {
    /// All events.
    pub fn accepted(&self) -> u64 {
        self.aggregated + self.deduplicated + self.quarantined + self.pending
    }
}

/// The books of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountingOutput {
    /// The hours, ascending.
    pub hours: Vec<(Hour, HourlyCounts)>,
    /// Whole records that were set aside: whose they are, nobody can tell.
    pub unowned: u64,
    /// How much of the truth it is.
    pub completeness: QueryCompleteness,
}

/// The hours, as they are added up.
#[derive(Debug, Default)]
pub struct AccountingLedger {
    hours: BTreeMap<Hour, HourlyCounts>,
    unowned: u64,
}

impl AccountingLedger {
    /// What is in the store: the tenant's, and what belongs to nobody.
    pub fn from_stored(rows: &[AccountingDelta], unowned: &[AccountingDelta]) -> Self {
        let mut books =
            Self { unowned: unowned.iter().map(|row| row.quarantined).sum(), ..Self::default() };
        for row in rows {
            let hour = books.hours.entry(row.hour).or_default();
            hour.aggregated += row.aggregated;
            hour.deduplicated += row.deduplicated;
            hour.quarantined += row.quarantined;
        }
        books
    }

    /// What is above the checkpoints.
    pub fn add_pending(&mut self, row: &AccountingDelta) {
        self.hours.entry(row.hour).or_default().pending +=
            row.aggregated + row.deduplicated + row.quarantined;
    }

    /// The answer.
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
