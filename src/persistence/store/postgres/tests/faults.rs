//! Lost answers, dead servers, busy pools: the reported outcome of a transaction is true.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use super::proxy::{Proxy, ProxyPlan};
use super::timescale::run;
use super::*;
use crate::model::budget::{AbortReason, QueryBudget};
use crate::model::flush::QuarantineRow;
use crate::model::generation::GenerationId;
use crate::persistence::store::{ExpiryTarget, NameRange, QuarantineStore, StoreError};

fn through(proxy: &Proxy, url: &str) -> PostgresOptions {
    options(&format!(
        "postgres://postgres@127.0.0.1:{}/{}",
        proxy.port,
        url.rsplit('/').next().expect("a name")
    ))
}

#[test]
fn a_commit_whose_answer_is_lost_is_unknown() {
    let (direct, url) = store();
    let proxy = Proxy::start(server::shared().port, 1);
    let store = PostgresStore::open(&through(&proxy, &url)).expect("a store");
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    store.flush(guard(0, 0, epoch), &batch(vec![delta("a", 1, 1)]), 0).expect("a flush");
    proxy.set(ProxyPlan { cut_after: Some(b"COMMIT"), ..ProxyPlan::default() });
    let lost = store
        .flush(guard(0, 1, epoch), &batch(vec![delta("a", 1, 1)]), 0)
        .expect_err("the answer is lost");
    assert!(lost.outcome_unknown(), "{lost:?}");
    assert_eq!(state(&*direct, 0), (2, 2), "though it was applied");
    let again = store.flush(guard(0, 1, epoch), &batch(vec![delta("a", 1, 1)]), 0);
    assert_eq!(
        again,
        Err(StoreError::Refused { shard: ShardId(0) }),
        "and the connection was replaced"
    );
}

#[test]
fn what_fails_before_the_commit_has_failed() {
    let (direct, url) = store();
    let proxy = Proxy::start(server::shared().port, 2);
    let store = PostgresStore::open(&through(&proxy, &url)).expect("a store");
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    proxy.set(ProxyPlan { cut_after: Some(b"PGCOPY"), ..ProxyPlan::default() });
    let failed = store.flush(guard(0, 0, epoch), &batch(vec![delta("a", 1, 1)]), 0);
    assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
    assert_eq!(state(&*direct, 0), (0, 0));
    store
        .flush(guard(0, 0, epoch), &batch(vec![delta("a", 1, 1)]), 0)
        .expect("it may be tried again");
}

/// Behaves like an owner: after an unknown outcome it reads the checkpoint, and never repeats what
/// may have been applied.
#[test]
fn random_cuts_count_nothing_twice_and_lose_nothing() {
    let (direct, url) = store();
    let proxy = Proxy::start(server::shared().port, 42);
    let store = PostgresStore::open(&through(&proxy, &url)).expect("a store");
    let (mut unknown, mut next, mut nonce) = (0, 0, 0);
    proxy.set(ProxyPlan { cut_request: 2, cut_reply: 3, ..ProxyPlan::default() });
    let deadline = Instant::now() + Duration::from_secs(180);
    // How the bytes are split into chunks, and so what the seed hits, depends on the machine. The
    // loop continues until a commit was hit.
    while next < 40 || unknown == 0 {
        assert!(
            Instant::now() < deadline,
            "stuck at {next}, cuts {:?}, {unknown} of commits",
            proxy.cuts()
        );
        nonce += 1;
        let Ok(claim) = store.claim(ShardId(0), LOG, nonce) else { continue };
        next = claim.checkpoint.next;
        while let outcome =
            store.flush(guard(0, next, claim.checkpoint.epoch), &batch(vec![delta("a", 1, 1)]), 0)
            && (next < 40 || unknown == 0)
        {
            match outcome {
                Ok(()) => next += 1,
                Err(error) => {
                    unknown += u32::from(error.outcome_unknown());
                    break;
                }
            }
        }
    }
    let (offset, count) = state(&*direct, 0);
    assert_eq!(offset, count);
}

