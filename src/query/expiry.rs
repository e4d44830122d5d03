//! What is noted before anything expires, and a person's yes.
//!
//! Nothing of it is a tenant's: archives and weeks belong to all. On failure nothing was said.

use std::sync::Arc;

use serde_json::{Value, json};

use super::service::{ExpiryService, QueryError, QueryErrorKind};
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

    fn noted(view: Result<Box<dyn StoreSnapshot + '_>, StoreError>) -> Result<Vec<(Expiring, Note)>, QueryError> {
        let noted = view.and_then(|mut view| view.expiries()).map_err(|why| failed(&why))?;
        noted.into_iter().map(|(of, ExpiryNote { note, .. })| Ok((of, read(&note)?))).collect()
    }
}

fn read(note: &str) -> Result<Note, QueryError> {
    serde_json::from_str(note).map_err(|why| {
        QueryError::new(QueryErrorKind::Internal, "store_invalid", format!("a note of what expires cannot be read: {why}"))
    })
}

fn failed(why: &StoreError) -> QueryError {
    QueryError::new(QueryErrorKind::Unavailable, "store_unavailable", why.to_string())
}

fn of_whom(of: Expiring) -> Value {
    match of {
        Expiring::Archive(shard) => json!({ "of": "archive", "shard": shard.0 }),
        Expiring::Weeks => json!({ "of": "weeks", "shard": null }),
    }
}

fn shown((of, note): &(Expiring, Note)) -> Value {
    let mut shown = of_whom(*of);
    shown["below"] = note.noted_to().into();
    shown["left_ms"] = note.left_ms().into();
    shown["stopped"] = note.stopped().map(|stop| stop.to_string()).into();
    shown
}

impl ExpiryService for Expiry {
    fn list(&self, budget: &Budget) -> Result<String, QueryError> {
        let mut noted = Self::noted(self.0.snapshot_for(budget))?;
        noted.retain(|(_, note)| note.noted_to().is_some());
        let stopped = noted.iter().filter(|(_, note)| note.stopped().is_some()).count();
        Ok(json!({ "stopped": stopped, "due": noted.iter().map(shown).collect::<Vec<_>>() }).to_string())
    }

    fn say_yes(&self) -> Result<String, QueryError> {
        let stopped: Vec<Expiring> =
            Self::noted(self.0.snapshot())?.into_iter().filter(|(_, note)| note.stopped().is_some()).map(|(of, _)| of).collect();
        let said = self.0.say_yes(&stopped).map_err(|why| failed(&why))?;
        Ok(json!({ "going_on": said, "of": stopped.into_iter().map(of_whom).collect::<Vec<_>>() }).to_string())
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
        for (of, new) in [(Expiring::Archive(ShardId(3)), 9), (Expiring::Archive(ShardId(4)), 1), (Expiring::Weeks, 9)] {
            let mut note = Note::default();
            let now = Reading { wall: 5, uptime: 5, boot: 5 };
            note.look(&rules, &Look { run: 1, now, floor: 0, due_to: Some(7), new, of: 10, said: 0 });
            assert!(store.swap_expiry(of, None, &serde_json::to_string(&note).expect("text")).expect("noted"));
        }
        let expiry = Expiry::new(store.clone());
        let listed: Value = serde_json::from_str(&expiry.list(&Budget::default()).expect("listed")).expect("JSON");
        assert_eq!((listed["stopped"].as_u64(), listed["due"].as_array().map(Vec::len)), (Some(2), Some(3)));
        let said: Value = serde_json::from_str(&expiry.say_yes().expect("said")).expect("JSON");
        assert_eq!(said["going_on"], 2);
        let notes = store.snapshot().expect("snapshot").expiries().expect("notes");
        let heard: Vec<_> = notes.iter().map(|(of, note)| (*of, note.said)).collect();
        assert_eq!(heard, [(Expiring::Weeks, 1), (Expiring::Archive(ShardId(3)), 1), (Expiring::Archive(ShardId(4)), 0)]);
    }
}
