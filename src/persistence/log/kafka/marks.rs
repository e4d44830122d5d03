//! Starts and ends of the shards as last learned, and how old that knowledge is.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use tokio::sync::watch;

use super::settings::{Connection, Quiet};
use crate::clock::Stopwatch;
use crate::model::offset::{Offset, ShardId};
use crate::model::window::Millis;

/// An end that is said to lie below one that was seen counts when it is still said after this time:
/// a broker that has lost its leadership without knowing it may say so for a moment.
const BELIEVED_AFTER: Duration = Duration::from_secs(5);

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
struct Mark {
    start: AtomicU64,
    end: AtomicU64,
    known_at: AtomicI64,
    behind: Mutex<Option<Stopwatch>>,
}

/// What is known of the shards.
#[derive(Debug)]
pub(super) struct Marks {
    marks: Vec<Mark>,
    appended: watch::Sender<u64>,
}

impl Marks {
    /// Nothing is known yet.
    pub(super) fn new(shards: u32) -> Self {
        Self {
            marks: (0..shards).map(|_| Mark::default()).collect(),
            appended: watch::Sender::new(0),
        }
    }

    fn of(&self, shard: ShardId) -> Option<&Mark> {
        self.marks.get(shard.0 as usize)
    }

    /// First offset kept.
    pub(super) fn start(&self, shard: ShardId) -> Offset {
        self.of(shard).map_or(0, |mark| mark.start.load(Ordering::Acquire))
    }

    /// First offset behind the last record known to be durable.
    pub(super) fn end(&self, shard: ShardId) -> Offset {
        self.of(shard).map_or(0, |mark| mark.end.load(Ordering::Acquire))
    }

    /// When the end was asked for that is known now, on the boot clock.
    pub(super) fn known_at(&self, shard: ShardId) -> Millis {
        self.of(shard).map_or(0, |mark| mark.known_at.load(Ordering::Acquire))
    }

    /// Changes whenever records are seen to be durable.
    pub(super) fn appended(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }

    /// A durable record below `end` was seen: acknowledged, or read.
    pub(super) fn seen(&self, shard: ShardId, end: Offset) {
        let raised =
            self.of(shard).is_some_and(|mark| mark.end.fetch_max(end, Ordering::AcqRel) < end);
        if raised {
            self.appended.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// The log begins at `start` now.
    pub(super) fn starts(&self, shard: ShardId, start: Offset) {
        if let Some(mark) = self.of(shard) {
            mark.start.store(start, Ordering::Release);
        }
    }

    /// A broker, asked at `asked` on the boot clock, said that the shard ends at `end`.
    pub(super) fn ends(&self, shard: ShardId, end: Offset, asked: Millis) {
        let Some(mark) = self.of(shard) else { return };
        let mut behind = mark.behind.lock().unwrap_or_else(PoisonError::into_inner);
        if end >= mark.end.load(Ordering::Acquire) {
            *behind = None;
            drop(behind);
            self.seen(shard, end);
            mark.known_at.store(asked, Ordering::Release);
            return;
        }
        let since = behind.get_or_insert_with(Stopwatch::start).elapsed();
        if since >= BELIEVED_AFTER {
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
    pub(super) fn is_behind(&self, shard: ShardId) -> bool {
        self.of(shard).is_some_and(|mark| {
            mark.behind.lock().unwrap_or_else(PoisonError::into_inner).is_some()
        })
    }
}

/// What to ask a broker for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// The first offset kept.
    Start,
    /// The first offset behind the last durable record.
    End,
    /// The first record appended at this time or later.
    Since(Millis),
}

/// Asks brokers for offsets, one request per broker.
pub(super) struct Asker {
    consumer: BaseConsumer<Quiet>,
    topic: String,
    timeout: Duration,
}

impl Asker {
    /// Connects by itself when asked.
    ///
    /// # Errors
    /// If the settings are refused.
    pub(super) fn new(connection: &Connection) -> KafkaResult<Self> {
        let consumer = connection.asker().create_with_context(Quiet)?;
        Ok(Self { consumer, topic: connection.topic.clone(), timeout: connection.timeout })
    }

    /// The shards by the broker that leads them.
    ///
    /// # Errors
    /// If no broker answers.
    pub(super) fn leaders(&self) -> KafkaResult<Vec<Vec<ShardId>>> {
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
    pub(super) fn ask(
        &self,
        shards: &[ShardId],
        what: Ask,
    ) -> KafkaResult<Vec<(ShardId, Option<Offset>)>> {
        if shards.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = TopicPartitionList::with_capacity(shards.len());
        let at = match what {
            Ask::Start => At::Beginning,
            Ask::End => At::End,
            Ask::Since(time) => At::Offset(time.max(0)),
        };
        for shard in shards {
            list.add_partition_offset(&self.topic, partition(*shard), at)?;
        }
        let answers = self.consumer.offsets_for_times(list, self.timeout)?;
        let answer = |found: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            found.error().ok()?;
            match found.offset() {
                At::Offset(offset) => Some((shard(found.partition()), Some(offset.unsigned_abs()))),
                At::End if matches!(what, Ask::Since(_)) => Some((shard(found.partition()), None)),
                _ => None,
            }
        };
        Ok(answers.elements().into_iter().filter_map(answer).collect())
    }

    /// The answer for one shard.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn one(&self, shard: ShardId, what: Ask) -> KafkaResult<Option<Offset>> {
        let answers = self.ask(&[shard], what)?;
        let found = answers.first().map(|(_, offset)| *offset);
        found.ok_or(KafkaError::MetadataFetch(rdkafka::types::RDKafkaErrorCode::LeaderNotAvailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_goes_back_is_not_believed_at_once_and_proves_nothing() {
        let marks = Marks::new(2);
        marks.ends(ShardId(1), 5, 100);
        assert_eq!((marks.end(ShardId(1)), marks.known_at(ShardId(1))), (5, 100));
        marks.ends(ShardId(1), 3, 200);
        assert_eq!(
            (marks.end(ShardId(1)), marks.known_at(ShardId(1)), marks.is_behind(ShardId(1))),
            (5, 100, true)
        );
        marks.ends(ShardId(1), 6, 300);
        assert_eq!(
            (marks.end(ShardId(1)), marks.known_at(ShardId(1)), marks.is_behind(ShardId(1))),
            (6, 300, false)
        );
    }

    #[test]
    fn what_is_acknowledged_or_read_raises_the_end_but_says_nothing_of_the_time() {
        let marks = Marks::new(1);
        let appended = marks.appended();
        marks.seen(ShardId(0), 4);
        marks.seen(ShardId(0), 2);
        assert_eq!((marks.end(ShardId(0)), marks.known_at(ShardId(0))), (4, 0));
        assert!(appended.has_changed().expect("the marks live"));
        marks.seen(ShardId(9), 4);
        assert_eq!(
            (marks.end(ShardId(9)), marks.start(ShardId(9))),
            (0, 0),
            "a shard that does not exist is empty"
        );
    }
}
