//! Generations in tables that generation 0 shares: nothing of one is seen, moved or deleted by the
//! other, on each kind of server.

use std::collections::BTreeMap;

use super::timescale::{TestDatabase, run};
use super::*;
use crate::clock::{Clock, SystemClock};
use crate::model::flush::{DroppedEvents, FillGuard, GenerationDeltas, SetAdoption};
use crate::model::generation::{DayRange, GenerationId, Writer, WriterPart, next_version};
use crate::model::generation_book::{GenerationBook, LeavingRange, NewGeneration};
use crate::persistence::store::postgres::session::params;
use crate::persistence::store::{AuditEntry, GenerationStore, NameRange, RollupQuery, StoreError};

pub(super) const ONE: GenerationId = GenerationId(1);
pub(super) const SHARD: ShardId = ShardId(0);

/// Turns the tables of this version back into those of the version before.
pub(super) const UNDO_MIGRATION: &str = "
    DROP VIEW rollmill_views.served CASCADE;
    DROP TABLE rollmill.boards;
    DROP TABLE rollmill.generation_book, rollmill.generation_fills, rollmill.generation_dropped, \
                                         rollmill.generation_rules, rollmill.generation_audit, \
                                         rollmill.retention_floor;
    ALTER TABLE rollmill.metrics DROP COLUMN generation, ADD UNIQUE (tenant_no, name);
    ALTER TABLE rollmill.series DROP COLUMN part, ADD UNIQUE (id);
    CREATE INDEX series_by_shard ON rollmill.series (shard);
    ALTER TABLE rollmill.shards DROP COLUMN set_version, DROP COLUMN set_next;
    ALTER TABLE rollmill.quarantine DROP COLUMN released;
    DELETE FROM rollmill.migrations WHERE version >= 6;";

pub(super) fn days(from: i32, to: i32) -> DayRange {
    DayRange::new(from, Some(to)).expect("days")
}

/// The set with generation 1.
pub(super) fn first_set() -> u64 {
    next_version(0, 1)
}

/// The set behind it, once generation 1 is cancelled.
pub(super) fn second_set() -> u64 {
    next_version(first_set(), 2)
}

/// Stores another book.
pub(super) fn change(store: &dyn RollupStore, change: impl FnOnce(&mut GenerationBook)) {
    let mut book = GenerationBook::clone(
        &store.snapshot().expect("a snapshot").generation_book().expect("a book"),
    );
    let before = book.version();
    change(&mut book);
    assert_eq!(store.swap_generations(before, &book, None), Ok(true));
}

/// Generation 1 of the metric on these days is begun, and shard 0 writes it from offset 2 on:
/// behind the first flush, with the first deltas, and one that adopts.
pub(super) fn begun(store: &dyn RollupStore, of: DayRange, first: Vec<Delta>) -> Epoch {
    let epoch = store.claim(SHARD, LOG, 1).expect("a claim").checkpoint.epoch;
    store.flush(guard(0, 0, epoch), &batch(first), 0).expect("a flush");
    let new = NewGeneration {
        tenant: "acme".to_owned(),
        metrics: vec!["views".to_owned()],
        days: of,
        rules: "[]".into(),
        started: (1, "key".to_owned()),
    };
    change(store, |book| assert_eq!(book.start(new, 3, 1), Ok(ONE)));
    let adopts = Some(SetAdoption { version: first_set(), begun: vec![ONE] });
    let adopting = FlushBatch { adopts, ..FlushBatch::default() };
    store.flush(guard(0, 1, epoch), &adopting, 0).expect("it adopts");
    epoch
}

pub(super) fn written(deltas: Vec<Delta>) -> GenerationDeltas {
    let dropped =
        DroppedEvents { tenant: "acme".into(), metric: "views".into(), day: 3, events: 2 };
    GenerationDeltas {
        generation: ONE,
        deltas,
        dropped: vec![dropped],
        ..GenerationDeltas::default()
    }
}

