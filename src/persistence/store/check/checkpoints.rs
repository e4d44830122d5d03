//! Finds rows of flushes that contradict the checkpoint of their shard.

use std::collections::BTreeMap;

use super::super::byte_columns;
use super::{DamageCollector, StoreError, TableReader, number, offset};
use crate::model::offset::Offset;

/// The offsets of a shard's checkpoint that other rows can contradict.
pub(super) struct CheckpointOffsets {
    pub(super) next: Offset,
    pub(super) archived: Offset,
}

pub(super) fn checkpoint_offsets(
    tables: &mut dyn TableReader,
) -> Result<BTreeMap<i64, CheckpointOffsets>, StoreError> {
    let mut checkpoints = BTreeMap::new();
    tables.for_each_row("SELECT shard, next, archived FROM shards", &mut |row| {
        checkpoints.insert(
            number(row, 0)?,
            CheckpointOffsets { next: offset(row, 1)?, archived: offset(row, 2)? },
        );
        Ok(())
    })?;
    Ok(checkpoints)
}

/// Checks that a row written by a flush belongs to a record below the checkpoint: both were
/// written in one transaction.
fn below_checkpoint(
    checkpoints: &BTreeMap<i64, CheckpointOffsets>,
    shard: i64,
    at: Offset,
) -> Result<(), String> {
    match checkpoints.get(&shard) {
        None => Err(format!("shard {shard} has no checkpoint")),
        Some(checkpoint) if at >= checkpoint.next => Err(format!(
            "it is of offset {at} of shard {shard}, and everything there is below {}",
            checkpoint.next
        )),
        Some(_) => Ok(()),
    }
}

pub(super) fn admissions(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    tables.for_each_row(
        "SELECT shard, max(admitted_offset), min(admitted_offset) FROM series GROUP BY shard",
        &mut |row| {
            // Offsets are stored as signed integers with the same bits: negative ones are the
            // greatest.
            let at = match offset(row, 2)? {
                least if (least as i64) < 0 => least,
                _ => offset(row, 1)?,
            };
            if let Err(why) = below_checkpoint(&checkpoints, number(row, 0)?, at) {
                found.add("series", format!("an admission contradicts the checkpoint: {why}"));
            }
            Ok(())
        },
    )
}

pub(super) fn dedup(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    let mut shards = Vec::new();
    tables.for_each_row("SELECT DISTINCT shard FROM dedup", &mut |row| {
        shards.push(number(row, 0)?);
        Ok(())
    })?;
    // Blocks are large, so only those of one shard are read at a time.
    for shard in shards {
        let sql = format!(
            "SELECT from_offset, to_offset, first_appended, last_appended, block FROM dedup WHERE \
             shard = {shard} ORDER BY from_offset"
        );
        let mut previous_end = 0;
        tables.for_each_row(&sql, &mut |row| {
            let (from, to) = (offset(row, 0)?, offset(row, 1)?);
            let mut wrong = |why: &dyn std::fmt::Display| {
                found.add("dedup", format!("shard {shard}, offsets [{from}, {to}): {why}"));
            };
            if from >= to {
                wrong(&"its offsets are no range");
            } else if let Err(why) = below_checkpoint(&checkpoints, shard, to - 1) {
                wrong(&why);
            }
            if from < previous_end {
                wrong(&format!("the block before it ends at {previous_end}"));
            }
            previous_end = to;
            match byte_columns::decode_runs(&row.bytes(4)?) {
                Err(why) => wrong(&why),
                Ok(runs) => {
                    let times =
                        runs.first().zip(runs.last()).map(|(first, last)| (first.0, last.0));
                    if times != Some((number(row, 2)?, number(row, 3)?)) {
                        wrong(&"its append times are not those of its ids");
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

pub(super) fn outcome_notes(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    let mut previous_end = (0, 0);
    let sql = "SELECT shard, from_offset, to_offset, events FROM outcome_notes ORDER BY shard, \
               from_offset";
    tables.for_each_row(sql, &mut |row| {
        let (shard, from, to) = (number(row, 0)?, offset(row, 1)?, offset(row, 2)?);
        let mut wrong = |why: &dyn std::fmt::Display| {
            found.add("outcome_notes", format!("shard {shard}, offsets [{from}, {to}): {why}"));
        };
        if from >= to {
            wrong(&"its offsets are no range");
        } else if let Err(why) = below_checkpoint(&checkpoints, shard, to - 1) {
            wrong(&why);
        }
        if let Some(at) = checkpoints.get(&shard).filter(|at| to <= at.archived) {
            wrong(&format!("the archive has everything below {} already", at.archived));
        }
        if shard == previous_end.0 && from < previous_end.1 {
            wrong(&format!("the note before it ends at {}", previous_end.1));
        }
        previous_end = (shard, to);
        match byte_columns::decode_note(&row.bytes(3)?) {
            Err(why) => wrong(&why),
            Ok(note) if note.is_empty() => wrong(&"it notes nothing"),
            Ok(note) => {
                if note.iter().any(|event| event.offset < from || event.offset >= to) {
                    wrong(&"it notes events of other records");
                }
            }
        }
        Ok(())
    })?;
    let sql = "SELECT shard, noted_from, noted_to, next FROM shards WHERE noted_from IS NOT NULL";
    tables.for_each_row(sql, &mut |row| {
        let (shard, from, to) = (number(row, 0)?, offset(row, 1)?, offset(row, 2)?);
        if from > to || to > offset(row, 3)? {
            found.add(
                "outcome_notes",
                format!(
                    "shard {shard}: outcomes are noted of [{from}, {to}), which is no range below \
                         the checkpoint"
                ),
            );
        }
        Ok(())
    })
}

pub(super) fn quarantine(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    tables.for_each_row("SELECT shard, \"offset\", idx FROM quarantine", &mut |row| {
        if let Err(why) = below_checkpoint(&checkpoints, number(row, 0)?, offset(row, 1)?) {
            found.add("quarantine", format!("event {}: {why}", number(row, 2)?));
        }
        Ok(())
    })
}
