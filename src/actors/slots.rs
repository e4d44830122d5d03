//! The places where the shards of this node stand, shared by their actors, the pulse, the archiver and live reads.
//!
//! Only the shard's actor writes its state; queries read it under the read side of the lock, for no longer than a merge takes. A
//! mailbox call per shard and query would cost more than the whole answer (7 to 12 µs each across threads, up to 64 per query).

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::clock::Clock;
use crate::model::clock::Reading;
use crate::model::flush::{AccountingDelta, Claim, SeriesInfo};
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};
use crate::persistence::log::EventLog;
use crate::persistence::store::Matcher;
use crate::shards::state::{AccountingQuestion, LiveMark, LiveQuestion, Moved, NewEntry, ShardState};

use super::catalogue::{CatalogueQuestion, Growth};
use super::live::{Asked, LiveError, LiveReader, Reports, ShardReport};

/// A wall clock that is set right by less than this has not gone back: both clocks are read in whole milliseconds, one after the other.
const JITTER_MS: i64 = 100;

/// Where one shard stands.
#[derive(Debug, Default)]
pub struct Slot {
    /// The owned shard's state; none while nobody owns it here.
    pub state: RwLock<Option<ShardState>>,
    /// A pulse is on its way to the actor: its credit.
    pub pulsed: AtomicBool,
    /// Next offset to apply.
    pub applied: AtomicU64,
    /// Next offset to commit: everything below is in the store.
    pub committed: AtomicU64,
    /// Everything below is in the archive.
    pub archived: AtomicU64,
    /// Somebody has asked for an archive of everything below, without waiting for objects to be due.
    pub archive_asked: AtomicU64,
    /// Payload bytes applied since the last archive object.
    pub unarchived_bytes: AtomicU64,
    /// When the owner was last seen to have applied the whole log.
    pub caught_up: Mutex<Sighting>,
    /// Starts at the owner's checkpoint without progress; 0 once it has committed.
    pub attempts: AtomicU32,
    /// When the shard entered this node's assignment, on the boot clock; 0 if it is not in it.
    pub given_at: AtomicI64,
    /// Why it cannot be served, here or elsewhere, until somebody mends it.
    stopped: Mutex<Option<Stop>>,
    /// Flushes that failed since the last that did not.
    pub flush_failures: AtomicU32,
    flush_failure: Mutex<Option<String>>,
}

/// What a shard stands still at.
#[derive(Debug)]
struct Stop {
    /// The record that it does not get over; none if it cannot even begin.
    before: Option<Offset>,
    why: String,
}

/// So many failures in a row are no passing hitch.
pub const FAILING: u32 = 3;

/// When an owner was last seen to have applied the whole log: on the boot clock, and, on the wall clock, a time before which nothing was
/// received since then; none if it never was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sighting(Option<(Millis, Millis)>);

impl Sighting {
    /// Looks at a shard whose end is known since `known`; `whole` says whether its owner has applied everything below.
    fn look(&mut self, whole: bool, known: Millis, now: Reading) {
        let ahead = now.wall.saturating_sub(now.uptime);
        if whole {
            self.0 = Some((known, known.saturating_add(ahead)));
        } else if let Some((uptime, wall)) = &mut self.0 {
            *wall = (*wall).min(uptime.saturating_add(ahead));
        }
    }
}

/// What the wall clock did while this node looked at it.
#[derive(Debug, Default)]
struct WallSeen {
    /// By how much it was ahead of the boot clock.
    ahead: Option<i64>,
    /// When it was last seen to have gone back, on the boot clock: what is received then bears earlier times than what came before.
    back_at: Option<Millis>,
}

impl WallSeen {
    fn look(&mut self, now: Reading) {
        let ahead = now.wall.saturating_sub(now.uptime);
        if self.ahead.is_some_and(|before| before.saturating_sub(ahead) > JITTER_MS) {
            self.back_at = Some(now.uptime);
        }
        self.ahead = Some(ahead);
    }
}

impl Slot {
    /// A new owner: its positions and its state, in one step. What an earlier life had caught up with counts no longer: what it held in
    /// memory is gone.
    pub fn begin(&self, claim: &Claim, state: ShardState) {
        self.state.clear_poison();
        let mut owned = self.state.write().unwrap_or_else(PoisonError::into_inner);
        self.applied.store(claim.checkpoint.next, Ordering::Release);
        self.committed.store(claim.checkpoint.next, Ordering::Release);
        self.archived.store(claim.checkpoint.archived, Ordering::Release);
        *self.sighting() = Sighting::default();
        self.attempts.store(claim.attempts, Ordering::Release);
        self.note_flush(Ok(()));
        *owned = Some(state);
    }

