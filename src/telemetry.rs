//! Names of metrics, in one place: `rollmill_<noun>_<unit>[_total]`.

/// Events accepted by this gateway (durable in the log).
pub const EVENTS_ACCEPTED: &str = "rollmill_events_accepted_total";
/// Events refused by this gateway, by `code`.
pub const EVENTS_REJECTED: &str = "rollmill_events_rejected_total";
/// Events aggregated by shards.
pub const EVENTS_AGGREGATED: &str = "rollmill_events_aggregated_total";
/// Events dropped as duplicates by shards.
pub const EVENTS_DEDUPLICATED: &str = "rollmill_events_deduplicated_total";
/// Events counted in the overflow series of their metric, because their tenant has `tenants.max_series` series.
pub const EVENTS_OVERFLOWED: &str = "rollmill_events_overflowed_total";
/// Requests answered, by `route` and `status`.
pub const REQUESTS: &str = "rollmill_requests_total";
/// Durable commits of the embedded log.
pub const LOG_COMMITS: &str = "rollmill_log_commits_total";
/// Bytes appended to the log.
pub const LOG_BYTES: &str = "rollmill_log_bytes_total";
/// Shards whose log lost its beginning above their checkpoint, by `outcome` (begun, done: read from the archive; refused: not all is there).
pub const LOG_HEALINGS: &str = "rollmill_log_healings_total";
/// Records read from the archive because the log lost them.
pub const LOG_HEALED_RECORDS: &str = "rollmill_log_healed_records_total";
/// Flushes, by `outcome`.
pub const FLUSHES: &str = "rollmill_flushes_total";
/// Rows written by flushes.
pub const FLUSH_ROWS: &str = "rollmill_flush_rows_total";
/// Duration of flushes in seconds.
pub const FLUSH_SECONDS: &str = "rollmill_flush_duration_seconds";
/// Archive objects written.
pub const ARCHIVE_OBJECTS: &str = "rollmill_archive_objects_total";
/// Archive objects moved to the cold store or expired, by `step` (move, expire).
pub const ARCHIVE_UPKEEP: &str = "rollmill_archive_upkeep_total";
/// Failures of the archive, which are tried again, by `step` (write, move, expire, sweep).
pub const ARCHIVE_FAILURES: &str = "rollmill_archive_failures_total";
/// Restarts of actors, by `actor`.
pub const ACTOR_RESTARTS: &str = "rollmill_actor_restarts_total";
/// Violations of an invariant, by `id`. Anything but zero is a bug.
pub const INVARIANT_VIOLATIONS: &str = "rollmill_invariant_violations_total";
/// Days of queries found in the cache or not, by `outcome` (hit, miss).
pub const QUERY_CACHE: &str = "rollmill_query_cache_total";
/// Days of queries looked up in the second cache or written to it, by `outcome` (hit, miss, invalid; skipped while it does not answer,
/// failed; kept, dropped). An answer that is skipped or failed counts as a miss too.
pub const QUERY_SECOND_CACHE: &str = "rollmill_query_second_cache_total";
/// Questions to other nodes, by `outcome` (answered, failed, no_credit, left_out).
pub const MESH_CALLS: &str = "rollmill_mesh_calls_total";
/// How long an answer of another node took, in seconds.
pub const MESH_CALL_SECONDS: &str = "rollmill_mesh_call_duration_seconds";
/// Questions of other nodes, by `outcome` (answered, failed, overloaded).
pub const MESH_SERVED: &str = "rollmill_mesh_served_total";
/// Other nodes that answer now.
pub const MESH_PEERS: &str = "rollmill_mesh_peers";
/// Answers of other nodes that were refused: another epoch or version, or not to the question.
pub const MESH_REFUSED: &str = "rollmill_mesh_refused_total";
/// Queries answered, by `outcome` (complete, partial, refused).
pub const QUERIES: &str = "rollmill_queries_total";
