//! Which objects of a listing form an unbroken sequence of offsets. Pure.
//!
//! A listing also contains objects without a manifest row: orphans of crashes and of fenced owners,
//! and expired objects that were not deleted yet. All of them hold records as they were in the log,
//! so any gapless chain of objects gives the same history.

use std::collections::BTreeMap;

use super::ObjectInfo;
use crate::model::manifest::{ManifestRow, ObjectName, Tier};
use crate::model::offset::{LogId, Offset, OffsetRange, ShardId};

/// An archive object of a shard, found in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveObject {
    /// Its path, size and tier.
    pub object: ObjectInfo,
    /// Range and epoch, parsed from the path.
    pub name: ObjectName,
}

/// The objects of a shard, and how far a gapless chain reaches from each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectChains {
    /// Sorted by range and epoch.
    all: Vec<ArchiveObject>,
    /// By first offset: the greatest exclusive end of a chain that starts there.
    furthest: BTreeMap<Offset, Offset>,
}

impl ObjectChains {
    /// Builds the chains from a listing. An object in both tiers counts once, as the hot copy,
    /// which is the original. `logs` are the ids under which the shard's objects may be stored:
    /// that of the current log and those of former logs whose offsets it continues.
    pub fn of(logs: &[LogId], shard: ShardId, listed: Vec<ObjectInfo>) -> Self {
        let mut by_path: BTreeMap<String, ArchiveObject> = BTreeMap::new();
        for object in listed {
            let Some(name) =
                logs.iter().find_map(|log| ManifestRow::parse_name(*log, shard, &object.path))
            else {
                continue;
            };
            let hot = object.tier == Tier::Hot;
            let link = ArchiveObject { object, name };
            if hot || !by_path.contains_key(&link.object.path) {
                by_path.insert(link.object.path.clone(), link);
            }
        }
        let mut all: Vec<ArchiveObject> = by_path.into_values().collect();
        all.sort_by_key(|link| (link.name.range.from, link.name.range.to, link.name.epoch));
        Self::sorted(all)
    }

    fn sorted(all: Vec<ArchiveObject>) -> Self {
        let mut chains = Self { all, furthest: BTreeMap::new() };
        // Backwards, because the end of a chain depends on the objects after it.
        for at in (0..chains.all.len()).rev() {
            let reached = chains.end_through(&chains.all[at]);
            let best = chains.furthest.entry(chains.all[at].name.range.from).or_insert(reached);
            *best = reached.max(*best);
        }
        chains
    }

    /// The chains without one object, which turned out to be damaged.
    #[must_use]
    pub fn without(&self, path: &str) -> Self {
        Self::sorted(self.all.iter().filter(|link| link.object.path != path).cloned().collect())
    }

    /// All objects, sorted by first offset.
    pub fn objects(&self) -> &[ArchiveObject] {
        &self.all
    }

    /// The exclusive end of the longest chain from `start`, or `start` itself if none starts there.
    pub fn chain_end(&self, start: Offset) -> Offset {
        self.furthest.get(&start).copied().unwrap_or(start)
    }

    /// The longest chain from `start`. Where several objects lead equally far, it takes the one of
    /// the latest owner. The chain from any of its objects is the rest of this chain.
    pub fn chain_from(&self, start: Offset) -> Vec<ArchiveObject> {
        let (mut chain, mut next) = (Vec::new(), start);
        while let Some(goal) = self.furthest.get(&next) {
            let from = self.all.partition_point(|link| link.name.range.from < next);
            let begin_here =
                self.all[from..].iter().take_while(|link| link.name.range.from == next);
            let leading = begin_here.filter(|link| self.end_through(link) == *goal);
            let Some(best) = leading.max_by_key(|link| (link.name.epoch, link.name.range.to))
            else {
                break;
            };
            chain.push(best.clone());
            next = best.name.range.to;
        }
        chain
    }

    /// The objects that hold `range`: of the chain from `anchor` if it reaches far enough,
    /// otherwise of a chain from another object that starts at or below `range.from`.
    ///
    /// # Errors
    /// If there is no such chain: the first part of the range that none holds.
    pub fn covering(
        &self,
        anchor: Offset,
        range: OffsetRange,
    ) -> Result<Vec<ArchiveObject>, OffsetRange> {
        let below = self.all.iter().rev().map(|link| link.name.range.from);
        let starts =
            || std::iter::once(anchor).chain(below.clone()).filter(|start| *start <= range.from);
        let Some(start) = starts().find(|start| self.chain_end(*start) >= range.to) else {
            let from = starts()
                .map(|start| self.chain_end(start))
                .max()
                .unwrap_or(range.from)
                .max(range.from);
            let next = self.all.iter().map(|link| link.name.range.from).find(|next| *next > from);
            return Err(OffsetRange { from, to: next.unwrap_or(range.to).min(range.to) });
        };
        let chain = self.chain_from(start).into_iter();
        let wanted = chain
            .skip_while(|link| link.name.range.to <= range.from)
            .take_while(|link| link.name.range.from < range.to);
        Ok(wanted.collect())
    }

