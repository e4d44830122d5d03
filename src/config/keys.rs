//! The table of keys: name, kind, default, range, and why.

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Number,
    /// `64MiB`.
    Bytes,
    /// `10m`.
    Duration,
    /// Anything.
    Text,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its default, as written in a file.
    pub default: &'static str,
    /// Least value; durations in milliseconds.
    pub min: u64,
    /// Largest value.
    pub max: u64,
    /// What it is for.
    pub doc: &'static str,
}

impl Key {
    /// Its environment variable.
    pub fn env(&self) -> String {
        format!("ROLLMILL_{}", self.name.replace('.', "_").to_uppercase())
    }
}

const fn key(name: &'static str, kind: Kind, default: &'static str, min: u64, max: u64, doc: &'static str) -> Key {
    Key { name, kind, default, min, max, doc }
}

/// Every key.
pub const KEYS: &[Key] = &[
    key(
        "server.listen",
        Kind::Text,
        "127.0.0.1:8080",
        0,
        0,
        "Where HTTP and WebSocket are served. Without API keys only loopback addresses are taken.",
    ),
    key("server.max_connections", Kind::Number, "4096", 1, 1000000, "Connections at once; one more waits until another ends."),
    key(
        "server.header_timeout",
        Kind::Duration,
        "10s",
        100,
        600000,
        "A client that takes longer to send its headers is cut off.",
    ),
    key("server.body_timeout", Kind::Duration, "30s", 100, 3600000, "A client that takes longer to send a body is cut off."),
    key("data.dir", Kind::Text, "./data", 0, 0, "Log, store and archive of the embedded mode. One process at a time."),
    key(
        "shards.count",
        Kind::Number,
        "64",
        1,
        4096,
        "Fixed when the data directory is created; a start with another number is refused.",
    ),
    key(
        "shards.pull_interval",
        Kind::Duration,
        "20ms",
        1,
        1000,
        "How soon a shard pulls new records: most of the delay until an event shows in queries.",
    ),
    key("gateway.actors", Kind::Number, "2", 1, 64, "Gateway actors that group events by shard."),
    key(
        "gateway.append_timeout",
        Kind::Duration,
        "30s",
        100,
        600000,
        "A write that is not durable by then is answered 503, its outcome being unknown; the retry is absorbed by id.",
    ),
    key(
        "gateway.max_interned",
        Kind::Number,
        "200000",
        2,
        100000000,
        "Series whose checked labels the gateway remembers; others are parsed again.",
    ),
    key("gateway.max_interned_bytes", Kind::Bytes, "128MiB", 65536, 68719476736, "Memory of those labels."),
    key(
        "accept.max_age",
        Kind::Duration,
        "365d",
        3600000,
        3153600000000,
        "Events older than this are refused. Rollups and archive are kept at least as long.",
    ),
    key("accept.max_ahead", Kind::Duration, "10m", 0, 86400000, "Events further in the future are refused."),
    key("accept.max_event_bytes", Kind::Bytes, "8KiB", 64, 1048576, "Bytes of one event."),
    key("accept.max_events", Kind::Number, "10000", 1, 10000, "Events of one request."),
    key("accept.max_body", Kind::Bytes, "20MiB", 1024, 1073741824, "Bytes of one request, after decompression."),
    key(
        "accept.max_inflight",
        Kind::Bytes,
        "256MiB",
        1048576,
        68719476736,
        "Bytes of requests being worked on; beyond it 503 with Retry-After.",
    ),
    key(
        "tenants.max_events_per_second",
        Kind::Number,
        "0",
        0,
        1000000000,
        "Budget of each tenant, beyond it 429 with Retry-After; 0 is no limit.",
    ),
    key(
        "tenants.burst",
        Kind::Number,
        "100000",
        1,
        1000000000,
        "Events a tenant may send at once after a rest, when it has a budget.",
    ),
    key(
        "tenants.max_series",
        Kind::Number,
        "2000000",
        1,
        1000000000,
        "Series of each tenant; beyond it events go to the overflow series of their metric.",
    ),
    key(
        "log.segment_bytes",
        Kind::Bytes,
        "128MiB",
        65536,
        4294967296,
        "A segment of the log is sealed at this size; the last one is scanned at start.",
    ),
    key(
        "log.max_waiting",
        Kind::Bytes,
        "64MiB",
        1048576,
        17179869184,
        "Bytes waiting to be committed; beyond it 503 with Retry-After.",
    ),
    key("log.tail_cache", Kind::Bytes, "64MiB", 0, 17179869184, "Recent records kept in memory for the shards."),
    key("flush.interval", Kind::Duration, "10s", 100, 3600000, "How often a shard writes its deltas to the store."),
    key(
        "flush.max_delta_bytes",
        Kind::Bytes,
        "512MiB",
        1048576,
        274877906944,
        "Memory of the deltas of all shards; a shard over its part flushes early.",
    ),
    key("dedup.horizon", Kind::Duration, "1h", 1000, 604800000, "Equal ids appended within this time count once."),
    key(
        "dedup.max_ids",
        Kind::Number,
        "262144",
        1,
        1073741824,
        "Ids remembered by each shard, about 26 bytes each; the shorter of both limits holds.",
    ),
    key("archive.max_bytes", Kind::Bytes, "128MiB", 1024, 4294967296, "Raw bytes of one archive object."),
    key("archive.max_delay", Kind::Duration, "10m", 100, 86400000, "An object is written at the latest after this time."),
    key(
        "archive.url",
        Kind::Text,
        "",
        0,
        0,
        "Where raw events are archived: `file:///path` or `s3://bucket/prefix`. Empty: `archive` in the data directory.",
    ),
    key(
        "archive.endpoint",
        Kind::Text,
        "",
        0,
        0,
        "Endpoint of the object storage, such as `http://127.0.0.1:9000`. Empty: AWS, or that of the environment.",
    ),
    key("archive.region", Kind::Text, "", 0, 0, "Its region. Empty: that of the environment, or us-east-1."),
    key(
        "archive.credentials_file",
        Kind::Text,
        "",
        0,
        0,
        "Its credentials, in the form of the AWS tools. Empty: the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`) or the role of the machine.",
    ),
    key(
        "archive.timeout",
        Kind::Duration,
        "60s",
        100,
        3600000,
        "One request to the object storage, an object of archive.max_bytes included. It is tried again three times, for twice this time.",
    ),
    key(
        "archive.cold_url",
        Kind::Text,
        "",
        0,
        0,
        "Where old objects move to, on the same endpoint or in a directory; must be another place. Empty: they stay.",
    ),
    key("archive.cold_class", Kind::Text, "", 0, 0, "Storage class of moved objects, such as STANDARD_IA. Empty: the bucket's."),
    key("archive.cold_after", Kind::Duration, "30d", 100, 3153600000000, "Objects older than this move."),
    key(
        "archive.keep",
        Kind::Duration,
        "365d",
        0,
        3153600000000,
        "Objects older than this are removed; windows that they touched cannot be recomputed then. 0 keeps them; otherwise at least accept.max_age.",
    ),
    key(
        "query.deadline",
        Kind::Duration,
        "10s",
        100,
        600000,
        "Flushed batches are kept this long for queries that read an older snapshot.",
    ),
    key("query.max_points", Kind::Number, "100000", 1, 100000000, "Points of one answer."),
    key("query.max_series", Kind::Number, "100000", 1, 100000000, "Series that one query may read."),
    key("query.max_concurrent", Kind::Number, "64", 1, 4096, "Queries at once; beyond it 503 with Retry-After."),
    key("query.stale_after", Kind::Duration, "10s", 100, 3600000, "A shard further behind makes the answer partial."),
    key("query.cache", Kind::Bytes, "64MiB", 0, 68719476736, "Cached parts of answers; 0 turns the cache off."),
    key(
        "query.redis",
        Kind::Text,
        "",
        0,
        0,
        "A second query cache that nodes share, behind query.cache: `redis://[[user]:password@]host[:port][/database]`. Empty: none.",
    ),
    key(
        "query.redis_timeout",
        Kind::Duration,
        "10ms",
        1,
        1000,
        "A query waits no longer for it, and after three failures not at all.",
    ),
    key("query.redis_keep", Kind::Duration, "7d", 1000, 31536000000, "How long it keeps a part."),
    key("ws.window", Kind::Number, "32", 1, 10000, "Unacknowledged messages of one WebSocket."),
    key("ws.max_message", Kind::Bytes, "20MiB", 1024, 1073741824, "Bytes of one WebSocket message."),
    key("ws.max_subscriptions", Kind::Number, "16", 0, 1000, "Subscriptions of one WebSocket; one more closes it with 1008."),
    key("ws.update_interval", Kind::Duration, "1s", 100, 3600000, "How often subscriptions are run again."),
    key(
        "ws.idle_timeout",
        Kind::Duration,
        "30s",
        1000,
        3600000,
        "A WebSocket that says nothing for this long, pings unanswered, or takes nothing for this long is closed.",
    ),
    key(
        "auth.keys_file",
        Kind::Text,
        "",
        0,
        0,
        "File of API keys, written by `rollmill keys`. Empty: no keys, loopback only, tenant `default`.",
    ),
    key(
        "supervision.max_restarts",
        Kind::Number,
        "10",
        1,
        10000,
        "Failures of an actor within the window that are answered by a restart.",
    ),
    key("supervision.restart_window", Kind::Duration, "1m", 1000, 86400000, "The window."),
    key("supervision.backoff_min", Kind::Duration, "100ms", 1, 600000, "Delay of the first restart; it doubles."),
    key("supervision.backoff_max", Kind::Duration, "10s", 1, 3600000, "Longest delay."),
];
