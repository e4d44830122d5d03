//! What differs between two ordered scans of rows. Pure.
//!
//! Rows come by hour and series id, those of several writers of one series behind each other. They
//! are merged first, because how many writers there were is nobody's concern. What is kept of a row
//! is small: figures, and hashes of its sketches.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use crate::model::flush::SeriesInfo;
use crate::model::rollup::{Rollup, RollupFigures};
use crate::model::series::SeriesId;
use crate::model::window::Hour;

/// The place of a row in a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RowKey {
    /// The hour.
    pub hour: Hour,
    /// The series.
    pub series: SeriesId,
}

/// What is compared of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowFigures {
    /// Count, sum and the like.
    pub figures: RollupFigures,
    /// Estimate of the distinct users.
    pub distinct: u64,
    distinct_hash: u128,
    quantiles_hash: u128,
}

impl RowFigures {
    /// What is compared of a rollup.
    pub(super) fn new(rollup: &Rollup) -> Self {
        let (mut distinct, mut quantiles) = (Vec::new(), Vec::new());
        rollup.distinct.encode(&mut distinct);
        rollup.quantiles.encode(&mut quantiles);
        Self {
            figures: rollup.figures,
            distinct: rollup.distinct.estimate(),
            distinct_hash: xxh3_128(&distinct),
            quantiles_hash: xxh3_128(&quantiles),
        }
    }
}

/// A row of all writers together.
#[derive(Debug, Clone)]
pub(super) struct ScannedRow {
    /// Its place.
    pub key: RowKey,
    /// Its series.
    pub series: Arc<SeriesInfo>,
    /// What is compared of it.
    pub figures: RowFigures,
}

/// Merges the rows of several writers, which come behind each other.
#[derive(Debug, Default)]
pub(super) struct WriterMerge(Option<(RowKey, Arc<SeriesInfo>, Rollup)>);

impl WriterMerge {
    /// Takes the next row of the scan. Returns the one before, if it is of another series or hour.
    pub(super) fn push(
        &mut self,
        series: &Arc<SeriesInfo>,
        hour: Hour,
        rollup: Rollup,
    ) -> Option<ScannedRow> {
        let key = RowKey { hour, series: series.id };
        if let Some((_, _, sum)) = self.0.as_mut().filter(|(at, ..)| *at == key) {
            sum.merge(&rollup);
            return None;
        }
        let before = self.finish();
        self.0 = Some((key, series.clone(), rollup));
        before
    }

    /// The last row of the scan.
    pub(super) fn finish(&mut self) -> Option<ScannedRow> {
        let (key, series, rollup) = self.0.take()?;
        Some(ScannedRow { key, series, figures: RowFigures::new(&rollup) })
    }
}

/// A row that differs.
#[derive(Debug, Clone)]
pub(super) struct ChangedRow {
    /// Its place.
    pub key: RowKey,
    /// Its series.
    pub series: Arc<SeriesInfo>,
    /// What is served.
    pub before: Option<RowFigures>,
    /// What the replay has.
    pub after: Option<RowFigures>,
}

impl ChangedRow {
    /// By how much it changed: events first, then the sum, then users. Sketches alone are the least.
    fn size(&self) -> (u64, u128, u64) {
        let figures = |row: &Option<RowFigures>| row.map(|row| row.figures).unwrap_or_default();
        let users = |row: &Option<RowFigures>| row.map_or(0, |row| row.distinct);
        let (before, after) = (figures(&self.before), figures(&self.after));
        (
            before.count.abs_diff(after.count),
            before.sum.abs_diff(after.sum),
            users(&self.before).abs_diff(users(&self.after)),
        )
    }

    /// Whether the sketches of distinct users are the same bytes.
    pub(super) fn distinct_equal(&self) -> bool {
        let hash = |row: &Option<RowFigures>| row.map(|row| row.distinct_hash);
        hash(&self.before) == hash(&self.after)
    }

    /// Whether the sketches of quantiles are the same bytes.
    pub(super) fn quantiles_equal(&self) -> bool {
        let hash = |row: &Option<RowFigures>| row.map(|row| row.quantiles_hash);
        hash(&self.before) == hash(&self.after)
    }
}

/// Which rows that differ are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeptRows {
    /// So many with the largest changes, the largest first.
    Largest(usize),
    /// All, in order.
    All,
}

/// Sums over all rows of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SideTotals {
    /// Events.
    pub count: u64,
    /// Events with a value.
    pub value_count: u64,
    /// Sum of the values, in units of 10^-9.
    pub sum: i128,
}

impl SideTotals {
    fn add(&mut self, row: &RowFigures) {
        self.count = self.count.saturating_add(row.figures.count);
        self.value_count = self.value_count.saturating_add(row.figures.value_count);
        self.sum = self.sum.saturating_add(row.figures.sum);
    }
}

/// How many rows differ, and the totals of all.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    pub equal: u64,
    pub before: SideTotals,
    pub after: SideTotals,
}

/// A row by the size of its change. Of equal sizes the earlier row is larger, so that an answer
/// does not depend on the order of a heap.
struct BySize(ChangedRow);

impl BySize {
    fn rank(&self) -> ((u64, u128, u64), Reverse<RowKey>) {
        (self.0.size(), Reverse(self.0.key))
    }
}

