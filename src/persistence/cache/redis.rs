//! The shared cache in Redis.
//!
//! No caller waits for a connection: it is made in the background, and until then every lookup is a
//! miss. A lookup has a deadline of milliseconds, and after a few failures the circuit breaker
//! skips the server. Values are written in the background; when too many writes are in flight,
//! further ones are dropped. Requests run on a runtime of the cache's own, so any thread may call
//! it. TLS is not supported: Redis belongs on the nodes' private network.

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

/// Prefix of every key.
const PREFIX: &[u8] = b"rollmill:part:";
/// Limit for a connection attempt; a later success is ignored.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Limit for one write; exceeding it counts as a failure.
const PUT_TIMEOUT: Duration = Duration::from_secs(1);
/// Writes in flight; further ones are dropped.
const MAX_PUTS: usize = 32;
/// Larger values are not stored: they could not be read within the deadline.
const MAX_VALUE_BYTES: usize = 256 << 10;

/// Limits of the cache, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct RedisOptions {
    /// Limit for one lookup: `query.redis_timeout`.
    pub deadline: Duration,
    /// Time to live of a value: `query.redis_keep`.
    pub ttl: Duration,
}

/// A [`SharedCache`] in Redis.
pub struct RedisCache {
    shared: Arc<Shared>,
    /// `None` only in `drop`.
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

/// Parses the address without connecting. Fails if `url` is not a Redis address. The message does
/// not quote it, because it may contain a password.
fn client(url: &str) -> Result<Client, String> {
    Client::open(url)
        .map_err(|_| "expected redis://[[user]:password@]host[:port][/database]".to_owned())
}

/// Checks that `url` is a Redis address, without connecting.
///
/// # Errors
/// If it is not one. The message does not quote it, because it may contain a password.
pub fn check(url: &str) -> Result<(), String> {
    client(url).map(drop)
}

impl Drop for RedisCache {
    fn drop(&mut self) {
        // Dropping a runtime waits for its tasks, which panics inside another runtime, and the last
        // owner may live in one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl RedisCache {
    /// Starts to connect in the background and returns at once.
    ///
    /// # Errors
    /// If `url` is not a Redis address. The message does not quote it, because it
    /// may contain a password.
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

    fn fetch(&self, keys: &[PartKey]) -> Result<Vec<Option<Vec<u8>>>, &'static str> {
        let runtime = self.runtime.as_ref().ok_or("skipped")?.handle();
        if !self.shared.breaker().allow_request(self.shared.now()) {
            return Err("skipped");
        }
        let Some(mut connection) = self.shared.connection(runtime) else { return Err("skipped") };
        let mut command = ::redis::cmd("MGET");
        keys.iter().for_each(|key| {
            command.arg(redis_key(key));
        });
        let (sender, receiver) = sync_channel(1);
        let (shared, deadline, wanted) =
            (self.shared.clone(), self.shared.options.deadline, keys.len());
        runtime.spawn(async move {
            let answer = tokio::time::timeout(
                deadline,
                command.query_async::<Vec<Option<Vec<u8>>>>(&mut connection),
            )
            .await;
            // A reply of another length cannot be matched to the keys: a miss.
            let answer = shared.report_outcome(answer.ok()).filter(|values| values.len() == wanted);
            // The receiver is gone if the calling thread gave up first.
            _ = sender.send(answer);
        });
        // The task enforces the deadline. Twice that bounds the wait if the runtime's only thread
        // is kept from running, which the task's own timeout cannot notice.
        receiver.recv_timeout(deadline * 2).ok().flatten().ok_or("failed")
    }
}

fn redis_key(key: &PartKey) -> Vec<u8> {
    let mut name = PREFIX.to_vec();
    key.iter().for_each(|byte| name.extend(format!("{byte:02x}").bytes()));
    name
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

    /// The current connection. If there is none, starts to make one.
    fn connection(self: &Arc<Self>, runtime: &Handle) -> Option<MultiplexedConnection> {
        let connection = self.connection.load_full();
        if connection.is_none() {
            self.connect(runtime);
        }
        connection.map(|connection| connection.as_ref().clone())
    }

    fn connect(self: &Arc<Self>, runtime: &Handle) {
        // Many threads may find no connection at once; one attempt is enough.
        if self.connecting.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = self.clone();
        runtime.spawn(async move {
            let connected = tokio::time::timeout(
                CONNECT_TIMEOUT,
                shared.client.get_multiplexed_async_connection(),
            )
            .await;
            if let Some(connection) = shared.report_outcome(connected.ok()) {
                shared.connection.store(Some(Arc::new(connection)));
            }
            shared.connecting.store(false, Ordering::Release);
        });
    }

    /// Reports the outcome of a request to the breaker; `None` means that its deadline passed. A
    /// failure drops the connection, so that the next lookup makes a new one.
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
        // A multiplexed connection does not reconnect by itself.
        self.connection.store(None);
        if self.breaker().on_failure(self.now()) {
            tracing::warn!(
                %why,
                "the query cache in Redis does not answer, queries go on without it"
            );
        }
        None
    }
}

impl SharedCache for RedisCache {
    fn get(&self, keys: &[PartKey]) -> Vec<Option<Vec<u8>>> {
        self.fetch(keys).unwrap_or_else(|outcome| {
            count(outcome, keys.len());
            vec![None; keys.len()]
        })
    }

    fn put(&self, key: PartKey, bytes: Vec<u8>) {
        let Some(runtime) = &self.runtime else { return };
        let permit = self.shared.puts.clone().try_acquire_owned();
        // A write uses only what works: it neither probes an open breaker nor starts a connection.
        let usable = bytes.len() <= MAX_VALUE_BYTES && self.shared.breaker().is_closed();
        let connection = self.shared.connection.load_full().filter(|_| usable);
        let (Ok(permit), Some(connection)) = (permit, connection) else {
            return count("dropped", 1);
        };
        let (shared, mut connection) = (self.shared.clone(), connection.as_ref().clone());
        runtime.spawn(async move {
            let mut command = ::redis::cmd("SET");
            let ttl = shared.options.ttl.as_millis() as u64;
            command.arg(redis_key(&key)).arg(bytes).arg("PX").arg(ttl);
            let stored =
                tokio::time::timeout(PUT_TIMEOUT, command.query_async::<()>(&mut connection)).await;
            count(if shared.report_outcome(stored.ok()).is_some() { "kept" } else { "failed" }, 1);
            drop(permit);
        });
    }
}
