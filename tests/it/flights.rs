//! Real input: the flights of 2013 in order of departure give exactly the answers computed independently.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;

use crate::support::Server;

#[derive(Default)]
struct Expected {
    count: u64,
    values: Vec<i64>,
    users: BTreeSet<String>,
}

/// The flights: named by the Makefile, or beside the checkout.
fn flights() -> PathBuf {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data/nycflights13/events_by_arrival.csv.gz");
    std::env::var_os("ROLLMILL_FLIGHTS").map_or(default, PathBuf::from)
}

/// An independent fold of the file: hour and origin/carrier to count, values and users.
fn fold() -> BTreeMap<(String, String), Expected> {
    let mut text = String::new();
    let file = std::fs::File::open(flights()).expect("the flights are there: run the tests through `make test`");
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
        assert!((got - rank).abs() <= rank.abs() * 0.01 + 1e-9, "{name} of {at} is {got}, nearest rank {rank}");
    }
}

#[test]
fn a_year_of_flights_is_exact() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[("flush.interval", "1s"), ("query.max_points", "1000000")]);
    let (file, resume) = (flights().display().to_string(), dir.path().join("flights.sent").display().to_string());
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
    let path = "/v1/query?metric=departure_delay&from=2013-01-01T00:00:00Z&to=2014-01-02T00:00:00Z&by=origin,carrier\
                &agg=count,sum,min,max,distinct,p50,p95,p99";
    let mut expected = fold();
    let total: u64 = expected.values().map(|e| e.count).sum();
    assert_eq!(total, 336_776);
    let answer = server.await_query(path, |a| {
        let series = a["series"].as_array().into_iter().flatten();
        series.flat_map(|s| s["points"].as_array().into_iter().flatten()).filter_map(|p| p["count"].as_u64()).sum::<u64>()
            == total
    });
    for series in answer["series"].as_array().expect("series") {
        let label = |name: &str| series["labels"][name].as_str().expect("a label").to_owned();
        let name = format!("{}/{}", label("origin"), label("carrier"));
        for point in series["points"].as_array().expect("points") {
            let hour = point["t"].as_str().expect("a time").to_owned();
            let mut row = expected.remove(&(hour.clone(), name.clone())).unwrap_or_else(|| panic!("{name} {hour} is too much"));
            check_point(&format!("{name} {hour}"), &mut row, point);
        }
    }
    assert!(expected.is_empty(), "{} rows are missing", expected.len());
    assert_eq!(server.stop(), Some(0));
}
