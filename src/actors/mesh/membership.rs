//! The actor that keeps the peers: dials those that are configured again and again, accepts others, drops those that fall silent.
//!
//! One session per peer: ractor_cluster elects one when two nodes dial each other. Names carry a random part for each life of a node,
//! so that a node that comes back is never taken for the session that it has left behind.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NetworkStream, NodeEventSubscription, NodeId, NodeServer, NodeServerMessage, NodeSessionMessage};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::directory::Directory;
use super::door::Door;
use super::listener;
use super::peer::{BeatError, Peer};
use super::serve::Server;
use super::tls::{Tls, refuse_all};
use crate::clock::{Clock, Stopwatch};
use crate::telemetry;

/// Least and longest time until a peer is dialled again.
const REDIAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often the actor looks at its dials and sessions.
const TICK: Duration = Duration::from_millis(100);
/// A connection that is not a session by then is closed.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Least time between heartbeats, however often one is asked for.
const LEAST_GAP: Duration = Duration::from_millis(100);
/// Sessions at once: a cluster has fewer nodes, and each holds buffers.
const MAX_SESSIONS: usize = 256;
/// Addresses whose refusal was logged; beyond it they are logged again.
const MAX_REFUSED: usize = 1_024;
/// A frame holds an answer and what ractor_cluster puts around it.
const FRAME_OVERHEAD: usize = 1 << 20;
/// The group of all doors.
const SCOPE: &str = "rollmill";

/// The secret that nodes of one cluster share.
#[derive(Clone)]
pub struct Cookie(String);

impl std::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookie(…)")
    }
}

impl Cookie {
    /// Fewer bytes could be guessed: the handshake lets whoever listens check guesses offline.
    pub const LEAST_BYTES: usize = 32;

    /// A secret of at least [`Cookie::LEAST_BYTES`] bytes; white space around it is cut.
    ///
    /// # Errors
    /// If it is shorter.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.len() {
            n if n < Self::LEAST_BYTES => Err(format!(
                "the cookie has {n} bytes, at least {} are needed: `openssl rand -hex 32` makes one",
                Self::LEAST_BYTES
            )),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// Its name, for people.
    pub name: String,
    /// `cluster.peers`: the addresses to dial; its own may be among them.
    pub peers: Vec<String>,
    /// The secret.
    pub cookie: Cookie,
    /// TLS on every session, or none at all.
    pub tls: Option<Tls>,
    /// `cluster.heartbeat`.
    pub heartbeat: Duration,
    /// `cluster.dead_after`.
    pub dead_after: Duration,
    /// `cluster.max_calls`.
    pub max_calls: usize,
    /// `cluster.max_reads`.
    pub max_reads: usize,
}

/// The actor.
#[derive(Clone)]
pub struct Mesh {
    /// How the node takes part.
    pub options: Arc<MeshOptions>,
    /// Where other nodes come in: bound before the actor starts, and kept over its restarts.
    pub listener: Arc<TcpListener>,
    /// Whom it keeps.
    pub directory: Arc<Directory>,
    /// Answers other nodes.
    pub server: Server,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// A connection was opened.
    Opened,
    /// It has the secret.
    Authenticated,
    /// Both sides know each other's doors.
    Ready,
    /// It ended.
    Closed,
}

/// Messages of the actor.
pub enum MeshMessage {
    /// Time passes.
    Tick,
    /// Something happened to a session.
    Session(Happened, Box<NodeServerSessionInformation>),
    /// A dial has a connection.
    Dialled(usize, Box<NetworkStream>),
    /// A dial failed.
    DialFailed(usize, String),
    /// A peer has not answered for `cluster.dead_after`.
    Silent(NodeId),
}

impl ractor::Message for MeshMessage {}

/// Ends a task with its owner.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A session, ready or not.
struct Session {
    actor: ActorRef<NodeSessionMessage>,
    name: Option<String>,
    address: String,
    incoming: bool,
    since: Stopwatch,
    authenticated: bool,
    ready: bool,
    peer: Option<(Arc<Peer>, Task)>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some((peer, _)) = &self.peer {
            peer.leave();
        }
    }
}

/// Where a dial stands.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Connecting(Option<String>),
    Open(NodeId),
    /// It leads to this node itself.
    Myself,
}

/// One configured address.
struct Dial {
    address: String,
    phase: Phase,
    since: Stopwatch,
    delay: Duration,
    failures: u32,
    /// Whom it has led to, with the random part of that life.
    leads_to: Option<String>,
    /// What was logged of it last, so that it is logged once.
    said: Option<String>,
}

/// What the actor keeps.
pub struct MeshState {
    server: ActorRef<NodeServerMessage>,
    door: ActorId,
    me: String,
    sessions: HashMap<NodeId, Session>,
    dials: Vec<Dial>,
    refused: HashSet<String>,
    _accepting: Task,
}

