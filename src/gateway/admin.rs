//! Handlers for operators and administrators. Status and expiry need the scope `operator`.
//! The quarantine needs `admin` for the tenant's own events, and `operator` for records
//! without a known tenant.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;

use super::auth::Scope;
use super::error::ApiError;
use super::extract::{QueryString, checked_params, json};
use super::{Gateway, decode, read_routes};
use crate::api::archive::ExpiryRequest;
use crate::api::quarantine::EventPlace;
use crate::model::budget::QueryBudget;
use crate::operate::service::{OperateError, QuarantineScope, QuarantineService};

type GatewayState = State<Arc<Gateway>>;

/// Answers `GET /v1/status`: nodes and shards.
pub(super) async fn status(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    gateway.tenant(&headers, Scope::Operator)?;
    checked_params(q, &[])?;
    let answer = gateway.collect_status().await?;
    Ok(json(read_routes::json(&answer)?))
}

/// Answers `POST /v1/archive/flush`: archives what this node's shards have applied.
pub(super) async fn archive_flush(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    gateway.tenant(&headers, Scope::Operator)?;
    checked_params(q, &[])?;
    Ok(json(read_routes::json(&gateway.deps.status.archive_now())?))
}

/// Answers `GET /v1/quarantine`: the events that the key may see.
pub(super) async fn quarantine(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    let (reach, params) = (quarantine_access(&gateway, &headers)?, checked_params(q, &["all"])?);
    let all = match params.first().map(|(_, value)| value.as_str()) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "all_invalid",
                "all is true or false",
            ));
        }
    };
    let tenant = reach.tenant.clone();
    run_operation(&gateway, &tenant, move |quarantine, budget| quarantine.list(&reach, all, budget))
        .await
}

/// Answers `POST /v1/quarantine/release`: counts an event after all.
pub(super) async fn release(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
    body: Body,
) -> Result<Response, ApiError> {
    let reach = quarantine_access(&gateway, &headers)?;
    checked_params(q, &[])?;
    let tenant = reach.tenant.clone();
    let place = event_place(&gateway, &tenant, &headers, body).await?;
    let answer =
        run_operation(&gateway, &tenant, move |all, budget| all.release(&reach, place, budget))
            .await;
    if answer.is_ok() {
        tracing::info!(
            shard = place.shard,
            offset = place.offset,
            index = place.index,
            "a quarantined event was released"
        );
    }
    answer
}

/// Answers `POST /v1/quarantine/discard`: gives an event up.
pub(super) async fn discard(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
    body: Body,
) -> Result<Response, ApiError> {
    let reach = quarantine_access(&gateway, &headers)?;
    checked_params(q, &[])?;
    let tenant = reach.tenant.clone();
    let place = event_place(&gateway, &tenant, &headers, body).await?;
    let answer =
        run_operation(&gateway, &tenant, move |all, budget| all.discard(&reach, place, budget))
            .await;
    if answer.is_ok() {
        tracing::info!(
            shard = place.shard,
            offset = place.offset,
            index = place.index,
            "a quarantined event was discarded"
        );
    }
    answer
}

/// The part of the quarantine that a key may see: its tenant's events with the scope `admin`, and
/// records without a known tenant with the scope `operator`.
fn quarantine_access(gateway: &Gateway, headers: &HeaderMap) -> Result<QuarantineScope, ApiError> {
    let operator = gateway.tenant(headers, Scope::Operator);
    let unowned = operator.is_ok();
    match gateway.tenant(headers, Scope::Admin) {
        Ok(tenant) => Ok(QuarantineScope { tenant, unowned }),
        // No tenant has an empty name, so this matches only records without a known tenant.
        Err(_) if unowned => Ok(QuarantineScope { tenant: Arc::from(""), unowned }),
        Err(refused) => Err(refused),
    }
}

/// Answers `GET /v1/archive/expiry`: what is due to expire.
pub(super) async fn expiry(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    let tenant = gateway.tenant(&headers, Scope::Operator)?;
    checked_params(q, &[])?;
    let expiry = gateway.deps.expiry.clone();
    let answer = gateway.run_operation(&tenant, move |budget| expiry.list(budget)).await?;
    Ok(json(read_routes::json(&answer)?))
}

/// Answers `POST /v1/archive/expiry`: approves every expiry that was stopped.
pub(super) async fn expire(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
    body: Body,
) -> Result<Response, ApiError> {
    let tenant = gateway.tenant(&headers, Scope::Operator)?;
    checked_params(q, &[])?;
    let request: ExpiryRequest =
        json_body(&gateway, &tenant, &headers, body, r#"{"yes":true}"#).await?;
    if !request.yes {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "yes_missing",
            r#"send {"yes":true}, or nothing"#,
        ));
    }
    let expiry = gateway.deps.expiry.clone();
    let answer = gateway.run_operation(&tenant, move |budget| expiry.approve(budget)).await?;
    tracing::warn!("a person said yes: what had stopped to expire goes on");
    Ok(json(read_routes::json(&answer)?))
}

/// Reads a JSON body. It insists on the content type, because a page of another site cannot send
/// that one to a server on loopback without a preflight.
pub(super) async fn json_body<T: serde::de::DeserializeOwned>(
    gateway: &Arc<Gateway>,
    tenant: &Arc<str>,
    headers: &HeaderMap,
    body: Body,
    form: &str,
) -> Result<T, ApiError> {
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind.as_bytes() != b"application/json") {
        let message = "send Content-Type: application/json";
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_type_unsupported",
            message,
        ));
    }
    let (body, _reservation) = decode::read_body(gateway, tenant, headers, body).await?;
    serde_json::from_slice(&body).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "body_invalid", format!("send {form}: {error}"))
    })
}

async fn event_place(
    gateway: &Arc<Gateway>,
    tenant: &Arc<str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<EventPlace, ApiError> {
    json_body(gateway, tenant, headers, body, "{\"shard\":…,\"offset\":…,\"index\":…}").await
}

async fn run_operation<T, F>(
    gateway: &Gateway,
    tenant: &Arc<str>,
    work: F,
) -> Result<Response, ApiError>
where
    T: serde::Serialize + Send + 'static,
    F: FnOnce(&dyn QuarantineService, &QueryBudget) -> Result<T, OperateError> + Send + 'static,
{
    let quarantine = gateway.deps.quarantine.clone();
    let answer = gateway.run_operation(tenant, move |budget| work(&*quarantine, budget)).await?;
    Ok(json(read_routes::json(&answer)?))
}
