//! The composition root: what a node is made of, by its roles, and how it starts and stops.
//!
//! What always holds: a node that stops fails `/readyz` before anything else, finishes the requests
//! that it took, lets go of its shards and only then leaves the log.

pub mod backends;
pub(crate) mod continuity;
mod descriptors;
mod disk;
mod gateway;
mod gauges;
pub mod keys;
pub(crate) mod limits;
pub mod lock;
mod mesh;
pub mod migration_marker;
pub mod offline;
mod open;
pub mod permissions;
mod query;
mod readiness;
pub mod rebuild;
pub(crate) mod shards;
pub mod tree;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ractor::ActorRef;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::gauges::{Gauges, MetricsRenderer};
use self::readiness::Readiness;
use crate::actors::clock_watch;
use crate::actors::live::LiveReader;
use crate::actors::shard_table::ShardTable;
use crate::clock::{Clock, Stopwatch};
use crate::config::{Config, millis};
use crate::gateway::{Gateway, GatewayDeps, server};
use crate::operate::status::{NoPeers, PeerStatusSource, StatusReporter};
use crate::persistence::archive::Archive;
use crate::persistence::log::EventLog;
use crate::persistence::store::RollupStore;
use crate::supervision::supervisor::SupervisorMessage;

/// How long connections may take to end at a stop.
const CONNECTIONS: Duration = Duration::from_secs(10);

/// Where the parts of an embedded node are kept.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Below this directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }
    /// The root.
    pub fn root(&self) -> &Path {
        &self.0
    }
    /// The log.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    /// The store.
    pub fn store(&self) -> PathBuf {
        self.0.join("store.sqlite")
    }
    /// What a rebuild of the store has not finished.
    pub fn rebuilding(&self) -> PathBuf {
        self.0.join("store.sqlite.rebuilding")
    }
    /// The archive.
    pub fn archive(&self) -> PathBuf {
        self.0.join("archive")
    }
}

/// Faults for tests of a whole node; a node of the command line has none.
#[derive(Debug, Clone, Copy, Default)]
pub struct TestFaults {
    /// Folding an event of the user with this hash panics.
    pub panic_on_user: Option<u64>,
}

/// Runs a node until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start: names the thing and the way out.
pub fn serve(config: &Config) -> anyhow::Result<()> {
    serve_with(config, TestFaults::default())
}

/// As [`serve`], with faults.
///
/// # Errors
/// As [`serve`].
pub fn serve_with(config: &Config, faults: TestFaults) -> anyhow::Result<()> {
    let config = &descriptors::fit_connections(config);
    let data = DataDir::new(&config.data.dir);
    let _lock = lock::lock(data.root())?;
    migration_marker::refuse(config, &data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(config, &data, faults))
}

/// What `serve` would refuse in this configuration though every key by itself is right: addresses,
/// files and secrets that it names. Nobody is asked for anything.
pub fn refusals(config: &Config) -> Vec<String> {
    let checks = [keys::load(config).map(drop), mesh::check(config), backends::check(config)];
    checks.into_iter().filter_map(Result::err).map(|why| format!("{why:#}")).collect()
}

/// What a node stands on; a role that needs a port which is not there cannot start.
pub struct NodePorts {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// The store; a node that only takes writes needs none.
    pub store: Option<Arc<dyn RollupStore>>,
    /// The archive; only nodes with shards write it.
    pub archive: Option<Arc<dyn Archive>>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Renders `/metrics`.
    pub render_metrics: MetricsRenderer,
}

async fn run(config: &Config, data: &DataDir, faults: TestFaults) -> anyhow::Result<()> {
    let started = Stopwatch::start();
    let keys = keys::load(config)?;
    mesh::check(config)?;
    let listener = listen(config, keys.is_open()).await?;
    let mut stopped = std::pin::pin!(stop_signal());
    outlive_file_limits()?;
    let _reloading = reload_at_hangup(&keys)?;
    let ports = tokio::select! {
        ports = open::open(config, data, &listener) => ports?,
        signal = &mut stopped => {
            tracing::info!("stopping before anything was served");
            return signal;
        }
    };
    let mut node = Node::start(config, ports, keys, listener, faults).await?;
    let (address, startup_ms) = (node.address, started.elapsed().as_millis() as u64);
    tracing::info!(%address, data = %data.root().display(), roles = config.node.roles.names().join(","), startup_ms, "serving");
    let outcome = tokio::select! {
        signal = stopped => signal,
        () = node.await_failure() => Err(anyhow::anyhow!("the supervision tree gave up: see the log for what failed too often")),
    };
    tracing::info!("stopping");
    node.stop().await?;
    outcome
}

