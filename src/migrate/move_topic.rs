//! `rollmill topic move`: moves a cluster to another topic, with every event counted once.
//!
//! Offsets are kept, as in a migration (docs/adr/0017-migrate.md): in each partition, the new topic
//! begins where the old one ends. If a step is killed, the next run repeats or resumes it:
//!
//! 1. this process owns all shards until everything in the old topic is in the store and in the
//!    archive;
//! 2. the new topic is created without an identity, so that no node opens it, and filled;
//! 3. the store's checkpoints are switched to the new topic in one transaction: from then on no
//!    shard resumes in the old one;
//! 4. the old topic loses its identity, so that no node opens it any more;
//! 5. the new topic gets its identity.

use anyhow::{bail, ensure};

use super::quiesce::{SourceState, quiesce_config, source_state};
use super::target_topic::{describe_if_exists, fill_topic};
use super::{MigrationStep, ProgressFn};
use crate::config::Config;
use crate::model::offset::{LogId, ShardId};
use crate::node::backends::TopicTarget;
use crate::node::{DataDir, backends, lock, offline};
use crate::persistence::log::kafka::topic;
use crate::persistence::store::SnapshotSource;
use crate::persistence::store::postgres::{PostgresStore, StoreContents};

/// The result of a move, or of a dry run.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct TopicMoveReport {
    /// Whether an earlier run had finished the move.
    pub already_done: bool,
    pub from: LogId,
    /// None after a dry run.
    pub to: Option<LogId>,
    /// Number of offsets in the old topic, over all shards; the new topic begins after them.
    pub offsets: u64,
    /// Records missing in the store and in the archive before the move.
    pub pending: (u64, u64),
}

impl TopicMoveReport {
    fn already_done(log: LogId) -> Self {
        Self { already_done: true, from: log, to: Some(log), offsets: 0, pending: (0, 0) }
    }
}

/// The configurations of the cluster before and after the move, which differ in `kafka.topic`.
#[allow(missing_docs, reason = "the names say it")]
pub struct TopicPair<'a> {
    pub old: &'a Config,
    pub new: &'a Config,
}

/// Moves the cluster, or resumes an interrupted move. With `dry` it only reports.
///
/// # Errors
/// If a step fails; names the cause and the remedy. Completed steps stay, and the next run resumes.
pub fn run(
    topics: &TopicPair<'_>,
    dry: bool,
    progress: ProgressFn<'_>,
) -> anyhow::Result<TopicMoveReport> {
    let TopicPair { old, new } = topics;
    check_pair(old, new)?;
    let data = DataDir::new(&old.data.dir);
    let _lock = lock::lock(data.root())?;
    let topic = backends::topic_target(new)?;
    let cluster = topic.admin.cluster_id().map_err(|why| anyhow::anyhow!(why))?;
    let Some(store) = backends::import_target(old, true)? else {
        bail!("the database of store.url holds no store")
    };
    let StoreContents::Log(current) = store.contents()? else {
        bail!("the database of store.url holds no checkpoints")
    };
    let Some(identity) = target_identity(&topic, current)? else {
        return Ok(TopicMoveReport::already_done(current));
    };
    let to = topic::log_id(&cluster, &new.kafka.topic, identity);
    let mut report = TopicMoveReport {
        already_done: false,
        from: current,
        to: Some(to),
        offsets: 0,
        pending: (0, 0),
    };
    // Otherwise an earlier run has switched the store already, and only the topics are left.
    if current != to {
        let before = source_state(old, &data)?;
        ensure!(
            before.log == current,
            "the store belongs to log {current}, but the topic {} is log {}",
            old.kafka.topic,
            before.log
        );
        report.offsets = before.ends.iter().sum();
        report.pending = (before.unflushed, before.unarchived);
        if dry {
            report.to = None;
            return Ok(report);
        }
        check_replays(&store)?;
        progress(MigrationStep::Quiesce, 0, before.unflushed.max(before.unarchived));
        let state = quiesce_and_fill(old, &data, &topic, identity, progress)?;
        store.switch_log(current, to, &state.ends)?;
    }
    open_topic(old, &topic, identity, to, progress)?;
    Ok(report)
}

