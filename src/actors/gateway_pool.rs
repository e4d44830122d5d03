//! The pool of gateway actors. Each groups a request's events by shard, appends them as one atomic
//! request and passes on the outcome.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::gateway::BatchSink;
use super::record_builder::records_of;
use crate::clock::Clock;
use crate::model::batch::ValidBatch;
use crate::model::clock::AppendClock;
use crate::model::window::Millis;
use crate::persistence::log::{AppendError, AppendTicket, LogAppender};

/// After this time a failed log counts as available again: without requests nobody would notice
/// that it has recovered.
const RETRY_AFTER_MS: i64 = 5_000;

/// Whether the log accepts appends, as observed by the gateway actors.
#[derive(Debug, Default)]
pub struct AppendHealth(AtomicI64);

impl AppendHealth {
    /// Records an outcome. `Overloaded` is ignored: a full queue is not a failure of the log, and
    /// clients get an answer of its own for it.
    pub fn record(&self, outcome: &Result<i64, AppendError>, now: Millis) {
        match outcome {
            Ok(_) => self.0.store(0, Ordering::Release),
            Err(AppendError::Overloaded { .. }) => {}
            Err(_) => self.0.store(now, Ordering::Release),
        }
    }

    /// Whether appends can be expected to work at `now`.
    pub fn accepts_appends(&self, now: Millis) -> bool {
        let failed_at = self.0.load(Ordering::Acquire);
        failed_at == 0 || now.saturating_sub(failed_at) >= RETRY_AFTER_MS
    }
}

/// Append clock of a gateway, shared by its actors.
#[derive(Debug)]
pub struct GatewayClock(Mutex<AppendClock>);

impl GatewayClock {
    /// Starts from the wall clock.
    pub fn start(clock: &dyn Clock) -> Arc<Self> {
        Arc::new(Self(Mutex::new(AppendClock::start(None, clock.reading()))))
    }

    fn now(&self, clock: &dyn Clock) -> Millis {
        // The clock is consistent after every read, so a poisoned lock can be used.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(clock.reading())
    }
}

/// One actor of the pool, which appends requests to the log.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct GatewayActor {
    pub log: Arc<dyn LogAppender>,
    /// Identity of this gateway in its records.
    pub gateway: u32,
    pub health: Arc<AppendHealth>,
    /// Clock that stamps the records with their append time.
    pub append_clock: Arc<GatewayClock>,
    pub clock: Arc<dyn Clock>,
}

/// Messages of a gateway actor.
#[derive(Debug)]
pub enum GatewayMessage {
    /// A validated request and where to send its outcome. The edge limits how many are in flight.
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
        // Awaiting the ticket here would serialise requests: one actor appends many at a time.
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

/// The current gateway actors; a restart replaces its entry.
pub type GatewayRefs = Arc<Vec<ArcSwapOption<ActorRef<GatewayMessage>>>>;

/// Distributes requests over the actors, round robin.
pub struct GatewayPool {
    refs: GatewayRefs,
    turn: AtomicUsize,
}

impl GatewayPool {
    /// Creates a pool over these actors.
    pub fn new(refs: GatewayRefs) -> Arc<Self> {
        Arc::new(Self { refs, turn: AtomicUsize::new(0) })
    }
}

impl BatchSink for GatewayPool {
    fn submit(&self, batch: ValidBatch) -> Result<AppendTicket, AppendError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let restarting = || AppendError::Closed("the gateway is starting again".to_owned());
        // Skips actors that are being restarted.
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
