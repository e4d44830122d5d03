//! Compares the folds of the shards with what is stored.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::generations::{GenerationComparison, StoredGenerations};
use super::ledger::RecomputedLedger;
use super::report::{DroppedWindows, RowDifference, VerifyReport};
use super::shard_fold::{FoldedShard, RecomputedRows};
use super::store_view::StoreView;
use super::stored_row::{StoredRow, digest};
use crate::model::flush::SeriesInfo;
use crate::model::offset::ShardId;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::Hour;

/// A comparison in progress: stored rows are removed as the folds produce them.
pub(super) struct Comparison {
    report: VerifyReport,
    unmatched: HashMap<(SeriesId, Hour), StoredRow>,
    /// Rows below are dropped by age, and not compared.
    kept_from: Hour,
    /// How many there would be.
    dropped: u64,
    /// Several shards may write to one overflow series, so its rows are compared only after
    /// all shards are folded.
    overflow: RecomputedRows,
    generations: GenerationComparison,
    ledger: RecomputedLedger,
    folded: BTreeSet<ShardId>,
    shard_count: u32,
    /// Whether all shards are selected.
    all_shards: bool,
}

impl Comparison {
    /// Starts with the stored rows of the range and the hour from which on they are kept, and a
    /// report that holds what is known so far.
    pub(super) fn new(
        report: VerifyReport,
        (rows, kept_from): (HashMap<(SeriesId, Hour), StoredRow>, Hour),
        generations: GenerationComparison,
        (shard_count, all_shards): (u32, bool),
    ) -> Self {
        Self {
            report,
            unmatched: rows,
            kept_from,
            dropped: 0,
            overflow: RecomputedRows::default(),
            generations,
            ledger: RecomputedLedger::default(),
            folded: BTreeSet::new(),
            shard_count,
            all_shards,
        }
    }

    /// What is stored of other generations, for the folds.
    pub(super) fn generations(&self) -> &StoredGenerations {
        self.generations.stored()
    }

    /// Compares the rows of one shard.
    pub(super) fn add_shard(&mut self, shard: ShardId, fold: FoldedShard) {
        let is_of_shard = |((_, hour), row): &(&(SeriesId, Hour), &StoredRow)| {
            *hour >= self.kept_from
                && !row.info.series.is_overflow()
                && row.info.id.shard(self.shard_count) == shard
        };
        self.report.rows += self.unmatched.iter().filter(is_of_shard).count() as u64;
        self.report.records += fold.records;
        self.report.damages.extend(fold.damages);
        self.ledger.add(fold.from_start && self.all_shards, &fold.accounting);
        self.folded.insert(shard);
        self.generations.add_shard(shard, fold.generations);
        for (key, (info, rollup)) in fold.rows {
            if info.series.is_overflow() {
                let row = self.overflow.entry(key);
                row.or_insert_with(|| (info, Rollup::default())).1.merge(&rollup);
            } else {
                self.compare(key, info, &rollup);
            }
        }
    }

    /// Notes that a shard could not be folded.
    pub(super) fn add_unverified(&mut self, shard: ShardId, why: String) {
        self.report.unverified.push((shard, why));
        self.ledger.add(false, &[]);
    }

    /// Compares the overflow series and the accounting, and reports stored rows without records.
    pub(super) fn finish(mut self, view: &StoreView) -> VerifyReport {
        self.drop_incomparable();
        let is_overflow = |((_, hour), row): &(&(SeriesId, Hour), &StoredRow)| {
            *hour >= self.kept_from && row.info.series.is_overflow()
        };
        self.report.rows += self.unmatched.iter().filter(is_overflow).count() as u64;
        for (key, (info, rollup)) in std::mem::take(&mut self.overflow) {
            self.compare(key, info, &rollup);
        }
        self.drop_unkept();
        let (before, dropped) = (self.kept_from, self.dropped);
        let Self { mut report, unmatched, generations, ledger, .. } = self;
        let without_records = |((_, hour), row): ((SeriesId, Hour), StoredRow)| RowDifference {
            written_by: None,
            series: row.info,
            hour,
            stored: Some(row.figures),
            recomputed: None,
        };
        report.differences.extend(unmatched.into_iter().map(without_records));
        if view.rows_unread {
            report.differences.clear();
        }
        let rows = dropped + generations.finish(&mut report);
        report.dropped = (rows > 0).then_some(DroppedWindows { before, rows });
        report.accounting_compared = ledger.is_whole();
        report.damages.extend(ledger.compare(&view.accounting));
        report.differences.sort_by(|a, b| {
            (a.written_by, &a.series.series, a.hour).cmp(&(b.written_by, &b.series.series, b.hour))
        });
        report
    }

    /// Drops the rows of shards that were not folded. Those of overflow series need all shards.
    fn drop_incomparable(&mut self) {
        let all = self.all_shards && self.report.unverified.is_empty();
        let Self { unmatched, folded, shard_count, .. } = self;
        unmatched.retain(|_, row| match row.info.series.is_overflow() {
            true => all,
            false => folded.contains(&row.info.id.shard(*shard_count)),
        });
        if !all {
            self.overflow.clear();
        }
    }

    /// Drops stored rows that came after those of their windows were dropped.
    fn drop_unkept(&mut self) {
        let all = self.unmatched.len();
        self.unmatched.retain(|(_, hour), _| *hour >= self.kept_from);
        self.dropped += (all - self.unmatched.len()) as u64;
    }

    fn compare(&mut self, key: (SeriesId, Hour), series: Arc<SeriesInfo>, rollup: &Rollup) {
        let stored = self.unmatched.remove(&key);
        if key.1 < self.kept_from {
            self.dropped += 1;
            return;
        }
        let mut bytes = Vec::new();
        rollup.encode(&mut bytes);
        if stored.as_ref().is_some_and(|row| row.digest == digest(&bytes)) {
            return;
        }
        self.report.differences.push(RowDifference {
            written_by: None,
            series,
            hour: key.1,
            stored: stored.map(|row| row.figures),
            recomputed: Some(rollup.figures),
        });
    }
}
