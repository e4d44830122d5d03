//! Answers of the real binary: they echo the request or refuse it, and they state what is missing.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{Server, agent, wait_until};

fn server(dir: &tempfile::TempDir, env: &[(&str, &str)]) -> Server {
    Server::start(&dir.path().join("data"), env)
}

fn ndjson(lines: impl Iterator<Item = String>) -> Vec<u8> {
    lines.collect::<Vec<_>>().join("\n").into_bytes()
}

fn send(server: &Server, body: &[u8]) {
    let (status, answer) = server.post_as(body, "application/x-ndjson", &[]);
    assert_eq!(status, 202, "{answer}");
}

fn total(answer: &Value) -> u64 {
    answer["series"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|s| s["points"][0]["count"].as_u64())
        .sum()
}

#[test]
fn a_request_of_ten_thousand_names_is_refused_and_costs_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server(&dir, &[("flush.interval", "100ms")]);
    for part in 0..2 {
        send(
            &server,
            &ndjson(
                (0..10_000)
                    .map(|n| format!(r#"{{"metric":"hundred","labels":{{"s":"{part}-{n}"}}}}"#)),
            ),
        );
    }
    server.await_query("/v1/query?metric=hundred&step=all", |answer| total(answer) == 20_000);
    // The flush of so many series takes memory too, and must not fall between the two looks.
    wait_until("it is in the store", || server.accounted()[0] == 20_000);
    let memory = || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("Linux");
        let line =
            status.lines().find(|line| line.starts_with("VmHWM")).expect("a line").to_owned();
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number")
    };
    // The maximum number of labels, none of which exists.
    let most = (0..15).map(|n| format!("n{n}")).collect::<Vec<_>>().join(",");
    let (status, answer) =
        server.get(&format!("/v1/query?metric=hundred&step=all&limit=1&by=s,{most}"));
    assert_eq!((status, total(&answer)), (200, 1));
    let before = memory();
    for by in [format!("s,{}", "a,".repeat(2_000)), format!("s,{}", "a,".repeat(1_999) + "a")] {
        let (status, answer) =
            server.get(&format!("/v1/query?metric=hundred&step=all&limit=1&by={by}"));
        assert_eq!((status, &answer["error"]["code"]), (400, &"by_invalid".into()));
    }
    let many = (0..10_000).map(|n| format!("n{n}")).collect::<Vec<_>>().join(",");
    let (status, answer) =
        server.get(&format!("/v1/query?metric=hundred&step=all&limit=1&by={many}"));
    assert_eq!((status, &answer["error"]["code"]), (400, &"by_invalid".into()));
    assert!(memory() < before + 50_000, "{before} kB before, {} kB after", memory());
}

