//! Answers over a pointer: each day as the generation that is served there has it, in store, cache
//! and live deltas alike, and never two of them on one day.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::second_cache::Shelf;
use super::*;
use crate::model::flush::{FillGuard, GenerationDeltas, SetAdoption};
use crate::model::generation::{DayRange, GenerationId, Piece, Pointer};
use crate::model::generation_book::{GenerationBook, NewGeneration};
use crate::model::served::{covers, generation_at};
use crate::persistence::store::GenerationStore;
use crate::query::service::QueryService;

const FIRST_DAY: i32 = START / 24;
const TODAY: i32 = FIRST_DAY + HOURS / 24 - 4;

type Hook = Box<dyn FnOnce() -> Option<LiveError> + Send>;

/// One shard that holds deltas of several generations in memory.
#[derive(Default)]
struct Shard {
    deltas: Mutex<Vec<(GenerationId, Delta)>>,
    /// Called at the beginning of the next read; may fail it.
    meanwhile: Mutex<Option<Hook>>,
    /// The pieces of each read, each with its first day.
    asked: Mutex<Vec<Vec<(i32, u64)>>>,
}

impl Shard {
    fn meanwhile(&self, hook: impl FnOnce() -> Option<LiveError> + Send + 'static) {
        *self.meanwhile.lock().expect("no panic") = Some(Box::new(hook));
    }
}

