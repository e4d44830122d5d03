//! Steps of a time series in a time zone. Days may have 23 or 25 hours. Weeks start on Monday.
//! Six-hour steps start at 0, 6, 12 and 18 o'clock local time, so a step around a clock change has
//! five or seven hours.

use std::ops::Range;

use jiff::civil::{DateTime, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan, ZonedDateTime};

use crate::model::window::{HOUR_MS, Millis};

/// The width of the points of an answer.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeStep {
    /// A number of hours that divides the day: 1 or 6.
    Hours(i64),
    Day,
    /// A calendar week; it starts on Monday.
    Week,
    Month,
    /// One point for the whole range.
    All,
}

/// The steps with their names in requests and answers.
pub const STEPS: &[(&str, TimeStep)] = &[
    ("1h", TimeStep::Hours(1)),
    ("6h", TimeStep::Hours(6)),
    ("1d", TimeStep::Day),
    ("1w", TimeStep::Week),
    ("1mo", TimeStep::Month),
    ("all", TimeStep::All),
];

impl TimeStep {
    /// The name of this step in requests and answers.
    pub fn name(self) -> &'static str {
        STEPS.iter().find(|(_, step)| *step == self).map_or("", |(name, _)| name)
    }

    /// The bucket that contains `t`, in local time. Not for [`TimeStep::All`], whose bucket is the
    /// range of the query.
    ///
    /// # Errors
    /// If the bucket is beyond the calendar's range.
    pub fn bucket(self, tz: &TimeZone, t: Millis) -> Result<Range<Millis>, String> {
        // Fast path: zones are checked to be on whole UTC hours, so one-hour buckets need no
        // calendar.
        if let TimeStep::Hours(1) = self {
            let start = t.div_euclid(HOUR_MS) * HOUR_MS;
            return Ok(start..start + HOUR_MS);
        }
        let label = self.label(zoned(tz, t)?.datetime()).map_err(|e| e.to_string())?;
        let start = instant(tz, label)?;
        let mut next = self.following(label).map_err(|e| e.to_string())?;
        // A zone that crosses the date line skips a whole day, which has no instant of its own: the
        // label after it maps to the same instant.
        while instant(tz, next)? <= start {
            next = self.following(next).map_err(|e| e.to_string())?;
        }
        Ok(start..instant(tz, next)?)
    }

    /// The local start of the bucket that contains `local`.
    fn label(self, local: DateTime) -> Result<DateTime, jiff::Error> {
        let date = local.date();
        let date = match self {
            TimeStep::Hours(hours) => {
                let hour = i64::from(local.hour()).div_euclid(hours) * hours;
                return local
                    .with()
                    .hour(hour as i8)
                    .minute(0)
                    .second(0)
                    .subsec_nanosecond(0)
                    .build();
            }
            TimeStep::Day | TimeStep::All => date,
            TimeStep::Week => {
                date.checked_sub(i64::from(date.weekday().since(Weekday::Monday)).days())?
            }
            TimeStep::Month => date.first_of_month(),
        };
        Ok(date.to_datetime(Time::midnight()))
    }

    /// The local start of the next bucket.
    fn following(self, label: DateTime) -> Result<DateTime, jiff::Error> {
        label.checked_add(match self {
            TimeStep::Hours(hours) => hours.hours(),
            TimeStep::Day | TimeStep::All => 1.days(),
            TimeStep::Week => 7.days(),
            TimeStep::Month => 1.months(),
        })
    }

    /// Snaps a range outward to whole steps; for [`TimeStep::All`], to whole hours.
    ///
    /// # Errors
    /// If the zone's offset is not a whole number of hours throughout the snapped range, since
    /// rollup windows are UTC hours, or if a clock change splits a step into two stretches of time.
    pub fn snap(self, tz: &TimeZone, from: Millis, to: Millis) -> Result<(Millis, Millis), String> {
        let unit = if self == TimeStep::All { TimeStep::Hours(1) } else { self };
        let (from, to) = (unit.bucket(tz, from)?.start, unit.bucket(tz, to - 1)?.end);
        check_whole_hours(tz, from, to)?;
        unit.check_contiguous(tz, from, to)?;
        Ok((from, to))
    }
}

