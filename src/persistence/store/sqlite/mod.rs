//! The embedded store: one SQLite file, one writer connection, and a few read-only connections for
//! snapshots.
//!
//! Every write is one IMMEDIATE transaction with `synchronous=FULL` and begins with its
//! compare-and-set; nothing derived from a transaction is cached before it committed. A snapshot is
//! a read transaction in WAL mode, so it sees one state. An error before COMMIT is
//! [`StoreError::Failed`] (rolled back), and so is a full disk during COMMIT; any other error of
//! COMMIT is [`StoreError::Unknown`]. Unsigned 64-bit numbers are stored as signed integers with
//! the same bits.

mod admin;
mod boards;
mod catalogue;
mod check;
mod checksum_migration;
mod checksums;
mod codec;
mod export;
mod flush;
mod generations;
mod manifest;
mod merge;
mod pool;
mod quarantine;
mod released;
mod rows;
mod schema;
mod snapshot;
mod views;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use self::catalogue::{SeriesCatalogue, SqliteSeriesCache};
use self::pool::ReaderPool;
use super::{
    DEFAULT_MATCH_CACHE, ExpiryTarget, ManifestStore, QuarantineStore, QuerySnapshot, QuerySource,
    RebuildStore, ShardStore, SnapshotSource, StoreDamage, StoreError, StoreInspection, StoreSizes,
    StoreSnapshot,
};
use crate::model::CodecError;
use crate::model::budget::QueryBudget;
use crate::model::flush::{Claim, DedupBlock, DedupRule, FlushBatch, FlushGuard};
use crate::model::generation::{self, GenerationId};
use crate::model::manifest::{ManifestRow, ShardRestore, Tier};
use crate::model::offset::{Epoch, LogId, Offset, ShardId};
use crate::model::release::ReleasedEvent;
use crate::model::series::{AdmittedSeries, SeriesId};
use crate::model::window::Millis;

/// Least number of read connections; otherwise twice the number of cores. A query may use two, and
/// starting shards and status reads must not wait until queries end.
const MIN_READERS: usize = 8;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::Failed(format!("sqlite: {error}"))
    }
}

impl From<CodecError> for StoreError {
    fn from(error: CodecError) -> Self {
        StoreError::Invalid(format!(
            "{error}: restore the store from a backup, or rebuild it from the archive"
        ))
    }
}

/// Rollups, catalogue and checkpoints in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    /// `None` if opened read-only. The inner `Option` is empty while the disk refuses writes.
    writer: Option<Mutex<Option<Writer>>>,
    readers: ReaderPool,
    match_cache: snapshot::SqliteMatchCache,
    books: generations::BookCache,
    rebuilding: bool,
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    series_cache: SqliteSeriesCache,
    /// Total size of the archive's objects; `None` until it is first needed.
    archived_bytes: Option<u64>,
}

/// Exclusive access to the writer, until dropped.
struct WriterGuard<'a>(MutexGuard<'a, Option<Writer>>);

impl Writer {
    fn open(path: &Path, state: schema::StoreState) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path).map_err(|e| {
            StoreError::Failed(format!(
                "cannot open {}: {e}: check the path and its rights",
                path.display()
            ))
        })?;
        // SQLite falls back to a read-only connection if the file cannot be written, and that
        // connection stays read-only even when the disk recovers.
        if connection.is_readonly(rusqlite::MAIN_DB)? {
            return Err(StoreError::Failed(format!("{} cannot be written", path.display())));
        }
        schema::prepare(&mut connection, path, state)?;
        Ok(Self { connection, series_cache: SqliteSeriesCache::default(), archived_bytes: None })
    }
}

