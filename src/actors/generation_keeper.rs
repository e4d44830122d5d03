//! The keeper of generations: gathers the time for which applies can be undone, forgets sets, and
//! deletes the rows of what leaves, in transactions of bounded size.
//!
//! It also puts the book into the archive, from which a lost store is rebuilt
//! ([`GenerationDocuments`]). Turns come often while rows leave; what grows with all replays that
//! were ever applied is not read in each.
//!
//! It runs on every node with shards. [`GenerationKeeping`] decides; every write is a compare-and-
//! set or may be repeated, so keepers need not know of each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::generation_documents::{GenerationDocuments, PutDocuments};
use crate::clock::{Clock, Millis};
use crate::model::generation_book::{GenerationBook, LeavingRange};
use crate::model::generation_keeping::{GenerationKeeping, KeepingLimits, KeepingSample};
use crate::model::generation_status::{
    FillStatus, GenerationCounts, check_served, whole_generations,
};
use crate::persistence::store::{GenerationStore, StoreError, StoreSnapshot, random_nonce};
use crate::telemetry::{self, RepeatedLog};

/// Interval between two turns.
const TURN_EVERY: Duration = Duration::from_secs(10);
/// Interval while rows are about to leave, and until the first turn: what a node has seen of them
/// is in memory, so one that is often started again must look soon.
const SOON: Duration = Duration::from_secs(1);
/// Interval after a turn that left rows to delete, so that live writes come first.
const BUSY_EVERY: Duration = Duration::from_millis(200);
/// Rows of one transaction: it is short beside a flush.
const BATCH_ROWS: usize = 1_000;
/// Transactions of one turn.
const TURN_BATCHES: usize = 20;

/// Milliseconds between two looks at what is to be put into the archive: a little less than between
/// the turns of an idle keeper, or every other one would come too soon.
const PUT_EVERY_MS: Millis = 9_000;

/// An archive that is down looks the same at every turn.
static PUT_LOG: RepeatedLog = RepeatedLog::new();
/// So does a store that is, and a row that is damaged.
static UPKEEP_LOG: RepeatedLog = RepeatedLog::new();

/// Dependencies and limits of the keeper.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct GenerationKeeper {
    pub store: Arc<dyn GenerationStore>,
    pub clock: Arc<dyn Clock>,
    pub shard_count: u32,
    pub limits: KeepingLimits,
    /// What a rebuild needs of replays.
    pub documents: GenerationDocuments,
}

/// What the keeper remembers between its turns.
#[derive(Debug, Default)]
pub struct KeeperState {
    keeping: GenerationKeeping,
    put: PutDocuments,
    /// When documents were put last, by the boot clock.
    put_at: Option<Millis>,
    /// The version of the book whose served generations were found whole.
    checked: u64,
    /// Days whose rows could not be deleted in the last turn.
    failed: Vec<LeavingRange>,
}

/// What a turn leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeeperTurn {
    /// Nothing that is due.
    Idle,
    /// Rows that leave, once no shard writes and no query reads them any more.
    Leaving,
    /// Rows that cannot be deleted; it is tried again.
    Failed,
    /// Rows to delete now.
    Unfinished,
}

impl KeeperTurn {
    fn next(self) -> Duration {
        match self {
            Self::Idle | Self::Failed => TURN_EVERY,
            Self::Leaving => SOON,
            Self::Unfinished => BUSY_EVERY,
        }
    }
}

/// Messages of the keeper.
#[allow(missing_docs, reason = "the name says it")]
#[derive(Debug)]
pub enum KeeperMessage {
    Turn,
}

impl ractor::Message for KeeperMessage {}

