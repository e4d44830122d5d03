//! Events that were set aside and released, which fills and recomputation count.

use tokio_postgres::Row;

use super::StoreError;
use super::codec::get;
use super::session::{PostgresSession, params};
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::model::settled_document::{SettledEvent, Settlement};

/// The released events of a range of a shard.
pub(super) fn released_events(
    session: &mut PostgresSession,
    shard: ShardId,
    range: OffsetRange,
) -> Result<Vec<(Offset, u32)>, StoreError> {
    let sql = "SELECT \"offset\", idx FROM quarantine WHERE shard = $1 AND \"offset\" >= $2 AND \
               \"offset\" < $3 AND released ORDER BY \"offset\", idx";
    let of_range = params![shard.0.cast_signed(), range.from as i64, range.to as i64];
    let event = |row: &Row| Ok((get::<i64>(row, 0)? as Offset, get::<i64>(row, 1)? as u32));
    session.query(sql, of_range)?.iter().map(event).collect()
}

/// What was decided about events of all shards, by place.
pub(super) fn settled_events(
    session: &mut PostgresSession,
) -> Result<Vec<(ShardId, SettledEvent)>, StoreError> {
    // Of the index alone. What was released stands in `discarded` as well.
    let sql = "SELECT shard, \"offset\", idx, released FROM quarantine WHERE discarded ORDER BY \
               shard, \"offset\", idx";
    let event = |row: &Row| {
        let (offset, index) = (get::<i64>(row, 1)? as Offset, get::<i64>(row, 2)? as u32);
        let settlement = if get(row, 3)? { Settlement::Released } else { Settlement::Discarded };
        let shard = ShardId(get::<i32>(row, 0)?.cast_unsigned());
        Ok((shard, SettledEvent { offset, index, settlement }))
    };
    session.query(sql, params![])?.iter().map(event).collect()
}
