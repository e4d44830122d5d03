//! Reads the difference between a replay and what is served, part by part.
//!
//! Each step takes a snapshot of its own. Of the replay's side it holds [`CHUNK_ROWS`] rows at
//! most, and reads the other side past them; it may end within an hour, and the next one goes on
//! there. A part ends by rows and by time, so however large a replay or an hour is, every request
//! gets on. What is not in the store yet, the live deltas above the checkpoints, is on neither
//! side, nor are days whose rows of the replay are being deleted.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::diff::{Comparison, RowKey, ScannedRow, WriterMerge};
use super::refusals::check_stays;
use crate::clock::Stopwatch;
use crate::model::budget::QueryBudget;
use crate::model::flush::SeriesInfo;
use crate::model::generation::{GenerationId, Piece, Pointer};
use crate::model::generation_book::{Generation, GenerationBook};
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::operate::service::OperateError;
use crate::persistence::store::{
    GenerationSnapshot, NameRange, SnapshotSource, StoreError, StoreSnapshot,
};

/// Most rows of the replay that one step holds: 46 MB. Every step reads the hour that it begins in
/// from its beginning, and the names of all series, so an hour of two million series is read eight
/// times. Few in unit tests, whose hours are to need several steps.
const CHUNK_ROWS: usize = if cfg!(test) { 2_000 } else { 1 << 18 };
/// Rows that one step holds however little memory the tenant has: less than the least it can have.
const MIN_CHUNK_ROWS: usize = 1_000;
/// A step may end with this part of its rows because the part has taken its time: reading a large
/// hour again for fewer would take longer than the request may.
const SLOW_PART: usize = 5;
/// Days that one step looks at.
const CHUNK_DAYS: i32 = 400;
/// Rows that one part compares, about.
const PAGE_COMPARED: u64 = 400_000;
/// Rows that one part returns.
const PAGE_ROWS: usize = 5_000;
/// Time after which a part ends with the step that it is in: far below `query.timeout`.
const PAGE_TIME: Duration = Duration::from_secs(4);
/// Estimated bytes of a row in memory, besides its labels, which the catalogue shares.
const ROW_BYTES: usize = size_of::<ScannedRow>();

/// Rows of the replay that a step of a request holds: a quarter of what the tenant may, because
/// there are others.
fn chunk_rows(max_bytes: Option<u64>) -> usize {
    let Some(max) = max_bytes else { return CHUNK_ROWS };
    let rows = usize::try_from(max / 4).unwrap_or(usize::MAX) / ROW_BYTES;
    rows.clamp(MIN_CHUNK_ROWS, CHUNK_ROWS)
}

/// Where a part begins: the metric by its number, and the row behind which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DiffCursor {
    /// Identifies what the parts before have compared with, see [`side_of`].
    side: u64,
    metric: usize,
    /// `None`: at the first day.
    at: Option<(Hour, Option<SeriesId>)>,
}

impl std::fmt::Display for DiffCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}.{}", self.side, self.metric)?;
        let Some((hour, series)) = self.at else { return Ok(()) };
        write!(f, ".{}", hour.0)?;
        series.map_or(Ok(()), |series| write!(f, ".{:032x}", u128::from_be_bytes(series.0)))
    }
}

impl std::str::FromStr for DiffCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let side = parts.next().and_then(|part| u64::from_str_radix(part, 16).ok()).ok_or(())?;
        let metric = parts.next().and_then(|part| part.parse().ok()).ok_or(())?;
        let hour = parts.next().map(|part| part.parse().map(Hour).map_err(drop)).transpose()?;
        let series = parts.next().map(|part| u128::from_str_radix(part, 16).map_err(drop));
        let series = series.transpose()?.map(|id| SeriesId(id.to_be_bytes()));
        let at = hour.map(|hour| (hour, series));
        parts.next().map_or(Ok(Self { side, metric, at }), |_| Err(()))
    }
}

