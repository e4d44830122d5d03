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

pub mod move_topic;
mod quiesce;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use anyhow::{Context, bail, ensure};

use self::quiesce::SourceState;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, SecretUrl, key, millis};
use crate::model::manifest::{ManifestRow, Tier};
use crate::model::offset::LogId;
use crate::model::window::Hour;
use crate::node::backends::{self, ArchivePair, TopicTarget};
use crate::node::migration_marker::MigrationMarker;
use crate::node::{DataDir, lock, offline};
use crate::persistence::archive::ArchiveError;
use crate::persistence::log::kafka::topic::{self, TopicDescription};
use crate::persistence::log::kafka::topic_fill::{self, FillError};
use crate::persistence::store::SnapshotSource;
use crate::persistence::store::postgres::{PostgresStore, StoreContents};
use crate::persistence::store::sqlite::SqliteStore;
use crate::persistence::store::transfer::{StoreCounts, TransferBatch};

/// Concurrent copies of archive objects. Each object is in memory: at most `archive.max_bytes` raw,
/// usually a tenth of that.
const COPIES: usize = 8;
/// How often a topic that got too long is recreated. Late records of a killed run can cause that
/// once, but not repeatedly.
const TOPICS: usize = 3;

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

/// Gives the topic its identity, which opens the cluster.
fn open_topic(
    topic: &TopicTarget,
    identity: u64,
    log: LogId,
    progress: ProgressFn<'_>,
) -> anyhow::Result<()> {
    progress(MigrationStep::Open, 0, 1);
    let opened =
        topic.admin.assign_identity(&topic.spec, identity).map_err(|why| anyhow::anyhow!(why))?;
    ensure!(
        opened.log == Some(log),
        "the topic shows log {:?} instead of {log}",
        opened.log.map(|log| log.to_string())
    );
    Ok(())
}

/// Checks that the two configurations agree where they must.
fn check_compatible(source: &MigrationSource, target: &Config) -> anyhow::Result<()> {
    ensure!(
        target.kafka.brokers.is_some(),
        "the configuration of the cluster names no Kafka: set kafka.brokers, store.url and \
         archive.url (--config, or the environment)"
    );
    let (here, there) = (source.config.shards.count, target.shards.count);
    ensure!(
        here == there,
        "the data directory has {here} shards, the configuration of the cluster says shards.count \
         = {there}: the number is fixed when a data directory is created and goes with the \
         events; set shards.count = {here} for the cluster"
    );
    // These decide which events are duplicates, so the cluster must continue with the node's
    // values.
    let (node, cluster) = (&source.config.dedup, &target.dedup);
    let decisive = [
        (
            key!(dedup.horizon),
            format!("{}ms", millis(node.horizon)),
            format!("{}ms", millis(cluster.horizon)),
        ),
        (key!(dedup.max_ids), node.max_ids.to_string(), cluster.max_ids.to_string()),
    ];
    for (key, here, there) in decisive {
        ensure!(
            here == there,
            "{key} is {here} for the embedded node and {there} for the cluster: it decides which \
             events are duplicates, and replay and `rollmill verify` go by one value; make them \
             equal (--from-config names the node's configuration)"
        );
    }
    Ok(())
}

fn archive_url(config: &Config) -> &str {
    config.archive.url.as_ref().map_or("", SecretUrl::expose)
}

/// Checks that an interrupted migration is resumed with the same target.
fn check_same_target(
    source: &MigrationSource,
    marker: &MigrationMarker,
    target_log: &(String, String),
    target: &Config,
) -> anyhow::Result<()> {
    let archive = archive_url(target);
    if (&marker.cluster, &marker.topic) == (&target_log.0, &target_log.1)
        && marker.archive == archive
    {
        return Ok(());
    }
    bail!(
        "{} goes to topic {} on cluster {}, {}, archive {}; the configuration says topic {} on \
         cluster {}, archive {archive}: go on with the configuration that it began with, or \
         remove the file MIGRATED there, delete that topic and empty that database",
        source.data.root().display(),
        marker.topic,
        marker.cluster,
        marker.store,
        marker.archive,
        target_log.1,
        target_log.0
    )
}

