//! The published SDKs, unchanged, against a server behind a proxy that answers 503 now and then, and
//! that is killed and started again: every event counts once, with the labels of the mapping.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{PATIENCE, Server, agent, free_port, wait_until};

const EVENTS: u64 = 1_000;

const MAPPING: &str = r#"
[[map]]
event = "Order Completed"
metric = "orders"
value = "/properties/revenue"
labels = { plan = "/properties/plan" }

[[map]]
source = "ga4"
event = "purchase"
metric = "orders"
value = "/params/value"
labels = { plan = "/params/plan" }

[[map]]
source = "cloudevents"
event = "com.example.*"
metric = "orders"
value = "/data/revenue"
user = "/subject"
labels = { plan = "/data/plan" }
"#;

/// How long a request waits for a server that is being started again, as behind a load balancer.
const UPSTREAM_WAIT: Duration = Duration::from_secs(8);

/// How often each of both happens, so that no client runs out of attempts.
const INJECTED: u64 = 8;

/// A proxy that speaks HTTP: of every six requests it answers one 503 itself, and one 503 although
/// the server took it, until each has happened often enough.
struct Moody {
    port: u16,
    shared: Arc<MoodyState>,
}

#[derive(Default)]
struct MoodyState {
    upstream: u16,
    requests: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
    ended: AtomicBool,
}

const TRY_LATER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    content-length: 0\r\nconnection: close\r\n\r\n";

impl Moody {
    fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(MoodyState { upstream, ..MoodyState::default() });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), shared) = (client, accepting.clone()) else { continue };
                // A client may go away at any time, which ends its connection and nothing else.
                std::thread::spawn(move || shared.serve(client).ok());
            }
        });
        Self { port, shared }
    }
}

impl Drop for Moody {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl MoodyState {
    fn serve(&self, client: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let (mut out, request) = (client, read_request(&mut reader)?);
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let has_room = |count: &AtomicU64| count.load(Ordering::SeqCst) < INJECTED;
        if number % 6 == 1 && has_room(&self.refused) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return out.write_all(TRY_LATER);
        }
        let answer = self.forward(&request).ok().filter(|answer| answer.ends_with_body());
        let is_taken = answer.as_ref().is_some_and(Answer::is_success);
        if number % 6 == 4 && is_taken && has_room(&self.lost) {
            self.lost.fetch_add(1, Ordering::SeqCst);
            return out.write_all(TRY_LATER);
        }
        out.write_all(answer.as_ref().map_or(TRY_LATER, |answer| &answer.0))
    }

