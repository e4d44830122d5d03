//! The driver's commands, event by event.

use super::startup::{
    LoadedShard, RunningShard, ShardConfig, ShardStartup, StartupCommand, StartupEvent,
    StartupProgress,
};
use super::*;
use crate::invariants::tests::violations;
use crate::model::flush::{Claim, DedupRules, SuspectEvent};
use crate::model::offset::{Epoch, LogId, ShardId};
use crate::model::record::{self, Record};
use crate::shards::state::ShardLimits;

const LOG: LogId = LogId([1; 16]);
const SHARD: ShardId = ShardId(0);
const EPOCH: Epoch = Epoch { counter: 3, nonce: 7 };

fn limits() -> ShardLimits {
    ShardLimits {
        dedup_horizon_ms: 1_000,
        dedup_max_ids: 100,
        flush_interval_ms: 1_000,
        max_delta_bytes: 1 << 20,
        keep_flushed_ms: 1_000,
        shard_count: 1,
        panic_on_user: None,
    }
}

fn config(exclusive: bool) -> ShardConfig {
    ShardConfig {
        shard: SHARD,
        log: LOG,
        exclusive,
        limits: limits(),
        max_series: 9,
        metric_names: None,
        pull_bytes: 4_096,
    }
}

fn checkpoint(next: Offset) -> Checkpoint {
    Checkpoint { log: LOG, next, archived: next, epoch: EPOCH, appended: Some(5) }
}

fn claim(next: Offset, attempts: u32) -> Claim {
    Claim { checkpoint: checkpoint(next), attempts, suspects: Vec::new(), set: Default::default() }
}

fn failed(kind: FailureKind) -> CallError {
    CallError { kind, message: format!("{kind:?}") }
}

/// Records without content.
fn records(offsets: std::ops::Range<Offset>) -> Vec<LogRecord> {
    let mut payload = Vec::new();
    let record = Record {
        version: record::VERSION,
        tenant: "t",
        gateway: 0,
        series: vec![],
        events: vec![],
        stamp: Some(1),
    };
    record::encode(&record, &mut payload);
    let payload = bytes::Bytes::from(payload);
    offsets
        .map(|offset| LogRecord { offset, appended: 5, received: 5, payload: payload.clone() })
        .collect()
}

/// Answers a starting shard as a healthy store, log and archive would.
struct Ground {
    claim: Result<Claim, CallError>,
    stored: Option<Checkpoint>,
    bounds: (Offset, Offset),
    planned: Result<Offset, OffsetRange>,
    asked: Vec<StartupCommand>,
}

impl Ground {
    fn new(next: Offset, bounds: (Offset, Offset)) -> Self {
        let (claim, stored) = (Ok(claim(next, 1)), Some(checkpoint(next)));
        Self { claim, stored, bounds, planned: Ok(bounds.0), asked: Vec::new() }
    }

    fn answer(&mut self, command: StartupCommand) -> StartupEvent {
        self.asked.push(command.clone());
        match command {
            StartupCommand::FindCheckpoint => StartupEvent::FindCheckpoint(Ok(self.stored)),
            StartupCommand::Claim => StartupEvent::Claim(self.claim.clone()),
            StartupCommand::FindAppended { .. } => StartupEvent::FindAppended(Ok(Some(4))),
            StartupCommand::ReadBounds => StartupEvent::ReadBounds(Ok(self.bounds)),
            StartupCommand::PlanRecovery { .. } => StartupEvent::PlanRecovery(Ok(self.planned)),
            StartupCommand::Load { .. } => {
                let (blocks, admitted, rules) = (Vec::new(), Vec::new(), DedupRules::default());
                StartupEvent::Load(Ok(LoadedShard {
                    generations: vec![],
                    unserved: vec![],
                    blocks,
                    admitted,
                    checkpoint: self.stored,
                    rules,
                }))
            }
            StartupCommand::RecordRule { .. } => StartupEvent::RecordRule(Ok(())),
        }
    }

    fn start(&mut self, config: ShardConfig, stood_still: bool) -> Result<RunningShard, EndReason> {
        let (mut startup, mut command) = ShardStartup::begin(config, stood_still);
        loop {
            match startup.handle(self.answer(command))? {
                StartupProgress::Next(next, ask) => (startup, command) = (next, ask),
                StartupProgress::Started(started) => return Ok(*started),
            }
        }
    }
}

