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
pub struct Breaker {
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    until: u64,
    length: u64,
}

impl Breaker {
    /// Whether to ask now. While it is open, one caller a while may, to try.
    pub fn allows(&mut self, now: u64) -> bool {
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
    pub fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }

    /// No answer came. Whether that opened it.
    pub fn failed(&mut self, now: u64) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opened = self.open.is_none() && self.failures >= FAILURES;
        let length = self.open.map_or(FIRST_MS, |open| (open.length * 2).min(LONGEST_MS));
        if opened || self.open.is_some_and(|open| now < open.until) {
            self.open = Some(Open { until: now.saturating_add(length), length });
        }
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_a_few_failures_and_lets_one_caller_try() {
        let mut breaker = Breaker::default();
        for _ in 0..2 {
            assert!(!breaker.failed(0) && breaker.allows(0));
        }
        assert!(breaker.failed(0), "the third opens it");
        assert!(!breaker.is_closed() && !breaker.allows(999));
        assert!(breaker.allows(1_000), "one tries");
        assert!(!breaker.allows(1_000), "only one");
        assert!(!breaker.failed(1_010));
        assert!(!breaker.allows(3_009) && breaker.allows(3_010), "twice as long");
        assert!(breaker.succeeded() && breaker.is_closed());
        assert!(!breaker.failed(3_020) && breaker.allows(3_020), "it counts from the beginning");
    }

    #[test]
    fn the_while_has_a_longest() {
        let (mut breaker, mut now) = (Breaker::default(), 0);
        for _ in 0..3 {
            breaker.failed(now);
        }
        for _ in 0..20 {
            now += LONGEST_MS;
            assert!(breaker.allows(now));
            breaker.failed(now);
        }
        assert!(!breaker.allows(now + LONGEST_MS - 1) && breaker.allows(now + LONGEST_MS));
    }

    #[test]
    fn failures_with_successes_between_them_do_not_open_it() {
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            assert!(!breaker.failed(5) && !breaker.failed(5));
            breaker.succeeded();
        }
        assert!(breaker.allows(5));
    }
}
