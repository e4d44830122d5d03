//! One snapshot of the store, as far as a verification needs it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use super::generations::StoredGenerations;
use super::report::UnverifiableWindows;
use super::sources::VerifyError;
use super::stored_row::{StoredRow, digest};
use crate::model::flush::{AccountingDelta, DedupRules, SuspectEvent};
use crate::model::manifest::{ArchiveFloor, ManifestRow};
use crate::model::offset::{Checkpoint, Offset, ShardId};
use crate::model::outcome::UncountedEvent;
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::log::{LogError, LogReader};
use crate::persistence::store::{
    MetricInfo, NameRange, SnapshotSource, StoreDamage, StoreError, StoreSnapshot,
};

/// Everything that one snapshot says about the range.
pub(super) struct StoreView {
    checkpoints: Vec<(ShardId, Checkpoint)>,
    manifest: Vec<ManifestRow>,
    floors: HashMap<ShardId, ArchiveFloor>,
    /// Per checkpoint, in the same order.
    quarantined: Vec<Vec<UncountedEvent>>,
    /// Per checkpoint, in the same order.
    admissions: Vec<Vec<(SeriesId, Offset)>>,
    /// Per checkpoint, in the same order.
    rules: Vec<DedupRules>,
    pub(super) rows: HashMap<(SeriesId, Hour), StoredRow>,
    pub(super) generations: StoredGenerations,
    /// Rows below this hour are dropped by age.
    pub(super) kept_from: Hour,
    pub(super) accounting: Vec<AccountingDelta>,
    metrics: Vec<(String, MetricInfo)>,
    pub(super) damages: Vec<StoreDamage>,
    /// The rollups could not be read, so nothing can be said about rows.
    pub(super) rows_unread: bool,
}

/// What the snapshot says about the history of one shard.
pub(super) struct ShardHistory<'a> {
    pub(super) shard: ShardId,
    pub(super) checkpoint: Checkpoint,
    pub(super) suspects: Vec<SuspectEvent>,
    pub(super) admissions: &'a [(SeriesId, Offset)],
    pub(super) rules: &'a DedupRules,
    pub(super) floor: Option<&'a ArchiveFloor>,
    pub(super) manifest: Vec<&'a ManifestRow>,
}

impl StoreView {
    /// Reads the store in one snapshot.
    pub(super) fn read(
        store: &dyn SnapshotSource,
        hours: &Range<Hour>,
    ) -> Result<Self, StoreError> {
        let mut damages = Vec::new();
        let mut snapshot = store.snapshot()?;
        let checkpoints = snapshot.checkpoints()?;
        let manifest = snapshot.manifest(None)?;
        let floors = snapshot.archive_floors()?.into_iter().collect();
        let shards = || checkpoints.iter().map(|(shard, _)| *shard);
        let admissions =
            shards().map(|shard| snapshot.admissions(shard)).collect::<Result<_, _>>()?;
        let rules = shards().map(|shard| snapshot.dedup_rules(shard)).collect::<Result<_, _>>()?;
        let quarantined =
            shards().map(|shard| snapshot.quarantined_events(shard)).collect::<Result<_, _>>()?;
        let mut rows = HashMap::new();
        let read =
            snapshot.rollup_bytes(hours.start, hours.end, &mut |info, hour, rollup, bytes| {
                rows.insert(
                    (info.id, hour),
                    StoredRow {
                        info: info.clone(),
                        figures: rollup.figures,
                        digest: digest(bytes),
                    },
                );
            });
        let rows_unread = read.is_err();
        if let Err(why) = read {
            // An unreachable store fails the run. Any other error is damage: reading on may find
            // more of it.
            if let StoreError::Unavailable(_) = why {
                return Err(why);
            }
            damages.push(StoreDamage { location: "rollups".to_owned(), reason: why.to_string() });
            rows.clear();
        }
        let known: Vec<ShardId> = shards().collect();
        let generations = read_generations(&mut *snapshot, &known, hours, &mut damages)?;
        let kept_from = snapshot.retention_floor()?.unwrap_or(Hour(i32::MIN));
        let accounting = snapshot.ledger()?;
        let mut metrics = Vec::new();
        let tenants: BTreeSet<&String> = accounting.iter().map(|row| &row.tenant).collect();
        for tenant in tenants {
            let listed = snapshot.metrics(tenant, &NameRange::ALL)?.into_iter();
            metrics.extend(listed.map(|metric| (tenant.clone(), metric)));
        }
        let mut view = Self {
            checkpoints,
            manifest,
            floors,
            quarantined,
            admissions,
            rules,
            rows,
            generations,
            kept_from,
            accounting,
            metrics,
            damages,
            rows_unread,
        };
        if !rows_unread {
            view.damages.extend(view.missing_metrics(hours));
        }
        Ok(view)
    }