/// A shard that started at `next`, with a log that ends at `end`.
fn driver(next: Offset, end: Offset) -> ShardDriver {
    Ground::new(next, (0, end)).start(config(false), false).expect("it starts").driver
}

fn on(
    driver: &mut ShardDriver,
    now: Millis,
    log_end: Offset,
    event: ShardEvent<'_>,
) -> Vec<ShardCommand> {
    let mut out = VecDeque::new();
    driver.handle(StepContext { now, log_end }, event, &mut out);
    out.into_iter()
        .filter(|command| !matches!(command, ShardCommand::Notify(ShardNotice::Applied(_))))
        .collect()
}

fn read(
    driver: &mut ShardDriver,
    now: Millis,
    log_end: Offset,
    offsets: std::ops::Range<Offset>,
) -> Vec<ShardCommand> {
    on(driver, now, log_end, ShardEvent::LogRead(Ok(records(offsets).into())))
}

fn ends(commands: &[ShardCommand]) -> Option<&EndReason> {
    commands.iter().find_map(|command| {
        if let ShardCommand::End(reason) = command { Some(reason) } else { None }
    })
}

#[test]
fn a_start_claims_looks_at_the_log_loads_and_notes_its_rule() {
    let mut ground = Ground::new(5, (2, 9));
    let started = ground.start(config(false), false).expect("it starts");
    assert_eq!(
        (started.driver.state().next(), started.driver.committed(), started.notices.len()),
        (5, 5, 0)
    );
    let rule =
        |from| StartupCommand::RecordRule { epoch: EPOCH, from, rule: limits().dedup_rule() };
    assert_eq!(
        ground.asked,
        [
            StartupCommand::Claim,
            StartupCommand::ReadBounds,
            StartupCommand::Load { generations: vec![] },
            rule(0)
        ]
    );
    let mut older = Ground::new(5, (2, 9));
    older.claim =
        Ok(Claim { checkpoint: Checkpoint { appended: None, ..checkpoint(5) }, ..claim(5, 1) });
    older.start(config(false), false).expect("it starts");
    assert_eq!(older.asked[1], StartupCommand::FindAppended { next: 5 });
}

#[test]
fn a_shard_that_stood_still_is_probed_before_it_is_claimed() {
    let mut ground = Ground::new(5, (0, 4));
    let refused = ground.start(config(false), true).expect_err("the log ends below the checkpoint");
    assert_eq!(refused, EndReason::Diverged(LogDivergence::ShortLog { end: 4, checkpoint: 5 }));
    assert_eq!(
        ground.asked,
        [StartupCommand::FindCheckpoint, StartupCommand::ReadBounds],
        "no epoch is minted"
    );
    assert!(refused.needs_repair() && !refused.is_refusal());
    let mut repaired = Ground::new(5, (0, 5));
    repaired.start(config(false), true).expect("it starts");
    assert_eq!(repaired.asked[2], StartupCommand::Claim);
}

#[test]
fn an_owner_that_was_overtaken_while_it_loaded_ends() {
    let mut ground = Ground::new(5, (0, 9));
    ground.stored = Some(Checkpoint { epoch: Epoch { counter: 4, nonce: 1 }, ..checkpoint(6) });
    let refused = ground.start(config(false), false).expect_err("another owner claimed");
    assert!(refused.is_refusal() && !refused.needs_repair(), "{refused}");
}

