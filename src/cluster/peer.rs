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

use super::door::DoorMessage;
use super::wire::{self, Announcement, Reach, Reply, Request, Stand};
use crate::actors::live::LiveError;
use crate::clock::{Clock, Stopwatch};
use crate::model::CodecError;
use crate::model::offset::{Checkpoint, LogId, ShardId};
use crate::model::series::metric_hash;
use crate::model::window::{Hour, Millis};
use crate::telemetry;

/// What a peer has announced, ready to be looked up.
#[derive(Debug, Default)]
pub struct Announced {
    /// By number, the shards it owns.
    pub shards: HashMap<u32, Stand>,
    /// Shards that cannot begin there.
    stopped: HashSet<u32>,
    windows: Option<HashMap<u64, Vec<i32>>>,
    /// When it was asked for, by this node's boot clock.
    pub asked_at: Millis,
    /// What it says of itself to people.
    pub card: Vec<u8>,
}

impl Announced {
    /// An announcement that was asked for at that time.
    pub fn new(announcement: Announcement, asked_at: Millis) -> Self {
        let shards =
            announcement.shards.into_iter().map(|stand| (stand.from.shard, stand)).collect();
        let windows = announcement.windows.map(|all| all.into_iter().collect());
        let stopped = announcement.stopped.into_iter().collect();
        Self { shards, stopped, windows, asked_at, card: announcement.card.into_vec() }
    }

