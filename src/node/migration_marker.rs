//! The marker that a migration leaves in the data directory: where it goes, and whether it is
//! complete.
//!
//! It is written before anything in the cluster changes. Whatever a later run finds there can thus
//! be told from foreign data, and the directory is not served again while its events are counted
//! elsewhere.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::model::window::Millis;
use crate::node::DataDir;

/// File name in the data directory.
const NAME: &str = "MIGRATED";
const VERSION: u32 = 1;

/// A migration, as stored in the marker file.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationMarker {
    version: u32,
    /// Whether the migration is complete, so that the cluster may serve.
    pub done: bool,
    pub began: Millis,
    /// Id of the target Kafka cluster.
    pub cluster: String,
    pub topic: String,
    /// The random part of the new topic's identity.
    pub identity: u64,
    /// The new log's id, derived from cluster, topic and identity.
    pub log: String,
    /// Address of the target store, without the password.
    pub store: String,
    /// URL of the target archive.
    pub archive: String,
}

fn path(data: &DataDir) -> PathBuf {
    data.root().join(NAME)
}

impl MigrationMarker {
    /// The marker of a migration that starts now.
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

    /// Reads the marker of a directory; None if there is none.
    ///
    /// # Errors
    /// If it cannot be read, or another version wrote it.
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

    /// Writes the marker atomically and durably.
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
    // A rename is durable only once the directory is synced.
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Refuses to serve an embedded node from a directory that was migrated to a cluster. A node of the
/// cluster may use the directory, for its lock.
///
/// # Errors
/// If the directory was or is being migrated; says where to, and the remedy.
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
