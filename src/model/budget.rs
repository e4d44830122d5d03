//! The budget of one query: memory and points, charged while it runs, and whether it was aborted.
//!
//! The code that runs a query charges what it holds and checks [`QueryBudget::abort_reason`] as it
//! goes; the caller that waits for the answer may abort it. The first reason wins. Nothing blocks
//! here, and nothing is accounted after the fact: a query that grows too large stops at that point.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::share::{ShareExceeded, ShareLease};

/// Memory is reserved from the tenant's share in steps of this many bytes, so that the share's lock
/// is not taken for every allocation.
const STEP: u64 = 256 * 1024;

/// Why a query ended before it had an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortReason {
    /// The client is no longer waiting.
    Abandoned,
    /// It exceeded the time limit of a query.
    TimedOut,
    /// Its answer exceeds the limit of points.
    TooManyPoints,
    /// The query alone needs more memory than its tenant may use.
    TooMuchMemory,
    /// Other queries of the tenant hold the tenant's memory.
    TenantBusy,
    /// Other tenants hold the memory for queries.
    Busy,
}

const ALL: [AbortReason; 6] = [
    AbortReason::Abandoned,
    AbortReason::TimedOut,
    AbortReason::TooManyPoints,
    AbortReason::TooMuchMemory,
    AbortReason::TenantBusy,
    AbortReason::Busy,
];

/// The budget of one query.
#[derive(Debug, Default)]
pub struct QueryBudget {
    /// 0 while the query runs, otherwise one more than the index of the reason in [`ALL`].
    aborted: Arc<AtomicU8>,
    bytes: AtomicU64,
    points: AtomicU64,
    /// Bytes reserved from the share: a copy of the lease's amount that is read without its lock.
    reserved: AtomicU64,
    /// The lease on the tenant's memory. `None` means no limit.
    memory: Option<Mutex<ShareLease>>,
}

/// Read-only view of whether a query was aborted, for workers that may outlive it.
#[derive(Debug, Clone)]
pub struct CancelFlag(Arc<AtomicU8>);

impl CancelFlag {
    /// Whether the query was aborted.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }
}

impl QueryBudget {
    /// A budget whose memory comes from a tenant's share.
    pub fn from_share(memory: ShareLease) -> Self {
        Self { memory: Some(Mutex::new(memory)), ..Self::default() }
    }

    /// Aborts the query. An earlier reason is kept.
    pub fn abort(&self, why: AbortReason) {
        let code = ALL.iter().position(|other| *other == why).map_or(0, |at| at as u8 + 1);
        let _earlier = self.aborted.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Why the query was aborted, or `None` while it may run.
    pub fn abort_reason(&self) -> Option<AbortReason> {
        match self.aborted.load(Ordering::Acquire) {
            0 => None,
            code => ALL.get(usize::from(code) - 1).copied(),
        }
    }

    /// A flag that workers of the query can poll.
    pub fn cancel_flag(&self) -> CancelFlag {
        CancelFlag(self.aborted.clone())
    }

    /// Charges memory, and aborts the query if the share has no more.
    pub fn charge(&self, bytes: usize) {
        let now = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        // The common case takes no lock: the charge still fits what is already reserved.
        let Some(memory) =
            self.memory.as_ref().filter(|_| now > self.reserved.load(Ordering::Relaxed))
        else {
            return;
        };
        let mut held = memory.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have reserved enough while this one waited for the lock.
        if now <= held.amount() || self.abort_reason().is_some() {
            return;
        }
        let more = (now - held.amount()).next_multiple_of(STEP);
        if let Err(exceeded) = held.grow(more) {
            let alone = now.next_multiple_of(STEP) > held.pool().limits().per_tenant;
            self.abort(match exceeded {
                _ if alone => AbortReason::TooMuchMemory,
                ShareExceeded::Own => AbortReason::TenantBusy,
                ShareExceeded::Total => AbortReason::Busy,
            });
        }
        self.reserved.store(held.amount(), Ordering::Relaxed);
    }

    /// Releases charged memory. The reservation stays with the query until it ends, because it will
    /// need the memory again.
    pub fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Counts one point of the answer, and aborts the query beyond `max`.
    pub fn count_point(&self, max: usize) {
        if self.points.fetch_add(1, Ordering::Relaxed) >= max as u64 {
            self.abort(AbortReason::TooManyPoints);
        }
    }

    /// Uncounts points that are from now on counted in another budget.
    pub fn release_points(&self, points: usize) {
        self.points.fetch_sub(points as u64, Ordering::Relaxed);
    }

    /// Most bytes that the query may ever hold; `None` means no limit.
    pub fn max_bytes(&self) -> Option<u64> {
        let held = self.memory.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(held.pool().limits().per_tenant)
    }

    /// Bytes charged at the moment.
    pub fn charged_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::model::share::SharePool;

    fn memory(total: u64) -> (Arc<SharePool>, Arc<str>) {
        (SharePool::new("query_memory", total, Arc::new(AtomicBool::new(false))), "t".into())
    }

    #[test]
    fn the_first_reason_stays() {
        let budget = QueryBudget::default();
        assert_eq!(budget.abort_reason(), None);
        for why in ALL {
            let budget = QueryBudget::default();
            budget.abort(why);
            budget.abort(AbortReason::Abandoned);
            assert_eq!((budget.abort_reason(), budget.cancel_flag().is_set()), (Some(why), true));
        }
    }

    #[test]
    fn memory_ends_the_query_that_needs_too_much_and_says_whose_fault_it_is() {
        let (shares, tenant) = memory(64 * STEP);
        let take =
            || QueryBudget::from_share(shares.take(&tenant, 0).expect("nothing is always there"));
        let large = take();
        assert_eq!(
            (large.max_bytes(), QueryBudget::default().max_bytes()),
            (Some(16 * STEP), None)
        );
        large.charge(17 * STEP as usize);
        assert_eq!(
            large.abort_reason(),
            Some(AbortReason::TooMuchMemory),
            "more than a quarter alone"
        );
        assert_eq!(shares.usage("t").held_by_tenant, 0);
        let (first, second) = (take(), take());
        first.charge(10 * STEP as usize);
        second.charge(10 * STEP as usize);
        assert_eq!(
            (first.abort_reason(), second.abort_reason()),
            (None, Some(AbortReason::TenantBusy))
        );
        drop(first);
        let third = take();
        third.charge(10 * STEP as usize);
        third.release(9 * STEP as usize);
        third.charge(9 * STEP as usize);
        assert_eq!((third.abort_reason(), shares.usage("t").held_by_tenant), (None, 10 * STEP));
    }

    #[test]
    fn points_are_counted_as_they_come() {
        let budget = QueryBudget::default();
        (0..5).for_each(|_| budget.count_point(5));
        assert_eq!(budget.abort_reason(), None);
        budget.release_points(1);
        budget.count_point(5);
        assert_eq!(budget.abort_reason(), None);
        budget.count_point(5);
        assert_eq!(budget.abort_reason(), Some(AbortReason::TooManyPoints));
    }
}
