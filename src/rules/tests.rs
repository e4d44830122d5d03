//! Rules as they are written, and what they do.

mod actions;
mod conditions;
mod files;
mod laws;
mod mistakes;

use super::*;
use crate::model::decimal::Decimal;
use crate::model::record::user_hash;
use crate::model::window::Millis;

const NOON: Millis = 1_767_268_800_000;

fn toml(text: &str) -> RuleSet {
    RuleSet::parse(text, RulesFormat::Toml).unwrap_or_else(|why| panic!("{text}\n{why:#?}"))
}

/// One rule with this condition and action, as TOML.
fn rule(condition: &str, action: &str) -> RuleSet {
    toml(&format!("[[rule]]\nname = \"r\"\nwhere = {{ {condition} }}\n{action}\n"))
}

fn labels(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// An event of Alice with the value 90, and a few labels and properties.
struct Sample {
    labels: Vec<(String, String)>,
    value: Option<Decimal>,
    raw: String,
}

impl Sample {
    fn new() -> Self {
        let properties = serde_json::json!({
            "plan": "free", "ms": 1500, "text": "12.50", "uid": 7, "yes": true, "nothing": null,
            "huge": 1e30, "list": ["a"], "long": "x".repeat(300), "escape": "\u{1b}[31m", "": "",
            "agent": "Mozilla/5.0 (compatible; Bot/1.0)",
        });
        let event = serde_json::json!({
            "metric": "page_view", "user": "alice", "value": 90, "properties": properties,
        });
        Self {
            labels: labels(&[("carrier", "US"), ("country", "DE")]),
            value: Decimal::parse("90").ok(),
            raw: event.to_string(),
        }
    }

    fn event(&self) -> RuleEvent<'_> {
        RuleEvent {
            labels: &self.labels,
            value: self.value,
            user: Some(user_hash("alice")),
            time: NOON,
            raw: self.raw.as_bytes(),
        }
    }
}

/// Labels, value and user of an event that is kept.
type Kept = (Vec<(String, String)>, String, Option<u64>);

/// What becomes of the sample, and what the rules say that they did.
fn applied(rules: &RuleSet) -> (Option<Kept>, RuleCounts) {
    let (sample, mut counts) = (Sample::new(), RuleCounts::of(rules));
    let kept = match rules.apply(&sample.event(), &mut counts) {
        RuleOutcome::Dropped => None,
        RuleOutcome::Kept(kept) => Some((
            kept.labels.to_owned(),
            kept.value.map(|value| value.to_string()).unwrap_or_default(),
            kept.user,
        )),
    };
    (kept, counts)
}
