//! Every contradiction is found and named, in every store of tables alike.

use std::sync::Arc;

use super::*;
use crate::model::decimal::Decimal;
use crate::model::flush::{
    AccountingDelta, DedupBlock, DedupRule, Delta, DroppedEvents, FillGuard, FlushBatch,
    FlushGuard, GenerationDeltas, QuarantineRow, RuleEvents, SeriesInfo, SetAdoption,
};
use crate::model::generation::DayRange;
use crate::model::generation_book::{GenerationBook, NewGeneration};
use crate::model::manifest::{ManifestRow, Tier};
use crate::model::offset::{Epoch, LogId, OffsetRange, ShardId};
use crate::model::outcome::{OutcomeNote, UncountedEvent, Verdict};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::Hour;
use crate::persistence::store::postgres::tests::{server, timescale};
use crate::persistence::store::{AuditEntry, ExpiryTarget, RollupStore, postgres, sqlite};

const LOG: LogId = LogId([7; 16]);
const SHARD: ShardId = ShardId(3);

fn delta(metric: &str, page: &str, hour: i32) -> Delta {
    let mut rollup = Rollup::default();
    rollup.add(Some(Decimal::from_units(5)), Some(9));
    let series = Series::new("acme", metric, [("page".to_owned(), page.to_owned())]);
    Delta {
        series: Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series }),
        hour: Hour(hour),
        rollup,
    }
}

fn flush(
    store: &dyn RollupStore,
    (shard, epoch): (ShardId, Epoch),
    range: OffsetRange,
    deltas: Vec<Delta>,
) {
    let times = (range.from as i64, range.to as i64);
    let runs = vec![(times.0, vec![u128::from(range.from)]), (times.1, vec![1 << 100])];
    let batch = FlushBatch {
        admitted: deltas.iter().map(|delta| (delta.series.clone(), range.from)).collect(),
        deltas,
        dedup: Some(DedupBlock { range, appended: times, runs }),
        accounting: vec![AccountingDelta {
            tenant: "acme".into(),
            hour: Hour(5),
            aggregated: 2,
            deduplicated: 1,
            quarantined: 1,
        }],
        quarantined: vec![QuarantineRow {
            shard,
            offset: range.from,
            index: 0,
            tenant: "acme".into(),
            received: 7,
            reason: "it fell".into(),
            discarded: false,
            record: vec![1],
        }],
        outcomes: {
            let mut note = OutcomeNote::default();
            let (offset, verdict) = (range.to - 1, Verdict::Duplicate);
            note.push(UncountedEvent { offset, index: 1, verdict });
            note
        },
        appended: Some(times.1),
        ..FlushBatch::default()
    };
    store.flush(FlushGuard { shard, log: LOG, range, epoch }, &batch, 0).expect("a flush");
}

fn object(range: OffsetRange, epoch: Epoch) -> ManifestRow {
    ManifestRow {
        log: LOG,
        shard: SHARD,
        range,
        epoch,
        path: ManifestRow::object_path(LOG, SHARD, range, epoch),
        appended: (range.from as i64, range.to as i64),
        received: (range.from as i64, range.to as i64),
        windows: vec![(Hour(-1), 5), (Hour(10), 1)],
        rows: 6,
        raw_bytes: 50,
        bytes: 40,
        crc32c: 1,
        tier: Tier::Hot,
    }
}

/// Writes something into every table.
fn fill(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 11).expect("a claim").checkpoint.epoch;
    store.set_dedup_rule(SHARD, epoch, 0, DedupRule { horizon_ms: 1, max_ids: 2 }).expect("noted");
    let range = |from, to| OffsetRange { from, to };
    let first = vec![
        delta("views", "a", 1),
        delta("views", "b", 30),
        delta("views", "a", -400),
        delta("sales", "a", 1),
    ];
    flush(store, (SHARD, epoch), range(0, 2), first);
    flush(
        store,
        (SHARD, epoch),
        range(2, 4),
        vec![delta("views", "a", 1), delta("views", "c", 200)],
    );
    for (from, to) in [(0, 2), (2, 3), (3, 4)] {
        store.insert_manifest_row(epoch, &object(range(from, to), epoch)).expect("archived");
    }
    assert_eq!(store.expire_object(&object(range(0, 2), epoch)), Ok(true));
    let other = store.claim(ShardId(4), LOG, 12).expect("a claim").checkpoint.epoch;
    flush(store, (ShardId(4), other), range(0, 1), vec![delta("sales", "b", 400)]);
    fill_generation(store, ShardId(5));
    store.mark_suspect(SHARD, epoch, 4, 2).expect("marked");
    store.claim(SHARD, LOG, 13).expect("the mark becomes a suspect");
    let note = serde_json::to_string(&ExpiryState::default()).expect("a note");
    assert_eq!(store.swap_expiry(ExpiryTarget::Weeks, None, &note), Ok(true));
}

