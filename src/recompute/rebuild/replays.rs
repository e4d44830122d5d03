//! Brings back the replays that were served, from the documents in the archive.
//!
//! The newest book says which they were, under which rules, and where each shard divides their
//! records into those of the live writer and those of the fill. A shard adopts them there again,
//! so what follows are ordinary flushes; the rest is an ordinary fill, which admits the series that
//! the lost one had admitted. What was being built, and the way back of applies, are lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::RebuildError;
use crate::model::CodecError;
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::generation_book::GenerationBook;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::replay_document::{self, BookDocument, BookName, FillDocument, decode};
use crate::model::series::SeriesId;
use crate::persistence::archive::{Archive, ArchiveDocuments, ArchiveError};
use crate::persistence::store::{RebuildStore, StoreError};
use crate::recompute::replay::shard_replay::{ReplaySources, ReplayStep, ShardReplay};
use crate::shards::generations::{ActiveSet, AdoptedGenerations};

/// Where a shard's records divide, and what the fill below has admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RecordedFill {
    cut: Offset,
    admitted: Vec<(SeriesId, Offset)>,
}

/// The replays that were served when the store was lost. The default is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServedReplays {
    book: GenerationBook,
    fills: BTreeMap<(GenerationId, ShardId), RecordedFill>,
    /// Replays of the archived book that are not brought back: what was built, or kept for an undo.
    pub lost: Vec<GenerationId>,
}

fn damaged(path: &str) -> impl Fn(CodecError) -> RebuildError {
    move |error| RebuildError::Replays { why: format!("{path}: {error}") }
}

fn read<T: DeserializeOwned>(
    documents: &dyn ArchiveDocuments,
    path: &str,
) -> Result<T, RebuildError> {
    let bytes = match documents.read_document(path) {
        Err(missing @ ArchiveError::Missing(_)) => {
            return Err(RebuildError::Replays { why: missing.to_string() });
        }
        bytes => bytes?,
    };
    decode(&bytes).map_err(damaged(path))
}

impl ServedReplays {
    /// Reads the newest book and what it names. `logs` are the log and those that it continues.
    /// `nonce` is random.
    ///
    /// # Errors
    /// If the archive cannot be read, or a document is missing or damaged.
    pub fn read(
        archive: &dyn Archive,
        logs: &[LogId],
        shard_count: u32,
        nonce: u64,
    ) -> Result<Self, RebuildError> {
        let documents = archive.documents();
        let mut books = Vec::new();
        for log in logs {
            let listed = documents.list_documents(&replay_document::prefix(*log))?.into_iter();
            books.extend(listed.filter_map(|found| {
                BookName::parse(*log, &found.path).map(|name| (name, found.path))
            }));
        }
        let Some((_, path)) = books.into_iter().max() else { return Ok(Self::default()) };
        let document: BookDocument = read(documents, &path)?;
        let book = document.book.served_alone(nonce);
        let mut fills = BTreeMap::new();
        for cut in &document.cuts {
            let key = (cut.generation, ShardId(cut.shard));
            if !book.generations().contains_key(&cut.generation) {
                continue;
            }
            let fill = cut.fill.as_ref().ok_or_else(|| incomplete(key))?;
            let filled: FillDocument = read(documents, fill)?;
            let admitted = filled.admitted().map_err(damaged(fill))?;
            fills.insert(key, RecordedFill { cut: cut.cut, admitted });
        }
        for generation in book.generations().keys() {
            let missing = (0..shard_count).map(|shard| (*generation, ShardId(shard)));
            if let Some(key) = missing.into_iter().find(|key| !fills.contains_key(key)) {
                return Err(incomplete(key));
            }
        }
        let lost = document.book.generations().keys().copied();
        let lost = lost.filter(|id| !book.generations().contains_key(id)).collect();
        Ok(Self { book, fills, lost })
    }

