//! Maintenance of the archive: old objects move to the cold store, older ones
//! expire, orphans are removed.
//!
//! It is an actor with a timer of its own, so that it never delays archiving, and one turn handles
//! a limited number of objects. Each node maintains the shards that it owns; two nodes that do so
//! at once, around a takeover, do no harm. Invariant: an object that the manifest names is complete
//! in one of the two stores, even if this actor dies between any two steps:
//! - Moving: copy, verify, record the tier in the manifest, then remove the hot object. A crash
//!   leaves a copy in the wrong store, which the next attempt or the search for orphans removes.
//! - Expiry: the manifest row goes first, in one transaction with the archive floor, then the
//!   object. A crash leaves an orphan.
//!
//! Nothing is deleted because a clock says so: what is due is recorded, and is deleted once a day
//! has passed since on the boot clock of the shard's owner ([`expiry_state`]). The
//! same holds for orphans.

mod expiry_state;
mod replay_hold;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

pub use self::expiry_state::ExpiryChecks;
use super::shard_table::ShardTable;
use crate::clock::Clock;
use crate::model::expiry::{DueRows, ExpiryRules};
use crate::model::manifest::{ManifestRow, Tier};
use crate::model::offset::{LogId, ShardId};
use crate::model::window::Millis;
use crate::persistence::archive::{Archive, ArchiveError, ObjectInfo};
use crate::persistence::store::ManifestStore;
use crate::telemetry;

/// Longest interval between two turns.
const TURN_EVERY_MS: i64 = 60_000;
/// Interval after a turn that left work undone.
const BUSY_EVERY: Duration = Duration::from_secs(1);
/// Most objects moved or expired in one turn.
const TURN_OBJECTS: usize = 64;
/// A turn ends after this many failures: the object storage or the store is down.
const TURN_FAILURES: usize = 3;
/// Damaged objects that are skipped until the next search for orphans. Further ones are retried at
/// the front of the queue and hold up the objects behind them.
const MAX_DAMAGED: usize = 4_096;
/// Interval between two searches for orphans.
const SWEEP_EVERY_MS: i64 = 3_600_000;

/// When objects move and expire. Their age is that of their newest record, by receive time.
#[derive(Debug, Clone, Copy)]
pub struct MaintenanceLimits {
    /// Age at which objects move to the cold store: `archive.cold_after`, in milliseconds.
    pub cold_after_ms: i64,
    /// `archive.keep` in milliseconds; 0 keeps everything.
    pub keep_ms: i64,
    /// When objects that are due may be deleted.
    pub expiry: ExpiryRules,
    /// For how long a replay holds the objects that it has to read: `replay.max_time`, in
    /// milliseconds.
    pub replay_hold_ms: i64,
}

impl MaintenanceLimits {
    fn turn_interval(&self) -> Duration {
        Duration::from_millis((self.cold_after_ms / 4).clamp(20, TURN_EVERY_MS).unsigned_abs())
    }
}

/// Dependencies and configuration of the maintenance.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct ArchiveMaintenance {
    /// The log whose objects are maintained.
    pub log: LogId,
    pub store: Arc<dyn ManifestStore>,
    pub archive: Arc<dyn Archive>,
    pub clock: Arc<dyn Clock>,
    pub limits: MaintenanceLimits,
    pub table: Arc<ShardTable>,
    /// Shared with the successors of this actor, so that a restart does not retry what is damaged.
    pub damaged: DamagedObjects,
    /// A random number that tells the time measured in this life from that of every other.
    pub run_id: u64,
    /// When each shard was last checked for expiry, and with what result.
    pub expiry_checks: ExpiryChecks,
}

/// Paths of objects that are missing or differ from the manifest. They are skipped, so that the
/// objects behind them can move, and retried after each search for orphans, in case
/// somebody has repaired them.
#[derive(Debug, Clone, Default)]
pub struct DamagedObjects(Arc<Mutex<HashSet<String>>>);

