//! What differs with the extension: hypertables, chunks, compression. Runs only if
//! `ROLLMILL_TEST_TIMESCALE_URL` names a server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::NoTls;

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::model::generation::GenerationId;
use crate::model::matcher::Matcher;
use crate::persistence::store::RollupQuery;
use crate::persistence::store::memory::MemoryStore;
use crate::persistence::store::postgres::RetentionPolicy;

/// Runs statements. Returns the first column of the last result.
pub(in crate::persistence::store) fn run(url: &str, sql: &str) -> Vec<String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
        let connection = tokio::spawn(connection);
        let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        connection.abort();
        let row = |message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some(row.get(0).unwrap_or_default().to_owned())
            }
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    })
}

/// A database for one test, dropped at its end.
pub(in crate::persistence::store) struct TestDatabase {
    admin: String,
    name: String,
    pub(in crate::persistence::store) url: String,
    /// Its server, unless that is shared.
    own_server: Option<server::Postgres>,
}

impl TestDatabase {
    /// Creates the database on the server of `admin`, which may create databases; with the
    /// extension if `extension` is set.
    pub(super) fn new(admin: &str, extension: bool) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "rollmill_test_{}_{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        run(admin, &format!("CREATE DATABASE {name}"));
        let (server, _) = admin.rsplit_once('/').expect("postgres://USER@HOST/DATABASE");
        let own = Self {
            url: format!("{server}/{name}"),
            admin: admin.to_owned(),
            name,
            own_server: None,
        };
        if extension {
            run(&own.url, "CREATE EXTENSION IF NOT EXISTS timescaledb");
        }
        own
    }

    /// One database on each kind of server that is available.
    pub(in crate::persistence::store) fn on_each() -> Vec<Self> {
        Self::and_timescale(Self::new(&server::shared().url("postgres"), false))
    }

    /// The same for tests that count what the server touches. A server that others use has all
    /// sessions read their catalogue anew when somebody creates or drops enough tables, in whatever
    /// database, which counts as work of those sessions.
    pub(super) fn on_each_undisturbed() -> Vec<Self> {
        let alone = server::Postgres::start("alone");
        let mut plain = Self::new(&alone.url("postgres"), false);
        plain.own_server = Some(alone);
        Self::and_timescale(plain)
    }

    fn and_timescale(plain: Self) -> Vec<Self> {
        let timescale =
            std::env::var("ROLLMILL_TEST_TIMESCALE_URL").ok().map(|url| Self::new(&url, true));
        std::iter::once(plain).chain(timescale).collect()
    }

    /// Removes what rewritten rows have left behind, so that what is measured next does not depend
    /// on when the server last did.
    pub(super) fn vacuum(&self) {
        run(&self.url, "VACUUM");
    }

    /// Blocks touched in this database so far. Sessions report theirs only when they end.
    pub(super) fn blocks(&self) -> i64 {
        let sessions = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND backend_type = \
             'client backend'",
            self.name
        );
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while run(&self.admin, &sessions) != ["0"] {
            assert!(std::time::Instant::now() < deadline, "sessions stay open");
            std::thread::sleep(Duration::from_millis(20));
        }
        let blocks = format!(
            "SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = '{}'",
            self.name
        );
        run(&self.admin, &blocks)[0].parse().expect("a number")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        run(&self.admin, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

/// A store on hypertables.
pub(in crate::persistence::store) fn store(admin: &str) -> (Arc<PostgresStore>, TestDatabase) {
    let own = TestDatabase::new(admin, true);
    (PostgresStore::open(&options(&own.url)).expect("a store"), own)
}

/// A store on a server whose licence has compression, if there is one.
fn compressing() -> Option<(Arc<PostgresStore>, TestDatabase)> {
    let (store, own) = store(&std::env::var("ROLLMILL_TEST_TIMESCALE_URL").ok()?);
    (run(&own.url, "SHOW timescaledb.license") == ["timescale"]).then_some((store, own))
}

#[test]
fn chunks_are_made_compressed_and_dropped() {
    let Ok(url) = std::env::var("ROLLMILL_TEST_TIMESCALE_URL") else { return };
    let (store, own) = store(&url);
    let url = &own.url;
    let tables = "SELECT hypertable_name FROM timescaledb_information.hypertables WHERE \
                  hypertable_schema = 'rollmill' ORDER BY 1";
    assert_eq!(run(url, tables), ["rollups", "sketches"]);
    let now = SystemClock.now();
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let hours = [20, 10, 2, 0].map(|weeks| Hour::of(now).0 - weeks * 168);
    let deltas = || hours.iter().map(|hour| delta("a", *hour, 1)).collect();
    store.flush(guard(0, 0, epoch), &batch(deltas()), 0).expect("a flush");
    let day = std::time::Duration::from_secs(86_400);
    let keep = RetentionPolicy { rollups: Some(100 * day), compress: Some(30 * day) };
    let (dropped, compressed) = store.maintain(now, keep).expect("a round");
    assert_eq!(dropped, 2, "a week of two tables");
    let licensed = run(url, "SHOW timescaledb.license") == ["timescale"];
    assert_eq!(compressed, if licensed { 2 } else { 0 });
    assert_eq!(store.maintain(now, keep), Ok((0, 0)));
    assert_eq!(state(&*store, 0), (1, 3));
    store
        .flush(guard(0, 1, epoch), &batch(deltas()), 0)
        .expect("late events reach compressed and dropped weeks");
    assert_eq!(state(&*store, 0), (2, 7));
    let (_, again) =
        store.maintain(now, RetentionPolicy { rollups: None, ..keep }).expect("a round");
    assert_eq!(
        again,
        if licensed { 4 } else { 0 },
        "what got late rows is compressed again, and what they made anew"
    );
    assert_eq!(state(&*store, 0), (2, 7));
}

/// The rows of a query, by page and hour.
fn rows(
    store: &PostgresStore,
    matchers: &[Matcher],
    hours: (i32, i32),
    sketches: bool,
) -> BTreeMap<(String, i32), Rollup> {
    let query = RollupQuery {
        tenant: "acme",
        metric: "views",
        matchers,
        from: Hour(hours.0),
        to: Hour(hours.1),
        distinct: sketches,
        quantiles: sketches,
        max_series: 10_000,
        budget: None,
        generation: GenerationId::INGEST,
    };
    let mut rows = BTreeMap::new();
    let mut visit = |info: &Arc<SeriesInfo>, hour: Hour, rollup| {
        assert!(
            rows.insert((info.series.label("page").to_owned(), hour.0), rollup).is_none(),
            "a row twice"
        );
    };
    store.snapshot().expect("a snapshot").rollups(&query, &mut visit).expect("rollups");
    rows
}

/// Everything that queries and `verify` can see.
fn seen(store: &PostgresStore) -> Vec<String> {
    let mut seen = Vec::new();
    let one = || Matcher::Equal("page".to_owned(), "7".to_owned());
    let some =
        || Matcher::Regex("page".to_owned(), regex::Regex::new("^(?:[1-3])$").expect("a regex"));
    for matchers in [vec![], vec![one()], vec![some()]] {
        for hours in [(0, 600), (3, 4), (160, 340)] {
            for sketches in [false, true] {
                seen.push(format!("{:?}", rows(store, &matchers, hours, sketches)));
            }
        }
    }
    let mut snapshot = store.snapshot().expect("a snapshot");
    let mut visit = |info: &Arc<SeriesInfo>, hour: Hour, _: Rollup, bytes: &[u8]| {
        seen.push(format!("{} {hour:?} {bytes:?}", info.id))
    };
    snapshot.rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut visit).expect("bytes");
    seen
}

