//! Makes a lost store anew, from the archive and the log alone, with the shards' own code.
//!
//! The history of a shard is a chain of archive objects and then the records that only the log has
//! ([`plan()`]). Objects carry what does not follow from the records: which series were admitted
//! where, and which events had been set aside. Where that was not noted (objects of older releases,
//! records not archived yet), the shard decides again, under the limits of today. What always
//! holds: every batch is an ordinary flush behind its compare-and-set, so a rebuild that was killed
//! goes on at its checkpoints and counts nothing twice. What the store alone knew is not made up:
//! an event that was released or given up after its object was written waits in the quarantine
//! again.

pub mod plan;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use self::plan::ShardPlan;
use super::fold::{self, FoldError, FoldRules};
use crate::model::flush::{Claim, LogRecord, RecentIds};
use crate::model::manifest::{ArchiveFloor, ManifestRow, RangeDecisions, ShardRestore};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::window::{Hour, Millis};
use crate::persistence::archive::chain::ArchiveObject;
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::log::{LogError, LogReader};
use crate::persistence::store::{RollupStore, StoreError};
use crate::shards::driver::ShardDriver;
use crate::shards::series::{MetricNameRegistry, SeriesAdmission};
use crate::shards::state::ShardState;

/// Payload bytes read from the log at once.
const READ_BYTES: usize = 4 << 20;

/// Why a store cannot be rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// The new store.
    #[error("{0}; what is rebuilt so far is kept: run the command again, and it goes on")]
    Store(#[from] StoreError),
    /// An object cannot be read.
    #[error("{0}{way_out}", way_out = remedy(.0))]
    Archive(#[from] ArchiveError),
    /// The log.
    #[error("{0}")]
    Log(#[from] LogError),
    /// Records that neither the archive nor the log has.
    #[error(
        "shard {shard}: records {} to {} are neither in the archive nor in the log: bring back the archive objects or the log segments \
         that hold them; nothing was rebuilt past them", missing.from, missing.to
    )]
    Gap {
        /// The shard.
        shard: ShardId,
        /// What is missing.
        missing: OffsetRange,
    },
    /// The first records are gone.
    #[error(
        "shard {shard} begins at record {start}: those before have expired (archive.keep), were \
         lost, or are archived under the id of a former log (--former-log); to rebuild without \
         them, add --allow-expired"
    )]
    StartsLate {
        /// The shard.
        shard: ShardId,
        /// The first record that is left.
        start: Offset,
    },
    /// The log is older than the archive.
    #[error(
        "shard {shard}: the log ends at record {end}, the archive at {archived}: a server would \
         take new records for those that are archived; bring back the log that belongs to the \
         archive"
    )]
    LogShort {
        /// The shard.
        shard: ShardId,
        /// Where the archive ends.
        archived: Offset,
        /// Where the log ends.
        end: Offset,
    },
    /// An event kills the fold.
    #[error(
        "shard {shard}: folding a record at or behind {next} panics: a build that can fold it is \
         needed; if the archive ends at or before it, add --archive-only: the server reads the \
         rest from the log, and sets such an event aside"
    )]
    Panicked {
        /// The shard.
        shard: ShardId,
        /// The first record that may be the one.
        next: Offset,
    },
}

fn remedy(error: &ArchiveError) -> &'static str {
    match error {
        ArchiveError::Corrupt { .. } | ArchiveError::Missing(_) => {
            ": bring the object back from a copy; neither the log nor another object has all of \
             its records"
        }
        _ => "",
    }
}

/// What is read, and what is written.
pub struct StoreRebuild<'a> {
    /// The new store, which is being rebuilt.
    pub store: &'a dyn RollupStore,
    /// The records that are archived.
    pub archive: &'a dyn Archive,
    /// The others.
    pub log: &'a dyn LogReader,
    /// The rules of folding.
    pub rules: FoldRules,
    /// Series of one tenant that a shard admits, where nothing says what it admitted.
    pub max_series: u64,
    /// The metric names of each tenant, under their limit.
    pub metric_names: Arc<MetricNameRegistry>,
    /// `accept.max_ahead` in milliseconds: how far behind its append time the window of an event
    /// may lie.
    pub max_ahead_ms: i64,
    /// Random: tells the owner that a rebuild is from all others.
    pub nonce: u64,
}

/// What was rebuilt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Shards.
    pub shards: u64,
    /// Objects read.
    pub objects: u64,
    /// Records folded: those of objects, and those that only the log has.
    pub records: (u64, u64),
    /// Events counted into rollups, dropped as duplicates, set aside.
    pub events: [u64; 3],
    /// Objects of an older release that say nothing of admissions.
    pub undecided: u64,
    /// Objects of an older release that carry no checksum.
    pub unsealed: u64,
    /// Objects that were left aside.
    pub unused: u64,
    /// Those among them that are damaged; their records were elsewhere.
    pub damaged: Vec<String>,
    /// The first window that no expired record can have touched, if some have expired.
    pub incomplete_before: Option<Hour>,
}

