//! Replays from start to end, one after another, while something is killed in every phase.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use rollmill::api::replays::{Replay, ReplayState};
use serde_json::Value;

use super::operator::Operator;
use super::{Correction, World};
use crate::ledger::{DAYS, METRICS};
use crate::rng::Rng;

/// Lines of logs that a failure shows.
const LINES_SHOWN: usize = 200;

/// What a replay was doing when something was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Adopt,
    Fill,
    Ready,
    Apply,
    Undo,
    Drop,
}

/// What can be killed.
pub trait Faults {
    /// Kills something and starts it again, without waiting until all is well.
    fn strike(&mut self, rng: &mut Rng);
    /// Takes the object storage away, or a part of it. Says whether nodes may be killed meanwhile.
    fn storage_away(&mut self, rng: &mut Rng) -> bool;
    fn storage_back(&mut self);
    /// Whether rows are being deleted right now, as far as that can be seen.
    fn is_deleting(&self) -> Option<bool>;
    /// Lines of the servers' logs with these words.
    fn log_lines(&self, words: &str) -> Vec<String>;
}

/// How often to kill in each phase.
struct Kills {
    fill: u64,
    ready: u64,
    apply: u64,
    undo: u64,
    drop: u64,
}

/// Replays under kills.
pub struct Drill<'a, F> {
    pub world: &'a World<'a>,
    operator: Operator<'a>,
    pub faults: F,
    rng: Rng,
    /// Kills by phase.
    pub kills: BTreeMap<Phase, u64>,
    /// Kills of a node that was just deleting rows, as far as that can be seen.
    pub killed_deleting: u64,
    /// Replays that were started, and those that were applied once.
    pub started: u64,
    pub applied: u64,
    pub storage_was_away: u64,
}

impl<'a, F: Faults> Drill<'a, F> {
    pub fn new(world: &'a World<'a>, faults: F, seed: u64) -> Self {
        Self {
            world,
            operator: Operator::new(world.urls),
            faults,
            rng: Rng(seed),
            kills: BTreeMap::new(),
            killed_deleting: 0,
            started: 0,
            applied: 0,
            storage_was_away: 0,
        }
    }

    pub fn killed(&self) -> u64 {
        self.kills.values().sum()
    }

    fn pause(&mut self, millis: u64) {
        std::thread::sleep(Duration::from_millis(self.rng.below(millis)));
    }

    fn strike(&mut self, phase: Phase) {
        self.faults.strike(&mut self.rng);
        *self.kills.entry(phase).or_default() += 1;
    }

    /// Kills this often, each time after a random part of the time.
    fn strike_within(&mut self, phase: Phase, times: u64, millis: u64) {
        for _ in 0..times {
            self.pause(millis);
            self.strike(phase);
        }
    }

    /// Sends a request this often while something is killed, then until it is done.
    fn carry_out(
        &mut self,
        (phase, kills): (Phase, u64),
        (path, body): (&str, Option<&Value>),
        is_done: impl Fn(&[Replay]) -> bool,
    ) {
        for _ in 0..kills {
            let wait = self.rng.below(40);
            std::thread::scope(|scope| {
                // Its outcome is not looked at: the list says what became of it.
                let operator = &self.operator;
                scope.spawn(move || _ = operator.send(path, body));
                std::thread::sleep(Duration::from_millis(wait));
                self.faults.strike(&mut self.rng);
            });
            *self.kills.entry(phase).or_default() += 1;
        }
        let mut answer = None;
        self.operator.until(
            || path.to_owned(),
            || {
                let is_done = is_done(&self.operator.list());
                if !is_done {
                    let sent = self.operator.send(path, body);
                    assert!(
                        !matches!(sent, Some((404 | 409, _))) || answer != sent,
                        "{path} is refused: {sent:?}"
                    );
                    answer = sent.filter(|(status, _)| *status != 503);
                }
                is_done
            },
        );
    }

