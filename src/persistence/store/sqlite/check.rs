//! Looks for damage: SQLite's own structures, contradictions ([`super::super::check`]), and rows
//! whose checksum does not match.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::catalogue::{admission_checksum, writer};
use super::{StoreDamage, StoreError, checksums, generations, manifest, rows};
use crate::model::flush::{DroppedEvents, RuleEvents};
use crate::model::generation::GenerationId;
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::model::series::SeriesId;
use crate::persistence::store::check::{self, DamageCollector, RowVisitor, TableReader, TableRow};

type ChecksumCheck = fn(&Connection, &mut DamageCollector<'_>) -> Result<(), StoreError>;

/// The checks of rows against their checksums, each with the table that is named if it cannot be
/// read.
const CHECKSUM_CHECKS: [(&str, ChecksumCheck); 19] = [
    ("the file", structure),
    ("sqlite_sequence", metric_numbers),
    ("series", series),
    ("revisions", revisions),
    ("shards", shards),
    ("archive_floors", floors),
    ("dedup", dedup),
    ("dedup_rules", dedup_rules),
    ("outcome_notes", outcome_notes),
    ("suspects", suspects),
    ("expiry", expiry),
    ("manifest", manifest),
    ("quarantine", quarantine),
    ("generation_book", generation_book),
    ("generation_fills", generation_fills),
    ("generation_dropped", generation_dropped),
    ("generation_rules", generation_rules),
    ("generation_audit", generation_audit),
    ("boards", boards),
];

/// Runs all checks. Fails only if no transaction can be started.
pub(super) fn check(
    connection: &Connection,
    sink: &mut dyn FnMut(StoreDamage),
) -> Result<(), StoreError> {
    // A read transaction, so all checks see one state; dropping it rolls back.
    let tx = connection.unchecked_transaction()?;
    let mut found = DamageCollector::new(sink);
    for (table, look) in CHECKSUM_CHECKS {
        if let Err(why) = look(&tx, &mut found) {
            found.add(table, format!("it cannot be read: {why}"));
        }
    }
    check::find_contradictions(&mut ConnectionTables(&tx), &mut found)?;
    found.finish();
    Ok(())
}

struct ConnectionTables<'a>(&'a Connection);

impl TableReader for ConnectionTables<'_> {
    fn for_each_row(&mut self, sql: &str, visit: &mut RowVisitor<'_>) -> Result<(), StoreError> {
        let mut statement = self.0.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            visit(row)?;
        }
        Ok(())
    }

    fn hour_ranges(&mut self) -> Result<Vec<(i64, i64)>, StoreError> {
        Ok(vec![(i64::from(i32::MIN), i64::from(i32::MAX) + 1)])
    }

    fn recover(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl TableRow for Row<'_> {
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

/// Runs SQLite's own check of its trees, and of every index against its table.
fn structure(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    // `quick_check` would not compare an index with its table (ADR 31).
    let mut statement = sql.prepare("PRAGMA integrity_check(100)")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let line: String = row.get(0)?;
        if line != "ok" {
            found.add("the file", line);
        }
    }
    Ok(())
}

/// Looks at what gives metrics their numbers: a number must never be given again, because rows of
/// a metric that is gone may still be on their way out.
fn metric_numbers(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let last: i64 = sql.query_row("SELECT coalesce(max(no), 0) FROM metrics", [], |r| r.get(0))?;
    let mut statement = sql.prepare("SELECT rowid, name, seq FROM sqlite_sequence")?;
    let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
    let rows: Vec<(i64, String, i64)> = rows.collect::<Result<_, _>>()?;
    let is_right = match &rows[..] {
        [] => last == 0,
        [(1, name, given)] => name == "metrics" && *given >= last,
        _ => false,
    };
    if !is_right {
        let why = format!("metrics have numbers up to {last}, and it has {rows:?}");
        found.add("sqlite_sequence", why);
    }
    Ok(())
}

