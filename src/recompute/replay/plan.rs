//! Which objects of a shard a fill reads, and which it passes over. Pure.

use crate::model::generation::DayRange;
use crate::model::manifest::{ArchiveFloor, ManifestRow};
use crate::model::offset::Offset;
use crate::model::window::Millis;

/// What a fill does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FillStep<'a> {
    /// Everything below the cut is folded.
    Complete,
    /// The records below this offset have no event on the generation's days.
    PassOver(Offset),
    /// Read this object.
    Read(&'a ManifestRow),
    /// The records from here on are not in the archive yet.
    AwaitArchive,
    /// Records that it needs have expired.
    Expired,
}

/// What follows when everything below `folded` has been offered to the fill. `rows` are the shard's
/// manifest rows, by range.
pub(super) fn next_step(
    rows: &[ManifestRow],
    floor: Option<ArchiveFloor>,
    days: DayRange,
    (folded, cut): (Offset, Offset),
) -> FillStep<'_> {
    if folded >= cut {
        return FillStep::Complete;
    }
    if let Some(floor) = floor.filter(|floor| floor.offset > folded) {
        return if is_below_floor(days, floor) {
            FillStep::Expired
        } else {
            FillStep::PassOver(floor.offset.min(cut))
        };
    }
    let first = rows.partition_point(|row| row.range.to <= folded);
    let left = rows[first..].iter().take_while(|row| row.range.from < cut);
    let mut passed = folded;
    for row in left {
        // A gap: the manifest tiles the log, so this is a manifest that was read before a change.
        if row.range.from > passed {
            break;
        }
        if row.windows.iter().any(|(hour, _)| days.contains(hour.day())) {
            return if passed > folded { FillStep::PassOver(passed) } else { FillStep::Read(row) };
        }
        passed = row.range.to.min(cut);
    }
    if passed > folded { FillStep::PassOver(passed) } else { FillStep::AwaitArchive }
}

/// Whether days begin before those that the archive still has whole, so that a replay of them
/// would lack events.
pub fn is_below_floor(days: DayRange, floor: ArchiveFloor) -> bool {
    days.from() < floor.first_whole_day()
}

/// The object from which the shard's driver must fold, so that it decides the duplicates of
/// `rows[at]` as ingest did: no id before it can matter there. `None` if the archive floor hides
/// that point: what became of the object's events cannot be said, and replays of its days are
/// refused.
pub fn deciding_start(
    rows: &[ManifestRow],
    at: usize,
    floor: Option<ArchiveFloor>,
    horizon_ms: i64,
) -> Option<usize> {
    (0..=at.min(rows.len().checked_sub(1)?))
        .rev()
        .find(|&start| begins_apart(rows, start, floor, horizon_ms))
}

/// Whether no id before an object can matter in it.
fn begins_apart(
    rows: &[ManifestRow],
    at: usize,
    floor: Option<ArchiveFloor>,
    horizon_ms: i64,
) -> bool {
    let first = rows[at].appended.0;
    let is_apart = |before: Millis| first.saturating_sub(before) > horizon_ms;
    match at.checked_sub(1) {
        Some(before) => is_apart(rows[before].appended.1),
        None if floor.is_none() && rows[0].range.from == 0 => true,
        None => floor.is_some_and(|floor| is_apart(floor.appended)),
    }
}

/// How many of a shard's objects, the first, the archive floor hides what would decide about.
pub fn hidden_objects(rows: &[ManifestRow], floor: Option<ArchiveFloor>, horizon_ms: i64) -> usize {
    (0..rows.len()).take_while(|at| !begins_apart(rows, *at, floor, horizon_ms)).count()
}

