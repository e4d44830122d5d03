//! Releases into generations, before and behind their fills.

use super::*;
use crate::model::flush::{QuarantineRow, revision_after_release};
use crate::model::release::{ReleaseBasis, ReleasedEvent};

const SHARD: ShardId = ShardId(3);

fn set_aside(offset: u64) -> QuarantineRow {
    QuarantineRow {
        shard: SHARD,
        offset,
        index: 0,
        tenant: "acme".into(),
        received: Hour(5).start(),
        reason: "panic".into(),
        discarded: false,
        record: vec![1, 2],
    }
}

/// So many records, each with one event, which is set aside.
fn quarantined(offsets: std::ops::Range<u64>) -> FlushBatch {
    FlushBatch { quarantined: offsets.map(set_aside).collect(), ..FlushBatch::default() }
}

fn basis(store: &dyn RollupStore, offset: u64) -> ReleaseBasis {
    let mut snapshot = store.snapshot().expect("snapshot");
    let versions = snapshot.set_versions().expect("versions");
    let set = versions.iter().find(|(shard, _)| *shard == SHARD).expect("claimed").1;
    ReleaseBasis::new(set, &snapshot.shard_fills(SHARD).expect("fills"), offset)
}

/// The event of a record: 1 in generation 0, 10 in the other one.
fn event(basis: ReleaseBasis, one: GenerationId) -> ReleasedEvent {
    let part = basis.writer(one);
    let of_one = || GenerationDeltas {
        dropped: vec![dropped(0, 1)],
        rules: vec![counted("dropped", 1)],
        ..of(one, "b", 10)
    };
    let generations = part.map(|part| (part, of_one())).into_iter().collect();
    ReleasedEvent { deltas: vec![delta("a", 1, 1)], generations, basis }
}

fn of(one: GenerationId, page: &str, units: i128) -> GenerationDeltas {
    deltas(one, vec![delta(page, 1, units)])
}

fn release(
    store: &dyn RollupStore,
    offset: u64,
    event: &ReleasedEvent,
) -> Result<bool, StoreError> {
    store.settle_quarantine(SHARD, offset, 0, Some(event), None)
}

fn released(store: &dyn RollupStore) -> Vec<u64> {
    let events = store.snapshot().expect("snapshot").released_events(SHARD).expect("released");
    events.into_iter().map(|(offset, _)| offset).collect()
}

fn waiting(store: &dyn RollupStore) -> Vec<(u64, bool)> {
    let rows = store.snapshot().expect("snapshot").quarantine().expect("quarantine");
    rows.into_iter().map(|row| (row.offset, row.discarded)).collect()
}

