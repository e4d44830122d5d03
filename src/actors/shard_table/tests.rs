//! What an entry says about its shard must be true, however outdated the log's knowledge is and
//! whoever owned the shard before.

use std::sync::Mutex;

use bytes::Bytes;

use super::*;
use crate::actors::live::{LiveError, LiveReader, ShardFreshness};
use crate::clock::{Clock, ManualClock};
use crate::model::flush::LogRecord;
use crate::model::offset::{Checkpoint, LogId};
use crate::model::record::{self, Record};
use crate::model::served::ServedHours;
use crate::model::window::Hour;
use crate::persistence::log::memory::MemoryLog;
use crate::persistence::log::{AppendRequest, LogAppender, LogError, LogIdentity, ShardAssignment};
use crate::shards::series::SeriesAdmission;
use crate::shards::state::{LiveQuery, ShardLimits, ShardState};

const LOG: LogId = LogId([1; 16]);
const SHARD: ShardId = ShardId(0);
const T0: Millis = 1_000_000;
const DAY_MS: i64 = 86_400_000;

/// A log that reports the ends of an earlier moment, as Kafka does.
struct Lagging {
    log: Arc<MemoryLog>,
    seen: Mutex<(Millis, Offset)>,
}

impl Lagging {
    fn new(clock: &Arc<ManualClock>) -> Arc<Self> {
        Arc::new(Self { log: MemoryLog::new(LOG, 2, clock.clone()), seen: Mutex::new((0, 0)) })
    }

    /// The log's knowledge of its end is up to date.
    fn refresh(&self, now: Millis) {
        *self.seen.lock().unwrap() = (now, self.log.end(SHARD));
    }
}

impl LogIdentity for Lagging {
    fn id(&self) -> LogId {
        LOG
    }
    fn shard_count(&self) -> u32 {
        self.log.shard_count()
    }
}

impl LogReader for Lagging {
    fn start(&self, shard: ShardId) -> Offset {
        self.log.start(shard)
    }
    fn end(&self, shard: ShardId) -> Offset {
        assert_eq!(shard, SHARD, "the log is asked about a shard that is not owned here");
        self.seen.lock().unwrap().1
    }
    fn end_as_of(&self, _: ShardId, now: Millis) -> Millis {
        self.seen.lock().unwrap().0.min(now)
    }
    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError> {
        self.log.read(shard, from, max_bytes)
    }
    fn append_now(&self) -> Millis {
        self.log.append_now()
    }
}

fn claim(next: Offset, counter: u64) -> Claim {
    let checkpoint = Checkpoint {
        log: LOG,
        next,
        archived: next / 2,
        epoch: Epoch { counter, nonce: counter },
        appended: None,
    };
    Claim { checkpoint, attempts: 3, suspects: vec![], set: Default::default() }
}

fn begin(slot: &ShardEntry, claim: &Claim) {
    begin_with(slot, claim, 0);
}

/// An owner that claims the shard while the log holds this many records.
fn begin_with(slot: &ShardEntry, claim: &Claim, log_end: Offset) {
    let limits = ShardLimits {
        dedup_horizon_ms: 1,
        dedup_max_ids: 1,
        flush_interval_ms: 1 << 40,
        max_delta_bytes: 1 << 30,
        keep_flushed_ms: 1,
        shard_count: 2,
        panic_on_user: None,
    };
    let fresh = Claim { attempts: 1, ..claim.clone() };
    slot.install_owner(
        claim,
        ShardState::new(
            limits,
            SHARD,
            &fresh,
            vec![],
            SeriesAdmission::limited(9, vec![]),
            log_end,
        ),
    );
}

fn apply(slot: &ShardEntry, records: &[LogRecord]) {
    let at = StepContext { now: 0, log_end: records.last().map_or(0, |record| record.offset + 1) };
    slot.drive(at, ShardEvent::LogRead(Ok(records.into())), &mut VecDeque::new()).expect("owned");
}

fn read(
    slots: &ShardTable,
    shard: ShardId,
    checkpoint: &Checkpoint,
) -> Result<ShardFreshness, LiveError> {
    let (from, to, distinct, quantiles, overflow) = (Hour(0), Hour(1), true, true, false);
    let (tenant, metric, served) = ("t", "m", &[ServedHours::ingest(from, to)]);
    let question = LiveQuery { tenant, metric, from, to, served, distinct, quantiles, overflow };
    let mut reports =
        slots.read(&[(shard, Some(*checkpoint))], &question, &[], &mut |_, _, _, _| {});
    reports.remove(0).1
}

fn empty_record() -> Bytes {
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
    payload.into()
}

