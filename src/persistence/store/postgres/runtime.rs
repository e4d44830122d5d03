//! The store's own async runtime, and how blocking callers wait for it.
//!
//! Callers are threads of all kinds. Some are inside another runtime, where blocking on a future
//! panics. The future therefore runs on two threads of the store, and the caller waits on a
//! channel, never beyond its deadline.

use std::future::Future;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};

use super::StoreError;
use crate::clock::Stopwatch;
use crate::model::budget::CancelFlag;

/// Threads that talk to the server. They only move bytes; merging is done by the callers.
const THREADS: usize = 2;
/// The runtime enforces deadlines itself. If its threads are starved, callers give up this much
/// later.
const GRACE: Duration = Duration::from_secs(5);

/// Owns the runtime; its threads stop when it is dropped.
#[derive(Debug)]
pub(super) struct BlockingRuntime(Option<Runtime>);

/// Runs work on the store's runtime.
#[derive(Debug, Clone)]
pub(super) struct RuntimeHandle(Handle);

/// How often a waiting caller checks whether its query was aborted.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// Why there is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitError {
    /// The work did not finish in time, or its thread panicked.
    TimedOut,
    /// The query that the work was for was aborted.
    QueryEnded,
}

impl BlockingRuntime {
    pub(super) fn start() -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("store-postgres")
            .enable_all()
            .build()
            .map_err(|e| StoreError::Failed(format!("cannot start the store's threads: {e}")))?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn handle(&self) -> Result<RuntimeHandle, StoreError> {
        let runtime =
            self.0.as_ref().ok_or_else(|| StoreError::Failed("the store is closed".to_owned()))?;
        Ok(RuntimeHandle(runtime.handle().clone()))
    }
}

impl Drop for BlockingRuntime {
    fn drop(&mut self) {
        // The last owner may be a thread of another runtime, which must not block here.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl RuntimeHandle {
    /// Runs `work` and waits for it, at most `limit`, and not beyond the end of its query.
    pub(super) fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        query: Option<&CancelFlag>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, WaitError> {
        let (answer, answered) = sync_channel(1);
        let task = self.0.spawn(async move {
            // The caller may have given up; the result is then dropped.
            _ = answer.send(tokio::time::timeout(limit, work).await);
        });
        let (watch, most) = (Stopwatch::start(), limit + GRACE);
        loop {
            let left = most.saturating_sub(watch.elapsed());
            match answered.recv_timeout(query.map_or(left, |_| left.min(POLL_EVERY))) {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(WaitError::TimedOut);
                }
                Err(RecvTimeoutError::Timeout) if query.is_some_and(CancelFlag::is_set) => {
                    task.abort();
                    return Err(WaitError::QueryEnded);
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    return Err(WaitError::TimedOut);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Runs `work` in the background until the store is dropped.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::budget::{AbortReason, QueryBudget};

    #[test]
    fn waits_inside_a_runtime_and_not_for_ever() {
        let worker = BlockingRuntime::start().expect("threads");
        let hands = worker.handle().expect("open");
        let elsewhere = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        elsewhere.block_on(async move {
            assert_eq!(hands.run(Duration::from_secs(5), None, async { 7 }), Ok(7));
            assert_eq!(
                hands.run(Duration::from_millis(10), None, std::future::pending::<()>()),
                Err(WaitError::TimedOut)
            );
            let query = QueryBudget::default();
            assert_eq!(
                hands.run(Duration::from_secs(5), Some(&query.cancel_flag()), async { 7 }),
                Ok(7)
            );
            query.abort(AbortReason::TimedOut);
            let for_ever = std::future::pending::<()>();
            assert_eq!(
                hands.run(Duration::from_secs(3_600), Some(&query.cancel_flag()), for_ever),
                Err(WaitError::QueryEnded)
            );
            drop(worker);
        });
    }
}
