//! Throttles messages and actions about conditions that may last for days.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Stopwatch;

/// Lets the first occurrence of each key pass and then one per interval, with the
/// number of suppressed ones.
#[derive(Debug)]
pub(super) struct KeyedThrottle<K> {
    interval: Duration,
    seen: Mutex<HashMap<K, (Stopwatch, u64)>>,
}

impl<K: Hash + Eq> KeyedThrottle<K> {
    /// Upper limit of keys. Beyond it, all are forgotten and pass again.
    const MAX_KEYS: usize = 4_096;

    /// Lets each key pass once per `interval`.
    pub(super) fn every(interval: Duration) -> Self {
        Self { interval, seen: Mutex::default() }
    }

    /// Whether `key` may pass now. If so, the number of occurrences suppressed
    /// since it last passed.
    pub(super) fn due(&self, key: K) -> Option<u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, times)) = seen.get_mut(&key) {
            if at.elapsed() < self.interval {
                *times += 1;
                return None;
            }
            *at = Stopwatch::start();
            return Some(std::mem::take(times));
        }
        if seen.len() >= Self::MAX_KEYS {
            seen.clear();
        }
        seen.insert(key, (Stopwatch::start(), 0));
        Some(0)
    }
}

/// Lets something happen at most once per interval.
#[derive(Default)]
pub(super) struct IntervalGate(Option<Stopwatch>);

impl IntervalGate {
    pub(super) fn due(&mut self, interval: Duration) -> bool {
        let due = self.0.is_none_or(|watch| watch.elapsed() >= interval);
        if due {
            self.0 = Some(Stopwatch::start());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_said_once_in_an_interval_with_its_number() {
        let hourly = KeyedThrottle::every(Duration::from_secs(3_600));
        assert_eq!([1, 1, 2, 1].map(|key| hourly.due(key)), [Some(0), None, Some(0), None]);
        let always = KeyedThrottle::every(Duration::ZERO);
        assert_eq!([1, 1].map(|key| always.due(key)), [Some(0), Some(0)]);
        // How often it can be asked within the interval is a matter of the machine.
        let interval = Duration::from_millis(20);
        let (soon, since, mut held_back) = (KeyedThrottle::every(interval), Stopwatch::start(), 0);
        assert_eq!(soon.due("x"), Some(0));
        let said = loop {
            match soon.due("x") {
                None => held_back += 1,
                Some(number) => break number,
            }
            std::thread::yield_now();
        };
        assert_eq!(said, held_back);
        assert!(since.elapsed() >= interval, "too soon");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let hourly = KeyedThrottle::every(Duration::from_secs(3_600));
        assert!((0..10_000).all(|key| hourly.due(key) == Some(0)));
        assert!(
            hourly.seen.lock().expect("nobody panicked").len() <= KeyedThrottle::<i32>::MAX_KEYS
        );
    }
}
