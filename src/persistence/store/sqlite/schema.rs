//! The tables, their version, and how connections are set up.
//!
//! Series are numbered in order of admission, so that the series of a shard and metric are close
//! together. Each generation of a metric has a metric number of its own, which is never used again,
//! because caches know it. Rollups are clustered by metric, hour and series, so that a range of hours is one
//! scan. Sketches have a table of their own, which keeps the figures dense. Files of an older
//! version are migrated; files of an unknown version are refused and never changed.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{StoreError, views};

const VERSION: i64 = 11;

const TABLES: &str = "
CREATE TABLE tenants (no INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE metrics (no INTEGER PRIMARY KEY AUTOINCREMENT, tenant_no INTEGER NOT NULL, name TEXT \
                      NOT NULL,
  series_count INTEGER NOT NULL DEFAULT 0, first_hour INTEGER, last_hour INTEGER, generation \
                      INTEGER NOT NULL DEFAULT 0,
  UNIQUE (tenant_no, name, generation));
CREATE TABLE series (no INTEGER PRIMARY KEY, metric_no INTEGER NOT NULL, id BLOB NOT NULL, key \
                      BLOB NOT NULL,
  shard INTEGER NOT NULL, admitted_offset INTEGER NOT NULL, sum INTEGER, part INTEGER NOT NULL \
                      DEFAULT 0);
CREATE TABLE label_pairs (no INTEGER PRIMARY KEY, metric_no INTEGER NOT NULL, name TEXT NOT NULL, \
                      value TEXT NOT NULL,
  UNIQUE (metric_no, name, value));
CREATE TABLE series_labels (pair_no INTEGER NOT NULL, series_no INTEGER NOT NULL, PRIMARY KEY \
                      (pair_no, series_no)) WITHOUT ROWID;
CREATE TABLE rollups (metric_no INTEGER NOT NULL, hour INTEGER NOT NULL, series_no INTEGER NOT \
                      NULL, count INTEGER NOT NULL,
  value_count INTEGER NOT NULL, sum NOT NULL, min, max, PRIMARY KEY (metric_no, hour, series_no)) \
                      WITHOUT ROWID;
CREATE TABLE sketches (metric_no INTEGER NOT NULL, hour INTEGER NOT NULL, series_no INTEGER NOT \
                      NULL,
  distinct_users BLOB NOT NULL, quantiles BLOB NOT NULL, PRIMARY KEY (metric_no, hour, series_no));
CREATE TABLE revisions (metric_no INTEGER NOT NULL, day INTEGER NOT NULL, revision INTEGER NOT \
                      NULL, sum INTEGER,
  PRIMARY KEY (metric_no, day)) WITHOUT ROWID;
CREATE TABLE shards (shard INTEGER PRIMARY KEY, log BLOB NOT NULL, next INTEGER NOT NULL, archived \
                      INTEGER NOT NULL,
  epoch INTEGER NOT NULL, nonce INTEGER NOT NULL, attempts INTEGER NOT NULL, marked_offset \
                      INTEGER, marked_index INTEGER, sum INTEGER,
  appended INTEGER, noted_from INTEGER, noted_to INTEGER, set_version INTEGER NOT NULL DEFAULT 0);
CREATE TABLE suspects (shard INTEGER NOT NULL, offset INTEGER NOT NULL, idx INTEGER NOT NULL, \
                      deaths INTEGER NOT NULL,
  sum INTEGER, PRIMARY KEY (shard, offset, idx)) WITHOUT ROWID;
CREATE TABLE dedup (shard INTEGER NOT NULL, from_offset INTEGER NOT NULL, to_offset INTEGER NOT \
                      NULL,
  first_appended INTEGER NOT NULL, last_appended INTEGER NOT NULL, block BLOB NOT NULL, sum \
                      INTEGER, PRIMARY KEY (shard, from_offset));
CREATE TABLE dedup_rules (shard INTEGER NOT NULL, from_offset INTEGER NOT NULL, horizon_ms INTEGER \
                      NOT NULL, max_ids INTEGER NOT NULL,
  sum INTEGER, PRIMARY KEY (shard, from_offset)) WITHOUT ROWID;
CREATE TABLE outcome_notes (shard INTEGER NOT NULL, from_offset INTEGER NOT NULL, to_offset INTEGER \
                      NOT NULL, events BLOB NOT NULL,
  sum INTEGER, PRIMARY KEY (shard, from_offset));
CREATE TABLE accounting (tenant TEXT NOT NULL, hour INTEGER NOT NULL, aggregated INTEGER NOT NULL, \
                      deduplicated INTEGER NOT NULL,
  quarantined INTEGER NOT NULL, PRIMARY KEY (tenant, hour)) WITHOUT ROWID;
CREATE TABLE quarantine (shard INTEGER NOT NULL, offset INTEGER NOT NULL, idx INTEGER NOT NULL, \
                      tenant TEXT NOT NULL,
  appended INTEGER NOT NULL, reason TEXT NOT NULL, discarded INTEGER NOT NULL, record BLOB NOT \
                      NULL, sum INTEGER,
  released INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (shard, offset, idx));
CREATE TABLE manifest (shard INTEGER NOT NULL, from_offset INTEGER NOT NULL, to_offset INTEGER NOT \
                      NULL, log BLOB NOT NULL,
  epoch INTEGER NOT NULL, nonce INTEGER NOT NULL, path TEXT NOT NULL, first_appended INTEGER NOT \
                      NULL,
  last_appended INTEGER NOT NULL, windows BLOB NOT NULL, rows INTEGER NOT NULL, raw_bytes INTEGER \
                      NOT NULL,
  bytes INTEGER NOT NULL, crc32c INTEGER NOT NULL, tier INTEGER NOT NULL DEFAULT 0, sum INTEGER,
  first_received INTEGER NOT NULL DEFAULT 0, last_received INTEGER NOT NULL DEFAULT 0, PRIMARY KEY \
                      (shard, from_offset));
CREATE INDEX manifest_by_tier ON manifest (shard, tier, from_offset);
CREATE TABLE archive_floors (shard INTEGER PRIMARY KEY, offset INTEGER NOT NULL, appended INTEGER \
                      NOT NULL, hour INTEGER NOT NULL,
  sum INTEGER);
CREATE TABLE expiry (shard INTEGER PRIMARY KEY, note TEXT NOT NULL, said INTEGER NOT NULL DEFAULT \
                      0, sum INTEGER);
";

/// Part of a series is who writes its rows, besides the shard: 0 ingest, whose shards share their
/// series; of another generation 1 live, 2 from the archive.
const GENERATIONS: &str = "
CREATE INDEX metrics_by_generation ON metrics (generation) WHERE generation > 0;
CREATE INDEX series_by_metric ON series (metric_no);
CREATE UNIQUE INDEX series_by_id ON series (id) WHERE part = 0;
CREATE INDEX series_by_shard ON series (shard) WHERE part = 0;
CREATE UNIQUE INDEX series_by_writer ON series (metric_no, shard, part, id) WHERE part > 0;
CREATE TABLE generation_book (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, \
                           document TEXT NOT NULL, sum INTEGER);
CREATE TABLE generation_fills (generation INTEGER NOT NULL, shard INTEGER NOT NULL, log BLOB NOT \
                           NULL, cut INTEGER NOT NULL,
  cursor INTEGER NOT NULL, sum INTEGER, PRIMARY KEY (generation, shard)) WITHOUT ROWID;
CREATE TABLE generation_dropped (generation INTEGER NOT NULL, tenant TEXT NOT NULL, metric TEXT NOT \
                           NULL, day INTEGER NOT NULL,
  shard INTEGER NOT NULL, part INTEGER NOT NULL, events INTEGER NOT NULL, sum INTEGER,
  PRIMARY KEY (generation, tenant, metric, day, shard, part)) WITHOUT ROWID;
CREATE TABLE generation_rules (generation INTEGER NOT NULL, shard INTEGER NOT NULL, part INTEGER \
                           NOT NULL, rule INTEGER NOT NULL,
  outcome TEXT NOT NULL, events INTEGER NOT NULL, sum INTEGER,
  PRIMARY KEY (generation, shard, part, rule, outcome)) WITHOUT ROWID;
CREATE TABLE generation_audit (no INTEGER PRIMARY KEY, generation INTEGER NOT NULL, tenant TEXT \
                           NOT NULL, action TEXT NOT NULL,
  at INTEGER NOT NULL, by TEXT NOT NULL, note TEXT NOT NULL, sum INTEGER);
CREATE INDEX generation_audit_by_tenant ON generation_audit (tenant, no);
";

const BOARDS: &str = "
CREATE TABLE boards (tenant TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, changed INTEGER NOT NULL, by TEXT NOT NULL,
  name TEXT NOT NULL, document TEXT NOT NULL, sum INTEGER, PRIMARY KEY (tenant, id));
";

/// What people decided is looked for all the time, and is far behind the records in the table.
const SETTLED: &str = "
CREATE INDEX quarantine_settled ON quarantine (shard, offset, idx, released, discarded) WHERE \
                       discarded;
";

/// From version 3: rows that cannot be derived from other data get a checksum.
const FROM_3: &str = "
ALTER TABLE series ADD COLUMN sum INTEGER;
ALTER TABLE dedup ADD COLUMN sum INTEGER;
ALTER TABLE quarantine ADD COLUMN sum INTEGER;
ALTER TABLE revisions ADD COLUMN sum INTEGER;
ALTER TABLE shards ADD COLUMN sum INTEGER;
ALTER TABLE manifest ADD COLUMN sum INTEGER;
ALTER TABLE archive_floors ADD COLUMN sum INTEGER;
";

/// From version 2: the manifest gets tiers and archive floors. Revisions were counters, which
/// repeat in other stores, so they are replaced by random numbers.
const FROM_2: &str = "
UPDATE revisions SET revision = random() | 1;
ALTER TABLE manifest ADD COLUMN tier INTEGER NOT NULL DEFAULT 0;
CREATE INDEX manifest_by_tier ON manifest (shard, tier, from_offset);
CREATE TABLE archive_floors (shard INTEGER PRIMARY KEY, offset INTEGER NOT NULL, appended INTEGER \
                      NOT NULL, hour INTEGER NOT NULL);
";

/// From version 4: append time and received time are separate, and expiry state is stored. Older
/// rows have one time, which serves as both. The quarantine's column `appended` keeps its name but
/// holds the received time, which was the same until then.
const FROM_4: &str = "
ALTER TABLE shards ADD COLUMN appended INTEGER;
ALTER TABLE manifest ADD COLUMN first_received INTEGER NOT NULL DEFAULT 0;
ALTER TABLE manifest ADD COLUMN last_received INTEGER NOT NULL DEFAULT 0;
UPDATE manifest SET first_received = first_appended, last_received = last_appended;
CREATE TABLE expiry (shard INTEGER PRIMARY KEY, note TEXT NOT NULL, said INTEGER NOT NULL DEFAULT \
                      0);
";

/// From version 5: the de-duplication rules are stored.
const FROM_5: &str = "
CREATE TABLE dedup_rules (shard INTEGER NOT NULL, from_offset INTEGER NOT NULL, horizon_ms INTEGER \
                      NOT NULL, max_ids INTEGER NOT NULL,
  PRIMARY KEY (shard, from_offset)) WITHOUT ROWID;
";

/// From version 6: the remaining tables get a checksum.
const FROM_6: &str = "
ALTER TABLE suspects ADD COLUMN sum INTEGER;
ALTER TABLE dedup_rules ADD COLUMN sum INTEGER;
ALTER TABLE expiry ADD COLUMN sum INTEGER;
";

/// From version 7: flushes note the events that they do not count. Those before have not.
const FROM_7: &str = "
ALTER TABLE shards ADD COLUMN noted_from INTEGER;
ALTER TABLE shards ADD COLUMN noted_to INTEGER;
CREATE TABLE outcome_notes (shard INTEGER NOT NULL, from_offset INTEGER NOT NULL, to_offset INTEGER \
                      NOT NULL, events BLOB NOT NULL,
  sum INTEGER, PRIMARY KEY (shard, from_offset));
";

/// From version 8: generations. Two tables are written anew, because what is unique in them has
/// changed; [`GENERATIONS`] follows. Released events stay in the quarantine, marked.
const FROM_8: &str = "
CREATE TABLE new_metrics (no INTEGER PRIMARY KEY AUTOINCREMENT, tenant_no INTEGER NOT NULL, name \
                      TEXT NOT NULL,
  series_count INTEGER NOT NULL DEFAULT 0, first_hour INTEGER, last_hour INTEGER, generation \
                      INTEGER NOT NULL DEFAULT 0,
  UNIQUE (tenant_no, name, generation));
INSERT INTO new_metrics (no, tenant_no, name, series_count, first_hour, last_hour)
  SELECT no, tenant_no, name, series_count, first_hour, last_hour FROM metrics;
DROP TABLE metrics;
ALTER TABLE new_metrics RENAME TO metrics;
CREATE TABLE new_series (no INTEGER PRIMARY KEY, metric_no INTEGER NOT NULL, id BLOB NOT NULL, key \
                      BLOB NOT NULL,
  shard INTEGER NOT NULL, admitted_offset INTEGER NOT NULL, sum INTEGER, part INTEGER NOT NULL \
                      DEFAULT 0);
INSERT INTO new_series (no, metric_no, id, key, shard, admitted_offset, sum)
  SELECT no, metric_no, id, key, shard, admitted_offset, sum FROM series;
DROP TABLE series;
ALTER TABLE new_series RENAME TO series;
ALTER TABLE shards ADD COLUMN set_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quarantine ADD COLUMN released INTEGER NOT NULL DEFAULT 0;
";

/// The migrations, each from its version to the next.
const STEPS: &[(i64, &str)] = &[
    (2, FROM_2),
    (3, FROM_3),
    (4, FROM_4),
    (5, FROM_5),
    (6, FROM_6),
    (7, FROM_7),
    (8, FROM_8),
    (8, GENERATIONS),
    (9, BOARDS),
    (10, SETTLED),
];

/// The state that a file is opened in. A rebuild uses the negative version, so that no build
/// mistakes an unfinished file for a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreState {
    /// A store that is ready for use.
    Complete,
    /// The output of an unfinished rebuild.
    Rebuilding,
}

