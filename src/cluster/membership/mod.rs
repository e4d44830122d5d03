//! The actor that manages peers: dials configured addresses until they connect, accepts others,
//! drops silent ones.
//!
//! There is one session per peer: if two nodes dial each other, ractor_cluster elects one. Names
//! carry a random part per process, so that a restarted node is never mistaken for the session that
//! it left behind.

mod dial;
mod heartbeat;
mod options;
mod sessions;

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NodeEventSubscription, NodeId, NodeServer, NodeServerMessage};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub use options::{ClusterCookie, MeshOptions};
pub use sessions::MeshState;

use super::directory::PeerDirectory;
use super::endpoint::PeerEndpoint;
use super::handshake_limit::{AuthGates, MeshConnection};
use super::listener;
use super::peer::MeshPeer;
use super::server::MeshServer;
use super::tls::refuse_all;
use crate::clock::{Clock, Stopwatch};
use crate::telemetry;
use dial::{DialPhase, PeerDial};
use heartbeat::send_heartbeats;
use sessions::TaskGuard;

/// Interval at which dials and sessions are checked.
const TICK: Duration = Duration::from_millis(100);
/// A connection that has not become a session by then is closed.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Bytes that ractor_cluster may add to an answer.
const FRAME_OVERHEAD: usize = 1 << 20;
/// The process group scope of all endpoints.
const SCOPE: &str = "rollmill";

/// The actor that manages the peers of this node.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct MeshActor {
    pub options: Arc<MeshOptions>,
    /// Accepts other nodes. Bound before the actor starts, and kept across its restarts.
    pub listener: Arc<TcpListener>,
    /// Holds the peers that it manages.
    pub directory: Arc<PeerDirectory>,
    /// Serves the requests of other nodes.
    pub server: MeshServer,
    pub clock: Arc<dyn Clock>,
}

/// A step in the life of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEvent {
    /// A connection exists, not authenticated yet.
    Opened,
    /// The peer has shown the cookie.
    Authenticated,
    /// Both sides can look up each other's endpoints.
    Ready,
    /// The session has ended.
    Closed,
}

/// Messages of the membership actor.
#[allow(missing_docs, reason = "the names say it")]
pub enum MeshMessage {
    /// Checks all dials and sessions.
    Tick,
    /// A session event from the session server.
    Session(SessionEvent, Box<NodeServerSessionInformation>),
    /// The dial with this index has a connection.
    DialSucceeded(usize, Box<MeshConnection>),
    /// The dial with this index failed, and why.
    DialFailed(usize, String),
    /// A peer has not answered for `cluster.dead_after`.
    PeerSilent(NodeId),
}

impl ractor::Message for MeshMessage {}

/// Forwards session events to the actor.
struct SessionEvents(ActorRef<MeshMessage>);

impl SessionEvents {
    fn send(&self, event: SessionEvent, session: NodeServerSessionInformation) {
        #[expect(
            clippy::let_underscore_must_use,
            reason = "the actor that is gone takes the sessions with it"
        )]
        let _ = self.0.cast(MeshMessage::Session(event, Box::new(session)));
    }
}

impl NodeEventSubscription for SessionEvents {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        self.send(SessionEvent::Opened, session);
    }
    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        self.send(SessionEvent::Closed, session);
    }
    fn node_session_authenticated(&self, session: NodeServerSessionInformation) {
        self.send(SessionEvent::Authenticated, session);
    }
    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        self.send(SessionEvent::Ready, session);
    }
}

impl Actor for MeshActor {
    type Msg = MeshMessage;
    type State = MeshState;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<MeshMessage>,
        (): (),
    ) -> Result<MeshState, ActorProcessingErr> {
        let mut life = String::new();
        (0..2).try_for_each(|_| {
            write!(life, "{:016x}", getrandom::u64().map_err(|_| std::fmt::Error)?)
        })?;
        let options = &self.options;
        let me = format!("{}@{life}", options.name);
        let permits = Arc::new(Semaphore::new(options.max_reads));
        let endpoint = PeerEndpoint { server: self.server.clone(), permits };
        let (endpoint, _) = Actor::spawn_linked(None, endpoint, (), myself.get_cell()).await?;
        ractor::pg::join_scoped(SCOPE.to_owned(), me.clone(), vec![endpoint.get_cell()]);
        // ractor_cluster insists on a listener of its own; it is bound to loopback and refuses
        // every handshake, because nodes connect to ours.
        let refuses_all = ractor_cluster::IncomingEncryptionMode::Tls(refuse_all()?);
        let secret = options.cookie.0.clone();
        let isolated = Some(ractor_cluster::node::NodeConnectionMode::Isolated);
        let server =
            NodeServer::new(0, secret, options.name.clone(), life, Some(refuses_all), isolated)
                .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
                .with_max_inbound_frame_size((self.server.max_answer + FRAME_OVERHEAD) as u64);
        let (server, _) = Actor::spawn_linked(None, server, (), myself.get_cell()).await?;
        let subscription = Box::new(SessionEvents(myself.clone()));
        server.cast(NodeServerMessage::SubscribeToEvents { id: SCOPE.to_owned(), subscription })?;
        let gates = Arc::new(AuthGates::default());
        let accepting = listener::run(
            self.listener.clone(),
            options.tls.clone(),
            gates.clone(),
            server.clone(),
            HANDSHAKE,
        );
        let accepting = TaskGuard(tokio::spawn(accepting).abort_handle());
        myself.send_interval(TICK, || MeshMessage::Tick);
        let dials = options.peers.iter().map(|address| PeerDial::new(address)).collect();
        let (sessions, refused, endpoint) = (HashMap::new(), HashSet::new(), endpoint.get_id());
        Ok(MeshState {
            server,
            endpoint,
            own_name: me,
            sessions,
            dials,
            refused,
            gates,
            _accepting: accepting,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<MeshMessage>,
        message: MeshMessage,
        state: &mut MeshState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MeshMessage::Tick => self.on_tick(&myself, state),
            MeshMessage::Session(SessionEvent::Opened, info) => state.on_opened(&info),
            MeshMessage::Session(SessionEvent::Authenticated, info) => {
                state.on_authenticated(&info)
            }
            MeshMessage::Session(SessionEvent::Ready, info) => self.on_ready(&myself, state, &info),
            MeshMessage::Session(SessionEvent::Closed, info) => state.on_closed(&info),
            MeshMessage::DialSucceeded(dial, stream) => state.on_dialled(dial, stream)?,
            MeshMessage::DialFailed(dial, why) => state.dials[dial].record_failure(&why),
            MeshMessage::PeerSilent(id) => self.on_silent(state, id),
        }
        let answering = state
            .sessions
            .values()
            .filter(|session| session.peer.as_ref().is_some_and(|(peer, _)| peer.is_available()));
        metrics::gauge!(telemetry::MESH_PEERS).set(answering.count() as f64);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<MeshMessage>,
        event: SupervisionEvent,
        state: &mut MeshState,
    ) -> Result<(), ActorProcessingErr> {
        let ended = match &event {
            SupervisionEvent::ActorFailed(cell, _)
            | SupervisionEvent::ActorTerminated(cell, ..) => cell.get_id(),
            _ => return Ok(()),
        };
        match ended == state.endpoint || ended == state.server.get_id() {
            true => Err(format!("a part of the mesh ended: {event}").into()),
            false => Ok(()),
        }
    }
}

