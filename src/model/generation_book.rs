//! The book of generations: everything that is decided about them, as one document.
//!
//! The store keeps the book and replaces it by compare-and-set on its version, so a change of what
//! is served is one small write however many rows there are. All transitions are functions of the
//! book and their arguments. The same document is what a rebuild reads back.

mod served_alone;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::generation::{
    DayRange, GenerationId, MaintainedRange, MaintainedSet, Piece, Pointer, PointerError, SetError,
    next_version,
};
use super::window::Millis;

/// A generation that is built, served or on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// The tenant whose metrics it has.
    pub tenant: String,
    /// The metrics, ascending.
    pub metrics: Vec<String>,
    /// The days for which it was started.
    pub days: DayRange,
    /// Its rules, canonical.
    pub rules: Arc<str>,
    /// When it was started, by the wall clock.
    pub started: Millis,
    /// Who started it: the id of a key, or a name of a local command.
    pub by: String,
    /// Why it was given up; `None` if it was not.
    pub given_up: Option<String>,
}

/// An apply that can still be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    /// What is served since.
    pub generation: GenerationId,
    /// When it was applied, by the wall clock.
    pub at: Millis,
    /// What it replaced, by metric. These pieces are still written.
    pub replaced: BTreeMap<String, Vec<Piece>>,
    /// Observed time that has passed since, in milliseconds.
    pub gathered_ms: i64,
}

/// Days of a generation that no query reads any more. Their rows are deleted once all shards have
/// adopted a set without them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavingRange {
    /// The generation.
    pub generation: GenerationId,
    /// The tenant of the metric.
    pub tenant: String,
    /// The metric.
    pub metric: String,
    /// The days that leave.
    pub days: DayRange,
    /// Version of the first set without them.
    pub set: u64,
}

/// What somebody wants to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGeneration {
    /// The tenant whose metrics are replayed.
    pub tenant: String,
    /// The metrics, at least one.
    pub metrics: Vec<String>,
    /// The days, with an open end for events to come.
    pub days: DayRange,
    /// The rules, canonical.
    pub rules: Arc<str>,
    /// When and by whom it was started.
    pub started: (Millis, String),
}

/// Why a change of the book is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// There is none of that number.
    #[error("there is no replay {0}: `rollmill replay ls` lists them")]
    Unknown(GenerationId),
    /// Nothing was named.
    #[error("a replay needs at least one metric")]
    NoMetric,
    /// Another generation is being built for some of the same days.
    #[error(
        "replay {other} is being built for {metric} on some of these days: apply or cancel it first"
    )]
    IsBuilt {
        /// The generation in the way.
        other: GenerationId,
        /// The metric that both name.
        metric: String,
    },
    /// One generation too many.
    #[error(transparent)]
    Set(#[from] SetError),
    /// It is served, so it can be neither applied again nor cancelled.
    #[error("replay {0} is applied: undo it first")]
    IsServed(GenerationId),
    /// It was never applied, or its way back has expired.
    #[error(
        "replay {0} cannot be undone: it is not applied, or what it replaced is not kept any more"
    )]
    NoWayBack(GenerationId),
    /// It is on its way out.
    #[error("replay {0} was cancelled or given up")]
    Leaves(GenerationId),
    /// Something else is served on its days.
    #[error(transparent)]
    Pointer(#[from] PointerError),
}

/// Everything that is decided about generations. The default is the book of a store that never had
/// one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BookDocument")]
pub struct GenerationBook {
    version: u64,
    /// The number of the last generation.
    last: u64,
    /// Ascending by version; the last is the newest. Earlier ones are kept while a shard writes
    /// under them.
    sets: Vec<MaintainedSet>,
    /// By tenant and metric; none that serves generation 0 alone.
    pointers: BTreeMap<String, BTreeMap<String, Pointer>>,
    generations: BTreeMap<GenerationId, Generation>,
    /// In the order in which they were made.
    applies: Vec<Apply>,
    leaving: Vec<LeavingRange>,
}

/// A book as it is stored: the ranges of its sets are without rules.
#[derive(Deserialize)]
struct BookDocument {
    version: u64,
    last: u64,
    sets: Vec<MaintainedSet>,
    pointers: BTreeMap<String, BTreeMap<String, Pointer>>,
    generations: BTreeMap<GenerationId, Generation>,
    applies: Vec<Apply>,
    leaving: Vec<LeavingRange>,
}

