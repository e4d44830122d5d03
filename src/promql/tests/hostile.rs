//! What is refused, and what must not break anything.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::model::budget::AbortReason;
use crate::model::share::SharePool;

fn refusal(text: &str) -> PromqlError {
    compile(text, Grid::at(12)).map(|_| ()).expect_err(text)
}

#[test]
fn what_is_not_exact_is_refused_with_the_way_out() {
    for (query, way_out) in [
        ("increase(m[90m])", "write 1h or 2h"),
        ("increase(m[5m])", "write 1h"),
        ("m offset 30m", "whole number of hours"),
        ("m @ 1", "whole number of hours"),
        ("max_over_time(m[2h:30m])", "whole number of hours"),
        ("irate(m[1h])", "there are increase, rate"),
        ("last_over_time(m[1h])", "there are increase, rate"),
        ("rate(sum(m)[2h:1h])", "there are count_over_time"),
        ("m[1h]", "use count_over_time"),
        ("sum(m)[2h:1h]", "use max_over_time"),
        ("histogram_quantile(0.9, count_over_time(m[1h]))", "takes native histograms"),
        ("histogram_quantile(0.9, avg(m))", "takes native histograms"),
        ("histogram_count(sum by (c) (count_over_time(m[1h])))", "takes native histograms"),
        ("histogram_sum(sum(sum without (c) (m > 1)))", "takes native histograms"),
        ("{c=\"DE\"}", "names no metric"),
        ("{__name__=~\"m.*\"}", "join several with `or`"),
        ("holt_winters(m[1h], 0.5, 0.5)", ""),
        ("day_of_week()", "not supported"),
    ] {
        let refused = refusal(query).to_string();
        assert!(refused.contains(way_out), "{query}: {refused}");
    }
}

#[test]
fn deep_and_large_queries_are_refused_before_they_are_parsed() {
    let nested = |depth: usize| format!("{}1{}", "(".repeat(depth), ")".repeat(depth));
    assert!(compile(&nested(100), Grid::at(0)).is_ok());
    for query in [
        nested(101),
        nested(8_000),
        format!("1{}", "+1".repeat(5_000)),
        format!("{}1", "-".repeat(10_000)),
        format!("1{}", " or 1".repeat(500)),
        format!("m{}", "[1h:1h]".repeat(500)),
        format!("m{{{}}}", "a=~\"b\",".repeat(40)),
        format!("m{{a=~\"{}\"}}", "(\\\\w{100}){100}".repeat(10)),
        "x".repeat(20_000),
        "m{a=\"b".to_owned(),
        "increase(m[99999999999999999999h])".to_owned(),
        "increase(m[1e400])".to_owned(),
        "increase(m[-1])".to_owned(),
        "increase(m[0x7])".to_owned(),
        "m offset 1e300".to_owned(),
        "m offset -1e300".to_owned(),
        "increase(m[4000000000y])".to_owned(),
        String::new(),
    ] {
        let refused = refusal(&query).to_string();
        assert!(refused.len() < 1_000, "{refused}");
    }
    let replaced = |times: usize| {
        let (start, end) = ("label_replace(", ", \"l\", \"$1\", \"l\", \"(a|b){99}\")");
        format!("{}vector(1){}", start.repeat(times), end.repeat(times))
    };
    assert!(compile(&replaced(32), Grid::at(0)).is_ok());
    assert!(refusal(&replaced(33)).to_string().contains("32 calls of label_replace"));
    let calls = format!("{}vector(1){}", "abs(".repeat(95), ")".repeat(95));
    assert_eq!(shown(&calls, Grid::at(0), &[]), "{} 1");
    let chain = format!("1{}", "+1".repeat(100));
    assert_eq!(shown(&chain, Grid::at(0), &[]), "101");
}

#[test]
fn labels_do_not_grow_by_calls_around_each_other() {
    let replaced = |inner: &str, times: usize| {
        let references = "$1".repeat(times);
        format!("label_replace({inner}, \"p\", \"{references}\", \"p\", \"(.*)\")")
    };
    let joined = |inner: &str, times: usize| {
        let sources = vec!["\"p\""; times].join(", ");
        format!("label_join({inner}, \"p\", \"\", {sources})")
    };
    for make in [&replaced as &dyn Fn(&str, usize) -> String, &joined] {
        let mut query = "m{c=\"FR\"}".to_owned();
        for _ in 0..8 {
            query = make(&query, 100);
        }
        let answer = shown(&query, Grid::at(12), EVENTS);
        assert!(answer.contains("at most 16384"), "{answer}");
        let answer = shown(&make(&make("m{c=\"FR\"}", 100), 100), Grid::at(12), EVENTS);
        assert!(answer.starts_with("{__name__=m,c=FR,p=aaa"), "{answer}");
        assert_eq!(answer.len(), "{__name__=m,c=FR,p=} 2".len() + 10_000);
    }
    for query in [
        "label_replace(m, \"\", \"x\", \"c\", \".*\")",
        "label_join(m, \"\", \"-\", \"c\")",
        "count_values(\"\", m)",
    ] {
        assert!(refusal(query).to_string().contains("empty name"), "{query}");
    }
}

