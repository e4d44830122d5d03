//! `rollmill migrate`: an embedded data directory goes into a cluster, and every event stays
//! counted once.
//!
//! Everything in the store speaks of offsets, so the offsets are kept: the new topic begins in each
//! partition where the shard's log ended (docs/adr/0017-migrate.md). The steps, each of which may
//! be killed and is done again, or gone on with, by the next run:
//!
//! 1. the embedded node comes to rest: all of its log is in store and archive ([`rest`]);
//! 2. the directory is marked ([`mark`](crate::node::migration_mark)): from now on nobody serves from it;
//! 3. archive objects are copied;
//! 4. the topic is made, without an identity, and filled: no node opens it;
//! 5. the store is copied in one transaction, and compared, byte by byte;
//! 6. the topic gets its identity. This one request is what opens the cluster: before it, nothing
//!    can serve, after it, nothing is missing;
//! 7. the mark says that it is done.

pub mod move_topic;
mod rest;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use anyhow::{Context, bail, ensure};

use self::rest::Stand;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Url, key, millis};
use crate::model::manifest::{ManifestRow, Tier};
use crate::model::offset::LogId;
use crate::model::window::Hour;
use crate::node::backends::{self, Moving, NewTopic};
use crate::node::migration_mark::Mark;
use crate::node::{DataDir, lock, offline};
use crate::persistence::archive::ArchiveError;
use crate::persistence::log::kafka::fill::{Unfit, fill};
use crate::persistence::log::kafka::topic::{self, Description};
use crate::persistence::store::RollupStore;
use crate::persistence::store::postgres::{Contents, PostgresStore};
use crate::persistence::store::sqlite::SqliteStore;
use crate::persistence::store::transfer::{Extent, Piece};

/// Objects copied at once: each is in memory, `archive.max_bytes` raw at most, a tenth of it
/// usually.
const COPIES: usize = 8;
/// A topic that got too long is made anew; records of a killed run arrive late once, not again and
/// again.
const TOPICS: usize = 3;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The embedded node comes to rest; counted in records.
    Rest,
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

impl Step {
    /// In order.
    pub const ALL: [Self; 6] =
        [Self::Rest, Self::Archive, Self::Topic, Self::Store, Self::Compare, Self::Open];

    /// In words, and what is counted.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Step::Rest => ("bringing the node to rest", "records"),
            Step::Archive => ("copying the archive", "bytes"),
            Step::Topic => ("filling the topic", "offsets"),
            Step::Store => ("copying the store", "rows"),
            Step::Compare => ("comparing the stores", "rollups"),
            Step::Open => ("opening the cluster", "steps"),
        }
    }
}

/// Told of progress: step, done, of how many.
pub type Tell<'a> = &'a mut dyn FnMut(Step, u64, u64);

/// An embedded node.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its configuration.
    pub config: Config,
    /// Its directory.
    pub data: DataDir,
}

