//! Strict reading of query parameters: each is known, given once, and not empty. Pure.
//!
//! A client assumes that a parameter which is not refused has an effect. Ignoring one, because its
//! name is misspelt, it is repeated, or it has no value, would answer a different question.

use super::error::ApiError;
use crate::model::event::{parse_rfc3339, saturating_millis};
use crate::model::suggest::excerpt;
use crate::model::window::{HOUR_MS, Millis};

/// Jaro-Winkler similarity from which a known name is suggested.
const NEAR: f64 = 0.75;
/// The start of the year 9999 in milliseconds, so that every step still ends within the calendar.
/// Its negative bounds the past.
pub(super) const LAST: Millis = 253_370_764_800_000;
/// The last time that RFC 3339 can write, in milliseconds: the end of the year 9999 at the
/// westernmost offset. People write it for "no end", so it is taken, as [`LAST`].
const END: Millis = 253_402_300_799_999 + 24 * HOUR_MS;

/// Parameters that passed the checks of [`QueryParams::read`].
#[derive(Debug, Clone, Copy)]
pub struct QueryParams<'p>(&'p [(String, String)]);

impl<'p> QueryParams<'p> {
    /// Checks that each parameter is known, given once, and not empty.
    ///
    /// # Errors
    /// `parameter_unknown`, which suggests the nearest known name; `parameter_repeated`;
    /// `parameter_empty`.
    pub fn read(given: &'p [(String, String)], known: &[&str]) -> Result<Self, ApiError> {
        for (at, (name, value)) in given.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                return Err(ApiError::bad("parameter_unknown", unknown(name, known)));
            }
            if given[..at].iter().any(|(before, _)| before == name) {
                let list = if matches!(name.as_str(), "agg" | "by") {
                    ", several items separated by commas"
                } else {
                    ""
                };
                let list =
                    if name == "where" { ", several matchers separated by commas" } else { list };
                return Err(ApiError::bad(
                    "parameter_repeated",
                    format!("the parameter {name} is given twice: give it once{list}"),
                ));
            }
            if value.is_empty() {
                return Err(ApiError::bad(
                    "parameter_empty",
                    format!("the parameter {name} has no value: leave it out, or give it one"),
                ));
            }
        }
        Ok(Self(given))
    }

    /// The value of a parameter, if given; never empty.
    pub fn get(self, name: &str) -> Option<&'p str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Parses a time: RFC 3339, or milliseconds since 1970.
    ///
    /// # Errors
    /// `time_invalid` if it is neither, or too far from the present.
    pub fn time(self, name: &str) -> Result<Option<Millis>, ApiError> {
        self.get(name).map(|text| time(name, text)).transpose()
    }

    /// Parses a parameter that takes one of some words.
    ///
    /// # Errors
    /// `code`, with a message that lists the words.
    pub fn word<T: Copy>(
        self,
        name: &str,
        code: &'static str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                Err(ApiError::bad(
                    code,
                    format!("{name} is one of {}, not {:?}", all.join(", "), excerpt(text)),
                ))
            }
        }
    }
}

fn unknown(name: &str, known: &[&str]) -> String {
    // Shortened first: a name may be as long as a whole request head.
    let likeness = |known: &str| strsim::jaro_winkler(&excerpt(name).to_lowercase(), known);
    let nearest = known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .filter(|nearest| likeness(nearest) >= NEAR);
    let advice = match nearest {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None if known.is_empty() => "this route takes none".to_owned(),
        None => format!("there are {}", known.join(", ")),
    };
    format!("there is no parameter {:?}: {advice}", excerpt(name))
}