#[test]
fn compressed_weeks_answer_as_others_do() {
    let Some((store, own)) = compressing() else { return };
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let all = |from: i32, to: i32| {
        let pages =
            (0..40).flat_map(move |page| (from..to).step_by(3).map(move |hour| (page, hour)));
        pages
            .map(|(page, hour)| delta(&page.to_string(), hour, i128::from(page * 1_000 + hour)))
            .collect::<Vec<_>>()
    };
    store.flush(guard(0, 0, epoch), &batch(all(0, 500)), 0).expect("a flush");
    let before = seen(&store);
    assert_eq!(store.compress_before(Hour(336)), Ok(4), "two weeks of two tables");
    let fresh = || PostgresStore::open(&options(&own.url)).expect("a store");
    assert_eq!(seen(&fresh()), before);
    // Late events of some pages, merged into existing rows: the week is then partly compressed.
    let late = || {
        all(100, 200)
            .into_iter()
            .filter(|delta| delta.series.series.label("page").len() == 1)
            .collect::<Vec<_>>()
    };
    store.flush(guard(0, 1, epoch), &batch(late()), 0).expect("late events");
    let merged = seen(&fresh());
    assert_ne!(merged, before);
    let counted =
        |rows: &BTreeMap<_, Rollup>| rows.values().map(|rollup| rollup.figures.count).sum::<u64>();
    let expected = all(0, 500).len() + late().len();
    assert_eq!(counted(&rows(&store, &[], (0, 600), true)), expected as u64);
    assert_eq!(store.compress_before(Hour(336)), Ok(4), "what got late rows is compressed again");
    assert_eq!(store.compress_before(Hour(336)), Ok(0));
    assert_eq!(seen(&fresh()), merged);
}

