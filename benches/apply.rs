//! Apply of a replay on a generation of few rows and on one of many: it changes the pointer alone,
//! so that both take the same time.
//!
//! `ROLLMILL_BENCH_ROWS` says how many rows are many, up to 10 million.

// The helper that starts PostgreSQL is one of several test binaries.
#![allow(unreachable_pub, clippy::let_underscore_must_use)]

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use rollmill::clock::{Stopwatch, SystemClock};
use rollmill::model::budget::QueryBudget;
use rollmill::model::decimal::Decimal;
use rollmill::model::flush::{
    Delta, FillGuard, FlushBatch, FlushGuard, GenerationDeltas, SeriesInfo, SetAdoption,
};
use rollmill::model::generation::GenerationId;
use rollmill::model::offset::{LogId, OffsetRange, ShardId};
use rollmill::model::rollup::{Rollup, RollupFigures};
use rollmill::model::series::{Series, SeriesId};
use rollmill::model::window::Hour;
use rollmill::operate::replays::{ReplayLimits, StoreReplays};
use rollmill::operate::service::{NoFills, ReplayActor, ReplayService};
use rollmill::persistence::store::RollupStore;
use rollmill::persistence::store::postgres::{PostgresOptions, PostgresStore};
use rollmill::persistence::store::sqlite::SqliteStore;

#[path = "../tests/support/postgres.rs"]
mod server;

const LOG: LogId = LogId([1; 16]);
const SHARD: ShardId = ShardId(0);
const SERIES: u64 = 10_000;
/// Rows are filled in an hour of each of six weeks, and copied into the hours that follow, because
/// filling millions takes longer than all that is measured.
const FILLED_HOURS: [i32; 6] = [0, 168, 336, 504, 672, 840];
const FEW: u64 = SERIES * FILLED_HOURS.len() as u64;
/// What an apply may take, with the answer that shows the replay.
const LIMIT: Duration = Duration::from_millis(100);

fn many() -> u64 {
    let rows = std::env::var("ROLLMILL_BENCH_ROWS").ok();
    rows.map_or(10 * FEW, |rows| rows.parse().expect("a number"))
}

fn series() -> Vec<Arc<SeriesInfo>> {
    let one = |n| {
        let series = Series::new("bench", "page_view", [("page".to_owned(), format!("/{n}"))]);
        Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series })
    };
    let mut all: Vec<_> = (0..SERIES).map(one).collect();
    all.sort_unstable_by_key(|info| info.id);
    all
}

/// The rows of an hour, without sketches, which take longest to write and are no rows of their own.
fn rows(series: &[Arc<SeriesInfo>], hour: i32) -> Vec<Delta> {
    let mut figures = RollupFigures::default();
    figures.add(Some(Decimal::ONE));
    let rollup = Rollup { figures, ..Rollup::default() };
    let row = |info: &Arc<SeriesInfo>| Delta {
        series: info.clone(),
        hour: Hour(hour),
        rollup: rollup.clone(),
    };
    series.iter().map(row).collect()
}

fn bench_actor() -> ReplayActor {
    ReplayActor { tenant: "bench".into(), by: "bench".to_owned() }
}

/// Copies each of a generation's rows into so many hours behind it.
type CopyRows = Box<dyn Fn(u64)>;

fn copy_sql(schema: &str, hours: u64) -> String {
    format!(
        "INSERT INTO {schema}rollups WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
         WHERE i < {hours}) SELECT r.metric_no, r.hour + n.i, r.series_no, r.count, r.value_count, \
         r.sum, r.min, r.max FROM n CROSS JOIN {schema}rollups r WHERE r.metric_no IN (SELECT no \
         FROM {schema}metrics WHERE generation = 1)"
    )
}