impl SqliteStore {
    /// Opens or creates the store. An existing one is opened even if the disk refuses writes: reads
    /// work, and writes fail until the disk accepts them.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if another version of Rollmill wrote it, [`StoreError::Failed`] if
    /// it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>, StoreError> {
        Self::open_with_cache(path, DEFAULT_MATCH_CACHE)
    }

    /// Like [`SqliteStore::open`], with `match_cache` bytes for the cache of matching series.
    pub fn open_with_cache(
        path: impl AsRef<Path>,
        match_cache: u64,
    ) -> Result<Arc<Self>, StoreError> {
        Self::open_as(path.as_ref(), schema::StoreState::Complete, match_cache)
    }

    /// Opens or creates a store for a rebuild. Until [`SqliteStore::finish_rebuild`] nothing else
    /// can open it. A complete store is marked as being rebuilt again. Fails like
    /// [`SqliteStore::open`], and if another version of Rollmill began the rebuild.
    pub fn open_rebuilding(path: impl AsRef<Path>) -> Result<Arc<Self>, StoreError> {
        Self::open_as(path.as_ref(), schema::StoreState::Rebuilding, DEFAULT_MATCH_CACHE)
    }

    fn open_as(
        path: &Path,
        state: schema::StoreState,
        match_cache: u64,
    ) -> Result<Arc<Self>, StoreError> {
        let readers = ReaderPool::new(path, reader_count());
        let writer = match readers.exclusively(|| Writer::open(path, state)) {
            Ok(writer) => Some(writer),
            Err(StoreError::Failed(why))
                if state == schema::StoreState::Complete && path.is_file() =>
            {
                // Readable, so the node can serve queries; only the writer is opened later.
                schema::check_version(readers.take()?.connection()?, path)?;
                tracing::warn!(
                    %why,
                    "the store can be read and not written: writing is tried again by itself"
                );
                None
            }
            Err(error) => return Err(error),
        };
        let (path, writer, matched) = (
            path.to_owned(),
            Some(Mutex::new(writer)),
            snapshot::SqliteMatchCache::new(match_cache),
        );
        Ok(Arc::new(Self {
            path,
            writer,
            readers,
            match_cache: matched,
            books: generations::BookCache::default(),
            rebuilding: state == schema::StoreState::Rebuilding,
        }))
    }

    /// Ends the rebuild: the file becomes an ordinary store, with an empty journal. May be
    /// repeated if it fails.
    pub fn finish_rebuild(&self) -> Result<(), StoreError> {
        if !self.rebuilding {
            return Err(super::not_being_rebuilt());
        }
        schema::complete(&self.writer()?.get()?.connection)
    }

    /// Copies the current state into a new file, while another process may be writing the store.
    /// Fails if the file exists or cannot be written.
    pub fn back_up(&self, to: &Path) -> Result<(), StoreError> {
        let failed = |why: &dyn std::fmt::Display| {
            StoreError::Failed(format!("cannot write {}: {why}", to.display()))
        };
        if to.exists() {
            return Err(failed(&"it is there already: name another file"));
        }
        let part = to.with_added_extension("part");
        if part.exists() {
            std::fs::remove_file(&part).map_err(|e| failed(&e))?;
        }
        // Created here for its permissions: `VACUUM INTO` accepts an empty file and keeps its mode.
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .map_err(|e| failed(&e))?;
        let reader = self.readers.take()?;
        // One read transaction, however long it takes and whatever is written meanwhile.
        reader
            .connection()?
            .execute("VACUUM INTO ?", [part.to_string_lossy()])
            .map_err(|e| failed(&e))?;
        // Synced before the rename, so that a file with the final name is always complete.
        File::open(&part).and_then(|file| file.sync_all()).map_err(|e| failed(&e))?;
        std::fs::rename(&part, to).map_err(|e| failed(&e))
    }

    /// Opens an existing store for reading, while another process may be writing it. All writes
    /// fail. Fails if there is no store.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Arc<Self>, StoreError> {
        let path = path.as_ref();
        let (readers, matched) = (
            ReaderPool::new(path, reader_count()),
            snapshot::SqliteMatchCache::new(DEFAULT_MATCH_CACHE),
        );
        schema::check_version(readers.take()?.connection()?, path)?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            writer: None,
            readers,
            match_cache: matched,
            books: generations::BookCache::default(),
            rebuilding: false,
        }))
    }

    // Poison is ignored: a panic inside a transaction rolls it back when the transaction is
    // dropped.
    fn writer(&self) -> Result<WriterGuard<'_>, StoreError> {
        let writer = self.writer.as_ref().ok_or_else(|| {
            StoreError::Failed(
                "the store was opened to be read only: open it with SqliteStore::open".to_owned(),
            )
        })?;
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.is_none() {
            let state = if self.rebuilding {
                schema::StoreState::Rebuilding
            } else {
                schema::StoreState::Complete
            };
            *writer = Some(self.readers.exclusively(|| Writer::open(&self.path, state))?);
            tracing::warn!("the store can be written again");
        }
        Ok(WriterGuard(writer))
    }
}

