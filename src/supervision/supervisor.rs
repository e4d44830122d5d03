//! One supervisor actor: starts its children and restarts them as the policy decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use super::policy::{FailureHistory, RestartDecision, RestartPolicy};
use crate::clock::Clock;

/// Starts one child under the given supervisor.
pub type ChildSpawner =
    Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

/// A child: its name in logs and metrics, and how it is started.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct ChildSpec {
    /// Kind of actor; the label of the restart metric.
    pub kind: &'static str,
    pub name: String,
    pub spawn: ChildSpawner,
}

/// Configuration of a supervisor. Children are started in order.
#[allow(missing_docs, reason = "the names say it")]
pub struct SupervisorSpec {
    pub children: Vec<ChildSpec>,
    pub policy: RestartPolicy,
    pub clock: Arc<dyn Clock>,
}

/// Messages of the supervisor. The index is that of the child in the configuration.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// The back-off of a child is over.
    Restart(usize),
}

/// Supervises its children one for one: a failure restarts that child only.
pub struct Supervisor;

/// State of a supervisor.
pub struct SupervisorState {
    spec: SupervisorSpec,
    running: HashMap<ActorId, usize>,
    histories: Vec<FailureHistory>,
}

impl ractor::Message for SupervisorMessage {}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorSpec;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        spec: SupervisorSpec,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let histories = vec![FailureHistory::default(); spec.children.len()];
        let mut state = SupervisorState { spec, running: HashMap::new(), histories };
        for index in 0..state.spec.children.len() {
            start(&myself, &mut state, index).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let SupervisorMessage::Restart(index) = message;
        start(&myself, state, index).await
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                on_failed(&myself, state, cell.get_id(), &error.to_string())
            }
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                // Ended as asked, or in a shutdown: an orderly end is never restarted.
                state.running.remove(&cell.get_id());
                tracing::info!(child = ?cell.get_name(), ?reason, "child ended");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

async fn start(
    myself: &ActorRef<SupervisorMessage>,
    state: &mut SupervisorState,
    index: usize,
) -> Result<(), ActorProcessingErr> {
    let child = state.spec.children[index].clone();
    match (child.spawn)(myself.get_cell()).await {
        Ok(cell) => {
            state.running.insert(cell.get_id(), index);
            Ok(())
        }
        Err(error) => decide(myself, state, index, &error.to_string()),
    }
}

fn on_failed(
    myself: &ActorRef<SupervisorMessage>,
    state: &mut SupervisorState,
    id: ActorId,
    error: &str,
) -> Result<(), ActorProcessingErr> {
    match state.running.remove(&id) {
        Some(index) => decide(myself, state, index, error),
        // A child that failed while starting is handled in `start`.
        None => Ok(()),
    }
}

fn decide(
    myself: &ActorRef<SupervisorMessage>,
    state: &mut SupervisorState,
    index: usize,
    error: &str,
) -> Result<(), ActorProcessingErr> {
    let child = &state.spec.children[index];
    metrics::counter!(crate::telemetry::ACTOR_RESTARTS, "actor" => child.kind).increment(1);
    match state.histories[index].record_failure(
        &state.spec.policy,
        state.spec.clock.uptime(),
        random(),
    ) {
        RestartDecision::RestartAfter(delay) => {
            tracing::warn!(
                child = %child.name,
                %error,
                delay_ms = delay,
                "child failed, it starts again"
            );
            let delay = Duration::from_millis(delay.unsigned_abs());
            myself.send_after(delay, move || SupervisorMessage::Restart(index));
            Ok(())
        }
        RestartDecision::Escalate => {
            Err(format!("{} failed too often: {error}", child.name).into())
        }
    }
}

/// A random number for jitter; zero, which means no jitter, if the system cannot supply one.
pub(super) fn random() -> u64 {
    getrandom::u64().unwrap_or(0)
}
