//! What the flushes note about events that they do not count, until it is archived.

use super::*;
use crate::model::outcome::{OutcomeNote, UncountedEvent, Verdict};

fn note(events: &[(u64, u32, Verdict)]) -> OutcomeNote {
    let mut note = OutcomeNote::default();
    for &(offset, index, verdict) in events {
        note.push(UncountedEvent { offset, index, verdict });
    }
    note
}

pub(super) fn notes_stay_until_they_are_archived(store: &dyn RollupStore) {
    use Verdict::{Duplicate, Quarantined, RecordQuarantined};
    let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
    let all = [
        (0, 1, Duplicate),
        (1, 0, Quarantined),
        (3, 0, Duplicate),
        (3, 300, Duplicate),
        (5, 0, RecordQuarantined),
    ];
    let flush = |from: u64, to: u64, epoch: Epoch| {
        let here: Vec<_> = all.into_iter().filter(|at| from <= at.0 && at.0 < to).collect();
        let batch = FlushBatch { outcomes: note(&here), ..FlushBatch::default() };
        store.flush(guard(from, to, epoch), &batch, 0)
    };
    flush(0, 2, epoch).expect("flushed");
    flush(2, 3, epoch).expect("flushed, and nothing is noted");
    let old = Epoch { nonce: epoch.nonce + 1, ..epoch };
    assert_eq!(flush(3, 6, old), Err(StoreError::Refused { shard: SHARD }));
    flush(3, 6, epoch).expect("flushed");

    let outcomes = |from: u64, to: u64| {
        let mut snapshot = store.snapshot().expect("snapshot");
        snapshot.decisions(SHARD, OffsetRange { from, to }).expect("decisions").outcomes
    };
    assert_eq!(outcomes(0, 6), Some(note(&all)));
    assert_eq!(outcomes(1, 4), Some(note(&all[1..4])), "notes reach beyond the range");
    assert_eq!(outcomes(2, 3), Some(OutcomeNote::default()));
    assert_eq!(outcomes(0, 7), None, "above the checkpoint");
    let mut snapshot = store.snapshot().expect("snapshot");
    let elsewhere = snapshot.decisions(ShardId(9), OffsetRange { from: 0, to: 1 });
    assert_eq!(elsewhere.expect("decisions").outcomes, None, "no such shard");
    drop(snapshot);

    let archive = |from: u64, to: u64| {
        store.insert_manifest_row(epoch, &manifest_row(from, to, epoch)).expect("archived");
    };
    archive(0, 4);
    assert_eq!(outcomes(0, 4), None, "what is archived says it itself");
    assert_eq!(outcomes(4, 6), Some(note(&all[4..])), "of a note that is archived in part");
    store.check(&mut |damage| panic!("{damage:?}")).expect("checked");
    archive(4, 6);
    store.check(&mut |damage| panic!("{damage:?}")).expect("no note is left");
    let behind = store.claim(SHARD, LOG, 2).expect("claim").checkpoint.epoch;
    flush(6, 8, behind).expect("flushed");
    assert_eq!(outcomes(6, 8), Some(OutcomeNote::default()), "another owner notes on");
}
