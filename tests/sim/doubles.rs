//! The doubles as the simulation uses them: with faults drawn from the seed, counted when they had
//! an effect, and with planted bugs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use rollmill::model::budget::QueryBudget;
use rollmill::model::flush::{
    AccountingDelta, Claim, DedupBlock, DedupRule, FillGuard, FlushBatch, FlushGuard,
    GenerationDeltas, LogRecord, SeriesInfo,
};
use rollmill::model::generation::{GenerationId, Writer};
use rollmill::model::generation_book::{GenerationBook, LeavingRange};
use rollmill::model::manifest::{ManifestRow, RangeDecisions, ShardRestore, Tier};
use rollmill::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use rollmill::model::outcome::{Outcome, OutcomeNote, UncountedEvent, Verdict};
use rollmill::model::record;
use rollmill::model::release::{ReleaseBasis, ReleasedEvent};
use rollmill::model::rollup::Rollup;
use rollmill::model::series::{AdmittedSeries, SeriesId};
use rollmill::model::served::{ServedHours, served_hours};
use rollmill::model::window::{Hour, Millis};
use rollmill::persistence::archive::memory::{ArchiveFault, MemoryArchive};
use rollmill::persistence::archive::{
    Archive, ArchiveError, ArchivedRecords, ObjectInfo, RecoveredObject,
};
use rollmill::persistence::store::memory::{self, MemoryStore, StoreWrite};
use rollmill::persistence::store::{
    AuditEntry, CheckpointSnapshot, ExpiryTarget, GenerationStore, ManifestStore, MetricInfo,
    NameRange, QuarantineStore, QuerySnapshot, QuerySource, RebuildStore, RollupQuery, ShardStore,
    SnapshotSource, StoreDamage, StoreError, StoreInspection, StoreSizes, StoreSnapshot,
};

use crate::plants::Plant;
use crate::report::{Fault, RunStats};
use crate::rng::Rng;

/// Faults per thousand calls.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultRates {
    pub append: usize,
    pub flush: usize,
    pub claim: usize,
    pub mark: usize,
    pub manifest: usize,
    pub archive: usize,
    pub archive_takeover: usize,
}

/// Source of the doubles' faults, and counter of their effects.
pub struct FaultDice {
    pub rng: Rng,
    pub rates: FaultRates,
    pub stats: RunStats,
    /// Overrides the draw for the next flush.
    pub next_flush: Option<memory::StoreFault>,
    /// Whether the next object is read by a filler.
    pub filling: bool,
}

pub type SharedDice = Arc<Mutex<FaultDice>>;

pub fn with_dice<T>(dice: &SharedDice, with: impl FnOnce(&mut FaultDice) -> T) -> T {
    with(&mut dice.lock().expect("one thread"))
}

pub fn checkpoint(store: &dyn SnapshotSource, shard: ShardId) -> Option<Checkpoint> {
    let all = store.snapshot().and_then(|mut s| s.checkpoints()).expect("the double answers");
    all.into_iter().find(|(id, _)| *id == shard).map(|(_, checkpoint)| checkpoint)
}

/// The store's double with drawn faults.
pub struct SimStore {
    inner: Arc<MemoryStore>,
    dice: SharedDice,
    plant: Option<Plant>,
}

impl SimStore {
    pub fn new(dice: &SharedDice, plant: Option<Plant>) -> Arc<Self> {
        let (inner, drawing) = (MemoryStore::new(), dice.clone());
        inner.set_faults(move |write| {
            with_dice(&drawing, |dice| {
                if write == StoreWrite::Flush && dice.next_flush.is_some() {
                    return dice.next_flush.take();
                }
                let rate = match write {
                    StoreWrite::Claim => dice.rates.claim,
                    StoreWrite::Flush => dice.rates.flush,
                    StoreWrite::MarkSuspect => dice.rates.mark,
                    StoreWrite::InsertManifestRow => dice.rates.manifest,
                    StoreWrite::Generations | StoreWrite::Fill | StoreWrite::SettleQuarantine => {
                        dice.rates.flush
                    }
                    StoreWrite::SetTier
                    | StoreWrite::ExpireObject
                    | StoreWrite::Expiry
                    | StoreWrite::Restore
                    | StoreWrite::Boards => 0,
                };
                let kinds = [
                    memory::StoreFault::Before,
                    memory::StoreFault::AppliedReplyLost,
                    memory::StoreFault::NotAppliedReplyLost,
                ];
                dice.rng.chance(rate).then(|| dice.rng.pick(&kinds))
            })
        });
        Arc::new(Self { inner, dice: dice.clone(), plant })
    }

