//! Finds contradictions in a store of tables: the catalogue against the keys of the series,
//! orphaned rows, blocks and objects against their own metadata, and everything against the
//! checkpoints.
//!
//! The statements are the same for every SQL store; [`TableReader`] runs them. All of them read one
//! state, so a node may keep writing meanwhile. A table that cannot be read is reported as damage,
//! and the rest is still checked.

mod archive;
mod catalogue;
mod checkpoints;
mod generations;
mod rollups;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::{StoreDamage, StoreError};
use crate::model::expiry::ExpiryState;
use crate::model::offset::Offset;

/// Most findings per table that are reported one by one; the rest is reported as a number.
const MAX_REPORTED: usize = 10;

/// Passes findings on, at most [`MAX_REPORTED`] for each table.
pub(super) struct DamageCollector<'a> {
    sink: &'a mut dyn FnMut(StoreDamage),
    counts: BTreeMap<&'static str, usize>,
}

impl<'a> DamageCollector<'a> {
    pub(super) fn new(sink: &'a mut dyn FnMut(StoreDamage)) -> Self {
        Self { sink, counts: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, table: &'static str, why: impl std::fmt::Display) {
        let count = self.counts.entry(table).or_default();
        *count += 1;
        if *count <= MAX_REPORTED {
            (self.sink)(StoreDamage { location: table.to_owned(), reason: why.to_string() });
        }
    }

    pub(super) fn finish(self) {
        for (table, count) in self.counts.into_iter().filter(|(_, count)| *count > MAX_REPORTED) {
            (self.sink)(StoreDamage {
                location: table.to_owned(),
                reason: format!("and {} more", count - MAX_REPORTED),
            });
        }
    }
}

/// One row of a result, by column index.
pub(super) trait TableRow {
    fn int(&self, at: usize) -> Result<Option<i64>, StoreError>;
    fn text(&self, at: usize) -> Result<&str, StoreError>;
    /// A column of bytes, or an id, for which some stores have a type of its own.
    fn bytes(&self, at: usize) -> Result<Vec<u8>, StoreError>;
}

/// A column that must not be null.
fn number(row: &dyn TableRow, at: usize) -> Result<i64, StoreError> {
    row.int(at)?.ok_or_else(|| StoreError::Invalid(format!("column {at} is absent")))
}

fn number_32(row: &dyn TableRow, at: usize) -> Result<i32, StoreError> {
    let found = number(row, at)?;
    i32::try_from(found)
        .map_err(|_| StoreError::Invalid(format!("column {at} is {found}, which is too large")))
}

fn offset(row: &dyn TableRow, at: usize) -> Result<Offset, StoreError> {
    Ok(number(row, at)? as Offset)
}

pub(super) type RowVisitor<'v> = dyn FnMut(&dyn TableRow) -> Result<(), StoreError> + 'v;

/// Reads the tables of a store, all in the same state.
pub(super) trait TableReader {
    /// Visits the rows of a statement.
    fn for_each_row(&mut self, sql: &str, visit: &mut RowVisitor<'_>) -> Result<(), StoreError>;
    /// Half-open ranges of hours that together cover all rollups and sketches. Each is as much as
    /// one statement should read.
    fn hour_ranges(&mut self) -> Result<Vec<(i64, i64)>, StoreError>;
    /// Numbers of the metrics whose span in the catalogue may be wider than their rows.
    fn metrics_with_wide_spans(&mut self) -> Result<BTreeSet<i64>, StoreError> {
        Ok(BTreeSet::new())
    }
    /// Called after a failed statement; fails if no further statement can run.
    fn recover(&mut self) -> Result<(), StoreError>;
}

type TableCheck = fn(&mut dyn TableReader, &mut DamageCollector<'_>) -> Result<(), StoreError>;

/// All checks, each with the table that is named if it cannot be read.
const TABLE_CHECKS: [(&str, TableCheck); 13] = [
    ("series", catalogue::catalogue),
    ("rollups", rollups::orphan_rollups),
    ("sketches", rollups::orphan_sketches),
    ("revisions", rollups::revisions),
    ("series", checkpoints::admissions),
    ("dedup", checkpoints::dedup),
    ("outcome_notes", checkpoints::outcome_notes),
    ("manifest", archive::manifest),
    ("archive_floors", archive::floors),
    ("quarantine", checkpoints::quarantine),
    ("accounting", accounting),
    ("expiry", expiry),
    ("generation_book", generations::generations),
];

/// Runs all checks. Fails if a failed statement leaves the store unreadable
/// ([`TableReader::recover`]).
pub(super) fn find_contradictions(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    for (table, look) in TABLE_CHECKS {
        if let Err(why) = look(tables, found) {
            // PostgreSQL refuses all further statements of a transaction after a failed one.
            tables.recover()?;
            found.add(table, format!("it cannot be read: {why}"));
        }
    }
    Ok(())
}

fn accounting(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let sql = "SELECT tenant, hour FROM accounting WHERE aggregated < 0 OR deduplicated < 0 OR \
               quarantined < 0";
    tables.for_each_row(sql, &mut |row| {
        found.add(
            "accounting",
            format!(
                "tenant {:?}, hour {}: there are fewer than no events",
                row.text(0)?,
                number(row, 1)?
            ),
        );
        Ok(())
    })
}

fn expiry(tables: &mut dyn TableReader, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    tables.for_each_row("SELECT shard, note FROM expiry", &mut |row| {
        if let Err(why) = serde_json::from_str::<ExpiryState>(row.text(1)?) {
            found.add("expiry", format!("the note of {} does not decode: {why}", number(row, 0)?));
        }
        Ok(())
    })
}
