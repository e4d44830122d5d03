//! What every store must do. The double, SQLite, PostgreSQL and, if one is configured, TimescaleDB
//! run the same suite.

mod archive;
mod boards;
mod generations;
mod outcomes;
mod quarantine;
mod rollups;
mod shards;
mod sqlite_files;
mod transfer;

use std::sync::Arc;

use super::*;
use crate::model::decimal::Decimal;
use crate::model::flush::{AccountingDelta, Delta};
use crate::model::generation::GenerationId;
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, OffsetRange};
use crate::model::rollup::Rollup;
use crate::model::series::{Series, SeriesId};

const LOG: LogId = LogId([7; 16]);
const SHARD: ShardId = ShardId(3);

fn info(page: &str) -> Arc<SeriesInfo> {
    let labels = [("page".to_owned(), page.to_owned())];
    let series = Series::new("acme", "views", labels);
    Arc::new(SeriesInfo { id: SeriesId::of_key(&series.key()), series })
}

fn delta(page: &str, hour: i32, units: i128) -> Delta {
    let mut rollup = Rollup::default();
    rollup.add(Some(Decimal::from_units(units)), Some(units as u64));
    Delta { series: info(page), hour: Hour(hour), rollup }
}

fn batch(deltas: Vec<Delta>) -> FlushBatch {
    let accounting = AccountingDelta {
        tenant: "acme".into(),
        hour: Hour(5),
        aggregated: 2,
        deduplicated: 1,
        quarantined: 1,
    };
    FlushBatch { deltas, accounting: vec![accounting], ..FlushBatch::default() }
}

fn guard(from: u64, to: u64, epoch: Epoch) -> FlushGuard {
    FlushGuard { shard: SHARD, log: LOG, range: OffsetRange { from, to }, epoch }
}

fn query<'a>(matchers: &'a [Matcher]) -> RollupQuery<'a> {
    let (from, to) = (Hour(0), Hour(100));
    RollupQuery {
        tenant: "acme",
        metric: "views",
        matchers,
        from,
        to,
        distinct: true,
        quantiles: true,
        max_series: 10,
        budget: None,
        generation: GenerationId::INGEST,
    }
}

fn read(snapshot: &mut dyn QuerySnapshot, matchers: &[Matcher]) -> Vec<(String, i32, Rollup)> {
    let mut rows = Vec::new();
    snapshot
        .rollups(&query(matchers), &mut |s, h, r| {
            rows.push((s.series.label("page").to_owned(), h.0, r))
        })
        .expect("rollups");
    rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    rows
}

fn manifest_row(from: u64, to: u64, epoch: Epoch) -> ManifestRow {
    ManifestRow {
        log: LOG,
        shard: SHARD,
        range: OffsetRange { from, to },
        epoch,
        path: ManifestRow::object_path(LOG, SHARD, OffsetRange { from, to }, epoch),
        appended: (from as i64, to as i64),
        received: (from as i64 - 7, to as i64 + 1),
        windows: vec![(Hour(-1), 5), (Hour(10 - from as i32), 1)],
        rows: 6,
        raw_bytes: 50,
        bytes: 40,
        crc32c: u32::MAX,
        tier: Tier::Hot,
    }
}

type Case = fn(&dyn RollupStore);
const CASES: [Case; 22] = [
    rollups::rollups_and_guards,
    rollups::overflow_series_do_not_count_against_the_limit,
    shards::claims_ids_and_archive,
    archive::two_times_and_what_is_noted_of_expiry,
    archive::tiers_and_floors,
    outcomes::notes_stay_until_they_are_archived,
    quarantine::quarantine,
    generations::the_book_is_swapped_by_its_version_and_audited,
    generations::shards_adopt_a_set_in_a_flush,
    generations::rows::writers_of_a_generation_share_no_row,
    generations::rows::an_hour_of_many_rows_comes_in_order,
    generations::a_fill_owns_its_cursor,
    generations::released::a_release_and_a_fill_count_an_event_once,
    generations::abandoned::what_a_flush_abandons_is_given_up_with_it,
    generations::abandoned::a_flush_abandons_for_each_event_and_nothing_of_other_tenants,
    generations::ids_that_collide_are_refused,
    generations::leaving::what_leaves_is_deleted_and_nothing_else,
    generations::leaving::each_call_deletes_no_more_than_it_may,
    generations::leaving::two_nodes_delete_the_same_without_an_error,
    generations::a_snapshot_shows_pointer_and_rows_of_one_moment,
    boards::boards_change_by_their_version,
    boards::one_of_many_changes_wins,
];

#[test]
fn the_double_conforms() {
    CASES.iter().for_each(|case| case(&*memory::MemoryStore::new()));
}

#[test]
fn sqlite_conforms() {
    for case in CASES {
        let dir = tempfile::tempdir().expect("a directory");
        case(&*sqlite::SqliteStore::open(dir.path().join("store.db")).expect("a store"));
    }
}

#[test]
fn postgres_conforms() {
    for case in CASES {
        case(&*postgres::tests::store().0);
    }
}

/// Runs only if `ROLLMILL_TEST_TIMESCALE_URL` names a TimescaleDB, with a role that may create
/// databases.
#[test]
fn timescale_conforms() {
    let Ok(url) = std::env::var("ROLLMILL_TEST_TIMESCALE_URL") else { return };
    for case in CASES {
        case(&*postgres::tests::timescale::store(&url).0);
    }
}

#[test]
fn faults_do_what_they_say() {
    use memory::{MemoryStore, StoreFault, StoreWrite};
    for (fault, unknown, applied) in [
        (StoreFault::Before, false, false),
        (StoreFault::AppliedReplyLost, true, true),
        (StoreFault::NotAppliedReplyLost, true, false),
    ] {
        let store = MemoryStore::new();
        let epoch = store.claim(SHARD, LOG, 1).expect("claim").checkpoint.epoch;
        store.fail_next(StoreWrite::Flush, fault);
        let error = store.flush(guard(0, 1, epoch), &batch(vec![]), 0).expect_err("a fault");
        assert_eq!(error.outcome_unknown(), unknown);
        let next =
            store.snapshot().expect("snapshot").checkpoints().expect("checkpoints")[0].1.next;
        assert_eq!(next == 1, applied);
    }
}
