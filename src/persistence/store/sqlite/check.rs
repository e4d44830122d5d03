//! Looks for damage: SQLite's own structures, what contradicts itself ([`super::super::check`]),
//! and rows that nothing else gives again against their checksums.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::catalogue::admission_sum;
use super::{Damage, StoreError, admin, rows};
use crate::model::offset::{Offset, ShardId};
use crate::model::series::SeriesId;
use crate::persistence::store::check::{self, Columns, Found, Tables, VisitRow};

type Look = fn(&Connection, &mut Found<'_>) -> Result<(), StoreError>;

/// Rows that have a checksum, with the table that is named if they cannot be read.
const LOOKS: [(&str, Look); 11] = [
    ("the file", structure),
    ("series", series),
    ("revisions", revisions),
    ("shards", shards),
    ("archive_floors", floors),
    ("dedup", dedup),
    ("dedup_rules", dedup_rules),
    ("suspects", suspects),
    ("expiry", expiry),
    ("manifest", manifest),
    ("quarantine", quarantine),
];

/// Looks at everything.
///
/// # Errors
/// If no transaction can be begun.
pub(super) fn check(
    connection: &Connection,
    tell: &mut dyn FnMut(Damage),
) -> Result<(), StoreError> {
    // Read only: it ends by being rolled back.
    let tx = connection.unchecked_transaction()?;
    let mut found = Found::new(tell);
    for (table, look) in LOOKS {
        if let Err(why) = look(&tx, &mut found) {
            found.damage(table, format!("it cannot be read: {why}"));
        }
    }
    check::contradictions(&mut View(&tx), &mut found)?;
    found.end();
    Ok(())
}

struct View<'a>(&'a Connection);

impl Tables for View<'_> {
    fn each(&mut self, sql: &str, visit: &mut VisitRow<'_>) -> Result<(), StoreError> {
        let mut statement = self.0.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            visit(row)?;
        }
        Ok(())
    }

    fn pieces(&mut self) -> Result<Vec<(i64, i64)>, StoreError> {
        Ok(vec![(i64::from(i32::MIN), i64::from(i32::MAX) + 1)])
    }

    fn recover(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Columns for Row<'_> {
    fn int(&self, at: usize) -> Result<Option<i64>, StoreError> {
        Ok(self.get(at)?)
    }

    fn text(&self, at: usize) -> Result<&str, StoreError> {
        self.get_ref(at)?.as_str().map_err(|e| StoreError::Invalid(e.to_string()))
    }

    fn bytes(&self, at: usize) -> Result<Vec<u8>, StoreError> {
        match self.get_ref(at)? {
            ValueRef::Blob(bytes) => Ok(bytes.to_vec()),
            other => Err(StoreError::Invalid(format!(
                "column {at} is {} and no blob",
                other.data_type()
            ))),
        }
    }
}

/// Trees, and whether every index has the rows of its table.
fn structure(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("PRAGMA integrity_check(100)")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let line: String = row.get(0)?;
        if line != "ok" {
            found.damage("the file", line);
        }
    }
    Ok(())
}

fn series(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT no, id, shard, admitted_offset, sum FROM series")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let no: i64 = row.get(0)?;
        let admitted = <[u8; 16]>::try_from(&row.get::<_, Vec<u8>>(1)?[..]).map(|id| {
            let (shard, at) = (row.get(2)?, row.get::<_, i64>(3)? as Offset);
            Ok::<_, StoreError>(admission_sum(SeriesId(id), ShardId(shard), at))
        });
        if row.get::<_, Option<i64>>(4)? != admitted.ok().transpose()? {
            found.damage("series", format!("series {no}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn revisions(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT metric_no, day, revision, sum FROM revisions")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (metric, day, revision): (i64, i32, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if row.get::<_, Option<i64>>(3)? != Some(rows::revision_sum(metric, day, revision)) {
            found.damage("revisions", format!("metric {metric}, day {day}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn shards(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT shard, sum FROM shards")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (shard, sum): (u32, Option<i64>) = (row.get(0)?, row.get(1)?);
        if sum != Some(admin::shard_sum(sql, ShardId(shard))?) {
            found.damage("shards", format!("shard {shard}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn floors(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement =
        sql.prepare("SELECT shard, offset, appended, hour, sum FROM archive_floors")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (shard, sum): (u32, Option<i64>) = (row.get(0)?, row.get(4)?);
        if sum != Some(admin::floor_sum(ShardId(shard), admin::floor(row, 1)?)) {
            found.damage("archive_floors", format!("shard {shard}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn quarantine(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    for (row, sum) in rows::quarantine_rows(sql)? {
        if sum != Some(admin::quarantine_sum(&row)) {
            found.damage(
                "quarantine",
                format!(
                    "shard {}, offset {}, event {}: damaged (checksum)",
                    row.shard, row.offset, row.index
                ),
            );
        }
    }
    Ok(())
}

fn dedup(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    for (shard, range, appended, sum) in admin::blocks(sql)? {
        if sum != Some(admin::block_sum(shard, range, appended)) {
            found.damage(
                "dedup",
                format!(
                    "shard {shard}, offsets [{}, {}): damaged (checksum)",
                    range.from, range.to
                ),
            );
        }
    }
    Ok(())
}

fn dedup_rules(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    for (shard, from, rule, sum) in admin::rules(sql)? {
        if sum != Some(admin::rule_sum(shard, from, rule)) {
            found
                .damage("dedup_rules", format!("shard {shard}, offset {from}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn suspects(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    for (shard, suspect, sum) in admin::all_suspects(sql)? {
        if sum != Some(admin::suspect_sum(shard, suspect)) {
            let (offset, index) = (suspect.offset, suspect.index);
            found.damage(
                "suspects",
                format!("shard {shard}, offset {offset}, event {index}: damaged (checksum)"),
            );
        }
    }
    Ok(())
}

fn expiry(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT shard, note, said, sum FROM expiry")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (of, note, said): (i32, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if row.get::<_, Option<i64>>(3)? != Some(admin::expiry_sum(of, &note, said)) {
            found.damage("expiry", format!("the note of {of}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn manifest(sql: &Connection, found: &mut Found<'_>) -> Result<(), StoreError> {
    for (row, sum) in rows::manifest_sums(sql)? {
        match row {
            Ok(row) if sum != Some(admin::manifest_sum(&row)) => {
                found.damage(
                    "manifest",
                    format!("shard {}, {}: damaged (checksum)", row.shard, row.path),
                );
            }
            // What does not decode is told with what contradicts itself.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}