/// Flushes these deltas into generation 1 alone.
pub(super) fn flush_live(store: &dyn RollupStore, from: u64, epoch: Epoch, deltas: Vec<Delta>) {
    let generations = vec![written(deltas)];
    let batch = FlushBatch { set: first_set(), generations, ..FlushBatch::default() };
    store.flush(guard(0, from, epoch), &batch, 0).expect("a flush");
}

pub(super) fn fill_guard(from: u64) -> FillGuard {
    let range = OffsetRange { from, to: from + 1 };
    FillGuard { generation: ONE, shard: SHARD, log: LOG, range, nonce: 7 }
}

/// Count of events by hour of generation 1, as queries see them.
pub(super) fn counts(store: &dyn RollupStore) -> BTreeMap<i32, u64> {
    let query = RollupQuery {
        tenant: "acme",
        metric: "views",
        generation: ONE,
        matchers: &[],
        from: Hour(-10_000),
        to: Hour(1_000_000),
        distinct: true,
        quantiles: true,
        max_series: 10_000,
        budget: None,
    };
    let mut counts = BTreeMap::new();
    let mut visit = |_: &Arc<SeriesInfo>, hour: Hour, rollup: Rollup| {
        *counts.entry(hour.0).or_default() += rollup.figures.count;
    };
    store.snapshot().expect("a snapshot").rollups(&query, &mut visit).expect("rollups");
    counts
}

/// Every row of generation 1 with its writer, in the order in which they are visited.
pub(super) fn rows(store: &dyn RollupStore) -> Vec<(Writer, SeriesId, Hour, Vec<u8>)> {
    let (mut rows, hours) = (Vec::new(), (Hour(i32::MIN), Hour(i32::MAX)));
    let mut visit = |writer, info: &Arc<SeriesInfo>, hour, _: Rollup, bytes: &[u8]| {
        rows.push((writer, info.id, hour, bytes.to_vec()));
        Ok(())
    };
    let mut snapshot = store.snapshot().expect("a snapshot");
    snapshot.generation_rows(ONE, ("acme", "views"), hours, &mut visit).expect("rows");
    rows
}

pub(super) fn damage(store: &dyn RollupStore) -> Vec<String> {
    let mut found = Vec::new();
    store.check(&mut |damage| found.push(format!("{damage:?}"))).expect("a check");
    found
}

/// Everything that is read of generation 0, besides the checkpoint.
fn ingest(store: &dyn RollupStore, url: &str) -> Vec<String> {
    let mut snapshot = store.snapshot().expect("a snapshot");
    let mut all = Vec::new();
    let mut visit = |info: &Arc<SeriesInfo>, hour: Hour, _: Rollup, bytes: &[u8]| {
        all.push(format!("{} {hour:?} {bytes:?}", info.id))
    };
    snapshot.rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut visit).expect("bytes");
    all.push(format!("{:?}", snapshot.metrics("acme", &NameRange::ALL)));
    all.push(format!("{:?}", snapshot.label_values("acme", "page", None, &[], &NameRange::ALL)));
    all.push(format!("{:?}", snapshot.admissions(SHARD)));
    let decisions = snapshot.decisions(SHARD, OffsetRange { from: 0, to: 99 });
    let decisions = decisions.expect("decisions");
    // Those of generations are theirs.
    all.push(format!("{:?} {:?}", decisions.admitted, decisions.quarantined));
    all.push(format!("{:?}", snapshot.revisions("acme", "views", GenerationId::INGEST, -9..99)));
    all.push(format!("{:?}", store.admitted_series(SHARD)));
    all.push(format!("{:?}", store.metric_names()));
    all.extend(run(url, "SELECT count(*) || ' ' || sum(count) FROM rollmill_views.hourly"));
    all
}

