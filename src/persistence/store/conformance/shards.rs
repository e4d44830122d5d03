//! Claims, suspects, blocks of ids, de-duplication rules, and the progress of the archive.

use super::*;
use crate::model::flush::SuspectEvent;

fn suspect(offset: u64, index: u32, deaths: u32) -> SuspectEvent {
    SuspectEvent { offset, index, deaths }
}

pub(super) fn claims_ids_and_archive(store: &dyn RollupStore) {
    let first = store.claim(SHARD, LOG, 11).expect("claim");
    assert_eq!((first.attempts, first.checkpoint.next, first.checkpoint.epoch.counter), (1, 0, 1));
    store.mark_suspect(SHARD, first.checkpoint.epoch, 4, 2).expect("mark");
    let second = store.claim(SHARD, LOG, u64::MAX).expect("claim");
    assert_eq!(
        (second.attempts, second.suspects, second.checkpoint.epoch.counter),
        (2, vec![suspect(4, 2, 1)], 2)
    );
    assert!(matches!(store.claim(SHARD, LogId([8; 16]), 1), Err(StoreError::Invalid(_))));
    let refused = Err(StoreError::Refused { shard: SHARD });
    assert_eq!(store.mark_suspect(SHARD, first.checkpoint.epoch, 1, 1), refused);

    assert_eq!(
        store.claim(SHARD, LOG, 3).expect("claim").suspects,
        vec![suspect(4, 2, 1)],
        "no mark, no further death"
    );
    let next = store.claim(SHARD, LOG, 4).expect("claim");
    for (offset, index) in [(4, 1), (4, 2)] {
        store.mark_suspect(SHARD, next.checkpoint.epoch, offset, index).expect("mark");
    }
    let again = store.claim(SHARD, LOG, 5).expect("claim");
    assert_eq!(
        (again.attempts, again.suspects),
        (5, vec![suspect(4, 2, 2)]),
        "only the last mark is a death"
    );
    store.mark_suspect(SHARD, again.checkpoint.epoch, 4, 7).expect("mark");
    let second = store.claim(SHARD, LOG, 6).expect("claim");
    assert_eq!(
        second.suspects,
        vec![suspect(4, 2, 2), suspect(4, 7, 1)],
        "earlier suspects are kept"
    );

    let epoch = second.checkpoint.epoch;
    let block = |from: u64, at: i64| DedupBlock {
        range: OffsetRange { from, to: from + 1 },
        appended: (at, at),
        runs: vec![(at, vec![u128::MAX, from.into()])],
    };
    for (from, forget) in [(0, 0), (1, 0), (2, 15)] {
        let dedup = Some(block(from, 10 * (from as i64 + 1)));
        store
            .flush(guard(from, from + 1, epoch), &FlushBatch { dedup, ..batch(vec![]) }, forget)
            .expect("flush");
    }
    assert_eq!(store.recent_ids(SHARD, 0), Ok(vec![block(1, 20), block(2, 30)]));
    assert_eq!(store.recent_ids(SHARD, 25), Ok(vec![block(2, 30)]));
    let third = store.claim(SHARD, LOG, 13).expect("claim");
    assert_eq!((third.attempts, third.suspects), (1, vec![]));

    let now = third.checkpoint.epoch;
    let rule = |max_ids: usize| DedupRule { horizon_ms: 5, max_ids };
    assert_eq!(store.set_dedup_rule(SHARD, epoch, 3, rule(1)), refused, "an old epoch");
    store.set_dedup_rule(SHARD, now, 0, rule(1)).expect("of a shard from before there were any");
    store.set_dedup_rule(SHARD, now, 3, rule(2)).expect("from the checkpoint on");
    assert_eq!(store.set_dedup_rule(SHARD, now, 2, rule(3)), refused, "another rule has decided");
    store.set_dedup_rule(SHARD, now, 3, rule(4)).expect("nothing lies between");
    let rules =
        |shard: ShardId| store.snapshot().expect("snapshot").dedup_rules(shard).expect("rules").0;
    assert_eq!((rules(SHARD), rules(ShardId(9))), (vec![(0, rule(1)), (3, rule(4))], vec![]));

    let row = |from: u64, to: u64, epoch: Epoch| manifest_row(from, to, epoch);
    assert_eq!(store.insert_manifest_row(epoch, &row(0, 2, epoch)), refused, "an old epoch");
    assert_eq!(store.insert_manifest_row(now, &row(1, 2, now)), refused, "a gap");
    store.insert_manifest_row(now, &row(0, 2, now)).expect("archived");
    assert_eq!(store.insert_manifest_row(now, &row(0, 2, now)), refused, "twice");
    store.insert_manifest_row(now, &row(2, 3, epoch)).expect("archived");
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(snapshot.manifest(Some(SHARD)), Ok(vec![row(0, 2, now), row(2, 3, epoch)]));
    assert_eq!(snapshot.manifest(Some(ShardId(9))), Ok(vec![]));
    assert_eq!(snapshot.checkpoints().expect("checkpoints")[0].1.archived, 3);
    drop(snapshot);
    assert_eq!(store.sizes().expect("sizes").archive, 2 * 40);
}
