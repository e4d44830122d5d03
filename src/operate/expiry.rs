//! Expiry as operators see it: what is due, and their approval of what was stopped.
//!
//! Nothing here belongs to a tenant: archives and weeks are shared by all. A call that fails has
//! approved nothing, or the outcome is unknown.

use std::sync::Arc;

use super::service::{ExpiryService, OperateError};
use crate::api::archive::{self, DueExpiry, ExpiryAnswer, ExpiryGoesOnAnswer};
use crate::model::budget::QueryBudget;
use crate::model::expiry::ExpiryState;
use crate::persistence::store::{ArchiveSnapshot, ExpiryRow, ExpiryTarget, ManifestStore};

/// Expiry as recorded in a store.
pub struct StoreExpiry(Arc<dyn ManifestStore>);

impl StoreExpiry {
    /// Creates the service on this store.
    pub fn new(store: Arc<dyn ManifestStore>) -> Arc<Self> {
        Arc::new(Self(store))
    }

    fn states(
        snapshot: &mut dyn ArchiveSnapshot,
    ) -> Result<Vec<(ExpiryTarget, ExpiryState)>, OperateError> {
        let noted = snapshot.expiries()?;
        noted
            .into_iter()
            .map(|(of, ExpiryRow { note, .. })| Ok((of, parse_state(&note)?)))
            .collect()
    }
}

fn parse_state(note: &str) -> Result<ExpiryState, OperateError> {
    serde_json::from_str(note).map_err(|why| {
        OperateError::StoreInvalid(format!("a note of what expires cannot be read: {why}"))
    })
}

fn expiring_name(of: ExpiryTarget) -> archive::Expiring {
    match of {
        ExpiryTarget::Archive(shard) => {
            archive::Expiring { of: "archive".to_owned(), shard: Some(shard.0) }
        }
        ExpiryTarget::Weeks => archive::Expiring { of: "weeks".to_owned(), shard: None },
    }
}

fn due((of, note): &(ExpiryTarget, ExpiryState)) -> DueExpiry {
    DueExpiry {
        expiring: expiring_name(*of),
        below: note.recorded_to(),
        left_ms: note.remaining_ms(),
        stopped: note.stop().map(|stop| stop.to_string()),
    }
}

impl ExpiryService for StoreExpiry {
    fn list(&self, budget: &QueryBudget) -> Result<ExpiryAnswer, OperateError> {
        let mut noted = Self::states(&mut *self.0.snapshot_for(budget)?)?;
        noted.retain(|(_, note)| note.recorded_to().is_some());
        let stopped = noted.iter().filter(|(_, note)| note.stop().is_some()).count() as u64;
        Ok(ExpiryAnswer { stopped, due: noted.iter().map(due).collect() })
    }

    fn approve(&self, budget: &QueryBudget) -> Result<ExpiryGoesOnAnswer, OperateError> {
        // An approval covers only what is stopped now; later stops need their own.
        let stopped: Vec<ExpiryTarget> = Self::states(&mut *self.0.snapshot_for(budget)?)?
            .into_iter()
            .filter(|(_, note)| note.stop().is_some())
            .map(|(of, _)| of)
            .collect();
        let going_on = self.0.approve_expiry(&stopped, Some(budget))?;
        Ok(ExpiryGoesOnAnswer { going_on, of: stopped.into_iter().map(expiring_name).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::ClockReading;
    use crate::model::expiry::{ExpiryRules, ExpirySample};
    use crate::model::offset::ShardId;
    use crate::persistence::store::SnapshotSource;
    use crate::persistence::store::memory::MemoryStore;

    #[test]
    fn a_yes_is_for_what_has_stopped_and_nothing_else() {
        let store = MemoryStore::new();
        let rules = ExpiryRules { grace_ms: 1_000, max_at_once: 1 };
        for (of, new) in [
            (ExpiryTarget::Archive(ShardId(3)), 9),
            (ExpiryTarget::Archive(ShardId(4)), 1),
            (ExpiryTarget::Weeks, 9),
        ] {
            let mut note = ExpiryState::default();
            let now = ClockReading { wall: 5, uptime: 5, boot: 5 };
            note.update(
                &rules,
                &ExpirySample {
                    run_id: 1,
                    now,
                    floor: 0,
                    due_to: Some(7),
                    newly_due: new,
                    total: 10,
                    approvals: 0,
                },
            );
            assert!(
                store
                    .swap_expiry(of, None, &serde_json::to_string(&note).expect("text"))
                    .expect("noted")
            );
        }
        let expiry = StoreExpiry::new(store.clone());
        let listed = expiry.list(&QueryBudget::default()).expect("listed");
        assert_eq!((listed.stopped, listed.due.len()), (2, 3));
        assert_eq!(expiry.approve(&QueryBudget::default()).expect("said").going_on, 2);
        let notes = store.snapshot().expect("snapshot").expiries().expect("notes");
        let heard: Vec<_> = notes.iter().map(|(of, note)| (*of, note.approvals)).collect();
        assert_eq!(
            heard,
            [
                (ExpiryTarget::Weeks, 1),
                (ExpiryTarget::Archive(ShardId(3)), 1),
                (ExpiryTarget::Archive(ShardId(4)), 0)
            ]
        );
    }
}
