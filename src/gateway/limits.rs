//! `GET /v1/limits`: the limits of the configuration and of the code, with their use.

use std::sync::Arc;

use super::{Gateway, decode};
use crate::api::limits::{
    AcceptLimits, DedupLimits, EventLimits, LimitsAnswer, MetricNameLimit, NodeHorizon,
    QueryLimits, RequestLimits, ShareLimit, TenantRate, WebSocketLimits,
};
use crate::config::{Config, millis};
use crate::model::event;
use crate::model::share::SharePool;

/// The limits as this tenant meets them; `horizons` are the effective horizons of the nodes.
pub(super) fn answer(
    gateway: &Gateway,
    tenant: &Arc<str>,
    horizons: Vec<(String, i64)>,
) -> LimitsAnswer {
    let config = &*gateway.deps.config;
    let Config { accept, server, tenants, query, ws, .. } = config;
    let share = |pool: &Arc<SharePool>| (pool.name.to_owned(), share(pool, tenant));
    let numbers = config.entries().into_iter();
    LimitsAnswer {
        accept: AcceptLimits {
            max_age_ms: millis(accept.max_age),
            max_ahead_ms: millis(accept.max_ahead),
            max_event_bytes: accept.max_event_bytes.bytes(),
        },
        event: EventLimits {
            metric_bytes: event::MAX_METRIC_BYTES,
            labels: event::MAX_LABELS,
            label_name_bytes: event::MAX_LABEL_NAME_BYTES,
            label_value_bytes: event::MAX_LABEL_VALUE_BYTES,
            user_bytes: event::MAX_USER_BYTES,
            id_bytes: event::MAX_ID_BYTES,
            properties_depth: event::MAX_PROPERTIES_DEPTH,
        },
        request: RequestLimits {
            max_events: accept.max_events,
            max_body_bytes: accept.max_body.bytes(),
            body_timeout_ms: millis(server.body_timeout),
            compressed_members: decode::MAX_MEMBERS,
        },
        tenant: TenantRate {
            events_per_second: tenants.max_events_per_second,
            burst: tenants.burst,
        },
        query: QueryLimits {
            max_concurrent: query.max_concurrent,
            timeout_ms: millis(query.timeout),
        },
        config: numbers.filter_map(|e| Some((e.name.to_owned(), e.number?))).collect(),
        shares: gateway.shares.all().into_iter().map(share).collect(),
        metrics: (gateway.deps.metric_names)(tenant)
            .map(|(max, used)| MetricNameLimit { max, used }),
        ws: WebSocketLimits {
            window: ws.window,
            max_message_bytes: ws.max_message.bytes(),
            max_subscriptions: ws.max_subscriptions,
        },
        dedup: dedup(config, horizons),
    }
}

fn share(pool: &SharePool, tenant: &str) -> ShareLimit {
    let usage = pool.usage(tenant);
    ShareLimit {
        total: usage.limits.total,
        tenant: usage.limits.per_tenant,
        used: usage.held,
        used_by_tenant: usage.held_by_tenant,
    }
}

fn dedup(config: &Config, horizons: Vec<(String, i64)>) -> DedupLimits {
    let node = |(node, effective_horizon_ms)| NodeHorizon { node, effective_horizon_ms };
    DedupLimits {
        horizon_ms: millis(config.dedup.horizon),
        max_ids_per_shard: config.dedup.max_ids,
        effective_horizon_ms: horizons.iter().map(|(_, horizon_ms)| *horizon_ms).min(),
        nodes: horizons.into_iter().map(node).collect(),
    }
}