fn time(name: &str, text: &str) -> Result<Millis, ApiError> {
    let invalid =
        |why: &str| ApiError::bad("time_invalid", format!("{name} {why}; not {:?}", excerpt(text)));
    let parsed = saturating_millis(text).or_else(|| parse_rfc3339(text).ok());
    let time = parsed.ok_or_else(|| {
        invalid("is a time such as 2026-01-01T10:00:00Z, or milliseconds since 1970")
    })?;
    if !(-END..=END).contains(&time) {
        return Err(invalid("is a time up to the year 9999, a number is in milliseconds"));
    }
    // No event is there, and the answer repeats the range that it is for.
    Ok(time.clamp(-LAST, LAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["metric", "from", "where", "agg"];
    const KNOWN_TIMES: &[&str] = &["from", "to"];

    fn owned(params: &[(&str, &str)]) -> Vec<(String, String)> {
        params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn refusal(params: &[(&str, &str)]) -> ApiError {
        QueryParams::read(&owned(params), KNOWN).map(|_| ()).expect_err("refused")
    }

    #[test]
    fn a_parameter_is_known_given_once_and_not_empty() {
        let given = owned(&[("metric", "m"), ("agg", "count")]);
        let params = QueryParams::read(&given, KNOWN).expect("good");
        assert_eq!((params.get("metric"), params.get("from")), (Some("m"), None));
        for (params, code) in [
            (&[("metric", "a"), ("metric", "a")][..], "parameter_repeated"),
            (
                &[("where", "{a=\"b\"}"), ("agg", "sum"), ("where", "{c=\"d\"}")],
                "parameter_repeated",
            ),
            (&[("agg", "")], "parameter_empty"),
            (&[("agg", ""), ("agg", "sum")], "parameter_empty"),
            (&[("", "x")], "parameter_unknown"),
            (&[("tenant", "x")], "parameter_unknown"),
        ] {
            assert_eq!(refusal(params).code, code, "{params:?}");
        }
    }

    #[test]
    fn the_nearest_name_is_suggested_and_none_that_is_far() {
        for (name, nearest) in
            [("Metric", "metric"), ("form", "from"), ("aggs", "agg"), ("were", "where")]
        {
            let message = refusal(&[(name, "x")]).message;
            assert!(message.ends_with(&format!("did you mean {nearest:?}?")), "{name}: {message}");
        }
        let message = refusal(&[("zzz", "x")]).message;
        assert!(message.ends_with("there are metric, from, where, agg"), "{message}");
        let message =
            QueryParams::read(&owned(&[("a", "x")]), &[]).map(|_| ()).expect_err("refused").message;
        assert!(message.ends_with("this route takes none"), "{message}");
        assert!(
            refusal(&[(&"x".repeat(60_000), "x")]).message.len() < 300,
            "an answer does not repeat a whole request"
        );
    }

    #[test]
    fn times_are_text_or_milliseconds() {
        let of = |text: &str| {
            QueryParams::read(&owned(&[("from", text)]), KNOWN).and_then(|p| p.time("from"))
        };
        assert_eq!(of("1767225600000"), Ok(Some(1_767_225_600_000)));
        assert_eq!(of("2026-01-01T01:00:00+01:00"), Ok(Some(1_767_225_600_000)));
        for fraction in ["", ".0", ".000999999", ".0009999999999", ".00000000000000000000000001"] {
            let text = format!("2026-01-01T00:00:00{fraction}Z");
            assert_eq!(of(&text), Ok(Some(1_767_225_600_000)), "{text}");
        }
        assert_eq!(of("2026-01-01T00:00:00.1239999999999+00:00"), Ok(Some(1_767_225_600_123)));
        assert_eq!(of("1969-12-31T23:59:59.9999999999Z"), Ok(Some(-1)), "down, as in events");
        for bad in ["2026-01-01", "now", "1e12", "10000-01-01T00:00:00Z"] {
            let error = of(bad).expect_err(bad);
            assert!(error.code == "time_invalid" && error.message.contains("such as"), "{bad}");
        }
    }

    #[test]
    fn the_end_of_the_calendar_is_a_time_and_what_is_beyond_it_is_called_too_far() {
        let of = |text: &str| {
            QueryParams::read(&owned(&[("to", text)]), KNOWN_TIMES).and_then(|p| p.time("to"))
        };
        for end in [
            "9999-01-01T00:00:00Z",
            "9999-12-30T22:00:01Z",
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59.999999999-23:59",
            "253402300799999",
        ] {
            assert_eq!(of(end), Ok(Some(LAST)), "{end}");
        }
        assert_eq!(of("0000-01-01T00:00:00Z"), Ok(Some(-62_167_219_200_000)));
        for far in ["9999999999999999", "-9999999999999999", "18446744073709551616"] {
            let error = of(far).expect_err(far);
            assert!(
                error.code == "time_invalid" && error.message.contains("milliseconds"),
                "{far}: {}",
                error.message
            );
        }
    }
}
