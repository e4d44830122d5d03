//! What queries read of the shards of this node, and how far their answers reach.

use std::sync::{Arc, PoisonError};

use super::clocks::JITTER_MS;
use super::{Observation, Slot, Slots};
use crate::actors::catalogue::{CatalogueQuestion, Growth};
use crate::actors::live::{Asked, LiveError, LiveReader, Reports, ShardReport};
use crate::model::clock::Reading;
use crate::model::flush::{AccountingDelta, SeriesInfo};
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};
use crate::shards::state::{
    AccountingQuestion, LiveBatches, LiveMark, LiveQuestion, NewEntry, ShardState, StaleCheckpoint,
};

/// How far back an owned shard knows the ids of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupStand {
    /// The owner.
    pub epoch: Epoch,
    /// Equal ids are known for certain for this time.
    pub horizon_ms: i64,
    /// `dedup.horizon`.
    pub configured_ms: i64,
    /// `dedup.max_ids`.
    pub max_ids: usize,
    /// Ids that this owner has forgotten because there were too many.
    pub crowded_out: u64,
}

impl Slots {
    /// How far back each shard that is owned here knows the ids of events.
    pub fn dedup_stands(&self) -> Vec<(ShardId, DedupStand)> {
        let stand = |(shard, slot): (ShardId, &Arc<Slot>)| {
            let stand = slot.read(|state| {
                let (epoch, dedup) = (state.epoch(), state.dedup());
                // By the clock that decides: the append times of the log.
                let (horizon_ms, crowded_out) = (
                    dedup.horizon_ms(state.appended().unwrap_or(Millis::MAX)),
                    dedup.crowded_out(),
                );
                let rule = dedup.rule();
                DedupStand {
                    epoch,
                    horizon_ms,
                    configured_ms: rule.horizon_ms,
                    max_ids: rule.max_ids,
                    crowded_out,
                }
            });
            Some((shard, stand?))
        };
        self.iter().filter_map(stand).collect()
    }
}

/// How far an owned shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
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

impl Slots {
    /// How far a shard is that is owned here; none for the others.
    pub fn reach(&self, shard: ShardId) -> Option<Reach> {
        let slot = self.slots.get(shard.0 as usize)?;
        slot.epoch()?;
        let seen = self.observe(shard);
        let owned = slot.driver.read().ok()?;
        let state = owned.as_ref()?.state();
        let mark = state.mark_live();
        let ShardReport { as_of, age_ms, .. } = self.reported(shard, slot, &mark, &seen);
        Some(Reach { epoch: state.epoch(), next: mark.applied, end: seen.end, as_of, age_ms })
    }