#[test]
fn as_of_is_never_later_than_the_end_of_the_log_proves() {
    for seed in 1..200u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        let mut now = T0;
        let clock = ManualClock::at(now);
        let log = Lagging::new(&clock);
        let slots = ShardTable::new(log.clone(), log.log.assignment(), clock.clone());
        let (slot, mut claim, mut acked) = (slots.entry(SHARD).clone(), claim(0, 1), Vec::new());
        begin(&slot, &claim);
        for _ in 0..300 {
            match below(7) {
                0 => now += below(50) as i64,
                1 | 2 => {
                    let request = AppendRequest { records: vec![(SHARD, empty_record())] };
                    acked.push(log.log.append(request).unwrap().blocking_recv().unwrap().unwrap());
                }
                3 => log.refresh(clock.uptime()),
                4 => {
                    let next = slot.read_state(ShardState::next).unwrap();
                    let mut records = log.read(SHARD, next, 1 << 20).unwrap();
                    records.truncate(below(4) as usize);
                    apply(&slot, &records);
                }
                5 => _ = slots.update_progress(SHARD, &slot),
                _ if below(10) == 0 => {
                    claim.checkpoint.epoch.counter += 1;
                    begin(&slot, &claim);
                }
                _ => {}
            }
            clock.set(now);
            let applied = slot.read_state(ShardState::next).unwrap();
            let report = read(&slots, SHARD, &claim.checkpoint).unwrap();
            let first_missing = acked.get(applied as usize).copied().unwrap_or(i64::MAX);
            assert!(
                report.as_of <= first_missing,
                "seed {seed}: {report:?}, but the record of {first_missing} is missing"
            );
            assert!(report.as_of <= now, "seed {seed}");
            // Nor does the shard vouch for a record that was acknowledged by a clock ahead of
            // what the end proves.
            let known = log.end_as_of(SHARD, clock.uptime());
            assert!(report.as_of < known + T0, "seed {seed}");
            assert!(report.age_ms >= clock.uptime() - known, "seed {seed}");
        }
    }
}

#[test]
fn what_nobody_owns_here_is_not_asked_about_and_answers_nothing() {
    let clock = ManualClock::at(T0);
    let log = Lagging::new(&clock);
    let slots = ShardTable::new(log.clone(), log.log.assignment(), clock);
    let question = claim(0, 1).checkpoint;
    assert_eq!(read(&slots, ShardId(1), &question), Err(LiveError::Unavailable));
    assert_eq!(read(&slots, ShardId(9), &question), Err(LiveError::Unavailable));
}

#[test]
fn a_vacated_slot_says_nothing_of_its_former_owner() {
    let clock = ManualClock::at(T0);
    let log = MemoryLog::new(LOG, 1, clock.clone());
    let slots = ShardTable::new(log.clone(), log.assignment(), clock);
    let (slot, first, second) = (slots.entry(SHARD), claim(8, 1), claim(20, 2));
    begin(slot, &first);
    assert_eq!(slot.attempts(), 3);
    slot.for_archiver().set_archived(first.checkpoint.epoch, 7);
    slots.update_progress(SHARD, slot);
    let positions = || {
        [slot.applied(), slot.committed(), slot.archived(), slot.for_archiver().unarchived_bytes()]
    };
    assert_eq!(positions(), [8, 8, 7, 0]);
    slot.for_supervisor().vacate();
    assert_eq!((positions(), slot.epoch()), ([0; 4], None));
    slot.for_archiver().set_archived(first.checkpoint.epoch, 8);
    assert_eq!(positions(), [0; 4], "an object that was under way moves nothing");
    assert_eq!(read(&slots, SHARD, &first.checkpoint), Err(LiveError::Unavailable));
    begin(slot, &second);
    slot.for_archiver().set_archived(first.checkpoint.epoch, 9);
    assert_eq!(positions(), [20, 20, 10, 0]);
    assert_eq!(read(&slots, SHARD, &first.checkpoint), Err(LiveError::StaleCheckpoint));
}

#[test]
fn a_node_that_takes_over_stays_ready_for_a_while() {
    let clock = ManualClock::at(T0);
    let log = MemoryLog::new(LOG, 2, clock.clone());
    let slots = ShardTable::new(log.clone(), log.assignment(), clock.clone());
    log.assign([SHARD].into());
    slots.entry(SHARD).for_supervisor().set_assigned(clock.uptime());
    assert!(!slots.all_fresh(10), "at its start a node is not ready before it has caught up");
    begin(slots.entry(SHARD), &claim(0, 1));
    slots.update_progress(SHARD, slots.entry(SHARD));
    assert!(slots.all_fresh(10));
    let other = slots.entry(ShardId(1));
    log.assign([SHARD, ShardId(1)].into());
    assert!(!slots.all_fresh(10), "nobody has begun to take it over");
    other.for_supervisor().set_assigned(clock.uptime());
    assert!(slots.all_fresh(10));
    clock.set(T0 + 11);
    slots.update_progress(SHARD, slots.entry(SHARD));
    assert!(!slots.all_fresh(10), "it took too long");
    begin(other, &claim(0, 1));
    slots.update_progress(ShardId(1), other);
    assert!(slots.all_fresh(10));
    for leap in [400 * DAY_MS, -401 * DAY_MS, DAY_MS] {
        clock.jump(leap);
        assert!(slots.all_fresh(10), "a leap of the wall clock says nothing");
    }
    log.assign(BTreeSet::new());
    assert!(slots.all_fresh(10), "who owns nothing is not behind");
}

