//! Which shards are started, drained and let go, as a pure function of the assignment and of what
//! becomes of their actors.
//!
//! What always holds: a shard has at most one actor on a node; a shard that leaves the assignment
//! is let go once, when its actor has ended or has had its time; a shard that comes back meanwhile
//! is started when the former actor has ended, not before.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::offset::ShardId;

/// The shards of an assignment that there are: a log may speak of more, and nobody writes or reads
/// those.
pub fn known(assigned: &BTreeSet<ShardId>, shard_count: u32) -> BTreeSet<ShardId> {
    assigned.iter().filter(|shard| shard.0 < shard_count).copied().collect()
}

/// How far a shard's actor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It claims and loads.
    Starting,
    /// It runs.
    Running,
    /// It failed; its backoff runs.
    Waiting,
    /// Another owner has claimed the shard: it waits for another assignment, or for a longer
    /// backoff.
    Refused,
    /// The shard was let go, but the actor has not ended in time.
    Lingering,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    phase: Phase,
    /// The shard left the assignment.
    revoked: bool,
    /// Tells the timers of one wait from those of another.
    turn: u64,
}

/// What is to be done next, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start the actor.
    Start(ShardId),
    /// Start it again after the backoff: [`Ownership::again`] with this turn.
    Retry {
        /// The shard.
        shard: ShardId,
        /// The turn.
        turn: u64,
        /// Whether another owner has the shard.
        refused: bool,
    },
    /// Let it flush what is open, then stop it.
    Drain(ShardId),
    /// When the time for draining is over: [`Ownership::overdue`] with this turn.
    Watch {
        /// The shard.
        shard: ShardId,
        /// The turn.
        turn: u64,
    },
    /// Stop it at once: it came too late.
    Stop(ShardId),
    /// Nothing of the shard is left here: empty its slot.
    Vacate(ShardId),
    /// Tell the log that another node may have it.
    LetGo(ShardId),
}

/// The shards of a node.
#[derive(Debug, Default)]
pub struct Ownership {
    assigned: BTreeSet<ShardId>,
    places: BTreeMap<ShardId, Place>,
    turn: u64,
}

impl Ownership {
    /// Whether no shard is owned, started or drained here.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// These shards are to be owned here, and no others.
    pub fn assign(&mut self, assigned: &BTreeSet<ShardId>) -> Vec<Step> {
        let mut steps = Vec::new();
        let changed = self.assigned != *assigned;
        let before = std::mem::replace(&mut self.assigned, assigned.clone());
        let gone: Vec<ShardId> =
            self.places.keys().filter(|shard| !assigned.contains(*shard)).copied().collect();
        gone.into_iter().for_each(|shard| self.revoke(shard, before.contains(&shard), &mut steps));
        for &shard in assigned {
            match self.places.get(&shard) {
                None => self.start(shard, &mut steps),
                // The group has met since: whoever had claimed the shard knows by now that it is
                // ours.
                Some(place) if place.phase == Phase::Refused && changed => {
                    self.start(shard, &mut steps)
                }
                Some(_) => {}
            }
        }
        steps
    }

    fn start(&mut self, shard: ShardId, steps: &mut Vec<Step>) {
        self.enter(shard, Phase::Starting, false);
        steps.push(Step::Start(shard));
    }

    fn enter(&mut self, shard: ShardId, phase: Phase, revoked: bool) -> u64 {
        self.turn += 1;
        self.places.insert(shard, Place { phase, revoked, turn: self.turn });
        self.turn
    }

    fn revoke(&mut self, shard: ShardId, was_assigned: bool, steps: &mut Vec<Step>) {
        let Some(place) = self.places.get(&shard).filter(|place| !place.revoked).copied() else {
            return;
        };
        match place.phase {
            // It came back and leaves again, while its former actor still ends: nothing of this
            // time is there to wait for.
            Phase::Lingering if was_assigned => steps.push(Step::LetGo(shard)),
            Phase::Lingering => {}
            Phase::Waiting | Phase::Refused => self.ended(shard, steps),
            Phase::Starting | Phase::Running => {
                let turn = self.enter(shard, place.phase, true);
                if place.phase == Phase::Running {
                    steps.push(Step::Drain(shard));
                }
                steps.push(Step::Watch { shard, turn });
            }
        }
    }

