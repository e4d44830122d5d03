//! What a received message asks for: parsing it, appending its events, and the acknowledgement.

use std::ops::Range;
use std::sync::Arc;

use axum::http::HeaderMap;
use bytes::Bytes;

use super::super::auth::Scope;
use super::super::codes::{POLICY, PROTOCOL};
use super::super::decode::BodyFormat;
use super::super::error::ApiError;
use super::super::{Gateway, ingest, parse, shares};
use super::close::CloseReason;
use super::message::{self, ClientMessage, MessageError};
use crate::api::events::RefusedEvent;
use crate::model::batch::ValidEvent;
use crate::model::share::ShareLease;

/// Largest message without `events`, in bytes.
pub(super) const MAX_REQUEST: usize = 16 * 1024;

fn nack(seq: u64, error: &ApiError) -> String {
    match error.retry_after {
        Some(seconds) => {
            serde_json::json!({"nack": seq, "retry_after_ms": seconds * 1000, "code": error.code})
                .to_string()
        }
        // Without a retry time the error is final; the client must not send the batch again.
        None => {
            let error =
                serde_json::json!({"code": error.code, "message": error.message, "details": {}});
            serde_json::json!({"nack": seq, "final": true, "error": error}).to_string()
        }
    }
}

/// What a message asks for.
pub(super) enum MessageAction {
    Append(u64, Box<EventBatch>),
    Answer(String),
    Subscribe { name: String, query: Option<Vec<(String, String)>> },
    Unsubscribe(String),
}

/// Parsed events, and the reservation of their memory.
pub(super) struct EventBatch {
    tenant: Arc<str>,
    body: Bytes,
    events: (Vec<ValidEvent>, Vec<RefusedEvent>),
    reservation: ShareLease,
}

/// Parses a message into the action that it asks for.
pub(super) fn read(
    gateway: &Gateway,
    headers: &HeaderMap,
    text: Bytes,
) -> Result<MessageAction, CloseReason> {
    let bytes = text.len();
    match message::read(&text) {
        Ok(incoming)
            if bytes > MAX_REQUEST && !matches!(incoming, ClientMessage::Events { .. }) =>
        {
            Err(CloseReason::by_server(POLICY, "a message without events is at most 16 KiB"))
        }
        Ok(ClientMessage::Events { seq, events }) => {
            Ok(match read_events(gateway, headers, text, events) {
                Ok(batch) => MessageAction::Append(seq, Box::new(batch)),
                Err(error) => MessageAction::Answer(nack(seq, &error)),
            })
        }
        Ok(ClientMessage::Subscribe { name, query }) => {
            Ok(MessageAction::Subscribe { name, query })
        }
        Ok(ClientMessage::Unsubscribe(name)) => Ok(MessageAction::Unsubscribe(name)),
        Err(MessageError { seq, error }) => {
            let error = charge_refused(gateway, headers, error);
            match seq {
                // The whole batch is refused for good, or until the tenant may send again; other
                // messages on the connection are not affected.
                Some(seq) => Ok(MessageAction::Answer(nack(seq, &error))),
                None => Err(CloseReason::Refused(PROTOCOL, error)),
            }
        }
    }
}

/// Charges a message that cannot be read as the one event that a body is which is refused whole.
/// Returns the error to answer with.
fn charge_refused(gateway: &Gateway, headers: &HeaderMap, error: ApiError) -> ApiError {
    // Whoever may not write sends no events.
    let Ok(tenant) = gateway.tenant(headers, Scope::Write) else { return error };
    let refused: Result<Vec<Range<usize>>, ApiError> = Err(error.clone());
    gateway.admission.charge(&tenant, refused).err().unwrap_or(error)
}

fn read_events(
    gateway: &Gateway,
    headers: &HeaderMap,
    body: Bytes,
    events: Range<usize>,
) -> Result<EventBatch, ApiError> {
    let tenant = gateway.tenant(headers, Scope::Write)?;
    let reservation = shares::reserve(&gateway.shares.inflight, &tenant, body.len() as u64)?;
    let now = gateway.deps.clock.now();
    let (format, idempotency, default_metric) = (BodyFormat::Json, None, None);
    let request = ingest::IngestRequest {
        gateway,
        tenant: &tenant,
        format,
        idempotency,
        default_metric,
        now,
    };
    let ranges = parse::split_json_in(&body, events, gateway.deps.config.accept.max_events);
    let events = request.read_ranges(&body, ranges)?;
    Ok(EventBatch { tenant, body, events, reservation })
}

/// Appends events and returns their acknowledgement, positive or negative.
pub(super) async fn append(gateway: Arc<Gateway>, seq: u64, batch: EventBatch) -> String {
    let EventBatch { tenant, body, events, reservation } = batch;
    let outcome = ingest::append(&gateway, tenant, body, events).await;
    drop(reservation);
    match outcome {
        Ok(answer) => serde_json::json!({
        "ack": seq,
        "accepted": answer.accepted,
        "rejected": answer.rejected,
        "errors": answer.errors,
        })
        .to_string(),
        Err(error) => nack(seq, &error),
    }
}