#[test]
fn nothing_of_a_generation_is_seen_in_generation_0() {
    for own in TestDatabase::on_each() {
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        let first = vec![delta("a", 1, 1), delta("b", 30, 5), delta("a", 200, 2)];
        let epoch = begun(&*store, days(0, 20), first);
        let before = ingest(&*store, &own.url);
        flush_live(&*store, 2, epoch, vec![delta("a", 1, 4), delta("new", 40, 4)]);
        let filled = written(vec![delta("a", 1, 4), delta("b", 2, 1), delta("b", 460, 1)]);
        store.fill(&fill_guard(0), &filled).expect("filled");
        assert_eq!(ingest(&*store, &own.url), before);
        assert_eq!(damage(&*store), Vec::<String>::new());
        assert_eq!(counts(&*store), BTreeMap::from([(1, 2), (2, 1), (40, 1), (460, 1)]));
        let of_node = PostgresStore::open(&options(&own.url)).expect("another node");
        assert_eq!(of_node.claim(SHARD, LOG, 2).expect("a claim").set.version, first_set());
        let mut snapshot = of_node.snapshot().expect("a snapshot");
        let values = |snapshot: &mut dyn crate::persistence::store::StoreSnapshot, metric| {
            let others = [("views", ONE)];
            snapshot.label_values("acme", "page", metric, &others, &NameRange::ALL)
        };
        let expected = Ok(["a", "b", "new"].map(str::to_owned).to_vec());
        assert_eq!(values(&mut *snapshot, None), expected);
        assert_eq!(values(&mut *snapshot, Some("nothing")), expected);
        let live = Writer { shard: SHARD, part: WriterPart::Live };
        let dropped = snapshot.dropped_events(ONE).expect("read");
        assert_eq!((dropped.len(), dropped[0].0), (2, live));
    }
}

#[test]
fn a_store_from_before_generations_is_migrated_as_it_is() {
    for own in TestDatabase::on_each() {
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        let epoch = store.claim(SHARD, LOG, 1).expect("a claim").checkpoint.epoch;
        let first = vec![delta("a", 1, 1), delta("b", 200, 5)];
        store.flush(guard(0, 0, epoch), &batch(first.clone()), 0).expect("a flush");
        let before = ingest(&*store, &own.url);
        drop(store);
        run(&own.url, UNDO_MIGRATION);
        let store = PostgresStore::open(&options(&own.url)).expect("migrated");
        assert_eq!(ingest(&*store, &own.url), before);
        store.flush(guard(0, 1, epoch), &batch(first), 0).expect("of the same owner");
        assert_eq!(state(&*store, 0), (2, 4));
        assert_eq!(damage(&*store), Vec::<String>::new());
    }
}

#[test]
fn a_release_that_knows_no_sets_cannot_flush() {
    let (store, url) = store();
    let epoch = begun(&*store, days(0, 20), vec![delta("a", 1, 1)]);
    let mut lease = store.writers.begin("BEGIN").expect("a transaction");
    // The compare-and-set of a release before sets.
    let old = "UPDATE shards SET next = $1, attempts = 0 WHERE shard = 0 AND next = $2 AND epoch = \
               $3 AND nonce = $4";
    let of = params![3_i64, 2_i64, epoch.counter as i64, epoch.nonce as i64];
    let refused = lease.session().expect("a session").execute(old, of).map_err(StoreError::from);
    assert!(
        matches!(&refused, Err(StoreError::Failed(why)) if why.contains("set_is_known")),
        "{refused:?}"
    );
    drop(lease);
    assert_eq!(state(&*store, 0), (2, 1));
    let stale = FlushBatch { set: 0, ..FlushBatch::default() };
    assert_eq!(
        store.flush(guard(0, 2, epoch), &stale, 0),
        Err(StoreError::Refused { shard: SHARD })
    );
    flush_live(&*store, 2, epoch, Vec::new());
    assert_eq!(run(&url, "SELECT next, set_next FROM rollmill.shards"), ["3"]);
}

