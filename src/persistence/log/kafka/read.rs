//! The readers: manual assignment at the offset that the caller asks for. Prefetched records are
//! kept for the next call.
//!
//! There are two consumers, each with a cursor per shard: a shard's actor reads at the end of the
//! log while its archiver reads far behind, and neither must move the other's cursor. A consumer
//! fetches a partition only while somebody reads it. Otherwise an archiver that has caught up would
//! receive each new record on its own, as the shard does. librdkafka bounds the prefetch of each
//! cursor (`kafka.prefetch`).

mod cursor;
mod errors;
mod skip_gap;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};

use self::cursor::PartitionCursor;
use super::append_times::append_time;
use super::settings::{KafkaOptions, PassedGaps, QuietContext, READ_CONSUMERS};
use super::watermarks::{OffsetClient, TopicWatermarks, partition};
use crate::clock::Stopwatch;
use crate::model::flush::LogRecord;
use crate::model::offset::{Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::log::LogError;

/// After this a read returns nothing. The caller's ticker retries.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Consecutive empty reads, although records should be there, after which a gap is assumed.
const EMPTY_READS: u32 = 2;
/// A cursor whose prefetched records nobody takes stops fetching after this time.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// A Kafka consumer with its cursors, by shard.
struct ReadConsumer {
    client: Arc<BaseConsumer<QuietContext>>,
    cursors: Vec<Mutex<PartitionCursor>>,
}

/// The reading side of the log. Thread-safe.
pub(super) struct KafkaReader {
    topic: String,
    watermarks: Arc<TopicWatermarks>,
    offset_client: Arc<OffsetClient>,
    consumers: Vec<ReadConsumer>,
    reads: std::sync::atomic::AtomicU64,
    passed_gaps: PassedGaps,
}

impl KafkaReader {
    /// Creates the consumers. They fetch nothing before the first read. Fails if
    /// the settings are rejected.
    pub(super) fn new(
        options: &KafkaOptions,
        watermarks: Arc<TopicWatermarks>,
        offset_client: Arc<OffsetClient>,
    ) -> KafkaResult<Self> {
        let new_consumer = |_| {
            let client: BaseConsumer<QuietContext> =
                options.reader_config().create_with_context(QuietContext)?;
            let cursors = (0..options.shard_count).map(|_| Mutex::default()).collect();
            Ok(ReadConsumer { client: Arc::new(client), cursors })
        };
        let consumers = (0..READ_CONSUMERS).map(new_consumer).collect::<KafkaResult<Vec<_>>>()?;
        Ok(Self {
            topic: options.connection.topic.clone(),
            watermarks,
            offset_client,
            consumers,
            reads: std::sync::atomic::AtomicU64::new(0),
            passed_gaps: options.passed_gaps.clone(),
        })
    }

    /// Polls the consumers for events. Their records arrive in the queues of the cursors.
    pub(super) fn poll_events(&self) {
        for consumer in &self.consumers {
            self.pause_idle(consumer);
            while let Some(event) = consumer.client.poll(Duration::ZERO) {
                if let Err(error) = event {
                    tracing::debug!(%error, "Kafka reader");
                }
            }
        }
    }

    /// Number of cursors that fetch.
    #[cfg(test)]
    pub fn fetching(&self) -> usize {
        self.consumers
            .iter()
            .flat_map(|consumer| &consumer.cursors)
            .filter(|cursor| lock(cursor).last_polled.is_some())
            .count()
    }

    /// Stops fetching for cursors whose prefetched records nobody takes.
    fn pause_idle(&self, consumer: &ReadConsumer) {
        for (shard, cursor) in (0..).map(ShardId).zip(&consumer.cursors) {
            // A locked cursor is being read.
            let Ok(mut cursor) = cursor.try_lock() else { continue };
            let idle =
                cursor.last_polled.as_ref().is_some_and(|polled| polled.elapsed() >= IDLE_AFTER);
            if idle && cursor.next < self.watermarks.end(shard) {
                self.unassign(consumer, shard);
                cursor.last_polled = None;
            }
        }
    }

    /// Implements [`super::super::LogReader::read`]. The caller has compared `from`
    /// with start and end.
    pub(super) fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError> {
        let (consumer, mut cursor) = self.cursor(shard, from)?;
        cursor.last_used = self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // What looks like a gap may be a stale record in the queue. Seeking once tells them apart.
        for last in [false, true] {
            let watch = Stopwatch::start();
            if !cursor.covers(from) {
                self.seek(consumer, shard, &mut cursor, from)?;
            }
            match self.fill_buffer((consumer, shard), &mut cursor, (from, max_bytes), &watch, last)
            {
                Ok(()) => break,
                Err(LogError::Corrupt(why)) if !last => {
                    tracing::debug!(shard = shard.0, %why, "placing the cursor anew");
                    cursor.is_valid = false;
                }
                Err(error) => {
                    cursor.is_valid = false;
                    return Err(error);
                }
            }
        }
        Ok(cursor.take(max_bytes))
    }

    /// Whether the shard seems to end in offsets that clients are not given. A record after
    /// them would confirm it.
    pub(super) fn ends_in_gap(&self, shard: ShardId) -> bool {
        let cursors = self
            .consumers
            .iter()
            .filter_map(|consumer| consumer.cursors.get(shard.0 as usize)?.try_lock().ok());
        cursors.into_iter().any(|cursor| cursor.is_valid && cursor.empty_reads >= EMPTY_READS)
    }

    /// Stops reading shards that this node no longer owns.
    pub(super) fn unassign_shards(&self, shards: impl Iterator<Item = ShardId>) {
        for shard in shards {
            for consumer in &self.consumers {
                let Some(mut cursor) = consumer.cursors.get(shard.0 as usize).map(lock) else {
                    continue;
                };
                if cursor.queue.is_some() {
                    self.unassign(consumer, shard);
                    *cursor = PartitionCursor::default();
                }
            }
        }
    }

    /// The cursor that covers `from`, otherwise the least recently used one.
    fn cursor(
        &self,
        shard: ShardId,
        from: Offset,
    ) -> Result<(&ReadConsumer, MutexGuard<'_, PartitionCursor>), LogError> {
        let mut free = Vec::with_capacity(READ_CONSUMERS);
        for consumer in &self.consumers {
            let cursor = consumer.cursors.get(shard.0 as usize).ok_or(LogError::BeyondEnd {
                shard,
                from,
                end: 0,
            })?;
            // Prefer a free cursor to waiting: the other reader of this shard may hold one for a
            // second.
            let guard = match cursor.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            if guard.covers(from) {
                return Ok((consumer, guard));
            }
            free.push((consumer, guard));
        }
        let oldest = free.into_iter().min_by_key(|(_, cursor)| (cursor.is_valid, cursor.last_used));
        Ok(oldest.unwrap_or_else(|| {
            (&self.consumers[0], lock(&self.consumers[0].cursors[shard.0 as usize]))
        }))
    }

    fn partition_list(
        &self,
        shard: ShardId,
        at: Option<Offset>,
    ) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(1);
        match at {
            None => _ = list.add_partition(&self.topic, partition(shard)),
            Some(offset) => list.add_partition_offset(
                &self.topic,
                partition(shard),
                At::Offset(i64::try_from(offset).unwrap_or(i64::MAX)),
            )?,
        }
        Ok(list)
    }

    fn unassign(&self, consumer: &ReadConsumer, shard: ShardId) {
        let unassigned = self
            .partition_list(shard, None)
            .and_then(|list| consumer.client.incremental_unassign(&list));
        if let Err(error) = unassigned {
            tracing::debug!(shard = shard.0, %error, "was not assigned");
        }
    }

    /// Positions the cursor at `from`.
    fn seek(
        &self,
        consumer: &ReadConsumer,
        shard: ShardId,
        cursor: &mut PartitionCursor,
        from: Offset,
    ) -> Result<(), LogError> {
        self.fetch_from(consumer, shard, cursor, from)?;
        cursor.buffer.clear();
        (cursor.next, cursor.is_valid) = (from, true);
        Ok(())
    }

    /// Makes the client fetch the shard from `first` on.
    fn fetch_from(
        &self,
        consumer: &ReadConsumer,
        shard: ShardId,
        cursor: &mut PartitionCursor,
        first: Offset,
    ) -> Result<(), LogError> {
        let failed = |error: KafkaError| LogError::Io(format!("shard {shard}: {error}"));
        if cursor.last_polled.take().is_some() {
            self.unassign(consumer, shard);
        }
        if cursor.queue.is_none() {
            // Before the first assignment, so that no record arrives through the consumer itself.
            cursor.queue = consumer.client.split_partition_queue(&self.topic, partition(shard));
        }
        // Drop what was fetched from the earlier position.
        while let Some(queue) = &cursor.queue
            && queue.poll(Duration::ZERO).is_some()
        {}
        cursor.at_end = false;
        consumer
            .client
            .incremental_assign(&self.partition_list(shard, Some(first)).map_err(failed)?)
            .map_err(failed)?;
        cursor.last_polled = Some(Stopwatch::start());
        Ok(())
    }

    /// Waits until the buffer holds the record at `from`, and takes what else has arrived.
    /// `fresh_seek` means that the cursor was positioned for this read.
    fn fill_buffer(
        &self,
        (consumer, shard): (&ReadConsumer, ShardId),
        cursor: &mut PartitionCursor,
        (from, max_bytes): (Offset, usize),
        watch: &Stopwatch,
        fresh_seek: bool,
    ) -> Result<(), LogError> {
        let mut bytes = cursor.drop_below(from);
        while bytes < max_bytes.max(1) {
            if cursor.last_polled.is_none() {
                self.fetch_from(consumer, shard, cursor, cursor.next)?;
            }
            cursor.last_polled = Some(Stopwatch::start());
            // Waits for the first record only and then takes what has arrived.
            let wait = if bytes == 0 {
                READ_TIMEOUT.saturating_sub(watch.elapsed())
            } else {
                Duration::ZERO
            };
            let Some(queue) = &cursor.queue else { break };
            let message = match queue.poll(wait) {
                None => break,
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    cursor.at_end = true;
                    continue;
                }
                Some(Err(error)) => match self.read_error(shard, from, &error) {
                    None => continue,
                    Some(error) => return Err(error),
                },
            };
            let (offset, time, payload) = message_parts(&message);
            // Fetches are batches: one may begin below the requested offset.
            if offset < cursor.next {
                continue;
            }
            if offset > cursor.next {
                if bytes > 0 {
                    // Return the records below the gap first; the next read handles the gap.
                    cursor.is_valid = false;
                    break;
                }
                bytes += self.skip_gap(shard, cursor, from, offset, fresh_seek)?;
            }
            cursor.next += 1;
            let appended = append_time(time, &payload);
            if offset >= from {
                // Empty records count as well, so that they cannot make a read endless.
                bytes += payload.len().max(1);
                cursor.buffer.push_back(LogRecord { offset, appended, received: time, payload });
            }
            self.watermarks.raise_end(shard, offset + 1);
        }
        let found_nothing = bytes == 0
            && cursor.at_end
            && cursor.next < self.watermarks.end(shard)
            && watch.elapsed() >= READ_TIMEOUT;
        cursor.empty_reads = if found_nothing { cursor.empty_reads + 1 } else { 0 };
        Ok(())
    }
}

fn lock(cursor: &Mutex<PartitionCursor>) -> MutexGuard<'_, PartitionCursor> {
    cursor.lock().unwrap_or_else(PoisonError::into_inner)
}

fn message_parts(message: &BorrowedMessage<'_>) -> (Offset, Millis, Bytes) {
    let time = message.timestamp().to_millis().unwrap_or(0);
    (
        message.offset().unsigned_abs(),
        time,
        Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    )
}
