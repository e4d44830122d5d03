//! The shards of this node as its actors, the archiver, the supervisor and live reads share them.
//!
//! Only the steps of the shard's driver change its memory; queries read the open batch under the
//! read side of the lock, for no longer than a merge takes. A mailbox call per shard and query
//! would cost more than the whole answer (7 to 12 µs each across threads, up to 64 per query).

mod clocks;
mod entry;
mod reads;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use clocks::CaughtUpTime;
use clocks::WallClockWatch;
pub use entry::{ArchiverEntry, ShardEntry, SupervisorEntry};
pub use reads::{DedupStatus, ShardWatermark};

use tokio::sync::watch;

use crate::clock::Clock;
use crate::model::clock::ClockReading;
use crate::model::flush::Claim;
use crate::model::offset::{Epoch, Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::log::LogReader;
use crate::shards::driver::{AppliedRecords, ShardCommand, ShardDriver, ShardEvent, StepContext};

/// So many failures in a row are no passing hitch.
pub const FAILING_FLUSHES: u32 = 3;

/// Nobody owns the shard here, or its owner died in the middle of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard has no owner here, or it died in the middle of a step")]
pub struct NotOwned;

/// What was seen of a shard's log: what is durable at `known` is below `end`.
#[derive(Debug, Clone, Copy)]
struct Observation {
    now: ClockReading,
    end_as_of: Millis,
    end: Offset,
}

/// All slots of a node.
pub struct ShardTable {
    entries: Vec<Arc<ShardEntry>>,
    log: Arc<dyn LogReader>,
    assignment: watch::Receiver<Arc<BTreeSet<ShardId>>>,
    clock: Arc<dyn Clock>,
    wall_clock: Mutex<WallClockWatch>,
    was_fresh: AtomicBool,
}

impl ShardTable {
    /// Empty slots for every shard of the log.
    pub fn new(
        log: Arc<dyn LogReader>,
        assignment: watch::Receiver<Arc<BTreeSet<ShardId>>>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let slots = (0..log.shard_count()).map(|_| Arc::new(ShardEntry::default())).collect();
        Arc::new(Self {
            entries: slots,
            log,
            assignment,
            clock,
            wall_clock: Mutex::default(),
            was_fresh: AtomicBool::new(false),
        })
    }

    /// The slot of a shard.
    pub fn entry(&self, shard: ShardId) -> &Arc<ShardEntry> {
        &self.entries[shard.0 as usize]
    }

    /// Epoch of the shard's owner here.
    pub fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.entries.get(shard.0 as usize)?.epoch()
    }

    /// The shard cannot be served until somebody mends it: it stands still before this record, or
    /// at its start.
    pub fn stop(&self, shard: ShardId, before: Option<Offset>, why: &str) {
        if self.entry(shard).set_stopped(before, why) {
            tracing::error!(shard = shard.0, "the shard stops: {why}");
        }
    }

    /// The shard has got over what stopped it, if its next record is this one; without one, it is
    /// not stopped here any more.
    pub fn clear_stop(&self, shard: ShardId, next: Option<Offset>) {
        if self.entry(shard).clear_stop(next) {
            tracing::info!(
                shard = shard.0,
                "the shard has got over what stopped it, or is another node's"
            );
        }
    }

    /// A new owner, which stands where the one before it stood still, if that did.
    pub fn install_owner(&self, shard: ShardId, claim: &Claim, driver: impl Into<ShardDriver>) {
        let slot = self.entry(shard);
        slot.install_owner(claim, driver);
        self.clear_stop(shard, Some(claim.checkpoint.next));
        slot.clear_wakeup();
    }

    /// One step of the owner's driver.
    ///
    /// # Errors
    /// If nobody owns the shard here, or its owner died in the middle of a step.
    pub fn drive(
        &self,
        shard: ShardId,
        event: ShardEvent<'_>,
        out: &mut VecDeque<ShardCommand>,
    ) -> Result<(), NotOwned> {
        let at = StepContext { now: self.clock.uptime(), log_end: self.log.end(shard) };
        let next = self.entry(shard).drive(at, event, out)?;
        self.clear_stop(shard, Some(next));
        Ok(())
    }

    /// Notes that the owner has applied records.
    pub fn record_applied(&self, shard: ShardId, applied: &AppliedRecords) {
        let slot = self.entry(shard);
        if !applied.from_archive {
            slot.add_unarchived_bytes(applied.bytes);
        }
        self.update_progress(shard, slot);
    }

    /// Shards whose flushes fail again and again.
    pub fn failing_count(&self) -> usize {
        self.entries.iter().filter(|slot| slot.flush_failures() >= FAILING_FLUSHES).count()
    }

    /// Every shard and its slot.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, &Arc<ShardEntry>)> {
        (0..).map(ShardId).zip(&self.entries)
    }

    /// Looks at the log's end, and notes whether the owner here has applied everything below.
    pub fn update_progress(&self, shard: ShardId, slot: &ShardEntry) -> Offset {
        let seen = self.observe(shard);
        self.wall_clock.lock().unwrap_or_else(PoisonError::into_inner).update(seen.now);
        slot.record_progress(&seen);
        seen.end
    }

    /// Looks at the clocks, at what the log knows, and at its end. The order matters: what is
    /// acknowledged between the first and the last may lie beyond what is claimed, and never
    /// the other way round. What was applied is read after all three.
    fn observe(&self, shard: ShardId) -> Observation {
        let now = self.clock.reading();
        let known = self.log.end_as_of(shard, now.uptime);
        Observation { now, end_as_of: known, end: self.log.end(shard) }
    }

    /// Whether every shard of this node's assignment is owned here and has applied everything
    /// appended more than `stale_after_ms` ago. A node that was fresh gets as long for a shard
    /// that is assigned to it: taking over from another node does not make it unready.
    /// A shard that cannot be served anywhere is not looked at, unless there are only such: it must
    /// not take the others' node away.
    pub fn all_fresh(&self, stale_after_ms: i64) -> bool {
        let now = self.clock.uptime();
        let assigned = self.assignment.borrow().clone();
        let all = || assigned.iter().filter_map(|shard| self.entries.get(shard.0 as usize));
        let slots = || all().filter(|slot| slot.stop_reason().is_none());
        if slots().next().is_none() && all().next().is_some() {
            return false;
        }
        let fresh = |slot: &Arc<ShardEntry>| {
            slot.epoch().is_some()
                && slot.caught_up_for(now).is_some_and(|age| age <= stale_after_ms)
        };
        if slots().all(fresh) {
            self.was_fresh.store(true, Ordering::Release);
            return true;
        }
        let new = |slot: &Arc<ShardEntry>| {
            slot.assigned_for(now).is_some_and(|age| age <= stale_after_ms)
        };
        self.was_fresh.load(Ordering::Acquire) && slots().all(|slot| fresh(slot) || new(slot))
    }
}
