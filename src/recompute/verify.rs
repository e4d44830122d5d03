//! Recomputes rollups from the archive and the log with the shards' own code, and compares them
//! with the store byte by byte.
//!
//! It is the oracle of promise 6 and of the tests. One snapshot of the store fixes the offsets up
//! to which records are folded, which series were admitted where, and which events were
//! quarantined. Later writes do not matter, so it may run against a serving node.
//!
//! Every fold starts where no earlier event id can matter: at offset 0, or after a gap in the
//! append times that is longer than the de-duplication horizon. One horizon is not enough, because
//! a chain of repeated ids reaches further back than that. A shard that cannot be read is reported,
//! and the others are verified.
//!
//! The rest is checked too: the accounting against the counts of the fold ([`ledger`]), the outcomes
//! in the archive against those of the fold ([`outcomes`]), the catalogue, counts and checksums by [`StoreInspection::check`].
//!
//! Generations besides generation 0 are recomputed under their rules, writer by writer, from the
//! events that the fold counts ([`generations`]).
//!
//! Records below the archive floor have expired. The windows that they touched are reported as
//! unverifiable, and so are those touched within one horizon after them, where an event may repeat
//! the id of an expired one. Windows below the retention floor of the store, whose rollups it has
//! dropped by age, are reported too and not compared, though their records may still be there.
//!
//! [`StoreInspection::check`]: crate::persistence::store::StoreInspection::check

mod comparison;
mod generations;
mod ledger;
mod outcomes;
mod report;
mod shard_fold;
mod sources;
mod store_view;
mod stored_row;

#[cfg(test)]
mod generation_tests;
#[cfg(test)]
mod tests;

use std::ops::Range;

use self::comparison::Comparison;
use self::generations::GenerationComparison;
pub use self::report::{
    DroppedWindows, GenerationCheck, RowDifference, UnfilledShard, UnverifiableWindows,
    VerifyReport,
};
use self::shard_fold::fold_shard;
pub use self::sources::{VerifyError, VerifySources};
use self::store_view::StoreView;
use crate::model::window::Hour;
use crate::persistence::store::{StoreDamage, StoreError};

/// Verifies the windows of the range. `progress(done, total)` counts shards.
///
/// # Errors
/// If the store, the log or the archive cannot be read. After [`VerifyError::Released`]
/// a retry is worthwhile.
pub fn verify(
    sources: &VerifySources<'_>,
    hours: Range<Hour>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, VerifyError> {
    let mut damages = Vec::new();
    sources.store.check(&mut |damage| damages.push(damage))?;
    let mut view = match StoreView::read(sources.store, &hours) {
        // Nothing can be compared, but the damage found so far is worth reporting.
        Err(why @ (StoreError::Failed(_) | StoreError::Invalid(_))) => {
            damages.push(StoreDamage { location: "the store".to_owned(), reason: why.to_string() });
            return Ok(VerifyReport { damages, ..VerifyReport::default() });
        }
        view => view?,
    };
    // Only after the snapshot: the log then holds everything between its archived offsets and its
    // checkpoints.
    let log = (sources.open_log)().map_err(VerifyError::Log)?;
    // A duplicate may have been decided under any rule that was ever in force.
    let horizon_ms = view.longest_horizon_ms(sources.dedup_horizon_ms);
    let (hours, unverifiable) = view.above_floors(hours, log.as_ref(), horizon_ms)?;
    damages.append(&mut view.damages);
    let rows = std::mem::take(&mut view.rows);
    let stored = std::mem::take(&mut view.generations);
    let others = GenerationComparison::new(stored, hours.clone(), view.kept_from);
    let histories = view.histories(sources.only);
    let shards = histories.len() as u64;
    let report = VerifyReport {
        shards,
        unverifiable,
        quarantined: view.quarantined(sources.only),
        damages,
        ..VerifyReport::default()
    };
    let of = (log.shard_count(), sources.only.is_none());
    let mut comparison = Comparison::new(report, (rows, view.kept_from), others, of);
    for (done, history) in (1..).zip(&histories) {
        let folded = fold_shard(sources, log.as_ref(), history, &hours, comparison.generations());
        match folded {
            Ok(fold) => comparison.add_shard(history.shard, fold),
            Err(why) if why.is_shard_error() => {
                comparison.add_unverified(history.shard, why.to_string());
            }
            Err(why) => return Err(why),
        }
        progress(done, shards);
    }
    Ok(comparison.finish(&view))
}
