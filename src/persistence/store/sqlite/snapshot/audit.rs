//! What recomputation compares: all rollups as bytes, rules, admissions, ledger and quarantine.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Row, params};

use super::super::{StoreError, admin, catalogue, released, rows};
use super::{SqliteSnapshot, rollup, select};
use crate::model::flush::{AccountingDelta, DedupRules, QuarantineRow, SeriesInfo};
use crate::model::generation::{Writer, WriterPart};
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::model::outcome::UncountedEvent;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::settled_document::SettledEvent;
use crate::model::window::Hour;
use crate::persistence::store::hour_sort::HourSort;
use crate::persistence::store::{AuditSnapshot, GenerationRowVisitor};

/// Series of a metric by number, each with its writer.
type MetricSeries = HashMap<i64, (Arc<SeriesInfo>, Writer)>;

impl SqliteSnapshot<'_> {
    fn writers_of_series(&self, metric_no: i64) -> Result<MetricSeries, StoreError> {
        let mut series = MetricSeries::new();
        let sql = "SELECT no, id, key, shard, part FROM series WHERE metric_no = ?";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let mut rows = statement.query([metric_no])?;
        while let Some(row) = rows.next()? {
            let key = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
            let info = self.cache.series(SeriesId(row.get(1)?), key)?;
            let writer = match row.get(4)? {
                0 => Writer { shard: ShardId(0), part: WriterPart::Live },
                part => catalogue::writer(row.get(3)?, part)?,
            };
            series.insert(row.get(0)?, (info, writer));
        }
        Ok(series)
    }

    /// Visits the rows of a metric number, ascending by hour, series id and writer; of the first
    /// hour only those after a series.
    pub(super) fn visit_metric(
        &self,
        metric_no: i64,
        (from, to): (Hour, Hour),
        after: Option<SeriesId>,
        visit: GenerationRowVisitor<'_>,
    ) -> Result<(), StoreError> {
        let series = self.writers_of_series(metric_no)?;
        let sql = format!(
            "{} WHERE r.metric_no = ? AND r.hour >= ? AND r.hour < ? ORDER BY r.metric_no, \
             r.hour, r.series_no",
            select(true)
        );
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        let mut rows = statement.query(params![metric_no, from.0, to.0])?;
        // Numbers are not in the order of ids, so the rows of one hour at a time are sorted.
        let (mut hour, mut sort) = (from, HourSort::after(after));
        loop {
            let row = rows.next()?;
            let next = row.map(|r| r.get(0).map(Hour)).transpose()?;
            if next != Some(hour) {
                while sort.visit(hour, visit)? {
                    self.read_hour((metric_no, hour), &series, &mut sort)?;
                }
            }
            let (Some(row), Some(next)) = (row, next) else { return Ok(()) };
            hour = next;
            add_row(row, &series, &mut sort)?;
        }
    }

    /// Reads an hour again, for rows that were let go.
    fn read_hour<'s>(
        &self,
        (metric_no, hour): (i64, Hour),
        series: &'s MetricSeries,
        sort: &mut HourSort<'s>,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "{} WHERE r.metric_no = ? AND r.hour = ? ORDER BY r.metric_no, r.hour, r.series_no",
            select(true)
        );
        let mut statement = self.connection()?.prepare_cached(&sql)?;
        let mut rows = statement.query(params![metric_no, hour.0])?;
        while let Some(row) = rows.next()? {
            add_row(row, series, sort)?;
        }
        Ok(())
    }
}

fn add_row<'s>(
    row: &Row<'_>,
    series: &'s MetricSeries,
    sort: &mut HourSort<'s>,
) -> Result<(), StoreError> {
    let no: i64 = row.get(1)?;
    let (info, writer) = series.get(&no).ok_or_else(|| {
        StoreError::Invalid(format!(
            "series number {no} has rollups but no catalogue row: rebuild the store"
        ))
    })?;
    // An hour of more rows than fit is read several times, and what is not wanted is not decoded.
    if sort.wants((info.id, *writer)) {
        sort.add(*writer, info, rollup(row, true, true)?);
    }
    Ok(())
}

impl AuditSnapshot for SqliteSnapshot<'_> {
    fn rollup_bytes(
        &mut self,
        from: Hour,
        to: Hour,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]),
    ) -> Result<(), StoreError> {
        let sql = "SELECT m.no FROM metrics m JOIN tenants t ON t.no = m.tenant_no WHERE \
                   m.generation = 0 ORDER BY t.name, m.name";
        let metrics: Vec<i64> = self
            .connection()?
            .prepare_cached(sql)?
            .query_map([], |r| r.get(0))?
            .collect::<Result<_, _>>()?;
        let mut visit = |_: Writer, info: &Arc<SeriesInfo>, hour, rollup, bytes: &[u8]| {
            visit(info, hour, rollup, bytes);
            Ok(())
        };
        metrics
            .into_iter()
            .try_for_each(|metric_no| self.visit_metric(metric_no, (from, to), None, &mut visit))
    }

    fn dedup_rules(&mut self, shard: ShardId) -> Result<DedupRules, StoreError> {
        admin::dedup_rules(self.connection()?, shard)
    }

    fn admissions(&mut self, shard: ShardId) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        let mut statement = self.connection()?.prepare_cached(
            "SELECT id, admitted_offset FROM series WHERE shard = ? AND part = 0",
        )?;
        let rows = statement
            .query_map([shard.0], |r| Ok((SeriesId(r.get(0)?), r.get::<_, i64>(1)? as Offset)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn ledger(&mut self) -> Result<Vec<AccountingDelta>, StoreError> {
        rows::accounting(self.connection()?)
    }

    fn quarantine(&mut self) -> Result<Vec<QuarantineRow>, StoreError> {
        let rows = rows::quarantine_rows(self.connection()?)?.into_iter();
        Ok(rows.filter(|kept| !kept.released).map(|kept| kept.row).collect())
    }

    fn quarantined_events(&mut self, shard: ShardId) -> Result<Vec<UncountedEvent>, StoreError> {
        let sql = "SELECT offset, idx, tenant = '' FROM quarantine WHERE shard = ? AND NOT \
                   released ORDER BY offset, idx";
        let mut statement = self.connection()?.prepare_cached(sql)?;
        let rows = statement.query_map([shard.0], |r| {
            let place = (r.get::<_, i64>(0)? as Offset, r.get(1)?);
            Ok(UncountedEvent::set_aside(place, r.get(2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// It keeps all rollups.
    fn retention_floor(&mut self) -> Result<Option<Hour>, StoreError> {
        Ok(None)
    }

    fn settled_events(&mut self) -> Result<Vec<(ShardId, SettledEvent)>, StoreError> {
        released::settled_events(self.connection()?)
    }

    fn released_events(&mut self, shard: ShardId) -> Result<Vec<(Offset, u32)>, StoreError> {
        let all = OffsetRange { from: 0, to: i64::MAX as Offset };
        released::released_events(self.connection()?, shard, all)
    }
}
