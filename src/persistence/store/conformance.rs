//! What every store must do. The double, SQLite, PostgreSQL and, if one is configured, TimescaleDB
//! run the same suite.

use std::sync::Arc;

use super::*;
use crate::model::decimal::Decimal;
use crate::model::flush::{AccountingDelta, Delta, QuarantineRow, SuspectEvent};
use crate::model::manifest::ArchiveFloor;
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, OffsetRange};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};

const LOG: LogId = LogId([7; 16]);
const SHARD: ShardId = ShardId(3);

fn info(page: &str) -> Arc<SeriesInfo> {
    let labels = [("page".to_owned(), page.to_owned())];
    let series = Series::new("acme", "views", labels);
    Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series })
}

fn delta(page: &str, hour: i32, units: i128) -> Delta {
    let mut rollup = Rollup::default();
    rollup.add(Some(Decimal::from_units(units)), Some(units as u64));
    Delta { series: info(page), hour: Hour(hour), rollup }
}

fn batch(deltas: Vec<Delta>) -> FlushBatch {
    let accounting = AccountingDelta {
        tenant: "acme".into(),
        hour: Hour(5),
        aggregated: 2,
        deduplicated: 1,
        quarantined: 1,
    };
    FlushBatch { deltas, accounting: vec![accounting], ..FlushBatch::default() }
}

fn guard(from: u64, to: u64, epoch: Epoch) -> FlushGuard {
    FlushGuard { shard: SHARD, log: LOG, range: OffsetRange { from, to }, epoch }
}

fn query<'a>(matchers: &'a [Matcher]) -> RollupQuery<'a> {
    let (from, to) = (Hour(0), Hour(100));
    RollupQuery {
        tenant: "acme",
        metric: "views",
        matchers,
        from,
        to,
        distinct: true,
        quantiles: true,
        max_series: 10,
        budget: None,
    }
}

fn read(snapshot: &mut dyn QuerySnapshot, matchers: &[Matcher]) -> Vec<(String, i32, Rollup)> {
    let mut rows = Vec::new();
    snapshot
        .rollups(&query(matchers), &mut |s, h, r| {
            rows.push((s.series.label("page").to_owned(), h.0, r))
        })
        .expect("rollups");
    rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    rows
}

