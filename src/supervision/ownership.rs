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
pub fn existing_shards(assigned: &BTreeSet<ShardId>, shard_count: u32) -> BTreeSet<ShardId> {
    assigned.iter().filter(|shard| shard.0 < shard_count).copied().collect()
}

/// How far a shard's actor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ActorPhase {
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
struct ActorState {
    phase: ActorPhase,
    /// The shard left the assignment.
    revoked: bool,
    /// Tells the timers of one wait from those of another.
    turn: u64,
}

/// What is to be done next, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnershipStep {
    /// Start the actor.
    Start(ShardId),
    /// Start it again after the backoff: [`ShardOwnership::retry`] with this turn.
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
    /// When the time for draining is over: [`ShardOwnership::on_drain_timeout`] with this turn.
    WatchDrain {
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
    Relinquish(ShardId),
}

/// The shards of a node.
#[derive(Debug, Default)]
pub struct ShardOwnership {
    assigned: BTreeSet<ShardId>,
    actors: BTreeMap<ShardId, ActorState>,
    turn: u64,
}

impl ShardOwnership {
    /// Whether no shard is owned, started or drained here.
    pub fn is_empty(&self) -> bool {
        self.actors.is_empty()
    }

    /// These shards are to be owned here, and no others.
    pub fn assign(&mut self, assigned: &BTreeSet<ShardId>) -> Vec<OwnershipStep> {
        let mut steps = Vec::new();
        let changed = self.assigned != *assigned;
        let before = std::mem::replace(&mut self.assigned, assigned.clone());
        let gone: Vec<ShardId> =
            self.actors.keys().filter(|shard| !assigned.contains(*shard)).copied().collect();
        gone.into_iter().for_each(|shard| self.revoke(shard, before.contains(&shard), &mut steps));
        for &shard in assigned {
            match self.actors.get(&shard) {
                None => self.start(shard, &mut steps),
                // The group has met since: whoever had claimed the shard knows by now that it is
                // ours.
                Some(place) if place.phase == ActorPhase::Refused && changed => {
                    self.start(shard, &mut steps)
                }
                Some(_) => {}
            }
        }
        steps
    }

    fn start(&mut self, shard: ShardId, steps: &mut Vec<OwnershipStep>) {
        self.enter(shard, ActorPhase::Starting, false);
        steps.push(OwnershipStep::Start(shard));
    }

    fn enter(&mut self, shard: ShardId, phase: ActorPhase, revoked: bool) -> u64 {
        self.turn += 1;
        self.actors.insert(shard, ActorState { phase, revoked, turn: self.turn });
        self.turn
    }

    fn revoke(&mut self, shard: ShardId, was_assigned: bool, steps: &mut Vec<OwnershipStep>) {
        let Some(place) = self.actors.get(&shard).filter(|place| !place.revoked).copied() else {
            return;
        };
        match place.phase {
            // It came back and leaves again, while its former actor still ends: nothing of this
            // time is there to wait for.
            ActorPhase::Lingering if was_assigned => steps.push(OwnershipStep::Relinquish(shard)),
            ActorPhase::Lingering => {}
            ActorPhase::Waiting | ActorPhase::Refused => self.finish(shard, steps),
            ActorPhase::Starting | ActorPhase::Running => {
                let turn = self.enter(shard, place.phase, true);
                if place.phase == ActorPhase::Running {
                    steps.push(OwnershipStep::Drain(shard));
                }
                steps.push(OwnershipStep::WatchDrain { shard, turn });
            }
        }
    }

    /// The shards, of so many, that this node neither is to own nor does anything with.
    pub fn unassigned(&self, shards: u32) -> BTreeSet<ShardId> {
        let let_go = |shard: &ShardId| {
            self.actors.get(shard).is_none_or(|place| place.phase == ActorPhase::Lingering)
        };
        (0..shards)
            .map(ShardId)
            .filter(|shard| !self.assigned.contains(shard) && let_go(shard))
            .collect()
    }

    /// The actor has loaded its shard and runs.
    pub fn on_started(&mut self, shard: ShardId) -> Vec<OwnershipStep> {
        let Some(place) = self.actors.get_mut(&shard) else {
            return vec![OwnershipStep::Stop(shard)];
        };
        match place.phase {
            ActorPhase::Lingering => vec![OwnershipStep::Stop(shard)],
            _ => {
                place.phase = ActorPhase::Running;
                if place.revoked { vec![OwnershipStep::Drain(shard)] } else { Vec::new() }
            }
        }
    }

