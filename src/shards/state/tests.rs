//! Records that no gateway of this cluster wrote, or that another release wrote: what
//! they must not do.

use bytes::Bytes;

use super::*;
use crate::invariants::Invariant;
use crate::invariants::tests::violations;
use crate::model::flush::{LogRecord, QuarantineRow};
use crate::model::offset::{Checkpoint, LogDivergence};
use crate::model::record::{self, Record, RecordEvent, SeriesEntry};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};
use crate::model::served::ServedHours;

const SHARDS: u32 = 4;

/// A record with one event per entry.
fn payload(tenant: &str, entries: &[(SeriesId, Vec<u8>)], id: &str) -> Vec<u8> {
    let series = entries.iter().map(|(id, key)| SeriesEntry { id: &id.0, key }).collect();
    let event = |at| RecordEvent {
        series: at,
        timestamp: 0,
        value: None,
        user: None,
        id: Some(id),
        raw: b"{}",
    };
    let events = (0..entries.len() as u32).map(event).collect();
    let mut bytes = Vec::new();
    record::encode(
        &Record { version: record::VERSION, tenant, gateway: 0, series, events, stamp: Some(1) },
        &mut bytes,
    );
    bytes
}

/// The first series of the tenant, counting from `turn`, that belongs to this shard.
fn entry(tenant: &str, shard: u32, turn: u32) -> (SeriesId, Vec<u8>) {
    let mut all = (turn..).map(|page| {
        let key = Series::new(tenant, "views", [("page".to_owned(), page.to_string())]).key();
        (SeriesId::of_key(&key), key)
    });
    all.find(|(id, _)| id.shard(SHARDS) == ShardId(shard)).expect("one")
}

fn ours(id: &str) -> Vec<u8> {
    payload("shop", &[entry("shop", 1, 0)], id)
}

/// A record of a future release.
fn newer(id: &str) -> Vec<u8> {
    let mut bytes = ours(id);
    assert_eq!(bytes[1], record::VERSION);
    bytes[1] = 100;
    bytes
}

struct Run {
    state: ShardState,
    effects: Vec<ShardEffect>,
}

impl Run {
    fn new(attempts: u32, suspects: Vec<SuspectEvent>) -> Self {
        let limits = ShardLimits {
            dedup_horizon_ms: 1_000,
            dedup_max_ids: 100,
            flush_interval_ms: 1,
            max_delta_bytes: 1 << 20,
            keep_flushed_ms: 1,
            shard_count: SHARDS,
            panic_on_user: None,
        };
        let epoch = Epoch { counter: 1, nonce: 1 };
        let checkpoint =
            Checkpoint { log: LogId([1; 16]), next: 0, archived: 0, epoch, appended: None };
        let claim = Claim { checkpoint, attempts, suspects, set: Default::default() };
        let admission = SeriesAdmission::limited(9, vec![]);
        Self {
            state: ShardState::new(limits, ShardId(1), &claim, vec![], admission, 100),
            effects: Vec::new(),
        }
    }

    fn feed(&mut self, from: Offset, payloads: Vec<Vec<u8>>) {
        let record = |(offset, payload)| LogRecord {
            offset,
            appended: 5,
            received: 5,
            payload: Bytes::from(payload),
        };
        let records: Vec<LogRecord> = (from..).zip(payloads).map(record).collect();
        self.state.step(ShardInput::Records(&records), &mut self.effects);
    }

    fn stops(&self) -> Vec<LogDivergence> {
        self.effects
            .iter()
            .filter_map(
                |effect| if let ShardEffect::Stop(why) = effect { Some(*why) } else { None },
            )
            .collect()
    }

