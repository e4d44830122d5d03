//! Starts a node: composes its roles, spawns their actors, and opens the port last.

use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::files::NodeFiles;
use super::gateway::{self, GatewayRole};
use super::gauges::Gauges;
use super::mesh::{self, MeshRole};
use super::query::{self, QueryRole};
use super::readiness::Readiness;
use super::replay;
use super::shards::{self, ShardsHandle, ShardsRole};
use super::{Node, NodePorts, TestFaults, disk, limits, name, tree};
use crate::actors::clock_watch;
use crate::actors::live::LiveReader;
use crate::actors::shard_table::ShardTable;
use crate::clock::Stopwatch;
use crate::config::{Config, millis};
use crate::gateway::{Gateway, GatewayDeps, server};
use crate::operate::service::{FillWaits, NoFills};
use crate::operate::status::{NoPeers, PeerStatusSource, StatusReporter};
use crate::shards::series::MetricNameRegistry;
use crate::supervision::supervisor::ChildSpec;

impl Node {
    /// Starts the roles that the configuration names.
    ///
    /// # Errors
    /// If a role lacks a port, or an actor cannot be spawned.
    pub async fn start(
        config: &Config,
        ports: NodePorts,
        files: NodeFiles,
        listener: TcpListener,
        faults: TestFaults,
    ) -> anyhow::Result<Self> {
        let mut roles = NodeRoles::compose(config, &ports, faults).await?;
        let ready = roles.readiness(config, &ports);
        let status = roles.status(config, &ports, &ready);
        if let Some(mesh) = &roles.mesh {
            mesh.publish_status(status.clone());
        }
        let edge = roles.edge(config, &ports, &files, &ready, status);
        let NodeRoles { gateway, shards, mesh, query, replay, table, .. } = roles;
        let (handle, shard_children) =
            shards.map(|shards| (shards.handle, shards.children)).unzip();
        let mut children: Vec<ChildSpec> = Vec::new();
        children.extend(gateway.map(|gateway| gateway.child));
        children.extend(mesh.map(|mesh| mesh.child));
        children.extend(shard_children.into_iter().flatten());
        children.extend(replay);
        let (root, tree_ended) =
            tree::start(children, limits::restarts(config), ports.clock.clone()).await?;
        let tasks = spawn_tasks(config, &ports, files, query, handle.as_ref(), &table);
        let (stop, stopping) = watch::channel(false);
        let address = listener.local_addr().context("cannot read the listening address")?;
        // Last: until here the listener's backlog holds connections that nobody could answer.
        let serving = tokio::spawn(async move {
            let Ok(()) = server::serve(edge, listener, stopping).await;
        });
        Ok(Self {
            address,
            slots: table,
            log: ports.log,
            root,
            tree_ended,
            shards: handle,
            ready,
            drain_delay: config.server.drain_delay,
            tasks,
            stop,
            serving,
        })
    }
}

/// The roles of a node, wired to each other but not running yet.
struct NodeRoles {
    gateway: Option<GatewayRole>,
    shards: Option<ShardsRole>,
    mesh: Option<MeshRole>,
    query: QueryRole,
    replay: Option<ChildSpec>,
    table: Arc<ShardTable>,
    metric_names: Arc<MetricNameRegistry>,
}

impl NodeRoles {
    async fn compose(
        config: &Config,
        ports: &NodePorts,
        faults: TestFaults,
    ) -> anyhow::Result<Self> {
        let (log, clock, roles) = (&ports.log, &ports.clock, config.node.roles);
        let shard_limits = limits::shard(config, log.shard_count(), faults);
        let table = ShardTable::new(log.clone(), log.assignment(), clock.clone());
        let metric_names = limits::census(config);
        let gateway = if roles.gateway { Some(gateway::role(config, ports)?) } else { None };
        let shards = if roles.shards {
            Some(shards::role(config, ports, &table, &metric_names, &shard_limits)?)
        } else {
            None
        };
        // Before the query role, which reads live deltas through the mesh.
        let mesh = mesh::role(config, &table, clock, log.id()).await?;
        // Without a mesh, queries see this node's own shards only.
        let live =
            mesh.as_ref().map_or(table.clone() as Arc<dyn LiveReader>, |mesh| mesh.live.clone());
        let (replay, waits) = if roles.replay {
            let (replays, waits) = replay::role(config, ports, &table)?;
            (Some(replays), waits)
        } else {
            (None, Arc::new(NoFills) as Arc<dyn FillWaits>)
        };
        let query = if roles.query {
            query::role(config, ports, live, shard_limits, waits)?
        } else {
            query::absent()
        };
        Ok(Self { gateway, shards, mesh, query, replay, table, metric_names })
    }

