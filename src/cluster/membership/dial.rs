//! A configured address and its redial schedule.

use std::time::Duration;

use ractor_cluster::NodeId;

use crate::clock::Stopwatch;

/// Shortest and longest redial delay.
const REDIAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// This many failures in a row are no coincidence.
const SPURIOUS: u32 = 4;

/// The state of a dial.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DialPhase {
    Waiting,
    Connecting(Option<String>),
    Open(NodeId),
    /// The address is this node's own.
    ThisNode,
}

/// A configured address that is dialled until it leads to a session.
pub(super) struct PeerDial {
    pub(super) address: String,
    pub(super) phase: DialPhase,
    pub(super) since: Stopwatch,
    pub(super) delay: Duration,
    pub(super) failures: u32,
    /// The node that the address led to last, including the random part of its name.
    pub(super) peer_name: Option<String>,
    /// The last message logged about it, to log each message once.
    pub(super) last_logged: Option<String>,
}

impl PeerDial {
    pub(super) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            phase: DialPhase::Waiting,
            since: Stopwatch::start(),
            delay: jittered(REDIAL.0),
            failures: 0,
            peer_name: None,
            last_logged: None,
        }
    }

    pub(super) fn schedule_redial(&mut self) {
        let delay = REDIAL.0.saturating_mul(1 << self.failures.min(10)).min(REDIAL.1);
        (self.phase, self.since, self.delay) =
            (DialPhase::Waiting, Stopwatch::start(), jittered(delay));
    }

    /// Records that the other side closed the connection. Once or twice that is normal: two nodes
    /// dialled each other at the same moment and one session was dropped, or the node is starting.
    pub(super) fn record_close(&mut self, why: &str) {
        if self.failures + 1 < SPURIOUS {
            self.failures += 1;
            self.schedule_redial();
        } else {
            self.record_failure(why);
        }
    }

    pub(super) fn record_failure(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.last_logged.as_deref() != Some(why) {
            tracing::warn!(
                address = %self.address,
                why,
                "another node cannot be reached, it is dialled again and again"
            );
            self.last_logged = Some(why.to_owned());
        }
        self.schedule_redial();
    }
}

fn random() -> u64 {
    // Zero means no jitter, if the system has no randomness to give.
    getrandom::u64().unwrap_or(0)
}

/// A random duration between half of the time and one and a half.
fn jittered(time: Duration) -> Duration {
    time / 2 + time.mul_f64((random() % 1_000) as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_closed_once_or_twice_is_no_other_cookie() {
        let mut dial = PeerDial::new("b:1");
        for _ in 1..SPURIOUS {
            dial.record_close("another cookie");
            assert_eq!((dial.last_logged.as_deref(), &dial.phase), (None, &DialPhase::Waiting));
        }
        dial.record_close("another cookie");
        assert_eq!(dial.last_logged.as_deref(), Some("another cookie"));
        let mut refused = PeerDial::new("b:1");
        refused.record_failure("connection refused");
        assert_eq!(
            refused.last_logged.as_deref(),
            Some("connection refused"),
            "what is clear is said at once"
        );
    }
}
