//! The buckets of an answer, including those without data.

use anyhow::{Context, bail};
use jiff::tz::TimeZone;

use crate::api::query::QueryAnswer;

/// Most buckets that are drawn, a hundred years of hours. An answer with more contradicts itself.
const MAX_WINDOWS: usize = 900_000;

/// Width of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Hour,
    QuarterDay,
    Day,
    Week,
    Month,
    All,
}

impl Step {
    fn parse(text: &str) -> anyhow::Result<Self> {
        Ok(match text {
            "1h" => Self::Hour,
            "6h" => Self::QuarterDay,
            "1d" => Self::Day,
            "1w" => Self::Week,
            "1mo" => Self::Month,
            "all" => Self::All,
            other => bail!(
                "the server answered with the step {other:?}, which this version cannot draw: use \
                 another --output, or the version of the server"
            ),
        })
    }
}

/// The buckets between start and end of an answer, including those without data.
pub(super) struct AnswerWindows {
    from: jiff::ZonedDateTime,
    step: Step,
    pub(super) count: usize,
}

fn parse_time(text: &str) -> anyhow::Result<jiff::Timestamp> {
    text.parse().with_context(|| format!("the server sent the time {text:?}, which is none"))
}

impl AnswerWindows {
    /// Fails if a time or the step of the answer cannot be read.
    pub(super) fn of(answer: &QueryAnswer, tz: TimeZone) -> anyhow::Result<Self> {
        let time = |text: &str| parse_time(text).map(|at| at.to_zoned_datetime(tz.clone()));
        let (from, to) = (time(&answer.from)?, time(&answer.to)?);
        let mut windows = Self { from, step: Step::parse(&answer.step)?, count: 0 };
        // The end is exclusive, so the last bucket contains the millisecond before it.
        let last = to.checked_sub(jiff::Span::new().milliseconds(1))?;
        windows.count = windows.at(&last).map_or(0, |last| last.saturating_add(1));
        if windows.count > MAX_WINDOWS {
            bail!("the server answered with {} steps, more than can be drawn", windows.count);
        }
        Ok(windows)
    }

    /// The index of the bucket that contains a time of the answer. Fails if it is no time of it.
    pub(super) fn index(&self, text: &str) -> anyhow::Result<usize> {
        let time = parse_time(text)?.to_zoned_datetime(self.from.time_zone().clone());
        let at = self.at(&time).filter(|at| *at < self.count);
        at.with_context(|| format!("the server sent a figure for {text}, outside of its answer"))
    }

    /// The index of the bucket that contains a time; `None` before the first. Days are counted by
    /// the calendar, because they may have 23 or 25 hours.
    fn at(&self, time: &jiff::ZonedDateTime) -> Option<usize> {
        let hours = (time.timestamp().as_millisecond() - self.from.timestamp().as_millisecond())
            .div_euclid(3_600_000);
        let days = || i64::from((time.date() - self.from.date()).get_days());
        let quarters = |time: &jiff::ZonedDateTime| i64::from(time.hour()) / 6;
        let number = match self.step {
            Step::Hour => hours,
            Step::QuarterDay => days() * 4 + quarters(time) - quarters(&self.from),
            Step::Day => days(),
            Step::Week => days().div_euclid(7),
            Step::Month => {
                let months =
                    |date: jiff::civil::Date| i64::from(date.year()) * 12 + i64::from(date.month());
                months(time.date()) - months(self.from.date())
            }
            Step::All => 0,
        };
        usize::try_from(number).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::completeness::Completeness;

    fn windows(step: &str, from: &str, to: &str, tz: &str) -> AnswerWindows {
        read(step, from, to, tz).expect("windows")
    }

    fn read(step: &str, from: &str, to: &str, tz: &str) -> anyhow::Result<AnswerWindows> {
        let completeness = Completeness {
            partial: false,
            shards: 1,
            missing: Vec::new(),
            more: 0,
            overflow: None,
            generations: Vec::new(),
            more_generations: 0,
            as_of: None,
        };
        let (metric, step, from, to) =
            ("m".to_owned(), step.to_owned(), from.to_owned(), to.to_owned());
        let answer = QueryAnswer { metric, step, from, to, series: Vec::new(), completeness };
        AnswerWindows::of(&answer, TimeZone::get(tz).expect("a zone"))
    }

    #[test]
    fn windows_are_counted_by_the_calendar() {
        let days = windows("1d", "2026-03-27T23:00:00Z", "2026-03-30T22:00:00Z", "Europe/Berlin");
        assert_eq!(
            (days.count, days.index("2026-03-29T22:00:00Z").expect("a window")),
            (3, 2),
            "the 29th has 23 hours"
        );
        let quarters =
            windows("6h", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "Europe/Berlin");
        assert_eq!((quarters.count, quarters.index("2026-03-29T04:00:00Z").expect("one")), (4, 1));
        assert_eq!(
            windows("1h", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "Europe/Berlin").count,
            23
        );
        let months = windows("1mo", "2025-11-01T00:00:00Z", "2026-03-01T00:00:00Z", "UTC");
        assert_eq!((months.count, months.index("2026-02-01T00:00:00Z").expect("one")), (4, 3));
        assert_eq!(windows("1w", "2026-01-05T00:00:00Z", "2026-01-26T00:00:00Z", "UTC").count, 3);
        assert_eq!(windows("all", "2026-01-05T03:00:00Z", "2026-01-26T00:00:00Z", "UTC").count, 1);
    }

    #[test]
    fn what_an_answer_says_and_nobody_can_read_is_named() {
        let (from, to) = ("2026-01-05T00:00:00Z", "2026-01-06T00:00:00Z");
        for (step, from, to, says) in [
            ("2h", from, to, "the step \"2h\""),
            ("1h", "yesterday", to, "the time \"yesterday\""),
            ("1h", from, "", "the time \"\""),
            ("1h", "0001-01-01T00:00:00Z", "9999-12-01T00:00:00Z", "steps, more than"),
        ] {
            let why = read(step, from, to, "UTC").err().expect("refused").to_string();
            assert!(why.contains(says), "{why}");
        }
        let hours = windows("1h", from, to, "UTC");
        for outside in ["2026-01-04T23:59:00Z", to, "now"] {
            let why = hours.index(outside).expect_err("refused").to_string();
            assert!(why.contains(outside), "{why}");
        }
    }
}
