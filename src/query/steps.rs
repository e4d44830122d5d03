//! Steps of a time series, in a time zone. Days may have 23 or 25 hours; weeks start on Monday.

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, ZonedDateTime};

use crate::model::window::{HOUR_MS, Millis};

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Hours that divide the day: 1 or 6.
    Hours(i64),
    /// A calendar day.
    Day,
    /// A calendar week from Monday.
    Week,
    /// A calendar month.
    Month,
    /// One point for the whole range.
    All,
}

impl Step {
    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "1h" => Step::Hours(1),
            "6h" => Step::Hours(6),
            "1d" => Step::Day,
            "1w" => Step::Week,
            "1mo" => Step::Month,
            "all" => Step::All,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Step::Hours(6) => "6h",
            Step::Hours(_) => "1h",
            Step::Day => "1d",
            Step::Week => "1w",
            Step::Month => "1mo",
            Step::All => "all",
        }
    }

    /// Start of the bucket that holds `t`; for [`Step::All`] the caller's range is the bucket.
    pub fn floor(self, tz: &TimeZone, t: Millis) -> Result<Millis, String> {
        if let Step::Hours(hours) = self {
            let offset = offset_ms(tz, t)?;
            let width = hours * HOUR_MS;
            // Hours of a zone that is not on whole hours are UTC hours: windows are.
            let offset = if offset % HOUR_MS == 0 { offset } else { 0 };
            return Ok((t + offset).div_euclid(width) * width - offset);
        }
        let local = zoned(tz, t)?;
        let day = local.start_of_day().map_err(|e| e.to_string())?;
        let start = match self {
            Step::Week => {
                let back = i64::from(day.date().weekday().since(Weekday::Monday));
                day.date().checked_sub(back.days()).and_then(|d| d.to_zoned_datetime(tz.clone()))
            }
            Step::Month => day.date().first_of_month().to_zoned_datetime(tz.clone()),
            _ => Ok(day),
        };
        let start = start.map_err(|e| e.to_string())?;
        if i64::from(start.offset().seconds()) * 1000 % HOUR_MS != 0 {
            return Err(format!("days of {} do not begin on whole UTC hours", tz.iana_name().unwrap_or("this zone")));
        }
        Ok(start.timestamp().as_millisecond())
    }

    /// Start of the bucket behind the one that starts at `start`.
    pub fn next(self, tz: &TimeZone, start: Millis) -> Result<Millis, String> {
        let span = match self {
            Step::Hours(hours) => return self.floor(tz, start + hours * HOUR_MS + HOUR_MS / 2).map(|t| t.max(start + HOUR_MS)),
            Step::Day => 1.days(),
            Step::Week => 7.days(),
            Step::Month => 1.months(),
            Step::All => return Ok(Millis::MAX),
        };
        let next = zoned(tz, start)?.date().checked_add(span).and_then(|d| d.to_zoned_datetime(tz.clone()));
        next.map(|z| z.timestamp().as_millisecond()).map_err(|e| e.to_string())
    }

    /// Snaps a range outward to whole steps; [`Step::All`] to whole hours.
    ///
    /// # Errors
    /// If the zone's offset is not whole hours there.
    pub fn snap(self, tz: &TimeZone, from: Millis, to: Millis) -> Result<(Millis, Millis), String> {
        if self == Step::All {
            return Ok((from.div_euclid(HOUR_MS) * HOUR_MS, -(-to).div_euclid(HOUR_MS) * HOUR_MS));
        }
        let start = self.floor(tz, to)?;
        Ok((self.floor(tz, from)?, if start == to { to } else { self.next(tz, start)? }))
    }
}

fn zoned(tz: &TimeZone, t: Millis) -> Result<ZonedDateTime, String> {
    Timestamp::from_millisecond(t).map(|t| t.to_zoned_datetime(tz.clone())).map_err(|e| e.to_string())
}

fn offset_ms(tz: &TimeZone, t: Millis) -> Result<i64, String> {
    let at = Timestamp::from_millisecond(t).map_err(|e| e.to_string())?;
    Ok(i64::from(tz.to_offset(at).seconds()) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Millis {
        text.parse::<Timestamp>().expect("a time").as_millisecond()
    }

    #[test]
    fn days_of_a_zone_have_23_24_or_25_hours() {
        let tz = TimeZone::get("Europe/Berlin").expect("zone");
        for (start, hours) in [("2026-03-28T23:00:00Z", 23), ("2026-10-24T22:00:00Z", 25), ("2026-06-01T22:00:00Z", 24)] {
            let start = at(start);
            assert_eq!(Step::Day.floor(&tz, start + HOUR_MS).expect("floor"), start);
            assert_eq!(Step::Day.next(&tz, start).expect("next") - start, hours * HOUR_MS);
        }
    }

    #[test]
    fn weeks_start_on_monday_and_ranges_snap_outward() {
        let utc = TimeZone::UTC;
        let (from, to) = Step::Week.snap(&utc, at("2026-01-01T10:00:00Z"), at("2026-01-01T11:00:00Z")).expect("snaps");
        assert_eq!((from, to), (at("2025-12-29T00:00:00Z"), at("2026-01-05T00:00:00Z")));
        let (from, to) = Step::Hours(6).snap(&utc, at("2026-01-01T07:00:00Z"), at("2026-01-01T12:00:00Z")).expect("snaps");
        assert_eq!((from, to), (at("2026-01-01T06:00:00Z"), at("2026-01-01T12:00:00Z")));
        let (from, to) = Step::Month.snap(&utc, at("2026-02-03T07:00:00Z"), at("2026-02-03T08:00:00Z")).expect("snaps");
        assert_eq!((from, to), (at("2026-02-01T00:00:00Z"), at("2026-03-01T00:00:00Z")));
    }

    #[test]
    fn zones_off_the_hour_are_refused_for_days() {
        let tz = TimeZone::get("Asia/Kolkata").expect("zone");
        assert!(Step::Day.floor(&tz, 0).is_err());
        assert_eq!(Step::Hours(1).floor(&tz, HOUR_MS + 1), Ok(HOUR_MS));
    }
}
