//! The oracle: what the rollups must be, literally from the definitions, in plain maps. It
//! uses nothing of `shards/`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rollmill::model::batch::RoutedSeries;
use rollmill::model::decimal::Decimal;
use rollmill::model::generation::GenerationId;
use rollmill::model::rollup::Rollup;
use rollmill::model::series::{Series, SeriesId};

pub const TENANTS: [&str; 2] = ["acme", "zeta"];
pub const METRIC: &str = "views";
pub const POISON: &str = "poison";
const PAGES: [&str; 6] = ["", "a", "b", "c", "d", "e"];
const HOUR_MS: i64 = 3_600_000;

/// An event that a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimEvent {
    /// Index into [`series`].
    pub series: usize,
    pub timestamp: i64,
    pub value: Option<i64>,
    pub user: Option<u8>,
    pub id: Option<u32>,
    pub poison: bool,
}

impl SimEvent {
    /// Its value and the hash of its user.
    pub fn figures(&self) -> (Option<Decimal>, Option<u64>) {
        let user = if self.poison { Some(POISON.to_owned()) } else { self.user.map(users) };
        let user = user.map(|u| xxhash_rust::xxh3::xxh3_64(u.as_bytes()));
        (self.value.map(|v| Decimal::from_units(v.into())), user)
    }
}

/// The id of the series of a page.
pub fn series_id(tenant: usize, page: &str) -> SeriesId {
    let at = PAGES.iter().position(|known| *known == page).expect("a known page");
    series(1)[tenant * PAGES.len() + at].id
}

/// A record in the log. It has no events if its payload does not decode.
#[derive(Debug, Clone)]
pub struct LoggedRecord {
    pub appended: i64,
    pub received: i64,
    pub payload: bytes::Bytes,
    pub events: Option<Vec<SimEvent>>,
}

/// The page of a series.
pub fn page_of(series: usize) -> &'static str {
    PAGES[series % PAGES.len()]
}

/// All series: every page of both tenants.
pub fn series(shard_count: u32) -> &'static [Arc<RoutedSeries>] {
    static ALL: OnceLock<[Vec<Arc<RoutedSeries>>; 2]> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        [1, 2].map(|count| {
            TENANTS.into_iter().flat_map(|t| PAGES.map(|p| routed(t, p, count))).collect()
        })
    });
    &all[shard_count as usize - 1]
}

fn routed(tenant: &str, page: &str, shard_count: u32) -> Arc<RoutedSeries> {
    let series = Series::new(tenant, METRIC, [("page".to_owned(), page.to_owned())]);
    Arc::new(RoutedSeries::new(&series, shard_count))
}

pub fn tenant_of(series: usize) -> usize {
    series / PAGES.len()
}

/// The id of a tenant's overflow series.
pub fn overflow_id(tenant: usize) -> SeriesId {
    static IDS: OnceLock<[SeriesId; 2]> = OnceLock::new();
    IDS.get_or_init(|| {
        TENANTS.map(|t| {
            SeriesId::of_key(
                &Series::new(t, METRIC, [("__overflow__".to_owned(), "true".to_owned())]).key(),
            )
        })
    })[tenant]
}

pub fn users(user: u8) -> String {
    format!("u{user}")
}

/// The limits that decide.
#[derive(Debug, Clone, Copy)]
pub struct OracleRules {
    pub horizon_ms: i64,
    pub max_ids: usize,
    pub max_series: usize,
}

pub type EventPosition = (u64, u32);
/// The generations that have taken an event in at its release, because their writer had passed it.
/// The others count it when they come to it.
pub type TakenIn = BTreeSet<GenerationId>;
/// The events of a shard that people have released.
pub type Releases = BTreeMap<EventPosition, TakenIn>;
pub type OracleRows = BTreeMap<(SeriesId, i32), Rollup>;

/// The fold of a prefix of one shard's log.
#[derive(Debug, Clone, Default)]
pub struct OracleFold {
    pub next: u64,
    /// Ids in log order: append time, series, id.
    kept: Vec<(i64, usize, u32)>,
    /// The series of each tenant, each with the offset at which it was admitted.
    admitted: [BTreeMap<usize, u64>; 2],
    pub rows: OracleRows,
    /// By tenant (empty if unknown) and hour of receipt: aggregated, de-duplicated, quarantined.
    pub accounting: BTreeMap<(&'static str, i32), [u64; 3]>,
    pub quarantined: BTreeSet<EventPosition>,
    pub duplicates: BTreeSet<EventPosition>,
    /// The events that were counted, by place.
    pub counted: Vec<(EventPosition, SimEvent)>,
    /// The events that were set aside and count since they were released.
    pub released: Releases,
    released_events: BTreeMap<EventPosition, SimEvent>,
    pub events: u64,
    pub overflowed: u64,
    pub counted_again: u64,
    pub undecodable: u64,
}

impl OracleFold {
    pub fn fold_record(
        &mut self,
        record: &LoggedRecord,
        rules: OracleRules,
        set_aside: &BTreeSet<EventPosition>,
    ) {
        let (offset, hour) = (self.next, record.received.div_euclid(HOUR_MS) as i32);
        self.next += 1;
        let Some(events) = &record.events else {
            self.accounting.entry(("", hour)).or_default()[2] += 1;
            self.quarantined.insert((offset, 0));
            self.events += 1;
            self.undecodable += 1;
            return;
        };
        for (index, event) in events.iter().enumerate() {
            self.fold_event(record, event, (offset, index as u32), rules, set_aside);
        }
    }

