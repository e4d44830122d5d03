//! A circuit breaker. Pure: time is an argument, in milliseconds since an arbitrary moment.
//!
//! It opens after a few failures in a row. While it is open, one caller per interval may probe the
//! server, and every failed probe doubles the interval.

/// Consecutive failures after which it opens.
const FAILURES: u32 = 3;
/// Interval between probes: the first, and the upper limit.
const FIRST_MS: u64 = 1_000;
const LONGEST_MS: u64 = 30_000;

/// A circuit breaker, closed at first.
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
    /// Whether the caller may send a request now. While it is open, one caller per interval may.
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

    /// Whether the last requests succeeded, so that nothing is held back.
    pub fn is_closed(&self) -> bool {
        self.open.is_none()
    }

    /// Records an answer. Returns true if that closed the breaker.
    pub fn on_success(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }

    /// Records a failure. Returns true if that opened the breaker.
    pub fn on_failure(&mut self, now: u64) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opened = self.open.is_none() && self.failures >= FAILURES;
        // While open, a failure before `until` is that of a probe (`allow_request` has moved
        // `until`) or of a request sent before the breaker opened. After `until` the next caller
        // probes anyway.
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
