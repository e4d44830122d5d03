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

macro_rules! served {
    ($($page:literal,)*) => {
        /// Pages by their path below docs/.
        const DOCS: &[(&str, &str)] = &[$(($page, include_str!(concat!("../../docs/", $page)))),*];
    };
}

served! {
    "README.md",
    "explanation/exactly-once.md",
    "explanation/fencing.md",
    "explanation/freshness.md",
    "explanation/gap-recovery.md",
    "explanation/poison.md",
    "glossary.md",
    "how-to/alert-with-prometheus.md",
    "how-to/backup-and-restore.md",
    "how-to/cluster.md",
    "how-to/correct-and-erase.md",
    "how-to/damaged-log.md",
    "how-to/disk-full.md",
    "how-to/grafana.md",
    "how-to/import-files.md",
    "how-to/lost-records.md",
    "how-to/move-from-embedded.md",
    "how-to/move-to-another-topic.md",
    "how-to/outages.md",
    "how-to/put-a-balancer-in-front.md",
    "how-to/quarantine.md",
    "how-to/query-in-the-terminal.md",
    "how-to/query-the-archive.md",
    "how-to/query-with-sql.md",
    "how-to/read-the-status.md",
    "how-to/rebuild-a-store.md",
    "how-to/reprocess.md",
    "how-to/rolling-upgrade.md",
    "how-to/run-a-node.md",
    "how-to/run-in-containers.md",
    "how-to/run-on-kafka.md",
    "how-to/run-on-postgresql.md",
    "how-to/secure-a-node.md",
    "how-to/send-from-an-application.md",
    "how-to/send-from-an-sdk.md",
    "how-to/share-a-node.md",
    "how-to/stopped-shard.md",
    "how-to/store-the-archive.md",
    "how-to/use-the-dashboard.md",
    "how-to/verify.md",
    "how-to/wrong-clock.md",
    "reference/api.md",
    "reference/archive.md",
    "reference/cli.md",
    "reference/collect.md",
    "reference/configuration.md",
    "reference/data-directory.md",
    "reference/errors.md",
    "reference/kafka.md",
    "reference/metrics.md",
    "reference/performance.md",
    "reference/promql.md",
    "reference/rules.md",
    "start/concepts.md",
    "start/quickstart.md",
}

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

/// Answers `/plain` with the overview page.
pub(super) async fn plain(q: QueryString) -> Result<Response, ApiError> {
    checked_params(q, &[])?;
    Ok(overview())
}

/// The overview page, which needs no script.
pub(super) fn overview() -> Response {
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    ([(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, POLICY.clone())], INDEX)
        .into_response()
}

/// Answers `/docs/{page}` as plain text, which every browser shows.
pub(super) async fn doc(
    name: Result<Path<String>, PathRejection>,
    q: QueryString,
) -> Result<Response, ApiError> {
    serve_page(&path_segment(name)?, q)
}

/// `/docs/{kind}/{page}`.
pub(super) async fn doc_by_kind(
    name: Result<Path<(String, String)>, PathRejection>,
    q: QueryString,
) -> Result<Response, ApiError> {
    serve_page(&path_segment(name.map(|Path((kind, page))| Path(format!("{kind}/{page}"))))?, q)
}

fn serve_page(page: &str, q: QueryString) -> Result<Response, ApiError> {
    checked_params(q, &[])?;
    let Some((_, text)) = DOCS.iter().find(|(known, _)| *known == page) else {
        let message = "there is no such page: /docs/README.md lists them";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))], *text)
        .into_response())
}