    /// The actor ended, in whatever way, or did not come up.
    pub fn on_failed(&mut self, shard: ShardId, refused: bool) -> Vec<OwnershipStep> {
        let mut steps = Vec::new();
        match self.actors.get(&shard).copied() {
            None => {}
            Some(ActorState { phase: ActorPhase::Lingering, .. }) => {
                self.actors.remove(&shard);
                steps.push(OwnershipStep::Vacate(shard));
                if self.assigned.contains(&shard) {
                    self.start(shard, &mut steps);
                }
            }
            Some(ActorState { revoked: true, .. }) => self.finish(shard, &mut steps),
            Some(_) => {
                let turn = self.enter(
                    shard,
                    if refused { ActorPhase::Refused } else { ActorPhase::Waiting },
                    false,
                );
                if refused {
                    steps.push(OwnershipStep::Vacate(shard));
                }
                steps.push(OwnershipStep::Retry { shard, turn, refused });
            }
        }
        steps
    }

    /// Nothing of a revoked shard runs any more.
    fn finish(&mut self, shard: ShardId, steps: &mut Vec<OwnershipStep>) {
        self.actors.remove(&shard);
        steps.extend([OwnershipStep::Vacate(shard), OwnershipStep::Relinquish(shard)]);
        if self.assigned.contains(&shard) {
            self.start(shard, steps);
        }
    }

    /// The backoff of this turn is over.
    pub fn retry(&mut self, shard: ShardId, turn: u64) -> Vec<OwnershipStep> {
        let mut steps = Vec::new();
        if self.actors.get(&shard).is_some_and(|p| {
            p.turn == turn && matches!(p.phase, ActorPhase::Waiting | ActorPhase::Refused)
        }) {
            self.start(shard, &mut steps);
        }
        steps
    }

    /// The time for draining of this turn is over: others wait for the shard, and the store refuses
    /// whatever the actor still does.
    pub fn on_drain_timeout(&mut self, shard: ShardId, turn: u64) -> Vec<OwnershipStep> {
        let Some(place) = self.actors.get_mut(&shard).filter(|p| p.turn == turn && p.revoked)
        else {
            return Vec::new();
        };
        let running = place.phase == ActorPhase::Running;
        (place.phase, place.revoked) = (ActorPhase::Lingering, false);
        let stop = running.then_some(OwnershipStep::Stop(shard));
        stop.into_iter()
            .chain([OwnershipStep::Vacate(shard), OwnershipStep::Relinquish(shard)])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);

    fn owning(shards: &[ShardId]) -> ShardOwnership {
        let mut ownership = ShardOwnership::default();
        ownership.assign(&shards.iter().copied().collect());
        shards.iter().for_each(|&shard| assert_eq!(ownership.on_started(shard), []));
        ownership
    }

    #[test]
    fn shards_that_do_not_exist_are_nobodys() {
        assert_eq!(
            existing_shards(&[A, B, ShardId(2), ShardId(u32::MAX)].into(), 2),
            [A, B].into()
        );
        assert_eq!(existing_shards(&BTreeSet::new(), 2), BTreeSet::new());
    }

    #[test]
    fn shards_follow_the_assignment() {
        let mut ownership = ShardOwnership::default();
        assert_eq!(ownership.assign(&[A].into()), [OwnershipStep::Start(A)]);
        assert_eq!(ownership.on_started(A), []);
        assert_eq!(ownership.assign(&[A].into()), []);
        let steps = ownership.assign(&[B].into());
        let [
            OwnershipStep::Drain(A),
            OwnershipStep::WatchDrain { shard: A, turn },
            OwnershipStep::Start(B),
        ] = steps[..]
        else {
            panic!("{steps:?}")
        };
        assert_eq!(ownership.unassigned(3), [ShardId(2)].into(), "one drains, one starts");
        assert_eq!(
            ownership.on_failed(A, false),
            [OwnershipStep::Vacate(A), OwnershipStep::Relinquish(A)]
        );
        assert_eq!(ownership.unassigned(3), [A, ShardId(2)].into());
        assert_eq!(ownership.on_drain_timeout(A, turn), [], "it has ended");
        ownership.on_started(B);
        ownership.assign(&BTreeSet::new());
        assert!(!ownership.is_empty());
        ownership.on_failed(B, false);
        assert!(ownership.is_empty());
    }

    #[test]
    fn a_shard_that_is_revoked_while_it_loads_is_drained_when_it_has() {
        let mut ownership = ShardOwnership::default();
        ownership.assign(&[A].into());
        assert!(matches!(
            ownership.assign(&BTreeSet::new())[..],
            [OwnershipStep::WatchDrain { shard: A, .. }]
        ));
        assert_eq!(ownership.on_started(A), [OwnershipStep::Drain(A)]);
        assert_eq!(
            ownership.on_failed(A, true),
            [OwnershipStep::Vacate(A), OwnershipStep::Relinquish(A)]
        );
    }

