//! Which events ingest set aside, and which of them people have released since. Pure.

use std::collections::BTreeSet;

use crate::model::offset::{Offset, OffsetRange};
use crate::model::outcome::{UncountedEvent, Verdict};

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
    /// From the quarantine of the shard, and from its events that are noted as released, ascending.
    pub(super) fn new(quarantined: &[UncountedEvent], released: Vec<(Offset, u32)>) -> Self {
        let mut aside = Self { released, ..Self::default() };
        for event in quarantined {
            if event.verdict == Verdict::RecordQuarantined {
                aside.records.insert(event.offset);
            } else {
                aside.events.insert((event.offset, event.index));
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

    #[test]
    fn what_is_not_in_the_quarantine_any_more_was_released() {
        let quarantined =
            [UncountedEvent::set_aside((3, 1), false), UncountedEvent::set_aside((4, 0), true)];
        let aside = SetAsideEvents::new(&quarantined, vec![(2, 1), (5, 0), (5, 3), (8, 0)]);
        assert!(aside.has(3, 1) && !aside.has(3, 0) && !aside.has(9, 0));
        assert!(aside.has(4, 0) && aside.has(4, 7), "the whole record");
        assert!(!aside.has(5, 0));
        let released = |from, to| aside.released(OffsetRange { from, to });
        assert_eq!(released(3, 8), [(5, 0), (5, 3)]);
        assert_eq!((released(6, 8), released(0, 99).len()), (&[][..], 4));
    }
}
