//! HTML and text pages: an overview of the node, and the documentation of this version.
//!
//! They are the same for everybody and show nothing of any tenant. They are served from static
//! memory, because a copy per reader could be held by many slow clients.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::extract::{QueryString, checked_params, path_segment};

const INDEX: &str = include_str!("index.html");

const DOCS: &[(&str, &str)] = &[
    ("api", include_str!("../../docs/api.md")),
    ("archive", include_str!("../../docs/archive.md")),
    ("configuration", include_str!("../../docs/configuration.md")),
    ("kafka", include_str!("../../docs/kafka.md")),
    ("metrics", include_str!("../../docs/metrics.md")),
    ("operations", include_str!("../../docs/operations.md")),
    ("send", include_str!("../../docs/send.md")),
];

/// Content security policy of the index page: it allows the page's own style, by
/// hash, and nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let style = INDEX
        .split_once("<style>")
        .and_then(|(_, rest)| rest.split_once("</style>"))
        .map_or("", |(style, _)| style);
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(style));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// Answers `/` with the overview page.
pub(super) async fn index(q: QueryString) -> Result<Response, ApiError> {
    checked_params(q, &[])?;
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, POLICY.clone())], INDEX)
        .into_response())
}

/// Answers `/docs/{page}` as plain text, which every browser shows.
pub(super) async fn doc(
    name: Result<Path<String>, PathRejection>,
    q: QueryString,
) -> Result<Response, ApiError> {
    let name = path_segment(name)?;
    checked_params(q, &[])?;
    let Some((_, text)) = DOCS.iter().find(|(known, _)| name.strip_suffix(".md") == Some(*known))
    else {
        let all: Vec<String> = DOCS.iter().map(|(name, _)| format!("{name}.md")).collect();
        let message = format!("there is no such page; there are {}", all.join(", "));
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))], *text)
        .into_response())
}
