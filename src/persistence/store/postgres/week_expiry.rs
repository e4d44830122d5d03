//! Which weeks of rollups may be dropped: those that have been due for a day, as measured by the
//! boot clocks of the nodes.
//!
//! Every node observes, but only one at a time accumulates: a node that finds that another one has
//! observed since its own last look leaves it to that one.

use std::time::Duration;

use super::schema::WEEK;
use super::session::params;
use super::{PostgresStore, StoreError};
use crate::model::CodecError;
use crate::model::clock::ClockReading;
use crate::model::expiry::{ExpiryRules, ExpirySample, ExpiryState};
use crate::model::window::Hour;
use crate::persistence::store::{ExpiryTarget, ManifestStore, SnapshotSource};
use crate::telemetry;

/// One node's view of the expiry of weeks.
#[derive(Debug, Clone)]
pub struct WeekExpiry {
    /// Random; distinguishes this run of the node from all others.
    pub run: u64,
    /// When a marked week may be dropped.
    pub rules: ExpiryRules,
    /// The state as this node last saw it, as text.
    pub last_seen: Option<String>,
}

impl WeekExpiry {
    /// The view of a node that has seen nothing yet.
    pub fn new(run: u64, rules: ExpiryRules) -> Self {
        Self { run, rules, last_seen: None }
    }
}

impl PostgresStore {
    /// The hour below which weeks may be dropped now, if rollups older than `age` are not kept;
    /// `None` if there is none.
    ///
    /// # Errors
    /// If the store fails, or the stored state does not decode.
    pub fn droppable(
        &self,
        weeks: &mut WeekExpiry,
        now: ClockReading,
        age: Duration,
    ) -> Result<Option<Hour>, StoreError> {
        let Some((first, end)) = self.week_range()? else { return Ok(None) };
        let found = self.snapshot()?.expiry(ExpiryTarget::Weeks)?;
        let text = found.as_ref().map(|found| found.note.clone());
        let mut state = match &text {
            None => ExpiryState::default(),
            Some(text) => serde_json::from_str(text)
                .map_err(|e| CodecError::new("note of what expires", e.to_string()))?,
        };
        // Another node has observed since. If both accumulated, the time would count twice.
        if text != weeks.last_seen && state.run_id().is_some_and(|run| run != weeks.run) {
            weeks.last_seen = text;
            return Ok(None);
        }
        let before =
            Hour::of(now.wall.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
        let due_to = i64::from(before.0.div_euclid(WEEK)).min(end);
        let recorded_to = state.recorded_to().unwrap_or(first).max(first);
        let sample = ExpirySample {
            run_id: weeks.run,
            now,
            floor: first,
            due_to: Some(due_to).filter(|to| *to > first),
            newly_due: (due_to - recorded_to).max(0).unsigned_abs(),
            total: (end - first).unsigned_abs(),
            approvals: found.map_or(0, |found| found.approvals),
        };
        let decision = state.update(&weeks.rules, &sample);
        let written =
            serde_json::to_string(&state).map_err(|e| StoreError::Failed(e.to_string()))?;
        // Lost the race against another node: its observation counts, not this one.
        if !self.swap_expiry(ExpiryTarget::Weeks, text.as_deref(), &written)? {
            return Ok(None);
        }
        weeks.last_seen = Some(written);
        if let Some(stop) = decision.new_stop {
            metrics::counter!(telemetry::EXPIRY_STOPS).increment(1);
            tracing::warn!(
                "no weeks of rollups are dropped: {stop}. If the clock is right, `rollmill \
                 archive expire --yes` lets it go on"
            );
        }
        metrics::gauge!(telemetry::EXPIRY_STOPPED, "shard" => "weeks")
            .set(f64::from(u8::from(state.stop().is_some())));
        let hour = |week: i64| {
            Hour(i32::try_from(week.saturating_mul(i64::from(WEEK))).unwrap_or(i32::MIN))
        };
        Ok(decision.delete_below.map(hour))
    }

    /// The first week with rollups, and the exclusive end.
    fn week_range(&self) -> Result<Option<(i64, i64)>, StoreError> {
        let mut lease = self.readers.take()?;
        let rows = lease.session()?.query(
            "SELECT min(first_hour), max(last_hour) FROM metrics WHERE generation = 0",
            params![],
        )?;
        let Some(row) = rows.first() else { return Ok(None) };
        let week = |at: usize| {
            super::codec::get::<Option<i32>>(row, at)
                .map(|hour| hour.map(|hour| i64::from(hour.div_euclid(WEEK))))
        };
        Ok(week(0)?.zip(week(1)?).map(|(first, last)| (first, last + 1)))
    }
}
