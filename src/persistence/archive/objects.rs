//! The archive on object storage: S3 or a local directory, with an optional second, cheaper store
//! for old objects.
//!
//! Puts are create-only and durable when they return. Before an object gets its manifest row it is
//! read back and compared: neither an acknowledgement nor a checksum computed by the server proves
//! that the bytes are stored. Objects are immutable, and their names carry shard, range and epoch,
//! so two puts under one name are two attempts of one owner. Create-only is therefore only a
//! safeguard, and storage without conditional puts will do: the archive checks whether the object
//! exists, and an overwrite that slips through writes the same bytes. Each object is one PUT:
//! objects end at `archive.max_bytes` of raw events, and S3 accepts 5 GiB per PUT. The port may
//! block any thread: requests run on a runtime of the archive's own, and callers wait for the
//! result.

use std::path::Path as Directory;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
};
use tokio::runtime::{Builder, Runtime};

use super::columns::{ColumnBatches, RawEvents};
use super::{
    Archive, ArchiveDocuments, ArchiveError, ArchivedRecords, ObjectInfo, RecoveredObject,
    decode_verified, location, more_retryable, open_columns, parquet, recover_object, verify_bytes,
};
use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, RangeDecisions, Tier};
use crate::model::offset::{Epoch, LogId, ShardId};

/// An [`Archive`] in object storage.
pub struct ObjectArchive {
    hot: TierStore,
    cold: Option<TierStore>,
    /// `None` only in `drop`.
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for ObjectArchive {
    // Leaves out the stores, which hold credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectArchive").field("cold", &self.cold.is_some()).finish_non_exhaustive()
    }
}

impl Drop for ObjectArchive {
    fn drop(&mut self) {
        // Dropping a runtime waits for its tasks, which panics inside another runtime, and the last
        // owner may live in one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl ObjectArchive {
    /// Opens an archive in a local directory, without a cold store. Creates
    /// the directory if necessary.
    ///
    /// # Errors
    /// If the directory cannot be created or opened.
    pub fn open_directory(directory: &Directory) -> Result<Self, ArchiveError> {
        Self::new(TierStore::new(location::open_directory(directory)?), None)
    }

    /// Opens an archive on a hot store and, if there is one, a cold store.
    ///
    /// # Errors
    /// If the runtime cannot be started.
    pub fn new(hot: TierStore, cold: Option<TierStore>) -> Result<Self, ArchiveError> {
        let runtime = Builder::new_multi_thread()
            // Enough, because its tasks only wait for the network.
            .worker_threads(1)
            .thread_name("archive")
            .enable_all()
            .build();
        let runtime = runtime
            .map_err(|e| ArchiveError::Unavailable(format!("cannot start its runtime: {e}")))?;
        Ok(Self { hot, cold, runtime: Some(runtime) })
    }

    /// Runs a request on the archive's runtime and waits for it. The calling thread does not enter
    /// a runtime, so it may be a worker of another one.
    fn block_on<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T, ArchiveError>> + Send + 'static,
    ) -> Result<T, ArchiveError> {
        let gone = || ArchiveError::Unavailable("it is being closed".to_owned());
        let runtime = self.runtime.as_ref().ok_or_else(gone)?;
        // Not `Runtime::block_on`, which panics on a thread of another runtime.
        let (sender, receiver) = sync_channel(1);
        runtime.spawn(async move {
            let answer = request.await;
            // The receiver is gone only if the calling thread is, and then nobody needs the result.
            _ = sender.send(answer);
        });
        receiver.recv().map_err(|_| gone())?
    }

    fn tier_store(&self, tier: Tier, path: &str) -> Result<&TierStore, ArchiveError> {
        match tier {
            Tier::Hot => Ok(&self.hot),
            Tier::Cold => {
                self.cold.as_ref().ok_or_else(|| ArchiveError::NoColdStore(path.to_owned()))
            }
        }
    }

    fn read_from(&self, tier: Tier, row: &ManifestRow) -> Result<ArchivedRecords, ArchiveError> {
        let (store, at) = (self.tier_store(tier, &row.path)?.clone(), path(&row.path)?);
        decode_verified(self.block_on(async move { store.get(&at).await })?, row)
    }

    fn bytes_from(&self, tier: Tier, row: &ManifestRow) -> Result<Bytes, ArchiveError> {
        let (store, at) = (self.tier_store(tier, &row.path)?.clone(), path(&row.path)?);
        let bytes = self.block_on(async move { store.get(&at).await })?;
        verify_bytes(&bytes, row).map(|()| bytes)
    }

    /// The bytes of an object after checking size and CRC32C, and the tier that they came from.
    fn bytes(&self, row: &ManifestRow) -> Result<(Bytes, Tier), ArchiveError> {
        let first = match self.bytes_from(row.tier, row) {
            Ok(bytes) => return Ok((bytes, row.tier)),
            Err(first) => first,
        };
        match self.bytes_from(row.tier.other(), row) {
            // Without a cold store there is no second location to report about.
            Err(ArchiveError::NoColdStore(_)) => Err(first),
            second => second
                .map(|bytes| (bytes, row.tier.other()))
                .map_err(|second| more_retryable(first, second)),
        }
    }

