//! `POST /v1/events`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The answer to a request that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct IngestAnswer {
    /// Events that are durable.
    pub accepted: usize,
    /// Events that were refused.
    pub rejected: usize,
    /// Why.
    pub errors: Vec<RefusedEvent>,
}

/// One refused event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RefusedEvent {
    /// Its place in the request.
    pub index: usize,
    /// Its id, if it has a valid one.
    pub id: Option<String>,
    /// The code.
    pub code: Cow<'static, str>,
    /// What is wrong.
    pub message: String,
}