    fn readiness(&mut self, config: &Config, ports: &NodePorts) -> Arc<Readiness> {
        Arc::new(Readiness {
            roles: config.node.roles,
            log: ports.log.clone(),
            appends: self.gateway.as_ref().map(|gateway| gateway.health.clone()),
            slots: self.table.clone(),
            stale_after_ms: millis(config.query.stale_after),
            store: self.query.store.clone(),
            discovery: self.mesh.as_mut().and_then(|mesh| mesh.discovery.take()),
            clock: ports.clock.clone(),
            stopping: false.into(),
        })
    }

    fn status(
        &self,
        config: &Config,
        ports: &NodePorts,
        ready: &Arc<Readiness>,
    ) -> Arc<StatusReporter> {
        let ready = ready.clone();
        let no_peers = || Arc::new(NoPeers) as Arc<dyn PeerStatusSource>;
        Arc::new(StatusReporter {
            name: name(config),
            roles: config.node.roles.names(),
            started: Stopwatch::start(),
            ready: Arc::new(move || ready.check(None)),
            table: self.table.clone(),
            log: ports.log.clone(),
            store: ports.store.clone().map(|store| store as _),
            peers: self.mesh.as_ref().map_or_else(no_peers, |mesh| mesh.peers.clone()),
            clock: ports.clock.clone(),
            stale_after_ms: millis(config.query.stale_after),
        })
    }

    fn edge(
        &self,
        config: &Config,
        ports: &NodePorts,
        files: &NodeFiles,
        ready: &Arc<Readiness>,
        status: Arc<StatusReporter>,
    ) -> Arc<Gateway> {
        let dedup_horizon_ms = millis(config.dedup.horizon);
        let gauges = Gauges { ready: ready.clone(), slots: self.table.clone(), dedup_horizon_ms };
        let (ready, metric_names) = (ready.clone(), self.metric_names.clone());
        // Only nodes with shards load the names of metrics.
        let counts_names = config.node.roles.shards;
        Gateway::new(GatewayDeps {
            submit: self.gateway.as_ref().map(|gateway| gateway.submit.clone()),
            queries: self.query.service.clone(),
            quarantine: self.query.quarantine.clone(),
            expiry: self.query.expiry.clone(),
            replays: self.query.replays.clone(),
            boards: self.query.boards.clone(),
            keys: files.keys.value.clone(),
            mapping: files.mapping.value.clone(),
            origin_policy: limits::origin_policy(config),
            config: Arc::new(config.clone()),
            clock: ports.clock.clone(),
            shard_count: ports.log.shard_count(),
            render_metrics: gauges.wrap(ports.render_metrics.clone()),
            status,
            ready: Arc::new(move |role| ready.check(role)),
            metric_names: Arc::new(move |tenant| counts_names.then(|| metric_names.usage(tenant))),
        })
    }
}

/// Spawns what runs besides the actors. [`Node::stop`] aborts all of it.
fn spawn_tasks(
    config: &Config,
    ports: &NodePorts,
    files: NodeFiles,
    query: QueryRole,
    shards: Option<&ShardsHandle>,
    table: &Arc<ShardTable>,
) -> Vec<JoinHandle<()>> {
    let store = ports.store.clone().map(|store| store as _);
    let disk = disk::DiskWatch::new(config, ports.log.clone(), store);
    let mut tasks =
        vec![tokio::spawn(disk.run()), tokio::spawn(clock_watch::run(ports.clock.clone()))];
    tasks.extend(files.watch());
    tasks.extend(shards.map(|shards| shards.start_ticker(config, table)));
    tasks.extend(query.probe.map(tokio::spawn));
    tasks
}
