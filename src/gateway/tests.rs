//! Tests of the gateway through its router and through real sockets, with fakes of the log and the
//! query engine.

mod boards;
mod browsers;
mod collect;
mod cpu;
mod dashboard;
mod half_close;
mod heads;
mod hostile;
mod interface;
mod matrix;
mod neighbours;
mod prometheus;
mod replays;
mod rest_proxy;
mod shares;
mod sockets;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio_tungstenite::tungstenite::Message;
use tower::ServiceExt;

use super::auth::{KeyTable, KeysFile, Scope, StoredKey, new_key};
use super::origin_policy::OriginPolicy;
use super::{Gateway, GatewayDeps, routes, server};
use crate::actors::gateway::BatchSink;
use crate::api::archive::{ArchiveFlushAnswer, ExpiryAnswer, ExpiryGoesOnAnswer};
use crate::api::quarantine::{
    DiscardAnswer, EventPlace, QuarantineAnswer, QuarantinedEvent, ReleaseAnswer, SeriesName,
};
use crate::api::status::StatusAnswer;
use crate::clock::ManualClock;
use crate::config::{ByteSize, Config};
use crate::model::batch::ValidBatch;
use crate::model::budget::QueryBudget;
use crate::model::query_charge::QueryCharge;
use crate::model::window::Hour;
use crate::operate::service::{
    ExpiryService, OperateError, QuarantineScope, QuarantineService, StatusService,
};
use crate::operate::without_store::NoStore;
use crate::persistence::log::{AppendError, AppendTicket};
use crate::persistence::store::MetricInfo;
use crate::query::accounting::AccountingOutput;
use crate::query::answer::{LabelValuesPage, MetricsPage, PageRequest, QueryOutput};
use crate::query::completeness::QueryCompleteness;
use crate::query::error::QueryError;
use crate::query::groups::SeriesGroup;
use crate::query::request::QueryRequest;
use crate::query::service::QueryService;
use crate::query::without_role::NoQueries;

const NOW: i64 = 1_767_225_600_000;

#[derive(Default)]
struct Log {
    batches: Mutex<Vec<ValidBatch>>,
    fails: Mutex<Option<AppendError>>,
}

impl BatchSink for Log {
    fn submit(&self, batch: ValidBatch) -> Result<AppendTicket, AppendError> {
        let (reply, ticket) = oneshot::channel();
        self.batches.lock().unwrap().push(batch);
        reply.send(self.fails.lock().unwrap().clone().map_or(Ok(NOW), Err)).unwrap();
        Ok(ticket)
    }
}

/// A query engine; a query of metric `wait` blocks until the sender is dropped.
#[derive(Default)]
struct Queries {
    held: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl QueryService for Queries {
    /// Metric `wait` blocks, metric `until_ended` runs until it is cancelled; the label `pad` gets
    /// as many characters as `limit` says.
    fn query<'a>(
        &self,
        tenant: &str,
        request: &'a QueryRequest,
        budget: &'a QueryBudget,
    ) -> Result<QueryOutput<'a>, QueryError> {
        if request.metric == "wait" {
            let held = self.held.lock().unwrap().take().expect("something to wait for");
            held.recv().expect_err("nobody sends");
        }
        if request.metric == "until_ended" {
            while budget.abort_reason().is_none() {
                std::thread::yield_now();
            }
            return Err(QueryError::Abandoned);
        }
        let value = |label: &String| {
            if label == "pad" { "x".repeat(request.limit.unwrap_or(0)) } else { tenant.to_owned() }
        };
        let series =
            SeriesGroup { key: request.group_by.iter().map(value).collect(), points: vec![] };
        let completeness = QueryCompleteness::of(&[], &Vec::new(), NOW, 1);
        Ok(QueryOutput::new(request, vec![series], completeness, QueryCharge::new(budget)).unwrap())
    }
    fn metrics(
        &self,
        tenant: &str,
        _: &PageRequest,
        _: &QueryBudget,
    ) -> Result<MetricsPage, QueryError> {
        let metric = MetricInfo {
            metric: tenant.to_owned(),
            labels: vec![],
            series: 1,
            first: None,
            last: None,
        };
        Ok(MetricsPage {
            items: vec![metric],
            next: None,
            completeness: QueryCompleteness::of(&[], &Vec::new(), NOW, 1),
        })
    }
    fn label_values(
        &self,
        tenant: &str,
        _: &str,
        _: Option<&str>,
        _: &PageRequest,
        _: &QueryBudget,
    ) -> Result<LabelValuesPage, QueryError> {
        Ok(LabelValuesPage {
            items: vec![tenant.to_owned()],
            next: None,
            completeness: QueryCompleteness::of(&[], &Vec::new(), NOW, 1),
        })
    }
    /// Reports as many unreadable records as the tenant's name has characters.
    fn accounting(
        &self,
        tenant: &str,
        _: Range<Hour>,
        _: &QueryBudget,
    ) -> Result<AccountingOutput, QueryError> {
        Ok(AccountingOutput {
            hours: vec![],
            unowned: tenant.len() as u64,
            completeness: QueryCompleteness::of(&[], &Vec::new(), NOW, 1),
        })
    }
}

