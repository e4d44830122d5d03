//! Makes a new topic begin at the offsets at which another log ended, so that checkpoints, manifest
//! and admissions of that log go on to be true: each partition is filled with empty records up to
//! its offset, and the records are deleted.
//!
//! Nobody but the caller may use the topic meanwhile ([`super::topic::TopicAdmin::create_unfinished`]).
//! It goes on where an earlier attempt was killed. Records of that attempt may still arrive
//! afterwards; if they make a partition too long, the topic is of no use any more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use super::settings::{self, KafkaConnection, MESSAGE_BYTES, log_client_error};
use super::topic::TopicAdmin;
use super::watermarks::{OffsetClient, OffsetSpec, partition};
use crate::clock::Stopwatch;
use crate::model::offset::{Offset, ShardId};

/// Records of one batch: an empty one takes some eight bytes.
const BATCH_RECORDS: u64 = 50_000;
/// Records that wait for their acknowledgement, at most: some hundred bytes each.
const MAX_IN_FLIGHT: u64 = 500_000;
/// An outage of the brokers that ends by then ends nothing else.
const DELIVERY_MS: &str = "120000";

/// So many times the patience with one request, for leaders to be elected and deletions to be done.
const TIMEOUT_FACTOR: u32 = 4;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a topic could not be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// It is longer than it is to be; offsets never go back.
    #[error("shard {shard} of the topic ends at {end} already, above {wanted}")]
    TooLong {
        /// The shard.
        shard: ShardId,
        /// Where it ends.
        end: Offset,
        /// Where it is to end.
        wanted: Offset,
    },
    /// The cluster.
    #[error("the topic cannot be filled: {0}")]
    Failed(String),
}

fn failed(error: KafkaError) -> FillError {
    FillError::Failed(error.to_string())
}

#[derive(Default)]
struct FillOutcomes {
    acknowledged: AtomicU64,
    failure: OnceLock<String>,
}

struct FillContext(Arc<FillOutcomes>);

impl ClientContext for FillContext {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        settings::log_client_message(level, facility, message);
    }
}

impl ProducerContext for FillContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => _ = self.0.acknowledged.fetch_add(1, Ordering::Relaxed),
            // The first reason is kept.
            Err((error, _)) => _ = self.0.failure.set(error.to_string()),
        }
    }
}

/// Brings shard n of the topic to `[ends[n], ends[n])`. `progress` is
/// told how many of the records are there.
///
/// # Errors
/// See [`FillError`].
pub fn fill_topic(
    admin: &TopicAdmin,
    connection: &KafkaConnection,
    ends: &[Offset],
    progress: &mut dyn FnMut(u64),
) -> Result<(), FillError> {
    let shards: Vec<ShardId> = (0..ends.len() as u32).map(ShardId).collect();
    let mut brokers = FillClient { connection, offset_client: None };
    let missing = missing_records(&brokers.list_offsets(&shards, OffsetSpec::Latest)?, ends)?;
    let there = ends.iter().sum::<u64>() - missing.iter().sum::<u64>();
    progress(there);
    append_empty_records(connection, missing, &mut |acknowledged| progress(there + acknowledged))?;
    let found = brokers.list_offsets(&shards, OffsetSpec::Latest)?;
    if let Some(at) = self::missing_records(&found, ends)?.iter().position(|left| *left > 0) {
        return Err(FillError::Failed(format!(
            "shard {at} ends below {} though all records were acknowledged",
            ends[at]
        )));
    }
    brokers.delete_records(admin, ends)
}

/// How many records each shard lacks.
fn missing_records(found: &ShardOffsets, ends: &[Offset]) -> Result<Vec<u64>, FillError> {
    let one = |(&shard, &end): (&ShardId, &Option<Offset>)| {
        let (end, wanted) = (end.unwrap_or(0), ends.get(shard.0 as usize).copied().unwrap_or(0));
        wanted.checked_sub(end).ok_or(FillError::TooLong { shard, end, wanted })
    };
    found.iter().map(one).collect()
}

/// What the brokers say of each shard.
type ShardOffsets = BTreeMap<ShardId, Option<Offset>>;

/// Asks the brokers; after a failure as a new client, because what one believes of a topic that has
/// just been made may stay wrong.
struct FillClient<'a> {
    connection: &'a KafkaConnection,
    offset_client: Option<OffsetClient>,
}

