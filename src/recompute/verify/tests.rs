//! Which objects a verification needs, and which windows it can verify.

use std::ops::Range;

use super::shard_fold::first_needed;
use super::store_view::first_verifiable;
use crate::model::manifest::{ArchiveFloor, ManifestRow};
use crate::model::offset::{Epoch, LogId, OffsetRange, ShardId};
use crate::model::window::Hour;

fn row(from: u64, to: u64, appended: (i64, i64), hour: i32) -> ManifestRow {
    ManifestRow {
        log: LogId([0; 16]),
        shard: ShardId(0),
        range: OffsetRange { from, to },
        epoch: Epoch { counter: 1, nonce: 1 },
        path: String::new(),
        appended,
        received: appended,
        windows: vec![(Hour(hour), 1)],
        rows: 1,
        raw_bytes: 1,
        bytes: 1,
        crc32c: 0,
        tier: crate::model::manifest::Tier::Hot,
    }
}

#[test]
fn windows_near_the_floor_are_not_verifiable() {
    let rows = [row(1, 2, (110, 120), 9), row(2, 3, (200, 230), 3), row(3, 4, (211, 300), 50)];
    let floor = ArchiveFloor { offset: 1, appended: 100, hour: Hour(5) };
    let first = |horizon| first_verifiable(&floor, rows.iter(), horizon);
    assert_eq!(first(9), Hour(5), "no id can repeat one that is gone");
    assert_eq!(first(10), Hour(10));
    assert_eq!(first(110), Hour(10), "window 3 lies below");
    assert_eq!(first(111), Hour(51));
}

#[test]
fn it_starts_behind_a_gap_longer_than_the_horizon() {
    let rows = [row(0, 1, (0, 10), 1), row(1, 2, (111, 120), 2), row(2, 3, (220, 230), 3)];
    let rows: Vec<&ManifestRow> = rows.iter().collect();
    let first = |hours: Range<i32>, log| {
        first_needed(&rows, &(Hour(hours.start)..Hour(hours.end)), log, 100)
    };
    assert_eq!(
        first(3..4, None),
        1,
        "one horizon before the third is the second, before that there is a gap"
    );
    assert_eq!(first(2..4, None), 1);
    assert_eq!(first(1..2, None), 0);
    assert_eq!(first(9..10, Some(330)), 1, "the log's own records may touch any window");
    assert_eq!(first(9..10, Some(331)), 3);
}
