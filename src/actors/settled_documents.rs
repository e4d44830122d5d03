//! Puts into the archive what people decided about events that were set aside, and reads it.
//!
//! Every node with shards does so, without a leader. Documents are listed before the store is read,
//! so what the store says is never older than they are, and what it has lost since, as after a
//! restore, is taken back
//! ([`documented_settlements`](crate::model::documented_settlements)). Two nodes may put at the same moment, one of them
//! for a store that is gone: each lists again after it has put something, and once a minute anyway,
//! and corrects what it finds.

mod known;

use std::collections::BTreeMap;

use self::known::{KnownDocuments, StoredSettlements};
use super::document_error::DocumentError;
use crate::model::documented_settlements::Place;
use crate::model::offset::{LogId, ShardId};
use crate::model::settled_document::{SettledDocument, Settlement};
use crate::persistence::archive::{ArchiveDocuments, ArchiveError};
use crate::persistence::store::SnapshotSource;

/// Most events of a document: half a megabyte.
const MAX_EVENTS: usize = 10_000;

/// What was decided in one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardSettlements {
    /// By offset and index.
    pub events: BTreeMap<Place, Settlement>,
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
    let mut known = KnownDocuments::default();
    let damaged = known.list(documents, log, &BTreeMap::new())?;
    let of_shard =
        |(shard, events)| (shard, ShardSettlements { events: Iterator::collect(events) });
    Ok(ListedSettlements { settled: known.events().map(of_shard).collect(), damaged })
}

/// What this process knows to be in the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutSettlements(KnownDocuments);

