//! `rollmill migrate`: moves an embedded data directory into a cluster, with every event counted
//! once.
//!
//! Everything in the store refers to offsets, so the offsets are kept: in each partition, the new
//! topic begins where the shard's log ended (docs/adr/0017-migrate.md). If a step is killed, the
//! next run repeats or resumes it:
//!
//! 1. the embedded node is quiesced: all of its log is in store and archive ([`quiesce`]);
//! 2. the directory gets a marker ([`crate::node::migration_marker`]): from now on no node serves
//!    from it;
//! 3. archive objects are copied;
//! 4. the topic is created without an identity, so that no node opens it, and filled;
//! 5. the store is copied in one transaction, and compared byte by byte;
//! 6. the topic gets its identity. This single request opens the cluster: before it nothing can
//!    serve, after it nothing is missing;
//! 7. the marker is set to done.

mod archive;
mod checks;
pub mod move_topic;
mod quiesce;
mod store;
mod target_topic;

use std::path::Path;

use anyhow::{Context, ensure};

use self::archive::copy_archive;
use self::checks::{archive_url, check_compatible, check_same_target, is_imported, is_open};
use self::quiesce::SourceState;
use self::store::{compare, copy_store};
use self::target_topic::{fill_topic, open_topic};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, key};
use crate::model::offset::LogId;
use crate::node::backends::{self, TopicTarget};
use crate::node::migration_marker::MigrationMarker;
use crate::node::{DataDir, lock, offline};
use crate::persistence::log::kafka::topic;
use crate::persistence::store::SnapshotSource;
use crate::persistence::store::postgres::PostgresStore;
use crate::persistence::store::sqlite::SqliteStore;
use crate::persistence::store::transfer::StoreCounts;

/// A step of a migration, as shown to the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MigrationStep {
    /// Quiesces the embedded node; counted in records.
    Quiesce,
    /// Copies archive objects; counted in bytes.
    Archive,
    /// Fills the topic; counted in offsets.
    Topic,
    /// Copies the store; counted in rows.
    Store,
    /// Compares both stores; counted in rollups.
    Compare,
    /// Gives the topic its identity.
    Open,
}

impl MigrationStep {
    /// All steps in their order.
    pub const ALL: [Self; 6] =
        [Self::Quiesce, Self::Archive, Self::Topic, Self::Store, Self::Compare, Self::Open];

    /// A description of the step, and the unit of its progress.
    pub fn labels(self) -> (&'static str, &'static str) {
        match self {
            MigrationStep::Quiesce => ("bringing the node to rest", "records"),
            MigrationStep::Archive => ("copying the archive", "bytes"),
            MigrationStep::Topic => ("filling the topic", "offsets"),
            MigrationStep::Store => ("copying the store", "rows"),
            MigrationStep::Compare => ("comparing the stores", "rollups"),
            MigrationStep::Open => ("opening the cluster", "steps"),
        }
    }
}

/// Receives progress: the step, how much is done, and the total.
pub type ProgressFn<'a> = &'a mut dyn FnMut(MigrationStep, u64, u64);

/// An embedded node to migrate, by configuration and data directory.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct MigrationSource {
    pub config: Config,
    pub data: DataDir,
}

impl MigrationSource {
    /// Opens the node of a directory. The environment is ignored, because it is the cluster's.
    ///
    /// # Errors
    /// If it is not a data directory, or its configuration is wrong.
    pub fn open(data: &str, file: Option<&Path>) -> anyhow::Result<Self> {
        let dir = DataDir::new(data);
        ensure!(
            dir.store().is_file() && dir.log().is_dir(),
            "{data} is no data directory: it has no store.sqlite and log"
        );
        let shards = offline::log(&Config::defaults(), &dir)
            .map_err(|why| anyhow::anyhow!(why))?
            .shard_count();
        let flags = [(key!(data.dir), data.to_owned()), (key!(shards.count), shards.to_string())];
        let config = Config::load(file, std::iter::empty(), &flags)?;
        for (key, is_set) in [
            (key!(kafka.brokers), config.kafka.brokers.is_some()),
            (key!(store.url), config.store.url.is_some()),
        ] {
            ensure!(
                !is_set,
                "{key} is set in the configuration of the embedded node: only a node whose log \
                 and store are both in its data directory is migrated"
            );
        }
        Ok(Self { config, data: dir })
    }
}

/// How a run of the migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationOutcome {
    /// A dry run, which changed nothing.
    Planned,
    /// This run has finished the migration.
    Done,
    /// An earlier run had finished it.
    AlreadyDone,
}

/// What a migration moves, and where to.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct MigrationReport {
    pub outcome: MigrationOutcome,
    /// Path of the data directory.
    pub source: String,
    /// Log id of the embedded node.
    pub source_log: LogId,
    pub shards: usize,
    /// Number of offsets of all shards, with which the topic is filled.
    pub offsets: u64,
    /// Records that are not in the store yet.
    pub unflushed: u64,
    /// Records that are not in the archive yet.
    pub unarchived: u64,
    /// Number of archive objects.
    pub objects: u64,
    /// Total bytes of the archive objects.
    pub object_bytes: u64,
    /// Row counts of the embedded store.
    pub extent: StoreCounts,
    /// Numbers of the replays that have rows.
    pub replays: Vec<u64>,
    /// Name of the target topic.
    pub topic: String,
    /// Id of the Kafka cluster.
    pub cluster: String,
    /// Log id of the cluster; None before the first real run.
    pub log: Option<String>,
    /// Address of the target store, without the password.
    pub store: String,
    /// URL of the target archive.
    pub archive: String,
}

