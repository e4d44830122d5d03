//! Rows of the archive manifest, and the names of archive objects.

use super::generation::GenerationId;
use super::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use super::outcome::OutcomeNote;
use super::series::SeriesId;
use super::window::{Hour, Millis};

/// Which of the archive's two object stores holds an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The tier that objects are written to.
    Hot,
    /// The cheaper tier that old objects are moved to.
    Cold,
}

impl Tier {
    /// The tier's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Hot => "hot",
            Tier::Cold => "cold",
        }
    }

    /// The tier that this one is not.
    pub fn other(self) -> Self {
        match self {
            Tier::Hot => Tier::Cold,
            Tier::Cold => Tier::Hot,
        }
    }
}

/// Where a shard's archive begins after older objects have expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveFloor {
    /// First record that is kept; those below are deleted.
    pub offset: Offset,
    /// Append time of the newest deleted record.
    pub appended: Millis,
    /// First hour that no deleted record touched, nor any later hour. Earlier hours cannot be
    /// recomputed.
    pub hour: Hour,
}

impl ArchiveFloor {
    /// The floor once `row`, the first object of its shard, is deleted too.
    pub fn after_expiry(before: Option<Self>, row: &ManifestRow) -> Self {
        // Objects ascend by offset, not by hour: an earlier one may have touched later hours, so
        // the floor takes the maximum.
        let touched =
            row.windows.last().map_or(Hour(i32::MIN), |(hour, _)| Hour(hour.0.saturating_add(1)));
        Self {
            offset: row.range.to,
            appended: before.map_or(row.appended.1, |floor| floor.appended.max(row.appended.1)),
            hour: before.map_or(touched, |floor| floor.hour.max(touched)),
        }
    }

    /// The first UTC day, counted from 1970, of which no record is gone.
    pub fn first_whole_day(&self) -> i32 {
        self.hour.day() + i32::from(self.hour.0.rem_euclid(24) > 0)
    }
}

/// Decisions about the records of a range that do not follow from the records themselves. They are
/// archived, so that a rebuilt store decides alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeDecisions {
    /// The series that the shard admitted in the range, each with the offset of its admission.
    pub admitted: Vec<(SeriesId, Offset)>,
    /// The series that the shard's live writers of other generations admitted in the range.
    pub generations: Vec<(GenerationId, SeriesId, Offset)>,
    /// The quarantined events as (offset, index, discarded): whether an operator had given the
    /// event up by then.
    pub quarantined: Vec<(Offset, u32, bool)>,
    /// The events of the range that ingest did not count. `None` if that is not known of all of it:
    /// a release that noted no outcomes has committed a part.
    pub outcomes: Option<OutcomeNote>,
}

/// What a rebuild writes for a shard in addition to its flushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRestore {
    /// The shard that is restored.
    pub shard: ShardId,
    /// Its checkpoint. `next` matters only while the store does not know the shard yet: from then
    /// on, flushes advance it.
    pub checkpoint: Checkpoint,
    /// Its archive floor, if objects have expired.
    pub floor: Option<ArchiveFloor>,
    /// Objects of its archive. Each replaces the rows at and above its first record.
    pub manifest: Vec<ManifestRow>,
    /// Series of the catalogue that this shard admitted although another shard flushed them first.
    pub admitted: Vec<(SeriesId, Offset)>,
}

/// An object's name, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectName {
    /// The records in the object.
    pub range: OffsetRange,
    /// Epoch of the owner that wrote it.
    pub epoch: Epoch,
}

/// One archive object, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRow {
    /// The log that the offsets belong to.
    pub log: LogId,
    /// The shard whose records it holds.
    pub shard: ShardId,
    /// The records in the object.
    pub range: OffsetRange,
    /// Epoch of the owner that wrote it.
    pub epoch: Epoch,
    /// Path relative to the archive's root.
    pub path: String,
    /// Append times of the first and of the last record.
    pub appended: (Millis, Millis),
    /// Smallest and largest received time of its records.
    pub received: (Millis, Millis),
    /// The hours touched, ascending, each with its number of events.
    pub windows: Vec<(Hour, u64)>,
    /// The number of events.
    pub rows: u64,
    /// Size of the raw events in bytes, before compression.
    pub raw_bytes: u64,
    /// Size of the object in bytes.
    pub bytes: u64,
    /// CRC32C of the whole object.
    pub crc32c: u32,
    /// Where the object was last verified. A hint which tier to read first: while the object is
    /// being moved, it is in both.
    pub tier: Tier,
}

impl ManifestRow {
    /// The common prefix of all objects of a log.
    pub fn log_prefix(log: LogId) -> String {
        format!("raw/log={log}/")
    }

    /// The common prefix of all objects of a shard.
    pub fn shard_prefix(log: LogId, shard: ShardId) -> String {
        format!("{}shard={:04}/", Self::log_prefix(log), shard.0)
    }

    /// The object's path: log, shard, range and epoch, so that two owners can never
    /// overwrite each other's objects.
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

    /// Parses the path of an object of this shard; `None` for any other path.
    pub fn parse_name(log: LogId, shard: ShardId, path: &str) -> Option<ObjectName> {
        let name = path.strip_prefix(&Self::shard_prefix(log, shard))?.strip_suffix(".parquet")?;
        let mut parts = name.split('-');
        let (from, to) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let epoch = Epoch {
            counter: parts.next()?.parse().ok()?,
            nonce: u64::from_str_radix(parts.next()?, 16).ok()?,
        };
        let range = OffsetRange::new(from, to).filter(|range| !range.is_empty())?;
        // Compared whole, so that no second spelling (`+5`, missing zeros) names the same object.
        (Self::object_path(log, shard, range, epoch) == path).then_some(ObjectName { range, epoch })
    }
}

/// Whether the ranges tile `[floor, archived)` without gap or overlap. The error is a message that
/// names the first gap or overlap.
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
