//! The partitions of the rollups, a week each: created before a flush needs them, dropped whole.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use super::session::params;
use super::{PostgresStore, StoreError};
use crate::model::budget::CancelFlag;
use crate::model::window::Hour;

impl PostgresStore {
    /// Whether all these weeks are known to have partitions.
    pub(super) fn has_weeks(&self, wanted: &BTreeSet<i32>) -> bool {
        let known = self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.is_subset(&known.1)
    }

    /// Creates the partitions that a transaction needs, in a transaction of their own before it, so
    /// that no flush waits while another one creates a table.
    pub(super) fn ensure_weeks(
        &self,
        wanted: &BTreeSet<i32>,
        request: Option<&CancelFlag>,
    ) -> Result<(), StoreError> {
        // The lock is not held during the queries, so two flushes may both create: `ensure_week` is
        // idempotent.
        let known = self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if wanted.is_subset(&known.1) {
            return Ok(());
        }
        let mut lease = self.writers.begin_for("BEGIN", request)?;
        let session = lease.session()?;
        let server = session.backend.server_started;
        let missing: Vec<i32> = wanted
            .iter()
            .filter(|week| known.0 != server || !known.1.contains(week))
            .copied()
            .collect();
        for week in &missing {
            session.query("SELECT rollmill.ensure_week($1)", params![*week])?;
        }
        session.commit()?;
        let mut weeks = self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner);
        if weeks.0 != server {
            *weeks = (server, BTreeSet::new());
        }
        weeks.1.extend(missing);
        Ok(())
    }

    /// Forgets the known partitions after a failure: retention or a failover to an older state may
    /// have dropped them, so the next flush checks again.
    pub(super) fn forget_weeks<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(
            outcome,
            Err(StoreError::Failed(_) | StoreError::Unavailable(_) | StoreError::Unknown(_))
        ) {
            *self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner) =
                Default::default();
        }
        outcome
    }

    /// Drops the rollups of whole weeks that end at or before `before`, figures and sketches alike.
    /// Returns the number of partitions or chunks dropped.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if `before` is within the last day, or if a partition stays in
    /// use for too long.
    pub fn drop_before(&self, before: Hour) -> Result<u32, StoreError> {
        self.drop_weeks("SELECT rollmill.drop_before($1)", before)
    }

    fn drop_weeks(&self, sql: &str, before: Hour) -> Result<u32, StoreError> {
        let mut lease = self.writers.begin("BEGIN")?;
        let session = lease.session()?;
        let rows = session.query(sql, params![before.0])?;
        session.commit()?;
        drop(lease);
        *self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
        self.compressed_weeks.invalidate();
        Ok(rows.first().map_or(0, |row| row.get::<_, i32>(0)).unsigned_abs())
    }
}
