//! Watches how far back the shards of this node know event ids: a counter, and a warning while it
//! is not far enough.
//!
//! A shard that takes more than `dedup.max_ids` ids within `dedup.horizon` forgets the oldest
//! early. Nothing is lost by that, but what is sent again later than the shard remembers is counted
//! twice, and whoever sends cannot see it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::shard_table::{DedupStatus, ShardTable};
use crate::clock::Stopwatch;
use crate::model::offset::{Epoch, ShardId};
use crate::telemetry;

/// It is said at most this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What was seen before.
#[derive(Default)]
pub struct DedupWatch {
    /// Ids forgotten early, by shard and owner.
    seen: BTreeMap<ShardId, (Epoch, u64)>,
    warned: Option<Stopwatch>,
}

impl DedupWatch {
    /// Looks at the shards that are owned here.
    pub fn check(&mut self, slots: &ShardTable) {
        let stands = slots.dedup_statuses();
        let forgotten = stands.iter().map(|(shard, stand)| self.new_evictions(*shard, stand)).sum();
        metrics::counter!(telemetry::DEDUP_FORGOTTEN).increment(forgotten);
        let short = stands.iter().filter(|(_, stand)| stand.horizon_ms < stand.configured_ms);
        if let Some((shard, stand)) = short.min_by_key(|(_, stand)| stand.horizon_ms)
            && self.warned.as_ref().is_none_or(|warned| warned.elapsed() >= WARN_EVERY)
        {
            self.warned = Some(Stopwatch::start());
            tracing::warn!(
                shard = shard.0,
                known_for_ms = stand.horizon_ms,
                dedup_horizon_ms = stand.configured_ms,
                dedup_max_ids = stand.max_ids,
                "more ids than dedup.max_ids came within dedup.horizon: an event that is sent \
                 again later than that is counted twice; raise dedup.max_ids if there is memory \
                 for it"
            );
        }
    }

    /// Ids that a shard has forgotten early since it was seen last.
    fn new_evictions(&mut self, shard: ShardId, stand: &DedupStatus) -> u64 {
        let before = self.seen.insert(shard, (stand.epoch, stand.evictions));
        let before =
            before.filter(|(epoch, _)| *epoch == stand.epoch).map_or(0, |(_, count)| count);
        stand.evictions.saturating_sub(before)
    }
}
