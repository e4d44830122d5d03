//! The shard actor: claims its shard, pulls records, steps the pure state machine, carries out its effects.
//!
//! A commit of unknown outcome, a refusal or a diverged log ends the actor: its memory is dropped, and the next start reloads the
//! checkpoint. Nothing is ever retried whose outcome is not known.
//!
//! Where no other process can own the shard, it does not need a store that takes writes to answer queries: unclaimed, it reads on from the
//! stored checkpoint under its last owner's epoch, and where it would flush it tries to claim. Once that works, it begins anew.
//!
//! The simulation mirrors this shell, effect by effect (`tests/sim/node.rs`): a decision that changes here changes there.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::heal::{Archived, Healing, Unhealed, resume};
use super::slots::{Slot, Slots};
use crate::clock::{Clock, Stopwatch};
use crate::model::flush::{Claim, DedupRules, FlushBatch, LogRecord, RecentIds};
use crate::model::offset::{Checkpoint, Diverged, Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::log::{EventLog, LogError};
use crate::persistence::store::{RollupStore, StoreError};
use crate::shards::series::{Admission, Census};
use crate::shards::state::{Effect, Input, ShardLimits, ShardState};
use crate::telemetry::{self, RepeatedLog};

/// Payload bytes pulled in one step: bounds how long the write side of the slot's lock is held.
const PULL_BYTES: usize = 512 * 1024;

/// An archive that cannot be reached is asked again after this time.
const HEAL_AGAIN_MS: i64 = 1_000;

/// While the store is away, no shard of the node has anything to say that another has not said.
static FLUSH_FAILED: RepeatedLog = RepeatedLog::new();

/// The catalogue's names are read again by a shard that starts so long after the last one that did.
const NAMES_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// The metric names of tenants, shared by the shards of a node.
#[derive(Debug)]
pub struct Names {
    census: Arc<Census>,
    read: Mutex<Option<Stopwatch>>,
}

impl Names {
    /// Under the limits of a census that knows nothing yet.
    pub fn new(census: Arc<Census>) -> Arc<Self> {
        Arc::new(Self { census, read: Mutex::default() })
    }

    /// The census, which has learnt what the catalogue knows: no shard decides before. Shards that start together read it once.
    fn of(&self, store: &dyn RollupStore) -> Result<Arc<Census>, StoreError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.is_none_or(|read| read.elapsed() > NAMES_AGAIN) {
            self.census.learn(&store.metric_names()?);
            *read = Some(Stopwatch::start());
        }
        Ok(self.census.clone())
    }
}

/// A log that is damaged where the shard stands is read again after this time: somebody may have mended it.
const DAMAGED_AGAIN: Duration = Duration::from_secs(5);

/// What a shard actor needs.
#[derive(Clone)]
pub struct ShardActor {
    /// Its shard.
    pub shard: ShardId,
    /// The log it pulls from.
    pub log: Arc<dyn EventLog>,
    /// The store it flushes to.
    pub store: Arc<dyn RollupStore>,
    /// Where records are read that the log lost.
    pub archive: Arc<dyn Archive>,
    /// Time, for cadence only.
    pub clock: Arc<dyn Clock>,
    /// Its limits.
    pub limits: ShardLimits,
    /// Series of one tenant that it admits: the tenant's limit divided over the shards.
    pub max_series: u64,
    /// The names of each tenant's metrics that it admits.
    pub names: Arc<Names>,
    /// Held by the one shard of the node that applies events alone: if the process dies, only that shard's event is under suspicion.
    pub alone: Arc<Semaphore>,
    /// Where it stands.
    pub slots: Arc<Slots>,
}

/// Messages of a shard actor.
#[derive(Debug)]
pub enum ShardMessage {
    /// There may be something to pull or to flush. At most one is outstanding.
    Pulse,
    /// The commit in flight ended.
    CommitEnded(Result<(), StoreError>),
    /// Whether the store stands where this owner left it.
    Confirmed(Result<(), StoreError>),
    /// Flush what is open; answered when that flush has ended.
    Drain(RpcReplyPort<()>),
}

/// What the shell keeps beside the pure state, which stands in the slot.
#[derive(Default)]
pub struct ShardShell {
    draining: Vec<RpcReplyPort<()>>,
    committing: Option<(u64, Stopwatch)>,
    /// From the first mark of a record until the flush that passes it has cleared the mark.
    alone: Option<OwnedSemaphorePermit>,
    /// While the log lacks what comes next and the archive has it.
    healing: Option<Healing>,
    heal_again_at: Millis,
    /// The store took no claim: nothing is flushed.
    unclaimed: bool,
    /// Since the log was read last where it is damaged.
    damaged: Option<Stopwatch>,
}