    /// What a flush would hold now: the number of events counted, and the quarantined events.
    fn flush(&mut self) -> (OffsetRange, u64, Vec<QuarantineRow>) {
        self.effects.clear();
        self.state.step(ShardInput::Tick { now: 0, drain: true }, &mut self.effects);
        let Some(ShardEffect::Commit { guard, batch, .. }) = self.effects.pop() else {
            panic!("no commit: {:?}", self.effects)
        };
        self.state.step(ShardInput::Committed { now: 0 }, &mut self.effects);
        (
            guard.range,
            batch.deltas.iter().map(|delta| delta.rollup.figures.count).sum(),
            batch.quarantined.clone(),
        )
    }
}

#[test]
fn a_record_of_an_unknown_version_stops_the_shard_and_what_lies_below_is_flushed() {
    for attempts in [1, 100] {
        let mut run = Run::new(attempts, vec![]);
        // The same when isolated event by event, after many starts.
        run.feed(0, vec![newer("x"), ours("c")]);
        assert_eq!(
            run.stops(),
            [LogDivergence::UnsupportedVersion { offset: 0, version: 100 }],
            "start {attempts}"
        );
        assert_eq!((run.state.next(), run.state.credit()), (0, 0));
    }
    let mut run = Run::new(1, vec![]);
    run.feed(0, vec![ours("a"), ours("b"), newer("x"), ours("c")]);
    assert_eq!((run.stops().len(), run.state.next(), run.state.credit()), (1, 2, 0));
    run.feed(2, vec![newer("x"), ours("c")]);
    assert_eq!((run.stops().len(), run.state.next()), (1, 2), "it is said once");
    assert_eq!(
        run.flush(),
        (OffsetRange { from: 0, to: 2 }, 2, vec![]),
        "nothing is passed over, nothing is lost"
    );
    let said = LogDivergence::UnsupportedVersion { offset: 2, version: 100 }.to_string();
    assert!(said.contains("offset 2") && said.contains("version 100"), "{said}");
}

#[test]
fn what_an_older_build_has_set_aside_stays_so_when_its_record_is_folded_once_more() {
    let mut run = Run::new(1, vec![SuspectEvent::quarantined(1, 0)]);
    run.feed(0, vec![ours("a"), newer("x"), ours("b")]);
    let (range, counted, set_aside) = run.flush();
    assert_eq!((range.to, counted, run.stops().len(), set_aside.len()), (3, 2, 0, 1));
    assert!(set_aside[0].reason.contains("version 100"), "{}", set_aside[0].reason);
}

#[test]
fn bytes_that_are_no_record_are_set_aside_and_their_neighbours_count() {
    let mut run = Run::new(1, vec![]);
    run.feed(
        0,
        vec![ours("a"), vec![], b"garbage".to_vec(), b"{\"version\":9}".to_vec(), ours("b")],
    );
    let (range, counted, set_aside) = run.flush();
    assert_eq!((range.to, counted, run.stops().len(), set_aside.len()), (5, 2, 0, 3));
}

#[test]
fn a_record_that_no_gateway_wrote_is_set_aside_whole() {
    let (mine, of_evil, elsewhere) =
        (entry("shop", 1, 0), entry("evil", 1, 0), entry("shop", 2, 0));
    let second = entry("shop", 1, 50);
    let lying = (mine.0, second.1.clone());
    let cases = [
        (payload("evil", &[of_evil.clone(), mine.clone()], "1"), "not of its tenant"),
        (payload("shop", &[mine.clone(), of_evil], "2"), "not of its tenant"),
        (payload("shop", &[mine.clone(), elsewhere], "3"), "belongs to shard 2, not to 1"),
        (payload("shop", &[second, lying], "later"), "not the hash of its key"),
    ];
    for (foreign, why) in cases {
        let mut run = Run::new(1, vec![]);
        run.feed(0, vec![ours("a"), foreign.clone(), ours("later")]);
        let (range, counted, set_aside) = run.flush();
        assert_eq!(
            (range.to, counted, set_aside.len()),
            (3, 2, 1),
            "{why}: its ids make no duplicates of others"
        );
        let QuarantineRow { offset, index, tenant, reason, record, .. } = &set_aside[0];
        assert_eq!(
            (*offset, *index, tenant.as_str(), record),
            (1, 0, "", &foreign),
            "whole, and nobody's"
        );
        assert!(reason.contains(why), "{reason}");
    }
}

