//! Merges deltas into their rows: figures by the server, sketches here, in key order and in parts.
//!
//! Generations have metric numbers of their own, so the rows of all generations of a transaction are
//! merged together, by the same statements.

use std::collections::{BTreeMap, BTreeSet};

use super::StoreError;
use super::catalogue::{SeriesGrowth, SeriesNumbers};
use super::codec::{CopyRows, get};
use super::compressed_weeks::CompressedWeeks;
use super::schema::WEEK;
use super::session::{Param, PostgresSession, params};
use crate::model::decimal::Decimal;
use crate::model::distinct::DistinctSketch;
use crate::model::flush::Delta;
use crate::model::quantiles::QuantileSketch;
use crate::model::rollup::Rollup;

/// Temporary tables for staged rows, one set per session; every commit empties them.
pub(super) const STAGING_TABLES: &str = "
    CREATE TEMPORARY TABLE staged_rollups (metric_no integer, hour integer, series_no bigint, \
                                  count bigint, value_count bigint,
      sum numeric, min numeric, max numeric) ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE staged_sketches (metric_no integer, hour integer, series_no bigint, \
                                  distinct_users bytea, quantiles bytea)
      ON COMMIT DELETE ROWS;";

const STAGE_ROLLUPS: &str = "COPY pg_temp.staged_rollups FROM STDIN BINARY";
const MERGE_ROLLUPS: &str = "INSERT INTO rollups AS r (metric_no, hour, series_no, count, \
                             value_count, sum, min, max)
    SELECT metric_no, hour, series_no, count, value_count, sum, min, max FROM \
                             pg_temp.staged_rollups ORDER BY metric_no, hour, series_no
    ON CONFLICT (metric_no, hour, series_no) DO UPDATE SET count = r.count + excluded.count,
    value_count = r.value_count + excluded.value_count, sum = r.sum + excluded.sum, min = \
                             least(r.min, excluded.min),
    max = greatest(r.max, excluded.max)";
// The hours belong to one week and are named, so that only this week's partition is read: without
// them every row of the statement would visit all weeks. OFFSET 0 forces one key look-up per row,
// whatever the planner assumes about tables that were never analysed.
pub(super) const READ_SKETCHES: &str = "SELECT s.metric_no, s.hour, s.series_no, \
                                        k.distinct_users, k.quantiles FROM pg_temp.staged_rollups \
                                        s
    CROSS JOIN LATERAL (SELECT distinct_users, quantiles FROM sketches k WHERE k.metric_no = \
                                        s.metric_no AND k.hour = s.hour
    AND k.series_no = s.series_no AND k.hour >= $1 AND k.hour <= $2 OFFSET 0) k WHERE s.hour >= $1 \
                                        AND s.hour <= $2";
// The same for a compressed week, where every look-up unpacks a batch: one look-up for each hour of
// a metric.
pub(super) const READ_PACKED_SKETCHES: &str = "SELECT k.metric_no, k.hour, k.series_no, \
                                               k.distinct_users, k.quantiles
    FROM (SELECT metric_no, hour, array_agg(series_no) AS nos FROM pg_temp.staged_rollups WHERE \
                                               hour >= $1 AND hour <= $2
    GROUP BY metric_no, hour OFFSET 0) s CROSS JOIN LATERAL (SELECT * FROM sketches k WHERE \
                                               k.metric_no = s.metric_no
    AND k.hour = s.hour AND k.series_no = ANY (s.nos) AND k.hour >= $1 AND k.hour <= $2 OFFSET 0) \
                                               k";
const STAGE_SKETCHES: &str = "COPY pg_temp.staged_sketches FROM STDIN BINARY";
const MERGE_SKETCHES: &str = "INSERT INTO sketches (metric_no, hour, series_no, distinct_users, \
                              quantiles)
    SELECT metric_no, hour, series_no, distinct_users, quantiles FROM pg_temp.staged_sketches \
                              ORDER BY metric_no, hour, series_no
    ON CONFLICT (metric_no, hour, series_no) DO UPDATE SET distinct_users = \
                              excluded.distinct_users, quantiles = excluded.quantiles";
