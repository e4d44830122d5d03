//! Implements [`ShardStore`]: claims and flushes of a shard.

use super::super::ShardStore;
use super::{PostgresStore, StoreError, admin, flush, generations, merge, snapshot};
use crate::model::flush::{Claim, DedupBlock, DedupRule, FlushBatch, FlushGuard};
use crate::model::generation::{GenerationId, Writer};
use crate::model::offset::{Epoch, LogId, Offset, ShardId};
use crate::model::series::{AdmittedSeries, SeriesId};
use crate::model::window::Millis;

impl PostgresStore {
    /// Tries to claim once. `None` if the shard's row stays locked beyond the lock timeout.
    fn try_claim(
        &self,
        shard: ShardId,
        log: LogId,
        nonce: u64,
        words: &str,
    ) -> Result<Option<Claim>, StoreError> {
        let mut lease = self.writers.begin(words)?;
        let session = lease.session()?;
        match admin::lock_shard(session, shard)? {
            None => Ok(None),
            Some(found) => {
                let claim = admin::claim(session, &self.books, shard, (found, log), nonce)?;
                session.commit()?;
                Ok(Some(claim))
            }
        }
    }
}

impl ShardStore for PostgresStore {
    /// If the previous owner's transaction does not end within `admin::CLAIM_WAIT`,
    /// its backend is terminated.
    fn claim(&self, shard: ShardId, log: LogId, nonce: u64) -> Result<Claim, StoreError> {
        // Waits briefly first: a healthy flush of the previous owner usually ends by itself (ADR
        // 8).
        let patient = format!("{} {}", self.begin_sql(shard), self.claim_lock_timeout);
        if let Some(claim) = self.try_claim(shard, log, nonce, &patient)? {
            return Ok(claim);
        }
        let mut lease = self.writers.take()?;
        admin::terminate_holders(
            lease.session()?,
            &format!("rollmill:{}:", Self::session_name(shard)),
        )?;
        drop(lease);
        self.try_claim(shard, log, nonce, &self.begin_sql(shard))?.ok_or_else(|| {
            StoreError::Failed(format!(
                "the row of shard {shard} stays locked by a transaction that is not one of ours, \
                 or runs as another role: find it in pg_stat_activity"
            ))
        })
    }

    fn recent_ids(&self, shard: ShardId, since: Millis) -> Result<Vec<DedupBlock>, StoreError> {
        admin::recent_ids(self.readers.begin(snapshot::BEGIN_SNAPSHOT)?.session()?, shard, since)
    }

    fn set_dedup_rule(
        &self,
        shard: ShardId,
        epoch: Epoch,
        from: Offset,
        rule: DedupRule,
    ) -> Result<(), StoreError> {
        self.transaction(shard, |session| admin::set_dedup_rule(session, shard, epoch, from, rule))
    }

    fn flush(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> Result<(), StoreError> {
        let of_generations = batch.generations.iter().flat_map(|of| &of.deltas);
        let weeks = merge::touched_weeks(batch.deltas.iter().chain(of_generations));
        self.ensure_weeks(&weeks, None)?;
        let flushed = self.numbered_transaction(guard.shard, None, |session| {
            let numbered = flush::flush(
                session,
                (&self.series_cache, &self.compressed_weeks),
                guard,
                batch,
                forget_ids_before,
            )?;
            if batch.adopts.is_some() {
                // Locked, so that the set is not forgotten before this flush can be seen.
                let book = match batch.abandons.is_empty() {
                    true => self.books.lock(session)?,
                    false => self.books.lock_to_change(session)?,
                };
                super::super::check_adoption(&book, guard.shard, batch.adopts.as_ref())?;
            }
            if !batch.abandons.is_empty() {
                self.abandon(session, &guard, &batch.abandons)?;
            }
            Ok((numbered, ()))
        });
        self.forget_weeks(flushed)
    }

    fn mark_suspect(
        &self,
        shard: ShardId,
        epoch: Epoch,
        offset: Offset,
        index: u32,
    ) -> Result<(), StoreError> {
        self.transaction(shard, |session| admin::mark_suspect(session, shard, epoch, offset, index))
    }

    fn admitted_series(&self, shard: ShardId) -> Result<Vec<(String, AdmittedSeries)>, StoreError> {
        admin::admitted_series(self.readers.begin(snapshot::BEGIN_SNAPSHOT)?.session()?, shard)
    }

    fn generation_series(
        &self,
        generation: GenerationId,
        writer: Writer,
    ) -> Result<Vec<SeriesId>, StoreError> {
        let mut lease = self.readers.begin(snapshot::BEGIN_SNAPSHOT)?;
        let admissions = generations::admissions(lease.session()?, generation, writer)?;
        Ok(admissions.into_iter().map(|(id, _)| id).collect())
    }

    fn metric_names(&self) -> Result<Vec<(String, String)>, StoreError> {
        admin::metric_names(self.readers.begin(snapshot::BEGIN_SNAPSHOT)?.session()?)
    }
}
