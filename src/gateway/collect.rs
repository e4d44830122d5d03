//! The collection endpoints of published SDKs: [`crate::collect`] reads what they send, and from
//! there on their events go the way of all others.
//!
//! A request is never answered with a status after which its client drops it because of overload, or
//! because of one bad event: that is 429 or 503 with `Retry-After`, and success.

mod form;
mod take;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::{Map, Value, json};

pub(super) use self::take::start_counters;
use self::take::{Delivery, KeyPlace, Taken, take};
use super::Gateway;
use super::decode;
use super::error::ApiError;
use super::extract::{GatewayState, QueryString, checked_params, decode_query};
use crate::collect::{Form, Source, ValidationMessage, check_ga4};
use crate::model::event;
use crate::telemetry;

/// The routes of all interfaces.
pub(super) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/v1/track", post(segment))
        .route("/v1/identify", post(segment))
        .route("/v1/page", post(segment))
        .route("/v1/screen", post(segment))
        .route("/v1/group", post(segment))
        .route("/v1/alias", post(segment))
        .route("/v1/batch", post(segment))
        .route("/v1/import", post(segment))
        .route("/v1/t", post(segment))
        .route("/v1/i", post(segment))
        .route("/v1/p", post(segment))
        .route("/v1/s", post(segment))
        .route("/v1/g", post(segment))
        .route("/v1/a", post(segment))
        .route("/v1/b", post(segment))
        .route("/v1/m", post(segment_metrics))
        .route("/batch", post(posthog))
        .route("/batch/", post(posthog))
        .route("/capture", post(posthog))
        .route("/capture/", post(posthog))
        .route("/e", post(posthog))
        .route("/e/", post(posthog))
        .route("/i/v0/e", post(posthog))
        .route("/i/v0/e/", post(posthog))
        .route("/i/v1/analytics/events", post(posthog_v1))
        .route("/i/v1/general/events", post(posthog_v1))
        .route("/flags", post(posthog_flags))
        .route("/flags/", post(posthog_flags))
        .route("/decide", post(posthog_flags))
        .route("/decide/", post(posthog_flags))
        .route("/array/{token}/config", get(posthog_config))
        .route("/array/{token}/config.js", get(posthog_script))
        .route("/mp/collect", post(ga4))
        .route("/debug/mp/collect", post(ga4_debug))
        .route("/v1/cloudevents", post(cloudevents))
}

/// Handles Segment's calls and batches; the last segment of the path says which.
async fn segment(
    State(gateway): GatewayState,
    q: QueryString,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let call = head.uri.path().trim_start_matches("/v1/");
    let form = Form::of_segment(call).ok_or_else(ApiError::internal)?;
    let delivery = Delivery { key: KeyPlace::HeaderOrBody, params: Some(q), ..Delivery::of(form) };
    let taken = take(&gateway, &head, body, delivery).await?;
    // These clients drop a batch after any other status, so an answer that nothing was taken says so
    // in its body.
    Ok(axum::Json(outcome("success", Value::from(taken.is_success()), &taken)).into_response())
}

/// Answers Segment's browser client, which reports here how well it works itself. Keeps nothing.
async fn segment_metrics(q: QueryString) -> Result<Response, ApiError> {
    checked_params(q, &[])?;
    Ok(axum::Json(json!({"success": true})).into_response())
}

/// An answer in the shape of an interface, with what became of the events.
fn outcome(name: &str, value: Value, taken: &Taken) -> Value {
    let answer = &taken.answer;
    let mut outcome = json!({"accepted": answer.accepted, "rejected": answer.rejected});
    outcome[name] = value;
    if !answer.errors.is_empty() {
        outcome["errors"] = json!(answer.errors);
    }
    outcome
}

/// Handles PostHog's endpoints before version 1. Their parameters are hints for PostHog.
async fn posthog(
    State(gateway): GatewayState,
    q: QueryString,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let is_beacon = q.0.is_some_and(|query| query.split('&').any(|pair| pair == "beacon=1"));
    let delivery = Delivery { key: KeyPlace::HeaderOrBody, ..Delivery::of(Form::PostHog) };
    let taken = take(&gateway, &head, body, delivery).await.map_err(as_unavailable)?;
    if is_beacon {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(axum::Json(outcome("status", Value::from("Ok"), &taken)).into_response())
}

/// A refusal that may be sent again, as one of those after which PostHog's browser client does that:
/// after 4xx, 429 too, it drops the batch.
fn as_unavailable(error: ApiError) -> ApiError {
    match error.status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            ApiError::unavailable(error.code, error.message, error.retry_after.unwrap_or(1))
        }
        _ => error,
    }
}

/// Handles PostHog's capture version 1, which wants an outcome for each event.
async fn posthog_v1(State(gateway): GatewayState, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let sent_at = head.headers.get("posthog-request-timestamp").and_then(|at| at.to_str().ok());
    let delivery = Delivery {
        key: KeyPlace::HeaderOrBody,
        sent_at: sent_at.and_then(|at| event::parse_rfc3339(at).ok()),
        wants_ids: true,
        ..Delivery::of(Form::PostHog)
    };
    match take(&gateway, &head, body, delivery).await {
        Ok(taken) => axum::Json(json!({"results": results(taken)})).into_response(),
        Err(error) => {
            let body = json!({"error": error.code, "error_description": error.message});
            let mut response = error.into_response();
            *response.body_mut() = Body::from(body.to_string());
            response.headers_mut().remove(header::CONTENT_LENGTH);
            response
        }
    }
}

