//! What is done about generations as time passes: applies lose their way back, sets that no shard
//! writes under are forgotten, and rows that nobody reads are deleted.
//!
//! Every node that runs shards decides this, and writes by compare-and-set on the book. Time is
//! counted at most once however many nodes there are: a node adds to an apply the time since it has
//! seen it as it is, if nobody has added any meanwhile, and the compare-and-set refuses it if
//! somebody does at the same moment. Only time that a node has observed counts, on the boot clock.

use super::clock::ClockReading;
use super::generation::GenerationId;
use super::generation_book::{Apply, GenerationBook, LeavingRange};
use super::offset::ShardId;
use super::window::Millis;

/// Longest interval between two writes of the time that has passed, in milliseconds.
const GATHER_EVERY_MS: i64 = 3_600_000;
/// Writes within `replay.keep`, if that is short.
const GATHERS_PER_KEEP: i64 = 24;

/// Numbers that the keeping goes by, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepingLimits {
    /// For how long an apply can be undone: `replay.keep`.
    pub keep_ms: i64,
    /// The longest time that a query may read: rows that leave stay for it.
    pub query_ms: i64,
}

/// What the keeping sees in one snapshot.
#[derive(Debug, Clone, Copy)]
pub struct KeepingSample<'a> {
    /// The book.
    pub book: &'a GenerationBook,
    /// The version that each shard has adopted, of all that were ever claimed.
    pub versions: &'a [(ShardId, u64)],
    /// Number of shards of the log.
    pub shard_count: u32,
    /// The clocks.
    pub now: ClockReading,
    /// A random number that makes the version of a new set unique.
    pub nonce: u64,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeepingPlan {
    /// The next book. [`GenerationKeeping::stored`] is told when it is stored.
    pub book: Option<GenerationBook>,
    /// Days whose rows may be deleted.
    pub delete: Vec<LeavingRange>,
}

/// An apply, and since when it was seen as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SeenApply {
    generation: GenerationId,
    at: Millis,
    gathered_ms: i64,
    since: ClockReading,
}

impl SeenApply {
    fn is(&self, apply: &Apply) -> bool {
        (self.generation, self.at, self.gathered_ms)
            == (apply.generation, apply.at, apply.gathered_ms)
    }
}

/// What a node remembers between two looks at the book.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GenerationKeeping {
    /// In the order of the book.
    applies: Vec<SeenApply>,
    /// Days that no shard writes any more, and since when that is known.
    unwritten: Vec<(LeavingRange, ClockReading)>,
}

impl GenerationKeeping {
    /// Decides what is to be done now.
    pub fn plan(&mut self, sample: &KeepingSample<'_>, limits: &KeepingLimits) -> KeepingPlan {
        let mut book = sample.book.clone();
        self.see(sample.book, sample.now);
        let elapsed = self.elapsed(sample.now);
        let every = GATHER_EVERY_MS.min(limits.keep_ms / GATHERS_PER_KEEP).max(1);
        let gathered = elapsed.iter().any(|elapsed| *elapsed >= every)
            && book.gather_each(&elapsed, limits.keep_ms, sample.nonce);
        // A shard that was never claimed begins with the newest set, but its claim may be under way.
        let all_claimed = sample.versions.len() >= sample.shard_count as usize;
        let oldest = sample.versions.iter().map(|(_, version)| *version).min();
        let forgot = oldest.filter(|_| all_claimed).is_some_and(|oldest| book.forget_sets(oldest));
        let delete = self.deletable(sample, oldest, limits);
        KeepingPlan { book: (gathered || forgot).then_some(book), delete }
    }

    /// Notes that the book of a plan is stored.
    pub fn stored(&mut self, book: &GenerationBook, now: ClockReading) {
        self.see(book, now);
    }

    /// Notes the applies of a book. One that another node has added time to, or that was made just
    /// now, is measured from here on; so is each if the machine was started again.
    fn see(&mut self, book: &GenerationBook, now: ClockReading) {
        let before = std::mem::take(&mut self.applies);
        let since = |apply: &Apply| {
            let seen = before.iter().find(|seen| seen.is(apply)).map(|seen| seen.since);
            seen.filter(|since| now.elapsed_since(since).is_some()).unwrap_or(now)
        };
        let seen = |apply: &Apply| {
            let Apply { generation, at, gathered_ms, .. } = *apply;
            SeenApply { generation, at, gathered_ms, since: since(apply) }
        };
        self.applies = book.applies().iter().map(seen).collect();
    }

