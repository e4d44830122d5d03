//! Two tenants on one node: neither ever sees data of the other, through any published path or
//! WebSocket.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{PATIENCE, Server, agent};

const CANARY: &str = "canary";

fn key(file: &Path, tenant: &str) -> String {
    let file = file.display().to_string();
    let output = Server::cli(&[
        "keys",
        "add",
        "--tenant",
        tenant,
        "--scopes",
        "write,read,admin",
        "--file",
        &file,
    ]);
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// An answer, its headers included in the text.
fn ask(server: &Server, method: &str, path: &str, key: &str, body: &str) -> (u16, String) {
    let request =
        ureq::http::Request::builder().method(method).uri(format!("{}{path}", server.url));
    let request = request
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json");
    // Headers that a naive server might take for the tenant.
    let request = request
        .header("x-tenant", "tenant_a")
        .header("x-scope-orgid", "tenant_a")
        .header("cookie", "tenant=tenant_a");
    let answer = match method {
        "GET" => agent().run(request.body(()).expect("a request")),
        _ => agent().run(request.body(body.to_owned()).expect("a request")),
    };
    let mut answer = answer.expect("an answer");
    let headers = format!("{:?}", answer.headers());
    let text = answer.body_mut().with_config().limit(64 << 20).read_to_string().expect("text");
    (answer.status().as_u16(), format!("{text}\n{headers}"))
}

/// Every published operation, with parameters that try to reach the other tenant's data.
fn attempts() -> Vec<(String, String, String)> {
    let interface: Value =
        serde_json::from_str(include_str!("../../src/gateway/openapi.json")).expect("JSON");
    let range = "from=1767225600000&to=1767312000000";
    let mut found = Vec::new();
    for (path, methods) in interface["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            let path = path.replace("{name}", "page").replace("{page}", "api.md");
            // Most routes refuse unknown parameters, so each is also requested without any.
            found.push((
                method.to_uppercase(),
                path.clone(),
                r#"{"shard":0,"offset":0,"index":0}"#.to_owned(),
            ));
            for metric in ["canary_metric", "shared", "tenant_a/shared", "*"] {
                for extra in [
                    "",
                    "&tenant=tenant_a",
                    "&by=page,canary_label",
                    "&where={page=~\".*\"}",
                    "&all=true&step=all",
                ] {
                    let extra = extra.replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
                    for range in [range, ""] {
                        let body = r#"{"shard":0,"offset":0,"index":0}"#;
                        found.push((
                            method.to_uppercase(),
                            format!("{path}?metric={metric}&{range}{extra}"),
                            body.to_owned(),
                        ));
                    }
                }
            }
        }
    }
    assert!(found.len() > 500);
    found
}

fn events_of_a(n: usize) -> String {
    let own = r#"{"metric":"canary_metric","timestamp":1767225600000,
        "labels":{"canary_label":"canary_value"},"user":"canary_user",
        "properties":"canary_property","id":"#;
    let shared = r#"{"metric":"shared","timestamp":1767225600000,"value":31415926535,
        "labels":{"page":"canary_page"},"user":"canary_user","id":"#;
    let now = r#"{"metric":"shared","labels":{"page":"canary_now"}}"#;
    format!(r#"[{own}"canary_{n}"}},{shared}"canary_s{n}"}},{now}]"#)
}

#[test]
fn canaries_of_one_tenant_never_sing_for_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, file) = (dir.path().join("data"), dir.path().join("keys.toml"));
    let (a, b) = (key(&file, "tenant_a"), key(&file, "tenant_b"));
    let settings = [
        ("auth.keys_file", &*file.display().to_string()),
        ("flush.interval", "200ms"),
        ("shards.count", "4"),
    ];
    let server = Server::start(&data, &settings);
    assert_eq!(ask(&server, "POST", "/v1/events", &a, &events_of_a(0)).0, 202);
    let of_b = r#"[
        {"metric":"shared","timestamp":1767225600000,"value":1,"labels":{"page":"of_b"}},
        {"metric":"shared","labels":{"page":"of_b"}}
    ]"#;
    assert_eq!(ask(&server, "POST", "/v1/events", &b, of_b).0, 202);
    let deadline = std::time::Instant::now() + PATIENCE;
    // Waits until catalogue, rollups and live deltas hold both tenants.
    while !(ask(&server, "GET", "/v1/metrics", &a, "").1.contains("canary_metric")
        && ask(&server, "GET", "/v1/metrics", &b, "").1.contains("shared"))
    {
        assert!(std::time::Instant::now() < deadline, "not flushed");
        std::thread::sleep(Duration::from_millis(50));
    }

    let mut singing = BTreeSet::new();
    for (method, path, body) in attempts() {
        // The owner asks first, so that the answer may be in a cache.
        let body = if path.starts_with("/v1/events") {
            r#"{"metric":"shared","labels":{"page":"canary_later"}}"#
        } else {
            &body
        };
        let (_, own) = ask(&server, &method, &path, &a, body);
        if own.contains(CANARY) && own.contains("\"canary_") {
            singing.insert(path.split('?').next().expect("a path").to_owned());
        }
        if path.starts_with("/v1/events") {
            continue;
        }
        let (status, other) = ask(&server, &method, &path, &b, body);
        // An error may echo the requested metric, but nothing that was not in the request.
        let other = other.replace("canary_metric", "").replace("canary_label", "");
        assert!(
            !other.contains(CANARY) && !other.contains("31415926535"),
            "{method} {path}: {status} {other}"
        );
    }
    for path in ["/v1/query", "/v1/metrics", "/v1/labels/page/values"] {
        assert!(
            singing.contains(path),
            "{path} shows its owner no canary, so this test would see nothing: {singing:?}"
        );
    }

    let absent = |metric: &str| {
        let (status, answer) = ask(
            &server,
            "GET",
            &format!("/v1/query?metric={metric}&from=1767225600000&to=1767312000000"),
            &b,
            "",
        );
        let answer: Value =
            serde_json::from_str(answer.lines().next().expect("a line")).expect("JSON");
        (status, answer["series"].clone(), answer["error"]["code"].clone())
    };
    assert_eq!(
        absent("canary_metric"),
        absent("never_was"),
        "another's metric answers as one that never was"
    );
    the_books_hold_two_events(&server, &b);
    the_websocket_keeps_them_apart(&server, &a, &b);
}

