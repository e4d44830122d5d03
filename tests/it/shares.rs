//! One tenant at its worst, and clients without any key, on a node with 2 GB: it survives, stays
//! ready, and serves the other tenant.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::support::{PATIENCE, Server, agent, free_port, wait_until};

const MEMORY: u64 = 2 << 30;
/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;
const HOUR: i64 = 3_600_000;
const WIDE: usize = 30_000;
/// Below `query.timeout`, 30 s: a query that waits until the attacker's are ended takes longer.
const SERVED_WITHIN: Duration = Duration::from_secs(25);

/// A memory cgroup, where the machine allows one. Peak memory is checked everywhere.
struct MemoryCgroup(Option<PathBuf>);

impl MemoryCgroup {
    fn new() -> Self {
        let name = format!("rollmill-test-{}", std::process::id());
        let first = (PathBuf::from("/sys/fs/cgroup/memory").join(&name), "memory.limit_in_bytes");
        let second = (PathBuf::from("/sys/fs/cgroup").join(&name), "memory.max");
        let made = |(dir, limit): &(PathBuf, &str)| {
            let made = std::fs::create_dir(dir).is_ok();
            let limited = made && std::fs::write(dir.join(limit), MEMORY.to_string()).is_ok();
            if made && !limited {
                let _ = std::fs::remove_dir(dir);
            }
            limited
        };
        let found = [first, second].into_iter().find(made).map(|(dir, _)| dir);
        if found.is_none() {
            eprintln!("no memory cgroup can be made here: only the peak is checked");
        }
        Self(found)
    }

