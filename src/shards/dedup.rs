//! De-duplication: the first of equal ids within the horizon wins, in log order.
//!
//! The horizon is `horizon_ms` of append time or the last `max_ids` ids of the shard, whichever is shorter. Both are counted in log
//! order, so the decision is a function of the log alone, and an owner that was started from the stored blocks decides like one
//! that lived through. About 26 bytes an id: a ring of hashes, and a table of their positions.

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

use crate::model::flush::DedupBlock;
use crate::model::window::Millis;

/// The ids within the horizon.
#[derive(Debug)]
pub struct Dedup {
    horizon_ms: i64,
    max_ids: usize,
    /// Ids in log order; the first has the sequence number `first`.
    ids: VecDeque<u128>,
    first: u64,
    /// `(append time, ids)` in log order.
    runs: VecDeque<(Millis, u64)>,
    /// Low 32 bits of the sequence number of each id; `max_ids` stays far below 2^32, so they are unambiguous.
    table: HashTable<u32>,
    hasher: FixedState,
}

impl Dedup {
    /// An empty horizon.
    pub fn new(horizon_ms: i64, max_ids: usize) -> Self {
        Self {
            horizon_ms,
            max_ids: max_ids.clamp(1, 1 << 30),
            ids: VecDeque::new(),
            first: 0,
            runs: VecDeque::new(),
            table: HashTable::new(),
            hasher: FixedState::with_seed(0x524d),
        }
    }

    /// Loads the ids of earlier flushes, in log order.
    pub fn load(&mut self, blocks: &[DedupBlock]) {
        for (appended, ids) in blocks.iter().flat_map(|block| &block.runs) {
            self.advance(*appended);
            for &id in ids {
                self.remember(id, *appended);
            }
        }
    }

    /// Forgets what is out of the horizon of a record appended at `appended`.
    pub fn advance(&mut self, appended: Millis) {
        while let Some(&(at, count)) = self.runs.front() {
            if appended.saturating_sub(at) <= self.horizon_ms {
                break;
            }
            self.runs.pop_front();
            for _ in 0..count {
                self.forget_first();
            }
        }
    }

    /// Whether `id`, of a record appended at `appended`, is new; it is remembered if so. A duplicate does not prolong the first.
    pub fn is_new(&mut self, id: u128, appended: Millis) -> bool {
        let hash = self.hasher.hash_one(id);
        let (ids, first) = (&self.ids, self.first);
        if self.table.find(hash, |&low| ids[index(low, first)] == id).is_some() {
            return false;
        }
        self.remember(id, appended);
        true
    }

    /// Number of ids remembered.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    fn remember(&mut self, id: u128, appended: Millis) {
        if self.ids.len() == self.max_ids {
            self.forget_first();
            match self.runs.front_mut() {
                Some((_, count)) if *count > 1 => *count -= 1,
                _ => {
                    self.runs.pop_front();
                }
            }
        }
        let low = self.first.wrapping_add(self.ids.len() as u64) as u32;
        self.ids.push_back(id);
        match self.runs.back_mut() {
            Some((at, count)) if *at == appended => *count += 1,
            _ => self.runs.push_back((appended, 1)),
        }
        let (ids, first, hasher) = (&self.ids, self.first, &self.hasher);
        self.table.insert_unique(hasher.hash_one(id), low, |&low| hasher.hash_one(ids[index(low, first)]));
    }

    fn forget_first(&mut self) {
        let Some(&id) = self.ids.front() else { return };
        let low = self.first as u32;
        if let Ok(entry) = self.table.find_entry(self.hasher.hash_one(id), |&at| at == low) {
            entry.remove();
        }
        self.ids.pop_front();
        self.first += 1;
    }
}

fn index(low: u32, first: u64) -> usize {
    low.wrapping_sub(first as u32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::OffsetRange;
    use proptest::prelude::*;

    /// The definition, word by word.
    fn naive(log: &[(Millis, u128)], horizon: i64, max: usize) -> Vec<bool> {
        let mut kept: Vec<(Millis, u128)> = Vec::new();
        log.iter()
            .map(|&(at, id)| {
                let window = &kept[kept.len().saturating_sub(max)..];
                let new = !window.iter().any(|&(then, other)| other == id && at - then <= horizon);
                if new {
                    kept.push((at, id));
                }
                new
            })
            .collect()
    }

    fn decide(dedup: &mut Dedup, log: &[(Millis, u128)]) -> Vec<bool> {
        log.iter()
            .map(|&(at, id)| {
                dedup.advance(at);
                dedup.is_new(id, at)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn decides_as_defined_also_after_a_restart(
            steps in proptest::collection::vec((0i64..4, 0u128..12), 1..120), max in 1usize..8, cut in 0usize..120,
        ) {
            let log: Vec<(Millis, u128)> = steps.iter().scan(0, |at, (step, id)| { *at += step; Some((*at, *id)) }).collect();
            let expected = naive(&log, 10, max);
            prop_assert_eq!(&decide(&mut Dedup::new(10, max), &log), &expected);

            let cut = cut.min(log.len());
            let applied = log[..cut].iter().zip(&expected).filter(|(_, new)| **new).map(|(&(at, id), _)| (at, vec![id])).collect();
            let block = DedupBlock { range: OffsetRange { from: 0, to: cut as u64 }, appended: (0, 0), runs: applied };
            let mut restarted = Dedup::new(10, max);
            restarted.load(&[block]);
            prop_assert_eq!(decide(&mut restarted, &log[cut..]), expected[cut..].to_vec());
        }
    }
}
