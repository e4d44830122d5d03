//! The mesh of a node, if `cluster.listen` names where other nodes come in.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow, bail};
use tokio::net::TcpListener;

use super::ready::Knows;
use super::{limits, name, private, tree};
use crate::actors::live::LiveReader;
use crate::actors::slots::Slots;
use crate::clock::Clock;
use crate::cluster::directory::Directory;
use crate::cluster::membership::{Cookie, Mesh, MeshOptions};
use crate::cluster::peer::Peer;
use crate::cluster::reader::MeshReader;
use crate::cluster::serve::Server;
use crate::cluster::tls::Tls;
use crate::config::{Config, key};
use crate::model::offset::LogId;
use crate::operate::status::{NodeStatus, Peers, Status};
use crate::supervision::supervisor::ChildSpec;

/// The secret in the environment, which no listing of the keys shows.
const COOKIE: &str = "ROLLMILL_CLUSTER_COOKIE";

/// What the mesh adds to a node.
pub(super) struct Role {
    /// Live reads over all nodes.
    pub live: Arc<dyn LiveReader>,
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
    /// Whether all shards are known.
    pub knows: Option<Knows>,
    /// The actor.
    pub child: ChildSpec,
    status: Arc<OnceLock<Arc<Status>>>,
}

impl Role {
    /// From now on, other nodes are told of this one.
    pub(super) fn tell_of(&self, status: Arc<Status>) {
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
    slots: &Arc<Slots>,
    clock: &Arc<dyn Clock>,
    log: LogId,
) -> anyhow::Result<Option<Role>> {
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
        plain_tcp(config, beyond)?;
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
    let status: Arc<OnceLock<Arc<Status>>> = Arc::default();
    let told = status.clone();
    let card = move || {
        told.get()
            .and_then(|status| serde_json::to_vec(&status.this_node()).ok())
            .unwrap_or_default()
    };
    let max_answer = config.cluster.max_answer.in_memory();
    let directory = Arc::new(Directory::default());
    let call_timeout = config.cluster.call_timeout;
    let server =
        Server { slots: slots.clone(), clock: clock.clone(), max_answer, card: Arc::new(card) };
    let live = MeshReader {
        slots: slots.clone(),
        directory: directory.clone(),
        clock: clock.clone(),
        call_timeout,
    };
    let peers = Arc::new(Known(directory.clone()));
    let (here, there) = (slots.clone(), directory.clone());
    let knows = Some(Knows::new(move || {
        here.iter().all(|(shard, slot)| slot.epoch().is_some() || there.knows(shard))
    }));
    let mesh =
        Mesh { options, listener: Arc::new(listener), directory, server, clock: clock.clone() };
    let child = tree::mesh(mesh, limits::restarts(config), clock.clone());
    Ok(Some(Role { live: Arc::new(live), peers, knows, child, status }))
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
    plain_tcp(config, Some(address).filter(is_far).or(far))
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
            private::secret(key!(cluster.key), key)?;
            Some(Tls::load(cert, key, ca).map_err(|why| anyhow!(why))?)
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

fn cookie(config: &Config) -> anyhow::Result<Cookie> {
    let (place, text) = match (&config.cluster.cookie_file, std::env::var(COOKIE)) {
        (Some(path), _) => {
            private::secret(key!(cluster.cookie_file), path)?;
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
    Cookie::new(&text).map_err(|why| anyhow!("{place}: {why}"))
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
fn plain_tcp(config: &Config, beyond: Option<&str>) -> anyhow::Result<()> {
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
fn of_another_cluster(card: NodeStatus, log: LogId) -> NodeStatus {
    let why = format!(
        "it belongs to another cluster, whose log is {log}: give each cluster a cookie of its own"
    );
    NodeStatus { not_ready: Some(why), shards: Vec::new(), stopped: Vec::new(), ..card }
}

/// The other nodes, by their last heartbeats.
struct Known(Arc<Directory>);

impl Peers for Known {
    fn nodes(&self) -> Option<Vec<NodeStatus>> {
        let peers = self.0.peers();
        let there = peers.iter().filter(|peer| peer.is_there());
        // A node that is just starting, or of another release, has no card that can be read.
        let status = |peer: &Arc<Peer>| {
            let card: NodeStatus = serde_json::from_slice(&peer.announced()?.card).ok()?;
            Some(match peer.foreign_log() {
                None => card,
                Some(log) => of_another_cluster(card, log),
            })
        };
        Some(there.filter_map(status).collect())
    }
}
