//! `rollmill topic move`: a cluster goes on in another topic, and every event stays counted once.
//!
//! As with a migration (docs/adr/0017-migrate.md), the offsets are kept: the new topic begins in
//! each partition where the old one ends. The steps, each of which may be killed and is done again,
//! or gone on with, by the next run:
//!
//! 1. this process owns all shards until everything in the old topic is in the store and in the
//!    archive;
//! 2. the new topic is made, without an identity, and filled: no node opens it;
//! 3. the store's checkpoints speak of the new topic, in one transaction: from now on no shard goes
//!    on in the old one;
//! 4. the old topic loses its identity: no node opens it any more;
//! 5. the new topic gets its identity.

use anyhow::{bail, ensure};

use super::quiesce::{SourceState, quiesce_config, source_state};
use super::{MigrationStep, ProgressFn, describe_if_exists, fill_topic};
use crate::config::Config;
use crate::model::offset::{LogId, ShardId};
use crate::node::{DataDir, backends, lock, offline};
use crate::persistence::log::kafka::topic;
use crate::persistence::store::postgres::StoreContents;

/// What went where.
#[derive(Debug, Clone)]
pub struct TopicMoveReport {
    /// Whether anything was done by this run.
    pub already_done: bool,
    /// The old log.
    pub from: LogId,
    /// The new one; none if it was only looked at.
    pub to: Option<LogId>,
    /// Records of the old topic, over all shards: the new one begins behind them.
    pub offsets: u64,
    /// Records that are not in the store, and not in the archive, before it begins.
    pub pending: (u64, u64),
}

/// The configurations of the cluster before and after.
pub struct TopicPair<'a> {
    /// With the old topic.
    pub old: &'a Config,
    /// With the new topic.
    pub new: &'a Config,
}

/// Moves, or goes on with a move that was interrupted; with `dry` it only looks.
///
/// # Errors
/// Names the thing and the way out. What was done stays, and the next run goes on.
pub fn run(
    topics: &TopicPair<'_>,
    dry: bool,
    tell: ProgressFn<'_>,
) -> anyhow::Result<TopicMoveReport> {
    let TopicPair { old, new } = topics;
    let name = |config: &Config| config.kafka.topic.clone();
    ensure!(new.kafka.brokers.is_some(), "the log is not Kafka's: kafka.brokers is empty");
    ensure!(
        name(old) != name(new),
        "kafka.topic is {} before and after: name the new one there, the old one with --from",
        name(new)
    );
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
    let log_of = |identity| topic::log_id(&cluster, &name(new), identity);
    let identity = match describe_if_exists(&topic)? {
        Some(found) if found.log == Some(current) => {
            return Ok(TopicMoveReport {
                already_done: true,
                from: current,
                to: Some(current),
                offsets: 0,
                pending: (0, 0),
            });
        }
        Some(found) => match found.pending_identity {
            Some(identity) => identity,
            None => bail!(
                "the topic {} is there already, and it is another log: name a new one with \
                 kafka.topic",
                name(new)
            ),
        },
        None => topic::migrated_identity(
            getrandom::u64().map_err(|e| anyhow::anyhow!("no randomness for the identity: {e}"))?,
        ),
    };
    let to = log_of(identity);
    let mut moved = TopicMoveReport {
        already_done: false,
        from: current,
        to: Some(to),
        offsets: 0,
        pending: (0, 0),
    };
    if current != to {
        let before = source_state(old, &data)?;
        ensure!(
            before.log == current,
            "the store belongs to log {current}, but the topic {} is log {}",
            name(old),
            before.log
        );
        moved.offsets = before.ends.iter().sum();
        moved.pending = (before.unflushed, before.unarchived);
        if dry {
            moved.to = None;
            return Ok(moved);
        }
        tell(MigrationStep::Quiesce, 0, before.unflushed.max(before.unarchived));
        let stand =
            quiesce_config(old, &data, &mut |done, all| tell(MigrationStep::Quiesce, done, all))?;
        fill_topic(&topic, identity, &stand, tell)?;
        check_no_writers(old, &data, &stand)?;
        store.switch_log(current, to, &stand.ends)?;
    }
    tell(MigrationStep::Open, 0, 1);
    let former = backends::topic_target(old)?;
    if describe_if_exists(&former)?.is_some() {
        former.admin.retire(&former.spec).map_err(|why| anyhow::anyhow!(why))?;
    }
    let opened =
        topic.admin.assign_identity(&topic.spec, identity).map_err(|why| anyhow::anyhow!(why))?;
    ensure!(opened.log == Some(to), "the topic shows another log than {to}");
    tell(MigrationStep::Open, 1, 1);
    Ok(moved)
}

/// A gateway that still runs would have writes acknowledged that nobody reads.
fn check_no_writers(old: &Config, data: &DataDir, stand: &SourceState) -> anyhow::Result<()> {
    let log = offline::log(old, data).map_err(|why| anyhow::anyhow!(why))?;
    for (shard, end) in (0..).map(ShardId).zip(&stand.ends) {
        let (_, now) = log.bounds(shard)?;
        ensure!(
            now == *end,
            "shard {shard} of the old topic grows: stop all nodes, the gateways too, and run the \
             same again"
        );
    }
    Ok(())
}
