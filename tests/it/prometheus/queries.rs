//! The generated queries, each in the words of Prometheus 2 too.

use crate::rng::Rng;

/// How closely two numbers agree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Agreement {
    Exact,
    /// Averages, deviations and products of doubles, which are rounded in another order.
    Rounding,
    /// Within 1 %.
    Sketch,
}

/// One question for both.
#[derive(Debug)]
pub struct Question {
    pub ours: String,
    pub theirs: String,
    pub agreement: Agreement,
}

const SELECTORS: &[&str] = &[
    "",
    "{country=\"DE\"}",
    "{country!=\"FR\"}",
    "{page=~\"a|b\"}",
    "{page!~\"a.*\",country=~\"..\"}",
    "{country=\"\"}",
];
const RANGES: &[i64] = &[1, 2, 6, 24];
const GROUPS: &[&str] =
    &["", " by (country)", " by (page)", " by (country, page)", " without (page)", " by (nothing)"];

/// A question, and the same without native histograms.
struct Pair(String, String, Agreement);

/// A vector of one number for each series.
fn vector(rng: &mut Rng) -> Pair {
    let metric = ["page_view", "load_time"][rng.below(2) as usize];
    let selector = SELECTORS[rng.below(SELECTORS.len() as u64) as usize];
    let hours = RANGES[rng.below(RANGES.len() as u64) as usize];
    let offset = ["", "", " offset 1h", " offset -1h", " offset 1d"][rng.below(5) as usize];
    let events = format!("{metric}{selector}[{hours}h]{offset}");
    let same = |text: String, agreement| Pair(text.clone(), text, agreement);
    match rng.below(9) {
        0 => same(format!("count_over_time({events})"), Agreement::Exact),
        1 => same(format!("sum_over_time({events})"), Agreement::Exact),
        2 => same(format!("min_over_time({events})"), Agreement::Exact),
        3 => same(format!("max_over_time({events})"), Agreement::Exact),
        4 => same(format!("avg_over_time({events})"), Agreement::Rounding),
        5 => {
            let q = ["0", "0.5", "0.9", "0.95", "0.99", "1"][rng.below(6) as usize];
            same(format!("quantile_over_time({q}, {events})"), Agreement::Sketch)
        }
        6 => same(format!("present_over_time({events})"), Agreement::Exact),
        7 => Pair(
            format!("increase({events})"),
            format!("count_over_time({events})"),
            Agreement::Exact,
        ),
        _ => Pair(
            format!("rate({events})"),
            format!("(count_over_time({events}) / {})", hours * 3_600),
            Agreement::Rounding,
        ),
    }
}

fn worse(a: Agreement, b: Agreement) -> Agreement {
    match (a, b) {
        (Agreement::Exact, other) | (other, Agreement::Exact) => other,
        (Agreement::Sketch, _) | (_, Agreement::Sketch) => Agreement::Sketch,
        _ => Agreement::Rounding,
    }
}

fn aggregate(rng: &mut Rng) -> Pair {
    let Pair(ours, theirs, agreement) = vector(rng);
    let group = GROUPS[rng.below(GROUPS.len() as u64) as usize];
    let (operator, own) = [
        ("sum", Agreement::Exact),
        ("min", Agreement::Exact),
        ("max", Agreement::Exact),
        ("count", Agreement::Exact),
        ("group", Agreement::Exact),
        ("avg", Agreement::Rounding),
        ("stddev", Agreement::Rounding),
        ("stdvar", Agreement::Rounding),
    ][rng.below(8) as usize];
    // Deviations of quantiles magnify the sketch's error.
    if agreement == Agreement::Sketch && operator.starts_with("std") {
        return aggregate(rng);
    }
    let of = |text: String| format!("{operator}{group} ({text})");
    Pair(of(ours), of(theirs), worse(agreement, own))
}

/// A vector whose numbers are exact, so that comparing them has one result.
fn exact(rng: &mut Rng, make: impl Fn(&mut Rng) -> Pair) -> Pair {
    loop {
        let pair = make(rng);
        if pair.2 == Agreement::Exact {
            return pair;
        }
    }
}

