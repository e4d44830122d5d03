//! Generations: sets of rollups of the same records under other rules, and which of them is served.
//!
//! Generation 0 is what ingest makes. It is always written and never leaves, so that everything
//! else can be compared with it and undone to it. Others are written and served for ranges of UTC
//! days. The [`MaintainedSet`] says what is written, the [`Pointer`] what is served.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::CodecError;
use super::offset::ShardId;
use super::window::Hour;

/// Number of a generation, unique in a store. 0 is what ingest makes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct GenerationId(pub u64);

impl GenerationId {
    /// What ingest makes.
    pub const INGEST: Self = Self(0);

    /// Whether this is what ingest makes.
    pub fn is_ingest(self) -> bool {
        self == Self::INGEST
    }
}

impl std::fmt::Display for GenerationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Half-open range of UTC days since the Unix epoch, `[from, to)`, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(i32, Option<i32>)", into = "(i32, Option<i32>)")]
pub struct DayRange {
    from: i32,
    to: i32,
}

impl From<DayRange> for (i32, Option<i32>) {
    fn from(days: DayRange) -> Self {
        (days.from, days.to())
    }
}

impl TryFrom<(i32, Option<i32>)> for DayRange {
    type Error = CodecError;

    fn try_from((from, to): (i32, Option<i32>)) -> Result<Self, CodecError> {
        Self::new(from, to).ok_or_else(|| CodecError::new("days", "the range is empty"))
    }
}

impl DayRange {
    /// The end of a range that is open: no event is as late.
    const OPEN: i32 = i32::MAX;
    /// Every day.
    pub const ALWAYS: Self = Self { from: i32::MIN, to: Self::OPEN };

    /// The days `[from, to)`, with an open end if `to` is `None`; `None` if that is no day.
    pub fn new(from: i32, to: Option<i32>) -> Option<Self> {
        let to = to.unwrap_or(Self::OPEN);
        (from < to).then_some(Self { from, to })
    }

    /// First day.
    pub fn from(self) -> i32 {
        self.from
    }

    /// Exclusive end; `None` if the range is open.
    pub fn to(self) -> Option<i32> {
        (self.to != Self::OPEN).then_some(self.to)
    }

    /// Whether the day is in the range.
    pub fn contains(self, day: i32) -> bool {
        self.from <= day && day < self.to
    }

    /// The days that both have; `None` if there are none.
    pub fn intersect(self, other: Self) -> Option<Self> {
        let (from, to) = (self.from.max(other.from), self.to.min(other.to));
        (from < to).then_some(Self { from, to })
    }

    /// The days of this range that are not in `other`: at most one range before and one behind.
    pub fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let part = |from: i32, to: i32| (from < to).then_some(Self { from, to });
        let before = part(self.from, self.to.min(other.from));
        let behind = part(self.from.max(other.to), self.to);
        before.into_iter().chain(behind)
    }

    /// The hours of the range: first, and exclusive end. The ends of unbounded ranges saturate.
    pub fn hours(self) -> (Hour, Hour) {
        (Hour(self.from.saturating_mul(24)), Hour(self.to.saturating_mul(24)))
    }

    /// The least range of whole days that holds the hours `[from, to)`; `None` if there are none.
    pub fn around(from: Hour, to: Hour) -> Option<Self> {
        let last = Hour(to.0.checked_sub(1)?).day();
        (from < to).then_some(Self { from: from.day(), to: last.saturating_add(1) })
    }
}

impl std::fmt::Display for DayRange {
    /// For people: the first day, and the day behind the last one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let day = |day: i32| {
            let span = jiff::Span::new().try_days(day).ok();
            let date = span.and_then(|span| jiff::civil::date(1970, 1, 1).checked_add(span).ok());
            date.map_or_else(|| format!("day {day}"), |date| date.to_string())
        };
        match (self.from, self.to()) {
            (i32::MIN, None) => f.write_str("all days"),
            (i32::MIN, Some(to)) => write!(f, "before {}", day(to)),
            (from, None) => write!(f, "from {}", day(from)),
            (from, Some(to)) => write!(f, "from {} to {}", day(from), day(to)),
        }
    }
}

