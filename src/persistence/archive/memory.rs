//! The archive's test double: a map, with faults for the simulation.
//!
//! It writes the same objects as the real archive and passes the same conformance suite.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::columns::{ColumnBatches, RawEvents};
use super::{
    Archive, ArchiveDocuments, ArchiveError, ArchivedRecords, ObjectInfo, RecoveredObject,
    decode_verified, more_retryable, open_columns, parquet, recover_object, verify_bytes,
};
use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, RangeDecisions, Tier};
use crate::model::offset::{Epoch, LogId, ShardId};
use crate::model::window::Millis;

/// How the next write fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFault {
    /// Nothing is written, and the write fails.
    Before,
    /// The object is written, but the reply is lost.
    ReplyLost,
    /// Half of the object is written, and the reply is lost.
    Torn,
    /// Half of the object is written and acknowledged; reading it back reveals that.
    NotKept,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<(String, Tier), (Bytes, Millis)>,
    cold: bool,
    now: Millis,
    fault: Option<ArchiveFault>,
    down: bool,
}

impl State {
    fn list(&self, prefix: &str) -> Vec<ObjectInfo> {
        let found = self.objects.iter().filter(|((path, _), _)| path.starts_with(prefix));
        let info = |((path, tier), (bytes, written)): (&(String, Tier), &(Bytes, Millis))| {
            let (path, bytes) = (path.clone(), bytes.len() as u64);
            ObjectInfo { path, bytes, written: *written, tier: *tier }
        };
        found.map(info).collect()
    }

    /// Stores the object, or what the pending fault leaves of it.
    fn keep(&mut self, path: &str, tier: Tier, bytes: Bytes) -> Result<(), ArchiveError> {
        let fault = self.fault.take();
        let kept = match fault {
            Some(ArchiveFault::Before) => None,
            Some(ArchiveFault::Torn | ArchiveFault::NotKept) => {
                Some(bytes.slice(..bytes.len() / 2))
            }
            Some(ArchiveFault::ReplyLost) | None => Some(bytes),
        };
        if let Some(kept) = kept {
            self.objects.insert((path.to_owned(), tier), (kept, self.now));
        }
        match fault {
            None => Ok(()),
            Some(ArchiveFault::NotKept) => Err(ArchiveError::NotKept(path.to_owned())),
            Some(fault) => Err(ArchiveError::Unavailable(format!("{fault:?}"))),
        }
    }
}

/// An [`Archive`] in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryArchive(Mutex<State>);