/// A replay on this store that is ready.
fn ready(store: &Arc<dyn RollupStore>) -> (Arc<StoreReplays>, u64) {
    let limits = ReplayLimits {
        shard_count: 1,
        max_maintained: 3,
        keep_ms: Duration::from_hours(1).as_millis() as i64,
    };
    let replays =
        StoreReplays::new(store.clone(), None, Arc::new(SystemClock), limits, Arc::new(NoFills));
    let (all, cut) = (series(), FILLED_HOURS.len() as u64);
    let claim = store.claim(SHARD, LOG, 1).expect("claimed");
    let (epoch, set) = (claim.checkpoint.epoch, claim.set.version);
    let flush = |from, to, batch: FlushBatch| {
        let range = OffsetRange { from, to };
        let guard = FlushGuard { shard: SHARD, log: LOG, range, epoch };
        store.flush(guard, &FlushBatch { set, ..batch }, 0).expect("flushed");
    };
    let admitted: Vec<_> = all.iter().map(|info| (info.clone(), 0)).collect();
    // PostgreSQL has a partition for each week in which something was flushed.
    let deltas = [rows(&all, 0), rows(&all, 1_008)].concat();
    let first = FlushBatch { deltas, admitted: admitted.clone(), ..FlushBatch::default() };
    flush(0, cut, first);
    let request = serde_json::from_str(r#"{"metrics": ["page_view"], "from": "1970-01-01"}"#);
    let id = replays
        .start(&bench_actor(), &request.expect("a request"), &QueryBudget::default())
        .expect("started")
        .id;
    let generation = GenerationId(id);
    let book = store.snapshot().and_then(|mut s| s.generation_book()).expect("a book");
    let adopts = Some(SetAdoption { version: book.newest_set().version, begun: vec![generation] });
    flush(cut, cut, FlushBatch { adopts, ..FlushBatch::default() });
    for (from, hour) in (0..).zip(FILLED_HOURS) {
        let range = OffsetRange { from, to: from + 1 };
        let guard = FillGuard { generation, shard: SHARD, log: LOG, range, nonce: 1 };
        let admitted = if from == 0 { admitted.clone() } else { Vec::new() };
        let deltas = rows(&all, hour);
        let batch = GenerationDeltas { generation, deltas, admitted, ..Default::default() };
        store.fill(&guard, &batch).expect("filled");
    }
    (replays, id)
}

/// Measures applies alone. Each is undone, and the rows that it changed are counted meanwhile.
fn bench(c: &mut Criterion, name: &str, open: &dyn Fn() -> (Arc<dyn RollupStore>, CopyRows)) {
    let mut group = c.benchmark_group(format!("apply, {name}"));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    for wanted in [FEW, many()] {
        let (store, copy_rows) = open();
        let (replays, id) = ready(&store);
        if wanted > FEW {
            copy_rows((wanted - FEW).div_ceil(FEW));
        }
        let (who, budget) = (bench_actor(), QueryBudget::default());
        let mut worst = Duration::ZERO;
        group.bench_function(format!("{wanted} rows"), |b| {
            b.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    let watch = Stopwatch::start();
                    replays.apply(&who, id, &budget).expect("applied");
                    let took = watch.elapsed();
                    (spent, worst) = (spent + took, worst.max(took));
                    replays.undo(&who, id, &budget).expect("undone");
                }
                spent
            });
        });
        eprintln!("apply, {name}, {wanted} rows: {worst:?} at most");
        assert!(worst < LIMIT, "an apply took {worst:?}");
    }
    group.finish();
}

fn sqlite(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let number = std::cell::Cell::new(0);
    bench(c, "SQLite", &|| {
        number.set(number.get() + 1);
        let file = dir.path().join(format!("store-{}.sqlite", number.get()));
        let store = SqliteStore::open(&file).expect("a store");
        let copy = move |hours| {
            let connection = rusqlite::Connection::open(&file).expect("a connection");
            connection.execute_batch(&copy_sql("", hours)).expect("copied");
        };
        (store as Arc<dyn RollupStore>, Box::new(copy) as CopyRows)
    });
}

fn postgres(c: &mut Criterion) {
    let minutes = Duration::from_mins(5);
    bench(c, "PostgreSQL", &|| {
        let server = server::shared();
        let database = server.database();
        let options = PostgresOptions {
            url: server.url(&database),
            read_url: None,
            node: "bench".to_owned(),
            flush_connections: 2,
            read_connections: 4,
            connect_timeout: Duration::from_secs(10),
            timeout: minutes,
            compress_timeout: minutes,
            lock_timeout: Duration::from_secs(10),
            idle_timeout: minutes,
            tls_ca: None,
            match_cache: 1 << 20,
        };
        let store = PostgresStore::open(&options).expect("a store");
        let copy = move |hours| {
            server.psql(&database, &copy_sql("rollmill.", hours)).expect("copied");
        };
        (store as Arc<dyn RollupStore>, Box::new(copy) as CopyRows)
    });
}

criterion_group!(benches, sqlite, postgres);
criterion_main!(benches);