impl FillClient<'_> {
    /// Asks until every shard has answered.
    fn list_offsets(
        &mut self,
        shards: &[ShardId],
        what: OffsetSpec,
    ) -> Result<ShardOffsets, FillError> {
        retry_until_timeout(self.connection, || {
            // Put back only if it was of use.
            let asker = self
                .offset_client
                .take()
                .map_or_else(|| OffsetClient::new(self.connection), Ok)
                .map_err(failed)?;
            let found = asker.list_offsets(shards, what).map_err(failed)?;
            if let Some(shard) =
                shards.iter().find(|shard| !found.iter().any(|(known, _)| known == *shard))
            {
                return Err(FillError::Failed(format!("shard {shard} has no leader")));
            }
            self.offset_client = Some(asker);
            Ok(found.into_iter().collect())
        })
    }

    /// Deletes the records, and looks that nothing else is there.
    fn delete_records(&mut self, admin: &TopicAdmin, ends: &[Offset]) -> Result<(), FillError> {
        let shards: Vec<ShardId> = (0..ends.len() as u32).map(ShardId).collect();
        let wanted = |shard: ShardId| ends[shard.0 as usize];
        let full = |starts: ShardOffsets| -> Vec<(ShardId, Offset)> {
            let full =
                starts.into_iter().filter(|(shard, start)| start.unwrap_or(0) != wanted(*shard));
            full.map(|(shard, _)| (shard, wanted(shard))).collect()
        };
        let first = full(self.list_offsets(&shards, OffsetSpec::Earliest)?);
        if first.is_empty() {
            return Ok(());
        }
        retry_until_timeout(self.connection, || {
            admin.delete_records_below(&first).map_err(failed)?;
            match full(self.list_offsets(&shards, OffsetSpec::Earliest)?).first() {
                None => Ok(()),
                Some((shard, end)) => Err(FillError::Failed(format!(
                    "shard {shard} does not begin at {end} though all below was deleted"
                ))),
            }
        })
    }
}

/// Tries until it works, or until the patience with the cluster is over; the last failure.
fn retry_until_timeout<T>(
    connection: &KafkaConnection,
    mut attempt: impl FnMut() -> Result<T, FillError>,
) -> Result<T, FillError> {
    let watch = Stopwatch::start();
    loop {
        match attempt() {
            Err(FillError::Failed(_)) if watch.elapsed() < connection.timeout * TIMEOUT_FACTOR => {
                std::thread::park_timeout(PAUSE)
            }
            ended => return ended,
        }
    }
}

fn producer(connection: &KafkaConnection) -> ClientConfig {
    let mut config = connection.client_config();
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", DELIVERY_MS);
    config.set("message.max.bytes", MESSAGE_BYTES.to_string()).set("compression.type", "zstd");
    config.set("batch.num.messages", BATCH_RECORDS.to_string()).set("linger.ms", "20");
    config.set("queue.buffering.max.messages", MAX_IN_FLIGHT.to_string());
    config
}

/// Appends so many empty records to each shard.
fn append_empty_records(
    connection: &KafkaConnection,
    mut missing: Vec<u64>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), FillError> {
    let outcomes = Arc::new(FillOutcomes::default());
    let producer: BaseProducer<FillContext> =
        producer(connection).create_with_context(FillContext(outcomes.clone())).map_err(failed)?;
    let went_wrong = || match outcomes.failure.get() {
        None => Ok(()),
        Some(why) => Err(FillError::Failed(why.clone())),
    };
    // In turns, so that all leaders have work.
    while missing.iter().any(|left| *left > 0) {
        for (shard, left) in (0..).map(ShardId).zip(&mut missing) {
            for _ in 0..(*left).min(BATCH_RECORDS) {
                let record =
                    || BaseRecord::<(), (), ()>::to(&connection.topic).partition(partition(shard));
                while let Err((error, _)) = producer.send(record()) {
                    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                        return Err(failed(error));
                    }
                    producer.poll(Duration::from_millis(20));
                    progress(outcomes.acknowledged.load(Ordering::Relaxed));
                    went_wrong()?;
                }
                *left -= 1;
            }
            producer.poll(Duration::ZERO);
            progress(outcomes.acknowledged.load(Ordering::Relaxed));
        }
    }
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::from_millis(50));
        progress(outcomes.acknowledged.load(Ordering::Relaxed));
        went_wrong()?;
    }
    went_wrong()
}