/// Tells the actor what the server of sessions says.
struct Events(ActorRef<MeshMessage>);

impl Events {
    fn tell(&self, happened: Happened, session: NodeServerSessionInformation) {
        // The actor that is gone takes the sessions with it.
        let _ = self.0.cast(MeshMessage::Session(happened, Box::new(session)));
    }
}

impl NodeEventSubscription for Events {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        self.tell(Happened::Opened, session);
    }
    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        self.tell(Happened::Closed, session);
    }
    fn node_session_authenticated(&self, session: NodeServerSessionInformation) {
        self.tell(Happened::Authenticated, session);
    }
    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        self.tell(Happened::Ready, session);
    }
}

/// Name of a node for people: without the random part.
fn plain(name: &str) -> &str {
    name.rsplit_once('@').map_or(name, |(name, _)| name)
}

fn random() -> u64 {
    // Zero means no jitter, if the system has none to give.
    getrandom::u64().unwrap_or(0)
}

/// From half to one and a half of the time.
fn jittered(time: Duration) -> Duration {
    time / 2 + time.mul_f64((random() % 1_000) as f64 / 1_000.0)
}

impl Actor for Mesh {
    type Msg = MeshMessage;
    type State = MeshState;
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<MeshMessage>, (): ()) -> Result<MeshState, ActorProcessingErr> {
        let mut life = String::new();
        (0..2).try_for_each(|_| write!(life, "{:016x}", getrandom::u64().map_err(|_| std::fmt::Error)?))?;
        let options = &self.options;
        let me = format!("{}@{life}", options.name);
        let permits = Arc::new(Semaphore::new(options.max_reads));
        let door = Door { server: self.server.clone(), permits };
        let (door, _) = Actor::spawn_linked(None, door, (), myself.get_cell()).await?;
        ractor::pg::join_scoped(SCOPE.to_owned(), me.clone(), vec![door.get_cell()]);
        // The listener that ractor_cluster insists on is no way in: nodes come in by our own.
        let stub = ractor_cluster::IncomingEncryptionMode::Tls(refuse_all()?);
        let secret = options.cookie.0.clone();
        let isolated = Some(ractor_cluster::node::NodeConnectionMode::Isolated);
        let server = NodeServer::new(0, secret, options.name.clone(), life, Some(stub), isolated)
            .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
            .with_max_inbound_frame_size((self.server.max_answer + FRAME_OVERHEAD) as u64);
        let (server, _) = Actor::spawn_linked(None, server, (), myself.get_cell()).await?;
        let subscription = Box::new(Events(myself.clone()));
        server.cast(NodeServerMessage::SubscribeToEvents { id: SCOPE.to_owned(), subscription })?;
        let accepting = listener::run(self.listener.clone(), options.tls.clone(), server.clone(), HANDSHAKE);
        let accepting = Task(tokio::spawn(accepting).abort_handle());
        myself.send_interval(TICK, || MeshMessage::Tick);
        let dials = options.peers.iter().map(|address| Dial::new(address)).collect();
        let (sessions, refused, door) = (HashMap::new(), HashSet::new(), door.get_id());
        Ok(MeshState { server, door, me, sessions, dials, refused, _accepting: accepting })
    }

    async fn handle(
        &self,
        myself: ActorRef<MeshMessage>,
        message: MeshMessage,
        state: &mut MeshState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MeshMessage::Tick => self.on_tick(&myself, state),
            MeshMessage::Session(Happened::Opened, info) => state.on_opened(&info),
            MeshMessage::Session(Happened::Authenticated, info) => state.on_authenticated(&info),
            MeshMessage::Session(Happened::Ready, info) => self.on_ready(&myself, state, &info),
            MeshMessage::Session(Happened::Closed, info) => state.on_closed(&info),
            MeshMessage::Dialled(dial, stream) => state.on_dialled(dial, stream)?,
            MeshMessage::DialFailed(dial, why) => state.dials[dial].failed(&why),
            MeshMessage::Silent(id) => self.on_silent(state, id),
        }
        let answering = state.sessions.values().filter(|session| session.peer.as_ref().is_some_and(|(peer, _)| peer.answers()));
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
            SupervisionEvent::ActorFailed(cell, _) | SupervisionEvent::ActorTerminated(cell, ..) => cell.get_id(),
            _ => return Ok(()),
        };
        match ended == state.door || ended == state.server.get_id() {
            true => Err(format!("a part of the mesh ended: {event}").into()),
            false => Ok(()),
        }
    }
}

