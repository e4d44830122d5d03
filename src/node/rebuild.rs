//! Rebuilds the lost store of a configuration: checks the preconditions, builds, and puts the
//! result in place.
//!
//! An incomplete store is never mistaken for a complete one. SQLite is built in a separate file and
//! renamed at the end; PostgreSQL carries a marker until then.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};

use super::lock::{self, DataLock};
use super::{DataDir, TestFaults, backends, limits, offline};
use crate::actors::settled_documents::ListedSettlements;
use crate::config::{Config, millis};
use crate::model::offset::LogId;
use crate::persistence::archive::Archive;
use crate::persistence::log::LogReader;
use crate::persistence::store::RebuildStore;
use crate::persistence::store::postgres::{DatabaseState, PostgresOptions, PostgresStore};
use crate::persistence::store::sqlite::SqliteStore;
use crate::recompute::fold::FoldRules;
use crate::recompute::rebuild::plan::ShardPlan;
use crate::recompute::rebuild::replays::{self, ServedReplays};
use crate::recompute::rebuild::{self, RebuildReport, StoreRebuild, settled};
use crate::recompute::replay::shard_replay::ReplaySources;

/// The fraction of `flush.max_delta_bytes` that may be in memory: one shard is rebuilt at a time.
const SHARE_OF_DELTAS: u64 = 16;

/// A rebuild whose preconditions hold, with its sources open.
pub struct RebuildJob {
    target: RebuildTarget,
    archive: Arc<dyn Archive>,
    log: Arc<dyn LogReader>,
    /// The history of every shard, in order.
    pub plans: Vec<ShardPlan>,
    /// The replays that are brought back.
    pub replays: ServedReplays,
    /// What was decided about events that were set aside.
    settled: ListedSettlements,
    /// Whether an interrupted attempt will be resumed.
    pub resumes: bool,
    _lock: DataLock,
}

enum RebuildTarget {
    Sqlite { place: PathBuf, beside: PathBuf },
    Postgres(PostgresOptions),
}

/// What becomes of replays that were served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayChoice {
    /// They are brought back.
    Restore,
    /// Generation 0 is served on their days again.
    LeaveOut,
}

/// Checks that the configuration has a log, an archive and no store, that no process serves
/// from it, and that no records are missing. `former` are the ids of earlier logs whose
/// offsets this log continues.
///
/// # Errors
/// If a precondition fails; names it and the remedy.
pub fn prepare(
    config: &Config,
    data: &DataDir,
    former: &[LogId],
    allow_expired: bool,
    replays: ReplayChoice,
) -> anyhow::Result<RebuildJob> {
    if config.kafka.brokers.is_none() && !data.log().is_dir() {
        bail!(
            "{} has no log: name the data directory with --data; a store is made from its archive \
             and its log",
            data.root().display()
        );
    }
    let _lock = lock::lock(data.root())?;
    let target = RebuildTarget::of(config, data);
    let resumes = target.check()?;
    let archive = offline::archive(config, data)?;
    let log = offline::log(config, data).map_err(|why| anyhow::anyhow!(why))?;
    let plans = rebuild::plan(archive.as_ref(), log.as_ref(), former, allow_expired)?;
    let logs: Vec<LogId> = std::iter::once(log.id()).chain(former.iter().copied()).collect();
    let replays = match replays {
        ReplayChoice::LeaveOut => ServedReplays::default(),
        ReplayChoice::Restore => {
            ServedReplays::read(archive.as_ref(), &logs, log.shard_count(), nonce()?)?
        }
    };
    let settled = settled::read(archive.as_ref(), &logs)?;
    Ok(RebuildJob { target, archive, log, plans, replays, settled, resumes, _lock })
}

impl RebuildJob {
    /// Where the new store will be, for messages.
    pub fn location(&self) -> String {
        match &self.target {
            RebuildTarget::Sqlite { place, .. } => place.display().to_string(),
            RebuildTarget::Postgres(_) => "the database of store.url".to_owned(),
        }
    }

    /// Records to fold: those of the shards, and those that are filled into replays.
    pub fn records(&self) -> u64 {
        self.plans.iter().map(ShardPlan::records).sum::<u64>() + self.replays.records()
    }

