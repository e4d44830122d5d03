//! Answers are exactly what was requested, or refused: groups, aggregates, order, limits.

use super::*;

/// An engine over complete days of one store, with the values of one series each.
fn engine(max_points: usize, series: &[(&str, &[Option<&str>])]) -> Arc<QueryEngine> {
    let store = MemoryStore::new();
    let claim = store.claim(ShardId(0), LOG, 1).expect("claim");
    let deltas = series.iter().map(|(name, values)| {
        let series = Series::new("t", "m", [("s".to_owned(), (*name).to_owned())]);
        let mut rollup = Rollup::default();
        for value in *values {
            rollup.add(value.map(|value| Decimal::parse(value).expect("a value")), None);
        }
        Delta {
            series: Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series }),
            hour: Hour(START),
            rollup,
        }
    });
    let batch = FlushBatch { deltas: deltas.collect(), ..FlushBatch::default() };
    let range = OffsetRange { from: 0, to: 1 };
    store
        .flush(
            FlushGuard { shard: ShardId(0), log: LOG, range, epoch: claim.checkpoint.epoch },
            &batch,
            0,
        )
        .expect("flush");
    let limits =
        QueryLimits { max_points, max_series: 1_000, stale_after_ms: 10_000, cache_bytes: 1 << 20 };
    QueryEngine::new(store, Arc::new(Idle), ManualClock::at(i64::from(START + 1) * HOUR_MS), limits)
}

/// The default end of a range.
const NOW: Millis = START as i64 * HOUR_MS;

fn ask(engine: &QueryEngine, params: &[(&str, &str)]) -> Result<serde_json::Value, ApiError> {
    let params: Vec<_> =
        [("metric", "m"), ("step", "all"), ("by", "s")].iter().chain(params).collect();
    let params: Vec<_> =
        params.into_iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    read_routes::query(engine, "t", &params, NOW + HOUR_MS, &QueryBudget::default())
        .map(|answer| serde_json::from_str(&answer).expect("JSON"))
}

/// The label of each series of the answer, in order.
fn ranked(engine: &QueryEngine, agg: &str, order: &str) -> Vec<String> {
    let answer = ask(engine, &[("agg", agg), ("order", order)]).expect("an answer");
    let series = answer["series"].as_array().expect("series");
    series.iter().map(|s| s["labels"]["s"].as_str().expect("a label").to_owned()).collect()
}

#[test]
fn what_has_no_value_comes_last_in_either_order() {
    let engine = engine(
        100,
        &[
            ("broken", &[None]),
            ("cold", &[Some("-5")]),
            ("roof", &[Some("21")]),
            ("frost", &[Some("-3")]),
        ],
    );
    for agg in ["min", "max", "avg", "sum", "p50", "p99"] {
        assert_eq!(ranked(&engine, agg, "desc"), ["roof", "frost", "cold", "broken"], "{agg}");
        assert_eq!(ranked(&engine, agg, "asc"), ["cold", "frost", "roof", "broken"], "{agg}");
    }
    // Series that tie are ordered by their labels.
    for order in ["desc", "asc", "labels"] {
        assert_eq!(ranked(&engine, "count", order), ["broken", "cold", "frost", "roof"]);
    }
}

#[test]
fn the_largest_are_found_to_the_last_digit() {
    let largest = "90000000000000010";
    let sums = engine(
        100,
        &[
            ("more", &[Some(largest)]),
            ("same", &[Some("90000000000000000")]),
            ("less", &[Some("89999999999999990")]),
        ],
    );
    for agg in ["sum", "avg", "min", "max"] {
        assert_eq!(ranked(&sums, agg, "desc"), ["more", "same", "less"], "{agg}");
        assert_eq!(ranked(&sums, agg, "asc"), ["less", "same", "more"], "{agg}");
    }
    // One third, and one third plus a fraction of a billionth: equal as doubles.
    let third: &[Option<&str>] = &[Some("1000000000000"), Some("0"), Some("0")];
    let averages = engine(
        100,
        &[
            ("a", third),
            ("b", &[Some("1000000000000"), Some("0"), Some("0.000000001")]),
            ("c", third),
        ],
    );
    assert_eq!(ranked(&averages, "avg", "desc"), ["b", "a", "c"]);
    assert_eq!(ranked(&averages, "avg", "asc"), ["a", "c", "b"]);
}

