//! Supervisor of the shards: starts those that the log assigns to this node, relinquishes those
//! that leave, and restarts failed ones as the policy decides.
//!
//! [`super::ownership`] decides; this is the shell around it. Draining never waits for a store that
//! hangs: after `shards.handover` and a short grace period the shard is relinquished, and the store
//! refuses whatever its actor still does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, ActorStatus, RpcReplyPort, SpawnErr,
    SupervisionEvent,
};
use tokio::sync::{Semaphore, watch};

use super::ownership::{OwnershipStep, ShardOwnership, existing_shards};
use super::policy::{FailureHistory, RestartDecision, RestartPolicy};
use super::supervisor::{ChildSpec, random};
use crate::actors::shard::{ShardMessage, is_refusal, needs_repair};
use crate::actors::shard_table::ShardTable;
use crate::actors::ticker::ShardRefs;
use crate::clock::Clock;
use crate::model::offset::ShardId;

/// Shards that claim and load at the same time. A takeover of many shards must leave store
/// connections for those that flush.
const STARTS_AT_ONCE: usize = 8;
/// Time from the end of a drain to the end of the actor; an actor that takes longer is killed.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Tells the log which shards nothing runs for on this node any more.
pub type RelinquishFn = Arc<dyn Fn(&BTreeSet<ShardId>) + Send + Sync>;

/// Configuration of the supervisor of the shards.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct ShardsSpec {
    /// The shards that the log assigns to this node.
    pub assignment: watch::Receiver<Arc<BTreeSet<ShardId>>>,
    /// Makes the specification of a shard's actor.
    pub child: Arc<dyn Fn(ShardId) -> ChildSpec + Send + Sync>,
    pub relinquish: RelinquishFn,
    pub table: Arc<ShardTable>,
    pub refs: ShardRefs,
    /// When failed shards are restarted.
    pub policy: RestartPolicy,
    /// `shards.refused_delay`: the shortest back-off after a refusal, in milliseconds.
    pub refused_delay_ms: i64,
    /// `shards.handover`: how long a shard may take to flush when it is drained.
    pub handover: Duration,
    pub clock: Arc<dyn Clock>,
}

/// Messages of the supervisor.
#[derive(Debug)]
pub enum ShardsMessage {
    /// The assignment has changed.
    AssignmentChanged,
    /// A start has ended.
    Started(ShardId, Result<ActorCell, SpawnErr>),
    /// The back-off of this turn is over.
    Retry(ShardId, u64),
    /// The drain of this turn has timed out.
    DrainTimedOut(ShardId, u64),
    /// Relinquish all shards, whatever is assigned from now on; answered when none is left.
    RelinquishAll(RpcReplyPort<()>),
}

impl ractor::Message for ShardsMessage {}

/// Supervises the shards that this node owns.
pub struct ShardsSupervisor;

/// State of the supervisor.
pub struct ShardsState {
    spec: ShardsSpec,
    ownership: ShardOwnership,
    actors: BTreeMap<ShardId, ActorCell>,
    shards: HashMap<ActorId, ShardId>,
    histories: HashMap<ShardId, FailureHistory>,
    /// Shards whose last failure needs repair; they are retried at the longest delay only.
    permanent: BTreeSet<ShardId>,
    starting: Arc<Semaphore>,
    waiters: Vec<RpcReplyPort<()>>,
    relinquished: bool,
}

impl Actor for ShardsSupervisor {
    type Msg = ShardsMessage;
    type State = ShardsState;
    type Arguments = ShardsSpec;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        mut spec: ShardsSpec,
    ) -> Result<ShardsState, ActorProcessingErr> {
        let count = spec.table.iter().count() as u32;
        let first = existing_shards(&spec.assignment.borrow_and_update(), count);
        let changes = spec.assignment.clone();
        let mut state = ShardsState {
            spec,
            ownership: ShardOwnership::default(),
            actors: BTreeMap::new(),
            shards: HashMap::new(),
            histories: HashMap::new(),
            permanent: BTreeSet::new(),
            starting: Arc::new(Semaphore::new(STARTS_AT_ONCE)),
            waiters: Vec::new(),
            relinquished: false,
        };
        // Starts are awaited here, so that every shard assigned from the beginning has been tried
        // once when the node begins to serve.
        state.ownership.assign(&first);
        let mut starts = Vec::new();
        for &shard in first.iter() {
            let start = state.start(&myself, shard);
            starts.push(async move { (shard, start.await) });
        }
        let started = futures::future::join_all(starts).await;
        for (shard, outcome) in started {
            state.on_started(&myself, shard, outcome)?;
        }
        tokio::spawn(watch(changes, myself));
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: ShardsMessage,
        state: &mut ShardsState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShardsMessage::AssignmentChanged if state.relinquished => {}
            ShardsMessage::AssignmentChanged => {
                let assigned =
                    existing_shards(&state.spec.assignment.borrow(), state.spec.refs.len() as u32);
                let steps = state.ownership.assign(&assigned);
                state.perform(&myself, steps)?;
                // A shard that was assigned and revoked between two looks has no actor whose end
                // would relinquish it. Without this call, the rebalance of the consumer group would
                // wait for it in vain.
                (state.spec.relinquish)(&state.ownership.unassigned(state.spec.refs.len() as u32));
            }
            ShardsMessage::Started(shard, outcome) => state.on_started(&myself, shard, outcome)?,
            ShardsMessage::Retry(shard, turn) => {
                let steps = state.ownership.retry(shard, turn);
                state.perform(&myself, steps)?;
            }
            ShardsMessage::DrainTimedOut(shard, turn) => {
                let steps = state.ownership.on_drain_timeout(shard, turn);
                if !steps.is_empty() {
                    tracing::warn!(
                        shard = shard.0,
                        "the shard did not stop in time and is let go; the log holds the rest"
                    );
                }
                state.perform(&myself, steps)?;
            }
            ShardsMessage::RelinquishAll(reply) => {
                state.relinquished = true;
                state.waiters.push(reply);
                let steps = state.ownership.assign(&BTreeSet::new());
                state.perform(&myself, steps)?;
            }
        }
        state.answer_if_empty()
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut ShardsState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                state.on_ended(&myself, cell.get_id(), Some(&error))?
            }
            SupervisionEvent::ActorTerminated(cell, ..) => {
                state.on_ended(&myself, cell.get_id(), None)?
            }
            _ => {}
        }
        state.answer_if_empty()
    }
}

