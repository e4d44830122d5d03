//! Requests of SDKs in browsers: bodies that need no preflight, and the calls beside events.

use std::collections::BTreeSet;

use super::*;

/// `@segment/analytics-next` 1.84.3, as it was recorded, without most of its context.
const SEGMENT_PAGE: &str = r#"{"timestamp":"2025-12-31T23:59:50.000Z","integrations":{},
    "event":"Order Completed","type":"track","properties":{"plan":"pro","revenue":7},
    "context":{"page":{"path":"/"},"library":{"name":"analytics.js","version":"next-1.84.3"}},
    "messageId":"ajs-next-1767225590000-a","writeKey":"KEY","userId":null,"anonymousId":"a-1",
    "sentAt":"2025-12-31T23:59:59.500Z","_metadata":{"bundled":["Segment.io"]}}"#;

/// `posthog-js` 1.449.2, as it was recorded, without most of its properties.
const POSTHOG_PAGE: &str = r#"{"api_key":"KEY","batch":[{"uuid":"0199a000-0000-7000-8000-000000000001",
    "event":"Order Completed","properties":{"plan":"pro","revenue":7,"$lib":"web","token":"KEY",
    "distinct_id":"a-1","$current_url":"http://localhost/"},
    "timestamp":"2025-12-31T23:59:50.000Z"}],"sent_at":"2025-12-31T23:59:59.500Z"}"#;

const PLAIN: (&str, &str) = ("content-type", "text/plain");
const HTML_FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn html_form(json: &str) -> String {
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(json);
    format!("data={}", encoded.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"))
}

#[tokio::test]
async fn bodies_are_read_as_pages_send_them() {
    let (gateway, log, [a, ..]) = two_tenants();
    let (posthog, segment) = (POSTHOG_PAGE.replace("KEY", &a), SEGMENT_PAGE.replace("KEY", &a));
    let batch = format!(r#"{{"writeKey":"{a}","batch":[{segment}],"sentAt":null}}"#);
    for (request, kind) in [
        (to("/e/?ip=0&_=1767225590000&ver=1.449.2&compression=gzip-js", gzip(&posthog)), PLAIN),
        (to("/e/", gzip(&posthog)), PLAIN),
        (to("/i/v0/e/?retry_count=3", posthog.clone()), PLAIN),
        (to("/e/?compression=base64&beacon=1", html_form(&posthog)), HTML_FORM),
        (to("/v1/t", segment), PLAIN),
        (to("/v1/b", batch), PLAIN),
    ] {
        let (path, request) = (request.uri().clone(), with(request, &[kind]));
        let (status, answered) = answer(&gateway, request).await;
        assert!(matches!(status, 200 | 204), "{path}: {status} {answered}");
    }
    let kept = kept(&log);
    assert_eq!(kept.len(), 6);
    for (series, event, whole) in &kept {
        assert_eq!(series.metric, "Order_Completed");
        assert_eq!((event.user.as_deref(), event.timestamp), (Some("a-1"), NOW - 10_000));
        assert_eq!(whole["properties"]["properties"]["plan"], "pro");
    }
    let ids: BTreeSet<_> = kept.iter().map(|(_, event, _)| event.id.clone()).collect();
    assert_eq!(ids.len(), 2, "the same event in another body is the same event");
}

#[tokio::test]
async fn a_form_is_bounded_as_other_bodies_are() {
    let (gateway, log, [a, ..]) = two_tenants();
    let large = html_form(&POSTHOG_PAGE.replace("pro", &"x".repeat(20 << 20)));
    for (body, status, says) in [
        ("data=%7".to_owned(), 400, "percent escape"),
        ("data=no base64!".to_owned(), 400, "neither JSON nor base64"),
        ("data=".to_owned(), 401, "unauthorized"),
        (html_form("{"), 401, "unauthorized"),
        (large, 413, "accept.max_body"),
    ] {
        let (got, answered) = answer(&gateway, with(to("/e/", body), &[HTML_FORM])).await;
        assert!(got == status && answered.to_string().contains(says), "{got} {answered}");
    }
    assert!(log.batches.lock().unwrap().is_empty());
    // The memory that unpacking takes is reserved before: strangers have this much and no more.
    let held = gateway.shares.unidentified.limits().per_tenant - (1 << 20);
    let _held = gateway.shares.unidentified.take(&"".into(), held).expect("nearly all");
    let event = format!(r#"{{"event":"e","api_key":"{a}","x":"{}"}}"#, "x".repeat(300 << 10));
    let plain = answer(&gateway, with(to("/e/", event.clone()), &[PLAIN])).await;
    assert_eq!(plain.0, 200, "{}", plain.1);
    let (status, answered) =
        answer(&gateway, with(to("/e/", html_form(&event)), &[HTML_FORM])).await;
    assert_eq!(status, 503, "{answered}");
}

#[tokio::test]
async fn a_call_has_its_kind_in_the_first_letter_of_the_path() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let call = r#"{"userId":7,"event":"x"}"#;
    for kind in ["t", "i", "p", "s", "g", "a"] {
        let (status, answered) = answer(&gateway, to(&format!("/v1/{kind}"), call)).await;
        assert_eq!((status, &answered["success"]), (200, &json!(true)), "{kind}: {answered}");
    }
    let metrics: Vec<_> = kept(&log).iter().map(|(series, ..)| series.metric.clone()).collect();
    assert_eq!(metrics, ["x", "identify", "page", "screen", "group", "alias"]);
    let own = answer(&gateway, to("/v1/m", r#"{"series":[]}"#)).await;
    assert_eq!(own, (200, json!({"success": true})), "what the client says of itself is no event");
    assert_eq!(kept(&log).len(), 6);
}

#[tokio::test]
async fn a_page_is_told_to_pack_and_that_there_is_nothing_else() {
    let (gateway, ..) = two_tenants();
    let ask = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    let (status, config) = answer(&gateway, ask("/array/any-key/config?ip=0&_=1&ver=1")).await;
    assert_eq!(status, 200);
    assert!(config["supportedCompression"].as_array().unwrap().contains(&json!("gzip-js")));
    for off in ["hasFeatureFlags", "sessionRecording", "surveys", "heatmaps"] {
        assert_eq!(config[off], json!(false), "{off}");
    }
    let (status, script, _) = call(&gateway, ask("/array/any-key/config.js")).await;
    assert_eq!((status.as_u16(), script.as_str()), (200, ""));
    for path in ["/flags/?v=2&ip=0&compression=base64", "/decide/?v=3"] {
        let (status, flags) = answer(&gateway, with(to(path, html_form("{}")), &[HTML_FORM])).await;
        assert_eq!((status, &flags["featureFlags"]), (200, &json!({})), "{path}");
    }
}
