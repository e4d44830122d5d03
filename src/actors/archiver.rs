//! The archiver writes applied records to the archive, with a cursor of its own, and releases
//! the log below it.
//!
//! It never delays rollups: an archive that is down for hours costs log space and nothing else. It
//! follows the rollups: an object only holds records below the checkpoint, because it carries the
//! decisions made about them, which are final once the flush has committed.
//!
//! Objects that the manifest does not know (in a store restored from a backup) get their rows when
//! the log no longer has their records.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::shard_table::{ShardEntry, ShardTable};
use crate::clock::Clock;
use crate::invariants::{Invariant, check};
use crate::model::flush::LogRecord;
use crate::model::manifest::{ManifestRow, RangeDecisions};
use crate::model::offset::{Epoch, Offset, OffsetRange, ShardId};
use crate::model::window::Millis;
use crate::persistence::archive::chain::ObjectChains;
use crate::persistence::archive::{Archive, ArchiveError};
use crate::persistence::log::{LogError, LogReader, LogRetention};
use crate::persistence::store::{ManifestStore, StoreError};
use crate::telemetry::{self, RepeatedLog};

/// Longest interval between two looks for due shards.
const CHECK_EVERY_MS: i64 = 1_000;

/// An unreachable storage, or lost records, look the same for all shards of the
/// node at every attempt.
static FAILURE_LOG: RepeatedLog = RepeatedLog::new();

/// When an object is cut.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveLimits {
    /// `archive.max_bytes`: raw bytes of one object.
    pub max_bytes: u64,
    /// Longest wait of a record before its object is cut: `archive.max_delay`, in milliseconds.
    pub max_delay_ms: i64,
}

impl ArchiveLimits {
    /// Interval between two looks: a quarter of the delay, which keeps the delay without
    /// looking all the time.
    fn check_interval(&self) -> Duration {
        Duration::from_millis((self.max_delay_ms / 4).clamp(20, CHECK_EVERY_MS).unsigned_abs())
    }

    /// Whether a shard is due that has this many unarchived bytes, waiting for this long.
    pub fn is_due(&self, bytes: u64, waited_ms: i64) -> bool {
        bytes >= self.max_bytes || waited_ms >= self.max_delay_ms
    }
}

/// Dependencies and configuration of the archiver.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct Archiver {
    pub log: Arc<dyn LogReader>,
    /// Releases what both the store and the archive have.
    pub retention: Arc<dyn LogRetention>,
    pub store: Arc<dyn ManifestStore>,
    pub archive: Arc<dyn Archive>,
    pub clock: Arc<dyn Clock>,
    pub limits: ArchiveLimits,
    pub table: Arc<ShardTable>,
    /// Shared with the successors of this actor, so that a restart does not reset the wait.
    pub delays: ArchiveDelays,
}

/// Since when the records above an archived offset have been waiting on this node, on the boot
/// clock. Record times are not used: a clock that was ahead for a moment would hold up the archive
/// for as long as it was wrong.
#[derive(Debug, Clone, Default)]
pub struct ArchiveDelays(Arc<Mutex<BTreeMap<ShardId, (Offset, Millis)>>>);

impl ArchiveDelays {
    /// For how long the records above `from` have been waiting.
    fn waited_ms(&self, shard: ShardId, from: Offset, now: Millis) -> i64 {
        // Each entry is consistent after every change, so a poisoned lock can be used.
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = waiting.entry(shard).or_insert((from, now));
        if since.0 != from {
            *since = (from, now);
        }
        now.saturating_sub(since.1)
    }

    /// No records of the shard are waiting.
    fn clear(&self, shard: ShardId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&shard);
    }
}

/// Messages of the archiver.
#[derive(Debug)]
pub enum ArchiverMessage {
    /// Look for due shards.
    Check,
}

impl ractor::Message for ArchiverMessage {}

impl Actor for Archiver {
    type Msg = ArchiverMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<ArchiverMessage>,
        (): (),
    ) -> Result<(), ActorProcessingErr> {
        myself.send_after(self.limits.check_interval(), || ArchiverMessage::Check);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<ArchiverMessage>,
        _: ArchiverMessage,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let archiver = self.clone();
        tokio::task::spawn_blocking(move || archiver.archive_due_shards()).await?;
        myself.send_after(self.limits.check_interval(), || ArchiverMessage::Check);
        Ok(())
    }
}

impl Archiver {
    /// Archives what is due and releases the log below it. Blocks; the simulation calls it between
    /// any two steps of the shards.
    pub fn archive_due_shards(&self) {
        let mut written = false;
        for (shard, entry) in self.table.iter() {
            match self.archive_if_due(shard, entry) {
                Ok(wrote) => written |= wrote,
                Err(why) => {
                    metrics::counter!(telemetry::ARCHIVE_FAILURES, "step" => "write").increment(1);
                    if let Some(silent) = FAILURE_LOG.due(&why.to_string()) {
                        tracing::warn!(
                            shard = shard.0,
                            %why,
                            silent,
                            "archiving failed, it is tried again (told once a minute)"
                        );
                    }
                }
            }
        }
        // The release floor is the smaller of the committed and the archived offset. The archive
        // follows the checkpoint, so the floor only moves when an object was written.
        if written {
            self.release();
        }
    }