    /// The shards, of so many, that this node neither is to own nor does anything with.
    pub fn elsewhere(&self, shards: u32) -> BTreeSet<ShardId> {
        let let_go = |shard: &ShardId| {
            self.places.get(shard).is_none_or(|place| place.phase == Phase::Lingering)
        };
        (0..shards)
            .map(ShardId)
            .filter(|shard| !self.assigned.contains(shard) && let_go(shard))
            .collect()
    }

    /// The actor has loaded its shard and runs.
    pub fn started(&mut self, shard: ShardId) -> Vec<Step> {
        let Some(place) = self.places.get_mut(&shard) else { return vec![Step::Stop(shard)] };
        match place.phase {
            Phase::Lingering => vec![Step::Stop(shard)],
            _ => {
                place.phase = Phase::Running;
                if place.revoked { vec![Step::Drain(shard)] } else { Vec::new() }
            }
        }
    }

    /// The actor ended, in whatever way, or did not come up.
    pub fn failed(&mut self, shard: ShardId, refused: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        match self.places.get(&shard).copied() {
            None => {}
            Some(Place { phase: Phase::Lingering, .. }) => {
                self.places.remove(&shard);
                steps.push(Step::Vacate(shard));
                if self.assigned.contains(&shard) {
                    self.start(shard, &mut steps);
                }
            }
            Some(Place { revoked: true, .. }) => self.ended(shard, &mut steps),
            Some(_) => {
                let turn =
                    self.enter(shard, if refused { Phase::Refused } else { Phase::Waiting }, false);
                if refused {
                    steps.push(Step::Vacate(shard));
                }
                steps.push(Step::Retry { shard, turn, refused });
            }
        }
        steps
    }

    /// Nothing of a revoked shard runs any more.
    fn ended(&mut self, shard: ShardId, steps: &mut Vec<Step>) {
        self.places.remove(&shard);
        steps.extend([Step::Vacate(shard), Step::LetGo(shard)]);
        if self.assigned.contains(&shard) {
            self.start(shard, steps);
        }
    }

    /// The backoff of this turn is over.
    pub fn again(&mut self, shard: ShardId, turn: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        if self
            .places
            .get(&shard)
            .is_some_and(|p| p.turn == turn && matches!(p.phase, Phase::Waiting | Phase::Refused))
        {
            self.start(shard, &mut steps);
        }
        steps
    }

