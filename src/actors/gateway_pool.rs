//! The pool of gateway actors: group a request's events by shard, append them as one atomic
//! request, pass the outcome on.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::gateway::BatchSink;
use super::records::records_of;
use crate::clock::Clock;
use crate::model::batch::ValidBatch;
use crate::model::clock::AppendClock;
use crate::model::window::Millis;
use crate::persistence::log::{AppendError, AppendTicket, LogAppender};

/// A log that failed is taken for one that takes appends again after this time: without requests
/// nobody would find out.
const RETRY_AFTER_MS: i64 = 5_000;

/// Whether the log takes appends, as the gateway actors see it.
#[derive(Debug, Default)]
pub struct AppendHealth(AtomicI64);

impl AppendHealth {
    /// Notes an outcome. A full queue is no failure of the log, and is answered as what it is.
    pub fn record(&self, outcome: &Result<i64, AppendError>, now: Millis) {
        match outcome {
            Ok(_) => self.0.store(0, Ordering::Release),
            Err(AppendError::Overloaded { .. }) => {}
            Err(_) => self.0.store(now, Ordering::Release),
        }
    }

    /// Whether appends may be expected to work at `now`.
    pub fn accepts_appends(&self, now: Millis) -> bool {
        let failed_at = self.0.load(Ordering::Acquire);
        failed_at == 0 || now.saturating_sub(failed_at) >= RETRY_AFTER_MS
    }
}

/// The append clock of a gateway, which all of its actors read.
#[derive(Debug)]
pub struct GatewayClock(Mutex<AppendClock>);

impl GatewayClock {
    /// Begins with what the wall clock shows.
    pub fn start(clock: &dyn Clock) -> Arc<Self> {
        Arc::new(Self(Mutex::new(AppendClock::start(None, clock.reading()))))
    }

    fn now(&self, clock: &dyn Clock) -> Millis {
        // A reading is whole before it is kept: the poison says nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(clock.reading())
    }
}

/// One gateway actor.
#[derive(Clone)]
pub struct GatewayActor {
    /// The log it appends to.
    pub log: Arc<dyn LogAppender>,
    /// Identity of this gateway in its records.
    pub gateway: u32,
    /// What became of the appends.
    pub health: Arc<AppendHealth>,
    /// What it stamps records with.
    pub append_clock: Arc<GatewayClock>,
    /// Time.
    pub clock: Arc<dyn Clock>,
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

    async fn pre_start(
        &self,
        _: ActorRef<GatewayMessage>,
        (): (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<GatewayMessage>,
        message: GatewayMessage,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let GatewayMessage::Append(batch, reply) = message;
        let stamp = self.append_clock.now(&*self.clock);
        let ticket = self.log.append(records_of(&batch, self.gateway, stamp));
        let (health, clock) = (self.health.clone(), self.clock.clone());
        tokio::spawn(async move {
            let outcome = match ticket {
                Ok(ticket) => ticket
                    .await
                    .unwrap_or_else(|_| Err(AppendError::Unknown("the log went away".to_owned()))),
                Err(error) => Err(error),
            };
            health.record(&outcome, clock.uptime());
            #[expect(
                clippy::let_underscore_must_use,
                reason = "a client that hung up needs no answer; its retry is absorbed by id"
            )]
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

impl BatchSink for GatewayPool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_failed_is_tried_again_after_a_while() {
        let health = AppendHealth::default();
        assert!(health.accepts_appends(7));
        health.record(&Err(AppendError::Overloaded { waiting_bytes: 2, limit: 1 }), 10);
        assert!(health.accepts_appends(10));
        health.record(&Err(AppendError::DiskFull), 10);
        assert!(!health.accepts_appends(10));
        health.record(&Ok(11), 11);
        health.record(&Err(AppendError::Closed("gone".to_owned())), 10);
        assert!(!health.accepts_appends(10 + RETRY_AFTER_MS - 1));
        assert!(health.accepts_appends(10 + RETRY_AFTER_MS));
        health.record(&Err(AppendError::Unknown("no answer".to_owned())), 20);
        assert!(!health.accepts_appends(20));
        health.record(&Ok(21), 21);
        assert!(health.accepts_appends(21));
    }
}
