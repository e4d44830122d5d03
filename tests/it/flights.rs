//! Real input: the flights of 2013, sent in order of departure, give exactly the answers computed
//! independently.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rollmill::model::window::Hour;
use rollmill::persistence::store::SnapshotSource;
use rollmill::persistence::store::sqlite::SqliteStore;

use crate::support::{Server, agent, free_port};

#[derive(Default)]
struct Expected {
    count: u64,
    values: Vec<i64>,
    users: BTreeSet<String>,
}

/// The flights file, as set by the Makefile or next to the checkout.
pub fn flights() -> PathBuf {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/data/nycflights13/events_by_arrival.csv.gz");
    std::env::var_os("ROLLMILL_FLIGHTS").map_or(default, PathBuf::from)
}

/// An independent fold of the file: (hour, origin/carrier) to count, values and users.
fn fold() -> BTreeMap<(String, String), Expected> {
    let mut text = String::new();
    let file = std::fs::File::open(flights())
        .expect("the flights are there: run the tests through `make test`");
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let mut folded: BTreeMap<(String, String), Expected> = BTreeMap::new();
    for row in reader.records().map(|r| r.expect("a row")) {
        let hour = format!("{}:00:00Z", &row[0][..13]);
        let expected = folded.entry((hour, format!("{}/{}", &row[2], &row[3]))).or_default();
        expected.count += 1;
        if !row[6].is_empty() {
            expected.users.insert(row[6].to_owned());
        }
        if let Ok(value) = row[7].parse() {
            expected.values.push(value);
        }
    }
    folded
}

fn nearest_rank(sorted: &[i64], q: f64) -> f64 {
    sorted[((q * sorted.len() as f64).ceil() as usize).max(1) - 1] as f64
}

fn check_point(at: &str, expected: &mut Expected, point: &serde_json::Value) {
    assert_eq!(point["count"], expected.count, "count of {at}");
    assert_eq!(point["distinct"], expected.users.len(), "distinct of {at}");
    expected.values.sort_unstable();
    let exact = |name: &str, value: Option<i64>| match value {
        Some(value) => assert_eq!(point[name], value, "{name} of {at}"),
        None => assert!(point[name].is_null(), "{name} of {at} is {}", point[name]),
    };
    exact("sum", (!expected.values.is_empty()).then(|| expected.values.iter().sum()));
    exact("min", expected.values.first().copied());
    exact("max", expected.values.last().copied());
    for (name, q) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
        if expected.values.is_empty() {
            assert!(point[name].is_null());
            continue;
        }
        let rank = nearest_rank(&expected.values, q);
        let got = point[name].as_f64().expect("a number");
        assert!(
            (got - rank).abs() <= rank.abs() * 0.01 + 1e-9,
            "{name} of {at} is {got}, nearest rank {rank}"
        );
    }
}

#[test]
fn a_year_of_flights_is_exact() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(
        &dir.path().join("data"),
        &[("flush.interval", "1s"), ("query.max_points", "1000000")],
    );
    let (file, resume) =
        (flights().display().to_string(), dir.path().join("flights.sent").display().to_string());
    let send = || {
        Server::cli(&[
            "send",
            &file,
            "--url",
            &server.url,
            "--metric",
            "departure_delay",
            "--time",
            "event_time",
            "--value",
            "dep_delay_min",
            "--user",
            "tailnum",
            "--label",
            "origin=origin",
            "--label",
            "carrier=carrier",
            "--resume",
            &resume,
        ])
    };
    for _ in 0..2 {
        let output = send();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let path = "/v1/query?metric=departure_delay&from=2013-01-01T00:00:00Z&to=2014-01-02T00:00:\
                00Z&by=origin,carrier&agg=count,sum,min,max,distinct,p50,p95,p99";
    let mut expected = fold();
    let total: u64 = expected.values().map(|e| e.count).sum();
    assert_eq!(total, 336_776);
    let answer = server.await_query(path, |a| {
        let series = a["series"].as_array().into_iter().flatten();
        series
            .flat_map(|s| s["points"].as_array().into_iter().flatten())
            .filter_map(|p| p["count"].as_u64())
            .sum::<u64>()
            == total
    });
    for series in answer["series"].as_array().expect("series") {
        let label = |name: &str| series["labels"][name].as_str().expect("a label").to_owned();
        let name = format!("{}/{}", label("origin"), label("carrier"));
        for point in series["points"].as_array().expect("points") {
            let hour = point["t"].as_str().expect("a time").to_owned();
            let mut row = expected
                .remove(&(hour.clone(), name.clone()))
                .unwrap_or_else(|| panic!("{name} {hour} is too much"));
            check_point(&format!("{name} {hour}"), &mut row, point);
        }
    }
    assert!(expected.is_empty(), "{} rows are missing", expected.len());
    assert_eq!(server.stop(), Some(0));
}

