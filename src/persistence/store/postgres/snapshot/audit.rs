//! What recomputation compares: all rollups as bytes, rules, admissions, ledger and quarantine.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio_postgres::Row;

use super::super::codec::{UuidBytes, get};
use super::super::rollups::RollupScan;
use super::super::session::params;
use super::super::{StoreError, admin};
use super::{PostgresSnapshot, shard};
use crate::model::flush::{AccountingDelta, DedupRules, QuarantineRow, SeriesInfo};
use crate::model::offset::{Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::store::AuditSnapshot;

type BytesVisitor<'v> = dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]) + 'v;

impl PostgresSnapshot<'_> {
    /// Visits all rollups of a metric, ordered by hour and then by series id.
    fn visit_metric_bytes(
        &mut self,
        metric_no: i32,
        (from, to): (Hour, Hour),
        visit: &mut BytesVisitor<'_>,
    ) -> Result<(), StoreError> {
        let mut series: HashMap<i64, Arc<SeriesInfo>> = HashMap::new();
        self.each_series(
            "SELECT no, id, key FROM series WHERE metric_no = $1",
            params![metric_no],
            |no, info| {
                series.insert(no, info);
                Ok(())
            },
        )?;
        let count = series.len() as u64;
        let hours = (from, to);
        let all = RollupScan {
            metric_no,
            hours,
            series: count,
            series_nos: None,
            distinct: true,
            quantiles: true,
            renews_time_limit: true,
        };
        // Numbers are not in the order of ids, so the rows of one hour at a time are sorted.
        let mut hour: (Hour, BTreeMap<SeriesId, (&Arc<SeriesInfo>, Rollup)>) =
            (from, BTreeMap::new());
        let mut bytes = Vec::new();
        let mut finish = |hour: &mut (Hour, BTreeMap<SeriesId, (&Arc<SeriesInfo>, Rollup)>)| {
            for (info, rollup) in std::mem::take(&mut hour.1).into_values() {
                bytes.clear();
                rollup.encode(&mut bytes);
                visit(info, hour.0, rollup, &bytes);
            }
        };
        let compressed = self.compressed_weeks;
        all.run(self.session()?, compressed, &mut |next, no, rollup| {
            if next != hour.0 {
                finish(&mut hour);
                hour.0 = next;
            }
            let info = series.get(&no).ok_or_else(|| {
                StoreError::Invalid(format!(
                    "series number {no} has rollups but no catalogue row: rebuild the store"
                ))
            })?;
            hour.1.insert(info.id, (info, rollup));
            Ok(())
        })?;
        finish(&mut hour);
        Ok(())
    }
}

impl AuditSnapshot for PostgresSnapshot<'_> {
    fn rollup_bytes(
        &mut self,
        from: Hour,
        to: Hour,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]),
    ) -> Result<(), StoreError> {
        let sql = "SELECT m.no FROM metrics m JOIN tenants t ON t.no = m.tenant_no ORDER BY \
                   t.name, m.name";
        for row in self.session()?.query(sql, params![])? {
            // The full time limit per metric: reading a whole store takes longer than a transaction
            // may.
            self.session()?.restart_time_limit();
            self.visit_metric_bytes(get(&row, 0)?, (from, to), visit)?;
        }
        Ok(())
    }

    fn dedup_rules(&mut self, shard: ShardId) -> Result<DedupRules, StoreError> {
        admin::dedup_rules(self.session()?, shard)
    }

    fn admissions(&mut self, shard: ShardId) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        let mut admissions = Vec::new();
        let sql = "SELECT id, admitted_offset FROM series WHERE shard = $1";
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
                   FROM quarantine
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
}