#[test]
fn what_the_log_lost_is_read_from_the_archive_or_refused() {
    let lost = OffsetRange { from: 3, to: 6 };
    let mut ground = Ground::new(3, (6, 9));
    ground.planned = Ok(7);
    let RunningShard { mut driver, notices: reports, .. } =
        ground.start(config(false), false).expect("the archive has it");
    assert_eq!(reports, [ShardNotice::RecoveryStarted(lost)]);
    let pulse = on(&mut driver, 0, 9, ShardEvent::Wakeup);
    assert!(
        matches!(pulse[..], [ShardCommand::ReadArchive { from: 3, max_bytes: 4_096 }]),
        "{pulse:?}"
    );
    let away =
        on(&mut driver, 0, 9, ShardEvent::ArchiveRead(Err(failed(FailureKind::Unavailable))));
    assert!(
        matches!(away[..], [ShardCommand::Notify(ShardNotice::RecoveryDelayed(_))]),
        "no end, and no pulse at once: {away:?}"
    );
    assert!(on(&mut driver, 999, 9, ShardEvent::Wakeup).is_empty(), "it waits");
    assert!(matches!(
        on(&mut driver, 1_000, 9, ShardEvent::Wakeup)[..],
        [ShardCommand::ReadArchive { from: 3, .. }]
    ));
    let read = ArchivedRecords { records: records(3..7), decisions: None, to: 7 };
    let more = on(&mut driver, 1_000, 9, ShardEvent::ArchiveRead(Ok(read)));
    assert!(matches!(more[..], [ShardCommand::WakeAgain]), "{more:?}");
    let after = on(&mut driver, 1_000, 9, ShardEvent::Wakeup);
    assert!(
        matches!(
            after[..],
            [
                ShardCommand::Notify(ShardNotice::RecoveryEnded(_)),
                ShardCommand::ReadLog { from: 7, .. }
            ]
        ),
        "{after:?}"
    );

    ground.planned = Err(OffsetRange { from: 4, to: 6 });
    let refused = ground.start(config(false), false).expect_err("a part is nowhere");
    assert_eq!(refused.lost_records(), Some(lost));
    ground.planned = Ok(10);
    let refused = ground
        .start(config(false), false)
        .expect_err("the archive has more than the log ever will");
    assert_eq!(refused, EndReason::Diverged(LogDivergence::ShortLog { end: 9, checkpoint: 10 }));
}

#[test]
fn without_a_claim_an_exclusive_shard_answers_and_claims_where_it_would_flush() {
    let mut ground = Ground::new(0, (0, 2));
    ground.claim = Err(failed(FailureKind::Unavailable));
    assert!(ground.start(config(false), false).is_err(), "another node may own it");
    let RunningShard { mut driver, notices: reports, .. } =
        ground.start(config(true), false).expect("nobody else can own it");
    assert!(matches!(reports[..], [ShardNotice::Unclaimed(_)]));
    read(&mut driver, 0, 2, 0..2);
    let drain = on(&mut driver, 0, 2, ShardEvent::Drain);
    assert!(matches!(drain[..], [ShardCommand::Reclaim]), "{drain:?}");
    // Nothing was written under a claim of unknown outcome.
    let unknown =
        on(&mut driver, 0, 2, ShardEvent::Reclaimed(Err(failed(FailureKind::OutcomeUnknown))));
    assert!(
        matches!(
            unknown[..],
            [ShardCommand::Notify(ShardNotice::FlushEnded(Err(_))), ShardCommand::Drained]
        ),
        "{unknown:?}"
    );
    assert!(matches!(on(&mut driver, 0, 2, ShardEvent::Wakeup)[..], [ShardCommand::Reclaim]));
    assert_eq!(
        ends(&on(&mut driver, 0, 2, ShardEvent::Reclaimed(Ok(())))),
        Some(&EndReason::Reclaimed)
    );
    ground.claim = Err(failed(FailureKind::Unusable));
    assert!(ground.start(config(true), false).expect_err("no waiting helps").needs_repair());
}

#[test]
fn a_log_that_ends_below_what_was_applied_ends_the_shard() {
    let mut driver = driver(5, 9);
    let commands = on(&mut driver, 0, 4, ShardEvent::Wakeup);
    assert_eq!(
        ends(&commands),
        Some(&EndReason::Diverged(LogDivergence::ShortLog { end: 4, checkpoint: 5 }))
    );
    assert!(
        matches!(commands[0], ShardCommand::Notify(ShardNotice::Stopped { before: Some(5), .. })),
        "{commands:?}"
    );
}

