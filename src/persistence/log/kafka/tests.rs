//! The log on real brokers, and on librdkafka's mock where errors must be provoked.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::admin::AdminOptions;
use rdkafka::config::ClientConfig;
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::super::conformance::{CASES, LogSetup, SHARDS, append, read, request, texts};
use super::super::{LogError, LogReader, LogRetention};
use super::*;
use crate::clock::SystemClock;
use crate::model::offset::Offset;
use crate::model::record;

#[path = "../../../../tests/support/kafka.rs"]
mod support;
use support::Kafka;

mod foreign;

const MEMBER: &str = "ROLLMILL_TEST_MEMBER";

fn options(brokers: &str, topic: &str) -> KafkaOptions {
    KafkaOptions {
        connection: KafkaConnection {
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            properties: KafkaProperties::default(),
            timeout: Duration::from_secs(20),
        },
        shard_count: SHARDS,
        group: Some(format!("{topic}.group")),
        session_timeout: Duration::from_secs(6),
        handover: Duration::from_secs(2),
        delivery_timeout: Duration::from_secs(20),
        max_waiting_bytes: 64 << 20,
        prefetch_bytes: 16 << 20,
        refresh: Duration::from_millis(50),
        safety: Duration::ZERO,
        replication: 1,
        min_isr: 1,
        passed_gaps: PassedGaps::default(),
        clock: Arc::new(SystemClock),
    }
}

fn spec(options: &KafkaOptions) -> TopicSpec {
    TopicSpec {
        partitions: options.shard_count,
        replication: options.replication,
        min_isr: options.min_isr,
    }
}

fn create(options: &KafkaOptions) -> topic::TopicDescription {
    let random = getrandom::u64().expect("randomness");
    TopicAdmin::new(&options.connection)
        .expect("settings")
        .create(&spec(options), random)
        .expect("creates")
}

/// Options for a new topic on the shared broker.
fn fresh() -> KafkaOptions {
    static COUNT: std::sync::atomic::AtomicU64 = AtomicU64::new(0);
    let topic = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let options = options(&Kafka::shared().brokers(), &topic);
    create(&options);
    options
}

fn open(options: &KafkaOptions) -> Arc<KafkaLog> {
    KafkaLog::open(options.clone()).expect("opens")
}

/// Why the log cannot be opened, though the cluster is reachable.
fn refusal(options: KafkaOptions) -> String {
    match KafkaLog::open(options) {
        Err(LogOpenError::Invalid(why)) => why,
        Err(LogOpenError::Unavailable(why)) => panic!("no waiting mends it: {why}"),
        Ok(_) => panic!("it is opened"),
    }
}

fn delete_topic(options: &KafkaOptions) {
    let admin = TopicAdmin::new(&options.connection).expect("settings");
    let raw: rdkafka::admin::AdminClient<settings::QuietContext> = options
        .connection
        .client_config()
        .create_with_context(settings::QuietContext)
        .expect("a client");
    let wait = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    futures::executor::block_on(raw.delete_topics(&[&options.connection.topic], &wait))
        .expect("deletes")[0]
        .as_ref()
        .expect("deletes");
    soon("the topic is gone", 20, || admin.describe(&spec(options)).is_err());
}

/// Waits until `is_so`. `seconds` is for an idle machine; a machine that also builds gets
/// three times as long.
fn soon(what: &str, seconds: u64, mut is_so: impl FnMut() -> bool) -> Duration {
    let watch = Stopwatch::start();
    while !is_so() {
        assert!(
            watch.elapsed() < Duration::from_secs(3 * seconds),
            "{what}: not within {} s",
            3 * seconds
        );
        std::thread::park_timeout(Duration::from_millis(2));
    }
    watch.elapsed()
}

fn owned(log: &KafkaLog) -> BTreeSet<ShardId> {
    (**log.assignment().borrow()).clone()
}

fn all() -> BTreeSet<ShardId> {
    (0..SHARDS).map(ShardId).collect()
}

