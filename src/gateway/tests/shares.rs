//! One tenant that misbehaves, next to another one.

use super::*;
use crate::clock::Stopwatch;

/// Keys with all scopes for the tenants `a` and `b`.
fn two_tenants() -> (KeyTable, [String; 2]) {
    let stored = |tenant: &str, random: [u8; 24]| {
        let (plain, prefix, sha256) = new_key(random);
        let scopes = vec![Scope::Write, Scope::Read, Scope::Admin];
        (StoredKey { prefix, sha256, tenant: tenant.to_owned(), scopes, expires_ms: None }, plain)
    };
    let (a, b) = (stored("a", [1; 24]), stored("b", [2; 24]));
    (KeyTable::of(KeysFile { keys: vec![a.0, b.0] }), [a.1, b.1])
}

fn get(uri: &str, key: &str) -> Request<Body> {
    Request::get(uri).header("authorization", format!("Bearer {key}")).body(Body::empty()).unwrap()
}

fn event(key: &str) -> Request<Body> {
    let request = Request::post("/v1/events").header("authorization", format!("Bearer {key}"));
    request.body(Body::from(r#"{"metric":"m"}"#)).unwrap()
}

/// Waits until every reservation is released.
async fn idle(gateway: &Gateway) {
    let began = Stopwatch::start();
    while gateway.shares.queries.usage("").held > 0
        || gateway.shares.query_memory.usage("").held > 0
    {
        // Queries run below the priority of others, and have to be scheduled to notice their end.
        let running = gateway.shares.queries.usage("");
        assert!(began.elapsed() < LATEST, "queries still run: {running:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_when_nobody_waits_for_it() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    for _ in 0..20 {
        let asked = gateway.clone();
        let request = Request::get("/v1/query?metric=until_ended").body(Body::empty()).unwrap();
        let asking = tokio::spawn(async move { call(&asked, request).await });
        while gateway.shares.queries.usage("").held == 0 {
            tokio::task::yield_now().await;
        }
        asking.abort();
        idle(&gateway).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_at_its_deadline() {
    let config = Config::defaults().with(|c| c.query.timeout = Duration::from_millis(200));
    let (gateway, _) = gateway(config, KeyTable::open());
    for path in ["/v1/query?metric=until_ended", "/v1/query?metric=until_ended&step=1d"] {
        let (status, answer, retry) =
            call(&gateway, Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!((status, retry.is_some()), (StatusCode::SERVICE_UNAVAILABLE, true), "{answer}");
        assert!(answer.contains("query_timeout") && answer.contains("query.timeout"), "{answer}");
    }
    idle(&gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_one_tenant_leave_room_for_another() {
    let (keys, [a, b]) = two_tenants();
    let config = Config::defaults().with(|c| {
        c.query.max_concurrent = 16;
        c.query.threads = 4;
        // The queries that are in the way do not end before the test, however long that takes.
        c.query.timeout = 10 * LATEST;
    });
    let (gateway, _) = gateway(config, keys);
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let (gateway, request) = (gateway.clone(), get("/v1/query?metric=until_ended", &a));
            tokio::spawn(async move { call(&gateway, request).await })
        })
        .collect();
    while gateway.shares.queries.usage("a").held_by_tenant < 4 {
        tokio::task::yield_now().await;
    }
    for uri in [
        "/v1/query?metric=m",
        "/v1/metrics",
        "/v1/accounting",
        "/v1/labels/x/values",
        "/v1/quarantine",
    ] {
        let (status, answer, retry) = call(&gateway, get(uri, &a)).await;
        assert_eq!(
            (status, retry.as_deref()),
            (StatusCode::TOO_MANY_REQUESTS, Some("1")),
            "{uri}: {answer}"
        );
        assert!(
            answer.contains("tenant_overloaded") && answer.contains("query.max_concurrent"),
            "{answer}"
        );
        assert_eq!(call(&gateway, get(uri, &b)).await.0, StatusCode::OK, "{uri}");
    }
    assert_eq!(
        call(&gateway, event(&a)).await.0,
        StatusCode::ACCEPTED,
        "writes do not wait for queries"
    );
    let (_, limits, _) = call(&gateway, get("/v1/limits", &b)).await;
    let limits: serde_json::Value = serde_json::from_str(&limits).unwrap();
    let shown = serde_json::json!({"total": 16, "tenant": 4, "used": 4, "used_by_tenant": 0});
    assert_eq!(limits["shares"]["query.max_concurrent"], shown);
    assert_eq!(limits["metrics"], serde_json::json!({"max": 10, "used": 3}));
    asking.iter().for_each(tokio::task::JoinHandle::abort);
    idle(&gateway).await;
}

#[tokio::test]
async fn bytes_in_flight_of_one_tenant_leave_room_for_another() {
    let (keys, [a, b]) = two_tenants();
    let (gateway, _) =
        gateway(Config::defaults().with(|c| c.accept.max_inflight = ByteSize::of(4 << 20)), keys);
    // Bodies that have begun but do not end.
    let mut begun = Vec::new();
    let mut bodies = Vec::new();
    for _ in 0..40 {
        let (sender, receiver) =
            tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::convert::Infallible>>(1);
        let body = Body::from_stream(futures::stream::unfold(receiver, async |mut receiver| {
            Some((receiver.recv().await?, receiver))
        }));
        let request = Request::post("/v1/events")
            .header("authorization", format!("Bearer {a}"))
            .body(body)
            .unwrap();
        let gateway = gateway.clone();
        begun.push(tokio::spawn(async move { call(&gateway, request).await }));
        sender.send(Ok(vec![b' '; 100_000].into())).await.unwrap();
        bodies.push(sender);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (status, answer, retry) = call(&gateway, event(&a)).await;
    assert_eq!((status, retry.as_deref()), (StatusCode::TOO_MANY_REQUESTS, Some("1")), "{answer}");
    assert!(
        answer.contains("tenant_overloaded") && answer.contains("accept.max_inflight"),
        "{answer}"
    );
    assert!(gateway.shares.inflight.usage("a").held_by_tenant <= 1 << 20);
    assert_eq!(
        call(&gateway, event(&b)).await.0,
        StatusCode::ACCEPTED,
        "the other tenant's writes are taken"
    );
    drop(bodies);
    for one in begun {
        let status = one.await.unwrap().0;
        assert!(
            matches!(status, StatusCode::BAD_REQUEST | StatusCode::TOO_MANY_REQUESTS),
            "{status}"
        );
    }
    assert_eq!(gateway.shares.inflight.usage("a").held, 0);
    assert_eq!(call(&gateway, event(&a)).await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn what_could_never_be_taken_is_not_to_be_sent_again() {
    let (keys, [a, _]) = two_tenants();
    let config = Config::defaults().with(|c| {
        c.accept.max_inflight = ByteSize::of(4 << 20);
        c.accept.max_body = ByteSize::of(3 << 20);
    });
    let (gateway, _) = gateway(config, keys);
    let sent = |path: &str, body: String| {
        let request = Request::post(path).header("authorization", format!("Bearer {a}"));
        call(&gateway, request.body(Body::from(body)).unwrap())
    };
    // Each of its events is kept with the context of all.
    let call = r#"{"type":"track","event":"e","userId":"u"}"#;
    let batch = |events: usize| {
        let (context, events) = ("x".repeat(4_000), vec![call; events].join(","));
        format!(r#"{{"context":{{"c":"{context}"}},"batch":[{events}]}}"#)
    };
    for (path, body) in
        [("/v1/batch", batch(1_000)), ("/v1/events", format!("[{}]", " ".repeat(2 << 20)))]
    {
        let (status, answer, retry) = sent(path, body).await;
        assert_eq!((status, retry), (StatusCode::PAYLOAD_TOO_LARGE, None), "{answer}");
        assert!(answer.contains("send several"), "{answer}");
    }
    assert_eq!(sent("/v1/batch", batch(100)).await.0, StatusCode::OK);
    let fits = format!("[{}{{\"metric\":\"m\"}}]", " ".repeat((1 << 20) - 70_000));
    assert_eq!(sent("/v1/events", fits).await.0, StatusCode::ACCEPTED);
    assert_eq!(gateway.shares.inflight.usage("a").held, 0);
}

#[tokio::test]
async fn what_is_reserved_for_a_body_is_what_it_takes() {
    let (gateway, _) = gateway(
        Config::defaults().with(|c| c.accept.max_inflight = ByteSize::of(3 << 20)),
        KeyTable::open(),
    );
    let packed = |bytes: usize| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packer, &vec![b' '; bytes]).unwrap();
        let body = Body::from(packer.finish().unwrap());
        Request::post("/v1/events").header("content-encoding", "gzip").body(body).unwrap()
    };
    // 2.2 MB would lie in 4 MiB if their room was doubled while they grow.
    for (bytes, expected) in
        [(2_200_000, StatusCode::BAD_REQUEST), (3_200_000, StatusCode::PAYLOAD_TOO_LARGE)]
    {
        let (status, answer, _) = call(&gateway, packed(bytes)).await;
        assert_eq!(status, expected, "{answer}");
        assert_eq!(gateway.shares.inflight.usage("default").held, 0);
    }
}

const LATEST: Duration = Duration::from_secs(60);

async fn serve(gateway: Arc<Gateway>) -> (std::net::SocketAddr, watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(server::serve(gateway, listener, stopped));
    (address, stop)
}

async fn ask(socket: &mut tokio::net::TcpStream, path: &str, key: &str) {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
}

/// Reads the first line of an answer.
async fn status(socket: &mut tokio::net::TcpStream) -> String {
    let mut head = vec![0; 12];
    let read = tokio::time::timeout(LATEST, socket.read_exact(&mut head))
        .await
        .expect("an answer in time");
    read.map_or_else(|error| error.to_string(), |_| String::from_utf8_lossy(&head).into_owned())
}

/// There is room for one large answer, but not for two.
fn room_for_one_answer(write_timeout: Duration) -> Config {
    Config::defaults().with(|c| {
        c.server.max_answers = ByteSize::of(30 << 20);
        c.server.write_timeout = write_timeout;
    })
}

const LARGE_ANSWER: &str = "/v1/query?metric=m&by=pad&limit=20000000";

/// Asks for a large answer, of which nothing is read, and waits until the server holds it.
async fn held_answer(gateway: &Gateway, address: std::net::SocketAddr) -> tokio::net::TcpStream {
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    ask(&mut socket, LARGE_ANSWER, "").await;
    while gateway.shares.answers.usage("default").held == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_are_bounded() {
    // The first answer stays until the second question is answered, which takes a busy machine
    // seconds.
    let (gateway, _) = gateway(room_for_one_answer(10 * LATEST), KeyTable::open());
    let (address, _stop) = serve(gateway.clone()).await;
    let _first = held_answer(&gateway, address).await;
    let mut second = tokio::net::TcpStream::connect(address).await.unwrap();
    ask(&mut second, LARGE_ANSWER, "").await;
    assert_eq!(status(&mut second).await, "HTTP/1.1 503", "there is no room for another one");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_are_dropped_in_time() {
    // Long enough that it is seen to be held.
    let (gateway, _) = gateway(room_for_one_answer(Duration::from_secs(5)), KeyTable::open());
    let (address, _stop) = serve(gateway.clone()).await;
    let mut first = held_answer(&gateway, address).await;
    let mut second = tokio::net::TcpStream::connect(address).await.unwrap();
    ask(&mut second, "/v1/query?metric=m&by=pad&limit=100", "").await;
    let began = Stopwatch::start();
    while gateway.shares.answers.usage("default").held > 0 {
        assert!(began.elapsed() < LATEST, "an answer that nobody takes is still held");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut taken = Vec::new();
    let _broken =
        tokio::time::timeout(LATEST, first.read_to_end(&mut taken)).await.expect("it is cut");
    assert!(taken.len() < 20_000_000, "{}", taken.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_slow_but_reads_gets_all_of_its_answer() {
    let config = Config::defaults().with(|c| c.server.write_timeout = Duration::from_secs(5));
    let (gateway, _) = gateway(config, KeyTable::open());
    let (address, _stop) = serve(gateway.clone()).await;
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    ask(&mut socket, "/v1/query?metric=m&by=pad&limit=20000000", "").await;
    let (mut taken, mut chunk) = (0, vec![0; 1 << 20]);
    while taken < 20_000_000 {
        let read = tokio::time::timeout(LATEST, socket.read(&mut chunk))
            .await
            .expect("more in time")
            .unwrap();
        assert!(read > 0, "cut after {taken} bytes");
        taken += read;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_without_a_key_give_way_and_those_with_one_stay() {
    let (keys, [a, _]) = two_tenants();
    let config = Config::defaults().with(|c| {
        c.server.max_connections = 16;
        // It ends a connection between two requests, too, and a busy machine takes longer for the
        // crowd than its default.
        c.server.header_timeout = LATEST;
    });
    let (gateway, _) = gateway(config, keys);
    let (address, _stop) = serve(gateway).await;
    let mut own = tokio::net::TcpStream::connect(address).await.unwrap();
    ask(&mut own, "/v1/query?metric=m", &a).await;
    assert_eq!(status(&mut own).await, "HTTP/1.1 200");
    let mut crowd = Vec::new();
    for n in 0..100 {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        // Some send nothing, some begin a request, some are refused, some do not read their
        // answers.
        let says = [
            "",
            "GET / HT",
            "GET /v1/query HTTP/1.1\r\nhost: localhost\r\n\r\n",
            "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n",
        ][n % 4];
        // The server may have evicted it already.
        let _ = socket.write_all(says.as_bytes()).await;
        crowd.push(socket);
    }
    for path in ["/healthz", "/readyz"] {
        let mut looks = tokio::net::TcpStream::connect(address).await.unwrap();
        ask(&mut looks, path, "").await;
        assert_eq!(status(&mut looks).await, "HTTP/1.1 200", "{path}");
    }
    let mut rest = vec![0; 4096];
    let _body = own.read(&mut rest).await.unwrap();
    ask(&mut own, "/v1/query?metric=m", &a).await;
    assert_eq!(status(&mut own).await, "HTTP/1.1 200", "a connection with a key stays");
    let mut byte = [0];
    let first =
        tokio::time::timeout(LATEST, crowd[0].read(&mut byte)).await.expect("the oldest gave way");
    assert!(matches!(first, Ok(0) | Err(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_tenant_leave_room_for_another() {
    let (keys, [a, b]) = two_tenants();
    let config = Config::defaults().with(|c| {
        c.server.max_connections = 16;
        // It ends a connection between two requests, too, and the first ones have to stay.
        c.server.header_timeout = LATEST;
    });
    let (gateway, _) = gateway(config, keys);
    let (address, _stop) = serve(gateway).await;
    let mut open = Vec::new();
    for n in 0..5 {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        ask(&mut socket, "/v1/query?metric=m", &a).await;
        assert_eq!(status(&mut socket).await, if n < 4 { "HTTP/1.1 200" } else { "HTTP/1.1 429" });
        open.push(socket);
    }
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    ask(&mut socket, "/v1/query?metric=m", &b).await;
    assert_eq!(status(&mut socket).await, "HTTP/1.1 200");
}

/// The header of a masked frame.
fn head(opcode: u8, length: u64) -> Vec<u8> {
    let mut head = vec![0x80 | opcode, 0xff];
    head.extend(length.to_be_bytes());
    head.extend([0; 4]);
    head
}

async fn websocket(address: std::net::SocketAddr) -> tokio::net::TcpStream {
    let (socket, _) =
        tokio_tungstenite::connect_async(format!("ws://{address}/v1/ws")).await.unwrap();
    match socket.into_inner() {
        tokio_tungstenite::MaybeTlsStream::Plain(stream) => stream,
        other => panic!("{other:?}"),
    }
}

/// The code with which the server closes a WebSocket, whatever it sends before.
async fn closed_with(socket: &mut tokio::net::TcpStream) -> Option<u16> {
    let mut read = Vec::new();
    let _reset =
        tokio::time::timeout(LATEST, socket.read_to_end(&mut read)).await.expect("it is closed");
    let close = read.windows(2).position(|pair| pair[0] == 0x88 && pair[1] >= 2)?;
    Some(u16::from_be_bytes([*read.get(close + 2)?, *read.get(close + 3)?]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_has_to_be_whole_in_time_whatever_pings_come_between() {
    // Long enough for a busy machine to read what comes of the message.
    let config = Config::defaults().with(|c| c.server.body_timeout = Duration::from_secs(3));
    let (gateway, _) = gateway(config, KeyTable::open());
    let (address, _stop) = serve(gateway.clone()).await;
    let mut idle = websocket(address).await;
    let mut socket = websocket(address).await;
    socket.write_all(&head(1, 500_000)).await.unwrap();
    socket.write_all(&[b' '; 300_000]).await.unwrap();
    let began = Stopwatch::start();
    while gateway.shares.inflight.usage("default").held < 300_000 {
        assert!(began.elapsed() < LATEST, "a message that comes in is not counted");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Pings do not count as part of a message, but cannot be sent within a frame. So they go to the
    // other socket, for longer than a message may take.
    for _ in 0..40 {
        idle.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(closed_with(&mut socket).await, Some(1008));
    let began = Stopwatch::start();
    while gateway.shares.inflight.usage("default").held > 0 {
        assert!(began.elapsed() < LATEST, "memory of a closed socket is still held");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (mut pong, mut text) = ([0; 2], vec![0; 6]);
    idle.read_exact(&mut pong).await.expect("pings alone are no message that is late");
    idle.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'{', b'}']).await.unwrap();
    let _some = idle.read(&mut text).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_in_are_counted_before_they_are_whole() {
    let config = Config::defaults().with(|c| {
        c.accept.max_inflight = ByteSize::of(4 << 20);
        // Messages that have room keep it, so none is closed because it is late.
        c.server.body_timeout = 10 * LATEST;
    });
    let (gateway, _) = gateway(config, KeyTable::open());
    let (address, _stop) = serve(gateway.clone()).await;
    let mut all = futures::stream::FuturesUnordered::new();
    for _ in 0..10 {
        let mut socket = websocket(address).await;
        socket.write_all(&head(1, 1_000_000)).await.unwrap();
        // The server may have closed it already.
        let _refused = socket.write_all(&[b' '; 900_000]).await;
        assert!(gateway.shares.inflight.usage("default").held <= 4 << 20);
        all.push(async move { closed_with(&mut socket).await });
    }
    // That the others stay open would only be seen by waiting for a while, which is too short on
    // some machine.
    for closed in 0..7 {
        assert!(all.next().await.is_some(), "{closed} of 10 messages had no room");
    }
    assert!(gateway.shares.inflight.usage("default").held <= 4 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_events_is_small() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let (address, _stop) = serve(gateway).await;
    for (bytes, code) in [(10_000, None), (20_000, Some(1008))] {
        let mut socket = websocket(address).await;
        let text = format!(r#"{{"subscribe":"q","query":{{"metric":"{}"}}}}"#, "m".repeat(bytes));
        socket.write_all(&head(1, text.len() as u64)).await.unwrap();
        socket.write_all(text.as_bytes()).await.unwrap();
        if code.is_some() {
            assert_eq!(closed_with(&mut socket).await, code);
        } else {
            assert!(
                tokio::time::timeout(LATEST, socket.read(&mut [0]))
                    .await
                    .expect("an update")
                    .unwrap()
                    > 0
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_are_read_where_tenants_take_turns_whatever_the_protocol() {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    let (keys, [a, b]) = two_tenants();
    let (gateway, _) = gateway(Config::defaults(), keys);
    let (address, _stop) = serve(gateway.clone()).await;
    // Occupies every thread that this tenant may use until it is released.
    let (let_go, held) = std::sync::mpsc::sync_channel::<()>(0);
    let held = Arc::new(std::sync::Mutex::new(held));
    let hold = || {
        let held = held.clone();
        gateway.readers.run(&"a".into(), move || held.lock().unwrap().recv().is_err())
    };
    let turns: Vec<_> = (0..64).map(|_| hold()).collect();
    let (events, records) =
        (vec![r#"{"metric":"m"}"#; 6_000].join(","), vec![r#"{"value":{}}"#; 9_000].join(","));
    let of_a = |path: &str, kind: &str, body: String| {
        let request = Request::post(path)
            .header("authorization", format!("Bearer {a}"))
            .header("content-type", kind);
        let (gateway, request) = (gateway.clone(), request.body(Body::from(body)).unwrap());
        tokio::spawn(async move { call(&gateway, request).await.0 })
    };
    let posted = of_a("/v1/events", "application/json", format!("[{events}]"));
    let produced = of_a(
        "/topics/m",
        "application/vnd.kafka.json.v2+json",
        format!(r#"{{"records":[{records}]}}"#),
    );
    let mut upgrade = format!("ws://{address}/v1/ws").into_client_request().unwrap();
    upgrade.headers_mut().insert("authorization", format!("Bearer {a}").parse().unwrap());
    let mut socket = tokio_tungstenite::connect_async(upgrade).await.unwrap().0;
    socket.send(Message::text(format!(r#"{{"seq":1,"events":[{events}]}}"#))).await.unwrap();
    socket.send(Message::text(r#"{"seq":2,"events":[{"metric":"m"}]}"#)).await.unwrap();
    for _ in 0..20 {
        assert_eq!(
            call(&gateway, event(&b)).await.0,
            StatusCode::ACCEPTED,
            "who sends little waits for nobody"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        !posted.is_finished() && !produced.is_finished(),
        "they were read where everybody waits for them"
    );
    assert!(
        tokio::time::timeout(Duration::from_millis(100), socket.next()).await.is_err(),
        "so was the message"
    );
    drop(let_go);
    assert!(futures::future::join_all(turns).await.into_iter().all(|turn| turn.unwrap()));
    assert_eq!(
        (posted.await.unwrap(), produced.await.unwrap()),
        (StatusCode::ACCEPTED, StatusCode::OK)
    );
    for ack in [r#""ack":1,"#, r#""ack":2,"#] {
        let said = tokio::time::timeout(Duration::from_secs(60), socket.next())
            .await
            .expect("an ack")
            .unwrap()
            .unwrap();
        assert!(said.to_text().unwrap().contains(ack), "{said}");
    }
}
