//! What every log must do. The double, the embedded log and Kafka run the same suite.

use std::sync::Arc;

use bytes::Bytes;

use super::embedded::{EmbeddedLog, EmbeddedLogOptions};
use super::memory::{LogFault, MemoryLog};
use super::*;
use crate::clock::{Clock, ManualClock, Stopwatch, SystemClock};

pub(super) const SHARDS: u32 = 4;
const ID: [u8; 16] = [7; 16];
const T0: i64 = 1_000;
/// How long a log on a server may take for what a local log does at once.
const PATIENCE_MS: u128 = 120_000;

/// How the suite handles a particular log.
pub(super) struct LogSetup {
    pub(super) id: LogId,
    /// The clock of a local log; `None` if the log is on a server with its own clock.
    pub(super) clock: Option<Arc<ManualClock>>,
}

impl LogSetup {
    fn local(clock: &Arc<ManualClock>) -> Self {
        Self { id: LogId(ID), clock: Some(clock.clone()) }
    }

    fn is_local(&self) -> bool {
        self.clock.is_some()
    }

    fn now(&self) -> Millis {
        self.clock.as_ref().map_or_else(|| SystemClock.now(), |clock| clock.now())
    }

    fn uptime(&self) -> Millis {
        self.clock.as_ref().map_or_else(|| SystemClock.uptime(), |clock| clock.uptime())
    }

    /// Waits until `is_so`. A local log gets no time: it must hold at once.
    fn soon(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let watch = Stopwatch::start();
        while !is_so() {
            assert!(!self.is_local() && watch.elapsed().as_millis() < PATIENCE_MS, "{what}");
            std::thread::yield_now();
        }
    }
}

pub(super) fn request(records: &[(u32, &str)]) -> AppendRequest {
    AppendRequest {
        records: records
            .iter()
            .map(|(shard, text)| (ShardId(*shard), Bytes::copy_from_slice(text.as_bytes())))
            .collect(),
    }
}

pub(super) fn append(log: &dyn EventLog, records: &[(u32, &str)]) -> i64 {
    log.append(request(records))
        .expect("taken")
        .blocking_recv()
        .expect("answered")
        .expect("durable")
}

/// Reads everything from `from` on, about `bite` bytes at a time, and checks the offsets.
pub(super) fn read(
    log: &dyn EventLog,
    shard: u32,
    from: Offset,
    bite: usize,
) -> Vec<(i64, String)> {
    let (shard, mut next, mut found) = (ShardId(shard), from, Vec::new());
    let mut patience = 60;
    while next < log.end(shard) {
        let records = log.read(shard, next, bite).expect("reads");
        if records.is_empty() && log.bytes_on_disk() == 0 && patience > 0 {
            // The server did not answer in time.
            patience -= 1;
            continue;
        }
        assert!(!records.is_empty(), "at least one record, however small the bite");
        for record in records {
            assert_eq!(record.offset, next);
            found
                .push((record.appended, String::from_utf8(record.payload.to_vec()).expect("text")));
            next += 1;
        }
    }
    found
}

pub(super) fn texts(log: &dyn EventLog, shard: u32) -> Vec<String> {
    read(log, shard, log.start(ShardId(shard)), 1 << 20).into_iter().map(|(_, text)| text).collect()
}

fn requests_keep_their_order_in_every_shard(log: &dyn EventLog, setting: &LogSetup) {
    assert_eq!((log.id(), log.shard_count()), (setting.id, SHARDS));
    assert_eq!(log.read(ShardId(0), 0, 100), Ok(vec![]), "an empty shard is read as empty");
    append(log, &[(1, "a"), (3, "b"), (1, "c")]);
    append(log, &[(3, "d")]);
    append(log, &[]);
    assert_eq!(
        (texts(log, 1), texts(log, 3)),
        (vec!["a".to_owned(), "c".to_owned()], vec!["b".to_owned(), "d".to_owned()])
    );
    assert_eq!(
        [0, 1, 2, 3].map(|s| (log.start(ShardId(s)), log.end(ShardId(s)))),
        [(0, 0), (0, 2), (0, 0), (0, 2)]
    );
    assert!(log.bytes_on_disk() >= 4 || !setting.is_local());
    assert_eq!(
        [0, 1, 2, 3].map(|s| log.bounds(ShardId(s))),
        [Ok((0, 0)), Ok((0, 2)), Ok((0, 0)), Ok((0, 2))]
    );
    assert_eq!(log.read(ShardId(1), 2, 100), Ok(vec![]), "at the end there is nothing");
    let beyond = LogError::BeyondEnd { shard: ShardId(1), from: 3, end: 2 };
    assert_eq!(log.read(ShardId(1), 3, 100), Err(beyond));
}

