//! Events as clients send them, and the codes with which they are refused.

use std::borrow::Cow;

use jiff::civil::DateTime;
use jiff::fmt::temporal::Pieces;

use super::series::OVERFLOW_LABEL;
use super::suggest::excerpt;

/// Why an event is refused. The names are part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventErrorCode {
    /// Not an event: neither JSON nor MessagePack, no object, an unknown field, or a field given
    /// twice.
    EventUnreadable,
    /// The metric is missing or not a valid name.
    MetricInvalid,
    /// The labels break a rule or a limit.
    LabelsInvalid,
    /// The value is not a finite decimal number.
    ValueInvalid,
    /// The value is beyond ±10^18.
    ValueOutOfRange,
    /// The timestamp is neither RFC 3339 nor integer milliseconds.
    TimestampInvalid,
    /// The timestamp is later than now + `accept.max_ahead`.
    TimestampInFuture,
    /// The timestamp is earlier than now − `accept.max_age`.
    TimestampTooOld,
    /// The event has more bytes than `accept.max_event_bytes`.
    EventTooLarge,
    /// The id is not a string of 1 to 128 bytes.
    IdInvalid,
    /// The user is not a string of at most 256 bytes.
    UserInvalid,
}

impl EventErrorCode {
    /// Every code.
    pub const ALL: [Self; 11] = [
        Self::EventUnreadable,
        Self::MetricInvalid,
        Self::LabelsInvalid,
        Self::ValueInvalid,
        Self::ValueOutOfRange,
        Self::TimestampInvalid,
        Self::TimestampInFuture,
        Self::TimestampTooOld,
        Self::EventTooLarge,
        Self::IdInvalid,
        Self::UserInvalid,
    ];

    /// The code's name in answers and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::EventUnreadable => "event_unreadable",
            Self::MetricInvalid => "metric_invalid",
            Self::LabelsInvalid => "labels_invalid",
            Self::ValueInvalid => "value_invalid",
            Self::ValueOutOfRange => "value_out_of_range",
            Self::TimestampInvalid => "timestamp_invalid",
            Self::TimestampInFuture => "timestamp_in_future",
            Self::TimestampTooOld => "timestamp_too_old",
            Self::EventTooLarge => "event_too_large",
            Self::IdInvalid => "id_invalid",
            Self::UserInvalid => "user_invalid",
        }
    }

    /// What it means, for people.
    pub fn means(self) -> &'static str {
        match self {
            Self::EventUnreadable => {
                "It is no event: no JSON or MessagePack, no object, an unknown field, a field \
                    twice, properties too deep."
            }
            Self::MetricInvalid => "There is no metric, or its name is not valid.",
            Self::LabelsInvalid => "The labels break a rule or a limit.",
            Self::ValueInvalid => "The value is not a finite decimal number.",
            Self::ValueOutOfRange => "The value is beyond ±10^18.",
            Self::TimestampInvalid => {
                "The timestamp is neither RFC 3339 nor milliseconds since 1970."
            }
            Self::TimestampInFuture => "The timestamp is later than now + `accept.max_ahead`.",
            Self::TimestampTooOld => "The timestamp is earlier than now − `accept.max_age`.",
            Self::EventTooLarge => "The event has more bytes than `accept.max_event_bytes`.",
            Self::IdInvalid => "The id is not a string of 1 to 128 bytes.",
            Self::UserInvalid => "The user is not a string of at most 256 bytes.",
        }
    }
}

/// The accepted range of timestamps around now: `accept.max_age` and `accept.max_ahead`.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct EventLimits {
    pub max_age_ms: i64,
    pub max_ahead_ms: i64,
}

/// Longest metric name, in bytes.
pub const MAX_METRIC_BYTES: usize = 128;
/// Most labels of one event.
pub const MAX_LABELS: usize = 16;
/// Longest label name, in bytes.
pub const MAX_LABEL_NAME_BYTES: usize = 64;
/// Longest label value, in bytes.
pub const MAX_LABEL_VALUE_BYTES: usize = 256;
/// Longest user, in bytes.
pub const MAX_USER_BYTES: usize = 256;
/// Longest event id, in bytes.
pub const MAX_ID_BYTES: usize = 128;
/// Deepest nesting of `properties`, because readers of the archive may recurse.
pub const MAX_PROPERTIES_DEPTH: usize = 64;

