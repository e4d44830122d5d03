//! What one shard shares in the process. Each field has one writer, by type: the driver's steps
//! ([`ShardEntry::drive`]), the archiver ([`ArchiverEntry`]), the supervisor ([`SupervisorEntry`]). All
//! others read.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use super::clocks::CaughtUpTime;
use super::{NotOwned, Observation};
use crate::model::flush::Claim;
use crate::model::offset::{Epoch, Offset, OffsetRange};
use crate::model::window::Millis;
use crate::shards::driver::{ShardCommand, ShardDriver, ShardEvent, StepContext};
use crate::shards::state::ShardState;

/// What one shard shares in the process.
#[derive(Debug, Default)]
pub struct ShardEntry {
    /// What runs the owned shard, with its memory; none while nobody owns it here.
    pub(super) driver: RwLock<Option<ShardDriver>>,
    applied: AtomicU64,
    committed: AtomicU64,
    attempts: AtomicU32,
    flush_failures: AtomicU32,
    flush_failure: Mutex<Option<String>>,
    caught_up: Mutex<CaughtUpTime>,
    stopped: Mutex<Option<StopCause>>,
    /// A pulse is on its way to the actor: its credit.
    wakeup_pending: AtomicBool,
    archived: AtomicU64,
    archive_requested: AtomicU64,
    /// Applied since the last archive object. The driver's steps add, the archiver subtracts.
    unarchived_bytes: AtomicU64,
    /// 0 while the shard is not in the assignment.
    assigned_at: AtomicI64,
}

/// What a shard stands still at.
#[derive(Debug)]
struct StopCause {
    /// The record that it does not get over; none if it cannot even begin.
    before: Option<Offset>,
    why: String,
}

/// What all may read.
impl ShardEntry {
    /// What the owner here has in memory; none if nobody owns the shard here, or its owner died in
    /// the middle of a step.
    pub fn read_state<T>(&self, read: impl FnOnce(&ShardState) -> T) -> Option<T> {
        self.driver.read().ok()?.as_ref().map(|driver| read(driver.state()))
    }

    /// Epoch of the owner here.
    pub fn epoch(&self) -> Option<Epoch> {
        self.read_state(ShardState::epoch)
    }

    /// Next offset to apply.
    pub fn applied(&self) -> Offset {
        self.applied.load(Ordering::Acquire)
    }

    /// Everything below is in the store.
    pub fn committed(&self) -> Offset {
        self.committed.load(Ordering::Acquire)
    }

    /// Everything below is in the archive.
    pub fn archived(&self) -> Offset {
        self.archived.load(Ordering::Acquire)
    }

    /// Everything below is in the store and in the archive: the log may release it.
    pub fn release_floor(&self) -> Offset {
        self.committed().min(self.archived())
    }

    /// Starts at the owner's checkpoint without progress; 0 once it has committed.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Acquire)
    }

    /// Flushes that failed since the last that did not.
    pub fn flush_failures(&self) -> u32 {
        self.flush_failures.load(Ordering::Acquire)
    }

    /// Why the newest flush failed, if it did.
    pub fn flush_failure(&self) -> Option<String> {
        self.flush_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the owner was last seen to have applied the whole log.
    pub fn caught_up(&self) -> CaughtUpTime {
        *self.caught_up_guard()
    }

    /// How long ago the owner was last seen to have applied the whole log; none if it never was.
    pub(super) fn caught_up_for(&self, uptime: Millis) -> Option<i64> {
        self.caught_up().times().map(|(at, _)| uptime.saturating_sub(at))
    }

    /// Why the shard cannot be served until somebody repairs it, if so.
    pub fn stop_reason(&self) -> Option<String> {
        self.stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|stop| stop.why.clone())
    }

    /// How long ago the shard entered this node's assignment; none if it is not in it.
    pub(super) fn assigned_for(&self, uptime: Millis) -> Option<i64> {
        let at = self.assigned_at.load(Ordering::Acquire);
        (at != 0).then(|| uptime.saturating_sub(at))
    }

    // What it holds is whole after every change: the poison says nothing.
    fn caught_up_guard(&self) -> MutexGuard<'_, CaughtUpTime> {
        self.caught_up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the owner's actor writes, through the driver's steps.
