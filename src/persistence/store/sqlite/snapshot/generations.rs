//! How far generations are, and what they hold.

use rusqlite::{Row, params};

use super::super::{StoreError, catalogue, generations};
use super::SqliteSnapshot;
use crate::model::flush::{DroppedEvents, FillProgress, RuleEvents};
use crate::model::generation::{GenerationId, Writer};
use crate::model::offset::{Offset, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::store::{AuditEntry, GenerationRowVisitor, GenerationSnapshot};

impl GenerationSnapshot for SqliteSnapshot<'_> {
    fn set_versions(&mut self) -> Result<Vec<(ShardId, u64)>, StoreError> {
        let sql = "SELECT shard, set_version FROM shards ORDER BY shard";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let version = |r: &Row<'_>| Ok((ShardId(r.get(0)?), r.get::<_, i64>(1)? as u64));
        Ok(statement.query_map([], version)?.collect::<Result<_, _>>()?)
    }

    fn fill_progress(
        &mut self,
        generation: GenerationId,
    ) -> Result<Vec<(ShardId, FillProgress)>, StoreError> {
        let sql = "SELECT log, cut, cursor, shard FROM generation_fills WHERE generation = ? ORDER \
                   BY shard";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let progress = |r: &Row<'_>| Ok((ShardId(r.get(3)?), generations::progress(r)?));
        let rows = statement.query_map([generation.0 as i64], progress)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn shard_fills(
        &mut self,
        shard: ShardId,
    ) -> Result<Vec<(GenerationId, FillProgress)>, StoreError> {
        generations::shard_fills(self.connection()?, shard)
    }

    fn generation_rows_after(
        &mut self,
        generation: GenerationId,
        (tenant, metric): (&str, &str),
        hours: (Hour, Hour),
        after: Option<SeriesId>,
        visit: GenerationRowVisitor<'_>,
    ) -> Result<(), StoreError> {
        match self.metric(tenant, metric, generation)? {
            Some((metric_no, _)) => self.visit_metric(metric_no, hours, after, visit),
            None => Ok(()),
        }
    }

    fn generation_admissions(
        &mut self,
        generation: GenerationId,
        writer: Writer,
    ) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        generations::admissions(self.connection()?, generation, writer)
    }

    fn dropped_events(
        &mut self,
        generation: GenerationId,
    ) -> Result<Vec<(Writer, DroppedEvents)>, StoreError> {
        let sql = "SELECT shard, part, tenant, metric, day, events FROM generation_dropped WHERE \
                   generation = ? ORDER BY tenant, metric, day, shard, part";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut rows = statement.query([generation.0 as i64])?;
        let mut dropped = Vec::new();
        while let Some(row) = rows.next()? {
            let (tenant, metric, day) = (row.get(2)?, row.get(3)?, row.get(4)?);
            let events = row.get::<_, i64>(5)? as u64;
            let writer = catalogue::writer(row.get(0)?, row.get(1)?)?;
            dropped.push((writer, DroppedEvents { tenant, metric, day, events }));
        }
        Ok(dropped)
    }

    fn rule_counts(&mut self, generation: GenerationId) -> Result<Vec<RuleEvents>, StoreError> {
        let sql = "SELECT rule, outcome, sum(events) FROM generation_rules WHERE generation = ? \
                   GROUP BY rule, outcome ORDER BY rule, outcome";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let row = |r: &Row<'_>| {
            let events = r.get::<_, i64>(2)? as u64;
            Ok(RuleEvents { rule: r.get(0)?, outcome: r.get(1)?, events })
        };
        Ok(statement.query_map([generation.0 as i64], row)?.collect::<Result<_, _>>()?)
    }

    fn audit_entries(&mut self, tenant: &str, limit: usize) -> Result<Vec<AuditEntry>, StoreError> {
        let sql = "SELECT generation, tenant, action, at, by, note FROM generation_audit WHERE \
                   tenant = ? ORDER BY no DESC LIMIT ?";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![tenant, limit], generations::audit_entry)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
