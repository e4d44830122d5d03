//! What recomputation compares: all rollups as bytes, rules, admissions, ledger and quarantine.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rusqlite::params;

use super::super::{StoreError, admin, rows};
use super::{SqliteSnapshot, rollup, select};
use crate::model::flush::{AccountingDelta, DedupRules, QuarantineRow, SeriesInfo};
use crate::model::offset::{Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::store::AuditSnapshot;

impl AuditSnapshot for SqliteSnapshot<'_> {
    fn rollup_bytes(
        &mut self,
        from: Hour,
        to: Hour,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]),
    ) -> Result<(), StoreError> {
        let sql = "SELECT m.no FROM metrics m JOIN tenants t ON t.no = m.tenant_no ORDER BY \
                   t.name, m.name";
        let metrics: Vec<i64> = self
            .connection()?
            .prepare_cached(sql)?
            .query_map([], |r| r.get(0))?
            .collect::<Result<_, _>>()?;
        let mut bytes = Vec::new();
        for metric_no in metrics {
            let mut series: HashMap<i64, Arc<SeriesInfo>> = HashMap::new();
            self.each_series(
                "SELECT no, id, key FROM series WHERE metric_no = ?",
                [metric_no],
                &mut |no, id, key| {
                    series.insert(no, self.cache.series(id, key)?);
                    Ok(())
                },
            )?;
            let sql = format!(
                "{} WHERE r.metric_no = ? AND r.hour >= ? AND r.hour < ? ORDER BY r.metric_no, \
                 r.hour, r.series_no",
                select(true)
            );
            let mut statement = self.connection()?.prepare_cached(&sql)?;
            let mut rows = statement.query(params![metric_no, from.0, to.0])?;
            // Numbers are not in the order of ids, so the rows of one hour at a time are sorted.
            let mut hour: (Hour, BTreeMap<SeriesId, (&Arc<SeriesInfo>, Rollup)>) =
                (from, BTreeMap::new());
            loop {
                let row = rows.next()?;
                let next = row.map(|r| r.get(0).map(Hour)).transpose()?;
                if next != Some(hour.0) {
                    for (info, rollup) in std::mem::take(&mut hour.1).into_values() {
                        bytes.clear();
                        rollup.encode(&mut bytes);
                        visit(info, hour.0, rollup, &bytes);
                    }
                }
                let (Some(row), Some(next)) = (row, next) else { break };
                hour.0 = next;
                let no: i64 = row.get(1)?;
                let info = series.get(&no).ok_or_else(|| {
                    StoreError::Invalid(format!(
                        "series number {no} has rollups but no catalogue row: rebuild the store"
                    ))
                })?;
                hour.1.insert(info.id, (info, rollup(row, true, true)?));
            }
        }
        Ok(())
    }

    fn dedup_rules(&mut self, shard: ShardId) -> Result<DedupRules, StoreError> {
        admin::dedup_rules(self.connection()?, shard)
    }

    fn admissions(&mut self, shard: ShardId) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        let mut statement = self
            .connection()?
            .prepare_cached("SELECT id, admitted_offset FROM series WHERE shard = ?")?;
        let rows = statement
            .query_map([shard.0], |r| Ok((SeriesId(r.get(0)?), r.get::<_, i64>(1)? as Offset)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn ledger(&mut self) -> Result<Vec<AccountingDelta>, StoreError> {
        rows::accounting(self.connection()?)
    }

    fn quarantine(&mut self) -> Result<Vec<QuarantineRow>, StoreError> {
        Ok(rows::quarantine_rows(self.connection()?)?.into_iter().map(|(row, _)| row).collect())
    }
}