/// A generation that a shard writes and fills, with all of its tables.
fn fill_generation(store: &dyn RollupStore, shard: ShardId) {
    let epoch = store.claim(shard, LOG, 1).expect("a claim").checkpoint.epoch;
    let mut book = GenerationBook::default();
    let new = NewGeneration {
        tenant: "acme".into(),
        metrics: vec!["views".into()],
        days: DayRange::ALWAYS,
        rules: "[]".into(),
        started: (1, "k1".into()),
    };
    let generation = book.start(new, 3, 7).expect("started");
    let entry = AuditEntry {
        generation,
        tenant: "acme".into(),
        action: "start".into(),
        at: 1,
        by: "k1".into(),
        note: String::new(),
    };
    assert_eq!(store.swap_generations(0, &book, Some(&entry)), Ok(true));
    let guard = |from, to| {
        let range = OffsetRange { from, to };
        FlushGuard { shard, log: LOG, range, epoch }
    };
    store.flush(guard(0, 4), &FlushBatch::default(), 0).expect("flushed");
    let set = book.newest_set().version;
    let adopts = Some(SetAdoption { version: set, begun: vec![generation] });
    let adoption = FlushBatch { adopts, ..FlushBatch::default() };
    store.flush(guard(4, 4), &adoption, 0).expect("adopted");
    let (tenant, metric) = ("acme".into(), "views".into());
    let deltas = GenerationDeltas {
        generation,
        deltas: vec![delta("views", "a", 50), delta("views", "d", 60)],
        dropped: vec![DroppedEvents { tenant, metric, day: 0, events: 3 }],
        rules: vec![RuleEvents { rule: 0, outcome: "dropped".into(), events: 3 }],
        ..GenerationDeltas::default()
    };
    let live = FlushBatch { set, generations: vec![deltas.clone()], ..FlushBatch::default() };
    store.flush(guard(4, 5), &live, 0).expect("flushed");
    let range = OffsetRange { from: 0, to: 1 };
    let fill = FillGuard { generation, shard, log: LOG, range, nonce: 1 };
    store.fill(&fill, &deltas).expect("filled");
}

