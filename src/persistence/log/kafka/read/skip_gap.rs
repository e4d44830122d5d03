//! Skips offsets that the client does not return, if nothing of Rollmill's can be lost with them.

use bytes::Bytes;
use rdkafka::error::KafkaError;

use super::super::append_times::max_time_below;
use super::super::gaps::{control_record_times, max_time_below_gap, placeholder_record};
use super::super::watermarks::OffsetSpec;
use super::KafkaReader;
use super::cursor::PartitionCursor;
use crate::model::flush::LogRecord;
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::persistence::log::LogError;

impl KafkaReader {
    /// Skips the offsets up to `to`, which the client does not return, if they are the broker's own
    /// or an operator has confirmed the gap. Placeholders take their place from `from` on. Returns
    /// the bytes added to the buffer.
    pub(super) fn skip_gap(
        &self,
        shard: ShardId,
        cursor: &mut PartitionCursor,
        from: Offset,
        to: Offset,
        fresh_seek: bool,
    ) -> Result<usize, LogError> {
        let gap = OffsetRange { from: cursor.next, to };
        let lost = || {
            let OffsetRange { from, to } = gap;
            LogError::Corrupt(format!(
                "shard {shard}: the records [{from}, {to}) are not there; compaction or another \
                 program made a gap, and nothing proves that it held nothing of Rollmill's. If \
                 that is certain, kafka.passed_gaps = {shard}:{from}-{to} passes it: \
                 docs/how-to/stopped-shard.md"
            ))
        };
        // A stale record looks like a gap, but not after a seek.
        if !fresh_seek {
            return Err(lost());
        }
        let since = |time| self.offset_client.list_offset(shard, OffsetSpec::ForTimestamp(time));
        let failed = |error: KafkaError| LogError::Io(format!("shard {shard}: {error}"));
        let below = max_time_below_gap(gap, self.watermarks.start(shard), since).map_err(failed)?;
        let times = match control_record_times(gap, below, since).map_err(failed)? {
            Some(times) => times,
            None if self.passed_gaps.covers(shard.0, gap.from, gap.to) => {
                vec![max_time_below(gap.to, below, since).map_err(failed)?; gap.len() as usize]
            }
            None => return Err(lost()),
        };
        tracing::warn!(
            shard = shard.0,
            from = gap.from,
            to = gap.to,
            "records are the broker's own (ends of transactions of another program), or passed by \
             kafka.passed_gaps: the shard continues behind them; only Rollmill may write to the \
             topic"
        );
        let (payload, mut bytes) = (Bytes::from(placeholder_record()), 0);
        for (offset, time) in (gap.from..gap.to).zip(times) {
            if offset >= from {
                bytes += payload.len();
                // Time 0 leaves the running maximum alone: the placeholder is as late as the record
                // before.
                cursor.buffer.push_back(LogRecord {
                    offset,
                    appended: 0,
                    received: time,
                    payload: payload.clone(),
                });
            }
        }
        cursor.next = gap.to;
        self.watermarks.raise_end(shard, gap.to);
        Ok(bytes)
    }
}
