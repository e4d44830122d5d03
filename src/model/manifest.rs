//! Rows of the archive manifest.

use super::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use super::series::SeriesId;
use super::window::{Hour, Millis};

/// Which of the two stores of the archive an object is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Where objects are written.
    Hot,
    /// The cheaper one, where they go when they are old.
    Cold,
}

impl Tier {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Hot => "hot",
            Tier::Cold => "cold",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Tier::Hot => Tier::Cold,
            Tier::Cold => Tier::Hot,
        }
    }
}

/// Where the archive of a shard begins, since older objects expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveFloor {
    /// The records below are gone.
    pub offset: Offset,
    /// Append time of the newest of them.
    pub appended: Millis,
    /// The first window that none of them touched, nor any window behind it. Those before cannot
    /// be recomputed.
    pub hour: Hour,
}

impl ArchiveFloor {
    /// The floor when `row`, the first of its shard, is gone too.
    pub fn after_expiry(before: Option<Self>, row: &ManifestRow) -> Self {
        let touched =
            row.windows.last().map_or(Hour(i32::MIN), |(hour, _)| Hour(hour.0.saturating_add(1)));
        Self {
            offset: row.range.to,
            appended: before.map_or(row.appended.1, |floor| floor.appended.max(row.appended.1)),
            hour: before.map_or(touched, |floor| floor.hour.max(touched)),
        }
    }
}

/// What was decided about the records of a range and does not follow from them: a store that is
/// rebuilt decides alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeDecisions {
    /// The series that the shard admitted there, each with the offset of its admission.
    pub admitted: Vec<(SeriesId, Offset)>,
    /// The events that were set aside, as offset and index, and whether they were given up by
    /// then.
    pub quarantined: Vec<(Offset, u32, bool)>,
}

/// What a rebuild writes of a shard beside its flushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRestore {
    /// The shard.
    pub shard: ShardId,
    /// Where it stands. `next` counts only where the shard is not known yet: from then on, flushes
    /// move it.
    pub checkpoint: Checkpoint,
    /// Where its archive begins, if something expired.
    pub floor: Option<ArchiveFloor>,
    /// Objects of its archive: each replaces those at and behind its first record.
    pub manifest: Vec<ManifestRow>,
    /// Series of the catalogue that this shard admitted, another one having flushed them first.
    pub admitted: Vec<(SeriesId, Offset)>,
}

/// What an object's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectName {
    /// The records inside.
    pub range: OffsetRange,
    /// Epoch of the owner that wrote it.
    pub epoch: Epoch,
}

/// One archive object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRow {
    /// The log of the offsets.
    pub log: LogId,
    /// The shard.
    pub shard: ShardId,
    /// The records inside.
    pub range: OffsetRange,
    /// Epoch of the owner that wrote it.
    pub epoch: Epoch,
    /// Path below the archive's root.
    pub path: String,
    /// Append time of the first and last record.
    pub appended: (Millis, Millis),
    /// The least and the greatest time at which a record was received.
    pub received: (Millis, Millis),
    /// The windows touched, ascending, with the number of events each.
    pub windows: Vec<(Hour, u64)>,
    /// Events.
    pub rows: u64,
    /// Raw bytes of the events.
    pub raw_bytes: u64,
    /// Size of the object.
    pub bytes: u64,
    /// CRC32C of the object.
    pub crc32c: u32,
    /// Where the object was verified last. It is a hint where to look first: while it is being
    /// moved it is in both places.
    pub tier: Tier,
}

impl ManifestRow {
    /// What the names of all objects of a log begin with.
    pub fn log_prefix(log: LogId) -> String {
        format!("raw/log={log}/")
    }

    /// What the names of all objects of a shard begin with.
    pub fn shard_prefix(log: LogId, shard: ShardId) -> String {
        format!("{}shard={:04}/", Self::log_prefix(log), shard.0)
    }

    /// The object's name: log, shard, range and epoch, so that two owners can never overwrite each
    /// other.
    pub fn object_path(log: LogId, shard: ShardId, range: OffsetRange, epoch: Epoch) -> String {
        format!(
            "{}{:020}-{:020}-{:010}-{:016x}.parquet",
            Self::shard_prefix(log, shard),
            range.from,
            range.to,
            epoch.counter,
            epoch.nonce
        )
    }

    /// What the name of an object of this shard says; `None` if it is not the name of one.
    pub fn parse_name(log: LogId, shard: ShardId, path: &str) -> Option<ObjectName> {
        let name = path.strip_prefix(&Self::shard_prefix(log, shard))?.strip_suffix(".parquet")?;
        let mut parts = name.split('-');
        let (from, to) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let epoch = Epoch {
            counter: parts.next()?.parse().ok()?,
            nonce: u64::from_str_radix(parts.next()?, 16).ok()?,
        };
        let range = OffsetRange::new(from, to).filter(|range| !range.is_empty())?;
        (Self::object_path(log, shard, range, epoch) == path).then_some(ObjectName { range, epoch })
    }
}

/// Whether the ranges tile `[floor, archived)` without gap or overlap.
///
/// # Errors
/// Names the first place where they do not.
pub fn check_tiling<'a>(
    rows: impl IntoIterator<Item = &'a ManifestRow>,
    floor: Offset,
    archived: Offset,
) -> Result<(), String> {
    let mut next = floor;
    for row in rows {
        if row.range.from != next {
            return Err(format!(
                "the archive continues at offset {} where {next} was expected",
                row.range.from
            ));
        }
        next = row.range.to;
    }
    if next == archived {
        Ok(())
    } else {
        Err(format!("the archive ends at offset {next}, the checkpoint says {archived}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let (log, shard, epoch) =
            (LogId([7; 16]), ShardId(12), Epoch { counter: 3, nonce: u64::MAX - 1 });
        let range = OffsetRange { from: 5, to: 70 };
        let path = ManifestRow::object_path(log, shard, range, epoch);
        assert_eq!(ManifestRow::parse_name(log, shard, &path), Some(ObjectName { range, epoch }));
        let empty = ManifestRow::object_path(log, shard, OffsetRange { from: 5, to: 5 }, epoch);
        let others =
            [path.replace(".parquet", ".tmp"), path.replace("-0", "-"), empty, String::new()];
        assert!(others.iter().all(|other| ManifestRow::parse_name(log, shard, other).is_none()));
        assert_eq!(ManifestRow::parse_name(log, ShardId(1), &path), None);
    }
}
