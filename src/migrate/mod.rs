//! `rollmill migrate`: an embedded data directory goes into a cluster, and every event stays
//! counted once.
//!
//! Everything in the store speaks of offsets, so the offsets are kept: the new topic begins in each
//! partition where the shard's log ended (docs/adr/0017-migrate.md). The steps, each of which may
//! be killed and is done again, or gone on with, by the next run:
//!
//! 1. the embedded node comes to rest: all of its log is in store and archive ([`quiesce`]);
//! 2. the directory is marked ([`mark`](crate::node::migration_marker)): from now on nobody serves from it;
//! 3. archive objects are copied;
//! 4. the topic is made, without an identity, and filled: no node opens it;
//! 5. the store is copied in one transaction, and compared, byte by byte;
//! 6. the topic gets its identity. This one request is what opens the cluster: before it, nothing
//!    can serve, after it, nothing is missing;
//! 7. the mark says that it is done.

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
use crate::persistence::log::kafka::fill::{self, FillError};
use crate::persistence::log::kafka::topic::{self, TopicDescription};
use crate::persistence::store::SnapshotSource;
use crate::persistence::store::postgres::{PostgresStore, StoreContents};
use crate::persistence::store::sqlite::SqliteStore;
use crate::persistence::store::transfer::{StoreCounts, TransferBatch};

/// Objects copied at once: each is in memory, `archive.max_bytes` raw at most, a tenth of it
/// usually.
const COPIES: usize = 8;
/// A topic that got too long is made anew; records of a killed run arrive late once, not again and
/// again.
const TOPICS: usize = 3;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MigrationStep {
    /// The embedded node comes to rest; counted in records.
    Quiesce,
    /// Objects are copied; counted in bytes.
    Archive,
    /// The topic is filled; counted in offsets.
    Topic,
    /// The store is copied; counted in rows.
    Store,
    /// Both stores are compared; counted in rollups.
    Compare,
    /// The topic gets its identity.
    Open,
}

impl MigrationStep {
    /// In order.
    pub const ALL: [Self; 6] =
        [Self::Quiesce, Self::Archive, Self::Topic, Self::Store, Self::Compare, Self::Open];

