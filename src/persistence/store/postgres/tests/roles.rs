//! What each role may do, and that Rollmill needs no more than that.

use super::*;
use crate::model::flush::SetAdoption;
use crate::persistence::store::{GenerationStore, StoreError, postgres};

/// For owner, writer and reader: whether the role may run the statement.
const GRID: &[(&str, [bool; 3])] = &[
    ("SELECT count(*) FROM rollmill.rollups", [true, true, true]),
    ("SELECT count(*) FROM rollmill.shards", [true, true, true]),
    ("SELECT count(*) FROM rollmill.migrations", [true, true, true]),
    ("INSERT INTO rollmill.tenants (name) VALUES ('x')", [true, true, false]),
    ("UPDATE rollmill.shards SET next = next", [true, true, false]),
    ("UPDATE rollmill.rollups SET count = count", [true, true, false]),
    ("UPDATE rollmill.manifest SET path = path", [true, false, false]),
    ("UPDATE rollmill.series SET key = key", [true, false, false]),
    ("DELETE FROM rollmill.rollups", [true, false, false]),
    ("DELETE FROM rollmill.manifest", [true, true, false]),
    ("UPDATE rollmill.manifest SET tier = tier", [true, true, false]),
    ("DELETE FROM rollmill.shards", [true, false, false]),
    ("DELETE FROM rollmill.dedup", [true, true, false]),
    ("DELETE FROM rollmill.outcome_notes", [true, true, false]),
    ("UPDATE rollmill.outcome_notes SET events = events", [true, false, false]),
    ("TRUNCATE rollmill.rollups", [true, false, false]),
    ("INSERT INTO rollmill.migrations (version, by) VALUES (50, 'x')", [true, false, false]),
    ("SELECT rollmill.ensure_week(1)", [true, true, false]),
    ("SELECT rollmill.drop_before(1)", [true, true, false]),
    ("SELECT rollmill.compress_before(1)", [true, true, false]),
    ("UPDATE rollmill.generation_book SET version = version", [true, true, false]),
    ("DELETE FROM rollmill.generation_book", [true, false, false]),
    ("DELETE FROM rollmill.generation_fills", [true, true, false]),
    ("DELETE FROM rollmill.generation_dropped", [true, true, false]),
    ("DELETE FROM rollmill.generation_rules", [true, true, false]),
    ("DELETE FROM rollmill.generation_audit", [true, false, false]),
    ("SELECT count(*) FROM rollmill.boards", [true, true, true]),
    ("UPDATE rollmill.boards SET name = name", [true, true, false]),
    ("DELETE FROM rollmill.boards", [true, true, false]),
    ("TRUNCATE rollmill.boards", [true, false, false]),
    ("DELETE FROM rollmill.series", [true, false, false]),
    ("UPDATE rollmill.retention_floor SET hour = 1", [true, false, false]),
    ("CREATE TABLE rollmill.mine (a integer)", [true, false, false]),
    ("DROP TABLE rollmill.sketches", [true, false, false]),
    ("CREATE TEMPORARY TABLE mine (a integer)", [true, true, false]),
    ("CREATE ROLE mine", [false, false, false]),
    ("SELECT pg_read_file('/etc/passwd')", [false, false, false]),
];

#[test]
fn each_role_may_do_what_it_must_and_no_more() {
    let server = server::shared();
    let database = server.database();
    let url = |role: &str| server.url_as(role, &database);
    server.make_roles(&database, postgres::ROLES);
    server.make_roles(&database, postgres::ROLES);

    let writer = PostgresOptions {
        read_url: Some(url("rollmill_reader")),
        ..options(&url("rollmill_writer"))
    };
    let early = PostgresStore::open(&writer).expect_err("no tables yet");
    assert!(
        matches!(&early, StoreError::Invalid(why) if why.contains("rollmill store migrate")),
        "{early:?}"
    );
    PostgresStore::open(&options(&url("rollmill_owner"))).expect("the owner lays the tables");

    let store = PostgresStore::open(&writer).expect("a store");
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    store
        .flush(guard(0, 0, epoch), &batch(vec![delta("a", 1, 1), delta("b", 400, 1)]), 0)
        .expect("a flush");
    store.claim(ShardId(0), LOG, 2).expect("a takeover");
    assert_eq!(state(&*store, 0), (1, 2));
    assert_eq!(store.drop_before(Hour(168)), Ok(2));
    drop(store);

    for (sql, expected) in GRID {
        let found = ["rollmill_owner", "rollmill_writer", "rollmill_reader"].map(|role| {
            let tried = server.psql_as(role, &database, &format!("BEGIN; {sql}; ROLLBACK"));
            let refused = tried.as_ref().is_err_and(|why| {
                why.contains("permission denied") || why.contains("must be owner")
            });
            assert!(tried.is_ok() || refused, "{role}: {sql}: {tried:?}");
            tried.is_ok()
        });
        assert_eq!(found, *expected, "{sql}");
    }
}

