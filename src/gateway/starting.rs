//! The HTTP interface of a node that is starting: alive, not ready, and saying what it waits for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::routing::get;
use tokio::net::TcpListener;

use super::error::ApiError;
use super::{routes, server};

/// `Retry-After` of every answer, in seconds.
const RETRY: u64 = 1;

/// Serves until the future is dropped; `why` names what the node waits for.
pub async fn serve(
    listener: &TcpListener,
    why: Arc<ArcSwap<String>>,
    max_connections: usize,
    headers: Duration,
) -> Infallible {
    server::serve_until_dropped(router(why), listener, max_connections, headers).await
}

fn router(why: Arc<ArcSwap<String>>) -> Router {
    let unready = why.clone();
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(|| async move {
                ApiError::unavailable("not_ready", unready.load().as_str(), RETRY)
            }),
        )
        .fallback(|| async move {
            let message = format!("the node is starting: {}", why.load());
            ApiError::unavailable("starting", message, RETRY)
        })
        .layer(axum::middleware::from_fn(|request: Request, next: Next| async move {
            let mut response = next.run(request).await;
            // Closes, so that the client's next request reaches the started node.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }))
        .layer(axum::middleware::from_fn_with_state(Arc::default(), routes::count))
}
