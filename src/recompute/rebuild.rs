//! Recreates a lost store from the archive and the log alone, with the shards' own code.
//!
//! The history of a shard is a chain of archive objects, followed by the records that only the log
//! has ([`plan()`]). Objects carry what does not follow from the records: which series were
//! admitted where, and which events had been quarantined. Where that is not recorded (objects of
//! older releases, records not archived yet), the shard decides again under the current limits.
//!
//! Every batch is an ordinary flush behind its compare-and-set, so a killed rebuild resumes from
//! its checkpoints and counts nothing twice. Replays that were served are brought back from what the
//! archive says about them ([`replays`]). What only the store knew is not reconstructed: an
//! event that was released or discarded after its object was written waits for [`settled`].

mod error;
#[cfg(test)]
mod generation_tests;
pub mod plan;
pub mod replays;
pub mod settled;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub use self::error::RebuildError;
use self::plan::ShardPlan;
use self::replays::ServedReplays;
use super::fold::{self, FoldError, FoldRules};
use crate::actors::settled_documents::Settlements;
use crate::model::flush::{Claim, LogRecord, RecentIds};
use crate::model::generation::MaintainedSet;
use crate::model::manifest::{ArchiveFloor, ManifestRow, RangeDecisions, ShardRestore};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, ShardId};
use crate::model::window::{Hour, Millis};
use crate::persistence::archive::chain::ArchiveObject;
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::log::{LogError, LogReader};
use crate::persistence::store::{RebuildStore, StoreError};
use crate::shards::driver::ShardDriver;
use crate::shards::generations::ActiveSet;
use crate::shards::series::{MetricNameRegistry, SeriesAdmission};
use crate::shards::state::ShardState;

/// Payload bytes per read of the log.
const READ_BYTES: usize = 4 << 20;

/// The inputs of a rebuild, and the store it writes.
#[allow(missing_docs, reason = "the names say it")]
pub struct StoreRebuild<'a> {
    /// The new store; empty, or left by an earlier attempt.
    pub store: &'a dyn RebuildStore,
    /// Holds the archived records.
    pub archive: &'a dyn Archive,
    /// Holds the records that are not archived.
    pub log: &'a dyn LogReader,
    pub rules: FoldRules,
    /// How many series of one tenant a shard admits where its decisions are not recorded.
    pub max_series: u64,
    /// The metric names of each tenant, which have a limit of their own.
    pub metric_names: Arc<MetricNameRegistry>,
    /// `accept.max_ahead` in milliseconds: how far ahead of its append time the window of
    /// an event may be.
    pub max_ahead_ms: i64,
    /// Random; distinguishes this rebuild's epochs from those of any other owner.
    pub nonce: u64,
    /// The replays that were served, whose live writers write again from their cuts on. What lies
    /// below is filled in afterwards, by [`replays::fill`].
    pub replays: &'a ServedReplays,
}

/// What a rebuild did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Number of shards rebuilt.
    pub shards: u64,
    /// Number of archive objects read.
    pub objects: u64,
    /// Records folded: from objects, and from the log.
    pub records: (u64, u64),
    /// Events counted into rollups, dropped as duplicates, and quarantined.
    pub events: [u64; 3],
    /// Events that people had settled, and that were settled again.
    pub settled: settled::SettledAgain,
    /// Objects of an older release, which do not record admissions.
    pub undecided: u64,
    /// Objects of an older release, which carry no checksum.
    pub unsealed: u64,
    /// Objects listed but not used.
    pub unused: u64,
    /// Damaged objects, whose records were found elsewhere, and damaged documents.
    pub damaged: Vec<String>,
    /// The first window that no expired record can have touched; None if nothing has expired.
    pub incomplete_before: Option<Hour>,
}

