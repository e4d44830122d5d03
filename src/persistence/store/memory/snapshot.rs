//! Reads of the double's snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::{MetricKey, State};
use crate::model::flush::{
    AccountingDelta, DedupRules, DroppedEvents, FillProgress, QuarantineRow, RuleEvents, SeriesInfo,
};
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::generation_book::GenerationBook;
use crate::model::manifest::{ArchiveFloor, ManifestRow, RangeDecisions, Tier};
use crate::model::offset::{Checkpoint, Offset, OffsetRange, ShardId};
use crate::model::outcome::{OutcomeNote, UncountedEvent};
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::settled_document::SettledEvent;
use crate::model::window::{Hour, Millis};
use crate::persistence::store::matched_series::SeriesCollector;
use crate::persistence::store::{
    ArchiveSnapshot, AuditEntry, AuditSnapshot, CheckpointSnapshot, ExpiryRow, ExpiryTarget,
    GenerationRowVisitor, GenerationSnapshot, MetricInfo, NameRange, QuerySnapshot, RollupQuery,
    StoreError,
};

/// An immutable view of the store's state at one moment.
pub(super) struct MemorySnapshot(pub(super) Arc<State>);

impl MemorySnapshot {
    fn series_of(&self, tenant: &str, metric: &str) -> impl Iterator<Item = &Arc<SeriesInfo>> {
        let ids = self.0.metrics.get(&(tenant.to_owned(), metric.to_owned()));
        ids.into_iter().flatten().filter_map(|id| self.0.series.get(id).map(|a| &a.info))
    }
}

impl CheckpointSnapshot for MemorySnapshot {
    fn checkpoints(&mut self) -> Result<Vec<(ShardId, Checkpoint)>, StoreError> {
        Ok(self.0.shards.iter().map(|(shard, row)| (*shard, row.checkpoint)).collect())
    }

    fn generation_book(&mut self) -> Result<Arc<GenerationBook>, StoreError> {
        Ok(Arc::clone(&self.0.book))
    }
}

impl QuerySnapshot for MemorySnapshot {
    fn revisions(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
        days: Range<i32>,
    ) -> Result<Vec<u64>, StoreError> {
        let key = (tenant.to_owned(), metric.to_owned());
        let revisions = match generation.is_ingest() {
            true => Some(&self.0.revisions),
            false => self.0.generations.get(&generation).map(|rows| &rows.revisions),
        };
        let of = |day| revisions.and_then(|known| known.get(&(key.clone(), day))).copied();
        Ok(days.map(|day| of(day).unwrap_or(0)).collect())
    }

    fn rollups(
        &mut self,
        query: &RollupQuery<'_>,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup),
    ) -> Result<(), StoreError> {
        if !query.generation.is_ingest() {
            return self.rollups_of_generation(query, visit);
        }
        let mut collector = SeriesCollector::new(query);
        self.series_of(query.tenant, query.metric)
            .try_for_each(|info| collector.offer(0, info.clone()))?;
        let matching: BTreeMap<SeriesId, Arc<SeriesInfo>> =
            collector.finish().into_iter().map(|(_, info)| (info.id, info)).collect();
        let Some(rows) = self.0.rollups.get(&(query.tenant.to_owned(), query.metric.to_owned()))
        else {
            return Ok(());
        };
        // `BTreeMap::range` panics if the start is above the end.
        if query.from >= query.to {
            return Ok(());
        }
        for ((hour, id), rollup) in
            rows.range((query.from, SeriesId([0; 16]))..(query.to, SeriesId([0; 16])))
        {
            query.check_budget()?;
            let Some(info) = matching.get(id) else { continue };
            visit(info, *hour, wanted(query, rollup));
        }
        Ok(())
    }