    /// Works around a damaged object: returns the chains without it and their objects that hold
    /// `range`, or `None` if they do not hold all of it.
    pub fn bypass(
        &self,
        damaged: &str,
        anchor: Offset,
        range: OffsetRange,
    ) -> Option<(Self, Vec<ArchiveObject>)> {
        let others = self.without(damaged);
        let links = others.covering(anchor, range).ok()?;
        Some((others, links))
    }

    fn end_through(&self, link: &ArchiveObject) -> Offset {
        self.chain_end(link.name.range.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::Epoch;

    const LOG: LogId = LogId([3; 16]);
    const SHARD: ShardId = ShardId(2);

    fn object(from: Offset, to: Offset, counter: u64, tier: Tier) -> ObjectInfo {
        let epoch = Epoch { counter, nonce: 9 };
        let path = ManifestRow::object_path(LOG, SHARD, OffsetRange { from, to }, epoch);
        ObjectInfo { path, bytes: 1, written: 0, tier }
    }

    fn chains(objects: &[(Offset, Offset, u64)]) -> ObjectChains {
        let listed = objects
            .iter()
            .map(|&(from, to, counter)| object(from, to, counter, Tier::Hot))
            .collect();
        ObjectChains::of(&[LOG], SHARD, listed)
    }

    fn ranges(links: &[ArchiveObject]) -> Vec<(Offset, Offset, u64)> {
        links
            .iter()
            .map(|link| (link.name.range.from, link.name.range.to, link.name.epoch.counter))
            .collect()
    }

    #[test]
    fn leftovers_never_lead_astray() {
        // An object whose row was never written, its successor's with other boundaries, and a late
        // write of a fenced owner.
        let all =
            chains(&[(0, 10, 1), (10, 14, 1), (10, 20, 2), (10, 20, 3), (20, 25, 3), (14, 16, 1)]);
        assert_eq!(ranges(&all.chain_from(0)), [(0, 10, 1), (10, 20, 3), (20, 25, 3)]);
        assert_eq!(ranges(&all.chain_from(10)), [(10, 20, 3), (20, 25, 3)]);
        assert_eq!(
            (all.chain_end(0), all.chain_end(14), all.chain_end(3), all.objects().len()),
            (25, 16, 3, 6)
        );
        let other = all.without(&all.chain_from(0)[1].object.path);
        assert_eq!(ranges(&other.chain_from(0)), [(0, 10, 1), (10, 20, 2), (20, 25, 3)]);
    }

    #[test]
    fn a_damaged_object_is_gone_around_if_others_have_its_records() {
        let all = chains(&[(0, 10, 1), (10, 20, 2), (10, 18, 1), (20, 30, 2)]);
        let path = |at: usize| all.objects()[at].object.path.clone();
        let range = |from, to| OffsetRange { from, to };
        let (others, links) = all.bypass(&path(2), 0, range(5, 18)).expect("the older owner's");
        assert_eq!(ranges(&links), [(0, 10, 1), (10, 18, 1)]);
        assert_eq!(ranges(others.objects()), [(0, 10, 1), (10, 18, 1), (20, 30, 2)]);
        assert_eq!(all.bypass(&path(2), 0, range(5, 19)), None);
        assert_eq!(others.bypass(&path(1), 0, range(5, 18)), None, "two are damaged");
    }

    #[test]
    fn an_object_that_is_being_moved_counts_once() {
        let listed = vec![
            object(0, 5, 1, Tier::Cold),
            object(0, 5, 1, Tier::Hot),
            object(5, 6, 1, Tier::Cold),
        ];
        let stranger = ObjectInfo { path: "raw/notes.txt".to_owned(), ..listed[0].clone() };
        let all = ObjectChains::of(&[LOG], SHARD, [listed, vec![stranger]].concat());
        assert_eq!(
            all.objects().iter().map(|link| link.object.tier).collect::<Vec<_>>(),
            [Tier::Hot, Tier::Cold]
        );
    }

    #[test]
    fn a_range_is_held_by_the_chain_of_its_anchor_or_by_one_from_below() {
        let all = chains(&[(0, 10, 1), (10, 20, 1), (20, 30, 1), (8, 22, 2), (40, 50, 2)]);
        let held = |anchor, from, to| {
            all.covering(anchor, OffsetRange { from, to }).map(|links| ranges(&links))
        };
        let missing = |from, to| Err(OffsetRange { from, to });
        assert_eq!(
            held(10, 15, 21),
            Ok(vec![(10, 20, 1), (20, 30, 1)]),
            "not by the later owner's, which the anchor does not lead to"
        );
        assert_eq!(held(20, 20, 30), Ok(vec![(20, 30, 1)]));
        assert_eq!(held(0, 10, 20), Ok(vec![(10, 20, 1)]));
        assert_eq!(held(40, 12, 30), Ok(vec![(10, 20, 1), (20, 30, 1)]), "the anchor lies above");
        assert_eq!(held(7, 12, 15), Ok(vec![(10, 20, 1)]), "nothing begins at the anchor");
        assert_eq!(held(0, 25, 45), missing(30, 40));
        assert_eq!(held(0, 35, 38), missing(35, 38));
        assert_eq!(held(0, 45, 60), missing(50, 60));
    }
}
