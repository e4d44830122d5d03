//! The one shape of errors.

use serde::{Deserialize, Serialize};

/// `{"error": {"code", "message", "details"}}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorAnswer {
    /// What is wrong.
    pub error: ErrorDetail,
}

/// What is wrong, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorDetail {
    /// For programs: one word that stays.
    pub code: String,
    /// For people.
    pub message: String,
    /// Nothing today.
    #[serde(default)]
    pub details: serde_json::Map<String, serde_json::Value>,
}

impl ErrorAnswer {
    /// An error without details.
    pub fn new(code: &str, message: &str) -> Self {
        Self {
            error: ErrorDetail {
                code: code.to_owned(),
                message: message.to_owned(),
                details: serde_json::Map::new(),
            },
        }
    }
}
