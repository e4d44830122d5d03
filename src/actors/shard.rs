//! The shard actor: performs what the shard's driver asks for, and tells it how it went. It decides
//! nothing.
//!
//! Short calls are made on the actor's own thread or awaited; commits, claims and confirmations run
//! beside it, because a store that is away may take long to fail.

use std::collections::VecDeque;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use super::gap_reader::GapReader;
use super::shard_ports::ShardPorts;
use super::shard_table::ShardEntry;
use crate::clock::Stopwatch;
use crate::model::flush::{FlushBatch, FlushGuard};
use crate::model::offset::{OffsetRange, ShardId};
use crate::model::window::Millis;
use crate::shards::driver::startup::{RunningShard, ShardConfig, ShardStartup, StartupProgress};
use crate::shards::driver::{
    AppliedRecords, CallError, EndReason, FailureKind, ShardCommand, ShardEvent, ShardNotice,
};
use crate::shards::state::ShardLimits;
use crate::telemetry::{self, RepeatedLog};

/// Payload bytes pulled in one step: bounds how long the write side of the slot's lock is held.
const PULL_BYTES: usize = 512 * 1024;

/// While the store is away, no shard of the node has anything to say that another has not said.
static FLUSH_FAILURE_LOG: RepeatedLog = RepeatedLog::new();

/// What a shard actor needs.
#[derive(Clone)]
pub struct ShardActor {
    /// What its commands are performed on.
    pub ports: ShardPorts,
    /// Its limits.
    pub limits: ShardLimits,
    /// Series of one tenant that it admits: the tenant's limit divided over the shards.
    pub max_series: u64,
    /// Held by the one shard of the node that applies events alone: if the process dies, only that
    /// shard's event is under suspicion.
    pub isolation: Arc<Semaphore>,
}

/// Messages of a shard actor.
#[derive(Debug)]
pub enum ShardMessage {
    /// There may be something to pull or to flush. At most one is outstanding.
    Wakeup,
    /// What ran beside the actor has ended.
    CallEnded(ShardEvent<'static>),
    /// Flush what is open; answered when that flush has ended.
    Drain(RpcReplyPort<()>),
}

/// What the shell keeps beside the driver, which is in the slot.
#[derive(Default)]
pub struct ShardActorState {
    draining: Vec<RpcReplyPort<()>>,
    isolation: Option<OwnedSemaphorePermit>,
    /// While the log lacks what comes next and the archive has it.
    gap_reader: Option<GapReader>,
}

impl ractor::Message for ShardMessage {}

impl Actor for ShardActor {
    type Msg = ShardMessage;
    type State = ShardActorState;
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ActorRef<ShardMessage>,
        (): (),
    ) -> Result<ShardActorState, ActorProcessingErr> {
        let (actor, span) =
            (self.clone(), tracing::info_span!("shard_start", shard = self.ports.shard.0));
        let (started, archived) =
            tokio::task::spawn_blocking(move || span.in_scope(|| actor.start()))
                .await?
                .inspect_err(|reason| {
                    if reason.lost_records().is_some() {
                        metrics::counter!(telemetry::LOG_HEALINGS, "outcome" => "refused")
                            .increment(1);
                    }
                    ShardNotice::from_end(reason, None)
                        .into_iter()
                        .for_each(|report| self.log_notice(report));
                })?;
        self.ports.table.install_owner(self.ports.shard, &started.claim, started.driver);
        started.notices.into_iter().for_each(|report| self.log_notice(report));
        Ok(ShardActorState { gap_reader: archived, ..ShardActorState::default() })
    }

    async fn handle(
        &self,
        myself: ActorRef<ShardMessage>,
        message: ShardMessage,
        shell: &mut ShardActorState,
    ) -> Result<(), ActorProcessingErr> {
        // At debug: there is one for every few records.
        let span = tracing::debug_span!("shard_step", shard = self.ports.shard.0);
        self.handle_message(&myself, message, shell).instrument(span).await
    }

    async fn post_stop(
        &self,
        _: ActorRef<ShardMessage>,
        _: &mut ShardActorState,
    ) -> Result<(), ActorProcessingErr> {
        self.entry().drop_memory();
        Ok(())
    }
}

impl ShardActor {
    /// Tells the driver what happened, and performs its commands until it has none.
    async fn handle_message(
        &self,
        myself: &ActorRef<ShardMessage>,
        message: ShardMessage,
        shell: &mut ShardActorState,
    ) -> Result<(), ActorProcessingErr> {
        let event = match message {
            ShardMessage::Wakeup => {
                self.entry().clear_wakeup();
                ShardEvent::Wakeup
            }
            ShardMessage::CallEnded(event) => event,
            ShardMessage::Drain(reply) => {
                shell.draining.push(reply);
                ShardEvent::Drain
            }
        };
        let mut commands = VecDeque::new();
        self.ports.table.drive(self.ports.shard, event, &mut commands)?;
        while let Some(command) = commands.pop_front() {
            if let Some(answer) = self.perform(myself, shell, command).await? {
                self.ports.table.drive(self.ports.shard, answer, &mut commands)?;
            }
        }
        Ok(())
    }
}

