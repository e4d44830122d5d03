//! How Kafka is reached, and the settings of the clients: those that keep a promise cannot be
//! overridden.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

pub use crate::config::{KafkaProperties, PassedGaps};
use crate::telemetry::RepeatedLog;

/// The largest request to a broker and the largest record of the topic. Records are cut at 512 KiB,
/// but one event may be larger.
pub const MESSAGE_BYTES: usize = 2 << 20;

/// A fetch of less than this is not worth its way; a larger record is fetched all the same.
const MIN_BUFFER_BYTES: u64 = 64 << 10;

/// What a fetch waits for. Below [`MIN_BUFFER_BYTES`], which one partition alone may bring.
const FETCH_MIN_BYTES: u64 = 16 << 10;

/// The client takes no less for the set-up of a connection, and refuses all settings otherwise.
const SETUP_MIN: Duration = Duration::from_secs(1);

/// Consumers that read: the shard's actor at the end of the log, its archiver behind.
pub(super) const READ_CONSUMERS: usize = 2;

/// Which cluster and topic, and the patience with it.
#[derive(Debug, Clone)]
pub struct KafkaConnection {
    /// `host:port,host:port`.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// More settings.
    pub properties: KafkaProperties,
    /// Patience with a request.
    pub timeout: Duration,
}

/// How a log is opened.
#[derive(Clone)]
pub struct KafkaOptions {
    /// Where.
    pub connection: KafkaConnection,
    /// Number of shards; the topic must have as many partitions.
    pub shard_count: u32,
    /// The consumer group that assigns shards to nodes; none for a node that owns no shards.
    pub group: Option<String>,
    /// A member that says nothing for this long has lost its shards.
    pub session_timeout: Duration,
    /// A rebalance waits this long for the actors of revoked shards.
    pub handover: Duration,
    /// A record that is not acknowledged by then has an unknown outcome. Below
    /// `gateway.append_timeout`, so that the answer says why.
    pub delivery_timeout: Duration,
    /// More bytes waiting than this, and appends are refused.
    pub max_waiting_bytes: u64,
    /// Bytes fetched ahead of all readers of the shards together; each gets its part.
    pub prefetch_bytes: u64,
    /// How often the ends of the owned shards are asked for.
    pub refresh: Duration,
    /// Records younger than this are never released.
    pub safety: Duration,
    /// Replicas that the topic must have.
    pub replication: u32,
    /// In-sync replicas without which the topic must refuse writes.
    pub min_isr: u32,
    /// Gaps that hold nothing of Rollmill's, as a person has said.
    pub passed_gaps: PassedGaps,
    /// Time.
    pub clock: std::sync::Arc<dyn crate::clock::Clock>,
}

/// Logs what the client says of itself, never as an error: what fails is answered where it was
/// asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct QuietContext;

/// An error of the client as a whole, such as a broker that cannot be reached: it tries again by
/// itself.
pub(super) fn log_client_error(error: &KafkaError, reason: &str) {
    if let Some(silent) = CLIENT_LOG.due(without_details(reason)) {
        tracing::warn!(%error, reason, silent, "Kafka (told once a minute)");
    }
}

/// What the clients say of themselves: there are several to a node, and while a broker is away each
/// says so many times a second.
static CLIENT_LOG: RepeatedLog = RepeatedLog::new();

/// A line of the client's own log.
pub(super) fn log_client_message(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let matters = matches!(
        level,
        RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning
    );
    // Of each rebalance that takes something from a member that has nothing: it means nothing.
    if !matters || message.contains("Can't subtract from empty assignment") {
        tracing::debug!(facility, message, "Kafka");
    } else if let Some(silent) = CLIENT_LOG.due(without_details(message)) {
        tracing::warn!(facility, message, silent, "Kafka (told once a minute)");
    }
}

/// Without what is in brackets at the end, which counts and measures.
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
    /// What all clients have in common.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        self.properties.iter().for_each(|(name, value)| _ = config.set(name, value));
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", "rollmill");
        config.set("allow.auto.create.topics", "false");
        // A leader that was replaced without its knowing is found out by itself.
        config.set("topic.metadata.refresh.interval.ms", "30000");
        // A broker that comes back is used again soon.
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        config.set("socket.timeout.ms", millis(self.timeout));
        config.set("socket.connection.setup.timeout.ms", millis(self.timeout.max(SETUP_MIN)));
        config
    }

    /// Asks for offsets only.
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
    /// Acknowledged by all in-sync replicas, each record once, in order.
    pub fn producer_config(&self) -> ClientConfig {
        let mut config = self.connection.client_config();
        config.set("acks", "all").set("enable.idempotence", "true");
        config.set("message.timeout.ms", millis(self.delivery_timeout));
        config
            .set("request.timeout.ms", millis(self.connection.timeout.min(self.delivery_timeout)));
        config.set("message.max.bytes", MESSAGE_BYTES.to_string());
        // Our own bound is reached first: a queue of the client that is full in the middle of a
        // request leaves its outcome unknown.
        config.set(
            "queue.buffering.max.kbytes",
            (self.max_waiting_bytes / 512).clamp(1 << 14, (1 << 31) - 1).to_string(),
        );
        config.set("queue.buffering.max.messages", "0");
        // The client sends each partition's records in a request of their own: what it joins is
        // what saves work here and at the broker.
        if config.get("linger.ms").is_none() {
            config.set("linger.ms", "10");
        }
        // zstd makes less of large requests, but sets up its tables for each small one: a third of
        // a node's CPU at two events a request.
        if config.get("compression.type").is_none() && config.get("compression.codec").is_none() {
            config.set("compression.type", "lz4");
        }
        config
    }

    /// Reads what it is told to, checks what it reads, and never resets itself.
    pub fn reader_config(&self) -> ClientConfig {
        let mut config = self.connection.client_config();
        config.set("group.id", self.group.as_deref().unwrap_or("rollmill-reader"));
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        // Told apart: nothing is there, and what is there is not for readers.
        config.set("enable.partition.eof", "true");
        config
            .set("auto.offset.reset", "error")
            .set("check.crcs", "true")
            .set("isolation.level", "read_uncommitted");
        // The client's bound is per partition, and may be overshot by one fetch; both lanes
        // together stay within the whole.
        let each =
            self.prefetch_bytes / (u64::from(self.shard_count.max(1)) * READ_CONSUMERS as u64) / 2;
        let each = each.clamp(MIN_BUFFER_BYTES, 64 << 20);
        config.set("queued.max.messages.kbytes", (each / 1024).to_string());
        config.set("fetch.message.max.bytes", each.to_string());
        // Small records fall on all partitions at once, and a fetch that ends with the first of
        // them costs broker and node as much as one that brings many: it waits for a good
        // piece, but not for long, because a partition that is added waits for it, too.
        config.set("fetch.min.bytes", FETCH_MIN_BYTES.to_string()).set("fetch.wait.max.ms", "50");
        // A partition whose buffer was full is fetched again at once.
        config.set("fetch.queue.backoff.ms", "5").set("fetch.error.backoff.ms", "100");
        config
    }

    /// A member of the group, which fetches nothing.
    pub fn member_config(&self, group: &str) -> ClientConfig {
        let mut config = self.connection.client_config();
        config.set("group.id", group).set("partition.assignment.strategy", "cooperative-sticky");
        config.set("session.timeout.ms", millis(self.session_timeout));
        // The others learn with their next heartbeat that a member has left.
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
            "2 lanes of 64 shards, once queued and once on the way"
        );
        options.shard_count = 4096;
        assert_eq!(of(&options, "fetch.message.max.bytes"), Some(MIN_BUFFER_BYTES));
    }
}
