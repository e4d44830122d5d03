//! Times and steps as clients of Prometheus write them.

use promql_parser::util::parse_duration;

use super::PromqlError;
use super::grid::hours_of;
use super::scan::check_duration;
use crate::model::event::parse_rfc3339;
use crate::model::suggest::excerpt;
use crate::model::window::{HOUR_MS, Millis};

/// The start of the year 9999 in seconds; its negative bounds the past.
const LAST_SECONDS: f64 = 253_370_764_800.0;

/// Reads a time: RFC 3339, or seconds since 1970 with a fraction.
///
/// # Errors
/// If it is neither, or is beyond the year 9999.
pub fn parse_time(text: &str) -> Result<Millis, PromqlError> {
    if let Ok(seconds) = text.parse::<f64>() {
        if seconds.is_nan() || seconds.abs() > LAST_SECONDS {
            return Err(PromqlError::Syntax(format!(
                "the time {:?} is beyond the year 9999: a number is in seconds since 1970",
                excerpt(text)
            )));
        }
        return Ok((seconds * 1e3).round() as Millis);
    }
    parse_rfc3339(text).map_err(|_| {
        PromqlError::Syntax(format!(
            "{:?} is no time: write 2026-01-01T10:00:00Z, or seconds since 1970",
            excerpt(text)
        ))
    })
}

/// The whole hour at or before a time, in hours since 1970.
pub fn hour_at_or_before(time: Millis) -> i64 {
    time.div_euclid(HOUR_MS)
}

/// Reads a step: seconds, or a duration as `1h`.
///
/// # Errors
/// If it is neither, or no whole number of hours.
pub fn parse_step(text: &str) -> Result<i64, PromqlError> {
    let invalid = || {
        PromqlError::Syntax(format!(
            "{:?} is no step: write a duration as 1h, or seconds",
            excerpt(text)
        ))
    };
    let millis = match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= LAST_SECONDS => (seconds * 1e3).round() as u128,
        Ok(_) => return Err(invalid()),
        Err(_) => {
            check_duration(text)?;
            parse_duration(text).map_err(|_| invalid())?.as_millis()
        }
    };
    let hours = hours_of(millis, "a step").map_err(|error| match error {
        PromqlError::Unsupported(why) => PromqlError::Unsupported(format!(
            "{why}; in Grafana, set the data source's scrape interval (the least step) to 1h"
        )),
        other => other,
    })?;
    if hours > 0 { Ok(hours) } else { Err(invalid()) }
}