/// The finding expected, the table that is changed, and the statement. ZERO_ID and ONE_BYTE are
/// replaced by the literals of the store's SQL.
const CONTRADICTIONS: &[(&str, &str, &str)] = &[
    ("label_pairs", "label_pairs", "UPDATE label_pairs SET value = 'zz' WHERE value = 'b'"),
    (
        "label_pairs",
        "label_pairs",
        "INSERT INTO label_pairs SELECT 77, metric_no, name, 'nobody' FROM label_pairs WHERE \
         value = 'c'",
    ),
    (
        "label_pairs",
        "series_labels",
        "DELETE FROM series_labels WHERE series_no = (SELECT min(no) FROM series)",
    ),
    (
        "label_pairs",
        "series_labels",
        "INSERT INTO series_labels VALUES (9999, (SELECT min(no) FROM series))",
    ),
    (
        "series_labels",
        "series_labels",
        "INSERT INTO series_labels VALUES ((SELECT min(no) FROM label_pairs), 9999)",
    ),
    ("metrics", "metrics", "UPDATE metrics SET series_count = series_count + 1"),
    ("metrics", "metrics", "UPDATE metrics SET first_hour = first_hour - 1"),
    ("metrics", "metrics", "UPDATE metrics SET last_hour = NULL"),
    ("metrics", "metrics", "UPDATE metrics SET name = 'other' WHERE name = 'views'"),
    ("metrics", "metrics", "DELETE FROM metrics WHERE name = 'sales'"),
    ("tenants", "tenants", "DELETE FROM tenants"),
    ("metrics", "tenants", "UPDATE tenants SET name = 'other'"),
    ("series", "series", "UPDATE series SET id = ZERO_ID WHERE no = (SELECT min(no) FROM series)"),
    (
        "series",
        "series",
        "UPDATE series SET key = ONE_BYTE WHERE no = (SELECT min(no) FROM series)",
    ),
    (
        "series",
        "series",
        "UPDATE series SET admitted_offset = 99 WHERE no = (SELECT min(no) FROM series)",
    ),
    (
        "series",
        "series",
        "UPDATE series SET admitted_offset = -1 WHERE no = (SELECT min(no) FROM series)",
    ),
    ("series", "series", "UPDATE series SET shard = 9 WHERE no = (SELECT min(no) FROM series)"),
    ("rollups", "series", "DELETE FROM series WHERE no = (SELECT min(no) FROM series)"),
    ("metrics", "rollups", "DELETE FROM rollups"),
    ("metrics", "rollups", "UPDATE rollups SET metric_no = 9999 WHERE hour = 30"),
    ("rollups", "rollups", "UPDATE rollups SET series_no = 9999 WHERE hour = 30"),
    ("sketches", "rollups", "DELETE FROM rollups WHERE hour = 1"),
    ("sketches", "sketches", "UPDATE sketches SET series_no = 9999 WHERE hour = 30"),
    ("sketches", "sketches", "UPDATE sketches SET metric_no = 9999 WHERE hour = -400"),
    ("revisions", "revisions", "DELETE FROM revisions WHERE day = 1"),
    ("revisions", "revisions", "UPDATE revisions SET revision = 0 WHERE day = 0"),
    ("dedup", "dedup", "UPDATE dedup SET last_appended = last_appended + 1"),
    ("dedup", "dedup", "UPDATE dedup SET first_appended = first_appended - 1"),
    ("dedup", "dedup", "UPDATE dedup SET to_offset = 3 WHERE from_offset = 0 AND shard = 3"),
    ("dedup", "dedup", "UPDATE dedup SET to_offset = 99 WHERE from_offset = 2"),
    ("dedup", "dedup", "UPDATE dedup SET to_offset = from_offset"),
    ("dedup", "dedup", "UPDATE dedup SET block = ONE_BYTE WHERE shard = 4"),
    ("dedup", "dedup", "UPDATE dedup SET shard = 9 WHERE shard = 4"),
    ("outcome_notes", "outcome_notes", "UPDATE outcome_notes SET to_offset = 99"),
    ("outcome_notes", "outcome_notes", "UPDATE outcome_notes SET to_offset = from_offset"),
    ("outcome_notes", "outcome_notes", "UPDATE outcome_notes SET events = ONE_BYTE"),
    ("outcome_notes", "outcome_notes", "UPDATE outcome_notes SET shard = 9"),
    ("outcome_notes", "shards", "UPDATE shards SET noted_to = noted_to + 1"),
    ("outcome_notes", "shards", "UPDATE shards SET noted_from = 99"),
    ("outcome_notes", "shards", "UPDATE shards SET archived = 1 WHERE shard = 4"),
    ("manifest", "manifest", "UPDATE manifest SET rows = rows + 1"),
    ("manifest", "manifest", "UPDATE manifest SET windows = ONE_BYTE"),
    ("manifest", "manifest", "UPDATE manifest SET epoch = epoch + 1"),
    ("manifest", "manifest", "UPDATE manifest SET nonce = nonce + 1"),
    ("manifest", "manifest", "UPDATE manifest SET to_offset = to_offset + 1"),
    ("manifest", "manifest", "UPDATE manifest SET path = 'another'"),
    ("manifest", "manifest", "UPDATE manifest SET tier = 7"),
    ("manifest", "manifest", "UPDATE manifest SET first_appended = last_appended + 1"),
    ("manifest", "manifest", "UPDATE manifest SET log = ZERO_ID"),
    ("manifest", "manifest", "UPDATE manifest SET shard = 9"),
    ("manifest", "manifest", "DELETE FROM manifest WHERE from_offset = 2"),
    ("manifest", "manifest", "DELETE FROM manifest WHERE from_offset = 3"),
    ("manifest", "archive_floors", "DELETE FROM archive_floors"),
    ("archive_floors", "archive_floors", "UPDATE archive_floors SET \"offset\" = 99"),
    ("archive_floors", "archive_floors", "UPDATE archive_floors SET shard = 9"),
    ("manifest", "shards", "UPDATE shards SET archived = archived + 1 WHERE shard = 3"),
    ("manifest", "shards", "UPDATE shards SET archived = 1 WHERE shard = 4"),
    ("dedup", "shards", "UPDATE shards SET next = 1 WHERE shard = 3"),
    ("quarantine", "shards", "UPDATE shards SET next = 1 WHERE shard = 3"),
    ("series", "shards", "DELETE FROM shards"),
    ("quarantine", "quarantine", "UPDATE quarantine SET \"offset\" = 77 WHERE \"offset\" = 2"),
    ("accounting", "accounting", "UPDATE accounting SET aggregated = -1"),
    ("expiry", "expiry", "UPDATE expiry SET note = 'x'"),
    ("generation_book", "generation_book", "UPDATE generation_book SET document = 'x'"),
    ("generation_book", "generation_book", "UPDATE generation_book SET version = 9"),
    ("metrics", "generation_book", "DELETE FROM generation_book"),
    ("shards", "shards", "UPDATE shards SET set_version = 7 WHERE shard = 5"),
    ("metrics", "metrics", "UPDATE metrics SET generation = 7 WHERE generation = 1"),
    ("series", "metrics", "UPDATE metrics SET generation = 1 WHERE name = 'sales'"),
    ("series", "series", "UPDATE series SET part = 3 WHERE part = 2"),
    ("series", "series", "UPDATE series SET part = 1 WHERE part = 0"),
    ("generation_fills", "generation_fills", "UPDATE generation_fills SET cursor = 5"),
    ("generation_fills", "generation_fills", "UPDATE generation_fills SET cut = 99"),
    ("generation_fills", "generation_fills", "UPDATE generation_fills SET generation = 7"),
    ("generation_fills", "generation_fills", "UPDATE generation_fills SET shard = 9"),
    ("generation_dropped", "generation_dropped", "UPDATE generation_dropped SET events = 0"),
    ("generation_dropped", "generation_dropped", "UPDATE generation_dropped SET generation = 7"),
    ("generation_dropped", "generation_dropped", "UPDATE generation_dropped SET part = part + 2"),
    ("generation_rules", "generation_rules", "UPDATE generation_rules SET events = 0"),
    ("generation_rules", "generation_rules", "UPDATE generation_rules SET generation = 7"),
    ("generation_rules", "generation_rules", "UPDATE generation_rules SET part = part + 2"),
];

