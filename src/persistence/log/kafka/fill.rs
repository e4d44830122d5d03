//! Makes a new topic begin at the offsets at which another log ended, so that checkpoints, manifest
//! and admissions of that log go on to be true: each partition is filled with empty records up to
//! its offset, and the records are deleted.
//!
//! Nobody but the caller may use the topic meanwhile ([`super::topic::Admin::create_unfinished`]).
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

use super::marks::{Ask, Asker, partition};
use super::settings::{self, Connection, MESSAGE_BYTES, note};
use super::topic::Admin;
use crate::clock::Stopwatch;
use crate::model::offset::{Offset, ShardId};

/// Records of one batch: an empty one takes some eight bytes.
const BATCH: u64 = 50_000;
/// Records that wait for their acknowledgement, at most: some hundred bytes each.
const WAITING: u64 = 500_000;
/// An outage of the brokers that ends by then ends nothing else.
const DELIVERY_MS: &str = "120000";

/// So many times the patience with one request, for leaders to be elected and deletions to be done.
const PATIENCE: u32 = 4;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a topic could not be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
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

fn failed(error: KafkaError) -> Unfit {
    Unfit::Failed(error.to_string())
}

#[derive(Default)]
struct Outcomes {
    acknowledged: AtomicU64,
    failure: OnceLock<String>,
}

struct Context(Arc<Outcomes>);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        note(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        settings::log(level, facility, message);
    }
}

impl ProducerContext for Context {
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
/// See [`Unfit`].
pub fn fill(
    admin: &Admin,
    connection: &Connection,
    ends: &[Offset],
    progress: &mut dyn FnMut(u64),
) -> Result<(), Unfit> {
    let shards: Vec<ShardId> = (0..ends.len() as u32).map(ShardId).collect();
    let mut brokers = Brokers { connection, asker: None };
    let missing = missing(&brokers.learn(&shards, Ask::End)?, ends)?;
    let there = ends.iter().sum::<u64>() - missing.iter().sum::<u64>();
    progress(there);
    produce(connection, missing, &mut |acknowledged| progress(there + acknowledged))?;
    let found = brokers.learn(&shards, Ask::End)?;
    if let Some(at) = self::missing(&found, ends)?.iter().position(|left| *left > 0) {
        return Err(Unfit::Failed(format!(
            "shard {at} ends below {} though all records were acknowledged",
            ends[at]
        )));
    }
    brokers.empty(admin, ends)
}

/// How many records each shard lacks.
fn missing(found: &Answers, ends: &[Offset]) -> Result<Vec<u64>, Unfit> {
    let one = |(&shard, &end): (&ShardId, &Option<Offset>)| {
        let (end, wanted) = (end.unwrap_or(0), ends.get(shard.0 as usize).copied().unwrap_or(0));
        wanted.checked_sub(end).ok_or(Unfit::TooLong { shard, end, wanted })
    };
    found.iter().map(one).collect()
}

/// What the brokers say of each shard.
type Answers = BTreeMap<ShardId, Option<Offset>>;

/// Asks the brokers; after a failure as a new client, because what one believes of a topic that has
/// just been made may stay wrong.
struct Brokers<'a> {
    connection: &'a Connection,
    asker: Option<Asker>,
}

impl Brokers<'_> {
    /// Asks until every shard has answered.
    fn learn(&mut self, shards: &[ShardId], what: Ask) -> Result<Answers, Unfit> {
        patiently(self.connection, || {
            // Put back only if it was of use.
            let asker = self
                .asker
                .take()
                .map_or_else(|| Asker::new(self.connection), Ok)
                .map_err(failed)?;
            let found = asker.ask(shards, what).map_err(failed)?;
            if let Some(shard) =
                shards.iter().find(|shard| !found.iter().any(|(known, _)| known == *shard))
            {
                return Err(Unfit::Failed(format!("shard {shard} has no leader")));
            }
            self.asker = Some(asker);
            Ok(found.into_iter().collect())
        })
    }

    /// Deletes the records, and looks that nothing else is there.
    fn empty(&mut self, admin: &Admin, ends: &[Offset]) -> Result<(), Unfit> {
        let shards: Vec<ShardId> = (0..ends.len() as u32).map(ShardId).collect();
        let wanted = |shard: ShardId| ends[shard.0 as usize];
        let full = |starts: Answers| -> Vec<(ShardId, Offset)> {
            let full =
                starts.into_iter().filter(|(shard, start)| start.unwrap_or(0) != wanted(*shard));
            full.map(|(shard, _)| (shard, wanted(shard))).collect()
        };
        let first = full(self.learn(&shards, Ask::Start)?);
        if first.is_empty() {
            return Ok(());
        }
        patiently(self.connection, || {
            admin.delete_below(&first).map_err(failed)?;
            match full(self.learn(&shards, Ask::Start)?).first() {
                None => Ok(()),
                Some((shard, end)) => Err(Unfit::Failed(format!(
                    "shard {shard} does not begin at {end} though all below was deleted"
                ))),
            }
        })
    }
}

/// Tries until it works, or until the patience with the cluster is over; the last failure.
fn patiently<T>(
    connection: &Connection,
    mut attempt: impl FnMut() -> Result<T, Unfit>,
) -> Result<T, Unfit> {
    let watch = Stopwatch::start();
    loop {
        match attempt() {
            Err(Unfit::Failed(_)) if watch.elapsed() < connection.timeout * PATIENCE => {
                std::thread::park_timeout(PAUSE)
            }
            ended => return ended,
        }
    }
}

fn producer(connection: &Connection) -> ClientConfig {
    let mut config = connection.client();
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", DELIVERY_MS);
    config.set("message.max.bytes", MESSAGE_BYTES.to_string()).set("compression.type", "zstd");
    config.set("batch.num.messages", BATCH.to_string()).set("linger.ms", "20");
    config.set("queue.buffering.max.messages", WAITING.to_string());
    config
}

/// Appends so many empty records to each shard.
fn produce(
    connection: &Connection,
    mut missing: Vec<u64>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Unfit> {
    let outcomes = Arc::new(Outcomes::default());
    let producer: BaseProducer<Context> =
        producer(connection).create_with_context(Context(outcomes.clone())).map_err(failed)?;
    let went_wrong = || match outcomes.failure.get() {
        None => Ok(()),
        Some(why) => Err(Unfit::Failed(why.clone())),
    };
    // In turns, so that all leaders have work.
    while missing.iter().any(|left| *left > 0) {
        for (shard, left) in (0..).map(ShardId).zip(&mut missing) {
            for _ in 0..(*left).min(BATCH) {
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
