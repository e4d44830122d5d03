//! The producer: acknowledges a request once all of its records have a delivery report.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::settings::{self, KafkaOptions, log_client_error};
use super::watermarks::{TopicWatermarks, partition, shard};
use crate::clock::Clock;
use crate::model::offset::{Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::log::{AppendError, AppendRequest, AppendTicket};
use crate::telemetry;

/// A request that was enqueued and not answered yet.
pub(super) struct PendingAppend {
    /// Records that have no outcome yet.
    left: AtomicU32,
    appended: AtomicI64,
    failure: OnceLock<String>,
    /// The known ends of its shards when it was enqueued. Its records must get offsets
    /// at or above them.
    floors: SmallVec<[(ShardId, Offset); 4]>,
    reply: Mutex<Option<oneshot::Sender<Result<Millis, AppendError>>>>,
}

impl PendingAppend {
    fn floor(&self, shard: ShardId) -> Offset {
        self.floors.iter().find(|(id, _)| *id == shard).map_or(0, |(_, floor)| *floor)
    }

    /// Counts down by `records`. The last one answers the request.
    fn complete(&self, records: u32) {
        if records == 0 || self.left.fetch_sub(records, Ordering::AcqRel) != records {
            return;
        }
        let outcome = match self.failure.get() {
            None => Ok(self.appended.load(Ordering::Acquire)),
            Some(why) => Err(AppendError::Unknown(why.clone())),
        };
        if let Some(reply) = self.reply.lock().unwrap_or_else(PoisonError::into_inner).take() {
            #[expect(
                clippy::let_underscore_must_use,
                reason = "nobody may be waiting any more; the records are durable all the same"
            )]
            let _ = reply.send(outcome);
        }
    }

    fn set_failure(&self, why: &str) {
        #[expect(clippy::let_underscore_must_use, reason = "the first reason is kept")]
        let _ = self.failure.set(why.to_owned());
    }
}

/// What delivery reports update. Outlives a producer that is replaced.
pub(super) struct DeliveryTracker {
    watermarks: Arc<TopicWatermarks>,
    clock: Arc<dyn Clock>,
    waiting_bytes: AtomicU64,
    /// Why appends have stopped: the topic is not the one that this log was opened on.
    halted: OnceLock<String>,
}

impl DeliveryTracker {
    fn on_delivered(&self, message: &impl Message, pending: &PendingAppend) {
        let shard = shard(message.partition());
        // A duplicate that the broker recognised has neither offset nor time. Its first attempt is
        // durable.
        if let Ok(offset) = Offset::try_from(message.offset()) {
            let floor = pending.floor(shard);
            if offset < floor {
                let why = format!(
                    "a new record of shard {shard} got offset {offset}, though the log had \
                     reached {floor}: the topic lost records or was made anew; look at it with \
                     `rollmill topic describe`, put back the data that belongs to the store, and \
                     start again"
                );
                tracing::error!(%why, "this node appends no more");
                #[expect(clippy::let_underscore_must_use, reason = "the first reason is kept")]
                let _ = self.halted.set(why.clone());
                pending.set_failure(&why);
            } else {
                self.watermarks.raise_end(shard, offset + 1);
            }
        }
        let appended = message
            .timestamp()
            .to_millis()
            .filter(|time| *time > 0)
            .unwrap_or_else(|| self.clock.now());
        pending.appended.fetch_max(appended, Ordering::AcqRel);
    }
}

/// The client's context, which forwards to the shared [`DeliveryTracker`].
pub(super) struct DeliveryContext(Arc<DeliveryTracker>);

impl ClientContext for DeliveryContext {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        settings::log_client_message(level, facility, message);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Arc<PendingAppend>;

    fn delivery(&self, result: &DeliveryResult<'_>, pending: Arc<PendingAppend>) {
        let bytes = match result {
            Ok(message) => {
                self.0.on_delivered(message, &pending);
                message.payload_len()
            }
            Err((error, message)) => {
                pending.set_failure(&format!("shard {}: {error}", message.partition()));
                message.payload_len()
            }
        };
        self.0.waiting_bytes.fetch_sub(bytes as u64, Ordering::AcqRel);
        pending.complete(1);
    }
}

/// The appending side of the log. Thread-safe.
pub(super) struct KafkaProducer {
    config: ClientConfig,
    topic: String,
    delivery_timeout: Duration,
    limit: u64,
    producer: ArcSwap<ThreadedProducer<DeliveryContext>>,
    deliveries: Arc<DeliveryTracker>,
    closed: AtomicBool,
}

impl KafkaProducer {
    /// Starts a producer and fetches the topic's metadata, so that the first request does not wait
    /// for it. Fails if the settings are rejected or no broker answers.
    pub(super) fn start(
        options: &KafkaOptions,
        watermarks: Arc<TopicWatermarks>,
    ) -> KafkaResult<Self> {
        let config = options.producer_config();
        let (waiting_bytes, halted) = (AtomicU64::new(0), OnceLock::new());
        let deliveries = Arc::new(DeliveryTracker {
            watermarks,
            clock: options.clock.clone(),
            waiting_bytes,
            halted,
        });
        let producer: ThreadedProducer<DeliveryContext> =
            config.create_with_context(DeliveryContext(deliveries.clone()))?;
        producer
            .client()
            .fetch_metadata(Some(&options.connection.topic), options.connection.timeout)?;
        Ok(Self {
            config,
            topic: options.connection.topic.clone(),
            delivery_timeout: options.delivery_timeout,
            limit: options.max_waiting_bytes,
            producer: ArcSwap::from_pointee(producer),
            deliveries,
            closed: AtomicBool::new(false),
        })
    }

