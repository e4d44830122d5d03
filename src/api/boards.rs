//! `/v1/boards`: saved panels of a tenant.

use serde::{Deserialize, Serialize};

/// A board: the document that is exported and imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// What people call it. Text, and shown as text.
    pub name: String,
    /// The panels, in their order on the page.
    pub panels: Vec<Panel>,
}

/// A panel of a board.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Panel {
    /// What people call it. Text, and shown as text.
    pub title: String,
    /// What is drawn: the part of the dashboard's address behind the `?`. The server does not
    /// read it.
    pub question: String,
    /// Columns of the page that it takes, of twelve; the page chooses if it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u16>,
    /// Its height in pixels; the page chooses if it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u16>,
}

/// A board in the list, and the answer to a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BoardInfo {
    /// Its id in the address.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Grows with each change, and never repeats for an id.
    pub version: u64,
    /// When it was changed last.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub changed: Option<jiff::Timestamp>,
    /// Who changed it last: the prefix of a key.
    pub by: String,
}

/// Answer to `GET /v1/boards`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BoardsAnswer {
    /// The boards of the tenant, ascending by id.
    pub boards: Vec<BoardInfo>,
    /// What to ask for as `after`, if there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