const CLEAR: &str = "TRUNCATE pg_temp.staged_rollups, pg_temp.staged_sketches";

/// Most rows merged at a time. Bounds the memory of the sketches that are read back, each of which
/// has up to 16 KiB.
const PART_ROWS: usize = 8_192;
/// Most rows of a part that fall into compressed weeks. Each may unpack a batch of a thousand rows,
/// and the part has to finish within `store.timeout`.
const PACKED_PART_ROWS: usize = 512;

/// Lifts TimescaleDB's limit of rows that a transaction may decompress (100,000 by default): late
/// events of a compressed week would otherwise fail the flush for ever. Versions of the extension
/// without this limit do not know the setting, hence the exception handler.
pub(super) const NO_DECOMPRESS_LIMIT: &str = "
    DO $$ BEGIN PERFORM set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', \
                                    false);
    EXCEPTION WHEN undefined_object OR invalid_name THEN NULL; END $$;";

/// The weeks that deltas fall into, as the partitions number them.
pub(super) fn touched_weeks<'d>(deltas: impl IntoIterator<Item = &'d Delta>) -> BTreeSet<i32> {
    deltas.into_iter().map(|delta| delta.hour.0.div_euclid(WEEK)).collect()
}

/// Metric number, hour and series number: the primary key of a rollup.
type RowKey = (i32, i32, i64);

/// The days and hours that a merge touched, for the revisions and the metrics' ranges.
#[derive(Default)]
pub(super) struct TouchedRows {
    days: BTreeSet<(i32, i32)>,
    hours: BTreeMap<i32, (i32, i32)>,
}

impl TouchedRows {
    /// The current revisions of the touched days. Locks their rows.
    pub(super) fn revisions(
        &self,
        session: &mut PostgresSession,
    ) -> Result<BTreeMap<(i32, i32), u64>, StoreError> {
        let (metrics, days): (Vec<i32>, Vec<i32>) = self.days.iter().copied().unzip();
        let sql = "SELECT r.metric_no, r.day, r.revision FROM unnest($1::integer[], \
                   $2::integer[]) AS w (metric_no, day)
            JOIN revisions r ON r.metric_no = w.metric_no AND r.day = w.day ORDER BY r.metric_no, \
                   r.day FOR UPDATE OF r";
        let rows = session.query(sql, params![metrics, days])?;
        rows.iter()
            .map(|row| Ok(((get(row, 0)?, get(row, 1)?), get::<i64>(row, 2)? as u64)))
            .collect()
    }

    /// The statements for revisions and metrics; `revise` returns the new revision of a day.
    pub(super) fn writes(
        &self,
        growth: &SeriesGrowth,
        revise: impl Fn((i32, i32)) -> u64,
    ) -> Vec<(&'static str, Vec<Param>)> {
        let mut writes = Vec::new();
        if !self.days.is_empty() {
            let (metrics, days): (Vec<i32>, Vec<i32>) = self.days.iter().copied().unzip();
            let revisions: Vec<i64> = self.days.iter().map(|day| revise(*day) as i64).collect();
            let sql = "INSERT INTO revisions SELECT * FROM unnest($1::integer[], $2::integer[], \
                       $3::bigint[]) AS w (metric_no, day, revision)
                ORDER BY w.metric_no, w.day ON CONFLICT (metric_no, day) DO UPDATE SET revision = \
                       excluded.revision";
            writes.push((sql, params![metrics, days, revisions]));
        }
        let metrics: Vec<i32> = self
            .hours
            .keys()
            .chain(growth.keys())
            .copied()
            .collect::<BTreeSet<i32>>()
            .into_iter()
            .collect();
        if metrics.is_empty() {
            return writes;
        }
        let grown: Vec<i64> =
            metrics.iter().map(|no| growth.get(no).copied().unwrap_or(0)).collect();
        let first: Vec<Option<i32>> =
            metrics.iter().map(|no| self.hours.get(no).map(|span| span.0)).collect();
        let last: Vec<Option<i32>> =
            metrics.iter().map(|no| self.hours.get(no).map(|span| span.1)).collect();
        // The condition lets most flushes lock no metric at all. That matters, because every shard
        // has series of the same metrics.
        let sql = "WITH grown AS MATERIALIZED (SELECT m.no, w.grown, w.first, w.last
            FROM unnest($1::integer[], $2::bigint[], $3::integer[], $4::integer[]) AS w (no, \
                   grown, first, last) JOIN metrics m ON m.no = w.no
            WHERE w.grown > 0 OR (w.first IS NOT NULL AND (m.first_hour IS NULL OR w.first < \
                   m.first_hour OR w.last > m.last_hour))
            ORDER BY m.no FOR UPDATE OF m)
            UPDATE metrics m SET series_count = m.series_count + g.grown, first_hour = \
                   least(m.first_hour, g.first),
            last_hour = greatest(m.last_hour, g.last) FROM grown g WHERE m.no = g.no";
        writes.push((sql, params![metrics, grown, first, last]));
        writes
    }
}

