//! Replays: archived events counted again under other rules, compared, applied and undone.
//!
//! Everything that is decided is one document in the store, the book of generations. Each operation
//! reads it, makes the next version by a transition of the book, and replaces it by compare-and-
//! set, with an entry of the audit list in the same transaction. So the size of an apply does not
//! depend on rows, and two operators at once cannot both be right. A tenant reaches its own replays
//! only. A call that fails has changed nothing; if its outcome is unknown, the list shows it.

mod answer;
mod count;
mod diff;
mod diff_pages;
mod event_progress;
mod refusals;
mod request;
mod share;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::answer::ReplayFacts;
use self::count::{CountJob, RowCounter};
use self::diff::{Comparison, KeptRows};
use self::diff_pages::DiffCursor;
use self::event_progress::EventCounts;
use self::refusals::{check_filled, check_not_replaced, with_time};
use self::request::{CheckedRequest, day_text, first_whole_day};
use self::share::check_share;
use super::service::{DiffRequest, FillWaits, OperateError, ReplayActor, ReplayService};
use crate::api::replays::{Replay, ReplayDiff, ReplaysAnswer, StartReplay};
use crate::clock::Clock;
use crate::model::budget::QueryBudget;
use crate::model::generation::{DayRange, GenerationId};
use crate::model::generation_book::{BookError, Generation, GenerationBook, NewGeneration};
use crate::model::generation_status::{FillStatus, GenerationFate};
use crate::model::offset::{Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::store::{
    AuditEntry, GenerationStore, NameRange, StoreError, StoreSnapshot, random_nonce,
};

/// How often an operation is tried again because somebody else has changed the book meanwhile.
const MAX_ATTEMPTS: usize = 8;
/// Entries of the audit list that are read of a tenant, the newest.
const AUDIT_READ: usize = 10_000;
/// Entries of the audit list in one answer, the newest.
const AUDIT_SHOWN: usize = 100;
/// Most bytes of the book. It is replaced as a whole.
const MAX_BOOK_BYTES: usize = 16 << 20;

/// Numbers that replays go by.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy)]
pub struct ReplayLimits {
    /// Number of shards of the log.
    pub shard_count: u32,
    /// `replay.max_maintained`.
    pub max_maintained: usize,
    /// `replay.keep`, in milliseconds.
    pub keep_ms: i64,
}

/// Looks for days of whose events nobody can say any more what became of them: ascending, those
/// near the range too. Reads store and archive, and blocks.
pub type UndecidableDays =
    Arc<dyn Fn(DayRange, &QueryBudget) -> Result<Vec<i32>, OperateError> + Send + Sync>;

/// Replays of a store.
pub struct StoreReplays {
    store: Arc<dyn GenerationStore>,
    clock: Arc<dyn Clock>,
    limits: ReplayLimits,
    counter: RowCounter,
    undecidable: Option<UndecidableDays>,
    waits: Arc<dyn FillWaits>,
    events: EventCounts,
}

/// The next book, and what the audit list says of it.
struct BookChange {
    book: GenerationBook,
    id: GenerationId,
    action: &'static str,
    note: String,
}

/// A generation of the book, if it is the tenant's. Another one's is like one that never was.
fn of_tenant<'b>(
    book: &'b GenerationBook,
    tenant: &str,
    id: GenerationId,
) -> Result<&'b Generation, BookError> {
    let generation = book.generations().get(&id).filter(|generation| generation.tenant == tenant);
    generation.ok_or(BookError::Unknown(id))
}

/// What is said of a change that was made, if the store does not answer behind it: not what the
/// store says, which is that nothing was written.
fn done_but_unseen(action: &str, id: u64, error: &OperateError) -> OperateError {
    tracing::warn!(replay = id, action, %error, "a replay was changed and cannot be read back");
    OperateError::StoreUnavailable(format!(
        "replay {id}: {action} is done, but the store did not say afterwards how the replay stands: \
         `rollmill replay show {id}` does"
    ))
}

/// Where the archive of each shard begins, if not at 0.
fn floors(snapshot: &mut dyn StoreSnapshot) -> Result<BTreeMap<ShardId, Offset>, StoreError> {
    let floors = snapshot.archive_floors()?.into_iter();
    Ok(floors.map(|(shard, floor)| (shard, floor.offset)).collect())
}

