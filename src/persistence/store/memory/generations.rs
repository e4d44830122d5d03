//! Generations besides generation 0: what shards and fillers write of them, and what is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{MemoryStore, MetricKey, State, StoreWrite, metric_key};
use crate::model::flush::{
    Delta, FillGuard, FillProgress, FlushBatch, FlushGuard, GenerationDeltas, SeriesInfo,
};
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::generation_book::{GenerationBook, LeavingRange};
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::store::{AuditEntry, GenerationStore, StoreError, begun_twice, collision};

/// A series of a generation, as one writer admitted it.
#[derive(Debug, Clone)]
pub(super) struct GenerationSeries {
    pub info: Arc<SeriesInfo>,
    pub offset: Offset,
}

/// The rows of a generation.
#[derive(Debug, Clone, Default)]
pub(super) struct GenerationRows {
    pub series: BTreeMap<(MetricKey, SeriesId, Writer), GenerationSeries>,
    pub rollups: BTreeMap<MetricKey, BTreeMap<(Hour, SeriesId, Writer), Rollup>>,
    pub revisions: BTreeMap<(MetricKey, i32), u64>,
    pub dropped: BTreeMap<(MetricKey, i32, Writer), u64>,
    /// By writer, number of the rule and outcome.
    pub rules: BTreeMap<(Writer, u32, String), u64>,
    pub fills: BTreeMap<ShardId, FillProgress>,
}

impl GenerationRows {
    pub(super) fn add(
        &mut self,
        writer: Writer,
        batch: &GenerationDeltas,
        at: Offset,
        revise: impl Fn(u64) -> u64,
    ) {
        let deltas = batch.deltas.iter().map(|delta| (&delta.series, at));
        let admitted = batch.admitted.iter().map(|(info, offset)| (info, *offset));
        for (info, offset) in admitted.chain(deltas) {
            let key = (metric_key(info), info.id, writer);
            let admitted = || GenerationSeries { info: Arc::clone(info), offset };
            self.series.entry(key).or_insert_with(admitted);
        }
        let day = |delta: &Delta| (metric_key(&delta.series), delta.hour.day());
        for key in batch.deltas.iter().map(day).collect::<BTreeSet<_>>() {
            let revision = self.revisions.entry(key).or_default();
            *revision = revise(*revision);
        }
        for delta in &batch.deltas {
            let key = metric_key(&delta.series);
            let rows = self.rollups.entry(key).or_default();
            rows.entry((delta.hour, delta.series.id, writer)).or_default().merge(&delta.rollup);
        }
        for dropped in &batch.dropped {
            let key = (dropped.tenant.clone(), dropped.metric.clone());
            *self.dropped.entry((key, dropped.day, writer)).or_default() += dropped.events;
        }
        for of_rule in &batch.rules {
            let key = (writer, of_rule.rule, of_rule.outcome.clone());
            *self.rules.entry(key).or_default() += of_rule.events;
        }
    }
}

impl State {
    /// Whether a writer has other series under the ids that it adds.
    pub(super) fn check_writer_catalogue(
        &self,
        writer: Writer,
        batch: &GenerationDeltas,
    ) -> Result<(), StoreError> {
        let rows = self.generations.get(&batch.generation);
        let admitted = batch.admitted.iter().map(|(info, _)| info);
        let mut added: BTreeMap<(MetricKey, SeriesId), &Arc<SeriesInfo>> = BTreeMap::new();
        for info in admitted.chain(batch.deltas.iter().map(|delta| &delta.series)) {
            let key = (metric_key(info), info.id);
            let known = rows.and_then(|rows| rows.series.get(&(key.0.clone(), key.1, writer)));
            let first = *added.entry(key).or_insert(info);
            let known = known.map_or(first, |known| &known.info);
            if known.series != info.series {
                return Err(collision(known, info));
            }
        }
        Ok(())
    }

    /// Whether one of these generations has begun in a shard before.
    pub(super) fn check_begun(
        &self,
        begun: &[GenerationId],
        shard: ShardId,
    ) -> Result<(), StoreError> {
        let has_begun =
            |id| self.generations.get(id).is_some_and(|rows| rows.fills.contains_key(&shard));
        match begun.iter().find(|id| has_begun(id)) {
            Some(id) => Err(begun_twice(shard, *id)),
            None => Ok(()),
        }
    }

    /// What a flush adds to generations, and the set that it adopts.
    pub(super) fn add_generations(&mut self, guard: &FlushGuard, batch: &FlushBatch) {
        let writer = Writer { shard: guard.shard, part: WriterPart::Live };
        for deltas in &batch.generations {
            let rows = self.generations.entry(deltas.generation).or_default();
            rows.add(writer, deltas, guard.range.from, |_| guard.revision());
        }
        let Some(adopted) = &batch.adopts else { return };
        self.note_cuts(&adopted.begun, guard.shard, (guard.log, guard.range.to));
        if let Some(row) = self.shards.get_mut(&guard.shard) {
            row.set = adopted.version;
        }
    }

