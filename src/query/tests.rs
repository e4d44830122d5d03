//! The engine against a naive fold: every step, grouping and matcher, with late events arriving
//! between the queries.

mod cost;
mod generations;
mod honest;
mod second_cache;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::engine::{QueryEngine, QueryLimits};
use crate::actors::catalogue::{CatalogueGrowth, CatalogueQuery};
use crate::actors::live::{LiveError, LiveReader, ShardFreshness, ShardRead, ShardResults};
use crate::api::quarantine::EventPlace;
use crate::clock::ManualClock;
use crate::gateway::error::ApiError;
use crate::gateway::read_routes;
use crate::model::budget::QueryBudget;
use crate::model::decimal::Decimal;
use crate::model::flush::{
    AccountingDelta, Delta, FlushBatch, FlushGuard, QuarantineRow, SeriesInfo,
};
use crate::model::matcher::Matcher;
use crate::model::offset::{LogId, OffsetRange, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::window::{HOUR_MS, Hour, Millis};
use crate::operate::quarantine::StoreQuarantine;
use crate::operate::service::{OperateError, QuarantineScope, QuarantineService};
use crate::persistence::store::ShardStore;
use crate::persistence::store::memory::MemoryStore;
use crate::shards::state::{AccountingQuery, CatalogueEntry, LiveQuery, ShardLimits};

const LOG: LogId = LogId([3; 16]);
/// 2024-03-01T00:00:00Z in hours: the range includes a clock change.
const START: i32 = 474_768;
const HOURS: i32 = 24 * 45;

/// A live reader whose shards hold nothing in memory.
struct Idle;

impl LiveReader for Idle {
    fn shard_count(&self) -> u32 {
        1
    }
    fn read(
        &self,
        asked: &[ShardRead],
        _: &LiveQuery<'_>,
        _: &[Matcher],
        _: &mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup),
    ) -> ShardResults {
        let report = ShardFreshness {
            as_of: i64::from(START + HOURS) * HOUR_MS,
            age_ms: 0,
            behind: 0,
            recovering: false,
            stopped: false,
        };
        asked.iter().map(|(shard, _)| (*shard, Ok(report))).collect()
    }
    fn catalogue(
        &self,
        asked: &[ShardRead],
        _: &CatalogueQuery<'_>,
        _: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults {
        self.accounting(
            asked,
            &AccountingQuery { tenant: "", from: Hour(0), to: Hour(0) },
            &mut |_, _| (),
        )
    }
    fn accounting(
        &self,
        asked: &[ShardRead],
        _: &AccountingQuery<'_>,
        _: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults {
        let report = ShardFreshness {
            as_of: i64::from(START + HOURS) * HOUR_MS,
            age_ms: 0,
            behind: 0,
            recovering: false,
            stopped: false,
        };
        asked.iter().map(|(shard, _)| (*shard, Ok(report))).collect()
    }
}

struct World {
    store: Arc<MemoryStore>,
    engine: Arc<QueryEngine>,
    /// Values by (tenant, page, country, hour).
    events: BTreeMap<(String, String, String, Hour), Vec<Option<i64>>>,
    flushed: u64,
    /// The nonce of the first epoch.
    nonces: u64,
    seed: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self::with_cache(seed, 1 << 20)
    }

    fn with_cache(seed: u64, cache_bytes: u64) -> Self {
        let store = MemoryStore::new();
        let limits = QueryLimits {
            max_points: 1_000_000,
            max_series: 1_000,
            stale_after_ms: 10_000,
            cache_bytes,
        };
        // Ten days before the end of the data: some days are complete, some are not.
        let clock = ManualClock::at(i64::from(START + HOURS - 240) * HOUR_MS);
        let engine = QueryEngine::new(store.clone(), Arc::new(Idle), clock, limits);
        Self { store, engine, events: BTreeMap::new(), flushed: 0, nonces: 0, seed }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % n
    }

    fn flush(&mut self, events: u64) {
        let mut deltas: BTreeMap<(Series, Hour), Rollup> = BTreeMap::new();
        for _ in 0..events {
            let (tenant, page, country) = (self.below(2), self.below(4), self.below(3));
            let (tenant, page, country) = (
                format!("t{tenant}"),
                format!("/{page}"),
                ["", "DE", "FR"][country as usize].to_owned(),
            );
            let hour = Hour(START + self.below(HOURS as u64) as i32);
            let value = (self.below(5) > 0).then(|| self.below(200) as i64 - 100);
            let labels =
                [("page".to_owned(), page.clone()), ("country".to_owned(), country.clone())];
            let series = Series::new(&tenant, "m", labels);
            let decimal = value.map(|v| Decimal::from_units(i128::from(v) * 1_000_000_000));
            deltas.entry((series, hour)).or_default().add(decimal, Some(self.below(9)));
            self.events.entry((tenant, page, country, hour)).or_default().push(value);
        }
        let info =
            |series: Series| Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
        let deltas = deltas
            .into_iter()
            .map(|((series, hour), rollup)| Delta { series: info(series), hour, rollup })
            .collect();
        let claim = self.store.claim(ShardId(0), LOG, self.nonces + self.flushed).expect("claim");
        let range = OffsetRange { from: self.flushed, to: self.flushed + 1 };
        let guard =
            FlushGuard { shard: ShardId(0), log: LOG, range, epoch: claim.checkpoint.epoch };
        self.store.flush(guard, &FlushBatch { deltas, ..FlushBatch::default() }, 0).expect("flush");
        self.flushed += 1;
    }

    fn ask(&self, tenant: &str, params: &[(&str, String)]) -> serde_json::Value {
        let params: Vec<(String, String)> =
            params.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let answer = read_routes::query(&*self.engine, tenant, &params, 0, &QueryBudget::default())
            .unwrap_or_else(|e| panic!("{params:?}: {e}"));
        serde_json::from_str(&answer).expect("JSON")
    }
}

/// Start of the bucket by the zone's calendar, computed without the engine's code.
fn bucket(step: &str, zone: &str, hour: Hour, from: Millis) -> Millis {
    use jiff::{ToSpan, civil::Weekday};
    let local =
        jiff::Timestamp::from_millisecond(hour.start()).expect("time").in_tz(zone).expect("zone");
    let day = local.start_of_day().expect("a day");
    let start = match step {
        "1h" => return hour.start(),
        "6h" => {
            local.with().hour(local.hour() / 6 * 6).minute(0).build().expect("a quarter of a day")
        }
        "1d" => day,
        "1w" => {
            let back = i64::from(day.weekday().since(Weekday::Monday));
            day.date().checked_sub(back.days()).expect("date").in_tz(zone).expect("zone")
        }
        "1mo" => day.first_of_month().expect("month").start_of_day().expect("a day"),
        _ => return from,
    };
    start.timestamp().as_millisecond()
}

fn check(world: &mut World) {
    let tenant = format!("t{}", world.below(2));
    let step = ["1h", "6h", "1d", "1w", "1mo", "all"][world.below(6) as usize];
    let zone = if matches!(step, "1h" | "all") {
        "UTC"
    } else {
        ["UTC", "Europe/Berlin", "America/New_York"][world.below(3) as usize]
    };
    let from = START + world.below(HOURS as u64 - 1) as i32;
    let to = from + 1 + world.below((START + HOURS - from) as u64) as i32;
    let by = ["", "page", "country", "page,country"][world.below(4) as usize];
    let matcher = ["", "{page=\"/1\"}", "{country!=\"DE\"}", "{page=~\"/[12]\",country=\"\"}"]
        [world.below(4) as usize];
    let params = [
        ("metric", "m".to_owned()),
        ("from", (i64::from(from) * HOUR_MS).to_string()),
        ("to", (i64::from(to) * HOUR_MS).to_string()),
        ("step", step.to_owned()),
        ("tz", zone.to_owned()),
        ("agg", "count,sum,min,max,distinct".to_owned()),
        ("by", by.to_owned()),
        ("where", matcher.to_owned()),
    ];
    let params: Vec<_> = params.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let answer = world.ask(&tenant, &params);
    let edge = |name: &str| {
        answer[name]
            .as_str()
            .expect("a time")
            .parse::<jiff::Timestamp>()
            .expect("a time")
            .as_millisecond()
    };
    let (from, to) = (edge("from"), edge("to"));
    let passes = |page: &str, country: &str| match matcher {
        "" => true,
        "{page=\"/1\"}" => page == "/1",
        "{country!=\"DE\"}" => country != "DE",
        _ => (page == "/1" || page == "/2") && country.is_empty(),
    };
    let mut expected: BTreeMap<(String, String, Millis), (u64, Vec<i64>)> = BTreeMap::new();
    for ((owner, page, country, hour), values) in &world.events {
        if *owner != tenant || !passes(page, country) || hour.start() < from || hour.start() >= to {
            continue;
        }
        let label = |name: &str, value: &String| {
            if by.contains(name) { value.clone() } else { String::new() }
        };
        let key = (label("page", page), label("country", country), bucket(step, zone, *hour, from));
        let point = expected.entry(key).or_default();
        point.0 += values.len() as u64;
        point.1.extend(values.iter().flatten());
    }
    for series in answer["series"].as_array().expect("series") {
        let label = |name: &str| series["labels"][name].as_str().unwrap_or("").to_owned();
        for point in series["points"].as_array().expect("points") {
            let start: jiff::Timestamp = point["t"].as_str().expect("t").parse().expect("a time");
            let key = (label("page"), label("country"), start.as_millisecond());
            let (count, values) =
                expected.remove(&key).unwrap_or_else(|| panic!("{params:?} has {key:?} too much"));
            assert_eq!(point["count"], count, "{params:?} {key:?}");
            let figure = |name: &str| point[name].as_i64();
            let sum = (!values.is_empty()).then(|| values.iter().sum());
            assert_eq!(
                [figure("sum"), figure("min"), figure("max")],
                [sum, values.iter().min().copied(), values.iter().max().copied()]
            );
        }
    }
    assert!(expected.is_empty(), "{params:?} lacks {expected:?}");
}

#[test]
fn answers_equal_a_naive_fold_also_after_late_events() {
    for seed in 0..30 {
        let mut world = World::new(seed);
        for _ in 0..12 {
            let events = world.below(60);
            world.flush(events);
            (0..8).for_each(|_| check(&mut world));
        }
    }
}

#[test]
fn a_late_event_is_seen_at_once_though_the_day_was_kept() {
    let mut world = World::new(1);
    world.flush(500);
    let question = [
        ("metric", "m".to_owned()),
        ("from", (i64::from(START) * HOUR_MS).to_string()),
        ("to", (i64::from(START + 240) * HOUR_MS).to_string()),
        ("step", "all".to_owned()),
    ];
    let count =
        |world: &World| world.ask("t0", &question)["series"][0]["points"][0]["count"].as_u64();
    let before = count(&world);
    assert_eq!(count(&world), before, "from the cache");
    let labels = [("page".to_owned(), "/late".to_owned())];
    let series = Series::new("t0", "m", labels);
    let mut rollup = Rollup::default();
    rollup.add(None, None);
    let info = Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
    let claim = world.store.claim(ShardId(0), LOG, 99).expect("claim");
    let range = OffsetRange { from: world.flushed, to: world.flushed + 1 };
    let guard = FlushGuard { shard: ShardId(0), log: LOG, range, epoch: claim.checkpoint.epoch };
    let deltas = vec![Delta { series: info, hour: Hour(START + 30), rollup }];
    world.store.flush(guard, &FlushBatch { deltas, ..FlushBatch::default() }, 0).expect("flush");
    assert_eq!(count(&world), before.map(|n| n + 1));
}

#[test]
fn the_largest_come_first() {
    let mut world = World::new(2);
    world.flush(400);
    let range = [
        ("from", (i64::from(START) * HOUR_MS).to_string()),
        ("to", (i64::from(START + HOURS) * HOUR_MS).to_string()),
    ];
    let mut params = vec![
        ("metric", "m".to_owned()),
        ("step", "1d".to_owned()),
        ("by", "page".to_owned()),
        ("order", "desc".to_owned()),
        ("limit", "2".to_owned()),
    ];
    params.extend(range);
    let answer = world.ask("t0", &params);
    let totals: Vec<u64> = answer["series"]
        .as_array()
        .expect("series")
        .iter()
        .map(|series| {
            series["points"]
                .as_array()
                .expect("points")
                .iter()
                .filter_map(|p| p["count"].as_u64())
                .sum()
        })
        .collect();
    let mut all: BTreeMap<&str, u64> = BTreeMap::new();
    for ((tenant, page, ..), values) in &world.events {
        if tenant == "t0" {
            *all.entry(page).or_default() += values.len() as u64;
        }
    }
    let mut all: Vec<u64> = all.into_values().collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(totals, all[..2]);
}

#[test]
fn a_cache_that_is_off_changes_no_answer() {
    let mut world = World::with_cache(5, 0);
    for _ in 0..3 {
        world.flush(100);
        check(&mut world);
    }
}

#[test]
fn the_quarantine_of_one_tenant_is_not_there_for_another() {
    let store = MemoryStore::new();
    let claim = store.claim(ShardId(0), LOG, 1).expect("claim");
    let row = |index: u32, tenant: &str| QuarantineRow {
        shard: ShardId(0),
        offset: 0,
        index,
        tenant: tenant.to_owned(),
        received: 0,
        reason: "canary_reason".to_owned(),
        discarded: false,
        record: b"canary_record".to_vec(),
    };
    let quarantined = vec![row(0, "a"), row(1, "b"), row(2, "")];
    let range = OffsetRange { from: 0, to: 1 };
    let guard = FlushGuard { shard: ShardId(0), log: LOG, range, epoch: claim.checkpoint.epoch };
    store.flush(guard, &FlushBatch { quarantined, ..FlushBatch::default() }, 0).expect("flush");
    let limits = ShardLimits {
        dedup_horizon_ms: 1,
        dedup_max_ids: 1,
        flush_interval_ms: 1,
        max_delta_bytes: 1,
        keep_flushed_ms: 1,
        shard_count: 1,
        panic_on_user: None,
    };
    let quarantine = StoreQuarantine::new(store, limits);
    let (of_a, absent) = (
        EventPlace { shard: 0, offset: 0, index: 0 },
        EventPlace { shard: 0, offset: 0, index: 9 },
    );
    let reach = |tenant: &str| QuarantineScope { tenant: tenant.into(), unowned: false };
    let listed = |tenant: &str| {
        quarantine.list(&reach(tenant), true, &QueryBudget::default()).expect("listed").events.len()
    };
    assert_eq!((listed("a"), listed("b"), listed("c")), (1, 1, 0));
    let nobodys = EventPlace { shard: 0, offset: 0, index: 2 };
    let b = reach("b");
    let tries = [(of_a, true), (of_a, false), (absent, false), (nobodys, true), (nobodys, false)];
    for (at, release) in tries {
        let refused = if release {
            quarantine.release(&b, at, &QueryBudget::default()).map(drop)
        } else {
            quarantine.discard(&b, at, &QueryBudget::default()).map(drop)
        };
        let error = refused.expect_err("not there");
        assert!(
            matches!(error, OperateError::NotQuarantined { .. }),
            "as one that is absent: {error}"
        );
        assert!(!error.to_string().contains("canary"), "{error}");
    }
    assert_eq!((listed("a"), listed("b")), (1, 1), "nothing was moved");
    assert!(quarantine.discard(&reach("a"), of_a, &QueryBudget::default()).is_ok());
    let operator = QuarantineScope { tenant: "".into(), unowned: true };
    assert!(
        quarantine.discard(&operator, of_a, &QueryBudget::default()).is_err(),
        "an operator reaches no tenant's events"
    );
    assert!(quarantine.discard(&operator, nobodys, &QueryBudget::default()).is_ok());
}

/// Two shards. One holds ten events of tenant `t0` above its checkpoint, three of them duplicates;
/// the other is unreachable.
struct Holding;

impl LiveReader for Holding {
    fn shard_count(&self) -> u32 {
        2
    }
    fn read(
        &self,
        asked: &[ShardRead],
        _: &LiveQuery<'_>,
        _: &[Matcher],
        _: &mut dyn FnMut(ShardId, &Arc<SeriesInfo>, Hour, &Rollup),
    ) -> ShardResults {
        asked.iter().map(|(shard, _)| (*shard, Err(LiveError::Unavailable))).collect()
    }
    fn catalogue(
        &self,
        asked: &[ShardRead],
        question: &CatalogueQuery<'_>,
        visit: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults {
        let mut growth = CatalogueGrowth::default();
        let labels = [("page".to_owned(), "/new".to_owned())];
        let series = Series::new(question.tenant, "new", labels);
        let info = SeriesInfo { id: SeriesId::of_key(&series.key()), series };
        growth.add(question, CatalogueEntry::Series(&info));
        visit(&growth);
        let asked = [asked[0], (ShardId(1), None)];
        self.accounting(
            &asked,
            &AccountingQuery { tenant: question.tenant, from: Hour(0), to: Hour(1) },
            &mut |_, _| (),
        )
    }
    fn accounting(
        &self,
        asked: &[ShardRead],
        question: &AccountingQuery<'_>,
        visit: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults {
        assert_eq!(
            asked
                .iter()
                .map(|(shard, checkpoint)| (shard.0, checkpoint.is_some()))
                .collect::<Vec<_>>(),
            [(0, true), (1, false)]
        );
        let row = AccountingDelta {
            tenant: question.tenant.to_owned(),
            hour: Hour(START),
            aggregated: 7,
            deduplicated: 3,
            quarantined: 0,
        };
        visit(ShardId(0), &row);
        let report = ShardFreshness {
            as_of: i64::from(START) * HOUR_MS,
            age_ms: 0,
            behind: 0,
            recovering: false,
            stopped: false,
        };
        vec![(ShardId(0), Ok(report)), (ShardId(1), Err(LiveError::Unreachable))]
    }
}

#[test]
fn the_books_balance_and_say_whom_they_lack() {
    let store = MemoryStore::new();
    let claim = store.claim(ShardId(0), LOG, 1).expect("claim");
    let row = |hour: i32, aggregated: u64| AccountingDelta {
        tenant: "t0".to_owned(),
        hour: Hour(hour),
        aggregated,
        deduplicated: 2,
        quarantined: 1,
    };
    let accounting = vec![row(START, 5), row(START + 1, 6)];
    let range = OffsetRange { from: 0, to: 1 };
    let guard = FlushGuard { shard: ShardId(0), log: LOG, range, epoch: claim.checkpoint.epoch };
    store.flush(guard, &FlushBatch { accounting, ..FlushBatch::default() }, 0).expect("flush");
    let limits =
        QueryLimits { max_points: 10, max_series: 10, stale_after_ms: 10_000, cache_bytes: 0 };
    let now = i64::from(START) * HOUR_MS;
    let engine = QueryEngine::new(store, Arc::new(Holding), ManualClock::at(now), limits);
    let books: serde_json::Value = serde_json::from_str(
        &read_routes::accounting(&*engine, "t0", &[], now, &QueryBudget::default())
            .expect("an answer"),
    )
    .expect("JSON");
    let hour = |hour: &str, counts: [u64; 5]| {
        serde_json::json!({"hour": hour, "accepted": counts[0], "aggregated": counts[1],
            "deduplicated": counts[2], "quarantined": counts[3], "pending": counts[4]})
    };
    assert_eq!(
        books["hours"],
        serde_json::json!([hour("2024-02-29T00:00:00Z", [18, 5, 2, 1, 10])]),
        "the hour to come is not asked for"
    );
    let missing = serde_json::json!([{"shard": 1, "reason": "unreachable"}]);
    assert_eq!(
        (&books["completeness"]["partial"], &books["completeness"]["missing"]),
        (&true.into(), &missing)
    );
    // The name lists behave the same.
    for (list, name) in [
        (read_routes::metrics(&*engine, "t0", &[], &QueryBudget::default()), "\"metric\":\"new\""),
        (
            read_routes::label_values(&*engine, "t0", "page", &[], &QueryBudget::default()),
            "\"/new\"",
        ),
    ] {
        let list = list.expect("an answer");
        let answer: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        assert!(list.contains(name), "{list}");
        assert_eq!(
            (&answer["completeness"]["partial"], &answer["completeness"]["missing"]),
            (&true.into(), &missing)
        );
    }
}