impl DamagedObjects {
    fn with<T>(&self, act: impl FnOnce(&mut HashSet<String>) -> T) -> T {
        // The set is consistent after every change, so a poisoned lock can be used.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether the failure is due to the object itself, so that others may well succeed.
fn is_damage(why: &ActorProcessingErr) -> bool {
    matches!(
        why.downcast_ref::<ArchiveError>(),
        Some(ArchiveError::Corrupt { .. } | ArchiveError::Missing(_))
    )
}

/// Messages of the maintenance actor.
#[allow(missing_docs, reason = "the name says it")]
#[derive(Debug)]
pub enum MaintenanceMessage {
    Turn,
}

impl ractor::Message for MaintenanceMessage {}

/// State of the maintenance actor between turns.
#[derive(Debug, Default, Clone, Copy)]
pub struct MaintenanceState {
    /// When the next search for orphans is due, on the boot clock.
    sweep_at: Millis,
    /// Number of turns so far; each starts with another shard.
    turns: usize,
}

impl Actor for ArchiveMaintenance {
    type Msg = MaintenanceMessage;
    type State = MaintenanceState;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<MaintenanceMessage>,
        (): (),
    ) -> Result<MaintenanceState, ActorProcessingErr> {
        myself.send_after(self.limits.turn_interval(), || MaintenanceMessage::Turn);
        Ok(MaintenanceState::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<MaintenanceMessage>,
        _: MaintenanceMessage,
        state: &mut MaintenanceState,
    ) -> Result<(), ActorProcessingErr> {
        let (upkeep, now) = (self.clone(), self.clock.uptime());
        let mut owned: Vec<ShardId> = self
            .table
            .iter()
            .filter(|(_, entry)| entry.epoch().is_some())
            .map(|(id, _)| id)
            .collect();
        let sweep = now >= state.sweep_at && !owned.is_empty();
        if sweep {
            state.sweep_at = now + SWEEP_EVERY_MS;
        }
        state.turns = state.turns.wrapping_add(1);
        // The budget of a turn may run out early, so that always starting with the same shard
        // would starve the others.
        let first = state.turns % owned.len().max(1);
        owned.rotate_left(first);
        let finished = tokio::task::spawn_blocking(move || {
            if sweep {
                upkeep.sweep(&owned);
            }
            upkeep.turn(&owned)
        });
        let next = if finished.await? {
            self.limits.turn_interval()
        } else {
            BUSY_EVERY.min(self.limits.turn_interval())
        };
        myself.send_after(next, || MaintenanceMessage::Turn);
        Ok(())
    }
}

/// What is left of a turn's limits.
struct TurnBudget {
    objects: usize,
    failures: usize,
}

impl TurnBudget {
    fn is_spent(&self) -> bool {
        self.objects == 0 || self.failures == 0
    }
}

impl ArchiveMaintenance {
    /// Moves and expires what is due in these shards, within the limits of a turn. Returns false if
    /// the limit of objects was reached, so that more may be due. Blocks.
    fn turn(&self, shards: &[ShardId]) -> bool {
        let mut budget = TurnBudget { objects: TURN_OBJECTS, failures: TURN_FAILURES };
        for shard in shards {
            self.process_rows(
                *shard,
                "expire",
                &mut budget,
                &|| self.expirable_rows(*shard),
                &|row| self.expire(row),
            );
            self.process_rows(*shard, "move", &mut budget, &|| self.rows_to_cool(*shard), &|row| {
                self.move_to_cold(row)
            });
            if budget.is_spent() {
                return budget.objects > 0;
            }
        }
        true
    }

    /// Handles the rows one by one, oldest first. A failure is logged and does not stop the others.
    fn process_rows(
        &self,
        shard: ShardId,
        step: &'static str,
        budget: &mut TurnBudget,
        due: &dyn Fn() -> Result<Vec<ManifestRow>, ActorProcessingErr>,
        handle: &dyn Fn(&ManifestRow) -> Result<(), ActorProcessingErr>,
    ) {
        let failed = |budget: &mut TurnBudget, why: &ActorProcessingErr| {
            // A damaged object says nothing about the storage, so it does not use up the
            // failures of the turn.
            if !is_damage(why) {
                budget.failures = budget.failures.saturating_sub(1);
            }
            metrics::counter!(telemetry::ARCHIVE_FAILURES, "step" => step).increment(1);
            tracing::warn!(
                shard = shard.0,
                step,
                %why,
                "upkeep of the archive failed, it is tried again"
            );
        };
        if budget.is_spent() {
            return;
        }
        let rows = match due() {
            Ok(rows) => rows,
            Err(why) => return failed(budget, &why),
        };
        for row in &rows {
            if budget.is_spent() {
                return;
            }
            budget.objects -= 1;
            match handle(row) {
                Ok(()) => metrics::counter!(telemetry::ARCHIVE_UPKEEP, "step" => step).increment(1),
                Err(why) => {
                    if is_damage(&why) {
                        self.damaged.with(|damaged| {
                            damaged.len() < MAX_DAMAGED && damaged.insert(row.path.clone())
                        });
                    }
                    failed(budget, &why);
                }
            }
        }
    }

    /// The first hot rows of a shard that were received longer than `archive.cold_after` ago.
    fn old_hot_rows(&self, shard: ShardId) -> Result<Vec<ManifestRow>, ActorProcessingErr> {
        let now = self.clock.now();
        // Damaged rows stay at the front of the manifest; without reading past them a turn
        // would see only them.
        let skipped = self.damaged.with(|damaged| damaged.len());
        let mut rows = self.store.snapshot()?.manifest_first(
            shard,
            Some(Tier::Hot),
            TURN_OBJECTS + skipped,
        )?;
        let received: Vec<(i64, Millis)> = rows.iter().map(|row| (0, row.received.1)).collect();
        let mut due = DueRows::default();
        due.add(&received, now.saturating_sub(self.limits.cold_after_ms), now);
        rows.truncate(due.rows as usize);
        Ok(rows)
    }

    /// Removes rows whose objects are known to be damaged.
    fn without_damaged(&self, mut rows: Vec<ManifestRow>) -> Vec<ManifestRow> {
        self.damaged.with(|damaged| rows.retain(|row| !damaged.contains(&row.path)));
        rows.truncate(TURN_OBJECTS);
        rows
    }

    fn expirable_rows(&self, shard: ShardId) -> Result<Vec<ManifestRow>, ActorProcessingErr> {
        let Some(below) = self.deletable_below(shard)? else { return Ok(Vec::new()) };
        let mut snapshot = self.store.snapshot()?;
        let mut rows = snapshot.manifest_first(shard, None, TURN_OBJECTS)?;
        rows.retain(|row| row.range.to <= below);
        let book = snapshot.generation_book()?;
        let mut fills = Vec::new();
        let holding = replay_hold::holding(&book, self.clock.now(), self.limits.replay_hold_ms);
        for (generation, days) in holding {
            let progress = snapshot.fill_progress(generation)?;
            let of_shard = progress.into_iter().find(|(of, _)| *of == shard);
            fills.extend(replay_hold::unfilled(days, of_shard.map(|(_, at)| at)));
        }
        rows.truncate(replay_hold::rows_before_held(&rows, &fills));
        Ok(rows)
    }

    fn rows_to_cool(&self, shard: ShardId) -> Result<Vec<ManifestRow>, ActorProcessingErr> {
        if !self.archive.has_cold() {
            return Ok(Vec::new());
        }
        Ok(self.without_damaged(self.old_hot_rows(shard)?))
    }

    fn move_to_cold(&self, row: &ManifestRow) -> Result<(), ActorProcessingErr> {
        self.archive.copy_to_cold(row)?;
        // If the outcome is unknown, the hot object stays. If the row was not changed, it is still
        // needed; if it was, the search for orphans finds it as a leftover.
        if self.store.set_tier(row, Tier::Cold)? {
            self.archive.remove(&row.path, Tier::Hot)?;
        }
        Ok(())
    }

    fn expire(&self, row: &ManifestRow) -> Result<(), ActorProcessingErr> {
        if self.store.expire_object(row)? {
            tracing::info!(
                path = row.path,
                "removing an archive object that is older than archive.keep"
            );
            self.archive.remove(&row.path, Tier::Hot)?;
            if self.archive.has_cold() {
                self.archive.remove(&row.path, Tier::Cold)?;
            }
        }
        Ok(())
    }

    /// Removes what no manifest row needs in these shards. Blocks. Objects that end above the
    /// archived offset stay: in a store restored from a backup, the manifest is older than the
    /// archive, and the log may no longer have their records.
    fn sweep(&self, shards: &[ShardId]) {
        self.damaged.with(HashSet::clear);
        for shard in shards {
            if let Err(why) = self.remove_orphans(*shard) {
                metrics::counter!(telemetry::ARCHIVE_FAILURES, "step" => "sweep").increment(1);
                tracing::warn!(
                    %why,
                    "the search for orphaned archive objects failed, it is tried again in an hour"
                );
                return;
            }
        }
    }

    fn remove_orphans(&self, shard: ShardId) -> Result<(), ActorProcessingErr> {
        // Objects of a migrated shard are named after the log they came from until they expire.
        let oldest = self.store.snapshot()?.manifest_first(shard, None, 1)?;
        let logs: BTreeSet<LogId> = oldest.iter().map(|row| row.log).chain([self.log]).collect();
        // The listing comes first: an object that is listed and is not in the manifest read
        // afterwards will never be added to it.
        let mut listed = Vec::new();
        for log in logs {
            listed.append(&mut self.archive.list(log, shard)?);
        }
        let mut snapshot = self.store.snapshot()?;
        let manifest = snapshot.manifest(Some(shard))?;
        let checkpoint = snapshot
            .checkpoints()?
            .into_iter()
            .find(|(id, _)| *id == shard)
            .map(|(_, checkpoint)| checkpoint);
        drop(snapshot);
        let Some(archived) = checkpoint.map(|at| at.archived) else { return Ok(()) };
        let settled = |object: &&ObjectInfo| {
            ManifestRow::parse_name(self.log, shard, &object.path)
                .is_none_or(|name| name.range.to <= archived)
        };
        let (mut orphans, mut leftovers) = unneeded_objects(&listed, &manifest);
        orphans.retain(settled);
        leftovers.retain(settled);
        let paths: BTreeSet<&str> = orphans.iter().map(|object| object.path.as_str()).collect();
        let ripe = self.removable_orphans(shard, &paths.into_iter().collect::<Vec<_>>())?;
        orphans.retain(|object| ripe.contains(&object.path));
        for object in orphans.into_iter().chain(leftovers) {
            tracing::info!(
                path = object.path,
                tier = object.tier.name(),
                "removing an archive object that no manifest row needs"
            );
            self.archive.remove(&object.path, object.tier)?;
        }
        Ok(())
    }
}

/// Returns orphans, which no manifest row names, and leftovers: hot copies of objects that are in
/// the cold store, as the manifest says. The row of an orphan may still be about to be written.
fn unneeded_objects<'a>(
    listed: &'a [ObjectInfo],
    manifest: &[ManifestRow],
) -> (Vec<&'a ObjectInfo>, Vec<&'a ObjectInfo>) {
    let named: HashMap<&str, &ManifestRow> =
        manifest.iter().map(|row| (row.path.as_str(), row)).collect();
    let cold: HashMap<&str, u64> = listed
        .iter()
        .filter(|object| object.tier == Tier::Cold)
        .map(|object| (object.path.as_str(), object.bytes))
        .collect();
    let moved = |object: &ObjectInfo, row: &ManifestRow| {
        object.tier == Tier::Hot
            && row.tier == Tier::Cold
            && cold.get(row.path.as_str()) == Some(&row.bytes)
    };
    let (mut orphans, mut leftovers) = (Vec::new(), Vec::new());
    for object in listed {
        match named.get(object.path.as_str()) {
            None => orphans.push(object),
            Some(row) if moved(object, row) => leftovers.push(object),
            Some(_) => {}
        }
    }
    (orphans, leftovers)
}

#[cfg(test)]
mod tests;
