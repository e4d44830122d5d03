//! Kafka REST Proxy: recorded requests of real clients, and every kind of refusal.

use super::*;
use crate::model::series::Series;
use serde_json::{Value, json};

const JSON_V2: &str = "application/vnd.kafka.json.v2+json";
const BINARY_V2: &str = "application/vnd.kafka.binary.v2+json";

fn produce(topic: &str, kind: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(format!("/topics/{topic}"))
        .header("content-type", kind)
        .body(body.into())
        .unwrap()
}

async fn answer(gateway: &Arc<Gateway>, request: Request<Body>) -> (u16, Value) {
    let (status, body, retry) = call(gateway, request).await;
    assert_eq!(
        retry.is_some(),
        matches!(status.as_u16(), 429 | 503),
        "Retry-After on overload and nowhere else: {body}"
    );
    (status.as_u16(), serde_json::from_str(&body).unwrap())
}

fn taken(log: &Log) -> Vec<(String, String, Option<String>)> {
    let batches = log.batches.lock().unwrap();
    let all = batches.iter().flat_map(|batch| batch.events.iter().map(move |event| (batch, event)));
    let shown = |(batch, event): (&ValidBatch, &crate::model::batch::ValidEvent)| {
        let raw = String::from_utf8(batch.body[event.raw.clone()].to_vec()).unwrap();
        (Series::from_key(&event.series.key).unwrap().metric, raw, event.id.clone())
    };
    all.map(shown).collect()
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn the_quickstart_gets_the_recorded_shape() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let (status, taken_one) = answer(
        &gateway,
        produce("jsontest", JSON_V2, r#"{"records":[{"value":{"value":"2.5"}}]}"#),
    )
    .await;
    let partition = log.batches.lock().unwrap()[0].events[0].series.shard.0;
    let entry = json!({"partition": partition, "offset": -1, "error_code": null, "error": null});
    assert_eq!(
        (status, taken_one),
        (200, json!({"offsets": [entry], "key_schema_id": null, "value_schema_id": null}))
    );
    assert_eq!(taken(&log), [("jsontest".to_owned(), r#"{"value":"2.5"}"#.to_owned(), None)]);
    // The value in Confluent's own example is no event: its entry says so, and nothing is counted
    // silently.
    let (status, refused) =
        answer(&gateway, produce("jsontest", JSON_V2, r#"{"records":[{"value":{"foo":"bar"}}]}"#))
            .await;
    let entry = &refused["offsets"][0];
    assert_eq!(
        (status, &entry["error_code"], &entry["offset"]),
        (200, &json!(50002), &Value::Null)
    );
    assert!(entry["error"].as_str().unwrap().contains("unknown field"), "{refused}");
    assert_eq!(log.batches.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn good_records_are_taken_beside_bad_ones_in_the_order_of_the_request() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let large = format!(r#"{{"key":"{}","value":{{"value":1}}}}"#, "k".repeat(9_000));
    let records = [
        r#"{"key": "k", "value": {"metric": "own", "id": "a"}, "partition": null}"#,
        r#"{"value": null}"#,
        "{}",
        "7",
        r#"["k", {"value": 1}]"#,
        r#"{"value": ["array_event"]}"#,
        r#"{"value": "text"}"#,
        r#"{"value": {"value": 1}, "partition": 3}"#,
        r#"{"value": {"value": 1}, "timestamp": 3}"#,
        r#"{"value": {"timestamp": 1}}"#,
        &large,
        r#"{"key": {"any": [1]}, "value": {"value": 2}}"#,
    ];
    let body = format!(r#"{{"value_schema_id": null, "records": [{}]}}"#, records.join(", "));
    let mut request = produce("topic", JSON_V2, body);
    request.headers_mut().insert("idempotency-key", "K".parse().unwrap());
    let (status, answered) = answer(&gateway, request).await;
    let codes: Vec<_> = answered["offsets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["error_code"].as_u64())
        .collect();
    assert_eq!((status, codes.len()), (200, 12));
    assert!(
        codes[0].is_none()
            && codes[11].is_none()
            && codes[1..11].iter().all(|code| *code == Some(50_002)),
        "{answered}"
    );
    let text = answered.to_string();
    for why in [
        "without a value",
        "decides on its partition",
        "unknown field",
        "timestamp_too_old",
        "event_too_large",
    ] {
        assert!(text.contains(why), "{why}: {text}");
    }
    // Keys are stored with the event and are not ids.
    let expected = [("own", records[0], Some("a")), ("topic", records[11], Some("K/11"))];
    assert_eq!(
        taken(&log),
        expected.map(|(m, raw, id)| (m.to_owned(), raw.to_owned(), id.map(str::to_owned)))
    );
}

#[tokio::test]
async fn binary_records_are_the_events_that_they_encode() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let (event, padded) = (r#"{"metric":"m","id":"1"}"#, r#"{"metric":"m","id":"22"}"#);
    for (round, kind) in
        [BINARY_V2, "application/vnd.kafka.binary.v1+json", "application/vnd.kafka.v1+json"]
            .iter()
            .enumerate()
    {
        // As npm's kafka-rest sends it: chunked, with "partition": null.
        let records = json!({"records": [
            {"value": base64(event), "key": "aw==", "partition": null},
            {"value": base64(padded).trim_end_matches('='), "key": null, "partition": null},
            {"value": "***", "key": null, "partition": null}, {"value": 7}]});
        let chunks: Vec<_> = records
            .to_string()
            .as_bytes()
            .chunks(7)
            .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()))
            .collect();
        let mut request = produce("t1", kind, Body::from_stream(futures::stream::iter(chunks)));
        request.headers_mut().insert("host", "localhost".parse().unwrap());
        let response = routes::router(gateway.clone()).oneshot(request).await.unwrap();
        let answer_kind = if round == 0 {
            "application/vnd.kafka.v2+json"
        } else {
            "application/vnd.kafka.v1+json"
        };
        assert_eq!(
            (response.status(), response.headers()["content-type"].to_str().unwrap()),
            (StatusCode::OK, answer_kind)
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let answered: Value = serde_json::from_slice(&body).unwrap();
        let codes: Vec<_> = answered["offsets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["error_code"].as_u64())
            .collect();
        assert_eq!(codes, [None, None, Some(50_002), Some(50_002)], "{answered}");
    }
    let kept = format!(r#"{{"key":"aw==","value":{event}}}"#);
    assert_eq!(
        taken(&log)[..2],
        [
            ("m".to_owned(), kept, Some("1".to_owned())),
            ("m".to_owned(), padded.to_owned(), Some("22".to_owned()))
        ]
    );
    assert_eq!(taken(&log).len(), 6);
}

#[tokio::test]
async fn whole_requests_are_refused_in_the_shape_of_that_interface() {
    let config = Config::defaults().with(|c| {
        c.accept.max_events = 2;
        c.accept.max_body = ByteSize::of(2_000);
    });
    let (gateway, log) = gateway(config, KeyTable::open());
    let good = r#"{"records":[{"value":{}}]}"#;
    let cases = [
        ("t", JSON_V2, "{".to_owned(), 400, 400, "body_unreadable"),
        ("t", JSON_V2, "[]".to_owned(), 400, 400, "body_unreadable"),
        ("t", JSON_V2, r#"{"records":[1"#.to_owned(), 400, 400, "body_unreadable"),
        ("t", JSON_V2, "{}".to_owned(), 422, 422, "records is missing"),
        ("t", JSON_V2, r#"{"records":{"value":{}}}"#.to_owned(), 422, 422, "no array"),
        ("t", BINARY_V2, r#"{"records":[]}"#.to_owned(), 422, 422, "empty"),
        ("t", JSON_V2, r#"{"records":[{},{},{}]}"#.to_owned(), 413, 413, "at most 2 events"),
        ("t", JSON_V2, " ".repeat(2_001), 413, 413, "accept.max_body"),
        ("9t", JSON_V2, good.to_owned(), 404, 40_401, "topic"),
        (&"t".repeat(200), JSON_V2, good.to_owned(), 404, 40_401, "topic"),
        (
            "t",
            "application/vnd.kafka.avro.v2+json",
            good.to_owned(),
            415,
            415,
            "no schema registry",
        ),
        (
            "t",
            "application/vnd.kafka.protobuf.v2+json",
            good.to_owned(),
            415,
            415,
            "no schema registry",
        ),
        (
            "t",
            "application/vnd.kafka.jsonschema.v2+json",
            good.to_owned(),
            415,
            415,
            "no schema registry",
        ),
        ("t", "application/json", good.to_owned(), 415, 415, "application/vnd.kafka.json.v2+json"),
        ("t/partitions/0", JSON_V2, good.to_owned(), 404, 40_402, "decides on its partition"),
    ];
    for (topic, kind, body, status, code, why) in cases {
        let (got, answered) = answer(&gateway, produce(topic, kind, body.clone())).await;
        assert_eq!(
            (got, &answered["error_code"]),
            (status, &json!(code)),
            "{topic} {kind} {body}: {answered}"
        );
        assert!(answered["message"].as_str().unwrap().contains(why), "{why}: {answered}");
        assert_eq!(answered.as_object().unwrap().len(), 2);
    }
    assert!(log.batches.lock().unwrap().is_empty());
}

#[tokio::test]
async fn overload_refuses_the_whole_request_and_says_when_to_come_back() {
    let config = Config::defaults().with(|c| {
        c.tenants.max_events_per_second = 1;
        c.tenants.burst = 1;
    });
    let (gateway, log) = gateway(config, KeyTable::open());
    let one = || produce("t", JSON_V2, r#"{"records":[{"value":{"id":"1"}}]}"#);
    *log.fails.lock().unwrap() = Some(AppendError::DiskFull);
    let (status, answered) = answer(&gateway, one()).await;
    assert_eq!((status, &answered["error_code"]), (503, &json!(50_302)), "{answered}");
    *log.fails.lock().unwrap() = None;
    assert_eq!(answer(&gateway, one()).await.0, 200, "what was not kept costs no tokens");
    let (status, answered) = answer(&gateway, one()).await;
    assert_eq!((status, &answered["error_code"]), (429, &json!(42_901)), "{answered}");
}

#[tokio::test]
async fn the_key_is_a_bearer_or_stands_in_basic_here_and_not_everywhere() {
    let stored = |seed: u8, scope| {
        let (plain, prefix, sha256) = new_key([seed; 24]);
        (
            plain,
            StoredKey {
                prefix,
                sha256,
                tenant: "acme".into(),
                scopes: vec![scope],
                expires_ms: None,
            },
        )
    };
    let ((writer, write), (reader, read)) = (stored(1, Scope::Write), stored(2, Scope::Read));
    let log = Arc::new(Log::default());
    let mut deps = deps(
        Some(log.clone()),
        Config::defaults(),
        KeyTable::of(KeysFile { keys: vec![write, read] }),
    );
    deps.origin_policy = OriginPolicy::new("0.0.0.0:80", vec!["https://rollmill.test".to_owned()]);
    let gateway = Gateway::new(deps);
    let basic = |text: &str| format!("Basic {}", base64(text));
    let with = |topic: &str, authorization: &str, origin: Option<&str>| {
        let mut request = produce(topic, JSON_V2, r#"{"records":[{"value":{}}]}"#);
        request.headers_mut().insert("authorization", authorization.parse().unwrap());
        request.headers_mut().insert("host", "rollmill.test".parse().unwrap());
        origin.map(|origin| request.headers_mut().insert("origin", origin.parse().unwrap()));
        request
    };
    let here = Some("https://rollmill.test");
    let good = [
        format!("Bearer {writer}"),
        basic(&format!("any:{writer}")),
        basic(&format!(":{writer}")).replace("Basic", "bAsIc"),
        // As Segment's clients send it.
        basic(&format!("{writer}:")),
    ];
    for authorization in &good {
        assert_eq!(
            answer(&gateway, with("t", authorization, None)).await.0,
            200,
            "{authorization}"
        );
        assert_eq!(
            answer(&gateway, with("t", authorization, here)).await.0,
            200,
            "{authorization}"
        );
    }
    assert_eq!(
        log.batches.lock().unwrap().iter().filter(|batch| &*batch.tenant == "acme").count(),
        8
    );
    let elsewhere = Some("https://elsewhere.test");
    for (authorization, origin, status, code) in [
        (basic(&format!("{writer}:wrong")), None, 401, 40_101),
        (basic(&writer), None, 401, 40_101),
        ("Basic ***".to_owned(), None, 401, 40_101),
        (format!("Bearer any:{writer}"), None, 401, 40_101),
        (basic(&format!("any:{reader}")), None, 403, 40_301),
        (basic(&format!("any:{writer}")), elsewhere, 403, 40_301),
        // The name in `Host` proves nothing, and the scheme is unknown.
        (basic(&format!("any:{writer}")), Some("http://rollmill.test"), 403, 40_301),
    ] {
        for topic in ["t", "t/partitions/1"] {
            let (got, answered) = answer(&gateway, with(topic, &authorization, origin)).await;
            assert_eq!(
                (got, &answered["error_code"]),
                (status, &json!(code)),
                "{topic} {authorization}: {answered}"
            );
        }
    }
    let mut events = post("application/json", r#"{"metric":"m"}"#);
    events.headers_mut().insert("authorization", good[1].parse().unwrap());
    assert_eq!(call(&gateway, events).await.0, StatusCode::UNAUTHORIZED, "nowhere else");
}
