//! Checks before a migration changes anything: the two configurations agree, and the target is
//! empty or holds the traces of this migration alone.

use anyhow::{bail, ensure};

use super::MigrationSource;
use super::target_topic::describe_if_exists;
use crate::config::{Config, SecretUrl, key, millis};
use crate::node::backends::TopicTarget;
use crate::node::migration_marker::MigrationMarker;
use crate::persistence::store::postgres::{PostgresStore, StoreContents};

/// Checks that the two configurations agree where they must.
pub(super) fn check_compatible(source: &MigrationSource, target: &Config) -> anyhow::Result<()> {
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

pub(super) fn archive_url(config: &Config) -> &str {
    config.archive.url.as_ref().map_or("", SecretUrl::expose)
}

/// Checks that an interrupted migration is resumed with the same target.
pub(super) fn check_same_target(
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

/// Whether the topic has its identity already; refuses a topic that is not this migration's.
pub(super) fn is_open(
    topic: &TopicTarget,
    marker: Option<&MigrationMarker>,
) -> anyhow::Result<bool> {
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
pub(super) fn is_imported(
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
