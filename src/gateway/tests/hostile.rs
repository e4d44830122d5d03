//! Malicious bodies: shapes, numbers, times and plain noise, in every codec.

use std::io::Write;

use proptest::prelude::*;

use super::cpu::CpuWatch;
use super::*;
use crate::clock::Stopwatch;

const EVENT_BYTES: usize = 1 << 20;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn request(kind: &str, encoding: Option<&str>, body: Vec<u8>) -> Request<Body> {
    let mut request = post(kind, body);
    if let Some(encoding) = encoding {
        request.headers_mut().insert("content-encoding", encoding.parse().unwrap());
    }
    request
}

/// Encodes a MessagePack string.
fn text(out: &mut Vec<u8>, text: &str) {
    rmp::encode::write_str(out, text).unwrap();
}

/// Encodes a MessagePack event with one field besides the metric; its value is already encoded.
fn packed(field: &str, value: &[u8]) -> Vec<u8> {
    let mut out = vec![0x82];
    text(&mut out, "metric");
    text(&mut out, "m");
    text(&mut out, field);
    out.extend_from_slice(value);
    out
}

/// Generous limits, so that bodies reach the decoders and not only the limit on an event's size.
fn roomy() -> Config {
    Config::defaults().with(|c| c.accept.max_event_bytes = ByteSize::of(32 << 20))
}

