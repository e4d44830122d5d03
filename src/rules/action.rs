//! What a rule does to an event.

use std::collections::BTreeMap;

use super::labels::RuleLabels;
use super::pointer::JsonPointer;
use super::properties::{PropertyReader, PropertyValue};
use super::refused_action::RefusedAction;
use crate::model::decimal::Decimal;
use crate::model::event::check_user;
use crate::model::record::user_hash;

/// What a rule does. Each rule does one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// The event is not counted.
    Drop,
    /// The label gets this value; an empty one removes it.
    SetLabel {
        label: String,
        value: String,
    },
    /// The label gets the text of a property.
    SetLabelFrom {
        label: String,
        property: JsonPointer,
    },
    RemoveLabel(String),
    /// Values of the label are replaced by others; values that are not named stay.
    MapLabel {
        label: String,
        values: BTreeMap<String, String>,
    },
    /// The value is that of a property.
    SetValue(JsonPointer),
    /// The user is the text of a property.
    SetUser(JsonPointer),
    /// The value is multiplied and divided, and rounded once.
    ScaleValue {
        multiply: Decimal,
        divide: Decimal,
    },
}

/// The fields of an event that rules change.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) labels: RuleLabels<'a>,
    pub(super) value: Option<Decimal>,
    pub(super) user: Option<u64>,
}

impl Action {
    /// The property that it reads.
    pub(super) fn property(&self) -> Option<&JsonPointer> {
        match self {
            Self::SetLabelFrom { property, .. }
            | Self::SetValue(property)
            | Self::SetUser(property) => Some(property),
            _ => None,
        }
    }

    /// Whether it does the same to all events of a series.
    pub(super) fn reads_only_labels(&self) -> bool {
        match self {
            Self::Drop | Self::SetLabel { .. } | Self::RemoveLabel(_) | Self::MapLabel { .. } => {
                true
            }
            Self::SetLabelFrom { .. }
            | Self::SetValue(_)
            | Self::SetUser(_)
            | Self::ScaleValue { .. } => false,
        }
    }

    /// Changes the fields. Returns whether anything changed. Fails without changing anything if the
    /// result would be no valid event. Expects an action other than [`Self::Drop`], which changes
    /// no field.
    pub(super) fn change<'a>(
        &'a self,
        fields: &mut Fields<'a>,
        properties: &mut PropertyReader<'a>,
    ) -> Result<bool, RefusedAction> {
        match self {
            Self::Drop => Ok(false),
            Self::SetLabel { label, value } => fields.labels.set(label, value.into()),
            Self::SetLabelFrom { label, property } => {
                let found = properties.get(property).ok_or(RefusedAction::PropertyMissing)?;
                fields.labels.set(label, found.text().ok_or(RefusedAction::PropertyInvalid)?)
            }
            Self::RemoveLabel(label) => fields.labels.set(label, "".into()),
            Self::MapLabel { label, values } => match values.get(fields.labels.get(label)) {
                Some(value) => fields.labels.set(label, value.into()),
                None => Ok(false),
            },
            Self::SetValue(property) => {
                let found = properties.get(property).ok_or(RefusedAction::PropertyMissing)?;
                Ok(replace(&mut fields.value, Some(decimal(&found)?)))
            }
            Self::SetUser(property) => {
                let found = properties.get(property).ok_or(RefusedAction::PropertyMissing)?;
                let text = found.text().ok_or(RefusedAction::PropertyInvalid)?;
                check_user(&text).map_err(|_| RefusedAction::UserInvalid)?;
                Ok(replace(&mut fields.user, Some(user_hash(&text))))
            }
            Self::ScaleValue { multiply, divide } => {
                let value = fields.value.ok_or(RefusedAction::NoValue)?;
                let scaled = value.scaled(*multiply, *divide);
                let scaled = scaled.ok_or(RefusedAction::ValueOutOfRange)?;
                Ok(replace(&mut fields.value, Some(scaled)))
            }
        }
    }
}

/// A property as a value, read as the gateway reads an event's value: a number, or a text that is
/// one.
fn decimal(property: &PropertyValue<'_>) -> Result<Decimal, RefusedAction> {
    match property {
        PropertyValue::Text(text) | PropertyValue::Number(text) => Ok(Decimal::parse(text)?),
        PropertyValue::Bool(_) | PropertyValue::Other => Err(RefusedAction::NotANumber),
    }
}

/// Whether the field was something else before.
fn replace<T: PartialEq>(field: &mut T, new: T) -> bool {
    let is_new = *field != new;
    *field = new;
    is_new
}
