//! Invariant checks that a running shard makes on itself. Each is a function of its arguments, so
//! that a test can violate it.

use crate::invariants::{Invariant, check};
use crate::model::flush::FlushBatch;
use crate::model::generation::GenerationId;
use crate::model::offset::{Offset, OffsetRange, ShardId};

/// I7 and I2, before a batch goes to the store: every applied event is counted exactly once, every
/// event counted as aggregated is in exactly one delta, and every other one is noted.
pub(super) fn check_counts(shard: ShardId, range: OffsetRange, batch: &FlushBatch, applied: u64) {
    let OffsetRange { from, to } = range;
    let rows = &batch.accounting;
    let counted: u64 =
        rows.iter().map(|row| row.aggregated + row.deduplicated + row.quarantined).sum();
    check(Invariant::Accounting, counted == applied, || {
        format!("shard {shard} counts {counted} of the {applied} events in [{from}, {to})")
    });
    let aggregated: u64 = rows.iter().map(|row| row.aggregated).sum();
    let noted = batch.outcomes.len();
    check(Invariant::Accounting, noted == counted - aggregated, || {
        format!(
            "shard {shard} notes {noted} of the {} events in [{from}, {to}) that it does not count",
            counted - aggregated
        )
    });
    let in_deltas: u64 = batch.deltas.iter().map(|delta| delta.rollup.figures.count).sum();
    check(Invariant::ExactEffect, in_deltas == aggregated, || {
        format!(
            "shard {shard} has {in_deltas} of {aggregated} events in the deltas of [{from}, {to})"
        )
    });
}

/// I3, before a live answer: the batches above the checkpoint continue it without a gap, so that
/// store ⊕ batches is a prefix of the log.
pub(super) fn check_prefix(
    shard: ShardId,
    checkpoint: Offset,
    batches: impl Iterator<Item = OffsetRange>,
    open: Offset,
) {
    let mut batches = batches;
    let end = batches.try_fold(checkpoint, |at, range| (at == range.from).then_some(range.to));
    check(Invariant::PrefixAtomicity, end == Some(open), || {
        format!("shard {shard}: the batches above {checkpoint} do not continue it up to {open}")
    });
}

/// I13, for an event of a range that the shard writes: the generation has a writer, or its rows
/// would lack the event.
pub(super) fn check_writer(
    shard: ShardId,
    generation: GenerationId,
    offset: Offset,
    has_writer: bool,
) {
    check(Invariant::GenerationEffect, has_writer, || {
        format!("shard {shard} has no writer for replay {generation}, so it lacks offset {offset}")
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::invariants::tests::violations;
    use crate::model::flush::{AccountingDelta, Delta, SeriesInfo};
    use crate::model::outcome::{OutcomeNote, UncountedEvent, Verdict};
    use crate::model::rollup::Rollup;
    use crate::model::series::{Series, SeriesId};
    use crate::model::window::Hour;

    const SHARD: ShardId = ShardId(3);
    const ONE: GenerationId = GenerationId(1);

    #[test]
    fn an_event_that_is_counted_and_in_no_delta_is_a_violation() {
        let series = Series::new("t", "m", []);
        let info = Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
        let mut rollup = Rollup::default();
        rollup.add(None, None);
        let delta = Delta { series: info, hour: Hour(1), rollup };
        let row = |aggregated| AccountingDelta {
            tenant: "t".to_owned(),
            hour: Hour(1),
            aggregated,
            deduplicated: 1,
            quarantined: 0,
        };
        let note = |events: u32| {
            let mut note = OutcomeNote::default();
            for index in 0..events {
                let verdict = Verdict::Duplicate;
                note.push(UncountedEvent { offset: 0, index, verdict });
            }
            note
        };
        let check = |aggregated, applied, noted| {
            let batch = FlushBatch {
                deltas: vec![delta.clone()],
                accounting: vec![row(aggregated)],
                outcomes: note(noted),
                ..FlushBatch::default()
            };
            check_counts(SHARD, OffsetRange { from: 0, to: 1 }, &batch, applied);
        };
        assert_eq!(violations(Invariant::ExactEffect, || check(1, 2, 1)), 0);
        assert_eq!(violations(Invariant::ExactEffect, || check(2, 3, 1)), 1);
        assert_eq!(violations(Invariant::Accounting, || check(1, 2, 1)), 0);
        assert_eq!(violations(Invariant::Accounting, || check(1, 3, 1)), 1);
        assert_eq!(violations(Invariant::Accounting, || check(1, 2, 0)), 1, "not noted");
    }

    #[test]
    fn a_batch_that_is_missing_above_the_checkpoint_is_a_violation() {
        let found = |checkpoint, batches: &[(Offset, Offset)], open| {
            let ranges = batches.iter().map(|&(from, to)| OffsetRange { from, to });
            violations(Invariant::PrefixAtomicity, || {
                check_prefix(SHARD, checkpoint, ranges, open);
            })
        };
        assert_eq!(found(4, &[], 4), 0);
        assert_eq!(found(4, &[(4, 6), (6, 9)], 9), 0);
        assert_eq!(found(4, &[], 5), 1, "nothing continues it");
        assert_eq!(found(4, &[(4, 6), (7, 9)], 9), 1, "a gap");
        assert_eq!(found(4, &[(4, 6)], 9), 1, "the newest is missing");
        assert_eq!(found(4, &[(4, 6), (4, 9)], 9), 1, "twice");
    }

    #[test]
    fn a_generation_of_the_set_without_a_writer_is_a_violation() {
        let check =
            |has| violations(Invariant::GenerationEffect, || check_writer(SHARD, ONE, 7, has));
        assert_eq!((check(true), check(false)), (0, 1));
    }
}