/// A range of days, and the generation that is served there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The days, never empty.
    pub days: DayRange,
    /// What is served on these days.
    pub generation: GenerationId,
}

/// Why a change of the pointer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// Something was applied since, on some of the same days.
    #[error(
        "replay {served} is served on some days of replay {expected}: undo the last apply first"
    )]
    NotServed {
        /// What the change would take away.
        expected: GenerationId,
        /// What is served instead.
        served: GenerationId,
    },
}

/// What is served of one metric of a tenant. Days without a piece are those of generation 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Piece>", into = "Vec<Piece>")]
pub struct Pointer {
    /// Ascending, apart from each other, none of generation 0; neighbours of one generation are
    /// joined.
    pieces: Vec<Piece>,
}

impl From<Vec<Piece>> for Pointer {
    fn from(pieces: Vec<Piece>) -> Self {
        Self::new(pieces)
    }
}

impl From<Pointer> for Vec<Piece> {
    fn from(pointer: Pointer) -> Self {
        pointer.pieces
    }
}

impl Pointer {
    /// The pointer with these pieces, in any order. Of pieces that overlap, the later one holds.
    pub fn new(pieces: impl IntoIterator<Item = Piece>) -> Self {
        let mut pointer = Self::default();
        pieces.into_iter().for_each(|piece| pointer.set(piece));
        pointer
    }

    /// The pieces that are not generation 0, ascending.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// What is served on a day.
    pub fn on(&self, day: i32) -> GenerationId {
        let behind = self.pieces.partition_point(|piece| piece.days.from <= day);
        let piece = self.pieces[..behind].last().filter(|piece| piece.days.contains(day));
        piece.map_or(GenerationId::INGEST, |piece| piece.generation)
    }

    /// Cuts a range of days at the edges of the pieces. The result covers the range, ascending.
    pub fn cut(&self, days: DayRange) -> Vec<Piece> {
        let (mut cut, mut from) = (Vec::new(), days.from);
        let mut push = |from: i32, to: i32, generation| {
            if from < to {
                cut.push(Piece { days: DayRange { from, to }, generation });
            }
        };
        for piece in &self.pieces {
            if let Some(common) = piece.days.intersect(days) {
                push(from, common.from, GenerationId::INGEST);
                push(common.from, common.to, piece.generation);
                from = common.to;
            }
        }
        push(from, days.to, GenerationId::INGEST);
        cut
    }

    /// Serves a generation on these days. Returns the pieces that it replaces, which
    /// [`Pointer::undo`] takes.
    pub fn apply(&mut self, piece: Piece) -> Vec<Piece> {
        let replaced = self.cut(piece.days);
        self.set(piece);
        replaced
    }

    /// Puts back what an apply replaced.
    ///
    /// # Errors
    /// Fails, and changes nothing, if `generation` is not what is served on all these days any
    /// more.
    pub fn undo(
        &mut self,
        generation: GenerationId,
        replaced: &[Piece],
    ) -> Result<(), PointerError> {
        let served = replaced.iter().flat_map(|piece| self.cut(piece.days));
        if let Some(other) = served.into_iter().find(|piece| piece.generation != generation) {
            let served = other.generation;
            return Err(PointerError::NotServed { expected: generation, served });
        }
        replaced.iter().for_each(|piece| self.set(*piece));
        Ok(())
    }

    fn set(&mut self, new: Piece) {
        let mut pieces: Vec<Piece> = Vec::with_capacity(self.pieces.len() + 2);
        for piece in &self.pieces {
            pieces.extend(piece.days.without(new.days).map(|days| Piece { days, ..*piece }));
        }
        if !new.generation.is_ingest() {
            pieces.push(new);
        }
        pieces.sort_by_key(|piece| piece.days.from);
        pieces.dedup_by(|next, before| {
            let joined = next.generation == before.generation && next.days.from == before.days.to;
            if joined {
                before.days.to = next.days.to;
            }
            joined
        });
        self.pieces = pieces;
    }
}

