//! De-duplication: of equal ids within the horizon, the first in log order wins.
//!
//! The horizon is `horizon_ms` of append time or the last `max_ids` ids of the shard, whichever is
//! shorter. Both are measured in log order, so a decision depends only on the log and on the rule
//! in force at each offset. An owner that loaded the stored blocks therefore decides like one that
//! has been running all along.
//!
//! An id costs at most 24 bytes, both while the set grows and while it shrinks: 16 for its hash and
//! one or two for its time, in log order ([`Ring`]), and up to 6 in a hash table of ring positions
//! that is kept between 66 % and 85 % full ([`Table`]). Everything in the table can be derived from
//! the ring, so a resize rebuilds it in its own pages, allocating a few more or freeing some,
//! instead of copying into a second table.

use std::collections::VecDeque;

use crate::model::flush::{DedupBlock, DedupRule};
use crate::model::window::Millis;

/// Most ids that a shard can remember: the ring positions that a table slot can distinguish.
pub const MAX_IDS: usize = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 25;

/// The ids within the horizon.
#[derive(Debug)]
pub struct DedupIndex {
    rule: DedupRule,
    /// Shorter horizons of ids that were added under an earlier rule, each with the exclusive end
    /// (a sequence number) of the ids that it covers.
    before: VecDeque<(u64, i64)>,
    ring: Ring,
    table: Table,
    /// Append time of the last id evicted because of `max_ids`.
    last_evicted_at: Option<Millis>,
    evictions: u64,
}

impl DedupIndex {
    /// Creates an empty index. The seed only decides where ids lie in memory. Whoever can choose
    /// ids must not know it, or they could make all ids collide.
    pub fn new(rule: DedupRule, seed: u64) -> Self {
        let rule = bounded(rule);
        let table = Table::new(rule.max_ids, seed);
        Self {
            rule,
            before: VecDeque::new(),
            ring: Ring::default(),
            table,
            last_evicted_at: None,
            evictions: 0,
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

    /// Changes the rule from the next record on. Ids added before the change keep the shorter of
    /// both horizons: an id that the earlier rule has expired, or could have, must not come back.
    pub fn set_rule(&mut self, rule: DedupRule) {
        let rule = bounded(rule);
        for (_, horizon_ms) in &mut self.before {
            *horizon_ms = rule.horizon_ms.min(*horizon_ms);
        }
        if rule.horizon_ms > self.rule.horizon_ms && self.ring.len > 0 {
            self.before.push_back((self.ring.end(), self.rule.horizon_ms));
        }
        while self.ring.len > rule.max_ids {
            self.evict_first();
        }
        // The number of bits for a position follows `max_ids`, and every slot uses it.
        if rule.max_ids != self.rule.max_ids {
            self.table.place_bits = place_bits(rule.max_ids);
            self.table.rebuild(self.table.slots(), &self.ring);
        }
        self.rule = rule;
    }

    /// Expires the ids that are outside the horizon of a record appended at `appended`.
    pub fn advance(&mut self, appended: Millis) {
        while self.ring.len > 0
            && appended.saturating_sub(self.ring.first_at) > self.first_horizon()
        {
            self.forget_first();
        }
    }

    /// Horizon of the oldest id.
    fn first_horizon(&mut self) -> i64 {
        while self.before.front().is_some_and(|(end, _)| *end <= self.ring.first) {
            self.before.pop_front();
        }
        self.before.front().map_or(self.rule.horizon_ms, |(_, horizon_ms)| *horizon_ms)
    }

    /// Adds `id`, of a record appended at `appended`. Returns whether it was new; a duplicate does
    /// not extend the lifetime of the first.
    pub fn insert(&mut self, id: u128, appended: Millis) -> bool {
        if self.table.holds(id, &self.ring) {
            return false;
        }
        self.remember(id, appended);
        true
    }

    /// The rule in force.
    pub fn rule(&self) -> DedupRule {
        self.rule
    }

    /// Number of ids in the index.
    pub fn len(&self) -> usize {
        self.ring.len
    }

    /// Whether the index holds no ids.
    pub fn is_empty(&self) -> bool {
        self.ring.len == 0
    }

    /// Bytes requested from the heap.
    pub fn heap_bytes(&self) -> usize {
        let chunk =
            |chunk: &Chunk| chunk.ids.capacity() * size_of::<u128>() + chunk.times.capacity();
        let ring = self.ring.chunks.iter().map(chunk).sum::<usize>()
            + self.ring.chunks.capacity() * size_of::<Chunk>();
        let table = self.table.slots() * size_of::<u32>()
            + self.table.pages.capacity() * size_of::<usize>();
        ring + table + self.before.capacity() * size_of::<(u64, i64)>()
    }

    /// How far back from `now`, in milliseconds, duplicates are certain to be found: less than the
    /// configured horizon while ids were evicted or an earlier, shorter rule still applies.
    pub fn horizon_ms(&self, now: Millis) -> i64 {
        let crowded = self.last_evicted_at.map_or(i64::MAX, |at| now.saturating_sub(at).max(0));
        let before = self
            .before
            .iter()
            .filter(|(end, _)| *end > self.ring.first)
            .map(|(_, horizon_ms)| *horizon_ms);
        before.fold(self.rule.horizon_ms, i64::min).min(crowded)
    }

    /// Number of ids evicted within their horizon because of `max_ids`.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    fn remember(&mut self, id: u128, appended: Millis) {
        if self.ring.len >= self.rule.max_ids {
            self.evict_first();
        }
        self.ring.push(id, appended);
        self.table.insert_last(&self.ring);
    }

    fn evict_first(&mut self) {
        self.last_evicted_at = Some(self.ring.first_at);
        self.evictions += 1;
        self.forget_first();
    }

    fn forget_first(&mut self) {
        self.table.remove_first(&self.ring);
        self.ring.pop();
        self.table.shrink(&self.ring);
    }
}

fn bounded(rule: DedupRule) -> DedupRule {
    DedupRule { max_ids: rule.max_ids.clamp(1, MAX_IDS), ..rule }
}

/// Ids per chunk of the ring.
const CHUNK: usize = 1024;

/// A run of consecutive ids.
#[derive(Debug)]
struct Chunk {
    ids: Vec<u128>,
    /// Time difference of each id to the one before, as LEB128.
    times: Vec<u8>,
}

/// Ids and append times in log order, in chunks, so that it grows without copying and frees
/// memory as ids expire.
#[derive(Debug, Default)]
struct Ring {
    chunks: VecDeque<Chunk>,
    /// `skipped` is how many ids of the first chunk have expired; `read` is how many bytes of its
    /// times have been decoded.
    skipped: usize,
    read: usize,
    /// Sequence number of the oldest id.
    first: u64,
    len: usize,
    first_at: Millis,
    last_at: Millis,
}

impl Ring {
    /// Exclusive end: the sequence number that the next id will get.
    fn end(&self) -> u64 {
        self.first + self.len as u64
    }

