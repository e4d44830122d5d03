//! What a shard writes to generations besides generation 0, and how it adopts a set of them.

use bytes::Bytes;

use super::*;
use crate::model::flush::{FlushBatch, LogRecord};
use crate::model::generation::{DayRange, MaintainedRange, MaintainedSet};
use crate::model::offset::Checkpoint;
use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
use crate::model::rollup::Rollup;
use crate::model::series::{OVERFLOW_METRIC, Series, SeriesId};
use crate::model::served::ServedHours;
use crate::model::window::HOUR_MS;
use crate::rules::{RuleSet, RulesFormat};
use crate::shards::series::MetricNameRegistry;

const SHARD: ShardId = ShardId(0);
const NO_BOTS: &str =
    r#"{"rule": [{"name": "bots", "where": {"labels": "{page=\"bot\"}"}, "drop": true}]}"#;
const ONE_PAGE: &str = r#"{"rule": [{"name": "page", "remove_label": "page"}]}"#;

pub(super) fn canonical(rules: &str) -> Arc<str> {
    let parsed = RuleSet::parse(rules, RulesFormat::Json);
    parsed.unwrap_or_else(|mistakes| panic!("{mistakes}")).canonical_json().into()
}

pub(super) fn set(version: u64, ranges: &[(u64, &str, (i32, i32))]) -> Arc<ActiveSet> {
    let range = |(generation, rules, (from, to)): &(u64, &str, (i32, i32))| MaintainedRange {
        tenant: "t".to_owned(),
        metric: "m".to_owned(),
        days: DayRange::new(*from, Some(*to)).expect("days"),
        generation: GenerationId(*generation),
        rules: canonical(rules),
    };
    let ranges = ranges.iter().map(range).collect();
    Arc::new(ActiveSet::compile(&MaintainedSet { version, ranges }).expect("compiles"))
}

/// A record of one event.
pub(super) fn record(offset: Offset, metric: &str, page: &str, hour: i64) -> LogRecord {
    record_of(offset, "t", &[(metric, page, hour)])
}

/// A record of events: metric, page and hour of each.
pub(super) fn record_of(offset: Offset, tenant: &str, events: &[(&str, &str, i64)]) -> LogRecord {
    let key = |(metric, page, _): &(&str, &str, i64)| {
        let key = Series::new(tenant, metric, [("page".to_owned(), (*page).to_owned())]).key();
        (SeriesId::of_key(&key), key)
    };
    let keys: Vec<_> = events.iter().map(key).collect();
    let event = |(series, (.., hour)): (usize, &(&str, &str, i64))| RecordEvent {
        series: series as u32,
        timestamp: hour * HOUR_MS,
        value: None,
        user: None,
        id: None,
        raw: b"{}",
    };
    let mut bytes = Vec::new();
    record::encode(
        &Record {
            version: record::VERSION,
            tenant,
            gateway: 0,
            series: keys.iter().map(|(id, key)| SeriesEntry { id: &id.0, key }).collect(),
            events: events.iter().enumerate().map(event).collect(),
            stamp: Some(1),
        },
        &mut bytes,
    );
    LogRecord { offset, appended: 5, received: 5, payload: Bytes::from(bytes) }
}

pub(super) struct Run(pub(super) ShardState);

impl Run {
    fn new(admission: SeriesAdmission) -> Self {
        Self::with(admission, 1, 0)
    }

    /// A start of that number, with a log that ends there.
    pub(super) fn at_attempt(attempts: u32, log_end: Offset) -> Self {
        Self::with(SeriesAdmission::limited(9, vec![]), attempts, log_end)
    }

    fn with(admission: SeriesAdmission, attempts: u32, log_end: Offset) -> Self {
        let limits = ShardLimits {
            dedup_horizon_ms: 1_000,
            dedup_max_ids: 100,
            flush_interval_ms: 1_000,
            max_delta_bytes: 1 << 20,
            keep_flushed_ms: 1,
            shard_count: 1,
            panic_on_user: None,
        };
        let epoch = Epoch { counter: 1, nonce: 1 };
        let checkpoint =
            Checkpoint { log: LogId([1; 16]), next: 0, archived: 0, epoch, appended: None };
        let set = MaintainedSet::default();
        let claim = Claim { checkpoint, attempts, suspects: Vec::new(), set };
        let state = ShardState::new(limits, SHARD, &claim, vec![], admission, log_end);
        Self(state.with_generations(AdoptedGenerations::default(), 2))
    }

    pub(super) fn step(&mut self, input: ShardInput<'_>) -> Option<(OffsetRange, Arc<FlushBatch>)> {
        let mut effects = Vec::new();
        self.0.step(input, &mut effects);
        effects.into_iter().find_map(|effect| match effect {
            ShardEffect::Commit { guard, batch, .. } => Some((guard.range, batch)),
            _ => None,
        })
    }

    pub(super) fn feed(&mut self, records: &[LogRecord]) {
        assert!(self.step(ShardInput::Records(records)).is_none());
    }

