//! Where a generation stands: which shards it waits for, and what becomes of it.

use std::collections::BTreeMap;

use super::flush::FillProgress;
use super::generation::GenerationId;
use super::generation_book::GenerationBook;
use super::offset::{Offset, ShardId};
use crate::invariants::{Invariant, check};

/// Why a generation waits for a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardWait {
    /// No node ever ran the shard.
    Unclaimed,
    /// The shard has no cut: it adopts the newest set in its next flush.
    Adopting,
    /// Archived records below the cut are left.
    Filling(FillProgress),
}

/// How far a generation is. It is ready when it waits for no shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FillStatus {
    /// Records that are counted, of all shards with a cut.
    pub done: u64,
    /// Records that are left, of all shards with a cut.
    pub left: u64,
    /// The shards that it waits for, ascending.
    pub waits_for: Vec<(ShardId, ShardWait)>,
}

impl FillStatus {
    /// How far a generation is. `filled` has the shards with a cut, `claimed` those that were ever
    /// run, and `floors` the offset where the archive of a shard begins, if not at 0.
    pub fn new(
        shard_count: u32,
        filled: &[(ShardId, FillProgress)],
        claimed: &[(ShardId, u64)],
        floors: &BTreeMap<ShardId, Offset>,
    ) -> Self {
        let filled: BTreeMap<ShardId, FillProgress> = filled.iter().copied().collect();
        let claimed: BTreeMap<ShardId, u64> = claimed.iter().copied().collect();
        let mut status = Self::default();
        for shard in (0..shard_count).map(ShardId) {
            let Some(progress) = filled.get(&shard) else {
                let wait = match claimed.contains_key(&shard) {
                    true => ShardWait::Adopting,
                    false => ShardWait::Unclaimed,
                };
                status.waits_for.push((shard, wait));
                continue;
            };
            let floor = floors.get(&shard).copied().unwrap_or(0);
            status.done += progress.cursor.saturating_sub(floor);
            status.left += progress.cut.saturating_sub(progress.cursor);
            if !progress.is_complete() {
                status.waits_for.push((shard, ShardWait::Filling(*progress)));
            }
        }
        status
    }

    /// Whether all shards have a cut, and everything below it is counted.
    pub fn is_ready(&self) -> bool {
        self.waits_for.is_empty()
    }

    /// How far it is, for people: the records that are counted, of all that are known to be needed.
    pub fn counted_text(&self) -> String {
        let has_cut = |(_, wait): &(ShardId, ShardWait)| matches!(wait, ShardWait::Filling(_));
        let (done, all) = (self.done, self.done.saturating_add(self.left));
        // What a shard without a cut has to count is not known before it begins.
        match self.waits_for.iter().all(has_cut) {
            true => format!("{done} of {all} records"),
            false if all == 0 => "nothing yet".to_owned(),
            false => format!("{done} of at least {all} records"),
        }
    }

    /// The shards that are waited for, for people: at most three by name.
    pub fn waits_for_text(&self) -> String {
        let name = |(shard, wait): &(ShardId, ShardWait)| match wait {
            ShardWait::Unclaimed => format!("shard {shard} (no node ever ran it)"),
            ShardWait::Adopting => format!("shard {shard} (until its next flush)"),
            ShardWait::Filling(at) => {
                format!("shard {shard} ({} records left)", at.cut.saturating_sub(at.cursor))
            }
        };
        let named: Vec<String> = self.waits_for.iter().take(3).map(name).collect();
        match self.waits_for.len().saturating_sub(named.len()) {
            0 => named.join(", "),
            more => format!("{} and {more} more", named.join(", ")),
        }
    }
}

/// What becomes of a generation, as the book alone says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationFate {
    /// It is written, and not served: it is being built, or ready.
    Built,
    /// It is served on some days.
    Served,
    /// Others are served in its place, and can be undone.
    Kept,
    /// Its rows are deleted.
    Leaving,
}

impl GenerationFate {
    /// What becomes of a generation of this book.
    pub fn of(book: &GenerationBook, id: GenerationId) -> Self {
        if book.is_served(id) {
            Self::Served
        } else if book.is_built(id) {
            Self::Built
        } else if book.newest_set().has(id) {
            Self::Kept
        } else {
            Self::Leaving
        }
    }
}

/// Where the generations of a store stand: how many there are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct GenerationCounts {
    pub building: usize,
    /// Filled in from all shards, and not applied.
    pub ready: usize,
    pub served: usize,
    pub kept: usize,
    pub leaving: usize,
}

impl GenerationCounts {
    /// Counts the generations of a book. `is_ready` says whether one that is built waits for no
    /// shard.
    ///
    /// # Errors
    /// Fails as `is_ready` does.
    pub fn of<E>(
        book: &GenerationBook,
        mut is_ready: impl FnMut(GenerationId) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let mut counts = Self::default();
        for id in book.generations().keys().copied() {
            match GenerationFate::of(book, id) {
                GenerationFate::Built if is_ready(id)? => counts.ready += 1,
                GenerationFate::Built => counts.building += 1,
                GenerationFate::Served => counts.served += 1,
                GenerationFate::Kept => counts.kept += 1,
                GenerationFate::Leaving => counts.leaving += 1,
            }
        }
        Ok(counts)
    }

