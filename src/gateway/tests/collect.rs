//! Collection endpoints: recorded requests of real clients, keys in every place, forged times, and
//! hostile bodies.

mod pages;

use std::io::Write;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::cpu::CpuWatch;
use super::*;
use crate::collect::Mapping;
use crate::gateway::ingest::plain_json_event;
use crate::model::batch::ValidEvent;
use crate::model::series::Series;

/// `@segment/analytics-node` 3.1.0, as it was recorded.
const SEGMENT: &str = r#"{"batch":[{"timestamp":"2025-12-31T23:59:50.000Z","integrations":{},
    "event":"Order Completed","type":"track","properties":{"revenue":19.99,"plan":"pro"},
    "context":{"library":{"name":"@segment/analytics-node","version":"3.1.0"},
    "campaign":{"name":"spring"}},"userId":"u1","messageId":"node-next-1767225590000-a",
    "_metadata":{"nodeVersion":"20.20.2","jsRuntime":"node"}}],
    "writeKey":"KEY","sentAt":"2025-12-31T23:59:59.500Z"}"#;

/// `posthog-node` 5.70.0, as it was recorded.
const POSTHOG: &str = r#"{"api_key":"KEY","batch":[{"distinct_id":"u1","event":"signed up",
    "properties":{"plan":"pro","$lib":"posthog-node","$lib_version":"5.70.0"},"type":"capture",
    "library":"posthog-node","library_version":"5.70.0","timestamp":"2025-12-31T23:59:50.000Z",
    "uuid":"0197a000-0000-7000-8000-000000000001"}],"sent_at":"2025-12-31T23:59:59.500Z"}"#;

/// `ga4mp` 2.0.4, as it was recorded.
const GA4: &str = r#"{"client_id":"1.2","timestamp_micros":1767225590000000,
    "user_properties":{"tier":{"value":"gold"}},"events":[{"name":"login","params":
    {"method":"Google","session_id":"1767225590","engagement_time_msec":0}}]}"#;

const CLOUDEVENT: &str = r#"{"specversion":"1.0","id":"a-1","source":"/orders","type":"order.created",
    "time":"2025-12-31T23:59:50Z","datacontenttype":"application/json","data":{"amount":"7.5"}}"#;

