//! Constructs the concrete backends from the configuration. Only this file, [`super::offline`],
//! [`super::rebuild`] and the migrations (`migrate`, `move_topic`) name them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::{DataDir, permissions};
use crate::clock::Clock;
use crate::config::{Config, SecretUrl, key};
use crate::persistence::archive::Archive;
use crate::persistence::archive::location::TierLocation;
use crate::persistence::archive::objects::{ObjectArchive, TierStore};
use crate::persistence::cache::SharedCache;
use crate::persistence::cache::redis::{self, RedisCache, RedisOptions};
use crate::persistence::log::EventLog;
use crate::persistence::log::embedded::{EmbeddedLog, EmbeddedLogOptions};
use crate::persistence::log::kafka::topic::{TopicAdmin, TopicSpec};
pub use crate::persistence::log::kafka::topic::{TopicDescription, TopicDrift};
use crate::persistence::log::kafka::{KafkaConnection, KafkaLog, KafkaOptions, connectivity};
use crate::persistence::store::RollupStore;
use crate::persistence::store::postgres::{self, PostgresOptions, PostgresStore, RetentionPolicy};
use crate::persistence::store::sqlite::SqliteStore;

/// Payload bytes per commit of the embedded log; the best value measured between 256 KiB and 1 MiB.
const COMMIT_BYTES: usize = 1 << 20;

/// Store timeout for one step of an import and for reading everything once to compare. The timeout
/// of flushes and queries is too short for these.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(3600);

/// Opens the log: Kafka, or the embedded one, which is created if needed. With `owns_shards` the
/// node joins Kafka's consumer group.
///
/// # Errors
/// If it is unreachable, damaged, or does not match the configuration.
pub fn log(
    config: &Config,
    data: &DataDir,
    clock: &Arc<dyn Clock>,
    owns_shards: bool,
) -> anyhow::Result<Arc<dyn EventLog>> {
    match config.kafka.brokers {
        None => embedded_log(config, data, clock),
        Some(_) => kafka_log(config, clock, owns_shards),
    }
}

/// Opens Kafka as the log.
pub(crate) fn kafka_log(
    config: &Config,
    clock: &Arc<dyn Clock>,
    owns_shards: bool,
) -> anyhow::Result<Arc<dyn EventLog>> {
    let spec = topic_spec(config);
    let options = KafkaOptions {
        connection: connection(config)?,
        shard_count: spec.partitions,
        group: owns_shards.then(|| config.kafka.group.clone()),
        session_timeout: config.kafka.session_timeout,
        handover: config.log.handover,
        delivery_timeout: config.kafka.delivery_timeout,
        max_waiting_bytes: config.log.max_waiting.bytes(),
        prefetch_bytes: config.kafka.prefetch.bytes(),
        refresh: config.kafka.refresh,
        safety: config.log.safety,
        replication: spec.replication,
        min_isr: spec.min_isr,
        passed_gaps: config.kafka.passed_gaps.clone(),
        clock: clock.clone(),
    };
    let log = KafkaLog::open(options).context("cannot open the log")?;
    Ok(log)
}

fn connection(config: &Config) -> anyhow::Result<KafkaConnection> {
    let brokers = config
        .kafka
        .brokers
        .clone()
        .context("kafka.brokers is empty: name the brokers, `host:port,host:port`")?;
    Ok(KafkaConnection {
        brokers,
        topic: config.kafka.topic.clone(),
        properties: config.kafka.properties.clone(),
        timeout: config.kafka.timeout,
    })
}

fn topic_spec(config: &Config) -> TopicSpec {
    TopicSpec {
        partitions: config.shards.count,
        replication: config.kafka.replication,
        min_isr: config.kafka.min_isr,
    }
}

/// Checks that Kafka answers, if it is the log.
///
/// # Errors
/// If it is unreachable, or refuses this node.
pub(crate) fn check_log_reachable(config: &Config) -> anyhow::Result<()> {
    match config.kafka.brokers {
        None => Ok(()),
        Some(_) => Ok(connectivity::check_connectivity(&connection(config)?)?),
    }
}

/// The admin client of a reachable cluster. Checking first yields one clear error instead of a
/// timeout of the client.
fn admin(config: &Config) -> anyhow::Result<TopicAdmin> {
    let connection = connection(config)?;
    connectivity::check_connectivity(&connection)?;
    TopicAdmin::new(&connection).map_err(|why| anyhow::anyhow!(why))
}

/// Checks the addresses of servers without contacting them.
///
/// # Errors
/// If an address is malformed; names the key.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    if let Some(options) = postgres(config) {
        options.address()?;
    }
    match &config.query.redis {
        None => Ok(()),
        Some(url) => {
            redis::check(url.expose()).map_err(|why| anyhow::anyhow!("query.redis: {why}"))
        }
    }
}

/// Creates the topic of the log.
///
/// # Errors
/// If Kafka is unreachable, or the topic exists.
pub fn create_topic(config: &Config) -> anyhow::Result<TopicDescription> {
    let random = getrandom::u64()
        .map_err(|e| anyhow::anyhow!("no randomness for the topic's identity: {e}"))?;
    let create = |admin: TopicAdmin| admin.create(&topic_spec(config), random);
    create(admin(config)?).map_err(|why| anyhow::anyhow!(why))
}