impl LiveReader for Shard {
    fn shard_count(&self) -> u32 {
        1
    }
    fn read(
        &self,
        asked: &[ShardRead],
        question: &LiveQuery<'_>,
        matchers: &[Matcher],
        visit: &mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup),
    ) -> ShardResults {
        assert!(covers(question.served, question.from, question.to), "{question:?}");
        let pieces = question.served.iter().map(|p| (p.from.day(), p.generation.0)).collect();
        self.asked.lock().expect("no panic").push(pieces);
        let hook = self.meanwhile.lock().expect("no panic").take();
        if let Some(error) = hook.and_then(|hook| hook()) {
            return asked.iter().map(|(shard, _)| (*shard, Err(error))).collect();
        }
        for (generation, delta) in &*self.deltas.lock().expect("no panic") {
            let series = &delta.series.series;
            let wanted = matchers.iter().all(|m| m.matches(series))
                || (question.overflow && series.is_overflow());
            if wanted && generation_at(question.served, delta.hour) == Some(*generation) {
                visit(ShardId(0), &delta.series, delta.hour, &delta.rollup);
            }
        }
        Idle.read(asked, question, matchers, visit)
    }
    fn catalogue(
        &self,
        asked: &[ShardRead],
        question: &CatalogueQuery<'_>,
        visit: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults {
        let mut growth = CatalogueGrowth::default();
        for (generation, delta) in &*self.deltas.lock().expect("no panic") {
            growth.add(
                question,
                match generation.is_ingest() {
                    true => CatalogueEntry::Series(&delta.series),
                    false => CatalogueEntry::Other(*generation, &delta.series),
                },
            );
        }
        visit(&growth);
        Idle.catalogue(asked, question, visit)
    }
    fn accounting(
        &self,
        asked: &[ShardRead],
        question: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults {
        Idle.accounting(asked, question, visit)
    }
}

fn delta(metric: &str, labels: &[(&str, &str)], hour: i32, values: &[i64]) -> Delta {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let series = Series::new("t", metric, labels);
    let mut rollup = Rollup::default();
    for value in values {
        let units = Decimal::from_units(i128::from(*value) * 1_000_000_000);
        rollup.add(Some(units), Some(value.unsigned_abs()));
    }
    let series = Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
    Delta { series, hour: Hour(hour), rollup }
}

fn piece(from: i32, to: Option<i32>, generation: u64) -> Piece {
    let days = DayRange::new(from, to).expect("days");
    Piece { days, generation: GenerationId(generation) }
}

/// A store with generations, and its engine.
struct Replayed {
    store: Arc<MemoryStore>,
    shard: Arc<Shard>,
    engine: Arc<QueryEngine>,
    /// The end of what each shard has flushed.
    flushed: BTreeMap<u32, u64>,
}

impl Replayed {
    fn new() -> Self {
        Self::with_limits(1_000_000, 1_000, None)
    }

    fn with_limits(max_points: usize, max_series: usize, shelf: Option<Arc<Shelf>>) -> Self {
        let (store, shard) = (MemoryStore::new(), Arc::new(Shard::default()));
        let engine = engine(&store, &shard, (max_points, max_series), shelf);
        Self { store, shard, engine, flushed: BTreeMap::new() }
    }

    /// One flush of a shard: what it adds to each generation, all under one revision.
    fn flush(&mut self, shard: u32, rows: &[(u64, Vec<Delta>)], adopts: Option<SetAdoption>) {
        let sorted = |rows: &[Delta]| {
            let mut rows = rows.to_vec();
            rows.sort_by_key(|row| (row.series.series.metric.clone(), row.hour, row.series.id));
            rows
        };
        let mut batch = FlushBatch { adopts, ..FlushBatch::default() };
        for (generation, rows) in rows {
            match generation {
                0 => batch.deltas = sorted(rows),
                _ => batch.generations.push(GenerationDeltas {
                    generation: GenerationId(*generation),
                    deltas: sorted(rows),
                    ..GenerationDeltas::default()
                }),
            }
        }
        let from = self.flushed.get(&shard).copied().unwrap_or(0);
        self.flushed.insert(shard, from + 1);
        let claim = self.store.claim(ShardId(shard), LOG, from).expect("claim");
        batch.set = claim.set.version;
        let (shard, range) = (ShardId(shard), OffsetRange { from, to: from + 1 });
        let guard = FlushGuard { shard, log: LOG, range, epoch: claim.checkpoint.epoch };
        self.store.flush(guard, &batch, 0).expect("flush");
    }

    /// Serves these pieces of metrics.
    fn point(&self, metrics: &[(&str, &[Piece])]) {
        point(&self.store, metrics);
    }

    fn ask(&self, params: &[(&str, &str)]) -> Result<serde_json::Value, ApiError> {
        ask(&self.engine, params)
    }
}

fn engine(
    store: &Arc<MemoryStore>,
    shard: &Arc<Shard>,
    (max_points, max_series): (usize, usize),
    shelf: Option<Arc<Shelf>>,
) -> Arc<QueryEngine> {
    let limits =
        QueryLimits { max_points, max_series, stale_after_ms: 10_000, cache_bytes: 1 << 20 };
    let clock = ManualClock::at(i64::from(TODAY) * 24 * HOUR_MS + 1);
    let shelf = shelf.map(|shelf| shelf as Arc<dyn crate::persistence::cache::SharedCache>);
    QueryEngine::with_shared_cache(store.clone(), shard.clone(), clock, limits, shelf)
}

fn point(store: &MemoryStore, metrics: &[(&str, &[Piece])]) {
    let snapshot = |store: &MemoryStore| {
        let budget = QueryBudget::default();
        let book = crate::persistence::store::QuerySource::query_snapshot(store, &budget)
            .and_then(|mut snapshot| snapshot.generation_book());
        book.expect("a book")
    };
    let before = snapshot(store).version();
    let mut book = serde_json::to_value(GenerationBook::default()).expect("JSON");
    book["version"] = (before + 1).into();
    for (metric, pieces) in metrics {
        let pointer = Pointer::new(pieces.iter().copied());
        book["pointers"]["t"][metric] = serde_json::to_value(&pointer).expect("JSON");
    }
    let book: GenerationBook = serde_json::from_value(book).expect("a book");
    assert!(store.swap_generations(before, &book, None).expect("swapped"));
}

fn ask(engine: &QueryEngine, params: &[(&str, &str)]) -> Result<serde_json::Value, ApiError> {
    let params: Vec<_> = [("metric", "m")].iter().chain(params).collect();
    let params: Vec<_> =
        params.into_iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let answer = read_routes::query(engine, "t", &params, 0, &QueryBudget::default())?;
    Ok(serde_json::from_str(&answer).expect("JSON"))
}

fn days(from: i32, to: i32) -> [(&'static str, String); 2] {
    let time = |day: i32| (i64::from(day) * 24 * HOUR_MS).to_string();
    [("from", time(from)), ("to", time(to))]
}

/// The counts of the first series, with the start of each bucket.
fn counts(answer: &serde_json::Value) -> Vec<(String, u64)> {
    let points = answer["series"][0]["points"].as_array().map(Vec::as_slice).unwrap_or_default();
    let count = |point: &serde_json::Value| {
        (point["t"].as_str().expect("t").to_owned(), point["count"].as_u64().expect("a count"))
    };
    points.iter().map(count).collect()
}

fn total(replayed: &Replayed, from: i32, to: i32) -> u64 {
    let [from, to] = days(from, to);
    let params = [("step", "all"), ("from", &*from.1), ("to", &*to.1)];
    counts(&replayed.ask(&params).expect("an answer")).iter().map(|(_, count)| count).sum()
}

#[test]
fn the_edges_of_a_replay_lie_inside_of_steps_of_any_zone() {
    let mut replayed = Replayed::new();
    let day = FIRST_DAY + 31;
    let hours = (day - 10) * 24..(day + 10) * 24;
    let rows = |values: &[i64]| hours.clone().map(|hour| delta("m", &[], hour, values)).collect();
    replayed.flush(0, &[(0, rows(&[1])), (1, rows(&[1, 1]))], None);
    // 31 March 2024, on which the clocks of Berlin go forward.
    replayed.point(&[("m", &[piece(day, Some(day + 1), 1)])]);
    let count = |step: &str, tz: &str, t: &str| {
        let [from, to] = days(day - 8, day + 8);
        let params =
            [("step", step), ("tz", tz), ("from", &*from.1), ("to", &*to.1), ("agg", "count,rate")];
        let answer = replayed.ask(&params).expect("an answer");
        let counts = counts(&answer);
        counts.iter().find(|(start, _)| start == t).unwrap_or_else(|| panic!("{answer}")).1
    };
    for (step, tz, t, expected) in [
        ("1h", "UTC", "2024-03-30T23:00:00Z", 1),
        ("1h", "UTC", "2024-03-31T00:00:00Z", 2),
        ("1h", "UTC", "2024-03-31T23:00:00Z", 2),
        ("1h", "UTC", "2024-04-01T00:00:00Z", 1),
        ("6h", "UTC", "2024-03-31T18:00:00Z", 12),
        // Five hours, the first of which is of the day before in UTC.
        ("6h", "Europe/Berlin", "2024-03-30T23:00:00Z", 1 + 4 * 2),
        ("6h", "Europe/Berlin", "2024-03-31T22:00:00Z", 2 * 2 + 4),
        ("6h", "America/New_York", "2024-03-31T22:00:00Z", 2 * 2 + 4),
        // 23 hours, and then 24 of which two are replayed.
        ("1d", "Europe/Berlin", "2024-03-30T23:00:00Z", 1 + 22 * 2),
        ("1d", "Europe/Berlin", "2024-03-31T22:00:00Z", 2 * 2 + 22),
        ("1d", "UTC", "2024-03-31T00:00:00Z", 48),
        // The week of the change has 167 hours.
        ("1w", "Europe/Berlin", "2024-03-24T23:00:00Z", 167 + 22),
        ("1w", "UTC", "2024-03-25T00:00:00Z", 168 + 24),
    ] {
        // From the store, then from the cache.
        for _ in 0..2 {
            assert_eq!(count(step, tz, t), expected, "{step} of {tz} at {t}");
        }
    }
}

#[test]
fn writers_of_one_series_are_one_series() {
    let mut replayed = Replayed::with_limits(24, 1, None);
    let (day, id) = (FIRST_DAY, GenerationId(1));
    let one = |values: &[i64]| vec![delta("m", &[("page", "/a")], day * 24 + 3, values)];
    // Started in the book, so that a filler may write.
    let (metrics, rules) = (vec!["m".to_owned()], "{}".into());
    let (tenant, days_of) = ("t".to_owned(), DayRange::ALWAYS);
    let new = NewGeneration { tenant, metrics, days: days_of, rules, started: (0, String::new()) };
    replayed.flush(0, &[(0, one(&[100]))], None);
    let mut book = GenerationBook::default();
    assert_eq!(book.start(new, 3, 7), Ok(id));
    assert!(replayed.store.swap_generations(0, &book, None).expect("swapped"));
    let adoption = SetAdoption { version: book.newest_set().version, begun: vec![id] };
    replayed.flush(0, &[(0, one(&[200])), (1, one(&[3, 4]))], Some(adoption));
    replayed.flush(1, &[(1, one(&[5]))], None);
    let (range, nonce) = (OffsetRange { from: 0, to: 2 }, 9);
    let guard = FillGuard { generation: id, shard: ShardId(0), log: LOG, range, nonce };
    let batch =
        GenerationDeltas { generation: id, deltas: one(&[6, -7]), ..GenerationDeltas::default() };
    replayed.store.fill(&guard, &batch).expect("filled");
    let version = book.version();
    book.apply(id, 0).expect("applied");
    assert!(replayed.store.swap_generations(version, &book, None).expect("swapped"));
    let [from, to] = days(day, day + 1);
    for step in ["1h", "1d", "all"] {
        let params = [("step", step), ("by", "page"), ("from", &*from.1), ("to", &*to.1)];
        let agg = ("agg", "count,sum,min,max,distinct");
        let answer = replayed.ask(&[&params[..], &[agg]].concat()).expect("one series");
        let point = &answer["series"][0]["points"][0];
        let figures = ["count", "sum", "min", "max", "distinct"].map(|name| point[name].as_i64());
        assert_eq!(figures, [5, 11, -7, 6, 5].map(Some), "{answer}");
        assert_eq!(answer["series"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn points_are_counted_once_over_pieces_and_writers() {
    let mut replayed = Replayed::with_limits(48, 10, None);
    let day = FIRST_DAY;
    let rows = |days: std::ops::Range<i32>| -> Vec<Delta> {
        (days.start * 24..days.end * 24).map(|hour| delta("m", &[], hour, &[1])).collect()
    };
    for shard in 0..3 {
        replayed.flush(shard, &[(0, rows(day..day + 3)), (1, rows(day..day + 3))], None);
    }
    replayed.point(&[("m", &[piece(day + 1, Some(day + 2), 1)])]);
    let ask = |to: i32| {
        let [from, to] = days(day, to);
        replayed.ask(&[("step", "1h"), ("from", &*from.1), ("to", &*to.1)])
    };
    assert_eq!(counts(&ask(day + 2).expect("48 points")).len(), 48);
    assert_eq!(ask(day + 3).expect_err("72 points").code, "too_many_points");
}

#[test]
fn the_overflow_and_the_first_of_an_order_are_those_of_the_pieces() {
    let mut replayed = Replayed::new();
    let hour = FIRST_DAY * 24;
    let overflow = |hour, values: &[i64]| delta("m", &[("__overflow__", "true")], hour, values);
    let page = |page: &str, hour, values: &[i64]| delta("m", &[("page", page)], hour, values);
    let ingested = vec![
        page("/a", hour, &[1]),
        page("/b", hour, &[1, 1]),
        overflow(hour, &[1]),
        page("/a", hour + 24, &[1; 9]),
        overflow(hour + 24, &[1; 100]),
    ];
    let replay = vec![page("/b", hour + 24, &[1; 7]), overflow(hour + 24, &[1; 10])];
    replayed.flush(0, &[(0, ingested), (1, replay)], None);
    let live = [(0, overflow(hour + 47, &[1; 5])), (1, overflow(hour + 47, &[1; 3]))];
    *replayed.shard.deltas.lock().expect("no panic") =
        live.map(|(generation, delta)| (GenerationId(generation), delta)).into();
    let [from, to] = days(FIRST_DAY, FIRST_DAY + 2);
    let range = [("step", "all"), ("by", "page"), ("from", &*from.1), ("to", &*to.1)];
    let first = [("order", "desc"), ("limit", "2"), ("where", "{page!=\"\"}")];
    for (pieces, expected, overflow) in [
        (&[][..], [("/a", 10), ("/b", 2)], 106),
        (&[piece(FIRST_DAY + 1, None, 1)], [("/b", 9), ("/a", 1)], 1 + 10 + 3),
    ] {
        replayed.point(&[("m", pieces)]);
        for _ in 0..2 {
            let answer = replayed.ask(&[&range[..], &first[..]].concat()).expect("an answer");
            let found: Vec<_> = answer["series"]
                .as_array()
                .expect("series")
                .iter()
                .map(|series| {
                    let page = series["labels"]["page"].as_str().expect("a page");
                    (page, series["points"][0]["count"].as_u64().expect("a count"))
                })
                .collect();
            assert_eq!(found, expected, "{answer}");
            assert_eq!(answer["completeness"]["overflow"], overflow, "{answer}");
        }
    }
}

#[test]
fn neither_cache_gives_the_part_of_another_generation() {
    let shelf = Shelf::new();
    let mut replayed = Replayed::with_limits(1_000, 10, Some(shelf.clone()));
    let (day, hour) = (FIRST_DAY, FIRST_DAY * 24);
    let rows =
        |values: &[i64]| vec![delta("m", &[], hour, values), delta("m", &[], hour + 24, values)];
    // One flush: all three have the same revision.
    replayed.flush(0, &[(0, rows(&[1])), (1, rows(&[1; 2])), (2, rows(&[1; 4]))], None);
    let pointers = [
        (&[][..], 2),
        (&[piece(day, Some(day + 1), 1)], 3),
        (&[piece(day, Some(day + 1), 1), piece(day + 1, None, 2)], 6),
        (&[piece(day, Some(day + 2), 2)], 8),
    ];
    for (round, (pieces, expected)) in pointers.iter().chain(&pointers).enumerate() {
        replayed.point(&[("m", pieces)]);
        assert_eq!(total(&replayed, day, day + 2), *expected, "{pieces:?}");
        // A process that only has what others have put into the shared cache.
        let given = shelf.given();
        let (store, shard) = (&replayed.store, &replayed.shard);
        let other = engine(store, shard, (1_000, 10), Some(shelf.clone()));
        let [from, to] = days(day, day + 2);
        let params = [("step", "all"), ("from", &*from.1), ("to", &*to.1)];
        let answer = ask(&other, &params).expect("an answer");
        assert_eq!(counts(&answer)[0].1, *expected, "round {round}: {answer}");
        assert_eq!(shelf.given() - given, 2, "both days are from the shared cache");
    }
}

#[test]
fn what_is_applied_between_snapshot_and_live_read_is_not_in_the_answer() {
    let mut replayed = Replayed::new();
    let (day, hour) = (FIRST_DAY, FIRST_DAY * 24);
    let stored = |values: &[i64]| vec![delta("m", &[], hour, values)];
    replayed.flush(0, &[(0, stored(&[1])), (1, stored(&[1; 10]))], None);
    let live =
        [(0, delta("m", &[], hour + 1, &[1; 100])), (1, delta("m", &[], hour + 1, &[1; 1_000]))];
    *replayed.shard.deltas.lock().expect("no panic") =
        live.map(|(generation, delta)| (GenerationId(generation), delta)).into();
    let apply = |error: Option<LiveError>| {
        let store = replayed.store.clone();
        replayed.shard.meanwhile(move || {
            point(&store, &[("m", &[piece(day, None, 1)])]);
            error
        });
    };
    let [from, to] = days(day - 1, day + 1);
    let params = [("step", "all"), ("from", &*from.1), ("to", &*to.1)];
    apply(None);
    let before = replayed.ask(&params).expect("an answer");
    assert_eq!(counts(&before)[0].1, 101);
    assert!(before["completeness"].get("generations").is_none(), "{before}");
    // A shard that asks for a new snapshot gets a new pointer too, for store and shards alike.
    replayed.point(&[]);
    apply(Some(LiveError::StaleCheckpoint));
    replayed.shard.asked.lock().expect("no panic").clear();
    let after = replayed.ask(&params).expect("an answer");
    assert_eq!((counts(&after)[0].1, &after["completeness"]["partial"]), (1_010, &false.into()));
    let expected = serde_json::json!([
        {"generation": 1, "from": "2024-02-29T00:00:00Z", "to": "2024-03-01T00:00:00Z"}
    ]);
    assert_eq!(after["completeness"]["generations"], expected);
    let asked = replayed.shard.asked.lock().expect("no panic").clone();
    assert_eq!(asked, [vec![(day - 1, 0)], vec![(day - 1, 0), (day, 1)]]);
}

#[test]
fn an_update_is_due_when_a_replay_is_applied_that_changes_no_figure() {
    use crate::gateway::render::{DecimalFormat, update};
    let mut replayed = Replayed::new();
    let rows = || vec![delta("m", &[], FIRST_DAY * 24, &[1])];
    replayed.flush(0, &[(0, rows()), (1, rows())], None);
    let hash = || {
        let [from, to] = days(FIRST_DAY, FIRST_DAY + 1);
        let params = [("metric", "m".to_owned()), from, to].map(|(k, v)| (k.to_owned(), v));
        let (request, _) = read_routes::query_request(&params, 0).expect("a request");
        let budget = QueryBudget::default();
        let mut answer = replayed.engine.query("t", &request, &budget).expect("an answer");
        update("u", &mut answer, DecimalFormat::Numbers).expect("rendered").1
    };
    let before = hash();
    assert_eq!(hash(), before);
    replayed.point(&[("m", &[piece(FIRST_DAY, None, 1)])]);
    let applied = hash();
    assert_ne!(applied, before);
    replayed.point(&[]);
    assert_eq!(hash(), before, "undone");
}

#[test]
fn the_catalogue_unites_what_the_pointers_name_and_nothing_else() {
    let mut replayed = Replayed::new();
    let hour = FIRST_DAY * 24;
    let row = |metric: &str, label: (&str, &str), hour| delta(metric, &[label], hour, &[1]);
    let ingested = vec![
        row("a", ("page", "/1"), hour),
        row("a", ("page", "/2"), hour),
        row("b", ("page", "/3"), hour + 5),
        row("c", ("page", "/4"), hour),
    ];
    let served = vec![
        row("a", ("plan", "free"), hour + 9),
        row("b", ("page", "/5"), hour + 5),
        row("b", ("page", "/6"), hour + 5),
        row("only", ("plan", "team"), hour),
    ];
    let built = vec![row("a", ("secret", "x"), hour), row("c", ("page", "/secret"), hour)];
    replayed.flush(0, &[(0, ingested), (7, served), (8, built)], None);
    *replayed.shard.deltas.lock().expect("no panic") = vec![
        (GenerationId(7), row("a", ("plan", "live"), hour)),
        (GenerationId(8), row("a", ("secret", "live"), hour)),
        (GenerationId(0), row("b", ("page", "/7"), hour)),
    ];
    let pieces = &[piece(FIRST_DAY, None, 7)][..];
    replayed.point(&[("a", pieces), ("b", pieces), ("only", pieces)]);
    let params = |params: &[(&str, &str)]| -> Vec<_> {
        params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let metrics = |extra: &[(&str, &str)]| -> Vec<serde_json::Value> {
        let budget = QueryBudget::default();
        let answer = read_routes::metrics(&*replayed.engine, "t", &params(extra), &budget);
        let answer: serde_json::Value =
            serde_json::from_str(&answer.expect("an answer")).expect("JSON");
        answer["metrics"].as_array().expect("metrics").clone()
    };
    let info = |name: &str, labels: &[&str], series: u64, first: &str, last: &str| {
        serde_json::json!({"metric": name, "labels": labels, "series": series,
            "first": format!("2024-02-29T{first}:00:00Z"), "last": format!("2024-02-29T{last}:00:00Z")})
    };
    let expected = [
        info("a", &["page", "plan"], 2, "00", "09"),
        info("b", &["page"], 2, "05", "05"),
        info("c", &["page"], 1, "00", "00"),
        info("only", &["plan"], 1, "00", "00"),
    ];
    assert_eq!(metrics(&[]), expected);
    let mut paged = Vec::new();
    while let [metric] = &metrics(&[("limit", "1"), ("after", &last_name(&paged))])[..] {
        paged.push(metric.clone());
    }
    assert_eq!(paged, expected, "page by page");
    assert_eq!(metrics(&[("prefix", "on")]), [expected[3].clone()]);
    let values = |label: &str, extra: &[(&str, &str)]| -> BTreeSet<String> {
        let budget = QueryBudget::default();
        let answer =
            read_routes::label_values(&*replayed.engine, "t", label, &params(extra), &budget);
        let answer: serde_json::Value =
            serde_json::from_str(&answer.expect("an answer")).expect("JSON");
        let values = answer["values"].as_array().expect("values");
        values.iter().map(|value| value.as_str().expect("a value").to_owned()).collect()
    };
    let set = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(values("page", &[]), set(&["/1", "/2", "/3", "/4", "/5", "/6", "/7"]));
    assert_eq!(values("plan", &[]), set(&["free", "live", "team"]));
    assert_eq!(values("plan", &[("metric", "a")]), set(&["free", "live"]));
    assert_eq!(values("page", &[("metric", "c")]), set(&["/4"]));
    assert_eq!(values("secret", &[]), set(&[]));
}

fn last_name(metrics: &[serde_json::Value]) -> String {
    metrics.last().map_or("!", |last| last["metric"].as_str().expect("a name")).to_owned()
}

/// Values by (generation, page, plan, hour).
type Events = BTreeMap<(u64, String, String, i32), Vec<i64>>;

/// Random events in four generations, most of them stored, some live, and random pointers.
struct Random {
    replayed: Replayed,
    events: Events,
    seed: u64,
}

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % n
    }

    fn event(&mut self, generation: u64) -> Delta {
        let page = format!("/{}", self.below(3));
        // Each generation labels events in its own way.
        let plan = ["", "free", "team"][((self.below(2) + generation) % 3) as usize];
        let hour = START + self.below(HOURS as u64) as i32;
        let values: Vec<i64> = (0..=self.below(3)).map(|_| self.below(200) as i64 - 100).collect();
        let row = delta("m", &[("page", &page), ("plan", plan)], hour, &values);
        self.events.entry((generation, page, plan.to_owned(), hour)).or_default().extend(values);
        row
    }

    fn flush(&mut self) {
        let shard = self.below(3) as u32;
        let rows: Vec<_> = (0..4)
            .map(|generation| {
                let rows = (0..self.below(40)).map(|_| self.event(generation)).collect::<Vec<_>>();
                (generation, rows)
            })
            .collect();
        self.replayed.flush(shard, &rows, None);
    }

    fn live(&mut self) {
        let generation = self.below(4);
        let row = self.event(generation);
        let mut deltas = self.replayed.shard.deltas.lock().expect("no panic");
        deltas.push((GenerationId(generation), row));
    }

    /// Random pieces: of one day, of many, open ones, and none.
    fn point(&mut self) -> Pointer {
        let pieces: Vec<Piece> = (0..self.below(6))
            .map(|_| {
                let from = FIRST_DAY - 2 + self.below(HOURS as u64 / 24 + 2) as i32;
                let days = 1 + self.below(9) as i32;
                let to = (self.below(6) > 0).then_some(from + days);
                piece(from, to, self.below(4))
            })
            .collect();
        self.replayed.point(&[("m", &pieces)]);
        Pointer::new(pieces)
    }

    fn check(&mut self, pointer: &Pointer) {
        let step = ["1h", "6h", "1d", "1w", "1mo", "all"][self.below(6) as usize];
        let zone = match step {
            "1h" | "all" => "UTC",
            _ => ["UTC", "Europe/Berlin", "America/New_York"][self.below(3) as usize],
        };
        let from = START + self.below(HOURS as u64 - 1) as i32;
        let to = from + 1 + self.below((START + HOURS - from) as u64) as i32;
        let by = ["", "page", "plan", "page,plan"][self.below(4) as usize];
        let matcher = ["", "{page=\"/1\"}", "{plan!=\"free\"}"][self.below(3) as usize];
        let (start, end) =
            ((i64::from(from) * HOUR_MS).to_string(), (i64::from(to) * HOUR_MS).to_string());
        let params = [
            ("from", &*start),
            ("to", &*end),
            ("step", step),
            ("tz", zone),
            ("by", by),
            ("where", matcher),
            ("agg", "count,sum,min,max,distinct"),
        ];
        let params: Vec<_> = params.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let answer = self.replayed.ask(&params).unwrap_or_else(|e| panic!("{params:?}: {e}"));
        let edge = |name: &str| {
            let time: jiff::Timestamp = answer[name].as_str().expect("t").parse().expect("a time");
            time.as_millisecond()
        };
        let (from, to) = (edge("from"), edge("to"));
        let mut expected: BTreeMap<(String, String, Millis), Vec<i64>> = BTreeMap::new();
        for ((generation, page, plan, hour), values) in &self.events {
            let hour = Hour(*hour);
            let passes = match matcher {
                "" => true,
                "{page=\"/1\"}" => page == "/1",
                _ => plan != "free",
            };
            let served = pointer.on(hour.day()) == GenerationId(*generation);
            if !passes || !served || hour.start() < from || hour.start() >= to {
                continue;
            }
            let label = |name: &str, value: &String| {
                if by.contains(name) { value.clone() } else { String::new() }
            };
            let key = (label("page", page), label("plan", plan), bucket(step, zone, hour, from));
            expected.entry(key).or_default().extend(values);
        }
        for series in answer["series"].as_array().expect("series") {
            let label = |name: &str| series["labels"][name].as_str().unwrap_or("").to_owned();
            for point in series["points"].as_array().expect("points") {
                let start: jiff::Timestamp =
                    point["t"].as_str().expect("t").parse().expect("a time");
                let key = (label("page"), label("plan"), start.as_millisecond());
                let values = expected.remove(&key);
                let values =
                    values.unwrap_or_else(|| panic!("{params:?} {pointer:?} has {key:?} too much"));
                let users: BTreeSet<u64> = values.iter().map(|v| v.unsigned_abs()).collect();
                let figures =
                    ["count", "sum", "min", "max", "distinct"].map(|name| point[name].as_i64());
                let bounds = (values.iter().min().copied(), values.iter().max().copied());
                let (count, users) = (values.len() as i64, users.len() as i64);
                assert_eq!(
                    figures,
                    [Some(count), Some(values.iter().sum()), bounds.0, bounds.1, Some(users)],
                    "{params:?} {pointer:?} {key:?}"
                );
            }
        }
        assert!(expected.is_empty(), "{params:?} {pointer:?} lacks {expected:?}");
        check_pieces(&answer, pointer, from, to);
    }
}

/// The pieces that an answer names are those of the pointer, by day.
fn check_pieces(answer: &serde_json::Value, pointer: &Pointer, from: Millis, to: Millis) {
    let time = |value: &serde_json::Value| {
        let time: jiff::Timestamp = value.as_str().expect("a time").parse().expect("a time");
        time.as_millisecond()
    };
    let pieces = answer["completeness"]["generations"].as_array().map(Vec::as_slice);
    let mut named: BTreeMap<i64, u64> = BTreeMap::new();
    for piece in pieces.unwrap_or_default() {
        let (first, end) = (time(&piece["from"]), time(&piece["to"]));
        assert!(from <= first && first < end && end <= to, "{answer}");
        let generation = piece["generation"].as_u64().expect("a number");
        for hour in first / HOUR_MS..end / HOUR_MS {
            assert!(named.insert(hour, generation).is_none(), "twice: {answer}");
        }
    }
    for hour in from / HOUR_MS..to / HOUR_MS {
        let served = pointer.on(Hour(hour as i32).day());
        assert_eq!(named.get(&hour).copied().unwrap_or(0), served.0, "{answer}");
    }
}

#[test]
fn any_pointer_answers_as_each_day_read_by_its_generation() {
    for seed in 0..24 {
        let mut random = Random { replayed: Replayed::new(), events: Events::new(), seed };
        for _ in 0..8 {
            random.flush();
            (0..random.below(4)).for_each(|_| random.live());
            // Between these nothing is flushed: only the pointer tells the answers apart.
            for _ in 0..3 {
                let pointer = random.point();
                (0..4).for_each(|_| random.check(&pointer));
            }
        }
    }
}
