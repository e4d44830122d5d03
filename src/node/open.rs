//! Opens what a node stands on, and waits for it: after a power cut nothing says which server comes
//! up first.
//!
//! Waited for is what cannot be reached, or is not whole yet. What no waiting mends ends the start
//! at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::net::TcpListener;

use super::continuity::check_log;
use super::gauges::MetricsRenderer;
use super::{DataDir, NodePorts, backends};
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::config::Config;
use crate::gateway::starting;
use crate::persistence::log::{LogError, LogOpenError};
use crate::persistence::store::StoreError;
use crate::telemetry;

/// The first pause between two attempts; it doubles, and each is shortened by chance, so that nodes
/// do not come all at once.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// The longest: how much later than its servers a node may be there.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Reasons that are told once each; a server that finds ever new ones is told of no more.
const MAX_REASONS: usize = 32;

/// Opens what the roles need. While that cannot be reached, health checks are answered, and it is
/// tried again until `server.start_wait` is over.
///
/// # Errors
/// If something is wrong with what was reached, or the time is over.
pub(super) async fn open(
    config: &Config,
    data: &DataDir,
    listener: &TcpListener,
) -> anyhow::Result<NodePorts> {
    let prometheus = metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(telemetry::HISTOGRAM_BUCKETS)
        .and_then(metrics_exporter_prometheus::PrometheusBuilder::install_recorder)
        .context("cannot record metrics")?;
    telemetry::describe();
    let render: MetricsRenderer = Arc::new(move || prometheus.render());
    let error = match attempt(config, data, &render).await? {
        Ok(ports) => return Ok(ports),
        Err(error) => error,
    };
    let what = awaited_server(config, &error).filter(|_| !config.server.start_wait.is_zero());
    let Some(what) = what else { return Err(error) };
    // Known before the first request is answered.
    let why = Arc::new(ArcSwap::from_pointee(waits_for(what)));
    let connections = config.server.max_connections;
    tokio::select! {
        ports = retry_open(config, data, &render, error, &why) => ports,
        never = starting::serve(listener, why.clone(), connections, config.server.header_timeout) => match never {},
    }
}

/// Tries again after `error`, and says why, each reason once.
async fn retry_open(
    config: &Config,
    data: &DataDir,
    render: &MetricsRenderer,
    mut error: anyhow::Error,
    why: &ArcSwap<String>,
) -> anyhow::Result<NodePorts> {
    let (limit, watch) = (config.server.start_wait, Stopwatch::start());
    let (mut pause, mut told) = (PAUSE_MIN, BTreeSet::new());
    loop {
        let Some(what) = awaited_server(config, &error) else { return Err(error) };
        why.store(Arc::new(waits_for(what)));
        let left = limit.saturating_sub(watch.elapsed());
        if left.is_zero() {
            return Err(error.context(format!("waited {limit:?} (server.start_wait) for {what}")));
        }
        // Durations and addresses' ports differ from time to time; the reason is the same.
        let reason: String = format!("{error:#}").chars().filter(|c| !c.is_ascii_digit()).collect();
        if told.len() < MAX_REASONS && told.insert(reason) {
            tracing::warn!(
                "the node waits for {what}, for at most {limit:?} (server.start_wait): {error:#}"
            );
        }
        tokio::time::sleep(jittered(pause)?.min(left)).await;
        pause = (pause * 2).min(PAUSE_MAX);
        match attempt(config, data, render).await? {
            Ok(ports) => {
                tracing::info!(
                    waited_ms = watch.elapsed().as_millis() as u64,
                    "what the node waited for is there"
                );
                return Ok(ports);
            }
            Err(again) => error = again,
        }
    }
}

fn waits_for(what: &str) -> String {
    format!("it waits for {what}, which cannot be used yet; the node's log says why")
}

/// Between a half and the whole of it.
fn jittered(pause: Duration) -> anyhow::Result<Duration> {
    let chance = getrandom::u32()
        .map_err(|e| anyhow::anyhow!("no randomness for the pause between two attempts: {e}"))?;
    Ok(pause / 2 + (pause / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX)))
}

