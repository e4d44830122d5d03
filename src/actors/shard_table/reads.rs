//! What queries read of the shards of this node, and how far their answers reach.

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

/// How far back an owned shard knows the ids of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupStatus {
    /// The owner.
    pub epoch: Epoch,
    /// Equal ids are known for certain for this time.
    pub horizon_ms: i64,
    /// `dedup.horizon`.
    pub configured_ms: i64,
    /// `dedup.max_ids`.
    pub max_ids: usize,
    /// Ids that this owner has forgotten because there were too many.
    pub evictions: u64,
}

impl ShardTable {
    /// How far back each shard that is owned here knows the ids of events.
    pub fn dedup_statuses(&self) -> Vec<(ShardId, DedupStatus)> {
        let stand = |(shard, slot): (ShardId, &Arc<ShardEntry>)| {
            let stand = slot.read_state(|state| {
                let (epoch, dedup) = (state.epoch(), state.dedup());
                // By the clock that decides: the append times of the log.
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
            Some((shard, stand?))
        };
        self.iter().filter_map(stand).collect()
    }
}

/// How far an owned shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardWatermark {
    /// The owner.
    pub epoch: Epoch,
    /// Next offset to apply.
    pub next: Offset,
    /// The log's end.
    pub end: Offset,
    /// Everything received before this is applied.
    pub as_of: Millis,
    /// How long ago everything that was appended then was applied.
    pub age_ms: i64,
}

impl ShardTable {
    /// How far a shard is that is owned here; none for the others.
    pub fn watermark(&self, shard: ShardId) -> Option<ShardWatermark> {
        let slot = self.entries.get(shard.0 as usize)?;
        slot.epoch()?;
        let seen = self.observe(shard);
        let owned = slot.driver.read().ok()?;
        let state = owned.as_ref()?.state();
        let mark = state.live_progress();
        let ShardFreshness { as_of, age_ms, .. } = self.freshness(shard, slot, &mark, &seen);
        Some(ShardWatermark {
            epoch: state.epoch(),
            next: mark.applied,
            end: seen.end,
            as_of,
            age_ms,
        })
    }

    /// Up to when a shard that is behind holds everything, and how long ago that was; none if
    /// nothing says so.
    fn applied_as_of(
        &self,
        shard: ShardId,
        slot: &ShardEntry,
        mark: &LiveProgress,
        now: ClockReading,
    ) -> Option<(Millis, i64)> {
        let caught_up = slot
            .caught_up()
            .times()
            .map(|(uptime, wall)| (wall, now.uptime.saturating_sub(uptime)));
        let applied = mark.last.map(|times| self.received_before(times, now));
        match (caught_up, applied) {
            (Some((wall, age)), Some((received, since))) => {
                Some((wall.max(received), age.min(since)))
            }
            (None, None) => {
                // Nothing was applied in this life yet: all that was appended before the first
                // record above the checkpoint is in the store.
                let records = self.log.read(shard, mark.applied, 1).ok()?;
                records
                    .first()
                    .map(|missing| self.received_before((missing.appended, missing.received), now))
            }
            (one, other) => one.or(other),
        }
    }

    /// A time before which nothing was received that was appended behind a record, and how long ago
    /// that was appended.
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
        let as_of = match (went_back, in_step(now.wall, append_now) && in_step(received, appended))
        {
            (true, _) => Millis::MIN,
            // A leap of no more than the jitter is not seen, so that much is never claimed.
            (false, true) => received.saturating_sub(JITTER_MS),
            (false, false) => {
                received.min(now.wall.saturating_sub(at_most)).saturating_sub(JITTER_MS)
            }
        };
        (as_of, since)
    }
}

impl ShardTable {
    /// Reads the open part of one shard under its lock, and says how far the answer reaches. The
    /// rest is read without the lock.
    fn read_open_batch(
        &self,
        (shard, checkpoint): &ShardRead,
        live: impl FnOnce(
            &ShardState,
            &Checkpoint,
        ) -> Result<(LiveProgress, LiveBatches), StaleCheckpoint>,
    ) -> Result<(ShardFreshness, LiveBatches), LiveError> {
        let slot = self.entries.get(shard.0 as usize).ok_or(LiveError::Unavailable)?;
        // The log is not asked about what is not owned here: it may know nothing of it.
        slot.epoch().ok_or_else(|| unowned_error(slot))?;
        let seen = self.observe(*shard);
        // A poisoned lock means that the actor died while writing: its state is worthless until the
        // restart replaces it.
        let guard = slot.driver.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or_else(|| unowned_error(slot))?.state();
        let (mark, batches) = live(state, checkpoint.as_ref().ok_or(LiveError::StaleCheckpoint)?)?;
        Ok((self.freshness(*shard, slot, &mark, &seen), batches))
    }
}