/// The reference answers lie next to the input file of the checkout. Input fetched elsewhere has
/// none.
fn reference(name: &str) -> Option<String> {
    let path = flights().parent()?.join(name);
    let bytes = std::fs::read(path).ok()?;
    let mut text = String::new();
    if name.ends_with(".gz") {
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("gzip");
    } else {
        text = String::from_utf8(bytes).expect("UTF-8");
    }
    Some(text)
}

/// Compares an answer with a file of reference answers, row by row. Rows are matched by time and
/// label, either of which may be absent.
fn check_reference(server: &Server, file: &str, step: &str, by: &str) -> usize {
    let Some(text) = reference(file) else { return 0 };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().expect("a header").clone();
    let column = |row: &csv::StringRecord, name: &str| {
        header.iter().position(|h| h == name).map(|at| row[at].to_owned()).unwrap_or_default()
    };
    let rows = reader.records().map(|row| row.expect("a row"));
    let time = |row: &csv::StringRecord| [column(row, "hour"), column(row, "day")].concat();
    let mut expected: BTreeMap<(String, String), csv::StringRecord> =
        rows.map(|row| ((time(&row), column(&row, "label")), row)).collect();
    let (all, total) = (
        expected.len(),
        expected
            .values()
            .map(|row| column(row, "events").parse::<u64>().expect("events"))
            .sum::<u64>(),
    );
    let groups = if by.is_empty() { String::new() } else { format!("&by={by}") };
    let path = format!(
        "/v1/query?metric=departure_delay&from=2013-01-01T00:00:00Z&to=2014-01-02T00:00:00Z&\
         step={step}{groups}&agg=count,sum,avg,min,max,distinct,p50,p95,p99"
    );
    let answer = server.await_query(&path, |a| count(a) == total);
    for series in answer["series"].as_array().expect("series") {
        let label = |name: &str| series["labels"][name].as_str().unwrap_or("").to_owned();
        let label = if by.is_empty() {
            String::new()
        } else {
            format!("{}/{}", label("origin"), label("carrier"))
        };
        for point in series["points"].as_array().expect("points") {
            let time = if step == "all" {
                String::new()
            } else {
                point["t"].as_str().expect("a time").to_owned()
            };
            let row = expected
                .remove(&(time.clone(), label.clone()))
                .unwrap_or_else(|| panic!("{file}: {time} {label} is too much"));
            compare(&format!("{file} {time} {label}"), point, |name| {
                column(&row, name).parse::<f64>().ok()
            });
        }
    }
    assert!(expected.is_empty(), "{file}: {} rows are missing", expected.len());
    all
}

fn compare(at: &str, point: &serde_json::Value, expected: impl Fn(&str) -> Option<f64>) {
    for (name, column) in
        [("count", "events"), ("sum", "sum_val"), ("min", "min_val"), ("max", "max_val")]
    {
        assert_eq!(point[name].as_f64(), expected(column), "{name} of {at}");
    }
    let users = expected("users").expect("users");
    let distinct = point["distinct"].as_f64().expect("distinct");
    let allowed = if users < 1_000.0 { 0.0 } else { users * 0.02 };
    assert!(
        (distinct - users).abs() <= allowed,
        "distinct of {at} is {distinct}, expected {users}"
    );
    for (name, column) in [("p50", "p50_disc"), ("p95", "p95_disc"), ("p99", "p99_disc")] {
        match (point[name].as_f64(), expected(column)) {
            (Some(got), Some(want)) => {
                assert!(
                    (got - want).abs() <= want.abs() * 0.01 + 1e-9,
                    "{name} of {at} is {got}, nearest rank {want}"
                )
            }
            (got, want) => assert_eq!(got, want, "{name} of {at}"),
        }
    }
    if let (Some(sum), Some(n)) = (expected("sum_val"), expected("n_val").filter(|n| *n > 0.0)) {
        let avg = point["avg"].as_f64().expect("avg");
        assert!((avg - sum / n).abs() < 1e-8, "avg of {at}");
    }
}

