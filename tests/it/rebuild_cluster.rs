//! A store lost while Kafka, PostgreSQL and S3 survive: it is rebuilt in another database, byte for
//! byte, also after a migration.

use std::time::{Duration, Instant};

use rollmill::model::offset::ShardId;
use rollmill::node::offline;
use serde_json::Value;

use crate::migrate::{MigrationCase, send};
use crate::postgres;
use crate::rebuild::{
    ConfiguredNode, SHARDS, await_accounted, equal, everything, flights, rebuilt_over_kills,
};
use crate::support::PATIENCE;

/// A node of the cluster. With `log.safety` 0, rolled-up and archived records leave the topic at
/// once.
fn node_of(case: &MigrationCase) -> ConfiguredNode {
    ConfiguredNode::with(&case.url, format!("{}log.safety = \"0s\"\n", case.servers()))
}

/// Waits until the topic has dropped records, so that the archive is needed.
fn released(node: &ConfiguredNode) {
    let (config, data) = node.parsed();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = offline::log(&config, &data).expect("the log");
        let starts: Vec<u64> =
            (0..SHARDS).map(|shard| log.bounds(ShardId(shard)).expect("the topic").0).collect();
        if starts.iter().all(|start| *start > 0) {
            return;
        }
        assert!(Instant::now() < deadline, "the topic still begins at {starts:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Loses the database and rebuilds the store in another one.
fn lost_and_rebuilt(node: &ConfiguredNode, former: &[&str]) {
    released(node);
    let (config, data) = node.parsed();
    let old = everything(offline::store(&config, &data).expect("the old store").as_ref());
    assert!(old.iter().any(|line| line.contains("__overflow__")), "series beyond the limit");
    let server = postgres::shared();
    node.configure(&server.url(&server.database()));
    if !former.is_empty() {
        node.refused(&["rebuild"], &["begins at record", "--former-log"]);
    }
    let planned = node.succeeds(&[&["rebuild", "--dry-run", "--json"], former].concat());
    let planned: Value = serde_json::from_str(&planned).expect("JSON");
    for shard in planned["shards"].as_array().expect("the shards") {
        assert!(shard["archived"].as_u64() > Some(0), "the archive is not needed: {shard}");
    }
    rebuilt_over_kills(node, former);
    let (config, data) = node.parsed();
    equal(&everything(offline::store(&config, &data).expect("the new store").as_ref()), &old);
    node.verify();
}

#[test]
fn a_store_lost_beside_kafka_and_s3_is_rebuilt_to_the_byte() {
    let case = MigrationCase::new("rebuild_cluster");
    let node = node_of(&case);
    node.succeeds(&["topic", "create"]);
    node.seed_history();
    lost_and_rebuilt(&node, &[]);
    node.check_resumes();
}

#[test]
fn a_store_lost_after_a_migration_is_rebuilt_to_the_byte() {
    let case = MigrationCase::new("rebuild_migrated");
    let (events, repeated) = case.seed_history();
    let done = case.migrate_to_end();
    let former =
        done["from"]["log"].as_str().unwrap_or_else(|| panic!("no log: {done}")).to_owned();
    let node = node_of(&case);
    // Events archived before the migration, events archived now, and events that only the topic
    // has.
    let server = node.start(&[]);
    await_accounted(&server, |accounted| accounted == [events - repeated - 1, repeated, 1]);
    send(&server, 0, 100);
    assert_eq!(server.post(&flights(0, 1_000)).0, 202);
    node.await_flushed();
    node.await_archived();
    assert_eq!(server.stop(), Some(0));
    let server = node.start(&[("ROLLMILL_ARCHIVE_MAX_DELAY", "1h")]);
    assert_eq!(server.post(&flights(900, 1_500)).0, 202);
    node.await_flushed();
    server.kill();

    lost_and_rebuilt(&node, &["--former-log", &former]);

    let counted = events - repeated - 1 + 1_500;
    let server = node.start(&[]);
    await_accounted(&server, |accounted| accounted == [counted, repeated + 200, 1]);
    (0..8).for_each(|n| send(&server, n * 100, n * 100 + 100));
    assert_eq!(server.post(&flights(0, 1_600)).0, 202);
    await_accounted(&server, |accounted| {
        accounted == [counted + 100, repeated + 200 + 800 + 1_500, 1]
    });
    node.await_flushed();
    node.await_archived();
    assert_eq!(server.stop(), Some(0));
    node.verify();
}