#[test]
fn a_shard_that_cannot_be_served_does_not_make_its_node_unready() {
    let clock = ManualClock::at(T0);
    let log = MemoryLog::new(LOG, 2, clock.clone());
    let slots = ShardTable::new(log.clone(), log.assignment(), clock.clone());
    let (slot, other) = (slots.entry(SHARD), ShardId(1));
    begin(slot, &claim(0, 1));
    slots.update_progress(SHARD, slot);
    assert!(!slots.all_fresh(10), "nobody owns the other one");
    slots.stop(other, None, "its records are nowhere");
    assert!(slots.all_fresh(10), "no node could serve it");
    assert_eq!(slots.entry(other).stop_reason().as_deref(), Some("its records are nowhere"));
    slots.stop(SHARD, Some(5), "a record that nobody reads");
    assert!(!slots.all_fresh(10), "no shard of this node can be served");
    for next in [4, 5] {
        slots.clear_stop(SHARD, Some(next));
        assert!(slot.stop_reason().is_some(), "it stands before it still");
    }
    slots.clear_stop(SHARD, Some(6));
    assert!(slot.stop_reason().is_none() && slots.all_fresh(10));
    slots.clear_stop(other, Some(0));
    assert!(
        slots.entry(other).stop_reason().is_none() && !slots.all_fresh(10),
        "it has begun, and must keep up like any other"
    );
}

/// Freshness of a shard that has applied `applied` of three records. They were appended one second
/// apart, and the wall clock leapt before the third.
fn leapt(leap: i64, applied: usize) -> (ShardFreshness, Millis) {
    let clock = ManualClock::at(T0);
    let log = MemoryLog::new(LOG, 1, clock.clone());
    let slots = ShardTable::new(log.clone(), log.assignment(), clock.clone());
    let (slot, claim) = (slots.entry(SHARD), claim(0, 1));
    begin(slot, &claim);
    slots.update_progress(SHARD, slot);
    for at in 0..3 {
        clock.advance(1_000);
        clock.jump(if at == 2 { leap } else { 0 });
        drop(log.append(AppendRequest { records: vec![(SHARD, empty_record())] }).expect("taken"));
        slots.update_progress(SHARD, slot);
    }
    let records = log.read(SHARD, 0, 1 << 20).expect("reads");
    apply(slot, &records[..applied]);
    clock.advance(500);
    slots.update_progress(SHARD, slot);
    let missing = records.get(applied).map_or(clock.now(), |record| record.received);
    (read(&slots, SHARD, &claim.checkpoint).expect("answers"), missing)
}

#[test]
fn a_leap_of_the_wall_clock_makes_no_shard_stale_and_no_claim_false() {
    for leap in [0, 400 * DAY_MS, -400 * DAY_MS, 50 * 365 * DAY_MS, -500] {
        for applied in 0..3 {
            let (report, missing) = leapt(leap, applied);
            assert!(
                (500..=3_500).contains(&report.age_ms),
                "{leap}, {applied} applied: {report:?}"
            );
            assert!(
                report.as_of <= missing,
                "{leap}, {applied} applied: {report:?} claims what was received at {missing}"
            );
        }
        let (report, now) = leapt(leap, 3);
        assert_eq!(
            (report.as_of, report.age_ms, report.behind),
            (now, 0, 0),
            "{leap}: an owner that has all of it is up to date"
        );
    }
}

#[test]
fn an_owner_is_recovering_until_it_has_reached_what_the_log_held_at_its_claim() {
    let clock = ManualClock::at(T0);
    let log = MemoryLog::new(LOG, 1, clock.clone());
    let slots = ShardTable::new(log.clone(), log.assignment(), clock);
    let append = || {
        log.append(AppendRequest { records: vec![(SHARD, empty_record())] })
            .unwrap()
            .blocking_recv()
            .unwrap()
            .unwrap()
    };
    (0..3).for_each(|_| _ = append());
    let (slot, claim) = (slots.entry(SHARD), claim(0, 1));
    begin_with(slot, &claim, log.end(SHARD));
    // Records that arrive later do not count: the owner then lags but is not recovering.
    append();
    for applied in 0..=4 {
        let report = read(&slots, SHARD, &claim.checkpoint).unwrap();
        assert_eq!((report.recovering, report.behind), (applied < 3, 4 - applied));
        let records = log.read(SHARD, applied, 1).unwrap();
        apply(slot, &records);
    }
    let (_, stood) = slots.position(SHARD, &mut |_, _| {}).unwrap();
    assert!(!stood.recovering);
    begin_with(slot, &claim, log.end(SHARD));
    assert!(slots.position(SHARD, &mut |_, _| {}).unwrap().1.recovering, "its memory is gone");
}
