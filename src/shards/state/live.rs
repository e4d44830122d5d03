//! What a shard answers from memory: the deltas at or above a checkpoint of the store.

use std::sync::Arc;

use super::ShardState;
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::offset::{Checkpoint, Offset};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};
use crate::shards::batch::visit_frozen;

/// What a query asks of the live deltas.
#[derive(Debug, Clone, Copy)]
pub struct LiveQuestion<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// Which metric.
    pub metric: &'a str,
    /// First hour.
    pub from: Hour,
    /// First hour behind.
    pub to: Hour,
    /// Whether distinct users are wanted; otherwise the sketch may be left empty.
    pub distinct: bool,
    /// Whether quantiles are wanted; otherwise the sketch may be left empty.
    pub quantiles: bool,
    /// Whether the metric's overflow series is wanted, whatever the matchers say.
    pub overflow: bool,
}

/// What is asked of the accounting above the checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct AccountingQuestion<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// First hour of receipt.
    pub from: Hour,
    /// First hour behind.
    pub to: Hour,
}

/// What a shard holds that the catalogue of the store does not show yet.
#[derive(Debug, Clone, Copy)]
pub enum NewEntry<'a> {
    /// A series that was admitted.
    Series(&'a SeriesInfo),
    /// A window of a metric in which there is something.
    Window(&'a str, Hour),
}

/// How far a live answer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveMark {
    /// Everything below is in store ⊕ answer.
    pub applied: Offset,
    /// Append and received time of the last record applied; none if none was in this life.
    pub last: Option<(Millis, Millis)>,
    /// Whether the owner has not reached yet what the log held when it claimed the shard.
    pub recovering: bool,
}

/// The shard cannot answer above that checkpoint: other epoch, or the batches are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved;

impl ShardState {
    /// Visits the deltas at or above the checkpoint, which must be this owner's: by epoch and as a boundary between batches.
    ///
    /// # Errors
    /// [`Moved`].
    pub fn live(
        &self,
        checkpoint: &Checkpoint,
        question: &LiveQuestion<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) -> Result<LiveMark, Moved> {
        self.holds(checkpoint)?;
        for flushed in self.flushed.iter().filter(|f| f.range.from >= checkpoint.next) {
            visit_frozen(&flushed.batch, question, matches, visit);
        }
        self.open.visit(question, matches, visit);
        Ok(self.mark_live())
    }

    /// Visits what was counted at or above the checkpoint, which must be this owner's as for [`ShardState::live`].
    ///
    /// # Errors
    /// [`Moved`].
    pub fn live_accounting(
        &self,
        checkpoint: &Checkpoint,
        question: &AccountingQuestion<'_>,
        visit: &mut dyn FnMut(&AccountingDelta),
    ) -> Result<LiveMark, Moved> {
        self.holds(checkpoint)?;
        let frozen = self.flushed.iter().filter(|f| f.range.from >= checkpoint.next).flat_map(|f| &f.batch.accounting);
        let rows = frozen.chain(self.open.accounting());
        let asked = rows.filter(|r| r.tenant == question.tenant && question.from <= r.hour && r.hour < question.to);
        asked.for_each(visit);
        Ok(self.mark_live())
    }

    /// Visits what the catalogue lacks at or above the checkpoint, which must be this owner's as for [`ShardState::live`].
    ///
    /// # Errors
    /// [`Moved`].
    pub fn live_catalogue(
        &self,
        checkpoint: &Checkpoint,
        tenant: &str,
        visit: &mut dyn FnMut(NewEntry<'_>),
    ) -> Result<LiveMark, Moved> {
        self.holds(checkpoint)?;
        for flushed in self.flushed.iter().filter(|f| f.range.from >= checkpoint.next) {
            let series = flushed.batch.admitted.iter().map(|(info, _)| info);
            let windows = flushed.batch.deltas.iter().map(|delta| (&delta.series.series, delta.hour));
            visit_new(series, windows, tenant, visit);
        }
        visit_new(self.open.admitted(), self.open.series_windows(), tenant, visit);
        Ok(self.mark_live())
    }

    /// Where this owner's memory begins, how far it has applied, and which windows of which metrics
    /// ([`metric_hash`](crate::shards::batch::metric_hash)) lie between.
    pub fn stand(&self, visit: &mut dyn FnMut(u64, Hour)) -> (Checkpoint, LiveMark) {
        let frozen = self.flushed.iter().flat_map(|f| f.windows.iter());
        frozen.chain(self.open.windows()).for_each(|(metric, hour)| visit(*metric, *hour));
        let next = self.flushed.iter().next().map_or(self.open.from(), |f| f.range.from);
        (Checkpoint { log: self.log, next, archived: 0, epoch: self.epoch, appended: None }, self.mark_live())
    }

    /// Whether the checkpoint is this owner's: by epoch and as a boundary between batches that are still here. Between two events of a
    /// record that is applied alone there is nothing to answer with: a part of a record is no prefix of the log.
    fn holds(&self, checkpoint: &Checkpoint) -> Result<(), Moved> {
        let held = checkpoint.next == self.open.from() || self.flushed.iter().any(|f| f.range.from == checkpoint.next);
        let mine = checkpoint.epoch == self.epoch && checkpoint.log == self.log;
        let whole = self.alone.as_ref().is_none_or(|alone| alone.index == 0);
        if held && mine && whole { Ok(()) } else { Err(Moved) }
    }

    /// How far a live answer reaches.
    pub fn mark_live(&self) -> LiveMark {
        let last = self.received.and_then(|received| Some((self.appended?, received)));
        LiveMark { applied: self.next, last, recovering: self.next < self.log_end }
    }
}

fn visit_new<'a>(
    series: impl Iterator<Item = &'a Arc<SeriesInfo>>,
    windows: impl Iterator<Item = (&'a Series, Hour)>,
    tenant: &str,
    visit: &mut dyn FnMut(NewEntry<'_>),
) {
    series.filter(|info| info.series.tenant == tenant).for_each(|info| visit(NewEntry::Series(info)));
    let mine = windows.filter(|(series, _)| series.tenant == tenant);
    mine.for_each(|(series, hour)| visit(NewEntry::Window(&series.metric, hour)));
}
