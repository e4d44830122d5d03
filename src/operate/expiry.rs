//! What is noted before anything expires, and a person's yes.
//!
//! Nothing of it is a tenant's: archives and weeks belong to all. On failure nothing was said.

use std::sync::Arc;

use super::service::{ExpiryService, OperateError};
use crate::api::archive::{self, DueExpiry, ExpiryAnswer, ExpiryGoesOnAnswer};
use crate::model::budget::Budget;
use crate::model::expiry::Note;
use crate::persistence::store::{Expiring, ExpiryNote, RollupStore, StoreError, StoreSnapshot};

/// What a store has noted.
pub struct Expiry(Arc<dyn RollupStore>);

impl Expiry {
    /// The notes of this store.
    pub fn new(store: Arc<dyn RollupStore>) -> Arc<Self> {
        Arc::new(Self(store))
    }

    fn noted(
        snapshot: Result<Box<dyn StoreSnapshot + '_>, StoreError>,
    ) -> Result<Vec<(Expiring, Note)>, OperateError> {
        let noted = snapshot.and_then(|mut snapshot| snapshot.expiries())?;
        noted.into_iter().map(|(of, ExpiryNote { note, .. })| Ok((of, read(&note)?))).collect()
    }
}

fn read(note: &str) -> Result<Note, OperateError> {
    serde_json::from_str(note).map_err(|why| {
        OperateError::StoreInvalid(format!("a note of what expires cannot be read: {why}"))
    })
}

fn named(of: Expiring) -> archive::Expiring {
    match of {
        Expiring::Archive(shard) => {
            archive::Expiring { of: "archive".to_owned(), shard: Some(shard.0) }
        }
        Expiring::Weeks => archive::Expiring { of: "weeks".to_owned(), shard: None },
    }
}

fn due((of, note): &(Expiring, Note)) -> DueExpiry {
    DueExpiry {
        expiring: named(*of),
        below: note.noted_to(),
        left_ms: note.left_ms(),
        stopped: note.stopped().map(|stop| stop.to_string()),
    }
}

impl ExpiryService for Expiry {
    fn list(&self, budget: &Budget) -> Result<ExpiryAnswer, OperateError> {
        let mut noted = Self::noted(self.0.snapshot_for(budget))?;
        noted.retain(|(_, note)| note.noted_to().is_some());
        let stopped = noted.iter().filter(|(_, note)| note.stopped().is_some()).count() as u64;
        Ok(ExpiryAnswer { stopped, due: noted.iter().map(due).collect() })
    }

    fn say_yes(&self) -> Result<ExpiryGoesOnAnswer, OperateError> {
        let stopped: Vec<Expiring> = Self::noted(self.0.snapshot())?
            .into_iter()
            .filter(|(_, note)| note.stopped().is_some())
            .map(|(of, _)| of)
            .collect();
        let going_on = self.0.say_yes(&stopped)?;
        Ok(ExpiryGoesOnAnswer { going_on, of: stopped.into_iter().map(named).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::Reading;
    use crate::model::expiry::{Look, Rules};
    use crate::model::offset::ShardId;
    use crate::persistence::store::memory::MemoryStore;

    #[test]
    fn a_yes_is_for_what_has_stopped_and_nothing_else() {
        let store = MemoryStore::new();
        let rules = Rules { gather_ms: 1_000, max_at_once: 1 };
        for (of, new) in [
            (Expiring::Archive(ShardId(3)), 9),
            (Expiring::Archive(ShardId(4)), 1),
            (Expiring::Weeks, 9),
        ] {
            let mut note = Note::default();
            let now = Reading { wall: 5, uptime: 5, boot: 5 };
            note.look(
                &rules,
                &Look { run: 1, now, floor: 0, due_to: Some(7), new, of: 10, said: 0 },
            );
            assert!(
                store
                    .swap_expiry(of, None, &serde_json::to_string(&note).expect("text"))
                    .expect("noted")
            );
        }
        let expiry = Expiry::new(store.clone());
        let listed = expiry.list(&Budget::default()).expect("listed");
        assert_eq!((listed.stopped, listed.due.len()), (2, 3));
        assert_eq!(expiry.say_yes().expect("said").going_on, 2);
        let notes = store.snapshot().expect("snapshot").expiries().expect("notes");
        let heard: Vec<_> = notes.iter().map(|(of, note)| (*of, note.said)).collect();
        assert_eq!(
            heard,
            [
                (Expiring::Weeks, 1),
                (Expiring::Archive(ShardId(3)), 1),
                (Expiring::Archive(ShardId(4)), 0)
            ]
        );
    }
}
