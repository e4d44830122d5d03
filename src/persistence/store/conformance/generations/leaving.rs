//! Deletion in bounded steps of what no query reads any more.

use super::*;

/// Calls until nothing is left. Returns how many rows of a metric the generation had after each
/// call.
fn delete_all(store: &dyn RollupStore, of: &LeavingRange, max: usize) -> Vec<usize> {
    let left = || {
        let mut snapshot = store.snapshot().expect("snapshot");
        rows_of(&mut *snapshot, of.generation, &of.metric, (i32::MIN, i32::MAX)).len()
    };
    let mut counts = vec![left()];
    for _ in 0..100 {
        let deleted = store.delete_generation_rows(of, max).expect("deleted");
        assert!(deleted <= max as u64, "{deleted} are more than {max}");
        counts.push(left());
        store.check(&mut |damage| panic!("{damage:?}")).expect("checked");
        if deleted == 0 {
            return counts;
        }
    }
    panic!("it never ends: {counts:?}");
}

pub(in super::super) fn what_leaves_is_deleted_and_nothing_else(store: &dyn RollupStore) {
    let mut owner = Owner::claim(store, 3);
    owner.flush(2, live(vec![], (0..9).map(|day| delta("a", day * 24, 1)).collect()));
    let one = start(store, &["sales", "views"], days(0, Some(10)));
    owner.adopt(&[one]);
    let sales = Series::new("acme", "sales", [("page".to_owned(), "a".to_owned())]);
    let sales = Arc::new(SeriesInfo { id: SeriesId::of_key(&sales.key()), series: sales });
    let sold = Delta { series: sales, ..delta("a", 1, 8) };
    let all = (0..9).flat_map(|day| [delta("a", day * 24, 2), delta("b", day * 24 + 23, 2)]);
    let all: Vec<Delta> = all.chain([sold]).collect();
    let dropped = (0..9).map(|day| dropped(day, 1)).collect();
    owner.flush(1, live(vec![GenerationDeltas { dropped, ..deltas(one, all) }], vec![]));
    let fill = owner.fill_guard(one, 0, 2);
    store.fill(&fill, &deltas(one, vec![delta("a", 72, 3), delta("c", 99, 3)])).expect("filled");
    change(store, |book| book.apply(one, 1).map(|_| ())).expect("applied");

    // Another generation replaces days 3 and 4 of views, and the way back expires.
    let two = start(store, &["views"], days(3, Some(5)));
    owner.adopt(&[two]);
    owner.flush(1, live(vec![deltas(two, vec![delta("a", 72, 4)])], vec![]));
    change(store, |book| book.apply(two, 1).map(|_| ())).expect("applied");
    change(store, |book| assert!(book.gather(10, 10, 7)));
    let leaving = book(store).leaving().to_vec();
    assert_eq!((leaving.len(), leaving[0].days), (1, days(3, Some(5))));
    owner.adopt(&[]);
    let other = LeavingRange { metric: "other".to_owned(), ..leaving[0].clone() };
    assert_eq!(store.delete_generation_rows(&other, 9), Ok(0));
    let counts = delete_all(store, &leaving[0], 4);
    assert_eq!((counts[0], counts[1]), (20, 16), "six rows of two days, four at a time");
    assert_eq!(counts.last(), Some(&14));
    assert!(change(store, |book| book.left(&leaving[0])));
    let mut snapshot = store.snapshot().expect("snapshot");
    let hours = |snapshot: &mut dyn StoreSnapshot, of, metric| {
        let rows = rows_of(snapshot, of, metric, (i32::MIN, i32::MAX));
        rows.into_iter().map(|(_, _, hour, _)| hour).collect::<Vec<_>>()
    };
    let kept: Vec<i32> = (0..9)
        .filter(|day| ![3, 4].contains(day))
        .flat_map(|day| [day * 24, day * 24 + 23])
        .collect();
    assert_eq!(hours(&mut *snapshot, one, "views"), kept);
    assert_eq!(hours(&mut *snapshot, one, "sales"), [1]);
    assert_eq!(hours(&mut *snapshot, two, "views"), [72]);
    assert_eq!(hours(&mut *snapshot, GenerationId::INGEST, "views").len(), 9);
    let revisions = snapshot.revisions("acme", "views", one, 2..6).expect("revisions");
    assert_eq!(revisions.iter().map(|r| *r == 0).collect::<Vec<_>>(), [false, true, true, false]);
    let counted = snapshot.dropped_events(one).expect("counts");
    assert_eq!(counted.len(), 7, "{counted:?}");
    assert_eq!(snapshot.fill_progress(one).expect("progress").len(), 1, "it is still written");
    drop(snapshot);
    gone_without_a_trace(store, &mut owner, two);
}

