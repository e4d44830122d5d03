//! The dashboard: the page at `/` and its assets, as `make web` has built them.
//!
//! A binary that was built without it serves the plain page instead. The files are the same for
//! everybody and show nothing of any tenant: what they show, they ask for with the reader's key.

use std::sync::LazyLock;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::extract::{GatewayState, QueryString, checked_params, path_segment};
use super::{compression, pages};

/// A built file by its name, which has a hash of its content in it.
struct Asset {
    name: &'static str,
    bytes: &'static [u8],
    /// The same, packed by the build: a first load never waits for a free processor, nor is it
    /// sent as it is for want of one.
    gzip: Option<&'static [u8]>,
}

// `PAGE: Option<&str>` and `ASSETS: &[Asset]`, from build.rs.
include!(concat!(env!("OUT_DIR"), "/dashboard.rs"));

/// Only files of this node, no inline script or style, no request to another host, in no frame.
/// Trusted types rule out that text is ever parsed as HTML.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'none'; base-uri 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'",
);
/// The page names its assets, so it is asked for anew each time.
const REVALIDATED: HeaderValue = HeaderValue::from_static("no-cache");
/// Other content has another name.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
const REFERRER_POLICY: HeaderName = HeaderName::from_static("referrer-policy");

/// The page of a node with keys: it asks for one at once, without a request that is refused.
static SIGN_IN_PAGE: LazyLock<String> = LazyLock::new(|| {
    let (from, to) = ("sign-in\" content=\"unneeded\"", "sign-in\" content=\"needed\"");
    PAGE.unwrap_or_default().replace(from, to)
});

/// Answers `/` with the dashboard, or with the plain page if it is not built in.
pub(super) async fn index(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    checked_params(q, &[])?;
    let Some(open_page) = PAGE else { return Ok(pages::overview()) };
    let is_open = gateway.deps.keys.load().is_open();
    let page = if is_open { open_page } else { SIGN_IN_PAGE.as_str() };
    let tag = entity_tag(page.as_bytes());
    let mut response = tagged(&headers, tag, page.as_bytes(), "text/html; charset=utf-8");
    let answered = response.headers_mut();
    answered.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    answered.insert(header::CACHE_CONTROL, REVALIDATED);
    answered.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}

/// Answers `/assets/{name}`.
pub(super) async fn asset(
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
    q: QueryString,
) -> Result<Response, ApiError> {
    checked_params(q, &[])?;
    let name = path_segment(name)?;
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        let message = "there is no such file: reload the page, it may be of an older version";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    let packed = asset.gzip.filter(|_| compression::accepts_gzip(&headers));
    let tag = entity_tag(asset.bytes);
    let mut response = tagged(&headers, tag, packed.unwrap_or(asset.bytes), kind_of(asset.name));
    let answered = response.headers_mut();
    answered.insert(header::CACHE_CONTROL, IMMUTABLE);
    if packed.is_some() {
        answered.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        answered.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

/// The content with its tag, or 304 if the reader has it.
fn tagged(
    headers: &HeaderMap,
    tag: String,
    content: &'static [u8],
    kind: &'static str,
) -> Response {
    let mut response = if has_tag(headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], content).into_response()
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Weak, because a compressed answer has the same tag.
fn entity_tag(content: &[u8]) -> String {
    let hash = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(content));
    format!("W/\"{hash:.22}\"")
}

/// Whether `If-None-Match` names the tag; weak and strong ones are the same here.
fn has_tag(headers: &HeaderMap, tag: &str) -> bool {
    let strong = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|named| named.trim() == "*" || strong(named) == strong(tag))
}

fn kind_of(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// The files that are built in.
#[cfg(test)]
pub(super) fn asset_names() -> impl Iterator<Item = &'static str> {
    ASSETS.iter().map(|asset| asset.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_reader_has_is_not_sent_again() {
        let tag = entity_tag(b"content");
        assert!(tag.starts_with("W/\"") && tag.len() == 26, "{tag}");
        let with = |value: &str| {
            HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_str(value).unwrap())])
        };
        for value in [&tag, &tag[2..], "*", &format!("\"other\", {tag}")] {
            assert!(has_tag(&with(value), &tag), "{value}");
        }
        for value in ["\"other\"", "", "W/"] {
            assert!(!has_tag(&with(value), &tag), "{value}");
        }
        assert!(!has_tag(&HeaderMap::new(), &tag));
    }

    #[test]
    fn the_page_names_built_files_alone_and_has_nothing_inline() {
        let Some(page) = PAGE else {
            assert!(ASSETS.is_empty());
            return;
        };
        let named: Vec<&str> = ["href=\"", "src=\""]
            .iter()
            .flat_map(|attribute| page.split(attribute).skip(1))
            .filter_map(|rest| rest.split_once('"').map(|(link, _)| link))
            .collect();
        let assets: Vec<&str> =
            named.iter().filter_map(|link| link.strip_prefix("/assets/")).collect();
        assert_eq!(assets.len(), 3, "{named:?}");
        assert!(assets.iter().all(|name| ASSETS.iter().any(|asset| asset.name == *name)));
        assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains("://"));
        assert!(page.split("<script").skip(1).all(|rest| rest.contains("></script>")), "{page}");
    }
}
