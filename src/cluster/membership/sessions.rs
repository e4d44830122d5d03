//! What the actor keeps: its sessions and dials, and what each event does to them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ractor::{ActorId, ActorProcessingErr, ActorRef};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NodeId, NodeServerMessage, NodeSessionMessage};
use tokio::task::AbortHandle;

use super::HANDSHAKE;
use super::dial::{DialPhase, PeerDial};
use crate::clock::Stopwatch;
use crate::cluster::gate::{AuthGates, MeshConnection};
use crate::cluster::peer::MeshPeer;

/// Sessions at once: a cluster has fewer nodes, and each holds buffers.
const MAX_SESSIONS: usize = 256;
/// Addresses whose refusal was logged; beyond it they are logged again.
const MAX_REFUSED: usize = 1_024;

/// Ends a task with its owner.
pub(super) struct TaskGuard(pub(super) AbortHandle);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A session, ready or not.
pub(super) struct PeerSession {
    pub(super) actor: ActorRef<NodeSessionMessage>,
    pub(super) name: Option<String>,
    pub(super) address: String,
    pub(super) incoming: bool,
    pub(super) since: Stopwatch,
    pub(super) authenticated: bool,
    pub(super) ready: bool,
    pub(super) peer: Option<(Arc<MeshPeer>, TaskGuard)>,
}

impl Drop for PeerSession {
    fn drop(&mut self) {
        if let Some((peer, _)) = &self.peer {
            peer.mark_gone();
        }
    }
}

/// What the actor keeps.
pub struct MeshState {
    pub(super) server: ActorRef<NodeServerMessage>,
    pub(super) endpoint: ActorId,
    pub(super) own_name: String,
    pub(super) sessions: HashMap<NodeId, PeerSession>,
    pub(super) dials: Vec<PeerDial>,
    pub(super) refused: HashSet<String>,
    pub(super) gates: Arc<AuthGates>,
    pub(super) _accepting: TaskGuard,
}

impl PeerSession {
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
                peer.mark_gone();
            }
        }
    }

    /// Whether a session with that life of a node has the secret.
    pub(super) fn is_known(&self, name: &str) -> bool {
        name == self.own_name
            || self.sessions.values().any(|s| s.authenticated && s.name.as_deref() == Some(name))
    }

    pub(super) fn is_due(&self, dial: usize) -> bool {
        let dial = &self.dials[dial];
        match &dial.phase {
            DialPhase::Waiting => {
                dial.since.elapsed() >= dial.delay
                    && !dial.peer_name.as_deref().is_some_and(|name| self.is_known(name))
            }
            // The server of sessions has not said what became of the connection.
            DialPhase::Connecting(_) => dial.since.elapsed() > HANDSHAKE * 3,
            DialPhase::Open(id) => !self.sessions.contains_key(id),
            DialPhase::ThisNode => false,
        }
    }

    pub(super) fn on_dialled(
        &mut self,
        dial: usize,
        stream: Box<MeshConnection>,
    ) -> Result<(), ActorProcessingErr> {
        let address = stream.peer.clone();
        // Before the server of sessions can say that it is open.
        self.dials[dial].phase = DialPhase::Connecting(Some(address));
        Ok(self
            .server
            .cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server: false })?)
    }

    pub(super) fn on_opened(&mut self, info: &NodeServerSessionInformation) {
        let session = PeerSession {
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
        let waits = |dial: &&mut PeerDial| {
            dial.phase == DialPhase::Connecting(Some(info.peer_addr.clone()))
        };
        if !info.is_server
            && let Some(dial) = self.dials.iter_mut().find(waits)
        {
            dial.phase = DialPhase::Open(info.node_id);
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
            self.log_refused(&session.address);
        }
        let itself = name.as_deref() == Some(self.own_name.as_str());
        let Some(dial) =
            self.dials.iter_mut().find(|dial| dial.phase == DialPhase::Open(info.node_id))
        else {
            return;
        };
        if itself {
            dial.phase = DialPhase::ThisNode;
        } else if known {
            dial.peer_name = name;
            dial.schedule_redial();
        } else {
            let why = "it closed the connection before it was authenticated: do both nodes have \
                       the same cookie, and both TLS or neither?";
            dial.record_close(why);
        }
    }

    pub(super) fn log_refused(&mut self, address: &str) {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
        if self.refused.len() >= MAX_REFUSED {
            self.refused.clear();
        }
        if self.refused.insert(host.clone()) {
            tracing::warn!(%host, "a connection was refused: it does not have this cluster's cookie; it is not logged again");
        }
    }
}