/// A running node.
pub struct Node {
    /// Where it serves.
    pub address: SocketAddr,
    /// Where its shards stand.
    pub slots: Arc<ShardTable>,
    log: Arc<dyn EventLog>,
    root: ActorRef<SupervisorMessage>,
    tree_ended: JoinHandle<()>,
    shards: Option<shards::ShardsHandle>,
    ready: Arc<Readiness>,
    drain_delay: Duration,
    /// What runs until the connections have ended.
    tasks: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl Node {
    /// Starts the roles that the configuration names.
    ///
    /// # Errors
    /// If a role lacks a port, or an actor cannot be spawned at all.
    pub async fn start(
        config: &Config,
        ports: NodePorts,
        keys: keys::ApiKeys,
        listener: TcpListener,
        faults: TestFaults,
    ) -> anyhow::Result<Self> {
        let (log, clock) = (ports.log.clone(), ports.clock.clone());
        let (roles, limits) = (config.node.roles, limits::shard(config, log.shard_count(), faults));
        let slots = ShardTable::new(log.clone(), log.assignment(), clock.clone());
        let gateways = if roles.gateway { Some(gateway::role(config, &ports)?) } else { None };
        let census = limits::census(config);
        let shards = if roles.shards {
            Some(shards::role(config, &ports, &slots, &census, &limits)?)
        } else {
            None
        };
        let mut mesh = mesh::role(config, &slots, &clock, log.id()).await?;
        let live =
            mesh.as_ref().map_or(slots.clone() as Arc<dyn LiveReader>, |mesh| mesh.live.clone());
        let queries =
            if roles.query { query::role(config, &ports, live, limits)? } else { query::absent() };
        let ready = Arc::new(Readiness {
            roles,
            log: log.clone(),
            appends: gateways.as_ref().map(|gateways| gateways.health.clone()),
            slots: slots.clone(),
            stale_after_ms: millis(config.query.stale_after),
            store: queries.store.clone(),
            discovery: mesh.as_mut().and_then(|mesh| mesh.discovery.take()),
            clock: clock.clone(),
            stopping: false.into(),
        });
        let status_ready = ready.clone();
        let status = Arc::new(StatusReporter {
            name: name(config),
            roles: roles.names(),
            started: Stopwatch::start(),
            ready: Arc::new(move || status_ready.check(None)),
            table: slots.clone(),
            log: log.clone(),
            store: ports.store.clone(),
            peers: mesh
                .as_ref()
                .map_or(Arc::new(NoPeers) as Arc<dyn PeerStatusSource>, |mesh| mesh.peers.clone()),
            clock: clock.clone(),
            stale_after_ms: millis(config.query.stale_after),
        });
        if let Some(mesh) = &mesh {
            mesh.publish_status(status.clone());
        }
        let gateway_ready = ready.clone();
        let dedup_horizon_ms = millis(config.dedup.horizon);
        let gauges = Gauges { ready: ready.clone(), slots: slots.clone(), dedup_horizon_ms };
        let edge = Gateway::new(GatewayDeps {
            submit: gateways.as_ref().map(|gateways| gateways.submit.clone()),
            queries: queries.service,
            quarantine: queries.quarantine,
            expiry: queries.expiry,
            keys: keys.table.clone(),
            origin_policy: limits::origin_policy(config),
            config: Arc::new(config.clone()),
            clock: clock.clone(),
            shard_count: log.shard_count(),
            render_metrics: gauges.wrap(ports.render_metrics.clone()),
            status,
            ready: Arc::new(move |role| gateway_ready.check(role)),
            metric_names: Arc::new(move |tenant| roles.shards.then(|| census.usage(tenant))),
        });
        let mut children = Vec::new();
        children.extend(gateways.map(|gateways| gateways.child));
        children.extend(mesh.map(|mesh| mesh.child));
        let (handle, shard_children) =
            shards.map(|shards| (shards.handle, shards.children)).unzip();
        children.extend(shard_children.into_iter().flatten());
        let (root, tree_ended) =
            tree::start(children, limits::restarts(config), clock.clone()).await?;
        let disk = disk::DiskWatch::new(config, log.clone(), ports.store.clone());
        let mut tasks = vec![
            tokio::spawn(keys.watch()),
            tokio::spawn(disk.run()),
            tokio::spawn(clock_watch::run(clock)),
        ];
        tasks.extend(
            handle
                .as_ref()
                .map(|handle: &shards::ShardsHandle| handle.start_ticker(config, &slots)),
        );
        tasks.extend(queries.probe.map(tokio::spawn));
        let (stop, stopping) = watch::channel(false);
        let address = listener.local_addr().context("cannot read the listening address")?;
        let serving = tokio::spawn(async move {
            let Ok(()) = server::serve(edge, listener, stopping).await;
        });
        let drain_delay = config.server.drain_delay;
        Ok(Self {
            address,
            slots,
            log,
            root,
            tree_ended,
            shards: handle,
            ready,
            drain_delay,
            tasks,
            stop,
            serving,
        })
    }

    /// Ends when the supervision tree has given up.
    pub async fn await_failure(&mut self) {
        if let Err(error) = (&mut self.tree_ended).await {
            tracing::error!(%error, "the supervision tree crashed");
        }
    }

    /// Stops in order: load balancers notice, requests end, shards are drained and let go, the log
    /// is left.
    ///
    /// # Errors
    /// If closing the log crashes.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.ready.set_stopping();
        tokio::time::sleep(self.drain_delay).await;
        self.stop.send_replace(true);
        if tokio::time::timeout(CONNECTIONS, &mut self.serving).await.is_err() {
            tracing::warn!("some connections did not end within {CONNECTIONS:?} and are cut");
        }
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(shards) = &self.shards {
            shards.relinquish().await;
        }
        self.root.stop(None);
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close()).await.context("closing the log")
    }
}