#[test]
fn histograms_are_charged_as_they_are_made() {
    let (shares, tenant) = memory(8 << 20);
    let grid = Grid::range(1, 10_000, 1).expect("a grid");
    let query = compile("histogram_distinct(increase(m[10000h]))", grid).expect("compiles");
    let mut many = Rollup::default();
    (0..100_000_u64)
        .for_each(|user| many.add(None, Some(user.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
    let each = many.distinct.heap_bytes();
    assert!(each * grid.count > 16 << 20, "{each} bytes do not test it");
    let data = vec![vec![FetchedSeries { labels: Labels::default(), points: vec![(0, many)] }]];
    let budget = QueryBudget::from_share(shares.take(&tenant, 0).expect("nothing is there"));
    assert_eq!(evaluate(&query, &data, &budget), Err(EvalError::Ended(AbortReason::TooMuchMemory)));
    assert_eq!(budget.charged_bytes(), 0);
}

fn memory(total: u64) -> (Arc<SharePool>, Arc<str>) {
    (SharePool::new("query_memory", total, Arc::new(AtomicBool::new(true))), "t".into())
}

#[test]
fn huge_ranges_and_many_times_are_bounded() {
    assert!(Grid::range(0, 11_000, 1).is_err());
    assert!(Grid::range(i64::from(i32::MIN), i64::from(i32::MAX), 1).is_err());
    let grid = Grid::range(0, 10_999, 1).expect("as many as Prometheus takes");
    assert!(compile("max_over_time(sum(m)[2h:1h])", grid).is_err(), "more times than 11,000");
    assert!(compile("max_over_time(sum(m)[100y:1h])", Grid::at(12)).is_err());
    assert_eq!(shown("sum(count_over_time(m[900y]))", Grid::at(12), EVENTS), "{} 6");
    let selectors: Vec<String> = (0..33).map(|n| format!("a{n}")).collect();
    let many = refusal(&selectors.join(" or ")).to_string();
    assert!(many.contains("split it"), "{many}");
}

#[test]
fn an_evaluation_ends_with_its_budget() {
    let grid = Grid::range(0, 10_000, 1).expect("a grid");
    let query = compile("sum without (p) (m)", grid).expect("compiles");
    let data: Vec<_> = query.fetches.iter().map(|fetch| fetched(fetch, EVENTS)).collect();
    let budget = QueryBudget::default();
    budget.abort(AbortReason::TimedOut);
    let ended = evaluate(&query, &data, &budget);
    assert_eq!(ended, Err(EvalError::Ended(AbortReason::TimedOut)));
    assert_eq!(budget.charged_bytes(), 0);
}

#[test]
fn a_sum_beyond_128_bits_is_an_error_and_no_other_number() {
    let query = compile("sum_over_time(m[2h])", Grid::range(2, 3, 1).expect("a grid"));
    let query = query.expect("compiles");
    let mut half = Rollup::default();
    half.add(Some(Decimal::from_units(1)), None);
    half.figures.sum = i128::MAX / 2 + 1;
    let series = FetchedSeries {
        labels: Labels::default(),
        points: vec![(0, half.clone()), (HOUR_MS, half)],
    };
    let failed = evaluate(&query, &[vec![series]], &QueryBudget::default()).expect_err("too large");
    assert!(failed.to_string().contains("128 bits"), "{failed}");
}

#[test]
fn times_and_steps_are_those_of_prometheus() {
    assert_eq!(parse_time("1795458267.117"), Ok(1_795_458_267_117));
    assert_eq!(parse_time("1970-01-01T01:00:00+01:00"), Ok(0));
    for bad in ["", "now", "NaN", "inf", "1e300", "253370764801", "2026-01-01"] {
        assert!(parse_time(bad).is_err(), "{bad}");
    }
    assert_eq!(
        (parse_step("3600"), parse_step("1d"), parse_step("7200.0")),
        (Ok(1), Ok(24), Ok(2))
    );
    for bad in [
        "",
        "0",
        "-3600",
        "15",
        "1h30m",
        "NaN",
        "inf",
        "1e300",
        "h",
        "1d4294967296s",
        "1h9999999999m",
        &"1".repeat(9_999),
    ] {
        assert!(parse_step(bad).is_err(), "{bad}");
    }
    let step = parse_step("15s").expect_err("not whole hours").to_string();
    assert!(step.contains("scrape interval"), "{step}");
    assert_eq!((hour_at_or_before(-1), hour_at_or_before(HOUR_MS)), (-1, 1));
}