#[test]
fn kafka_conforms() {
    for case in CASES {
        let log = open(&fresh());
        case(&*log, &LogSetup { id: log.id(), clock: None });
    }
}

/// Expects one of up to four runs to be fast enough, so that a busy machine does not fail the test.
fn quick(what: &str, within: Duration, run: impl Fn() -> Duration) {
    let mut took = vec![run()];
    while took.len() < 4 && took.last() >= Some(&within) {
        took.push(run());
    }
    assert!(took.last() < Some(&within), "{what}: {took:?}");
}

#[test]
fn two_members_share_the_shards_and_a_graceful_stop_hands_over_at_once() {
    // If the member did not leave the group, it would take the session timeout of 6 s.
    quick("a graceful stop hands over at once", Duration::from_secs(3), graceful_stop);
}

fn graceful_stop() -> Duration {
    let mut options = fresh();
    options.handover = Duration::from_secs(10);
    let first = open(&options);
    soon("the first owns everything", 30, || owned(&first) == all());
    append(&*first, &[(0, "a"), (1, "b"), (2, "c"), (3, "d")]);
    let second = open(&options);
    // The rebalance waits until the actors of the revoked shards have stopped.
    soon("something is revoked", 30, || owned(&first).len() < 4);
    let revoked: BTreeSet<ShardId> = all().difference(&owned(&first)).copied().collect();
    assert!(owned(&second).is_empty(), "nobody has let go yet");
    first.relinquish(&revoked);
    let handed = soon("the second owns what was let go", 20, || owned(&second) == revoked);
    assert_eq!(owned(&first).len(), 2);
    for shard in &revoked {
        assert_eq!(second.end(*shard), 1, "its end is known when it is assigned");
    }
    first.close();
    let took = soon("the second owns everything", 20, || owned(&second) == all());
    println!("handed over {handed:?} after being let go; {took:?} after a graceful stop");
    took
}

/// The test below runs this as a process of its own and kills it.
#[test]
#[ignore = "the other half of a_killed_member_loses_its_shards_within_the_session"]
fn member_to_be_killed() {
    let Ok(text) = std::env::var(MEMBER) else { return };
    let (brokers, topic) = text.split_once('/').expect("brokers/topic");
    let log = open(&options(brokers, topic));
    soon("it is killed", 120, || log.shard_count() == 0);
}

#[test]
fn a_killed_member_loses_its_shards_within_the_session() {
    quick("the session is 6 s", Duration::from_secs(12), killed_member);
}

fn killed_member() -> Duration {
    let options = fresh();
    let mut member = std::process::Command::new(std::env::current_exe().expect("this"));
    member.args(["--exact", "persistence::log::kafka::tests::member_to_be_killed", "--ignored"]);
    member.env(MEMBER, format!("{}/{}", options.connection.brokers, options.connection.topic));
    let mut member = member.stdout(std::process::Stdio::null()).spawn().expect("starts");
    let log = open(&options);
    soon("the shards are shared", 60, || owned(&log).len() == 2);
    member.kill().expect("kill");
    member.wait().expect("wait");
    let took = soon("everything is ours", 20, || owned(&log) == all());
    println!("taken over {took:?} after kill -9");
    took
}

#[test]
fn a_broker_that_is_killed_and_comes_back_loses_nothing() {
    let mut kafka = Kafka::start(1);
    let options = options(&kafka.brokers(), "t");
    create(&options);
    let log = open(&options);
    let stop = AtomicBool::new(false);
    let (mut acked, mut unknown) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut acked, mut unknown, mut n) = (Vec::new(), 0, 0u32);
            while !stop.load(Ordering::Acquire) {
                let text = format!("r{n}");
                n += 1;
                match log
                    .append(request(&[(0, &text), (1, &text)]))
                    .expect("taken")
                    .blocking_recv()
                    .expect("answered")
                {
                    Ok(_) => acked.push(text),
                    Err(AppendError::Unknown(_)) => unknown += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            (acked, unknown)
        });
        soon("some are durable", 20, || log.end(ShardId(0)) > 20);
        kafka.kill(1);
        let known = log.end_as_of(ShardId(0), i64::MAX);
        kafka.restart(1);
        let end = log.end(ShardId(0));
        soon("acknowledgements go on", 40, || log.end(ShardId(0)) > end + 20);
        soon("what is known is fresh again", 20, || log.end_as_of(ShardId(0), i64::MAX) > known);
        stop.store(true, Ordering::Release);
        (acked, unknown) = writer.join().expect("writes");
    });
    println!("{} acknowledged, {unknown} unknown", acked.len());
    for shard in [0, 1] {
        let found: Vec<String> = texts(&*log, shard);
        assert!(acked.iter().all(|text| found.contains(text)), "shard {shard} lost something");
        let once: BTreeSet<&String> = found.iter().collect();
        assert_eq!(once.len(), found.len(), "idempotent: nothing twice");
    }
}

