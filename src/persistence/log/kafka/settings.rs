//! Connection and client settings. Those that a promise depends on cannot be overridden.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

pub use crate::config::{KafkaProperties, PassedGaps};
use crate::telemetry::RepeatedLog;

/// The largest request to a broker and the largest record of the topic. Records are split at 512
/// KiB, but a single event may be larger.
pub const MESSAGE_BYTES: usize = 2 << 20;

/// Minimum size of a fetch; smaller ones are not worth a request. A larger
/// record is fetched anyway.
const MIN_BUFFER_BYTES: u64 = 64 << 10;

/// How many bytes a fetch waits for. Below [`MIN_BUFFER_BYTES`], so that one partition
/// alone can supply them.
const FETCH_MIN_BYTES: u64 = 16 << 10;

/// The client's minimum for `socket.connection.setup.timeout.ms`; it rejects all settings below.
const SETUP_MIN: Duration = Duration::from_secs(1);

/// Consumers that read: one for the shards' actors at the end of the log, one for their archivers.
pub(super) const READ_CONSUMERS: usize = 2;

/// The cluster, the topic and the request timeout.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct KafkaConnection {
    /// Comma-separated `host:port`.
    pub brokers: String,
    pub topic: String,
    /// Further settings, for all clients.
    pub properties: KafkaProperties,
    /// Limit for one request.
    pub timeout: Duration,
}

/// The parameters of [`super::KafkaLog::open`].
#[derive(Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct KafkaOptions {
    pub connection: KafkaConnection,
    /// Number of shards. The topic must have at least as many partitions.
    pub shard_count: u32,
    /// The consumer group that assigns shards to nodes; `None` if this node owns no shards.
    pub group: Option<String>,
    /// A member loses its shards after it has been silent for this long.
    pub session_timeout: Duration,
    /// How long a rebalance waits for the actors of revoked shards.
    pub handover: Duration,
    /// The outcome of a record is unknown if it is not acknowledged within this time. Below
    /// `gateway.append_timeout`, so that the answer says why.
    pub delivery_timeout: Duration,
    /// Appends are refused while more bytes than this are waiting.
    pub max_waiting_bytes: u64,
    /// Bytes prefetched for all shards and readers together, divided equally.
    pub prefetch_bytes: u64,
    /// How often the ends of owned shards are refreshed.
    pub refresh: Duration,
    /// Records younger than this are never released.
    pub safety: Duration,
    /// Minimum number of replicas of the topic.
    pub replication: u32,
    /// Minimum number of in-sync replicas, below which the topic must refuse writes.
    pub min_isr: u32,
    /// Gaps that an operator has confirmed to hold nothing of Rollmill's.
    pub passed_gaps: PassedGaps,
    pub clock: std::sync::Arc<dyn crate::clock::Clock>,
}

/// Logs what the client reports, never as an error: failures are returned to
/// whoever made the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct QuietContext;

/// Logs an error of the client as a whole, such as an unreachable broker. The
/// client retries by itself.
pub(super) fn log_client_error(error: &KafkaError, reason: &str) {
    if let Some(silent) = CLIENT_LOG.due(without_details(reason)) {
        tracing::warn!(%error, reason, silent, "Kafka (told once a minute)");
    }
}

/// Throttles the clients' messages. A node has several clients, and while a broker is away each
/// reports that many times per second.
static CLIENT_LOG: RepeatedLog = RepeatedLog::new();

/// Logs a line of the client's own log.
pub(super) fn log_client_message(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let matters = matches!(
        level,
        RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning
    );
    // Meaningless: logged for every rebalance that revokes something from a member without shards.
    if !matters || message.contains("Can't subtract from empty assignment") {
        tracing::debug!(facility, message, "Kafka");
    } else if let Some(silent) = CLIENT_LOG.due(without_details(message)) {
        tracing::warn!(facility, message, silent, "Kafka (told once a minute)");
    }
}

/// The message without the counters and durations in brackets at its end.
fn without_details(message: &str) -> &str {
    message.rsplit_once(" (").map_or(message, |(before, _)| before)
}

impl ClientContext for QuietContext {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_client_message(level, facility, message);
    }
}

impl ConsumerContext for QuietContext {}

impl KafkaConnection {
    /// The settings that all clients share.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        self.properties.iter().for_each(|(name, value)| _ = config.set(name, value));
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", "rollmill");
        config.set("allow.auto.create.topics", "false");
        // Finds a leader that was replaced without noticing.
        config.set("topic.metadata.refresh.interval.ms", "30000");
        // Uses a broker again soon after it comes back.
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        config.set("socket.timeout.ms", millis(self.timeout));
        config.set("socket.connection.setup.timeout.ms", millis(self.timeout.max(SETUP_MIN)));
        config
    }

    /// Settings of a client that only asks for offsets.
    pub fn offset_client_config(&self) -> ClientConfig {
        let mut config = self.client_config();
        config.set("isolation.level", "read_uncommitted");
        config
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().max(1).to_string()
}

