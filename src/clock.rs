//! The only place where the machine's clocks are read. Everything else is handed a time.
//!
//! The wall clock is for what people ask about; whatever waits measures [`Clock::uptime`], because
//! wall clocks leap.
#![allow(clippy::disallowed_methods)] // this is the sanctioned place

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::clock::ClockReading;

/// Milliseconds since the Unix epoch, UTC. Negative before 1970.
pub type Millis = i64;

/// The clocks of a machine, so that tests can own them.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock: now, in milliseconds since the Unix epoch. It may leap, forward and back.
    fn now(&self) -> Millis;
    /// The boot clock: milliseconds since the machine began, suspension included. It never goes
    /// back within a process.
    fn uptime(&self) -> Millis;
    /// Which start of the machine the boot clock counts from; 0 if that is not known.
    fn boot_id(&self) -> u64;
    /// What all of them show.
    fn reading(&self) -> ClockReading {
        ClockReading { wall: self.now(), uptime: self.uptime(), boot: self.boot_id() }
    }
}

/// The machine's clocks.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        // A clock set before 1970 reads as zero: nothing depends on it but the accepted range of
        // timestamps.
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
        // Without it a start of the log takes the wall clock, as after a start of the machine.
        let read = || {
            std::fs::read("/proc/sys/kernel/random/boot_id")
                .map_or(0, |id| xxhash_rust::xxh3::xxh3_64(&id))
        };
        *BOOT.get_or_init(read)
    }
}

/// Clocks that stand still until told.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall: AtomicI64,
    uptime: AtomicI64,
}

impl ManualClock {
    /// Clocks whose wall shows `now`.
    pub fn at(now: Millis) -> Arc<Self> {
        Arc::new(Self { wall: AtomicI64::new(now), uptime: AtomicI64::new(1) })
    }
    /// Sets the wall clock: forward, because so much time has passed; back, because it leapt.
    pub fn set(&self, now: Millis) {
        let before = self.wall.swap(now, Ordering::SeqCst);
        self.uptime.fetch_add(now.saturating_sub(before).max(0), Ordering::SeqCst);
    }
    /// Time passes.
    pub fn advance(&self, passed: Millis) {
        self.wall.fetch_add(passed, Ordering::SeqCst);
        self.uptime.fetch_add(passed, Ordering::SeqCst);
    }
    /// The wall clock leaps.
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

/// Measures elapsed time; monotonic, unaffected by wall-clock jumps.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts measuring.
    pub fn start() -> Self {
        Self(Instant::now())
    }
    /// Time since the start.
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