impl Mesh {
    fn on_tick(&self, myself: &ActorRef<MeshMessage>, state: &mut MeshState) {
        let late: Vec<NodeId> = state.sessions.iter().filter(|(_, s)| s.is_late()).map(|(id, _)| *id).collect();
        for id in late {
            state.stop(id, "handshake_late");
        }
        let waiting: Vec<NodeId> =
            state.sessions.iter().filter(|(_, s)| s.ready && s.peer.is_none()).map(|(id, _)| *id).collect();
        for id in waiting {
            self.meet(myself, state, id);
        }
        for dial in 0..state.dials.len() {
            if state.is_due(dial) {
                self.dial(myself, &mut state.dials[dial], dial);
            }
        }
    }

    fn dial(&self, myself: &ActorRef<MeshMessage>, dial: &mut Dial, number: usize) {
        (dial.phase, dial.since) = (Phase::Connecting(None), Stopwatch::start());
        let (address, tls, myself) = (dial.address.clone(), self.options.tls.clone(), myself.clone());
        tokio::spawn(async move {
            let connected = tokio::time::timeout(HANDSHAKE, listener::connect(&address, tls.as_ref())).await;
            let told = match connected {
                Ok(Ok(stream)) => myself.cast(MeshMessage::Dialled(number, Box::new(stream))),
                Ok(Err(why)) => myself.cast(MeshMessage::DialFailed(number, why)),
                Err(_) => myself.cast(MeshMessage::DialFailed(number, format!("no connection within {HANDSHAKE:?}"))),
            };
            // The actor that is gone dials again when it is back.
            drop(told);
        });
    }

    fn on_ready(&self, myself: &ActorRef<MeshMessage>, state: &mut MeshState, info: &NodeServerSessionInformation) {
        let Some(session) = state.sessions.get_mut(&info.node_id) else { return };
        session.ready = true;
        session.name = info.peer_name.as_ref().map(|name| name.name.clone()).or(session.name.take());
        self.meet(myself, state, info.node_id);
    }

    /// Looks for the peer's door and begins to ask it for heartbeats.
    fn meet(&self, myself: &ActorRef<MeshMessage>, state: &mut MeshState, id: NodeId) {
        let Some(session) = state.sessions.get_mut(&id) else { return };
        let Some(name) = session.name.clone() else { return };
        let of_session = |at: ActorId| matches!(at, ActorId::Remote { node_id, .. } if node_id == id);
        let doors = ractor::pg::get_scoped_members(&SCOPE.to_owned(), &name);
        let Some(door) = doors.into_iter().find(|cell| of_session(cell.get_id())) else { return };
        let peer = Peer::new(plain(&name).to_owned(), door.into(), self.clock.clone(), self.options.max_calls);
        let beats = beats(peer.clone(), id, self.options.clone(), myself.clone());
        session.peer = Some((peer.clone(), Task(tokio::spawn(beats).abort_handle())));
        tracing::info!(peer = %peer.name, address = %session.address, incoming = session.incoming, "another node has joined");
        self.directory.join(peer);
        for dial in state.dials.iter_mut().filter(|dial| dial.phase == Phase::Open(id)) {
            (dial.failures, dial.said, dial.leads_to) = (0, None, Some(name.clone()));
        }
    }

    fn on_silent(&self, state: &mut MeshState, id: NodeId) {
        if let Some((peer, _)) = state.sessions.get(&id).and_then(|session| session.peer.as_ref()) {
            tracing::warn!(peer = %peer.name, within = ?self.options.dead_after, "another node does not answer, it is not asked any more");
        }
        state.stop(id, "silent");
    }
}

impl Session {
    fn is_late(&self) -> bool {
        self.peer.is_none() && self.since.elapsed() > HANDSHAKE
    }
}

impl Dial {
    fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            phase: Phase::Waiting,
            since: Stopwatch::start(),
            delay: jittered(REDIAL.0),
            failures: 0,
            leads_to: None,
            said: None,
        }
    }

    fn wait(&mut self) {
        let delay = REDIAL.0.saturating_mul(1 << self.failures.min(10)).min(REDIAL.1);
        (self.phase, self.since, self.delay) = (Phase::Waiting, Stopwatch::start(), jittered(delay));
    }

    fn failed(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.said.as_deref() != Some(why) {
            tracing::warn!(address = %self.address, why, "another node cannot be reached, it is dialled again and again");
            self.said = Some(why.to_owned());
        }
        self.wait();
    }
}