fn series(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    // A series without its metric is reported here too: its generation is unknown.
    let mut statement = sql.prepare(
        "SELECT s.no, s.id, s.shard, s.admitted_offset, s.sum, s.part, coalesce(m.generation, -1) \
         FROM series s LEFT JOIN metrics m ON m.no = s.metric_no",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let no: i64 = row.get(0)?;
        let admitted = <[u8; 16]>::try_from(&row.get::<_, Vec<u8>>(1)?[..]).map(|id| {
            let by = (row.get(6)?, ShardId(row.get(2)?), row.get(5)?);
            let at = row.get::<_, i64>(3)? as Offset;
            Ok::<_, StoreError>(admission_checksum(SeriesId(id), by, at))
        });
        if row.get::<_, Option<i64>>(4)? != admitted.ok().transpose()? {
            found.add("series", format!("series {no}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn revisions(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT metric_no, day, revision, sum FROM revisions")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (metric, day, revision): (i64, i32, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if row.get::<_, Option<i64>>(3)? != Some(rows::revision_checksum(metric, day, revision)) {
            found.add("revisions", format!("metric {metric}, day {day}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn shards(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT shard, sum FROM shards")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (shard, sum): (u32, Option<i64>) = (row.get(0)?, row.get(1)?);
        if sum != Some(checksums::shard_checksum(sql, ShardId(shard))?) {
            found.add("shards", format!("shard {shard}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn floors(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement =
        sql.prepare("SELECT shard, offset, appended, hour, sum FROM archive_floors")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (shard, sum): (u32, Option<i64>) = (row.get(0)?, row.get(4)?);
        if sum != Some(checksums::floor_checksum(ShardId(shard), manifest::floor(row, 1)?)) {
            found.add("archive_floors", format!("shard {shard}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn quarantine(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    for rows::KeptQuarantineRow { row, sum, .. } in rows::quarantine_rows(sql)? {
        if sum != Some(checksums::quarantine_checksum(&row)) {
            found.add(
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

fn dedup(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    for (shard, range, appended, sum) in checksums::block_locations(sql)? {
        if sum != Some(checksums::block_checksum(shard, range, appended)) {
            found.add(
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

fn dedup_rules(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    for (shard, from, rule, sum) in checksums::all_dedup_rules(sql)? {
        if sum != Some(checksums::rule_checksum(shard, from, rule)) {
            found.add("dedup_rules", format!("shard {shard}, offset {from}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn outcome_notes(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement =
        sql.prepare("SELECT shard, from_offset, to_offset, sum FROM outcome_notes")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let shard = ShardId(row.get(0)?);
        let (from, to) = (row.get::<_, i64>(1)? as Offset, row.get::<_, i64>(2)? as Offset);
        let sum = checksums::note_checksum(shard, OffsetRange { from, to });
        if row.get::<_, Option<i64>>(3)? != Some(sum) {
            found.add(
                "outcome_notes",
                format!("shard {shard}, offsets [{from}, {to}): damaged (checksum)"),
            );
        }
    }
    Ok(())
}

fn suspects(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    for (shard, suspect, sum) in checksums::all_suspects(sql)? {
        if sum != Some(checksums::suspect_checksum(shard, suspect)) {
            let (offset, index) = (suspect.offset, suspect.index);
            found.add(
                "suspects",
                format!("shard {shard}, offset {offset}, event {index}: damaged (checksum)"),
            );
        }
    }
    Ok(())
}

fn expiry(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT shard, note, said, sum FROM expiry")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (of, note, said): (i32, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if row.get::<_, Option<i64>>(3)? != Some(checksums::expiry_checksum(of, &note, said)) {
            found.add("expiry", format!("the note of {of}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn manifest(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    for (row, sum) in rows::manifest_checksums(sql)? {
        match row {
            Ok(row) if sum != Some(checksums::manifest_checksum(&row)) => {
                found.add(
                    "manifest",
                    format!("shard {}, {}: damaged (checksum)", row.shard, row.path),
                );
            }
            // Rows that do not decode are reported by the check for contradictions.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn generation_book(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare("SELECT version, document, sum FROM generation_book")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (version, document) = (row.get::<_, i64>(0)? as u64, row.get::<_, String>(1)?);
        let sum = checksums::book_checksum(version, &document);
        if row.get::<_, Option<i64>>(2)? != Some(sum) {
            found.add("generation_book", format!("version {version}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn generation_fills(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement =
        sql.prepare("SELECT log, cut, cursor, generation, shard, sum FROM generation_fills")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let generation = GenerationId(row.get::<_, i64>(3)? as u64);
        let shard = ShardId(row.get(4)?);
        let sum = checksums::fill_checksum(generation, shard, &generations::progress(row)?);
        if row.get::<_, Option<i64>>(5)? != Some(sum) {
            let why = format!("generation {generation}, shard {shard}: damaged (checksum)");
            found.add("generation_fills", why);
        }
    }
    Ok(())
}

fn generation_dropped(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare(
        "SELECT generation, shard, part, tenant, metric, day, events, sum FROM generation_dropped",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let generation = GenerationId(row.get::<_, i64>(0)? as u64);
        let (tenant, metric, day) = (row.get(3)?, row.get(4)?, row.get(5)?);
        let events = row.get::<_, i64>(6)? as u64;
        let dropped = DroppedEvents { tenant, metric, day, events };
        let sum = writer(row.get(1)?, row.get(2)?)
            .map(|by| checksums::dropped_checksum(generation, by, &dropped));
        if row.get::<_, Option<i64>>(7)? != sum.ok() {
            let DroppedEvents { tenant, metric, .. } = dropped;
            let why = format!("generation {generation}, {tenant}/{metric}, day {day}: damaged");
            found.add("generation_dropped", format!("{why} (checksum)"));
        }
    }
    Ok(())
}

fn generation_rules(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare(
        "SELECT generation, shard, part, rule, outcome, events, sum FROM generation_rules",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let generation = GenerationId(row.get::<_, i64>(0)? as u64);
        let events = row.get::<_, i64>(5)? as u64;
        let counted = RuleEvents { rule: row.get(3)?, outcome: row.get(4)?, events };
        let sum = writer(row.get(1)?, row.get(2)?)
            .map(|by| checksums::rule_events_checksum(generation, by, &counted));
        if row.get::<_, Option<i64>>(6)? != sum.ok() {
            let RuleEvents { rule, outcome, .. } = counted;
            let why = format!("generation {generation}, rule {rule}, {outcome}: damaged");
            found.add("generation_rules", format!("{why} (checksum)"));
        }
    }
    Ok(())
}

fn boards(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    for (tenant, board, sum) in super::boards::all(sql)? {
        if sum != Some(super::boards::checksum(&tenant, &board)) {
            let id = board.id.as_str();
            found.add("boards", format!("board {id} of {tenant}: damaged (checksum)"));
        }
    }
    Ok(())
}

fn generation_audit(sql: &Connection, found: &mut DamageCollector<'_>) -> Result<(), StoreError> {
    let mut statement = sql.prepare(
        "SELECT generation, tenant, action, at, by, note, no, sum FROM generation_audit",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let sum = checksums::audit_checksum(&generations::audit_entry(row)?);
        if row.get::<_, Option<i64>>(7)? != Some(sum) {
            let no: i64 = row.get(6)?;
            found.add("generation_audit", format!("entry {no}: damaged (checksum)"));
        }
    }
    Ok(())
}
