//! Reads rollups: how a range of hours is split into statements, and how figures are joined with
//! their sketches.
//!
//! Figures and sketches are two tables. A join of them in SQL was one look-up per row, which on
//! TimescaleDB repeats the chunk exclusion and unpacks a batch wherever the chunk is compressed. So
//! each table is read on its own, in the order of its hours, by statements that name their hours; a
//! bounded number of figures waits here for their sketches.
//!
//! | path | when | statement |
//! |---|---|---|
//! | scan | most series of the metric match | the range, in the order of the key |
//! | seek | few match | one index look-up for each hour and series |
//! | filter | few match, in a compressed week | the range with a filter: a batch is unpacked once |

use super::StoreError;
use super::codec::{self, get};
use super::compressed_weeks::CompressedWeeks;
use super::schema::WEEK;
use super::session::{Param, PostgresSession, params};
use crate::model::rollup::{Rollup, RollupFigures};
use crate::model::window::Hour;

/// Approximate number of figures that wait for their sketches at a time. Statements over more hours
/// cost nothing, statements with fewer rows do.
const ROWS: u64 = 32_768;

/// What to read of one metric.
pub(super) struct RollupScan<'r> {
    pub(super) metric_no: i32,
    /// First hour, and the exclusive end.
    pub(super) hours: (Hour, Hour),
    /// Number of series of the metric, the most rows that an hour can have.
    pub(super) series: u64,
    /// Numbers of the matching series if they are few, ascending; `None` reads all.
    pub(super) series_nos: Option<&'r [i64]>,
    /// Whether to read the sketches of distinct users.
    pub(super) distinct: bool,
    /// Whether to read the quantile sketches.
    pub(super) quantiles: bool,
    /// Whether each part gets the full time limit of a transaction: for reads of a whole store,
    /// which may take as long as they need.
    pub(super) renews_time_limit: bool,
}

/// Receives hour, series number and rollup; those of one series come in ascending hours.
pub(super) type RollupVisitor<'v> = dyn FnMut(Hour, i64, Rollup) -> Result<(), StoreError> + 'v;

/// How a statement finds its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AccessPath {
    Scan,
    Seek,
    Filter,
}

