//! SQLite and PostgreSQL hold the same bytes after the same flushes.

use super::super::StoreContents;
use super::rng::Rng;
use super::timescale::TestDatabase;
use super::*;
use crate::model::board::{BoardId, NewBoard};
use crate::model::flush::{DedupBlock, QuarantineRow};
use crate::model::generation::GenerationId;
use crate::model::manifest::{ManifestRow, Tier};
use crate::model::matcher::Matcher;
use crate::model::outcome::{UncountedEvent, Verdict};
use crate::persistence::store::BoardStore;
use crate::persistence::store::RollupQuery;
use crate::persistence::store::sqlite::SqliteStore;
use crate::persistence::store::transfer::TransferBatch;
use crate::persistence::store::{NameRange, StoreError};

fn random_batch(rng: &mut Rng) -> FlushBatch {
    let mut deltas = Vec::new();
    for _ in 0..rng.below(60) {
        let labels: Vec<_> =
            (0..rng.below(3)).map(|n| (format!("l{n}"), format!("v{}", rng.below(3)))).collect();
        let series =
            Series::new(&format!("t{}", rng.below(2)), &format!("m{}", rng.below(3)), labels);
        let series = Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series });
        let mut rollup = Rollup::default();
        let most = if rng.chance(5) { 3000 } else { 6 };
        for _ in 0..=rng.below(most) {
            let units = i128::from(rng.next().cast_signed()) << rng.below(27);
            let value = (!rng.chance(20)).then(|| Decimal::from_units(units >> rng.below(70)));
            rollup.add(value, (!rng.chance(30)).then(|| rng.next()));
        }
        deltas.push(Delta { series, hour: Hour(rng.below(400) as i32 - 200), rollup });
    }
    let accounting = (0..rng.below(4))
        .map(|_| AccountingDelta {
            tenant: format!("t{}", rng.below(2)),
            hour: Hour(rng.below(3) as i32),
            aggregated: rng.below(9),
            deduplicated: rng.below(9),
            quarantined: rng.below(2),
        })
        .collect();
    FlushBatch { deltas, accounting, ..FlushBatch::default() }
}

/// Everything that a snapshot shows, as text.
fn shown(store: &dyn RollupStore) -> Vec<String> {
    let mut snapshot = store.snapshot().expect("a snapshot");
    let mut all = Vec::new();
    let regex = regex::Regex::new("^(?:v1|)$").expect("a regex");
    snapshot
        .rollup_bytes(Hour(-1000), Hour(1000), &mut |series, hour, _, bytes| {
            all.push(format!("{:?} {hour:?} {bytes:02x?}", series.series))
        })
        .expect("bytes");
    all.push(format!("{:?}", snapshot.checkpoints().expect("checkpoints")));
    for tenant in ["t0", "t1"] {
        all.push(format!("{:?}", snapshot.metrics(tenant, &NameRange::ALL).expect("metrics")));
        all.push(format!(
            "{:?}",
            snapshot.label_values(tenant, "l0", None, &[], &NameRange::ALL).expect("values")
        ));
        all.push(format!(
            "{:?}",
            snapshot.label_values(tenant, "l1", Some("m1"), &[], &NameRange::ALL).expect("values")
        ));
        all.push(format!(
            "{:?}",
            snapshot.accounting(tenant, Hour(0), Hour(9)).expect("accounting")
        ));
        for metric in ["m0", "m1", "m2"] {
            all.push(format!(
                "{:?}",
                snapshot
                    .revisions(tenant, metric, GenerationId::INGEST, -20..20)
                    .expect("revisions")
            ));
            let few = Matcher::Equal("l0".into(), "v1".into());
            for matchers in [
                vec![],
                vec![few.clone()],
                vec![few, Matcher::NotRegex("l1".into(), regex.clone())],
                vec![Matcher::Regex("l1".into(), regex.clone())],
            ] {
                for (distinct, quantiles, from, to) in [
                    (false, false, -200, 200),
                    (true, false, -3, 90),
                    (false, true, 0, 1),
                    (true, true, -200, 200),
                ] {
                    let query = RollupQuery {
                        tenant,
                        metric,
                        matchers: &matchers,
                        from: Hour(from),
                        to: Hour(to),
                        distinct,
                        quantiles,
                        max_series: 100,
                        budget: None,
                        generation: GenerationId::INGEST,
                    };
                    let mut rows = Vec::new();
                    snapshot
                        .rollups(&query, &mut |series, hour, rollup| {
                            rows.push((series.id, hour, format!("{rollup:?}")))
                        })
                        .expect("rollups");
                    let mut last = std::collections::HashMap::new();
                    assert!(
                        rows.iter().all(|(id, hour, _)| last
                            .insert(*id, *hour)
                            .is_none_or(|before| before < *hour)),
                        "ascending hours"
                    );
                    rows.sort();
                    all.push(format!("{rows:?}"));
                }
            }
        }
    }
    let mut series = store.admitted_series(ShardId(0)).expect("series");
    series.iter_mut().for_each(|(_, of)| of.ids.sort());
    all.push(format!("{series:?}"));
    all
}

