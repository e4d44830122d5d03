//! Fills one generation from the archived records of one shard, step by step.
//!
//! What is folded is lost with the process, and begins again at the cursor. Nothing here is kept
//! anywhere else: a second filler of the same shard does no harm, because the store compares the
//! cursor. Memory is bounded by one object's bytes, the key columns of one row group, a page of raw
//! events and the record that it ends in, what one transaction holds, and the places of the shard's
//! events that are set aside.

use std::sync::Arc;

use super::plan::{FillStep, next_step};
use super::set_aside::SetAsideEvents;
use super::undecided::{RecordedDecisions, UndecidedError, UndecidedFold};
use crate::model::flush::{FillGuard, FillProgress, GenerationDeltas};
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::generation_book::Generation;
use crate::model::manifest::{ArchiveFloor, ManifestRow};
use crate::model::offset::{LogId, Offset, OffsetRange, ShardId};
use crate::model::outcome::{Outcome, OutcomeNote};
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::archive::columns::{ColumnBatches, EventColumns, RawEvents};
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::store::{GenerationStore, StoreError, StoreSnapshot};
use crate::recompute::fold::FoldRules;
use crate::rules::RuleSet;
use crate::shards::fill::GenerationFill;
use crate::shards::generations::SourceEvent;

/// Events that a step folds before it ends, if it began with fewer: batches may be small.
const STEP_EVENTS: u64 = 2_048;

/// What a transaction holds at most, and what decides.
#[derive(Debug, Clone, Copy)]
pub struct FillLimits {
    /// Bytes of deltas at which they are committed.
    pub max_delta_bytes: usize,
    /// Records after which what there is is committed, so that a restart repeats little.
    pub max_records: u64,
    /// Most series that the writer admits, as for the live writer of a shard.
    pub max_series: u64,
    /// De-duplication, for objects of older releases, which do not say what was counted.
    pub fold: FoldRules,
}

/// Where replays read, and where they write.
#[derive(Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ReplaySources {
    pub store: Arc<dyn GenerationStore>,
    pub archive: Arc<dyn Archive>,
    pub limits: FillLimits,
}

/// What a step of a replay came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayStep {
    /// So many events were read; there is more to do.
    Read(u64),
    /// Nothing can be done until something changes.
    Waiting(ReplayWait),
    /// Another filler or a release was faster, or the generation leaves: the store has refused what
    /// was folded.
    Overtaken,
    /// Everything below the cut is in the store.
    Complete,
    /// The generation is not written any more.
    Ended,
}

/// What folding came to.
#[derive(Debug, PartialEq, Eq)]
pub enum FoldStep {
    /// The step is done.
    Done(ReplayStep),
    /// What was folded is to be committed now: [`ShardReplay::commit`].
    Commit,
}

/// What a replay waits for. It never goes on without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ReplayWait {
    #[error("the shard has not adopted the generation yet")]
    Cut,
    #[error("the archive has not reached offset {0} yet")]
    Archive(Offset),
    /// An object is missing, damaged or unreachable.
    #[error("{0}")]
    Object(String),
    /// The store cannot be read or written, such as on a full disk.
    #[error("the store does not take what was counted: {0}")]
    Store(String),
    #[error(
        "records below offset {0} have expired before they were replayed: cancel the replay, and \
         start one of later days"
    )]
    Expired(Offset),
    #[error(
        "{path} is of an older release and does not say which of its events were counted, and the \
         records that would tell have expired: cancel the replay, and start one of later days"
    )]
    Undecidable { path: String },
    #[error("this build cannot read its rules, a newer one wrote them: {0}")]
    Rules(String),
}

impl ReplayWait {
    /// Every reason, in the words of `rollmill_replays_waiting`.
    pub const REASONS: [&str; 7] =
        ["adopting", "archiving", "object", "store", "expired", "older_release", "newer_rules"];

    /// The reason in one word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Cut => "adopting",
            Self::Archive(_) => "archiving",
            Self::Object(_) => "object",
            Self::Store(_) => "store",
            Self::Expired(_) => "expired",
            Self::Undecidable { .. } => "older_release",
            Self::Rules(_) => "newer_rules",
        }
    }
}

/// How far a replay has come, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayProgress {
    /// What is in the store.
    pub stored: FillProgress,
    /// Events read in this life.
    pub events: u64,
}

/// The replay of one shard into one generation.
pub struct ShardReplay {
    sources: ReplaySources,
    generation: GenerationId,
    shard: ShardId,
    nonce: u64,
    /// What the writer has admitted before, if it is to admit the same again.
    recorded: Option<Vec<(SeriesId, Offset)>>,
    events: u64,
    loaded: Option<Loaded>,
    pending: Option<PendingFill>,
    /// When it last waited for the archive: the cursor, and how far the archive was.
    behind: Option<(Offset, Offset)>,
}

