//! Replays in the middle of a schedule: sets are adopted, the past is filled in, generations are
//! applied, undone, cancelled and deleted, while everything else goes on and fails.

use std::sync::Arc;

use rollmill::clock::Clock;
use rollmill::model::generation::{DayRange, GenerationId};
use rollmill::model::generation_book::{GenerationBook, NewGeneration};
use rollmill::model::generation_keeping::{KeepingLimits, KeepingSample};
use rollmill::model::offset::ShardId;
use rollmill::model::window::Hour;
use rollmill::persistence::store::{GenerationStore, ManifestStore, SnapshotSource, StoreError};
use rollmill::recompute::fold::FoldRules;
use rollmill::recompute::replay::shard_replay::{
    FillLimits, FoldStep, ReplaySources, ReplayStep, ReplayWait, ShardReplay,
};
use rollmill::rules::{RuleSet, RulesFormat};
use rollmill::shards::driver::ShardEvent;
use rollmill::shards::generations::ActiveSet;

use crate::doubles::{checkpoint, with_dice};
use crate::fold::{METRIC, TENANTS};
use crate::plants::Plant;
use crate::report::{Fault, Violation};
use crate::world::SimWorld;

/// Generations beside generation 0 that a day of a metric may have.
const MAX_MAINTAINED: usize = 3;
/// For how long an apply can be undone, and a query may read.
const LIMITS: KeepingLimits = KeepingLimits { keep_ms: 240, query_ms: 30 };

/// Rules, and what they do in plain code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimRules {
    Same,
    WithoutA,
    OnePage,
    BIsC,
}

impl SimRules {
    const ALL: [Self; 4] = [Self::Same, Self::WithoutA, Self::OnePage, Self::BIsC];

    pub fn text(self) -> Arc<str> {
        let file = match self {
            SimRules::Same => r#"{"rule": []}"#,
            SimRules::WithoutA => {
                r#"{"rule": [{"name": "a", "where": {"labels": "{page=\"a\"}"}, "drop": true}]}"#
            }
            SimRules::OnePage => r#"{"rule": [{"name": "page", "remove_label": "page"}]}"#,
            SimRules::BIsC => {
                r#"{"rule": [{"name": "b", "map_label": {"label": "page", "values": {"b": "c"}}}]}"#
            }
        };
        let parsed = RuleSet::parse(file, RulesFormat::Json);
        parsed.unwrap_or_else(|mistakes| panic!("{mistakes}")).canonical_json().into()
    }

    pub fn of(text: &str) -> Self {
        Self::ALL.into_iter().find(|rules| &*rules.text() == text).expect("known rules")
    }

    /// The page that an event of this page is counted for.
    pub fn page(self, page: &'static str) -> Option<&'static str> {
        match (self, page) {
            (SimRules::WithoutA, "a") => None,
            (SimRules::OnePage, _) => Some(""),
            (SimRules::BIsC, "b") => Some("c"),
            (_, page) => Some(page),
        }
    }
}

/// A filler between its steps. It may be one of several for the same generation and shard.
pub struct SimFiller {
    id: GenerationId,
    shard: ShardId,
    replay: ShardReplay,
    /// What was folded is committed in the next step.
    commits: bool,
}

impl SimWorld {
    pub fn book(&self) -> Arc<GenerationBook> {
        let mut snapshot = self.store.snapshot().expect("the double answers");
        snapshot.generation_book().expect("the double answers")
    }

    pub fn step_replay(&mut self) -> Result<(), Violation> {
        match self.rng.below(16) {
            0..2 => self.start_replay(),
            2..6 => self.tell_newest_set()?,
            6..11 => self.step_filler()?,
            11..13 => self.apply_replay(),
            13 => self.undo_or_cancel(),
            14 => {
                let n = self.rng.below(self.setup.nodes);
                self.keep_replays(n);
            }
            _ => self.expire_oldest(),
        }
        self.check_replays()
    }

