//! The places where the shards of this node stand, shared by their actors, the pulse, the archiver and live reads.
//!
//! Only the shard's actor writes its state; queries read it under the read side of the lock, for no longer than a merge takes. A
//! mailbox call per shard and query would cost more than the whole answer (7 to 12 µs each across threads, up to 64 per query).

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::clock::Clock;
use crate::model::flush::{AccountingDelta, Claim, SeriesInfo};
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};
use crate::persistence::log::EventLog;
use crate::persistence::store::Matcher;
use crate::shards::state::{AccountingQuestion, LiveMark, LiveQuestion, Moved, ShardState};

use super::live::{Asked, LiveError, LiveReader, Reports, ShardReport};

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
    /// Payload bytes applied since the last archive object.
    pub unarchived_bytes: AtomicU64,
    /// When the owner was last seen to have applied the whole log; 0 if it never was.
    pub caught_up_at: AtomicI64,
    /// Starts at the owner's checkpoint without progress; 0 once it has committed.
    pub attempts: AtomicU32,
    /// When the shard entered this node's assignment; 0 if it is not in it.
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

impl Slot {
    /// A new owner: its positions and its state, in one step. What an earlier life had caught up with counts no longer: what it held in
    /// memory is gone.
    pub fn begin(&self, claim: &Claim, state: ShardState) {
        self.state.clear_poison();
        let mut owned = self.state.write().unwrap_or_else(PoisonError::into_inner);
        self.applied.store(claim.checkpoint.next, Ordering::Release);
        self.committed.store(claim.checkpoint.next, Ordering::Release);
        self.archived.store(claim.checkpoint.archived, Ordering::Release);
        self.caught_up_at.store(0, Ordering::Release);
        self.attempts.store(claim.attempts, Ordering::Release);
        self.note_flush(Ok(()));
        *owned = Some(state);
    }

    /// Nobody owns the shard here any more. Positions of a former owner release nothing of the log and archive nothing.
    pub fn vacate(&self) {
        self.state.clear_poison();
        let mut owned = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for position in [&self.applied, &self.committed, &self.archived, &self.unarchived_bytes] {
            position.store(0, Ordering::Release);
        }
        self.caught_up_at.store(0, Ordering::Release);
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
    pub fn note_progress(&self, known: Millis, now: Millis, log_end: Offset) {
        let Ok(owned) = self.state.read() else { return };
        if owned.as_ref().is_some_and(|state| state.next() >= log_end) {
            self.caught_up_at.store(known, Ordering::Release);
        } else if self.caught_up_at.load(Ordering::Acquire) > now {
            // The clock went back: what was noted would hide how far behind the shard is.
            self.caught_up_at.store(0, Ordering::Release);
        }
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
    was_fresh: AtomicBool,
}

impl Slots {
    /// Empty slots for every shard of the log.
    pub fn new(log: Arc<dyn EventLog>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let slots = (0..log.shard_count()).map(|_| Arc::new(Slot::default())).collect();
        Arc::new(Self { slots, log, clock, was_fresh: AtomicBool::new(false) })
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
        let now = self.clock.now();
        let known = self.log.known_at(shard, now);
        let end = self.log.end(shard);
        slot.note_progress(known, now, end);
        end
    }

    /// Whether every shard of this node's assignment is owned here and has applied everything appended more than `stale_after_ms` ago.
    /// A node that was fresh gets as long for a shard that is assigned to it: taking over from another node does not make it unready.
    /// A shard that cannot be served anywhere is not looked at, unless there are only such: it must not take the others' node away.
    pub fn all_fresh(&self, stale_after_ms: i64) -> bool {
        let now = self.clock.now();
        let floor = now - stale_after_ms;
        let assigned = self.log.assignment().borrow().clone();
        let all = || assigned.iter().filter_map(|shard| self.slots.get(shard.0 as usize));
        let slots = || all().filter(|slot| slot.stopped().is_none());
        if slots().next().is_none() && all().next().is_some() {
            return false;
        }
        let fresh = |slot: &Arc<Slot>| slot.epoch().is_some() && slot.caught_up_at.load(Ordering::Acquire) >= floor;
        if slots().all(fresh) {
            self.was_fresh.store(true, Ordering::Release);
            return true;
        }
        let new = |slot: &Arc<Slot>| (floor..=now).contains(&slot.given_at.load(Ordering::Acquire));
        self.was_fresh.load(Ordering::Acquire) && slots().all(|slot| fresh(slot) || new(slot))
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
    /// Everything appended before this is applied.
    pub as_of: Millis,
}

impl Slots {
    /// How far a shard is that is owned here; none for the others.
    pub fn reach(&self, shard: ShardId) -> Option<Reach> {
        let slot = self.slots.get(shard.0 as usize)?;
        slot.epoch()?;
        let now = self.clock.now();
        let known = self.log.known_at(shard, now);
        let end = self.log.end(shard);
        let owned = slot.state.read().ok()?;
        let state = owned.as_ref()?;
        let mark = state.mark_live();
        let as_of = if mark.applied >= end { known } else { self.as_of_behind(shard, slot, &mark, known, now) };
        Some(Reach { epoch: state.epoch(), next: mark.applied, end, as_of })
    }

    /// Up to when a shard that is behind holds everything; never later than what the log's end proves.
    fn as_of_behind(&self, shard: ShardId, slot: &Slot, mark: &LiveMark, known: Millis, now: Millis) -> Millis {
        // A time in the future was noted before the clock went back, and says nothing.
        let caught_up_at = Some(slot.caught_up_at.load(Ordering::Acquire)).filter(|at| *at <= now);
        let held = mark.appended.max(caught_up_at.unwrap_or(0));
        if held > 0 {
            return held.min(known);
        }
        // Nothing was applied in this life yet: all that was appended before the first record above the checkpoint is in the store.
        let missing = self.log.read(shard, mark.applied, 1).ok().and_then(|records| records.first().map(|r| r.appended));
        missing.map_or(0, |appended| appended.min(known))
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
        slot.epoch().ok_or(LiveError::Unavailable)?;
        // The order matters: what is durable at `known` is below `end`, and `end` is compared with what was applied later.
        let now = self.clock.now();
        let known = self.log.known_at(*shard, now);
        let end = self.log.end(*shard);
        // A poisoned lock means that the actor died while writing: its state is worthless until the restart replaces it.
        let guard = slot.state.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or(LiveError::Unavailable)?;
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
        let now = self.clock.now();
        let known = self.log.known_at(shard, now);
        let end = self.log.end(shard);
        let guard = slot.state.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or(LiveError::Unavailable)?;
        let (from, mark) = state.stand(visit);
        Ok((from, self.reported(shard, slot, &mark, (now, known, end))))
    }

    /// How far an answer reaches that was read after the clock, what the log knew then, and the log's end, in this order.
    fn reported(&self, shard: ShardId, slot: &Slot, mark: &LiveMark, (now, known, end): (Millis, Millis, Offset)) -> ShardReport {
        let behind = end.saturating_sub(mark.applied);
        let as_of = if behind == 0 { known } else { self.as_of_behind(shard, slot, mark, known, now) };
        ShardReport { as_of, behind }
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
        let mut matches = |series: &Series| matchers.iter().all(|matcher| matcher.matches(series));
        let mut read = |one: &Asked| {
            let mut visit = |series: &Arc<SeriesInfo>, hour: Hour, rollup: &Rollup| visit(one.0, series, hour, rollup);
            (one.0, self.report(one, |state, checkpoint| state.live(checkpoint, question, &mut matches, &mut visit)))
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
