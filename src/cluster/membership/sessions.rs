//! The state of the membership actor: sessions and dials, and how events change them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ractor::{ActorId, ActorProcessingErr, ActorRef};
use ractor_cluster::node::NodeServerSessionInformation;
use ractor_cluster::{NodeId, NodeServerMessage, NodeSessionMessage};
use tokio::task::AbortHandle;

use super::HANDSHAKE;
use super::dial::{DialPhase, PeerDial};
use crate::clock::Stopwatch;
use crate::cluster::handshake_limit::{AuthGates, MeshConnection};
use crate::cluster::peer::MeshPeer;

/// Concurrent sessions. Clusters are smaller than that, and each session holds buffers.
const MAX_SESSIONS: usize = 256;
/// How many refused hosts are remembered to log each once; beyond this, all are forgotten.
const MAX_REFUSED: usize = 1_024;

/// Aborts a task when dropped.
pub(super) struct TaskGuard(pub(super) AbortHandle);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A session, ready or still in its handshake.
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

/// The state of the membership actor.
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
    /// Ends a session and marks its peer as gone at once, without waiting for the close event.
    pub(super) fn stop(&mut self, id: NodeId, why: &str) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.actor.stop(Some(why.to_owned()));
            if let Some((peer, _heartbeats)) = session.peer.take() {
                peer.mark_gone();
            }
        }
    }

    /// Whether this life of a node is this one, or has an authenticated session.
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
            // The session server has never reported what became of the connection.
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
        // Set before the cast: the session server may report the session as open right away.
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
            tracing::warn!(
                %host,
                "a connection was refused: it does not have this cluster's cookie; it is not \
                 logged again"
            );
        }
    }
}
