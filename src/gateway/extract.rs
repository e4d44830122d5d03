//! What handlers take out of a request, and how it is refused: parameters, parts of the path, the idempotency key.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Gateway;
use super::error::ApiError;
use crate::query::params;

/// The gateway, as a handler is given it.
pub(super) type Edge = State<Arc<Gateway>>;
/// Parameters.
pub(super) type Params = Vec<(String, String)>;
/// A query string, perhaps one that cannot be read.
pub(super) type GivenParams = Result<Query<Params>, QueryRejection>;

/// A finished JSON body.
pub(super) fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// `Idempotency-Key`, if it is there.
///
/// # Errors
/// 400.
pub(super) fn idempotency_of(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    match headers.get("idempotency-key").map(HeaderValue::to_str) {
        None => Ok(None),
        Some(Ok(key)) if (1..=100).contains(&key.len()) => Ok(Some(key)),
        Some(_) => {
            let message = "Idempotency-Key is 1 to 100 visible ASCII characters";
            Err(ApiError::new(StatusCode::BAD_REQUEST, "idempotency_key_invalid", message))
        }
    }
}

/// A part of the path.
///
/// # Errors
/// 400.
pub(super) fn part(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    path.map(|Path(part)| part)
        .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "path_invalid", "the path holds what is not UTF-8"))
}

/// The parameters of a query string, as they came.
///
/// # Errors
/// 400.
pub(super) fn given(query: GivenParams) -> Result<Params, ApiError> {
    query
        .map(|Query(p)| p)
        .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "query_invalid", "the query string cannot be read"))
}

/// The parameters of a route that takes these and no others. Every route reads its parameters here, or hands them on to where the same
/// is done; after the key, so that nobody without one learns what a route takes.
///
/// # Errors
/// 400: see [`params::Params::read`].
pub(super) fn params(query: GivenParams, known: &[&str]) -> Result<Params, ApiError> {
    let given = given(query)?;
    params::Params::read(&given, known)?;
    Ok(given)
}
