//! Parses and formats times for the command line.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::clock::Millis;
use crate::model::event::{millis_of, parse_rfc3339, saturating_millis};

/// A time zone and its IANA name.
#[derive(Debug, Clone)]
pub(super) struct NamedZone(pub(super) String, pub(super) TimeZone);

/// The zone of an IANA name; fails if there is none.
pub(super) fn zone(name: &str) -> Result<NamedZone, String> {
    TimeZone::get(name)
        .map(|zone| NamedZone(name.to_owned(), zone))
        .map_err(|_| "no such time zone".to_owned())
}

/// Parses a time into milliseconds since 1970. It may be RFC 3339, milliseconds, a date or time in
/// `tz`, `now`, or an age such as `-7d`.
///
/// # Errors
/// A sentence with examples of valid times.
pub(super) fn parse(text: &str, now: Millis, tz: &TimeZone) -> Result<Millis, String> {
    if text == "now" {
        return Ok(now);
    }
    if let Some(ago) = text.strip_prefix('-').and_then(span) {
        return Ok(now.saturating_sub(ago));
    }
    if let Some(millis) = saturating_millis(text) {
        return Ok(millis);
    }
    if let Ok(millis) = parse_rfc3339(text) {
        return Ok(millis);
    }
    text.parse().map(|local| in_zone(local, tz)).map_err(|_| {
        format!(
            "{text:?} is no time: write 2026-01-01, 2026-01-01T10:00:00Z, milliseconds since \
             1970, now, or -7d for seven days ago"
        )
    })
}

/// The time of a local time in a zone. Total: the first and last days of the calendar, of which no
/// zone can be asked, are taken as UTC.
pub(super) fn in_zone(local: DateTime, tz: &TimeZone) -> Millis {
    let zoned = local.to_zoned_datetime(tz.clone());
    zoned.map_or_else(|_| millis_of(local, 0), |zoned| zoned.timestamp().as_millisecond())
}

/// An age such as `7d`, in milliseconds.
fn span(text: &str) -> Option<Millis> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor = match unit {
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 7 * 86_400_000,
        _ => return None,
    };
    number.parse::<Millis>().ok()?.checked_mul(factor)
}

/// Formats a time of an answer in a zone; `None` leaves it as it is, in UTC.
pub(super) fn format_time(text: &str, tz: Option<&TimeZone>) -> String {
    let zoned =
        tz.and_then(|tz| Some(text.parse::<jiff::Timestamp>().ok()?.to_zoned_datetime(tz.clone())));
    zoned
        .map_or_else(|| text.to_owned(), |zoned| zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_as_people_write_them() {
        let now = 1_767_225_600_000;
        let berlin = TimeZone::get("Europe/Berlin").expect("a zone");
        for (text, millis) in [
            ("now", now),
            ("-7d", now - 7 * 86_400_000),
            ("-90m", now - 5_400_000),
            ("-2w", now - 14 * 86_400_000),
            ("1767225600123", now + 123),
            ("2026-01-01T00:00:00Z", now),
            ("2026-01-01T00:00:00.0001234567891Z", now),
            ("2026-01-01", now - 3_600_000),
            ("2026-01-01 01:00", now),
            ("9999-12-31", 253_402_214_400_000),
            ("9999-12-31T23:59:59Z", 253_402_300_799_000),
            ("99999999999999999999", i64::MAX),
        ] {
            assert_eq!(parse(text, now, &berlin), Ok(millis), "{text}");
        }
        assert_eq!(parse("2026-01-01", now, &TimeZone::UTC), Ok(now));
        for text in ["yesterday", "-7x", "7d", "", "-d", "2026-13-01"] {
            assert!(parse(text, now, &TimeZone::UTC).expect_err(text).contains("-7d"), "{text}");
        }
    }

    #[test]
    fn times_are_shown_in_the_zone_asked_for() {
        let berlin = TimeZone::get("Europe/Berlin").expect("a zone");
        assert_eq!(format_time("2026-11-27T23:00:00Z", Some(&berlin)), "2026-11-28T00:00:00+01:00");
        assert_eq!(format_time("2026-11-27T23:00:00Z", None), "2026-11-27T23:00:00Z");
    }
}