    /// The id with this sequence number, which must be in the ring.
    fn id(&self, sequence: u64) -> u128 {
        let at = (sequence - self.first) as usize + self.skipped;
        self.chunks[at / CHUNK].ids[at % CHUNK]
    }

    fn iter(&self) -> impl Iterator<Item = u128> {
        self.chunks.iter().flat_map(|chunk| &chunk.ids).skip(self.skipped).copied()
    }

    fn push(&mut self, id: u128, at: Millis) {
        if self.chunks.back().is_none_or(|last| last.ids.len() == CHUNK) {
            self.chunks.push_back(Chunk {
                ids: Vec::with_capacity(CHUNK),
                times: Vec::with_capacity(CHUNK),
            });
        }
        let Some(last) = self.chunks.back_mut() else { return };
        // Times never decrease. If one did, the wrapped difference would take ten bytes
        // and still be exact.
        put(at.wrapping_sub(self.last_at).cast_unsigned(), &mut last.times);
        last.ids.push(id);
        if self.len == 0 {
            self.first_at = at;
            self.read = last.times.len();
        }
        self.last_at = at;
        self.len += 1;
    }

    /// Removes the oldest id.
    fn pop(&mut self) {
        if self.len == 0 {
            return;
        }
        (self.first, self.len, self.skipped) = (self.first + 1, self.len - 1, self.skipped + 1);
        if self.skipped == CHUNK || self.len == 0 {
            self.chunks.pop_front();
            (self.skipped, self.read) = (0, 0);
        }
        // Times are stored as differences, so the time of the new first id has to be decoded here.
        if let Some(chunk) = self.chunks.front() {
            let (delta, bytes) = take(&chunk.times[self.read..]);
            self.first_at = self.first_at.wrapping_add(delta.cast_signed());
            self.read += bytes;
        }
    }
}

fn put(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number as u8) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Decodes a number; returns it with its length in bytes.
fn take(bytes: &[u8]) -> (u64, usize) {
    let mut number = 0;
    for (at, &byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return (number, at + 1);
        }
    }
    (number, bytes.len())
}

