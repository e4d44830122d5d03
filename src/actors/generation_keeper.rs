//! The keeper of generations: gathers the time for which applies can be undone, forgets sets, and
//! deletes the rows of what leaves, in transactions of bounded size.
//!
//! It also puts the book into the archive, from which a lost store is rebuilt
//! ([`GenerationDocuments`]).
//!
//! It runs on every node with shards. [`GenerationKeeping`] decides; every write is a compare-and-
//! set or may be repeated, so keepers need not know of each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::generation_documents::{GenerationDocuments, PutDocuments};
use crate::clock::Clock;
use crate::model::generation_book::LeavingRange;
use crate::model::generation_keeping::{GenerationKeeping, KeepingLimits, KeepingSample};
use crate::model::generation_status::{
    FillStatus, GenerationCounts, check_served, whole_generations,
};
use crate::persistence::store::{GenerationStore, StoreError, random_nonce};
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

/// An archive that is down looks the same at every turn.
static PUT_LOG: RepeatedLog = RepeatedLog::new();

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
}

/// What a turn leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeeperTurn {
    /// Nothing that is due.
    Idle,
    /// Rows that leave, once no shard writes and no query reads them any more.
    Leaving,
    /// Rows to delete now.
    Unfinished,
}

impl KeeperTurn {
    fn next(self) -> Duration {
        match self {
            Self::Idle => TURN_EVERY,
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
            let done = keeper.turn(&mut kept.keeping);
            // Last: an archive that is down must not keep anything else waiting.
            let put = keeper.documents.put(&mut kept.put);
            (kept, done, put)
        };
        let (kept, done, put) = tokio::task::spawn_blocking(turn).await?;
        *state = kept;
        if let Err(why) = put {
            metrics::counter!(telemetry::REPLAY_KEEPER_FAILURES).increment(1);
            if let Some(silent) = PUT_LOG.due(&why.to_string()) {
                tracing::warn!(
                    %why,
                    silent,
                    "what was decided about replays and events that were set aside is not in the \
                     archive yet, it is put again: without it, a rebuild would not bring it back \
                     (told once a minute)"
                );
            }
        }
        let next = match done {
            Ok(turn) => turn.next(),
            Err(why) => {
                metrics::counter!(telemetry::REPLAY_KEEPER_FAILURES).increment(1);
                tracing::warn!(%why, "the upkeep of replays failed, it is tried again");
                TURN_EVERY
            }
        };
        myself.send_after(next, || KeeperMessage::Turn);
        Ok(())
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
    pub fn turn(&self, keeping: &mut GenerationKeeping) -> Result<KeeperTurn, StoreError> {
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
        let mut filled = Vec::new();
        for id in whole_generations(&book) {
            filled.push((id, snapshot.fill_progress(id)?));
        }
        drop(snapshot);
        check_served(&book, &filled);
        let (shard_count, nonce) = (self.shard_count, random_nonce()?);
        let sample = KeepingSample { book: &book, versions: &versions, shard_count, now, nonce };
        let plan = keeping.plan(&sample, &self.limits);
        if let Some(next) = plan.book {
            // Lost to somebody else: the next turn looks again.
            if self.store.swap_generations(book.version(), &next, None)? {
                keeping.stored(&next, now);
            }
        }
        let mut batches = TURN_BATCHES;
        for range in &plan.delete {
            if !self.delete(range, &mut batches)? {
                return Ok(KeeperTurn::Unfinished);
            }
        }
        let remain = book.leaving().len() > plan.delete.len();
        Ok(if remain { KeeperTurn::Leaving } else { KeeperTurn::Idle })
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
                    "the rows of a replay are deleted"
                );
            }
            return Ok(true);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::model::generation::DayRange;
    use crate::model::generation_book::NewGeneration;
    use crate::model::offset::LogId;
    use crate::persistence::archive::memory::MemoryArchive;
    use crate::persistence::store::SnapshotSource;
    use crate::persistence::store::memory::MemoryStore;

    #[test]
    fn what_was_cancelled_is_forgotten_once_no_query_can_read_it() {
        let (store, clock) = (MemoryStore::new(), ManualClock::at(1_000));
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
        let mut keeping = GenerationKeeping::default();
        assert_eq!(keeper.turn(&mut keeping), Ok(KeeperTurn::Idle), "there never was one");
        let book = || store.snapshot().expect("snapshot").generation_book().expect("book");
        let new = NewGeneration {
            tenant: "t".to_owned(),
            metrics: vec!["m".to_owned()],
            days: DayRange::ALWAYS,
            rules: "{}".into(),
            started: (1, "k".to_owned()),
        };
        let mut next = book().as_ref().clone();
        let id = next.start(new, 3, 1).expect("started");
        next.cancel(id, None, 2).expect("cancelled");
        assert_eq!(store.swap_generations(0, &next, None), Ok(true));
        assert_eq!(keeper.turn(&mut keeping), Ok(KeeperTurn::Leaving));
        clock.advance(29_999);
        assert_eq!(keeper.turn(&mut keeping), Ok(KeeperTurn::Leaving));
        assert_eq!(book().leaving().len(), 1);
        clock.advance(1);
        assert_eq!(keeper.turn(&mut keeping), Ok(KeeperTurn::Idle));
        assert!(book().leaving().is_empty() && book().generations().is_empty());
    }
}
