//! Quiesces a node: runs its shards and its archiver without a gateway until all of the log is in
//! the store and in the archive. It is the node's own code, so poison is quarantined and outages
//! are retried as usual.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use super::MigrationSource;
use crate::actors::shard_table::ShardTable;
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::config::Config;
use crate::model::manifest::{self, ManifestRow};
use crate::model::offset::{Checkpoint, LogId, Offset, ShardId};
use crate::node::continuity::check_log;
use crate::node::{DataDir, NodePorts, TestFaults, backends, limits, offline, shards, tree};
use crate::persistence::log::{LogReader, ShardAssignment};

/// Give up after this long without any progress. Quarantining an event that crashes its
/// shard repeatedly takes less.
const PATIENCE: Duration = Duration::from_secs(300);
/// A killed node stays a member of Kafka's consumer group for its session timeout; until then
/// others are assigned none of its shards.
const SESSION_WAIT: Duration = Duration::from_secs(60);
/// Interval at which the shards are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Flush interval and archive delay meanwhile: no more records will come to wait for.
const QUICK_INTERVAL: Duration = Duration::from_millis(100);

/// How far the log, store and archive of a node have got.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub(super) struct SourceState {
    /// Id of the log that store and archive belong to.
    pub log: LogId,
    /// Exclusive end of each shard, in order.
    pub ends: Vec<Offset>,
    /// Records that are not in the store yet.
    pub unflushed: u64,
    /// Records that are not in the archive yet.
    pub unarchived: u64,
    pub manifest: Vec<ManifestRow>,
}

/// Reads the state of a node, even while a server is running on it.
pub(super) fn source_state(config: &Config, data: &DataDir) -> anyhow::Result<SourceState> {
    let store = offline::store(config, data)?;
    let mut snapshot = store.snapshot()?;
    let checkpoints: BTreeMap<ShardId, Checkpoint> = snapshot.checkpoints()?.into_iter().collect();
    let (rows, floors) = (snapshot.manifest(None)?, snapshot.archive_floors()?);
    let log = offline::log(config, data).map_err(|why| anyhow::anyhow!(why))?;
    let shards: Vec<ShardId> = (0..log.shard_count()).map(ShardId).collect();
    let ends: Vec<Offset> = shards.iter().map(|shard| log.end(*shard)).collect();
    let (mut unflushed, mut unarchived) = (0, 0);
    for (shard, end) in shards.iter().zip(&ends) {
        let at = checkpoints.get(shard);
        if let Some(at) = at.filter(|at| at.log != log.id()) {
            bail!(
                "the store speaks of log {}, but the log is {}: they are not of one node",
                at.log,
                log.id()
            );
        }
        let floor = floors.iter().find(|(id, _)| id == shard).map_or(0, |(_, floor)| floor.offset);
        let archived = at.map_or(0, |at| at.archived);
        manifest::check_tiling(rows.iter().filter(|row| row.shard == *shard), floor, archived)
            .map_err(|why| {
                anyhow::anyhow!(
                    "the archive of shard {shard} is not whole: {why}; `rollmill verify` says more"
                )
            })?;
        unflushed += end.saturating_sub(at.map_or(0, |at| at.next));
        unarchived += end.saturating_sub(archived);
    }
    Ok(SourceState { log: log.id(), ends, unflushed, unarchived, manifest: rows })
}

/// Quiesces the node of a data directory. `progress(done, total)` counts records. The caller
/// holds the directory's lock.
pub(super) fn quiesce(
    source: &MigrationSource,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<SourceState> {
    quiesce_config(&source.config, &source.data, progress)
}

/// Quiesces the node of a configuration, as [`quiesce`] does.
pub(super) fn quiesce_config(
    config: &Config,
    data: &DataDir,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<SourceState> {
    let before = source_state(config, data)?;
    if before.unflushed > 0 || before.unarchived > 0 {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let mut hurried = config.clone();
        (hurried.flush.interval, hurried.archive.max_delay) = (QUICK_INTERVAL, QUICK_INTERVAL);
        runtime.block_on(drain(&hurried, data, progress))?;
    }
    let after = source_state(config, data)?;
    anyhow::ensure!(
        after.unflushed == 0 && after.unarchived == 0,
        "it is not at rest: {} records are not in the store, {} not in the archive",
        after.unflushed,
        after.unarchived
    );
    Ok(after)
}

async fn drain(
    config: &Config,
    data: &DataDir,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let log = backends::log(config, data, &clock, true)?;
    let store = backends::store(config, data, &clock)?;
    let archive = backends::archive(config, data)?;
    check_log(config, data, log.as_ref(), store.as_ref(), Some(archive.as_ref()))?;
    let render_metrics = Arc::new(String::new);
    let ports = NodePorts {
        log: log.clone(),
        store: Some(store),
        archive: Some(archive),
        clock: clock.clone(),
        render_metrics,
    };
    let slots = ShardTable::new(log.clone(), log.assignment(), clock.clone());
    let census = limits::census(config);
    let shard_limits = limits::shard(config, log.shard_count(), TestFaults::default());
    let shards::ShardsRole { handle, children } =
        shards::role(config, &ports, &slots, &census, &shard_limits)?;
    // Without archive maintenance: nothing must be moved or expire meanwhile.
    let [supervisor, archiver, ..] = children;
    let (root, mut ended) =
        tree::start(vec![supervisor, archiver], limits::restarts(config), clock).await?;
    let pulse = handle.start_ticker(config, &slots);
    let outcome = tokio::select! {
            outcome = await_quiesced(&slots, log.as_ref(), progress) => outcome,
    _ = &mut ended => Err(anyhow::anyhow!(
        "the shards failed too often: the messages above say why"
    )),
        };
    pulse.abort();
    // In the order of a stopping node: relinquish the shards, then stop the tree, then close the
    // log.
    handle.relinquish().await;
    root.stop(None);
    if !ended.is_finished() {
        ended.await.context("the supervision tree crashed")?;
    }
    tokio::task::spawn_blocking(move || log.close()).await.context("closing the log")?;
    outcome
}

async fn await_quiesced(
    slots: &ShardTable,
    log: &(impl LogReader + ShardAssignment + ?Sized),
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<()> {
    let mut advanced = (0, Stopwatch::start());
    let began = Stopwatch::start();
    let mut look = tokio::time::interval(POLL_INTERVAL);
    loop {
        look.tick().await;
        let (mut done, mut all, mut behind) = (0, 0, None);
        for (shard, slot) in slots.iter() {
            let (end, at) = (log.end(shard), slot.release_floor());
            (done, all) = (done + at, all + end);
            behind = behind.or((at < end).then_some((shard, end - at)));
        }
        progress(done, all);
        let Some((shard, records)) = behind else { return Ok(()) };
        let elsewhere = log.shard_count() as usize - log.assignment().borrow().len();
        if elsewhere > 0 && began.elapsed() > SESSION_WAIT {
            bail!(
                "{elsewhere} shards are other nodes': stop all nodes of the cluster first, the \
                 gateways too"
            );
        }
        if done > advanced.0 {
            advanced = (done, Stopwatch::start());
        }
        if advanced.1.elapsed() > PATIENCE {
            bail!(
                "the node does not come to rest: shard {shard} has {records} records that are not \
                 in store and archive, and nothing has moved for {} s; the messages above say \
                 why. Nothing of the cluster was changed for it: mend it and start again",
                PATIENCE.as_secs()
            );
        }
    }
}