impl WriterGuard<'_> {
    fn get(&mut self) -> Result<&mut Writer, StoreError> {
        self.0
            .as_mut()
            .ok_or_else(|| StoreError::Failed("the store is not open for writing".to_owned()))
    }

    /// Runs `body` in one transaction. Its result is returned only after the commit.
    fn transaction<T>(
        &mut self,
        body: impl FnOnce(&Connection, &mut SeriesCatalogue<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Writer { connection, series_cache: known, .. } = self.get()?;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut catalogue = SeriesCatalogue::new(&tx, known);
        let answer = body(&tx, &mut catalogue)?;
        let fresh = catalogue.finish()?;
        tx.commit().map_err(|e| match e.sqlite_error_code() {
            // SQLite rolls back, and the next transaction overwrites what a part of it may have
            // left in the journal.
            Some(rusqlite::ErrorCode::DiskFull) => e.into(),
            _ => StoreError::Unknown(format!("sqlite: COMMIT: {e}")),
        })?;
        known.remember(fresh);
        Ok(answer)
    }
}

impl SnapshotSource for SqliteStore {
    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        Ok(Box::new(snapshot::SqliteSnapshot::begin(self.readers.take()?, self)?))
    }

    /// SQLite never makes a reader wait, so nothing is cancelled: reads check the
    /// budget row by row.
    fn snapshot_for(&self, _: &QueryBudget) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        self.snapshot()
    }
}

impl QuerySource for SqliteStore {
    fn query_snapshot(
        &self,
        query: &QueryBudget,
    ) -> Result<Box<dyn QuerySnapshot + '_>, StoreError> {
        Ok(self.snapshot_for(query)?)
    }

    fn query_snapshot_at_once(
        &self,
        _: &QueryBudget,
    ) -> Result<Option<Box<dyn QuerySnapshot + '_>>, StoreError> {
        let Some(reader) = self.readers.take_at_once()? else { return Ok(None) };
        Ok(Some(Box::new(snapshot::SqliteSnapshot::begin(reader, self)?)))
    }
}

impl ShardStore for SqliteStore {
    fn claim(&self, shard: ShardId, log: LogId, nonce: u64) -> Result<Claim, StoreError> {
        self.writer()?
            .transaction(|tx, _| admin::claim(tx, &*self.books.read(tx)?, (shard, log), nonce))
    }

    fn recent_ids(&self, shard: ShardId, since: Millis) -> Result<Vec<DedupBlock>, StoreError> {
        let reader = self.readers.take()?;
        admin::recent_ids(reader.connection()?, shard, since)
    }

    fn set_dedup_rule(
        &self,
        shard: ShardId,
        epoch: Epoch,
        from: Offset,
        rule: DedupRule,
    ) -> Result<(), StoreError> {
        self.writer()?.transaction(|tx, _| admin::set_dedup_rule(tx, shard, epoch, from, rule))
    }

