//! Why a store cannot be rebuilt.

use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::persistence::archive::ArchiveError;
use crate::persistence::log::LogError;
use crate::persistence::store::StoreError;

/// Why a store cannot be rebuilt.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    #[error("{0}; what is rebuilt so far is kept: run the command again, and it goes on")]
    Store(#[from] StoreError),
    /// An object cannot be read; damaged or missing ones get a remedy.
    #[error("{0}{way_out}", way_out = remedy(.0))]
    Archive(#[from] ArchiveError),
    #[error("{0}")]
    Log(#[from] LogError),
    /// Records that neither the archive nor the log has.
    #[error(
        "shard {shard}: records {} to {} are neither in the archive nor in the log: bring back the \
         archive objects or the log segments that hold them; nothing was rebuilt past them",
        missing.from, missing.to
    )]
    Gap {
        shard: ShardId,
        /// The first range of missing records.
        missing: OffsetRange,
    },
    /// The first records of the shard are gone, and that was not allowed.
    #[error(
        "shard {shard} begins at record {start}: those before have expired (archive.keep), were \
         lost, or are archived under the id of a former log (--former-log); to rebuild without \
         them, add --allow-expired"
    )]
    StartsLate {
        shard: ShardId,
        /// The first record that still exists.
        start: Offset,
    },
    /// The log is older than the archive: it would assign offsets that are already archived.
    #[error(
        "shard {shard}: the log ends at record {end}, the archive at {archived}: a server would \
         take new records for those that are archived; bring back the log that belongs to the \
         archive"
    )]
    LogShort {
        shard: ShardId,
        /// The exclusive end of the archive.
        archived: Offset,
        /// The exclusive end of the log.
        end: Offset,
    },
    /// An event makes the fold panic.
    #[error(
        "shard {shard}: folding a record at or behind {next} panics: a build that can fold it is \
         needed; if the archive ends at or before it, add --archive-only: the server reads the \
         rest from the log, and sets such an event aside"
    )]
    Panicked {
        shard: ShardId,
        /// The first record that may contain the event.
        next: Offset,
    },
    /// What was served of replays cannot be brought back.
    #[error(
        "{why}; fix that and run the command again, or add --without-replays: generation 0, what \
         ingest made, is then served on their days"
    )]
    Replays { why: String },
}

fn remedy(error: &ArchiveError) -> &'static str {
    match error {
        ArchiveError::Corrupt { .. } | ArchiveError::Missing(_) => {
            ": bring the object back from a copy; neither the log nor another object has all of \
             its records"
        }
        _ => "",
    }
}
