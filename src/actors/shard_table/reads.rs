//! What queries read from the shards of this node, and how fresh the answers are.

use std::sync::{Arc, PoisonError};

use super::clocks::JITTER_MS;
use super::{Observation, ShardEntry, ShardTable};
use crate::actors::catalogue::{CatalogueGrowth, CatalogueQuery};
use crate::actors::live::{LiveError, LiveReader, ShardFreshness, ShardRead, ShardResults};
use crate::model::clock::ClockReading;
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};
use crate::shards::state::{
    AccountingQuery, CatalogueEntry, LiveBatches, LiveProgress, LiveQuery, ShardState,
    StaleCheckpoint,
};

/// How far back an owned shard knows event ids.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupStatus {
    pub epoch: Epoch,
    /// How far back from the last append time duplicates are certain to be found.
    pub horizon_ms: i64,
    /// As configured by `dedup.horizon`.
    pub configured_ms: i64,
    /// As configured by `dedup.max_ids`.
    pub max_ids: usize,
    /// Ids evicted by this owner because of `max_ids`.
    pub evictions: u64,
}

impl ShardTable {
    /// How far back each shard owned by this node knows event ids.
    pub fn dedup_statuses(&self) -> Vec<(ShardId, DedupStatus)> {
        let status = |(shard, entry): (ShardId, &Arc<ShardEntry>)| {
            let status = entry.read_state(|state| {
                let (epoch, dedup) = (state.epoch(), state.dedup());
                // Measured on the clock that de-duplication decides by: the append
                // times of the log.
                let (horizon_ms, crowded_out) =
                    (dedup.horizon_ms(state.appended().unwrap_or(Millis::MAX)), dedup.evictions());
                let rule = dedup.rule();
                DedupStatus {
                    epoch,
                    horizon_ms,
                    configured_ms: rule.horizon_ms,
                    max_ids: rule.max_ids,
                    evictions: crowded_out,
                }
            });
            Some((shard, status?))
        };
        self.iter().filter_map(status).collect()
    }
}

/// Progress of an owned shard.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardWatermark {
    pub epoch: Epoch,
    pub next: Offset,
    pub end: Offset,
    /// Everything received before this time is applied.
    pub as_of: Millis,
    /// How long ago the shard had applied everything appended until then, in milliseconds.
    pub age_ms: i64,
}

impl ShardTable {
    /// Progress of a shard that is owned by this node; `None` for other shards.
    pub fn watermark(&self, shard: ShardId) -> Option<ShardWatermark> {
        let entry = self.entries.get(shard.0 as usize)?;
        entry.epoch()?;
        let seen = self.observe(shard);
        let owned = entry.driver.read().ok()?;
        let state = owned.as_ref()?.state();
        let progress = state.live_progress();
        let ShardFreshness { as_of, age_ms, .. } = self.freshness(shard, entry, &progress, &seen);
        Some(ShardWatermark {
            epoch: state.epoch(),
            next: progress.applied,
            end: seen.end,
            as_of,
            age_ms,
        })
    }

    /// For a shard that lags: the receive time up to which it has everything, and how long ago that
    /// was in milliseconds. `None` if nothing tells.
    fn applied_as_of(
        &self,
        shard: ShardId,
        entry: &ShardEntry,
        progress: &LiveProgress,
        now: ClockReading,
    ) -> Option<(Millis, i64)> {
        let caught_up = entry
            .caught_up()
            .times()
            .map(|(uptime, wall)| (wall, now.uptime.saturating_sub(uptime)));
        let applied = progress.last.map(|times| self.received_before(times, now));
        match (caught_up, applied) {
            (Some((wall, age)), Some((received, since))) => {
                Some((wall.max(received), age.min(since)))
            }
            (None, None) => {
                // Nothing was applied in this life yet. Everything appended before the first record
                // above the checkpoint is in the store.
                let records = self.log.read(shard, progress.applied, 1).ok()?;
                records
                    .first()
                    .map(|missing| self.received_before((missing.appended, missing.received), now))
            }
            (one, other) => one.or(other),
        }
    }

    /// A lower bound on the receive times of everything appended after a record, and how many
    /// milliseconds ago the record was appended.
    fn received_before(
        &self,
        (appended, received): (Millis, Millis),
        now: ClockReading,
    ) -> (Millis, i64) {
        let append_now = self.log.append_now();
        let since = append_now.saturating_sub(appended).max(0);
        // The append clock runs at half speed at least.
        let at_most = since.saturating_mul(2);
        let back_at = self.wall_clock.lock().unwrap_or_else(PoisonError::into_inner).went_back_at;
        let went_back = back_at
            .is_some_and(|at| now.uptime.saturating_sub(at) <= at_most.saturating_add(JITTER_MS));
        let in_step = |wall: Millis, append: Millis| {
            wall.saturating_sub(append).saturating_abs() <= JITTER_MS
        };
        // Receive times can be trusted only if the wall clock has not gone back since the record.
        let as_of = match (went_back, in_step(now.wall, append_now) && in_step(received, appended))
        {
            (true, _) => Millis::MIN,
            // A leap within the jitter is not noticed, so that much is never claimed.
            (false, true) => received.saturating_sub(JITTER_MS),
            (false, false) => {
                received.min(now.wall.saturating_sub(at_most)).saturating_sub(JITTER_MS)
            }
        };
        (as_of, since)
    }
}