#[tokio::test]
async fn a_million_keys_and_endless_nesting_are_refused_at_once() {
    let keys: String = (0..1_000_000).map(|n| format!(r#""k{n}":"{n}","#)).collect();
    let unknown = format!(r#"{{"metric":"m",{keys}"z":0}}"#);
    let labels = format!(r#"{{"metric":"m","labels":{{{keys}"z":"0"}}}}"#);
    let mut packed_labels = vec![0xdf, 0, 0x0f, 0x42, 0x40];
    for n in 0..1_000_000u32 {
        text(&mut packed_labels, &n.to_string());
        text(&mut packed_labels, "v");
    }
    let packed_labels = packed("labels", &packed_labels);
    let deep = |open: &str, close: &str| {
        format!(
            r#"{{"metric":"m","properties":{}1{}}}"#,
            open.repeat(500_000),
            close.repeat(500_000)
        )
    };
    let ended = |mut open: Vec<u8>| {
        open.push(1);
        open
    };
    let cases: Vec<(&str, &str, Vec<u8>, u16, &str)> = vec![
        (
            "a million unknown fields",
            "application/json",
            unknown.clone().into(),
            422,
            "unknown field",
        ),
        ("the same in a line", "application/x-ndjson", unknown.into(), 422, "unknown field"),
        ("a million labels", "application/json", labels.into(), 422, "more than 16 labels"),
        (
            "a million labels, packed",
            "application/msgpack",
            packed_labels,
            422,
            "more than 16 labels",
        ),
        ("deep arrays", "application/json", deep("[", "]").into(), 422, "nested deeper than 64"),
        (
            "deep objects",
            "application/json",
            deep(r#"{"a":"#, "}").into(),
            422,
            "nested deeper than 64",
        ),
        (
            "a body of brackets",
            "application/json",
            "[".repeat(1_000_000).into(),
            400,
            "the text ends",
        ),
        (
            "deep labels",
            "application/json",
            format!(r#"{{"metric":"m","labels":{}{}}}"#, "[".repeat(500_000), "]".repeat(500_000))
                .into(),
            422,
            "labels_invalid",
        ),
        (
            "deep arrays, packed",
            "application/msgpack",
            packed("properties", &ended(vec![0x91; 1_000_000])),
            422,
            "nested too deeply",
        ),
        (
            "deep maps, packed",
            "application/msgpack",
            packed("labels", &ended([0x81, 0x01].repeat(500_000))),
            422,
            "nested too deeply",
        ),
        (
            "deep array of events, packed",
            "application/msgpack",
            ended(vec![0x91; 1_000_000]),
            422,
            "an event is a map",
        ),
        ("the same cut off", "application/msgpack", vec![0x91; 1_000_000], 400, "cut off"),
    ];
    let (gateway, log) = gateway(roomy(), KeyTable::open());
    for (what, kind, body, status, says) in cases {
        let watch = CpuWatch::start();
        let (got, answer, _) = call(&gateway, post(kind, body)).await;
        assert!(watch.elapsed() < Duration::from_secs(60), "{what} took {:?}", watch.elapsed());
        assert!(got.as_u16() == status && answer.contains(says), "{what}: {got} {answer}");
        assert!(answer.len() < 1_000, "{what}: the answer quotes too much");
    }
    let (gateway, _) = super::gateway(Config::defaults(), KeyTable::open());
    let (status, answer, _) =
        send(&gateway, format!(r#"{{"metric":"m","properties":{{{keys}"z":0}}}}"#)).await;
    assert_eq!((status.as_u16(), answer.contains("event_too_large")), (422, true), "{answer}");
    assert!(log.batches.lock().unwrap().is_empty());
}

#[tokio::test]
async fn huge_length_prefixes_cost_nothing() {
    let prefixes: [&[u8]; 9] = [
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdc, 0x27, 0x10],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0xc9, 0xff, 0xff, 0xff, 0xff, 1],
        &[0x91, 0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0x81, 0xa6, b'm', b'e', b't', b'r', b'i', b'c', 0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0x81, 0xa6, b'l', b'a', b'b', b'e', b'l', b's', 0xdf, 0xff, 0xff, 0xff, 0xff],
    ];
    let (gateway, _) = gateway(roomy(), KeyTable::open());
    let watch = Stopwatch::start();
    for prefix in prefixes {
        let (status, answer, _) =
            call(&gateway, post("application/msgpack", prefix.to_vec())).await;
        assert!(matches!(status.as_u16(), 400 | 413), "{prefix:x?}: {status} {answer}");
    }
    assert!(watch.elapsed() < Duration::from_secs(20), "{:?}", watch.elapsed());
}

#[tokio::test]
async fn a_field_or_label_that_is_there_twice_is_refused() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let twice = [
        r#"{"metric":"a","metric":"b"}"#,
        r#"{"metric":"a","m\u0065tric":"b"}"#,
        r#"{"metric":"a","id":"1","id":null}"#,
    ];
    for body in twice {
        assert_eq!(send(&gateway, body).await.0, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert_eq!(
            call(&gateway, post("application/x-ndjson", body)).await.0,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{body}"
        );
    }
    let labels = r#"{"metric":"a","labels":{"x":"1","\u0078":"2"}}"#;
    let (status, answer, _) = send(&gateway, labels).await;
    assert_eq!(
        (status, answer.contains("a label is there twice")),
        (StatusCode::UNPROCESSABLE_ENTITY, true),
        "{answer}"
    );
    let again = b"\x82\xa6metric\xa1a\xa6metric\xa1b".to_vec();
    assert_eq!(
        call(&gateway, post("application/msgpack", again)).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    let labels = packed("labels", b"\x82\xa1x\xa11\xa1x\xa12");
    assert_eq!(
        call(&gateway, post("application/msgpack", labels)).await.0,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    assert!(log.batches.lock().unwrap().is_empty());
}

/// The answer to a value, and the value that is stored.
const NUMBERS: &[(&str, u16, &str)] = &[
    ("1e308", 422, "value_out_of_range"),
    ("-1e308", 422, "value_out_of_range"),
    ("1e400", 422, "value_out_of_range"),
    ("1000000000000000001", 422, "value_out_of_range"),
    ("1e18", 202, "1000000000000000000"),
    ("-0.0", 202, "0"),
    ("5e-324", 202, "0"),
    ("2.2250738585072011e-308", 202, "0"),
    ("0.1", 202, "0.1"),
    ("1e-9", 202, "0.000000001"),
];

#[tokio::test]
async fn numbers_that_are_none_are_refused_in_text() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for kind in ["application/json", "application/x-ndjson"] {
        for quote in ["", "\""] {
            for (number, status, says) in NUMBERS {
                let body = format!(r#"{{"metric":"m","value":{quote}{number}{quote}}}"#);
                let (got, answer, _) = call(&gateway, post(kind, body.clone())).await;
                assert_eq!(got.as_u16(), *status, "{kind} {body}: {answer}");
                match status {
                    202 => {
                        let batch = log.batches.lock().unwrap().pop().unwrap();
                        assert_eq!(batch.events[0].value.unwrap().to_string(), *says, "{body}");
                    }
                    _ => assert!(answer.contains(says), "{body}: {answer}"),
                }
            }
        }
        for name in
            ["NaN", "nan", "Infinity", "-Infinity", "inf", "+inf", "1e", "0x10", "1_000", "١"]
        {
            let (got, answer, _) =
                call(&gateway, post(kind, format!(r#"{{"metric":"m","value":"{name}"}}"#))).await;
            assert_eq!(
                (got.as_u16(), answer.contains("value_invalid")),
                (422, true),
                "{kind} {name}: {answer}"
            );
            let bare =
                call(&gateway, post(kind, format!(r#"{{"metric":"m","value":{name}}}"#))).await;
            assert_eq!(
                (bare.0.as_u16(), bare.1.contains("event_unreadable")),
                (422, true),
                "{kind} {name} is no JSON"
            );
        }
    }
    assert!(log.batches.lock().unwrap().is_empty());
}

#[tokio::test]
async fn numbers_that_are_none_are_refused_in_messagepack() {
    let double = |value: f64| [&[0xcb][..], &value.to_be_bytes()].concat();
    let single = |value: f32| [&[0xca][..], &value.to_be_bytes()].concat();
    let mut cases = vec![
        (double(f64::NAN), 422, "value_invalid"),
        (double(-f64::NAN), 422, "value_invalid"),
        (double(f64::from_bits(0x7ff0_0000_0000_0001)), 422, "value_invalid"),
        (double(f64::INFINITY), 422, "value_invalid"),
        (double(f64::NEG_INFINITY), 422, "value_invalid"),
        (single(f32::NAN), 422, "value_invalid"),
        (single(f32::INFINITY), 422, "value_invalid"),
        (double(1e308), 422, "value_out_of_range"),
        (double(f64::MIN), 422, "value_out_of_range"),
        (single(f32::MAX), 422, "value_out_of_range"),
        ([&[0xcf][..], &u64::MAX.to_be_bytes()].concat(), 422, "value_out_of_range"),
        ([&[0xd3][..], &i64::MIN.to_be_bytes()].concat(), 422, "value_out_of_range"),
        (double(-0.0), 202, "0"),
        (double(5e-324), 202, "0"),
        (double(f64::MIN_POSITIVE / 2.0), 202, "0"),
        (single(1e-45), 202, "0"),
        (double(1e18), 202, "1000000000000000000"),
        (single(0.1), 202, "0.1"),
        (double(0.1), 202, "0.1"),
        (vec![0xc3], 422, "value_invalid"),
        (vec![0x90], 422, "value_invalid"),
        (vec![0xd6, 0xff, 0, 0, 0, 0], 422, "value_invalid"),
    ];
    for (number, status, says) in NUMBERS {
        let mut value = Vec::new();
        text(&mut value, number);
        cases.push((value, *status, *says));
    }
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for (value, status, says) in cases {
        let (got, answer, _) =
            call(&gateway, post("application/msgpack", packed("value", &value))).await;
        assert_eq!(got.as_u16(), status, "{value:x?}: {answer}");
        match status {
            202 => {
                let batch = log.batches.lock().unwrap().pop().unwrap();
                assert_eq!(batch.events[0].value.unwrap().to_string(), says, "{value:x?}");
            }
            _ => assert!(answer.contains(says), "{value:x?}: {answer}"),
        }
    }
}

/// Times that are refused, each with its code.
const TIMES: &[(&str, &str)] = &[
    ("-1", "timestamp_too_old"),
    ("0", "timestamp_too_old"),
    ("-9223372036854775808", "timestamp_too_old"),
    ("1767225600", "timestamp_too_old"),
    ("4102444800000", "timestamp_in_future"),
    ("1767225600000000", "timestamp_in_future"),
    ("1767225600000000000", "timestamp_in_future"),
    ("9223372036854775807", "timestamp_in_future"),
    ("9223372036854775808", "timestamp_in_future"),
    ("18446744073709551615", "timestamp_in_future"),
    ("253402300800000", "timestamp_in_future"),
    ("-62167219200001", "timestamp_too_old"),
    ("\"1970-01-01T00:00:00Z\"", "timestamp_too_old"),
    ("\"-000001-01-01T00:00:00Z\"", "timestamp_too_old"),
    ("\"9999-12-30T00:00:00Z\"", "timestamp_in_future"),
    ("\"9999-12-31T23:59:59Z\"", "timestamp_in_future"),
    ("\"9999-12-31T23:59:60.999-23:59\"", "timestamp_in_future"),
    ("\"0000-01-01T00:00:00+23:59\"", "timestamp_too_old"),
    ("\"10000-01-01T00:00:00Z\"", "timestamp_invalid"),
    ("\"\"", "timestamp_invalid"),
    ("\"yesterday\"", "timestamp_invalid"),
    ("\"2026-01-01\"", "timestamp_invalid"),
    ("\"2026-01-01T00:00:00\"", "timestamp_invalid"),
    ("\"2026-02-30T00:00:00Z\"", "timestamp_invalid"),
    ("\"1767225600000\"", "timestamp_invalid"),
    ("true", "timestamp_invalid"),
    ("[]", "timestamp_invalid"),
    ("{}", "timestamp_invalid"),
    ("1767225600000.5", "timestamp_invalid"),
    ("1e300", "timestamp_invalid"),
];

#[tokio::test]
async fn garbage_times_are_refused_in_every_codec() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for (time, code) in TIMES {
        let body = format!(r#"{{"metric":"m","timestamp":{time}}}"#);
        let value: serde_json::Value = serde_json::from_str(time).unwrap();
        let messagepack = packed("timestamp", &rmp_serde::to_vec(&value).unwrap());
        let bodies: [(&str, Vec<u8>); 3] = [
            ("application/json", body.clone().into()),
            ("application/x-ndjson", body.into()),
            ("application/msgpack", messagepack),
        ];
        for (kind, body) in bodies {
            let (status, answer, _) = call(&gateway, post(kind, body)).await;
            assert_eq!(
                (status.as_u16(), answer.contains(code)),
                (422, true),
                "{kind} {time}: {answer}"
            );
        }
    }
    for odd in [&[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0][..], &[0xd6, 0xff, 0, 0, 0, 0], &[0xc4, 1, 0]]
    {
        let (status, answer, _) =
            call(&gateway, post("application/msgpack", packed("timestamp", odd))).await;
        assert_eq!(
            (status.as_u16(), answer.contains("timestamp_invalid")),
            (422, true),
            "{odd:x?}: {answer}"
        );
    }
    assert!(log.batches.lock().unwrap().is_empty());
}

const KINDS: [&str; 3] = ["application/json", "application/x-ndjson", "application/msgpack"];

/// A valid body with some bytes changed, cut or doubled: it gets further into a decoder than noise.
fn nearly_good() -> impl Strategy<Value = Vec<u8>> {
    let json = r#"[{"metric":"m","timestamp":1767225600000,"value":"1.5e2",
        "labels":{"a":"b\u00e4"},"user":"u","id":"i","properties":[{}]}]"#;
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    let bodies = vec![
        json.as_bytes().to_vec(),
        rmp_serde::to_vec(&value).unwrap(),
        gzip(json.as_bytes()),
        zstd::encode_all(json.as_bytes(), 1).unwrap(),
    ];
    let changes =
        proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0u8..4), 1..6);
    (proptest::sample::select(bodies), changes).prop_map(|(mut body, changes)| {
        for (at, byte, how) in changes {
            if body.is_empty() {
                break;
            }
            let at = at.index(body.len());
            match how {
                0 => body[at] = byte,
                1 => body.truncate(at),
                2 => body.insert(at, byte),
                _ => body.extend_from_within(at..),
            }
        }
        body
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_harm_a_decoder(
        body in prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), nearly_good()],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let max_body = ByteSize::of(EVENT_BYTES as u64);
        let config = Config::defaults().with(|c| c.accept.max_body = max_body);
        let (gateway, _) = gateway(config, KeyTable::open());
        for kind in KINDS {
            for encoding in [None, Some("gzip"), Some("deflate"), Some("zstd")] {
                let mut bodies = vec![body.clone()];
                // Validly compressed, the noise reaches the decoder of events.
                match encoding {
                    Some("gzip") => bodies.push(gzip(&body)),
                    Some("zstd") => bodies.push(zstd::encode_all(&body[..], 1).unwrap()),
                    _ => {}
                }
                for body in bodies {
                    let request = request(kind, encoding, body);
                    let (status, answer, _) = runtime.block_on(call(&gateway, request));
                    let known = matches!(status.as_u16(), 202 | 400 | 413 | 422);
                    prop_assert!(known, "{kind} {encoding:?}: {status} {answer}");
                    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
                    let is_error = answer["error"]["code"].is_string();
                    prop_assert!(is_error || answer["accepted"].is_u64(), "{answer}");
                }
            }
        }
        prop_assert_eq!(gateway.shares.inflight.usage("default").held, 0, "memory is given back");
    }
}

#[tokio::test]
async fn bombs_in_bombs_and_wrong_encodings_are_refused() {
    let (gateway, _) = gateway(
        Config::defaults().with(|c| c.accept.max_body = ByteSize::of(EVENT_BYTES as u64)),
        KeyTable::open(),
    );
    let nested = gzip(&gzip(&vec![b' '; 8 << 20]));
    let started = Stopwatch::start();
    assert_eq!(
        call(&gateway, request(KINDS[0], Some("gzip"), nested)).await.0,
        StatusCode::BAD_REQUEST,
        "opened once only"
    );
    for encoding in ["gzip, gzip", "br", "compress", "gzip,zstd", "x"] {
        let answer = call(&gateway, request(KINDS[0], Some(encoding), b"x".to_vec())).await;
        assert_eq!(answer.0, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{encoding}");
    }
    // A zstd frame that requests a window of 2 GiB.
    let window = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    assert_eq!(
        call(&gateway, request(KINDS[0], Some("zstd"), window)).await.0,
        StatusCode::BAD_REQUEST
    );
    assert!(started.elapsed() < Duration::from_secs(20));
}
