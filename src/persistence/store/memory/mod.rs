//! The test double of the store: maps behind a mutex, one transaction at a time, with faults for
//! the simulation.
//!
//! It lets simulations run whole nodes without a disk, and passes the same conformance suite as the
//! real stores. A write is validated completely before the first map changes, so it is applied in
//! full or not at all. A snapshot is an immutable copy of everything (copied only if a write
//! happens while the snapshot lives). An armed fault makes a write fail in one of three ways:
//! before it is applied, after it was applied with the reply lost, or with the reply lost and
//! nothing applied.

mod boards;
mod generations;
mod manifest;
mod quarantine;
mod shards;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use generations::GenerationRows;
use snapshot::MemorySnapshot;

use super::{
    AuditEntry, ExpiryRow, ExpiryTarget, QuerySnapshot, QuerySource, RebuildStore, SnapshotSource,
    StoreDamage, StoreError, StoreInspection, StoreSizes, StoreSnapshot,
};
use crate::model::board::{BoardId, StoredBoard};
use crate::model::budget::QueryBudget;
use crate::model::flush::{
    AccountingDelta, DedupBlock, DedupRules, Delta, QuarantineRow, SeriesInfo,
};
use crate::model::generation::GenerationId;
use crate::model::generation_book::GenerationBook;
use crate::model::manifest::{ArchiveFloor, ManifestRow, ShardRestore};
use crate::model::offset::{Checkpoint, Epoch, Offset, OffsetRange, ShardId};
use crate::model::outcome::OutcomeNote;
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::Hour;

/// The writes that can be made to fail, one for each writing method of the store. `Claim`
/// also covers the recording of de-duplication rules, `Expiry` all writes of expiry states.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreWrite {
    Claim,
    Flush,
    MarkSuspect,
    InsertManifestRow,
    SetTier,
    ExpireObject,
    Expiry,
    SettleQuarantine,
    Restore,
    /// Changes of the book of generations, and deletion of rows that leave.
    Generations,
    Fill,
    Boards,
}

/// How a write fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFault {
    /// [`StoreError::Failed`]; nothing is applied.
    Before,
    /// [`StoreError::Unknown`], although the write is applied.
    AppliedReplyLost,
    /// [`StoreError::Unknown`], and nothing is applied.
    NotAppliedReplyLost,
}

type FaultHook = Box<dyn FnMut(StoreWrite) -> Option<StoreFault> + Send>;

/// The double of a store.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<Arc<State>>,
    faults: Mutex<Option<FaultHook>>,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
struct StoredShard {
    checkpoint: Checkpoint,
    attempts: u32,
    marked: Option<(Offset, u32)>,
    suspects: BTreeMap<(Offset, u32), u32>,
    /// Version of the adopted set of generations.
    set: u64,
    /// The records whose outcomes the flushes have noted.
    noted: OffsetRange,
}

#[derive(Debug, Clone)]
struct AdmittedSeries {
    info: Arc<SeriesInfo>,
    shard: ShardId,
    offset: Offset,
}

type MetricKey = (String, String);

#[derive(Debug, Clone, Default)]
struct State {
    shards: BTreeMap<ShardId, StoredShard>,
    series: BTreeMap<SeriesId, AdmittedSeries>,
    metrics: BTreeMap<MetricKey, BTreeSet<SeriesId>>,
    rollups: BTreeMap<MetricKey, BTreeMap<(Hour, SeriesId), Rollup>>,
    dedup: BTreeMap<(ShardId, Offset), DedupBlock>,
    outcomes: BTreeMap<(ShardId, Offset), (OffsetRange, OutcomeNote)>,
    dedup_rules: BTreeMap<ShardId, DedupRules>,
    accounting: BTreeMap<(String, Hour), AccountingDelta>,
    quarantine: BTreeMap<(ShardId, Offset, u32), QuarantineRow>,
    /// Those that were released, until their records expire.
    released: BTreeSet<(ShardId, Offset, u32)>,
    revisions: BTreeMap<(MetricKey, i32), u64>,
    manifest: BTreeMap<(ShardId, Offset), ManifestRow>,
    floors: BTreeMap<ShardId, ArchiveFloor>,
    /// Rollups below are dropped by age.
    retention_floor: Option<Hour>,
    expiry: BTreeMap<ExpiryTarget, ExpiryRow>,
    rebuilding: bool,
    book: Arc<GenerationBook>,
    audit: Vec<AuditEntry>,
    generations: BTreeMap<GenerationId, GenerationRows>,
    /// By tenant and id.
    boards: BTreeMap<(String, BoardId), StoredBoard>,
}