    fn hit(&self, fault: Fault) {
        with_dice(&self.dice, |dice| dice.stats.hit(fault));
    }

    pub fn backup(&self) -> memory::StoreBackup {
        self.inner.backup()
    }

    pub fn put_back(&self, backup: &memory::StoreBackup) {
        self.inner.restore_backup(backup);
    }

    fn planted_flush(
        &self,
        mut guard: FlushGuard,
        batch: &FlushBatch,
        mut forget: Millis,
    ) -> Result<(), StoreError> {
        let now = checkpoint(&*self.inner, guard.shard);
        match (self.plant, now) {
            (Some(Plant::NoFence), Some(now)) => {
                let moved = guard.range.to.max(now.next);
                guard = FlushGuard {
                    epoch: now.epoch,
                    range: OffsetRange { from: now.next, to: moved },
                    ..guard
                };
            }
            (Some(Plant::NoEpochFence), Some(now)) => guard.epoch = now.epoch,
            (Some(Plant::OffsetInSecondTransaction), _) => {
                let stay = FlushGuard {
                    range: OffsetRange { from: guard.range.from, to: guard.range.from },
                    ..guard
                };
                self.inner.flush(stay, batch, forget)?;
                let set = batch.adopts.as_ref().map_or(batch.set, |adopted| adopted.version);
                return self.inner.flush(
                    guard,
                    &FlushBatch { set, ..FlushBatch::default() },
                    forget,
                );
            }
            (Some(Plant::IdsInSecondTransaction), _) => {
                self.inner.flush(guard, &FlushBatch { dedup: None, ..batch.clone() }, forget)?;
                let there = FlushGuard {
                    range: OffsetRange { from: guard.range.to, to: guard.range.to },
                    ..guard
                };
                let set = batch.adopts.as_ref().map_or(batch.set, |adopted| adopted.version);
                let ids = FlushBatch { dedup: batch.dedup.clone(), set, ..FlushBatch::default() };
                return if with_dice(&self.dice, |dice| dice.rng.chance(300)) {
                    Ok(())
                } else {
                    self.inner.flush(there, &ids, forget)
                };
            }
            (Some(Plant::QuarantineRowLost), _) => {
                return self.inner.flush(
                    guard,
                    &FlushBatch { quarantined: vec![], ..batch.clone() },
                    forget,
                );
            }
            (Some(Plant::OutcomesNotNoted), _) => {
                let silent = FlushBatch { outcomes: OutcomeNote::default(), ..batch.clone() };
                return self.inner.flush(guard, &silent, forget);
            }
            (Some(Plant::CutAtFlushStart), _) if batch.adopts.is_some() => {
                let OffsetRange { from, .. } = guard.range;
                let start = FlushGuard { range: OffsetRange { from, to: from }, ..guard };
                let (set, adopts) = (batch.set, batch.adopts.clone());
                let adoption = FlushBatch { set, adopts, ..FlushBatch::default() };
                self.inner.flush(start, &adoption, forget)?;
                let set = batch.adopts.as_ref().map_or(batch.set, |adopted| adopted.version);
                let rest = FlushBatch { set, adopts: None, ..batch.clone() };
                return self.inner.flush(guard, &rest, forget);
            }
            (Some(Plant::IdsForgottenEarly), _) => forget = Millis::MAX,
            _ => {}
        }
        self.inner.flush(guard, batch, forget)
    }
}

impl SnapshotSource for SimStore {
    fn snapshot(&self) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        self.inner.snapshot()
    }

    fn snapshot_for(&self, query: &QueryBudget) -> Result<Box<dyn StoreSnapshot + '_>, StoreError> {
        self.inner.snapshot_for(query)
    }
}

impl ShardStore for SimStore {
    fn claim(&self, shard: ShardId, log: LogId, nonce: u64) -> Result<Claim, StoreError> {
        let claim = self.inner.claim(shard, log, nonce);
        if claim.is_err() {
            self.hit(Fault::ClaimFailed);
        }
        claim
    }

