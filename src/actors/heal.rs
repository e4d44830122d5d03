//! Healing: a log that lost its beginning, above the checkpoint of a shard, is read from the archive where the manifest covers the loss.
//!
//! Whether it does is decided before the first record is applied, by the manifest alone. What always holds: records come in the order of
//! the log, each once, and pass through the same state machine; a record that is nowhere stops the shard and is named.

use std::collections::VecDeque;

use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, uncovered};
use crate::model::offset::{Diverged, LogId, Offset, OffsetRange, ShardId, continues};
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::store::{RollupStore, StoreError};

/// Why a shard cannot go on from its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unhealed {
    /// Neither the log nor the archive has what comes next.
    #[error(transparent)]
    Diverged(#[from] Diverged),
    /// The manifest cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// From where a shard at `next` reads on in a log that holds `[start, end)`: from the log alone, or first what the archive has.
///
/// # Errors
/// [`Unhealed::Diverged`] if records are missing everywhere, or the log ends below the checkpoint.
pub fn resume(
    store: &dyn RollupStore,
    log: LogId,
    shard: ShardId,
    next: Offset,
    (start, end): (Offset, Offset),
) -> Result<Option<Healing>, Unhealed> {
    match continues(next, start, end) {
        Ok(()) => Ok(None),
        Err(Diverged::Gap { .. }) => {
            let lost = OffsetRange { from: next, to: start };
            let rows = store.snapshot()?.manifest(Some(shard))?;
            match uncovered(&rows, log, lost) {
                None => Ok(Some(Healing::new(lost, log, rows))),
                Some(missing) => Err(Diverged::Lost { lost, missing }.into()),
            }
        }
        Err(other) => Err(other.into()),
    }
}

/// What the log lost, on its way from the archive.
#[derive(Debug)]
pub struct Healing {
    lost: OffsetRange,
    rows: VecDeque<ManifestRow>,
    /// Of the object in hand; one at a time, at most `archive.max_bytes` raw.
    records: VecDeque<LogRecord>,
    /// Its path.
    object: String,
}

impl Healing {
    fn new(lost: OffsetRange, log: LogId, rows: Vec<ManifestRow>) -> Self {
        let wanted = |row: &ManifestRow| row.log == log && row.range.from < lost.to && lost.from < row.range.to;
        Self { lost, rows: rows.into_iter().filter(wanted).collect(), records: VecDeque::new(), object: String::new() }
    }

    /// What the log lost.
    pub fn lost(&self) -> OffsetRange {
        self.lost
    }

    /// Whether a shard at `next` has everything that was lost.
    pub fn is_over(&self, next: Offset) -> bool {
        next >= self.lost.to
    }

    /// Records from `next` on, in order, at least one, about `max_bytes` of payload at most. Blocking. `next` never goes back.
    ///
    /// # Errors
    /// If the archive fails, or an object is not what the manifest says.
    pub fn read(&mut self, archive: &dyn Archive, next: Offset, max_bytes: usize) -> Result<Vec<LogRecord>, ArchiveError> {
        while self.records.front().is_some_and(|record| record.offset < next) {
            self.records.pop_front();
        }
        while self.records.is_empty()
            && let Some(row) = self.rows.front()
        {
            let records = archive.read(row)?;
            self.records.extend(records.into_iter().filter(|record| (next..self.lost.to).contains(&record.offset)));
            self.object.clone_from(&row.path);
            self.rows.pop_front();
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::Decisions;
    use crate::model::offset::Epoch;
    use crate::persistence::archive::memory::MemoryArchive;
    use crate::persistence::store::memory::MemoryStore;

    const LOG: LogId = LogId([3; 16]);
    const SHARD: ShardId = ShardId(0);

    fn record(offset: Offset) -> LogRecord {
        LogRecord { offset, appended: 1_000 + offset as i64, payload: bytes::Bytes::from(format!("record {offset}")) }
    }

    /// Objects of four records, twelve in all, and their manifest.
    fn world() -> (std::sync::Arc<MemoryStore>, MemoryArchive, Epoch) {
        let (store, archive) = (MemoryStore::new(), MemoryArchive::new());
        let epoch = store.claim(SHARD, LOG, 7).expect("a claim").checkpoint.epoch;
        for from in [0, 4, 8] {
            let records: Vec<LogRecord> = (from..from + 4).map(record).collect();
            store.archived(&archive.write(LOG, SHARD, epoch, &records, &Decisions::default()).expect("written")).expect("noted");
        }
        (store, archive, epoch)
    }

    fn heal(store: &MemoryStore, next: Offset, bounds: (Offset, Offset)) -> Result<Option<Healing>, Unhealed> {
        resume(store, LOG, SHARD, next, bounds)
    }

    #[test]
    fn a_loss_that_the_manifest_covers_is_read_in_order_and_no_other() {
        let (store, archive, _) = world();
        assert!(heal(&store, 5, (5, 20)).expect("the log has it").is_none());
        for (next, start) in [(0, 12), (2, 11), (3, 4), (6, 7)] {
            for max_bytes in [1, 20, 1 << 20] {
                let mut healing = heal(&store, next, (start, 20)).expect("covered").expect("lost");
                let (mut at, mut found) = (next, Vec::new());
                while !healing.is_over(at) {
                    let read = healing.read(&archive, at, max_bytes).expect("readable");
                    // The shard takes a part of what it gets.
                    let taken = read.len().div_ceil(2);
                    found.extend(read.into_iter().take(taken));
                    at = found.last().map_or(at, |record: &LogRecord| record.offset + 1);
                }
                assert_eq!(found, (next..start).map(record).collect::<Vec<_>>(), "[{next}, {start}) by {max_bytes}");
            }
        }
    }

    #[test]
    fn what_is_nowhere_is_named() {
        let (store, ..) = world();
        let lost = |from, to, missing: (Offset, Offset)| {
            let range = |from, to| OffsetRange { from, to };
            Unhealed::Diverged(Diverged::Lost { lost: range(from, to), missing: range(missing.0, missing.1) })
        };
        assert_eq!(heal(&store, 3, (15, 20)).expect_err("three are nowhere"), lost(3, 15, (12, 15)));
        assert_eq!(heal(&store, 14, (15, 20)).expect_err("nothing archived"), lost(14, 15, (14, 15)));
        let said = heal(&store, 3, (15, 20)).expect_err("as before").to_string();
        assert!(said.contains("[3, 15)") && said.contains("[12, 15)") && said.contains("put back"), "{said}");
        let short = heal(&store, 14, (0, 13)).expect_err("the tail is gone");
        assert_eq!(short, Unhealed::Diverged(Diverged::Short { end: 13, checkpoint: 14 }));
        let other = resume(&*store, LogId([4; 16]), SHARD, 3, (5, 20)).expect_err("objects of another log");
        assert!(matches!(other, Unhealed::Diverged(Diverged::Lost { .. })), "{other}");
    }

    #[test]
    fn an_object_that_is_gone_or_down_applies_nothing() {
        let (store, archive, epoch) = world();
        let mut healing = heal(&store, 5, (10, 20)).expect("covered").expect("lost");
        archive.set_down(true);
        assert!(matches!(healing.read(&archive, 5, 1), Err(ArchiveError::Unavailable(_))));
        archive.set_down(false);
        assert_eq!(healing.read(&archive, 5, 1).expect("it is back"), [record(5)]);
        let path = ManifestRow::object_path(LOG, SHARD, OffsetRange { from: 8, to: 12 }, epoch);
        archive.remove(&path, crate::model::manifest::Tier::Hot).expect("removed");
        assert_eq!(healing.read(&archive, 7, 1).expect("of the object in hand"), [record(7)]);
        assert_eq!(healing.read(&archive, 8, 1), Err(ArchiveError::Missing(path)));
    }
}