#[test]
fn late_events_unpack_more_than_the_servers_limit() {
    let Some((store, own)) = compressing() else { return };
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let pages =
        |hour: i32| (0..1_000).map(|page| delta(&page.to_string(), hour, 5)).collect::<Vec<_>>();
    store.flush(guard(0, 0, epoch), &batch(pages(0)), 0).expect("a flush");
    // 1,000 series in 101 hours: one event of one device per hour decompresses all of them.
    run(
        &own.url,
        "INSERT INTO rollmill.rollups SELECT metric_no, h, series_no, count, value_count, sum, \
         min, max
        FROM rollmill.rollups, generate_series(1, 100) h",
    );
    run(
        &own.url,
        "INSERT INTO rollmill.sketches SELECT metric_no, h, series_no, distinct_users, quantiles
        FROM rollmill.sketches, generate_series(1, 100) h",
    );
    assert_eq!(store.compress_before(Hour(168)), Ok(2));
    let late = (0..101).map(|hour| delta("7", hour, 5)).collect();
    store.flush(guard(0, 1, epoch), &batch(late), 0).expect("it is not stuck");
    assert_eq!(state(&*store, 0), (2, 101_101));
    let page = [Matcher::Equal("page".to_owned(), "7".to_owned())];
    assert!(
        rows(&store, &page, (0, 168), true)
            .values()
            .all(|rollup| rollup.figures.count == 2 && rollup.distinct.estimate() == 1)
    );
}

#[test]
fn a_chunk_in_use_holds_up_no_other() {
    let Some((store, own)) = compressing() else { return };
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let deltas = Vec::from([5, 200, 400].map(|hour| delta("a", hour, 1)));
    store.flush(guard(0, 0, epoch), &batch(deltas), 0).expect("a flush");
    assert_eq!(store.compress_before(Hour(168)), Ok(2));
    let reader = PostgresStore::open(&options(&own.url)).expect("a store");
    let mut snapshot = reader.snapshot().expect("a snapshot");
    let query = RollupQuery {
        tenant: "acme",
        metric: "views",
        matchers: &[],
        from: Hour(168),
        to: Hour(336),
        distinct: false,
        quantiles: false,
        max_series: 10,
        budget: None,
        generation: GenerationId::INGEST,
    };
    snapshot.rollups(&query, &mut |_, _, _| ()).expect("it holds the figures of the second week");
    assert_eq!(store.compress_before(Hour(504)), Ok(3), "all but the one in use");
    assert_eq!(rows(&store, &[], (0, 600), true).len(), 3, "nobody waits for what was done");
    drop(snapshot);
    assert_eq!(store.compress_before(Hour(504)), Ok(1), "the next round does the rest");
}

#[test]
fn generations_in_compressed_weeks_are_read_merged_and_deleted() {
    use generations::{begun, counts, days, delete_all, fill_guard, flush_live, leaving, written};
    let Some((store, own)) = compressing() else { return };
    let double = MemoryStore::new();
    let all = |from: i32, to: i32, pages: i32| {
        let pages =
            (0..pages).flat_map(move |page| (from..to).step_by(3).map(move |hour| (page, hour)));
        let one =
            |(page, hour): (i32, i32)| delta(&page.to_string(), hour, i128::from(page + hour));
        pages.map(one).collect::<Vec<_>>()
    };
    let both: [&dyn RollupStore; 2] = [&*store, &*double];
    let epochs = both.map(|store| {
        let epoch = begun(store, days(0, 40), all(0, 500, 40));
        flush_live(store, 2, epoch, all(0, 500, 40));
        store.fill(&fill_guard(0), &written(all(0, 500, 30))).expect("filled");
        epoch
    });
    let fresh = || PostgresStore::open(&options(&own.url)).expect("a store");
    let is_equal = |when: &str| {
        let (found, expected) = (generations::rows(&*fresh()), generations::rows(&*double));
        assert_eq!(found.len(), expected.len(), "{when}");
        assert!(found == expected, "{when}: rows differ");
        assert_eq!(counts(&*fresh()), counts(&*double), "{when}");
    };
    is_equal("before");
    let ingest = seen(&store);
    assert_eq!(store.compress_before(Hour(336)), Ok(4), "two weeks of two tables");
    is_equal("compressed");
    // Rows that are there, rows of new series, and rows of a writer that had none in these hours.
    for (store, epoch) in both.into_iter().zip(epochs) {
        flush_live(store, 3, epoch, all(100, 200, 45));
        store.fill(&fill_guard(1), &written(all(150, 400, 35))).expect("filled");
    }
    is_equal("merged");
    assert_eq!(store.compress_before(Hour(336)), Ok(4), "what got late rows is compressed again");
    is_equal("compressed again");
    // Hours 72 to 311: the end of one week, and the beginning of the next.
    for (store, max) in both.into_iter().zip([700, 1_000_000]) {
        let parts = delete_all(store, &leaving(days(3, 13), generations::first_set()), max);
        assert!(parts.iter().all(|part| *part <= max as u64), "{parts:?}");
    }
    is_equal("some days deleted");
    assert_eq!(seen(&fresh()), ingest, "generation 0 is untouched");
    assert_eq!(generations::damage(&*store), Vec::<String>::new());
    assert_eq!(store.compress_before(Hour(336)), Ok(4));
    is_equal("compressed after deleting");
}