#[test]
fn a_server_that_is_killed_in_a_flush_comes_back_whole() {
    let mut server = server::Postgres::start("killed");
    let url = server.url(&server.database());
    let store = PostgresStore::open(&options(&url)).expect("a store");
    let flushing = Arc::clone(&store);
    let (stop, stopped) = sync_channel::<()>(1);
    let owner = std::thread::spawn(move || {
        let (mut failures, mut nonce) = (0, 0);
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            nonce += 1;
            let Ok(claim) = flushing.claim(ShardId(0), LOG, nonce) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            let mut next = claim.checkpoint.next;
            let deltas = || (0..500).map(|page| delta(&format!("p{page}"), 1, 1)).collect();
            while flushing
                .flush(guard(0, next, claim.checkpoint.epoch), &batch(deltas()), 0)
                .is_ok()
            {
                next += 1;
                if stopped.try_recv().is_ok() {
                    return failures;
                }
            }
            failures += 1;
        }
        failures
    });
    for _ in 0..2 {
        await_read(&store);
        let before = state(&*store, 0).0;
        let deadline = Instant::now() + Duration::from_secs(180);
        while state(&*store, 0).0 < before + 3 {
            assert!(Instant::now() < deadline, "no flush gets through");
            std::thread::sleep(Duration::from_millis(20));
        }
        server.kill_and_restart(Duration::from_millis(100));
    }
    stop.send(()).expect("the owner listens");
    assert!(owner.join().expect("no panic") > 0, "a kill hit the owner");
    await_read(&store);
    let (next, count) = state(&*store, 0);
    assert_eq!(next * 500, count);
    assert!(next >= 6);
}

/// Waits until the pool has no connection to the killed server left.
fn await_read(store: &PostgresStore) {
    let deadline = Instant::now() + Duration::from_secs(180);
    while store.snapshot().and_then(|mut snapshot| snapshot.checkpoints()).is_err() {
        assert!(Instant::now() < deadline, "nothing can be read");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn shards_in_opposite_order_do_not_wait_for_each_other() {
    let (store, _) = store();
    let owners: Vec<_> = (0..2_u32)
        .map(|shard| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let epoch = store.claim(ShardId(shard), LOG, 1).expect("a claim").checkpoint.epoch;
                for round in 0..20 {
                    // New series, labels, metrics and tenants for both shards, in opposite orders.
                    let mut deltas: Vec<Delta> = (0..20)
                        .map(|n| {
                            let (tenant, metric) =
                                (format!("t{}", n % 5), format!("m{}", (n + round) % 7));
                            let labels = [
                                ("page".to_owned(), format!("{round}-{n}")),
                                ("shard".to_owned(), shard.to_string()),
                            ];
                            let series = Series::new(&tenant, &metric, labels);
                            let series = Arc::new(SeriesInfo {
                                id: SeriesId::of_key(&series.key()),
                                series,
                            });
                            Delta { series, ..delta("", n * 24, 1) }
                        })
                        .collect();
                    let account = |n: i32| AccountingDelta {
                        tenant: format!("t{}", n % 5),
                        hour: Hour(n),
                        aggregated: 1,
                        deduplicated: 0,
                        quarantined: 0,
                    };
                    let mut accounting: Vec<_> = (0..20).map(account).collect();
                    if shard == 1 {
                        deltas.reverse();
                        accounting.reverse();
                    }
                    let batch = FlushBatch { deltas, accounting, ..FlushBatch::default() };
                    store.flush(guard(shard, round as u64, epoch), &batch, 0).expect("no deadlock");
                }
            })
        })
        .collect();
    owners.into_iter().for_each(|owner| owner.join().expect("no deadlock"));
    assert_eq!(state(&*store, 0), (20, 2 * 20 * 20));
    let metrics =
        store.snapshot().expect("a snapshot").metrics("t0", &NameRange::ALL).expect("metrics");
    assert_eq!(metrics.iter().map(|m| m.series).sum::<u64>(), 2 * 20 * 4);
}

