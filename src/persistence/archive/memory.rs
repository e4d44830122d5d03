//! The archive's double: a map, with faults for the simulation.
//!
//! It writes the same objects as the real one and passes the same conformance suite.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Archive, ArchiveError, ObjectInfo, checked, parquet};
use crate::model::flush::LogRecord;
use crate::model::manifest::ManifestRow;
use crate::model::offset::{Epoch, LogId, ShardId};
use crate::model::window::Millis;

/// How the next write fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is written.
    Before,
    /// The object is written, the answer is lost.
    LostReply,
    /// Half of the object is written, the answer is lost.
    Torn,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (Bytes, Millis)>,
    now: Millis,
    fault: Option<Fault>,
    down: bool,
}

/// Objects in memory.
#[derive(Debug, Default)]
pub struct MemoryArchive(Mutex<State>);

impl MemoryArchive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The next write fails so.
    pub fn fail_next(&self, fault: Fault) {
        self.lock().fault = Some(fault);
    }
    /// While it is down, every call fails.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
    }
    /// The time that objects written from now on carry.
    pub fn set_now(&self, now: Millis) {
        self.lock().now = now;
    }
    /// The bytes of an object, to damage it.
    pub fn bytes(&self, path: &str) -> Option<Bytes> {
        self.lock().objects.get(path).map(|(bytes, _)| bytes.clone())
    }
    /// Puts any bytes under a path.
    pub fn put(&self, path: &str, bytes: Bytes) {
        let mut state = self.lock();
        let now = state.now;
        state.objects.insert(path.to_owned(), (bytes, now));
    }
    fn reachable(&self) -> Result<MutexGuard<'_, State>, ArchiveError> {
        let state = self.lock();
        if state.down { Err(ArchiveError::Unavailable("it is down".to_owned())) } else { Ok(state) }
    }
}

impl Archive for MemoryArchive {
    fn write(&self, log: LogId, shard: ShardId, epoch: Epoch, records: &[LogRecord]) -> Result<ManifestRow, ArchiveError> {
        let (bytes, row) = parquet::encode(log, shard, epoch, records)?;
        let mut state = self.reachable()?;
        let fault = state.fault.take();
        let kept = if fault == Some(Fault::Torn) { bytes[..bytes.len() / 2].to_vec() } else { bytes };
        if fault != Some(Fault::Before) {
            let now = state.now;
            state.objects.insert(row.path.clone(), (kept.into(), now));
        }
        fault.map_or(Ok(row), |fault| Err(ArchiveError::Unavailable(format!("{fault:?}"))))
    }

    fn read(&self, row: &ManifestRow) -> Result<Vec<LogRecord>, ArchiveError> {
        let found = self.reachable()?.objects.get(&row.path).map(|(bytes, _)| bytes.clone());
        checked(found.ok_or_else(|| ArchiveError::Missing(row.path.clone()))?, row)
    }

    fn list(&self, log: LogId) -> Result<Vec<ObjectInfo>, ArchiveError> {
        let prefix = ManifestRow::log_prefix(log);
        let state = self.reachable()?;
        let of_log = state.objects.iter().filter(|(path, _)| path.starts_with(&prefix));
        Ok(of_log
            .map(|(path, (bytes, written))| ObjectInfo { path: path.clone(), bytes: bytes.len() as u64, written: *written })
            .collect())
    }

    fn remove(&self, path: &str) -> Result<(), ArchiveError> {
        self.reachable()?.objects.remove(path);
        Ok(())
    }
}
