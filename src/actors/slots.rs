//! The places where the shards of this node stand, shared by their actors, the pulse, the archiver and live reads.
//!
//! Only the shard's actor writes its state; queries read it under the read side of the lock, for no longer than a merge takes. A
//! mailbox call per shard and query would cost more than the whole answer (7 to 12 µs each across threads, up to 64 per query).

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use crate::clock::Clock;
use crate::model::flush::SeriesInfo;
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::window::Hour;
use crate::persistence::log::EventLog;
use crate::shards::state::{LiveQuestion, ShardState};

use super::live::{LiveError, LiveReader, ShardReport};

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
    /// When the shard was last seen to have applied the whole log.
    pub caught_up_at: AtomicI64,
}

impl Slot {
    /// Notes, as of `now`, whether everything in the log is applied.
    pub fn note_progress(&self, log_end: Offset, now: i64) {
        if self.applied.load(Ordering::Acquire) >= log_end {
            self.caught_up_at.fetch_max(now, Ordering::AcqRel);
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
}

impl Slots {
    /// Empty slots for every shard of the log.
    pub fn new(log: Arc<dyn EventLog>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let slots = (0..log.shard_count()).map(|_| Arc::new(Slot::default())).collect();
        Arc::new(Self { slots, log, clock })
    }

    /// The slot of a shard.
    pub fn slot(&self, shard: ShardId) -> &Arc<Slot> {
        &self.slots[shard.0 as usize]
    }

    /// Every shard and its slot.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, &Arc<Slot>)> {
        (0..).map(ShardId).zip(&self.slots)
    }

    /// Whether every shard is owned and has applied everything appended more than `stale_after_ms` ago.
    pub fn all_fresh(&self, stale_after_ms: i64) -> bool {
        let floor = self.clock.now() - stale_after_ms;
        self.iter().all(|(_, slot)| slot.epoch().is_some() && slot.caught_up_at.load(Ordering::Acquire) >= floor)
    }
}

impl LiveReader for Slots {
    fn shard_count(&self) -> u32 {
        self.slots.len() as u32
    }

    fn read(
        &self,
        shard: ShardId,
        checkpoint: Option<&Checkpoint>,
        question: &LiveQuestion<'_>,
        matches: &mut dyn FnMut(&Series) -> bool,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, &Rollup),
    ) -> Result<ShardReport, LiveError> {
        let slot = self.slots.get(shard.0 as usize).ok_or(LiveError::Unavailable)?;
        // The order matters: what is durable at `now` is below `end`, and `end` is compared with what was applied later.
        let now = self.clock.now();
        let end = self.log.end(shard);
        // A poisoned lock means that the actor died while writing: its state is worthless until the restart replaces it.
        let guard = slot.state.read().map_err(|_| LiveError::Unavailable)?;
        let state = guard.as_ref().ok_or(LiveError::Unavailable)?;
        let checkpoint = checkpoint.ok_or(LiveError::Moved)?;
        let mark = state.live(checkpoint, question, matches, visit)?;
        let behind = end.saturating_sub(mark.applied);
        let as_of = if behind == 0 { now } else { mark.appended.max(slot.caught_up_at.load(Ordering::Acquire)) };
        Ok(ShardReport { as_of, behind })
    }
}
