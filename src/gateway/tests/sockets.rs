//! Clients that misbehave, over real sockets.

use std::net::SocketAddr;

use proptest::prelude::*;
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::*;

const HANDSHAKE: &str = "GET /v1/ws HTTP/1.1\r\nhost: localhost\r\nconnection: \
                         upgrade\r\nupgrade: websocket\r\nsec-websocket-version: \
                         13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Timeout for steps that take a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(address: SocketAddr) -> Socket {
    tokio_tungstenite::connect_async(format!("ws://{address}/v1/ws")).await.unwrap().0
}

/// Reads until the server closes; returns the close code, if it sends one.
async fn close_code(ws: &mut Socket) -> Option<u16> {
    let read = async {
        loop {
            match ws.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| u16::from(frame.code)),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("still open")
}

async fn acked(ws: &mut Socket, seq: u64) {
    ws.send(Message::text(format!(r#"{{"seq":{seq},"events":[{{"metric":"m"}}]}}"#)))
        .await
        .unwrap();
    loop {
        match tokio::time::timeout(PATIENCE, ws.next())
            .await
            .expect("an ack in time")
            .unwrap()
            .unwrap()
        {
            Message::Text(ack) => {
                assert!(ack.contains(&format!("\"ack\":{seq},")), "{ack}");
                return;
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A server that waits this long for its clients and looks after them all the time.
async fn impatient(patience: Duration) -> (Arc<Gateway>, SocketAddr, watch::Sender<bool>) {
    let config = Config::defaults().with(|c| {
        c.ws.idle_timeout = patience;
        c.ws.update_interval = Duration::from_millis(50);
    });
    let (gateway, _) = gateway(config, KeyTable::open());
    let (address, stop) = serve(gateway.clone()).await;
    (gateway, address, stop)
}

/// A client with an update to read that is larger than what lies in the buffers of a connection.
async fn stuck(address: SocketAddr) -> Socket {
    let mut ws = connect(address).await;
    let subscribe = r#"{"subscribe":"q","query":{"metric":"m","by":"pad","limit":"8000000"}}"#;
    ws.send(Message::text(subscribe)).await.unwrap();
    ws
}

/// Waits until the server has given up whoever subscribed. Who reads before that, even a moment
/// before, shows that it is alive and stays.
async fn given_up(gateway: &Gateway, patience: Duration) {
    tokio::time::sleep(patience).await;
    let all = async {
        while gateway.shares.subscriptions.usage("default").held > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("still connected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_never_read_are_dropped_and_others_go_on() {
    // Long enough that a busy machine, which has forty updates of 8 MB to make and to send, hears
    // the client that sends all the time.
    let patience = Duration::from_secs(5);
    let (gateway, address, _stop) = impatient(patience).await;
    let mut stuck_ones = Vec::new();
    for _ in 0..40 {
        stuck_ones.push(stuck(address).await);
    }
    let (mut good, stop) =
        (connect(address).await, Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let (stopped, (acks, mut acked_now)) = (stop.clone(), watch::channel(0));
    let going = tokio::spawn(async move {
        for seq in 0.. {
            if stopped.load(std::sync::atomic::Ordering::Acquire) {
                return seq;
            }
            acked(&mut good, seq).await;
            acks.send_replace(seq);
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        0
    });
    given_up(&gateway, patience).await;
    // After the timeout they read what is left: a close frame, or nothing if they come too late for
    // it. On a machine so busy that not even an update was made in time, they are dropped as idle.
    let codes = futures::future::join_all(stuck_ones.iter_mut().map(close_code)).await;
    assert!(codes.iter().all(|code| matches!(code, Some(1013 | 1001) | None)), "{codes:?}");
    let enough = tokio::time::timeout(PATIENCE, acked_now.wait_for(|seq| *seq > 20)).await;
    assert!(
        enough.is_ok_and(|enough| enough.is_ok()),
        "few messages were acknowledged beside them"
    );
    stop.store(true, std::sync::atomic::Ordering::Release);
    going.await.expect("every message was acknowledged in time");
}

/// A single one at a time, so that machine load does not decide whether the frame arrives in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_never_reads_is_told_1013() {
    let patience = Duration::from_millis(1_500);
    let (gateway, address, _stop) = impatient(patience).await;
    let mut told = Vec::new();
    while told.len() < 5 || (told.len() < 30 && !told.contains(&Some(1013))) {
        let mut ws = stuck(address).await;
        given_up(&gateway, patience).await;
        told.push(close_code(&mut ws).await);
    }
    assert!(told.contains(&Some(1013)), "{told:?}");
}

#[tokio::test]
async fn what_waits_for_a_reader_is_bounded() {
    let config = Config::defaults().with(|c| {
        c.ws.update_interval = Duration::from_millis(10);
        c.ws.max_subscriptions = 2;
        c.ws.idle_timeout = PATIENCE;
    });
    let (address, _stop) = listen(config).await;
    let mut ws = connect(address).await;
    // Each time a new query under the same name, whose answer the client does not read.
    for size in 0..200 {
        let subscribe = format!(
            r#"{{"subscribe":"q","query":{{"metric":"m","by":"pad","limit":"{}"}}}}"#,
            4_000_000 + size
        );
        ws.send(Message::text(subscribe)).await.unwrap();
    }
    // A busy server may take a while to the first answer; the others wait behind it.
    let first = tokio::time::timeout(PATIENCE, ws.next()).await.unwrap().unwrap().unwrap();
    assert!(first.into_text().unwrap().starts_with("{\"update\""));
    tokio::time::sleep(Duration::from_millis(500)).await;
    ws.send(Message::text(r#"{"unsubscribe":"q"}"#)).await.unwrap();
    ws.send(Message::text(r#"{"seq":1,"events":[]}"#)).await.unwrap();
    let mut updates = 0;
    loop {
        let text = tokio::time::timeout(PATIENCE, ws.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .into_text()
            .unwrap();
        if text.starts_with("{\"ack\"") || text.contains("\"ack\":1,") {
            break;
        }
        updates += usize::from(text.starts_with("{\"update\""));
    }
    assert!(updates <= 6, "{updates} answers of 4 MB waited");
}

#[tokio::test]
async fn half_open_sockets_are_closed_and_answering_ones_stay() {
    // Long enough that a machine which stalls for a moment does not make the answering client look
    // idle.
    let idle = Duration::from_secs(3);
    let config = Config::defaults().with(|c| {
        c.ws.idle_timeout = idle;
        c.ws.update_interval = Duration::from_millis(50);
    });
    let (address, _stop) = listen(config).await;
    // Built by hand, because the client library answers pings by itself.
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    let mut alive = connect(address).await;
    // Reading answers pings; for twice the timeout the client sends nothing else.
    let quiet = tokio::time::timeout(idle * 2, async {
        while let Some(Ok(Message::Ping(_))) = alive.next().await {}
    })
    .await;
    assert!(quiet.is_err(), "a client that answers pings is kept");
    acked(&mut alive, 7).await;
    let mut heard = Vec::new();
    tokio::time::timeout(PATIENCE, silent.read_to_end(&mut heard)).await.expect("closed").unwrap();
    let frames =
        heard.windows(4).position(|end| end == b"\r\n\r\n").map(|at| &heard[at + 4..]).unwrap();
    let pings = frames.chunks(2).take_while(|frame| **frame == [0x89, 0]).count();
    let close = &frames[pings * 2..];
    assert!(
        pings > 0 && close[..4] == [0x88, close.len() as u8 - 2, 0x03, 0xe9],
        "pings, then 1001: {frames:x?}"
    );
    assert!(String::from_utf8_lossy(&close[4..]).contains("ws.idle_timeout"), "{close:x?}");
}

#[tokio::test]
async fn answers_carry_the_clients_seq_whatever_it_is() {
    let config = Config::defaults().with(|c| c.ws.window = 4);
    let (address, _stop) = listen(config).await;
    let mut ws = connect(address).await;
    let seqs = [5, 5, 0, u64::MAX, 3, 1 << 53, 7];
    for seq in seqs {
        let body = format!(
            r#"{{"seq":{seq},"events":[{{"metric":"m","value":"NaN"}},
                {{"metric":"m","timestamp":-1}},{{"metric":"m"}}]}}"#
        );
        ws.send(Message::text(body)).await.unwrap();
    }
    ws.send(Message::text(r#"{"seq":8,"events":7}"#)).await.unwrap();
    ws.send(Message::text(r#"{"seq":9,"events":[{]}"#)).await.unwrap();
    for seq in seqs {
        let ack: serde_json::Value =
            serde_json::from_str(&ws.next().await.unwrap().unwrap().into_text().unwrap()).unwrap();
        assert_eq!(
            (&ack["ack"], &ack["accepted"], &ack["rejected"]),
            (&seq.into(), &1.into(), &2.into()),
            "{ack}"
        );
        assert_eq!(
            (&ack["errors"][0]["code"], &ack["errors"][1]["code"]),
            (&"value_invalid".into(), &"timestamp_too_old".into())
        );
    }
    for seq in [8, 9] {
        let nack: serde_json::Value =
            serde_json::from_str(&ws.next().await.unwrap().unwrap().into_text().unwrap()).unwrap();
        assert_eq!(
            (&nack["nack"], &nack["error"]["code"]),
            (&seq.into(), &"body_unreadable".into()),
            "{nack}"
        );
        assert!(
            nack.get("retry_after_ms").is_none() && nack["final"] == true,
            "sending it again would not help: {nack}"
        );
    }
}

/// Reads until the close; returns the messages before it, the code and the reason.
async fn farewell(ws: &mut Socket) -> (Vec<String>, Option<u16>, String) {
    let mut said = Vec::new();
    let read = async {
        loop {
            match ws.next().await {
                Some(Ok(Message::Close(Some(frame)))) => {
                    return (Some(u16::from(frame.code)), frame.reason.to_string());
                }
                Some(Ok(Message::Close(None))) => return (Some(1005), String::new()),
                Some(Ok(Message::Text(text))) => said.push(text.to_string()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return (None, String::new()),
            }
        }
    };
    let (code, reason) = tokio::time::timeout(PATIENCE, read).await.expect("still open");
    (said, code, reason)
}

#[tokio::test]
async fn a_message_that_is_none_closes_its_socket_alone_and_says_why() {
    let config = Config::defaults().with(|c| {
        c.ws.max_message = ByteSize::of(10_000);
        c.ws.max_subscriptions = 1;
    });
    let (address, _stop) = listen(config).await;
    let mut good = connect(address).await;
    let deep = format!(r#"{{"events":{}"#, "[".repeat(9_000));
    for bad in [
        "",
        "{",
        "[]",
        "7",
        "garbage",
        r#"{"seq":-1,"events":[]}"#,
        r#"{"seq":1}"#,
        r#"{"events":[]}"#,
        r#"{"x":1}"#,
        r#"{"subscribe":"a","unsubscribe":"a"}"#,
        r#"{"subscribe":7}"#,
        &deep,
    ] {
        let mut ws = connect(address).await;
        for seq in 1..=3 {
            ws.send(Message::text(format!(r#"{{"seq":{seq},"events":[{{"metric":"m"}}]}}"#)))
                .await
                .unwrap();
        }
        ws.send(Message::text(bad)).await.unwrap();
        let (said, code, reason) = farewell(&mut ws).await;
        assert_eq!((said.len(), code), (4, Some(1002)), "{bad:.40}: {said:?}");
        assert!(
            (1..=3).all(|seq| said[seq - 1].contains(&format!("\"ack\":{seq},"))),
            "the acks that are due: {said:?}"
        );
        assert!(
            said[3].starts_with(r#"{"error":{"#) && said[3].contains("body_unreadable"),
            "then why: {said:?}"
        );
        assert!(reason.starts_with("body_unreadable: ") && reason.len() <= 123, "{reason}");
    }
    let says = async |message: Message| {
        let mut ws = connect(address).await;
        ws.send(message).await.unwrap();
        farewell(&mut ws).await
    };
    let (said, code, reason) = says(Message::binary(vec![0xff; 100])).await;
    assert!(
        code == Some(1003) && said[0].contains("text, not binary") && !reason.is_empty(),
        "{said:?} {reason}"
    );
    let (said, code, reason) = says(Message::text("x".repeat(20_000))).await;
    assert!(
        code == Some(1009) && said[0].contains("message_too_large") && !reason.is_empty(),
        "{code:?} {said:?} {reason}"
    );
    let subscribe = |name: &str| Message::text(format!(r#"{{"subscribe":"{name}","query":{{}}}}"#));
    let mut ws = connect(address).await;
    ws.send(subscribe("a")).await.unwrap();
    ws.send(subscribe("b")).await.unwrap();
    let (_, code, reason) = farewell(&mut ws).await;
    assert!(code == Some(1008) && reason.contains("ws.max_subscriptions"), "{code:?} {reason}");
    let (_, code, reason) = says(subscribe(&"n".repeat(129))).await;
    assert!(code == Some(1008) && reason.contains("128 bytes"), "{code:?} {reason}");
    acked(&mut good, 1).await;
}

#[tokio::test]
async fn frames_that_are_none_are_told_after_the_acks_that_are_due() {
    let (address, _stop) = listen(Config::defaults()).await;
    // A frame as a client sends it, with a zero mask.
    let frame = |first: u8, payload: &[u8]| {
        [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
    };
    let event = frame(0x81, br#"{"seq":1,"events":[{"metric":"m"}]}"#);
    for (bad, code) in [
        (frame(0x81, b"{\"seq\":2,\"events\":[\"\xff\"]}"), 1007u16),
        (frame(0x81, b"\xc0\x80"), 1007),
        (frame(0xf1, b"x"), 1002),
        (frame(0x83, b"x"), 1002),
        (frame(0x80, b"x"), 1002),
        (vec![0x81, 1, b'x'], 1002),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&[HANDSHAKE.as_bytes(), &event, &bad].concat()).await.unwrap();
        let mut heard = Vec::new();
        tokio::time::timeout(PATIENCE, socket.read_to_end(&mut heard))
            .await
            .expect("closed")
            .unwrap();
        let text = String::from_utf8_lossy(&heard);
        let places =
            [r#""ack":1,"#, r#"{"error":{"#, "message_unreadable: "].map(|part| text.find(part));
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{bad:x?}: {text}");
        assert!(heard.windows(2).any(|bytes| bytes == code.to_be_bytes()), "{code}: {text}");
    }
}

#[tokio::test]
async fn a_close_frame_is_answered_with_its_own_code() {
    use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
    let (address, _stop) = listen(Config::defaults()).await;
    for (frame, code) in [
        (Some(CloseFrame { code: CloseCode::Normal, reason: "done".into() }), 1000),
        (Some(CloseFrame { code: CloseCode::from(4001), reason: "".into() }), 4001),
        (None, 1005),
    ] {
        let mut ws = connect(address).await;
        acked(&mut ws, 1).await;
        ws.close(frame).await.unwrap();
        assert_eq!(farewell(&mut ws).await.1, Some(code));
        assert!(
            tokio::time::timeout(PATIENCE, ws.next()).await.expect("ended").is_none(),
            "a clean end"
        );
    }
}

#[tokio::test]
async fn what_was_read_before_a_close_is_appended() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    let (address, _stop) = serve(gateway).await;
    let mut ws = connect(address).await;
    for seq in 0..20 {
        ws.send(Message::text(format!(r#"{{"seq":{seq},"events":[{{"metric":"m"}}]}}"#)))
            .await
            .unwrap();
    }
    ws.close(None).await.unwrap();
    while ws.next().await.is_some_and(|message| message.is_ok()) {}
    let all = async {
        while log.batches.lock().unwrap().len() < 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("all were appended");
}

#[tokio::test]
async fn a_stop_and_a_revoked_key_say_why() {
    let (plain, prefix, sha256) = new_key([7; 24]);
    let stored = StoredKey {
        prefix,
        sha256,
        tenant: "acme".into(),
        scopes: vec![Scope::Write],
        expires_ms: None,
    };
    let config = Config::defaults().with(|c| c.ws.update_interval = Duration::from_millis(20));
    let (gateway, _) = gateway(config, KeyTable::of(KeysFile { keys: vec![stored] }));
    let (address, stop) = serve(gateway.clone()).await;
    let open = async || {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let mut request = format!("ws://{address}/v1/ws").into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {plain}").parse().unwrap());
        tokio_tungstenite::connect_async(request).await.unwrap().0
    };
    let mut revoked = open().await;
    acked(&mut revoked, 1).await;
    let keys = gateway.deps.keys.swap(Arc::new(KeyTable::of(KeysFile::default())));
    let (_, code, reason) = farewell(&mut revoked).await;
    assert_eq!((code, reason.as_str()), (Some(1008), "the key is not valid any more"));
    gateway.deps.keys.store(keys);
    let mut stopped = open().await;
    acked(&mut stopped, 1).await;
    stop.send_replace(true);
    let (_, code, reason) = farewell(&mut stopped).await;
    assert_eq!((code, reason.as_str()), (Some(1001), "the server stops"));
}

#[tokio::test]
async fn a_subscription_that_is_none_is_an_error_and_the_socket_stays_open() {
    let (address, _stop) = listen(Config::defaults()).await;
    let mut ws = connect(address).await;
    let mut said = async |message: &str| {
        ws.send(Message::text(message)).await.unwrap();
        let said =
            tokio::time::timeout(PATIENCE, ws.next()).await.expect("an answer").unwrap().unwrap();
        said.into_text().unwrap().to_string()
    };
    let nope = said(r#"{"unsubscribe":"nope"}"#).await;
    assert!(
        nope.starts_with(r#"{"error":{"#)
            && nope.contains("no_such_subscription")
            && nope.contains("nope"),
        "{nope}"
    );
    let wrong = said(r#"{"subscribe":"q","query":{"step":3600}}"#).await;
    assert!(
        wrong.starts_with(r#"{"update":"q","error":{"#) && wrong.contains("query_invalid"),
        "{wrong}"
    );
    assert!(
        said(r#"{"unsubscribe":"q"}"#).await.contains("no_such_subscription"),
        "it was not taken"
    );
    assert!(
        said(r#"{"subscribe":"q","query":{"metric":"m"}}"#).await.starts_with(r#"{"update":"q","#)
    );
    ws.send(Message::text(r#"{"unsubscribe":"q"}"#)).await.unwrap();
    acked(&mut ws, 9).await;
}

#[tokio::test]
async fn a_browser_sends_its_key_as_a_subprotocol() {
    let (plain, prefix, sha256) = new_key([7; 24]);
    let stored = StoredKey {
        prefix,
        sha256,
        tenant: "acme".into(),
        scopes: vec![Scope::Write],
        expires_ms: None,
    };
    let (gateway, log) = gateway(Config::defaults(), KeyTable::of(KeysFile { keys: vec![stored] }));
    let (address, _stop) = serve(gateway).await;
    let open = async |headers: &[(&'static str, String)]| {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let mut request = format!("ws://{address}/v1/ws").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        tokio_tungstenite::connect_async(request).await
    };
    let protocol = |value: String| ("sec-websocket-protocol", value);
    let (mut ws, answer) = open(&[protocol(format!("bearer, {plain}"))]).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "bearer", "and never the key");
    acked(&mut ws, 1).await;
    assert_eq!(&*log.batches.lock().unwrap()[0].tenant, "acme");
    let bearer = ("authorization", format!("Bearer {plain}"));
    for (headers, status) in [
        (vec![protocol("bearer, wrong".to_owned())], 401),
        (vec![protocol("bearer".to_owned())], 401),
        (vec![protocol(plain.clone())], 401),
        (vec![protocol(format!("{plain}, bearer"))], 401),
        (vec![protocol(format!("bearer, {plain}")), bearer.clone()], 400),
    ] {
        match open(&headers).await {
            Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
                assert_eq!(answer.status(), status, "{headers:?}")
            }
            other => panic!("{headers:?}: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_harm_a_socket(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        text in ".{0,200}",
        cut in 0usize..60,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = Config::defaults().with(|c| c.server.header_timeout = PATIENCE);
            let (address, _stop) = listen(config).await;
                        // Any text, a truncated valid message, invalid frames, and bytes that are
                        // not HTTP.
            let valid = r#"{"seq":1,"events":[{"metric":"m","value":1}]}"#;
            for text in [text, valid.chars().take(cut).collect()] {
                let mut ws = connect(address).await;
                ws.send(Message::text(text)).await.unwrap();
                let answer = tokio::time::timeout(PATIENCE, ws.next()).await.expect("an answer");
                let begins = [
                    r#"{"ack":"#, r#"{"accepted":"#, r#"{"error":"#,
                    r#"{"final":"#, r#"{"nack":"#, r#"{"update":"#,
                ];
                let is_known = |text: &str| begins.iter().any(|begin| text.starts_with(begin));
                let said = matches!(&answer, Some(Ok(Message::Text(text))) if is_known(text));
                assert!(said, "{answer:?}");
            }
            let mut raw = TcpStream::connect(address).await.unwrap();
            raw.write_all(HANDSHAKE.as_bytes()).await.unwrap();
            raw.write_all(&noise).await.unwrap();
            drop(raw);
            let mut raw = TcpStream::connect(address).await.unwrap();
            raw.write_all(&noise).await.unwrap();
            raw.shutdown().await.unwrap();
            let mut answer = Vec::new();
            // A reset is as good as an answer.
            let read = tokio::time::timeout(PATIENCE, raw.read_to_end(&mut answer)).await;
            let _ = read.expect("ended");
            let text = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{text}");
            acked(&mut connect(address).await, 1).await;
        });
    }
}

#[tokio::test]
async fn a_slow_body_is_told_408() {
    let config = Config::defaults().with(|c| c.server.body_timeout = Duration::from_millis(200));
    let (address, _stop) = listen(config).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket
        .write_all(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        .await
        .unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("ended").unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
}