#[test]
fn a_limit_is_applied_before_points_are_counted() {
    let names: Vec<String> = (0..20).map(|n| format!("s{n:02}")).collect();
    let series: Vec<(&str, &[Option<&str>])> =
        names.iter().map(|name| (name.as_str(), &[Some("1")][..])).collect();
    let engine = engine(10, &series);
    assert_eq!(ask(&engine, &[]).expect_err("20 points").code, "too_many_points");
    assert_eq!(ask(&engine, &[("limit", "11")]).expect_err("11 points").code, "too_many_points");
    for order in ["desc", "asc", "labels"] {
        let answer = ask(&engine, &[("limit", "3"), ("order", order)]).expect("3 points");
        assert_eq!(answer["series"].as_array().expect("series").len(), 3);
    }
}

#[test]
fn six_hours_are_cut_by_the_clocks_of_the_zone() {
    let store = MemoryStore::new();
    let claim = store.claim(ShardId(0), LOG, 1).expect("claim");
    let first: jiff::Timestamp = "2026-03-28T23:00:00Z".parse().expect("a time");
    let first = Hour::of(first.as_millisecond());
    let series = Series::new("t", "dst", []);
    let info = Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
    let mut rollup = Rollup::default();
    rollup.add(None, None);
    let deltas = (0..23)
        .map(|n| Delta { series: info.clone(), hour: Hour(first.0 + n), rollup: rollup.clone() })
        .collect();
    let range = OffsetRange { from: 0, to: 1 };
    let guard = FlushGuard { shard: ShardId(0), log: LOG, range, epoch: claim.checkpoint.epoch };
    store.flush(guard, &FlushBatch { deltas, ..FlushBatch::default() }, 0).expect("flush");
    let limits = QueryLimits {
        max_points: 100,
        max_series: 10,
        stale_after_ms: 10_000,
        cache_bytes: 1 << 20,
    };
    // Before and after the days are complete: from rows, and from cached days.
    for clock in [first.start(), first.start() + 240 * HOUR_MS] {
        let engine =
            QueryEngine::new(store.clone(), Arc::new(Idle), ManualClock::at(clock), limits);
        let params =
            [("metric", "dst"), ("step", "6h"), ("tz", "Europe/Berlin"), ("agg", "count,rate")];
        let range = [("from", "2026-03-28T23:00:00Z"), ("to", "2026-03-29T22:00:00Z")];
        let params: Vec<_> =
            params.iter().chain(&range).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let answer: serde_json::Value = serde_json::from_str(
            &read_routes::query(
                &*engine,
                "t",
                &params,
                NOW + 50 * HOUR_MS,
                &QueryBudget::default(),
            )
            .expect("an answer"),
        )
        .expect("JSON");
        let points: Vec<_> =
            answer["series"][0]["points"].as_array().expect("points").iter().collect();
        let counts: Vec<_> = points
            .iter()
            .map(|p| (p["t"].as_str().expect("t"), p["count"].as_u64().expect("a count")))
            .collect();
        let expected = [
            "2026-03-28T23:00:00Z",
            "2026-03-29T04:00:00Z",
            "2026-03-29T10:00:00Z",
            "2026-03-29T16:00:00Z",
        ];
        assert_eq!(counts, expected.into_iter().zip([5, 6, 6, 6]).collect::<Vec<_>>());
        assert!(
            points.iter().all(|p| p["rate"] == 1.0 / 3600.0),
            "one an hour, also in five hours: {points:?}"
        );
    }
}

