//! Compares what is stored of generations with their book, which says what there is.

use std::collections::BTreeMap;

use super::checkpoints::checkpoint_offsets;
use super::{DamageCollector, StoreError, TableReader, number, offset};
use crate::model::generation::GenerationId;
use crate::model::generation_book::GenerationBook;

pub(super) fn generations(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let Some(book) = book(tables, found)? else { return Ok(()) };
    let is_known =
        |generation: i64| book.generations().contains_key(&GenerationId(generation as u64));
    tables.for_each_row("SELECT shard, set_version FROM shards", &mut |row| {
        let (shard, version) = (number(row, 0)?, offset(row, 1)?);
        if book.set(version).is_none() {
            found.add("shards", format!("shard {shard}: the book has no set {version}"));
        }
        Ok(())
    })?;
    tables.for_each_row(
        "SELECT no, generation FROM metrics WHERE generation <> 0",
        &mut |row| {
            let (no, generation) = (number(row, 0)?, number(row, 1)?);
            if !is_known(generation) {
                found.add(
                    "metrics",
                    format!("metric {no}: the book has no generation {generation}"),
                );
            }
            Ok(())
        },
    )?;
    let sql = "SELECT s.no, s.part, m.generation FROM series s JOIN metrics m ON m.no = s.metric_no \
               WHERE (s.part = 0) <> (m.generation = 0) OR s.part < 0 OR s.part > 2";
    tables.for_each_row(sql, &mut |row| {
        let (no, part, generation) = (number(row, 0)?, number(row, 1)?, number(row, 2)?);
        found.add("series", format!("series {no}: generation {generation} has no part {part}"));
        Ok(())
    })?;
    fills(tables, &is_known, found)?;
    for table in ["generation_dropped", "generation_rules"] {
        counts(tables, table, &is_known, found)?;
    }
    Ok(())
}

/// The book, or `None` if it is damaged. A store that never had a generation has none, or one of
/// version 0.
fn book(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<Option<GenerationBook>, StoreError> {
    let mut book = Some(GenerationBook::default());
    let sql = "SELECT version, document FROM generation_book WHERE version <> 0";
    tables.for_each_row(sql, &mut |row| {
        let version = offset(row, 0)?;
        let why = match serde_json::from_str::<GenerationBook>(row.text(1)?) {
            Ok(read) if read.version() == version => {
                book = Some(read);
                return Ok(());
            }
            Ok(read) => format!("version {version} holds that of version {}", read.version()),
            Err(why) => format!("version {version} does not decode: {why}"),
        };
        book = None;
        found.add("generation_book", why);
        Ok(())
    })?;
    Ok(book)
}

fn fills(
    tables: &mut dyn TableReader,
    is_known: &dyn Fn(i64) -> bool,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    let sql = "SELECT generation, shard, cut, cursor FROM generation_fills";
    tables.for_each_row(sql, &mut |row| {
        let (generation, shard) = (number(row, 0)?, number(row, 1)?);
        let (cut, cursor) = (offset(row, 2)?, offset(row, 3)?);
        let mut wrong = |why: &dyn std::fmt::Display| {
            found.add("generation_fills", format!("generation {generation}, shard {shard}: {why}"));
        };
        if !is_known(generation) {
            wrong(&"the book does not have it");
        }
        if cursor > cut {
            wrong(&format!("its cursor {cursor} is beyond the cut {cut}"));
        }
        match checkpoints.get(&shard) {
            None => wrong(&"the shard has no checkpoint"),
            Some(checkpoint) if cut > checkpoint.next => {
                wrong(&format!("its cut {cut} is beyond the checkpoint {}", checkpoint.next));
            }
            Some(_) => {}
        }
        Ok(())
    })
}

/// Counts of what the rules of generations did to events.
fn counts(
    tables: &mut dyn TableReader,
    table: &'static str,
    is_known: &dyn Fn(i64) -> bool,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let mut wrong: BTreeMap<i64, &str> = BTreeMap::new();
    let sql = format!("SELECT generation, part, events FROM {table}");
    tables.for_each_row(&sql, &mut |row| {
        let (generation, part, events) = (number(row, 0)?, number(row, 1)?, number(row, 2)?);
        if !is_known(generation) {
            wrong.insert(generation, "the book does not have it");
        } else if !(1..=2).contains(&part) {
            wrong.insert(generation, "events were counted by no known writer");
        } else if events < 1 {
            wrong.insert(generation, "a count is less than one");
        }
        Ok(())
    })?;
    for (generation, why) in wrong {
        found.add(table, format!("generation {generation}: {why}"));
    }
    Ok(())
}
