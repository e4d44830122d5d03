//! The shard actor: performs the commands of the shard's driver and returns the results as
//! events. It decides nothing.
//!
//! Log reads run in the actor itself; archive reads and marks run on a blocking thread and are
//! awaited. Commits, claims and confirmations run in the background, because an unreachable store
//! can take a while to fail.

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

/// Payload bytes pulled in one step. It bounds how long the write lock on the
/// shard's entry is held.
const PULL_BYTES: usize = 512 * 1024;

/// While the store is unreachable, all shards of the node report the same failure.
static FLUSH_FAILURE_LOG: RepeatedLog = RepeatedLog::new();

/// Dependencies and configuration of a shard actor.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct ShardActor {
    pub ports: ShardPorts,
    pub limits: ShardLimits,
    /// Most series that the shard admits for one tenant: the tenant's limit divided by
    /// the number of shards.
    pub max_series: u64,
    /// Held by the one shard of the node that isolates events, so that a crash of the process
    /// incriminates only that shard's event.
    pub isolation: Arc<Semaphore>,
}

/// Messages of a shard actor.
#[derive(Debug)]
pub enum ShardMessage {
    /// There may be something to read or to flush. At most one is outstanding.
    Wakeup,
    /// A call that ran in the background has ended.
    CallEnded(ShardEvent<'static>),
    /// Flush whatever is open; answered when that flush has ended.
    Drain(RpcReplyPort<()>),
}

/// State of the actor besides the driver, which is in the shard table.
#[derive(Default)]
pub struct ShardActorState {
    draining: Vec<RpcReplyPort<()>>,
    isolation: Option<OwnedSemaphorePermit>,
    /// Present while records that the log lost are read from the archive.
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
                    // Reported here, because a failed start leaves no actor that could.
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
        // Not called if the actor fails or is killed; then `install_owner` or `vacate` replaces the
        // memory.
        self.entry().drop_memory();
        Ok(())
    }
}

impl ShardActor {
    /// Passes a message to the driver as an event and performs commands until there are none left.
    async fn handle_message(
        &self,
        myself: &ActorRef<ShardMessage>,
        message: ShardMessage,
        shell: &mut ShardActorState,
    ) -> Result<(), ActorProcessingErr> {
        let event = match message {
            ShardMessage::Wakeup => {
                // The credit is returned before the step, so that a record appended meanwhile gets
                // a wake-up of its own.
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

/// Whether an actor ended because its shard cannot be served on any node until somebody repairs its
/// log, its store or its archive.
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
    /// The same configuration for another shard.
    #[must_use]
    pub fn for_shard(&self, shard: ShardId) -> Self {
        Self { ports: ShardPorts { shard, ..self.ports.clone() }, ..self.clone() }
    }

    fn entry(&self) -> &Arc<ShardEntry> {
        self.ports.table.entry(self.ports.shard)
    }

    /// Runs the start-up of the shard. Blocks.
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

    /// Performs one command. Returns the event that answers it, if it is available at once.
    async fn perform(
        &self,
        myself: &ActorRef<ShardMessage>,
        shell: &mut ShardActorState,
        command: ShardCommand,
    ) -> Result<Option<ShardEvent<'static>>, ActorProcessingErr> {
        // Cloned for calls on other threads alone: reads of the log and notices come at every pull.
        let ports = || self.ports.clone();
        match command {
            ShardCommand::ReadLog { from, max_bytes } => {
                return Ok(Some(self.ports.read_log(from, max_bytes)));
            }
            ShardCommand::ReadArchive { from, max_bytes } => {
                let (ports, mut archived) = (ports(), shell.gap_reader.take());
                let read = tokio::task::spawn_blocking(move || {
                    let event = ports.read_archive(&mut archived, from, max_bytes);
                    (archived, event)
                });
                let (archived, event) = read.await?;
                shell.gap_reader = archived;
                return Ok(Some(event));
            }
            ShardCommand::AcquireIsolation => {
                // The handler waits here: this shard has nothing to apply before
                // the permit is there.
                shell.isolation = Some(self.isolation.clone().acquire_owned().await?);
                return Ok(Some(ShardEvent::IsolationAcquired));
            }
            ShardCommand::ReleaseIsolation => shell.isolation = None,
            ShardCommand::MarkSuspect { epoch, offset, index } => {
                let ports = ports();
                let marked =
                    tokio::task::spawn_blocking(move || ports.mark_suspect(epoch, offset, index));
                return Ok(Some(marked.await?));
            }
            ShardCommand::Commit { guard, batch, forget_ids_before } => {
                // In the background: while the store works, the shard keeps reading and applying.
                let ports = ports();
                spawn_call(myself, move || commit(&ports, guard, &batch, forget_ids_before));
            }
            ShardCommand::Reclaim => {
                let (nonce, ports) = (nonce()?, ports());
                spawn_call(myself, move || ports.reclaim(nonce));
            }
            ShardCommand::Confirm { next, set } => {
                let ports = ports();
                spawn_call(myself, move || ports.confirm(next, set));
            }
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

    /// Reports a notice to logs, metrics and the shard table.
    fn log_notice(&self, report: ShardNotice) {
        let (table, shard) = (&self.ports.table, self.ports.shard);
        match report {
            ShardNotice::Unclaimed(why) => {
                tracing::warn!(
                    shard = shard.0,
                    %why,
                    "the store takes no writes: the shard answers queries, and flushes when it does"
                );
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
                tracing::warn!(
                    shard = shard.0,
                    %why,
                    "the archive cannot be reached for what the log lost, it is tried again"
                );
            }
            ShardNotice::Applied(applied) => {
                self.count_applied(&applied);
                table.record_applied(shard, &applied);
            }
            ShardNotice::FlushEnded(outcome) => self.record_flush(&outcome),
            ShardNotice::Unconfirmed(why) => {
                tracing::debug!(
                    shard = shard.0,
                    %why,
                    "the store cannot be asked where it stands, it is tried again"
                );
            }
            ShardNotice::Stopped { before, why } => table.stop(shard, before, &why),
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
                    tracing::warn!(
                        shard = self.ports.shard.0,
                        silent,
                        %why,
                        "flush failed, it is tried again (told once a minute)"
                    );
                }
            }
            Err(_) => {}
        }
        metrics::gauge!(telemetry::FLUSHES_FAILING).set(self.ports.table.failing_count() as f64);
    }
}

/// Runs a call in the background and sends its result to the actor.
fn spawn_call(
    myself: &ActorRef<ShardMessage>,
    call: impl FnOnce() -> ShardEvent<'static> + Send + 'static,
) {
    let myself = myself.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(gone) = myself.cast(ShardMessage::CallEnded(call())) {
            // The actor died in the meantime; its successor reads the outcome from the checkpoint.
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
        for abandonment in &batch.abandons {
            let why = abandonment.reason(guard.shard);
            for given_up in &abandonment.generations {
                metrics::counter!(telemetry::REPLAYS_GIVEN_UP).increment(1);
                tracing::warn!(replay = given_up.0, why, "a replay is given up");
            }
        }
    }
    ended
}

/// Adds a committed batch to the metrics. An uncommitted batch is not counted: the owner that
/// commits its events counts them.
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