/// Plans the history of every shard. `former` are the ids of earlier logs whose offsets this log
/// continues, as after a migration.
///
/// # Errors
/// If records are missing, or if the first ones are and `allow_expired` is not set.
pub fn plan(
    archive: &dyn Archive,
    log: &dyn LogReader,
    former: &[LogId],
    allow_expired: bool,
) -> Result<Vec<ShardPlan>, RebuildError> {
    let logs: Vec<LogId> = std::iter::once(log.id()).chain(former.iter().copied()).collect();
    let one = |shard: ShardId| {
        let mut listed = Vec::new();
        for log in &logs {
            listed.extend(archive.list(*log, shard)?);
        }
        let plan = plan::plan(&logs, shard, listed, log.bounds(shard)?)?;
        if plan.start > 0 && !allow_expired {
            return Err(RebuildError::StartsLate { shard, start: plan.start });
        }
        Ok(plan)
    };
    (0..log.shard_count()).map(ShardId).map(one).collect()
}

impl StoreRebuild<'_> {
    /// Rebuilds the shards, or resumes an interrupted rebuild. `progress` receives the
    /// number of records done.
    ///
    /// # Errors
    /// If anything cannot be read or written. Batches flushed so far are kept, so a retry resumes.
    pub fn run(
        &self,
        plans: &[ShardPlan],
        archive_only: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<RebuildReport, RebuildError> {
        self.run_with(&Settlements::new(), plans, archive_only, progress)
    }

    /// Rebuilds the shards as [`Self::run`] does, and leaves what documents say about events that
    /// were set aside to [`settled::settle`]: an object is older than the documents, and where the
    /// store was rolled back, it may call an event discarded that was released afterwards.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with(
        &self,
        settled: &Settlements,
        plans: &[ShardPlan],
        archive_only: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<RebuildReport, RebuildError> {
        let unused = plans.iter().map(|plan| plan.unused).sum();
        let mut report =
            RebuildReport { shards: plans.len() as u64, unused, ..RebuildReport::default() };
        self.replays.begin(self.store)?;
        let mut done = 0;
        let mut plans = plans.to_vec();
        for plan in &mut plans {
            // A retry without the damaged object folds the shard's remaining chain again, so its
            // progress starts over.
            let before = done;
            while let Err(error) = ShardRebuild::begin(self, settled, plan, &mut report)?
                .fold_archive(&mut |records| {
                    done += records;
                    progress(done);
                })
            {
                *plan = Self::without_damaged(plan, error, &mut report)?;
                done = before;
            }
        }
        if archive_only {
            self.replays.check_adopted(self.store)?;
            return Ok(report);
        }
        // Only after all archives: a series that several shards write to belongs to the shard that
        // the archive says admitted it, and the log does not record that.
        for plan in &plans {
            ShardRebuild::begin(self, settled, plan, &mut report)?.fold_log(&mut |records| {
                done += records;
                progress(done);
            })?;
        }
        self.replays.check_adopted(self.store)?;
        Ok(report)
    }
}

impl StoreRebuild<'_> {
    /// A plan that avoids a damaged object, if other objects or the log hold its records.
    fn without_damaged(
        plan: &ShardPlan,
        error: RebuildError,
        report: &mut RebuildReport,
    ) -> Result<ShardPlan, RebuildError> {
        let RebuildError::Archive(ArchiveError::Corrupt { path, .. }) = &error else {
            return Err(error);
        };
        let Ok(other) = plan.without(path) else { return Err(error) };
        report.damaged.push(path.clone());
        Ok(other)
    }
}

struct ShardRebuild<'a> {
    rebuild: &'a StoreRebuild<'a>,
    settled: &'a Settlements,
    plan: &'a ShardPlan,
    report: &'a mut RebuildReport,
    checkpoint: Checkpoint,
    /// Folded objects whose records are not all flushed yet, in order. An object is recorded in the
    /// store only after its records are.
    unsettled: Vec<FoldedObject>,
    /// Where the shard adopts which set of generations, ascending.
    adoptions: Vec<(Offset, Arc<ActiveSet>)>,
}