/// The days on which objects have events, ascending.
pub fn touched_days(rows: &[ManifestRow]) -> Vec<i32> {
    let mut days: Vec<i32> =
        rows.iter().flat_map(|row| row.windows.iter().map(|(hour, _)| hour.day())).collect();
    days.sort_unstable();
    days.dedup();
    days
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::Tier;
    use crate::model::offset::{Epoch, LogId, OffsetRange, ShardId};
    use crate::model::window::Hour;

    fn row(from: Offset, to: Offset, day: i32, appended: (Millis, Millis)) -> ManifestRow {
        ManifestRow {
            log: LogId([0; 16]),
            shard: ShardId(0),
            range: OffsetRange { from, to },
            epoch: Epoch { counter: 1, nonce: 1 },
            path: format!("{from}"),
            appended,
            received: appended,
            windows: vec![(Hour(day * 24 + 5), 1)],
            rows: 1,
            raw_bytes: 1,
            bytes: 1,
            crc32c: 0,
            tier: Tier::Hot,
        }
    }

    fn days(from: i32, to: i32) -> DayRange {
        DayRange::new(from, Some(to)).expect("a range")
    }

    fn floor(offset: Offset, hour: i32, appended: Millis) -> Option<ArchiveFloor> {
        Some(ArchiveFloor { offset, appended, hour: Hour(hour) })
    }

    #[test]
    fn objects_of_other_days_are_passed_over_together() {
        let rows = [0, 0, 3, 0].into_iter().zip(0u64..);
        let rows: Vec<_> = rows.map(|(day, n)| row(n * 10, n * 10 + 10, day, (0, 0))).collect();
        let step = |folded, cut| next_step(&rows, None, days(3, 4), (folded, cut));
        assert_eq!(step(0, 35), FillStep::PassOver(20));
        assert_eq!(step(5, 15), FillStep::PassOver(15));
        assert_eq!(step(20, 35), FillStep::Read(&rows[2]));
        assert_eq!(step(24, 35), FillStep::Read(&rows[2]));
        assert_eq!(step(30, 35), FillStep::PassOver(35));
        assert_eq!(step(35, 35), FillStep::Complete);
        assert_eq!(step(30, 99), FillStep::PassOver(40));
        assert_eq!(step(40, 99), FillStep::AwaitArchive);
        assert_eq!(next_step(&rows[1..], None, days(3, 4), (0, 35)), FillStep::AwaitArchive);
    }

    #[test]
    fn what_has_expired_is_passed_over_only_if_none_of_its_events_is_wanted() {
        let rows = [row(10, 20, 7, (0, 0))];
        let step = |hour| next_step(&rows, floor(10, hour, 0), days(7, 9), (3, 20));
        assert_eq!(step(7 * 24), FillStep::PassOver(10));
        assert_eq!(step(7 * 24 + 1), FillStep::Expired);
        let behind = next_step(&rows, floor(10, 400, 0), days(7, 9), (10, 20));
        assert_eq!(behind, FillStep::Read(&rows[0]));
    }

    #[test]
    fn ids_are_folded_from_where_no_other_can_matter() {
        let rows =
            [(0, 10), (15, 20), (200, 210), (220, 230)].map(|appended| row(0, 1, 0, appended));
        let start = |at, floor| deciding_start(&rows, at, floor, 100);
        assert_eq!([0, 1, 2, 3].map(|at| start(at, None)), [Some(0), Some(0), Some(2), Some(2)]);
        let near = floor(5, 0, -50);
        assert_eq!([0, 1, 2, 3].map(|at| start(at, near)), [None, None, Some(2), Some(2)]);
        let far = floor(5, 0, -101);
        assert_eq!([0, 1, 2].map(|at| start(at, far)), [Some(0), Some(0), Some(2)]);
        let late = [row(7, 8, 0, (0, 0))];
        assert_eq!(deciding_start(&late, 0, None, 100), None, "what lies below it is unknown");
        assert_eq!(deciding_start(&[], 0, None, 100), None);
    }

    #[test]
    fn days_are_refused_where_the_floor_hides_what_decides() {
        let rows: Vec<_> = [(4, 0, 10), (5, 15, 20), (6, 200, 210), (7, 220, 230)]
            .into_iter()
            .map(|(day, from, to)| row(0, 1, day, (from, to)))
            .collect();
        assert_eq!(hidden_objects(&rows, None, 100), 0);
        let hidden = hidden_objects(&rows, floor(5, 0, -50), 100);
        assert_eq!(touched_days(&rows[..hidden]), [4, 5]);
        assert_eq!(hidden_objects(&rows, floor(5, 0, -101), 100), 0, "the floor is as far");
        assert_eq!(hidden_objects(&[], floor(5, 0, 0), 100), 0);
    }
}
