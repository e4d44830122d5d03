//! The second cache in Redis.
//!
//! Nobody waits for a connection: it is made in the background, and until it is there nothing is
//! kept. A question has a deadline of milliseconds; after a few that fail the breaker keeps
//! everyone from asking. Values are written in the background, a bounded number at a time; one more
//! is not kept. Requests run on a runtime of the cache's own, so that any thread may ask. TLS is
//! not spoken: Redis belongs into the network of the nodes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Client, RedisError};
use arc_swap::ArcSwapOption;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;

use super::breaker::CircuitBreaker;
use super::{PartKey, SharedCache};
use crate::clock::Stopwatch;
use crate::telemetry;

/// What all our names begin with.
const PREFIX: &[u8] = b"rollmill:part:";
/// A connection that is not there by then will not be.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A value that is not written by then counts as a failure.
const PUT_TIMEOUT: Duration = Duration::from_secs(1);
/// Values being written at once; one more is not kept.
const MAX_PUTS: usize = 32;
/// Larger values are not kept: they would not come within the deadline.
const MAX_VALUE_BYTES: usize = 256 << 10;

/// How it is used.
#[derive(Debug, Clone, Copy)]
pub struct RedisOptions {
    /// `query.redis_timeout`.
    pub deadline: Duration,
    /// `query.redis_keep`.
    pub ttl: Duration,
}

/// Parts in Redis.
pub struct RedisCache {
    shared: Arc<Shared>,
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

struct Shared {
    client: Client,
    options: RedisOptions,
    connection: ArcSwapOption<MultiplexedConnection>,
    connecting: AtomicBool,
    breaker: Mutex<CircuitBreaker>,
    since_start: Stopwatch,
    puts: Arc<Semaphore>,
}

/// Nobody is connected to yet.
///
/// # Errors
/// If the address is none of Redis; it is not repeated, because a password may be in it.
fn client(url: &str) -> Result<Client, String> {
    Client::open(url)
        .map_err(|_| "expected redis://[[user]:password@]host[:port][/database]".to_owned())
}

/// Whether it is an address of Redis; nobody is asked.
///
/// # Errors
/// As [`RedisCache::open`].
pub fn check(url: &str) -> Result<(), String> {
    client(url).map(drop)
}

impl Drop for RedisCache {
    fn drop(&mut self) {
        // Dropping a runtime waits for its tasks, which is forbidden where the last owner may be:
        // inside of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl RedisCache {
    /// Begins to connect, and does not wait for it.
    ///
    /// # Errors
    /// If the address is none of Redis; it is not repeated, because a password may be in it.
    pub fn open(url: &str, options: RedisOptions) -> Result<Self, String> {
        let client = client(url)?;
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("redis").enable_all().build();
        let runtime = runtime.map_err(|e| format!("cannot start its runtime: {e}"))?;
        let shared = Arc::new(Shared {
            client,
            options,
            connection: ArcSwapOption::empty(),
            connecting: AtomicBool::new(false),
            breaker: Mutex::default(),
            since_start: Stopwatch::start(),
            puts: Arc::new(Semaphore::new(MAX_PUTS)),
        });
        shared.connect(runtime.handle());
        Ok(Self { shared, runtime: Some(runtime) })
    }

    fn fetch(&self, names: &[PartKey]) -> Result<Vec<Option<Vec<u8>>>, &'static str> {
        let runtime = self.runtime.as_ref().ok_or("skipped")?.handle();
        if !self.shared.breaker().allow_request(self.shared.now()) {
            return Err("skipped");
        }
        let Some(mut connection) = self.shared.connection(runtime) else { return Err("skipped") };
        let mut question = ::redis::cmd("MGET");
        names.iter().for_each(|name| {
            question.arg(key(name));
        });
        let (sender, receiver) = sync_channel(1);
        let (shared, deadline, wanted) =
            (self.shared.clone(), self.shared.options.deadline, names.len());
        runtime.spawn(async move {
            let answer = tokio::time::timeout(
                deadline,
                question.query_async::<Vec<Option<Vec<u8>>>>(&mut connection),
            )
            .await;
            let answer = shared.report_outcome(answer.ok()).filter(|values| values.len() == wanted);
            // Nobody waits any more if the thread that asked was kept from running for long.
            _ = sender.send(answer);
        });
        receiver.recv_timeout(deadline * 2).ok().flatten().ok_or("failed")
    }
}

fn key(name: &PartKey) -> Vec<u8> {
    let mut key = PREFIX.to_vec();
    name.iter().for_each(|byte| key.extend(format!("{byte:02x}").bytes()));
    key
}

fn count(outcome: &'static str, number: usize) {
    metrics::counter!(telemetry::QUERY_SECOND_CACHE, "outcome" => outcome).increment(number as u64);
}

impl Shared {
    fn now(&self) -> u64 {
        self.since_start.elapsed().as_millis() as u64
    }