/// Whether an actor ended because another owner has claimed its shard.
pub fn is_refusal(error: &ActorProcessingErr) -> bool {
    error.downcast_ref::<EndReason>().is_some_and(EndReason::is_refusal)
}

/// Whether an actor ended because its shard cannot be served, here or elsewhere, until somebody
/// mends its log, its store or its archive.
pub fn needs_repair(error: &ActorProcessingErr) -> bool {
    error.downcast_ref::<EndReason>().is_some_and(EndReason::needs_repair)
}

fn nonce() -> Result<u64, CallError> {
    let unknown = |error| CallError {
        kind: FailureKind::Other,
        message: format!("no randomness for the epoch: {error}"),
    };
    getrandom::u64().map_err(unknown)
}

impl ShardActor {
    /// The same for another shard.
    #[must_use]
    pub fn for_shard(&self, shard: ShardId) -> Self {
        Self { ports: ShardPorts { shard, ..self.ports.clone() }, ..self.clone() }
    }

    fn entry(&self) -> &Arc<ShardEntry> {
        self.ports.table.entry(self.ports.shard)
    }

    /// Starts the shard. Blocks.
    fn start(&self) -> Result<(RunningShard, Option<GapReader>), EndReason> {
        let config = ShardConfig {
            shard: self.ports.shard,
            log: self.ports.log.id(),
            exclusive: self.ports.log.is_exclusive(),
            limits: self.limits.clone(),
            max_series: self.max_series,
            metric_names: self.ports.metric_names.as_ref().map(|names| names.registry().clone()),
            pull_bytes: PULL_BYTES,
        };
        let (nonce, mut archived) = (nonce()?, None);
        let (mut startup, mut command) =
            ShardStartup::begin(config, self.entry().stop_reason().is_some());
        loop {
            match startup.handle(self.ports.answer(command, nonce, &mut archived))? {
                StartupProgress::Next(next, ask) => (startup, command) = (next, ask),
                StartupProgress::Started(started) => return Ok((*started, archived)),
            }
        }
    }

