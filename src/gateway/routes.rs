//! The routes, and their handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use tracing::{Instrument, Span};

use super::auth::Scope;
use super::connections::ClientConnection;
use super::csv::CsvAnswer;
use super::error::{AnsweredCode, ApiError};
use super::extract::{
    GatewayState, QueryString, accepts_csv, checked_params, decode_query, idempotency_of, json,
    path_segment,
};
use super::route_metrics::RouteMetrics;
use super::{
    Gateway, admin, auth, beacon, boards, collect, compression, dashboard, decode, error, ingest,
    limits, origin_policy, pages, prometheus, read_routes, replays, rest_proxy, shares, ws,
};
use crate::clock::Stopwatch;
use crate::query::error::QueryError;

/// Builds the router of the whole HTTP interface.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/events", post(post_events))
        .route("/v1/ws", get(ws::upgrade))
        .route("/v1/query", get(query))
        .route("/v1/metrics", get(list_metrics))
        .route("/v1/labels/{name}/values", get(label_values))
        .route("/v1/limits", get(limits))
        .route("/v1/accounting", get(accounting))
        .route("/v1/status", get(admin::status))
        .route("/v1/quarantine", get(admin::quarantine))
        .route("/v1/quarantine/release", post(admin::release))
        .route("/v1/quarantine/discard", post(admin::discard))
        .route("/v1/archive/flush", post(admin::archive_flush))
        .route("/v1/archive/expiry", get(admin::expiry))
        .route("/v1/archive/expiry", post(admin::expire))
        .route("/v1/replays", get(replays::list))
        .route("/v1/replays", post(replays::start))
        .route("/v1/replays/{id}", get(replays::show))
        .route("/v1/replays/{id}/diff", get(replays::diff))
        .route("/v1/replays/{id}/apply", post(replays::apply))
        .route("/v1/replays/{id}/undo", post(replays::undo))
        .route("/v1/replays/{id}/cancel", post(replays::cancel))
        .route("/v1/boards", get(boards::list))
        .route("/v1/boards/{id}", get(boards::show))
        .route("/v1/boards/{id}", put(boards::put))
        .route("/v1/boards/{id}", delete(boards::delete))
        .route("/topics/{topic}", post(rest_proxy::produce))
        .route("/topics/{topic}/partitions/{id}", post(rest_proxy::produce_to_partition))
        .merge(prometheus::routes())
        .route("/healthz", get(|q: QueryString| async { checked_params(q, &[]).map(|_| "ok\n") }))
        .route("/readyz", get(ready))
        .route("/metrics", get(own_metrics))
        .route("/openapi.json", get(openapi))
        .route("/", get(dashboard::index))
        .route("/assets/{name}", get(dashboard::asset))
        .route("/plain", get(pages::plain))
        .route("/docs/{page}", get(pages::doc))
        .route("/docs/{kind}/{page}", get(pages::doc_by_kind))
        .merge(collect::routes())
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "no such route: see /openapi.json")
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "no such method here: see /openapi.json",
            )
        })
        // A single layer for all cross-cutting work: a small request costs about as much as a few
        // layers.
        .layer(axum::middleware::from_fn_with_state(gateway.clone(), edge_middleware))
        .with_state(gateway)
}

/// Middleware that counts requests by route and status.
pub(super) async fn count(
    State(metrics): State<Arc<RouteMetrics>>,
    request: Request,
    next: Next,
) -> Response {
    let counted = RequestMetrics::begin(&request);
    counted.end(&metrics, next.run(request).await)
}

/// Measures a request; `end` counts it.
struct RequestMetrics {
    /// The route pattern, never the path: clients choose paths, and each would be a new time
    /// series.
    route: Option<MatchedPath>,
    watch: Stopwatch,
}

impl RequestMetrics {
    fn begin(request: &Request) -> Self {
        Self { route: request.extensions().get().cloned(), watch: Stopwatch::start() }
    }

