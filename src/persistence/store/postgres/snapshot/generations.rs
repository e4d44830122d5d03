//! How far generations are, and what they hold.

use tokio_postgres::Row;

use super::super::codec::get;
use super::super::session::params;
use super::super::{StoreError, catalogue, generations};
use super::{PostgresSnapshot, shard};
use crate::model::flush::{DroppedEvents, FillProgress, RuleEvents};
use crate::model::generation::{GenerationId, Writer};
use crate::model::offset::{Offset, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::store::{AuditEntry, GenerationRowVisitor, GenerationSnapshot};

impl GenerationSnapshot for PostgresSnapshot<'_> {
    fn set_versions(&mut self) -> Result<Vec<(ShardId, u64)>, StoreError> {
        let sql = "SELECT shard, set_version FROM shards ORDER BY shard";
        let version = |row: &Row| Ok((shard(row, 0)?, get::<i64>(row, 1)? as u64));
        self.session()?.query(sql, params![])?.iter().map(version).collect()
    }

    fn fill_progress(
        &mut self,
        generation: GenerationId,
    ) -> Result<Vec<(ShardId, FillProgress)>, StoreError> {
        let sql = "SELECT log, cut, cursor, shard FROM generation_fills WHERE generation = $1 \
                   ORDER BY shard";
        let progress = |row: &Row| Ok((shard(row, 3)?, generations::progress(row)?));
        let rows = self.session()?.query(sql, params![generation.0 as i64])?;
        rows.iter().map(progress).collect()
    }

    fn shard_fills(
        &mut self,
        shard: ShardId,
    ) -> Result<Vec<(GenerationId, FillProgress)>, StoreError> {
        generations::shard_fills(self.session()?, shard)
    }

    fn generation_rows_after(
        &mut self,
        generation: GenerationId,
        (tenant, metric): (&str, &str),
        hours: (Hour, Hour),
        after: Option<SeriesId>,
        visit: GenerationRowVisitor<'_>,
    ) -> Result<(), StoreError> {
        let Some((metric_no, _)) = self.metric(tenant, metric, generation)? else {
            return Ok(());
        };
        self.visit_metric_bytes(metric_no, hours, after, visit)
    }

    fn generation_admissions(
        &mut self,
        generation: GenerationId,
        writer: Writer,
    ) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        generations::admissions(self.session()?, generation, writer)
    }

    fn dropped_events(
        &mut self,
        generation: GenerationId,
    ) -> Result<Vec<(Writer, DroppedEvents)>, StoreError> {
        let sql = "SELECT shard, part, tenant, metric, day, events FROM generation_dropped WHERE \
                   generation = $1 ORDER BY tenant, metric, day, shard, part";
        let mut dropped = Vec::new();
        self.session()?.for_each_row(sql, params![generation.0 as i64], |row| {
            let events = get::<i64>(row, 5)? as u64;
            let (tenant, metric, day) = (get(row, 2)?, get(row, 3)?, get(row, 4)?);
            let writer = catalogue::writer(get(row, 0)?, get(row, 1)?)?;
            dropped.push((writer, DroppedEvents { tenant, metric, day, events }));
            Ok(())
        })?;
        Ok(dropped)
    }

    fn rule_counts(&mut self, generation: GenerationId) -> Result<Vec<RuleEvents>, StoreError> {
        let sql = "SELECT rule, outcome, sum(events)::bigint FROM generation_rules WHERE \
                   generation = $1 GROUP BY rule, outcome ORDER BY rule, outcome";
        let row = |row: &Row| {
            let rule = get::<i32>(row, 0)?.cast_unsigned();
            let (outcome, events) = (get(row, 1)?, get::<i64>(row, 2)? as u64);
            Ok(RuleEvents { rule, outcome, events })
        };
        self.session()?.query(sql, params![generation.0 as i64])?.iter().map(row).collect()
    }

    fn audit_entries(&mut self, tenant: &str, limit: usize) -> Result<Vec<AuditEntry>, StoreError> {
        let sql = "SELECT generation, tenant, action, at, by, note FROM generation_audit WHERE \
                   tenant = $1 ORDER BY no DESC LIMIT $2";
        let entry = |row: &Row| {
            Ok(AuditEntry {
                generation: GenerationId(get::<i64>(row, 0)? as u64),
                tenant: get(row, 1)?,
                action: get(row, 2)?,
                at: get(row, 3)?,
                by: get(row, 4)?,
                note: get(row, 5)?,
            })
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.session()?.query(sql, params![tenant.to_owned(), limit])?.iter().map(entry).collect()
    }
}