#[test]
fn weeks_that_age_takes_go_for_all_generations_and_are_not_filled_in_again() {
    for own in TestDatabase::on_each() {
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        let this_week = Hour::of(SystemClock.now()).0.div_euclid(168) * 168;
        let (old, young) = (this_week - 10 * 168, this_week - 168);
        let both = || vec![delta("a", old, 1), delta("a", young, 1)];
        let always = DayRange::new(Hour(old).day(), None).expect("days");
        let epoch = begun(&*store, always, both());
        flush_live(&*store, 2, epoch, both());
        store.fill(&fill_guard(0), &written(both())).expect("filled");
        assert_eq!(counts(&*store), BTreeMap::from([(old, 2), (young, 2)]));
        let revision = |hour: i32| {
            let (day, mut snapshot) = (Hour(hour).day(), store.snapshot().expect("a snapshot"));
            snapshot.revisions("acme", "views", ONE, day..day + 1).expect("revisions")[0]
        };
        let before = (revision(old), revision(young));
        assert!(before.0 == fill_guard(0).revision() && before.0 == before.1);
        let floor = || store.snapshot().expect("a snapshot").retention_floor();
        assert_eq!(floor(), Ok(None));
        assert_eq!(store.drop_before(Hour(young)), Ok(2), "figures and sketches of a week");
        assert_eq!(floor(), Ok(Some(Hour(young))));
        assert_eq!(counts(&*store), BTreeMap::from([(young, 2)]));
        assert_ne!(revision(old), before.0, "a cache sees that rows are gone");
        assert_eq!(revision(young), before.1);
        store.fill(&fill_guard(1), &written(both())).expect("filled");
        assert_eq!(counts(&*store), BTreeMap::from([(young, 3)]));
        assert_eq!(damage(&*store), Vec::<String>::new());
        let metric = store.snapshot().expect("a snapshot").generation_metric("acme", "views", ONE);
        let metric = metric.expect("read").expect("it has rows");
        assert_eq!(
            (metric.series, metric.first, metric.last),
            (1, Some(Hour(young)), metric.first)
        );
    }
}

pub(super) fn leaving(days: DayRange, set: u64) -> LeavingRange {
    let (tenant, metric) = ("acme".to_owned(), "views".to_owned());
    LeavingRange { generation: ONE, tenant, metric, days, set }
}

/// Deletes until nothing is left. Returns what each transaction deleted.
pub(super) fn delete_all(store: &dyn RollupStore, of: &LeavingRange, max: usize) -> Vec<u64> {
    let mut deleted = Vec::new();
    loop {
        match store.delete_generation_rows(of, max).expect("deleted") {
            0 => return deleted,
            rows => deleted.push(rows),
        }
    }
}