/// A generation leaves that nobody serves: nothing of it stays, and all other rows do.
fn gone_without_a_trace(store: &dyn RollupStore, owner: &mut Owner<'_>, served: GenerationId) {
    let three = start(store, &["sales", "views"], days(0, None));
    owner.adopt(&[three]);
    let all = ["a", "b", "c"].map(|page| delta(page, 1, 7)).to_vec();
    let rules = vec![counted("dropped", 5), counted("changed", 3), counted("no_value", 1)];
    let of_three = GenerationDeltas { dropped: vec![dropped(0, 5)], rules, ..deltas(three, all) };
    owner.flush(1, live(vec![of_three.clone()], vec![]));
    change(store, |book| book.cancel(three, None, 7)).expect("cancelled");
    owner.adopt(&[]);
    let before = [GenerationId::INGEST, GenerationId(1), served].map(|of| all_rows(store, of));
    let leaving = book(store).leaving().to_vec();
    assert_eq!(leaving.len(), 2, "both metrics");
    for range in &leaving {
        delete_all(store, range, 2);
        assert!(change(store, |book| book.left(range)));
    }
    let live_3 = writer(3, WriterPart::Live);
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(snapshot.generation_metric("acme", "views", three), Ok(None));
    assert_eq!(snapshot.fill_progress(three), Ok(vec![]));
    assert_eq!(snapshot.dropped_events(three), Ok(vec![]));
    assert_eq!(snapshot.rule_counts(three), Ok(vec![]));
    assert_eq!(snapshot.generation_admissions(three, live_3), Ok(vec![]));
    assert_eq!(snapshot.revisions("acme", "views", three, 0..1), Ok(vec![0]));
    let values =
        snapshot.label_values("acme", "page", Some("x"), &[("views", three)], &NameRange::ALL);
    assert_eq!(values, Ok(vec![]));
    drop(snapshot);
    assert_eq!(store.generation_series(three, live_3), Ok(vec![]));
    assert_eq!(
        [GenerationId::INGEST, GenerationId(1), served].map(|of| all_rows(store, of)),
        before
    );

    // Numbers that a writer has cached of the one that is gone are not used for the next one.
    let four = start(store, &["views"], days(0, None));
    owner.adopt(&[four]);
    owner.flush(1, live(vec![GenerationDeltas { generation: four, ..of_three }], vec![]));
    assert_eq!(all_rows(store, four).len(), 3);
    let of_four = RollupQuery { generation: four, ..query(&[]) };
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(visited(&mut *snapshot, &of_four).map(|rows| rows.len()), Ok(3));
    store.check(&mut |damage| panic!("{damage:?}")).expect("checked");
}

/// How much is stored of a generation that has this metric alone: rows, counts, series and cursors.
fn extent(store: &dyn RollupStore, generation: GenerationId) -> u64 {
    let rows = all_rows(store, generation).len();
    let mut snapshot = store.snapshot().expect("snapshot");
    let revisions = snapshot.revisions("acme", "views", generation, 0..60).expect("revisions");
    let revisions = revisions.into_iter().filter(|revision| *revision != 0).count();
    let dropped = snapshot.dropped_events(generation).expect("counts").len();
    let rules = snapshot.rule_counts(generation).expect("counts").len();
    let fills = snapshot.fill_progress(generation).expect("progress").len();
    let series = [WriterPart::Live, WriterPart::Fill].map(|part| {
        snapshot.generation_admissions(generation, writer(3, part)).expect("series").len()
    });
    (rows + revisions + dropped + rules + fills + series[0] + series[1]) as u64
}

pub(in super::super) fn each_call_deletes_no_more_than_it_may(store: &dyn RollupStore) {
    let mut owner = Owner::claim(store, 3);
    owner.flush(2, live(vec![], vec![delta("a", 1, 1)]));
    let one = start(store, &["views"], days(0, None));
    owner.adopt(&[one]);
    let pages = ["a", "b", "c", "d", "e", "f", "g"];
    let all = pages.map(|page| delta(page, 1, 1)).to_vec();
    let counts = || (0..50).map(|day| dropped(day, 1)).collect();
    let rules: Vec<RuleEvents> = ["dropped", "changed", "no_value", "too_long", "unknown"]
        .map(|outcome| counted(outcome, 1))
        .to_vec();
    let of_one = GenerationDeltas { dropped: counts(), rules, ..deltas(one, all.clone()) };
    owner.flush(1, live(vec![of_one], vec![]));
    let filled = GenerationDeltas { dropped: counts(), ..deltas(one, all) };
    store.fill(&owner.fill_guard(one, 0, 2), &filled).expect("filled");
    change(store, |book| book.cancel(one, None, 7)).expect("cancelled");
    owner.adopt(&[]);
    let (leaving, before) = (book(store).leaving()[0].clone(), extent(store, one));
    assert_eq!(before, 14 + 1 + 100 + 5 + 1 + 14);
    let (mut left, ingest) = (before, all_rows(store, GenerationId::INGEST));
    for max in (1..).map(|call| call % 5 + 3) {
        let deleted = store.delete_generation_rows(&leaving, max).expect("deleted");
        let now = extent(store, one);
        let max = max as u64;
        // A store may count the metric itself, too.
        assert!(left - now <= deleted && deleted <= max, "{left} to {now}: {deleted} of {max}");
        assert!(deleted >= left.min(max), "{left}: {deleted} of {max}");
        left = now;
        if deleted == 0 {
            break;
        }
    }
    assert_eq!((left, all_rows(store, GenerationId::INGEST)), (0, ingest));
    assert_eq!(store.delete_generation_rows(&leaving, 9), Ok(0), "another node is as far");
}

pub(in super::super) fn two_nodes_delete_the_same_without_an_error(store: &dyn RollupStore) {
    let mut owner = Owner::claim(store, 3);
    for round in 0..6 {
        let one = start(store, &["views"], days(0, None));
        owner.adopt(&[one]);
        let all = (0..12).map(|n| delta(&format!("{round}-{n}"), n * 24, 1)).collect();
        let of_one = GenerationDeltas { dropped: vec![dropped(0, 1)], ..deltas(one, all) };
        owner.flush(1, live(vec![of_one], vec![]));
        change(store, |book| book.cancel(one, None, 7)).expect("cancelled");
        owner.adopt(&[]);
        let leaving = book(store).leaving()[0].clone();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while store.delete_generation_rows(&leaving, 2).expect("no error") > 0 {}
                });
            }
        });
        assert_eq!(extent(store, one), 0);
        assert!(change(store, |book| book.left(&leaving)));
    }
    store.check(&mut |damage| panic!("{damage:?}")).expect("checked");
}
