//! The store's own runtime, and how a blocking caller waits for it.
//!
//! Callers are threads of all kinds, some of them inside another runtime, where blocking on a future panics. So the future runs on two
//! threads of the store's own, and the caller waits on a channel, never longer than its deadline.

use std::future::Future;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};

use super::StoreError;

/// Threads that speak with the server. They move bytes; merging is done by the callers.
const THREADS: usize = 2;
/// The runtime keeps deadlines itself; if its threads are starved, the caller goes this much later.
const GRACE: Duration = Duration::from_secs(5);

/// The runtime.
#[derive(Debug)]
pub(super) struct Worker(Option<Runtime>);

/// A way to the runtime.
#[derive(Debug, Clone)]
pub(super) struct Hands(Handle);

/// The work did not end in time, or its thread died.
#[derive(Debug)]
pub(super) struct Unanswered;

impl Worker {
    pub(super) fn start() -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("store-postgres")
            .enable_all()
            .build()
            .map_err(|e| StoreError::Failed(format!("cannot start the store's threads: {e}")))?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn hands(&self) -> Result<Hands, StoreError> {
        let runtime = self.0.as_ref().ok_or_else(|| StoreError::Failed("the store is closed".to_owned()))?;
        Ok(Hands(runtime.handle().clone()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The last owner may be a thread of another runtime, which must not wait here.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Hands {
    /// Runs `work` and waits for it, at most `limit`.
    pub(super) fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Unanswered> {
        let (answer, answered) = sync_channel(1);
        self.0.spawn(async move {
            // A caller that has gone needs no answer.
            _ = answer.send(tokio::time::timeout(limit, work).await);
        });
        match answered.recv_timeout(limit + GRACE) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(Unanswered),
        }
    }

    /// Runs `work` beside the callers, until the store is dropped.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_inside_a_runtime_and_not_for_ever() {
        let worker = Worker::start().expect("threads");
        let hands = worker.hands().expect("open");
        let elsewhere = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        elsewhere.block_on(async move {
            assert_eq!(hands.run(Duration::from_secs(5), async { 7 }).expect("an answer"), 7);
            assert!(hands.run(Duration::from_millis(10), std::future::pending::<()>()).is_err());
            drop(worker);
        });
    }
}