fn rollups_and_guards(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 11).expect("claim").checkpoint.epoch;
    let big = i128::from(i64::MAX);
    store
        .flush(guard(0, 2, epoch), &batch(vec![delta("a", 1, big), delta("", 30, -5)]), 0)
        .expect("flush");
    let mut before = store.query_snapshot(&QueryBudget::default()).expect("snapshot");
    store
        .flush(guard(2, 3, epoch), &batch(vec![delta("a", 1, big), delta("b", 1, 4)]), 0)
        .expect("flush");
    assert_eq!(read(&mut *before, &[]).len(), 2, "a later flush is invisible");
    let further = store.query_snapshot_at_once(&QueryBudget::default()).expect("snapshot");
    assert_eq!(
        read(&mut *further.expect("one more is free"), &[]).len(),
        3,
        "a further view is of now"
    );
    drop(before);

    let stale = Epoch { nonce: 12, ..epoch };
    let other = FlushGuard { log: LogId([8; 16]), ..guard(3, 4, epoch) };
    for refused in [guard(2, 3, epoch), guard(4, 5, epoch), guard(3, 4, stale), other] {
        let answer = store.flush(refused, &batch(vec![delta("a", 1, 1)]), 0);
        assert_eq!(answer, Err(StoreError::Refused { shard: SHARD }));
    }

    let mut snapshot = store.snapshot().expect("snapshot");
    let mut expected = delta("a", 1, big).rollup;
    expected.merge(&delta("a", 1, big).rollup);
    let rows = read(&mut *snapshot, &[]);
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[1], ("a".to_owned(), 1, expected.clone()));
    assert_eq!(rows[1].2.figures.sum, 2 * big);
    let revisions = snapshot.revisions("acme", "views", -1..2).expect("revisions");
    assert_eq!(
        revisions,
        [0, guard(2, 3, epoch).revision(), guard(0, 2, epoch).revision()],
        "of the last flush that wrote to the day"
    );
    let regex = |r: &str| regex::Regex::new(r).expect("regex");
    let pages = |snapshot: &mut dyn QuerySnapshot, m: Matcher| -> Vec<String> {
        read(snapshot, &[m]).into_iter().map(|(page, ..)| page).collect()
    };
    assert_eq!(pages(&mut *snapshot, Matcher::Equal("page".into(), "b".into())), ["b"]);
    assert_eq!(pages(&mut *snapshot, Matcher::Equal("page".into(), String::new())), [""]);
    assert_eq!(pages(&mut *snapshot, Matcher::NotEqual("page".into(), "a".into())), ["", "b"]);
    assert_eq!(pages(&mut *snapshot, Matcher::Regex("page".into(), regex("^(?:|a)$"))), ["", "a"]);
    assert_eq!(pages(&mut *snapshot, Matcher::NotRegex("page".into(), regex("^(?:|a)$"))), ["b"]);
    let limited = RollupQuery { max_series: 2, ..query(&[]) };
    assert!(matches!(
        snapshot.rollups(&limited, &mut |_, _, _| ()),
        Err(StoreError::TooManySeries { max: 2, .. })
    ));

    let mut encoded = Vec::new();
    expected.encode(&mut encoded);
    let mut found = Vec::new();
    let mut visit = |s: &Arc<SeriesInfo>, h: Hour, _: Rollup, bytes: &[u8]| {
        found.push((h, s.id, bytes.to_vec()))
    };
    snapshot.rollup_bytes(Hour(0), Hour(100), &mut visit).expect("bytes");
    assert!(found.is_sorted_by_key(|(hour, id, _)| (*hour, *id)));
    assert!(found.contains(&(Hour(1), info("a").id, encoded)));
    let metrics = snapshot.metrics("acme", &NameRange::ALL).expect("metrics");
    let views = MetricInfo {
        metric: "views".into(),
        labels: vec!["page".into()],
        series: 3,
        first: Some(Hour(1)),
        last: Some(Hour(30)),
    };
    assert_eq!(metrics, [views]);
    assert_eq!(
        snapshot.label_values("acme", "page", None, &NameRange::ALL),
        Ok(vec!["a".into(), "b".into()])
    );
    assert_eq!(snapshot.label_values("acme", "page", Some("other"), &NameRange::ALL), Ok(vec![]));
    let pages: [(NameRange<'_>, &[&str]); 6] = [
        (NameRange { limit: 1, ..NameRange::ALL }, &["a"]),
        (NameRange { after: "a", ..NameRange::ALL }, &["b"]),
        (NameRange { after: "b", ..NameRange::ALL }, &[]),
        (NameRange { prefix: "b", ..NameRange::ALL }, &["b"]),
        (NameRange { prefix: "ab", ..NameRange::ALL }, &[]),
        (NameRange { prefix: "a", after: "0", limit: 5, budget: None }, &["a"]),
    ];
    for (page, expected) in pages {
        for metric in [None, Some("views")] {
            let values = snapshot.label_values("acme", "page", metric, &page).expect("values");
            assert_eq!(values, expected, "{page:?}");
        }
    }
    let names = [("v", "", 1), ("views", "", 1), ("viewsx", "", 0), ("", "views", 0), ("", "a", 1)];
    for (prefix, after, found) in names {
        let page = NameRange { prefix, after, ..NameRange::ALL };
        assert_eq!(snapshot.metrics("acme", &page).expect("metrics").len(), found, "{page:?}");
    }
    assert_eq!(snapshot.metrics("acme", &NameRange { limit: 0, ..NameRange::ALL }), Ok(vec![]));
    let accounting = snapshot.accounting("acme", Hour(5), Hour(6)).expect("accounting");
    assert_eq!(
        (accounting[0].aggregated, accounting[0].deduplicated, accounting[0].quarantined),
        (4, 2, 2)
    );
    drop(snapshot);
    assert_eq!(store.admitted_series(SHARD).expect("admitted")[0].1.len(), 3);
    assert_eq!(store.metric_names(), Ok(vec![("acme".to_owned(), "views".to_owned())]));
    assert_eq!(store.snapshot().expect("snapshot").admissions(SHARD).expect("admissions").len(), 3);

    let mut snapshot = store.snapshot().expect("snapshot");
    let mut admitted =
        |from, to| snapshot.decisions(SHARD, OffsetRange { from, to }).expect("decisions").admitted;
    let mut first = vec![(info("a").id, 0), (info("").id, 0)];
    first.sort_unstable();
    assert_eq!(
        (admitted(0, 2), admitted(1, 2), admitted(2, 9)),
        (first, vec![], vec![(info("b").id, 2)])
    );
    drop(snapshot);
    let checkpoint = Checkpoint { log: LOG, next: 0, archived: 0, epoch, appended: None };
    let restored =
        ShardRestore { shard: SHARD, checkpoint, floor: None, manifest: vec![], admitted: vec![] };
    assert_eq!(store.restore(&restored), Err(not_being_rebuilt()));

    let liar = Arc::new(SeriesInfo { id: info("a").id, series: info("c").series.clone() });
    let collision = FlushBatch { admitted: vec![(liar, 3)], ..batch(vec![delta("b", 1, 1)]) };
    assert!(matches!(store.flush(guard(3, 4, epoch), &collision, 0), Err(StoreError::Invalid(_))));
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(read(&mut *snapshot, &[])[2].2.figures.count, 1, "nothing applied");
    assert_eq!(snapshot.checkpoints().expect("checkpoints")[0].1.next, 3);
}

