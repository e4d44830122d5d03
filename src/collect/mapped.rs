//! What a mapping makes of an event.

use std::borrow::Cow;

use crate::model::decimal::Decimal;
use crate::model::event::{check_label, check_user};
use crate::rules::PropertyValue;

/// The value of a mapped event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappedValue<'a> {
    /// No value is mapped: 1, as for every event that gives none.
    Default,
    /// A value is mapped, and there is no number: the event counts and adds nothing.
    None,
    /// A decimal number.
    Text(Cow<'a, str>),
}

/// What a mapping makes of an event. All parts are valid, or left out, but for the metric: a name
/// may be too long or empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedEvent<'a> {
    /// The metric.
    pub metric: Cow<'a, str>,
    /// The labels, each valid and with a value.
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
    /// The value.
    pub value: MappedValue<'a>,
    /// Whom to count as distinct.
    pub user: Option<Cow<'a, str>>,
    /// What was there and could not be taken: `label`, `value` or `user`.
    pub left_out: Vec<&'static str>,
}

impl<'a> MappedEvent<'a> {
    /// Adds a label, unless its value is empty or not valid.
    pub(super) fn push_label(&mut self, name: &'a str, value: Option<Cow<'a, str>>) {
        match value.filter(|value| check_label(name, value).is_ok()) {
            Some(value) if value.is_empty() => {}
            Some(value) => self.labels.push((name, value)),
            None => self.left_out.push("label"),
        }
    }

    pub(super) fn take_value(&mut self, value: Option<PropertyValue<'a>>) {
        let number = match value {
            None => None,
            Some(PropertyValue::Number(text) | PropertyValue::Text(text)) => Some(text),
            Some(_) => Some(Cow::Borrowed("")),
        };
        self.value = match number {
            Some(text) if Decimal::parse(&text).is_ok() => MappedValue::Text(text),
            Some(_) => {
                self.left_out.push("value");
                MappedValue::None
            }
            None => MappedValue::None,
        };
    }

    /// Takes the user that the client names, if the mapping names none.
    pub(super) fn take_user(&mut self, sent: Option<&'a str>) {
        if self.user.is_some() {
            return;
        }
        match sent {
            Some(user) if check_user(user).is_err() => self.left_out.push("user"),
            user => self.user = user.map(Cow::Borrowed),
        }
    }
}

/// A property as text; `None` if it is none.
pub(super) fn into_text(value: PropertyValue<'_>) -> Option<Cow<'_, str>> {
    match value {
        PropertyValue::Text(text) => Some(text),
        other => other.text().map(|text| Cow::Owned(text.into_owned())),
    }
}
