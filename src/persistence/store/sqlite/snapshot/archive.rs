//! What is archived: the manifest, archive floors, expiry states, and decisions of a range.

use rusqlite::{Connection, params};

use super::super::rows::{manifest_columns, manifest_rows};
use super::super::{StoreError, codec, manifest, query_optional};
use super::SqliteSnapshot;
use crate::model::generation::GenerationId;
use crate::model::manifest::{ArchiveFloor, ManifestRow, RangeDecisions, Tier};
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::model::outcome::OutcomeNote;
use crate::model::series::SeriesId;
use crate::model::window::Millis;
use crate::persistence::store::{ArchiveSnapshot, ExpiryRow, ExpiryTarget};

impl ArchiveSnapshot for SqliteSnapshot<'_> {
    fn manifest(&mut self, shard: Option<ShardId>) -> Result<Vec<ManifestRow>, StoreError> {
        let sql = concat!(
            manifest_columns!(),
            " WHERE ?1 IS NULL OR shard = ?1 ORDER BY shard, from_offset"
        );
        let mut statement = self.connection()?.prepare_cached(sql)?;
        manifest_rows(statement.query([shard.map(|s| s.0)])?)
    }

    fn manifest_first(
        &mut self,
        shard: ShardId,
        tier: Option<Tier>,
        limit: usize,
    ) -> Result<Vec<ManifestRow>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let of_shard =
            concat!(manifest_columns!(), " WHERE shard = ? ORDER BY from_offset LIMIT ?");
        let of_tier = concat!(
            manifest_columns!(),
            " WHERE shard = ? AND tier = ? ORDER BY from_offset LIMIT ?"
        );
        let connection = self.connection()?;
        match tier {
            None => {
                manifest_rows(connection.prepare_cached(of_shard)?.query(params![shard.0, limit])?)
            }
            Some(tier) => manifest_rows(connection.prepare_cached(of_tier)?.query(params![
                shard.0,
                codec::tier_number(tier),
                limit
            ])?),
        }
    }

    fn last_archived(&mut self, shard: ShardId) -> Result<Option<Millis>, StoreError> {
        let sql = "SELECT max(at) FROM (SELECT last_appended AS at FROM (SELECT last_appended \
                   FROM manifest WHERE shard = ?1
            ORDER BY from_offset DESC LIMIT 1) AS newest UNION ALL SELECT appended FROM \
                   archive_floors WHERE shard = ?1) AS times";
        Ok(self.connection()?.prepare_cached(sql)?.query_row([shard.0], |r| r.get(0))?)
    }

    fn receipts(
        &mut self,
        shard: ShardId,
        from: Offset,
        limit: usize,
    ) -> Result<Vec<(Offset, Millis)>, StoreError> {
        let sql = "SELECT to_offset, last_received FROM manifest WHERE shard = ? AND from_offset \
                   >= ? ORDER BY from_offset LIMIT ?";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![shard.0, from as i64, limit], |r| {
            Ok((r.get::<_, i64>(0)? as Offset, r.get(1)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn archive_extent(&mut self, shard: ShardId) -> Result<(u64, Option<Offset>), StoreError> {
        let sql = "SELECT count(*), min(from_offset) FROM manifest WHERE shard = ?";
        let read = |r: &rusqlite::Row<'_>| {
            Ok((
                r.get::<_, i64>(0)?.unsigned_abs(),
                r.get::<_, Option<i64>>(1)?.map(|at| at as Offset),
            ))
        };
        Ok(self.connection()?.prepare_cached(sql)?.query_row([shard.0], read)?)
    }

    fn archive_floors(&mut self) -> Result<Vec<(ShardId, ArchiveFloor)>, StoreError> {
        let sql = "SELECT shard, offset, appended, hour FROM archive_floors ORDER BY shard";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let rows = statement.query_map([], |r| Ok((ShardId(r.get(0)?), manifest::floor(r, 1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn expiry(&mut self, of: ExpiryTarget) -> Result<Option<ExpiryRow>, StoreError> {
        let sql = "SELECT note, said FROM expiry WHERE shard = ?";
        query_optional(self.connection()?, sql, [of.code()], |r| {
            Ok(ExpiryRow { note: r.get(0)?, approvals: r.get(1)? })
        })
    }

    fn expiries(&mut self) -> Result<Vec<(ExpiryTarget, ExpiryRow)>, StoreError> {
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT shard, note, said FROM expiry ORDER BY shard")?;
        let rows = statement.query_map([], |r| {
            Ok((
                ExpiryTarget::from_code(r.get(0)?),
                ExpiryRow { note: r.get(1)?, approvals: r.get(2)? },
            ))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn decisions(
        &mut self,
        shard: ShardId,
        range: OffsetRange,
    ) -> Result<RangeDecisions, StoreError> {
        let of_range = params![shard.0, range.from as i64, range.to as i64];
        let sql = "SELECT id, admitted_offset FROM series WHERE shard = ? AND admitted_offset >= \
                   ? AND admitted_offset < ? AND part = 0
            ORDER BY admitted_offset, id";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let series = statement
            .query_map(of_range, |r| Ok((SeriesId(r.get(0)?), r.get::<_, i64>(1)? as Offset)))?;
        let admitted = series.collect::<Result<_, _>>()?;
        let sql =
            "SELECT m.generation, s.id, s.admitted_offset FROM metrics m CROSS JOIN series s ON \
                   s.metric_no = m.no
            WHERE m.generation > 0 AND s.shard = ? AND s.part = 1 AND s.admitted_offset >= ? AND \
                   s.admitted_offset < ?
            ORDER BY s.admitted_offset, m.generation, s.id";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let series = statement.query_map(of_range, |r| {
            let generation = GenerationId(r.get::<_, i64>(0)? as u64);
            Ok((generation, SeriesId(r.get(1)?), r.get::<_, i64>(2)? as Offset))
        })?;
        let generations = series.collect::<Result<_, _>>()?;
        let sql = "SELECT offset, idx, discarded FROM quarantine WHERE shard = ? AND offset >= ? \
                   AND offset < ? AND NOT released ORDER BY offset, idx";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let events = statement
            .query_map(of_range, |r| Ok((r.get::<_, i64>(0)? as Offset, r.get(1)?, r.get(2)?)))?;
        let quarantined = events.collect::<Result<_, _>>()?;
        let outcomes = outcomes(self.connection()?, shard, range)?;
        Ok(RangeDecisions { admitted, generations, quarantined, outcomes })
    }
}

/// What the flushes have noted about a range; `None` if they have not noted all of it, or if
/// its notes are deleted.
fn outcomes(
    connection: &Connection,
    shard: ShardId,
    range: OffsetRange,
) -> Result<Option<OutcomeNote>, StoreError> {
    let of_range = params![shard.0, range.from as i64, range.to as i64];
    let sql = "SELECT coalesce(noted_from <= ?2 AND archived <= ?2 AND noted_to >= ?3, false) \
               FROM shards WHERE shard = ?1";
    if query_optional(connection, sql, of_range, |r| r.get::<_, bool>(0))? != Some(true) {
        return Ok(None);
    }
    let sql = "SELECT events FROM outcome_notes WHERE shard = ?1 AND to_offset > ?2 AND \
               from_offset < ?3 ORDER BY from_offset";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(of_range)?;
    let mut noted = OutcomeNote::default();
    while let Some(row) = rows.next()? {
        noted.extend_within(&codec::decode_note(&row.get::<_, Vec<u8>>(0)?)?, range);
    }
    Ok(Some(noted))
}
