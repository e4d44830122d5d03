//! Copies the store, and compares the copy with the original.

use std::collections::HashMap;

use anyhow::{Context, ensure};

use super::{MigrationSource, MigrationStep, ProgressFn};
use crate::model::flush::SeriesInfo;
use crate::model::manifest::Tier;
use crate::model::offset::LogId;
use crate::model::window::Hour;
use crate::persistence::store::SnapshotSource;
use crate::persistence::store::postgres::PostgresStore;
use crate::persistence::store::sqlite::SqliteStore;
use crate::persistence::store::transfer::TransferBatch;

pub(super) fn copy_store(
    source: &MigrationSource,
    target: &PostgresStore,
    log: LogId,
    tiers: &HashMap<String, Tier>,
    progress: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let all = from.counts()?.rows;
    let mut done = 0;
    progress(MigrationStep::Store, done, all);
    let days = from.rollup_days()?;
    let copied = target.import(log, &days, |take| {
        from.export(&mut |mut piece| {
            // The target archive may hold an object in another tier than the source.
            if let TransferBatch::Manifest(rows) = &mut piece {
                rows.iter_mut()
                    .for_each(|row| row.tier = tiers.get(&row.path).copied().unwrap_or(row.tier));
            }
            let rows = piece.len() as u64;
            take(piece)?;
            done += rows;
            progress(MigrationStep::Store, done, all);
            Ok(())
        })
    });
    copied.context("the store was not copied; run migrate again")
}

/// Checks that both stores hold the same bytes.
pub(super) fn compare(
    source: &MigrationSource,
    target: &PostgresStore,
    progress: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let counts = from.counts()?;
    let all = counts.rollups + counts.replayed;
    // Twice, because both stores are read.
    progress(MigrationStep::Compare, 0, 2 * all);
    let mut done = 0;
    let mut progress = |rows: u64| {
        done += rows;
        progress(MigrationStep::Compare, done, 2 * all);
    };
    let (here, there) = (digest(from.as_ref(), &mut progress)?, digest(target, &mut progress)?);
    ensure!(
        here == there,
        "{} holds {} rollups that differ from the {} of {}: somebody else writes there; empty the \
         database and run migrate again",
        target.address(),
        there.0,
        here.0,
        source.data.store().display()
    );
    Ok(())
}

/// Rows in order, counted and hashed.
struct RowDigest<'a> {
    rows: u64,
    hasher: blake3::Hasher,
    progress: &'a mut dyn FnMut(u64),
}

impl RowDigest<'_> {
    fn part(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_be_bytes()).update(bytes);
    }

    fn row(&mut self, info: &SeriesInfo, hour: Hour, bytes: &[u8]) {
        self.rows += 1;
        self.part(&info.series.key());
        self.hasher.update(&info.id.0).update(&hour.0.to_be_bytes());
        self.part(bytes);
        if self.rows.is_multiple_of(1024) {
            (self.progress)(1024);
        }
    }
}

/// Number and hash of all rollups (series, window and bytes) in order, and of what is decided about
/// generations.
fn digest(
    store: &dyn SnapshotSource,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<(u64, blake3::Hash)> {
    let mut digest = RowDigest { rows: 0, hasher: blake3::Hasher::new(), progress };
    let mut snapshot = store.snapshot()?;
    snapshot.rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut |info, hour, _, bytes| {
        digest.row(info, hour, bytes);
    })?;
    let book = snapshot.generation_book()?;
    digest.part(&serde_json::to_vec(&*book)?);
    for (id, generation) in book.generations() {
        for metric in &generation.metrics {
            let of = (&*generation.tenant, &**metric);
            let hours = (Hour(i32::MIN), Hour(i32::MAX));
            snapshot.generation_rows(*id, of, hours, &mut |writer, info, hour, _, bytes| {
                digest.part(writer.to_string().as_bytes());
                digest.row(info, hour, bytes);
                Ok(())
            })?;
        }
        for (shard, at) in snapshot.fill_progress(*id)? {
            digest.part(format!("{shard} {} {}", at.cut, at.cursor).as_bytes());
        }
    }
    for (shard, version) in snapshot.set_versions()? {
        digest.part(format!("{shard} {version}").as_bytes());
    }
    (digest.progress)(digest.rows % 1024);
    Ok((digest.rows, digest.hasher.finalize()))
}
