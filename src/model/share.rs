//! Shares: how much of a resource a node has, and how much of it one tenant may hold.
//!
//! Queries, bytes in flight, unread answers, connections and subscriptions are all limited this
//! way. Three things always hold: the total is never exceeded; while there are several tenants,
//! none holds more than its share, so that the others find room whatever it does; what was taken is
//! returned when the lease is dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::invariants::{Invariant, check};

/// One tenant's share is the total divided by this.
const PARTS: u64 = 4;

/// How much there is, and how much of it one tenant may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareLimits {
    /// The limit for all tenants together.
    pub total: u64,
    /// The limit for each tenant.
    pub per_tenant: u64,
}

/// Which limit a request would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareExceeded {
    /// The tenant's own share.
    Own,
    /// The total of all tenants.
    Total,
}

impl ShareLimits {
    /// A quarter of the total per tenant, or all of it if there is only one tenant.
    pub fn divided(total: u64, one_tenant: bool) -> Self {
        Self { total, per_tenant: if one_tenant { total } else { total.div_ceil(PARTS) } }
    }

    /// Whether `more` may be taken while all tenants hold `held` and this tenant holds `own`. If
    /// not, returns the limit that would be exceeded, the tenant's own first.
    pub fn admits(&self, held: u64, own: u64, more: u64) -> Result<(), ShareExceeded> {
        if own.saturating_add(more) > self.per_tenant && self.per_tenant < self.total {
            Err(ShareExceeded::Own)
        } else if held.saturating_add(more) > self.total {
            Err(ShareExceeded::Total)
        } else {
            Ok(())
        }
    }
}

/// A resource that tenants share, and who holds how much of it.
#[derive(Debug)]
pub struct SharePool {
    /// The resource's name in limits and metrics.
    pub name: &'static str,
    total: u64,
    one_tenant: Arc<AtomicBool>,
    books: Mutex<HeldAmounts>,
}

#[derive(Debug, Default)]
struct HeldAmounts {
    held: u64,
    // Tenants come from the keys file, so the map is as bounded as that file.
    tenants: HashMap<Arc<str>, u64, FixedState>,
}

/// How much of a resource is held, and by this tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareUsage {
    /// The limits at the time of reading.
    pub limits: ShareLimits,
    /// Held by all tenants together.
    pub held: u64,
    /// Held by the tenant in question.
    pub held_by_tenant: u64,
}

impl SharePool {
    /// A pool of `total`. `one_tenant` says at any moment whether there is nobody to share with.
    pub fn new(name: &'static str, total: u64, one_tenant: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self { name, total, one_tenant, books: Mutex::default() })
    }

    fn books(&self) -> MutexGuard<'_, HeldAmounts> {
        // Poison is ignored: two numbers change under the lock, and nothing in between can panic.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limits as of now: the number of tenants may change while the server runs.
    pub fn limits(&self) -> ShareLimits {
        ShareLimits::divided(self.total, self.one_tenant.load(Ordering::Relaxed))
    }

    /// Takes an amount for a tenant. Fails with the limit that would be exceeded.
    pub fn take(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        amount: u64,
    ) -> Result<ShareLease, ShareExceeded> {
        let mut held = ShareLease { pool: self.clone(), tenant: tenant.clone(), amount: 0 };
        held.grow(amount)?;
        Ok(held)
    }

    /// How much is held in total and by this tenant.
    pub fn usage(&self, tenant: &str) -> ShareUsage {
        let books = self.books();
        ShareUsage {
            limits: self.limits(),
            held: books.held,
            held_by_tenant: books.tenants.get(tenant).copied().unwrap_or(0),
        }
    }
}

/// I9: no more than the total is ever held, whatever admitted it.
fn check_bound(name: &str, held: u64, total: u64) {
    check(Invariant::Bounded, held <= total, || format!("{held} of {total} {name} are held"));
}

/// An amount held by a tenant, returned on drop.
#[derive(Debug)]
pub struct ShareLease {
    pool: Arc<SharePool>,
    tenant: Arc<str>,
    amount: u64,
}

impl ShareLease {
    /// The amount held at the moment.
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// The pool that the amount was taken from.
    pub fn pool(&self) -> &Arc<SharePool> {
        &self.pool
    }

