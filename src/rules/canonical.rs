//! The one spelling of each rule set, and its hash.

use serde::ser::{Error, Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::action::Action;
use super::condition::{Comparison, Condition, Constant, PropertyTest, UserTest};
use super::{Rule, RuleSet};
use crate::model::decimal::Decimal;

/// Version of the code that applies rules. It is part of the hash, and changes when the same rules
/// would do something else.
const INTERPRETER_VERSION: u32 = 1;

/// Identifies what a rule set does: BLAKE3 of the version of the interpreter (4 bytes, big-endian)
/// and the canonical JSON, truncated to 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RulesHash(pub [u8; 16]);

impl std::fmt::Display for RulesHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl RuleSet {
    /// The rules as JSON without white space, keys in one order, and every constant in one
    /// spelling. It is a file of rules itself, and reading it gives the same rules.
    pub fn canonical_json(&self) -> String {
        // Writing to memory cannot fail, and the types hold nothing that JSON cannot express.
        #[allow(clippy::expect_used)]
        serde_json::to_string(self).expect("rules always encode")
    }

    /// The hash of the rules; equal for all files that say the same.
    pub fn hash(&self) -> RulesHash {
        RulesHash::of_canonical(&self.canonical_json())
    }
}

impl RulesHash {
    /// The hash of rules that are canonical already, which need not be compiled for it.
    pub fn of_canonical(text: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&INTERPRETER_VERSION.to_be_bytes());
        hasher.update(text.as_bytes());
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(hash)
    }
}

impl Serialize for RuleSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("rule", &self.rules)?;
        map.end()
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        if self.condition != Condition::default() {
            map.serialize_entry("where", &self.condition)?;
        }
        match &self.action {
            Action::Drop => map.serialize_entry("drop", &true)?,
            Action::SetLabel { label, value } => {
                map.serialize_entry("set_label", &Entries([("label", label), ("value", value)]))?;
            }
            Action::SetLabelFrom { label, property } => {
                let entries = [("label", label.as_str()), ("property", property.text())];
                map.serialize_entry("set_label", &Entries(entries))?;
            }
            Action::RemoveLabel(label) => map.serialize_entry("remove_label", label)?,
            Action::MapLabel { label, values } => {
                map.serialize_entry("map_label", &MapLabel { label, values })?;
            }
            Action::SetValue(property) => {
                map.serialize_entry("set_value", &Entries([("property", property.text())]))?;
            }
            Action::SetUser(property) => {
                map.serialize_entry("set_user", &Entries([("property", property.text())]))?;
            }
            Action::ScaleValue { multiply, divide } => {
                let entries = [("multiply", Number(*multiply)), ("divide", Number(*divide))];
                map.serialize_entry("scale_value", &Entries(entries))?;
            }
        }
        map.end()
    }
}

/// A table with these entries, in this order.
struct Entries<const N: usize, T>([(&'static str, T); N]);

impl<const N: usize, T: Serialize> Serialize for Entries<N, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[derive(serde::Serialize)]
struct MapLabel<'a> {
    label: &'a str,
    values: &'a std::collections::BTreeMap<String, String>,
}

/// A number of JSON with all its digits.
struct Number(Decimal);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = RawValue::from_string(self.0.to_string()).map_err(S::Error::custom)?;
        digits.serialize(serializer)
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.labels.is_empty() {
            let matchers: Vec<String> = self.labels.iter().map(ToString::to_string).collect();
            map.serialize_entry("labels", &format!("{{{}}}", matchers.join(",")))?;
        }
        if !self.properties.is_empty() {
            map.serialize_entry("properties", &self.properties)?;
        }
        if let Some(user) = &self.user {
            map.serialize_entry("user", user)?;
        }
        let time = [("from", self.from), ("to", self.to)];
        let given: Vec<_> = time.into_iter().filter(|(_, time)| time.is_some()).collect();
        if !given.is_empty() {
            map.serialize_entry("time", &TimeRange(given))?;
        }
        map.end()
    }
}

struct TimeRange(Vec<(&'static str, Option<i64>)>);

impl Serialize for TimeRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

impl Serialize for PropertyTest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("at", self.at.text())?;
        match &self.comparison {
            // `not` says it in one word less.
            Comparison::Exists => map.serialize_entry("exists", &!self.not)?,
            Comparison::In(constants) => put_one_or_more(&mut map, constants)?,
            Comparison::Regex(text, _) => map.serialize_entry("regex", text)?,
        }
        if self.not && self.comparison != Comparison::Exists {
            map.serialize_entry("not", &true)?;
        }
        map.end()
    }
}

impl Serialize for UserTest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.users {
            None => map.serialize_entry("exists", &!self.not)?,
            Some(users) => put_one_or_more(&mut map, users)?,
        }
        if self.not && self.users.is_some() {
            map.serialize_entry("not", &true)?;
        }
        map.end()
    }
}

fn put_one_or_more<M: SerializeMap, T: Serialize>(map: &mut M, all: &[T]) -> Result<(), M::Error> {
    match all {
        [one] => map.serialize_entry("equal", one),
        all => map.serialize_entry("in", all),
    }
}

impl Serialize for Constant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => text.serialize(serializer),
            Self::Number(number) => Number(*number).serialize(serializer),
            Self::Bool(value) => value.serialize(serializer),
        }
    }
}
