//! What a quarantined event adds if it is released, as a snapshot of the store has it.

use crate::model::flush::QuarantineRow;
use crate::model::generation::Writer;
use crate::model::release::{ReleaseBasis, ReleasedEvent};
use crate::persistence::store::{StoreError, StoreSnapshot, unknown_set};
use crate::shards::release::{self, ReleaseError, ReleaseGenerations};
use crate::shards::state::ShardLimits;

/// Why an event is not released.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ReleaseFoldError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Event(#[from] ReleaseError),
}

/// What the event adds to generation 0, and to each generation whose writer has passed it.
///
/// # Errors
/// If the store cannot be read, or the event cannot be folded.
pub fn fold_release(
    snapshot: &mut dyn StoreSnapshot,
    limits: &ShardLimits,
    row: &QuarantineRow,
) -> Result<ReleasedEvent, ReleaseFoldError> {
    let shard = row.shard;
    // The snapshot is complete for this event: everything admitted at or below its offset was
    // committed before its own row, or with it.
    let admissions = snapshot.admissions(shard)?;
    let versions = snapshot.set_versions()?;
    let version = versions.iter().find(|(of, _)| *of == shard).map_or(0, |(_, set)| *set);
    let set = snapshot.generation_book()?.set(version);
    let set = set.ok_or_else(|| unknown_set(shard, version))?;
    let basis = ReleaseBasis::new(version, &snapshot.shard_fills(shard)?, row.offset);
    let mut generations = ReleaseGenerations { set, basis, ..ReleaseGenerations::default() };
    for range in &generations.set.ranges {
        let id = range.generation;
        let is_new = !generations.admissions.contains_key(&id);
        let part = generations.basis.writer(id).filter(|_| is_new);
        if let Some(part) = part {
            let admitted = snapshot.generation_admissions(id, Writer { shard, part })?;
            generations.admissions.insert(id, admitted);
        }
    }
    Ok(release::fold(limits, row, admissions, generations)?)
}