    /// Takes more in addition. If that fails, the lease is unchanged.
    pub fn grow(&mut self, more: u64) -> Result<(), ShareExceeded> {
        // Taking nothing always succeeds.
        if more == 0 {
            return Ok(());
        }
        let share = self.pool.limits();
        let mut guard = self.pool.books();
        let books = &mut *guard;
        let known = books.tenants.get_mut(&self.tenant);
        let own = known.as_deref().copied().unwrap_or(0);
        share.admits(books.held, own, more)?;
        books.held += more;
        check_bound(self.pool.name, books.held, share.total);
        match known {
            Some(own) => *own += more,
            None => _ = books.tenants.insert(self.tenant.clone(), more),
        }
        self.amount += more;
        Ok(())
    }

    /// Returns everything beyond `amount`.
    pub fn shrink_to(&mut self, amount: u64) {
        let less = self.amount.saturating_sub(amount);
        if less == 0 {
            return;
        }
        let mut books = self.pool.books();
        books.held = books.held.saturating_sub(less);
        if let Some(own) = books.tenants.get_mut(&self.tenant) {
            *own = own.saturating_sub(less);
            // Tenants without a lease leave the map, so it holds active tenants only.
            if *own == 0 {
                books.tenants.remove(&self.tenant);
            }
        }
        self.amount -= less;
    }
}

impl Drop for ShareLease {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::invariants::tests::violations;

    fn shares(total: u64, one_tenant: bool) -> Arc<SharePool> {
        SharePool::new("things", total, Arc::new(AtomicBool::new(one_tenant)))
    }

    #[test]
    fn a_tenant_has_a_quarter_and_the_only_one_all() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let several = shares(64, false);
        let held = several.take(&a, 16).expect("a quarter");
        assert_eq!(several.take(&a, 1).map(|_| ()), Err(ShareExceeded::Own));
        let other = several.take(&b, 16).expect("the other's quarter is untouched");
        assert_eq!(
            several.usage("a"),
            ShareUsage {
                limits: ShareLimits { total: 64, per_tenant: 16 },
                held: 32,
                held_by_tenant: 16
            }
        );
        drop((held, other));
        assert_eq!(several.usage("a").held, 0);
        assert!(shares(64, true).take(&a, 64).is_ok());
    }

    #[test]
    fn more_that_is_held_than_there_is_is_a_violation() {
        let found = |held| violations(Invariant::Bounded, || check_bound("things", held, 8));
        assert_eq!([7, 8, 9].map(found), [0, 0, 1]);
    }

    #[test]
    fn more_than_four_tenants_never_exceed_the_whole() {
        let shares = shares(8, false);
        let held: Vec<_> =
            (0..9).map(|n| shares.take(&format!("t{n}").into(), 1).map_err(|e| (n, e))).collect();
        assert_eq!(held.iter().filter(|taken| taken.is_ok()).count(), 8);
        assert_eq!(held[8].as_ref().map(|_| ()), Err(&(8, ShareExceeded::Total)));
    }

    proptest! {
        #[test]
        fn what_is_dropped_is_given_back(
            steps in prop::collection::vec((0_u8..5, 0_u64..40, 0_u8..3), 1..60),
        ) {
            let shares = shares(100, false);
            let mut held: Vec<(u8, ShareLease)> = Vec::new();
            for (tenant, amount, what) in steps {
                match what {
                    0 => { held.pop(); }
                    1 => if let Some((_, last)) = held.last_mut() && last.grow(amount).is_err() {
                        last.shrink_to(last.amount() / 2);
                    },
                    _ => {
                        let taken = shares.take(&format!("{tenant}").into(), amount);
                        held.extend(taken.ok().map(|h| (tenant, h)));
                    }
                }
                for tenant in 0..5 {
                    let own = held.iter().filter(|(of, _)| *of == tenant);
                    let own: u64 = own.map(|(_, h)| h.amount()).sum();
                    let of = shares.usage(&format!("{tenant}"));
                    prop_assert_eq!(of.held_by_tenant, own);
                    prop_assert!(of.held_by_tenant <= of.limits.per_tenant);
                    prop_assert!(of.held <= of.limits.total);
                }
                let all = held.iter().map(|(_, h)| h.amount()).sum::<u64>();
                prop_assert_eq!(shares.usage("0").held, all);
            }
        }
    }
}
