//! Whether a shard can resume from its checkpoint with what log and archive hold.

use crate::actors::gap_reader::{GapError, plan_resume};
use crate::model::offset::{Checkpoint, LogDivergence, Offset, ShardId, check_continuity};
use crate::persistence::archive::Archive;

/// Checks that the shard can resume from its checkpoint. Without an archive a gap is accepted: such
/// a node owns no shards, and the owner recovers the missing records.
///
/// # Errors
/// If records are in neither log nor archive, or the archive cannot be read.
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
