//! Manifest rows with their two times and tiers, archive floors, and expiry states.

use super::*;
use crate::model::manifest::ArchiveFloor;

pub(super) fn two_times_and_what_is_noted_of_expiry(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
    let of = |store: &dyn RollupStore| {
        store.snapshot().expect("snapshot").last_archived(SHARD).expect("a time")
    };
    assert_eq!(of(store), None);
    let range = OffsetRange { from: 0, to: 2 };
    let guard = FlushGuard { shard: SHARD, log: LOG, range, epoch };
    let batch = FlushBatch { appended: Some(77), ..FlushBatch::default() };
    store.flush(guard, &batch, i64::MIN).expect("flushed");
    let behind = FlushGuard { range: OffsetRange { from: 2, to: 2 }, ..guard };
    store.flush(behind, &FlushBatch::default(), i64::MIN).expect("flushed, without a record");
    let next = store.claim(SHARD, LOG, 2).expect("claim").checkpoint;
    assert_eq!(next.appended, Some(77), "the append time up to the checkpoint is part of it");
    assert_eq!(
        store.snapshot().expect("snapshot").checkpoints().expect("checkpoints"),
        [(SHARD, next)]
    );

    let rows = [(0, 2), (2, 3), (3, 9)].map(|(from, to)| manifest_row(from, to, next.epoch));
    rows.iter().for_each(|row| store.insert_manifest_row(row.epoch, row).expect("archived"));
    assert_eq!(of(store), Some(9));
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(snapshot.receipts(SHARD, 0, 2), Ok(vec![(2, 3), (3, 4)]));
    assert_eq!(snapshot.receipts(SHARD, 3, 9), Ok(vec![(9, 10)]));
    assert_eq!(snapshot.archive_extent(SHARD), Ok((3, Some(0))));
    assert_eq!(snapshot.archive_extent(ShardId(9)), Ok((0, None)));
    assert_eq!(snapshot.manifest(Some(SHARD)).expect("rows"), rows);
    drop(snapshot);

    let (archive, weeks) = (ExpiryTarget::Archive(SHARD), ExpiryTarget::Weeks);
    let read = |of| {
        store
            .snapshot()
            .expect("snapshot")
            .expiry(of)
            .expect("read")
            .map(|found| (found.note, found.approvals))
    };
    assert_eq!(read(archive), None);
    assert_eq!(store.swap_expiry(archive, Some("a"), "b"), Ok(false), "there is none");
    assert_eq!(store.swap_expiry(archive, None, "a"), Ok(true));
    assert_eq!(store.swap_expiry(archive, None, "b"), Ok(false), "there is one");
    assert_eq!(store.swap_expiry(archive, Some("b"), "c"), Ok(false), "there is another");
    assert_eq!(store.swap_expiry(weeks, None, "w"), Ok(true));
    assert_eq!(store.approve_expiry(&[archive, ExpiryTarget::Archive(ShardId(8))], None), Ok(1));
    assert_eq!(store.swap_expiry(archive, Some("a"), "b"), Ok(true));
    assert_eq!(
        (read(archive), read(weeks)),
        (Some(("b".to_owned(), 1)), Some(("w".to_owned(), 0)))
    );
    let all = store.snapshot().expect("snapshot").expiries().expect("read");
    assert_eq!(all.iter().map(|(of, _)| *of).collect::<Vec<_>>(), [weeks, archive]);
}

pub(super) fn tiers_and_floors(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
    let rows = [(0, 2), (2, 3), (3, 9)].map(|(from, to)| manifest_row(from, to, epoch));
    rows.iter().for_each(|row| store.insert_manifest_row(row.epoch, row).expect("archived"));
    let first = |tier, limit| {
        let found =
            store.snapshot().expect("snapshot").manifest_first(SHARD, tier, limit).expect("rows");
        found.iter().map(|row| (row.range.from, row.tier)).collect::<Vec<_>>()
    };
    assert_eq!(first(None, 2), [(0, Tier::Hot), (2, Tier::Hot)]);
    assert_eq!(store.set_tier(&rows[0], Tier::Cold), Ok(true));
    assert_eq!(store.set_tier(&rows[0], Tier::Cold), Ok(true), "again");
    let other = ManifestRow { path: "raw/other".into(), ..rows[1].clone() };
    assert_eq!(store.set_tier(&other, Tier::Cold), Ok(false), "another object");
    assert_eq!(first(Some(Tier::Hot), 1), [(2, Tier::Hot)]);
    assert_eq!(first(Some(Tier::Cold), 9), [(0, Tier::Cold)]);
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(
        snapshot.manifest(None).expect("rows")[0],
        ManifestRow { tier: Tier::Cold, ..rows[0].clone() }
    );
    assert_eq!(snapshot.manifest_first(ShardId(9), None, 9), Ok(vec![]));
    assert_eq!(snapshot.archive_floors(), Ok(vec![]));

    assert_eq!(store.expire_object(&rows[1]), Ok(false), "not the first");
    assert_eq!(store.expire_object(&other), Ok(false), "another object");
    assert_eq!(store.expire_object(&rows[0]), Ok(true));
    assert_eq!(store.expire_object(&rows[0]), Ok(false), "only once");
    assert_eq!(store.set_tier(&rows[0], Tier::Hot), Ok(false), "gone");
    assert_eq!(
        snapshot.manifest(None).expect("rows").len(),
        3,
        "an older snapshot sees what it saw"
    );
    drop(snapshot);
    let floor = |store: &dyn RollupStore| {
        store.snapshot().expect("snapshot").archive_floors().expect("floors")
    };
    assert_eq!(floor(store), [(SHARD, ArchiveFloor { offset: 2, appended: 2, hour: Hour(11) })]);
    assert_eq!(store.expire_object(&rows[1]), Ok(true));
    assert_eq!(
        floor(store),
        [(SHARD, ArchiveFloor { offset: 3, appended: 3, hour: Hour(11) })],
        "hours never go down"
    );
    assert_eq!(first(None, 9), [(3, Tier::Hot)]);
    let again = store.claim(SHARD, LOG, 2).expect("claim").checkpoint;
    assert_eq!(again.archived, 9, "the archived offset stays");
    assert_eq!(store.expire_object(&rows[2]), Ok(true), "the last one too");
    store
        .insert_manifest_row(again.epoch, &manifest_row(9, 10, again.epoch))
        .expect("and the archive goes on");
    assert_eq!(first(None, 9), [(9, Tier::Hot)]);
}
