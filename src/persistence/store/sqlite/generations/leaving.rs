//! Deletes days of a generation that no query reads any more, in bounded transactions.
//!
//! The rows go first, then what was noted of their days. Once no shard writes the metric in this
//! generation any more, its catalogue goes; and with its last metric what is left of the
//! generation. Every step is found by an index, so that rows that stay are not read.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use super::super::catalogue::SqliteSeriesCache;
use super::super::{StoreError, query_optional};
use crate::model::generation::MaintainedSet;
use crate::model::generation_book::LeavingRange;
use crate::model::series::Series;

/// Days that leave, and what shards go on writing of their generation.
pub(super) struct Leaving<'a> {
    of: &'a LeavingRange,
    /// Whether other days of the metric are written.
    writes_metric: bool,
    /// Whether anything of the generation is written.
    writes_generation: bool,
}

/// Deletes at most so many rows. Returns how many; fewer if none are left.
type Step<L> = fn(&L, &Connection, Option<i64>, i64) -> Result<usize, StoreError>;

impl<'a> Leaving<'a> {
    /// What leaves; `set` is the newest one.
    pub(super) fn new(of: &'a LeavingRange, set: &MaintainedSet) -> Self {
        let mut written = set.ranges.iter().filter(|range| range.generation == of.generation);
        let writes_generation = written.clone().next().is_some();
        let writes_metric =
            written.any(|range| (&range.tenant, &range.metric) == (&of.tenant, &of.metric));
        Self { of, writes_metric, writes_generation }
    }

    /// Forgets the cached numbers of series that may be deleted.
    pub(super) fn forget_numbers(&self, cache: &mut SqliteSeriesCache) {
        if !self.writes_metric {
            cache.forget(self.of.generation);
        }
    }

    /// Deletes at most `max` rows. Returns how many.
    pub(super) fn delete(&self, tx: &Connection, max: usize) -> Result<u64, StoreError> {
        if self.of.generation.is_ingest() {
            return Err(StoreError::Invalid("generation 0 never leaves".to_owned()));
        }
        let sql = "SELECT m.no FROM tenants t JOIN metrics m ON m.tenant_no = t.no WHERE t.name = \
                   ? AND m.name = ? AND m.generation = ?";
        let of = params![self.of.tenant, self.of.metric, self.of.generation.0 as i64];
        let metric_no = query_optional(tx, sql, of, |r| r.get(0))?;
        let steps: [Step<Self>; 6] = [
            Self::delete_rollups,
            Self::delete_revisions,
            Self::delete_counts,
            Self::delete_series,
            Self::delete_metric,
            Self::delete_generation,
        ];
        let mut deleted = 0;
        for step in steps {
            let left = i64::try_from(max - deleted).unwrap_or(i64::MAX);
            if left == 0 {
                break;
            }
            deleted += step(self, tx, metric_no, left)?;
        }
        Ok(deleted as u64)
    }

    fn delete_rollups(
        &self,
        tx: &Connection,
        metric_no: Option<i64>,
        max: i64,
    ) -> Result<usize, StoreError> {
        let Some(metric_no) = metric_no else { return Ok(0) };
        let (from, to) = self.of.days.hours();
        let sql = "SELECT hour, series_no FROM rollups WHERE metric_no = ? AND hour >= ? AND hour \
                   < ? ORDER BY metric_no, hour, series_no LIMIT 1 OFFSET ?";
        let range = params![metric_no, from.0, to.0, max - 1];
        let last = query_optional(tx, sql, range, |r| Ok((r.get::<_, i64>(0)?, r.get(1)?)))?;
        let last: (i64, i64) = last.unwrap_or((i64::from(to.0) - 1, i64::MAX));
        let range = params![metric_no, from.0, last.0, last.1];
        let deleted = tx
            .prepare_cached(
                "DELETE FROM rollups WHERE metric_no = ? AND hour >= ? AND (hour, series_no) <= \
                 (?, ?)",
            )?
            .execute(range)?;
        if deleted == 0 {
            return Ok(0);
        }
        tx.prepare_cached(
            "DELETE FROM sketches WHERE metric_no = ? AND hour >= ? AND (hour, series_no) <= (?, \
             ?)",
        )?
        .execute(range)?;
        tx.prepare_cached(
            "UPDATE metrics SET first_hour = (SELECT min(hour) FROM rollups WHERE metric_no = ?1),
             last_hour = (SELECT max(hour) FROM rollups WHERE metric_no = ?1) WHERE no = ?1",
        )?
        .execute([metric_no])?;
        Ok(deleted)
    }

    fn delete_revisions(
        &self,
        tx: &Connection,
        metric_no: Option<i64>,
        max: i64,
    ) -> Result<usize, StoreError> {
        let sql = "DELETE FROM revisions WHERE metric_no = ?1 AND day IN (SELECT day FROM \
                   revisions WHERE metric_no = ?1 AND day >= ?2 AND day < ?3 LIMIT ?4)";
        let (from, to) = self.days();
        Ok(tx.prepare_cached(sql)?.execute(params![metric_no, from, to, max])?)
    }