    fn end(self, metrics: &RouteMetrics, mut response: Response) -> Response {
        let route = self.route.as_ref().map_or("unknown", MatchedPath::as_str);
        metrics.count(route, response.status(), self.watch.elapsed());
        if let Some(AnsweredCode(code)) = response.extensions_mut().remove() {
            error::count_error(code);
        }
        response
            .headers_mut()
            .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}

/// The one middleware around every route: request metrics, ownership of the connection, origin
/// checks, compression, and reservation of answer bytes.
async fn edge_middleware(
    State(gateway): GatewayState,
    mut request: Request,
    next: Next,
) -> Response {
    let counted = RequestMetrics::begin(&request);
    beacon::key_from_address(&mut request);
    let authorization = request.headers().get(header::AUTHORIZATION);
    let tenant = gateway.deps.keys.load().owner(authorization, gateway.deps.clock.now());
    if let (Some(tenant), Some(connection)) =
        (&tenant, request.extensions().get::<Arc<ClientConnection>>())
        && let Err(error) = connection.set_owner(tenant, authorization)
    {
        let mut response = error.into_response();
        // The tenant has no slot for it, so the connection must not stay open.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return counted.end(&gateway.route_metrics, response);
    }
    let policy = &gateway.deps.origin_policy;
    let listed = policy.allowed_origin(request.headers());
    let mut response = match origin_policy::early_answer(&gateway, &request, listed.is_some()) {
        Some(response) => response,
        None => {
            let coding = compression::negotiate(request.headers());
            let span = request_span(&request, tenant.as_deref());
            let answered = async {
                let response = run_for_client(&gateway, request, next).await;
                tracing::debug!(status = response.status().as_u16(), "answered");
                response
            };
            let response = answered.instrument(span).await;
            compression::compress_response(&gateway, coding, response).await
        }
    };
    // Added to errors, too: a page can only read an answer that has these headers.
    policy.add_cors_headers(listed, response.headers_mut());
    let response = match tenant {
        Some(tenant) => shares::reserve_answer(&gateway.shares, &tenant, response),
        None => response,
    };
    counted.end(&gateway.route_metrics, response)
}

/// Runs the handler. A read is ended when its client counts as gone; a write is carried out in any
/// case.
async fn run_for_client(gateway: &Gateway, request: Request, next: Next) -> Response {
    let connection = match request.extensions().get::<Arc<ClientConnection>>() {
        Some(connection) if is_read(&request) => connection.clone(),
        _ => return next.run(request).await,
    };
    tokio::select! {
        response = next.run(request) => response,
        () = connection.client_end.gone(gateway.deps.config.query.client_gone_after) => {
            ApiError::from(QueryError::Abandoned).into_response()
        }
    }
}

/// Whether a request changes nothing. Clients of Prometheus send their queries as forms.
fn is_read(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        || request.uri().path().starts_with(prometheus::PREFIX)
}

/// One span per request, so that a log line says for which. At debug, because a busy node answers
/// thousands a second.
fn request_span(request: &Request, tenant: Option<&str>) -> Span {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    tracing::debug_span!(
        "request",
        id = REQUESTS.fetch_add(1, Ordering::Relaxed),
        method = %request.method(),
        route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str),
        tenant
    )
}

impl Gateway {
    /// The tenant of the key in these headers, if it has the scope.
    ///
    /// # Errors
    /// 401 for a missing or invalid key, 403 if it lacks the scope.
    pub fn tenant(&self, headers: &HeaderMap, scope: Scope) -> Result<Arc<str>, ApiError> {
        let keys = self.deps.keys.load();
        self.shares.update_tenants(&keys);
        keys.authenticate(headers, scope, self.deps.clock.now())
    }

    /// Whether a value of `Authorization` carries a valid key.
    pub(super) fn is_valid_key(&self, authorization: &HeaderValue) -> bool {
        self.deps.keys.load().owner(Some(authorization), self.deps.clock.now()).is_some()
    }

