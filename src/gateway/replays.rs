//! Handlers of replays. All need the scope `admin`, and reach the replays of the key's tenant only.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::auth::Scope;
use super::error::ApiError;
use super::extract::{
    GatewayState, QueryString, accepts_csv, checked_params, decode_query, json, path_segment,
};
use super::params::QueryParams;
use super::{Gateway, admin, diff_csv, read_routes};
use crate::api::replays::{ReplayDiff, StartReplay};
use crate::model::budget::QueryBudget;
use crate::operate::service::{DiffRequest, OperateError, ReplayActor, ReplayService};

/// Rows with the largest changes, unless `limit` says otherwise.
const LARGEST: usize = 20;
/// Most of them.
const MAX_LARGEST: usize = 1_000;
/// Header that says where the next part of a CSV answer begins.
const NEXT: HeaderName = HeaderName::from_static("rollmill-next");

type PathId = Result<Path<String>, PathRejection>;

/// Who sends a request, for the audit list.
fn actor(gateway: &Gateway, headers: &HeaderMap) -> Result<ReplayActor, ApiError> {
    let tenant = gateway.tenant(headers, Scope::Admin)?;
    let keys = gateway.deps.keys.load();
    let authorization = headers.get(header::AUTHORIZATION);
    let key = keys.key_prefix(authorization, gateway.deps.clock.now());
    Ok(ReplayActor { tenant, by: key.unwrap_or_else(|| "without a key".to_owned()) })
}

/// The number in a path. What is none names a replay that there is not.
fn replay_id(path: PathId) -> Result<u64, ApiError> {
    let text = path_segment(path)?;
    text.parse().map_err(|_| {
        let message = "the number of a replay is a whole number: see GET /v1/replays";
        ApiError::new(StatusCode::NOT_FOUND, "replay_not_found", message)
    })
}

