//! Tells the shards of this node which generations are to be written, and the archiver where a
//! fill waits for it.
//!
//! It is level-triggered: about once a second it compares the newest set in the store with what
//! each shard has adopted. A set that this build cannot compile is sent to nobody: the shards keep
//! to the one that they have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::shard::ShardMessage;
use super::shard_table::ShardTable;
use super::ticker::ShardRefs;
use crate::model::offset::{Epoch, Offset, ShardId};
use crate::persistence::store::{SnapshotSource, StoreError};
use crate::shards::driver::ShardEvent;
use crate::shards::generations::ActiveSet;
use crate::telemetry::{self, RepeatedLog};

/// Interval between two looks at the store.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A store that is away, or rules of a newer build, look the same at every look.
static FAILURE_LOG: RepeatedLog = RepeatedLog::new();

/// Dependencies of the watch.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone)]
pub struct SetWatch {
    pub store: Arc<dyn SnapshotSource>,
    pub table: Arc<ShardTable>,
    pub refs: ShardRefs,
}

/// Messages of the watch.
#[derive(Debug)]
pub enum SetWatchMessage {
    /// Compare store and shards.
    Look,
}

impl ractor::Message for SetWatchMessage {}

/// What the watch has sent.
#[derive(Debug, Default)]
pub struct SetWatchState {
    compiled: Arc<ActiveSet>,
    /// Which version each owner was sent. Nobody is sent one twice: an actor takes what is in its
    /// mailbox, or is replaced by one of another epoch.
    sent: BTreeMap<ShardId, (Epoch, u64)>,
}

/// What one look has found.
struct Look {
    /// The newest set, if it is another one than before.
    set: Option<ActiveSet>,
    /// Where fills wait for the archive.
    cuts: Vec<(ShardId, Offset)>,
}

impl Actor for SetWatch {
    type Msg = SetWatchMessage;
    type State = SetWatchState;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<SetWatchMessage>,
        (): (),
    ) -> Result<SetWatchState, ActorProcessingErr> {
        myself.cast(SetWatchMessage::Look)?;
        Ok(SetWatchState::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<SetWatchMessage>,
        _: SetWatchMessage,
        state: &mut SetWatchState,
    ) -> Result<(), ActorProcessingErr> {
        let (watch, known) = (self.clone(), state.compiled.version());
        match tokio::task::spawn_blocking(move || watch.look(known)).await? {
            Ok(found) => {
                if let Some(set) = found.set {
                    state.compiled = Arc::new(set);
                }
                self.request_archive(&found.cuts);
                self.send(state);
            }
            Err(why) => {
                metrics::counter!(telemetry::GENERATION_SET_FAILURES).increment(1);
                if let Some(silent) = FAILURE_LOG.due(&why) {
                    tracing::warn!(
                        %why,
                        silent,
                        "cannot see which generations are to be written: the shards keep to what \
                         they write (told once a minute)"
                    );
                }
            }
        }
        myself.send_after(LOOK_EVERY, || SetWatchMessage::Look);
        Ok(())
    }
}

impl SetWatch {
    /// Reads the store. Blocks.
    fn look(&self, known: u64) -> Result<Look, String> {
        let text = |error: StoreError| error.to_string();
        let mut snapshot = self.store.snapshot().map_err(text)?;
        let book = snapshot.generation_book().map_err(text)?;
        let newest = book.newest_set();
        let set = match newest.version == known {
            true => None,
            false => Some(ActiveSet::compile(&newest).map_err(|error| error.to_string())?),
        };
        let mut cuts = Vec::new();
        for id in book.generations().keys().filter(|id| book.is_built(**id)) {
            let unfilled = snapshot.fill_progress(*id).map_err(text)?.into_iter();
            let unfilled = unfilled.filter(|(_, at)| !at.is_complete());
            cuts.extend(unfilled.map(|(shard, at)| (shard, at.cut)));
        }
        Ok(Look { set, cuts })
    }

    /// Has the archiver cut where a fill needs it, instead of when an object is due.
    fn request_archive(&self, cuts: &[(ShardId, Offset)]) {
        for (shard, cut) in cuts {
            if self.table.epoch(*shard).is_some() {
                self.table.entry(*shard).request_archive_below(*cut);
            }
        }
    }

    /// Sends the newest set to the owners here that write under an older one.
    fn send(&self, state: &mut SetWatchState) {
        let version = state.compiled.version();
        for (shard, entry) in self.table.iter() {
            let owner = entry.read_state(|state| (state.epoch(), state.set().version()));
            let Some((epoch, adopted)) = owner else {
                state.sent.remove(&shard);
                continue;
            };
            let known = state.sent.get(&shard).is_some_and(|sent| *sent == (epoch, version));
            if adopted >= version || known {
                continue;
            }
            let event = || ShardMessage::CallEnded(ShardEvent::NewestSet(state.compiled.clone()));
            let actor = self.refs.get(shard.0 as usize).map(|actor| actor.load());
            let actor = actor.as_ref().and_then(|actor| actor.as_ref());
            // An actor that is gone is replaced by one of another epoch.
            if actor.is_some_and(|actor| actor.cast(event()).is_ok()) {
                state.sent.insert(shard, (epoch, version));
            }
        }
    }
}