    /// The histories of the selected shards that have a checkpoint.
    pub(super) fn histories(&self, only: Option<ShardId>) -> Vec<ShardHistory<'_>> {
        let of_checkpoint = |(at, &(shard, checkpoint)): (usize, &(ShardId, Checkpoint))| {
            let suspect = |of: &UncountedEvent| SuspectEvent::quarantined(of.offset, of.index);
            ShardHistory {
                shard,
                checkpoint,
                suspects: self.quarantined[at].iter().map(suspect).collect(),
                admissions: &self.admissions[at],
                rules: &self.rules[at],
                floor: self.floors.get(&shard),
                manifest: self.manifest.iter().filter(|row| row.shard == shard).collect(),
            }
        };
        self.checkpoints
            .iter()
            .enumerate()
            .filter(|(_, (shard, _))| only.is_none_or(|only| only == *shard))
            .map(of_checkpoint)
            .collect()
    }

    /// Number of quarantined events and records of the selected shards.
    pub(super) fn quarantined(&self, only: Option<ShardId>) -> u64 {
        let of_shards = self.checkpoints.iter().zip(&self.quarantined);
        let selected = of_shards.filter(|((shard, _), _)| only.is_none_or(|only| only == *shard));
        selected.map(|(_, quarantined)| quarantined.len() as u64).sum()
    }

    /// The longest horizon that any recorded rule had, but at least `configured_ms`.
    pub(super) fn longest_horizon_ms(&self, configured_ms: i64) -> i64 {
        self.rules.iter().filter_map(DedupRules::longest_horizon_ms).fold(configured_ms, i64::max)
    }

    /// Metrics that the catalogue lists but whose last window has no rollup. Old windows may have
    /// been dropped, so a metric older than every stored row proves nothing, unless the store has
    /// no rows at all.
    fn missing_metrics(&self, hours: &Range<Hour>) -> Vec<StoreDamage> {
        let oldest = self.rows.keys().map(|(_, hour)| *hour).min();
        let stored: HashSet<(&str, &str, Hour)> = self
            .rows
            .values()
            .zip(self.rows.keys())
            .map(|(row, (_, hour))| (&*row.info.series.tenant, &*row.info.series.metric, *hour))
            .collect();
        let is_missing = |(tenant, metric): &&(String, MetricInfo)| {
            let Some(last) = metric.last.filter(|last| hours.contains(last)) else { return false };
            oldest.is_none_or(|oldest| last >= oldest)
                && !stored.contains(&(&**tenant, &*metric.metric, last))
        };
        let damage = |(tenant, metric): &(String, MetricInfo)| StoreDamage {
            location: "rollups".to_owned(),
            reason: format!(
                "{tenant}/{}: the catalogue says that there are some, of its last window at \
                 least, and there are none",
                metric.metric
            ),
        };
        self.metrics.iter().filter(is_missing).map(damage).collect()
    }

    /// Cuts the range and the rows to what the remaining records can verify.
    pub(super) fn above_floors(
        &mut self,
        hours: Range<Hour>,
        log: &dyn LogReader,
        horizon_ms: i64,
    ) -> Result<(Range<Hour>, Option<UnverifiableWindows>), VerifyError> {
        let mut before = hours.start;
        for (shard, floor) in &self.floors {
            let rows = self.manifest.iter().filter(|row| row.shard == *shard);
            before = before.max(first_verifiable(floor, rows, horizon_ms));
            let checkpoint = self
                .checkpoints
                .iter()
                .find(|(id, _)| id == shard)
                .map(|(_, checkpoint)| checkpoint);
            let Some(at) = checkpoint.filter(|at| at.archived < at.next) else { continue };
            let first = match log.read(*shard, at.archived, 1) {
                Err(LogError::Released { .. }) => return Err(VerifyError::Released),
                // Any other error is reported by the fold of the shard, which reads the same.
                first => first.unwrap_or_default(),
            };
            let log_begins = first.first().map(|record| record.appended);
            // Records of the log may touch any window, and these may repeat ids from below the
            // floor: nothing is verifiable.
            if log_begins.is_some_and(|begin| begin.saturating_sub(floor.appended) <= horizon_ms) {
                before = Hour(i32::MAX);
            }
        }
        if before == hours.start {
            return Ok((hours, None));
        }
        let all = self.rows.len();
        self.rows.retain(|(_, hour), _| *hour >= before);
        let rows = (all - self.rows.len()) as u64 + self.generations.drop_before(before);
        Ok((before..hours.end.max(before), Some(UnverifiableWindows { before, rows })))
    }
}

/// The maintained generations. What cannot be read of them is damage, unless the store does not
/// answer.
fn read_generations(
    snapshot: &mut dyn StoreSnapshot,
    shards: &[ShardId],
    hours: &Range<Hour>,
    damages: &mut Vec<StoreDamage>,
) -> Result<StoredGenerations, StoreError> {
    match StoredGenerations::read(snapshot, shards, hours) {
        Err(StoreError::Unavailable(why)) => Err(StoreError::Unavailable(why)),
        Err(why) => {
            let location = "generations".to_owned();
            damages.push(StoreDamage { location, reason: why.to_string() });
            Ok(StoredGenerations::default())
        }
        Ok(generations) => Ok(generations),
    }
}

/// The first window that was touched neither by expired records nor by the objects within one
/// horizon after the floor, which may repeat the id of an expired event.
pub(super) fn first_verifiable<'a>(
    floor: &ArchiveFloor,
    rows: impl Iterator<Item = &'a ManifestRow>,
    horizon_ms: i64,
) -> Hour {
    let near = rows.take_while(|row| row.appended.0.saturating_sub(floor.appended) <= horizon_ms);
    let touched =
        near.filter_map(|row| row.windows.last()).map(|(hour, _)| Hour(hour.0.saturating_add(1)));
    touched.fold(floor.hour, Hour::max)
}