impl RollupScan<'_> {
    /// Reads everything, in parts that stay small. An error of `visit` ends the read.
    pub(super) fn run(
        &self,
        session: &mut PostgresSession,
        compressed: &CompressedWeeks,
        visit: &mut RollupVisitor<'_>,
    ) -> Result<(), StoreError> {
        match self.series_nos {
            Some(few) => self.read_by_week(session, few, compressed, visit),
            None if self.distinct || self.quantiles => self.scan(session, visit),
            None => {
                let (from, to) = (self.hours.0.0, self.hours.1.0);
                self.figures(
                    session,
                    AccessPath::Scan,
                    (from, to),
                    None,
                    &mut |(hour, no), figures| {
                        visit(Hour(hour), no, Rollup { figures, ..Rollup::default() })
                    },
                )
            }
        }
    }

    /// Reads part after part. How full the hours are is unknown and may change, so the length of a
    /// part is adapted to what the last one found.
    fn scan(
        &self,
        session: &mut PostgresSession,
        visit: &mut RollupVisitor<'_>,
    ) -> Result<(), StoreError> {
        // Admits at least one whole hour, if the catalogue counts its series correctly.
        let mut limit = ROWS + self.series;
        let (mut from, to) = (self.hours.0.0, self.hours.1.0);
        let mut hours = (ROWS / self.series.max(1)).max(1);
        while from < to {
            if self.renews_time_limit {
                session.restart_time_limit();
            }
            let mut end = i32::try_from(i64::from(from).saturating_add_unsigned(hours))
                .unwrap_or(i32::MAX)
                .min(to);
            let mut waiting = PendingFigures::default();
            self.figures(
                session,
                AccessPath::Scan,
                (from, end),
                Some(limit),
                &mut |key, figures| {
                    waiting.add(key, figures);
                    Ok(())
                },
            )?;
            let found = waiting.rows.len() as u64;
            if found >= limit {
                // The last hour may be incomplete, so the next part begins with it.
                end = waiting.drop_last_hour().unwrap_or(end);
                // A single hour exceeds the limit: the count of series was outdated. Reads it
                // again.
                if end <= from {
                    limit = limit.saturating_mul(2);
                    continue;
                }
            }
            self.sketches(session, AccessPath::Scan, (from, end), &mut waiting, visit)?;
            let read = i64::from(end).abs_diff(i64::from(from));
            hours = if found >= limit {
                read.max(1)
            } else if found < ROWS / 2 {
                read.saturating_mul(2)
            } else {
                read
            };
            from = end;
        }
        Ok(())
    }

    /// Reads one part per week, because every look-up visits all chunks that its statement names.
    fn read_by_week(
        &self,
        session: &mut PostgresSession,
        few: &[i64],
        compressed: &CompressedWeeks,
        visit: &mut RollupVisitor<'_>,
    ) -> Result<(), StoreError> {
        let weeks = compressed.weeks(session)?;
        let most = ROWS / (few.len() as u64).max(1);
        for range in split_hours((self.hours.0.0, self.hours.1.0), most, session.backend.timescale)
        {
            let path = if weeks.contains(&range.0.div_euclid(WEEK)) {
                AccessPath::Filter
            } else {
                AccessPath::Seek
            };
            if self.distinct || self.quantiles {
                let mut waiting = PendingFigures::default();
                self.figures(session, path, range, None, &mut |key, figures| {
                    waiting.add(key, figures);
                    Ok(())
                })?;
                self.sketches(session, path, range, &mut waiting, visit)?;
            } else {
                self.figures(session, path, range, None, &mut |(hour, no), figures| {
                    visit(Hour(hour), no, Rollup { figures, ..Rollup::default() })
                })?;
            }
        }
        Ok(())
    }

    fn params(&self, path: AccessPath, (from, to): (i32, i32), limit: Option<u64>) -> Vec<Param> {
        let mut params = params![self.metric_no, from, to];
        if path != AccessPath::Scan {
            params.push(Box::new(self.series_nos.unwrap_or_default().to_vec()));
        }
        if let Some(limit) = limit {
            params.push(Box::new(i64::try_from(limit).unwrap_or(i64::MAX)));
        }
        params
    }

    fn figures(
        &self,
        session: &mut PostgresSession,
        path: AccessPath,
        range: (i32, i32),
        limit: Option<u64>,
        take: &mut dyn FnMut((i32, i64), RollupFigures) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut sql = statement(
            "rollups",
            "r.hour, r.series_no, r.count, r.value_count, r.sum, r.min, r.max",
            path,
        );
        if limit.is_some() {
            sql.push_str(" LIMIT $4");
        }
        session.for_each_row(&sql, self.params(path, range, limit), |row| {
            take((get(row, 0)?, get(row, 1)?), codec::figures(row, 2)?)
        })
    }

    /// Reads the sketches of a part and passes its rows on.
    fn sketches(
        &self,
        session: &mut PostgresSession,
        path: AccessPath,
        range: (i32, i32),
        waiting: &mut PendingFigures,
        visit: &mut RollupVisitor<'_>,
    ) -> Result<(), StoreError> {
        if waiting.rows.is_empty() {
            return Ok(());
        }
        waiting.rows.sort_unstable_by_key(|(key, _)| *key);
        let columns = match (self.distinct, self.quantiles) {
            (true, false) => "r.hour, r.series_no, r.distinct_users, NULL::bytea",
            (false, _) => "r.hour, r.series_no, NULL::bytea, r.quantiles",
            (true, true) => "r.hour, r.series_no, r.distinct_users, r.quantiles",
        };
        // An error of `visit` ends the read behind this statement, not within it: a session whose
        // rows are left unread is lost, and whoever has seen enough of one generation reads another
        // one in the same transaction.
        let mut ended = None;
        session.for_each_row(
            &statement("sketches", columns, path),
            self.params(path, range, None),
            |row| {
                if ended.is_some() {
                    return Ok(());
                }
                let (users, values) =
                    (get::<Option<&[u8]>>(row, 2)?, get::<Option<&[u8]>>(row, 3)?);
                let merged = waiting.merge_sketches(
                    (get(row, 0)?, get(row, 1)?),
                    (users.unwrap_or(&[]), values.unwrap_or(&[])),
                    visit,
                );
                ended = merged.err();
                Ok(())
            },
        )?;
        if let Some(error) = ended {
            return Err(error);
        }
        waiting.finish(visit)
    }
}