#[test]
fn a_topic_made_anew_is_refused_loudly() {
    let options = fresh();
    let log = open(&options);
    for _ in 0..5 {
        append(&*log, &[(0, "old"), (1, "old")]);
    }
    assert_eq!(texts(&*log, 0).len(), 5);
    delete_topic(&options);
    create(&options);
    let mut outcomes = Vec::new();
    soon("appends are refused", 60, || {
        let outcome = match log.append(request(&[(0, "new")])) {
            Err(refused) => Err(refused),
            Ok(ticket) => ticket.blocking_recv().expect("answered"),
        };
        outcomes.push(outcome);
        matches!(outcomes.last(), Some(Err(AppendError::Closed(why))) if why.contains("made anew"))
    });
    assert!(
        outcomes.iter().all(Result::is_err),
        "nothing that lies where acknowledged records lay is acknowledged: {outcomes:?}"
    );
    let lost = log.read(ShardId(0), 5, 100);
    assert!(
        matches!(lost, Ok(ref none) if none.is_empty()) || lost.is_err(),
        "nothing new is taken for the next record: {lost:?}"
    );
    soon("the end shows it", 30, || log.end(ShardId(1)) < 5);
    assert_ne!(open(&options).id(), log.id(), "the next start sees another log");
}

#[test]
fn what_is_deleted_below_a_reader_is_told_from_what_is_lost() {
    let options = fresh();
    let log = open(&options);
    for n in 0..20 {
        append(&*log, &[(0, &format!("{n}"))]);
    }
    assert_eq!(read(&*log, 0, 0, 1)[0].1, "0");
    // As if another node released.
    TopicAdmin::new(&options.connection)
        .expect("settings")
        .delete_records_below(&[(ShardId(0), 10)])
        .expect("deletes");
    let released = LogError::Released { shard: ShardId(0), from: 3, start: 10 };
    soon("reading below is refused", 20, || match log.read(ShardId(0), 3, 1) {
        Err(error) => error == released,
        // Records that were fetched before the release are still valid.
        Ok(records) => records.iter().all(|record| record.payload == record.offset.to_string()),
    });
    let late = open(&options);
    assert_eq!(late.read(ShardId(0), 3, 1), Err(released));
    assert_eq!(read(&*late, 0, 10, 1).len(), 10);
    assert_eq!(late.bounds(ShardId(0)), Ok((10, 20)));
}

#[test]
fn a_cursor_that_takes_nothing_rests_until_it_is_read_again() {
    let log = open(&fresh());
    for n in 0..10 {
        append(&*log, &[(0, &format!("r{n}"))]);
    }
    let shard = ShardId(0);
    assert_eq!(read(&*log, 0, 5, usize::MAX).len(), 5);
    let mut first = Vec::new();
    soon("what is far behind is there", 30, || {
        first = log.read(shard, 0, 1).expect("reads");
        !first.is_empty()
    });
    soon("the one that lags rests", 30, || log.shared.reader.fetching() == 1);
    append(&*log, &[(0, "last")]);
    assert_eq!(read(&*log, 0, 10, usize::MAX).len(), 1, "the other one goes on");
    assert_eq!(log.read(shard, 0, 1).expect("of what it kept"), first);
    assert_eq!(log.shared.reader.fetching(), 1, "nothing was fetched for it");
    let all = read(&*log, 0, 0, 1);
    assert_eq!(all.len(), 11);
    assert_eq!(
        read(&*open(&KafkaOptions { group: None, ..log.shared.options.clone() }), 0, 0, usize::MAX),
        all,
        "times, too"
    );
}