    /// In words, and what is counted.
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

/// Told of progress: step, done, of how many.
pub type ProgressFn<'a> = &'a mut dyn FnMut(MigrationStep, u64, u64);

/// An embedded node.
#[derive(Debug, Clone)]
pub struct MigrationSource {
    /// Its configuration.
    pub config: Config,
    /// Its directory.
    pub data: DataDir,
}

impl MigrationSource {
    /// The node of a directory. The environment is the cluster's, so it says nothing of the node.
    ///
    /// # Errors
    /// If it is no data directory, or its configuration is wrong.
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

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationOutcome {
    /// It was only looked at.
    Planned,
    /// It is done.
    Done,
    /// It had been done before.
    AlreadyDone,
}

/// What goes where.
#[derive(Debug, Clone)]
pub struct MigrationReport {
    /// What became of it.
    pub outcome: MigrationOutcome,
    /// The data directory.
    pub source: String,
    /// Its log.
    pub source_log: LogId,
    /// Number of shards.
    pub shards: usize,
    /// Offsets of all shards, which the topic is filled with.
    pub offsets: u64,
    /// Records that are not in the store yet.
    pub unflushed: u64,
    /// Records that are not in the archive yet.
    pub unarchived: u64,
    /// Archive objects.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// What is in the store.
    pub extent: StoreCounts,
    /// The topic.
    pub topic: String,
    /// Id of its cluster.
    pub cluster: String,
    /// The cluster's log, once it is known.
    pub log: Option<String>,
    /// The cluster's store.
    pub store: String,
    /// The cluster's archive.
    pub archive: String,
}

/// Migrates, or goes on with a migration that was interrupted; with `dry` it only looks, also
/// beside a running server.
///
/// # Errors
/// Names the thing and the way out. What was done stays, and the next run goes on.
pub fn run(
    source: &MigrationSource,
    target: &Config,
    dry: bool,
    tell: ProgressFn<'_>,
) -> anyhow::Result<MigrationReport> {
    check_compatible(source, target)?;
    let _lock = if dry { None } else { Some(lock::lock(source.data.root())?) };
    let topic = backends::topic_target(target)?;
    let cluster = topic.admin.cluster_id().map_err(|why| anyhow::anyhow!(why))?;
    let mark = MigrationMarker::read(&source.data)?;
    let place = (cluster.clone(), topic.connection.topic.clone());
    if let Some(mark) = &mark {
        check_same_target(source, mark, &place, target)?;
    }
    let store = backends::import_target(target, dry)?;
    let open = is_open(&topic, mark.as_ref())?;
    let imported = is_imported(store.as_deref(), mark.as_ref())?;
    ensure!(
        imported || !open,
        "the topic {} is open, but the database of store.url is not the one that its rollups went \
         to: name that one",
        topic.connection.topic
    );
    let mut stand = quiesce::source_state(&source.config, &source.data)?;
    let mut report = report(source, target, &stand, &topic, cluster)?;
    report.log = mark.as_ref().map(|mark| mark.log.clone());
    if dry || mark.as_ref().is_some_and(|mark| mark.done) {
        report.outcome =
            if dry { MigrationOutcome::Planned } else { MigrationOutcome::AlreadyDone };
        return Ok(report);
    }
    let store = store.context("the tables of the store were not laid")?;
    if !open {
        tell(MigrationStep::Quiesce, 0, stand.unflushed.max(stand.unarchived));
        stand = quiesce::quiesce(source, &mut |done, all| tell(MigrationStep::Quiesce, done, all))?;
    }
    let mut mark = match mark {
        Some(mark) => mark,
        None => begin(source, place, &store, target)?,
    };
    let log = topic::log_id(&mark.cluster, &mark.topic, mark.identity);
    if !open {
        let tiers = copy_archive(
            &backends::archives((&source.config, &source.data), target)?,
            &stand.manifest,
            tell,
        )?;
        fill_topic(&topic, mark.identity, &stand, tell)?;
        if !imported {
            copy_store(source, &store, log, &tiers, tell)?;
        }
        compare(source, &store, tell)?;
        tell(MigrationStep::Open, 0, 1);
        let opened = topic
            .admin
            .assign_identity(&topic.spec, mark.identity)
            .map_err(|why| anyhow::anyhow!(why))?;
        ensure!(
            opened.log == Some(log),
            "the topic shows log {:?} instead of {log}",
            opened.log.map(|log| log.to_string())
        );
    }
    mark.done = true;
    mark.write(&source.data)?;
    tell(MigrationStep::Open, 1, 1);
    report = self::report(source, target, &stand, &topic, mark.cluster.clone())?;
    report.log = Some(mark.log);
    Ok(report)
}

/// Whether the configurations go together.
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
    // What decides which events are duplicates: the cluster must go on with the limits of the node.
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

/// A migration that was interrupted goes on to where it went.
fn check_same_target(
    source: &MigrationSource,
    mark: &MigrationMarker,
    place: &(String, String),
    target: &Config,
) -> anyhow::Result<()> {
    let archive = archive_url(target);
    if (&mark.cluster, &mark.topic) == (&place.0, &place.1) && mark.archive == archive {
        return Ok(());
    }
    bail!(
        "{} goes to topic {} on cluster {}, {}, archive {}; the configuration says topic {} on \
         cluster {}, archive {archive}: go on with the configuration that it began with, or \
         remove the file MIGRATED there, delete that topic and empty that database",
        source.data.root().display(),
        mark.topic,
        mark.cluster,
        mark.store,
        mark.archive,
        place.1,
        place.0
    )
}

fn describe_if_exists(topic: &TopicTarget) -> anyhow::Result<Option<TopicDescription>> {
    if !topic.admin.exists().map_err(|why| anyhow::anyhow!(why))? {
        return Ok(None);
    }
    Ok(Some(topic.admin.describe(&topic.spec)?))
}

/// Whether the topic has its identity already; refuses one that is not of this migration.
fn is_open(topic: &TopicTarget, mark: Option<&MigrationMarker>) -> anyhow::Result<bool> {
    let Some(found) = describe_if_exists(topic)? else { return Ok(false) };
    let log = found.log.map(|log| log.to_string());
    if let Some(mark) = mark {
        if log.as_deref() == Some(&*mark.log) {
            return Ok(true);
        }
        if found.pending_identity == Some(mark.identity) {
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

/// Whether the store was copied already; refuses one that holds anything else.
fn is_imported(
    store: Option<&PostgresStore>,
    mark: Option<&MigrationMarker>,
) -> anyhow::Result<bool> {
    let Some(store) = store else { return Ok(false) };
    let what = match store.contents()? {
        StoreContents::Empty => return Ok(false),
        StoreContents::Log(log) if mark.is_some_and(|mark| mark.log == log.to_string()) => {
            return Ok(true);
        }
        StoreContents::Log(log) => format!("the rollups of log {log}"),
        StoreContents::OrphanRows => "rows without a checkpoint".to_owned(),
    };
    bail!("{} holds {what}: name an empty database with store.url", store.address())
}

/// Marks the directory.
fn begin(
    source: &MigrationSource,
    place: (String, String),
    store: &PostgresStore,
    target: &Config,
) -> anyhow::Result<MigrationMarker> {
    let random = getrandom::u64()
        .map_err(|e| anyhow::anyhow!("no randomness for the topic's identity: {e}"))?;
    let identity = topic::migrated_identity(random);
    let mark = MigrationMarker::new(
        SystemClock.now(),
        place,
        identity,
        store.address(),
        archive_url(target).to_owned(),
    );
    mark.write(&source.data)?;
    Ok(mark)
}

fn report(
    source: &MigrationSource,
    target: &Config,
    stand: &SourceState,
    topic: &TopicTarget,
    cluster: String,
) -> anyhow::Result<MigrationReport> {
    Ok(MigrationReport {
        outcome: MigrationOutcome::Done,
        source: source.data.root().display().to_string(),
        source_log: stand.log,
        shards: stand.ends.len(),
        offsets: stand.ends.iter().sum(),
        unflushed: stand.unflushed,
        unarchived: stand.unarchived,
        objects: stand.manifest.len() as u64,
        object_bytes: stand.manifest.iter().map(|row| row.bytes).sum(),
        extent: SqliteStore::open_read_only(source.data.store())?.counts()?,
        topic: topic.connection.topic.clone(),
        cluster,
        log: None,
        store: backends::store_address(target)?,
        archive: archive_url(target).to_owned(),
    })
}

/// Copies the objects of the manifest; the tier in which each is now.
fn copy_archive(
    moving: &ArchivePair,
    rows: &[ManifestRow],
    tell: ProgressFn<'_>,
) -> anyhow::Result<HashMap<String, Tier>> {
    let all: u64 = rows.iter().map(|row| row.bytes).sum();
    tell(MigrationStep::Archive, 0, all);
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
        // Dropping the receiver on an error ends the others.
        for (at, outcome) in receiver {
            let row = &rows[at];
            let tier = outcome.inspect_err(|_| stop.store(true, Ordering::Relaxed));
            tiers.insert(
                row.path.clone(),
                tier.with_context(|| format!("cannot copy the archive object {}", row.path))?,
            );
            done += row.bytes;
            tell(MigrationStep::Archive, done, all);
        }
        Ok(tiers)
    })
}

/// Makes the topic, and brings its partitions to the offsets at which the shards ended.
fn fill_topic(
    topic: &TopicTarget,
    identity: u64,
    stand: &SourceState,
    tell: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let all: u64 = stand.ends.iter().sum();
    tell(MigrationStep::Topic, 0, all);
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
        let filled = fill::fill_topic(&topic.admin, &topic.connection, &stand.ends, &mut |done| {
            tell(MigrationStep::Topic, done, all)
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
    tell: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let all = from.counts()?.rows;
    let mut done = 0;
    tell(MigrationStep::Store, done, all);
    let days = from.rollup_days()?;
    let copied = target.import(log, &days, |take| {
        from.export(&mut |mut piece| {
            if let TransferBatch::Manifest(rows) = &mut piece {
                rows.iter_mut()
                    .for_each(|row| row.tier = tiers.get(&row.path).copied().unwrap_or(row.tier));
            }
            let rows = piece.len() as u64;
            take(piece)?;
            done += rows;
            tell(MigrationStep::Store, done, all);
            Ok(())
        })
    });
    copied.context("the store was not copied; run migrate again")
}

/// That both stores hold the same bytes.
fn compare(
    source: &MigrationSource,
    target: &PostgresStore,
    tell: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let all = from.counts()?.rollups;
    tell(MigrationStep::Compare, 0, 2 * all);
    let mut done = 0;
    let mut tell = |rows: u64| {
        done += rows;
        tell(MigrationStep::Compare, done, 2 * all);
    };
    let (here, there) = (digest(from.as_ref(), &mut tell)?, digest(target, &mut tell)?);
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

/// Number and hash of all rollups: series, window, bytes, in order.
fn digest(
    store: &dyn SnapshotSource,
    tell: &mut dyn FnMut(u64),
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
                tell(1024);
            }
        },
    )?;
    tell(rows % 1024);
    Ok((rows, hasher.finalize()))
}
