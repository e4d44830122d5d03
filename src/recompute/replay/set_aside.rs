//! Which events ingest set aside, and which of them people have released since. Pure.

use std::collections::BTreeSet;

use crate::model::flush::QuarantineRow;
use crate::model::offset::{Offset, OffsetRange, ShardId};

/// The quarantine of a shard. An event that ingest set aside and that is not in it any more was
/// released: those that are given up stay. A release in a store of an older release left no trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SetAsideEvents {
    events: BTreeSet<(Offset, u32)>,
    /// Records that were set aside whole, whatever events they seem to have.
    records: BTreeSet<Offset>,
    /// Ascending.
    released: Vec<(Offset, u32)>,
}

impl SetAsideEvents {
    /// From the quarantine, and from the events of the shard that are noted as released, ascending.
    pub(super) fn new(
        rows: &[QuarantineRow],
        released: Vec<(Offset, u32)>,
        shard: ShardId,
    ) -> Self {
        let mut aside = Self { released, ..Self::default() };
        for row in rows.iter().filter(|row| row.shard == shard) {
            // No tenant is known of a record that nobody could read.
            if row.tenant.is_empty() {
                aside.records.insert(row.offset);
            } else {
                aside.events.insert((row.offset, row.index));
            }
        }
        aside
    }

    /// Whether an event is still set aside.
    pub(super) fn has(&self, offset: Offset, index: u32) -> bool {
        self.records.contains(&offset) || self.events.contains(&(offset, index))
    }

    /// The events of these records that are noted as released. The store compares them when they
    /// are filled in, so that a release meanwhile is noticed.
    pub(super) fn released(&self, range: OffsetRange) -> &[(Offset, u32)] {
        let at = |offset: Offset| self.released.partition_point(|event| event.0 < offset);
        &self.released[at(range.from)..at(range.to)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(offset: Offset, index: u32, tenant: &str) -> QuarantineRow {
        QuarantineRow {
            shard: ShardId(1),
            offset,
            index,
            tenant: tenant.to_owned(),
            received: 0,
            reason: String::new(),
            discarded: false,
            record: Vec::new(),
        }
    }

    #[test]
    fn what_is_not_in_the_quarantine_any_more_was_released() {
        let rows =
            [row(3, 1, "t"), row(4, 0, ""), QuarantineRow { shard: ShardId(2), ..row(9, 0, "t") }];
        let aside = SetAsideEvents::new(&rows, vec![(2, 1), (5, 0), (5, 3), (8, 0)], ShardId(1));
        assert!(aside.has(3, 1) && !aside.has(3, 0) && !aside.has(9, 0));
        assert!(aside.has(4, 0) && aside.has(4, 7), "the whole record");
        assert!(!aside.has(5, 0));
        let released = |from, to| aside.released(OffsetRange { from, to });
        assert_eq!(released(3, 8), [(5, 0), (5, 3)]);
        assert_eq!((released(6, 8), released(0, 99).len()), (&[][..], 4));
    }
}
