//! The archive on object storage: a local directory now, any other `object_store` behind the same code.
//!
//! Objects are put create-only and made durable (file and directory are synced) before the put returns, then read back and compared,
//! before their manifest row exists. The port blocks, so a small runtime of its own drives the requests, whoever calls.

use std::path::Path as Directory;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::runtime::{Builder, Runtime};

use super::{Archive, ArchiveError, ObjectInfo, checked, parquet};
use crate::model::flush::LogRecord;
use crate::model::manifest::ManifestRow;
use crate::model::offset::{Epoch, LogId, ShardId};

/// Raw events in object storage.
#[derive(Debug)]
pub struct ObjectArchive {
    store: Arc<dyn ObjectStore>,
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for ObjectArchive {
    fn drop(&mut self) {
        // Dropping a runtime waits for its tasks, which is forbidden where the last owner may be: inside of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl ObjectArchive {
    /// In a local directory, which is made if it is not there.
    ///
    /// # Errors
    /// If the directory cannot be made or used.
    pub fn open_directory(directory: &Directory) -> Result<Self, ArchiveError> {
        let failed = |why: String| ArchiveError::Unavailable(format!("{}: {why}", directory.display()));
        std::fs::create_dir_all(directory).map_err(|e| failed(e.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(directory).map_err(|e| failed(e.to_string()))?;
        Self::new(Arc::new(store.with_fsync(true)))
    }

    /// On any storage whose puts are durable when they return.
    ///
    /// # Errors
    /// If the runtime cannot be started.
    pub fn new(store: Arc<dyn ObjectStore>) -> Result<Self, ArchiveError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("archive").enable_all().build();
        let runtime = runtime.map_err(|e| ArchiveError::Unavailable(format!("cannot start its runtime: {e}")))?;
        Ok(Self { store, runtime: Some(runtime) })
    }

    fn wait<T>(&self, future: impl Future<Output = Result<T, ArchiveError>>) -> Result<T, ArchiveError> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(future),
            None => Err(ArchiveError::Unavailable("it is being closed".to_owned())),
        }
    }

    async fn put(&self, at: &Path, bytes: &Bytes) -> Result<(), ArchiveError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(at, bytes.clone().into(), options.clone()).await {
            Err(object_store::Error::AlreadyExists { .. }) if self.get(at).await? != *bytes => {
                tracing::warn!(path = %at, "replacing what a failed attempt left");
                self.store.delete(at).await.map_err(failed)?;
                self.store.put_opts(at, bytes.clone().into(), options).await.map_err(failed)?;
            }
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(())
    }

    async fn get(&self, at: &Path) -> Result<Bytes, ArchiveError> {
        let found = match self.store.get(at).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Err(ArchiveError::Missing(at.to_string())),
            Err(error) => return Err(failed(error)),
        };
        found.bytes().await.map_err(failed)
    }
}

fn failed(error: object_store::Error) -> ArchiveError {
    ArchiveError::Unavailable(error.to_string())
}

fn path(text: &str) -> Result<Path, ArchiveError> {
    Path::parse(text).map_err(|e| ArchiveError::Corrupt { path: text.to_owned(), why: format!("it is no path: {e}") })
}

impl Archive for ObjectArchive {
    fn write(&self, log: LogId, shard: ShardId, epoch: Epoch, records: &[LogRecord]) -> Result<ManifestRow, ArchiveError> {
        let (bytes, row) = parquet::encode(log, shard, epoch, records)?;
        let (at, bytes) = (path(&row.path)?, Bytes::from(bytes));
        self.wait(async {
            self.put(&at, &bytes).await?;
            if self.get(&at).await? == bytes {
                return Ok(());
            }
            Err(ArchiveError::Corrupt { path: row.path.clone(), why: "it was read back other than it was written".to_owned() })
        })?;
        Ok(row)
    }

    fn read(&self, row: &ManifestRow) -> Result<Vec<LogRecord>, ArchiveError> {
        let at = path(&row.path)?;
        checked(self.wait(self.get(&at))?, row)
    }

    fn list(&self, log: LogId) -> Result<Vec<ObjectInfo>, ArchiveError> {
        let prefix = path(ManifestRow::log_prefix(log).trim_end_matches('/'))?;
        let all = self.wait(async { self.store.list(Some(&prefix)).try_collect::<Vec<_>>().await.map_err(failed) })?;
        let mut objects: Vec<ObjectInfo> = all
            .into_iter()
            .map(|o| ObjectInfo { path: o.location.to_string(), bytes: o.size, written: o.last_modified.timestamp_millis() })
            .collect();
        objects.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(objects)
    }

    fn remove(&self, text: &str) -> Result<(), ArchiveError> {
        let at = path(text)?;
        self.wait(async {
            match self.store.delete(&at).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(failed(error)),
            }
        })
    }
}
