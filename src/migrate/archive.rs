//! Copies the objects of the archive.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use anyhow::Context;

use super::{MigrationStep, ProgressFn};
use crate::model::manifest::{ManifestRow, Tier};
use crate::node::backends::ArchivePair;
use crate::persistence::archive::ArchiveError;

/// Concurrent copies of archive objects. Each object is in memory: at most `archive.max_bytes` raw,
/// usually a tenth of that.
const COPIES: usize = 8;

/// Copies the objects of the manifest; returns the tier of each object in the target.
pub(super) fn copy_archive(
    moving: &ArchivePair,
    rows: &[ManifestRow],
    progress: ProgressFn<'_>,
) -> anyhow::Result<HashMap<String, Tier>> {
    let all: u64 = rows.iter().map(|row| row.bytes).sum();
    progress(MigrationStep::Archive, 0, all);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = sync_channel::<(usize, Result<Tier, ArchiveError>)>(COPIES);
    let copy = |row: &ManifestRow| {
        moving
            .to
            .copy_from(row, &moving.from, |tier| moving.unchanged[usize::from(tier == Tier::Cold)])
    };
    std::thread::scope(|scope| {
        for _ in 0..COPIES.min(rows.len()) {
            let (sender, next, stop, copy) = (sender.clone(), &next, &stop, &copy);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(row) = rows.get(at) else { break };
                    if sender.send((at, copy(row))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let (mut tiers, mut done) = (HashMap::with_capacity(rows.len()), 0);
        // An error returns early, which drops the receiver and thereby ends the other copies.
        for (at, outcome) in receiver {
            let row = &rows[at];
            let tier = outcome.inspect_err(|_| stop.store(true, Ordering::Relaxed));
            tiers.insert(
                row.path.clone(),
                tier.with_context(|| format!("cannot copy the archive object {}", row.path))?,
            );
            done += row.bytes;
            progress(MigrationStep::Archive, done, all);
        }
        Ok(tiers)
    })
}
