//! What a shard answers from memory: the deltas at or above a checkpoint of the store.

use std::sync::Arc;

use super::ShardState;
use super::checks::check_prefix;
use super::frozen::{FrozenBatch, FrozenBatches};
use super::query::{AccountingQuery, LiveQuery};
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::offset::{Checkpoint, Offset};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};
use crate::shards::batch::visit_frozen;

/// What a shard holds that the catalogue of the store does not show yet.
#[derive(Debug, Clone, Copy)]
pub enum CatalogueEntry<'a> {
    /// A series that was admitted.
    Series(&'a SeriesInfo),
    /// A window of a metric in which there is something.
    Window(&'a str, Hour),
}

/// How far a live answer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveProgress {
    /// Everything below is in store ⊕ answer.
    pub applied: Offset,
    /// Append and received time of the last record applied; none if none was in this life.
    pub last: Option<(Millis, Millis)>,
    /// Whether the owner has not reached yet what the log held when it claimed the shard.
    pub recovering: bool,
}

/// The shard cannot answer above that checkpoint: it is another owner's, or its batches are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaleCheckpoint;

/// The frozen batches that belong to a live answer, in the version that its open part was read
/// with. They are visited without the shard's lock: applying, flushing and forgetting go on
/// meanwhile.
#[derive(Debug)]
pub struct LiveBatches {
    from: Offset,
    frozen: FrozenBatches,
}

impl LiveBatches {
    fn batches(&self) -> impl Iterator<Item = &FrozenBatch> {
        self.frozen.iter().map(|frozen| &**frozen).filter(|frozen| frozen.range.from >= self.from)
    }

    /// Visits the deltas that are asked for.
    pub fn visit(
        &self,
        question: &LiveQuery<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) {
        self.batches().for_each(|frozen| visit_frozen(&frozen.batch, question, matches, visit));
    }

    /// Visits what was counted.
    pub fn visit_accounting(
        &self,
        question: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(&AccountingDelta),
    ) {
        let rows = self.batches().flat_map(|frozen| &frozen.batch.accounting);
        rows.filter(|row| question.matches(row)).for_each(visit);
    }

    /// Visits what the catalogue lacks.
    pub fn visit_catalogue(&self, tenant: &str, visit: &mut dyn FnMut(CatalogueEntry<'_>)) {
        for frozen in self.batches() {
            let series = frozen.batch.admitted.iter().map(|(info, _)| info);
            let windows =
                frozen.batch.deltas.iter().map(|delta| (&delta.series.series, delta.hour));
            visit_new(series, windows, tenant, visit);
        }
    }

    /// Visits the windows of metrics in which there is something.
    pub fn visit_windows(&self, visit: &mut dyn FnMut(u64, Hour)) {
        let windows = self.batches().flat_map(|frozen| &frozen.windows);
        windows.for_each(|(metric, hour)| visit(*metric, *hour));
    }
}

impl ShardState {
    /// Visits the open deltas above the checkpoint, which must be this owner's: by epoch and as a
    /// boundary between batches. The frozen ones are handed out.
    ///
    /// # Errors
    /// [`StaleCheckpoint`].
    pub fn live(
        &self,
        checkpoint: &Checkpoint,
        question: &LiveQuery<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) -> Result<(LiveProgress, LiveBatches), StaleCheckpoint> {
        let batches = self.batches_above(checkpoint)?;
        self.open.visit(question, matches, visit);
        Ok((self.live_progress(), batches))
    }

    /// Visits what the open batch counted above the checkpoint, which must be this owner's as for
    /// [`ShardState::live`].
    ///
    /// # Errors
    /// [`StaleCheckpoint`].
    pub fn live_accounting(
        &self,
        checkpoint: &Checkpoint,
        question: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(&AccountingDelta),
    ) -> Result<(LiveProgress, LiveBatches), StaleCheckpoint> {
        let batches = self.batches_above(checkpoint)?;
        self.open.accounting().iter().filter(|row| question.matches(row)).for_each(visit);
        Ok((self.live_progress(), batches))
    }

    /// Visits what the open batch has and the catalogue lacks, above the checkpoint, which must be
    /// this owner's as for [`ShardState::live`].
    ///
    /// # Errors
    /// [`StaleCheckpoint`].
    pub fn live_catalogue(
        &self,
        checkpoint: &Checkpoint,
        tenant: &str,
        visit: &mut dyn FnMut(CatalogueEntry<'_>),
    ) -> Result<(LiveProgress, LiveBatches), StaleCheckpoint> {
        let batches = self.batches_above(checkpoint)?;
        visit_new(self.open.admitted(), self.open.series_windows(), tenant, visit);
        Ok((self.live_progress(), batches))
    }

    /// Where this owner's memory begins, how far it has applied, and which windows of which metrics
    /// ([`metric_hash`](crate::model::series::metric_hash)) the open batch has.
    pub fn position(
        &self,
        visit: &mut dyn FnMut(u64, Hour),
    ) -> (Checkpoint, LiveProgress, LiveBatches) {
        self.open.windows().iter().for_each(|(metric, hour)| visit(*metric, *hour));
        let next = self.frozen.from().unwrap_or(self.open.from());
        let checkpoint =
            Checkpoint { log: self.log, next, archived: 0, epoch: self.epoch, appended: None };
        (checkpoint, self.live_progress(), LiveBatches { from: next, frozen: self.frozen.clone() })
    }

    /// The batches above a checkpoint that is this owner's: by epoch and as a boundary between
    /// batches that are still here. Between two events of a record that is applied alone there
    /// is nothing to answer with: a part of a record is no prefix of the log.
    fn batches_above(&self, checkpoint: &Checkpoint) -> Result<LiveBatches, StaleCheckpoint> {
        let held = checkpoint.next == self.open.from()
            || self.frozen.iter().any(|f| f.range.from == checkpoint.next);
        let mine = checkpoint.epoch == self.epoch && checkpoint.log == self.log;
        let whole = self.isolated.as_ref().is_none_or(|alone| alone.index == 0);
        if !(held && mine && whole) {
            return Err(StaleCheckpoint);
        }
        let batches = LiveBatches { from: checkpoint.next, frozen: self.frozen.clone() };
        let ranges = batches.batches().map(|frozen| frozen.range);
        check_prefix(self.shard, checkpoint.next, ranges, self.open.from());
        Ok(batches)
    }

    /// How far a live answer reaches.
    pub fn live_progress(&self) -> LiveProgress {
        let last = self.received.and_then(|received| Some((self.appended?, received)));
        LiveProgress { applied: self.next, last, recovering: self.next < self.log_end }
    }
}

fn visit_new<'a>(
    series: impl Iterator<Item = &'a Arc<SeriesInfo>>,
    windows: impl Iterator<Item = (&'a Series, Hour)>,
    tenant: &str,
    visit: &mut dyn FnMut(CatalogueEntry<'_>),
) {
    series
        .filter(|info| info.series.tenant == tenant)
        .for_each(|info| visit(CatalogueEntry::Series(info)));
    let mine = windows.filter(|(series, _)| series.tenant == tenant);
    mine.for_each(|(series, hour)| visit(CatalogueEntry::Window(&series.metric, hour)));
}