#[test]
fn a_damaged_log_is_read_again_later_and_ends_nothing() {
    let mut driver = driver(0, 9);
    let damaged = on(&mut driver, 100, 9, ShardEvent::LogRead(Err(failed(FailureKind::Damaged))));
    assert!(
        matches!(damaged[..], [ShardCommand::Notify(ShardNotice::Stopped { before: Some(0), .. })]),
        "{damaged:?}"
    );
    assert!(
        on(&mut driver, 5_099, 9, ShardEvent::Wakeup)
            .iter()
            .all(|c| !matches!(c, ShardCommand::ReadLog { .. }))
    );
    assert!(matches!(
        on(&mut driver, 5_100, 9, ShardEvent::Wakeup)[..],
        [ShardCommand::ReadLog { from: 0, .. }]
    ));
    let other = on(&mut driver, 5_100, 9, ShardEvent::LogRead(Err(failed(FailureKind::Unusable))));
    assert!(ends(&other).is_some_and(EndReason::needs_repair));
}

/// A shard that is draining, with a flush of two records in flight.
fn draining() -> ShardDriver {
    let mut driver = driver(0, 2);
    assert!(
        read(&mut driver, 0, 2, 0..2).is_empty(),
        "nothing is due, and there is no more to read"
    );
    let drain = on(&mut driver, 0, 2, ShardEvent::Drain);
    assert!(
        matches!(
            &drain[..],
            [ShardCommand::Commit { guard, .. }]
                if (guard.range.from, guard.range.to) == (0, 2)
        ),
        "{drain:?}"
    );
    driver
}

#[test]
fn whoever_drains_is_answered_when_the_flush_has_ended_however_it_did() {
    assert!(
        matches!(on(&mut driver(0, 0), 0, 0, ShardEvent::Drain)[..], [ShardCommand::Drained]),
        "nothing is open"
    );
    let mut committed = draining();
    let ended = on(&mut committed, 0, 2, ShardEvent::CommitEnded(Ok(())));
    assert!(
        matches!(
            ended[..],
            [ShardCommand::Notify(ShardNotice::FlushEnded(Ok(()))), ShardCommand::Drained]
        ),
        "{ended:?}"
    );
    assert_eq!((committed.committed(), committed.attempts()), (2, 0));
    for kind in [FailureKind::NotApplied, FailureKind::Unavailable, FailureKind::TimedOut] {
        let mut repeated = draining();
        let ended = on(&mut repeated, 0, 2, ShardEvent::CommitEnded(Err(failed(kind))));
        assert!(
            matches!(
                ended[..],
                [ShardCommand::Notify(ShardNotice::FlushEnded(Err(_))), ShardCommand::Drained]
            ),
            "{ended:?}"
        );
        assert_eq!((repeated.committed(), repeated.attempts()), (0, 1));
        assert!(
            matches!(
                on(&mut repeated, 0, 2, ShardEvent::Wakeup)[..],
                [ShardCommand::Commit { .. }]
            ),
            "it is sent again"
        );
    }
}

#[test]
fn a_commit_of_unknown_outcome_or_refused_ends_the_shard() {
    for (kind, refusal) in [
        (FailureKind::OutcomeUnknown, false),
        (FailureKind::Refused, true),
        (FailureKind::Unusable, false),
    ] {
        let ended = on(&mut draining(), 0, 2, ShardEvent::CommitEnded(Err(failed(kind))));
        let reason = ends(&ended).expect("it ends");
        assert_eq!(
            (reason.is_refusal(), reason.needs_repair()),
            (refusal, kind == FailureKind::Unusable),
            "{kind:?}"
        );
        assert!(!ended.iter().any(|command| matches!(command, ShardCommand::Commit { .. })));
    }
    assert!(
        ends(&on(&mut driver(0, 0), 0, 0, ShardEvent::CommitEnded(Ok(())))).is_some(),
        "nothing was in flight"
    );
}