    /// Replaces the book as somebody at the desk does; a lost answer is not waited for.
    fn swap_book(
        &mut self,
        what: &str,
        change: impl FnOnce(&mut GenerationBook, u64) -> bool,
    ) -> bool {
        let before = self.book();
        let mut after = GenerationBook::clone(&before);
        if !change(&mut after, self.rng.next()) {
            return false;
        }
        let swapped = self.store.swap_generations(before.version(), &after, None);
        self.add_trace(|| format!("{what}: {swapped:?}"));
        swapped.is_ok_and(|swapped| swapped)
    }

    fn start_replay(&mut self) {
        let today = Hour::of(self.now).day();
        let from = today - self.rng.below(3) as i32;
        let to = self.rng.chance(600).then(|| from + 1 + self.rng.below(4) as i32);
        let new = NewGeneration {
            tenant: TENANTS[self.rng.below(2)].to_owned(),
            metrics: vec![METRIC.to_owned()],
            days: DayRange::new(from, to).expect("a range"),
            rules: self.rng.pick(&SimRules::ALL).text(),
            started: (self.now, "sim".to_owned()),
        };
        self.start_generation(new);
    }

    pub fn start_generation(&mut self, new: NewGeneration) {
        let what = format!("a replay of {} {:?} is started", new.tenant, new.days);
        let start = |book: &mut GenerationBook, nonce| {
            book.generations().len() < 3 && book.start(new, MAX_MAINTAINED, nonce).is_ok()
        };
        if self.swap_book(&what, start) {
            self.hit(Fault::ReplayStarted);
        }
        let newest = self.book().generations().keys().next_back().copied();
        self.last_generation = self.last_generation.max(newest.unwrap_or_default().0);
    }

    /// A node hears of the newest set and tells one of its shards.
    fn tell_newest_set(&mut self) -> Result<(), Violation> {
        let (n, s) = (self.rng.below(self.setup.nodes), self.rng.below(self.shards()));
        self.tell_newest_set_to(n, s)
    }

    fn tell_newest_set_to(&mut self, n: usize, s: usize) -> Result<(), Violation> {
        let shell = &self.nodes[n].shards[s];
        if !shell.alive || shell.starting.is_some() || self.nodes[n].paused {
            return Ok(());
        }
        let newest = self.book().newest_set();
        let slot = self.nodes[n].table.entry(ShardId(s as u32));
        let adopted = slot.read_state(|state| state.set().version());
        if adopted.is_none_or(|adopted| adopted >= newest.version) {
            return Ok(());
        }
        let set = ActiveSet::compile(&newest).expect("known rules");
        self.drive(n, s, ShardEvent::NewestSet(Arc::new(set)))
    }

    /// Shards whose archived records are not all folded into a generation yet.
    fn unfilled(&self) -> Vec<(GenerationId, ShardId)> {
        let book = self.book();
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let mut open = Vec::new();
        for id in book.generations().keys().filter(|id| book.newest_set().has(**id)) {
            let progress = snapshot.fill_progress(*id).expect("the double answers");
            let unfilled = progress.into_iter().filter(|(_, at)| !at.is_complete());
            open.extend(unfilled.map(|(shard, _)| (*id, shard)));
        }
        open
    }

    fn step_filler(&mut self) -> Result<(), Violation> {
        if self.fillers.is_empty() || (self.fillers.len() < 3 && self.rng.chance(300)) {
            let open = self.unfilled();
            if open.is_empty() {
                return Ok(());
            }
            let (id, shard) = self.rng.pick(&open);
            if self.fillers.iter().any(|other| (other.id, other.shard) == (id, shard)) {
                self.hit(Fault::FillTwice);
            }
            self.start_filler(id, shard);
        }
        let at = self.rng.below(self.fillers.len());
        if self.rng.chance(self.setup.crash) {
            self.fillers.remove(at);
            self.hit(Fault::FillerCrashed);
            return Ok(());
        }
        _ = self.run_filler(at);
        Ok(())
    }

    fn start_filler(&mut self, id: GenerationId, shard: ShardId) {
        let rules = self.setup.rules;
        let fold = FoldRules {
            dedup_horizon_ms: rules.horizon_ms,
            dedup_max_ids: rules.max_ids,
            max_delta_bytes: 1_000,
            shard_count: self.setup.shards,
        };
        let limits = FillLimits {
            max_delta_bytes: self.rng.pick(&[700, 1 << 20]),
            max_records: self.rng.pick(&[1, 4, 1_000]),
            max_series: rules.max_series as u64,
            fold,
        };
        let (store, archive) = (self.store.clone(), self.archive.clone());
        let sources = ReplaySources { store, archive, limits };
        let replay = ShardReplay::new(sources, id, shard, self.rng.next());
        self.fillers.push(SimFiller { id, shard, replay, commits: false });
    }

