//! The ticker wakes shards that have something to do. It is level-triggered, so a lost wake-up
//! cannot stall a shard.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ractor::ActorRef;

use super::dedup_watch::DedupWatch;
use super::shard::ShardMessage;
use super::shard_table::ShardTable;

/// The current shard actors; a restart replaces its entry.
pub type ShardRefs = Arc<Vec<ArcSwapOption<ActorRef<ShardMessage>>>>;

/// Every shard is woken at least this often even without new records, because flushes
/// fall due by time.
const IDLE_WAKEUP: Duration = Duration::from_millis(500);

/// Runs until the task is aborted. A shard with new records is woken within `interval`; a shard
/// that has not taken its last wake-up gets no other. Shards that are not owned by
/// this node are skipped.
pub async fn run(refs: ShardRefs, table: Arc<ShardTable>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let idle_every = (IDLE_WAKEUP.as_millis() / interval.as_millis().max(1)).max(1);
    let mut tick = 0u128;
    let mut dedup = DedupWatch::default();
    loop {
        ticks.tick().await;
        tick += 1;
        if tick.is_multiple_of(idle_every) {
            dedup.check(&table);
        }
        let now = table.read_clocks();
        for (shard, entry) in table.iter().filter(|(_, entry)| entry.epoch().is_some()) {
            let end = table.update_progress_at(now, shard, entry);
            let behind = entry.applied() < end;
            // Idle wake-ups are spread over the interval, so that the flushes of 64 shards do not
            // fall due at the same moment.
            let idle_turn = (tick + u128::from(shard.0)).is_multiple_of(idle_every);
            if (behind || idle_turn) && entry.try_begin_wakeup() {
                send_wakeup(&refs, shard.0 as usize, entry);
            }
        }
    }
}

fn send_wakeup(refs: &ShardRefs, index: usize, entry: &super::shard_table::ShardEntry) {
    let sent =
        refs[index].load().as_ref().is_some_and(|actor| actor.cast(ShardMessage::Wakeup).is_ok());
    if !sent {
        // No actor took it: give the credit back. The supervisor restarts the actor.
        entry.clear_wakeup();
    }
}
