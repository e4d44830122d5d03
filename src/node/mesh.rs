//! The mesh role: connects a node to the others if `cluster.listen` is set.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow, bail};
use tokio::net::TcpListener;

use super::readiness::ShardDiscovery;
use super::{limits, name, permissions, tree};
use crate::actors::live::LiveReader;
use crate::actors::shard_table::ShardTable;
use crate::clock::Clock;
use crate::cluster::directory::PeerDirectory;
use crate::cluster::membership::{ClusterCookie, MeshActor, MeshOptions};
use crate::cluster::peer::MeshPeer;
use crate::cluster::reader::MeshReader;
use crate::cluster::server::MeshServer;
use crate::cluster::tls::MeshTls;
use crate::config::{Config, key};
use crate::model::offset::LogId;
use crate::operate::status::{NodeStatus, PeerStatusSource, StatusReporter};
use crate::supervision::supervisor::ChildSpec;

/// Environment variable of the cookie. Not a configuration key, so that no listing
/// of keys shows it.
const COOKIE: &str = "ROLLMILL_CLUSTER_COOKIE";

/// The parts of a node with a mesh.
pub(super) struct MeshRole {
    /// Reads live deltas from the shards of all nodes.
    pub live: Arc<dyn LiveReader>,
    /// The status of the other nodes.
    pub peers: Arc<dyn PeerStatusSource>,
    /// Whether an owner of every shard has been seen; taken by [`super::start`].
    pub discovery: Option<ShardDiscovery>,
    /// The supervisor of the mesh actor.
    pub child: ChildSpec,
    status: Arc<OnceLock<Arc<StatusReporter>>>,
}

impl MeshRole {
    /// Publishes this node's status in its heartbeats.
    pub(super) fn publish_status(&self, status: Arc<StatusReporter>) {
        #[expect(clippy::let_underscore_must_use, reason = "there is one status for each node")]
        let _ = self.status.set(status);
    }
}

/// Composes the mesh and binds its address; None if it is not configured.
///
/// # Errors
/// If the settings are refused or the address cannot be bound; names the key and the remedy.
pub(super) async fn role(
    config: &Config,
    slots: &Arc<ShardTable>,
    clock: &Arc<dyn Clock>,
    log: LogId,
) -> anyhow::Result<Option<MeshRole>> {
    let Some(address) = config.cluster.listen.as_deref() else { return Ok(None) };
    let options = Arc::new(options(config, log)?);
    let resolved: Vec<_> = tokio::net::lookup_host(address)
        .await
        .with_context(|| format!("cannot resolve cluster.listen = {address}: it takes HOST:PORT"))?
        .collect();
    if options.tls.is_none() {
        let listen_is_near = resolved.iter().all(|a| a.ip().is_loopback());
        let far = options.peers.iter().find(|peer| !is_loopback(peer));
        let beyond = (!listen_is_near).then_some(address).or(far.map(String::as_str));
        check_plain_tcp(config, beyond)?;
        if let Some(address) = beyond {
            tracing::warn!(
                address,
                "nodes speak plain TCP (cluster.insecure): whoever can reach the network reads \
                 and alters it"
            );
        }
    }
    let listener = TcpListener::bind(&resolved[..]).await;
    let listener = listener.with_context(|| {
        format!("cannot listen on cluster.listen = {address}: is another process there?")
    })?;
    // Set later by `publish_status`: the status needs the mesh, and the mesh sends the status.
    let status: Arc<OnceLock<Arc<StatusReporter>>> = Arc::default();
    let published = status.clone();
    let encode_status = move || {
        published
            .get()
            .and_then(|status| serde_json::to_vec(&status.this_node()).ok())
            .unwrap_or_default()
    };
    let max_answer = config.cluster.max_answer.in_memory();
    let directory = Arc::new(PeerDirectory::default());
    let call_timeout = config.cluster.call_timeout;
    let server = MeshServer {
        table: slots.clone(),
        clock: clock.clone(),
        max_answer,
        node_status: Arc::new(encode_status),
    };
    let live = MeshReader {
        table: slots.clone(),
        directory: directory.clone(),
        clock: clock.clone(),
        call_timeout,
    };
    let peers = Arc::new(MeshPeers(directory.clone()));
    let (here, there) = (slots.clone(), directory.clone());
    let discovery = Some(ShardDiscovery::new(move || {
        here.iter().all(|(shard, slot)| slot.epoch().is_some() || there.is_owned(shard))
    }));
    let mesh = MeshActor {
        options,
        listener: Arc::new(listener),
        directory,
        server,
        clock: clock.clone(),
    };
    let child = tree::mesh(mesh, limits::restarts(config), clock.clone());
    Ok(Some(MeshRole { live: Arc::new(live), peers, discovery, child, status }))
}