    fn forward(&self, request: &[u8]) -> std::io::Result<Answer> {
        let deadline = Instant::now() + UPSTREAM_WAIT;
        let mut server = loop {
            match TcpStream::connect(("127.0.0.1", self.upstream)) {
                Ok(server) => break server,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        server.write_all(request)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(Answer(answer))
    }
}

struct Answer(Vec<u8>);

impl Answer {
    /// Whether the server came to the end of its head: one that was killed did not.
    fn ends_with_body(&self) -> bool {
        self.0.windows(4).any(|part| part == b"\r\n\r\n")
    }

    /// Whether the server took the events; one that is just starting may answer 503 itself.
    fn is_success(&self) -> bool {
        self.0.starts_with(b"HTTP/1.1 2")
    }
}

/// A request with its body, whatever its framing; the connection ends with its answer.
fn read_request(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let (mut request, mut length, mut is_chunked) = (Vec::new(), 0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        is_chunked |= lower.starts_with("transfer-encoding:") && lower.contains("chunked");
        if lower == "\r\n" {
            request.extend_from_slice(b"connection: close\r\n\r\n");
            break;
        }
        if !lower.starts_with("connection:") {
            request.extend_from_slice(line.as_bytes());
        }
    }
    if !is_chunked {
        let start = request.len();
        request.resize(start + length, 0);
        reader.read_exact(&mut request[start..])?;
        return Ok(request);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        request.extend_from_slice(line.as_bytes());
        let size = usize::from_str_radix(line.trim(), 16).expect("the size of a chunk");
        let start = request.len();
        request.resize(start + size + 2, 0);
        reader.read_exact(&mut request[start..])?;
        if size == 0 {
            return Ok(request);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An SDK as scripts/install-test-tools installs it; `None` if it is not there.
fn client(script: &str) -> Option<Command> {
    let tools = root().join("data-sets/tools/clients");
    let path = root().join("tests/it/clients").join(script);
    let (program, is_there) = if script.ends_with(".js") {
        let has_node = Command::new("node").arg("--version").output().is_ok();
        (PathBuf::from("node"), has_node && tools.join("node_modules/cloudevents").is_dir())
    } else {
        let python = tools.join("python/bin/python");
        (python.clone(), python.exists())
    };
    if !is_there {
        eprintln!("skipped: the client is missing, scripts/install-test-tools installs it");
        return None;
    }
    let mut command = Command::new(program);
    command
        .arg(path)
        .env("NODE_PATH", tools.join("node_modules"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Some(command)
}

fn key(file: &Path, scope: &str) -> String {
    let file = file.display().to_string();
    let args = ["keys", "add", "--tenant", "shop", "--scopes", scope, "--file", &file];
    String::from_utf8(Server::cli(&args).stdout).expect("text").trim().to_owned()
}

fn read(server: &Server, key: &str, path: &str) -> Value {
    let request = agent().get(format!("{}{path}", server.url));
    let mut answer =
        request.header("authorization", format!("Bearer {key}")).call().expect("an answer");
    let text = answer.body_mut().read_to_string().expect("text");
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

/// Runs a client, kills the server in between, and checks what was counted.
fn every_event_counts_once(name: &str, script: &str, args: &[&str], env: &[(&str, &str)]) {
    let Some(mut command) = client(script) else { return };
    let _busy = crate::machine::busy();
    let dir = tempfile::tempdir().expect("a directory");
    let (keys, mapping) = (dir.path().join("keys.toml"), dir.path().join("collect.toml"));
    let (writer, reader) = (key(&keys, "write"), key(&keys, "read"));
    std::fs::write(&mapping, MAPPING).expect("written");
    let settings = [
        ("auth.keys_file", keys.display().to_string()),
        ("collect.mapping_file", mapping.display().to_string()),
        ("flush.interval", "200ms".to_owned()),
    ];
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let (data, port) = (dir.path().join("data"), free_port());
    let server = Server::start_on(&data, port, &settings);
    let proxy = Moody::start(port);
    let url = format!("http://127.0.0.1:{}", proxy.port);
    // A pipe would make a client that complains much wait for its reader.
    let complaints = dir.path().join("complaints");
    let mut running = command
        .args([url.as_str(), &writer, &EVENTS.to_string()])
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&complaints).expect("a file"))
        .spawn()
        .expect("the client starts");
    wait_until("the client sends", || proxy.shared.requests.load(Ordering::SeqCst) >= 3);
    server.kill();
    let server = Server::start_on(&data, port, &settings);
    let query = "/v1/query?metric=orders&step=all&agg=count,sum&by=plan";
    let figures = |answer: &Value| {
        let series = answer["series"].as_array().cloned().unwrap_or_default();
        let figure = |one: &Value| {
            let point = &one["points"][0];
            json!([one["labels"]["plan"], point["count"], point["sum"]])
        };
        series.iter().map(figure).collect::<Vec<_>>()
    };
    let sum = |first: u64| (0..EVENTS).filter(|n| n % 3 == first).sum::<u64>();
    let expected =
        [json!(["free", 334, sum(0)]), json!(["pro", 333, sum(1)]), json!(["team", 333, sum(2)])];
    // Begins anew whenever something is counted: a client of a thousand requests takes its time.
    let (mut last, mut since) = (Vec::new(), Instant::now());
    while last != expected && since.elapsed() < PATIENCE {
        let ended = running.try_wait().expect("waited");
        let found = figures(&read(&server, &reader, query));
        if found != last {
            (last, since) = (found, Instant::now());
        }
        if ended.is_some_and(|status| !status.success()) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // A client that runs on ends with its input.
    drop(running.stdin.take());
    if last != expected {
        let _ = running.kill();
    }
    let status = running.wait().expect("waited");
    let complaint =
        String::from_utf8_lossy(&std::fs::read(&complaints).expect("read")).into_owned();
    assert!(last == expected, "{name}: {last:?}, and not {expected:?}\n{complaint}");
    assert!(status.success(), "{name}: {status}\n{complaint}");
    let (refused, lost) =
        (proxy.shared.refused.load(Ordering::SeqCst), proxy.shared.lost.load(Ordering::SeqCst));
    assert!(refused > 0 && lost > 0, "{name}: {refused} were refused, {lost} answers lost");
    // Queries count what shards hold, the accounting what they have flushed.
    let copies = || {
        let accounting = read(&server, &reader, "/v1/accounting");
        let hours = accounting["hours"].as_array().cloned().unwrap_or_default();
        hours.iter().filter_map(|hour| hour["deduplicated"].as_u64()).sum::<u64>()
    };
    wait_until("a copy of an event is flushed as a duplicate", || copies() > 0);
    eprintln!("{name}: {refused} requests refused, {lost} answers lost");
}

#[test]
fn segment_for_node_counts_once() {
    every_event_counts_once("@segment/analytics-node", "segment.js", &[], &[]);
}

#[test]
fn segment_for_python_counts_once() {
    every_event_counts_once("segment-analytics-python", "segment_orders.py", &[], &[]);
}

#[test]
fn rudderstack_for_node_counts_once() {
    every_event_counts_once("@rudderstack/rudder-sdk-node", "rudder.js", &[], &[]);
}

#[test]
fn posthog_for_node_counts_once() {
    every_event_counts_once("posthog-node", "posthog.js", &[], &[]);
}

#[test]
fn posthog_for_node_version_1_counts_once() {
    let mode = [("POSTHOG_CAPTURE_MODE", "v1")];
    every_event_counts_once("posthog-node v1", "posthog.js", &[], &mode);
}

#[test]
fn posthog_for_python_counts_once() {
    every_event_counts_once("posthog", "posthog_orders.py", &["v0"], &[]);
}

#[test]
fn posthog_for_python_version_1_counts_once() {
    every_event_counts_once("posthog v1", "posthog_orders.py", &["v1"], &[]);
}

#[test]
fn ga4mp_counts_once() {
    every_event_counts_once("ga4mp", "ga4.py", &[], &[]);
}

#[test]
fn cloudevents_for_node_count_once() {
    every_event_counts_once("cloudevents (npm)", "cloudevents.js", &[], &[]);
}

#[test]
fn cloudevents_for_python_count_once() {
    every_event_counts_once("cloudevents (PyPI)", "cloudevents_orders.py", &[], &[]);
}

#[test]
fn a_mapping_is_read_again_when_its_file_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mapping, new) = (dir.path().join("collect.toml"), dir.path().join("new"));
    let write = |text: &str| {
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &mapping).expect("moved");
    };
    let entry = |metric: &str| format!("[[map]]\nevent = \"x\"\nmetric = \"{metric}\"\n");
    write(&entry("before"));
    let settings = [("collect.mapping_file", mapping.to_str().expect("UTF-8"))];
    let server = Server::start(&dir.path().join("data"), &settings);
    let track = || {
        let request = agent().post(format!("{}/v1/track", server.url));
        let answer = request.send(r#"{"event":"x","userId":"u"}"#).expect("an answer");
        assert_eq!(answer.status(), 200);
    };
    let is_counted = |metric: &str| {
        let path = format!("/v1/query?metric={metric}&step=all");
        !read(&server, "", &path)["series"].as_array().expect("series").is_empty()
    };
    track();
    wait_until("the first mapping counts", || is_counted("before"));
    write(&entry("after"));
    wait_until("the second mapping counts", || {
        track();
        is_counted("after")
    });
    write("[[map]]\nevnt = \"x\"\n");
    server.signal(rustix::process::Signal::HUP);
    let log = dir.path().join("data").with_extension("server.log");
    let complains = || std::fs::read_to_string(&log).expect("a log").contains("did you mean event");
    wait_until("the log lists the mistakes", complains);
    let answer = read(&server, "", "/v1/query?metric=after&step=all");
    let count = answer["series"][0]["points"][0]["count"].as_u64().expect("a count");
    track();
    wait_until("the mapping before it stays in force", || {
        let answer = read(&server, "", "/v1/query?metric=after&step=all");
        answer["series"][0]["points"][0]["count"].as_u64() > Some(count)
    });
    assert_eq!(server.stop(), Some(0));
}