    /// Starts a replay while something is killed, and returns its number.
    fn start(&mut self, correction: &Correction, kills: u64) -> u64 {
        let is_ours = |replay: &Replay| {
            matches!(replay.state, ReplayState::Building | ReplayState::Ready)
                && !self.world.ids().contains(&replay.id)
        };
        let request = correction.request();
        let find = |replays: &[Replay]| replays.iter().find(|r| is_ours(r)).map(|r| r.id);
        let is_done = |replays: &[Replay]| find(replays).is_some();
        self.carry_out((Phase::Adopt, kills), ("/v1/replays", Some(&request)), is_done);
        let id = find(&self.operator.list()).expect("it was just there");
        self.world.note_started(id, correction);
        self.started += 1;
        id
    }

    fn await_ready(&self, id: u64) {
        let is_ready = || self.operator.find(id).expect("it is there").state == ReplayState::Ready;
        let said = || {
            let lines = ["replay", "archiving failed"].map(|words| self.faults.log_lines(words));
            let lines = lines.concat();
            let lines = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
            format!("{lines}\n{}", self.operator.status())
        };
        self.operator.until(|| format!("replay {id} is ready\n{}\n", said()), is_ready);
    }

    fn apply(&mut self, id: u64, kills: u64) {
        let (before, correction) = (self.world.served(), self.world.correction(id));
        let mut after = before;
        for metric in &correction.metrics {
            after[*metric as usize][correction.days.clone()].fill(id);
        }
        self.change(("apply", Phase::Apply, kills), id, after, |state| {
            state == ReplayState::Applied
        });
        self.applied += 1;
    }

    fn undo(&mut self, id: u64, kills: u64, before: super::Served) {
        self.change(("undo", Phase::Undo, kills), id, before, |state| state == ReplayState::Undone);
    }

    fn change(
        &mut self,
        (action, phase, kills): (&str, Phase, u64),
        id: u64,
        after: super::Served,
        is_done: impl Fn(ReplayState) -> bool,
    ) {
        self.world.note_change(after);
        let path = format!("/v1/replays/{id}/{action}");
        self.carry_out((phase, kills), (&path, None), |replays| {
            replays.iter().any(|replay| replay.id == id && is_done(replay.state))
        });
        self.world.note_served(after);
        self.check_tags();
    }

    /// What is built, kept or gone must not be visible.
    fn check_tags(&self) {
        let served = self.world.served();
        for metric in 0..METRICS {
            let known: Vec<String> =
                served[metric as usize].iter().map(|id| self.world.correction(*id).tag).collect();
            let tags = self.operator.tags(metric);
            assert!(
                tags.iter().all(|tag| known.contains(tag)),
                "m{metric} has the tags {tags:?}, and {known:?} are served"
            );
        }
    }

    /// Cancels a replay, and waits until all of it is gone.
    fn cancel(&mut self, id: u64, kills: u64) {
        let gone_or =
            |state: Option<ReplayState>| matches!(state, None | Some(ReplayState::Leaving));
        let path = format!("/v1/replays/{id}/cancel");
        let of_path = (path.as_str(), None);
        self.carry_out((Phase::Drop, kills.div_ceil(3)), of_path, |replays| {
            gone_or(replays.iter().find(|replay| replay.id == id).map(|replay| replay.state))
        });
        self.strike_within(Phase::Drop, kills / 3, 1_500);
        for _ in 0..kills / 3 {
            if self.faults.is_deleting().is_none() {
                self.pause(6_000);
            }
            self.operator.until(
                || "rows are deleted".to_owned(),
                || self.faults.is_deleting() != Some(false) || self.operator.find(id).is_none(),
            );
            self.killed_deleting += u64::from(self.faults.is_deleting() == Some(true));
            self.strike(Phase::Drop);
        }
        self.operator
            .until(|| format!("replay {id} has left"), || self.operator.find(id).is_none());
    }

    /// Takes the storage away before the start: the replay must not become ready without it.
    fn start_without_storage(&mut self, correction: &Correction, (adopt, fill): (u64, u64)) -> u64 {
        let may_kill = self.faults.storage_away(&mut self.rng);
        let id = self.start(correction, if may_kill { adopt } else { 0 });
        if may_kill {
            self.strike_within(Phase::Fill, fill, 900);
        }
        std::thread::sleep(Duration::from_secs(2));
        let replay = self.operator.find(id).expect("it is there");
        assert_eq!(replay.state, ReplayState::Building, "without the storage: {replay:?}");
        self.faults.storage_back();
        self.storage_was_away += 1;
        id
    }

