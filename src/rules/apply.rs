//! Applies rules to one event. Total: every event has an outcome, and its labels, value and user are
//! always ones that the gateway would accept.

use super::RuleSet;
use super::action::{Action, Fields};
use super::labels::RuleLabels;
use super::properties::PropertyReader;
use super::refused_action::RefusedAction;
use crate::model::decimal::Decimal;
use crate::model::flush::RuleEvents;
use crate::model::window::Millis;

/// An event as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct RuleEvent<'a> {
    /// The labels of its series: ascending by name, without empty values.
    pub labels: &'a [(String, String)],
    /// The value; `None` if it has none.
    pub value: Option<Decimal>,
    /// The hash of the user, see [`crate::model::record::user_hash`].
    pub user: Option<u64>,
    /// The event's own time, which no rule changes.
    pub time: Millis,
    /// The event as the client sent it. May be empty if [`RuleSet::needs_properties`] is false.
    pub raw: &'a [u8],
}

/// What becomes of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleOutcome<'a> {
    /// It is not counted.
    Dropped,
    /// It is counted, with these fields.
    Kept(KeptEvent<'a>),
}

/// The fields of an event behind the rules.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptEvent<'a> {
    /// Ascending by name, without empty values.
    pub labels: RuleLabels<'a>,
    pub value: Option<Decimal>,
    pub user: Option<u64>,
}

/// What a rule did so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleCount {
    /// Events for which the condition held.
    pub matched: u64,
    /// Of these, those that the rule dropped or changed.
    pub changed: u64,
    /// Of the changed ones, those that it dropped.
    pub dropped: u64,
    /// Of the matched ones, those that it had to leave as they were, in the order of
    /// [`RefusedAction::ALL`].
    refused: [u64; RefusedAction::ALL.len()],
}

impl RuleCount {
    /// The reasons that occurred, with how often.
    pub fn refused(&self) -> impl Iterator<Item = (RefusedAction, u64)> {
        RefusedAction::ALL.into_iter().zip(self.refused).filter(|(_, count)| *count > 0)
    }
}

/// What each rule of a set did, in the order of the rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleCounts(Vec<RuleCount>);

impl RuleCounts {
    /// Counts of a rule set that did nothing yet.
    pub fn of(rules: &RuleSet) -> Self {
        Self(vec![RuleCount::default(); rules.len()])
    }

    /// The counts by rule.
    pub fn rules(&self) -> &[RuleCount] {
        &self.0
    }

    /// What occurred, for the store: by rule, and by outcome only what is not zero.
    pub fn events(&self) -> Vec<RuleEvents> {
        let of_rule = |(count, rule): (&RuleCount, u32)| {
            let did = [
                (RuleEvents::DROPPED, count.dropped),
                (RuleEvents::CHANGED, count.changed - count.dropped),
            ];
            let refused = count.refused().map(|(why, events)| (why.name(), events));
            let all = did.into_iter().filter(|(_, events)| *events > 0).chain(refused);
            all.map(|(outcome, events)| RuleEvents { rule, outcome: outcome.to_owned(), events })
                .collect::<Vec<_>>()
        };
        self.0.iter().zip(0..).flat_map(of_rule).collect()
    }

    /// Adds what the same rules did elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.add_times(other, 1);
    }

    /// Adds what the same rules did to one event, for so many events to which they did the same.
    pub fn add_times(&mut self, one: &Self, events: u64) {
        self.grow(one.0.len());
        for (mine, one) in self.0.iter_mut().zip(&one.0) {
            mine.matched += events * one.matched;
            mine.changed += events * one.changed;
            mine.dropped += events * one.dropped;
            let refused = mine.refused.iter_mut().zip(one.refused);
            refused.for_each(|(mine, one)| *mine += events * one);
        }
    }

    fn grow(&mut self, rules: usize) {
        if self.0.len() < rules {
            self.0.resize(rules, RuleCount::default());
        }
    }
}

impl RuleSet {
    /// Applies the rules in their order; each sees what those before it made. Allocates only a list
    /// of changed labels, and to unescape a text of the properties.
    pub fn apply<'a>(&'a self, event: &RuleEvent<'a>, counts: &mut RuleCounts) -> RuleOutcome<'a> {
        counts.grow(self.rules.len());
        let mut properties = PropertyReader::new(event.raw);
        let labels = RuleLabels::Unchanged(event.labels);
        let mut fields = Fields { labels, value: event.value, user: event.user };
        for (rule, count) in self.rules.iter().zip(&mut counts.0) {
            let condition = &rule.condition;
            if !condition.holds(&fields.labels, fields.user, event.time, &mut properties) {
                continue;
            }
            count.matched += 1;
            if rule.action == Action::Drop {
                count.changed += 1;
                count.dropped += 1;
                return RuleOutcome::Dropped;
            }
            match rule.action.change(&mut fields, &mut properties) {
                Ok(changed) => count.changed += u64::from(changed),
                Err(reason) => count.refused[reason as usize] += 1,
            }
        }
        let Fields { labels, value, user } = fields;
        RuleOutcome::Kept(KeptEvent { labels, value, user })
    }
}
