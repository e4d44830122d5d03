//! The one actor that other nodes can send to: it answers their questions out of this node's slots.
//!
//! ractor's mailboxes are unbounded, so nothing waits here: a question gets one of the
//! `cluster.max_reads` permits and a thread of its own, or it is refused at once.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorClusterMessage;
use tokio::sync::Semaphore;

use super::server::MeshServer;
use super::wire::{self, PeerReply};
use crate::telemetry;

/// Answers other nodes.
#[derive(Clone)]
pub struct PeerEndpoint {
    /// What answers.
    pub server: MeshServer,
    /// How many questions are answered at once.
    pub permits: Arc<Semaphore>,
}

/// Messages from other nodes. Bytes, so that their version is ours to check.
#[derive(RactorClusterMessage)]
pub enum EndpointMessage {
    /// A question ([`super::wire::PeerRequest`]) and where its answer goes.
    #[rpc]
    Ask(Vec<u8>, RpcReplyPort<Vec<u8>>),
}

impl Actor for PeerEndpoint {
    type Msg = EndpointMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ActorRef<EndpointMessage>,
        (): (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<EndpointMessage>,
        message: EndpointMessage,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let EndpointMessage::Ask(question, reply) = message;
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            metrics::counter!(telemetry::MESH_SERVED, "outcome" => "overloaded").increment(1);
            return send(reply, wire::encode(&PeerReply::Overloaded)?);
        };
        let server = self.server.clone();
        tokio::task::spawn_blocking(move || {
            let answer = server.answer(&question);
            drop(permit);
            metrics::counter!(telemetry::MESH_SERVED, "outcome" => if answer.is_ok() { "answered" } else { "failed" })
                .increment(1);
            match answer {
                // Whoever asked may be gone.
                Ok(answer) => _ = reply.send(answer),
                Err(why) => tracing::error!(%why, "a question of another node has no answer"),
            }
        });
        Ok(())
    }
}

fn send(reply: RpcReplyPort<Vec<u8>>, bytes: Vec<u8>) -> Result<(), ActorProcessingErr> {
    #[expect(clippy::let_underscore_must_use, reason = "whoever asked may be gone")]
    let _ = reply.send(bytes);
    Ok(())
}