    /// A command that starts the binary inside the cgroup.
    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_rollmill");
        let Some(dir) = &self.0 else { return Command::new(binary) };
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#, "sh"])
            .arg(dir)
            .arg(binary);
        command
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

fn key(file: &Path, tenant: &str, scopes: &str) -> String {
    let file = file.display().to_string();
    let output =
        Server::cli(&["keys", "add", "--tenant", tenant, "--scopes", scopes, "--file", &file]);
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// A node with two tenants.
struct TwoTenantNode {
    server: Server,
    attacker: String,
    neighbour: String,
    /// The neighbour's acknowledged events.
    acked: AtomicU64,
}

fn peak_bytes(server: &Server) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the node lives");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

impl TwoTenantNode {
    fn start(dir: &Path, cage: &MemoryCgroup) -> Self {
        let (data, file) = (dir.join("data"), dir.join("keys.toml"));
        let attacker = key(&file, "attacker", "write,read");
        let neighbour = key(&file, "neighbour", "write,read");
        let mut command = cage.command();
        let port = free_port();
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(&data);
        let settings = [
            ("AUTH_KEYS_FILE", file.display().to_string()),
            ("ACCEPT_MAX_AGE", "20000d".to_owned()),
            ("ARCHIVE_KEEP", "0".to_owned()),
            ("FLUSH_INTERVAL", "1s".to_owned()),
            ("SHARDS_COUNT", "8".to_owned()),
            ("QUERY_MAX_SERIES", "20000".to_owned()),
            ("QUERY_MAX_POINTS", "20000".to_owned()),
            ("SERVER_MAX_CONNECTIONS", "400".to_owned()),
            ("SERVER_BODY_TIMEOUT", "10s".to_owned()),
            ("TENANTS_MAX_METRICS", "200".to_owned()),
        ];
        command.envs(settings.map(|(name, value)| (format!("ROLLMILL_{name}"), value)));
        let mut server = Server::run(command, &data, port);
        server.wait_ready("gateway");
        Self { server, attacker, neighbour, acked: AtomicU64::new(0) }
    }

    fn get(&self, key: &str, path: &str) -> (u16, String) {
        let mut answer = agent()
            .get(format!("{}{path}", self.server.url))
            .header("authorization", format!("Bearer {key}"))
            .call()
            .expect("an answer");
        let text =
            answer.body_mut().with_config().limit(256 << 20).read_to_string().expect("a body");
        (answer.status().as_u16(), text)
    }

    fn post(&self, key: &str, body: &str) -> u16 {
        let request = agent()
            .post(format!("{}/v1/events", self.server.url))
            .header("content-type", "application/json");
        request
            .header("authorization", format!("Bearer {key}"))
            .send(body)
            .expect("an answer")
            .status()
            .as_u16()
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.url.trim_start_matches("http://")).expect("connected")
    }

    /// Creates the attacker's metrics: one with many series in one hour, and one over many hours.
    fn fill(&self) {
        let wide: Vec<String> = (0..WIDE)
            .map(|n| format!(r#"{{"metric":"wide","timestamp":{START},"labels":{{"s":"{n}"}}}}"#))
            .collect();
        let long: Vec<String> = (0..48_000)
            .map(|n| {
                let at = START + (n / 1_000) * HOUR;
                format!(
                    r#"{{"metric":"long","timestamp":{at},"user":"u{n}","labels":{{"s":"{}"}}}}"#,
                    n % 1_000
                )
            })
            .collect();
        for events in wide.chunks(6_000).chain(long.chunks(6_000)) {
            wait_until("the attacker's events are taken", || {
                self.post(&self.attacker, &format!("[{}]", events.join(","))) == 202
            });
        }
        wait_until("they are in the store", || {
            let (_, text) = self.get(&self.attacker, "/v1/accounting");
            let books: Value = serde_json::from_str(&text).expect("JSON");
            let hours = books["hours"].as_array().cloned().unwrap_or_default();
            hours.iter().filter_map(|hour| hour["aggregated"].as_u64()).sum::<u64>()
                >= 48_000 + WIDE as u64
        });
    }

    /// Sends one event of the neighbour and returns its acknowledgement latency.
    fn ack(&self, agent: &ureq::Agent) -> Duration {
        let began = Instant::now();
        let request = agent
            .post(format!("{}/v1/events", self.server.url))
            .header("content-type", "application/json");
        let answer = request
            .header("authorization", format!("Bearer {}", self.neighbour))
            .send(r#"{"metric":"mine"}"#);
        let status = answer.expect("an answer").status().as_u16();
        assert_eq!(status, 202, "the neighbour's write");
        self.acked.fetch_add(1, Ordering::Relaxed);
        began.elapsed()
    }

    /// Checks what must hold during every attack.
    fn neighbour_is_served(&self, attack: &str) {
        let agent = agent();
        for _ in 0..20 {
            self.ack(&agent);
        }
        let began = Instant::now();
        let (status, answer) = self.get(&self.neighbour, "/v1/query?metric=mine&step=all");
        assert_eq!(status, 200, "{attack}: the neighbour's query: {answer}");
        assert!(
            began.elapsed() < SERVED_WITHIN,
            "{attack}: the neighbour's query took {:?}",
            began.elapsed()
        );
        assert_eq!(self.get(&self.neighbour, "/v1/metrics").0, 200, "{attack}");
        self.is_ready(attack);
    }

    fn is_ready(&self, attack: &str) {
        let (status, why) = self.get("", "/readyz");
        assert_eq!(status, 200, "{attack}: {why}");
        assert_eq!(self.get("", "/healthz").0, 200, "{attack}");
        let peak = peak_bytes(&self.server);
        assert!(peak < MEMORY, "{attack}: {} MiB", peak >> 20);
    }

    fn heavy(&self, n: usize) -> String {
        let to = START + 48 * HOUR;
        match n % 4 {
            0 => format!("/v1/query?metric=long&by=s&from={START}&to={to}&agg=distinct,p99"),
            1 => format!(
                "/v1/query?metric=wide&step=all&from={START}&to={to}&where=%7Bs=~%22.*%7C{n}%22%7D"
            ),
            2 => format!(
                "/v1/query?metric=wide&by=s&step=all&from=0&to={to}&where=%7Bs=~%221.*%7C{n}%22%7D"
            ),
            _ => "/v1/labels/s/values".to_owned(),
        }
    }
}

/// Refused and answered queries with ever new matchers leave nothing behind (F2, F7), nor do
/// queries whose client has gone (F6).
fn queries(world: &TwoTenantNode) {
    let to = START + 48 * HOUR;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for n in 0..15 {
                    let n = thread * 100 + n;
                    let refused = format!(
                        "/v1/query?metric=wide&step=all&from={START}&where=%7Bs=~%22.*%7C{n}%22%7D"
                    );
                    let (status, answer) = world.get(&world.attacker, &refused);
                    assert!(matches!(status, 422 | 429 | 503), "{status} {answer:.300}");
                    let taken = format!(
                        "/v1/query?metric=wide&step=all&from={START}&where=%7Bs=~%221.*%7Cx{n}%22%\
                         7D"
                    );
                    let (status, answer) = world.get(&world.attacker, &taken);
                    assert!(matches!(status, 200 | 429), "{status} {answer:.300}");
                    let points =
                        format!("/v1/query?metric=long&by=s&from={START}&to={to}&agg=distinct");
                    let (status, answer) = world.get(&world.attacker, &points);
                    assert!(matches!(status, 422 | 429 | 503), "{status} {answer:.300}");
                    let names = "a,".repeat(2_000);
                    let by = format!("/v1/query?metric=wide&step=all&limit=1&by=s,{names}");
                    let (status, answer) = world.get(&world.attacker, &by);
                    assert!(matches!(status, 400 | 422 | 429 | 431), "{status} {answer:.300}");
                }
            });
        }
    });
    for n in 0..100 {
        let (mut socket, path) = (world.connect(), world.heavy(n));
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
            world.attacker
        )
        .expect("sent");
    }
    world.neighbour_is_served("queries that nobody waits for");
}