fn suspect(offset: u64, index: u32, deaths: u32) -> SuspectEvent {
    SuspectEvent { offset, index, deaths }
}

fn claims_ids_and_archive(store: &dyn RollupStore) {
    let first = store.claim(SHARD, LOG, 11).expect("claim");
    assert_eq!((first.attempts, first.checkpoint.next, first.checkpoint.epoch.counter), (1, 0, 1));
    store.mark_suspect(SHARD, first.checkpoint.epoch, 4, 2).expect("mark");
    let second = store.claim(SHARD, LOG, u64::MAX).expect("claim");
    assert_eq!(
        (second.attempts, second.suspects, second.checkpoint.epoch.counter),
        (2, vec![suspect(4, 2, 1)], 2)
    );
    assert!(matches!(store.claim(SHARD, LogId([8; 16]), 1), Err(StoreError::Invalid(_))));
    let refused = Err(StoreError::Refused { shard: SHARD });
    assert_eq!(store.mark_suspect(SHARD, first.checkpoint.epoch, 1, 1), refused);

    assert_eq!(
        store.claim(SHARD, LOG, 3).expect("claim").suspects,
        vec![suspect(4, 2, 1)],
        "no mark, no further death"
    );
    let next = store.claim(SHARD, LOG, 4).expect("claim");
    for (offset, index) in [(4, 1), (4, 2)] {
        store.mark_suspect(SHARD, next.checkpoint.epoch, offset, index).expect("mark");
    }
    let again = store.claim(SHARD, LOG, 5).expect("claim");
    assert_eq!(
        (again.attempts, again.suspects),
        (5, vec![suspect(4, 2, 2)]),
        "only the last mark is a death"
    );
    store.mark_suspect(SHARD, again.checkpoint.epoch, 4, 7).expect("mark");
    let second = store.claim(SHARD, LOG, 6).expect("claim");
    assert_eq!(
        second.suspects,
        vec![suspect(4, 2, 2), suspect(4, 7, 1)],
        "earlier suspects are kept"
    );

    let epoch = second.checkpoint.epoch;
    let block = |from: u64, at: i64| DedupBlock {
        range: OffsetRange { from, to: from + 1 },
        appended: (at, at),
        runs: vec![(at, vec![u128::MAX, from.into()])],
    };
    for (from, forget) in [(0, 0), (1, 0), (2, 15)] {
        let dedup = Some(block(from, 10 * (from as i64 + 1)));
        store
            .flush(guard(from, from + 1, epoch), &FlushBatch { dedup, ..batch(vec![]) }, forget)
            .expect("flush");
    }
    assert_eq!(store.recent_ids(SHARD, 0), Ok(vec![block(1, 20), block(2, 30)]));
    assert_eq!(store.recent_ids(SHARD, 25), Ok(vec![block(2, 30)]));
    let third = store.claim(SHARD, LOG, 13).expect("claim");
    assert_eq!((third.attempts, third.suspects), (1, vec![]));

    let now = third.checkpoint.epoch;
    let rule = |max_ids: usize| DedupRule { horizon_ms: 5, max_ids };
    assert_eq!(store.set_dedup_rule(SHARD, epoch, 3, rule(1)), refused, "an old epoch");
    store.set_dedup_rule(SHARD, now, 0, rule(1)).expect("of a shard from before there were any");
    store.set_dedup_rule(SHARD, now, 3, rule(2)).expect("from the checkpoint on");
    assert_eq!(store.set_dedup_rule(SHARD, now, 2, rule(3)), refused, "another rule has decided");
    store.set_dedup_rule(SHARD, now, 3, rule(4)).expect("nothing lies between");
    let rules =
        |shard: ShardId| store.snapshot().expect("snapshot").dedup_rules(shard).expect("rules").0;
    assert_eq!((rules(SHARD), rules(ShardId(9))), (vec![(0, rule(1)), (3, rule(4))], vec![]));

    let row = |from: u64, to: u64, epoch: Epoch| manifest_row(from, to, epoch);
    assert_eq!(store.insert_manifest_row(epoch, &row(0, 2, epoch)), refused, "an old epoch");
    assert_eq!(store.insert_manifest_row(now, &row(1, 2, now)), refused, "a gap");
    store.insert_manifest_row(now, &row(0, 2, now)).expect("archived");
    assert_eq!(store.insert_manifest_row(now, &row(0, 2, now)), refused, "twice");
    store.insert_manifest_row(now, &row(2, 3, epoch)).expect("archived");
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(snapshot.manifest(Some(SHARD)), Ok(vec![row(0, 2, now), row(2, 3, epoch)]));
    assert_eq!(snapshot.manifest(Some(ShardId(9))), Ok(vec![]));
    assert_eq!(snapshot.checkpoints().expect("checkpoints")[0].1.archived, 3);
    drop(snapshot);
    assert_eq!(store.sizes().expect("sizes").archive, 2 * 40);
}