/// $1 metric, $2 first hour, $3 exclusive end, $4 series. Every scan names the range, so that the
/// plan excludes all other weeks.
pub(super) fn statement(table: &str, columns: &str, path: AccessPath) -> String {
    let range = "r.metric_no = $1 AND r.hour >= $2 AND r.hour < $3";
    match path {
        AccessPath::Scan => {
            format!("SELECT {columns} FROM {table} r WHERE {range} ORDER BY r.hour, r.series_no")
        }
        AccessPath::Filter => format!(
            "SELECT {columns} FROM {table} r WHERE {range} AND r.series_no = ANY($4) ORDER BY \
             r.hour"
        ),
        // OFFSET 0 forces one key look-up per hour and series, in the order of the hours, whatever
        // the planner assumes about tables that were never analysed.
        AccessPath::Seek => format!(
            "SELECT {columns} FROM generate_series($2::integer, $3::integer - 1) AS h (hour)
             CROSS JOIN LATERAL (SELECT r.* FROM unnest($4::bigint[]) AS w (no)
             CROSS JOIN LATERAL (SELECT * FROM {table} r WHERE {range} AND r.hour = h.hour AND \
             r.series_no = w.no OFFSET 0) r
             OFFSET 0) r"
        ),
    }
}

/// Splits hours into parts of at most `most` hours, and at the ends of weeks if `by_week`.
fn split_hours(
    (from, to): (i32, i32),
    most: u64,
    by_week: bool,
) -> impl Iterator<Item = (i32, i32)> {
    let most = i32::try_from(most).unwrap_or(i32::MAX).max(1);
    let mut next = from;
    std::iter::from_fn(move || {
        if next >= to {
            return None;
        }
        let mut end = next.saturating_add(most).min(to);
        if by_week {
            end = end.min(next.div_euclid(WEEK).saturating_add(1).saturating_mul(WEEK));
        }
        let range = (next, end);
        next = end;
        Some(range)
    })
}

/// Figures that wait for their sketches, by hour and series number.
#[derive(Debug, Default)]
struct PendingFigures {
    rows: Vec<((i32, i64), Option<RollupFigures>)>,
    /// Rows below this index were passed on.
    done: usize,
    /// The hour of the last sketches seen.
    last: Option<i32>,
}

impl PendingFigures {
    fn add(&mut self, key: (i32, i64), figures: RollupFigures) {
        self.rows.push((key, Some(figures)));
    }

    /// Drops the rows of the last hour, and returns that hour.
    fn drop_last_hour(&mut self) -> Option<i32> {
        let last = self.rows.iter().map(|(key, _)| key.0).max()?;
        self.rows.retain(|(key, _)| key.0 < last);
        Some(last)
    }

    /// Joins sketches with their figures and passes the row on, after all rows of earlier hours
    /// that have no sketches.
    fn merge_sketches(
        &mut self,
        key: (i32, i64),
        (users, values): (&[u8], &[u8]),
        visit: &mut RollupVisitor<'_>,
    ) -> Result<(), StoreError> {
        if self.last.is_some_and(|last| key.0 < last) {
            return Err(StoreError::Failed(format!(
                "the database gave sketches of hour {} behind later ones",
                key.0
            )));
        }
        self.last = Some(key.0);
        self.emit(|row| row.0 < key.0, visit)?;
        // Sketches without figures, or of series that do not match, are skipped.
        let Ok(at) = self.rows[self.done..].binary_search_by_key(&key, |(key, _)| *key) else {
            return Ok(());
        };
        match self.rows[self.done + at].1.take() {
            Some(figures) => {
                visit(Hour(key.0), key.1, Rollup::with_sketches(figures, users, values)?)
            }
            None => Ok(()),
        }
    }

    /// Passes on the remaining rows, which have no sketches.
    fn finish(&mut self, visit: &mut RollupVisitor<'_>) -> Result<(), StoreError> {
        self.emit(|_| true, visit)
    }

