//! Replays under kills: what each generation holds, and what may be served at any moment.
//!
//! Every correction gives each event that it counts a label of its own, `tag`, so an answer shows
//! which generation each of its figures came from. The operator notes what may be served before it
//! asks for a change, and what is served once it knows; a reader holds every answer against that.

mod drill;
mod embedded;
mod operator;
mod reader;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use rollmill::model::generation::GenerationId;
use rollmill::model::window::Hour;
use rollmill::persistence::store::SnapshotSource;
use serde_json::{Value, json};

pub use self::drill::{Drill, Faults, Phase};
pub use self::reader::reader;
use crate::ledger::{DAYS, Expected, FIRST_HOUR, Ledger, METRICS, is_odd};
use crate::load::{as_of_ms, await_answer, range};
use crate::now;
use crate::rng::Rng;

/// The generation served of each metric on each day.
pub type Served = [[u64; DAYS]; METRICS as usize];

/// What a generation does with events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    /// The value of the label `tag` of its series; empty without rules.
    pub tag: String,
    /// Whether the events of even pages are dropped.
    pub only_odd: bool,
    /// By which its values are multiplied.
    pub factor: i64,
    pub metrics: Vec<u64>,
    pub days: Range<usize>,
    pub is_open: bool,
}

impl Correction {
    /// What ingest makes, and a replay without rules.
    pub fn none(metrics: Vec<u64>) -> Self {
        let (tag, days) = (String::new(), 0..DAYS);
        Self { tag, only_odd: false, factor: 1, metrics, days, is_open: true }
    }

    /// Rules that say whose they are.
    pub fn draw(rng: &mut Rng, tag: String, days: Range<usize>) -> Self {
        let first = rng.below(METRICS);
        let mut metrics = vec![first, (first + 1 + rng.below(METRICS - 1)) % METRICS];
        metrics.sort_unstable();
        let is_open = days.end == DAYS && rng.chance(50);
        let factor = 2 + rng.below(4) as i64;
        Self { tag, only_odd: rng.chance(60), factor, metrics, days, is_open }
    }