/// An object whose records the driver has applied.
struct FoldedObject {
    row: ManifestRow,
    decisions: RangeDecisions,
    floor: Option<ArchiveFloor>,
}

impl<'a> ShardRebuild<'a> {
    /// Starts at the shard's checkpoint in the new store, or creates it.
    fn begin(
        rebuild: &'a StoreRebuild<'a>,
        settled: &'a Settlements,
        plan: &'a ShardPlan,
        report: &'a mut RebuildReport,
    ) -> Result<Self, RebuildError> {
        let mut snapshot = rebuild.store.snapshot()?;
        let found = snapshot.checkpoints()?.into_iter().find(|(shard, _)| *shard == plan.shard);
        let manifest = snapshot.manifest(Some(plan.shard))?;
        drop(snapshot);
        let (log, start) = (rebuild.log.id(), plan.start);
        let epoch = Epoch { counter: plan.epoch() + 1, nonce: rebuild.nonce };
        let mut at = found.map_or(
            Checkpoint { log, next: start, archived: start, epoch, appended: None },
            |(_, at)| at,
        );
        // The manifest rows of an earlier attempt count as far as they follow the same plan.
        let same =
            plan.chain.iter().zip(&manifest).take_while(|(link, row)| link.object.path == row.path);
        at.archived = same.last().map_or(start, |(_, row)| row.range.to);
        let adoptions = rebuild.replays.adoptions(rebuild.store, plan.shard, start)?;
        let shard = Self {
            rebuild,
            settled,
            plan,
            report,
            checkpoint: at,
            unsettled: Vec::new(),
            adoptions,
        };
        shard.restore(shard.restored())?;
        Ok(shard)
    }

    fn restored(&self) -> ShardRestore {
        ShardRestore {
            shard: self.plan.shard,
            checkpoint: self.checkpoint,
            floor: None,
            manifest: Vec::new(),
            admitted: Vec::new(),
        }
    }

    fn restore(&self, part: ShardRestore) -> Result<(), RebuildError> {
        Ok(self.rebuild.store.restore(&part)?)
    }

    /// Folds the chain of archive objects.
    fn fold_archive(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), RebuildError> {
        let done = self.checkpoint.next.min(self.checkpoint.archived);
        let mut driver = self.driver()?;
        for link in &self.plan.chain {
            if link.name.range.to > done {
                self.fold_object(link, &mut driver)?;
            }
            progress(link.name.range.len());
        }
        // All archived records have expired, so the log alone tells where the floor is.
        if self.plan.start > 0 && self.plan.chain.is_empty() {
            let first = self.rebuild.log.read(self.plan.shard, self.plan.start, 1)?;
            let floor = first.first().map(|record| self.floor(record.appended, record.received));
            self.restore(ShardRestore { floor, ..self.restored() })?;
        }
        // The last objects can be recorded only after all their records are flushed.
        self.apply(&mut driver, &[], true)?;
        self.record_folded()
    }

    fn fold_object(
        &mut self,
        link: &ArchiveObject,
        driver: &mut ShardDriver,
    ) -> Result<(), RebuildError> {
        let found = self.rebuild.archive.examine(&link.object)?;
        let range = found.row.range;
        self.report.objects += 1;
        self.report.unsealed += u64::from(!found.has_checksum);
        self.report.undecided += u64::from(found.decisions.is_none());
        // Before the records: the driver must admit and quarantine as the owners did.
        if let Some(decisions) = &found.decisions {
            driver.apply_decisions(decisions, range.to);
        }
        self.report.records.0 += range.to - range.from.max(driver.state().next()).min(range.to);
        let expired = self.plan.start > 0 && range.from == self.plan.start;
        let floor = expired.then(|| self.floor(found.row.appended.0, found.row.received.1));
        if floor.is_some() && !self.adoptions.is_empty() {
            // Before a generation begins: nothing below is to be filled into it.
            self.restore(ShardRestore { floor, ..self.restored() })?;
        }
        self.apply(driver, &found.records, false)?;
        self.unsettled.push(FoldedObject {
            row: found.row,
            decisions: found.decisions.unwrap_or_default(),
            floor,
        });
        self.record_folded()
    }

