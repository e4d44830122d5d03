//! Counts, after an apply or an undo, how many rows it has changed, and notes it in the audit list.
//!
//! The switch itself does not depend on rows, so nobody waits for this. A process that ends
//! meanwhile leaves the apply without the number, and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::diff::{Comparison, KeptRows, Totals};
use super::diff_pages;
use crate::clock::Clock;
use crate::model::budget::QueryBudget;
use crate::model::generation::GenerationId;
use crate::operate::service::{OperateError, ReplayActor};
use crate::persistence::store::{AuditEntry, GenerationStore};

/// Counts that wait; each is a few words.
const MAX_WAITING: usize = 64;
/// Rows after which a count ends: it is a scan beside live traffic. It has no budget, because what
/// a comparison holds is bounded, and this thread makes one at a time.
const MAX_COUNTED: u64 = 2_000_000;
/// How often the note is tried again because somebody else has changed the book meanwhile.
const MAX_ATTEMPTS: usize = 8;

/// What is to be counted.
#[derive(Debug, Clone)]
pub(super) struct CountJob {
    pub who: ReplayActor,
    pub id: GenerationId,
    /// `apply` or `undo`.
    pub action: &'static str,
}

/// A thread that counts, one job after the other. It ends with the service.
pub(super) struct RowCounter(Option<SyncSender<CountJob>>);

impl RowCounter {
    /// Starts the thread. Without one, applies and undos are not counted.
    pub(super) fn start(store: Arc<dyn GenerationStore>, clock: Arc<dyn Clock>) -> Self {
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let run = move || run(&*store, &*clock, &waiting);
        match std::thread::Builder::new().name("replay-count".to_owned()).spawn(run) {
            Ok(_) => Self(Some(jobs)),
            Err(error) => {
                tracing::warn!(%error, "no thread: rows that replays change are not counted");
                Self(None)
            }
        }
    }

    /// Counts later.
    pub(super) fn add(&self, job: CountJob) {
        let Some(jobs) = &self.0 else { return };
        if let Err(error) = jobs.try_send(job) {
            tracing::warn!(%error, "the rows that a replay has changed are not counted");
        }
    }
}

fn run(store: &dyn GenerationStore, clock: &dyn Clock, waiting: &Receiver<CountJob>) {
    while let Ok(job) = waiting.recv() {
        count_or_warn(&job, || count(store, clock, &job));
    }
}

/// All tenants share the thread, so a panic must not end it: it is told like any other error.
fn count_or_warn(job: &CountJob, count: impl FnOnce() -> Result<(), OperateError>) {
    let why = match catch_unwind(AssertUnwindSafe(count)) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it panicked, see the log above".to_owned(),
    };
    tracing::warn!(replay = job.id.0, why, "the rows that a replay has changed are not counted");
}

/// Counts the rows that differ, and notes how many.
pub(super) fn count(
    store: &dyn GenerationStore,
    clock: &dyn Clock,
    job: &CountJob,
) -> Result<(), OperateError> {
    let (mut counted, mut cursor, budget) = (Totals::default(), None, QueryBudget::default());
    loop {
        let mut comparison = Comparison::new(KeptRows::Largest(0));
        let of = (&*job.who.tenant, job.id);
        cursor = diff_pages::read_page(store, of, cursor, &mut comparison, &budget)?;
        let (page, _) = comparison.finish();
        counted.added += page.added;
        counted.removed += page.removed;
        counted.changed += page.changed;
        counted.equal += page.equal;
        if cursor.is_none() || compared(&counted) >= MAX_COUNTED {
            break;
        }
    }
    let entry = AuditEntry {
        generation: job.id,
        tenant: job.who.tenant.to_string(),
        action: "counted".to_owned(),
        at: clock.now(),
        by: job.who.by.clone(),
        note: note(job.action, &counted, cursor.is_none()),
    };
    for _ in 0..MAX_ATTEMPTS {
        let book = store.snapshot()?.generation_book()?;
        if store.swap_generations(book.version(), &book, Some(&entry))? {
            return Ok(());
        }
    }
    Err(OperateError::StoreUnavailable("others change replays at the same time".to_owned()))
}

fn compared(totals: &Totals) -> u64 {
    totals.added + totals.removed + totals.changed + totals.equal
}

/// Rows as they are called from the side of what is served: an undo removes what was added.
fn note(action: &str, counted: &Totals, whole: bool) -> String {
    let (added, removed) = match action {
        "undo" => (counted.removed, counted.added),
        _ => (counted.added, counted.removed),
    };
    let all = counted.added + counted.removed + counted.changed;
    let least = if whole { "" } else { "at least " };
    format!(
        "{action}: {least}{all} rows changed ({added} added, {removed} removed, {} with other \
         figures)",
        counted.changed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_does_not_end_the_thread_of_all_tenants() {
        let who = ReplayActor { tenant: "acme".into(), by: "k".to_owned() };
        let job = CountJob { who, id: GenerationId(1), action: "apply" };
        count_or_warn(&job, || panic!("planted"));
        let mut counted = false;
        count_or_warn(&job, || {
            counted = true;
            Ok(())
        });
        assert!(counted);
    }
}
