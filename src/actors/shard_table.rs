//! The shards of this node, as shared by their actors, the archiver, the supervisor and live reads.
//!
//! Only the steps of a shard's driver change its memory. Queries read the open batch under a read
//! lock, for no longer than a merge takes. A mailbox call per shard and query would cost more than
//! the whole answer (7 to 12 µs each across threads, up to 64 per query).

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

/// This many failed flushes in a row are more than a hitch: the shard is reported as failing.
pub const FAILING_FLUSHES: u32 = 3;

/// No owner here, or the owner died in the middle of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard has no owner here, or it died in the middle of a step")]
pub struct NotOwned;

/// Clocks and log end at one moment: everything durable at `end_as_of` is below `end`.
#[derive(Debug, Clone, Copy)]
struct Observation {
    now: ClockReading,
    end_as_of: Millis,
    end: Offset,
}

/// The entries of all shards of the log.
pub struct ShardTable {
    entries: Vec<Arc<ShardEntry>>,
    log: Arc<dyn LogReader>,
    assignment: watch::Receiver<Arc<BTreeSet<ShardId>>>,
    clock: Arc<dyn Clock>,
    wall_clock: Mutex<WallClockWatch>,
    was_fresh: AtomicBool,
}

impl ShardTable {
    /// Creates a table with an empty entry for every shard of the log.
    pub fn new(
        log: Arc<dyn LogReader>,
        assignment: watch::Receiver<Arc<BTreeSet<ShardId>>>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let entries = (0..log.shard_count()).map(|_| Arc::new(ShardEntry::default())).collect();
        Arc::new(Self {
            entries,
            log,
            assignment,
            clock,
            wall_clock: Mutex::default(),
            was_fresh: AtomicBool::new(false),
        })
    }

    /// The entry of a shard, which must exist.
    pub fn entry(&self, shard: ShardId) -> &Arc<ShardEntry> {
        &self.entries[shard.0 as usize]
    }

    /// Epoch of the shard's owner on this node.
    pub fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.entries.get(shard.0 as usize)?.epoch()
    }

    /// Marks the shard as stopped until somebody repairs it: before this record, or at its start
    /// if there is none.
    pub fn stop(&self, shard: ShardId, before: Option<Offset>, why: &str) {
        if self.entry(shard).set_stopped(before, why) {
            tracing::error!(shard = shard.0, "the shard stops: {why}");
        }
    }

    /// Clears the stop if the shard has got past it: its next record lies above the one at which it
    /// stopped. Without an offset the stop is cleared in any case.
    pub fn clear_stop(&self, shard: ShardId, next: Option<Offset>) {
        if self.entry(shard).clear_stop(next) {
            tracing::info!(
                shard = shard.0,
                "the shard has got over what stopped it, or is another node's"
            );
        }
    }

    /// Installs a new owner. A stop remains if the new owner's checkpoint is still at the
    /// record that caused it.
    pub fn install_owner(&self, shard: ShardId, claim: &Claim, driver: impl Into<ShardDriver>) {
        let entry = self.entry(shard);
        entry.install_owner(claim, driver);
        self.clear_stop(shard, Some(claim.checkpoint.next));
        // The former actor may have died with a wake-up that it never took; without this, its
        // successor would get none.
        entry.clear_wakeup();
    }

    /// Runs one step of the owner's driver.
    ///
    /// # Errors
    /// Fails if no owner is installed, or if it died in the middle of a step.
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

    /// Records that the owner has applied records.
    pub fn record_applied(&self, shard: ShardId, applied: &AppliedRecords) {
        // What came from the archive is there already and must not make an object due.
        let entry = self.entry(shard);
        if !applied.from_archive {
            entry.add_unarchived_bytes(applied.bytes);
        }
        self.update_progress(shard, entry);
    }

    /// Number of shards whose flushes keep failing.
    pub fn failing_count(&self) -> usize {
        self.entries.iter().filter(|entry| entry.flush_failures() >= FAILING_FLUSHES).count()
    }

    /// All shards with their entries.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, &Arc<ShardEntry>)> {
        (0..).map(ShardId).zip(&self.entries)
    }

    /// Reads the log's end, records whether the owner has applied everything below it,
    /// and returns the end.
    pub fn update_progress(&self, shard: ShardId, entry: &ShardEntry) -> Offset {
        self.update_progress_at(self.read_clocks(), shard, entry)
    }

    /// Reads the clocks, for [`Self::update_progress_at`].
    pub fn read_clocks(&self) -> ClockReading {
        let now = self.clock.reading();
        self.wall_clock.lock().unwrap_or_else(PoisonError::into_inner).update(now);
        now
    }

    /// As [`Self::update_progress`], with clocks that were read before: a caller that visits all
    /// shards reads them once.
    pub fn update_progress_at(
        &self,
        now: ClockReading,
        shard: ShardId,
        entry: &ShardEntry,
    ) -> Offset {
        let seen = self.observe_at(now, shard);
        entry.record_progress(&seen);
        seen.end
    }

    fn observe(&self, shard: ShardId) -> Observation {
        self.observe_at(self.clock.reading(), shard)
    }

    /// Reads how recent the log's knowledge is, then its end; the clocks were read before. In this
    /// order a record acknowledged in between may lie beyond what is claimed, but no claim covers a
    /// record that was missed. What was applied must be read after all three.
    fn observe_at(&self, now: ClockReading, shard: ShardId) -> Observation {
        let known = self.log.end_as_of(shard, now.uptime);
        Observation { now, end_as_of: known, end: self.log.end(shard) }
    }

    /// Whether this node owns every shard of its assignment and each has applied everything
    /// appended more than `stale_after_ms` ago. A node that was fresh grants a newly assigned shard
    /// the same time, so that a takeover does not make it unready. A stopped shard does not count,
    /// unless all are stopped: it must not take the node away from the other shards.
    pub fn all_fresh(&self, stale_after_ms: i64) -> bool {
        let now = self.clock.uptime();
        let assigned = self.assignment.borrow().clone();
        let all = || assigned.iter().filter_map(|shard| self.entries.get(shard.0 as usize));
        let serving = || all().filter(|entry| entry.stop_reason().is_none());
        if serving().next().is_none() && all().next().is_some() {
            return false;
        }
        let fresh = |entry: &Arc<ShardEntry>| {
            entry.epoch().is_some()
                && entry.caught_up_for(now).is_some_and(|age| age <= stale_after_ms)
        };
        if serving().all(fresh) {
            self.was_fresh.store(true, Ordering::Release);
            return true;
        }
        let new = |entry: &Arc<ShardEntry>| {
            entry.assigned_for(now).is_some_and(|age| age <= stale_after_ms)
        };
        self.was_fresh.load(Ordering::Acquire) && serving().all(|entry| fresh(entry) || new(entry))
    }
}