impl From<BookDocument> for GenerationBook {
    fn from(document: BookDocument) -> Self {
        let BookDocument { version, last, mut sets, pointers, generations, applies, leaving } =
            document;
        for range in sets.iter_mut().flat_map(|set| &mut set.ranges) {
            if let Some(generation) = generations.get(&range.generation) {
                range.rules = generation.rules.clone();
            }
        }
        Self { version, last, sets, pointers, generations, applies, leaving }
    }
}

impl GenerationBook {
    /// Grows with each change; 0 if there never was a generation.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What shards are to write from their next flush on.
    pub fn newest_set(&self) -> MaintainedSet {
        self.sets.last().cloned().unwrap_or_default()
    }

    /// The set of a version, if a shard may still write under it.
    pub fn set(&self, version: u64) -> Option<MaintainedSet> {
        match version {
            0 => Some(MaintainedSet::default()),
            _ => self.sets.iter().find(|set| set.version == version).cloned(),
        }
    }

    /// The set of a version as a shard goes on with it that starts again: without what was given up.
    pub fn adopted_set(&self, version: u64) -> Option<MaintainedSet> {
        let mut set = self.set(version)?;
        set.ranges.retain(|range| {
            let generation = self.generations.get(&range.generation);
            generation.is_none_or(|generation| generation.given_up.is_none())
        });
        Some(set)
    }

    /// Whether somebody reads a generation, or may after an undo.
    pub fn is_read(&self, id: GenerationId) -> bool {
        self.is_served(id) || self.is_kept(id)
    }

    /// The sets that a shard may still write under, ascending by version.
    pub fn sets(&self) -> &[MaintainedSet] {
        &self.sets
    }

    /// What is served of a metric; `None` if it is generation 0 on all days.
    pub fn pointer(&self, tenant: &str, metric: &str) -> Option<&Pointer> {
        self.pointers.get(tenant)?.get(metric)
    }

    /// All pointers of a tenant, by metric.
    pub fn pointers(&self, tenant: &str) -> impl Iterator<Item = (&String, &Pointer)> {
        self.pointers.get(tenant).into_iter().flatten()
    }

    /// All generations that have rows, by number.
    pub fn generations(&self) -> &BTreeMap<GenerationId, Generation> {
        &self.generations
    }

    /// The applies that can be undone, in the order in which they were made.
    pub fn applies(&self) -> &[Apply] {
        &self.applies
    }

    /// The days whose rows are to be deleted.
    pub fn leaving(&self) -> &[LeavingRange] {
        &self.leaving
    }

    /// A piece that is served, or that an undo would serve, and that the newest set does not write:
    /// tenant, metric and piece. There is none, or something is wrong.
    pub fn unwritten_piece(&self) -> Option<(String, String, Piece)> {
        let served = self.pointers.iter().flat_map(|(tenant, of)| {
            of.iter().map(move |(metric, pointer)| (tenant, metric, pointer.pieces()))
        });
        let kept = self.applies.iter().filter_map(|apply| {
            let tenant = &self.generations.get(&apply.generation)?.tenant;
            Some(apply.replaced.iter().map(move |(metric, pieces)| (tenant, metric, &**pieces)))
        });
        let set = self.newest_set();
        let pieces = served.chain(kept.flatten()).flat_map(|(tenant, metric, pieces)| {
            pieces.iter().map(move |piece| (tenant, metric, piece))
        });
        let mut others = pieces.filter(|(_, _, piece)| !piece.generation.is_ingest());
        let lost = others.find(|(tenant, metric, piece)| {
            let mut open = vec![piece.days];
            for range in set.of(tenant, metric, piece.generation) {
                open = open.into_iter().flat_map(|days| days.without(range.days)).collect();
            }
            !open.is_empty()
        });
        lost.map(|(tenant, metric, piece)| (tenant.clone(), metric.clone(), *piece))
    }

    /// Whether a generation is served on some days.
    pub fn is_served(&self, id: GenerationId) -> bool {
        let mut pieces =
            self.pointers.values().flat_map(BTreeMap::values).flat_map(Pointer::pieces);
        pieces.any(|piece| piece.generation == id)
    }

    /// Whether a generation is kept because an apply that replaced it can be undone.
    fn is_kept(&self, id: GenerationId) -> bool {
        let mut replaced = self.applies.iter().flat_map(|apply| apply.replaced.values().flatten());
        replaced.any(|piece| piece.generation == id)
    }