/// What a generation is of, for the audit list.
fn describe(generation: &Generation) -> String {
    let to = generation.days.to().map_or_else(|| "open".to_owned(), day_text);
    let metrics = generation.metrics.join(", ");
    format!("{metrics} from {} to {to}", day_text(generation.days.from()))
}

impl StoreReplays {
    /// Creates the service on this store. `waits` knows what the fills of this node wait for. Without an archive to ask for undecidable days, these are
    /// not refused: the replay then waits, and says so.
    pub fn new(
        store: Arc<dyn GenerationStore>,
        undecidable: Option<UndecidableDays>,
        clock: Arc<dyn Clock>,
        limits: ReplayLimits,
        waits: Arc<dyn FillWaits>,
    ) -> Arc<Self> {
        let counter = RowCounter::start(store.clone(), clock.clone());
        let events = EventCounts::default();
        Arc::new(Self { store, clock, limits, counter, undecidable, waits, events })
    }

    /// Refuses days of whose events nobody can say any more which were duplicates.
    fn check_decidable(&self, days: DayRange, budget: &QueryBudget) -> Result<(), OperateError> {
        let Some(undecidable) = &self.undecidable else { return Ok(()) };
        let undecidable = undecidable(days, budget)?;
        match undecidable.last().filter(|_| undecidable.iter().any(|day| days.contains(*day))) {
            None => Ok(()),
            Some(last) => Err(OperateError::ReplayRefused(format!(
                "objects of these days are of an older release and do not say which of their \
                 events were duplicates, and the records that would tell have expired \
                 (archive.keep): the first day that can be replayed is {}",
                day_text(last + 1)
            ))),
        }
    }

    /// Replaces the book by what `next` makes of it, and reads the replay back.
    fn change(
        &self,
        who: &ReplayActor,
        budget: &QueryBudget,
        next: &dyn Fn(&mut dyn StoreSnapshot, &GenerationBook) -> Result<BookChange, OperateError>,
    ) -> Result<Replay, OperateError> {
        for _ in 0..MAX_ATTEMPTS {
            let (before, change) = {
                let mut snapshot = self.store.snapshot_for(budget)?;
                let book = snapshot.generation_book()?;
                (book.version(), next(&mut *snapshot, &book)?)
            };
            let entry = AuditEntry {
                generation: change.id,
                tenant: who.tenant.to_string(),
                action: change.action.to_owned(),
                at: self.clock.now(),
                by: who.by.clone(),
                note: change.note,
            };
            if self.store.swap_generations(before, &change.book, Some(&entry))? {
                let id = change.id.0;
                tracing::info!(replay = id, action = change.action, by = who.by, "replay changed");
                if matches!(change.action, "apply" | "undo") {
                    let (who, action) = (who.clone(), change.action);
                    self.counter.add(CountJob { who, id: change.id, action });
                }
                let shown = self.show(&who.tenant, id, budget);
                return shown.map_err(|error| done_but_unseen(change.action, id, &error));
            }
        }
        Err(OperateError::StoreUnavailable(
            "others change replays at the same time, nothing was written".to_owned(),
        ))
    }

    /// How far a generation is, as this snapshot has it.
    fn fill_status(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        id: GenerationId,
    ) -> Result<FillStatus, StoreError> {
        let floors = floors(snapshot)?;
        let (filled, claimed) = (snapshot.fill_progress(id)?, snapshot.set_versions()?);
        Ok(FillStatus::new(self.limits.shard_count, &filled, &claimed, &floors))
    }

