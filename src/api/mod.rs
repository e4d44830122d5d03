//! The wire, once: the JSON of requests, answers and errors, as the gateway writes it and the
//! commands read it. Pure.
//!
//! `openapi.json` is held against these types by a test. What a newer server adds is ignored, what
//! an older one leaves out is empty.

pub mod accounting;
pub mod archive;
pub mod catalogue;
pub mod completeness;
pub mod error;
pub mod events;
pub mod quarantine;
pub mod query;
pub mod status;

use crate::model::window::Millis;

/// A time on the wire; none outside of the calendar.
pub fn timestamp(millis: Millis) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond(millis).ok()
}
