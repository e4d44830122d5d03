//! The composition root: which parts a node has by its roles, and how it starts and stops.
//!
//! A stopping node first fails `/readyz`, then finishes the requests it has accepted, then
//! relinquishes its shards, and only then leaves the log.

pub mod backends;
pub(crate) mod continuity;
mod descriptors;
mod disk;
pub mod files;
mod gateway;
mod gauges;
pub mod keys;
pub(crate) mod limits;
pub mod lock;
mod mapping;
mod mesh;
pub mod migration_marker;
pub mod offline;
mod open_backends;
pub mod permissions;
mod query;
mod readiness;
pub mod rebuild;
mod replay;
pub(crate) mod shards;
mod signals;
mod start;
pub mod tree;
pub mod watched_file;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ractor::ActorRef;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::files::NodeFiles;
use self::gauges::MetricsRenderer;
use self::readiness::Readiness;
use crate::actors::shard_table::ShardTable;
use crate::clock::{Clock, Stopwatch};
use crate::config::Config;
use crate::persistence::archive::Archive;
use crate::persistence::log::EventLog;
use crate::persistence::store::RollupStore;
use crate::supervision::supervisor::SupervisorMessage;

/// How long connections may take to end during a stop.
const CONNECTIONS: Duration = Duration::from_secs(10);

/// The layout of a data directory.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// The layout below this root directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }
    /// The directory itself, which also holds the lock file.
    pub fn root(&self) -> &Path {
        &self.0
    }
    /// Directory of the embedded log.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    /// File of the SQLite store.
    pub fn store(&self) -> PathBuf {
        self.0.join("store.sqlite")
    }
    /// File of an unfinished rebuild of the store.
    pub fn rebuilding(&self) -> PathBuf {
        self.0.join("store.sqlite.rebuilding")
    }
    /// Directory of the archive, unless `archive.url` names another place.
    pub fn archive(&self) -> PathBuf {
        self.0.join("archive")
    }
}

/// Faults for tests of a whole node; the command line sets none.
#[derive(Debug, Clone, Copy, Default)]
pub struct TestFaults {
    /// The fold panics at events of the user with this hash.
    pub panic_on_user: Option<u64>,
}

/// Runs a node until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start; the message names the cause and the remedy.
pub fn serve(config: &Config) -> anyhow::Result<()> {
    serve_with(config, TestFaults::default())
}

/// Like [`serve`], with faults injected.
///
/// # Errors
/// If it cannot start; the message names the cause and the remedy.
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

/// Everything that `serve` would refuse about the addresses, files and secrets that this
/// configuration names, although each key is valid by itself. Contacts no server.
pub fn refusals(config: &Config) -> Vec<String> {
    let checks = [
        keys::load(config).map(drop),
        mapping::load(config).map(drop),
        mesh::check(config),
        backends::check(config),
    ];
    checks.into_iter().filter_map(Result::err).map(|why| format!("{why:#}")).collect()
}

/// The backends of a node. A role whose port is missing cannot start.
#[allow(missing_docs, reason = "the names say it")]
pub struct NodePorts {
    pub log: Arc<dyn EventLog>,
    /// None on a node that only takes writes.
    pub store: Option<Arc<dyn RollupStore>>,
    /// Written only by nodes with shards; None on others.
    pub archive: Option<Arc<dyn Archive>>,
    pub clock: Arc<dyn Clock>,
    pub render_metrics: MetricsRenderer,
}

async fn run(config: &Config, data: &DataDir, faults: TestFaults) -> anyhow::Result<()> {
    let started = Stopwatch::start();
    let files = NodeFiles::load(config)?;
    mesh::check(config)?;
    let listener = listen(config, files.keys.value.load().is_open()).await?;
    let mut stopped = std::pin::pin!(signals::stop_signal());
    signals::outlive_file_limits()?;
    let _reloading = signals::reload_at_hangup(&files)?;
    // In a select with the signal: start-up can wait long for a dependency, and must be stoppable.
    let ports = tokio::select! {
        ports = open_backends::open(config, data, &listener) => ports?,
        signal = &mut stopped => {
            tracing::info!("stopping before anything was served");
            return signal;
        }
    };
    let mut node = Node::start(config, ports, files, listener, faults).await?;
    let (address, startup_ms) = (node.address, started.elapsed().as_millis() as u64);
    let (data, roles) = (data.root().display(), config.node.roles.names().join(","));
    tracing::info!(%address, %data, roles, startup_ms, "serving");
    let outcome = tokio::select! {
        signal = stopped => signal,
        () = node.await_failure() => Err(anyhow::anyhow!(
            "the supervision tree gave up: see the log for what failed too often"
        )),
    };
    tracing::info!("stopping");
    node.stop().await?;
    outcome
}

/// A running node; see [`Node::stop`] for its end.
pub struct Node {
    /// The address it serves at.
    pub address: SocketAddr,
    /// The shards of the log with their local state.
    pub slots: Arc<ShardTable>,
    log: Arc<dyn EventLog>,
    root: ActorRef<SupervisorMessage>,
    tree_ended: JoinHandle<()>,
    shards: Option<shards::ShardsHandle>,
    ready: Arc<Readiness>,
    drain_delay: Duration,
    /// Aborted once the connections have ended.
    tasks: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl Node {
    /// Completes when the supervision tree has given up.
    pub async fn await_failure(&mut self) {
        if let Err(error) = (&mut self.tree_ended).await {
            tracing::error!(%error, "the supervision tree crashed");
        }
    }

    /// Stops in order: load balancers notice, requests end, shards are drained and relinquished,
    /// the log is closed.
    ///
    /// # Errors
    /// If closing the log panics.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.ready.set_stopping();
        // Load balancers poll /readyz: for this long they may still send requests, which are
        // served.
        tokio::time::sleep(self.drain_delay).await;
        self.stop.send_replace(true);
        if tokio::time::timeout(CONNECTIONS, &mut self.serving).await.is_err() {
            tracing::warn!("some connections did not end within {CONNECTIONS:?} and are cut");
        }
        // Only now: requests that are still running need what these tasks keep up to date.
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(shards) = &self.shards {
            shards.relinquish().await;
        }
        self.root.stop(None);
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close()).await.context("closing the log")
    }
}

/// `node.name`, or the machine's host name.
fn name(config: &Config) -> String {
    config
        .node
        .name
        .clone()
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Binds the server's address. Without API keys only loopback is accepted.
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
            "keys and events travel over plain HTTP, and this address can be reached from other \
             machines: put a proxy that ends TLS in front (docs/how-to/secure-a-node.md), or \
             use a network that nobody else reads"
        );
    }
    TcpListener::bind(&resolved[..]).await.with_context(|| {
        format!(
            "cannot listen on {address}: is another process there? stop it, or choose another \
             address with --listen"
        )
    })
}