/// The complete contents of a store at some moment.
#[derive(Debug, Clone)]
pub struct StoreBackup(Arc<State>);

impl MemoryStore {
    /// The contents as of now, without copying.
    pub fn backup(&self) -> StoreBackup {
        StoreBackup(Arc::clone(&self.lock()))
    }

    /// Replaces the contents by an earlier state, like a failover that lost commits.
    pub fn restore_backup(&self, backup: &StoreBackup) {
        *self.lock() = Arc::clone(&backup.0);
    }

    /// An empty store without armed faults.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// An empty store in the state of a rebuild, in which it accepts `restore`.
    pub fn rebuilding() -> Arc<Self> {
        let store = Self::new();
        Arc::make_mut(&mut store.lock()).rebuilding = true;
        store
    }

    /// Drops the rollups of all generations below an hour, as age does it in PostgreSQL.
    pub fn drop_before(&self, hour: Hour) {
        let mut state = self.lock();
        let state = Arc::make_mut(&mut state);
        state.retention_floor = state.retention_floor.max(Some(hour));
        for rows in state.rollups.values_mut() {
            rows.retain(|(at, _), _| *at >= hour);
        }
        for rows in state.generations.values_mut().flat_map(|of| of.rollups.values_mut()) {
            rows.retain(|(at, ..), _| *at >= hour);
        }
    }

    /// Calls `hook` before every write to decide whether and how it fails.
    pub fn set_faults(&self, hook: impl FnMut(StoreWrite) -> Option<StoreFault> + Send + 'static) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    /// Makes the next write of this kind fail, once. Replaces the hook.
    pub fn fail_next(&self, write: StoreWrite, fault: StoreFault) {
        let mut armed = Some(fault);
        self.set_faults(move |w| if w == write { armed.take() } else { None });
    }

    /// Removes the hook: writes succeed again.
    pub fn clear_faults(&self) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    // Poison is ignored: every write is validated before it changes anything, so a panic cannot
    // leave a half-applied state.
    fn lock(&self) -> MutexGuard<'_, Arc<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(
        &self,
        write: StoreWrite,
        apply: impl FnOnce(&mut Arc<State>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // The hook decides before the state is locked: it may look at the store itself.
        let fault = self
            .faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .and_then(|hook| hook(write));
        let mut state = self.lock();
        match fault {
            None => apply(&mut state),
            Some(StoreFault::Before) => {
                Err(StoreError::Failed(format!("injected before {write:?}")))
            }
            Some(StoreFault::NotAppliedReplyLost) => {
                Err(StoreError::Unknown(format!("injected, {write:?} not applied")))
            }
            Some(StoreFault::AppliedReplyLost) => {
                // A write that is refused anyway is refused with its own error, not reported as
                // unknown.
                apply(&mut state)?;
                Err(StoreError::Unknown(format!("injected, {write:?} applied")))
            }
        }
    }
}

impl State {
    fn owned(&self, shard: ShardId, epoch: Epoch) -> Result<&StoredShard, StoreError> {
        self.shards
            .get(&shard)
            .filter(|row| row.checkpoint.epoch == epoch)
            .ok_or(StoreError::Refused { shard })
    }

    /// Deletes the outcome notes that lie wholly below the archived offset.
    fn forget_notes(&mut self, shard: ShardId, archived: Offset) {
        self.outcomes.retain(|(of, _), (range, _)| *of != shard || range.to > archived);
    }

    fn check_catalogue<'a>(
        &self,
        written: impl Iterator<Item = &'a Arc<SeriesInfo>>,
    ) -> Result<(), StoreError> {
        for info in written {
            if let Some(known) = self.series.get(&info.id)
                && known.info.series != info.series
            {
                return Err(super::collision(&known.info, info));
            }
        }
        Ok(())
    }