/// One attempt, on a thread of its own: whoever is told to stop leaves it behind.
async fn attempt(
    config: &Config,
    data: &DataDir,
    render: &MetricsRenderer,
) -> anyhow::Result<anyhow::Result<NodePorts>> {
    let (answer, asked) = tokio::sync::oneshot::channel();
    let (config, data, render) = (config.clone(), data.clone(), render.clone());
    let runtime = tokio::runtime::Handle::current();
    let run = move || {
        let _inside = runtime.enter();
        #[expect(
            clippy::let_underscore_must_use,
            reason = "nobody waits for it any more: what was opened is closed again"
        )]
        let _ = answer.send(open_all(&config, &data, render));
    };
    std::thread::Builder::new()
        .name("open".to_owned())
        .spawn(run)
        .context("cannot start a thread")?;
    asked.await.context("opening log and store crashed")
}

fn open_all(
    config: &Config,
    data: &DataDir,
    render_metrics: MetricsRenderer,
) -> anyhow::Result<NodePorts> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let roles = config.node.roles;
    // Nobody is asked for it yet: what is wrong with it is told before anything is waited for.
    let archive = if roles.shards { Some(backends::archive(config, data)?) } else { None };
    // Before the log: who has joined Kafka's group owns shards, and must not wait for a store then.
    let shared = if roles.needs_store() && config.store.url.is_some() {
        let opened = backends::store(config, data, &clock);
        Some(opened.map_err(|error| instead_of(config, &error).unwrap_or(error))?)
    } else {
        None
    };
    let watch = Stopwatch::start();
    let log = backends::log(config, data, &clock, roles.shards)?;
    tracing::debug!(id = %log.id(), shards = log.shard_count(), elapsed_ms = watch.elapsed().as_millis() as u64, "the log is open");
    let store = match shared {
        None if roles.needs_store() => Some(backends::store(config, data, &clock)?),
        shared => shared,
    };
    if let Some(store) = &store {
        check_log(config, data, log.as_ref(), store.as_ref(), archive.as_deref())?;
    }
    Ok(NodePorts { log, store, archive, clock, render_metrics })
}

/// A database that is away must not hide that Kafka refuses this node, which no waiting mends.
fn instead_of(config: &Config, error: &anyhow::Error) -> Option<anyhow::Error> {
    awaited_server(config, error)?;
    backends::check_log_reachable(config)
        .err()
        .filter(|refusal| awaited_server(config, refusal).is_none())
}

const KAFKA: &str = "Kafka (kafka.brokers)";
const DATABASE: &str = "PostgreSQL (store.url)";

/// What may heal by waiting: the server that cannot be reached. `None` if it is something else that
/// failed.
fn awaited_server(config: &Config, error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        if let Some(LogOpenError::Unavailable(_)) = cause.downcast_ref() {
            return Some(KAFKA);
        }
        if let Some(LogError::Io(_)) = cause.downcast_ref() {
            return config.kafka.brokers.is_some().then_some(KAFKA);
        }
        matches!(cause.downcast_ref()?, StoreError::Unavailable(_) if config.store.url.is_some())
            .then_some(DATABASE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SecretUrl;

    #[test]
    fn only_servers_that_are_configured_are_waited_for() {
        let embedded = Config::defaults();
        let shared = Config::defaults().with(|c| {
            c.kafka.brokers = Some("b:9092".to_owned());
            c.store.url = Some(SecretUrl::from("postgres://db/r"));
        });
        let refused = || StoreError::Unavailable("refused".to_owned());
        for (error, what) in [
            (
                anyhow::Error::new(LogOpenError::Unavailable("gone".to_owned()))
                    .context("cannot open the log"),
                Some(KAFKA),
            ),
            (
                anyhow::Error::new(LogOpenError::Invalid("no topic".to_owned()))
                    .context("cannot open the log"),
                None,
            ),
            (
                anyhow::Error::new(LogError::Io("gone".to_owned())).context("where shard 1 ends"),
                Some(KAFKA),
            ),
            (anyhow::Error::new(LogError::Corrupt("x".to_owned())), None),
            (refused().into(), Some(DATABASE)),
            (StoreError::Failed("wrong password".to_owned()).into(), None),
            (anyhow::anyhow!("the disk is full"), None),
        ] {
            assert_eq!(awaited_server(&shared, &error), what, "{error:#}");
            assert!(
                error.is::<LogOpenError>() || awaited_server(&embedded, &error).is_none(),
                "{error:#}"
            );
        }
    }

    #[test]
    fn pauses_are_shortened_by_half_at_most() {
        for _ in 0..100 {
            let pause = jittered(PAUSE_MAX).expect("randomness");
            assert!(PAUSE_MAX / 2 <= pause && pause <= PAUSE_MAX, "{pause:?}");
        }
    }
}