    /// Up to when a shard that is behind holds everything, and how long ago that was; none if
    /// nothing says so.
    fn held(
        &self,
        shard: ShardId,
        slot: &Slot,
        mark: &LiveMark,
        now: Reading,
    ) -> Option<(Millis, i64)> {
        let caught_up = slot
            .caught_up()
            .times()
            .map(|(uptime, wall)| (wall, now.uptime.saturating_sub(uptime)));
        let applied = mark.last.map(|times| self.before(times, now));
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
                    .map(|missing| self.before((missing.appended, missing.received), now))
            }
            (one, other) => one.or(other),
        }
    }

    /// A time before which nothing was received that was appended behind a record, and how long ago
    /// that was appended.
    fn before(&self, (appended, received): (Millis, Millis), now: Reading) -> (Millis, i64) {
        let append_now = self.log.append_now();
        let since = append_now.saturating_sub(appended).max(0);
        // The append clock runs at half speed at least.
        let at_most = since.saturating_mul(2);
        let back_at = self.wall.lock().unwrap_or_else(PoisonError::into_inner).back_at;
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

impl Slots {
    /// Reads the open part of one shard under its lock, and says how far the answer reaches. The
    /// rest is read without the lock.
    fn report(
        &self,
        (shard, checkpoint): &Asked,
        live: impl FnOnce(&ShardState, &Checkpoint) -> Result<(LiveMark, LiveBatches), StaleCheckpoint>,
    ) -> Result<(ShardReport, LiveBatches), LiveError> {
        let slot = self.slots.get(shard.0 as usize).ok_or(LiveError::Unavailable)?;
        // The log is not asked about what is not owned here: it may know nothing of it.
        slot.epoch().ok_or_else(|| why_not(slot))?;
        let seen = self.observe(*shard);
        // A poisoned lock means that the actor died while writing: its state is worthless until the
        // restart replaces it.
        let guard = slot.driver.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or_else(|| why_not(slot))?.state();
        let (mark, batches) = live(state, checkpoint.as_ref().ok_or(LiveError::Moved)?)?;
        Ok((self.reported(*shard, slot, &mark, &seen), batches))
    }
}

impl Slots {
    /// Where an owned shard's memory begins, how far it reaches, and which windows of which metrics
    /// it holds, all at one moment.
    ///
    /// # Errors
    /// If it is not owned here.
    pub fn stand(
        &self,
        shard: ShardId,
        visit: &mut dyn FnMut(u64, Hour),
    ) -> Result<(Checkpoint, ShardReport), LiveError> {
        let slot = self.slots.get(shard.0 as usize).ok_or(LiveError::Unavailable)?;
        slot.epoch().ok_or(LiveError::Unavailable)?;
        let seen = self.observe(shard);
        let guard = slot.driver.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or(LiveError::Unavailable)?.state();
        let (from, mark, batches) = state.position(visit);
        let report = self.reported(shard, slot, &mark, &seen);
        drop(guard);
        batches.visit_windows(visit);
        Ok((from, report))
    }

    /// How far an answer reaches that was read after the observation.
    fn reported(
        &self,
        shard: ShardId,
        slot: &Slot,
        mark: &LiveMark,
        seen: &Observation,
    ) -> ShardReport {
        let Observation { now, known, end } = *seen;
        let behind = end.saturating_sub(mark.applied);
        // Never later than what the log's end proves.
        let proven = now.uptime.saturating_sub(known).max(0);
        let (as_of, age_ms) = match behind {
            0 => (now.wall, proven),
            _ => self.held(shard, slot, mark, now).unwrap_or((0, now.wall)),
        };
        let as_of = as_of.min(now.wall.saturating_sub(proven));
        let stopped = slot.stopped().is_some();
        ShardReport {
            as_of,
            age_ms: age_ms.max(proven),
            behind,
            recovering: mark.recovering,
            stopped,
        }
    }
}

/// Why a shard without an owner here does not answer.
fn why_not(slot: &Slot) -> LiveError {
    if slot.stopped().is_some() { LiveError::Stopped } else { LiveError::Unavailable }
}

impl LiveReader for Slots {
    fn shard_count(&self) -> u32 {
        self.slots.len() as u32
    }

    fn read(
        &self,
        asked: &[Asked],
        question: &LiveQuestion<'_>,
        matchers: &[Matcher],
        visit: &mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup),
    ) -> Reports {
        let mut matches = |series: &Series| {
            (question.overflow && series.is_overflow())
                || matchers.iter().all(|matcher| matcher.matches(series))
        };
        let mut read = |one: &Asked| {
            let mut visit = |series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| {
                visit(one.0, series, hour, rollup)
            };
            let open = self.report(one, |state, checkpoint| {
                state.live(checkpoint, question, &mut matches, &mut visit)
            });
            let all = |(report, batches): (ShardReport, LiveBatches)| {
                batches.visit(question, &mut matches, &mut visit);
                report
            };
            (one.0, open.map(all))
        };
        asked.iter().map(&mut read).collect()
    }

    fn catalogue(
        &self,
        asked: &[Asked],
        question: &CatalogueQuestion<'_>,
        visit: &mut dyn FnMut(&Growth),
    ) -> Reports {
        let mut read = |one: &Asked| {
            let mut growth = Growth::default();
            let mut note = |entry: NewEntry<'_>| growth.note(question, entry);
            let open = self.report(one, |state, checkpoint| {
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
        asked: &[Asked],
        question: &AccountingQuestion<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> Reports {
        let mut read = |one: &Asked| {
            let mut visit = |row: &AccountingDelta| visit(one.0, row);
            let open = self.report(one, |state, checkpoint| {
                state.live_accounting(checkpoint, question, &mut visit)
            });
            let all = |(report, batches): (ShardReport, LiveBatches)| {
                batches.visit_accounting(question, &mut visit);
                report
            };
            (one.0, open.map(all))
        };
        asked.iter().map(&mut read).collect()
    }
}
