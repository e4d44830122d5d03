//! Somebody who replays: asks one node after another, and never takes no answer for a no.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rollmill::api::replays::{Replay, ReplayDiff, ReplaysAnswer};
use serde_json::Value;

use crate::load::{get, within};

/// Longer than any step takes on a slow machine, where replays, which are nice, get little of it.
const PATIENCE: Duration = Duration::from_secs(600);

/// A client of the interface for replays.
pub struct Operator<'a> {
    urls: &'a [String],
    at: AtomicUsize,
    agent: ureq::Agent,
}

impl<'a> Operator<'a> {
    pub fn new(urls: &'a [String]) -> Self {
        Self { urls, at: AtomicUsize::new(0), agent: within(Duration::from_secs(10)) }
    }

    fn url(&self) -> &str {
        &self.urls[self.at.load(Ordering::SeqCst) % self.urls.len()]
    }

    fn go_on_with_another(&self) {
        self.at.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Reads until a node answers.
    fn read<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = get(&self.agent, &format!("{}{path}", self.url()));
            if let Some((200, answer)) = answer {
                return serde_json::from_value(answer).expect("an answer of this kind");
            }
            assert!(Instant::now() < deadline, "{path}: {answer:?}");
            self.go_on_with_another();
        }
    }

    pub fn list(&self) -> Vec<Replay> {
        self.read::<ReplaysAnswer>("/v1/replays").replays
    }

    pub fn find(&self, id: u64) -> Option<Replay> {
        self.list().into_iter().find(|replay| replay.id == id)
    }

    /// What a node says of itself and the shards.
    pub fn status(&self) -> Value {
        self.read("/v1/status")
    }

    /// The values of the label `tag` of a metric.
    pub fn tags(&self, metric: u64) -> Vec<String> {
        let answer: Value = self.read(&format!("/v1/labels/tag/values?metric=m{metric}"));
        let values = answer["values"].as_array().expect("values").clone();
        values.into_iter().map(|value| value.as_str().expect("a text").to_owned()).collect()
    }

    /// Reads the whole difference, and returns the number of rows that are not equal, and of all.
    pub fn differing(&self, id: u64) -> (u64, u64) {
        let (mut after, mut differing, mut all) = (String::new(), 0, 0);
        loop {
            let page: ReplayDiff = self.read(&format!("/v1/replays/{id}/diff?{after}"));
            let totals = page.totals;
            let unequal = totals.added + totals.removed + totals.changed;
            differing += unequal;
            all += unequal + totals.equal;
            let Some(next) = page.next else { return (differing, all) };
            after = format!("after={next}");
        }
    }

    /// Sends a request once. Its outcome is unknown if nobody answers or something is away.
    pub fn send(&self, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let body = body.map_or_else(String::new, Value::to_string);
        let request = self.agent.post(format!("{}{path}", self.url()));
        let answer = request.header("content-type", "application/json").send(body);
        let answer = answer.ok().and_then(|mut answer| {
            let text = answer.body_mut().read_to_string().ok()?;
            Some((answer.status().as_u16(), serde_json::from_str(&text).ok()?))
        });
        match &answer {
            Some((200 | 409 | 404, _)) => {}
            None | Some((503, _)) => self.go_on_with_another(),
            Some(other) => panic!("{path}: {other:?}"),
        }
        answer
    }

    /// Repeats until it is so.
    pub fn until(&self, what: impl Fn() -> String, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            let replays = || serde_json::to_string(&self.list()).unwrap_or_default();
            let late = Instant::now() >= deadline;
            assert!(!late, "not within {PATIENCE:?}: {}: {}", what(), replays());
            std::thread::sleep(Duration::from_millis(30));
        }
    }
}