    /// The tenant of a key that a client puts into the body or a parameter, if it may write.
    ///
    /// # Errors
    /// 401 for a missing or invalid key, 403 if it lacks the scope.
    pub fn tenant_of_key(&self, key: Option<&str>) -> Result<Arc<str>, ApiError> {
        let keys = self.deps.keys.load();
        self.shares.update_tenants(&keys);
        keys.authenticate_key(key, Scope::Write, self.deps.clock.now())
    }

    /// Like [`Self::tenant`], for clients that can send a key only as the password of `Basic`.
    ///
    /// # Errors
    /// 401 for a missing or invalid key, 403 if it lacks the scope or a foreign page sends it.
    pub fn tenant_or_basic(&self, headers: &HeaderMap, scope: Scope) -> Result<Arc<str>, ApiError> {
        let keys = self.deps.keys.load();
        self.shares.update_tenants(&keys);
        // Browsers resend a stored password on their own, whichever page makes the request.
        if !keys.is_open()
            && auth::is_basic(headers)
            && self.deps.origin_policy.is_foreign_page(headers)
        {
            let message =
                "a page may not use a password: send the key as Authorization: Bearer KEY";
            return Err(origin_policy::origin_forbidden(message));
        }
        keys.authenticate_or_basic(headers, scope, self.deps.clock.now())
    }
}

async fn post_events(
    State(gateway): GatewayState,
    q: QueryString,
    request: Request,
) -> Result<Response, ApiError> {
    // Not the extractor `HeaderMap`, which clones all headers.
    let (head, body) = request.into_parts();
    let headers = &head.headers;
    let tenant = gateway.tenant(headers, Scope::Write)?;
    if !checked_params(q, &[beacon::KEY])?.is_empty() {
        beacon::check(&gateway, &head)?;
    }
    let is_listed = gateway.deps.origin_policy.allowed_origin(headers).is_some();
    let format = decode::format_of(headers, is_listed)?;
    let idempotency = idempotency_of(headers)?;
    // Held until the answer, so that bodies waiting for the log stay counted.
    let (body, _reservation) = decode::read_body(&gateway, &tenant, headers, body).await?;
    let now = gateway.deps.clock.now();
    let (owner, whole, idempotency) =
        (tenant.clone(), body.clone(), idempotency.map(str::to_owned));
    let read = move |gateway: &Arc<Gateway>| {
        let (tenant, idempotency) = (&owner, idempotency.as_deref());
        ingest::IngestRequest { gateway, tenant, format, idempotency, default_metric: None, now }
            .read(&whole)
    };
    let read = gateway.read_in_turn(&tenant, body.len(), read).await?;
    let outcome = ingest::append(&gateway, tenant.clone(), body, read).await?;
    let all_bad = outcome.accepted == 0 && outcome.rejected > 0;
    let status = if all_bad { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::ACCEPTED };
    Ok((status, axum::Json(outcome)).into_response())
}

async fn query(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    let (tenant, mut params) = (gateway.tenant(&headers, Scope::Read)?, decode_query(q)?);
    let now = gateway.deps.clock.now();
    let asker = tenant.clone();
    if !params.iter().any(|(name, _)| name == "format") && accepts_csv(&headers) {
        params.push(("format".to_owned(), "csv".to_owned()));
    }
    let mut response = if params.iter().any(|(name, value)| name == "format" && value == "csv") {
        let CsvAnswer { csv, completeness } = gateway
            .run_query(&asker, move |queries, budget| {
                read_routes::table(queries, &tenant, &params, now, budget)
            })
            .await?;
        let completeness = HeaderValue::from_str(&completeness).map_err(|error| {
            tracing::error!(%error, "what an answer lacks does not fit into a header");
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the answer cannot be sent as CSV: ask for JSON",
            )
        })?;
        let kind = HeaderValue::from_static("text/csv; charset=utf-8; header=present");
        ([(header::CONTENT_TYPE, kind), (COMPLETENESS, completeness)], csv).into_response()
    } else {
        gateway
            .run_query(&asker, move |queries, budget| {
                read_routes::query(queries, &tenant, &params, now, budget)
            })
            .await
            .map(json)?
    };
    // The same URL is answered as JSON or CSV, and caches must keep them apart.
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Header that carries the completeness of a CSV answer.
const COMPLETENESS: HeaderName = HeaderName::from_static("rollmill-completeness");

