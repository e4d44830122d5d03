//! What selectors and functions of ranges mean.

use super::*;

fn noon(text: &str) -> String {
    shown(text, Grid::at(12), EVENTS)
}

#[test]
fn functions_of_ranges_are_the_aggregates() {
    for (query, expected) in [
        ("count_over_time(m[1h])", "{c=FR,p=a} 2; {c=DE,p=a} 1"),
        ("count_over_time(m[2h])", "{c=DE,p=a} 3; {c=DE,p=b} 1; {c=FR,p=a} 2"),
        ("sum_over_time(m[2h])", "{c=DE,p=a} 9; {c=DE,p=b} 10; {c=FR,p=a} -2.5"),
        ("avg_over_time(m[2h])", "{c=DE,p=a} 3; {c=DE,p=b} 10; {c=FR,p=a} -2.5"),
        ("min_over_time(m[2h])", "{c=DE,p=a} 1; {c=DE,p=b} 10; {c=FR,p=a} -2.5"),
        ("max_over_time(m{c=\"DE\"}[2h])", "{c=DE,p=a} 5; {c=DE,p=b} 10"),
        ("quantile_over_time(0.5, m{p=\"b\"}[2h])", "{c=DE,p=b} 10"),
        ("quantile_over_time(2, m{p=\"b\"}[2h])", "{c=DE,p=b} +Inf"),
        ("present_over_time(m[1h])", "{c=FR,p=a} 1; {c=DE,p=a} 1"),
        ("increase(m[1h])", "{c=FR,p=a} 2; {c=DE,p=a} 1"),
        ("rate(m{c=\"FR\"}[1h]) * 3600", "{c=FR,p=a} 2"),
        ("distinct_over_time(m[2h])", "{c=DE,p=a} 2; {c=DE,p=b} 1; {c=FR,p=a} 2"),
        ("count_over_time(m[1h] offset 1h)", "{c=DE,p=a} 2; {c=DE,p=b} 1"),
        ("count_over_time(m[1h] @ 39600)", "{c=DE,p=a} 2; {c=DE,p=b} 1"),
        ("count_over_time(m[1h] offset -1h)", ""),
        ("count_over_time(other[1h])", ""),
        ("absent_over_time(m[1h])", ""),
        ("absent_over_time(other{c=\"x\"}[1h])", "{c=x} 1"),
    ] {
        assert_eq!(noon(query), expected, "{query}");
    }
}

#[test]
fn a_selector_alone_is_the_histogram_of_the_hour_before() {
    for (query, expected) in [
        ("m", "{__name__=m,c=FR,p=a} 2; {__name__=m,c=DE,p=a} 1"),
        ("{__name__=\"m\",c=\"FR\"}", "{__name__=m,c=FR,p=a} 2"),
        ("sum(m)", "{} 3"),
        ("sum by (c) (m)", "{c=FR} 2; {c=DE} 1"),
        ("sum without (p) (m)", "{c=DE} 1; {c=FR} 2"),
        ("-m", "{c=FR,p=a} -2; {c=DE,p=a} -1"),
        ("histogram_count(m)", "{c=FR,p=a} 2; {c=DE,p=a} 1"),
        ("histogram_sum(sum(increase(m[2h])))", "{} 16.5"),
        ("histogram_avg(sum by (c) (increase(m[2h])))", "{c=DE} 4.75; {c=FR} -2.5"),
        ("histogram_quantile(1, sum without (c) (increase(m[2h])))", "{p=a} 4.999610368; {p=b} 10"),
        ("histogram_quantile(0, sum by (c) (rate(m[2h])))", "{c=DE} 1.002438656; {c=FR} -2.5"),
        ("histogram_distinct(sum(increase(m[2h])))", "{} 4"),
        ("histogram_sum(rate(m{p=\"b\"}[2h])) * 7200", "{c=DE,p=b} 10"),
        (
            "histogram_count(label_replace(m, \"c\", \"$1\", \"c\", \"(.).*\"))",
            "{c=F,p=a} 2; {c=D,p=a} 1",
        ),
    ] {
        assert_eq!(noon(query), expected, "{query}");
    }
}