impl MeshActor {
    fn on_tick(&self, myself: &ActorRef<MeshMessage>, state: &mut MeshState) {
        let late: Vec<NodeId> =
            state.sessions.iter().filter(|(_, s)| s.is_late()).map(|(id, _)| *id).collect();
        for id in late {
            state.stop(id, "handshake_late");
        }
        let waiting: Vec<NodeId> = state
            .sessions
            .iter()
            .filter(|(_, s)| s.ready && s.peer.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.add_peer(myself, state, id);
        }
        for dial in 0..state.dials.len() {
            if state.is_due(dial) {
                self.dial(myself, state, dial);
            }
        }
    }

    fn dial(&self, myself: &ActorRef<MeshMessage>, state: &mut MeshState, number: usize) {
        let (dial, gates) = (&mut state.dials[number], state.gates.clone());
        (dial.phase, dial.since) = (DialPhase::Connecting(None), Stopwatch::start());
        let (address, tls, myself) =
            (dial.address.clone(), self.options.tls.clone(), myself.clone());
        tokio::spawn(async move {
            let connected =
                tokio::time::timeout(HANDSHAKE, listener::connect(&address, tls.as_ref(), &gates))
                    .await;
            let sent = match connected {
                Ok(Ok(stream)) => myself.cast(MeshMessage::DialSucceeded(number, Box::new(stream))),
                Ok(Err(why)) => myself.cast(MeshMessage::DialFailed(number, why)),
                Err(_) => myself.cast(MeshMessage::DialFailed(
                    number,
                    format!("no connection within {HANDSHAKE:?}"),
                )),
            };
            // If the actor is gone, its next life dials again.
            drop(sent);
        });
    }

    fn on_ready(
        &self,
        myself: &ActorRef<MeshMessage>,
        state: &mut MeshState,
        info: &NodeServerSessionInformation,
    ) {
        let Some(session) = state.sessions.get_mut(&info.node_id) else { return };
        session.ready = true;
        session.name =
            info.peer_name.as_ref().map(|name| name.name.clone()).or(session.name.take());
        self.add_peer(myself, state, info.node_id);
    }

    /// Looks up the peer's endpoint and starts its heartbeats. Without an endpoint yet, the
    /// next tick tries again.
    fn add_peer(&self, myself: &ActorRef<MeshMessage>, state: &mut MeshState, id: NodeId) {
        let Some(session) = state.sessions.get_mut(&id) else { return };
        let Some(name) = session.name.clone() else { return };
        let of_session =
            |at: ActorId| matches!(at, ActorId::Remote { node_id, .. } if node_id == id);
        let endpoints = ractor::pg::get_scoped_members(&SCOPE.to_owned(), &name);
        let Some(endpoint) = endpoints.into_iter().find(|cell| of_session(cell.get_id())) else {
            return;
        };
        let peer = MeshPeer::new(
            display_name(&name).to_owned(),
            endpoint.into(),
            self.clock.clone(),
            self.options.max_calls,
        );
        let heartbeats = send_heartbeats(peer.clone(), id, self.options.clone(), myself.clone());
        session.peer = Some((peer.clone(), TaskGuard(tokio::spawn(heartbeats).abort_handle())));
        let address = &session.address;
        let incoming = session.incoming;
        tracing::info!(peer = %peer.name, %address, incoming, "another node has joined");
        self.directory.join(peer);
        for dial in state.dials.iter_mut().filter(|dial| dial.phase == DialPhase::Open(id)) {
            (dial.failures, dial.last_logged, dial.peer_name) = (0, None, Some(name.clone()));
        }
    }

    fn on_silent(&self, state: &mut MeshState, id: NodeId) {
        if let Some((peer, _)) = state.sessions.get(&id).and_then(|session| session.peer.as_ref()) {
            let within = self.options.dead_after;
            tracing::warn!(
                peer = %peer.name,
                ?within,
                "another node does not answer, it is not asked any more"
            );
        }
        state.stop(id, "silent");
    }
}

/// The name of a node without the random part, for people.
fn display_name(name: &str) -> &str {
    name.rsplit_once('@').map_or(name, |(name, _)| name)
}