async fn run<T, F>(gateway: &Gateway, tenant: &Arc<str>, work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce(&dyn ReplayService, &QueryBudget) -> Result<T, OperateError> + Send + 'static,
{
    let replays = gateway.deps.replays.clone();
    gateway.run_operation(tenant, move |budget| work(&*replays, budget)).await
}

fn answer<T: Serialize>(answer: &T) -> Result<Response, ApiError> {
    Ok(json(read_routes::json(answer)?))
}

/// Answers `GET /v1/replays`: the tenant's replays, and the audit list.
pub(super) async fn list(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    let who = actor(&gateway, &headers)?;
    checked_params(q, &[])?;
    let tenant = who.tenant.clone();
    let found = run(&gateway, &who.tenant, move |all, budget| all.list(&tenant, budget)).await?;
    answer(&found)
}

/// Answers `POST /v1/replays`: starts one.
pub(super) async fn start(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
    body: Body,
) -> Result<Response, ApiError> {
    let who = actor(&gateway, &headers)?;
    checked_params(q, &[])?;
    let form = r#"{"metrics":["…"],"from":"2026-01-31","to":"2026-02-01","rules":{"rule":[…]}}"#;
    let request: StartReplay =
        admin::json_body(&gateway, &who.tenant, &headers, body, form).await?;
    let tenant = who.tenant.clone();
    let started =
        run(&gateway, &tenant, move |all, budget| all.start(&who, &request, budget)).await?;
    answer(&started)
}

/// Answers `GET /v1/replays/{id}`.
pub(super) async fn show(
    State(gateway): GatewayState,
    headers: HeaderMap,
    id: PathId,
    q: QueryString,
) -> Result<Response, ApiError> {
    let who = actor(&gateway, &headers)?;
    checked_params(q, &[])?;
    let (id, tenant) = (replay_id(id)?, who.tenant.clone());
    let found =
        run(&gateway, &who.tenant, move |all, budget| all.show(&tenant, id, budget)).await?;
    answer(&found)
}

/// What a request changes.
#[derive(Debug, Clone, Copy)]
enum ReplayChange {
    Apply,
    Undo,
    Cancel,
}

async fn change(
    gateway: &Gateway,
    headers: &HeaderMap,
    id: PathId,
    q: QueryString,
    what: ReplayChange,
) -> Result<Response, ApiError> {
    let who = actor(gateway, headers)?;
    checked_params(q, &[])?;
    let (id, tenant) = (replay_id(id)?, who.tenant.clone());
    let work = move |all: &dyn ReplayService, budget: &QueryBudget| match what {
        ReplayChange::Apply => all.apply(&who, id, budget),
        ReplayChange::Undo => all.undo(&who, id, budget),
        ReplayChange::Cancel => all.cancel(&who, id, budget),
    };
    answer(&run(gateway, &tenant, work).await?)
}

/// Answers `POST /v1/replays/{id}/apply`: serves it.
pub(super) async fn apply(
    State(gateway): GatewayState,
    headers: HeaderMap,
    id: PathId,
    q: QueryString,
) -> Result<Response, ApiError> {
    change(&gateway, &headers, id, q, ReplayChange::Apply).await
}

/// Answers `POST /v1/replays/{id}/undo`: puts back what it replaced.
pub(super) async fn undo(
    State(gateway): GatewayState,
    headers: HeaderMap,
    id: PathId,
    q: QueryString,
) -> Result<Response, ApiError> {
    change(&gateway, &headers, id, q, ReplayChange::Undo).await
}

/// Answers `POST /v1/replays/{id}/cancel`: gives it up.
pub(super) async fn cancel(
    State(gateway): GatewayState,
    headers: HeaderMap,
    id: PathId,
    q: QueryString,
) -> Result<Response, ApiError> {
    change(&gateway, &headers, id, q, ReplayChange::Cancel).await
}

/// Answers `GET /v1/replays/{id}/diff`: a part of the difference.
pub(super) async fn diff(
    State(gateway): GatewayState,
    headers: HeaderMap,
    id: PathId,
    q: QueryString,
) -> Result<Response, ApiError> {
    let who = actor(&gateway, &headers)?;
    let given = decode_query(q)?;
    let (request, is_csv) = diff_request(&given, accepts_csv(&headers))?;
    let (id, tenant) = (replay_id(id)?, who.tenant.clone());
    let found: ReplayDiff =
        run(&gateway, &who.tenant, move |all, budget| all.diff(&tenant, id, &request, budget))
            .await?;
    let mut response = if is_csv { csv(&found)? } else { answer(&found)? };
    // The same URL is answered as JSON or CSV, and caches must keep them apart.
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Which part is wanted, and whether as CSV, which has all rows.
fn diff_request(
    given: &[(String, String)],
    accepts_csv: bool,
) -> Result<(DiffRequest, bool), ApiError> {
    let params = QueryParams::read(given, &["after", "rows", "limit", "format"])?;
    let format = params.word("format", "format_invalid", &[("json", false), ("csv", true)])?;
    let is_csv = format.unwrap_or(accepts_csv);
    let rows = params.word("rows", "rows_invalid", &[("largest", true), ("all", false)])?;
    let limit = match params.get("limit").map(str::parse::<usize>) {
        None => LARGEST,
        Some(Ok(limit)) if (1..=MAX_LARGEST).contains(&limit) => limit,
        Some(_) => {
            let message = format!("limit is a whole number from 1 to {MAX_LARGEST}");
            return Err(ApiError::bad("limit_invalid", message));
        }
    };
    let largest = rows.unwrap_or(!is_csv).then_some(limit);
    Ok((DiffRequest { after: params.get("after").map(str::to_owned), largest }, is_csv))
}

fn csv(diff: &ReplayDiff) -> Result<Response, ApiError> {
    let unwritable = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "a difference cannot be written as CSV");
        ApiError::internal()
    };
    let text = diff_csv::table(&diff.rows, true).map_err(|error| unwritable(&error))?;
    let kind = HeaderValue::from_static("text/csv; charset=utf-8; header=present");
    let mut response = ([(header::CONTENT_TYPE, kind)], text).into_response();
    if let Some(next) = &diff.next {
        let next = HeaderValue::from_str(next).map_err(|error| unwritable(&error))?;
        response.headers_mut().insert(NEXT, next);
    }
    Ok(response)
}
