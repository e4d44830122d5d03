//! Which weeks of rollups may be dropped: those that were due a day ago already, as the boot clocks
//! of the nodes measure it.
//!
//! Every node looks, but one at a time gathers: who finds that another has looked since its own
//! last look leaves it to that one.

use std::time::Duration;

use super::schema::WEEK;
use super::session::params;
use super::{PostgresStore, StoreError};
use crate::model::CodecError;
use crate::model::clock::Reading;
use crate::model::expiry::{Look, Note, Rules};
use crate::model::window::Hour;
use crate::persistence::store::{Expiring, RollupStore};
use crate::telemetry;

/// What one node knows of it.
#[derive(Debug, Clone)]
pub struct Weeks {
    /// Random: tells this node from every other.
    pub run: u64,
    /// When what is due may go.
    pub rules: Rules,
    /// The note as this node saw it last.
    pub seen: Option<String>,
}

impl Weeks {
    /// Nothing was seen yet.
    pub fn new(run: u64, rules: Rules) -> Self {
        Self { run, rules, seen: None }
    }
}

impl PostgresStore {
    /// The weeks before this hour may be dropped now, if rollups older than `age` are not kept.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn droppable(
        &self,
        weeks: &mut Weeks,
        now: Reading,
        age: Duration,
    ) -> Result<Option<Hour>, StoreError> {
        let Some((first, behind)) = self.weeks()? else { return Ok(None) };
        let found = self.snapshot()?.expiry(Expiring::Weeks)?;
        let text = found.as_ref().map(|found| found.note.clone());
        let mut note = match &text {
            None => Note::default(),
            Some(text) => serde_json::from_str(text)
                .map_err(|e| CodecError::new("note of what expires", e.to_string()))?,
        };
        if text != weeks.seen && note.run().is_some_and(|run| run != weeks.run) {
            weeks.seen = text;
            return Ok(None);
        }
        let before =
            Hour::of(now.wall.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
        let due_to = i64::from(before.0.div_euclid(WEEK)).min(behind);
        let noted_to = note.noted_to().unwrap_or(first).max(first);
        let look = Look {
            run: weeks.run,
            now,
            floor: first,
            due_to: Some(due_to).filter(|to| *to > first),
            new: (due_to - noted_to).max(0).unsigned_abs(),
            of: (behind - first).unsigned_abs(),
            said: found.map_or(0, |found| found.said),
        };
        let verdict = note.look(&weeks.rules, &look);
        let written =
            serde_json::to_string(&note).map_err(|e| StoreError::Failed(e.to_string()))?;
        if !self.swap_expiry(Expiring::Weeks, text.as_deref(), &written)? {
            return Ok(None);
        }
        weeks.seen = Some(written);
        if let Some(stop) = verdict.stopped {
            metrics::counter!(telemetry::EXPIRY_STOPS).increment(1);
            tracing::warn!(
                "no weeks of rollups are dropped: {stop}. If the clock is right, `rollmill \
                 archive expire --yes` lets it go on"
            );
        }
        metrics::gauge!(telemetry::EXPIRY_STOPPED, "shard" => "weeks")
            .set(f64::from(u8::from(note.stopped().is_some())));
        let hour = |week: i64| {
            Hour(i32::try_from(week.saturating_mul(i64::from(WEEK))).unwrap_or(i32::MIN))
        };
        Ok(verdict.delete_below.map(hour))
    }

    /// The first week with rollups, and the one behind the last.
    fn weeks(&self) -> Result<Option<(i64, i64)>, StoreError> {
        let mut lease = self.readers.take()?;
        let rows = lease
            .session()?
            .query("SELECT min(first_hour), max(last_hour) FROM metrics", params![])?;
        let Some(row) = rows.first() else { return Ok(None) };
        let week = |at: usize| {
            super::codec::get::<Option<i32>>(row, at)
                .map(|hour| hour.map(|hour| i64::from(hour.div_euclid(WEEK))))
        };
        Ok(week(0)?.zip(week(1)?).map(|(first, last)| (first, last + 1)))
    }
}
