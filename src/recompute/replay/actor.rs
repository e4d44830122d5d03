//! The actor of one replay: runs its steps, one at a time, and waits where it has to.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::OwnedSemaphorePermit;

use super::node::{ReplayActivity, ReplayNode, ReplayReport};
use super::shard_replay::{FoldStep, ReplayStep, ReplayWait, ShardReplay};
use crate::clock::Stopwatch;
use crate::model::generation::ReplayKey;
use crate::telemetry::{self, RepeatedLog};

/// How soon a replay looks again whether it may go on: after a late flush, or in the queue.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Below queries, which run at 10.
const NICENESS: i32 = 15;
/// Interval of a line about how far a replay is.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// First wait for something outside, and for what comes by itself.
const FIRST_WAIT_MS: u64 = 1_000;
/// Longest wait until an object is tried again; a store is after a quarter of it.
const LONGEST_WAIT_MS: u64 = 60_000;
/// Looks at what comes by itself before the intervals double.
const SOON: u32 = 30;

/// A damaged object looks the same at every attempt.
static WAIT_LOG: RepeatedLog = RepeatedLog::new();

/// The actor of one replay.
#[derive(Clone)]
pub struct ReplayActor {
    /// The node's replays.
    pub node: Arc<ReplayNode>,
    /// What is filled, and from which shard.
    pub key: ReplayKey,
}

/// Messages of the actor; it sends them to itself.
#[derive(Debug)]
pub enum ReplayMessage {
    /// Do the next step.
    Step,
}

impl ractor::Message for ReplayMessage {}

/// State of the actor between steps.
pub struct ReplayActorState {
    /// `None` only during a step.
    replay: Option<ShardReplay>,
    /// Held from the first object on until it has to wait: it bounds the objects in memory.
    permit: Option<OwnedSemaphorePermit>,
    /// Waits in a row.
    waits: u32,
    /// Since its last line about how far it is.
    told: Stopwatch,
}

