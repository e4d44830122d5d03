//! Generations that a flush gives up.

use super::*;
use crate::model::flush::Abandonment;

fn abandonment(generations: Vec<GenerationId>, metric: &str) -> Abandonment {
    Abandonment { generations, metric: metric.to_owned(), offset: 3, index: 1, at: 77 }
}

fn abandoning(generations: Vec<GenerationId>) -> FlushBatch {
    let abandons = vec![abandonment(generations, "views")];
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
    assert!(["shard 3", "views", "offset 3"].iter().all(|part| why.contains(part)), "{why}");
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

pub(in super::super) fn a_flush_abandons_for_each_event_and_nothing_of_other_tenants(
    store: &dyn RollupStore,
) {
    let mut owner = Owner::claim(store, 3);
    owner.flush(2, FlushBatch::default());
    let views = start(store, &["views"], days(0, Some(10)));
    let sales = start(store, &["sales"], days(0, Some(10)));
    let later = start(store, &["views"], days(10, None));
    let other = NewGeneration {
        tenant: "globex".to_owned(),
        metrics: vec!["views".to_owned()],
        days: days(0, Some(10)),
        rules: "[]".into(),
        started: (1, "k2".to_owned()),
    };
    let other = change(store, |book| book.start(other, 3, 7)).expect("started");
    owner.adopt(&[views, sales, later, other]);
    let before = book(store);
    let abandons = vec![abandonment(vec![views], "views"), abandonment(vec![sales], "sales")];
    owner.flush(1, FlushBatch { abandons, ..live(vec![], vec![delta("a", 1, 5)]) });
    let after = book(store);
    let why = |id| after.generations()[&id].given_up.clone().unwrap_or_default();
    assert!(why(views).contains("an event of views") && why(sales).contains("an event of sales"));
    assert_eq!(after.newest_set().generations(), [later, other]);
    for id in [later, other] {
        assert_eq!(after.generations()[&id], before.generations()[&id]);
        assert_eq!(store.fill(&owner.fill_guard(id, 0, 1), &deltas(id, vec![])), Ok(()));
    }
    let snapshot = || store.snapshot().expect("snapshot");
    let entries = snapshot().audit_entries("acme", 9).expect("entries");
    let given_up: Vec<_> = entries.iter().map(|entry| (entry.generation, &*entry.note)).collect();
    assert_eq!(given_up.len(), 2);
    for id in [views, sales] {
        assert!(given_up.contains(&(id, &why(id))), "{given_up:?}");
    }
    assert_eq!(snapshot().audit_entries("globex", 9), Ok(vec![]), "it is not told of another's");
    let claim = store.claim(ShardId(3), LOG, 1).expect("claim");
    assert_eq!(claim.set.generations(), [later, other]);
}
