//! Merging deltas into the rows of rollups and sketches, of all generations alike.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use super::catalogue::SeriesCatalogue;
use super::codec::{self, SqliteUnits};
use super::{StoreError, query_optional, rows};
use crate::model::decimal::Decimal;
use crate::model::distinct::DistinctSketch;
use crate::model::flush::Delta;
use crate::model::offset::{Offset, ShardId};
use crate::model::quantiles::QuantileSketch;
use crate::model::rollup::RollupFigures;
use crate::persistence::store::SeriesScope;

/// Merges deltas into their rows, in the order of the primary key, so that pages are visited once.
pub(super) fn merge(
    tx: &Connection,
    catalogue: &mut SeriesCatalogue<'_>,
    lists: &[(SeriesScope, &[Delta])],
    (shard, at): (ShardId, Offset),
    revise: &dyn Fn(u64) -> u64,
) -> Result<(), StoreError> {
    let mut rows = Vec::with_capacity(lists.iter().map(|(_, deltas)| deltas.len()).sum());
    for (scope, deltas) in lists {
        for delta in *deltas {
            let (metric_no, series_no) =
                catalogue.number_series(*scope, &delta.series, (shard, at))?;
            rows.push(((metric_no, delta.hour.0, series_no), delta));
        }
    }
    rows.sort_by_key(|(key, _)| *key);
    let mut days = BTreeSet::new();
    let mut hours: BTreeMap<i64, (i32, i32)> = BTreeMap::new();
    // Prepared once: a flush merges thousands of rows with the same five statements.
    let mut statements = Statements::prepare(tx)?;
    for (key, delta) in &rows {
        statements.merge_figures(*key, &delta.rollup.figures)?;
        if !delta.rollup.distinct.is_empty() || !delta.rollup.quantiles.is_empty() {
            statements.merge_sketches(*key, delta)?;
        }
        days.insert((key.0, delta.hour.day()));
        let span = hours.entry(key.0).or_insert((key.1, key.1));
        *span = (span.0.min(key.1), span.1.max(key.1));
    }
    for (metric_no, day) in days {
        let sql = "SELECT revision FROM revisions WHERE metric_no = ? AND day = ?";
        let before =
            query_optional(tx, sql, params![metric_no, day], |r| r.get::<_, i64>(0))?.unwrap_or(0);
        let revision = revise(before as u64) as i64;
        tx.prepare_cached("INSERT OR REPLACE INTO revisions VALUES (?, ?, ?, ?)")?.execute(
            params![metric_no, day, revision, rows::revision_checksum(metric_no, day, revision)],
        )?;
    }
    for (metric_no, (first, last)) in hours {
        tx.prepare_cached(
            "UPDATE metrics SET first_hour = min(coalesce(first_hour, ?2), ?2), last_hour = \
             max(coalesce(last_hour, ?3), ?3)
             WHERE no = ?1",
        )?
        .execute(params![metric_no, first, last])?;
    }
    Ok(())
}

type RowKey = (i64, i32, i64);

/// The statements that run for every row of a flush.
struct Statements<'a> {
    figures: CachedStatement<'a>,
    put_figures: CachedStatement<'a>,
    sketches: CachedStatement<'a>,
    update_sketches: CachedStatement<'a>,
    insert_sketches: CachedStatement<'a>,
}

impl<'a> Statements<'a> {
    fn prepare(tx: &'a Connection) -> Result<Self, StoreError> {
        Ok(Self {
            figures: tx.prepare_cached(
                "SELECT count, value_count, sum, min, max FROM rollups WHERE metric_no = ? AND \
                 hour = ? AND series_no = ?",
            )?,
            put_figures: tx
                .prepare_cached("INSERT OR REPLACE INTO rollups VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?,
            sketches: tx.prepare_cached(
                "SELECT rowid, distinct_users, quantiles FROM sketches WHERE metric_no = ? AND \
                 hour = ? AND series_no = ?",
            )?,
            update_sketches: tx.prepare_cached(
                "UPDATE sketches SET distinct_users = ?, quantiles = ? WHERE rowid = ?",
            )?,
            insert_sketches: tx.prepare_cached("INSERT INTO sketches VALUES (?, ?, ?, ?, ?)")?,
        })
    }

    fn merge_figures(&mut self, key: RowKey, growth: &RollupFigures) -> Result<(), StoreError> {
        // Added here and not in SQL: a sum may exceed 64 bits.
        let mut figures =
            self.figures.query_row(key, |r| codec::figures(r, 0)).optional()?.unwrap_or_default();
        figures.merge(growth);
        self.put_figures.execute(params![
            key.0,
            key.1,
            key.2,
            figures.count as i64,
            figures.value_count as i64,
            SqliteUnits(figures.sum),
            figures.min.map(Decimal::units).map(SqliteUnits),
            figures.max.map(Decimal::units).map(SqliteUnits)
        ])?;
        Ok(())
    }

    fn merge_sketches(&mut self, key: RowKey, delta: &Delta) -> Result<(), StoreError> {
        let stored = |r: &Row<'_>| {
            let (users, values) = (r.get_ref(1)?.as_blob()?, r.get_ref(2)?.as_blob()?);
            Ok((r.get::<_, i64>(0)?, DistinctSketch::decode(users), QuantileSketch::decode(values)))
        };
        match self.sketches.query_row(key, stored).optional()? {
            Some((rowid, distinct, quantiles)) => {
                let (mut distinct, mut quantiles) = (distinct?, quantiles?);
                distinct.merge(&delta.rollup.distinct);
                quantiles.merge(&delta.rollup.quantiles);
                self.update_sketches.execute(params![
                    encoded(|out| distinct.encode(out)),
                    encoded(|out| quantiles.encode(out)),
                    rowid
                ])?;
            }
            None => {
                let (distinct, quantiles) = (&delta.rollup.distinct, &delta.rollup.quantiles);
                self.insert_sketches.execute(params![
                    key.0,
                    key.1,
                    key.2,
                    encoded(|out| distinct.encode(out)),
                    encoded(|out| quantiles.encode(out))
                ])?;
            }
        }
        Ok(())
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}
