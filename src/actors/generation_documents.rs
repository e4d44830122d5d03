//! Puts into the archive what a lost store cannot be rebuilt without: the book of generations, and
//! what each fill has admitted; and what people decided about events that were set aside
//! ([`super::settled_documents`]).
//!
//! A book is put after the commit that made it, by every node with shards, until it is there. Of the
//! books in the archive, the one with the highest version is the newest. A store that was rolled
//! back counts its versions again: they are passed over, or a rebuild would take the book of before
//! the rollback for the newer one. A book that decides the same as the newest is not put: every
//! hour, applies gather time, which no rebuild needs.
//!
//! Little is asked of the store, and nothing of it is held while the archive is asked: a snapshot
//! keeps the store from forgetting.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::document_error::DocumentError;
use super::settled_documents::{PutSettlements, put_settlements};
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
    /// The stored book whose decisions are there.
    book: Option<BookName>,
    /// The documents of fills that are served, by generation, shard and cut.
    fills: BTreeMap<(GenerationId, ShardId, Offset), String>,
}

/// What the archive's list says about a book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ListedBooks {
    /// The newest book decides the same.
    Has(BookName),
    /// None decides the same, and none is newer.
    Lacks,
    /// Another book has this version, or a higher one.
    Newer(u64),
}

impl ListedBooks {
    fn of(name: BookName, listed: &[BookName]) -> Self {
        match listed.iter().max() {
            Some(newest) if newest.hash == name.hash => Self::Has(*newest),
            Some(newest) if newest.version >= name.version => Self::Newer(newest.version),
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
        let book = self.store.snapshot()?.generation_book()?;
        let name = BookName::of(&book).map_err(StoreError::from)?;
        if book.version() == 0 || known.book == Some(name) {
            return Ok(());
        }
        let documents = self.archive.documents();
        let listed = documents.list_documents(&replay_document::prefix(self.log))?;
        let listed: BTreeSet<String> = listed.into_iter().map(|found| found.path).collect();
        match self.find(name, &listed)? {
            ListedBooks::Has(_) => {}
            ListedBooks::Newer(version) => {
                // Numbers and cuts may be those of before the rollback, and mean something else.
                known.fills.clear();
                return self.pass_over(&book, version);
            }
            ListedBooks::Lacks => {
                let Some(cuts) = self.cuts(&book, &listed, known)? else { return Ok(()) };
                let document = BookDocument { book: book.as_ref().clone(), cuts };
                let bytes = encode(&document).map_err(StoreError::from)?;
                documents.put_document(&name.path(self.log), &Bytes::from(bytes))?;
                tracing::info!(version = name.version, "the book of replays is in the archive");
            }
        }
        known.book = Some(name);
        Ok(())
    }

    /// Looks for a book. One that cannot be read counts as not there, and is put again.
    fn find(
        &self,
        name: BookName,
        listed: &BTreeSet<String>,
    ) -> Result<ListedBooks, DocumentError> {
        let names = listed.iter().filter_map(|path| BookName::parse(self.log, path));
        let found = ListedBooks::of(name, &names.collect::<Vec<_>>());
        let ListedBooks::Has(newest) = found else { return Ok(found) };
        let bytes = self.archive.documents().read_document(&newest.path(self.log))?;
        Ok(match decode::<BookDocument>(&bytes) {
            Ok(_) => found,
            Err(_) if newest.version > name.version => ListedBooks::Newer(newest.version),
            Err(_) => ListedBooks::Lacks,
        })
    }

    /// The cuts of the generations that are served. The documents of their fills are put first, so
    /// that no book names one that is not there. `None` if the book has changed meanwhile: the next
    /// turn looks again.
    fn cuts(
        &self,
        book: &GenerationBook,
        listed: &BTreeSet<String>,
        known: &mut PutDocuments,
    ) -> Result<Option<Vec<CutReference>>, DocumentError> {
        known.fills.retain(|(generation, ..), _| book.is_served(*generation));
        let mut cuts = Vec::new();
        for generation in book.generations().keys().copied().filter(|id| book.is_served(*id)) {
            let filled = self.read_under(book, |snapshot| snapshot.fill_progress(generation))?;
            let Some(filled) = filled else { return Ok(None) };
            for (shard, at) in filled {
                let key = (generation, shard, at.cut);
                if at.is_complete() && !known.fills.contains_key(&key) {
                    let Some(path) = self.put_fill(book, key, listed)? else { return Ok(None) };
                    known.fills.insert(key, path);
                }
                let fill = known.fills.get(&key).cloned();
                cuts.push(CutReference { generation, shard: shard.0, cut: at.cut, fill });
            }
        }
        Ok(Some(cuts))
    }

    /// Puts what a complete fill has admitted, unless it is listed. Returns where it is; `None` if
    /// the book has changed.
    fn put_fill(
        &self,
        book: &GenerationBook,
        (generation, shard, cut): (GenerationId, ShardId, Offset),
        listed: &BTreeSet<String>,
    ) -> Result<Option<String>, DocumentError> {
        let writer = Writer { shard, part: WriterPart::Fill };
        let read =
            |snapshot: &mut dyn StoreSnapshot| snapshot.generation_admissions(generation, writer);
        let Some(admitted) = self.read_under(book, read)? else { return Ok(None) };
        let document = FillDocument::new(generation, shard, cut, &admitted);
        let bytes = encode(&document).map_err(StoreError::from)?;
        let path = document.path(self.log, &bytes);
        if !listed.contains(&path) {
            self.archive.documents().put_document(&path, &Bytes::from(bytes))?;
        }
        Ok(Some(path))
    }

    /// Reads something in a snapshot of its own; `None` if the book is not this one any more.
    fn read_under<T>(
        &self,
        book: &GenerationBook,
        read: impl FnOnce(&mut dyn StoreSnapshot) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut snapshot = self.store.snapshot()?;
        if snapshot.generation_book()?.version() != book.version() {
            return Ok(None);
        }
        read(&mut *snapshot).map(Some)
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

    /// Fills a generation in for one shard, and applies it.
    fn apply(world: &World, id: u64) {
        let before = world.store.snapshot().expect("snapshot").generation_book().expect("book");
        let mut book = before.as_ref().clone();
        book.apply(GenerationId(id), 5).expect("applied");
        assert_eq!(world.store.swap_generations(before.version(), &book, None), Ok(true));
    }

    #[test]
    fn time_that_passes_makes_no_document() {
        let world = world();
        let mut known = PutDocuments::default();
        world.start("a");
        apply(&world, 1);
        world.documents.put(&mut known).expect("put");
        for hour in 0..48 {
            let before = world.store.snapshot().expect("snapshot").generation_book().expect("book");
            let mut book = before.as_ref().clone();
            assert!(book.gather(3_600_000, i64::MAX, 1));
            assert_eq!(world.store.swap_generations(before.version(), &book, None), Ok(true));
            if hour % 5 == 0 {
                known = PutDocuments::default();
            }
            world.documents.put(&mut known).expect("put");
        }
        assert_eq!(world.versions(), [2]);
        world.start("b");
        world.documents.put(&mut known).expect("put");
        assert_eq!(world.versions(), [2, 51]);
    }

    #[test]
    fn a_newest_book_that_is_damaged_is_put_again_above_it() {
        let world = world();
        world.start("a");
        let backup = world.store.backup();
        world.start("b");
        let mut known = PutDocuments::default();
        world.documents.put(&mut known).expect("put");
        let stored = || world.store.snapshot().expect("snapshot").generation_book().expect("book");
        let name = BookName::of(&stored()).expect("a name");
        let path = BookName { version: 9, ..name }.path(LOG);
        world.archive.put(&path, Tier::Hot, Bytes::from_static(b"torn"));
        let mut known = PutDocuments::default();
        for _ in 0..2 {
            world.documents.put(&mut known).expect("put");
        }
        assert_eq!(world.versions(), [2, 9, 10]);
        let newest = BookName::of(&stored()).expect("a name");
        assert_eq!((newest.version, newest.hash), (10, name.hash));
        // What a restored store decides is other than the newest book.
        world.store.restore_backup(&backup);
        for _ in 0..2 {
            world.documents.put(&mut known).expect("put");
        }
        assert_eq!(world.versions(), [2, 9, 10, 11]);
    }

    #[test]
    fn a_book_is_compared_with_the_newest_of_the_list() {
        let name = |version, hash| BookName { version, hash };
        let of = |listed: &[BookName]| ListedBooks::of(name(5, 7), listed);
        assert_eq!(of(&[]), ListedBooks::Lacks);
        assert_eq!(of(&[name(4, 9)]), ListedBooks::Lacks);
        assert_eq!(of(&[name(4, 9), name(5, 7)]), ListedBooks::Has(name(5, 7)));
        assert_eq!(of(&[name(5, 7), name(6, 1)]), ListedBooks::Newer(6));
        for version in [4, 5, 6] {
            let same = name(version, 7);
            assert_eq!(of(&[name(3, 9), same]), ListedBooks::Has(same), "only time has passed");
        }
        assert_eq!(of(&[name(3, 7), name(4, 9)]), ListedBooks::Lacks, "it was decided anew");
        for other in [1, 9] {
            assert_eq!(of(&[name(5, other)]), ListedBooks::Newer(5));
            let has = ListedBooks::Has(name(5, 7));
            let both = if other < 7 { has } else { ListedBooks::Newer(5) };
            assert_eq!(of(&[name(5, other), name(5, 7)]), both);
        }
    }
}
