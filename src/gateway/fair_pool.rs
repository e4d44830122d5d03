//! A thread pool for slow work that tenants share fairly: they take turns, and while there are
//! several, none can use all threads.
//!
//! Invariants: a tenant's work queues behind that tenant's own work, but never behind all of
//! another tenant's. The threads run below the priority of the shards and of the event loop. Work
//! that panics affects nothing else. The callers bound how much can be queued.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use tokio::sync::oneshot;

use crate::config::Config;

/// Queued work per tenant, and how many jobs each tenant has running.
#[derive(Debug)]
struct TenantQueue<T> {
    /// Tenants in round-robin order, each with its jobs in order of arrival.
    waiting: VecDeque<(Arc<str>, VecDeque<T>)>,
    running: HashMap<Arc<str>, usize>,
}

impl<T> Default for TenantQueue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), running: HashMap::new() }
    }
}

impl<T> TenantQueue<T> {
    fn push(&mut self, tenant: &Arc<str>, work: T) {
        match self.waiting.iter_mut().find(|(other, _)| other == tenant) {
            Some((_, queue)) => queue.push_back(work),
            None => self.waiting.push_back((tenant.clone(), VecDeque::from([work]))),
        }
    }

    /// Takes the next job of a tenant with fewer than `each` running. The tenant then moves to the
    /// end of the round.
    fn next(&mut self, each: usize) -> Option<(Arc<str>, T)> {
        let free = |tenant: &Arc<str>| self.running.get(tenant).copied().unwrap_or(0) < each;
        let at = self.waiting.iter().position(|(tenant, _)| free(tenant))?;
        let (tenant, mut queue) = self.waiting.remove(at)?;
        let work = queue.pop_front()?;
        if !queue.is_empty() {
            self.waiting.push_back((tenant.clone(), queue));
        }
        *self.running.entry(tenant.clone()).or_insert(0) += 1;
        Some((tenant, work))
    }

    fn done(&mut self, tenant: &Arc<str>) {
        if let Some(running) = self.running.get_mut(tenant) {
            *running -= 1;
            // Forgets idle tenants, so that the map is bounded by the running jobs.
            if *running == 0 {
                self.running.remove(tenant);
            }
        }
    }
}

type BoxedJob = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct PoolState {
    turns: TenantQueue<BoxedJob>,
    threads: usize,
    idle: usize,
    closed: bool,
}

struct PoolInner {
    name: &'static str,
    nice: i32,
    max: usize,
    one_tenant: Arc<AtomicBool>,
    state: Mutex<PoolState>,
    changed: Condvar,
}

/// The pool. Threads start on demand; they end once the pool is dropped and its queue is empty.
pub(super) struct FairPool(Arc<PoolInner>);

impl FairPool {
    /// At most `max` threads of this name, at this niceness: at 10 they get about a tenth of a busy
    /// machine. `one_tenant` is read whenever a job is picked, because keys can change.
    pub(super) fn new(
        name: &'static str,
        nice: i32,
        max: usize,
        one_tenant: Arc<AtomicBool>,
    ) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Self(Arc::new(PoolInner { name, nice, max: max.max(1), one_tenant, state, changed }))
    }

    /// Queues the work of a tenant. If it panics, the receiver gets an error.
    pub(super) fn run<T: Send + 'static>(
        &self,
        tenant: &Arc<str>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        let work: BoxedJob = Box::new(move || {
            // The caller may have stopped waiting; then the result is dropped.
            let _sent = reply.send(work());
        });
        let mut state = self.0.state();
        state.turns.push(tenant, work);
        // An idle thread takes the job; otherwise a new one is started, up to the limit.
        if state.idle == 0 && state.threads < self.0.max {
            let inner = self.0.clone();
            let thread = std::thread::Builder::new()
                .name(self.0.name.to_owned())
                .spawn(move || inner.work());
            match thread {
                Ok(_) => state.threads += 1,
                Err(error) => {
                    let name = self.0.name;
                    tracing::error!(
                        %error,
                        name,
                        "cannot start a thread: those that run take its work"
                    )
                }
            }
        }
        drop(state);
        // Wakes all: the first thread to wake may find this tenant at its limit.
        self.0.changed.notify_all();
        answer
    }
}

