//! State of one shard that is shared within the process. Who may write is a matter of types: the
//! owner's actor and the ticker write through [`ShardEntry`], the archiver through
//! [`ArchiverEntry`], and the supervisor through [`SupervisorEntry`], which also clears everything
//! once no owner is left. Everybody else reads.

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

/// State of one shard that is shared within the process.
#[derive(Debug, Default)]
pub struct ShardEntry {
    /// Driver of the owned shard, with its memory; `None` while this node does not own the shard.
    pub(super) driver: RwLock<Option<ShardDriver>>,
    applied: AtomicU64,
    committed: AtomicU64,
    attempts: AtomicU32,
    flush_failures: AtomicU32,
    flush_failure: Mutex<Option<String>>,
    caught_up: Mutex<CaughtUpTime>,
    stopped: Mutex<Option<StopCause>>,
    /// Whether a wake-up is on its way to the actor, which is its credit.
    wakeup_pending: AtomicBool,
    archived: AtomicU64,
    archive_requested: AtomicU64,
    /// Payload bytes applied since the last archive object. Driver steps
    /// add, the archiver subtracts.
    unarchived_bytes: AtomicU64,
    /// Boot-clock time; 0 while the shard is not assigned to this node.
    assigned_at: AtomicI64,
}

/// Why a shard has stopped.
#[derive(Debug)]
struct StopCause {
    /// The record that it cannot get past; `None` if it could not start.
    before: Option<Offset>,
    why: String,
}

/// What every reader may see.
impl ShardEntry {
    /// Reads the owner's memory. `None` if this node does not own the shard, or if the owner died
    /// in the middle of a step, which leaves the lock poisoned.
    pub fn read_state<T>(&self, read: impl FnOnce(&ShardState) -> T) -> Option<T> {
        self.driver.read().ok()?.as_ref().map(|driver| read(driver.state()))
    }

    /// Epoch of the owner on this node.
    pub fn epoch(&self) -> Option<Epoch> {
        self.read_state(ShardState::epoch)
    }

    /// Next offset to apply, as of the driver's last step.
    pub fn applied(&self) -> Offset {
        self.applied.load(Ordering::Acquire)
    }

    /// Exclusive end of what is in the store.
    pub fn committed(&self) -> Offset {
        self.committed.load(Ordering::Acquire)
    }

    /// Exclusive end of what is in the archive.
    pub fn archived(&self) -> Offset {
        self.archived.load(Ordering::Acquire)
    }

    /// Everything below is both in the store and in the archive, so the log may release it.
    pub fn release_floor(&self) -> Offset {
        self.committed().min(self.archived())
    }

    /// Starts at the owner's checkpoint without progress; 0 once it has committed.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Acquire)
    }

    /// Failed flushes in a row.
    pub fn flush_failures(&self) -> u32 {
        self.flush_failures.load(Ordering::Acquire)
    }

    /// Why the newest flush failed; `None` if it succeeded.
    pub fn flush_failure(&self) -> Option<String> {
        self.flush_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the owner was last seen to have applied the whole log.
    pub fn caught_up(&self) -> CaughtUpTime {
        *self.caught_up_guard()
    }

    /// Milliseconds since the owner was last seen to have applied the whole log; `None`
    /// if it never was.
    pub(super) fn caught_up_for(&self, uptime: Millis) -> Option<i64> {
        self.caught_up().times().map(|(at, _)| uptime.saturating_sub(at))
    }

    /// Why the shard has stopped until somebody repairs something; `None` if it has not.
    pub fn stop_reason(&self) -> Option<String> {
        self.stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|stop| stop.why.clone())
    }

    /// Milliseconds since the shard was assigned to this node; `None` if it is not assigned.
    pub(super) fn assigned_for(&self, uptime: Millis) -> Option<i64> {
        let at = self.assigned_at.load(Ordering::Acquire);
        (at != 0).then(|| uptime.saturating_sub(at))
    }

    // The value is consistent after every change, so a poisoned lock can be used.
    fn caught_up_guard(&self) -> MutexGuard<'_, CaughtUpTime> {
        self.caught_up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Written by the owner's actor, mostly through the driver's steps, and by the ticker.
