//! Reads the difference between a replay and what is served, part by part.
//!
//! Each step takes a snapshot of its own. Of the replay's side it holds [`CHUNK_ROWS`] rows and
//! what is left of the hour in which that limit is reached; the other side is read past it. A part
//! ends by rows and by time, so however large a replay is, every request gets on. What is not in
//! the store yet, the live deltas above the checkpoints, is on neither side.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::diff::{Comparison, RowKey, ScannedRow, WriterMerge};
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

/// Rows of the replay that one step compares, about; it ends with an hour.
const CHUNK_ROWS: usize = 20_000;
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
/// what its apply replaced, as long as that is kept, and otherwise what was ingested.
pub(super) fn compared_with(
    book: &GenerationBook,
    (tenant, metric): (&str, &str),
    id: GenerationId,
    day: i32,
) -> GenerationId {
    let served = book.pointer(tenant, metric).map_or(GenerationId::INGEST, |p| p.on(day));
    if served != id {
        return served;
    }
    let apply = book.applies().iter().rev().find(|apply| apply.generation == id);
    let mut pieces = apply.and_then(|apply| apply.replaced.get(metric)).into_iter().flatten();
    let piece: Option<&Piece> = pieces.find(|piece| piece.days.contains(day));
    piece.map_or(GenerationId::INGEST, |piece| piece.generation)
}

/// Identifies what a replay is compared with on all of its days: equal as long as that is the same.
fn side_of(book: &GenerationBook, generation: &Generation, id: GenerationId) -> u64 {
    let (tenant, days) = (&generation.tenant, generation.days);
    let mut runs = Vec::new();
    for metric in &generation.metrics {
        let served = book.pointer(tenant, metric).map_or(&[][..], Pointer::pieces);
        let replaced = book.applies().iter().filter_map(|apply| apply.replaced.get(metric));
        let pieces = served.iter().chain(replaced.flatten());
        let edges = pieces.flat_map(|piece| [Some(piece.days.from()), piece.days.to()]);
        let edges = edges.flatten().filter(|day| days.contains(*day)).chain([days.from()]);
        let edges: BTreeSet<i32> = edges.collect();
        let other = |day: i32| (day, compared_with(book, (tenant, metric), id, day).0);
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
/// If the replay is not the tenant's, if something else is served than when the first part was
/// read, if the store fails, or if the request has ended.
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
        let side = side_of(&book, generation, id);
        let mut cursor = place.unwrap_or(DiffCursor { side, metric: 0, at: None });
        if cursor.side != side {
            let message = format!(
                "what replay {id} is compared with has changed meanwhile, by an apply or an undo: \
                 begin again"
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
        let chunk = DiffChunk {
            of: (tenant, metric),
            before,
            after: id,
            from: (hour, after),
            to: Hour(end.saturating_mul(24)),
        };
        cursor.at = Some(chunk.read(&mut *snapshot, comparison, budget)?);
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

impl DiffChunk<'_> {
    /// Compares the chunk, or the hours at its beginning that are as much as one step may read.
    /// Returns where the next step begins.
    fn read(
        &self,
        snapshot: &mut dyn GenerationSnapshot,
        comparison: &mut Comparison,
        budget: &QueryBudget,
    ) -> Result<DiffPlace, StoreError> {
        let (mut replayed, mut end) = (ReplayedRows::new(), self.to);
        self.scan(snapshot, (self.after, self.to), budget, &mut |row| {
            let hour = row.key.hour;
            if replayed.len() >= CHUNK_ROWS && replayed.back().is_some_and(|r| r.key.hour < hour) {
                end = hour;
                return ScanStep::Stop;
            }
            budget.charge(ROW_BYTES);
            replayed.push_back(row);
            ScanStep::GoOn
        })?;
        let held = replayed.len() * ROW_BYTES;
        let (mut taken, mut last, mut stopped) = (0, None, None);
        self.scan(snapshot, (self.before, end), budget, &mut |served| {
            let key = served.key;
            if taken >= CHUNK_ROWS && last.is_some_and(|last| last < key.hour) {
                end = key.hour;
                return ScanStep::Stop;
            }
            (taken, last) = (taken + 1, Some(key.hour));
            stopped = add_below(&mut replayed, comparison, |row| row < key);
            if stopped.is_none() {
                let same = replayed.pop_front_if(|row| row.key == key);
                comparison.add(Some(served), same);
                stopped = comparison.has(PAGE_ROWS).then_some(key);
            }
            if stopped.is_some() { ScanStep::Stop } else { ScanStep::GoOn }
        })?;
        let stopped =
            stopped.or_else(|| add_below(&mut replayed, comparison, |row| row.hour < end));
        budget.release(held);
        Ok(stopped.map_or((end, None), |key| (key.hour, Some(key.series))))
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
        let (first, after) = self.from;
        let mut row = |_, series: &Arc<SeriesInfo>, hour: Hour, rollup: Rollup, _: &[u8]| {
            if hour == first && after.is_some_and(|after| series.id <= after) {
                return Ok(());
            }
            let finished = merge.push(series, hour, rollup);
            stopped = finished.is_some_and(|row| matches!(visit(row), ScanStep::Stop));
            match stopped || budget.abort_reason().is_some() {
                true => Err(StoreError::QueryEnded),
                false => Ok(()),
            }
        };
        let read = snapshot.generation_rows(generation, self.of, (first, to), &mut row);
        if stopped {
            return Ok(());
        }
        read?;
        merge.finish().map(visit);
        Ok(())
    }
}

/// Compares rows of the replay that nobody else has, as long as they are wanted. Returns the last
/// one if the part is full with it.
fn add_below(
    replayed: &mut ReplayedRows,
    comparison: &mut Comparison,
    is_wanted: impl Fn(RowKey) -> bool,
) -> Option<RowKey> {
    while let Some(row) = replayed.pop_front_if(|row| is_wanted(row.key)) {
        let key = row.key;
        comparison.add(None, Some(row));
        if comparison.has(PAGE_ROWS) {
            return Some(key);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

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