    fn generation_metric(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
    ) -> Result<Option<MetricInfo>, StoreError> {
        let key = (tenant.to_owned(), metric.to_owned());
        let Some(rows) = self.0.generations.get(&generation) else { return Ok(None) };
        let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
        for info in rows.series.iter().filter(|((of, ..), _)| *of == key).map(|(_, s)| &s.info) {
            ids.insert(info.id);
            names.extend(info.series.labels.iter().map(|(name, _)| name.clone()));
        }
        let mut hours = rows.rollups.get(&key).into_iter().flat_map(BTreeMap::keys);
        let first = hours.next().map(|(hour, ..)| *hour);
        let last = hours.next_back().map(|(hour, ..)| *hour).or(first);
        let (labels, series) = (names.into_iter().collect(), ids.len() as u64);
        let info = MetricInfo { metric: metric.to_owned(), labels, series, first, last };
        Ok(first.is_some().then_some(info))
    }

    fn metrics(
        &mut self,
        tenant: &str,
        page: &NameRange<'_>,
    ) -> Result<Vec<MetricInfo>, StoreError> {
        page.check_budget()?;
        let of_tenant = self
            .0
            .metrics
            .iter()
            .filter(|((t, name), _)| t == tenant && page.contains(name))
            .take(page.limit);
        Ok(of_tenant
            .map(|(key, ids)| {
                let names: BTreeSet<&String> = self
                    .series_of(&key.0, &key.1)
                    .flat_map(|info| info.series.labels.iter().map(|(n, _)| n))
                    .collect();
                let rows = self.0.rollups.get(key);
                MetricInfo {
                    metric: key.1.clone(),
                    labels: names.into_iter().cloned().collect(),
                    series: ids.len() as u64,
                    first: rows.and_then(|r| r.keys().next()).map(|(hour, _)| *hour),
                    last: rows.and_then(|r| r.keys().next_back()).map(|(hour, _)| *hour),
                }
            })
            .collect())
    }

    fn label_values(
        &mut self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        others: &[(&str, GenerationId)],
        page: &NameRange<'_>,
    ) -> Result<Vec<String>, StoreError> {
        page.check_budget()?;
        let of_others = others.iter().flat_map(|(metric, generation)| {
            let rows = self.0.generations.get(generation).map(|rows| &rows.series);
            let key = (tenant.to_owned(), (*metric).to_owned());
            rows.into_iter().flatten().filter(move |((of, ..), _)| *of == key)
        });
        let of_others = of_others.map(|(_, series)| &series.info);
        let of_metric = self
            .0
            .metrics
            .keys()
            .filter(|(t, m)| t == tenant && metric.is_none_or(|wanted| wanted == m));
        let values: BTreeSet<&str> = of_metric
            .flat_map(|(t, m)| self.series_of(t, m))
            .chain(of_others)
            .map(|info| info.series.label(name))
            .filter(|value| !value.is_empty() && page.contains(value))
            .collect();
        Ok(values.into_iter().take(page.limit).map(str::to_owned).collect())
    }

    fn accounting(
        &mut self,
        tenant: &str,
        from: Hour,
        to: Hour,
    ) -> Result<Vec<AccountingDelta>, StoreError> {
        let rows = self.0.accounting.values();
        Ok(rows
            .filter(|row| row.tenant == tenant && from <= row.hour && row.hour < to)
            .cloned()
            .collect())
    }
}

/// The parts of a rollup that a query wants.
fn wanted(query: &RollupQuery<'_>, rollup: &Rollup) -> Rollup {
    let mut wanted = Rollup { figures: rollup.figures, ..Rollup::default() };
    if query.distinct {
        wanted.distinct = rollup.distinct.clone();
    }
    if query.quantiles {
        wanted.quantiles = rollup.quantiles.clone();
    }
    wanted
}