/// Merges deltas into their rows, in key order and in parts. Each list comes with the numbers of its
/// series.
pub(super) fn merge(
    session: &mut PostgresSession,
    compressed: &CompressedWeeks,
    lists: &[(&[Delta], &SeriesNumbers)],
) -> Result<TouchedRows, StoreError> {
    let mut rows: Vec<Row<'_>> =
        Vec::with_capacity(lists.iter().map(|(deltas, _)| deltas.len()).sum());
    let mut touched = TouchedRows::default();
    let deltas =
        lists.iter().flat_map(|(deltas, numbers)| deltas.iter().map(move |d| (d, numbers)));
    for (delta, numbers) in deltas {
        let id = delta.series.id;
        let no = numbers
            .get(&id)
            .ok_or_else(|| StoreError::Failed(format!("series {id} has no number")))?;
        rows.push((
            (no.metric_no, delta.hour.0, no.series_no),
            std::borrow::Cow::Borrowed(&delta.rollup),
        ));
        touched.days.insert((no.metric_no, delta.hour.day()));
        let span = touched.hours.entry(no.metric_no).or_insert((delta.hour.0, delta.hour.0));
        *span = (span.0.min(delta.hour.0), span.1.max(delta.hour.0));
    }
    rows.sort_by_key(|(key, _)| *key);
    // One statement must not touch a row twice.
    rows.dedup_by(|next, kept| {
        let equal = next.0 == kept.0;
        if equal {
            kept.1.to_mut().merge(&next.1);
        }
        equal
    });
    let packed = compressed.weeks(session)?;
    let mut rest: &[Row<'_>] = &rows;
    while !rest.is_empty() {
        let (part, remaining) = rest.split_at(part_len(rest, &packed));
        merge_figures(session, part)?;
        merge_sketches(session, part, &packed)?;
        if !remaining.is_empty() {
            session.batch_execute(CLEAR.to_owned())?;
        }
        // Every part gets the full time: a flush that makes progress must not time out, because its
        // retry would start over and never finish.
        session.restart_time_limit();
        rest = remaining;
    }
    Ok(touched)
}

type Row<'a> = (RowKey, std::borrow::Cow<'a, Rollup>);

fn week(row: &Row<'_>) -> i32 {
    row.0.1.div_euclid(WEEK)
}

