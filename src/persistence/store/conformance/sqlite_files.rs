//! What only SQLite must do: a limited number of readers, reopening, and files of older versions.

use super::*;

#[test]
fn sqlite_has_no_further_view_while_all_readers_are_busy() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = sqlite::SqliteStore::open(dir.path().join("store.db")).expect("a store");
    let mut held = Vec::new();
    while let Some(snapshot) =
        store.query_snapshot_at_once(&QueryBudget::default()).expect("snapshot")
    {
        held.push(snapshot);
    }
    let all = held.len();
    assert!(all >= 8, "{all}");
    held.pop();
    assert!(store.query_snapshot_at_once(&QueryBudget::default()).expect("snapshot").is_some());
}

#[test]
fn sqlite_survives_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let store = sqlite::SqliteStore::open(&path).expect("a store");
    let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
    store.flush(guard(0, 1, epoch), &batch(vec![delta("a", 1, 1)]), 0).expect("flush");
    drop(store);
    let store = sqlite::SqliteStore::open(&path).expect("a store");
    store.flush(guard(1, 2, epoch), &batch(vec![delta("a", 1, 1)]), 0).expect("flush");
    let reader = sqlite::SqliteStore::open_read_only(&path).expect("a reader");
    assert_eq!(read(&mut *reader.snapshot().expect("snapshot"), &[])[0].2.figures.count, 2);
    assert!(matches!(reader.claim(SHARD, LOG, 1), Err(StoreError::Failed(_))));
    drop((store, reader));
    rusqlite::Connection::open(&path)
        .expect("open")
        .pragma_update(None, "user_version", 99)
        .expect("pragma");
    assert!(
        matches!(sqlite::SqliteStore::open(&path), Err(StoreError::Invalid(m)) if m.contains("99"))
    );
}

/// Turns a file back into one of version 10.
const BACK_TO_10: &str = "DROP INDEX quarantine_settled; PRAGMA user_version = 10;";

/// Turns a file back into one of version 9.
const BACK_TO_9: &str =
    "DROP INDEX quarantine_settled; DROP TABLE boards; PRAGMA user_version = 9;";

/// Turns a file without generations and boards back into one of version 8.
const BACK_TO_8: &str = "DROP INDEX quarantine_settled; DROP TABLE boards; CREATE TABLE old (no INTEGER PRIMARY KEY, tenant_no INTEGER NOT NULL, \
                         name TEXT NOT NULL,
        series_count INTEGER NOT NULL DEFAULT 0, first_hour INTEGER, last_hour INTEGER, UNIQUE \
                         (tenant_no, name));
    INSERT INTO old SELECT no, tenant_no, name, series_count, first_hour, last_hour FROM metrics;
    DROP TABLE metrics; ALTER TABLE old RENAME TO metrics;
    CREATE TABLE old (no INTEGER PRIMARY KEY, metric_no INTEGER NOT NULL, id BLOB NOT NULL UNIQUE, \
                         key BLOB NOT NULL,
        shard INTEGER NOT NULL, admitted_offset INTEGER NOT NULL, sum INTEGER);
    INSERT INTO old SELECT no, metric_no, id, key, shard, admitted_offset, sum FROM series;
    DROP TABLE series; ALTER TABLE old RENAME TO series;
    CREATE INDEX series_by_metric ON series (metric_no);
    CREATE INDEX series_by_shard ON series (shard);
    ALTER TABLE quarantine DROP COLUMN released;
    ALTER TABLE shards DROP COLUMN set_version; DROP TABLE generation_book; DROP TABLE \
                         generation_fills;
    DROP TABLE generation_dropped; DROP TABLE generation_rules; DROP TABLE generation_audit; PRAGMA user_version = 8;";

#[test]
fn sqlite_takes_over_stores_of_older_versions() {
    // Turns a new file back into what an older version had written.
    let back_to_7 = format!(
        "{BACK_TO_8} ALTER TABLE shards DROP COLUMN noted_from; ALTER TABLE shards DROP COLUMN \
         noted_to; DROP TABLE outcome_notes; PRAGMA user_version = 7; "
    );
    let few = format!("{back_to_7} ALTER TABLE suspects DROP COLUMN sum; ");
    let back_to_6 = format!(
        "{few} ALTER TABLE dedup_rules DROP COLUMN sum; ALTER TABLE expiry DROP COLUMN sum; \
         PRAGMA user_version = 6"
    );
    let back_to_5 = format!(
        "{few} ALTER TABLE expiry DROP COLUMN sum; DROP TABLE dedup_rules; PRAGMA user_version = 5"
    );
    let times = format!(
        "{few} ALTER TABLE shards DROP COLUMN appended; ALTER TABLE manifest DROP COLUMN \
         first_received; ALTER TABLE manifest DROP COLUMN last_received; DROP TABLE expiry; DROP \
         TABLE dedup_rules; "
    );
    let back_to_4 = format!("{times} PRAGMA user_version = 4");
    let sums: String =
        ["series", "dedup", "quarantine", "revisions", "shards", "manifest", "archive_floors"]
            .map(|table| format!("ALTER TABLE {table} DROP COLUMN sum; "))
            .concat();
    let back_to_3 = format!("{times} {sums} PRAGMA user_version = 3");
    let back_to_2 = format!(
        "{times} {sums} DROP INDEX manifest_by_tier; ALTER TABLE manifest DROP COLUMN tier; DROP \
         TABLE archive_floors; PRAGMA user_version = 2"
    );
    for (back, of_two_times) in [
        (BACK_TO_10.to_owned(), true),
        (BACK_TO_9.to_owned(), true),
        (BACK_TO_8.to_owned(), true),
        (back_to_7, true),
        (back_to_6, true),
        (back_to_5, true),
        (back_to_4, false),
        (back_to_3, false),
        (back_to_2, false),
    ] {
        taken_over(&back, of_two_times);
    }
}