    fn admit(&mut self, info: &Arc<SeriesInfo>, shard: ShardId, offset: Offset) {
        // The first admission stays: several shards may write to the same overflow series.
        self.series.entry(info.id).or_insert_with(|| AdmittedSeries {
            info: Arc::clone(info),
            shard,
            offset,
        });
        self.metrics.entry(metric_key(info)).or_default().insert(info.id);
    }

    fn merge(&mut self, deltas: &[Delta], shard: ShardId, at: Offset, revise: impl Fn(u64) -> u64) {
        let mut touched = BTreeSet::new();
        for delta in deltas {
            self.admit(&delta.series, shard, at);
            let key = metric_key(&delta.series);
            let rows = self.rollups.entry(key.clone()).or_default();
            rows.entry((delta.hour, delta.series.id)).or_default().merge(&delta.rollup);
            touched.insert((key, delta.hour.day()));
        }
        for key in touched {
            let revision = self.revisions.entry(key).or_default();
            *revision = revise(*revision);
        }
    }

    fn account(&mut self, tenant: &str, hour: Hour) -> &mut AccountingDelta {
        self.accounting.entry((tenant.to_owned(), hour)).or_insert_with(|| AccountingDelta {
            tenant: tenant.to_owned(),
            hour,
            aggregated: 0,
            deduplicated: 0,
            quarantined: 0,
        })
    }
}

fn metric_key(info: &SeriesInfo) -> MetricKey {
    (info.series.tenant.clone(), info.series.metric.clone())
}

impl SnapshotSource for MemoryStore {
    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        Ok(Box::new(MemorySnapshot(Arc::clone(&self.lock()))))
    }

    fn snapshot_for(&self, _: &QueryBudget) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        self.snapshot()
    }
}

impl QuerySource for MemoryStore {
    fn query_snapshot(
        &self,
        query: &QueryBudget,
    ) -> Result<Box<dyn QuerySnapshot + '_>, StoreError> {
        Ok(self.snapshot_for(query)?)
    }

    fn query_snapshot_at_once(
        &self,
        _: &QueryBudget,
    ) -> Result<Option<Box<dyn QuerySnapshot + '_>>, StoreError> {
        Ok(Some(Box::new(MemorySnapshot(Arc::clone(&self.lock())))))
    }
}

impl RebuildStore for MemoryStore {
    fn restore(&self, shard: &ShardRestore) -> Result<(), StoreError> {
        self.write(StoreWrite::Restore, |state| {
            if !state.rebuilding {
                return Err(super::not_being_rebuilt());
            }
            let state = Arc::make_mut(state);
            let at = shard.checkpoint;
            let row = state.shards.entry(shard.shard).or_insert(StoredShard {
                checkpoint: at,
                attempts: 0,
                marked: None,
                suspects: BTreeMap::new(),
                set: 0,
                noted: OffsetRange { from: at.next, to: at.next },
            });
            // Notes below the archived offset are gone, should it go back.
            if at.archived < row.checkpoint.archived {
                row.noted.from = row.noted.from.max(row.checkpoint.archived);
            }
            // `next` stays where the flushes of the rebuild have moved it.
            row.checkpoint =
                Checkpoint { next: row.checkpoint.next, appended: row.checkpoint.appended, ..at };
            state.floors.extend(shard.floor.map(|floor| (shard.shard, floor)));
            for row in &shard.manifest {
                state.manifest.retain(|(of, from), _| *of != row.shard || *from < row.range.from);
                state.manifest.insert((row.shard, row.range.from), row.clone());
                state.forget_notes(row.shard, row.range.to);
            }
            for (id, offset) in &shard.admitted {
                if let Some(series) = state.series.get_mut(id) {
                    (series.shard, series.offset) = (shard.shard, *offset);
                }
            }
            Ok(())
        })
    }
}

impl StoreInspection for MemoryStore {
    fn check(&self, _: &mut dyn FnMut(StoreDamage)) -> Result<(), StoreError> {
        // The double stores everything once, so nothing can contradict.
        Ok(())
    }

    fn sizes(&self) -> Result<StoreSizes, StoreError> {
        Ok(StoreSizes {
            store: 0,
            archive: self.snapshot()?.manifest(None)?.iter().map(|row| row.bytes).sum(),
        })
    }
}