fn manifest_row(from: u64, to: u64, epoch: Epoch) -> ManifestRow {
    ManifestRow {
        log: LOG,
        shard: SHARD,
        range: OffsetRange { from, to },
        epoch,
        path: ManifestRow::object_path(LOG, SHARD, OffsetRange { from, to }, epoch),
        appended: (from as i64, to as i64),
        received: (from as i64 - 7, to as i64 + 1),
        windows: vec![(Hour(-1), 5), (Hour(10 - from as i32), 1)],
        rows: 6,
        raw_bytes: 50,
        bytes: 40,
        crc32c: u32::MAX,
        tier: Tier::Hot,
    }
}

fn two_times_and_what_is_noted_of_expiry(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
    let of = |store: &dyn RollupStore| {
        store.snapshot().expect("snapshot").last_archived(SHARD).expect("a time")
    };
    assert_eq!(of(store), None);
    let range = OffsetRange { from: 0, to: 2 };
    let guard = FlushGuard { shard: SHARD, log: LOG, range, epoch };
    let batch = FlushBatch { appended: Some(77), ..FlushBatch::default() };
    store.flush(guard, &batch, i64::MIN).expect("flushed");
    let behind = FlushGuard { range: OffsetRange { from: 2, to: 2 }, ..guard };
    store.flush(behind, &FlushBatch::default(), i64::MIN).expect("flushed, without a record");
    let next = store.claim(SHARD, LOG, 2).expect("claim").checkpoint;
    assert_eq!(next.appended, Some(77), "the append time up to the checkpoint is part of it");
    assert_eq!(
        store.snapshot().expect("snapshot").checkpoints().expect("checkpoints"),
        [(SHARD, next)]
    );

    let rows = [(0, 2), (2, 3), (3, 9)].map(|(from, to)| manifest_row(from, to, next.epoch));
    rows.iter().for_each(|row| store.insert_manifest_row(row.epoch, row).expect("archived"));
    assert_eq!(of(store), Some(9));
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(snapshot.receipts(SHARD, 0, 2), Ok(vec![(2, 3), (3, 4)]));
    assert_eq!(snapshot.receipts(SHARD, 3, 9), Ok(vec![(9, 10)]));
    assert_eq!(snapshot.archive_extent(SHARD), Ok((3, Some(0))));
    assert_eq!(snapshot.archive_extent(ShardId(9)), Ok((0, None)));
    assert_eq!(snapshot.manifest(Some(SHARD)).expect("rows"), rows);
    drop(snapshot);

    let (archive, weeks) = (ExpiryTarget::Archive(SHARD), ExpiryTarget::Weeks);
    let read = |of| {
        store
            .snapshot()
            .expect("snapshot")
            .expiry(of)
            .expect("read")
            .map(|found| (found.note, found.approvals))
    };
    assert_eq!(read(archive), None);
    assert_eq!(store.swap_expiry(archive, Some("a"), "b"), Ok(false), "there is none");
    assert_eq!(store.swap_expiry(archive, None, "a"), Ok(true));
    assert_eq!(store.swap_expiry(archive, None, "b"), Ok(false), "there is one");
    assert_eq!(store.swap_expiry(archive, Some("b"), "c"), Ok(false), "there is another");
    assert_eq!(store.swap_expiry(weeks, None, "w"), Ok(true));
    assert_eq!(store.approve_expiry(&[archive, ExpiryTarget::Archive(ShardId(8))]), Ok(1));
    assert_eq!(store.swap_expiry(archive, Some("a"), "b"), Ok(true));
    assert_eq!(
        (read(archive), read(weeks)),
        (Some(("b".to_owned(), 1)), Some(("w".to_owned(), 0)))
    );
    let all = store.snapshot().expect("snapshot").expiries().expect("read");
    assert_eq!(all.iter().map(|(of, _)| *of).collect::<Vec<_>>(), [weeks, archive]);
}

