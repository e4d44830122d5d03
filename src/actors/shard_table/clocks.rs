//! What a node has observed of its clocks: when a shard had applied everything, and when the
//! wall clock went back.

use crate::model::clock::ClockReading;
use crate::model::window::Millis;

/// Corrections of the wall clock below this size do not count as going back: both clocks are read
/// in whole milliseconds, one after the other.
pub(super) const JITTER_MS: i64 = 100;

/// When an owner was last seen to have applied the whole log: the time on the boot clock, and a
/// lower bound on the wall-clock receive times of everything appended since. `None` if
/// it was never seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaughtUpTime(Option<(Millis, Millis)>);

impl CaughtUpTime {
    /// Boot-clock time and receive-time bound.
    pub(super) fn times(self) -> Option<(Millis, Millis)> {
        self.0
    }

    /// Lower bound on the receive times (wall clock) of everything appended since.
    pub fn as_of(self) -> Option<Millis> {
        self.0.map(|(_, wall)| wall)
    }

    /// Updates the times. `known` is the time for which the log's end is known; `whole` says
    /// whether the owner has applied everything below that end.
    pub(super) fn update(&mut self, whole: bool, known: Millis, now: ClockReading) {
        let ahead = now.wall.saturating_sub(now.uptime);
        if whole {
            self.0 = Some((known, known.saturating_add(ahead)));
        } else if let Some((uptime, wall)) = &mut self.0 {
            // The wall clock may have gone back: later records then bear earlier receive times.
            *wall = (*wall).min(uptime.saturating_add(ahead));
        }
    }
}

/// How the wall clock has moved against the boot clock.
#[derive(Debug, Default)]
pub(super) struct WallClockWatch {
    /// Difference between the wall clock and the boot clock at the last reading.
    ahead: Option<i64>,
    /// Boot-clock time at which the wall clock was last seen to have gone back. Records received
    /// afterwards bear earlier times than their predecessors.
    pub went_back_at: Option<Millis>,
}

impl WallClockWatch {
    pub(super) fn update(&mut self, now: ClockReading) {
        let ahead = now.wall.saturating_sub(now.uptime);
        if self.ahead.is_some_and(|before| before.saturating_sub(ahead) > JITTER_MS) {
            self.went_back_at = Some(now.uptime);
        }
        self.ahead = Some(ahead);
    }
}
