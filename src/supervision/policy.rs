//! The restart decision, as a pure function: exponential backoff with jitter under an intensity
//! limit.

use crate::model::window::Millis;

/// When a child is started again.
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// Failures within `window_ms` that are answered by a restart; one more is over the intensity.
    pub max_restarts: u32,
    /// The window of the intensity.
    pub window_ms: i64,
    /// First delay.
    pub backoff_min_ms: i64,
    /// Longest delay.
    pub backoff_max_ms: i64,
    /// What happens over the intensity: hand the failure upwards, or keep trying at the longest
    /// delay, because a child that owns a shard must not take its neighbours along.
    pub escalates: bool,
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartDecision {
    /// Start the child again after this delay.
    RestartAfter(i64),
    /// Fail in turn.
    Escalate,
}

/// The failures of one child.
#[derive(Debug, Clone, Default)]
pub struct FailureHistory {
    failures: Vec<Millis>,
}

impl FailureHistory {
    /// Notes a failure at `now` and decides. `jitter` is a random number; it moves the delay by up
    /// to a quarter.
    pub fn record_failure(
        &mut self,
        policy: &RestartPolicy,
        now: Millis,
        jitter: u64,
    ) -> RestartDecision {
        self.failures.retain(|&at| at > now - policy.window_ms && at <= now);
        self.failures.push(now);
        let failures = self.failures.len() as u32;
        if failures > policy.max_restarts {
            if policy.escalates {
                return RestartDecision::Escalate;
            }
            self.failures.remove(0);
        }
        let doublings = (failures - 1).min(30);
        let delay =
            policy.backoff_min_ms.saturating_mul(1i64 << doublings).min(policy.backoff_max_ms);
        let spread = (delay / 4).max(1) as u64;
        RestartDecision::RestartAfter(delay + (jitter % spread) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RestartPolicy = RestartPolicy {
        max_restarts: 3,
        window_ms: 1_000,
        backoff_min_ms: 100,
        backoff_max_ms: 350,
        escalates: true,
    };

    #[test]
    fn backs_off_then_escalates() {
        let mut history = FailureHistory::default();
        assert_eq!(history.record_failure(&POLICY, 0, 0), RestartDecision::RestartAfter(100));
        assert_eq!(history.record_failure(&POLICY, 10, 0), RestartDecision::RestartAfter(200));
        assert_eq!(history.record_failure(&POLICY, 20, 0), RestartDecision::RestartAfter(350));
        assert_eq!(history.record_failure(&POLICY, 30, 0), RestartDecision::Escalate);
    }

    #[test]
    fn old_failures_are_forgotten() {
        let mut history = FailureHistory::default();
        for at in [0, 10, 20] {
            history.record_failure(&POLICY, at, 0);
        }
        assert_eq!(history.record_failure(&POLICY, 5_000, 0), RestartDecision::RestartAfter(100));
    }

    #[test]
    fn a_shard_is_tried_for_ever_at_the_longest_delay() {
        let policy = RestartPolicy { escalates: false, ..POLICY };
        let mut history = FailureHistory::default();
        for _ in 0..50 {
            assert!(matches!(
                history.record_failure(&policy, 0, 7),
                RestartDecision::RestartAfter(_)
            ));
        }
        assert_eq!(history.record_failure(&policy, 0, 0), RestartDecision::RestartAfter(350));
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let RestartDecision::RestartAfter(delay) =
            FailureHistory::default().record_failure(&POLICY, 0, u64::MAX)
        else {
            panic!("restarts")
        };
        assert!((100..125).contains(&delay));
    }
}