impl ShardEntry {
    /// Installs a new owner with its positions. The caught-up time of an earlier owner is reset,
    /// because what that owner held in memory is gone.
    pub fn install_owner(&self, claim: &Claim, driver: impl Into<ShardDriver>) {
        self.driver.clear_poison();
        // Held to the end, so that no reader sees new positions with old memory.
        let mut owned = self.driver.write().unwrap_or_else(PoisonError::into_inner);
        self.applied.store(claim.checkpoint.next, Ordering::Release);
        self.committed.store(claim.checkpoint.next, Ordering::Release);
        self.archived.store(claim.checkpoint.archived, Ordering::Release);
        *self.caught_up_guard() = CaughtUpTime::default();
        self.attempts.store(claim.attempts, Ordering::Release);
        self.record_flush(Ok(()));
        *owned = Some(driver.into());
    }

    /// Runs one step of the owner's driver, publishes its positions and returns the
    /// next offset to apply.
    ///
    /// # Errors
    /// Fails if no owner is installed, or if it died in the middle of a step.
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
        // Published under the lock: the archiver relates them to the epoch that it reads under it.
        self.applied.store(next, Ordering::Release);
        self.committed.store(driver.committed(), Ordering::Release);
        self.attempts.store(driver.attempts(), Ordering::Release);
        Ok(next)
    }

    /// Drops the memory of an owner that has stopped. Its positions remain until
    /// the next owner starts.
    pub fn drop_memory(&self) {
        self.driver.clear_poison();
        *self.driver.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Records how a flush ended.
    pub fn record_flush(&self, outcome: Result<(), &str>) {
        // Held to the end, so that count and reason belong together.
        let mut failure = self.flush_failure.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => self.flush_failures.store(0, Ordering::Release),
            Err(_) => _ = self.flush_failures.fetch_add(1, Ordering::AcqRel),
        }
        *failure = outcome.err().map(str::to_owned);
    }

    /// Adds payload bytes that were applied and are not in the archive.
    pub(super) fn add_unarchived_bytes(&self, bytes: usize) {
        self.unarchived_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Records whether the owner has applied everything below the observed end.
    pub(super) fn record_progress(&self, seen: &Observation) {
        // Held to the end: no new owner can be installed in between and inherit the time.
        let Ok(owned) = self.driver.read() else { return };
        let whole = owned.as_ref().is_some_and(|driver| driver.state().next() >= seen.end);
        self.caught_up_guard().update(whole, seen.end_as_of, seen.now);
    }

    /// Marks the shard as stopped before this record, or at its start. Returns
    /// whether that is news.
    pub(super) fn set_stopped(&self, before: Option<Offset>, why: &str) -> bool {
        let stop = StopCause { before, why: why.to_owned() };
        let former = self.stopped.lock().unwrap_or_else(PoisonError::into_inner).replace(stop);
        former.is_none_or(|former| former.why != why)
    }

    /// Clears the stop if the next record lies above the one that caused it, or unconditionally
    /// without an offset. Returns whether there was one to clear.
    pub(super) fn clear_stop(&self, next: Option<Offset>) -> bool {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |stop: &StopCause| {
            next.is_none_or(|next| stop.before.is_none_or(|before| next > before))
        };
        stopped.take_if(|stop| over(stop)).is_some()
    }

    /// Gives the wake-up credit back: the actor has its wake-up, or there is no actor.
    pub fn clear_wakeup(&self) {
        self.wakeup_pending.store(false, Ordering::Release);
    }

    /// Takes the wake-up credit; false if a wake-up is still on its way.
    pub fn try_begin_wakeup(&self) -> bool {
        !self.wakeup_pending.swap(true, Ordering::AcqRel)
    }
}

