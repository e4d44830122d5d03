//! What is left of a book when its store is lost: what was served.

use super::{GenerationBook, LeavingRange};
use crate::model::generation::{MaintainedRange, MaintainedSet, Pointer, next_version};

impl GenerationBook {
    /// The book of a store that is rebuilt from this one: what was served, without the way back and
    /// without what was built. It has one set for each generation, besides those before it, so that
    /// each shard can adopt them one by one where it did. What is filled in on days that are not
    /// served leaves.
    #[must_use]
    pub fn served_alone(&self, nonce: u64) -> Self {
        let mut book = Self {
            version: self.version + 1,
            last: self.last,
            pointers: self.pointers.clone(),
            ..Self::default()
        };
        let mut set = MaintainedSet { version: self.newest_set().version, ranges: Vec::new() };
        for (id, generation) in self.generations.iter().filter(|(id, _)| self.is_served(**id)) {
            set.version = next_version(set.version, nonce);
            for metric in &generation.metrics {
                let pointer = self.pointer(&generation.tenant, metric);
                let pieces = pointer.into_iter().flat_map(Pointer::pieces);
                for piece in pieces.filter(|piece| piece.generation == *id) {
                    set.ranges.push(MaintainedRange {
                        tenant: generation.tenant.clone(),
                        metric: metric.clone(),
                        days: piece.days,
                        generation: *id,
                        rules: generation.rules.clone(),
                    });
                }
            }
            book.sets.push(set.clone());
            book.generations.insert(*id, generation.clone());
        }
        book.leaving = book.unserved_days(set.version);
        book
    }

    /// The days of all generations that they were started for and are not served on.
    fn unserved_days(&self, set: u64) -> Vec<LeavingRange> {
        let mut unserved = Vec::new();
        for (id, generation) in &self.generations {
            for metric in &generation.metrics {
                let pointer = self.pointer(&generation.tenant, metric);
                let pieces = pointer.into_iter().flat_map(Pointer::pieces);
                let mut open = vec![generation.days];
                for piece in pieces.filter(|piece| piece.generation == *id) {
                    open = open.into_iter().flat_map(|days| days.without(piece.days)).collect();
                }
                unserved.extend(open.into_iter().map(|days| LeavingRange {
                    generation: *id,
                    tenant: generation.tenant.clone(),
                    metric: metric.clone(),
                    days,
                    set,
                }));
            }
        }
        unserved
    }
}
