//! What became of each event, and what each rule did.

use serde_json::{Map, Value, json};

use crate::gateway::ingest::{PlainEvent, plain_json_event};
use crate::model::decimal::Decimal;
use crate::model::event::EventError;
use crate::model::record::user_hash;
use crate::model::series::Series;
use crate::model::window::Millis;
use crate::rules::{RuleCounts, RuleEvent, RuleOutcome, RuleSet};

/// The events of a trial and what the rules did to them.
pub(super) struct Trial {
    names: Vec<String>,
    hash: String,
    events: Vec<Result<TriedEvent, EventError>>,
    counts: RuleCounts,
}

/// The fields that rules may change.
#[derive(Debug, Clone, PartialEq)]
struct Fields {
    labels: Vec<(String, String)>,
    value: Option<Decimal>,
    user: Option<u64>,
}

struct TriedEvent {
    metric: String,
    before: Fields,
    /// `None` if it was dropped.
    after: Option<Fields>,
    counts: RuleCounts,
}

impl Trial {
    /// A trial without events yet.
    pub(super) fn of(rules: &RuleSet) -> Self {
        Self {
            names: rules.names().map(str::to_owned).collect(),
            hash: rules.hash().to_string(),
            events: Vec::new(),
            counts: RuleCounts::of(rules),
        }
    }

    /// Applies the rules to an event of JSON. One without a time gets `now`.
    pub(super) fn add(&mut self, rules: &RuleSet, raw: &[u8], now: Millis) {
        let tried = plain_json_event(raw).map(|event| tried(rules, event, raw, now));
        if let Ok(event) = &tried {
            self.counts.add(&event.counts);
        }
        self.events.push(tried);
    }

    /// How many events no server would accept.
    pub(super) fn invalid(&self) -> usize {
        self.events.iter().filter(|event| event.is_err()).count()
    }

    pub(super) fn table(&self) -> String {
        let mut events = table(&["event", "metric", "outcome", "what changed", "rules"]);
        for (number, event) in self.events.iter().enumerate() {
            let number = (number + 1).to_string();
            match event {
                Ok(event) => events.add_row([
                    number,
                    event.metric.clone(),
                    event.outcome().to_owned(),
                    event.changes().join("; "),
                    self.matched(event).join(", "),
                ]),
                Err(why) => events.add_row([
                    number,
                    "-".into(),
                    "invalid".into(),
                    why.to_string(),
                    "".into(),
                ]),
            };
        }
        if self.names.is_empty() {
            return events.to_string();
        }
        let mut rules = table(&["rule", "matched", "changed", "not applied"]);
        for (name, count) in self.names.iter().zip(self.counts.rules()) {
            let refused = count.refused().map(|(why, times)| format!("{}: {times}", why.name()));
            rules.add_row([
                name.clone(),
                count.matched.to_string(),
                count.changed.to_string(),
                refused.collect::<Vec<_>>().join(", "),
            ]);
        }
        format!("{events}\n\n{rules}")
    }

    /// The rules whose condition held, and why one that could not be applied was not.
    fn matched(&self, event: &TriedEvent) -> Vec<String> {
        let all = self.names.iter().zip(event.counts.rules());
        all.filter(|(_, count)| count.matched > 0)
            .map(|(name, count)| match count.refused().next() {
                Some((why, _)) => format!("{name} ({})", why.name()),
                None => name.clone(),
            })
            .collect()
    }

    pub(super) fn json(&self) -> String {
        let events: Vec<Value> = self
            .events
            .iter()
            .enumerate()
            .map(|(number, event)| self.event_json(number + 1, event))
            .collect();
        let rules: Vec<Value> = self
            .names
            .iter()
            .zip(self.counts.rules())
            .map(|(name, count)| {
                let refused: Map<String, Value> =
                    count.refused().map(|(why, times)| (why.name().into(), times.into())).collect();
                json!({
                    "name": name,
                    "matched": count.matched,
                    "changed": count.changed,
                    "not_applied": refused,
                })
            })
            .collect();
        json!({ "hash": self.hash, "events": events, "rules": rules }).to_string()
    }

    fn event_json(&self, number: usize, event: &Result<TriedEvent, EventError>) -> Value {
        let event = match event {
            Ok(event) => event,
            Err(why) => {
                let error = json!({ "code": why.code.name(), "message": why.message });
                return json!({ "event": number, "outcome": "invalid", "error": error });
            }
        };
        let all = self.names.iter().zip(event.counts.rules());
        let rules: Vec<Value> = all
            .filter(|(_, count)| count.matched > 0)
            .map(|(name, count)| {
                let refused = count.refused().next().map(|(why, _)| why.name());
                json!({ "name": name, "changed": count.changed > 0, "not_applied": refused })
            })
            .collect();
        json!({
            "event": number,
            "metric": event.metric,
            "outcome": event.outcome(),
            "before": event.before.json(),
            "after": event.after.as_ref().map(Fields::json),
            "rules": rules,
        })
    }
}

fn tried(rules: &RuleSet, event: PlainEvent, raw: &[u8], now: Millis) -> TriedEvent {
    let PlainEvent { metric, labels, timestamp, value, user } = event;
    // As the records of a server hold them: sorted, and without empty ones.
    let Series { labels, .. } = Series::new("", &metric, labels);
    let before = Fields { labels, value, user: user.as_deref().map(user_hash) };
    let mut counts = RuleCounts::of(rules);
    let seen = RuleEvent {
        labels: &before.labels,
        value,
        user: before.user,
        time: timestamp.unwrap_or(now),
        raw,
    };
    let after = match rules.apply(&seen, &mut counts) {
        RuleOutcome::Dropped => None,
        RuleOutcome::Kept(kept) => {
            Some(Fields { labels: kept.labels.to_owned(), value: kept.value, user: kept.user })
        }
    };
    TriedEvent { metric, before, after, counts }
}

impl TriedEvent {
    fn outcome(&self) -> &'static str {
        match &self.after {
            None => "dropped",
            Some(after) if *after == self.before => "unchanged",
            Some(_) => "changed",
        }
    }

    /// Each field that changed, for people.
    fn changes(&self) -> Vec<String> {
        let Some(after) = &self.after else { return Vec::new() };
        let all = |fields: &Fields| {
            fields.labels.iter().cloned().collect::<std::collections::BTreeMap<_, _>>()
        };
        let (old, new) = (all(&self.before), all(after));
        let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let mut changes: Vec<String> = names
            .into_iter()
            .filter_map(|name| match (old.get(name), new.get(name)) {
                (Some(old), None) => Some(format!("{name}={old} removed")),
                (old, Some(new)) if old != Some(new) => Some(format!("{name}={new}")),
                _ => None,
            })
            .collect();
        if after.value != self.before.value {
            let shown = after.value.map_or_else(|| "none".to_owned(), |value| value.to_string());
            changes.push(format!("value {shown}"));
        }
        if after.user != self.before.user {
            changes.push("another user".to_owned());
        }
        changes
    }
}

impl Fields {
    fn json(&self) -> Value {
        let labels: Map<String, Value> =
            self.labels.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        json!({
            "labels": labels,
            // A text, because numbers of JSON lose digits in most readers.
            "value": self.value.map(|value| value.to_string()),
            "user_hash": self.user.map(|hash| format!("{hash:016x}")),
        })
    }
}

fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    table
}
