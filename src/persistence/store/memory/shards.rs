//! What the owner of a shard writes: claims, flushes, marks and de-duplication rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{MemoryStore, StoreWrite, StoredShard};
use crate::model::flush::{Claim, DedupBlock, DedupRule, FlushBatch, FlushGuard, SuspectEvent};
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::series::{AdmittedSeries, SeriesId};
use crate::model::window::Millis;
use crate::persistence::store::abandon::without_abandoned;
use crate::persistence::store::{ShardStore, StoreError, check_adoption, other_log, unknown_set};

impl ShardStore for MemoryStore {
    fn claim(&self, shard: ShardId, log: LogId, nonce: u64) -> Result<Claim, StoreError> {
        self.write(StoreWrite::Claim, |state| {
            if let Some(row) = state.shards.get(&shard)
                && row.checkpoint.log != log
            {
                return Err(other_log(shard, row.checkpoint.log, log));
            }
            let state = Arc::make_mut(state);
            let newest = state.book.newest_set();
            if !state.shards.contains_key(&shard) {
                // All of its records are still to come, so there is nothing to be filled in.
                state.note_cuts(&newest.generations(), shard, (log, 0));
            }
            let row = state.shards.entry(shard).or_insert(StoredShard {
                checkpoint: Checkpoint {
                    log,
                    next: 0,
                    archived: 0,
                    epoch: Epoch { counter: 0, nonce },
                    appended: None,
                },
                attempts: 0,
                marked: None,
                suspects: BTreeMap::new(),
                set: newest.version,
                noted: OffsetRange { from: 0, to: 0 },
            });
            row.checkpoint.epoch = Epoch { counter: row.checkpoint.epoch.counter + 1, nonce };
            row.attempts = row.attempts.saturating_add(1);
            // A mark that is still set means that the last owner did not get past that event.
            if let Some(at) = row.marked.take() {
                *row.suspects.entry(at).or_default() += 1;
            }
            let suspects = row
                .suspects
                .iter()
                .map(|(&(offset, index), &deaths)| SuspectEvent { offset, index, deaths })
                .collect();
            let set = state.book.adopted_set(row.set).ok_or_else(|| unknown_set(shard, row.set))?;
            Ok(Claim { checkpoint: row.checkpoint, attempts: row.attempts, suspects, set })
        })
    }

    fn recent_ids(&self, shard: ShardId, since: Millis) -> Result<Vec<DedupBlock>, StoreError> {
        let state = Arc::clone(&self.lock());
        let blocks = state.dedup.range((shard, 0)..=(shard, Offset::MAX));
        Ok(blocks.filter(|(_, b)| b.appended.1 >= since).map(|(_, b)| b.clone()).collect())
    }

    fn set_dedup_rule(
        &self,
        shard: ShardId,
        epoch: Epoch,
        from: Offset,
        rule: DedupRule,
    ) -> Result<(), StoreError> {
        self.write(StoreWrite::Claim, |state| {
            let next = state.owned(shard, epoch)?.checkpoint.next;
            if from < next && state.dedup_rules.contains_key(&shard) {
                return Err(StoreError::Refused { shard });
            }
            Arc::make_mut(state).dedup_rules.entry(shard).or_default().record(from, rule);
            Ok(())
        })
    }

    fn flush(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> Result<(), StoreError> {
        self.write(StoreWrite::Flush, |state| {
            let at = state.owned(guard.shard, guard.epoch)?.checkpoint;
            let set = state.shards.get(&guard.shard).map_or(0, |row| row.set);
            if at.log != guard.log || at.next != guard.range.from || set != batch.set {
                return Err(StoreError::Refused { shard: guard.shard });
            }
            check_adoption(&state.book, guard.shard, batch.adopts.as_ref())?;
            let admitted = batch.admitted.iter().map(|(info, _)| info);
            state.check_catalogue(admitted.chain(batch.deltas.iter().map(|d| &d.series)))?;
            let live = Writer { shard: guard.shard, part: WriterPart::Live };
            for deltas in &batch.generations {
                state.check_writer_catalogue(live, deltas)?;
            }
            let abandoned = match batch.abandons.is_empty() {
                true => None,
                false => without_abandoned(&state.book, &guard, &batch.abandons)?,
            };
            if let Some(adopted) = &batch.adopts {
                state.check_begun(&adopted.begun, guard.shard)?;
            }
            let state = Arc::make_mut(state);
            if let Some((book, entries)) = abandoned {
                state.book = Arc::new(book);
                state.audit.extend(entries);
            }
            for (info, offset) in &batch.admitted {
                state.admit(info, guard.shard, *offset);
            }
            state.merge(&batch.deltas, guard.shard, guard.range.from, |_| guard.revision());
            if let Some(block) = &batch.dedup {
                state.dedup.insert((guard.shard, block.range.from), block.clone());
            }
            if !batch.outcomes.is_empty() {
                let note = (guard.range, batch.outcomes.clone());
                state.outcomes.insert((guard.shard, guard.range.from), note);
            }
            state.dedup.retain(|(shard, _), block| {
                *shard != guard.shard || block.appended.1 >= forget_ids_before
            });
            for delta in &batch.accounting {
                let row = state.account(&delta.tenant, delta.hour);
                row.aggregated += delta.aggregated;
                row.deduplicated += delta.deduplicated;
                row.quarantined += delta.quarantined;
            }
            state.add_generations(&guard, batch);
            for row in &batch.quarantined {
                state.quarantine.insert((row.shard, row.offset, row.index), row.clone());
            }
            if let Some(row) = state.shards.get_mut(&guard.shard) {
                row.checkpoint.next = guard.range.to;
                row.noted.to = guard.range.to;
                row.checkpoint.appended = batch.appended.or(row.checkpoint.appended);
                row.attempts = 0;
                row.marked = None;
                row.suspects.clear();
            }
            Ok(())
        })
    }

    fn mark_suspect(
        &self,
        shard: ShardId,
        epoch: Epoch,
        offset: Offset,
        index: u32,
    ) -> Result<(), StoreError> {
        self.write(StoreWrite::MarkSuspect, |state| {
            state.owned(shard, epoch)?;
            if let Some(row) = Arc::make_mut(state).shards.get_mut(&shard) {
                row.marked = Some((offset, index));
            }
            Ok(())
        })
    }

    fn admitted_series(&self, shard: ShardId) -> Result<Vec<(String, AdmittedSeries)>, StoreError> {
        let state = Arc::clone(&self.lock());
        let mut by_tenant: BTreeMap<&str, AdmittedSeries> = BTreeMap::new();
        for (id, admitted) in state.series.iter().filter(|(_, a)| a.shard == shard) {
            let series = &admitted.info.series;
            by_tenant.entry(&series.tenant).or_default().add(*id, Some(&series.key()))?;
        }
        Ok(by_tenant.into_iter().map(|(tenant, ids)| (tenant.to_owned(), ids)).collect())
    }

    fn generation_series(
        &self,
        generation: GenerationId,
        writer: Writer,
    ) -> Result<Vec<SeriesId>, StoreError> {
        let state = Arc::clone(&self.lock());
        let rows = state.generations.get(&generation).map(|rows| rows.series.keys());
        let of_writer = rows.into_iter().flatten().filter(|(_, _, by)| *by == writer);
        Ok(of_writer.map(|(_, id, _)| *id).collect())
    }

    fn metric_names(&self) -> Result<Vec<(String, String)>, StoreError> {
        Ok(self.lock().metrics.keys().cloned().collect())
    }
}
