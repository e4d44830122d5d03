//! What the commands of a shard are performed on: one blocking call each, and its answer as an
//! event. Nothing is decided here. The shard actor calls them from threads that may block, the
//! simulation between any two other steps.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use super::heal::Healing;
use super::slots::Slots;
use crate::clock::Stopwatch;
use crate::model::flush::{FlushBatch, FlushGuard};
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::log::{EventLog, LogError};
use crate::persistence::store::{RollupStore, StoreError};
use crate::shards::driver::startup::{Loaded, StartupCommand, StartupEvent};
use crate::shards::driver::{CallError, Event, FailureKind};
use crate::shards::series::Census;

/// The catalogue's names are read again by a shard that starts so long after the last one that did.
const NAMES_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// The metric names of tenants, shared by the shards of a node.
#[derive(Debug)]
pub struct Names {
    census: Arc<Census>,
    read: Mutex<Option<Stopwatch>>,
}

impl Names {
    /// Under the limits of a census that knows nothing yet.
    pub fn new(census: Arc<Census>) -> Arc<Self> {
        Arc::new(Self { census, read: Mutex::default() })
    }

    /// The census.
    pub fn census(&self) -> &Arc<Census> {
        &self.census
    }

    /// Teaches the census what the catalogue knows: no shard decides before. Shards that start
    /// together read it once.
    fn learn(&self, store: &dyn RollupStore) -> Result<(), StoreError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.is_none_or(|read| read.elapsed() > NAMES_AGAIN) {
            self.census.learn(&store.metric_names()?);
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
    pub log: Arc<dyn EventLog>,
    /// The store it commits to.
    pub store: Arc<dyn RollupStore>,
    /// Where records are read that the log lost.
    pub archive: Arc<dyn Archive>,
    /// The names of each tenant's metrics that it admits; none: all.
    pub names: Option<Arc<Names>>,
    /// Where it publishes its position.
    pub slots: Arc<Slots>,
}

impl ShardPorts {
    /// Answers a starting shard. A claim is made with this nonce. What is planned to be read from
    /// the archive is kept in `archived`.
    pub fn answer(
        &self,
        command: StartupCommand,
        nonce: u64,
        archived: &mut Option<Healing>,
    ) -> StartupEvent {
        match command {
            StartupCommand::FindCheckpoint => {
                StartupEvent::FindCheckpoint(self.stored().map_err(CallError::from))
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
                    Healing::plan(&*self.archive, self.log.id(), self.shard, anchor, lost);
                StartupEvent::PlanRecovery(planned.map_err(CallError::from).map(|planned| {
                    planned.map(|healing| {
                        let to = healing.to();
                        *archived = Some(healing);
                        to
                    })
                }))
            }
            StartupCommand::Load => StartupEvent::Load(self.load().map_err(CallError::from)),
            StartupCommand::NoteRule { epoch, from, rule } => {
                let noted = self.store.note_dedup_rule(self.shard, epoch, from, rule);
                StartupEvent::NoteRule(noted.map_err(CallError::from))
            }
        }
    }

    /// The order matters: the checkpoint is read after what it vouches for.
    fn load(&self) -> Result<Loaded, StoreError> {
        let blocks = self.store.recent_ids(self.shard, i64::MIN)?;
        let admitted = self.store.admitted_series(self.shard)?;
        if let Some(names) = &self.names {
            names.learn(&*self.store)?;
        }
        let mut snapshot = self.store.snapshot()?;
        let (all, rules) = (snapshot.checkpoints()?, snapshot.dedup_rules(self.shard)?);
        let stored = all
            .into_iter()
            .find(|(shard, _)| *shard == self.shard)
            .map(|(_, checkpoint)| checkpoint);
        Ok(Loaded { blocks, admitted, stored, rules })
    }

    fn stored(&self) -> Result<Option<Checkpoint>, StoreError> {
        let all = self.store.snapshot()?.checkpoints()?;
        Ok(all
            .into_iter()
            .find(|(shard, _)| *shard == self.shard)
            .map(|(_, checkpoint)| checkpoint))
    }

    /// Reads the log.
    pub fn read_log(&self, from: Offset, max_bytes: usize) -> Event<'static> {
        let read = self.log.read(self.shard, from, max_bytes);
        Event::LogRead(read.map(Cow::Owned).map_err(CallError::from))
    }

    /// Reads what the log lost.
    pub fn read_archive(
        &self,
        archived: &mut Option<Healing>,
        from: Offset,
        max_bytes: usize,
    ) -> Event<'static> {
        let read = match archived {
            Some(healing) => healing.read(&*self.archive, from, max_bytes).map_err(CallError::from),
            None => Err(CallError {
                kind: FailureKind::Other,
                message: "no recovery was planned".to_owned(),
            }),
        };
        Event::ArchiveRead(read)
    }

    /// Notes an event that is about to be applied alone.
    pub fn mark_suspect(&self, epoch: Epoch, offset: Offset, index: u32) -> Event<'static> {
        Event::SuspectMarked(
            self.store.mark_suspect(self.shard, epoch, offset, index).map_err(CallError::from),
        )
    }

    /// Commits.
    pub fn commit(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> Event<'static> {
        Event::CommitEnded(
            self.store.flush(guard, batch, forget_ids_before).map_err(CallError::from),
        )
    }

    /// Claims a shard whose owner here has none.
    pub fn reclaim(&self, nonce: u64) -> Event<'static> {
        Event::Reclaimed(
            self.store.claim(self.shard, self.log.id(), nonce).map(drop).map_err(CallError::from),
        )
    }

    /// Looks where the store stands. The order matters: the archiver may go on meanwhile.
    pub fn confirm(&self, next: Offset) -> Event<'static> {
        let archived = self.slots.slot(self.shard).archived();
        Event::Confirmed { next, archived, stored: self.stored().map_err(CallError::from) }
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
            StoreError::TooManySeries { .. } | StoreError::Ended => FailureKind::Other,
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
