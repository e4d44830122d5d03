//! A new owner never waits for long: neither for an owner that is silent inside its transaction,
//! nor for one that is frozen there.

use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use super::super::schema;
use super::*;
use crate::persistence::store::StoreError;

/// Takes over shard 0 and returns how long that took.
fn take_over(store: &PostgresStore) -> (Duration, Epoch) {
    let started = Instant::now();
    let claim = store.claim(ShardId(0), LOG, 2).expect("a claim");
    (started.elapsed(), claim.checkpoint.epoch)
}

/// Retries a few times: on an idle machine every takeover is quick, on a busy one at least one is.
fn quick(mut take_over: impl FnMut() -> Duration) {
    let mut delays = Vec::new();
    while delays.len() < 4 {
        delays.push(take_over());
        if delays.last() < Some(&Duration::from_secs(2)) {
            return;
        }
    }
    panic!("takeovers took {delays:?}");
}

#[test]
fn an_owner_that_is_silent_in_its_flush_does_not_delay_the_next() {
    quick(silent_owner);
}

fn silent_owner() -> Duration {
    let (old, url) = store();
    let epoch = old.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let (locked, is_locked) = sync_channel(1);
    let (go_on, may_go_on) = sync_channel(1);
    let owner = std::thread::spawn(move || {
        old.transaction(ShardId(0), |session| {
            super::super::flush::flush(
                session,
                (&old.series_cache, &old.compressed_weeks),
                guard(0, 0, epoch),
                &FlushBatch::default(),
                0,
            )?;
            locked.send(()).expect("the test waits");
            may_go_on.recv().expect("the test goes on");
            Ok(())
        })
    });
    is_locked.recv().expect("the owner is inside its transaction");
    let new = PostgresStore::open(&options(&url)).expect("a store");
    let (delay, epoch) = take_over(&new);
    go_on.send(()).expect("the owner waits");
    let outcome = owner.join().expect("no panic");
    assert!(matches!(outcome, Err(StoreError::Unknown(_) | StoreError::Failed(_))), "{outcome:?}");
    assert_eq!(state(&*new, 0), (0, 0), "the old owner wrote nothing");
    new.flush(guard(0, 0, epoch), &batch(vec![delta("a", 1, 1)]), 0)
        .expect("the new owner flushes");
    assert_eq!(state(&*new, 0), (1, 1));
    delay
}

/// The frozen half of `a_frozen_owner_does_not_delay_the_next`: this test binary again, which holds
/// a flush open until it is killed.
#[test]
#[ignore = "a part of another test, which starts it"]
fn frozen_owner() {
    let Ok(url) = std::env::var("ROLLMILL_TEST_FROZEN_OWNER") else { return };
    let store = PostgresStore::open(&options(&url)).expect("a store");
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let outcome = store.transaction(ShardId(0), |session| {
        super::super::flush::flush(
            session,
            (&store.series_cache, &store.compressed_weeks),
            guard(0, 0, epoch),
            &FlushBatch::default(),
            0,
        )?;
        println!("frozen-owner-holds");
        // Blocks until the parent closes the pipe; the parent freezes the process meanwhile.
        std::io::read_to_string(std::io::stdin()).expect("a pipe");
        Ok(())
    });
    println!("frozen-owner-ended {}", if outcome.is_ok() { "committed" } else { "failed" });
}

#[test]
fn a_frozen_owner_does_not_delay_the_next() {
    quick(thawed_owner);
}

