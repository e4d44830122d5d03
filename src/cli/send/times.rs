//! Parses times as files hold them: with a zone, without one, or as a number since 1970.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::super::time_arg::in_zone;
use crate::model::event::{parse_rfc3339, saturating_millis};

/// Unit of a time that is a number since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TimeUnit {
    /// Seconds
    S,
    /// Milliseconds
    Ms,
    /// Microseconds
    Us,
    /// Nanoseconds
    Ns,
}

impl TimeUnit {
    fn name(self) -> &'static str {
        match self {
            Self::S => "seconds",
            Self::Ms => "milliseconds",
            Self::Us => "microseconds",
            Self::Ns => "nanoseconds",
        }
    }

    /// The unit in which a number is a time between 1973 and 5138; `None` for smaller
    /// numbers, which are ambiguous.
    fn of(whole: i128) -> Option<Self> {
        match whole.unsigned_abs() {
            0..100_000_000 => None,
            100_000_000..100_000_000_000 => Some(Self::S),
            100_000_000_000..100_000_000_000_000 => Some(Self::Ms),
            100_000_000_000_000..100_000_000_000_000_000 => Some(Self::Us),
            _ => Some(Self::Ns),
        }
    }
}

/// Parses the times of one input, which must all use the same unit.
#[derive(Debug, Clone, Default)]
pub(super) struct TimeParser {
    given: Option<TimeUnit>,
    detected: Option<TimeUnit>,
    zone: Option<TimeZone>,
}

/// A time in a form that the server accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InputTime {
    /// The text is valid as it is.
    Verbatim,
    /// Converted to milliseconds since 1970.
    Millis(i64),
}

impl TimeParser {
    pub(super) fn new(given: Option<TimeUnit>, zone: Option<TimeZone>) -> Self {
        Self { given, detected: None, zone }
    }

    /// The detected unit, if it was guessed and differs from the server's milliseconds.
    pub(super) fn guessed(&self) -> Option<&'static str> {
        self.detected
            .filter(|unit| self.given.is_none() && *unit != TimeUnit::Ms)
            .map(TimeUnit::name)
    }

    /// Parses a number since 1970: digits, optionally with a sign and a fraction. Fails if its unit
    /// differs from that of earlier times, or it is out of range.
    pub(super) fn number(&mut self, text: &str) -> Result<InputTime, String> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let plain = saturating_millis(whole);
        let seen = plain.map(|nearest| whole.parse().unwrap_or_else(|_| i128::from(nearest)));
        let Some(seen) = seen else {
            return Err(format!("{text} is no time since 1970 in plain digits"));
        };
        let unit = match (self.given, TimeUnit::of(seen)) {
            (Some(unit), _) => unit,
            (None, None) => self.detected.unwrap_or(TimeUnit::Ms),
            // One input has one unit; a mix of two is taken for a mistake.
            (None, Some(unit)) if self.detected.is_none_or(|known| known == unit) => {
                *self.detected.insert(unit)
            }
            (None, Some(unit)) => {
                let before = self.detected.map_or("", TimeUnit::name);
                return Err(format!(
                    "{text} looks like {} since 1970, times before it like {before}: say \
                     --time-unit",
                    unit.name()
                ));
            }
        };
        if unit == TimeUnit::Ms && fraction.is_empty() {
            return Ok(InputTime::Verbatim);
        }
        // Nine digits reach nanoseconds; more could overflow below.
        let fraction = &fraction[..fraction.len().min(9)];
        let digits: i128 = if fraction.is_empty() {
            0
        } else {
            fraction.parse().map_err(|_| format!("{text} is no number"))?
        };
        let scale = 10i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        let signed = if whole.starts_with('-') { -digits } else { digits };
        let (times, over) = match unit {
            TimeUnit::S => (1_000, 1),
            TimeUnit::Ms => (1, 1),
            TimeUnit::Us => (1, 1_000),
            TimeUnit::Ns => (1, 1_000_000),
        };
        let millis = seen.saturating_mul(scale).saturating_add(signed).saturating_mul(times);
        // Rounds down, also before 1970, as the server does. What 64 bits cannot hold is as far
        // away as they can say: the server refuses it as too far.
        let millis = millis.div_euclid(over * scale);
        Ok(InputTime::Millis(millis.clamp(i64::MIN.into(), i64::MAX.into()) as i64))
    }

    /// Parses a cell: a number, a time with a zone, or one without. Fails as [`Self::number`]
    /// does, and for a time without a zone if `--tz` is not given. Text that is no time is left to
    /// the server to refuse.
    pub(super) fn cell(&mut self, text: &str) -> Result<InputTime, String> {
        if is_number(text) {
            return self.number(text);
        }
        if let Ok(millis) = parse_rfc3339(text) {
            return Ok(if text.contains('T') {
                InputTime::Verbatim
            } else {
                InputTime::Millis(millis)
            });
        }
        let Ok(civil) = text.parse::<DateTime>() else { return Ok(InputTime::Verbatim) };
        let Some(zone) = &self.zone else {
            return Err(format!("{text} has no zone: say --tz ZONE, such as --tz UTC"));
        };
        Ok(InputTime::Millis(in_zone(civil, zone)))
    }
}

