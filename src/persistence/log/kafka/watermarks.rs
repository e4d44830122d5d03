//! Starts and ends of the shards as last learned, and how old that knowledge is.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};

use super::settings::{KafkaConnection, QuietContext};
use crate::clock::Stopwatch;
use crate::model::offset::{Offset, ShardId};
use crate::model::window::Millis;

/// An end that is said to lie below one that was seen counts when it is still said after this time:
/// a broker that has lost its leadership without knowing it may say so for a moment.
const REGRESSION_GRACE: Duration = Duration::from_secs(5);

/// Shard n is partition n.
pub(super) fn partition(shard: ShardId) -> i32 {
    i32::try_from(shard.0).unwrap_or(i32::MAX)
}

/// Partition n is shard n.
pub(super) fn shard(partition: i32) -> ShardId {
    ShardId(partition.unsigned_abs())
}

/// What is known of one shard.
#[derive(Debug, Default)]
struct PartitionWatermarks {
    start: AtomicU64,
    end: AtomicU64,
    end_as_of: AtomicI64,
    regressed_since: Mutex<Option<Stopwatch>>,
}

/// What is known of the shards.
#[derive(Debug)]
pub(super) struct TopicWatermarks {
    partitions: Vec<PartitionWatermarks>,
}

impl TopicWatermarks {
    /// Nothing is known yet.
    pub(super) fn new(shards: u32) -> Self {
        Self { partitions: (0..shards).map(|_| PartitionWatermarks::default()).collect() }
    }

    fn get(&self, shard: ShardId) -> Option<&PartitionWatermarks> {
        self.partitions.get(shard.0 as usize)
    }

    /// First offset kept.
    pub(super) fn start(&self, shard: ShardId) -> Offset {
        self.get(shard).map_or(0, |mark| mark.start.load(Ordering::Acquire))
    }

    /// First offset behind the last record known to be durable.
    pub(super) fn end(&self, shard: ShardId) -> Offset {
        self.get(shard).map_or(0, |mark| mark.end.load(Ordering::Acquire))
    }

    /// When the end was asked for that is known now, on the boot clock.
    pub(super) fn end_as_of(&self, shard: ShardId) -> Millis {
        self.get(shard).map_or(0, |mark| mark.end_as_of.load(Ordering::Acquire))
    }

    /// A durable record below `end` was seen: acknowledged, or read.
    pub(super) fn raise_end(&self, shard: ShardId, end: Offset) {
        if let Some(mark) = self.get(shard) {
            mark.end.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// The log begins at `start` now.
    pub(super) fn set_start(&self, shard: ShardId, start: Offset) {
        if let Some(mark) = self.get(shard) {
            mark.start.store(start, Ordering::Release);
        }
    }

    /// A broker, asked at `asked` on the boot clock, said that the shard ends at `end`.
    pub(super) fn observe_end(&self, shard: ShardId, end: Offset, asked: Millis) {
        let Some(mark) = self.get(shard) else { return };
        let mut behind = mark.regressed_since.lock().unwrap_or_else(PoisonError::into_inner);
        if end >= mark.end.load(Ordering::Acquire) {
            *behind = None;
            drop(behind);
            self.raise_end(shard, end);
            mark.end_as_of.store(asked, Ordering::Release);
            return;
        }
        let since = behind.get_or_insert_with(Stopwatch::start).elapsed();
        if since >= REGRESSION_GRACE {
            let seen = mark.end.swap(end, Ordering::AcqRel);
            *behind = None;
            tracing::error!(
                shard = shard.0,
                seen,
                end,
                "the log ends below what was read of it: it lost records or was replaced"
            );
        }
    }

    /// Whether a broker says that the shard ends below what was seen.
    pub(super) fn has_regressed(&self, shard: ShardId) -> bool {
        self.get(shard).is_some_and(|mark| {
            mark.regressed_since.lock().unwrap_or_else(PoisonError::into_inner).is_some()
        })
    }
}

/// What to ask a broker for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OffsetSpec {
    /// The first offset kept.
    Earliest,
    /// The first offset behind the last durable record.
    Latest,
    /// The first record appended at this time or later.
    ForTimestamp(Millis),
}

/// Asks brokers for offsets, one request per broker.
pub(super) struct OffsetClient {
    consumer: BaseConsumer<QuietContext>,
    topic: String,
    timeout: Duration,
}

impl OffsetClient {
    /// Connects by itself when asked.
    ///
    /// # Errors
    /// If the settings are refused.
    pub(super) fn new(connection: &KafkaConnection) -> KafkaResult<Self> {
        let consumer = connection.offset_client_config().create_with_context(QuietContext)?;
        Ok(Self { consumer, topic: connection.topic.clone(), timeout: connection.timeout })
    }