/// Index of the ring: open addressing with slots in the order of their home positions (Robin Hood).
/// Probes are short whether or not an id is present, and deletion leaves no tombstones.
///
/// A slot holds, from the highest bit down: its distance from the home position, counted from 1 (7
/// bits; 0 means empty), some bits of the hash, and as many low bits of the sequence number as are
/// needed to distinguish `max_ids` ids.
#[derive(Debug)]
struct Table {
    pages: Vec<Box<[u32; PAGE]>>,
    used: usize,
    seed: u64,
    place_bits: u32,
}

/// Load limits in percent: the table grows by a quarter above `FULL` and shrinks below `EMPTY`. A
/// small table doubles instead: that costs little memory, and each growth step
/// rebuilds the whole table.
const FULL: usize = 85;
const EMPTY: usize = 66;
/// A table up to this many pages (32 KiB) counts as small.
const SMALL: usize = 8;
/// Slots per page. Paging lets the table grow without a copy, and pages of one size leave no holes
/// in the heap that nothing else fits in.
const PAGE: usize = 1024;
const MAX_DISTANCE: u32 = 127;

/// Bits needed to distinguish `max_ids` ids.
fn place_bits(max_ids: usize) -> u32 {
    max_ids.next_power_of_two().trailing_zeros().min(PLACE_BITS)
}

fn distance(slot: u32) -> u32 {
    slot >> PLACE_BITS
}

const ONE_FURTHER: u32 = 1 << PLACE_BITS;

impl Table {
    fn new(max_ids: usize, seed: u64) -> Self {
        Self { pages: Vec::new(), used: 0, seed, place_bits: place_bits(max_ids) }
    }

    fn slots(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// The next larger size in slots: a quarter more, or twice as many, in whole pages.
    fn larger(&self) -> usize {
        let pages = self.pages.len();
        (pages + if pages < SMALL { pages.max(1) } else { pages / 4 }) * PAGE
    }

    fn at(&self, slot: usize) -> u32 {
        self.pages[slot / PAGE][slot % PAGE]
    }

    fn at_mut(&mut self, slot: usize) -> &mut u32 {
        &mut self.pages[slot / PAGE][slot % PAGE]
    }

    /// Home position of an id, and the hash bits that its slot stores.
    fn home(&self, id: u128) -> (usize, u32) {
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&id.to_le_bytes(), self.seed);
        let home = ((hash >> 32) * self.slots() as u64) >> 32;
        let mark = (hash as u32 & ((1 << PLACE_BITS) - 1)) >> self.place_bits << self.place_bits;
        (home as usize, mark)
    }

    fn place(&self, sequence: u64) -> u32 {
        sequence as u32 & ((1 << self.place_bits) - 1)
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.slots() { 0 } else { at + 1 }
    }

    fn holds(&self, id: u128, ring: &Ring) -> bool {
        if self.used == 0 {
            return false;
        }
        let (mut at, mark) = self.home(id);
        for from_home in 1..=MAX_DISTANCE {
            let slot = self.at(at);
            if distance(slot) < from_home {
                return false;
            }
            let marked = slot & (ONE_FURTHER - 1) & !self.place(u64::MAX);
            if distance(slot) == from_home && marked == mark {
                // Live sequence numbers differ by less than 2^place_bits, so the
                // low bits are unambiguous.
                let behind = self.place(slot.wrapping_sub(ring.first as u32).into());
                if ring.id(ring.first + u64::from(behind)) == id {
                    return true;
                }
            }
            at = self.next(at);
        }
        false
    }

    /// Adds the ring's last id to the table.
    fn insert_last(&mut self, ring: &Ring) {
        if (self.used + 1) * 100 > self.slots() * FULL {
            return self.rebuild(self.larger(), ring);
        }
        let last = ring.end() - 1;
        if !self.insert(ring.id(last), last) {
            self.rehash(ring);
        }
    }

