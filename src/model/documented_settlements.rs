//! What the documents of a shard say about events that were set aside, and what has to be put so
//! that they say what the store says.
//!
//! The store decides. It can also go back: restored from a backup, or taken over by a standby that
//! lacked the last commits, it has events waiting again that a document calls settled. A rebuild
//! would settle them, although nobody has. So documents do not only follow what is decided, they
//! also take back what the store does not know any more.

use std::collections::{BTreeMap, BTreeSet};

use super::offset::{Offset, OffsetRange};
use super::settled_document::{SettledDocument, SettledEvent, SettledName, Settlement};

/// An event, by offset and index.
pub type Place = (Offset, u32);

/// What documents say about the events of one shard. The default is that there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DocumentedEvents(BTreeMap<Place, (SettledName, Settlement)>);

impl DocumentedEvents {
    /// Adds what a document says. Documents may come in any order: of those that name an event, the
    /// newest counts.
    pub fn add(&mut self, name: SettledName, document: &SettledDocument) {
        for event in &document.events {
            let said = (name, event.settlement);
            let newest = self.0.entry((event.offset, event.index)).or_insert(said);
            if newest.0 <= name {
                *newest = said;
            }
        }
    }

    /// What counts, by place.
    pub fn events(&self) -> impl Iterator<Item = (Place, Settlement)> + '_ {
        self.0.iter().map(|(place, (_, settlement))| (*place, *settlement))
    }

    /// Events that documents call settled and the store does not, ascending. `kept` are the records
    /// that the shard has reached and that have not expired: of others the store says nothing.
    pub fn unsettled(
        &self,
        stored: &BTreeMap<Place, Settlement>,
        kept: OffsetRange,
    ) -> impl Iterator<Item = Place> {
        let settled = self.events().filter(|(_, said)| *said != Settlement::Waiting);
        settled.map(|(place, _)| place).filter(move |place| {
            (kept.from..kept.to).contains(&place.0) && !stored.contains_key(place)
        })
    }

    /// What a new document has to say, ascending by place. `stored` is what the store has settled,
    /// read after the documents were listed: otherwise it may be the older of the two. `waiting` are
    /// those of the [`Self::unsettled`] events that wait there.
    pub fn corrections(
        &self,
        stored: &BTreeMap<Place, Settlement>,
        waiting: &BTreeSet<Place>,
    ) -> Vec<SettledEvent> {
        let said = |place: &Place| self.0.get(place).map(|(_, said)| *said);
        let settled = stored.iter().map(|(place, settlement)| (*place, *settlement));
        let lost = waiting.iter().map(|place| (*place, Settlement::Waiting));
        let all: BTreeMap<Place, Settlement> =
            settled.chain(lost).filter(|(place, is)| said(place) != Some(*is)).collect();
        let event = |((offset, index), settlement)| SettledEvent { offset, index, settlement };
        all.into_iter().map(event).collect()
    }

    /// Forgets events that the store has not settled, once there is nothing to correct. `next` is
    /// the first record that the shard has not reached: what is said about those may matter yet.
    pub fn forget(&mut self, stored: &BTreeMap<Place, Settlement>, next: Offset) {
        self.0.retain(|place, _| stored.contains_key(place) || place.0 >= next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::ShardId;
    use Settlement::{Discarded, Released, Waiting};

    /// What documents with these numbers and hashes say, each about one event.
    fn documented(said: &[(u64, u64, Offset, Settlement)]) -> DocumentedEvents {
        let mut all = DocumentedEvents::default();
        for (number, hash, offset, settlement) in said.iter().copied() {
            let name = SettledName { shard: ShardId(3), number, last: offset, hash };
            let events = vec![SettledEvent { offset, index: 0, settlement }];
            all.add(name, &SettledDocument { shard: 3, events });
        }
        all
    }

    /// What is put. Nothing is left to put then, and what is forgotten changes nothing. The records
    /// 2 to 7 are kept.
    fn put(
        said: &[(u64, u64, Offset, Settlement)],
        stored: &[(Offset, Settlement)],
        waiting: &[Offset],
    ) -> Vec<(Offset, Settlement)> {
        let stored = stored.iter().map(|(offset, settlement)| ((*offset, 0), *settlement));
        let (mut all, stored) = (documented(said), stored.collect());
        let waiting: BTreeSet<Place> = waiting.iter().map(|offset| (*offset, 0)).collect();
        let plan = |all: &DocumentedEvents| {
            let unsettled = all.unsettled(&stored, OffsetRange { from: 2, to: 8 });
            all.corrections(&stored, &unsettled.filter(|place| waiting.contains(place)).collect())
        };
        let events = plan(&all);
        let name = SettledName { shard: ShardId(3), number: 99, last: 0, hash: 0 };
        all.add(name, &SettledDocument { shard: 3, events: events.clone() });
        assert_eq!(plan(&all), [], "once is enough");
        all.forget(&stored, 8);
        assert_eq!(plan(&all), []);
        assert!(all.0.keys().all(|place| stored.contains_key(place) || place.0 >= 8));
        events.into_iter().map(|event| (event.offset, event.settlement)).collect()
    }

    #[test]
    fn what_the_store_decides_is_put_once() {
        assert_eq!(put(&[], &[], &[5]), [], "it has always waited");
        assert_eq!(put(&[], &[(5, Released)], &[]), [(5, Released)]);
        assert_eq!(put(&[(1, 0, 5, Released)], &[(5, Released)], &[]), []);
        let both = [(4, Discarded), (5, Released)];
        assert_eq!(put(&[(1, 0, 5, Released)], &both, &[]), [(4, Discarded)]);
        assert_eq!(put(&[(1, 0, 5, Released)], &[(5, Discarded)], &[]), [(5, Discarded)]);
        assert_eq!(put(&[(1, 0, 5, Waiting)], &[(5, Released)], &[]), [(5, Released)]);
    }

    #[test]
    fn what_the_store_has_waiting_again_is_taken_back() {
        for said in [Released, Discarded] {
            assert_eq!(put(&[(1, 0, 5, said)], &[], &[5]), [(5, Waiting)]);
            assert_eq!(put(&[(1, 0, 5, said)], &[], &[]), [], "another build has counted it");
            assert_eq!(put(&[(1, 0, 1, said)], &[], &[1]), [], "its record has expired");
            assert_eq!(put(&[(1, 0, 2, said)], &[], &[2]), [(2, Waiting)]);
            assert_eq!(put(&[(1, 0, 8, said)], &[], &[]), [], "it is not reached yet");
        }
        assert_eq!(put(&[(1, 0, 5, Waiting)], &[], &[5]), [], "it is said already");
        assert_eq!(put(&[(1, 0, 5, Released), (2, 0, 5, Waiting)], &[], &[5]), []);
        assert_eq!(put(&[(2, 0, 5, Waiting), (1, 0, 5, Released)], &[], &[5]), [], "in any order");
    }

    #[test]
    fn of_two_documents_the_greater_name_counts() {
        let stored = [(5, Discarded)];
        assert_eq!(put(&[(9, 1, 5, Released), (9, 2, 5, Discarded)], &stored, &[]), []);
        let tie = [(9, 2, 5, Released), (9, 1, 5, Discarded)];
        assert_eq!(put(&tie, &stored, &[]), stored, "under a greater number");
        assert_eq!(put(&[(10, 0, 5, Released), (9, 9, 5, Discarded)], &stored, &[]), stored);
        let said: Vec<_> = documented(&tie).events().collect();
        assert_eq!(said, [((5, 0), Released)]);
    }
}