impl Drop for FairPool {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.changed.notify_all();
    }
}

impl PoolInner {
    fn state(&self) -> MutexGuard<'_, PoolState> {
        // Jobs run outside of the lock, and nothing under it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Threads that one tenant may use: at most three quarters if there are several tenants.
    fn max_per_tenant(&self) -> usize {
        if self.one_tenant.load(Ordering::Relaxed) {
            self.max
        } else {
            (self.max - self.max.div_ceil(4)).max(1)
        }
    }

    fn work(&self) {
        // On Linux this sets the niceness of the calling thread alone, not of the process.
        if let Err(error) = rustix::process::setpriority_process(None, self.nice) {
            tracing::warn!(%error, name = self.name, "a thread runs at the priority of all others");
        }
        let mut state = self.state();
        loop {
            let Some((tenant, work)) = state.turns.next(self.max_per_tenant()) else {
                if state.closed {
                    return;
                }
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            drop(state);
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!(name = self.name, "a request crashed");
            }
            state = self.state();
            state.turns.done(&tenant);
            // The tenant may have been at its limit, with more of its jobs waiting.
            self.changed.notify_all();
        }
    }
}

/// Number of query threads. They run at low priority, so there may be more of them than cores. A
/// store that is a server gets at most half as many queries as it has read connections, which
/// leaves the others to shards and status checks.
pub(super) fn query_threads(config: &Config, cores: usize) -> usize {
    let wanted = match config.query.threads {
        0 => cores.max(4),
        threads => threads,
    };
    if config.store.url.is_none() {
        wanted
    } else {
        wanted.min(config.store.read_connections.div_ceil(2))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn tenant(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn tenants_take_turns_and_none_has_more_than_its_part() {
        let mut turns = TenantQueue::default();
        let (a, b) = (tenant("a"), tenant("b"));
        (0..6).for_each(|n| turns.push(&a, format!("a{n}")));
        turns.push(&b, "b0".to_owned());
        let mut order = Vec::new();
        while let Some((_, work)) = turns.next(3) {
            order.push(work);
        }
        assert_eq!(
            order,
            ["a0", "b0", "a1", "a2"],
            "b waits for one of a's, and a has three running"
        );
        turns.done(&b);
        assert_eq!(turns.next(3), None, "that was not a's");
        turns.done(&a);
        assert_eq!(turns.next(3).map(|(_, work)| work).as_deref(), Some("a3"));
    }

    #[tokio::test]
    async fn a_tenant_that_waits_for_ever_does_not_keep_another_waiting() {
        let lanes = FairPool::new("test", 0, 4, Arc::new(AtomicBool::new(false)));
        let (release, held) = mpsc::sync_channel::<()>(1);
        let held = Arc::new(Mutex::new(held));
        let hold = |_| {
            let held = held.clone();
            lanes.run(&tenant("a"), move || held.lock().map(|held| held.recv()).is_ok())
        };
        let stuck: Vec<_> = (0..20).map(hold).collect();
        for n in 0..50 {
            assert_eq!(lanes.run(&tenant("b"), move || n).await, Ok(n));
        }
        drop(release);
        for one in stuck {
            assert_eq!(one.await, Ok(true));
        }
    }

    #[tokio::test]
    async fn work_that_panics_harms_nothing_else_and_threads_are_nice() {
        let lanes = FairPool::new("test", 7, 1, Arc::new(AtomicBool::new(true)));
        assert!(
            lanes.run(&tenant("a"), || -> u8 { panic!("a fault to be caught") }).await.is_err()
        );
        let nice = lanes
            .run(&tenant("a"), || rustix::process::getpriority_process(None).expect("a priority"))
            .await;
        assert!(nice.expect("an answer") >= 7);
    }
}
