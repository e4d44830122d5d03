//! Deletes days of generations that no query reads any more, in bounded transactions.
//!
//! The rows go first. Once there are none, what was counted of these days goes; once no shard
//! writes the metric in this generation any more, its catalogue; and with its last metric what is
//! left of the generation. All of it counts towards the limit of a call, whichever table it is of,
//! so that no keeper's turn is longer than another. The statements that delete rows and catalogue
//! are functions of the owner (`functions.sql`), which refuse generation 0: no node may delete its
//! rows. Keepers of several nodes do the same at once; what another one has deleted is no error.

use std::sync::Arc;

use super::super::codec::get;
use super::super::session::{PostgresSession, params};
use super::super::{PostgresStore, StoreError};
use crate::model::generation_book::{GenerationBook, LeavingRange};
use crate::model::series::Series;

/// What is left to do once the rows of a range are deleted.
enum Leftover {
    /// Other days are written or still have rows.
    Nothing,
    /// The catalogue of the metric with this number.
    Catalogue(i32),
    /// What was noted of the generation, if this was its last metric.
    Generation,
}

/// How many rows of whatever table a call may still delete.
struct DeletionLimit {
    most: i32,
    left: i32,
}

impl DeletionLimit {
    fn new(max: usize) -> Self {
        let most = i32::try_from(max).unwrap_or(i32::MAX);
        Self { most, left: most }
    }

    fn add(&mut self, deleted: u64) {
        self.left = self.left.saturating_sub(i32::try_from(deleted).unwrap_or(i32::MAX)).max(0);
    }

    fn deleted(&self) -> u64 {
        u64::from((self.most - self.left).unsigned_abs())
    }
}

impl PostgresStore {
    pub(super) fn delete_leaving(&self, of: &LeavingRange, max: usize) -> Result<u64, StoreError> {
        let mut limit = DeletionLimit::new(max);
        let mut leftover = self.delete_days(of, &mut limit)?;
        if let Leftover::Catalogue(metric_no) = leftover {
            self.delete_series(metric_no, &mut limit)?;
            leftover = Leftover::Generation;
        }
        if matches!(leftover, Leftover::Generation) && limit.left > 0 {
            self.forget_generation(of, &mut limit)?;
        }
        Ok(limit.deleted())
    }

    /// Deletes rows, revisions and counts of the days. Says what is to be done next, if the limit
    /// is not reached.
    fn delete_days(
        &self,
        of: &LeavingRange,
        limit: &mut DeletionLimit,
    ) -> Result<Leftover, StoreError> {
        let mut lease = self.writers.begin("BEGIN")?;
        let session = lease.session()?;
        // First, as a fill does it: who had rows or revisions before and then waits for a cursor
        // would wait for a fill that waits for those. Fills that began under an older book have
        // ended then, and those behind this are refused.
        lock_fills(session, of)?;
        let metric_no = find_metric(session, of)?;
        let mut leftover = Leftover::Nothing;
        limit.add(delete_rows(session, metric_no, of, limit.left)?);
        if limit.left > 0 {
            limit.add(delete_counts(session, of, limit.left)?);
        }
        if limit.left > 0 {
            let book = self.books.current(session)?;
            leftover = leftover_of(session, &book, metric_no, of)?;
        }
        session.commit()?;
        Ok(leftover)
    }

    /// Deletes series of a metric in a transaction, and with the last one the metric.
    fn delete_series(&self, metric_no: i32, limit: &mut DeletionLimit) -> Result<(), StoreError> {
        let mut lease = self.writers.begin("BEGIN")?;
        let session = lease.session()?;
        let (mut series_nos, mut names, mut values, mut labelled) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let sql = "SELECT no, key FROM series WHERE metric_no = $1 LIMIT $2";
        session.for_each_row(sql, params![metric_no, i64::from(limit.left)], |row| {
            let no: i64 = get(row, 0)?;
            series_nos.push(no);
            for (name, value) in Series::from_key(get(row, 1)?)?.labels {
                names.push(name);
                values.push(value);
                labelled.push(no);
            }
            Ok(())
        })?;
        // Labels are found by their names: the table of labels has no index by series.
        let sql =
            "SELECT p.no, w.series_no FROM unnest($2::text[], $3::text[], $4::bigint[]) AS w \
                   (name, value, series_no)
            JOIN label_pairs p ON p.metric_no = $1 AND p.name = w.name AND p.value = w.value";
        let (mut pair_nos, mut of_pairs) = (Vec::<i64>::new(), Vec::<i64>::new());
        session.for_each_row(sql, params![metric_no, names, values, labelled], |row| {
            pair_nos.push(get(row, 0)?);
            of_pairs.push(get(row, 1)?);
            Ok(())
        })?;
        let deleted = series_nos.len() as u64;
        session.query(
            "SELECT rollmill.delete_generation_series($1, $2, $3, $4)",
            params![metric_no, series_nos, pair_nos, of_pairs],
        )?;
        session.commit()?;
        limit.add(deleted);
        Ok(())
    }

