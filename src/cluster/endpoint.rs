//! The only actor that other nodes can send to. It answers from this node's shards.
//!
//! ractor's mailboxes are unbounded, so nothing may queue here: a request gets one of the
//! `cluster.max_reads` permits and a blocking thread, or it is refused at once.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorClusterMessage;
use tokio::sync::Semaphore;

use super::server::MeshServer;
use super::wire::{self, PeerReply};
use crate::telemetry;

/// The actor that serves requests of other nodes.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct PeerEndpoint {
    pub server: MeshServer,
    /// One per concurrent request, `cluster.max_reads` in all.
    pub permits: Arc<Semaphore>,
}

/// Messages from other nodes. They are bytes, so that this node checks their version.
#[derive(RactorClusterMessage)]
pub enum EndpointMessage {
    /// An encoded [`super::wire::PeerRequest`], with the port for the reply.
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
            // Before the reply is sent: the requester may send its next request at once.
            drop(permit);
            let outcome = if answer.is_ok() { "answered" } else { "failed" };
            metrics::counter!(telemetry::MESH_SERVED, "outcome" => outcome).increment(1);
            match answer {
                // The requester may be gone.
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
