//! Segment's HTTP tracking API, and RudderStack's, which has the same shape.
//!
//! A batch is `{"batch": [CALL, …], "sentAt": …, "writeKey": …}`; a call has its kind in `type`, or,
//! alone, in the path. `messageId` tells the copies of a call apart from other calls.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::SentEvent;
use super::fields;
use super::time::{self, ClientClock};
use crate::model::event::{EventError, EventErrorCode};

/// The kinds of calls, which are the last segments of the paths, too.
pub(super) const KINDS: [&str; 6] = ["track", "identify", "page", "screen", "group", "alias"];

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow, rename = "messageId")]
    message_id: Option<&'a RawValue>,
    #[serde(borrow, rename = "userId")]
    user_id: Option<&'a RawValue>,
    #[serde(borrow, rename = "anonymousId")]
    anonymous_id: Option<&'a RawValue>,
    #[serde(borrow, rename = "previousId")]
    previous_id: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    // RudderStack's clients have this one alone.
    #[serde(borrow, rename = "originalTimestamp")]
    original_timestamp: Option<&'a RawValue>,
    #[serde(borrow, rename = "sentAt")]
    sent_at: Option<&'a RawValue>,
}

/// Reads a call; `of_path` is its kind, if the path names it. A call of a batch may have a time of
/// sending of its own, as RudderStack's have, which is that of the batch then. Fails with the refusal
/// of the call.
pub(super) fn read<'a>(
    call: &'a str,
    of_path: Option<&'static str>,
    clock: ClientClock,
) -> Result<SentEvent<'a>, EventError> {
    let call: Call<'a> = fields::parse(call)?;
    let kind = match of_path {
        Some(kind) => kind,
        None => {
            let named = fields::text(call.kind).unwrap_or_default();
            let known = KINDS.iter().find(|kind| **kind == named);
            *known.ok_or_else(|| {
                let message = format!("the type of a call is one of {}", KINDS.join(", "));
                EventError::new(EventErrorCode::MetricInvalid, message)
            })?
        }
    };
    let name = match kind {
        "track" => fields::text(call.event).ok_or_else(|| {
            let message = "a track call has its name in event";
            EventError::new(EventErrorCode::MetricInvalid, message)
        })?,
        other => Cow::Borrowed(other),
    };
    let user =
        [call.user_id, call.anonymous_id, call.previous_id].into_iter().find_map(fields::text);
    if user.is_none() {
        let message = "a call has a userId or an anonymousId";
        return Err(EventError::new(EventErrorCode::UserInvalid, message));
    }
    let sent_at = match clock.sent_at {
        // A time that cannot be read says nothing of the clock.
        None => time::parse(call.sent_at.map(RawValue::get)).unwrap_or_default(),
        given => given,
    };
    let at = match time::parse(call.timestamp.map(RawValue::get))? {
        None => time::parse(call.original_timestamp.map(RawValue::get))?,
        given => given,
    };
    Ok(SentEvent {
        name,
        kind,
        id: fields::text(call.message_id).map(fields::id),
        user,
        timestamp: at.map(|at| ClientClock { sent_at, ..clock }.corrected(at)),
    })
}