fn tiers_and_floors(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
    let rows = [(0, 2), (2, 3), (3, 9)].map(|(from, to)| manifest_row(from, to, epoch));
    rows.iter().for_each(|row| store.insert_manifest_row(row.epoch, row).expect("archived"));
    let first = |tier, limit| {
        let found =
            store.snapshot().expect("snapshot").manifest_first(SHARD, tier, limit).expect("rows");
        found.iter().map(|row| (row.range.from, row.tier)).collect::<Vec<_>>()
    };
    assert_eq!(first(None, 2), [(0, Tier::Hot), (2, Tier::Hot)]);
    assert_eq!(store.set_tier(&rows[0], Tier::Cold), Ok(true));
    assert_eq!(store.set_tier(&rows[0], Tier::Cold), Ok(true), "again");
    let other = ManifestRow { path: "raw/other".into(), ..rows[1].clone() };
    assert_eq!(store.set_tier(&other, Tier::Cold), Ok(false), "another object");
    assert_eq!(first(Some(Tier::Hot), 1), [(2, Tier::Hot)]);
    assert_eq!(first(Some(Tier::Cold), 9), [(0, Tier::Cold)]);
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(
        snapshot.manifest(None).expect("rows")[0],
        ManifestRow { tier: Tier::Cold, ..rows[0].clone() }
    );
    assert_eq!(snapshot.manifest_first(ShardId(9), None, 9), Ok(vec![]));
    assert_eq!(snapshot.archive_floors(), Ok(vec![]));

    assert_eq!(store.expire_object(&rows[1]), Ok(false), "not the first");
    assert_eq!(store.expire_object(&other), Ok(false), "another object");
    assert_eq!(store.expire_object(&rows[0]), Ok(true));
    assert_eq!(store.expire_object(&rows[0]), Ok(false), "only once");
    assert_eq!(store.set_tier(&rows[0], Tier::Hot), Ok(false), "gone");
    assert_eq!(
        snapshot.manifest(None).expect("rows").len(),
        3,
        "an older snapshot sees what it saw"
    );
    drop(snapshot);
    let floor = |store: &dyn RollupStore| {
        store.snapshot().expect("snapshot").archive_floors().expect("floors")
    };
    assert_eq!(floor(store), [(SHARD, ArchiveFloor { offset: 2, appended: 2, hour: Hour(11) })]);
    assert_eq!(store.expire_object(&rows[1]), Ok(true));
    assert_eq!(
        floor(store),
        [(SHARD, ArchiveFloor { offset: 3, appended: 3, hour: Hour(11) })],
        "hours never go down"
    );
    assert_eq!(first(None, 9), [(3, Tier::Hot)]);
    let again = store.claim(SHARD, LOG, 2).expect("claim").checkpoint;
    assert_eq!(again.archived, 9, "the archived offset stays");
    assert_eq!(store.expire_object(&rows[2]), Ok(true), "the last one too");
    store
        .insert_manifest_row(again.epoch, &manifest_row(9, 10, again.epoch))
        .expect("and the archive goes on");
    assert_eq!(first(None, 9), [(9, Tier::Hot)]);
}

