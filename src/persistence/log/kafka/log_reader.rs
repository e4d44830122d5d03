//! Implements [`LogReader`]: what may be read of a shard, and its records.

use std::sync::PoisonError;

use super::super::{AppendRequest, LogError, LogReader};
use super::watermarks::OffsetSpec;
use super::{KafkaLog, Shared, append_times, gaps};
use crate::model::flush::LogRecord;
use crate::model::offset::{Offset, ShardId};
use crate::model::window::Millis;

impl Shared {
    /// Appends a record without events after a gap at the end of an owned shard. Only a record
    /// after the gap shows where it ends.
    fn append_behind_gap(&self, shard: ShardId) {
        if !self.membership.owned().contains(&shard) || self.gap_throttle.due(shard).is_none() {
            return;
        }
        let request = AppendRequest { records: vec![(shard, gaps::placeholder_record().into())] };
        match self.producer.append(&request) {
            // The acknowledgement is not needed: the record is read like any other.
            Ok(ticket) => drop(ticket),
            Err(why) => {
                tracing::debug!(shard = shard.0, %why, "no record can be appended behind a gap")
            }
        }
    }
}

/// Blocks without keeping the other tasks of this worker thread from running.
fn block_in_place<T>(wait: impl FnOnce() -> T) -> T {
    let flavor = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    // It panics on a runtime of one thread, and outside a runtime there is nothing to protect.
    if flavor.is_ok_and(|flavor| flavor == tokio::runtime::RuntimeFlavor::MultiThread) {
        tokio::task::block_in_place(wait)
    } else {
        wait()
    }
}

impl LogReader for KafkaLog {
    fn start(&self, shard: ShardId) -> Offset {
        self.shared.watermarks.start(shard)
    }

    fn end(&self, shard: ShardId) -> Offset {
        self.shared.watermarks.end(shard)
    }

    fn end_as_of(&self, shard: ShardId, now: Millis) -> Millis {
        self.shared.watermarks.end_as_of(shard).min(now)
    }

    fn bounds(&self, shard: ShardId) -> Result<(Offset, Offset), LogError> {
        let list_offset = |spec| {
            let answer = block_in_place(|| self.shared.offset_client.list_offset(shard, spec));
            answer
                .map(|offset| offset.unwrap_or(0))
                .map_err(|e| LogError::Io(format!("shard {shard}: {e}")))
        };
        let start = list_offset(OffsetSpec::Earliest)?;
        // Read the clock before the end, as in `fetch_bounds`.
        let now = self.shared.options.clock.uptime();
        let end = list_offset(OffsetSpec::Latest)?;
        self.shared.watermarks.set_start(shard, start);
        self.shared.watermarks.observe_end(shard, end, now);
        Ok((start, end))
    }

    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError> {
        let (mut start, mut end) = (self.start(shard), self.end(shard));
        // The cached end may be old: a checkpoint above it is only wrong if the broker says so,
        // too.
        if from > end {
            (start, end) = self.bounds(shard)?;
        }
        if from > end {
            return Err(LogError::BeyondEnd { shard, from, end });
        }
        if from < start {
            return Err(LogError::Released { shard, from, start });
        }
        if from == end {
            return Ok(Vec::new());
        }
        let records = block_in_place(|| self.shared.reader.read(shard, from, max_bytes))?;
        if let Some(last) = records.last() {
            self.shared.membership.advance_position(shard, last.offset + 1);
        } else if self.shared.reader.ends_in_gap(shard) {
            self.shared.append_behind_gap(shard);
        }
        Ok(records)
    }

    fn appended_below(&self, shard: ShardId, from: Offset) -> Result<Option<Millis>, LogError> {
        if from <= self.start(shard) {
            return Ok(None);
        }
        let since = |time| {
            block_in_place(|| {
                self.shared.offset_client.list_offset(shard, OffsetSpec::ForTimestamp(time))
            })
        };
        let failed = |e: rdkafka::error::KafkaError| LogError::Io(format!("shard {shard}: {e}"));
        append_times::max_time_below(from, 0, since).map(Some).map_err(failed)
    }

    fn append_now(&self) -> Millis {
        let now = self.shared.options.clock.reading();
        // A poisoned lock is harmless: only the reading can panic, and that comes before the clock
        // changes.
        self.shared.append_clock.lock().unwrap_or_else(PoisonError::into_inner).read(now)
    }
}