#[test]
fn the_writer_fills_and_deletes_generations_and_the_reader_reads_them() {
    use super::generations::{ONE, first_set, leaving, second_set, written};
    use super::generations::{begun, change, counts, days, delete_all, fill_guard, flush_live};
    let server = server::shared();
    let database = server.database();
    server.make_roles(&database, postgres::ROLES);
    let url = |role: &str| server.url_as(role, &database);
    PostgresStore::open(&options(&url("rollmill_owner"))).expect("the owner lays the tables");
    let read_url = Some(url("rollmill_reader"));
    let writer = PostgresOptions { read_url, ..options(&url("rollmill_writer")) };
    let store = PostgresStore::open(&writer).expect("a store");
    let epoch = begun(&*store, days(0, 40), vec![delta("a", 1, 1)]);
    flush_live(&*store, 2, epoch, vec![delta("a", 1, 1), delta("b", 300, 1)]);
    store.fill(&fill_guard(0), &written(vec![delta("a", 1, 1)])).expect("filled");
    assert_eq!(counts(&*store).values().sum::<u64>(), 3);
    store.claim(ShardId(5), LOG, 1).expect("a new shard begins with the newest set");
    change(&*store, |book| book.cancel(ONE, None, 2).expect("cancelled"));
    let adopts = Some(SetAdoption { version: second_set(), begun: Vec::new() });
    let of_five = store.claim(ShardId(5), LOG, 1).expect("a claim").checkpoint.epoch;
    for (shard, from, epoch) in [(0, 3, epoch), (5, 0, of_five)] {
        let batch =
            FlushBatch { set: first_set(), adopts: adopts.clone(), ..FlushBatch::default() };
        store.flush(guard(shard, from, epoch), &batch, 0).expect("it adopts");
    }
    assert_eq!(delete_all(&*store, &leaving(days(0, 40), second_set()), 100), [12]);
    let left = "SELECT (SELECT count(*) FROM rollmill.generation_fills) + (SELECT count(*) FROM \
                rollmill.metrics WHERE generation > 0)";
    assert_eq!(server.psql(&database, left), Ok("0".into()));
    for sql in [
        "SELECT rollmill.delete_generation_rows(1, 0, 1000, 10)",
        "SELECT rollmill.delete_generation_series(1, '{1}', '{}', '{}')",
    ] {
        let refused = server.psql_as("rollmill_writer", &database, sql);
        assert!(refused.as_ref().is_err_and(|why| why.contains("generation 0")), "{refused:?}");
    }
    // What another node has deleted meanwhile.
    let gone = "SELECT rollmill.delete_generation_series(99, '{1}', '{}', '{}'), \
                rollmill.delete_generation_rows(99, 0, 1000, 10)";
    assert_eq!(server.psql_as("rollmill_writer", &database, gone), Ok("|0".into()));
    assert_eq!(state(&*store, 0), (4, 1));
}

#[test]
fn tables_that_a_superuser_lays_belong_to_the_owner() {
    let server = server::shared();
    let database = server.database();
    server.make_roles(&database, postgres::ROLES);
    drop(PostgresStore::open(&options(&server.url(&database))).expect("a store"));
    let sql = "SELECT DISTINCT r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
        WHERE c.relnamespace = 'rollmill'::regnamespace";
    assert_eq!(server.psql(&database, sql), Ok("rollmill_owner".into()));
    assert_eq!(
        server.psql(
            &database,
            "SELECT DISTINCT proowner::regrole FROM pg_proc WHERE pronamespace = \
             'rollmill'::regnamespace"
        ),
        Ok("rollmill_owner".into())
    );
}

#[test]
fn a_role_that_is_always_read_only_can_read() {
    let server = server::shared();
    let (store, url) = store();
    drop(store);
    let database = url.rsplit('/').next().expect("a name");
    let sql = "CREATE ROLE careful LOGIN; ALTER ROLE careful SET default_transaction_read_only = \
               on;
        GRANT USAGE ON SCHEMA rollmill TO careful; GRANT SELECT ON ALL TABLES IN SCHEMA rollmill \
               TO careful";
    server.psql(database, sql).expect("a role");
    let careful =
        PostgresOptions { read_url: Some(server.url_as("careful", database)), ..options(&url) };
    assert_eq!(state(&*PostgresStore::open(&careful).expect("a store"), 0), (0, 0));
}
