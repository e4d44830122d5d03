//! How many events fills have read, and how many are left.
//!
//! A cursor counts records, and one record may have ten thousand events. The manifest says how many
//! an object has. A fill passes over objects without an event on its days, so those do not count.
//! Within an object, of which a fill may commit a part, events are spread evenly over its records.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::api::replays::EventProgress;
use crate::model::flush::FillProgress;
use crate::model::generation::{DayRange, GenerationId};
use crate::model::manifest::ManifestRow;
use crate::model::offset::{Offset, ShardId};
use crate::persistence::store::{StoreError, StoreSnapshot};

/// Points of a scale, at least; at twice as many, every second one goes. 8 KiB at most.
const MIN_POINTS: usize = 256;
/// Scales that are kept: one for each shard of a replay that is being built. 8 MiB at most.
const MAX_SCALES: usize = 1_024;

/// How many events a shard's objects have below an offset. Pure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct EventScale {
    /// Offset and events below it, both ascending.
    points: Vec<(Offset, u64)>,
}

impl EventScale {
    /// Of the objects with an event on these days. `rows` are the shard's, by range.
    fn new(rows: &[ManifestRow], days: DayRange) -> Self {
        let (mut scale, mut events) = (Self::default(), 0_u64);
        let is_read =
            |row: &&ManifestRow| row.windows.iter().any(|(hour, _)| days.contains(hour.day()));
        for row in rows.iter().filter(is_read) {
            if scale.points.last().is_none_or(|(offset, _)| *offset < row.range.from) {
                scale.points.push((row.range.from, events));
            }
            events = events.saturating_add(row.rows);
            scale.points.push((row.range.to, events));
            if scale.points.len() > 2 * MIN_POINTS {
                scale.thin();
            }
        }
        scale
    }

    /// Drops every second point, never the last.
    fn thin(&mut self) {
        let last = self.points.len() - 1;
        let mut at = 0..;
        self.points
            .retain(|_| at.next().is_none_or(|at: usize| at.is_multiple_of(2) || at == last));
    }

    fn below(&self, offset: Offset) -> u64 {
        let next = self.points.partition_point(|(at, _)| *at <= offset);
        let Some((from, below)) = next.checked_sub(1).map(|at| self.points[at]) else { return 0 };
        let Some((to, until)) = self.points.get(next) else { return below };
        let part = u128::from(until - below) * u128::from(offset - from) / u128::from(to - from);
        below + u64::try_from(part).unwrap_or(until - below)
    }
}

/// The scale of a shard, and what it was made of.
struct ShardScale {
    /// Everything below is in the archive and counts, but nothing below the floor.
    to: Offset,
    floor: Offset,
    scale: EventScale,
}

/// The events of fills. A manifest is read once for each shard of a replay, and again only when the
/// archive has more of what is to be filled in.
#[derive(Default)]
pub(super) struct EventCounts(Mutex<BTreeMap<(GenerationId, ShardId), ShardScale>>);

impl EventCounts {
    /// How far the fills of a generation are, as this snapshot has them. `floors` are the archive's.
    pub(super) fn progress(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        (id, days): (GenerationId, DayRange),
        filled: &[(ShardId, FillProgress)],
        floors: &BTreeMap<ShardId, Offset>,
    ) -> Result<EventProgress, StoreError> {
        let archived: BTreeMap<ShardId, Offset> = snapshot
            .checkpoints()?
            .into_iter()
            .map(|(shard, checkpoint)| (shard, checkpoint.archived))
            .collect();
        let mut events = EventProgress { done: 0, left: 0, unarchived_records: 0 };
        for (shard, at) in filled {
            let to = archived.get(shard).map_or(0, |archived| at.cut.min(*archived));
            let floor = floors.get(shard).copied().unwrap_or(0);
            let key = (id, *shard);
            let [done, all] = match self.known(key, (floor, to), at.cursor) {
                Some(counted) => counted,
                None => {
                    let rows = snapshot.manifest(Some(*shard))?;
                    let scale = ShardScale { to, floor, scale: EventScale::new(&rows, days) };
                    self.keep(key, scale, at.cursor)
                }
            };
            events.done += done;
            events.left += all.saturating_sub(done);
            events.unarchived_records += at.cut.saturating_sub(to.max(at.cursor));
        }
        Ok(events)
    }

    /// Events below the cursor and of all, if the manifest need not be read for that.
    fn known(
        &self,
        key: (GenerationId, ShardId),
        (floor, to): (Offset, Offset),
        cursor: Offset,
    ) -> Option<[u64; 2]> {
        let scales = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = scales.get(&key).filter(|of| (of.floor, of.to) == (floor, to))?;
        Some([of.scale.below(cursor), of.scale.below(to)])
    }

    fn keep(&self, key: (GenerationId, ShardId), of: ShardScale, cursor: Offset) -> [u64; 2] {
        let counted = [of.scale.below(cursor), of.scale.below(of.to)];
        let mut scales = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbers of generations grow: those of the first are over, or can be made again.
        while scales.len() >= MAX_SCALES {
            scales.pop_first();
        }
        scales.insert(key, of);
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::Tier;
    use crate::model::offset::{Epoch, LogId, OffsetRange};
    use crate::model::window::Hour;

    fn row(from: Offset, to: Offset, day: i32, rows: u64) -> ManifestRow {
        ManifestRow {
            log: LogId([0; 16]),
            shard: ShardId(0),
            range: OffsetRange { from, to },
            epoch: Epoch { counter: 1, nonce: 1 },
            path: format!("{from}"),
            appended: (0, 0),
            received: (0, 0),
            windows: vec![(Hour(day * 24 + 5), 1)],
            rows,
            raw_bytes: 1,
            bytes: 1,
            crc32c: 0,
            tier: Tier::Hot,
        }
    }

    #[test]
    fn events_of_objects_that_are_read_are_counted_and_no_others() {
        let rows = [row(5, 10, 3, 5_000), row(10, 20, 9, 7), row(20, 30, 3, 100)];
        let scale = EventScale::new(&rows, DayRange::new(3, Some(4)).expect("days"));
        let below = [0, 5, 7, 10, 19, 20, 25, 30, 99].map(|offset| scale.below(offset));
        assert_eq!(below, [0, 0, 2_000, 5_000, 5_000, 5_000, 5_050, 5_100, 5_100]);
        assert_eq!(EventScale::default().below(7), 0);
    }

    #[test]
    fn a_year_of_objects_takes_few_points_and_stays_exact_at_its_end() {
        let rows: Vec<_> = (0..52_560).map(|n| row(n * 10, n * 10 + 10, 0, n % 7)).collect();
        let scale = EventScale::new(&rows, DayRange::ALWAYS);
        assert!(scale.points.len() <= 2 * MIN_POINTS, "{}", scale.points.len());
        let all: u64 = rows.iter().map(|row| row.rows).sum();
        assert_eq!(scale.below(525_600), all);
        let half = scale.below(262_800);
        assert!(half.abs_diff(all / 2) < all / 100, "{half} of {all}");
        assert!((0..525_600).step_by(997).map(|at| scale.below(at)).is_sorted());
    }
}