fn ranked(rng: &mut Rng) -> Pair {
    let Pair(ours, theirs, _) = exact(rng, vector);
    let (operator, k) = (["topk", "bottomk"][rng.below(2) as usize], 1 + rng.below(3));
    // Numbers that tie may be ranked in any order: how many there are, and how large, is the same.
    let of =
        |text: String| format!("sum by (country) ({operator}({k}, sum by (country) ({text})))");
    let count = |text: String| format!("sum({operator}({k}, {text}))");
    if rng.chance(50) {
        Pair(count(ours), count(theirs), Agreement::Exact)
    } else {
        let own = |text: &str| text.contains("sum_over_time").then(|| text.to_owned());
        match (own(&ours), own(&theirs)) {
            (Some(ours), Some(theirs)) => Pair(of(ours), of(theirs), Agreement::Exact),
            _ => ranked(rng),
        }
    }
}

fn binary(rng: &mut Rng) -> Pair {
    let operator = ["+", "-", "*", "/", "%", "^", ">", "<=", "== bool", "!= bool", "> bool"]
        [rng.below(11) as usize];
    let agreement = match operator {
        "/" | "*" | "^" => Agreement::Rounding,
        _ => Agreement::Exact,
    };
    let (left, right) = (exact(rng, vector), exact(rng, vector));
    let of = |left: &str, right: &str| match rng_case(operator) {
        0 => format!("({left}) {operator} on (country, page) ({right})"),
        1 => format!("({left}) {operator} ignoring (nothing) ({right})"),
        _ => format!("({left}) {operator} 2"),
    };
    let pair = Pair(of(&left.0, &right.0), of(&left.1, &right.1), agreement);
    match rng.below(4) {
        0 => {
            let of = |text: &str, total: &str| {
                format!("({text}) {operator} on (country) group_left () sum by (country) ({total})")
            };
            Pair(of(&left.0, &right.0), of(&left.1, &right.1), agreement)
        }
        1 => {
            let of = |total: &str, text: &str| {
                format!("sum by (page) ({total}) {operator} on (page) group_right () ({text})")
            };
            Pair(of(&left.0, &right.0), of(&left.1, &right.1), agreement)
        }
        _ => pair,
    }
}

/// Which form of matching an operator is asked with.
fn rng_case(operator: &str) -> usize {
    match operator {
        "+" | ">" | "== bool" => 0,
        "-" | "/" | "<=" => 1,
        _ => 2,
    }
}

fn set(rng: &mut Rng) -> Pair {
    let operator = ["and", "or", "unless"][rng.below(3) as usize];
    let matching = ["", " on (country)", " ignoring (page)"][rng.below(3) as usize];
    let (left, right) = (exact(rng, vector), exact(rng, vector));
    let of = |left: &str, right: &str| format!("({left}) {operator}{matching} ({right})");
    Pair(of(&left.0, &right.0), of(&left.1, &right.1), Agreement::Exact)
}

fn subquery(rng: &mut Rng) -> Pair {
    let Pair(ours, theirs, agreement) = exact(rng, aggregate);
    let (function, own) = [
        ("max", Agreement::Exact),
        ("min", Agreement::Exact),
        ("sum", Agreement::Exact),
        ("count", Agreement::Exact),
        ("last", Agreement::Exact),
        ("avg", Agreement::Rounding),
        ("stddev", Agreement::Rounding),
    ][rng.below(7) as usize];
    let hours = RANGES[rng.below(RANGES.len() as u64) as usize].max(2);
    let step = 1 + rng.below(2);
    let offset = ["", " offset 2h"][rng.below(2) as usize];
    // Prometheus 2 counts the start of a range to it: a second less keeps it out.
    let of = |text: &str, range: String| {
        format!("{function}_over_time(({text})[{range}:{step}h]{offset})")
    };
    let theirs = of(&theirs, format!("{}s", hours * 3_600 - 1));
    Pair(of(&ours, format!("{hours}h")), theirs, worse(agreement, own))
}

