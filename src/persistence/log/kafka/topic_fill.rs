//! Lets a new topic begin at the offsets at which another log ended, so that checkpoints, manifest
//! and admissions of that log remain valid. Each partition is filled with empty records up to its
//! offset, and the records are deleted.
//!
//! Only the caller may use the topic meanwhile ([`TopicAdmin::create_unfinished`]). An attempt that
//! was killed is resumed. Its last records may still arrive afterwards; if they make a partition
//! too long, the topic is unusable.

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

/// Records per batch; an empty record takes about eight bytes.
const BATCH_RECORDS: u64 = 50_000;
/// Unacknowledged records; each takes some hundred bytes of memory.
const MAX_IN_FLIGHT: u64 = 500_000;
/// An outage of the brokers shorter than this does not fail the fill.
const DELIVERY_MS: &str = "120000";

/// Limit for elections and deletions, as a multiple of the request timeout.
const TIMEOUT_FACTOR: u32 = 4;
/// Between two attempts of a request.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a topic could not be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// A partition is longer than wanted. Offsets never go back.
    #[error("shard {shard} of the topic ends at {end} already, above {wanted}")]
    #[allow(missing_docs, reason = "the names say it")]
    TooLong {
        shard: ShardId,
        /// Exclusive end of the partition.
        end: Offset,
        /// The end that the partition should have.
        wanted: Offset,
    },
    /// The cluster failed or refused.
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
            // Keeps the first reason.
            Err((error, _)) => _ = self.0.failure.set(error.to_string()),
        }
    }
}

/// Makes shard n of the topic empty, with start and end at `ends[n]`. Calls `progress` with the
/// number of records that exist.
///
/// # Errors
/// [`FillError::TooLong`] if a partition ends above its offset, [`FillError::Failed`]
/// if the cluster fails.
pub fn fill_topic(
    admin: &TopicAdmin,
    connection: &KafkaConnection,
    ends: &[Offset],
    progress: &mut dyn FnMut(u64),
) -> Result<(), FillError> {
    let shards: Vec<ShardId> = (0..ends.len() as u32).map(ShardId).collect();
    let mut brokers = FillClient { connection, offset_client: None };
    let missing = missing_records(&brokers.list_offsets(&shards, OffsetSpec::Latest)?, ends)?;
    let existing = ends.iter().sum::<u64>() - missing.iter().sum::<u64>();
    progress(existing);
    append_empty_records(connection, missing, &mut |acknowledged| {
        progress(existing + acknowledged)
    })?;
    // Records of an attempt that was killed may have arrived meanwhile.
    let found = brokers.list_offsets(&shards, OffsetSpec::Latest)?;
    if let Some(at) = self::missing_records(&found, ends)?.iter().position(|left| *left > 0) {
        return Err(FillError::Failed(format!(
            "shard {at} ends below {} though all records were acknowledged",
            ends[at]
        )));
    }
    brokers.delete_records(admin, ends)
}

/// The number of records that each shard lacks.
fn missing_records(found: &ShardOffsets, ends: &[Offset]) -> Result<Vec<u64>, FillError> {
    let one = |(&shard, &end): (&ShardId, &Option<Offset>)| {
        let (end, wanted) = (end.unwrap_or(0), ends.get(shard.0 as usize).copied().unwrap_or(0));
        wanted.checked_sub(end).ok_or(FillError::TooLong { shard, end, wanted })
    };
    found.iter().map(one).collect()
}

/// A broker's answer by shard; `None` where the shard has no such record.
type ShardOffsets = BTreeMap<ShardId, Option<Offset>>;

/// Queries the brokers. Uses a new client after a failure, because a client may keep wrong metadata
/// of a topic that was just created.
struct FillClient<'a> {
    connection: &'a KafkaConnection,
    offset_client: Option<OffsetClient>,
}

impl FillClient<'_> {
    /// Retries until every shard has answered.
    fn list_offsets(
        &mut self,
        shards: &[ShardId],
        spec: OffsetSpec,
    ) -> Result<ShardOffsets, FillError> {
        retry_until_timeout(self.connection, || {
            // Kept for the next request only if this one succeeds.
            let client = self
                .offset_client
                .take()
                .map_or_else(|| OffsetClient::new(self.connection), Ok)
                .map_err(failed)?;
            let found = client.list_offsets(shards, spec).map_err(failed)?;
            if let Some(shard) =
                shards.iter().find(|shard| !found.iter().any(|(known, _)| known == *shard))
            {
                return Err(FillError::Failed(format!("shard {shard} has no leader")));
            }
            self.offset_client = Some(client);
            Ok(found.into_iter().collect())
        })
    }

    /// Deletes the records and verifies that every partition is empty.
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

/// Retries until success, or until the limit. Returns the last error.
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

/// Appends this many empty records to each shard.
fn append_empty_records(
    connection: &KafkaConnection,
    mut missing: Vec<u64>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), FillError> {
    let outcomes = Arc::new(FillOutcomes::default());
    let producer: BaseProducer<FillContext> =
        producer(connection).create_with_context(FillContext(outcomes.clone())).map_err(failed)?;
    let check_failure = || match outcomes.failure.get() {
        None => Ok(()),
        Some(why) => Err(FillError::Failed(why.clone())),
    };
    // In turns, so that all leaders are busy.
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
                    check_failure()?;
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
        check_failure()?;
    }
    check_failure()
}