/// Checks the mesh's settings before anything is contacted.
///
/// # Errors
/// If a setting is refused; names the key and the remedy.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let Some(address) = config.cluster.listen.as_deref() else { return Ok(()) };
    let options = options(config, LogId([0; 16]))?;
    if options.tls.is_some() {
        return Ok(());
    }
    // Host names are resolved, and checked, at start-up.
    let is_far = |address: &&str| host(address).parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback());
    let far = options.peers.iter().map(String::as_str).find(|peer| !is_loopback(peer));
    check_plain_tcp(config, Some(address).filter(is_far).or(far))
}

fn options(config: &Config, log: LogId) -> anyhow::Result<MeshOptions> {
    let peers = config.cluster.peers.0.clone();
    if let Some(bad) = peers
        .iter()
        .find(|peer| peer.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()))
    {
        bail!("cluster.peers holds {bad:?}: it takes host:port,host:port");
    }
    let tls = match (&config.cluster.cert, &config.cluster.key, &config.cluster.ca) {
        (Some(cert), Some(key), Some(ca)) => {
            permissions::check_secret_file(key!(cluster.key), key)?;
            Some(MeshTls::load(cert, key, ca).map_err(|why| anyhow!(why))?)
        }
        _ => None,
    };
    Ok(MeshOptions {
        log,
        name: name(config),
        peers,
        cookie: cookie(config)?,
        tls,
        heartbeat: config.cluster.heartbeat,
        dead_after: config.cluster.dead_after,
        max_calls: config.cluster.max_calls,
        max_reads: config.cluster.max_reads,
    })
}

fn cookie(config: &Config) -> anyhow::Result<ClusterCookie> {
    let (place, text) = match (&config.cluster.cookie_file, std::env::var(COOKIE)) {
        (Some(path), _) => {
            permissions::check_secret_file(key!(cluster.cookie_file), path)?;
            let text = std::fs::read_to_string(path);
            let place = format!("cluster.cookie_file {}", path.display());
            (place.clone(), text.with_context(|| format!("cannot read {place}"))?)
        }
        (None, Ok(text)) => (format!("environment {COOKIE}"), text),
        (None, Err(_)) => bail!(
            "cluster.listen needs the cluster's secret: `openssl rand -hex 32 > cookie`, the same \
             file on all nodes, and its path in cluster.cookie_file"
        ),
    };
    ClusterCookie::new(&text).map_err(|why| anyhow!("{place}: {why}"))
}

/// The host part of `host:port`, without the brackets of IPv6.
fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

fn is_loopback(peer: &str) -> bool {
    let host = host(peer);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Allows plain TCP on loopback only, unless `cluster.insecure` is set.
fn check_plain_tcp(config: &Config, beyond: Option<&str>) -> anyhow::Result<()> {
    let Some(beyond) = beyond else { return Ok(()) };
    if !config.cluster.insecure {
        bail!(
            "{beyond} is beyond loopback, and nodes would speak plain TCP: set cluster.cert, \
             cluster.key and cluster.ca, or cluster.insecure = true if nobody else can reach this \
             network"
        );
    }
    Ok(())
}

/// Marks the status of a node that has our cookie but another log. It is shown so that an operator
/// gives it a cookie of its own; its shards are not ours.
fn mark_foreign(status: NodeStatus, log: LogId) -> NodeStatus {
    let why = format!(
        "it belongs to another cluster, whose log is {log}: give each cluster a cookie of its own"
    );
    NodeStatus { not_ready: Some(why), shards: Vec::new(), stopped: Vec::new(), ..status }
}

/// The other nodes, by their latest heartbeats.
struct MeshPeers(Arc<PeerDirectory>);

impl PeerStatusSource for MeshPeers {
    fn nodes(&self) -> Option<Vec<NodeStatus>> {
        let peers = self.0.peers();
        let there = peers.iter().filter(|peer| peer.is_alive());
        // A node that is just starting, or of another release, has no status that can be parsed.
        let status_of = |peer: &Arc<MeshPeer>| {
            let status: NodeStatus =
                serde_json::from_slice(&peer.announcement()?.node_status).ok()?;
            Some(match peer.foreign_log() {
                None => status,
                Some(log) => mark_foreign(status, log),
            })
        };
        Some(there.filter_map(status_of).collect())
    }
}