    fn archive_if_due(
        &self,
        shard: ShardId,
        entry: &ShardEntry,
    ) -> Result<bool, ActorProcessingErr> {
        let Some((owner, OffsetRange { from, to })) = entry.for_archiver().unarchived_range()
        else {
            self.delays.clear(shard);
            return Ok(false);
        };
        let first = match self.log.read(shard, from, 1) {
            Err(LogError::Released { start, .. }) => {
                return self.adopt_existing(
                    shard,
                    entry,
                    owner,
                    OffsetRange { from, to: start },
                    to,
                );
            }
            first => first?,
        };
        if first.is_empty() {
            return Ok(false);
        }
        let bytes = entry.for_archiver().unarchived_bytes();
        let requested = entry.for_archiver().is_requested_above(from);
        if !self.limits.is_due(bytes, self.delays.waited_ms(shard, from, self.clock.uptime()))
            && !requested
        {
            return Ok(false);
        }
        // `to` was read together with the epoch: if the owner changes now, the
        // store refuses the row.
        let mut cursor = from;
        let mut appended = self.appended_before(shard, from)?;
        while cursor < to {
            let mut records = self.gather(shard, cursor, to)?;
            for record in &mut records {
                // As the shard applied them: append times are a running maximum over the shard.
                record.appended =
                    appended.map_or(record.appended, |before| before.max(record.appended));
                appended = Some(record.appended);
            }
            let Some(last) = records.last() else { break };
            let next = last.offset + 1;
            self.write(shard, entry, owner, cursor, &records)?;
            cursor = next;
        }
        Ok(cursor > from)
    }

    /// Append time of the last archived record, a lower bound for the next ones.
    fn appended_before(
        &self,
        shard: ShardId,
        from: Offset,
    ) -> Result<Option<Millis>, ActorProcessingErr> {
        match self.store.snapshot()?.last_archived(shard)? {
            None => Ok(self.log.appended_below(shard, from)?),
            found => Ok(found),
        }
    }

    /// Reads the records of one object: up to the byte limit, below `to`.
    fn gather(
        &self,
        shard: ShardId,
        from: Offset,
        to: Offset,
    ) -> Result<Vec<LogRecord>, ActorProcessingErr> {
        let mut records: Vec<LogRecord> = Vec::new();
        let mut bytes = 0u64;
        let mut cursor = from;
        while cursor < to && bytes < self.limits.max_bytes {
            let wanted = (self.limits.max_bytes - bytes).min(4 << 20) as usize;
            let read = self.log.read(shard, cursor, wanted)?;
            let Some(last) = read.last() else { break };
            cursor = last.offset + 1;
            for record in read {
                if record.offset < to {
                    bytes += record.payload.len() as u64;
                    records.push(record);
                }
            }
        }
        Ok(records)
    }

    fn write(
        &self,
        shard: ShardId,
        entry: &ShardEntry,
        owner: Epoch,
        from: Offset,
        records: &[LogRecord],
    ) -> Result<(), ActorProcessingErr> {
        let Some(last) = records.last() else { return Ok(()) };
        let decisions = self.decisions(shard, owner, records)?;
        let row = self.archive.write(self.log.id(), shard, owner, records, &decisions)?;
        // Verified before the row is written: the row is what lets the log be released.
        if !is_contiguous(&row, OffsetRange { from, to: last.offset + 1 }) {
            return Err("the object that was written holds other records than were due".into());
        }
        self.insert_row(entry, owner, &row)?;
        let bytes: u64 = records.iter().map(|r| r.payload.len() as u64).sum();
        entry.for_archiver().subtract_unarchived_bytes(bytes);
        metrics::counter!(telemetry::ARCHIVE_OBJECTS).increment(1);
        Ok(())
    }