    /// Whether a generation is being built: written, but neither served nor kept.
    pub fn is_built(&self, id: GenerationId) -> bool {
        self.sets.last().is_some_and(|set| set.has(id)) && !self.is_served(id) && !self.is_kept(id)
    }

    /// Starts a generation; shards adopt it in their next flushes. `max` is the limit
    /// `replay.max_maintained`, `nonce` makes the version of the new set unique.
    ///
    /// # Errors
    /// Fails without a metric, if another one is built on the same days, or if there are too many.
    pub fn start(
        &mut self,
        new: NewGeneration,
        max: usize,
        nonce: u64,
    ) -> Result<GenerationId, BookError> {
        let id = GenerationId(self.last + 1);
        let NewGeneration { tenant, mut metrics, days, rules, started: (started, by) } = new;
        metrics.sort_unstable();
        metrics.dedup();
        if metrics.is_empty() {
            return Err(BookError::NoMetric);
        }
        let set = self.newest_set();
        let in_the_way = set.ranges.iter().find(|range| {
            range.tenant == tenant
                && metrics.contains(&range.metric)
                && range.days.intersect(days).is_some()
                && self.is_built(range.generation)
        });
        if let Some(range) = in_the_way {
            let (other, metric) = (range.generation, range.metric.clone());
            return Err(BookError::IsBuilt { other, metric });
        }
        let ranges = metrics.iter().map(|metric| MaintainedRange {
            tenant: tenant.clone(),
            metric: metric.clone(),
            days,
            generation: id,
            rules: rules.clone(),
        });
        self.sets.push(set.with(ranges.collect(), max, nonce)?);
        let given_up = None;
        let generation = Generation { tenant, metrics, days, rules, started, by, given_up };
        self.generations.insert(id, generation);
        (self.last, self.version) = (id.0, self.version + 1);
        Ok(id)
    }

    /// Serves a generation on its days. The caller has seen that it is ready.
    ///
    /// # Errors
    /// Fails if it is unknown, leaves, or is served already.
    pub fn apply(&mut self, id: GenerationId, at: Millis) -> Result<&Apply, BookError> {
        let generation = self.generations.get(&id).ok_or(BookError::Unknown(id))?;
        if self.is_served(id) {
            return Err(BookError::IsServed(id));
        }
        if !self.is_built(id) {
            return Err(BookError::Leaves(id));
        }
        let (days, mut replaced) = (generation.days, BTreeMap::new());
        let pointers = self.pointers.entry(generation.tenant.clone()).or_default();
        for metric in &generation.metrics {
            let pointer = pointers.entry(metric.clone()).or_default();
            replaced.insert(metric.clone(), pointer.apply(Piece { days, generation: id }));
        }
        self.version += 1;
        self.applies.push(Apply { generation: id, at, replaced, gathered_ms: 0 });
        Ok(&self.applies[self.applies.len() - 1])
    }

    /// Puts back what the apply of a generation replaced. The generation is then as it was before
    /// the apply: it can be applied again, or cancelled.
    ///
    /// # Errors
    /// Fails if it cannot be undone any more, or if something else was applied since.
    pub fn undo(&mut self, id: GenerationId) -> Result<Apply, BookError> {
        let generation = self.generations.get(&id).ok_or(BookError::Unknown(id))?;
        let at = self.applies.iter().rposition(|apply| apply.generation == id);
        let at = at.ok_or(BookError::NoWayBack(id))?;
        let mut pointers = self.pointers.get(&generation.tenant).cloned().unwrap_or_default();
        for (metric, pieces) in &self.applies[at].replaced {
            let pointer = pointers.entry(metric.clone()).or_default();
            pointer.undo(id, pieces)?;
            if pointer.pieces().is_empty() {
                pointers.remove(metric);
            }
        }
        let tenant = generation.tenant.clone();
        match pointers.is_empty() {
            true => self.pointers.remove(&tenant),
            false => self.pointers.insert(tenant, pointers),
        };
        self.version += 1;
        Ok(self.applies.remove(at))
    }