/// What was folded, to be committed.
struct PendingFill {
    loaded: Loaded,
    range: OffsetRange,
    deltas: GenerationDeltas,
    then: ReplayStep,
}

/// What was read from the store, and what was folded since.
struct Loaded {
    fill: GenerationFill,
    of: Generation,
    stored: FillProgress,
    /// Everything below has been offered to the fill.
    folded: Offset,
    rows: Vec<ManifestRow>,
    /// Everything below is in the archive.
    archived: Offset,
    floor: Option<ArchiveFloor>,
    aside: SetAsideEvents,
    undecided: UndecidedFold,
    object: Option<OpenObject>,
}

struct OpenObject {
    path: String,
    batches: ColumnBatches,
    /// The outcomes, if the object does not have them.
    outcomes: Option<OutcomeNote>,
}

impl ShardReplay {
    /// A replay that continues at the stored cursor. `nonce` is drawn by the caller, at random.
    pub fn new(
        sources: ReplaySources,
        generation: GenerationId,
        shard: ShardId,
        nonce: u64,
    ) -> Self {
        Self {
            sources,
            generation,
            shard,
            nonce,
            recorded: None,
            events: 0,
            loaded: None,
            pending: None,
            behind: None,
        }
    }

    /// The replay of a writer of a lost store, which is to admit the series that it had admitted.
    #[must_use]
    pub fn with_recorded(self, admitted: Vec<(SeriesId, Offset)>) -> Self {
        Self { recorded: Some(admitted), ..self }
    }

    /// How far it has come; `None` until it has read the store.
    pub fn progress(&self) -> Option<ReplayProgress> {
        let events = self.events;
        self.loaded.as_ref().map(|loaded| ReplayProgress { stored: loaded.stored, events })
    }

    /// Does the next bit of work: at most one row group and [`STEP_EVENTS`], and one transaction.
    /// Blocks.
    ///
    /// # Errors
    /// If the store fails. The next step begins again at the stored cursor.
    pub fn step(&mut self) -> Result<ReplayStep, StoreError> {
        match self.fold()? {
            FoldStep::Done(step) => Ok(step),
            FoldStep::Commit => self.commit(),
        }
    }

