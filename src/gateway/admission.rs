//! Admission control: a token bucket of events per tenant.
//!
//! What counts is the work that events are, so every event that a tenant sends takes a token,
//! valid or refused, in every protocol. A body that is refused whole, because its events cannot be
//! told apart or are too many, is one event.
//!
//! One request may overdraw a full bucket, or a batch larger than the burst would be refused for
//! ever. The debt must be repaid before the next request.

use std::sync::Arc;

use dashmap::DashMap;

use super::error::ApiError;
use crate::clock::Clock;
use crate::collect::SentRequest;
use crate::config::TenantsConfig;

struct TokenBucket {
    tokens: f64,
    at: f64,
}

/// A body that was split into its events.
pub(super) trait Events {
    /// How many there are.
    fn count(&self) -> usize;
}

impl<T> Events for Vec<T> {
    fn count(&self) -> usize {
        self.len()
    }
}

impl<B, T> Events for (B, Vec<T>) {
    fn count(&self) -> usize {
        self.1.len()
    }
}

impl Events for SentRequest {
    fn count(&self) -> usize {
        self.events.len()
    }
}

/// Enforces the event rate of each tenant.
pub struct AdmissionControl {
    buckets: DashMap<Arc<str>, TokenBucket>,
    clock: Arc<dyn Clock>,
    rate: f64,
    burst: f64,
}

impl AdmissionControl {
    /// Gives every tenant the configured rate and burst. Tokens come back with the boot clock,
    /// which no jump of the wall clock moves.
    pub fn new(config: &TenantsConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            buckets: DashMap::new(),
            clock,
            rate: config.max_events_per_second as f64,
            burst: config.burst.max(1) as f64,
        }
    }

    /// Takes one token for each event of a body that was split, and one for a body that could not
    /// be.
    ///
    /// # Errors
    /// 429 with `Retry-After` if the tenant exceeds its rate, otherwise the error of the split.
    pub(super) fn charge<T: Events>(
        &self,
        tenant: &Arc<str>,
        split: Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.take(tenant, split.as_ref().map_or(1, Events::count))?;
        split
    }

    /// Takes one token per event of a request.
    ///
    /// # Errors
    /// 429 with `Retry-After` if the tenant exceeds its rate.
    fn take(&self, tenant: &Arc<str>, events: usize) -> Result<(), ApiError> {
        self.take_at(tenant, events, self.clock.uptime() as f64 / 1_000.0)
    }

    fn take_at(&self, tenant: &Arc<str>, events: usize, now: f64) -> Result<(), ApiError> {
        // 0 means unlimited.
        if self.rate == 0.0 {
            return Ok(());
        }
        // Tenants come from the keys file, which bounds the map.
        let mut bucket = self
            .buckets
            .entry(tenant.clone())
            .or_insert(TokenBucket { tokens: self.burst, at: now });
        bucket.tokens = (bucket.tokens + (now - bucket.at).max(0.0) * self.rate).min(self.burst);
        bucket.at = now;
        if bucket.tokens <= 0.0 || (bucket.tokens < events as f64 && bucket.tokens < self.burst) {
            let missing = (events as f64).min(self.burst) - bucket.tokens;
            let seconds = (missing / self.rate).ceil().max(1.0) as u64;
            let message = format!(
                "the tenant may send {} events a second (tenants.max_events_per_second): send \
                 later",
                self.rate
            );
            return Err(ApiError::too_many(message, seconds));
        }
        bucket.tokens -= events as f64;
        Ok(())
    }

    /// Refunds valid events that the server could not store, so that they do not cause the refusal
    /// of their own retry.
    pub fn refund(&self, tenant: &Arc<str>, events: usize) {
        if let Some(mut bucket) = self.buckets.get_mut(tenant) {
            bucket.tokens = (bucket.tokens + events as f64).min(self.burst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::config::Config;

    #[test]
    fn a_bucket_fills_at_its_rate_and_tenants_do_not_share() {
        let config = Config::defaults().with(|c| {
            c.tenants.max_events_per_second = 10;
            c.tenants.burst = 20;
        });
        let admission = AdmissionControl::new(&config.tenants, ManualClock::at(0));
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(admission.take_at(&a, 20, 0.0), Ok(()));
        assert_eq!(admission.take_at(&a, 1, 0.0).unwrap_err().retry_after, Some(1));
        assert_eq!(admission.take_at(&b, 20, 0.0), Ok(()));
        assert_eq!(admission.take_at(&a, 10, 1.0), Ok(()));
        assert_eq!(admission.take_at(&a, 500, 2.0).unwrap_err().retry_after, Some(1));
        assert_eq!(
            admission.take_at(&a, 500, 3.0),
            Ok(()),
            "larger than the burst: goes into debt once the bucket is full"
        );
        assert_eq!(admission.take_at(&a, 1, 4.0).unwrap_err().retry_after, Some(48));
        admission.refund(&a, 500);
        assert_eq!(admission.take_at(&a, 20, 4.0), Ok(()), "what was not kept costs nothing");
        admission.refund(&a, 500);
        assert!(
            admission.take_at(&a, 21, 4.0).is_ok() && admission.take_at(&a, 1, 4.0).is_err(),
            "never more than the burst"
        );
    }
}
