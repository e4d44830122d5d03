//! Checks on every request, before any route: heads that can be read in one way only, and host
//! names and browser origins that are allowed.
//!
//! Without keys, the loopback address is all that protects a node, and any page in a browser on
//! this machine can send requests there. So `Host` must name the node itself, which stops DNS
//! rebinding (a page whose own name resolves to 127.0.0.1), and `Origin` must be the node's own
//! or one of `server.cors_origins`, where `*` counts for nothing. With keys no check is needed: a
//! browser never sends a bearer token by itself.

use std::net::IpAddr;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};

use crate::config::OriginList;
use crate::telemetry;

use super::error::ApiError;
use super::extract::IDEMPOTENCY_KEY;
use super::{Gateway, rest_proxy};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const REQUEST_PRIVATE_NETWORK: &str = "access-control-request-private-network";
const ALLOW_PRIVATE_NETWORK: &str = "access-control-allow-private-network";
/// How long a browser may cache a preflight answer, in seconds.
const MAX_AGE: &str = "600";

/// Which host names a node answers to, and which origins may use it from a browser.
#[derive(Debug, Clone)]
pub struct OriginPolicy {
    host: String,
    origins: Vec<String>,
}

impl OriginPolicy {
    /// `listen` is the node's address as host and port; `origins` have the form in which browsers
    /// send them.
    pub fn new(listen: &str, origins: Vec<String>) -> Self {
        Self { host: name_of(listen).unwrap_or_default().to_owned(), origins }
    }

    /// The `Origin` header, if the configuration lists it by name.
    fn listed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.origins
            .iter()
            .any(|listed| listed.as_bytes() == origin.as_bytes())
            .then(|| origin.clone())
    }

    /// What a page may be answered as: its `Origin` if the configuration lists it, or `*` if all
    /// are. A page shows nothing by that: what it reads needs a key.
    pub(super) fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let any = || {
            let by_page = headers.contains_key(header::ORIGIN);
            (by_page && self.allows_any()).then(|| HeaderValue::from_static(OriginList::ANY))
        };
        self.listed_origin(headers).or_else(any)
    }

    fn allows_any(&self) -> bool {
        self.origins.iter().any(|origin| origin == OriginList::ANY)
    }

    /// Whether a page sends this whose origin is not listed by name.
    pub(super) fn is_foreign_page(&self, headers: &HeaderMap) -> bool {
        let by_script = headers.contains_key(header::ORIGIN);
        let by_page = headers.get(&SEC_FETCH_SITE).is_some_and(|site| site.as_bytes() != b"none");
        (by_script || by_page) && self.listed_origin(headers).is_none()
    }

    /// Whether a host names the loopback address or the host that the node listens on.
    fn is_own(&self, host: &str) -> bool {
        name_of(host).is_some_and(|name| {
            let address =
                name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
            address.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
                || name.eq_ignore_ascii_case("localhost")
                || (!self.host.is_empty() && name.eq_ignore_ascii_case(&self.host))
        })
    }

    /// Checks host and origin of a request to a node without keys. Fails with 421 for a foreign
    /// host name, 403 for a page of another site.
    fn check_keyless(&self, request: &Request) -> Result<(), ApiError> {
        let path = request.uri().path();
        // Load balancers probe these under any host name.
        if matches!(path, "/healthz" | "/readyz") {
            return Ok(());
        }
        let headers = request.headers();
        let named = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
        let target = request.uri().authority().map(|authority| authority.as_str());
        if let Some(host) = named.into_iter().chain(target).find(|host| !self.is_own(host)) {
            let host: String = host.escape_debug().take(100).collect();
            let message = format!(
                "a node without keys answers under the name that it listens on, localhost or a \
                 loopback address, not as {host}: let a proxy pass the header Host on, or give \
                 the node a key, see `rollmill keys`"
            );
            return Err(ApiError::new(StatusCode::MISDIRECTED_REQUEST, "host_unknown", message));
        }
        // Static pages: they show nothing of the node.
        if matches!(path, "/" | "/plain" | "/openapi.json")
            || path.starts_with("/docs/")
            || path.starts_with("/assets/")
            || self.listed_origin(headers).is_some()
        {
            return Ok(());
        }
        // A request without `Origin` and `Sec-Fetch-Site` comes from no browser, and is allowed.
        let is_own_page = headers.get(header::ORIGIN).is_none_or(|origin| {
            let site = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
            site.zip(named).is_some_and(|(site, host)| {
                // Browsers leave the default port out of `Origin`.
                site.eq_ignore_ascii_case(host.strip_suffix(":80").unwrap_or(host))
            })
        });
        let is_own_fetch = headers
            .get(&SEC_FETCH_SITE)
            .is_none_or(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
        if is_own_page && is_own_fetch {
            return Ok(());
        }
        let message = "a page of another site may not use a node without keys: give it a key, see \
                       `rollmill keys`, or list the page's origin in server.cors_origins";
        Err(origin_forbidden(message))
    }

    /// Adds the CORS headers of an answer; `listed` is the allowed origin that asked.
    pub(super) fn add_cors_headers(&self, listed: Option<HeaderValue>, headers: &mut HeaderMap) {
        if !self.origins.is_empty() && !self.allows_any() {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
        if let Some(origin) = listed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static("retry-after, etag, rollmill-completeness"),
            );
        }
    }
}

