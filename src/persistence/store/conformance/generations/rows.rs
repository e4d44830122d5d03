//! Rows of several writers, and generation 0 beside them.

use super::*;

pub(in super::super) fn writers_of_a_generation_share_no_row(store: &dyn RollupStore) {
    let mut owners = [Owner::claim(store, 3), Owner::claim(store, 4)];
    owners[0].flush(4, live(vec![], vec![delta("a", 1, 1000), delta("b", 30, 2000)]));
    owners[1].flush(4, FlushBatch::default());
    let one = start(store, &["views"], days(0, Some(10)));
    owners.iter_mut().for_each(|owner| owner.adopt(&[one]));
    let flushed = owners.each_mut().map(|owner| {
        let of_one = vec![delta("a", 1, 1), delta("b", 25, 2)];
        let dropped = vec![dropped(0, 3), dropped(1, 1), dropped(1, 1)];
        let rules = vec![counted("changed", 2), counted("no_value", 1), counted("changed", 1)];
        let batch = GenerationDeltas { dropped, rules, ..deltas(one, of_one) };
        owner.flush(1, live(vec![batch], vec![delta("a", 1, 5)]))
    });
    let fill = owners[0].fill_guard(one, 0, 2);
    let admitted = vec![(info("a"), 1), (info("unused"), 1)];
    let of_fill = GenerationDeltas {
        admitted,
        dropped: vec![dropped(0, 7)],
        rules: vec![RuleEvents { rule: 1, ..counted("dropped", 7) }, counted("changed", 4)],
        ..deltas(one, vec![delta("a", 1, 100), delta("c", -30, 200)])
    };
    store.fill(&fill, &of_fill).expect("filled");
    owners[0].flush(1, live(vec![deltas(one, vec![delta("a", 1, 1)])], vec![]));

    let [live_3, live_4] = [3, 4].map(|shard| writer(shard, WriterPart::Live));
    let fill_3 = writer(3, WriterPart::Fill);
    let row = |by, page: &str, hour, sum| (by, page.to_owned(), hour, sum);
    let mut expected = vec![
        row(live_3, "a", 1, 2),
        row(fill_3, "a", 1, 100),
        row(live_4, "a", 1, 1),
        row(live_3, "b", 25, 2),
        row(live_4, "b", 25, 2),
        row(fill_3, "c", -30, 200),
    ];
    expected.sort_by_key(|(by, page, hour, _)| (*hour, info(page).id, *by));
    assert_eq!(all_rows(store, one), expected, "by hour, series id and writer");
    let mut snapshot = store.snapshot().expect("snapshot");
    let of_hours = rows_of(&mut *snapshot, one, "views", (1, 25));
    assert_eq!(of_hours.len(), 3, "without the last hour: {of_hours:?}");
    assert_eq!(rows_of(&mut *snapshot, one, "other", (0, 99)), []);
    assert_eq!(rows_of(&mut *snapshot, GenerationId(9), "views", (0, 99)), []);

    queries_see_all_writers(&mut *snapshot, one);
    let revisions = snapshot.revisions("acme", "views", one, -2..3).expect("revisions");
    let second = owners[0].guard.revision();
    assert_eq!(revisions, [fill.revision(), 0, second, flushed[1].revision(), 0]);
    drop(snapshot);
    each_writer_notes_its_own(store, one);
    generation_0_is_as_ingest_made_it(store, &flushed);
}

