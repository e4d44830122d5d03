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

use super::gaps::{kept_by_the_broker, stand_in, time_below};
use super::marks::{Ask, Asker, Marks, partition};
use super::settings::{Gaps, KafkaOptions, LANES, Quiet};
use super::times::{append_time, maximum_below};
use crate::clock::Stopwatch;
use crate::model::flush::LogRecord;
use crate::model::offset::{Offset, OffsetRange, ShardId};
use crate::model::window::Millis;
use crate::persistence::log::LogError;

/// A read gives up after this and returns nothing: the pulse comes back.
const WAIT: Duration = Duration::from_secs(1);
/// Reads in a row that get nothing of what is said to be there, before anything is made of it.
const IN_VAIN: u32 = 2;
/// A cursor rests when nobody has taken for so long what lies ahead of it.
const REST_AFTER: Duration = Duration::from_secs(1);
/// What a read returned is kept for the next one up to this size: the archiver looks at one record
/// again and again until it is due.
const KEPT_BYTES: usize = 1 << 20;

/// Where a lane stands in one shard.
#[derive(Default)]
struct Cursor {
    queue: Option<PartitionQueue<Quiet>>,
    /// Records from the last position asked for, then those of the queue.
    buffer: VecDeque<LogRecord>,
    /// What the queue gives next.
    next: Offset,
    /// Once a cursor has failed, its position means nothing.
    placed: bool,
    /// When its queue was asked last; none while it rests, and nothing is fetched.
    asked: Option<Stopwatch>,
    /// The client has been at the end of the partition since it was told where to fetch from.
    at_end: bool,
    /// Reads in a row that got nothing although the client is at the end and more is said to be
    /// there.
    in_vain: u32,
    /// When it was used last, counted in reads.
    used: u64,
}

impl Cursor {
    fn covers(&self, from: Offset) -> bool {
        let first = self.buffer.front().map_or(self.next, |record| record.offset);
        self.placed && (first..=self.next).contains(&from)
    }

    /// Drops what lies below `from`; the bytes that stay.
    fn forget_below(&mut self, from: Offset) -> usize {
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
        if records.iter().map(|record| record.payload.len()).sum::<usize>() > KEPT_BYTES {
            self.buffer.drain(..records.len());
        }
        records
    }
}

struct Lane {
    consumer: Arc<BaseConsumer<Quiet>>,
    cursors: Vec<Mutex<Cursor>>,
}

/// The reading side of the log.
pub(super) struct Reading {
    topic: String,
    marks: Arc<Marks>,
    asker: Arc<Asker>,
    lanes: Vec<Lane>,
    reads: std::sync::atomic::AtomicU64,
    passed_gaps: Gaps,
}

impl Reading {
    /// Nothing is fetched before it is asked for.
    ///
    /// # Errors
    /// If the settings are refused.
    pub(super) fn new(
        options: &KafkaOptions,
        marks: Arc<Marks>,
        asker: Arc<Asker>,
    ) -> KafkaResult<Self> {
        let lane = |_| {
            let consumer: BaseConsumer<Quiet> = options.reader().create_with_context(Quiet)?;
            let cursors = (0..options.shard_count).map(|_| Mutex::default()).collect();
            Ok(Lane { consumer: Arc::new(consumer), cursors })
        };
        let lanes = (0..LANES).map(lane).collect::<KafkaResult<Vec<_>>>()?;
        Ok(Self {
            topic: options.connection.topic.clone(),
            marks,
            asker,
            lanes,
            reads: std::sync::atomic::AtomicU64::new(0),
            passed_gaps: options.passed_gaps.clone(),
        })
    }