/// Answers that nobody reads (F4), without a key and with one.
fn readers_that_never_read(world: &TwoTenantNode) {
    let pipelined = "GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n".repeat(200);
    let hold = |request: &str| {
        let mut socket = world.connect();
        socket.set_write_timeout(Some(Duration::from_millis(200))).expect("set");
        // The server may already have closed this connection in favour of others.
        let _ = socket.write_all(request.as_bytes());
        socket
    };
    let nobody: Vec<_> = (0..500).map(|_| hold(&pipelined)).collect();
    world.neighbour_is_served("readers without a key that never read");
    drop(nobody);
    let to = START + 48 * HOUR;
    let large = format!(
        "/v1/query?metric=wide&by=s&step=all&from={START}&to={to}&where=%7Bs=~%221.*%22%7D"
    );
    let request = format!(
        "GET {large} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
        world.attacker
    )
    .repeat(20);
    let tenant: Vec<_> = (0..90).map(|_| hold(&request)).collect();
    world.neighbour_is_served("readers with a key that never read");
    drop(tenant);
}

/// Opens a WebSocket as soon as the tenant's share has room for it: the server may not have noticed
/// yet that the connections of the attack before are gone.
async fn opened(request: &Request) -> WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>> {
    let began = Instant::now();
    loop {
        match tokio_tungstenite::connect_async(request.clone()).await {
            Ok((socket, _)) => return socket,
            Err(why) => assert!(began.elapsed() < PATIENCE, "no WebSocket: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// WebSocket messages that begin and never end, and oversized queries (F5).
fn websockets(world: &TwoTenantNode) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let url = world.server.url.replace("http://", "ws://") + "/v1/ws";
    let mut handshakes = Vec::new();
    for _ in 0..60 {
        let mut request = url.as_str().into_client_request().expect("a request");
        request.headers_mut().insert(
            "authorization",
            format!("Bearer {}", world.attacker).parse().expect("a header"),
        );
        handshakes.push(request);
    }
    let open = runtime.block_on(async {
        let mut open = Vec::new();
        for request in handshakes {
            open.push(opened(&request).await);
        }
        let long = format!(r#"{{"subscribe":"q","query":{{"metric":"{}"}}}}"#, "m".repeat(1 << 20));
        for socket in &mut open[..10] {
            socket.send(Message::Text(long.clone().into())).await.expect("sent");
        }
        for socket in &mut open[..10] {
            let closed = tokio::time::timeout(PATIENCE, async {
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_close() {
                        return true;
                    }
                }
                true
            });
            assert_eq!(closed.await, Ok(true), "a long subscription closes its socket");
        }
        open
    });
    let begun: Vec<_> = open
        .into_iter()
        .skip(10)
        .map(|socket| {
            let MaybeTlsStream::Plain(stream) = socket.into_inner() else { panic!("no TLS") };
            let mut stream = stream.into_std().expect("a socket");
            stream.set_nonblocking(false).expect("set");
            stream.set_write_timeout(Some(Duration::from_millis(500))).expect("set");
            let mut head = vec![0x81, 0xff];
            head.extend((19_u64 << 20).to_be_bytes());
            head.extend([0; 4]);
            // The server may close the connection midway, which is the point.
            let _ = stream.write_all(&head).and_then(|()| stream.write_all(&vec![b' '; 18 << 20]));
            stream
        })
        .collect();
    world.neighbour_is_served("messages that do not end");
    drop(begun);
}

/// Bodies that stop just before their end (F8).
fn bodies(world: &TwoTenantNode) {
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-length: \
         20000000\r\n\r\n",
        world.attacker
    );
    let begun: Vec<_> = (0..17)
        .map(|_| {
            let mut socket = world.connect();
            socket.set_write_timeout(Some(Duration::from_millis(500))).expect("set");
            let _ = socket
                .write_all(head.as_bytes())
                .and_then(|()| socket.write_all(&vec![b' '; 19_900_000]));
            socket
        })
        .collect();
    world.neighbour_is_served("bodies that do not end");
    drop(begun);
}

/// Unbounded metric names (F9).
fn names(world: &TwoTenantNode) {
    for request in 0..10 {
        let events: Vec<String> =
            (0..2_000).map(|n| format!(r#"{{"metric":"name_{}"}}"#, request * 2_000 + n)).collect();
        wait_until("names are taken", || {
            world.post(&world.attacker, &format!("[{}]", events.join(","))) == 202
        });
    }
    wait_until("names beyond the limit are counted together", || {
        let (_, text) = world.get(&world.attacker, "/v1/metrics");
        let metrics: Value = serde_json::from_str(&text).expect("JSON");
        let metrics = metrics["metrics"].as_array().expect("metrics").clone();
        assert!(metrics.len() <= 201, "{} metrics", metrics.len());
        let (_, text) = world.get(&world.attacker, "/v1/query?metric=__overflow__&step=all");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let named = metrics
            .iter()
            .filter(|m| m["metric"].as_str().is_some_and(|name| name.starts_with("name_")))
            .count();
        answer["series"][0]["points"][0]["count"] == 20_000 - named as u64
    });
    let (_, limits) = world.get(&world.attacker, "/v1/limits");
    let limits: Value = serde_json::from_str(&limits).expect("JSON");
    assert_eq!(
        (&limits["metrics"]["max"], &limits["metrics"]["used"]),
        (&Value::from(200), &Value::from(200))
    );
    world.neighbour_is_served("names without end");
}

#[test]
fn no_tenant_ends_a_node_or_keeps_it_from_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let cage = MemoryCgroup::new();
    let world = TwoTenantNode::start(dir.path(), &cage);
    world.fill();
    world.neighbour_is_served("nothing");
    queries(&world);
    readers_that_never_read(&world);
    websockets(&world);
    bodies(&world);
    names(&world);
    let acked = world.acked.load(Ordering::Relaxed);
    wait_until("everything of the neighbour is counted, once", || {
        let (_, text) = world.get(&world.neighbour, "/v1/query?metric=mine&step=all");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        answer["series"][0]["points"][0]["count"] == acked
    });
    drop(world);
}

fn p99(mut acks: Vec<Duration>) -> Duration {
    acks.sort_unstable();
    acks[(acks.len() * 99 / 100).min(acks.len() - 1)]
}

#[test]
fn a_tenant_at_its_worst_does_not_double_the_acknowledgements_of_another() {
    let _measured = crate::machine::measured();
    let dir = tempfile::tempdir().expect("a directory");
    let world = Arc::new(TwoTenantNode::start(dir.path(), &MemoryCgroup(None)));
    world.fill();
    let measure = |seconds: u64| {
        let (agent, began) = (agent(), Instant::now());
        let mut acks = Vec::new();
        while began.elapsed() < Duration::from_secs(seconds) || acks.len() < 100 {
            assert!(began.elapsed() < PATIENCE, "{} acknowledgements", acks.len());
            acks.push(world.ack(&agent));
            std::thread::sleep(Duration::from_millis(5));
        }
        p99(acks)
    };
    measure(1);
    // Quiet and loud phases alternate, because other tests may run at the same time: one fair round
    // is enough, but the node must be ready in every round.
    let mut rounds = Vec::new();
    for _ in 0..5 {
        let quiet = measure(3);
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..16)
            .map(|thread| {
                let (world, stop) = (world.clone(), stop.clone());
                std::thread::spawn(move || {
                    for n in 0.. {
                        if stop.load(Ordering::Acquire) {
                            return;
                        }
                        let (status, answer) =
                            world.get(&world.attacker, &world.heavy(thread + 16 * n));
                        assert!(matches!(status, 200 | 422 | 429 | 503), "{status} {answer}");
                    }
                })
            })
            .collect();
        let loud = measure(3);
        world.is_ready("heavy queries");
        let (status, _) = world.get(&world.neighbour, "/v1/query?metric=mine&step=all");
        stop.store(true, Ordering::Release);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(status, 200, "the neighbour's query");
        rounds.push((quiet, loud));
        if loud <= 2 * quiet + Duration::from_millis(20) {
            return;
        }
    }
    panic!("p99 of the neighbour's acknowledgements, alone and beside the attacker: {rounds:?}");
}

#[test]
fn an_answer_of_a_key_that_is_revoked_is_not_there_to_be_read_any_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = TwoTenantNode::start(dir.path(), &MemoryCgroup(None));
    world.fill();
    let to = START + 48 * HOUR;
    let large = format!(
        "/v1/query?metric=wide&by=s&step=all&from={START}&to={to}&where=%7Bs=~%221.*%22%7D"
    );
    let mut socket = world.connect();
    let request = format!(
        "GET {large} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
        world.attacker
    )
    .repeat(60);
    socket.write_all(request.as_bytes()).expect("sent");
    std::thread::sleep(Duration::from_secs(2));
    let file = dir.path().join("keys.toml").display().to_string();
    assert!(
        Server::cli(&["keys", "revoke", &world.attacker[..11], "--file", &file]).status.success()
    );
    wait_until("the key is not valid any more", || {
        world.get(&world.attacker, "/v1/metrics").0 == 401
    });
    std::thread::sleep(Duration::from_secs(5));
    // Data in the kernel's buffers still arrives; the rest of the 60 answers does not.
    let mut read = Vec::new();
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let _ = socket.read_to_end(&mut read);
    let answers = read.windows(12).filter(|part| *part == b"HTTP/1.1 200").count();
    assert!(answers < 60, "{answers} answers");
}
