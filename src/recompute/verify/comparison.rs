//! Compares the folds of the shards with what is stored.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::generations::{GenerationComparison, StoredGenerations};
use super::ledger::RecomputedLedger;
use super::report::{RowDifference, VerifyReport};
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
    /// Starts with the stored rows of the range, and a report that holds what is known so far.
    pub(super) fn new(
        report: VerifyReport,
        rows: HashMap<(SeriesId, Hour), StoredRow>,
        generations: GenerationComparison,
        shard_count: u32,
        all_shards: bool,
    ) -> Self {
        Self {
            report,
            unmatched: rows,
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
        let is_of_shard = |row: &&StoredRow| {
            !row.info.series.is_overflow() && row.info.id.shard(self.shard_count) == shard
        };
        self.report.rows += self.unmatched.values().filter(is_of_shard).count() as u64;
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
        let overflow = self.unmatched.values().filter(|row| row.info.series.is_overflow());
        self.report.rows += overflow.count() as u64;
        for (key, (info, rollup)) in std::mem::take(&mut self.overflow) {
            self.compare(key, info, &rollup);
        }
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
        generations.finish(&mut report);
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

    fn compare(&mut self, key: (SeriesId, Hour), series: Arc<SeriesInfo>, rollup: &Rollup) {
        let stored = self.unmatched.remove(&key);
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
