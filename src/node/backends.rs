//! The concrete backends, by configuration: with [`super::offline`] the only place that names them.

use std::sync::Arc;

use anyhow::Context;

use super::DataDir;
use crate::clock::Clock;
use crate::config::Config;
use crate::persistence::archive::Archive;
use crate::persistence::archive::objects::ObjectArchive;
use crate::persistence::log::EventLog;
use crate::persistence::log::embedded::{EmbeddedLog, LogOptions};
use crate::persistence::store::RollupStore;
use crate::persistence::store::postgres::{self, Keep, PostgresOptions, PostgresStore};
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

/// Opens or creates the store; the one in PostgreSQL drops old weeks by itself from now on.
///
/// # Errors
/// If it cannot be used, or is another version's.
pub fn store(config: &Config, data: &DataDir, clock: &Arc<dyn Clock>) -> anyhow::Result<Arc<dyn RollupStore>> {
    let Some(options) = postgres(config) else {
        let store: Arc<dyn RollupStore> = SqliteStore::open(data.store())?;
        return Ok(store);
    };
    let store = PostgresStore::open(&options)?;
    let age = |key: &str| Some(config.duration(key)).filter(|age| !age.is_zero());
    let keep = Keep { rollups: age("rollups.keep"), compress: age("store.compress_after") };
    if !keep.is_idle() {
        store.maintain_regularly(clock.clone(), keep)?;
    }
    Ok(store)
}

/// How PostgreSQL is reached, if the configuration names one.
pub(super) fn postgres(config: &Config) -> Option<PostgresOptions> {
    let text = |key: &str| Some(config.text(key).to_owned()).filter(|text| !text.is_empty());
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Some(PostgresOptions {
        url: text("store.url")?,
        read_url: text("store.read_url"),
        node: machine,
        flush_connections: config.number("store.flush_connections") as usize,
        read_connections: config.number("store.read_connections") as usize,
        connect_timeout: config.duration("store.connect_timeout"),
        timeout: config.duration("store.timeout"),
        lock_timeout: config.duration("store.lock_timeout"),
        idle_timeout: config.duration("store.idle_timeout"),
        tls_ca: config.path("store.tls_ca"),
    })
}

/// Lays or migrates the tables of PostgreSQL; says where.
///
/// # Errors
/// If no URL is configured, or the role may not.
pub fn migrate(config: &Config) -> anyhow::Result<String> {
    let options =
        postgres(config).context("store.url is empty: name the database with --url, as the role that owns the tables")?;
    Ok(PostgresStore::open(&options)?.place())
}

/// Statements that create the roles of PostgreSQL.
pub fn roles() -> &'static str {
    postgres::ROLES
}

/// Opens or creates the archive.
///
/// # Errors
/// If it cannot be reached.
pub fn archive(data: &DataDir) -> anyhow::Result<Arc<dyn Archive>> {
    Ok(Arc::new(ObjectArchive::open_directory(&data.archive())?))
}