    /// The floor above the expired records. The append time of the newest of them is unknown, but
    /// it is not later than that of the first record that still exists.
    fn floor(&mut self, first_left: Millis, received: Millis) -> ArchiveFloor {
        let latest = Hour::of(first_left.max(received).saturating_add(self.rebuild.max_ahead_ms));
        let hour = Hour(latest.0.saturating_add(1));
        self.report.incomplete_before = self.report.incomplete_before.max(Some(hour));
        ArchiveFloor { offset: self.plan.start, appended: first_left, hour }
    }

    /// Records the objects whose records are flushed, with their other decisions: which shard
    /// admitted a shared series, and which quarantined events were discarded. If the rebuild is
    /// killed before this, the objects are read again.
    fn record_folded(&mut self) -> Result<(), RebuildError> {
        let flushed =
            self.unsettled.partition_point(|object| object.row.range.to <= self.checkpoint.next);
        if flushed == 0 {
            return Ok(());
        }
        let settled: Vec<FoldedObject> = self.unsettled.drain(..flushed).collect();
        let there: std::collections::HashMap<_, _> =
            self.rebuild.store.snapshot()?.admissions(self.plan.shard)?.into_iter().collect();
        let documented = self.settled.get(&self.plan.shard);
        let is_documented =
            |place| documented.is_some_and(|shard| shard.events.contains_key(&place));
        let mut part = self.restored();
        for FoldedObject { row, decisions, floor } in settled {
            for (offset, index, given_up) in decisions.quarantined {
                if given_up && !is_documented((offset, index)) {
                    // `false` if an earlier attempt has done so.
                    self.rebuild.store.settle_quarantine(
                        self.plan.shard,
                        offset,
                        index,
                        None,
                        None,
                    )?;
                }
            }
            part.admitted.extend(
                decisions.admitted.into_iter().filter(|(id, offset)| there.get(id) != Some(offset)),
            );
            part.floor = part.floor.or(floor);
            part.checkpoint.archived = part.checkpoint.archived.max(row.range.to);
            part.manifest.push(row);
        }
        self.checkpoint = part.checkpoint;
        self.restore(part)
    }

    /// Folds the records that only the log has.
    fn fold_log(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), RebuildError> {
        let shard = self.plan.shard;
        progress(self.checkpoint.next - self.plan.archived.min(self.checkpoint.next));
        if self.checkpoint.next >= self.plan.end {
            return Ok(());
        }
        let mut driver = self.driver()?;
        while driver.state().next() < self.plan.end {
            let next = driver.state().next();
            let mut records = self.rebuild.log.read(shard, next, READ_BYTES)?;
            records.truncate(records.partition_point(|record| record.offset < self.plan.end));
            if records.is_empty() {
                return Err(LogError::Io(format!(
                    "shard {shard}: no records came from {next} on, although it ends at {}",
                    self.plan.end
                ))
                .into());
            }
            self.apply(&mut driver, &records, false)?;
            let folded = driver.state().next() - next;
            self.report.records.1 += folded;
            progress(folded);
        }
        self.apply(&mut driver, &[], true)
    }

