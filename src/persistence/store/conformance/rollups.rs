//! Flushes with their guards, and everything that queries read of them.

use super::*;
use crate::model::generation::GenerationId;

pub(super) fn rollups_and_guards(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 11).expect("claim").checkpoint.epoch;
    let big = i128::from(i64::MAX);
    store
        .flush(guard(0, 2, epoch), &batch(vec![delta("a", 1, big), delta("", 30, -5)]), 0)
        .expect("flush");
    let mut before = store.query_snapshot(&QueryBudget::default()).expect("snapshot");
    store
        .flush(guard(2, 3, epoch), &batch(vec![delta("a", 1, big), delta("b", 1, 4)]), 0)
        .expect("flush");
    assert_eq!(read(&mut *before, &[]).len(), 2, "a later flush is invisible");
    let further = store.query_snapshot_at_once(&QueryBudget::default()).expect("snapshot");
    assert_eq!(
        read(&mut *further.expect("one more is free"), &[]).len(),
        3,
        "a further view is of now"
    );
    drop(before);

    let stale = Epoch { nonce: 12, ..epoch };
    let other = FlushGuard { log: LogId([8; 16]), ..guard(3, 4, epoch) };
    for refused in [guard(2, 3, epoch), guard(4, 5, epoch), guard(3, 4, stale), other] {
        let answer = store.flush(refused, &batch(vec![delta("a", 1, 1)]), 0);
        assert_eq!(answer, Err(StoreError::Refused { shard: SHARD }));
    }

    let mut snapshot = store.snapshot().expect("snapshot");
    let mut expected = delta("a", 1, big).rollup;
    expected.merge(&delta("a", 1, big).rollup);
    let rows = read(&mut *snapshot, &[]);
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[1], ("a".to_owned(), 1, expected.clone()));
    assert_eq!(rows[1].2.figures.sum, 2 * big);
    let revisions =
        snapshot.revisions("acme", "views", GenerationId::INGEST, -1..2).expect("revisions");
    assert_eq!(
        revisions,
        [0, guard(2, 3, epoch).revision(), guard(0, 2, epoch).revision()],
        "of the last flush that wrote to the day"
    );
    let regex = |r: &str| regex::Regex::new(r).expect("regex");
    let pages = |snapshot: &mut dyn QuerySnapshot, m: Matcher| -> Vec<String> {
        read(snapshot, &[m]).into_iter().map(|(page, ..)| page).collect()
    };
    assert_eq!(pages(&mut *snapshot, Matcher::Equal("page".into(), "b".into())), ["b"]);
    assert_eq!(pages(&mut *snapshot, Matcher::Equal("page".into(), String::new())), [""]);
    assert_eq!(pages(&mut *snapshot, Matcher::NotEqual("page".into(), "a".into())), ["", "b"]);
    assert_eq!(pages(&mut *snapshot, Matcher::Regex("page".into(), regex("^(?:|a)$"))), ["", "a"]);
    assert_eq!(pages(&mut *snapshot, Matcher::NotRegex("page".into(), regex("^(?:|a)$"))), ["b"]);
    let limited = RollupQuery { max_series: 2, ..query(&[]) };
    assert!(matches!(
        snapshot.rollups(&limited, &mut |_, _, _| ()),
        Err(StoreError::TooManySeries { max: 2, .. })
    ));

    let mut encoded = Vec::new();
    expected.encode(&mut encoded);
    let mut found = Vec::new();
    let mut visit = |s: &Arc<SeriesInfo>, h: Hour, _: Rollup, bytes: &[u8]| {
        found.push((h, s.id, bytes.to_vec()))
    };
    snapshot.rollup_bytes(Hour(0), Hour(100), &mut visit).expect("bytes");
    assert!(found.is_sorted_by_key(|(hour, id, _)| (*hour, *id)));
    assert!(found.contains(&(Hour(1), info("a").id, encoded)));
    let metrics = snapshot.metrics("acme", &NameRange::ALL).expect("metrics");
    let views = MetricInfo {
        metric: "views".into(),
        labels: vec!["page".into()],
        series: 3,
        first: Some(Hour(1)),
        last: Some(Hour(30)),
    };
    assert_eq!(metrics, [views]);
    assert_eq!(
        snapshot.label_values("acme", "page", None, &[], &NameRange::ALL),
        Ok(vec!["a".into(), "b".into()])
    );
    assert_eq!(
        snapshot.label_values("acme", "page", Some("other"), &[], &NameRange::ALL),
        Ok(vec![])
    );
    let pages: [(NameRange<'_>, &[&str]); 6] = [
        (NameRange { limit: 1, ..NameRange::ALL }, &["a"]),
        (NameRange { after: "a", ..NameRange::ALL }, &["b"]),
        (NameRange { after: "b", ..NameRange::ALL }, &[]),
        (NameRange { prefix: "b", ..NameRange::ALL }, &["b"]),
        (NameRange { prefix: "ab", ..NameRange::ALL }, &[]),
        (NameRange { prefix: "a", after: "0", limit: 5, budget: None }, &["a"]),
    ];
    for (page, expected) in pages {
        for metric in [None, Some("views")] {
            let values = snapshot.label_values("acme", "page", metric, &[], &page).expect("values");
            assert_eq!(values, expected, "{page:?}");
        }
    }
    let names = [("v", "", 1), ("views", "", 1), ("viewsx", "", 0), ("", "views", 0), ("", "a", 1)];
    for (prefix, after, found) in names {
        let page = NameRange { prefix, after, ..NameRange::ALL };
        assert_eq!(snapshot.metrics("acme", &page).expect("metrics").len(), found, "{page:?}");
    }
    assert_eq!(snapshot.metrics("acme", &NameRange { limit: 0, ..NameRange::ALL }), Ok(vec![]));
    let accounting = snapshot.accounting("acme", Hour(5), Hour(6)).expect("accounting");
    assert_eq!(
        (accounting[0].aggregated, accounting[0].deduplicated, accounting[0].quarantined),
        (4, 2, 2)
    );
    drop(snapshot);
    assert_eq!(store.admitted_series(SHARD).expect("admitted")[0].1.ids.len(), 3);
    assert_eq!(store.metric_names(), Ok(vec![("acme".to_owned(), "views".to_owned())]));
    assert_eq!(store.snapshot().expect("snapshot").admissions(SHARD).expect("admissions").len(), 3);

    let mut snapshot = store.snapshot().expect("snapshot");
    let mut admitted =
        |from, to| snapshot.decisions(SHARD, OffsetRange { from, to }).expect("decisions").admitted;
    let mut first = vec![(info("a").id, 0), (info("").id, 0)];
    first.sort_unstable();
    assert_eq!(
        (admitted(0, 2), admitted(1, 2), admitted(2, 9)),
        (first, vec![], vec![(info("b").id, 2)])
    );
    drop(snapshot);
    let checkpoint = Checkpoint { log: LOG, next: 0, archived: 0, epoch, appended: None };
    let restored =
        ShardRestore { shard: SHARD, checkpoint, floor: None, manifest: vec![], admitted: vec![] };
    assert_eq!(store.restore(&restored), Err(not_being_rebuilt()));

    let liar = Arc::new(SeriesInfo { id: info("a").id, series: info("c").series.clone() });
    let collision = FlushBatch { admitted: vec![(liar, 3)], ..batch(vec![delta("b", 1, 1)]) };
    assert!(matches!(store.flush(guard(3, 4, epoch), &collision, 0), Err(StoreError::Invalid(_))));
    let mut snapshot = store.snapshot().expect("snapshot");
    assert_eq!(read(&mut *snapshot, &[])[2].2.figures.count, 1, "nothing applied");
    assert_eq!(snapshot.checkpoints().expect("checkpoints")[0].1.next, 3);
}

pub(super) fn overflow_series_do_not_count_against_the_limit(store: &dyn RollupStore) {
    let epoch = store.claim(SHARD, LOG, 11).expect("claim").checkpoint.epoch;
    let overflow = info("a").series.overflow();
    let overflow = SeriesInfo { id: SeriesId::of_key(&overflow.key()), series: overflow };
    // A client may name a page like that.
    let named_so = delta("__overflow__", 1, 1);
    let series = Arc::new(overflow);
    let deltas = vec![named_so, delta("b", 1, 1), Delta { series, ..delta("", 1, 1) }];
    store.flush(guard(0, 1, epoch), &batch(deltas), 0).expect("flushed");
    let admitted = store.admitted_series(SHARD).expect("admitted");
    let counts: Vec<_> = admitted.iter().map(|(_, of)| (of.ids.len(), of.overflow)).collect();
    assert_eq!(counts, [(3, 1)]);
}