/// What each writer has admitted and dropped.
fn each_writer_notes_its_own(store: &dyn RollupStore, one: GenerationId) {
    let [live_3, live_4] = [3, 4].map(|shard| writer(shard, WriterPart::Live));
    let fill_3 = writer(3, WriterPart::Fill);
    let mut snapshot = store.snapshot().expect("snapshot");
    let admissions = |snapshot: &mut dyn StoreSnapshot, by| {
        let mut found = snapshot.generation_admissions(one, by).expect("admissions");
        found.sort_by_key(|(id, at)| (*at, *id));
        found
    };
    let of_fill = admissions(&mut *snapshot, fill_3);
    let mut expected = vec![(info("a").id, 1), (info("unused").id, 1), (info("c").id, 0)];
    expected.sort_by_key(|(id, at)| (*at, *id));
    assert_eq!(of_fill, expected, "with its own offset, or where the range begins");
    assert_eq!(admissions(&mut *snapshot, live_4).len(), 2);
    // What is archived with the records: of live writers alone, by offset.
    let of_live_3 = admissions(&mut *snapshot, live_3);
    assert_eq!(of_live_3.len(), 2);
    let mut decided = |from, to| {
        let range = OffsetRange { from, to };
        snapshot.decisions(ShardId(3), range).expect("decisions").generations
    };
    let expected: Vec<_> = of_live_3.iter().map(|(id, offset)| (one, *id, *offset)).collect();
    assert_eq!(decided(0, 99), expected);
    assert_eq!(decided(0, of_live_3[0].1), []);
    assert_eq!(snapshot.generation_admissions(GenerationId(9), live_4), Ok(vec![]));
    let mut counts = snapshot.dropped_events(one).expect("counts");
    counts.sort_by_key(|(by, dropped)| (*by, dropped.day));
    let of_live = |by| [(by, dropped(0, 3)), (by, dropped(1, 2))];
    let [three, four] = [of_live(live_3), of_live(live_4)];
    let expected = [
        three[0].clone(),
        three[1].clone(),
        (fill_3, dropped(0, 7)),
        four[0].clone(),
        four[1].clone(),
    ];
    assert_eq!(counts, expected);
    assert_eq!(snapshot.dropped_events(GenerationId(9)), Ok(vec![]));
    // Of two flushes and a fill.
    let of_second = RuleEvents { rule: 1, ..counted("dropped", 7) };
    let did = vec![counted("changed", 10), counted("no_value", 2), of_second];
    assert_eq!(snapshot.rule_counts(one), Ok(did));
    assert_eq!(snapshot.rule_counts(GenerationId(9)), Ok(vec![]));
    drop(snapshot);
    let ids = |by| {
        let mut ids = store.generation_series(one, by).expect("series");
        ids.sort();
        ids
    };
    let sorted = |pages: &[&str]| {
        let mut ids: Vec<SeriesId> = pages.iter().map(|page| info(page).id).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(fill_3), sorted(&["a", "c", "unused"]));
    assert_eq!((ids(live_3), ids(live_4)), (sorted(&["a", "b"]), sorted(&["a", "b"])));
    assert_eq!(ids(writer(4, WriterPart::Fill)), []);
}

/// Generation 1 has pages a (three writers), b (two) and c; generation 0 has pages a and b.
fn queries_see_all_writers(snapshot: &mut dyn StoreSnapshot, one: GenerationId) {
    let of_one = RollupQuery { generation: one, from: Hour(-50), ..query(&[]) };
    let all = visited(snapshot, &of_one).expect("rows");
    let row = |page: &str, hour, sum| (page.to_owned(), hour, sum);
    let [a, b] = ["a", "b"].map(|page| move |hour, sum| row(page, hour, sum));
    let expected = [a(1, 1), a(1, 2), a(1, 100), b(25, 2), b(25, 2), row("c", -30, 200)];
    assert_eq!(all, expected);
    let page_a = [Matcher::Equal("page".into(), "a".into())];
    let of_a = RollupQuery { matchers: &page_a, ..of_one.clone() };
    assert_eq!(visited(snapshot, &of_a).expect("rows"), expected[..3]);
    let short = RollupQuery { from: Hour(24), to: Hour(26), ..of_one.clone() };
    assert_eq!(visited(snapshot, &short).expect("rows"), expected[3..5]);
    let none = RollupQuery { generation: GenerationId(9), ..of_one.clone() };
    assert_eq!(visited(snapshot, &none), Ok(vec![]));

    // Pages a, b, c and the one that has no row: not one for each writer.
    for matchers in [&[][..], &[Matcher::NotEqual("page".into(), "none".into())]] {
        let limited = |max_series| RollupQuery { max_series, matchers, ..of_one.clone() };
        assert_eq!(visited(snapshot, &limited(4)).map(|rows| rows.len()), Ok(6));
        let refused = visited(snapshot, &limited(3));
        assert!(matches!(refused, Err(StoreError::TooManySeries { max: 3, .. })), "{refused:?}");
    }
    let limited = RollupQuery { max_series: 1, ..of_a.clone() };
    assert_eq!(visited(snapshot, &limited).expect("rows"), expected[..3]);

    let metric = snapshot.generation_metric("acme", "views", one).expect("a metric");
    let views = MetricInfo {
        metric: "views".into(),
        labels: vec!["page".into()],
        series: 4,
        first: Some(Hour(-30)),
        last: Some(Hour(25)),
    };
    assert_eq!(metric, Some(views));
    assert_eq!(snapshot.generation_metric("acme", "views", GenerationId(9)), Ok(None));
    assert_eq!(snapshot.generation_metric("acme", "other", one), Ok(None));
    let mut values = |metric, others: &[(&str, GenerationId)], page: NameRange<'_>| {
        snapshot.label_values("acme", "page", metric, others, &page).expect("values")
    };
    let all = NameRange::ALL;
    let both = ["a", "b", "c", "unused"];
    assert_eq!(values(None, &[], all), both[..2], "generation 0 alone");
    assert_eq!(values(None, &[("views", one)], all), both);
    assert_eq!(values(Some("views"), &[("views", one)], all), both);
    assert_eq!(values(Some("other"), &[("views", one)], all), both);
    assert_eq!(
        values(Some("views"), &[("other", one), ("views", GenerationId(9))], all),
        both[..2]
    );
    let page = NameRange { after: "a", limit: 2, ..NameRange::ALL };
    assert_eq!(values(None, &[("views", one)], page), both[1..3]);
}