/// Changes that contradict nothing, for stores whose rows have checksums.
const CHANGES: &[(&str, &str, &str)] = &[
    ("series", "series", "UPDATE series SET admitted_offset = 1 - admitted_offset WHERE shard = 3"),
    ("revisions", "revisions", "UPDATE revisions SET revision = revision + 1"),
    ("shards", "shards", "UPDATE shards SET nonce = nonce + 1"),
    ("shards", "shards", "UPDATE shards SET attempts = attempts + 1"),
    ("archive_floors", "archive_floors", "UPDATE archive_floors SET hour = hour - 1"),
    ("dedup_rules", "dedup_rules", "UPDATE dedup_rules SET horizon_ms = horizon_ms + 1"),
    ("dedup_rules", "dedup_rules", "UPDATE dedup_rules SET from_offset = from_offset + 1"),
    ("suspects", "suspects", "UPDATE suspects SET deaths = deaths + 1"),
    ("suspects", "suspects", "UPDATE suspects SET idx = idx + 1"),
    ("expiry", "expiry", "UPDATE expiry SET said = said + 1"),
    ("expiry", "expiry", "UPDATE expiry SET shard = 5"),
    ("manifest", "manifest", "UPDATE manifest SET bytes = bytes + 1"),
    ("quarantine", "quarantine", "UPDATE quarantine SET reason = 'it did not'"),
    ("series", "series", "UPDATE series SET part = 3 - part, shard = 4 WHERE part > 0"),
    ("generation_book", "generation_book", "UPDATE generation_book SET sum = sum + 1"),
    ("generation_fills", "generation_fills", "UPDATE generation_fills SET cursor = cursor - 1"),
    ("generation_fills", "generation_fills", "UPDATE generation_fills SET log = ZERO_ID"),
    ("generation_dropped", "generation_dropped", "UPDATE generation_dropped SET events = 4"),
    ("generation_dropped", "generation_dropped", "UPDATE generation_dropped SET day = day + 1"),
    ("generation_rules", "generation_rules", "UPDATE generation_rules SET events = 4"),
    ("generation_rules", "generation_rules", "UPDATE generation_rules SET rule = rule + 1"),
    ("generation_rules", "generation_rules", "UPDATE generation_rules SET outcome = 'changed'"),
    ("generation_audit", "generation_audit", "UPDATE generation_audit SET by = 'k2'"),
    ("generation_audit", "generation_audit", "UPDATE generation_audit SET at = at + 1"),
];

