//! One bad event affects nothing but itself, in all five ways that events arrive.

use serde_json::{Value, json};

use super::*;
use crate::telemetry;

const GOOD: &str = r#"{"metric":"good","id":"g"}"#;

/// The expected outcome of a bad event between two good ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Only this event is refused, with this code.
    Alone(&'static str),
    /// Only this event is refused if line feeds separate events. In other formats the end of the
    /// event is unknown, so the request is refused with line and column.
    Endless,
    /// Like `Alone`, with bytes that a WebSocket text message cannot carry.
    NoText(&'static str),
}

const UNREADABLE: Fate = Fate::Alone("event_unreadable");

fn in_properties(bytes: &[u8]) -> Vec<u8> {
    [br#"{"metric":"m","properties":""#, bytes, br#""}"#].concat()
}

/// The 98 cases of fault F10, and some more.
fn kinds() -> Vec<(Vec<u8>, Fate)> {
    let deep =
        |n: usize| format!(r#"{{"metric":"m","properties":{}{}}}"#, "[".repeat(n), "]".repeat(n));
    let nested = |n: usize| {
        format!(r#"{{"metric":"m","properties":{}1{}}}"#, r#"{"a":"#.repeat(n), "}".repeat(n))
    };
    let labels = |n: usize| (0..n).map(|n| format!(r#""l{n}":"v""#)).collect::<Vec<_>>().join(",");
    let mut kinds: Vec<(Vec<u8>, Fate)> = Vec::new();
    let mut add = |fate: Fate, events: &[&str]| {
        kinds.extend(events.iter().map(|event| (event.as_bytes().to_vec(), fate)))
    };
    // An unknown field, no object, a repeated field.
    add(
        UNREADABLE,
        &[
            r#"{"metric":"m","tags":{}}"#,
            r#"{"metric":"m","x":null}"#,
            r#"{"metrc":"m"}"#,
            r#"{"Metric":"m"}"#,
            r#"{"metric":"m","time":"x"}"#,
            r#"{"metric":"m","":1}"#,
            "7",
            "-1.5",
            "\"text\"",
            "null",
            "true",
            "false",
            "[]",
            "[1]",
            r#"[{"metric":"m"}]"#,
            r#"["m"]"#,
            r#"{"metric":"m","metric":"n"}"#,
            r#"{"metric":"m","m\u0065tric":"n"}"#,
            r#"{"metric":"m","id":"1","id":"2"}"#,
            r#"{"metric":"m","value":1,"value":1}"#,
            r#"{"metric":"m","labels":{},"labels":{}}"#,
            r#"{"metric":"m","properties":1,"properties":1}"#,
        ],
    );
    // Properties that are too deep, or that readers of the archive could not decode.
    add(
        UNREADABLE,
        &[&deep(65), &deep(127), &deep(3_000), &nested(65), &nested(127), &nested(1_000)],
    );
    add(
        UNREADABLE,
        &[
            r#"{"metric":"m","\ud800":1}"#,
            r#"{"metric":"m","properties":"\ud800"}"#,
            r#"{"metric":"m","properties":{"a":"\udfff"}}"#,
            r#"{"metric":"m","properties":{"\uD83D":1}}"#,
            r#"{"metric":"m","properties":["\ud83d\ud83d"]}"#,
            r#"{"metric":"m","properties":["\ude00\ud83d"]}"#,
            r#"{"metric":"m","properties":["\ud83d \ude00"]}"#,
        ],
    );
    // Invalid numbers in an event that can be separated.
    for number in [
        "NaN",
        "-NaN",
        "nan",
        "Infinity",
        "-Infinity",
        "inf",
        "01",
        "-01",
        "+1",
        ".5",
        "1.",
        "1e",
        "0x10",
        "1_000",
        "--1",
        "-",
        "1 000",
    ] {
        add(UNREADABLE, &[&format!(r#"{{"metric":"m","value":{number}}}"#)]);
    }
    add(
        UNREADABLE,
        &[r#"{"metric":"m","timestamp":NaN}"#, r#"{"metric":"m","properties":{"a":-Infinity}}"#],
    );
    // Broken JSON between matching brackets.
    add(
        UNREADABLE,
        &[
            r#"{"metric":"m",}"#,
            r#"{,"metric":"m"}"#,
            r#"{"metric":"m",,"id":"1"}"#,
            r#"{"metric":"m" "id":"1"}"#,
            r#"{"metric":"m";"id":"1"}"#,
            "{'metric':'m'}",
            "{metric:\"m\"}",
            "{`metric`:`m`}",
            r#"{"metric" "m"}"#,
            r#"{"metric":}"#,
            r#"{"metric"}"#,
            r#"{"metric"="m"}"#,
            r#"{"metric":"m"/* why */}"#,
            r#"{"metric":"m"} // why"#,
            r#"# {"metric":"m"}"#,
            r#"{"metric":"m"} x"#,
            r#"{"metric":"m"}{"metric":"n"}"#,
            r#"{"metric":"\x"}"#,
            r#"{"metric":"m","properties":"\u12"}"#,
            r#"{"metric":"m","properties":"\u12g4"}"#,
            r#"{"metric":undefined}"#,
            r#"{"metric":"m","properties":True}"#,
            r#"{"metric":"m","properties":[1,]}"#,
            "\u{feff}{\"metric\":\"m\"}",
            "{\u{feff}\"metric\":\"m\"}",
            "{\u{a0}\"metric\":\"m\"}",
            "{\"metric\":\"m\u{1}\"}",
            "{\"metric\":\"m\u{0}\"}",
            "{\"metric\":\"m\"\u{0}}",
            "\u{0}",
            "{\"metric\":\"m\",\"properties\":\"\t\"}",
            "{\"metric\":\"m\"\u{b}}",
            "ok",
        ],
    );
    // Brackets or strings that are not closed.
    add(
        Fate::Endless,
        &[
            r#"{"metric":"m""#,
            r#"{"metric":"m"#,
            r#"{"metric":"m\"}"#,
            r#"{"metric":"#,
            r#"{"metric":"m"}}"#,
            r#"{"metric":"m"}]"#,
            r#"{"metric":"m"]"#,
            r#""metric":"m"}"#,
            r#"{"metric":"m","properties":[}"#,
            r#"{"metric":"m","properties":{]}"#,
            "{",
            "[",
            "}",
            "]",
            "\"",
        ],
    );
    // Events that validation refuses.
    for (code, fields) in [
        ("metric_invalid", r#""value":1"#),
        ("metric_invalid", r#""metric":"""#),
        ("metric_invalid", r#""metric":7"#),
        ("metric_invalid", r#""metric":null"#),
        ("metric_invalid", r#""metric":"9""#),
        ("metric_invalid", r#""metric":"\ud800""#),
        ("metric_invalid", "\"metric\":\"m\u{7f}\""),
        ("labels_invalid", r#""metric":"m","labels":[]"#),
        ("labels_invalid", r#""metric":"m","labels":{"a":1}"#),
        ("labels_invalid", r#""metric":"m","labels":{"a":null}"#),
        ("labels_invalid", r#""metric":"m","labels":{"a":"\ud800"}"#),
        ("labels_invalid", r#""metric":"m","labels":{"a":"1","\u0061":"2"}"#),
        ("labels_invalid", r#""metric":"m","labels":{"a":"","a":""}"#),
        ("labels_invalid", r#""metric":"m","labels":{"9":"1"}"#),
        ("labels_invalid", r#""metric":"m","labels":{"9":""}"#),
        ("labels_invalid", r#""metric":"m","labels":{"__a":"1"}"#),
        ("value_invalid", r#""metric":"m","value":"NaN""#),
        ("value_invalid", r#""metric":"m","value":true"#),
        ("value_invalid", r#""metric":"m","value":{}"#),
        ("value_invalid", r#""metric":"m","value":"""#),
        ("value_out_of_range", r#""metric":"m","value":1e400"#),
        ("timestamp_invalid", r#""metric":"m","timestamp":"yesterday""#),
        ("timestamp_invalid", r#""metric":"m","timestamp":1.5"#),
        ("timestamp_too_old", r#""metric":"m","timestamp":-1"#),
        ("timestamp_in_future", r#""metric":"m","timestamp":4102444800000"#),
        ("id_invalid", r#""metric":"m","id":"""#),
        ("id_invalid", r#""metric":"m","id":7"#),
        ("id_invalid", r#""metric":"m","id":"\ud800""#),
        ("user_invalid", r#""metric":"m","user":7"#),
    ] {
        add(Fate::Alone(code), &[&format!("{{{fields}}}")]);
    }
    add(
        Fate::Alone("labels_invalid"),
        &[&format!(r#"{{"metric":"m","labels":{{{}}}}}"#, labels(17))],
    );
    add(
        Fate::Alone("event_too_large"),
        &[&format!(r#"{{"metric":"m","properties":"{}"}}"#, "x".repeat(9_000)), &deep(100_000)],
    );
    // Bytes that are not UTF-8.
    let none: [&[u8]; 8] = [
        b"\xff",
        b"\xc3",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\x80",
        b"\xe2\x82",
    ];
    kinds.extend(none.iter().map(|bytes| (in_properties(bytes), Fate::NoText("event_unreadable"))));
    kinds.push((b"{\"metric\":\"m\"\xff}".to_vec(), Fate::NoText("event_unreadable")));
    kinds.push((b"\xff\xfe{\0}\0".to_vec(), Fate::NoText("event_unreadable")));
    assert!(kinds.len() >= 98, "{}", kinds.len());
    kinds
}

fn between(open: &str, bad: &[u8], comma: &str, close: &str) -> Vec<u8> {
    [
        open.as_bytes(),
        GOOD.as_bytes(),
        comma.as_bytes(),
        bad,
        comma.as_bytes(),
        GOOD.as_bytes(),
        close.as_bytes(),
    ]
    .concat()
}

fn assert_alone(what: &str, answer: &str, code: &str) {
    let answer: Value = serde_json::from_str(answer).unwrap();
    let error = &answer["errors"][0];
    assert_eq!(
        (&answer["accepted"], &answer["rejected"]),
        (&json!(2), &json!(1)),
        "{what}: {answer}"
    );
    assert_eq!((&error["index"], &error["code"]), (&json!(1), &json!(code)), "{what}: {answer}");
    assert!(
        error["message"].as_str().is_some_and(|m| !m.is_empty() && m.len() < 1_000),
        "{what}: {answer}"
    );
}

#[tokio::test]
async fn in_an_array_and_in_lines() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let rejected =
        telemetry::METRICS.iter().find(|metric| metric.name == telemetry::EVENTS_REJECTED).unwrap();
    let (_, known) = rejected.label.unwrap();
    for (bad, fate) in kinds() {
        let what = String::from_utf8_lossy(&bad[..bad.len().min(200)]).into_owned();
        let (status, answer, _) =
            call(&gateway, post("application/x-ndjson", between("", &bad, "\n", ""))).await;
        let code = match fate {
            Fate::Alone(code) | Fate::NoText(code) => code,
            Fate::Endless => "event_unreadable",
        };
        assert_eq!(status, StatusCode::ACCEPTED, "{what}: {answer}");
        assert_alone(&what, &answer, code);
        assert!(known.contains(&code), "{code} does not stand at zero from the start");
        let (status, answer, _) =
            call(&gateway, post("application/json", between("[", &bad, ",", "]"))).await;
        match fate {
            Fate::Endless => {
                assert_eq!(status, StatusCode::BAD_REQUEST, "{what}: {answer}");
                assert!(
                    answer.contains("body_unreadable") && answer.contains("line 1 column "),
                    "{what}: {answer}"
                );
            }
            Fate::Alone(code) | Fate::NoText(code) => {
                assert_eq!(status, StatusCode::ACCEPTED, "{what}: {answer}");
                assert_alone(&what, &answer, code);
            }
        }
    }
    assert!(log.batches.lock().unwrap().iter().all(|batch| batch.events.len() == 2));
}

#[tokio::test]
async fn in_the_records_of_a_rest_proxy() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for (bad, fate) in kinds() {
        let what = String::from_utf8_lossy(&bad[..bad.len().min(200)]).into_owned();
        if [&br#"{"value":1}"#[..], br#"{"metric":null}"#].contains(&&bad[..]) {
            // The topic is the default metric.
            continue;
        }
        let body = [
            r#"{"records":[{"value":"#.as_bytes(),
            &between("", &bad, r#"},{"value":"#, ""),
            b"}]}",
        ]
        .concat();
        let mut request = Request::post("/topics/good").body(Body::from(body)).unwrap();
        request
            .headers_mut()
            .insert("content-type", "application/vnd.kafka.json.v2+json".parse().unwrap());
        let (status, answer, _) = call(&gateway, request).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        if fate == Fate::Endless {
            assert_eq!(status, StatusCode::BAD_REQUEST, "{what}: {answer}");
            assert!(
                answer["message"].as_str().unwrap().contains("line 1 column "),
                "{what}: {answer}"
            );
            continue;
        }
        let codes: Vec<_> = answer["offsets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["error_code"].as_u64())
            .collect();
        assert_eq!(
            (status, codes),
            (StatusCode::OK, vec![None, Some(50_002), None]),
            "{what}: {answer}"
        );
    }
    assert!(log.batches.lock().unwrap().iter().all(|batch| batch.events.len() == 2));
}

#[tokio::test]
async fn on_a_websocket_which_stays_open() {
    let (address, _stop) = listen(Config::defaults()).await;
    let (mut ws, _) =
        tokio_tungstenite::connect_async(format!("ws://{address}/v1/ws")).await.unwrap();
    for (seq, (bad, fate)) in
        kinds().into_iter().enumerate().filter(|(_, (_, fate))| !matches!(fate, Fate::NoText(_)))
    {
        let what = String::from_utf8_lossy(&bad[..bad.len().min(200)]).into_owned();
        let message =
            [format!(r#"{{"seq":{seq},"events":["#).as_bytes(), &between("", &bad, ",", ""), b"]}"]
                .concat();
        ws.send(Message::text(String::from_utf8(message).unwrap())).await.unwrap();
        let said = ws.next().await.unwrap().unwrap().into_text().unwrap();
        let answer: Value = serde_json::from_str(&said).unwrap();
        match fate {
            Fate::Endless => {
                assert_eq!(
                    (&answer["nack"], &answer["final"]),
                    (&json!(seq), &json!(true)),
                    "{what}: {answer}"
                );
                assert_eq!(answer["error"]["code"], "body_unreadable", "{what}: {answer}");
                assert!(
                    answer["error"]["message"].as_str().unwrap().contains("line 1 column "),
                    "{what}: {answer}"
                );
                assert!(
                    answer.get("retry_after_ms").is_none(),
                    "sending it again would not help: {answer}"
                );
            }
            Fate::Alone(code) | Fate::NoText(code) => {
                assert_eq!(answer["ack"], json!(seq), "{what}: {answer}");
                assert_alone(&what, &said, code);
            }
        }
    }
}

fn packed(event: &Value) -> Vec<u8> {
    rmp_serde::to_vec(event).unwrap()
}

#[tokio::test]
async fn in_messagepack() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let of = |event: Value| packed(&event);
    let with = |field: &[u8], value: &[u8]| [b"\x82\xa6metric\xa1m", field, value].concat();
    let deep = |marker: u8, fill: &[u8], n: usize| {
        let inside: Vec<u8> =
            std::iter::repeat_n([&[marker], fill].concat(), n).flatten().chain([1]).collect();
        with(b"\xaaproperties", &inside)
    };
    let kinds: Vec<(Vec<u8>, &str)> = vec![
        (of(json!({"metric": "m", "tags": {}})), "event_unreadable"),
        (of(json!({"metric": "m", "": 1})), "event_unreadable"),
        (of(json!(7)), "event_unreadable"),
        (of(json!("text")), "event_unreadable"),
        (of(json!(null)), "event_unreadable"),
        (of(json!(true)), "event_unreadable"),
        (of(json!(1.5)), "event_unreadable"),
        (of(json!([1])), "event_unreadable"),
        (vec![0xc4, 1, 7], "event_unreadable"),
        (vec![0xd4, 1, 7], "event_unreadable"),
        (vec![0xc1], "event_unreadable"),
        (with(b"\xa6metric", b"\xa1n"), "event_unreadable"),
        (with(b"\xc4\x02id", b"\xa11"), "event_unreadable"),
        (with(b"\x07", b"\xa11"), "event_unreadable"),
        (with(b"\xc0", b"\xa11"), "event_unreadable"),
        (with(b"\xa2\xff\xfe", b"\xa11"), "event_unreadable"),
        (with(b"\xc1", b"\xa11"), "event_unreadable"),
        (with(b"\xa5value", b"\xc1"), "event_unreadable"),
        (with(b"\xaaproperties", b"\x91\xc1"), "event_unreadable"),
        (with(b"\xaaproperties", b"\xa1\xff"), "event_unreadable"),
        (with(b"\xaaproperties", b"\x81\xa1a\x91\xa2\xc0\x80"), "event_unreadable"),
        (with(b"\xaaproperties", b"\x81\xa3\xed\xa0\x80\x01"), "event_unreadable"),
        (deep(0x91, b"", 65), "event_unreadable"),
        (deep(0x91, b"", 3_000), "event_unreadable"),
        (deep(0x81, b"\x01", 65), "event_unreadable"),
        (deep(0x81, b"\x01", 3_000), "event_unreadable"),
        (deep(0x91, b"", 100_000), "event_too_large"),
        (with(b"\xa5value", &[&[0xcb][..], &f64::NAN.to_be_bytes()].concat()), "value_invalid"),
        (
            with(b"\xa5value", &[&[0xcb][..], &f64::INFINITY.to_be_bytes()].concat()),
            "value_invalid",
        ),
        (with(b"\xa2id", b"\xc4\x011"), "id_invalid"),
        (with(b"\xa4user", b"\xa1\xff"), "user_invalid"),
        (with(b"\xa6labels", b"\x81\xa1a\x01"), "labels_invalid"),
        (with(b"\xa6labels", b"\x81\xa1a\xa1\xff"), "labels_invalid"),
        (with(b"\xa6labels", b"\x82\xa1a\xa0\xa1a\xa11"), "labels_invalid"),
        (with(b"\xa6labels", b"\xc1"), "event_unreadable"),
        (with(b"\xa9timestamp", b"\xd6\xff\0\0\0\0"), "timestamp_invalid"),
    ];
    let good = of(serde_json::from_str(GOOD).unwrap());
    for (bad, code) in kinds {
        let what = format!("{:x?}", &bad[..bad.len().min(40)]);
        let (status, answer, _) =
            call(&gateway, post("application/msgpack", [&[0x93][..], &good, &bad, &good].concat()))
                .await;
        assert_eq!(status, StatusCode::ACCEPTED, "{what}: {answer}");
        assert_alone(&what, &answer, code);
        let (status, answer, _) =
            call(&gateway, post("application/msgpack", [&[0x91][..], &bad].concat())).await;
        assert_eq!((status.as_u16(), answer.contains(code)), (422, true), "{what}: {answer}");
    }
    // Bodies that hold no events, or in which they cannot be separated.
    let whole = [&[0x92][..], &good, &good].concat();
    let more: Vec<Vec<u8>> = vec![
        whole[..whole.len() - 1].to_vec(),
        [&whole[..], &[7]].concat(),
        [&[0x93][..], &good, &[0xdb, 0xff, 0xff, 0xff, 0xff], &good].concat(),
        [&[0x93][..], &good, &[0xdf, 0, 0xff, 0xff, 0xff], &good].concat(),
        vec![],
        vec![7],
        vec![0xc0],
        vec![0xa1, b'x'],
        vec![0xc1],
    ];
    for body in more {
        let (status, answer, _) = call(&gateway, post("application/msgpack", body.clone())).await;
        assert_eq!(
            (status.as_u16(), answer.contains("body_unreadable")),
            (400, true),
            "{body:x?}: {answer}"
        );
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_named_by_its_id_if_that_can() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let large = format!(r#"{{"metric":"m","properties":"{}","id":"x"}}"#, "x".repeat(9_000));
    let cases = [
        (r#"{"id":"x","metric":"m","value":NaN}"#, Some("x")),
        (r#"{"metric":"m","tags":{"id":"no"},"id":"x"}"#, Some("x")),
        (r#"{"metric":"m","id":"\u0078","value":+1}"#, Some("x")),
        (r#"{"id":"x","metric":"m","properties":"\ud800"}"#, Some("x")),
        (&large, Some("x")),
        (r#"{"id":"x","id":"y","metric":"m"}"#, None),
        (r#"{"metric":"m",'a':1,"id":"x"}"#, None),
        (r#"{"id":7,"metric":"m","value":NaN}"#, None),
        (r#"{"id":"","metric":"m","value":NaN}"#, None),
        (r#"["id","x"]"#, None),
    ];
    for (bad, id) in cases {
        for (kind, body) in [
            ("application/json", between("[", bad.as_bytes(), ",", "]")),
            ("application/x-ndjson", between("", bad.as_bytes(), "\n", "\n")),
        ] {
            let (_, answer, _) = call(&gateway, post(kind, body)).await;
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["errors"][0]["id"], json!(id), "{kind} {bad:.60}: {answer}");
        }
    }
    let mut request = post("application/x-ndjson", format!("{GOOD}\nbroken\n"));
    request.headers_mut().insert("idempotency-key", "K".parse().unwrap());
    let (_, answer, _) = call(&gateway, request).await;
    assert!(answer.contains(r#""id":"K/1""#), "the id that it would have had: {answer}");
    for bad in [
        json!({"id": "x", "metric": "m", "tags": 1}),
        json!({"id": "x", "metric": "m", "properties": "x".repeat(9_000)}),
    ] {
        let (_, answer, _) = call(&gateway, post("application/msgpack", packed(&bad))).await;
        assert!(answer.contains(r#""id":"x""#), "{answer}");
    }
    let twice = b"\x83\xa2id\xa1x\xa2id\xa1y\xa6metric\xa1m".to_vec();
    let (_, answer, _) = call(&gateway, post("application/msgpack", twice)).await;
    assert!(answer.contains("event_unreadable") && answer.contains(r#""id":null"#), "{answer}");
}

#[tokio::test]
async fn only_what_is_no_body_is_400_and_names_the_place() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for (body, place) in [
        ("", "empty"),
        (" \n", "empty"),
        ("garbage", "an event, an array"),
        ("7", "an event, an array"),
        ("\"text\"", "an event, an array"),
        ("[", "line 1 column 2"),
        (
            "[\n {\"metric\":\"m\"},\n {\"metric\":\"m\"]",
            "line 3 column 15, in what begins at line 3 column 2",
        ),
        ("[{\"metric\":\"m\"}]\n]", "line 2 column 1"),
        ("{\"metric\":\"m\"", "line 1 column 14"),
        ("{\"metric\":\"m\"}\n{\"metric\":\"m\"}", "line 2 column 1; several events are"),
    ] {
        let (status, answer, _) = send(&gateway, body.to_owned()).await;
        assert_eq!((status.as_u16(), answer.contains(place)), (400, true), "{body}: {answer}");
    }
    for (body, accepted, rejected) in [
        (r#"{"metric":"m","tags":{}}"#, 0, 1),
        (r#"{"metric":"m",}"#, 0, 1),
        ("[7]", 0, 1),
        ("[]", 0, 0),
        ("[,]", 0, 2),
        (r#"[{"metric":"m"},]"#, 1, 1),
        ("\u{feff}{\"metric\":\"m\"}", 1, 0),
        ("\u{feff} [{\"metric\":\"m\"}]", 1, 0),
    ] {
        let (status, answer, _) = send(&gateway, body.to_owned()).await;
        let expected = if accepted == 0 && rejected > 0 { 422 } else { 202 };
        let counts = format!(r#"{{"accepted":{accepted},"rejected":{rejected},"#);
        assert_eq!(
            (status.as_u16(), answer.starts_with(&counts)),
            (expected, true),
            "{body}: {answer}"
        );
    }
    let lines = "\u{feff}{\"metric\":\"m\"}\r\n\r\n \t{\"metric\":\"m\"} \r\n";
    let (status, answer, _) = call(&gateway, post("application/x-ndjson", lines)).await;
    assert_eq!(
        (status.as_u16(), answer.starts_with(r#"{"accepted":2,"rejected":0,"#)),
        (202, true),
        "{answer}"
    );
    let batch = log.batches.lock().unwrap().pop().unwrap();
    assert!(
        batch.events.iter().all(|event| &batch.body[event.raw.clone()] == br#"{"metric":"m"}"#),
        "the event, and no space"
    );
}

#[tokio::test]
async fn what_is_kept_of_an_accepted_event_can_be_decoded() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for properties in [
        r#""\ud83d\ude00""#,
        r#""\\ud800""#,
        r#"{"\u0000":"\"\\"}"#,
        r#"["\\\\","\/"]"#,
        "\"\u{1f600}\"",
    ] {
        let body = format!(r#"{{"metric":"m","properties":{properties}}}"#);
        assert_eq!(send(&gateway, body.clone()).await.0, StatusCode::ACCEPTED, "{body}");
        let batch = log.batches.lock().unwrap().pop().unwrap();
        serde_json::from_slice::<Value>(&batch.body[batch.events[0].raw.clone()]).unwrap();
    }
    let records = r#"{"records":[{"key":"\ud800","value":{}},
        {"key":"k","value":{"properties":"\ud800"}},{"key":"k","value":{}}]}"#;
    let mut request = Request::post("/topics/m").body(Body::from(records)).unwrap();
    request
        .headers_mut()
        .insert("content-type", "application/vnd.kafka.json.v2+json".parse().unwrap());
    let (_, answer, _) = call(&gateway, request).await;
    assert_eq!(answer.matches("lone surrogate").count(), 2, "{answer}");
}

#[tokio::test]
async fn an_empty_label_is_as_good_as_none_before_they_are_counted() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let sixteen: Vec<_> = (0..16).map(|n| format!(r#""l{n}":"v""#)).collect();
    let empty: Vec<_> = (0..300).map(|n| format!(r#""e{n}":"""#)).collect();
    let body = format!(
        r#"{{"metric":"m","labels":{{{},{}}}}}"#,
        sixteen[..8].join(","),
        [&empty[..], &sixteen[8..]].concat().join(",")
    );
    let (status, answer, _) = send(&gateway, body.clone()).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    let packed = packed(&serde_json::from_str(&body).unwrap());
    assert_eq!(call(&gateway, post("application/msgpack", packed)).await.0, StatusCode::ACCEPTED);
    let without = format!(r#"{{"metric":"m","labels":{{{}}}}}"#, sixteen.join(","));
    assert_eq!(send(&gateway, without).await.0, StatusCode::ACCEPTED);
    let batches = log.batches.lock().unwrap();
    assert!(
        batches.iter().all(|batch| batch.events[0].series.id == batches[0].events[0].series.id),
        "one series"
    );
}

/// Twenty tokens that do not come back while the test runs, because its clock stands still.
fn twenty_tokens() -> Config {
    Config::defaults().with(|c| {
        c.tenants.max_events_per_second = 1;
        c.tenants.burst = 20;
    })
}

/// Takes what is left of twenty tokens one by one, and returns how many there were.
async fn tokens_left(gateway: &Arc<Gateway>) -> usize {
    let mut left = 0;
    while send(gateway, GOOD).await.0 == StatusCode::ACCEPTED {
        left += 1;
    }
    left
}

#[tokio::test]
async fn every_event_uses_the_rate_budget_also_a_refused_one_in_every_protocol() {
    let ndjson = format!("{}\n{GOOD}", ["{}"; 4].join("\n"));
    let json = format!("[{},{GOOD}]", ["{}"; 4].join(","));
    let five: serde_json::Value = serde_json::from_str(&json).unwrap();
    let records = (0..5).map(|n| json!({"value": if n < 4 { json!([]) } else { json!({}) }}));
    let proxy = json!({ "records": records.collect::<Vec<Value>>() }).to_string();
    let message = format!(r#"{{"seq":1,"events":{json}}}"#);
    let to_proxy = |body: String| {
        Request::post("/topics/t")
            .header("content-type", "application/vnd.kafka.json.v2+json")
            .body(Body::from(body))
            .unwrap()
    };
    let broken_proxy = r#"{"records":[{"value":}"#.to_owned();
    let cases: Vec<(Request<Body>, u16, usize)> = vec![
        (post("application/json", json), 202, 5),
        (post("application/x-ndjson", ndjson), 202, 5),
        (post("application/x-ndjson", ["{}"; 5].join("\n")), 422, 5),
        (post("application/msgpack", packed(&five)), 202, 5),
        (to_proxy(proxy), 200, 5),
        (post("application/json", format!("[{GOOD},{GOOD}")), 400, 1),
        (post("application/msgpack", vec![0x92, 0x80]), 400, 1),
        (to_proxy(broken_proxy), 400, 1),
    ];
    for (request, status, tokens) in cases {
        let (gateway, _) = gateway(twenty_tokens(), KeyTable::open());
        let shown = format!("{:?}", request.headers());
        let (got, answer, _) = call(&gateway, request).await;
        assert_eq!(got.as_u16(), status, "{shown}: {answer}");
        assert_eq!(tokens_left(&gateway).await, 20 - tokens, "{shown}: {answer}");
    }
    for (message, tokens) in [(message.as_str(), 5), (r#"{"seq":1,"events":[[}"#, 1)] {
        let (address, _stop) = listen(twenty_tokens()).await;
        let (mut ws, _) =
            tokio_tungstenite::connect_async(format!("ws://{address}/v1/ws")).await.unwrap();
        ws.send(Message::text(message)).await.unwrap();
        for _ in 0..20 {
            let good = format!(r#"{{"seq":2,"events":[{GOOD}]}}"#);
            ws.send(Message::text(good)).await.unwrap();
        }
        let mut acks = 0;
        loop {
            let text = ws.next().await.unwrap().unwrap().into_text().unwrap();
            if text.contains("rate_limited") {
                break;
            }
            acks += usize::from(text.contains(r#""ack":2"#));
        }
        assert_eq!(acks, 20 - tokens, "{message}");
    }
}

#[tokio::test]
async fn who_sends_refused_events_without_end_is_refused_whole() {
    let (gateway, _) = gateway(twenty_tokens(), KeyTable::open());
    let all_bad = ["{}"; 10].join("\n");
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(call(&gateway, post("application/x-ndjson", all_bad.clone())).await.0.as_u16());
    }
    seen.push(send(&gateway, "[").await.0.as_u16());
    assert_eq!(seen, [422, 422, 429, 429, 429]);
}

#[tokio::test]
async fn a_fraction_of_a_second_has_any_number_of_digits() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let body = r#"[{"metric":"m","timestamp":"2025-12-31T23:59:59.1234567891Z"},
        {"metric":"m","timestamp":"2025-12-31T23:59:59.12345678912345Z"}]"#;
    let (status, answer, _) = send(&gateway, body).await;
    assert_eq!((status.as_u16(), answer.starts_with(r#"{"accepted":2,"#)), (202, true), "{answer}");
    assert!(log.batches.lock().unwrap()[0].events.iter().all(|event| event.timestamp == NOW - 877));
}