impl StoreState {
    fn version(self) -> i64 {
        match self {
            StoreState::Complete => VERSION,
            StoreState::Rebuilding => -VERSION,
        }
    }
}

/// Configures the writer connection, creates the tables of an empty file, and migrates an older
/// one.
pub(super) fn prepare(
    connection: &mut Connection,
    path: &Path,
    state: StoreState,
) -> Result<(), StoreError> {
    connection.set_prepared_statement_cache_capacity(64);
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A commit must survive a power failure, because the log then drops the records.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
    connection.pragma_update(None, "cache_size", -65_536)?;
    // One transaction around it all: a crash leaves the file at its old version.
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let tables: i64 = tx.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    if tables == 0 {
        tx.execute_batch(TABLES)?;
        tx.execute_batch(GENERATIONS)?;
        tx.execute_batch(BOARDS)?;
        tx.execute_batch(SETTLED)?;
        tx.pragma_update(None, "user_version", state.version())?;
    } else if state == StoreState::Complete
        && STEPS.iter().any(|(known, _)| version(&tx).is_ok_and(|found| found == *known))
    {
        let found = version(&tx)?;
        views::remove(&tx)?;
        for (_, step) in STEPS.iter().filter(|(from, _)| *from >= found) {
            tx.execute_batch(step)?;
        }
        super::checksum_migration::update_all_checksums(&tx)?;
        tx.pragma_update(None, "user_version", VERSION)?;
    } else if state == StoreState::Rebuilding && version(&tx)? == VERSION {
        // The rebuild had finished, but was killed before its file was moved into place. It is
        // resumed and finds nothing left to do.
        tx.pragma_update(None, "user_version", state.version())?;
    }
    check_state(&tx, path, state)?;
    views::lay(&tx)?;
    tx.commit()?;
    Ok(())
}