fn reading_in_bites_of_any_size_finds_the_same(log: &dyn EventLog, _: &LogSetup) {
    let sent: Vec<String> = (0..150).map(|i| format!("{i} {}", "x".repeat(i % 70))).collect();
    for text in &sent {
        append(log, &[(2, text), (0, "beside")]);
    }
    for bite in [0, 1, 50, 700, 1 << 20] {
        let found: Vec<String> = read(log, 2, 0, bite).into_iter().map(|(_, text)| text).collect();
        assert_eq!(found, sent, "in bites of {bite}");
    }
    assert!(log.read(ShardId(2), 0, 700).expect("reads").len() < 100, "a bite is bounded");
    assert_eq!(read(log, 2, 149, 10)[0].1, sent[149]);
}

fn append_times_come_from_the_clock_and_never_decrease(log: &dyn EventLog, setting: &LogSetup) {
    let mut expected = Vec::new();
    let Some(clock) = &setting.clock else {
        let before = setting.now();
        for _ in 0..20 {
            expected.push((append(log, &[(0, "r"), (1, "r")]), "r".to_owned()));
        }
        let after = setting.now();
        assert!(
            expected.is_sorted() && expected[0].0 >= before && expected[19].0 <= after,
            "{before} {expected:?} {after}"
        );
        let latest =
            |shard| read(log, shard, 0, 1).into_iter().map(|(time, _)| time).collect::<Vec<_>>();
        let acknowledged = expected.iter().map(|(time, _)| *time).collect::<Vec<_>>();
        let larger: Vec<_> = latest(0).into_iter().zip(latest(1)).map(|(a, b)| a.max(b)).collect();
        assert_eq!(larger, acknowledged, "a request is as late as its latest record");
        for from in 0..20 {
            assert_eq!(
                read(log, 0, from, 1),
                read(log, 0, 0, 1 << 20)[from as usize..],
                "wherever reading starts, here at {from}"
            );
        }
        return;
    };
    // Time that passes, then the jump of the wall clock, and the append time expected afterwards.
    let day = 86_400_000;
    let steps = [
        (0, 0, 0),
        (5, 0, 5),
        (0, -day, 5),
        (4, 0, 7),
        (0, 2 * day, 7),
        (3, 0, 13),
        (10, 0, 33),
        (0, -day, 33),
        (1, 0, 33),
        (1, 0, 34),
    ];
    let mut received = Vec::new();
    for (passed, leap, stamped) in steps {
        clock.advance(passed);
        clock.jump(leap);
        assert_eq!(
            append(log, &[(0, "r"), (1, "r")]),
            T0 + stamped,
            "{passed} passed, then the clock leapt by {leap}"
        );
        expected.push((T0 + stamped, "r".to_owned()));
        received.push(clock.now());
    }
    assert_eq!((read(log, 0, 0, 1), read(log, 1, 0, 1)), (expected.clone(), expected));
    let found: Vec<Millis> = log
        .read(ShardId(0), 0, 1 << 20)
        .expect("reads")
        .iter()
        .map(|record| record.received)
        .collect();
    assert_eq!(found, received, "people see what the wall clock showed");
}

fn released_records_are_refused_and_the_rest_stays(log: &dyn EventLog, setting: &LogSetup) {
    let text = "z".repeat(900);
    for _ in 0..30 {
        append(log, &[(0, &text), (1, "k")]);
    }
    assert_eq!(log.release(&[30, 30]), Ok(0), "floors of another shard count free nothing");
    let before = log.bytes_on_disk();
    let freed = log.release(&[20, 30, 0, 0]).expect("releases");
    assert!(freed > 0 && log.bytes_on_disk() < before || !setting.is_local());
    let start = log.start(ShardId(0));
    assert!(start > 0 && start <= 20, "starts at {start}, never above its floor");
    let released = LogError::Released { shard: ShardId(0), from: start - 1, start };
    assert_eq!(log.read(ShardId(0), start - 1, 1), Err(released));
    assert_eq!(read(log, 0, start, 1).len() as u64, 30 - start);
    append(log, &[(0, "next")]);
    assert_eq!(
        (log.end(ShardId(0)), read(log, 0, 30, 1)[0].1.as_str()),
        (31, "next"),
        "offsets go on"
    );
    log.release(&[5, 5, 0, 0]).expect("releases");
    assert_eq!(log.start(ShardId(0)), start, "a lower floor takes nothing back");
}

fn a_closed_log_is_read_but_not_written(log: &dyn EventLog, _: &LogSetup) {
    append(log, &[(0, "kept")]);
    let refusal = log.append(request(&[(SHARDS, "x")]));
    assert!(matches!(refusal, Err(AppendError::Closed(why)) if why.contains("shard 4")));
    log.close();
    assert!(matches!(log.append(request(&[(0, "late")])), Err(AppendError::Closed(_))));
    assert_eq!(texts(log, 0), ["kept"]);
    log.close();
}