impl MeshState {
    /// Ends a session, and forgets its peer at once.
    fn stop(&mut self, id: NodeId, why: &str) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.actor.stop(Some(why.to_owned()));
            if let Some((peer, _beats)) = session.peer.take() {
                peer.leave();
            }
        }
    }

    /// Whether a session with that life of a node has the secret.
    fn is_known(&self, name: &str) -> bool {
        name == self.me || self.sessions.values().any(|s| s.authenticated && s.name.as_deref() == Some(name))
    }

    fn is_due(&self, dial: usize) -> bool {
        let dial = &self.dials[dial];
        match &dial.phase {
            Phase::Waiting => {
                dial.since.elapsed() >= dial.delay && !dial.leads_to.as_deref().is_some_and(|name| self.is_known(name))
            }
            // The server of sessions has not said what became of the connection.
            Phase::Connecting(_) => dial.since.elapsed() > HANDSHAKE * 3,
            Phase::Open(id) => !self.sessions.contains_key(id),
            Phase::Myself => false,
        }
    }

    fn on_dialled(&mut self, dial: usize, stream: Box<NetworkStream>) -> Result<(), ActorProcessingErr> {
        let address = match &*stream {
            NetworkStream::Raw { peer_addr, .. } | NetworkStream::TlsClient { peer_addr, .. } => peer_addr.to_string(),
            NetworkStream::TlsServer { .. } | NetworkStream::External { .. } => return Ok(()),
        };
        // Before the server of sessions can say that it is open.
        self.dials[dial].phase = Phase::Connecting(Some(address));
        Ok(self.server.cast(NodeServerMessage::ConnectionOpened { stream, is_server: false })?)
    }

    fn on_opened(&mut self, info: &NodeServerSessionInformation) {
        let session = Session {
            actor: info.actor.clone(),
            name: None,
            address: info.peer_addr.clone(),
            incoming: info.is_server,
            since: Stopwatch::start(),
            authenticated: false,
            ready: false,
            peer: None,
        };
        self.sessions.insert(info.node_id, session);
        if self.sessions.len() > MAX_SESSIONS {
            self.stop(info.node_id, "too_many_sessions");
        }
        let waits = |dial: &&mut Dial| dial.phase == Phase::Connecting(Some(info.peer_addr.clone()));
        if !info.is_server
            && let Some(dial) = self.dials.iter_mut().find(waits)
        {
            dial.phase = Phase::Open(info.node_id);
        }
    }

    fn on_authenticated(&mut self, info: &NodeServerSessionInformation) {
        if let Some(session) = self.sessions.get_mut(&info.node_id) {
            session.authenticated = true;
            session.name = info.peer_name.as_ref().map(|name| name.name.clone());
        }
    }

    fn on_closed(&mut self, info: &NodeServerSessionInformation) {
        let Some(session) = self.sessions.remove(&info.node_id) else { return };
        let name = info.peer_name.as_ref().map(|name| name.name.clone()).or_else(|| session.name.clone());
        if let Some((peer, _)) = &session.peer {
            tracing::info!(peer = %peer.name, "another node has left");
        }
        let known = session.authenticated || name.as_deref().is_some_and(|name| self.is_known(name));
        if session.incoming && !known {
            self.refused_incoming(&session.address);
        }
        let itself = name.as_deref() == Some(self.me.as_str());
        let Some(dial) = self.dials.iter_mut().find(|dial| dial.phase == Phase::Open(info.node_id)) else { return };
        if itself {
            dial.phase = Phase::Myself;
        } else if known {
            dial.leads_to = name;
            dial.wait();
        } else {
            let why = "it closed the connection before it was authenticated: do both nodes have the same cookie, and both TLS or neither?";
            dial.failed(why);
        }
    }

    fn refused_incoming(&mut self, address: &str) {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
        if self.refused.len() >= MAX_REFUSED {
            self.refused.clear();
        }
        if self.refused.insert(host.clone()) {
            tracing::warn!(%host, "a connection was refused: it does not have this cluster's cookie; it is not logged again");
        }
    }
}

/// Asks a peer for heartbeats until it falls silent.
async fn beats(peer: Arc<Peer>, id: NodeId, options: Arc<MeshOptions>, mesh: ActorRef<MeshMessage>) {
    let mut answered = Stopwatch::start();
    let mut said = None;
    loop {
        let beat = Stopwatch::start();
        match peer.beat(options.dead_after.saturating_sub(answered.elapsed())).await {
            Ok(()) => answered = Stopwatch::start(),
            Err(BeatError::Silent) => {}
            Err(BeatError::Refused(why)) => {
                answered = Stopwatch::start();
                if said.as_ref() != Some(&why) {
                    tracing::error!(peer = %peer.name, %why, "this node and another do not understand each other");
                    said = Some(why);
                }
            }
        }
        if answered.elapsed() >= options.dead_after {
            // The actor that is gone has ended the session.
            let _ = mesh.cast(MeshMessage::Silent(id));
            return;
        }
        tokio::time::sleep(LEAST_GAP.saturating_sub(beat.elapsed())).await;
        let rest = options.heartbeat.saturating_sub(beat.elapsed());
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = peer.nudged.notified() => {}
        }
    }
}