/// Lists one event of the key's tenant; its reason tells what else the key may see.
struct FakeQuarantine;
impl QuarantineService for FakeQuarantine {
    fn list(
        &self,
        reach: &QuarantineScope,
        all: bool,
        _: &QueryBudget,
    ) -> Result<QuarantineAnswer, OperateError> {
        let event = QuarantinedEvent {
            shard: 1,
            offset: 2,
            index: 3,
            tenant: reach.tenant.to_string(),
            received: None,
            reason: format!("{} {all}", reach.unowned),
            discarded: false,
            event: None,
            bytes: None,
        };
        Ok(QuarantineAnswer { events: vec![event], more: 0 })
    }
    fn release(
        &self,
        reach: &QuarantineScope,
        place: EventPlace,
        _: &QueryBudget,
    ) -> Result<ReleaseAnswer, OperateError> {
        assert_ne!(place.index, 13, "a fault to be caught");
        let counted_in = SeriesName { metric: reach.tenant.to_string(), labels: BTreeMap::new() };
        Ok(ReleaseAnswer { released: place, counted_in: Some(counted_in) })
    }
    fn discard(
        &self,
        _: &QuarantineScope,
        place: EventPlace,
        _: &QueryBudget,
    ) -> Result<DiscardAnswer, OperateError> {
        Err(OperateError::NotQuarantined { place, why: "is gone" })
    }
}

struct FakeStatus;
impl StatusService for FakeStatus {
    fn archive_now(&self) -> ArchiveFlushAnswer {
        ArchiveFlushAnswer { shards: vec![] }
    }
    fn status(&self, _: &QueryBudget) -> StatusAnswer {
        StatusAnswer { at: None, healthy: true, store: None, nodes: vec![], shards: vec![] }
    }
    fn dedup_horizons(&self) -> Vec<(String, i64)> {
        vec![("mill-1".to_owned(), 3_600_000), ("mill-2".to_owned(), 90_000)]
    }
}

impl ExpiryService for FakeStatus {
    fn list(&self, _: &QueryBudget) -> Result<ExpiryAnswer, OperateError> {
        Ok(ExpiryAnswer { stopped: 0, due: vec![] })
    }
    fn approve(&self, _: &QueryBudget) -> Result<ExpiryGoesOnAnswer, OperateError> {
        Ok(ExpiryGoesOnAnswer { going_on: 0, of: vec![] })
    }
}

fn gateway(config: Config, keys: KeyTable) -> (Arc<Gateway>, Arc<Log>) {
    let log = Arc::new(Log::default());
    (Gateway::new(deps(Some(log.clone()), config, keys)), log)
}

