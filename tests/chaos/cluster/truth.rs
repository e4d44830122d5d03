//! A year of flights, sent through three gateways and over three protocols, gives byte for byte the
//! rollups of a single embedded node.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use rollmill::model::window::Hour;
use rollmill::persistence::store::SnapshotSource;
use rollmill::persistence::store::sqlite::SqliteStore;
use serde_json::json;
use tokio_tungstenite::tungstenite::{self, Message};

use super::{Cluster, FULL};
use crate::load::accounting;
use crate::support::{Server, agent};

const FLIGHTS: u64 = 336_776;
const BATCH: usize = 1_000;

fn flights() -> Vec<String> {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/data/nycflights13/events_by_arrival.csv.gz");
    let path = std::env::var_os("ROLLMILL_FLIGHTS").map_or(default, PathBuf::from);
    let file = std::fs::File::open(path)
        .expect("the flights are there: run the tests through `make test`");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let headers = reader.headers().expect("a header").clone();
    let column = |name: &str| headers.iter().position(|header| header == name).expect("a column");
    let (time, origin, carrier) = (column("event_time"), column("origin"), column("carrier"));
    let (user, value) = (column("tailnum"), column("dep_delay_min"));
    let rows = reader.records().map(|row| row.expect("a row")).enumerate();
    rows.map(|(n, row)| {
        let mut event = json!({
            "metric": "departure_delay",
            "timestamp": &row[time],
            "id": format!("flight-{n}"),
            "labels": {"origin": &row[origin], "carrier": &row[carrier]},
        });
        if !row[user].is_empty() {
            event["user"] = row[user].into();
        }
        if !row[value].is_empty() {
            event["value"] = row[value].into();
        }
        event.to_string()
    })
    .collect()
}

fn send(url: &str, kind: &str, path: &str, body: &str, expected: u16) {
    let mut answer = agent()
        .post(format!("{url}{path}"))
        .header("content-type", kind)
        .send(body)
        .expect("an answer");
    let status = answer.status();
    assert_eq!(status, expected, "{}", answer.body_mut().read_to_string().unwrap_or_default());
}

fn send_http(url: &str, batches: &[&[String]]) {
    batches
        .iter()
        .for_each(|batch| send(url, "application/x-ndjson", "/v1/events", &batch.join("\n"), 202));
}

fn send_rest(url: &str, batches: &[&[String]]) {
    for batch in batches {
        let records: Vec<String> =
            batch.iter().map(|event| format!(r#"{{"value":{event}}}"#)).collect();
        let body = format!(r#"{{"records":[{}]}}"#, records.join(","));
        send(url, "application/vnd.kafka.json.v2+json", "/topics/flights", &body, 200);
    }
}

fn send_ws(url: &str, batches: &[&[String]]) {
    let (mut socket, _) =
        tungstenite::connect(format!("{}/v1/ws", url.replace("http", "ws"))).expect("connected");
    for (seq, batch) in batches.iter().enumerate() {
        socket
            .send(Message::text(format!(r#"{{"seq":{seq},"events":[{}]}}"#, batch.join(","))))
            .expect("sent");
        let answer = socket.read().expect("an answer").into_text().expect("text");
        assert!(
            answer.contains(&format!("\"ack\":{seq}")) && answer.contains("\"rejected\":0"),
            "{answer}"
        );
    }
}

/// Sends batches to one node.
type Send = fn(&str, &[&[String]]);

type Rows = BTreeMap<(String, i32), Vec<u8>>;

/// Every rollup, by series and window.
fn rows(store: &dyn SnapshotSource) -> Rows {
    let mut rows = Rows::new();
    let mut snapshot = store.snapshot().expect("a snapshot");
    let mut visit = |series: &std::sync::Arc<rollmill::model::flush::SeriesInfo>,
                     hour: Hour,
                     _,
                     bytes: &[u8]| {
        let twice = rows.insert((format!("{:?}", series.series), hour.0), bytes.to_vec());
        assert!(twice.is_none(), "two rows of one series and window");
    };
    snapshot.rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut visit).expect("the rollups");
    rows
}

fn embedded(events: &[&[String]]) -> Rows {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data, &[("flush.interval", "1s")]);
    send_http(&server.url, events);
    assert_eq!(accounting(std::slice::from_ref(&server.url)), [FLIGHTS, 0, 0]);
    assert_eq!(server.stop(), Some(0));
    rows(SqliteStore::open_read_only(data.join("store.sqlite")).expect("the store").as_ref())
}

#[test]
fn three_gateways_and_three_protocols_give_the_bytes_of_one_node() {
    let events = flights();
    assert_eq!(events.len() as u64, FLIGHTS);
    let batches: Vec<&[String]> = events.chunks(BATCH).collect();
    let mut cluster = Cluster::start(&[]);
    let part = |of: usize| batches.iter().skip(of).step_by(3).copied().collect::<Vec<_>>();
    let ways: [(Send, usize); 3] = [(send_http, 0), (send_ws, 1), (send_rest, FULL)];
    std::thread::scope(|scope| {
        for (n, (send, node)) in ways.into_iter().enumerate() {
            let (url, part) = (cluster.url(node), part(n));
            scope.spawn(move || send(&url, &part));
        }
    });
    // Sent again over another protocol, every event is a duplicate.
    send_http(&cluster.url(2), &part(1)[..20]);
    let duplicates = 20 * BATCH as u64;
    assert_eq!(accounting(&cluster.urls()), [FLIGHTS, duplicates, 0]);
    for node in &mut cluster.nodes {
        assert_eq!(node.server.take().expect("it runs").stop(), Some(0));
    }
    let found = rows(cluster.store().as_ref());
    let expected = embedded(&batches);
    let differing = expected.iter().filter(|(key, bytes)| found.get(*key) != Some(*bytes)).count();
    assert_eq!((found.len(), differing), (expected.len(), 0), "rows, and those that differ");
    let bytes: usize = expected.values().map(Vec::len).sum();
    println!(
        "{FLIGHTS} flights over HTTP, WebSocket and REST Proxy at three gateways: {} rollups, \
         {bytes} bytes, equal",
        expected.len()
    );
}
