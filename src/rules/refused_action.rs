//! Why an action sometimes leaves an event as it was.

use crate::model::decimal::DecimalError;

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

impl From<DecimalError> for RefusedAction {
    fn from(error: DecimalError) -> Self {
        match error {
            DecimalError::Syntax => Self::NotANumber,
            DecimalError::OutOfRange => Self::ValueOutOfRange,
        }
    }
}
