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

use super::ownership::{Ownership, Step, known};
use super::policy::{Decision, History, RestartPolicy};
use super::supervisor::{ChildSpec, random};
use crate::actors::pulse::ShardRefs;
use crate::actors::shard::{ShardMessage, cannot_be_served, was_refused};
use crate::actors::slots::Slots;
use crate::clock::Clock;
use crate::model::offset::ShardId;

/// Shards claimed and loaded at once: a takeover of many must leave connections of the store to
/// those that flush.
const STARTS_AT_ONCE: usize = 8;
/// From the end of a drain to the end of the actor; one that takes longer is killed.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Told of shards of which nothing runs here any more.
pub type LetGo = Arc<dyn Fn(&BTreeSet<ShardId>) + Send + Sync>;

/// What the supervisor of the shards is made of.
#[derive(Clone)]
pub struct ShardsSpec {
    /// The shards to own.
    pub assignment: watch::Receiver<Arc<BTreeSet<ShardId>>>,
    /// How a shard is started.
    pub child: Arc<dyn Fn(ShardId) -> ChildSpec + Send + Sync>,
    /// Told of shards whose actors have stopped.
    pub let_go: LetGo,
    /// Where the shards stand.
    pub slots: Arc<Slots>,
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
    Assigned,
    /// A start has ended.
    Started(ShardId, Result<ActorCell, SpawnErr>),
    /// The backoff of this turn is over.
    Again(ShardId, u64),
    /// The time for draining of this turn is over.
    Overdue(ShardId, u64),
    /// Own nothing any more, whatever is assigned; answered when every shard is let go.
    LetGoAll(RpcReplyPort<()>),
}

impl ractor::Message for ShardsMessage {}

/// Supervises the shards that this node owns.
pub struct ShardsSupervisor;