/// Whether a text is digits, optionally with a sign and a fraction.
pub(super) fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> InputTime {
        TimeParser::default().cell(text).expect("a time")
    }

    #[test]
    fn the_unit_is_told_by_the_size() {
        assert_eq!(read("1767225600"), InputTime::Millis(1_767_225_600_000));
        assert_eq!(read("1767225600.1239"), InputTime::Millis(1_767_225_600_123));
        assert_eq!(read("1767225600123"), InputTime::Verbatim);
        assert_eq!(read("1767225600123.9"), InputTime::Millis(1_767_225_600_123));
        assert_eq!(read("1767225600123456"), InputTime::Millis(1_767_225_600_123));
        assert_eq!(read("1767225600123456789"), InputTime::Millis(1_767_225_600_123));
        assert_eq!(read("-1000000000.5"), InputTime::Millis(-1_000_000_000_500));
        assert_eq!(read("12345"), InputTime::Verbatim, "as the server takes it");
        assert_eq!(
            TimeParser::new(Some(TimeUnit::S), None).cell("12345"),
            Ok(InputTime::Millis(12_345_000))
        );
        assert_eq!(TimeParser::new(Some(TimeUnit::Us), None).cell("-1"), Ok(InputTime::Millis(-1)));
    }

    #[test]
    fn one_input_has_one_unit() {
        let mut times = TimeParser::default();
        assert_eq!(times.cell("1767225600"), Ok(InputTime::Millis(1_767_225_600_000)));
        let why = times.cell("1767225600123").expect_err("another unit");
        assert!(why.contains("milliseconds") && why.contains("seconds: say --time-unit"), "{why}");
        assert_eq!(times.guessed(), Some("seconds"));
    }

    #[test]
    fn a_time_without_a_zone_needs_one() {
        assert_eq!(read("2026-01-01T00:00:00Z"), InputTime::Verbatim);
        assert_eq!(
            read("2026-01-01 00:00:00+01:00"),
            InputTime::Millis(1_767_225_600_000 - 3_600_000)
        );
        assert_eq!(read("yesterday"), InputTime::Verbatim, "the server says what is wrong");
        for text in ["2026-07-01 02:00:00", "2026-07-01T02:00:00", "2026-07-01"] {
            assert!(
                TimeParser::default().cell(text).expect_err("no zone").contains("--tz"),
                "{text}"
            );
        }
        let mut berlin =
            TimeParser::new(None, Some(TimeZone::get("Europe/Berlin").expect("a zone")));
        assert_eq!(berlin.cell("2026-07-01 02:00:00"), Ok(InputTime::Millis(1_782_864_000_000)));
        assert_eq!(berlin.cell("2026-01-01"), Ok(InputTime::Millis(1_767_222_000_000)));
    }

    #[test]
    fn times_beyond_every_range_are_left_to_the_server() {
        let far = "9".repeat(50);
        let with = |unit: TimeUnit, text: &str| TimeParser::new(Some(unit), None).cell(text);
        assert_eq!(with(TimeUnit::S, &far), Ok(InputTime::Millis(i64::MAX)));
        assert_eq!(with(TimeUnit::S, "99999999999999999"), Ok(InputTime::Millis(i64::MAX)));
        assert_eq!(with(TimeUnit::S, &format!("-{far}.5")), Ok(InputTime::Millis(i64::MIN)));
        assert_eq!(with(TimeUnit::Ms, &far), Ok(InputTime::Verbatim));
        assert_eq!(read("9999-12-31T23:59:59Z"), InputTime::Verbatim);
        assert_eq!(read("9999-12-31 23:59:59Z"), InputTime::Millis(253_402_300_799_000));
        let mut utc = TimeParser::new(None, Some(TimeZone::UTC));
        assert_eq!(utc.cell("9999-12-31 23:59:59"), Ok(InputTime::Millis(253_402_300_799_000)));
    }

    #[test]
    fn what_is_no_number_is_none() {
        assert!(TimeParser::default().cell("1.2.3").is_err());
        assert!(TimeParser::default().number("1e9").is_err());
    }
}