/// Refuses while a replay is being built: the records that it reads belong to the old topic.
fn check_replays(store: &PostgresStore) -> anyhow::Result<()> {
    let book = store.snapshot()?.generation_book()?;
    let mut built = book.generations().keys().filter(|id| book.is_built(**id));
    match built.next() {
        None => Ok(()),
        Some(id) => bail!(
            "replay {id} is being built: apply or cancel it first (`rollmill replay apply {id}`, \
             `rollmill replay cancel {id}`)"
        ),
    }
}

fn check_pair(old: &Config, new: &Config) -> anyhow::Result<()> {
    ensure!(new.kafka.brokers.is_some(), "the log is not Kafka's: kafka.brokers is empty");
    ensure!(
        new.kafka.topic != old.kafka.topic,
        "kafka.topic is {} before and after: name the new one there, the old one with --from",
        new.kafka.topic
    );
    Ok(())
}

/// The identity of the new topic: that of an interrupted move, or a random one. None if the store
/// already belongs to the topic, so that the move is complete.
fn target_identity(topic: &TopicTarget, current: LogId) -> anyhow::Result<Option<u64>> {
    match describe_if_exists(topic)? {
        Some(found) if found.log == Some(current) => Ok(None),
        Some(found) => match found.pending_identity {
            Some(identity) => Ok(Some(identity)),
            None => bail!(
                "the topic {} is there already, and it is another log: name a new one with \
                 kafka.topic",
                topic.connection.topic
            ),
        },
        None => {
            let random = getrandom::u64()
                .map_err(|e| anyhow::anyhow!("no randomness for the identity: {e}"))?;
            Ok(Some(topic::migrated_identity(random)))
        }
    }
}

/// Brings store and archive up to the end of the old topic, and the new topic to its offsets.
fn quiesce_and_fill(
    old: &Config,
    data: &DataDir,
    topic: &TopicTarget,
    identity: u64,
    progress: ProgressFn<'_>,
) -> anyhow::Result<SourceState> {
    let state =
        quiesce_config(old, data, &mut |done, all| progress(MigrationStep::Quiesce, done, all))?;
    fill_topic(topic, identity, &state, progress)?;
    // Last before the switch: filling takes a while, and a forgotten gateway may append meanwhile.
    check_no_writers(old, data, &state)?;
    Ok(state)
}

/// Retires the old topic and gives the new one its identity, in this order: at no time
/// can nodes open both.
fn open_topic(
    old: &Config,
    topic: &TopicTarget,
    identity: u64,
    to: LogId,
    progress: ProgressFn<'_>,
) -> anyhow::Result<()> {
    progress(MigrationStep::Open, 0, 1);
    let former = backends::topic_target(old)?;
    if describe_if_exists(&former)?.is_some() {
        former.admin.retire(&former.spec).map_err(|why| anyhow::anyhow!(why))?;
    }
    let opened =
        topic.admin.assign_identity(&topic.spec, identity).map_err(|why| anyhow::anyhow!(why))?;
    ensure!(opened.log == Some(to), "the topic shows another log than {to}");
    progress(MigrationStep::Open, 1, 1);
    Ok(())
}

/// Refuses if the old topic has grown: the writes that a running gateway acknowledges there
/// would never be read.
fn check_no_writers(old: &Config, data: &DataDir, state: &SourceState) -> anyhow::Result<()> {
    let log = offline::log(old, data).map_err(|why| anyhow::anyhow!(why))?;
    for (shard, end) in (0..).map(ShardId).zip(&state.ends) {
        let (_, now) = log.bounds(shard)?;
        ensure!(
            now == *end,
            "shard {shard} of the old topic grows: stop all nodes, the gateways too, and run the \
             same again"
        );
    }
    Ok(())
}
