//! What a node saw of its clocks: when a shard had applied everything, and when the wall clock went
//! back.

use crate::model::clock::ClockReading;
use crate::model::window::Millis;

/// A wall clock that is set right by less than this has not gone back: both clocks are read in
/// whole milliseconds, one after the other.
pub(super) const JITTER_MS: i64 = 100;

/// When an owner was last seen to have applied the whole log: on the boot clock, and, on the wall
/// clock, a time before which nothing was received since then; none if it never was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaughtUpTime(Option<(Millis, Millis)>);

impl CaughtUpTime {
    /// The times, if it was.
    pub(super) fn times(self) -> Option<(Millis, Millis)> {
        self.0
    }

    /// A time before which nothing was received since then, on the wall clock.
    pub fn as_of(self) -> Option<Millis> {
        self.0.map(|(_, wall)| wall)
    }

    /// Looks at a shard whose end is known since `known`; `whole` says whether its owner has
    /// applied everything below.
    pub(super) fn update(&mut self, whole: bool, known: Millis, now: ClockReading) {
        let ahead = now.wall.saturating_sub(now.uptime);
        if whole {
            self.0 = Some((known, known.saturating_add(ahead)));
        } else if let Some((uptime, wall)) = &mut self.0 {
            *wall = (*wall).min(uptime.saturating_add(ahead));
        }
    }
}

/// What the wall clock did while this node looked at it.
#[derive(Debug, Default)]
pub(super) struct WallClockWatch {
    /// By how much it was ahead of the boot clock.
    ahead: Option<i64>,
    /// When it was last seen to have gone back, on the boot clock: what is received then bears
    /// earlier times than what came before.
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
