//! Weeks are created on demand by whichever node comes first, and dropped by age, but never the
//! last day.

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::model::generation::GenerationId;
use crate::persistence::store::NameRange;
use crate::persistence::store::postgres::RetentionPolicy;

fn relations(database: &str) -> String {
    let sql = "SELECT count(*) FROM pg_inherits WHERE inhparent IN ('rollmill.rollups'::regclass, \
               'rollmill.sketches'::regclass)";
    server::shared().psql(database, sql).expect("a count")
}

#[test]
fn weeks_are_made_once_by_whoever_needs_them() {
    let (first, url) = store();
    let second = PostgresStore::open(&options(&url)).expect("a store");
    let owners: Vec<_> = (0..8_u32)
        .map(|shard| {
            let store = Arc::clone(if shard % 2 == 0 { &first } else { &second });
            std::thread::spawn(move || {
                let epoch = store.claim(ShardId(shard), LOG, 1).expect("a claim").checkpoint.epoch;
                let deltas =
                    (-2..4).map(|week| delta(&format!("{shard}"), week * 168 + 1, 1)).collect();
                store.flush(guard(shard, 0, epoch), &batch(deltas), 0)
            })
        })
        .collect();
    for owner in owners {
        assert_eq!(owner.join().expect("no panic"), Ok(()));
    }
    assert_eq!(state(&*first, 0), (1, 8 * 6));
    assert_eq!(relations(url.rsplit('/').next().expect("a name")), "12");
}

#[test]
fn old_weeks_are_dropped_and_seen_to_be_gone() {
    let (store, url) = store();
    let database = url.rsplit('/').next().expect("a name");
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let now = SystemClock.now();
    let this_week = Hour::of(now).0.div_euclid(168) * 168;
    // Two weeks that ended more than 60 days ago, whichever day of this week it is.
    let hours = [this_week - 11 * 168, this_week - 10 * 168 + 167, this_week - 168, this_week];
    let deltas = || hours.iter().map(|hour| delta("a", *hour, 1)).collect();
    store.flush(guard(0, 0, epoch), &batch(deltas()), 0).expect("a flush");
    let revisions = |hour: i32| {
        let day = Hour(hour).day();
        store
            .snapshot()
            .expect("a snapshot")
            .revisions("acme", "views", GenerationId::INGEST, day..day + 1)
            .expect("revisions")[0]
    };

    let before = revisions(hours[2]);
    let keep = RetentionPolicy {
        rollups: Some(std::time::Duration::from_secs(60 * 86_400)),
        compress: None,
    };
    assert_eq!(store.maintain(now, keep), Ok((4, 0)), "two weeks of two tables");
    assert_eq!(store.maintain(now, keep), Ok((0, 0)));
    assert_eq!(state(&*store, 0), (1, 2));
    assert!(
        revisions(hours[0]) != before && revisions(hours[1]) != before,
        "days that lost rows have moved on"
    );
    assert_eq!(revisions(hours[2]), before);
    let metrics =
        store.snapshot().expect("a snapshot").metrics("acme", &NameRange::ALL).expect("metrics");
    assert_eq!((metrics[0].first, metrics[0].last), (Some(Hour(hours[2])), Some(Hour(hours[3]))));

    store
        .flush(guard(0, 1, epoch), &batch(deltas()), 0)
        .expect("a late event makes its week again");
    assert_eq!(state(&*store, 0), (2, 6));
    assert_eq!(relations(database), "8");
    let young = store.drop_before(Hour(Hour::of(now).0 - 2)).expect_err("refused").to_string();
    assert!(young.contains("last day"), "{young}");
    assert_eq!(state(&*store, 0), (2, 6));
}

#[test]
fn nothing_is_compressed_where_nothing_can() {
    let (store, _) = store();
    assert_eq!(store.compress_before(Hour(1000)), Ok(0));
}
