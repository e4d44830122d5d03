//! Events that were set aside and released, which fills and recomputation count.

use rusqlite::{Connection, params};

use super::StoreError;
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::model::settled_document::{SettledEvent, Settlement};

/// Reads the index alone: the records before the columns in question may be large. What was
/// released stands in `discarded` as well.
const SETTLED_EVENTS: &str = "SELECT shard, offset, idx, released FROM quarantine INDEXED BY \
                              quarantine_settled WHERE discarded ORDER BY shard, offset, idx";

/// The released events of a range of a shard.
pub(super) fn released_events(
    connection: &Connection,
    shard: ShardId,
    range: OffsetRange,
) -> Result<Vec<(Offset, u32)>, StoreError> {
    let sql = "SELECT offset, idx FROM quarantine WHERE shard = ? AND offset >= ? AND offset < ? \
               AND released ORDER BY offset, idx";
    let mut statement = connection.prepare_cached(sql)?;
    let of_range = params![shard.0, range.from as i64, range.to as i64];
    let rows = statement.query_map(of_range, |r| Ok((r.get::<_, i64>(0)? as Offset, r.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What was decided about events of all shards, by place.
pub(super) fn settled_events(
    connection: &Connection,
) -> Result<Vec<(ShardId, SettledEvent)>, StoreError> {
    let mut statement = connection.prepare_cached(SETTLED_EVENTS)?;
    let rows = statement.query_map([], |r| {
        let (offset, index) = (r.get::<_, i64>(1)? as Offset, r.get(2)?);
        let settlement = if r.get(3)? { Settlement::Released } else { Settlement::Discarded };
        Ok((ShardId(r.get(0)?), SettledEvent { offset, index, settlement }))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_events_are_read_of_the_index_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.db");
        let _store = super::super::SqliteStore::open(&path).expect("a store");
        let raw = Connection::open(&path).expect("opens");
        let plan: String = raw
            .query_row(&format!("EXPLAIN QUERY PLAN {SETTLED_EVENTS}"), [], |row| row.get(3))
            .expect("a plan");
        assert!(plan.contains("USING COVERING INDEX quarantine_settled"), "{plan}");
    }
}