/// Finds the history of every shard. `former` are logs whose offsets this one has continued, as
/// after a migration.
///
/// # Errors
/// If records are missing, or, unless that is allowed, the first ones are.
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
    /// Rebuilds the shards, or goes on where an earlier attempt was ended. `progress` is told how
    /// many records are done.
    ///
    /// # Errors
    /// See [`RebuildError`].
    pub fn run(
        &self,
        plans: &[ShardPlan],
        archive_only: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<RebuildReport, RebuildError> {
        let unused = plans.iter().map(|plan| plan.unused).sum();
        let mut report =
            RebuildReport { shards: plans.len() as u64, unused, ..RebuildReport::default() };
        let mut done = 0;
        let mut plans = plans.to_vec();
        for plan in &mut plans {
            let before = done;
            while let Err(error) =
                ShardRebuild::begin(self, plan, &mut report)?.fold_archive(&mut |records| {
                    done += records;
                    progress(done);
                })
            {
                *plan = Self::without_damaged(plan, error, &mut report)?;
                done = before;
            }
        }
        if archive_only {
            return Ok(report);
        }
        // Behind all archives: an overflow series that several shards write to then belongs to the
        // one that admitted it.
        for plan in &plans {
            ShardRebuild::begin(self, plan, &mut report)?.fold_log(&mut |records| {
                done += records;
                progress(done);
            })?;
        }
        Ok(report)
    }
}

impl StoreRebuild<'_> {
    /// Another way around a damaged object, if its records are in others or in the log.
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
    of: &'a StoreRebuild<'a>,
    plan: &'a ShardPlan,
    report: &'a mut RebuildReport,
    at: Checkpoint,
    /// Objects whose records are not all flushed yet, in order: what they say is noted behind
    /// their records.
    unsettled: Vec<FoldedObject>,
}

/// An object that was folded.
struct FoldedObject {
    row: ManifestRow,
    decisions: RangeDecisions,
    floor: Option<ArchiveFloor>,
}

impl<'a> ShardRebuild<'a> {
    /// The shard's row, which may be there from an earlier attempt.
    fn begin(
        of: &'a StoreRebuild<'a>,
        plan: &'a ShardPlan,
        report: &'a mut RebuildReport,
    ) -> Result<Self, RebuildError> {
        let mut snapshot = of.store.snapshot()?;
        let found = snapshot.checkpoints()?.into_iter().find(|(shard, _)| *shard == plan.shard);
        let manifest = snapshot.manifest(Some(plan.shard))?;
        drop(snapshot);
        let (log, start) = (of.log.id(), plan.start);
        let epoch = Epoch { counter: plan.epoch() + 1, nonce: of.nonce };
        let mut at = found.map_or(
            Checkpoint { log, next: start, archived: start, epoch, appended: None },
            |(_, at)| at,
        );
        // As far as the rows of an earlier attempt are those of this plan.
        let same =
            plan.chain.iter().zip(&manifest).take_while(|(link, row)| link.object.path == row.path);
        at.archived = same.last().map_or(start, |(_, row)| row.range.to);
        let shard = Self { of, plan, report, at, unsettled: Vec::new() };
        shard.restore(shard.restored())?;
        Ok(shard)
    }

    fn restored(&self) -> ShardRestore {
        ShardRestore {
            shard: self.plan.shard,
            checkpoint: self.at,
            floor: None,
            manifest: Vec::new(),
            admitted: Vec::new(),
        }
    }

    fn restore(&self, part: ShardRestore) -> Result<(), RebuildError> {
        Ok(self.of.store.restore(&part)?)
    }

    /// Folds the objects.
    fn fold_archive(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), RebuildError> {
        let done = self.at.next.min(self.at.archived);
        let mut driver = self.driver()?;
        for link in &self.plan.chain {
            if link.name.range.to > done {
                self.fold_object(link, &mut driver)?;
            }
            progress(link.name.range.len());
        }
        self.apply(&mut driver, &[], true)?;
        self.record_folded()?;
        if self.plan.start > 0 && self.plan.chain.is_empty() {
            let first = self.of.log.read(self.plan.shard, self.plan.start, 1)?;
            let floor = first.first().map(|record| self.floor(record.appended, record.received));
            self.restore(ShardRestore { floor, ..self.restored() })?;
        }
        Ok(())
    }

