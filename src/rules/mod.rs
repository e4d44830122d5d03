//! Rules: what to do with events that were already accepted, read from a file of TOML or JSON.
//!
//! A file is an ordered list of rules. Each has a condition on labels, properties, user and time,
//! and one action. Rules are total: an action whose result the gateway would not have accepted
//! leaves the event as it was, and is counted. No rule sees or changes the metric, and none changes
//! the time. docs/reference/rules.md is the page for those who write them.

mod action;
mod apply;
mod canonical;
mod condition;
mod document;
mod labels;
mod mistakes;
mod pointer;
mod properties;
mod read;
mod refused_action;
mod shared;
#[cfg(test)]
mod tests;

pub use apply::{KeptEvent, RuleCount, RuleCounts, RuleEvent, RuleOutcome};
pub use canonical::RulesHash;
pub use document::RulesFormat;
pub use labels::RuleLabels;
pub use mistakes::{RuleMistake, RuleMistakes};
pub use pointer::{JsonPointer, MAX_POINTER_BYTES, PointerStep};
pub use properties::{PropertyValue, json_value};
pub use read::{
    MAX_FILE_BYTES, MAX_LIST, MAX_NAME_BYTES, MAX_PROPERTY_TESTS, MAX_REGEXES, MAX_RULES,
};
pub use refused_action::RefusedAction;

use action::Action;
use condition::Condition;

/// Rules in the order in which they apply.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    name: String,
    condition: Condition,
    action: Action,
}

impl RuleSet {
    /// The number of rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are no rules, so that nothing changes.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The names of the rules, each different.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.name.as_str())
    }

    /// The number of regular expressions, in matchers and comparisons.
    pub fn regexes(&self) -> usize {
        self.rules.iter().map(|rule| rule.condition.regexes()).sum()
    }

    /// Whether what the rules do to an event follows from the labels of its series alone, so that
    /// it is the same for all events of a series. Without rules it is.
    pub fn read_only_labels(&self) -> bool {
        self.rules
            .iter()
            .all(|rule| rule.condition.reads_only_labels() && rule.action.reads_only_labels())
    }

    /// Whether any rule reads properties, and so the raw bytes of events.
    pub fn needs_properties(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| !rule.condition.properties.is_empty() || rule.action.property().is_some())
    }
}
