//! The append clock: the time that a log stamps records with, made of two readings of the machine
//! that fail in different ways.
//!
//! The wall clock knows the date but may leap. The boot clock (which counts suspension) measures
//! elapsed time and nothing else. The append clock is monotonic, and no leap of the wall clock
//! moves it by more than the elapsed time: it follows the boot clock, at double speed while the
//! wall clock is ahead and at half speed while the wall clock is behind, until the two meet.

use super::window::Millis;

/// A leap of the wall clock beyond this is reported, in milliseconds.
pub const LEAP_MS: i64 = 60_000;

/// The machine's clocks, read at one moment.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockReading {
    pub wall: Millis,
    /// Boot clock: milliseconds since the machine booted, suspension included.
    pub uptime: Millis,
    /// Identifies the boot that `uptime` counts from; 0 if unknown.
    pub boot: u64,
}

impl ClockReading {
    /// Milliseconds since an earlier reading; `None` if the machine was rebooted in between, or
    /// if that is unknown.
    pub fn elapsed_since(&self, earlier: &ClockReading) -> Option<i64> {
        let same = self.boot == earlier.boot && self.boot != 0;
        Some(self.uptime.saturating_sub(earlier.uptime)).filter(|passed| same && *passed >= 0)
    }

    /// By how much the wall clock leapt since an earlier reading. `None` up to [`LEAP_MS`], or if
    /// the elapsed time is unknown.
    pub fn leap_since(&self, earlier: &ClockReading) -> Option<i64> {
        let leapt =
            self.wall.saturating_sub(earlier.wall).saturating_sub(self.elapsed_since(earlier)?);
        Some(leapt).filter(|leapt| leapt.saturating_abs() > LEAP_MS)
    }
}

/// The times that a frame of the log carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendStamp {
    /// Append time, for the machine. It never decreases within a log.
    pub appended: Millis,
    /// The clocks at that time. The wall clock is the received time, for people; the boot clock
    /// lets the next start resume the append clock from here.
    pub clocks: ClockReading,
}

impl AppendStamp {
    /// The stamp of an older format, whose single time serves as both.
    pub fn from_single_time(time: Millis) -> Self {
        Self { appended: time, clocks: ClockReading { wall: time, ..ClockReading::default() } }
    }
}

/// The append clock of one log, see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendClock {
    /// In half milliseconds, so that half speed loses nothing however often the clock is read.
    halves: i128,
    uptime: Millis,
}

impl AppendClock {
    /// Resumes behind the last stamp of the log, if there is one. Within one boot of the machine
    /// the clock continues as if it had been running. After a reboot the time that the log was
    /// closed is unknown, so the later of the last stamp and the wall clock counts.
    pub fn start(last: Option<AppendStamp>, now: ClockReading) -> Self {
        let at = |time: Millis, uptime| Self { halves: i128::from(time) * 2, uptime };
        match last {
            // Not the wall clock: if it were ahead at a restart, de-duplication would forget its
            // ids, and a retry across the restart would count twice (ADR 24).
            Some(last) if now.elapsed_since(&last.clocks).is_some() => {
                at(last.appended, last.clocks.uptime)
            }
            Some(last) => at(last.appended.max(now.wall), now.uptime),
            None => at(now.wall, now.uptime),
        }
    }

    /// Advances the clock to `now` and returns the append time.
    pub fn read(&mut self, now: ClockReading) -> Millis {
        let passed = i128::from(now.uptime.saturating_sub(self.uptime).max(0)) * 2;
        // A reading older than the last one adds nothing.
        self.uptime = self.uptime.max(now.uptime);
        let wall = i128::from(now.wall) * 2;
        // Stays between `slow` and `fast`: however far the wall clock leaps, one reading moves the
        // clock by at most twice the elapsed time.
        let (slow, even, fast) =
            (self.halves + passed / 2, self.halves + passed, self.halves + passed * 2);
        self.halves = if wall > even { fast.min(wall) } else { slow.max(wall) };
        i64::try_from(self.halves.div_euclid(2)).unwrap_or(i64::MAX)
    }

