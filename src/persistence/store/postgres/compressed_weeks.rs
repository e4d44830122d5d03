//! Which weeks TimescaleDB has compressed. A look-up there unpacks a batch of rows, so they are
//! read and written in smaller parts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::StoreError;
use super::codec::get;
use super::schema::WEEK;
use super::session::{PostgresSession, params};
use crate::clock::Stopwatch;

/// Older results are queried again. Mistaking a week for the other kind costs time and nothing
/// else.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The compressed weeks, cached for [`MAX_AGE`].
#[derive(Debug, Default)]
pub(super) struct CompressedWeeks(Mutex<Option<(Stopwatch, Arc<BTreeSet<i32>>)>>);

impl CompressedWeeks {
    /// Weeks with at least one compressed chunk; empty without the extension.
    pub(super) fn weeks(
        &self,
        session: &mut PostgresSession,
    ) -> Result<Arc<BTreeSet<i32>>, StoreError> {
        if !session.backend.timescale {
            return Ok(Arc::default());
        }
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((since, weeks)) = known
            && since.elapsed() < MAX_AGE
        {
            return Ok(weeks);
        }
        let sql = "SELECT DISTINCT range_start_integer FROM timescaledb_information.chunks
            WHERE hypertable_schema = 'rollmill' AND hypertable_name IN ('rollups', 'sketches') \
                   AND is_compressed";
        let since = Stopwatch::start();
        let rows = session.query(sql, params![])?;
        let week = |row: &tokio_postgres::Row| {
            Ok((get::<i64>(row, 0)?.div_euclid(i64::from(WEEK))) as i32)
        };
        let weeks = Arc::new(rows.iter().map(week).collect::<Result<BTreeSet<i32>, StoreError>>()?);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((since, Arc::clone(&weeks)));
        Ok(weeks)
    }

    /// Forgets the cached weeks, after something was compressed or dropped.
    pub(super) fn invalidate(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