#[test]
fn both_stores_hold_the_same_bytes_after_the_same_flushes() {
    for seed in 0..3 {
        let dir = tempfile::tempdir().expect("a directory");
        let sqlite = SqliteStore::open(dir.path().join("store.sqlite")).expect("a store");
        let (postgres, _) = store();
        let stores: [&dyn RollupStore; 2] = [&*sqlite, &*postgres];
        let epochs =
            stores.map(|store| store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch);
        assert_eq!(epochs[0], epochs[1]);
        let mut rng = Rng(seed);
        for offset in 0..12 {
            let batch = random_batch(&mut rng);
            stores.iter().for_each(|store| {
                store.flush(guard(0, offset, epochs[0]), &batch, 0).expect("a flush")
            });
        }
        let (left, right) = (shown(&*sqlite), shown(&*postgres));
        assert!(left.len() > 300, "only {} things to compare", left.len());
        for (left, right) in left.iter().zip(&right) {
            assert_eq!(left, right, "seed {seed}");
        }
        assert_eq!(left.len(), right.len());
    }
}

/// Fills a store with rows of every kind: quarantined events, suspects, objects, floors, ids.
fn fill(store: &SqliteStore, rng: &mut Rng) {
    for shard in (0..3).map(ShardId) {
        let epoch = store.claim(shard, LOG, 1).expect("a claim").checkpoint.epoch;
        for offset in 0..6 {
            let mut batch = random_batch(rng);
            let range = OffsetRange { from: offset, to: offset + 1 };
            batch.admitted =
                batch.deltas.iter().map(|delta| (delta.series.clone(), offset)).collect();
            batch.dedup = Some(DedupBlock {
                range,
                appended: (5, 7),
                runs: vec![(5, vec![u128::from(rng.next())]), (7, vec![])],
            });
            batch.appended = Some(7);
            let row = |discarded, reason: &str| QuarantineRow {
                shard,
                offset,
                index: u32::from(discarded),
                tenant: "t0".to_owned(),
                received: 7,
                reason: reason.to_owned(),
                discarded,
                record: vec![1, 2, 3],
            };
            batch.quarantined = vec![row(false, "it fell"), row(true, "it fell again")];
            batch.outcomes.push(UncountedEvent { offset, index: 3, verdict: Verdict::Duplicate });
            store.flush(guard(shard.0, offset, epoch), &batch, 0).expect("a flush");
            // The last one waits for its object, and so does its note.
            if offset == 5 {
                continue;
            }
            let object = ManifestRow {
                log: LOG,
                shard,
                range,
                epoch,
                path: ManifestRow::object_path(LOG, shard, range, epoch),
                appended: (5, 7),
                received: (-4, i64::MAX),
                windows: vec![(Hour(-3), 1), (Hour(9), u64::MAX)],
                rows: 2,
                raw_bytes: 3,
                bytes: 4,
                crc32c: u32::MAX,
                tier: Tier::Cold,
            };
            store.insert_manifest_row(object.epoch, &object).expect("a manifest row");
            if offset == 0 && shard.0 == 1 {
                assert!(store.expire_object(&object).expect("expired"));
            }
        }
        let id = BoardId::parse(&format!("board-{shard}")).expect("an id");
        let (by, name, document) = ("rm_1", "Läden", "{\"name\":\"Läden\",\"panels\":[]}");
        let board = NewBoard { tenant: "t0", id: &id, now: 5, by, name, document };
        store.put_board(None, &board, 9, None).expect("a board");
        store.mark_suspect(shard, epoch, 6, 2).expect("marked");
        store.claim(shard, LOG, 2).expect("the mark becomes a suspect");
    }
}

fn kept(store: &dyn RollupStore) -> Vec<String> {
    let mut all = shown(store);
    for board in store.boards("t0", "", 9, None).expect("boards") {
        all.push(format!("{:?}", store.board("t0", &board.id, None).expect("a board")));
    }
    let mut snapshot = store.snapshot().expect("a snapshot");
    all.push(format!("{:?}", snapshot.manifest(None).expect("manifest")));
    all.push(format!("{:?}", snapshot.archive_floors().expect("floors")));
    all.push(format!("{:?}", snapshot.quarantine().expect("quarantine")));
    for shard in (0..3).map(ShardId) {
        let mut admissions = snapshot.admissions(shard).expect("admissions");
        admissions.sort();
        let waiting = OffsetRange { from: 5, to: 6 };
        let noted = snapshot.decisions(shard, waiting).expect("decisions").outcomes;
        all.push(format!("{:?}", noted.expect("it is noted").iter().collect::<Vec<_>>()));
        all.push(format!("{admissions:?} {:?}", store.recent_ids(shard, i64::MIN).expect("ids")));
    }
    drop(snapshot);
    let claims = (0..3).map(|shard| store.claim(ShardId(shard), LOG, 9).expect("a claim"));
    all.extend(claims.map(|claim| format!("{claim:?}")));
    all
}

