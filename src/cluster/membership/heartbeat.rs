//! Heartbeats, which detect silent peers and keep announcements fresh.

use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use ractor_cluster::NodeId;

use super::{MeshMessage, MeshOptions};
use crate::clock::Stopwatch;
use crate::cluster::peer::{HeartbeatError, MeshPeer};
use crate::telemetry::{self, RepeatedLog};

/// Minimum interval between heartbeats, however often one is requested.
const MIN_GAP: Duration = Duration::from_millis(100);

/// Sends heartbeats to a peer until it is silent for `dead_after`.
pub(super) async fn send_heartbeats(
    peer: Arc<MeshPeer>,
    id: NodeId,
    options: Arc<MeshOptions>,
    mesh: ActorRef<MeshMessage>,
) {
    let mut answered = Stopwatch::start();
    let mut logged = None;
    let foreign = RepeatedLog::new();
    loop {
        let sent = Stopwatch::start();
        // The deadline shrinks with the silence, so that a hanging peer is dead after `dead_after`
        // in all.
        match peer.heartbeat(options.dead_after.saturating_sub(answered.elapsed())).await {
            Ok(()) => {
                answered = Stopwatch::start();
                if let Some(other) = peer.check_log(options.log)
                    && foreign.due(&other.to_string()).is_some()
                {
                    metrics::counter!(telemetry::MESH_REFUSED).increment(1);
                    tracing::error!(
                        peer = %peer.name, log = %other, ours = %options.log,
                    "another node has this cluster's cookie and another log: it belongs to \
                         another cluster, and is not asked; give each cluster a cookie of its \
                         own, and look at cluster.peers"
                    );
                }
            }
            Err(HeartbeatError::Silent) => {}
            // It answers, so it is alive; only its answers are of no use.
            Err(HeartbeatError::Refused(why)) => {
                answered = Stopwatch::start();
                if logged.as_ref() != Some(&why) {
                    tracing::error!(
                        peer = %peer.name,
                        %why,
                        "this node and another do not understand each other"
                    );
                    logged = Some(why);
                }
            }
        }
        if answered.elapsed() >= options.dead_after {
            #[expect(
                clippy::let_underscore_must_use,
                reason = "the actor that is gone has ended the session"
            )]
            let _ = mesh.cast(MeshMessage::PeerSilent(id));
            return;
        }
        tokio::time::sleep(MIN_GAP.saturating_sub(sent.elapsed())).await;
        let rest = options.heartbeat.saturating_sub(sent.elapsed());
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = peer.poke.notified() => {}
        }
    }
}
