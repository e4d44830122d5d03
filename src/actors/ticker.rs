//! The pulse: wakes shards that have something to do. Level-triggered, so a lost wake-up cannot
//! wedge a shard.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ractor::ActorRef;

use super::dedup_watch::DedupWatch;
use super::shard::ShardMessage;
use super::shard_table::ShardTable;

/// Where the actors of the shards are now; a restart replaces the entry.
pub type ShardRefs = Arc<Vec<ArcSwapOption<ActorRef<ShardMessage>>>>;

/// Every shard is pulsed at least this often, records or not: flushes fall due by time.
const IDLE_WAKEUP: Duration = Duration::from_millis(500);

/// Runs until the task is aborted. A shard with new records is pulsed within `interval`; a shard
/// that has not yet taken its last pulse gets no other. Of shards that nobody owns here, the log is
/// asked nothing.
pub async fn run(refs: ShardRefs, slots: Arc<ShardTable>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let idle_every = (IDLE_WAKEUP.as_millis() / interval.as_millis().max(1)).max(1);
    let mut tick = 0u128;
    let mut dedup = DedupWatch::default();
    loop {
        ticks.tick().await;
        tick += 1;
        if tick.is_multiple_of(idle_every) {
            dedup.check(&slots);
        }
        for (shard, slot) in slots.iter().filter(|(_, slot)| slot.epoch().is_some()) {
            let end = slots.update_progress(shard, slot);
            let behind = slot.applied() < end;
            // Idle pulses are spread over the interval, so that 64 flushes do not fall due at one
            // moment.
            let idle_turn = (tick + u128::from(shard.0)).is_multiple_of(idle_every);
            if (behind || idle_turn) && slot.try_begin_wakeup() {
                send_wakeup(&refs, shard.0 as usize, slot);
            }
        }
    }
}

fn send_wakeup(refs: &ShardRefs, index: usize, slot: &super::shard_table::ShardEntry) {
    let sent =
        refs[index].load().as_ref().is_some_and(|actor| actor.cast(ShardMessage::Wakeup).is_ok());
    if !sent {
        // Nobody is there: the credit returns, the supervisor brings the actor back.
        slot.clear_wakeup();
    }
}