impl Actor for GenerationKeeper {
    type Msg = KeeperMessage;
    type State = KeeperState;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<KeeperMessage>,
        (): (),
    ) -> Result<KeeperState, ActorProcessingErr> {
        myself.send_after(SOON, || KeeperMessage::Turn);
        Ok(KeeperState::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<KeeperMessage>,
        _: KeeperMessage,
        state: &mut KeeperState,
    ) -> Result<(), ActorProcessingErr> {
        let (keeper, mut kept) = (self.clone(), std::mem::take(state));
        let turn = move || {
            let done = keeper.turn(&mut kept);
            // Last: an archive that is down must not keep anything else waiting.
            keeper.put(&mut kept);
            (kept, done)
        };
        let (kept, done) = tokio::task::spawn_blocking(turn).await?;
        *state = kept;
        let next = match done {
            Ok(turn) => turn.next(),
            Err(why) => {
                count_failure("the upkeep of replays failed", &why);
                TURN_EVERY
            }
        };
        myself.send_after(next, || KeeperMessage::Turn);
        Ok(())
    }
}

/// Counts a failure, and logs it at most once a minute. `what` names what failed.
fn count_failure(what: &str, why: &StoreError) {
    metrics::counter!(telemetry::REPLAY_KEEPER_FAILURES).increment(1);
    if let Some(silent) = UPKEEP_LOG.due(&format!("{what}: {why}")) {
        tracing::warn!(
            %why,
            silent,
            "{what}, it is tried again (logged at most once a minute)"
        );
    }
}

fn record_counts(counts: &GenerationCounts) {
    for (state, count) in counts.by_state() {
        metrics::gauge!(telemetry::GENERATIONS, "state" => state).set(count as f64);
    }
}

impl GenerationKeeper {
    /// Does what is due, within the limits of a turn. Blocks.
    ///
    /// # Errors
    /// If the store fails. What was done until then is done.
    pub fn turn(&self, state: &mut KeeperState) -> Result<KeeperTurn, StoreError> {
        let now = self.clock.reading();
        let mut snapshot = self.store.snapshot()?;
        let book = snapshot.generation_book()?;
        if book.version() == 0 {
            record_counts(&GenerationCounts::default());
            return Ok(KeeperTurn::Idle);
        }
        let versions = snapshot.set_versions()?;
        let counts = GenerationCounts::of(&book, |id| {
            let filled = snapshot.fill_progress(id)?;
            let status = FillStatus::new(self.shard_count, &filled, &versions, &BTreeMap::new());
            Ok::<_, StoreError>(status.is_ready())
        })?;
        record_counts(&counts);
        if state.checked != book.version() {
            check_whole(&book, &mut *snapshot)?;
            state.checked = book.version();
        }
        drop(snapshot);
        let (shard_count, nonce) = (self.shard_count, random_nonce()?);
        let sample = KeepingSample { book: &book, versions: &versions, shard_count, now, nonce };
        let plan = state.keeping.plan(&sample, &self.limits);
        if let Some(next) = plan.book {
            // Lost to somebody else: the next turn looks again.
            if self.store.swap_generations(book.version(), &next, None)? {
                state.keeping.stored(&next, now);
            }
        }
        match self.delete_all(&plan.delete, &mut state.failed)? {
            KeeperTurn::Idle if book.leaving().len() > plan.delete.len() => Ok(KeeperTurn::Leaving),
            turn => Ok(turn),
        }
    }

    /// Deletes the rows of all days that are due. Rows that cannot be deleted keep none of the
    /// others waiting.
    fn delete_all(
        &self,
        due: &[LeavingRange],
        failed: &mut Vec<LeavingRange>,
    ) -> Result<KeeperTurn, StoreError> {
        let mut batches = TURN_BATCHES;
        let mut before = std::mem::take(failed);
        before.retain(|of| due.contains(of));
        // Those that failed come last, or many of them would use up the limit of every turn.
        let (again, first): (Vec<_>, Vec<_>) = due.iter().partition(|of| before.contains(*of));
        for range in first.into_iter().chain(again) {
            match self.delete(range, &mut batches) {
                Ok(true) => before.retain(|of| of != range),
                Ok(false) => {
                    // Those that this turn did not come to come last again.
                    before.retain(|of| !failed.contains(of));
                    failed.extend(before);
                    return Ok(KeeperTurn::Unfinished);
                }
                // The store is away: the others would fail as well.
                Err(why @ (StoreError::Unavailable(_) | StoreError::Unknown(_))) => {
                    return Err(why);
                }
                Err(why) => {
                    let LeavingRange { generation, metric, days, .. } = range;
                    let what = format!(
                        "the rows of replay {generation}, metric {metric}, {days}, cannot be deleted"
                    );
                    count_failure(&what, &why);
                    failed.push(range.clone());
                }
            }
        }
        Ok(if failed.is_empty() { KeeperTurn::Idle } else { KeeperTurn::Failed })
    }

