//! Throttles repeated log lines to one per minute: while a server is down, 64 shards would report
//! the same twice a second.
//!
//! The first occurrence is logged at once. Lines that differ only in numbers (ports, durations,
//! offsets, shards) count as the same.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Stopwatch;

/// Minimum interval between two lines of the same kind.
const EVERY: Duration = Duration::from_secs(60);
/// Kinds that are remembered. A new one replaces the one that was logged longest ago.
const MAX_KINDS: usize = 32;

/// Remembers what was logged. Meant for a `static` next to the line that repeats.
#[derive(Debug)]
pub struct RepeatedLog {
    started: LazyLock<Stopwatch>,
    logged: Mutex<LoggedKinds>,
}

impl Default for RepeatedLog {
    fn default() -> Self {
        Self::new()
    }
}

impl RepeatedLog {
    /// A throttle that has seen nothing.
    pub const fn new() -> Self {
        Self {
            started: LazyLock::new(Stopwatch::start),
            logged: Mutex::new(LoggedKinds(Vec::new())),
        }
    }

    /// Whether the line `what` is due now. If so, the number of lines suppressed
    /// since the last one.
    pub fn due(&self, what: &str) -> Option<u64> {
        let now = self.started.elapsed();
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).due(what, now)
    }
}

/// Each kind with the time it was last logged and the number of lines suppressed since then.
#[derive(Debug)]
struct LoggedKinds(Vec<(String, Duration, u64)>);

impl LoggedKinds {
    // Without the numbers, so that lines about different shards are one kind.
    fn due(&mut self, what: &str, now: Duration) -> Option<u64> {
        let kind: String = what.chars().filter(|c| !c.is_ascii_digit()).collect();
        if let Some((_, at, silent)) = self.0.iter_mut().find(|(known, ..)| *known == kind) {
            if now.saturating_sub(*at) < EVERY {
                *silent += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(silent));
        }
        if self.0.len() >= MAX_KINDS
            && let Some(oldest) = (0..self.0.len()).min_by_key(|at| self.0[*at].1)
        {
            self.0.swap_remove(oldest);
        }
        self.0.push((kind, now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_told_once_a_minute_and_counted() {
        let mut told = LoggedKinds(Vec::new());
        let at = Duration::from_secs;
        assert_eq!(told.due("port 5432 is closed", at(5)), Some(0));
        assert_eq!(told.due("port 5433 is closed", at(6)), None, "another number");
        assert_eq!(told.due("no password", at(6)), Some(0), "another thing");
        assert_eq!(told.due("port 1 is closed", at(64)), None);
        assert_eq!(told.due("port 5432 is closed", at(65)), Some(2));
        assert_eq!(told.due("port 5432 is closed", at(66)), None);
        assert_eq!(told.due("no password", at(500)), Some(0));
    }

    #[test]
    fn ever_new_things_need_no_memory() {
        let mut told = LoggedKinds(Vec::new());
        for n in 0..1000 {
            let what: String = std::iter::repeat_n('x', n).collect();
            assert_eq!(told.due(&what, Duration::from_secs(n as u64)), Some(0));
        }
        assert_eq!(told.0.len(), MAX_KINDS);
    }

    #[test]
    fn the_first_is_told_at_once() {
        static LOG: RepeatedLog = RepeatedLog::new();
        assert_eq!((LOG.due("it fell"), LOG.due("it fell")), (Some(0), None));
    }
}