impl ShardEntry {
    /// A new owner: its positions and its memory, in one step. What an earlier life had caught up
    /// with counts no longer: what it held in memory is gone.
    pub fn install_owner(&self, claim: &Claim, driver: impl Into<ShardDriver>) {
        self.driver.clear_poison();
        let mut owned = self.driver.write().unwrap_or_else(PoisonError::into_inner);
        self.applied.store(claim.checkpoint.next, Ordering::Release);
        self.committed.store(claim.checkpoint.next, Ordering::Release);
        self.archived.store(claim.checkpoint.archived, Ordering::Release);
        *self.caught_up_guard() = CaughtUpTime::default();
        self.attempts.store(claim.attempts, Ordering::Release);
        self.record_flush(Ok(()));
        *owned = Some(driver.into());
    }

    /// One step of the owner's driver, and what it publishes; the next offset to apply.
    ///
    /// # Errors
    /// If nobody owns the shard here, or its owner died in the middle of a step.
    pub(super) fn drive(
        &self,
        at: StepContext,
        event: ShardEvent<'_>,
        out: &mut VecDeque<ShardCommand>,
    ) -> Result<Offset, NotOwned> {
        let mut owned = self.driver.write().map_err(|_| NotOwned)?;
        let driver = owned.as_mut().ok_or(NotOwned)?;
        driver.handle(at, event, out);
        let next = driver.state().next();
        self.applied.store(next, Ordering::Release);
        self.committed.store(driver.committed(), Ordering::Release);
        self.attempts.store(driver.attempts(), Ordering::Release);
        Ok(next)
    }

    /// The owner stopped: its memory is gone. Where it was stays known until the next owner begins.
    pub fn drop_memory(&self) {
        self.driver.clear_poison();
        *self.driver.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Notes how a flush ended.
    pub fn record_flush(&self, outcome: Result<(), &str>) {
        let mut failure = self.flush_failure.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => self.flush_failures.store(0, Ordering::Release),
            Err(_) => _ = self.flush_failures.fetch_add(1, Ordering::AcqRel),
        }
        *failure = outcome.err().map(str::to_owned);
    }

    /// Payload bytes were applied that the archive does not have.
    pub(super) fn add_unarchived_bytes(&self, bytes: usize) {
        self.unarchived_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes whether the owner has applied everything below the end that was seen.
    pub(super) fn record_progress(&self, seen: &Observation) {
        let Ok(owned) = self.driver.read() else { return };
        let whole = owned.as_ref().is_some_and(|driver| driver.state().next() >= seen.end);
        self.caught_up_guard().update(whole, seen.end_as_of, seen.now);
    }

    /// The shard stands still: before this record, or at its start. Whether that is news.
    pub(super) fn set_stopped(&self, before: Option<Offset>, why: &str) -> bool {
        let stop = StopCause { before, why: why.to_owned() };
        let former = self.stopped.lock().unwrap_or_else(PoisonError::into_inner).replace(stop);
        former.is_none_or(|former| former.why != why)
    }

    /// It has got over what stopped it, if its next record is this one; or it is not stopped here
    /// any more. Whether that is news.
    pub(super) fn clear_stop(&self, next: Option<Offset>) -> bool {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |stop: &StopCause| {
            next.is_none_or(|next| stop.before.is_none_or(|before| next > before))
        };
        stopped.take_if(|stop| over(stop)).is_some()
    }

    /// The actor has its pulse, or there is no actor to take it.
    pub fn clear_wakeup(&self) {
        self.wakeup_pending.store(false, Ordering::Release);
    }

    /// Whether the actor may get a pulse: at most one is on its way.
    pub fn try_begin_wakeup(&self) -> bool {
        !self.wakeup_pending.swap(true, Ordering::AcqRel)
    }
}

/// What the archiver writes.
#[derive(Debug, Clone, Copy)]
pub struct ArchiverEntry<'a>(&'a ShardEntry);