    /// The counts with the words of `rollmill_generations`.
    pub fn by_state(&self) -> [(&'static str, usize); 5] {
        [
            ("building", self.building),
            ("ready", self.ready),
            ("served", self.served),
            ("kept", self.kept),
            ("leaving", self.leaving),
        ]
    }
}

/// The generations that are served, or kept so that an undo can serve them again: each has to be
/// filled in.
pub fn whole_generations(book: &GenerationBook) -> impl Iterator<Item = GenerationId> {
    let is_whole = |id: &GenerationId| {
        matches!(GenerationFate::of(book, *id), GenerationFate::Served | GenerationFate::Kept)
    };
    book.generations().keys().copied().filter(is_whole)
}

/// I15: what is served, and what an undo would serve, is filled in and still written. `filled` says
/// how far each of the [`whole_generations`] is.
pub fn check_served(
    book: &GenerationBook,
    filled: &[(GenerationId, Vec<(ShardId, FillProgress)>)],
) {
    for (id, progress) in filled {
        let open = progress.iter().find(|(_, at)| !at.is_complete());
        check(Invariant::ServedIsWhole, open.is_none(), || {
            format!("replay {id} is served or kept, and not filled in: {open:?}")
        });
    }
    let unwritten = book.unwritten_piece();
    check(Invariant::ServedIsWhole, unwritten.is_none(), || {
        format!("served or kept, and not written any more: {unwritten:?}")
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::tests::violations;
    use crate::model::generation::DayRange;
    use crate::model::generation_book::NewGeneration;
    use crate::model::offset::LogId;

    fn at(cut: u64, cursor: u64) -> FillProgress {
        FillProgress { log: LogId([1; 16]), cut, cursor }
    }

    #[test]
    fn it_waits_for_every_shard_that_has_no_cut_or_records_left() {
        let filled = [(ShardId(0), at(10, 10)), (ShardId(1), at(9, 4))];
        let claimed = [(ShardId(0), 1), (ShardId(1), 1), (ShardId(2), 0)];
        let floors = BTreeMap::from([(ShardId(1), 3)]);
        let status = FillStatus::new(4, &filled, &claimed, &floors);
        assert_eq!((status.done, status.left, status.is_ready()), (11, 5, false));
        let waits = [
            (ShardId(1), ShardWait::Filling(at(9, 4))),
            (ShardId(2), ShardWait::Adopting),
            (ShardId(3), ShardWait::Unclaimed),
        ];
        assert_eq!(status.waits_for, waits);
        let text = status.waits_for_text();
        assert!(text.starts_with("shard 1 (5 records left), shard 2 (until"), "{text}");
        assert_eq!(status.counted_text(), "11 of at least 16 records");
        let begun = FillStatus::new(2, &filled, &claimed, &floors);
        assert_eq!(begun.counted_text(), "11 of 16 records");
        assert!(FillStatus::new(1, &filled, &claimed, &floors).is_ready());
        let many = FillStatus::new(9, &[], &[], &floors).waits_for_text();
        assert!(many.ends_with("and 6 more"), "{many}");
        assert_eq!(FillStatus::new(9, &[], &[], &floors).counted_text(), "nothing yet");
    }

    #[test]
    fn what_is_served_and_neither_filled_in_nor_written_is_a_violation() {
        let mut book = GenerationBook::default();
        let new = NewGeneration {
            tenant: "t".to_owned(),
            metrics: vec!["m".to_owned()],
            days: DayRange::new(0, Some(9)).expect("days"),
            rules: "{}".into(),
            started: (1, "k".to_owned()),
        };
        let id = book.start(new, 3, 1).expect("started");
        assert_eq!(whole_generations(&book).count(), 0, "it is being built");
        let counted = |book: &GenerationBook, is_ready: bool| {
            GenerationCounts::of(book, |_| Ok::<_, std::convert::Infallible>(is_ready))
        };
        let none = GenerationCounts::default();
        assert_eq!(counted(&book, false), Ok(GenerationCounts { building: 1, ..none }));
        assert_eq!(counted(&book, true), Ok(GenerationCounts { ready: 1, ..none }));
        let mut cancelled = book.clone();
        cancelled.cancel(id, None, 2).expect("cancelled");
        assert_eq!(counted(&cancelled, true), Ok(GenerationCounts { leaving: 1, ..none }));
        book.apply(id, 5).expect("applied");
        assert_eq!(whole_generations(&book).collect::<Vec<_>>(), [id]);
        assert_eq!(counted(&book, true), Ok(GenerationCounts { served: 1, ..none }));
        let mut undone = book.clone();
        undone.undo(id).expect("undone");
        let states = counted(&undone, true).expect("infallible").by_state();
        assert_eq!(states.iter().map(|(_, count)| count).sum::<usize>(), 1, "{states:?}");
        let found = |book: &GenerationBook, filled: FillProgress| {
            let filled = [(id, vec![(ShardId(0), filled)])];
            violations(Invariant::ServedIsWhole, || check_served(book, &filled))
        };
        assert_eq!((found(&book, at(9, 9)), found(&book, at(9, 8))), (0, 1));
        let text = serde_json::to_string(&book).expect("JSON");
        let cut = text.replacen("[0,9]", "[0,8]", 1);
        let damaged = serde_json::from_str::<GenerationBook>(&cut).expect("reads");
        assert_eq!(found(&damaged, at(9, 9)), 1, "a day is not written: {cut}");
    }
}
