//! What a rule does to an event, and why it sometimes cannot.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::pointer::JsonPointer;
use super::properties::{PropertyReader, PropertyValue};
use crate::model::decimal::{Decimal, DecimalError};
use crate::model::event::{check_label, check_label_count, check_user};
use crate::model::record::user_hash;
use crate::model::series::label_of;

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

/// Why an action left an event as it was. The names are part of the output of `rollmill rules try`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusedAction {
    /// The property is missing or null.
    PropertyMissing,
    /// The property is an object, an array or bytes, or a number that no value could have.
    PropertyInvalid,
    /// The property is no decimal number.
    NotANumber,
    /// The value would be beyond ±10^18.
    ValueOutOfRange,
    /// The event has no value to scale.
    NoValue,
    /// The text is too long for a label, or holds a control character.
    LabelInvalid,
    /// The event has as many labels as an event may have.
    TooManyLabels,
    /// The text is too long for a user.
    UserInvalid,
}

impl RefusedAction {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::PropertyMissing,
        Self::PropertyInvalid,
        Self::NotANumber,
        Self::ValueOutOfRange,
        Self::NoValue,
        Self::LabelInvalid,
        Self::TooManyLabels,
        Self::UserInvalid,
    ];

    /// The reason's name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::PropertyMissing => "property_missing",
            Self::PropertyInvalid => "property_invalid",
            Self::NotANumber => "not_a_number",
            Self::ValueOutOfRange => "value_out_of_range",
            Self::NoValue => "no_value",
            Self::LabelInvalid => "label_invalid",
            Self::TooManyLabels => "too_many_labels",
            Self::UserInvalid => "user_invalid",
        }
    }
}

/// The fields of an event that rules change.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) labels: Cow<'a, [(String, String)]>,
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

    /// Changes the fields. Returns whether anything changed. Fails without changing anything if the
    /// result would be no valid event. Expects an action other than [`Self::Drop`], which changes
    /// no field.
    pub(super) fn change(
        &self,
        fields: &mut Fields<'_>,
        properties: &mut PropertyReader<'_>,
    ) -> Result<bool, RefusedAction> {
        match self {
            Self::Drop => Ok(false),
            Self::SetLabel { label, value } => set_label(&mut fields.labels, label, value),
            Self::SetLabelFrom { label, property } => {
                let found = properties.get(property).ok_or(RefusedAction::PropertyMissing)?;
                let text = found.text().ok_or(RefusedAction::PropertyInvalid)?;
                set_label(&mut fields.labels, label, &text)
            }
            Self::RemoveLabel(label) => set_label(&mut fields.labels, label, ""),
            Self::MapLabel { label, values } => match values.get(label_of(&fields.labels, label)) {
                Some(value) => set_label(&mut fields.labels, label, value),
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

impl From<DecimalError> for RefusedAction {
    fn from(error: DecimalError) -> Self {
        match error {
            DecimalError::Syntax => Self::NotANumber,
            DecimalError::OutOfRange => Self::ValueOutOfRange,
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

/// Sets a label, or removes it if the value is empty. Copies the labels only if they change. The
/// labels are ascending by name, before and after.
fn set_label(
    labels: &mut Cow<'_, [(String, String)]>,
    name: &str,
    value: &str,
) -> Result<bool, RefusedAction> {
    if label_of(labels, name) == value {
        return Ok(false);
    }
    check_label(name, value).map_err(|_| RefusedAction::LabelInvalid)?;
    match labels.binary_search_by(|(label, _)| label.as_str().cmp(name)) {
        Ok(at) if value.is_empty() => drop(labels.to_mut().remove(at)),
        Ok(at) => labels.to_mut()[at].1 = value.to_owned(),
        Err(at) => {
            check_label_count(labels.len() + 1).map_err(|_| RefusedAction::TooManyLabels)?;
            labels.to_mut().insert(at, (name.to_owned(), value.to_owned()));
        }
    }
    Ok(true)
}