/// Migrates, or resumes an interrupted migration. With `dry` it only reports, even while a server
/// is running on the directory.
///
/// # Errors
/// If a step fails; names the cause and the remedy. Completed steps stay, and the next run resumes.
pub fn run(
    source: &MigrationSource,
    target: &Config,
    dry: bool,
    progress: ProgressFn<'_>,
) -> anyhow::Result<MigrationReport> {
    check_compatible(source, target)?;
    // A dry run may look while a server holds the lock.
    let _lock = if dry { None } else { Some(lock::lock(source.data.root())?) };
    let topic = backends::topic_target(target)?;
    let cluster = topic.admin.cluster_id().map_err(|why| anyhow::anyhow!(why))?;
    let marker = MigrationMarker::read(&source.data)?;
    let target_log = (cluster.clone(), topic.connection.topic.clone());
    if let Some(marker) = &marker {
        check_same_target(source, marker, &target_log, target)?;
    }
    let store = backends::import_target(target, dry)?;
    let open = is_open(&topic, marker.as_ref())?;
    let imported = is_imported(store.as_deref(), marker.as_ref())?;
    ensure!(
        imported || !open,
        "the topic {} is open, but the database of store.url is not the one that its rollups went \
         to: name that one",
        topic.connection.topic
    );
    let mut state = quiesce::source_state(&source.config, &source.data)?;
    let mut report = report(source, target, &state, &topic, cluster)?;
    report.log = marker.as_ref().map(|marker| marker.log.clone());
    if dry || marker.as_ref().is_some_and(|marker| marker.done) {
        report.outcome =
            if dry { MigrationOutcome::Planned } else { MigrationOutcome::AlreadyDone };
        return Ok(report);
    }
    let store = store.context("the tables of the store were not laid")?;
    // Once the topic is open, an earlier run has done everything except completing the marker.
    if !open {
        progress(MigrationStep::Quiesce, 0, state.unflushed.max(state.unarchived));
        state =
            quiesce::quiesce(source, &mut |done, all| progress(MigrationStep::Quiesce, done, all))?;
    }
    // Before anything in the cluster changes: a later run must recognise its own traces there.
    let mut marker = match marker {
        Some(marker) => marker,
        None => begin(source, target_log, &store, target)?,
    };
    let log = topic::log_id(&marker.cluster, &marker.topic, marker.identity);
    if !open {
        let tiers = copy_archive(
            &backends::archives((&source.config, &source.data), target)?,
            &state.manifest,
            progress,
        )?;
        fill_topic(&topic, marker.identity, &state, progress)?;
        if !imported {
            copy_store(source, &store, log, &tiers, progress)?;
        }
        compare(source, &store, progress)?;
        open_topic(&topic, marker.identity, log, progress)?;
    }
    marker.done = true;
    marker.write(&source.data)?;
    progress(MigrationStep::Open, 1, 1);
    report = self::report(source, target, &state, &topic, marker.cluster.clone())?;
    report.log = Some(marker.log);
    Ok(report)
}

/// Starts a migration by writing its marker.
fn begin(
    source: &MigrationSource,
    target_log: (String, String),
    store: &PostgresStore,
    target: &Config,
) -> anyhow::Result<MigrationMarker> {
    let random = getrandom::u64()
        .map_err(|e| anyhow::anyhow!("no randomness for the topic's identity: {e}"))?;
    let identity = topic::migrated_identity(random);
    let marker = MigrationMarker::new(
        SystemClock.now(),
        target_log,
        identity,
        store.address(),
        archive_url(target).to_owned(),
    );
    marker.write(&source.data)?;
    Ok(marker)
}

fn report(
    source: &MigrationSource,
    target: &Config,
    state: &SourceState,
    topic: &TopicTarget,
    cluster: String,
) -> anyhow::Result<MigrationReport> {
    let store = SqliteStore::open_read_only(source.data.store())?;
    let book = store.snapshot()?.generation_book()?;
    Ok(MigrationReport {
        outcome: MigrationOutcome::Done,
        source: source.data.root().display().to_string(),
        source_log: state.log,
        shards: state.ends.len(),
        offsets: state.ends.iter().sum(),
        unflushed: state.unflushed,
        unarchived: state.unarchived,
        objects: state.manifest.len() as u64,
        object_bytes: state.manifest.iter().map(|row| row.bytes).sum(),
        extent: store.counts()?,
        replays: book.generations().keys().map(|id| id.0).collect(),
        topic: topic.connection.topic.clone(),
        cluster,
        log: None,
        store: backends::store_address(target)?,
        archive: archive_url(target).to_owned(),
    })
}
