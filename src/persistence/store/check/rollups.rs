//! Finds rollups and sketches that belong to nothing, and days without their revision.

use std::collections::BTreeSet;

use super::{DamageCollector, StoreError, TableReader, number};

/// Visits every metric and hour that has rollups.
pub(super) fn for_each_hour(
    tables: &mut dyn TableReader,
    visit: &mut dyn FnMut(i64, i64),
) -> Result<(), StoreError> {
    // One statement per range: a DISTINCT over years of rollups would outlast its time limit.
    for (from, to) in tables.hour_ranges()? {
        let sql = format!(
            "SELECT DISTINCT metric_no, hour FROM rollups WHERE hour >= {from} AND hour < {to}"
        );
        tables.for_each_row(&sql, &mut |row| {
            visit(number(row, 0)?, number(row, 1)?);
            Ok(())
        })?;
    }
    Ok(())
}

/// Reports the rows of a statement that selects metric, hour and series of orphaned rows.
fn report_orphans(
    tables: &mut dyn TableReader,
    sql: &str,
    table: &'static str,
    lacks: &str,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    tables.for_each_row(sql, &mut |row| {
        let (metric, hour, series) = (number(row, 0)?, number(row, 1)?, number(row, 2)?);
        found.add(
            table,
            format!("metric {metric}, hour {hour}, series {series}: there is no {lacks}"),
        );
        Ok(())
    })
}

pub(super) fn orphan_rollups(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    for (from, to) in tables.hour_ranges()? {
        let sql = format!(
            "SELECT r.metric_no, r.hour, r.series_no FROM rollups r LEFT JOIN series s ON s.no = \
             r.series_no
             WHERE r.hour >= {from} AND r.hour < {to} AND (s.no IS NULL OR s.metric_no <> \
             r.metric_no)"
        );
        report_orphans(tables, &sql, "rollups", "such series", found)?;
    }
    Ok(())
}

pub(super) fn orphan_sketches(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    for (from, to) in tables.hour_ranges()? {
        let sql = format!(
            "SELECT k.metric_no, k.hour, k.series_no FROM sketches k LEFT JOIN rollups r ON \
             r.metric_no = k.metric_no
             AND r.hour = k.hour AND r.series_no = k.series_no AND r.hour >= {from} AND r.hour < \
             {to}
             WHERE k.hour >= {from} AND k.hour < {to} AND r.hour IS NULL"
        );
        report_orphans(tables, &sql, "sketches", "such rollup", found)?;
    }
    Ok(())
}

pub(super) fn revisions(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let mut revised: BTreeSet<(i64, i64)> = BTreeSet::new();
    tables.for_each_row("SELECT metric_no, day, revision FROM revisions", &mut |row| {
        let (metric, day) = (number(row, 0)?, number(row, 1)?);
        if number(row, 2)? == 0 {
            found.add(
                "revisions",
                format!(
                    "metric {metric}, day {day}: its revision is 0, which is that of days without \
                     rollups"
                ),
            );
        }
        revised.insert((metric, day));
        Ok(())
    })?;
    let mut days: BTreeSet<(i64, i64)> = BTreeSet::new();
    for_each_hour(tables, &mut |metric, hour| _ = days.insert((metric, hour.div_euclid(24))))?;
    for (metric, day) in days.difference(&revised) {
        found.add(
            "revisions",
            format!("metric {metric}, day {day}: there are rollups, and no revision"),
        );
    }
    Ok(())
}
