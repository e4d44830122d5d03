//! `rollmill verify` detects and names damage in every table of the store, not only in rollups. In
//! SQLite, which has no checksums, that includes damage that contradicts nothing else; in
//! PostgreSQL, damage that contradicts other data.

use std::path::{Path, PathBuf};

use rollmill::persistence::store::sqlite::SqliteStore;
use rollmill::persistence::store::{ManifestStore, SnapshotSource};
use rusqlite::Connection;

use crate::postgres;
use crate::support::{Server, wait_until};

const SETTINGS: &[(&str, &str)] =
    &[("shards.count", "3"), ("flush.interval", "100ms"), ("archive.max_delay", "1s")];

/// A data directory with rows in every table that a node fills by itself, stopped gracefully.
fn filled(dir: &Path) -> PathBuf {
    let data = dir.join("data");
    fill(&data, SETTINGS, &|| {
        // All of it: a stop archives nothing, and what only the log has can always be compared.
        let sql = Connection::open(data.join("store.sqlite")).expect("opens");
        let left = "SELECT count(*) FROM shards WHERE archived < next";
        sql.query_row(left, [], |r| r.get::<_, i64>(0)).expect("a number") == 0
    });
    // Removes the bytes of deleted rows, where a flipped bit would change nothing.
    Connection::open(data.join("store.sqlite"))
        .expect("opens")
        .execute_batch("VACUUM")
        .expect("compact");
    data
}

