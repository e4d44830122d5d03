//! Implements [`LogRetention`]: which records may be deleted, and when.

use std::sync::PoisonError;
use std::time::Duration;

use super::super::{LogError, LogIdentity, LogReader, LogRetention};
use super::watermarks::OffsetSpec;
use super::{KafkaLog, Shared, append_times};
use crate::model::offset::{Offset, ShardId};

/// Minimum interval between deletions. More often has no use while
/// `log.safety` retains records anyway.
const RELEASE_EVERY: Duration = Duration::from_secs(60);

const DAY_MS: i64 = 86_400_000;

impl Shared {
    /// The offset up to which the shard may be released: at most `floor`, and
    /// nothing younger than `log.safety`.
    fn releasable(
        &self,
        shard: ShardId,
        floor: Offset,
    ) -> Result<Option<Offset>, rdkafka::error::KafkaError> {
        let safety = i64::try_from(self.options.safety.as_millis()).unwrap_or(i64::MAX);
        // The lesser of both clocks, so that a jump of the wall clock does not shorten the safety
        // distance.
        let reading = self.options.clock.reading();
        let append = self.append_clock.lock().unwrap_or_else(PoisonError::into_inner).read(reading);
        let before = reading.wall.min(append).saturating_sub(safety);
        // Without a safety distance only the floor counts, even if a broker's clock is ahead of
        // ours.
        let before = if safety == 0 { before.saturating_add(DAY_MS) } else { before };
        append_times::releasable(self.watermarks.start(shard), floor, before, |time| {
            self.offset_client.list_offset(shard, OffsetSpec::ForTimestamp(time))
        })
    }
}

impl LogRetention for KafkaLog {
    fn release(&self, floors: &[Offset]) -> Result<u64, LogError> {
        let failed =
            |e: rdkafka::error::KafkaError| LogError::Io(format!("releasing records: {e}"));
        let every =
            if self.shared.options.safety.is_zero() { Duration::ZERO } else { RELEASE_EVERY };
        if floors.len() != self.shard_count() as usize
            || !self.shared.release_gate.lock().unwrap_or_else(PoisonError::into_inner).due(every)
        {
            return Ok(0);
        }
        let mut below = Vec::new();
        for (shard, &floor) in
            self.shared.all().zip(floors).filter(|(shard, floor)| **floor > self.start(*shard))
        {
            below.extend(
                self.shared.releasable(shard, floor).map_err(failed)?.map(|offset| (shard, offset)),
            );
        }
        if below.is_empty() {
            return Ok(0);
        }
        let before: u64 = below.iter().map(|(shard, _)| self.start(*shard)).sum();
        let starts = self.shared.admin.delete_records_below(&below).map_err(failed)?;
        starts.iter().for_each(|(shard, start)| self.shared.watermarks.set_start(*shard, *start));
        let records = starts.iter().map(|(_, start)| start).sum::<u64>().saturating_sub(before);
        tracing::info!(records, shards = starts.len(), "released records of the topic");
        // The brokers decide when they free the disk space.
        Ok(0)
    }

    fn bytes_on_disk(&self) -> u64 {
        // The log occupies the brokers' disks, not this node's.
        0
    }
}
