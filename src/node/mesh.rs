//! The mesh of a node, if `cluster.listen` names where other nodes come in.

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

/// The secret in the environment, which no listing of the keys shows.
const COOKIE: &str = "ROLLMILL_CLUSTER_COOKIE";

/// What the mesh adds to a node.
pub(super) struct MeshRole {
    /// Live reads over all nodes.
    pub live: Arc<dyn LiveReader>,
    /// The other nodes.
    pub peers: Arc<dyn PeerStatusSource>,
    /// Whether all shards are known.
    pub discovery: Option<ShardDiscovery>,
    /// The actor.
    pub child: ChildSpec,
    status: Arc<OnceLock<Arc<StatusReporter>>>,
}

impl MeshRole {
    /// From now on, other nodes are told of this one.
    pub(super) fn publish_status(&self, status: Arc<StatusReporter>) {
        #[expect(clippy::let_underscore_must_use, reason = "there is one status for each node")]
        let _ = self.status.set(status);
    }
}

/// The mesh, if the configuration asks for one. Binds its address.
///
/// # Errors
/// Names the key and the way out.
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
    let status: Arc<OnceLock<Arc<StatusReporter>>> = Arc::default();
    let told = status.clone();
    let card = move || {
        told.get()
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
        node_status: Arc::new(card),
    };
    let live = MeshReader {
        table: slots.clone(),
        directory: directory.clone(),
        clock: clock.clone(),
        call_timeout,
    };
    let peers = Arc::new(MeshPeers(directory.clone()));
    let (here, there) = (slots.clone(), directory.clone());
    let knows = Some(ShardDiscovery::new(move || {
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
    Ok(Some(MeshRole { live: Arc::new(live), peers, discovery: knows, child, status }))
}

/// What is wrong with the settings of the mesh is told before anything is waited for.
///
/// # Errors
/// Names the key and the way out.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let Some(address) = config.cluster.listen.as_deref() else { return Ok(()) };
    let options = options(config, LogId([0; 16]))?;
    if options.tls.is_some() {
        return Ok(());
    }
    // The address of a name is known when it is resolved: at the start.
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

/// The host of `host:port`.
fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

fn is_loopback(peer: &str) -> bool {
    let host = host(peer);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Plain TCP is for loopback, unless somebody says that they know what they do.
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

/// A node with our cookie and another log is shown, so that somebody gives it a cookie of its own;
/// its shards are not ours.
fn mark_foreign(card: NodeStatus, log: LogId) -> NodeStatus {
    let why = format!(
        "it belongs to another cluster, whose log is {log}: give each cluster a cookie of its own"
    );
    NodeStatus { not_ready: Some(why), shards: Vec::new(), stopped: Vec::new(), ..card }
}

/// The other nodes, by their last heartbeats.
struct MeshPeers(Arc<PeerDirectory>);

impl PeerStatusSource for MeshPeers {
    fn nodes(&self) -> Option<Vec<NodeStatus>> {
        let peers = self.0.peers();
        let there = peers.iter().filter(|peer| peer.is_alive());
        // A node that is just starting, or of another release, has no card that can be read.
        let status = |peer: &Arc<MeshPeer>| {
            let card: NodeStatus =
                serde_json::from_slice(&peer.announcement()?.node_status).ok()?;
            Some(match peer.foreign_log() {
                None => card,
                Some(log) => mark_foreign(card, log),
            })
        };
        Some(there.filter_map(status).collect())
    }
}
