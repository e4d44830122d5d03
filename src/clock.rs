//! The only module that reads the machine's clocks. All other code gets the time as an argument, so
//! that a seed reproduces a failure.
//!
//! The wall clock serves what users see and query. Timeouts and intervals use [`Clock::uptime`],
//! because wall clocks jump.
#![allow(clippy::disallowed_methods)] // the one module that may call them

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::clock::ClockReading;

/// Milliseconds since the Unix epoch in UTC, negative before 1970.
pub type Millis = i64;

/// The clocks of a machine. Tests replace them with a [`ManualClock`].
pub trait Clock: Send + Sync + 'static {
    /// The wall clock in milliseconds since the Unix epoch. It may jump in both directions.
    fn now(&self) -> Millis;
    /// The boot clock: milliseconds since the machine booted, including time suspended. It never
    /// goes backwards within a process.
    fn uptime(&self) -> Millis;
    /// Identifies the boot that [`Clock::uptime`] counts from; 0 if unknown.
    fn boot_id(&self) -> u64;
    /// Reads all three at about the same moment.
    fn reading(&self) -> ClockReading {
        ClockReading { wall: self.now(), uptime: self.uptime(), boot: self.boot_id() }
    }
}

/// The clocks of the operating system.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        // A wall clock before 1970 reads as 0. Only the accepted range of timestamps depends on it.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
    }

    fn uptime(&self) -> Millis {
        let shown = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        shown.tv_sec.saturating_mul(1_000).saturating_add(shown.tv_nsec / 1_000_000)
    }

    fn boot_id(&self) -> u64 {
        static BOOT: OnceLock<u64> = OnceLock::new();
        // Without a boot id, the log cannot tell whether its last uptime is comparable and starts
        // from the wall clock, as it does after a reboot.
        let read = || {
            std::fs::read("/proc/sys/kernel/random/boot_id")
                .map_or(0, |id| xxhash_rust::xxh3::xxh3_64(&id))
        };
        *BOOT.get_or_init(read)
    }
}

/// Clocks that move only when a test moves them.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall: AtomicI64,
    uptime: AtomicI64,
}

impl ManualClock {
    /// Starts with the wall clock at `now`.
    pub fn at(now: Millis) -> Arc<Self> {
        Arc::new(Self { wall: AtomicI64::new(now), uptime: AtomicI64::new(1) })
    }
    /// Sets the wall clock. Moving it forward also advances the boot clock, as if time had passed;
    /// moving it back is a jump.
    pub fn set(&self, now: Millis) {
        let before = self.wall.swap(now, Ordering::SeqCst);
        self.uptime.fetch_add(now.saturating_sub(before).max(0), Ordering::SeqCst);
    }
    /// Advances both clocks by `passed`.
    pub fn advance(&self, passed: Millis) {
        self.wall.fetch_add(passed, Ordering::SeqCst);
        self.uptime.fetch_add(passed, Ordering::SeqCst);
    }
    /// Moves the wall clock alone, as a step of NTP or an administrator does.
    pub fn jump(&self, by: Millis) {
        self.wall.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        self.wall.load(Ordering::SeqCst)
    }

    fn uptime(&self) -> Millis {
        self.uptime.load(Ordering::SeqCst)
    }

    fn boot_id(&self) -> u64 {
        1
    }
}

/// Measures elapsed time on the monotonic clock, unaffected by jumps of the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts measuring at this call.
    pub fn start() -> Self {
        Self(Instant::now())
    }
    /// The time since `start` was called.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_runs_and_names_its_start() {
        let clock = SystemClock;
        let (before, boot) = (clock.uptime(), clock.boot_id());
        std::thread::sleep(Duration::from_millis(5));
        assert!(clock.uptime() > before && before > 0);
        assert!(boot != 0 && boot == clock.boot_id());
    }
}
