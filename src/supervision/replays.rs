//! Supervisor of the replays: runs those that are wanted, stops the others, and starts failed ones
//! again as the policy decides.
//!
//! It is level-triggered: once a second it asks what is wanted, so nothing that it misses is lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::policy::{FailureHistory, RestartDecision, RestartPolicy};
use super::supervisor::{ChildSpec, random};
use crate::clock::Clock;
use crate::model::generation::{GenerationId, ReplayKey};
use crate::model::offset::ShardId;
use crate::model::window::Millis;
use crate::telemetry::{self, RepeatedLog};

/// Interval between two looks at what is wanted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A store that is away looks the same at every look.
static LOOK_LOG: RepeatedLog = RepeatedLog::new();

/// Says which replays this node should run. Blocks.
pub type WantedReplays = Arc<dyn Fn() -> Result<BTreeSet<ReplayKey>, String> + Send + Sync>;

/// Configuration of the supervisor of the replays.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct ReplaysSpec {
    pub wanted: WantedReplays,
    /// Makes the specification of a replay's actor.
    pub child: Arc<dyn Fn(GenerationId, ShardId) -> ChildSpec + Send + Sync>,
    pub policy: RestartPolicy,
    pub clock: Arc<dyn Clock>,
}

/// Messages of the supervisor.
#[derive(Debug)]
pub enum ReplaysMessage {
    /// See what is wanted.
    Look,
}

impl ractor::Message for ReplaysMessage {}

/// Supervises the replays of this node.
#[derive(Clone)]
pub struct ReplaysSupervisor(pub ReplaysSpec);

/// State of the supervisor.
#[derive(Default)]
pub struct ReplaysState {
    running: BTreeMap<ReplayKey, ActorCell>,
    keys: HashMap<ActorId, ReplayKey>,
    /// Failures, and when the replay may start again.
    failed: BTreeMap<ReplayKey, (FailureHistory, Millis)>,
}

impl Actor for ReplaysSupervisor {
    type Msg = ReplaysMessage;
    type State = ReplaysState;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<ReplaysMessage>,
        (): (),
    ) -> Result<ReplaysState, ActorProcessingErr> {
        myself.cast(ReplaysMessage::Look)?;
        Ok(ReplaysState::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<ReplaysMessage>,
        _: ReplaysMessage,
        state: &mut ReplaysState,
    ) -> Result<(), ActorProcessingErr> {
        let wanted = self.0.wanted.clone();
        match tokio::task::spawn_blocking(move || wanted()).await? {
            Ok(wanted) => self.run(&myself, state, &wanted).await,
            Err(why) => {
                if let Some(silent) = LOOK_LOG.due(&why) {
                    tracing::warn!(%why, silent, "cannot see what is to be replayed");
                }
            }
        }
        myself.send_after(LOOK_EVERY, || ReplaysMessage::Look);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<ReplaysMessage>,
        event: SupervisionEvent,
        state: &mut ReplaysState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                if let Some(key) = state.forget(cell.get_id()) {
                    self.on_failed(state, key, &error.to_string());
                }
            }
            SupervisionEvent::ActorTerminated(cell, ..) => {
                state.forget(cell.get_id());
            }
            _ => {}
        }
        Ok(())
    }
}

impl ReplaysState {
    fn forget(&mut self, id: ActorId) -> Option<ReplayKey> {
        let key = self.keys.remove(&id)?;
        self.running.remove(&key);
        Some(key)
    }
}

impl ReplaysSupervisor {
    async fn run(
        &self,
        myself: &ActorRef<ReplaysMessage>,
        state: &mut ReplaysState,
        wanted: &BTreeSet<ReplayKey>,
    ) {
        // One that is not wanted ends after its step; until then it is among the running.
        state
            .running
            .iter()
            .filter(|(key, _)| !wanted.contains(key))
            .for_each(|(_, cell)| cell.stop(None));
        state.failed.retain(|key, _| wanted.contains(key));
        let now = self.0.clock.uptime();
        for key in due(wanted, &state.running, &state.failed, now) {
            let child = (self.0.child)(key.0, key.1);
            match (child.spawn)(myself.get_cell()).await {
                Ok(cell) => {
                    state.keys.insert(cell.get_id(), key);
                    state.running.insert(key, cell);
                }
                Err(error) => self.on_failed(state, key, &error.to_string()),
            }
        }
    }

    fn on_failed(&self, state: &mut ReplaysState, (generation, shard): ReplayKey, error: &str) {
        metrics::counter!(telemetry::ACTOR_RESTARTS, "actor" => "replay").increment(1);
        let now = self.0.clock.uptime();
        let (history, again) = state.failed.entry((generation, shard)).or_default();
        let delay_ms = match history.record_failure(&self.0.policy, now, random()) {
            RestartDecision::RestartAfter(delay) => delay,
            // What one replay meets must not end the others.
            RestartDecision::Escalate => self.0.policy.backoff_max_ms,
        };
        *again = now.saturating_add(delay_ms);
        tracing::warn!(
            replay = generation.0,
            shard = shard.0,
            %error,
            delay_ms,
            "the replay failed, it starts again at its cursor"
        );
    }
}

/// The replays to start: wanted, not running, and not failed just now.
fn due<T>(
    wanted: &BTreeSet<ReplayKey>,
    running: &BTreeMap<ReplayKey, T>,
    failed: &BTreeMap<ReplayKey, (FailureHistory, Millis)>,
    now: Millis,
) -> Vec<ReplayKey> {
    let may = |key: &&ReplayKey| {
        !running.contains_key(*key) && failed.get(*key).is_none_or(|(_, again)| *again <= now)
    };
    wanted.iter().filter(may).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_runs_once_and_not_before_its_back_off_is_over() {
        let key = |shard| (GenerationId(1), ShardId(shard));
        let wanted = BTreeSet::from([key(1), key(2), key(3)]);
        let running = BTreeMap::from([(key(1), ())]);
        let failed = BTreeMap::from([(key(2), (FailureHistory::default(), 50))]);
        assert_eq!(due(&wanted, &running, &failed, 49), [key(3)]);
        assert_eq!(due(&wanted, &running, &failed, 50), [key(2), key(3)]);
    }
}
