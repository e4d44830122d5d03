//! The restart decision as a pure function: exponential back-off with jitter
//! under an intensity limit.

use crate::model::window::Millis;

/// When a child is restarted.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// Failures within `window_ms` that lead to a restart; one more exceeds the intensity.
    pub max_restarts: u32,
    pub window_ms: i64,
    pub backoff_min_ms: i64,
    pub backoff_max_ms: i64,
    /// What happens above the intensity: escalate to the parent, or keep retrying at the longest
    /// delay, because a child that owns a shard must not take its neighbours down.
    pub escalates: bool,
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartDecision {
    /// Restart the child after this delay in milliseconds.
    RestartAfter(i64),
    /// Fail in turn, so that the parent supervisor decides.
    Escalate,
}

/// Recent failures of one child.
#[derive(Debug, Clone, Default)]
pub struct FailureHistory {
    failures: Vec<Millis>,
}

impl FailureHistory {
    /// Records a failure at `now` and decides. `jitter` is a random number; it adds up to a
    /// quarter to the delay.
    pub fn record_failure(
        &mut self,
        policy: &RestartPolicy,
        now: Millis,
        jitter: u64,
    ) -> RestartDecision {
        // Also drops failures from the future, so that a clock that went back does not
        // count them for ever.
        self.failures.retain(|&at| at > now - policy.window_ms && at <= now);
        self.failures.push(now);
        let failures = self.failures.len() as u32;
        if failures > policy.max_restarts {
            if policy.escalates {
                return RestartDecision::Escalate;
            }
            // Keeps the history at its limit: without escalation it would grow with every failure.
            self.failures.remove(0);
        }
        // Keeps the shift in range; the longest delay is reached long before.
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