/// What a new owner begins with.
struct Loaded {
    claim: Claim,
    state: ShardState,
    healing: Option<Healing>,
    unclaimed: bool,
}

impl ractor::Message for ShardMessage {}

impl Actor for ShardActor {
    type Msg = ShardMessage;
    type State = ShardShell;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<ShardMessage>, (): ()) -> Result<ShardShell, ActorProcessingErr> {
        let actor = self.clone();
        let loaded = tokio::task::spawn_blocking(move || actor.load()).await?;
        let Loaded { claim, state, healing, unclaimed } = loaded.inspect_err(|error| self.note_end(None, error))?;
        let slot = self.slot();
        slot.begin(&claim, state);
        // What it stands before, it has still before it.
        self.slots.goes_on(self.shard, Some(claim.checkpoint.next));
        slot.pulsed.store(false, Ordering::Release);
        Ok(ShardShell { healing, unclaimed, ..ShardShell::default() })
    }

    async fn handle(
        &self,
        myself: ActorRef<ShardMessage>,
        message: ShardMessage,
        shell: &mut ShardShell,
    ) -> Result<(), ActorProcessingErr> {
        let outcome = match message {
            ShardMessage::Pulse => self.on_pulse(&myself, shell).await,
            ShardMessage::CommitEnded(outcome) => self.on_commit_ended(&myself, shell, outcome).await,
            ShardMessage::Confirmed(outcome) => self.on_confirmed(outcome),
            ShardMessage::Drain(reply) => self.on_drain(&myself, shell, reply).await,
        };
        outcome.inspect_err(|error| self.note_end(self.with_state(|state| state.next()).ok(), error))
    }

    async fn post_stop(&self, _: ActorRef<ShardMessage>, _: &mut ShardShell) -> Result<(), ActorProcessingErr> {
        if let Ok(mut state) = self.slot().state.write() {
            *state = None;
        }
        Ok(())
    }
}

/// Whether an actor ended because another owner has claimed its shard.
pub fn was_refused(error: &ActorProcessingErr) -> bool {
    matches!(error.downcast_ref::<StoreError>(), Some(StoreError::Refused { .. }))
}

/// Whether an actor ended because its shard cannot be served, here or elsewhere, until somebody mends its log, its store or its archive.
pub fn cannot_be_served(error: &ActorProcessingErr) -> bool {
    let log = error.downcast_ref::<LogError>().is_some_and(|e| matches!(e, LogError::Corrupt(_) | LogError::Replaced(_)));
    let store = error.downcast_ref::<StoreError>().is_some_and(|e| matches!(e, StoreError::Invalid(_)));
    let healing = error.downcast_ref::<Unhealed>().is_some_and(|e| matches!(e, Unhealed::Diverged(_)));
    log || store || healing || error.downcast_ref::<Diverged>().is_some()
}

impl ShardActor {
    /// An end that no new start mends stops the shard.
    fn note_end(&self, before: Option<Offset>, error: &ActorProcessingErr) {
        if cannot_be_served(error) {
            self.slots.stop(self.shard, before, &error.to_string());
        }
    }

    fn slot(&self) -> &Arc<Slot> {
        self.slots.slot(self.shard)
    }