    fn breaker(&self) -> MutexGuard<'_, CircuitBreaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, if there is one; otherwise one is being made.
    fn connection(self: &Arc<Self>, runtime: &Handle) -> Option<MultiplexedConnection> {
        let connection = self.connection.load_full();
        if connection.is_none() {
            self.connect(runtime);
        }
        connection.map(|connection| connection.as_ref().clone())
    }

    fn connect(self: &Arc<Self>, runtime: &Handle) {
        if self.connecting.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = self.clone();
        runtime.spawn(async move {
            let made = tokio::time::timeout(
                CONNECT_TIMEOUT,
                shared.client.get_multiplexed_async_connection(),
            )
            .await;
            if let Some(connection) = shared.report_outcome(made.ok()) {
                shared.connection.store(Some(Arc::new(connection)));
            }
            shared.connecting.store(false, Ordering::Release);
        });
    }

    /// Tells the breaker how a request ended; `None` is a deadline that passed. After a failure the
    /// connection is made anew.
    fn report_outcome<T>(&self, answer: Option<Result<T, RedisError>>) -> Option<T> {
        let why = match answer {
            Some(Ok(value)) => {
                if self.breaker().on_success() {
                    tracing::info!("the query cache in Redis answers again");
                }
                return Some(value);
            }
            Some(Err(error)) => error.to_string(),
            None => "no answer in time".to_owned(),
        };
        self.connection.store(None);
        if self.breaker().on_failure(self.now()) {
            tracing::warn!(%why, "the query cache in Redis does not answer, queries go on without it");
        }
        None
    }
}

impl SharedCache for RedisCache {
    fn get(&self, names: &[PartKey]) -> Vec<Option<Vec<u8>>> {
        self.fetch(names).unwrap_or_else(|outcome| {
            count(outcome, names.len());
            vec![None; names.len()]
        })
    }

    fn put(&self, name: PartKey, bytes: Vec<u8>) {
        let Some(runtime) = &self.runtime else { return };
        let permit = self.shared.puts.clone().try_acquire_owned();
        let usable = bytes.len() <= MAX_VALUE_BYTES && self.shared.breaker().is_closed();
        let connection = self.shared.connection.load_full().filter(|_| usable);
        let (Ok(permit), Some(connection)) = (permit, connection) else {
            return count("dropped", 1);
        };
        let (shared, mut connection) = (self.shared.clone(), connection.as_ref().clone());
        runtime.spawn(async move {
            let mut command = ::redis::cmd("SET");
            command.arg(key(&name)).arg(bytes).arg("PX").arg(shared.options.ttl.as_millis() as u64);
            let kept =
                tokio::time::timeout(PUT_TIMEOUT, command.query_async::<()>(&mut connection)).await;
            count(if shared.report_outcome(kept.ok()).is_some() { "kept" } else { "failed" }, 1);
            drop(permit);
        });
    }
}