    fn recent_ids(&self, shard: ShardId, since: Millis) -> Result<Vec<DedupBlock>, StoreError> {
        self.inner.recent_ids(shard, since)
    }

    fn set_dedup_rule(
        &self,
        shard: ShardId,
        epoch: Epoch,
        from: u64,
        rule: DedupRule,
    ) -> Result<(), StoreError> {
        self.inner.set_dedup_rule(shard, epoch, from, rule)
    }

    fn flush(
        &self,
        guard: FlushGuard,
        batch: &FlushBatch,
        forget_ids_before: Millis,
    ) -> Result<(), StoreError> {
        let before = checkpoint(&*self.inner, guard.shard).map(|c| c.next);
        let outcome = self.planted_flush(guard, batch, forget_ids_before);
        let moved = checkpoint(&*self.inner, guard.shard).map(|c| c.next) != before;
        match &outcome {
            Ok(())
            | Err(
                StoreError::Invalid(_) | StoreError::TooManySeries { .. } | StoreError::QueryEnded,
            ) => {}
            Err(StoreError::Failed(_) | StoreError::Unavailable(_) | StoreError::TooLong(_)) => {
                self.hit(Fault::FlushFailed)
            }
            Err(StoreError::Refused { .. }) => self.hit(Fault::FlushFenced),
            Err(StoreError::Unknown(_)) if moved => self.hit(Fault::FlushUnknownApplied),
            Err(StoreError::Unknown(_)) => self.hit(Fault::FlushUnknownNotApplied),
        }
        outcome
    }

    fn mark_suspect(
        &self,
        shard: ShardId,
        epoch: Epoch,
        offset: Offset,
        index: u32,
    ) -> Result<(), StoreError> {
        if self.plant == Some(Plant::SuspectNotMarked) {
            return Ok(());
        }
        let marked = self.inner.mark_suspect(shard, epoch, offset, index);
        if marked.is_err() {
            self.hit(Fault::MarkFailed);
        }
        marked
    }

    fn admitted_series(&self, shard: ShardId) -> Result<Vec<(String, AdmittedSeries)>, StoreError> {
        self.inner.admitted_series(shard)
    }

    fn generation_series(
        &self,
        generation: GenerationId,
        writer: Writer,
    ) -> Result<Vec<SeriesId>, StoreError> {
        self.inner.generation_series(generation, writer)
    }

    fn metric_names(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.inner.metric_names()
    }
}

impl ManifestStore for SimStore {
    fn insert_manifest_row(&self, owner: Epoch, row: &ManifestRow) -> Result<(), StoreError> {
        let outcome = self.inner.insert_manifest_row(owner, row);
        let applied =
            checkpoint(&*self.inner, row.shard).is_some_and(|c| c.archived == row.range.to);
        match &outcome {
            Ok(())
            | Err(
                StoreError::Invalid(_) | StoreError::TooManySeries { .. } | StoreError::QueryEnded,
            ) => {}
            Err(StoreError::Failed(_) | StoreError::Unavailable(_) | StoreError::TooLong(_)) => {
                self.hit(Fault::ManifestFailed)
            }
            Err(StoreError::Refused { .. }) => self.hit(Fault::ManifestFenced),
            Err(StoreError::Unknown(_)) if applied => self.hit(Fault::ManifestUnknownApplied),
            Err(StoreError::Unknown(_)) => self.hit(Fault::ManifestUnknownNotApplied),
        }
        outcome
    }

    fn set_tier(&self, row: &ManifestRow, tier: Tier) -> Result<bool, StoreError> {
        self.inner.set_tier(row, tier)
    }

    fn expire_object(&self, row: &ManifestRow) -> Result<bool, StoreError> {
        self.inner.expire_object(row)
    }

    fn swap_expiry(
        &self,
        of: ExpiryTarget,
        before: Option<&str>,
        after: &str,
    ) -> Result<bool, StoreError> {
        self.inner.swap_expiry(of, before, after)
    }

    fn approve_expiry(
        &self,
        of: &[ExpiryTarget],
        request: Option<&QueryBudget>,
    ) -> Result<u64, StoreError> {
        self.inner.approve_expiry(of, request)
    }
}