fn fill(data: &Path, settings: &[(&str, &str)], is_archived: &dyn Fn() -> bool) {
    let server = Server::start(data, settings);
    for round in 0..3 {
        let event = |n: u32| {
            let (metric, user) = (n % 3, n % 17);
            let labels = format!(r#"{{"k":"{}","page":"/{}"}}"#, n % 5, n % 7);
            let time = format!("2026-01-0{}T1{}:00:00Z", n % 9 + 1, n % 8);
            let tail = format!(r#""labels":{labels},"timestamp":"{time}""#);
            format!(r#"{{"metric":"m{metric}","id":"{n}","value":{n},"user":"u{user}",{tail}}}"#)
        };
        let events: Vec<String> = (0..400).map(|n| event(round * 300 + n)).collect();
        assert_eq!(server.post(&format!("[{}]", events.join(","))).0, 202);
        // Each round repeats a hundred ids of the previous one.
        wait_until("it is in the store", || {
            server.accounted().iter().sum::<u64>() == u64::from(round + 1) * 400
        });
    }
    assert_eq!(server.accounted()[..2], [1_000, 200]);
    wait_until("it is archived", is_archived);
    assert_eq!(server.stop(), Some(0));
}

fn verify(data: &Path) -> (Option<i32>, String) {
    let output = Server::cli(&["verify", "--data", &data.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

/// Changes the store, verifies it, and restores it.
fn after(data: &Path, change: impl FnOnce(&Path)) -> (Option<i32>, String) {
    let store = data.join("store.sqlite");
    let whole = std::fs::read(&store).expect("read");
    change(&store);
    let found = verify(data);
    for left in ["store.sqlite-wal", "store.sqlite-shm"] {
        let _ = std::fs::remove_file(data.join(left));
    }
    std::fs::write(&store, whole).expect("put back");
    found
}

#[test]
fn every_damage_of_the_store_is_found_and_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = filled(dir.path());
    let (code, said) = verify(&data);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("equal, to the bit") && !said.contains("not compared"), "{said}");
    for (named, sql) in [
        ("accounting", "UPDATE accounting SET aggregated = aggregated + 7"),
        ("accounting", "UPDATE accounting SET deduplicated = deduplicated - 1"),
        ("accounting", "DELETE FROM accounting"),
        ("label_pairs", "UPDATE label_pairs SET value = '99' WHERE name = 'k' AND value = '3'"),
        ("label_pairs", "DELETE FROM series_labels WHERE series_no = 2"),
        ("series_labels", "INSERT INTO series_labels VALUES (1, 9999)"),
        ("metrics", "UPDATE metrics SET series_count = series_count + 1 WHERE no = 1"),
        ("metrics", "UPDATE metrics SET first_hour = first_hour - 1 WHERE no = 2"),
        ("metrics", "UPDATE metrics SET name = 'other' WHERE no = 2"),
        ("tenants", "DELETE FROM tenants"),
        ("series", "UPDATE series SET id = zeroblob(16) WHERE no = 1"),
        ("series", "UPDATE series SET admitted_offset = admitted_offset + 1 WHERE no = 3"),
        ("series", "UPDATE series SET shard = shard + 1 WHERE no = 3"),
        ("rollups", "DELETE FROM rollups"),
        ("rows differ", "UPDATE rollups SET count = count + 1 WHERE series_no = 1"),
        ("sketches", "DELETE FROM rollups WHERE series_no = 1"),
        ("revisions", "UPDATE revisions SET revision = revision + 1 WHERE metric_no = 1"),
        ("revisions", "DELETE FROM revisions WHERE metric_no = 1"),
        ("shards", "UPDATE shards SET nonce = nonce + 1 WHERE shard = 1"),
        ("shards", "UPDATE shards SET attempts = 3 WHERE shard = 1"),
        ("dedup", "UPDATE dedup SET last_appended = last_appended + 1"),
        ("dedup", "UPDATE dedup SET to_offset = to_offset + 1"),
        ("dedup_rules", "UPDATE dedup_rules SET max_ids = max_ids + 1"),
        ("manifest", "UPDATE manifest SET rows = rows + 1"),
        ("manifest", "UPDATE manifest SET windows = x'01'"),
    ] {
        let (code, said) = after(&data, |store| {
            assert!(
                Connection::open(store).expect("opens").execute(sql, []).expect(sql) > 0,
                "{sql}: nothing changed"
            );
        });
        assert_eq!(code, Some(1), "{sql}: {said}");
        assert!(said.contains(named), "{sql}: {named:?} is not in: {said}");
    }
    let (code, said) = after(&data, |store| {
        let sql = Connection::open(store).expect("opens");
        let block: Vec<u8> =
            sql.query_row("SELECT block FROM dedup LIMIT 1", [], |r| r.get(0)).expect("a block");
        let mut damaged = block.clone();
        damaged[block.len() / 2] ^= 4;
        assert!(
            sql.execute("UPDATE dedup SET block = ? WHERE block = ?", [&damaged, &block])
                .expect("changes")
                > 0
        );
    });
    assert!(code == Some(1) && said.contains("dedup") && said.contains("block of ids"), "{said}");
    assert_eq!(verify(&data).0, Some(0), "nothing of it stays");
}

/// Flips one bit in the root page of every table and index where it holds data: in its type byte,
/// and in three bytes of its cells.
#[test]
fn a_flipped_bit_in_the_root_page_of_every_table_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = filled(dir.path());
    let sql = Connection::open(data.join("store.sqlite")).expect("opens");
    let size: usize =
        sql.pragma_query_value(None, "page_size", |r| r.get::<_, i64>(0)).expect("a size") as usize;
    let mut statement = sql
        .prepare("SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0")
        .expect("a statement");
    let roots: Vec<(String, usize)> = statement
        .query_map([], |r| Ok((r.get(0)?, r.get::<_, i64>(1)? as usize)))
        .expect("rows")
        .collect::<Result<_, _>>()
        .expect("rows");
    assert!(roots.len() >= 19, "{roots:?}");
    drop(statement);
    sql.close().expect("closed");
    let whole = std::fs::read(data.join("store.sqlite")).expect("read");
    let (mut flipped, mut missed) = (0, Vec::new());
    for (name, page) in roots {
        let at = (page - 1) * size;
        let content = usize::from(u16::from_be_bytes([whole[at + 5], whole[at + 6]]));
        // An empty table has no content to damage.
        let mut places = vec![0];
        if content > 0 && content < size {
            places.extend([content + 1, (content + size) / 2, size - 1]);
        }
        for place in places {
            // The number of the last metric gets smaller: a greater one passes over a number, which
            // harms nothing.
            let is_last_number = name == "sqlite_sequence" && place == size - 1;
            let bit = if is_last_number { 1 << whole[at + place].ilog2() } else { 1 };
            let (code, said) = after(&data, |store| {
                let mut bytes = whole.clone();
                bytes[at + place] ^= bit;
                std::fs::write(store, bytes).expect("written");
            });
            flipped += 1;
            if code != Some(1) {
                missed.push(format!("{name}, byte {place}: {code:?} {said}"));
            }
        }
    }
    assert!(missed.is_empty(), "{} of {flipped} flips were not noticed: {missed:#?}", missed.len());
}

#[test]
fn a_shard_that_cannot_be_read_does_not_hide_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = filled(dir.path());
    let mut objects: Vec<PathBuf> = Vec::new();
    let mut places = vec![data.join("archive")];
    while let Some(place) = places.pop() {
        for entry in std::fs::read_dir(place).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                places.push(path);
            } else if path.to_string_lossy().contains("shard=0000") {
                objects.push(path);
            }
        }
    }
    objects.iter().for_each(|object| std::fs::remove_file(object).expect("removed"));
    assert!(!objects.is_empty());
    let (code, said) = after(&data, |store| {
        let sql = Connection::open(store).expect("opens");
        assert!(
            sql.execute(
                "UPDATE rollups SET count = count + 1 WHERE series_no IN (SELECT no FROM series \
                 WHERE shard = 2)",
                []
            )
            .expect("changes")
                > 0
        );
    });
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("NOT verified")
            && said.contains("the rows of shard 0")
            && said.contains("is missing"),
        "{said}"
    );
    assert!(said.contains("rows differ"), "{said}");
}

