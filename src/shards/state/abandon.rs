//! Gives up generations that nobody reads, where the shard would set an event aside otherwise.

use std::sync::Arc;

use super::ShardState;
use crate::model::flush::{Abandonment, LogRecord};
use crate::model::generation::GenerationId;
use crate::model::series::Series;
use crate::model::window::{Hour, Millis};

impl ShardState {
    /// Sets the generations of the set that are neither served nor kept for an undo, of all
    /// tenants.
    #[must_use]
    pub fn with_unserved(mut self, unserved: Vec<GenerationId>) -> Self {
        self.unserved = unserved;
        self.unserved.retain(|id| self.writers.contains_key(id));
        self
    }

    /// The metric of an event, and the unserved generations that it is folded into: only their
    /// rules see it, so the replay of another tenant, metric or day is never what the shard dies
    /// of.
    fn unserved_of(&self, key: &[u8], time: Millis) -> Option<(String, Vec<GenerationId>)> {
        // An event whose series cannot be read is folded into nothing.
        let Series { tenant, metric, .. } = Series::from_key(key).ok()?;
        let written = self.set.on(&tenant, &metric, Hour::of(time).day());
        let written = written.map(|range| range.generation);
        let unserved: Vec<_> = written.filter(|id| self.unserved.contains(id)).collect();
        Some((metric, unserved))
    }

    /// Whether an event can be applied with less than the shard has died with. Where an earlier
    /// event of the batch has taken something away already, the deaths of this one are of before
    /// that.
    pub(super) fn can_lighten(&self, key: &[u8], time: Millis) -> bool {
        let of_event = || self.unserved_of(key, time);
        !self.abandons.is_empty() || of_event().is_some_and(|(_, unserved)| !unserved.is_empty())
    }

    /// Goes on without the unserved generations that the event is folded into. The next flush gives
    /// them up, if it commits: this one event is not in their rows. What the batch has of them is
    /// dropped with them.
    pub(super) fn abandon_unserved(
        &mut self,
        (record, index): (&LogRecord, u32),
        key: &[u8],
        time: Millis,
    ) {
        let Some((metric, generations)) = self.unserved_of(key, time) else { return };
        if generations.is_empty() {
            return;
        }
        self.unserved.retain(|id| !generations.contains(id));
        self.writers.retain(|id, _| !generations.contains(id));
        self.open.retain_generations(|id| !generations.contains(&id));
        self.set = Arc::new(self.set.without(&generations));
        self.abandoned.extend(&generations);
        self.newest.take_if(|set| !set.is_without(&self.abandoned));
        let (offset, at) = (record.offset, record.received);
        self.abandons.push(Abandonment { generations, metric, offset, index, at });
    }
}