impl Source {
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
pub enum Outcome {
    /// It was only looked at.
    Planned,
    /// It is done.
    Done,
    /// It had been done before.
    WasDone,
}

/// What goes where.
#[derive(Debug, Clone)]
pub struct Report {
    /// What became of it.
    pub outcome: Outcome,
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
    pub extent: Extent,
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
pub fn run(source: &Source, target: &Config, dry: bool, tell: Tell<'_>) -> anyhow::Result<Report> {
    fits(source, target)?;
    let _lock = if dry { None } else { Some(lock::lock(source.data.root())?) };
    let topic = backends::new_topic(target)?;
    let cluster = topic.admin.cluster().map_err(|why| anyhow::anyhow!(why))?;
    let mark = Mark::read(&source.data)?;
    let place = (cluster.clone(), topic.connection.topic.clone());
    if let Some(mark) = &mark {
        same_target(source, mark, &place, target)?;
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
    let mut stand = rest::stand(&source.config, &source.data)?;
    let mut report = report(source, target, &stand, &topic, cluster)?;
    report.log = mark.as_ref().map(|mark| mark.log.clone());
    if dry || mark.as_ref().is_some_and(|mark| mark.done) {
        report.outcome = if dry { Outcome::Planned } else { Outcome::WasDone };
        return Ok(report);
    }
    let store = store.context("the tables of the store were not laid")?;
    if !open {
        tell(Step::Rest, 0, stand.unflushed.max(stand.unarchived));
        stand = rest::rest(source, &mut |done, all| tell(Step::Rest, done, all))?;
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
        tell(Step::Open, 0, 1);
        let opened =
            topic.admin.finish(&topic.wish, mark.identity).map_err(|why| anyhow::anyhow!(why))?;
        ensure!(
            opened.log == Some(log),
            "the topic shows log {:?} instead of {log}",
            opened.log.map(|log| log.to_string())
        );
    }
    mark.done = true;
    mark.write(&source.data)?;
    tell(Step::Open, 1, 1);
    report = self::report(source, target, &stand, &topic, mark.cluster.clone())?;
    report.log = Some(mark.log);
    Ok(report)
}

/// Whether the configurations go together.
fn fits(source: &Source, target: &Config) -> anyhow::Result<()> {
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
    config.archive.url.as_ref().map_or("", Url::expose)
}

/// A migration that was interrupted goes on to where it went.
fn same_target(
    source: &Source,
    mark: &Mark,
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

fn described(topic: &NewTopic) -> anyhow::Result<Option<Description>> {
    if !topic.admin.exists().map_err(|why| anyhow::anyhow!(why))? {
        return Ok(None);
    }
    Ok(Some(topic.admin.describe(&topic.wish)?))
}

/// Whether the topic has its identity already; refuses one that is not of this migration.
fn is_open(topic: &NewTopic, mark: Option<&Mark>) -> anyhow::Result<bool> {
    let Some(found) = described(topic)? else { return Ok(false) };
    let log = found.log.map(|log| log.to_string());
    if let Some(mark) = mark {
        if log.as_deref() == Some(&*mark.log) {
            return Ok(true);
        }
        if found.unfinished == Some(mark.identity) {
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
fn is_imported(store: Option<&PostgresStore>, mark: Option<&Mark>) -> anyhow::Result<bool> {
    let Some(store) = store else { return Ok(false) };
    let what = match store.contents()? {
        Contents::Nothing => return Ok(false),
        Contents::Log(log) if mark.is_some_and(|mark| mark.log == log.to_string()) => {
            return Ok(true);
        }
        Contents::Log(log) => format!("the rollups of log {log}"),
        Contents::Rows => "rows without a checkpoint".to_owned(),
    };
    bail!("{} holds {what}: name an empty database with store.url", store.place())
}

/// Marks the directory.
fn begin(
    source: &Source,
    place: (String, String),
    store: &PostgresStore,
    target: &Config,
) -> anyhow::Result<Mark> {
    let random = getrandom::u64()
        .map_err(|e| anyhow::anyhow!("no randomness for the topic's identity: {e}"))?;
    let identity = topic::migrated_identity(random);
    let mark = Mark::new(
        SystemClock.now(),
        place,
        identity,
        store.place(),
        archive_url(target).to_owned(),
    );
    mark.write(&source.data)?;
    Ok(mark)
}

fn report(
    source: &Source,
    target: &Config,
    stand: &Stand,
    topic: &NewTopic,
    cluster: String,
) -> anyhow::Result<Report> {
    Ok(Report {
        outcome: Outcome::Done,
        source: source.data.root().display().to_string(),
        source_log: stand.log,
        shards: stand.ends.len(),
        offsets: stand.ends.iter().sum(),
        unflushed: stand.unflushed,
        unarchived: stand.unarchived,
        objects: stand.manifest.len() as u64,
        object_bytes: stand.manifest.iter().map(|row| row.bytes).sum(),
        extent: SqliteStore::open_read_only(source.data.store())?.extent()?,
        topic: topic.connection.topic.clone(),
        cluster,
        log: None,
        store: backends::store_place(target)?,
        archive: archive_url(target).to_owned(),
    })
}

/// Copies the objects of the manifest; the tier in which each is now.
fn copy_archive(
    moving: &Moving,
    rows: &[ManifestRow],
    tell: Tell<'_>,
) -> anyhow::Result<HashMap<String, Tier>> {
    let all: u64 = rows.iter().map(|row| row.bytes).sum();
    tell(Step::Archive, 0, all);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = sync_channel::<(usize, Result<Tier, ArchiveError>)>(COPIES);
    let copy = |row: &ManifestRow| {
        moving.to.take_over(row, &moving.from, |tier| moving.stays[usize::from(tier == Tier::Cold)])
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
            tell(Step::Archive, done, all);
        }
        Ok(tiers)
    })
}

/// Makes the topic, and brings its partitions to the offsets at which the shards ended.
fn fill_topic(
    topic: &NewTopic,
    identity: u64,
    stand: &Stand,
    tell: Tell<'_>,
) -> anyhow::Result<()> {
    let all: u64 = stand.ends.iter().sum();
    tell(Step::Topic, 0, all);
    let failed = |why: String| anyhow::anyhow!(why);
    for _ in 0..TOPICS {
        let found = match described(topic)? {
            Some(found) => found,
            None => topic.admin.create_unfinished(&topic.wish, identity).map_err(failed)?,
        };
        if let Some(difference) = found.differences.iter().find(|d| d.what != topic::IDENTITY_KEY) {
            let why = found.refusal(&topic.connection.brokers).unwrap_or_default();
            bail!(
                "{}: {why}\nor delete the topic and run migrate again, it makes a new one",
                difference.what
            );
        }
        let filled = fill(&topic.admin, &topic.connection, &stand.ends, &mut |done| {
            tell(Step::Topic, done, all)
        });
        match filled {
            Ok(()) => return Ok(()),
            Err(Unfit::TooLong { .. }) => topic.admin.delete().map_err(failed)?,
            Err(other) => return Err(other).context("run migrate again, it goes on where it was"),
        }
    }
    bail!(
        "the topic {} got too long {TOPICS} times: somebody else appends to it",
        topic.connection.topic
    )
}

fn copy_store(
    source: &Source,
    target: &PostgresStore,
    log: LogId,
    tiers: &HashMap<String, Tier>,
    tell: Tell<'_>,
) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let all = from.extent()?.rows;
    let mut done = 0;
    tell(Step::Store, done, all);
    let days = from.days()?;
    let copied = target.import(log, &days, |take| {
        from.export(&mut |mut piece| {
            if let Piece::Manifest(rows) = &mut piece {
                rows.iter_mut()
                    .for_each(|row| row.tier = tiers.get(&row.path).copied().unwrap_or(row.tier));
            }
            let rows = piece.len() as u64;
            take(piece)?;
            done += rows;
            tell(Step::Store, done, all);
            Ok(())
        })
    });
    copied.context("the store was not copied; run migrate again")
}

/// That both stores hold the same bytes.
fn compare(source: &Source, target: &PostgresStore, tell: Tell<'_>) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let all = from.extent()?.rollups;
    tell(Step::Compare, 0, 2 * all);
    let mut done = 0;
    let mut tell = |rows: u64| {
        done += rows;
        tell(Step::Compare, done, 2 * all);
    };
    let (here, there) = (digest(from.as_ref(), &mut tell)?, digest(target, &mut tell)?);
    ensure!(
        here == there,
        "{} holds {} rollups that differ from the {} of {}: somebody else writes there; empty the \
         database and run migrate again",
        target.place(),
        there.0,
        here.0,
        source.data.store().display()
    );
    Ok(())
}

/// Number and hash of all rollups: series, window, bytes, in order.
fn digest(
    store: &dyn RollupStore,
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
