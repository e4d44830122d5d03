//! What recomputation compares: all rollups as bytes, rules, admissions, ledger and quarantine.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::Row;

use super::super::codec::{UuidBytes, get};
use super::super::rollups::RollupScan;
use super::super::session::params;
use super::super::{StoreError, admin, catalogue, generations, released};
use super::{PostgresSnapshot, shard};
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

/// The writer under which rows of generation 0 are visited, whoever wrote them.
const INGEST_WRITER: Writer = Writer { shard: ShardId(0), part: WriterPart::Live };

/// The series of a metric by number, each with its writer.
type MetricSeries = HashMap<i64, (Arc<SeriesInfo>, Writer)>;

impl PostgresSnapshot<'_> {
    fn metric_series(&mut self, metric_no: i32) -> Result<MetricSeries, StoreError> {
        let (cache, mut series) = (self.cache, MetricSeries::new());
        let sql = "SELECT no, id, key, shard, part FROM series WHERE metric_no = $1";
        self.session()?.for_each_row(sql, params![metric_no], |row| {
            let info = cache.series(SeriesId(get::<UuidBytes>(row, 1)?.0), get(row, 2)?)?;
            let writer = match get(row, 4)? {
                0 => INGEST_WRITER,
                part => catalogue::writer(get(row, 3)?, part)?,
            };
            series.insert(get(row, 0)?, (info, writer));
            Ok(())
        })?;
        Ok(series)
    }

    /// Visits all rollups of a metric, ordered by hour, series id and writer; of the first hour
    /// only those after a series.
    pub(super) fn visit_metric_bytes(
        &mut self,
        metric_no: i32,
        (from, to): (Hour, Hour),
        after: Option<SeriesId>,
        visit: GenerationRowVisitor<'_>,
    ) -> Result<(), StoreError> {
        let series = self.metric_series(metric_no)?;
        // Numbers are not in the order of ids, so the rows of one hour at a time are sorted.
        let (mut sort, mut from) = (HourSort::after(after), from);
        loop {
            let (mut hour, mut again) = (from, false);
            let read =
                self.scan_metric(metric_no, (from, to), &series, &mut |next, writer, row| {
                    if next != hour {
                        again = sort.visit(hour, visit)?;
                        if again {
                            return Err(StoreError::QueryEnded);
                        }
                        hour = next;
                    }
                    sort.add(writer, row.0, row.1);
                    Ok(())
                });
            if !again {
                read?;
                again = sort.visit(hour, visit)?;
            }
            if !again {
                return Ok(());
            }
            // What was let go of this hour, before the scan goes on behind it.
            let behind = Hour(hour.0.saturating_add(1));
            while again {
                let of_hour = (hour, behind);
                self.scan_metric(metric_no, of_hour, &series, &mut |_, writer, row| {
                    sort.add(writer, row.0, row.1);
                    Ok(())
                })?;
                again = sort.visit(hour, visit)?;
            }
            from = behind;
        }
    }

    /// Visits the rollups of a metric by hour, in any order of series.
    fn scan_metric<'s>(
        &mut self,
        metric_no: i32,
        hours: (Hour, Hour),
        series: &'s MetricSeries,
        visit: &mut dyn FnMut(
            Hour,
            Writer,
            (&'s Arc<SeriesInfo>, Rollup),
        ) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let all = RollupScan {
            metric_no,
            hours,
            series: series.len() as u64,
            series_nos: None,
            distinct: true,
            quantiles: true,
            renews_time_limit: true,
        };
        let compressed = self.compressed_weeks;
        all.run(self.session()?, compressed, &mut |hour, no, rollup| {
            let (info, writer) = series.get(&no).ok_or_else(|| {
                StoreError::Invalid(format!(
                    "series number {no} has rollups but no catalogue row: rebuild the store"
                ))
            })?;
            visit(hour, *writer, (info, rollup))
        })
    }
}