#[test]
fn a_busy_pool_says_which_key_to_raise() {
    let server = server::shared();
    let url = server.url(&server.database());
    let few =
        PostgresOptions { read_connections: 1, timeout: Duration::from_secs(3), ..options(&url) };
    drop(PostgresStore::open(&options(&url)).expect("the tables"));
    let store = PostgresStore::open(&few).expect("a store");
    let held = store.snapshot().expect("the only one");
    assert!(store.query_snapshot_at_once(&QueryBudget::default()).expect("no failure").is_none());
    let busy = store.snapshot().map(|_| ()).expect_err("busy").to_string();
    assert!(busy.contains("store.read_connections"), "{busy}");
    drop(held);
    store
        .query_snapshot_at_once(&QueryBudget::default())
        .expect("no failure")
        .expect("free again")
        .checkpoints()
        .expect("read");
}

#[test]
fn a_locked_row_fails_in_time_and_a_dead_host_is_passed_over() {
    let (_, url) = store();
    let two = url.replace("127.0.0.1:", "127.0.0.1:1,127.0.0.1:");
    let store = PostgresStore::open(&PostgresOptions {
        lock_timeout: Duration::from_millis(300),
        ..options(&two)
    })
    .expect("a store");
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let mut stranger = store.writers.begin("BEGIN").expect("a session");
    stranger
        .session()
        .expect("it")
        .batch_execute("SELECT FROM shards FOR UPDATE".to_owned())
        .expect("locked");
    let late =
        store.flush(guard(0, 0, epoch), &FlushBatch::default(), 0).expect_err("locked").to_string();
    assert!(late.contains("store.lock_timeout"), "{late}");
    let late = store.claim(ShardId(0), LOG, 2).expect_err("locked").to_string();
    assert!(late.contains("pg_stat_activity"), "{late}");
    drop(stranger);
    store.flush(guard(0, 0, epoch), &FlushBatch::default(), 0).expect("free");
}

#[test]
fn what_waiting_mends_is_told_from_what_it_does_not() {
    let server = server::shared();
    let good = server.database();
    server.psql(&good, "CREATE ROLE crowded LOGIN CONNECTION LIMIT 0").expect("a role");
    let url = |user: &str, port: u16, database: &str| {
        format!("postgres://{user}@127.0.0.1:{port}/{database}")
    };
    for (away, url) in [
        (true, url("postgres", 1, &good)),
        (true, "postgres://postgres@nowhere.invalid/postgres".to_owned()),
        (true, url("crowded", server.port, &good)),
        (false, url("postgres", server.port, "nowhere")),
        (false, url("nobody", server.port, &good)),
    ] {
        let error = PostgresStore::open(&options(&url)).expect_err("it cannot be used");
        assert!(error.to_string().contains("cannot connect to"), "{url}: {error}");
        let told = matches!(
            (&error, away),
            (StoreError::Unavailable(_), true) | (StoreError::Failed(_), false)
        );
        assert!(told, "{url}: {error:?}");
    }
    server.psql(&good, "DROP ROLE crowded").expect("dropped");
}

#[test]
fn works_inside_another_runtime() {
    let (store, _) = store();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async move {
        store.claim(ShardId(0), LOG, 1).expect("a claim");
        assert_eq!(state(&*store, 0), (0, 0));
    });
}

/// The error that the store makes of a statement's failure.
fn said(store: &PostgresStore, sql: &str) -> StoreError {
    let mut lease = store.writers.begin("BEGIN").expect("a transaction");
    lease.session().expect("a session").batch_execute(sql.to_owned()).expect_err("it fails").into()
}

#[test]
fn what_no_waiting_mends_is_not_said_to_pass() {
    let (store, _) = store();
    let raise = |state: &str| {
        format!("DO $$ BEGIN RAISE EXCEPTION 'too much' USING ERRCODE = '{state}'; END $$")
    };
    let limit = said(&store, &raise("53400"));
    assert!(
        matches!(&limit, StoreError::Failed(why) if why.contains("raise that limit")),
        "{limit:?}"
    );
    assert!(matches!(said(&store, &raise("53300")), StoreError::Unavailable(_)));
    let cut = said(&store, "SET LOCAL statement_timeout = 10; SELECT pg_sleep(60)");
    assert!(matches!(&cut, StoreError::TooLong(why) if why.contains("store.timeout")), "{cut:?}");
}