    /// The time for draining of this turn is over: others wait for the shard, and the store refuses
    /// whatever the actor still does.
    pub fn overdue(&mut self, shard: ShardId, turn: u64) -> Vec<Step> {
        let Some(place) = self.places.get_mut(&shard).filter(|p| p.turn == turn && p.revoked)
        else {
            return Vec::new();
        };
        let running = place.phase == Phase::Running;
        (place.phase, place.revoked) = (Phase::Lingering, false);
        let stop = running.then_some(Step::Stop(shard));
        stop.into_iter().chain([Step::Vacate(shard), Step::LetGo(shard)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);

    fn owning(shards: &[ShardId]) -> Ownership {
        let mut ownership = Ownership::default();
        ownership.assign(&shards.iter().copied().collect());
        shards.iter().for_each(|&shard| assert_eq!(ownership.started(shard), []));
        ownership
    }

    #[test]
    fn shards_that_do_not_exist_are_nobodys() {
        assert_eq!(known(&[A, B, ShardId(2), ShardId(u32::MAX)].into(), 2), [A, B].into());
        assert_eq!(known(&BTreeSet::new(), 2), BTreeSet::new());
    }

    #[test]
    fn shards_follow_the_assignment() {
        let mut ownership = Ownership::default();
        assert_eq!(ownership.assign(&[A].into()), [Step::Start(A)]);
        assert_eq!(ownership.started(A), []);
        assert_eq!(ownership.assign(&[A].into()), []);
        let steps = ownership.assign(&[B].into());
        let [Step::Drain(A), Step::Watch { shard: A, turn }, Step::Start(B)] = steps[..] else {
            panic!("{steps:?}")
        };
        assert_eq!(ownership.elsewhere(3), [ShardId(2)].into(), "one drains, one starts");
        assert_eq!(ownership.failed(A, false), [Step::Vacate(A), Step::LetGo(A)]);
        assert_eq!(ownership.elsewhere(3), [A, ShardId(2)].into());
        assert_eq!(ownership.overdue(A, turn), [], "it has ended");
        ownership.started(B);
        ownership.assign(&BTreeSet::new());
        assert!(!ownership.is_empty());
        ownership.failed(B, false);
        assert!(ownership.is_empty());
    }

    #[test]
    fn a_shard_that_is_revoked_while_it_loads_is_drained_when_it_has() {
        let mut ownership = Ownership::default();
        ownership.assign(&[A].into());
        assert!(matches!(ownership.assign(&BTreeSet::new())[..], [Step::Watch { shard: A, .. }]));
        assert_eq!(ownership.started(A), [Step::Drain(A)]);
        assert_eq!(ownership.failed(A, true), [Step::Vacate(A), Step::LetGo(A)]);
    }

    #[test]
    fn an_actor_that_does_not_end_holds_nobody_up_and_gets_no_second_one_beside_it() {
        let mut ownership = owning(&[A]);
        let steps = ownership.assign(&BTreeSet::new());
        let [_, Step::Watch { turn, .. }] = steps[..] else { panic!("{steps:?}") };
        assert_eq!(ownership.overdue(A, turn), [Step::Stop(A), Step::Vacate(A), Step::LetGo(A)]);
        assert_eq!(ownership.assign(&[A].into()), [], "the former actor may still run");
        assert_eq!(ownership.failed(A, false), [Step::Vacate(A), Step::Start(A)]);
    }

    #[test]
    fn a_shard_that_comes_back_while_it_drains_is_let_go_and_started_anew() {
        let mut ownership = owning(&[A]);
        ownership.assign(&BTreeSet::new());
        assert_eq!(ownership.assign(&[A].into()), []);
        assert_eq!(ownership.failed(A, false), [Step::Vacate(A), Step::LetGo(A), Step::Start(A)]);
    }

    #[test]
    fn a_refused_shard_waits_for_another_assignment_or_its_backoff() {
        let mut ownership = owning(&[A]);
        let steps = ownership.failed(A, true);
        let [Step::Vacate(A), Step::Retry { shard: A, turn, refused: true }] = steps[..] else {
            panic!("{steps:?}")
        };
        assert_eq!(ownership.assign(&[A].into()), [], "nothing has changed");
        assert_eq!(ownership.assign(&[A, B].into()), [Step::Start(A), Step::Start(B)]);
        assert_eq!(ownership.again(A, turn), [], "that backoff is for an earlier refusal");
        let Step::Retry { turn, .. } = ownership.failed(A, true)[1] else { panic!("no retry") };
        assert_eq!(ownership.again(A, turn), [Step::Start(A)]);
        ownership.failed(A, true);
        assert_eq!(ownership.assign(&[B].into()), [Step::Vacate(A), Step::LetGo(A)]);
    }

    #[test]
    fn a_failed_shard_is_not_hurried_by_another_assignment() {
        let mut ownership = owning(&[A]);
        let [Step::Retry { turn, refused: false, .. }] = ownership.failed(A, false)[..] else {
            panic!("no retry")
        };
        assert_eq!(ownership.assign(&[A, B].into()), [Step::Start(B)]);
        assert_eq!(ownership.again(A, turn), [Step::Start(A)]);
    }

    /// What a node's actors do, told by their steps.
    #[derive(Default)]
    struct Model {
        /// Shards whose actor starts (false) or runs (true).
        actors: BTreeMap<ShardId, bool>,
        timers: Vec<(ShardId, u64, bool)>,
        /// Assigned or started, and not let go since.
        held: BTreeSet<ShardId>,
        assigned: BTreeSet<ShardId>,
    }

    impl Model {
        fn perform(&mut self, steps: Vec<Step>) {
            for step in steps {
                match step {
                    Step::Start(shard) => {
                        assert!(
                            self.actors.insert(shard, false).is_none(),
                            "two actors of shard {shard}"
                        );
                        self.held.insert(shard);
                    }
                    Step::Retry { shard, turn, .. } => self.timers.push((shard, turn, false)),
                    Step::Watch { shard, turn } => self.timers.push((shard, turn, true)),
                    Step::Drain(shard) | Step::Stop(shard) => {
                        assert!(self.actors.contains_key(&shard), "nobody to stop")
                    }
                    Step::Vacate(_) => {}
                    Step::LetGo(shard) => {
                        assert!(self.held.contains(&shard), "shard {shard} is let go twice");
                        // What came back meanwhile is let go once more when it leaves again: each
                        // revocation waits for its own.
                        if !self.assigned.contains(&shard) {
                            self.held.remove(&shard);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn whatever_happens_no_shard_has_two_actors_and_in_the_end_the_assigned_ones_run() {
        for seed in 1..2_000u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut below = |n: usize| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % n as u64) as usize
            };
            let (mut ownership, mut model, mut assigned) =
                (Ownership::default(), Model::default(), BTreeSet::new());
            for _ in 0..200 {
                let steps = match below(5) {
                    0 => {
                        assigned = (0..4).filter(|_| below(2) == 0).map(ShardId).collect();
                        model.held.extend(&assigned);
                        model.assigned.clone_from(&assigned);
                        ownership.assign(&assigned)
                    }
                    1 | 2 if !model.actors.is_empty() => {
                        let (&shard, &running) =
                            model.actors.iter().nth(below(model.actors.len())).expect("one");
                        if running || below(3) == 0 {
                            model.actors.remove(&shard);
                            ownership.failed(shard, below(2) == 0)
                        } else {
                            model.actors.insert(shard, true);
                            ownership.started(shard)
                        }
                    }
                    3 if !model.timers.is_empty() => {
                        let (shard, turn, drain) =
                            model.timers.swap_remove(below(model.timers.len()));
                        if drain {
                            ownership.overdue(shard, turn)
                        } else {
                            ownership.again(shard, turn)
                        }
                    }
                    _ => Vec::new(),
                };
                model.perform(steps);
            }
            // Nothing fails any more: what is revoked ends, what waits starts.
            for _ in 0..20 {
                for (shard, turn, drain) in std::mem::take(&mut model.timers) {
                    model.perform(if drain {
                        ownership.overdue(shard, turn)
                    } else {
                        ownership.again(shard, turn)
                    });
                }
                let all: Vec<(ShardId, bool)> =
                    model.actors.iter().map(|(&s, &r)| (s, r)).collect();
                for (shard, running) in all {
                    let leaving = ownership.places[&shard].revoked
                        || ownership.places[&shard].phase == Phase::Lingering;
                    if running && leaving {
                        model.actors.remove(&shard);
                        model.perform(ownership.failed(shard, false));
                    } else if !running {
                        model.actors.insert(shard, true);
                        model.perform(ownership.started(shard));
                    }
                }
            }
            assert_eq!(
                model.actors,
                assigned.iter().map(|&shard| (shard, true)).collect(),
                "seed {seed}"
            );
            assert_eq!(model.held, assigned, "seed {seed}");
        }
    }
}