/// Why one event is refused.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct EventError {
    pub code: EventErrorCode,
    /// For the client: what is wrong and how to fix it.
    pub message: String,
}

impl EventError {
    /// An error with a code of the API and a message for the client.
    pub fn new(code: EventErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Checks a metric name: `[a-zA-Z_:][a-zA-Z0-9_:.-]*`, at most 128 bytes. Anything else is
/// `metric_invalid`.
pub fn check_metric(metric: &str) -> Result<(), EventError> {
    let first = |b: u8| b.is_ascii_alphabetic() || matches!(b, b'_' | b':');
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'.' | b'-');
    let bytes = metric.as_bytes();
    let valid = bytes.len() <= MAX_METRIC_BYTES
        && bytes.first().is_some_and(|&b| first(b))
        && bytes.iter().all(|&b| rest(b));
    if valid {
        return Ok(());
    }
    Err(EventError::new(
        EventErrorCode::MetricInvalid,
        format!(
            "a metric is 1 to {MAX_METRIC_BYTES} bytes of letters, digits and _ : . - and does \
             not begin with a digit, . or -"
        ),
    ))
}

/// Checks the name and the value of one label. Names that begin with `__` are reserved. A broken
/// rule or length limit is `labels_invalid`.
pub fn check_label(name: &str, value: &str) -> Result<(), EventError> {
    let bad = |message: String| Err(EventError::new(EventErrorCode::LabelsInvalid, message));
    let first = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    let rest = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = name.as_bytes();
    let well_formed = bytes.first().is_some_and(|&b| first(b)) && bytes.iter().all(|&b| rest(b));
    if !well_formed || bytes.len() > MAX_LABEL_NAME_BYTES {
        return bad(format!(
            "a label name is 1 to {MAX_LABEL_NAME_BYTES} letters, digits and _, not beginning \
             with a digit"
        ));
    }
    if name.starts_with("__") {
        return bad(format!("the label {name} begins with __, which is reserved"));
    }
    if value.len() > MAX_LABEL_VALUE_BYTES {
        return bad(format!(
            "the value of label {name} has {} bytes, at most {MAX_LABEL_VALUE_BYTES}",
            value.len()
        ));
    }
    // Labels end up in terminals, where an escape sequence would take effect.
    if value.chars().any(char::is_control) {
        return bad(format!("the value of label {name} holds a control character"));
    }
    Ok(())
}

/// Checks a name that a series can have: that of a valid label, or of the label of the overflow
/// series. The error repeats the name.
pub fn check_label_name(name: &str) -> Result<(), String> {
    if name == OVERFLOW_LABEL.0 {
        return Ok(());
    }
    check_label(name, "").map_err(|why| format!("{:?} is no label: {}", excerpt(name), why.message))
}

/// Checks the number of labels of an event, without empty ones. Beyond [`MAX_LABELS`] it is
/// `labels_invalid`.
pub fn check_label_count(count: usize) -> Result<(), EventError> {
    if count <= MAX_LABELS {
        return Ok(());
    }
    Err(EventError::new(EventErrorCode::LabelsInvalid, format!("more than {MAX_LABELS} labels")))
}

/// Checks a user, which may be empty. Beyond [`MAX_USER_BYTES`] it is `user_invalid`.
pub fn check_user(user: &str) -> Result<(), EventError> {
    if user.len() <= MAX_USER_BYTES {
        return Ok(());
    }
    Err(EventError::new(
        EventErrorCode::UserInvalid,
        format!("a user is a string of at most {MAX_USER_BYTES} bytes"),
    ))
}

/// Checks an event id. An empty one, or one beyond [`MAX_ID_BYTES`], is `id_invalid`.
pub fn check_id(id: &str) -> Result<(), EventError> {
    if (1..=MAX_ID_BYTES).contains(&id.len()) {
        return Ok(());
    }
    Err(EventError::new(
        EventErrorCode::IdInvalid,
        format!("an id is a string of 1 to {MAX_ID_BYTES} bytes"),
    ))
}

/// Checks that a timestamp is within the accepted range around `now`. Others are
/// `timestamp_in_future` or `timestamp_too_old`.
pub fn check_timestamp(at: i64, now: i64, limits: &EventLimits) -> Result<(), EventError> {
    if at > now.saturating_add(limits.max_ahead_ms) {
        let message = format!(
            "{at} ms is later than now by more than accept.max_ahead ({} ms); is it in \
             milliseconds?",
            limits.max_ahead_ms
        );
        return Err(EventError::new(EventErrorCode::TimestampInFuture, message));
    }
    if at < now.saturating_sub(limits.max_age_ms) {
        let message = format!(
            "{at} ms is older than accept.max_age ({} ms); is it in milliseconds?",
            limits.max_age_ms
        );
        return Err(EventError::new(EventErrorCode::TimestampTooOld, message));
    }
    Ok(())
}

/// Parses RFC 3339 text into milliseconds, rounding down. A text without a zone, or in any
/// other form, is `timestamp_invalid`. Every time of the years up to 9999 is one, whatever its
/// offset: how far away it may be is for the caller to say.
pub fn parse_rfc3339(text: &str) -> Result<i64, EventError> {
    let bad = || {
        EventError::new(
            EventErrorCode::TimestampInvalid,
            "a timestamp is RFC 3339 with a zone, or integer milliseconds",
        )
    };
    // Not `jiff::Timestamp`, which ends a day before the year 9999 does.
    let text = nine_digits(text);
    let pieces = Pieces::parse(&*text).map_err(|_| bad())?;
    let (Some(time), Some(offset)) = (pieces.time(), pieces.to_numeric_offset()) else {
        return Err(bad());
    };
    // RFC 3339 has 23 hours at most; `jiff` allows 25.
    if offset.seconds().abs() >= 86_400 {
        return Err(bad());
    }
    Ok(millis_of(pieces.date().to_datetime(time), offset.seconds()))
}

/// Milliseconds since 1970 of a local time at an offset from UTC in seconds, rounded down. Total:
/// also for times that no `jiff::Timestamp` holds.
pub fn millis_of(local: DateTime, offset: i32) -> i64 {
    const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    // Euclidean, so that times before 1970 are rounded down as well.
    let millis = local.duration_since(EPOCH).as_nanos().div_euclid(1_000_000) as i64;
    millis - i64::from(offset) * 1_000
}

/// An integer of decimal digits, with or without a sign. One that 64 bits cannot hold becomes the
/// nearest that they can: as a time it lies as much beyond every limit. `None` for other text.
pub fn saturating_millis(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let beyond = if digits.len() < text.len() { i64::MIN } else { i64::MAX };
    Some(text.parse().unwrap_or(beyond))
}

/// Truncates the fraction to nine digits: RFC 3339 allows any number of them, `jiff` does not.
fn nine_digits(text: &str) -> Cow<'_, str> {
    let Some((whole, rest)) = text.split_once('.') else { return text.into() };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits <= 9 {
        text.into()
    } else {
        format!("{whole}.{}{}", &rest[..9], &rest[digits..]).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_obey_the_rules() {
        for good in ["a", "_x", ":y", "http.requests-total", &"m".repeat(128)] {
            assert_eq!(check_metric(good), Ok(()), "{good}");
        }
        for bad in ["", "1a", ".a", "a b", "ä", "a\n", &"m".repeat(129)] {
            assert_eq!(check_metric(bad).unwrap_err().code, EventErrorCode::MetricInvalid, "{bad}");
        }
        assert_eq!(check_label("page", "/home"), Ok(()));
        for (name, value) in [
            ("__name", "x"),
            ("1", "x"),
            ("", "x"),
            ("a-b", "x"),
            ("a", "x\r\n"),
            ("a", "\u{1b}[31m"),
        ] {
            assert!(check_label(name, value).is_err(), "{name:?}={value:?}");
        }
        assert!(check_label("a", &"v".repeat(257)).is_err());
        assert!(
            check_id("").is_err() && check_id(&"i".repeat(129)).is_err() && check_id("i").is_ok()
        );
        assert!(check_user(&"u".repeat(257)).is_err() && check_user("").is_ok());
    }

    #[test]
    fn times_outside_the_range_are_refused() {
        let limits = EventLimits { max_age_ms: 365 * 86_400_000, max_ahead_ms: 600_000 };
        let now = 1_767_225_600_000;
        assert_eq!(check_timestamp(now + limits.max_ahead_ms, now, &limits), Ok(()));
        assert_eq!(check_timestamp(now - limits.max_age_ms, now, &limits), Ok(()));
        assert_eq!(
            check_timestamp(now * 1_000_000, now, &limits).unwrap_err().code,
            EventErrorCode::TimestampInFuture
        );
        for old in [i64::MIN, -1, 0, now / 1000] {
            assert_eq!(
                check_timestamp(old, now, &limits).unwrap_err().code,
                EventErrorCode::TimestampTooOld
            );
        }
        assert_eq!(parse_rfc3339("2026-01-01T00:00:00.1239Z"), Ok(now + 123));
        assert_eq!(parse_rfc3339("2026-01-01T01:00:00+01:00"), Ok(now));
        assert_eq!(parse_rfc3339("2026-01-01T23:00:00+23:00"), Ok(now));
        assert_eq!(parse_rfc3339("2025-12-31T00:00:00-24:00").ok(), None);
        assert_eq!(parse_rfc3339("2025-12-31T00:00:00Z"), Ok(now - 86_400_000));
        assert!(parse_rfc3339("2026-01-01T00:00:00+24:00").is_err());
        assert!(parse_rfc3339("2026-01-01T00:00:00-25:00").is_err());
        for digits in [1, 9, 10, 30, 5_000] {
            let time = format!("2026-01-01T00:00:00.{}Z", "9".repeat(digits));
            assert_eq!(
                parse_rfc3339(&time),
                Ok(now + if digits < 3 { 900 } else { 999 }),
                "{digits} digits"
            );
        }
        assert_eq!(parse_rfc3339("1969-12-31T23:59:59.99999999999-00:00"), Ok(-1));
        assert!(
            parse_rfc3339("2026-01-01T00:00:00.Z").is_err()
                && parse_rfc3339("2026-01-01T00:00:00.1234567891").is_err()
        );
        assert!(parse_rfc3339("2026-01-01").is_err() && parse_rfc3339("yesterday").is_err());
    }

    #[test]
    fn every_time_of_the_calendar_is_one() {
        const END: i64 = 253_402_300_799_000;
        for (text, millis) in [
            ("9999-12-30T22:00:00Z", END - 93_599_000),
            ("9999-12-30T22:00:01Z", END - 93_598_000),
            ("9999-12-31T23:59:59Z", END),
            ("9999-12-31T23:59:59.999999999999Z", END + 999),
            ("9999-12-31T23:59:60Z", END),
            ("9999-12-31T23:59:59-23:59", END + 86_340_000),
            ("9999-12-31T23:59:59+23:59", END - 86_340_000),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000),
            ("0000-01-01T00:00:00+23:59", -62_167_219_200_000 - 86_340_000),
            ("0001-01-01t00:00:00.0009z", -62_135_596_800_000),
        ] {
            assert_eq!(parse_rfc3339(text), Ok(millis), "{text}");
        }
        for text in ["10000-01-01T00:00:00Z", "9999-12-32T00:00:00Z", "9999-12-31T24:00:00Z"] {
            assert!(parse_rfc3339(text).is_err(), "{text}");
        }
    }

    #[test]
    fn integers_of_any_length_are_milliseconds() {
        for (text, millis) in [
            ("0", Some(0)),
            ("-17", Some(-17)),
            ("9223372036854775808", Some(i64::MAX)),
            ("-99999999999999999999999999999999999999999999", Some(i64::MIN)),
            ("", None),
            ("-", None),
            ("+1", None),
            ("1e3", None),
            ("1.0", None),
            ("--1", None),
        ] {
            assert_eq!(saturating_millis(text), millis, "{text}");
        }
    }
}
