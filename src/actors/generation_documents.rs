//! Puts into the archive what a lost store cannot be rebuilt without: the book of generations, and
//! what each fill has admitted; and what people decided about events that were set aside
//! ([`super::settled_documents`]).
//!
//! A book is put after the commit that made it, by every node with shards, until it is there; its
//! name follows from it, so they all put the same. Of the books in the archive, the one with the
//! highest version is the newest. A store that was rolled back counts its versions again: they are
//! passed over, or a rebuild would take the book of before the rollback for the newer one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::document_error::DocumentError;
use super::settled_documents::{PutSettlements, put_settlements};
use crate::model::flush::FillProgress;
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::generation_book::GenerationBook;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::replay_document::{
    self, BookDocument, BookName, CutReference, FillDocument, decode, encode,
};
use crate::persistence::archive::Archive;
use crate::persistence::store::{GenerationStore, StoreError, StoreSnapshot};

/// Where documents come from and go to.
#[derive(Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct GenerationDocuments {
    pub store: Arc<dyn GenerationStore>,
    pub archive: Arc<dyn Archive>,
    pub log: LogId,
}

/// What this process knows to be in the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutDocuments {
    settled: PutSettlements,
    book: Option<BookName>,
    /// The documents of complete fills, by generation, shard and cut.
    fills: BTreeMap<(GenerationId, ShardId, Offset), String>,
}

/// What the archive's list says about a book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ListedBooks {
    /// It is there.
    Has,
    /// It is not there, and none is newer.
    Lacks,
    /// Another book has this version, or a higher one.
    Newer(u64),
}

impl ListedBooks {
    fn of(name: BookName, listed: &[BookName]) -> Self {
        let newest = listed.iter().max();
        match newest {
            Some(newest) if *newest == name => Self::Has,
            Some(newest) if newest.version > name.version => Self::Newer(newest.version),
            _ if listed.iter().any(|of| of.version == name.version && *of != name) => {
                Self::Newer(name.version)
            }
            _ => Self::Lacks,
        }
    }
}

impl GenerationDocuments {
    /// Puts what is not there yet. Blocks.
    ///
    /// # Errors
    /// If store or archive fail. What was put until then is not put again.
    pub fn put(&self, known: &mut PutDocuments) -> Result<(), DocumentError> {
        let documents = self.archive.documents();
        let settled = put_settlements(&*self.store, documents, self.log, &mut known.settled);
        self.put_replays(known).and(settled)
    }

    fn put_replays(&self, known: &mut PutDocuments) -> Result<(), DocumentError> {
        let mut snapshot = self.store.snapshot()?;
        let book = snapshot.generation_book()?;
        if book.version() == 0 {
            return Ok(());
        }
        let name = BookName::of(&book).map_err(StoreError::from)?;
        let cuts = self.cuts(&mut *snapshot, &book, known)?;
        drop(snapshot);
        if known.book == Some(name) {
            return Ok(());
        }
        match self.listed(name)? {
            ListedBooks::Has => {}
            ListedBooks::Newer(version) => return self.pass_over(&book, version),
            ListedBooks::Lacks => {
                let document = BookDocument { book: book.as_ref().clone(), cuts };
                self.write(&name.path(self.log), &document)?;
                tracing::info!(version = name.version, "the book of replays is in the archive");
            }
        }
        known.book = Some(name);
        Ok(())
    }

    /// The cuts of the maintained generations. Documents of complete fills are put first, so that
    /// no book names one that is not there.
    fn cuts(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        book: &GenerationBook,
        known: &mut PutDocuments,
    ) -> Result<Vec<CutReference>, DocumentError> {
        let set = book.newest_set();
        known.fills.retain(|(generation, ..), _| set.has(*generation));
        let mut cuts = Vec::new();
        for generation in book.generations().keys().copied().filter(|id| set.has(*id)) {
            for (shard, at) in snapshot.fill_progress(generation)? {
                let key = (generation, shard, at.cut);
                let fill = match known.fills.get(&key) {
                    Some(path) => Some(path.clone()),
                    None if at.is_complete() => {
                        let path = self.put_fill(snapshot, (generation, shard), at)?;
                        known.fills.insert(key, path.clone());
                        Some(path)
                    }
                    None => None,
                };
                cuts.push(CutReference { generation, shard: shard.0, cut: at.cut, fill });
            }
        }
        Ok(cuts)
    }

    fn put_fill(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        (generation, shard): (GenerationId, ShardId),
        at: FillProgress,
    ) -> Result<String, DocumentError> {
        let writer = Writer { shard, part: WriterPart::Fill };
        let admitted = snapshot.generation_admissions(generation, writer)?;
        let document = FillDocument::new(generation, shard, at.cut, &admitted);
        let bytes = encode(&document).map_err(StoreError::from)?;
        let path = document.path(self.log, &bytes);
        self.archive.documents().put_document(&path, &Bytes::from(bytes))?;
        Ok(path)
    }

    /// Looks for a book. One that cannot be read counts as not there, and is put again.
    fn listed(&self, name: BookName) -> Result<ListedBooks, DocumentError> {
        let documents = self.archive.documents();
        let listed = documents.list_documents(&replay_document::prefix(self.log))?;
        let names = listed.iter().filter_map(|found| BookName::parse(self.log, &found.path));
        let found = ListedBooks::of(name, &names.collect::<Vec<_>>());
        if found == ListedBooks::Has {
            let bytes = documents.read_document(&name.path(self.log))?;
            if decode::<BookDocument>(&bytes).is_err() {
                return Ok(ListedBooks::Lacks);
            }
        }
        Ok(found)
    }

