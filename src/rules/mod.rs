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
mod mistakes;
mod pointer;
mod properties;
mod read;
#[cfg(test)]
mod tests;

pub use action::RefusedAction;
pub use apply::{KeptEvent, RuleCount, RuleCounts, RuleEvent, RuleOutcome};
pub use canonical::RulesHash;
pub use document::RulesFormat;
pub use mistakes::{RuleMistake, RuleMistakes};
pub use pointer::MAX_POINTER_BYTES;
pub use read::{
    MAX_FILE_BYTES, MAX_LIST, MAX_NAME_BYTES, MAX_PROPERTY_TESTS, MAX_REGEXES, MAX_RULES,
};

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

    /// Whether any rule reads properties, and so the raw bytes of events.
    pub fn needs_properties(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| !rule.condition.properties.is_empty() || rule.action.property().is_some())
    }
}
