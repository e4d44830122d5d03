//! Opens a node's backends, with retries: after a power cut, servers come up in any order.
//!
//! Retries while a dependency is unreachable or still starting. Errors that retrying cannot fix
//! abort start-up.

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

/// First back-off between attempts. It doubles, and jitter keeps nodes from retrying in step.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest back-off, which is also how much later than its servers a node may come up.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often the samples of histograms are aggregated. Until then the recorder keeps each of them,
/// also on a node whose `/metrics` nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Reasons that are told once each; a server that finds ever new ones is told of no more.
const MAX_REASONS: usize = 32;

/// Opens what the roles need. While a dependency is unavailable, answers health checks and retries
/// until `server.start_wait` has passed.
///
/// # Errors
/// If a dependency refuses this node or its data is wrong, or if the time is up.
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
    let recorded = prometheus.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            recorded.run_upkeep();
        }
    });
    let render: MetricsRenderer = Arc::new(move || prometheus.render());
    let error = match attempt(config, data, &render).await? {
        Ok(ports) => return Ok(ports),
        Err(error) => error,
    };
    let what = awaited_server(config, &error).filter(|_| !config.server.start_wait.is_zero());
    let Some(what) = what else { return Err(error) };
    // Set before the first request is answered.
    let why = Arc::new(ArcSwap::from_pointee(waits_for(what)));
    let (connections, header_timeout) =
        (config.server.max_connections, config.server.header_timeout);
    tokio::select! {
        ports = retry_open(config, data, &render, error, &why) => ports,
        never = starting::serve(listener, why.clone(), connections, header_timeout) => {
            match never {}
        }
    }
}

/// Retries after `error`; logs each reason once.
async fn retry_open(
    config: &Config,
    data: &DataDir,
    render: &MetricsRenderer,
    mut error: anyhow::Error,
    why: &ArcSwap<String>,
) -> anyhow::Result<NodePorts> {
    let (limit, watch) = (config.server.start_wait, Stopwatch::start());
    let (mut pause, mut logged) = (PAUSE_MIN, BTreeSet::new());
    loop {
        let Some(what) = awaited_server(config, &error) else { return Err(error) };
        why.store(Arc::new(waits_for(what)));
        let left = limit.saturating_sub(watch.elapsed());
        if left.is_zero() {
            return Err(error.context(format!("waited {limit:?} (server.start_wait) for {what}")));
        }
        // Durations and ports differ between attempts of the same cause, so digits are left out.
        let reason: String = format!("{error:#}").chars().filter(|c| !c.is_ascii_digit()).collect();
        if logged.len() < MAX_REASONS && logged.insert(reason) {
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
            Err(next) => error = next,
        }
    }
}

fn waits_for(what: &str) -> String {
    format!("it waits for {what}, which cannot be used yet; the node's log says why")
}

/// Between half of the back-off and all of it.
fn jittered(pause: Duration) -> anyhow::Result<Duration> {
    let chance = getrandom::u32()
        .map_err(|e| anyhow::anyhow!("no randomness for the pause between two attempts: {e}"))?;
    Ok(pause / 2 + (pause / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX)))
}

/// Runs one attempt on a thread of its own, so that a stopping node can abandon it.
async fn attempt(
    config: &Config,
    data: &DataDir,
    render: &MetricsRenderer,
) -> anyhow::Result<anyhow::Result<NodePorts>> {
    let (answer, opened) = tokio::sync::oneshot::channel();
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
    opened.await.context("opening log and store crashed")
}

fn open_all(
    config: &Config,
    data: &DataDir,
    render_metrics: MetricsRenderer,
) -> anyhow::Result<NodePorts> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let roles = config.node.roles;
    // Makes no request yet, so mistakes in its configuration abort before any waiting.
    let needs_archive = roles.needs_archive();
    let archive = if needs_archive { Some(backends::archive(config, data)?) } else { None };
    // The store before the log: joining Kafka's group makes this node an owner of shards, which
    // must not wait for a store then.
    let shared = if roles.needs_store() && config.store.url.is_some() {
        let opened = backends::store(config, data, &clock);
        Some(opened.map_err(|error| instead_of(config, &error).unwrap_or(error))?)
    } else {
        None
    };
    let watch = Stopwatch::start();
    let log = backends::log(config, data, &clock, roles.shards)?;
    let (shards, elapsed_ms) = (log.shard_count(), watch.elapsed().as_millis() as u64);
    tracing::debug!(id = %log.id(), shards, elapsed_ms, "the log is open");
    let store = match shared {
        None if roles.needs_store() => Some(backends::store(config, data, &clock)?),
        shared => shared,
    };
    if let Some(store) = &store {
        check_log(config, data, log.as_ref(), store.as_ref(), archive.as_deref())?;
    }
    Ok(NodePorts { log, store, archive, clock, render_metrics })
}

/// An unreachable database must not hide that Kafka refuses this node, which retrying cannot fix.
fn instead_of(config: &Config, error: &anyhow::Error) -> Option<anyhow::Error> {
    awaited_server(config, error)?;
    backends::check_log_reachable(config)
        .err()
        .filter(|refusal| awaited_server(config, refusal).is_none())
}

const KAFKA: &str = "Kafka (kafka.brokers)";
const DATABASE: &str = "PostgreSQL (store.url)";

/// The server that was unreachable, for which waiting may help; None for any other failure.
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
