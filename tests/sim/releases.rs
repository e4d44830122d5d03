//! What people decide about events that were set aside, in the middle of a schedule: they release
//! or discard them while shards write, replays fill, and commits of the store fail.

use std::collections::BTreeSet;

use rollmill::actors::release_fold::{ReleaseFoldError, fold_release};
use rollmill::actors::settled_documents::put_settlements;
use rollmill::invariants::Invariant;
use rollmill::model::flush::QuarantineRow;
use rollmill::model::offset::ShardId;
use rollmill::model::release::ReleasedEvent;
use rollmill::model::settled_document::Settlement;
use rollmill::persistence::archive::Archive;
use rollmill::persistence::store::memory::MemoryStore;
use rollmill::persistence::store::{QuarantineStore, SnapshotSource};
use rollmill::recompute::rebuild::settled;
use rollmill::shards::state::ShardLimits;

use crate::fold::{EventPosition, Releases, TakenIn};
use crate::plants::Plant;
use crate::report::{Fault, Violation, ensure};
use crate::world::{LOG, SimWorld};

/// What was decided about the events of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SimSettlements {
    pub released: Releases,
    pub discarded: BTreeSet<EventPosition>,
}

/// An event that somebody settles: other steps come between the decision and its transaction.
pub struct OpenSettlement {
    row: QuarantineRow,
    /// `None` if it is discarded.
    release: Option<ReleasedEvent>,
}

impl SimWorld {
    /// The limits of a build in which the poison does no harm.
    pub fn mended_limits(&self) -> ShardLimits {
        ShardLimits { panic_on_user: None, ..self.setup.limits.clone() }
    }

    /// Takes the next step of an open settlement, or begins one.
    pub fn step_settlement(&mut self) -> Result<(), Violation> {
        if self.rng.chance(300) {
            let n = self.rng.below(self.setup.nodes);
            self.put_settlements(n);
            return Ok(());
        }
        match self.settling.take() {
            Some(open) => self.settle_event(&open),
            None => {
                self.settling = self.decide_settlement();
                Ok(())
            }
        }
    }

    fn decide_settlement(&mut self) -> Option<OpenSettlement> {
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let rows = snapshot.quarantine().expect("the double answers");
        let waiting: Vec<_> = rows.into_iter().filter(|row| !row.discarded).collect();
        if waiting.is_empty() {
            return None;
        }
        let row = waiting[self.rng.below(waiting.len())].clone();
        // Nobody can release a record that does not decode.
        let release = match row.tenant.is_empty() || self.rng.chance(200) {
            true => None,
            false => match fold_release(&mut *snapshot, &self.mended_limits(), &row) {
                Ok(event) => Some(event),
                Err(ReleaseFoldError::Event(why)) => panic!("{row:?} is not released: {why}"),
                Err(ReleaseFoldError::Store(why)) => panic!("the double answers: {why}"),
            },
        };
        Some(OpenSettlement { row, release })
    }

    fn settle_event(&mut self, open: &OpenSettlement) -> Result<(), Violation> {
        let QuarantineRow { shard, offset, index, .. } = open.row;
        let taken_in = self.taken_in(shard, offset);
        let waited = self.waits(shard, (offset, index));
        let settled =
            self.store.settle_quarantine(shard, offset, index, open.release.as_ref(), None);
        let what = if open.release.is_some() { "released" } else { "discarded" };
        self.add_trace(|| format!("{offset}/{index} of shard {shard} is {what}: {settled:?}"));
        // The list shows what became of it, whatever the answer was.
        if waited && !self.waits(shard, (offset, index)) {
            let of = &mut self.settlements[shard.0 as usize];
            match open.release {
                Some(_) => _ = of.released.insert((offset, index), taken_in),
                None => _ = of.discarded.insert((offset, index)),
            }
            self.hit(if open.release.is_some() {
                Fault::EventReleased
            } else {
                Fault::EventDiscarded
            });
        } else {
            self.hit(Fault::SettlementRefused);
        }
        self.check_store(false)?;
        self.check_replays()
    }

    /// Whether an event waits for a decision.
    fn waits(&self, shard: ShardId, place: EventPosition) -> bool {
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let rows = snapshot.quarantine().expect("the double answers");
        let mut waiting = rows.iter().filter(|row| !row.discarded);
        waiting.any(|row| (row.shard, row.offset, row.index) == (shard, place.0, place.1))
    }

    /// The generations whose writer has passed this record: live ones from their cut on, fills
    /// below their cursor.
    fn taken_in(&self, shard: ShardId, offset: u64) -> TakenIn {
        let book = self.book();
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let mut has_passed = |id: &_| {
            let progress = snapshot.fill_progress(*id).expect("the double answers");
            let at = progress.iter().find(|(of, _)| *of == shard);
            at.is_some_and(|(_, at)| offset >= at.cut || offset < at.cursor)
        };
        book.generations().keys().copied().filter(|id| has_passed(id)).collect()
    }

    /// Puts into the archive what was decided, as the keeper of a node does. Says whether all of it
    /// is there.
    pub fn put_settlements(&mut self, n: usize) -> bool {
        if self.has_plant(Plant::SettlementsNotArchived) {
            return true;
        }
        let (store, archive) = (self.store.clone(), self.archive.clone());
        archive.fail_next_document();
        let put = put_settlements(&*store, archive.documents(), LOG, &mut self.nodes[n].settled);
        if put.is_err() {
            self.hit(Fault::SettlementsNotPut);
        }
        put.is_ok()
    }

    /// Settles in a rebuilt store what was settled in the lost one.
    pub fn settle_again(&self, store: &MemoryStore) -> Result<(), Violation> {
        let found = settled::read(&*self.archive, &[LOG]).expect("the double answers");
        let done = settled::settle(store, &found.settled, &self.mended_limits());
        let refused = done.as_ref().map_or(usize::MAX, |done| done.refused.len());
        ensure(Invariant::Rebuildable, refused == 0, || format!("settled again: {done:?}"))
    }

    /// A rebuilt store says of each event what people have decided. Only what was released before
    /// its object was written is counted there like any other event.
    pub fn check_settled_again(&self, store: &MemoryStore) -> Result<(), Violation> {
        let settled = |store: &dyn SnapshotSource| {
            let mut snapshot = store.snapshot().expect("the double answers");
            snapshot.settled_events().expect("the double answers")
        };
        let (found, expected) = (settled(store), settled(&*self.store));
        let is_as_it_was = found.iter().all(|event| expected.contains(event));
        let mut missing = expected.iter().filter(|event| !found.contains(event));
        let counts = missing.all(|(_, event)| event.settlement == Settlement::Released);
        ensure(Invariant::Rebuildable, is_as_it_was && counts, || {
            format!("settled in the rebuilt store: {found:?}, was {expected:?}")
        })
    }
}
