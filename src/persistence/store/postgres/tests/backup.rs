//! A backup holds the rollups, and a store that lost them refuses to start.

use super::timescale::{TestDatabase, run};
use super::*;
use crate::persistence::store::StoreError;

fn filled(own: &TestDatabase) {
    let store = PostgresStore::open(&options(&own.url)).expect("a store");
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let deltas = (0..500).map(|hour| delta("a", hour, 1)).collect();
    store.flush(guard(0, 0, epoch), &batch(deltas), 0).expect("a flush");
}

#[test]
fn a_dump_of_the_whole_database_holds_the_rollups() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("rollmill.dump").display().to_string();
    for (from, to) in TestDatabase::on_each().into_iter().zip(TestDatabase::on_each()) {
        filled(&from);
        server::dump(&from.url, &file);
        server::restore(&to.url, &file);
        let store = PostgresStore::open(&options(&to.url)).expect("a store");
        assert_eq!(state(&*store, 0), (1, 500));
        let epoch = store.claim(ShardId(0), LOG, 2).expect("a claim").checkpoint.epoch;
        store
            .flush(guard(0, 1, epoch), &batch(vec![delta("a", 3, 1), delta("b", 900, 1)]), 0)
            .expect("it goes on");
        assert_eq!(state(&*store, 0), (2, 502));
    }
}

/// What a dump of our schema alone leaves on TimescaleDB.
#[test]
fn a_store_that_lost_its_rollups_is_refused() {
    for own in TestDatabase::on_each() {
        filled(&own);
        drop(PostgresStore::open(&options(&own.url)).expect("a store"));
        run(&own.url, "TRUNCATE rollmill.rollups");
        let refused = PostgresStore::open(&options(&own.url)).expect_err("answers would be empty");
        assert!(matches!(
            &refused,
            StoreError::Invalid(why)
                if why.contains("whole database") && why.contains("rollmill rebuild")
        ));
        let found =
            PostgresStore::open_read_only(&options(&own.url)).expect("verify may look at it");
        assert_eq!(state(&*found, 0), (1, 0));
    }
}

/// What a dump of all schemas with our rows leaves, without the extension's own catalogue.
#[test]
fn a_store_whose_tables_are_no_hypertables_any_more_is_refused() {
    for own in TestDatabase::on_each() {
        filled(&own);
        run(&own.url, "ALTER TABLE rollmill.rollups RENAME TO before");
        run(
            &own.url,
            "CREATE TABLE rollmill.rollups (LIKE rollmill.before); INSERT INTO rollmill.rollups \
             SELECT * FROM rollmill.before",
        );
        let refused = PostgresStore::open(&options(&own.url))
            .expect_err("rows would be written beside those that they belong to");
        assert!(matches!(
            &refused,
            StoreError::Invalid(why)
                if why.contains("hypertable") && why.contains("whole database")
        ));
    }
}

#[test]
fn a_store_whose_weeks_were_all_dropped_is_no_lost_one() {
    for own in TestDatabase::on_each() {
        filled(&own);
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        store.drop_before(Hour(10_000)).expect("dropped");
        assert_eq!(state(&*store, 0), (1, 0));
        PostgresStore::open(&options(&own.url)).expect("a store");
    }
}
