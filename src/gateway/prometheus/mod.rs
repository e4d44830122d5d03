//! The Prometheus HTTP API over events: for Grafana and clients of Prometheus, unchanged.
//!
//! What PromQL means here is in ADR 42 and `docs/reference/promql.md`. The key is a bearer token or
//! the password of `Basic`. Parameters that are not known are ignored, as Prometheus does: its
//! clients send some that other servers understand.

mod answer;
mod error;
mod names;
mod params;
mod queries;
mod read;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use self::answer::PromAnswer;
use self::error::PromError;
use self::params::PromParams;
use self::read::Reader;
use super::auth::Scope;
use super::error::ApiError;
use super::extract::{GatewayState, ParamList, decode_query, json, path_segment};
use super::{Gateway, decode};
use crate::telemetry;

/// Paths of this interface begin with it.
pub(super) const PREFIX: &str = "/api/v1/";
/// Largest form: twice the largest query with every byte escaped, and some matchers.
const MAX_FORM_BYTES: usize = 128 * 1024;

/// The routes.
pub(super) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/api/v1/query", get(query).post(query))
        .route("/api/v1/query_range", get(query_range).post(query_range))
        .route("/api/v1/labels", get(labels).post(labels))
        .route("/api/v1/label/{name}/values", get(label_values))
        .route("/api/v1/series", get(series).post(series))
        .route("/api/v1/metadata", get(metadata))
        .route("/api/v1/status/buildinfo", get(build_info))
}

async fn query(State(gateway): GatewayState, request: Request) -> Response {
    answered(&gateway, request, queries::instant).await
}

async fn query_range(State(gateway): GatewayState, request: Request) -> Response {
    answered(&gateway, request, queries::range).await
}

async fn labels(State(gateway): GatewayState, request: Request) -> Response {
    answered(&gateway, request, names::labels).await
}

async fn label_values(
    State(gateway): GatewayState,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    answered(&gateway, request, move |reader, params| {
        names::label_values(reader, params, &path_segment(name)?)
    })
    .await
}

async fn series(State(gateway): GatewayState, request: Request) -> Response {
    answered(&gateway, request, names::series).await
}

async fn metadata(State(gateway): GatewayState, request: Request) -> Response {
    answered(&gateway, request, names::metadata).await
}

async fn build_info(State(gateway): GatewayState, request: Request) -> Response {
    match gateway.tenant_or_basic(request.headers(), Scope::Read) {
        Ok(_) => json(answer::build_info()),
        Err(error) => PromError::from(error).into_response(),
    }
}

/// Authenticates, reads the parameters, and runs `question` on the query pool.
async fn answered(
    gateway: &Arc<Gateway>,
    request: Request,
    question: impl FnOnce(&mut Reader<'_>, &PromParams) -> Result<PromAnswer, PromError>
    + Send
    + 'static,
) -> Response {
    let answer = async {
        let (head, body) = request.into_parts();
        let tenant = gateway.tenant_or_basic(&head.headers, Scope::Read)?;
        let mut given = Vec::new();
        // What the form says goes before the address, as in Prometheus.
        if head.method == Method::POST {
            let (form, _reservation) =
                decode::read_body(gateway, &tenant, &head.headers, body).await?;
            given = form_params(&form)?;
        }
        given.extend(decode_query(RawQuery(head.uri.query().map(str::to_owned)))?);
        let (now, max_points) = (gateway.deps.clock.now(), gateway.deps.config.query.max_points);
        let asker = tenant.clone();
        let params = PromParams::new(given, now);
        gateway
            .run_query(&asker, move |queries, budget| {
                let mut reader = Reader::new(queries, &tenant, budget, max_points);
                let answer = question(&mut reader, &params);
                Ok(answer.and_then(|answer| answer.render(&mut reader)))
            })
            .await?
    };
    let answer = answer.await;
    let outcome = answer.as_ref().map_or_else(PromError::kind, |_| "success");
    metrics::counter!(telemetry::PROMETHEUS_REQUESTS, "outcome" => outcome).increment(1);
    match answer {
        Ok(body) => json(body),
        Err(error) => error.into_response(),
    }
}

fn form_params(form: &[u8]) -> Result<ParamList, ApiError> {
    if form.len() > MAX_FORM_BYTES {
        return Err(ApiError::too_large(format!(
            "the form has {} bytes, at most {MAX_FORM_BYTES} are read",
            form.len()
        )));
    }
    let text = std::str::from_utf8(form)
        .map_err(|_| ApiError::unreadable("the form is not UTF-8: escape it with %"))?;
    decode_query(RawQuery(Some(text.to_owned())))
}