    /// The replays, by number.
    pub fn generations(&self) -> impl Iterator<Item = GenerationId> + '_ {
        self.book.generations().keys().copied()
    }

    /// Records that [`fill`] folds, those that have expired included.
    pub fn records(&self) -> u64 {
        self.fills.values().map(|fill| fill.cut).sum()
    }

    /// Gives the new store its book, unless an earlier attempt has.
    pub(super) fn begin(&self, store: &dyn RebuildStore) -> Result<(), StoreError> {
        let found = store.snapshot()?.generation_book()?.version();
        if found == 0 && self.book.version() > 0 {
            store.swap_generations(0, &self.book, None)?;
        }
        Ok(())
    }

    /// Where a shard whose records begin at `start` adopts which set. The sets are those of the
    /// store: an interrupted attempt has drawn their versions.
    pub(super) fn adoptions(
        &self,
        store: &dyn RebuildStore,
        shard: ShardId,
        start: Offset,
    ) -> Result<Vec<(Offset, Arc<ActiveSet>)>, StoreError> {
        let book = store.snapshot()?.generation_book()?;
        let mut adoptions: Vec<(Offset, Arc<ActiveSet>)> = Vec::new();
        for set in book.sets() {
            let set = Arc::new(ActiveSet::compile(set)?);
            let begins = set.generations().last().and_then(|id| self.fills.get(&(*id, shard)));
            let before = adoptions.last().map_or(start, |(at, _)| *at);
            let at = begins.map_or(before, |fill| fill.cut.max(before));
            // The newer of two sets at one place has everything that the older has.
            adoptions.retain(|(other, _)| *other < at);
            adoptions.push((at, set));
        }
        Ok(adoptions)
    }

    /// What a shard of the new store writes by now.
    pub(super) fn adopted(
        &self,
        store: &dyn RebuildStore,
        shard: ShardId,
    ) -> Result<AdoptedGenerations, StoreError> {
        let mut snapshot = store.snapshot()?;
        let versions = snapshot.set_versions()?;
        let version = versions.iter().find(|(of, _)| *of == shard).map_or(0, |(_, set)| *set);
        let set = snapshot.generation_book()?.set(version).ok_or_else(|| {
            StoreError::Invalid(format!(
                "shard {shard} writes under set {version} of replays, which the book does not have: \
                 begin the rebuild again, into an empty store"
            ))
        })?;
        drop(snapshot);
        let set = ActiveSet::compile(&set)?;
        let writer = Writer { shard, part: WriterPart::Live };
        let admitted = set.generations().into_iter();
        let admitted = admitted.map(|id| Ok((id, store.generation_series(id, writer)?)));
        let admitted = admitted.collect::<Result<_, StoreError>>()?;
        Ok(AdoptedGenerations { set: Arc::new(set), admitted })
    }

    /// Whether all shards write all replays now.
    pub(super) fn check_adopted(&self, store: &dyn RebuildStore) -> Result<(), RebuildError> {
        let mut snapshot = store.snapshot()?;
        let newest = snapshot.generation_book()?.newest_set().version;
        let behind = snapshot.set_versions()?.into_iter().find(|(_, version)| *version < newest);
        match behind {
            None => Ok(()),
            Some((shard, _)) => Err(RebuildError::Replays {
                why: format!(
                    "shard {shard}: its records end before the one from which on a replay was \
                     written as they came"
                ),
            }),
        }
    }
}

fn incomplete((generation, shard): (GenerationId, ShardId)) -> RebuildError {
    let why = format!(
        "replay {generation}: the archive does not say what was filled in from shard {shard}"
    );
    RebuildError::Replays { why }
}

/// Fills the past into the replays, from the archive, or goes on with it. `progress` receives the
/// number of records done.
///
/// # Errors
/// If an object that is needed is missing or damaged, or the store fails. What was filled is kept.
pub fn fill(
    replays: &ServedReplays,
    sources: &ReplaySources,
    nonce: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), RebuildError> {
    let mut done = 0;
    for ((generation, shard), recorded) in &replays.fills {
        let replay = ShardReplay::new(sources.clone(), *generation, *shard, nonce);
        let mut replay = replay.with_recorded(recorded.admitted.clone());
        loop {
            match replay.step()? {
                ReplayStep::Read(_) => {
                    let at = replay.progress().map_or(0, |at| at.stored.cursor);
                    progress(done + at.min(recorded.cut));
                }
                ReplayStep::Complete => break,
                ReplayStep::Waiting(why) => {
                    let why = format!("replay {generation}, shard {shard}: {why}");
                    return Err(RebuildError::Replays { why });
                }
                ReplayStep::Overtaken | ReplayStep::Ended => {
                    let why = format!(
                        "replay {generation}, shard {shard}: somebody else writes this store"
                    );
                    return Err(RebuildError::Replays { why });
                }
            }
        }
        done += recorded.cut;
        progress(done);
    }
    Ok(())
}
