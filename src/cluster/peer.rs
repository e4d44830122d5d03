//! Another node as this one knows it: its announcement, its availability, and the calls in flight.
//!
//! Every call has a deadline. At most `cluster.max_calls` calls per peer are in flight, and
//! identical requests share one call. A peer that misses a deadline is not asked again until it has
//! answered a heartbeat sent after that.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ractor::ActorRef;
use ractor::rpc::CallResult;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tracing::Instrument;

use super::endpoint::EndpointMessage;
use super::wire::{
    self, NodeAnnouncement, PeerReply, PeerRequest, ShardAnnouncement, WireFreshness,
};
use crate::actors::live::LiveError;
use crate::clock::{Clock, Stopwatch};
use crate::model::CodecError;
use crate::model::offset::{Checkpoint, LogId, ShardId};
use crate::model::series::metric_hash;
use crate::model::window::{Hour, Millis};
use crate::telemetry;

/// The latest announcement of a peer, indexed for look-ups.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Default)]
pub struct PeerAnnouncement {
    /// The shards that it owns, by number.
    pub shards: HashMap<u32, ShardAnnouncement>,
    /// Shards that cannot start on the peer.
    stopped: HashSet<u32>,
    windows: Option<HashMap<u64, Vec<i32>>>,
    /// When the heartbeat was sent, by this node's uptime clock.
    pub requested_at: Millis,
    /// Its status for `/v1/status`, as it sent it.
    pub node_status: Vec<u8>,
}

impl PeerAnnouncement {
    /// Indexes an announcement; `asked_at` is when the heartbeat was sent.
    pub fn new(announcement: NodeAnnouncement, asked_at: Millis) -> Self {
        let shards = announcement
            .shards
            .into_iter()
            .map(|announced_shard| (announced_shard.from.shard, announced_shard))
            .collect();
        let windows = announcement.windows.map(|all| all.into_iter().collect());
        let stopped = announcement.stopped.into_iter().collect();
        Self {
            shards,
            stopped,
            windows,
            requested_at: asked_at,
            node_status: announcement.card.into_vec(),
        }
    }

    /// Whether the shard cannot start on the peer until an operator fixes the cause.
    pub fn has_stopped(&self, shard: ShardId) -> bool {
        self.stopped.contains(&shard.0)
    }

    /// If the peer's memory of the shard, above the checkpoint, holds nothing of the metric in the
    /// half-open range `hours`: how fresh that statement is.
    ///
    /// ADR 0012 has the proof: the records from the checkpoint up to the peer's applied offset are
    /// among those that its announcement covers.
    pub fn holds_nothing(
        &self,
        at: (u32, &Checkpoint),
        metric: (&str, &str),
        hours: (Hour, Hour),
    ) -> Option<WireFreshness> {
        let (shard, checkpoint) = at;
        let announced_shard = self.shards.get(&shard)?;
        let begins = announced_shard.from.checkpoint();
        if begins.epoch != checkpoint.epoch
            || begins.log != checkpoint.log
            || begins.next > checkpoint.next
        {
            return None;
        }
        let held = self.windows.as_ref()?.get(&metric_hash(metric.0, metric.1));
        let any = held
            .is_some_and(|held| held.iter().any(|hour| hours.0.0 <= *hour && *hour < hours.1.0));
        (!any).then_some(announced_shard.reach)
    }
}

/// The reply to a call.
#[derive(Debug)]
pub struct PeerAnswer {
    /// When the request was sent, by this node's clock. Ages in the reply count back from here.
    pub sent_at: Millis,
    bytes: Vec<u8>,
    reply: OnceLock<Result<PeerReply, CodecError>>,
}

impl PeerAnswer {
    /// The decoded reply. Decoded once, even if several queries share it.
    pub fn reply(&self) -> &Result<PeerReply, CodecError> {
        self.reply.get_or_init(|| wire::decode(&self.bytes))
    }
}

/// The outcome of a call, with the number given by its waiter.
pub type CallOutcome = (usize, Result<Arc<PeerAnswer>, LiveError>);

/// Somebody who waits for the outcome of a call.
pub struct CallWaiter {
    /// Identifies the call among those of the same query.
    pub number: usize,
    /// Receives the outcome; must have a free slot, because the sender does not block.
    pub to: SyncSender<CallOutcome>,
}

/// A peer with a session, or whose session has ended.
#[allow(missing_docs, reason = "the names say it")]
pub struct MeshPeer {
    pub name: String,
    endpoint: ActorRef<EndpointMessage>,
    runtime: Handle,
    clock: Arc<dyn Clock>,
    credit: Semaphore,
    in_flight: Mutex<HashMap<Vec<u8>, Vec<CallWaiter>>>,
    announcement: ArcSwapOption<PeerAnnouncement>,
    /// It answers heartbeats, and no call has missed its deadline since the last one.
    trusted: AtomicBool,
    failures: AtomicU64,
    gone: AtomicBool,
    /// The log that it announces, if it is not ours: the peer belongs to another cluster.
    foreign: ArcSwapOption<LogId>,
    /// Requests a heartbeat ahead of schedule.
    pub poke: Notify,
}

impl std::fmt::Debug for MeshPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .field("answers", &self.is_available())
            .finish_non_exhaustive()
    }
}

