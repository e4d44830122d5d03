//! Which events a rule is for.

use regex::Regex;

use super::labels::RuleLabels;
use super::pointer::JsonPointer;
use super::properties::{PropertyReader, PropertyValue};
use crate::model::decimal::Decimal;
use crate::model::matcher::Matcher;
use crate::model::record::user_hash;
use crate::model::window::Millis;

/// Everything that has to hold. Empty, it holds for every event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Condition {
    pub(super) labels: Vec<Matcher>,
    pub(super) properties: Vec<PropertyTest>,
    pub(super) user: Option<UserTest>,
    /// First millisecond, inclusive.
    pub(super) from: Option<Millis>,
    /// Last millisecond, exclusive.
    pub(super) to: Option<Millis>,
}

impl Condition {
    /// The number of regular expressions.
    pub(super) fn regexes(&self) -> usize {
        let labels = self.labels.iter().filter(|matcher| matcher.is_regex()).count();
        let is_regex = |test: &&PropertyTest| matches!(test.comparison, Comparison::Regex(..));
        labels + self.properties.iter().filter(is_regex).count()
    }
}

/// A comparison of one property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PropertyTest {
    pub(super) at: JsonPointer,
    /// Whether the comparison must fail.
    pub(super) not: bool,
    pub(super) comparison: Comparison,
}

#[derive(Debug, Clone)]
pub(super) enum Comparison {
    /// It is there, and not null.
    Exists,
    /// It equals one of these, which are ascending and different.
    In(Vec<Constant>),
    /// It is a text, and all of it matches. As it was written, and compiled.
    Regex(String, Regex),
}

impl PartialEq for Comparison {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exists, Self::Exists) => true,
            (Self::In(a), Self::In(b)) => a == b,
            (Self::Regex(a, _), Self::Regex(b, _)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Comparison {}

/// A constant that a property may equal. Texts never equal numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Constant {
    Text(String),
    Number(Decimal),
    Bool(bool),
}

/// A comparison of the user, who is known by a hash alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UserTest {
    /// Whether the comparison must fail.
    pub(super) not: bool,
    /// The users, ascending and different; `None` asks whether there is a user at all.
    pub(super) users: Option<Vec<String>>,
    /// Their hashes, ascending.
    hashes: Vec<u64>,
}

impl UserTest {
    pub(super) fn new(not: bool, users: Option<Vec<String>>) -> Self {
        let mut hashes: Vec<u64> = users.iter().flatten().map(|user| user_hash(user)).collect();
        hashes.sort_unstable();
        Self { not, users, hashes }
    }

    fn holds(&self, user: Option<u64>) -> bool {
        let found = match (&self.users, user) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(_), Some(user)) => self.hashes.binary_search(&user).is_ok(),
        };
        found != self.not
    }
}

impl Condition {
    /// Whether it is the same for all events of a series.
    pub(super) fn reads_only_labels(&self) -> bool {
        let Self { labels: _, properties, user, from, to } = self;
        properties.is_empty() && user.is_none() && from.is_none() && to.is_none()
    }

    /// Whether all of it holds. What costs least is asked first.
    pub(super) fn holds(
        &self,
        labels: &RuleLabels<'_>,
        user: Option<u64>,
        time: Millis,
        properties: &mut PropertyReader<'_>,
    ) -> bool {
        self.from.is_none_or(|from| time >= from)
            && self.to.is_none_or(|to| time < to)
            && self.user.as_ref().is_none_or(|test| test.holds(user))
            && self.labels.iter().all(|m| m.matches_value(labels.get(m.label())))
            && self.properties.iter().all(|test| test.holds(properties))
    }
}

impl PropertyTest {
    fn holds(&self, properties: &mut PropertyReader<'_>) -> bool {
        let found = properties.get(&self.at);
        found.is_some_and(|found| self.comparison.holds(&found)) != self.not
    }
}

impl Comparison {
    fn holds(&self, found: &PropertyValue<'_>) -> bool {
        match (self, found) {
            (Self::Exists, _) => true,
            (Self::Regex(_, regex), PropertyValue::Text(text)) => regex.is_match(text),
            (Self::Regex(..), _) => false,
            (Self::In(constants), found) => is_among(constants, found),
        }
    }
}

/// Whether the property is one of the constants, which are ascending.
fn is_among(constants: &[Constant], found: &PropertyValue<'_>) -> bool {
    use std::cmp::Ordering::{Greater, Less};
    match found {
        PropertyValue::Text(text) => constants
            .binary_search_by(|constant| match constant {
                Constant::Text(constant) => constant.as_str().cmp(text),
                Constant::Number(_) | Constant::Bool(_) => Greater,
            })
            .is_ok(),
        PropertyValue::Number(text) => Decimal::parse(text).is_ok_and(|number| {
            let order = |constant: &Constant| match constant {
                Constant::Text(_) => Less,
                Constant::Number(constant) => constant.cmp(&number),
                Constant::Bool(_) => Greater,
            };
            constants.binary_search_by(order).is_ok()
        }),
        PropertyValue::Bool(value) => constants.contains(&Constant::Bool(*value)),
        PropertyValue::Other => false,
    }
}