#[test]
fn what_would_be_ignored_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server(&dir, &[]);
    server.post(
        r#"[{"metric":"r","labels":{"c":"DE","p":"/a"}},
            {"metric":"r","labels":{"c":"FR","p":"/a"}}]"#,
    );
    server.post(r#"{"metric":"city","labels":{"c":"München"}}"#);
    server.await_query("/v1/query?metric=city&step=all", |answer| total(answer) == 1);
    let (de, a) = ("where=%7Bc=%22DE%22%7D", "where=%7Bp=%22/a%22%7D");
    for (path, code) in [
        (format!("/v1/query?metric=r&step=all&{de}&{a}"), "parameter_repeated"),
        ("/v1/query?metric=r&step=all&agg=count&agg=sum".to_owned(), "parameter_repeated"),
        ("/v1/query?metric=r&step=all&step=1h".to_owned(), "parameter_repeated"),
        ("/v1/query?metric=r&metric=s".to_owned(), "parameter_repeated"),
        ("/v1/query?metric=r&where=".to_owned(), "parameter_empty"),
        ("/v1/query?metric=r&agg=count,count".to_owned(), "agg_invalid"),
        ("/v1/query?metric=r&tz=Asia/Kolkata&step=6h".to_owned(), "tz_not_hour_aligned"),
        ("/v1/query?metric=r&where=%7Bc=%22%5Cq%22%7D".to_owned(), "where_invalid"),
        ("/v1/accounting?form=1".to_owned(), "parameter_unknown"),
        ("/v1/labels/c/values?Metric=r".to_owned(), "parameter_unknown"),
        ("/v1/metrics?metric=r".to_owned(), "parameter_unknown"),
        ("/v1/limits?x=1".to_owned(), "parameter_unknown"),
        ("/v1/status?x=1".to_owned(), "parameter_unknown"),
        ("/v1/quarantine?all=yes".to_owned(), "all_invalid"),
        ("/readyz?roles=gateway".to_owned(), "parameter_unknown"),
        ("/metrics?x=1".to_owned(), "parameter_unknown"),
        ("/openapi.json?x=1".to_owned(), "parameter_unknown"),
        ("/?x=1".to_owned(), "parameter_unknown"),
        // München in ISO 8859-1, and invalid percent escapes.
        ("/v1/query?metric=city&where=%7Bc=%22M%FCnchen%22%7D".to_owned(), "query_invalid"),
        ("/v1/query?metric=city&where=%7Bc=%22100%%22%7D".to_owned(), "query_invalid"),
        ("/v1/query?metric=r%+0".to_owned(), "query_invalid"),
        ("/v1/metrics?prefix=%".to_owned(), "query_invalid"),
        // No event can have such names.
        ("/v1/query?metric=page+view".to_owned(), "metric_invalid"),
        ("/v1/labels/c/values?metric=1st".to_owned(), "metric_invalid"),
        ("/v1/labels/a%2Fb/values".to_owned(), "label_invalid"),
    ] {
        let (status, answer) = server.get(&path);
        assert_eq!(
            (status, answer["error"]["code"].as_str()),
            (400, Some(code)),
            "{path}: {answer}"
        );
    }
    let (status, books) = server.get("/v1/accounting?from=1767225600000");
    assert_eq!(status, 200, "{books}");
    // The JSON escapes that programs write.
    let (status, answer) =
        server.get("/v1/query?metric=city&step=all&where=%7Bc=%22M%5Cu00fcnchen%22%7D");
    assert_eq!((status, total(&answer)), (200, 1), "{answer}");
}

#[test]
fn after_a_restart_no_answer_that_is_complete_shows_less_than_before() {
    const EVENTS: u64 = 300_000;
    let dir = tempfile::tempdir().expect("a directory");
    // Nothing is in the store when the process dies, so the whole log has to be applied again.
    let env = [("flush.interval", "1h"), ("shards.count", "4")];
    let question = "/v1/query?metric=m&step=all&by=s";
    let started = server(&dir, &env);
    for part in 0..EVENTS / 10_000 {
        send(
            &started,
            &ndjson((0..10_000).map(|n| {
                format!(r#"{{"metric":"m","user":"u{part}-{n}","labels":{{"s":"{}"}}}}"#, n % 50)
            })),
        );
    }
    started.await_query(question, |answer| total(answer) == EVENTS);
    started.kill();
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    // A fast machine may have applied everything before the first query, so several starts are
    // tried.
    for _ in 0..8 {
        answers_after_a_start(&dir, &env, question, EVENTS, &mut reasons);
        if reasons.contains_key("recovering") {
            return;
        }
    }
    panic!("this test should have met a shard on its way: {reasons:?}");
}

/// Queries from the start until an answer is complete. Every complete answer must show everything.
fn answers_after_a_start(
    dir: &tempfile::TempDir,
    env: &[(&str, &str)],
    question: &str,
    all: u64,
    reasons: &mut BTreeMap<String, u64>,
) {
    let restarted = server(dir, env);
    wait_until("a complete answer", || {
        let (status, answer) = restarted.get(question);
        if status != 200 {
            return false;
        }
        for missing in answer["completeness"]["missing"].as_array().into_iter().flatten() {
            *reasons
                .entry(missing["reason"].as_str().expect("a reason").to_owned())
                .or_default() += 1;
        }
        let partial = answer["completeness"]["partial"] == true;
        assert!(partial || total(&answer) == all, "it says that this is all: {answer}");
        !partial
    });
    restarted.kill();
}

#[test]
fn a_new_metric_is_in_the_catalogue_as_soon_as_in_queries() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server(&dir, &[("flush.interval", "1h")]);
    server.post(
        r#"[{"metric":"fresh","labels":{"page":"/a","country":"DE"}},
            {"metric":"fresh","labels":{"page":"/b"}}]"#,
    );
    server.await_query("/v1/query?metric=fresh&step=all", |answer| total(answer) == 2);
    let (_, answer) = server.get("/v1/metrics");
    let fresh = &answer["metrics"][0];
    assert_eq!((&fresh["metric"], &fresh["series"]), (&"fresh".into(), &2.into()), "{answer}");
    assert_eq!(fresh["labels"], serde_json::json!(["country", "page"]));
    assert!(fresh["first"].is_string() && fresh["first"] == fresh["last"], "{answer}");
    let (_, answer) = server.get("/v1/labels/page/values?metric=fresh");
    assert_eq!(answer["values"], serde_json::json!(["/a", "/b"]));
    assert_eq!(
        server.get("/v1/labels/page/values?metric=other").1["values"],
        serde_json::json!([])
    );
}

