//! Quarantined events: released, discarded, and forgotten with their records.

use rusqlite::{Connection, params};

use super::catalogue::SeriesCatalogue;
use super::merge::merge;
use super::{StoreError, flush, generations, query_optional};
use crate::model::flush::revision_after_release;
use crate::model::generation::Writer;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::release::{ReleaseBasis, ReleasedEvent};
use crate::model::window::{Hour, Millis};
use crate::persistence::store::SeriesScope;

/// Releases (`Some`) or discards (`None`) a quarantined event.
pub(super) fn settle(
    tx: &Connection,
    catalogue: &mut SeriesCatalogue<'_>,
    (shard, offset, index): (ShardId, Offset, u32),
    release: Option<&ReleasedEvent>,
) -> Result<bool, StoreError> {
    // What was released counts as discarded for whoever does not know better.
    let sql = "UPDATE quarantine SET discarded = 1, released = ?4 WHERE shard = ?1 AND offset = ?2 \
               AND idx = ?3 AND NOT discarded RETURNING tenant, appended";
    let key = params![shard.0, offset as i64, index, release.is_some()];
    let waiting =
        query_optional(tx, sql, key, |r| Ok((r.get::<_, String>(0)?, r.get::<_, Millis>(1)?)))?;
    let Some((tenant, received)) = waiting else { return Ok(false) };
    if let Some(release) = release {
        merge_released(tx, catalogue, (shard, offset, index), release)?;
        flush::account(tx, &tenant, Hour::of(received), [1, 0, -1])?;
    }
    Ok(true)
}

fn merge_released(
    tx: &Connection,
    catalogue: &mut SeriesCatalogue<'_>,
    (shard, offset, index): (ShardId, Offset, u32),
    release: &ReleasedEvent,
) -> Result<(), StoreError> {
    let sql = "SELECT log, set_version FROM shards WHERE shard = ?";
    let owned =
        query_optional(tx, sql, [shard.0], |r| Ok((r.get(0)?, r.get::<_, i64>(1)? as u64)))?;
    let (log, set) = owned.unwrap_or(([0; 16], 0));
    let fills = generations::shard_fills(tx, shard)?;
    if ReleaseBasis::new(set, &fills, offset) != release.basis {
        return Err(StoreError::Refused { shard });
    }
    let mut lists = vec![(SeriesScope::Ingest, &*release.deltas)];
    for (part, of) in &release.generations {
        let writer = Writer { shard, part: *part };
        lists.push((SeriesScope::Writer(of.generation, writer), &*of.deltas));
        generations::add_counts(tx, writer, of)?;
    }
    let revise = |before| revision_after_release(before, LogId(log), shard, offset, index);
    merge(tx, catalogue, &lists, (shard, offset), &revise)
}

/// Forgets what was decided about events whose records have expired.
pub(super) fn forget_settled(
    tx: &Connection,
    shard: ShardId,
    below: Offset,
) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM quarantine WHERE shard = ? AND offset < ? AND discarded")?
        .execute(params![shard.0, below as i64])?;
    Ok(())
}
