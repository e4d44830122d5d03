//! Whether a shard can go on from its checkpoint, with what log and archive have.

use crate::actors::heal::{Unhealed, resume};
use crate::model::offset::{Checkpoint, Diverged, Offset, ShardId, continues};
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
) -> Result<(), Unhealed> {
    match archive {
        Some(archive) => resume(archive, shard, at, bounds).map(drop),
        None => match continues(at.next, bounds.0, bounds.1) {
            Ok(()) | Err(Diverged::Gap { .. }) => Ok(()),
            Err(other) => Err(other.into()),
        },
    }
}