/// What a replay is compared with on a day: what is served there. If that is the replay itself,
/// what its apply replaced, as long as that is kept, and otherwise what was ingested. `None` if the
/// replay is not written on that day any more: its rows are being deleted.
pub(super) fn compared_with(
    book: &GenerationBook,
    (tenant, metric): (&str, &str),
    id: GenerationId,
    day: i32,
) -> Option<GenerationId> {
    let mut written = book.sets().last()?.of(tenant, metric, id);
    written.find(|range| range.days.contains(day))?;
    let served = book.pointer(tenant, metric).map_or(GenerationId::INGEST, |p| p.on(day));
    if served != id {
        return Some(served);
    }
    let apply = book.applies().iter().rev().find(|apply| apply.generation == id);
    let mut pieces = apply.and_then(|apply| apply.replaced.get(metric)).into_iter().flatten();
    let piece: Option<&Piece> = pieces.find(|piece| piece.days.contains(day));
    Some(piece.map_or(GenerationId::INGEST, |piece| piece.generation))
}

/// Identifies what a replay is compared with on all of its days: equal as long as that is the same.
fn side_of(book: &GenerationBook, generation: &Generation, id: GenerationId) -> u64 {
    let (tenant, days) = (&generation.tenant, generation.days);
    let mut runs = Vec::new();
    for metric in &generation.metrics {
        let served = book.pointer(tenant, metric).map_or(&[][..], Pointer::pieces);
        let replaced = book.applies().iter().filter_map(|apply| apply.replaced.get(metric));
        let pieces = served.iter().chain(replaced.flatten()).map(|piece| piece.days);
        let written = book.sets().last().into_iter().flat_map(|set| set.of(tenant, metric, id));
        let edges = pieces.chain(written.map(|range| range.days));
        let edges = edges.flat_map(|days| [Some(days.from()), days.to()]);
        let edges = edges.flatten().filter(|day| days.contains(*day)).chain([days.from()]);
        let edges: BTreeSet<i32> = edges.collect();
        let other = |day: i32| {
            let other = compared_with(book, (tenant, metric), id, day);
            (day, other.map_or(u64::MAX, |other| other.0))
        };
        let mut of_metric: Vec<(i32, u64)> = edges.into_iter().map(other).collect();
        of_metric.dedup_by_key(|(_, other)| *other);
        runs.push(of_metric);
    }
    let mut bytes = Vec::new();
    for run in &runs {
        bytes.extend_from_slice(&run.len().to_be_bytes());
        for (day, other) in run {
            bytes.extend_from_slice(&day.to_be_bytes());
            bytes.extend_from_slice(&other.to_be_bytes());
        }
    }
    xxh3_64(&bytes)
}

/// Reads one part from where `place` says, or the first. Returns where the next begins, if it is
/// not the last.
///
/// # Errors
/// If the replay is not the tenant's or is being deleted, if something else is served than when the
/// first part was read, if the store fails, or if the request has ended.
pub(super) fn read_page(
    store: &dyn SnapshotSource,
    (tenant, id): (&str, GenerationId),
    mut place: Option<DiffCursor>,
    comparison: &mut Comparison,
    budget: &QueryBudget,
) -> Result<Option<DiffCursor>, OperateError> {
    let (mut stored, began) = (None, Stopwatch::start());
    loop {
        let mut snapshot = store.snapshot_for(budget)?;
        let book = snapshot.generation_book()?;
        let generation = super::of_tenant(&book, tenant, id)?;
        check_stays(&book, (id, generation))?;
        let side = side_of(&book, generation, id);
        let mut cursor = place.unwrap_or(DiffCursor { side, metric: 0, at: None });
        if cursor.side != side {
            let message = format!(
                "what replay {id} is compared with has changed meanwhile, by an apply or an undo, \
                 or because one that cannot be undone any more left: begin again"
            );
            return Err(OperateError::ReplayRefused(message));
        }
        let Some(metric) = generation.metrics.get(cursor.metric) else { return Ok(None) };
        let days = match stored {
            Some(days) => days,
            None => stored_days(&mut *snapshot, &book, (tenant, metric), (id, generation), budget)?,
        };
        stored = Some(days);
        let (hour, after) = cursor.at.unwrap_or((Hour(days.0.saturating_mul(24)), None));
        let hour = hour.max(Hour(days.0.saturating_mul(24)));
        let day = hour.day();
        if day >= days.1 {
            let next = DiffCursor { side, metric: cursor.metric + 1, at: None };
            (place, stored) = (Some(next), None);
            continue;
        }
        let before = compared_with(&book, (tenant, metric), id, day);
        let mut end = day.saturating_add(1);
        while end < days.1.min(day.saturating_add(CHUNK_DAYS))
            && compared_with(&book, (tenant, metric), id, end) == before
        {
            end += 1;
        }
        let to = Hour(end.saturating_mul(24));
        let Some(before) = before else {
            place = Some(DiffCursor { at: Some((to, None)), ..cursor });
            continue;
        };
        let (of, from) = ((tenant, metric.as_str()), (hour, after));
        let chunk = DiffChunk { of, before, after: id, from, to };
        let is_late = || began.elapsed() >= PAGE_TIME;
        cursor.at = Some(chunk.read(&mut *snapshot, comparison, (budget, &is_late))?);
        let totals = comparison.totals();
        let compared = totals.added + totals.removed + totals.changed + totals.equal;
        if compared >= PAGE_COMPARED || comparison.has(PAGE_ROWS) || began.elapsed() >= PAGE_TIME {
            return Ok(Some(cursor));
        }
        place = Some(cursor);
    }
}

