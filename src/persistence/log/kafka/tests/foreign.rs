//! What other programs may do to the topic: add partitions, write transactions.

use rdkafka::admin::{AdminClient, AlterConfig, ConfigSource, NewPartitions, ResourceSpecifier};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::*;
use crate::clock::Clock;
use crate::config::Config;
use crate::model::flush::LogRecord;

fn add_partitions(options: &KafkaOptions, partitions: usize) {
    let raw: AdminClient<settings::QuietContext> = options
        .connection
        .client_config()
        .create_with_context(settings::QuietContext)
        .expect("a client");
    let wait = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    let more = NewPartitions::new(&options.connection.topic, partitions);
    futures::executor::block_on(raw.create_partitions([&more], &wait)).expect("answered")[0]
        .as_ref()
        .expect("added");
    let admin = TopicAdmin::new(&options.connection).expect("settings");
    soon("they are known", 20, || {
        admin.describe(&spec(options)).is_ok_and(|found| found.partitions == partitions as u32)
    });
}

fn producer(options: &KafkaOptions, transactional: bool) -> BaseProducer {
    let mut config = options.connection.client_config();
    if transactional {
        config.set("transactional.id", format!("{}.foreign", options.connection.topic));
    }
    config.create().expect("a producer")
}

fn send(producer: &BaseProducer, topic: &str, partition: i32) {
    let record: BaseRecord<'_, (), [u8]> =
        BaseRecord::to(topic).partition(partition).payload(b"foreign".as_slice());
    producer.send(record).map_err(|(error, _)| error).expect("queued");
    producer.flush(Duration::from_secs(20)).expect("sent");
}

#[test]
fn partitions_that_somebody_has_added_are_nobodys_and_nodes_serve_and_start() {
    let options = fresh();
    let first = open(&options);
    soon("the first owns everything", 30, || owned(&first) == all());
    append(&*first, &[(0, "before"), (3, "before")]);
    add_partitions(&options, SHARDS as usize + 2);
    // A new member makes the group reassign all partitions.
    let second = open(&options);
    soon("the group has met", 60, || {
        let gone: BTreeSet<ShardId> = all().difference(&owned(&first)).copied().collect();
        first.relinquish(&gone);
        let both: BTreeSet<ShardId> = owned(&first).union(&owned(&second)).copied().collect();
        assert!(both.is_subset(&all()), "{both:?}");
        both == all() && !owned(&second).is_empty()
    });
    append(&*second, &[(0, "after"), (3, "after")]);
    assert_eq!(
        (texts(&*first, 0), texts(&*second, 3)),
        (
            vec!["before".to_owned(), "after".to_owned()],
            vec!["before".to_owned(), "after".to_owned()]
        )
    );
    let admin = TopicAdmin::new(&options.connection).expect("settings");
    let described = admin.describe(&spec(&options)).expect("described");
    assert_eq!(
        (described.refusal("k"), described.surplus),
        (None, vec![(ShardId(SHARDS), 0), (ShardId(SHARDS + 1), 0)])
    );
    assert!(
        described.drift.iter().any(|d| d.setting == "partitions" && d.is_harmless),
        "{:?}",
        described.drift
    );
    // Somebody's records are in them, and a person must find out whose before a node starts.
    send(&producer(&options, false), &options.connection.topic, SHARDS as i32);
    soon("it is seen", 20, || {
        admin.describe(&spec(&options)).is_ok_and(|found| found.surplus[0].1 == 1)
    });
    assert!(refusal(options.clone()).contains("1 records in 4"));
    admin.delete_records_below(&[(ShardId(SHARDS), 1)]).expect("deleted");
    soon("it opens again", 20, || KafkaLog::open(options.clone()).is_ok());
}

/// Reads a shard up to its end, like an owner or an archiver far behind.
fn everything(log: &KafkaLog, from: Offset) -> Vec<LogRecord> {
    let mut records: Vec<LogRecord> = Vec::new();
    soon("everything is read", 30, || {
        let next = records.last().map_or(from, |record| record.offset + 1);
        records.extend(log.read(ShardId(0), next, usize::MAX).expect("no gap is left"));
        records.last().map_or(from, |record| record.offset + 1)
            >= log.bounds(ShardId(0)).expect("known").1
    });
    records
}

