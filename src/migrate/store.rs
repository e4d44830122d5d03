//! Copies the store, and compares the copy with the original.

use std::collections::HashMap;

use anyhow::{Context, ensure};

use super::{MigrationSource, MigrationStep, ProgressFn};
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
    let all = from.counts()?.rollups;
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

/// Number and hash of all rollups (series, window and bytes) in order.
fn digest(
    store: &dyn SnapshotSource,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<(u64, blake3::Hash)> {
    let (mut rows, mut hasher) = (0_u64, blake3::Hasher::new());
    store.snapshot()?.rollup_bytes(
        Hour(i32::MIN),
        Hour(i32::MAX),
        &mut |info, hour, _, bytes| {
            rows += 1;
            let key = info.series.key();
            hasher.update(&(key.len() as u64).to_be_bytes()).update(&key).update(&info.id.0);
            hasher
                .update(&hour.0.to_be_bytes())
                .update(&(bytes.len() as u64).to_be_bytes())
                .update(bytes);
            if rows.is_multiple_of(1024) {
                progress(1024);
            }
        },
    )?;
    progress(rows % 1024);
    Ok((rows, hasher.finalize()))
}
