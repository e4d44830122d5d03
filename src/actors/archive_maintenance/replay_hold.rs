//! Which objects must not expire yet, because a replay still has to read them. Pure.

use crate::model::flush::FillProgress;
use crate::model::generation::{DayRange, GenerationId};
use crate::model::generation_book::GenerationBook;
use crate::model::manifest::ManifestRow;
use crate::model::offset::Offset;
use crate::model::window::Millis;

/// A fill that has not read everything: the days that it fills, and its cursor.
pub(super) type UnfilledDays = (DayRange, Offset);

/// The generations that hold their objects at `now`: those that are being built, and were started
/// less than `max_ms` ago. Nothing is deleted because this clock is wrong: what is not held expires
/// only if it is due.
pub(super) fn holding(
    book: &GenerationBook,
    now: Millis,
    max_ms: i64,
) -> Vec<(GenerationId, DayRange)> {
    let built = book.generations().iter().filter(|(id, _)| book.is_built(**id));
    built
        .filter(|(_, generation)| now.saturating_sub(generation.started) < max_ms)
        .map(|(id, generation)| (*id, generation.days))
        .collect()
}

/// What a shard's fill of these days still has to read; `None` if that is nothing. Without a cut it
/// has not begun.
pub(super) fn unfilled(days: DayRange, progress: Option<FillProgress>) -> Option<UnfilledDays> {
    match progress {
        Some(at) if at.is_complete() => None,
        at => Some((days, at.map_or(0, |at| at.cursor))),
    }
}

/// How many of the first rows no fill has to read any more.
pub(super) fn rows_before_held(rows: &[ManifestRow], fills: &[UnfilledDays]) -> usize {
    let is_held = |row: &ManifestRow| {
        fills.iter().any(|(days, cursor)| {
            row.range.to > *cursor && row.windows.iter().any(|(hour, _)| days.contains(hour.day()))
        })
    };
    rows.iter().position(is_held).unwrap_or(rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generation_book::NewGeneration;
    use crate::model::manifest::Tier;
    use crate::model::offset::{Epoch, LogId, OffsetRange, ShardId};
    use crate::model::window::Hour;

    fn row(from: Offset, day: i32) -> ManifestRow {
        ManifestRow {
            log: LogId([0; 16]),
            shard: ShardId(0),
            range: OffsetRange { from, to: from + 10 },
            epoch: Epoch { counter: 1, nonce: 1 },
            path: String::new(),
            appended: (0, 0),
            received: (0, 0),
            windows: vec![(Hour(day * 24), 1)],
            rows: 1,
            raw_bytes: 1,
            bytes: 1,
            crc32c: 0,
            tier: Tier::Hot,
        }
    }

    #[test]
    fn what_a_fill_has_to_read_is_held_and_nothing_else() {
        let rows = [row(0, 1), row(10, 5), row(20, 5), row(30, 1)];
        let days = DayRange::new(5, Some(6)).expect("a day");
        let progress = |cursor| FillProgress { log: LogId([0; 16]), cut: 30, cursor };
        let before =
            |at| rows_before_held(&rows, &unfilled(days, at).into_iter().collect::<Vec<_>>());
        assert_eq!([None, Some(progress(0)), Some(progress(10))].map(before), [1, 1, 1]);
        assert_eq!(
            [Some(progress(20)), Some(progress(29)), Some(progress(30))].map(before),
            [2, 2, 4]
        );
        assert_eq!(rows_before_held(&rows, &[]), 4);
    }

    #[test]
    fn a_replay_holds_its_objects_while_it_is_built_and_for_so_long() {
        let mut book = GenerationBook::default();
        let days = DayRange::new(5, None).expect("open");
        let new = NewGeneration {
            tenant: "t".to_owned(),
            metrics: vec!["m".to_owned()],
            days,
            rules: "".into(),
            started: (1_000, "k".to_owned()),
        };
        let one = book.start(new, 3, 1).expect("started");
        assert_eq!(holding(&book, 1_099, 100), [(one, days)]);
        assert_eq!(holding(&book, 1_100, 100), []);
        book.apply(one, 1_001).expect("applied");
        assert_eq!(holding(&book, 1_002, 100), [], "it is filled");
    }
}