    /// Gives a generation up that is not served: its rows leave.
    ///
    /// # Errors
    /// Fails if it is unknown, served, kept for an undo, or leaves already.
    pub fn cancel(
        &mut self,
        id: GenerationId,
        why: Option<String>,
        nonce: u64,
    ) -> Result<(), BookError> {
        let generation = self.generations.get(&id).ok_or(BookError::Unknown(id))?;
        if self.is_served(id) || self.is_kept(id) {
            return Err(BookError::IsServed(id));
        }
        if !self.is_built(id) {
            return Err(BookError::Leaves(id));
        }
        let all = generation.metrics.iter().map(|metric| (metric.clone(), DayRange::ALWAYS));
        let all: Vec<_> = all.collect();
        if let Some(generation) = self.generations.get_mut(&id) {
            generation.given_up = why;
        }
        self.leave(vec![(id, all)], nonce);
        self.version += 1;
        Ok(())
    }

    /// Gives generations up without which a shard has flushed. Returns those that had not left
    /// already; the book is as it was if there are none.
    ///
    /// # Errors
    /// Fails, and changes nothing, if one is served or kept for an undo by now: its rows would be
    /// wrong.
    pub fn give_up(
        &mut self,
        ids: &[GenerationId],
        why: &str,
        nonce: u64,
    ) -> Result<Vec<GenerationId>, BookError> {
        if let Some(id) = ids.iter().find(|id| self.is_read(**id)) {
            return Err(BookError::IsServed(*id));
        }
        let built = ids.iter().copied().filter(|id| self.is_built(*id));
        let built: Vec<_> = built.collect();
        let mut leaving = Vec::new();
        for id in &built {
            if let Some(generation) = self.generations.get_mut(id) {
                generation.given_up = Some(why.to_owned());
                let all = generation.metrics.iter();
                leaving.push((*id, all.map(|metric| (metric.clone(), DayRange::ALWAYS)).collect()));
            }
        }
        if !leaving.is_empty() {
            self.leave(leaving, nonce);
            self.version += 1;
        }
        Ok(built)
    }

    /// Adds the same observed time to all applies: [`GenerationBook::gather_each`].
    pub fn gather(&mut self, elapsed_ms: i64, keep_ms: i64, nonce: u64) -> bool {
        self.gather_each(&vec![elapsed_ms; self.applies.len()], keep_ms, nonce)
    }

    /// Adds observed time to the applies, in their order. Those that have gathered `keep_ms` lose
    /// their way back, and what they replaced leaves. Returns whether anything changed.
    pub fn gather_each(&mut self, elapsed_ms: &[i64], keep_ms: i64, nonce: u64) -> bool {
        let mut changed = false;
        for (apply, elapsed) in self.applies.iter_mut().zip(elapsed_ms) {
            let elapsed = (*elapsed).max(0);
            apply.gathered_ms = apply.gathered_ms.saturating_add(elapsed);
            changed |= elapsed > 0;
        }
        if !changed {
            return false;
        }
        let applies = std::mem::take(&mut self.applies);
        let (over, kept) = applies.into_iter().partition(|apply| apply.gathered_ms >= keep_ms);
        self.applies = kept;
        let over: Vec<Apply> = over;
        let mut leaving = Vec::new();
        for (metric, pieces) in over.into_iter().flat_map(|apply| apply.replaced) {
            let others = pieces.iter().filter(|piece| !piece.generation.is_ingest());
            leaving
                .extend(others.map(|piece| (piece.generation, vec![(metric.clone(), piece.days)])));
        }
        if !leaving.is_empty() {
            self.leave(leaving, nonce);
        }
        self.version += 1;
        true
    }

    /// Takes days of generations out of the newest set.
    fn leave(&mut self, of: Vec<(GenerationId, Vec<(String, DayRange)>)>, nonce: u64) {
        let mut set = self.newest_set();
        set.version = next_version(set.version, nonce);
        for (id, ranges) in of {
            let tenant = self.generations.get(&id).map(|g| g.tenant.clone()).unwrap_or_default();
            for (metric, days) in ranges {
                set = set.without(id, &metric, days);
                let (tenant, set) = (tenant.clone(), set.version);
                self.leaving.push(LeavingRange { generation: id, tenant, metric, days, set });
            }
        }
        self.sets.push(set);
    }

    /// Forgets sets that no shard writes under any more. `oldest` is the least version that a shard
    /// has adopted. Returns whether anything changed.
    pub fn forget_sets(&mut self, oldest: u64) -> bool {
        let newest = self.newest_set().version;
        let before = self.sets.len();
        self.sets.retain(|set| set.version >= oldest || set.version == newest);
        let changed = self.sets.len() < before;
        self.version += u64::from(changed);
        changed
    }

