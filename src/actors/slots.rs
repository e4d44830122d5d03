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

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use clocks::Sighting;
use clocks::WallSeen;
pub use entry::{ArchiverEntry, Slot, SupervisorEntry};
pub use reads::{DedupStand, Reach};

use crate::clock::Clock;
use crate::model::clock::Reading;
use crate::model::flush::Claim;
use crate::model::offset::{Epoch, Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::log::EventLog;
use crate::shards::driver::{Applied, Command, Event, Moment, ShardDriver};

/// So many failures in a row are no passing hitch.
pub const FAILING: u32 = 3;

/// Nobody owns the shard here, or its owner died in the middle of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard has no owner here, or it died in the middle of a step")]
pub struct NotOwned;

/// What was seen of a shard's log: what is durable at `known` is below `end`.
#[derive(Debug, Clone, Copy)]
struct Observation {
    now: Reading,
    known: Millis,
    end: Offset,
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
        Arc::new(Self {
            slots,
            log,
            clock,
            wall: Mutex::default(),
            was_fresh: AtomicBool::new(false),
        })
    }

    /// The slot of a shard.
    pub fn slot(&self, shard: ShardId) -> &Arc<Slot> {
        &self.slots[shard.0 as usize]
    }

    /// Epoch of the shard's owner here.
    pub fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.slots.get(shard.0 as usize)?.epoch()
    }

    /// The shard cannot be served until somebody mends it: it stands still before this record, or
    /// at its start.
    pub fn stop(&self, shard: ShardId, before: Option<Offset>, why: &str) {
        if self.slot(shard).stop(before, why) {
            tracing::error!(shard = shard.0, "the shard stops: {why}");
        }
    }

    /// The shard has got over what stopped it, if its next record is this one; without one, it is
    /// not stopped here any more.
    pub fn goes_on(&self, shard: ShardId, next: Option<Offset>) {
        if self.slot(shard).goes_on(next) {
            tracing::info!(
                shard = shard.0,
                "the shard has got over what stopped it, or is another node's"
            );
        }
    }

    /// A new owner, which stands where the one before it stood still, if that did.
    pub fn begin(&self, shard: ShardId, claim: &Claim, driver: impl Into<ShardDriver>) {
        let slot = self.slot(shard);
        slot.begin(claim, driver);
        self.goes_on(shard, Some(claim.checkpoint.next));
        slot.pulse_taken();
    }

    /// One step of the owner's driver.
    ///
    /// # Errors
    /// If nobody owns the shard here, or its owner died in the middle of a step.
    pub fn drive(
        &self,
        shard: ShardId,
        event: Event<'_>,
        out: &mut VecDeque<Command>,
    ) -> Result<(), NotOwned> {
        let at = Moment { now: self.clock.uptime(), log_end: self.log.end(shard) };
        let next = self.slot(shard).drive(at, event, out)?;
        self.goes_on(shard, Some(next));
        Ok(())
    }

    /// Notes that the owner has applied records.
    pub fn note_applied(&self, shard: ShardId, applied: &Applied) {
        let slot = self.slot(shard);
        if !applied.from_archive {
            slot.applied_bytes(applied.bytes);
        }
        self.look(shard, slot);
    }

    /// Shards whose flushes fail again and again.
    pub fn failing(&self) -> usize {
        self.slots.iter().filter(|slot| slot.flush_failures() >= FAILING).count()
    }

    /// Every shard and its slot.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, &Arc<Slot>)> {
        (0..).map(ShardId).zip(&self.slots)
    }

    /// Looks at the log's end, and notes whether the owner here has applied everything below.
    pub fn look(&self, shard: ShardId, slot: &Slot) -> Offset {
        let seen = self.observe(shard);
        self.wall.lock().unwrap_or_else(PoisonError::into_inner).look(seen.now);
        slot.note_progress(&seen);
        seen.end
    }

    /// Looks at the clocks, at what the log knows, and at its end. The order matters: what is
    /// acknowledged between the first and the last may lie beyond what is claimed, and never
    /// the other way round. What was applied is read after all three.
    fn observe(&self, shard: ShardId) -> Observation {
        let now = self.clock.reading();
        let known = self.log.known_at(shard, now.uptime);
        Observation { now, known, end: self.log.end(shard) }
    }

    /// Whether every shard of this node's assignment is owned here and has applied everything
    /// appended more than `stale_after_ms` ago. A node that was fresh gets as long for a shard
    /// that is assigned to it: taking over from another node does not make it unready.
    /// A shard that cannot be served anywhere is not looked at, unless there are only such: it must
    /// not take the others' node away.
    pub fn all_fresh(&self, stale_after_ms: i64) -> bool {
        let now = self.clock.uptime();
        let assigned = self.log.assignment().borrow().clone();
        let all = || assigned.iter().filter_map(|shard| self.slots.get(shard.0 as usize));
        let slots = || all().filter(|slot| slot.stopped().is_none());
        if slots().next().is_none() && all().next().is_some() {
            return false;
        }
        let fresh = |slot: &Arc<Slot>| {
            slot.epoch().is_some()
                && slot.caught_up_for(now).is_some_and(|age| age <= stale_after_ms)
        };
        if slots().all(fresh) {
            self.was_fresh.store(true, Ordering::Release);
            return true;
        }
        let new =
            |slot: &Arc<Slot>| slot.assigned_for(now).is_some_and(|age| age <= stale_after_ms);
        self.was_fresh.load(Ordering::Acquire) && slots().all(|slot| fresh(slot) || new(slot))
    }
}
