//! Quarantined events: set aside, released, discarded.

use super::*;
use crate::model::flush::QuarantineRow;
use crate::model::generation::GenerationId;
use crate::model::outcome::UncountedEvent;
use crate::model::release::ReleasedEvent;
use crate::model::settled_document::{SettledEvent, Settlement};

pub(super) fn quarantine(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
    let row = |index| QuarantineRow {
        shard: SHARD,
        offset: 0,
        index,
        tenant: "acme".into(),
        received: Hour(5).start(),
        reason: "panic".into(),
        discarded: false,
        record: vec![1, 2],
    };
    let accounting = vec![AccountingDelta {
        tenant: "acme".into(),
        hour: Hour(5),
        aggregated: 0,
        deduplicated: 0,
        quarantined: 2,
    }];
    let unread = QuarantineRow { tenant: String::new(), ..row(2) };
    let rows = vec![row(0), row(1), unread.clone()];
    let set_aside = FlushBatch { quarantined: rows.clone(), accounting, ..FlushBatch::default() };
    store.flush(guard(0, 1, epoch), &set_aside, 0).expect("flush");
    let place = |index| UncountedEvent::set_aside((0, index), index == 2);
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(snapshot.quarantine(), Ok(rows));
    assert_eq!(snapshot.quarantined_events(SHARD), Ok([0, 1, 2].map(place).to_vec()));
    assert_eq!(snapshot.quarantined_events(ShardId(9)), Ok(vec![]));
    drop(snapshot);
    let release = ReleasedEvent { deltas: vec![delta("a", 1, 9)], ..ReleasedEvent::default() };
    assert_eq!(store.settle_quarantine(SHARD, 0, 0, Some(&release), None), Ok(true));
    assert_eq!(store.settle_quarantine(SHARD, 0, 0, Some(&release), None), Ok(false), "only once");
    assert_eq!(store.settle_quarantine(SHARD, 0, 1, None, None), Ok(true));
    assert_eq!(store.settle_quarantine(SHARD, 0, 1, None, None), Ok(false), "discarded already");
    assert_eq!(
        store.settle_quarantine(SHARD, 0, 1, Some(&release), None),
        Ok(false),
        "discarded is for good"
    );
    let mut snapshot = store.snapshot().expect("snapshot");
    let discarded = QuarantineRow { discarded: true, ..row(1) };
    assert_eq!(snapshot.quarantine(), Ok(vec![discarded, unread]));
    assert_eq!(snapshot.quarantined_events(SHARD), Ok([1, 2].map(place).to_vec()));
    assert_eq!(snapshot.released_events(SHARD), Ok(vec![(0, 0)]));
    assert_eq!(snapshot.released_events(ShardId(9)), Ok(vec![]));
    let event = |index, settlement| (SHARD, SettledEvent { offset: 0, index, settlement });
    let settled = vec![event(0, Settlement::Released), event(1, Settlement::Discarded)];
    assert_eq!(snapshot.settled_events(), Ok(settled));
    let mut set_aside = |from, to| {
        snapshot.decisions(SHARD, OffsetRange { from, to }).expect("decisions").quarantined
    };
    assert_eq!((set_aside(0, 1), set_aside(1, 2)), (vec![(0, 1, true), (0, 2, false)], vec![]));
    assert_eq!(read(&mut *snapshot, &[])[0].2.figures.count, 1);
    let settled = crate::model::flush::revision_after_release(0, LOG, SHARD, 0, 0);
    assert_eq!(snapshot.revisions("acme", "views", GenerationId::INGEST, 0..1), Ok(vec![settled]));
    let accounting = snapshot.accounting("acme", Hour(0), Hour(9)).expect("accounting");
    assert_eq!((accounting[0].aggregated, accounting[0].quarantined), (1, 1));
}
