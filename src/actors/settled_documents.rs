//! Puts into the archive what people decided about events that were set aside, and reads it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::document_error::DocumentError;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::settled_document::{
    self, SettledDocument, SettledEvent, SettledName, Settlement,
};
use crate::persistence::archive::{ArchiveDocuments, ArchiveError};
use crate::persistence::store::{SnapshotSource, StoreError};

/// Most events of a document: half a megabyte.
const MAX_EVENTS: usize = 10_000;

/// What was decided in one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardSettlements {
    /// The greatest number of a document.
    number: u64,
    /// By offset and index.
    pub events: BTreeMap<(Offset, u32), Settlement>,
}

impl ShardSettlements {
    fn add(&mut self, events: &[SettledEvent]) {
        self.events.extend(events.iter().map(|of| ((of.offset, of.index), of.settlement)));
    }
}

/// What was decided, by shard.
pub type Settlements = BTreeMap<ShardId, ShardSettlements>;

/// The documents of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListedSettlements {
    /// What the readable documents say.
    pub settled: Settlements,
    /// The others, each with the reason.
    pub damaged: Vec<String>,
}

/// Reads the documents of a log.
///
/// # Errors
/// If the archive cannot be read.
pub fn read_settlements(
    documents: &dyn ArchiveDocuments,
    log: LogId,
) -> Result<ListedSettlements, ArchiveError> {
    let listed = documents.list_documents(&settled_document::prefix(log))?.into_iter();
    let mut names: Vec<_> =
        listed.filter_map(|found| SettledName::parse(log, &found.path)).collect();
    // The greater number last, so that it counts.
    names.sort_unstable();
    let mut found = ListedSettlements::default();
    for name in names {
        let path = name.path(log);
        let bytes = documents.read_document(&path)?;
        match SettledDocument::decode(&bytes) {
            Ok(document) => {
                let of = found.settled.entry(name.shard).or_default();
                of.number = of.number.max(name.number);
                of.add(&document.events);
            }
            // Its number is free: what is put again with the same bytes takes its place.
            Err(why) => found.damaged.push(format!("{path}: {why}")),
        }
    }
    Ok(found)
}

/// What this process knows to be in the archive; nothing until there is something to put.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutSettlements(Option<Settlements>);

/// Puts what is not there yet. Blocks.
///
/// # Errors
/// If store or archive fail. What was put until then is not put again.
pub fn put_settlements(
    store: &dyn SnapshotSource,
    documents: &dyn ArchiveDocuments,
    log: LogId,
    known: &mut PutSettlements,
) -> Result<(), DocumentError> {
    let mut settled: BTreeMap<ShardId, Vec<SettledEvent>> = BTreeMap::new();
    for (shard, event) in store.snapshot()?.settled_events()? {
        settled.entry(shard).or_default().push(event);
    }
    if settled.is_empty() {
        return Ok(());
    }
    let known = match &mut known.0 {
        Some(known) => known,
        empty => empty.insert(read_known(documents, log)?),
    };
    for (shard, events) in settled {
        let of = known.entry(shard).or_default();
        let is_new = |event: &SettledEvent| {
            of.events.get(&(event.offset, event.index)) != Some(&event.settlement)
        };
        let new: Vec<SettledEvent> = events.into_iter().filter(is_new).collect();
        for part in new.chunks(MAX_EVENTS) {
            let document = SettledDocument { shard: shard.0, events: part.to_vec() };
            let bytes = document.encode().map_err(StoreError::from)?;
            let name = SettledName::new(shard, of.number + 1, &bytes);
            documents.put_document(&name.path(log), &Bytes::from(bytes))?;
            of.number = name.number;
            of.add(part);
        }
    }
    Ok(())
}

