//! `POST /v1/events`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The answer to a request whose body could be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IngestAnswer {
    /// Events that are durable in the log.
    pub accepted: usize,
    /// Events that were refused.
    pub rejected: usize,
    /// One entry per refused event, with the reason.
    pub errors: Vec<RefusedEvent>,
}

/// One refused event, and why it was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RefusedEvent {
    /// Zero-based position in the request.
    pub index: usize,
    /// Id of the event; null if it has no valid one.
    pub id: Option<String>,
    /// One stable word, for programs.
    pub code: Cow<'static, str>,
    /// What is wrong, for people.
    pub message: String,
}
