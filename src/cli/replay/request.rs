//! What is to be replayed, as people write it.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use jiff::tz::TimeZone;
use serde_json::json;
use serde_json::value::RawValue;

use super::UsageError;
use crate::api::replays::StartReplay;
use crate::api::timestamp;
use crate::cli::{rules, time_arg};
use crate::clock::Millis;
use crate::rules::{RuleSet, RulesFormat};

const DAY_MS: Millis = 86_400_000;

#[derive(Debug, Args)]
pub(super) struct WhatArgs {
    /// Metric to count again; may be given several times
    #[arg(long)]
    metric: Vec<String>,
    /// First day of UTC: 2026-01-31, or -30d for thirty days ago
    #[arg(long, allow_hyphen_values = true)]
    from: Option<String>,
    /// Exclusive end [default: none, the rules count for events to come, too]
    #[arg(long, allow_hyphen_values = true)]
    to: Option<String>,
    /// File of rules, TOML or JSON [default: no rules]
    #[arg(long, value_name = "FILE", conflicts_with = "set_label")]
    rules: Option<PathBuf>,
    /// Add a label from a property, such as plan=/plan; may be given several times
    #[arg(long, value_name = "LABEL=/PROPERTY")]
    set_label: Vec<LabelSource>,
}

/// A label, and the property that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LabelSource {
    label: String,
    property: String,
}

impl FromStr for LabelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (label, property) = text.split_once('=').unwrap_or((text, ""));
        if label.is_empty() || !property.starts_with('/') {
            return Err(format!(
                "{text:?} is no label from a property: write LABEL=/PROPERTY, such as plan=/plan"
            ));
        }
        Ok(Self { label: label.to_owned(), property: property.to_owned() })
    }
}

impl WhatArgs {
    /// The request. Fails, as wrong usage, if something is missing or the rules have mistakes.
    pub(super) fn request(&self, now: Millis) -> anyhow::Result<StartReplay> {
        let usage = |message: &str| anyhow::Error::from(UsageError(message.to_owned()));
        if self.metric.is_empty() {
            return Err(usage("say what to count again: --metric NAME"));
        }
        let Some(from) = &self.from else {
            return Err(usage("say from which day on: --from 2026-01-31, or --from -30d"));
        };
        let from = day("--from", from, now, 0)?;
        let to = self.to.as_deref().map(|to| day("--to", to, now, DAY_MS - 1)).transpose()?;
        let rules = self.rule_set()?.map(|rules| RawValue::from_string(rules.canonical_json()));
        Ok(StartReplay { metrics: self.metric.clone(), from, to, rules: rules.transpose()? })
    }

    fn rule_set(&self) -> anyhow::Result<Option<RuleSet>> {
        if let Some(file) = &self.rules {
            return rules::load(file).map(Some);
        }
        if self.set_label.is_empty() {
            return Ok(None);
        }
        let rule = |from: &LabelSource| {
            json!({
                "name": format!("label {}", from.label),
                "set_label": { "label": from.label, "property": from.property },
            })
        };
        let rules: Vec<_> = self.set_label.iter().map(rule).collect();
        let text = json!({ "rule": rules }).to_string();
        let parsed = RuleSet::parse(&text, RulesFormat::Json).map_err(|mistakes| {
            let listed: Vec<String> =
                mistakes.listed.iter().map(|mistake| mistake.message.clone()).collect();
            UsageError(format!("--set-label: {}", listed.join("; ")))
        })?;
        Ok(Some(parsed))
    }
}

/// A day for the server. Times that are relative to now are no whole days, and are rounded outward;
/// others are sent as they are, and the server refuses those within a day.
fn day(flag: &str, text: &str, now: Millis, round_up: Millis) -> anyhow::Result<String> {
    let at = time_arg::parse(text, now, &TimeZone::UTC)
        .map_err(|why| UsageError(format!("{flag}: {why}")))?;
    let is_relative = text == "now" || text.starts_with('-');
    let at = match is_relative {
        true => at.saturating_add(round_up).div_euclid(DAY_MS).saturating_mul(DAY_MS),
        false => at,
    };
    let shown = timestamp(at).map(|at| at.to_string());
    shown.ok_or_else(|| UsageError(format!("{flag}: {text} is too far away")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_767_225_600_000 + 5_000;

    fn args(from: &str, to: Option<&str>, labels: &[&str]) -> WhatArgs {
        WhatArgs {
            metric: vec!["m".to_owned()],
            from: Some(from.to_owned()),
            to: to.map(str::to_owned),
            rules: None,
            set_label: labels.iter().map(|label| label.parse().expect(label)).collect(),
        }
    }

    #[test]
    fn ages_are_rounded_to_whole_days_and_times_are_not() {
        let days = |from: &str, to: &str| {
            let request = args(from, Some(to), &[]).request(NOW).expect("a request");
            (request.from, request.to.expect("an end"))
        };
        let expected = ("2025-12-31T00:00:00Z".to_owned(), "2026-01-02T00:00:00Z".to_owned());
        assert_eq!(days("-1d", "now"), expected);
        let exact = ("2026-01-01T00:00:00Z".to_owned(), "2026-01-02T05:00:00Z".to_owned());
        assert_eq!(days("2026-01-01", "2026-01-02T05:00:00Z"), exact);
    }

    #[test]
    fn a_label_from_a_property_is_a_rule() {
        let request = args("-1d", None, &["plan=/plan"]).request(NOW).expect("a request");
        assert_eq!(request.to, None, "for events to come, too");
        let rules = request.rules.expect("rules");
        let expected =
            r#"{"rule":[{"name":"label plan","set_label":{"label":"plan","property":"/plan"}}]}"#;
        assert_eq!(rules.get(), expected);
        for wrong in ["plan", "plan=plan", "=/plan", ""] {
            assert!(wrong.parse::<LabelSource>().is_err(), "{wrong}");
        }
        let mistake = args("-1d", None, &["plan=/~2"]).request(NOW).expect_err("no pointer");
        assert!(mistake.to_string().starts_with("--set-label: "), "{mistake}");
        assert!(args("-1d", None, &[]).request(NOW).expect("a request").rules.is_none());
    }
}