/// An outcome for each event that names itself. `drop` is what its client does not send again.
fn results(taken: Taken) -> Map<String, Value> {
    let accepted = taken.ids.into_iter().map(|id| (id, json!({"result": "ok"})));
    let refused = taken.answer.errors.into_iter().filter_map(|refused| {
        let details = format!("{}: {}", refused.code, refused.message);
        Some((refused.id?, json!({"result": "drop", "details": details})))
    });
    accepted.chain(refused).collect()
}

/// Answers that there are no feature flags, in the words of all versions.
async fn posthog_flags() -> Response {
    axum::Json(json!({
        "flags": {},
        "featureFlags": {},
        "featureFlagPayloads": {},
        "errorsWhileComputingFlags": false,
    }))
    .into_response()
}

/// Tells PostHog's browser client to pack what it sends, and that there is nothing else for it to do.
/// Packed bodies are plain text to a browser, which so asks for no preflight.
async fn posthog_config() -> Response {
    axum::Json(json!({
        "supportedCompression": ["gzip", "gzip-js"],
        "hasFeatureFlags": false,
        "sessionRecording": false,
        "surveys": false,
        "productTours": false,
        "heatmaps": false,
        "capturePerformance": false,
        "autocaptureExceptions": false,
        "siteApps": [],
    }))
    .into_response()
}

/// The same as a script, where a client looks first: an empty one, so that it asks for the other.
async fn posthog_script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], "").into_response()
}

/// The key of the Measurement Protocol, which is a parameter.
fn api_secret(q: QueryString) -> Result<Option<String>, ApiError> {
    let params = decode_query(q)?;
    Ok(params.into_iter().find(|(name, _)| name == "api_secret").map(|(_, secret)| secret))
}

/// Handles the Measurement Protocol of Google Analytics 4, whose answer says nothing of events.
async fn ga4(
    State(gateway): GatewayState,
    q: QueryString,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let key = KeyPlace::Parameter(api_secret(q)?);
    match take(&gateway, &head, body, Delivery { key, ..Delivery::of(Form::Ga4) }).await {
        Ok(_) => {}
        // This interface has no errors for what it cannot read; the metric has it.
        Err(error) if error.status == StatusCode::BAD_REQUEST => {
            metrics::counter!(telemetry::EVENTS_REJECTED, "code" => "event_unreadable")
                .increment(1);
            take::count(Source::Ga4, "event_unreadable", 1);
            tracing::debug!(why = %error.message, "a request of the Measurement Protocol is lost");
        }
        Err(error) => return Err(error),
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Says what is wrong with a request of the Measurement Protocol. Takes nothing.
async fn ga4_debug(
    State(gateway): GatewayState,
    q: QueryString,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let tenant = take::tenant_of(&gateway, &head, &KeyPlace::Parameter(api_secret(q)?))?;
    let tenant = tenant.map_or_else(|| gateway.tenant_of_key(None), Ok)?;
    let (body, _reservation) = decode::read_body(&gateway, &tenant, &head.headers, body).await?;
    let bytes = body.len();
    let validation_messages =
        gateway.read_in_turn(&tenant, bytes, move |_| Ok(check_ga4(&body))).await?;
    Ok(axum::Json(Validation { validation_messages }).into_response())
}

/// The answer of Google's validation server.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Validation {
    validation_messages: Vec<ValidationMessage>,
}

/// Handles CloudEvents. Answers as `POST /v1/events` does.
async fn cloudevents(
    State(gateway): GatewayState,
    q: QueryString,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    // First: without a key the answer is 401, whatever the content type.
    take::tenant_of(&gateway, &head, &KeyPlace::Header)?;
    checked_params(q, &[])?;
    let (form, is_binary) = cloudevents_form(&head)?;
    let taken = take(&gateway, &head, body, Delivery { is_binary, ..Delivery::of(form) }).await?;
    let status =
        if taken.is_success() { StatusCode::ACCEPTED } else { StatusCode::UNPROCESSABLE_ENTITY };
    Ok((status, axum::Json(taken.answer)).into_response())
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
}

/// The form of a request by its content type, and whether its attributes are headers.
fn cloudevents_form(head: &Parts) -> Result<(Form, bool), ApiError> {
    let named = content_type(&head.headers).unwrap_or_default();
    match named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/cloudevents+json" => Ok((Form::CloudEvent, false)),
        "application/cloudevents-batch+json" => Ok((Form::CloudEvents, false)),
        _ if head.headers.contains_key("ce-specversion") => Ok((Form::CloudEvent, true)),
        _ => {
            let message = "Content-Type is application/cloudevents+json or \
                           application/cloudevents-batch+json, or the attributes of the event are \
                           headers: ce-specversion, ce-id, ce-source, ce-type";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            Err(ApiError::new(status, "unsupported_media_type", message))
        }
    }
}
