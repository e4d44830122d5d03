//! Events that a page sends with `navigator.sendBeacon`, which can set no header: the key stands in
//! the address, `POST /v1/events?key=KEY`.
//!
//! Proxies log addresses, so only a key with the scope `write` alone is taken there. Whoever finds
//! it can send events of that tenant and no more, as with any key that stands in a page.

use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};

use super::Gateway;
use super::auth::Scope;
use super::error::ApiError;
use super::extract::percent_decode;

/// The route that takes it.
const PATH: &str = "/v1/events";
/// The name of the parameter.
pub(super) const KEY: &str = "key";

/// Marks a request whose key stands in its address.
#[derive(Debug, Clone, Copy)]
struct KeyInAddress;

/// Moves a key from the address to `Authorization`, where everything else looks for it, and marks
/// the request. Leaves the address as it is: the route refuses what it does not know.
pub(super) fn key_from_address(request: &mut Request) {
    let Some(query) = request.uri().query() else { return };
    let is_sent = request.headers().contains_key(header::AUTHORIZATION);
    if is_sent || request.method() != Method::POST || request.uri().path() != PATH {
        return;
    }
    let named = |pair: &str| {
        let (_, key) = pair.split_once('=').filter(|(name, _)| *name == KEY)?;
        percent_decode(key)
    };
    // What does not decode is no key; the route says so.
    let key = query.split('&').find_map(named);
    let bearer = key.and_then(|key| HeaderValue::from_str(&format!("Bearer {key}")).ok());
    let Some(mut bearer) = bearer else { return };
    bearer.set_sensitive(true);
    request.headers_mut().insert(header::AUTHORIZATION, bearer);
    request.extensions_mut().insert(KeyInAddress);
}

/// Checks a request with a key in its address, whose key is valid.
///
/// # Errors
/// 400 if there is a key in `Authorization`, too; 403 if the key may do more than write.
pub(super) fn check(gateway: &Gateway, head: &Parts) -> Result<(), ApiError> {
    if head.extensions.get::<KeyInAddress>().is_none() {
        let message = "the key is there twice, in Authorization and in the address";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "header_repeated", message));
    }
    let keys = gateway.deps.keys.load();
    let authorization = head.headers.get(header::AUTHORIZATION);
    check_scopes(keys.scopes(authorization, gateway.deps.clock.now()))
}

/// Checks the scopes of a valid key that stands in an address; `None` on a node without keys.
///
/// # Errors
/// 403 if the key may do more than write.
pub(super) fn check_scopes(scopes: Option<Vec<Scope>>) -> Result<(), ApiError> {
    if scopes.is_none_or(|scopes| scopes == [Scope::Write]) {
        return Ok(());
    }
    let message = "a key in an address may have the scope write alone, because proxies log \
                   addresses: send this one as Authorization: Bearer KEY, or make one by `rollmill \
                   keys add --scopes write`";
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message))
}