    /// Serves the events of the consumers; their records come through the queues of the cursors.
    pub(super) fn serve(&self) {
        for lane in &self.lanes {
            self.rest(lane);
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
        self.lanes
            .iter()
            .flat_map(|lane| &lane.cursors)
            .filter(|cursor| lock(cursor).asked.is_some())
            .count()
    }

    /// Lets those cursors rest that do not take what lies ahead of them.
    fn rest(&self, lane: &Lane) {
        for (shard, cursor) in (0..).map(ShardId).zip(&lane.cursors) {
            let Ok(mut cursor) = cursor.try_lock() else { continue };
            let idle = cursor.asked.as_ref().is_some_and(|asked| asked.elapsed() >= REST_AFTER);
            if idle && cursor.next < self.marks.end(shard) {
                self.unassign(lane, shard);
                cursor.asked = None;
            }
        }
    }

    /// See [`super::super::EventLog::read`]. The caller has compared `from` with start and end.
    pub(super) fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError> {
        let (lane, mut cursor) = self.cursor(shard, from)?;
        cursor.used = self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // A record left over from an earlier position is told from a gap by placing the cursor
        // anew, once.
        for last in [false, true] {
            let watch = Stopwatch::start();
            if !cursor.covers(from) {
                self.place(lane, shard, &mut cursor, from)?;
            }
            match self.fill((lane, shard), &mut cursor, (from, max_bytes), &watch, last) {
                Ok(()) => break,
                Err(LogError::Corrupt(why)) if !last => {
                    tracing::debug!(shard = shard.0, %why, "placing the cursor anew");
                    cursor.placed = false;
                }
                Err(error) => {
                    cursor.placed = false;
                    return Err(error);
                }
            }
        }
        Ok(cursor.take(max_bytes))
    }

    /// Whether the last offsets of the shard are none that a client is given, as far as can be
    /// seen: a record behind them would show it.
    pub(super) fn ends_in_a_gap(&self, shard: ShardId) -> bool {
        let cursors = self
            .lanes
            .iter()
            .filter_map(|lane| lane.cursors.get(shard.0 as usize)?.try_lock().ok());
        cursors.into_iter().any(|cursor| cursor.placed && cursor.in_vain >= IN_VAIN)
    }

    /// Stops reading shards that are somebody else's now.
    pub(super) fn leave(&self, shards: impl Iterator<Item = ShardId>) {
        for shard in shards {
            for lane in &self.lanes {
                let Some(mut cursor) = lane.cursors.get(shard.0 as usize).map(lock) else {
                    continue;
                };
                if cursor.queue.is_some() {
                    self.unassign(lane, shard);
                    *cursor = Cursor::default();
                }
            }
        }
    }

    /// The lane that stands at `from`, or else the one that was not used for longest.
    fn cursor(
        &self,
        shard: ShardId,
        from: Offset,
    ) -> Result<(&Lane, MutexGuard<'_, Cursor>), LogError> {
        let mut free = Vec::with_capacity(LANES);
        for lane in &self.lanes {
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
        let oldest = free.into_iter().min_by_key(|(_, cursor)| (cursor.placed, cursor.used));
        Ok(oldest
            .unwrap_or_else(|| (&self.lanes[0], lock(&self.lanes[0].cursors[shard.0 as usize]))))
    }

    fn list(&self, shard: ShardId, at: Option<Offset>) -> KafkaResult<TopicPartitionList> {
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

    fn unassign(&self, lane: &Lane, shard: ShardId) {
        let unassigned =
            self.list(shard, None).and_then(|list| lane.consumer.incremental_unassign(&list));
        if let Err(error) = unassigned {
            tracing::debug!(shard = shard.0, %error, "was not assigned");
        }
    }

    /// Fetches from `from` on.
    fn place(
        &self,
        lane: &Lane,
        shard: ShardId,
        cursor: &mut Cursor,
        from: Offset,
    ) -> Result<(), LogError> {
        self.fetch(lane, shard, cursor, from)?;
        cursor.buffer.clear();
        (cursor.next, cursor.placed) = (from, true);
        Ok(())
    }

    /// Has the client fetch from an offset on, and nothing else of the shard any more.
    fn fetch(
        &self,
        lane: &Lane,
        shard: ShardId,
        cursor: &mut Cursor,
        first: Offset,
    ) -> Result<(), LogError> {
        let failed = |error: KafkaError| LogError::Io(format!("shard {shard}: {error}"));
        if cursor.asked.take().is_some() {
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
            .incremental_assign(&self.list(shard, Some(first)).map_err(failed)?)
            .map_err(failed)?;
        cursor.asked = Some(Stopwatch::start());
        Ok(())
    }

    /// Waits until the buffer holds the record at `from`, and takes what else is there. `anew` says
    /// that the cursor was placed for this.
    fn fill(
        &self,
        (lane, shard): (&Lane, ShardId),
        cursor: &mut Cursor,
        (from, max_bytes): (Offset, usize),
        watch: &Stopwatch,
        anew: bool,
    ) -> Result<(), LogError> {
        let mut bytes = cursor.forget_below(from);
        while bytes < max_bytes.max(1) {
            if cursor.asked.is_none() {
                self.fetch(lane, shard, cursor, cursor.next)?;
            }
            cursor.asked = Some(Stopwatch::start());
            let wait =
                if bytes == 0 { WAIT.saturating_sub(watch.elapsed()) } else { Duration::ZERO };
            let Some(queue) = &cursor.queue else { break };
            let message = match queue.poll(wait) {
                None => break,
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    cursor.at_end = true;
                    continue;
                }
                Some(Err(error)) => match self.failure(shard, from, &error) {
                    None => continue,
                    Some(error) => return Err(error),
                },
            };
            let (offset, time, payload) = parts(&message);
            if offset < cursor.next {
                continue;
            }
            if offset > cursor.next {
                if bytes > 0 {
                    // What lies below the gap comes first.
                    cursor.placed = false;
                    break;
                }
                bytes += self.pass(shard, cursor, from, offset, anew)?;
            }
            cursor.next += 1;
            let appended = append_time(time, &payload);
            if offset >= from {
                bytes += payload.len().max(1);
                cursor.buffer.push_back(LogRecord { offset, appended, received: time, payload });
            }
            self.marks.seen(shard, offset + 1);
        }
        let in_vain = bytes == 0
            && cursor.at_end
            && cursor.next < self.marks.end(shard)
            && watch.elapsed() >= WAIT;
        cursor.in_vain = if in_vain { cursor.in_vain + 1 } else { 0 };
        Ok(())
    }

    /// Goes over the offsets up to `to`, which the client does not hand out, if they are the
    /// broker's own or a person has said so. The bytes of what stands in for those from `from`
    /// on.
    fn pass(
        &self,
        shard: ShardId,
        cursor: &mut Cursor,
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
        let since = |time| self.asker.one(shard, Ask::Since(time));
        let failed = |error: KafkaError| LogError::Io(format!("shard {shard}: {error}"));
        let below = time_below(gap, self.marks.start(shard), since).map_err(failed)?;
        let times = match kept_by_the_broker(gap, below, since).map_err(failed)? {
            Some(times) => times,
            None if self.passed_gaps.covers(shard.0, gap.from, gap.to) => {
                vec![maximum_below(gap.to, below, since).map_err(failed)?; gap.len() as usize]
            }
            None => return Err(lost()),
        };
        tracing::warn!(
            shard = shard.0,
            "the records [{}, {}) are the broker's own (ends of transactions of another program), \
             or passed by kafka.passed_gaps: the shard goes on behind them; only Rollmill may \
             write to the topic",
            gap.from,
            gap.to
        );
        let (payload, mut bytes) = (Bytes::from(stand_in()), 0);
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
        self.marks.seen(shard, gap.to);
        Ok(bytes)
    }

    /// What an error of the queue means; none if it passes by itself.
    fn failure(&self, shard: ShardId, from: Offset, error: &KafkaError) -> Option<LogError> {
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
        let asked = |what| self.asker.one(shard, what).ok().flatten();
        match (asked(Ask::Start), asked(Ask::End)) {
            (Some(start), _) if from < start => {
                self.marks.starts(shard, start);
                LogError::Released { shard, from, start }
            }
            (_, Some(end)) if from > end => {
                LogError::Replaced(format!("shard {shard} ends at {end}, below offset {from}"))
            }
            (start, _) => {
                // Released up to `from` meanwhile: the record before it cannot be looked at.
                // Placing the cursor anew finds out.
                start.into_iter().for_each(|start| self.marks.starts(shard, start));
                LogError::Corrupt(format!("shard {shard}: offset {from} was out of range"))
            }
        }
    }
}

fn lock(cursor: &Mutex<Cursor>) -> MutexGuard<'_, Cursor> {
    cursor.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parts(message: &BorrowedMessage<'_>) -> (Offset, Millis, Bytes) {
    let time = message.timestamp().to_millis().unwrap_or(0);
    (
        message.offset().unsigned_abs(),
        time,
        Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    )
}
