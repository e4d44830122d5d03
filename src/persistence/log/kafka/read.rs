//! Reading: manual assignment at the position asked for, with what was fetched ahead kept for the
//! next call.
//!
//! Two lanes, each a consumer with a cursor per shard: the shard's actor reads at the end of the
//! log while its archiver reads far behind, and neither moves the other's cursor. A lane fetches a
//! partition only while somebody reads it: an archiver that has had enough would otherwise get each
//! new record on its own, as the shard does. librdkafka bounds what is fetched ahead of each cursor
//! (`kafka.prefetch`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};

use super::append_times::{append_time, max_time_below};
use super::gaps::{control_record_times, max_time_below_gap, placeholder_record};
use super::settings::{KafkaOptions, PassedGaps, QuietContext, READ_CONSUMERS};
use super::watermarks::{OffsetClient, OffsetSpec, TopicWatermarks, partition};
use crate::clock::Stopwatch;
use crate::model::flush::LogRecord;
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::model::window::Millis;
use crate::persistence::log::LogError;

/// A read gives up after this and returns nothing: the pulse comes back.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Reads in a row that get nothing of what is said to be there, before anything is made of it.
const EMPTY_READS: u32 = 2;
/// A cursor rests when nobody has taken for so long what lies ahead of it.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// What a read returned is kept for the next one up to this size: the archiver looks at one record
/// again and again until it is due.
const RETAINED_BYTES: usize = 1 << 20;

/// Where a lane stands in one shard.
#[derive(Default)]
struct PartitionCursor {
    queue: Option<PartitionQueue<QuietContext>>,
    /// Records from the last position asked for, then those of the queue.
    buffer: VecDeque<LogRecord>,
    /// What the queue gives next.
    next: Offset,
    /// Once a cursor has failed, its position means nothing.
    is_valid: bool,
    /// When its queue was asked last; none while it rests, and nothing is fetched.
    last_polled: Option<Stopwatch>,
    /// The client has been at the end of the partition since it was told where to fetch from.
    at_end: bool,
    /// Reads in a row that got nothing although the client is at the end and more is said to be
    /// there.
    empty_reads: u32,
    /// When it was used last, counted in reads.
    last_used: u64,
}

impl PartitionCursor {
    fn covers(&self, from: Offset) -> bool {
        let first = self.buffer.front().map_or(self.next, |record| record.offset);
        self.is_valid && (first..=self.next).contains(&from)
    }

    /// Drops what lies below `from`; the bytes that stay.
    fn drop_below(&mut self, from: Offset) -> usize {
        let at = self.buffer.partition_point(|record| record.offset < from);
        self.buffer.drain(..at);
        self.buffer.iter().map(|record| record.payload.len()).sum()
    }