impl MemoryArchive {
    /// An empty archive without a cold store.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty archive with a cold store.
    pub fn with_cold() -> Self {
        Self(Mutex::new(State { cold: true, ..State::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Makes the next write or copy fail in this way.
    pub fn fail_next(&self, fault: ArchiveFault) {
        self.lock().fault = Some(fault);
    }
    /// While it is down, every operation fails as unavailable.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
    }
    /// Sets the time that objects written from now on carry.
    pub fn set_now(&self, now: Millis) {
        self.lock().now = now;
    }
    /// The bytes of an object, for a test to damage.
    pub fn bytes(&self, path: &str, tier: Tier) -> Option<Bytes> {
        self.lock().objects.get(&(path.to_owned(), tier)).map(|(bytes, _)| bytes.clone())
    }
    /// Stores any bytes under a path, intact or not.
    pub fn put(&self, path: &str, tier: Tier, bytes: Bytes) {
        let mut state = self.lock();
        let now = state.now;
        state.objects.insert((path.to_owned(), tier), (bytes, now));
    }
    fn reachable(&self) -> Result<MutexGuard<'_, State>, ArchiveError> {
        let state = self.lock();
        if state.down { Err(ArchiveError::Unavailable("it is down".to_owned())) } else { Ok(state) }
    }

    /// Reads an object from the tier of its row, or else from the other one.
    fn read_either<T>(
        &self,
        row: &ManifestRow,
        decode: impl Fn(Bytes) -> Result<T, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        let state = self.reachable()?;
        let read = |tier: Tier| match state.objects.get(&(row.path.clone(), tier)) {
            None if tier == Tier::Cold && row.tier == Tier::Cold && !state.cold => {
                Err(ArchiveError::NoColdStore(row.path.clone()))
            }
            None => Err(ArchiveError::Missing(row.path.clone())),
            Some((bytes, _)) => decode(bytes.clone()),
        };
        read(row.tier)
            .or_else(|first| read(row.tier.other()).map_err(|second| more_retryable(first, second)))
    }
}

impl ArchiveDocuments for MemoryArchive {
    fn put_document(&self, path: &str, bytes: &Bytes) -> Result<(), ArchiveError> {
        self.reachable()?.keep(path, Tier::Hot, bytes.clone())
    }

    fn list_documents(&self, folder: &str) -> Result<Vec<ObjectInfo>, ArchiveError> {
        Ok(self.reachable()?.list(folder))
    }

    fn read_document(&self, path: &str) -> Result<Bytes, ArchiveError> {
        let state = self.reachable()?;
        let found = state.objects.get(&(path.to_owned(), Tier::Hot));
        let found = found.ok_or_else(|| ArchiveError::Missing(path.to_owned()));
        found.map(|(bytes, _)| bytes.clone())
    }
}

impl Archive for MemoryArchive {
    fn write(
        &self,
        log: LogId,
        shard: ShardId,
        epoch: Epoch,
        records: &[LogRecord],
        decisions: &RangeDecisions,
    ) -> Result<ManifestRow, ArchiveError> {
        let (bytes, row) = parquet::encode(log, shard, epoch, records, decisions)?;
        self.reachable()?.keep(&row.path, Tier::Hot, bytes.into())?;
        Ok(row)
    }

    fn read_all(&self, row: &ManifestRow) -> Result<ArchivedRecords, ArchiveError> {
        self.read_either(row, |bytes| decode_verified(bytes, row))
    }

    fn read_columns(
        &self,
        row: &ManifestRow,
        raw: RawEvents,
    ) -> Result<ColumnBatches, ArchiveError> {
        self.read_either(row, |bytes| {
            verify_bytes(&bytes, row)?;
            open_columns(bytes, row, raw)
        })
    }

    fn examine(&self, object: &ObjectInfo) -> Result<RecoveredObject, ArchiveError> {
        let state = self.reachable()?;
        let found =
            state.objects.get(&(object.path.clone(), object.tier)).map(|(bytes, _)| bytes.clone());
        recover_object(found.ok_or_else(|| ArchiveError::Missing(object.path.clone()))?, object)
    }

    fn list(&self, log: LogId, shard: ShardId) -> Result<Vec<ObjectInfo>, ArchiveError> {
        Ok(self.reachable()?.list(&ManifestRow::shard_prefix(log, shard)))
    }

    fn remove(&self, path: &str, tier: Tier) -> Result<(), ArchiveError> {
        self.reachable()?.objects.remove(&(path.to_owned(), tier));
        Ok(())
    }

    fn documents(&self) -> &dyn ArchiveDocuments {
        self
    }

    fn has_cold(&self) -> bool {
        self.lock().cold
    }

    fn copy_to_cold(&self, row: &ManifestRow) -> Result<(), ArchiveError> {
        let mut state = self.reachable()?;
        if !state.cold {
            return Err(ArchiveError::NoColdStore(row.path.clone()));
        }
        let copies = [Tier::Hot, Tier::Cold]
            .map(|tier| state.objects.get(&(row.path.clone(), tier)).map(|(b, _)| b.clone()));
        let bytes = copies
            .into_iter()
            .flatten()
            .next()
            .ok_or_else(|| ArchiveError::Missing(row.path.clone()))?;
        verify_bytes(&bytes, row)?;
        state.keep(&row.path, Tier::Cold, bytes)
    }
}
