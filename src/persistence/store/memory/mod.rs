//! The test double of the store: maps behind a mutex, one transaction at a time, with faults for
//! the simulation.
//!
//! It lets simulations run whole nodes without a disk, and passes the same conformance suite as the
//! real stores. A write is validated completely before the first map changes, so it is applied in
//! full or not at all. A snapshot is an immutable copy of everything (copied only if a write
//! happens while the snapshot lives). An armed fault makes a write fail in one of three ways:
//! before it is applied, after it was applied with the reply lost, or with the reply lost and
//! nothing applied.

mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapshot::MemorySnapshot;

use super::{
    ExpiryRow, ExpiryTarget, ManifestStore, QuarantineStore, QuerySnapshot, QuerySource,
    RebuildStore, ShardStore, SnapshotSource, StoreDamage, StoreError, StoreInspection, StoreSizes,
    StoreSnapshot,
};
use crate::model::budget::QueryBudget;
use crate::model::flush::{
    AccountingDelta, Claim, DedupBlock, DedupRule, DedupRules, Delta, FlushBatch, FlushGuard,
    QuarantineRow, SeriesInfo, SuspectEvent, revision_after_release,
};
use crate::model::manifest::{ArchiveFloor, ManifestRow, ShardRestore, Tier};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};

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
    dedup_rules: BTreeMap<ShardId, DedupRules>,
    accounting: BTreeMap<(String, Hour), AccountingDelta>,
    quarantine: BTreeMap<(ShardId, Offset, u32), QuarantineRow>,
    revisions: BTreeMap<(MetricKey, i32), u64>,
    manifest: BTreeMap<(ShardId, Offset), ManifestRow>,
    floors: BTreeMap<ShardId, ArchiveFloor>,
    expiry: BTreeMap<ExpiryTarget, ExpiryRow>,
    rebuilding: bool,
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

    fn check_catalogue(&self, batch: &FlushBatch) -> Result<(), StoreError> {
        let admitted = batch.admitted.iter().map(|(info, _)| info);
        for info in admitted.chain(batch.deltas.iter().map(|d| &d.series)) {
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

impl ShardStore for MemoryStore {
    fn claim(&self, shard: ShardId, log: LogId, nonce: u64) -> Result<Claim, StoreError> {
        self.write(StoreWrite::Claim, |state| {
            if let Some(row) = state.shards.get(&shard)
                && row.checkpoint.log != log
            {
                return Err(super::other_log(shard, row.checkpoint.log, log));
            }
            let row = Arc::make_mut(state).shards.entry(shard).or_insert(StoredShard {
                checkpoint: Checkpoint {
                    log,
                    next: 0,
                    archived: 0,
                    epoch: Epoch { counter: 0, nonce },
                    appended: None,
                },
                attempts: 0,
                marked: None,
                suspects: BTreeMap::new(),
            });
            row.checkpoint.epoch = Epoch { counter: row.checkpoint.epoch.counter + 1, nonce };
            row.attempts = row.attempts.saturating_add(1);
            // A mark that is still set means that the last owner did not get past that event.
            if let Some(at) = row.marked.take() {
                *row.suspects.entry(at).or_default() += 1;
            }
            let suspects = row
                .suspects
                .iter()
                .map(|(&(offset, index), &deaths)| SuspectEvent { offset, index, deaths })
                .collect();
            Ok(Claim { checkpoint: row.checkpoint, attempts: row.attempts, suspects })
        })
    }

    fn recent_ids(&self, shard: ShardId, since: Millis) -> Result<Vec<DedupBlock>, StoreError> {
        let state = Arc::clone(&self.lock());
        let blocks = state.dedup.range((shard, 0)..=(shard, Offset::MAX));
        Ok(blocks.filter(|(_, b)| b.appended.1 >= since).map(|(_, b)| b.clone()).collect())
    }

    fn set_dedup_rule(
        &self,
        shard: ShardId,
        epoch: Epoch,
        from: Offset,
        rule: DedupRule,
    ) -> Result<(), StoreError> {
        self.write(StoreWrite::Claim, |state| {
            let next = state.owned(shard, epoch)?.checkpoint.next;
            if from < next && state.dedup_rules.contains_key(&shard) {
                return Err(StoreError::Refused { shard });
            }
            Arc::make_mut(state).dedup_rules.entry(shard).or_default().record(from, rule);
            Ok(())
        })
    }

    fn flush(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> Result<(), StoreError> {
        self.write(StoreWrite::Flush, |state| {
            let at = state.owned(guard.shard, guard.epoch)?.checkpoint;
            if at.log != guard.log || at.next != guard.range.from {
                return Err(StoreError::Refused { shard: guard.shard });
            }
            state.check_catalogue(batch)?;
            let state = Arc::make_mut(state);
            for (info, offset) in &batch.admitted {
                state.admit(info, guard.shard, *offset);
            }
            state.merge(&batch.deltas, guard.shard, guard.range.from, |_| guard.revision());
            if let Some(block) = &batch.dedup {
                state.dedup.insert((guard.shard, block.range.from), block.clone());
            }
            state.dedup.retain(|(shard, _), block| {
                *shard != guard.shard || block.appended.1 >= forget_ids_before
            });
            for delta in &batch.accounting {
                let row = state.account(&delta.tenant, delta.hour);
                row.aggregated += delta.aggregated;
                row.deduplicated += delta.deduplicated;
                row.quarantined += delta.quarantined;
            }
            for row in &batch.quarantined {
                state.quarantine.insert((row.shard, row.offset, row.index), row.clone());
            }
            if let Some(row) = state.shards.get_mut(&guard.shard) {
                row.checkpoint.next = guard.range.to;
                row.checkpoint.appended = batch.appended.or(row.checkpoint.appended);
                row.attempts = 0;
                row.marked = None;
                row.suspects.clear();
            }
            Ok(())
        })
    }

    fn mark_suspect(
        &self,
        shard: ShardId,
        epoch: Epoch,
        offset: Offset,
        index: u32,
    ) -> Result<(), StoreError> {
        self.write(StoreWrite::MarkSuspect, |state| {
            state.owned(shard, epoch)?;
            if let Some(row) = Arc::make_mut(state).shards.get_mut(&shard) {
                row.marked = Some((offset, index));
            }
            Ok(())
        })
    }

    fn admitted_series(&self, shard: ShardId) -> Result<Vec<(String, Vec<SeriesId>)>, StoreError> {
        let state = Arc::clone(&self.lock());
        let mut by_tenant: BTreeMap<&str, Vec<SeriesId>> = BTreeMap::new();
        for (id, admitted) in state.series.iter().filter(|(_, a)| a.shard == shard) {
            by_tenant.entry(&admitted.info.series.tenant).or_default().push(*id);
        }
        Ok(by_tenant.into_iter().map(|(tenant, ids)| (tenant.to_owned(), ids)).collect())
    }

    fn metric_names(&self) -> Result<Vec<(String, String)>, StoreError> {
        Ok(self.lock().metrics.keys().cloned().collect())
    }
}

impl ManifestStore for MemoryStore {
    fn insert_manifest_row(&self, owner: Epoch, row: &ManifestRow) -> Result<(), StoreError> {
        self.write(StoreWrite::InsertManifestRow, |state| {
            let at = state.owned(row.shard, owner)?.checkpoint;
            if at.archived != row.range.from || at.log != row.log {
                return Err(StoreError::Refused { shard: row.shard });
            }
            let state = Arc::make_mut(state);
            state.manifest.insert((row.shard, row.range.from), row.clone());
            if let Some(shard) = state.shards.get_mut(&row.shard) {
                shard.checkpoint.archived = row.range.to;
            }
            Ok(())
        })
    }

    fn set_tier(&self, row: &ManifestRow, tier: Tier) -> Result<bool, StoreError> {
        self.write(StoreWrite::SetTier, |state| {
            let place = (row.shard, row.range.from);
            match Arc::make_mut(state)
                .manifest
                .get_mut(&place)
                .filter(|there| there.path == row.path)
            {
                Some(there) => there.tier = tier,
                None => return Ok(false),
            }
            Ok(true)
        })
    }

    fn expire_object(&self, row: &ManifestRow) -> Result<bool, StoreError> {
        self.write(StoreWrite::ExpireObject, |state| {
            let first = state.manifest.range((row.shard, 0)..=(row.shard, Offset::MAX)).next();
            if first.is_none_or(|(_, first)| first.path != row.path) {
                return Ok(false);
            }
            let state = Arc::make_mut(state);
            state.manifest.remove(&(row.shard, row.range.from));
            let floor = ArchiveFloor::after_expiry(state.floors.get(&row.shard).copied(), row);
            state.floors.insert(row.shard, floor);
            Ok(true)
        })
    }

    fn swap_expiry(
        &self,
        of: ExpiryTarget,
        before: Option<&str>,
        after: &str,
    ) -> Result<bool, StoreError> {
        self.write(StoreWrite::Expiry, |state| {
            let there = state.expiry.get(&of);
            if there.map(|there| there.note.as_str()) != before {
                return Ok(false);
            }
            let said = there.map_or(0, |there| there.approvals);
            Arc::make_mut(state)
                .expiry
                .insert(of, ExpiryRow { note: after.to_owned(), approvals: said });
            Ok(true)
        })
    }

    fn approve_expiry(&self, of: &[ExpiryTarget]) -> Result<u64, StoreError> {
        self.write(StoreWrite::Expiry, |state| {
            let noted = Arc::make_mut(state).expiry.iter_mut().filter(|(one, _)| of.contains(one));
            Ok(noted.map(|(_, note)| note.approvals += 1).count() as u64)
        })
    }
}

impl QuarantineStore for MemoryStore {
    fn settle_quarantine(
        &self,
        shard: ShardId,
        offset: Offset,
        index: u32,
        delta: Option<&FlushBatch>,
    ) -> Result<bool, StoreError> {
        self.write(StoreWrite::SettleQuarantine, |state| {
            let waiting =
                state.quarantine.get(&(shard, offset, index)).filter(|row| !row.discarded).cloned();
            let Some(row) = waiting else { return Ok(false) };
            if let Some(batch) = delta {
                state.check_catalogue(batch)?;
            }
            let state = Arc::make_mut(state);
            let place = (shard, offset, index);
            if delta.is_none() {
                state.quarantine.insert(place, QuarantineRow { discarded: true, ..row });
            } else if let Some(batch) = delta {
                state.quarantine.remove(&place);
                let log = state.shards.get(&shard).map_or(LogId([0; 16]), |row| row.checkpoint.log);
                state.merge(&batch.deltas, shard, offset, |before| {
                    revision_after_release(before, log, shard, offset, index)
                });
                let account = state.account(&row.tenant, Hour::of(row.received));
                account.quarantined = account.quarantined.saturating_sub(1);
                account.aggregated += 1;
            }
            Ok(true)
        })
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
            });
            // `next` stays where the flushes of the rebuild have moved it.
            row.checkpoint =
                Checkpoint { next: row.checkpoint.next, appended: row.checkpoint.appended, ..at };
            state.floors.extend(shard.floor.map(|floor| (shard.shard, floor)));
            for row in &shard.manifest {
                state.manifest.retain(|(of, from), _| *of != row.shard || *from < row.range.from);
                state.manifest.insert((row.shard, row.range.from), row.clone());
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