impl ShardTable {
    /// Reads the open batch of one shard under its lock and says how fresh the answer is. The
    /// frozen batches are read afterwards, without the lock.
    fn read_open_batch(
        &self,
        (shard, checkpoint): &ShardRead,
        live: impl FnOnce(
            &ShardState,
            &Checkpoint,
        ) -> Result<(LiveProgress, LiveBatches), StaleCheckpoint>,
    ) -> Result<(ShardFreshness, LiveBatches), LiveError> {
        let entry = self.entries.get(shard.0 as usize).ok_or(LiveError::Unavailable)?;
        // Shards that are not owned here are not looked up in the log, which may
        // know nothing of them.
        entry.epoch().ok_or_else(|| unowned_error(entry))?;
        let seen = self.observe(*shard);
        // A poisoned lock means that the actor died in the middle of a step. Its state is unusable
        // until the restart replaces it.
        let guard = entry.driver.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or_else(|| unowned_error(entry))?.state();
        let (progress, batches) =
            live(state, checkpoint.as_ref().ok_or(LiveError::StaleCheckpoint)?)?;
        Ok((self.freshness(*shard, entry, &progress, &seen), batches))
    }
}

impl ShardTable {
    /// Start of an owned shard's memory, its freshness, and the windows that it holds,
    /// all at one moment.
    ///
    /// # Errors
    /// [`LiveError::Unavailable`] if the shard is not owned here.
    pub fn position(
        &self,
        shard: ShardId,
        visit: &mut dyn FnMut(u64, Hour),
    ) -> Result<(Checkpoint, ShardFreshness), LiveError> {
        let entry = self.entries.get(shard.0 as usize).ok_or(LiveError::Unavailable)?;
        entry.epoch().ok_or(LiveError::Unavailable)?;
        let seen = self.observe(shard);
        let guard = entry.driver.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or(LiveError::Unavailable)?.state();
        let (from, progress, batches) = state.position(visit);
        let report = self.freshness(shard, entry, &progress, &seen);
        drop(guard);
        // Frozen batches do not change, so they are visited without holding up the actor.
        batches.visit_windows(visit);
        Ok((from, report))
    }

    /// Freshness of an answer that was read after the observation.
    fn freshness(
        &self,
        shard: ShardId,
        entry: &ShardEntry,
        progress: &LiveProgress,
        seen: &Observation,
    ) -> ShardFreshness {
        let Observation { now, end_as_of: known, end } = *seen;
        let behind = end.saturating_sub(progress.applied);
        // Never later than what the log's end proves.
        let proven = now.uptime.saturating_sub(known).max(0);
        let (as_of, age_ms) = match behind {
            0 => (now.wall, proven),
            _ => self.applied_as_of(shard, entry, progress, now).unwrap_or((0, now.wall)),
        };
        let as_of = as_of.min(now.wall.saturating_sub(proven));
        let stopped = entry.stop_reason().is_some();
        ShardFreshness {
            as_of,
            age_ms: age_ms.max(proven),
            behind,
            recovering: progress.recovering,
            stopped,
        }
    }
}

/// Why a shard without an owner on this node does not answer.
fn unowned_error(entry: &ShardEntry) -> LiveError {
    if entry.stop_reason().is_some() { LiveError::Stopped } else { LiveError::Unavailable }
}

impl LiveReader for ShardTable {
    fn shard_count(&self) -> u32 {
        self.entries.len() as u32
    }

    fn read(
        &self,
        asked: &[ShardRead],
        query: &LiveQuery<'_>,
        matchers: &[Matcher],
        visit: &mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup),
    ) -> ShardResults {
        let mut matches = |series: &Series| {
            (query.overflow && series.is_overflow())
                || matchers.iter().all(|matcher| matcher.matches(series))
        };
        let mut read = |one: &ShardRead| {
            let mut visit = |series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| {
                visit(one.0, series, hour, rollup)
            };
            let open = self.read_open_batch(one, |state, checkpoint| {
                state.live(checkpoint, query, &mut matches, &mut visit)
            });
            let all = |(report, batches): (ShardFreshness, LiveBatches)| {
                batches.visit(query, &mut matches, &mut visit);
                report
            };
            (one.0, open.map(all))
        };
        asked.iter().map(&mut read).collect()
    }

    fn catalogue(
        &self,
        asked: &[ShardRead],
        query: &CatalogueQuery<'_>,
        visit: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults {
        let mut read = |one: &ShardRead| {
            let mut growth = CatalogueGrowth::default();
            let mut note = |entry: CatalogueEntry<'_>| growth.add(query, entry);
            let open = self.read_open_batch(one, |state, checkpoint| {
                state.live_catalogue(checkpoint, query.tenant, &mut note)
            });
            let report = open.map(|(report, batches)| {
                batches.visit_catalogue(query.tenant, &mut note);
                report
            });
            // Only a complete answer is handed on; a failed shard must have visited nothing.
            if report.is_ok() {
                visit(&growth);
            }
            (one.0, report)
        };
        asked.iter().map(&mut read).collect()
    }

    fn accounting(
        &self,
        asked: &[ShardRead],
        query: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults {
        let mut read = |one: &ShardRead| {
            let mut visit = |row: &AccountingDelta| visit(one.0, row);
            let open = self.read_open_batch(one, |state, checkpoint| {
                state.live_accounting(checkpoint, query, &mut visit)
            });
            let all = |(report, batches): (ShardFreshness, LiveBatches)| {
                batches.visit_accounting(query, &mut visit);
                report
            };
            (one.0, open.map(all))
        };
        asked.iter().map(&mut read).collect()
    }
}