    /// A driver that starts at the checkpoint, like a new owner of the shard.
    fn driver(&mut self) -> Result<ShardDriver, RebuildError> {
        let (store, shard) = (self.rebuild.store, self.plan.shard);
        self.rebuild.metric_names.extend(&store.metric_names()?);
        let admission =
            SeriesAdmission::limited(self.rebuild.max_series, store.admitted_series(shard)?);
        let admission =
            admission.for_shard(shard).with_metric_names(self.rebuild.metric_names.clone());
        if self.checkpoint.appended.is_none() {
            self.checkpoint.appended =
                self.rebuild.log.appended_below(shard, self.checkpoint.next)?;
        }
        let adopted = self.rebuild.replays.adopted(store, shard)?;
        let claim = Claim {
            checkpoint: self.checkpoint,
            attempts: 1,
            suspects: Vec::new(),
            set: MaintainedSet::default(),
        };
        let limits = self.rebuild.rules.limits();
        // The rules that the lost store had recorded are lost with it. The configuration decides
        // instead, and that is recorded for the next owner.
        let mut rules = store.snapshot()?.dedup_rules(shard)?;
        for (from, rule) in rules.pending_changes(self.checkpoint.next, limits.dedup_rule()) {
            store.set_dedup_rule(shard, self.checkpoint.epoch, from, rule)?;
            rules.record(from, rule);
        }
        let recent = RecentIds { rules, blocks: store.recent_ids(shard, i64::MIN)? };
        let next = self.checkpoint.next;
        let state = ShardState::new(limits, shard, &claim, recent, admission, next)
            .with_generations(adopted, self.rebuild.max_series);
        Ok(state.into())
    }

    /// Applies the records above the driver's position and flushes what is due; all of it with
    /// `drain`. Adopts the sets of generations where the shard did.
    fn apply(
        &mut self,
        driver: &mut ShardDriver,
        records: &[LogRecord],
        drain: bool,
    ) -> Result<(), RebuildError> {
        let mut rest = records;
        while let Some((at, set)) = self.next_adoption(driver) {
            let below = rest.partition_point(|record| record.offset < at);
            self.fold(driver, |driver, commit| fold::apply(driver, &rest[..below], drain, commit))?;
            if driver.state().next() < at {
                return Ok(());
            }
            self.fold(driver, |driver, commit| fold::adopt(driver, set, commit))?;
            rest = &rest[below..];
        }
        self.fold(driver, |driver, commit| fold::apply(driver, rest, drain, commit))
    }

    fn next_adoption(&self, driver: &ShardDriver) -> Option<(Offset, Arc<ActiveSet>)> {
        let adopted = driver.state().set().version();
        self.adoptions.iter().find(|(_, set)| set.version() > adopted).cloned()
    }

    /// Has the driver fold, and flushes what it commits.
    fn fold(
        &mut self,
        driver: &mut ShardDriver,
        run: impl FnOnce(
            &mut ShardDriver,
            &mut fold::CommitFn<'_, StoreError>,
        ) -> Result<(), FoldError<StoreError>>,
    ) -> Result<(), RebuildError> {
        let (store, shard, next) = (self.rebuild.store, self.plan.shard, driver.state().next());
        let (at, events) = (&mut self.checkpoint, &mut self.report.events);
        // A poison event panics here as it would in a shard. The panic is caught so that the
        // message can name the record; the driver is not used afterwards.
        let folded = catch_unwind(AssertUnwindSafe(|| {
            run(driver, &mut |guard, batch, forget| {
                store.flush(guard, batch, forget)?;
                (at.next, at.appended) = (guard.range.to, batch.appended.or(at.appended));
                for row in &batch.accounting {
                    for (sum, of) in
                        events.iter_mut().zip([row.aggregated, row.deduplicated, row.quarantined])
                    {
                        *sum += of;
                    }
                }
                Ok::<(), StoreError>(())
            })
        }));
        match folded {
            Err(_) => Err(RebuildError::Panicked { shard, next }),
            Ok(Ok(())) => Ok(()),
            Ok(Err(FoldError::Commit(error))) => Err(error.into()),
            Ok(Err(FoldError::Stopped(why))) => {
                Err(LogError::Replaced(format!("shard {shard}: {why}")).into())
            }
        }
    }
}

#[cfg(test)]
mod tests;