fn describe_if_exists(topic: &TopicTarget) -> anyhow::Result<Option<TopicDescription>> {
    if !topic.admin.exists().map_err(|why| anyhow::anyhow!(why))? {
        return Ok(None);
    }
    Ok(Some(topic.admin.describe(&topic.spec)?))
}

/// Whether the topic has its identity already; refuses a topic that is not this migration's.
fn is_open(topic: &TopicTarget, marker: Option<&MigrationMarker>) -> anyhow::Result<bool> {
    let Some(found) = describe_if_exists(topic)? else { return Ok(false) };
    let log = found.log.map(|log| log.to_string());
    if let Some(marker) = marker {
        if log.as_deref() == Some(&*marker.log) {
            return Ok(true);
        }
        if found.pending_identity == Some(marker.identity) {
            return Ok(false);
        }
    }
    let brokers = &topic.connection.brokers;
    bail!(
        "the topic {} on {brokers} is there already: migrate makes it by itself, so that nobody \
         has used it. If nothing uses it, delete it (`kafka-topics.sh --bootstrap-server \
         {brokers} --delete --topic {}`), or name another one with kafka.topic",
        found.topic,
        found.topic
    )
}

/// Whether the store has been imported already; refuses a database that holds anything else.
fn is_imported(
    store: Option<&PostgresStore>,
    marker: Option<&MigrationMarker>,
) -> anyhow::Result<bool> {
    let Some(store) = store else { return Ok(false) };
    let what = match store.contents()? {
        StoreContents::Empty => return Ok(false),
        StoreContents::Log(log) if marker.is_some_and(|marker| marker.log == log.to_string()) => {
            return Ok(true);
        }
        StoreContents::Log(log) => format!("the rollups of log {log}"),
        StoreContents::OrphanRows => "rows without a checkpoint".to_owned(),
    };
    bail!("{} holds {what}: name an empty database with store.url", store.address())
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
        extent: SqliteStore::open_read_only(source.data.store())?.counts()?,
        topic: topic.connection.topic.clone(),
        cluster,
        log: None,
        store: backends::store_address(target)?,
        archive: archive_url(target).to_owned(),
    })
}

