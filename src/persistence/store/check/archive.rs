//! Compares the manifest and the floors of the archive with themselves and with the checkpoints.

use std::collections::BTreeMap;

use super::super::byte_columns;
use super::checkpoints::checkpoint_offsets;
use super::{DamageCollector, StoreError, TableReader, TableRow, number, number_32, offset};
use crate::model::manifest::{ManifestRow, ObjectName};
use crate::model::offset::{Epoch, LogId, Offset, OffsetRange, ShardId};

const MANIFEST: &str = "SELECT shard, from_offset, to_offset, log, epoch, nonce, path, \
                        first_appended, last_appended, windows, rows, tier
    FROM manifest ORDER BY shard, from_offset";

pub(super) fn manifest(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    let mut next: BTreeMap<i64, Offset> = BTreeMap::new();
    // The archive of a shard begins at its floor: the objects below have expired.
    tables.for_each_row("SELECT shard, \"offset\" FROM archive_floors", &mut |row| {
        next.insert(number(row, 0)?, offset(row, 1)?);
        Ok(())
    })?;
    tables.for_each_row(MANIFEST, &mut |row| {
        let (shard, range) =
            (number(row, 0)?, OffsetRange { from: offset(row, 1)?, to: offset(row, 2)? });
        let expected = next.insert(shard, range.to).unwrap_or(0);
        let mut wrong = |why: &dyn std::fmt::Display| {
            found.add(
                "manifest",
                format!("shard {shard}, offsets [{}, {}): {why}", range.from, range.to),
            );
        };
        if range.from != expected {
            wrong(&format!("the archive continues here, and {expected} was expected"));
        }
        if let Err(why) = check_object(row, range) {
            wrong(&why);
        }
        Ok(())
    })?;
    for (shard, at) in &next {
        if !checkpoints.contains_key(shard) {
            found.add(
                "manifest",
                format!("there are objects of shard {shard}, which has no checkpoint"),
            );
        } else if let Some(checkpoint) =
            checkpoints.get(shard).filter(|checkpoint| checkpoint.archived != *at)
        {
            found.add(
                "manifest",
                format!(
                    "shard {shard}: the archive ends at {at}, and the checkpoint says {}",
                    checkpoint.archived
                ),
            );
        }
    }
    for (shard, checkpoint) in checkpoints
        .iter()
        .filter(|(shard, checkpoint)| checkpoint.archived > 0 && !next.contains_key(shard))
    {
        found.add(
            "manifest",
            format!(
                "shard {shard}: it is archived up to {}, and there is no object",
                checkpoint.archived
            ),
        );
    }
    Ok(())
}

/// Checks what a manifest row says twice: its path contains log, range and epoch, and its windows
/// add up to its number of events.
fn check_object(row: &dyn TableRow, range: OffsetRange) -> Result<(), String> {
    let unreadable = |why: StoreError| why.to_string();
    let log = <[u8; 16]>::try_from(row.bytes(3).map_err(unreadable)?)
        .map_err(|_| "its log is no id".to_owned())?;
    let (counter, nonce) =
        (offset(row, 4).map_err(unreadable)?, offset(row, 5).map_err(unreadable)?);
    let (path, shard) = (row.text(6).map_err(unreadable)?, number_32(row, 0).map_err(unreadable)?);
    let named = ManifestRow::parse_name(LogId(log), ShardId(shard.cast_unsigned()), path);
    if named != Some(ObjectName { range, epoch: Epoch { counter, nonce } }) {
        return Err(format!("its path is that of another object: {path}"));
    }
    if number(row, 7).map_err(unreadable)? > number(row, 8).map_err(unreadable)? {
        return Err("it ends before it begins".to_owned());
    }
    byte_columns::tier(i16::try_from(number(row, 11).map_err(unreadable)?).unwrap_or(i16::MAX))
        .map_err(|why| why.to_string())?;
    let windows = byte_columns::decode_windows(&row.bytes(9).map_err(unreadable)?)
        .map_err(|why| why.to_string())?;
    let events = windows.iter().fold(0, |sum: u64, window| sum.saturating_add(window.1));
    if events != offset(row, 10).map_err(unreadable)? {
        return Err(format!(
            "its windows have {events} events, and it has {} rows",
            offset(row, 10).map_err(unreadable)?
        ));
    }
    Ok(())
}

pub(super) fn floors(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let checkpoints = checkpoint_offsets(tables)?;
    tables.for_each_row("SELECT shard, \"offset\", hour FROM archive_floors", &mut |row| {
        let (shard, at) = (number(row, 0)?, offset(row, 1)?);
        // Checks the type only: an hour has 32 bits.
        number_32(row, 2)?;
        match checkpoints.get(&shard) {
            None => found.add("archive_floors", format!("shard {shard} has no checkpoint")),
            Some(checkpoint) if at > checkpoint.archived => {
                let archived = checkpoint.archived;
                found.add(
                    "archive_floors",
                    format!("shard {shard}: the archive begins at {at}, and ends at {archived}"),
                );
            }
            Some(_) => {}
        }
        Ok(())
    })
}