/// Turns a rebuilt file into a store, and empties its journal.
pub(super) fn complete(connection: &Connection) -> Result<(), StoreError> {
    connection.pragma_update(None, "user_version", VERSION)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}

/// Opens a connection that cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    set_up(open_to_read(path, OpenFlags::empty(), path.as_os_str().to_owned())?)
}

/// Opens a connection that reads the file without a journal, which a full disk may not be able to
/// create. Correct only while nobody writes the file, and only if the journal is empty.
pub(super) fn open_immutable(path: &Path) -> Result<Connection, StoreError> {
    let mut journal = path.as_os_str().to_owned();
    journal.push("-wal");
    if std::fs::metadata(&journal).is_ok_and(|journal| journal.len() > 0) {
        return Err(StoreError::Failed(format!("{} is in use", Path::new(&journal).display())));
    }
    // Percent-encoded: a `?` in the path would otherwise begin the parameters of the URI.
    let mut uri = std::ffi::OsString::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte).to_string())
            }
            other => uri.push(format!("%{other:02x}")),
        }
    }
    uri.push("?immutable=1");
    set_up(open_to_read(path, OpenFlags::SQLITE_OPEN_URI, uri)?)
}

fn open_to_read(
    path: &Path,
    more: OpenFlags,
    name: std::ffi::OsString,
) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    Connection::open_with_flags(name, flags)
        .map_err(|e| StoreError::Failed(format!("cannot open {} for reading: {e}", path.display())))
}

