//! The times at which an expression is evaluated: whole hours since the Unix epoch.

use super::PromqlError;

/// Most times of one evaluation, as in Prometheus.
pub const MAX_STEPS: usize = 11_000;

/// Evenly spaced times, in hours.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub start: i64,
    /// At least 1.
    pub step: i64,
    pub count: usize,
}

impl Grid {
    /// One time.
    pub fn at(hour: i64) -> Self {
        Self { start: hour, step: 1, count: 1 }
    }

    /// From `start` to `end`, both inclusive.
    ///
    /// # Errors
    /// If there are more than [`MAX_STEPS`] times; the message says what to do.
    pub fn range(start: i64, end: i64, step: i64) -> Result<Self, PromqlError> {
        let count = usize::try_from((end - start) / step.max(1) + 1).unwrap_or(usize::MAX);
        if count > MAX_STEPS {
            return Err(PromqlError::Unsupported(format!(
                "{count} times from start to end, at most {MAX_STEPS} are evaluated: ask for a \
                 longer step or a shorter range"
            )));
        }
        Ok(Self { start, step: step.max(1), count })
    }

    /// All times, ascending.
    pub fn times(self) -> impl Iterator<Item = i64> {
        (0..self.count as i64).map(move |at| self.start + at * self.step)
    }

    /// The last time.
    pub fn last(self) -> i64 {
        self.start + (self.count as i64 - 1).max(0) * self.step
    }

    /// The times of a subquery: multiples of `step` behind the first range's start, up to the last
    /// range's end. Ranges are open at their start.
    ///
    /// # Errors
    /// As [`Self::range`].
    pub(super) fn subquery(
        ends: (i64, i64),
        range: i64,
        step: i64,
    ) -> Result<Option<Self>, PromqlError> {
        let start = (ends.0 - range).div_euclid(step) * step + step;
        if start > ends.1 {
            return Ok(None);
        }
        Self::range(start, ends.1, step).map(Some)
    }
}

/// A length of time as whole hours.
///
/// # Errors
/// If it is not a whole number of hours; the message says what to write.
pub fn hours_of(millis: u128, what: &str) -> Result<i64, PromqlError> {
    const HOUR: u128 = 3_600_000;
    let hours = i64::try_from(millis / HOUR).ok().filter(|hours| *hours <= MAX_HOURS);
    match hours {
        Some(hours) if millis.is_multiple_of(HOUR) => Ok(hours),
        Some(hours) => {
            let below = if hours == 0 { String::new() } else { format!("{hours}h or ") };
            Err(PromqlError::Unsupported(format!(
                "{what} of {} s is not a whole number of hours, of which all figures are: write \
                 {below}{}h",
                millis as f64 / 1e3,
                hours + 1
            )))
        }
        None => Err(PromqlError::Unsupported(format!("{what} is longer than {MAX_HOURS} h"))),
    }
}

/// A thousand years: sums of a few such lengths stay far from the ends of the calendar's range.
const MAX_HOURS: i64 = 1_000 * 366 * 24;