impl TimeStep {
    /// Rejects zones whose clocks go back across the start of a bucket, as some Antarctic zones
    /// did: the bucket before would then be two separate stretches of time.
    fn check_contiguous(self, tz: &TimeZone, from: Millis, to: Millis) -> Result<(), String> {
        if self == TimeStep::Hours(1) {
            return Ok(());
        }
        let begin = Timestamp::from_millisecond(from).map_err(|e| e.to_string())?;
        let changes = tz.following(begin).map(|change| change.timestamp());
        for at in changes.take_while(|at| at.as_millisecond() < to) {
            let label = |t| self.label(zoned(tz, t)?.datetime()).map_err(|e| e.to_string());
            if label(at.as_millisecond() - 1)? > label(at.as_millisecond())? {
                let zone = tz.iana_name().unwrap_or("this zone");
                return Err(format!(
                    "the clocks of {zone} went back at {at} into the step before: steps of {} are \
                     no stretches of time then",
                    self.name()
                ));
            }
        }
        Ok(())
    }
}

/// Rejects zones whose offset is not a whole number of hours between `from` and `to`, or
/// changes within an hour.
fn check_whole_hours(tz: &TimeZone, from: Millis, to: Millis) -> Result<(), String> {
    let begin = Timestamp::from_millisecond(from).map_err(|e| e.to_string())?;
    let changes = tz.following(begin).map(|change| (change.timestamp(), change.offset()));
    let within = changes.take_while(|(at, _)| at.as_millisecond() < to);
    for (at, offset) in std::iter::once((begin, tz.to_offset(begin))).chain(within) {
        if i64::from(offset.seconds()) * 1000 % HOUR_MS != 0 || at.as_millisecond() % HOUR_MS != 0 {
            let zone = tz.iana_name().unwrap_or("this zone");
            return Err(format!(
                "{zone} is at {offset} from {at} on: its clocks do not show whole hours of UTC, \
                 of which all figures are"
            ));
        }
    }
    Ok(())
}

fn zoned(tz: &TimeZone, t: Millis) -> Result<ZonedDateTime, String> {
    Timestamp::from_millisecond(t)
        .map(|t| t.to_zoned_datetime(tz.clone()))
        .map_err(|e| e.to_string())
}

