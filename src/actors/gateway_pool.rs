//! The pool of gateway actors: group a request's events by shard, append them as one atomic request, pass the outcome on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::gateway::{Submit, ValidBatch};
use super::records::records_of;
use crate::persistence::log::{AppendError, AppendTicket, EventLog};

/// One gateway actor.
#[derive(Clone)]
pub struct GatewayActor {
    /// The log it appends to.
    pub log: Arc<dyn EventLog>,
    /// Identity of this gateway in its records.
    pub gateway: u32,
}

/// Messages of a gateway actor.
#[derive(Debug)]
pub enum GatewayMessage {
    /// A validated request, and where its outcome goes. The edge bounds how many are in flight.
    Append(ValidBatch, oneshot::Sender<Result<i64, AppendError>>),
}

impl ractor::Message for GatewayMessage {}

impl Actor for GatewayActor {
    type Msg = GatewayMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<GatewayMessage>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<GatewayMessage>, message: GatewayMessage, (): &mut ()) -> Result<(), ActorProcessingErr> {
        let GatewayMessage::Append(batch, reply) = message;
        let ticket = self.log.append(records_of(&batch, self.gateway));
        tokio::spawn(async move {
            let outcome = match ticket {
                Ok(ticket) => ticket.await.unwrap_or_else(|_| Err(AppendError::Unknown("the log went away".to_owned()))),
                Err(error) => Err(error),
            };
            // A client that hung up needs no answer; its retry is absorbed by id.
            let _ = reply.send(outcome);
        });
        Ok(())
    }
}

/// Where the gateway actors are now; a restart replaces the entry.
pub type GatewayRefs = Arc<Vec<ArcSwapOption<ActorRef<GatewayMessage>>>>;

/// Hands requests to the actors in turn.
pub struct GatewayPool {
    refs: GatewayRefs,
    turn: AtomicUsize,
}

impl GatewayPool {
    /// A pool over these places.
    pub fn new(refs: GatewayRefs) -> Arc<Self> {
        Arc::new(Self { refs, turn: AtomicUsize::new(0) })
    }
}

impl Submit for GatewayPool {
    fn submit(&self, batch: ValidBatch) -> Result<AppendTicket, AppendError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let restarting = || AppendError::Closed("the gateway is starting again".to_owned());
        // An actor that is being restarted is passed over.
        let actor = (0..self.refs.len())
            .find_map(|i| self.refs[(turn + i) % self.refs.len()].load_full().filter(|a| alive(a)))
            .ok_or_else(restarting)?;
        let (reply, ticket) = oneshot::channel();
        actor.cast(GatewayMessage::Append(batch, reply)).map_err(|_| restarting())?;
        Ok(ticket)
    }
}

fn alive(actor: &ActorRef<GatewayMessage>) -> bool {
    matches!(actor.get_status(), ractor::ActorStatus::Running | ractor::ActorStatus::Starting)
}