#[test]
fn young_records_are_not_released() {
    let mut options = fresh();
    options.safety = Duration::from_secs(3600);
    let log = open(&options);
    for _ in 0..5 {
        append(&*log, &[(0, "young")]);
    }
    assert_eq!(log.release(&[5, 0, 0, 0]), Ok(0));
    assert_eq!(log.bounds(ShardId(0)), Ok((0, 5)));
}

#[test]
fn three_brokers_take_writes_while_two_live_and_acknowledge_nothing_with_one() {
    let mut kafka = Kafka::start(3);
    let mut options = options(&kafka.brokers(), "t");
    (options.replication, options.min_isr, options.group) = (3, 2, None);
    options.delivery_timeout = Duration::from_secs(15);
    let admin = TopicAdmin::new(&options.connection).expect("settings");
    soon("three brokers are there", 60, || {
        // The topic may exist although the answer came too late.
        let made = admin.create(&spec(&options), getrandom::u64().expect("randomness"));
        made.inspect_err(|why| eprintln!("{why}")).is_ok() || admin.exists().unwrap_or(false)
    });
    let mut opened = None;
    // Brokers learn of a new topic one after the other.
    soon("the log opens", 30, || {
        opened = KafkaLog::open(options.clone()).ok();
        opened.is_some()
    });
    let log = opened.expect("opened");
    let three = request(&[(0, "three"), (1, "three"), (2, "three"), (3, "three")]);
    soon("three take writes", 30, || {
        log.append(three.clone()).expect("taken").blocking_recv().expect("answered").is_ok()
    });
    kafka.kill(3);
    let all_shards = request(&[(0, "two"), (1, "two"), (2, "two"), (3, "two")]);
    soon("writes go on with two", 60, || {
        log.append(all_shards.clone()).expect("taken").blocking_recv().expect("answered").is_ok()
    });
    kafka.kill(2);
    for _ in 0..2 {
        let outcome =
            log.append(request(&[(0, "one"), (1, "one"), (2, "one"), (3, "one")])).expect("taken");
        let outcome = outcome.blocking_recv().expect("answered");
        assert!(
            matches!(outcome, Err(AppendError::Unknown(_))),
            "below min ISR is no success: {outcome:?}"
        );
    }
    kafka.restart(2);
    soon("writes go on again", 90, || {
        log.append(request(&[(0, "again"), (3, "again")]))
            .expect("taken")
            .blocking_recv()
            .expect("answered")
            .is_ok()
    });
    for shard in 0..4 {
        let found = texts(&*log, shard);
        assert!(
            found.contains(&"three".to_owned()) && found.contains(&"two".to_owned()),
            "shard {shard}: {found:?}"
        );
    }
}