    /// Notes the cuts of generations that begin at an offset of a shard.
    pub(super) fn note_cuts(
        &mut self,
        begun: &[GenerationId],
        shard: ShardId,
        (log, cut): (LogId, Offset),
    ) {
        for generation in begun {
            let progress = FillProgress { log, cut, cursor: 0 };
            self.generations.entry(*generation).or_default().fills.insert(shard, progress);
        }
    }

    fn delete_rows(&mut self, of: &LeavingRange, max: usize) -> u64 {
        let Some(rows) = self.generations.get_mut(&of.generation) else { return 0 };
        let key = (of.tenant.clone(), of.metric.clone());
        let leaves = |day: i32| of.days.contains(day);
        let mut left = max;
        if let Some(rollups) = rows.rollups.get_mut(&key) {
            delete_some(rollups, &mut left, |(hour, ..)| leaves(hour.day()));
        }
        delete_some(&mut rows.revisions, &mut left, |(of, day)| *of == key && leaves(*day));
        delete_some(&mut rows.dropped, &mut left, |(of, day, _)| *of == key && leaves(*day));
        let set = self.book.newest_set();
        let is_written = set.of(&of.tenant, &of.metric, of.generation).next().is_some();
        // The catalogue says what a writer has admitted, so it stays as long as that goes on.
        if left > 0 && !is_written && rows.rollups.get(&key).is_none_or(BTreeMap::is_empty) {
            delete_some(&mut rows.series, &mut left, |(of, ..)| *of == key);
            if left > 0 {
                rows.rollups.remove(&key);
            }
        }
        if left > 0 && rows.rollups.is_empty() && !set.has(of.generation) {
            delete_some(&mut rows.dropped, &mut left, |_| true);
            delete_some(&mut rows.rules, &mut left, |_| true);
            delete_some(&mut rows.fills, &mut left, |_| true);
            if left > 0 {
                self.generations.remove(&of.generation);
            }
        }
        (max - left) as u64
    }
}

/// Deletes entries that are due, at most as many as are left of the limit.
fn delete_some<K: Ord + Clone, V>(
    from: &mut BTreeMap<K, V>,
    left: &mut usize,
    is_due: impl Fn(&K) -> bool,
) {
    let due: Vec<K> = from.keys().filter(|key| is_due(key)).take(*left).cloned().collect();
    *left -= due.len();
    due.iter().for_each(|key| _ = from.remove(key));
}

impl GenerationStore for MemoryStore {
    fn swap_generations(
        &self,
        before: u64,
        book: &GenerationBook,
        entry: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        self.write(StoreWrite::Generations, |state| {
            if state.book.version() != before {
                return Ok(false);
            }
            let state = Arc::make_mut(state);
            state.book = Arc::new(book.clone());
            state.audit.extend(entry.cloned());
            Ok(true)
        })
    }

    fn fill(&self, guard: &FillGuard, batch: &GenerationDeltas) -> Result<(), StoreError> {
        self.write(StoreWrite::Fill, |state| {
            let rows = state.generations.get(&guard.generation);
            let at = rows.and_then(|rows| rows.fills.get(&guard.shard));
            let fits = at.is_some_and(|at| {
                (at.log, at.cursor) == (guard.log, guard.range.from) && guard.range.to <= at.cut
            });
            let agrees = state.released(guard.shard, guard.range) == batch.released;
            if !fits || !agrees || !state.book.newest_set().has(guard.generation) {
                return Err(StoreError::Refused { shard: guard.shard });
            }
            let writer = Writer { shard: guard.shard, part: WriterPart::Fill };
            state.check_writer_catalogue(writer, batch)?;
            let state = Arc::make_mut(state);
            let mut kept = batch.clone();
            kept.deltas.retain(|delta| state.retention_floor.is_none_or(|at| delta.hour >= at));
            let rows = state.generations.entry(guard.generation).or_default();
            rows.add(writer, &kept, guard.range.from, |_| guard.revision());
            if let Some(progress) = rows.fills.get_mut(&guard.shard) {
                progress.cursor = guard.range.to;
            }
            Ok(())
        })
    }

    fn delete_generation_rows(&self, of: &LeavingRange, max: usize) -> Result<u64, StoreError> {
        let delete = |state: &mut Arc<State>| Ok(Arc::make_mut(state).delete_rows(of, max));
        self.write(StoreWrite::Generations, delete)
    }
}
