//! When to stop asking a server that does not answer. Pure: time is an argument, in milliseconds
//! since any moment.
//!
//! After a few failures in a row nobody asks for a while, then one caller tries; each failed trial
//! doubles the while.

/// Failures in a row that open it.
const FAILURES: u32 = 3;
/// The first while, and the longest.
const FIRST_MS: u64 = 1_000;
const LONGEST_MS: u64 = 30_000;

/// Its state.
#[derive(Debug, Default)]
pub struct CircuitBreaker {
    failures: u32,
    open: Option<OpenState>,
}

#[derive(Debug, Clone, Copy)]
struct OpenState {
    until: u64,
    length: u64,
}

impl CircuitBreaker {
    /// Whether to ask now. While it is open, one caller a while may, to try.
    pub fn allow_request(&mut self, now: u64) -> bool {
        match &mut self.open {
            None => true,
            Some(open) if now < open.until => false,
            Some(open) => {
                open.until = now.saturating_add(open.length);
                true
            }
        }
    }

    /// Whether it is closed: all is well.
    pub fn is_closed(&self) -> bool {
        self.open.is_none()
    }

    /// An answer came. Whether that closed it.
    pub fn on_success(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }

    /// No answer came. Whether that opened it.
    pub fn on_failure(&mut self, now: u64) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opened = self.open.is_none() && self.failures >= FAILURES;
        let length = self.open.map_or(FIRST_MS, |open| (open.length * 2).min(LONGEST_MS));
        if opened || self.open.is_some_and(|open| now < open.until) {
            self.open = Some(OpenState { until: now.saturating_add(length), length });
        }
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_a_few_failures_and_lets_one_caller_try() {
        let mut breaker = CircuitBreaker::default();
        for _ in 0..2 {
            assert!(!breaker.on_failure(0) && breaker.allow_request(0));
        }
        assert!(breaker.on_failure(0), "the third opens it");
        assert!(!breaker.is_closed() && !breaker.allow_request(999));
        assert!(breaker.allow_request(1_000), "one tries");
        assert!(!breaker.allow_request(1_000), "only one");
        assert!(!breaker.on_failure(1_010));
        assert!(!breaker.allow_request(3_009) && breaker.allow_request(3_010), "twice as long");
        assert!(breaker.on_success() && breaker.is_closed());
        assert!(
            !breaker.on_failure(3_020) && breaker.allow_request(3_020),
            "it counts from the beginning"
        );
    }

    #[test]
    fn the_while_has_a_longest() {
        let (mut breaker, mut now) = (CircuitBreaker::default(), 0);
        for _ in 0..3 {
            breaker.on_failure(now);
        }
        for _ in 0..20 {
            now += LONGEST_MS;
            assert!(breaker.allow_request(now));
            breaker.on_failure(now);
        }
        assert!(
            !breaker.allow_request(now + LONGEST_MS - 1) && breaker.allow_request(now + LONGEST_MS)
        );
    }

    #[test]
    fn failures_with_successes_between_them_do_not_open_it() {
        let mut breaker = CircuitBreaker::default();
        for _ in 0..10 {
            assert!(!breaker.on_failure(5) && !breaker.on_failure(5));
            breaker.on_success();
        }
        assert!(breaker.allow_request(5));
    }
}
