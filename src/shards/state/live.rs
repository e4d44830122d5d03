//! What a shard answers from memory: the deltas at or above a checkpoint of the store.

use std::sync::Arc;

use super::ShardState;
use super::checks::check_prefix;
use super::frozen::{FrozenBatch, FrozenBatches};
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::generation::{DayRange, GenerationId};
use crate::model::offset::{Checkpoint, Offset};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};
use crate::shards::delta_table::visit_frozen;
use crate::shards::generations::ActiveSet;
use crate::shards::live_query::{AccountingQuery, LiveQuery};

/// What a shard holds that the store's catalogue does not show yet.
#[derive(Debug, Clone, Copy)]
pub enum CatalogueEntry<'a> {
    /// A series that was admitted.
    Series(&'a SeriesInfo),
    /// A series that was admitted to a generation besides generation 0.
    Other(GenerationId, &'a SeriesInfo),
    /// A metric and an hour for which there is data.
    Window(&'a str, Hour),
}

/// Progress that a live answer reflects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveProgress {
    /// Exclusive end of what store ⊕ answer contain.
    pub applied: Offset,
    /// Append and receive time of the last record applied; `None` if this owner
    /// has applied none yet.
    pub last: Option<(Millis, Millis)>,
    /// Whether the owner is still catching up with the log as it was when the shard was claimed.
    pub recovering: bool,
}

/// The shard cannot answer above the given checkpoint: it belongs to another owner, or the batches
/// above it have been dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaleCheckpoint;

/// The frozen batches of a live answer, in the version with which its open part was read. Visiting
/// them needs no lock on the shard, which applies, flushes and drops batches meanwhile.
#[derive(Debug)]
pub struct LiveBatches {
    from: Offset,
    frozen: FrozenBatches,
}

impl LiveBatches {
    fn batches(&self) -> impl Iterator<Item = &FrozenBatch> {
        self.frozen.iter().map(|frozen| &**frozen).filter(|frozen| frozen.range.from >= self.from)
    }

    /// Visits the deltas that match the query.
    pub fn visit(
        &self,
        query: &LiveQuery<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) {
        for frozen in self.batches() {
            let ingest = (GenerationId::INGEST, &*frozen.batch.deltas);
            visit_frozen(ingest, query, matches, visit);
            // Most batches have none: the queries that name one are few too.
            for other in &frozen.batch.generations {
                visit_frozen((other.generation, &other.deltas), query, matches, visit);
            }
        }
    }

    /// Visits the accounting rows that match the query.
    pub fn visit_accounting(
        &self,
        query: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(&AccountingDelta),
    ) {
        let rows = self.batches().flat_map(|frozen| &frozen.batch.accounting);
        rows.filter(|row| query.matches(row)).for_each(visit);
    }

    /// Visits the tenant's series and windows that the catalogue lacks.
    pub fn visit_catalogue(&self, tenant: &str, visit: &mut dyn FnMut(CatalogueEntry<'_>)) {
        for frozen in self.batches() {
            let series = frozen.batch.admitted.iter().map(|(info, _)| info);
            let windows =
                frozen.batch.deltas.iter().map(|delta| (&delta.series.series, delta.hour));
            visit_new(series, windows, tenant, visit);
            for other in &frozen.batch.generations {
                let series = other.admitted.iter().map(|(info, _)| info);
                visit_others(other.generation, series, tenant, visit);
            }
        }
    }

    /// Visits the `(metric hash, hour)` pairs that have deltas.
    pub fn visit_windows(&self, visit: &mut dyn FnMut(u64, Hour)) {
        let windows = self.batches().flat_map(|frozen| &frozen.windows);
        windows.for_each(|(metric, hour)| visit(*metric, *hour));
    }
}

/// Whether a set writes all generations that a query wants.
fn writes_all(set: &ActiveSet, query: &LiveQuery<'_>) -> bool {
    let mut others = query.served.iter().filter(|piece| !piece.generation.is_ingest());
    others.all(|piece| {
        let days = DayRange::around(piece.from, piece.to);
        let of = (query.tenant, query.metric);
        days.is_none_or(|days| set.covers(of, piece.generation, days))
    })
}

impl ShardState {
    /// Visits the open deltas above the checkpoint and returns the frozen batches above it.
    ///
    /// # Errors
    /// [`StaleCheckpoint`] if the checkpoint is not of this owner's epoch or is not the start of a
    /// batch that the shard still holds, or if one of these batches has records and lacks a
    /// generation that is asked for.
    pub fn live(
        &self,
        checkpoint: &Checkpoint,
        query: &LiveQuery<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) -> Result<(LiveProgress, LiveBatches), StaleCheckpoint> {
        let batches = self.batches_above(checkpoint)?;
        // The caller holds the shard's lock, so the open part and the frozen batches are of one
        // version.
        // A set that waits for no event is adopted by a flush of no record, which lacks nothing.
        let folded = batches.batches().filter(|frozen| !frozen.range.is_empty());
        let mut sets: Vec<&Arc<ActiveSet>> =
            folded.map(|frozen| &frozen.set).chain([&self.set]).collect();
        sets.dedup_by(|next, before| Arc::ptr_eq(next, before));
        if !sets.into_iter().all(|set| writes_all(set, query)) {
            return Err(StaleCheckpoint);
        }
        self.open.deltas().visit(GenerationId::INGEST, query, matches, visit);
        for generation in query.others() {
            if let Some(open) = self.open.generation(generation) {
                open.deltas().visit(generation, query, matches, visit);
            }
        }
        Ok((self.live_progress(), batches))
    }

    /// Visits the accounting of the open batch and returns the frozen batches above the checkpoint.
    ///
    /// # Errors
    /// [`StaleCheckpoint`], as for [`ShardState::live`].
    pub fn live_accounting(
        &self,
        checkpoint: &Checkpoint,
        query: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(&AccountingDelta),
    ) -> Result<(LiveProgress, LiveBatches), StaleCheckpoint> {
        let batches = self.batches_above(checkpoint)?;
        self.open.accounting().iter().filter(|row| query.matches(row)).for_each(visit);
        Ok((self.live_progress(), batches))
    }

    /// Visits what the open batch has and the catalogue lacks, and returns the frozen
    /// batches above the checkpoint.
    ///
    /// # Errors
    /// [`StaleCheckpoint`], as for [`ShardState::live`].
    pub fn live_catalogue(
        &self,
        checkpoint: &Checkpoint,
        tenant: &str,
        visit: &mut dyn FnMut(CatalogueEntry<'_>),
    ) -> Result<(LiveProgress, LiveBatches), StaleCheckpoint> {
        let batches = self.batches_above(checkpoint)?;
        visit_new(
            self.open.deltas().admitted(),
            self.open.deltas().series_windows(),
            tenant,
            visit,
        );
        for (generation, open) in self.open.generations() {
            visit_others(generation, open.deltas().admitted(), tenant, visit);
        }
        Ok((self.live_progress(), batches))
    }

    /// Where this owner's memory begins and how far it has applied. Visits the `(metric hash,
    /// hour)` pairs of the open batch ([`metric_hash`](crate::model::series::metric_hash)).
    pub fn position(
        &self,
        visit: &mut dyn FnMut(u64, Hour),
    ) -> (Checkpoint, LiveProgress, LiveBatches) {
        self.open.windows().iter().for_each(|(metric, hour)| visit(*metric, *hour));
        let next = self.frozen.from().unwrap_or(self.open.from());
        let checkpoint =
            // Log, offset and epoch are all that `batches_above` compares.
            Checkpoint { log: self.log, next, archived: 0, epoch: self.epoch, appended: None };
        (checkpoint, self.live_progress(), LiveBatches { from: next, frozen: self.frozen.clone() })
    }

    /// The frozen batches above a checkpoint. The checkpoint has to be of this owner's epoch and
    /// the start of a batch that is still held. Between two events of an isolated record the answer
    /// is always an error: part of a record is not a prefix of the log.
    fn batches_above(&self, checkpoint: &Checkpoint) -> Result<LiveBatches, StaleCheckpoint> {
        let held = checkpoint.next == self.open.from()
            || self.frozen.iter().any(|f| f.range.from == checkpoint.next);
        let mine = checkpoint.epoch == self.epoch && checkpoint.log == self.log;
        let whole = self.isolated.as_ref().is_none_or(|isolated| isolated.index == 0);
        if !(held && mine && whole) {
            return Err(StaleCheckpoint);
        }
        let batches = LiveBatches { from: checkpoint.next, frozen: self.frozen.clone() };
        let ranges = batches.batches().map(|frozen| frozen.range);
        check_prefix(self.shard, checkpoint.next, ranges, self.open.from());
        Ok(batches)
    }

    /// Progress that a live answer reflects now.
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

fn visit_others<'a>(
    generation: GenerationId,
    series: impl Iterator<Item = &'a Arc<SeriesInfo>>,
    tenant: &str,
    visit: &mut dyn FnMut(CatalogueEntry<'_>),
) {
    series
        .filter(|info| info.series.tenant == tenant)
        .for_each(|info| visit(CatalogueEntry::Other(generation, info)));
}