async fn list_metrics(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    let (tenant, given) = (gateway.tenant(&headers, Scope::Read)?, decode_query(q)?);
    let asker = tenant.clone();
    gateway
        .run_query(&asker, move |queries, budget| {
            read_routes::metrics(queries, &tenant, &given, budget)
        })
        .await
        .map(json)
}

async fn label_values(
    State(gateway): GatewayState,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
    q: QueryString,
) -> Result<Response, ApiError> {
    let (tenant, name, given) =
        (gateway.tenant(&headers, Scope::Read)?, path_segment(name)?, decode_query(q)?);
    let asker = tenant.clone();
    gateway
        .run_query(&asker, move |queries, budget| {
            read_routes::label_values(queries, &tenant, &name, &given, budget)
        })
        .await
        .map(json)
}

async fn accounting(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    let (tenant, given, now) =
        (gateway.tenant(&headers, Scope::Read)?, decode_query(q)?, gateway.deps.clock.now());
    let asker = tenant.clone();
    gateway
        .run_query(&asker, move |queries, budget| {
            read_routes::accounting(queries, &tenant, &given, now, budget)
        })
        .await
        .map(json)
}

async fn limits(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    let tenant = gateway.tenant(&headers, Scope::Read)?;
    checked_params(q, &[])?;
    let status = gateway.deps.status.clone();
    let nodes =
        tokio::task::spawn_blocking(move || status.dedup_horizons()).await.map_err(|error| {
            tracing::error!(%error, "the limits crashed");
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the request crashed, the log of the server says why",
            )
        })?;
    Ok(axum::Json(limits::answer(&gateway, &tenant, nodes)).into_response())
}

/// Answers whether the node is ready for all of its roles, or for the one in `role`. Writes need no
/// shards, so a load balancer of writes probes the gateway role alone.
async fn ready(State(gateway): GatewayState, query: QueryString) -> Result<Response, ApiError> {
    let params = checked_params(query, &["role"])?;
    let role = params.iter().find(|(name, _)| name == "role").map(|(_, role)| role.as_str());
    match (gateway.deps.ready)(role) {
        Ok(()) => Ok("ready\n".into_response()),
        Err(why) => Err(ApiError::unavailable("not_ready", why, 1)),
    }
}

async fn own_metrics(
    State(gateway): GatewayState,
    headers: HeaderMap,
    q: QueryString,
) -> Result<Response, ApiError> {
    gateway.tenant(&headers, Scope::Operator)?;
    checked_params(q, &[])?;
    gateway.shares.record_metrics();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], (gateway.deps.render_metrics)())
        .into_response())
}

/// Served from static memory: a copy per reader could be held by many slow clients.
async fn openapi(q: QueryString) -> Result<Response, ApiError> {
    checked_params(q, &[])?;
    Ok(([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(line);
            Ok(line.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_about_a_request_says_which_and_whose() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let request = Request::post("/v1/events").body(axum::body::Body::empty()).expect("valid");
        tracing::subscriber::with_default(subscriber, || {
            request_span(&request, Some("shop")).in_scope(|| tracing::debug!("answered"));
        });
        let shown = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("UTF-8");
        assert!(shown.contains("request{id=") && shown.contains("method=POST"), "{shown}");
        assert!(shown.contains("tenant=\"shop\"") && shown.contains("answered"), "{shown}");
    }
}