/// Why an actor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ActorFailure {
    Refused,
    /// The shard cannot be served until somebody repairs something.
    Permanent,
    /// Anything else: a restart may help.
    Transient,
}

impl ActorFailure {
    fn of(error: &ActorProcessingErr) -> Self {
        match (is_refusal(error), needs_repair(error)) {
            (true, _) => Self::Refused,
            (_, true) => Self::Permanent,
            _ => Self::Transient,
        }
    }
}

/// Forwards changes of the assignment for as long as both ends live.
async fn watch(
    mut assignment: watch::Receiver<Arc<BTreeSet<ShardId>>>,
    supervisor: ActorRef<ShardsMessage>,
) {
    while assignment.changed().await.is_ok() {
        if supervisor.cast(ShardsMessage::AssignmentChanged).is_err() {
            return;
        }
    }
}

impl ShardsState {
    /// Prepares the start of a shard's actor; the future waits for a
    /// free slot among [`STARTS_AT_ONCE`].
    fn start(
        &self,
        myself: &ActorRef<ShardsMessage>,
        shard: ShardId,
    ) -> impl Future<Output = Result<ActorCell, SpawnErr>> + Send + 'static {
        let (spawn, supervisor, starting) =
            ((self.spec.child)(shard).spawn, myself.get_cell(), self.starting.clone());
        // Readiness gives a newly assigned shard time to catch up (`ShardTable::all_fresh`).
        self.spec.table.entry(shard).for_supervisor().set_assigned(self.spec.clock.uptime());
        async move {
            // The semaphore is never closed. If it were, starting without a permit
            // would do no harm.
            let _permit = starting.acquire_owned().await.ok();
            spawn(supervisor).await
        }
    }

    fn perform(
        &mut self,
        myself: &ActorRef<ShardsMessage>,
        steps: Vec<OwnershipStep>,
    ) -> Result<(), ActorProcessingErr> {
        let mut gone = BTreeSet::new();
        for step in steps {
            match step {
                OwnershipStep::Start(shard) => {
                    // Not awaited: loading can take long, and drains and other starts must
                    // not wait behind it.
                    let (start, myself) = (self.start(myself, shard), myself.clone());
                    tokio::spawn(async move {
                        let outcome = start.await;
                        if let Err(ractor::MessagingErr::SendErr(ShardsMessage::Started(
                            _,
                            Ok(orphan),
                        ))) = myself.cast(ShardsMessage::Started(shard, outcome))
                        {
                            orphan.stop(Some("the supervisor is gone".to_owned()));
                        }
                    });
                }
                OwnershipStep::Retry { shard, turn, refused } => {
                    self.retry(myself, shard, turn, refused)?
                }
                OwnershipStep::Drain(shard) => self.drain(shard),
                OwnershipStep::WatchDrain { shard, turn } => {
                    myself.send_after(self.spec.handover + STOP_GRACE, move || {
                        ShardsMessage::DrainTimedOut(shard, turn)
                    });
                }
                OwnershipStep::Stop(shard) => {
                    if let Some(actor) = self.actors.get(&shard) {
                        // Not `stop`: an actor that hangs in a call would never read the message.
                        actor.kill();
                    }
                }
                OwnershipStep::Vacate(shard) => {
                    self.spec.refs[shard.0 as usize].store(None);
                    self.spec.table.entry(shard).for_supervisor().vacate();
                    self.spec.table.clear_stop(shard, None);
                }
                OwnershipStep::Relinquish(shard) => {
                    self.histories.remove(&shard);
                    self.spec.table.entry(shard).for_supervisor().clear_assigned();
                    gone.insert(shard);
                }
            }
        }
        if !gone.is_empty() {
            let shards: Vec<u32> = gone.iter().map(|shard| shard.0).collect();
            tracing::debug!(?shards, "let go");
            (self.spec.relinquish)(&gone);
        }
        Ok(())
    }

    /// Asks for a last flush, with a time limit, and then stops the actor.
    fn drain(&self, shard: ShardId) {
        let Some(actor) = self.actors.get(&shard).cloned().map(ActorRef::<ShardMessage>::from)
        else {
            return;
        };
        let handover = self.spec.handover;
        tokio::spawn(async move {
            if !actor
                .call(ShardMessage::Drain, Some(handover))
                .await
                .is_ok_and(|reply| reply.is_success())
            {
                tracing::info!(
                    shard = shard.0,
                    "the shard did not flush in time; the log holds the rest"
                );
            }
            actor.stop(None);
        });
    }

    fn on_started(
        &mut self,
        myself: &ActorRef<ShardsMessage>,
        shard: ShardId,
        outcome: Result<ActorCell, SpawnErr>,
    ) -> Result<(), ActorProcessingErr> {
        match outcome {
            Ok(actor) => {
                // An actor that ended before it was registered here has already
                // sent its supervision event.
                let ended =
                    matches!(actor.get_status(), ActorStatus::Stopping | ActorStatus::Stopped);
                if ended {
                    return self.on_failed(
                        myself,
                        shard,
                        ActorFailure::Transient,
                        "it ended at once",
                    );
                }
                self.shards.insert(actor.get_id(), shard);
                self.actors.insert(shard, actor);
                let steps = self.ownership.on_started(shard);
                self.perform(myself, steps)
            }
            Err(SpawnErr::StartupFailed(error)) => {
                self.on_failed(myself, shard, ActorFailure::of(&error), &error.to_string())
            }
            Err(error) => {
                self.on_failed(myself, shard, ActorFailure::Transient, &error.to_string())
            }
        }
    }

    fn on_ended(
        &mut self,
        myself: &ActorRef<ShardsMessage>,
        id: ActorId,
        error: Option<&ActorProcessingErr>,
    ) -> Result<(), ActorProcessingErr> {
        // An actor that failed while starting is handled in `on_started`.
        let Some(shard) = self.shards.remove(&id) else { return Ok(()) };
        self.actors.remove(&shard);
        let why = error.map_or_else(|| "it was stopped".to_owned(), ToString::to_string);
        self.on_failed(myself, shard, error.map_or(ActorFailure::Transient, ActorFailure::of), &why)
    }

    fn on_failed(
        &mut self,
        myself: &ActorRef<ShardsMessage>,
        shard: ShardId,
        failure: ActorFailure,
        why: &str,
    ) -> Result<(), ActorProcessingErr> {
        let steps = self.ownership.on_failed(shard, failure == ActorFailure::Refused);
        if failure == ActorFailure::Permanent {
            // The actor has already logged the reason itself. Frequent retries do not bring
            // back what is missing.
            self.permanent.insert(shard);
        } else {
            self.permanent.remove(&shard);
        }
        if failure != ActorFailure::Permanent
            && steps.iter().any(|step| matches!(step, OwnershipStep::Retry { .. }))
        {
            metrics::counter!(crate::telemetry::ACTOR_RESTARTS, "actor" => "shard").increment(1);
            let child = (self.spec.child)(shard).name;
            tracing::warn!(%child, error = why, "child failed, it starts again");
        }
        self.perform(myself, steps)
    }

    fn retry(
        &mut self,
        myself: &ActorRef<ShardsMessage>,
        shard: ShardId,
        turn: u64,
        refused: bool,
    ) -> Result<(), ActorProcessingErr> {
        let mut policy = self.spec.policy;
        if refused {
            policy.backoff_min_ms = self.spec.refused_delay_ms;
            policy.backoff_max_ms = policy.backoff_max_ms.max(self.spec.refused_delay_ms);
        }
        if self.permanent.contains(&shard) {
            policy.backoff_min_ms = policy.backoff_max_ms;
        }
        match self.histories.entry(shard).or_default().record_failure(
            &policy,
            self.spec.clock.uptime(),
            random(),
        ) {
            RestartDecision::RestartAfter(delay) => {
                myself.send_after(Duration::from_millis(delay.unsigned_abs()), move || {
                    ShardsMessage::Retry(shard, turn)
                });
                Ok(())
            }
            RestartDecision::Escalate => Err(format!("shard {shard} failed too often").into()),
        }
    }

    fn answer_if_empty(&mut self) -> Result<(), ActorProcessingErr> {
        if self.ownership.is_empty() {
            // Callers may have stopped waiting.
            self.waiters
                .drain(..)
                .filter(|reply| !reply.is_closed())
                .try_for_each(|reply| reply.send(()))?;
        }
        Ok(())
    }
}
