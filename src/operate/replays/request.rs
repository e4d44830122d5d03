//! Checks of what somebody wants to be replayed. Pure.

use std::sync::Arc;

use crate::api::replays::StartReplay;
use crate::api::timestamp;
use crate::model::event::{check_metric, parse_rfc3339, saturating_millis};
use crate::model::generation::DayRange;
use crate::model::manifest::ArchiveFloor;
use crate::model::offset::ShardId;
use crate::model::suggest::excerpt;
use crate::model::window::Millis;
use crate::operate::service::OperateError;
use crate::rules::{RuleSet, RulesFormat};

/// Most metrics of one replay. Their ranges are part of every set that shards adopt.
const MAX_METRICS: usize = 100;
/// Milliseconds of a UTC day.
const DAY_MS: Millis = 86_400_000;

/// A request that was checked, as far as that can be done without the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheckedRequest {
    pub metrics: Vec<String>,
    pub days: DayRange,
    /// Canonical.
    pub rules: Arc<str>,
}

impl CheckedRequest {
    /// Checks metrics, days and rules. Fails with a sentence that says what to send instead.
    pub(super) fn new(request: &StartReplay) -> Result<Self, OperateError> {
        let mut metrics = request.metrics.clone();
        metrics.sort_unstable();
        metrics.dedup();
        if metrics.is_empty() || metrics.len() > MAX_METRICS {
            let message = format!("a replay has 1 to {MAX_METRICS} metrics");
            return Err(OperateError::ReplayInvalid(message));
        }
        // Before a store is asked for it, which may not even be able to look.
        for metric in &metrics {
            check_metric(metric).map_err(|why| {
                let message = format!("{:?} is no metric: {}", excerpt(metric), why.message);
                OperateError::ReplayInvalid(message)
            })?;
        }
        let from = day("from", &request.from)?;
        let to = request.to.as_deref().map(|to| day("to", to)).transpose()?;
        let days = DayRange::new(from, to).ok_or_else(|| {
            OperateError::ReplayInvalid("from is not before to: there is no day".to_owned())
        })?;
        Ok(Self { metrics, days, rules: rules(request)? })
    }
}

fn rules(request: &StartReplay) -> Result<Arc<str>, OperateError> {
    let Some(rules) = &request.rules else {
        return Ok(RuleSet::default().canonical_json().into());
    };
    let parsed = RuleSet::parse(rules.get(), RulesFormat::Json).map_err(|mistakes| {
        let listed = mistakes.listed.iter().map(|mistake| format!("line {mistake}"));
        let more = (mistakes.hidden > 0).then(|| format!("and {} more", mistakes.hidden));
        let all: Vec<String> = listed.chain(more).collect();
        OperateError::RulesInvalid(format!("{mistakes}: {}", all.join("; ")))
    })?;
    Ok(parsed.canonical_json().into())
}

/// A UTC day. A time within a day is refused: a rule that is meant for an hour would change all of
/// the day.
fn day(name: &str, text: &str) -> Result<i32, OperateError> {
    let invalid = |message: String| OperateError::ReplayInvalid(message);
    let date = format!("{text}T00:00:00Z");
    let parsed = saturating_millis(text)
        .or_else(|| parse_rfc3339(text).ok())
        .or_else(|| parse_rfc3339(&date).ok());
    let at = parsed.filter(|at| timestamp(*at).is_some()).ok_or_else(|| {
        invalid(format!("{name}: send a day of UTC, such as 2026-01-31 or 2026-01-31T00:00:00Z"))
    })?;
    let number = i32::try_from(at.div_euclid(DAY_MS)).ok();
    match (number, at.rem_euclid(DAY_MS)) {
        (Some(day), 0) => Ok(day),
        (number, _) => {
            let day = number.unwrap_or_default();
            Err(invalid(format!(
                "{name}: a replay covers whole days of UTC: send {} or {}, and put a finer time \
                 in the conditions of the rules",
                day_text(day),
                day_text(day.saturating_add(1))
            )))
        }
    }
}

/// A day as people write it, such as 2026-01-31.
pub(super) fn day_text(day: i32) -> String {
    timestamp(i64::from(day) * DAY_MS)
        .map_or_else(|| format!("day {day}"), |at| at.strftime("%Y-%m-%d").to_string())
}

/// The first day whose records are all in the archive of every shard; `None` if nothing has
/// expired.
pub(super) fn first_whole_day(floors: &[(ShardId, ArchiveFloor)]) -> Option<i32> {
    floors.iter().map(|(_, floor)| floor.first_whole_day()).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::window::Hour;

    fn request(from: &str, to: Option<&str>) -> StartReplay {
        let to = to.map(str::to_owned);
        StartReplay { metrics: vec!["m".to_owned()], from: from.to_owned(), to, rules: None }
    }

    fn refused(request: &StartReplay) -> String {
        CheckedRequest::new(request).expect_err("refused").to_string()
    }

    #[test]
    fn days_are_whole_days_of_utc() {
        for from in ["1970-01-03", "1970-01-03T00:00:00Z", "172800000", "1970-01-03T01:00:00+01:00"]
        {
            let checked = CheckedRequest::new(&request(from, None)).expect(from);
            assert_eq!(checked.days, DayRange::new(2, None).expect("open"), "{from}");
        }
        let within = refused(&request("1970-01-03T05:00:00Z", None));
        assert!(within.contains("send 1970-01-03 or 1970-01-04"), "{within}");
        for wrong in ["", "yesterday", "-7d", "99999999999999999999"] {
            assert!(refused(&request(wrong, None)).contains("2026-01-31"), "{wrong}");
        }
        assert!(refused(&request("1970-01-03", Some("1970-01-03"))).contains("no day"));
    }

    #[test]
    fn metrics_are_names_that_an_event_can_have() {
        for metric in ["", "a b", "m\0", "1"] {
            let asked =
                StartReplay { metrics: vec![metric.to_owned()], ..request("1970-01-03", None) };
            assert!(refused(&asked).contains("a metric is 1 to 128 bytes"), "{metric:?}");
        }
    }

    #[test]
    fn rules_are_checked_and_stored_in_their_canonical_form() {
        let with = |rules: &str| {
            let rules = serde_json::value::RawValue::from_string(rules.to_owned()).expect("JSON");
            StartReplay { rules: Some(rules), ..request("1970-01-03", None) }
        };
        let checked = CheckedRequest::new(&with(r#"{ "rule": [{"drop": true, "name": "x"}]}"#));
        assert_eq!(&*checked.expect("valid").rules, r#"{"rule":[{"name":"x","drop":true}]}"#);
        let wrong = refused(&with(r#"{"rule": [{"name": "x", "dropp": true}]}"#));
        assert!(wrong.contains("mistake") && wrong.contains("drop"), "{wrong}");
        let none = CheckedRequest::new(&request("1970-01-03", None)).expect("valid");
        assert_eq!(RuleSet::parse(&none.rules, RulesFormat::Json), Ok(RuleSet::default()));
        let many = (0..101).map(|n| format!("m{n}")).collect();
        assert!(refused(&StartReplay { metrics: many, ..request("0", None) }).contains("100"));
    }

    #[test]
    fn a_day_is_whole_if_nothing_that_touched_it_has_expired() {
        let floor = |hour| (ShardId(0), ArchiveFloor { offset: 1, appended: 0, hour: Hour(hour) });
        assert_eq!(first_whole_day(&[]), None);
        assert_eq!(first_whole_day(&[floor(48)]), Some(2));
        assert_eq!(first_whole_day(&[floor(24), floor(49)]), Some(3));
    }
}