#[test]
fn an_idle_owner_confirms_that_the_store_stands_where_it_left_it() {
    let mut driver = driver(5, 5);
    assert!(on(&mut driver, 0, 5, ShardEvent::Wakeup).is_empty());
    assert!(matches!(
        on(&mut driver, 1_000, 5, ShardEvent::Wakeup)[..],
        [ShardCommand::Confirm { next: 5, set: 0 }]
    ));
    let mut confirmed = |archived, stored| {
        on(&mut driver, 1_000, 5, ShardEvent::Confirmed { next: 5, set: 2, archived, stored })
    };
    assert!(confirmed(4, Ok(Some((checkpoint(5), 2)))).is_empty());
    assert!(matches!(
        confirmed(4, Err(failed(FailureKind::Unavailable)))[..],
        [ShardCommand::Notify(ShardNotice::Unconfirmed(_))]
    ));
    let other = Checkpoint { epoch: Epoch { counter: 3, nonce: 8 }, ..checkpoint(5) };
    for (archived, stored) in [
        (5, Some((checkpoint(4), 2))),
        (6, Some((checkpoint(5), 2))),
        (0, Some((checkpoint(5), 1))),
        (0, Some((other, 2))),
        (0, None),
    ] {
        let ended = confirmed(archived, Ok(stored));
        assert!(
            ends(&ended).is_some_and(EndReason::is_refusal),
            "{archived} {stored:?}: {ended:?}"
        );
    }
}

/// A shard in its seventh start at one checkpoint: it applies events one by one.
fn isolating() -> ShardDriver {
    let mut ground = Ground::new(0, (0, 2));
    ground.claim = Ok(Claim { suspects: vec![SuspectEvent::quarantined(9, 9)], ..claim(0, 7) });
    ground.start(config(false), false).expect("it starts").driver
}

#[test]
fn one_shard_at_a_time_isolates_and_each_event_is_marked_before_it_is_applied() {
    let mut driver = isolating();
    let asked = read(&mut driver, 0, 2, 0..2);
    assert!(
        matches!(asked[..], [ShardCommand::AcquireIsolation]),
        "it waits for the others: {asked:?}"
    );
    assert!(on(&mut driver, 0, 2, ShardEvent::Wakeup).is_empty(), "and reads nothing meanwhile");
    let mark = on(&mut driver, 0, 2, ShardEvent::IsolationAcquired);
    assert!(
        matches!(mark[..], [ShardCommand::MarkSuspect { epoch: EPOCH, offset: 0, index: 0 }]),
        "{mark:?}"
    );
    assert_eq!(driver.state().next(), 0, "nothing is applied before the mark stands");
    let applied = on(&mut driver, 0, 2, ShardEvent::SuspectMarked(Ok(())));
    assert!(
        matches!(applied[..], [ShardCommand::Commit { .. }, ShardCommand::WakeAgain]),
        "{applied:?}"
    );
    let done = on(&mut driver, 0, 2, ShardEvent::CommitEnded(Ok(())));
    assert!(
        matches!(done[..], [ShardCommand::Notify(_), ShardCommand::ReleaseIsolation]),
        "{done:?}"
    );
    let unmarked =
        on(&mut isolating(), 0, 2, ShardEvent::SuspectMarked(Err(failed(FailureKind::NotApplied))));
    assert!(ends(&unmarked).is_some(), "an event that could not be marked is not applied");
}

#[test]
fn a_batch_is_cut_to_the_credit_of_the_shard() {
    let mut ground = Ground::new(0, (0, 9));
    ground.claim = Ok(claim(0, 6));
    let mut careful = ground.start(config(false), false).expect("it starts").driver;
    let one = read(&mut careful, 0, 9, 0..9);
    assert_eq!(careful.state().next(), 1, "one record between two flushes");
    assert!(matches!(one[..], [ShardCommand::Commit { .. }, ShardCommand::WakeAgain]), "{one:?}");
    assert!(
        on(&mut careful, 0, 9, ShardEvent::Wakeup).is_empty(),
        "no credit before the flush has ended"
    );
}

#[test]
fn a_flush_that_does_not_follow_the_one_before_is_a_violation() {
    let mut driver = driver(0, 2);
    read(&mut driver, 0, 2, 0..2);
    driver.committed = 1;
    assert_eq!(
        violations(Invariant::SingleWriter, || _ = on(&mut driver, 0, 2, ShardEvent::Drain)),
        1
    );
}

#[test]
fn a_position_that_goes_back_is_a_violation() {
    let found = |before, after| {
        violations(Invariant::FailLoud, || check_progress(ShardId(0), before, after))
    };
    assert_eq!((found(4, 4), found(4, 9), found(4, 3)), (0, 0, 1));
}