    /// Deletes rows of days that leave. Returns false if the limit of the turn was reached.
    fn delete(&self, range: &LeavingRange, batches: &mut usize) -> Result<bool, StoreError> {
        while *batches > 0 {
            *batches -= 1;
            let deleted = self.store.delete_generation_rows(range, BATCH_ROWS)?;
            metrics::counter!(telemetry::REPLAY_ROWS_DELETED).increment(deleted);
            if deleted > 0 {
                continue;
            }
            let before = self.store.snapshot()?.generation_book()?;
            let mut book = before.as_ref().clone();
            // Lost to somebody else: the range is still in the book, and found empty again.
            if book.left(range) && self.store.swap_generations(before.version(), &book, None)? {
                tracing::info!(
                    replay = range.generation.0,
                    metric = range.metric,
                    days = %range.days,
                    "the rows of a replay are deleted"
                );
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Puts into the archive what is not there yet, if it is time to look.
    fn put(&self, state: &mut KeeperState) {
        let now = self.clock.uptime();
        if state.put_at.is_some_and(|at| now - at < PUT_EVERY_MS) {
            return;
        }
        state.put_at = Some(now);
        let Err(why) = self.documents.put(&mut state.put) else { return };
        metrics::counter!(telemetry::REPLAY_KEEPER_FAILURES).increment(1);
        if let Some(silent) = PUT_LOG.due(&why.to_string()) {
            tracing::warn!(
                %why,
                silent,
                "what was decided about replays and events that were set aside may not be in the \
                 archive yet, it is put again: without it, a rebuild would not bring it back \
                 (logged at most once a minute)"
            );
        }
    }
}

/// I15, which only a change of the book can break.
fn check_whole(book: &GenerationBook, snapshot: &mut dyn StoreSnapshot) -> Result<(), StoreError> {
    let mut filled = Vec::new();
    for id in whole_generations(book) {
        filled.push((id, snapshot.fill_progress(id)?));
    }
    check_served(book, &filled);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::model::generation::{DayRange, GenerationId};
    use crate::model::generation_book::NewGeneration;
    use crate::model::offset::LogId;
    use crate::persistence::archive::memory::MemoryArchive;
    use crate::persistence::store::SnapshotSource;
    use crate::persistence::store::memory::{MemoryStore, StoreFault, StoreWrite};

    #[test]
    fn what_was_cancelled_is_forgotten_once_no_query_can_read_it() {
        let (store, clock, keeper) = world(&[]);
        let mut state = KeeperState::default();
        assert_eq!(keeper.turn(&mut state), Ok(KeeperTurn::Idle), "there never was one");
        let book = || store.snapshot().expect("snapshot").generation_book().expect("book");
        let mut next = book().as_ref().clone();
        let id = next.start(generation_of("m"), 3, 1).expect("started");
        next.cancel(id, None, 2).expect("cancelled");
        assert_eq!(store.swap_generations(0, &next, None), Ok(true));
        assert_eq!(keeper.turn(&mut state), Ok(KeeperTurn::Leaving));
        clock.advance(29_999);
        assert_eq!(keeper.turn(&mut state), Ok(KeeperTurn::Leaving));
        assert_eq!(book().leaving().len(), 1);
        clock.advance(1);
        assert_eq!(keeper.turn(&mut state), Ok(KeeperTurn::Idle));
        assert!(book().leaving().is_empty() && book().generations().is_empty());
    }

    fn generation_of(metric: &str) -> NewGeneration {
        NewGeneration {
            tenant: "t".to_owned(),
            metrics: vec![metric.to_owned()],
            days: DayRange::new(0, Some(9)).expect("days"),
            rules: "{}".into(),
            started: (1, "k".to_owned()),
        }
    }

    /// A keeper of a store with generations, each of a metric of its own, and its clock.
    fn world(metrics: &[&str]) -> (Arc<MemoryStore>, Arc<ManualClock>, GenerationKeeper) {
        let (store, clock) = (MemoryStore::new(), ManualClock::at(1_000));
        let mut book = GenerationBook::default();
        for metric in metrics {
            let before = book.version();
            book.start(generation_of(metric), 3, 1).expect("started");
            assert_eq!(store.swap_generations(before, &book, None), Ok(true));
        }
        let keeper = GenerationKeeper {
            store: store.clone(),
            clock: clock.clone(),
            shard_count: 1,
            limits: KeepingLimits { keep_ms: 7 * 86_400_000, query_ms: 30_000 },
            documents: GenerationDocuments {
                store: store.clone(),
                archive: Arc::new(MemoryArchive::new()),
                log: LogId([1; 16]),
            },
        };
        (store, clock, keeper)
    }

    #[test]
    fn rows_that_cannot_be_deleted_keep_no_others_waiting() {
        let (store, clock, keeper) = world(&["a", "b", "c"]);
        let book = || store.snapshot().expect("snapshot").generation_book().expect("book");
        let mut next = book().as_ref().clone();
        for id in 1..=3 {
            next.cancel(GenerationId(id), None, id).expect("cancelled");
        }
        assert_eq!(store.swap_generations(book().version(), &next, None), Ok(true));
        let mut state = KeeperState::default();
        assert_eq!(keeper.turn(&mut state), Ok(KeeperTurn::Leaving));
        clock.advance(30_000);
        // The first write of each turn fails: that of the first range.
        store.fail_next(StoreWrite::Generations, StoreFault::Before);
        assert_eq!(keeper.turn(&mut state), Ok(KeeperTurn::Failed));
        let left: Vec<_> = book().leaving().iter().map(|of| of.metric.clone()).collect();
        assert_eq!((left, state.failed.len()), (vec!["a".to_owned()], 1));
        assert_eq!(keeper.turn(&mut state), Ok(KeeperTurn::Idle));
        assert!(book().leaving().is_empty() && state.failed.is_empty());
    }

    #[test]
    fn many_rows_that_cannot_be_deleted_do_not_use_up_every_turn() {
        let (_, _, keeper) = world(&[]);
        let range = |metric: usize| LeavingRange {
            generation: GenerationId(1),
            tenant: "t".to_owned(),
            metric: metric.to_string(),
            days: DayRange::ALWAYS,
            set: 1,
        };
        let due: Vec<_> = (0..=TURN_BATCHES).map(range).collect();
        // The last one is the first of the next turn, which then comes to all others but one.
        let mut failed = due[..TURN_BATCHES].to_vec();
        assert_eq!(keeper.delete_all(&due, &mut failed), Ok(KeeperTurn::Unfinished));
        assert_eq!(failed, due[TURN_BATCHES - 1..TURN_BATCHES]);
    }

    #[test]
    fn the_archive_is_asked_every_ten_seconds_however_often_turns_come() {
        let (store, clock, keeper) = world(&["a"]);
        let mut state = KeeperState::default();
        let listed = || {
            let documents = keeper.documents.archive.documents();
            documents.list_documents("replays/").expect("listed").len()
        };
        keeper.put(&mut state);
        assert_eq!(listed(), 1);
        let before = store.snapshot().expect("snapshot").generation_book().expect("book");
        let mut book = before.as_ref().clone();
        book.cancel(GenerationId(1), None, 2).expect("cancelled");
        assert_eq!(store.swap_generations(before.version(), &book, None), Ok(true));
        for _ in 0..44 {
            clock.advance(200);
            keeper.put(&mut state);
        }
        assert_eq!(listed(), 1);
        clock.advance(200);
        keeper.put(&mut state);
        assert_eq!(listed(), 2);
    }
}
