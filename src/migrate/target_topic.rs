//! The topic of the target: created without an identity, filled, and opened.

use anyhow::{Context, bail, ensure};

use super::quiesce::SourceState;
use super::{MigrationStep, ProgressFn};
use crate::model::offset::LogId;
use crate::node::backends::TopicTarget;
use crate::persistence::log::kafka::topic::{self, TopicDescription};
use crate::persistence::log::kafka::topic_fill::{self, FillError};

/// How often a topic that got too long is recreated. Late records of a killed run can cause that
/// once, but not repeatedly.
const TOPICS: usize = 3;

pub(super) fn describe_if_exists(topic: &TopicTarget) -> anyhow::Result<Option<TopicDescription>> {
    if !topic.admin.exists().map_err(|why| anyhow::anyhow!(why))? {
        return Ok(None);
    }
    Ok(Some(topic.admin.describe(&topic.spec)?))
}

/// Creates the topic if needed, and brings its partitions to the offsets at which the shards ended.
pub(super) fn fill_topic(
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

/// Gives the topic its identity, which opens the cluster.
pub(super) fn open_topic(
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