impl MemorySnapshot {
    fn rollups_of_generation(
        &self,
        query: &RollupQuery<'_>,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup),
    ) -> Result<(), StoreError> {
        let key = (query.tenant.to_owned(), query.metric.to_owned());
        let Some(generation) = self.0.generations.get(&query.generation) else { return Ok(()) };
        let of_metric = generation.series.iter().filter(|((of, ..), _)| *of == key);
        let series: BTreeMap<SeriesId, &Arc<SeriesInfo>> =
            of_metric.map(|((_, id, _), series)| (*id, &series.info)).collect();
        let mut collector = SeriesCollector::new(query);
        series.values().try_for_each(|info| collector.offer(0, Arc::clone(info)))?;
        let matching: BTreeSet<SeriesId> =
            collector.finish().into_iter().map(|(_, info)| info.id).collect();
        for ((hour, id, _), rollup) in generation.rollups.get(&key).into_iter().flatten() {
            query.check_budget()?;
            if query.from <= *hour && *hour < query.to && matching.contains(id) {
                visit(series[id], *hour, wanted(query, rollup));
            }
        }
        Ok(())
    }
}

impl GenerationSnapshot for MemorySnapshot {
    fn set_versions(&mut self) -> Result<Vec<(ShardId, u64)>, StoreError> {
        Ok(self.0.shards.iter().map(|(shard, row)| (*shard, row.set)).collect())
    }

    fn fill_progress(
        &mut self,
        generation: GenerationId,
    ) -> Result<Vec<(ShardId, FillProgress)>, StoreError> {
        let fills = self.0.generations.get(&generation).map(|rows| &rows.fills);
        Ok(fills.into_iter().flatten().map(|(shard, at)| (*shard, *at)).collect())
    }

    fn shard_fills(
        &mut self,
        shard: ShardId,
    ) -> Result<Vec<(GenerationId, FillProgress)>, StoreError> {
        Ok(self.0.shard_fills(shard))
    }

    fn generation_rows_after(
        &mut self,
        generation: GenerationId,
        (tenant, metric): (&str, &str),
        (from, to): (Hour, Hour),
        after: Option<SeriesId>,
        visit: GenerationRowVisitor<'_>,
    ) -> Result<(), StoreError> {
        let key = (tenant.to_owned(), metric.to_owned());
        let mut bytes = Vec::new();
        let mut show = |writer, info: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| {
            let is_before = hour == from && after.is_some_and(|after| info.id <= after);
            if from <= hour && hour < to && !is_before {
                bytes.clear();
                rollup.encode(&mut bytes);
                visit(writer, info, hour, rollup.clone(), &bytes)?;
            }
            Ok::<(), StoreError>(())
        };
        let uncatalogued = |id: &SeriesId| {
            StoreError::Invalid(format!("series {id} has rollups but no catalogue row"))
        };
        if generation.is_ingest() {
            let writer = Writer { shard: ShardId(0), part: WriterPart::Live };
            for ((hour, id), rollup) in self.0.rollups.get(&key).into_iter().flatten() {
                let series = self.0.series.get(id).ok_or_else(|| uncatalogued(id))?;
                show(writer, &series.info, *hour, rollup)?;
            }
            return Ok(());
        }
        let Some(rows) = self.0.generations.get(&generation) else { return Ok(()) };
        for ((hour, id, writer), rollup) in rows.rollups.get(&key).into_iter().flatten() {
            let series = rows.series.get(&(key.clone(), *id, *writer));
            let series = series.ok_or_else(|| uncatalogued(id))?;
            show(*writer, &series.info, *hour, rollup)?;
        }
        Ok(())
    }

