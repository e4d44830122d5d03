//! What is different with the extension: hypertables, chunks, compression. Runs where `ROLLMILL_TEST_TIMESCALE_URL` names a server.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::NoTls;

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::persistence::store::postgres::Keep;

/// Runs statements; the first column of the last rows.
fn run(url: &str, sql: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
        let connection = tokio::spawn(connection);
        let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        connection.abort();
        let row = |message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    })
}

/// A database of its own on the server, with the extension.
fn database(url: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("rollmill_test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    run(url, &format!("CREATE DATABASE {name}"));
    let (server, _) = url.rsplit_once('/').expect("postgres://USER@HOST/DATABASE");
    let own = format!("{server}/{name}");
    run(&own, "CREATE EXTENSION IF NOT EXISTS timescaledb");
    own
}

/// A store on a hypertable.
pub(in crate::persistence::store) fn store(url: &str) -> Arc<PostgresStore> {
    PostgresStore::open(&options(&database(url))).expect("a store")
}

#[test]
fn chunks_are_made_compressed_and_dropped() {
    let Ok(url) = std::env::var("ROLLMILL_TEST_TIMESCALE_URL") else { return };
    let url = database(&url);
    let store = PostgresStore::open(&options(&url)).expect("a store");
    let tables =
        "SELECT hypertable_name FROM timescaledb_information.hypertables WHERE hypertable_schema = 'rollmill' ORDER BY 1";
    assert_eq!(run(&url, tables), ["rollups", "sketches"]);
    let now = SystemClock.now();
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let hours = [20, 10, 2, 0].map(|weeks| Hour::of(now).0 - weeks * 168);
    let deltas = || hours.iter().map(|hour| delta("a", *hour, 1)).collect();
    store.flush(guard(0, 0, epoch), &batch(deltas()), 0).expect("a flush");
    let day = std::time::Duration::from_secs(86_400);
    let keep = Keep { rollups: Some(100 * day), compress: Some(30 * day) };
    let (dropped, compressed) = store.maintain(now, keep).expect("a round");
    assert_eq!(dropped, 2, "a week of two tables");
    let licence = run(&url, "SHOW timescaledb.license");
    assert_eq!(compressed, if licence == ["timescale"] { 2 } else { 0 });
    assert_eq!(store.maintain(now, keep), Ok((0, 0)));
    assert_eq!(state(&*store, 0), (1, 3));
    store.flush(guard(0, 1, epoch), &batch(deltas()), 0).expect("late events reach compressed and dropped weeks");
    assert_eq!(state(&*store, 0), (2, 7));
}
