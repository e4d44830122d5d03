//! Watches how far back the shards of this node know event ids: counts evictions and warns while
//! the horizon is too short.
//!
//! A shard that receives more than `dedup.max_ids` ids within `dedup.horizon` evicts the oldest
//! early. No event is lost, but one that is sent again after its id was evicted counts twice, and
//! the sender cannot see that.

use std::collections::BTreeMap;
use std::time::Duration;

use super::shard_table::{DedupStatus, ShardTable};
use crate::clock::Stopwatch;
use crate::model::offset::{Epoch, ShardId};
use crate::telemetry;

/// Minimum time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Evictions seen so far.
#[derive(Default)]
pub struct DedupWatch {
    /// Evictions by shard; the epoch tells a new owner, whose count starts at 0.
    seen: BTreeMap<ShardId, (Epoch, u64)>,
    warned: Option<Stopwatch>,
}

impl DedupWatch {
    /// Checks the shards that are owned by this node.
    pub fn check(&mut self, table: &ShardTable) {
        let statuses = table.dedup_statuses();
        let forgotten =
            statuses.iter().map(|(shard, status)| self.new_evictions(*shard, status)).sum();
        metrics::counter!(telemetry::DEDUP_FORGOTTEN).increment(forgotten);
        let short = statuses.iter().filter(|(_, status)| status.horizon_ms < status.configured_ms);
        if let Some((shard, status)) = short.min_by_key(|(_, status)| status.horizon_ms)
            && self.warned.as_ref().is_none_or(|warned| warned.elapsed() >= WARN_EVERY)
        {
            self.warned = Some(Stopwatch::start());
            tracing::warn!(
                shard = shard.0,
                known_for_ms = status.horizon_ms,
                dedup_horizon_ms = status.configured_ms,
                dedup_max_ids = status.max_ids,
                "more ids than dedup.max_ids came within dedup.horizon: an event that is sent \
                 again later than that is counted twice; raise dedup.max_ids if there is memory \
                 for it"
            );
        }
    }

    /// Evictions of a shard since the last check.
    fn new_evictions(&mut self, shard: ShardId, status: &DedupStatus) -> u64 {
        let before = self.seen.insert(shard, (status.epoch, status.evictions));
        let before =
            before.filter(|(epoch, _)| *epoch == status.epoch).map_or(0, |(_, count)| count);
        status.evictions.saturating_sub(before)
    }
}
