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
use super::extract::{GivenParams, json, params};
use super::{Gateway, decode, reads};
use crate::api::archive::ExpiryRequest;
use crate::api::quarantine::EventPlace;
use crate::model::budget::Budget;
use crate::operate::service::{KeyReach, OperateError, QuarantineService};

type Edge = State<Arc<Gateway>>;

/// `GET /v1/status`
pub(super) async fn status(
    State(gateway): Edge,
    headers: HeaderMap,
    q: GivenParams,
) -> Result<Response, ApiError> {
    gateway.tenant(&headers, Scope::Operator)?;
    params(q, &[])?;
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
    Ok(json(reads::json(&answer)?))
}

/// `POST /v1/archive/flush`
pub(super) async fn archive_flush(
    State(gateway): Edge,
    headers: HeaderMap,
    q: GivenParams,
) -> Result<Response, ApiError> {
    gateway.tenant(&headers, Scope::Operator)?;
    params(q, &[])?;
    Ok(json(reads::json(&gateway.deps.status.archive_now())?))
}

/// `GET /v1/quarantine`
pub(super) async fn quarantine(
    State(gateway): Edge,
    headers: HeaderMap,
    q: GivenParams,
) -> Result<Response, ApiError> {
    let (reach, params) = (reach(&gateway, &headers)?, params(q, &["all"])?);
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
    operate(&gateway, &tenant, move |quarantine, budget| quarantine.list(&reach, all, budget)).await
}

/// `POST /v1/quarantine/release`
pub(super) async fn release(
    State(gateway): Edge,
    headers: HeaderMap,
    q: GivenParams,
    body: Body,
) -> Result<Response, ApiError> {
    let reach = reach(&gateway, &headers)?;
    params(q, &[])?;
    let tenant = reach.tenant.clone();
    let place = place(&gateway, &tenant, &headers, body).await?;
    let answer =
        operate(&gateway, &tenant, move |quarantine, _| quarantine.release(&reach, place)).await;
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
    State(gateway): Edge,
    headers: HeaderMap,
    q: GivenParams,
    body: Body,
) -> Result<Response, ApiError> {
    let reach = reach(&gateway, &headers)?;
    params(q, &[])?;
    let tenant = reach.tenant.clone();
    let place = place(&gateway, &tenant, &headers, body).await?;
    let answer =
        operate(&gateway, &tenant, move |quarantine, _| quarantine.discard(&reach, place)).await;
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
fn reach(gateway: &Gateway, headers: &HeaderMap) -> Result<KeyReach, ApiError> {
    let operator = gateway.tenant(headers, Scope::Operator);
    let unowned = operator.is_ok();
    match gateway.tenant(headers, Scope::Admin) {
        Ok(tenant) => Ok(KeyReach { tenant, unowned }),
        // No tenant has the empty name, so nothing but what is nobody's is reached.
        Err(_) if unowned => Ok(KeyReach { tenant: Arc::from(""), unowned }),
        Err(refused) => Err(refused),
    }
}

/// `GET /v1/archive/expiry`
pub(super) async fn expiry(
    State(gateway): Edge,
    headers: HeaderMap,
    q: GivenParams,
) -> Result<Response, ApiError> {
    let tenant = gateway.tenant(&headers, Scope::Operator)?;
    params(q, &[])?;
    let expiry = gateway.deps.expiry.clone();
    let answer = gateway.blocking(&tenant, move |budget| expiry.list(budget)).await?;
    Ok(json(reads::json(&answer)?))
}

/// `POST /v1/archive/expiry`
pub(super) async fn expire(
    State(gateway): Edge,
    headers: HeaderMap,
    q: GivenParams,
    body: Body,
) -> Result<Response, ApiError> {
    let tenant = gateway.tenant(&headers, Scope::Operator)?;
    params(q, &[])?;
    let said: ExpiryRequest = said(&gateway, &tenant, &headers, body, r#"{"yes":true}"#).await?;
    if !said.yes {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "yes_missing",
            r#"send {"yes":true}, or nothing"#,
        ));
    }
    let expiry = gateway.deps.expiry.clone();
    let answer = gateway.blocking(&tenant, move |_| expiry.say_yes()).await?;
    tracing::warn!("a person said yes: what had stopped to expire goes on");
    Ok(json(reads::json(&answer)?))
}

/// JSON said to be JSON: a page of another site cannot send that to a server on loopback without
/// being asked first.
async fn said<T: serde::de::DeserializeOwned>(
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

async fn place(
    gateway: &Arc<Gateway>,
    tenant: &Arc<str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<EventPlace, ApiError> {
    said(gateway, tenant, headers, body, "{\"shard\":…,\"offset\":…,\"index\":…}").await
}

async fn operate<T: serde::Serialize + Send + 'static>(
    gateway: &Gateway,
    tenant: &Arc<str>,
    work: impl FnOnce(&dyn QuarantineService, &Budget) -> Result<T, OperateError> + Send + 'static,
) -> Result<Response, ApiError> {
    let quarantine = gateway.deps.quarantine.clone();
    let answer = gateway.blocking(tenant, move |budget| work(&*quarantine, budget)).await?;
    Ok(json(reads::json(&answer)?))
}
