//! What is recorded before anything of a shard's archive is deleted. [`ExpiryState`] decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ractor::ActorProcessingErr;

use super::ArchiveMaintenance;
use crate::model::CodecError;
use crate::model::clock::ClockReading;
use crate::model::expiry::{DueRows, ExpirySample, ExpiryState};
use crate::model::offset::{Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::store::{ArchiveSnapshot, ExpiryTarget, StoreError};
use crate::telemetry;

/// Checks per grace period. A restart loses at most the time since the last one.
const CHECKS_PER_GRACE: i64 = 288;
/// The state of a shard without due objects is written at least this often, because a leap of the
/// wall clock is detected by comparison with it.
const IDLE_MS: i64 = 3_600_000;
/// Manifest rows read at once when looking for due ones.
const PAGE: usize = 4_096;

/// Time and result of the last check of each shard.
#[derive(Debug, Clone, Default)]
pub struct ExpiryChecks(Arc<Mutex<CheckResults>>);

/// Per shard: time of the check, and the offset below which objects may be deleted.
type CheckResults = BTreeMap<ShardId, (ClockReading, Option<Offset>)>;

impl ExpiryChecks {
    fn with<T>(&self, act: impl FnOnce(&mut CheckResults) -> T) -> T {
        // The map is consistent after every change, so a poisoned lock can be used.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The state of a shard as stored (`text`, for the compare-and-set) and decoded
/// (`note`). `approvals` counts those given so far.
struct StoredState {
    text: Option<String>,
    note: ExpiryState,
    approvals: i64,
}

impl ArchiveMaintenance {
    /// The offset below which everything of the shard may be deleted now. After a leap of the wall
    /// clock, the state is checked again before anything else is deleted.
    pub(super) fn deletable_below(
        &self,
        shard: ShardId,
    ) -> Result<Option<Offset>, ActorProcessingErr> {
        let now = self.clock.reading();
        let check_every = (self.limits.expiry.grace_ms / CHECKS_PER_GRACE).max(1);
        let last = self.expiry_checks.with(|checks| checks.get(&shard).copied());
        match last {
            Some((at, below))
                if now.leap_since(&at).is_none()
                    && now.elapsed_since(&at).is_some_and(|since| since < check_every) =>
            {
                Ok(below)
            }
            _ => self.check_expiry(shard),
        }
    }

    /// Checks what is due and records it.
    pub(super) fn check_expiry(
        &self,
        shard: ShardId,
    ) -> Result<Option<Offset>, ActorProcessingErr> {
        let now = self.clock.reading();
        let mut snapshot = self.store.snapshot()?;
        let StoredState { text, mut note, approvals } = stored_state(&mut *snapshot, shard)?;
        let (of, first) = snapshot.archive_extent(shard)?;
        let floor = first.unwrap_or(0);
        let ends = if self.limits.keep_ms > 0 {
            self.due_ends(&mut *snapshot, shard, floor, now)?
        } else {
            Vec::new()
        };
        drop(snapshot);
        let recorded_to = note.recorded_to().unwrap_or(i64::MIN);
        let new = ends.iter().filter(|end| signed_offset(**end) > recorded_to).count() as u64;
        let sample = ExpirySample {
            run_id: self.run_id,
            now,
            floor: signed_offset(floor),
            due_to: ends.last().copied().map(signed_offset),
            newly_due: new,
            total: of,
            approvals,
        };
        let (was_idle, recent) = (note.is_idle(), note.is_recent(&now, IDLE_MS));
        let verdict = note.update(&self.limits.expiry, &sample);
        // Skips the write only if nothing is due before and after, and the stored state is recent.
        let written =
            (was_idle && note.is_idle() && recent) || self.write(shard, text.as_deref(), &note)?;
        // A verdict counts only once it is stored: if another node has written
        // meanwhile, its state decides.
        let below = verdict.delete_below.filter(|_| written).map(|to| to.unsigned_abs());
        if let Some(stop) = verdict.new_stop.filter(|_| written) {
            metrics::counter!(telemetry::EXPIRY_STOPS).increment(1);
            tracing::warn!(
                shard = shard.0,
                "nothing of this shard's archive expires: {stop}. If the clock is right, \
                 `rollmill archive expire --yes` lets it go on"
            );
        }
        metrics::gauge!(telemetry::EXPIRY_STOPPED, "shard" => shard.0.to_string())
            .set(f64::from(u8::from(note.stop().is_some())));
        self.expiry_checks.with(|checks| checks.insert(shard, (now, below)));
        Ok(below)
    }

    /// End offsets of the objects that are due, in order.
    fn due_ends(
        &self,
        snapshot: &mut dyn ArchiveSnapshot,
        shard: ShardId,
        floor: Offset,
        now: ClockReading,
    ) -> Result<Vec<Offset>, ActorProcessingErr> {
        let before = now.wall.saturating_sub(self.limits.keep_ms);
        let (mut due, mut ends, mut from) = (DueRows::default(), Vec::new(), floor);
        loop {
            let page = snapshot.receipts(shard, from, PAGE)?;
            let rows: Vec<(i64, Millis)> =
                page.iter().map(|(to, received)| (signed_offset(*to), *received)).collect();
            let more = due.add(&rows, before, now.wall);
            ends.extend(page.iter().map(|(to, _)| *to));
            let Some((last, _)) = page.last().filter(|_| more && page.len() == PAGE) else { break };
            from = *last;
        }
        ends.truncate(due.rows as usize);
        Ok(ends)
    }

    /// Records the objects that nothing needs. Returns those that were recorded long enough ago.
    pub(super) fn removable_orphans(
        &self,
        shard: ShardId,
        needless: &[&str],
    ) -> Result<Vec<String>, ActorProcessingErr> {
        // First adds the time that has passed, which is what the age of an orphan is measured by.
        self.check_expiry(shard)?;
        let StoredState { text, mut note, .. } = stored_state(&mut *self.store.snapshot()?, shard)?;
        let before = note.clone();
        let ripe = note.record_orphans(&self.limits.expiry, needless);
        let written = note == before || self.write(shard, text.as_deref(), &note)?;
        Ok(if written { ripe } else { Vec::new() })
    }

    /// Writes the state by compare-and-set; `false` if another node has written it meanwhile.
    fn write(
        &self,
        shard: ShardId,
        before: Option<&str>,
        note: &ExpiryState,
    ) -> Result<bool, ActorProcessingErr> {
        let text = serde_json::to_string(note)?;
        Ok(self.store.swap_expiry(ExpiryTarget::Archive(shard), before, &text)?)
    }
}

fn stored_state(
    snapshot: &mut dyn ArchiveSnapshot,
    shard: ShardId,
) -> Result<StoredState, StoreError> {
    let Some(found) = snapshot.expiry(ExpiryTarget::Archive(shard))? else {
        return Ok(StoredState { text: None, note: ExpiryState::default(), approvals: 0 });
    };
    let note = serde_json::from_str(&found.note)
        .map_err(|e| CodecError::new("note of what expires", e.to_string()));
    Ok(StoredState {
        note: note.map_err(|e| StoreError::Invalid(e.to_string()))?,
        text: Some(found.note),
        approvals: found.approvals,
    })
}

/// Offsets stay far below 2^63.
fn signed_offset(offset: Offset) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}