    fn write(&self, path: &str, document: &BookDocument) -> Result<(), DocumentError> {
        let bytes = encode(document).map_err(StoreError::from)?;
        Ok(self.archive.documents().put_document(path, &Bytes::from(bytes))?)
    }

    /// Gives the stored book a version above those that are listed, unless somebody has changed it
    /// since: then the next turn looks again.
    fn pass_over(&self, seen: &GenerationBook, version: u64) -> Result<(), DocumentError> {
        // Read after the list: a book that another node has put meanwhile is no trace of a rollback.
        let stored = self.store.snapshot()?.generation_book()?;
        if stored.version() != seen.version() {
            return Ok(());
        }
        let mut next = stored.as_ref().clone();
        next.pass_over(version);
        if self.store.swap_generations(stored.version(), &next, None)? {
            tracing::warn!(
                version = stored.version(),
                archived = version,
                "the archive has newer books of replays than the store, which was restored or \
                 rebuilt: their versions are passed over"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generation::DayRange;
    use crate::model::generation_book::NewGeneration;
    use crate::model::manifest::Tier;
    use crate::persistence::archive::memory::{ArchiveFault, MemoryArchive};
    use crate::persistence::store::SnapshotSource;
    use crate::persistence::store::memory::MemoryStore;

    const LOG: LogId = LogId([7; 16]);

    struct World {
        store: Arc<MemoryStore>,
        archive: Arc<MemoryArchive>,
        documents: GenerationDocuments,
    }

    fn world() -> World {
        let (store, archive) = (MemoryStore::new(), Arc::new(MemoryArchive::new()));
        let documents =
            GenerationDocuments { store: store.clone(), archive: archive.clone(), log: LOG };
        World { store, archive, documents }
    }

    impl World {
        fn start(&self, metric: &str) {
            let before = self.store.snapshot().expect("snapshot").generation_book().expect("book");
            let mut book = before.as_ref().clone();
            let new = NewGeneration {
                tenant: "t".to_owned(),
                metrics: vec![metric.to_owned()],
                days: DayRange::ALWAYS,
                rules: "{}".into(),
                started: (1, "k".to_owned()),
            };
            book.start(new, 3, 1).expect("started");
            assert_eq!(self.store.swap_generations(before.version(), &book, None), Ok(true));
        }

        fn versions(&self) -> Vec<u64> {
            let listed = self.archive.documents().list_documents("replays/").expect("listed");
            let names = listed.iter().filter_map(|found| BookName::parse(LOG, &found.path));
            names.map(|name| name.version).collect()
        }
    }

    #[test]
    fn every_book_is_put_until_it_is_there_and_then_no_more() {
        let world = world();
        let mut known = PutDocuments::default();
        world.documents.put(&mut known).expect("nothing to do");
        assert!(world.versions().is_empty());
        world.start("a");
        for fault in [ArchiveFault::Before, ArchiveFault::ReplyLost, ArchiveFault::Torn] {
            world.archive.fail_next(fault);
            assert!(world.documents.put(&mut known).is_err());
            known = PutDocuments::default();
            world.documents.put(&mut known).expect("put again");
            let stored = world.store.snapshot().expect("snapshot").generation_book().expect("book");
            let path = BookName::of(&stored).expect("a name").path(LOG);
            let bytes = world.archive.bytes(&path, Tier::Hot).expect("there");
            let read: BookDocument = decode(&bytes).expect("whole");
            assert_eq!(read.book, *stored);
            world.start(&format!("{fault:?}"));
        }
        world.archive.set_down(true);
        assert!(world.documents.put(&mut known).is_err());
        world.archive.set_down(false);
        world.documents.put(&mut known).expect("put");
        assert_eq!(world.versions(), [1, 2, 3, 4]);
        world.archive.set_down(true);
        world.documents.put(&mut known).expect("nothing is asked");
    }

    #[test]
    fn versions_of_before_a_rollback_are_passed_over() {
        let world = world();
        world.start("a");
        let backup = world.store.backup();
        world.start("b");
        let mut known = PutDocuments::default();
        world.documents.put(&mut known).expect("put");
        world.store.restore_backup(&backup);
        world.start("c");
        let mut known = PutDocuments::default();
        for _ in 0..2 {
            world.documents.put(&mut known).expect("put");
        }
        assert_eq!(world.versions(), [2, 3]);
        let stored = world.store.snapshot().expect("snapshot").generation_book().expect("book");
        assert_eq!(stored.version(), 3);
        let metrics = stored.generations().values().map(|of| of.metrics[0].as_str());
        assert_eq!(metrics.collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn a_book_is_compared_with_the_newest_of_the_list() {
        let name = |version, nonce| BookName { version, nonce };
        let of = |listed: &[BookName]| ListedBooks::of(name(5, 7), listed);
        assert_eq!(of(&[]), ListedBooks::Lacks);
        assert_eq!(of(&[name(4, 9)]), ListedBooks::Lacks);
        assert_eq!(of(&[name(4, 9), name(5, 7)]), ListedBooks::Has);
        assert_eq!(of(&[name(5, 7), name(6, 1)]), ListedBooks::Newer(6));
        for other in [1, 9] {
            assert_eq!(of(&[name(5, other)]), ListedBooks::Newer(5));
            let both = if other < 7 { ListedBooks::Has } else { ListedBooks::Newer(5) };
            assert_eq!(of(&[name(5, other), name(5, 7)]), both);
        }
    }
}
