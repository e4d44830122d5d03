//! Orders the rows of one hour by series id and writer, and holds a bounded number of bytes for it.
//!
//! Stores have the rows of an hour by the numbers of series, which are not in the order of ids.
//! Rows that do not fit are let go, the greatest first, and the store reads the hour again for
//! them. So an hour of a million series with sketches costs time, and no more memory than a small
//! one. A scan may begin within an hour: rows up to there are then not held at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{GenerationRowVisitor, StoreError};
use crate::model::flush::SeriesInfo;
use crate::model::generation::Writer;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::Hour;

/// Most bytes of rows that a scan holds. Small in unit tests, which are to read hours repeatedly.
const MAX_BYTES: usize = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// Estimated bytes of a row besides its sketches.
const ROW_BYTES: usize = size_of::<(SeriesId, Writer, Rollup)>() + 32;

type RowPlace = (SeriesId, Writer);

/// The rows of one hour that are held, and which of the hour were visited or let go.
#[derive(Debug)]
pub(super) struct HourSort<'s> {
    max_bytes: usize,
    bytes: usize,
    rows: BTreeMap<RowPlace, (&'s Arc<SeriesInfo>, Rollup)>,
    /// Rows of the first hour up to this series are not wanted.
    after: Option<SeriesId>,
    /// Rows up to this one were visited.
    visited: Option<RowPlace>,
    /// Rows from this one on were let go.
    let_go: Option<RowPlace>,
    encoded: Vec<u8>,
}

fn bytes_of(rollup: &Rollup) -> usize {
    ROW_BYTES + rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes()
}

impl<'s> HourSort<'s> {
    /// For a scan that begins after a series of its first hour.
    pub(super) fn after(after: Option<SeriesId>) -> Self {
        Self { after, ..Self::with_limit(MAX_BYTES) }
    }

    fn with_limit(max_bytes: usize) -> Self {
        let (rows, encoded) = (BTreeMap::new(), Vec::new());
        Self { max_bytes, bytes: 0, rows, after: None, visited: None, let_go: None, encoded }
    }

    /// Whether a row of this place would be held: it was not visited, and may come next.
    pub(super) fn wants(&self, place: RowPlace) -> bool {
        self.after.is_none_or(|after| place.0 > after)
            && self.visited.is_none_or(|last| place > last)
            && self.let_go.is_none_or(|first| place < first)
    }

    /// Takes a row of the hour, in any order.
    pub(super) fn add(&mut self, writer: Writer, info: &'s Arc<SeriesInfo>, rollup: Rollup) {
        let place = (info.id, writer);
        if !self.wants(place) {
            return;
        }
        self.bytes += bytes_of(&rollup);
        self.rows.insert(place, (info, rollup));
        // One row is held however large it is, or the hour would never end.
        while self.bytes > self.max_bytes && self.rows.len() > 1 {
            let Some((place, (_, rollup))) = self.rows.pop_last() else { break };
            self.bytes = self.bytes.saturating_sub(bytes_of(&rollup));
            self.let_go = Some(place);
        }
    }

    /// Visits what is held, in order. Returns whether rows were let go: then the hour is to be read
    /// again, until there are none.
    pub(super) fn visit(
        &mut self,
        hour: Hour,
        visit: GenerationRowVisitor<'_>,
    ) -> Result<bool, StoreError> {
        let mut last = None;
        for (place, (info, rollup)) in std::mem::take(&mut self.rows) {
            self.encoded.clear();
            rollup.encode(&mut self.encoded);
            visit(place.1, info, hour, rollup, &self.encoded)?;
            last = Some(place);
        }
        self.bytes = 0;
        let again = self.let_go.take().is_some();
        self.visited = last.filter(|_| again);
        self.after = self.after.filter(|_| again);
        Ok(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generation::WriterPart;
    use crate::model::offset::ShardId;
    use crate::model::series::Series;

    fn series(n: usize) -> Arc<SeriesInfo> {
        let series = Series::new("t", "m", [("page".to_owned(), n.to_string())]);
        Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series })
    }

    /// Reads an hour as a store does. Returns the places in the order of visits, and how many times
    /// the hour was read.
    fn read(all: &[Arc<SeriesInfo>], max_bytes: usize) -> (Vec<SeriesId>, usize) {
        read_after(all, max_bytes, None)
    }

    fn read_after(
        all: &[Arc<SeriesInfo>],
        max_bytes: usize,
        after: Option<SeriesId>,
    ) -> (Vec<SeriesId>, usize) {
        let mut sort = HourSort { after, ..HourSort::with_limit(max_bytes) };
        let (mut visited, mut times) = (Vec::new(), 0);
        let writer = Writer { shard: ShardId(0), part: WriterPart::Live };
        loop {
            times += 1;
            for info in all {
                sort.add(writer, info, Rollup::default());
                assert!(sort.bytes <= max_bytes.max(bytes_of(&Rollup::default())));
            }
            let mut visit = |_, info: &Arc<SeriesInfo>, _, _, _: &[u8]| {
                visited.push(info.id);
                Ok(())
            };
            if !sort.visit(Hour(1), &mut visit).expect("visited") {
                assert_eq!(sort.after, None, "the next hour is whole");
                return (visited, times);
            }
        }
    }

    #[test]
    fn rows_come_in_order_and_once_however_few_of_them_are_held() {
        let all: Vec<_> = (0..100).map(series).collect();
        let mut expected: Vec<_> = all.iter().map(|info| info.id).collect();
        expected.sort();
        let row = bytes_of(&Rollup::default());
        for (rows, times) in [(1, 100), (7, 15), (99, 2), (100, 1)] {
            assert_eq!(read(&all, rows * row), (expected.clone(), times), "{rows} rows");
        }
        assert_eq!(read(&all[..3], 1), (read(&all[..3], row * 9).0, 3), "larger than the limit");
        assert_eq!(read(&[], 1), (vec![], 1));
        let behind = |at: usize| read_after(&all, 20 * row, Some(expected[at]));
        assert_eq!(behind(39), (expected[40..].to_vec(), 3), "those before take no place");
        assert_eq!(behind(99), (vec![], 1));
    }

    #[test]
    fn the_next_hour_begins_with_nothing() {
        let (all, row): (Vec<_>, _) = ((0..3).map(series).collect(), bytes_of(&Rollup::default()));
        let mut sort = HourSort::with_limit(2 * row);
        let writer = Writer { shard: ShardId(0), part: WriterPart::Live };
        let count = |sort: &mut HourSort<'_>| {
            let mut count = 0;
            let again = sort.visit(Hour(1), &mut |_, _, _, _, _| {
                count += 1;
                Ok(())
            });
            (count, again.expect("visited"))
        };
        for _ in 0..2 {
            all.iter().for_each(|info| sort.add(writer, info, Rollup::default()));
            assert_eq!(count(&mut sort), (2, true));
            all.iter().for_each(|info| sort.add(writer, info, Rollup::default()));
            assert_eq!(count(&mut sort), (1, false));
        }
    }
}