fn function(rng: &mut Rng) -> Pair {
    let Pair(ours, theirs, _) = exact(rng, aggregate);
    let form = [
        "abs(0 - X)",
        "-(X)",
        "ceil((X) / 4)",
        "floor((X) / 4)",
        "round((X) / 4)",
        "round((X) / 4, 2)",
        "clamp(X, 2, 5)",
        "clamp_min(X, 3)",
        "clamp_max(X, 3)",
        "sgn((X) - 3)",
        "sqrt(X)",
        "scalar(sum(X)) + 1",
        "vector(scalar(max(X)))",
        "absent(X)",
        "label_replace(X, \"c\", \"$1\", \"country\", \"(.).*\")",
        "label_join(X, \"l\", \"-\", \"country\", \"page\")",
        "(X) @ end()",
        "quantile(0.5, X)",
        "count_values(\"n\", X)",
    ][rng.below(19) as usize];
    let is_rounded = form.contains("quantile") || form.contains("sqrt");
    // @ stands behind selectors alone.
    if form.contains('@') {
        let of = |text: &str| text.replace("h])", "h] @ end())");
        return Pair(of(&ours), of(&theirs), Agreement::Exact);
    }
    let agreement = if is_rounded { Agreement::Rounding } else { Agreement::Exact };
    Pair(form.replace('X', &ours), form.replace('X', &theirs), agreement)
}

/// Native histograms, and what gives the same numbers of the same events without them.
fn histogram(rng: &mut Rng) -> Pair {
    let selector = SELECTORS[rng.below(SELECTORS.len() as u64) as usize];
    let hours = RANGES[rng.below(RANGES.len() as u64) as usize];
    let events = format!("load_time{selector}[{hours}h]");
    let group = GROUPS[rng.below(GROUPS.len() as u64) as usize];
    let merged = format!("sum{group} (increase({events}))");
    let of = |function: &str| format!("sum{group} ({function}({events}))");
    match rng.below(6) {
        0 => Pair(format!("histogram_count({merged})"), of("count_over_time"), Agreement::Exact),
        1 => Pair(format!("histogram_sum({merged})"), of("sum_over_time"), Agreement::Exact),
        2 => Pair(
            format!("histogram_avg({merged})"),
            format!("{} / {}", of("sum_over_time"), of("count_over_time")),
            Agreement::Rounding,
        ),
        3 => Pair(
            format!("histogram_quantile(1, {merged})"),
            format!("max{group} (max_over_time({events}))"),
            Agreement::Sketch,
        ),
        4 => Pair(
            format!("histogram_quantile(0, {merged})"),
            format!("min{group} (min_over_time({events}))"),
            Agreement::Sketch,
        ),
        _ => Pair(
            format!("sum{group} (load_time{selector})"),
            format!("sum{group} (count_over_time(load_time{selector}[1h]))"),
            Agreement::Exact,
        ),
    }
}

fn scalar(rng: &mut Rng) -> Pair {
    let text = ["1 + 1", "2 ^ 3 ^ 2", "7 % 4 - 1 / 8", "time()", "1 < bool 2", "-time() / 3600"]
        [rng.below(6) as usize];
    Pair(text.to_owned(), text.to_owned(), Agreement::Exact)
}

/// As many different questions.
pub fn questions(count: usize) -> Vec<Question> {
    let mut rng = Rng(42);
    let mut found: Vec<Question> = Vec::new();
    while found.len() < count {
        let Pair(ours, theirs, agreement) = match rng.below(20) {
            0..5 => vector(&mut rng),
            5..9 => aggregate(&mut rng),
            9..11 => ranked(&mut rng),
            11..13 => binary(&mut rng),
            13 => set(&mut rng),
            14..16 => subquery(&mut rng),
            16 => function(&mut rng),
            17..19 => histogram(&mut rng),
            _ => scalar(&mut rng),
        };
        if found.iter().all(|known| known.ours != ours) {
            found.push(Question { ours, theirs, agreement });
        }
    }
    found
}