/// A generation that shards write for some days of a metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintainedRange {
    /// The tenant whose metric it is.
    pub tenant: String,
    /// The metric.
    pub metric: String,
    /// The days that are written.
    pub days: DayRange,
    /// The generation, never 0.
    pub generation: GenerationId,
    /// Its rules, canonical. The book has them once, with the generation.
    #[serde(skip)]
    pub rules: Arc<str>,
}

/// Which generations are written besides generation 0: the same for all shards, each of which
/// adopts a version of it in a flush.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintainedSet {
    /// Grows with each change, see [`next_version`]. 0 is the set of a store that never had a
    /// generation.
    pub version: u64,
    /// What is written, in no particular order.
    pub ranges: Vec<MaintainedRange>,
}

/// Random bits of a version.
const NONCE_BITS: u32 = 40;

/// The version that follows: its upper bits count, its lower bits are those of `nonce`. A store
/// that was rolled back counts again, but no two different sets ever have one version, so an owner
/// of before the rollback cannot flush under a set that it does not know.
pub fn next_version(before: u64, nonce: u64) -> u64 {
    let count = (before >> NONCE_BITS) + 1;
    count << NONCE_BITS | nonce & ((1 << NONCE_BITS) - 1)
}

/// Why a set cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// One generation too many.
    #[error(
        "{max} replays of {metric} are written already on some of these days, the limit \
         replay.max_maintained: cancel one that is not served, or wait until an older one cannot \
         be undone any more (replay.keep)"
    )]
    TooMany {
        /// The metric with too many.
        metric: String,
        /// The limit.
        max: usize,
    },
}

impl MaintainedSet {
    /// What is written for an event of this metric on this day.
    pub fn on<'a>(
        &'a self,
        tenant: &'a str,
        metric: &'a str,
        day: i32,
    ) -> impl Iterator<Item = &'a MaintainedRange> {
        let is_wanted = move |range: &&MaintainedRange| {
            range.days.contains(day) && range.metric == metric && range.tenant == tenant
        };
        self.ranges.iter().filter(is_wanted)
    }

    /// The ranges of a generation of a metric.
    pub fn of<'a>(
        &'a self,
        tenant: &'a str,
        metric: &'a str,
        generation: GenerationId,
    ) -> impl Iterator<Item = &'a MaintainedRange> {
        self.ranges.iter().filter(move |range| {
            range.generation == generation && range.metric == metric && range.tenant == tenant
        })
    }

    /// The next version, with these ranges besides.
    ///
    /// # Errors
    /// Fails if some day of a metric would be written more than `max` times besides generation 0.
    pub fn with(
        &self,
        more: Vec<MaintainedRange>,
        max: usize,
        nonce: u64,
    ) -> Result<Self, SetError> {
        let set = Self {
            version: next_version(self.version, nonce),
            ranges: self.ranges.iter().cloned().chain(more).collect(),
        };
        match set.most_written() {
            Some((count, metric)) if count > max => {
                Err(SetError::TooMany { metric: metric.to_owned(), max })
            }
            _ => Ok(set),
        }
    }

    /// This set without a generation on these days of a metric, still of the same version.
    #[must_use]
    pub fn without(&self, generation: GenerationId, metric: &str, days: DayRange) -> Self {
        let mut ranges = Vec::with_capacity(self.ranges.len() + 1);
        for range in &self.ranges {
            if range.generation == generation && range.metric == metric {
                let left = range.days.without(days);
                ranges.extend(left.map(|days| MaintainedRange { days, ..range.clone() }));
            } else {
                ranges.push(range.clone());
            }
        }
        Self { version: self.version, ranges }
    }

    /// Whether any day of the generation is written.
    pub fn has(&self, generation: GenerationId) -> bool {
        self.ranges.iter().any(|range| range.generation == generation)
    }

    /// The generations of the set, ascending.
    pub fn generations(&self) -> Vec<GenerationId> {
        let mut all: Vec<_> = self.ranges.iter().map(|range| range.generation).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The day of a metric that is written most often: how often, and the metric. The number of
    /// ranges that hold a day is greatest at the start of one of them.
    fn most_written(&self) -> Option<(usize, &str)> {
        let counts = self.ranges.iter().map(|range| {
            let written = self.on(&range.tenant, &range.metric, range.days.from).count();
            (written, range.metric.as_str())
        });
        counts.max_by_key(|(count, _)| *count)
    }
}

