//! What is archived: the manifest, archive floors, expiry states, and decisions of a range.

use tokio_postgres::Row;

use super::super::codec::{UuidBytes, get};
use super::super::session::{Param, PostgresSession, params};
use super::super::{StoreError, admin};
use super::{PostgresSnapshot, epoch, shard};
use crate::model::generation::GenerationId;
use crate::model::manifest::{ArchiveFloor, ManifestRow, RangeDecisions, Tier};
use crate::model::offset::{LogId, Offset, OffsetRange, ShardId};
use crate::model::outcome::OutcomeNote;
use crate::model::series::SeriesId;
use crate::model::window::Millis;
use crate::persistence::store::{ArchiveSnapshot, ExpiryRow, ExpiryTarget, byte_columns};

/// Selects the columns of a manifest row, in the order in which [`manifest_rows`] reads them.
macro_rules! manifest_columns {
    () => {
        "SELECT shard, from_offset, to_offset, log, epoch, nonce, path, first_appended, \
         last_appended, windows, rows, raw_bytes, bytes, crc32c, tier, coalesce(first_received, \
         first_appended), coalesce(last_received, last_appended) FROM manifest"
    };
}

impl ArchiveSnapshot for PostgresSnapshot<'_> {
    fn manifest(&mut self, wanted: Option<ShardId>) -> Result<Vec<ManifestRow>, StoreError> {
        let sql = concat!(
            manifest_columns!(),
            " WHERE $1::integer IS NULL OR shard = $1 ORDER BY shard, from_offset"
        );
        manifest_rows(self.session()?, sql, params![wanted.map(|s| s.0.cast_signed())])
    }

    fn manifest_first(
        &mut self,
        shard: ShardId,
        tier: Option<Tier>,
        limit: usize,
    ) -> Result<Vec<ManifestRow>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = concat!(
            manifest_columns!(),
            " WHERE shard = $1 AND ($2::smallint IS NULL OR tier = $2) ORDER BY from_offset LIMIT \
             $3"
        );
        manifest_rows(
            self.session()?,
            sql,
            params![shard.0.cast_signed(), tier.map(byte_columns::tier_number), limit],
        )
    }

    fn last_archived(&mut self, shard: ShardId) -> Result<Option<Millis>, StoreError> {
        let sql = "SELECT max(at) FROM (SELECT last_appended AS at FROM (SELECT last_appended \
                   FROM manifest WHERE shard = $1
            ORDER BY from_offset DESC LIMIT 1) AS newest UNION ALL SELECT appended FROM \
                   archive_floors WHERE shard = $1) AS times";
        let rows = self.session()?.query(sql, params![shard.0.cast_signed()])?;
        rows.first().map_or(Ok(None), |row| get(row, 0))
    }

    fn receipts(
        &mut self,
        shard: ShardId,
        from: Offset,
        limit: usize,
    ) -> Result<Vec<(Offset, Millis)>, StoreError> {
        let sql = "SELECT to_offset, coalesce(last_received, last_appended) FROM manifest WHERE \
                   shard = $1 AND from_offset >= $2
            ORDER BY from_offset LIMIT $3";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows =
            self.session()?.query(sql, params![shard.0.cast_signed(), from as i64, limit])?;
        rows.iter().map(|row| Ok((get::<i64>(row, 0)? as Offset, get(row, 1)?))).collect()
    }

    fn archive_extent(&mut self, shard: ShardId) -> Result<(u64, Option<Offset>), StoreError> {
        let sql = "SELECT count(*), min(from_offset) FROM manifest WHERE shard = $1";
        let rows = self.session()?.query(sql, params![shard.0.cast_signed()])?;
        let extent = |row: &Row| {
            Ok((
                get::<i64>(row, 0)?.unsigned_abs(),
                get::<Option<i64>>(row, 1)?.map(|at| at as Offset),
            ))
        };
        rows.first().map_or(Ok((0, None)), extent)
    }

    fn archive_floors(&mut self) -> Result<Vec<(ShardId, ArchiveFloor)>, StoreError> {
        let sql = "SELECT shard, \"offset\", appended, hour FROM archive_floors ORDER BY shard";
        let rows = self.session()?.query(sql, params![])?;
        rows.iter().map(|row| Ok((shard(row, 0)?, admin::floor(row, 1)?))).collect()
    }

    fn expiry(&mut self, of: ExpiryTarget) -> Result<Option<ExpiryRow>, StoreError> {
        let rows = self
            .session()?
            .query("SELECT note, said FROM expiry WHERE shard = $1", params![of.code()])?;
        rows.first()
            .map(|row| Ok(ExpiryRow { note: get(row, 0)?, approvals: get(row, 1)? }))
            .transpose()
    }

    fn expiries(&mut self) -> Result<Vec<(ExpiryTarget, ExpiryRow)>, StoreError> {
        let rows = self
            .session()?
            .query("SELECT shard, note, said FROM expiry ORDER BY shard", params![])?;
        let read = |row: &Row| {
            Ok((
                ExpiryTarget::from_code(get(row, 0)?),
                ExpiryRow { note: get(row, 1)?, approvals: get(row, 2)? },
            ))
        };
        rows.iter().map(read).collect()
    }

    fn decisions(
        &mut self,
        wanted: ShardId,
        range: OffsetRange,
    ) -> Result<RangeDecisions, StoreError> {
        let of_range = || params![wanted.0.cast_signed(), range.from as i64, range.to as i64];
        let mut decisions = RangeDecisions::default();
        let sql = "SELECT id, admitted_offset FROM series WHERE shard = $1 AND part = 0 AND \
                   admitted_offset >= $2 AND admitted_offset < $3
            ORDER BY admitted_offset, id";
        self.session()?.for_each_row(sql, of_range(), |row| {
            decisions
                .admitted
                .push((SeriesId(get::<UuidBytes>(row, 0)?.0), get::<i64>(row, 1)? as Offset));
            Ok(())
        })?;
        let sql = "SELECT m.generation, s.id, s.admitted_offset FROM metrics m JOIN series s ON \
                   s.metric_no = m.no
            WHERE m.generation > 0 AND s.shard = $1 AND s.part = 1 AND s.admitted_offset >= $2 AND \
                   s.admitted_offset < $3
            ORDER BY s.admitted_offset, m.generation, s.id";
        self.session()?.for_each_row(sql, of_range(), |row| {
            decisions.generations.push((
                GenerationId(get::<i64>(row, 0)? as u64),
                SeriesId(get::<UuidBytes>(row, 1)?.0),
                get::<i64>(row, 2)? as Offset,
            ));
            Ok(())
        })?;
        let sql = "SELECT \"offset\", idx, discarded FROM quarantine WHERE shard = $1 AND \
                   \"offset\" >= $2 AND \"offset\" < $3 AND NOT released
            ORDER BY \"offset\", idx";
        self.session()?.for_each_row(sql, of_range(), |row| {
            decisions.quarantined.push((
                get::<i64>(row, 0)? as Offset,
                get::<i64>(row, 1)? as u32,
                get(row, 2)?,
            ));
            Ok(())
        })?;
        decisions.outcomes = self.outcomes(wanted, range)?;
        Ok(decisions)
    }
}