fn quarantine(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
    let row = |index| QuarantineRow {
        shard: SHARD,
        offset: 0,
        index,
        tenant: "acme".into(),
        received: Hour(5).start(),
        reason: "panic".into(),
        discarded: false,
        record: vec![1, 2],
    };
    let accounting = vec![AccountingDelta {
        tenant: "acme".into(),
        hour: Hour(5),
        aggregated: 0,
        deduplicated: 0,
        quarantined: 2,
    }];
    let set_aside =
        FlushBatch { quarantined: vec![row(0), row(1)], accounting, ..FlushBatch::default() };
    store.flush(guard(0, 1, epoch), &set_aside, 0).expect("flush");
    assert_eq!(store.snapshot().expect("snapshot").quarantine(), Ok(vec![row(0), row(1)]));
    let release = FlushBatch { deltas: vec![delta("a", 1, 9)], ..FlushBatch::default() };
    assert_eq!(store.settle_quarantine(SHARD, 0, 0, Some(&release)), Ok(true));
    assert_eq!(store.settle_quarantine(SHARD, 0, 0, Some(&release)), Ok(false), "only once");
    assert_eq!(store.settle_quarantine(SHARD, 0, 1, None), Ok(true));
    assert_eq!(store.settle_quarantine(SHARD, 0, 1, None), Ok(false), "discarded already");
    assert_eq!(
        store.settle_quarantine(SHARD, 0, 1, Some(&release)),
        Ok(false),
        "discarded is for good"
    );
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(snapshot.quarantine(), Ok(vec![QuarantineRow { discarded: true, ..row(1) }]));
    let mut set_aside = |from, to| {
        snapshot.decisions(SHARD, OffsetRange { from, to }).expect("decisions").quarantined
    };
    assert_eq!((set_aside(0, 1), set_aside(1, 2)), (vec![(0, 1, true)], vec![]));
    assert_eq!(read(&mut *snapshot, &[])[0].2.figures.count, 1);
    let settled = crate::model::flush::revision_after_release(0, LOG, SHARD, 0, 0);
    assert_eq!(snapshot.revisions("acme", "views", 0..1), Ok(vec![settled]));
    let accounting = snapshot.accounting("acme", Hour(0), Hour(9)).expect("accounting");
    assert_eq!((accounting[0].aggregated, accounting[0].quarantined), (1, 1));
}

type Case = fn(&dyn RollupStore);
const CASES: [Case; 5] = [
    rollups_and_guards,
    claims_ids_and_archive,
    two_times_and_what_is_noted_of_expiry,
    tiers_and_floors,
    quarantine,
];

#[test]
fn the_double_conforms() {
    CASES.iter().for_each(|case| case(&*memory::MemoryStore::new()));
}

#[test]
fn sqlite_conforms() {
    for case in CASES {
        let dir = tempfile::tempdir().expect("a directory");
        case(&*sqlite::SqliteStore::open(dir.path().join("store.db")).expect("a store"));
    }
}

#[test]
fn postgres_conforms() {
    for case in CASES {
        case(&*postgres::tests::store().0);
    }
}

/// Runs only if `ROLLMILL_TEST_TIMESCALE_URL` names a TimescaleDB, with a role that may create
/// databases.
#[test]
fn timescale_conforms() {
    let Ok(url) = std::env::var("ROLLMILL_TEST_TIMESCALE_URL") else { return };
    for case in CASES {
        case(&*postgres::tests::timescale::store(&url).0);
    }
}

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

#[test]
fn sqlite_takes_over_stores_of_older_versions() {
    // Turns a new file back into what an older version had written.
    let few = "ALTER TABLE suspects DROP COLUMN sum; ";
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
    drop(snapshot);
    let note =
        serde_json::to_string(&crate::model::expiry::ExpiryState::default()).expect("a note");
    assert_eq!(store.swap_expiry(ExpiryTarget::Weeks, None, &note), Ok(true));
    assert_eq!(store.expire_object(&expected), Ok(true));
    store.set_dedup_rule(SHARD, epoch, 2, DedupRule { horizon_ms: 1, max_ids: 2 }).expect("noted");
    store.claim(SHARD, LOG, 2).expect("the mark becomes a suspect");
    store.check(&mut |damage| panic!("{damage:?}")).expect("looks");
}

#[test]
fn faults_do_what_they_say() {
    use memory::{MemoryStore, StoreFault, StoreWrite};
    for (fault, unknown, applied) in [
        (StoreFault::Before, false, false),
        (StoreFault::AppliedReplyLost, true, true),
        (StoreFault::NotAppliedReplyLost, true, false),
    ] {
        let store = MemoryStore::new();
        let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
        store.fail_next(StoreWrite::Flush, fault);
        let error = store.flush(guard(0, 1, epoch), &batch(vec![]), 0).expect_err("a fault");
        assert_eq!(error.outcome_unknown(), unknown);
        let next =
            store.snapshot().expect("snapshot").checkpoints().expect("checkpoints")[0].1.next;
        assert_eq!(next == 1, applied);
    }
}