    fn generation_admissions(
        &mut self,
        generation: GenerationId,
        writer: Writer,
    ) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        let series = self.0.generations.get(&generation).map(|rows| &rows.series);
        let of_writer = series.into_iter().flatten().filter(|((.., by), _)| *by == writer);
        Ok(of_writer.map(|((_, id, _), series)| (*id, series.offset)).collect())
    }

    fn dropped_events(
        &mut self,
        generation: GenerationId,
    ) -> Result<Vec<(Writer, DroppedEvents)>, StoreError> {
        let dropped = self.0.generations.get(&generation).map(|rows| &rows.dropped);
        let row = |(((tenant, metric), day, writer), events): (&(MetricKey, i32, Writer), &u64)| {
            let (tenant, metric) = (tenant.clone(), metric.clone());
            (*writer, DroppedEvents { tenant, metric, day: *day, events: *events })
        };
        Ok(dropped.into_iter().flatten().map(row).collect())
    }

    fn rule_counts(&mut self, generation: GenerationId) -> Result<Vec<RuleEvents>, StoreError> {
        let mut sums: BTreeMap<(u32, &str), u64> = BTreeMap::new();
        let counts = self.0.generations.get(&generation).map(|rows| &rows.rules);
        for ((_, rule, outcome), events) in counts.into_iter().flatten() {
            *sums.entry((*rule, outcome)).or_default() += events;
        }
        let row = |((rule, outcome), events): ((u32, &str), u64)| {
            let outcome = outcome.to_owned();
            RuleEvents { rule, outcome, events }
        };
        Ok(sums.into_iter().map(row).collect())
    }

    fn audit_entries(&mut self, tenant: &str, limit: usize) -> Result<Vec<AuditEntry>, StoreError> {
        let of_tenant = self.0.audit.iter().rev().filter(|entry| entry.tenant == tenant);
        Ok(of_tenant.take(limit).cloned().collect())
    }
}

impl ArchiveSnapshot for MemorySnapshot {
    fn manifest(&mut self, shard: Option<ShardId>) -> Result<Vec<ManifestRow>, StoreError> {
        let rows = self.0.manifest.values();
        Ok(rows.filter(|row| shard.is_none_or(|wanted| wanted == row.shard)).cloned().collect())
    }

    fn manifest_first(
        &mut self,
        shard: ShardId,
        tier: Option<Tier>,
        limit: usize,
    ) -> Result<Vec<ManifestRow>, StoreError> {
        let of_shard = self.0.manifest.range((shard, 0)..=(shard, Offset::MAX)).map(|(_, row)| row);
        Ok(of_shard
            .filter(|row| tier.is_none_or(|wanted| wanted == row.tier))
            .take(limit)
            .cloned()
            .collect())
    }

    fn last_archived(&mut self, shard: ShardId) -> Result<Option<Millis>, StoreError> {
        let newest = self
            .0
            .manifest
            .range((shard, 0)..=(shard, Offset::MAX))
            .next_back()
            .map(|(_, row)| row.appended.1);
        Ok(newest.max(self.0.floors.get(&shard).map(|floor| floor.appended)))
    }

    fn receipts(
        &mut self,
        shard: ShardId,
        from: Offset,
        limit: usize,
    ) -> Result<Vec<(Offset, Millis)>, StoreError> {
        let rows = self.0.manifest.range((shard, from)..=(shard, Offset::MAX));
        Ok(rows.take(limit).map(|(_, row)| (row.range.to, row.received.1)).collect())
    }

    fn archive_extent(&mut self, shard: ShardId) -> Result<(u64, Option<Offset>), StoreError> {
        let mut rows = self.0.manifest.range((shard, 0)..=(shard, Offset::MAX));
        let first = rows.next().map(|(_, row)| row.range.from);
        Ok((u64::from(first.is_some()) + rows.count() as u64, first))
    }

    fn archive_floors(&mut self) -> Result<Vec<(ShardId, ArchiveFloor)>, StoreError> {
        Ok(self.0.floors.iter().map(|(shard, floor)| (*shard, *floor)).collect())
    }

    fn expiry(&mut self, of: ExpiryTarget) -> Result<Option<ExpiryRow>, StoreError> {
        Ok(self.0.expiry.get(&of).cloned())
    }

    fn expiries(&mut self) -> Result<Vec<(ExpiryTarget, ExpiryRow)>, StoreError> {
        Ok(self.0.expiry.iter().map(|(of, note)| (*of, note.clone())).collect())
    }