fn to(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

fn with(mut request: Request<Body>, headers: &[(&'static str, &str)]) -> Request<Body> {
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

async fn answer(gateway: &Arc<Gateway>, request: Request<Body>) -> (u16, Value) {
    let (status, body, retry) = call(gateway, request).await;
    assert_eq!(
        retry.is_some(),
        matches!(status.as_u16(), 429 | 503),
        "Retry-After on overload and nowhere else: {body}"
    );
    (status.as_u16(), serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn mapped(text: &str) -> (Arc<Gateway>, Arc<Log>) {
    let log = Arc::new(Log::default());
    let mut deps = deps(Some(log.clone()), Config::defaults(), KeyTable::open());
    deps.mapping = Arc::new(ArcSwap::from_pointee(Mapping::parse(text).unwrap()));
    (Gateway::new(deps), log)
}

/// The events that reached the log, each checked against the bytes that are kept of it.
fn kept(log: &Log) -> Vec<(Series, ValidEvent, Value)> {
    let batches = log.batches.lock().unwrap();
    let all = batches.iter().flat_map(|batch| batch.events.iter().map(move |event| (batch, event)));
    let shown = |(batch, event): (&ValidBatch, &ValidEvent)| {
        let raw = &batch.body[event.raw.clone()];
        let series = Series::from_key(&event.series.key).unwrap();
        let plain = plain_json_event(raw).unwrap();
        assert_eq!((&plain.metric, &plain.user), (&series.metric, &event.user));
        assert_eq!(plain.value, event.value);
        assert_eq!(plain.timestamp.unwrap_or(NOW), event.timestamp);
        let labels: BTreeMap<_, _> = plain.labels.into_iter().collect();
        assert_eq!(labels, series.labels.iter().cloned().collect());
        let whole: Value = serde_json::from_slice(raw).unwrap();
        assert_eq!(whole["id"].as_str(), event.id.as_deref());
        (series, event.clone(), whole)
    };
    all.map(shown).collect()
}

fn labels(series: &Series) -> String {
    let labels: Vec<_> =
        series.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.join(",")
}

#[tokio::test]
async fn recorded_requests_are_taken_by_name_and_kept_whole() {
    let cases: [(&str, &str, &str, u16, Value); 4] = [
        ("/v1/batch", SEGMENT, "application/json", 200, json!({"success": true})),
        ("/batch/", POSTHOG, "application/json", 200, json!({"status": "Ok"})),
        ("/mp/collect?measurement_id=G-1&api_secret=x", GA4, "application/json", 204, json!({})),
        ("/v1/cloudevents", CLOUDEVENT, "application/cloudevents+json", 202, json!({})),
    ];
    let expected = [
        ("Order_Completed", "event=Order Completed", Some("u1"), Some("node-next-1767225590000-a")),
        ("signed_up", "event=signed up", Some("u1"), Some("0197a000-0000-7000-8000-000000000001")),
        ("login", "", Some("1.2"), None),
        ("order.created", "", None, Some("/orders a-1")),
    ];
    for ((path, body, kind, status, shape), (metric, label, user, id)) in
        cases.into_iter().zip(expected)
    {
        let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
        let request = with(to(path, body), &[("content-type", kind)]);
        let (got, answered) = answer(&gateway, request).await;
        assert_eq!(got, status, "{path}: {answered}");
        for (name, value) in shape.as_object().unwrap() {
            assert_eq!(&answered[name], value, "{path}: {answered}");
        }
        let kept = kept(&log);
        let (series, event, whole) = &kept[0];
        assert_eq!((series.metric.as_str(), labels(series).as_str()), (metric, label));
        assert_eq!(event.user.as_deref(), user);
        if id.is_some() {
            assert_eq!(event.id.as_deref(), id);
        }
        assert_eq!(event.timestamp, NOW - 10_000, "{path}");
        let sent: Value = serde_json::from_str(body).unwrap();
        let sent = sent.get("batch").or(sent.get("events")).map_or(&sent, |list| &list[0]);
        for (name, value) in sent.as_object().unwrap() {
            assert_eq!(&whole["properties"][name], value, "{path}: {name}");
        }
    }
}

#[tokio::test]
async fn the_mapping_says_what_becomes_metric_label_value_and_user() {
    let (gateway, log) = mapped(
        r#"
        [[map]]
        source = "segment"
        event = "Order Completed"
        metric = "orders"
        value = "/properties/revenue"
        labels = { plan = "/properties/plan", campaign = "/context/campaign/name" }
        [[map]]
        event = "signed up"
        metric = "signups"
        user = "/properties/$lib"
        labels = { plan = "/properties/plan" }
        [[map]]
        event = "login"
        labels = { method = "/params/method", tier = "/user_properties/tier/value" }
        [[map]]
        source = "cloudevents"
        event = "order.*"
        metric = "order_events"
        value = "/data/amount"
        labels = { type = "/type" }
        "#,
    );
    for (path, body, kind) in [
        ("/v1/batch", SEGMENT, "application/json"),
        ("/batch/", POSTHOG, "application/json"),
        ("/mp/collect?api_secret=x", GA4, "application/json"),
        ("/v1/cloudevents", CLOUDEVENT, "application/cloudevents+json"),
    ] {
        let (status, answered) =
            answer(&gateway, with(to(path, body), &[("content-type", kind)])).await;
        assert!(status < 300, "{path}: {status} {answered}");
    }
    let kept = kept(&log);
    let shown: Vec<_> = kept
        .iter()
        .map(|(series, event, _)| {
            let value = event.value.map(|value| value.to_string()).unwrap_or_default();
            (series.metric.clone(), labels(series), value, event.user.clone().unwrap_or_default())
        })
        .collect();
    let expected = [
        ("orders", "campaign=spring,plan=pro", "19.99", "u1"),
        ("signups", "plan=pro", "1", "posthog-node"),
        ("login", "method=Google,tier=gold", "1", "1.2"),
        ("order_events", "type=order.created", "7.5", ""),
    ];
    let owned = |(m, l, v, u): (&str, &str, &str, &str)| {
        (m.to_owned(), l.to_owned(), v.to_owned(), u.to_owned())
    };
    assert_eq!(shown, expected.map(owned));
}

#[tokio::test]
async fn a_call_of_segment_has_its_kind_in_the_path() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let call = r#"{"userId":7,"event":"x","messageId":"m","traits":{"plan":"pro"}}"#;
    for kind in ["track", "identify", "page", "screen", "group", "alias"] {
        let (status, answered) = answer(&gateway, to(&format!("/v1/{kind}"), call)).await;
        assert_eq!((status, &answered["success"]), (200, &json!(true)), "{kind}: {answered}");
    }
    let metrics: Vec<_> = kept(&log).iter().map(|(series, ..)| series.metric.clone()).collect();
    assert_eq!(metrics, ["x", "identify", "page", "screen", "group", "alias"]);
    assert!(kept(&log).iter().all(|(_, event, _)| event.user.as_deref() == Some("7")));
    // What RudderStack's clients send: another content type, gzip, and their own name of the time.
    let batch = r#"{"batch":[{"type":"track","event":"r","anonymousId":"a","messageId":"r1",
        "originalTimestamp":"2025-12-31T23:59:50.000Z","channel":"server"},
        {"type":"page","anonymousId":"a","context":{"own":1}}],
        "context":{"app":"shop"},"sentAt":"2025-12-31T23:59:59Z"}"#;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(batch.as_bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    let form = ("content-type", "application/x-www-form-urlencoded");
    for headers in [&[form, ("content-encoding", "gzip")][..], &[form][..]] {
        let request = with(to("/v1/import", packed.clone()), headers);
        assert_eq!(answer(&gateway, request).await.1["accepted"], 2);
    }
    let kept = kept(&log);
    let (_, event, whole) = &kept[6];
    assert_eq!(
        (event.timestamp, &whole["properties"]["context"]["app"]),
        (NOW - 10_000, &json!("shop"))
    );
    assert_eq!(kept[7].2["properties"]["context"], json!({"own": 1}), "its own context counts");
}

#[tokio::test]
async fn one_bad_event_spoils_nothing_but_itself() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let large = format!(r#"{{"type":"page","userId":"{}"}}"#, "u".repeat(9_000));
    let calls = [
        r#"{"type":"track","event":"a","userId":"u","messageId":"1"}"#,
        r#"{"type":"track","userId":"u","messageId":"2"}"#,
        r#"{"type":"nonsense","userId":"u","messageId":"3"}"#,
        r#"{"type":"page","messageId":"4"}"#,
        r#"{"type":"page","userId":"u","timestamp":"yesterday","messageId":"5"}"#,
        r#"{"type":"page","userId":"u","timestamp":1,"messageId":"6"}"#,
        r#"{"type":"page","userId":"u","userId":"v","messageId":"7"}"#,
        r#"{"type":"page","userId":"u","properties":{"a":"\ud800"},"messageId":"8"}"#,
        r#"{"type":"page","userId":"u","properties":{"a":nul},"messageId":"9"}"#,
        "7",
        "[]",
        "",
        &large,
        r#"{"type":"page","userId":"u","messageId":"14"}"#,
    ];
    let body = format!(r#"{{"batch":[{}],"writeKey":"x"}}"#, calls.join(","));
    let (status, answered) = answer(&gateway, to("/v1/batch", body)).await;
    assert_eq!((status, &answered["success"]), (200, &json!(true)), "{answered}");
    let errors = answered["errors"].as_array().unwrap();
    let codes: Vec<_> = errors
        .iter()
        .map(|error| (error["index"].as_u64().unwrap(), error["code"].as_str().unwrap()))
        .collect();
    let expected = [
        (1, "metric_invalid"),
        (2, "metric_invalid"),
        (3, "user_invalid"),
        (4, "timestamp_invalid"),
        (5, "timestamp_too_old"),
        (6, "event_unreadable"),
        (7, "event_unreadable"),
        (8, "event_unreadable"),
        (9, "event_unreadable"),
        (10, "event_unreadable"),
        (11, "event_unreadable"),
        (12, "event_too_large"),
    ];
    assert_eq!(codes, expected, "{answered}");
    assert_eq!((&errors[0]["id"], &errors[4]["id"]), (&json!("2"), &json!("6")));
    assert_eq!(kept(&log).len(), 2);
    // Still no status after which a client would drop other events.
    let (status, answered) = answer(&gateway, to("/v1/batch", r#"{"batch":[1]}"#)).await;
    assert_eq!((status, &answered["success"]), (200, &json!(false)), "{answered}");
    let (status, answered) = answer(&gateway, to("/v1/batch", r#"{"batch":[]}"#)).await;
    assert_eq!((status, &answered["success"]), (200, &json!(true)), "{answered}");
}

#[tokio::test]
async fn a_retry_with_an_old_time_of_sending_is_the_same_event() {
    let clock = ManualClock::at(NOW);
    let log = Arc::new(Log::default());
    let mut deps = deps(Some(log.clone()), Config::defaults(), KeyTable::open());
    deps.clock = clock.clone();
    let gateway = Gateway::new(deps);
    // Just before the hour: the usual correction of skew would move a retry into the next one.
    let body = r#"{"batch":[{"type":"track","event":"e","userId":"u","messageId":"m",
        "timestamp":"2025-12-31T23:59:59.000Z"}],"sentAt":"2025-12-31T23:59:59.500Z"}"#;
    for late in [0, 1_500, 9_000, 59_000, 300_000] {
        clock.set(NOW + late);
        assert_eq!(answer(&gateway, to("/v1/batch", body)).await.0, 200);
    }
    let kept = kept(&log);
    let first = &kept[0];
    for (at, (series, event, _)) in kept.iter().enumerate() {
        // What is de-duplicated by: nothing of it depends on the time.
        assert_eq!((series, &event.id), (&first.0, &first.1.id));
        let retried_in_budget = at < 4;
        assert_eq!(event.timestamp == first.1.timestamp, retried_in_budget, "copy {at}");
    }
}

#[tokio::test]
async fn clocks_that_are_wrong_are_corrected_and_forged_ones_harm_nobody() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let body = |sent: &str| {
        format!(
            r#"{{"batch":[{{"type":"page","userId":"u","timestamp":"1970-01-01T00:01:00Z"}}],
            "sentAt":{sent}}}"#
        )
    };
    let (_, answered) = answer(&gateway, to("/v1/batch", body(r#""1970-01-01T00:01:10Z""#))).await;
    assert_eq!(answered["accepted"], 1, "a clock that began in 1970: {answered}");
    assert_eq!(kept(&log)[0].1.timestamp, NOW - 10_000);
    for forged in [
        r#""9999-12-31T23:59:59Z""#,
        r#""0000-01-01T00:00:00Z""#,
        "9223372036854775807",
        "-99999999999999999999999999",
        r#""soon""#,
        "{}",
        "null",
    ] {
        let (status, answered) = answer(&gateway, to("/v1/batch", body(forged))).await;
        assert_eq!((status, &answered["rejected"]), (200, &json!(1)), "{forged}: {answered}");
    }
    assert_eq!(kept(&log).len(), 1);
    // PostHog names the time of sending in a header, for each attempt anew.
    let event = r#"{"batch":[{"event":"e","distinct_id":"u","uuid":"1",
        "timestamp":"2026-01-01T05:00:00Z"},{"event":"e","distinct_id":"u","uuid":"2",
        "timestamp":"2025-12-31T23:00:00Z","options":{"disable_skew_correction":true}}]}"#;
    let sent = [("posthog-request-timestamp", "2026-01-01T05:00:10Z")];
    let (status, answered) =
        answer(&gateway, with(to("/i/v1/analytics/events", event), &sent)).await;
    let ok = json!({"result": "ok"});
    assert_eq!((status, answered), (200, json!({"results": {"1": ok, "2": ok}})));
    let times: Vec<_> = kept(&log).iter().skip(1).map(|(_, event, _)| event.timestamp).collect();
    assert_eq!(times, [NOW - 10_000, NOW - 3_600_000]);
}

#[tokio::test]
async fn posthog_takes_every_shape_and_says_what_became_of_each() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let event = r#"{"event":"e","properties":{"distinct_id":"u","token":"k"},"offset":5000}"#;
    for (path, body, status) in [
        ("/capture/", event.to_owned(), 200),
        ("/e/?compression=gzip-js&ip=1&_=1767225600000", format!("[{event},{event}]"), 200),
        ("/i/v0/e/?beacon=1", event.to_owned(), 204),
        ("/batch", format!(r#"{{"token":"k","batch":[{event}]}}"#), 200),
    ] {
        let (got, answered) = answer(&gateway, to(path, body)).await;
        assert_eq!(got, status, "{path}: {answered}");
    }
    let kept = kept(&log);
    assert_eq!(kept.len(), 5);
    assert!(kept.iter().all(|(_, event, _)| event.user.as_deref() == Some("u")));
    assert!(kept.iter().all(|(_, event, _)| event.timestamp == NOW - 5_000));
    let batch = r#"{"batch":[{"event":"e","uuid":"good","distinct_id":"u"},
        {"uuid":"bad","distinct_id":"u"},{"event":"e","uuid":"broken","x":nul}]}"#;
    let (status, answered) = answer(&gateway, to("/i/v1/analytics/events", batch)).await;
    let results = &answered["results"];
    assert_eq!((status, &results["good"]), (200, &json!({"result": "ok"})), "{answered}");
    for (uuid, why) in [("bad", "metric_invalid"), ("broken", "event_unreadable")] {
        assert_eq!(results[uuid]["result"], "drop", "{answered}");
        assert!(results[uuid]["details"].as_str().unwrap().starts_with(why), "{answered}");
    }
    for path in ["/flags/?v=2", "/decide/?v=3"] {
        let (status, answered) = answer(&gateway, to(path, r#"{"token":"k"}"#)).await;
        assert_eq!((status, &answered["featureFlags"]), (200, &json!({})), "{path}");
    }
    *log.fails.lock().unwrap() = Some(AppendError::Unknown("broken".to_owned()));
    let (status, answered) = answer(&gateway, to("/i/v1/analytics/events", batch)).await;
    assert_eq!((status, &answered["error"]), (503, &json!("outcome_unknown")), "{answered}");
}

#[tokio::test]
async fn ga4_answers_nothing_and_says_elsewhere_what_is_wrong() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for body in ["", "{", "[]", "{}", r#"{"events":[{}]}"#, r#"{"events":[{"name":"bad name!"}]}"#]
    {
        let (status, answered) = answer(&gateway, to("/mp/collect?api_secret=x", body)).await;
        assert_eq!((status, answered), (204, json!("")), "{body}");
    }
    assert_eq!(kept(&log).len(), 1, "a name that Google refuses counts here");
    let (status, answered) = answer(&gateway, to("/debug/mp/collect?api_secret=x", GA4)).await;
    assert_eq!((status, answered), (200, json!({"validationMessages": []})));
    let bad = r#"{"client_id":"1","events":[{"name":"_x"}]}"#;
    let (_, answered) = answer(&gateway, to("/debug/mp/collect?api_secret=x", bad)).await;
    let message = &answered["validationMessages"][0];
    assert_eq!(
        (&message["validationCode"], &message["fieldPath"]),
        (&json!("NAME_INVALID"), &json!("events"))
    );
    assert_eq!(kept(&log).len(), 1, "to validate is to take nothing");
    // A request that is sent again has the same ids, another one has others.
    let same = |log: &Log, from: usize| {
        let kept = kept(log);
        kept[from].1.id.is_some() && kept[from].1.id == kept[from + 1].1.id
    };
    for _ in 0..2 {
        answer(&gateway, to("/mp/collect?api_secret=x", GA4)).await;
    }
    assert!(same(&log, 1));
    let two = GA4.replace(r#""events":["#, r#""events":[{"name":"login"},{"name":"login"},"#);
    answer(&gateway, to("/mp/collect?api_secret=x", two)).await;
    assert!(!same(&log, 3), "two events of one request are two");
    *log.fails.lock().unwrap() = Some(AppendError::DiskFull);
    assert_eq!(answer(&gateway, to("/mp/collect?api_secret=x", GA4)).await.0, 503);
}

#[tokio::test]
async fn cloudevents_come_structured_batched_and_binary() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let batch = format!(r#"[{CLOUDEVENT},{{"specversion":"1.0"}}]"#);
    let kind = [("content-type", "application/cloudevents-batch+json; charset=utf-8")];
    let (status, answered) = answer(&gateway, with(to("/v1/cloudevents", batch), &kind)).await;
    assert_eq!((status, &answered["accepted"], &answered["rejected"]), (202, &json!(1), &json!(1)));
    let attributes = [
        ("ce-specversion", "1.0"),
        ("ce-id", "a-1"),
        ("ce-source", "/orders"),
        ("ce-type", "order.created"),
        ("ce-subject", "caf%C3%A9 %22x%22"),
    ];
    for (kind, data) in [
        ("application/json", r#"{"amount":"7.5"}"#),
        ("text/plain", "a \"text\""),
        ("application/octet-stream", "\u{1}"),
        ("application/json", ""),
    ] {
        let request = with(to("/v1/cloudevents", data), &attributes);
        let request = with(request, &[("content-type", kind)]);
        let (status, answered) = answer(&gateway, request).await;
        assert_eq!(status, 202, "{kind}: {answered}");
    }
    let kept = kept(&log);
    assert!(kept.iter().all(|(_, event, _)| event.id.as_deref() == Some("/orders a-1")));
    assert_eq!(kept[1].2["properties"]["data"], json!({"amount": "7.5"}));
    assert_eq!(kept[1].2["properties"]["subject"], "café \"x\"");
    assert_eq!(kept[2].2["properties"]["data"], "a \"text\"");
    assert_eq!(kept[3].2["properties"]["data_base64"], "AQ==");
    for (data, status) in [("{", 400), (r#"1,"id":"forged""#, 422), ("1}{", 400)] {
        let request = with(to("/v1/cloudevents", data), &attributes);
        assert_eq!(answer(&gateway, request).await.0, status, "{data}");
    }
    assert_eq!(answer(&gateway, to("/v1/cloudevents", CLOUDEVENT)).await.0, 415);
    let escaped = with(to("/v1/cloudevents", "1"), &attributes);
    let escaped = with(escaped, &[("ce-subject", "%zz")]);
    assert_eq!(answer(&gateway, escaped).await.0, 400);
    let old = CLOUDEVENT.replace("1.0", "0.3");
    let kind = [("content-type", "application/cloudevents+json")];
    assert_eq!(answer(&gateway, with(to("/v1/cloudevents", old), &kind)).await.0, 422);
}

fn two_tenants() -> (Arc<Gateway>, Arc<Log>, [String; 4]) {
    let stored = |seed: u8, tenant: &str, scopes: &[Scope]| {
        let (plain, prefix, sha256) = new_key([seed; 24]);
        let key = StoredKey {
            prefix,
            sha256,
            tenant: tenant.into(),
            scopes: scopes.to_vec(),
            expires_ms: None,
        };
        (plain, key)
    };
    let (a, stored_a) = stored(1, "a", &[Scope::Write]);
    let (b, stored_b) = stored(2, "b", &[Scope::Write]);
    let (reader, stored_reader) = stored(3, "a", &[Scope::Read]);
    let (both, stored_both) = stored(4, "a", &[Scope::Write, Scope::Read]);
    let keys = KeysFile { keys: vec![stored_a, stored_b, stored_reader, stored_both] };
    let (gateway, log) = gateway(Config::defaults(), KeyTable::of(keys));
    (gateway, log, [a, b, reader, both])
}

fn tenants(log: &Log) -> Vec<String> {
    log.batches.lock().unwrap().iter().map(|batch| batch.tenant.to_string()).collect()
}

#[tokio::test]
async fn what_is_counted_is_what_is_kept_whatever_is_called_like_the_key() {
    let (gateway, log, [a, ..]) = two_tenants();
    let event = format!(r#"{{"event":"{a}","distinct_id":"{a}","uuid":"{a}","api_key":"{a}"}}"#);
    assert_eq!(answer(&gateway, to("/e/", event)).await.0, 200);
    let batches = log.batches.lock().unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&batches[0].body).unwrap();
    let hidden = format!("{}{}", &a[..11], "*".repeat(40));
    assert_eq!([&kept["metric"], &kept["user"], &kept["id"]], [&json!(a); 3]);
    assert_eq!(kept["properties"]["api_key"], json!(hidden));
    assert_eq!(kept["properties"]["distinct_id"], json!(hidden));
    assert_eq!(batches[0].events[0].id.as_deref(), Some(a.as_str()));
}

#[tokio::test]
async fn a_key_is_taken_where_its_clients_put_it() {
    use base64::Engine;
    let (gateway, log, [a, b, reader, writes_and_reads]) = two_tenants();
    let basic =
        |text: String| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
    let bearer = |key: &str| format!("Bearer {key}");
    let body = |text: &str, key: &str| text.replace("KEY", key);
    let cloud = ("content-type", "application/cloudevents+json");
    let (user_a, password_a) = (basic(format!("{a}:")), basic(format!("any:{a}")));
    for (request, status) in [
        (to("/v1/batch", body(SEGMENT, &a)), 200),
        (with(to("/v1/batch", SEGMENT), &[("authorization", &user_a)]), 200),
        (with(to("/v1/batch", SEGMENT), &[("authorization", &password_a)]), 200),
        (to("/v1/track", format!(r#"{{"event":"e","userId":"u","writeKey":"{a}"}}"#)), 200),
        (to("/batch/", body(POSTHOG, &a)), 200),
        (to("/e/", format!(r#"[{{"event":"e","properties":{{"token":"{a}"}}}}]"#)), 200),
        (with(to("/i/v1/analytics/events", POSTHOG), &[("authorization", &bearer(&a))]), 200),
        (to(&format!("/mp/collect?measurement_id=G&api_secret={a}"), GA4), 204),
        (with(to("/v1/cloudevents", CLOUDEVENT), &[("authorization", &bearer(&a)), cloud]), 202),
    ] {
        let path = request.uri().clone();
        let (got, answered) = answer(&gateway, request).await;
        assert_eq!(got, status, "{path}: {answered}");
    }
    assert_eq!(tenants(&log), ["a"; 9]);
    for batch in log.batches.lock().unwrap().iter() {
        let kept = String::from_utf8(batch.body.to_vec()).unwrap();
        assert!(!kept.contains(&a), "a key is kept: {kept}");
    }
    // The header decides, whatever key a body names.
    let foreign = with(to("/v1/batch", body(SEGMENT, &a)), &[("authorization", &bearer(&b))]);
    assert_eq!(answer(&gateway, foreign).await.0, 200);
    assert_eq!(tenants(&log).last().map(String::as_str), Some("b"));
    let both = format!(r#"[{{"event":"e","api_key":"{a}"}},{{"event":"e","api_key":"{b}"}}]"#);
    let inner = body(POSTHOG, &a).replace(r#""distinct_id""#, &format!(r#""api_key":"{b}","x""#));
    for (request, status) in [
        (to("/v1/batch", SEGMENT), 401),
        (to("/v1/batch", "{"), 401),
        (to("/v1/batch", ""), 401),
        (to("/batch/", POSTHOG), 401),
        (to("/e/", both), 401),
        (to("/mp/collect?api_secret=wrong", GA4), 401),
        (to("/mp/collect", GA4), 401),
        (to("/debug/mp/collect", GA4), 401),
        (with(to("/v1/cloudevents", CLOUDEVENT), &[cloud]), 401),
        (with(to("/v1/batch", body(SEGMENT, &a)), &[("authorization", "Bearer wrong")]), 401),
        (to("/v1/batch", body(SEGMENT, &reader)), 403),
        (to(&format!("/mp/collect?api_secret={reader}"), GA4), 403),
        // Proxies log addresses.
        (to(&format!("/mp/collect?api_secret={writes_and_reads}"), GA4), 403),
        (to(&format!("/debug/mp/collect?api_secret={writes_and_reads}"), GA4), 403),
    ] {
        let path = request.uri().clone();
        let (got, answered) = answer(&gateway, request).await;
        assert_eq!(got, status, "{path}: {answered}");
    }
    assert_eq!(log.batches.lock().unwrap().len(), 10, "none of these was taken");
    assert_eq!(answer(&gateway, to("/batch/", inner)).await.0, 200);
    assert_eq!(tenants(&log).last().map(String::as_str), Some("a"), "keys inside do not count");
    assert_eq!(gateway.shares.unidentified.usage("").held, 0);
    assert_eq!(gateway.shares.inflight.usage("a").held, 0);
}

#[tokio::test]
async fn strangers_fill_their_own_memory_alone() {
    let (gateway, _, [a, ..]) = two_tenants();
    let limits = gateway.shares.unidentified.limits();
    let _held = gateway
        .shares
        .unidentified
        .take(&"".into(), limits.per_tenant)
        .expect("all that strangers have");
    let body = SEGMENT.replace("KEY", &a);
    let (status, answered) = answer(&gateway, to("/v1/batch", body)).await;
    assert_eq!(status, 503, "{answered}");
    let named = with(to("/v1/batch", SEGMENT), &[("authorization", &format!("Bearer {a}"))]);
    assert_eq!(answer(&gateway, named).await.0, 200, "who says at once who it is waits for nobody");
}

#[tokio::test]
async fn overload_is_never_an_answer_after_which_clients_drop_events() {
    let config = Config::defaults().with(|c| {
        c.tenants.max_events_per_second = 1;
        c.tenants.burst = 1;
    });
    let (gateway, log) = gateway(config, KeyTable::open());
    let requests = || {
        [
            to("/v1/batch", SEGMENT),
            to("/batch/", POSTHOG),
            to("/i/v1/analytics/events", POSTHOG),
            to("/mp/collect?api_secret=x", GA4),
            with(
                to("/v1/cloudevents", CLOUDEVENT),
                &[("content-type", "application/cloudevents+json")],
            ),
        ]
    };
    *log.fails.lock().unwrap() = Some(AppendError::Overloaded { waiting_bytes: 1, limit: 1 });
    for request in requests() {
        // What could not be kept costs nothing of the rate.
        assert_eq!(answer(&gateway, request).await.0, 503);
    }
    *log.fails.lock().unwrap() = None;
    assert_eq!(answer(&gateway, to("/v1/batch", SEGMENT)).await.0, 200);
    // PostHog's client for browsers drops what was answered 429.
    for (request, status) in requests().into_iter().zip([429, 503, 429, 429, 429]) {
        assert_eq!(answer(&gateway, request).await.0, status);
    }
}

#[tokio::test]
async fn huge_trees_and_lists_are_refused_at_once() {
    let (gateway, log) = gateway(
        Config::defaults().with(|c| c.accept.max_event_bytes = ByteSize::of(32 << 20)),
        KeyTable::open(),
    );
    let track = |properties: &str| {
        format!(
            r#"{{"batch":[{{"type":"track","event":"e","userId":"u","properties":{properties}}}]}}"#
        )
    };
    let keys: String = (0..1_000_000).map(|n| format!(r#""k{n}":"{n}","#)).collect();
    let deep = format!("{}1{}", "[".repeat(500_000), "]".repeat(500_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(500_000), "}".repeat(500_000));
    let many = format!(r#"{{"batch":[{}1]}}"#, "1,".repeat(10_000));
    let repeated = format!(r#"{{{}"batch":[]}}"#, r#""sentAt":1,"#.repeat(500_000));
    let names = format!(r#"{{{keys}"batch":[]}}"#);
    for (what, path, body, status, says) in [
        (
            "a million properties",
            "/v1/batch",
            track(&format!(r#"{{{keys}"z":0}}"#)),
            200,
            "\"accepted\":1",
        ),
        ("deep arrays", "/v1/batch", track(&deep), 200, "event_unreadable"),
        ("deep objects", "/v1/batch", track(&objects), 200, "event_unreadable"),
        ("too many calls", "/v1/batch", many.clone(), 413, "accept.max_events"),
        ("too many events", "/batch/", many.clone(), 413, "accept.max_events"),
        (
            "too many events in an array",
            "/e/",
            format!("[{}1]", "1,".repeat(10_000)),
            413,
            "accept.max_events",
        ),
        ("one name again and again", "/v1/batch", repeated, 400, "twice"),
        ("a million names", "/v1/batch", names, 200, "\"accepted\":0"),
        ("brackets", "/v1/batch", "[".repeat(1_000_000), 400, "a body is an object"),
        ("braces", "/v1/batch", "{".repeat(1_000_000), 400, "broken JSON"),
        (
            "deep context",
            "/v1/batch",
            format!(r#"{{"batch":[],"context":{deep}}}"#),
            400,
            "context",
        ),
    ] {
        let watch = CpuWatch::start();
        let (got, answered) = answer(&gateway, to(path, body)).await;
        assert!(watch.elapsed() < Duration::from_secs(60), "{what} took {:?}", watch.elapsed());
        let text = answered.to_string();
        assert!(got == status && text.contains(says), "{what}: {got} {text}");
        assert!(text.len() < 1_000, "{what}: the answer quotes too much");
    }
    assert_eq!(kept(&log).len(), 1);
}

#[tokio::test]
async fn what_a_request_says_once_does_not_multiply_without_bound() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let event = r#"{"name":"e"},"#.repeat(9_999);
    let context = "x".repeat(9_000);
    let body = format!(r#"{{"client_id":"c","user_agent":"{context}","events":[{event}{{}}]}}"#);
    assert_eq!(answer(&gateway, to("/mp/collect?api_secret=x", body)).await.0, 204);
    assert!(kept(&log).is_empty(), "with what is said of all, each is too large");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn noise_is_refused_without_harm(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0usize..400,
        at in 0usize..400,
        byte in any::<u8>(),
        which in 0usize..5,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
            let (path, good) = [
                ("/v1/batch", SEGMENT),
                ("/batch/", POSTHOG),
                ("/i/v1/analytics/events", POSTHOG),
                ("/mp/collect?api_secret=x", GA4),
                ("/v1/cloudevents", CLOUDEVENT),
            ][which];
            let kind = if which == 4 { "application/cloudevents+json" } else { "application/json" };
            let mut flipped = good.as_bytes().to_vec();
            let place = at % flipped.len();
            flipped[place] = byte;
            let cut = good.as_bytes()[..cut.min(good.len())].to_vec();
            for body in [noise.clone(), cut, flipped] {
                let request = with(to(path, body), &[("content-type", kind)]);
                let (status, answered) = answer(&gateway, request).await;
                assert!(matches!(status, 200 | 202 | 204 | 400 | 413 | 422), "{status} {answered}");
            }
            // Whatever was taken is an event like any other.
            kept(&log);
        });
    }
}
