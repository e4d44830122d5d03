//! Subscriptions of a connection, and what becomes of the answers to their queries.

use std::sync::Arc;

use axum::extract::ws::Message;

use crate::api::error::ErrorAnswer;
use crate::gateway::error::ApiError;
use crate::model::share::ShareLease;
use crate::telemetry;

/// A subscription of one connection.
pub(super) struct Subscription {
    pub(super) params: Vec<(String, String)>,
    /// Hash of the last update; the update itself may be large.
    pub(super) last: Option<u128>,
    pub(super) _slot: Option<ShareLease>,
    pub(super) running: bool,
    pub(super) generation: u64,
}

/// Counts an update as unsent, and its bytes as held, until dropped.
pub(super) type UnsentGuard = (Arc<()>, Option<ShareLease>);
/// A message, and for an update the guard that counts it.
pub(super) type OutgoingMessage = (Message, Option<UnsentGuard>);
/// Name and generation of a subscription; its update, with a hash of the part whose change makes
/// an update worth sending.
pub(super) type SubscriptionUpdate = (String, u64, Result<(String, u128), ApiError>);

/// What became of an answer to a subscription's query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpdateOutcome {
    Sent,
    /// It is as the one before, and not sent again.
    Unchanged,
    /// The error is sent.
    Failed,
    /// Overload, of which the client hears nothing: the next turn asks again.
    Delayed,
}

impl UpdateOutcome {
    /// Counts it.
    pub(super) fn count(self) {
        let outcome = match self {
            Self::Sent => "sent",
            Self::Unchanged => "unchanged",
            Self::Failed => "failed",
            Self::Delayed => "delayed",
        };
        metrics::counter!(telemetry::WS_UPDATES, "outcome" => outcome).increment(1);
    }
}

/// Renders an error as an update of a subscription.
pub(super) fn failed_update(name: &str, error: &ApiError) -> String {
    #[derive(serde::Serialize)]
    struct FailedUpdate<'a> {
        update: &'a str,
        #[serde(flatten)]
        error: ErrorAnswer,
    }
    let update = FailedUpdate { update: name, error: ErrorAnswer::new(error.code, &error.message) };
    // Serialising a plain struct cannot fail.
    serde_json::to_string(&update).unwrap_or_default()
}