    /// Lets a filler fold, or commit what it has folded. Other steps come in between.
    fn run_filler(&mut self, at: usize) -> Option<ReplayStep> {
        with_dice(&self.dice, |dice| dice.filling = true);
        let filler = &mut self.fillers[at];
        let committed = std::mem::take(&mut filler.commits);
        let stepped = match committed {
            true => filler.replay.commit(),
            false => match filler.replay.fold() {
                Ok(FoldStep::Done(step)) => Ok(step),
                Ok(FoldStep::Commit) => {
                    filler.commits = true;
                    with_dice(&self.dice, |dice| dice.filling = false);
                    return None;
                }
                Err(error) => Err(error),
            },
        };
        with_dice(&self.dice, |dice| dice.filling = false);
        let (id, shard) = (filler.id, filler.shard);
        self.add_trace(|| format!("fill of {id} from shard {shard}: {stepped:?}"));
        match &stepped {
            Ok(ReplayStep::Overtaken) => self.hit(Fault::FillFenced),
            Ok(ReplayStep::Waiting(ReplayWait::Object(_))) => self.hit(Fault::FillAwaitsObject),
            Ok(ReplayStep::Waiting(ReplayWait::Expired(_))) => self.hit(Fault::FillExpired),
            Ok(_) if committed => self.hit(Fault::Filled),
            Err(_) => self.hit(Fault::FillFailed),
            Ok(_) => {}
        }
        match stepped {
            // Its actor ends, and another one begins at the stored cursor.
            Err(_) | Ok(ReplayStep::Complete | ReplayStep::Ended) => {
                self.fillers.remove(at);
                stepped.ok()
            }
            Ok(step) => Some(step),
        }
    }

    /// The generations that all shards have cut and filled.
    fn ready(&self, book: &GenerationBook) -> Vec<GenerationId> {
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let shards = self.shards();
        let mut is_ready = |id: &GenerationId| {
            let progress = snapshot.fill_progress(*id).expect("the double answers");
            progress.len() == shards && progress.iter().all(|(_, at)| at.is_complete())
        };
        book.generations().keys().copied().filter(|id| book.is_built(*id) && is_ready(id)).collect()
    }

    pub fn apply_replay(&mut self) {
        let book = self.book();
        let ready = match self.has_plant(Plant::AppliedUnready) {
            true => book.generations().keys().copied().collect(),
            false => self.ready(&book),
        };
        if ready.is_empty() {
            return;
        }
        let (id, now) = (self.rng.pick(&ready), self.now);
        if self.swap_book(&format!("replay {id} is applied"), |book, _| book.apply(id, now).is_ok())
        {
            self.hit(Fault::ReplayApplied);
        }
    }

    fn undo_or_cancel(&mut self) {
        let ids: Vec<_> = self.book().generations().keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = self.rng.pick(&ids);
        if !self.undo_replay(id) && self.rng.chance(300) {
            self.cancel_replay(id);
        }
    }

    pub fn undo_replay(&mut self, id: GenerationId) -> bool {
        let undo = |book: &mut GenerationBook, _| book.undo(id).is_ok();
        let undone = self.swap_book(&format!("replay {id} is undone"), undo);
        if undone {
            self.hit(Fault::ReplayUndone);
        }
        undone
    }

    pub fn cancel_replay(&mut self, id: GenerationId) {
        let cancel = |book: &mut GenerationBook, nonce| book.cancel(id, None, nonce).is_ok();
        if self.swap_book(&format!("replay {id} is cancelled"), cancel) {
            self.hit(Fault::ReplayCancelled);
        }
    }

