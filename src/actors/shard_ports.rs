//! What a shard's commands are performed on: one blocking call for each, with its result as an
//! event. No decisions are made here. The shard actor makes the calls on threads that may block,
//! the simulation between any two other steps.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use super::gap_reader::GapReader;
use super::shard_table::ShardTable;
use crate::clock::Stopwatch;
use crate::model::flush::{FlushBatch, FlushGuard};
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::log::{LogError, LogReader};
use crate::persistence::store::{ShardStore, StoreError};
use crate::shards::driver::startup::{LoadedShard, StartupCommand, StartupEvent};
use crate::shards::driver::{CallError, FailureKind, ShardEvent};
use crate::shards::series::MetricNameRegistry;

/// How long the names read from the catalogue count as fresh when another shard starts.
const NAMES_REFRESH: std::time::Duration = std::time::Duration::from_secs(10);

/// Metric names of the tenants, shared by the shards of a node.
#[derive(Debug)]
pub struct MetricNameLoader {
    registry: Arc<MetricNameRegistry>,
    last_read: Mutex<Option<Stopwatch>>,
}

impl MetricNameLoader {
    /// Loads names into this registry, which is still empty.
    pub fn new(registry: Arc<MetricNameRegistry>) -> Arc<Self> {
        Arc::new(Self { registry, last_read: Mutex::default() })
    }

    /// The registry that the names are loaded into.
    pub fn registry(&self) -> &Arc<MetricNameRegistry> {
        &self.registry
    }

    /// Loads the catalogue's names into the registry; a starting shard waits for it, so no shard
    /// decides on a name before. Shards that start together read the catalogue once.
    fn refresh(&self, store: &dyn ShardStore) -> Result<(), StoreError> {
        // Held during the read: the other shards wait for it instead of reading
        // the catalogue as well.
        let mut read = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.is_none_or(|read| read.elapsed() > NAMES_REFRESH) {
            self.registry.extend(&store.metric_names()?);
            *read = Some(Stopwatch::start());
        }
        Ok(())
    }
}

/// Log, store, archive and shared state of a shard.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct ShardPorts {
    pub shard: ShardId,
    pub log: Arc<dyn LogReader>,
    pub store: Arc<dyn ShardStore>,
    pub archive: Arc<dyn Archive>,
    /// Metric names to admit; `None` admits all.
    pub metric_names: Option<Arc<MetricNameLoader>>,
    pub table: Arc<ShardTable>,
}

impl ShardPorts {
    /// Answers a command of a starting shard. A claim is made with `nonce`. A planned recovery
    /// leaves its reader in `archived`.
    pub fn answer(
        &self,
        command: StartupCommand,
        nonce: u64,
        archived: &mut Option<GapReader>,
    ) -> StartupEvent {
        match command {
            StartupCommand::FindCheckpoint => {
                StartupEvent::FindCheckpoint(self.stored_checkpoint().map_err(CallError::from))
            }
            StartupCommand::Claim => StartupEvent::Claim(
                self.store.claim(self.shard, self.log.id(), nonce).map_err(CallError::from),
            ),
            StartupCommand::FindAppended { next } => StartupEvent::FindAppended(
                self.log.appended_below(self.shard, next).map_err(CallError::from),
            ),
            StartupCommand::ReadBounds => {
                StartupEvent::ReadBounds(self.log.bounds(self.shard).map_err(CallError::from))
            }
            StartupCommand::PlanRecovery { archived: anchor, lost } => {
                let planned =
                    GapReader::plan(&*self.archive, self.log.id(), self.shard, anchor, lost);
                StartupEvent::PlanRecovery(planned.map_err(CallError::from).map(|planned| {
                    planned.map(|reader| {
                        let to = reader.end();
                        *archived = Some(reader);
                        to
                    })
                }))
            }
            StartupCommand::Load { generations } => {
                StartupEvent::Load(self.load(&generations).map_err(CallError::from))
            }
            StartupCommand::RecordRule { epoch, from, rule } => {
                let noted = self.store.set_dedup_rule(self.shard, epoch, from, rule);
                StartupEvent::RecordRule(noted.map_err(CallError::from))
            }
        }
    }

    /// Loads what the store has of the shard. The checkpoint is read last, because it vouches for
    /// what was read before it.
    fn load(&self, of_set: &[GenerationId]) -> Result<LoadedShard, StoreError> {
        // All blocks: flushes have deleted those beyond the horizon, by append times.
        let blocks = self.store.recent_ids(self.shard, i64::MIN)?;
        let admitted = self.store.admitted_series(self.shard)?;
        let writer = Writer { shard: self.shard, part: WriterPart::Live };
        let of = |id: &GenerationId| Ok((*id, self.store.generation_series(*id, writer)?));
        let generations = of_set.iter().map(of).collect::<Result<_, StoreError>>()?;
        if let Some(names) = &self.metric_names {
            names.refresh(&*self.store)?;
        }
        let mut snapshot = self.store.snapshot()?;
        let book = snapshot.generation_book()?;
        let unserved = of_set.iter().copied().filter(|id| !book.is_read(*id)).collect();
        let (all, rules) = (snapshot.checkpoints()?, snapshot.dedup_rules(self.shard)?);
        let stored = all
            .into_iter()
            .find(|(shard, _)| *shard == self.shard)
            .map(|(_, checkpoint)| checkpoint);
        Ok(LoadedShard { blocks, admitted, generations, unserved, checkpoint: stored, rules })
    }