/// 403: a page may not do this. Counts it.
pub(super) fn origin_forbidden(message: &str) -> ApiError {
    metrics::counter!(telemetry::CORS_REFUSED, "kind" => "request").increment(1);
    ApiError::new(StatusCode::FORBIDDEN, "origin_forbidden", message)
}

/// The host of `host` or `host:port`; an IPv6 address keeps its brackets.
fn name_of(host: &str) -> Option<&str> {
    let name = match host.rsplit_once(':') {
        // After the last colon is a port, unless the colon is inside the brackets of an IPv6
        // address.
        Some((name, port)) if !port.ends_with(']') => {
            if port.bytes().any(|b| !b.is_ascii_digit()) {
                return None;
            }
            name
        }
        _ => host,
    };
    Some(name).filter(|name| !name.is_empty())
}

/// A header that must appear at most once and is repeated. A proxy in front may have acted on
/// another of its values (request smuggling).
fn repeated_header(headers: &HeaderMap) -> Option<HeaderName> {
    // Most requests repeat no header at all: then none of these need to be looked up.
    if headers.len() == headers.keys_len() {
        return None;
    }
    let once = [
        header::HOST,
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::ORIGIN,
        SEC_FETCH_SITE,
        IDEMPOTENCY_KEY,
    ];
    once.into_iter().find(|name| headers.get_all(name).iter().nth(1).is_some())
}

/// Checks that a request's head can be read in one way only.
///
/// # Errors
/// 400 for a repeated or missing header, 501 for a transfer coding other than chunked.
fn check_head(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let bad = |code, message: String| Err(ApiError::new(StatusCode::BAD_REQUEST, code, message));
    if let Some(name) = repeated_header(headers) {
        return bad("header_repeated", format!("the header {name} is there more than once"));
    }
    if request.version() == Version::HTTP_11 && !headers.contains_key(header::HOST) {
        return bad("host_missing", "a request of HTTP/1.1 has a header Host".to_owned());
    }
    let mut codings = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let is_chunked = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some_and(|first| !is_chunked(first)) || codings.next().is_some() {
        let message =
            "Transfer-Encoding is chunked and nothing else: pack a body by Content-Encoding";
        return Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "transfer_encoding_unsupported",
            message,
        ));
    }
    Ok(())
}

/// Answers what no route should see: a request that fails the checks, or the preflight of a page
/// whose origin is `listed`.
pub(super) fn early_answer(gateway: &Gateway, request: &Request, listed: bool) -> Option<Response> {
    let is_open = gateway.deps.keys.load().is_open();
    let checked = check_head(request).and_then(|()| {
        if is_open { gateway.deps.origin_policy.check_keyless(request) } else { Ok(()) }
    });
    match checked {
        // The browser says nothing to the server of what it then keeps from the page.
        Ok(()) if !listed && is_preflight(request) => {
            metrics::counter!(telemetry::CORS_REFUSED, "kind" => "preflight").increment(1);
            None
        }
        // The REST Proxy interface has its own error shape.
        Err(error) if request.uri().path().starts_with("/topics/") => {
            Some(rest_proxy::refuse(error, request.headers()))
        }
        Err(error) => Some(error.into_response()),
        Ok(()) => (listed && is_preflight(request)).then(|| preflight(request.headers())),
    }
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Answers a preflight. It allows all methods; the request itself is answered 404 or 405.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = (StatusCode::NO_CONTENT, Body::empty()).into_response();
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value))
    };
    set(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE");
    set(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        "authorization, content-type, content-encoding, idempotency-key, if-match, if-none-match, \
         x-retry-count",
    );
    set(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    if asked.contains_key(REQUEST_PRIVATE_NETWORK) {
        set(HeaderName::from_static(ALLOW_PRIVATE_NETWORK), "true");
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_names_are_loopback_and_what_is_listened_on() {
        let sites = OriginPolicy::new("mill.internal:8080", vec![]);
        for own in [
            "localhost",
            "LOCALHOST:9",
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.9.9.9:1",
            "[::1]",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:1",
            "mill.internal:80",
            "Mill.Internal",
        ] {
            assert!(sites.is_own(own), "{own}");
        }
        for other in [
            "",
            ":8080",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "localhost:8080:9",
            "localhost:x",
            "10.0.0.1",
            "0.0.0.0:8080",
            "[::]:8080",
            "[2001:db8::1]",
            "localhost\u{0}",
        ] {
            assert!(!sites.is_own(other), "{other}");
        }
        let nowhere = OriginPolicy::new("", vec![]);
        assert!(!nowhere.is_own("") && nowhere.is_own("[::1]:80"));
    }
}