    /// Deletes counts and cursors of a generation that has no metric any more, unless it is still
    /// written.
    fn forget_generation(
        &self,
        of: &LeavingRange,
        limit: &mut DeletionLimit,
    ) -> Result<(), StoreError> {
        let mut lease = self.writers.begin("BEGIN")?;
        let session = lease.session()?;
        let generation = of.generation.0 as i64;
        lock_fills(session, of)?;
        let sql = "SELECT EXISTS (SELECT FROM metrics WHERE generation = $1)";
        let has_metrics = session.query(sql, params![generation])?;
        let has_metrics = has_metrics.first().map_or(Ok(false), |row| get::<bool>(row, 0))?;
        if has_metrics || self.books.current(session)?.newest_set().has(of.generation) {
            return Ok(());
        }
        // The cursors last: keepers wait for each other at them.
        for sql in FORGET {
            if limit.left > 0 {
                let most = i64::from(limit.left);
                limit.add(session.execute(sql, params![generation, most])?);
            }
        }
        session.commit()?;
        self.series_cache.forget(of.generation);
        Ok(())
    }
}

/// What is left of a generation without metrics, at most so many rows of a table each.
const FORGET: [&str; 3] = [
    "DELETE FROM generation_dropped WHERE generation = $1 AND (tenant, metric, day, shard, part) \
     IN (SELECT tenant, metric, day, shard, part FROM generation_dropped WHERE generation = $1 \
     LIMIT $2)",
    "DELETE FROM generation_rules WHERE generation = $1 AND (shard, part, rule, outcome) IN \
     (SELECT shard, part, rule, outcome FROM generation_rules WHERE generation = $1 LIMIT $2)",
    "DELETE FROM generation_fills WHERE generation = $1 AND shard IN (SELECT shard FROM \
     generation_fills WHERE generation = $1 LIMIT $2)",
];

fn find_metric(
    session: &mut PostgresSession,
    of: &LeavingRange,
) -> Result<Option<i32>, StoreError> {
    let sql = "SELECT m.no FROM tenants t JOIN metrics m ON m.tenant_no = t.no
        WHERE t.name = $1 AND m.name = $2 AND m.generation = $3 AND m.generation > 0";
    let (tenant, metric) = (of.tenant.clone(), of.metric.clone());
    let rows = session.query(sql, params![tenant, metric, of.generation.0 as i64])?;
    rows.first().map(|row| get(row, 0)).transpose()
}

fn delete_rows(
    session: &mut PostgresSession,
    metric_no: Option<i32>,
    of: &LeavingRange,
    most: i32,
) -> Result<u64, StoreError> {
    let Some(metric_no) = metric_no else { return Ok(0) };
    let (from, to) = of.days.hours();
    let rows = session.query(
        "SELECT rollmill.delete_generation_rows($1, $2, $3, $4)",
        params![metric_no, from.0, to.0, most],
    )?;
    rows.first().map_or(Ok(0), |row| Ok(u64::from(get::<i32>(row, 0)?.unsigned_abs())))
}

fn lock_fills(session: &mut PostgresSession, of: &LeavingRange) -> Result<(), StoreError> {
    let sql = "SELECT FROM generation_fills WHERE generation = $1 ORDER BY shard FOR UPDATE";
    session.query(sql, params![of.generation.0 as i64])?;
    Ok(())
}

fn delete_counts(
    session: &mut PostgresSession,
    of: &LeavingRange,
    most: i32,
) -> Result<u64, StoreError> {
    let sql = "DELETE FROM generation_dropped WHERE generation = $1 AND tenant = $2 AND metric = \
               $3 AND (day, shard, part) IN (SELECT day, shard, part FROM generation_dropped WHERE \
               generation = $1 AND tenant = $2 AND metric = $3 AND day >= $4 AND ($5::integer IS \
               NULL OR day < $5) LIMIT $6)";
    let (tenant, metric, generation) =
        (of.tenant.clone(), of.metric.clone(), of.generation.0 as i64);
    let (from, to) = (of.days.from(), of.days.to());
    let counts = params![generation, tenant, metric, from, to, i64::from(most)];
    Ok(session.execute(sql, counts)?)
}

/// The catalogue stays as long as a shard may write the metric: nodes cache its numbers.
fn leftover_of(
    session: &mut PostgresSession,
    book: &Arc<GenerationBook>,
    metric_no: Option<i32>,
    of: &LeavingRange,
) -> Result<Leftover, StoreError> {
    let is_same = |tenant: &str, metric: &str| tenant == of.tenant && metric == of.metric;
    let is_written =
        book.newest_set().ranges.iter().any(|range| {
            range.generation == of.generation && is_same(&range.tenant, &range.metric)
        });
    if is_written {
        return Ok(Leftover::Nothing);
    }
    let Some(metric_no) = metric_no else { return Ok(Leftover::Generation) };
    let ranges = book
        .leaving()
        .iter()
        .filter(|range| range.generation == of.generation && is_same(&range.tenant, &range.metric));
    let without = ranges.map(|range| range.set).max().unwrap_or(of.set);
    let sql = "SELECT EXISTS (SELECT FROM shards WHERE set_version < $2), first_hour, last_hour \
               FROM metrics WHERE no = $1";
    let rows = session.query(sql, params![metric_no, without as i64])?;
    let Some(row) = rows.first() else { return Ok(Leftover::Generation) };
    let (first, last) = (get::<Option<i32>>(row, 1)?, get::<Option<i32>>(row, 2)?);
    // A statement of its own, which names the hours.
    let sql = "SELECT FROM rollups WHERE metric_no = $1 AND hour >= $2 AND hour <= $3 LIMIT 1";
    let in_use = get(row, 0)? || !session.query(sql, params![metric_no, first, last])?.is_empty();
    Ok(if in_use { Leftover::Nothing } else { Leftover::Catalogue(metric_no) })
}