/// Whatever shows generation 0 shows nothing else.
fn generation_0_is_as_ingest_made_it(store: &dyn RollupStore, flushed: &[FlushGuard; 2]) {
    let mut snapshot = store.snapshot().expect("snapshot");
    let all = visited(&mut *snapshot, &query(&[])).expect("rows");
    let expected = [("a".to_owned(), 1, 1010), ("b".to_owned(), 30, 2000)];
    assert_eq!(all, expected);
    let limited = RollupQuery { max_series: 2, ..query(&[]) };
    assert_eq!(visited(&mut *snapshot, &limited).expect("rows"), expected);
    let ingest = rows_of(&mut *snapshot, GenerationId::INGEST, "views", (-99, 99));
    let by = writer(0, WriterPart::Live);
    assert_eq!(ingest, expected.clone().map(|(page, hour, sum)| (by, page, hour, sum)));
    let mut found = Vec::new();
    let mut visit =
        |info: &Arc<SeriesInfo>, hour: Hour, _: Rollup, _: &[u8]| found.push((hour.0, info.id));
    snapshot.rollup_bytes(Hour(-99), Hour(99), &mut visit).expect("bytes");
    assert_eq!(found, [(1, info("a").id), (30, info("b").id)]);
    let revisions = snapshot.revisions("acme", "views", GenerationId::INGEST, -2..3);
    let revisions = revisions.expect("revisions");
    assert_eq!((revisions[0], revisions[2]), (0, flushed[1].revision()));
    let metrics = snapshot.metrics("acme", &NameRange::ALL).expect("metrics");
    assert_eq!(metrics.len(), 1);
    assert_eq!((metrics[0].series, metrics[0].first), (2, Some(Hour(1))));
    assert_eq!(snapshot.admissions(ShardId(3)).expect("admissions").len(), 2);
    assert_eq!(snapshot.admissions(ShardId(4)).expect("admissions").len(), 0);
    assert_eq!(snapshot.retention_floor(), Ok(None), "nothing was ever dropped");
    let all = OffsetRange { from: 0, to: 99 };
    assert_eq!(snapshot.decisions(ShardId(3), all).expect("decisions").admitted.len(), 2);
    drop(snapshot);
    let admitted = store.admitted_series(ShardId(3)).expect("admitted");
    assert_eq!(admitted.iter().map(|(_, of)| of.ids.len()).collect::<Vec<_>>(), [2]);
    assert_eq!(store.admitted_series(ShardId(4)), Ok(vec![]));
    assert_eq!(store.metric_names(), Ok(vec![("acme".to_owned(), "views".to_owned())]));
    store.check(&mut |damage| panic!("{damage:?}")).expect("checked");
}

pub(in super::super) fn an_hour_of_many_rows_comes_in_order(store: &dyn RollupStore) {
    let mut owner = Owner::claim(store, 3);
    let pages = || (0..400).map(|n| format!("page-{n}"));
    let hours = [1, 2, 2, 9].map(|hour| pages().map(move |page| delta(&page, hour, 1000)));
    owner.flush(4, live(vec![], hours.into_iter().flatten().collect()));
    let all = all_rows(store, GenerationId::INGEST);
    let mut places: Vec<_> = all.iter().map(|(_, page, hour, _)| (*hour, info(page).id)).collect();
    assert_eq!(all.iter().map(|row| row.3).sum::<i128>(), 1_600_000, "each once");
    assert!(places.is_sorted(), "by hour and series id");
    places.dedup();
    assert_eq!(places.len(), 1_200);
    // A visitor that ends it within an hour that is read in several parts.
    let (mut snapshot, mut seen) = (store.snapshot().expect("snapshot"), 0);
    let mut visit = |_, _: &Arc<SeriesInfo>, _, _, _: &[u8]| {
        seen += 1;
        if seen < 500 { Ok(()) } else { Err(StoreError::QueryEnded) }
    };
    let of = ("acme", "views");
    let ended = snapshot.generation_rows(GenerationId::INGEST, of, (Hour(0), Hour(5)), &mut visit);
    assert_eq!((ended, seen), (Err(StoreError::QueryEnded), 500));
    // It goes on where it has stopped; the hours behind that are whole.
    let (mut rest, stopped) = (Vec::new(), places[499]);
    let mut visit = |_, info: &Arc<SeriesInfo>, hour: Hour, _, _: &[u8]| {
        rest.push((hour.0, info.id));
        Ok(())
    };
    let (hours, ingest) = ((Hour(stopped.0), Hour(99)), GenerationId::INGEST);
    let read = snapshot.generation_rows_after(ingest, of, hours, Some(stopped.1), &mut visit);
    assert_eq!((read, rest), (Ok(()), places[500..].to_vec()));
    assert_eq!(rows_of(&mut *snapshot, GenerationId::INGEST, "views", (2, 3)).len(), 400);
}
