//! What keeps the store small: dropping rollups older than `rollups.keep`, and compressing old chunks where that is wanted.
//!
//! It is the node that does it, not a job of the database: jobs fail on some servers, and a policy on the database's clock would drop
//! what a replay has just put back. Every node may run it at the same time.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{PostgresStore, StoreError};
use crate::clock::{Clock, Millis};
use crate::model::window::Hour;

/// The first round comes soon after the start, the others at this distance: weeks do not end more often.
const FIRST: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_secs(3600);

/// How long things are kept.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Rollups of windows older than this are dropped, whole weeks at a time; `None` keeps them for ever.
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

impl PostgresStore {
    /// One round. Dropped and compressed partitions or chunks.
    ///
    /// # Errors
    /// See [`StoreError`]; a partition that is in use for long is left to the next round.
    pub fn maintain(&self, now: Millis, keep: Keep) -> Result<(u32, u32), StoreError> {
        let dropped = keep.rollups.map_or(Ok(0), |age| self.drop_before(hour(now, age)))?;
        let compressed = keep.compress.map_or(Ok(0), |age| self.compress_before(hour(now, age)))?;
        Ok((dropped, compressed))
    }

    /// Rounds until the store is dropped.
    ///
    /// # Errors
    /// [`StoreError::Failed`] if the store is closed.
    pub fn maintain_regularly(self: &Arc<Self>, clock: Arc<dyn Clock>, keep: Keep) -> Result<(), StoreError> {
        let store = Arc::downgrade(self);
        self.hands()?.spawn(async move {
            let mut pause = FIRST;
            loop {
                tokio::time::sleep(pause).await;
                pause = EVERY;
                let (store, now) = (store.clone(), clock.now());
                match tokio::task::spawn_blocking(move || round(&store, now, keep)).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(why) => tracing::error!(%why, "a round of the store's maintenance died; the next one comes in an hour"),
                }
            }
        });
        Ok(())
    }
}

/// Whether the store still lives.
fn round(store: &Weak<PostgresStore>, now: Millis, keep: Keep) -> bool {
    let Some(store) = store.upgrade() else { return false };
    match store.maintain(now, keep) {
        Ok((0, 0)) => {}
        Ok((dropped, compressed)) => tracing::info!(dropped, compressed, "maintained the store's old weeks"),
        Err(why) => tracing::warn!(%why, "the store's old weeks could not be maintained; the next round comes in an hour"),
    }
    true
}