    /// What the keeper of a node does in a turn.
    fn keep_replays(&mut self, n: usize) {
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let book = snapshot.generation_book().expect("the double answers");
        let mut versions = snapshot.set_versions().expect("the double answers");
        drop(snapshot);
        if self.has_plant(Plant::RowsLeaveEarly) {
            versions.iter_mut().for_each(|(_, version)| *version = u64::MAX);
        }
        let limits = match self.plant {
            Some(Plant::RowsLeaveEarly) => KeepingLimits { query_ms: 0, ..LIMITS },
            _ => LIMITS,
        };
        let (now, nonce) = (self.clock.reading(), self.rng.next());
        let shard_count = self.setup.shards;
        let sample = KeepingSample { book: &book, versions: &versions, shard_count, now, nonce };
        let plan = self.nodes[n].keeping.plan(&sample, &limits);
        if let Some(next) = plan.book {
            let swapped = self.store.swap_generations(book.version(), &next, None);
            self.add_trace(|| format!("the keeper of node {n} changes the book: {swapped:?}"));
            if swapped == Ok(true) {
                self.nodes[n].keeping.stored(&next, now);
                let expired = next.applies().len() < book.applies().len();
                self.hit(if expired { Fault::WayBackEnded } else { Fault::BookKept });
            }
        }
        for range in plan.delete {
            match self.store.delete_generation_rows(&range, 2) {
                Ok(0) => {
                    _ = self.swap_book(&format!("{range:?} is gone"), |book, _| book.left(&range));
                }
                Ok(_) => self.hit(Fault::RowsDeleted),
                Err(StoreError::Refused { .. }) => unreachable!("nothing guards a deletion"),
                Err(_) => {}
            }
        }
    }

    /// The oldest object of a shard expires, which moves the archive floor, whatever is being
    /// filled in. Not where the store may be rolled back to a moment before.
    fn expire_oldest(&mut self) {
        if self.setup.rollback > 0 || !self.rng.chance(self.setup.expiry) {
            return;
        }
        let shard = ShardId(self.rng.below(self.shards()) as u32);
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let rows = snapshot.manifest(Some(shard)).expect("the double answers");
        drop(snapshot);
        let next = checkpoint(&*self.store, shard).map_or(0, |at| at.next);
        let Some(oldest) = rows.first().filter(|row| row.range.to <= next) else { return };
        if self.store.expire_object(oldest) == Ok(true) {
            self.add_trace(|| format!("{:?} of shard {shard} expires", oldest.range));
            self.hit(Fault::ObjectExpired);
            self.expired = true;
            let verified = &mut self.verified[shard.0 as usize];
            *verified = verified.saturating_sub(1);
        }
    }

    /// Once faults have stopped, every replay gets ready by itself, unless what it needs has
    /// expired; then it is cancelled, as its message says.
    pub fn settle_replays(&mut self, n: usize) -> Result<(), Violation> {
        for s in 0..self.shards() {
            self.tell_newest_set_to(n, s)?;
        }
        self.fillers.clear();
        for (id, shard) in self.unfilled() {
            self.start_filler(id, shard);
            for _ in 0..8 {
                match self.run_filler(0) {
                    _ if self.fillers.is_empty() => break,
                    Some(ReplayStep::Waiting(ReplayWait::Expired(_))) => {
                        self.cancel_replay(id);
                        break;
                    }
                    Some(ReplayStep::Waiting(_)) => break,
                    _ => {}
                }
            }
            self.fillers.clear();
        }
        if !self.book().leaving().is_empty() {
            self.keep_replays(n);
        }
        Ok(())
    }

    /// Whether the store says that a shard writes under the newest set.
    pub fn has_adopted(&self, s: u32) -> bool {
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let versions = snapshot.set_versions().expect("the double answers");
        let newest = self.book().newest_set().version;
        versions.iter().any(|(shard, version)| shard.0 == s && *version == newest)
    }

    pub fn replays_settled(&self) -> bool {
        let book = self.book();
        let mut snapshot = self.store.snapshot().expect("the double answers");
        let newest = book.newest_set();
        let versions = snapshot.set_versions().expect("the double answers");
        self.unfilled().is_empty()
            && book.leaving().is_empty()
            && versions.iter().all(|(_, version)| *version == newest.version)
            && newest.generations().iter().all(|id| {
                let cuts = snapshot.fill_progress(*id).expect("the double answers").len();
                cuts == versions.len()
            })
    }
}
