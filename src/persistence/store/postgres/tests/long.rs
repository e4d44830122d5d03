//! A store of four years costs no more than one of a week, measured in blocks that the server
//! touches, on each kind of server.

use super::generations::leaving;
use super::timescale::{TestDatabase, run};
use super::*;
use crate::model::generation::{DayRange, GenerationId};
use crate::model::matcher::Matcher;
use crate::persistence::store::postgres::session::Param;
use crate::persistence::store::postgres::session::params;
use crate::persistence::store::postgres::{merge, rollups};
use crate::persistence::store::{GenerationStore, RollupQuery};

const WEEKS: i32 = 208;
/// Number of the newest week.
const NOW: i32 = 2_900;
const SERIES: i32 = 20;
/// How often work is repeated to measure what it touches.
const REPEATED: u32 = 12;

/// The deltas of a week: each series in six hours of its first day.
fn week(no: i32) -> impl Iterator<Item = Delta> {
    (0..6).flat_map(move |hour| {
        (0..SERIES)
            .map(move |page| delta(&page.to_string(), no * 168 + hour, i128::from(hour + page)))
    })
}

/// Flushes once more, from the current checkpoint.
fn flush_again(store: &PostgresStore, deltas: Vec<Delta>) {
    let at = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint;
    store.flush(guard(0, at.next, at.epoch), &batch(deltas), 0).expect("a flush");
}

/// Fills a store with this many weeks.
fn store_of(own: &TestDatabase, weeks: i32) {
    let store = PostgresStore::open(&options(&own.url)).expect("a store");
    for part in (NOW - weeks + 1..=NOW).collect::<Vec<_>>().chunks(52) {
        flush_again(&store, part.iter().flat_map(|no| week(*no)).collect());
    }
}

/// Reads a year of rollups with their sketches. Returns the number of rows.
fn year(store: &PostgresStore, matchers: &[Matcher]) -> usize {
    let (from, to) = (Hour((NOW - 52) * 168), Hour((NOW + 1) * 168));
    let query = RollupQuery {
        tenant: "acme",
        metric: "views",
        matchers,
        from,
        to,
        distinct: true,
        quantiles: true,
        max_series: 1_000,
        budget: None,
        generation: GenerationId::INGEST,
    };
    let mut rows = 0;
    store
        .snapshot()
        .expect("a snapshot")
        .rollups(&query, &mut |_, _, _| rows += 1)
        .expect("rollups");
    rows
}

fn verify(store: &PostgresStore) -> usize {
    let mut rows = 0;
    let mut snapshot = store.snapshot().expect("a snapshot");
    snapshot
        .rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut |_, _, _, _| rows += 1)
        .expect("bytes");
    rows
}

/// Blocks that one more `work` touches, without those of connecting.
fn cost(own: &TestDatabase, work: &dyn Fn(&PostgresStore)) -> i64 {
    cost_after(own, &|| {}, work)
}

/// The same of work that writes: each measurement begins without dead rows.
fn cost_of_writes(own: &TestDatabase, work: &dyn Fn(&PostgresStore)) -> i64 {
    cost_after(own, &|| own.vacuum(), work)
}

fn cost_after(own: &TestDatabase, prepare: &dyn Fn(), work: &dyn Fn(&PostgresStore)) -> i64 {
    let times = |n: u32| {
        prepare();
        let before = own.blocks();
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        (0..n).for_each(|_| work(&store));
        drop(store);
        own.blocks() - before
    };
    // The server's background work is sometimes counted too. It only ever adds, to either number,
    // and is small compared to so many repetitions.
    let least = |n: u32| (0..4).map(|_| times(n)).min().unwrap_or(0);
    (least(1 + REPEATED) - least(1)) / i64::from(REPEATED)
}

#[test]
fn four_years_cost_no_more_than_a_week() {
    let (short, long) = (TestDatabase::on_each_undisturbed(), TestDatabase::on_each_undisturbed());
    let mut figures = Vec::new();
    for (short, long) in short.iter().zip(&long) {
        store_of(short, 1);
        store_of(long, WEEKS);
        let per_row = |own: &TestDatabase, work: &dyn Fn(&PostgresStore) -> usize| {
            let store = PostgresStore::open(&options(&own.url)).expect("a store");
            let rows = work(&store) as i64;
            drop(store);
            assert!(rows > 0);
            (1_000 * cost(own, &|store| _ = work(store)) / rows, rows)
        };
        let queries =
            (per_row(short, &|store| year(store, &[])), per_row(long, &|store| year(store, &[])));
        let verifies = (per_row(short, &verify), per_row(long, &verify));
        assert_eq!((queries.1.1, verifies.1.1), (53 * 120, i64::from(WEEKS) * 120));
        let few = [Matcher::Equal("page".to_owned(), "7".to_owned())];
        assert_eq!(year(&PostgresStore::open(&options(&long.url)).expect("a store"), &few), 53 * 6);
        let seeks = cost(long, &|store| _ = year(store, &few));
        // Last, because rewriting rows leaves dead ones behind.
        let flush = |own: &TestDatabase| {
            cost_of_writes(own, &|store| flush_again(store, week(NOW).collect()))
        };
        let flushes = (flush(short), flush(long));
        println!(
            "blocks of a flush {flushes:?}, of 1,000 rows of a year {queries:?}, of verify \
             {verifies:?}, of seeks {seeks}"
        );
        assert!(flushes.1 <= flushes.0 * 3 / 2, "a flush: {flushes:?} blocks");
        assert!(queries.1.0 <= queries.0.0 * 3 / 2, "a query: {queries:?} blocks for 1,000 rows");
        assert!(verifies.1.0 <= verifies.0.0 * 3 / 2, "verify: {verifies:?} blocks for 1,000 rows");
        let all = |(per_1000, rows): (i64, i64)| per_1000 * rows / 1_000;
        figures.push([flushes.1, all(queries.1), all(verifies.1), seeks]);
    }
    if let [plain, timescale] = figures[..] {
        // The extension reads its own catalogue for each chunk of a plan, which weighs much
        // compared to the few rows per chunk here.
        let chunks = [2, 2 * 53, 2 * i64::from(WEEKS), 2 * 53];
        let within = (0..4).all(|at| timescale[at] <= plain[at] * 3 / 2 + chunks[at] * 20);
        assert!(within, "TimescaleDB {timescale:?}, PostgreSQL {plain:?}");
    }
}