impl Actor for ReplayActor {
    type Msg = ReplayMessage;
    type State = ReplayActorState;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<ReplayMessage>,
        (): (),
    ) -> Result<ReplayActorState, ActorProcessingErr> {
        let (generation, shard) = self.key;
        let nonce = getrandom::u64()?;
        let replay = ShardReplay::new(self.node.sources.clone(), generation, shard, nonce);
        self.report(ReplayActivity::Queued, &replay);
        myself.cast(ReplayMessage::Step)?;
        Ok(ReplayActorState {
            replay: Some(replay),
            permit: None,
            waits: 0,
            told: Stopwatch::start(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<ReplayMessage>,
        _: ReplayMessage,
        state: &mut ReplayActorState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(wait) = self.held_back(state) {
            myself.send_after(wait, || ReplayMessage::Step);
            return Ok(());
        }
        let mut replay = state.replay.take().ok_or("a step of the replay was cut off")?;
        let folded = run_nicely(move || {
            let folded = replay.fold();
            (replay, folded)
        });
        let (mut replay, folded) = folded.await?;
        let step = match folded {
            Err(error) => Err(error),
            Ok(FoldStep::Done(step)) => Ok(step),
            Ok(FoldStep::Commit) => {
                // At the priority of flushes, which wait for the same locks.
                let committed = tokio::task::spawn_blocking(move || {
                    let step = replay.commit();
                    (replay, step)
                });
                let step;
                (replay, step) = committed.await?;
                step
            }
        };
        // The next step begins again at the stored cursor.
        let step =
            step.unwrap_or_else(|error| ReplayStep::Waiting(ReplayWait::Store(error.to_string())));
        let next = self.after(state, &replay, step);
        state.replay = Some(replay);
        match next {
            None => myself.stop(None),
            Some(Duration::ZERO) => myself.cast(ReplayMessage::Step)?,
            Some(wait) => _ = myself.send_after(wait, || ReplayMessage::Step),
        }
        Ok(())
    }
}

impl ReplayActor {
    fn report(&self, activity: ReplayActivity, replay: &ShardReplay) {
        self.node.report(self.key, ReplayReport { activity, progress: replay.progress() });
    }

    /// For how long no step may be done: ingest comes first, then the rate, then other replays.
    fn held_back(&self, state: &mut ReplayActorState) -> Option<Duration> {
        if !self.node.late_shards().is_empty() {
            return Some(LOOK_AGAIN);
        }
        let wait = self.node.wait_ms(self.node.clock.uptime());
        if wait > 0 {
            return Some(Duration::from_millis(wait.unsigned_abs()).min(LOOK_AGAIN));
        }
        if state.permit.is_none() {
            state.permit = self.node.permits.clone().try_acquire_owned().ok();
        }
        state.permit.is_none().then_some(LOOK_AGAIN)
    }

    /// Reports a step, and says when the next one follows; `None` if there is none.
    fn after(
        &self,
        state: &mut ReplayActorState,
        replay: &ShardReplay,
        step: ReplayStep,
    ) -> Option<Duration> {
        let (generation, shard) = self.key;
        match step {
            ReplayStep::Read(events) => {
                state.waits = 0;
                self.report(ReplayActivity::Reading, replay);
                self.tell(state, replay);
                let wait = self.node.take(events, self.node.clock.uptime());
                Some(Duration::from_millis(wait.unsigned_abs()).min(LOOK_AGAIN))
            }
            ReplayStep::Waiting(wait) => {
                state.permit = None;
                state.waits = state.waits.saturating_add(1);
                let retry = wait_ms(&wait, state.waits);
                self.log_wait(&wait);
                self.report(ReplayActivity::Waiting(wait), replay);
                Some(Duration::from_millis(retry))
            }
            // Somebody else fills the shard. Its owner goes on, so that there is one who does.
            ReplayStep::Overtaken if self.node.owns(shard) => Some(Duration::ZERO),
            ReplayStep::Overtaken => {
                self.node.forget(self.key);
                tracing::debug!(
                    replay = generation.0,
                    shard = shard.0,
                    "another node fills the shard"
                );
                None
            }
            ReplayStep::Complete => {
                tracing::info!(replay = generation.0, shard = shard.0, "the shard is filled");
                None
            }
            ReplayStep::Ended => {
                tracing::info!(
                    replay = generation.0,
                    shard = shard.0,
                    "the generation is not written any more: the replay ends"
                );
                None
            }
        }
    }

    fn tell(&self, state: &mut ReplayActorState, replay: &ShardReplay) {
        let due = state.told.elapsed() >= TELL_EVERY;
        let Some(progress) = replay.progress().filter(|_| due) else { return };
        state.told = Stopwatch::start();
        let (generation, shard) = self.key;
        tracing::info!(
            replay = generation.0,
            shard = shard.0,
            cursor = progress.stored.cursor,
            cut = progress.stored.cut,
            events = progress.events,
            "replaying (told once a minute)"
        );
    }

    fn log_wait(&self, wait: &ReplayWait) {
        if comes_by_itself(wait) {
            return;
        }
        metrics::counter!(telemetry::REPLAY_FAILURES).increment(1);
        if let Some(silent) = WAIT_LOG.due(&wait.to_string()) {
            let (generation, shard) = self.key;
            tracing::warn!(
                replay = generation.0,
                shard = shard.0,
                why = %wait,
                silent,
                "the replay waits, and tries again (told once a minute)"
            );
        }
    }
}

/// Runs work on a thread of its own, at a low priority: acknowledgements and queries come first.
async fn run_nicely<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ActorProcessingErr> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("replay".to_owned()).spawn(move || {
        // On Linux this sets the niceness of the calling thread alone, not of the process.
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, "a replay runs at the priority of everything else");
        }
        // Nobody waits for it any more if the actor was killed; then it is folded again.
        _ = answer.send(work());
    })?;
    answered.await.map_err(|_| "a step of the replay panicked".into())
}

/// Whether nobody has to do anything about it.
fn comes_by_itself(wait: &ReplayWait) -> bool {
    matches!(wait, ReplayWait::Cut | ReplayWait::Archive(_))
}

/// Milliseconds until a replay that waits looks again, at doubling intervals. What comes by itself
/// comes within seconds, unless the store or the archive is away.
fn wait_ms(wait: &ReplayWait, waits: u32) -> u64 {
    let (soon, longest) = match wait {
        ReplayWait::Cut | ReplayWait::Archive(_) => (SOON, LONGEST_WAIT_MS / 4),
        ReplayWait::Store(_) => (1, LONGEST_WAIT_MS / 4),
        _ => (1, LONGEST_WAIT_MS),
    };
    let doublings = waits.saturating_sub(soon).min(16);
    FIRST_WAIT_MS.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_is_looked_for_at_doubling_intervals() {
        let damaged = ReplayWait::Object("gone".to_owned());
        let waits = [1, 2, 3, 7, 100, u32::MAX].map(|waits| wait_ms(&damaged, waits));
        assert_eq!(waits, [1_000, 2_000, 4_000, 60_000, 60_000, 60_000]);
        let store = ReplayWait::Store("database or disk is full".to_owned());
        assert_eq!([1, 2, 9].map(|waits| wait_ms(&store, waits)), [1_000, 2_000, 15_000]);
        let waits = [1, 30, 31, 100].map(|waits| wait_ms(&ReplayWait::Archive(7), waits));
        assert_eq!(waits, [1_000, 1_000, 2_000, 15_000]);
    }
}