#[test]
fn rows_that_leave_are_deleted_in_parts_and_others_stay() {
    for own in TestDatabase::on_each() {
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        let pages = |hours: &[i32]| {
            let pages = hours.iter().flat_map(|hour| (0..5).map(move |page| (page, *hour)));
            pages.map(|(page, hour)| delta(&page.to_string(), hour, 1)).collect::<Vec<_>>()
        };
        // Days 0, 3, 12 and 25, of four weeks.
        let hours = [1, 72, 290, 610];
        let epoch = begun(&*store, days(0, 40), pages(&hours));
        flush_live(&*store, 2, epoch, pages(&hours));
        store.fill(&fill_guard(0), &written(pages(&hours))).expect("filled");
        let before = ingest(&*store, &own.url);
        // Some days leave, the rest is still written: the catalogue has to stay.
        assert_eq!(delete_all(&*store, &leaving(days(3, 13), first_set()), 7), [7, 7, 7, 3]);
        assert_eq!(counts(&*store), BTreeMap::from([(1, 10), (610, 10)]));
        assert_eq!(damage(&*store), Vec::<String>::new());
        let series = |part| {
            store.generation_series(ONE, Writer { shard: SHARD, part }).expect("series").len()
        };
        assert_eq!((series(WriterPart::Live), series(WriterPart::Fill)), (5, 5));
        flush_live(&*store, 3, epoch, pages(&[300]));
        let second = PostgresStore::open(&options(&own.url)).expect("a node that caches nothing");
        change(&*second, |book| book.cancel(ONE, None, 2).expect("cancelled"));
        assert_eq!(
            store.fill(&fill_guard(1), &written(pages(&[5]))),
            Err(StoreError::Refused { shard: SHARD }),
            "nothing is filled in that leaves"
        );
        let all = leaving(DayRange::ALWAYS, second_set());
        assert_eq!(delete_all(&*store, &all, 1_000), [29], "of all weeks, and counts");
        assert_eq!(series(WriterPart::Live), 5, "the shard has not adopted the set without it");
        let adopts = Some(SetAdoption { version: second_set(), begun: Vec::new() });
        let batch = FlushBatch { set: first_set(), adopts, ..FlushBatch::default() };
        store.flush(guard(0, 4, epoch), &batch, 0).expect("it adopts");
        assert_eq!(delete_all(&*store, &all, 3), [3, 3, 3, 2], "series, and a cursor");
        let counted = "SELECT (SELECT count(*) FROM rollmill.series WHERE part > 0) + (SELECT \
                       count(*) FROM rollmill.metrics WHERE generation > 0) + (SELECT count(*) \
                       FROM rollmill.generation_fills) + (SELECT count(*) FROM \
                       rollmill.generation_dropped) + (SELECT count(*) FROM \
                       rollmill.generation_rules) + (SELECT count(*) FROM rollmill.revisions \
                       WHERE metric_no NOT IN (SELECT no FROM rollmill.metrics))";
        assert_eq!(run(&own.url, counted), ["0"]);
        assert_eq!(damage(&*store), Vec::<String>::new());
        assert_eq!(ingest(&*store, &own.url), before);
    }
}

#[test]
fn deleting_waits_for_a_fill_that_began_before() {
    let (store, url) = store();
    begun(&*store, days(0, 40), vec![delta("a", 1, 1)]);
    // A fill that has moved its cursor and is not committed yet.
    let mut fill = store.writers.begin("BEGIN").expect("a transaction");
    let moved = "UPDATE generation_fills SET cursor = 1; INSERT INTO metrics (tenant_no, name, \
                 generation, series_count, first_hour, last_hour) SELECT tenant_no, name, 1, 1, \
                 1, 1 FROM metrics;
        INSERT INTO series (metric_no, shard, part, admitted_offset, id, key) SELECT (SELECT no \
                 FROM metrics WHERE generation = 1), 0, 2, 0, id, key FROM series;
        INSERT INTO rollups (metric_no, hour, series_no, count, value_count, sum) SELECT \
                 metric_no, 1, no, 1, 0, 0 FROM series WHERE part = 2";
    let moved = fill.session().expect("a session").batch_execute(moved.to_owned());
    moved.expect("it fills");
    change(&*store, |book| book.cancel(ONE, None, 2).expect("cancelled"));
    let book = store.snapshot().expect("a snapshot").generation_book().expect("a book");
    let all = book.leaving()[0].clone();
    let deleting = {
        let (store, all) = (Arc::clone(&store), all.clone());
        std::thread::spawn(move || store.delete_generation_rows(&all, 100))
    };
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND \
                   wait_event_type = 'Lock'";
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while run(&url, waiting) != ["1"] {
        assert!(std::time::Instant::now() < deadline, "it does not wait");
        std::thread::sleep(Duration::from_millis(20));
    }
    fill.session().expect("a session").commit().expect("committed");
    drop(fill);
    assert_eq!(deleting.join().expect("no panic"), Ok(1), "what the fill has written");
    assert_eq!(delete_all(&*store, &all, 100), Vec::<u64>::new());
}