#[test]
fn the_end_of_a_foreign_transaction_is_gone_over_and_nothing_else() {
    let options = fresh();
    let log = open(&options);
    soon("it owns the shard", 30, || owned(&log) == all());
    let foreign = producer(&options, true);
    let pause = || std::thread::park_timeout(Duration::from_millis(30));
    let transaction = |commit: bool| {
        // The control record must be later than the records before, as it is unless both are
        // written within a millisecond.
        pause();
        foreign.begin_transaction().expect("begun");
        send(&foreign, &options.connection.topic, 0);
        pause();
        match commit {
            true => foreign.commit_transaction(Duration::from_secs(20)).expect("committed"),
            false => foreign.abort_transaction(Duration::from_secs(20)).expect("aborted"),
        }
        pause();
    };
    foreign.init_transactions(Duration::from_secs(60)).expect("a coordinator");
    append(&*log, &[(0, "a")]);
    transaction(true);
    append(&*log, &[(0, "b")]);
    transaction(false);
    append(&*log, &[(0, "c")]);
    let records = everything(&log, 0);
    let said: Vec<(Offset, Vec<u8>)> =
        records.iter().map(|record| (record.offset, record.payload.to_vec())).collect();
    let nothing = gaps::placeholder_record();
    let wanted = [b"a".as_slice(), b"foreign", &nothing, b"b", b"foreign", &nothing, b"c"];
    assert_eq!(
        said,
        (0..).zip(wanted.map(<[u8]>::to_vec)).collect::<Vec<_>>(),
        "dense, and what was acknowledged is there"
    );
    assert!(records.windows(2).all(|two| two[0].received <= two[1].received), "{records:?}");
    let in_gaps = |record: &&LogRecord| record.payload[..] == nothing[..];
    assert!(
        records.iter().filter(in_gaps).all(|record| record.appended == 0),
        "what holds nothing moves no time forward"
    );
    // Reading from the middle, from inside the gap or from after it gives the same records and
    // times.
    for from in 1..=6 {
        let other = open(&KafkaOptions { group: None, ..options.clone() });
        assert_eq!(everything(&other, from), records[from as usize..], "from {from}");
    }
    // At the end of the log nothing shows how far the gap reaches, until the owner appends after
    // it.
    transaction(true);
    let tail = everything(&log, 7);
    let payloads: Vec<&[u8]> = tail.iter().map(|record| &*record.payload).collect();
    assert_eq!(payloads, [b"foreign".as_slice(), &nothing, &nothing]);
}

/// Changes one setting of the topic and leaves the others.
fn set(options: &KafkaOptions, name: &str, value: &str) {
    let raw: AdminClient<settings::QuietContext> = options
        .connection
        .client_config()
        .create_with_context(settings::QuietContext)
        .expect("a client");
    let (wait, topic) = (AdminOptions::new(), ResourceSpecifier::Topic(&options.connection.topic));
    let described =
        futures::executor::block_on(raw.describe_configs([&topic], &wait)).expect("answered");
    let entries = &described[0].as_ref().expect("described").entries;
    let of_topic = entries
        .iter()
        .filter(|entry| entry.source == ConfigSource::DynamicTopic && entry.name != name);
    let kept: Vec<(&str, &str)> =
        of_topic.filter_map(|entry| Some((entry.name.as_str(), entry.value.as_deref()?))).collect();
    // The request resets every setting that it does not name.
    let new = kept
        .iter()
        .fold(AlterConfig::new(topic).set(name, value), |new, (name, value)| new.set(name, value));
    futures::executor::block_on(raw.alter_configs([&new], &wait)).expect("answered")[0]
        .as_ref()
        .expect("altered");
}

#[test]
fn a_gap_that_nothing_proves_is_passed_when_a_person_vouches_for_it_and_for_no_other() {
    let options = fresh();
    let log = open(&options);
    soon("it owns the shard", 30, || owned(&log) == all());
    let foreign = producer(&options, true);
    foreign.init_transactions(Duration::from_secs(60)).expect("a coordinator");
    append(&*log, &[(0, "a")]);
    // Makes the control record earlier than the record before it, so that the broker cannot find it
    // by time.
    set(&options, "message.timestamp.type", "CreateTime");
    foreign.begin_transaction().expect("begun");
    let ahead = SystemClock.now() + 600_000;
    let record: BaseRecord<'_, (), [u8]> =
        BaseRecord::to(&options.connection.topic).partition(0).payload(b"foreign".as_slice());
    foreign.send(record.timestamp(ahead)).map_err(|(error, _)| error).expect("queued");
    foreign.commit_transaction(Duration::from_secs(20)).expect("committed");
    set(&options, "message.timestamp.type", "LogAppendTime");
    append(&*log, &[(0, "b")]);
    let read_on = |gaps: &str| {
        let given = Some(("ROLLMILL_KAFKA_PASSED_GAPS".to_owned(), gaps.to_owned()))
            .filter(|_| !gaps.is_empty());
        let passed_gaps =
            Config::load_part(None, given.into_iter(), &[]).expect("gaps").kafka.passed_gaps;
        let reader = KafkaLog::open(KafkaOptions { group: None, passed_gaps, ..options.clone() });
        let reader = reader.unwrap_or_else(|error| panic!("{error:?}"));
        let mut payloads: Vec<Vec<u8>> = Vec::new();
        loop {
            match reader.read(ShardId(0), payloads.len() as Offset, usize::MAX) {
                Ok(records) => {
                    payloads.extend(records.iter().map(|record| record.payload.to_vec()))
                }
                Err(error) => return (payloads, Some(error.to_string())),
            }
            if payloads.len() as Offset >= reader.bounds(ShardId(0)).expect("known").1 {
                return (payloads, None);
            }
        }
    };
    soon("the setting is known everywhere", 20, || {
        KafkaLog::open(KafkaOptions { group: None, ..options.clone() }).is_ok()
    });
    for others in ["", "1:2-3", "0:1-2", "0:3-4"] {
        let (read, why) = read_on(others);
        let why = why.expect("it stops");
        assert!(
            why.contains("kafka.passed_gaps = 0:2-3") && read.len() <= 2,
            "{others}: {why} after {}",
            read.len()
        );
    }
    let nothing = gaps::placeholder_record();
    let wanted = [b"a".as_slice(), b"foreign", &nothing, b"b"].map(<[u8]>::to_vec);
    for vouched in ["0:2-3", "3:1-9,0:1-7"] {
        assert_eq!(read_on(vouched), (wanted.to_vec(), None), "{vouched}");
    }
}