#[test]
fn a_question_that_takes_long_is_not_a_store_that_is_away() {
    let (direct, url) = store();
    let epoch = direct.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    direct.flush(guard(0, 0, epoch), &batch(vec![delta("a", 1, 1)]), 0).expect("a flush");
    let hasty =
        PostgresStore::open(&PostgresOptions { timeout: Duration::from_secs(2), ..options(&url) })
            .expect("a store");
    let mut snapshot = hasty.snapshot().expect("a snapshot");
    // A lock stands in for work that takes longer than the limit.
    let mut lease = direct.writers.begin("BEGIN").expect("a transaction");
    lease
        .session()
        .expect("a session")
        .batch_execute("LOCK TABLE rollups IN ACCESS EXCLUSIVE MODE".to_owned())
        .expect("a lock");
    let query = crate::persistence::store::RollupQuery {
        tenant: "acme",
        metric: "views",
        matchers: &[],
        from: Hour(0),
        to: Hour(9),
        distinct: true,
        quantiles: true,
        max_series: 9,
        budget: None,
        generation: GenerationId::INGEST,
    };
    let late = snapshot.rollups(&query, &mut |_, _, _| ()).expect_err("it takes too long");
    assert!(matches!(late, StoreError::TooLong(_)), "{late:?}");
}

#[test]
fn a_round_of_maintenance_is_one_nodes() {
    let (first, url) = store();
    let second = PostgresStore::open(&options(&url)).expect("a store");
    let turn = first.try_lock_round().expect("asked").expect("it is free");
    assert!(second.try_lock_round().expect("asked").is_none());
    drop(turn);
    let deadline = Instant::now() + Duration::from_secs(60);
    while second.try_lock_round().expect("asked").is_none() {
        assert!(Instant::now() < deadline, "the session has ended, and its lock has not");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A flush may take longer than `store.timeout` as long as each of its parts does not.
#[test]
fn a_large_flush_has_the_time_that_it_needs() {
    let (direct, url) = store();
    // Every statement that merges figures takes 1.2 s, and on a busy machine some seconds more.
    let slow = "CREATE FUNCTION rollmill.dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN \
                PERFORM pg_sleep(1.2); RETURN NULL; END';
        CREATE TRIGGER dawdle AFTER INSERT ON rollmill.rollups FOR EACH STATEMENT EXECUTE FUNCTION \
                rollmill.dawdle()";
    server::shared().psql(url.rsplit('/').next().expect("a name"), slow).expect("a slow table");
    let epoch = direct.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let store =
        PostgresStore::open(&PostgresOptions { timeout: Duration::from_secs(8), ..options(&url) })
            .expect("a store");
    let deltas = |pages: i32| {
        (0..pages)
            .flat_map(|page| (0..168).map(move |hour| delta(&page.to_string(), hour, 1)))
            .collect()
    };
    store.flush(guard(0, 0, epoch), &batch(deltas(1)), 0).expect("a flush");
    let watch = Instant::now();
    store.flush(guard(0, 1, epoch), &batch(deltas(350)), 0).expect("eight parts of 1.2 s and more");
    assert!(watch.elapsed() > Duration::from_secs(9), "{:?}", watch.elapsed());
    assert_eq!(state(&*direct, 0), (2, 168 + 350 * 168));
}

/// Runs `read` for a query that is aborted after 300 ms, and asserts that it ends then.
fn ends_with_its_query(read: impl Fn(&QueryBudget) -> Result<(), StoreError>) {
    let budget = QueryBudget::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            budget.abort(AbortReason::TimedOut);
        });
        let started = Instant::now();
        assert_eq!(read(&budget), Err(StoreError::QueryEnded));
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}, a third of store.timeout",
            started.elapsed()
        );
    });
}