    fn corrected(&mut self, days: Range<usize>) -> Correction {
        let tag = format!("t{}", self.started);
        Correction::draw(&mut self.rng, tag, days)
    }

    /// One replay from start to end, of a kind that follows from its number.
    pub fn lifecycle(&mut self, number: u64) {
        match number % 4 {
            0 => self.applied_twice(),
            1 => self.without_rules(),
            2 => self.cancelled_early(),
            _ => self.stacked(),
        }
    }

    fn applied_twice(&mut self) {
        let (before, kills) =
            (self.world.served(), Kills { fill: 3, ready: 2, apply: 2, undo: 2, drop: 6 });
        let correction = self.corrected(0..DAYS);
        let id = self.start(&correction, 2);
        self.strike_within(Phase::Fill, kills.fill, 900);
        self.await_ready(id);
        self.strike_within(Phase::Ready, kills.ready, 200);
        self.apply(id, kills.apply);
        self.undo(id, kills.undo, before);
        self.apply(id, kills.apply);
        self.pause(500);
        self.undo(id, kills.undo, before);
        self.cancel(id, kills.drop);
    }

    /// Nothing changes when nothing changed.
    fn without_rules(&mut self) {
        let before = self.world.served();
        let correction = Correction::none(vec![0, 3]);
        let id = self.start(&correction, 1);
        self.strike_within(Phase::Fill, 3, 900);
        self.await_ready(id);
        self.strike_within(Phase::Ready, 1, 200);
        let (differing, all) = self.operator.differing(id);
        assert!(differing == 0 && all > 0, "{differing} rows of {all} differ without rules");
        self.apply(id, 1);
        self.pause(300);
        let (differing, _) = self.operator.differing(id);
        assert_eq!(differing, 0, "rows that differ once it is applied");
        self.undo(id, 1, before);
        self.cancel(id, 3);
    }

    /// One replay with kills in each of its phases, the storage away at its start.
    pub fn every_phase(&mut self) {
        let before = self.world.served();
        let correction = self.corrected(0..DAYS);
        let id = self.start_without_storage(&correction, (2, 2));
        self.strike_within(Phase::Fill, 2, 3_000);
        self.await_ready(id);
        self.strike_within(Phase::Ready, 2, 500);
        self.apply(id, 2);
        self.undo(id, 2, before);
        self.apply(id, 1);
        self.pause(1_000);
        self.undo(id, 1, before);
        self.cancel(id, 3);
    }

    /// A replay that is cancelled before it is ready.
    pub fn cancelled_early(&mut self) {
        let correction = self.corrected(0..DAYS);
        let id = self.start(&correction, 3);
        self.strike_within(Phase::Fill, 2, 600);
        self.cancel(id, 3);
    }

    /// A second one over one day of the first; undone in the order of the applies, last first.
    fn stacked(&mut self) {
        let before = self.world.served();
        let correction = self.corrected(0..DAYS);
        let first = self.start_without_storage(&correction, (1, 2));
        self.strike_within(Phase::Fill, 2, 900);
        self.await_ready(first);
        self.apply(first, 1);
        let between = self.world.served();
        let mut correction = self.corrected(1..DAYS);
        correction.metrics = self.world.correction(first).metrics;
        let second = self.start(&correction, 1);
        self.strike_within(Phase::Fill, 2, 900);
        self.await_ready(second);
        self.apply(second, 2);
        self.pause(300);
        self.undo(second, 2, between);
        self.undo(first, 1, before);
        self.cancel(second, 0);
        self.cancel(first, 3);
    }

    /// Applies one last correction and leaves it served.
    pub fn leave_applied(&mut self) -> u64 {
        let correction = Correction { only_odd: true, ..self.corrected(0..DAYS) };
        let id = self.start(&correction, 0);
        self.await_ready(id);
        self.apply(id, 1);
        id
    }

    /// Undoes the last one, and lets it leave.
    pub fn take_back(&mut self, id: u64) {
        self.undo(id, 0, super::Served::default());
        self.cancel(id, 0);
        assert!(self.operator.list().is_empty(), "a replay is left over");
    }
}