/// Waits until everything is flushed: before that, the metrics of both tenants are already listed
/// from what the shards hold, and the books say `pending`.
fn the_books_hold_two_events(server: &Server, key: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let (_, text) = ask(server, "GET", "/v1/accounting", key, "");
        let accounted: Value =
            serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        let sum = |column: &str| -> u64 {
            let hours = accounted["hours"].as_array().into_iter().flatten();
            hours.filter_map(|hour| hour[column].as_u64()).sum()
        };
        assert_eq!(sum("accepted"), 2, "one tenant's books hold its own two events: {accounted}");
        if sum("aggregated") == 2 {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "not flushed: {accounted}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn the_websocket_keeps_them_apart(server: &Server, a: &str, b: &str) {
    let connect = async |key: &str| {
        let mut request = format!("{}/v1/ws", server.url.replace("http", "ws"))
            .into_client_request()
            .expect("a request");
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {key}").parse().expect("a header"));
        tokio_tungstenite::connect_async(request).await.expect("connected").0
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut owner, mut other) = (connect(a).await, connect(b).await);
        for (name, query) in [
            ("q1", r#"{"metric":"canary_metric","from":"1767225600000","to":"1767312000000"}"#),
            (
                "q2",
                r#"{"metric":"shared","by":"page","from":"1767225600000","to":"4102444800000",
                    "step":"1d"}"#,
            ),
            ("q3", r#"{"metric":"shared","by":"page","tenant":"tenant_a"}"#),
        ] {
            for ws in [&mut owner, &mut other] {
                let subscribe = format!(r#"{{"subscribe":"{name}","query":{query}}}"#);
                ws.send(Message::text(subscribe)).await.expect("sent");
            }
        }
        let (mut canary_seen, mut answers) = (false, 0);
        // Long enough for the other tenant to receive several answers while the owner's canaries
        // are live.
        let begun = std::time::Instant::now();
        let mut pause = tokio::time::interval(Duration::from_millis(100));
        for n in 1.. {
            if canary_seen && answers > 2 && begun.elapsed() > Duration::from_secs(4) {
                break;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "the owner saw its canaries: {canary_seen}; the other had {answers} answers"
            );
            let events = events_of_a(n);
            let batch = format!(r#"{{"seq":{n},"events":{events}}}"#);
            owner.send(Message::text(batch)).await.expect("sent");
            tokio::select! {
                _ = pause.tick() => {}
                message = owner.next() => {
                    let text = message.expect("open").expect("a message").to_string();
                    canary_seen |= text.contains("canary_page");
                }
                message = other.next() => {
                    let text = message.expect("open").expect("a message").to_string();
                    let text = text.replace("canary_metric", "");
                    assert!(!text.contains(CANARY) && !text.contains("31415926535"), "{text}");
                    answers += 1;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}
