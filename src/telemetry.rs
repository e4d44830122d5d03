//! The table of a node's metrics: name (`rollmill_<noun>_<unit>[_total]`), HELP text, label and the
//! label values that are known at build time.
//!
//! Counters and unlabelled gauges are exported as zero from the start. Prometheus would otherwise
//! see a counter for the first time with its first increment, and `increase()` would miss it.

mod repeated;

pub use repeated::RepeatedLog;

/// The Prometheus type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum MetricKind {
    Counter,
    Gauge,
    /// Durations in seconds, in [`HISTOGRAM_BUCKETS`].
    Histogram,
}

/// One row of [`METRICS`]. `/metrics` and docs/reference/metrics.md are generated from it.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the names say it")]
pub struct MetricDefinition {
    pub name: &'static str,
    pub kind: MetricKind,
    pub help: &'static str,
    /// The main label, with the values that are known at build time.
    pub label: Option<(&'static str, &'static [&'static str])>,
}

/// Upper bounds of all histogram buckets, in seconds: from a fast fsync to the slowest query.
pub const HISTOGRAM_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

macro_rules! metrics_table {
    ($(
        $kind:ident $id:ident = $name:literal
        $(by $label:literal in [$($value:literal),* $(,)?])?: $help:literal;
    )*) => {
        $(#[doc = $help] pub const $id: &str = $name;)*

        /// Every metric that a node exports.
        pub const METRICS: &[MetricDefinition] = &[$(MetricDefinition {
            name: $name,
            kind: MetricKind::$kind,
            help: $help,
            label: {
                let label: &[(&str, &[&str])] = &[$(($label, &[$($value),*]))?];
                label.first().copied()
            },
        }),*];
    };
}

metrics_table! {
    Gauge BUILD_INFO = "rollmill_build_info" by "version" in []:
        "Always 1; the labels say which build this is.";
    Gauge READY = "rollmill_ready" by "role" in []:
        "Whether the node does what this role asks of it: 1, or 0 as /readyz says.";
    Gauge SHARDS_OWNED = "rollmill_shards_owned": "Shards that this node owns.";
    Gauge SHARD_LAG_RECORDS = "rollmill_shard_lag_records" by "shard" in []:
        "Records of the log that the owner here has not applied yet; 0 for shards of other nodes.";
    Gauge SHARD_AGE_SECONDS = "rollmill_shard_age_seconds" by "shard" in []:
        "How far behind in time the owner here is; 0 for shards of other nodes.";
    Gauge SHARD_UNARCHIVED_RECORDS = "rollmill_shard_unarchived_records" by "shard" in []:
        "Records applied and not archived yet; 0 for shards of other nodes.";
    Counter LOG_RECORDS_LOST = "rollmill_log_records_lost_total":
        "Lines of the node's own log that were not written, because their reader is gone or stands \
         still, or its disk is full.";
    Counter CLOCK_LEAPS = "rollmill_clock_leaps_total" by "direction" in ["forward", "back"]:
        "Leaps of this machine's wall clock by more than a minute.";
    Counter EXPIRY_STOPS = "rollmill_expiry_stops_total":
        "Times that expiry has stopped until a person says yes: much became due at once, or the \
         wall clock leapt.";
    Gauge EXPIRY_STOPPED = "rollmill_expiry_stopped" by "shard" in []:
        "1 while nothing of this shard's archive (or, as `weeks`, of the rollups) expires until a \
         person says yes.";
    Gauge OPEN_DELTA_BYTES = "rollmill_open_delta_bytes":
        "Bytes of deltas that wait for their flush.";
    Counter EVENTS_ACCEPTED = "rollmill_events_accepted_total":
        "Events accepted by this gateway (durable in the log).";
    Counter EVENTS_REJECTED = "rollmill_events_rejected_total" by "code" in [
        "metric_invalid", "labels_invalid", "value_invalid", "value_out_of_range",
        "timestamp_invalid", "timestamp_in_future", "timestamp_too_old", "event_too_large",
        "id_invalid", "user_invalid", "record_invalid", "event_unreadable",
    ]: "Events refused by this gateway, by reason.";
    Counter COLLECT_LEFT_OUT = "rollmill_collect_left_out_total" by "part" in
        ["label", "value", "user"]:
        "Parts of events of SDKs that could not be taken as the mapping says; the events count \
         without them.";
    Counter COLLECT_EVENTS = "rollmill_collect_events_total" by "protocol" in []:
        "Events of SDKs, by protocol and outcome: accepted, or the code of the refusal.";
    Counter EVENTS_AGGREGATED = "rollmill_events_aggregated_total": "Events aggregated by shards.";
    Counter EVENTS_DEDUPLICATED = "rollmill_events_deduplicated_total":
        "Events dropped as duplicates by shards.";
    Gauge DEDUP_HORIZON_SECONDS = "rollmill_dedup_horizon_seconds":
        "For how long event ids are known for certain, the shortest of the shards that this node \
         owns; at most dedup.horizon.";
    Counter DEDUP_FORGOTTEN = "rollmill_dedup_forgotten_total":
        "Event ids forgotten within dedup.horizon, because a shard took more than dedup.max_ids: \
         sent again, they count twice.";
    Counter EVENTS_OVERFLOWED = "rollmill_events_overflowed_total":
        "Events counted in the overflow series of their metric, because their tenant has \
         tenants.max_series series.";
    Gauge SHARE_USED = "rollmill_share_used" by "limit" in [
        "query.max_concurrent", "query.max_memory", "accept.max_inflight", "server.max_answers",
        "server.max_connections", "ws.max_all_subscriptions",
    ]:
        "What all tenants hold of what they share, by the key of its limit.";
    Counter SHARES_REFUSED = "rollmill_shares_refused_total" by "limit" in []:
        "Requests refused because a share was used up, by the key of its limit and by whose \
         (tenant: its own part; total: all of it).";
    Counter CONNECTIONS_CUT = "rollmill_connections_cut_total" by "reason" in [
        "gave_way", "slow", "revoked",
    ]:
        "Connections cut: gave_way (of nobody, for a newer one), slow (its answer was not taken), \
         revoked (nor was its key valid any more).";
    Counter REQUESTS = "rollmill_requests_total" by "route" in []:
        "HTTP requests answered, by route and status.";
    Counter REQUEST_ERRORS = "rollmill_request_errors_total" by "code" in []:
        "HTTP requests answered with an error, by its code: docs/reference/errors.md.";
    Counter PROMETHEUS_REQUESTS = "rollmill_prometheus_requests_total" by "outcome" in [
        "success", "bad_data", "execution", "timeout", "canceled", "unauthorized", "forbidden",
        "unavailable", "internal",
    ]:
        "Requests of the Prometheus HTTP API, by outcome: success, or errorType of the answer \
         (execution: PromQL that cannot be answered exactly, or an answer beyond a limit).";
    Counter CORS_REFUSED = "rollmill_cors_refused_total" by "kind" in ["preflight", "request"]:
        "Requests of pages whose origin is not in server.cors_origins: preflights that allow \
         nothing, and requests answered 403.";
    Counter WS_UPDATES = "rollmill_ws_updates_total" by "outcome" in [
        "sent", "unchanged", "failed", "delayed",
    ]:
        "Queries of subscriptions on WebSockets, by what became of their answer: sent, unchanged \
         (not sent), failed (the error is sent), delayed (overload: the next turn asks again).";
    Histogram REQUEST_SECONDS = "rollmill_request_duration_seconds" by "route" in []:
        "How long a request took, from its head to the head of its answer: for writes, until the \
         events are durable.";
    Histogram QUERY_SECONDS = "rollmill_query_duration_seconds":
        "How long a query took in the engine.";
    Histogram VISIBLE_SECONDS = "rollmill_visible_delay_seconds":
        "From the append of a record to the moment from which queries hold it, for the oldest \
         record of each pull.";
    Counter WRITES_REFUSED = "rollmill_writes_refused_total" by "reason" in [
        "overloaded", "disk_full", "no_descriptors", "disk_failed", "log_closed", "outcome_unknown",
    ]: "Write requests that the log did not take, by the code of the answer.";
    Gauge DISK_FREE = "rollmill_disk_free_bytes":
        "Free bytes of the file system that has least of them, of those that hold log, store and \
         archive on this machine.";
    Gauge LOG_SIZE = "rollmill_log_size_bytes":
        "Bytes of the log on this node's disk; 0 if it is Kafka.";
    Gauge STORE_SIZE = "rollmill_store_size_bytes":
        "Bytes of the store: the file with its journal, or all tables of PostgreSQL with their \
         indexes, partitions and chunks, measured once a minute.";
    Gauge ARCHIVE_SIZE = "rollmill_archive_size_bytes":
        "Bytes of the archive's objects, as the manifest lists them; with PostgreSQL as of up to a \
         minute ago.";
    Counter LOG_COMMITS = "rollmill_log_commits_total": "Durable commits of the embedded log.";
    Counter LOG_BYTES = "rollmill_log_bytes_total": "Bytes appended to the log.";
    Counter LOG_HEALINGS = "rollmill_log_healings_total" by "outcome" in [
        "begun", "done", "refused",
    ]:
        "Shards whose log lost its beginning above their checkpoint: begun, done (read from the \
         archive), refused (not all is there).";
    Counter LOG_HEALED_RECORDS = "rollmill_log_healed_records_total":
        "Records read from the archive because the log lost them.";
    Counter FLUSHES = "rollmill_flushes_total" by "outcome" in [
        "committed", "refused", "failed", "unknown", "invalid",
    ]: "Flushes, by outcome.";
    Gauge FLUSHES_FAILING = "rollmill_flushes_failing":
        "Shards of this node whose flushes fail again and again: what they hold is not in the \
         store, and waits.";
    Counter FLUSH_ROWS = "rollmill_flush_rows_total": "Rows written by flushes.";
    Histogram FLUSH_SECONDS = "rollmill_flush_duration_seconds": "How long a committed flush took.";
    Counter ARCHIVE_OBJECTS = "rollmill_archive_objects_total": "Archive objects written.";
    Counter ARCHIVE_UPKEEP = "rollmill_archive_upkeep_total" by "step" in ["move", "expire"]:
        "Archive objects moved to the cold store or expired.";
    Counter ARCHIVE_FAILURES = "rollmill_archive_failures_total" by "step" in [
        "write", "move", "expire", "sweep",
    ]:
        "Failures of the archive, which are tried again, by step.";
    Counter REPLAY_ROWS_DELETED = "rollmill_replay_rows_deleted_total":
        "Rows of replays that nobody reads any more, and that were deleted.";
    Counter REPLAY_KEEPER_FAILURES = "rollmill_replay_keeper_failures_total":
        "Failures to keep replays in order (time, deletion, archive), which are tried again.";
    Counter ACTOR_RESTARTS = "rollmill_actor_restarts_total" by "actor" in [
        "gateway", "gateways", "shard", "shards", "archiver", "upkeep", "keeper", "set_watch",
        "replay", "replays", "mesh",
    ]: "Restarts of actors, by actor.";
    Counter GENERATION_SET_FAILURES = "rollmill_generation_set_failures_total":
        "Times that this node could not see which generations its shards are to write: the store \
         did not answer, or the rules are of a newer release.";
    Gauge REPLAYS_RUNNING = "rollmill_replays_running":
        "Fills that this node runs: one for each shard and replay.";
    Gauge REPLAYS_WAITING = "rollmill_replays_waiting" by "reason" in [
        "adopting", "archiving", "object", "store", "expired", "older_release", "newer_rules",
    ]:
        "Of these, those that wait, by what for: adopting (the shard's next flush) and archiving \
         come by themselves; object (missing, damaged or out of reach), store (it takes nothing), \
         expired, older_release and newer_rules do not.";
    Gauge GENERATIONS = "rollmill_generations" by "state" in [
        "building", "ready", "served", "kept", "leaving",
    ]:
        "Replays in the store, by state; every node with shards shows all of them: building, \
         ready (to be applied), served, kept (for an undo), leaving (rows are being deleted).";
    Counter REPLAYS_GIVEN_UP = "rollmill_replays_given_up_total":
        "Replays given up, because a shard died of an event with their rules, and not without.";
    Gauge REPLAYS_PAUSED = "rollmill_replays_paused":
        "1 while the replays of this node stand aside, because a shard's newest flush is late.";
    Gauge REPLAY_RECORDS_LEFT = "rollmill_replay_records_left":
        "Records that are still to be filled into generations, of all shards.";
    Counter REPLAY_EVENTS = "rollmill_replay_events_total":
        "Archived events read by the replays of this node.";
    Counter REPLAY_FAILURES = "rollmill_replay_failures_total":
        "Times that a replay could not go on: an archive object is missing, damaged or out of \
         reach, or its records have expired. It is tried again.";
    Gauge SURPLUS_PARTITIONS = "rollmill_topic_surplus_partitions":
        "Partitions of the topic beyond shards.count: they are left alone. Anything but zero is \
         somebody's mistake.";
    Gauge SHARD_STOPPED = "rollmill_shard_stopped" by "shard" in []:
        "Whether the shard stands still here until somebody mends what it stands before: 1, or 0.";
    Counter QUARANTINED = "rollmill_quarantined_total" by "what" in ["event", "record"]:
        "Events, or whole records that no gateway wrote, that were set aside and are not counted.";
    Counter INVARIANT_VIOLATIONS = "rollmill_invariant_violations_total" by "id" in [
        "I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "I12",
        "I13", "I14", "I15",
    ]: "Violations of an invariant. Anything but zero is a bug.";
    Counter QUERY_CACHE = "rollmill_query_cache_total" by "outcome" in ["hit", "miss"]:
        "Days of queries found in the cache or not.";
    Counter QUERY_SECOND_CACHE = "rollmill_query_second_cache_total" by "outcome" in [
        "hit", "miss", "invalid", "skipped", "failed", "kept", "dropped",
    ]:
        "Days of queries looked up in the second cache or written to it. What is skipped or failed \
         counts as a miss too.";
    Counter MESH_CALLS = "rollmill_mesh_calls_total" by "outcome" in [
        "answered", "failed", "no_credit", "left_out",
    ]:
        "Questions to other nodes, by outcome.";
    Histogram MESH_CALL_SECONDS = "rollmill_mesh_call_duration_seconds":
        "How long an answer of another node took.";
    Counter MESH_SERVED = "rollmill_mesh_served_total" by "outcome" in [
        "answered", "failed", "overloaded",
    ]:
        "Questions of other nodes, by outcome.";
    Gauge MESH_PEERS = "rollmill_mesh_peers": "Other nodes that answer now.";
    Counter MESH_REFUSED = "rollmill_mesh_refused_total":
        "Answers of other nodes that were refused: another epoch or version, or not to the \
         question.";
    Counter QUERIES = "rollmill_queries_total" by "outcome" in ["complete", "partial", "refused"]:
        "Queries answered, by outcome.";
}

/// Registers type and HELP text of each metric with the installed recorder, and sets every series
/// whose label values are known to zero.
pub fn describe() {
    for metric in METRICS {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
        match (metric.kind, metric.label) {
            (MetricKind::Counter, Some((label, values))) => {
                values
                    .iter()
                    .for_each(|value| metrics::counter!(metric.name, label => *value).increment(0));
            }
            (MetricKind::Counter, None) => metrics::counter!(metric.name).increment(0),
            (MetricKind::Gauge, None) => metrics::gauge!(metric.name).increment(0.0),
            // A histogram cannot be set to zero: any observation is a duration that nobody
            // measured. Labelled gauges are left to whoever measures them.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        for metric in METRICS {
            let total = metric.name.ends_with("_total");
            assert!(metric.name.starts_with("rollmill_"), "{}", metric.name);
            assert_eq!(
                total,
                metric.kind == MetricKind::Counter,
                "{}: counters, and they alone, end with _total",
                metric.name
            );
            assert!(
                metric.kind != MetricKind::Histogram || metric.name.ends_with("_seconds"),
                "{}: in seconds",
                metric.name
            );
            assert!(
                metric.help.ends_with('.') && metric.help.len() > 10,
                "{}: a sentence",
                metric.name
            );
            assert_eq!(
                METRICS.iter().filter(|other| other.name == metric.name).count(),
                1,
                "{} stands twice",
                metric.name
            );
        }
    }
}
