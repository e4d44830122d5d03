//! The limits of the rooms below, from the configuration.

use super::Faults;
use crate::actors::archiver::ArchiveLimits;
use crate::actors::upkeep::UpkeepLimits;
use crate::config::Config;
use crate::gateway::GatewayLimits;
use crate::gateway::sites::Sites;
use crate::model::event::EventLimits;
use crate::model::expiry::Rules;
use crate::query::engine::QueryLimits;
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
        cache_bytes: config.number("query.cache"),
    }
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
        header_timeout: config.duration("server.header_timeout"),
        body_timeout: config.duration("server.body_timeout"),
        append_timeout: config.duration("gateway.append_timeout"),
        events_per_second: config.number("tenants.max_events_per_second"),
        burst: config.number("tenants.burst"),
        max_interned: config.number("gateway.max_interned") as usize,
        max_interned_bytes: config.number("gateway.max_interned_bytes") as usize,
        max_queries: config.number("query.max_concurrent") as usize,
        ws_window: config.number("ws.window") as usize,
        ws_max_message_bytes: config.number("ws.max_message") as usize,
        ws_max_subscriptions: config.number("ws.max_subscriptions") as usize,
        ws_update_interval: config.duration("ws.update_interval"),
        ws_idle_timeout: config.duration("ws.idle_timeout"),
        dedup_horizon_ms: config.millis("dedup.horizon"),
        dedup_max_ids: config.number("dedup.max_ids"),
    }
}

pub(super) fn sites(config: &Config) -> Sites {
    Sites::new(config.text("server.listen"), config.origins())
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