    fn delete_counts(
        &self,
        tx: &Connection,
        _: Option<i64>,
        max: i64,
    ) -> Result<usize, StoreError> {
        let sql =
            "DELETE FROM generation_dropped WHERE generation = ?1 AND tenant = ?2 AND metric \
                   = ?3 AND (day, shard, part) IN (SELECT day, shard, part FROM generation_dropped
            WHERE generation = ?1 AND tenant = ?2 AND metric = ?3 AND day >= ?4 AND day < ?5 LIMIT \
                   ?6)";
        let (from, to) = self.days();
        let LeavingRange { generation, tenant, metric, .. } = self.of;
        let counts = params![generation.0 as i64, tenant, metric, from, to, max];
        Ok(tx.prepare_cached(sql)?.execute(counts)?)
    }

    /// The catalogue says what a writer has admitted, so it stays as long as that goes on.
    fn delete_series(
        &self,
        tx: &Connection,
        metric_no: Option<i64>,
        max: i64,
    ) -> Result<usize, StoreError> {
        let Some(metric_no) = metric_no.filter(|_| !self.writes_metric) else { return Ok(0) };
        let sql = "SELECT 1 FROM rollups WHERE metric_no = ? LIMIT 1";
        if query_optional(tx, sql, [metric_no], |_| Ok(()))?.is_some() {
            return Ok(0);
        }
        let sql = "SELECT no, key FROM series WHERE metric_no = ? LIMIT ?";
        let series: Vec<(i64, Vec<u8>)> = tx
            .prepare_cached(sql)?
            .query_map([metric_no, max], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let mut pairs = BTreeSet::new();
        for (series_no, key) in &series {
            for (name, value) in Series::from_key(key)?.labels {
                let sql = "DELETE FROM series_labels WHERE pair_no = (SELECT no FROM label_pairs \
                           WHERE metric_no = ? AND name = ? AND value = ?) AND series_no = ? \
                           RETURNING pair_no";
                let label = params![metric_no, name, value, series_no];
                pairs.extend(query_optional(tx, sql, label, |r| r.get::<_, i64>(0))?);
            }
            tx.prepare_cached("DELETE FROM series WHERE no = ?")?.execute([series_no])?;
        }
        let mut delete_pair = tx.prepare_cached(
            "DELETE FROM label_pairs WHERE no = ?1 AND NOT EXISTS (SELECT 1 FROM series_labels \
             WHERE pair_no = ?1)",
        )?;
        for pair in pairs {
            delete_pair.execute([pair])?;
        }
        tx.prepare_cached("UPDATE metrics SET series_count = series_count - ? WHERE no = ?")?
            .execute([series.len() as i64, metric_no])?;
        Ok(series.len())
    }

    fn delete_metric(
        &self,
        tx: &Connection,
        metric_no: Option<i64>,
        _: i64,
    ) -> Result<usize, StoreError> {
        let Some(metric_no) = metric_no.filter(|_| !self.writes_metric) else { return Ok(0) };
        let sql = "DELETE FROM metrics WHERE no = ?1 AND NOT EXISTS (SELECT 1 FROM series WHERE \
                   metric_no = ?1) AND NOT EXISTS (SELECT 1 FROM revisions WHERE metric_no = ?1)";
        Ok(tx.prepare_cached(sql)?.execute([metric_no])?)
    }

    fn delete_generation(
        &self,
        tx: &Connection,
        _: Option<i64>,
        max: i64,
    ) -> Result<usize, StoreError> {
        let of = self.of.generation.0 as i64;
        let sql = "SELECT 1 FROM metrics WHERE generation = ? AND generation > 0 LIMIT 1";
        if self.writes_generation || query_optional(tx, sql, [of], |_| Ok(()))?.is_some() {
            return Ok(0);
        }
        let counts = "DELETE FROM generation_dropped WHERE generation = ?1 AND (tenant, metric, \
                      day, shard, part) IN (SELECT tenant, metric, day, shard, part FROM
            generation_dropped WHERE generation = ?1 LIMIT ?2)";
        let mut deleted = tx.prepare_cached(counts)?.execute([of, max])?;
        let rules = "DELETE FROM generation_rules WHERE generation = ?1 AND (shard, part, rule, \
                     outcome) IN (SELECT shard, part, rule, outcome FROM generation_rules WHERE \
                     generation = ?1 LIMIT ?2)";
        deleted += tx.prepare_cached(rules)?.execute([of, max - deleted as i64])?;
        let fills = "DELETE FROM generation_fills WHERE generation = ?1 AND shard IN (SELECT shard \
                     FROM generation_fills WHERE generation = ?1 LIMIT ?2)";
        Ok(deleted + tx.prepare_cached(fills)?.execute([of, max - deleted as i64])?)
    }

    /// The days as half-open numbers.
    fn days(&self) -> (i32, i32) {
        (self.of.days.from(), self.of.days.to().unwrap_or(i32::MAX))
    }
}