fn count(answer: &serde_json::Value) -> u64 {
    let points = answer["series"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|s| s["points"].as_array().into_iter().flatten());
    points.filter_map(|p| p["count"].as_u64()).sum()
}

/// The flights as events, each with its own id.
fn events() -> Vec<String> {
    let mut text = String::new();
    let file = std::fs::File::open(flights())
        .expect("the flights are there: run the tests through `make test`");
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let event = |(n, row): (usize, csv::StringRecord)| {
        let value: Option<i64> = row[7].parse().ok();
        let mut event = serde_json::json!({
            "metric": "departure_delay",
            "timestamp": &row[0],
            "value": value,
            "id": format!("f{n}"),
            "labels": {"origin": &row[2], "carrier": &row[3]},
        });
        if !row[6].is_empty() {
            event["user"] = row[6].into();
        }
        event.to_string()
    };
    reader.records().map(|row| row.expect("a row")).enumerate().map(event).collect()
}

/// Every stored rollup as bytes.
fn stored(data: &Path) -> BTreeMap<(String, i32), Vec<u8>> {
    let store = SqliteStore::open_read_only(data.join("store.sqlite")).expect("the store");
    let mut rows = BTreeMap::new();
    let mut snapshot = store.snapshot().expect("a snapshot");
    let all = (Hour(i32::MIN), Hour(i32::MAX));
    snapshot
        .rollup_bytes(all.0, all.1, &mut |info, hour, _, bytes| {
            rows.insert((format!("{:?}", info.series), hour.0), bytes.to_vec());
        })
        .expect("rows");
    rows
}