    pub(super) fn tick(&mut self, drain: bool) -> Option<(OffsetRange, Arc<FlushBatch>)> {
        self.step(ShardInput::Tick { now: 0, drain })
    }

    /// Flushes what is open, and commits it.
    pub(super) fn flush(&mut self) -> (OffsetRange, Arc<FlushBatch>) {
        let flushed = self.tick(true).expect("something is open");
        self.step(ShardInput::Committed { now: 0 });
        flushed
    }

    pub(super) fn adopt(&mut self, set: Arc<ActiveSet>) -> (OffsetRange, Arc<FlushBatch>) {
        self.step(ShardInput::NewestSet(set));
        let adopting = self.tick(false).expect("a set waits for no event");
        self.step(ShardInput::Committed { now: 0 });
        adopting
    }
}

/// Generation, events in its rows, and events that its rules dropped.
pub(super) fn counts(batch: &FlushBatch) -> Vec<(u64, u64, u64)> {
    let count = |deltas: &crate::model::flush::GenerationDeltas| {
        let rows = deltas.deltas.iter().map(|delta| delta.rollup.figures.count).sum();
        let dropped = deltas.dropped.iter().map(|dropped| dropped.events).sum();
        (deltas.generation.0, rows, dropped)
    };
    batch.generations.iter().map(count).collect()
}

#[test]
fn a_set_is_adopted_at_the_end_of_a_flush_and_holds_behind_it() {
    let mut run = Run::new(SeriesAdmission::limited(9, vec![]));
    run.feed(&[record(0, "m", "a", 1), record(1, "m", "bot", 1)]);
    run.step(ShardInput::NewestSet(set(1, &[(7, NO_BOTS, (0, 1))])));
    let (range, batch) = run.tick(false).expect("somebody waits for the cut");
    let begun = vec![GenerationId(7)];
    assert_eq!((range.to, batch.set, counts(&batch)), (2, 0, vec![]));
    assert_eq!(batch.adopts, Some(SetAdoption { version: 1, begun }));
    run.feed(&[record(2, "m", "a", 1), record(3, "m", "bot", 1), record(4, "m", "a", 24)]);
    run.step(ShardInput::CommitFailed);
    let (again, same) = run.tick(true).expect("the retry");
    assert_eq!((again, &same.adopts, same.set), (range, &batch.adopts, 0), "the same bytes");
    run.step(ShardInput::Committed { now: 0 });
    let (range, batch) = run.flush();
    assert_eq!((range.from, batch.set, &batch.adopts), (2, 1, &None));
    assert_eq!(counts(&batch), [(7, 1, 1)], "day 1 is none of its days");
    assert_eq!(batch.deltas.len(), 3, "generation 0 has all");
}

#[test]
fn a_shard_with_nothing_to_flush_makes_its_cut_at_once() {
    let mut run = Run::new(SeriesAdmission::limited(9, vec![]));
    let (range, batch) = run.adopt(set(1, &[(7, NO_BOTS, (0, 1))]));
    assert!(range.is_empty() && batch.deltas.is_empty() && batch.adopts.is_some());
    assert!(run.tick(true).is_none(), "adopted once");
    run.step(ShardInput::NewestSet(set(1, &[(7, NO_BOTS, (0, 1))])));
    run.step(ShardInput::NewestSet(set(0, &[])));
    assert!(run.tick(true).is_none(), "neither the same nor an older one");
}

#[test]
fn generations_come_and_leave_apart_and_keep_what_they_admitted() {
    let mut run = Run::new(SeriesAdmission::limited(9, vec![]));
    run.adopt(set(1, &[(1, NO_BOTS, (0, 9)), (2, ONE_PAGE, (0, 9))]));
    run.feed(&[record(0, "m", "a", 1), record(1, "m", "bot", 1), record(2, "m", "b", 1)]);
    let (_, batch) = run.flush();
    assert_eq!(counts(&batch), [(1, 2, 1), (2, 3, 0)]);
    assert_eq!(batch.generations[1].deltas.len(), 1, "without its label it is one series");
    let (_, batch) = run.adopt(set(2, &[(2, ONE_PAGE, (0, 9)), (3, NO_BOTS, (0, 9))]));
    assert_eq!(batch.adopts.as_ref().map(|a| a.begun.clone()), Some(vec![GenerationId(3)]));
    run.feed(&[record(3, "m", "a", 1)]);
    let (_, batch) = run.flush();
    assert_eq!(counts(&batch), [(2, 1, 0), (3, 1, 0)]);
    assert!(batch.generations[0].admitted.is_empty(), "admitted in an earlier batch");
    assert_eq!(batch.generations[1].admitted.len(), 1, "new to this one");
}

