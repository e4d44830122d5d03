//! Which shards are started, drained and relinquished: a pure function of the assignment and of
//! what happens to the actors.
//!
//! Invariants: a shard has at most one actor on a node. A shard that leaves the assignment is
//! relinquished once, when its actor has ended or its drain has timed out. A shard that comes back
//! in the meantime is started only after its former actor has ended.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::offset::ShardId;

/// The assigned shards that exist. A log may assign more partitions than there are shards; nobody
/// writes or reads those.
pub fn existing_shards(assigned: &BTreeSet<ShardId>, shard_count: u32) -> BTreeSet<ShardId> {
    assigned.iter().filter(|shard| shard.0 < shard_count).copied().collect()
}

/// State of a shard's actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ActorPhase {
    Starting,
    Running,
    /// Failed; its back-off is running.
    Waiting,
    /// Another owner has claimed the shard: waits for another assignment or for a longer back-off.
    Refused,
    /// The shard was relinquished, but the actor has not ended in time.
    Lingering,
}

#[derive(Debug, Clone, Copy)]
struct ActorState {
    phase: ActorPhase,
    /// Whether the shard has left the assignment.
    revoked: bool,
    /// Number of the last transition, so that a timer of an earlier phase
    /// is recognised as outdated.
    turn: u64,
}

/// What the supervisor has to do next, in order. `turn` goes back with the event
/// that ends the wait.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnershipStep {
    Start(ShardId),
    /// Restart the actor after its back-off: call [`ShardOwnership::retry`] with this turn.
    Retry {
        shard: ShardId,
        turn: u64,
        /// Whether another owner has the shard, which calls for a longer back-off.
        refused: bool,
    },
    /// Let the actor flush what is open, then stop it.
    Drain(ShardId),
    /// When the drain has timed out, call [`ShardOwnership::on_drain_timeout`] with this turn.
    WatchDrain {
        shard: ShardId,
        turn: u64,
    },
    /// Stop the actor at once; its shard has been relinquished.
    Stop(ShardId),
    /// Clear the shard's entry in the table: no actor of the shard counts here any more.
    Vacate(ShardId),
    /// Tell the log that another node may have the shard.
    Relinquish(ShardId),
}

/// The shards of a node and their actors.
#[derive(Debug, Default)]
pub struct ShardOwnership {
    assigned: BTreeSet<ShardId>,
    actors: BTreeMap<ShardId, ActorState>,
    turn: u64,
}

impl ShardOwnership {
    /// Whether no shard is owned, starting, draining or lingering here.
    pub fn is_empty(&self) -> bool {
        self.actors.is_empty()
    }

    /// Replaces the assignment and returns the steps that follow.
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
                // The consumer group has met since the refusal. Whoever had claimed the shard knows
                // by now that it is assigned to this node.
                Some(actor) if actor.phase == ActorPhase::Refused && changed => {
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
        let Some(actor) = self.actors.get(&shard).filter(|actor| !actor.revoked).copied() else {
            return;
        };
        match actor.phase {
            // The shard came back and leaves again while its former actor is still ending. No actor
            // was started for it in between, so there is nothing to wait for.
            ActorPhase::Lingering if was_assigned => steps.push(OwnershipStep::Relinquish(shard)),
            ActorPhase::Lingering => {}
            ActorPhase::Waiting | ActorPhase::Refused => self.finish(shard, steps),
            ActorPhase::Starting | ActorPhase::Running => {
                let turn = self.enter(shard, actor.phase, true);
                // A starting actor has nothing to flush yet; it is drained when it reports
                // that it has loaded.
                if actor.phase == ActorPhase::Running {
                    steps.push(OwnershipStep::Drain(shard));
                }
                steps.push(OwnershipStep::WatchDrain { shard, turn });
            }
        }
    }

    /// The shards below `shards` that are not assigned to this node and not active on it.
    pub fn unassigned(&self, shards: u32) -> BTreeSet<ShardId> {
        let let_go = |shard: &ShardId| {
            self.actors.get(shard).is_none_or(|actor| actor.phase == ActorPhase::Lingering)
        };
        (0..shards)
            .map(ShardId)
            .filter(|shard| !self.assigned.contains(shard) && let_go(shard))
            .collect()
    }

    /// The actor has loaded its shard.
    pub fn on_started(&mut self, shard: ShardId) -> Vec<OwnershipStep> {
        let Some(actor) = self.actors.get_mut(&shard) else {
            return vec![OwnershipStep::Stop(shard)];
        };
        match actor.phase {
            // The shard was relinquished while the actor was loading.
            ActorPhase::Lingering => vec![OwnershipStep::Stop(shard)],
            _ => {
                actor.phase = ActorPhase::Running;
                if actor.revoked { vec![OwnershipStep::Drain(shard)] } else { Vec::new() }
            }
        }
    }

    /// The actor has ended, for whatever reason, or did not start.
    pub fn on_failed(&mut self, shard: ShardId, refused: bool) -> Vec<OwnershipStep> {
        let mut steps = Vec::new();
        match self.actors.get(&shard).copied() {
            None => {}
            Some(ActorState { phase: ActorPhase::Lingering, .. }) => {
                self.actors.remove(&shard);
                // The entry was cleared at the time-out, but the lingering actor may have
                // written to it since.
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

    /// Ends a revoked shard whose actor is gone.
    fn finish(&mut self, shard: ShardId, steps: &mut Vec<OwnershipStep>) {
        self.actors.remove(&shard);
        steps.extend([OwnershipStep::Vacate(shard), OwnershipStep::Relinquish(shard)]);
        // The shard came back while its actor was draining.
        if self.assigned.contains(&shard) {
            self.start(shard, steps);
        }
    }

    /// The back-off of this turn is over.
    pub fn retry(&mut self, shard: ShardId, turn: u64) -> Vec<OwnershipStep> {
        let mut steps = Vec::new();
        if self.actors.get(&shard).is_some_and(|p| {
            p.turn == turn && matches!(p.phase, ActorPhase::Waiting | ActorPhase::Refused)
        }) {
            self.start(shard, &mut steps);
        }
        steps
    }

    /// The drain of this turn has timed out. Another node waits for the shard, so it is
    /// relinquished; the store refuses whatever the old actor still tries to commit.
    pub fn on_drain_timeout(&mut self, shard: ShardId, turn: u64) -> Vec<OwnershipStep> {
        let Some(actor) = self.actors.get_mut(&shard).filter(|p| p.turn == turn && p.revoked)
        else {
            return Vec::new();
        };
        let running = actor.phase == ActorPhase::Running;
        (actor.phase, actor.revoked) = (ActorPhase::Lingering, false);
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

    /// What a node's actors do, as driven by the steps.
    #[derive(Default)]
    struct Model {
        /// Shards with an actor: starting (false) or running (true).
        actors: BTreeMap<ShardId, bool>,
        timers: Vec<(ShardId, u64, bool)>,
        /// Shards assigned or started, and not relinquished since.
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
                        // A shard that came back has to be relinquished again when it leaves again:
                        // each revocation waits for its own call.
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
            // No more failures: revoked shards end, waiting ones start.
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
