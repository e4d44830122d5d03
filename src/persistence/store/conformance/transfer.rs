//! A store in SQLite that was carried into PostgreSQL shows what it showed, generations too, and
//! goes on from there.

use super::*;
use crate::model::flush::GenerationDeltas;
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::persistence::store::transfer::TransferBatch;

const WRITERS: [WriterPart; 2] = [WriterPart::Live, WriterPart::Fill];
const METRICS: [&str; 3] = ["views", "clicks", "other"];

/// Everything that the tenant of the cases has in one generation.
fn of_generation(snapshot: &mut dyn StoreSnapshot, id: GenerationId) -> Vec<String> {
    let mut all = Vec::new();
    for metric in METRICS {
        let hours = (Hour(i32::MIN), Hour(i32::MAX));
        let mut rows = |by: Writer, info: &Arc<SeriesInfo>, hour: Hour, _: Rollup, b: &[u8]| {
            all.push(format!("{id} {by} {:?} {hour:?} {b:02x?}", info.series));
            Ok(())
        };
        snapshot.generation_rows(id, ("acme", metric), hours, &mut rows).expect("rows");
        let revisions = snapshot.revisions("acme", metric, id, -60..60).expect("revisions");
        // Of generation 0, `metrics` says it.
        let info = (!id.is_ingest()).then(|| snapshot.generation_metric("acme", metric, id));
        let page = NameRange::ALL;
        let values = snapshot.label_values("acme", "page", Some(metric), &[(metric, id)], &page);
        all.push(format!("{id} {metric} {revisions:?} {info:?} {:?}", values.expect("values")));
    }
    for by in (0..8).map(ShardId).flat_map(|shard| WRITERS.map(|part| Writer { shard, part })) {
        let mut admitted = snapshot.generation_admissions(id, by).expect("admissions");
        admitted.sort();
        all.push(format!("{id} {by} {admitted:?}"));
    }
    let mut dropped = snapshot.dropped_events(id).expect("dropped");
    dropped.sort_by_key(|(by, of)| (*by, of.metric.clone(), of.day));
    all.push(format!("{id} {dropped:?} {:?}", snapshot.rule_counts(id).expect("counts")));
    all
}

fn shown(store: &dyn RollupStore) -> Vec<String> {
    let mut snapshot = store.snapshot().expect("a snapshot");
    let book = snapshot.generation_book().expect("a book");
    // Not the append time, which an import takes from the manifest if the checkpoint has none.
    let place = |(shard, at): (ShardId, Checkpoint)| (shard, at.next, at.archived, at.epoch);
    let checkpoints = snapshot.checkpoints().expect("checkpoints").into_iter().map(place);
    let mut all = vec![
        serde_json::to_string(&*book).expect("JSON"),
        format!("{:?}", snapshot.set_versions().expect("versions")),
        format!("{:?}", checkpoints.collect::<Vec<_>>()),
        format!("{:?}", snapshot.quarantine().expect("quarantine")),
        format!("{:?}", snapshot.settled_events().expect("settled")),
        format!("{:?}", snapshot.manifest(None).expect("manifest")),
        format!("{:?}", snapshot.audit_entries("acme", 99).expect("audit")),
        format!("{:?}", snapshot.metrics("acme", &NameRange::ALL).expect("metrics")),
    ];
    for shard in (0..8).map(ShardId) {
        let released = snapshot.released_events(shard).expect("released");
        all.push(format!("{released:?} {:?}", snapshot.shard_fills(shard).expect("fills")));
        let mut admitted = snapshot.admissions(shard).expect("admissions");
        admitted.sort();
        all.push(format!("{admitted:?}"));
    }
    let last = book.generations().keys().last().map_or(0, |id| id.0) + 2;
    all.extend((0..=last).flat_map(|id| of_generation(&mut *snapshot, GenerationId(id))));
    all
}

fn damages(store: &dyn RollupStore) -> usize {
    let mut damages = 0;
    store.check(&mut |_| damages += 1).expect("checked");
    damages
}

/// Carries a store as `rollmill migrate` does.
fn carried(from: &sqlite::SqliteStore) -> Arc<postgres::PostgresStore> {
    let (to, url) = postgres::tests::store();
    let (mut rows, days) = (0, from.rollup_days().expect("days"));
    to.import(LOG, &days, |take| {
        from.export(&mut |batch: TransferBatch| {
            rows += batch.len() as u64;
            take(batch)
        })
    })
    .expect("imported");
    assert_eq!(from.counts().expect("counts").rows, rows);
    // Read by a store with empty caches.
    postgres::PostgresStore::open(&postgres::tests::options(&url)).expect("a store")
}

#[test]
fn what_every_case_leaves_in_sqlite_is_carried_into_postgres() {
    for (n, case) in CASES.into_iter().enumerate() {
        let dir = tempfile::tempdir().expect("a directory");
        let from = sqlite::SqliteStore::open(dir.path().join("store.db")).expect("a store");
        case(&*from);
        let to = carried(&from);
        let (before, after) = (shown(&*from), shown(&*to));
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before, after, "case {n}");
        }
        assert_eq!(before.len(), after.len(), "case {n}");
        // Some cases leave what contradicts itself on purpose.
        assert!(damages(&*from) > 0 || damages(&*to) == 0, "case {n}");
    }
}

#[test]
fn a_fill_and_a_live_writer_go_on_where_they_were_before_the_transfer() {
    let dir = tempfile::tempdir().expect("a directory");
    let from = sqlite::SqliteStore::open(dir.path().join("store.db")).expect("a store");
    generations::rows::writers_of_a_generation_share_no_row(&*from);
    let counts = from.counts().expect("counts");
    assert_eq!((counts.series, counts.rollups, counts.replayed), (2, 2, 6));
    let stores: [&dyn RollupStore; 2] = [&*from, &*carried(&from)];
    let one = GenerationId(1);
    for store in stores {
        let claim = store.claim(SHARD, LOG, 5).expect("a claim");
        assert!(claim.set.has(one), "it goes on under its set");
        let of_one = |hour| GenerationDeltas {
            generation: one,
            deltas: vec![delta("a", hour, 7), delta("new", hour, 8)],
            ..GenerationDeltas::default()
        };
        let range = OffsetRange { from: 2, to: 4 };
        let guard = FillGuard { generation: one, shard: SHARD, log: LOG, range, nonce: 5 };
        store.fill(&guard, &of_one(40)).expect("filled");
        let (next, epoch) = (claim.checkpoint.next, claim.checkpoint.epoch);
        let range = OffsetRange { from: next, to: next + 1 };
        let flushed = FlushGuard { shard: SHARD, log: LOG, range, epoch };
        let generations = vec![of_one(60)];
        let batch = FlushBatch { set: claim.set.version, generations, ..FlushBatch::default() };
        store.flush(flushed, &batch, 0).expect("flushed");
    }
    // Numbers of series differ, epochs and revisions are drawn at random: rows are compared.
    let rows = stores.map(|store| {
        let mut snapshot = store.snapshot().expect("a snapshot");
        let mut all = of_generation(&mut *snapshot, one);
        all.retain(|line| !line.starts_with("1 views"));
        all
    });
    assert_eq!(rows[0], rows[1]);
    assert!(rows[0].iter().filter(|row| row.contains("Hour(40)")).count() == 2, "{rows:?}");
}