impl AuditSnapshot for PostgresSnapshot<'_> {
    fn rollup_bytes(
        &mut self,
        from: Hour,
        to: Hour,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]),
    ) -> Result<(), StoreError> {
        let sql = "SELECT m.no FROM metrics m JOIN tenants t ON t.no = m.tenant_no WHERE m.generation \
                   = 0 ORDER BY t.name, m.name";
        for row in self.session()?.query(sql, params![])? {
            // The full time limit per metric: reading a whole store takes longer than a transaction
            // may.
            self.session()?.restart_time_limit();
            let mut visit = |_: Writer, info: &Arc<SeriesInfo>, hour, rollup, bytes: &[u8]| {
                visit(info, hour, rollup, bytes);
                Ok(())
            };
            self.visit_metric_bytes(get(&row, 0)?, (from, to), None, &mut visit)?;
        }
        Ok(())
    }

    fn dedup_rules(&mut self, shard: ShardId) -> Result<DedupRules, StoreError> {
        admin::dedup_rules(self.session()?, shard)
    }

    fn admissions(&mut self, shard: ShardId) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        let mut admissions = Vec::new();
        let sql = "SELECT id, admitted_offset FROM series WHERE shard = $1 AND part = 0";
        self.session()?.for_each_row(sql, params![shard.0.cast_signed()], |row| {
            admissions.push((SeriesId(get::<UuidBytes>(row, 0)?.0), get::<i64>(row, 1)? as Offset));
            Ok(())
        })?;
        Ok(admissions)
    }

    fn ledger(&mut self) -> Result<Vec<AccountingDelta>, StoreError> {
        let sql = "SELECT tenant, hour, aggregated, deduplicated, quarantined FROM accounting \
                   ORDER BY tenant, hour";
        let account = |row: &Row| {
            Ok(AccountingDelta {
                tenant: get(row, 0)?,
                hour: Hour(get(row, 1)?),
                aggregated: get::<i64>(row, 2)? as u64,
                deduplicated: get::<i64>(row, 3)? as u64,
                quarantined: get::<i64>(row, 4)? as u64,
            })
        };
        self.session()?.query(sql, params![])?.iter().map(account).collect()
    }

    fn quarantine(&mut self) -> Result<Vec<QuarantineRow>, StoreError> {
        let sql = "SELECT shard, \"offset\", idx, tenant, appended, reason, discarded, record \
                   FROM quarantine WHERE NOT released
            ORDER BY shard, \"offset\", idx";
        let mut quarantine = Vec::new();
        self.session()?.for_each_row(sql, params![], |row| {
            quarantine.push(QuarantineRow {
                shard: shard(row, 0)?,
                offset: get::<i64>(row, 1)? as Offset,
                index: get::<i64>(row, 2)? as u32,
                tenant: get(row, 3)?,
                received: get(row, 4)?,
                reason: get(row, 5)?,
                discarded: get(row, 6)?,
                record: get(row, 7)?,
            });
            Ok(())
        })?;
        Ok(quarantine)
    }

    fn quarantined_events(&mut self, shard: ShardId) -> Result<Vec<UncountedEvent>, StoreError> {
        let sql = "SELECT \"offset\", idx, tenant = '' FROM quarantine WHERE shard = $1 AND NOT \
                   released ORDER BY \"offset\", idx";
        let mut places = Vec::new();
        self.session()?.for_each_row(sql, params![shard.0.cast_signed()], |row| {
            let (offset, index) = (get::<i64>(row, 0)? as Offset, get::<i64>(row, 1)? as u32);
            places.push(UncountedEvent::set_aside((offset, index), get(row, 2)?));
            Ok(())
        })?;
        Ok(places)
    }

    fn retention_floor(&mut self) -> Result<Option<Hour>, StoreError> {
        let hour = generations::retention_floor(self.session()?)?;
        Ok((hour > i32::MIN).then_some(Hour(hour)))
    }

    fn settled_events(&mut self) -> Result<Vec<(ShardId, SettledEvent)>, StoreError> {
        released::settled_events(self.session()?)
    }

    fn released_events(&mut self, shard: ShardId) -> Result<Vec<(Offset, u32)>, StoreError> {
        let all = OffsetRange { from: 0, to: i64::MAX as Offset };
        released::released_events(self.session()?, shard, all)
    }
}