    /// Claims the shard and loads what a new owner needs: the checkpoint, the recent ids, the admitted series.
    fn load(&self) -> Result<Loaded, ActorProcessingErr> {
        self.look_first()?;
        let nonce = getrandom::u64().map_err(|e| format!("no randomness for the epoch: {e}"))?;
        let (mut claim, unclaimed) = match self.store.claim(self.shard, self.log.id(), nonce) {
            Err(why) if self.log.is_exclusive() => (self.unclaimed(why)?, true),
            claim => (claim?, false),
        };
        if claim.checkpoint.appended.is_none() {
            claim.checkpoint.appended = self.log.appended_below(self.shard, claim.checkpoint.next)?;
        }
        let checkpoint = claim.checkpoint;
        // As they are now: the owner before may have flushed what this node has not heard of yet.
        let (start, end) = self.log.bounds(self.shard)?;
        let healing = self.heals(&checkpoint, (start, end))?;
        // Blocks beyond the horizon were deleted by the flush that knew the append times, so all that is left is within it.
        let blocks = self.store.recent_ids(self.shard, i64::MIN)?;
        let admission = Admission::limited(self.max_series, self.store.admitted_series(self.shard)?);
        let admission = admission.of_shard(self.shard).with_census(self.names.of(&*self.store)?);
        // Another owner may have claimed and flushed between the claim and the two reads: they would then be of a later checkpoint, and
        // this owner would answer queries with them until its first flush is refused.
        let mut snapshot = self.store.snapshot()?;
        let (now, rules) = (snapshot.checkpoints()?, snapshot.dedup_rules(self.shard)?);
        drop(snapshot);
        if !now.iter().any(|(shard, at)| *shard == self.shard && at.epoch == checkpoint.epoch) {
            return Err(StoreError::Refused { shard: self.shard }.into());
        }
        let recent = RecentIds { rules: self.note_rule(rules, &checkpoint)?, blocks };
        let state = ShardState::new(self.limits.clone(), self.shard, &claim, recent, admission, end);
        Ok(Loaded { claim, state, healing, unclaimed })
    }

    /// The checkpoint as it stands, of a store that takes no writes. Nobody counts this start: an event that crashes the process does so
    /// again until the store can be written.
    fn unclaimed(&self, why: StoreError) -> Result<Claim, ActorProcessingErr> {
        if !matches!(why, StoreError::Failed(_) | StoreError::Unavailable(_) | StoreError::Unknown(_)) {
            return Err(why.into());
        }
        let stored = self.store.snapshot()?.checkpoints()?.into_iter().find(|(shard, _)| *shard == self.shard);
        // A shard that never had an owner has nothing to go on from.
        let Some((_, checkpoint)) = stored.filter(|(_, at)| at.log == self.log.id()) else { return Err(why.into()) };
        tracing::warn!(shard = self.shard.0, %why, "the store takes no writes: the shard answers queries, and flushes when it does");
        Ok(Claim { checkpoint, attempts: 0, suspects: Vec::new() })
    }

    /// Where an owner would flush: whether the store takes writes again.
    fn claim_again(&self, myself: &ActorRef<ShardMessage>) -> Result<(), ActorProcessingErr> {
        let nonce = getrandom::u64().map_err(|e| format!("no randomness for the epoch: {e}"))?;
        let (store, shard, log, myself) = (self.store.clone(), self.shard, self.log.id(), myself.clone());
        tokio::task::spawn_blocking(move || {
            let outcome = match store.claim(shard, log, nonce) {
                Ok(_) => StoreError::Unknown("the store takes writes again, and the shard has an owner anew".to_owned()),
                Err(StoreError::Unknown(why)) => StoreError::Failed(why),
                Err(why) => why,
            };
            if let Err(gone) = myself.cast(ShardMessage::CommitEnded(Err(outcome))) {
                tracing::debug!(%gone, "nobody waits for this claim any more");
            }
        });
        Ok(())
    }

    /// A shard that could not be served is not claimed before it can: each claim is a new epoch, and counts as an attempt.
    fn look_first(&self) -> Result<(), ActorProcessingErr> {
        if self.slot().stopped().is_none() {
            return Ok(());
        }
        let stands = self.store.snapshot()?.checkpoints()?.into_iter().find(|(shard, _)| *shard == self.shard);
        if let Some((_, checkpoint)) = stands.filter(|(_, at)| at.log == self.log.id()) {
            self.heals(&checkpoint, self.log.bounds(self.shard)?)?;
        }
        Ok(())
    }

    /// Notes the configured rule of de-duplication, if it is another one: it decides from the checkpoint on, for whoever folds the records.
    fn note_rule(&self, mut rules: DedupRules, at: &Checkpoint) -> Result<DedupRules, StoreError> {
        for (from, rule) in rules.due(at.next, self.limits.dedup_rule()) {
            self.store.note_dedup_rule(self.shard, at.epoch, from, rule)?;
            rules.note(from, rule);
        }
        Ok(rules)
    }

    /// What the log lost above the checkpoint, if it did.
    fn heals(&self, at: &Checkpoint, bounds: (Offset, Offset)) -> Result<Option<Healing>, Unhealed> {
        let count = |outcome: &'static str| metrics::counter!(telemetry::LOG_HEALINGS, "outcome" => outcome).increment(1);
        let healing = resume(&*self.archive, self.shard, at, bounds);
        match &healing {
            Ok(Some(healing)) => {
                let lost = healing.lost();
                tracing::warn!(
                    shard = self.shard.0,
                    "the log lost the records [{}, {}) of this shard: they are read from the archive",
                    lost.from,
                    lost.to
                );
                count("begun");
            }
            Err(Unhealed::Diverged(Diverged::Lost { .. })) => count("refused"),
            Ok(None) | Err(_) => {}
        }
        healing
    }