    /// Copies an object of another archive into this one under the same name, verified on both
    /// sides, and returns the tier that it is in now: that of the source, or the hot one if there
    /// is no cold store here. An existing copy counts as copied. A tier for which `stays` returns
    /// true is the same location in both archives, so its objects are only verified.
    ///
    /// # Errors
    /// If neither tier of `from` has the object intact, or one of the storages fails.
    pub fn copy_from(
        &self,
        row: &ManifestRow,
        from: &Self,
        stays: impl Fn(Tier) -> bool,
    ) -> Result<Tier, ArchiveError> {
        let (bytes, found) = from.bytes(row)?;
        if stays(found) {
            return Ok(found);
        }
        let tier = if self.has_cold() { found } else { Tier::Hot };
        let (store, at) = (self.tier_store(tier, &row.path)?.clone(), path(&row.path)?);
        self.block_on(async move { store.write(&at, &bytes).await })?;
        Ok(tier)
    }
}

/// The object storage of one tier.
#[derive(Clone)]
pub struct TierStore {
    store: Arc<dyn ObjectStore>,
    attributes: Attributes,
    /// Set once the storage has refused a conditional put as not implemented.
    no_conditional_puts: Arc<AtomicBool>,
}

impl TierStore {
    /// Wraps a store. Its puts must be durable when they return.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, attributes: Attributes::new(), no_conditional_puts: Arc::default() }
    }

    /// Sets the S3 storage class of new objects; empty means the bucket's default.
    pub fn with_storage_class(mut self, class: &str) -> Self {
        if !class.is_empty() {
            self.attributes.insert(Attribute::StorageClass, class.to_owned().into());
        }
        self
    }

    /// Puts the object and verifies that it is stored, byte for byte.
    async fn write(&self, at: &Path, bytes: &Bytes) -> Result<(), ArchiveError> {
        match self.create(at, bytes).await {
            Ok(()) => {}
            // The retry of a put whose reply was lost finds its own object, whole or torn.
            Err(Error::AlreadyExists { .. }) => match self.get(at).await {
                Ok(found) if found == *bytes => return Ok(()),
                Ok(_) | Err(ArchiveError::Missing(_)) => {
                    tracing::warn!(path = %at, "replacing what a failed attempt left");
                    self.put(at, bytes, PutMode::Overwrite).await.map_err(failed)?;
                }
                Err(error) => return Err(error),
            },
            Err(error) => return Err(failed(error)),
        }
        // An acknowledgement proves nothing: compare what is stored.
        match self.get(at).await {
            Ok(kept) if kept == *bytes => Ok(()),
            Ok(_) | Err(ArchiveError::Missing(_)) => Err(ArchiveError::NotKept(at.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Puts the object unless one with this name exists.
    async fn create(&self, at: &Path, bytes: &Bytes) -> Result<(), Error> {
        if !self.no_conditional_puts.load(Ordering::Relaxed) {
            match self.put(at, bytes, PutMode::Create).await {
                Err(error) if not_implemented(&error) => {
                    tracing::info!(
                        "the object storage takes no conditional puts: it is asked first whether \
                         an object is there"
                    );
                    // Remembered, so that later puts need no request that fails first.
                    self.no_conditional_puts.store(true, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        match self.store.head(at).await {
            Ok(_) => {
                Err(Error::AlreadyExists { path: at.to_string(), source: "it is there".into() })
            }
            Err(Error::NotFound { .. }) => self.put(at, bytes, PutMode::Overwrite).await,
            Err(error) => Err(error),
        }
    }

    async fn put(&self, at: &Path, bytes: &Bytes, mode: PutMode) -> Result<(), Error> {
        let options =
            PutOptions { mode, attributes: self.attributes.clone(), ..PutOptions::default() };
        self.store.put_opts(at, bytes.clone().into(), options).await.map(|_| ())
    }

    async fn get(&self, at: &Path) -> Result<Bytes, ArchiveError> {
        let found = match self.store.get(at).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Err(ArchiveError::Missing(at.to_string())),
            Err(error) => return Err(failed(error)),
        };
        found.bytes().await.map_err(failed)
    }

    async fn list(&self, prefix: &Path, tier: Tier) -> Result<Vec<ObjectInfo>, ArchiveError> {
        let all: Vec<_> = self.store.list(Some(prefix)).try_collect().await.map_err(failed)?;
        let info = |object: object_store::ObjectMeta| ObjectInfo {
            path: object.location.to_string(),
            bytes: object.size,
            written: object.last_modified.timestamp_millis(),
            tier,
        };
        Ok(all.into_iter().map(info).collect())
    }

    async fn remove(&self, at: &Path) -> Result<(), ArchiveError> {
        match self.store.delete(at).await {
            // A retry after a lost reply finds the object gone.
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

/// Whether the server does not support conditional puts. `object_store` has no error kind for
/// status 501, only its text.
fn not_implemented(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. })
        || error.to_string().contains("501 Not Implemented")
}

fn failed(error: Error) -> ArchiveError {
    ArchiveError::Unavailable(error.to_string())
}

fn path(text: &str) -> Result<Path, ArchiveError> {
    Path::parse(text).map_err(|e| ArchiveError::Corrupt {
        path: text.to_owned(),
        why: format!("it is no path: {e}"),
    })
}

impl ArchiveDocuments for ObjectArchive {
    fn put_document(&self, text: &str, bytes: &Bytes) -> Result<(), ArchiveError> {
        let (store, at, bytes) = (self.hot.clone(), path(text)?, bytes.clone());
        self.block_on(async move { store.write(&at, &bytes).await })
    }

    fn list_documents(&self, folder: &str) -> Result<Vec<ObjectInfo>, ArchiveError> {
        let (store, at) = (self.hot.clone(), path(folder.trim_end_matches('/'))?);
        let mut found = self.block_on(async move { store.list(&at, Tier::Hot).await })?;
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn read_document(&self, text: &str) -> Result<Bytes, ArchiveError> {
        let (store, at) = (self.hot.clone(), path(text)?);
        self.block_on(async move { store.get(&at).await })
    }
}

impl Archive for ObjectArchive {
    fn write(
        &self,
        log: LogId,
        shard: ShardId,
        epoch: Epoch,
        records: &[LogRecord],
        decisions: &RangeDecisions,
    ) -> Result<ManifestRow, ArchiveError> {
        let (bytes, row) = parquet::encode(log, shard, epoch, records, decisions)?;
        let (store, at, bytes) = (self.hot.clone(), path(&row.path)?, Bytes::from(bytes));
        self.block_on(async move { store.write(&at, &bytes).await })?;
        Ok(row)
    }

    fn read_all(&self, row: &ManifestRow) -> Result<ArchivedRecords, ArchiveError> {
        let first = match self.read_from(row.tier, row) {
            Ok(records) => return Ok(records),
            Err(first) => first,
        };
        match self.read_from(row.tier.other(), row) {
            // Without a cold store there is no second location to report about.
            Err(ArchiveError::NoColdStore(_)) => Err(first),
            second => second.map_err(|second| more_retryable(first, second)),
        }
    }

    fn read_columns(
        &self,
        row: &ManifestRow,
        raw: RawEvents,
    ) -> Result<ColumnBatches, ArchiveError> {
        let (bytes, _) = self.bytes(row)?;
        open_columns(bytes, row, raw)
    }

    fn examine(&self, object: &ObjectInfo) -> Result<RecoveredObject, ArchiveError> {
        let (store, at) =
            (self.tier_store(object.tier, &object.path)?.clone(), path(&object.path)?);
        recover_object(self.block_on(async move { store.get(&at).await })?, object)
    }

    fn list(&self, log: LogId, shard: ShardId) -> Result<Vec<ObjectInfo>, ArchiveError> {
        let prefix = path(ManifestRow::shard_prefix(log, shard).trim_end_matches('/'))?;
        let (hot, cold) = (self.hot.clone(), self.cold.clone());
        // Hot first: an object that moves to the cold store meanwhile is listed twice, not missed.
        let mut objects = self.block_on(async move {
            let mut objects = hot.list(&prefix, Tier::Hot).await?;
            if let Some(cold) = cold {
                objects.append(&mut cold.list(&prefix, Tier::Cold).await?);
            }
            Ok(objects)
        })?;
        objects.sort_unstable_by(|a, b| (&a.path, a.tier).cmp(&(&b.path, b.tier)));
        Ok(objects)
    }

    fn remove(&self, text: &str, tier: Tier) -> Result<(), ArchiveError> {
        let (store, at) = (self.tier_store(tier, text)?.clone(), path(text)?);
        self.block_on(async move { store.remove(&at).await })
    }

    fn documents(&self) -> &dyn ArchiveDocuments {
        self
    }

    fn has_cold(&self) -> bool {
        self.cold.is_some()
    }

    fn copy_to_cold(&self, row: &ManifestRow) -> Result<(), ArchiveError> {
        let (hot, cold, at) =
            (self.hot.clone(), self.tier_store(Tier::Cold, &row.path)?.clone(), path(&row.path)?);
        let row = row.clone();
        self.block_on(async move {
            match hot.get(&at).await {
                Ok(bytes) => {
                    verify_bytes(&bytes, &row)?;
                    cold.write(&at, &bytes).await
                }
                // It may have been moved already, if the manifest was restored from a backup.
                Err(ArchiveError::Missing(_)) => verify_bytes(&cold.get(&at).await?, &row),
                Err(error) => Err(error),
            }
        })
    }
}