#[test]
fn a_store_that_was_taken_over_holds_the_same_bytes() {
    for seed in 10..12 {
        let dir = tempfile::tempdir().expect("a directory");
        let from = SqliteStore::open(dir.path().join("store.sqlite")).expect("a store");
        fill(&from, &mut Rng(seed));
        let (to, url) = store();
        assert_eq!(to.contents(), Ok(StoreContents::Empty));
        let days = from.rollup_days().expect("days");
        // An import that fails halfway leaves nothing.
        let failed = to.import(LOG, &days, |take| {
            from.export(&mut |piece| match piece {
                TransferBatch::Shards(_) => Err(StoreError::Failed("cut".to_owned())),
                piece => take(piece),
            })
        });
        assert_eq!(
            (failed, to.contents()),
            (Err(StoreError::Failed("cut".to_owned())), Ok(StoreContents::Empty))
        );
        let mut rows = 0;
        to.import(LOG, &days, |take| {
            from.export(&mut |piece| {
                rows += piece.len() as u64;
                take(piece)
            })
        })
        .expect("taken over");
        assert_eq!(
            (from.counts().expect("extent").rows, to.contents()),
            (rows, Ok(StoreContents::Log(LOG)))
        );
        let again = to.import(LOG, &days, |take| from.export(take)).expect_err("it is full");
        assert!(again.to_string().contains("is not empty"), "{again}");
        // Read by a store with empty caches.
        let to = PostgresStore::open(&options(&url)).expect("a store");
        let (left, right) = (kept(&*from), kept(&*to));
        for (left, right) in left.iter().zip(&right) {
            assert_eq!(left, right, "seed {seed}");
        }
        assert_eq!(left.len(), right.len());
        let batch = batch(vec![delta("new", 5, 1)]);
        let epoch = to.claim(ShardId(0), LOG, 3).expect("a claim").checkpoint.epoch;
        to.flush(guard(0, 6, epoch), &batch, 0).expect("it goes on from the checkpoint");
    }
}

/// `nice cargo test --release --lib flush_rate -- --ignored --nocapture`: on a store of one week
/// and on one of 208, for each kind of store that is available.
#[test]
#[ignore = "prints figures"]
fn flush_rate() {
    for weeks in [1, 208] {
        for own in TestDatabase::on_each() {
            let store = PostgresStore::open(&options(&own.url)).expect("a store");
            println!("{weeks} weeks: {}", store.address());
            flush_rate_of(&store, weeks);
        }
    }
}

fn flush_rate_of(store: &PostgresStore, weeks: i32) {
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    let history = (1..weeks).map(|week| delta("page-0", -168 * week, 1)).collect();
    store.flush(guard(0, 0, epoch), &batch(history), 0).expect("a row in each week");
    let deltas = |hour: i32, sketches: bool| -> Vec<Delta> {
        let one = |n: i32| {
            let mut delta = delta(&format!("page-{n}"), hour, i128::from(n) * 10_000_000);
            (0..20).for_each(|more| {
                delta.rollup.add(
                    Some(Decimal::from_units(i128::from(n * more) * 10_000_000)),
                    Some((n * 31 + more) as u64),
                )
            });
            if !sketches {
                delta.rollup = Rollup { figures: delta.rollup.figures, ..Rollup::default() };
            }
            delta
        };
        (0..20_000).map(one).collect()
    };
    let rounds = [
        ("first flush: series, figures and sketches", 1, true),
        ("insert figures and sketches", 2, true),
        ("update figures and sketches", 2, true),
        ("update figures and sketches again", 2, true),
        ("insert figures", 3, false),
        ("update figures", 3, false),
    ];
    for (offset, (what, hour, sketches)) in (1..).zip(rounds) {
        let batch = batch(deltas(hour, sketches));
        let started = std::time::Instant::now();
        store.flush(guard(0, offset, epoch), &batch, 0).expect("a flush");
        println!("{what}: {:.0} rows/s", 20_000.0 / started.elapsed().as_secs_f64());
    }
}

#[test]
fn a_read_that_its_visitor_ends_leaves_the_snapshot_to_the_next() {
    let (store, _) = store();
    let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
    // More than are fetched at a time, of several hours.
    let rows = (0..6_000).map(|n| delta(&n.to_string(), n % 3, 1)).collect();
    store.flush(guard(0, 0, epoch), &batch(rows), 0).expect("a flush");
    let mut snapshot = store.snapshot().expect("a snapshot");
    let (ingest, of) = (GenerationId::INGEST, ("acme", "views"));
    let (hours, mut seen) = ((Hour(0), Hour(9)), 0);
    let ended = snapshot.generation_rows(ingest, of, hours, &mut |_, _, _, _, _| {
        seen += 1;
        if seen < 3 { Ok(()) } else { Err(StoreError::QueryEnded) }
    });
    assert_eq!((ended, seen), (Err(StoreError::QueryEnded), 3));
    let mut all = 0;
    let mut count = |_, _: &Arc<SeriesInfo>, _, _: Rollup, _: &[u8]| {
        all += 1;
        Ok(())
    };
    snapshot.generation_rows(ingest, of, hours, &mut count).expect("the same snapshot");
    assert_eq!(all, 6_000);
}