impl QuarantineStore for SimStore {
    fn settle_quarantine(
        &self,
        shard: ShardId,
        offset: Offset,
        index: u32,
        release: Option<&ReleasedEvent>,
        request: Option<&QueryBudget>,
    ) -> Result<bool, StoreError> {
        let mut release = release.cloned();
        if let Some(release) = &mut release {
            match self.plant {
                Some(Plant::ReleasedIntoIngestAlone) => release.generations.clear(),
                Some(Plant::ReleaseNotCompared) => {
                    let mut snapshot = self.inner.snapshot()?;
                    let set = release.basis.set;
                    release.basis = ReleaseBasis::new(set, &snapshot.shard_fills(shard)?, offset);
                }
                _ => {}
            }
        }
        self.inner.settle_quarantine(shard, offset, index, release.as_ref(), request)
    }
}

impl GenerationStore for SimStore {
    fn swap_generations(
        &self,
        before: u64,
        book: &GenerationBook,
        entry: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        self.inner.swap_generations(before, book, entry)
    }

    fn fill(&self, guard: &FillGuard, batch: &GenerationDeltas) -> Result<(), StoreError> {
        match self.plant {
            Some(Plant::FillCursorFirst) => {
                self.inner.fill(guard, &GenerationDeltas::default())?;
                let to = guard.range.to;
                let behind = FillGuard { range: OffsetRange { from: to, to }, ..*guard };
                self.inner.fill(&behind, batch)
            }
            Some(Plant::FillNotCompared) => {
                let mut snapshot = self.inner.snapshot()?;
                let progress = snapshot.fill_progress(guard.generation)?;
                let at = progress.iter().find(|(shard, _)| *shard == guard.shard);
                let from = at.map_or(guard.range.from, |(_, at)| at.cursor);
                let range = OffsetRange { from, to: guard.range.to.max(from) };
                self.inner.fill(&FillGuard { range, ..*guard }, batch)
            }
            Some(Plant::FillIgnoresReleases) => {
                let released = self.inner.snapshot()?.released_events(guard.shard)?;
                let within = |(offset, _): &(Offset, u32)| {
                    (guard.range.from..guard.range.to).contains(offset)
                };
                let released = released.into_iter().filter(within).collect();
                self.inner.fill(guard, &GenerationDeltas { released, ..batch.clone() })
            }
            _ => self.inner.fill(guard, batch),
        }
    }

    fn delete_generation_rows(&self, of: &LeavingRange, max: usize) -> Result<u64, StoreError> {
        self.inner.delete_generation_rows(of, max)
    }
}

impl RebuildStore for SimStore {
    fn restore(&self, shard: &ShardRestore) -> Result<(), StoreError> {
        self.inner.restore(shard)
    }
}

impl StoreInspection for SimStore {
    fn check(&self, found: &mut dyn FnMut(StoreDamage)) -> Result<(), StoreError> {
        self.inner.check(found)
    }

    fn sizes(&self) -> Result<StoreSizes, StoreError> {
        self.inner.sizes()
    }
}

impl QuerySource for SimStore {
    fn query_snapshot(
        &self,
        query: &QueryBudget,
    ) -> Result<Box<dyn QuerySnapshot + '_>, StoreError> {
        let snapshot = self.inner.query_snapshot(query)?;
        Ok(match self.plant {
            Some(plant @ (Plant::RevisionsStand | Plant::PointerWithoutRevision)) => {
                let revisions_stand = plant == Plant::RevisionsStand;
                Box::new(PlantedSnapshot { inner: snapshot, revisions_stand })
            }
            _ => snapshot,
        })
    }

    fn query_snapshot_at_once(
        &self,
        query: &QueryBudget,
    ) -> Result<Option<Box<dyn QuerySnapshot + '_>>, StoreError> {
        self.query_snapshot(query).map(Some)
    }
}

/// A snapshot with a bug: the revision of a day never exceeds 1, or what is served is shown as if it
/// were generation 0, under its revisions.
struct PlantedSnapshot<'a> {
    inner: Box<dyn QuerySnapshot + 'a>,
    revisions_stand: bool,
}

impl CheckpointSnapshot for PlantedSnapshot<'_> {
    fn checkpoints(&mut self) -> Result<Vec<(ShardId, Checkpoint)>, StoreError> {
        self.inner.checkpoints()
    }

    fn generation_book(&mut self) -> Result<Arc<GenerationBook>, StoreError> {
        match self.revisions_stand {
            true => self.inner.generation_book(),
            false => Ok(Arc::default()),
        }
    }
}