    /// Nobody owns the shard here any more. Positions of a former owner release nothing of the log and archive nothing.
    pub fn vacate(&self) {
        self.state.clear_poison();
        let mut owned = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for position in [&self.applied, &self.committed, &self.archived, &self.archive_asked, &self.unarchived_bytes] {
            position.store(0, Ordering::Release);
        }
        *self.sighting() = Sighting::default();
        self.attempts.store(0, Ordering::Release);
        self.note_flush(Ok(()));
        *owned = None;
    }

    /// The shard stands still: before this record, or at its start. Whether that is news.
    fn stop(&self, before: Option<Offset>, why: &str) -> bool {
        let stop = Stop { before, why: why.to_owned() };
        let former = self.stopped.lock().unwrap_or_else(PoisonError::into_inner).replace(stop);
        former.is_none_or(|former| former.why != why)
    }

    /// It has got over what stopped it, if its next record is this one; or it is not stopped here any more. Whether that is news.
    fn goes_on(&self, next: Option<Offset>) -> bool {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |stop: &Stop| next.is_none_or(|next| stop.before.is_none_or(|before| next > before));
        stopped.take_if(|stop| over(stop)).is_some()
    }

    /// Why the shard cannot be served until somebody mends it, if so.
    pub fn stopped(&self) -> Option<String> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|stop| stop.why.clone())
    }

    /// Why a shard without an owner here does not answer.
    fn why_not(&self) -> LiveError {
        if self.stopped().is_some() { LiveError::Stopped } else { LiveError::Unavailable }
    }

    /// Notes how a flush ended.
    pub fn note_flush(&self, outcome: Result<(), &str>) {
        let mut failure = self.flush_failure.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => self.flush_failures.store(0, Ordering::Release),
            Err(_) => _ = self.flush_failures.fetch_add(1, Ordering::AcqRel),
        }
        *failure = outcome.err().map(str::to_owned);
    }

    /// Why the newest flush failed, if it did.
    pub fn flush_failure(&self) -> Option<String> {
        self.flush_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The owner of this epoch has archived everything below `to`; a former owner's news count no longer.
    pub fn archived_to(&self, epoch: Epoch, to: Offset) {
        let Ok(owned) = self.state.read() else { return };
        if owned.as_ref().is_some_and(|state| state.epoch() == epoch) {
            self.archived.store(to, Ordering::Release);
        }
    }

    /// Notes whether the owner has applied everything below `log_end`, which proves what was durable at `known`. `now` must have been
    /// read before both were: what is acknowledged between may lie beyond.
    fn note_progress(&self, known: Millis, now: Reading, log_end: Offset) {
        let Ok(owned) = self.state.read() else { return };
        let whole = owned.as_ref().is_some_and(|state| state.next() >= log_end);
        self.sighting().look(whole, known, now);
    }

    /// How long ago the owner was last seen to have applied the whole log; none if it never was.
    fn caught_up_for(&self, uptime: Millis) -> Option<i64> {
        self.sighting().0.map(|(at, _)| uptime.saturating_sub(at))
    }

    // What it holds is whole after every change: the poison says nothing.
    fn sighting(&self) -> MutexGuard<'_, Sighting> {
        self.caught_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Epoch of the owner here.
    pub fn epoch(&self) -> Option<Epoch> {
        self.state.read().ok().and_then(|state| state.as_ref().map(ShardState::epoch))
    }
}

/// All slots of a node.
pub struct Slots {
    slots: Vec<Arc<Slot>>,
    log: Arc<dyn EventLog>,
    clock: Arc<dyn Clock>,
    wall: Mutex<WallSeen>,
    was_fresh: AtomicBool,
}

impl Slots {
    /// Empty slots for every shard of the log.
    pub fn new(log: Arc<dyn EventLog>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let slots = (0..log.shard_count()).map(|_| Arc::new(Slot::default())).collect();
        Arc::new(Self { slots, log, clock, wall: Mutex::default(), was_fresh: AtomicBool::new(false) })
    }

    /// The slot of a shard.
    pub fn slot(&self, shard: ShardId) -> &Arc<Slot> {
        &self.slots[shard.0 as usize]
    }

