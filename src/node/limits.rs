//! The limits of the rooms below, from the configuration.

use std::sync::Arc;

use super::Faults;
use crate::actors::archiver::ArchiveLimits;
use crate::actors::upkeep::UpkeepLimits;
use crate::config::{Config, KEYS, Key, Kind};
use crate::gateway::GatewayLimits;
use crate::gateway::sites::Sites;
use crate::model::event::EventLimits;
use crate::model::expiry::Rules;
use crate::query::engine::QueryLimits;
use crate::shards::series::Census;
use crate::shards::state::ShardLimits;
use crate::supervision::policy::RestartPolicy;

pub(super) fn shard(config: &Config, shard_count: u32, faults: Faults) -> ShardLimits {
    ShardLimits {
        dedup_horizon_ms: config.millis("dedup.horizon"),
        dedup_max_ids: config.number("dedup.max_ids") as usize,
        flush_interval_ms: config.millis("flush.interval"),
        max_delta_bytes: (config.number("flush.max_delta_bytes") / config.number("shards.count")) as usize,
        keep_flushed_ms: config.millis("query.deadline"),
        shard_count,
        panic_on_user: faults.panic_on_user,
    }
}

/// Series of one tenant that a shard admits: the tenant's limit divided over the shards.
pub(super) fn max_series(config: &Config, shard_count: u32) -> u64 {
    config.number("tenants.max_series").div_ceil(u64::from(shard_count))
}

/// The names of each tenant's metrics, under their limit.
pub(super) fn census(config: &Config) -> Arc<Census> {
    Census::new(config.number("tenants.max_metrics") as usize)
}

pub(super) fn restarts(config: &Config) -> RestartPolicy {
    RestartPolicy {
        max_restarts: config.number("supervision.max_restarts") as u32,
        window_ms: config.millis("supervision.restart_window"),
        backoff_min_ms: config.millis("supervision.backoff_min"),
        backoff_max_ms: config.millis("supervision.backoff_max"),
        escalates: true,
    }
}

pub(super) fn query(config: &Config) -> QueryLimits {
    QueryLimits {
        max_points: config.number("query.max_points") as usize,
        max_series: config.number("query.max_series") as usize,
        stale_after_ms: config.millis("query.stale_after"),
        cache_bytes: config.number("query.cache") - match_cache(config),
    }
}

/// The part of `query.cache` for the series that queries match; the rest is for parts of answers.
pub(super) fn match_cache(config: &Config) -> u64 {
    config.number("query.cache") / 3
}

pub(super) fn gateway(config: &Config) -> GatewayLimits {
    GatewayLimits {
        event: EventLimits {
            max_age_ms: config.millis("accept.max_age"),
            max_ahead_ms: config.millis("accept.max_ahead"),
            max_event_bytes: config.number("accept.max_event_bytes") as usize,
        },
        max_events: config.number("accept.max_events") as usize,
        max_body_bytes: config.number("accept.max_body") as usize,
        max_inflight_bytes: config.number("accept.max_inflight") as usize,
        max_connections: config.number("server.max_connections") as usize,
        max_connections_per_address: config.number("server.max_connections_per_address") as usize,
        write_timeout: config.duration("server.write_timeout"),
        max_answer_bytes: config.number("server.max_answers") as usize,
        header_timeout: config.duration("server.header_timeout"),
        body_timeout: config.duration("server.body_timeout"),
        append_timeout: config.duration("gateway.append_timeout"),
        events_per_second: config.number("tenants.max_events_per_second"),
        burst: config.number("tenants.burst"),
        max_interned: config.number("gateway.max_interned") as usize,
        max_interned_bytes: config.number("gateway.max_interned_bytes") as usize,
        max_queries: config.number("query.max_concurrent") as usize,
        query_threads: query_threads(config),
        reader_threads: std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2)),
        query_timeout: config.duration("query.timeout"),
        max_query_bytes: config.number("query.max_memory") as usize,
        ws_window: config.number("ws.window") as usize,
        ws_max_message_bytes: config.number("ws.max_message") as usize,
        ws_max_all_subscriptions: config.number("ws.max_all_subscriptions") as usize,
        ws_max_subscriptions: config.number("ws.max_subscriptions") as usize,
        ws_update_interval: config.duration("ws.update_interval"),
        ws_idle_timeout: config.duration("ws.idle_timeout"),
        dedup_horizon_ms: config.millis("dedup.horizon"),
        dedup_max_ids: config.number("dedup.max_ids"),
        config: numbers(config),
    }
}

pub(super) fn sites(config: &Config) -> Sites {
    Sites::new(config.text("server.listen"), config.origins())
}

/// Every number of the configuration; durations in milliseconds. No text is among them: some are secret.
fn numbers(config: &Config) -> Vec<(&'static str, u64)> {
    let number = |key: &Key| match key.kind {
        Kind::Number | Kind::Bytes => Some((key.name, config.number(key.name))),
        Kind::Duration => Some((key.name, config.millis(key.name).unsigned_abs())),
        Kind::Text => None,
    };
    KEYS.iter().filter_map(number).collect()
}

/// Threads of queries. They run below the priority of everything else, so there may be more of them than cores; a store that is a
/// server is not asked more at once than it has connections, of which some stay free for the shards and for looks at it.
fn query_threads(config: &Config) -> usize {
    let wanted = match config.number("query.threads") as usize {
        0 => std::thread::available_parallelism().map_or(4, |cores| cores.get().max(4)),
        threads => threads,
    };
    if config.text("store.url").is_empty() {
        return wanted;
    }
    wanted.min((config.number("store.read_connections") as usize).div_ceil(2))
}

pub(super) fn archive(config: &Config) -> ArchiveLimits {
    ArchiveLimits { max_bytes: config.number("archive.max_bytes"), max_delay_ms: config.millis("archive.max_delay") }
}

/// When what is due may go.
pub(super) fn expiry(config: &Config) -> Rules {
    Rules { gather_ms: Rules::GATHER_MS, max_at_once: config.number("expiry.max_at_once") }
}

pub(super) fn upkeep(config: &Config) -> UpkeepLimits {
    UpkeepLimits {
        cold_after_ms: config.millis("archive.cold_after"),
        keep_ms: config.millis("archive.keep"),
        expiry: expiry(config),
    }
}