impl ShardEntry {
    /// For the archiver alone.
    pub fn for_archiver(&self) -> ArchiverEntry<'_> {
        ArchiverEntry(self)
    }

    /// An operator asks for an archive of everything that is applied, without waiting for objects
    /// to be due. Up to where that is, if it is not there yet.
    pub fn request_archive(&self) -> Option<Offset> {
        let to = self.applied();
        (to > self.archived()).then(|| {
            self.archive_requested.fetch_max(to, Ordering::AcqRel);
            to
        })
    }
}

impl ArchiverEntry<'_> {
    /// The owner, and what it has committed that the archive does not have, if there is any. All of
    /// it is of one moment: an owner that leaves or begins while the archiver works has other
    /// positions, and the store refuses it what was read before.
    pub fn unarchived_range(self) -> Option<(Epoch, OffsetRange)> {
        let owned = self.0.driver.read().ok()?;
        let owner = owned.as_ref()?.state().epoch();
        let range = OffsetRange { from: self.0.archived(), to: self.0.committed() };
        (range.from < range.to).then_some((owner, range))
    }

    /// Payload bytes applied since the last object.
    pub fn unarchived_bytes(self) -> u64 {
        self.0.unarchived_bytes.load(Ordering::Relaxed)
    }

    /// Whether somebody has asked for an archive of something above `from`.
    pub fn is_requested_above(self, from: Offset) -> bool {
        self.0.archive_requested.load(Ordering::Acquire) > from
    }

    /// An object with these payload bytes was written.
    pub fn subtract_unarchived_bytes(self, bytes: u64) {
        self.0
            .unarchived_bytes
            .store(self.unarchived_bytes().saturating_sub(bytes), Ordering::Relaxed);
    }

    /// The owner of this epoch has archived everything below `to`. Up to where it had before; none
    /// from a former owner, whose news count no longer.
    pub fn set_archived(self, epoch: Epoch, to: Offset) -> Option<Offset> {
        let owned = self.0.driver.read().ok()?;
        let is_owner = owned.as_ref().is_some_and(|driver| driver.state().epoch() == epoch);
        is_owner.then(|| self.0.archived.swap(to, Ordering::AcqRel))
    }
}

/// What the supervisor of the shards writes.
#[derive(Debug, Clone, Copy)]
pub struct SupervisorEntry<'a>(&'a ShardEntry);

impl ShardEntry {
    /// For the supervisor alone.
    pub fn for_supervisor(&self) -> SupervisorEntry<'_> {
        SupervisorEntry(self)
    }
}

impl SupervisorEntry<'_> {
    /// The shard is in this node's assignment, at the latest since now.
    pub fn set_assigned(self, now: Millis) {
        let _since_before =
            self.0.assigned_at.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The shard is not in this node's assignment any more.
    pub fn clear_assigned(self) {
        self.0.assigned_at.store(0, Ordering::Release);
    }

    /// Nobody owns the shard here any more. Positions of a former owner release nothing of the log
    /// and archive nothing.
    pub fn vacate(self) {
        let slot = self.0;
        slot.driver.clear_poison();
        let mut owned = slot.driver.write().unwrap_or_else(PoisonError::into_inner);
        for position in [
            &slot.applied,
            &slot.committed,
            &slot.archived,
            &slot.archive_requested,
            &slot.unarchived_bytes,
        ] {
            position.store(0, Ordering::Release);
        }
        *slot.caught_up_guard() = CaughtUpTime::default();
        slot.attempts.store(0, Ordering::Release);
        slot.record_flush(Ok(()));
        *owned = None;
    }
}
