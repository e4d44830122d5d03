//! Checks that the log that was opened continues the store.

use anyhow::Context;

use super::DataDir;
use crate::actors::gap_reader::GapError;
use crate::config::Config;
use crate::model::offset::LogDivergence;
use crate::persistence::archive::Archive;
use crate::persistence::log::LogReader;
use crate::persistence::store::SnapshotSource;
use crate::recompute::continuity::continues_from;

/// Refuses a log that does not continue at the store's checkpoints. Such a log must not take a
/// single write: it would reassign lost offsets, and its shards would take new records for those
/// already in the store.
///
/// For shards that are not assigned to this node, only the log is checked. Records that the log has
/// lost at its beginning are recovered from the archive by their shard. If that is impossible the
/// shard stops; on a shared log the other shards continue.
pub(crate) fn check_log(
    config: &Config,
    data: &DataDir,
    log: &dyn LogReader,
    store: &dyn SnapshotSource,
    archive: Option<&dyn Archive>,
) -> anyhow::Result<()> {
    for (shard, checkpoint) in store.snapshot()?.checkpoints()? {
        let (expected, found) = (checkpoint.log, log.id());
        let continued = match expected == found {
            // The current bounds: the owner, here or elsewhere, may have flushed since the log was
            // opened.
            true => {
                let (start, end) = log
                    .bounds(shard)
                    .with_context(|| format!("cannot learn where shard {shard} ends"))?;
                continues_from(archive, shard, &checkpoint, (start, end))
            }
            false => Err(LogDivergence::OtherLog { expected, found }.into()),
        };
        let embedded = config.kafka.brokers.is_none();
        if let Err(
            lost @ (GapError::Diverged(LogDivergence::LostRecords { .. }) | GapError::Archive(_)),
        ) = &continued
            && !embedded
        {
            tracing::error!(shard = shard.0, "this shard cannot go on, wherever it is: {lost}");
            continue;
        }
        continued.with_context(|| {
            if !embedded {
                return format!("shard {shard} cannot go on: docs/how-to/lost-records.md");
            }
            format!(
                "shard {shard} cannot go on: {} and {} are not of the same moment; put back the \
                 log that belongs to the store, or the store that belongs to the log, or start \
                 with an empty data directory",
                data.log().display(),
                data.store().display()
            )
        })?;
    }
    Ok(())
}
