//! The books of a tenant: accepted = aggregated + de-duplicated + quarantined + pending, by hour of append.
//!
//! The three are counted in the flush transaction and read from the store; what lies above the checkpoints of the same snapshot is
//! pending, however its shard has decided on it. A record that no shard has applied yet is in no hour: `as_of` says up to when the
//! books are closed.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::completeness::Completeness;
use super::json;
use crate::model::flush::AccountingDelta;
use crate::model::window::Hour;

/// One hour of append.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Row {
    aggregated: u64,
    deduplicated: u64,
    quarantined: u64,
    pending: u64,
}

/// The hours.
#[derive(Debug, Default)]
pub(super) struct Books {
    hours: BTreeMap<Hour, Row>,
    /// Whole records that were set aside: whose they are, nobody can tell.
    nobodys: u64,
}

impl Books {
    /// What is in the store: the tenant's, and what belongs to nobody.
    pub(super) fn stored(rows: &[AccountingDelta], nobodys: &[AccountingDelta]) -> Self {
        let mut books = Self { nobodys: nobodys.iter().map(|row| row.quarantined).sum(), ..Self::default() };
        for row in rows {
            let hour = books.hours.entry(row.hour).or_default();
            hour.aggregated += row.aggregated;
            hour.deduplicated += row.deduplicated;
            hour.quarantined += row.quarantined;
        }
        books
    }

    /// What is above the checkpoints.
    pub(super) fn pending(&mut self, row: &AccountingDelta) {
        self.hours.entry(row.hour).or_default().pending += row.aggregated + row.deduplicated + row.quarantined;
    }

    /// Their JSON.
    pub(super) fn render(&self, completeness: &Completeness) -> String {
        let mut out = "{\"hours\":[".to_owned();
        for (at, (hour, row)) in self.hours.iter().enumerate() {
            out.push_str(if at > 0 { ",{\"hour\":" } else { "{\"hour\":" });
            json::time(&mut out, hour.start());
            let Row { aggregated, deduplicated, quarantined, pending } = *row;
            let accepted = aggregated + deduplicated + quarantined + pending;
            _ = write!(out, ",\"accepted\":{accepted},\"aggregated\":{aggregated},\"deduplicated\":{deduplicated}");
            _ = write!(out, ",\"quarantined\":{quarantined},\"pending\":{pending}}}");
        }
        _ = write!(out, "],\"nobodys_records_set_aside\":{},\"completeness\":", self.nobodys);
        completeness.render(&mut out, usize::MAX);
        out.push('}');
        out
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
        let whole = Books::stored(&[row("t", 1)], &[row("", 2), row("", 1)]);
        let shown = whole.render(&Completeness::of(&[], &Vec::new(), 0, 1));
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!((&shown["hours"][0]["accepted"], &shown["nobodys_records_set_aside"]), (&8.into(), &3.into()), "{shown}");
    }
}
