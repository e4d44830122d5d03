//! Queries over rollups made by hand.

mod hostile;
mod meaning;
mod operators;

use super::*;
use crate::model::budget::QueryBudget;
use crate::model::decimal::Decimal;
use crate::model::matcher::Matcher;
use crate::model::rollup::Rollup;
use crate::model::series::Series as ModelSeries;
use crate::model::window::{HOUR_MS, Millis};

/// Labels, time in milliseconds, value, user.
type Event = (&'static [(&'static str, &'static str)], Millis, Option<&'static str>, u64);

/// What the query engine answers for a fetch over events of the metric `m`.
fn fetched(fetch: &Fetch, events: &[Event]) -> Vec<FetchedSeries> {
    let mut found: Vec<FetchedSeries> = Vec::new();
    let hours = fetch.hours.start * HOUR_MS..fetch.hours.end * HOUR_MS;
    for (labels, time, value, user) in events {
        let owned = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let series = ModelSeries::new("t", "m", owned.clone());
        let matches = fetch.matchers.iter().all(|matcher: &Matcher| matcher.matches(&series));
        if fetch.metric != "m" || !hours.contains(time) || !matches {
            continue;
        }
        let labels = match &fetch.grouping {
            Grouping::Series => Labels::new(owned),
            Grouping::Labels(names) => Labels::new(owned).only(names),
        };
        let bucket = match fetch.unit {
            None => hours.start,
            Some(unit) => time.div_euclid(unit * HOUR_MS) * unit * HOUR_MS,
        };
        let at = found.iter().position(|known| known.labels == labels).unwrap_or_else(|| {
            found.push(FetchedSeries { labels, points: Vec::new() });
            found.len() - 1
        });
        let points = &mut found[at].points;
        let place = points.binary_search_by_key(&bucket, |(start, _)| *start);
        let place = place.unwrap_or_else(|place| {
            points.insert(place, (bucket, Rollup::default()));
            place
        });
        let value = value.map(|value| Decimal::parse(value).expect("a number"));
        points[place].1.add(value, Some(*user));
    }
    found
}

fn run(text: &str, grid: Grid, events: &[Event]) -> Result<Value, String> {
    let query = compile(text, grid).map_err(|error| error.to_string())?;
    let data: Vec<_> = query.fetches.iter().map(|fetch| fetched(fetch, events)).collect();
    let budget = QueryBudget::default();
    let value = evaluate(&query, &data, &budget).map_err(|error| error.to_string());
    assert_eq!(budget.charged_bytes(), 0, "what an evaluation holds is given back");
    value
}

/// The answer at one time as text, one series after the other.
fn shown(text: &str, grid: Grid, events: &[Event]) -> String {
    let one = |numbers: &[Option<f64>]| {
        let texts = numbers.iter().map(|n| n.map_or("-".to_owned(), format_number));
        texts.collect::<Vec<_>>().join(" ")
    };
    match run(text, grid, events) {
        Err(why) => format!("error: {why}"),
        Ok(Value::Scalar(numbers)) => one(&numbers.into_iter().map(Some).collect::<Vec<_>>()),
        Ok(Value::Vector(series)) => {
            let series = series.iter().map(|series| {
                let labels = series.labels.iter().map(|(name, value)| format!("{name}={value}"));
                format!("{{{}}} {}", labels.collect::<Vec<_>>().join(","), one(&series.numbers()))
            });
            series.collect::<Vec<_>>().join("; ")
        }
    }
}

const MINUTE: Millis = 60_000;
const fn at(hour: i64, minute: i64) -> Millis {
    hour * HOUR_MS + minute * MINUTE
}

/// Two series of hours 10 and 11, one of them with an event without a value.
const EVENTS: &[Event] = &[
    (&[("c", "DE"), ("p", "a")], at(10, 5), Some("1"), 1),
    (&[("c", "DE"), ("p", "a")], at(10, 6), Some("3"), 2),
    (&[("c", "DE"), ("p", "b")], at(10, 7), Some("10"), 1),
    (&[("c", "FR"), ("p", "a")], at(11, 0), Some("-2.5"), 3),
    (&[("c", "DE"), ("p", "a")], at(11, 59), Some("5"), 1),
    (&[("c", "FR"), ("p", "a")], at(11, 30), None, 4),
];