    async fn on_pulse(&self, myself: &ActorRef<ShardMessage>, shell: &mut ShardShell) -> Result<(), ActorProcessingErr> {
        self.slot().pulsed.store(false, Ordering::Release);
        let more = self.pull(myself, shell).await?;
        self.step(myself, shell, Input::Tick { now: self.clock.uptime(), drain: false }).await?;
        if more && !self.slot().pulsed.swap(true, Ordering::AcqRel) {
            myself.cast(ShardMessage::Pulse)?;
        }
        Ok(())
    }

    /// Applies one bounded batch; whether there is more to pull at once.
    async fn pull(&self, myself: &ActorRef<ShardMessage>, shell: &mut ShardShell) -> Result<bool, ActorProcessingErr> {
        let (next, credit) = self.with_state(|state| (state.next(), state.credit()))?;
        self.end_healing(shell, next);
        let end = self.log.end(self.shard);
        if next > end {
            return Err(Diverged::Short { end, checkpoint: next }.into());
        }
        if credit == 0 || next == end {
            return Ok(false);
        }
        let slot = self.slot();
        if let Some(healing) = shell.healing.take() {
            let mut records = self.read_archived(shell, healing, next).await?;
            records.truncate(credit);
            if records.is_empty() {
                return Ok(false);
            }
            self.step(myself, shell, Input::Records(&records)).await?;
            metrics::counter!(telemetry::LOG_HEALED_RECORDS).increment(records.len() as u64);
        } else {
            let Some(mut records) = self.read_log(shell, next)? else { return Ok(false) };
            records.truncate(credit);
            self.step(myself, shell, Input::Records(&records)).await?;
            if let Some(oldest) = records.first() {
                let delay_ms = self.log.append_now().saturating_sub(oldest.appended).max(0);
                metrics::histogram!(telemetry::VISIBLE_SECONDS).record(delay_ms as f64 / 1000.0);
            }
            let bytes: usize = records.iter().map(|r: &LogRecord| r.payload.len()).sum();
            slot.unarchived_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.slots.look(self.shard, slot);
        let next = self.with_state(|state| state.next())?;
        self.slots.goes_on(self.shard, Some(next));
        Ok(next < self.log.end(self.shard))
    }

    /// Records of the log; none where it is damaged. The shard stands still there and lives: what lies below is flushed and answered, and
    /// a start would find the same.
    fn read_log(&self, shell: &mut ShardShell, next: Offset) -> Result<Option<Vec<LogRecord>>, ActorProcessingErr> {
        if shell.damaged.is_some_and(|since| since.elapsed() < DAMAGED_AGAIN) {
            return Ok(None);
        }
        shell.damaged = None;
        match self.log.read(self.shard, next, PULL_BYTES) {
            Err(LogError::Corrupt(why)) => {
                self.slots.stop(self.shard, Some(next), &LogError::Corrupt(why).to_string());
                shell.damaged = Some(Stopwatch::start());
                Ok(None)
            }
            read => Ok(Some(read?)),
        }
    }

    /// Records that the log lost; none while the archive cannot be reached: the outage waits, no actor dies of it.
    async fn read_archived(
        &self,
        shell: &mut ShardShell,
        mut healing: Healing,
        next: Offset,
    ) -> Result<Vec<LogRecord>, ActorProcessingErr> {
        if self.clock.uptime() < shell.heal_again_at {
            shell.healing = Some(healing);
            return Ok(Vec::new());
        }
        let archive = self.archive.clone();
        let read = tokio::task::spawn_blocking(move || {
            let read = healing.read(&*archive, next, PULL_BYTES);
            (healing, read)
        });
        let (healing, read) = read.await?;
        shell.healing = Some(healing);
        match read {
            Err(ArchiveError::Unavailable(why)) => {
                tracing::warn!(shard = self.shard.0, %why, "the archive cannot be reached for what the log lost, it is tried again");
                shell.heal_again_at = self.clock.uptime() + HEAL_AGAIN_MS;
                Ok(Vec::new())
            }
            read => {
                let Archived { records, decided } = read?;
                if let Some((decisions, to)) = decided {
                    self.with_state(|state| state.learn(&decisions, to))?;
                }
                Ok(records)
            }
        }
    }

    /// Goes on with the log once the shard has everything that it lost.
    fn end_healing(&self, shell: &mut ShardShell, next: Offset) {
        if let Some(healing) = shell.healing.take_if(|healing| healing.is_over(next)) {
            metrics::counter!(telemetry::LOG_HEALINGS, "outcome" => "done").increment(1);
            tracing::warn!(
                shard = self.shard.0,
                "the records [{}, {}) came from the archive; the shard goes on with the log",
                healing.lost().from,
                healing.lost().to
            );
        }
    }

    async fn step(
        &self,
        myself: &ActorRef<ShardMessage>,
        shell: &mut ShardShell,
        input: Input<'_>,
    ) -> Result<(), ActorProcessingErr> {
        let mut effects = Vec::new();
        self.with_state(|state| state.step(input, &mut effects))?;
        while !effects.is_empty() {
            let mut alone = false;
            for effect in effects.drain(..) {
                alone |= self.perform(myself, shell, effect).await?;
            }
            if alone {
                self.with_state(|state| state.step(Input::Records(&[]), &mut effects))?;
            }
        }
        let next = self.with_state(|state| state.next())?;
        self.slot().applied.store(next, Ordering::Release);
        Ok(())
    }

    /// Carries out one effect; whether the state waits to apply a single event.
    async fn perform(
        &self,
        myself: &ActorRef<ShardMessage>,
        shell: &mut ShardShell,
        effect: Effect,
    ) -> Result<bool, ActorProcessingErr> {
        match effect {
            Effect::Confirm { next } => {
                self.confirm(myself, next)?;
                Ok(false)
            }
            Effect::Stop(unread @ Diverged::Unread { offset, .. }) => {
                self.slots.stop(self.shard, Some(offset), &unread.to_string());
                Ok(false)
            }
            Effect::Stop(diverged) => Err(diverged.into()),
            Effect::MarkSuspect { offset, index } => {
                if shell.alone.is_none() {
                    shell.alone = Some(self.alone.clone().acquire_owned().await?);
                }
                let (store, shard) = (self.store.clone(), self.shard);
                let epoch = self.with_state(|state| state.epoch())?;
                tokio::task::spawn_blocking(move || store.mark_suspect(shard, epoch, offset, index)).await??;
                Ok(true)
            }
            Effect::Commit { guard, batch, forget_ids_before } => {
                shell.committing = Some((guard.range.to, Stopwatch::start()));
                if shell.unclaimed {
                    self.claim_again(myself)?;
                    return Ok(false);
                }
                let (store, myself) = (self.store.clone(), myself.clone());
                tokio::task::spawn_blocking(move || {
                    let outcome = store.flush(guard, &batch, forget_ids_before);
                    if outcome.is_ok() {
                        count_events(&batch);
                    }
                    if let Err(gone) = myself.cast(ShardMessage::CommitEnded(outcome)) {
                        // The actor died meanwhile: its successor reads the outcome from the checkpoint.
                        tracing::debug!(%gone, "nobody waits for this commit any more");
                    }
                });
                Ok(false)
            }
        }
    }

    /// Asks beside, because a store that is away may take long to say so.
    fn confirm(&self, myself: &ActorRef<ShardMessage>, next: Offset) -> Result<(), ActorProcessingErr> {
        let epoch = self.with_state(|state| state.epoch())?;
        let archived = self.slot().archived.load(Ordering::Acquire);
        let (store, shard, myself) = (self.store.clone(), self.shard, myself.clone());
        tokio::task::spawn_blocking(move || {
            let found = store.snapshot().and_then(|mut snapshot| snapshot.checkpoints());
            let stands = found.and_then(|all| {
                let here = |at: &Checkpoint| at.epoch == epoch && at.next >= next && at.archived >= archived;
                let mine = all.iter().any(|(of, at)| *of == shard && here(at));
                if mine { Ok(()) } else { Err(StoreError::Refused { shard }) }
            });
            if let Err(gone) = myself.cast(ShardMessage::Confirmed(stands)) {
                tracing::debug!(%gone, "nobody waits for this answer any more");
            }
        });
        Ok(())
    }

    fn on_confirmed(&self, outcome: Result<(), StoreError>) -> Result<(), ActorProcessingErr> {
        match outcome {
            Err(refused @ StoreError::Refused { .. }) => {
                tracing::warn!(shard = self.shard.0, "the store does not stand where this owner left it: the shard begins anew");
                Err(refused.into())
            }
            Err(why) => {
                tracing::debug!(shard = self.shard.0, %why, "the store cannot be asked where it stands, it is tried again");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn on_commit_ended(
        &self,
        myself: &ActorRef<ShardMessage>,
        shell: &mut ShardShell,
        outcome: Result<(), StoreError>,
    ) -> Result<(), ActorProcessingErr> {
        let committing = shell.committing.take();
        let label = match &outcome {
            Ok(()) => "committed",
            Err(StoreError::Failed(_) | StoreError::Unavailable(_) | StoreError::TooLong(_)) => "failed",
            Err(StoreError::Refused { .. }) => "refused",
            Err(StoreError::Unknown(_)) => "unknown",
            Err(StoreError::Invalid(_) | StoreError::TooManySeries { .. } | StoreError::Ended) => "invalid",
        };
        metrics::counter!(telemetry::FLUSHES, "outcome" => label).increment(1);
        match outcome {
            Ok(()) => {
                if let Some((to, watch)) = committing {
                    metrics::histogram!(telemetry::FLUSH_SECONDS).record(watch.elapsed().as_secs_f64());
                    self.slot().committed.store(to, Ordering::Release);
                    self.slot().attempts.store(0, Ordering::Release);
                }
                shell.alone = None;
                self.slot().note_flush(Ok(()));
                self.step(myself, shell, Input::Committed { now: self.clock.uptime() }).await?;
            }
            Err(StoreError::Failed(why) | StoreError::Unavailable(why) | StoreError::TooLong(why)) => {
                self.slot().note_flush(Err(&why));
                if let Some(silent) = FLUSH_FAILED.tell(&why) {
                    tracing::warn!(shard = self.shard.0, silent, %why, "flush failed, it is tried again (told once a minute)");
                }
                self.with_state(|state| state.step(Input::CommitFailed, &mut Vec::new()))?;
            }
            Err(error) => return Err(error.into()),
        }
        metrics::gauge!(telemetry::FLUSHES_FAILING).set(self.slots.failing() as f64);
        shell.draining.drain(..).filter(|reply| !reply.is_closed()).try_for_each(|reply| reply.send(()))?;
        Ok(())
    }

    async fn on_drain(
        &self,
        myself: &ActorRef<ShardMessage>,
        shell: &mut ShardShell,
        reply: RpcReplyPort<()>,
    ) -> Result<(), ActorProcessingErr> {
        self.step(myself, shell, Input::Tick { now: self.clock.uptime(), drain: true }).await?;
        if shell.committing.is_none() {
            reply.send(())?;
        } else {
            shell.draining.push(reply);
        }
        Ok(())
    }

    fn with_state<T>(&self, f: impl FnOnce(&mut ShardState) -> T) -> Result<T, ActorProcessingErr> {
        let mut guard = self.slot().state.write().map_err(|_| "the shard's state is poisoned by an earlier panic")?;
        let state = guard.as_mut().ok_or("the shard has no state")?;
        Ok(f(state))
    }
}

/// What a committed batch adds to the metrics: an uncommitted one is counted by whoever commits those events.
fn count_events(batch: &FlushBatch) {
    let overflowed = batch.deltas.iter().filter(|delta| delta.series.series.is_overflow());
    metrics::counter!(telemetry::FLUSH_ROWS).increment(batch.deltas.len() as u64);
    metrics::counter!(telemetry::EVENTS_OVERFLOWED).increment(overflowed.map(|delta| delta.rollup.figures.count).sum());
    metrics::counter!(telemetry::EVENTS_AGGREGATED).increment(batch.accounting.iter().map(|row| row.aggregated).sum());
    metrics::counter!(telemetry::EVENTS_DEDUPLICATED).increment(batch.accounting.iter().map(|row| row.deduplicated).sum());
    let Some(first) = batch.quarantined.first() else { return };
    let records = batch.quarantined.iter().filter(|row| row.tenant.is_empty()).count();
    let events = batch.quarantined.len() - records;
    metrics::counter!(telemetry::QUARANTINED, "what" => "record").increment(records as u64);
    metrics::counter!(telemetry::QUARANTINED, "what" => "event").increment(events as u64);
    tracing::warn!(
        shard = first.shard.0,
        offset = first.offset,
        reason = first.reason,
        records,
        events,
        "records or events were set aside, and are not counted: `rollmill quarantine list`; the first one's place and reason"
    );
}
