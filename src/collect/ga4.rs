//! The Measurement Protocol of Google Analytics 4.
//!
//! A request is `{"client_id": …, "events": [{"name": …, "params": {…}}, …]}`. Events have no ids of
//! their own. One that has a time gets an id of all that was said of it, so that a request that is
//! sent again counts once.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::SentEvent;
use super::fields;
use crate::model::event::{EventError, EventErrorCode};
use crate::rules::{PropertyValue, json_value};

/// The members of a request: its events, and what is kept with each of them.
pub(super) const MEMBERS: [&str; 10] = [
    EVENTS,
    "user_id",
    "client_id",
    "app_instance_id",
    "timestamp_micros",
    "user_properties",
    "consent",
    "device",
    "user_location",
    "user_agent",
];

/// A list, or the only event without a list around it, as `ga4mp` sends what it has put aside.
pub(super) const EVENTS: &str = "events";

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp_micros: Option<&'a RawValue>,
}

/// What a request says of all its events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) user: Option<String>,
    pub(super) timestamp_micros: Option<String>,
}

/// Reads the event with this number. Fails with its refusal.
pub(super) fn read<'a>(
    event: &'a str,
    index: usize,
    client: &'a Client,
) -> Result<SentEvent<'a>, EventError> {
    let fields: Event<'a> = fields::parse(event)?;
    let name = fields::text(fields.name)
        .ok_or_else(|| EventError::new(EventErrorCode::MetricInvalid, "an event has a name"))?;
    let own = fields.timestamp_micros.map(RawValue::get).filter(|micros| *micros != "null");
    let micros = own.or(client.timestamp_micros.as_deref());
    let user = client.user.as_deref();
    let id = micros.map(|micros| {
        let (user, index) = (user.unwrap_or_default(), index.to_le_bytes());
        Cow::Owned(fields::hash(&[user.as_bytes(), micros.as_bytes(), &index, event.as_bytes()]))
    });
    Ok(SentEvent {
        name,
        kind: "",
        id,
        user: user.map(Cow::Borrowed),
        timestamp: micros.map(millis).transpose()?,
    })
}

/// Microseconds of JSON, a number or a text of one, as milliseconds. Fails with `timestamp_invalid`.
fn millis(micros: &str) -> Result<i64, EventError> {
    let micros: Option<i64> = match json_value(micros.as_bytes()) {
        // Clients that count in floating point write 1.7e15.
        Some(PropertyValue::Number(text) | PropertyValue::Text(text)) => {
            text.parse().ok().or_else(|| {
                let micros: f64 = text.parse().ok()?;
                micros.is_finite().then_some(micros as i64)
            })
        }
        _ => None,
    };
    micros.map(|micros| micros.div_euclid(1_000)).ok_or_else(|| {
        let message = "timestamp_micros is a number of microseconds since 1970";
        EventError::new(EventErrorCode::TimestampInvalid, message)
    })
}