    fn facts<'a>(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        book: &GenerationBook,
        id: GenerationId,
        audit: &'a [AuditEntry],
    ) -> Result<ReplayFacts<'a>, StoreError> {
        let is_built = GenerationFate::of(book, id) == GenerationFate::Built;
        let fill = is_built.then(|| self.fill_status(snapshot, id)).transpose()?;
        let is_filling = fill.as_ref().is_some_and(|fill| !fill.is_ready());
        let events = match book.generations().get(&id).filter(|_| is_filling) {
            Some(generation) => {
                let (filled, floors) = (snapshot.fill_progress(id)?, floors(snapshot)?);
                let of = (id, generation.days);
                Some(self.events.progress(snapshot, of, &filled, &floors)?)
            }
            None => None,
        };
        let dropped = snapshot.dropped_events(id)?.iter().map(|(_, dropped)| dropped.events).sum();
        let waits = if is_built { self.waits.waits(id) } else { BTreeMap::new() };
        Ok(ReplayFacts { fill, events, waits, dropped, audit, keep_ms: self.limits.keep_ms })
    }

    fn started(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        book: &GenerationBook,
        (who, request, at): (&ReplayActor, &CheckedRequest, Millis),
    ) -> Result<BookChange, OperateError> {
        for metric in &request.metrics {
            let page = NameRange { prefix: metric, after: "", limit: 1, budget: None };
            let found = snapshot.metrics(&who.tenant, &page)?;
            if !found.iter().any(|info| info.metric == *metric) {
                let message = format!(
                    "no event of a metric {metric:?} is in the store: `rollmill metrics` lists \
                     those there are. The first events of a new one are there after the next \
                     flush (flush.interval)"
                );
                return Err(OperateError::ReplayInvalid(message));
            }
        }
        let first = first_whole_day(&snapshot.archive_floors()?);
        if let Some(first) = first.filter(|first| request.days.from() < *first) {
            return Err(OperateError::ReplayRefused(format!(
                "the archive does not have all events before {0} any more (archive.keep): the \
                 first day that can be replayed is {0}",
                day_text(first)
            )));
        }
        check_share(book, &who.tenant, request)?;
        let mut book = book.clone();
        let new = NewGeneration {
            tenant: who.tenant.to_string(),
            metrics: request.metrics.clone(),
            days: request.days,
            rules: request.rules.clone(),
            started: (at, who.by.clone()),
        };
        let started = book.start(new, self.limits.max_maintained, random_nonce()?);
        let of = (&*who.tenant, request.days);
        let id = started.map_err(|error| with_time(&book, of, error, self.limits.keep_ms))?;
        let bytes = serde_json::to_vec(&book).map_or(usize::MAX, |text| text.len());
        if bytes > MAX_BOOK_BYTES {
            return Err(OperateError::ReplayRefused(format!(
                "all replays together need {bytes} bytes of rules and ranges, and may need \
                 {MAX_BOOK_BYTES}: use fewer rules or metrics, or wait until others have left"
            )));
        }
        let note = of_tenant(&book, &who.tenant, id).map(describe)?;
        Ok(BookChange { book, id, action: "start", note })
    }

    /// Refuses what is done to a replay that is being built before all of it is counted.
    fn check_ready(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        book: &GenerationBook,
        id: GenerationId,
    ) -> Result<(), OperateError> {
        match GenerationFate::of(book, id) {
            GenerationFate::Built => check_filled(id, &self.fill_status(snapshot, id)?),
            _ => Ok(()),
        }
    }

    fn applied(
        &self,
        snapshot: &mut dyn StoreSnapshot,
        book: &GenerationBook,
        (who, id): (&ReplayActor, GenerationId),
    ) -> Result<BookChange, OperateError> {
        let note = of_tenant(book, &who.tenant, id).map(describe)?;
        check_not_replaced(book, id, self.limits.keep_ms)?;
        self.check_ready(snapshot, book, id)?;
        let mut book = book.clone();
        book.apply(id, self.clock.now())?;
        Ok(BookChange { book, id, action: "apply", note })
    }
}

impl ReplayService for StoreReplays {
    fn list(&self, tenant: &str, budget: &QueryBudget) -> Result<ReplaysAnswer, OperateError> {
        let mut snapshot = self.store.snapshot_for(budget)?;
        let (book, audit) =
            (snapshot.generation_book()?, snapshot.audit_entries(tenant, AUDIT_READ)?);
        let mut replays = Vec::new();
        for (id, generation) in book.generations().iter().filter(|(_, g)| g.tenant == tenant) {
            let facts = self.facts(&mut *snapshot, &book, *id, &audit)?;
            replays.push(answer::replay(&book, (*id, generation), &facts));
        }
        let audit = audit.iter().take(AUDIT_SHOWN).map(answer::audit).collect();
        Ok(ReplaysAnswer { replays, audit })
    }