fn look(store: &dyn RollupStore) -> Vec<StoreDamage> {
    let mut found = Vec::new();
    store.check(&mut |damage| found.push(damage)).expect("it looks");
    found
}

/// Plants each damage on its own. `run` runs statements; `back` restores the rows of a table
/// from the copy `kept`.
fn each_is_found(
    store: &dyn RollupStore,
    plants: &[&[(&str, &str, &str)]],
    run: &dyn Fn(&str),
    back: &dyn Fn(&str) -> String,
) {
    fill(store);
    assert_eq!(look(store), []);
    for (named, table, sql) in plants.iter().copied().flatten() {
        run(&format!("CREATE TABLE kept AS SELECT * FROM {table}; {sql}"));
        let found = look(store);
        assert!(
            found.iter().any(|damage| damage.location == *named),
            "{sql}: {named} is not in {found:?}"
        );
        run(&format!("DELETE FROM {table}; {}; DROP TABLE kept", back(table)));
    }
    assert_eq!(look(store), [], "nothing of it stays");
}

#[test]
fn every_damage_is_found_in_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let store = sqlite::SqliteStore::open(&path).expect("a store");
    let run = |sql: &str| {
        let sql = sql.replace("ZERO_ID", "zeroblob(16)").replace("ONE_BYTE", "x'01'");
        rusqlite::Connection::open(&path)
            .expect("opens")
            .execute_batch(&sql)
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
    };
    let back = |table: &str| format!("INSERT INTO {table} SELECT * FROM kept");
    each_is_found(&*store, &[CONTRADICTIONS, CHANGES], &run, &back);
}

/// Runs on every kind of server that is available.
#[test]
fn every_contradiction_is_found_in_postgres() {
    for own in timescale::TestDatabase::on_each() {
        let store =
            postgres::PostgresStore::open(&postgres::tests::options(&own.url)).expect("a store");
        let run = |sql: &str| {
            let sql = sql
                .replace("ZERO_ID", "'00000000-0000-0000-0000-000000000000'")
                .replace("ONE_BYTE", "'\\x01'");
            timescale::run(
                &own.url,
                &format!("SET search_path = rollmill, public; {}", overriding(&sql)),
            );
        };
        // It would refuse checkpoints that are wrong.
        run("ALTER TABLE shards DROP CONSTRAINT set_is_known");
        let back = |table: &str| format!("INSERT INTO {table} SELECT * FROM kept");
        each_is_found(&*store, &[CONTRADICTIONS], &run, &back);
    }
}

/// PostgreSQL assigns the numbers of tables itself, unless told to override.
fn overriding(sql: &str) -> String {
    sql.split("; ")
        .map(|one| {
            if one.starts_with("INSERT") {
                one.replacen(" SELECT ", " OVERRIDING SYSTEM VALUE SELECT ", 1)
            } else {
                one.to_owned()
            }
        })
        .collect::<Vec<_>>()
        .join("; ")
}

/// An unreadable page is named, and does not hide other damage.
#[test]
fn a_damaged_page_of_postgres_is_found_beside_the_rest() {
    let mut server = server::Postgres::start("damage");
    let database = server.database();
    let options = postgres::tests::options(&server.url(&database));
    let store = postgres::PostgresStore::open(&options).expect("a store");
    fill(&*store);
    drop(store);
    server.psql(&database, "UPDATE rollmill.expiry SET note = 'x'").expect("changed");
    let file = server.psql(
        &database,
        "SELECT current_setting('data_directory') || '/' || pg_relation_filepath('rollmill.dedup')",
    );
    server.psql(&database, "CHECKPOINT").expect("written");
    server.kill();
    let file = std::path::PathBuf::from(file.expect("a path"));
    let mut bytes = std::fs::read(&file).expect("read");
    bytes[12..20].fill(0xff);
    std::fs::write(&file, bytes).expect("written");
    server.run();
    let found = look(&*postgres::PostgresStore::open(&options).expect("a store"));
    let places: Vec<&str> = found.iter().map(|damage| damage.location.as_str()).collect();
    assert_eq!(places, ["dedup", "expiry"], "{found:?}");
    assert!(found[0].reason.contains("XX001"), "{found:?}");
}
