//! What was found in the archive, and what the store says.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::actors::document_error::DocumentError;
use crate::model::documented_settlements::{DocumentedEvents, Place};
use crate::model::offset::{LogId, Offset, OffsetRange, ShardId};
use crate::model::settled_document::{
    self, SettledDocument, SettledEvent, SettledName, Settlement,
};
use crate::persistence::archive::{ArchiveDocuments, ArchiveError};
use crate::persistence::store::{SnapshotSource, StoreError};

/// Turns of the keeper between two listings, if it puts nothing: a minute. What it looks for is the
/// document of a node that has died since, and a listing of object storage is not free.
pub(super) const LIST_EVERY: u32 = 6;

/// The documents of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ShardDocuments {
    /// The greatest number of a document, damaged ones included: none is used twice.
    number: u64,
    /// Those that were read, or found damaged, and may still matter.
    seen: BTreeSet<SettledName>,
    damaged: BTreeSet<SettledName>,
    documented: DocumentedEvents,
}

/// What was found in the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KnownDocuments {
    shards: BTreeMap<ShardId, ShardDocuments>,
    /// Turns until the next listing.
    list_in: u32,
}

impl KnownDocuments {
    /// Whether it is time to list, at the beginning of a turn.
    pub(super) fn is_listing_due(&mut self) -> bool {
        let is_due = self.list_in == 0;
        self.list_in = self.list_in.saturating_sub(1);
        is_due
    }