    /// Implements [`super::super::LogAppender::append`].
    pub(super) fn append(&self, request: &AppendRequest) -> Result<AppendTicket, AppendError> {
        if let Some(why) = self.deliveries.halted.get() {
            return Err(AppendError::Closed(why.clone()));
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(AppendError::Closed("the log is closing".to_owned()));
        }
        let bytes: u64 = request.records.iter().map(|(_, payload)| payload.len() as u64).sum();
        self.reserve(bytes)?;
        let (reply, ticket) = oneshot::channel();
        if request.records.is_empty() {
            #[expect(
                clippy::let_underscore_must_use,
                reason = "the ticket is in our hands: somebody is there"
            )]
            let _ = reply.send(Ok(self.deliveries.clock.now()));
            return Ok(ticket);
        }
        let pending = Arc::new(self.pending_append(request, reply));
        self.enqueue(request, &pending)?;
        metrics::counter!(telemetry::LOG_BYTES).increment(bytes);
        Ok(ticket)
    }

    /// Reserves queue space. A request larger than the limit passes when nothing else is waiting.
    fn reserve(&self, bytes: u64) -> Result<(), AppendError> {
        // Added before the check, so that two requests cannot both take the last space.
        let waiting_bytes = self.deliveries.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        if waiting_bytes > 0 && waiting_bytes.saturating_add(bytes) > self.limit {
            self.deliveries.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(AppendError::Overloaded { waiting_bytes, limit: self.limit });
        }
        Ok(())
    }

    fn pending_append(
        &self,
        request: &AppendRequest,
        reply: oneshot::Sender<Result<Millis, AppendError>>,
    ) -> PendingAppend {
        let mut floors: SmallVec<[(ShardId, Offset); 4]> = SmallVec::new();
        // Deduplicates by scanning: a request rarely touches more than a few shards.
        for (shard, _) in &request.records {
            if floors.last().is_none_or(|(last, _)| last != shard)
                && !floors.iter().any(|(id, _)| id == shard)
            {
                floors.push((*shard, self.deliveries.watermarks.end(*shard)));
            }
        }
        PendingAppend {
            left: AtomicU32::new(request.records.len() as u32),
            appended: AtomicI64::new(0),
            failure: OnceLock::new(),
            floors,
            reply: Mutex::new(Some(reply)),
        }
    }

    fn enqueue(
        &self,
        request: &AppendRequest,
        pending: &Arc<PendingAppend>,
    ) -> Result<(), AppendError> {
        let producer = self.producer.load();
        for (at, (shard, payload)) in request.records.iter().enumerate() {
            let record = BaseRecord::<(), [u8], _>::with_opaque_to(&self.topic, pending.clone());
            let Err((error, _)) =
                producer.send(record.payload(&payload[..]).partition(partition(*shard)))
            else {
                continue;
            };
            let rest: u64 =
                request.records[at..].iter().map(|(_, payload)| payload.len() as u64).sum();
            let waiting_bytes = self.deliveries.waiting_bytes.fetch_sub(rest, Ordering::AcqRel);
            // Nothing of the request was sent, so the caller may retry. Later in the request, its
            // first records are already on their way, and the outcome is unknown.
            if at == 0 {
                let full =
                    matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
                let refused = || AppendError::Closed(format!("shard {shard}: {error}"));
                return Err(if full {
                    AppendError::Overloaded { waiting_bytes, limit: self.limit }
                } else {
                    refused()
                });
            }
            pending.set_failure(&format!("shard {shard}: {error}"));
            pending.complete((request.records.len() - at) as u32);
            break;
        }
        Ok(())
    }

    /// Replaces a producer that can never send again, because a broker has fenced it. Requests that
    /// it had not completed end as unknown.
    pub(super) fn replace_if_fatal(&self) {
        let producer = self.producer.load_full();
        let Some((code, why)) = producer.client().fatal_error() else { return };
        match self.config.create_with_context(DeliveryContext(self.deliveries.clone())) {
            Ok(new) => {
                tracing::warn!(
                    %code,
                    %why,
                    "the producer failed for good, a new one takes its place"
                );
                self.producer.store(Arc::new(new));
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "the producer failed for good, and no new one could be made"
                )
            }
        }
    }

    /// Refuses all further appends. Only the first reason is kept.
    pub(super) fn halt(&self, why: String) {
        tracing::error!(%why, "this node appends no more");
        #[expect(clippy::let_underscore_must_use, reason = "the first reason is kept")]
        let _ = self.deliveries.halted.set(why);
    }

    /// Refuses further appends and waits until everything enqueued has an outcome.
    pub(super) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        // By then every record has an outcome: the client gives up after the delivery timeout.
        if let Err(error) =
            self.producer.load().flush(self.delivery_timeout + Duration::from_secs(1))
        {
            tracing::error!(%error, "the log closes with records whose outcome is unknown");
        }
    }
}
