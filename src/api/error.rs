//! The JSON shape that all errors share.

use serde::{Deserialize, Serialize};

/// `{"error": {"code", "message", "details"}}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorAnswer {
    /// Code, message and details.
    pub error: ErrorDetail,
}

/// What went wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorDetail {
    /// One stable word, for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// Reserved; always empty today.
    #[serde(default)]
    pub details: serde_json::Map<String, serde_json::Value>,
}

impl ErrorAnswer {
    /// Builds an error without details.
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
