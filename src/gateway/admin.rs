//! The status, for keys with the scope `operator`, and the quarantine: of the tenant's own events
//! with the scope `admin`, of records that are nobody's with the scope `operator`. What expires is
//! for operators, too.

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

/// `GET /v1/status`
pub(super) async fn status(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    gateway.tenant(&headers, Scope::Operator)?;
    checked_params(q, &[])?;
    let _turn = gateway.status.lock().await;
    let status = gateway.deps.status.clone();
    let answer = tokio::task::spawn_blocking(move || status.status()).await.map_err(|error| {
        tracing::error!(%error, "the status crashed");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the request crashed, the log of the server says why",
        )
    })?;
    Ok(json(read_routes::json(&answer)?))
}

/// `POST /v1/archive/flush`
pub(super) async fn archive_flush(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    gateway.tenant(&headers, Scope::Operator)?;
    checked_params(q, &[])?;
    Ok(json(read_routes::json(&gateway.deps.status.archive_now())?))
}

/// `GET /v1/quarantine`
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

/// `POST /v1/quarantine/release`
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
        run_operation(&gateway, &tenant, move |quarantine, _| quarantine.release(&reach, place))
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

/// `POST /v1/quarantine/discard`
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
        run_operation(&gateway, &tenant, move |quarantine, _| quarantine.discard(&reach, place))
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

/// Which events a key reaches: those of its tenant with the scope `admin`, and with `operator`
/// those that are nobody's.
fn quarantine_access(gateway: &Gateway, headers: &HeaderMap) -> Result<QuarantineScope, ApiError> {
    let operator = gateway.tenant(headers, Scope::Operator);
    let unowned = operator.is_ok();
    match gateway.tenant(headers, Scope::Admin) {
        Ok(tenant) => Ok(QuarantineScope { tenant, unowned }),
        // No tenant has the empty name, so nothing but what is nobody's is reached.
        Err(_) if unowned => Ok(QuarantineScope { tenant: Arc::from(""), unowned }),
        Err(refused) => Err(refused),
    }
}

/// `GET /v1/archive/expiry`
pub(super) async fn expiry(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    let tenant = gateway.tenant(&headers, Scope::Operator)?;
    checked_params(q, &[])?;
    let expiry = gateway.deps.expiry.clone();
    let answer = gateway.run_blocking(&tenant, move |budget| expiry.list(budget)).await?;
    Ok(json(read_routes::json(&answer)?))
}

/// `POST /v1/archive/expiry`
pub(super) async fn expire(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
    body: Body,
) -> Result<Response, ApiError> {
    let tenant = gateway.tenant(&headers, Scope::Operator)?;
    checked_params(q, &[])?;
    let said: ExpiryRequest =
        json_body(&gateway, &tenant, &headers, body, r#"{"yes":true}"#).await?;
    if !said.yes {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "yes_missing",
            r#"send {"yes":true}, or nothing"#,
        ));
    }
    let expiry = gateway.deps.expiry.clone();
    let answer = gateway.run_blocking(&tenant, move |_| expiry.approve()).await?;
    tracing::warn!("a person said yes: what had stopped to expire goes on");
    Ok(json(read_routes::json(&answer)?))
}

/// JSON said to be JSON: a page of another site cannot send that to a server on loopback without
/// being asked first.
async fn json_body<T: serde::de::DeserializeOwned>(
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
        ApiError::new(StatusCode::BAD_REQUEST, "place_invalid", format!("send {form}: {error}"))
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

async fn run_operation<T: serde::Serialize + Send + 'static>(
    gateway: &Gateway,
    tenant: &Arc<str>,
    work: impl FnOnce(&dyn QuarantineService, &QueryBudget) -> Result<T, OperateError> + Send + 'static,
) -> Result<Response, ApiError> {
    let quarantine = gateway.deps.quarantine.clone();
    let answer = gateway.run_blocking(tenant, move |budget| work(&*quarantine, budget)).await?;
    Ok(json(read_routes::json(&answer)?))
}