#[test]
fn a_plain_client_reads_the_records() {
    let options = fresh();
    let log = open(&options);
    let event = record::RecordEvent {
        series: 0,
        timestamp: 7,
        value: None,
        user: Some("u"),
        id: None,
        raw: br#"{"metric":"m"}"#,
    };
    let series = vec![record::SeriesEntry { id: &[1; 16], key: b"key" }];
    let written = record::Record {
        version: record::VERSION,
        tenant: "shop",
        gateway: 9,
        series,
        events: vec![event],
        stamp: Some(1),
    };
    let mut payload = Vec::new();
    record::encode(&written, &mut payload);
    let records = vec![(ShardId(2), Bytes::from(payload))];
    let appended = log
        .append(AppendRequest { records })
        .expect("taken")
        .blocking_recv()
        .expect("answered")
        .expect("durable");

    let mut plain = ClientConfig::new();
    plain
        .set("bootstrap.servers", &options.connection.brokers)
        .set("group.id", "plain")
        .set("auto.offset.reset", "earliest");
    let plain: rdkafka::consumer::BaseConsumer = plain.create().expect("a client");
    rdkafka::consumer::Consumer::subscribe(&plain, &[&options.connection.topic])
        .expect("subscribes");
    let mut message = None;
    soon("it is read", 30, || {
        message = plain.poll(Duration::from_millis(200)).map(|m| m.expect("reads").detach());
        message.is_some()
    });
    let message = message.expect("read");
    assert_eq!((message.partition(), message.offset(), message.key()), (2, 0, None));
    assert_eq!(message.timestamp(), rdkafka::message::Timestamp::LogAppendTime(appended));
    // Decodes the envelope as docs/reference/kafka.md describes it, without our code.
    #[allow(clippy::type_complexity)] // the layout, in the order of the page
    let (version, tenant, gateway, series, events, stamp): (
        u8,
        String,
        u32,
        Vec<(serde_bytes::ByteBuf, serde_bytes::ByteBuf)>,
        Vec<PlainEvent>,
        serde_bytes::ByteBuf,
    ) = rmp_serde::from_slice(message.payload().expect("a payload")).expect("MessagePack");
    assert_eq!(
        (version, tenant.as_str(), gateway, series[0].1.as_ref()),
        (2, "shop", 9, &b"key"[..])
    );
    assert_eq!(stamp.as_ref(), 1_i64.to_be_bytes());
    assert_eq!(
        (events[0].1, events[0].3.as_deref(), events[0].5.as_ref()),
        (7, Some("u"), &br#"{"metric":"m"}"#[..])
    );
}

type PlainEvent = (u32, i64, Option<i64>, Option<String>, Option<String>, serde_bytes::ByteBuf);

#[test]
fn a_topic_that_breaks_promises_is_refused_with_the_command_that_mends_it() {
    let options = fresh();
    let mut more = options.clone();
    (more.shard_count, more.min_isr) = (SHARDS + 1, 2);
    let refused = refusal(more);
    for part in
        ["partitions is 4, must be 5", "--alter --entity-type topics", "min.insync.replicas=2"]
    {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    let mut missing = options.clone();
    missing.connection.topic = "nowhere".to_owned();
    assert!(refusal(missing).contains("rollmill topic create"));
    let exists = TopicAdmin::new(&options.connection)
        .expect("settings")
        .create(&spec(&options), 1)
        .expect_err("exists");
    assert!(exists.contains("rollmill topic describe"), "{exists}");
}

#[test]
fn a_topic_begins_where_another_log_ended_and_nobody_opens_it_before() {
    let options = options(&Kafka::shared().brokers(), "filled");
    let admin = TopicAdmin::new(&options.connection).expect("settings");
    let (spec, connection) = (spec(&options), &options.connection);
    let identity = topic::migrated_identity(u64::MAX);
    assert!(!admin.exists().expect("answers"));
    let made = admin.create_unfinished(&spec, identity).expect("made");
    assert_eq!((made.log, made.pending_identity), (None, Some(identity)));
    let refused = refusal(options.clone());
    assert!(refused.contains("`rollmill migrate` fills the topic and has not ended"), "{refused}");

    let ends = [120_000, 0, 1, 7];
    let run = |ends: &[Offset]| {
        let mut told = Vec::new();
        topic_fill::fill_topic(&admin, connection, ends, &mut |there| told.push(there))
            .map(|()| told)
    };
    // As far as a run came that was killed.
    assert!(run(&[50_000, 0, 0, 3]).is_ok());
    let told = run(&ends).expect("filled");
    assert!(
        told.first() == Some(&50_003) && told.last() == Some(&120_008) && told.is_sorted(),
        "{told:?}"
    );
    assert_eq!(run(&ends), Ok(vec![120_008]), "again: nothing is left to do");
    assert_eq!(
        run(&[9, 0, 1, 7]),
        Err(topic_fill::FillError::TooLong { shard: ShardId(0), end: 120_000, wanted: 9 })
    );

    let found = admin.assign_identity(&spec, identity).expect("finished");
    assert_eq!(
        (found.log, found.pending_identity, &found.drift[..]),
        (Some(topic::log_id(&found.cluster, "filled", identity)), None, &[][..])
    );
    let log = open(&options);
    let bounds = |shard| log.bounds(ShardId(shard)).expect("bounds");
    assert_eq!(
        [bounds(0), bounds(1), bounds(2), bounds(3)],
        [(120_000, 120_000), (0, 0), (1, 1), (7, 7)]
    );
    append(&*log, &[(0, "a"), (1, "b"), (3, "c")]);
    for (shard, offset, text) in [(0, 120_000, "a"), (1, 0, "b"), (3, 7, "c")] {
        let mut found = Vec::new();
        soon("the new record is read", 20, || {
            found = log.read(ShardId(shard), offset, 9).expect("reads");
            !found.is_empty()
        });
        assert_eq!(
            (found.len(), found[0].offset, &found[0].payload[..]),
            (1, offset, text.as_bytes())
        );
    }
    admin.delete().expect("deleted");
    assert!(!admin.exists().expect("answers"));
}

/// `nice cargo test --release --lib fill_rate -- --ignored --nocapture`
#[test]
#[ignore = "prints figures"]
fn fill_rate() {
    let options = options(&Kafka::shared().brokers(), "rate");
    let admin = TopicAdmin::new(&options.connection).expect("settings");
    admin.create_unfinished(&spec(&options), topic::migrated_identity(7)).expect("made");
    let watch = Stopwatch::start();
    topic_fill::fill_topic(&admin, &options.connection, &[2_500_000; 4], &mut |_| {})
        .expect("filled");
    println!("10,000,000 offsets in {:?}", watch.elapsed());
}

/// A log on librdkafka's mock, which has no admin API.
fn mocked(
    mock: &MockCluster<'_, rdkafka::producer::DefaultProducerContext>,
    change: impl FnOnce(&mut KafkaOptions),
) -> Arc<KafkaLog> {
    let mut options = options(&mock.bootstrap_servers(), "t");
    mock.create_topic("t", SHARDS as i32, 1).expect("a topic");
    options.group = None;
    change(&mut options);
    let admin = TopicAdmin::new(&options.connection).expect("settings");
    KafkaLog::open_checked(options, admin, LogId([1; 16])).expect("opens")
}

#[test]
fn one_record_that_fails_makes_the_request_unknown() {
    let mock = MockCluster::new(1).expect("a mock");
    let log = mocked(&mock, |_| {});
    append(&*log, &[(0, "a"), (1, "b")]);
    mock.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED],
    );
    let outcome = log
        .append(request(&[(0, "c"), (1, "d")]))
        .expect("taken")
        .blocking_recv()
        .expect("answered");
    assert!(matches!(outcome, Err(AppendError::Unknown(_))), "{outcome:?}");
    assert!(log.assignment().borrow().is_empty(), "a node without a group owns nothing");
}

#[test]
fn bytes_that_wait_are_bounded_and_an_outage_ends_as_unknown() {
    let mock = MockCluster::new(1).expect("a mock");
    let log = mocked(&mock, |options| {
        options.max_waiting_bytes = 1000;
        options.delivery_timeout = Duration::from_secs(5);
    });
    mock.broker_down(1).expect("down");
    let payload = "x".repeat(400);
    let waiting: Vec<AppendTicket> =
        (0..2).map(|_| log.append(request(&[(0, &payload)])).expect("taken")).collect();
    let refused = log.append(request(&[(0, &payload)])).err();
    assert_eq!(refused, Some(AppendError::Overloaded { waiting_bytes: 800, limit: 1000 }));
    for ticket in waiting {
        assert!(matches!(ticket.blocking_recv().expect("answered"), Err(AppendError::Unknown(_))));
    }
    log.append(request(&[(0, &payload)])).expect("what has an outcome waits no longer");
    assert_eq!(log.read(ShardId(0), 0, 1), Ok(vec![]), "an outage is no error of the reader");
}
