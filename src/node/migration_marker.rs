//! The mark that a migration leaves in the data directory: what it moves to, and whether it has
//! ended.
//!
//! It is written before anything of the cluster changes, so that whatever is found there later can
//! be told from what is someone else's, and so that the directory is not served again while its
//! events are counted elsewhere.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::model::window::Millis;
use crate::node::DataDir;

/// Its name in the data directory.
const NAME: &str = "MIGRATED";
const VERSION: u32 = 1;

/// A migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationMarker {
    version: u32,
    /// Whether it has ended: the cluster has everything, and may serve.
    pub done: bool,
    /// When it began.
    pub began: Millis,
    /// Id of the Kafka cluster.
    pub cluster: String,
    /// The topic.
    pub topic: String,
    /// The number of the topic's identity.
    pub identity: u64,
    /// The cluster's log id, which follows from the three.
    pub log: String,
    /// The store, without a password.
    pub store: String,
    /// The archive.
    pub archive: String,
}

fn path(data: &DataDir) -> PathBuf {
    data.root().join(NAME)
}

impl MigrationMarker {
    /// Of a migration that begins.
    pub fn new(
        began: Millis,
        (cluster, topic): (String, String),
        identity: u64,
        store: String,
        archive: String,
    ) -> Self {
        let log =
            crate::persistence::log::kafka::topic::log_id(&cluster, &topic, identity).to_string();
        Self { version: VERSION, done: false, began, cluster, topic, identity, log, store, archive }
    }

    /// The mark of a directory, if it has one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(data: &DataDir) -> anyhow::Result<Option<Self>> {
        let path = path(data);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let mark: Self = serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{} is not read by this version of Rollmill: use the one that wrote it",
                path.display()
            )
        })?;
        anyhow::ensure!(
            mark.version == VERSION,
            "{} has version {}, this build reads {VERSION}",
            path.display(),
            mark.version
        );
        Ok(Some(mark))
    }

    /// Writes it, durable when this returns, whole or not at all.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&self, data: &DataDir) -> anyhow::Result<()> {
        let path = path(data);
        let text = serde_json::to_string_pretty(self)? + "\n";
        replace(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Refuses to serve an embedded node from a directory that went to a cluster. A node of the cluster
/// may have its lock there.
///
/// # Errors
/// Says where it went, and the way out.
pub fn refuse(config: &Config, data: &DataDir) -> anyhow::Result<()> {
    if config.kafka.brokers.is_some() {
        return Ok(());
    }
    let Some(mark) = MigrationMarker::read(data)? else { return Ok(()) };
    let (dir, file, topic) = (data.root().display(), path(data), &mark.topic);
    let file = file.display();
    if mark.done {
        bail!(
            "{dir} was migrated to a cluster (topic {topic}, {}): send events there. Events that \
             the cluster has taken since are not here. To go back all the same, stop the cluster \
             for good and remove {file}",
            mark.store
        );
    }
    bail!(
        "a migration of {dir} to a cluster (topic {topic}, {}) has begun and not ended: run the \
         same `rollmill migrate` again, it goes on where it was. To stay here instead, remove \
         {file}, delete the topic and empty the database: no node uses them yet",
        mark.store
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_directory_is_not_served_by_an_embedded_node() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::new(dir.path());
        let config = Config::defaults();
        refuse(&config, &data).expect("no mark");
        let place = ("cluster".to_owned(), "topic".to_owned());
        let mut mark =
            MigrationMarker::new(7, place, 1 << 62, "database x".to_owned(), "s3://b".to_owned());
        for (done, way_out) in
            [(false, "run the same `rollmill migrate` again"), (true, "send events there")]
        {
            mark.done = done;
            mark.write(&data).expect("written");
            assert_eq!(MigrationMarker::read(&data).expect("read"), Some(mark.clone()));
            let refused = refuse(&config, &data).expect_err("marked").to_string();
            assert!(
                refused.contains(way_out)
                    && refused.contains("database x")
                    && refused.contains(NAME),
                "{refused}"
            );
        }
        refuse(&config.with(|c| c.kafka.brokers = Some("k:9092".to_owned())), &data)
            .expect("a node of the cluster only locks it");
        std::fs::write(dir.path().join(NAME), "{}").expect("written");
        assert!(
            refuse(&Config::defaults(), &data).is_err(),
            "what is not understood is not served either"
        );
    }
}