    /// Folds the first events of the next record: what a shard in isolation has applied of it.
    pub fn fold_part(
        &mut self,
        record: &LoggedRecord,
        events: u32,
        rules: OracleRules,
        set_aside: &BTreeSet<EventPosition>,
    ) {
        for (index, event) in record.events.iter().flatten().enumerate().take(events as usize) {
            self.fold_event(record, event, (self.next, index as u32), rules, set_aside);
        }
    }

    fn fold_event(
        &mut self,
        record: &LoggedRecord,
        event: &SimEvent,
        place: EventPosition,
        rules: OracleRules,
        set_aside: &BTreeSet<EventPosition>,
    ) {
        self.events += 1;
        let tenant = tenant_of(event.series);
        let account = self
            .accounting
            .entry((TENANTS[tenant], record.received.div_euclid(HOUR_MS) as i32))
            .or_default();
        let appended = record.appended;
        if let Some(id) = event.id {
            // The definition needs no index: the last `max_ids` ids, of which those
            // within the horizon count.
            let window = &self.kept[self.kept.len().saturating_sub(rules.max_ids)..];
            let same =
                |&&(_, series, other): &&(i64, usize, u32)| (series, other) == (event.series, id);
            if window.iter().filter(same).any(|(then, ..)| appended - then <= rules.horizon_ms) {
                account[1] += 1;
                self.duplicates.insert(place);
                return;
            }
            self.counted_again += u64::from(self.kept.iter().any(|k| same(&k)));
            self.kept.push((appended, event.series, id));
        }
        if set_aside.contains(&place) {
            account[2] += 1;
            self.quarantined.insert(place);
            return;
        }
        account[0] += 1;
        self.counted.push((place, *event));
        let admitted = &mut self.admitted[tenant];
        let fits = admitted.contains_key(&event.series) || admitted.len() < rules.max_series;
        let row = if fits {
            admitted.entry(event.series).or_insert(place.0);
            series(1)[event.series].id
        } else {
            self.overflowed += 1;
            overflow_id(tenant)
        };
        self.add(row, event);
    }

    fn add(&mut self, row: SeriesId, event: &SimEvent) {
        let (value, user) = event.figures();
        let hour = event.timestamp.div_euclid(HOUR_MS) as i32;
        self.rows.entry((row, hour)).or_default().add(value, user);
    }

    /// Counts the events of this prefix that were released.
    pub fn release(&mut self, history: &[LoggedRecord], releases: &Releases) {
        let passed = releases.range(..(self.next, 0));
        for (place, taken_in) in passed {
            if self.quarantined.remove(place) {
                self.release_event(&history[place.0 as usize], *place);
            }
            self.released.insert(*place, taken_in.clone());
        }
    }

    /// The event counts for its series if that was admitted by then.
    fn release_event(&mut self, record: &LoggedRecord, place: EventPosition) {
        let events = record.events.as_ref().expect("only what decodes is released");
        let event = events[place.1 as usize];
        let tenant = tenant_of(event.series);
        let hour = record.received.div_euclid(HOUR_MS) as i32;
        let account = self.accounting.entry((TENANTS[tenant], hour)).or_default();
        account[2] -= 1;
        account[0] += 1;
        let admitted = self.admitted[tenant].get(&event.series);
        let row = match admitted.is_some_and(|at| *at <= place.0) {
            true => series(1)[event.series].id,
            false => overflow_id(tenant),
        };
        self.add(row, &event);
        self.released_events.insert(place, event);
    }

    /// The events that a writer of a generation counts in a range, in its order; those that it had
    /// passed when they were released come last, and each says so.
    pub fn counted_by(
        &self,
        id: GenerationId,
        range: &Range<u64>,
    ) -> Vec<(EventPosition, SimEvent, bool)> {
        let first = self.counted.partition_point(|((offset, _), _)| *offset < range.start);
        let counted = self.counted[first..].iter().take_while(|((at, _), _)| *at < range.end);
        let mut all: Vec<_> = counted.map(|(place, event)| (*place, *event, false)).collect();
        let released = self.released_events.range((range.start, 0)..(range.end, 0));
        all.extend(released.map(|(place, event)| {
            let taken_in = self.released.get(place).is_some_and(|of| of.contains(&id));
            (*place, *event, taken_in)
        }));
        all.sort_by_key(|(place, _, taken_in)| (*taken_in, *place));
        all
    }
}

/// Merges the rows of one shard into those of others.
pub fn merge(into: &mut OracleRows, rows: &OracleRows) {
    rows.iter().for_each(|(key, rollup)| into.entry(*key).or_default().merge(rollup));
}

/// The first difference between two sets of rows, byte by byte.
pub fn difference(expected: &OracleRows, found: &OracleRows) -> Option<String> {
    let bytes = |rollup: Option<&Rollup>| {
        let mut out = Vec::new();
        rollup.unwrap_or(&Rollup::default()).encode(&mut out);
        out
    };
    let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    keys.into_iter().find_map(|key| {
        let (e, f) = (expected.get(key), found.get(key));
        let say = |r: Option<&Rollup>| {
            r.map_or("no row".to_owned(), |r| {
                format!("{:?}, {} users", r.figures, r.distinct.estimate())
            })
        };
        (e != f || bytes(e) != bytes(f)).then(|| {
            format!("series {} hour {}: expected {}, found {}", key.0, key.1, say(e), say(f))
        })
    })
}