    /// Inserts the manifest row of an object that is in the archive.
    fn insert_row(
        &self,
        entry: &ShardEntry,
        owner: Epoch,
        row: &ManifestRow,
    ) -> Result<(), ActorProcessingErr> {
        match self.store.insert_manifest_row(owner, row) {
            Ok(()) => {
                if let Some(before) = entry.for_archiver().set_archived(owner, row.range.to) {
                    is_contiguous(row, OffsetRange { from: before, to: row.range.to });
                }
                Ok(())
            }
            // The row may have been written, or the cursor is that of a former life.
            // The checkpoint tells which.
            Err(error @ (StoreError::Unknown(_) | StoreError::Refused { .. })) => {
                Err(self.reload_cursor(entry, owner, row, &error))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Inserts the rows of former owners' objects that hold what the log has released. It is the
    /// chain from which the shard has read its lost records, too
    /// ([`GapReader`](super::gap_reader::GapReader)). Stops where this owner has not
    /// committed the records yet.
    fn adopt_existing(
        &self,
        shard: ShardId,
        entry: &ShardEntry,
        owner: Epoch,
        released: OffsetRange,
        committed: Offset,
    ) -> Result<bool, ActorProcessingErr> {
        let log = self.log.id();
        let mut chains = ObjectChains::of(&[log], shard, self.archive.list(log, shard)?);
        let mut next = released.from;
        while next < released.to {
            let rest = OffsetRange { from: next, to: released.to };
            let links =
                chains.covering(next, rest).map_err(|missing| lost_records_error(rest, missing))?;
            let Some(link) = links.first().filter(|link| link.name.range.to <= committed) else {
                break;
            };
            if link.name.range.from != next {
                return Err(lost_records_error(rest, rest));
            }
            match self.archive.examine(&link.object) {
                Ok(found) => self.insert_row(entry, owner, &found.row)?,
                Err(damage @ ArchiveError::Corrupt { .. }) => {
                    (chains, _) = chains.bypass(&link.object.path, next, rest).ok_or(damage)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            next = link.name.range.to;
        }
        if next > released.from {
            tracing::warn!(
                shard = shard.0,
                from = released.from,
                to = next,
                "records were in the archive already, although the manifest did not know: it does \
                 now"
            );
        }
        Ok(next > released.from)
    }

    /// The decisions made about the records, all of which the owner of this
    /// epoch must have committed.
    fn decisions(
        &self,
        shard: ShardId,
        epoch: Epoch,
        records: &[LogRecord],
    ) -> Result<RangeDecisions, ActorProcessingErr> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return Ok(RangeDecisions::default());
        };
        let range = OffsetRange { from: first.offset, to: last.offset + 1 };
        let mut snapshot = self.store.snapshot()?;
        let committed = snapshot
            .checkpoints()?
            .into_iter()
            .find(|(id, _)| *id == shard)
            .map(|(_, checkpoint)| checkpoint);
        if !committed.is_some_and(|at| at.epoch == epoch && at.next >= range.to) {
            return Err(StoreError::Refused { shard }.into());
        }
        Ok(snapshot.decisions(shard, range)?)
    }

    fn reload_cursor(
        &self,
        entry: &ShardEntry,
        owner: Epoch,
        row: &ManifestRow,
        why: &StoreError,
    ) -> ActorProcessingErr {
        let checkpoints = self.store.snapshot().and_then(|mut snapshot| snapshot.checkpoints());
        match checkpoints {
            Ok(all) => {
                if let Some((_, checkpoint)) = all.iter().find(|(id, _)| *id == row.shard) {
                    entry.for_archiver().set_archived(owner, checkpoint.archived);
                }
                format!(
                    "the manifest row from {} to {}: {why}; the cursor was read again",
                    row.range.from, row.range.to
                )
                .into()
            }
            Err(error) => error.into(),
        }
    }

    /// Releases the log below the archived and committed offsets of every shard: as this node knows
    /// them, and as the store has them. A store that was put back is behind what an owner that has
    /// ended, or has not noticed yet, had committed, and needs the records again.
    fn release(&self) {
        let stored = match self.store.snapshot().and_then(|mut snapshot| snapshot.checkpoints()) {
            Ok(stored) => stored,
            Err(why) => {
                tracing::warn!(%why, "nothing of the log is released until the store answers");
                return;
            }
        };
        let stored_floor = |shard| {
            let at = stored.iter().find(|(id, _)| *id == shard);
            at.map_or(0, |(_, checkpoint)| checkpoint.next.min(checkpoint.archived))
        };
        let floors: Vec<Offset> = self
            .table
            .iter()
            .map(|(shard, entry)| entry.release_floor().min(stored_floor(shard)))
            .collect();
        match self.retention.release(&floors) {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "released log segments"),
            Err(why) => {
                tracing::warn!(%why, "releasing log segments failed; it is tried again after the next object")
            }
        }
    }
}

/// Checks that an object holds exactly the due range: the objects of a shard leave no gap
/// and do not overlap.
fn is_contiguous(row: &ManifestRow, due: OffsetRange) -> bool {
    let OffsetRange { from, to } = row.range;
    check(Invariant::ArchiveTiles, row.range == due, || {
        format!(
            "an object of shard {} with [{from}, {to}) where [{}, {}) was due",
            row.shard, due.from, due.to
        )
    })
}

/// The error for records that the log no longer has and the archive never got.
fn lost_records_error(released: OffsetRange, missing: OffsetRange) -> ActorProcessingErr {
    format!(
        "the log lost the records [{}, {}), and no object of the archive has [{}, {}) of them, so \
         that nothing behind them can be archived either: docs/how-to/lost-records.md",
        released.from, released.to, missing.from, missing.to
    )
    .into()
}

#[cfg(test)]
mod tests;