fn taken_over(back: &str, of_two_times: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let store = sqlite::SqliteStore::open(&path).expect("a store");
    let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
    let of_two = FlushBatch { appended: Some(9), ..batch(vec![delta("a", 1, 1)]) };
    store.flush(guard(0, 2, epoch), &of_two, 0).expect("flush");
    store.insert_manifest_row(epoch, &manifest_row(0, 2, epoch)).expect("archived");
    store.set_dedup_rule(SHARD, epoch, 2, DedupRule { horizon_ms: 1, max_ids: 2 }).expect("noted");
    store.mark_suspect(SHARD, epoch, 2, 1).expect("marked");
    drop(store);
    let raw = rusqlite::Connection::open(&path).expect("open");
    // Older versions had no views.
    let views =
        "SELECT group_concat('DROP VIEW ' || name, ';') FROM sqlite_schema WHERE type = 'view'";
    let views: String = raw.query_row(views, [], |row| row.get(0)).expect("there are views");
    raw.execute_batch(&views).expect("dropped");
    raw.execute_batch(back).expect("as the older version had it");
    drop(raw);
    // A read-only process cannot migrate the file. The error says who can: neither an older release
    // nor a rebuild is needed.
    let unread = sqlite::SqliteStore::open_read_only(&path).map(drop);
    assert!(
        matches!(
            &unread,
            Err(StoreError::Invalid(why)) if why.contains("start a node of this build")
        ),
        "{unread:?}"
    );
    let store = sqlite::SqliteStore::open(&path).expect("a store");
    let mut found = Vec::new();
    store.check(&mut |damage| found.push(damage)).expect("looks");
    assert_eq!(found, [], "every row has its checksum");
    let mut snapshot = store.snapshot().expect("snapshot");
    let row = manifest_row(0, 2, epoch);
    let expected = if of_two_times { row } else { ManifestRow { received: row.appended, ..row } };
    assert_eq!(snapshot.manifest(None), Ok(vec![expected.clone()]), "one time, which is both");
    assert_eq!(
        snapshot.checkpoints().expect("checkpoints")[0].1.appended,
        Some(9).filter(|_| of_two_times)
    );
    let outcomes = |store: &dyn RollupStore, from| {
        let mut snapshot = store.snapshot().expect("snapshot");
        snapshot.decisions(SHARD, OffsetRange { from, to: 3 }).expect("decisions").outcomes
    };
    drop(snapshot);
    store.flush(guard(2, 3, epoch), &batch(vec![]), 0).expect("flush");
    assert_eq!(outcomes(&*store, 2), Some(Default::default()), "from now on they are noted");
    assert_eq!(outcomes(&*store, 1), None, "an older release has noted nothing");
    let note =
        serde_json::to_string(&crate::model::expiry::ExpiryState::default()).expect("a note");
    assert_eq!(store.swap_expiry(ExpiryTarget::Weeks, None, &note), Ok(true));
    assert_eq!(store.expire_object(&expected), Ok(true));
    store.set_dedup_rule(SHARD, epoch, 3, DedupRule { horizon_ms: 1, max_ids: 2 }).expect("noted");
    store.claim(SHARD, LOG, 2).expect("the mark becomes a suspect");
    let known = batch(vec![delta("a", 1, 1), delta("b", 1, 1)]);
    let claim = store.claim(SHARD, LOG, 3).expect("claim");
    store.flush(guard(3, 4, claim.checkpoint.epoch), &known, 0).expect("flush");
    let rows = read(&mut *store.snapshot().expect("snapshot"), &[]);
    assert_eq!(rows.iter().map(|row| row.2.figures.count).collect::<Vec<_>>(), [2, 1]);
    store.check(&mut |damage| panic!("{damage:?}")).expect("looks");
}