    /// The stamp of a frame written now.
    pub fn stamp(&mut self, now: ClockReading) -> AppendStamp {
        AppendStamp { appended: self.read(now), clocks: now }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY_MS: i64 = 86_400_000;
    const NOW: i64 = 1_780_000_000_000;

    fn at(wall: Millis, uptime: Millis) -> ClockReading {
        ClockReading { wall, uptime, boot: 7 }
    }

    #[test]
    fn a_right_clock_is_followed_to_the_millisecond() {
        let mut clock = AppendClock::start(None, at(NOW, 5));
        let shown: Vec<i64> = [0, 1, 1, 2, 1_000, 86_400_000]
            .into_iter()
            .map(|ms| clock.read(at(NOW + ms, 5 + ms)))
            .collect();
        assert_eq!(shown, [0, 1, 1, 2, 1_000, 86_400_000].map(|ms| NOW + ms));
    }

    #[test]
    fn a_leap_moves_it_by_no_more_than_what_has_passed() {
        for leap in [-DAY_MS, 400 * DAY_MS, 50 * 365 * DAY_MS] {
            let mut clock = AppendClock::start(None, at(NOW, 0));
            for second in 1..=60 {
                let (wall, passed) = (NOW + leap + second * 1_000, second * 1_000);
                let shown = clock.read(at(wall, passed)) - NOW;
                assert!(
                    (passed / 2..=passed * 2).contains(&shown),
                    "leap {leap}, after {passed}: {shown}"
                );
            }
            // The wall clock is right again, and the append clock meets it.
            let shown = clock.read(at(NOW + 240_000, 240_000));
            assert_eq!(shown, NOW + 240_000, "leap {leap}");
        }
    }

    #[test]
    fn half_speed_loses_nothing_however_often_it_is_read() {
        let mut clock = AppendClock::start(None, at(NOW, 0));
        let shown = (1..=1_000).map(|ms| clock.read(at(NOW - DAY_MS, ms))).last();
        assert_eq!(shown, Some(NOW + 500));
    }

    #[test]
    fn a_start_goes_on_within_one_start_of_the_machine_and_takes_the_wall_clock_otherwise() {
        let stamp = AppendStamp { appended: NOW, clocks: at(NOW, 10_000) };
        let start = |now: ClockReading| AppendClock::start(Some(stamp), now).read(now);
        assert_eq!(
            start(at(NOW + 400 * DAY_MS, 11_000)),
            NOW + 2_000,
            "a clock ahead does not move it"
        );
        assert_eq!(start(at(NOW - DAY_MS, 11_000)), NOW + 500);
        assert_eq!(start(at(NOW + 60_000, 70_000)), NOW + 60_000);
        let other = |wall| start(ClockReading { wall, uptime: 3, boot: 8 });
        assert_eq!((other(NOW + DAY_MS), other(NOW - DAY_MS)), (NOW + DAY_MS, NOW));
        let unknown = AppendStamp::from_single_time(NOW);
        let now = ClockReading { wall: NOW + 5, uptime: 9, boot: 0 };
        assert_eq!(AppendClock::start(Some(unknown), now).read(now), NOW + 5);
        assert_eq!(
            start(at(NOW + DAY_MS, 9_999)),
            NOW + DAY_MS,
            "a boot clock that went back is another one"
        );
    }

    #[test]
    fn leaps_are_told_from_time_that_passes() {
        let before = at(NOW, 0);
        assert_eq!(at(NOW + DAY_MS, DAY_MS).leap_since(&before), None);
        assert_eq!(at(NOW + LEAP_MS + 1_000, 1_000).leap_since(&before), None);
        assert_eq!(at(NOW + LEAP_MS + 1_001, 1_000).leap_since(&before), Some(LEAP_MS + 1));
        assert_eq!(at(NOW - DAY_MS, 0).leap_since(&before), Some(-DAY_MS));
        assert_eq!(
            ClockReading { boot: 8, ..at(NOW + DAY_MS, 1) }.leap_since(&before),
            None,
            "nobody knows what has passed"
        );
    }

    proptest! {
        /// Holds whatever the wall clock does.
        #[test]
        fn it_never_goes_back_and_keeps_between_half_and_twice_the_speed_of_time(
            steps in prop::collection::vec((0i64..5_000, prop_oneof![
                4 => Just(0i64), 1 => -400 * DAY_MS..400 * DAY_MS, 1 => -5_000i64..5_000,
            ]), 1..200),
            start in -400 * DAY_MS..400 * DAY_MS,
        ) {
            let (mut wall, mut uptime) = (NOW + start, 0);
            let mut clock = AppendClock::start(None, at(wall, uptime));
            let (first, mut before, mut met) = (wall, wall, true);
            for (passed, leap) in steps {
                let was_met = met && leap == 0;
                wall += passed + leap;
                uptime += passed;
                let shown = clock.read(at(wall, uptime));
                // One millisecond for the half that is not shown.
                prop_assert!(shown >= before && shown - before <= passed * 2 + 1);
                prop_assert!(shown - first >= uptime / 2 && shown - first <= uptime * 2);
                prop_assert!(
                    !was_met || shown == wall,
                    "once it has met a clock that does not leap, it stays with it"
                );
                met = shown == wall;
                before = shown;
            }
            // With a correct wall clock they meet: an hour behind or ahead is made up within two
            // hours.
            let gap = (before - wall).abs();
            let shown = clock.read(at(wall + gap * 2 + 2, uptime + gap * 2 + 2));
            prop_assert_eq!(shown, wall + gap * 2 + 2);
        }
    }
}
