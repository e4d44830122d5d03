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
pub struct Books(BTreeMap<Hour, Row>);

impl Books {
    /// What is in the store.
    pub fn stored(rows: &[AccountingDelta]) -> Self {
        let mut books = Self::default();
        for row in rows {
            let hour = books.0.entry(row.hour).or_default();
            hour.aggregated += row.aggregated;
            hour.deduplicated += row.deduplicated;
            hour.quarantined += row.quarantined;
        }
        books
    }

    /// What is above the checkpoints.
    pub fn pending(&mut self, row: &AccountingDelta) {
        self.0.entry(row.hour).or_default().pending += row.aggregated + row.deduplicated + row.quarantined;
    }

    /// Their JSON.
    pub fn render(&self, completeness: &Completeness) -> String {
        let mut out = "{\"hours\":[".to_owned();
        for (at, (hour, row)) in self.0.iter().enumerate() {
            out.push_str(if at > 0 { ",{\"hour\":" } else { "{\"hour\":" });
            json::time(&mut out, hour.start());
            let Row { aggregated, deduplicated, quarantined, pending } = *row;
            let accepted = aggregated + deduplicated + quarantined + pending;
            _ = write!(out, ",\"accepted\":{accepted},\"aggregated\":{aggregated},\"deduplicated\":{deduplicated}");
            _ = write!(out, ",\"quarantined\":{quarantined},\"pending\":{pending}}}");
        }
        out.push_str("],\"completeness\":");
        completeness.render(&mut out);
        out.push('}');
        out
    }
}