/// Sends one client's batches over HTTP, every batch twice, each until it is acknowledged.
fn send_http(url: &str, batches: &[String], acked: &AtomicUsize) {
    let agent = agent();
    for body in batches {
        for _ in 0..2 {
            let sent = || {
                agent
                    .post(format!("{url}/v1/events"))
                    .header("content-type", "application/json")
                    .send(body)
            };
            while !sent().is_ok_and(|answer| answer.status() == 202) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        acked.fetch_add(1, Ordering::SeqCst);
    }
}

/// The same over a WebSocket. A broken connection is reopened, and sending resumes with the first
/// batch that was not acknowledged.
fn send_ws(url: &str, batches: &[String], acked: &AtomicUsize) {
    use tokio_tungstenite::tungstenite::{self, Message};
    let url = format!("{}/v1/ws", url.replace("http", "ws"));
    let mut next = 0;
    let deadline = Instant::now() + Duration::from_secs(600);
    while next < batches.len() {
        assert!(Instant::now() < deadline, "the WebSocket makes no progress");
        let Ok((mut socket, _)) = tungstenite::connect(&url) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        while next < batches.len() {
            let window = next..(next + 8).min(batches.len());
            let sent = window.clone().chain(window.clone()).try_for_each(|at| {
                socket.send(Message::text(format!(r#"{{"seq":{at},"events":{}}}"#, batches[at])))
            });
            let mut answers = 2 * window.len();
            while sent.is_ok() && answers > 0 {
                match socket.read() {
                    Ok(Message::Text(text)) if text.contains("\"ack\"") => answers -= 1,
                    Ok(Message::Text(_)) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            if answers > 0 || sent.is_err() {
                break;
            }
            next = window.end;
            acked.fetch_add(window.len(), Ordering::SeqCst);
        }
    }
}

fn batches(events: &[String], size: usize) -> Vec<String> {
    events.chunks(size).map(|chunk| format!("[{}]", chunk.join(","))).collect()
}

/// Runs four clients, one of them on a WebSocket, that send every batch twice, while the server is
/// killed `kills` times.
fn run_scattered(dir: &Path, events: &[String], kills: usize) -> BTreeMap<(String, i32), Vec<u8>> {
    let (data, port) = (dir.join("data"), free_port());
    let settings = [("flush.interval", "300ms"), ("archive.max_delay", "500ms")];
    std::fs::create_dir_all(dir).expect("a directory");
    let mut server = Some(Server::start_on(&data, port, &settings));
    let url = format!("http://127.0.0.1:{port}");
    let parts: Vec<Vec<String>> =
        events.chunks(events.len().div_ceil(4)).map(|part| batches(part, 500)).collect();
    let total: usize = parts.iter().map(Vec::len).sum();
    let acked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (url, acked) = (url.as_str(), &acked);
        for (at, part) in parts.iter().enumerate() {
            scope.spawn(move || {
                if at == 0 { send_ws(url, part, acked) } else { send_http(url, part, acked) }
            });
        }
        for kill in 1..=kills {
            let due = total * kill / (kills + 1);
            let deadline = Instant::now() + Duration::from_secs(600);
            while acked.load(Ordering::SeqCst) < due {
                assert!(Instant::now() < deadline, "the clients make no progress");
                std::thread::sleep(Duration::from_millis(2));
            }
            server.take().expect("it runs").kill();
            server = Some(Server::start_on(&data, port, &settings));
        }
    });
    let path = "/v1/query?metric=departure_delay&from=2013-01-01T00:00:00Z&to=2014-01-02T00:00:\
                00Z&step=all";
    let server = server.expect("it runs");
    server.await_query(path, |a| count(a) == events.len() as u64);
    assert_eq!(server.stop(), Some(0));
    settled(&data, port, events.len() as u64)
}

/// The rollups after another start and graceful stop, when everything in the log is in the store.
fn settled(data: &Path, port: u16, events: u64) -> BTreeMap<(String, i32), Vec<u8>> {
    let server = Server::start_on(data, port, &[("flush.interval", "100ms")]);
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let (_, answer) = server.get("/v1/accounting");
        let hours = answer["hours"].as_array().into_iter().flatten();
        if hours.filter_map(|hour| hour["aggregated"].as_u64()).sum::<u64>() == events {
            break;
        }
        assert!(Instant::now() < deadline, "not everything was flushed: {answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(server.stop(), Some(0));
    let verified = Server::cli(&["verify", "--data", &data.display().to_string()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    stored(data)
}

#[test]
fn order_clients_repetition_websocket_and_kills_change_no_byte() {
    let mut events = events();
    let dir = tempfile::tempdir().expect("a directory");
    let in_order = {
        let (data, port) = (dir.path().join("ordered"), free_port());
        let server = Server::start_on(
            &data,
            port,
            &[("flush.interval", "1s"), ("query.max_points", "1000000")],
        );
        for body in batches(&events, 5_000) {
            assert_eq!(server.post(&body).0, 202);
        }
        let references = [
            ("ref_hourly_by_label.csv.gz", "1h", "origin,carrier"),
            ("ref_hourly.csv", "1h", ""),
            ("ref_daily_by_label.csv", "1d", "origin,carrier"),
            ("ref_total.csv", "all", ""),
            ("ref_total_by_label.csv", "all", "origin,carrier"),
        ];
        for (file, step, by) in references {
            println!("{file}: {} rows equal", check_reference(&server, file, step, by));
        }
        assert_eq!(server.stop(), Some(0));
        settled(&data, port, events.len() as u64)
    };
    let mut seed = 42u64;
    for at in (1..events.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        events.swap(at, (seed >> 33) as usize % (at + 1));
    }
    let scattered = run_scattered(&dir.path().join("scattered"), &events, 3);
    assert_eq!(in_order.len(), scattered.len());
    let differing =
        in_order.iter().filter(|(key, bytes)| scattered.get(*key) != Some(bytes)).count();
    assert_eq!(differing, 0, "rollups differ in their bytes");
    println!("{} rollups are byte-identical", in_order.len());
}
