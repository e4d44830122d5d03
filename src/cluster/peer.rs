//! Another node, as this one knows it: what it has announced, whether it answers, and the calls on
//! their way to it.
//!
//! What always holds: every call has a deadline; at most `cluster.max_calls` are on their way to
//! one peer; equal questions share one call; a peer that let a call pass its deadline is not asked
//! again until it has answered a heartbeat sent afterwards.

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

/// What a peer has announced, ready to be looked up.
#[derive(Debug, Default)]
pub struct PeerAnnouncement {
    /// By number, the shards it owns.
    pub shards: HashMap<u32, ShardAnnouncement>,
    /// Shards that cannot begin there.
    stopped: HashSet<u32>,
    windows: Option<HashMap<u64, Vec<i32>>>,
    /// When it was asked for, by this node's boot clock.
    pub requested_at: Millis,
    /// What it says of itself to people.
    pub node_status: Vec<u8>,
}

impl PeerAnnouncement {
    /// An announcement that was asked for at that time.
    pub fn new(announcement: NodeAnnouncement, asked_at: Millis) -> Self {
        let shards =
            announcement.shards.into_iter().map(|stand| (stand.from.shard, stand)).collect();
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

    /// Whether the shard cannot begin there until somebody mends what stops it.
    pub fn has_stopped(&self, shard: ShardId) -> bool {
        self.stopped.contains(&shard.0)
    }

    /// If the peer's memory of the shard held nothing of the metric in `[from, to)` when it was
    /// asked: up to when that says everything.
    ///
    /// The proof is in ADR 0012: the records from the checkpoint to where the peer had applied are
    /// among those that it spoke of.
    pub fn holds_nothing(
        &self,
        at: (u32, &Checkpoint),
        metric: (&str, &str),
        hours: (Hour, Hour),
    ) -> Option<WireFreshness> {
        let (shard, checkpoint) = at;
        let stand = self.shards.get(&shard)?;
        let begins = stand.from.checkpoint();
        if begins.epoch != checkpoint.epoch
            || begins.log != checkpoint.log
            || begins.next > checkpoint.next
        {
            return None;
        }
        let held = self.windows.as_ref()?.get(&metric_hash(metric.0, metric.1));
        let any = held
            .is_some_and(|held| held.iter().any(|hour| hours.0.0 <= *hour && *hour < hours.1.0));
        (!any).then_some(stand.reach)
    }
}

/// The answer of a call.
#[derive(Debug)]
pub struct PeerAnswer {
    /// When the question was sent, by this node's clock: ages in the answer count back from here.
    pub sent_at: Millis,
    bytes: Vec<u8>,
    reply: OnceLock<Result<PeerReply, CodecError>>,
}

impl PeerAnswer {
    /// What was answered; decoded once, however many wait for it.
    pub fn reply(&self) -> &Result<PeerReply, CodecError> {
        self.reply.get_or_init(|| wire::decode(&self.bytes))
    }
}

/// The outcome of a call, with the number that its asker gave it.
pub type CallOutcome = (usize, Result<Arc<PeerAnswer>, LiveError>);

/// One who waits for the outcome of a call.
pub struct CallWaiter {
    /// The number of the call among those of its question.
    pub number: usize,
    /// Where the outcome goes; has room for it.
    pub to: SyncSender<CallOutcome>,
}

/// A peer with a session.
pub struct MeshPeer {
    /// Its name.
    pub name: String,
    endpoint: ActorRef<EndpointMessage>,
    runtime: Handle,
    clock: Arc<dyn Clock>,
    credit: Semaphore,
    in_flight: Mutex<HashMap<Vec<u8>, Vec<CallWaiter>>>,
    announcement: ArcSwapOption<PeerAnnouncement>,
    /// It has answered its heartbeats, and no call has passed its deadline since.
    trusted: AtomicBool,
    failures: AtomicU64,
    gone: AtomicBool,
    /// The log of what it has announced last, if it is another than ours: it is another cluster's.
    foreign: ArcSwapOption<LogId>,
    /// Asks for a heartbeat before its time.
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
    /// A peer behind this door. Called within the runtime that its calls are to run in.
    pub fn new(
        name: String,
        door: ActorRef<EndpointMessage>,
        clock: Arc<dyn Clock>,
        max_calls: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            endpoint: door,
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

    /// What it has announced last; none if it has never answered.
    pub fn announcement(&self) -> Option<Arc<PeerAnnouncement>> {
        self.announcement.load_full()
    }

    /// Whether it answers, whatever cluster it belongs to.
    pub fn is_alive(&self) -> bool {
        self.trusted.load(Ordering::Acquire) && !self.gone.load(Ordering::Acquire)
    }

    /// The log of the other cluster that it belongs to, if it does.
    pub fn foreign_log(&self) -> Option<LogId> {
        self.foreign.load().as_deref().copied()
    }

    /// Whether it is worth asking.
    pub fn is_available(&self) -> bool {
        self.is_alive() && self.foreign.load().is_none()
    }

    /// Looks whether its shards are of this log; if not, it is not asked, and the other log is
    /// returned.
    pub fn check_log(&self, log: LogId) -> Option<LogId> {
        let announced = self.announcement.load_full()?;
        let other = announced
            .shards
            .values()
            .map(|stand| stand.from.checkpoint().log)
            .find(|other| *other != log);
        self.foreign.store(other.map(Arc::new));
        other
    }

    /// Whether its session has ended.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Its session has ended: it is not asked any more, but what it owned is still known.
    pub fn mark_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Asks for a heartbeat; an answer becomes what it has announced.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn heartbeat(&self, deadline: Duration) -> Result<(), HeartbeatError> {
        let failures = self.failures.load(Ordering::Acquire);
        let asked_at = self.clock.uptime();
        let request = wire::encode(&PeerRequest::Beat).map_err(HeartbeatError::Refused)?;
        let bytes = self.call(request, deadline).await.map_err(|_| HeartbeatError::Silent)?;
        match wire::decode(&bytes).map_err(HeartbeatError::Refused)? {
            PeerReply::Beat(announcement) => {
                self.announcement
                    .store(Some(Arc::new(PeerAnnouncement::new(announcement, asked_at))));
                // A call that has passed its deadline since says more than this answer does.
                if self.failures.load(Ordering::Acquire) == failures {
                    self.trusted.store(true, Ordering::Release);
                }
                Ok(())
            }
            // It answers, though it says nothing new.
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

    /// Asks a question; the outcome goes to whoever waits. An equal question on its way is joined.
    pub fn send(self: &Arc<Self>, question: Vec<u8>, waiting: CallWaiter, deadline: Duration) {
        let mut flights = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(joined) = flights.get_mut(&question) {
            joined.push(waiting);
            return;
        }
        flights.insert(question.clone(), vec![waiting]);
        drop(flights);
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
        // The limit of ractor counts from the sending; this one from now, whatever happens in
        // between.
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
    /// No answer in time, or the session has ended.
    Silent,
    /// An answer that this node does not understand.
    Refused(CodecError),
}