    /// Performs one command; its answer, if there is one at once.
    async fn perform(
        &self,
        myself: &ActorRef<ShardMessage>,
        shell: &mut ShardActorState,
        command: ShardCommand,
    ) -> Result<Option<ShardEvent<'static>>, ActorProcessingErr> {
        let ports = self.ports.clone();
        match command {
            ShardCommand::ReadLog { from, max_bytes } => {
                return Ok(Some(ports.read_log(from, max_bytes)));
            }
            ShardCommand::ReadArchive { from, max_bytes } => {
                let mut archived = shell.gap_reader.take();
                let read = tokio::task::spawn_blocking(move || {
                    let event = ports.read_archive(&mut archived, from, max_bytes);
                    (archived, event)
                });
                let (archived, event) = read.await?;
                shell.gap_reader = archived;
                return Ok(Some(event));
            }
            ShardCommand::AcquireIsolation => {
                shell.isolation = Some(self.isolation.clone().acquire_owned().await?);
                return Ok(Some(ShardEvent::IsolationAcquired));
            }
            ShardCommand::ReleaseIsolation => shell.isolation = None,
            ShardCommand::MarkSuspect { epoch, offset, index } => {
                let marked =
                    tokio::task::spawn_blocking(move || ports.mark_suspect(epoch, offset, index));
                return Ok(Some(marked.await?));
            }
            ShardCommand::Commit { guard, batch, forget_ids_before } => {
                spawn_call(myself, move || commit(&ports, guard, &batch, forget_ids_before));
            }
            ShardCommand::Reclaim => {
                let nonce = nonce()?;
                spawn_call(myself, move || ports.reclaim(nonce));
            }
            ShardCommand::Confirm { next } => spawn_call(myself, move || ports.confirm(next)),
            ShardCommand::Drained => {
                shell
                    .draining
                    .drain(..)
                    .filter(|reply| !reply.is_closed())
                    .try_for_each(|reply| reply.send(()))?;
            }
            ShardCommand::WakeAgain if self.entry().try_begin_wakeup() => {
                myself.cast(ShardMessage::Wakeup)?
            }
            ShardCommand::WakeAgain => {}
            ShardCommand::Notify(report) => self.log_notice(report),
            ShardCommand::End(reason) => return Err(reason.into()),
        }
        Ok(None)
    }

    /// Tells people.
    fn log_notice(&self, report: ShardNotice) {
        let (slots, shard) = (&self.ports.table, self.ports.shard);
        match report {
            ShardNotice::Unclaimed(why) => {
                tracing::warn!(shard = shard.0, %why, "the store takes no writes: the shard answers queries, and flushes when it does");
            }
            ShardNotice::RecoveryStarted(lost) => {
                metrics::counter!(telemetry::LOG_HEALINGS, "outcome" => "begun").increment(1);
                tracing::warn!(
                    shard = shard.0,
                    from = lost.from,
                    to = lost.to,
                    "the log lost records of this shard: they are read from the archive"
                );
            }
            ShardNotice::RecoveryEnded(lost) => {
                metrics::counter!(telemetry::LOG_HEALINGS, "outcome" => "done").increment(1);
                tracing::warn!(
                    shard = shard.0,
                    from = lost.from,
                    to = lost.to,
                    "what the log lost came from the archive; the shard reads the log again"
                );
            }
            ShardNotice::RecoveryDelayed(why) => {
                tracing::warn!(shard = shard.0, %why, "the archive cannot be reached for what the log lost, it is tried again");
            }
            ShardNotice::Applied(applied) => {
                self.count_applied(&applied);
                slots.record_applied(shard, &applied);
            }
            ShardNotice::FlushEnded(outcome) => self.record_flush(&outcome),
            ShardNotice::Unconfirmed(why) => {
                tracing::debug!(shard = shard.0, %why, "the store cannot be asked where it stands, it is tried again");
            }
            ShardNotice::Stopped { before, why } => slots.stop(shard, before, &why),
        }
    }

    fn count_applied(&self, applied: &AppliedRecords) {
        if applied.from_archive {
            metrics::counter!(telemetry::LOG_HEALED_RECORDS).increment(applied.records as u64);
        } else if let Some(oldest) = applied.oldest {
            let delay_ms = self.ports.log.append_now().saturating_sub(oldest).max(0);
            metrics::histogram!(telemetry::VISIBLE_SECONDS).record(delay_ms as f64 / 1000.0);
        }
    }

    fn record_flush(&self, outcome: &Result<(), CallError>) {
        let label = match outcome.as_ref().map_err(|error| error.kind) {
            Ok(()) => "committed",
            Err(FailureKind::NotApplied | FailureKind::Unavailable | FailureKind::TimedOut) => {
                "failed"
            }
            Err(FailureKind::Refused) => "refused",
            Err(FailureKind::OutcomeUnknown) => "unknown",
            Err(FailureKind::Damaged | FailureKind::Unusable | FailureKind::Other) => "invalid",
        };
        metrics::counter!(telemetry::FLUSHES, "outcome" => label).increment(1);
        match outcome {
            Ok(()) => self.entry().record_flush(Ok(())),
            Err(why) if why.is_retryable() => {
                self.entry().record_flush(Err(&why.message));
                if let Some(silent) = FLUSH_FAILURE_LOG.due(&why.message) {
                    tracing::warn!(shard = self.ports.shard.0, silent, %why, "flush failed, it is tried again (told once a minute)");
                }
            }
            Err(_) => {}
        }
        metrics::gauge!(telemetry::FLUSHES_FAILING).set(self.ports.table.failing_count() as f64);
    }
}

/// Runs a call beside the actor and sends its answer back.
fn spawn_call(
    myself: &ActorRef<ShardMessage>,
    call: impl FnOnce() -> ShardEvent<'static> + Send + 'static,
) {
    let myself = myself.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(gone) = myself.cast(ShardMessage::CallEnded(call())) {
            // The actor died meanwhile: its successor reads the outcome from the checkpoint.
            tracing::debug!(%gone, "nobody waits for this answer any more");
        }
    });
}

fn commit(
    ports: &ShardPorts,
    guard: FlushGuard,
    batch: &FlushBatch,
    forget_ids_before: Millis,
) -> ShardEvent<'static> {
    let OffsetRange { from, to } = guard.range;
    let epoch = guard.epoch.counter;
    let _span = tracing::info_span!("flush", shard = guard.shard.0, epoch, from, to).entered();
    let watch = Stopwatch::start();
    let ended = ports.commit(guard, batch, forget_ids_before);
    if matches!(ended, ShardEvent::CommitEnded(Ok(()))) {
        metrics::histogram!(telemetry::FLUSH_SECONDS).record(watch.elapsed().as_secs_f64());
        count_events(batch);
    }
    ended
}

/// What a committed batch adds to the metrics: an uncommitted one is counted by whoever commits
/// those events.
fn count_events(batch: &FlushBatch) {
    let overflowed = batch.deltas.iter().filter(|delta| delta.series.series.is_overflow());
    metrics::counter!(telemetry::FLUSH_ROWS).increment(batch.deltas.len() as u64);
    metrics::counter!(telemetry::EVENTS_OVERFLOWED)
        .increment(overflowed.map(|delta| delta.rollup.figures.count).sum());
    metrics::counter!(telemetry::EVENTS_AGGREGATED)
        .increment(batch.accounting.iter().map(|row| row.aggregated).sum());
    metrics::counter!(telemetry::EVENTS_DEDUPLICATED)
        .increment(batch.accounting.iter().map(|row| row.deduplicated).sum());
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
        "records or events were set aside, and are not counted: `rollmill quarantine list`; the \
         first one's place and reason"
    );
}