#[test]
fn the_books_take_times_as_queries_do_and_nothing_else() {
    let engine = engine(10, &[("a", &[None])]);
    let ask = |params: &[(&str, &str)]| {
        let params: Vec<_> =
            params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        read_routes::accounting(&*engine, "t", &params, NOW, &QueryBudget::default())
    };
    assert!(ask(&[("from", "1709251200000"), ("to", "2024-03-01T02:00:00Z")]).is_ok());
    for (params, code) in [
        (&[("form", "1709251200000")][..], "parameter_unknown"),
        (&[("from", "0"), ("from", "0")], "parameter_repeated"),
        (&[("to", "")], "parameter_empty"),
        (&[("from", "yesterday")], "time_invalid"),
        (&[("from", "3600000"), ("to", "3600000")], "range_empty"),
    ] {
        assert_eq!(ask(params).expect_err("refused").code, code, "{params:?}");
    }
}

/// A single shard that holds deltas in memory and can report itself recovering or stopped.
struct Memory {
    deltas: Vec<Delta>,
    recovering: bool,
    stopped: bool,
}

impl Memory {
    fn report(&self) -> ShardFreshness {
        let (recovering, stopped) = (self.recovering, self.stopped);
        ShardFreshness {
            as_of: i64::from(START + 50) * HOUR_MS,
            age_ms: 0,
            behind: 7,
            recovering,
            stopped,
        }
    }
}

impl LiveReader for Memory {
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
        for delta in &self.deltas {
            let series = &delta.series.series;
            let wanted = matchers.iter().all(|m| m.matches(series))
                || (question.overflow && series.is_overflow());
            if wanted
                && series.metric == question.metric
                && question.from <= delta.hour
                && delta.hour < question.to
            {
                visit(ShardId(0), &delta.series, delta.hour, &delta.rollup);
            }
        }
        asked.iter().map(|(shard, _)| (*shard, Ok(self.report()))).collect()
    }
    fn catalogue(
        &self,
        asked: &[ShardRead],
        _: &CatalogueQuery<'_>,
        _: &mut dyn FnMut(&CatalogueGrowth),
    ) -> ShardResults {
        asked.iter().map(|(shard, _)| (*shard, Ok(self.report()))).collect()
    }
    fn accounting(
        &self,
        asked: &[ShardRead],
        _: &AccountingQuery<'_>,
        _: &mut dyn FnMut(ShardId, &AccountingDelta),
    ) -> ShardResults {
        asked.iter().map(|(shard, _)| (*shard, Ok(self.report()))).collect()
    }
}

/// A delta of `count` events of metric `m`: of page `page`, or of the overflow series.
fn events(page: Option<&str>, hour: i32, count: u64) -> Delta {
    let series = Series::new("t", "m", page.map(|page| ("page".to_owned(), page.to_owned())));
    let series = if page.is_none() { series.overflow() } else { series };
    let mut rollup = Rollup::default();
    (0..count).for_each(|_| rollup.add(None, None));
    Delta {
        series: Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series }),
        hour: Hour(hour),
        rollup,
    }
}

fn with_memory(live: Memory, stored: Vec<Delta>) -> Arc<QueryEngine> {
    let store = MemoryStore::new();
    let claim = store.claim(ShardId(0), LOG, 1).expect("claim");
    let range = OffsetRange { from: 0, to: 1 };
    let guard = FlushGuard { shard: ShardId(0), log: LOG, range, epoch: claim.checkpoint.epoch };
    store.flush(guard, &FlushBatch { deltas: stored, ..FlushBatch::default() }, 0).expect("flush");
    let limits = QueryLimits {
        max_points: 100,
        max_series: 100,
        stale_after_ms: 10_000,
        cache_bytes: 1 << 20,
    };
    // Two days are complete, the third is not.
    QueryEngine::new(
        store,
        Arc::new(live),
        ManualClock::at(i64::from(START + 50) * HOUR_MS),
        limits,
    )
}