#[test]
fn each_generation_admits_alone_and_sees_the_labels_of_the_client() {
    // Generation 0 has no room for any series, and then for no name of a metric.
    let names = MetricNameRegistry::new(0);
    let without_names = SeriesAdmission::limited(9, vec![]).with_metric_names(names);
    for (admission, metric) in
        [(SeriesAdmission::limited(0, vec![]), "m"), (without_names, OVERFLOW_METRIC)]
    {
        let mut run = Run::new(admission);
        run.adopt(set(1, &[(1, NO_BOTS, (0, 9))]));
        run.feed(&[record(0, "m", "a", 1), record(1, "m", "bot", 1), record(2, "m", "b", 1)]);
        run.feed(&[record(3, "m", "c", 1)]);
        let mut windows = Vec::new();
        run.0.position(&mut |metric, hour| windows.push((metric, hour)));
        let asked = (crate::model::series::metric_hash("t", "m"), Hour(1));
        assert!(windows.contains(&asked), "queries of the metric call this shard");
        let (_, batch) = run.flush();
        assert!(batch.deltas.iter().all(|delta| delta.series.series.metric == metric));
        assert_eq!(counts(&batch), [(1, 3, 1)]);
        let series = batch.generations[0].deltas.iter().map(|delta| &delta.series.series);
        let overflow = series.clone().filter(|series| series.is_overflow()).count();
        assert_eq!((series.count(), overflow), (3, 1), "room for two, and the rest");
    }
}

#[test]
fn an_owner_goes_on_with_what_its_generations_had_admitted() {
    let mut run = Run::new(SeriesAdmission::limited(9, vec![]));
    let id = SeriesId::of_key(&Series::new("t", "m", [("page".to_owned(), "a".to_owned())]).key());
    let admitted = vec![(GenerationId(1), vec![id])];
    let adopted = AdoptedGenerations { set: set(4, &[(1, NO_BOTS, (0, 9))]), admitted };
    run.0 = run.0.with_generations(adopted, 2);
    run.feed(&[record(0, "m", "a", 1), record(1, "m", "b", 1), record(2, "m", "c", 1)]);
    let (_, batch) = run.flush();
    assert_eq!(batch.set, 4);
    let admitted = &batch.generations[0].admitted;
    let overflow = admitted.iter().filter(|(info, _)| info.series.is_overflow()).count();
    assert_eq!((admitted.len(), overflow), (2, 1), "one had room");
}

/// What a shard answers above a checkpoint for two days, the first of them of this generation:
/// events by hour.
fn live(state: &ShardState, next: Offset, generation: u64) -> Option<Vec<(i32, u64)>> {
    let epoch = Epoch { counter: 1, nonce: 1 };
    let at = Checkpoint { log: LogId([1; 16]), next, archived: 0, epoch, appended: None };
    let (from, to) = (Hour(0), Hour(48));
    let first = ServedHours { from, to: Hour(24), generation: GenerationId(generation) };
    let served = &[first, ServedHours::ingest(Hour(24), to)];
    let (tenant, metric, distinct, quantiles, overflow) = ("t", "m", false, false, false);
    let query = LiveQuery { tenant, metric, from, to, served, distinct, quantiles, overflow };
    let mut found = std::collections::BTreeMap::new();
    let mut visit = |_: &Arc<crate::model::flush::SeriesInfo>, hour: Hour, rollup: &Rollup| {
        *found.entry(hour.0).or_default() += rollup.figures.count;
    };
    let (_, batches) = state.live(&at, &query, &mut |_| true, &mut visit).ok()?;
    batches.visit(&query, &mut |_| true, &mut visit);
    Some(found.into_iter().collect())
}

#[test]
fn a_reader_gets_of_each_hour_the_generation_that_it_wants_or_nothing() {
    let mut run = Run::new(SeriesAdmission::limited(9, vec![]));
    run.feed(&[record(0, "m", "a", 1), record(1, "m", "bot", 1)]);
    run.step(ShardInput::NewestSet(set(1, &[(7, NO_BOTS, (0, 1))])));
    assert!(run.tick(false).is_some());
    run.feed(&[record(2, "m", "a", 1), record(3, "m", "bot", 1), record(4, "m", "bot", 24)]);
    assert_eq!(live(&run.0, 0, 0), Some(vec![(1, 4), (24, 1)]));
    assert_eq!(live(&run.0, 0, 7), None, "the batch below the cut lacks it");
    assert_eq!(live(&run.0, 2, 7), Some(vec![(1, 1), (24, 1)]), "open");
    run.step(ShardInput::Committed { now: 0 });
    assert!(run.tick(true).is_some());
    assert_eq!(live(&run.0, 2, 7), Some(vec![(1, 1), (24, 1)]), "frozen");
    assert_eq!(live(&run.0, 2, 8), None, "no batch has such a generation");
    assert_eq!(live(&run.0, 5, 7), Some(vec![]));
}

#[test]
fn a_flush_of_no_record_that_adopts_a_set_stands_in_no_readers_way() {
    let mut run = Run::new(SeriesAdmission::limited(9, vec![]));
    run.feed(&[record(0, "m", "a", 1)]);
    run.flush();
    let (range, _) = run.adopt(set(1, &[(7, NO_BOTS, (0, 1))]));
    assert!(range.is_empty());
    run.feed(&[record(1, "m", "a", 1)]);
    assert_eq!(live(&run.0, 1, 7), Some(vec![(1, 1)]), "the flush is kept, and lacks nothing");
    assert_eq!(live(&run.0, 0, 7), None, "the batch below the cut lacks it");
}
