//! What the commands of a shard are performed on: one blocking call each, and its answer as an
//! event. Nothing is decided here. The shard actor calls them from threads that may block, the
//! simulation between any two other steps.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use super::gap_reader::GapReader;
use super::shard_table::ShardTable;
use crate::clock::Stopwatch;
use crate::model::flush::{FlushBatch, FlushGuard};
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::log::{LogError, LogReader};
use crate::persistence::store::{RollupStore, StoreError};
use crate::shards::driver::startup::{LoadedShard, StartupCommand, StartupEvent};
use crate::shards::driver::{CallError, FailureKind, ShardEvent};
use crate::shards::series::MetricNameRegistry;

/// The catalogue's names are read again by a shard that starts so long after the last one that did.
const NAMES_REFRESH: std::time::Duration = std::time::Duration::from_secs(10);

/// The metric names of tenants, shared by the shards of a node.
#[derive(Debug)]
pub struct MetricNameLoader {
    registry: Arc<MetricNameRegistry>,
    last_read: Mutex<Option<Stopwatch>>,
}

impl MetricNameLoader {
    /// Under the limits of a census that knows nothing yet.
    pub fn new(census: Arc<MetricNameRegistry>) -> Arc<Self> {
        Arc::new(Self { registry: census, last_read: Mutex::default() })
    }

    /// The census.
    pub fn registry(&self) -> &Arc<MetricNameRegistry> {
        &self.registry
    }

    /// Teaches the census what the catalogue knows: no shard decides before. Shards that start
    /// together read it once.
    fn refresh(&self, store: &dyn RollupStore) -> Result<(), StoreError> {
        let mut read = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.is_none_or(|read| read.elapsed() > NAMES_REFRESH) {
            self.registry.extend(&store.metric_names()?);
            *read = Some(Stopwatch::start());
        }
        Ok(())
    }
}

/// What a shard stands on.
#[derive(Clone)]
pub struct ShardPorts {
    /// The shard.
    pub shard: ShardId,
    /// The log it reads.
    pub log: Arc<dyn LogReader>,
    /// The store it commits to.
    pub store: Arc<dyn RollupStore>,
    /// Where records are read that the log lost.
    pub archive: Arc<dyn Archive>,
    /// The names of each tenant's metrics that it admits; none: all.
    pub metric_names: Option<Arc<MetricNameLoader>>,
    /// Where it publishes its position.
    pub table: Arc<ShardTable>,
}

impl ShardPorts {
    /// Answers a starting shard. A claim is made with this nonce. What is planned to be read from
    /// the archive is kept in `archived`.
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
                    planned.map(|healing| {
                        let to = healing.end();
                        *archived = Some(healing);
                        to
                    })
                }))
            }
            StartupCommand::Load => StartupEvent::Load(self.load().map_err(CallError::from)),
            StartupCommand::RecordRule { epoch, from, rule } => {
                let noted = self.store.note_dedup_rule(self.shard, epoch, from, rule);
                StartupEvent::RecordRule(noted.map_err(CallError::from))
            }
        }
    }

    /// The order matters: the checkpoint is read after what it vouches for.
    fn load(&self) -> Result<LoadedShard, StoreError> {
        let blocks = self.store.recent_ids(self.shard, i64::MIN)?;
        let admitted = self.store.admitted_series(self.shard)?;
        if let Some(names) = &self.metric_names {
            names.refresh(&*self.store)?;
        }
        let mut snapshot = self.store.snapshot()?;
        let (all, rules) = (snapshot.checkpoints()?, snapshot.dedup_rules(self.shard)?);
        let stored = all
            .into_iter()
            .find(|(shard, _)| *shard == self.shard)
            .map(|(_, checkpoint)| checkpoint);
        Ok(LoadedShard { blocks, admitted, checkpoint: stored, rules })
    }

    fn stored_checkpoint(&self) -> Result<Option<Checkpoint>, StoreError> {
        let all = self.store.snapshot()?.checkpoints()?;
        Ok(all
            .into_iter()
            .find(|(shard, _)| *shard == self.shard)
            .map(|(_, checkpoint)| checkpoint))
    }

    /// Reads the log.
    pub fn read_log(&self, from: Offset, max_bytes: usize) -> ShardEvent<'static> {
        let read = self.log.read(self.shard, from, max_bytes);
        ShardEvent::LogRead(read.map(Cow::Owned).map_err(CallError::from))
    }

    /// Reads what the log lost.
    pub fn read_archive(
        &self,
        archived: &mut Option<GapReader>,
        from: Offset,
        max_bytes: usize,
    ) -> ShardEvent<'static> {
        let read = match archived {
            Some(healing) => healing.read(&*self.archive, from, max_bytes).map_err(CallError::from),
            None => Err(CallError {
                kind: FailureKind::Other,
                message: "no recovery was planned".to_owned(),
            }),
        };
        ShardEvent::ArchiveRead(read)
    }

    /// Notes an event that is about to be applied alone.
    pub fn mark_suspect(&self, epoch: Epoch, offset: Offset, index: u32) -> ShardEvent<'static> {
        ShardEvent::SuspectMarked(
            self.store.mark_suspect(self.shard, epoch, offset, index).map_err(CallError::from),
        )
    }

    /// Commits.
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

    /// Claims a shard whose owner here has none.
    pub fn reclaim(&self, nonce: u64) -> ShardEvent<'static> {
        ShardEvent::Reclaimed(
            self.store.claim(self.shard, self.log.id(), nonce).map(drop).map_err(CallError::from),
        )
    }

    /// Looks where the store stands. The order matters: the archiver may go on meanwhile.
    pub fn confirm(&self, next: Offset) -> ShardEvent<'static> {
        let archived = self.table.entry(self.shard).archived();
        ShardEvent::Confirmed {
            next,
            archived,
            stored: self.stored_checkpoint().map_err(CallError::from),
        }
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