    /// What documents say about the events of each shard.
    pub(super) fn events(
        &self,
    ) -> impl Iterator<Item = (ShardId, impl Iterator<Item = (Place, Settlement)> + '_)> + '_ {
        self.shards.iter().map(|(shard, of)| (*shard, of.documented.events()))
    }

    /// Reads the documents that were not seen yet. Those that speak only of records below the floor
    /// of their shard are passed over. Returns those that are damaged, each with the reason.
    pub(super) fn list(
        &mut self,
        documents: &dyn ArchiveDocuments,
        log: LogId,
        floors: &BTreeMap<ShardId, Offset>,
    ) -> Result<Vec<String>, ArchiveError> {
        let listed = documents.list_documents(&settled_document::prefix(log))?.into_iter();
        let mut damaged = Vec::new();
        for name in listed.filter_map(|found| SettledName::parse(log, &found.path)) {
            let of = self.shards.entry(name.shard).or_default();
            of.number = of.number.max(name.number);
            let floor = floors.get(&name.shard).copied().unwrap_or(0);
            if name.last < floor || of.seen.contains(&name) {
                continue;
            }
            let path = name.path(log);
            match SettledDocument::decode(&documents.read_document(&path)?) {
                Ok(document) => of.documented.add(name, &document),
                Err(why) => {
                    of.damaged.insert(name);
                    damaged.push(format!("{path}: {why}"));
                }
            }
            of.seen.insert(name);
        }
        self.list_in = LIST_EVERY;
        Ok(damaged)
    }

    /// What is to be put, by shard.
    pub(super) fn corrections(
        &self,
        store: &dyn SnapshotSource,
        stored: &StoredSettlements,
    ) -> Result<Vec<(ShardId, Vec<SettledEvent>)>, StoreError> {
        let waiting = self.waiting(store, stored)?;
        let (none, nothing) = (BTreeMap::new(), BTreeSet::new());
        let shards: BTreeSet<&ShardId> = self.shards.keys().chain(stored.settled.keys()).collect();
        let of_shard = |shard: &ShardId| {
            let stored = stored.settled.get(shard).unwrap_or(&none);
            let waiting = waiting.get(shard).unwrap_or(&nothing);
            let new = match self.shards.get(shard) {
                Some(of) => of.documented.corrections(stored, waiting),
                None => DocumentedEvents::default().corrections(stored, waiting),
            };
            (*shard, new)
        };
        Ok(shards.into_iter().map(of_shard).filter(|(_, new)| !new.is_empty()).collect())
    }

    /// The events that documents call settled, and that wait in the store.
    fn waiting(
        &self,
        store: &dyn SnapshotSource,
        stored: &StoredSettlements,
    ) -> Result<BTreeMap<ShardId, BTreeSet<Place>>, StoreError> {
        let none = BTreeMap::new();
        let mut unsettled: BTreeMap<ShardId, BTreeSet<Place>> = BTreeMap::new();
        for (shard, of) in &self.shards {
            let settled = stored.settled.get(shard).unwrap_or(&none);
            let places = of.documented.unsettled(settled, stored.kept(*shard)).collect();
            unsettled.insert(*shard, places);
        }
        unsettled.retain(|_, places| !places.is_empty());
        if unsettled.is_empty() {
            return Ok(unsettled);
        }
        // The whole quarantine: only a store that was rolled back comes here.
        let mut waiting: BTreeMap<ShardId, BTreeSet<Place>> = BTreeMap::new();
        for row in store.snapshot()?.quarantine()?.into_iter().filter(|row| !row.discarded) {
            let place = (row.offset, row.index);
            if unsettled.get(&row.shard).is_some_and(|places| places.contains(&place)) {
                waiting.entry(row.shard).or_default().insert(place);
            }
        }
        Ok(waiting)
    }

    /// Puts a document.
    pub(super) fn put(
        &mut self,
        documents: &dyn ArchiveDocuments,
        log: LogId,
        document: &SettledDocument,
    ) -> Result<(), DocumentError> {
        let bytes = document.encode().map_err(StoreError::from)?;
        let of = self.shards.entry(ShardId(document.shard)).or_default();
        // The last one, if it is damaged and said the same, is replaced.
        let last = document.name(of.number, &bytes);
        let name = match of.damaged.contains(&last) {
            true => last,
            false => SettledName { number: of.number + 1, ..last },
        };
        // Whatever comes of it: another node may have put something at the same moment.
        self.list_in = 0;
        documents.put_document(&name.path(log), &Bytes::from(bytes))?;
        of.number = name.number;
        of.damaged.remove(&name);
        of.seen.insert(name);
        of.documented.add(name, document);
        Ok(())
    }

    /// Forgets what has expired, once there is nothing to put.
    pub(super) fn forget(&mut self, stored: &StoredSettlements) {
        let none = BTreeMap::new();
        for (shard, of) in &mut self.shards {
            let kept = stored.kept(*shard);
            of.documented.forget(stored.settled.get(shard).unwrap_or(&none), kept.to);
            of.seen.retain(|name| name.last >= kept.from);
            of.damaged.retain(|name| name.last >= kept.from);
        }
    }
}

/// What the store says at one moment.
#[derive(Debug, Default)]
pub(super) struct StoredSettlements {
    settled: BTreeMap<ShardId, BTreeMap<Place, Settlement>>,
    /// The first record of each shard that has not expired, if some have.
    pub(super) floors: BTreeMap<ShardId, Offset>,
    /// The first record of each shard that is not reached yet.
    next: BTreeMap<ShardId, Offset>,
}

impl StoredSettlements {
    pub(super) fn read(store: &dyn SnapshotSource) -> Result<Self, StoreError> {
        let mut snapshot = store.snapshot()?;
        let mut settled: BTreeMap<ShardId, BTreeMap<Place, Settlement>> = BTreeMap::new();
        for (shard, event) in snapshot.settled_events()? {
            let of = settled.entry(shard).or_default();
            of.insert((event.offset, event.index), event.settlement);
        }
        let floors = snapshot.archive_floors()?.into_iter();
        let next = snapshot.checkpoints()?.into_iter();
        Ok(Self {
            settled,
            floors: floors.map(|(shard, floor)| (shard, floor.offset)).collect(),
            next: next.map(|(shard, at)| (shard, at.next)).collect(),
        })
    }

    /// The records of a shard of which the store says something.
    fn kept(&self, shard: ShardId) -> OffsetRange {
        let at = |of: &BTreeMap<ShardId, Offset>| of.get(&shard).copied().unwrap_or(0);
        let from = at(&self.floors);
        OffsetRange { from, to: at(&self.next).max(from) }
    }
}