fn deps(log: Option<Arc<Log>>, config: Config, keys: KeyTable) -> GatewayDeps {
    GatewayDeps {
        submit: log.map(|log| log as Arc<dyn BatchSink>),
        queries: Arc::new(Queries::default()),
        quarantine: Arc::new(FakeQuarantine),
        origin_policy: OriginPolicy::new("", vec![]),
        expiry: Arc::new(FakeStatus),
        replays: replays::service(),
        boards: boards::service(),
        keys: Arc::new(ArcSwap::from_pointee(keys)),
        mapping: Arc::default(),
        config: Arc::new(config),
        clock: ManualClock::at(NOW),
        shard_count: 64,
        render_metrics: Arc::new(String::new),
        status: Arc::new(FakeStatus),
        metric_names: Arc::new(|_| Some((10, 3))),
        ready: Arc::new(|role| match role {
            None | Some("gateway") => Ok(()),
            Some(other) => Err(format!("this node has no role {other}")),
        }),
    }
}

#[tokio::test]
async fn a_node_answers_for_its_roles_alone() {
    let mut deps = deps(
        None,
        Config::defaults().with(|c| {
            c.tenants.max_events_per_second = 1;
            c.tenants.burst = 1;
        }),
        KeyTable::open(),
    );
    (deps.queries, deps.quarantine) = (Arc::new(NoQueries), Arc::new(NoStore));
    deps.replays = Arc::new(NoStore);
    deps.boards = Arc::new(NoStore);
    let gateway = Gateway::new(deps);
    for _ in 0..3 {
        let (status, answer, retry) = send(&gateway, r#"{"metric":"m"}"#).await;
        assert_eq!(
            (status, retry.as_deref()),
            (StatusCode::SERVICE_UNAVAILABLE, Some("1")),
            "no budget is used up: {answer}"
        );
        assert!(answer.contains("no_gateway_role") && answer.contains("node.roles"), "{answer}");
    }
    for path in [
        "/v1/query?metric=m",
        "/v1/metrics",
        "/v1/labels/a/values",
        "/v1/accounting",
        "/v1/quarantine",
        "/v1/replays",
        "/v1/replays/1/diff",
        "/v1/boards",
        "/v1/boards/1",
    ] {
        let (status, answer, retry) =
            call(&gateway, Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(
            (status, retry.as_deref()),
            (StatusCode::SERVICE_UNAVAILABLE, Some("1")),
            "{path}: {answer}"
        );
        assert!(
            answer.contains("no_query_role") && answer.contains("node.roles"),
            "{path}: {answer}"
        );
    }
    let ready =
        async |path: &str| call(&gateway, Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(ready("/readyz").await.0, StatusCode::OK);
    assert_eq!(ready("/readyz?role=gateway").await.0, StatusCode::OK);
    let (status, answer, _) = ready("/readyz?role=query").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        answer.contains("not_ready") && answer.contains("this node has no role query"),
        "{answer}"
    );
}

async fn call(
    gateway: &Arc<Gateway>,
    mut request: Request<Body>,
) -> (StatusCode, String, Option<String>) {
    request
        .headers_mut()
        .entry("host")
        .or_insert(axum::http::HeaderValue::from_static("localhost"));
    let response = routes::router(gateway.clone()).oneshot(request).await.unwrap();
    let retry = response.headers().get("retry-after").map(|v| v.to_str().unwrap().to_owned());
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap(), retry)
}

fn post(kind: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post("/v1/events").header("content-type", kind).body(body.into()).unwrap()
}

async fn send(
    gateway: &Arc<Gateway>,
    body: impl Into<Body>,
) -> (StatusCode, String, Option<String>) {
    call(gateway, post("application/json", body)).await
}

#[tokio::test]
async fn good_events_pass_beside_bad_ones_and_raw_bytes_are_kept() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let body = r#" [{"metric":"m","value":"0.1","labels":{"b":"2","a":"1"}},
        {"metric":"m","timestamp":-1,"id":"old"} ,
        {"metric":"m","timestamp":4102444800000},{"metric":"m","value":1e19},
        {"metric":"m","value":"NaN"},{"metric":"m","value":null}]"#;
    let (status, answer, _) = send(&gateway, body).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let first = r#"{"index":1,"id":"old","code":"timestamp_too_old""#;
    let begin = format!(r#"{{"accepted":2,"rejected":4,"errors":[{first}"#);
    assert!(answer.starts_with(&begin), "{answer}");
    for code in ["timestamp_in_future", "value_out_of_range", "value_invalid"] {
        assert!(answer.contains(code), "{code} in {answer}");
    }
    let batches = log.batches.lock().unwrap();
    assert_eq!(
        &batches[0].body[batches[0].events[0].raw.clone()],
        br#"{"metric":"m","value":"0.1","labels":{"b":"2","a":"1"}}"#
    );
    assert_eq!(batches[0].events[1].value, None);
    assert_eq!(batches[0].events[0].timestamp, NOW);
}

