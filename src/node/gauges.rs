//! Gauges that are collected when `/metrics` is read: readiness, shard progress, process usage.

use std::sync::Arc;

use super::readiness::Readiness;
use crate::actors::shard_table::{ShardEntry, ShardTable};
use crate::model::offset::ShardId;
use crate::shards::state::ShardState;
use crate::telemetry;

/// Renders `/metrics` in the Prometheus text format.
pub(super) type MetricsRenderer = Arc<dyn Fn() -> String + Send + Sync>;

/// The sources of the gauges.
pub(super) struct Gauges {
    pub ready: Arc<Readiness>,
    pub slots: Arc<ShardTable>,
    /// `dedup.horizon` in milliseconds, shown by a node without shards.
    pub dedup_horizon_ms: i64,
}

impl Gauges {
    /// Wraps `render` so that all gauges are collected before each rendering.
    pub(super) fn wrap(self, render: MetricsRenderer) -> MetricsRenderer {
        let process = metrics_process::Collector::default();
        process.describe();
        let version = env!("CARGO_PKG_VERSION");
        metrics::gauge!(telemetry::BUILD_INFO, "version" => version).set(1.0);
        Arc::new(move || {
            self.collect();
            process.collect();
            render()
        })
    }

    fn collect(&self) {
        for role in self.ready.roles.names() {
            let ready = self.ready.check(Some(role)).is_ok();
            metrics::gauge!(telemetry::READY, "role" => role).set(if ready { 1.0 } else { 0.0 });
        }
        let (mut owned, mut delta_bytes) = (0_u32, 0);
        for (shard, slot) in self.slots.iter() {
            owned += u32::from(self.collect_shard(shard, slot));
            delta_bytes += slot.read_state(ShardState::open_bytes).unwrap_or(0);
        }
        let statuses = self.slots.dedup_statuses();
        let shortest = statuses
            .iter()
            .map(|(_, status)| status.horizon_ms)
            .min()
            .unwrap_or(self.dedup_horizon_ms);
        metrics::gauge!(telemetry::DEDUP_HORIZON_SECONDS).set(shortest as f64 / 1000.0);
        metrics::gauge!(telemetry::SHARDS_OWNED).set(f64::from(owned));
        metrics::gauge!(telemetry::OPEN_DELTA_BYTES).set(delta_bytes as f64);
    }

    /// Collects the gauges of one shard; they are zero for shards of other nodes, so that sums over
    /// nodes are right. Returns whether this node owns the shard.
    fn collect_shard(&self, shard: ShardId, slot: &ShardEntry) -> bool {
        let reach = self.slots.watermark(shard);
        let (lag, age_ms) = reach.map_or((0, 0), |reach| {
            let lag = reach.end.saturating_sub(reach.next);
            (lag, if lag == 0 { 0 } else { reach.age_ms })
        });
        let unarchived = reach.map_or(0, |reach| reach.next.saturating_sub(slot.archived()));
        let name = shard.0.to_string();
        let stopped = if slot.stop_reason().is_some() { 1.0 } else { 0.0 };
        metrics::gauge!(telemetry::SHARD_STOPPED, "shard" => name.clone()).set(stopped);
        metrics::gauge!(telemetry::SHARD_LAG_RECORDS, "shard" => name.clone()).set(lag as f64);
        metrics::gauge!(telemetry::SHARD_AGE_SECONDS, "shard" => name.clone())
            .set(age_ms as f64 / 1000.0);
        metrics::gauge!(telemetry::SHARD_UNARCHIVED_RECORDS, "shard" => name)
            .set(unarchived as f64);
        reach.is_some()
    }
}