pub(in super::super) fn a_release_and_a_fill_count_an_event_once(store: &dyn RollupStore) {
    let mut owner = Owner::claim(store, 3);
    owner.flush(4, quarantined(0..4));
    let one = start(store, &["views"], days(0, Some(10)));
    let before = event(basis(store, 0), one);
    owner.adopt(&[one]);
    let refused = StoreError::Refused { shard: SHARD };
    assert_eq!(release(store, 0, &before), Err(refused.clone()), "another set was adopted");
    owner.flush(1, quarantined(4..5));
    store.fill(&owner.fill_guard(one, 0, 2), &deltas(one, vec![])).expect("filled");

    // Behind the fill, and behind the cut.
    assert_eq!(release(store, 0, &event(basis(store, 0), one)), Ok(true));
    let (fill, live) = (writer(3, WriterPart::Fill), writer(3, WriterPart::Live));
    let row = |by, sum| (by, "b".to_owned(), 1, sum);
    assert_eq!(all_rows(store, one), [row(fill, 10)]);
    assert_eq!(release(store, 4, &event(basis(store, 4), one)), Ok(true));
    assert_eq!(all_rows(store, one), [row(live, 10), row(fill, 10)]);
    assert_eq!(release(store, 4, &event(basis(store, 4), one)), Ok(false), "only once");

    // The fill is faster than the release, which looks again.
    let late = event(basis(store, 2), one);
    assert_eq!(late.generations.len(), 0, "the fill comes to it");
    assert_eq!(store.settle_quarantine(SHARD, 1, 0, None, None), Ok(true));
    store.fill(&owner.fill_guard(one, 2, 3), &deltas(one, vec![])).expect("filled without it");
    assert_eq!(release(store, 2, &late), Err(refused.clone()));
    assert_eq!(waiting(store), [(1, true), (2, false), (3, false)], "and nothing happened");
    assert_eq!(release(store, 2, &event(basis(store, 2), one)), Ok(true));
    assert_eq!(all_rows(store, one), [row(live, 10), row(fill, 20)]);

    // The release is faster than the fill, which looks again.
    assert_eq!(release(store, 3, &event(basis(store, 3), one)), Ok(true));
    let guard = owner.fill_guard(one, 3, 4);
    assert_eq!(store.fill(&guard, &deltas(one, vec![])), Err(refused.clone()), "it has missed it");
    let with_released = |events: &[u64]| GenerationDeltas {
        released: events.iter().map(|offset| (*offset, 0)).collect(),
        ..of(one, "b", 10)
    };
    for wrong in [&[2][..], &[2, 3], &[3, 4]] {
        assert_eq!(store.fill(&guard, &with_released(wrong)), Err(refused.clone()), "{wrong:?}");
    }
    store.fill(&guard, &with_released(&[3])).expect("filled");
    assert_eq!(all_rows(store, one), [row(live, 10), row(fill, 30)]);

    let ingest = all_rows(store, GenerationId::INGEST);
    assert_eq!(ingest.iter().map(|row| row.3).collect::<Vec<_>>(), [4], "each once there");
    assert_eq!((released(store), waiting(store)), (vec![0, 2, 3, 4], vec![(1, true)]));
    each_release_is_noted(store, one, (fill, live));
    settled_events_go_with_their_records(store, &owner);
    let two = start(store, &["views"], days(20, Some(30)));
    owner.adopt(&[two]);
    assert_eq!(
        progress(store, two),
        [(SHARD, at(5, 0))],
        "what has expired is for the fill to say"
    );
}

fn each_release_is_noted(
    store: &dyn RollupStore,
    one: GenerationId,
    (fill, live): (Writer, Writer),
) {
    let mut snapshot = store.snapshot().expect("snapshot");
    let range = OffsetRange { from: 0, to: 5 };
    let decisions = snapshot.decisions(SHARD, range).expect("decisions");
    assert_eq!(decisions.quarantined, [(1, 0, true)], "what the archive is told");
    let id = info("b").id;
    assert_eq!(snapshot.generation_admissions(one, fill), Ok(vec![(id, 0)]), "at its offset");
    assert_eq!(snapshot.generation_admissions(one, live), Ok(vec![(id, 4)]));
    let dropped = snapshot.dropped_events(one).expect("dropped");
    let dropped: Vec<_> = dropped.into_iter().map(|(by, of)| (by, of.events)).collect();
    assert_eq!(dropped, [(live, 1), (fill, 2)], "the fill of the last one did not say so");
    assert_eq!(snapshot.rule_counts(one), Ok(vec![counted("dropped", 3)]));
    let fold = |offsets: &[u64], first| {
        let after = |before, at: &u64| revision_after_release(before, LOG, SHARD, *at, 0);
        offsets.iter().fold(first, after)
    };
    let of_ingest = snapshot.revisions("acme", "views", GenerationId::INGEST, 0..1);
    assert_eq!(of_ingest, Ok(vec![fold(&[0, 4, 2, 3], 0)]));
}

fn settled_events_go_with_their_records(store: &dyn RollupStore, owner: &Owner<'_>) {
    let epoch = owner.guard.epoch;
    for (from, to) in [(0, 3), (3, 5)] {
        let row = ManifestRow { shard: SHARD, ..manifest_row(from, to, epoch) };
        store.insert_manifest_row(epoch, &row).expect("archived");
    }
    let first = ManifestRow { shard: SHARD, ..manifest_row(0, 3, epoch) };
    assert_eq!(store.expire_object(&first), Ok(true));
    assert_eq!((released(store), waiting(store)), (vec![3, 4], vec![]));
    let settled = store.snapshot().expect("snapshot").settled_events().expect("settled");
    assert_eq!(settled.iter().map(|(_, of)| of.offset).collect::<Vec<_>>(), [3, 4]);
}