/// Puts what is not there yet. Blocks; no snapshot of the store is open while the archive is asked.
///
/// # Errors
/// If store or archive fail. What was put until then is not put again.
pub fn put_settlements(
    store: &dyn SnapshotSource,
    documents: &dyn ArchiveDocuments,
    log: LogId,
    known: &mut PutSettlements,
) -> Result<(), DocumentError> {
    let known = &mut known.0;
    let is_due = known.is_listing_due();
    let mut stored = StoredSettlements::read(store)?;
    if !is_due && known.corrections(store, &stored)?.is_empty() {
        known.forget(&stored);
        return Ok(());
    }
    for why in known.list(documents, log, &stored.floors)? {
        tracing::warn!(%why, "a document of settled events is damaged: what it said is put again");
    }
    // Read again: what is listed may be newer than what was read before.
    stored = StoredSettlements::read(store)?;
    let new = known.corrections(store, &stored)?;
    if new.is_empty() {
        known.forget(&stored);
    }
    for (shard, events) in new {
        for part in events.chunks(MAX_EVENTS) {
            let document = SettledDocument { shard: shard.0, events: part.to_vec() };
            known.put(documents, log, &document)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::flush::{FlushBatch, FlushGuard, QuarantineRow};
    use crate::model::manifest::{ManifestRow, Tier};
    use crate::model::offset::{Offset, OffsetRange};
    use crate::model::release::ReleasedEvent;
    use crate::persistence::archive::Archive;
    use crate::persistence::archive::memory::{ArchiveFault, MemoryArchive};
    use crate::persistence::store::memory::MemoryStore;
    use crate::persistence::store::{ManifestStore, QuarantineStore, ShardStore};

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
        assert!(events(&archive).is_empty());
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
        put_settlements(&*store, documents, LOG, &mut known).expect("listed again");
        assert_eq!(events(&archive).len(), 4);
        archive.set_down(true);
        put_settlements(&*store, documents, LOG, &mut known).expect("nothing is asked");
    }

    /// A turn of the keeper.
    fn put(store: &MemoryStore, archive: &MemoryArchive, known: &mut PutSettlements) {
        put_settlements(store, archive.documents(), LOG, known).expect("put");
    }

    #[test]
    fn what_was_decided_after_a_rollback_counts() {
        let (store, archive) = (store(), MemoryArchive::new());
        let backup = store.backup();
        settle(&store, 1, Settlement::Released);
        let mut known = PutSettlements::default();
        put(&store, &archive, &mut known);
        store.restore_backup(&backup);
        settle(&store, 1, Settlement::Discarded);
        for mut known in [known, PutSettlements::default()] {
            put(&store, &archive, &mut known);
            assert_eq!(events(&archive), [(1, Settlement::Discarded)]);
        }
    }

    #[test]
    fn what_a_rolled_back_store_has_waiting_is_not_settled_any_more() {
        let (store, archive) = (store(), MemoryArchive::new());
        settle(&store, 0, Settlement::Released);
        let [mut one, mut other] = [PutSettlements::default(), PutSettlements::default()];
        put(&store, &archive, &mut one);
        put(&store, &archive, &mut other);
        put(&store, &archive, &mut other);
        let backup = store.backup();
        settle(&store, 1, Settlement::Released);
        settle(&store, 2, Settlement::Discarded);
        put(&store, &archive, &mut one);
        store.restore_backup(&backup);
        let waiting =
            [(0, Settlement::Released), (1, Settlement::Waiting), (2, Settlement::Waiting)];
        let documents = || archive.documents().list_documents("settled/").expect("listed").len();
        let before = documents();
        let fresh = PutSettlements::default();
        // The node that put them, one that starts, and one that never heard of them.
        for (mut known, turns) in [(one, 1), (fresh, 1), (other, known::LIST_EVERY)] {
            let copy = MemoryArchive::new();
            for found in archive.documents().list_documents("settled/").expect("listed") {
                let bytes = archive.bytes(&found.path, Tier::Hot).expect("there");
                copy.put(&found.path, Tier::Hot, bytes);
            }
            for _ in 0..=turns {
                put(&store, &copy, &mut known);
            }
            assert_eq!(events(&copy), waiting);
            assert_eq!(copy.documents().list_documents("").expect("listed").len(), before + 1);
        }
        assert_eq!(documents(), before);
    }

    #[test]
    fn a_node_that_never_heard_of_a_number_does_not_use_it_again() {
        let (store, archive) = (store(), MemoryArchive::new());
        let backup = store.backup();
        let [mut one, mut other] = [PutSettlements::default(), PutSettlements::default()];
        put(&store, &archive, &mut other);
        for offset in 0..3 {
            settle(&store, offset, Settlement::Released);
            put(&store, &archive, &mut one);
        }
        store.restore_backup(&backup);
        settle(&store, 1, Settlement::Discarded);
        put(&store, &archive, &mut other);
        let said = [Settlement::Waiting, Settlement::Discarded, Settlement::Waiting];
        assert_eq!(events(&archive), (0..).zip(said).collect::<Vec<_>>());
    }

    #[test]
    fn what_has_expired_is_neither_read_nor_remembered() {
        let (store, archive) = (store(), MemoryArchive::new());
        let mut known = PutSettlements::default();
        settle(&store, 0, Settlement::Released);
        settle(&store, 1, Settlement::Discarded);
        put(&store, &archive, &mut known);
        settle(&store, 3, Settlement::Released);
        put(&store, &archive, &mut known);
        let epoch = store.snapshot().and_then(|mut at| at.checkpoints()).expect("there")[0].1.epoch;
        let range = OffsetRange { from: 0, to: 2 };
        let row = ManifestRow {
            log: LOG,
            shard: SHARD,
            range,
            epoch,
            path: ManifestRow::object_path(LOG, SHARD, range, epoch),
            appended: (0, 0),
            received: (0, 0),
            windows: vec![],
            rows: 2,
            raw_bytes: 2,
            bytes: 2,
            crc32c: 0,
            tier: Tier::Hot,
        };
        store.insert_manifest_row(epoch, &row).expect("archived");
        assert_eq!(store.expire_object(&row), Ok(true));
        put(&store, &archive, &mut known);
        let first = archive.documents().list_documents("settled/").expect("listed").swap_remove(0);
        archive.remove(&first.path, Tier::Hot).expect("removed");
        archive.put(&first.path, Tier::Hot, Bytes::from_static(b"nobody reads it"));
        let mut fresh = PutSettlements::default();
        for known in [&mut known, &mut fresh] {
            put(&store, &archive, known);
            let of = known.0.events().flat_map(|(_, events)| events).collect::<Vec<_>>();
            assert_eq!(of, [((3, 1), Settlement::Released)]);
        }
        let listed = archive.documents().list_documents("settled/").expect("listed");
        assert_eq!(listed.len(), 2, "nothing is taken back");
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
        assert!(found.damaged.is_empty(), "it has taken the place of the damaged one");
    }
}