    /// Inserts a position. Returns false if no slot is free within `MAX_DISTANCE` of its home; the
    /// table must then be rehashed, because an entry may have been displaced and not placed again.
    fn insert(&mut self, id: u128, sequence: u64) -> bool {
        let (mut at, mark) = self.home(id);
        let mut slot = ONE_FURTHER | mark | self.place(sequence);
        loop {
            if self.at(at) == 0 {
                *self.at_mut(at) = slot;
                self.used += 1;
                return true;
            }
            if distance(self.at(at)) < distance(slot) {
                std::mem::swap(self.at_mut(at), &mut slot);
            }
            if distance(slot) == MAX_DISTANCE {
                return false;
            }
            slot += ONE_FURTHER;
            at = self.next(at);
        }
    }

    /// Removes the ring's first id from the table.
    fn remove_first(&mut self, ring: &Ring) {
        if ring.len == 0 || self.used == 0 {
            return;
        }
        let (mut at, mark) = self.home(ring.id(ring.first));
        let mut slot = ONE_FURTHER | mark | self.place(ring.first);
        while self.at(at) != slot {
            if distance(slot) == MAX_DISTANCE {
                return;
            }
            slot += ONE_FURTHER;
            at = self.next(at);
        }
        // Backward-shift deletion: entries that follow and are not at their home move
        // up by one slot.
        let mut behind = self.next(at);
        while distance(self.at(behind)) > 1 {
            *self.at_mut(at) = self.at(behind) - ONE_FURTHER;
            (at, behind) = (behind, self.next(behind));
        }
        *self.at_mut(at) = 0;
        self.used -= 1;
    }

    /// Gives pages back. A small table never shrinks.
    fn shrink(&mut self, ring: &Ring) {
        if self.slots() > SMALL * PAGE && self.used * 100 < self.slots() * EMPTY {
            self.rebuild(self.used * 5 / 4, ring);
        }
    }

    /// Rebuilds the table from the ring, with at least `slots` slots and at least as many
    /// as the ring needs.
    fn rebuild(&mut self, slots: usize, ring: &Ring) {
        let pages = slots.max(ring.len * 100 / FULL + 1).div_ceil(PAGE);
        self.pages.truncate(pages);
        self.pages.iter_mut().for_each(|page| page.fill(0));
        self.pages.resize_with(pages, || Box::new([0; PAGE]));
        self.used = 0;
        for (sequence, id) in (ring.first..).zip(ring.iter()) {
            if !self.insert(id, sequence) {
                return self.rehash(ring);
            }
        }
    }