    fn decisions(
        &mut self,
        shard: ShardId,
        range: OffsetRange,
    ) -> Result<RangeDecisions, StoreError> {
        let within = |offset: Offset| range.from <= offset && offset < range.to;
        let series =
            self.0.series.values().filter(|series| series.shard == shard && within(series.offset));
        let mut admitted: Vec<_> = series.map(|series| (series.info.id, series.offset)).collect();
        admitted.sort_unstable_by_key(|(id, offset)| (*offset, *id));
        let live = Writer { shard, part: WriterPart::Live };
        let of_generations = self.0.generations.iter().flat_map(|(generation, rows)| {
            let series = rows.series.iter().filter(|((_, _, writer), _)| *writer == live);
            series.map(|((_, id, _), series)| (*generation, *id, series.offset))
        });
        let mut generations: Vec<_> =
            of_generations.filter(|(_, _, offset)| within(*offset)).collect();
        generations.sort_unstable_by_key(|(generation, id, offset)| (*offset, *generation, *id));
        let rows = self.0.quarantine.range((shard, range.from, 0)..(shard, range.to, 0));
        let known = self.0.shards.get(&shard).map(|row| OffsetRange {
            from: row.noted.from.max(row.checkpoint.archived),
            to: row.noted.to,
        });
        let notes = self.0.outcomes.range((shard, 0)..(shard, range.to));
        let outcomes = known.filter(|known| known.contains_range(range)).map(|_| {
            let mut all = OutcomeNote::default();
            notes.for_each(|(_, (_, note))| all.extend_within(note, range));
            all
        });
        Ok(RangeDecisions {
            admitted,
            generations,
            quarantined: rows.map(|(_, row)| (row.offset, row.index, row.discarded)).collect(),
            outcomes,
        })
    }
}

impl AuditSnapshot for MemorySnapshot {
    fn rollup_bytes(
        &mut self,
        from: Hour,
        to: Hour,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]),
    ) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        for rows in self.0.rollups.values() {
            for ((hour, id), rollup) in
                rows.iter().filter(|((hour, _), _)| from <= *hour && *hour < to)
            {
                let admitted = self.0.series.get(id).ok_or_else(|| {
                    StoreError::Invalid(format!("series {id} has rollups but no catalogue row"))
                })?;
                bytes.clear();
                rollup.encode(&mut bytes);
                visit(&admitted.info, *hour, rollup.clone(), &bytes);
            }
        }
        Ok(())
    }

    fn dedup_rules(&mut self, shard: ShardId) -> Result<DedupRules, StoreError> {
        Ok(self.0.dedup_rules.get(&shard).cloned().unwrap_or_default())
    }

    fn admissions(&mut self, shard: ShardId) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        let of_shard = self.0.series.values().filter(|admitted| admitted.shard == shard);
        Ok(of_shard.map(|admitted| (admitted.info.id, admitted.offset)).collect())
    }

    fn ledger(&mut self) -> Result<Vec<AccountingDelta>, StoreError> {
        Ok(self.0.accounting.values().cloned().collect())
    }

    fn quarantine(&mut self) -> Result<Vec<QuarantineRow>, StoreError> {
        Ok(self.0.quarantine.values().cloned().collect())
    }

    fn quarantined_events(&mut self, shard: ShardId) -> Result<Vec<UncountedEvent>, StoreError> {
        let of_shard = self.0.quarantine.range((shard, 0, 0)..=(shard, Offset::MAX, u32::MAX));
        let place = |(&(_, offset, index), row): (&(ShardId, Offset, u32), &QuarantineRow)| {
            UncountedEvent::set_aside((offset, index), row.tenant.is_empty())
        };
        Ok(of_shard.map(place).collect())
    }

    fn retention_floor(&mut self) -> Result<Option<Hour>, StoreError> {
        Ok(self.0.retention_floor)
    }

    fn settled_events(&mut self) -> Result<Vec<(ShardId, SettledEvent)>, StoreError> {
        Ok(self.0.settled())
    }

    fn released_events(&mut self, shard: ShardId) -> Result<Vec<(Offset, u32)>, StoreError> {
        Ok(self.0.released(shard, OffsetRange { from: 0, to: Offset::MAX }))
    }
}
