//! The basics: an event in, a metric out; restarts; refusals; two processes on one directory.

use crate::support::Server;

fn count(answer: &serde_json::Value) -> u64 {
    let points = answer["series"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|s| s["points"].as_array().into_iter().flatten());
    points.filter_map(|p| p["count"].as_u64()).sum()
}

#[test]
fn an_event_is_counted_once_over_retries_and_restarts() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let event =
        r#"{"metric":"page_view","value":"19.99","labels":{"page":"/home"},"user":"u","id":"a"}"#;
    let server = Server::start(&data, &[]);
    assert_eq!(
        server.post(event),
        (202, serde_json::json!({"accepted": 1, "rejected": 0, "errors": []}))
    );
    server.await_query("/v1/query?metric=page_view", |a| count(a) == 1);
    assert_eq!(server.post(event).0, 202);
    server.kill();

    let server = Server::start(&data, &[]);
    assert_eq!(server.post(event).0, 202);
    server.await_query("/v1/query?metric=page_view", |a| count(a) == 1);
    assert_eq!(server.stop(), Some(0));

    let server = Server::start(&data, &[]);
    assert_eq!(server.post(event).0, 202);
    let answer = server
        .await_query("/v1/query?metric=page_view&agg=count,sum,distinct&by=page", |a| {
            count(a) == 1
        });
    let series = &answer["series"][0];
    assert_eq!(series["labels"]["page"], "/home");
    assert_eq!(series["points"][0]["sum"].to_string(), "19.99");
    assert_eq!(series["points"][0]["distinct"], 1);
}

#[test]
fn a_retry_with_an_idempotency_key_counts_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    let send = |server: &Server, key: &str| {
        let body = b"{\"metric\":\"m\"}\n{\"metric\":\"m\"}\n{\"metric\":\"m\",\"id\":\"own\"}";
        assert_eq!(
            server.post_as(body, "application/x-ndjson", &[("idempotency-key", key)]).0,
            202
        );
    };
    send(&server, "K");
    send(&server, "K");
    server.await_query("/v1/query?metric=m&step=all", |a| count(a) == 3);
    server.kill();
    let server = Server::start(&data, &[]);
    send(&server, "K");
    // A different key is a different request, and its two events without their own ids count.
    send(&server, "L");
    assert_eq!(server.post(r#"{"metric":"m","id":"K/0"}"#).0, 202);
    assert_eq!(server.post(r#"{"metric":"m","id":"K/2"}"#).0, 202);
    server.await_query("/v1/query?metric=m&step=all", |a| count(a) == 6);
}

#[test]
fn good_events_are_accepted_beside_bad_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    let (status, answer) =
        server.post(r#"[{"metric":"m"},{"metric":""},{"metric":"m","value":"NaN"}]"#);
    assert_eq!((status, &answer["accepted"], &answer["rejected"]), (202, &1.into(), &2.into()));
    assert_eq!(answer["errors"][0]["index"], 1);
    assert_eq!(answer["errors"][0]["code"], "metric_invalid");
    assert_eq!(answer["errors"][1]["code"], "value_invalid");
    assert_eq!(server.post(r#"{"metric":"m","value":"x"}"#).0, 422);
    assert_eq!(server.post("{").0, 400);
}

#[test]
fn a_second_process_on_the_same_data_refuses_to_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let _server = Server::start(&data, &[]);
    let path = data.display().to_string();
    let output = Server::cli(&["serve", "--listen", "127.0.0.1:0", "--data", &path]);
    assert_ne!(output.status.code(), Some(0));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("lock") && message.contains(&path), "{message}");
}
