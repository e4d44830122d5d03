//! A configured address, and when it is dialled again.

use std::time::Duration;

use ractor_cluster::NodeId;

use crate::clock::Stopwatch;

/// Least and longest time until a peer is dialled again.
const REDIAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Failures in a row that are no coincidence.
const SPURIOUS: u32 = 4;

/// Where a dial stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Connecting(Option<String>),
    Open(NodeId),
    /// It leads to this node itself.
    Myself,
}

/// One configured address.
pub(super) struct Dial {
    pub(super) address: String,
    pub(super) phase: Phase,
    pub(super) since: Stopwatch,
    pub(super) delay: Duration,
    pub(super) failures: u32,
    /// Whom it has led to, with the random part of that life.
    pub(super) leads_to: Option<String>,
    /// What was logged of it last, so that it is logged once.
    pub(super) said: Option<String>,
}

impl Dial {
    pub(super) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            phase: Phase::Waiting,
            since: Stopwatch::start(),
            delay: jittered(REDIAL.0),
            failures: 0,
            leads_to: None,
            said: None,
        }
    }

    pub(super) fn wait(&mut self) {
        let delay = REDIAL.0.saturating_mul(1 << self.failures.min(10)).min(REDIAL.1);
        (self.phase, self.since, self.delay) =
            (Phase::Waiting, Stopwatch::start(), jittered(delay));
    }

    /// The other side has closed the connection. Once or twice that is two nodes that dial each
    /// other at the same moment, or a node that starts: one session is kept of both.
    pub(super) fn closed(&mut self, why: &str) {
        if self.failures + 1 < SPURIOUS {
            self.failures += 1;
            self.wait();
        } else {
            self.failed(why);
        }
    }

    pub(super) fn failed(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.said.as_deref() != Some(why) {
            tracing::warn!(address = %self.address, why, "another node cannot be reached, it is dialled again and again");
            self.said = Some(why.to_owned());
        }
        self.wait();
    }
}

fn random() -> u64 {
    // Zero means no jitter, if the system has none to give.
    getrandom::u64().unwrap_or(0)
}

/// From half to one and a half of the time.
fn jittered(time: Duration) -> Duration {
    time / 2 + time.mul_f64((random() % 1_000) as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_closed_once_or_twice_is_no_other_cookie() {
        let mut dial = Dial::new("b:1");
        for _ in 1..SPURIOUS {
            dial.closed("another cookie");
            assert_eq!((dial.said.as_deref(), &dial.phase), (None, &Phase::Waiting));
        }
        dial.closed("another cookie");
        assert_eq!(dial.said.as_deref(), Some("another cookie"));
        let mut refused = Dial::new("b:1");
        refused.failed("connection refused");
        assert_eq!(
            refused.said.as_deref(),
            Some("connection refused"),
            "what is clear is said at once"
        );
    }
}