impl QuerySnapshot for PlantedSnapshot<'_> {
    fn revisions(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
        days: Range<i32>,
    ) -> Result<Vec<u64>, StoreError> {
        let mut revisions = self.inner.revisions(tenant, metric, generation, days)?;
        if self.revisions_stand {
            revisions.iter_mut().for_each(|revision| *revision = (*revision).min(1));
        }
        Ok(revisions)
    }

    fn rollups(
        &mut self,
        query: &RollupQuery<'_>,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup),
    ) -> Result<(), StoreError> {
        if self.revisions_stand {
            return self.inner.rollups(query, visit);
        }
        let book = self.inner.generation_book()?;
        let pointer = book.pointer(query.tenant, query.metric);
        for ServedHours { from, to, generation } in served_hours(pointer, query.from, query.to) {
            self.inner.rollups(&RollupQuery { from, to, generation, ..query.clone() }, visit)?;
        }
        Ok(())
    }

    fn metrics(
        &mut self,
        tenant: &str,
        page: &NameRange<'_>,
    ) -> Result<Vec<MetricInfo>, StoreError> {
        self.inner.metrics(tenant, page)
    }

    fn label_values(
        &mut self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        others: &[(&str, GenerationId)],
        page: &NameRange<'_>,
    ) -> Result<Vec<String>, StoreError> {
        self.inner.label_values(tenant, name, metric, others, page)
    }

    fn generation_metric(
        &mut self,
        tenant: &str,
        metric: &str,
        generation: GenerationId,
    ) -> Result<Option<MetricInfo>, StoreError> {
        self.inner.generation_metric(tenant, metric, generation)
    }

    fn accounting(
        &mut self,
        tenant: &str,
        from: Hour,
        to: Hour,
    ) -> Result<Vec<AccountingDelta>, StoreError> {
        self.inner.accounting(tenant, from, to)
    }
}

struct LightObject {
    row: ManifestRow,
    records: Vec<LogRecord>,
    decisions: RangeDecisions,
    torn: bool,
}

/// A light archive: it keeps records as they are instead of writing Parquet, so that a schedule
/// costs microseconds. Its faults are those of the Parquet double.
#[derive(Default)]
struct LightArchive(Mutex<BTreeMap<String, LightObject>>);

fn received_range(records: &[LogRecord]) -> (Millis, Millis) {
    let received = || records.iter().map(|record| record.received);
    (received().min().unwrap_or(0), received().max().unwrap_or(0))
}

/// What an archiver says that takes for a duplicate whatever repeats an id of its own object.
fn decide_anew(records: &[LogRecord], noted: &OutcomeNote) -> OutcomeNote {
    let (mut reader, mut seen, mut anew) =
        (noted.reader(), BTreeSet::new(), OutcomeNote::default());
    for record in records {
        let Ok(decoded) = record::decode(&record.payload) else {
            reader.skip_record(record.offset);
            continue;
        };
        for (index, event) in (0..).zip(&decoded.events) {
            let id = event.id_hash(decoded.series[event.series as usize].series_id());
            let repeats = id.is_some_and(|id| !seen.insert(id));
            let set_aside = reader.outcome(record.offset, index) == Outcome::Quarantined;
            let verdict = if set_aside { Verdict::Quarantined } else { Verdict::Duplicate };
            if set_aside || repeats {
                anew.push(UncountedEvent { offset: record.offset, index, verdict });
            }
        }
    }
    anew
}

impl LightArchive {
    fn row(
        log: LogId,
        shard: ShardId,
        epoch: Epoch,
        records: &[LogRecord],
        plant: Option<Plant>,
    ) -> Option<ManifestRow> {
        let (first, last) = (records.first()?, records.last()?);
        let range = OffsetRange { from: first.offset, to: last.offset + 1 };
        let mut path = ManifestRow::object_path(log, shard, range, epoch);
        if plant == Some(Plant::ObjectNameWithoutEpoch) {
            path = format!("{shard}/{}", range.from);
        }
        let bytes: u64 = records.iter().map(|r| r.payload.len() as u64).sum();
        let appended = (first.appended, last.appended);
        let mut windows: BTreeMap<Hour, u64> = BTreeMap::new();
        for record in records.iter().filter_map(|r| record::decode(&r.payload).ok()) {
            record
                .events
                .iter()
                .for_each(|event| *windows.entry(Hour::of(event.timestamp)).or_default() += 1);
        }
        let windows = windows.into_iter().collect();
        Some(ManifestRow {
            log,
            shard,
            range,
            epoch,
            path,
            appended,
            received: received_range(records),
            windows,
            rows: 0,
            raw_bytes: bytes,
            bytes,
            crc32c: 0,
            tier: Tier::Hot,
        })
    }
}