/// The instant at which the clocks of the zone first show `local`: the earlier one if they show it
/// twice, the end of the gap if they skip it.
fn instant(tz: &TimeZone, local: DateTime) -> Result<Millis, String> {
    let shown = tz.to_ambiguous_timestamp(local);
    let first = || match shown.offset() {
        AmbiguousOffset::Gap { before, .. } => {
            // The clock change happens at or before the instant at which the old offset would have
            // shown `local`.
            let missed = before.to_timestamp(local)?;
            Ok(tz
                .preceding(missed.checked_add(1.nanoseconds())?)
                .next()
                .map_or(missed, |change| change.timestamp()))
        }
        AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => shown.compatible(),
    };
    first().map(|at: Timestamp| at.as_millisecond()).map_err(|e: jiff::Error| e.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Millis {
        text.parse::<Timestamp>().expect("a time").as_millisecond()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).expect("a zone")
    }

    /// The lengths in hours of the buckets of a range; checks that they are contiguous.
    fn lengths(step: TimeStep, tz: &TimeZone, from: &str, to: &str) -> Vec<i64> {
        let (mut start, end) = step.snap(tz, at(from), at(to)).expect("snaps");
        assert_eq!((start, end), (at(from), at(to)), "{step:?}");
        let mut lengths = Vec::new();
        while start < end {
            let bucket = step.bucket(tz, start).expect("a bucket");
            assert_eq!(bucket.start, start);
            lengths.push((bucket.end - start) / HOUR_MS);
            start = bucket.end;
        }
        lengths
    }

    #[test]
    fn days_and_their_quarters_follow_the_clocks() {
        let (berlin, new_york) = (zone("Europe/Berlin"), zone("America/New_York"));
        let quarters = |tz: &TimeZone, from, to| lengths(TimeStep::Hours(6), tz, from, to);
        assert_eq!(quarters(&berlin, "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"), [5, 6, 6, 6]);
        assert_eq!(quarters(&berlin, "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"), [7, 6, 6, 6]);
        assert_eq!(
            quarters(&new_york, "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"),
            [7, 6, 6, 6]
        );
        assert_eq!(
            quarters(&new_york, "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"),
            [5, 6, 6, 6]
        );
        // The clocks of Beirut and Santiago change at midnight.
        assert_eq!(
            quarters(&zone("Asia/Beirut"), "2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z"),
            [5, 6, 6, 6]
        );
        assert_eq!(
            quarters(&zone("America/Santiago"), "2026-04-04T03:00:00Z", "2026-04-05T04:00:00Z"),
            [6, 6, 6, 7]
        );
        // Samoa skipped 30 December 2011.
        assert_eq!(
            quarters(&zone("Pacific/Apia"), "2011-12-29T10:00:00Z", "2011-12-31T10:00:00Z"),
            [6; 8]
        );
        for (start, end, hours) in [
            ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", 23),
            ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", 25),
            ("2026-06-01T22:00:00Z", "2026-06-02T22:00:00Z", 24),
        ] {
            assert_eq!(lengths(TimeStep::Day, &berlin, start, end), [hours]);
        }
    }

    #[test]
    fn weeks_start_on_monday_and_ranges_snap_outward() {
        let utc = TimeZone::UTC;
        let (from, to) = TimeStep::Week
            .snap(&utc, at("2026-01-01T10:00:00Z"), at("2026-01-01T11:00:00Z"))
            .expect("snaps");
        assert_eq!((from, to), (at("2025-12-29T00:00:00Z"), at("2026-01-05T00:00:00Z")));
        let (from, to) = TimeStep::Hours(6)
            .snap(&utc, at("2026-01-01T07:00:00Z"), at("2026-01-01T12:00:00Z"))
            .expect("snaps");
        assert_eq!((from, to), (at("2026-01-01T06:00:00Z"), at("2026-01-01T12:00:00Z")));
        let (from, to) = TimeStep::Month
            .snap(&utc, at("2026-02-03T07:00:00Z"), at("2026-02-03T08:00:00Z"))
            .expect("snaps");
        assert_eq!((from, to), (at("2026-02-01T00:00:00Z"), at("2026-03-01T00:00:00Z")));
    }

    #[test]
    fn zones_off_the_hour_are_refused_whatever_the_step() {
        let refused = |name: &str, from: &str, to: &str| {
            let results = STEPS
                .iter()
                .map(|(_, step)| step.snap(&zone(name), at(from), at(to)).is_err())
                .collect::<Vec<_>>();
            assert!(
                results.windows(2).all(|pair| pair[0] == pair[1]),
                "{name}: one rule for all steps: {results:?}"
            );
            results[0]
        };
        let (july, august) = ("2026-07-02T00:00:00Z", "2026-07-30T00:00:00Z");
        for name in [
            "Asia/Kolkata",
            "Asia/Kathmandu",
            "Australia/Adelaide",
            "America/St_Johns",
            "Australia/Lord_Howe",
        ] {
            assert!(refused(name, july, august), "{name}");
        }
        assert!(
            !refused(
                "Australia/Lord_Howe",
                "2026-02-01T00:00:00+11:00",
                "2026-03-01T00:00:00+11:00"
            ),
            "11 hours all the time"
        );
        assert!(
            refused(
                "Australia/Lord_Howe",
                "2026-02-01T00:00:00+11:00",
                "2026-11-01T00:00:00+11:00"
            ),
            "half hours in the middle"
        );
        assert!(!refused(
            "Asia/Pyongyang",
            "2019-02-01T00:00:00+09:00",
            "2019-03-01T00:00:00+09:00"
        ));
        assert!(
            refused("Asia/Pyongyang", "2015-01-01T00:00:00+09:00", "2019-01-01T00:00:00+09:00"),
            "half hours until 2018"
        );
        assert!(
            refused("Europe/Berlin", "1850-01-01T00:00:00Z", "1850-02-01T00:00:00Z"),
            "the time of its meridian"
        );
    }

    #[test]
    fn clocks_that_go_back_into_the_step_before_are_refused() {
        let snap = |step: TimeStep, name: &str, from: &str, to: &str| {
            step.snap(&zone(name), at(from), at(to)).map(drop)
        };
        // Seven hours back, at midnight of 1 February.
        let vostok =
            |step| snap(step, "Antarctica/Vostok", "1994-01-31T00:00:00Z", "1994-02-02T00:00:00Z");
        assert!(vostok(TimeStep::Hours(6)).is_err_and(|why| why.contains("1994-01-31T17:00:00Z")));
        assert_eq!(
            (vostok(TimeStep::Hours(1)), vostok(TimeStep::Day), vostok(TimeStep::All)),
            (Ok(()), Ok(()), Ok(()))
        );
        // Seven hours forward, at midnight of 1 November: the six o'clock step starts when the gap
        // ends.
        let (from, to) = ("1994-11-01T00:00:00Z", "1994-11-01T05:00:00Z");
        assert_eq!(lengths(TimeStep::Hours(6), &zone("Antarctica/Vostok"), from, to), [5]);
        // From two in the morning back to eleven the evening before.
        let casey =
            |step| snap(step, "Antarctica/Casey", "2010-03-03T00:00:00Z", "2010-03-06T00:00:00Z");
        assert!(
            casey(TimeStep::Day).is_err()
                && casey(TimeStep::Hours(6)).is_err()
                && casey(TimeStep::Week).is_ok()
        );
        for (from, to) in [
            ("2026-03-28T00:00:00Z", "2026-03-30T00:00:00Z"),
            ("2026-10-24T00:00:00Z", "2026-10-26T00:00:00Z"),
        ] {
            for (_, step) in STEPS {
                assert_eq!(snap(*step, "Europe/Berlin", from, to), Ok(()));
            }
        }
    }

    /// The calendar's identity of the bucket of an instant, computed without the code above: equal
    /// for two instants of one bucket.
    fn mark(step: TimeStep, tz: &TimeZone, t: Millis) -> (i16, i8, i16, i64) {
        let local = Timestamp::from_millisecond(t).expect("a time").to_zoned_datetime(tz.clone());
        match step {
            TimeStep::Hours(hours) => (
                local.year(),
                local.month(),
                i16::from(local.day()),
                i64::from(local.hour()) / hours,
            ),
            TimeStep::Day => (local.year(), local.month(), i16::from(local.day()), 0),
            TimeStep::Week => {
                let week = local.date().iso_week_date();
                (week.year(), week.week(), 0, 0)
            }
            TimeStep::Month => (local.year(), local.month(), 0, 0),
            TimeStep::All => (0, 0, 0, 0),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

        #[test]
        fn buckets_are_what_the_calendar_says(
            name in any::<prop::sample::Index>(), step in 1usize..5,
            t in at("1971-01-01T00:00:00Z")..at("2037-01-01T00:00:00Z"),
            near in -5i64..5, to_change in any::<bool>(),
        ) {
            let names: Vec<String> =
                jiff::tz::db().available().map(|name| name.to_string()).collect();
            prop_assert!(names.len() > 300, "{} zones", names.len());
            let (tz, step) = (zone(&names[name.index(names.len())]), STEPS[step].1);
            // Half of the cases lie around a clock change.
            let from = Timestamp::from_millisecond(t).expect("a time");
            let change = tz.following(from).next().filter(|_| to_change);
            let t = change.map_or(t, |change| change.timestamp().as_millisecond()) + near * HOUR_MS;
            let bucket = step.bucket(&tz, t).expect("a bucket");
            let around = (t.min(bucket.start) - 24 * HOUR_MS, t.max(bucket.end) + 24 * HOUR_MS);
            prop_assume!(check_whole_hours(&tz, around.0, around.1).is_ok());
            prop_assume!(step.check_contiguous(&tz, around.0, around.1).is_ok());
            prop_assert!(bucket.contains(&t), "{t} in {bucket:?}");
            prop_assert!(bucket.start % HOUR_MS == 0 && bucket.end % HOUR_MS == 0, "{bucket:?}");
            // All its instants have the same mark, and the instants before and after it do not.
            let of = mark(step, &tz, t);
            for hour in (bucket.start..bucket.end).step_by(HOUR_MS as usize) {
                prop_assert_eq!(mark(step, &tz, hour), of);
                prop_assert_eq!(mark(step, &tz, hour + HOUR_MS - 1), of);
            }
            prop_assert_ne!(mark(step, &tz, bucket.start - 1), of);
            prop_assert_ne!(mark(step, &tz, bucket.end), of);
            // Buckets are contiguous, and a range within one snaps to exactly that one.
            prop_assert_eq!(step.bucket(&tz, bucket.end).expect("the next").start, bucket.end);
            prop_assert_eq!(step.snap(&tz, t, t + 1), Ok((bucket.start, bucket.end)));
        }
    }
}
