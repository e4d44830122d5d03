//! Which generation is served in which hours of a query.

use super::generation::{DayRange, GenerationId, Pointer};
use super::window::Hour;
use crate::invariants::{Invariant, check};

/// Hours `[from, to)` of a query, never empty, and the generation that is served there.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedHours {
    pub from: Hour,
    pub to: Hour,
    pub generation: GenerationId,
}

impl ServedHours {
    /// These hours of generation 0.
    pub fn ingest(from: Hour, to: Hour) -> Self {
        Self { from, to, generation: GenerationId::INGEST }
    }

    /// Whether the hour is among them.
    pub fn contains(&self, hour: Hour) -> bool {
        self.from <= hour && hour < self.to
    }
}

/// Cuts the hours `[from, to)` of a query where the pointer of its metric begins to serve another
/// generation. The result covers them, ascending. A metric without a pointer is generation 0.
pub fn served_hours(pointer: Option<&Pointer>, from: Hour, to: Hour) -> Vec<ServedHours> {
    let (Some(days), Some(pointer)) = (DayRange::around(from, to), pointer) else {
        return if from < to { vec![ServedHours::ingest(from, to)] } else { Vec::new() };
    };
    let hours = pointer.cut(days).into_iter().map(|piece| {
        let (first, end) = piece.days.hours();
        ServedHours { from: first.max(from), to: end.min(to), generation: piece.generation }
    });
    hours.collect()
}

/// The generation that is served in an hour; `None` if the hour is in none of the pieces.
pub fn generation_at(served: &[ServedHours], hour: Hour) -> Option<GenerationId> {
    let behind = served.partition_point(|piece| piece.from <= hour);
    served[..behind].last().filter(|piece| piece.contains(hour)).map(|piece| piece.generation)
}

/// Whether the pieces are ascending, never empty, and cover exactly the hours `[from, to)`.
pub fn covers(served: &[ServedHours], from: Hour, to: Hour) -> bool {
    let mut at = from;
    let follows = served.iter().all(|piece| {
        let follows = piece.from == at && piece.from < piece.to;
        at = piece.to;
        follows
    });
    follows && at == to.max(from)
}

/// I14, before an answer is read: its pieces give each of its hours to one generation.
pub fn check_pieces(served: &[ServedHours], from: Hour, to: Hour) {
    check(Invariant::OneGeneration, covers(served, from, to), || {
        format!("the pieces of the hours {} to {} are {served:?}", from.0, to.0)
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::invariants::tests::violations;
    use crate::model::generation::Piece;

    fn served(from: i32, to: i32, generation: u64) -> ServedHours {
        ServedHours { from: Hour(from), to: Hour(to), generation: GenerationId(generation) }
    }

    fn pointer(pieces: &[(i32, Option<i32>, u64)]) -> Pointer {
        Pointer::new(pieces.iter().map(|&(from, to, generation)| Piece {
            days: DayRange::new(from, to).expect("a range"),
            generation: GenerationId(generation),
        }))
    }

    #[test]
    fn an_hour_without_a_generation_is_a_violation() {
        let found = |pieces: &[ServedHours]| {
            violations(Invariant::OneGeneration, || check_pieces(pieces, Hour(0), Hour(10)))
        };
        assert_eq!(found(&[served(0, 4, 1), served(4, 10, 0)]), 0);
        assert_eq!(found(&[served(0, 4, 1), served(5, 10, 0)]), 1);
        assert_eq!(found(&[served(0, 5, 1), served(4, 10, 0)]), 1, "an hour of two");
    }

    #[test]
    fn hours_are_cut_at_the_days_of_the_pointer_and_clipped_to_the_query() {
        let corrected = pointer(&[(1, Some(3), 7), (5, None, 8)]);
        let cut = |from, to| served_hours(Some(&corrected), Hour(from), Hour(to));
        assert_eq!(
            cut(5, 125),
            [served(5, 24, 0), served(24, 72, 7), served(72, 120, 0), served(120, 125, 8)]
        );
        assert_eq!(cut(30, 31), [served(30, 31, 7)]);
        assert_eq!(cut(30, 30), []);
        assert_eq!(served_hours(None, Hour(-3), Hour(9)), [ServedHours::ingest(Hour(-3), Hour(9))]);
        assert_eq!(served_hours(None, Hour(9), Hour(9)), []);
        let always = served_hours(Some(&corrected), Hour(i32::MIN), Hour(i32::MAX));
        assert!(covers(&always, Hour(i32::MIN), Hour(i32::MAX)), "{always:?}");
    }

    #[test]
    fn pieces_with_a_gap_or_out_of_order_do_not_cover() {
        let (from, to) = (Hour(0), Hour(10));
        assert!(covers(&[served(0, 4, 0), served(4, 10, 1)], from, to));
        assert!(covers(&[], from, from) && covers(&[], to, from));
        for wrong in [
            &[][..],
            &[served(0, 9, 0)],
            &[served(1, 10, 0)],
            &[served(0, 4, 0), served(5, 10, 1)],
            &[served(0, 6, 0), served(5, 10, 1)],
            &[served(0, 4, 0), served(4, 4, 2), served(4, 10, 1)],
        ] {
            assert!(!covers(wrong, from, to), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn every_hour_is_served_as_its_day_is(
            pieces in prop::collection::vec((-9i32..9, 1i32..6, 1u64..4), 0..6),
            from in -240i32..240,
            length in 1i32..300,
        ) {
            let pieces: Vec<_> =
                pieces.iter().map(|&(from, days, id)| (from, Some(from + days), id)).collect();
            let (pointer, from, to) = (pointer(&pieces), Hour(from), Hour(from + length));
            let cut = served_hours(Some(&pointer), from, to);
            prop_assert!(covers(&cut, from, to));
            for hour in from.0..to.0 {
                let hour = Hour(hour);
                prop_assert_eq!(generation_at(&cut, hour), Some(pointer.on(hour.day())));
            }
            prop_assert_eq!(generation_at(&cut, to), None);
            prop_assert_eq!(generation_at(&cut, Hour(from.0 - 1)), None);
        }
    }
}