fn set_up(connection: Connection) -> Result<Connection, StoreError> {
    connection.set_prepared_statement_cache_capacity(64);
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "cache_size", -65_536)?;
    // The first read opens the journal: a failure shows here and not in the first query.
    version(&connection)?;
    Ok(connection)
}

fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |r| r.get(0))?)
}

/// Refuses files of a version that this build does not read.
pub(super) fn check_version(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    check_state(connection, path, StoreState::Complete)
}

fn check_state(connection: &Connection, path: &Path, state: StoreState) -> Result<(), StoreError> {
    let (found, path) = (version(connection)?, path.display());
    if found == state.version() {
        return Ok(());
    }
    let why = match (found, state) {
        (..0, StoreState::Complete) => {
            format!(
                "{path} is what a rebuild has not finished: run `rollmill rebuild` again, or \
                 delete it"
            )
        }
        (_, StoreState::Rebuilding) => format!(
            "{path} is not what this version has begun to rebuild: delete it, and start again"
        ),
        _ if STEPS.iter().any(|(known, _)| *known == found) => format!(
            "{path} has schema version {found}, this build reads {VERSION}: start a node of this \
             build on it, which brings it up to date"
        ),
        _ => format!(
            "{path} has schema version {found}, this build reads {VERSION}: start the version of \
             Rollmill that wrote it, or rebuild the store from the archive"
        ),
    };
    Err(StoreError::Invalid(why))
}

#[cfg(test)]
mod tests {
    use crate::persistence::store::sqlite::SqliteStore;

    #[test]
    fn a_rebuild_that_was_ended_before_its_file_was_moved_goes_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.sqlite.rebuilding");
        for _ in 0..2 {
            let begun = SqliteStore::open_rebuilding(&path).expect("begun, or begun again");
            assert!(
                SqliteStore::open(&path)
                    .is_err_and(|why| why.to_string().contains("has not finished"))
            );
            begun.finish_rebuild().expect("finished");
            drop(begun);
            assert!(SqliteStore::open(&path).is_ok(), "a store like any other");
        }
    }
}
