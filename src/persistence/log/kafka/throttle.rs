//! What stays as it is for days is said and done once in a while, not at every look.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Stopwatch;

/// What repeats is said once in a while: the first time, and then once in each interval with the
/// number of times that it was not said.
#[derive(Debug)]
pub(super) struct KeyedThrottle<K> {
    interval: Duration,
    seen: Mutex<HashMap<K, (Stopwatch, u64)>>,
}

impl<K: Hash + Eq> KeyedThrottle<K> {
    /// Things that are remembered; beyond it, all are forgotten, and said again.
    const MAX_KEYS: usize = 4_096;

    /// Once in this interval.
    pub(super) fn every(interval: Duration) -> Self {
        Self { interval, seen: Mutex::default() }
    }

    /// Whether it is to be said now, and if so, how often it was not since it was said last.
    pub(super) fn due(&self, what: K) -> Option<u64> {
        let mut said = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, times)) = said.get_mut(&what) {
            if at.elapsed() < self.interval {
                *times += 1;
                return None;
            }
            *at = Stopwatch::start();
            return Some(std::mem::take(times));
        }
        if said.len() >= Self::MAX_KEYS {
            said.clear();
        }
        said.insert(what, (Stopwatch::start(), 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_said_once_in_an_interval_with_its_number() {
        let hourly = KeyedThrottle::every(Duration::from_secs(3_600));
        assert_eq!([1, 1, 2, 1].map(|what| hourly.due(what)), [Some(0), None, Some(0), None]);
        let always = KeyedThrottle::every(Duration::ZERO);
        assert_eq!([1, 1].map(|what| always.due(what)), [Some(0), Some(0)]);
        let soon = KeyedThrottle::every(Duration::from_millis(20));
        assert_eq!([(); 3].map(|()| soon.due("x")), [Some(0), None, None]);
        let since = Stopwatch::start();
        while since.elapsed() < Duration::from_millis(30) {
            std::thread::yield_now();
        }
        assert_eq!(soon.due("x"), Some(2));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let hourly = KeyedThrottle::every(Duration::from_secs(3_600));
        assert!((0..10_000).all(|what| hourly.due(what) == Some(0)));
        assert!(
            hourly.seen.lock().expect("nobody panicked").len() <= KeyedThrottle::<i32>::MAX_KEYS
        );
    }
}