/// What the archiver may write.
#[derive(Debug, Clone, Copy)]
pub struct ArchiverEntry<'a>(&'a ShardEntry);

impl ShardEntry {
    /// For the archiver only.
    pub fn for_archiver(&self) -> ArchiverEntry<'_> {
        ArchiverEntry(self)
    }

    /// Requests an archive of everything applied so far, without waiting for an object to be due.
    /// Returns the end of that range, or `None` if it is archived already. Called for operators.
    pub fn request_archive(&self) -> Option<Offset> {
        let to = self.applied();
        (to > self.archived()).then(|| {
            self.archive_requested.fetch_max(to, Ordering::AcqRel);
            to
        })
    }
}

impl ShardEntry {
    /// Requests an archive of what is committed below `to`, as soon as it is: a fill waits for it.
    pub fn request_archive_below(&self, to: Offset) {
        if to > self.archived() {
            self.archive_requested.fetch_max(to, Ordering::AcqRel);
        }
    }
}

impl ArchiverEntry<'_> {
    /// The owner's epoch and the committed range that is not archived yet; `None` if there is none.
    /// All values are of one moment. If the owner changes while the archiver works with them, the
    /// store refuses the write.
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

    /// Whether an archive of records above `from` was requested.
    pub fn is_requested_above(self, from: Offset) -> bool {
        self.0.archive_requested.load(Ordering::Acquire) > from
    }

    /// Subtracts the payload bytes of an object that was written.
    pub fn subtract_unarchived_bytes(self, bytes: u64) {
        // A concurrent addition may get lost. That is harmless: the figure only
        // makes objects due earlier.
        self.0
            .unarchived_bytes
            .store(self.unarchived_bytes().saturating_sub(bytes), Ordering::Relaxed);
    }

    /// Records that the owner of this epoch has archived everything below `to`. Returns the
    /// previous end, or `None` if the epoch is not that of the current owner.
    pub fn set_archived(self, epoch: Epoch, to: Offset) -> Option<Offset> {
        // Held across the swap: no other owner can be installed between the check and the write.
        let owned = self.0.driver.read().ok()?;
        let is_owner = owned.as_ref().is_some_and(|driver| driver.state().epoch() == epoch);
        is_owner.then(|| self.0.archived.swap(to, Ordering::AcqRel))
    }
}

/// What the supervisor of the shards may write.
#[derive(Debug, Clone, Copy)]
pub struct SupervisorEntry<'a>(&'a ShardEntry);

impl ShardEntry {
    /// For the supervisor of the shards only.
    pub fn for_supervisor(&self) -> SupervisorEntry<'_> {
        SupervisorEntry(self)
    }
}

impl SupervisorEntry<'_> {
    /// Records that the shard is assigned to this node, at the latest since `now`.
    pub fn set_assigned(self, now: Millis) {
        // Keeps the first time, so that restarts of the actor do not extend the grace period.
        let _since_before =
            self.0.assigned_at.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Records that the shard is no longer assigned to this node.
    pub fn clear_assigned(self) {
        self.0.assigned_at.store(0, Ordering::Release);
    }

    /// Clears the entry of a shard without an owner. All positions become 0, so that those of a
    /// former owner neither release the log nor archive anything.
    pub fn vacate(self) {
        let entry = self.0;
        entry.driver.clear_poison();
        let mut owned = entry.driver.write().unwrap_or_else(PoisonError::into_inner);
        for position in [
            &entry.applied,
            &entry.committed,
            &entry.archived,
            &entry.archive_requested,
            &entry.unarchived_bytes,
        ] {
            position.store(0, Ordering::Release);
        }
        *entry.caught_up_guard() = CaughtUpTime::default();
        entry.attempts.store(0, Ordering::Release);
        entry.record_flush(Ok(()));
        *owned = None;
    }
}