    /// The request that starts it.
    pub fn request(&self) -> Value {
        let date = |day: usize| format!("2020-01-{:02}", day + 1);
        let metrics: Vec<String> = self.metrics.iter().map(|metric| format!("m{metric}")).collect();
        let mut request = json!({"metrics": metrics, "from": date(self.days.start)});
        if !self.is_open {
            request["to"] = date(self.days.end).into();
        }
        if !self.tag.is_empty() {
            let even = json!({"name": "even pages", "drop": true,
                "where": {"labels": r#"{page=~"p.*[02468]"}"#}});
            let scale = json!({"name": "scale", "scale_value": {"multiply": self.factor}});
            let tag = json!({"name": "tag", "set_label": {"label": "tag", "value": self.tag}});
            let even = Some(even).filter(|_| self.only_odd);
            request["rules"] =
                json!({"rule": even.into_iter().chain([scale, tag]).collect::<Vec<_>>()});
        }
        request
    }

    fn corrected(&self, row: Expected) -> Expected {
        let scaled = |value: Option<i64>| value.map(|value| value * self.factor);
        let Expected { count, sum, min, max, users } = row;
        Expected { count, sum: sum * self.factor, min: scaled(min), max: scaled(max), users }
    }
}

/// What is known of the replays of a run.
pub struct World<'a> {
    pub urls: &'a [String],
    pub ledger: &'a Ledger,
    corrections: Mutex<BTreeMap<u64, Correction>>,
    /// What may be served since each change; the last entry is what may be served now.
    history: Mutex<Vec<Vec<Served>>>,
}

impl<'a> World<'a> {
    pub fn new(urls: &'a [String], ledger: &'a Ledger) -> Self {
        let ingest = BTreeMap::from([(0, Correction::none((0..METRICS).collect()))]);
        Self {
            urls,
            ledger,
            corrections: Mutex::new(ingest),
            history: Mutex::new(vec![vec![Served::default()]]),
        }
    }

    pub fn note_started(&self, id: u64, correction: &Correction) {
        self.corrections.lock().expect("no panic").insert(id, correction.clone());
    }

    pub fn correction(&self, id: u64) -> Correction {
        let known = self.corrections.lock().expect("no panic");
        known.get(&id).unwrap_or_else(|| panic!("replay {id} was never started")).clone()
    }

    fn ids(&self) -> Vec<u64> {
        self.corrections.lock().expect("no panic").keys().copied().filter(|id| *id > 0).collect()
    }

    /// What is served, if no change is under way.
    pub fn served(&self) -> Served {
        let history = self.history.lock().expect("no panic");
        let [served] = history.last().expect("a first state")[..] else {
            panic!("a change is under way")
        };
        served
    }

    /// From now on, what is served or this may be served.
    pub fn note_change(&self, to: Served) {
        let from = self.served();
        self.history.lock().expect("no panic").push(vec![from, to]);
    }

    /// From now on, this is served.
    pub fn note_served(&self, served: Served) {
        self.history.lock().expect("no panic").push(vec![served]);
    }

    fn moment(&self) -> usize {
        self.history.lock().expect("no panic").len() - 1
    }

    /// All that may have been served since a moment.
    fn possible_since(&self, moment: usize) -> Vec<Served> {
        self.history.lock().expect("no panic")[moment..].concat()
    }

    /// The rows that queries must give, by metric, page, hour and tag.
    fn expected(&self) -> BTreeMap<(u64, u64, u64, String), Expected> {
        let served = self.served();
        let corrected = |((metric, page, hour), row): ((u64, u64, u64), Expected)| {
            let day = ((hour - FIRST_HOUR) / 24) as usize;
            let correction = self.correction(served[metric as usize][day]);
            let is_counted = is_odd(page) || !correction.only_odd;
            is_counted
                .then(|| ((metric, page, hour, correction.tag.clone()), correction.corrected(row)))
        };
        self.ledger.rows().into_iter().filter_map(corrected).collect()
    }

    /// Checks that what is served is exactly what the ledger says, corrected.
    pub fn check(&self) {
        let mut expected = self.expected();
        let everything = now();
        for metric in 0..METRICS {
            let path = format!(
                "/v1/query?metric=m{metric}&{}&by=page,tag&agg=count,sum,min,max,distinct",
                range()
            );
            let answer = await_answer(self.urls, &path, |answer| as_of_ms(answer) >= everything);
            for series in answer["series"].as_array().expect("series") {
                for point in series["points"].as_array().expect("points") {
                    let key = row_key(metric, &series["labels"], point);
                    let want = expected.remove(&key);
                    let want = want.unwrap_or_else(|| panic!("row {key:?} must not be"));
                    let figure = |name: &str| point[name].as_i64();
                    let found = Expected {
                        count: point["count"].as_u64().expect("a count"),
                        sum: figure("sum").unwrap_or(0),
                        min: figure("min"),
                        max: figure("max"),
                        users: Default::default(),
                    };
                    let distinct = point["distinct"].as_u64();
                    assert_eq!(distinct, Some(want.users.len() as u64), "distinct of {key:?}");
                    assert_eq!(found, Expected { users: Default::default(), ..want }, "{key:?}");
                }
            }
        }
        let lost = expected.first_key_value();
        assert!(lost.is_none(), "{} rows are lost, such as {lost:?}", expected.len());
    }
}

fn row_key(metric: u64, labels: &Value, point: &Value) -> (u64, u64, u64, String) {
    let page = labels["page"].as_str().expect("a page")[1..].parse().expect("a number");
    (metric, page, hour_of(point), tag_of(labels))
}

fn tag_of(labels: &Value) -> String {
    labels["tag"].as_str().unwrap_or_default().to_owned()
}

/// The hour at which a point begins.
fn hour_of(point: &Value) -> u64 {
    let time: jiff::Timestamp = point["t"].as_str().expect("t").parse().expect("a time");
    (time.as_millisecond() / 3_600_000) as u64
}

/// Rows of a metric in a generation.
pub fn rows_of(store: &dyn SnapshotSource, generation: u64, metric: u64) -> u64 {
    let mut snapshot = store.snapshot().expect("a snapshot");
    let (metric, hours) = (format!("m{metric}"), (Hour(i32::MIN), Hour(i32::MAX)));
    let mut rows = 0;
    let mut visit = |_, _: &_, _, _, _: &[u8]| {
        rows += 1;
        Ok(())
    };
    let generation = GenerationId(generation);
    snapshot
        .generation_rows(generation, ("default", &metric), hours, &mut visit)
        .expect("the rows");
    rows
}

/// Rows of all metrics in these generations.
pub fn rows(store: &dyn SnapshotSource, generations: impl Iterator<Item = u64>) -> u64 {
    let all = |id| (0..METRICS).map(move |metric| rows_of(store, id, metric));
    generations.flat_map(all).sum()
}
