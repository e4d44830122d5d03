//! Reads from the archive what a log has lost above the checkpoint of a shard, if the archive
//! has all of it.
//!
//! That is decided before the first record is applied, from a listing of the shard's objects and
//! not from the manifest: in a store restored from a backup, the manifest is as old as the
//! checkpoint. Records come in log order, each once, and pass through the same state machine, which
//! repeats the decisions recorded in their objects. If a record is nowhere to be found, the shard
//! stops and names it.

use std::collections::VecDeque;

use crate::model::flush::LogRecord;
use crate::model::offset::{Checkpoint, LogDivergence, LogId, Offset, OffsetRange, ShardId};
use crate::persistence::archive::chain::{ArchiveObject, ObjectChains};
use crate::persistence::archive::{Archive, ArchiveError};
use crate::shards::driver::{ArchivedRecords, GapRecovery, lost_range};

/// Why a shard cannot continue from its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GapError {
    /// Neither the log nor the archive has the next records.
    #[error(transparent)]
    Diverged(#[from] LogDivergence),
    /// The archive cannot be listed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Checks whether a shard can continue from its checkpoint with a log that holds `[start, end)`.
/// Returns `None` if the log is enough, or a reader for what the archive has to supply. Blocks.
///
/// # Errors
/// [`GapError::Diverged`] if records are missing from both, or if the log ends below the checkpoint
/// or below what it gave to the archive; [`GapError::Archive`] if the archive cannot be listed.
pub fn plan_resume(
    archive: &dyn Archive,
    shard: ShardId,
    at: &Checkpoint,
    (start, end): (Offset, Offset),
) -> Result<Option<GapReader>, GapError> {
    let Some(lost) = lost_range(at, (start, end))? else { return Ok(None) };
    let reader = GapReader::plan(archive, at.log, shard, at.archived, lost)?;
    let reader = reader.map_err(|missing| LogDivergence::LostRecords { lost, missing })?;
    GapRecovery::new(lost, reader.end(), end)?;
    Ok(Some(reader))
}

/// Reads the lost range, object by object.
#[derive(Debug)]
pub struct GapReader {
    lost: OffsetRange,
    /// Exclusive end of the last object. The log may have some of its records, but only the object
    /// has the decisions made about them.
    end: Offset,
    /// Archived offset. The reader follows the chain of objects that continues there, because the
    /// archiver inserts the manifest rows of that chain.
    anchor: Offset,
    chains: ObjectChains,
    links: VecDeque<ArchiveObject>,
    /// Remaining records of the current object; one object at a time,
    /// at most `archive.max_bytes` raw.
    records: VecDeque<LogRecord>,
    /// Path of the current object.
    object: String,
}

impl GapReader {
    /// Finds the objects that hold the lost range. If they do not hold all of it, the inner error
    /// is the first part that is missing. Blocks.
    ///
    /// # Errors
    /// Fails if the archive cannot be listed.
    pub fn plan(
        archive: &dyn Archive,
        log: LogId,
        shard: ShardId,
        anchor: Offset,
        lost: OffsetRange,
    ) -> Result<Result<Self, OffsetRange>, ArchiveError> {
        let chains = ObjectChains::of(&[log], shard, archive.list(log, shard)?);
        Ok(Self::new(chains, anchor, lost))
    }

    fn new(chains: ObjectChains, anchor: Offset, lost: OffsetRange) -> Result<Self, OffsetRange> {
        let links: VecDeque<ArchiveObject> = chains.covering(anchor, lost)?.into();
        let to = links.back().map_or(lost.to, |link| link.name.range.to);
        Ok(Self {
            lost,
            end: to,
            anchor,
            chains,
            links,
            records: VecDeque::new(),
            object: String::new(),
        })
    }

    /// Exclusive end of the last object.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// Reads records from `next` on, in order: at least one, and about `max_bytes` of payload.
    /// `next` must not decrease between calls. Blocks.
    ///
    /// # Errors
    /// Fails if the archive fails, or if an object is damaged and no other
    /// object holds its records.
    pub fn read(
        &mut self,
        archive: &dyn Archive,
        next: Offset,
        max_bytes: usize,
    ) -> Result<ArchivedRecords, ArchiveError> {
        // Under a small credit the shard takes fewer records than it was given, and
        // asks again from there.
        while self.records.front().is_some_and(|record| record.offset < next) {
            self.records.pop_front();
        }
        let mut decided = None;
        while self.records.is_empty()
            && let Some(link) = self.links.front()
        {
            match archive.examine(&link.object) {
                Ok(found) => {
                    decided = found.decisions.map(|decisions| (decisions, found.row.range.to));
                    self.records
                        .extend(found.records.into_iter().filter(|record| record.offset >= next));
                    self.object = found.row.path;
                    // Only now: while the archive is unreachable, the same object is tried again.
                    self.links.pop_front();
                }
                Err(damage @ (ArchiveError::Corrupt { .. } | ArchiveError::Missing(_))) => {
                    self.bypass_damaged(next, damage)?
                }
                Err(other) => return Err(other),
            }
        }
        Ok(ArchivedRecords {
            records: self.buffered_records(next, max_bytes)?,
            decisions: decided,
            to: self.end,
        })
    }

    fn buffered_records(
        &self,
        next: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, ArchiveError> {
        // One record at least, however large it is; otherwise the shard would never get past it.
        let mut left = max_bytes.max(1);
        let wanted = self.records.iter().take_while(|record| {
            let more = left > 0;
            left = left.saturating_sub(record.payload.len().max(1));
            more
        });
        let read: Vec<LogRecord> = wanted.cloned().collect();
        match read.first() {
            Some(first) if first.offset == next => Ok(read),
            found => {
                let found = found.map_or("nothing".to_owned(), |record| record.offset.to_string());
                Err(ArchiveError::Corrupt {
                    path: self.object.clone(),
                    why: format!("record {next} was expected, found: {found}"),
                })
            }
        }
    }

    /// Replaces the damaged object at the front by other objects that hold its records.
    fn bypass_damaged(&mut self, next: Offset, damage: ArchiveError) -> Result<(), ArchiveError> {
        let Some(link) = self.links.front() else { return Err(damage) };
        // The object may reach above the lost range: one record at least is still needed.
        let rest = OffsetRange { from: next, to: self.lost.to.max(next + 1) };
        let Some((chains, links)) = self.chains.bypass(&link.object.path, self.anchor, rest) else {
            return Err(damage);
        };
        tracing::warn!(
            path = link.object.path,
            %damage,
            "an archive object is damaged; others have its records"
        );
        self.end = links.last().map_or(self.end, |link| link.name.range.to);
        (self.chains, self.links) = (chains, links.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::{ManifestRow, RangeDecisions, Tier};
    use crate::model::offset::Epoch;
    use crate::model::series::SeriesId;
    use crate::persistence::archive::memory::MemoryArchive;

    const LOG: LogId = LogId([3; 16]);
    const SHARD: ShardId = ShardId(0);
    const OWNER: Epoch = Epoch { counter: 4, nonce: 7 };

    fn record(offset: Offset) -> LogRecord {
        LogRecord {
            offset,
            appended: 1_000 + offset as i64,
            received: 900 - offset as i64,
            payload: bytes::Bytes::from(format!("record {offset}")),
        }
    }

    fn write(archive: &MemoryArchive, epoch: Epoch, from: Offset, to: Offset) -> String {
        let records: Vec<LogRecord> = (from..to).map(record).collect();
        let decisions = RangeDecisions {
            admitted: vec![(SeriesId([from as u8; 16]), from)],
            ..RangeDecisions::default()
        };
        archive.write(LOG, SHARD, epoch, &records, &decisions).expect("written").path
    }

    /// Three objects of four records each.
    fn world() -> MemoryArchive {
        let archive = MemoryArchive::new();
        for from in [0, 4, 8] {
            write(&archive, OWNER, from, from + 4);
        }
        archive
    }

    fn at(archived: Offset, next: Offset) -> Checkpoint {
        Checkpoint {
            log: LOG,
            next,
            archived,
            epoch: Epoch { counter: 2, nonce: 1 },
            appended: None,
        }
    }

    fn heal(
        archive: &MemoryArchive,
        next: Offset,
        bounds: (Offset, Offset),
    ) -> Result<Option<GapReader>, GapError> {
        plan_resume(archive, SHARD, &at(0, next), bounds)
    }

    #[test]
    fn what_the_archive_has_is_read_in_order_with_what_was_decided() {
        let archive = world();
        assert!(heal(&archive, 5, (5, 20)).expect("the log has it").is_none());
        for (next, start, end) in [(0, 12, 12), (2, 11, 12), (3, 4, 4), (6, 7, 8)] {
            for max_bytes in [1, 20, 1 << 20] {
                let mut reader = heal(&archive, next, (start, 20)).expect("covered").expect("lost");
                assert_eq!(reader.lost, OffsetRange { from: next, to: start });
                let (mut at, mut found, mut decided) = (next, Vec::new(), Vec::new());
                while at < reader.end() {
                    let read = reader.read(&archive, at, max_bytes).expect("readable");
                    decided.extend(
                        read.decisions.map(|(decisions, to)| (decisions.admitted[0].1, to)),
                    );
                    // The shard takes only some of the records.
                    let taken = read.records.len().div_ceil(2);
                    found.extend(read.records.into_iter().take(taken));
                    at = found.last().map_or(at, |record: &LogRecord| record.offset + 1);
                }
                assert_eq!(
                    found,
                    (next..end).map(record).collect::<Vec<_>>(),
                    "[{next}, {start}) by {max_bytes}"
                );
                let objects = [(0, 4), (4, 8), (8, 12)].into_iter();
                let of_objects =
                    objects.filter(|(from, to)| *to > next && *from < end).collect::<Vec<_>>();
                assert_eq!(decided, of_objects, "[{next}, {start}) by {max_bytes}");
            }
        }
    }

    #[test]
    fn what_is_nowhere_is_named() {
        let archive = world();
        let lost = |from, to, missing: (Offset, Offset)| {
            let range = |from, to| OffsetRange { from, to };
            GapError::Diverged(LogDivergence::LostRecords {
                lost: range(from, to),
                missing: range(missing.0, missing.1),
            })
        };
        assert_eq!(
            heal(&archive, 3, (15, 20)).expect_err("three are nowhere"),
            lost(3, 15, (12, 15))
        );
        assert_eq!(
            heal(&archive, 14, (15, 20)).expect_err("nothing archived"),
            lost(14, 15, (14, 15))
        );
        let said = heal(&archive, 3, (15, 20)).expect_err("as before").to_string();
        assert!(
            said.contains("[3, 15)") && said.contains("[12, 15)") && said.contains("put back"),
            "{said}"
        );
        let short = heal(&archive, 14, (0, 13)).expect_err("the tail is gone");
        assert_eq!(short, GapError::Diverged(LogDivergence::ShortLog { end: 13, checkpoint: 14 }));
        let grown_over =
            heal(&archive, 3, (5, 6)).expect_err("the archive has more than the log ever will");
        assert_eq!(
            grown_over,
            GapError::Diverged(LogDivergence::ShortLog { end: 6, checkpoint: 8 })
        );
        let other = Checkpoint { log: LogId([4; 16]), ..at(0, 3) };
        let other =
            plan_resume(&archive, SHARD, &other, (5, 20)).expect_err("objects of another log");
        assert!(matches!(other, GapError::Diverged(LogDivergence::LostRecords { .. })), "{other}");
        archive.set_down(true);
        assert!(matches!(
            heal(&archive, 3, (15, 20)),
            Err(GapError::Archive(ArchiveError::Unavailable(_)))
        ));
    }

    #[test]
    fn an_object_that_is_gone_is_gone_around_or_named() {
        let archive = world();
        let mut reader = heal(&archive, 5, (10, 20)).expect("covered").expect("lost");
        archive.set_down(true);
        assert!(matches!(reader.read(&archive, 5, 1), Err(ArchiveError::Unavailable(_))));
        archive.set_down(false);
        assert_eq!(reader.read(&archive, 5, 1).expect("it is back").records, [record(5)]);
        let path = ManifestRow::object_path(LOG, SHARD, OffsetRange { from: 8, to: 12 }, OWNER);
        archive.remove(&path, Tier::Hot).expect("removed");
        assert_eq!(
            reader.read(&archive, 7, 1).expect("of the object in hand").records,
            [record(7)]
        );
        assert_eq!(reader.read(&archive, 8, 1), Err(ArchiveError::Missing(path)));

        write(&archive, Epoch { counter: 3, nonce: 3 }, 8, 11);
        let mut reader = heal(&archive, 8, (10, 20)).expect("covered").expect("lost");
        assert_eq!(
            reader.read(&archive, 8, 1 << 20).expect("an older owner's").records,
            [8, 9, 10].map(record)
        );
        assert_eq!(reader.end(), 11);
    }

    #[test]
    fn a_damaged_object_makes_way_for_another_owners() {
        let archive = world();
        let path = write(&archive, Epoch { counter: 9, nonce: 9 }, 4, 8);
        let bytes = archive.bytes(&path, Tier::Hot).expect("there");
        archive.put(&path, Tier::Hot, bytes.slice(..bytes.len() / 2));
        let mut reader = heal(&archive, 2, (8, 20)).expect("covered").expect("lost");
        let read =
            [2, 4].map(|next| reader.read(&archive, next, 1 << 20).expect("readable").records);
        assert_eq!(read.concat(), (2..8).map(record).collect::<Vec<_>>());
    }
}