    /// The records of the buffer, about `max_bytes`; keeps them for the next read unless they are
    /// too many.
    fn take(&mut self, max_bytes: usize) -> Vec<LogRecord> {
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

struct ReadConsumer {
    consumer: Arc<BaseConsumer<QuietContext>>,
    cursors: Vec<Mutex<PartitionCursor>>,
}

/// The reading side of the log.
pub(super) struct KafkaReader {
    topic: String,
    watermarks: Arc<TopicWatermarks>,
    offset_client: Arc<OffsetClient>,
    consumers: Vec<ReadConsumer>,
    reads: std::sync::atomic::AtomicU64,
    passed_gaps: PassedGaps,
}

impl KafkaReader {
    /// Nothing is fetched before it is asked for.
    ///
    /// # Errors
    /// If the settings are refused.
    pub(super) fn new(
        options: &KafkaOptions,
        marks: Arc<TopicWatermarks>,
        asker: Arc<OffsetClient>,
    ) -> KafkaResult<Self> {
        let lane = |_| {
            let consumer: BaseConsumer<QuietContext> =
                options.reader_config().create_with_context(QuietContext)?;
            let cursors = (0..options.shard_count).map(|_| Mutex::default()).collect();
            Ok(ReadConsumer { consumer: Arc::new(consumer), cursors })
        };
        let lanes = (0..READ_CONSUMERS).map(lane).collect::<KafkaResult<Vec<_>>>()?;
        Ok(Self {
            topic: options.connection.topic.clone(),
            watermarks: marks,
            offset_client: asker,
            consumers: lanes,
            reads: std::sync::atomic::AtomicU64::new(0),
            passed_gaps: options.passed_gaps.clone(),
        })
    }

    /// Serves the events of the consumers; their records come through the queues of the cursors.
    pub(super) fn poll_events(&self) {
        for lane in &self.consumers {
            self.pause_idle(lane);
            while let Some(event) = lane.consumer.poll(Duration::ZERO) {
                if let Err(error) = event {
                    tracing::debug!(%error, "Kafka reader");
                }
            }
        }
    }

    /// Cursors that fetch.
    #[cfg(test)]
    pub fn fetching(&self) -> usize {
        self.consumers
            .iter()
            .flat_map(|lane| &lane.cursors)
            .filter(|cursor| lock(cursor).last_polled.is_some())
            .count()
    }

    /// Lets those cursors rest that do not take what lies ahead of them.
    fn pause_idle(&self, lane: &ReadConsumer) {
        for (shard, cursor) in (0..).map(ShardId).zip(&lane.cursors) {
            let Ok(mut cursor) = cursor.try_lock() else { continue };
            let idle =
                cursor.last_polled.as_ref().is_some_and(|asked| asked.elapsed() >= IDLE_AFTER);
            if idle && cursor.next < self.watermarks.end(shard) {
                self.unassign(lane, shard);
                cursor.last_polled = None;
            }
        }
    }

    /// See [`super::super::LogReader::read`]. The caller has compared `from` with start and end.
    pub(super) fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError> {
        let (lane, mut cursor) = self.cursor(shard, from)?;
        cursor.last_used = self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // A record left over from an earlier position is told from a gap by placing the cursor
        // anew, once.
        for last in [false, true] {
            let watch = Stopwatch::start();
            if !cursor.covers(from) {
                self.seek(lane, shard, &mut cursor, from)?;
            }
            match self.fill_buffer((lane, shard), &mut cursor, (from, max_bytes), &watch, last) {
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

    /// Whether the last offsets of the shard are none that a client is given, as far as can be
    /// seen: a record behind them would show it.
    pub(super) fn ends_in_gap(&self, shard: ShardId) -> bool {
        let cursors = self
            .consumers
            .iter()
            .filter_map(|lane| lane.cursors.get(shard.0 as usize)?.try_lock().ok());
        cursors.into_iter().any(|cursor| cursor.is_valid && cursor.empty_reads >= EMPTY_READS)
    }

    /// Stops reading shards that are somebody else's now.
    pub(super) fn unassign_shards(&self, shards: impl Iterator<Item = ShardId>) {
        for shard in shards {
            for lane in &self.consumers {
                let Some(mut cursor) = lane.cursors.get(shard.0 as usize).map(lock) else {
                    continue;
                };
                if cursor.queue.is_some() {
                    self.unassign(lane, shard);
                    *cursor = PartitionCursor::default();
                }
            }
        }
    }

    /// The lane that stands at `from`, or else the one that was not used for longest.
    fn cursor(
        &self,
        shard: ShardId,
        from: Offset,
    ) -> Result<(&ReadConsumer, MutexGuard<'_, PartitionCursor>), LogError> {
        let mut free = Vec::with_capacity(READ_CONSUMERS);
        for lane in &self.consumers {
            let cursor = lane.cursors.get(shard.0 as usize).ok_or(LogError::BeyondEnd {
                shard,
                from,
                end: 0,
            })?;
            let guard = match cursor.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            if guard.covers(from) {
                return Ok((lane, guard));
            }
            free.push((lane, guard));
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

    fn unassign(&self, lane: &ReadConsumer, shard: ShardId) {
        let unassigned = self
            .partition_list(shard, None)
            .and_then(|list| lane.consumer.incremental_unassign(&list));
        if let Err(error) = unassigned {
            tracing::debug!(shard = shard.0, %error, "was not assigned");
        }
    }

    /// Fetches from `from` on.
    fn seek(
        &self,
        lane: &ReadConsumer,
        shard: ShardId,
        cursor: &mut PartitionCursor,
        from: Offset,
    ) -> Result<(), LogError> {
        self.fetch_from(lane, shard, cursor, from)?;
        cursor.buffer.clear();
        (cursor.next, cursor.is_valid) = (from, true);
        Ok(())
    }

    /// Has the client fetch from an offset on, and nothing else of the shard any more.
    fn fetch_from(
        &self,
        lane: &ReadConsumer,
        shard: ShardId,
        cursor: &mut PartitionCursor,
        first: Offset,
    ) -> Result<(), LogError> {
        let failed = |error: KafkaError| LogError::Io(format!("shard {shard}: {error}"));
        if cursor.last_polled.take().is_some() {
            self.unassign(lane, shard);
        }
        if cursor.queue.is_none() {
            // Split off before anything is assigned, so that no record can come through the
            // consumer itself.
            cursor.queue = lane.consumer.split_partition_queue(&self.topic, partition(shard));
        }
        while let Some(queue) = &cursor.queue
            && queue.poll(Duration::ZERO).is_some()
        {}
        cursor.at_end = false;
        lane.consumer
            .incremental_assign(&self.partition_list(shard, Some(first)).map_err(failed)?)
            .map_err(failed)?;
        cursor.last_polled = Some(Stopwatch::start());
        Ok(())
    }

    /// Waits until the buffer holds the record at `from`, and takes what else is there. `anew` says
    /// that the cursor was placed for this.
    fn fill_buffer(
        &self,
        (lane, shard): (&ReadConsumer, ShardId),
        cursor: &mut PartitionCursor,
        (from, max_bytes): (Offset, usize),
        watch: &Stopwatch,
        anew: bool,
    ) -> Result<(), LogError> {
        let mut bytes = cursor.drop_below(from);
        while bytes < max_bytes.max(1) {
            if cursor.last_polled.is_none() {
                self.fetch_from(lane, shard, cursor, cursor.next)?;
            }
            cursor.last_polled = Some(Stopwatch::start());
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
            if offset < cursor.next {
                continue;
            }
            if offset > cursor.next {
                if bytes > 0 {
                    // What lies below the gap comes first.
                    cursor.is_valid = false;
                    break;
                }
                bytes += self.skip_gap(shard, cursor, from, offset, anew)?;
            }
            cursor.next += 1;
            let appended = append_time(time, &payload);
            if offset >= from {
                bytes += payload.len().max(1);
                cursor.buffer.push_back(LogRecord { offset, appended, received: time, payload });
            }
            self.watermarks.raise_end(shard, offset + 1);
        }
        let in_vain = bytes == 0
            && cursor.at_end
            && cursor.next < self.watermarks.end(shard)
            && watch.elapsed() >= READ_TIMEOUT;
        cursor.empty_reads = if in_vain { cursor.empty_reads + 1 } else { 0 };
        Ok(())
    }

    /// Goes over the offsets up to `to`, which the client does not hand out, if they are the
    /// broker's own or a person has said so. The bytes of what stands in for those from `from`
    /// on.
    fn skip_gap(
        &self,
        shard: ShardId,
        cursor: &mut PartitionCursor,
        from: Offset,
        to: Offset,
        anew: bool,
    ) -> Result<usize, LogError> {
        let gap = OffsetRange { from: cursor.next, to };
        let lost = || {
            let OffsetRange { from, to } = gap;
            LogError::Corrupt(format!(
                "shard {shard}: the records [{from}, {to}) are not there; compaction or another \
                 program made a gap, and nothing proves that it held nothing of Rollmill's. If \
                 that is certain, kafka.passed_gaps = {shard}:{from}-{to} passes it: \
                 docs/operations.md, \"Kafka\""
            ))
        };
        // A record left over from an earlier position makes a gap that a second look does not find.
        if !anew {
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
                // It holds nothing: what stands in for it is as late as the record before.
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

    /// What an error of the queue means; none if it passes by itself.
    fn read_error(&self, shard: ShardId, from: Offset, error: &KafkaError) -> Option<LogError> {
        let code = match error {
            KafkaError::MessageConsumption(code) | KafkaError::MessageConsumptionFatal(code) => {
                *code
            }
            _ => return Some(LogError::Io(format!("shard {shard}: {error}"))),
        };
        match code {
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                Some(self.out_of_range(shard, from))
            }
            RDKafkaErrorCode::LogTruncation => Some(LogError::Replaced(format!(
                "shard {shard} was cut below offset {from} by an election that lost records"
            ))),
            RDKafkaErrorCode::BadMessage | RDKafkaErrorCode::InvalidMessage => {
                Some(LogError::Corrupt(format!(
                    "shard {shard}, offset {from} or above: the broker sent damaged bytes \
                     ({error})"
                )))
            }
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition => {
                Some(LogError::Replaced(format!(
                    "shard {shard}: the topic {} is gone ({error})",
                    self.topic
                )))
            }
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                Some(LogError::Io(format!("shard {shard}: {error}")))
            }
            // Brokers that are down or not leaders any more: the client goes on by itself.
            _ => {
                tracing::debug!(shard = shard.0, %error, "Kafka reader");
                None
            }
        }
    }

    fn out_of_range(&self, shard: ShardId, from: Offset) -> LogError {
        let asked = |what| self.offset_client.list_offset(shard, what).ok().flatten();
        match (asked(OffsetSpec::Earliest), asked(OffsetSpec::Latest)) {
            (Some(start), _) if from < start => {
                self.watermarks.set_start(shard, start);
                LogError::Released { shard, from, start }
            }
            (_, Some(end)) if from > end => {
                LogError::Replaced(format!("shard {shard} ends at {end}, below offset {from}"))
            }
            (start, _) => {
                // Released up to `from` meanwhile: the record before it cannot be looked at.
                // Placing the cursor anew finds out.
                start.into_iter().for_each(|start| self.watermarks.set_start(shard, start));
                LogError::Corrupt(format!("shard {shard}: offset {from} was out of range"))
            }
        }
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
