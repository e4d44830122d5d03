//! The Prometheus HTTP API at the edge: keys, forms, errors, and what reaches the query engine.

use super::*;

fn ask(uri: &str) -> Request<Body> {
    Request::get(uri).body(Body::empty()).unwrap()
}

fn form(uri: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(uri)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body.into())
        .unwrap()
}

fn parsed(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

async fn open(request: Request<Body>) -> (u16, serde_json::Value) {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let (status, text, _) = call(&gateway, request).await;
    (status.as_u16(), parsed(&text))
}

#[tokio::test]
async fn grafana_finds_a_prometheus() {
    let expected = serde_json::json!({
        "status": "success",
        "data": {"resultType": "scalar", "result": [1.5, "2"]},
    });
    assert_eq!(open(ask("/api/v1/query?query=1%2B1&time=1.5")).await, (200, expected.clone()));
    assert_eq!(open(form("/api/v1/query", "query=1%2B1&time=1.5")).await, (200, expected));
    let (status, answer) = open(ask("/api/v1/status/buildinfo")).await;
    assert_eq!((status, &answer["data"]["features"]), (200, &serde_json::json!({})));
    let (_, answer) = open(ask("/api/v1/query_range?query=2&start=0&end=7200&step=3600")).await;
    let points = serde_json::json!([[0, "2"], [3600, "2"], [7200, "2"]]);
    assert_eq!(answer["data"]["result"], serde_json::json!([{"metric": {}, "values": points}]));
}

#[tokio::test]
async fn an_answer_is_cut_in_the_order_of_its_labels_and_a_form_goes_first() {
    let query = "label_replace(vector(2),%22l%22,%22b%22,%22%22,%22%22)+or+\
                 label_replace(vector(1),%22l%22,%22a%22,%22%22,%22%22)";
    let uri = format!("/api/v1/query_range?query={query}&start=0&end=0&step=1h&limit=1");
    let (_, answer) = open(ask(&uri)).await;
    assert_eq!(answer["data"]["result"][0]["metric"]["l"], "a", "{answer}");
    assert_eq!(answer["warnings"][0], "results truncated due to limit");
    let (_, answer) = open(form("/api/v1/query?query=1&time=0", "query=2")).await;
    assert_eq!(answer["data"]["result"], serde_json::json!([0, "2"]));
}

#[tokio::test]
async fn a_metric_that_no_event_can_have_is_not_looked_for() {
    for uri in [
        "/api/v1/series?match[]=%7B__name__=%22\\x00%22%7D",
        "/api/v1/labels?match[]=%7B__name__=%22\\x00%22%7D",
        "/api/v1/label/host/values?match[]=%7B__name__=%22\\x00%22,a=%22b%22%7D",
        "/api/v1/metadata?metric=a+b",
    ] {
        let (status, answer) = open(ask(uri)).await;
        let data = answer["data"].to_string();
        assert_eq!((status, data == "[]" || data == "{}"), (200, true), "{uri}: {answer}");
    }
    let (status, _) = open(ask("/api/v1/metadata?metric=%00")).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn times_within_an_hour_are_read_as_the_hour_before_and_the_answer_says_so() {
    let (_, answer) = open(ask("/api/v1/query?query=vector(1)&time=5000")).await;
    assert_eq!(answer["data"]["result"][0]["value"], serde_json::json!([3600, "1"]));
    assert!(answer["infos"][0].as_str().unwrap().contains("1970-01-01T01:00:00Z"), "{answer}");
    let (_, answer) = open(ask("/api/v1/query?query=vector(1)&time=7200")).await;
    assert_eq!(answer.get("infos"), None);
}

#[tokio::test]
async fn errors_have_the_form_of_prometheus() {
    for (uri, status, kind) in [
        ("/api/v1/query", 400, "bad_data"),
        ("/api/v1/query?query=sum(", 400, "bad_data"),
        ("/api/v1/query?query=1&time=now", 400, "bad_data"),
        ("/api/v1/query?query=%ff", 400, "bad_data"),
        ("/api/v1/query?query=increase(m[5m])", 422, "execution"),
        ("/api/v1/query_range?query=1&start=0&end=1", 400, "bad_data"),
        ("/api/v1/query_range?query=1&start=1&end=0&step=1h", 400, "bad_data"),
        ("/api/v1/query_range?query=1&start=0&end=1&step=15", 422, "execution"),
        ("/api/v1/query_range?query=1&start=0&end=1e11&step=1h", 422, "execution"),
        ("/api/v1/series", 400, "bad_data"),
        ("/api/v1/series?match[]=sum(m)", 400, "bad_data"),
        ("/api/v1/labels?match[]=%7Ba=%22b%22%7D", 400, "bad_data"),
        ("/api/v1/labels?match[]=%7B__name__=~%22(%22%7D", 400, "bad_data"),
        ("/api/v1/labels?limit=-1", 400, "bad_data"),
        ("/api/v1/label/%ff/values", 400, "bad_data"),
    ] {
        let (found, answer) = open(ask(uri)).await;
        assert_eq!((found, &answer["errorType"]), (status, &kind.into()), "{uri}: {answer}");
        assert!(answer["error"].as_str().is_some_and(|text| text.len() < 1_000), "{uri}");
    }
    let (status, answer) = open(form("/api/v1/query", vec![b'x'; 200_000])).await;
    assert_eq!((status, &answer["code"]), (413, &"body_too_large".into()), "{answer}");
    let (status, _) = open(form("/api/v1/query", vec![0xff; 10])).await;
    assert_eq!(status, 400);
    let many = format!("/api/v1/series?{}", "match[]=m&".repeat(33));
    assert_eq!(open(ask(&many)).await.0, 400);
}

#[tokio::test]
async fn a_key_is_a_bearer_token_or_a_password_and_names_the_tenant() {
    let (plain, prefix, sha256) = new_key([7; 24]);
    let key = StoredKey {
        prefix,
        sha256,
        tenant: "acme".into(),
        scopes: vec![Scope::Read],
        expires_ms: None,
    };
    let (gateway, _) = gateway(Config::defaults(), KeyTable::of(KeysFile { keys: vec![key] }));
    let basic = format!("Basic {}", base64(&format!("anyone:{plain}")));
    for authorization in [format!("Bearer {plain}"), basic] {
        for uri in ["/api/v1/query?query=sum+by+(a)+(m)", "/api/v1/label/__name__/values"] {
            let mut request = ask(uri);
            request.headers_mut().insert("authorization", authorization.parse().unwrap());
            let (status, text, _) = call(&gateway, request).await;
            assert_eq!(status, StatusCode::OK, "{text}");
        }
    }
    let mut request = ask("/api/v1/label/__name__/values");
    request.headers_mut().insert("authorization", format!("Bearer {plain}").parse().unwrap());
    let (_, text, _) = call(&gateway, request).await;
    assert_eq!(parsed(&text)["data"], serde_json::json!(["acme"]));
    let (status, text, _) = call(&gateway, ask("/api/v1/query?query=1")).await;
    assert_eq!((status.as_u16(), &parsed(&text)["errorType"]), (401, &"unauthorized".into()));
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn a_question_that_was_ended_is_an_error_and_gives_its_memory_back() {
    let config = Config::defaults().with(|c| c.query.timeout = Duration::from_millis(50));
    let (gateway, _) = gateway(config, KeyTable::open());
    let (status, text, retry) =
        call(&gateway, form("/api/v1/query", "query=sum(until_ended)")).await;
    assert_eq!((status.as_u16(), &parsed(&text)["errorType"]), (503, &"timeout".into()), "{text}");
    assert!(retry.is_some());
}