/// Events with the ids in a range.
fn ids(range: std::ops::Range<u32>) -> Vec<u8> {
    ndjson(range.map(|n| format!(r#"{{"metric":"ids","id":"{n}"}}"#)))
}

fn metric(server: &Server, name: &str) -> f64 {
    let (_, text) = server.get("/metrics");
    let text = text.as_str().expect("text").to_owned();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")))
        .unwrap_or_else(|| panic!("no {name}"));
    line.split(' ').nth(1).and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn ids_that_are_forgotten_early_are_said_and_a_new_limit_decides_from_its_offset_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let few = [("shards.count", "1"), ("dedup.max_ids", "1000"), ("flush.interval", "300ms")];
    let question = "/v1/query?metric=ids&step=all";
    let count = |server: &Server, expected: u64| {
        server.await_query(question, |answer| total(answer) == expected)
    };
    let first = Server::start(&data, &few);
    send(&first, &ids(0..1000));
    send(&first, &ids(0..1000));
    count(&first, 1000);
    let (_, limits) = first.get("/v1/limits");
    assert_eq!(
        (
            &limits["dedup"]["effective_horizon_ms"],
            &limits["dedup"]["nodes"][0]["effective_horizon_ms"]
        ),
        (&3_600_000.into(), &3_600_000.into()),
        "{limits}"
    );
    assert_eq!(metric(&first, "rollmill_dedup_forgotten_total"), 0.0);
    // One more id evicts the oldest.
    send(&first, &ids(1000..1001));
    send(&first, &ids(0..1));
    count(&first, 1002);
    let (_, limits) = first.get("/v1/limits");
    let effective = limits["dedup"]["effective_horizon_ms"].as_i64().expect("a number");
    assert!(effective < 3_600_000, "{limits}");
    wait_until("it is counted", || metric(&first, "rollmill_dedup_forgotten_total") == 2.0);
    assert!(metric(&first, "rollmill_dedup_horizon_seconds") < 3_600.0);
    let log = || std::fs::read_to_string(data.with_extension("server.log")).expect("a log");
    wait_until("it is said", || log().contains("dedup.max_ids"));
    assert_eq!(first.stop(), Some(0));

    // The limit is now large enough for all ids: those forgotten before stay forgotten, and no more
    // are.
    let many = Server::start(&data, &[("shards.count", "1"), ("flush.interval", "300ms")]);
    send(&many, &ids(0..3000));
    // Ids 2 to 1000 and id 0 were known under the limit in force when they were appended.
    count(&many, 1002 + 3000 - 1000);
    send(&many, &ids(0..3000));
    send(&many, &ids(3000..3001));
    count(&many, 1002 + 3000 - 1000 + 1);
    assert_eq!(many.stop(), Some(0));
    // Folding the records again applies the de-duplication rules of their time, whatever the
    // configuration says now.
    let verified = Server::cli(&["verify", "--data", &data.display().to_string()]);
    let text = String::from_utf8_lossy(&verified.stdout).into_owned()
        + &String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{text}");
}

#[test]
fn every_number_of_the_configuration_is_a_limit_that_is_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server(&dir, &[("query.max_points", "777")]);
    let (_, limits) = server.get("/v1/limits");
    let shown = limits["config"].as_object().expect("an object");
    let is_number = |kind| {
        !matches!(kind, rollmill::config::ValueKind::Text | rollmill::config::ValueKind::Bool)
    };
    let numbers = rollmill::config::KEYS.iter().filter(|key| is_number(key.kind));
    let missing: Vec<&str> =
        numbers.map(|key| key.name).filter(|name| !shown.contains_key(*name)).collect();
    assert_eq!((missing, shown["query.max_points"].as_u64()), (vec![], Some(777)));
    assert!(!limits.to_string().contains("store.url"), "no text is among them: some are secret");
}

/// `9999-12-31T23:59:59Z` means "no end" to many. It is a time, and too far away for an event.
#[test]
fn the_last_time_of_the_calendar_is_too_far_for_events_and_an_end_for_queries() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server(&dir, &[]);
    send(&server, br#"{"metric":"m","id":"now"}"#);
    let event = |time: &str| format!(r#"{{"metric":"m","timestamp":{time}}}"#);
    for (time, code) in [
        (r#""9999-12-31T23:59:59Z""#, "timestamp_in_future"),
        ("253402300799000", "timestamp_in_future"),
        ("99999999999999999999999", "timestamp_in_future"),
        (r#""0000-01-01T00:00:00+23:59""#, "timestamp_too_old"),
        ("-99999999999999999999999", "timestamp_too_old"),
    ] {
        let record = format!(r#"{{"records":[{{"value":{}}}]}}"#, event(time));
        let mut request = agent().post(format!("{}/topics/m", server.url));
        request = request.header("content-type", "application/vnd.kafka.json.v2+json");
        let mut proxied = request.send(record.as_bytes()).expect("an answer");
        let proxied = proxied.body_mut().read_to_string().expect("a text");
        assert!(proxied.contains(code), "{time}: {proxied}");
        for kind in ["application/json", "application/x-ndjson"] {
            let (status, answer) = server.post_as(event(time).as_bytes(), kind, &[]);
            assert_eq!((status, &answer["errors"][0]["code"]), (422, &code.into()), "{time}");
        }
        let file = dir.path().join("far.ndjson");
        std::fs::write(&file, event(time)).expect("written");
        let file = file.display().to_string();
        let output = Server::cli(&["send", "--time-unit", "ms", "--url", &server.url, &file]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(code), "{time}: {said}");
    }
    let range = "from=2020-01-01T00:00:00Z&to=9999-12-31T23:59:59Z";
    let answer = server.await_everything(&format!("/v1/query?metric=m&step=all&{range}"));
    assert_eq!((total(&answer), &answer["to"]), (1, &"9999-01-01T00:00:00Z".into()), "{answer}");
    for (to, hint) in [("253402473600000", "milliseconds"), ("10000-01-01T00:00:00Z", "such as")] {
        let (status, answer) = server.get(&format!("/v1/query?metric=m&step=all&to={to}"));
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(hint), "{to}: {answer}");
    }
    assert_eq!(server.get("/v1/accounting?to=9999-12-31T23:59:59Z").0, 200);
    for command in [&["query", "m", "--step", "all"][..], &["accounting"]] {
        for to in ["9999-12-31", "9999-12-31T23:59:59Z"] {
            let output = Server::cli(&[command, &["--to", to, "--url", &server.url]].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{command:?} --to {to}: {said}");
        }
    }
}