    /// Moves the version beyond one that another book had: that of a store which was rolled back.
    pub fn pass_over(&mut self, version: u64) {
        self.version = self.version.max(version) + 1;
    }

    /// The book without what passes by itself: its version, and the time that applies have gathered.
    /// It is the same before and after a time in which nobody has decided anything.
    #[must_use]
    pub fn decisions(&self) -> Self {
        let mut book = Self { version: 0, ..self.clone() };
        book.applies.iter_mut().for_each(|apply| apply.gathered_ms = 0);
        book
    }

    /// Notes that the rows of these days are deleted. A generation without days is forgotten.
    pub fn left(&mut self, range: &LeavingRange) -> bool {
        let before = self.leaving.len();
        self.leaving.retain(|leaving| leaving != range);
        if self.leaving.len() == before {
            return false;
        }
        // No shard writes under a set from before, so none needs rules that are forgotten here.
        self.sets.retain(|set| set.version >= range.set);
        let id = range.generation;
        let remains = self.newest_set().has(id)
            || self.leaving.iter().any(|leaving| leaving.generation == id);
        if !remains {
            self.generations.remove(&id);
        }
        self.version += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(from: i32, to: i32) -> DayRange {
        DayRange::new(from, Some(to)).expect("a range")
    }

    fn new(metric: &str, days: DayRange) -> NewGeneration {
        NewGeneration {
            tenant: "t".to_owned(),
            metrics: vec![metric.to_owned()],
            days,
            rules: "[]".into(),
            started: (1, "k1".to_owned()),
        }
    }

    fn served(book: &GenerationBook, day: i32) -> u64 {
        book.pointer("t", "m").map_or(0, |pointer| pointer.on(day).0)
    }

    #[test]
    fn a_generation_is_built_served_undone_and_applied_again() {
        let mut book = GenerationBook::default();
        let one = book.start(new("m", days(0, 10)), 3, 7).expect("started");
        assert_eq!((one, book.is_built(one), served(&book, 3)), (GenerationId(1), true, 0));
        let first = book.newest_set().version;
        assert_eq!(book.newest_set().on("t", "m", 3).count(), 1);
        for _ in 0..2 {
            let replaced = &book.apply(one, 5).expect("applied").replaced["m"];
            assert_eq!(replaced, &[Piece { days: days(0, 10), generation: GenerationId::INGEST }]);
            assert_eq!((served(&book, 3), served(&book, 10)), (1, 0));
            assert_eq!(book.apply(one, 6).map(|_| ()), Err(BookError::IsServed(one)));
            assert_eq!(book.cancel(one, None, 7), Err(BookError::IsServed(one)));
            book.undo(one).expect("undone");
            assert_eq!((served(&book, 3), book.pointers("t").count()), (0, 0));
            assert_eq!(book.undo(one).map(|_| ()), Err(BookError::NoWayBack(one)));
        }
        assert_eq!(
            book.newest_set().version,
            first,
            "neither apply nor undo changes what is written"
        );
    }

    #[test]
    fn what_is_built_is_in_the_way_of_another_on_the_same_days() {
        let mut book = GenerationBook::default();
        let one = book.start(new("m", days(0, 10)), 3, 7).expect("started");
        let refused = BookError::IsBuilt { other: one, metric: "m".to_owned() };
        assert_eq!(book.start(new("m", days(9, 12)), 3, 7), Err(refused));
        assert!(book.start(new("m", days(10, 12)), 3, 7).is_ok(), "on other days");
        assert!(book.start(new("n", days(0, 10)), 3, 7).is_ok(), "of another metric");
        book.apply(one, 5).expect("applied");
        assert!(book.start(new("m", days(0, 5)), 3, 7).is_ok(), "once it is served");
        let none = NewGeneration { metrics: Vec::new(), ..new("m", days(0, 1)) };
        assert_eq!(book.start(none, 3, 7), Err(BookError::NoMetric));
    }

    #[test]
    fn what_is_replaced_is_kept_so_long_and_leaves_then() {
        let mut book = GenerationBook::default();
        let one = book.start(new("m", days(0, 10)), 3, 7).expect("started");
        book.apply(one, 5).expect("applied");
        let two = book.start(new("m", days(5, 20)), 3, 7).expect("started");
        book.apply(two, 6).expect("applied");
        let err = book.undo(one).map(|_| ());
        assert!(matches!(err, Err(BookError::Pointer(_))), "the last apply first: {err:?}");
        assert!(book.gather(99, 100, 7) && book.leaving().is_empty());
        assert!(book.gather(1, 100, 7));
        assert_eq!(book.undo(two).map(|_| ()), Err(BookError::NoWayBack(two)));
        let leaving = book.leaving().to_vec();
        assert_eq!(leaving.len(), 1, "of generation 1 what generation 2 has replaced");
        assert_eq!((leaving[0].generation, leaving[0].days), (one, days(5, 10)));
        let set = book.newest_set();
        let written = |day| set.on("t", "m", day).map(|r| r.generation.0).collect::<Vec<_>>();
        assert_eq!([written(4), written(5), written(15)], [vec![1], vec![2], vec![2]]);
        assert!(book.left(&leaving[0]) && !book.left(&leaving[0]));
        assert!(book.generations().contains_key(&one), "it is served on other days");
    }

    #[test]
    fn a_cancelled_one_is_forgotten_when_its_rows_are_gone() {
        let mut book = GenerationBook::default();
        let one = book.start(new("m", days(0, 10)), 3, 7).expect("started");
        let first = book.newest_set().version;
        book.cancel(one, Some("it is in the way".to_owned()), 7).expect("cancelled");
        assert_eq!(book.apply(one, 1).map(|_| ()), Err(BookError::Leaves(one)));
        assert_eq!(book.cancel(one, None, 7), Err(BookError::Leaves(one)));
        assert_eq!(
            (book.set(first).map(|s| s.has(one)), book.newest_set().has(one)),
            (Some(true), false)
        );
        assert!(!book.forget_sets(first), "a shard still writes it");
        assert!(book.forget_sets(first + 1) && book.set(first).is_none());
        let leaving = book.leaving()[0].clone();
        assert_eq!(leaving.set, book.newest_set().version);
        assert!(book.left(&leaving) && book.generations().is_empty());
        assert_eq!(book.apply(one, 1).map(|_| ()), Err(BookError::Unknown(one)));
        let again = book.start(new("m", days(0, 10)), 3, 7).expect("started");
        assert_eq!(again, GenerationId(2), "no number is used twice");
    }

    #[test]
    fn what_is_given_up_is_written_no_more_unless_it_is_served_by_now() {
        let mut book = GenerationBook::default();
        let one = book.start(new("m", days(0, 10)), 3, 7).expect("started");
        let two = book.start(new("n", days(0, 10)), 3, 7).expect("started");
        let set = book.newest_set();
        book.apply(two, 5).expect("applied");
        assert_eq!((book.is_read(one), book.is_read(two)), (false, true));
        let before = book.clone();
        assert_eq!(book.give_up(&[one, two], "why", 8), Err(BookError::IsServed(two)));
        assert_eq!(book, before);
        assert_eq!(book.give_up(&[one], "why", 8), Ok(vec![one]));
        assert_eq!(book.generations()[&one].given_up.as_deref(), Some("why"));
        assert_eq!((book.is_built(one), book.newest_set().has(one)), (false, false));
        assert_eq!(book.leaving().len(), 1);
        assert_eq!(book.apply(one, 6).map(|_| ()), Err(BookError::Leaves(one)));
        let adopted = book.adopted_set(set.version).expect("still written");
        assert_eq!(
            (adopted.version, adopted.has(one), adopted.has(two)),
            (set.version, false, true)
        );
        let before = book.clone();
        assert_eq!(book.give_up(&[one, GenerationId(9)], "again", 9), Ok(vec![]));
        assert_eq!(book, before);
    }

    #[test]
    fn the_document_comes_back_as_it_was() {
        let mut book = GenerationBook::default();
        let one =
            book.start(new("m", DayRange::new(3, None).expect("open")), 3, 7).expect("started");
        book.apply(one, 5).expect("applied");
        let text = serde_json::to_string(&book).expect("JSON");
        assert_eq!(serde_json::from_str::<GenerationBook>(&text).expect("reads"), book);
        let empty = text.replace("[3,null]", "[3,3]");
        assert!(serde_json::from_str::<GenerationBook>(&empty).is_err(), "no day");
    }
}