#[test]
fn every_damage_of_a_store_in_postgres_is_found_and_named() {
    let server = postgres::shared();
    let database = server.database();
    let url = server.url(&database);
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let settings: Vec<(&str, &str)> =
        SETTINGS.iter().copied().chain([("store.url", &*url)]).collect();
    fill(&data, &settings, &|| {
        server
            .psql(&database, "SELECT count(*) > 0 FROM rollmill.manifest WHERE shard = 0")
            .expect("an answer")
            == "t"
    });
    let verify = || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_rollmill"))
            .args(["verify", "--data"])
            .arg(&data)
            .envs([("ROLLMILL_STORE_URL", &*url), ("ROLLMILL_SHARDS_COUNT", "3")])
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said)
    };
    let (code, said) = verify();
    assert!(code == Some(0) && said.contains("equal, to the bit"), "{said}");
    for (named, change, back) in [
        (
            "accounting",
            "UPDATE accounting SET aggregated = aggregated + 7",
            "UPDATE accounting SET aggregated = aggregated - 7",
        ),
        (
            "label_pairs",
            "UPDATE label_pairs SET value = '99' WHERE value = '3'",
            "UPDATE label_pairs SET value = '3' WHERE value = '99'",
        ),
        (
            "metrics",
            "UPDATE metrics SET series_count = series_count + 1",
            "UPDATE metrics SET series_count = series_count - 1",
        ),
        (
            "dedup",
            "UPDATE dedup SET block = set_byte(block, 9, get_byte(block, 9) # 4)",
            "UPDATE dedup SET block = set_byte(block, 9, get_byte(block, 9) # 4)",
        ),
        (
            "dedup",
            "UPDATE dedup SET last_appended = last_appended + 1",
            "UPDATE dedup SET last_appended = last_appended - 1",
        ),
        ("manifest", "UPDATE manifest SET rows = rows + 1", "UPDATE manifest SET rows = rows - 1"),
        (
            "rows differ",
            "UPDATE rollups SET count = count + 1 WHERE series_no = 1",
            "UPDATE rollups SET count = count - 1 WHERE series_no = 1",
        ),
    ] {
        let run = |sql: &str| {
            server.psql(&database, &format!("SET search_path = rollmill; {sql}")).expect(sql)
        };
        run(change);
        let (code, said) = verify();
        assert!(
            code == Some(1) && said.contains(named),
            "{change}: {named:?} is not in: {code:?} {said}"
        );
        run(back);
    }
    assert_eq!(verify().0, Some(0), "nothing of it stays");
}

#[test]
fn nothing_that_could_be_compared_is_an_exit_code_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = filled(dir.path());
    // The state after archive.keep: the raw events of every window have expired, their rollups
    // remain.
    let store = SqliteStore::open(data.join("store.sqlite")).expect("the store");
    let rows =
        store.snapshot().and_then(|mut snapshot| snapshot.manifest(None)).expect("the manifest");
    assert!(!rows.is_empty());
    assert!(rows.iter().all(|row| store.expire_object(row).expect("noted")));
    drop(store);
    let (code, said) = verify(&data);
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("NOTHING was verified")
            && said.contains("NOT VERIFIABLE")
            && !said.contains("equal"),
        "{said}"
    );
}
