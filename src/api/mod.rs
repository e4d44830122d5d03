//! The JSON of requests, answers and errors, defined once: the gateway writes it and the command
//! line reads it. Pure.
//!
//! A test compares `openapi.json` with these types. Readers ignore fields of a newer server and
//! take fields that an older one leaves out as empty.

pub mod accounting;
pub mod archive;
pub mod boards;
pub mod catalogue;
pub mod completeness;
pub mod error;
pub mod events;
pub mod limits;
pub mod quarantine;
pub mod query;
pub mod replays;
pub mod status;

use crate::model::window::Millis;

/// A time as the wire writes it; `None` if it lies outside of the calendar's range.
pub fn timestamp(millis: Millis) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond(millis).ok()
}