    fn stored_checkpoint(&self) -> Result<Option<Checkpoint>, StoreError> {
        Ok(self.stored_stand()?.map(|(checkpoint, _)| checkpoint))
    }

    /// The checkpoint, and the version of the set that the shard writes under.
    fn stored_stand(&self) -> Result<Option<(Checkpoint, u64)>, StoreError> {
        let mut snapshot = self.store.snapshot()?;
        let checkpoints = snapshot.checkpoints()?;
        let at = checkpoints.into_iter().find(|(shard, _)| *shard == self.shard);
        let sets = snapshot.set_versions()?;
        let set = sets.into_iter().find(|(shard, _)| *shard == self.shard);
        Ok(at.map(|(_, at)| (at, set.map_or(0, |(_, version)| version))))
    }

    /// Reads records of the shard from the log.
    pub fn read_log(&self, from: Offset, max_bytes: usize) -> ShardEvent<'static> {
        let read = self.log.read(self.shard, from, max_bytes);
        ShardEvent::LogRead(read.map(Cow::Owned).map_err(CallError::from))
    }

    /// Reads records that the log lost with the reader that was planned at the start.
    pub fn read_archive(
        &self,
        archived: &mut Option<GapReader>,
        from: Offset,
        max_bytes: usize,
    ) -> ShardEvent<'static> {
        let read = match archived {
            Some(reader) => reader.read(&*self.archive, from, max_bytes).map_err(CallError::from),
            None => Err(CallError {
                kind: FailureKind::Other,
                message: "no recovery was planned".to_owned(),
            }),
        };
        ShardEvent::ArchiveRead(read)
    }

    /// Records in the store that an event is about to be applied in isolation.
    pub fn mark_suspect(&self, epoch: Epoch, offset: Offset, index: u32) -> ShardEvent<'static> {
        ShardEvent::SuspectMarked(
            self.store.mark_suspect(self.shard, epoch, offset, index).map_err(CallError::from),
        )
    }

    /// Commits a batch in one transaction of the store.
    pub fn commit(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> ShardEvent<'static> {
        ShardEvent::CommitEnded(
            self.store.flush(guard, batch, forget_ids_before).map_err(CallError::from),
        )
    }

    /// Claims a shard that is running unclaimed.
    pub fn reclaim(&self, nonce: u64) -> ShardEvent<'static> {
        ShardEvent::Reclaimed(
            self.store.claim(self.shard, self.log.id(), nonce).map(drop).map_err(CallError::from),
        )
    }

    /// Reads the stored checkpoint and version of the set. The archived offset is taken before: the
    /// archiver may move it meanwhile, and then the store would seem to lag behind it.
    pub fn confirm(&self, next: Offset, set: u64) -> ShardEvent<'static> {
        let archived = self.table.entry(self.shard).archived();
        let stored = self.stored_stand().map_err(CallError::from);
        ShardEvent::Confirmed { next, set, archived, stored }
    }
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Refused { .. } => FailureKind::Refused,
            StoreError::Failed(_) => FailureKind::NotApplied,
            StoreError::Unavailable(_) => FailureKind::Unavailable,
            StoreError::TooLong(_) => FailureKind::TimedOut,
            StoreError::Unknown(_) => FailureKind::OutcomeUnknown,
            StoreError::Invalid(_) => FailureKind::Unusable,
            StoreError::TooManySeries { .. } | StoreError::QueryEnded => FailureKind::Other,
        };
        Self { kind, message: error.to_string() }
    }
}

impl From<LogError> for CallError {
    fn from(error: LogError) -> Self {
        let kind = match &error {
            LogError::Corrupt(_) => FailureKind::Damaged,
            LogError::Replaced(_) => FailureKind::Unusable,
            // The next start reads the bounds again and finds out what the log has lost.
            LogError::Released { .. } | LogError::BeyondEnd { .. } | LogError::Io(_) => {
                FailureKind::Other
            }
        };
        Self { kind, message: error.to_string() }
    }
}

impl From<ArchiveError> for CallError {
    fn from(error: ArchiveError) -> Self {
        let kind = match &error {
            ArchiveError::Unavailable(_) => FailureKind::Unavailable,
            // The next start lists the archive again and may find other objects.
            ArchiveError::NotKept(_)
            | ArchiveError::Corrupt { .. }
            | ArchiveError::Missing(_)
            | ArchiveError::NoColdStore(_)
            | ArchiveError::Config(_)
            | ArchiveError::Codec(_) => FailureKind::Other,
        };
        Self { kind, message: error.to_string() }
    }
}