    fn flush(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> Result<(), StoreError> {
        self.writer()?.transaction(|tx, catalogue| {
            if batch.adopts.is_some() {
                let book = self.books.read(tx)?;
                super::check_adoption(&book, guard.shard, batch.adopts.as_ref())?;
            }
            flush::flush(tx, catalogue, guard, batch, forget_ids_before)?;
            match batch.abandons.is_empty() {
                true => Ok(()),
                false => self.abandon(tx, &guard, &batch.abandons),
            }
        })
    }

    fn mark_suspect(
        &self,
        shard: ShardId,
        epoch: Epoch,
        offset: Offset,
        index: u32,
    ) -> Result<(), StoreError> {
        self.writer()?.transaction(|tx, _| admin::mark_suspect(tx, (shard, epoch), offset, index))
    }

    fn admitted_series(&self, shard: ShardId) -> Result<Vec<(String, AdmittedSeries)>, StoreError> {
        let reader = self.readers.take()?;
        admin::admitted_series(reader.connection()?, shard)
    }

    fn generation_series(
        &self,
        generation: GenerationId,
        writer: generation::Writer,
    ) -> Result<Vec<SeriesId>, StoreError> {
        self.writer_series(generation, writer)
    }

    fn metric_names(&self) -> Result<Vec<(String, String)>, StoreError> {
        let reader = self.readers.take()?;
        admin::metric_names(reader.connection()?)
    }
}

impl ManifestStore for SqliteStore {
    fn insert_manifest_row(&self, owner: Epoch, row: &ManifestRow) -> Result<(), StoreError> {
        let mut writer = self.writer()?;
        writer.transaction(|tx, _| manifest::insert_manifest_row(tx, owner, row))?;
        writer.get()?.archived_bytes.iter_mut().for_each(|bytes| *bytes += row.bytes);
        Ok(())
    }

    fn set_tier(&self, row: &ManifestRow, tier: Tier) -> Result<bool, StoreError> {
        self.writer()?.transaction(|tx, _| manifest::set_tier(tx, row, tier))
    }

    fn expire_object(&self, row: &ManifestRow) -> Result<bool, StoreError> {
        let mut writer = self.writer()?;
        let gone = writer.transaction(|tx, _| manifest::expire_object(tx, row))?;
        writer
            .get()?
            .archived_bytes
            .iter_mut()
            .filter(|_| gone)
            .for_each(|bytes| *bytes = bytes.saturating_sub(row.bytes));
        Ok(gone)
    }

    fn swap_expiry(
        &self,
        of: ExpiryTarget,
        before: Option<&str>,
        after: &str,
    ) -> Result<bool, StoreError> {
        self.writer()?.transaction(|tx, _| manifest::swap_expiry(tx, of, before, after))
    }

    fn approve_expiry(
        &self,
        of: &[ExpiryTarget],
        _: Option<&QueryBudget>,
    ) -> Result<u64, StoreError> {
        self.writer()?.transaction(|tx, _| manifest::approve_expiry(tx, of))
    }
}

impl QuarantineStore for SqliteStore {
    fn settle_quarantine(
        &self,
        shard: ShardId,
        offset: Offset,
        index: u32,
        release: Option<&ReleasedEvent>,
        _: Option<&QueryBudget>,
    ) -> Result<bool, StoreError> {
        self.writer()?.transaction(|tx, catalogue| {
            quarantine::settle(tx, catalogue, (shard, offset, index), release)
        })
    }
}

impl RebuildStore for SqliteStore {
    fn restore(&self, shard: &ShardRestore) -> Result<(), StoreError> {
        if !self.rebuilding {
            return Err(super::not_being_rebuilt());
        }
        self.writer()?.transaction(|tx, _| admin::restore(tx, shard))
    }
}

impl StoreInspection for SqliteStore {
    fn check(&self, found: &mut dyn FnMut(StoreDamage)) -> Result<(), StoreError> {
        check::check(self.readers.take()?.connection()?, found)
    }

    fn sizes(&self) -> Result<StoreSizes, StoreError> {
        // The journal is part of the size on disk.
        let file = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
        let mut journal = self.path.clone().into_os_string();
        journal.push("-wal");
        let store = file(&self.path) + file(Path::new(&journal));
        let mut writer = self.writer()?;
        let writer = writer.get()?;
        let archive = match writer.archived_bytes {
            Some(bytes) => bytes,
            None => *writer.archived_bytes.insert(manifest::archived_bytes(&writer.connection)?),
        };
        Ok(StoreSizes { store, archive })
    }
}

fn reader_count() -> usize {
    std::thread::available_parallelism()
        .map_or(MIN_READERS, |cores| (2 * cores.get()).max(MIN_READERS))
}

/// Runs a query that returns at most one row.
fn query_optional<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, StoreError> {
    Ok(connection.prepare_cached(sql)?.query_row(params, read).optional()?)
}