impl KafkaOptions {
    /// Settings of the producer: acknowledged by all in-sync replicas, each record
    /// once and in order.
    pub fn producer_config(&self) -> ClientConfig {
        let mut config = self.connection.client_config();
        config.set("acks", "all").set("enable.idempotence", "true");
        config.set("message.timeout.ms", millis(self.delivery_timeout));
        config
            .set("request.timeout.ms", millis(self.connection.timeout.min(self.delivery_timeout)));
        config.set("message.max.bytes", MESSAGE_BYTES.to_string());
        // Our own limit must be reached first: if the client's queue fills up in the middle of a
        // request, the outcome of the request is unknown.
        config.set(
            "queue.buffering.max.kbytes",
            (self.max_waiting_bytes / 512).clamp(1 << 14, (1 << 31) - 1).to_string(),
        );
        config.set("queue.buffering.max.messages", "0");
        // The client sends a request per partition. Lingering joins records, which saves work here
        // and at the broker.
        if config.get("linger.ms").is_none() {
            config.set("linger.ms", "10");
        }
        // zstd compresses large requests better, but sets up its tables for every small one: a
        // third of a node's CPU at two events per request.
        if config.get("compression.type").is_none() && config.get("compression.codec").is_none() {
            config.set("compression.type", "lz4");
        }
        config
    }

    /// Settings of the readers: they verify checksums, and an unknown offset is an
    /// error, never a reset.
    pub fn reader_config(&self) -> ClientConfig {
        let mut config = self.connection.client_config();
        config.set("group.id", self.group.as_deref().unwrap_or("rollmill-reader"));
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        // Tells an empty partition end from records that are not for readers.
        config.set("enable.partition.eof", "true");
        config
            .set("auto.offset.reset", "error")
            .set("check.crcs", "true")
            .set("isolation.level", "read_uncommitted");
        // The client's limit applies per partition and may be exceeded by one fetch, hence the
        // half. All consumers together stay within the total.
        let each =
            self.prefetch_bytes / (u64::from(self.shard_count.max(1)) * READ_CONSUMERS as u64) / 2;
        let each = each.clamp(MIN_BUFFER_BYTES, 64 << 20);
        config.set("queued.max.messages.kbytes", (each / 1024).to_string());
        config.set("fetch.message.max.bytes", each.to_string());
        // Small records reach all partitions at once, and a fetch that returns with the first of
        // them costs broker and node as much as one with many. So it waits for more, but not for
        // long, because a partition that is added waits for it, too.
        config.set("fetch.min.bytes", FETCH_MIN_BYTES.to_string()).set("fetch.wait.max.ms", "50");
        // Fetches a partition again soon after its buffer was full.
        config.set("fetch.queue.backoff.ms", "5").set("fetch.error.backoff.ms", "100");
        config
    }

    /// Settings of the group member, which fetches nothing.
    pub fn member_config(&self, group: &str) -> ClientConfig {
        let mut config = self.connection.client_config();
        config.set("group.id", group).set("partition.assignment.strategy", "cooperative-sticky");
        config.set("session.timeout.ms", millis(self.session_timeout));
        // The other members learn with their next heartbeat that one has left.
        config.set(
            "heartbeat.interval.ms",
            millis((self.session_timeout / 10).min(Duration::from_millis(500))),
        );
        config.set("max.poll.interval.ms", millis(self.session_timeout.max(self.handover) * 10));
        config
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "latest");
        config.set("queued.min.messages", "1").set("queued.max.messages.kbytes", "1");
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_differ_by_what_is_in_brackets_say_the_same() {
        let line = |port: u32, ms: u32| {
            format!(
                "[thrd:127.0.0.1:{port}/1]: Connect to 127.0.0.1:{port} failed: refused (after \
                 {ms}ms in state CONNECT)"
            )
        };
        assert_eq!(without_details(&line(9092, 0)), without_details(&line(9092, 17)));
        assert_ne!(without_details(&line(9092, 0)), without_details("1/1 brokers are down"));
    }

    #[test]
    fn what_is_fetched_ahead_stays_within_the_whole() {
        let connection = KafkaConnection {
            brokers: String::new(),
            topic: String::new(),
            properties: KafkaProperties::default(),
            timeout: Duration::from_secs(1),
        };
        let zero = Duration::ZERO;
        let mut options = KafkaOptions {
            connection,
            shard_count: 64,
            group: None,
            session_timeout: zero,
            handover: zero,
            delivery_timeout: zero,
            max_waiting_bytes: 0,
            prefetch_bytes: 64 << 20,
            refresh: zero,
            safety: zero,
            replication: 1,
            min_isr: 1,
            passed_gaps: PassedGaps::default(),
            clock: std::sync::Arc::new(crate::clock::SystemClock),
        };
        let of = |options: &KafkaOptions, name: &str| {
            options.reader_config().get(name).and_then(|text| text.parse::<u64>().ok())
        };
        let each =
            (of(&options, "queued.max.messages.kbytes"), of(&options, "fetch.message.max.bytes"));
        assert_eq!(
            each,
            (Some(256), Some(256 << 10)),
            "2 consumers of 64 shards, once queued and once on the way"
        );
        options.shard_count = 4096;
        assert_eq!(of(&options, "fetch.message.max.bytes"), Some(MIN_BUFFER_BYTES));
    }
}