impl PartialEq for BySize {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for BySize {}

impl PartialOrd for BySize {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BySize {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// Takes pairs of rows, and knows what differs.
pub(super) struct Comparison {
    keep: KeptRows,
    totals: Totals,
    largest: BinaryHeap<Reverse<BySize>>,
    all: Vec<ChangedRow>,
}

impl Comparison {
    /// Nothing is compared yet.
    pub(super) fn new(keep: KeptRows) -> Self {
        Self { keep, totals: Totals::default(), largest: BinaryHeap::new(), all: Vec::new() }
    }

    /// What was compared so far.
    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Whether all rows that differ are kept, and there are so many of them.
    pub(super) fn has(&self, rows: usize) -> bool {
        self.keep == KeptRows::All && self.all.len() >= rows
    }

    /// Compares what is served with what the replay has of one row; either may be missing.
    pub(super) fn add(&mut self, before: Option<ScannedRow>, after: Option<ScannedRow>) {
        before.iter().for_each(|row| self.totals.before.add(&row.figures));
        after.iter().for_each(|row| self.totals.after.add(&row.figures));
        let counter = match (&before, &after) {
            (Some(before), Some(after)) if before.figures == after.figures => {
                self.totals.equal += 1;
                return;
            }
            (Some(_), Some(_)) => &mut self.totals.changed,
            (None, _) => &mut self.totals.added,
            (_, None) => &mut self.totals.removed,
        };
        *counter += 1;
        let (was, is) = (before.as_ref().map(|r| r.figures), after.as_ref().map(|r| r.figures));
        let Some(row) = after.or(before) else { return };
        self.keep(ChangedRow { key: row.key, series: row.series, before: was, after: is });
    }

    fn keep(&mut self, row: ChangedRow) {
        match self.keep {
            KeptRows::All => self.all.push(row),
            KeptRows::Largest(max) => {
                self.largest.push(Reverse(BySize(row)));
                if self.largest.len() > max {
                    self.largest.pop();
                }
            }
        }
    }

    /// The totals, and the rows that are kept.
    pub(super) fn finish(self) -> (Totals, Vec<ChangedRow>) {
        let largest = self.largest.into_sorted_vec().into_iter().map(|row| row.0.0);
        (self.totals, self.all.into_iter().chain(largest).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decimal::Decimal;
    use crate::model::series::Series;

    fn series(page: &str) -> Arc<SeriesInfo> {
        let series = Series::new("t", "m", [("page".to_owned(), page.to_owned())]);
        Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series })
    }

    fn rollup(values: &[i64]) -> Rollup {
        let mut rollup = Rollup::default();
        for value in values {
            rollup.add(Some(Decimal::from_units(i128::from(*value))), None);
        }
        rollup
    }

    fn row(page: &str, hour: i32, values: &[i64]) -> ScannedRow {
        let mut merge = WriterMerge::default();
        assert!(merge.push(&series(page), Hour(hour), rollup(values)).is_none());
        merge.finish().expect("a row")
    }

    #[test]
    fn rows_of_several_writers_are_one_row() {
        let (mut merge, a) = (WriterMerge::default(), series("a"));
        assert!(merge.push(&a, Hour(1), rollup(&[1])).is_none());
        assert!(merge.push(&a, Hour(1), rollup(&[2, 3])).is_none());
        let first = merge.push(&a, Hour(2), rollup(&[4])).expect("another hour");
        assert_eq!(first.figures, row("a", 1, &[3, 2, 1]).figures, "in any order");
        assert_eq!(merge.finish().map(|row| row.key.hour), Some(Hour(2)));
        assert!(merge.finish().is_none());
    }

    #[test]
    fn every_difference_is_counted_and_the_largest_come_first() {
        let mut comparison = Comparison::new(KeptRows::Largest(3));
        comparison.add(Some(row("same", 1, &[1, 2])), Some(row("same", 1, &[2, 1])));
        comparison.add(Some(row("gone", 1, &[5; 4])), None);
        comparison.add(None, Some(row("new", 1, &[5; 9])));
        comparison.add(Some(row("scaled", 1, &[60])), Some(row("scaled", 1, &[1])));
        // Equal figures, other quantiles.
        comparison.add(
            Some(row("shape", 1, &[0, 5_000_000_000, 10_000_000_000])),
            Some(row("shape", 1, &[0, 4_000_000_000, 10_000_000_000, 1_000_000_000])),
        );
        let totals = *comparison.totals();
        assert_eq!((totals.added, totals.removed, totals.changed, totals.equal), (1, 1, 2, 1));
        assert_eq!((totals.before.count, totals.after.count), (2 + 4 + 1 + 3, 2 + 9 + 1 + 4));
        let (_, rows) = comparison.finish();
        let pages: Vec<_> = rows.iter().map(|row| row.series.series.label("page")).collect();
        assert_eq!(pages, ["new", "gone", "shape"], "of a change of one event the sum is less");
    }

    #[test]
    fn sketches_that_differ_make_a_change_though_figures_are_equal() {
        let mut comparison = Comparison::new(KeptRows::All);
        let one = row("a", 1, &[0, 6_000_000_000, 6_000_000_000, 12_000_000_000]);
        let two = row("a", 1, &[0, 4_000_000_000, 8_000_000_000, 12_000_000_000]);
        assert_eq!(one.figures.figures, two.figures.figures);
        comparison.add(Some(one), Some(two));
        let (totals, rows) = comparison.finish();
        assert_eq!((totals.changed, rows.len()), (1, 1));
        assert!(rows[0].distinct_equal() && !rows[0].quantiles_equal());
    }
}
