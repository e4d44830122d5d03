//! Whether a shard can go on from its checkpoint, with what log and archive have.

use crate::actors::gap_reader::{GapError, plan_resume};
use crate::model::offset::{Checkpoint, LogDivergence, Offset, ShardId, check_continuity};
use crate::persistence::archive::Archive;

/// Whether the shard goes on from its checkpoint. A node without an archive has no shards: their
/// owners recover what is missing.
///
/// # Errors
/// What neither log nor archive has, or that the archive cannot be asked.
pub fn continues_from(
    archive: Option<&dyn Archive>,
    shard: ShardId,
    at: &Checkpoint,
    bounds: (Offset, Offset),
) -> Result<(), GapError> {
    match archive {
        Some(archive) => plan_resume(archive, shard, at, bounds).map(drop),
        None => match check_continuity(at.next, bounds.0, bounds.1) {
            Ok(()) | Err(LogDivergence::Gap { .. }) => Ok(()),
            Err(other) => Err(other.into()),
        },
    }
}