fn thawed_owner() -> Duration {
    use std::io::{BufRead, BufReader};
    let (new, url) = store();
    let mut owner = Command::new(std::env::current_exe().expect("this binary"))
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "persistence::store::postgres::tests::takeover::frozen_owner",
        ])
        .env("ROLLMILL_TEST_FROZEN_OWNER", &url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the owner starts");
    let mut lines = BufReader::new(owner.stdout.take().expect("a pipe"))
        .lines()
        .map(|line| line.expect("text"));
    assert!(
        lines.any(|line| line.contains("frozen-owner-holds")),
        "the owner is inside its transaction"
    );
    let pid = rustix::process::Pid::from_raw(owner.id().cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("frozen");
    let (delay, epoch) = take_over(&new);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("thawed");
    drop(owner.stdin.take());
    let ended: Vec<String> = lines.filter(|line| line.contains("frozen-owner-ended")).collect();
    owner.wait().expect("the owner ends");
    assert!(
        ended.iter().any(|line| line.contains("failed")),
        "the thawed owner committed nothing: {ended:?}"
    );
    assert_eq!(epoch.counter, 2);
    assert_eq!(state(&*new, 0), (0, 0));
    delay
}

/// Retries a few times: on a busy machine a flush of 50 ms may take longer than a claim waits.
#[test]
fn a_flush_that_is_only_slow_is_waited_for() {
    assert!((0..8).any(|_| waits_for_a_slow_flush()), "no flush was waited for");
}

/// Whether a claim waited for the flush of its predecessor; if not, that flush wrote nothing.
fn waits_for_a_slow_flush() -> bool {
    let (store, _) = store();
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let (locked, is_locked) = sync_channel(1);
    let old = Arc::clone(&store);
    let owner = std::thread::spawn(move || {
        old.transaction(ShardId(0), |session| {
            super::super::flush::flush(
                session,
                (&old.series_cache, &old.compressed_weeks),
                guard(0, 0, epoch),
                &FlushBatch::default(),
                0,
            )?;
            locked.send(()).expect("the test waits");
            session.batch_execute("SELECT pg_sleep(0.05)".to_owned())?;
            Ok(())
        })
    });
    is_locked.recv().expect("inside");
    let next = store.claim(ShardId(0), LOG, 2).expect("a claim").checkpoint.next;
    let outcome = owner.join().expect("no panic");
    match &outcome {
        Ok(()) => assert_eq!(next, 1, "what it committed is seen"),
        Err(error) if error.outcome_unknown() => {}
        Err(error) => assert_eq!(next, 0, "{error:?}"),
    }
    outcome.is_ok()
}

#[test]
fn the_owner_is_on_record() {
    let server = server::shared();
    let (store, url) = store();
    store.claim(ShardId(3), LOG, 1).expect("a claim");
    let database = url.rsplit('/').next().expect("a name");
    let sql = "SELECT owner, owner_pid = a.pid, owner_started = a.backend_start FROM \
               rollmill.shards s
        JOIN pg_stat_activity a ON a.pid = s.owner_pid";
    assert_eq!(server.psql(database, sql).expect("a row"), "rollmill:shard-0003:test|t|t");
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let server = server::shared();
    let (store, url) = store();
    drop(store);
    let database = url.rsplit('/').next().expect("a name");
    server
        .psql(database, "INSERT INTO rollmill.migrations (version, by) VALUES (99, 'the future')")
        .expect("written");
    let refused = PostgresStore::open(&options(&url)).expect_err("refused").to_string();
    for part in ["schema version 99", "start the version of Rollmill that migrated it", database] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    assert_eq!(
        server.psql(database, "SELECT max(version) FROM rollmill.migrations").expect("a row"),
        "99"
    );
}

#[test]
fn nodes_that_start_at_once_lay_the_tables_once() {
    let server = server::shared();
    let url = server.url(&server.database());
    let nodes: Vec<_> = (0..4)
        .map(|_| {
            let url = url.clone();
            std::thread::spawn(move || PostgresStore::open(&options(&url)).map(|_| ()))
        })
        .collect();
    for node in nodes {
        assert_eq!(node.join().expect("no panic"), Ok(()));
    }
    assert_eq!(
        server.psql(
            url.rsplit('/').next().expect("a name"),
            "SELECT count(*) = max(version) FROM rollmill.migrations"
        ),
        Ok("t".into())
    );
    assert_eq!(schema::WEEK, 168);
}