#[test]
fn a_query_that_has_ended_waits_neither_for_a_lock_nor_for_a_connection() {
    let (_, url) = store();
    let patient = PostgresOptions { lock_timeout: Duration::from_secs(30), ..options(&url) };
    let store = PostgresStore::open(&patient).expect("a store");
    let mut stranger = store.writers.begin("BEGIN").expect("a session");
    stranger
        .session()
        .expect("it")
        .batch_execute("LOCK TABLE metrics IN ACCESS EXCLUSIVE MODE".to_owned())
        .expect("locked");
    let names = |budget: &QueryBudget| {
        store.snapshot_for(budget)?.metrics("acme", &NameRange::ALL).map(|_| ())
    };
    // Three times as many as there are connections: some wait for the lock, the others for a
    // connection.
    std::thread::scope(|scope| {
        (0..12).for_each(|_| _ = scope.spawn(|| ends_with_its_query(names)))
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND \
                   wait_event_type = 'Lock'";
    let deadline = Instant::now() + Duration::from_secs(15);
    while run(&url, waiting) != ["0"] {
        assert!(Instant::now() < deadline, "the server still works for queries that have ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(stranger);
    assert_eq!(names(&QueryBudget::default()), Ok(()));
}

#[test]
fn a_query_that_has_ended_waits_for_no_server_that_is_frozen() {
    let server = server::Postgres::start("frozen");
    let store = PostgresStore::open(&options(&server.url(&server.database()))).expect("a store");
    let names = |budget: &QueryBudget| {
        store.snapshot_for(budget)?.metrics("acme", &NameRange::ALL).map(|_| ())
    };
    assert_eq!(names(&QueryBudget::default()), Ok(()), "a connection is idle");
    server.freeze();
    // The first one finds the idle connection, the others connect.
    (0..3).for_each(|_| ends_with_its_query(names));
    server.thaw();
    assert_eq!(names(&QueryBudget::default()), Ok(()));
}

/// Whoever releases an event waits for its shard's row no longer than the request lasts, and then
/// knows that nothing was written.
#[test]
fn a_release_and_an_approval_end_with_their_request() {
    let (store, url) = store();
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let row = QuarantineRow {
        shard: ShardId(0),
        offset: 0,
        index: 0,
        tenant: "t".into(),
        received: 0,
        reason: "panic".into(),
        discarded: false,
        record: vec![1],
    };
    let set_aside = FlushBatch { quarantined: vec![row.clone()], ..FlushBatch::default() };
    store.flush(guard(0, 0, epoch), &set_aside, 0).expect("a flush");
    let patient = PostgresOptions {
        lock_timeout: Duration::from_secs(60),
        timeout: Duration::from_secs(60),
        ..options(&url)
    };
    let waiting = PostgresStore::open(&patient).expect("a store");
    assert!(store.swap_expiry(ExpiryTarget::Weeks, None, "{}").expect("noted"));
    let mut holder = store.writers.begin("BEGIN").expect("a transaction");
    let locks = "LOCK TABLE rollmill.quarantine, rollmill.expiry IN ACCESS EXCLUSIVE MODE";
    holder.session().and_then(|s| Ok(s.batch_execute(locks.to_owned())?)).expect("locked");
    let ended = |work: &dyn Fn(&QueryBudget) -> Result<(), StoreError>| {
        let budget = QueryBudget::default();
        let watch = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                budget.abort(AbortReason::TimedOut);
            });
            assert_eq!(work(&budget), Err(StoreError::QueryEnded));
        });
        assert!(watch.elapsed() < Duration::from_secs(20), "{:?}", watch.elapsed());
    };
    ended(&|budget| waiting.settle_quarantine(ShardId(0), 0, 0, None, Some(budget)).map(drop));
    ended(&|budget| waiting.approve_expiry(&[ExpiryTarget::Weeks], Some(budget)).map(drop));
    drop(holder);
    let mut snapshot = store.snapshot().expect("a snapshot");
    assert_eq!(snapshot.quarantine(), Ok(vec![row]));
    assert_eq!(snapshot.expiries().expect("notes")[0].1.approvals, 0);
    assert_eq!(waiting.settle_quarantine(ShardId(0), 0, 0, None, None), Ok(true));
}
