//! Offsets, epochs and checkpoints: exactly-once as one pure comparison.
//!
//! | record read at | checkpoint `next` | answer |
//! |---|---|---|
//! | `next` | | apply, advance to `next + 1` |
//! | below `next` | | skip: it is already in the store |
//! | above `next` | | refuse: the log lost data ([`LogDivergence::Gap`]) |
//! | any, other log id | | refuse ([`LogDivergence::OtherLog`]) |

use super::window::Millis;

/// Position of a record in its shard's log. The first record has offset 0.
pub type Offset = u64;

/// Number of a shard, `0..shard_count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl std::fmt::Display for ShardId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Random identity of a log, drawn when the log is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub [u8; 16]);

impl std::fmt::Display for LogId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Fencing token of a shard's owner, always compared whole: a store that was rolled back may issue
/// a counter again, but never with the same nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Counts the starts of the shard.
    pub counter: u64,
    /// Random; drawn by the owner when it starts.
    pub nonce: u64,
}

/// Half-open range of offsets `[from, to)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    /// First offset in the range.
    pub from: Offset,
    /// Exclusive end, never below `from`.
    pub to: Offset,
}

impl OffsetRange {
    /// `[from, to)`; `None` if `to < from`.
    pub fn new(from: Offset, to: Offset) -> Option<Self> {
        (from <= to).then_some(Self { from, to })
    }
    /// Whether the range holds no offset.
    pub fn is_empty(self) -> bool {
        self.from == self.to
    }
    /// Whether every offset of `other` is in this range.
    pub fn contains_range(self, other: Self) -> bool {
        self.from <= other.from && other.to <= self.to
    }
    /// The number of offsets in the range.
    pub fn len(self) -> u64 {
        self.to - self.from
    }
}

/// How far a shard is applied and archived, and who owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log that the offsets belong to.
    pub log: LogId,
    /// Next offset to apply: everything below is in the rollups.
    pub next: Offset,
    /// Exclusive end of what is in the archive.
    pub archived: Offset,
    /// The fencing token of the current owner.
    pub epoch: Epoch,
    /// Append time of the record before `next`, the latest one in the rollups. `None` if there is
    /// none, or if an older release wrote the checkpoint.
    pub appended: Option<Millis>,
}

/// The log does not continue at the store's checkpoint. The shard stops; it never resets itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogDivergence {
    /// Records are missing between the checkpoint and the next record of the log.
    #[error(
        "the log continues at offset {found}, the store expects {expected}: records are missing"
    )]
    Gap {
        /// The offset that was due.
        expected: Offset,
        /// The offset that the log has instead.
        found: Offset,
    },
    /// The log begins above the checkpoint, and the archive does not fill the gap.
    #[error(
        "the log lost the records [{}, {}), and [{}, {}) of them are not in the archive either: \
         put back the log that has them, or a \
         store whose checkpoint lies beyond them",
        lost.from, lost.to, missing.from, missing.to
    )]
    LostRecords {
        /// From the checkpoint to the start of the log.
        lost: OffsetRange,
        /// The first part that is in the archive neither.
        missing: OffsetRange,
    },
    /// The log ends below the checkpoint, or below what was archived from it.
    #[error(
        "the log ends at offset {end}, below {checkpoint}, up to where the store or the archive \
         has its records: the log lost its tail or was replaced; put back the log that belongs to \
         the store, or the store that belongs to the log"
    )]
    ShortLog {
        /// Exclusive end of the log.
        end: Offset,
        /// The checkpoint, or the end of the archive.
        checkpoint: Offset,
    },
    /// A record of a version that this build cannot read. Bytes that are no record at
    /// all are quarantined instead.
    #[error(
        "the record at offset {offset} is of version {version}, which this build does not read: \
         run the release of Rollmill that wrote it, or a newer one; the shard stands still before \
         it, and nothing is passed over"
    )]
    UnsupportedVersion {
        /// The offset of the record.
        offset: Offset,
        /// The version that the record claims.
        version: u64,
    },
    /// The log's identity is not the one in the store.
    #[error(
        "the store belongs to log {expected}, but the log is {found}: put back the one that \
         belongs to the other"
    )]
    OtherLog {
        /// The log id in the store's checkpoint.
        expected: LogId,
        /// The id of the log that was opened.
        found: LogId,
    },
}

/// What to do with a record found at `found` when `next` is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordAction {
    /// It is the next one: apply it.
    Apply,
    /// It is already in the store.
    Skip,
}

/// The comparison of the table above.
///
/// # Errors
/// [`LogDivergence::Gap`] if records are missing between `next` and `found`.
pub fn check_offset(next: Offset, found: Offset) -> Result<RecordAction, LogDivergence> {
    match found.cmp(&next) {
        std::cmp::Ordering::Equal => Ok(RecordAction::Apply),
        std::cmp::Ordering::Less => Ok(RecordAction::Skip),
        std::cmp::Ordering::Greater => Err(LogDivergence::Gap { expected: next, found }),
    }
}

/// Whether a log that holds `[start, end)` continues at the checkpoint `next`.
///
/// # Errors
/// [`LogDivergence::ShortLog`] if it ends below, [`LogDivergence::Gap`] if it begins above.
pub fn check_continuity(next: Offset, start: Offset, end: Offset) -> Result<(), LogDivergence> {
    // A log that lost its tail is refused first: its `start` may be below `next` as well as above.
    if end < next {
        return Err(LogDivergence::ShortLog { end, checkpoint: next });
    }
    if start > next {
        return Err(LogDivergence::Gap { expected: next, found: start });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds() {
        assert_eq!(check_offset(5, 5), Ok(RecordAction::Apply));
        assert_eq!(check_offset(5, 4), Ok(RecordAction::Skip));
        assert_eq!(check_offset(5, 7), Err(LogDivergence::Gap { expected: 5, found: 7 }));
    }

    #[test]
    fn a_log_must_hold_the_checkpoint() {
        assert_eq!(check_continuity(5, 5, 5), Ok(()));
        assert_eq!(check_continuity(5, 0, 9), Ok(()));
        assert_eq!(check_continuity(5, 6, 9), Err(LogDivergence::Gap { expected: 5, found: 6 }));
        assert_eq!(
            check_continuity(5, 0, 4),
            Err(LogDivergence::ShortLog { end: 4, checkpoint: 5 })
        );
    }

    #[test]
    fn ranges_never_run_backwards() {
        assert_eq!(OffsetRange::new(3, 2), None);
        assert!(OffsetRange::new(3, 3).expect("a range").is_empty());
    }
}
