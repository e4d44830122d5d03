//! The time of an event: as its client says, corrected by what is known of the client's clock.

use crate::model::event::{self, EventError, EventErrorCode};
use crate::rules::{PropertyValue, json_value};

/// Clocks that differ by less are left alone.
///
/// A client that sends a batch again may leave the time of sending as it was, so the delay looks
/// like a clock that is slow by as much. This is more than any of the clients takes to give up, so
/// the copies of an event have one time.
pub const SKEW_THRESHOLD_MS: i64 = 60_000;

/// The clock of a client against ours, at the moment of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientClock {
    /// When the client says that it sent the request.
    pub(super) sent_at: Option<i64>,
    /// When the request came in.
    pub(super) now: i64,
}

impl ClientClock {
    /// A time of the client as a time of ours.
    pub(super) fn corrected(self, at: i64) -> i64 {
        let Some(sent_at) = self.sent_at else { return at };
        let ahead = sent_at.saturating_sub(self.now);
        if ahead.saturating_abs() <= SKEW_THRESHOLD_MS { at } else { at.saturating_sub(ahead) }
    }
}

/// A time of JSON: RFC 3339, which is UTC if it names no zone, or milliseconds since 1970. `None`
/// for null and nothing. Fails with `timestamp_invalid` for anything else.
pub(super) fn parse(json: Option<&str>) -> Result<Option<i64>, EventError> {
    let invalid = || {
        EventError::new(
            EventErrorCode::TimestampInvalid,
            "a time is RFC 3339, or integer milliseconds",
        )
    };
    match json.map(|json| json_value(json.as_bytes())) {
        None | Some(None) => Ok(None),
        Some(Some(PropertyValue::Text(text))) if text.is_empty() => Ok(None),
        Some(Some(PropertyValue::Text(text))) => {
            let in_utc = || event::parse_rfc3339(&format!("{text}Z"));
            event::parse_rfc3339(&text).or_else(|_| in_utc()).map(Some).map_err(|_| invalid())
        }
        Some(Some(PropertyValue::Number(text))) => {
            event::saturating_millis(&text).map(Some).ok_or_else(invalid)
        }
        Some(Some(_)) => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600_000;

    #[test]
    fn clocks_are_corrected_beyond_the_threshold_alone() {
        let at = NOW - 5_000;
        let corrected = |sent_at| ClientClock { sent_at, now: NOW }.corrected(at);
        assert_eq!(corrected(None), at);
        for near in [-60_000, -1, 0, 1, 60_000] {
            assert_eq!(corrected(Some(NOW + near)), at, "{near}");
        }
        assert_eq!(corrected(Some(NOW + 60_001)), at - 60_001, "a fast clock");
        assert_eq!(corrected(Some(NOW - 86_400_000)), at + 86_400_000, "a slow clock");
        let lost = ClientClock { sent_at: Some(10_000), now: NOW };
        assert_eq!(lost.corrected(4_000), NOW - 6_000, "a clock that began in 1970");
        for forged in [i64::MIN, i64::MAX] {
            for at in [i64::MIN, 0, i64::MAX] {
                ClientClock { sent_at: Some(forged), now: NOW }.corrected(at);
            }
        }
    }

    #[test]
    fn times_are_read_as_clients_write_them() {
        for (json, at) in [
            (r#""2026-01-01T00:00:00.123Z""#, Some(NOW + 123)),
            (r#""2026-01-01T01:00:00.123456+01:00""#, Some(NOW + 123)),
            (r#""2026-01-01T00:00:00.5""#, Some(NOW + 500)),
            ("1767225600000", Some(NOW)),
            ("null", None),
            (r#""""#, None),
        ] {
            assert_eq!(parse(Some(json)), Ok(at), "{json}");
        }
        assert_eq!(parse(None), Ok(None));
        for bad in [r#""yesterday""#, "1.5", "{}", "true", r#""2026-13-01T00:00:00""#] {
            let error = parse(Some(bad)).expect_err(bad);
            assert_eq!(error.code, EventErrorCode::TimestampInvalid, "{bad}");
        }
    }
}