    /// The time since each apply was seen as it is.
    fn elapsed(&self, now: ClockReading) -> Vec<i64> {
        let elapsed = |seen: &SeenApply| now.elapsed_since(&seen.since).unwrap_or(0);
        self.applies.iter().map(elapsed).collect()
    }

    /// The days that all shards have stopped to write for longer than a query may take.
    fn deletable(
        &mut self,
        sample: &KeepingSample<'_>,
        oldest: Option<u64>,
        limits: &KeepingLimits,
    ) -> Vec<LeavingRange> {
        let leaving = sample.book.leaving();
        let is_unwritten = |range: &LeavingRange| oldest.is_none_or(|set| set >= range.set);
        // A store that was rolled back may have shards that write them again.
        self.unwritten.retain(|(range, _)| leaving.contains(range) && is_unwritten(range));
        for range in leaving.iter().filter(|range| is_unwritten(range)) {
            let known = self.unwritten.iter_mut().find(|(known, _)| known == range);
            match known {
                None => self.unwritten.push((range.clone(), sample.now)),
                // The machine was started again: measured from here on.
                Some((_, since)) if sample.now.elapsed_since(since).is_none() => {
                    *since = sample.now
                }
                Some(_) => {}
            }
        }
        let is_due = |since: &ClockReading| {
            sample.now.elapsed_since(since).is_some_and(|elapsed| elapsed >= limits.query_ms)
        };
        let due = self.unwritten.iter().filter(|(_, since)| is_due(since));
        due.map(|(range, _)| range.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generation::DayRange;
    use crate::model::generation_book::NewGeneration;

    const HOUR: i64 = 3_600_000;
    const LIMITS: KeepingLimits = KeepingLimits { keep_ms: 48 * HOUR, query_ms: 30_000 };

    fn at(uptime: i64) -> ClockReading {
        ClockReading { wall: 1_000_000 + uptime, uptime, boot: 1 }
    }

    fn sample<'a>(
        book: &'a GenerationBook,
        versions: &'a [(ShardId, u64)],
        uptime: i64,
    ) -> KeepingSample<'a> {
        KeepingSample {
            book,
            versions,
            shard_count: 2,
            now: at(uptime),
            nonce: uptime.unsigned_abs(),
        }
    }

    fn applied() -> GenerationBook {
        let mut book = GenerationBook::default();
        let id = started(&mut book);
        book.apply(id, 5).expect("applied");
        book
    }

    fn started(book: &mut GenerationBook) -> GenerationId {
        let new = NewGeneration {
            tenant: "t".to_owned(),
            metrics: vec!["m".to_owned()],
            days: DayRange::new(0, Some(9)).expect("days"),
            rules: "{}".into(),
            started: (1, "k".to_owned()),
        };
        book.start(new, 3, 1).expect("started")
    }

    /// Carries a plan out, unless it changes nothing.
    fn carry_out(
        keeper: &mut GenerationKeeping,
        book: &mut GenerationBook,
        uptime: i64,
    ) -> KeepingPlan {
        let plan = keeper.plan(&sample(book, &[], uptime), &LIMITS);
        if let Some(next) = &plan.book {
            *book = next.clone();
            keeper.stored(next, at(uptime));
        }
        plan
    }

    #[test]
    fn time_is_counted_once_however_many_nodes_look() {
        let (mut book, mut a, mut b) =
            (applied(), GenerationKeeping::default(), GenerationKeeping::default());
        for minute in 0..60 * 10 {
            carry_out(&mut a, &mut book, minute * 60_000);
            carry_out(&mut b, &mut book, minute * 60_000 + 30_000);
        }
        let gathered = book.applies()[0].gathered_ms;
        assert!((8 * HOUR..10 * HOUR).contains(&gathered), "{gathered}");
        // The first node dies, and the second goes on alone.
        for minute in 60 * 10..60 * 20 {
            carry_out(&mut b, &mut book, minute * 60_000);
        }
        let later = book.applies()[0].gathered_ms;
        assert!((17 * HOUR..20 * HOUR).contains(&later), "{later}");
    }

    #[test]
    fn a_way_back_ends_after_its_time_and_not_at_a_start() {
        let (mut book, mut keeper) = (applied(), GenerationKeeping::default());
        assert_eq!(carry_out(&mut keeper, &mut book, 0), KeepingPlan::default());
        assert_eq!(carry_out(&mut keeper, &mut book, HOUR - 1).book, None, "not worth a write");
        // Another boot of the machine.
        let now = ClockReading { boot: 2, ..at(99 * HOUR) };
        let other = KeepingSample { now, ..sample(&book, &[], 0) };
        assert_eq!(keeper.plan(&other, &LIMITS).book, None);
        let mut keeper = GenerationKeeping::default();
        carry_out(&mut keeper, &mut book, 0);
        for hour in 1..=47 {
            assert!(carry_out(&mut keeper, &mut book, hour * HOUR).book.is_some());
        }
        assert_eq!(book.applies().len(), 1);
        carry_out(&mut keeper, &mut book, 48 * HOUR);
        assert!(book.applies().is_empty());
    }

