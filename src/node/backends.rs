//! The concrete backends, by configuration: with [`super::offline`] the only place that names them.

use std::sync::Arc;

use super::DataDir;
use crate::clock::Clock;
use crate::config::Config;
use crate::persistence::archive::Archive;
use crate::persistence::archive::objects::ObjectArchive;
use crate::persistence::log::EventLog;
use crate::persistence::log::embedded::{EmbeddedLog, LogOptions};
use crate::persistence::store::RollupStore;
use crate::persistence::store::sqlite::SqliteStore;

/// Payload of one commit of the log; measured best between 256 KiB and 1 MiB.
const COMMIT_BYTES: usize = 1 << 20;

/// Opens or creates the log.
///
/// # Errors
/// If it is damaged, or of another shape than the configuration says.
pub fn log(config: &Config, data: &DataDir, clock: &Arc<dyn Clock>) -> anyhow::Result<Arc<dyn EventLog>> {
    let mut log_id_if_new = [0; 16];
    getrandom::fill(&mut log_id_if_new).map_err(|e| anyhow::anyhow!("no randomness for the log's id: {e}"))?;
    let options = LogOptions {
        dir: data.log(),
        shard_count: config.number("shards.count") as u32,
        segment_bytes: config.number("log.segment_bytes"),
        max_waiting_bytes: config.number("log.max_waiting"),
        max_commit_bytes: COMMIT_BYTES,
        tail_cache_bytes: config.number("log.tail_cache") as usize,
        log_id_if_new,
        clock: clock.clone(),
    };
    let (log, recovery) = EmbeddedLog::open(options).map_err(|why| anyhow::anyhow!("cannot open the log: {why}"))?;
    if recovery.torn_bytes > 0 {
        tracing::info!(bytes = recovery.torn_bytes, "cut a torn commit off the log; it was never acknowledged");
    }
    Ok(log)
}

/// Opens or creates the store.
///
/// # Errors
/// If it cannot be used, or is another version's.
pub fn store(data: &DataDir) -> anyhow::Result<Arc<dyn RollupStore>> {
    let store: Arc<dyn RollupStore> = SqliteStore::open(data.store())?;
    Ok(store)
}

/// Opens or creates the archive.
///
/// # Errors
/// If it cannot be reached.
pub fn archive(data: &DataDir) -> anyhow::Result<Arc<dyn Archive>> {
    Ok(Arc::new(ObjectArchive::open_directory(&data.archive())?))
}