impl MeshPeer {
    /// A peer with this endpoint. Must be called within the runtime that will run its calls.
    pub fn new(
        name: String,
        endpoint: ActorRef<EndpointMessage>,
        clock: Arc<dyn Clock>,
        max_calls: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            endpoint,
            runtime: Handle::current(),
            clock,
            credit: Semaphore::new(max_calls),
            in_flight: Mutex::default(),
            announcement: ArcSwapOption::empty(),
            trusted: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            foreign: ArcSwapOption::empty(),
            poke: Notify::new(),
        })
    }

    /// Its latest announcement; None if it has never answered.
    pub fn announcement(&self) -> Option<Arc<PeerAnnouncement>> {
        self.announcement.load_full()
    }

    /// Whether it answers, even if it belongs to another cluster.
    pub fn is_alive(&self) -> bool {
        self.trusted.load(Ordering::Acquire) && !self.gone.load(Ordering::Acquire)
    }

    /// The log of the cluster that it belongs to, if that is not ours.
    pub fn foreign_log(&self) -> Option<LogId> {
        self.foreign.load().as_deref().copied()
    }

    /// Whether it can be asked: it answers and belongs to this cluster.
    pub fn is_available(&self) -> bool {
        self.is_alive() && self.foreign.load().is_none()
    }

    /// Compares its announced log with ours. If they differ, the peer is no longer asked and
    /// its log is returned.
    pub fn check_log(&self, log: LogId) -> Option<LogId> {
        let announced = self.announcement.load_full()?;
        let other = announced
            .shards
            .values()
            .map(|announced_shard| announced_shard.from.checkpoint().log)
            .find(|other| *other != log);
        self.foreign.store(other.map(Arc::new));
        other
    }

    /// Whether its session has ended.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Records that its session has ended: it is not asked any more, but what it
    /// owned is still known.
    pub fn mark_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Sends a heartbeat; the reply becomes the peer's announcement.
    ///
    /// # Errors
    /// If there is no reply in time, or it cannot be understood.
    pub async fn heartbeat(&self, deadline: Duration) -> Result<(), HeartbeatError> {
        let failures = self.failures.load(Ordering::Acquire);
        let asked_at = self.clock.uptime();
        let request = wire::encode(&PeerRequest::Beat).map_err(HeartbeatError::Refused)?;
        let bytes = self.call(request, deadline).await.map_err(|_| HeartbeatError::Silent)?;
        match wire::decode(&bytes).map_err(HeartbeatError::Refused)? {
            PeerReply::Beat(announcement) => {
                self.announcement
                    .store(Some(Arc::new(PeerAnnouncement::new(announcement, asked_at))));
                // A call that missed its deadline in the meantime is newer evidence than this
                // reply.
                if self.failures.load(Ordering::Acquire) == failures {
                    self.trusted.store(true, Ordering::Release);
                }
                Ok(())
            }
            // It is alive, but its announcement stays the old one.
            PeerReply::Overloaded => Ok(()),
            PeerReply::Refused(why) => {
                Err(HeartbeatError::Refused(CodecError::new("heartbeat", why)))
            }
            other => Err(HeartbeatError::Refused(CodecError::new(
                "heartbeat",
                format!("answered with {other:?}"),
            ))),
        }
    }

    /// Sends a request; `waiting` receives the outcome. An identical request in flight is shared.
    pub fn send(self: &Arc<Self>, question: Vec<u8>, waiting: CallWaiter, deadline: Duration) {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(joined) = in_flight.get_mut(&question) {
            joined.push(waiting);
            return;
        }
        in_flight.insert(question.clone(), vec![waiting]);
        drop(in_flight);
        let peer = self.clone();
        self.runtime.spawn(async move {
            let outcome = peer.call_with_credit(question.clone(), deadline).await;
            let waiting =
                peer.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&question);
            for CallWaiter { number, to } in waiting.into_iter().flatten() {
                #[expect(
                    clippy::let_underscore_must_use,
                    reason = "one whose own deadline has passed listens no more"
                )]
                let _ = to.try_send((number, outcome.clone()));
            }
        });
    }

    async fn call_with_credit(
        &self,
        question: Vec<u8>,
        deadline: Duration,
    ) -> Result<Arc<PeerAnswer>, LiveError> {
        let watch = Stopwatch::start();
        // Waiting for credit counts against the deadline too.
        let permit = tokio::time::timeout(deadline, self.credit.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            metrics::counter!(telemetry::MESH_CALLS, "outcome" => "no_credit").increment(1);
            return Err(LiveError::Unreachable);
        };
        let sent_at = self.clock.now();
        let span = tracing::info_span!("peer_call", peer = %self.name, call = next_call());
        let deadline = deadline.saturating_sub(watch.elapsed());
        let outcome = self.call(question, deadline).instrument(span).await;
        let label = if outcome.is_ok() { "answered" } else { "failed" };
        metrics::counter!(telemetry::MESH_CALLS, "outcome" => label).increment(1);
        metrics::histogram!(telemetry::MESH_CALL_SECONDS).record(watch.elapsed().as_secs_f64());
        match outcome {
            Ok(bytes) => Ok(Arc::new(PeerAnswer { sent_at, bytes, reply: OnceLock::new() })),
            Err(error) => {
                self.failures.fetch_add(1, Ordering::AcqRel);
                self.trusted.store(false, Ordering::Release);
                self.poke.notify_one();
                Err(error)
            }
        }
    }

    async fn call(&self, bytes: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, LiveError> {
        let call = self.endpoint.call(|reply| EndpointMessage::Ask(bytes, reply), Some(deadline));
        // ractor's own timeout starts when the message is sent; this one covers the time before as
        // well.
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(CallResult::Success(bytes))) => Ok(bytes),
            _ => Err(LiveError::Unreachable),
        }
    }
}

/// A number for the calls of this process in its log.
fn next_call() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    CALLS.fetch_add(1, Ordering::Relaxed)
}

/// Why a heartbeat failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeartbeatError {
    /// No reply in time, or the session has ended.
    Silent,
    /// A reply that this node does not understand, or a refusal.
    Refused(CodecError),
}