#[test]
fn who_asks_for_labels_is_told_how_many_events_have_lost_theirs() {
    let stored = vec![
        events(Some("a"), START + 1, 1),
        events(Some("b"), START + 30, 2),
        events(None, START + 1, 400),
        events(None, START + 30, 50),
        events(None, START + 49, 5),
        events(None, START - 100, 9_000),
    ];
    let live = Memory {
        deltas: vec![events(Some("a"), START + 49, 1), events(None, START + 49, 1)],
        recovering: false,
        stopped: false,
    };
    let engine = with_memory(live, stored);
    let (from, to) =
        ((i64::from(START) * HOUR_MS).to_string(), (i64::from(START + 50) * HOUR_MS).to_string());
    let ask = |extra: &[(&str, &str)]| {
        let params = [("metric", "m"), ("step", "all"), ("from", &from), ("to", &to)];
        let params: Vec<_> =
            params.iter().chain(extra).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let answer =
            read_routes::query(&*engine, "t", &params, NOW + 50 * HOUR_MS, &QueryBudget::default())
                .expect("an answer");
        serde_json::from_str::<serde_json::Value>(&answer).expect("JSON")
    };
    // The second pass is answered from the cache.
    for _ in 0..2 {
        for (extra, counted) in [
            (&[("where", "{page=\"a\"}")][..], 2),
            (&[("where", "{page!=\"a\"}")], 2 + 456),
            (&[("where", "{page=~\"nobody\"}")], 0),
            (&[("where", "{page=\"a\",__overflow__=\"\"}")], 2),
        ] {
            let answer = ask(extra);
            let total: u64 = answer["series"]
                .as_array()
                .expect("series")
                .iter()
                .filter_map(|s| s["points"][0]["count"].as_u64())
                .sum();
            let (overflow, partial) =
                (&answer["completeness"]["overflow"], &answer["completeness"]["partial"]);
            assert_eq!(
                (total, overflow.as_u64(), partial),
                (counted, Some(456), &false.into()),
                "{extra:?}: {answer}"
            );
        }
        // Groups by a label show the overflow separately.
        let answer = ask(&[("by", "page")]);
        let counts: Vec<_> = answer["series"]
            .as_array()
            .expect("series")
            .iter()
            .map(|s| s["points"][0]["count"].as_u64().expect("a count"))
            .collect();
        assert_eq!(
            (counts, &answer["completeness"]["overflow"]),
            (vec![456, 2, 2], &456.into()),
            "{answer}"
        );
        // A query for the overflow series alone needs no separate count of it.
        for own in [&[("by", "__overflow__")][..], &[("where", "{__overflow__=\"true\"}")], &[]] {
            assert!(ask(own)["completeness"].get("overflow").is_none(), "{own:?}");
        }
    }
}

#[test]
fn an_owner_that_has_not_caught_up_or_stands_still_is_named_however_little_it_lacks() {
    // A stopped shard says so however little it lacks, and `stopped` outranks the other reasons.
    for (recovering, stopped, reason) in
        [(true, false, "recovering"), (false, true, "stopped"), (true, true, "stopped")]
    {
        let engine = with_memory(
            Memory { deltas: vec![], recovering, stopped },
            vec![events(Some("a"), START, 1)],
        );
        let params = [("metric".to_owned(), "m".to_owned())];
        for answer in [
            read_routes::query(&*engine, "t", &params, NOW + 50 * HOUR_MS, &QueryBudget::default())
                .expect("an answer"),
            read_routes::accounting(&*engine, "t", &[], NOW, &QueryBudget::default())
                .expect("books"),
            read_routes::metrics(&*engine, "t", &[], &QueryBudget::default()).expect("names"),
        ] {
            let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
            let expected = serde_json::json!([{"shard": 0, "reason": reason, "behind_ms": 0}]);
            assert_eq!(
                (&answer["completeness"]["partial"], &answer["completeness"]["missing"]),
                (&true.into(), &expected)
            );
        }
    }
}