fn concurrent_requests_are_all_there_each_writers_in_order(log: &dyn EventLog, _: &LogSetup) {
    std::thread::scope(|scope| {
        for writer in 0..8u32 {
            scope.spawn(move || {
                (0..50).for_each(|i| {
                    _ = append(log, &[(writer % 4, &format!("{writer} {i}")), (0, "all")])
                })
            });
        }
    });
    assert_eq!(texts(log, 0).iter().filter(|text| *text == "all").count(), 400);
    for writer in 0..8 {
        let mine: Vec<_> = texts(log, writer % 4)
            .into_iter()
            .filter(|t| t.starts_with(&format!("{writer} ")))
            .collect();
        assert_eq!(mine, (0..50).map(|i| format!("{writer} {i}")).collect::<Vec<_>>());
    }
}

fn its_node_owns_every_shard_and_its_ends_are_of_now(log: &dyn EventLog, setting: &LogSetup) {
    let mut assignment = log.assignment();
    setting
        .soon("owns every shard", || **assignment.borrow() == (0..SHARDS).map(ShardId).collect());
    assignment.mark_unchanged();
    log.relinquish(&[ShardId(1)].into());
    assert!(
        !assignment.has_changed().expect("the log lives"),
        "what is let go is what had left the assignment"
    );
    append(log, &[(1, "a")]);
    let now = setting.uptime();
    setting
        .soon("its end is known as of now", || log.end_as_of(ShardId(1), setting.uptime()) >= now);
    assert!(log.end_as_of(ShardId(1), now) <= now);
    assert_eq!(log.end(ShardId(1)), 1);
}

type Case = fn(&dyn EventLog, &LogSetup);
pub(super) const CASES: [Case; 7] = [
    requests_keep_their_order_in_every_shard,
    reading_in_bites_of_any_size_finds_the_same,
    append_times_come_from_the_clock_and_never_decrease,
    released_records_are_refused_and_the_rest_stays,
    a_closed_log_is_read_but_not_written,
    concurrent_requests_are_all_there_each_writers_in_order,
    its_node_owns_every_shard_and_its_ends_are_of_now,
];

#[test]
fn the_double_conforms() {
    for case in CASES {
        let clock = ManualClock::at(T0);
        case(&*MemoryLog::new(LogId(ID), SHARDS, clock.clone()), &LogSetup::local(&clock));
    }
}

#[test]
fn the_embedded_log_conforms() {
    for case in CASES {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = ManualClock::at(T0);
        let options = EmbeddedLogOptions {
            dir: dir.path().to_owned(),
            shard_count: SHARDS,
            segment_bytes: 4096,
            max_waiting_bytes: 1 << 20,
            max_commit_bytes: 1 << 16,
            tail_cache_bytes: 256,
            log_id_if_new: ID,
            clock: clock.clone() as Arc<dyn Clock>,
        };
        case(&*EmbeddedLog::open(options).expect("opens").0, &LogSetup::local(&clock));
    }
}

#[test]
fn faults_do_what_they_say() {
    for (fault, unknown, kept) in
        [(LogFault::Refused, false, 0), (LogFault::Lost, true, 0), (LogFault::ReplyLost, true, 1)]
    {
        let log = MemoryLog::new(LogId(ID), SHARDS, ManualClock::at(T0));
        let mut armed = Some(fault);
        log.set_faults(move || armed.take());
        let outcome =
            log.append(request(&[(0, "x")])).expect("taken").blocking_recv().expect("answered");
        assert_eq!(matches!(outcome, Err(AppendError::Unknown(_))), unknown);
        assert!(outcome.is_err() && log.end(ShardId(0)) == kept, "{fault:?}");
        append(&*log, &[(0, "after")]);
        log.lose_tail(ShardId(0), kept);
        assert_eq!(log.end(ShardId(0)), kept);
    }
}

#[test]
fn nodes_on_one_log_have_assignments_of_their_own() {
    let first = MemoryLog::new(LogId(ID), SHARDS, ManualClock::at(T0));
    let second = first.join();
    append(&*first, &[(0, "x")]);
    assert_eq!((second.id(), texts(&*second, 0)), (first.id(), vec!["x".to_owned()]));
    assert!(second.assignment().borrow().is_empty());
    let held = first.held();
    first.assign([ShardId(0), ShardId(1)].into());
    assert_eq!(
        held.borrow().len(),
        SHARDS as usize,
        "what is taken away is held until it is let go"
    );
    first.relinquish(&[ShardId(0), ShardId(2), ShardId(3)].into());
    assert_eq!(
        **held.borrow(),
        [ShardId(0), ShardId(1)].into(),
        "what was assigned again meanwhile is held again"
    );
    second.assign([ShardId(2)].into());
    assert_eq!(**second.assignment().borrow(), [ShardId(2)].into());
    first.close();
    append(&*second, &[(0, "y")]);
    assert_eq!(texts(&*first, 0), ["x", "y"], "closed is the node, not the log");
}