/// The archive as the simulation uses it.
pub struct SimArchive {
    light: LightArchive,
    documents: MemoryArchive,
    /// The double that writes real Parquet, used in a share of the schedules.
    parquet: Option<Arc<dyn Archive>>,
    store: Arc<SimStore>,
    dice: SharedDice,
    plant: Option<Plant>,
}

impl SimArchive {
    pub fn new(
        parquet: Option<Arc<dyn Archive>>,
        store: &Arc<SimStore>,
        dice: &SharedDice,
        plant: Option<Plant>,
    ) -> Arc<Self> {
        Arc::new(Self {
            light: LightArchive::default(),
            documents: MemoryArchive::new(),
            parquet,
            store: store.clone(),
            dice: dice.clone(),
            plant,
        })
    }

    fn put(
        &self,
        log: LogId,
        shard: ShardId,
        epoch: Epoch,
        (records, decisions): (&[LogRecord], &RangeDecisions),
        torn: bool,
    ) -> Result<ManifestRow, ArchiveError> {
        let anew;
        let decisions = if self.plant == Some(Plant::OutcomesDecidedAnew) {
            let outcomes = decisions.outcomes.as_ref().map(|noted| decide_anew(records, noted));
            anew = RangeDecisions { outcomes, ..decisions.clone() };
            &anew
        } else {
            decisions
        };
        if let Some(parquet) = &self.parquet
            && !torn
        {
            let row = parquet.write(log, shard, epoch, records, decisions)?;
            // A torn object of the same name is replaced; names contain the epoch, so it
            // is the same owner's.
            self.remove(&row.path, Tier::Hot)?;
            return Ok(row);
        }
        let row = LightArchive::row(log, shard, epoch, records, self.plant);
        let row = row.ok_or_else(|| ArchiveError::Unavailable("no records".to_owned()))?;
        let object = LightObject {
            row: row.clone(),
            records: records.to_vec(),
            decisions: decisions.clone(),
            torn,
        };
        let mut objects = self.light.0.lock().expect("one thread");
        assert!(
            self.plant.is_some()
                || objects.get(&row.path).is_none_or(|there| there.row.epoch == epoch),
            "two owners share the name {}",
            row.path
        );
        objects.insert(row.path.clone(), object);
        Ok(row)
    }
}

impl SimArchive {
    /// The next document may not get there, or only in part, or nobody hears of it.
    pub fn fail_next_document(&self) {
        let kinds = [ArchiveFault::Before, ArchiveFault::ReplyLost, ArchiveFault::Torn];
        let fault = with_dice(&self.dice, |dice| {
            dice.rng.chance(dice.rates.archive).then(|| dice.rng.pick(&kinds))
        });
        if let Some(fault) = fault {
            self.documents.fail_next(fault);
        }
    }

    /// What a filler reads: it may not reach the archive, and has planted bugs.
    fn read_to_fill(&self, row: &ManifestRow) -> Result<ArchivedRecords, ArchiveError> {
        let lost = with_dice(&self.dice, |dice| {
            dice.filling = false;
            dice.rng.chance(dice.rates.archive)
        });
        if lost {
            return Err(ArchiveError::Unavailable(Fault::ArchiveDown.text().to_owned()));
        }
        let mut read = self.read_all(row)?;
        if self.plant == Some(Plant::FillDecidesAnew) {
            read.outcomes = read.outcomes.map(|noted| decide_anew(&read.records, &noted));
        }
        Ok(read)
    }
}

