//! Batches that were handed to the store. Readers hold a version of the set, which keeps its
//! batches for as long as it is read, whatever is committed or dropped meanwhile.

use std::sync::Arc;

use crate::model::flush::FlushBatch;
use crate::model::offset::{Offset, OffsetRange};
use crate::model::window::Millis;
use crate::shards::delta_table::MetricWindows;
use crate::shards::generations::ActiveSet;
use crate::shards::immutable_queue::ImmutableQueue;

/// A batch that was handed to the store.
#[derive(Debug)]
pub(super) struct FrozenBatch {
    pub range: OffsetRange,
    pub batch: Arc<FlushBatch>,
    pub windows: MetricWindows,
    pub forget_ids_before: Millis,
    /// The set that the batch was folded under.
    pub set: Arc<ActiveSet>,
}

/// A batch that is in the store.
#[derive(Debug)]
struct CommittedBatch {
    frozen: Arc<FrozenBatch>,
    at: Millis,
}

/// A version of the set of frozen batches. Cloning is cheap, and reading a clone needs no lock.
#[derive(Debug, Clone, Default)]
pub(super) struct FrozenBatches {
    /// Batches in the store, oldest first.
    committed: ImmutableQueue<CommittedBatch>,
    /// The newest batch, until it is in the store.
    uncommitted: Option<Arc<FrozenBatch>>,
}

impl FrozenBatches {
    /// All batches, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<FrozenBatch>> {
        self.committed.iter().map(|committed| &committed.frozen).chain(&self.uncommitted)
    }

    /// Start of the oldest batch, if there is one.
    pub(super) fn from(&self) -> Option<Offset> {
        let oldest = self.committed.peek().map(|committed| &committed.frozen);
        oldest.or(self.uncommitted.as_ref()).map(|frozen| frozen.range.from)
    }

    /// The batch that is not in the store yet.
    pub(super) fn uncommitted(&self) -> Option<&Arc<FrozenBatch>> {
        self.uncommitted.as_ref()
    }

    /// Adds a batch that is about to be sent to the store.
    pub(super) fn freeze(&mut self, frozen: Arc<FrozenBatch>) {
        self.uncommitted = Some(frozen);
    }

    /// Moves the uncommitted batch to the committed ones.
    pub(super) fn commit(&mut self, at: Millis) {
        if let Some(frozen) = self.uncommitted.take() {
            self.committed = self.committed.enqueue(CommittedBatch { frozen, at });
        }
    }

    /// Drops batches that were committed longer ago than any query can hold an older snapshot.
    pub(super) fn forget(&mut self, now: Millis, keep_ms: i64) {
        while self.committed.peek().is_some_and(|oldest| now.saturating_sub(oldest.at) > keep_ms)
            && let Some((_, rest)) = self.committed.dequeue()
        {
            self.committed = rest;
        }
    }
}
