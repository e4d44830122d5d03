//! Outcome notes beside a release that writes none.

use super::*;
use crate::model::outcome::{UncountedEvent, Verdict};

/// A node of the release before goes on flushing while the schema is migrated, and notes nothing.
#[test]
fn what_the_release_before_has_flushed_has_no_outcomes() {
    let server = server::shared();
    let (store, url) = store();
    drop(store);
    let database = url.rsplit('/').next().expect("a name");
    server.psql(database, super::generations::UNDO_MIGRATION).expect("as before generations");
    let back = "ALTER TABLE rollmill.shards DROP COLUMN noted_from, DROP COLUMN noted_to; DROP \
                TABLE rollmill.outcome_notes; DELETE FROM rollmill.migrations WHERE version >= 5; \
                INSERT INTO rollmill.shards VALUES (0, '07070707-0707-0707-0707-070707070707', 2, 0, \
                1, 1, 0, NULL, NULL, 'rollmill:shard-0000:old', 0, now())";
    server.psql(database, back).expect("as the release before had it");

    let store = PostgresStore::open(&options(&url)).expect("migrated");
    let epoch = store.claim(ShardId(0), LOG, 7).expect("a claim").checkpoint.epoch;
    let outcomes = |from: u64, to: u64| {
        let mut snapshot = store.snapshot().expect("a snapshot");
        let found = snapshot.decisions(ShardId(0), OffsetRange { from, to }).expect("decisions");
        found.outcomes.map(|note| note.len())
    };
    let flush = |from: u64, to: u64| {
        let mut batch = batch(vec![]);
        let (offset, verdict) = (to - 1, Verdict::Duplicate);
        batch.outcomes.push(UncountedEvent { offset, index: 0, verdict });
        let range = OffsetRange { from, to };
        let guard = FlushGuard { shard: ShardId(0), log: LOG, range, epoch };
        store.flush(guard, &batch, 0).expect("a flush");
    };
    assert_eq!(outcomes(0, 2), None);
    flush(2, 4);
    flush(4, 5);
    assert_eq!((outcomes(0, 5), outcomes(2, 5)), (None, Some(2)));
    let theirs = "UPDATE rollmill.shards SET next = 6 WHERE shard = 0 AND next = 5";
    server.psql(database, theirs).expect("a flush of the release before");
    assert_eq!((outcomes(2, 5), outcomes(2, 6)), (Some(2), None));
    flush(6, 7);
    assert_eq!((outcomes(5, 7), outcomes(6, 7)), (None, Some(1)));
}
