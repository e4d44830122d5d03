//! Settles events again that people had released or discarded, from the documents in the archive.
//!
//! After the shards are rebuilt, such events wait in the quarantine of the new store. They are
//! settled as the quarantine's own commands do it, before replays are filled in: a fill counts what
//! the store says is released.

use super::RebuildError;
use crate::actors::release_fold::{ReleaseFoldError, fold_release};
use crate::actors::settled_documents::{ListedSettlements, Settlements, read_settlements};
use crate::model::offset::LogId;
use crate::model::settled_document::Settlement;
use crate::persistence::archive::Archive;
use crate::persistence::store::RebuildStore;
use crate::shards::state::ShardLimits;

/// How many events are settled as before, by this attempt or by an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettledAgain {
    /// Counted.
    pub released: u64,
    /// Never to be counted.
    pub discarded: u64,
    /// Had been released, and cannot be counted by this build: they wait again. Each with the
    /// reason.
    pub refused: Vec<String>,
}

/// Reads what was settled. `logs` are the log and those that it continues, the newest first. What a
/// damaged document said is put again by a node that runs, so it is passed over.
///
/// # Errors
/// If the archive cannot be read.
pub fn read(archive: &dyn Archive, logs: &[LogId]) -> Result<ListedSettlements, RebuildError> {
    let mut all = ListedSettlements::default();
    for log in logs.iter().rev() {
        let found = read_settlements(archive.documents(), *log)?;
        all.damaged.extend(found.damaged);
        for (shard, of) in found.settled {
            all.settled.entry(shard).or_default().events.extend(of.events);
        }
    }
    Ok(all)
}

/// Settles what waits in the new store. What an earlier attempt has settled stays so.
///
/// # Errors
/// If the store fails.
pub fn settle(
    store: &dyn RebuildStore,
    settled: &Settlements,
    limits: &ShardLimits,
) -> Result<SettledAgain, RebuildError> {
    let mut done = SettledAgain::default();
    for row in store.snapshot()?.quarantine()? {
        let of_shard = settled.get(&row.shard);
        let settlement = of_shard.and_then(|of| of.events.get(&(row.offset, row.index)));
        let Some(settlement) = settlement.filter(|_| !row.discarded) else { continue };
        let release = match settlement {
            // The lost store had been rolled back, and nobody has decided about it since.
            Settlement::Waiting => continue,
            Settlement::Discarded => None,
            Settlement::Released => match fold_release(&mut *store.snapshot()?, limits, &row) {
                Ok(event) => Some(event),
                Err(ReleaseFoldError::Store(why)) => return Err(why.into()),
                Err(ReleaseFoldError::Event(why)) => {
                    let at = format!("{}/{}/{}", row.shard, row.offset, row.index);
                    done.refused.push(format!("{at}: {why}"));
                    continue;
                }
            },
        };
        // `false` if it does not wait any more. What the store says in the end is reported.
        store.settle_quarantine(row.shard, row.offset, row.index, release.as_ref(), None)?;
    }
    for (shard, event) in store.snapshot()?.settled_events()? {
        let said = settled.get(&shard).and_then(|of| of.events.get(&(event.offset, event.index)));
        match event.settlement {
            stands if said != Some(&stands) => {}
            Settlement::Released => done.released += 1,
            Settlement::Discarded => done.discarded += 1,
            Settlement::Waiting => {}
        }
    }
    Ok(done)
}
