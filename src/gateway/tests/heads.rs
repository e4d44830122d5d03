//! Ambiguous request heads, answers that must arrive, and compressed answers.

use std::io::Read;
use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that the server answers to raw bytes, up to the end of the connection.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("ended").unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn what_is_there_twice_or_not_at_all_is_refused() {
    let (plain, prefix, sha256) = new_key([7; 24]);
    let stored = StoredKey {
        prefix,
        sha256,
        tenant: "acme".into(),
        scopes: vec![Scope::Write, Scope::Read],
        expires_ms: None,
    };
    let (gateway, log) = gateway(Config::defaults(), KeyTable::of(KeysFile { keys: vec![stored] }));
    let (address, _stop) = serve(gateway).await;
    let key = format!("Authorization: Bearer {plain}\r\n");
    let end = "Connection: close\r\nContent-Length: 14\r\n\r\n{\"metric\":\"m\"}";
    let chunked = "Connection: close\r\n\r\ne\r\n{\"metric\":\"m\"}\r\n0\r\n\r\n";
    for (head, end, status, says) in [
        (format!("Host: a\r\n{key}"), end, 202, "accepted"),
        (format!("Host: a\r\n{key}{key}"), end, 400, "header_repeated"),
        (format!("Host: a\r\n{key}Authorization: Bearer other\r\n"), end, 400, "header_repeated"),
        (format!("Host: a\r\nAuthorization: Basic eA==\r\n{key}"), end, 400, "header_repeated"),
        (key.clone(), end, 400, "host_missing"),
        (format!("Host: a\r\nHost: a\r\n{key}"), end, 400, "header_repeated"),
        (format!("Host: a\r\nHost: b\r\n{key}"), end, 400, "header_repeated"),
        (
            format!(
                "Host: a\r\n{key}Content-Type: application/json\r\nContent-Type: text/plain\r\n"
            ),
            end,
            400,
            "header_repeated",
        ),
        (
            format!("Host: a\r\n{key}Idempotency-Key: a\r\nIdempotency-Key: b\r\n"),
            end,
            400,
            "header_repeated",
        ),
        (format!("Host: a\r\n{key}Transfer-Encoding: chunked\r\n"), chunked, 202, "accepted"),
        (format!("Host: a\r\n{key}Transfer-Encoding: Chunked\r\n"), chunked, 202, "accepted"),
        (
            format!("Host: a\r\n{key}Transfer-Encoding: gzip, chunked\r\n"),
            chunked,
            501,
            "transfer_encoding_unsupported",
        ),
        (
            format!("Host: a\r\n{key}Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
            chunked,
            501,
            "transfer_encoding_unsupported",
        ),
    ] {
        let answer = raw(address, &format!("POST /v1/events HTTP/1.1\r\n{head}{end}")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(says),
            "{head}: {answer}"
        );
    }
    let old = raw(
        address,
        &format!("POST /v1/events HTTP/1.0\r\n{key}Content-Length: 14\r\n\r\n{{\"metric\":\"m\"}}"),
    )
    .await;
    assert!(old.contains(" 202 "), "HTTP/1.0 has no Host: {old}");
    let topics =
        raw(address, &format!("POST /topics/m HTTP/1.1\r\nHost: a\r\n{key}{key}{end}")).await;
    assert!(topics.contains("\"error_code\":400"), "{topics}");
    assert_eq!(log.batches.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_refused_from_its_head() {
    let (address, _stop) =
        listen(Config::defaults().with(|c| c.accept.max_body = ByteSize::of(1_000))).await;
    for length in ["1001", "1000000000000"] {
        let expect = format!(
            "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nExpect: \
             100-continue\r\nContent-Length: {length}\r\n\r\n"
        );
        let answer = raw(address, &expect).await;
        assert!(
            answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"),
            "{length}: {answer}"
        );
    }
    let fits = "POST /v1/events HTTP/1.1\r\nHost: localhost\r\nExpect: \
                100-continue\r\nConnection: close\r\nContent-Length: 14\r\n\r\n";
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(fits.as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    socket.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 100");
    socket.write_all(b"{\"metric\":\"m\"}").await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("HTTP/1.1 202"), "{answer}");
}

/// Sends everything before it reads, as Python's urllib and many other clients do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_all_before_it_reads_still_sees_why_it_was_refused() {
    let (address, _stop) =
        listen(Config::defaults().with(|c| c.accept.max_body = ByteSize::of(1 << 20))).await;
    const BYTES: usize = 8 << 20;
    let chunk = [&b"10000\r\n"[..], &vec![b' '; 1 << 16], b"\r\n"].concat();
    for (head, body) in [
        (format!("Content-Length: {BYTES}\r\n"), vec![b' '; BYTES]),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunk.repeat(BYTES >> 16)),
    ] {
        for _ in 0..3 {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let head = format!("POST /v1/events HTTP/1.1\r\nHost: localhost\r\n{head}\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
            // Slower than the answer arrives, so that a reset would be noticed.
            for part in body.chunks(1 << 20) {
                socket.write_all(part).await.expect("the server reads on");
            }
            let mut answer = Vec::new();
            tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer))
                .await
                .expect("ended")
                .expect("no reset");
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"),
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_websocket_counts_as_a_connection_as_long_as_it_is_open() {
    let (address, _stop) = listen(Config::defaults().with(|c| c.server.max_connections = 1)).await;
    let (mut ws, _) =
        tokio_tungstenite::connect_async(format!("ws://{address}/v1/ws")).await.unwrap();
    let health = tokio::spawn(raw_owned(
        address,
        "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!health.is_finished(), "there is one place, and it is taken");
    ws.close(None).await.unwrap();
    while ws.next().await.is_some_and(|message| message.is_ok()) {}
    drop(ws);
    assert!(health.await.unwrap().starts_with("HTTP/1.1 200"), "it is free again");
}

async fn raw_owned(address: SocketAddr, request: &'static str) -> String {
    raw(address, request).await
}

#[tokio::test]
async fn a_path_that_is_no_text_is_an_error_like_others_and_after_the_key() {
    let (plain, prefix, sha256) = new_key([7; 24]);
    let stored = StoredKey {
        prefix,
        sha256,
        tenant: "acme".into(),
        scopes: vec![Scope::Write, Scope::Read],
        expires_ms: None,
    };
    let (gateway, _) = gateway(Config::defaults(), KeyTable::of(KeysFile { keys: vec![stored] }));
    for (method, path, refused, wrong) in [
        ("GET", "/v1/labels/%ff/values", "\"unauthorized\"", "\"path_invalid\""),
        ("POST", "/topics/%ff", "40101", "\"error_code\":400"),
    ] {
        for (key, status, says) in [(None, 401, refused), (Some(&plain), 400, wrong)] {
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header("content-type", "application/vnd.kafka.json.v2+json");
            if let Some(key) = key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            let (got, answer, _) =
                call(&gateway, request.body(Body::from(r#"{"records":[{"value":{}}]}"#)).unwrap())
                    .await;
            assert_eq!((got.as_u16(), answer.contains(says)), (status, true), "{path}: {answer}");
            serde_json::from_str::<serde_json::Value>(&answer).unwrap();
        }
    }
}

#[tokio::test]
async fn a_compressed_body_has_a_thousand_members_at_most() {
    use std::io::Write;
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let skippable = [&0x184d_2a50u32.to_le_bytes()[..], &0u32.to_le_bytes()].concat();
    let event = br#"{"metric":"m"}"#;
    let zlib = |bytes: &[u8]| {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let cases: [(&str, Vec<u8>, Vec<u8>); 4] = [
        ("gzip", gzip(b""), gzip(event)),
        ("deflate", zlib(b""), zlib(event)),
        ("zstd", zstd(b""), zstd(event)),
        ("zstd", skippable, zstd(event)),
    ];
    for (coding, empty, full) in cases {
        for (members, status) in [(0, 202), (999, 202), (1_000, 400), (500_000, 400)] {
            let mut request =
                post("application/json", [empty.repeat(members), full.clone()].concat());
            request.headers_mut().insert("content-encoding", coding.parse().unwrap());
            let (got, answer, _) = call(&gateway, request).await;
            assert_eq!(got.as_u16(), status, "{coding} {members}: {answer}");
            assert!(status == 202 || answer.contains("1000 members"), "{answer}");
        }
        // One event split over two members, and trailing bytes after the last.
        let mut request = post("application/json", [full.clone(), b"junk".to_vec()].concat());
        request.headers_mut().insert("content-encoding", coding.parse().unwrap());
        assert_eq!(call(&gateway, request).await.0.as_u16(), 400);
        // A body that breaks off is no body, wherever it does.
        for end in 1..full.len() {
            let mut request = post("application/x-ndjson", full[..end].to_vec());
            request.headers_mut().insert("content-encoding", coding.parse().unwrap());
            assert_eq!(call(&gateway, request).await.0.as_u16(), 400, "{coding} {end}");
        }
    }
    let halves = [gzip(&event[..5]), gzip(&event[5..])].concat();
    let mut request = post("application/json", halves);
    request.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    assert_eq!(call(&gateway, request).await.0.as_u16(), 202);
    assert_eq!(log.batches.lock().unwrap().len(), 9);
}

#[tokio::test]
async fn large_answers_are_packed_for_those_who_take_it() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let ask = async |path: &str, takes: Option<&str>| {
        let mut request = Request::get(path).header("host", "localhost");
        if let Some(takes) = takes {
            request = request.header("accept-encoding", takes);
        }
        let response = routes::router(gateway.clone())
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let header = |name: &str| {
            response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let vary = response
            .headers()
            .get_all("vary")
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(", ");
        let (coding, vary) = (header("content-encoding"), Some(vary));
        (coding, vary, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    };
    let large = "/v1/query?metric=m&by=pad&limit=100000";
    let (coding, vary, plain) = ask(large, None).await;
    assert_eq!(
        (coding, vary.as_deref(), plain.len() > 100_000),
        (None, Some("accept, accept-encoding"), true)
    );
    let (coding, _, packed) = ask(large, Some("gzip")).await;
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
    assert!(
        coding.as_deref() == Some("gzip") && unpacked == plain && packed.len() * 10 < plain.len(),
        "{}",
        packed.len()
    );
    let (coding, _, packed) = ask(large, Some("gzip, zstd")).await;
    assert_eq!(
        (coding.as_deref(), zstd::decode_all(&packed[..]).unwrap() == plain),
        (Some("zstd"), true)
    );
    assert_eq!(ask(large, Some("identity, gzip;q=0")).await.0, None);
    assert_eq!(
        ask("/v1/query?metric=m&by=pad&limit=100", Some("gzip")).await.0,
        None,
        "small ones as they are"
    );
    assert_eq!(ask("/openapi.json", Some("gzip")).await.0.as_deref(), Some("gzip"));
    let places = gateway
        .compression_permits
        .clone()
        .acquire_many_owned(gateway.compression_permits.available_permits() as u32)
        .await
        .unwrap();
    assert_eq!(
        ask(large, Some("gzip")).await.0,
        None,
        "a node that packs as much as it may sends them as they are"
    );
    drop(places);
    assert_eq!(ask(large, Some("gzip")).await.0.as_deref(), Some("gzip"));
}

#[tokio::test]
async fn a_table_is_asked_for_by_parameter_or_header_and_says_what_it_lacks() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let ask = async |path: &str, accept: Option<&str>| {
        let mut request = Request::get(path).header("host", "localhost");
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let response = routes::router(gateway.clone())
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let text = |name: &str| {
            response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        assert!(text("vary").is_some(), "a cache must not give JSON to who wants a table");
        (response.status().as_u16(), text("content-type").unwrap(), text("rollmill-completeness"))
    };
    const NOTHING_LACKS: &str =
        r#"{"partial":false,"shards":0,"missing":[],"as_of":"2026-01-01T00:00:00Z"}"#;
    let csv =
        (200, "text/csv; charset=utf-8; header=present".to_owned(), Some(NOTHING_LACKS.to_owned()));
    let json = (200, "application/json".to_owned(), None);
    for (path, accept, expected) in [
        ("/v1/query?metric=m", None, &json),
        ("/v1/query?metric=m&format=csv", None, &csv),
        ("/v1/query?metric=m&format=csv", Some("application/json"), &csv),
        ("/v1/query?metric=m", Some("text/csv"), &csv),
        ("/v1/query?metric=m", Some("text/html, Text/CSV;header=present;q=0.5, */*;q=0.1"), &csv),
        ("/v1/query?metric=m", Some("application/json, text/csv;q=0.5"), &json),
        ("/v1/query?metric=m", Some("text/csv;q=0, */*"), &json),
        ("/v1/query?metric=m&format=json", Some("text/csv"), &json),
        ("/v1/query?metric=m", Some("*/*"), &json),
    ] {
        assert_eq!(ask(path, accept).await, *expected, "{path} {accept:?}");
    }
}