    /// Epoch of the shard's owner here.
    pub fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.slots.get(shard.0 as usize)?.epoch()
    }

    /// The shard cannot be served until somebody mends it: it stands still before this record, or at its start.
    pub fn stop(&self, shard: ShardId, before: Option<Offset>, why: &str) {
        if self.slot(shard).stop(before, why) {
            tracing::error!(shard = shard.0, "the shard stops: {why}");
        }
    }

    /// The shard has got over what stopped it, if its next record is this one; without one, it is not stopped here any more.
    pub fn goes_on(&self, shard: ShardId, next: Option<Offset>) {
        if self.slot(shard).goes_on(next) {
            tracing::info!(shard = shard.0, "the shard has got over what stopped it, or is another node's");
        }
    }

    /// Shards whose flushes fail again and again.
    pub fn failing(&self) -> usize {
        self.slots.iter().filter(|slot| slot.flush_failures.load(Ordering::Acquire) >= FAILING).count()
    }

    /// Every shard and its slot.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, &Arc<Slot>)> {
        (0..).map(ShardId).zip(&self.slots)
    }

    /// Looks at the log's end, and notes whether the owner here has applied everything below.
    pub fn look(&self, shard: ShardId, slot: &Slot) -> Offset {
        // The order matters: what is durable at `known` is below `end`, and `end` is compared with what was applied later.
        let now = self.clock.reading();
        self.wall.lock().unwrap_or_else(PoisonError::into_inner).look(now);
        let known = self.log.known_at(shard, now.uptime);
        let end = self.log.end(shard);
        slot.note_progress(known, now, end);
        end
    }

    /// Whether every shard of this node's assignment is owned here and has applied everything appended more than `stale_after_ms` ago.
    /// A node that was fresh gets as long for a shard that is assigned to it: taking over from another node does not make it unready.
    /// A shard that cannot be served anywhere is not looked at, unless there are only such: it must not take the others' node away.
    pub fn all_fresh(&self, stale_after_ms: i64) -> bool {
        let now = self.clock.uptime();
        let assigned = self.log.assignment().borrow().clone();
        let all = || assigned.iter().filter_map(|shard| self.slots.get(shard.0 as usize));
        let slots = || all().filter(|slot| slot.stopped().is_none());
        if slots().next().is_none() && all().next().is_some() {
            return false;
        }
        let fresh = |slot: &Arc<Slot>| slot.epoch().is_some() && slot.caught_up_for(now).is_some_and(|age| age <= stale_after_ms);
        if slots().all(fresh) {
            self.was_fresh.store(true, Ordering::Release);
            return true;
        }
        let new = |slot: &Arc<Slot>| match slot.given_at.load(Ordering::Acquire) {
            0 => false,
            given_at => now.saturating_sub(given_at) <= stale_after_ms,
        };
        self.was_fresh.load(Ordering::Acquire) && slots().all(|slot| fresh(slot) || new(slot))
    }
}

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
            let owned = slot.state.read().ok()?;
            let state = owned.as_ref()?;
            let (epoch, dedup) = (state.epoch(), state.dedup());
            // By the clock that decides: the append times of the log.
            let (horizon_ms, crowded_out) = (dedup.horizon_ms(state.appended().unwrap_or(Millis::MAX)), dedup.crowded_out());
            let rule = dedup.rule();
            Some((shard, DedupStand { epoch, horizon_ms, configured_ms: rule.horizon_ms, max_ids: rule.max_ids, crowded_out }))
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
        let now = self.clock.reading();
        let known = self.log.known_at(shard, now.uptime);
        let end = self.log.end(shard);
        let owned = slot.state.read().ok()?;
        let state = owned.as_ref()?;
        let mark = state.mark_live();
        let ShardReport { as_of, age_ms, .. } = self.reported(shard, slot, &mark, (now, known, end));
        Some(Reach { epoch: state.epoch(), next: mark.applied, end, as_of, age_ms })
    }

    /// Up to when a shard that is behind holds everything, and how long ago that was; none if nothing says so.
    fn held(&self, shard: ShardId, slot: &Slot, mark: &LiveMark, now: Reading) -> Option<(Millis, i64)> {
        let caught_up = slot.sighting().0.map(|(uptime, wall)| (wall, now.uptime.saturating_sub(uptime)));
        let applied = mark.last.map(|times| self.before(times, now));
        match (caught_up, applied) {
            (Some((wall, age)), Some((received, since))) => Some((wall.max(received), age.min(since))),
            (None, None) => {
                // Nothing was applied in this life yet: all that was appended before the first record above the checkpoint is in the store.
                let records = self.log.read(shard, mark.applied, 1).ok()?;
                records.first().map(|missing| self.before((missing.appended, missing.received), now))
            }
            (one, other) => one.or(other),
        }
    }

    /// A time before which nothing was received that was appended behind a record, and how long ago that was appended.
    fn before(&self, (appended, received): (Millis, Millis), now: Reading) -> (Millis, i64) {
        let append_now = self.log.append_now();
        let since = append_now.saturating_sub(appended).max(0);
        // The append clock runs at half speed at least.
        let at_most = since.saturating_mul(2);
        let back_at = self.wall.lock().unwrap_or_else(PoisonError::into_inner).back_at;
        let went_back = back_at.is_some_and(|at| now.uptime.saturating_sub(at) <= at_most.saturating_add(JITTER_MS));
        let in_step = |wall: Millis, append: Millis| wall.saturating_sub(append).saturating_abs() <= JITTER_MS;
        let as_of = match (went_back, in_step(now.wall, append_now) && in_step(received, appended)) {
            (true, _) => Millis::MIN,
            // A leap of no more than the jitter is not seen, so that much is never claimed.
            (false, true) => received.saturating_sub(JITTER_MS),
            (false, false) => received.min(now.wall.saturating_sub(at_most)).saturating_sub(JITTER_MS),
        };
        (as_of, since)
    }
}