    /// The part of a step that needs the processor. It may run at a low priority, because it holds
    /// no lock of the store. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn fold(&mut self) -> Result<FoldStep, StoreError> {
        // Taken out, so that whatever fails below begins again at the stored cursor.
        let loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => match self.load()? {
                Ok(loaded) => loaded,
                Err(step) => return Ok(FoldStep::Done(step)),
            },
        };
        Ok(self.advance(loaded))
    }

    fn advance(&mut self, mut loaded: Loaded) -> FoldStep {
        if let Some(open) = loaded.object.take() {
            return match loaded.fold_next(open) {
                Ok(events) => self.commit_if_due(loaded, events),
                // What was folded of it is not to be trusted: it is folded again.
                Err(damage) => FoldStep::Done(ReplayStep::Waiting(damage)),
            };
        }
        let at = (loaded.folded, loaded.stored.cut);
        let step = match next_step(&loaded.rows, loaded.floor, loaded.of.days, at) {
            // A rebuild brings back what the archive still has, as it does for generation 0.
            FillStep::Expired if self.recorded.is_some() => {
                FillStep::PassOver(loaded.floor.map_or(at.1, |floor| floor.offset.min(at.1)))
            }
            step => step,
        };
        let wait = match step {
            FillStep::Complete => return self.commit_then(loaded, ReplayStep::Complete),
            FillStep::PassOver(to) => {
                loaded.folded = to;
                return self.commit_if_due(loaded, 0);
            }
            FillStep::AwaitArchive => {
                self.behind = Some((loaded.folded, loaded.archived));
                ReplayWait::Archive(at.1)
            }
            FillStep::Expired => ReplayWait::Expired(at.0),
            FillStep::Read(row) => {
                let row = row.clone();
                match open_object(&*self.sources.archive, &mut loaded, &row) {
                    Err(wait) => wait,
                    Ok(object) => {
                        loaded.object = Some(object);
                        self.loaded = Some(loaded);
                        return FoldStep::Done(ReplayStep::Read(0));
                    }
                }
            }
        };
        // What was folded before is committed, and the next step reads the manifest again: a
        // missing object may have expired, or moved.
        self.commit_then(loaded, ReplayStep::Waiting(wait))
    }

    /// Reads the store. The error is what to answer if there is nothing to fill.
    fn load(&mut self) -> Result<Result<Loaded, ReplayStep>, StoreError> {
        let (id, shard) = (self.generation, self.shard);
        let store = self.sources.store.clone();
        let mut snapshot = store.snapshot()?;
        let book = snapshot.generation_book()?;
        let Some(of) = book.generations().get(&id).filter(|_| book.newest_set().has(id)) else {
            return Ok(Err(ReplayStep::Ended));
        };
        let rules = match RuleSet::shared(&of.rules) {
            Ok(rules) => rules,
            Err(why) => {
                return Ok(Err(ReplayStep::Waiting(ReplayWait::Rules(why.to_string()))));
            }
        };
        let progress = snapshot.fill_progress(id)?;
        let Some((_, stored)) = progress.into_iter().find(|(of, _)| *of == shard) else {
            return Ok(Err(ReplayStep::Waiting(ReplayWait::Cut)));
        };
        if stored.is_complete() {
            return Ok(Err(ReplayStep::Complete));
        }
        let checkpoints = snapshot.checkpoints()?;
        let owned = checkpoints.into_iter().find(|(of, _)| *of == shard);
        let archived = owned.map_or(0, |(_, checkpoint)| checkpoint.archived);
        // A manifest may have a row for each ten minutes of a year: it is not read to find that
        // the archive is where it was.
        if self.behind == Some((stored.cursor, archived)) {
            return Ok(Err(ReplayStep::Waiting(ReplayWait::Archive(stored.cut))));
        }
        let writer = Writer { shard, part: WriterPart::Fill };
        let admitted = snapshot.generation_admissions(id, writer)?;
        let admitted = admitted.into_iter().map(|(series, _)| series).collect();
        let limits = self.sources.limits;
        let fill = GenerationFill::new((id, of, rules), shard, stored, admitted, limits.max_series);
        let fill = match &self.recorded {
            Some(recorded) => fill.with_recorded(recorded),
            None => fill,
        };
        let loaded = self.load_records(&mut *snapshot, fill, of.clone(), (stored, archived))?;
        self.nonce = self.nonce.wrapping_add(1);
        Ok(Ok(loaded))
    }

    fn load_records(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        fill: GenerationFill,
        of: Generation,
        (stored, archived): (FillProgress, Offset),
    ) -> Result<Loaded, StoreError> {
        let shard = self.shard;
        let quarantined = snapshot.quarantined_events(shard)?;
        let floors = snapshot.archive_floors()?;
        let floor = floors.into_iter().find(|(of, _)| *of == shard).map(|(_, floor)| floor);
        let decisions = RecordedDecisions::read(snapshot, shard, &quarantined, floor)?;
        Ok(Loaded {
            fill,
            of,
            stored,
            folded: stored.cursor,
            rows: snapshot.manifest(Some(shard))?,
            archived,
            floor,
            aside: SetAsideEvents::new(&quarantined, snapshot.released_events(shard)?),
            undecided: UndecidedFold::new(decisions, self.sources.limits.fold),
            object: None,
        })
    }

    fn commit_if_due(&mut self, loaded: Loaded, events: u64) -> FoldStep {
        self.events += events;
        let limits = self.sources.limits;
        let records = loaded.folded - loaded.stored.cursor;
        if loaded.fill.bytes() >= limits.max_delta_bytes || records >= limits.max_records {
            return self.commit_then(loaded, ReplayStep::Read(events));
        }
        self.loaded = Some(loaded);
        FoldStep::Done(ReplayStep::Read(events))
    }

    /// Has what was folded committed, after which the step came to `then`.
    fn commit_then(&mut self, mut loaded: Loaded, then: ReplayStep) -> FoldStep {
        match loaded.fill.take(loaded.folded) {
            Some((range, deltas)) => {
                self.pending = Some(PendingFill { loaded, range, deltas, then });
                FoldStep::Commit
            }
            None => {
                self.keep(loaded, &then);
                FoldStep::Done(then)
            }
        }
    }

    /// Whatever ends or waits reads the store again.
    fn keep(&mut self, loaded: Loaded, then: &ReplayStep) {
        self.loaded = matches!(then, ReplayStep::Read(_)).then_some(loaded);
    }

    /// Commits what [`ShardReplay::fold`] has asked for. Blocks.
    ///
    /// # Errors
    /// If the store fails.
    pub fn commit(&mut self) -> Result<ReplayStep, StoreError> {
        let Some(PendingFill { mut loaded, range, mut deltas, then }) = self.pending.take() else {
            return Ok(ReplayStep::Read(0));
        };
        deltas.released = loaded.aside.released(range).to_vec();
        let log: LogId = loaded.stored.log;
        let (generation, shard, nonce) = (self.generation, self.shard, self.nonce);
        let guard = FillGuard { generation, shard, log, range, nonce };
        match self.sources.store.fill(&guard, &deltas) {
            Ok(()) => {
                loaded.stored.cursor = range.to;
                self.keep(loaded, &then);
                Ok(then)
            }
            Err(StoreError::Refused { .. }) => Ok(ReplayStep::Overtaken),
            Err(error) => Err(error),
        }
    }
}

