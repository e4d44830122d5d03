//! Gives up generations that nobody reads, where the shard would set an event aside otherwise.

use std::sync::Arc;

use super::ShardState;
use crate::model::flush::{Abandonment, LogRecord};
use crate::model::generation::GenerationId;

impl ShardState {
    /// Sets the generations of the set that are neither served nor kept for an undo.
    #[must_use]
    pub fn with_unserved(mut self, unserved: Vec<GenerationId>) -> Self {
        self.unserved = unserved;
        self.unserved.retain(|id| self.writers.contains_key(id));
        self
    }

    /// Goes on without them. The next flush gives them up, if it commits: this one event is not in
    /// their rows. What the batch has of them belongs to the same record, and is dropped with them.
    pub(super) fn abandon_unserved(&mut self, record: &LogRecord, index: u32) {
        let unserved = std::mem::take(&mut self.unserved);
        self.writers.retain(|id, _| !unserved.contains(id));
        self.open.retain_generations(|id| !unserved.contains(&id));
        self.set = Arc::new(self.set.without(&unserved));
        self.abandoned.extend(&unserved);
        self.newest.take_if(|set| !set.is_without(&self.abandoned));
        let (offset, at) = (record.offset, record.received);
        self.abandons = Some(Abandonment { generations: unserved, offset, index, at });
    }
}
