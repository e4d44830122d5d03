//! The supervisor of the shards: starts those that the log assigns to this node, lets go of those
//! that leave, and starts failed ones again as the policy decides.
//!
//! What is to be done is decided by [`super::ownership`]; this is the shell. Draining never waits
//! for a store that hangs: after `shards.handover` the shard is let go, and whatever its actor
//! still does is refused by the store.

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

/// Shards claimed and loaded at once: a takeover of many must leave connections of the store to
/// those that flush.
const STARTS_AT_ONCE: usize = 8;
/// From the end of a drain to the end of the actor; one that takes longer is killed.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Told of shards of which nothing runs here any more.
pub type RelinquishFn = Arc<dyn Fn(&BTreeSet<ShardId>) + Send + Sync>;

/// What the supervisor of the shards is made of.
#[derive(Clone)]
pub struct ShardsSpec {
    /// The shards to own.
    pub assignment: watch::Receiver<Arc<BTreeSet<ShardId>>>,
    /// How a shard is started.
    pub child: Arc<dyn Fn(ShardId) -> ChildSpec + Send + Sync>,
    /// Told of shards whose actors have stopped.
    pub relinquish: RelinquishFn,
    /// Where the shards stand.
    pub table: Arc<ShardTable>,
    /// Where their actors are.
    pub refs: ShardRefs,
    /// When failed ones start again.
    pub policy: RestartPolicy,
    /// `shards.refused_delay` in milliseconds.
    pub refused_delay_ms: i64,
    /// `shards.handover`
    pub handover: Duration,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Messages of the supervisor.
#[derive(Debug)]
pub enum ShardsMessage {
    /// Look at the assignment.
    AssignmentChanged,
    /// A start has ended.
    Started(ShardId, Result<ActorCell, SpawnErr>),
    /// The backoff of this turn is over.
    Retry(ShardId, u64),
    /// The time for draining of this turn is over.
    DrainTimedOut(ShardId, u64),
    /// Own nothing any more, whatever is assigned; answered when every shard is let go.
    RelinquishAll(RpcReplyPort<()>),
}

impl ractor::Message for ShardsMessage {}

/// Supervises the shards that this node owns.
pub struct ShardsSupervisor;

/// What it remembers.
pub struct ShardsState {
    spec: ShardsSpec,
    ownership: ShardOwnership,
    actors: BTreeMap<ShardId, ActorCell>,
    shards: HashMap<ActorId, ShardId>,
    histories: HashMap<ShardId, FailureHistory>,
    /// Shards that failed last because of what no new start mends.
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
        // What is assigned from the beginning has been tried once when the node begins to serve.
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
                // What came and went before anybody looked has no actor that could end: its group
                // would wait for nobody.
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
    /// Another owner has claimed the shard.
    Refused,
    /// The shard cannot be served until somebody mends something.
    Permanent,
    /// Anything else: a new start may help.
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

/// Passes changes of the assignment on for as long as both ends live.
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
    /// Starts the actor of a shard, when its turn has come.
    fn start(
        &self,
        myself: &ActorRef<ShardsMessage>,
        shard: ShardId,
    ) -> impl Future<Output = Result<ActorCell, SpawnErr>> + Send + 'static {
        let (spawn, supervisor, starting) =
            ((self.spec.child)(shard).spawn, myself.get_cell(), self.starting.clone());
        // A node that has just got a shard is given time to catch up.
        self.spec.table.entry(shard).for_supervisor().set_assigned(self.spec.clock.uptime());
        async move {
            // The semaphore is never closed; without a permit the start would only be less patient.
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
            tracing::debug!(shards = ?gone.iter().map(|shard| shard.0).collect::<Vec<_>>(), "let go");
            (self.spec.relinquish)(&gone);
        }
        Ok(())
    }

    /// Asks for a last flush, bounded in time, and stops the actor.
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
                // One that ended before it was known here has no event that would tell.
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
        // A child that failed while starting is answered where it was started.
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
            // It has said so itself, once. No haste brings back what is missing.
            self.permanent.insert(shard);
        } else {
            self.permanent.remove(&shard);
        }
        if failure != ActorFailure::Permanent
            && steps.iter().any(|step| matches!(step, OwnershipStep::Retry { .. }))
        {
            metrics::counter!(crate::telemetry::ACTOR_RESTARTS, "actor" => "shard").increment(1);
            tracing::warn!(child = %(self.spec.child)(shard).name, error = why, "child failed, it starts again");
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
            // Whoever asked may have stopped waiting.
            self.waiters
                .drain(..)
                .filter(|reply| !reply.is_closed())
                .try_for_each(|reply| reply.send(()))?;
        }
        Ok(())
    }
}
