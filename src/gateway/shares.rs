//! Resources that tenants share, and the answers when a share is used up.
//!
//! [`crate::model::share`] decides; this module defines the gateway's pools, each with its limit,
//! its metric and its answer: 429 to a tenant that holds its full share, 503 when the whole pool is
//! in use, both with `Retry-After`.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::auth::KeyTable;
use super::error::ApiError;
use crate::config::{Config, key};
use crate::model::share::{ShareExceeded, ShareLease, SharePool};
use crate::telemetry;

/// Smaller answers are not counted: each connection holds at most one.
const SMALL_ANSWER: u64 = 4 * 1024;

/// Who holds what is read before its key is known. No tenant has an empty name.
pub(super) static NOBODY: LazyLock<Arc<str>> = LazyLock::new(|| "".into());

/// Every pool that tenants share.
pub struct TenantShares {
    single_tenant: Arc<AtomicBool>,
    /// `query.max_concurrent`: queries that run or wait for their turn.
    pub queries: Arc<SharePool>,
    /// `query.max_memory`: bytes of queries while they run.
    pub query_memory: Arc<SharePool>,
    /// `accept.max_inflight`: bytes of requests that are read or wait for the log.
    pub inflight: Arc<SharePool>,
    /// A quarter of `accept.max_inflight`, beside it: bytes of requests whose key stands in the
    /// body, until it is known. Strangers can fill it, and only it.
    pub unidentified: Arc<SharePool>,
    /// `server.max_answers`: bytes of answers that are not taken yet.
    pub answers: Arc<SharePool>,
    /// `server.max_connections`: connections on which a valid key came in.
    pub connections: Arc<SharePool>,
    /// `ws.max_all_subscriptions`: subscriptions on all WebSockets.
    pub subscriptions: Arc<SharePool>,
}

impl TenantShares {
    /// Creates the pools with the limits of the configuration.
    pub fn new(config: &Config, keys: &KeyTable) -> Self {
        let one_tenant = Arc::new(AtomicBool::new(keys.tenants() < 2));
        let shares = |name, total: usize| SharePool::new(name, total as u64, one_tenant.clone());
        Self {
            queries: shares(key!(query.max_concurrent), config.query.max_concurrent),
            query_memory: shares(key!(query.max_memory), config.query.max_memory.in_memory()),
            inflight: shares(key!(accept.max_inflight), config.accept.max_inflight.in_memory()),
            unidentified: SharePool::new(
                key!(accept.max_inflight),
                config.accept.max_inflight.in_memory() as u64 / 4,
                // One holder has all of it.
                Arc::new(AtomicBool::new(true)),
            ),
            answers: shares(key!(server.max_answers), config.server.max_answers.in_memory()),
            connections: shares(key!(server.max_connections), config.server.max_connections),
            subscriptions: shares(key!(ws.max_all_subscriptions), config.ws.max_all_subscriptions),
            single_tenant: one_tenant,
        }
    }

    /// Whether at most one tenant has keys; updated while the node runs.
    pub fn single_tenant(&self) -> &Arc<AtomicBool> {
        &self.single_tenant
    }

    /// Updates the number of tenants after the keys changed.
    pub fn update_tenants(&self, keys: &KeyTable) {
        self.single_tenant.store(keys.tenants() < 2, Ordering::Relaxed);
    }

    /// All pools, for metrics and limits.
    pub fn all(&self) -> [&Arc<SharePool>; 6] {
        [
            &self.queries,
            &self.query_memory,
            &self.inflight,
            &self.answers,
            &self.connections,
            &self.subscriptions,
        ]
    }

    /// Sets the counters of refusals to zero, so that `increase()` sees the first one.
    pub fn start_counters(&self) {
        for shares in self.all() {
            for by in [BY_TENANT, BY_TOTAL] {
                count_refused(shares.name, by, 0);
            }
        }
    }

    /// Exports the usage of every pool as a gauge.
    pub fn record_metrics(&self) {
        for shares in self.all() {
            metrics::gauge!(telemetry::SHARE_USED, "limit" => shares.name)
                .set(shares.usage("").held as f64);
        }
    }
}

/// Reserves an amount of a pool for a tenant.
///
/// # Errors
/// 429 if the tenant holds its full share, 503 if the pool is exhausted, both with `Retry-After`.
pub fn reserve(
    shares: &Arc<SharePool>,
    tenant: &Arc<str>,
    amount: u64,
) -> Result<ShareLease, ApiError> {
    shares.take(tenant, amount).map_err(|exceeded| refused(shares, exceeded))
}

/// Counts a large answer as held until its last byte is written, or replaces it with an error if
/// there is no room for it.
pub fn reserve_answer(shares: &TenantShares, tenant: &Arc<str>, response: Response) -> Response {
    let Some(bytes) = response.body().size_hint().exact().filter(|bytes| *bytes >= SMALL_ANSWER)
    else {
        return response;
    };
    // An answer larger than a full share reserves the full share, or it could never be sent.
    let amount = bytes.min(shares.answers.limits().per_tenant);
    let held = match reserve(&shares.answers, tenant, amount) {
        Ok(held) => Arc::new(held),
        Err(error) => return error.into_response(),
    };
    // hyper drops a body's bytes when they are written, which frees the reservation then, not at
    // the hand-over.
    response.map(|body| Body::new(ReservedBody { body, held }))
}

/// A body whose chunks keep the reservation alive until they are dropped.
struct ReservedBody {
    body: Body,
    held: Arc<ShareLease>,
}

impl HttpBody for ReservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let held = &self.held;
        let hold = |data| Bytes::from_owner(ReservedBytes { data, _held: held.clone() });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(hold))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A chunk that waits to be written.
struct ReservedBytes {
    data: Bytes,
    _held: Arc<ShareLease>,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Enlarges a reservation by `more`. Fails as [`reserve`] does.
pub fn grow(held: &mut ShareLease, more: u64) -> Result<(), ApiError> {
    held.grow(more).map_err(|exceeded| refused(held.pool(), exceeded))
}

fn refused(shares: &SharePool, exceeded: ShareExceeded) -> ApiError {
    let (name, each) = (shares.name, shares.limits().per_tenant);
    let (by, error) = match exceeded {
        ShareExceeded::Own => {
            let message =
                format!("the tenant uses all that one may have of {name} ({each}): retry");
            (BY_TENANT, ApiError::busy("tenant_overloaded", message, 1))
        }
        ShareExceeded::Total => (
            BY_TOTAL,
            ApiError::unavailable(
                "overloaded",
                format!("all of {name} is in use on this node: retry"),
                1,
            ),
        ),
    };
    count_refused(name, by, 1);
    error
}

/// The tenant has all of its part.
const BY_TENANT: &str = "tenant";
/// All tenants together have all there is.
const BY_TOTAL: &str = "total";

fn count_refused(limit: &'static str, by: &'static str, requests: u64) {
    metrics::counter!(telemetry::SHARES_REFUSED, "limit" => limit, "by" => by).increment(requests);
}
