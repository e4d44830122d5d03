//! The cursor of one consumer in one shard, with the records that it keeps for the next read.

use std::collections::VecDeque;

use rdkafka::consumer::base_consumer::PartitionQueue;

use super::super::settings::QuietContext;
use crate::clock::Stopwatch;
use crate::model::flush::LogRecord;
use crate::model::offset::Offset;

/// Returned records are kept for the next read up to this size, because the archiver reads the same
/// record again until it is due.
const RETAINED_BYTES: usize = 1 << 20;

/// The position of one consumer in one shard.
#[derive(Default)]
pub(super) struct PartitionCursor {
    pub(super) queue: Option<PartitionQueue<QuietContext>>,
    /// Records from the last requested offset on. Those in the queue follow.
    pub(super) buffer: VecDeque<LogRecord>,
    /// The offset of the next record from the queue.
    pub(super) next: Offset,
    /// False after an error: the position is unknown.
    pub(super) is_valid: bool,
    /// When the queue was last polled; `None` while nothing is fetched.
    pub(super) last_polled: Option<Stopwatch>,
    /// Whether the client has reached the end of the partition since it was last positioned.
    pub(super) at_end: bool,
    /// Consecutive reads that returned nothing although the client is at its end and the
    /// watermark is above it.
    pub(super) empty_reads: u32,
    /// For LRU: the number of the read that last used the cursor.
    pub(super) last_used: u64,
}

impl PartitionCursor {
    pub(super) fn covers(&self, from: Offset) -> bool {
        let first = self.buffer.front().map_or(self.next, |record| record.offset);
        self.is_valid && (first..=self.next).contains(&from)
    }

    /// Drops buffered records below `from`. Returns the bytes that remain.
    pub(super) fn drop_below(&mut self, from: Offset) -> usize {
        let at = self.buffer.partition_point(|record| record.offset < from);
        self.buffer.drain(..at);
        self.buffer.iter().map(|record| record.payload.len()).sum()
    }

    /// Returns buffered records, about `max_bytes`. Keeps them for the next read
    /// unless they are large.
    pub(super) fn take(&mut self, max_bytes: usize) -> Vec<LogRecord> {
        let mut left = max_bytes.max(1);
        let wanted = self.buffer.iter().take_while(|record| {
            let more = left > 0;
            left = left.saturating_sub(record.payload.len().max(1));
            more
        });
        let records: Vec<LogRecord> = wanted.cloned().collect();
        if records.iter().map(|record| record.payload.len()).sum::<usize>() > RETAINED_BYTES {
            self.buffer.drain(..records.len());
        }
        records
    }
}