    fn emit(
        &mut self,
        mut due: impl FnMut((i32, i64)) -> bool,
        visit: &mut RollupVisitor<'_>,
    ) -> Result<(), StoreError> {
        while let Some((key, figures)) = self.rows.get_mut(self.done).filter(|(key, _)| due(*key)) {
            self.done += 1;
            if let Some(figures) = figures.take() {
                visit(Hour(key.0), key.1, Rollup { figures, ..Rollup::default() })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decimal::Decimal;

    fn rollup(value: i128) -> Rollup {
        let mut rollup = Rollup::default();
        rollup.add(Some(Decimal::from_units(value)), Some(value as u64));
        rollup
    }

    /// The rows that result from figures with these keys and sketches with those.
    fn merged(
        figures: &[(i32, i64)],
        sketches: &[(i32, i64)],
    ) -> Result<Vec<(i32, i64, bool)>, StoreError> {
        let mut waiting = PendingFigures::default();
        figures.iter().for_each(|key| waiting.add(*key, rollup(i128::from(key.1)).figures));
        waiting.rows.sort_unstable_by_key(|(key, _)| *key);
        let mut out = Vec::new();
        let mut visit = |hour: Hour, no: i64, found: Rollup| -> Result<(), StoreError> {
            let whole = found == rollup(i128::from(no));
            assert_eq!(found.figures, rollup(i128::from(no)).figures);
            assert!(whole || found.distinct.is_empty());
            out.push((hour.0, no, whole));
            Ok(())
        };
        for key in sketches {
            let of = rollup(i128::from(key.1));
            let (mut users, mut values) = (Vec::new(), Vec::new());
            of.distinct.encode(&mut users);
            of.quantiles.encode(&mut values);
            waiting.merge_sketches(*key, (&users, &values), &mut visit)?;
        }
        waiting.finish(&mut visit)?;
        Ok(out)
    }

    #[test]
    fn figures_meet_their_sketches_in_the_order_of_the_hours() {
        let out = merged(
            &[(5, 2), (5, 1), (6, 1), (7, 1), (7, 2), (9, 3)],
            &[(5, 2), (7, 2), (7, 1), (8, 1)],
        )
        .expect("merged");
        assert_eq!(
            out,
            [(5, 2, true), (5, 1, false), (6, 1, false), (7, 2, true), (7, 1, true), (9, 3, false)]
        );
        assert_eq!(merged(&[], &[(1, 1)]), Ok(vec![]));
        assert_eq!(merged(&[(1, 1)], &[]), Ok(vec![(1, 1, false)]));
    }

    #[test]
    fn sketches_out_of_order_are_an_error_and_not_a_number() {
        let wrong = merged(&[(5, 1), (6, 1)], &[(6, 1), (5, 1)]).expect_err("out of order");
        assert!(wrong.to_string().contains("hour 5"), "{wrong}");
    }

    #[test]
    fn a_part_that_was_cut_ends_before_its_last_hour() {
        let mut waiting = PendingFigures::default();
        [(5, 1), (6, 1), (6, 2)].iter().for_each(|key| waiting.add(*key, RollupFigures::default()));
        assert_eq!(waiting.drop_last_hour(), Some(6));
        assert_eq!(waiting.rows.len(), 1);
    }

    #[test]
    fn pieces_cover_a_range_once_and_stay_in_their_week() {
        for (range, most, by_week) in [
            ((-400, 400), 168, true),
            ((-1, 1), 50_000, true),
            ((0, 336), 100, true),
            ((7, 1000), 10, false),
            ((5, 5), 1, true),
        ] {
            let mut next = range.0;
            for (from, to) in split_hours(range, most, by_week) {
                assert!(from == next && from < to && i64::from(to - from) <= most as i64);
                assert!(!by_week || from.div_euclid(WEEK) == (to - 1).div_euclid(WEEK));
                next = to;
            }
            assert_eq!(next, range.1);
        }
        assert_eq!(split_hours((i32::MIN, i32::MAX), u64::MAX, false).count(), 3);
        assert_eq!(
            split_hours((i32::MAX - 1, i32::MAX), 5, true).collect::<Vec<_>>(),
            [(i32::MAX - 1, i32::MAX)]
        );
    }
}