/// A shard with a flush in flight.
fn flushing() -> ShardState {
    let mut run = Run::new(1, vec![]);
    run.feed(0, vec![ours("a")]);
    run.state.step(ShardInput::Tick { now: 0, drain: true }, &mut run.effects);
    assert!(matches!(run.effects[..], [ShardEffect::Commit { .. }]), "{:?}", run.effects);
    run.state
}

/// Whether a tick sends the commit again.
fn offers(state: &mut ShardState, now: Millis, drain: bool) -> bool {
    let mut effects = Vec::new();
    state.step(ShardInput::Tick { now, drain }, &mut effects);
    !effects.is_empty()
}

#[test]
fn a_flush_that_fails_again_and_again_is_tried_ever_less_often() {
    let mut state = flushing();
    let mut tries = Vec::new();
    state.step(ShardInput::CommitFailed, &mut Vec::new());
    for at in (0..60_000).step_by(100) {
        if offers(&mut state, at, false) {
            tries.push(at);
            state.step(ShardInput::CommitFailed, &mut Vec::new());
        }
    }
    assert_eq!(
        tries[..6],
        [0, 600, 1_700, 3_800, 7_900, 16_000],
        "a pause begins at the tick behind the failure"
    );
    assert_eq!(tries.len(), 11);
}

#[test]
fn the_pause_ends_at_drain_at_success_and_when_the_clock_goes_back() {
    let failed = || {
        let mut state = flushing();
        for _ in 0..5 {
            state.step(ShardInput::CommitFailed, &mut Vec::new());
        }
        assert!(!offers(&mut state, 1_000_000, false));
        state
    };
    assert!(offers(&mut failed(), 1_000_001, true));
    assert!(offers(&mut failed(), 5, false));
    let mut state = failed();
    state.step(ShardInput::Committed { now: 1_000_001 }, &mut Vec::new());
    state.step(ShardInput::CommitFailed, &mut Vec::new());
    assert!(!state.must_wait(1_000_002));
}

#[test]
fn what_a_reader_holds_stays_while_the_shard_commits_and_forgets() {
    let mut run = Run::new(1, vec![]);
    run.feed(0, vec![ours("a")]);
    run.flush();
    run.feed(1, vec![ours("b")]);
    let epoch = Epoch { counter: 1, nonce: 1 };
    let at = Checkpoint { log: LogId([1; 16]), next: 0, archived: 0, epoch, appended: None };
    let (from, to) = (Hour(0), Hour(1));
    let question = LiveQuery {
        tenant: "shop",
        metric: "views",
        from,
        to,
        served: &[ServedHours::ingest(from, to)],
        distinct: false,
        quantiles: false,
        overflow: false,
    };
    let mut open = 0;
    let mut visit = |_: &_, _, rollup: &Rollup| open += rollup.figures.count;
    let (mark, held) =
        run.state.live(&at, &question, &mut |_| true, &mut visit).expect("its own checkpoint");
    assert_eq!((open, mark.applied), (1, 2));

    assert_eq!(run.flush().1, 1);
    run.state.step(ShardInput::Tick { now: 1_000, drain: false }, &mut run.effects);
    let later = run.state.live(&at, &question, &mut |_| true, &mut |_, _, _| {});
    assert_eq!(later.expect_err("its batches are forgotten"), StaleCheckpoint);
    let mut frozen = 0;
    held.visit(&question, &mut |_| true, &mut |_, _, rollup| frozen += rollup.figures.count);
    assert_eq!(frozen, 1, "what was frozen when it was read, no more and no less");
}

#[test]
fn a_flush_that_counts_other_events_than_were_applied_is_a_violation() {
    let mut run = Run::new(1, vec![]);
    run.feed(0, vec![ours("a")]);
    run.state.events += 1;
    assert_eq!(violations(Invariant::Accounting, || _ = run.flush()), 1);
}
