//! Hostile clients against the real binary: slow sockets, decompression bombs, unbounded labels,
//! forged log lines.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{PATIENCE, Server, agent, free_port};

fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.url.trim_start_matches("http://")).expect("connected")
}

/// A socket that sends a byte now and then, and what it was answered.
struct SlowSocket {
    socket: TcpStream,
    answer: Vec<u8>,
    is_closed: bool,
}

impl SlowSocket {
    fn new(socket: TcpStream) -> Self {
        socket.set_nonblocking(true).expect("set");
        Self { socket, answer: Vec::new(), is_closed: false }
    }

    /// Sends one more byte, and notes whether the server has closed the connection.
    fn go_on(&mut self) {
        let _ = self.socket.write(b"x");
        self.is_closed = match self.socket.read_to_end(&mut self.answer) {
            Err(error) => error.kind() != ErrorKind::WouldBlock,
            Ok(_) => true,
        };
    }
}

/// Sends a byte on each socket every 50 ms until the server has closed them all. Returns the answer
/// on each socket, or `None` if it was not closed: bytes do not keep a connection open for ever.
fn trickle(sockets: Vec<TcpStream>) -> Vec<Option<String>> {
    let mut slow: Vec<_> = sockets.into_iter().map(SlowSocket::new).collect();
    let began = Instant::now();
    while slow.iter().any(|one| !one.is_closed) && began.elapsed() < PATIENCE {
        slow.iter_mut().filter(|one| !one.is_closed).for_each(SlowSocket::go_on);
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = |one: SlowSocket| String::from_utf8_lossy(&one.answer).into_owned();
    slow.into_iter().map(|one| one.is_closed.then(|| text(one))).collect()
}

#[test]
fn a_crowd_of_slow_sockets_does_not_slow_others() {
    const CROWD: usize = 300;
    let dir = tempfile::tempdir().expect("a directory");
    let settings = [("server.header_timeout", "2s"), ("server.body_timeout", "2s")];
    let server = Server::start(&dir.path().join("data"), &settings);
    let begin = |start: &str| {
        let mut socket = connect(&server);
        socket.write_all(start.as_bytes()).expect("sent");
        socket
    };
    let heads: Vec<_> = (0..CROWD).map(|_| begin("POST /v1/events HTTP/1.1\r\nx-slow: ")).collect();
    let body = "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n{";
    let bodies: Vec<_> = (0..CROWD).map(|_| begin(body)).collect();
    let crowds = [heads, bodies].map(|sockets| std::thread::spawn(move || trickle(sockets)));
    let (began, mut sent, mut slow) = (Instant::now(), 0, 0);
    let agent = agent();
    while began.elapsed() < Duration::from_secs(5) || sent < 50 {
        assert!(began.elapsed() < PATIENCE, "{sent} writes");
        let asked = Instant::now();
        let answer = agent
            .post(format!("{}/v1/events", server.url))
            .header("content-type", "application/json");
        assert_eq!(answer.send(r#"{"metric":"m"}"#).expect("an answer").status().as_u16(), 202);
        slow += u64::from(asked.elapsed() > Duration::from_secs(2));
        sent += 1;
    }
    let [heads, bodies] = crowds.map(|crowd| crowd.join().expect("no panic"));
    // A short stall of the machine may slow one write down.
    assert!(slow * 10 < sent, "{slow} of {sent} writes took more than 2 s");
    assert!(heads.iter().all(Option::is_some), "a slow head is still open");
    assert!(bodies.iter().all(Option::is_some), "a slow body is still open");
    let told = bodies
        .iter()
        .flatten()
        .filter(|answer| answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"))
        .count();
    assert!(told > 0, "nobody was told 408: {:?}", bodies.first());
    server.await_query("/v1/query?metric=m&step=all", |a| {
        a["series"][0]["points"][0]["count"] == sent
    });
}

fn peak_bytes(server: &Server) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("a status");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

#[test]
fn hostile_bodies_take_no_memory_to_speak_of() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[("accept.max_body", "4MiB")]);
    assert_eq!(server.post(r#"{"metric":"m"}"#).0, 202);
    let before = peak_bytes(&server);
    let prefixes: [&[u8]; 5] = [
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0x81, 0xa6, b'l', b'a', b'b', b'e', b'l', b's', 0xdf, 0xff, 0xff, 0xff, 0xff],
    ];
    for prefix in prefixes {
        let (status, answer) = server.post_as(prefix, "application/msgpack", &[]);
        assert!(matches!(status, 400 | 413), "{prefix:x?}: {status} {answer}");
    }
    assert!(
        peak_bytes(&server) - before < 16 << 20,
        "lengths that were only told took {}",
        peak_bytes(&server) - before
    );

    let zeros = vec![b' '; 256 << 20];
    let bomb = zstd::encode_all(&zeros[..], 1).expect("packed");
    drop(zeros);
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(
            server.post_as(&bomb, "application/json", &[("content-encoding", "zstd")]).0,
            413
        );
    }
    let keys: String = (0..200_000).map(|n| format!(r#""k{n}":{n},"#)).collect();
    let many = format!(r#"{{"metric":"m","properties":{{{keys}"z":0}}}}"#);
    for body in [
        many,
        "[".repeat(4_000_000),
        format!(r#"{{"metric":"m","properties":{}"#, r#"{"a":"#.repeat(500_000)),
    ] {
        let (status, answer) = server.post(&body);
        assert!(matches!(status, 400 | 422), "{status} {answer}");
    }
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    // The memory that a bomb may take once on each of the few decompression threads. Ten bombs
    // without a limit would take 2.5 GiB.
    assert!(
        peak_bytes(&server) - before < 160 << 20,
        "bombs took {}",
        peak_bytes(&server) - before
    );
    assert_eq!(server.post(r#"{"metric":"m"}"#).0, 202);
}

fn metric(server: &Server, name: &str) -> u64 {
    let (status, page) = server.get("/metrics");
    assert_eq!(status, 200);
    let line = page
        .as_str()
        .expect("text")
        .lines()
        .find(|line| line.starts_with(name) && !line.starts_with('#'))
        .map(str::to_owned);
    line.and_then(|line| line.rsplit(' ').next().and_then(|n| n.parse().ok())).unwrap_or(0)
}

#[test]
fn a_label_bomb_fills_the_overflow_series_and_nothing_else() {
    const LIMIT: u64 = 50;
    const BOMB: u64 = 5_000;
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let settings =
        [("shards.count", "1"), ("tenants.max_series", "50"), ("flush.interval", "200ms")];
    let server = Server::start(&data, &settings);
    let old = r#"[{"metric":"m","labels":{"k":"old"}},{"metric":"quiet"}]"#;
    assert_eq!(server.post(old).0, 202);
    server.await_query("/v1/query?metric=quiet", |a| a["series"][0].is_object());
    let events: Vec<_> =
        (0..BOMB).map(|n| format!(r#"{{"metric":"m","labels":{{"k":"{n}"}}}}"#)).collect();
    assert_eq!(
        server.post(&format!("[{}]", events.join(","))).0,
        202,
        "events beyond the limit are taken"
    );
    assert_eq!(server.post(old).0, 202);
    let count = |a: &Value| a["series"][0]["points"][0]["count"].as_u64().unwrap_or(0);
    let ask = |server: &Server, metric: &str, wher: &str, expected: u64| {
        server
            .await_query(&format!("/v1/query?metric={metric}&step=all&where=%7B{wher}%7D"), |a| {
                count(a) == expected
            });
    };
    // Two series within the limit existed before: `old` and `quiet`.
    let beyond = BOMB - (LIMIT - 2);
    let check = |server: &Server| {
        ask(server, "m", "k=%22old%22", 2);
        ask(server, "quiet", "", 2);
        ask(server, "m", "", BOMB + 2);
        ask(server, "m", "__overflow__=%22true%22", beyond);
    };
    check(&server);
    let deadline = Instant::now() + PATIENCE;
    while metric(&server, "rollmill_events_overflowed_total") < beyond {
        assert!(
            Instant::now() < deadline,
            "{} of {beyond}",
            metric(&server, "rollmill_events_overflowed_total")
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(metric(&server, "rollmill_events_overflowed_total"), beyond);
    let listed = |server: &Server| {
        let (_, answer) = server.get("/v1/metrics");
        answer["metrics"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|m| m["series"].as_u64())
            .sum::<u64>()
    };
    assert!(listed(&server) <= LIMIT + 1, "{}", listed(&server));
    server.kill();

    let server = Server::start(&data, &settings);
    check(&server);
    assert_eq!(
        server
            .post(r#"[{"metric":"m","labels":{"k":"new"}},{"metric":"m","labels":{"k":"old"}}]"#)
            .0,
        202
    );
    ask(&server, "m", "__overflow__=%22true%22", beyond + 1);
    ask(&server, "m", "k=%22old%22", 3);
    assert_eq!(server.stop(), Some(0));
}

/// A log line that the server did not write.
const FORGED: &str = "1999-09-09T09:09:09.000000Z  INFO rollmill: forged";

/// Sends every kind of client-controlled text, with line ends, escapes and quotes in it.
fn say_everything(server: &Server) {
    let evil = format!("x\r\n{FORGED}\u{1b}[2J\u{9b}31m\"}},{{\"level\":\"INFO\"\n{FORGED}");
    let escaped = serde_json::to_string(&evil).expect("JSON");
    let encoded: String = evil.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for field in ["metric", "user", "id", "timestamp", "value", "labels", evil.as_str()] {
        let name = serde_json::to_string(field).expect("JSON");
        server.post(&format!(r#"{{"metric":"m",{name}:{escaped}}}"#));
    }
    server.post(&format!(
        r#"{{"metric":"m","labels":{{{escaped}:{escaped}}},"properties":{escaped}}}"#
    ));
    server.post(&format!(r#"{{"metric":"m","labels":{{"a":"{}"}}}}"#, "y".repeat(1 << 20)));
    server.post(&evil);
    for path in [
        "/",
        "/v1/query?metric=",
        "/v1/query?metric=m&where=",
        "/v1/labels/",
        "/v1/accounting?from=",
        "/v1/quarantine?all=",
    ] {
        server.get(&format!("{path}{encoded}"));
    }
    for name in [
        "user-agent",
        "authorization",
        "idempotency-key",
        "content-type",
        "x-request-id",
        "origin",
        "host",
    ] {
        let mut socket = connect(server);
        let head = format!(
            "POST /v1/events HTTP/1.1\r\n{name}: a\"\u{9b}31m\\\r\n {FORGED}\r\ncontent-length: \
             0\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).expect("sent");
        socket
            .write_all(
                format!("GET /{evil} HTTP/1.1\r\nuser-agent: \u{1b}[31m{FORGED}\r\n\r\n")
                    .as_bytes(),
            )
            .expect("sent");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set");
        // The answer does not matter, only what is logged.
        let _ = socket.read_to_end(&mut Vec::new());
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for message in [
            format!(r#"{{"subscribe":{escaped},"query":{{"metric":{escaped}}}}}"#),
            format!(r#"{{"seq":1,"events":[{{"metric":{escaped}}}]}}"#),
            evil,
        ] {
            let (mut ws, _) = tokio_tungstenite::connect_async(format!(
                "{}/v1/ws",
                server.url.replace("http", "ws")
            ))
            .await
            .expect("connected");
            ws.send(Message::text(message)).await.expect("sent");
            ws.next().await.expect("an answer").expect("an answer");
        }
    });
}

fn serve(data: &Path, json: bool) -> Server {
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
    command
        .args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"])
        .arg(data)
        .env("ROLLMILL_LOG", "trace");
    if json {
        command.arg("--log-json");
    }
    let mut server = Server::run(command, data, port);
    server.wait_alive();
    server
}

#[test]
fn nobody_forges_a_record_of_the_servers_log() {
    let dir = tempfile::tempdir().expect("a directory");
    for json in [false, true] {
        let data = dir.path().join(if json { "json" } else { "text" });
        let server = serve(&data, json);
        say_everything(&server);
        assert_eq!(server.stop(), Some(0));
        let log = std::fs::read_to_string(data.with_extension("server.log")).expect("UTF-8");
        let lines: Vec<_> = log.split('\n').filter(|line| !line.is_empty()).collect();
        assert!(
            lines.len() > 50,
            "only {} lines: a log that says nothing proves nothing",
            lines.len()
        );
        let mut levels = BTreeSet::new();
        for line in lines {
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(line.len() < 64 << 10, "a record of {} bytes", line.len());
            let at = if json {
                let record: Value =
                    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
                levels.insert(record["level"].as_str().expect("a level").to_owned());
                record["timestamp"].as_str().expect("a time").to_owned()
            } else {
                levels.insert(line.split_whitespace().nth(1).expect("a level").to_owned());
                line.to_owned()
            };
            assert!(
                at.starts_with("20") && at[4..].starts_with('-'),
                "a record that the server did not write: {line:?}"
            );
        }
        assert!(
            levels
                .iter()
                .all(|l| matches!(l.as_str(), "TRACE" | "DEBUG" | "INFO" | "WARN" | "ERROR")),
            "{levels:?}"
        );
    }
}