    /// Rebuilds with a new seed and more slots: too many ids met near one home position. A repeat
    /// is unlikely, because the new seed moves all homes.
    fn rehash(&mut self, ring: &Ring) {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.rebuild(self.larger(), ring);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::OffsetRange;
    use proptest::prelude::*;

    fn rule(horizon_ms: i64, max_ids: usize) -> DedupRule {
        DedupRule { horizon_ms, max_ids }
    }

    /// The definition, literally: whether each id of the log is new. `rules` holds each rule with
    /// the log index from which it applies.
    fn naive(log: &[(Millis, u128)], rules: &[(usize, DedupRule)]) -> Vec<bool> {
        // Ids in memory: append time, id, and the horizon that applies to the id.
        let mut kept: Vec<(Millis, u128, i64)> = Vec::new();
        let mut decided = Vec::new();
        for (place, &(at, id)) in log.iter().enumerate() {
            let of = rules
                .iter()
                .rfind(|(from, _)| *from <= place)
                .expect("a rule from the beginning")
                .1;
            for (_, changed) in rules.iter().filter(|(from, _)| *from == place) {
                kept.iter_mut().for_each(|(_, _, horizon_ms)| {
                    *horizon_ms = changed.horizon_ms.min(*horizon_ms)
                });
                kept.drain(..kept.len().saturating_sub(changed.max_ids));
            }
            kept.retain(|(then, _, horizon_ms)| at - then <= *horizon_ms);
            let new = !kept.iter().any(|(_, other, _)| *other == id);
            if new {
                kept.push((at, id, of.horizon_ms));
                kept.drain(..kept.len().saturating_sub(of.max_ids));
            }
            decided.push(new);
        }
        decided
    }

    /// The log of these steps of time and ids.
    fn log_of(steps: &[(i64, u128)]) -> Vec<(Millis, u128)> {
        let mut at = 0;
        let append = |(step, id): &(i64, u128)| {
            at += step;
            (at, *id)
        };
        steps.iter().map(append).collect()
    }

    fn decide(dedup: &mut DedupIndex, log: &[(Millis, u128)]) -> Vec<bool> {
        log.iter()
            .map(|&(at, id)| {
                dedup.advance(at);
                dedup.insert(id, at)
            })
            .collect()
    }

    fn block(log: &[(Millis, u128)], new: &[bool]) -> DedupBlock {
        let runs = log
            .iter()
            .zip(new)
            .filter(|(_, new)| **new)
            .map(|(&(at, id), _)| (at, vec![id]))
            .collect();
        DedupBlock { range: OffsetRange { from: 0, to: log.len() as u64 }, appended: (0, 0), runs }
    }

    proptest! {
        #[test]
        fn decides_as_defined_also_after_a_restart(
            steps in proptest::collection::vec((0i64..4, 0u128..12), 1..120),
            max in 1usize..8,
            cut in 0usize..120,
            seed in any::<u64>(),
        ) {
            let log = log_of(&steps);
            let expected = naive(&log, &[(0, rule(10, max))]);
            prop_assert_eq!(&decide(&mut DedupIndex::new(rule(10, max), seed), &log), &expected);

            let cut = cut.min(log.len());
            let mut restarted = DedupIndex::new(rule(10, max), seed);
            restarted.load(&[block(&log[..cut], &expected)]);
            prop_assert_eq!(decide(&mut restarted, &log[cut..]), expected[cut..].to_vec());
        }
    }

    // Not indented, because the name of the test fills the line.
    proptest! {
    #[test]
    fn a_change_of_the_rule_decides_the_same_for_whoever_lived_through_it_and_whoever_starts_there(
        steps in proptest::collection::vec((0i64..4, 0u128..12), 1..160),
        rules in proptest::collection::vec((1i64..20, 1usize..9), 4),
        mut cuts in proptest::collection::vec(0usize..160, 3),
    ) {
        let log = log_of(&steps);
        cuts.sort_unstable();
        let rules: Vec<(usize, DedupRule)> =
            std::iter::once(0)
                .chain(cuts)
                .zip(rules)
                .map(|(cut, (horizon, max))| (cut.min(log.len()), rule(horizon, max)))
                .collect();
        let expected = naive(&log, &rules);
        let mut lived = DedupIndex::new(rules[0].1, 7);
        let mut decided = Vec::new();
        for (at, &entry) in log.iter().enumerate() {
            let changes = rules[1..].iter().filter(|(from, _)| *from == at);
            changes.for_each(|(_, changed)| lived.set_rule(*changed));
            decided.extend(decide(&mut lived, &[entry]));
        }
        prop_assert_eq!(&decided, &expected);
        // An owner that starts at any index loads the ids under the rules that were in force
        // then.
        for start in 0..log.len() {
            let mut started = DedupIndex::new(rules[0].1, 8);
            let in_force = rules.iter().enumerate().filter(|(_, (from, _))| *from <= start);
            for (number, (from, of)) in in_force {
                if number > 0 {
                    started.set_rule(*of);
                }
                let to = rules.get(number + 1).map_or(start, |(next, _)| (*next).min(start));
                started.load(&[block(&log[*from..to], &expected[*from..to])]);
            }
            for (at, &entry) in log.iter().enumerate().skip(start) {
                let changes =
                    rules[1..].iter().filter(|(from, _)| *from == at && at > start);
                changes.for_each(|(_, changed)| started.set_rule(*changed));
                let decided = decide(&mut started, &[entry]);
                prop_assert_eq!(decided, &expected[at..=at], "at {} from {}", at, start);
            }
        }
    }
    }

    proptest! {
        #[test]
        fn the_ring_gives_back_what_it_was_given(
            steps in proptest::collection::vec((-5i64..1_000_000, 0usize..3), 0..4_000),
        ) {
            let (mut ring, mut model) = (Ring::default(), VecDeque::new());
            let mut at = 1_767_225_600_000i64;
            for (number, (step, pops)) in steps.into_iter().enumerate() {
                at += step;
                ring.push(number as u128, at);
                model.push_back((number as u128, at));
                for _ in 0..pops {
                    ring.pop();
                    model.pop_front();
                }
                prop_assert_eq!(ring.len, model.len());
                if let (Some((first, first_at)), Some((last, _))) = (model.front(), model.back()) {
                    prop_assert_eq!((ring.id(ring.first), ring.first_at), (*first, *first_at));
                    prop_assert_eq!(ring.id(ring.end() - 1), *last);
                }
            }
            prop_assert!(ring.iter().eq(model.iter().map(|(id, _)| *id)));
        }
    }

    fn id(number: u64) -> u128 {
        xxhash_rust::xxh3::xxh3_128(&number.to_le_bytes())
    }

    #[test]
    fn many_ids_come_and_go_and_none_is_lost_or_made_up() {
        let mut dedup = DedupIndex::new(rule(1_000, 60_000), 3);
        // Waves: rising and then falling numbers of ids, above the limit in between.
        let (mut number, mut at) = (0u64, 0);
        for wave in (1..=80u64).chain((1..80).rev()) {
            at += 50;
            dedup.advance(at);
            let first = number;
            for _ in 0..wave * 60 {
                assert!(dedup.insert(id(number), at));
                number += 1;
            }
            assert!((first..number).step_by(7).all(|known| !dedup.insert(id(known), at)));
            let slots = dedup.table.slots();
            assert_eq!(dedup.table.used, dedup.len());
            assert!(
                slots <= SMALL * PAGE || dedup.len() * 100 >= slots * EMPTY,
                "{slots} slots for {} ids",
                dedup.len()
            );
        }
        assert!(dedup.evictions() > 0 && dedup.len() <= 60_000);
        dedup.advance(at + 2_000);
        assert!(
            dedup.is_empty() && dedup.table.slots() <= SMALL * PAGE && dedup.ring.chunks.is_empty()
        );
        assert!(dedup.insert(id(number - 1), at + 2_000));
    }

    #[test]
    fn ids_that_meet_at_one_place_are_moved_apart() {
        let mut dedup = DedupIndex::new(rule(1_000, 10_000), 5);
        (0..1_000).for_each(|n| assert!(dedup.insert(id(n), 0)));
        // More ids near one home position than fit there; only someone who knows the
        // seed can choose them.
        let slots = dedup.table.slots() as u64;
        let crowd: Vec<u128> = (1_000u64..)
            .map(id)
            .filter(|id| dedup.table.home(*id).0 as u64 * 8 < slots / 64)
            .take(300)
            .collect();
        let seed = dedup.table.seed;
        crowd.iter().for_each(|id| assert!(dedup.insert(*id, 0)));
        assert_ne!(dedup.table.seed, seed, "this test should have met the case");
        assert!(
            crowd.iter().all(|id| !dedup.insert(*id, 0))
                && (0..1_000).all(|n| !dedup.insert(id(n), 0))
        );
    }

    #[test]
    fn the_horizon_in_force_is_what_is_certainly_known() {
        let mut dedup = DedupIndex::new(rule(1_000, 10), 1);
        assert_eq!(dedup.horizon_ms(0), 1_000);
        (0..10).for_each(|n| assert!(dedup.insert(id(n), n as i64 * 10)));
        assert_eq!((dedup.horizon_ms(90), dedup.evictions()), (1_000, 0));
        // The first three are evicted: every id appended after 20 is still known.
        (10..13).for_each(|n| assert!(dedup.insert(id(n), 200)));
        assert_eq!((dedup.horizon_ms(200), dedup.evictions()), (180, 3));
        assert!(dedup.insert(id(2), 201) && !dedup.insert(id(4), 201));
        assert_eq!(dedup.horizon_ms(5_000), 1_000, "time heals it");
        dedup.set_rule(rule(2_000, 10));
        assert_eq!(dedup.horizon_ms(5_000), 1_000, "what came before the change is kept no longer");
        dedup.advance(5_000);
        assert!(dedup.insert(id(99), 5_000));
        assert_eq!(dedup.horizon_ms(5_000), 2_000);
    }
}