    #[test]
    fn an_apply_does_not_gather_time_before_it_was_made() {
        let (mut book, mut keeper) = (applied(), GenerationKeeping::default());
        carry_out(&mut keeper, &mut book, 0);
        let second = started(&mut book);
        book.apply(second, 6).expect("applied");
        let gathered = |book: &GenerationBook| {
            book.applies().iter().map(|apply| apply.gathered_ms).collect::<Vec<_>>()
        };
        carry_out(&mut keeper, &mut book, HOUR);
        assert_eq!(gathered(&book), [HOUR, 0]);
        carry_out(&mut keeper, &mut book, 2 * HOUR);
        assert_eq!(gathered(&book), [2 * HOUR, HOUR]);
    }

    #[test]
    fn applies_of_others_do_not_begin_its_time_anew() {
        let (mut book, mut keeper) = (applied(), GenerationKeeping::default());
        let mut other: Option<GenerationId> = None;
        for step in 0..20 {
            carry_out(&mut keeper, &mut book, step * HOUR / 4);
            if let Some(other) = other {
                book.undo(other).expect("undone");
                book.cancel(other, None, 7).expect("cancelled");
            }
            let next = started(&mut book);
            book.apply(next, 100 + step).expect("applied");
            other = Some(next);
        }
        assert_eq!(book.applies()[0].gathered_ms, 4 * HOUR);
    }

    #[test]
    fn rows_stay_until_no_shard_writes_and_no_query_reads_them() {
        let (mut book, mut keeper) = (GenerationBook::default(), GenerationKeeping::default());
        let id = started(&mut book);
        let first = book.newest_set().version;
        book.cancel(id, None, 2).expect("cancelled");
        let second = book.newest_set().version;
        let behind = [(ShardId(0), second), (ShardId(1), first)];
        let all = [(ShardId(0), second), (ShardId(1), second)];
        let plan = keeper.plan(&sample(&book, &behind, 0), &LIMITS);
        assert_eq!((plan.book, plan.delete.len()), (None, 0));
        assert!(keeper.plan(&sample(&book, &behind, 99_000), &LIMITS).delete.is_empty());
        let plan = keeper.plan(&sample(&book, &all, 100_000), &LIMITS);
        assert!(plan.delete.is_empty());
        let next = plan.book.expect("a set is forgotten");
        assert!(next.set(first).is_none() && next.set(second).is_some());
        keeper.stored(&next, at(100_000));
        assert!(keeper.plan(&sample(&next, &all, 129_999), &LIMITS).delete.is_empty());
        assert_eq!(keeper.plan(&sample(&next, &all, 130_000), &LIMITS).delete, next.leaving());
    }

    #[test]
    fn rows_that_a_shard_writes_again_after_a_rollback_are_not_deleted() {
        let (mut book, mut keeper) = (GenerationBook::default(), GenerationKeeping::default());
        let id = started(&mut book);
        let first = book.newest_set().version;
        book.cancel(id, None, 2).expect("cancelled");
        let second = book.newest_set().version;
        let all = [(ShardId(0), second), (ShardId(1), second)];
        let behind = [(ShardId(0), second), (ShardId(1), first)];
        assert!(keeper.plan(&sample(&book, &all, 0), &LIMITS).delete.is_empty());
        assert!(keeper.plan(&sample(&book, &behind, 30_000), &LIMITS).delete.is_empty());
        assert!(keeper.plan(&sample(&book, &all, 40_000), &LIMITS).delete.is_empty());
        assert_eq!(keeper.plan(&sample(&book, &all, 70_000), &LIMITS).delete, book.leaving());
    }

    #[test]
    fn no_set_is_forgotten_while_a_shard_may_be_claiming() {
        let mut book = GenerationBook::default();
        let id = started(&mut book);
        book.cancel(id, None, 2).expect("cancelled");
        let one = [(ShardId(0), book.newest_set().version)];
        let plan = GenerationKeeping::default().plan(&sample(&book, &one, 0), &LIMITS);
        assert_eq!(plan.book, None);
    }
}
