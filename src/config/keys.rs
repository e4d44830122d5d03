//! The table of keys: name, type, default, range and documentation. Everything else about a key is
//! derived from its row. The comments of the keys are the text of
//! `docs/reference/configuration.md` and `config/rollmill.toml`; a test compares them.

use std::path::PathBuf;
use std::time::Duration;

use super::kafka::{KafkaProperties, PassedGaps};
use super::lists::{HostList, OriginList};
use super::roles::Roles;
use super::table::config;
use super::values::{ByteSize, SecretUrl, days, gib, hours, kib, mib, minutes, ms, seconds};

config! {
    /// Name and roles of this node.
    node: NodeConfig {
        /// Name of this node in `rollmill status`. Empty: the name of the machine.
        name: Option<String> = None;
        /// What this node does. The embedded log and SQLite need every role on one node.
        roles: Roles = Roles::ALL;
    }
    /// The HTTP server: address, connections and time limits.
    server: ServerConfig {
        /// Where HTTP and WebSocket are served. Without API keys only loopback addresses are taken.
        listen: String = "127.0.0.1:8080".to_owned();
        /// Pages that may send and read, `https://shop.example,http://localhost:3000`: their
        /// origins as browsers name them. `*`: all, if the node has keys. Empty: none.
        cors_origins: OriginList = OriginList::default();
        /// Open connections. Those without a valid key share three quarters, and the oldest of them
        /// is evicted first; one of several tenants has a quarter.
        max_connections: usize = 4096, 1..=1_000_000;
        /// Connections from one address; one more is answered 503. 0: no limit, because all clients
        /// behind a proxy share an address.
        max_connections_per_address: usize = 0, 0..=1_000_000;
        /// A client that reads less than 16 KiB of a pending answer in this time is disconnected.
        write_timeout: Duration = seconds(30), ms(100)..=hours(1);
        /// Bytes of answers that clients have not read yet; beyond it 503. One of several tenants
        /// has a quarter, beyond it 429.
        max_answers: ByteSize = mib(256), mib(1)..=gib(64);
        /// A client that takes longer to send its headers is disconnected.
        header_timeout: Duration = seconds(10), ms(100)..=minutes(10);
        /// A client that takes longer to send a body is disconnected.
        body_timeout: Duration = seconds(30), ms(100)..=hours(1);
        /// On shutdown, `/readyz` fails this long before connections are closed, so that load
        /// balancers notice first.
        drain_delay: Duration = Duration::ZERO, Duration::ZERO..=minutes(10);
        /// How long a starting node retries to reach Kafka and PostgreSQL; then it exits with code
        /// 1. 0: it does not retry.
        start_wait: Duration = minutes(5), Duration::ZERO..=days(1);
    }
    /// The local disk of the embedded mode.
    data: DataConfig {
        /// Log, store and archive of the embedded mode. One process at a time.
        dir: PathBuf = PathBuf::from("./data");
    }
    /// The shards of the log and their owners.
    shards: ShardsConfig {
        /// Number of shards. Fixed when the data directory is created; a node refuses to start with
        /// another number.
        count: u32 = 64, 1..=4096;
        /// How soon a shard pulls new records: most of the delay until an event shows in queries.
        pull_interval: Duration = ms(20), ms(1)..=seconds(1);
        /// How long a shard that leaves this node may take to flush its open deltas; the log holds
        /// the rest.
        handover: Duration = seconds(1), ms(10)..=minutes(1);
        /// A shard that another node has claimed is claimed again after this time, doubling, or
        /// when the assignment changes.
        refused_delay: Duration = seconds(2), ms(10)..=minutes(10);
    }
    /// From a request to the log.
    gateway: GatewayConfig {
        /// Gateway actors that group events by shard.
        actors: usize = 2, 1..=64;
        /// A write that is not durable by then is answered 503 with an unknown outcome;
        /// de-duplication by id absorbs the retry.
        append_timeout: Duration = seconds(30), ms(100)..=minutes(10);
        /// Series whose validated labels the gateway caches; others are parsed again.
        max_interned: usize = 2_000_000, 2..=100_000_000;
        /// Memory of those labels.
        max_interned_bytes: ByteSize = mib(512), kib(64)..=gib(64);
    }
    /// What is accepted from clients.
    accept: AcceptConfig {
        /// Events older than this are refused. Rollups and archive are kept at least as long.
        max_age: Duration = days(365), hours(1)..=days(36_500);
        /// Events further in the future are refused.
        max_ahead: Duration = minutes(10), Duration::ZERO..=days(1);
        /// Bytes of one event.
        max_event_bytes: ByteSize = kib(8), ByteSize::of(64)..=mib(1);
        /// Events in one request.
        max_events: usize = 10_000, 1..=10_000;
        /// Bytes of one request, after decompression.
        max_body: ByteSize = mib(20), kib(1)..=gib(1);
        /// Bytes of requests being worked on; beyond it 503 with Retry-After. One of several
        /// tenants has a quarter, beyond it 429. Requests whose key stands in the body have a
        /// quarter beside it, until the key is known.
        max_inflight: ByteSize = mib(256), mib(1)..=gib(64);
    }
    /// The collection endpoints of published SDKs.
    collect: CollectConfig {
        /// File that says which events of SDKs become which metric, and which properties become
        /// labels: docs/reference/collect.md. It is the same on all nodes, and read again when it
        /// changes. Empty: every event is taken by its name.
        mapping_file: Option<PathBuf> = None;
    }
    /// What each tenant may use.
    tenants: TenantsConfig {
        /// Events a second of each tenant, valid and refused ones alike, in every protocol; beyond
        /// it 429 with Retry-After. A body that is refused whole is one event. 0: no limit.
        max_events_per_second: u64 = 0, 0..=1_000_000_000;
        /// Burst that a tenant with a rate may send after a pause.
        burst: u64 = 100_000, 1..=1_000_000_000;
        /// Series of each tenant; beyond it events go to the overflow series of their metric.
        max_series: u64 = 2_000_000, 1..=1_000_000_000;
        /// Metric names of each tenant, as each node with shards counts them (n such nodes may let
        /// in n times as many); events of further names go to the metric `__overflow__`.
        max_metrics: usize = 10_000, 1..=1_000_000_000;
    }
    /// The log, embedded or on Kafka.
    log: LogConfig {
        /// A segment of the log is sealed at this size; the last one is scanned at start.
        segment_bytes: ByteSize = mib(128), kib(64)..=gib(4);
        /// Bytes waiting to be committed; beyond it 503 with Retry-After.
        max_waiting: ByteSize = mib(64), mib(1)..=gib(16);
        /// Recent records kept in memory for the shards.
        tail_cache: ByteSize = mib(64), ByteSize::ZERO..=gib(16);
        /// How long a rebalance of Kafka's group waits for the shards that leave this node.
        handover: Duration = seconds(2), ms(10)..=minutes(1);
        /// Records younger than this stay in Kafka although they are rolled up and archived: a
        /// store that failed over may have lost commits.
        safety: Duration = hours(24), Duration::ZERO..=days(365);
    }
    /// Kafka as the log.
    kafka: KafkaConfig {
        /// Kafka as the log: `host:port,host:port`. Empty: the embedded log in `data.dir`.
        brokers: Option<String> = None;
        /// Topic of the log; shard n is partition n. `rollmill topic create` makes it.
        topic: String = "rollmill".to_owned();
        /// Consumer group that assigns shards to nodes.
        group: String = "rollmill".to_owned();
        /// Replicas that the topic must have at least; 3 in production.
        replication: u32 = 1, 1..=32;
        /// In-sync replicas without which Kafka refuses writes, at least; 2 in production.
        min_isr: u32 = 1, 1..=32;
        /// More properties of the client, `name=value,name=value`, such as those of SASL and TLS;
        /// never shown.
        properties: KafkaProperties = KafkaProperties::default();
        /// Gaps in partitions that hold no records of Rollmill, `SHARD:FROM-TO,…`. Set it only when
        /// the log asks for it: docs/how-to/stopped-shard.md, "Pass a gap".
        passed_gaps: PassedGaps = PassedGaps::default();
        /// Timeout of one request to Kafka.
        timeout: Duration = seconds(5), ms(100)..=minutes(10);
        /// A node silent for this long loses its shards: most of the time until they are served
        /// elsewhere.
        session_timeout: Duration = seconds(6), seconds(1)..=minutes(5);
        /// A record not acknowledged by then has an unknown outcome and is answered 503. Below
        /// `gateway.append_timeout`.
        delivery_timeout: Duration = seconds(20), ms(100)..=minutes(10);
        /// Bytes fetched ahead of the shards of this node.
        prefetch: ByteSize = mib(16), kib(64)..=gib(1);
        /// How often the ends of the partitions are read: an answer is no fresher than that.
        refresh: Duration = ms(100), ms(10)..=seconds(10);
    }
    /// How deltas get to the store.
    flush: FlushConfig {
        /// How often a shard writes its deltas to the store.
        interval: Duration = seconds(10), ms(100)..=hours(1);
        /// Memory for the deltas of all shards; a shard that exceeds its share flushes early.
        max_delta_bytes: ByteSize = mib(512), mib(1)..=gib(256);
    }
    /// PostgreSQL as the store.
    store: StoreConfig {
        /// PostgreSQL or TimescaleDB that holds the rollups:
        /// `postgres://USER:PASSWORD@HOST:PORT,HOST2:PORT/DATABASE`. Empty: SQLite in `data.dir`.
        url: Option<SecretUrl> = None;
        /// The same primary, as a role that may only read, for queries. Empty: `store.url`.
        read_url: Option<SecretUrl> = None;
        /// PEM file of the authorities of the server's certificate, for URLs with
        /// `sslmode=require`. Empty: those of the system.
        tls_ca: Option<PathBuf> = None;
        /// Connections of this node for flushes, claims and the archive; one more flush waits.
        flush_connections: usize = 8, 1..=1000;
        /// Connections of this node for queries and starts of shards; one more query waits.
        read_connections: usize = 8, 1..=1000;
        /// Time to connect to one host of the URL; then the next one is tried.
        connect_timeout: Duration = seconds(5), ms(100)..=minutes(10);
        /// Timeout of one transaction, including the wait for a connection; each 8,192 rows of a
        /// flush restart it. A commit that is not answered by then has an unknown outcome, and the
        /// shard restarts.
        timeout: Duration = seconds(30), ms(100)..=hours(1);
        /// Time to wait for a lock of another transaction.
        lock_timeout: Duration = seconds(5), ms(10)..=minutes(10);
        /// The server disconnects a node that is silent for this long inside a flush; a connection
        /// without acknowledgements counts as broken.
        idle_timeout: Duration = seconds(5), ms(100)..=minutes(10);
        /// Weeks older than this are compressed, and again after late events, if the server is a
        /// TimescaleDB whose licence has that; 0 is never.
        compress_after: Duration = Duration::ZERO, Duration::ZERO..=days(36_500);
        /// Time to compress one chunk (a week of rollups, or of sketches). Late events of that week
        /// wait for it, queries do not.
        compress_timeout: Duration = hours(1), seconds(1)..=days(1);
    }
    /// How long rollups are kept.
    rollups: RollupsConfig {
        /// Rollups of windows older than this are dropped from PostgreSQL, a week at a time; 0
        /// keeps them forever. At least `accept.max_age`.
        keep: Duration = Duration::ZERO, Duration::ZERO..=days(36_500);
    }
    /// De-duplication by event id.
    dedup: DedupConfig {
        /// Equal ids appended within this time count once.
        horizon: Duration = hours(1), seconds(1)..=days(7);
        /// Ids remembered by each shard, at most 24 bytes each; whichever of both limits is shorter
        /// applies.
        max_ids: usize = 1_000_000, 1..=33_554_432;
    }
    /// The archive of raw events.
    archive: ArchiveConfig {
        /// Raw bytes of one archive object.
        max_bytes: ByteSize = mib(128), kib(1)..=gib(4);
        /// Longest time before an object is written.
        max_delay: Duration = minutes(10), ms(100)..=days(1);
        /// Where raw events are archived: `file:///path` or `s3://bucket/prefix`. Empty: `archive`
        /// in the data directory.
        url: Option<SecretUrl> = None;
        /// Endpoint of the object storage, such as `http://127.0.0.1:9000`. Empty: AWS, or
        /// that of the environment.
        endpoint: Option<SecretUrl> = None;
        /// Its region. Empty: that of the environment, or us-east-1.
        region: Option<String> = None;
        /// Its credentials, in the form of the AWS tools. Empty: the environment
        /// (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`) or the role of the machine.
        credentials_file: Option<PathBuf> = None;
        /// Timeout of one request to the object storage, also for an object of archive.max_bytes.
        /// It is retried three times, within twice this time.
        timeout: Duration = seconds(60), ms(100)..=hours(1);
        /// Where old objects are moved, on the same endpoint or in a directory; must differ from
        /// archive.url. Empty: they stay.
        cold_url: Option<SecretUrl> = None;
        /// Storage class of moved objects, such as STANDARD_IA. Empty: the bucket's.
        cold_class: Option<String> = None;
        /// Objects older than this move.
        cold_after: Duration = days(30), ms(100)..=days(36_500);
        /// Objects older than this are deleted; their windows can no longer be recomputed. 0 keeps
        /// them; otherwise at least accept.max_age.
        keep: Duration = days(365), Duration::ZERO..=days(36_500);
    }
    /// Safeguards against wrong deletion.
    expiry: ExpiryConfig {
        /// If more objects of a shard than this, and more than a twentieth of them, become due at
        /// once, an operator must approve their deletion.
        max_at_once: u64 = 100, 1..=1_000_000;
    }
    /// Queries and their caches.
    query: QueryConfig {
        /// Flushed batches are kept this long for queries that read an older snapshot.
        deadline: Duration = seconds(10), ms(100)..=minutes(10);
        /// Points in one answer.
        max_points: usize = 100_000, 1..=100_000_000;
        /// Series that one query may read.
        max_series: usize = 100_000, 1..=100_000_000;
        /// Queries that run or are queued; beyond it 503 with Retry-After. One of several tenants
        /// has a quarter, beyond it 429.
        max_concurrent: usize = 64, 1..=4096;
        /// Threads that run queries, at a lower priority than everything else. 0: one for each
        /// core, at least 4. One of several tenants has three quarters.
        threads: usize = 0, 0..=1024;
        /// A query that takes longer, including its time in the queue, is aborted and answered 503
        /// with Retry-After. So is whatever operators do to the store (quarantine, expiry).
        timeout: Duration = seconds(30), ms(100)..=hours(1);
        /// A client that has closed its side of the connection is answered within this time, and
        /// counts as gone after it: its query ends. TCP does not tell one that has ended from one
        /// that only has nothing more to send.
        client_gone_after: Duration = seconds(5), Duration::ZERO..=hours(1);
        /// Memory of all running queries, counted as it grows. One of several tenants has a
        /// quarter; a query that needs more by itself is answered 422.
        max_memory: ByteSize = gib(1), mib(1)..=gib(64);
        /// A shard that lags further behind makes the answer partial.
        stale_after: Duration = seconds(10), ms(100)..=hours(1);
        /// Cached parts of answers (two thirds) and lists of the series that queries match (one
        /// third); 0 turns both off.
        cache: ByteSize = mib(96), ByteSize::ZERO..=gib(64);
        /// A query cache that nodes share, behind query.cache:
        /// `redis://[[user]:password@]host[:port][/database]`. Empty: none.
        redis: Option<SecretUrl> = None;
        /// Timeout of one request to it; after three failures it is skipped for a while.
        redis_timeout: Duration = ms(10), ms(1)..=seconds(1);
        /// How long it keeps a cached part.
        redis_keep: Duration = days(7), seconds(1)..=days(365);
    }
    /// Replays: archived events counted again under other rules.
    replay: ReplayConfig {
        /// How long an apply can be undone: for this long what it replaced is still written.
        keep: Duration = days(7), seconds(1)..=days(365);
        /// Replays that may be written for one day of a metric at the same time, besides what was
        /// ingested: those being built, served, and kept for an undo.
        max_maintained: usize = 3, 1..=16;
        /// Archived events that one node replays each second, all replays together. 0: as many as
        /// it can.
        max_rate: u64 = 0, 0..=1_000_000_000;
        /// How long a replay may keep archive objects from expiring.
        max_time: Duration = days(7), minutes(1)..=days(365);
    }
    /// Boards: saved panels of the dashboard.
    boards: BoardsConfig {
        /// Boards of one tenant.
        max: usize = 200, 0..=100_000;
        /// Bytes of one board, as JSON.
        max_bytes: ByteSize = kib(64), kib(1)..=mib(1);
        /// Panels of one board.
        max_panels: usize = 32, 1..=1_000;
    }
    /// Limits of WebSocket connections and their subscriptions.
    ws: WebSocketConfig {
        /// Unacknowledged messages of one WebSocket.
        window: usize = 32, 1..=10_000;
        /// Bytes of one WebSocket message.
        max_message: ByteSize = mib(20), kib(1)..=gib(1);
        /// Subscriptions of one WebSocket; one more closes it with 1008.
        max_subscriptions: usize = 16, 0..=1000;
        /// Subscriptions of all WebSockets; one more closes its own with 1013. One of several
        /// tenants has a quarter.
        max_all_subscriptions: usize = 4096, 1..=1_000_000;
        /// How often the queries of subscriptions are run.
        update_interval: Duration = seconds(1), ms(100)..=hours(1);
        /// A WebSocket is closed if it sends nothing for this long, not even answers to pings, or
        /// reads nothing for this long.
        idle_timeout: Duration = seconds(30), seconds(1)..=hours(1);
    }
    /// The file of API keys.
    auth: AuthConfig {
        /// File of API keys, written by `rollmill keys`. Empty: no keys, loopback only, tenant
        /// `default`.
        keys_file: Option<PathBuf> = None;
    }
    /// Restarts of actors that failed.
    supervision: SupervisionConfig {
        /// Failures of an actor within the window after which it is still restarted.
        max_restarts: u32 = 10, 1..=10_000;
        /// The window.
        restart_window: Duration = minutes(1), seconds(1)..=days(1);
        /// Delay of the first restart; it doubles.
        backoff_min: Duration = ms(100), ms(1)..=minutes(10);
        /// Longest delay before a restart.
        backoff_max: Duration = seconds(10), ms(1)..=hours(1);
    }
    /// The mesh of nodes.
    cluster: ClusterConfig {
        /// Where other nodes connect, HOST:PORT. Empty: this node knows no others and answers for
        /// its own shards alone.
        listen: Option<String> = None;
        /// Addresses to dial, host:port,host:port; the node's own may be among them. One direction
        /// is enough: the dialled node learns of the one that dials.
        peers: HostList = HostList::default();
        /// File with the secret of the cluster, at least 32 bytes, the same on all nodes;
        /// or the environment ROLLMILL_CLUSTER_COOKIE.
        cookie_file: Option<PathBuf> = None;
        /// This node's certificate for TLS between nodes (PEM), for the host in cluster.peers.
        /// Empty: plain TCP, loopback only.
        cert: Option<PathBuf> = None;
        /// The private key of this certificate (PEM).
        key: Option<PathBuf> = None;
        /// The authority that signed the certificates of all nodes (PEM); each side verifies the
        /// other.
        ca: Option<PathBuf> = None;
        /// true: plain TCP between nodes beyond loopback. Whoever can read the network can read and
        /// alter the figures.
        insecure: bool = false;
        /// Interval of heartbeats: every other node is asked whether it is alive and what it owns.
        heartbeat: Duration = seconds(1), ms(100)..=minutes(1);
        /// A node that has not answered for this long is not queried until it answers again.
        dead_after: Duration = seconds(5), ms(300)..=minutes(10);
        /// How long a query waits for the live deltas of another node; at most half of
        /// query.deadline, because a query may ask twice.
        call_timeout: Duration = seconds(2), ms(20)..=minutes(10);
        /// Calls in flight to one other node; more wait, within cluster.call_timeout. Together with
        /// cluster.max_answer it bounds memory.
        max_calls: usize = 16, 1..=4096;
        /// Calls of other nodes answered at once; beyond it they are refused, and those answers are
        /// partial.
        max_reads: usize = 64, 1..=4096;
        /// Size of one answer to another node; shards that do not fit are reported missing as
        /// too_large.
        max_answer: ByteSize = mib(8), kib(64)..=mib(256);
    }
}