    fn fold_object(
        &mut self,
        link: &ArchiveObject,
        driver: &mut ShardDriver,
    ) -> Result<(), RebuildError> {
        let found = self.of.archive.examine(&link.object)?;
        let range = found.row.range;
        self.report.objects += 1;
        self.report.unsealed += u64::from(!found.has_checksum);
        self.report.undecided += u64::from(found.decisions.is_none());
        if let Some(decisions) = &found.decisions {
            driver.apply_decisions(decisions, range.to);
        }
        self.report.records.0 += range.to - range.from.max(driver.state().next()).min(range.to);
        let expired = self.plan.start > 0 && range.from == self.plan.start;
        let floor = expired.then(|| self.floor(found.row.appended.0, found.row.received.1));
        self.apply(driver, &found.records, false)?;
        self.unsettled.push(FoldedObject {
            row: found.row,
            decisions: found.decisions.unwrap_or_default(),
            floor,
        });
        self.record_folded()
    }

    /// The floor above expired records. When the newest of them was taken is not known: not later
    /// than the first one that is left.
    fn floor(&mut self, first_left: Millis, received: Millis) -> ArchiveFloor {
        let latest = Hour::of(first_left.max(received).saturating_add(self.of.max_ahead_ms));
        let hour = Hour(latest.0.saturating_add(1));
        self.report.incomplete_before = self.report.incomplete_before.max(Some(hour));
        ArchiveFloor { offset: self.plan.start, appended: first_left, hour }
    }

    /// Notes the objects whose records are flushed, and what they say beside: who admitted a series
    /// that several shards write to, and which events were given up. A rebuild that is killed
    /// before reads them again.
    fn record_folded(&mut self) -> Result<(), RebuildError> {
        let flushed = self.unsettled.partition_point(|object| object.row.range.to <= self.at.next);
        if flushed == 0 {
            return Ok(());
        }
        let settled: Vec<FoldedObject> = self.unsettled.drain(..flushed).collect();
        let there: std::collections::HashMap<_, _> =
            self.of.store.snapshot()?.admissions(self.plan.shard)?.into_iter().collect();
        let mut part = self.restored();
        for FoldedObject { row, decisions, floor } in settled {
            for (offset, index, given_up) in decisions.quarantined {
                if given_up {
                    self.of.store.settle_quarantine(self.plan.shard, offset, index, None)?;
                }
            }
            part.admitted.extend(
                decisions.admitted.into_iter().filter(|(id, offset)| there.get(id) != Some(offset)),
            );
            part.floor = part.floor.or(floor);
            part.checkpoint.archived = part.checkpoint.archived.max(row.range.to);
            part.manifest.push(row);
        }
        self.at = part.checkpoint;
        self.restore(part)
    }

    /// Folds what only the log has.
    fn fold_log(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), RebuildError> {
        let shard = self.plan.shard;
        progress(self.at.next - self.plan.archived.min(self.at.next));
        if self.at.next >= self.plan.end {
            return Ok(());
        }
        let mut driver = self.driver()?;
        while driver.state().next() < self.plan.end {
            let next = driver.state().next();
            let mut records = self.of.log.read(shard, next, READ_BYTES)?;
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

    /// An owner that begins at the checkpoint.
    fn driver(&mut self) -> Result<ShardDriver, RebuildError> {
        let (store, shard) = (self.of.store, self.plan.shard);
        self.of.metric_names.extend(&store.metric_names()?);
        let admission = SeriesAdmission::limited(self.of.max_series, store.admitted_series(shard)?);
        let admission = admission.for_shard(shard).with_metric_names(self.of.metric_names.clone());
        if self.at.appended.is_none() {
            self.at.appended = self.of.log.appended_below(shard, self.at.next)?;
        }
        let claim = Claim { checkpoint: self.at, attempts: 1, suspects: Vec::new() };
        let limits = self.of.rules.limits();
        // What the lost store had noted is lost with it: the records are decided by the
        // configuration, and that is noted.
        let mut rules = store.snapshot()?.dedup_rules(shard)?;
        for (from, rule) in rules.pending_changes(self.at.next, limits.dedup_rule()) {
            store.note_dedup_rule(shard, self.at.epoch, from, rule)?;
            rules.record(from, rule);
        }
        let recent = RecentIds { rules, blocks: store.recent_ids(shard, i64::MIN)? };
        Ok(ShardState::new(limits, shard, &claim, recent, admission, self.at.next).into())
    }

    /// Applies the records above the state's position, and flushes what is due.
    fn apply(
        &mut self,
        driver: &mut ShardDriver,
        records: &[LogRecord],
        drain: bool,
    ) -> Result<(), RebuildError> {
        let (store, shard, next) = (self.of.store, self.plan.shard, driver.state().next());
        let (at, events) = (&mut self.at, &mut self.report.events);
        let folded = catch_unwind(AssertUnwindSafe(|| {
            fold::apply(driver, records, drain, &mut |guard, batch, forget| {
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
