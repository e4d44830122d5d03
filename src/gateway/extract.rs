//! Extraction of parameters, path segments and the idempotency key from a request, and the
//! errors for invalid ones.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Gateway;
use super::error::ApiError;

/// The gateway, as axum passes it to a handler.
pub(super) type GatewayState = State<Arc<Gateway>>;
/// Decoded query parameters, in the order in which they were sent.
pub(super) type ParamList = Vec<(String, String)>;
/// A query string that is not decoded yet.
pub(super) type QueryString = RawQuery;

/// Makes a retry of events without ids harmless. A parsed name: looking up a text parses it each
/// time.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Wraps finished JSON text in an answer.
pub(super) fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Whether `Accept` asks for CSV: it names CSV and does not name JSON.
pub(super) fn accepts_csv(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let kinds: Vec<&str> = accepted
        .flat_map(|value| value.split(','))
        .filter(|kind| {
            !kind
                .split(';')
                .any(|parameter| matches!(parameter.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        })
        .filter_map(|kind| kind.split(';').next())
        .map(str::trim)
        .collect();
    let names = |kind: &str| kinds.iter().any(|named| named.eq_ignore_ascii_case(kind));
    names("text/csv") && !names("application/json")
}

/// The header `Idempotency-Key`; `None` if it is missing. Fails with 400 if it is empty, longer
/// than 100 bytes or not ASCII.
pub(super) fn idempotency_of(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    match headers.get(&IDEMPOTENCY_KEY).map(HeaderValue::to_str) {
        None => Ok(None),
        Some(Ok(key)) if (1..=100).contains(&key.len()) => Ok(Some(key)),
        Some(_) => {
            let message = "Idempotency-Key is 1 to 100 visible ASCII characters";
            Err(ApiError::new(StatusCode::BAD_REQUEST, "idempotency_key_invalid", message))
        }
    }
}

/// A decoded segment of the path. Fails with 400 if it does not decode to UTF-8.
pub(super) fn path_segment(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    path.map(|Path(part)| part).map_err(|_| {
        ApiError::new(StatusCode::BAD_REQUEST, "path_invalid", "the path holds what is not UTF-8")
    })
}

/// Decodes a query string. Broken escapes and invalid UTF-8 are errors: a lenient decoder
/// would guess, and answer a different question. So is the character NUL: no name or value has it,
/// and PostgreSQL cannot be asked for it. Fails with 400, naming the parameter.
pub(super) fn decode_query(RawQuery(query): QueryString) -> Result<ParamList, ApiError> {
    let query = query.unwrap_or_default();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let decoded = pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = percent_decode(name).zip(percent_decode(value));
        decoded.filter(|(name, value)| !name.contains('\0') && !value.contains('\0')).ok_or(pair)
    });
    decoded.collect::<Result<_, _>>().map_err(|pair| {
        let pair: String = pair.escape_debug().take(100).collect();
        let message = format!(
            "the parameter {pair} cannot be read: a % begins an escape, and escapes are those of \
             UTF-8, as %C3%BC, without the character NUL"
        );
        ApiError::new(StatusCode::BAD_REQUEST, "query_invalid", message)
    })
}

/// Decodes percent escapes and `+`; `None` if an escape is broken or the result is not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
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

/// Decodes the parameters and refuses those that are not `known`. Every route reads its parameters
/// here or passes them to code that does the same. It does so after authentication, so that
/// strangers do not learn what a route takes. Fails as [`super::params::QueryParams::read`] does.
pub(super) fn checked_params(query: QueryString, known: &[&str]) -> Result<ParamList, ApiError> {
    let given = decode_query(query)?;
    super::params::QueryParams::read(&given, known)?;
    Ok(given)
}