/// The days on which either side may have rows: `[from, to)`.
fn stored_days(
    snapshot: &mut dyn StoreSnapshot,
    book: &GenerationBook,
    (tenant, metric): (&str, &str),
    (id, generation): (GenerationId, &Generation),
    budget: &QueryBudget,
) -> Result<(i32, i32), StoreError> {
    let page = NameRange { prefix: metric, after: "", limit: 1, budget: Some(budget) };
    // A name is the first of those that begin with it.
    let ingested = snapshot.metrics(tenant, &page)?.into_iter().find(|m| m.metric == metric);
    let mut found = vec![ingested];
    let served = book.pointer(tenant, metric).map(|pointer| pointer.pieces().to_vec());
    let replaced = book.applies().iter().filter_map(|apply| apply.replaced.get(metric)).flatten();
    let others = served.iter().flatten().chain(replaced).map(|piece| piece.generation);
    let mut others: Vec<GenerationId> = others.chain([id]).filter(|g| !g.is_ingest()).collect();
    others.sort_unstable();
    others.dedup();
    for other in others {
        found.push(snapshot.generation_metric(tenant, metric, other)?);
    }
    let first = found.iter().flatten().filter_map(|m| m.first).min().map(Hour::day);
    let last = found.iter().flatten().filter_map(|m| m.last).max().map(Hour::day);
    let (Some(first), Some(last)) = (first, last) else { return Ok((0, 0)) };
    let from = first.max(generation.days.from());
    Ok((from, generation.days.to().unwrap_or(i32::MAX).min(last.saturating_add(1))))
}

/// Days of one metric that have one other side, or what is left of them.
struct DiffChunk<'a> {
    of: (&'a str, &'a str),
    before: GenerationId,
    after: GenerationId,
    from: DiffPlace,
    to: Hour,
}

/// The first hour, and the series of it up to which everything was compared.
type DiffPlace = (Hour, Option<SeriesId>);

/// Rows in the order of a scan, which may end early.
enum ScanStep {
    GoOn,
    Stop,
}

/// Rows of the replay that are not compared yet, ascending.
type ReplayedRows = VecDeque<ScannedRow>;

/// Compares rows in their order, and knows how far that is.
struct OrderedComparison<'c> {
    comparison: &'c mut Comparison,
    last: Option<RowKey>,
}

impl OrderedComparison<'_> {
    /// Whether the part is full.
    fn is_full(&self) -> bool {
        self.comparison.has(PAGE_ROWS)
    }

    fn add(&mut self, key: RowKey, before: Option<ScannedRow>, after: Option<ScannedRow>) {
        self.comparison.add(before, after);
        self.last = Some(key);
    }

    /// Compares rows of the replay that nobody else has, as long as they are wanted and fit.
    fn add_below(&mut self, replayed: &mut ReplayedRows, is_wanted: impl Fn(RowKey) -> bool) {
        while !self.is_full()
            && let Some(row) = replayed.pop_front_if(|row| is_wanted(row.key))
        {
            self.add(row.key, None, Some(row));
        }
    }
}

