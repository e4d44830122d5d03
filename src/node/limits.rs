//! Maps the configuration to the limits that each room takes.

use std::sync::Arc;

use super::TestFaults;
use crate::actors::archive_maintenance::MaintenanceLimits;
use crate::actors::archiver::ArchiveLimits;
use crate::config::{Config, millis};
use crate::gateway::origin_policy::OriginPolicy;
use crate::model::expiry::ExpiryRules;
use crate::model::generation_keeping::KeepingLimits;
use crate::operate::boards::BoardLimits;
use crate::operate::replays::ReplayLimits;
use crate::query::engine::QueryLimits;
use crate::recompute::fold::FoldRules;
use crate::recompute::replay::node::ReplayTiming;
use crate::recompute::replay::shard_replay::FillLimits;
use crate::shards::series::MetricNameRegistry;
use crate::shards::state::ShardLimits;
use crate::supervision::policy::RestartPolicy;

pub(crate) fn shard(config: &Config, shard_count: u32, faults: TestFaults) -> ShardLimits {
    ShardLimits {
        dedup_horizon_ms: millis(config.dedup.horizon),
        dedup_max_ids: config.dedup.max_ids,
        flush_interval_ms: millis(config.flush.interval),
        // The budget is the node's: a node may end up owning all shards.
        max_delta_bytes: config.flush.max_delta_bytes.in_memory() / config.shards.count as usize,
        keep_flushed_ms: millis(config.query.deadline),
        shard_count,
        panic_on_user: faults.panic_on_user,
    }
}

/// How many series of one tenant a shard admits: the tenant's limit divided among the shards.
pub(crate) fn max_series(config: &Config, shard_count: u32) -> u64 {
    config.tenants.max_series.div_ceil(u64::from(shard_count))
}

/// The metric names of each tenant, shared by all shards because the limit is the tenant's.
pub(crate) fn census(config: &Config) -> Arc<MetricNameRegistry> {
    MetricNameRegistry::new(config.tenants.max_metrics)
}

pub(crate) fn restarts(config: &Config) -> RestartPolicy {
    RestartPolicy {
        max_restarts: config.supervision.max_restarts,
        window_ms: millis(config.supervision.restart_window),
        backoff_min_ms: millis(config.supervision.backoff_min),
        backoff_max_ms: millis(config.supervision.backoff_max),
        escalates: true,
    }
}

pub(crate) fn query(config: &Config) -> QueryLimits {
    QueryLimits {
        max_points: config.query.max_points,
        max_series: config.query.max_series,
        stale_after_ms: millis(config.query.stale_after),
        cache_bytes: config.query.cache.bytes() - match_cache(config),
    }
}

/// The part of `query.cache` for resolved series; the rest is for cached days.
pub(crate) fn match_cache(config: &Config) -> u64 {
    config.query.cache.bytes() / 3
}

pub(crate) fn origin_policy(config: &Config) -> OriginPolicy {
    OriginPolicy::new(&config.server.listen, config.server.cors_origins.0.clone())
}

pub(crate) fn archive(config: &Config) -> ArchiveLimits {
    ArchiveLimits {
        max_bytes: config.archive.max_bytes.bytes(),
        max_delay_ms: millis(config.archive.max_delay),
    }
}

/// The rules for deleting expired data.
pub(crate) fn expiry(config: &Config) -> ExpiryRules {
    ExpiryRules { grace_ms: ExpiryRules::DEFAULT_GRACE_MS, max_at_once: config.expiry.max_at_once }
}

/// Bytes of deltas that one replay holds before it commits them. A transaction of that size takes
/// well under a second, so a flush never waits long for its rows.
const REPLAY_DELTA_BYTES: usize = 16 << 20;
/// Records after which a replay commits: a restart repeats no more.
const REPLAY_RECORDS: u64 = 100_000;
/// Replays that read at a time: each holds an object, and more would not be faster.
const REPLAYS_AT_ONCE: usize = 4;
/// A shard of another node is filled here if its cursor stands still for this long: longer than a
/// restart of that node, and than most waits for a late flush.
const REPLAY_IDLE_MS: i64 = 60_000;
/// Added to two intervals of flushes: how long a flush itself may take.
const FLUSH_MARGIN_MS: i64 = 2_000;

pub(crate) fn replay(config: &Config, shard_count: u32) -> FillLimits {
    FillLimits {
        max_delta_bytes: REPLAY_DELTA_BYTES,
        max_records: REPLAY_RECORDS,
        max_series: max_series(config, shard_count),
        fold: FoldRules {
            dedup_horizon_ms: millis(config.dedup.horizon),
            dedup_max_ids: config.dedup.max_ids,
            max_delta_bytes: REPLAY_DELTA_BYTES,
            shard_count,
        },
    }
}

pub(crate) fn replay_timing(config: &Config) -> ReplayTiming {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    ReplayTiming {
        late_after_ms: millis(config.flush.interval).saturating_mul(2) + FLUSH_MARGIN_MS,
        idle_after_ms: REPLAY_IDLE_MS,
        max_rate: config.replay.max_rate,
        at_once: cores.min(REPLAYS_AT_ONCE),
    }
}

pub(crate) fn upkeep(config: &Config) -> MaintenanceLimits {
    MaintenanceLimits {
        cold_after_ms: millis(config.archive.cold_after),
        keep_ms: millis(config.archive.keep),
        expiry: expiry(config),
        replay_hold_ms: millis(config.replay.max_time),
    }
}

pub(crate) fn replays(config: &Config, shard_count: u32) -> ReplayLimits {
    ReplayLimits {
        shard_count,
        max_maintained: config.replay.max_maintained,
        keep_ms: millis(config.replay.keep),
    }
}

/// How large boards may be, and how many a tenant may have.
pub(crate) fn boards(config: &Config) -> BoardLimits {
    let boards = &config.boards;
    BoardLimits {
        boards: boards.max,
        bytes: boards.max_bytes.in_memory(),
        panels: boards.max_panels,
    }
}

pub(crate) fn keeping(config: &Config) -> KeepingLimits {
    KeepingLimits {
        keep_ms: millis(config.replay.keep),
        query_ms: millis(config.query.timeout.max(config.query.deadline)),
    }
}