/// The number of rows in the next part.
fn part_len(rows: &[Row<'_>], packed: &BTreeSet<i32>) -> usize {
    let most = rows.len().min(PART_ROWS);
    if packed.is_empty() {
        return most;
    }
    let late = rows[..most].iter().enumerate().filter(|(_, row)| packed.contains(&week(row)));
    late.map(|(at, _)| at + 1).nth(PACKED_PART_ROWS - 1).unwrap_or(most)
}

fn merge_figures(session: &mut PostgresSession, rows: &[Row<'_>]) -> Result<(), StoreError> {
    let mut copy = CopyRows::new();
    for (key, rollup) in rows {
        let figures = &rollup.figures;
        copy.begin_row(8);
        put_key(&mut copy, *key);
        copy.bigint(figures.count as i64);
        copy.bigint(figures.value_count as i64);
        copy.numeric(Some(figures.sum));
        copy.numeric(figures.min.map(Decimal::units));
        copy.numeric(figures.max.map(Decimal::units));
    }
    session.copy_in(STAGE_ROLLUPS, copy.finish())?;
    session.execute(MERGE_ROLLUPS, params![])?;
    Ok(())
}

pub(super) fn put_key(copy: &mut CopyRows, key: RowKey) {
    copy.int(key.0);
    copy.int(key.1);
    copy.bigint(key.2);
}

fn has_sketches(row: &Row<'_>) -> bool {
    !row.1.distinct.is_empty() || !row.1.quantiles.is_empty()
}

/// For each week with sketches among the rows, the first and the last hour of them.
fn spans(rows: &[Row<'_>]) -> BTreeMap<i32, (i32, i32)> {
    let mut spans: BTreeMap<i32, (i32, i32)> = BTreeMap::new();
    for row in rows.iter().filter(|row| has_sketches(row)) {
        let hour = row.0.1;
        let span = spans.entry(week(row)).or_insert((hour, hour));
        *span = (span.0.min(hour), span.1.max(hour));
    }
    spans
}

fn merge_sketches(
    session: &mut PostgresSession,
    rows: &[Row<'_>],
    packed: &BTreeSet<i32>,
) -> Result<(), StoreError> {
    let mut stored: BTreeMap<RowKey, (DistinctSketch, QuantileSketch)> = BTreeMap::new();
    for (week, (first, last)) in spans(rows) {
        let sql = if packed.contains(&week) { READ_PACKED_SKETCHES } else { READ_SKETCHES };
        session.for_each_row(sql, params![first, last], |row| {
            let sketches =
                (DistinctSketch::decode(get(row, 3)?)?, QuantileSketch::decode(get(row, 4)?)?);
            stored.insert((get(row, 0)?, get(row, 1)?, get(row, 2)?), sketches);
            Ok(())
        })?;
    }
    let (mut copy, mut any) = (CopyRows::new(), false);
    for (key, growth) in rows.iter().filter(|row| has_sketches(row)) {
        any = true;
        copy.begin_row(5);
        put_key(&mut copy, *key);
        match stored.remove(key) {
            Some((mut distinct, mut quantiles)) => {
                distinct.merge(&growth.distinct);
                quantiles.merge(&growth.quantiles);
                copy.bytea(|out| distinct.encode(out));
                copy.bytea(|out| quantiles.encode(out));
            }
            None => {
                copy.bytea(|out| growth.distinct.encode(out));
                copy.bytea(|out| growth.quantiles.encode(out));
            }
        }
    }
    if any {
        session.copy_in(STAGE_SKETCHES, copy.finish())?;
        session.execute(MERGE_SKETCHES, params![])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn row(hour: i32, series: i64, users: bool) -> Row<'static> {
        let mut rollup = Rollup::default();
        rollup.add(None, users.then_some(7));
        ((1, hour, series), Cow::Owned(rollup))
    }

    #[test]
    fn parts_hold_few_rows_of_compressed_weeks() {
        let rows: Vec<Row<'_>> =
            (0..20_000).map(|n| row(n / 10, i64::from(n % 10), false)).collect();
        assert_eq!(part_len(&rows, &BTreeSet::new()), PART_ROWS);
        assert_eq!(part_len(&rows[..9], &BTreeSet::new()), 9);
        // Week 2 begins at hour 336, which is row 3,360.
        assert_eq!(part_len(&rows, &BTreeSet::from([2])), 3_360 + PACKED_PART_ROWS);
        assert_eq!(part_len(&rows[3_360..], &BTreeSet::from([2])), PACKED_PART_ROWS);
        assert_eq!(part_len(&rows, &BTreeSet::from([90])), PART_ROWS);
    }

    #[test]
    fn every_week_is_read_by_its_own_hours() {
        let rows = [
            row(-1, 1, true),
            row(0, 1, false),
            row(5, 1, true),
            row(160, 2, true),
            row(168, 1, true),
            row(400, 1, false),
        ];
        assert_eq!(spans(&rows), BTreeMap::from([(-1, (-1, -1)), (0, (5, 160)), (1, (168, 168))]));
    }
}