    fn show(&self, tenant: &str, id: u64, budget: &QueryBudget) -> Result<Replay, OperateError> {
        let (id, mut snapshot) = (GenerationId(id), self.store.snapshot_for(budget)?);
        let book = snapshot.generation_book()?;
        let generation = of_tenant(&book, tenant, id)?;
        let audit = snapshot.audit_entries(tenant, AUDIT_READ)?;
        let facts = self.facts(&mut *snapshot, &book, id, &audit)?;
        let entries = audit.iter().filter(|entry| entry.generation == id).take(AUDIT_SHOWN);
        let audit = entries.map(answer::audit).collect();
        let rules = answer::rules(generation).map_err(|error| {
            OperateError::StoreInvalid(format!("the rules of replay {id} are no JSON: {error}"))
        })?;
        let rule_counts = answer::rule_counts(&generation.rules, &snapshot.rule_counts(id)?);
        let replay = answer::replay(&book, (id, generation), &facts);
        Ok(Replay { audit, rules: Some(rules), rule_counts, ..replay })
    }

    fn start(
        &self,
        who: &ReplayActor,
        request: &StartReplay,
        budget: &QueryBudget,
    ) -> Result<Replay, OperateError> {
        let (request, at) = (CheckedRequest::new(request)?, self.clock.now());
        self.check_decidable(request.days, budget)?;
        self.change(who, budget, &|snapshot, book| {
            self.started(snapshot, book, (who, &request, at))
        })
    }

    fn apply(
        &self,
        who: &ReplayActor,
        id: u64,
        budget: &QueryBudget,
    ) -> Result<Replay, OperateError> {
        let id = GenerationId(id);
        self.change(who, budget, &|snapshot, book| self.applied(snapshot, book, (who, id)))
    }

    fn undo(
        &self,
        who: &ReplayActor,
        id: u64,
        budget: &QueryBudget,
    ) -> Result<Replay, OperateError> {
        let id = GenerationId(id);
        self.change(who, budget, &|_, book| {
            let note = of_tenant(book, &who.tenant, id).map(describe)?;
            let mut book = book.clone();
            book.undo(id)?;
            Ok(BookChange { book, id, action: "undo", note })
        })
    }

    fn cancel(
        &self,
        who: &ReplayActor,
        id: u64,
        budget: &QueryBudget,
    ) -> Result<Replay, OperateError> {
        let id = GenerationId(id);
        self.change(who, budget, &|_, book| {
            let note = of_tenant(book, &who.tenant, id).map(describe)?;
            check_not_replaced(book, id, self.limits.keep_ms)?;
            let mut book = book.clone();
            book.cancel(id, None, random_nonce()?)?;
            Ok(BookChange { book, id, action: "cancel", note })
        })
    }

    fn diff(
        &self,
        tenant: &str,
        id: u64,
        request: &DiffRequest,
        budget: &QueryBudget,
    ) -> Result<ReplayDiff, OperateError> {
        let cursor = match &request.after {
            None => None,
            Some(text) => Some(text.parse::<DiffCursor>().map_err(|()| {
                let message = "after: send what `next` of the part before says";
                OperateError::ReplayInvalid(message.to_owned())
            })?),
        };
        let keep = request.largest.map_or(KeptRows::All, KeptRows::Largest);
        let mut comparison = Comparison::new(keep);
        let of = (tenant, GenerationId(id));
        {
            // Once for each part: what is ready stays so until it leaves, and each step looks for
            // that.
            let mut snapshot = self.store.snapshot_for(budget)?;
            let book = snapshot.generation_book()?;
            of_tenant(&book, tenant, of.1)?;
            self.check_ready(&mut *snapshot, &book, of.1)?;
        }
        let next = diff_pages::read_page(&*self.store, of, cursor, &mut comparison, budget)?;
        let (totals, rows) = comparison.finish();
        Ok(ReplayDiff {
            id,
            totals: answer::totals(&totals),
            rows: rows.iter().map(answer::row).collect(),
            next: next.map(|cursor| cursor.to_string()),
        })
    }
}