#[tokio::test]
async fn all_bad_is_422_and_nothing_reaches_the_log() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for body in [
        r#"{"metric":"m","timestamp":1}"#,
        r#"{"metric":""}"#,
        r#"{"metric":"m","labels":{"a":"x\r\n"}}"#,
        "{}",
    ] {
        assert_eq!(send(&gateway, body).await.0, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    }
    assert!(log.batches.lock().unwrap().is_empty());
}

#[tokio::test]
async fn hostile_bodies_are_refused_without_harm() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let deep = format!(r#"{{"metric":"m","properties":{}{}}}"#, "[".repeat(2000), "]".repeat(2000));
    for body in ["", "["] {
        assert_eq!(send(&gateway, body.to_owned()).await.0, StatusCode::BAD_REQUEST);
    }
    for body in [
        deep.as_str(),
        r#"{"metric":"a","metric":"b"}"#,
        r#"{"metric":"a","metrc":1}"#,
        "[1]",
        r#"[["m"]]"#,
    ] {
        assert_eq!(send(&gateway, body.to_owned()).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    }
    for body in [
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        vec![0x91; 100_000],
        vec![0x81, 0xdb, 0xff, 0xff, 0xff, 0xff],
        vec![0xdf, 0, 0, 0, 9],
    ] {
        let status = call(&gateway, post("application/msgpack", body)).await.0;
        assert!(
            matches!(status, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE),
            "{status}"
        );
    }
    assert_eq!(call(&gateway, post("text/plain", "x")).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let many = format!("[{}1]", "1,".repeat(10_000));
    assert_eq!(send(&gateway, many).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn bombs_stop_at_the_cap() {
    let (gateway, _) = gateway(
        Config::defaults().with(|c| c.accept.max_body = ByteSize::of(1 << 20)),
        KeyTable::open(),
    );
    let zeros = vec![b' '; 64 << 20];
    let bomb = zstd::encode_all(&zeros[..], 1).unwrap();
    let mut request = post("application/json", bomb);
    request.headers_mut().insert("content-encoding", "zstd".parse().unwrap());
    assert_eq!(call(&gateway, request).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let good = zstd::encode_all(&br#"{"metric":"m"}"#[..], 1).unwrap();
    let mut request = post("application/json", good);
    request.headers_mut().insert("content-encoding", "zstd".parse().unwrap());
    assert_eq!(call(&gateway, request).await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn messagepack_values_are_exact_and_finite() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for (value, status) in [
        (0.1, 202),
        (-0.0, 202),
        (5e-324, 202),
        (f64::NAN, 422),
        (f64::INFINITY, 422),
        (1e308, 422),
    ] {
        let mut body = vec![0x82, 0xa6];
        body.extend(b"metric\xa1m\xa5value\xcb");
        body.extend(value.to_be_bytes());
        assert_eq!(
            call(&gateway, post("application/msgpack", body)).await.0.as_u16(),
            status,
            "{value}"
        );
    }
    assert_eq!(log.batches.lock().unwrap()[0].events[0].value.unwrap().to_string(), "0.1");
}

#[tokio::test]
async fn a_failed_append_is_503_and_overload_says_when_to_retry() {
    let (gateway, log) = gateway(
        Config::defaults().with(|c| {
            c.tenants.max_events_per_second = 1;
            c.tenants.burst = 2;
        }),
        KeyTable::open(),
    );
    *log.fails.lock().unwrap() = Some(AppendError::Unknown("crash".to_owned()));
    for _ in 0..5 {
        let (status, _, retry) = send(&gateway, r#"{"metric":"m"}"#).await;
        assert_eq!(
            (status, retry.is_some()),
            (StatusCode::SERVICE_UNAVAILABLE, true),
            "what was not kept costs no tokens"
        );
    }
    for (fails, code, seconds) in [
        (AppendError::DiskFull, "disk_full", "10"),
        (AppendError::Closed("gone".to_owned()), "log_closed", "2"),
        (AppendError::Overloaded { waiting_bytes: 2, limit: 1 }, "overloaded", "1"),
    ] {
        *log.fails.lock().unwrap() = Some(fails);
        let (status, answer, retry) = send(&gateway, r#"{"metric":"m"}"#).await;
        assert_eq!((status, retry.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some(seconds)));
        assert!(answer.contains(code), "{answer}");
    }
    *log.fails.lock().unwrap() = None;
    assert_eq!(send(&gateway, r#"[{"metric":"m"},{"metric":"m"}]"#).await.0, StatusCode::ACCEPTED);
    let (status, _, retry) = send(&gateway, r#"{"metric":"m"}"#).await;
    assert_eq!((status, retry.is_some()), (StatusCode::TOO_MANY_REQUESTS, true));
}

#[tokio::test]
async fn keys_alone_name_the_tenant() {
    let (plain, prefix, sha256) = new_key([7; 24]);
    let (late, late_prefix, late_hash) = new_key([8; 24]);
    let key = |prefix, sha256, expires_ms| StoredKey {
        prefix,
        sha256,
        tenant: "acme".into(),
        scopes: vec![Scope::Read],
        expires_ms,
    };
    let keys = vec![key(prefix, sha256, None), key(late_prefix, late_hash, Some(NOW))];
    let (gateway, _) = gateway(Config::defaults(), KeyTable::of(KeysFile { keys }));
    let get = |uri: &str, key: &str| {
        Request::get(uri)
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())
            .unwrap()
    };
    for (uri, of_tenant) in [
        ("/v1/query?metric=m&by=tenant", "acme"),
        ("/v1/metrics", "acme"),
        ("/v1/accounting", "\"nobodys_records_set_aside\":4"),
        ("/v1/labels/a/values", "acme"),
        ("/v1/labels/tenant/values?metric=other", "acme"),
    ] {
        let (status, body, _) = call(&gateway, get(uri, &plain)).await;
        assert_eq!((status, body.contains(of_tenant)), (StatusCode::OK, true), "{uri}: {body}");
        assert_eq!(call(&gateway, get(uri, "wrong")).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(call(&gateway, get(uri, &late)).await.0, StatusCode::UNAUTHORIZED, "expired");
    }
    let in_url = Request::get(format!("/v1/query?key={plain}")).body(Body::empty()).unwrap();
    assert_eq!(call(&gateway, in_url).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(call(&gateway, get("/metrics", &plain)).await.0, StatusCode::FORBIDDEN);
    assert_eq!(call(&gateway, get("/nothing", &plain)).await.0, StatusCode::NOT_FOUND);
    gateway.deps.keys.store(Arc::new(KeyTable::of(KeysFile::default())));
    assert_eq!(
        call(&gateway, get("/v1/query?metric=m", &plain)).await.0,
        StatusCode::UNAUTHORIZED,
        "revoked"
    );
}

#[tokio::test]
async fn the_quarantine_is_for_operators() {
    let (operator, prefix, sha256) = new_key([7; 24]);
    let (of_the_node, node_prefix, node_hash) = new_key([9; 24]);
    let (reader, read_prefix, read_hash) = new_key([8; 24]);
    let key = |prefix, sha256, scopes| StoredKey {
        prefix,
        sha256,
        tenant: "acme".into(),
        scopes,
        expires_ms: None,
    };
    let keys = vec![
        key(prefix, sha256, vec![Scope::Admin]),
        key(read_prefix, read_hash, vec![Scope::Read, Scope::Write]),
        key(node_prefix, node_hash, vec![Scope::Operator]),
    ];
    let (gateway, _) = gateway(Config::defaults(), KeyTable::of(KeysFile { keys }));
    let ask = async |method: &str, path: &str, key: &str, body: &'static str| {
        let uri = format!("/v1/quarantine{path}");
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("authorization", format!("Bearer {key}"));
        let request =
            request.header("content-type", "application/json").body(Body::from(body)).unwrap();
        let (status, answer, _) = call(&gateway, request).await;
        (status.as_u16(), answer)
    };
    let place = r#"{"shard":1,"offset":2,"index":3}"#;
    let listed = async |query: &str, key: &str| {
        let (status, answer) = ask("GET", query, key, "").await;
        assert_eq!(status, 200, "{answer}");
        let answer: QuarantineAnswer = serde_json::from_str(&answer).unwrap();
        (answer.events[0].tenant.clone(), answer.events[0].reason.clone())
    };
    let of = |tenant: &str, reason: &str| (tenant.to_owned(), reason.to_owned());
    assert_eq!(listed("", &operator).await, of("acme", "false false"));
    // An operator of the node sees records without a known tenant, but no tenant's events.
    assert_eq!(listed("", &of_the_node).await, of("", "true false"));
    assert_eq!(listed("?all=true", &operator).await, of("acme", "false true"));
    let (status, released) = ask("POST", "/release", &operator, place).await;
    let released: ReleaseAnswer = serde_json::from_str(&released).unwrap();
    assert_eq!((status, released.released.to_string()), (200, "1/2/3".to_owned()));
    assert_eq!(released.counted_in.map(|series| series.metric).as_deref(), Some("acme"));
    let (status, answer) = ask("POST", "/discard", &operator, place).await;
    assert_eq!((status, answer.contains("not_quarantined")), (404, true));
    for body in [
        "",
        "[]",
        r#"{"shard":1}"#,
        r#"{"shard":-1,"offset":2,"index":3}"#,
        r#"{"shard":1,"offset":2,"index":3,"x":1}"#,
    ] {
        assert_eq!(ask("POST", "/release", &operator, body).await.0, 400, "{body}");
    }
    assert_eq!(
        ask("POST", "/release", &operator, r#"{"shard":1,"offset":2,"index":13}"#).await.0,
        500,
        "its crash harms nobody"
    );
    for (method, path) in [("GET", ""), ("POST", "/release"), ("POST", "/discard")] {
        assert_eq!(ask(method, path, &reader, place).await.0, 403, "{path}");
        assert_eq!(ask(method, path, "wrong", place).await.0, 401, "{path}");
    }
    let from_a_form = Request::post("/v1/quarantine/release")
        .header("authorization", format!("Bearer {operator}"));
    let from_a_form =
        from_a_form.header("content-type", "text/plain").body(Body::from(place)).unwrap();
    assert_eq!(call(&gateway, from_a_form).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

async fn listen(config: Config) -> (std::net::SocketAddr, watch::Sender<bool>) {
    serve(gateway(config, KeyTable::open()).0).await
}

async fn serve(gateway: Arc<Gateway>) -> (std::net::SocketAddr, watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(server::serve(gateway, listener, stopped));
    (address, stop)
}

#[tokio::test]
async fn slow_heads_and_bodies_are_cut_off() {
    let short = Duration::from_millis(200);
    let (address, _stop) = listen(Config::defaults().with(|c| {
        c.server.header_timeout = short;
        c.server.body_timeout = short;
    }))
    .await;
    let body = "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{";
    for start in ["GET / HT", body] {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        socket.write_all(start.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended =
            tokio::time::timeout(Duration::from_secs(60), socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "still open: {start}");
    }
}

#[tokio::test]
async fn acks_come_in_order_and_subscriptions_update() {
    let (address, _stop) = listen(Config::defaults()).await;
    let (mut ws, _) =
        tokio_tungstenite::connect_async(format!("ws://{address}/v1/ws")).await.unwrap();
    for seq in 0..200 {
        ws.send(Message::text(format!(r#"{{"seq":{seq},"events":[{{"metric":"m"}}]}}"#)))
            .await
            .unwrap();
    }
    for seq in 0..200 {
        let ack = ws.next().await.unwrap().unwrap().into_text().unwrap();
        assert!(
            ack.contains(&format!("\"ack\":{seq},")) && ack.contains("\"accepted\":1"),
            "{ack}"
        );
    }
    ws.send(Message::text(r#"{"subscribe":"q1","query":{"metric":"m"}}"#)).await.unwrap();
    let update = ws.next().await.unwrap().unwrap().into_text().unwrap();
    assert!(update.starts_with(r#"{"update":"q1","metric":"m","step":"1h""#), "{update}");
}

#[tokio::test]
async fn a_reader_that_never_reads_is_dropped() {
    let config = Config::defaults().with(|c| c.ws.idle_timeout = Duration::from_millis(300));
    let (address, _stop) = listen(config).await;
    let (mut ws, _) =
        tokio_tungstenite::connect_async(format!("ws://{address}/v1/ws")).await.unwrap();
    // A name each: an answer that comes after the next question of its name is not sent, and no
    // pause is long enough for an answer on a busy machine. Then pings, so that the server hears of
    // a client that reads nothing.
    let subscribe = |n: u8| {
        let query = r#"{"metric":"m","by":"pad","limit":"4000000"}"#;
        Message::text(format!(r#"{{"subscribe":"q{n}","query":{query}}}"#))
    };
    let pings = std::iter::repeat_with(|| Message::Ping(bytes::Bytes::new()));
    let dropped = tokio::time::timeout(Duration::from_secs(120), async {
        for message in (0..8).map(subscribe).chain(pings) {
            if ws.send(message).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(dropped.await.is_ok(), "still connected");
}

#[tokio::test]
async fn gzip_bombs_stop_at_the_cap_too() {
    use std::io::Write;
    let (gateway, _) = gateway(
        Config::defaults().with(|c| c.accept.max_body = ByteSize::of(1 << 20)),
        KeyTable::open(),
    );
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let bomb = gzip(&vec![b' '; 64 << 20]);
    assert!(bomb.len() < 80_000, "a ratio near a thousand");
    let stacked: Vec<u8> = std::iter::repeat_n(gzip(&vec![b' '; 256 << 10]), 8).flatten().collect();
    for (body, status) in
        [(bomb, 413), (stacked, 413), (gzip(br#"{"metric":"m"}"#), 202), (b"no gzip".to_vec(), 400)]
    {
        let mut request = post("application/json", body);
        request.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        assert_eq!(call(&gateway, request).await.0.as_u16(), status);
    }
}

#[tokio::test]
async fn lines_are_events_and_an_idempotency_key_names_them() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let mut request = post(
        "application/x-ndjson",
        "{\"metric\":\"m\"}\r\n\n{\"metric\":\"m\",\"id\":\"own\"}\n{\"metric\":\"m\"}",
    );
    request.headers_mut().insert("idempotency-key", "K".parse().unwrap());
    let (status, answer, _) = call(&gateway, request).await;
    assert_eq!(
        (status, answer.as_str()),
        (StatusCode::ACCEPTED, r#"{"accepted":3,"rejected":0,"errors":[]}"#)
    );
    {
        let batches = log.batches.lock().unwrap();
        let ids: Vec<_> =
            batches[0].events.iter().map(|event| event.id.as_deref().unwrap()).collect();
        assert_eq!(ids, ["K/0", "own", "K/2"]);
    }
    for wrong in [String::new(), "k".repeat(101), "\u{e4}".to_owned()] {
        let mut request = post("application/json", r#"{"metric":"m"}"#);
        request.headers_mut().insert("idempotency-key", wrong.parse().unwrap());
        let (status, answer, _) = call(&gateway, request).await;
        assert_eq!(
            (status, answer.contains("idempotency_key_invalid")),
            (StatusCode::BAD_REQUEST, true),
            "{wrong:?}"
        );
    }
}

#[tokio::test]
async fn too_many_bytes_in_flight_are_503_with_a_time_to_retry() {
    let (gateway, _) = gateway(
        Config::defaults().with(|c| c.accept.max_inflight = ByteSize::of(1 << 20)),
        KeyTable::open(),
    );
    let held = gateway.shares.inflight.take(&"default".into(), 1 << 20).unwrap();
    let (status, answer, retry) = send(&gateway, r#"{"metric":"m"}"#).await;
    assert_eq!(
        (status, retry.as_deref()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("1")),
        "{answer}"
    );
    drop(held);
    assert_eq!(send(&gateway, r#"{"metric":"m"}"#).await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_stop_cuts_connections_that_do_not_end() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let served = tokio::spawn(server::serve(gateway, listener, stopped));
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket
        .write_all(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.send_replace(true);
    assert!(tokio::time::timeout(Duration::from_secs(60), served).await.is_ok(), "still serving");
    let mut answer = Vec::new();
    let ended =
        tokio::time::timeout(Duration::from_secs(60), socket.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "the connection outlives the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_queries_are_503_with_a_time_to_retry() {
    let log = Some(Arc::new(Log::default()));
    let mut deps =
        deps(log, Config::defaults().with(|c| c.query.max_concurrent = 1), KeyTable::open());
    let (go_on, held) = std::sync::mpsc::sync_channel(1);
    deps.queries = Arc::new(Queries { held: Mutex::new(Some(held)) });
    let gateway = Gateway::new(deps);
    let get = |uri: &str| Request::get(uri).body(Body::empty()).unwrap();
    let slow = {
        let (gateway, request) = (gateway.clone(), get("/v1/query?metric=wait"));
        tokio::spawn(async move { call(&gateway, request).await })
    };
    while gateway.shares.queries.usage("default").held == 0 {
        tokio::task::yield_now().await;
    }
    for uri in [
        "/v1/query?metric=m",
        "/v1/metrics",
        "/v1/accounting",
        "/v1/labels/a/values",
        "/v1/quarantine",
    ] {
        let (status, answer, retry) = call(&gateway, get(uri)).await;
        assert_eq!(
            (status, retry.as_deref()),
            (StatusCode::SERVICE_UNAVAILABLE, Some("1")),
            "{uri}"
        );
        assert!(
            answer.contains("\"overloaded\"") && answer.contains("query.max_concurrent"),
            "{answer}"
        );
    }
    assert_eq!(
        send(&gateway, r#"{"metric":"m"}"#).await.0,
        StatusCode::ACCEPTED,
        "writes do not wait for queries"
    );
    drop(go_on);
    assert_eq!(slow.await.unwrap().0, StatusCode::OK, "the one that runs is not disturbed");
    assert_eq!(call(&gateway, get("/v1/query?metric=m")).await.0, StatusCode::OK);
}