impl Slots {
    /// Reads one shard under its lock, and says how far the answer reaches.
    fn report(
        &self,
        (shard, checkpoint): &Asked,
        live: impl FnOnce(&ShardState, &Checkpoint) -> Result<LiveMark, Moved>,
    ) -> Result<ShardReport, LiveError> {
        let slot = self.slots.get(shard.0 as usize).ok_or(LiveError::Unavailable)?;
        // The log is not asked about what is not owned here: it may know nothing of it.
        slot.epoch().ok_or_else(|| slot.why_not())?;
        // The order matters: what is durable at `known` is below `end`, and `end` is compared with what was applied later.
        let now = self.clock.reading();
        let known = self.log.known_at(*shard, now.uptime);
        let end = self.log.end(*shard);
        // A poisoned lock means that the actor died while writing: its state is worthless until the restart replaces it.
        let guard = slot.state.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or_else(|| slot.why_not())?;
        let mark = live(state, checkpoint.as_ref().ok_or(LiveError::Moved)?)?;
        Ok(self.reported(*shard, slot, &mark, (now, known, end)))
    }
}

impl Slots {
    /// Where an owned shard's memory begins, how far it reaches, and which windows of which metrics it holds, all at one moment.
    ///
    /// # Errors
    /// If it is not owned here.
    pub fn stand(&self, shard: ShardId, visit: &mut dyn FnMut(u64, Hour)) -> Result<(Checkpoint, ShardReport), LiveError> {
        let slot = self.slots.get(shard.0 as usize).ok_or(LiveError::Unavailable)?;
        slot.epoch().ok_or(LiveError::Unavailable)?;
        let now = self.clock.reading();
        let known = self.log.known_at(shard, now.uptime);
        let end = self.log.end(shard);
        let guard = slot.state.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or(LiveError::Unavailable)?;
        let (from, mark) = state.stand(visit);
        Ok((from, self.reported(shard, slot, &mark, (now, known, end))))
    }

    /// How far an answer reaches that was read after the clocks, what the log knew then, and the log's end, in this order.
    fn reported(
        &self,
        shard: ShardId,
        slot: &Slot,
        mark: &LiveMark,
        (now, known, end): (Reading, Millis, Offset),
    ) -> ShardReport {
        let behind = end.saturating_sub(mark.applied);
        // Never later than what the log's end proves.
        let proven = now.uptime.saturating_sub(known).max(0);
        let (as_of, age_ms) = match behind {
            0 => (now.wall, proven),
            _ => self.held(shard, slot, mark, now).unwrap_or((0, now.wall)),
        };
        let as_of = as_of.min(now.wall.saturating_sub(proven));
        let stopped = slot.stopped().is_some();
        ShardReport { as_of, age_ms: age_ms.max(proven), behind, recovering: mark.recovering, stopped }
    }
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
            (question.overflow && series.is_overflow()) || matchers.iter().all(|matcher| matcher.matches(series))
        };
        let mut read = |one: &Asked| {
            let mut visit = |series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| visit(one.0, series, hour, rollup);
            (one.0, self.report(one, |state, checkpoint| state.live(checkpoint, question, &mut matches, &mut visit)))
        };
        asked.iter().map(&mut read).collect()
    }

    fn catalogue(&self, asked: &[Asked], question: &CatalogueQuestion<'_>, visit: &mut dyn FnMut(&Growth)) -> Reports {
        let mut read = |one: &Asked| {
            let mut growth = Growth::default();
            let mut note = |entry: NewEntry<'_>| growth.note(question, entry);
            let report = self.report(one, |state, checkpoint| state.live_catalogue(checkpoint, question.tenant, &mut note));
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
            (one.0, self.report(one, |state, checkpoint| state.live_accounting(checkpoint, question, &mut visit)))
        };
        asked.iter().map(&mut read).collect()
    }
}

#[cfg(test)]
mod tests;