    /// Whether the shard cannot begin there until somebody mends what stops it.
    pub fn stops(&self, shard: ShardId) -> bool {
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
    ) -> Option<Reach> {
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
pub struct Heard {
    /// When the question was sent, by this node's clock: ages in the answer count back from here.
    pub sent_at: Millis,
    bytes: Vec<u8>,
    reply: OnceLock<Result<Reply, CodecError>>,
}

impl Heard {
    /// What was answered; decoded once, however many wait for it.
    pub fn reply(&self) -> &Result<Reply, CodecError> {
        self.reply.get_or_init(|| wire::decode(&self.bytes))
    }
}

/// The outcome of a call, with the number that its asker gave it.
pub type Outcome = (usize, Result<Arc<Heard>, LiveError>);

/// One who waits for the outcome of a call.
pub struct Waiting {
    /// The number of the call among those of its question.
    pub number: usize,
    /// Where the outcome goes; has room for it.
    pub to: SyncSender<Outcome>,
}

/// A peer with a session.
pub struct Peer {
    /// Its name.
    pub name: String,
    door: ActorRef<DoorMessage>,
    runtime: Handle,
    clock: Arc<dyn Clock>,
    credit: Semaphore,
    flights: Mutex<HashMap<Vec<u8>, Vec<Waiting>>>,
    announced: ArcSwapOption<Announced>,
    /// It has answered its heartbeats, and no call has passed its deadline since.
    trusted: AtomicBool,
    failures: AtomicU64,
    gone: AtomicBool,
    /// The log of what it has announced last, if it is another than ours: it is another cluster's.
    foreign: ArcSwapOption<LogId>,
    /// Asks for a heartbeat before its time.
    pub nudged: Notify,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .field("answers", &self.answers())
            .finish_non_exhaustive()
    }
}

impl Peer {
    /// A peer behind this door. Called within the runtime that its calls are to run in.
    pub fn new(
        name: String,
        door: ActorRef<DoorMessage>,
        clock: Arc<dyn Clock>,
        max_calls: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            door,
            runtime: Handle::current(),
            clock,
            credit: Semaphore::new(max_calls),
            flights: Mutex::default(),
            announced: ArcSwapOption::empty(),
            trusted: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            foreign: ArcSwapOption::empty(),
            nudged: Notify::new(),
        })
    }

    /// What it has announced last; none if it has never answered.
    pub fn announced(&self) -> Option<Arc<Announced>> {
        self.announced.load_full()
    }

    /// Whether it answers, whatever cluster it belongs to.
    pub fn is_there(&self) -> bool {
        self.trusted.load(Ordering::Acquire) && !self.gone.load(Ordering::Acquire)
    }

    /// The log of the other cluster that it belongs to, if it does.
    pub fn foreign_log(&self) -> Option<LogId> {
        self.foreign.load().as_deref().copied()
    }

    /// Whether it is worth asking.
    pub fn answers(&self) -> bool {
        self.is_there() && self.foreign.load().is_none()
    }

    /// Looks whether its shards are of this log; if not, it is not asked, and the other log is
    /// returned.
    pub fn belongs_elsewhere(&self, log: LogId) -> Option<LogId> {
        let announced = self.announced.load_full()?;
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
    pub fn leave(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Asks for a heartbeat; an answer becomes what it has announced.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn beat(&self, deadline: Duration) -> Result<(), BeatError> {
        let failures = self.failures.load(Ordering::Acquire);
        let asked_at = self.clock.uptime();
        let request = wire::encode(&Request::Beat).map_err(BeatError::Refused)?;
        let bytes = self.call(request, deadline).await.map_err(|_| BeatError::Silent)?;
        match wire::decode(&bytes).map_err(BeatError::Refused)? {
            Reply::Beat(announcement) => {
                self.announced.store(Some(Arc::new(Announced::new(announcement, asked_at))));
                // A call that has passed its deadline since says more than this answer does.
                if self.failures.load(Ordering::Acquire) == failures {
                    self.trusted.store(true, Ordering::Release);
                }
                Ok(())
            }
            // It answers, though it says nothing new.
            Reply::Overloaded => Ok(()),
            Reply::Refused(why) => Err(BeatError::Refused(CodecError::new("heartbeat", why))),
            other => Err(BeatError::Refused(CodecError::new(
                "heartbeat",
                format!("answered with {other:?}"),
            ))),
        }
    }

    /// Asks a question; the outcome goes to whoever waits. An equal question on its way is joined.
    pub fn ask(self: &Arc<Self>, question: Vec<u8>, waiting: Waiting, deadline: Duration) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(joined) = flights.get_mut(&question) {
            joined.push(waiting);
            return;
        }
        flights.insert(question.clone(), vec![waiting]);
        drop(flights);
        let peer = self.clone();
        self.runtime.spawn(async move {
            let outcome = peer.question(question.clone(), deadline).await;
            let waiting =
                peer.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&question);
            for Waiting { number, to } in waiting.into_iter().flatten() {
                #[expect(
                    clippy::let_underscore_must_use,
                    reason = "one whose own deadline has passed listens no more"
                )]
                let _ = to.try_send((number, outcome.clone()));
            }
        });
    }

    async fn question(
        &self,
        question: Vec<u8>,
        deadline: Duration,
    ) -> Result<Arc<Heard>, LiveError> {
        let watch = Stopwatch::start();
        let permit = tokio::time::timeout(deadline, self.credit.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            metrics::counter!(telemetry::MESH_CALLS, "outcome" => "no_credit").increment(1);
            return Err(LiveError::Unreachable);
        };
        let sent_at = self.clock.now();
        let outcome = self.call(question, deadline.saturating_sub(watch.elapsed())).await;
        let label = if outcome.is_ok() { "answered" } else { "failed" };
        metrics::counter!(telemetry::MESH_CALLS, "outcome" => label).increment(1);
        metrics::histogram!(telemetry::MESH_CALL_SECONDS).record(watch.elapsed().as_secs_f64());
        match outcome {
            Ok(bytes) => Ok(Arc::new(Heard { sent_at, bytes, reply: OnceLock::new() })),
            Err(error) => {
                self.failures.fetch_add(1, Ordering::AcqRel);
                self.trusted.store(false, Ordering::Release);
                self.nudged.notify_one();
                Err(error)
            }
        }
    }

    async fn call(&self, bytes: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, LiveError> {
        let call = self.door.call(|reply| DoorMessage::Ask(bytes, reply), Some(deadline));
        // The limit of ractor counts from the sending; this one from now, whatever happens in
        // between.
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(CallResult::Success(bytes))) => Ok(bytes),
            _ => Err(LiveError::Unreachable),
        }
    }
}

/// Why a heartbeat failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeatError {
    /// No answer in time, or the session has ended.
    Silent,
    /// An answer that this node does not understand.
    Refused(CodecError),
}