impl Loaded {
    /// Folds the next events of an object, and keeps it open unless it has ended.
    fn fold_next(&mut self, mut open: OpenObject) -> Result<u64, ReplayWait> {
        let mut events = 0;
        while events < STEP_EVENTS {
            let Some(batch) = open.batches.next() else { return Ok(events) };
            let batch = batch.map_err(|error| object(&error))?;
            let folded = self.fold(&batch, open.outcomes.as_ref());
            folded.map_err(|why| unfit_object(&open.path, why))?;
            events += batch.len() as u64;
        }
        self.object = Some(open);
        Ok(events)
    }

    /// Offers a batch of events to the fill. The error says what contradicts itself.
    fn fold(
        &mut self,
        batch: &EventColumns,
        noted: Option<&OutcomeNote>,
    ) -> Result<(), &'static str> {
        // What lies above the cut is folded by the live writer, what lies below the cursor is in
        // the store: the fill leaves out both.
        let (from, cut) = (self.stored.cursor, self.stored.cut);
        let days = self.of.days;
        let wanted = wanted_series(&self.of, batch);
        let mut noted = noted.map(OutcomeNote::reader);
        let mut folding = self.fill.batch(batch.series.table().len());
        for (at, &code) in batch.series.codes().iter().enumerate() {
            let (offset, index) = (batch.offsets[at], batch.indices[at]);
            let outcome = match (&batch.outcomes, &mut noted) {
                (Some(outcomes), _) => outcomes[at],
                (None, Some(noted)) => noted.outcome(offset, index),
                (None, None) => return Err("it does not say what became of its events"),
            };
            if outcome == Outcome::Duplicate || offset < from || offset >= cut {
                continue;
            }
            if outcome == Outcome::Quarantined && self.aside.has(offset, index) {
                continue;
            }
            let Some(series) = batch.series.get(at) else {
                return Err("it has an event that was counted, whose series id is not of its key");
            };
            let time = batch.times[at];
            if !wanted[code as usize] || !days.contains(Hour::of(time).day()) {
                continue;
            }
            let event = SourceEvent {
                series,
                value: batch.values.get(at).copied(),
                user: batch.users.get(at).copied(),
                time,
                raw: batch.raw.as_ref().map_or(&[], |raw| raw.get(at)),
                offset,
            };
            folding.fold(code, &event);
        }
        folding.finish();
        self.folded = batch.range.to.min(cut);
        Ok(())
    }
}

fn open_object(
    archive: &dyn Archive,
    loaded: &mut Loaded,
    row: &ManifestRow,
) -> Result<OpenObject, ReplayWait> {
    let raw = match loaded.fill.needs_properties() {
        true => RawEvents::Read,
        false => RawEvents::Skip,
    };
    let path = row.path.clone();
    let mut batches = archive.read_columns(row, raw).map_err(|error| object(&error))?.peekable();
    let undecided = |batch: &Result<EventColumns, _>| {
        batch.as_ref().is_ok_and(|batch| batch.outcomes.is_none())
    };
    let outcomes = if batches.peek().is_some_and(undecided) {
        let at = loaded.rows.partition_point(|other| other.range.from < row.range.from);
        let decided = loaded.undecided.outcomes(archive, &loaded.rows, at);
        Some(decided.map_err(|error| match error {
            UndecidedError::Hidden => ReplayWait::Undecidable { path: path.clone() },
            UndecidedError::Archive(error) => object(&error),
            UndecidedError::Unfoldable(why) => unfit_object(&path, &why),
        })?)
    } else {
        None
    };
    Ok(OpenObject { path, batches: Box::new(batches), outcomes })
}

/// For each series of the batch whether the generation has its metric.
fn wanted_series(of: &Generation, batch: &EventColumns) -> Vec<bool> {
    let table = batch.series.table().iter();
    table
        .map(|info| {
            let series = &info.series;
            series.tenant == of.tenant && of.metrics.binary_search(&series.metric).is_ok()
        })
        .collect()
}

fn object(error: &ArchiveError) -> ReplayWait {
    ReplayWait::Object(error.to_string())
}

fn unfit_object(path: &str, why: &str) -> ReplayWait {
    object(&ArchiveError::Corrupt { path: path.to_owned(), why: why.to_owned() })
}
