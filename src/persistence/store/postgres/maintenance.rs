//! What keeps the store small: dropping rollups older than `rollups.keep`, and compressing old
//! chunks where that is wanted.
//!
//! It is the node that does it, not a job of the database: jobs fail on some servers, and a policy
//! on the database's clock would drop what a replay has just put back. One node at a time: it holds
//! an advisory lock as long as its session lives, and the others pass. A chunk is compressed in a
//! transaction of its own, so that nothing waits for more than one, and what was done is done.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::session::{Session, params};
use super::weeks::Weeks;
use super::{PostgresStore, StoreError};
use crate::clock::{Clock, Millis};
use crate::model::clock::Reading;
use crate::model::expiry::Rules;
use crate::model::window::Hour;

/// The first round comes soon after the start, the others at this distance: weeks do not end more
/// often.
const FIRST: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_secs(3600);
/// Nodes that start together come one after the other.
const SPREAD: Duration = Duration::from_secs(60);

/// Held for a round.
const TURN: &str = "SELECT pg_try_advisory_lock(7094703)";

/// How long things are kept.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Rollups of windows older than this are dropped, whole weeks at a time; `None` keeps them
    /// for ever.
    pub rollups: Option<Duration>,
    /// Weeks older than this are compressed; `None` compresses nothing.
    pub compress: Option<Duration>,
}

impl Keep {
    /// Whether there is anything to do, ever.
    pub fn is_idle(self) -> bool {
        self.rollups.is_none() && self.compress.is_none()
    }
}

fn hour(now: Millis, age: Duration) -> Hour {
    Hour::of(now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
}

/// A part of [`SPREAD`] that is a node's own.
fn spread(node: &str) -> Duration {
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    SPREAD.mul_f64((hash >> 40) as f64 / f64::from(1_u32 << 24))
}

impl PostgresStore {
    /// Compresses the chunks that end at or before `before`, and those again that got late rows, if
    /// the server is a TimescaleDB whose licence has compression. How many. A chunk that is in
    /// use for long is left to the next round.
    ///
    /// # Errors
    /// See [`StoreError`]; what was compressed before stays so.
    pub fn compress_before(&self, before: Hour) -> Result<u32, StoreError> {
        let mut session = self.writers.connector.connect()?;
        session.allow(self.limit);
        let chunks =
            session.query("SELECT c FROM rollmill.compressible($1) AS c", params![before.0])?;
        let (mut compressed, mut failed) = (0, None);
        for chunk in chunks.iter().map(|row| row.get::<_, String>(0)) {
            match self.compress(&mut session, &chunk) {
                Ok(done) => compressed += u32::from(done),
                Err(why) => {
                    session.rollback();
                    if !session.is_reusable() {
                        return Err(why);
                    }
                    tracing::info!(chunk, %why, "a chunk could not be compressed now, it is left to the next round");
                    failed = failed.or(Some(why));
                }
            }
        }
        self.compressed.forget();
        *self.weeks.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
        match failed {
            Some(why @ (StoreError::Failed(_) | StoreError::TooLong(_))) => Err(why),
            _ => Ok(compressed),
        }
    }

    fn compress(&self, session: &mut Session, chunk: &str) -> Result<bool, StoreError> {
        session.allow(self.compress_limit);
        session.begin(format!(
            "BEGIN; SET LOCAL statement_timeout = {}",
            self.compress_limit.as_millis()
        ))?;
        let rows =
            session.query("SELECT rollmill.compress_chunk($1)", params![chunk.to_owned()])?;
        session.commit()?;
        Ok(rows.first().is_some_and(|row| row.get::<_, bool>(0)))
    }

    /// The right to do a round, as long as the session lives; none while another node has it.
    pub(super) fn turn(&self) -> Result<Option<Session>, StoreError> {
        let mut session = self.writers.connector.connect()?;
        session.allow(self.limit);
        let is_ours =
            session.query(TURN, params![])?.first().is_some_and(|row| row.get::<_, bool>(0));
        Ok(is_ours.then_some(session))
    }

    /// One round. Dropped and compressed partitions or chunks.
    ///
    /// # Errors
    /// See [`StoreError`]; a partition that is in use for long is left to the next round.
    pub fn maintain(&self, now: Millis, keep: Keep) -> Result<(u32, u32), StoreError> {
        let dropped = keep.rollups.map_or(Ok(0), |age| self.drop_before(hour(now, age)))?;
        let compressed = keep.compress.map_or(Ok(0), |age| self.compress_before(hour(now, age)))?;
        Ok((dropped, compressed))
    }

    /// Rounds until the store is dropped. What is due is dropped a day of the nodes' time later
    /// ([`Weeks`]).
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the store is closed.
    pub fn maintain_regularly(
        self: &Arc<Self>,
        clock: Arc<dyn Clock>,
        keep: Keep,
        expiry: Rules,
    ) -> Result<(), StoreError> {
        let (store, spread) = (Arc::downgrade(self), spread(&self.node));
        let run =
            getrandom::u64().map_err(|e| StoreError::Failed(format!("no randomness: {e}")))?;
        let weeks = Arc::new(Mutex::new(Weeks::new(run, expiry)));
        self.hands()?.spawn(async move {
            let mut pause = FIRST + spread;
            loop {
                tokio::time::sleep(pause).await;
                pause = EVERY;
                let (store, weeks, now) = (store.clone(), weeks.clone(), clock.reading());
                match tokio::task::spawn_blocking(move || round(&store, &weeks, now, keep)).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(why) => tracing::error!(%why, "a round of the store's maintenance died; the next one comes in an hour"),
                }
            }
        });
        Ok(())
    }
}

fn one_round(
    store: &PostgresStore,
    weeks: &Mutex<Weeks>,
    now: Reading,
    keep: Keep,
) -> Result<(u32, u32), StoreError> {
    // What it holds is whole after every round: the poison says nothing.
    let mut weeks = weeks.lock().unwrap_or_else(PoisonError::into_inner);
    let droppable = keep.rollups.map_or(Ok(None), |age| store.droppable(&mut weeks, now, age))?;
    let dropped = droppable.map_or(Ok(0), |hour| store.drop_before(hour))?;
    let (_, compressed) = store.maintain(now.wall, Keep { rollups: None, ..keep })?;
    Ok((dropped, compressed))
}

/// Whether the store still lives.
fn round(store: &Weak<PostgresStore>, weeks: &Mutex<Weeks>, now: Reading, keep: Keep) -> bool {
    let Some(store) = store.upgrade() else { return false };
    let done = store.turn().and_then(|turn| match turn {
        Some(_turn) => one_round(&store, weeks, now, keep),
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
            tracing::warn!(%why, "the store's old weeks could not be maintained; the next round comes in an hour")
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_one_after_the_other() {
        let waits = ["n1", "n2", "n3"].map(spread);
        assert!(waits.iter().all(|wait| *wait < SPREAD));
        assert!(waits[0] != waits[1] && waits[1] != waits[2] && waits[0] != waits[2], "{waits:?}");
    }
}