/// Who writes rows of a generation. Two writers share no row, so neither waits for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    /// The shard whose records are folded.
    pub shard: ShardId,
    /// The records that are folded.
    pub part: WriterPart,
}

impl std::fmt::Display for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = match self.part {
            WriterPart::Live => "live",
            WriterPart::Fill => "fill",
        };
        write!(f, "shard {}, {part}", self.shard)
    }
}

/// A replay as nodes run it: the fill of one generation from one shard.
pub type ReplayKey = (GenerationId, ShardId);

/// Which records of its shard a writer folds into a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WriterPart {
    /// Those at and above the cut, as they come.
    Live,
    /// Those below the cut, from the archive.
    Fill,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn days(from: i32, to: i32) -> DayRange {
        DayRange::new(from, Some(to)).expect("a range")
    }

    fn piece(from: i32, to: i32, generation: u64) -> Piece {
        Piece { days: days(from, to), generation: GenerationId(generation) }
    }

    #[test]
    fn ranges_are_never_empty_and_may_be_open() {
        assert_eq!((DayRange::new(3, Some(3)), DayRange::new(3, Some(2))), (None, None));
        let open = DayRange::new(3, None).expect("open");
        assert_eq!((open.to(), open.contains(2), open.contains(1 << 30)), (None, false, true));
        assert_eq!(days(0, 10).without(days(3, 5)).collect::<Vec<_>>(), [days(0, 3), days(5, 10)]);
        assert_eq!(days(0, 10).without(days(10, 12)).collect::<Vec<_>>(), [days(0, 10)]);
        assert_eq!(open.without(open).count(), 0);
    }

    #[test]
    fn people_read_days_as_dates() {
        let open = DayRange::new(20_454, None).expect("open");
        let before = DayRange::ALWAYS.without(open).next().expect("before");
        let texts =
            [days(20_454, 20_485), open, before, DayRange::ALWAYS, days(1 << 30, 1 << 30 | 1)]
                .map(|days| days.to_string());
        assert_eq!(
            texts,
            [
                "from 2026-01-01 to 2026-02-01",
                "from 2026-01-01",
                "before 2026-01-01",
                "all days",
                "from day 1073741824 to day 1073741825"
            ]
        );
    }

    #[test]
    fn hours_and_days_convert_outward() {
        assert_eq!(DayRange::around(Hour(-1), Hour(25)), Some(days(-1, 2)));
        assert_eq!(DayRange::around(Hour(24), Hour(48)), Some(days(1, 2)));
        assert_eq!(DayRange::around(Hour(24), Hour(24)), None);
        assert_eq!(days(-1, 2).hours(), (Hour(-24), Hour(48)));
        assert_eq!(DayRange::ALWAYS.hours(), (Hour(i32::MIN), Hour(i32::MAX)));
    }

    #[test]
    fn a_range_is_cut_where_pieces_begin_and_end() {
        let pointer = Pointer::new([piece(2, 4, 1), piece(6, 9, 2)]);
        assert_eq!(
            pointer.cut(days(0, 8)),
            [piece(0, 2, 0), piece(2, 4, 1), piece(4, 6, 0), piece(6, 8, 2)]
        );
        assert_eq!(pointer.cut(days(3, 4)), [piece(3, 4, 1)]);
        assert_eq!(Pointer::default().cut(DayRange::ALWAYS).len(), 1);
    }

    #[test]
    fn undo_puts_back_exactly_what_was_there_and_only_the_last_apply() {
        let mut pointer = Pointer::new([piece(2, 4, 1)]);
        let first = pointer.clone();
        let replaced = pointer.apply(piece(3, 8, 2));
        assert_eq!(replaced, [piece(3, 4, 1), piece(4, 8, 0)]);
        let second = pointer.clone();
        let later = pointer.apply(piece(7, 9, 3));
        assert_eq!(
            pointer.undo(GenerationId(2), &replaced),
            Err(PointerError::NotServed { expected: GenerationId(2), served: GenerationId(3) })
        );
        assert_eq!(pointer.undo(GenerationId(3), &later), Ok(()));
        assert_eq!(pointer, second);
        assert_eq!(pointer.undo(GenerationId(2), &replaced), Ok(()));
        assert_eq!(pointer, first);
    }

    fn range(metric: &str, days: DayRange, generation: u64) -> MaintainedRange {
        let (tenant, metric) = ("t".to_owned(), metric.to_owned());
        let rules = "[]".into();
        MaintainedRange { tenant, metric, days, generation: GenerationId(generation), rules }
    }

    #[test]
    fn a_day_is_written_so_many_times_and_no_more() {
        let empty = MaintainedSet::default();
        let one = empty.with(vec![range("m", days(0, 9), 1)], 2, 5).expect("room");
        let two = one.with(vec![range("m", days(5, 20), 2)], 2, 5).expect("room");
        let refused = SetError::TooMany { metric: "m".to_owned(), max: 2 };
        assert_eq!(two.with(vec![range("m", days(8, 30), 3)], 2, 5), Err(refused));
        assert!(two.with(vec![range("m", days(9, 30), 3)], 2, 5).is_ok(), "on other days");
        assert!(two.with(vec![range("n", days(5, 9), 3)], 2, 5).is_ok(), "of another metric");
        let left = two.without(GenerationId(1), "m", days(3, 6));
        assert_eq!((left.version, left.has(GenerationId(1))), (two.version, true));
        let other = empty.with(vec![], 2, 6).expect("room").version;
        assert!(one.version != other && two.version > one.version.max(other));
        let on = |day| left.on("t", "m", day).map(|range| range.generation.0).collect::<Vec<_>>();
        assert_eq!(
            [on(2), on(3), on(5), on(6), on(9)],
            [vec![1], vec![], vec![2], vec![1, 2], vec![2]]
        );
        assert!(!left.without(GenerationId(1), "m", DayRange::ALWAYS).has(GenerationId(1)));
    }

    proptest! {
        #[test]
        fn a_pointer_answers_as_a_list_of_days_does(
            applies in prop::collection::vec((0_i32..40, 1_i32..20, 0_u64..4), 0..12),
            asked in (0_i32..50, 1_i32..20),
        ) {
            let (mut pointer, mut list) = (Pointer::default(), [0_u64; 80]);
            let mut history = Vec::new();
            for (number, (from, length, _)) in applies.iter().enumerate() {
                let generation = number as u64 + 1;
                let before = (pointer.clone(), list);
                let replaced = pointer.apply(piece(*from, from + length, generation));
                list[*from as usize..(from + length) as usize].fill(generation);
                history.push((generation, replaced, before));
            }
            for (day, generation) in list.iter().enumerate() {
                prop_assert_eq!(pointer.on(day as i32), GenerationId(*generation));
            }
            let cut = pointer.cut(days(asked.0, asked.0 + asked.1));
            prop_assert_eq!(cut.first().map(|p| p.days.from), Some(asked.0));
            prop_assert_eq!(cut.last().map(|p| p.days.to), Some(asked.0 + asked.1));
            prop_assert!(cut.windows(2).all(|pair| pair[0].days.to == pair[1].days.from));
            for piece in &cut {
                for day in piece.days.from..piece.days.to {
                    prop_assert_eq!(GenerationId(list[day as usize]), piece.generation);
                }
            }
            for (generation, replaced, (before, _)) in history.into_iter().rev() {
                prop_assert_eq!(pointer.undo(GenerationId(generation), &replaced), Ok(()));
                prop_assert_eq!(&pointer, &before);
            }
        }
    }
}
