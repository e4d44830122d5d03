//! Keeps the store small: drops rollups older than `rollups.keep`, and compresses old chunks if
//! configured.
//!
//! A node does this, not a job of the database: jobs fail on some servers, and a policy on the
//! database's clock would drop what a replay has just restored. One node at a time: it holds an
//! advisory lock for as long as its session lives, and the others skip the round. Every chunk is
//! compressed in a transaction of its own, so that nothing waits for more than one chunk, and
//! finished chunks stay compressed.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::session::{PostgresSession, params};
use super::week_expiry::WeekExpiry;
use super::{PostgresStore, StoreError};
use crate::clock::{Clock, Millis};
use crate::model::clock::ClockReading;
use crate::model::expiry::ExpiryRules;
use crate::model::window::Hour;
use crate::persistence::store::random_nonce;

/// The first round follows soon after the start. Later ones are an hour apart: weeks do
/// not end more often.
const FIRST_ROUND: Duration = Duration::from_secs(60);
const ROUND_EVERY: Duration = Duration::from_secs(3600);
/// Spreads nodes that start together.
const MAX_JITTER: Duration = Duration::from_secs(60);

/// Session-level lock: held for the round, and released if the session dies.
const ROUND_LOCK: &str = "SELECT pg_try_advisory_lock(7094703)";

/// How long rollups are kept, and when they are compressed.
#[derive(Debug, Clone, Copy)]
pub struct RetentionPolicy {
    /// Rollups of hours older than this are dropped, in whole weeks; `None` keeps them for ever.
    pub rollups: Option<Duration>,
    /// Weeks older than this are compressed; `None` never compresses.
    pub compress: Option<Duration>,
}

impl RetentionPolicy {
    /// Whether there is never anything to do.
    pub fn is_idle(self) -> bool {
        self.rollups.is_none() && self.compress.is_none()
    }
}

fn oldest_hour(now: Millis, age: Duration) -> Hour {
    Hour::of(now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
}

/// This node's share of [`MAX_JITTER`]. A hash of the name, so it survives restarts.
fn node_jitter(node: &str) -> Duration {
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    MAX_JITTER.mul_f64((hash >> 40) as f64 / f64::from(1_u32 << 24))
}

impl PostgresStore {
    /// Compresses the chunks that end at or before `before`, and again those that received late
    /// rows, if the server is a TimescaleDB whose licence has compression. A chunk that stays in
    /// use is left to the next round. Returns the number of chunks compressed.
    ///
    /// # Errors
    /// If the server fails or a chunk takes too long; finished chunks stay compressed.
    pub fn compress_before(&self, before: Hour) -> Result<u32, StoreError> {
        let mut session = self.writers.connector.connect()?;
        session.set_time_limit(self.limit);
        let chunks =
            session.query("SELECT c FROM rollmill.compressible($1) AS c", params![before.0])?;
        let (mut compressed, mut failed) = (0, None);
        // A chunk that is in use must not keep the others from being compressed.
        for chunk in chunks.iter().map(|row| row.get::<_, String>(0)) {
            match self.compress(&mut session, &chunk) {
                Ok(done) => compressed += u32::from(done),
                Err(why) => {
                    session.rollback();
                    if !session.is_reusable() {
                        return Err(why);
                    }
                    tracing::info!(
                        chunk,
                        %why,
                        "a chunk could not be compressed now, it is left to the next round"
                    );
                    failed = failed.or(Some(why));
                }
            }
        }
        self.compressed_weeks.invalidate();
        *self.partitioned_weeks.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
        match failed {
            Some(why @ (StoreError::Failed(_) | StoreError::TooLong(_))) => Err(why),
            _ => Ok(compressed),
        }
    }

    fn compress(&self, session: &mut PostgresSession, chunk: &str) -> Result<bool, StoreError> {
        session.set_time_limit(self.compress_limit);
        session.begin(format!(
            "BEGIN; SET LOCAL statement_timeout = {}",
            self.compress_limit.as_millis()
        ))?;
        let rows =
            session.query("SELECT rollmill.compress_chunk($1)", params![chunk.to_owned()])?;
        session.commit()?;
        Ok(rows.first().is_some_and(|row| row.get::<_, bool>(0)))
    }

    /// Takes the lock of a round, held while the session lives; `None` while another node has it.
    pub(super) fn try_lock_round(&self) -> Result<Option<PostgresSession>, StoreError> {
        let mut session = self.writers.connector.connect()?;
        session.set_time_limit(self.limit);
        let is_ours =
            session.query(ROUND_LOCK, params![])?.first().is_some_and(|row| row.get::<_, bool>(0));
        Ok(is_ours.then_some(session))
    }

    /// Runs one round. Returns the numbers of dropped and of compressed partitions or chunks. A
    /// partition that stays in use is left to the next round.
    pub fn maintain(&self, now: Millis, keep: RetentionPolicy) -> Result<(u32, u32), StoreError> {
        let dropped = keep.rollups.map_or(Ok(0), |age| self.drop_before(oldest_hour(now, age)))?;
        let compressed =
            keep.compress.map_or(Ok(0), |age| self.compress_before(oldest_hour(now, age)))?;
        Ok((dropped, compressed))
    }

    /// Starts rounds that run until the store is dropped. Due weeks are dropped a day of
    /// observed time later ([`WeekExpiry`]).
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the store is closed, or without a source of randomness.
    pub fn spawn_maintenance(
        self: &Arc<Self>,
        clock: Arc<dyn Clock>,
        keep: RetentionPolicy,
        expiry: ExpiryRules,
    ) -> Result<(), StoreError> {
        let (store, spread) = (Arc::downgrade(self), node_jitter(&self.node));
        let run = random_nonce()?;
        let weeks = Arc::new(Mutex::new(WeekExpiry::new(run, expiry)));
        self.runtime_handle()?.spawn(async move {
            let mut pause = FIRST_ROUND + spread;
            loop {
                tokio::time::sleep(pause).await;
                pause = ROUND_EVERY;
                let (store, weeks, now) = (store.clone(), weeks.clone(), clock.reading());
                let round = move || run_round(&store, &weeks, now, keep);
                match tokio::task::spawn_blocking(round).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(why) => tracing::error!(
                        %why,
                        "a round of the store's maintenance died; the next one comes in an hour"
                    ),
                }
            }
        });
        Ok(())
    }
}