/// What a damaged document said is put again.
fn read_known(documents: &dyn ArchiveDocuments, log: LogId) -> Result<Settlements, ArchiveError> {
    let found = read_settlements(documents, log)?;
    for why in found.damaged {
        tracing::warn!(%why, "a document of settled events is damaged, and is put again");
    }
    Ok(found.settled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flush::{FlushBatch, FlushGuard, QuarantineRow};
    use crate::model::manifest::Tier;
    use crate::model::offset::OffsetRange;
    use crate::model::release::ReleasedEvent;
    use crate::persistence::archive::Archive;
    use crate::persistence::archive::memory::{ArchiveFault, MemoryArchive};
    use crate::persistence::store::memory::MemoryStore;
    use crate::persistence::store::{QuarantineStore, ShardStore};

    const LOG: LogId = LogId([7; 16]);
    const SHARD: ShardId = ShardId(3);

    /// A store with four events that wait.
    fn store() -> std::sync::Arc<MemoryStore> {
        let store = MemoryStore::new();
        let epoch = store.claim(SHARD, LOG, 0).expect("claimed").checkpoint.epoch;
        let row = |offset| QuarantineRow {
            shard: SHARD,
            offset,
            index: 1,
            tenant: "t".into(),
            received: 0,
            reason: "panic".into(),
            discarded: false,
            record: vec![],
        };
        let batch = FlushBatch { quarantined: (0..4).map(row).collect(), ..FlushBatch::default() };
        let range = OffsetRange { from: 0, to: 4 };
        store
            .flush(FlushGuard { shard: SHARD, log: LOG, range, epoch }, &batch, 0)
            .expect("flushed");
        store
    }

    fn settle(store: &MemoryStore, offset: Offset, settlement: Settlement) {
        let release = ReleasedEvent::default();
        let release = (settlement == Settlement::Released).then_some(&release);
        assert_eq!(store.settle_quarantine(SHARD, offset, 1, release, None), Ok(true));
    }

    fn events(archive: &MemoryArchive) -> Vec<(Offset, Settlement)> {
        let found = read_settlements(archive.documents(), LOG).expect("read");
        assert!(found.damaged.is_empty(), "{:?}", found.damaged);
        let of = found.settled.get(&SHARD).cloned().unwrap_or_default();
        of.events.into_iter().map(|((offset, _), settlement)| (offset, settlement)).collect()
    }

    #[test]
    fn every_decision_is_put_until_it_is_there_and_then_no_more() {
        let (store, archive) = (store(), MemoryArchive::new());
        let documents = archive.documents();
        let mut known = PutSettlements::default();
        put_settlements(&*store, documents, LOG, &mut known).expect("nothing to do");
        assert_eq!(known, PutSettlements(None), "nothing is listed");
        let faults = [ArchiveFault::Before, ArchiveFault::ReplyLost, ArchiveFault::Torn];
        for (offset, fault) in (0..).zip(faults) {
            settle(&store, offset, Settlement::Released);
            archive.fail_next(fault);
            assert!(put_settlements(&*store, documents, LOG, &mut known).is_err());
            known = PutSettlements::default();
            put_settlements(&*store, documents, LOG, &mut known).expect("put again");
            let put = events(&archive);
            assert_eq!(put.len() as u64, offset + 1, "{fault:?}: {put:?}");
        }
        settle(&store, 3, Settlement::Discarded);
        put_settlements(&*store, documents, LOG, &mut known).expect("put");
        let put = events(&archive);
        assert_eq!((put.len(), put[3]), (4, (3, Settlement::Discarded)));
        archive.set_down(true);
        put_settlements(&*store, documents, LOG, &mut known).expect("nothing is asked");
    }

    #[test]
    fn what_was_decided_after_a_rollback_counts() {
        let (store, archive) = (store(), MemoryArchive::new());
        let backup = store.backup();
        settle(&store, 1, Settlement::Released);
        let mut known = PutSettlements::default();
        put_settlements(&*store, archive.documents(), LOG, &mut known).expect("put");
        store.restore_backup(&backup);
        settle(&store, 1, Settlement::Discarded);
        for mut known in [known, PutSettlements::default()] {
            put_settlements(&*store, archive.documents(), LOG, &mut known).expect("put");
            assert_eq!(events(&archive), [(1, Settlement::Discarded)]);
        }
    }

    #[test]
    fn a_damaged_document_is_named_and_put_again() {
        let (store, archive) = (store(), MemoryArchive::new());
        settle(&store, 1, Settlement::Released);
        put_settlements(&*store, archive.documents(), LOG, &mut PutSettlements::default())
            .expect("put");
        let listed = archive.documents().list_documents("settled/").expect("listed");
        archive.put(&listed[0].path, Tier::Hot, Bytes::from_static(b"torn"));
        let found = read_settlements(archive.documents(), LOG).expect("read");
        assert!(found.damaged[0].contains(&listed[0].path), "{:?}", found.damaged);
        put_settlements(&*store, archive.documents(), LOG, &mut PutSettlements::default())
            .expect("put again");
        let found = read_settlements(archive.documents(), LOG).expect("read");
        assert_eq!(found.settled[&SHARD].events.len(), 1);
    }
}