/// What it remembers.
pub struct ShardsState {
    spec: ShardsSpec,
    ownership: Ownership,
    actors: BTreeMap<ShardId, ActorCell>,
    shards: HashMap<ActorId, ShardId>,
    histories: HashMap<ShardId, History>,
    /// Shards that failed last because of what no new start mends.
    lasting: BTreeSet<ShardId>,
    starting: Arc<Semaphore>,
    leaving: Vec<RpcReplyPort<()>>,
    left: bool,
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
        let count = spec.slots.iter().count() as u32;
        let first = known(&spec.assignment.borrow_and_update(), count);
        let changes = spec.assignment.clone();
        let mut state = ShardsState {
            spec,
            ownership: Ownership::default(),
            actors: BTreeMap::new(),
            shards: HashMap::new(),
            histories: HashMap::new(),
            lasting: BTreeSet::new(),
            starting: Arc::new(Semaphore::new(STARTS_AT_ONCE)),
            leaving: Vec::new(),
            left: false,
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
            ShardsMessage::Assigned if state.left => {}
            ShardsMessage::Assigned => {
                let assigned = known(&state.spec.assignment.borrow(), state.spec.refs.len() as u32);
                let steps = state.ownership.assign(&assigned);
                state.perform(&myself, steps)?;
                // What came and went before anybody looked has no actor that could end: its group
                // would wait for nobody.
                (state.spec.let_go)(&state.ownership.elsewhere(state.spec.refs.len() as u32));
            }
            ShardsMessage::Started(shard, outcome) => state.on_started(&myself, shard, outcome)?,
            ShardsMessage::Again(shard, turn) => {
                let steps = state.ownership.again(shard, turn);
                state.perform(&myself, steps)?;
            }
            ShardsMessage::Overdue(shard, turn) => {
                let steps = state.ownership.overdue(shard, turn);
                if !steps.is_empty() {
                    tracing::warn!(
                        shard = shard.0,
                        "the shard did not stop in time and is let go; the log holds the rest"
                    );
                }
                state.perform(&myself, steps)?;
            }
            ShardsMessage::LetGoAll(reply) => {
                state.left = true;
                state.leaving.push(reply);
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
enum Failure {
    /// Another owner has claimed the shard.
    Refused,
    /// The shard cannot be served until somebody mends something.
    Lasting,
    /// Anything else: a new start may help.
    Passing,
}

impl Failure {
    fn of(error: &ActorProcessingErr) -> Self {
        match (was_refused(error), cannot_be_served(error)) {
            (true, _) => Self::Refused,
            (_, true) => Self::Lasting,
            _ => Self::Passing,
        }
    }
}

/// Passes changes of the assignment on for as long as both ends live.
async fn watch(
    mut assignment: watch::Receiver<Arc<BTreeSet<ShardId>>>,
    supervisor: ActorRef<ShardsMessage>,
) {
    while assignment.changed().await.is_ok() {
        if supervisor.cast(ShardsMessage::Assigned).is_err() {
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
        self.spec.slots.slot(shard).for_supervisor().assigned(self.spec.clock.uptime());
        async move {
            // The semaphore is never closed; without a permit the start would only be less patient.
            let _permit = starting.acquire_owned().await.ok();
            spawn(supervisor).await
        }
    }

    fn perform(
        &mut self,
        myself: &ActorRef<ShardsMessage>,
        steps: Vec<Step>,
    ) -> Result<(), ActorProcessingErr> {
        let mut gone = BTreeSet::new();
        for step in steps {
            match step {
                Step::Start(shard) => {
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
                Step::Retry { shard, turn, refused } => self.retry(myself, shard, turn, refused)?,
                Step::Drain(shard) => self.drain(shard),
                Step::Watch { shard, turn } => {
                    myself.send_after(self.spec.handover + STOP_GRACE, move || {
                        ShardsMessage::Overdue(shard, turn)
                    });
                }
                Step::Stop(shard) => {
                    if let Some(actor) = self.actors.get(&shard) {
                        actor.kill();
                    }
                }
                Step::Vacate(shard) => {
                    self.spec.refs[shard.0 as usize].store(None);
                    self.spec.slots.slot(shard).for_supervisor().vacate();
                    self.spec.slots.goes_on(shard, None);
                }
                Step::LetGo(shard) => {
                    self.histories.remove(&shard);
                    self.spec.slots.slot(shard).for_supervisor().withdrawn();
                    gone.insert(shard);
                }
            }
        }
        if !gone.is_empty() {
            tracing::debug!(shards = ?gone.iter().map(|shard| shard.0).collect::<Vec<_>>(), "let go");
            (self.spec.let_go)(&gone);
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
                    return self.on_failed(myself, shard, Failure::Passing, "it ended at once");
                }
                self.shards.insert(actor.get_id(), shard);
                self.actors.insert(shard, actor);
                let steps = self.ownership.started(shard);
                self.perform(myself, steps)
            }
            Err(SpawnErr::StartupFailed(error)) => {
                self.on_failed(myself, shard, Failure::of(&error), &error.to_string())
            }
            Err(error) => self.on_failed(myself, shard, Failure::Passing, &error.to_string()),
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
        self.on_failed(myself, shard, error.map_or(Failure::Passing, Failure::of), &why)
    }

    fn on_failed(
        &mut self,
        myself: &ActorRef<ShardsMessage>,
        shard: ShardId,
        failure: Failure,
        why: &str,
    ) -> Result<(), ActorProcessingErr> {
        let steps = self.ownership.failed(shard, failure == Failure::Refused);
        if failure == Failure::Lasting {
            // It has said so itself, once. No haste brings back what is missing.
            self.lasting.insert(shard);
        } else {
            self.lasting.remove(&shard);
        }
        if failure != Failure::Lasting
            && steps.iter().any(|step| matches!(step, Step::Retry { .. }))
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
        if self.lasting.contains(&shard) {
            policy.backoff_min_ms = policy.backoff_max_ms;
        }
        match self.histories.entry(shard).or_default().failed(
            &policy,
            self.spec.clock.uptime(),
            random(),
        ) {
            Decision::RestartAfter(delay) => {
                myself.send_after(Duration::from_millis(delay.unsigned_abs()), move || {
                    ShardsMessage::Again(shard, turn)
                });
                Ok(())
            }
            Decision::Escalate => Err(format!("shard {shard} failed too often").into()),
        }
    }

    fn answer_if_empty(&mut self) -> Result<(), ActorProcessingErr> {
        if self.ownership.is_empty() {
            // Whoever asked may have stopped waiting.
            self.leaving
                .drain(..)
                .filter(|reply| !reply.is_closed())
                .try_for_each(|reply| reply.send(()))?;
        }
        Ok(())
    }
}
