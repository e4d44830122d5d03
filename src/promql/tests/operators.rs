//! Operators and functions of vectors.

use super::*;

fn noon(text: &str) -> String {
    shown(text, Grid::at(12), EVENTS)
}

#[test]
fn aggregations_work_on_the_series_of_a_group() {
    for (query, expected) in [
        ("sum(sum_over_time(m[2h]))", "{} 16.5"),
        ("count(m offset 1h)", "{} 2"),
        ("avg by (c) (count_over_time(m[2h]))", "{c=DE} 2; {c=FR} 2"),
        ("min(count_over_time(m[2h]))", "{} 1"),
        ("max(count_over_time(m[2h]))", "{} 3"),
        ("group(m)", "{} 1"),
        ("stdvar(count_over_time(m{c=\"DE\"}[2h]))", "{} 1"),
        ("stddev(count_over_time(m{c=\"DE\"}[2h]))", "{} 1"),
        ("quantile(0.5, count_over_time(m[2h]))", "{} 2"),
        ("topk(2, count_over_time(m[2h]))", "{c=DE,p=a} 3; {c=FR,p=a} 2"),
        ("bottomk(1, count_over_time(m[2h]))", "{c=DE,p=b} 1"),
        ("topk(0, m)", ""),
        ("topk by (c) (1, count_over_time(m[2h]))", "{c=DE,p=a} 3; {c=FR,p=a} 2"),
        ("count_values(\"n\", count_over_time(m[2h]))", "{n=1} 1; {n=2} 1; {n=3} 1"),
    ] {
        assert_eq!(noon(query), expected, "{query}");
    }
}

#[test]
fn operators_match_series_as_prometheus_does() {
    for (query, expected) in [
        ("sum(m) / sum(m offset 1h)", "{} 1"),
        ("m > 1", "{__name__=m,c=FR,p=a} 2"),
        ("m > bool 1", "{c=FR,p=a} 1; {c=DE,p=a} 0"),
        ("1 < m", "{__name__=m,c=FR,p=a} 2"),
        ("2 ^ 3 ^ 2", "512"),
        ("7 % 4", "3"),
        ("1 / 0", "+Inf"),
        ("1 > bool 2", "0"),
        ("count_over_time(m[2h]) - m", "{c=DE,p=a} 2; {c=FR,p=a} 0"),
        ("m and on (c) m{c=\"DE\"}", "{__name__=m,c=DE,p=a} 1"),
        ("m unless m{c=\"DE\"}", "{__name__=m,c=FR,p=a} 2"),
        ("m{c=\"DE\"} or m", "{__name__=m,c=DE,p=a} 1; {__name__=m,c=FR,p=a} 2"),
        ("sum by (c) (m) or vector(0)", "{c=FR} 2; {c=DE} 1; {} 0"),
        (
            "count_over_time(m[2h]) / on (c) group_left sum by (c) (count_over_time(m[2h]))",
            "{c=DE,p=a} 0.75; {c=DE,p=b} 0.25; {c=FR,p=a} 1",
        ),
        (
            "sum by (c) (m) * on (c) group_right count_over_time(m[2h])",
            "{c=DE,p=a} 3; {c=DE,p=b} 1; {c=FR,p=a} 4",
        ),
        ("sum by (c) (m) * on (c) group_left (p) m", "{c=DE,p=a} 1; {c=FR,p=a} 4"),
        ("sum by (c) (m) + ignoring (p) m", "{c=DE} 2; {c=FR} 4"),
    ] {
        assert_eq!(noon(query), expected, "{query}");
    }
    let many = "sum by (c) (m) * on (c) count_over_time(m[2h])";
    assert!(noon(many).starts_with("error: several series of one side"), "{}", noon(many));
    let many = "count_over_time(m[2h]) * on (c) sum by (c) (m)";
    assert!(noon(many).starts_with("error: several series match"), "{}", noon(many));
}

#[test]
fn functions_of_vectors_are_those_of_prometheus() {
    for (query, expected) in [
        ("abs(sum_over_time(m{c=\"FR\"}[2h]))", "{c=FR,p=a} 2.5"),
        ("round(vector(2.5))", "{} 3"),
        ("round(vector(-2.5))", "{} -2"),
        ("round(vector(2.34), 0.1)", "{} 2.3"),
        ("ceil(vector(1.2)) + floor(vector(1.8))", "{} 3"),
        ("sgn(vector(-3))", "{} -1"),
        ("clamp(vector(5), 1, 3)", "{} 3"),
        ("clamp(vector(5), 3, 1)", ""),
        ("clamp(vector(5), 0 / 0, 1)", "{} NaN"),
        ("clamp_min(vector(5), 7)", "{} 7"),
        ("clamp_max(vector(5), 4)", "{} 4"),
        ("sqrt(vector(16)) + log2(vector(8))", "{} 7"),
        ("sort(m)", "{__name__=m,c=DE,p=a} 1; {__name__=m,c=FR,p=a} 2"),
        ("sort_desc(m)", "{__name__=m,c=FR,p=a} 2; {__name__=m,c=DE,p=a} 1"),
        ("scalar(sum(m)) * 2", "6"),
        ("absent(other{c=\"x\"})", "{c=x} 1"),
        ("absent(other{c=\"x\", c=\"y\", p=\"a\"})", "{p=a} 1"),
        ("absent(other{c=\"x\", c!=\"y\", p!=\"a\"})", "{} 1"),
        ("absent_over_time(other{c=\"x\", c=~\"y\", p=\"a\"}[1h])", "{p=a} 1"),
        // What is no number is the smallest, whatever its sign.
        ("quantile(0, m * (0 / 0) or vector(1))", "{} NaN"),
        ("quantile(0, -(m * (0 / 0)) or vector(1))", "{} NaN"),
        ("quantile(1, m * (0 / 0) or vector(1))", "{} 1"),
        ("label_join(m{c=\"DE\"}, \"l\", \"-\", \"c\", \"p\")", "{__name__=m,c=DE,l=DE-a,p=a} 1"),
        ("pi() > bool 3", "1"),
    ] {
        assert_eq!(noon(query), expected, "{query}");
    }
    let same = "label_replace(m, \"c\", \"\", \"c\", \".*\")";
    assert!(noon(same).contains("same labels at the same time"), "{}", noon(same));
}
