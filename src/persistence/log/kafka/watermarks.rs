//! The last known start and end of each shard, and how old that knowledge is.

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

/// A regressed end is believed only if it persists this long. A broker that has lost its leadership
/// without noticing may report an old end for a moment.
const REGRESSION_GRACE: Duration = Duration::from_secs(5);

/// The partition of a shard, which has the same number.
pub(super) fn partition(shard: ShardId) -> i32 {
    i32::try_from(shard.0).unwrap_or(i32::MAX)
}

/// The shard of a partition, which has the same number.
pub(super) fn shard(partition: i32) -> ShardId {
    ShardId(partition.unsigned_abs())
}

/// The known offsets of one shard.
#[derive(Debug, Default)]
struct PartitionWatermarks {
    start: AtomicU64,
    end: AtomicU64,
    end_as_of: AtomicI64,
    regressed_since: Mutex<Option<Stopwatch>>,
}

/// The known offsets of all shards.
#[derive(Debug)]
pub(super) struct TopicWatermarks {
    partitions: Vec<PartitionWatermarks>,
}

impl TopicWatermarks {
    /// All shards start empty.
    pub(super) fn new(shards: u32) -> Self {
        Self { partitions: (0..shards).map(|_| PartitionWatermarks::default()).collect() }
    }

    fn get(&self, shard: ShardId) -> Option<&PartitionWatermarks> {
        self.partitions.get(shard.0 as usize)
    }

    /// First retained offset of the shard.
    pub(super) fn start(&self, shard: ShardId) -> Offset {
        self.get(shard).map_or(0, |known| known.start.load(Ordering::Acquire))
    }

    /// Exclusive end of the records known to be durable.
    pub(super) fn end(&self, shard: ShardId) -> Offset {
        self.get(shard).map_or(0, |known| known.end.load(Ordering::Acquire))
    }

    /// The time on the boot clock at which the known end was requested.
    pub(super) fn end_as_of(&self, shard: ShardId) -> Millis {
        self.get(shard).map_or(0, |known| known.end_as_of.load(Ordering::Acquire))
    }

    /// Raises the end after a record below it was acknowledged or read.
    pub(super) fn raise_end(&self, shard: ShardId, end: Offset) {
        if let Some(known) = self.get(shard) {
            known.end.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// Sets the first retained offset.
    pub(super) fn set_start(&self, shard: ShardId, start: Offset) {
        if let Some(known) = self.get(shard) {
            known.start.store(start, Ordering::Release);
        }
    }

    /// Takes the end that a broker reported for a request made at `asked`, on the boot clock.
    pub(super) fn observe_end(&self, shard: ShardId, end: Offset, asked: Millis) {
        let Some(known) = self.get(shard) else { return };
        let mut regressed = known.regressed_since.lock().unwrap_or_else(PoisonError::into_inner);
        if end >= known.end.load(Ordering::Acquire) {
            *regressed = None;
            drop(regressed);
            // The end first: whoever sees the new time must not pair it with the old end.
            self.raise_end(shard, end);
            known.end_as_of.store(asked, Ordering::Release);
            return;
        }
        let since = regressed.get_or_insert_with(Stopwatch::start).elapsed();
        if since >= REGRESSION_GRACE {
            let seen = known.end.swap(end, Ordering::AcqRel);
            *regressed = None;
            tracing::error!(
                shard = shard.0,
                seen,
                end,
                "the log ends below what was read of it: it lost records or was replaced"
            );
        }
    }

    /// Whether the last reported end is below the known one.
    pub(super) fn has_regressed(&self, shard: ShardId) -> bool {
        self.get(shard).is_some_and(|known| {
            known.regressed_since.lock().unwrap_or_else(PoisonError::into_inner).is_some()
        })
    }
}

/// What to ask a broker for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OffsetSpec {
    /// The first retained offset.
    Earliest,
    /// The exclusive end of durable records.
    Latest,
    /// The offset of the first record appended at this time or later.
    ForTimestamp(Millis),
}

/// Asks brokers for offsets, with one request per broker.
pub(super) struct OffsetClient {
    consumer: BaseConsumer<QuietContext>,
    topic: String,
    timeout: Duration,
}

impl OffsetClient {
    /// A client that connects on its first request. Fails if the settings are rejected.
    pub(super) fn new(connection: &KafkaConnection) -> KafkaResult<Self> {
        let consumer = connection.offset_client_config().create_with_context(QuietContext)?;
        Ok(Self { consumer, topic: connection.topic.clone(), timeout: connection.timeout })
    }

    /// The shards, grouped by the broker that leads them. Leaves out partitions without a leader.
    /// Fails if no broker answers.
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

    /// The offsets for these shards, `None` where there is no such record. Leaves out shards
    /// without an answer, for example without a leader. Fails if a broker does not answer.
    pub(super) fn list_offsets(
        &self,
        shards: &[ShardId],
        spec: OffsetSpec,
    ) -> KafkaResult<Vec<(ShardId, Option<Offset>)>> {
        if shards.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = TopicPartitionList::with_capacity(shards.len());
        let at = match spec {
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
                At::End if matches!(spec, OffsetSpec::ForTimestamp(_)) => {
                    Some((shard(found.partition()), None))
                }
                _ => None,
            }
        };
        Ok(answers.elements().into_iter().filter_map(answer).collect())
    }

    /// The offset for one shard. Fails if a broker does not answer, or the shard has no leader.
    pub(super) fn list_offset(
        &self,
        shard: ShardId,
        spec: OffsetSpec,
    ) -> KafkaResult<Option<Offset>> {
        let answers = self.list_offsets(&[shard], spec)?;
        let found = answers.first().map(|(_, offset)| *offset);
        found.ok_or(KafkaError::MetadataFetch(rdkafka::types::RDKafkaErrorCode::LeaderNotAvailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_goes_back_is_not_believed_at_once_and_proves_nothing() {
        let watermarks = TopicWatermarks::new(2);
        watermarks.observe_end(ShardId(1), 5, 100);
        assert_eq!((watermarks.end(ShardId(1)), watermarks.end_as_of(ShardId(1))), (5, 100));
        watermarks.observe_end(ShardId(1), 3, 200);
        assert_eq!(
            (
                watermarks.end(ShardId(1)),
                watermarks.end_as_of(ShardId(1)),
                watermarks.has_regressed(ShardId(1))
            ),
            (5, 100, true)
        );
        watermarks.observe_end(ShardId(1), 6, 300);
        assert_eq!(
            (
                watermarks.end(ShardId(1)),
                watermarks.end_as_of(ShardId(1)),
                watermarks.has_regressed(ShardId(1))
            ),
            (6, 300, false)
        );
    }

    #[test]
    fn what_is_acknowledged_or_read_raises_the_end_but_says_nothing_of_the_time() {
        let watermarks = TopicWatermarks::new(1);
        watermarks.raise_end(ShardId(0), 4);
        watermarks.raise_end(ShardId(0), 2);
        assert_eq!((watermarks.end(ShardId(0)), watermarks.end_as_of(ShardId(0))), (4, 0));
        watermarks.raise_end(ShardId(9), 4);
        assert_eq!(
            (watermarks.end(ShardId(9)), watermarks.start(ShardId(9))),
            (0, 0),
            "a shard that does not exist is empty"
        );
    }
}
