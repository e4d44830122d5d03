//! The labels of an event while rules change them.

use std::borrow::Cow;

use super::refused_action::RefusedAction;
use crate::model::event::{check_label, check_label_count};
use crate::model::series::label_of;

/// Labels, ascending by name, without empty values. Nothing is copied to change one: their texts
/// are those of the series, of the rules and of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleLabels<'a> {
    /// Those of the series: no rule has changed one.
    Unchanged(&'a [(String, String)]),
    /// Others, or the same again.
    Changed(Vec<(&'a str, Cow<'a, str>)>),
}

impl<'a> RuleLabels<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Unchanged(labels) => labels.len(),
            Self::Changed(labels) => labels.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let (mut unchanged, mut changed) = (Default::default(), Default::default());
        match self {
            Self::Unchanged(labels) => unchanged = *labels,
            Self::Changed(labels) => changed = labels.as_slice(),
        }
        let unchanged = unchanged.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        unchanged.chain(changed.iter().map(|(name, value)| (*name, &**value)))
    }

    /// The value of a label; a missing label reads as empty.
    pub fn get(&self, name: &str) -> &str {
        match self {
            Self::Unchanged(labels) => label_of(labels, name),
            Self::Changed(labels) => {
                labels.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
            }
        }
    }

    /// Whether they are these.
    pub fn are(&self, labels: &[(String, String)]) -> bool {
        self.iter().eq(labels.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    /// Texts of their own.
    pub fn to_owned(&self) -> Vec<(String, String)> {
        self.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Sets a label, or removes it if the value is empty. Returns whether anything changed.
    pub(super) fn set(
        &mut self,
        name: &'a str,
        value: Cow<'a, str>,
    ) -> Result<bool, RefusedAction> {
        if self.get(name) == value {
            return Ok(false);
        }
        check_label(name, &value).map_err(|_| RefusedAction::LabelInvalid)?;
        let at = self.iter().take_while(|(known, _)| *known < name).count();
        let is_there = self.iter().nth(at).is_some_and(|(known, _)| known == name);
        if !is_there {
            check_label_count(self.len() + 1).map_err(|_| RefusedAction::TooManyLabels)?;
        }
        let mut labels = std::mem::replace(self, Self::Unchanged(&[])).into_changed();
        match is_there {
            true if value.is_empty() => drop(labels.remove(at)),
            true => labels[at].1 = value,
            false => labels.insert(at, (name, value)),
        }
        *self = Self::Changed(labels);
        Ok(true)
    }

    fn into_changed(self) -> Vec<(&'a str, Cow<'a, str>)> {
        match self {
            Self::Changed(labels) => labels,
            Self::Unchanged(labels) => {
                let mut texts = Vec::with_capacity(labels.len() + 1);
                texts.extend(labels.iter().map(|(name, value)| (&**name, Cow::Borrowed(&**value))));
                texts
            }
        }
    }
}