/// `node.name`, or the name of the machine.
fn name(config: &Config) -> String {
    config
        .node
        .name
        .clone()
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupt = tokio::signal::ctrl_c() => interrupt.context("cannot listen for Ctrl-C"),
    }
}

/// A file that may not grow any more (`ulimit -f`, `LimitFSIZE`) is a full disk, and no reason to
/// end: without a handler SIGXFSZ is.
fn outlive_file_limits() -> anyhow::Result<()> {
    // The handler stays when this is dropped.
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))
        .map(drop)
        .context("cannot listen for SIGXFSZ")
}

/// Reads the keys file again at each SIGHUP, which operators and their tools send to reload. It
/// never ends a node: a closed terminal is no reason to stop.
fn reload_at_hangup(keys: &keys::ApiKeys) -> anyhow::Result<JoinHandle<()>> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let reload = keys.reload();
    Ok(tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!(
                "SIGHUP: the keys file is read again; everything else in the configuration takes \
                 a restart"
            );
            reload.notify_one();
        }
    }))
}

/// Binds; without API keys to loopback only.
async fn listen(config: &Config, open: bool) -> anyhow::Result<TcpListener> {
    let address = &config.server.listen;
    let resolved: Vec<_> = tokio::net::lookup_host(address)
        .await
        .with_context(|| format!("cannot resolve {address}: --listen takes HOST:PORT"))?
        .collect();
    if open && resolved.iter().any(|a| !a.ip().is_loopback()) {
        bail!(
            "{address} can be reached from other machines, but there are no API keys: make some \
             with `rollmill keys add` and set auth.keys_file, or listen on 127.0.0.1"
        );
    }
    if resolved.iter().any(|a| !a.ip().is_loopback()) {
        tracing::warn!(
            %address,
            "keys and events travel over plain HTTP, and this address can be reached from other machines: put a proxy that ends TLS in \
             front (docs/operations.md, \"Security\"), or use a network that nobody else reads"
        );
    }
    TcpListener::bind(&resolved[..]).await.with_context(|| {
        format!(
            "cannot listen on {address}: is another process there? stop it, or choose another \
             address with --listen"
        )
    })
}