/// Whether the topic of the log exists.
///
/// # Errors
/// If Kafka is unreachable.
pub fn topic_exists(config: &Config) -> anyhow::Result<bool> {
    admin(config)?.exists().map_err(|why| anyhow::anyhow!(why))
}

/// Describes the topic of the log and how it differs from the configuration.
///
/// # Errors
/// If Kafka is unreachable, or the topic does not exist.
pub fn describe_topic(config: &Config) -> anyhow::Result<TopicDescription> {
    Ok(admin(config)?.describe(&topic_spec(config))?)
}

fn embedded_log(
    config: &Config,
    data: &DataDir,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Arc<dyn EventLog>> {
    let mut log_id_if_new = [0; 16];
    getrandom::fill(&mut log_id_if_new)
        .map_err(|e| anyhow::anyhow!("no randomness for the log's id: {e}"))?;
    let options = EmbeddedLogOptions {
        dir: data.log(),
        shard_count: config.shards.count,
        segment_bytes: config.log.segment_bytes.bytes(),
        max_waiting_bytes: config.log.max_waiting.bytes(),
        max_commit_bytes: COMMIT_BYTES,
        tail_cache_bytes: config.log.tail_cache.in_memory(),
        log_id_if_new,
        clock: clock.clone(),
    };
    let (log, _) =
        EmbeddedLog::open(options).map_err(|why| anyhow::anyhow!("cannot open the log: {why}"))?;
    Ok(log)
}

/// Opens or creates the store. PostgreSQL starts to drop expired weeks in the background.
///
/// # Errors
/// If it cannot be used, or has another version.
pub fn store(
    config: &Config,
    data: &DataDir,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Arc<dyn RollupStore>> {
    let Some(options) = postgres(config) else {
        // Otherwise the node would create an empty store next to an unfinished rebuild.
        anyhow::ensure!(
            data.store().exists() || !data.rebuilding().exists(),
            "{} is what a rebuild has not finished: run `rollmill rebuild` again, or delete it",
            data.rebuilding().display()
        );
        let store: Arc<dyn RollupStore> =
            SqliteStore::open_with_cache(data.store(), super::limits::match_cache(config))?;
        return Ok(store);
    };
    let store = PostgresStore::open(&options)?;
    // Zero turns the policy off.
    let age = |age: Duration| Some(age).filter(|age| !age.is_zero());
    let keep = RetentionPolicy {
        rollups: age(config.rollups.keep),
        compress: age(config.store.compress_after),
    };
    if !keep.is_idle() {
        store.spawn_maintenance(clock.clone(), keep, super::limits::expiry(config))?;
    }
    Ok(store)
}

/// The options of PostgreSQL; None if the configuration names no database.
pub(crate) fn postgres(config: &Config) -> Option<PostgresOptions> {
    let text = |url: &Option<SecretUrl>| url.as_ref().map(|url| url.expose().to_owned());
    Some(PostgresOptions {
        url: text(&config.store.url)?,
        read_url: text(&config.store.read_url),
        node: super::name(config),
        flush_connections: config.store.flush_connections,
        read_connections: config.store.read_connections,
        connect_timeout: config.store.connect_timeout,
        timeout: config.store.timeout,
        compress_timeout: config.store.compress_timeout,
        lock_timeout: config.store.lock_timeout,
        idle_timeout: config.store.idle_timeout,
        tls_ca: config.store.tls_ca.clone(),
        match_cache: super::limits::match_cache(config),
    })
}

/// Creates or migrates the tables of PostgreSQL; returns the database's address.
///
/// # Errors
/// If no URL is configured, or the role lacks privileges.
pub fn migrate(config: &Config) -> anyhow::Result<String> {
    let options = postgres(config).context(
        "store.url is empty: name the database with --url, as the role that owns the tables",
    )?;
    Ok(PostgresStore::open(&options)?.address())
}

/// The store that `rollmill migrate` copies into. With `dry` no tables are created, and the result
/// is None if there are none.
///
/// # Errors
/// If no URL is configured, or the database cannot be used.
pub(crate) fn import_target(
    config: &Config,
    dry: bool,
) -> anyhow::Result<Option<Arc<PostgresStore>>> {
    let options =
        postgres(config).context("store.url is empty: name the database of the cluster")?;
    let options = PostgresOptions { timeout: options.timeout.max(IMPORT_TIMEOUT), ..options };
    Ok(if dry {
        PostgresStore::open_if_created(&options)?
    } else {
        Some(PostgresStore::open(&options)?)
    })
}

/// The address of the configured database, without the password.
///
/// # Errors
/// If none is configured, or its URL is malformed.
pub(crate) fn store_address(config: &Config) -> anyhow::Result<String> {
    Ok(postgres(config)
        .context("store.url is empty: name the database of the cluster")?
        .address()?)
}

/// SQL statements that create the PostgreSQL roles.
pub fn roles() -> &'static str {
    postgres::ROLES
}

/// Opens or creates the archive of a node.
///
/// # Errors
/// If its configuration is wrong, or its directory cannot be created.
pub fn archive(config: &Config, data: &DataDir) -> anyhow::Result<Arc<dyn Archive>> {
    let (hot, cold) = locations(config, data)?;
    Ok(Arc::new(object_archive(config, &hot, cold.as_ref())?))
}

/// The locations of the hot tier and, if configured, of the cold one.
fn locations(
    config: &Config,
    data: &DataDir,
) -> anyhow::Result<(TierLocation, Option<TierLocation>)> {
    if let Some(path) = &config.archive.credentials_file {
        permissions::check_secret_file(key!(archive.credentials_file), path)?;
    }
    let location = |url: &str| TierLocation {
        url: url.to_owned(),
        endpoint: config
            .archive
            .endpoint
            .as_ref()
            .map_or_else(String::new, |url| url.expose().to_owned()),
        region: config.archive.region.clone().unwrap_or_default(),
        credentials: config.archive.credentials_file.clone(),
        timeout: config.archive.timeout,
    };
    let hot = match &config.archive.url {
        None => {
            std::fs::create_dir_all(data.archive())
                .with_context(|| format!("cannot create {}", data.archive().display()))?;
            location(&format!("file://{}", std::path::absolute(data.archive())?.display()))
        }
        Some(url) => location(url.expose()),
    };
    let cold = config.archive.cold_url.as_ref().map(|url| location(url.expose()));
    Ok((hot, cold))
}

fn object_archive(
    config: &Config,
    hot: &TierLocation,
    cold: Option<&TierLocation>,
) -> anyhow::Result<ObjectArchive> {
    let hot_place = TierStore::new(hot.open().context(key!(archive.url))?);
    let cold_place = match cold {
        None => None,
        Some(cold) => {
            let store = cold.open().context(key!(archive.cold_url))?;
            anyhow::ensure!(
                !cold.is_same_place(hot),
                "archive.cold_url is where archive.url is: name another place"
            );
            Some(
                TierStore::new(store)
                    .with_storage_class(config.archive.cold_class.as_deref().unwrap_or_default()),
            )
        }
    };
    Ok(ObjectArchive::new(hot_place, cold_place)?)
}

/// The archives between which `rollmill migrate` copies.
pub(crate) struct ArchivePair {
    pub from: ObjectArchive,
    pub to: ObjectArchive,
    /// Whether the hot and the cold tier are the same place in both, so that nothing is copied.
    pub unchanged: [bool; 2],
}

/// Opens the archives of an embedded node and of a cluster.
///
/// # Errors
/// If either configuration is wrong, or a directory cannot be created.
pub(crate) fn archives(
    source: (&Config, &DataDir),
    target: &Config,
) -> anyhow::Result<ArchivePair> {
    let from = locations(source.0, source.1)?;
    let to = locations(target, &DataDir::new(&target.data.dir))?;
    let cold = matches!((&from.1, &to.1), (Some(from), Some(to)) if from.is_same_place(to));
    Ok(ArchivePair {
        from: object_archive(source.0, &from.0, from.1.as_ref())
            .context("the archive of the embedded node")?,
        to: object_archive(target, &to.0, to.1.as_ref()).context("the archive of the cluster")?,
        unchanged: [from.0.is_same_place(&to.0), cold],
    })
}

/// The topic of a cluster that is about to be created and filled.
pub(crate) struct TopicTarget {
    pub admin: TopicAdmin,
    pub connection: KafkaConnection,
    /// The partition count and replication that the topic must have.
    pub spec: TopicSpec,
}

/// Connects to Kafka without creating anything.
///
/// # Errors
/// If the settings are refused, or Kafka is unreachable.
pub(crate) fn topic_target(config: &Config) -> anyhow::Result<TopicTarget> {
    Ok(TopicTarget {
        admin: admin(config)?,
        connection: connection(config)?,
        spec: topic_spec(config),
    })
}

/// The cache that nodes share, if one is configured. It may be down: queries work without it.
///
/// # Errors
/// If its URL is malformed.
pub fn shared_cache(config: &Config) -> anyhow::Result<Option<Arc<dyn SharedCache>>> {
    let options =
        RedisOptions { deadline: config.query.redis_timeout, ttl: config.query.redis_keep };
    match &config.query.redis {
        None => Ok(None),
        Some(url) => {
            let cache = RedisCache::open(url.expose(), options)
                .map_err(|why| anyhow::anyhow!("query.redis: {why}"))?;
            Ok(Some(Arc::new(cache)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_knows_a_node_by_its_name() {
        let config = Config::defaults()
            .with(|c| c.store.url = Some(SecretUrl::from("postgres://db/rollmill")));
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert_eq!(postgres(&config).expect("a database").node, machine);
        assert_eq!(
            postgres(&config.with(|c| c.node.name = Some("node-7".to_owned())))
                .expect("a database")
                .node,
            "node-7"
        );
    }
}