impl Archive for SimArchive {
    fn write(
        &self,
        log: LogId,
        shard: ShardId,
        epoch: Epoch,
        records: &[LogRecord],
        decisions: &RangeDecisions,
    ) -> Result<ManifestRow, ArchiveError> {
        let kinds = [Fault::ArchiveDown, Fault::ArchiveReplyLost, Fault::ArchiveTorn];
        let fault = with_dice(&self.dice, |dice| {
            dice.rng.chance(dice.rates.archive).then(|| dice.rng.pick(&kinds))
        });
        if let Some(fault) = fault {
            with_dice(&self.dice, |dice| dice.stats.hit(fault));
        }
        let lost = |fault: Fault| Err(ArchiveError::Unavailable(fault.text().to_owned()));
        let row = match fault {
            Some(Fault::ArchiveDown) => return lost(Fault::ArchiveDown),
            Some(Fault::ArchiveTorn) => {
                let row = self.put(log, shard, epoch, (records, decisions), true)?;
                if self.plant != Some(Plant::TornObjectAccepted) {
                    return lost(Fault::ArchiveTorn);
                }
                row
            }
            other => {
                let row = self.put(log, shard, epoch, (records, decisions), false)?;
                if let Some(fault) = other {
                    return lost(fault);
                }
                row
            }
        };
        // Another node may take the shard between the object and its manifest row.
        let nonce = with_dice(&self.dice, |dice| {
            dice.rng.chance(dice.rates.archive_takeover).then(|| dice.rng.next())
        });
        if let Some(nonce) = nonce
            && self.store.claim(shard, log, nonce).is_ok()
        {
            with_dice(&self.dice, |dice| dice.stats.hit(Fault::TakeoverWhileArchiving));
        }
        Ok(row)
    }

    fn read_all(&self, row: &ManifestRow) -> Result<ArchivedRecords, ArchiveError> {
        if with_dice(&self.dice, |dice| dice.filling) {
            return self.read_to_fill(row);
        }
        let objects = self.light.0.lock().expect("one thread");
        match (objects.get(&row.path), &self.parquet) {
            (Some(object), _) if object.torn => {
                Err(ArchiveError::Corrupt { path: row.path.clone(), why: "torn".to_owned() })
            }
            (Some(object), _) => Ok(ArchivedRecords {
                records: object.records.clone(),
                outcomes: object.decisions.outcomes.clone(),
            }),
            (None, Some(parquet)) => parquet.read_all(row),
            (None, None) => Err(ArchiveError::Missing(row.path.clone())),
        }
    }

    fn examine(&self, object: &ObjectInfo) -> Result<RecoveredObject, ArchiveError> {
        if with_dice(&self.dice, |dice| dice.rng.chance(dice.rates.archive)) {
            with_dice(&self.dice, |dice| dice.stats.hit(Fault::ArchiveDown));
            return Err(ArchiveError::Unavailable(Fault::ArchiveDown.text().to_owned()));
        }
        let objects = self.light.0.lock().expect("one thread");
        match (objects.get(&object.path), &self.parquet) {
            (Some(found), _) if found.torn => {
                Err(ArchiveError::Corrupt { path: object.path.clone(), why: "torn".to_owned() })
            }
            (Some(found), _) => {
                let (row, records, decisions) =
                    (found.row.clone(), found.records.clone(), Some(found.decisions.clone()));
                Ok(RecoveredObject { row, records, decisions, has_checksum: true })
            }
            (None, Some(parquet)) => parquet.examine(object),
            (None, None) => Err(ArchiveError::Missing(object.path.clone())),
        }
    }

    fn list(&self, log: LogId, shard: ShardId) -> Result<Vec<ObjectInfo>, ArchiveError> {
        let mut listed =
            self.parquet.as_ref().map_or(Ok(Vec::new()), |parquet| parquet.list(log, shard))?;
        let objects = self.light.0.lock().expect("one thread");
        let light =
            objects.values().filter(|object| object.row.log == log && object.row.shard == shard);
        listed.extend(light.map(|object| {
            let (path, bytes) = (object.row.path.clone(), object.row.bytes);
            ObjectInfo { path, bytes, written: 0, tier: Tier::Hot }
        }));
        Ok(listed)
    }

    fn remove(&self, path: &str, _: Tier) -> Result<(), ArchiveError> {
        self.light.0.lock().expect("one thread").remove(path);
        Ok(())
    }

    fn documents(&self) -> &dyn rollmill::persistence::archive::ArchiveDocuments {
        self.documents.documents()
    }

    fn has_cold(&self) -> bool {
        false
    }

    fn copy_to_cold(&self, row: &ManifestRow) -> Result<(), ArchiveError> {
        Err(ArchiveError::NoColdStore(row.path.clone()))
    }
}
