//! What the actor keeps: its sessions and dials, and what each event does to them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ractor::{ActorId, ActorProcessingErr, ActorRef};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NodeId, NodeServerMessage, NodeSessionMessage};
use tokio::task::AbortHandle;

use super::HANDSHAKE;
use super::dial::{Dial, Phase};
use crate::clock::Stopwatch;
use crate::cluster::gate::{Connection, Gates};
use crate::cluster::peer::Peer;

/// Sessions at once: a cluster has fewer nodes, and each holds buffers.
const MAX_SESSIONS: usize = 256;
/// Addresses whose refusal was logged; beyond it they are logged again.
const MAX_REFUSED: usize = 1_024;

/// Ends a task with its owner.
pub(super) struct Task(pub(super) AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A session, ready or not.
pub(super) struct Session {
    pub(super) actor: ActorRef<NodeSessionMessage>,
    pub(super) name: Option<String>,
    pub(super) address: String,
    pub(super) incoming: bool,
    pub(super) since: Stopwatch,
    pub(super) authenticated: bool,
    pub(super) ready: bool,
    pub(super) peer: Option<(Arc<Peer>, Task)>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some((peer, _)) = &self.peer {
            peer.leave();
        }
    }
}

/// What the actor keeps.
pub struct MeshState {
    pub(super) server: ActorRef<NodeServerMessage>,
    pub(super) door: ActorId,
    pub(super) me: String,
    pub(super) sessions: HashMap<NodeId, Session>,
    pub(super) dials: Vec<Dial>,
    pub(super) refused: HashSet<String>,
    pub(super) gates: Arc<Gates>,
    pub(super) _accepting: Task,
}

impl Session {
    pub(super) fn is_late(&self) -> bool {
        self.peer.is_none() && self.since.elapsed() > HANDSHAKE
    }
}

impl MeshState {
    /// Ends a session, and forgets its peer at once.
    pub(super) fn stop(&mut self, id: NodeId, why: &str) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.actor.stop(Some(why.to_owned()));
            if let Some((peer, _beats)) = session.peer.take() {
                peer.leave();
            }
        }
    }

    /// Whether a session with that life of a node has the secret.
    pub(super) fn is_known(&self, name: &str) -> bool {
        name == self.me
            || self.sessions.values().any(|s| s.authenticated && s.name.as_deref() == Some(name))
    }

    pub(super) fn is_due(&self, dial: usize) -> bool {
        let dial = &self.dials[dial];
        match &dial.phase {
            Phase::Waiting => {
                dial.since.elapsed() >= dial.delay
                    && !dial.leads_to.as_deref().is_some_and(|name| self.is_known(name))
            }
            // The server of sessions has not said what became of the connection.
            Phase::Connecting(_) => dial.since.elapsed() > HANDSHAKE * 3,
            Phase::Open(id) => !self.sessions.contains_key(id),
            Phase::Myself => false,
        }
    }

    pub(super) fn on_dialled(
        &mut self,
        dial: usize,
        stream: Box<Connection>,
    ) -> Result<(), ActorProcessingErr> {
        let address = stream.peer.clone();
        // Before the server of sessions can say that it is open.
        self.dials[dial].phase = Phase::Connecting(Some(address));
        Ok(self
            .server
            .cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server: false })?)
    }

    pub(super) fn on_opened(&mut self, info: &NodeServerSessionInformation) {
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
        let waits =
            |dial: &&mut Dial| dial.phase == Phase::Connecting(Some(info.peer_addr.clone()));
        if !info.is_server
            && let Some(dial) = self.dials.iter_mut().find(waits)
        {
            dial.phase = Phase::Open(info.node_id);
        }
    }

    pub(super) fn on_authenticated(&mut self, info: &NodeServerSessionInformation) {
        self.gates.open(&info.peer_addr);
        if let Some(session) = self.sessions.get_mut(&info.node_id) {
            session.authenticated = true;
            session.name = info.peer_name.as_ref().map(|name| name.name.clone());
        }
    }

    pub(super) fn on_closed(&mut self, info: &NodeServerSessionInformation) {
        let Some(session) = self.sessions.remove(&info.node_id) else { return };
        let name =
            info.peer_name.as_ref().map(|name| name.name.clone()).or_else(|| session.name.clone());
        if let Some((peer, _)) = &session.peer {
            tracing::info!(peer = %peer.name, "another node has left");
        }
        let known =
            session.authenticated || name.as_deref().is_some_and(|name| self.is_known(name));
        if session.incoming && !known {
            self.refused_incoming(&session.address);
        }
        let itself = name.as_deref() == Some(self.me.as_str());
        let Some(dial) = self.dials.iter_mut().find(|dial| dial.phase == Phase::Open(info.node_id))
        else {
            return;
        };
        if itself {
            dial.phase = Phase::Myself;
        } else if known {
            dial.leads_to = name;
            dial.wait();
        } else {
            let why = "it closed the connection before it was authenticated: do both nodes have \
                       the same cookie, and both TLS or neither?";
            dial.closed(why);
        }
    }

    pub(super) fn refused_incoming(&mut self, address: &str) {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
        if self.refused.len() >= MAX_REFUSED {
            self.refused.clear();
        }
        if self.refused.insert(host.clone()) {
            tracing::warn!(%host, "a connection was refused: it does not have this cluster's cookie; it is not logged again");
        }
    }
}