#[test]
fn a_query_over_time_has_a_value_at_each_hour_that_has_one() {
    let grid = Grid::range(10, 13, 1).expect("a grid");
    for (query, expected) in [
        ("sum(count_over_time(m[1h]))", "{} - 3 3 -"),
        ("sum(sum_over_time(m[2h]))", "{} - 14 16.5 2.5"),
        ("max(max_over_time(m[1h]))", "{} - 10 5 -"),
        ("sum by (c) (m)", "{c=DE} - 3 1 -; {c=FR} - - 2 -"),
        ("sum(count_over_time(m[24h]))", "{} - 3 6 6"),
        ("sum(count_over_time(m[24h] @ end()))", "{} 6 6 6 6"),
        ("sum(count_over_time(m[1h] @ start() offset -1h))", "{} 3 3 3 3"),
        ("1 + 1", "2 2 2 2"),
        ("time()", "36000 39600 43200 46800"),
        ("vector(1)", "{} 1 1 1 1"),
        ("absent(m)", "{} 1 - - 1"),
        ("scalar(sum(m))", "NaN 3 3 NaN"),
        ("max_over_time(sum(m)[2h:1h])", "{} - 3 3 3"),
        ("sum_over_time(sum(m)[2h:])", "{} - 3 6 3"),
        ("count_over_time(sum(m)[2h:2h])", "{} - - 1 1"),
        ("last_over_time(m{p=\"b\"}[3h:1h])", "{__name__=m,c=DE,p=b} - 1 1 1"),
    ] {
        assert_eq!(shown(query, grid, EVENTS), expected, "{query}");
    }
}

#[test]
fn figures_are_read_in_the_longest_steps_that_the_times_allow() {
    let unit = |query: &str, grid: Grid| compile(query, grid).expect("compiles").fetches[0].unit;
    let days = Grid::range(48, 96, 24).expect("a grid");
    let hours = Grid::range(48, 50, 1).expect("a grid");
    assert_eq!(unit("increase(m[1d])", days), Some(24));
    assert_eq!(unit("increase(m[6h])", days), Some(6));
    assert_eq!(unit("increase(m[1d] offset 1h)", days), Some(1));
    assert_eq!(unit("increase(m[1d])", hours), Some(1));
    assert_eq!(unit("increase(m[1d])", Grid::at(7)), None);
    assert_eq!(unit("increase(m[1d] @ 3600)", hours), None);
}

#[test]
fn sums_are_grouped_while_reading_and_read_once() {
    let of = |query: &str| compile(query, Grid::at(12)).expect("compiles").fetches;
    let grouping = |query: &str| of(query)[0].grouping.clone();
    let by_c = Grouping::Labels(vec!["c".to_owned()]);
    for query in [
        "sum by (c) (m)",
        "sum by (c) ((increase(m[1h])))",
        "sum(rate(m[1h])) by (c)",
        "min by (c) (min_over_time(m[1h]))",
        "max by (c) (max_over_time(m[1h]))",
        "histogram_quantile(0.9, sum by (c) (rate(m[1h])))",
    ] {
        assert_eq!(grouping(query), by_c, "{query}");
    }
    for query in [
        "sum without (c) (m)",
        "sum by (__name__) (m)",
        "sum by (c) (distinct_over_time(m[1h]))",
        "avg by (c) (avg_over_time(m[1h]))",
        "max by (c) (min_over_time(m[1h]))",
    ] {
        assert_eq!(grouping(query), Grouping::Series, "{query}");
    }
    assert_eq!(of("sum(m) / sum(m) + sum(m)").len(), 1);
    assert_eq!(of("sum(m) / sum(m offset 1h)").len(), 2);
}