impl ShardTable {
    /// Where an owned shard's memory begins, how far it reaches, and which windows of which metrics
    /// it holds, all at one moment.
    ///
    /// # Errors
    /// If it is not owned here.
    pub fn position(
        &self,
        shard: ShardId,
        visit: &mut dyn FnMut(u64, Hour),
    ) -> Result<(Checkpoint, ShardFreshness), LiveError> {
        let slot = self.entries.get(shard.0 as usize).ok_or(LiveError::Unavailable)?;
        slot.epoch().ok_or(LiveError::Unavailable)?;
        let seen = self.observe(shard);
        let guard = slot.driver.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or(LiveError::Unavailable)?.state();
        let (from, mark, batches) = state.position(visit);
        let report = self.freshness(shard, slot, &mark, &seen);
        drop(guard);
        batches.visit_windows(visit);
        Ok((from, report))
    }

    /// How far an answer reaches that was read after the observation.
    fn freshness(
        &self,
        shard: ShardId,
        slot: &ShardEntry,
        mark: &LiveProgress,
        seen: &Observation,
    ) -> ShardFreshness {
        let Observation { now, end_as_of: known, end } = *seen;
        let behind = end.saturating_sub(mark.applied);
        // Never later than what the log's end proves.
        let proven = now.uptime.saturating_sub(known).max(0);
        let (as_of, age_ms) = match behind {
            0 => (now.wall, proven),
            _ => self.applied_as_of(shard, slot, mark, now).unwrap_or((0, now.wall)),
        };
        let as_of = as_of.min(now.wall.saturating_sub(proven));
        let stopped = slot.stop_reason().is_some();
        ShardFreshness {
            as_of,
            age_ms: age_ms.max(proven),
            behind,
            recovering: mark.recovering,
            stopped,
        }
    }
}

/// Why a shard without an owner here does not answer.
fn unowned_error(slot: &ShardEntry) -> LiveError {
    if slot.stop_reason().is_some() { LiveError::Stopped } else { LiveError::Unavailable }
}

impl LiveReader for ShardTable {
    fn shard_count(&self) -> u32 {
        self.entries.len() as u32
    }

    fn read(
        &self,
        asked: &[ShardRead],
        question: &LiveQuery<'_>,
        matchers: &[Matcher],
        visit: &mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup),
    ) -> ShardResults {
        let mut matches = |series: &Series| {
            (question.overflow && series.is_overflow())
                || matchers.iter().all(|matcher| matcher.matches(series))
        };
        let mut read = |one: &ShardRead| {
            let mut visit = |series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| {
                visit(one.0, series, hour, rollup)
            };
            let open = self.read_open_batch(one, |state, checkpoint| {
                state.live(checkpoint, question, &mut matches, &mut visit)
            });
            let all = |(report, batches): (ShardFreshness, LiveBatches)| {
                batches.visit(question, &mut matches, &mut visit);
                report
            };
            (one.0, open.map(all))
        };
        asked.iter().map(&mut read).collect()
    }

    fn catalogue(
        &self,
        asked: &[ShardRead],
        question: &CatalogueQuery<'_>,
        visit: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults {
        let mut read = |one: &ShardRead| {
            let mut growth = CatalogueGrowth::default();
            let mut note = |entry: CatalogueEntry<'_>| growth.add(question, entry);
            let open = self.read_open_batch(one, |state, checkpoint| {
                state.live_catalogue(checkpoint, question.tenant, &mut note)
            });
            let report = open.map(|(report, batches)| {
                batches.visit_catalogue(question.tenant, &mut note);
                report
            });
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
        question: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults {
        let mut read = |one: &ShardRead| {
            let mut visit = |row: &AccountingDelta| visit(one.0, row);
            let open = self.read_open_batch(one, |state, checkpoint| {
                state.live_accounting(checkpoint, question, &mut visit)
            });
            let all = |(report, batches): (ShardFreshness, LiveBatches)| {
                batches.visit_accounting(question, &mut visit);
                report
            };
            (one.0, open.map(all))
        };
        asked.iter().map(&mut read).collect()
    }
}
