//! Opens the parts of a data directory for reading, even while a server is running on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};

use super::{DataDir, backends};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::persistence::archive::Archive;
use crate::persistence::log::LogReader;
use crate::persistence::log::embedded::EmbeddedLog;
use crate::persistence::store::RollupStore;
use crate::persistence::store::postgres::PostgresStore;
use crate::persistence::store::sqlite::SqliteStore;

/// Opens the store of a configuration, PostgreSQL or SQLite, read-only.
///
/// # Errors
/// If there is none, or it has another version.
pub fn store(config: &Config, data: &DataDir) -> anyhow::Result<Arc<dyn RollupStore>> {
    if let Some(options) = backends::postgres(config) {
        let store: Arc<dyn RollupStore> = PostgresStore::open_read_only(&options)?;
        return Ok(store);
    }
    if !data.store().is_file() {
        bail!(
            "{} is no data directory: it has no store.sqlite; name one with --data",
            data.root().display()
        );
    }
    let store = SqliteStore::open_read_only(data.store())
        .with_context(|| format!("cannot read {}", data.store().display()))?;
    Ok(store)
}

/// Copies the embedded store into a new file, as a consistent snapshot.
///
/// # Errors
/// If there is no store, the file exists, or it cannot be written.
pub fn back_up(config: &Config, data: &DataDir, to: &Path) -> anyhow::Result<()> {
    if backends::postgres(config).is_some() {
        bail!(
            "the store is in PostgreSQL: back up the whole database with `pg_dump \
             --format=custom` (docs/how-to/backup-and-restore.md)"
        );
    }
    if !data.store().is_file() {
        bail!(
            "{} is no data directory: it has no store.sqlite; name one with --data",
            data.root().display()
        );
    }
    Ok(SqliteStore::open_read_only(data.store())?.back_up(to)?)
}

/// Cuts a damaged last commit off the embedded log. Returns the file that keeps the cut bytes and
/// their number, or None if the last commit is intact.
///
/// # Errors
/// If a node is running, there is no log, it is damaged elsewhere, or the disk refuses.
pub fn cut_log(config: &Config, data: &DataDir) -> anyhow::Result<Option<(PathBuf, u64)>> {
    if config.kafka.brokers.is_some() {
        bail!("the log is on Kafka: there is nothing on this disk to cut");
    }
    if !data.log().is_dir() {
        bail!(
            "{} is no data directory: it has no log; name one with --data",
            data.root().display()
        );
    }
    let _lock = super::lock::lock(data.root())?;
    EmbeddedLog::truncate_damaged_tail(&data.log()).map_err(|why| anyhow!(why))
}

/// Opens the archive of a data directory, or the object storage that the configuration names.
///
/// # Errors
/// If its configuration is wrong, or its directory cannot be read.
pub fn archive(config: &Config, data: &DataDir) -> anyhow::Result<Arc<dyn Archive>> {
    super::backends::archive(config, data)
}

/// Opens the log of a data directory in its current state, or Kafka's, read-only.
///
/// # Errors
/// If it is damaged or unreachable.
pub fn log(config: &Config, data: &DataDir) -> Result<Arc<dyn LogReader>, String> {
    if config.kafka.brokers.is_some() {
        let clock: Arc<dyn crate::clock::Clock> = Arc::new(SystemClock);
        let log = backends::kafka_log(config, &clock, false).map_err(|why| format!("{why:#}"))?;
        return Ok(log);
    }
    let log: Arc<dyn LogReader> = EmbeddedLog::open_read_only(&data.log(), Arc::new(SystemClock))?;
    Ok(log)
}