    /// Builds the store. `progress` receives the number of records done.
    ///
    /// # Errors
    /// If something cannot be read or written. Work done so far is kept, and
    /// the next attempt resumes.
    pub fn run(
        &self,
        config: &Config,
        archive_only: bool,
        progress: &mut dyn FnMut(u64),
    ) -> anyhow::Result<RebuildReport> {
        match &self.target {
            RebuildTarget::Sqlite { place, beside } => {
                let store = SqliteStore::open_rebuilding(beside)?;
                let report = self.build(&store, config, archive_only, progress)?;
                // Complete before it is renamed: whatever has the name of the store counts as
                // whole. Closing the last connection checkpoints the WAL into the file.
                store.finish_rebuild()?;
                drop(store);
                put_in_place(beside, place)?;
                Ok(report)
            }
            RebuildTarget::Postgres(options) => {
                let store = PostgresStore::open_rebuilding(options)?;
                let report = self.build(&store, config, archive_only, progress)?;
                store.finish_rebuild()?;
                Ok(report)
            }
        }
    }

    fn build<S: RebuildStore>(
        &self,
        store: &Arc<S>,
        config: &Config,
        archive_only: bool,
        progress: &mut dyn FnMut(u64),
    ) -> anyhow::Result<RebuildReport> {
        let shard_count = self.log.shard_count();
        let shards = limits::shard(config, shard_count, TestFaults::default());
        let rebuild = StoreRebuild {
            store: store.as_ref(),
            archive: self.archive.as_ref(),
            log: self.log.as_ref(),
            rules: FoldRules {
                dedup_horizon_ms: shards.dedup_horizon_ms,
                dedup_max_ids: shards.dedup_max_ids,
                max_delta_bytes: (config.flush.max_delta_bytes.bytes() / SHARE_OF_DELTAS) as usize,
                shard_count,
            },
            max_series: limits::max_series(config, shard_count),
            metric_names: limits::census(config),
            max_ahead_ms: millis(config.accept.max_ahead),
            nonce: nonce()?,
            replays: &self.replays,
        };
        let documented = &self.settled.settled;
        let mut report = rebuild.run_with(documented, &self.plans, archive_only, progress)?;
        report.damaged.extend(self.settled.damaged.iter().cloned());
        report.settled = settled::settle(store.as_ref(), documented, &shards)?;
        let sources = ReplaySources {
            store: store.clone(),
            archive: self.archive.clone(),
            limits: limits::replay(config, shard_count),
        };
        let before: u64 = self.plans.iter().map(ShardPlan::records).sum();
        replays::fill(&self.replays, &sources, nonce()?, &mut |done| progress(before + done))?;
        Ok(report)
    }
}

fn nonce() -> anyhow::Result<u64> {
    getrandom::u64().map_err(|e| anyhow::anyhow!("no randomness for the epoch: {e}"))
}

impl RebuildTarget {
    fn of(config: &Config, data: &DataDir) -> Self {
        match backends::postgres(config) {
            Some(options) => Self::Postgres(options),
            None => Self::Sqlite { place: data.store(), beside: data.rebuilding() },
        }
    }

    /// Refuses if there is a store; returns whether an earlier attempt can be resumed.
    fn check(&self) -> anyhow::Result<bool> {
        match self {
            Self::Sqlite { place, beside } => {
                // Journals count as well: SQLite would replay an old one into the new file.
                let existing: Vec<String> = files_of(place)
                    .filter(|file| file.exists())
                    .map(|f| f.display().to_string())
                    .collect();
                if !existing.is_empty() {
                    bail!(
                        "there is a store: {}; if it is lost, move it away, all files of it",
                        existing.join(", ")
                    );
                }
                Ok(beside.exists())
            }
            Self::Postgres(options) => match PostgresStore::database_state(options)? {
                DatabaseState::Empty => Ok(false),
                DatabaseState::Rebuilding => Ok(true),
                DatabaseState::Complete => bail!(
                    "the database of store.url holds a store: name an empty database, or, if that \
                     store is lost, `DROP SCHEMA rollmill CASCADE` in it"
                ),
            },
        }
    }
}

/// The files of a SQLite store: database, WAL and shared memory.
fn files_of(store: &Path) -> impl Iterator<Item = PathBuf> {
    ["", "-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", store.display()))).into_iter()
}

/// Moves the new store into place, durably.
fn put_in_place(beside: &Path, place: &Path) -> anyhow::Result<()> {
    let named = || format!("cannot move {} to {}", beside.display(), place.display());
    // First, or a crash between the two steps would leave a journal next to the renamed file. The
    // store was closed, so the journals hold nothing.
    for journal in files_of(beside).skip(1).filter(|file| file.exists()) {
        std::fs::remove_file(&journal)
            .with_context(|| format!("cannot remove {}", journal.display()))?;
    }
    std::fs::rename(beside, place).with_context(named)?;
    let directory = place.parent().unwrap_or(Path::new("."));
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).with_context(named)
}