/// Copies the objects of the manifest; returns the tier of each object in the target.
fn copy_archive(
    moving: &ArchivePair,
    rows: &[ManifestRow],
    progress: ProgressFn<'_>,
) -> anyhow::Result<HashMap<String, Tier>> {
    let all: u64 = rows.iter().map(|row| row.bytes).sum();
    progress(MigrationStep::Archive, 0, all);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = sync_channel::<(usize, Result<Tier, ArchiveError>)>(COPIES);
    let copy = |row: &ManifestRow| {
        moving
            .to
            .copy_from(row, &moving.from, |tier| moving.unchanged[usize::from(tier == Tier::Cold)])
    };
    std::thread::scope(|scope| {
        for _ in 0..COPIES.min(rows.len()) {
            let (sender, next, stop, copy) = (sender.clone(), &next, &stop, &copy);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(row) = rows.get(at) else { break };
                    if sender.send((at, copy(row))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let (mut tiers, mut done) = (HashMap::with_capacity(rows.len()), 0);
        // An error returns early, which drops the receiver and thereby ends the other copies.
        for (at, outcome) in receiver {
            let row = &rows[at];
            let tier = outcome.inspect_err(|_| stop.store(true, Ordering::Relaxed));
            tiers.insert(
                row.path.clone(),
                tier.with_context(|| format!("cannot copy the archive object {}", row.path))?,
            );
            done += row.bytes;
            progress(MigrationStep::Archive, done, all);
        }
        Ok(tiers)
    })
}

/// Creates the topic if needed, and brings its partitions to the offsets at which the shards ended.
fn fill_topic(
    topic: &TopicTarget,
    identity: u64,
    state: &SourceState,
    progress: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let all: u64 = state.ends.iter().sum();
    progress(MigrationStep::Topic, 0, all);
    let failed = |why: String| anyhow::anyhow!(why);
    for _ in 0..TOPICS {
        let found = match describe_if_exists(topic)? {
            Some(found) => found,
            None => topic.admin.create_unfinished(&topic.spec, identity).map_err(failed)?,
        };
        if let Some(difference) = found.drift.iter().find(|d| d.setting != topic::IDENTITY_KEY) {
            let why = found.refusal(&topic.connection.brokers).unwrap_or_default();
            bail!(
                "{}: {why}\nor delete the topic and run migrate again, it makes a new one",
                difference.setting
            );
        }
        let filled =
            topic_fill::fill_topic(&topic.admin, &topic.connection, &state.ends, &mut |done| {
                progress(MigrationStep::Topic, done, all)
            });
        match filled {
            Ok(()) => return Ok(()),
            Err(FillError::TooLong { .. }) => topic.admin.delete().map_err(failed)?,
            Err(other) => return Err(other).context("run migrate again, it goes on where it was"),
        }
    }
    bail!(
        "the topic {} got too long {TOPICS} times: somebody else appends to it",
        topic.connection.topic
    )
}

fn copy_store(
    source: &MigrationSource,
    target: &PostgresStore,
    log: LogId,
    tiers: &HashMap<String, Tier>,
    progress: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let all = from.counts()?.rows;
    let mut done = 0;
    progress(MigrationStep::Store, done, all);
    let days = from.rollup_days()?;
    let copied = target.import(log, &days, |take| {
        from.export(&mut |mut piece| {
            // The target archive may hold an object in another tier than the source.
            if let TransferBatch::Manifest(rows) = &mut piece {
                rows.iter_mut()
                    .for_each(|row| row.tier = tiers.get(&row.path).copied().unwrap_or(row.tier));
            }
            let rows = piece.len() as u64;
            take(piece)?;
            done += rows;
            progress(MigrationStep::Store, done, all);
            Ok(())
        })
    });
    copied.context("the store was not copied; run migrate again")
}

/// Checks that both stores hold the same bytes.
fn compare(
    source: &MigrationSource,
    target: &PostgresStore,
    progress: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let all = from.counts()?.rollups;
    // Twice, because both stores are read.
    progress(MigrationStep::Compare, 0, 2 * all);
    let mut done = 0;
    let mut progress = |rows: u64| {
        done += rows;
        progress(MigrationStep::Compare, done, 2 * all);
    };
    let (here, there) = (digest(from.as_ref(), &mut progress)?, digest(target, &mut progress)?);
    ensure!(
        here == there,
        "{} holds {} rollups that differ from the {} of {}: somebody else writes there; empty the \
         database and run migrate again",
        target.address(),
        there.0,
        here.0,
        source.data.store().display()
    );
    Ok(())
}

/// Number and hash of all rollups (series, window and bytes) in order.
fn digest(
    store: &dyn SnapshotSource,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<(u64, blake3::Hash)> {
    let (mut rows, mut hasher) = (0_u64, blake3::Hasher::new());
    store.snapshot()?.rollup_bytes(
        Hour(i32::MIN),
        Hour(i32::MAX),
        &mut |info, hour, _, bytes| {
            rows += 1;
            let key = info.series.key();
            hasher.update(&(key.len() as u64).to_be_bytes()).update(&key).update(&info.id.0);
            hasher
                .update(&hour.0.to_be_bytes())
                .update(&(bytes.len() as u64).to_be_bytes())
                .update(bytes);
            if rows.is_multiple_of(1024) {
                progress(1024);
            }
        },
    )?;
    progress(rows % 1024);
    Ok((rows, hasher.finalize()))
}
