//! Generations that a flush gives up.

use super::*;
use crate::model::flush::Abandonment;

fn abandoning(generations: Vec<GenerationId>) -> FlushBatch {
    let abandons = Some(Abandonment { generations, offset: 3, index: 1, at: 77 });
    FlushBatch { abandons, ..live(vec![], vec![delta("a", 1, 5)]) }
}

pub(in super::super) fn what_a_flush_abandons_is_given_up_with_it(store: &dyn RollupStore) {
    let mut owner = Owner::claim(store, 3);
    owner.flush(2, FlushBatch::default());
    let one = start(store, &["views"], days(0, Some(10)));
    let two = start(store, &["sales"], days(0, Some(10)));
    owner.adopt(&[one, two]);
    change(store, |book| book.apply(two, 1).map(|_| ())).expect("applied");
    let before = book(store);
    let refused = Err(StoreError::Refused { shard: ShardId(3) });
    let of_both = FlushBatch { set: owner.set, ..abandoning(vec![one, two]) };
    assert_eq!(store.flush(owner.next(1), &of_both, 0), refused, "one is served by now");
    assert_eq!((book(store), all_rows(store, GenerationId::INGEST).len()), (before.clone(), 0));
    let ahead = FlushBatch { set: owner.set, ..abandoning(vec![one]) };
    let elsewhere = FlushGuard { range: OffsetRange { from: 9, to: 10 }, ..owner.guard };
    assert_eq!(store.flush(elsewhere, &ahead, 0), refused);
    assert_eq!(book(store), before, "with its flush, and not without");

    let guard = owner.flush(1, abandoning(vec![one]));
    let after = book(store);
    let why = after.generations()[&one].given_up.clone().expect("given up");
    assert!(why.contains("shard 3") && why.contains("offset 3"), "{why}");
    assert!(!after.newest_set().has(one) && after.newest_set().has(two));
    let entries = store.snapshot().expect("snapshot").audit_entries("acme", 9).expect("entries");
    let entry = AuditEntry {
        generation: one,
        tenant: "acme".into(),
        action: "give_up".into(),
        at: 77,
        by: "shard 3".into(),
        note: why,
    };
    assert_eq!(entries, [entry]);
    let fill = owner.fill_guard(one, 0, 1);
    assert_eq!(store.fill(&fill, &deltas(one, vec![])), refused, "it is filled no more");
    assert_eq!(store.flush(guard, &ahead, 0), refused);

    // The next owner goes on under the same version, without what was given up.
    let claim = store.claim(ShardId(3), LOG, 1).expect("claim");
    assert_eq!(
        (claim.set.version, claim.set.has(one), claim.set.has(two)),
        (owner.set, false, true)
    );
    let owner = &mut Owner::claim(store, 3);
    owner.flush(1, abandoning(vec![one, GenerationId(9)]));
    assert_eq!(book(store), after, "it has left already");
    assert_eq!(all_rows(store, GenerationId::INGEST)[0].3, 10);
}