#[test]
fn decimals_are_strings_for_readers_whose_numbers_are_doubles() {
    let exact = "123456789012345678.423456789";
    let engine = engine(100, &[("a", &[Some(exact)]), ("none", &[None])]);
    let aggs = ("agg", "count,sum,avg,min,max,distinct,p50");
    let answer = ask(&engine, &[aggs, ("numbers", "string")]).expect("an answer");
    let point = &answer["series"][0]["points"][0];
    for name in ["sum", "avg", "min", "max", "p50"] {
        assert_eq!(point[name], exact, "{name}");
        assert!(answer["series"][1]["points"][0][name].is_null(), "what has no value is no string");
    }
    assert_eq!((&point["count"], &point["distinct"]), (&1.into(), &0.into()));
    let plain = ask(&engine, &[aggs, ("numbers", "json")]).expect("an answer");
    assert!(plain["series"][0]["points"][0]["sum"].is_number());
    assert_eq!(ask(&engine, &[("numbers", "text")]).expect_err("refused").code, "numbers_invalid");
}

#[test]
fn a_table_holds_what_the_json_does_whatever_is_in_a_label() {
    let odd = ["a,b", "say \"x\"", "=1+1", " edge ", "München", "-5"];
    let series: Vec<(&str, &[Option<&str>])> = odd
        .iter()
        .map(|name| (*name, &[Some("-123456789012345678.423456789")][..]))
        .chain([("none", &[None][..])])
        .collect();
    let engine = engine(100, &series);
    let table = |extra: &[(&str, &str)]| {
        let params = [
            ("metric", "m"),
            ("by", "s,absent"),
            ("from", "1709164800000"),
            ("to", "1709424000000"),
        ];
        let params = params
            .iter()
            .chain(extra)
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<Vec<_>>();
        read_routes::table(&*engine, "t", &params, NOW, &QueryBudget::default())
    };
    let aggs = ("agg", "sum,count,p99.9");
    let found = table(&[aggs, ("format", "csv")]).expect("a table");
    assert!(
        found.csv.starts_with("time,s,absent,sum,count,p99.9\r\n") && found.csv.ends_with("\r\n"),
        "{}",
        found.csv
    );
    assert!(
        found.csv.contains(
            "\r\n2024-02-29T00:00:00Z,\"say \"\"x\"\"\",,-123456789012345678.423456789,1,"
        ),
        "{}",
        found.csv
    );
    assert!(
        found.csv.contains(",none,,,1,\r\n"),
        "what has no value is an empty cell: {}",
        found.csv
    );
    let mut rows = csv::Reader::from_reader(found.csv.as_bytes());
    let mut names: Vec<String> =
        rows.records().map(|row| row.expect("a row")[1].to_owned()).collect();
    names.sort_unstable();
    let mut expected: Vec<&str> = odd.iter().copied().chain(["none"]).collect();
    expected.sort_unstable();
    assert_eq!(names, expected, "as they were sent");
    let completeness: serde_json::Value = serde_json::from_str(&found.completeness).expect("JSON");
    assert_eq!((&completeness["partial"], &completeness["overflow"]), (&false.into(), &0.into()));
    // In local time; every cell is quoted, for readers that infer types from quotes.
    let found = table(&[aggs, ("tz", "Europe/Berlin"), ("step", "1d"), ("numbers", "string")])
        .expect("a table")
        .csv;
    assert!(
        found.starts_with("\"time\",\"s\"")
            && found.contains("\r\n\"2024-02-29T00:00:00+01:00\",\""),
        "{found}"
    );
    assert!(found.contains("\"-123456789012345678.423456789\",\"1\",\""), "{found}");
    assert_eq!(table(&[("format", "xml")]).expect_err("refused").code, "format_invalid");
    assert_eq!(
        ask(&engine, &[("format", "csv")]).expect_err("refused").code,
        "format_invalid",
        "a subscription is JSON"
    );
    let few = table(&[("step", "1h"), ("format", "json")]).expect("a table");
    assert_eq!(few.csv.lines().count(), 1 + series.len());
}
