//! How fast replays read, and when they stand aside for ingest. Pure.

use std::collections::BTreeMap;

use crate::model::offset::{Checkpoint, Offset, ShardId};
use crate::model::window::Millis;

/// Longest burst after a pause, in milliseconds of the rate.
const BURST_MS: i64 = 1_000;

/// The rate limit that all replays of a node share: `replay.max_rate`.
#[derive(Debug, Clone, Copy)]
pub struct ReplayPace {
    /// Events per second; 0 is no limit.
    rate: u64,
    /// When the events taken so far are paid for, at this rate, on the boot clock.
    paid_at: Millis,
}

impl ReplayPace {
    /// A limit of so many events per second; 0 is none.
    pub fn new(rate: u64) -> Self {
        Self { rate, paid_at: Millis::MIN }
    }

    /// Notes events that were read, and returns for how many milliseconds nothing more may be
    /// read.
    pub fn take(&mut self, events: u64, now: Millis) -> i64 {
        if self.rate == 0 {
            return 0;
        }
        let costs = i128::from(events) * 1_000 / i128::from(self.rate);
        let costs = i64::try_from(costs).unwrap_or(i64::MAX);
        let from = self.paid_at.max(now.saturating_sub(BURST_MS));
        self.paid_at = from.saturating_add(costs);
        self.wait_ms(now)
    }

    /// For how many milliseconds nothing may be read.
    pub fn wait_ms(&self, now: Millis) -> i64 {
        if self.rate == 0 { 0 } else { self.paid_at.saturating_sub(now).max(0) }
    }
}

/// Since when the store's checkpoint of each shard has stood still below the end of its log.
///
/// It judges by the store alone, because a node that replays need not own the shard.
#[derive(Debug, Clone, Default)]
pub struct FlushWatch(BTreeMap<ShardId, (Offset, Millis)>);

impl FlushWatch {
    /// Notes the checkpoints as of `now`, and returns the shards whose newest flush is late: they
    /// have had records to flush for longer than `late_after_ms`. `log_end` is the exclusive end of
    /// a shard's log.
    pub fn late(
        &mut self,
        checkpoints: &[(ShardId, Checkpoint)],
        log_end: impl Fn(ShardId) -> Offset,
        now: Millis,
        late_after_ms: i64,
    ) -> Vec<ShardId> {
        let before = std::mem::take(&mut self.0);
        let mut late = Vec::new();
        for (shard, checkpoint) in checkpoints {
            if checkpoint.next >= log_end(*shard) {
                continue;
            }
            let same = before.get(shard).filter(|(next, _)| *next == checkpoint.next);
            let since = same.map_or(now, |(_, since)| *since);
            self.0.insert(*shard, (checkpoint.next, since));
            if now.saturating_sub(since) > late_after_ms {
                late.push(*shard);
            }
        }
        late
    }
}

/// Whether this node should fill a shard: it owns it, or nobody has moved its cursor for a while.
///
/// The owner comes first, because it is alone in that and its caches know the shard's series. The
/// rest needs no agreement between nodes: a second filler is refused by the cursor's
/// compare-and-set, so all that it can waste is what it reads until then.
#[derive(Debug, Clone)]
pub struct FillTurns<K>(BTreeMap<K, (Offset, Millis)>);

impl<K> Default for FillTurns<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy> FillTurns<K> {
    /// Chooses from the fills that are not complete: each with its cursor, whether this node owns
    /// the shard, and whether it fills it already.
    pub fn choose(
        &mut self,
        fills: &[(K, Offset, FillClaim)],
        now: Millis,
        idle_after_ms: i64,
    ) -> Vec<K> {
        let before = std::mem::take(&mut self.0);
        let mut chosen = Vec::new();
        for (key, cursor, claim) in fills {
            let same = before.get(key).filter(|(at, _)| at == cursor);
            let since = same.map_or(now, |(_, since)| *since);
            self.0.insert(*key, (*cursor, since));
            let idle = now.saturating_sub(since) > idle_after_ms;
            if *claim != FillClaim::Other || idle {
                chosen.push(*key);
            }
        }
        chosen
    }
}

/// What this node has to do with a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillClaim {
    /// It owns the shard.
    Owner,
    /// It does not own the shard, and fills it because nobody else did.
    Filler,
    /// Neither.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::{Epoch, LogId};

    #[test]
    fn the_rate_holds_over_any_time_and_a_pause_saves_little() {
        let mut pace = ReplayPace::new(1_000);
        assert_eq!(pace.take(500, 10_000), 0, "from the burst");
        assert_eq!(pace.take(1_000, 10_000), 500);
        assert_eq!((pace.wait_ms(10_200), pace.wait_ms(10_500)), (300, 0));
        assert_eq!(pace.take(3_000, 1_000_000), 2_000, "a long pause saves one second");
        let (mut events, mut now) = (0, 0);
        let mut pace = ReplayPace::new(1_000);
        while now < 60_000 {
            events += 700;
            now += pace.take(700, now).max(1);
        }
        assert!((59_000..=62_000).contains(&events), "{events} in a minute");
    }

    #[test]
    fn no_limit_never_waits() {
        let mut pace = ReplayPace::new(0);
        assert_eq!((pace.take(u64::MAX, 5), pace.wait_ms(0)), (0, 0));
        assert!(ReplayPace::new(1).take(u64::MAX, 5) > 0);
    }

    fn checkpoint(shard: u32, next: Offset) -> (ShardId, Checkpoint) {
        let (log, epoch) = (LogId([0; 16]), Epoch { counter: 1, nonce: 1 });
        (ShardId(shard), Checkpoint { log, next, archived: 0, epoch, appended: None })
    }

    #[test]
    fn a_flush_is_late_when_its_checkpoint_stands_still_below_the_end_of_the_log() {
        let mut watch = FlushWatch::default();
        let mut late = |next: Offset, end: Offset, now| {
            watch.late(
                &[checkpoint(0, next), checkpoint(1, 9)],
                |shard| match shard.0 {
                    0 => end,
                    _ => 9,
                },
                now,
                100,
            )
        };
        assert_eq!(late(5, 6, 0), []);
        assert_eq!(late(5, 7, 100), []);
        assert_eq!(late(5, 8, 101), [ShardId(0)]);
        assert_eq!(late(7, 8, 102), [], "it has moved");
        assert_eq!(late(8, 8, 900), [], "it has nothing to flush");
        assert_eq!(late(8, 9, 901), [], "it has just got something to flush");
        assert_eq!(late(8, 9, 1_100), [ShardId(0)]);
    }

    #[test]
    fn owners_fill_and_others_only_what_nobody_fills() {
        use FillClaim::{Filler, Other, Owner};
        let mut turns = FillTurns::default();
        let fills = |cursor| [(1, 0, Owner), (2, cursor, Other), (3, 0, Other), (4, 0, Filler)];
        assert_eq!(turns.choose(&fills(0), 0, 100), [1, 4]);
        assert_eq!(turns.choose(&fills(7), 100, 100), [1, 4]);
        assert_eq!(turns.choose(&fills(7), 101, 100), [1, 3, 4]);
        assert_eq!(turns.choose(&fills(7), 201, 100), [1, 2, 3, 4]);
        assert_eq!(turns.choose(&fills(8), 202, 100), [1, 3, 4]);
    }
}