fn maintain_once(
    store: &PostgresStore,
    weeks: &Mutex<WeekExpiry>,
    now: ClockReading,
    keep: RetentionPolicy,
) -> Result<(u32, u32), StoreError> {
    // Poison is ignored: a round that panicked leaves a complete state.
    let mut weeks = weeks.lock().unwrap_or_else(PoisonError::into_inner);
    let droppable = keep.rollups.map_or(Ok(None), |age| store.droppable(&mut weeks, now, age))?;
    let dropped = droppable.map_or(Ok(0), |hour| store.drop_before(hour))?;
    let (_, compressed) = store.maintain(now.wall, RetentionPolicy { rollups: None, ..keep })?;
    Ok((dropped, compressed))
}

/// Runs a round if no other node does. Returns whether the store is still in use.
fn run_round(
    store: &Weak<PostgresStore>,
    weeks: &Mutex<WeekExpiry>,
    now: ClockReading,
    keep: RetentionPolicy,
) -> bool {
    let Some(store) = store.upgrade() else { return false };
    let done = store.try_lock_round().and_then(|turn| match turn {
        Some(_turn) => maintain_once(&store, weeks, now, keep),
        None => {
            tracing::debug!("another node maintains the store's old weeks");
            Ok((0, 0))
        }
    });
    match done {
        Ok((0, 0)) => {}
        Ok((dropped, compressed)) => {
            tracing::info!(dropped, compressed, "maintained the store's old weeks")
        }
        Err(why) => {
            tracing::warn!(
                %why,
                "the store's old weeks could not be maintained; the next round comes in an hour"
            )
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_one_after_the_other() {
        let waits = ["n1", "n2", "n3"].map(node_jitter);
        assert!(waits.iter().all(|wait| *wait < MAX_JITTER));
        assert!(waits[0] != waits[1] && waits[1] != waits[2] && waits[0] != waits[2], "{waits:?}");
    }
}
