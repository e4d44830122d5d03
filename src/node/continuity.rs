//! Whether the log that was opened continues the store.

use anyhow::Context;

use super::DataDir;
use crate::actors::gap_reader::GapError;
use crate::config::Config;
use crate::model::offset::LogDivergence;
use crate::persistence::archive::Archive;
use crate::persistence::log::LogReader;
use crate::persistence::store::RollupStore;
use crate::recompute::continuity::continues_from;

/// A log that does not continue where the store stands must not take a single write: it would grow
/// over what it lost, and its shards would take the new records for those that are already in the
/// store. Of shards that are not assigned to this node, it knows the log alone. What only the
/// beginning of the log lost, its shard heals from the archive; if it cannot, that shard stops, and
/// on a log that nodes share the others go on.
pub(crate) fn check_log(
    config: &Config,
    data: &DataDir,
    log: &dyn LogReader,
    store: &dyn RollupStore,
    archive: Option<&dyn Archive>,
) -> anyhow::Result<()> {
    for (shard, checkpoint) in store.snapshot()?.checkpoints()? {
        let (expected, found) = (checkpoint.log, log.id());
        let continued = match expected == found {
            // As they are now: the shard's owner, here or elsewhere, may have flushed since the log
            // was opened.
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
                return format!(
                    "shard {shard} cannot go on: docs/operations.md, \"The log lost records\""
                );
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
