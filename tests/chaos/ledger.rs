//! The events sent and acknowledged: the test oracle, independent of the code under test.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use crate::rng::Rng;

/// First hour of the events, in hours since the epoch: 2020-01-01.
pub const FIRST_HOUR: u64 = 438_288;
pub const HOURS: u64 = 48;
pub const METRICS: u64 = 4;
pub const PAGES: u64 = 25;
pub const DAYS: usize = (HOURS / 24) as usize;

/// One event as the client knows it.
pub struct Event {
    pub id: String,
    pub metric: u64,
    pub page: u64,
    pub hour: u64,
    pub minute: u64,
    pub value: Option<i64>,
    pub user: Option<u64>,
}

impl Event {
    pub fn draw(rng: &mut Rng, id: String) -> Self {
        Self {
            id,
            metric: rng.below(METRICS),
            page: rng.below(PAGES),
            hour: FIRST_HOUR + rng.below(HOURS),
            minute: rng.below(60),
            value: (!rng.chance(10)).then(|| rng.below(2_000) as i64 - 1_000),
            user: rng.chance(80).then(|| rng.below(500)),
        }
    }

    pub fn json(&self) -> String {
        let timestamp = (self.hour * 60 + self.minute) * 60_000;
        let value = self.value.map_or("null".to_owned(), |v| v.to_string());
        let user = self.user.map_or(String::new(), |u| format!(r#","user":"u{u}""#));
        let (metric, page, id) = (self.metric, self.page, &self.id);
        let head = format!(r#""metric":"m{metric}","timestamp":{timestamp},"value":{value}"#);
        format!(r#"{{{head},"labels":{{"page":"p{page}"}}{user},"id":"{id}"}}"#)
    }
}

/// The expected value of one rollup.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Expected {
    pub count: u64,
    pub sum: i64,
    pub min: Option<i64>,
    pub max: Option<i64>,
    pub users: BTreeSet<u64>,
}

impl Expected {
    fn add(&mut self, event: &Event) {
        self.count += 1;
        if let Some(value) = event.value {
            self.sum += value;
            self.min = Some(self.min.map_or(value, |m| m.min(value)));
            self.max = Some(self.max.map_or(value, |m| m.max(value)));
        }
        self.users.extend(event.user);
    }
}

/// Numbers of events, told apart by what replays do with them.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts([[[u64; 2]; DAYS]; METRICS as usize]);

impl Counts {
    fn add(&mut self, event: &Event) {
        let day = ((event.hour - FIRST_HOUR) / 24) as usize;
        self.0[event.metric as usize][day][usize::from(is_odd(event.page))] += 1;
    }

    pub fn total(&self) -> u64 {
        self.0.as_flattened().as_flattened().iter().sum()
    }

    /// The events of a metric and day: all, or those of odd pages only.
    pub fn of(&self, metric: u64, day: usize, only_odd: bool) -> u64 {
        let [even, odd] = self.0[metric as usize][day];
        if only_odd { odd } else { even + odd }
    }
}

/// Whether a page is one of those that stay when a replay drops pages.
pub fn is_odd(page: u64) -> bool {
    page % 2 == 1
}

#[derive(Default)]
pub struct Ledger {
    /// Expected rollups by (metric, page, hour).
    rows: Mutex<BTreeMap<(u64, u64, u64), Expected>>,
    /// (time of the acknowledgement in ms, events acknowledged by then).
    acks: Mutex<Vec<(i64, Counts)>>,
    sent: Mutex<Counts>,
    pub retries: AtomicU64,
    /// Number of 503 and 429 answers.
    pub refused: AtomicU64,
    pub resent: AtomicU64,
    /// Latency of the slowest batch in milliseconds, from its first attempt to its acknowledgement.
    pub slowest: AtomicU64,
}

impl Ledger {
    /// Records events before they are first sent.
    pub fn record_sent(&self, events: &[Event]) {
        let mut sent = self.sent.lock().expect("ledger");
        events.iter().for_each(|event| sent.add(event));
    }

    /// Records events after their first acknowledgement. The clock is read under the lock: if a
    /// client read it and then waited for the lock, its entry would land behind a later one, and
    /// `acked_before` would count events acknowledged after the requested time.
    pub fn record_acked(&self, events: &[Event], now: impl FnOnce() -> i64) {
        let mut rows = self.rows.lock().expect("ledger");
        for event in events {
            rows.entry((event.metric, event.page, event.hour)).or_default().add(event);
        }
        let mut acks = self.acks.lock().expect("ledger");
        let now = now();
        let (last, mut counts) = acks.last().copied().unwrap_or((now, Counts::default()));
        assert!(
            last <= now,
            "the machine's clock went back by {} ms: this run proves nothing",
            last - now
        );
        events.iter().for_each(|event| counts.add(event));
        acks.push((now, counts));
    }

    pub fn acked_before(&self, time: i64) -> Counts {
        let acks = self.acks.lock().expect("ledger");
        let below = acks.partition_point(|(at, _)| *at < time);
        below.checked_sub(1).map_or_else(Counts::default, |at| acks[at].1)
    }

    pub fn acked_total(&self) -> u64 {
        self.acks.lock().expect("ledger").last().map_or(0, |(_, counts)| counts.total())
    }

    pub fn sent(&self) -> Counts {
        *self.sent.lock().expect("ledger")
    }

    pub fn rows(&self) -> BTreeMap<(u64, u64, u64), Expected> {
        self.rows.lock().expect("ledger").clone()
    }
}