impl DiffChunk<'_> {
    /// Compares the chunk, or the rows at its beginning that are as much as one step may read.
    /// Returns where the next step begins.
    fn read(
        &self,
        snapshot: &mut dyn GenerationSnapshot,
        comparison: &mut Comparison,
        (budget, is_late): (&QueryBudget, &dyn Fn() -> bool),
    ) -> Result<DiffPlace, StoreError> {
        let most = chunk_rows(budget.max_bytes());
        let is_enough = |rows| rows >= most || (rows >= most / SLOW_PART && is_late());
        // The first row that is not of this step; `None` if it has the whole chunk.
        let (mut replayed, mut next) = (ReplayedRows::new(), None);
        self.scan(snapshot, (self.after, self.to), budget, &mut |row| {
            if is_enough(replayed.len()) {
                next = Some(row.key);
                return ScanStep::Stop;
            }
            budget.charge(ROW_BYTES);
            replayed.push_back(row);
            ScanStep::GoOn
        })?;
        let held = replayed.len() * ROW_BYTES;
        let (mut taken, mut ordered) = (0, OrderedComparison { comparison, last: None });
        let to = next.map_or(self.to, |next| Hour(next.hour.0.saturating_add(1)));
        self.scan(snapshot, (self.before, to), budget, &mut |served| {
            let key = served.key;
            if next.is_some_and(|next| key >= next) {
                return ScanStep::Stop;
            }
            if is_enough(taken) {
                next = Some(key);
                return ScanStep::Stop;
            }
            taken += 1;
            ordered.add_below(&mut replayed, |row| row < key);
            if ordered.is_full() {
                return ScanStep::Stop;
            }
            let same = replayed.pop_front_if(|row| row.key == key);
            ordered.add(key, Some(served), same);
            if ordered.is_full() { ScanStep::Stop } else { ScanStep::GoOn }
        })?;
        ordered.add_below(&mut replayed, |row| next.is_none_or(|next| row < next));
        budget.release(held);
        let is_whole = next.is_none() && !ordered.is_full();
        let place = |last: RowKey| (last.hour, Some(last.series));
        Ok(ordered.last.filter(|_| !is_whole).map_or((self.to, None), place))
    }

    /// Visits the rows of a generation up to an hour, all writers merged, until the visitor stops.
    fn scan(
        &self,
        snapshot: &mut dyn GenerationSnapshot,
        (generation, to): (GenerationId, Hour),
        budget: &QueryBudget,
        visit: &mut dyn FnMut(ScannedRow) -> ScanStep,
    ) -> Result<(), StoreError> {
        let (mut merge, mut stopped) = (WriterMerge::default(), false);
        let mut row = |_, series: &Arc<SeriesInfo>, hour: Hour, rollup: Rollup, _: &[u8]| {
            let finished = merge.push(series, hour, rollup);
            stopped = finished.is_some_and(|row| matches!(visit(row), ScanStep::Stop));
            match stopped || budget.abort_reason().is_some() {
                true => Err(StoreError::QueryEnded),
                false => Ok(()),
            }
        };
        let (from, after) = self.from;
        let read = snapshot.generation_rows_after(generation, self.of, (from, to), after, &mut row);
        if stopped {
            return Ok(());
        }
        read?;
        merge.finish().map(visit);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_holds_what_the_tenant_has_room_for() {
        assert_eq!(chunk_rows(None), CHUNK_ROWS);
        assert_eq!(chunk_rows(Some(1 << 40)), CHUNK_ROWS);
        assert_eq!(chunk_rows(Some(4 * 1_500 * ROW_BYTES as u64)), 1_500);
        // A quarter of the least `query.max_memory`.
        let least = 256 << 10;
        assert_eq!(chunk_rows(Some(least)), MIN_CHUNK_ROWS);
        assert!((MIN_CHUNK_ROWS * ROW_BYTES) as u64 <= least);
    }

    #[test]
    fn cursors_read_as_they_print() {
        let series = SeriesId([0xab; 16]);
        for at in [None, Some((Hour(-5), None)), Some((Hour(99), Some(series)))] {
            let cursor = DiffCursor { side: 0xfedc, metric: 3, at };
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for wrong in ["", "x", "1", "1.x", "1.2.z", "1.2.3.z", "1.2.3.4.5", "-1.0"] {
            assert_eq!(wrong.parse::<DiffCursor>(), Err(()), "{wrong}");
        }
    }
}