#[test]
fn the_book_is_parsed_once_and_swapped_by_one_of_two() {
    let (store, url) = store();
    let other = PostgresStore::open(&options(&url)).expect("another node");
    let read = |store: &PostgresStore| {
        store.snapshot().expect("a snapshot").generation_book().expect("a book")
    };
    assert_eq!(*read(&store), GenerationBook::default());
    begun(&*store, days(0, 20), Vec::new());
    let book = read(&other);
    assert!(Arc::ptr_eq(&book, &read(&other)), "parsed once");
    let mut old = store.snapshot().expect("a snapshot");
    let mut next = GenerationBook::clone(&book);
    next.apply(ONE, 5).expect("applied");
    let entry = AuditEntry {
        generation: ONE,
        tenant: "acme".to_owned(),
        action: "apply".to_owned(),
        at: 5,
        by: "key".to_owned(),
        note: "a\0b".to_owned(),
    };
    assert_eq!(other.swap_generations(book.version(), &next, Some(&entry)), Ok(true));
    assert_eq!(store.swap_generations(book.version(), &next, Some(&entry)), Ok(false));
    assert_eq!((read(&store), read(&other)), (Arc::new(next.clone()), Arc::new(next)));
    assert_eq!(old.generation_book().expect("a book"), book, "a snapshot stays what it is");
    let audit = store.snapshot().expect("a snapshot").audit_entries("acme", 9).expect("read");
    assert_eq!(audit, [AuditEntry { note: "a\u{fffd}b".to_owned(), ..entry }]);
}

/// Deltas of a writer in one round, with series, labels and days that all writers share.
fn contended(round: i32, backwards: bool) -> Vec<Delta> {
    let one = |n: i32| delta(&format!("{}-{n}", round / 2), (n + round) * 24 % 400, 1);
    let mut deltas: Vec<Delta> = (0..20).map(one).collect();
    if backwards {
        deltas.reverse();
    }
    deltas
}

#[test]
fn writers_of_a_generation_do_not_wait_for_each_other() {
    let (store, _) = store();
    let rounds = 12_u64;
    let epochs = [0, 1].map(|shard| {
        let epoch = store.claim(ShardId(shard), LOG, 1).expect("a claim").checkpoint.epoch;
        for at in 0..rounds {
            store.flush(guard(shard, at, epoch), &FlushBatch::default(), 0).expect("a flush");
        }
        epoch
    });
    let new = NewGeneration {
        tenant: "acme".to_owned(),
        metrics: vec!["views".to_owned()],
        days: DayRange::ALWAYS,
        rules: "[]".into(),
        started: (1, "key".to_owned()),
    };
    change(&*store, |book| assert_eq!(book.start(new, 3, 1), Ok(ONE)));
    for (shard, epoch) in (0..).zip(epochs) {
        let adopts = Some(SetAdoption { version: first_set(), begun: vec![ONE] });
        let adopting = FlushBatch { adopts, ..FlushBatch::default() };
        store.flush(guard(shard, rounds, epoch), &adopting, 0).expect("it adopts");
    }
    std::thread::scope(|scope| {
        for (shard, epoch) in (0..2_u32).zip(epochs) {
            let store = &store;
            scope.spawn(move || {
                for round in 0..rounds as i32 {
                    let deltas = contended(round, shard == 0);
                    let generations = vec![written(deltas)];
                    // In generation 0 a series belongs to one shard.
                    let own = delta(&format!("{shard}:{round}"), round * 24, 1);
                    let batch = FlushBatch { set: first_set(), generations, ..batch(vec![own]) };
                    let at = rounds + 1 + round as u64;
                    store.flush(guard(shard, at, epoch), &batch, 0).expect("no deadlock");
                }
            });
            scope.spawn(move || {
                for round in 0..rounds {
                    let guard = FillGuard { shard: ShardId(shard), ..fill_guard(round) };
                    let deltas = contended(round as i32, shard == 1);
                    store.fill(&guard, &written(deltas)).expect("no deadlock");
                }
            });
        }
    });
    assert_eq!(counts(&*store).values().sum::<u64>(), 4 * rounds * 20);
    assert_eq!(state(&*store, 0), (2 * rounds + 1, 2 * rounds));
    assert_eq!(damage(&*store), Vec::<String>::new());
}
