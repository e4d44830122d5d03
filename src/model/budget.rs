//! What one query may cost, counted while it runs, and whether it may still go on.
//!
//! Whoever runs a query charges what it holds and looks now and then whether it has ended; whoever
//! waits for it ends it. The first reason stays. Nothing here waits, and nothing is counted after
//! the fact: a query that becomes too large stops there.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::share::{ShareExceeded, ShareLease};

/// Memory is taken from the share in steps of this.
const STEP: u64 = 256 * 1024;

/// Why a query ended before it had an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortReason {
    /// Nobody waits for it any more.
    Abandoned,
    /// It took longer than a query may.
    TimedOut,
    /// Its answer has more points than one may have.
    TooManyPoints,
    /// It alone needs more memory than its tenant may use for queries.
    TooMuchMemory,
    /// The memory for queries is in use by others of its tenant.
    TenantBusy,
    /// The memory for queries is in use.
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
    /// 0 while it goes on; otherwise one more than the place in [`ALL`].
    aborted: Arc<AtomicU8>,
    bytes: AtomicU64,
    points: AtomicU64,
    /// How much of it is taken from the share.
    reserved: AtomicU64,
    /// Memory taken from the tenant's share; without it there is no bound.
    memory: Option<Mutex<ShareLease>>,
}

/// Whether a query has ended, for what works for it and may outlive it.
#[derive(Debug, Clone)]
pub struct CancelFlag(Arc<AtomicU8>);

impl CancelFlag {
    /// Whether it has ended.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }
}

impl QueryBudget {
    /// A query that takes its memory from a share.
    pub fn from_share(memory: ShareLease) -> Self {
        Self { memory: Some(Mutex::new(memory)), ..Self::default() }
    }

    /// Ends the query; an earlier reason stays.
    pub fn abort(&self, why: AbortReason) {
        let code = ALL.iter().position(|other| *other == why).map_or(0, |at| at as u8 + 1);
        let _earlier = self.aborted.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Why it ended, if it has.
    pub fn abort_reason(&self) -> Option<AbortReason> {
        match self.aborted.load(Ordering::Acquire) {
            0 => None,
            code => ALL.get(usize::from(code) - 1).copied(),
        }
    }

    /// What tells whether it has ended.
    pub fn cancel_flag(&self) -> CancelFlag {
        CancelFlag(self.aborted.clone())
    }

    /// Charges memory; the query ends if there is no more.
    pub fn charge(&self, bytes: usize) {
        let now = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let Some(memory) =
            self.memory.as_ref().filter(|_| now > self.reserved.load(Ordering::Relaxed))
        else {
            return;
        };
        let mut held = memory.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Gives memory back. What was taken from the share stays with the query until it ends: it will
    /// need it again.
    pub fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a new point of the answer; the query ends if it has more than `max`.
    pub fn count_point(&self, max: usize) {
        if self.points.fetch_add(1, Ordering::Relaxed) >= max as u64 {
            self.abort(AbortReason::TooManyPoints);
        }
    }

    /// Points that are counted elsewhere from now on.
    pub fn release_points(&self, points: usize) {
        self.points.fetch_sub(points as u64, Ordering::Relaxed);
    }

    /// Memory charged now.
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