    #[test]
    fn an_actor_that_does_not_end_holds_nobody_up_and_gets_no_second_one_beside_it() {
        let mut ownership = owning(&[A]);
        let steps = ownership.assign(&BTreeSet::new());
        let [_, OwnershipStep::WatchDrain { turn, .. }] = steps[..] else { panic!("{steps:?}") };
        assert_eq!(
            ownership.on_drain_timeout(A, turn),
            [OwnershipStep::Stop(A), OwnershipStep::Vacate(A), OwnershipStep::Relinquish(A)]
        );
        assert_eq!(ownership.assign(&[A].into()), [], "the former actor may still run");
        assert_eq!(
            ownership.on_failed(A, false),
            [OwnershipStep::Vacate(A), OwnershipStep::Start(A)]
        );
    }

    #[test]
    fn a_shard_that_comes_back_while_it_drains_is_let_go_and_started_anew() {
        let mut ownership = owning(&[A]);
        ownership.assign(&BTreeSet::new());
        assert_eq!(ownership.assign(&[A].into()), []);
        assert_eq!(
            ownership.on_failed(A, false),
            [OwnershipStep::Vacate(A), OwnershipStep::Relinquish(A), OwnershipStep::Start(A)]
        );
    }

    #[test]
    fn a_refused_shard_waits_for_another_assignment_or_its_backoff() {
        let mut ownership = owning(&[A]);
        let steps = ownership.on_failed(A, true);
        let [OwnershipStep::Vacate(A), OwnershipStep::Retry { shard: A, turn, refused: true }] =
            steps[..]
        else {
            panic!("{steps:?}")
        };
        assert_eq!(ownership.assign(&[A].into()), [], "nothing has changed");
        assert_eq!(
            ownership.assign(&[A, B].into()),
            [OwnershipStep::Start(A), OwnershipStep::Start(B)]
        );
        assert_eq!(ownership.retry(A, turn), [], "that backoff is for an earlier refusal");
        let OwnershipStep::Retry { turn, .. } = ownership.on_failed(A, true)[1] else {
            panic!("no retry")
        };
        assert_eq!(ownership.retry(A, turn), [OwnershipStep::Start(A)]);
        ownership.on_failed(A, true);
        assert_eq!(
            ownership.assign(&[B].into()),
            [OwnershipStep::Vacate(A), OwnershipStep::Relinquish(A)]
        );
    }

    #[test]
    fn a_failed_shard_is_not_hurried_by_another_assignment() {
        let mut ownership = owning(&[A]);
        let [OwnershipStep::Retry { turn, refused: false, .. }] = ownership.on_failed(A, false)[..]
        else {
            panic!("no retry")
        };
        assert_eq!(ownership.assign(&[A, B].into()), [OwnershipStep::Start(B)]);
        assert_eq!(ownership.retry(A, turn), [OwnershipStep::Start(A)]);
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
        fn perform(&mut self, steps: Vec<OwnershipStep>) {
            for step in steps {
                match step {
                    OwnershipStep::Start(shard) => {
                        assert!(
                            self.actors.insert(shard, false).is_none(),
                            "two actors of shard {shard}"
                        );
                        self.held.insert(shard);
                    }
                    OwnershipStep::Retry { shard, turn, .. } => {
                        self.timers.push((shard, turn, false))
                    }
                    OwnershipStep::WatchDrain { shard, turn } => {
                        self.timers.push((shard, turn, true))
                    }
                    OwnershipStep::Drain(shard) | OwnershipStep::Stop(shard) => {
                        assert!(self.actors.contains_key(&shard), "nobody to stop")
                    }
                    OwnershipStep::Vacate(_) => {}
                    OwnershipStep::Relinquish(shard) => {
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
                (ShardOwnership::default(), Model::default(), BTreeSet::new());
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
                            ownership.on_failed(shard, below(2) == 0)
                        } else {
                            model.actors.insert(shard, true);
                            ownership.on_started(shard)
                        }
                    }
                    3 if !model.timers.is_empty() => {
                        let (shard, turn, drain) =
                            model.timers.swap_remove(below(model.timers.len()));
                        if drain {
                            ownership.on_drain_timeout(shard, turn)
                        } else {
                            ownership.retry(shard, turn)
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
                        ownership.on_drain_timeout(shard, turn)
                    } else {
                        ownership.retry(shard, turn)
                    });
                }
                let all: Vec<(ShardId, bool)> =
                    model.actors.iter().map(|(&s, &r)| (s, r)).collect();
                for (shard, running) in all {
                    let leaving = ownership.actors[&shard].revoked
                        || ownership.actors[&shard].phase == ActorPhase::Lingering;
                    if running && leaving {
                        model.actors.remove(&shard);
                        model.perform(ownership.on_failed(shard, false));
                    } else if !running {
                        model.actors.insert(shard, true);
                        model.perform(ownership.on_started(shard));
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