    /// The shards by the broker that leads them.
    ///
    /// # Errors
    /// If no broker answers.
    pub(super) fn shards_by_leader(&self) -> KafkaResult<Vec<Vec<ShardId>>> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), self.timeout)?;
        let mut by_leader: std::collections::BTreeMap<i32, Vec<ShardId>> =
            std::collections::BTreeMap::new();
        for found in metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions())
            .filter(|found| found.leader() >= 0)
        {
            by_leader.entry(found.leader()).or_default().push(shard(found.id()));
        }
        Ok(by_leader.into_values().collect())
    }

    /// The answers for these shards; none where there is no such record. Shards without an answer
    /// are left out.
    ///
    /// # Errors
    /// If a broker does not answer.
    pub(super) fn list_offsets(
        &self,
        shards: &[ShardId],
        what: OffsetSpec,
    ) -> KafkaResult<Vec<(ShardId, Option<Offset>)>> {
        if shards.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = TopicPartitionList::with_capacity(shards.len());
        let at = match what {
            OffsetSpec::Earliest => At::Beginning,
            OffsetSpec::Latest => At::End,
            OffsetSpec::ForTimestamp(time) => At::Offset(time.max(0)),
        };
        for shard in shards {
            list.add_partition_offset(&self.topic, partition(*shard), at)?;
        }
        let answers = self.consumer.offsets_for_times(list, self.timeout)?;
        let answer = |found: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            found.error().ok()?;
            match found.offset() {
                At::Offset(offset) => Some((shard(found.partition()), Some(offset.unsigned_abs()))),
                At::End if matches!(what, OffsetSpec::ForTimestamp(_)) => {
                    Some((shard(found.partition()), None))
                }
                _ => None,
            }
        };
        Ok(answers.elements().into_iter().filter_map(answer).collect())
    }

    /// The answer for one shard.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn list_offset(
        &self,
        shard: ShardId,
        what: OffsetSpec,
    ) -> KafkaResult<Option<Offset>> {
        let answers = self.list_offsets(&[shard], what)?;
        let found = answers.first().map(|(_, offset)| *offset);
        found.ok_or(KafkaError::MetadataFetch(rdkafka::types::RDKafkaErrorCode::LeaderNotAvailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_goes_back_is_not_believed_at_once_and_proves_nothing() {
        let marks = TopicWatermarks::new(2);
        marks.observe_end(ShardId(1), 5, 100);
        assert_eq!((marks.end(ShardId(1)), marks.end_as_of(ShardId(1))), (5, 100));
        marks.observe_end(ShardId(1), 3, 200);
        assert_eq!(
            (marks.end(ShardId(1)), marks.end_as_of(ShardId(1)), marks.has_regressed(ShardId(1))),
            (5, 100, true)
        );
        marks.observe_end(ShardId(1), 6, 300);
        assert_eq!(
            (marks.end(ShardId(1)), marks.end_as_of(ShardId(1)), marks.has_regressed(ShardId(1))),
            (6, 300, false)
        );
    }

    #[test]
    fn what_is_acknowledged_or_read_raises_the_end_but_says_nothing_of_the_time() {
        let marks = TopicWatermarks::new(1);
        marks.raise_end(ShardId(0), 4);
        marks.raise_end(ShardId(0), 2);
        assert_eq!((marks.end(ShardId(0)), marks.end_as_of(ShardId(0))), (4, 0));
        marks.raise_end(ShardId(9), 4);
        assert_eq!(
            (marks.end(ShardId(9)), marks.start(ShardId(9))),
            (0, 0),
            "a shard that does not exist is empty"
        );
    }
}
