//! PostHog's capture endpoints, before version 1 and of it.
//!
//! A batch is `{"api_key": …, "sent_at": …, "batch": [EVENT, …]}`; older endpoints also take one
//! event, or an array of events, each with its key. `uuid` tells the copies of an event apart from
//! other events.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::SentEvent;
use super::fields;
use super::time::{self, ClientClock};
use crate::model::event::{EventError, EventErrorCode};

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    uuid: Option<&'a RawValue>,
    #[serde(borrow)]
    distinct_id: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    /// Milliseconds since the event, where there is no timestamp.
    #[serde(borrow)]
    offset: Option<&'a RawValue>,
    #[serde(borrow)]
    properties: Option<&'a RawValue>,
    #[serde(borrow)]
    options: Option<&'a RawValue>,
}

/// What may stand in the properties instead of beside them.
#[derive(Deserialize)]
struct Properties<'a> {
    #[serde(borrow)]
    distinct_id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Options {
    disable_skew_correction: Option<bool>,
}

/// How long ago an event was. Fails with `timestamp_invalid`: an event whose age is not known
/// would be counted in another hour than its own.
fn milliseconds(offset: &str) -> Result<i64, EventError> {
    let whole = offset.parse::<i64>().ok();
    let rounded = || offset.parse::<f64>().ok().filter(|ms| ms.is_finite()).map(|ms| ms as i64);
    whole.or_else(rounded).ok_or_else(|| {
        let message = "offset is a number of milliseconds before now";
        EventError::new(EventErrorCode::TimestampInvalid, message)
    })
}

/// Reads an event. Fails with its refusal.
pub(super) fn read<'a>(event: &'a str, clock: ClientClock) -> Result<SentEvent<'a>, EventError> {
    let event: Event<'a> = fields::parse(event)?;
    let name = fields::text(event.event).ok_or_else(|| {
        let message = "an event has its name in event";
        EventError::new(EventErrorCode::MetricInvalid, message)
    })?;
    let user = fields::text(event.distinct_id).or_else(|| {
        let properties: Properties<'a> = serde_json::from_str(event.properties?.get()).ok()?;
        fields::text(properties.distinct_id)
    });
    let is_exempt = event.options.is_some_and(|options| {
        serde_json::from_str::<Options>(options.get())
            .is_ok_and(|options| options.disable_skew_correction == Some(true))
    });
    let clock = if is_exempt { ClientClock { sent_at: None, ..clock } } else { clock };
    let timestamp = match time::parse(event.timestamp.map(RawValue::get))? {
        Some(at) => Some(clock.corrected(at)),
        None => {
            let ago = event.offset.map(|offset| milliseconds(offset.get())).transpose()?;
            ago.map(|ago| clock.now.saturating_sub(ago))
        }
    };
    Ok(SentEvent { name, kind: "", id: fields::text(event.uuid).map(fields::id), user, timestamp })
}