/// Copies everything into generation 1.
fn copy_into_generation(own: &TestDatabase) {
    let sql = "SET search_path = rollmill;
        INSERT INTO metrics (tenant_no, name, generation, series_count, first_hour, last_hour)
        SELECT tenant_no, name, 1, series_count, first_hour, last_hour FROM metrics;
        INSERT INTO series (metric_no, shard, part, admitted_offset, id, key)
        SELECT (SELECT no FROM metrics WHERE generation = 1), 0, 1, 0, id, key FROM series;
        CREATE TEMPORARY TABLE pairs AS SELECT s.no AS old, g.metric_no, g.no FROM series s JOIN \
               series g ON g.id = s.id WHERE s.part = 0 AND g.part = 1;
        INSERT INTO rollups SELECT p.metric_no, hour, p.no, count, value_count, sum, min, max FROM \
               rollups JOIN pairs p ON p.old = series_no;
        INSERT INTO sketches SELECT p.metric_no, hour, p.no, distinct_users, quantiles FROM \
               sketches JOIN pairs p ON p.old = series_no";
    run(&own.url, sql);
}

#[test]
fn deleting_rows_of_a_week_costs_the_same_whatever_stays() {
    let (short, long) = (TestDatabase::on_each_undisturbed(), TestDatabase::on_each_undisturbed());
    let day = Hour(NOW * 168).day();
    let of = leaving(DayRange::new(day, Some(day + 7)).expect("a week"), 1);
    for (short, long) in short.iter().zip(&long) {
        let costs = [(short, 2), (long, 60)].map(|(own, weeks)| {
            store_of(own, weeks);
            copy_into_generation(own);
            let delete = |store: &PostgresStore| {
                assert_eq!(store.delete_generation_rows(&of, 1), Ok(1));
            };
            cost_of_writes(own, &delete)
        });
        println!("blocks of deleting a row {costs:?}");
        assert!(costs[1] <= costs[0] * 3 / 2, "{costs:?} blocks");
    }
}

/// The number of partitions and chunks in a statement's plan.
fn looked_at(store: &PostgresStore, sql: &str, params: Vec<Param>) -> usize {
    let mut lease = store.writers.begin("BEGIN").expect("a transaction");
    let plan = lease
        .session()
        .expect("a session")
        .query(&format!("EXPLAIN (COSTS OFF) {sql}"), params)
        .expect("a plan");
    let lines = plan.iter().map(|row| row.get::<_, String>(0));
    let tables = ["on rollups_", "on sketches_", "on _hyper_"];
    lines
        .filter(|line| {
            line.contains("Scan")
                && tables.iter().any(|table| line.contains(table))
                && !line.contains("Bitmap Index")
        })
        .count()
}

#[test]
fn statements_look_at_the_weeks_that_they_name() {
    for own in TestDatabase::on_each() {
        store_of(&own, 60);
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        let hour = NOW * 168;
        assert_eq!(looked_at(&store, merge::READ_SKETCHES, params![hour, hour + 5]), 1);
        assert_eq!(looked_at(&store, merge::READ_PACKED_SKETCHES, params![hour, hour + 5]), 1);
        for table in ["rollups", "sketches"] {
            let of =
                |way, params| looked_at(&store, &rollups::statement(table, "r.hour", way), params);
            assert_eq!(of(rollups::AccessPath::Scan, params![1, hour, hour + 168]), 1);
            assert_eq!(of(rollups::AccessPath::Scan, params![1, hour - 52 * 168, hour + 168]), 53);
            assert_eq!(of(rollups::AccessPath::Seek, params![1, hour, hour + 168, vec![7_i64]]), 1);
            assert_eq!(
                of(rollups::AccessPath::Filter, params![1, hour, hour + 168, vec![7_i64]]),
                1
            );
        }
    }
}