impl PostgresSnapshot<'_> {
    /// What the flushes have noted about a range; `None` if they have not noted all of it, or if
    /// its notes are deleted.
    fn outcomes(
        &mut self,
        wanted: ShardId,
        range: OffsetRange,
    ) -> Result<Option<OutcomeNote>, StoreError> {
        let of_range = || params![wanted.0.cast_signed(), range.from as i64, range.to as i64];
        let sql = "SELECT coalesce(noted_from <= $2 AND archived <= $2 AND noted_to >= $3, false) \
                   FROM shards WHERE shard = $1";
        let known = self.session()?.query(sql, of_range())?;
        if !known.first().map_or(Ok(false), |row| get::<bool>(row, 0))? {
            return Ok(None);
        }
        let sql = "SELECT events FROM outcome_notes WHERE shard = $1 AND to_offset > $2 AND \
                   from_offset < $3 ORDER BY from_offset";
        let mut noted = OutcomeNote::default();
        self.session()?.for_each_row(sql, of_range(), |row| {
            noted.extend_within(&byte_columns::decode_note(get(row, 0)?)?, range);
            Ok(())
        })?;
        Ok(Some(noted))
    }
}

fn manifest_rows(
    session: &mut PostgresSession,
    sql: &'static str,
    params: Vec<Param>,
) -> Result<Vec<ManifestRow>, StoreError> {
    let mut manifest = Vec::new();
    session.for_each_row(sql, params, |row| {
        manifest.push(ManifestRow {
            log: LogId(get::<UuidBytes>(row, 3)?.0),
            shard: shard(row, 0)?,
            range: range(row, 1)?,
            epoch: epoch(row, 4)?,
            path: get(row, 6)?,
            appended: (get(row, 7)?, get(row, 8)?),
            windows: byte_columns::decode_windows(get(row, 9)?)?,
            rows: get::<i64>(row, 10)? as u64,
            raw_bytes: get::<i64>(row, 11)? as u64,
            bytes: get::<i64>(row, 12)? as u64,
            crc32c: get::<i64>(row, 13)? as u32,
            tier: byte_columns::tier(get::<i16>(row, 14)?)?,
            received: (get(row, 15)?, get(row, 16)?),
        });
        Ok(())
    })?;
    Ok(manifest)
}

fn range(row: &Row, first: usize) -> Result<OffsetRange, StoreError> {
    Ok(OffsetRange {
        from: get::<i64>(row, first)? as Offset,
        to: get::<i64>(row, first + 1)? as Offset,
    })
}
