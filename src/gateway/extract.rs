//! What handlers take out of a request, and how it is refused: parameters, parts of the path, the
//! idempotency key.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Gateway;
use super::error::ApiError;

/// The gateway, as a handler is given it.
pub(super) type GatewayState = State<Arc<Gateway>>;
/// Parameters.
pub(super) type ParamList = Vec<(String, String)>;
/// A query string, perhaps one that cannot be read.
pub(super) type QueryString = RawQuery;

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
pub(super) fn path_segment(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    path.map(|Path(part)| part).map_err(|_| {
        ApiError::new(StatusCode::BAD_REQUEST, "path_invalid", "the path holds what is not UTF-8")
    })
}

/// The parameters of a query string, as they came. What a lenient reader would guess, because an
/// escape is none or makes no UTF-8, is refused: the answer would be to another question.
///
/// # Errors
/// 400.
pub(super) fn decode_query(RawQuery(query): QueryString) -> Result<ParamList, ApiError> {
    let query = query.unwrap_or_default();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let decoded = pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        percent_decode(name).zip(percent_decode(value)).ok_or(pair)
    });
    decoded.collect::<Result<_, _>>().map_err(|pair| {
        let pair: String = pair.escape_debug().take(100).collect();
        let message = format!(
            "the parameter {pair} cannot be read: a % begins an escape, and escapes are those of \
             UTF-8, as %C3%BC"
        );
        ApiError::new(StatusCode::BAD_REQUEST, "query_invalid", message)
    })
}

/// A name or value without its escapes, if they are such.
fn percent_decode(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = rest.next() {
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => (digit()? * 16 + digit()?) as u8,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The parameters of a route that takes these and no others. Every route reads its parameters here,
/// or hands them on to where the same is done; after the key, so that nobody without one learns
/// what a route takes.
///
/// # Errors
/// 400: see [`super::params::QueryParams::read`].
pub(super) fn checked_params(query: QueryString, known: &[&str]) -> Result<ParamList, ApiError> {
    let given = decode_query(query)?;
    super::params::QueryParams::read(&given, known)?;
    Ok(given)
}
